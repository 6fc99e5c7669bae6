"""What the kernel is told to forget: FUSE's notifications, and which of them a change takes.

Source: ``include/uapi/linux/fuse.h``, ``fs/fuse/dev.c``. A notification is a reply to nothing
(``unique`` 0) with its code where an error would be; any process that holds the descriptor may
write it. It may wait for a request on the same directory, so never from where requests are served.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterable

from modamafs.model import ROOT
from modamafs.watch.events import ATTRIB, CLOSE_WRITE, CREATE, DELETE, MODIFY, RENAME, Event

_HEADER = struct.Struct("=IiQ")
_NODE = struct.Struct("=Q")
_INODE = struct.Struct("=Qqq")
_ENTRY = struct.Struct("=QII")
_INVAL_INODE, _INVAL_ENTRY, _INC_EPOCH = 2, 3, 8
_EXPIRE_ONLY = 1
"""The name is asked for again, and goes on being the directory of whoever is in it."""
_NOT_KNOWN = (errno.ENOENT, errno.ENOTDIR, errno.EAGAIN, errno.ENOTEMPTY, errno.EINVAL)
_ATTRIBUTES_ONLY, _ALL = (-1, 0), (0, 0)
"""Offset and length: nothing of what is cached of the content, or all of it."""


def inode(node: int) -> bytes:
    """Forget attributes, ACLs and content of an inode; of a directory, its listing."""
    return _message(_INVAL_INODE, _INODE.pack(node, *_ALL))


def attributes(node: int) -> bytes:
    """Forget attributes and ACLs of an inode."""
    return _message(_INVAL_INODE, _INODE.pack(node, *_ATTRIBUTES_ONLY))


def entry(directory: int, name: bytes) -> bytes:
    """Ask for an entry again, whether it was there or not."""
    return _message(_INVAL_ENTRY, _ENTRY.pack(directory, len(name), _EXPIRE_ONLY) + name + b"\0")


def everything() -> bytes:
    """Ask for all entries again, and with them for their attributes (Linux 6.16)."""
    return _message(_INC_EPOCH, b"")


def _message(code: int, payload: bytes) -> bytes:
    return _HEADER.pack(_HEADER.size + len(payload), code, 0) + payload


def node_of(message: bytes) -> int:
    """Which node, the lock of which may be taken, a notification is about; 0: about none."""
    _, code, _ = _HEADER.unpack_from(message)
    if code == _INC_EPOCH:
        return 0
    (node,) = _NODE.unpack_from(message, _HEADER.size)
    return int(node)


def of(event: Event, root_ino: int) -> Iterable[bytes]:
    """The notifications that a change takes; ``root_ino`` is the inode that is node 1."""

    def node(ino: int) -> int:
        return ROOT if ino == root_ino else ino

    def changed(directory: int, name: bytes) -> Iterable[bytes]:
        if directory and name and name != b".":
            yield entry(node(directory), name)
        yield inode(node(directory))

    mask = event.mask
    if mask & (CREATE | DELETE | RENAME):
        yield from changed(event.directory, event.name)
    if mask & RENAME:
        yield from changed(event.new_directory, event.new_name)
    if not event.ino:
        return
    if mask & (MODIFY | CLOSE_WRITE):
        yield inode(node(event.ino))
    elif mask & (ATTRIB | CREATE | DELETE | RENAME):
        yield attributes(node(event.ino))


def send(fuse_fd: int, message: bytes) -> None:
    """Tell the kernel. What it does not know, or no such notification (EINVAL), is no error.

    OSError: ENODEV, the mount is gone.
    """
    try:
        os.write(fuse_fd, message)
    except OSError as error:
        if error.errno not in _NOT_KNOWN:
            raise


def is_known(fuse_fd: int, node: int) -> bool:
    """Whether the kernel has the inode; if so, it asks for its attributes again.

    OSError: ENODEV, the mount is gone.
    """
    try:
        os.write(fuse_fd, attributes(node))
    except FileNotFoundError:
        return False
    return True
