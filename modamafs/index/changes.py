"""The journal of what has changed, for whoever follows it (``changes`` in schema.sql)."""

from __future__ import annotations

import sqlite3
import time
from typing import NamedTuple

from modamafs.index.nodes import Nodes
from modamafs.index.scan import Name, as_name

KEPT = 1_000_000
"""Rows; the oldest go first."""
PRUNED_AT_ONCE = 20_000

_INSERT = (
    "INSERT INTO changes (at_ns, event, path, old_path, kind, outside) VALUES (?, ?, ?, ?, ?, ?)"
)


class Hint(NamedTuple):
    """What is known of a change besides what has changed."""

    event: str
    outside: bool
    at_ns: int
    is_from_within: bool = True
    """Of what was moved: it was in the index's reach before."""


class _Row(NamedTuple):
    hint: Hint
    event: str
    parent: int
    name: Name
    path: bytes | None
    old_path: bytes | None
    kind: str | None


class Noted(NamedTuple):
    """A row as it was written."""

    event: str
    path: bytes
    """Relative to the store."""
    outside: bool


class Journal:
    """Rows of one transaction, written at its end: paths are what they are then."""

    def __init__(self, connection: sqlite3.Connection, kept: int = KEPT) -> None:
        self._connection = connection
        self._kept = kept
        self._rows: list[_Row] = []
        self.written: list[Noted] = []
        """In the last transaction."""
        found = connection.execute("SELECT seq FROM sqlite_sequence WHERE name='changes'")
        row = found.fetchone()
        self.position: int = row[0] if row else 0
        """Of the last row that was written."""

    def note(
        self,
        hint: Hint,
        event: str,
        parent: int,
        name: Name,
        kind: str,
        old_path: bytes | None = None,
    ) -> None:
        """An entry of a directory was made, changed, or moved here."""
        self._rows.append(_Row(hint, event, parent, name, None, old_path, kind))

    def note_removed(self, hint: Hint, path: bytes, kind: str) -> None:
        """What lay at a path is gone."""
        self._rows.append(_Row(hint, "removed", 0, "", path, None, kind))

    def write_lost(self, at_ns: int | None = None) -> None:
        """Changes went by that nobody has looked at."""
        now_ns = time.time_ns() if at_ns is None else at_ns
        self._connection.execute(_INSERT, (now_ns, "lost", "", None, None, 1))
        self.position = self._last()

    def write(self, nodes: Nodes) -> None:
        """Write the rows, and forget the oldest ones. sqlite3.Error."""
        rows, self._rows = self._rows, []
        self.written = []
        values = []
        for row in rows:
            path = row.path if row.path is not None else nodes.path_of(row.parent, row.name)
            if path is None:
                continue
            old = None if row.old_path is None else as_name(row.old_path)
            if row.event == "moved" and row.old_path == path:
                continue
            values.append(
                (row.hint.at_ns, row.event, as_name(path), old, row.kind, int(row.hint.outside))
            )
            self.written.append(Noted(row.event, path, row.hint.outside))
        if not values:
            return
        self._connection.executemany(_INSERT, values)
        self.position = self._last()
        self._prune()

    def drop(self) -> None:
        """Forget what was noted."""
        self._rows = []

    def _last(self) -> int:
        found = self._connection.execute("SELECT seq FROM sqlite_sequence WHERE name='changes'")
        last: int = found.fetchone()[0]
        return last

    def _prune(self) -> None:
        oldest = self._connection.execute("SELECT min(position) FROM changes").fetchone()[0]
        if oldest is None or self.position - oldest < self._kept + PRUNED_AT_ONCE:
            return
        # More at once than what was just added; the next ones do the rest.
        end = min(self.position - self._kept, oldest + 4 * PRUNED_AT_ONCE)
        self._connection.execute("DELETE FROM changes WHERE position <= ?", (end,))
