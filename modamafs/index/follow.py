"""The journal of changes from a position on, as far as the caller may see it.

A position is ``EPOCH:NUMBER``. It holds as long as the index is the same one and has not forgotten
so much; after that, whoever follows is told that something was lost, and has to look by himself.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from modamafs.doors import door_of, hides
from modamafs.errors import InvalidRequest
from modamafs.index.database import open_reader
from modamafs.index.nodes import DEPTH_OF_PROJECTS
from modamafs.index.scan import as_bytes
from modamafs.model import Caller
from modamafs.policy import access
from modamafs.store.backing import Store

PAGE_LIMIT = 1000
_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def follow_command(
    store: Store,
    index_directory: Path,
    arguments: Mapping[str, Any],
    caller: Caller,
    *,
    shows: Callable[[bytes], bool] | None = None,
) -> dict[str, Any]:
    """What the control socket's ``changes`` answers. Blocking.

    ``arguments``: since (a position; without it, from now on), limit (1000), path ("": all), wait_s
    (for the server). Returns changes, position (where to go on), and lost (some before it are not
    known any more). InvalidRequest (EINVAL), NotIndexed (ENOENT).
    """
    since, limit, within = _checked(arguments)
    with contextlib.closing(open_reader(index_directory)) as connection:
        connection.execute("BEGIN")
        epoch, oldest, newest = _range(connection)
        if since is None:
            return {"changes": [], "position": f"{epoch}:{newest}", "lost": False}
        known, number = since
        lost = known != epoch or number > newest or number < oldest - 1
        if lost:
            return {"changes": [], "position": f"{epoch}:{newest}", "lost": True}
        rows = connection.execute(
            "SELECT position, at_ns, event, path, old_path, kind, outside FROM changes"
            " WHERE position > ? ORDER BY position LIMIT ?",
            (number, limit),
        ).fetchall()
    sight = Sight(store, caller)
    changes = []
    for row in rows:
        number = row[0]
        change = _seen(row, sight, within, shows)
        if change is not None:
            changes.append({"position": f"{epoch}:{number}", **change})
    return {"changes": changes, "position": f"{epoch}:{number}", "lost": False}


def _checked(arguments: Mapping[str, Any]) -> tuple[tuple[str, int] | None, int, bytes]:
    unknown = sorted(arguments.keys() - {"since", "limit", "path", "wait_s"})
    if unknown:
        raise InvalidRequest(
            f"changes takes no {unknown[0]!r}; it takes since, limit, path, wait_s"
        )
    since, limit, path = (arguments.get(key) for key in ("since", "limit", "path"))
    position = None
    if since is not None:
        epoch, colon, number = since.partition(":") if isinstance(since, str) else ("", "", "")
        if not (colon and epoch and number.isascii() and number.isdigit() and len(number) < 19):
            raise InvalidRequest(
                "a position is what an earlier answer has called so, as in 1f0c…:42: "
                "without one, changes from now on are told"
            )
        position = epoch, int(number)
    limit = PAGE_LIMIT if limit is None else limit
    if type(limit) is not int or not 1 <= limit <= PAGE_LIMIT:
        raise InvalidRequest(f"changes: limit is a number from 1 to {PAGE_LIMIT}")
    path = "" if path is None else path
    if not isinstance(path, str) or "\0" in path:
        raise InvalidRequest("changes: the path is a text, relative to the store")
    try:
        return position, limit, path.encode("utf-8", "surrogateescape").strip(b"/")
    except UnicodeEncodeError:
        raise InvalidRequest("changes: the path is no text") from None


def _range(connection: sqlite3.Connection) -> tuple[str, int, int]:
    """The index's epoch, the oldest position that it knows, and the newest that there was."""
    [epoch] = connection.execute("SELECT value FROM info WHERE key = 'epoch'").fetchone()
    [oldest] = connection.execute("SELECT min(position) FROM changes").fetchone()
    found = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'changes'").fetchone()
    newest = found[0] if found else 0
    return epoch, newest + 1 if oldest is None else oldest, newest


def _seen(
    row: tuple[Any, ...], sight: Sight, within: bytes, shows: Callable[[bytes], bool] | None
) -> dict[str, Any] | None:
    """A change as the caller may know it; None: not at all."""
    _, at_ns, event, path, old_path, kind, outside = row

    def is_seen(one: bytes) -> bool:
        is_inside = not within or one == within or one.startswith(within + b"/")
        return is_inside and (shows is None or shows(one)) and sight.shows(one)

    new = as_bytes(path)
    old = None if old_path is None else as_bytes(old_path)
    is_new_seen = event == "lost" or is_seen(new)
    is_old_seen = old is not None and is_seen(old)
    if event == "moved" and not is_new_seen and is_old_seen and old is not None:
        event, new, is_old_seen = "removed", old, False
    elif not is_new_seen:
        return None
    elif event == "moved" and not is_old_seen:
        event = "created"
    return {
        "at": datetime.fromtimestamp(at_ns // 1_000_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "event": event,
        "path": os.fsdecode(new),
        "old_path": os.fsdecode(old) if is_old_seen and old is not None else None,
        "kind": kind,
        "outside": bool(outside),
    }


class Sight:
    """Whether a caller may know of a path: of what is listed in directories that let him in.

    A path that is gone counts by the directory that it lay in; where that is gone, too, only root
    is told.
    """

    def __init__(self, store: Store, caller: Caller) -> None:
        self._store = store
        self._caller = caller
        self._lists: dict[bytes, bool] = {}

    def shows(self, path: bytes) -> bool:
        """``path``: relative to the store."""
        if self._caller.uid == 0:
            return True
        above = os.path.dirname(path)
        if above not in self._lists:
            self._lists[above] = self._may_list(above)
        return self._lists[above] and not self._is_hidden(path)

    def _may_list(self, directory: bytes) -> bool:
        fd = os.dup(self._store.root_fd)
        try:
            for part in filter(None, directory.split(b"/")):
                if not door_of(fd).lets(access.SEARCH, self._caller):
                    return False
                try:
                    below = os.open(part, _DIRECTORY, dir_fd=fd)
                except OSError:
                    return False
                os.close(fd)
                fd = below
            return door_of(fd).lets(access.READ | access.SEARCH, self._caller)
        finally:
            os.close(fd)

    def _is_hidden(self, path: bytes) -> bool:
        """Whether it is a private project of others, or was a directory where projects are."""
        if path.count(b"/") != DEPTH_OF_PROJECTS - 1:
            return False
        try:
            fd = os.open(path, _DIRECTORY, dir_fd=self._store.root_fd)
        except NotADirectoryError:
            return False
        except OSError:
            return True
        try:
            return hides(fd, self._caller)
        finally:
            os.close(fd)
