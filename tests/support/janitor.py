"""A process of its own that leaves nothing behind, whatever becomes of the tests.

Everything that the tests mount lies below one directory. When the test process is gone (also by
SIGKILL), whatever is still mounted there is taken away; when a test is overdue because a mount
does not answer (such a system call can't be interrupted), its FUSE connection is aborted, so that
the test fails instead of hanging.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import time
from pathlib import Path

from tests.support.syscalls import force_unmount, set_flags


def mounts_below(directory: Path) -> list[tuple[Path, str]]:
    """(mount point, file system type) of all mounts below ``directory``, the newest first."""
    found = []
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        fields, _, tail = line.partition(b" - ")
        point = Path(os.fsdecode(fields.split(b" ")[4].replace(b"\\040", b" ")))
        if directory in point.parents:
            found.append((point, tail.split(b" ")[0].decode()))
    return found[::-1]


def clean_up(directory: Path) -> None:
    """Unmount everything below ``directory``, free its loop devices and remove it."""
    for point, _ in mounts_below(directory):
        force_unmount(point)
    release_loop_devices(directory)
    if mounts_below(directory):
        return
    for entry in directory.glob("*/*"):
        if entry.is_dir() and not entry.is_symlink():
            with contextlib.suppress(OSError):
                set_flags(entry, 0)  # the guard of a mount point
    shutil.rmtree(directory, ignore_errors=True)


def release_loop_devices(directory: Path) -> None:
    """Detach loop devices whose image lies below ``directory``."""
    listing = subprocess.run(
        ["losetup", "--noheadings", "--list", "--output", "NAME,BACK-FILE"],
        capture_output=True,
        text=True,
        check=False,
    )
    for line in listing.stdout.splitlines():
        device, _, image = line.partition(" ")
        if image.strip().startswith(f"{directory}/"):
            subprocess.run(["losetup", "--detach", device], check=False)


class Janitor:
    """Watches the process that made it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        tests = os.getpid()
        reader, self._writer = os.pipe()
        if os.fork() == 0:
            os.setsid()
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            os.close(self._writer)
            self._watch(tests, reader)
            os._exit(0)
        os.close(reader)

    def expect_done_within(self, seconds: float) -> None:
        """Abort FUSE connections when this is not called again in time; 0: nothing is running."""
        os.write(self._writer, f"{seconds}\n".encode())

    def _watch(self, tests: int, messages: int) -> None:
        gone = os.pidfd_open(tests)
        deadline: float | None = None
        while True:
            wait = None if deadline is None else max(0, deadline - time.monotonic())
            ready, _, _ = select.select([gone, messages], [], [], wait)
            if gone in ready:
                clean_up(self._directory)
                return
            if messages in ready:
                last = os.read(messages, 65536).split()[-1:]
                seconds = float(last[0]) if last else 0.0
                deadline = time.monotonic() + seconds if seconds else None
            else:
                self._abort_connections()
                deadline = None

    def _abort_connections(self) -> None:
        for point, fstype in mounts_below(self._directory):
            if fstype.startswith("fuse"):
                force_unmount(point)
