"""File systems of a fixed size, so that no test can fill the machine's disk."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.syscalls import force_unmount

MiB = 1 << 20

MAKE = {
    # 4 KiB blocks and 256 byte inodes, as on a disk of a usual size.
    "ext4": ["mkfs.ext4", "-q", "-F", "-b", "4096", "-I", "256"],
    "xfs": ["mkfs.xfs", "-q", "-f"],
    "btrfs": ["mkfs.btrfs", "-q", "-f"],
}
SIZE_BYTES = {"ext4": 3072 * MiB, "xfs": 512 * MiB, "btrfs": 1024 * MiB}


class Image:
    """A new file system on a sparse file, mounted at ``root`` for as long as the block lasts."""

    def __init__(self, fstype: str, directory: Path) -> None:
        self.fstype = fstype
        self.root = directory / f"{fstype}-root"
        self._file = directory / f"{fstype}.image"

    def __enter__(self) -> Self:
        self._file.touch()
        os.truncate(self._file, SIZE_BYTES[self.fstype])
        _run(*MAKE[self.fstype], str(self._file))
        self.root.mkdir()
        # mount(8) sets up the loop device such that it is freed by the last umount.
        _run("mount", "-t", self.fstype, "-o", "loop", str(self._file), str(self.root))
        self.root.chmod(0o755)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        force_unmount(self.root)
        attached = _run("losetup", "--associated", str(self._file))
        for line in attached.splitlines():
            subprocess.run(["losetup", "--detach", line.partition(":")[0]], check=False)
        self._file.unlink()


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout
