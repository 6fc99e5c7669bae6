"""A place for what is shown on made-up data: a directory, a store in it, and nothing left of it."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import click

from modamafs import mounting
from modamafs.errors import Busy, ModamaError, NotMounted
from modamafs_cli import umount
from modamafs_cli._common import load_mount, runtime_of

ROOM_BYTES = 1 << 30
TESTED = ("ext4", "xfs", "btrfs")
PATIENCE_S = 10.0
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Place(NamedTuple):
    """The temporary directory and what is in it."""

    directory: Path
    store: Path
    data: Path
    """The mount point."""
    image: Path | None
    """Where a loop image is mounted that holds the store."""


@contextlib.contextmanager
def stop_by_signal() -> Iterator[Callable[[], None]]:
    """Let SIGTERM and SIGHUP end it as Ctrl-C does: tidily.

    What is given raises KeyboardInterrupt if one came and got lost: an exception in a callback of
    the interpreter (weakref, ``__del__``) is only printed.
    """
    came = threading.Event()

    def stop(_number: int, _frame: FrameType | None) -> None:
        came.set()
        raise KeyboardInterrupt

    def check() -> None:
        if came.is_set():
            raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in STOP_SIGNALS}
    try:
        yield check
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def temporary(ctx: click.Context, parent: Path | None, *, keep: bool) -> Iterator[Place]:
    """Make the directories, and remove everything at the end; ``keep``: only after a failure."""
    parent = Path(os.path.realpath(parent)) if parent else _suitable_directory()
    if shutil.disk_usage(parent).free < ROOM_BYTES:
        raise ModamaError(
            f"{parent} has less than {ROOM_BYTES >> 30} GiB left: free some, "
            "or choose another place with --directory"
        )
    directory = Path(tempfile.mkdtemp(prefix="modamafs-demo-", dir=parent))
    try:
        directory.chmod(0o755)
        image = None if fstype_of(directory) in TESTED else _mount_image(directory)
        place = Place(directory, (image or directory) / "store", directory / "data", image)
        place.store.mkdir()
        place.data.mkdir()
        yield place
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)  # what they mapped would keep the mount busy
        _remove(ctx, directory)
        raise
    if not keep:
        _remove(ctx, directory)


def _suitable_directory() -> Path:
    places = [Path(os.path.realpath(path)) for path in (tempfile.gettempdir(), "/var/tmp")]
    return next((place for place in places if fstype_of(place) in TESTED), places[0])


def fstype_of(directory: Path) -> str:
    above = [m for m in mounting.mounts() if directory.is_relative_to(m.mountpoint)]
    return max(above, key=lambda found: len(found.mountpoint)).fstype


def _mount_image(directory: Path) -> Path:
    """A file system that stores are tested on, where there is none (in a container, say)."""
    if not mounting.has_capability(mounting.CAP_SYS_ADMIN):
        return directory  # mounting.check says it better
    file, image = directory / "ext4.image", directory / "disk"
    file.touch()
    os.truncate(file, ROOM_BYTES)
    image.mkdir()
    commands = (
        ["mkfs.ext4", "-q", "-F", str(file)],
        ["mount", "-o", "loop", str(file), str(image)],
    )
    for arguments in commands:
        try:
            done = subprocess.run(arguments, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            why = "not installed"
        else:
            why = done.stderr.strip() if done.returncode else ""
        if why:
            raise ModamaError(
                f"{directory.parent} is not on ext4, XFS or btrfs, and an image of ext4 can't be "
                f"made there ({arguments[0]}: {why}): name a place that is with --directory"
            )
    return image


def _remove(ctx: click.Context, directory: Path) -> None:
    """Unmount, and remove everything; nothing may interrupt that."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in STOP_SIGNALS}
    try:
        unmount(ctx, directory / "data")
        _unmount_image(directory / "disk")
        _clear_immutable_flags(directory)
        shutil.rmtree(directory)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def unmount(ctx: click.Context, mountpoint: Path) -> None:
    """By force if need be; it returns when the mount's processes have ended."""
    left = load_mount(runtime_of(str(mountpoint)))
    for lazy in (False, True):
        with contextlib.suppress(NotMounted, Busy):
            ctx.invoke(umount.command, mountpoint=str(mountpoint), lazy=lazy)
    deadline = time.monotonic() + PATIENCE_S
    while left and left.is_supervised and time.monotonic() < deadline:
        time.sleep(0.01)


def _unmount_image(image: Path) -> None:
    """Wait for the daemon to let go of it; then its loop device is free as well."""
    deadline = time.monotonic() + PATIENCE_S
    while mounting.mounted_at(str(image)):
        try:
            mounting.unmount(str(image), lazy=time.monotonic() > deadline)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            time.sleep(0.05)


def _clear_immutable_flags(directory: Path) -> None:
    """What is sealed could not be removed otherwise."""
    for parent, _, names in os.walk(directory):
        files = (path for name in names if (path := Path(parent, name)).is_file())
        for path in (Path(parent), *(path for path in files if not path.is_symlink())):
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                mounting.set_immutable(fd, False)
            except OSError as error:
                if error.errno not in (errno.ENOTTY, errno.EOPNOTSUPP):
                    raise
            finally:
                os.close(fd)
