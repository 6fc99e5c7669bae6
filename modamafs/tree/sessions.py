"""All sessions of a store, for the views: looked for anew where a directory has changed.

The store is walked no deeper than the sessions. What a session's records say is read again only
when one of them is another by now. (The index will answer this for large stores.)
"""

from __future__ import annotations

import os
import pwd
import time
from collections.abc import Iterator
from typing import NamedTuple

from modamafs.catalog import Project
from modamafs.model import RECORDS, Caller
from modamafs.policy import access
from modamafs.store.backing import Store
from modamafs.store.catalogue import directories, read_project, read_session
from modamafs.tree.privacy import acl_of
from modamafs.views import SessionFacts

BELIEVED_S = 1.0
"""For how long the list is right without looking."""
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PATH = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Door(NamedTuple):
    """Who may enter a directory: see acl(5)."""

    mode: int
    uid: int
    gid: int
    acl: bytes | None

    def lets(self, wanted: int, caller: Caller) -> bool:
        """Whether the caller has all of the wanted permissions."""
        return access.may(wanted, caller, self.mode, self.uid, self.gid, self.acl)


def _door(fd: int) -> Door:
    found = os.fstat(fd)
    return Door(found.st_mode, found.st_uid, found.st_gid, acl_of(fd))


class Sessions:
    """The list of one store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[str, tuple[tuple[int, ...], SessionFacts]] = {}
        self._all: list[SessionFacts] = []
        self._looked_at_s = -BELIEVED_S
        self._doors: dict[str, Door] = {}
        self.generation = 0
        """Another number where the list is another."""

    def all(self) -> list[SessionFacts]:
        """Every session that has a record, or lies where sessions lie, sorted by path."""
        now_s = time.monotonic()
        if now_s - self._looked_at_s >= BELIEVED_S:
            known: dict[str, tuple[tuple[int, ...], SessionFacts]] = {}
            doors: dict[str, Door] = {}
            for stamp, facts in self._look(doors):
                known[facts.path] = stamp, facts
            if (known, doors) != (self._known, self._doors):
                self._known, self._doors = known, doors
                self._all = [facts for _, facts in known.values()]
                self.generation += 1
            self._looked_at_s = now_s
        return self._all

    def of(self, caller: Caller) -> list[SessionFacts]:
        """Those that the caller can reach, and read the names in.

        ``caller.groups`` has to be known.
        """
        found = self.all()
        if caller.uid == 0:
            return found
        readable, enterable = access.READ | access.SEARCH, access.SEARCH
        above = {
            path: door.lets(enterable, caller)
            for path, door in self._doors.items()
            if path.count("/") < 2
        }
        return [
            one
            for one in found
            if above[one.area]
            and above[f"{one.area}/{one.project_name}"]
            and self._doors[one.path].lets(readable, caller)
        ]

    def _look(self, doors: dict[str, Door]) -> Iterator[tuple[tuple[int, ...], SessionFacts]]:
        """Notes the doors of what it looks at."""
        root = self._store.root_fd
        for area in directories(root, b"."):
            for name in directories(root, area):
                path = area + b"/" + name
                try:
                    fd = os.open(path, _DIRECTORY, dir_fd=root)
                except OSError:
                    continue
                try:
                    doors[os.fsdecode(path)] = _door(fd)
                    above = os.open(b"..", _PATH, dir_fd=fd)
                    doors[os.fsdecode(area)] = _door(above)
                    os.close(above)
                    project, _ = read_project(fd)
                    changed = _changed(fd, RECORDS + b"/project.json")
                    for session in directories(fd, b"."):
                        try:
                            yield self._session(fd, path, session, project, changed, doors)
                        except FileNotFoundError:  # removed meanwhile
                            continue
                finally:
                    os.close(fd)

    def _session(
        self,
        project_fd: int,
        project_path: bytes,
        name: bytes,
        project: Project | None,
        changed: int,
        doors: dict[str, Door],
    ) -> tuple[tuple[int, ...], SessionFacts]:
        records = name + b"/" + RECORDS + b"/"
        stamp = (
            changed,
            _changed(project_fd, name),
            _changed(project_fd, records + b"session.json"),
            _changed(project_fd, records + b"seals"),
        )
        path = os.fsdecode(project_path + b"/" + name)
        known = self._known.get(path)
        if known is not None and known[0] == stamp:
            doors[path] = self._doors[path]
            return known
        fd = os.open(name, _PATH, dir_fd=project_fd)
        try:
            found = os.fstat(fd)
            doors[path] = _door(fd)
            record, _ = read_session(fd)
            sealed = _exists(fd, RECORDS + b"/seals/raw.json")
        finally:
            os.close(fd)
        sealed = sealed or _exists(project_fd, RECORDS + b"/seals/" + name + b".json")
        area, _, project_name = os.fsdecode(project_path).partition("/")
        return stamp, SessionFacts(
            path=path,
            area=area,
            project_name=project_name,
            session_name=os.fsdecode(name),
            session=record,
            project=project,
            owner=record.owner.user or record.owner.name if record else _login(found.st_uid),
            mtime_ns=found.st_mtime_ns,
            sealed=sealed,
        )


def _changed(dir_fd: int, path: bytes) -> int:
    try:
        return os.stat(path, dir_fd=dir_fd, follow_symlinks=False).st_ctime_ns
    except OSError:
        return 0


def _exists(dir_fd: int, path: bytes) -> bool:
    return _changed(dir_fd, path) != 0


def _login(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
