"""What the kernel says of a change: fanotify's records, taken apart. Pure.

Source: fanotify(7). A record is ``struct fanotify_event_metadata`` and then information records,
each a header ``{u8 type, u8 pad, u16 length}``, the file system's id (8 bytes), a file handle
``{u32 bytes, i32 type, …}`` and, of an entry, its name. The handles are those of ext4, XFS and
btrfs, which begin with the inode number (``store/_volume.c``).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

MODIFY = 0x2
ATTRIB = 0x4
CLOSE_WRITE = 0x8
CREATE = 0x100
DELETE = 0x200
OVERFLOW = 0x4000
RENAME = 0x10000000
ONDIR = 0x40000000

CHANGES = MODIFY | ATTRIB | CLOSE_WRITE | CREATE | DELETE | RENAME | ONDIR
"""What is asked for: everything that changes an entry or an inode."""

_EVENT = struct.Struct("=IBBHQii")
_INFO = struct.Struct("=BBH")
_HANDLE = struct.Struct("=8xIi")
_INO_32 = struct.Struct("=I")
_INO_64 = struct.Struct("=Q")
_LENGTH = struct.Struct("=I")

VERSION = 3
_TARGET, _ENTRY, _OLD_ENTRY, _NEW_ENTRY = 1, 2, 10, 12
_INO32_HANDLES = (1, 2)
"""FILEID_INO32_GEN and FILEID_INO32_GEN_PARENT; all others begin with 64 bits."""


class Event(NamedTuple):
    """One change, or several of the same thing that came soon after each other."""

    mask: int
    thread: int
    """Who did it: the number of the thread; 0 for one that can't be named here."""
    directory: int
    """Inode number of the directory that the entry lies (or lay) in; 0: it is not said."""
    name: bytes
    """Of the entry; b"." for the directory itself."""
    ino: int
    """Inode number of what it is about; 0: it is not said."""
    new_directory: int = 0
    new_name: bytes = b""
    """Of what was renamed."""


def length_at(memory: bytes | memoryview, offset: int) -> int:
    """The length of the record at an offset; 0: there is none."""
    if offset + _EVENT.size > len(memory):
        return 0
    length: int = _LENGTH.unpack_from(memory, offset)[0]
    return length


def parse(memory: bytes | memoryview) -> Iterator[Event]:
    """The events in a buffer, up to its end or to a record of length 0.

    ValueError: it is of another version than this program knows.
    """
    offset = 0
    while length := length_at(memory, offset):
        _, version, _, metadata_length, mask, _, thread = _EVENT.unpack_from(memory, offset)
        if version != VERSION:
            raise ValueError(f"fanotify events of version {version}: {VERSION} is known")
        entry, old, new, ino = (0, b""), (0, b""), (0, b""), 0
        at, end = offset + metadata_length, offset + length
        while at < end:
            kind, _, size = _INFO.unpack_from(memory, at)
            if kind == _TARGET:
                ino = _handle(memory, at)[0]
            elif kind == _ENTRY:
                entry = _entry(memory, at, size)
            elif kind == _OLD_ENTRY:
                old = _entry(memory, at, size)
            elif kind == _NEW_ENTRY:
                new = _entry(memory, at, size)
            at += size
        if mask & RENAME:
            entry = old
        if entry[1] == b"." and not ino:
            ino = entry[0]
        yield Event(mask, thread, entry[0], entry[1], ino, new[0], new[1])
        offset = end


def _handle(memory: bytes | memoryview, at: int) -> tuple[int, int]:
    """The inode number of a handle, and where what follows it begins."""
    size, kind = _HANDLE.unpack_from(memory, at + _INFO.size)
    begin = at + _INFO.size + _HANDLE.size
    form = _INO_32 if kind in _INO32_HANDLES else _INO_64
    ino: int = form.unpack_from(memory, begin)[0] if size >= form.size else 0
    return ino, begin + size


def _entry(memory: bytes | memoryview, at: int, size: int) -> tuple[int, bytes]:
    ino, begin = _handle(memory, at)
    return ino, bytes(memory[begin : at + size]).split(b"\0", 1)[0]
