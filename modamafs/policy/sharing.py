"""Who may write where in a project, as POSIX ACLs (acl(5)): pure.

The owner and the members are named as users, the group is the directories' own. Everything in a
project is readable for whoever can enter it, so that a private project is closed, and opened
again, by its directory alone; default ACLs make what is created writable for all of them, whatever
their umask.
"""

from __future__ import annotations

import functools
import operator
import struct
from typing import NamedTuple

VERSION = 2
USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
NOBODY = 0xFFFFFFFF
ALL, READ_AND_SEARCH = 7, 5
SET_GROUP_ID, STICKY = 0o2000, 0o1000

_HEADER = struct.Struct("<I")
_ENTRY = struct.Struct("<HHI")
Entries = dict[tuple[int, int], int]
"""(tag, id) → permissions."""


class Sharing(NamedTuple):
    """Who shares a project."""

    users: frozenset[int]
    """The user ids of the owner and the members."""
    gid: int
    """The group of the directories."""
    group_writes: bool
    """Whether that group was chosen; otherwise it is the owner's, which may be everybody's."""
    private: bool = False

    @property
    def mode(self) -> int:
        """Of the project's directory. Sticky where several write: they leave each other's be."""
        sticky = STICKY if self.group_writes or len(self.users) > 1 else 0
        return sticky | SET_GROUP_ID | (0o770 if self.private else 0o775)


INSIDE_MODE = SET_GROUP_ID | 0o775
"""Of the directories of sessions, and ``raw``."""


def top_acl(sharing: Sharing) -> bytes:
    """The ACL of a project's directory."""
    others = 0 if sharing.private else READ_AND_SEARCH
    return _packed(_entries(sharing, ALL if sharing.group_writes else others, others))


def inside_acl(sharing: Sharing) -> bytes:
    """The ACL of directories in a project, and the default ACL of all of them."""
    group = ALL if sharing.group_writes else READ_AND_SEARCH
    return _packed(_entries(sharing, group, READ_AND_SEARCH))


def _entries(sharing: Sharing, group: int, others: int) -> Entries:
    return {
        (USER_OBJ, NOBODY): ALL,
        **{(USER, uid): ALL for uid in sharing.users},
        (GROUP_OBJ, NOBODY): group,
        (MASK, NOBODY): ALL,
        (OTHER, NOBODY): others,
    }


def kept(acl: bytes, before: bytes, old: Sharing) -> bytes:
    """The ACL, and whom the one of before named besides those that shared the project."""
    others = {
        (tag, who): permissions
        for (tag, who), permissions in _unpacked(before).items()
        if tag == GROUP or (tag == USER and who not in old.users)
    }
    return _packed(others | _unpacked(acl))


def adjusted(acl: bytes | None, mode: int, old: Sharing, new: Sharing, *, chosen: bool) -> bytes:
    """The ACL of something in a project that was shared as ``old`` and is to be as ``new``.

    ``acl``: None where it has none; then ``mode`` says what its permissions are. Who is new gets
    what the owner of the file has, as far as its mask lets them. ``chosen``: its group is the
    project's. Whatever else the ACL says stays.
    """
    entries = _unpacked(acl) if acl is not None else _from_mode(mode)
    own = entries.get((USER_OBJ, NOBODY), 0)
    for uid in old.users - new.users:
        entries.pop((USER, uid), None)
    for uid in new.users:
        entries.setdefault((USER, uid), own)
    if chosen and (old.gid, old.group_writes) != (new.gid, new.group_writes):
        entries[GROUP_OBJ, NOBODY] = own if new.group_writes else own & READ_AND_SEARCH
    named = [permissions for (tag, _), permissions in entries.items() if tag in (USER, GROUP)]
    if named and (MASK, NOBODY) not in entries:
        entries[MASK, NOBODY] = functools.reduce(operator.or_, named, entries[GROUP_OBJ, NOBODY])
    return _packed(entries)


def _from_mode(mode: int) -> Entries:
    return {
        (USER_OBJ, NOBODY): mode >> 6 & 7,
        (GROUP_OBJ, NOBODY): mode >> 3 & 7,
        (OTHER, NOBODY): mode & 7,
    }


def _unpacked(acl: bytes) -> Entries:
    found = _ENTRY.iter_unpack(acl[_HEADER.size :])
    return {(tag, who): permissions for tag, permissions, who in found}


def _packed(entries: Entries) -> bytes:
    # The kernel takes them in this order only.
    return _HEADER.pack(VERSION) + b"".join(
        _ENTRY.pack(tag, permissions, who) for (tag, who), permissions in sorted(entries.items())
    )
