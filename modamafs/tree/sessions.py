"""All sessions of a store, for the views: from the index, or, without one, from the store itself.

Without an index, the store is walked no deeper than the sessions. What a session's records say is
read again only when one of them is another by now. Who may enter a directory is asked of the store
in either case.
"""

from __future__ import annotations

import os
import pwd
import time
from collections.abc import Callable, Iterator

from modamafs.catalog import Project, Session
from modamafs.doors import Door, door_of
from modamafs.index.sessions import IndexedSession
from modamafs.model import RECORDS, Caller
from modamafs.policy import access
from modamafs.store.backing import PATH_FLAGS, Store
from modamafs.store.catalogue import directories, from_text, read_project, read_session
from modamafs.views import SessionFacts

BELIEVED_S = 1.0
"""For how long the list is right without looking."""
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Sessions:
    """The list of one store."""

    def __init__(
        self, store: Store, indexed: Callable[[], list[IndexedSession] | None] | None = None
    ) -> None:
        """``indexed``: what the index has, as things are now; None, or None from it: nothing."""
        self._store = store
        self._indexed = indexed
        self._listed: list[IndexedSession] | None = None
        self._from_index: dict[str, tuple[IndexedSession, SessionFacts]] = {}
        self._times: dict[str, int] = {}
        self._known: dict[str, tuple[tuple[int, ...], SessionFacts]] = {}
        self._all: list[SessionFacts] = []
        self._looked_at_s = -BELIEVED_S
        self._doors: dict[str, Door] = {}
        self.generation = 0
        """Another number where the list is another."""

    def all(self) -> list[SessionFacts]:
        """Every session that has a record, or lies where sessions lie, sorted by path."""
        if time.monotonic() - self._looked_at_s < BELIEVED_S:
            return self._all
        listed = self._indexed() if self._indexed is not None else None
        if listed is None:
            self._walk()
        elif listed is not self._listed:
            self._take(listed)
        self._looked_at_s = time.monotonic()
        return self._all

    def _walk(self) -> None:
        """Look at the store itself."""
        self._listed, self._from_index, self._times = None, {}, {}
        known: dict[str, tuple[tuple[int, ...], SessionFacts]] = {}
        doors: dict[str, Door] = {}
        for stamp, facts in self._look(doors):
            known[facts.path] = stamp, facts
        if (known, doors) != (self._known, self._doors):
            self._known, self._doors = known, doors
            self._all = [facts for _, facts in known.values()]
            self.generation += 1

    def _take(self, listed: list[IndexedSession]) -> None:
        """Make facts of what the index has, of those that are others by now."""
        before = self._from_index
        found: dict[str, tuple[IndexedSession, SessionFacts]] = {}
        doors: dict[str, Door] = {}
        times: dict[str, int] = {}
        for one in listed:
            if one.is_hidden:
                continue
            project = one.area + b"/" + one.project
            raw = project + b"/" + one.session
            try:
                self._look_at_door(one.area, one.area_ctime_ns, doors, times)
                self._look_at_door(project, one.project_ctime_ns, doors, times)
                self._look_at_door(raw, one.session_ctime_ns, doors, times)
            except OSError:  # removed meanwhile
                continue
            path = os.fsdecode(raw)
            known = before.get(path)
            is_known = known is not None and known[0] == one
            found[path] = known if known and is_known else (one, _facts(path, one))
        self._from_index = found
        self._listed, self._times, self._doors = listed, times, doors
        self._known = {}
        self._all = [facts for _, facts in found.values()]
        self.generation += 1

    def _look_at_door(
        self, raw: bytes, ctime_ns: int, doors: dict[str, Door], times: dict[str, int]
    ) -> None:
        """Ask the store only where a directory's ctime is another than when it was asked last."""
        path = os.fsdecode(raw)
        if path in doors:
            return
        if self._times.get(path) == ctime_ns:
            doors[path] = self._doors[path]
        else:
            fd = os.open(raw, PATH_FLAGS, dir_fd=self._store.root_fd)
            try:
                doors[path] = door_of(fd)
            finally:
                os.close(fd)
        times[path] = ctime_ns

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
                    doors[os.fsdecode(path)] = door_of(fd)
                    above = os.open(b"..", PATH_FLAGS, dir_fd=fd)
                    doors[os.fsdecode(area)] = door_of(above)
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
        fd = os.open(name, PATH_FLAGS, dir_fd=project_fd)
        try:
            found = os.fstat(fd)
            doors[path] = door_of(fd)
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


def _facts(path: str, one: IndexedSession) -> SessionFacts:
    record = None if one.session_record is None else from_text(one.session_record, Session)
    project = None if one.project_record is None else from_text(one.project_record, Project)
    return SessionFacts(
        path=path,
        area=os.fsdecode(one.area),
        project_name=os.fsdecode(one.project),
        session_name=os.fsdecode(one.session),
        session=record,
        project=project,
        owner=record.owner.user or record.owner.name if record else _login(one.uid),
        mtime_ns=one.mtime_ns,
        sealed=one.sealed,
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
