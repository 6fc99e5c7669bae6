"""System calls that Python's ``os`` does not have, by their own names."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import struct
from pathlib import Path
from typing import NamedTuple

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2

FALLOC_FL_KEEP_SIZE = 0x01
FALLOC_FL_PUNCH_HOLE = 0x02
FALLOC_FL_ZERO_RANGE = 0x10

UTIME_NOW = (1 << 30) - 1
UTIME_OMIT = (1 << 30) - 2

FS_IOC_GETFLAGS = 0x80086601
FS_IOC_SETFLAGS = 0x40086602
FS_IMMUTABLE_FL = 0x10

_AT_FDCWD = -100
_AT_SYMLINK_NOFOLLOW = 0x100
_MNT_FORCE = 1
_MNT_DETACH = 2

_libc = ctypes.CDLL(None, use_errno=True)

Name = str | bytes | Path


def _checked(result: int, path: Name | None = None) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), None if path is None else os.fsdecode(path))
    return result


def renameat2(source: Name, target: Name, flags: int) -> None:
    """renameat2(2) on paths."""
    _checked(
        _libc.renameat2(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), flags),
        source,
    )


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2)."""
    _checked(_libc.fallocate(fd, mode, ctypes.c_int64(offset), ctypes.c_int64(length)))


def utimensat(path: Name, atime: tuple[int, int], mtime: tuple[int, int]) -> None:
    """utimensat(2) with (seconds, nanoseconds); the latter may be UTIME_NOW or UTIME_OMIT.

    Does not follow a symbolic link.
    """
    times = (ctypes.c_int64 * 4)(*atime, *mtime)
    _checked(
        _libc.utimensat(_AT_FDCWD, os.fsencode(path), times, _AT_SYMLINK_NOFOLLOW),
        path,
    )


class DirectoryEntry(NamedTuple):
    """One ``struct linux_dirent64``."""

    ino: int
    offset: int
    """What lseek(2) takes to go on behind this entry (telldir's value)."""
    kind: int
    name: bytes


def getdents64(fd: int, size: int = 32768) -> list[DirectoryEntry]:
    """The next entries of an open directory, as many as fit into ``size`` bytes; [] at the end."""
    buffer = ctypes.create_string_buffer(size)
    filled = _checked(_libc.getdents64(fd, buffer, ctypes.c_size_t(size)))
    entries = []
    position = 0
    while position < filled:
        ino, offset, length, kind = struct.unpack_from("=QqHB", buffer.raw, position)
        name = buffer.raw[position + 19 : position + length].split(b"\0", 1)[0]
        entries.append(DirectoryEntry(ino, offset, kind, name))
        position += length
    return entries


def list_all(fd: int, size: int = 32768) -> list[DirectoryEntry]:
    """Every entry from the current position on."""
    entries: list[DirectoryEntry] = []
    while more := getdents64(fd, size):
        entries += more
    return entries


def force_unmount(path: Name) -> bool:
    """Abort the connection (of FUSE) and detach the mount; False if nothing is mounted."""
    result: int = _libc.umount2(os.fsencode(path), _MNT_FORCE | _MNT_DETACH)
    return result == 0


def get_flags(path: Name) -> int:
    """The inode flags (``lsattr``)."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        return int.from_bytes(fcntl.ioctl(fd, FS_IOC_GETFLAGS, bytes(8))[:4], "little")
    finally:
        os.close(fd)


def set_flags(path: Name, flags: int) -> None:
    """Set the inode flags (``chattr``)."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        fcntl.ioctl(fd, FS_IOC_SETFLAGS, flags.to_bytes(8, "little"))
    finally:
        os.close(fd)


def aligned(content: bytes) -> mmap.mmap:
    """A buffer at a page boundary, as O_DIRECT wants it, holding ``content``."""
    buffer = mmap.mmap(-1, len(content))
    buffer.write(content)
    return buffer


def mount(source: str, target: Name, fstype: str, flags: int = 0, options: str = "") -> None:
    """mount(2)."""
    _checked(
        _libc.mount(
            source.encode(),
            os.fsencode(target),
            fstype.encode(),
            ctypes.c_ulong(flags),
            options.encode(),
        ),
        target,
    )
