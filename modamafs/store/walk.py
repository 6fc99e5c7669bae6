"""Walk a directory tree of any depth, holding one descriptor."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import NamedTuple

FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Directory(NamedTuple):
    """One directory on the way."""

    path: bytes
    """Relative to where the walk began; b"" for that."""
    fd: int
    """Valid until the walk goes on."""
    directories: list[bytes]
    """Names of directories in it; what is removed from here is not walked into."""
    others: list[bytes]
    """Names of everything else, symbolic links included."""


def walk(dir_fd: int) -> Iterator[Directory]:
    """Every directory from ``dir_fd`` down, a directory before what is in it.

    What vanishes meanwhile, or is no directory any more, is left out. OSError: ESTALE where a
    directory was moved away under the walk; whatever opening or reading one gives.
    """
    fd = os.open(b".", FLAGS, dir_fd=dir_fd)
    pending: list[list[bytes]] = []
    inodes: list[tuple[int, int]] = []
    path = b""
    try:
        while True:
            here = _read(path, fd)
            yield here
            pending.append(here.directories)
            inodes.append(_identity(fd))
            child = None
            while child is None:
                while not pending[-1]:
                    pending.pop()
                    inodes.pop()
                    if not pending:
                        return
                    fd = _replace(fd, os.open(b"..", FLAGS, dir_fd=fd))
                    if _identity(fd) != inodes[-1]:
                        raise OSError(errno.ESTALE, "moved while it was looked through")
                    path = os.path.dirname(path)
                name = pending[-1].pop()
                try:
                    child = os.open(name, FLAGS, dir_fd=fd)
                except (FileNotFoundError, NotADirectoryError):  # removed, or replaced
                    continue
            path = os.path.join(path, name)
            fd = _replace(fd, child)
    finally:
        os.close(fd)


def _read(path: bytes, fd: int) -> Directory:
    directories: list[bytes] = []
    others: list[bytes] = []
    with os.scandir(fd) as entries:
        for entry in entries:
            kind = directories if entry.is_dir(follow_symlinks=False) else others
            kind.append(os.fsencode(entry.name))
    return Directory(path, fd, directories, others)


def _identity(fd: int) -> tuple[int, int]:
    found = os.fstat(fd)
    return found.st_dev, found.st_ino


def _replace(old: int, new: int) -> int:
    os.close(old)
    return new
