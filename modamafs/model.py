"""The kernel's words as types: frozen, without any I/O.

File names are ``bytes`` everywhere below the command line; they are decoded only for people.
Times are nanoseconds since the epoch (UTC), sizes are bytes.
"""

from __future__ import annotations

import enum
from typing import NamedTuple, NewType

InodeNumber = NewType("InodeNumber", int)
"""A node id: the store's own inode number, except for the root, which is 1."""

FileHandle = NewType("FileHandle", int)
"""What the kernel hands back with every request on an open file (``fh``)."""

BackingId = NewType("BackingId", int)
"""What the kernel calls a backing file that was registered for passthrough; 0 is none."""

ROOT = InodeNumber(1)

RECORDS = b".modama"
"""The directory name that holds records on the store, and is reserved on the mount."""


TEMPORARY = RECORDS + b"~"
"""What is being made has a name that begins so, for a moment, and is never shown."""


def is_own_name(name: bytes) -> bool:
    """Whether a name is one of our own: never shown, and refused to clients."""
    return name.startswith(RECORDS) and (name == RECORDS or name.startswith(TEMPORARY))


class Attributes(NamedTuple):
    """What ``statx(2)`` and ``name_to_handle_at(2)`` say of one inode.

    Built in C (``store/_volume.c``): the order of the fields is shared with it.
    """

    ino: int
    generation: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    size_bytes: int
    blocks: int
    """In units of 512 bytes."""
    block_size_bytes: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    btime_ns: int
    """Time of birth; 0 where the file system keeps none."""
    immutable: bool
    """The immutable flag (``STATX_ATTR_IMMUTABLE``)."""
    dev: int
    """The device that the inode lies on (``makedev``)."""


class Caller(NamedTuple):
    """Who asks: the identity that the kernel sends along with a request."""

    uid: int
    gid: int
    pid: int = 0
    umask: int = 0o022
    request: int = 0
    """The kernel's number for the request; 0 where it did not come through the kernel."""
    resent: bool = False
    """An earlier worker has read the same request and may have carried it out."""
    groups: tuple[int, ...] = ()
    """Supplementary groups, where they are known: of who asks through the control socket."""


class Operation(enum.Enum):
    """What a caller wants to do, as far as policy tells it apart."""

    READ = enum.auto()
    WRITE = enum.auto()
    CREATE = enum.auto()
    REMOVE = enum.auto()
    RENAME = enum.auto()
    LINK = enum.auto()
    SET_ATTRIBUTES = enum.auto()
    SET_XATTR = enum.auto()


class SealState(enum.Enum):
    """The states of a directory that can be sealed (``docs/seals.md``)."""

    OPEN = "open"
    SEALING = "sealing"
    SEALED = "sealed"
    UNSEALING = "unsealing"
