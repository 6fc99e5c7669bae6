"""An index of a directory that is there, made with plain SQL: for tests of what reads one."""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

from modamafs.index.database import VERSION
from modamafs.store.backing import Store

KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}


class Indexed:
    """An index, and the words about what is in it."""

    def __init__(self, store: Store, path: Path | str = ":memory:") -> None:
        self.store = store
        self.connection = sqlite3.connect(path, isolation_level=None)
        schema = resources.files("modamafs.index").joinpath("schema.sql").read_text()
        self.connection.executescript(schema)
        self.connection.execute(f"PRAGMA user_version = {VERSION}")
        self.look()

    def look(self) -> None:
        """Make the rows of all names anew."""
        self.connection.execute("BEGIN")
        self.connection.execute("DELETE FROM nodes")
        root = self.store.volume.attributes(self.store.root_fd)
        self._add(0, b"", root, None, None)
        pending: list[tuple[int, int, int, int | None, int | None]] = [
            (os.dup(self.store.root_fd), root.ino, 0, None, None)
        ]
        while pending:
            dir_fd, *place = pending.pop()
            try:
                pending += self._entries(dir_fd, *place)
            finally:
                os.close(dir_fd)
        self.connection.execute("INSERT INTO names (names) VALUES ('rebuild')")
        self.connection.execute("COMMIT")

    def _entries(
        self, dir_fd: int, ino: int, depth: int, project: int | None, session: int | None
    ) -> Iterator[tuple[int, int, int, int | None, int | None]]:
        """Add what is in a directory; gives the directories in it, open."""
        for text in sorted(os.listdir(dir_fd)):
            name = os.fsencode(text)
            found = self.store.volume.lookup(dir_fd, name)
            if name == b".modama" or found is None:
                continue
            is_directory = stat.S_ISDIR(found.mode)
            its_project = found.ino if is_directory and depth == 1 else project
            its_session = found.ino if is_directory and depth == 2 else session
            self._add(ino, name, found, its_project, its_session)
            if is_directory:
                fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=dir_fd)
                yield fd, found.ino, depth + 1, its_project, its_session

    def _add(
        self, parent: int, name: bytes, found: Any, project: int | None, session: int | None
    ) -> None:
        self.connection.execute(
            "INSERT INTO nodes (parent, name, ino, generation, kind, mode, uid, gid, nlink,"
            " size_bytes, mtime_ns, ctime_ns, btime_ns, project, session, sealed)"
            f" VALUES ({','.join('?' * 15)}, 0)",
            (
                parent, stored(name), found.ino, found.generation, KINDS[stat.S_IFMT(found.mode)],
                stat.S_IMODE(found.mode), found.uid, found.gid, found.nlink, found.size_bytes,
                found.mtime_ns, found.ctime_ns, found.btime_ns, project, session,
            ),
        )  # fmt: skip

    def ino(self, path: str) -> int:
        """The inode number of what lies there in the store."""
        return os.stat(path, dir_fd=self.store.root_fd, follow_symlinks=False).st_ino

    def project(self, path: str, **columns: object) -> None:
        """What a project's record says."""
        self._record("projects", path, columns)

    def session(self, path: str, **columns: object) -> None:
        """What a session's record says."""
        self._record("sessions", path, {"project": self.ino(os.path.dirname(path)), **columns})

    def _record(self, table: str, path: str, columns: dict[str, object]) -> None:
        columns = {"ino": self.ino(path), **columns}
        self.connection.execute(
            f"INSERT INTO {table} ({','.join(columns)}) VALUES ({','.join('?' * len(columns))})",
            tuple(columns.values()),
        )

    def note(self, path: str, text: str) -> None:
        """The words about an entry."""
        ino = self.ino(path)
        self.connection.execute("INSERT INTO notes VALUES (?, ?)", (ino, text))
        self.connection.execute("INSERT INTO words (rowid, text) VALUES (?, ?)", (ino, text))

    def value(self, path: str, key: str, value: float | str, unit: str | None = None) -> None:
        """A value of metadata."""
        number = None if isinstance(value, str) else value
        text = f"{value} {unit}" if unit else str(value)
        self.connection.execute(
            "INSERT INTO metadata VALUES (?, ?, ?, ?, ?)",
            (self.ino(path), key, number, text, unit),
        )

    def seal(self, path: str, hashes: dict[str, str], content_hash: str = "0" * 64) -> None:
        """What the record of a seal, and its manifest, say."""
        above, _, name = path.rpartition("/")
        parent = self.ino(above)
        self.connection.execute(
            "INSERT INTO seals (parent, name, state, content_hash) VALUES (?, ?, 'sealed', ?)",
            (parent, name, content_hash),
        )
        for where, digest in hashes.items():
            self.connection.execute(
                "INSERT INTO hashes VALUES (?, ?, ?, ?)", (parent, name, where, digest)
            )
        self.connection.execute(
            "WITH RECURSIVE below (ino) AS (SELECT ? UNION SELECT n.ino FROM nodes n JOIN below b"
            " ON n.parent = b.ino WHERE n.kind = 'directory')"
            " UPDATE nodes SET sealed = 1 WHERE parent IN below OR ino = ?",
            (self.ino(path), self.ino(path)),
        )


def stored(name: bytes) -> str | bytes:
    """A name as the index has it."""
    try:
        return name.decode()
    except UnicodeDecodeError:
        return name
