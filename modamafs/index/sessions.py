"""All sessions, as the index has them, for the views."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import Any, NamedTuple

from modamafs.index.database import FILE, NotIndexed, open_reader
from modamafs.index.scan import as_bytes

_SESSIONS = """
SELECT area.name, area.ctime_ns, project.name, project.ctime_ns, session.name, session.ctime_ns,
  session.uid, session.mtime_ns, projects.record, sessions.record,
  EXISTS (SELECT 1 FROM seals WHERE seals.parent = session.ino AND seals.name = 'raw')
  OR EXISTS (SELECT 1 FROM seals WHERE seals.parent = project.ino AND seals.name = session.name)
FROM nodes AS root
JOIN nodes AS area ON area.parent = root.ino AND area.kind = 'directory'
JOIN nodes AS project ON project.parent = area.ino AND project.kind = 'directory'
JOIN nodes AS session ON session.parent = project.ino AND session.kind = 'directory'
LEFT JOIN projects ON projects.ino = project.ino AND projects.problem IS NULL
LEFT JOIN sessions ON sessions.ino = session.ino AND sessions.problem IS NULL
WHERE root.parent = 0
"""


class IndexedSession(NamedTuple):
    """A directory where sessions lie. The times change with what may be done there."""

    area: bytes
    area_ctime_ns: int
    project: bytes
    project_ctime_ns: int
    session: bytes
    session_ctime_ns: int
    uid: int
    mtime_ns: int
    project_record: str | None
    """The text of the record; None: there is none, or none that can be understood."""
    session_record: str | None
    sealed: bool

    @property
    def is_hidden(self) -> bool:
        """Whether one of its names begins with a dot: then it is no session."""
        return any(name.startswith(b".") for name in (self.area, self.project, self.session))


class SessionReader:
    """Reads them again when something was written. For one thread at a time."""

    def __init__(self, directory: Path) -> None:
        """``directory``: of the index."""
        self._directory = directory
        self._connection: sqlite3.Connection | None = None
        self._file = (0, 0)
        self._version = -1
        self._known: list[IndexedSession] = []

    def sessions(self) -> list[IndexedSession] | None:
        """All of them, sorted; the same list as long as nothing was written. None: no index."""
        try:
            connection = self._open()
            [version] = connection.execute("PRAGMA data_version").fetchone()
            if version != self._version:
                rows = connection.execute(_SESSIONS).fetchall()
                found = sorted(map(_session, rows), key=lambda one: one[:5:2])
                self._version = version
                if found != self._known:
                    self._known = found
        except (sqlite3.Error, NotIndexed, OSError):
            self.close()
            return None
        return self._known

    def _open(self) -> sqlite3.Connection:
        found = os.stat(self._directory / FILE)
        file = found.st_dev, found.st_ino
        if self._connection is not None and file != self._file:
            self.close()
        if self._connection is None:
            self._connection = open_reader(self._directory)
            self._file, self._version = file, -1
        return self._connection

    def close(self) -> None:
        """Close the file."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _session(row: tuple[Any, ...]) -> IndexedSession:
    area, area_ns, project, project_ns, session, *rest = row
    names = as_bytes(area), area_ns, as_bytes(project), project_ns, as_bytes(session)
    found = IndexedSession(*names, *rest)
    return found._replace(sealed=bool(found.sealed))
