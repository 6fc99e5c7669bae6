"""The journal of changes from a position on, as far as the caller may see it.

A position is ``EPOCH:NUMBER``. It holds as long as the index is the same one and has not forgotten
so much; after that, whoever follows is told that something was lost, and has to look by himself.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from modamafs.doors import Door, acl_of, hides_entry
from modamafs.errors import InvalidRequest
from modamafs.index.database import open_reader
from modamafs.index.folders import NONE_LEFT
from modamafs.index.nodes import DEPTH_OF_PROJECTS
from modamafs.index.scan import as_bytes, open_directory
from modamafs.model import Caller
from modamafs.policy import access
from modamafs.store.backing import PATH_FLAGS, Store

PAGE_LIMIT = 1000
PAGE_BYTES = 1 << 20
"""Of paths, after which a page ends."""
PAGE_S = 2.0
"""After which a page ends, too: whether somebody may know of a path takes asking the store."""


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
    known any more). A page has fewer changes than there are, or none, where their paths are long,
    or it takes long to tell whether the caller may know of them; its position is past one at least.
    InvalidRequest (EINVAL), NotIndexed (ENOENT).
    """
    deadline_s = time.monotonic() + PAGE_S
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
        sight = Sight(store, caller)
        changes = []
        left_bytes = PAGE_BYTES
        rows = connection.execute(
            "SELECT position, at_ns, event, path, directory, generation, old_path, old_directory,"
            " old_generation, kind, outside FROM changes"
            " WHERE position > ? ORDER BY position LIMIT ?",
            (number, limit),
        )
        for number, *row in rows:
            change = _Change._make(row)
            told = _seen(change, sight, within, shows)
            if told is not None:
                changes.append({"position": f"{epoch}:{number}", **told})
                left_bytes -= len(as_bytes(change.path)) + len(as_bytes(change.old_path or b""))
            if left_bytes <= 0 or time.monotonic() >= deadline_s:
                break
    return {"changes": changes, "position": f"{epoch}:{number}", "lost": False}


class _Change(NamedTuple):
    """A row of ``changes``, but its position."""

    at_ns: int
    event: str
    path: str | bytes
    directory: int | None
    generation: int | None
    old_path: str | bytes | None
    old_directory: int | None
    old_generation: int | None
    kind: str | None
    outside: int


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
    change: _Change, sight: Sight, within: bytes, shows: Callable[[bytes], bool] | None
) -> dict[str, Any] | None:
    """A change as the caller may know it; None: not at all."""

    def is_seen(one: bytes, directory: int | None, generation: int | None) -> bool:
        is_inside = not within or one == within or one.startswith(within + b"/")
        return (
            is_inside
            and (shows is None or shows(one))
            and sight.shows(one, (directory, generation))
        )

    event = change.event
    new = as_bytes(change.path)
    old = None if change.old_path is None else as_bytes(change.old_path)
    is_new_seen = event == "lost" or is_seen(new, change.directory, change.generation)
    is_old_seen = old is not None and is_seen(old, change.old_directory, change.old_generation)
    if event == "moved" and not is_new_seen and is_old_seen and old is not None:
        event, new, is_old_seen = "removed", old, False
    elif not is_new_seen:
        return None
    elif event == "moved" and not is_old_seen:
        event = "created"
    at = datetime.fromtimestamp(change.at_ns // 1_000_000_000, UTC)
    return {
        "at": at.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "event": event,
        "path": os.fsdecode(new),
        "old_path": os.fsdecode(old) if is_old_seen and old is not None else None,
        "kind": change.kind,
        "outside": bool(change.outside),
    }


class _Folder(NamedTuple):
    """A directory that a path leads to."""

    ino: int
    generation: int
    may_enter: bool
    may_list: bool


class Sight:
    """Whether a caller may know of a path: of what is listed in directories that let him in.

    A path counts by the directory that it lay in, as long as it leads there: what has got the name
    of that directory since does not let anybody know what lay in the other one. Where it is gone,
    or elsewhere, only root is told.
    """

    def __init__(self, store: Store, caller: Caller) -> None:
        self._store = store
        self._caller = caller
        self._root: _Folder | None = None
        self._met: dict[tuple[int, bytes], _Folder | None] = {}
        """By the directory above and the name; None: no directory, or none that can be had."""

    def shows(self, path: bytes, lay_in: tuple[int | None, int | None]) -> bool:
        """``path``: relative to the store; ``lay_in``: inode number and generation of the directory
        that it was in. OSError: there are no descriptors left.
        """
        if self._caller.uid == 0:
            return True
        above = self._folder(os.path.dirname(path))
        return (
            above is not None
            and above.may_list
            and (above.ino, above.generation) == lay_in
            and not self._is_hidden(path)
        )

    def _folder(self, path: bytes) -> _Folder | None:
        """Where a path leads, if the caller may go there."""
        if self._root is None:
            self._root = self._look(self._store.root_fd)
        folder, fd = self._root, -1
        try:
            for part in filter(None, path.split(b"/")):
                if folder is None or not folder.may_enter:
                    return None
                place = folder.ino, part
                if fd < 0 and place in self._met:
                    folder = self._met[place]
                    continue
                if fd < 0:
                    fd = self._open(folder)
                above_fd, fd = fd, self._open_in(fd, part)
                if above_fd >= 0:
                    os.close(above_fd)
                folder = self._met[place] = self._look(fd) if fd >= 0 else None
        finally:
            if fd >= 0:
                os.close(fd)
        return folder

    def _open(self, folder: _Folder) -> int:
        """A descriptor of a directory that was met; -1: it is no more."""
        if folder is self._root:
            return os.dup(self._store.root_fd)
        try:
            return open_directory(self._store.volume, folder.ino, folder.generation, PATH_FLAGS)
        except OSError as error:
            if error.errno in NONE_LEFT:
                raise
            return -1

    @staticmethod
    def _open_in(above_fd: int, name: bytes) -> int:
        """A descriptor of a directory in another one; -1: there is none."""
        if above_fd < 0:
            return -1
        try:
            return os.open(name, PATH_FLAGS, dir_fd=above_fd)
        except OSError as error:
            if error.errno in NONE_LEFT:
                raise
            return -1

    def _look(self, fd: int) -> _Folder | None:
        try:
            found = self._store.volume.attributes(fd)
        except OSError:
            return None
        if found.dev != self._store.volume.dev:
            return None
        door = Door(found.mode & 0o7777, found.uid, found.gid, acl_of(fd))
        return _Folder(
            found.ino,
            found.generation,
            door.lets(access.SEARCH, self._caller),
            door.lets(access.READ | access.SEARCH, self._caller),
        )

    def _is_hidden(self, path: bytes) -> bool:
        """Whether it is a private project of others, or was a directory where projects are."""
        if path.count(b"/") != DEPTH_OF_PROJECTS - 1:
            return False
        try:
            return hides_entry(self._store.root_fd, path, self._caller)
        except NotADirectoryError:
            return False
        except OSError as error:
            if error.errno in NONE_LEFT:
                raise
            return True
