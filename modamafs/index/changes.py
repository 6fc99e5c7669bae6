"""The journal of what has changed, for whoever follows it (``changes`` in schema.sql)."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from typing import NamedTuple

from modamafs.index.nodes import Node, Nodes
from modamafs.index.scan import Name, as_bytes, as_name

KEPT = 1_000_000
"""Rows; the oldest go first."""
PRUNED_AT_ONCE = 20_000
KEPT_BYTES = 256 << 20
"""Of the paths in all rows; here, too, the oldest go first."""
PRUNED_BYTES = 16 << 20
LONGEST_PATH_BYTES = 4095
"""Of a path that a system call takes (PATH_MAX). Deeper down, nobody could do anything with it."""

_INSERT = (
    "INSERT INTO changes (at_ns, event, path, directory, generation, old_path, old_directory,"
    " old_generation, kind, outside, up_to_bytes) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)


class Hint(NamedTuple):
    """What is known of a change besides what has changed."""

    event: str
    outside: bool
    at_ns: int
    is_from_within: bool = True
    """Of what was moved: it was in the index's reach before."""


class Site(NamedTuple):
    """Where an entry lies, or lay: its path, and the very directory that has, or had, it."""

    path: bytes
    """Relative to the store."""
    directory: int
    """Inode number."""
    generation: int
    is_deep: bool = False
    """The entry is somewhere below ``path``, and its own path is too long."""


class _Row(NamedTuple):
    hint: Hint
    event: str
    parent: int
    generation: int | None
    name: Name
    site: Site | None
    old: Site | None
    kind: str | None


class _Told(NamedTuple):
    event: str
    site: Site
    old: Site | None
    kind: str | None


class Noted(NamedTuple):
    """A row as it was written."""

    event: str
    path: bytes
    """Relative to the store."""
    outside: bool


def site_of(nodes: Nodes, parent: int, name: Name) -> Site | None:
    """Where an entry of a directory lies; None: it hangs on nothing. sqlite3.Error."""
    steps: list[tuple[bytes, Node]] = []
    met = set()
    raw, at = as_bytes(name), parent
    while at:
        above = nodes.directory(at)
        if above is None or at in met:
            return None
        met.add(at)
        steps.append((raw, above))
        raw, at = as_bytes(above.name), above.parent
    if not steps:
        root = nodes.entry(0, name)
        return None if root is None else Site(b"", root.ino, root.generation)
    return _as_far_as_paths_go(steps)


def _as_far_as_paths_go(steps: list[tuple[bytes, Node]]) -> Site:
    """``steps``: names, and the directories that they lie in, from the lowest one up."""
    parts: list[bytes] = []
    size_bytes = -1
    lies_in = steps[-1][1]
    is_deep = False
    for raw, above in reversed(steps):
        size_bytes += 1 + len(raw)
        if size_bytes > LONGEST_PATH_BYTES:
            is_deep = True
            break
        parts.append(raw)
        lies_in = above
    return Site(b"/".join(parts), lies_in.ino, lies_in.generation, is_deep)


class Journal:
    """Rows of one transaction, written at its end: paths are what they are then."""

    def __init__(
        self, connection: sqlite3.Connection, kept: int = KEPT, kept_bytes: int = KEPT_BYTES
    ) -> None:
        self._connection = connection
        self._kept = kept
        self._kept_bytes = kept_bytes
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
        old: Site | None = None,
    ) -> None:
        """An entry of a directory was made, changed, or moved here. sqlite3.Error."""
        found = self._connection.execute(
            "SELECT generation FROM nodes WHERE ino=? AND kind='directory'", (parent,)
        ).fetchone()
        generation = found[0] if found else None
        self._rows.append(_Row(hint, event, parent, generation, name, None, old, kind))

    def note_removed(self, hint: Hint, site: Site, kind: str) -> None:
        """What lay there is gone."""
        self._rows.append(_Row(hint, "removed", 0, None, "", site, None, kind))

    def write_lost(self, at_ns: int | None = None) -> None:
        """Changes went by that nobody has looked at."""
        now_ns = time.time_ns() if at_ns is None else at_ns
        row = (now_ns, "lost", "", None, None, None, None, None, None, 1, self._up_to_bytes())
        self._connection.execute(_INSERT, row)
        self.position = self._last()

    def write(self, nodes: Nodes) -> None:
        """Write the rows, and forget the oldest ones. sqlite3.Error."""
        rows, self._rows = self._rows, []
        self.written = []
        up_to_bytes = self._up_to_bytes() if rows else 0
        values = []
        deep: set[bytes] = set()
        for row in rows:
            for event, site, old, kind in _told(row, nodes):
                if site.is_deep and site.path in deep:
                    continue
                if site.is_deep:
                    deep.add(site.path)
                up_to_bytes += len(site.path) + (len(old.path) if old else 0)
                values.append(
                    (
                        row.hint.at_ns, event, as_name(site.path), site.directory, site.generation,
                        as_name(old.path) if old else None, old.directory if old else None,
                        old.generation if old else None, kind, int(row.hint.outside), up_to_bytes,
                    )
                )  # fmt: skip
                self.written.append(Noted(event, site.path, row.hint.outside))
        if not values:
            return
        self._connection.executemany(_INSERT, values)
        self.position = self._last()
        self._prune(up_to_bytes)

    def drop(self) -> None:
        """Forget what was noted."""
        self._rows = []

    def _last(self) -> int:
        found = self._connection.execute("SELECT seq FROM sqlite_sequence WHERE name='changes'")
        last: int = found.fetchone()[0]
        return last

    def _up_to_bytes(self) -> int:
        found = self._connection.execute(
            "SELECT up_to_bytes FROM changes ORDER BY position DESC LIMIT 1"
        ).fetchone()
        return found[0] if found else 0

    def _prune(self, up_to_bytes: int) -> None:
        oldest, oldest_bytes = self._connection.execute(
            "SELECT position, up_to_bytes FROM changes ORDER BY position LIMIT 1"
        ).fetchone()
        end = 0
        if self.position - oldest >= self._kept + PRUNED_AT_ONCE:
            # More at once than what was just added; the next ones do the rest.
            end = min(self.position - self._kept, oldest + 4 * PRUNED_AT_ONCE)
        if up_to_bytes - oldest_bytes >= self._kept_bytes + PRUNED_BYTES:
            [first] = self._connection.execute(
                "SELECT position FROM changes WHERE up_to_bytes > ? ORDER BY position LIMIT 1",
                (up_to_bytes - self._kept_bytes,),
            ).fetchone()
            end = max(end, first - 1)
        if end:
            self._connection.execute("DELETE FROM changes WHERE position <= ?", (end,))


def _told(row: _Row, nodes: Nodes) -> Iterator[_Told]:
    """What is said of a change. Nothing, where the directory isn't the one any more that it was in;

    of what is too deep to have a path, that a directory above it is another.
    """
    site = row.site
    if site is None:
        above = nodes.directory(row.parent) if row.parent else None
        if above is not None and above.generation != row.generation:
            return
        site = site_of(nodes, row.parent, row.name)
    if site is None:
        return
    old = row.old
    if row.event == "moved" and old is not None and (old.is_deep or site.is_deep):
        yield _plain("removed", old, row.kind)
        yield _plain("created", site, row.kind)
    elif site.is_deep:
        yield _plain(row.event, site, row.kind)
    elif row.event != "moved" or old is None or old.path != site.path:
        yield _Told(row.event, site, old, row.kind)


def _plain(event: str, site: Site, kind: str | None) -> _Told:
    if site.is_deep:
        return _Told("modified", site, None, "directory")
    return _Told(event, site, None, kind)
