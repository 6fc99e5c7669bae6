"""The index of one store, as its watcher keeps it: told where to look, or looking everywhere.

State-based: what is said to have changed is looked at on the store, now, and the rows are made as
it is. What was missed is found by looking everywhere (``reconcile``), which goes on in small steps,
with changes in between. Whatever happens to the file, nothing is raised: see ``Index``.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from modamafs.index import database
from modamafs.index.changes import Hint, Noted
from modamafs.index.database import Database, Trouble, trouble_of
from modamafs.index.entries import Differs, Entries, Place, Recorded, unique
from modamafs.index.nodes import Context
from modamafs.index.scan import Frame, Readers, seen
from modamafs.index.whereabouts import ELSEWHERE, Surroundings
from modamafs.store.backing import Store

log = logging.getLogger(__name__)

MOST_WAITING = 100_000
"""Changes that are kept while the index can't be written; more, and everything is looked at."""
MANY = 2000
"""Changes that are worth more memory."""
STEP_S = 0.1
STEP_ENTRIES = 15_000
"""After which a step of ``reconcile`` ends."""
SHORTEST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 60.0
MOST_TOUCHED = 500_000
STALE = "stale"
"""In ``info``: 1 while there may be changes that nobody has looked at."""

__all__ = ["Applied", "Change", "Differs", "Index", "Recorded"]


class Change(NamedTuple):
    """One thing that the watch saw; never believed, only a hint where to look."""

    directory: int
    """Inode number of the directory that the entry lies in; 0: not known."""
    name: bytes
    """b"" or b".": the inode ``ino`` itself."""
    ino: int
    """Inode number of what it is about; 0: not known."""
    event: str
    """created, modified, attributes, removed, moved."""
    outside: bool
    at_ns: int
    new_directory: int = 0
    """Of "moved": where to; 0: out of the volume, or unknown."""
    new_name: bytes = b""


class Applied(NamedTuple):
    """What was found."""

    recorded: list[Recorded]
    resealed: list[bytes]
    """Paths, relative to the store, of directories whose seal's record has changed."""
    position: int
    """Last position in ``changes``."""
    noted: list[Noted]
    """What was added there."""


class Index:
    """One thread calls everything but ``state``. Nothing is raised for what happens to the file.

    What is damaged is set aside, and made anew; where nothing can be written, changes are kept for
    a while, and it is tried again with growing pauses whenever something is called.
    """

    def __init__(self, store: Store, directory: Path) -> None:
        self._store = store
        self._volume = store.volume
        self._directory = directory
        self._database: Database | None = None
        self._entries: Entries | None = None
        self._surroundings: Surroundings | None = None
        self._waiting: list[Change] = []
        self._lost = False
        self._stale = True
        self._reconciling: _Pass | None = None
        self._trouble = ""
        self._pause_s = 0.0
        self._retry_s = 0.0
        self._position = 0
        self._files = 0
        self._epoch = ""
        self._complete = False
        self._opened = 0
        self._ready()

    @property
    def needs_reconcile(self) -> bool:
        """Whether something may have been missed, so that everything has to be looked at."""
        return self._stale or self._lost

    def close(self) -> None:
        """Close the file."""
        self._close()

    def state(self) -> dict[str, Any]:
        """What to tell people; never waits, and may be called by any thread."""
        reconciling = self._reconciling
        state = "ok"
        message = ""
        if self._trouble:
            state = "unavailable"
            again_s = max(0, round(self._retry_s - time.monotonic()))
            message = f"{self._trouble}; it is tried again in {again_s} s"
        elif not self._complete:
            state = "building"
            message = "not everything was looked at yet; what is found may be incomplete"
        elif reconciling is not None or self.needs_reconcile:
            state = "catching up"
            message = "changes may have been missed; everything is looked at again"
        entries = self._entries
        if not message and entries is not None and entries.problems:
            ino, error = next(iter(entries.problems.items()))
            message = (
                f"{len(entries.problems)} directories can't be read, among them the one with inode "
                f"number {ino}: {os.strerror(error)}; what is in them is as it last was"
            )
        found: dict[str, Any] = {
            "state": state,
            "message": message,
            "files": self._files,
            "position": self._position,
            "epoch": self._epoch,
        }
        if reconciling is not None:
            found["looked_at"] = reconciling.count
        return found

    # ---- opening, and trouble --------------------------------------------------------------------

    def _ready(self) -> bool:
        """Whether the file can be used; opened, or made anew, where it can't."""
        try:
            if self._database is not None and self._database.is_there():
                self._database.expect_room()
                return True
            if self._database is not None:
                log.warning("index-gone path=%s: a new one is made", self._database.path)
                self._close()
                self._waiting.clear()  # everything will be looked at
                self._set_aside_what_is_cut_off()
            elif time.monotonic() < self._retry_s:
                return False
            self._open()
        except Trouble as trouble:
            self._note_trouble(trouble)
            return False
        except sqlite3.Error as error:
            self._fail(error)
            return False
        return True

    def _set_aside_what_is_cut_off(self) -> None:
        path = self._directory / database.FILE
        if os.path.lexists(path):  # another file, or cut off
            database.set_aside(self._directory, database.DAMAGED)

    def _open(self) -> None:
        self._database = opened = Database(self._directory)
        self._entries = Entries(opened.connection, self._volume)
        self._surroundings = Surroundings(self._volume, self._entries.nodes)
        self._opened += 1
        self._epoch = opened.epoch
        self._complete = opened.is_complete
        found = opened.connection.execute("SELECT value FROM info WHERE key=?", (STALE,)).fetchone()
        self._stale = not self._complete or found is None or bool(found[0])
        with self._transaction():
            opened.set_info(
                "store", os.fsdecode(self._store.path).encode("utf-8", "replace").decode()
            )
            self._put_root()
        self._count()
        self._trouble, self._pause_s, self._retry_s = "", 0.0, 0.0

    def _put_root(self) -> None:
        """The root has a row, the only one with parent 0."""
        assert self._entries is not None
        nodes = self._entries.nodes
        found = seen("", self._volume.attributes(self._store.root_fd))
        row = nodes.entry(0, "")
        if row is not None and row.is_same_inode(found):
            return
        if row is not None:
            nodes.remove(row)
        nodes.add(0, [(found, Context(0, None, None, 0))])

    def _close(self) -> None:
        opened, self._database = self._database, None
        self._entries = self._surroundings = None
        if opened is not None:
            opened.close()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        """Several, one after the other, where much is written: see ``Writer.writing``."""
        assert self._database is not None and self._entries is not None
        with self._database.connection.writing():
            self._entries.begin()
            yield

    def _count(self) -> None:
        if self._entries is not None:
            self._position = self._entries.journal.position
            self._files = self._entries.nodes.count - 1

    def _close_if_torn(self) -> None:
        """Opened again, it is made anew."""
        if self._database is not None and self._database.connection.is_torn:
            self._close()
            self._complete = False
            self._stale = True

    def _fail(self, error: sqlite3.Error | Trouble) -> None:
        """The file can't be used just now."""
        trouble = error if isinstance(error, Trouble) else trouble_of(error)
        self._close_if_torn()
        self._close()
        if trouble.damaged:
            log.warning("index-damaged directory=%s error=%r", self._directory, error)
            self._waiting.clear()
            self._stale = True
            self._complete = False
            try:
                database.set_aside(self._directory, database.DAMAGED)
                if self._pause_s < LONGEST_PAUSE_S / 8:  # at once, unless it goes on like that
                    self._grow_pause()
                    self._retry_s = 0.0
                    pause_s = self._pause_s
                    self._open()
                    self._pause_s = pause_s
                    return
            except Trouble as other:
                trouble = other
            except sqlite3.Error as other:
                trouble = trouble_of(other)
        self._close()
        self._note_trouble(trouble)

    def _note_trouble(self, trouble: Trouble) -> None:
        self._close()
        self._grow_pause()
        self._retry_s = time.monotonic() + self._pause_s
        if trouble.message != self._trouble:
            log.warning("index-unavailable message=%s", trouble.message)
        self._trouble = trouble.message

    def _grow_pause(self) -> None:
        self._pause_s = min(LONGEST_PAUSE_S, max(SHORTEST_PAUSE_S, 2 * self._pause_s))

    def _lose(self) -> None:
        if self._waiting:
            log.warning("index-changes-lost count=%d", len(self._waiting))
        self._waiting.clear()
        self._lost = True

    # ---- changes ---------------------------------------------------------------------------------

    def apply(self, changes: Sequence[Change]) -> Applied:
        """Look at all that may have changed, and write it, in one transaction if it is not much.

        Where that is not possible now, it is kept for the next call (of ``apply([])``, too), or, if
        it is too much, ``needs_reconcile`` says so. When it returns, all of it is written, or none
        of it, or the index is made anew.
        """
        self._waiting.extend(changes)
        if not self._ready() or not (self._waiting or self._lost):
            if len(self._waiting) > MOST_WAITING:
                self._lose()
            return Applied([], [], self._position, [])
        try:
            assert self._database is not None
            large = len(self._waiting) > MANY
            with self._database.large() if large else contextlib.nullcontext():
                applied = self._apply()
        except (sqlite3.Error, Trouble) as error:
            self._fail(error)
            if len(self._waiting) > MOST_WAITING:
                self._lose()
            return Applied([], [], self._position, [])
        except OSError as error:  # descriptors have run out, and so on
            log.warning("index-not-written error=%s", error)
            self._close_if_torn()
            self._lose()
            return Applied([], [], self._position, [])
        self._waiting.clear()
        if self._complete:
            self._pause_s = 0.0
        return applied

    def _apply(self) -> Applied:
        opened, entries = self._database, self._entries
        assert opened is not None and entries is not None
        entries.later = None
        entries.is_quiet = False
        entries.differs = None
        with self._transaction():
            unknown = self._hint(entries)
            entries.settle()
            if self._look_at_unknown(entries, unknown):
                entries.settle()
            for _ in entries.describe():
                pass
            if not self._complete:
                entries.journal.drop()
            if self._lost:
                if self._complete:
                    entries.journal.write_lost()
                opened.set_info(STALE, 1)
            entries.finish()
        if self._lost:
            self._lost, self._stale = False, True
        if self._reconciling is not None:  # out of what is still to be read, maybe
            self._reconciling.pending += entries.moved
        self._count()
        return self._applied(entries)

    def _applied(self, entries: Entries) -> Applied:
        recorded, noted = unique(entries.recorded), entries.journal.written
        return Applied(recorded, entries.resealed, self._position, noted)

    def _hint(self, entries: Entries) -> list[tuple[int, bytes]]:
        """Have everything looked at that a change is about; what lies in unknown directories."""
        assert self._surroundings is not None
        unknown: list[tuple[int, bytes]] = []
        nodes = entries.nodes
        touched = self._reconciling
        for change in self._waiting:
            is_from_within = True
            if change.event == "moved":
                is_from_within = nodes.directory(change.directory) is not None
                is_to_within = nodes.directory(change.new_directory) is not None
                self._surroundings.moved(change.ino, is_across=is_from_within != is_to_within)
            hint = Hint(change.event, change.outside, change.at_ns, is_from_within)
            if change.ino:
                if change.event == "created":
                    self._surroundings.made(change.ino)
                entries.inode(change.ino, hint)
            if not change.directory and change.ino:
                for row in nodes.of_inode(change.ino):
                    if row.parent:
                        entries.entry(row.parent, _raw(row.name), hint)
            for directory, name in (
                (change.directory, change.name),
                (change.new_directory, change.new_name),
            ):
                if not directory:
                    continue
                if touched is not None:
                    touched.touch(directory, name, change.ino)
                if nodes.directory(directory) is not None:
                    entries.entry(directory, name, hint)
                else:
                    unknown.append((directory, name))
        return unknown

    def _look_at_unknown(self, entries: Entries, unknown: list[tuple[int, bytes]]) -> bool:
        """What lies in directories that were not in the index; True: there is something to do."""
        assert self._surroundings is not None
        is_any = False
        for directory, name in unknown:
            if entries.nodes.directory(directory) is not None:
                continue  # it is new, and was read just now
            where = self._surroundings.of(directory)
            if where.owner is None:
                continue
            if where.folder == ELSEWHERE:
                continue
            if where.folder is not None:
                entries.record(where.owner, where.folder, name)
                is_any = True
            elif self._reconciling is None:
                entries.whole(where.owner)  # nobody has told of it
                is_any = True
        return is_any

    # ---- everything ------------------------------------------------------------------------------

    def rebuild(
        self,
        progress: Callable[[dict[str, Any]], None],
        differs: Differs | None = None,
    ) -> Iterator[Applied]:
        """A new, empty index, with an epoch of its own; then like ``reconcile``."""
        self._close()
        try:
            database.remove(self._directory)
        except Trouble as trouble:
            self._note_trouble(trouble)
        self._retry_s = 0.0
        self._waiting.clear()
        self._stale = True
        yield from self.reconcile(progress, differs)

    def reconcile(
        self,
        progress: Callable[[dict[str, Any]], None],
        differs: Differs | None = None,
    ) -> Iterator[Applied]:
        """Bring all of it in line with the store, in steps of about 0.1 s, a transaction each.

        Between two steps ``apply`` has to be called with what happens meanwhile. ``differs`` is
        told of every entry that was not as the index had it, unless the index is new.
        ``needs_reconcile`` says afterwards whether that has come to its end.
        """
        if not self._ready():
            return
        try:
            yield from self._reconcile(progress, differs)
        except (sqlite3.Error, Trouble) as error:
            self._stale = True
            self._fail(error)
        except OSError as error:
            self._stale = True
            self._close_if_torn()
            log.warning("index-reconcile-failed error=%s", error)
        finally:
            self._reconciling = None
        progress(self.state())

    def _reconcile(
        self, progress: Callable[[dict[str, Any]], None], differs: Differs | None
    ) -> Iterator[Applied]:
        opened = self._database
        assert opened is not None and self._entries is not None
        generation = self._opened
        was_lost = self._lost or self._stale
        with self._transaction():
            opened.set_info(STALE, 1)
            if self._complete and was_lost:
                self._entries.journal.write_lost()
        self._count()
        self._lost, self._stale = False, True
        is_first = not self._complete
        self._reconciling = step = _Pass(self._entries, is_quiet=is_first, differs=differs)
        self._entries.written()
        self._entries.problems.clear()
        readers = Readers(self._store.root_fd)
        try:
            root = self._volume.attributes(self._store.root_fd)
            step.pending.append((root.ino, root.generation))
            for phase in (step.read(readers), step.sweep(), step.describe()):
                while True:
                    with self._transaction():
                        step.begin()
                        done = step.run(phase)
                        self._entries.finish()
                    self._count()
                    progress(self.state())
                    yield self._applied(self._entries)
                    if self._opened != generation or not self._ready():
                        self._stale = True
                        return
                    if self._opened != generation:
                        return
                    if done:
                        break
        finally:
            readers.close()
            if self._entries is not None:
                self._entries.later = None
        with self._transaction():
            opened.set_info(STALE, int(self._lost))
            opened.set_info("complete", 1)
            opened.set_info("reconciled_at_ns", time.time_ns())
        self._entries.written()
        self._complete, self._stale = True, False
        self._pause_s = 0.0


def _raw(name: str | bytes) -> bytes:
    return name.encode() if isinstance(name, str) else name


class _Pass:
    """One time of looking at everything."""

    def __init__(self, entries: Entries, *, is_quiet: bool, differs: Differs | None) -> None:
        self._entries = entries
        self._is_quiet = is_quiet
        self._differs = None if is_quiet else differs
        self.pending: list[tuple[int, int]] = []
        self.count = 0
        """Entries that were looked at."""
        self._met: set[int] = set()
        self._touched_entries: set[tuple[int, bytes]] = set()
        self._touched_inodes: set[int] = set()
        self._is_all_touched = False
        self._undescribed: set[int] = set()
        self._is_reading = True
        self._ended_s = 0.0

    # ---- what changes meanwhile ------------------------------------------------------------------

    def touch(self, directory: int, name: bytes, ino: int) -> None:
        """What was read of an entry, and not written yet, may be out of date."""
        if len(self._touched_entries) > MOST_TOUCHED:
            self._is_all_touched = True
            return
        self._touched_entries.add((directory, name))
        self._touched_inodes.update((directory, ino))

    def _is_touched(self, place: Place, ino: int) -> bool:
        return (
            self._is_all_touched
            or ino in self._touched_inodes
            or (place[0], _raw(place[1])) in self._touched_entries
        )

    # ---- steps -----------------------------------------------------------------------------------

    def begin(self) -> None:
        """Of a step's transaction."""
        entries = self._entries
        entries.later = self.pending if self._is_reading else None
        entries.is_quiet = self._is_quiet
        entries.differs = self._differs
        entries.begin()
        self._ended_s = time.monotonic() + STEP_S

    def run(self, phase: Iterator[int]) -> bool:
        """Some of a phase; True: all that was left."""
        so_far = 0
        for count in phase:
            so_far += count
            self.count += count
            if so_far >= STEP_ENTRIES or time.monotonic() >= self._ended_s:
                return False
        return True

    def read(self, readers: Readers) -> Iterator[int]:
        """Every directory; the number of entries that were looked at in each step."""
        entries = self._entries
        while True:
            while self.pending and readers.has_room:
                ino, generation = self.pending.pop()
                if ino not in self._met or ino in entries.anew:
                    self._met.add(ino)
                    entries.anew.discard(ino)
                    readers.ask(ino, generation)
            if readers.is_idle:
                self._is_reading = False
                entries.later = None
                return
            frame: Frame = readers.next()
            is_any = self._touched_entries or self._is_all_touched
            entries.frame(frame, self._is_touched if is_any else None)
            entries.settle()
            if frame.is_last:
                entries.unread.discard(frame.ino)
            self._undescribed |= entries.undescribed
            yield max(1, len(frame.entries))

    def sweep(self) -> Iterator[int]:
        """Rows of directories that were not met."""
        parent: int | None = 0
        while parent is not None:
            parent = self._entries.nodes.next_parent(parent)
            if parent is not None and parent not in self._met:
                self._entries.sweep(parent)
                self._entries.settle()
                self._undescribed |= self._entries.undescribed
            yield 1

    def describe(self) -> Iterator[int]:
        """Records of projects, sessions and files; all names are known by now."""
        descriptions = self._entries.descriptions
        directory = descriptions.next_directory(-1)
        while directory is not None:
            self._undescribed.add(directory)
            directory = descriptions.next_directory(directory)
            yield 0
        for one in sorted(self._undescribed):
            descriptions.refresh_own(one)
            for _ in descriptions.refresh_metadata(one):
                yield 1
            for _ in descriptions.resolve_all(one):
                yield 1
            yield 1
