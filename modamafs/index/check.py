"""Is the index as the store is? For ``modamafs index check``; and what ``index stats`` shows.

The store may be in use meanwhile: what differs is looked at again after a while, and counts only if
both sides are still what they were.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import sqlite_utils

from modamafs.index.database import DAMAGED, FILE, NEWER, open_reader
from modamafs.index.described import EXTRACTED, PROJECT, SESSION, Descriptions, has_manifest
from modamafs.index.nodes import DEPTH_OF_PROJECTS, DEPTH_OF_SESSIONS, Node, Nodes
from modamafs.index.records import JSON, METADATA, Place
from modamafs.index.scan import (
    Name,
    Seen,
    as_bytes,
    as_name,
    frames,
    look,
    open_directory,
)
from modamafs.store.backing import PATH_FLAGS, Store

PATIENCE_S = 2.0
SUSPECTS_AT_ONCE = 10_000

Suspect = Callable[[], list[str]]
"""Looks at something, and says what differs."""


def check(store: Store, directory: Path, patience_s: float = PATIENCE_S) -> Iterator[str]:
    """Every difference, in one line: the path, and what is where. None: the index is right.

    NotIndexed: there is no index. OSError: the store can't be read.
    """
    connection = open_reader(directory)
    try:
        damage = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if damage != "ok":
            yield f"{FILE}: damaged: {damage}"
            return
        if not _info(connection).get("complete"):
            yield f"{FILE}: not everything was looked at yet"
        yield from _Check(store, connection).differences(patience_s)
    except sqlite3.DatabaseError as error:
        yield f"{FILE}: damaged: {error}"
    finally:
        connection.close()


def _info(connection: sqlite3.Connection) -> dict[str, Any]:
    return dict(connection.execute("SELECT key, value FROM info"))


class _Check:
    def __init__(self, store: Store, connection: sqlite3.Connection) -> None:
        self._volume = store.volume
        self._root = store.volume.attributes(store.root_fd)
        self._connection = connection
        self._nodes = Nodes(connection)
        self._descriptions = Descriptions(connection, store.volume, self._nodes)
        self._met: set[int] = set()

    def differences(self, patience_s: float) -> Iterator[str]:
        """See ``check``."""
        suspects: list[tuple[Suspect, list[str]]] = []
        for suspect in self._suspects():
            lines = self._look(suspect)
            if lines:
                suspects.append((suspect, lines))
            if len(suspects) >= SUSPECTS_AT_ONCE:
                yield from self._look_again(suspects, patience_s)
                suspects = []
        yield from self._look_again(suspects, patience_s)

    def _look(self, suspect: Suspect) -> list[str]:
        self._nodes.forget()
        self._descriptions.forget()
        return suspect()

    def _look_again(
        self, suspects: list[tuple[Suspect, list[str]]], patience_s: float
    ) -> Iterator[str]:
        if suspects:
            time.sleep(patience_s)
        for suspect, before in suspects:
            now = set(self._look(suspect))
            yield from (line for line in before if line in now)

    # ---- what to look at -------------------------------------------------------------------------

    def _suspects(self) -> Iterator[Suspect]:
        yield lambda: self._of_root()
        pending = [(self._root.ino, self._root.generation, b"")]
        while pending:
            ino, generation, path = pending.pop()
            if ino in self._met:
                continue
            self._met.add(ino)
            yield from self._of_directory(ino, generation, path, pending)
        yield from self._of_what_is_left()

    def _of_root(self) -> list[str]:
        row = self._nodes.entry(0, "")
        if row is None or (row.ino, row.generation) != (self._root.ino, self._root.generation):
            return ["/: the index is another store's"]
        return []

    def _of_directory(
        self, ino: int, generation: int, path: bytes, pending: list[tuple[int, int, bytes]]
    ) -> Iterator[Suspect]:
        names: set[Name] = set()
        has_records = False
        for frame in frames(self._volume, ino, generation):
            has_records = frame.has_records
            if frame.error:
                yield lambda error=frame.error: [  # type: ignore[misc]
                    f"{_shown(path)}: can't be read: {os.strerror(error)}"
                ]
                return
            rows = self._nodes.named(ino, [entry.name for entry in frame.entries])
            sealed = self._descriptions.sealed_in(ino)
            here = self._nodes.directory(ino)
            for found in frame.entries:
                names.add(found.name)
                row = rows.get(found.name)
                inside = os.path.join(path, as_bytes(found.name))
                if row is None or here is None or _differs(here, row, found, sealed):
                    yield self._entry(ino, generation, found.name, inside)
                if found.kind == "directory" and row is not None and row.is_same_inode(found):
                    pending.append((found.ino, found.generation, inside))
            self._descriptions.forget()
        for _, name in list(self._nodes.each_entry(ino)):
            if name not in names:
                yield self._entry(ino, generation, name, os.path.join(path, as_bytes(name)))
        if has_records or self._descriptions.has_any(ino):
            yield lambda: self._of_records(ino, generation, path)

    def _entry(self, directory: int, generation: int, name: Name, path: bytes) -> Suspect:
        return lambda: self._of_entry(directory, generation, name, path)

    def _of_entry(self, directory: int, generation: int, name: Name, path: bytes) -> list[str]:
        found = self._on_store(directory, generation, name)
        row = self._nodes.entry(directory, name)
        here = self._nodes.directory(directory)
        if found is None:
            return [] if row is None else [f"{_shown(path)}: in the index, not on the store"]
        if row is None or here is None:
            if self._is_elsewhere(found):
                return []
            return [f"{_shown(path)}: {found.kind} on the store, not in the index"]
        parts = [
            f"{field} is {now!r} on the store, {was!r} in the index"
            for field, now, was in zip(Seen._fields, found, row.seen, strict=True)
            if now != was
        ]
        sealed = name in self._descriptions.sealed_in(directory)
        wanted = here.context.inside(found.ino, found.kind, sealed=sealed)[1:]
        parts += [
            f"{field} is {was!r} in the index, not {now!r}"
            for field, now, was in zip(
                ("project", "session", "sealed"), wanted, row.belongs, strict=True
            )
            if now != was
        ]
        return [f"{_shown(path)}: {'; '.join(parts)}"] if parts else []

    def _on_store(self, directory: int, generation: int, name: Name) -> Seen | None:
        try:
            fd = open_directory(self._volume, directory, generation, PATH_FLAGS)
        except OSError:
            return None
        try:
            return look(self._volume, fd, as_bytes(name))
        finally:
            os.close(fd)

    def _is_elsewhere(self, found: Seen) -> bool:
        """Whether it is a directory of the store that is mounted a second time here."""
        row = self._nodes.directory(found.ino) if found.kind == "directory" else None
        if row is None or not row.is_same_inode(found):
            return False
        above = self._nodes.directory(row.parent)
        if above is None:
            return row.parent == 0
        there = self._on_store(above.ino, above.generation, row.name)
        return there is not None and row.is_same_inode(there)

    # ---- records ---------------------------------------------------------------------------------

    def _of_records(self, ino: int, generation: int, path: bytes) -> list[str]:
        node = self._nodes.directory(ino)
        if node is None:
            return []
        try:
            fd = open_directory(self._volume, ino, generation, PATH_FLAGS)
        except OSError:
            return []
        place = Place(self._volume, fd)
        try:
            shown = _shown(path)
            return [
                *self._of_seals(place, ino, shown),
                *self._of_own(place, node, shown),
                *self._of_metadata(place, node, path),
            ]
        finally:
            place.close()
            os.close(fd)

    def _of_seals(self, place: Place, ino: int, shown: str) -> Iterator[str]:
        rows = {
            name: tuple(rest)
            for name, *rest in self._connection.execute(
                "SELECT name, state, content_hash, sealed_at, sealed_by, file_count, size_bytes"
                " FROM seals WHERE parent=?",
                (ino,),
            )
        }
        for raw in place.seals():
            now = place.seal(raw)
            row = rows.pop(as_name(raw), None)
            if row != now:
                yield f"{shown}: the seal of {_shown(raw)} is {now}, in the index {row}"
            yield from self._of_hashes(place, ino, raw, now.state, shown)
        for name in rows:
            yield f"{shown}: the seal of {_shown(as_bytes(name))} is in the index, not on the store"

    def _of_hashes(
        self, place: Place, ino: int, raw: bytes, state: str, shown: str
    ) -> Iterator[str]:
        count = 0
        for path, digest in place.hashes(raw) if has_manifest(state) else ():
            row = self._connection.execute(
                "SELECT blake3 FROM hashes WHERE parent=? AND seal=? AND path=?",
                (ino, as_name(raw), path),
            ).fetchone()
            count += 1
            if row != (digest,):
                yield f"{shown}: the hash of {_shown(raw)}/{_shown(as_bytes(path))} is another"
        indexed = self._connection.execute(
            "SELECT count(*) FROM hashes WHERE parent=? AND seal=?", (ino, as_name(raw))
        ).fetchone()[0]
        if indexed != count:
            yield (
                f"{shown}: the manifest of {_shown(raw)} has {count} files on the store, "
                f"{indexed} in the index"
            )

    def _of_own(self, place: Place, node: Node, shown: str) -> Iterator[str]:
        depth = node.context.depth
        project = place.project()[0] if depth == DEPTH_OF_PROJECTS else None
        session = place.session()[0] if depth == DEPTH_OF_SESSIONS else None
        rows = [
            self._connection.execute(query, (node.ino,)).fetchone()
            for query in (
                "SELECT title, owner, visibility, record, problem FROM projects WHERE ino=?",
                "SELECT title, owner, instrument, date, record, problem, project FROM sessions"
                " WHERE ino=?",
            )
        ]
        wanted = (project, None if session is None else (*session, node.project))
        for kind, row, now in zip((PROJECT, SESSION), rows, wanted, strict=True):
            if row != now:
                yield f"{shown}: its record as a {kind} is not what the index has"
        yield from self._of_subject(node.ino, shown)

    def _of_metadata(self, place: Place, node: Node, path: bytes) -> Iterator[str]:
        known = self._descriptions.known(node.ino, EXTRACTED)
        if node.context.depth == DEPTH_OF_SESSIONS:
            for raw, _ in place.stamps(METADATA):
                if not raw.endswith(JSON):
                    continue
                row = known.pop(as_name(raw), None)
                found = place.metadata(raw)
                about = None if found is None else as_name(found.about)
                subject = (
                    None if found is None else self._descriptions.file_at(node.ino, found.about)
                )
                inside = path if found is None else os.path.join(path, found.about)
                if row is None or row[1:] != (about, subject):
                    yield f"{_shown(inside)}: metadata/{_shown(raw)} is not in the index as it is"
                elif subject is not None:
                    yield from self._of_subject(subject, _shown(inside))
        for name in known:
            yield (
                f"{_shown(path)}: metadata/{_shown(as_bytes(name))} is in the index, "
                "not on the store"
            )

    def _of_subject(self, ino: int, shown: str) -> Iterator[str]:
        said = self._descriptions.said_of(ino)
        rows = self._connection.execute(
            "SELECT key, number, text, unit FROM metadata WHERE ino=? ORDER BY key", (ino,)
        ).fetchall()
        if rows != sorted(tuple(value) for value in said.values):
            yield f"{shown}: its metadata are not what the index has"
        notes = self._connection.execute("SELECT text FROM notes WHERE ino=?", (ino,)).fetchone()
        if (notes[0] if notes else "") != said.words:
            yield f"{shown}: its words are not what the index has"

    # ---- what is only in the index ---------------------------------------------------------------

    def _of_what_is_left(self) -> Iterator[Suspect]:
        parent: int | None = 0
        while parent is not None:
            parent = self._nodes.next_parent(parent)
            if parent is not None and parent not in self._met:
                yield lambda ino=parent: self._of_parent(ino)  # type: ignore[misc]
        for query, what in LEFT_OVER.items():
            yield lambda query=query, what=what: self._of_query(query, what)  # type: ignore[misc]

    def _of_parent(self, ino: int) -> list[str]:
        node = self._nodes.directory(ino)
        if node is not None and self._nodes.path(node) is not None:
            return []  # it lies in what was named above, or is new
        return [f"inode {ino}: entries hang on it in the index, and it hangs on nothing"]

    def _of_query(self, query: str, what: str) -> list[str]:
        return [f"{FILE}: {what}: {row[0]}" for row in self._connection.execute(query)]


LEFT_OVER = {
    "SELECT directory FROM records EXCEPT SELECT ino FROM nodes WHERE kind='directory'": (
        "records of a directory that is not in it"
    ),
    "SELECT ino FROM projects EXCEPT SELECT directory FROM records WHERE kind='project'": (
        "a project that has no record"
    ),
    "SELECT ino FROM sessions EXCEPT SELECT directory FROM records WHERE kind='session'": (
        "a session that has no record"
    ),
    "SELECT parent FROM seals EXCEPT SELECT directory FROM records WHERE kind='seal'": (
        "a seal that has no record"
    ),
    "SELECT parent FROM hashes EXCEPT SELECT parent FROM seals": "hashes of what is not sealed",
    "SELECT ino FROM metadata EXCEPT SELECT subject FROM records": "metadata without a record",
    "SELECT ino FROM notes EXCEPT SELECT subject FROM records": "words without a record",
    "SELECT subject FROM records WHERE subject IS NOT NULL EXCEPT SELECT ino FROM nodes": (
        "a record of what is not in it"
    ),
    "SELECT id FROM nodes EXCEPT SELECT id FROM names_docsize": "a name that can't be searched",
    "SELECT id FROM names_docsize EXCEPT SELECT id FROM nodes": "a name of nothing",
    "SELECT ino FROM notes EXCEPT SELECT id FROM words_docsize": "words that can't be searched",
    "SELECT id FROM words_docsize EXCEPT SELECT ino FROM notes": "words of nothing",
}
"""What does not fit together within the file; every row is a difference."""


def _differs(here: Node, row: Node, found: Seen, sealed: frozenset[Name]) -> bool:
    wanted = here.context.inside(found.ino, found.kind, sealed=found.name in sealed)
    return row[2:14] != found or row.belongs != wanted[1:]


def _shown(path: bytes) -> str:
    """For one line of text; what is no text, or would end the line, is escaped."""
    text = path.decode("utf-8", "backslashreplace") or "/"
    return text.encode("unicode_escape").decode() if not text.isprintable() else text


def stats(directory: Path) -> dict[str, Any]:
    """What ``modamafs index stats`` shows; times in nanoseconds. NotIndexed."""
    connection = open_reader(directory)
    try:
        return _stats(connection, directory)
    finally:
        connection.close()


def _stats(connection: sqlite3.Connection, directory: Path) -> dict[str, Any]:
    tables = sqlite_utils.Database(connection)
    info = _info(connection)
    kinds = {
        row["kind"]: row["count"]
        for row in tables.query("SELECT kind, count(*) AS count FROM nodes GROUP BY kind")
    }
    totals = next(
        tables.query(
            "SELECT coalesce(sum(sealed), 0) AS sealed,"
            " coalesce(sum(CASE WHEN kind='file' THEN size_bytes END), 0) AS size_bytes FROM nodes"
        )
    )
    changes = next(
        tables.query(
            "SELECT count(*) AS count, min(at_ns) AS oldest_at_ns, max(position) AS position"
            " FROM changes"
        )
    )
    files = [directory / FILE, directory / f"{FILE}-wal"]
    return {
        "store": info.get("store"),
        "epoch": info.get("epoch"),
        "complete": bool(info.get("complete")),
        "stale": bool(info.get("stale")),
        "reconciled_at_ns": info.get("reconciled_at_ns"),
        "kinds": kinds,
        "size_bytes": totals["size_bytes"],
        "sealed_entries": totals["sealed"],
        "seals": tables["seals"].count,
        "hashes": tables["hashes"].count,
        "projects": tables["projects"].count,
        "sessions": tables["sessions"].count,
        "metadata_keys": {
            row["key"]: row["count"]
            for row in tables.query("SELECT key, count(*) AS count FROM metadata GROUP BY key")
        },
        "changes": changes["count"],
        "oldest_change_at_ns": changes["oldest_at_ns"],
        "position": changes["position"] or 0,
        "index_size_bytes": sum(path.stat().st_size for path in files if path.exists()),
        "set_aside": [name for name in (DAMAGED, NEWER) if (directory / name).exists()],
    }
