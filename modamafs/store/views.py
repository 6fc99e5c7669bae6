"""Views on the store: records that say which projects a mount shows, and how.

``<store>/.modama/views/<name>.json`` is a ``catalog.View``. Only root makes them (a record that
somebody else could have written is not used). What a view says is read once, when it is mounted.
"""

from __future__ import annotations

import os
import pwd
import re
from pathlib import Path
from typing import NamedTuple

import msgspec

from modamafs.catalog import View
from modamafs.config import MS_NODEV, MS_NOSUID, MS_RDONLY, MountSpec, ViewSpec
from modamafs.errors import DamagedRecord, InvalidRequest, ModamaError, MountRefused
from modamafs.model import RECORDS, is_own_name
from modamafs.store.backing import PATH_FLAGS, Store
from modamafs.store.records import open_records, read_record, remove_record, write_record

VIEWS = b"views"
NAME = re.compile(r"[a-z0-9_][a-z0-9_.-]{0,63}")

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Listed(NamedTuple):
    """A view, or why its record can't be used."""

    name: str
    view: View | None
    problem: str | None


def check_name(name: str) -> None:
    """InvalidRequest (EINVAL) for a name that no view can have."""
    if not NAME.fullmatch(name):
        raise InvalidRequest(
            f"{name!r} is no name of a view: use a-z, 0-9, '-', '_' and '.', 64 at most, "
            "and begin with a letter or a digit"
        )


def names(store: Store) -> list[str]:
    """The names of the views that have a record, sorted."""
    fd = _open_views(store)
    if fd is None:
        return []
    try:
        found = [name.removesuffix(".json") for name in os.listdir(fd) if name.endswith(".json")]
    finally:
        os.close(fd)
    return sorted(name for name in found if NAME.fullmatch(name))


def all_views(store: Store) -> list[Listed]:
    """Every view, also those with a record that can't be used."""
    found = []
    for name in names(store):
        try:
            found.append(Listed(name, read(store, name), None))
        except ModamaError as error:
            found.append(Listed(name, None, error.message))
    return found


def read(store: Store, name: str) -> View | None:
    """What a view's record says; None: there is no such view.

    InvalidRequest (EINVAL): no name. DamagedRecord (EIO): it can't be understood, or somebody but
    root can write to it.
    """
    check_name(name)
    shown = f"{store.path}/.modama/views/{name}.json"
    fd = _open_views(store)
    if fd is None:
        return None
    try:
        for of in (".", f"{name}.json"):
            try:
                found = os.stat(of, dir_fd=fd, follow_symlinks=False)
            except FileNotFoundError:
                return None
            if found.st_uid not in (0, os.geteuid()) or found.st_mode & 0o022:
                raise DamagedRecord(
                    f"{shown}: somebody else than root can change it, so it is not used: check it, "
                    "then 'chown root' and 'chmod go-w' it and its directory"
                )
        record = read_record(fd, f"{name}.json".encode())
        return None if record is None else msgspec.convert(record, View)
    except (ValueError, OSError) as error:
        raise DamagedRecord(
            f"{shown}: {error}: remove the view and add it again, with 'modamafs view'"
        ) from error
    finally:
        os.close(fd)


def write(store: Store, name: str, view: View) -> None:
    """Write a view's record durably.

    InvalidRequest (EINVAL): no name; a project that is none. OSError: ENOSPC, EROFS, EDQUOT.
    """
    check_name(name)
    for project in view.projects:
        os.close(open_project(store, project))
    if len(set(view.projects)) < len(view.projects):
        raise InvalidRequest("a project is named twice")
    owner_ids(view)
    fd = open_records(store.root_fd, RECORDS, VIEWS)
    try:
        write_record(fd, f"{name}.json".encode(), msgspec.to_builtins(view))
    finally:
        os.close(fd)


def remove(store: Store, name: str) -> bool:
    """Remove a view's record durably, whatever it holds; False: there is none."""
    check_name(name)
    if name not in names(store):
        return False
    fd = open_records(store.root_fd, RECORDS, VIEWS)
    try:
        remove_record(fd, f"{name}.json".encode())
    finally:
        os.close(fd)
    return True


def open_project(store: Store, project: str) -> int:
    """A descriptor (O_PATH) of a project's directory; no symbolic link leads to it.

    InvalidRequest (EINVAL): it is no ``area/project`` of the store.
    """
    parts = os.fsencode(project).split(b"/")
    if len(parts) != 2 or any(part in (b"", b".", b"..") or is_own_name(part) for part in parts):
        raise InvalidRequest(f"{project!r} is no project: name it as AREA/PROJECT, as in the store")
    try:
        area = os.open(parts[0], PATH_FLAGS, dir_fd=store.root_fd)
        try:
            return os.open(parts[1], PATH_FLAGS, dir_fd=area)
        finally:
            os.close(area)
    except OSError as error:
        raise InvalidRequest(
            f"the store {store.path} has no project {project!r} ({error.strerror}): "
            f"'ls {store.path}' shows its areas"
        ) from error


def owner_ids(view: View) -> tuple[int, int] | None:
    """User id and primary group of who is shown to own everything; None: owners are not mapped.

    InvalidRequest (EINVAL): there is no such user, or it is root.
    """
    if view.owner is None:
        return None
    try:
        user = pwd.getpwnam(view.owner)
    except KeyError:
        raise InvalidRequest(
            f"there is no user {view.owner!r} here: make it with 'useradd', or use another owner"
        ) from None
    if user.pw_uid == 0:
        raise InvalidRequest(
            "root can't be the owner that a view shows: make a user for its guests"
        )
    return user.pw_uid, user.pw_gid


def applied(spec: MountSpec) -> MountSpec:
    """The mount with what its view says; without a view, as it is.

    MountRefused: no such view, or it can't be shown.
    """
    if spec.view is None or not Path(spec.store).is_dir():  # what is no store is refused elsewhere
        return spec
    with Store(Path(spec.store)) as store:
        try:
            view = read(store, spec.view)
            if view is None:
                known = ", ".join(names(store)) or "none"
                raise MountRefused(
                    f"the store {spec.store} has no view {spec.view!r} (it has: {known}): "
                    "add it with 'modamafs view add'"
                )
            shows = _shows(store, view)
        except (InvalidRequest, DamagedRecord) as error:
            raise MountRefused(f"the view {spec.view!r}: {error.message}") from error
    flags = spec.flags
    if shows.uid is not None:
        flags |= MS_NOSUID | MS_NODEV
    read_only = spec.read_only or view.read_only
    if read_only:
        flags |= MS_RDONLY
    return msgspec.structs.replace(spec, shows=shows, flags=flags, read_only=read_only)


def _shows(store: Store, view: View) -> ViewSpec:
    uid, gid = owner_ids(view) or (None, None)
    root_ino = generation = 0
    for project in view.projects:
        fd = open_project(store, project)
        try:
            if len(view.projects) == 1:
                found = store.volume.attributes(fd)
                root_ino, generation = found.ino, found.generation
        finally:
            os.close(fd)
    return ViewSpec(
        projects=view.projects, root_ino=root_ino, root_generation=generation, uid=uid, gid=gid
    )


def _open_views(store: Store) -> int | None:
    try:
        fd = os.open(RECORDS, _DIRECTORY, dir_fd=store.root_fd)
    except FileNotFoundError:
        return None
    try:
        return os.open(VIEWS, _DIRECTORY, dir_fd=fd)
    except FileNotFoundError:
        return None
    finally:
        os.close(fd)
