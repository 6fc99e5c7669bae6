"""Projects and sessions: made, described, listed.

Each function takes the store, arguments that anybody may have sent (``ProjectOrder``,
``SessionOrder`` or ``ListOrder`` as builtins) and who asks, and returns what JSON can say. What is
made is there as a whole, under its name, or not at all. Refused with: InvalidRequest (EINVAL),
NotPermitted (EPERM), NotAMember (EACCES), Sealed (EROFS), Busy (EBUSY), DamagedRecord (EIO);
OSError: ENOSPC, EDQUOT, EROFS.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import grp
import os
import pwd
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import date
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec

from modamafs.catalog import Line, Measured, Person, Project, Session, Text, Visibility
from modamafs.config import load_config
from modamafs.errors import DamagedRecord, InvalidRequest, NotAMember, Sealed
from modamafs.landing.links import SCHEMES
from modamafs.model import TEMPORARY, Caller, is_own_name
from modamafs.policy import access, decide, sharing
from modamafs.policy.names import check_name, check_siblings
from modamafs.policy.sharing import Sharing
from modamafs.sealing.place import now, stewards_gid, user_name
from modamafs.store import backing, catalogue
from modamafs.store.backing import Store
from modamafs.store.catalogue import Loaded, ProjectEntry, SessionEntry
from modamafs.store.seals import covering
from modamafs.store.walk import walk

RAW = b"raw"
NEW = TEMPORARY + b"new"
AREA_MODE = 0o755
RENAME_NOREPLACE = 1
ACCESS_ACL = "system.posix_acl_access"
DEFAULT_ACL = "system.posix_acl_default"

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PATH = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_SHAPES = {1: "AREA", 2: "AREA/PROJECT", 3: "AREA/PROJECT/SESSION"}
PROJECT, SESSION = 2, 3
"""How deep they lie."""


class _Order(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What both kinds of records can be told; None leaves a field as it is."""

    path: str
    """Relative to the store (surrogateescape)."""
    title: Line | None = None
    description: Text | None = None
    owner: Line | None = None
    """A login name."""
    keywords: tuple[Line, ...] = ()
    """To be added, as are links and metadata."""
    links: dict[Line, Line] = {}
    metadata: dict[Line, Measured] = {}
    remove: tuple[Line, ...] = ()
    """``FIELD`` or ``FIELD=NAME``: ``license``, ``keyword=old``, ``meta=beam_energy`` …"""


class ProjectOrder(_Order, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a project is to be, or is to become."""

    members: tuple[Line, ...] = ()
    """Login names, to be added."""
    group: Line | None = None
    visibility: Visibility | None = None
    license: Line | None = None


class SessionOrder(_Order, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a session is to be, or is to become."""

    instrument: Line | None = None
    date: Line | None = None
    sample: Line | None = None
    sampledb_id: int | None = None
    elabftw_id: int | None = None


class ListOrder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whose projects or sessions: of the store (""), an area, a project."""

    path: str = ""


_REMOVABLE = {
    Project: {"description", "group", "license"},
    Session: {"description", "instrument", "sample", "sampledb_id", "elabftw_id"},
}
"""The fields that may have no value, and are no lists."""
_LISTS = {"keyword": "keywords", "link": "links", "meta": "metadata", "member": "members"}

Order = TypeVar("Order", bound=msgspec.Struct)
Record = TypeVar("Record", Project, Session)


# ---- what is done --------------------------------------------------------------------------------


def create_project(store: Store, arguments: Mapping[str, Any], caller: Caller) -> dict[str, Any]:
    """Make a directory and its record. The area is made, too, by stewards and root."""
    order = _order(arguments, ProjectOrder)
    area, name = _parts(order.path, PROJECT)
    stewards = stewards_gid(store)
    _check_words(order)
    owner = _new_owner(order.owner, caller)
    decide.may_give(caller, owner.uid, (), stewards)
    group_gid = _group(order.group, caller, stewards)
    record = Project(
        id=str(uuid.uuid4()),
        title=_title(order),
        description=order.description or "",
        owner=owner.person,
        members=tuple(_member(login) for login in dict.fromkeys(order.members)),
        group=order.group or None,
        visibility=order.visibility or "members",
        license=order.license or None,
        keywords=tuple(dict.fromkeys(order.keywords)),
        links=order.links,
        metadata=order.metadata,
        created_at=now(),
    )
    check_name(os.fsdecode(name))
    shared = _sharing(record, group_gid if group_gid is not None else owner.gid)
    path = area + b"/" + name
    with (
        catalogue.locked(store.root_fd, "the store"),
        _area(store, area, caller, stewards) as area_fd,
    ):
        can_write = _may(area_fd, caller, access.WRITE | access.SEARCH)
        decide.may_create_project(caller, stewards, can_write=can_write)
        _check_new(area_fd, name)
        with _new_directory(area_fd, name) as fd:
            catalogue.write(fd, record)
            _give(fd, owner.uid, shared.gid)
            _set_acls(fd, sharing.top_acl(shared), sharing.inside_acl(shared))
            os.fchmod(fd, shared.mode)
            report = _project_report(path, os.fstat(fd), catalogue.load(fd, Project))
    return report


def create_session(store: Store, arguments: Mapping[str, Any], caller: Caller) -> dict[str, Any]:
    """Make a directory in a project, its record, and an empty ``raw`` in it."""
    order = _order(arguments, SessionOrder)
    area, project_name, name = _parts(order.path, SESSION)
    stewards = stewards_gid(store)
    _check_words(order)
    owner = _new_owner(order.owner, caller)
    record = Session(
        id=str(uuid.uuid4()),
        title=_title(order),
        description=order.description or "",
        owner=owner.person,
        instrument=order.instrument or None,
        date=order.date or date.today().isoformat(),
        sample=order.sample or None,
        sampledb_id=order.sampledb_id,
        elabftw_id=order.elabftw_id,
        keywords=tuple(dict.fromkeys(order.keywords)),
        links=order.links,
        metadata=order.metadata,
        created_at=now(),
    )
    check_name(os.fsdecode(name))
    project_path = area + b"/" + project_name
    with _opened(store, project_path, caller, stewards) as project_fd:
        shown = os.fsdecode(project_path)
        with catalogue.locked(project_fd, shown):
            project = _understood(shown, catalogue.load(project_fd, Project)).record
            if project is None:
                raise InvalidRequest(
                    f"{shown} has no record of a project: make one with "
                    "'modamafs project set --title TEXT'"
                )
            found = os.fstat(project_fd)
            people = _people(project) | {found.st_uid}
            group_gid = found.st_gid if project.group else None
            decide.may_create_session(caller, people, group_gid, stewards)
            owners = {found.st_uid, *_uids((project.owner,))}
            decide.may_give(caller, owner.uid, owners, stewards)
            _check_open(store, project_path)
            _check_new(project_fd, name)
            shared = _sharing(project, found.st_gid)
            with _new_directory(project_fd, name) as fd:
                catalogue.write(fd, record)
                os.mkdir(RAW, 0o700, dir_fd=fd)
                raw_fd = os.open(RAW, _DIRECTORY, dir_fd=fd)
                try:
                    for each in (raw_fd, fd):
                        _give(each, owner.uid, shared.gid)
                        _set_acls(each, sharing.inside_acl(shared), sharing.inside_acl(shared))
                        os.fchmod(each, sharing.INSIDE_MODE)
                        os.fsync(each)
                finally:
                    os.close(raw_fd)
                report = _session_report(catalogue.session(fd, project_path + b"/" + name))
    return report


def set_project(store: Store, arguments: Mapping[str, Any], caller: Caller) -> dict[str, Any]:
    """Change a project's record, or give one to a directory; ``remove`` comes before what is added.

    Who shares it is changed on everything in it that is not sealed.
    """
    order = _order(arguments, ProjectOrder)
    with _described(store, order, Project, caller) as (path, fd, found, old, stewards):
        record = old.record or Project(
            id=str(uuid.uuid4()), title=_title(order), owner=_person(found.st_uid), created_at=now()
        )
        record = _with_words(_without(record, order.remove), order)
        record, new_uid = _with_owner(record, order, caller, stewards, found.st_uid)
        known = {member.user for member in record.members}
        added = tuple(
            _member(login) for login in dict.fromkeys(order.members) if login not in known
        )
        record = _but(
            record,
            members=record.members + added,
            group=order.group or record.group,
            visibility=order.visibility or record.visibility,
            license=order.license or record.license,
        )
        before = _sharing(old.record, found.st_gid) if old.record else _as_is(found)
        gid = found.st_gid
        if record.group != (old.record.group if old.record else None):
            chosen = _group(record.group, caller, stewards)
            gid = _primary_gid(new_uid, found.st_gid) if chosen is None else chosen
        after = _sharing(record, gid)
        removed = {each.partition("=")[0] for each in order.remove}
        asked = any((order.owner, order.members, order.group, order.visibility))
        asked = asked or not removed.isdisjoint({"member", "group"})
        with contextlib.ExitStack() as undone, catalogue.replacing(fd, record, old):
            if asked:
                undone.enter_context(_shared(fd, found, new_uid, before, after))
        return _project_report(path, os.fstat(fd), catalogue.load(fd, Project))


def set_session(store: Store, arguments: Mapping[str, Any], caller: Caller) -> dict[str, Any]:
    """Change a session's record, or give one to a directory. What lies in it is not touched."""
    order = _order(arguments, SessionOrder)
    with _described(store, order, Session, caller) as (path, fd, found, old, stewards):
        record = old.record or Session(
            id=str(uuid.uuid4()),
            title=_title(order),
            owner=_person(found.st_uid),
            date=order.date or date.today().isoformat(),
            created_at=now(),
        )
        record = _with_words(_without(record, order.remove), order)
        record, new_uid = _with_owner(record, order, caller, stewards, found.st_uid)
        fields = ("instrument", "date", "sample", "sampledb_id", "elabftw_id")
        told = {
            field: getattr(order, field) for field in fields if getattr(order, field) is not None
        }
        record = _but(record, **told)
        with contextlib.ExitStack() as undone, catalogue.replacing(fd, record, old):
            if new_uid != found.st_uid:
                undone.enter_context(_given(fd, found, new_uid))
        return _session_report(catalogue.session(fd, path))


def list_projects(store: Store, arguments: Mapping[str, Any], caller: Caller) -> list[Any]:
    """The projects of the store, or of an area, that the caller can enter."""
    parts = _list_parts(arguments, PROJECT)
    path = b"/".join(parts)
    with _opened(store, path, caller):
        pass
    return [
        _project_report(entry.path, entry.attributes, Loaded(entry.record, entry.problem, None))
        for entry in _projects(store, parts, caller)
    ]


def list_sessions(store: Store, arguments: Mapping[str, Any], caller: Caller) -> list[Any]:
    """The sessions of a project, an area or the store, in projects that the caller can enter."""
    parts = _list_parts(arguments, PROJECT)
    with _opened(store, b"/".join(parts), caller):
        pass
    return [
        _session_report(entry)
        for project in _projects(store, parts, caller)
        for entry in catalogue.sessions(store, project.path)
        if _may_enter(store, entry.path, entry.attributes, caller)
    ]


def show_project(store: Store, arguments: Mapping[str, Any], caller: Caller) -> dict[str, Any]:
    """One project: its directory and its record."""
    path = b"/".join(_parts(_order(arguments, ListOrder).path, PROJECT))
    with _opened(store, path, caller) as fd:
        return _project_report(path, os.fstat(fd), catalogue.load(fd, Project))


def show_session(store: Store, arguments: Mapping[str, Any], caller: Caller) -> dict[str, Any]:
    """One session: its directory, its record, its seals."""
    path = b"/".join(_parts(_order(arguments, ListOrder).path, SESSION))
    with _opened(store, path, caller) as fd:
        return _session_report(catalogue.session(fd, path))


VERBS: dict[str, Callable[[Store, Mapping[str, Any], Caller], Any]] = {
    "project-create": create_project,
    "project-set": set_project,
    "project-list": list_projects,
    "project-show": show_project,
    "session-create": create_session,
    "session-set": set_session,
    "session-list": list_sessions,
    "session-show": show_session,
}
CHANGING = {"project-create", "project-set", "session-create", "session-set"}


# ---- what was asked for --------------------------------------------------------------------------


def _order(arguments: Mapping[str, Any], kind: type[Order]) -> Order:
    try:
        return msgspec.convert(dict(arguments), kind)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"that can't be asked for: {error}") from error


def _parts(path: str, depth: int) -> list[bytes]:
    parts = os.fsencode(path).strip(b"/").split(b"/")
    if len(parts) != depth or b"" in parts:
        raise InvalidRequest(f"{path or '/'}: name {_SHAPES[depth]}, as in the store")
    _check_parts(parts)
    return parts


def _list_parts(arguments: Mapping[str, Any], most: int) -> list[bytes]:
    path = _order(arguments, ListOrder).path
    parts = [part for part in os.fsencode(path).split(b"/") if part]
    if len(parts) > most:
        raise InvalidRequest(f"{path}: name a store, an area or a project to list what is in it")
    _check_parts(parts)
    return parts


def _check_parts(parts: list[bytes]) -> None:
    for part in parts:
        if part in (b".", b"..") or is_own_name(part) or b"\0" in part:
            shown = ascii(os.fsdecode(part))
            raise InvalidRequest(f"{shown} is no name of an area, a project or a session")


def _title(order: _Order) -> str:
    if order.title is None or not order.title.strip():
        raise InvalidRequest("a title is missing: say what it is, with --title")
    return order.title.strip()


def _check_words(order: ProjectOrder | SessionOrder) -> None:
    if order.title is not None:
        _title(order)
    for title, url in order.links.items():
        if not title.strip() or url.partition(":")[0].lower() not in SCHEMES or ":" not in url:
            known = ", ".join(SCHEMES)
            raise InvalidRequest(f"link {title}={url}: write TITLE=URL, of {known}")
    for key in order.metadata:
        if not key.strip():
            raise InvalidRequest("a value without a name: write KEY=VALUE")
    if any(not keyword.strip() for keyword in order.keywords):
        raise InvalidRequest("a keyword is empty: leave it out")
    day = order.date if isinstance(order, SessionOrder) else None
    if day is not None:
        try:
            is_day = date.fromisoformat(day).isoformat() == day
        except ValueError:
            is_day = False
        if not is_day:
            raise InvalidRequest(f"date {day}: write a day that there is, as YYYY-MM-DD")


class _Described(NamedTuple, Generic[Record]):
    """A directory whose record is being changed."""

    path: bytes
    fd: int
    found: os.stat_result
    old: Loaded[Record]
    stewards: int | None


@contextmanager
def _described(
    store: Store, order: ProjectOrder | SessionOrder, kind: type[Record], caller: Caller
) -> Iterator[_Described[Record]]:
    """A directory that the caller may describe; nobody else changes its record meanwhile."""
    path = b"/".join(_parts(order.path, PROJECT if kind is Project else SESSION))
    stewards = stewards_gid(store)
    _check_words(order)
    shown = os.fsdecode(path)
    with _opened(store, path, caller, stewards) as fd, catalogue.locked(fd, shown):
        old: Loaded[Record] = _understood(shown, catalogue.load(fd, kind))
        found = os.fstat(fd)
        owners = {found.st_uid, *_uids((old.record.owner,) if old.record else ())}
        decide.may_describe(caller, owners, stewards)
        _check_open(store, path)
        yield _Described(path, fd, found, old, stewards)


def _but(record: Record, **fields: Any) -> Record:
    return msgspec.structs.replace(record, **fields)


def _with_words(record: Record, order: _Order) -> Record:
    """With what both kinds of records have."""
    return _but(
        record,
        title=_title(order) if order.title is not None else record.title,
        description=record.description if order.description is None else order.description,
        keywords=tuple(dict.fromkeys(record.keywords + order.keywords)),
        links=record.links | order.links,
        metadata=record.metadata | order.metadata,
    )


def _with_owner(
    record: Record, order: _Order, caller: Caller, stewards: int | None, uid: int
) -> tuple[Record, int]:
    """With the owner that was asked for, and whose its directory then is; ``uid``: whose it is."""
    if not order.owner:
        return record, uid
    new = _new_owner(order.owner, caller)
    decide.may_give(caller, new.uid, (), stewards)
    return _but(record, owner=_same_or(record.owner, new.person)), new.uid


def _without(record: Record, remove: tuple[str, ...]) -> Record:
    """Without what is to be removed. InvalidRequest: it has no such thing."""
    for each in remove:
        what, _, name = each.partition("=")
        field = _LISTS.get(what, what)
        held = getattr(record, field, None)
        if what in _LISTS and isinstance(held, dict) and name in held:
            record = _but(record, **{field: {k: v for k, v in held.items() if k != name}})
        elif what == "keyword" and name in record.keywords:
            record = _but(record, keywords=tuple(k for k in record.keywords if k != name))
        elif what == "member" and isinstance(held, tuple):
            members = tuple(one for one in held if name not in (one.user, one.name))
            if members == held:
                raise InvalidRequest(f"{name} is no member: nothing to be removed")
            record = _but(record, members=members)
        elif what in _REMOVABLE[type(record)] and not name:
            record = _but(record, **{what: "" if what == "description" else None})
        else:
            raise InvalidRequest(
                f"remove {each}: there is no such thing; write keyword=K, link=TITLE, meta=KEY"
                + (", member=USER" if type(record) is Project else "")
                + "".join(f", {field}" for field in sorted(_REMOVABLE[type(record)]))
            )
    return record


# ---- people --------------------------------------------------------------------------------------


class _Owner(NamedTuple):
    uid: int
    gid: int
    """The primary group."""
    person: Person


def _new_owner(login: str | None, caller: Caller) -> _Owner:
    if not login:
        return _Owner(caller.uid, _primary_gid(caller.uid, caller.gid), _person(caller.uid))
    user = _user(login)
    return _Owner(user.pw_uid, user.pw_gid, _person(user.pw_uid))


def _user(login: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(login)
    except (KeyError, ValueError):
        raise InvalidRequest(
            f"there is no user {login!r} here: give a login name that 'getent passwd' knows"
        ) from None


def _member(login: str) -> Person:
    return _person(_user(login).pw_uid)


def _person(uid: int) -> Person:
    login = user_name(uid)
    full_name = login
    with contextlib.suppress(KeyError):
        full_name = pwd.getpwuid(uid).pw_gecos.partition(",")[0].strip() or login
    return Person(name=full_name if full_name.isprintable() else login, user=login)


def _same_or(old: Person, new: Person) -> Person:
    """What is known besides of somebody who stays the same."""
    return old if old.user == new.user else new


def _primary_gid(uid: int, otherwise: int) -> int:
    try:
        return pwd.getpwuid(uid).pw_gid
    except KeyError:
        return otherwise


def _group(name: str | None, caller: Caller, stewards: int | None) -> int | None:
    """The id of a group that the caller may give directories to; None for no group."""
    if not name:
        return None
    try:
        gid = grp.getgrnam(name).gr_gid
    except (KeyError, ValueError):
        raise InvalidRequest(
            f"there is no group {name!r} here: give one that 'getent group' knows"
        ) from None
    decide.may_use_group(caller, gid, stewards)
    return gid


def _uids(people: tuple[Person, ...]) -> frozenset[int]:
    """The user ids of those who have one here."""
    found = set()
    for person in people:
        if person.user is None:
            continue
        try:
            found.add(pwd.getpwnam(person.user).pw_uid)
        except (KeyError, ValueError):
            if person.user.isascii() and person.user.isdigit():  # who has no name here
                found.add(int(person.user))
    return frozenset(found)


def _people(project: Project) -> frozenset[int]:
    return _uids((project.owner, *project.members))


def _sharing(project: Project, gid: int) -> Sharing:
    return Sharing(
        _people(project), gid, project.group is not None, project.visibility == "private"
    )


def _as_is(found: os.stat_result) -> Sharing:
    """How a directory without a record is shared."""
    return Sharing(frozenset(), found.st_gid, bool(found.st_mode & stat.S_IWGRP))


# ---- directories ---------------------------------------------------------------------------------


@contextmanager
def _opened(
    store: Store, path: bytes, caller: Caller, stewards: int | None = None
) -> Iterator[int]:
    """A directory of the store (b"": itself), no symbolic link on the way, as the caller may.

    ``stewards``: the group that may enter everything. InvalidRequest: there is none. NotAMember:
    it is closed to the caller.
    """
    fd = os.open(b".", _DIRECTORY, dir_fd=store.root_fd)
    try:
        parts = path.split(b"/") if path else []
        for depth, part in enumerate(parts):
            _check_may_enter(fd, caller, os.fsdecode(b"/".join(parts[:depth])), stewards)
            shown = os.fsdecode(b"/".join(parts[: depth + 1]))
            try:
                below = os.open(part, _DIRECTORY, dir_fd=fd)
            except FileNotFoundError:
                raise InvalidRequest(
                    f"there is no {shown} in the store: make it with 'modamafs "
                    f"{'project' if depth < PROJECT else 'session'} create'"
                ) from None
            except NotADirectoryError:
                raise InvalidRequest(
                    f"{shown} is no directory, or a symbolic link: name the directory itself"
                ) from None
            os.close(fd)
            fd = below
        _check_may_enter(fd, caller, os.fsdecode(path), stewards)
        yield fd
    finally:
        os.close(fd)


def _check_may_enter(fd: int, caller: Caller, shown: str, stewards: int | None) -> None:
    if not decide.is_steward(caller, stewards) and not _may(fd, caller, access.SEARCH):
        raise NotAMember(f"{shown or 'the store'} is closed to you: ask its owner")


def _may(fd: int, caller: Caller, wanted: int) -> bool:
    found = os.fstat(fd)
    mode = stat.S_IMODE(found.st_mode)
    return access.may(wanted, caller, mode, found.st_uid, found.st_gid, _acl(fd, ACCESS_ACL))


def _may_enter(store: Store, path: bytes, found: os.stat_result, caller: Caller) -> bool:
    """The same for listing, by path: what is listed is only named."""
    if caller.uid == 0:
        return True
    place = b"/proc/self/fd/%d/%s" % (store.root_fd, path)
    acl = None
    with contextlib.suppress(OSError):
        acl = os.getxattr(place, ACCESS_ACL, follow_symlinks=False)
    mode = stat.S_IMODE(found.st_mode)
    wanted = access.READ | access.SEARCH
    return access.may(wanted, caller, mode, found.st_uid, found.st_gid, acl)


def _projects(store: Store, parts: list[bytes], caller: Caller) -> Iterator[ProjectEntry]:
    """Those below a path that the caller can list."""

    @functools.cache
    def lists(area: bytes) -> bool:
        try:
            found = os.stat(area, dir_fd=store.root_fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return _may_enter(store, area, found, caller)

    for entry in catalogue.projects(store):
        here = entry.path.split(b"/")
        if here[: len(parts)] != parts or not lists(here[0]):
            continue
        if _may_enter(store, entry.path, entry.attributes, caller):
            yield entry


def _check_open(store: Store, path: bytes) -> None:
    sealed = covering(store, path)
    if sealed is not None:
        raise Sealed(
            f"{os.fsdecode(sealed)} is sealed, with what is in it: it stays as it was measured; "
            "a steward can unseal it with 'modamafs unseal PATH --reason TEXT'"
        )


def _check_new(dir_fd: int, name: bytes) -> None:
    fd = os.open(b".", _DIRECTORY, dir_fd=dir_fd)
    try:
        check_siblings(os.fsdecode(name), os.listdir(fd))
    finally:
        os.close(fd)


@contextmanager
def _area(store: Store, name: bytes, caller: Caller, stewards: int | None) -> Iterator[int]:
    """An area's directory; one that is made here goes again when the block fails."""
    made = False
    try:
        _check_may_enter(store.root_fd, caller, "the store", stewards)
        fd = os.open(name, _DIRECTORY, dir_fd=store.root_fd)
    except FileNotFoundError:
        _make_area(store, name, caller, stewards)
        made = True
        fd = os.open(name, _DIRECTORY, dir_fd=store.root_fd)
    except NotADirectoryError:
        raise InvalidRequest(
            f"{os.fsdecode(name)} is no directory, or a symbolic link: it can't be an area"
        ) from None
    try:
        _check_may_enter(fd, caller, os.fsdecode(name), stewards)
        yield fd
    except BaseException:
        if made:
            with contextlib.suppress(OSError):  # somebody uses it already
                os.rmdir(name, dir_fd=store.root_fd)
        raise
    finally:
        os.close(fd)


def _make_area(store: Store, name: bytes, caller: Caller, stewards: int | None) -> None:
    shown = os.fsdecode(name)
    if not decide.is_steward(caller, stewards):
        raise InvalidRequest(
            f"there is no area {shown!r} in the store: a steward or root makes it, "
            "with its first project"
        )
    check_name(shown)
    config = load_config(store.path)
    if shown in (config.landing.name, config.views.name):
        raise InvalidRequest(
            f"{shown!r} is what every mount shows at its root: use another name for the area"
        )
    _check_new(store.root_fd, name)
    with _new_directory(store.root_fd, name) as fd:
        os.fchmod(fd, AREA_MODE)


@contextmanager
def _new_directory(dir_fd: int, name: bytes) -> Iterator[int]:
    """A directory that gets its name, durably, at the end of the block; before that nobody sees it.

    Whatever ends the block earlier leaves nothing; what a killed process has left goes when the
    next one is made. ``dir_fd`` has to be locked.
    """
    shutil.rmtree(NEW, ignore_errors=True, dir_fd=dir_fd)
    os.mkdir(NEW, 0o700, dir_fd=dir_fd)
    try:
        fd = os.open(NEW, _DIRECTORY, dir_fd=dir_fd)
        try:
            yield fd
            os.fsync(fd)
        finally:
            os.close(fd)
        try:
            backing.rename(dir_fd, NEW, dir_fd, name, RENAME_NOREPLACE)
        except FileExistsError:
            raise InvalidRequest(
                f"'{os.fsdecode(name)}' is there already: use another name"
            ) from None
    except BaseException:
        shutil.rmtree(NEW, ignore_errors=True, dir_fd=dir_fd)
        raise
    os.fsync(dir_fd)


# ---- who shares a project ------------------------------------------------------------------------


def _give(fd: int, uid: int, gid: int) -> None:
    os.chown(f"/proc/self/fd/{fd}", uid, gid)


def _acl(fd: int, name: str) -> bytes | None:
    try:
        return os.getxattr(f"/proc/self/fd/{fd}", name)
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
            return None
        raise


def _set_acls(fd: int, own: bytes, default: bytes) -> None:
    os.setxattr(f"/proc/self/fd/{fd}", ACCESS_ACL, own)
    os.setxattr(f"/proc/self/fd/{fd}", DEFAULT_ACL, default)


@contextmanager
def _given(fd: int, found: os.stat_result, uid: int) -> Iterator[None]:
    """A directory has another owner, unless the block fails."""
    _give(fd, uid, found.st_gid)
    try:
        yield
    except BaseException:
        _give(fd, found.st_uid, found.st_gid)
        raise


@contextmanager
def _shared(fd: int, found: os.stat_result, uid: int, old: Sharing, new: Sharing) -> Iterator[None]:
    """Everything in a project is shared anew; if the block fails, as it was, as far as possible.

    The directory itself is opened last, and closed first.
    """
    own, default = _acl(fd, ACCESS_ACL), _acl(fd, DEFAULT_ACL)
    differs = old._replace(private=new.private) != new
    try:
        if new.private:
            _share_top(fd, uid, old, new)
        if differs:
            _share_inside(fd, old, new)
        _share_top(fd, uid, old, new)
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            if differs:
                _share_inside(fd, new, old)
        with contextlib.suppress(OSError):
            _give(fd, found.st_uid, found.st_gid)
            for name, acl in ((ACCESS_ACL, own), (DEFAULT_ACL, default)):
                if acl is not None:
                    os.setxattr(fd, name, acl)
                elif _acl(fd, name) is not None:
                    os.removexattr(fd, name)
            os.fchmod(fd, stat.S_IMODE(found.st_mode))
        raise


def _share_top(fd: int, uid: int, old: Sharing, new: Sharing) -> None:
    """The project's directory. Other people that an administrator has named in its ACL stay."""
    top = sharing.top_acl(new)
    before = _acl(fd, ACCESS_ACL)
    _give(fd, uid, new.gid)
    if before is not None:
        top = sharing.kept(top, before, old)
    default = _acl(fd, DEFAULT_ACL)
    inside = sharing.inside_acl(new)
    _set_acls(fd, top, inside if default is None else sharing.kept(inside, default, old))
    os.fchmod(fd, new.mode)


def _share_inside(fd: int, old: Sharing, new: Sharing) -> None:
    """What lies in a project, but for what is sealed and modamafs's own."""
    dev = os.fstat(fd).st_dev
    for here in walk(fd):
        sealed = {os.fsencode(name) for name in catalogue.sealed_names(here.fd)}
        here.directories[:] = [
            name
            for name in here.directories
            if not is_own_name(name) and name not in sealed and _lies_on(here.fd, name, dev)
        ]
        for name in (*here.directories, *here.others):
            try:
                entry = os.open(name, _PATH, dir_fd=here.fd)
            except FileNotFoundError:
                continue
            try:
                _share_entry(entry, old, new)
            finally:
                os.close(entry)


def _lies_on(dir_fd: int, name: bytes, dev: int) -> bool:
    try:
        return os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_dev == dev
    except FileNotFoundError:
        return False


def _share_entry(fd: int, old: Sharing, new: Sharing) -> None:
    found = os.fstat(fd)
    is_directory = stat.S_ISDIR(found.st_mode)
    if not is_directory and not stat.S_ISREG(found.st_mode):
        return
    if not is_directory and found.st_nlink > 1:
        # It has another name, maybe elsewhere: who goes is taken out, nobody is let in.
        gone = old.users - new.users
        old, new = old._replace(users=gone), old._replace(users=frozenset())
    mode = stat.S_IMODE(found.st_mode)
    chosen = found.st_gid == old.gid
    place = f"/proc/self/fd/{fd}"
    try:
        if chosen and new.gid != old.gid:
            os.chown(place, -1, new.gid)  # set-group-id programs lose that; nobody gains a group
        own = _acl(fd, ACCESS_ACL)
        adjusted = sharing.adjusted(own, mode, old, new, chosen=chosen)
        if adjusted != own:
            os.setxattr(place, ACCESS_ACL, adjusted)
        if is_directory:
            default = _acl(fd, DEFAULT_ACL)
            inside = sharing.inside_acl(new)
            if default is not None:
                inside = sharing.adjusted(default, 0, old, new, chosen=chosen)
            if inside != default:
                os.setxattr(place, DEFAULT_ACL, inside)
            if not found.st_mode & stat.S_ISGID:
                os.chmod(place, stat.S_IMODE(os.fstat(fd).st_mode) | stat.S_ISGID)
    except PermissionError:  # immutable: sealed by itself, or written once
        return


# ---- what is said --------------------------------------------------------------------------------


def _understood(shown: str, found: Loaded[Record]) -> Loaded[Record]:
    """A record that may be written anew. DamagedRecord (EIO)."""
    if found.problem:
        raise DamagedRecord(
            f"{shown}/{found.problem}; nothing was changed: repair it by hand, or remove it"
        )
    return found


def _project_report(
    path: bytes, attributes: os.stat_result, found: Loaded[Project]
) -> dict[str, Any]:
    return {**_directory_report(path, attributes), **_record_report(found)}


def _session_report(entry: SessionEntry) -> dict[str, Any]:
    return {
        **_directory_report(entry.path, entry.attributes),
        "seals": dict(entry.seals),
        **_record_report(Loaded(entry.record, entry.problem, None)),
    }


def _directory_report(path: bytes, attributes: os.stat_result) -> dict[str, Any]:
    try:
        group = grp.getgrgid(attributes.st_gid).gr_name
    except KeyError:
        group = str(attributes.st_gid)
    return {
        "path": os.fsdecode(path),
        "directory": {
            "owner": user_name(attributes.st_uid),
            "group": group,
            "mode": f"{stat.S_IMODE(attributes.st_mode):04o}",
        },
    }


def _record_report(found: Loaded[Any]) -> dict[str, Any]:
    record = None
    if found.record is not None:
        record = msgspec.to_builtins(found.record)
        extra = record.pop("extra")
        record = record | {key: value for key, value in extra.items() if key not in record}
    return {"record": record, "problem": found.problem}
