"""What the kernel would say: may somebody read, write or search, by mode and ACL? See acl(5).

Only for what the kernel does not decide itself: whether something is listed for somebody.
"""

from __future__ import annotations

import struct

from modamafs.model import Caller

READ, WRITE, SEARCH = 4, 2, 1

_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
_NOBODY = 0xFFFFFFFF
_ENTRY = struct.Struct("<HHI")


def may(wanted: int, caller: Caller, mode: int, uid: int, gid: int, acl: bytes | None) -> bool:
    """Whether the caller has all of the ``wanted`` permissions.

    ``mode``, ``uid`` and ``gid`` are the inode's; ``acl`` is its ``system.posix_acl_access``, None
    where it has none. ``caller.groups`` has to be known.
    """
    if caller.uid == 0:
        return True
    groups = {caller.gid, *caller.groups}
    if acl is None:
        granted = mode >> 6 if caller.uid == uid else mode >> 3 if gid in groups else mode
        return granted & wanted == wanted
    entries: list[tuple[int, int, int]] = [
        _ENTRY.unpack_from(acl, at) for at in range(4, len(acl) - 7, _ENTRY.size)
    ]
    mask = next((permissions for tag, permissions, _ in entries if tag == _MASK), 7)
    in_group: list[int] = []
    for tag, permissions, who in entries:
        if tag == _USER_OBJ and caller.uid == uid:
            return permissions & wanted == wanted
        if tag == _USER and caller.uid == who and caller.uid != uid:
            return permissions & mask & wanted == wanted
        if (tag == _GROUP_OBJ and gid in groups) or (tag == _GROUP and who in groups):
            in_group.append(permissions & mask)
    if in_group:
        return any(permissions & wanted == wanted for permissions in in_group)
    others = next((permissions for tag, permissions, _ in entries if tag == _OTHER), 0)
    return others & wanted == wanted


def group_may(wanted: int, mode: int, acl: bytes | None) -> bool:
    """Whether the owning group has all of the ``wanted`` permissions."""
    entries = {
        tag: permissions
        for tag, permissions, who in _ENTRY.iter_unpack((acl or _from_mode(mode))[4:])
        if who == _NOBODY
    }
    granted: int = entries.get(_GROUP_OBJ, 0) & entries.get(_MASK, 7)
    return granted & wanted == wanted


def _from_mode(mode: int) -> bytes:
    return struct.pack("<I", 2) + b"".join(
        _ENTRY.pack(tag, mode >> shift & 7, _NOBODY)
        for tag, shift in ((_USER_OBJ, 6), (_GROUP_OBJ, 3), (_OTHER, 0))
    )


def masked(acl: bytes, allowed: int) -> bytes:
    """An ACL (``posix_acl_xattr_header``) in which nobody has more than the ``allowed`` bits."""
    changed = bytearray(acl)
    for at in range(4, len(acl) - 7, _ENTRY.size):
        tag, permissions, who = _ENTRY.unpack_from(acl, at)
        _ENTRY.pack_into(changed, at, tag, permissions & allowed, who)
    return bytes(changed)
