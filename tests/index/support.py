"""What the tests of the index have in common."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from pathlib import Path
from typing import Any

from modamafs.index.check import check
from modamafs.index.database import open_reader
from modamafs.index.reconcile import Applied, Change, Index
from modamafs.store.backing import Store


def reconcile(index: Index) -> list[Applied]:
    """Everything, to its end."""
    done = list(index.reconcile(lambda _: None))
    assert not index.needs_reconcile, index.state()
    return done


def differences(store: Store, directory: Path) -> list[str]:
    """What ``modamafs index check`` would say, of a store on which nothing happens just now."""
    return list(check(store, directory, patience_s=0))


def whole(directory: Path) -> None:
    """The file is in order, by SQLite's own means."""
    with contextlib.closing(sqlite3.connect(directory / "index.db")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        if not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            return  # killed before there was anything in it
        for table in ("names", "words"):
            connection.execute(f"INSERT INTO {table} ({table}, rank) VALUES ('integrity-check', 1)")
        orphans = connection.execute(
            "SELECT count(*) FROM nodes WHERE parent != 0 AND parent NOT IN"
            " (SELECT ino FROM nodes WHERE kind='directory')"
        ).fetchone()[0]
        assert orphans == 0


class Scene:
    """A store with an index that is right, things that are done to it, and what is said of them."""

    def __init__(self, base: Path) -> None:
        self.root = base / "store"
        self.directory = base / "index"
        self.root.mkdir()
        self.outside = base / "outside"
        self.outside.mkdir()
        self.store = Store(self.root)
        self.index = Index(self.store, self.directory)
        self.changes: list[Change] = []
        reconcile(self.index)

    def close(self) -> None:
        self.index.close()
        self.store.close()

    def say(self, event: str, path: Path, ino: int, new: Path | None = None) -> None:
        """What a watch would say."""
        self.changes.append(
            Change(
                path.parent.lstat().st_ino,
                os.fsencode(path.name),
                ino,
                event,
                False,
                len(self.changes) + 1,
                new.parent.lstat().st_ino if new else 0,
                os.fsencode(new.name) if new else b"",
            )
        )

    def write(self, path: str | Path, data: bytes = b"1") -> Path:
        """A file, with directories where they are missing."""
        path = self.root / path
        self.mkdir(path.parent)
        event = "modified" if path.exists() else "created"
        path.write_bytes(data)
        self.say(event, path, path.lstat().st_ino)
        return path

    def mkdir(self, path: str | Path) -> Path:
        """A directory, with those above."""
        path = self.root / path
        if not path.exists():
            self.mkdir(path.parent)
            path.mkdir()
            self.say("created", path, path.lstat().st_ino)
        return path

    def move(self, path: Path, new: Path) -> Path:
        """Also out of the store, and into it."""
        ino = path.lstat().st_ino
        path.rename(new)
        self.say("moved", path, ino, new)
        return new

    def remove(self, path: Path) -> None:
        """With all that is below."""
        if path.is_dir() and not path.is_symlink():
            for entry in path.iterdir():
                self.remove(entry)
        ino = path.lstat().st_ino
        (path.rmdir if path.is_dir() and not path.is_symlink() else path.unlink)()
        self.say("removed", path, ino)

    def record(self, path: str | Path, record: object) -> Path:
        """A JSON file."""
        data = record if isinstance(record, bytes) else json.dumps(record).encode()
        return self.write(path, data)

    def apply(self, *, as_is: bool = False) -> Applied:
        """Tell the index, and see that it is right."""
        changes, self.changes = self.changes, []
        applied = self.index.apply(changes)
        if not as_is:
            assert self.differences() == []
        return applied

    def differences(self) -> list[str]:
        return differences(self.store, self.directory)

    def rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """What the file says."""
        with contextlib.closing(open_reader(self.directory)) as connection:
            return connection.execute(query, values).fetchall()

    def journal(self) -> list[tuple[Any, ...]]:
        """Event, path, old path of all changes."""
        return self.rows("SELECT event, path, old_path FROM changes ORDER BY position")
