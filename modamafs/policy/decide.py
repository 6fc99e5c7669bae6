"""One decision, made at the gate: may this operation go ahead?

Ordinary permission (modes, ACLs, sticky directories) is the kernel's business; see
``default_permissions`` in mount.fuse3(8). What is decided here holds for root as well.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import date
from typing import Any

from modamafs.errors import NotPermitted, ReadOnlyMount, Sealed
from modamafs.model import Caller, Operation


def decide(operation: Operation, *, sealed: bool, read_only: bool) -> None:
    """Return if ``operation`` may go ahead.

    ``sealed``: the inode, or a directory above it, is sealed, or is being sealed or unsealed.
    ``read_only``: the mount was made so.

    Raises Sealed or ReadOnlyMount, both EROFS.
    """
    if operation is Operation.READ:
        return
    if read_only:
        raise ReadOnlyMount("this mount is read-only; use a writable mount of the same store")
    if sealed:
        raise Sealed(
            "this is sealed: it stays as it was measured; a steward can unseal it with "
            "`modamafs unseal PATH --reason TEXT`"
        )


def may_seal(caller: Caller, owners: Collection[int], stewards_gid: int | None) -> None:
    """Return if the caller may seal, and verify, a directory that ``owners`` (user ids) own.

    The owner of the directory or of its session, a steward, and root may. NotPermitted (EPERM).
    """
    if caller.uid not in owners and not is_steward(caller, stewards_gid):
        raise NotPermitted("only the session's owner, a steward or root can do that")


def may_unseal(caller: Caller, stewards_gid: int | None) -> None:
    """Return if the caller may open what is sealed, or lift a hold: a steward or root.

    NotPermitted (EPERM).
    """
    if not is_steward(caller, stewards_gid):
        raise NotPermitted(
            "only a steward or root can do that; [stewards] group in config.toml names them"
        )


def may_create_project(caller: Caller, stewards_gid: int | None, *, can_write: bool) -> None:
    """Return if the caller may make a project: a steward, root, and who can write to the area.

    NotPermitted (EPERM).
    """
    if not (can_write or is_steward(caller, stewards_gid)):
        raise NotPermitted(
            "only who can write to the area's directory, a steward or root makes projects in it"
        )


def may_create_session(
    caller: Caller,
    people: Collection[int],
    group_gid: int | None,
    stewards_gid: int | None,
) -> None:
    """Return if the caller may make a session in a project.

    ``people``: the user ids of the project's owner and members; ``group_gid``: its group, None
    for none. Stewards and root may, too. NotPermitted (EPERM).
    """
    if not (
        caller.uid in people
        or (group_gid is not None and group_gid in (caller.gid, *caller.groups))
        or is_steward(caller, stewards_gid)
    ):
        raise NotPermitted("only the project's owner and members, a steward or root can do that")


def may_describe(caller: Caller, owners: Collection[int], stewards_gid: int | None) -> None:
    """Return if the caller may change a record: its owner, a steward or root.

    NotPermitted (EPERM).
    """
    if caller.uid not in owners and not is_steward(caller, stewards_gid):
        raise NotPermitted("only its owner, a steward or root can change that")


def may_give(caller: Caller, uid: int, givers: Collection[int], stewards_gid: int | None) -> None:
    """Return if the caller may make ``uid`` the owner: of what is their own, or as a steward.

    ``givers``: who may give to others, besides stewards and root. NotPermitted (EPERM).
    """
    if uid != caller.uid and caller.uid not in givers and not is_steward(caller, stewards_gid):
        raise NotPermitted("only a steward or root makes somebody else the owner")


def may_use_group(caller: Caller, gid: int, stewards_gid: int | None) -> None:
    """Return if the caller may give a directory to a group: one of their own, or as a steward.

    NotPermitted (EPERM).
    """
    if gid not in (caller.gid, *caller.groups) and not is_steward(caller, stewards_gid):
        raise NotPermitted("you are not in that group: choose one of yours, or ask a steward")


def is_steward(caller: Caller, stewards_gid: int | None) -> bool:
    """Whether the caller is root or belongs to the stewards' group."""
    return caller.uid == 0 or stewards_gid in (caller.gid, *caller.groups)


def may_be_opened(record: dict[str, Any], today: date) -> None:
    """Return if the record's retention lets the directory be unsealed today.

    NotPermitted (EPERM): it is held, or its retention has not ended.
    """
    if record.get("hold"):
        raise NotPermitted(
            f"{record['path']} is on hold: a steward can lift that first, with "
            "'modamafs seal --no-hold --reason TEXT PATH'"
        )
    until = record.get("until")
    if until and today < date.fromisoformat(until):
        raise NotPermitted(
            f"{record['path']} is sealed until {until}, and that can only be extended"
        )


def extend(record: dict[str, Any], until: date, today: date) -> None:
    """Return if the retention may be set to ``until``: in the future, and not earlier than it is.

    NotPermitted (EPERM).
    """
    if until <= today:
        raise NotPermitted(f"--until {until}: that has passed already (today is {today}, UTC)")
    known = record.get("until")
    if known and until < date.fromisoformat(known):
        raise NotPermitted(f"sealed until {known}: that can only be extended, not shortened")
