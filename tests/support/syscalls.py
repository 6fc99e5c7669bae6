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


# by descriptor and name, by handle, by mapping

AT_EMPTY_PATH = 0x1000
AT_SYMLINK_NOFOLLOW = _AT_SYMLINK_NOFOLLOW
AT_SYMLINK_FOLLOW = 0x400

FICLONE = 0x40049409
FICLONERANGE = 0x4020940D
FIDEDUPERANGE = 0xC0189436
FS_IOC_GETVERSION = 0x80087601
FS_IOC_FSGETXATTR = 0x801C581F
FS_IOC_FSSETXATTR = 0x401C5820
FS_NODUMP_FL = 0x40
FS_XFLAG_NODUMP = 0x80

MADV_REMOVE = 9
MAP_FAILED = ctypes.c_void_p(-1).value

_SYS_FCHMODAT2 = 452

_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64
]  # fmt: skip
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

At = tuple[int | None, Name]
"""A directory descriptor (None: the working directory) and a name in it."""


def _at(place: At) -> tuple[int, bytes]:
    return _AT_FDCWD if place[0] is None else place[0], os.fsencode(place[1])


def renameat2_at(source: At, target: At, flags: int) -> None:
    """renameat2(2) relative to descriptors."""
    _checked(_libc.renameat2(*_at(source), *_at(target), flags), source[1])


def fchmodat2(place: At, mode: int, flags: int) -> None:
    """fchmodat2(2), with AT_EMPTY_PATH on an O_PATH descriptor too."""
    _checked(_libc.syscall(_SYS_FCHMODAT2, *_at(place), mode, flags), place[1])


def fchownat(place: At, uid: int, gid: int, flags: int) -> None:
    """fchownat(2)."""
    _checked(_libc.fchownat(*_at(place), uid, gid, flags), place[1])


def utimensat_at(place: At, atime: tuple[int, int], mtime: tuple[int, int], flags: int) -> None:
    """utimensat(2) relative to a descriptor; see `utimensat`."""
    times = (ctypes.c_int64 * 4)(*atime, *mtime)
    _checked(_libc.utimensat(*_at(place), times, flags), place[1])


def linkat(source: At, target: At, flags: int) -> None:
    """linkat(2), which Python's ``os.link`` calls in some cases only."""
    _checked(_libc.linkat(*_at(source), *_at(target), flags), source[1])


class FileHandle(NamedTuple):
    """``struct file_handle``."""

    kind: int
    content: bytes


def name_to_handle_at(place: At, flags: int = 0) -> FileHandle:
    """name_to_handle_at(2), without the mount's id."""
    room = 128
    buffer = ctypes.create_string_buffer(struct.pack("=Ii", room, 0) + bytes(room))
    mount_id = ctypes.c_int()
    _checked(_libc.name_to_handle_at(*_at(place), buffer, ctypes.byref(mount_id), flags), place[1])
    length, kind = struct.unpack_from("=Ii", buffer.raw)
    return FileHandle(kind, buffer.raw[8 : 8 + length])


def open_by_handle_at(mount_fd: int, handle: FileHandle, flags: int) -> int:
    """open_by_handle_at(2)."""
    packed = struct.pack("=Ii", len(handle.content), handle.kind) + handle.content
    return _checked(_libc.open_by_handle_at(mount_fd, packed, flags | os.O_CLOEXEC))


def get_flags_of(fd: int) -> int:
    """FS_IOC_GETFLAGS on a descriptor."""
    return int.from_bytes(fcntl.ioctl(fd, FS_IOC_GETFLAGS, bytes(8))[:4], "little")


def set_flags_of(fd: int, flags: int) -> None:
    """FS_IOC_SETFLAGS on a descriptor."""
    fcntl.ioctl(fd, FS_IOC_SETFLAGS, flags.to_bytes(8, "little"))


def set_extended_flags_of(fd: int, flags: int) -> None:
    """FS_IOC_FSSETXATTR: what FS_IOC_FSGETXATTR says, with these ``FS_XFLAG_…`` added."""
    found = bytearray(fcntl.ioctl(fd, FS_IOC_FSGETXATTR, bytes(28)))
    struct.pack_into("=I", found, 0, struct.unpack_from("=I", found)[0] | flags)
    fcntl.ioctl(fd, FS_IOC_FSSETXATTR, bytes(found))


def clone(source: int, target: int) -> None:
    """FICLONE: the whole file becomes a reflink."""
    fcntl.ioctl(target, FICLONE, source)


def clone_range(source: int, target: int, length: int) -> None:
    """FICLONERANGE of the first ``length`` bytes."""
    fcntl.ioctl(target, FICLONERANGE, struct.pack("=qQQQ", source, 0, length, 0))


def dedupe(source: int, target: int, length: int) -> None:
    """FIDEDUPERANGE of the first ``length`` bytes, of one target."""
    request = struct.pack("=QQHHI", 0, length, 1, 0, 0) + struct.pack("=qQQiI", target, 0, 0, 0, 0)
    answer = fcntl.ioctl(source, FIDEDUPERANGE, request)
    status: int = struct.unpack_from("=i", answer, 24 + 24)[0]
    if status < 0:
        raise OSError(-status, os.strerror(-status))


def map_file(fd: int, length: int, protection: int, flags: int) -> int:
    """mmap(2); returns the address."""
    address: int = _libc.mmap(None, length, protection, flags, fd, 0)
    if address == MAP_FAILED:
        _checked(-1)
    return address


def unmap(address: int, length: int) -> None:
    """munmap(2)."""
    _checked(_libc.munmap(address, length))


def protect(address: int, length: int, protection: int) -> None:
    """mprotect(2)."""
    _checked(_libc.mprotect(address, length, protection))


def advise(address: int, length: int, advice: int) -> None:
    """madvise(2)."""
    _checked(_libc.madvise(address, length, advice))


def read_memory(address: int, length: int) -> bytes:
    """What lies there."""
    return ctypes.string_at(address, length)


def write_memory(address: int, content: bytes) -> None:
    """Put it there; a signal where that is not allowed."""
    ctypes.memmove(address, content, len(content))


def be_an_ordinary_process() -> None:
    """Undo what changing the credentials has done: its own /proc/self/mem belongs to it again."""
    pr_set_dumpable = 4
    _checked(_libc.prctl(pr_set_dumpable, 1, 0, 0, 0))
