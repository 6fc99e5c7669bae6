"""The two native modules; everything else is in pyproject.toml."""

import os
import subprocess

from setuptools import Extension, setup

WARNINGS = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror"]
SANITIZE = os.environ.get("MODAMAFS_SANITIZE", "").split()


def pkg_config(*arguments: str) -> list[str]:
    return subprocess.check_output(["pkg-config", *arguments, "fuse3"], text=True).split()


setup(
    ext_modules=[
        Extension(
            "modamafs.store._volume",
            ["modamafs/store/_volume.c"],
            extra_compile_args=[*WARNINGS, *SANITIZE],
            extra_link_args=SANITIZE,
        ),
        Extension(
            "modamafs.fuse._channel",
            ["modamafs/fuse/_channel.c"],
            extra_compile_args=[*WARNINGS, *SANITIZE, *pkg_config("--cflags")],
            extra_link_args=[*SANITIZE, *pkg_config("--libs")],
        ),
    ]
)
