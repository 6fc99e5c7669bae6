"""The immutable flag (``chattr +i``): the second wall, which holds on the store itself.

Regular files and directories can carry it on ext4, XFS and btrfs; symbolic links, FIFOs, sockets
and devices can't. See ioctl_iflags(2).
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from pathlib import Path

from modamafs.mounting import set_immutable, takes_immutable_flag

_FS_IOC_GETFLAGS = 0x80086601
_FS_IMMUTABLE_FL = 0x10


def is_supported(fd: int) -> bool:
    """Whether this process may set the flag on the file system that an open directory lies on."""
    return takes_immutable_flag(Path(f"/proc/self/fd/{fd}"))


def is_immutable(fd: int) -> bool:
    """Whether an open file or directory has the flag; False where there is no such flag."""
    try:
        (flags,) = struct.unpack("=q", fcntl.ioctl(fd, _FS_IOC_GETFLAGS, bytes(8)))
    except OSError as error:
        if error.errno in (errno.ENOTTY, errno.EOPNOTSUPP):
            return False
        raise
    return bool(flags & _FS_IMMUTABLE_FL)


def change(fd: int, immutable: bool) -> bool:
    """Set or clear the flag and leave the others. Whether that changed anything.

    OSError: EPERM without CAP_LINUX_IMMUTABLE; ENOTTY, EOPNOTSUPP where there is no such flag.
    """
    if is_immutable(fd) is immutable:
        return False
    set_immutable(fd, immutable)
    return True


def is_immutable_at(dir_fd: int, name: bytes) -> bool:
    """Whether a file or directory, by its name, has the flag."""
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(name, flags, dir_fd=dir_fd)
    try:
        return is_immutable(fd)
    finally:
        os.close(fd)
