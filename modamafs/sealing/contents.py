"""What a sealed tree consists of, in one fixed order, one entry at a time.

The order is git's: a directory's name counts with a slash at its end. So the paths of all files
come sorted by their bytes, although no more than one directory's names per level are in memory.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from typing import NamedTuple

from modamafs.model import is_own_name

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
FILE = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC


class Entry(NamedTuple):
    """One name below the directory, or (with the path b"") the directory itself."""

    path: bytes
    """Relative to the directory."""
    name: bytes
    """In ``dir_fd``; b"." for the directory itself."""
    dir_fd: int
    """Valid until the next entry is asked for."""
    found: os.stat_result

    @property
    def kind(self) -> int:
        """``S_IFMT`` of the mode."""
        return stat.S_IFMT(self.found.st_mode)

    @property
    def is_file(self) -> bool:
        """Whether it is a regular file."""
        return stat.S_ISREG(self.found.st_mode)

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory."""
        return stat.S_ISDIR(self.found.st_mode)

    def open(self) -> int:
        """A descriptor of a regular file or directory, for reading; the caller closes it."""
        return os.open(self.name, DIRECTORY if self.is_directory else FILE, dir_fd=self.dir_fd)


def contents(
    fd: int, leaving_out: frozenset[bytes] = frozenset(), *, vanishing: bool = False
) -> Iterator[Entry]:
    """The directory itself, and everything below but what belongs to modamafs, in order.

    A directory comes before what is in it. ``leaving_out`` are paths of directories that are not
    looked into (they themselves are given). With ``vanishing``, what is removed meanwhile is passed
    over. One descriptor is held, at any depth.

    OSError: ESTALE where a directory was moved away meanwhile; whatever reading gives.
    """
    here = os.open(b".", DIRECTORY, dir_fd=fd)
    path = b""
    pending: list[list[bytes]] = []
    above: list[tuple[int, int]] = []
    try:
        yield Entry(b"", b".", here, os.fstat(here))
        pending.append(_names(here))
        above.append(_identity(here))
        while True:
            if not pending[-1]:
                pending.pop()
                above.pop()
                if not pending:
                    return
                here = _replace(here, os.open(b"..", DIRECTORY, dir_fd=here))
                if _identity(here) != above[-1]:
                    raise OSError(errno.ESTALE, "moved while it was looked through")
                path = path.rpartition(b"/")[0]
                continue
            name = pending[-1].pop().rstrip(b"/")
            inside = path + b"/" + name if path else name
            try:
                found = os.stat(name, dir_fd=here, follow_symlinks=False)
                entry = Entry(inside, name, here, found)
                yield entry
                if not entry.is_directory or inside in leaving_out:
                    continue
                here = _replace(here, os.open(name, DIRECTORY, dir_fd=here))
            except OSError as error:
                if vanishing and error.errno == errno.ENOENT:
                    continue
                raise OSError(error.errno, error.strerror, os.fsdecode(inside)) from error
            path = inside
            pending.append(_names(here))
            above.append(_identity(here))
    finally:
        os.close(here)


def _names(fd: int) -> list[bytes]:
    """The names in a directory, the last one first; those of directories with a slash."""
    names: list[bytes] = []
    with os.scandir(fd) as entries:
        for entry in entries:
            name = os.fsencode(entry.name)
            if not is_own_name(name):
                names.append(name + b"/" if entry.is_dir(follow_symlinks=False) else name)
    names.sort(reverse=True)
    return names


def _identity(fd: int) -> tuple[int, int]:
    found = os.fstat(fd)
    return found.st_dev, found.st_ino


def _replace(old: int, new: int) -> int:
    os.close(old)
    return new
