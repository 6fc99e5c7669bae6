"""The store's bytes: every call on the backing file system, by descriptor, never by path.

A name is always taken relative to a directory descriptor and never followed when it is a symbolic
link. What is created belongs to the caller from the first moment on: owner, group, umask and
default ACL are the backing file system's own work (``_volume.c`` lends the identity).

Errors are ``OSError`` with the backing file system's own errno.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import sys
from pathlib import Path
from types import TracebackType

import xattr

from modamafs.errors import MountRefused
from modamafs.model import Attributes, Caller
from modamafs.store import _volume

chown = _volume.chown
fallocate = _volume.fallocate
ioctl_as = _volume.ioctl_as
link = _volume.link
rename = _volume.rename
truncate = _volume.truncate
utimens = _volume.utimens
write = _volume.write


PATH_FLAGS = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
"""For a step to a directory that no symbolic link leads to."""
FS_IOC_GETFLAGS = 0x80086601
FS_APPEND_FL = 0x20
BTRFS_IOC_GET_SUBVOL_ROOTREF = 0xD000943D
SUBVOLUME_ROOTREF_BYTES = 4096


class Store:
    """A store's root directory, held open, and the volume that it lies on."""

    def __init__(self, path: Path) -> None:
        """Open the store. ``path`` is an existing directory (OSError otherwise)."""
        self.path = path
        self.root_fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.volume = _volume.Volume(self.root_fd)

    def close(self) -> None:
        """Close the root; the store is not usable afterwards."""
        os.close(self.root_fd)

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def statvfs(self) -> os.statvfs_result:
        """What ``statvfs(3)`` says of the backing file system."""
        return os.fstatvfs(self.root_fd)

    def check(self) -> None:
        """Refuse a store that can't be served, with MountRefused: one line that says why."""
        if self.volume.kind == "other":
            raise MountRefused(
                f"the store {self.path} lies on a file system that modamafs can't address by file "
                "handle; it can on ext4, XFS and btrfs: move the store to one of these"
            )
        nested = self._nested_subvolume() if self.volume.kind == "btrfs" else None
        if nested is not None:
            raise MountRefused(
                f"inside the store {self.path}, in {os.fsdecode(nested)}, lies another btrfs "
                "subvolume; a store is one: move it out, or mount it as a store of its own"
            )

    def _nested_subvolume(self) -> bytes | None:
        """The directory in the store that a subvolume or snapshot lies in; None for none."""
        answer = bytearray(SUBVOLUME_ROOTREF_BYTES)
        try:
            fcntl.ioctl(self.root_fd, BTRFS_IOC_GET_SUBVOL_ROOTREF, answer)
        except OSError as error:
            if error.errno != errno.EOVERFLOW:  # more than one answer holds: look at the first 255
                raise
        for number in range(answer[8 + 255 * 16]):
            (directory,) = struct.unpack_from("=Q", answer, 8 + number * 16 + 8)
            fd = self.volume.open(directory, os.O_PATH)
            try:
                if self.contains(fd):
                    return path_of(fd)
            finally:
                os.close(fd)
        return None

    def is_whole_volume(self) -> bool:
        """Whether every inode of the file system lies in the store: its root is the store's."""
        parent = os.open("..", os.O_PATH | os.O_DIRECTORY, dir_fd=self.root_fd)
        try:
            above: Attributes = self.volume.attributes(parent)
        finally:
            os.close(parent)
        return above.dev != self.volume.dev or above.ino == self.volume.root_ino

    def contains(self, fd: int) -> bool:
        """Whether a descriptor's path, as the kernel knows it now, lies in the store."""
        path = path_of(fd)
        root = path_of(self.root_fd).rstrip(b"/")
        return path == root or path.startswith(root + b"/")


def path_of(fd: int) -> bytes:
    """The path that the kernel knows for a descriptor; b"/" for one that it knows none for."""
    return os.readlink(b"/proc/self/fd/%d" % fd)


def create(dir_fd: int, name: bytes, flags: int, mode: int, caller: Caller) -> int:
    """``openat(2)`` with O_CREAT in ``flags`` as the caller; a descriptor."""
    return _volume.create(
        dir_fd, name, flags | os.O_NOFOLLOW, mode, caller.uid, caller.gid, caller.umask
    )


def create_unnamed(dir_fd: int, flags: int, mode: int, caller: Caller) -> int:
    """``open(2)`` with O_TMPFILE in the directory, as the caller; a descriptor.

    Without a write mode in ``flags`` it is open for reading and writing: O_TMPFILE wants one.
    """
    access = flags if flags & os.O_ACCMODE else flags | os.O_RDWR
    return _volume.create(
        dir_fd, b".", access | os.O_TMPFILE, mode, caller.uid, caller.gid, caller.umask
    )


def is_append_only(fd: int) -> bool:
    """Whether a directory may only grow (``chattr +a``)."""
    flags = bytearray(4)
    try:
        fcntl.ioctl(fd, FS_IOC_GETFLAGS, flags)
    except OSError as error:
        if error.errno in (errno.ENOTTY, errno.EOPNOTSUPP):
            return False
        raise
    return bool(int.from_bytes(flags, sys.byteorder) & FS_APPEND_FL)


def mknod(dir_fd: int, name: bytes, mode: int, rdev: int, caller: Caller) -> None:
    """``mknodat(2)``, or ``mkdirat(2)`` where ``mode`` says so, as the caller."""
    _volume.mknod(dir_fd, name, mode, rdev, caller.uid, caller.gid, caller.umask)


def symlink(target: bytes, dir_fd: int, name: bytes, caller: Caller) -> None:
    """``symlinkat(2)`` as the caller."""
    _volume.symlink(target, dir_fd, name, caller.uid, caller.gid)


def chmod(fd: int, mode: int) -> None:
    """``chmod(2)`` of what the descriptor (also O_PATH) names."""
    os.chmod(f"/proc/self/fd/{fd}", mode)


def readlink(fd: int) -> bytes:
    """The target of the symbolic link that an O_PATH descriptor names."""
    return os.readlink(b"", dir_fd=fd)


def getxattr(fd: int, name: bytes) -> bytes:
    """The value of an extended attribute of what the descriptor (also O_PATH) names."""
    value: bytes = xattr.get(b"/proc/self/fd/%d" % fd, name)
    return value


def listxattr(fd: int) -> list[bytes]:
    """The names of the extended attributes of what the descriptor (also O_PATH) names."""
    names: list[bytes] = [os.fsencode(name) for name in xattr.list(b"/proc/self/fd/%d" % fd)]
    return names


def setxattr(
    fd: int, name: bytes, value: bytes, flags: int, caller: Caller, *, keep_setid: bool
) -> None:
    """``setxattr(2)`` as the caller; see ``_volume.setxattr_as`` for ``keep_setid``."""
    _volume.setxattr_as(fd, name, value, flags, caller.uid, caller.gid, keep_setid)


def removexattr(fd: int, name: bytes) -> None:
    """``removexattr(2)`` of what the descriptor (also O_PATH) names."""
    xattr.remove(b"/proc/self/fd/%d" % fd, name)
