"""The fanotify group of a store's file system: opened once for a mount, held by its supervisor.

As long as the descriptor is open somewhere, the kernel keeps what was not read yet: so a watcher
that is killed misses nothing.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from modamafs.watch.events import CHANGES

_CLOEXEC, _NONBLOCK = 0x1, 0x2
_REPORT_TID, _REPORT_FID, _REPORT_DIR_FID, _REPORT_NAME, _REPORT_TARGET_FID = (
    0x100, 0x200, 0x400, 0x800, 0x1000,
)  # fmt: skip
_MARK_ADD, _MARK_FILESYSTEM = 0x1, 0x100
_MARK_IGNORE_SURV = 0x400 | 0x40
_EVENT_ON_CHILD = 0x08000000
_AT_FDCWD = -100

FLAGS = (
    _CLOEXEC | _NONBLOCK
    | _REPORT_TID | _REPORT_FID | _REPORT_DIR_FID | _REPORT_NAME | _REPORT_TARGET_FID
)  # fmt: skip

_libc = ctypes.CDLL(None, use_errno=True)


def open_group(store: Path) -> int:
    """A descriptor that tells of all changes on the store's file system from now on.

    OSError where the kernel can't: EPERM (it takes CAP_SYS_ADMIN), EINVAL (before Linux 5.17),
    EXDEV (a btrfs subvolume), ENODEV or EOPNOTSUPP (file systems without handles).
    """
    fd = _check(_libc.fanotify_init(FLAGS, os.O_RDONLY | os.O_CLOEXEC | os.O_LARGEFILE))
    try:
        _mark(fd, _MARK_ADD | _MARK_FILESYSTEM, CHANGES, store)
    except OSError:
        os.close(fd)
        raise
    return fd


def ignore(fd: int, directory: Path) -> None:
    """Hear nothing of what changes directly in a directory. OSError."""
    _mark(fd, _MARK_ADD | _MARK_IGNORE_SURV, CHANGES | _EVENT_ON_CHILD, directory)


def _mark(fd: int, flags: int, mask: int, path: Path) -> None:
    _check(
        _libc.fanotify_mark(fd, flags, ctypes.c_uint64(mask), _AT_FDCWD, os.fsencode(path)),
        str(path),
    )


def _check(result: int, path: str | None = None) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return result
