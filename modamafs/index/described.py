"""Keeps projects, sessions, seals, hashes, metadata and notes as the records on the store say.

Everything is found by what it is about: a record's stamp tells whether it has to be read again, a
file's metadata follow its path in the session. Works inside the caller's transaction; every method
may raise sqlite3.Error.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

from modamafs.extraction.cache import name_of
from modamafs.index.nodes import DEPTH_OF_PROJECTS, DEPTH_OF_SESSIONS, Nodes
from modamafs.index.records import (
    DAMAGED,
    JSON,
    METADATA,
    Described,
    Metadata,
    Place,
    merged,
)
from modamafs.index.scan import Name, as_bytes, as_name, open_directory
from modamafs.store._volume import Volume
from modamafs.store.backing import PATH_FLAGS

log = logging.getLogger(__name__)

PROJECT = "project"
SESSION = "session"
SEAL = "seal"
EXTRACTED = "metadata"
_OWN = {
    DEPTH_OF_PROJECTS: (PROJECT, b"project.json"),
    DEPTH_OF_SESSIONS: (SESSION, b"session.json"),
}
_TABLES = {PROJECT: "projects", SESSION: "sessions"}
HASHES_AT_ONCE = 10_000
"""In one statement: between two of them, a large transaction is written."""


class Resealed(NamedTuple):
    """What lies in a directory under a name has another seal than before."""

    parent: int
    name: Name
    state: str | None
    """None: it has none any more."""


class Descriptions:
    """See above."""

    def __init__(self, connection: sqlite3.Connection, volume: Volume, nodes: Nodes) -> None:
        self._connection = connection
        self._volume = volume
        self._nodes = nodes
        self._sealed: dict[int, frozenset[Name]] = {}
        self._have_metadata: dict[int, bool] = {}

    def forget(self) -> None:
        """A transaction has ended, or was taken back."""
        self._sealed.clear()
        self._have_metadata.clear()

    # ---- what is known ---------------------------------------------------------------------------

    def sealed_in(self, directory: int) -> frozenset[Name]:
        """The names in a directory that are sealed, or being so."""
        found = self._sealed.get(directory)
        if found is None:
            rows = self._connection.execute("SELECT name FROM seals WHERE parent=?", (directory,))
            found = frozenset(name for (name,) in rows)
            if len(self._sealed) > 100_000:
                self._sealed.clear()
            self._sealed[directory] = found
        return found

    def has_any(self, directory: int) -> bool:
        """Whether a directory had records when it was last looked at."""
        found = self._connection.execute(
            "SELECT 1 FROM records WHERE directory=? LIMIT 1", (directory,)
        )
        return found.fetchone() is not None

    def has_metadata(self, session: int) -> bool:
        """Whether there are records of the extraction, of files that are there or not."""
        found = self._have_metadata.get(session)
        if found is None:
            rows = self._connection.execute(
                "SELECT 1 FROM records WHERE directory=? AND kind=? LIMIT 1", (session, EXTRACTED)
            )
            found = self._have_metadata[session] = rows.fetchone() is not None
        return found

    def next_directory(self, after: int) -> int | None:
        """The lowest inode number above one of a directory that has records."""
        lowest: int | None = self._connection.execute(
            "SELECT min(directory) FROM records WHERE directory>?", (after,)
        ).fetchone()[0]
        return lowest

    def known(self, directory: int, kind: str) -> dict[Name, tuple[str, Name | None, int | None]]:
        """The records of a kind that a directory had: stamp, path, inode number, by name."""
        return {
            name: (stamp, about, subject)
            for name, stamp, about, subject in self._connection.execute(
                "SELECT name, stamp, about, subject FROM records WHERE directory=? AND kind=?",
                (directory, kind),
            )
        }

    def _know(
        self,
        directory: int,
        kind: str,
        name: Name,
        stamp: str,
        about: Name | None = None,
        subject: int | None = None,
    ) -> None:
        self._connection.execute(
            "INSERT OR REPLACE INTO records VALUES (?,?,?,?,?,?)",
            (directory, kind, name, stamp, about, subject),
        )

    def _unknow(self, directory: int, kind: str, name: Name) -> None:
        self._connection.execute(
            "DELETE FROM records WHERE directory=? AND kind=? AND name=?", (directory, kind, name)
        )

    # ---- seals -----------------------------------------------------------------------------------

    def refresh_seals(self, directory: int) -> list[Resealed]:
        """Look at the seals' records in a directory; those that say something else than before."""
        changed: list[Resealed] = []
        with _Opened(self, directory) as place:
            known = self.known(directory, SEAL)
            found = {as_name(name): stamp for name, stamp in place.seals().items()} if place else {}
            for name in known.keys() - found.keys():
                self._unseal(directory, name)
                changed.append(Resealed(directory, name, None))
            for name, stamp in found.items():
                if name in known and known[name][0] == stamp:
                    continue
                assert place is not None
                changed += self._reseal(place, directory, name, stamp)
        if changed:
            self._sealed.pop(directory, None)
        return changed

    def _unseal(self, directory: int, name: Name) -> None:
        self._unknow(directory, SEAL, name)
        self._connection.execute("DELETE FROM seals WHERE parent=? AND name=?", (directory, name))
        self._forget_hashes(directory, name)

    def _forget_hashes(self, directory: int, name: Name) -> None:
        execute = self._connection.execute
        where = "FROM hashes WHERE parent=? AND seal=?"
        while end := execute(
            f"SELECT path {where} ORDER BY path LIMIT 1 OFFSET ?", (directory, name, HASHES_AT_ONCE)
        ).fetchone():
            execute(f"DELETE {where} AND path<?", (directory, name, *end))
        execute(f"DELETE {where}", (directory, name))

    def _reseal(self, place: Place, directory: int, name: Name, stamp: str) -> Iterator[Resealed]:
        raw = as_bytes(name)
        row = place.seal(raw)
        if row.state == DAMAGED:
            log.info("index-seal-damaged directory=%d name=%r", directory, raw)
        before = self._connection.execute(
            "SELECT state, content_hash, sealed_at, sealed_by, file_count, size_bytes FROM seals"
            " WHERE parent=? AND name=?",
            (directory, name),
        ).fetchone()
        self._know(directory, SEAL, name, stamp)
        self._connection.execute(
            "INSERT OR REPLACE INTO seals VALUES (?,?,?,?,?,?,?,?)", (directory, name, *row)
        )
        self._forget_hashes(directory, name)
        if has_manifest(row.state):
            hashes = place.hashes(raw)
            while some := list(islice(hashes, HASHES_AT_ONCE)):
                self._connection.executemany(
                    "INSERT OR REPLACE INTO hashes VALUES (?,?,?,?)",
                    ((directory, name, path, digest) for path, digest in some),
                )
        if before != row:
            yield Resealed(directory, name, row.state)

    # ---- projects and sessions -------------------------------------------------------------------

    def refresh_own(self, directory: int) -> None:
        """Look at the record that a directory has as a project or a session."""
        node = self._nodes.directory(directory)
        kind, file = _OWN.get(node.context.depth, ("", b"")) if node is not None else ("", b"")
        for other in _TABLES:
            if other != kind and self.known(directory, other):
                self._forget_own(directory, other)
        if not kind or node is None:
            return
        with _Opened(self, directory) as place:
            stamp = place.stamp_of(file) if place else ""
            known = self.known(directory, kind).get("")
            if place is None or not stamp:
                if known:
                    self._forget_own(directory, kind)
                return
            if known and known[0] == stamp:
                if kind == SESSION:
                    self._connection.execute(
                        "UPDATE sessions SET project=? WHERE ino=? AND project!=?",
                        (node.project, directory, node.project),
                    )
                return
            row: tuple[object, ...] | None
            if kind == PROJECT:
                project, described = place.project()
                row = None if project is None else (directory, *project)
            else:
                session, described = place.session()
                row = None if session is None else (directory, node.project, *session)
            if row is not None and "can't be read" in str(row[-1]):
                stamp = "unread"  # so that it is tried again
            if row is None:
                if known:
                    self._forget_own(directory, kind)
                return
            table = _TABLES[kind]
            marks = ",".join("?" * len(row))
            self._connection.execute(f"INSERT OR REPLACE INTO {table} VALUES ({marks})", row)
            self._know(directory, kind, "", stamp, None, directory)
        self._describe(directory, described)

    def _forget_own(self, directory: int, kind: str) -> None:
        self._unknow(directory, kind, "")
        self._connection.execute(f"DELETE FROM {_TABLES[kind]} WHERE ino=?", (directory,))
        self._describe(directory, Described())

    # ---- metadata of files -----------------------------------------------------------------------

    def refresh_metadata(
        self, session: int, names: Iterable[bytes] | None = None
    ) -> Iterator[None]:
        """Look at the records of a session's files, or at some; in steps, a record each."""
        node = self._nodes.directory(session)
        is_session = node is not None and node.context.depth == DEPTH_OF_SESSIONS
        with _Opened(self, session if is_session else 0) as place:
            if names is None:
                known = {name: was[0] for name, was in self.known(session, EXTRACTED).items()}
                wanted = []
                for raw, stamp in place.stamps(METADATA) if place else ():
                    if raw.endswith(JSON) and known.pop(as_name(raw), None) != stamp:
                        wanted.append(raw)
                wanted += map(as_bytes, known)
            else:
                wanted = [name for name in names if name.endswith(JSON)]
            for raw in wanted:
                self._refresh_record(place, session, raw)
                yield

    def _refresh_record(self, place: Place | None, session: int, raw: bytes) -> None:
        name = as_name(raw)
        row = self._connection.execute(
            "SELECT stamp, subject FROM records WHERE directory=? AND kind=? AND name=?",
            (session, EXTRACTED, name),
        ).fetchone()
        before, subject_before = row or ("", None)
        stamp = place.stamp_of(METADATA + b"/" + raw) if place else ""
        if stamp == before:
            return
        found: Metadata | None = None
        subject: int | None = None
        if not stamp or place is None:
            self._unknow(session, EXTRACTED, name)
        else:
            found = place.metadata(raw)
            about = None if found is None else as_name(found.about)
            subject = None if found is None else self.file_at(session, found.about)
            self._know(session, EXTRACTED, name, stamp, about, subject)
        self._have_metadata.pop(session, None)
        if subject_before is not None and subject_before != subject:
            self.refresh_subject(subject_before)
        if subject is not None:
            self.refresh_subject(subject, found.described if found else None)

    def resolve_all(self, session: int) -> Iterator[None]:
        """Names in a session have changed: which files its records are about, anew; in steps."""
        for name, (_, about, subject) in self.known(session, EXTRACTED).items():
            self._resolve_record(session, name, about, subject)
            yield

    def resolve(self, session: int, path: bytes) -> None:
        """The same for one path."""
        name = as_name(name_of(os.fsdecode(path)))
        row = self._connection.execute(
            "SELECT about, subject FROM records WHERE directory=? AND kind=? AND name=?",
            (session, EXTRACTED, name),
        ).fetchone()
        if row:
            self._resolve_record(session, name, *row)

    def _resolve_record(
        self, session: int, name: Name, about: Name | None, before: int | None
    ) -> None:
        if about is None:
            return
        subject = self.file_at(session, as_bytes(about))
        if subject == before:
            return
        self._connection.execute(
            "UPDATE records SET subject=? WHERE directory=? AND kind=? AND name=?",
            (subject, session, EXTRACTED, name),
        )
        for ino in (before, subject):
            if ino is not None:
                self.refresh_subject(ino)

    def file_at(self, session: int, path: bytes) -> int | None:
        """The inode number of the file at a path in a session."""
        at = session
        *folders, last = path.split(b"/")
        for folder in folders:
            node = self._nodes.entry(at, as_name(folder))
            if node is None or not node.is_directory:
                return None
            at = node.ino
        node = self._nodes.entry(at, as_name(last))
        return node.ino if node is not None and node.kind == "file" else None

    # ---- what is said of an inode ----------------------------------------------------------------

    def refresh_subject(self, ino: int, only: Described | None = None) -> None:
        """What is known of an inode, from all records that are about it.

        ``only``: what the one that was just read says, which may be all of them.
        """
        rows = self._about(ino)
        self._describe(ino, only if only is not None and len(rows) == 1 else self._said(rows))

    def said_of(self, ino: int) -> Described:
        """What the records that are about an inode say just now."""
        return self._said(self._about(ino))

    def _about(self, ino: int) -> list[tuple[int, str, Name]]:
        return self._connection.execute(
            "SELECT directory, kind, name FROM records WHERE subject=?"
            " ORDER BY directory, kind, name",
            (ino,),
        ).fetchall()

    def _said(self, rows: list[tuple[int, str, Name]]) -> Described:
        parts = []
        for directory, kind, name in rows:
            with _Opened(self, directory) as place:
                if place is None:
                    continue
                if kind == EXTRACTED:
                    found = place.metadata(as_bytes(name))
                    parts += [] if found is None else [found.described]
                else:
                    parts.append(place.project()[1] if kind == PROJECT else place.session()[1])
        return merged(parts) if parts else Described()

    def _describe(self, ino: int, described: Described) -> None:
        execute = self._connection.execute
        execute("DELETE FROM metadata WHERE ino=?", (ino,))
        self._connection.executemany(
            "INSERT INTO metadata VALUES (?,?,?,?,?)",
            [(ino, *value) for value in described.values],
        )
        before = execute("SELECT text FROM notes WHERE ino=?", (ino,)).fetchone()
        if (before[0] if before else "") == described.words:
            return
        if before:
            execute(
                "INSERT INTO words (words, rowid, text) VALUES ('delete', ?, ?)", (ino, *before)
            )
            execute("DELETE FROM notes WHERE ino=?", (ino,))
        if described.words:
            execute("INSERT INTO notes VALUES (?, ?)", (ino, described.words))
            execute("INSERT INTO words (rowid, text) VALUES (?, ?)", (ino, described.words))

    # ---- directories that are gone ---------------------------------------------------------------

    def forget_directory(self, ino: int) -> None:
        """A directory is no more in the index: nor is what its records said."""
        execute = self._connection.execute
        rows = execute(
            "SELECT kind, name, subject FROM records WHERE directory=?", (ino,)
        ).fetchall()
        if not rows:
            return
        execute("DELETE FROM records WHERE directory=?", (ino,))
        for kind, name, subject in rows:
            if kind == SEAL:
                self._unseal(ino, name)
            elif kind in _TABLES:
                execute(f"DELETE FROM {_TABLES[kind]} WHERE ino=?", (ino,))
                self._describe(ino, Described())
            elif subject is not None:
                self.refresh_subject(subject)
        self._sealed.pop(ino, None)
        self._have_metadata.pop(ino, None)

    def open(self, directory: int) -> int | None:
        """An O_PATH descriptor of an indexed directory; None: it is no more."""
        node = self._nodes.directory(directory)
        if node is None:
            return None
        try:
            return open_directory(self._volume, directory, node.generation, PATH_FLAGS)
        except OSError:
            return None

    def place(self, fd: int) -> Place:
        """The records of an open directory."""
        return Place(self._volume, fd)


def has_manifest(state: str) -> bool:
    """Whether the manifest of a seal in this state holds."""
    return state in ("sealed", "unsealing")


class _Opened:
    """The records of a directory, for the length of a block; None where it is no more."""

    def __init__(self, descriptions: Descriptions, directory: int) -> None:
        self._descriptions = descriptions
        self._directory = directory
        self._fd: int | None = None
        self._place: Place | None = None

    def __enter__(self) -> Place | None:
        self._fd = self._descriptions.open(self._directory)
        if self._fd is not None:
            self._place = self._descriptions.place(self._fd)
        return self._place

    def __exit__(self, *_: object) -> None:
        if self._place is not None:
            self._place.close()
        if self._fd is not None:
            os.close(self._fd)
