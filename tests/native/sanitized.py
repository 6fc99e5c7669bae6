"""The C modules built with AddressSanitizer and UndefinedBehaviorSanitizer, and their use.

``pytest tests/native --sanitize`` builds them beside the ordinary ones, into ``build/sanitized``,
and runs itself again in a child that imports those. A report of a sanitizer ends the process that
it is about, and is written to a file: both fail the run.
"""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
BUILT = ROOT / "build" / "sanitized"
REPORTS = BUILT / "reports"
FLAGS = "-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g"
VARIABLE = "MODAMAFS_SANITIZED"
MODULES = {"modamafs.store": "_volume", "modamafs.fuse": "_channel"}


def in_use() -> bool:
    """Whether this process has the sanitized modules."""
    return VARIABLE in os.environ


def use_if_asked() -> None:
    """Let the C modules be imported from where the environment says; before anybody does."""
    if not in_use():
        return
    built = os.environ[VARIABLE]
    for package, module in MODULES.items():
        path = Path(built, *package.split("."))
        if not list(path.glob(f"{module}.*.so")):
            raise RuntimeError(f"no {module} in {path}")
        assert f"{package}.{module}" not in sys.modules, f"{module} was imported before"
        importlib.import_module(package).__path__.insert(0, str(path))


def build() -> None:
    """Build both modules with the sanitizers; RuntimeError with the compiler's words."""
    done = subprocess.run(
        [
            sys.executable, "setup.py", "--quiet", "build_ext",
            "--build-lib", str(BUILT), "--build-temp", str(BUILT / "objects"),
        ],
        cwd=ROOT,
        env={**os.environ, "MODAMAFS_SANITIZE": FLAGS},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"building with {FLAGS}:\n{done.stdout}{done.stderr}")


def environment(reports: Path = REPORTS) -> dict[str, str]:
    """What a process needs to run the sanitized modules in an ordinary Python."""
    libraries = [_library("libasan.so"), _library("libubsan.so")]
    options = f"log_path={reports / 'report'}"
    return {
        **os.environ,
        VARIABLE: str(BUILT),
        "LD_PRELOAD": " ".join(libraries),
        # CPython keeps what it allocates until its end; the rest is as strict as it can be.
        "ASAN_OPTIONS": f"detect_leaks=0:detect_stack_use_after_return=1:{options}",
        "UBSAN_OPTIONS": f"print_stacktrace=1:{options}",
        # Every object is an allocation of its own, so that an overrun is seen.
        "PYTHONMALLOC": "malloc",
    }


def _library(name: str) -> str:
    found = subprocess.run(
        ["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if not Path(found).is_absolute():
        raise RuntimeError(f"gcc has no {name}: on Debian, libgcc-12-dev brings it")
    return str(Path(found).resolve())


def run_again(arguments: list[str]) -> int:
    """Run pytest with these arguments in a child with the sanitized modules; its exit status."""
    build()
    shutil.rmtree(REPORTS, ignore_errors=True)
    REPORTS.mkdir(parents=True)
    status = subprocess.run(
        [sys.executable, "-m", "pytest", *arguments], env=environment(), check=False
    ).returncode
    for report in sorted(REPORTS.iterdir()):
        print(f"\n=== {report}\n{report.read_text(errors='replace')}")
        status = status or 1
    return status
