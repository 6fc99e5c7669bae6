"""The rows of what lies on the store: read, added, moved, removed; names' words with them.

Nothing in here looks at the store, begins a transaction or ends one. Every method may raise
sqlite3.Error.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from modamafs.index.scan import Name, Seen, as_bytes

COLUMNS = (
    "id, parent, name, ino, generation, kind, mode, uid, gid, nlink, size_bytes, mtime_ns,"
    " ctime_ns, btime_ns, project, session, sealed"
)
_SELECT = f"SELECT {COLUMNS} FROM nodes "
_INSERT = f"INSERT INTO nodes ({COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)"
_UPDATE = (
    "UPDATE nodes SET name=?, ino=?, generation=?, kind=?, mode=?, uid=?, gid=?, nlink=?,"
    " size_bytes=?, mtime_ns=?, ctime_ns=?, btime_ns=? WHERE id=?"
)
_NAME = "INSERT INTO names (rowid, name) VALUES (?, ?)"
_UNNAME = "INSERT INTO names (names, rowid, name) VALUES ('delete', ?, ?)"
DEPTH_OF_PROJECTS = 2
DEPTH_OF_SESSIONS = 3


class Context(NamedTuple):
    """What holds for everything that lies in a directory."""

    depth: int
    """Of the directory: 0 the root, 1 an area, 2 a project, 3 a session, 4 whatever is below."""
    project: int | None
    session: int | None
    sealed: int

    def inside(self, ino: int, kind: str, *, sealed: bool) -> Context:
        """The columns of an entry; of a directory, what holds in it."""
        depth = min(self.depth + 1, DEPTH_OF_SESSIONS + 1)
        is_directory = kind == "directory"
        return Context(
            depth,
            ino if is_directory and depth == DEPTH_OF_PROJECTS else self.project,
            ino if is_directory and depth == DEPTH_OF_SESSIONS else self.session,
            1 if self.sealed or sealed else 0,
        )


class Node(NamedTuple):
    """A row of ``nodes``."""

    id: int
    parent: int
    name: Name
    ino: int
    generation: int
    kind: str
    mode: int
    uid: int
    gid: int
    nlink: int
    size_bytes: int
    mtime_ns: int
    ctime_ns: int
    btime_ns: int
    project: int | None
    session: int | None
    sealed: int

    @property
    def seen(self) -> Seen:
        """What was seen of it."""
        return Seen._make(self[2:14])

    @property
    def is_directory(self) -> bool:
        """Whether entries may hang on it."""
        return self.kind == "directory"

    @property
    def belongs(self) -> tuple[int | None, int | None, int]:
        """Project, session, sealed."""
        return self[14:]

    @property
    def context(self) -> Context:
        """Of a directory: what holds in it."""
        if self.parent == 0:
            depth = 0
        elif self.session is not None:
            depth = DEPTH_OF_SESSIONS + (self.session != self.ino)
        else:
            depth = 1 if self.project is None else DEPTH_OF_PROJECTS
        return Context(depth, self.project, self.session, self.sealed)

    def is_same_inode(self, found: Seen) -> bool:
        """Whether it is the very inode that was seen."""
        return (
            self.ino == found.ino
            and self.generation == found.generation
            and self.kind == found.kind
        )


class Nodes:
    """See above. Remembers what it has looked up until ``forget``."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        highest = connection.execute("SELECT max(id) FROM nodes").fetchone()[0]
        self._last_id: int = highest or 0
        self.count: int = connection.execute("SELECT count(*) FROM nodes").fetchone()[0]
        """Rows, the root's among them; wrong after a rollback."""
        self._directories: dict[int, Node | None] = {}

    def forget(self) -> None:
        """Rows may have changed by other ways than through this object, or were taken back."""
        self._directories.clear()

    # ---- reading ---------------------------------------------------------------------------------

    def _rows(self, where: str, *values: object) -> list[Node]:
        return list(map(Node._make, self._connection.execute(_SELECT + where, values)))

    def entry(self, parent: int, name: Name) -> Node | None:
        """The row of an entry."""
        rows = self._rows("WHERE parent=? AND name=?", parent, name)
        return rows[0] if rows else None

    def of_inode(self, ino: int) -> list[Node]:
        """The rows of an inode, one for each name."""
        return self._rows("WHERE ino=?", ino)

    def entries(self, parent: int) -> dict[Name, Node]:
        """All rows of a directory."""
        return {row.name: row for row in self._rows("WHERE parent=?", parent)}

    def each_entry(self, parent: int) -> Iterator[tuple[int, Name]]:
        """Id and name of all rows of a directory, which may be many; nothing else meanwhile."""
        yield from self._connection.execute("SELECT id, name FROM nodes WHERE parent=?", (parent,))

    def named(self, parent: int, names: list[Name]) -> dict[Name, Node]:
        """Some rows of a directory."""
        rows: dict[Name, Node] = {}
        for at in range(0, len(names), 500):
            part = names[at : at + 500]
            marks = ",".join("?" * len(part))
            for row in self._rows(f"WHERE parent=? AND name IN ({marks})", parent, *part):
                rows[row.name] = row
        return rows

    def directory(self, ino: int) -> Node | None:
        """The row of a directory; it has one at most."""
        try:
            return self._directories[ino]
        except KeyError:
            rows = self._rows("WHERE ino=? AND kind='directory'", ino)
            found = rows[0] if rows else None
            if len(self._directories) > 100_000:
                self._directories.clear()
            self._directories[ino] = found
            return found

    def has(self, row_id: int) -> bool:
        """Whether there is such a row."""
        found = self._connection.execute("SELECT 1 FROM nodes WHERE id=?", (row_id,))
        return found.fetchone() is not None

    def directories_in(self, parent: int) -> list[Node]:
        """The rows of directories in a directory."""
        return self._rows("WHERE parent=? AND kind='directory'", parent)

    def next_parent(self, after: int) -> int | None:
        """The lowest inode number above one that any row has as parent."""
        found = self._connection.execute("SELECT min(parent) FROM nodes WHERE parent>?", (after,))
        lowest: int | None = found.fetchone()[0]
        return lowest

    def path(self, node: Node) -> bytes | None:
        """The path of a row, relative to the store; None: it hangs on nothing."""
        return self.path_of(node.parent, node.name)

    def path_of(self, parent: int, name: Name) -> bytes | None:
        """The path that an entry of a directory has, or would have."""
        parts = [as_bytes(name)]
        met = set()
        while parent:
            above = self.directory(parent)
            if above is None or parent in met:
                return None
            met.add(parent)
            if above.parent:
                parts.append(as_bytes(above.name))
            parent = above.parent
        return b"/".join(reversed(parts))

    def path_in(self, above: int, parent: int, name: Name) -> bytes | None:
        """The path of an entry relative to a directory above it; None: that is not above it."""
        parts = [as_bytes(name)]
        met = set()
        while parent != above:
            found = self.directory(parent)
            if found is None or parent in met or not found.parent:
                return None
            met.add(parent)
            parts.append(as_bytes(found.name))
            parent = found.parent
        return b"/".join(reversed(parts))

    def below(self, ino: int) -> Iterator[Node]:
        """Everything below a directory, a directory before what is in it."""
        pending = [ino]
        met = {ino}
        while pending:
            for row in self._rows("WHERE parent=?", pending.pop()):
                yield row
                if row.is_directory and row.ino not in met:
                    met.add(row.ino)
                    pending.append(row.ino)

    # ---- changing --------------------------------------------------------------------------------

    def add(self, parent: int, entries: Iterable[tuple[Seen, Context]]) -> None:
        """Rows for entries that have none."""
        rows = []
        for found, context in entries:
            self._last_id += 1
            rows.append((self._last_id, parent, *found, *context[1:]))
            if found.kind == "directory":
                self._directories.pop(found.ino, None)
        self._connection.executemany(_INSERT, rows)
        self._connection.executemany(_NAME, [(row[0], row[2]) for row in rows])
        self.count += len(rows)

    def update(self, node: Node, found: Seen) -> None:
        """The same name is another inode, or the same one with other attributes."""
        self._connection.execute(_UPDATE, (*found, node.id))
        self._directories.pop(node.ino, None)
        self._directories.pop(found.ino, None)

    def belong(self, node: Node, context: Context) -> None:
        """Another project, session, or sealed."""
        self._connection.execute(
            "UPDATE nodes SET project=?, session=?, sealed=? WHERE id=?", (*context[1:], node.id)
        )
        self._directories.pop(node.ino, None)

    def files_belong(self, parent: int, context: Context) -> None:
        """The same for everything in a directory but directories."""
        project, session, sealed = context[1:]
        self._connection.execute(
            "UPDATE nodes SET project=?, session=?, sealed=? WHERE parent=? AND kind!='directory'"
            " AND (project IS NOT ? OR session IS NOT ? OR sealed!=?)",
            (project, session, sealed, parent, project, session, sealed),
        )

    def move(self, node: Node, parent: int, name: Name) -> None:
        """A row gets another place, where there is none."""
        self._connection.execute(
            "UPDATE nodes SET parent=?, name=? WHERE id=?", (parent, name, node.id)
        )
        if name != node.name:
            self._connection.execute(_UNNAME, (node.id, node.name))
            self._connection.execute(_NAME, (node.id, name))
        self._directories.pop(node.ino, None)

    def remove(self, node: Node) -> None:
        """A row on which nothing hangs, if it is still there."""
        self._directories.pop(node.ino, None)
        if self._connection.execute("DELETE FROM nodes WHERE id=?", (node.id,)).rowcount:
            self._connection.execute(_UNNAME, (node.id, node.name))
            self.count -= 1

    def clear(self, parent: int) -> list[Node]:
        """All rows of a directory; those of directories, on which more hangs."""
        directories = self.directories_in(parent)
        self._connection.execute(
            "INSERT INTO names (names, rowid, name) SELECT 'delete', id, name FROM nodes"
            " WHERE parent=?",
            (parent,),
        )
        gone = self._connection.execute("DELETE FROM nodes WHERE parent=?", (parent,)).rowcount
        self.count -= gone
        for node in directories:
            self._directories.pop(node.ino, None)
        return directories
