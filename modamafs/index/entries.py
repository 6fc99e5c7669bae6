"""Brings entries of directories in line with the store: looked at now, one transaction at a time.

Nothing that was said about a change is believed: it says where to look. So the order of changes,
and duplicates, don't matter. First everything is looked at that may have changed; what is gone is
put by, and what has appeared is matched with it, as it may only have moved; what then is left over
is removed.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from modamafs.extraction.wanted import is_wanted
from modamafs.index.changes import Hint, Journal, Site, site_of
from modamafs.index.described import Descriptions, Resealed
from modamafs.index.nodes import DEPTH_OF_PROJECTS, DEPTH_OF_SESSIONS, Context, Node, Nodes
from modamafs.index.scan import (
    Frame,
    Name,
    Seen,
    as_bytes,
    as_name,
    frames,
    look,
    open_directory,
    seen,
)
from modamafs.model import RECORDS, Attributes, is_own_name
from modamafs.store._volume import Volume
from modamafs.store.backing import PATH_FLAGS, path_of

GONE = (errno.ESTALE, errno.ENOENT)


class Recorded(NamedTuple):
    """A file that may hold metadata, for the extraction: seen new, changed or moved."""

    session: bytes
    """Path relative to the store."""
    path: bytes
    """Relative to the session."""


Place = tuple[int, Name]
"""Inode number of a directory, and a name in it."""
Differs = Callable[[int, bytes, int], None]
"""Told of an entry that was not as the index had it: directory, name, inode number (0: gone)."""


class Entries:
    """The index's idea of what lies on the store, and how it is put right."""

    def __init__(self, connection: sqlite3.Connection, volume: Volume) -> None:
        """sqlite3.Error."""
        self._volume = volume
        self.nodes = Nodes(connection)
        self.descriptions = Descriptions(connection, volume, self.nodes)
        self.journal = Journal(connection)
        self.is_quiet = False
        """Nothing is noted: everything is new."""
        self.differs: Differs | None = None
        self.later: list[tuple[int, int]] | None = None
        """Where directories go that are to be read (inode number, generation); None: at once."""
        self.recorded: list[Recorded] = []
        self.resealed: list[bytes] = []
        self.problems: dict[int, int] = {}
        """errno of why directories can't be read, by inode number."""
        self.unread: set[int] = set()
        """Directories that are new, and were put into ``later``."""
        self.anew: set[int] = set()
        """Those of ``later`` that have no entries, though they may have been read before."""
        self.moved: list[tuple[int, int]] = []
        """Directories that were moved with what is known of them, in this transaction."""
        self._met: dict[int, set[Name]] = {}
        self._reset()

    def _reset(self) -> None:
        self._dirty: dict[Place, Hint] = {}
        self._inodes: dict[int, Hint] = {}
        self._appeared: list[tuple[int, Seen, Hint]] = []
        self._vanished: dict[int, tuple[Node, Hint, Site | None]] = {}
        self._replaced: dict[Place, Node] = {}
        self._to_read: list[tuple[int, int]] = []
        self._looked: set[Place] = set()
        self._sought: set[int] = set()
        self._seals: set[int] = set()
        self._own: set[int] = set()
        self._metadata: dict[int, set[bytes] | None] = {}
        self._renamed: set[tuple[int, bytes]] = set()
        self._rearranged: set[int] = set()
        self._new: set[int] = set()
        event = "modified" if self.later is None else "attributes"
        self._default = Hint(event, True, time.time_ns())

    def begin(self) -> None:
        """Of a transaction."""
        self.nodes.forget()
        self.descriptions.forget()
        self.journal.drop()
        self.recorded = []
        self.resealed = []
        self.moved = []
        self._reset()

    # ---- what is to be looked at -----------------------------------------------------------------

    def entry(self, directory: int, name: bytes, hint: Hint) -> None:
        """An entry of an indexed directory may be another."""
        if name == RECORDS:
            self.records(directory)
        elif _is_name(name) and not is_own_name(name):
            self._dirty[directory, as_name(name)] = hint
        self.inode(directory, hint)

    def inode(self, ino: int, hint: Hint) -> None:
        """The attributes of an inode may be others, under all of its names."""
        self._inodes.setdefault(ino, hint)

    def records(self, directory: int) -> None:
        """Any record of a directory may be another."""
        self._seals.add(directory)
        self._own.add(directory)
        self._metadata[directory] = None

    def whole(self, directory: int) -> None:
        """All of a directory is to be read."""
        node = self.nodes.directory(directory)
        if node is not None:
            self._to_read.append((node.ino, node.generation))

    def record(self, directory: int, folder: bytes, name: bytes) -> None:
        """One of them; ``folder``: b"", b"seals" or b"metadata"."""
        if folder == b"metadata":
            names = self._metadata.setdefault(directory, set())
            if names is not None:
                names.add(name)
        elif folder == b"seals":
            self._seals.add(directory)
        elif name in (b"seals", b"metadata"):
            self.records(directory)
        else:
            self._own.add(directory)

    # ---- doing it --------------------------------------------------------------------------------

    def settle(self) -> None:
        """Look at everything that may have changed, until nothing is left. sqlite3.Error."""
        while True:
            self._settle_entries()
            if self._seals:
                for directory in list(self._seals):
                    self._seals.discard(directory)
                    self._refresh_seals(directory)
                continue
            if not self._remove_vanished():
                break

    def _settle_entries(self) -> None:
        while self._dirty or self._appeared or self._to_read or self._inodes:
            while self._dirty:
                self._look_at_dirty()
            appeared, self._appeared = self._appeared, []
            for directory, found, hint in appeared:
                self._appear(directory, found, hint)
            if self._dirty or self._appeared:
                continue
            if self._to_read:
                ino, generation = self._to_read.pop()
                for frame in frames(self._volume, ino, generation):
                    self.frame(frame)
                continue
            inodes, self._inodes = self._inodes, {}
            for ino, hint in inodes.items():
                self._look_at_inode(ino, hint)

    def describe(self) -> Iterator[None]:
        """After that: read the records that may be others; in steps."""
        for directory in self._own:
            self.descriptions.refresh_own(directory)
        yield
        for session in self._rearranged:
            if self._metadata.get(session, ()) is not None:
                yield from self.descriptions.resolve_all(session)
        for session, path in self._renamed:
            if session not in self._rearranged:
                self.descriptions.resolve(session, path)
        for session, names in self._metadata.items():
            yield from self.descriptions.refresh_metadata(session, names)
            if names is None and session in self._rearranged:
                yield from self.descriptions.resolve_all(session)
        self._own, self._rearranged, self._renamed, self._metadata = set(), set(), set(), {}

    @property
    def undescribed(self) -> set[int]:
        """Directories whose records are to be read, taken out; for when all names are known."""
        found = self._own | self._metadata.keys() | self._rearranged
        found |= {session for session, _ in self._renamed}
        self._own, self._rearranged, self._renamed, self._metadata = set(), set(), set(), {}
        return found

    # ---- looking ---------------------------------------------------------------------------------

    def _look_at_dirty(self) -> None:
        dirty, self._dirty = self._dirty, {}
        by_directory: dict[int, list[tuple[Name, Hint]]] = {}
        for (directory, name), hint in dirty.items():
            by_directory.setdefault(directory, []).append((name, hint))
        for directory, names in by_directory.items():
            node = self.nodes.directory(directory)
            fd = None
            if node is not None:
                try:
                    fd = open_directory(self._volume, node.ino, node.generation, PATH_FLAGS)
                except OSError as error:
                    if error.errno not in GONE:
                        self._can_not_tell(directory, names, error)
                        continue
                    self._again(node)
            try:
                self._look_at_entries(directory, fd, names)
            finally:
                if fd is not None:
                    os.close(fd)

    def _look_at_entries(
        self, directory: int, fd: int | None, names: list[tuple[Name, Hint]]
    ) -> None:
        rows = self.nodes.named(directory, [name for name, _ in names])
        for name, hint in names:
            self._looked.add((directory, name))
            try:
                found = None if fd is None else look(self._volume, fd, as_bytes(name))
            except OSError as error:
                self._can_not_tell(directory, [(name, hint)], error)
                continue
            self._compare(directory, rows.get(name), found, hint)

    def _can_not_tell(self, directory: int, names: list[tuple[Name, Hint]], error: OSError) -> None:
        """The store gives errors: what is known stays as it is."""
        self.problems[directory] = error.errno or errno.EIO
        self._looked.update((directory, name) for name, _ in names)

    def _again(self, node: Node, hint: Hint | None = None) -> None:
        """Look at where a row says that it is, unless that was done."""
        if node.parent > 0 and (node.parent, node.name) not in self._looked:
            self._dirty.setdefault((node.parent, node.name), hint or self._default)
            self.inode(node.parent, hint or self._default)

    def _compare(self, directory: int, old: Node | None, found: Seen | None, hint: Hint) -> None:
        if old is not None and old.id in self._vanished:
            if found is None:
                return
            if old.is_same_inode(found):
                del self._vanished[old.id]  # there again
            else:
                self._park(old)
                self._appeared.append((directory, found, hint))
                return
        if old is None:
            if found is not None:
                self._appeared.append((directory, found, hint))
        elif found is None:
            self._vanish(old, hint)
        elif old.is_same_inode(found):
            self._same(old, found, hint)
        else:
            self._replace(old, found, hint)

    def _vanish(self, old: Node, hint: Hint) -> None:
        self._vanished[old.id] = (old, hint, site_of(self.nodes, old.parent, old.name))
        if old.nlink > 1 and not old.is_directory:
            self.inode(old.ino, hint)

    def _replace(self, old: Node, found: Seen, hint: Hint) -> None:
        self._vanish(old, hint)
        self._park(old)
        self._appeared.append((old.parent, found, hint))

    def _park(self, old: Node) -> None:
        """Something else has its place."""
        self._replaced[old.parent, old.name] = old
        self.nodes.move(old, -old.id, old.name)

    def _same(self, old: Node, found: Seen, hint: Hint) -> None:
        if old[2:14] != found:
            self.nodes.update(old, found)
            self._note_changed(old, found, hint)
            if (found.nlink > 1 or old.nlink > 1) and not old.is_directory:
                self.inode(found.ino, hint)
        self._put_right(old)
        if old.is_directory and self.later is not None:
            self.later.append((found.ino, found.generation))

    def _note_changed(self, old: Node, found: Seen, hint: Hint) -> None:
        if self.differs is not None:
            self.differs(old.parent, as_bytes(old.name), found.ino)
        if self.is_quiet:
            return
        content = (old.size_bytes, old.mtime_ns) != (found.size_bytes, found.mtime_ns)
        if content and not old.is_directory:
            self.journal.note(hint, "modified", old.parent, old.name, old.kind)
            self._record(old.parent, old.name, old.kind)
        elif (old.mode, old.uid, old.gid) != (found.mode, found.uid, found.gid) or (
            old.ctime_ns != found.ctime_ns
            and old.nlink == found.nlink
            and not content
            and hint.event == "attributes"
        ):
            self.journal.note(hint, "attributes", old.parent, old.name, old.kind)

    def _put_right(self, node: Node) -> None:
        """Project, session and sealed are what they are in the directory that it lies in."""
        context = self._context_of(node.parent, node.ino, node.name, node.kind)
        if context is not None and context[1:] != node.belongs:
            self._belong(node, context)

    def _context_of(self, parent: int, ino: int, name: Name, kind: str) -> Context | None:
        if parent == 0:
            return Context(0, None, None, 0)
        above = self.nodes.directory(parent)
        if above is None:
            return None
        sealed = name in self.descriptions.sealed_in(parent)
        return above.context.inside(ino, kind, sealed=sealed)

    def _look_at_inode(self, ino: int, hint: Hint) -> None:
        rows = self.nodes.of_inode(ino)
        if not rows:
            return
        try:
            found = self._volume.attributes_of(ino)
        except OSError as error:
            if error.errno not in GONE:
                self.problems[ino] = error.errno or errno.EIO
                return
            found = None
        for row in rows:
            if row.id in self._vanished:
                continue
            now = None if found is None else self._seen_as(row, found)
            if now is None:
                self._again(row, hint)
            elif row[2:14] != now:
                self.nodes.update(row, now)
                self._note_changed(row, now, hint)
        live = [row for row in rows if row.id not in self._vanished]
        if found is not None and len(live) > found.nlink and not live[0].is_directory:
            for row in live:
                self._again(row, hint)

    @staticmethod
    def _seen_as(row: Node, found: Attributes) -> Seen | None:
        now = seen(row.name, found)
        return now if row.is_same_inode(now) else None

    # ---- what has appeared -----------------------------------------------------------------------

    def _appear(self, directory: int, found: Seen, hint: Hint) -> None:
        above = self.nodes.directory(directory)
        if above is None:
            return
        rival = self.nodes.entry(directory, found.name)
        if rival is not None and rival.is_same_inode(found):
            self._vanished.pop(rival.id, None)
            self._same(rival, found, hint)
            return
        if rival is not None:
            self._dirty.setdefault((directory, found.name), hint)
            return
        rows = self.nodes.of_inode(found.ino)
        if not self._is_settled(rows, directory, found, hint):
            return
        context = above.context.inside(
            found.ino, found.kind, sealed=found.name in self.descriptions.sealed_in(directory)
        )
        for row in rows:
            if row.id in self._vanished and row.is_same_inode(found):
                self._move(row, directory, found, context, hint)
                return
        self._add(directory, found, context, hint, has_other_names=bool(rows))

    def _is_settled(self, rows: list[Node], directory: int, found: Seen, hint: Hint) -> bool:
        """Whether all rows of an inode were looked at, as far as they may hold no more."""
        doubtful = [
            row
            for row in rows
            if row.id not in self._vanished
            and (not row.is_same_inode(found) or row.is_directory or len(rows) >= found.nlink)
        ]
        again = [
            row for row in doubtful if row.parent > 0 and (row.parent, row.name) not in self._looked
        ]
        if again:
            for row in again:
                self._again(row, hint)
            self._appeared.append((directory, found, hint))
            return False
        if any(row.is_directory and row.is_same_inode(found) for row in doubtful):
            return False  # it is where it was: what lies here is the same directory, mounted
        for row in doubtful:
            if not row.is_same_inode(found):  # can't be: a number is that of one inode
                self._vanish(row, hint)
        return True

    def _move(self, row: Node, directory: int, found: Seen, context: Context, hint: Hint) -> None:
        original, _, was = self._vanished.pop(row.id)
        self._replaced.pop((original.parent, original.name), None)
        session = original.session if original.ino != original.session else None
        self._rename_metadata(original)
        replaced = self._replaced.pop((directory, found.name), None)
        if replaced is not None and replaced.id in self._vanished:
            self._replace_silently(replaced, hint)
        self.nodes.move(row, directory, found.name)
        moved = row._replace(parent=directory, name=found.name)
        if moved[2:14] != found:
            self.nodes.update(moved, found)
        if self.differs is not None:
            self.differs(original.parent, as_bytes(original.name), 0)
            self.differs(directory, as_bytes(found.name), found.ino)
        if moved.is_directory and session is not None:
            self._rearranged.add(session)
        if moved.is_directory:
            self.moved.append((found.ino, found.generation))
            if self.later is not None:
                self.later.append((found.ino, found.generation))
        now = moved._replace(
            project=original.project, session=original.session, sealed=original.sealed
        )
        depth_before = original.context.depth if original.parent > 0 else -1
        if context[1:] != now.belongs or (now.is_directory and depth_before != context.depth):
            self._belong(now, context)
        if moved.is_directory and context.session not in (None, found.ino):
            assert context.session is not None
            self._rearranged.add(context.session)
            self._record_below(found.ino)
        elif not moved.is_directory:
            self._rename_metadata(moved._replace(session=context.session))
            self._record(directory, found.name, found.kind)
        if not self.is_quiet:
            self.journal.note(hint, "moved", directory, found.name, found.kind, was)

    def _add(
        self, directory: int, found: Seen, context: Context, hint: Hint, *, has_other_names: bool
    ) -> None:
        if found.kind == "directory":
            stale = self.nodes.directory(found.ino)
            if stale is not None and stale.id not in self._vanished:
                return  # looked at, and still where it was
            if stale is not None:  # of another inode, whose number this one has now
                self._remove(*self._vanished.pop(stale.id))
        self.nodes.add(directory, [(found, context)])
        replaced = self._replaced.pop((directory, found.name), None)
        if self.differs is not None:
            self.differs(directory, as_bytes(found.name), found.ino)
        if found.kind == "directory":
            self._read_later(found)
            if self.descriptions.has_any(found.ino):
                self.records(found.ino)
        elif context.session is not None:
            self._rename(context.session, directory, found.name)
        if has_other_names and found.nlink > 1:
            self.inode(found.ino, hint)
        if self.is_quiet:
            return
        if hint is self._default and (directory in self._new or directory in self.unread):
            self._record(directory, found.name, found.kind)
            return
        if replaced is not None and replaced.kind == found.kind and found.kind != "directory":
            self.journal.note(hint, "modified", directory, found.name, found.kind)
            if replaced.id in self._vanished:
                self._replace_silently(replaced, hint)
        else:
            event = "created"
            if hint.event == "moved" and not hint.is_from_within:
                event = "moved"
            self.journal.note(hint, event, directory, found.name, found.kind)
        self._record(directory, found.name, found.kind)

    def _replace_silently(self, old: Node, hint: Hint) -> None:
        """Unless it is found elsewhere, nothing is noted of its end but what has its place."""
        self._vanished[old.id] = (old, hint._replace(event=""), self._vanished[old.id][2])

    def _read_later(self, found: Seen) -> None:
        if self.later is not None:
            self.unread.add(found.ino)
            self.anew.add(found.ino)
            self.later.append((found.ino, found.generation))
        else:
            self._new.add(found.ino)
            self._to_read.append((found.ino, found.generation))

    # ---- what is gone ----------------------------------------------------------------------------

    def _remove_vanished(self) -> bool:
        """Remove what was not found anywhere; True: there is something to look at first."""
        for node, hint, _ in list(self._vanished.values()):
            if node.is_directory and node.id not in self._sought:
                self._sought.add(node.id)
                place = self._find(node)
                if place is not None:
                    self._dirty.setdefault(place, hint)
                    self.inode(place[0], hint)
        if self._dirty:
            return True
        vanished, self._vanished = self._vanished, {}
        for node, hint, was in sorted(vanished.values(), key=lambda one: one[0].is_directory):
            self._remove(node, hint, was)
        return bool(self._dirty or self._inodes or self._appeared)

    def _remove(self, node: Node, hint: Hint, was: Site | None) -> None:
        if self.differs is not None:
            self.differs(node.parent, as_bytes(node.name), 0)
        if not self.is_quiet and hint.event and was is not None:
            self.journal.note_removed(hint, was, node.kind)
        self._rename_metadata(node)
        if self._replaced.get((node.parent, node.name)) is node:
            del self._replaced[node.parent, node.name]
        if not self.nodes.has(node.id):  # gone with the directory that it lay in
            return
        if node.is_directory:
            if node.session is not None:
                self._rearranged.add(node.session)
            self._remove_below(node.ino)
        self.nodes.remove(node)

    def _find(self, node: Node) -> Place | None:
        """Where a directory is now that is not where it was; None: it is gone, or outside."""
        try:
            fd = open_directory(self._volume, node.ino, node.generation, PATH_FLAGS)
        except OSError:
            return None
        try:
            above = self._volume.lookup(fd, b"..")
            if above is None or above.dev != self._volume.dev:
                return None
            parent = self.nodes.directory(above.ino)
            if parent is None:
                return None
            name = path_of(fd).rpartition(b"/")[2]
            parent_fd = open_directory(self._volume, parent.ino, parent.generation, PATH_FLAGS)
            try:
                found = look(self._volume, parent_fd, name)
            finally:
                os.close(parent_fd)
        except OSError:
            return None
        finally:
            os.close(fd)
        if found is None or not node.is_same_inode(found) or is_own_name(name):
            return None
        place = above.ino, as_name(name)
        return None if place in self._looked else place

    def _remove_below(self, ino: int) -> None:
        pending = [ino]
        while pending:
            directory = pending.pop()
            self.descriptions.forget_directory(directory)
            self._own.discard(directory)
            pending += [node.ino for node in self.nodes.clear(directory)]

    def sweep(self, parent: int) -> None:
        """Rows hang on a directory that was not met in the store: they go, unless it is there."""
        node = self.nodes.directory(parent)
        if node is not None and node.parent == 0:
            return
        if node is not None:
            self._again(node)
            self._to_read.append((node.ino, node.generation))
        else:
            self._remove_below(parent)

    # ---- whole directories -----------------------------------------------------------------------

    def frame(self, frame: Frame, touched: Callable[[Place, int], bool] | None = None) -> None:
        """Some entries of a directory, as they were read.

        ``touched``: whether one has to be looked at again, as it has changed since.
        """
        ino = frame.ino
        node = self.nodes.directory(ino)
        if node is None or node.generation != frame.generation:
            return
        if frame.is_first and (frame.has_records or self.descriptions.has_any(ino)):
            self.records(ino)
            self._seals.discard(ino)
            self._refresh_seals(ino)
        if frame.error:
            if frame.error in GONE:
                self._again(node)
            else:
                self.problems[ino] = frame.error
            return
        self.problems.pop(ino, None)
        is_whole = frame.is_first and frame.is_last
        if is_whole:
            rows = self.nodes.entries(ino)
        else:
            rows = self.nodes.named(ino, [entry[0] for entry in frame.entries])
        self._frame_rows(node, frame.entries, rows, touched)
        if is_whole:
            met: set[Name] = {entry[0] for entry in frame.entries}
            for name in rows:
                if name not in met:
                    self._dirty.setdefault((ino, name), self._default)
        elif frame.is_last:
            self._find_missing(ino, frame)
        else:
            self._met.setdefault(ino, set()).update(entry[0] for entry in frame.entries)

    def _find_missing(self, ino: int, frame: Frame) -> None:
        met = self._met.pop(ino, set())
        met.update(entry[0] for entry in frame.entries)
        for _, name in self.nodes.each_entry(ino):
            if name not in met:
                self._dirty.setdefault((ino, name), self._default)

    def _frame_rows(
        self,
        node: Node,
        entries: list[Seen],
        rows: dict[Name, Node],
        touched: Callable[[Place, int], bool] | None,
    ) -> None:
        ino = node.ino
        context = node.context
        sealed = self.descriptions.sealed_in(ino)
        inside = context.inside(0, "file", sealed=False)
        inside_sealed = context.inside(0, "file", sealed=True)
        is_new = self.is_quiet or ino in self._new or ino in self.unread
        is_plain = is_new and not self._vanished and not rows
        new: list[tuple[Seen, Context]] = []
        for entry in entries:
            found = Seen._make(entry)
            if touched is not None and touched((ino, found.name), found.ino):
                self._dirty.setdefault((ino, found.name), self._default)
                continue
            old = rows.get(found.name)
            if old is not None:
                if old[2:14] != found or old.id in self._vanished:
                    self._compare(ino, old, found, self._default)
                elif found.kind != "directory" and not sealed:
                    if old[14:] != inside[1:]:
                        self._belong(old, inside)
                else:
                    self._put_right_in(old, context, sealed)
                    if found.kind == "directory" and self.later is not None:
                        self.later.append((found.ino, found.generation))
            elif is_plain and found.kind != "directory" and (found.nlink == 1 or self.is_quiet):
                new.append((found, inside_sealed if found.name in sealed else inside))
            else:
                self._appeared.append((ino, found, self._default))
        if new:
            self.nodes.add(ino, new)
            if not self.is_quiet:
                self._added_at_once(context, ino, [found for found, _ in new])

    def _added_at_once(self, context: Context, directory: int, entries: list[Seen]) -> None:
        if context.session is not None and self.descriptions.has_metadata(context.session):
            self._rearranged.add(context.session)
        for found in entries:
            self._record(directory, found.name, found.kind)
            if self.differs is not None:
                self.differs(directory, as_bytes(found.name), found.ino)

    def _put_right_in(self, node: Node, context: Context, sealed: frozenset[Name]) -> None:
        now = context.inside(node.ino, node.kind, sealed=node.name in sealed)
        if now[1:] != node.belongs:
            self._belong(node, now)

    # ---- project, session, sealed ----------------------------------------------------------------

    def _refresh_seals(self, directory: int) -> None:
        for change in self.descriptions.refresh_seals(directory):
            self._reseal(change)

    def _reseal(self, change: Resealed) -> None:
        path = self.nodes.path_of(change.parent, change.name)
        if path is not None and not self.is_quiet:
            self.resealed.append(path)
        node = self.nodes.entry(change.parent, change.name)
        if node is None or node.id in self._vanished:
            return
        self._put_right(node)
        if node.is_directory and change.state in (None, "sealed") and not self.is_quiet:
            self._read_flags(node)

    def _read_flags(self, node: Node) -> None:
        """Flags were set or cleared below, which changes times, and nobody is told."""
        if self.later is not None:  # then all of it will be read
            return
        self.inode(node.ino, self._default)
        for found in (node, *self.nodes.below(node.ino)):
            if found.is_directory:
                self._to_read.append((found.ino, found.generation))

    def _belong(self, node: Node, context: Context) -> None:
        """Another project, session, or sealed: for all that is below, too."""
        self.nodes.belong(node, context)
        if not node.is_directory:
            if context.session is not None:
                self._rename(context.session, node.parent, node.name)
            return
        self._may_have_record(node, context)
        pending = [(node.ino, context)]
        while pending:
            ino, here = pending.pop()
            sealed = self.descriptions.sealed_in(ino)
            self.nodes.files_belong(ino, here.inside(0, "file", sealed=False))
            for name in sealed:
                entry = self.nodes.entry(ino, name)
                if entry is not None and not entry.is_directory:
                    self.nodes.belong(entry, here.inside(0, "file", sealed=True))
            for below in self.nodes.directories_in(ino):
                now = here.inside(below.ino, "directory", sealed=below.name in sealed)
                if now[1:] != below.belongs or here.depth <= DEPTH_OF_SESSIONS:
                    self.nodes.belong(below, now)
                    self._may_have_record(below, now)
                    pending.append((below.ino, now))

    def _may_have_record(self, node: Node, context: Context) -> None:
        if context.depth in (DEPTH_OF_PROJECTS, DEPTH_OF_SESSIONS) or node.ino in (
            node.project,
            node.session,
        ):
            self._own.add(node.ino)
            self._metadata[node.ino] = None
            if context.depth == DEPTH_OF_SESSIONS:
                self._rearranged.add(node.ino)

    # ---- metadata of files -----------------------------------------------------------------------

    def _rename_metadata(self, node: Node) -> None:
        if node.session is not None and not node.is_directory:
            self._rename(node.session, node.parent, node.name)

    def _rename(self, session: int, parent: int, name: Name) -> None:
        """A path in a session is another file, or none."""
        if self.descriptions.has_metadata(session):
            path = self.nodes.path_in(session, parent, name)
            if path is not None:
                self._renamed.add((session, path))
            else:
                self._rearranged.add(session)

    def _record(self, parent: int, name: Name, kind: str) -> None:
        """A file is new, or changed: its metadata may be of interest."""
        if kind != "file" or not is_wanted(as_bytes(name)):
            return
        above = self.nodes.directory(parent)
        if above is None or above.session is None:
            return
        session = self.nodes.directory(above.session)
        path = self.nodes.path_in(above.session, parent, name)
        session_path = None if session is None else self.nodes.path(session)
        if path is not None and session_path is not None:
            self.recorded.append(Recorded(session_path, path))

    def _record_below(self, ino: int) -> None:
        for node in list(self.nodes.below(ino)):
            self._record(node.parent, node.name, node.kind)

    def written(self) -> None:
        """After the end of a whole reconcile."""
        self.unread.clear()
        self.anew.clear()
        self._met.clear()

    def finish(self) -> None:
        """The journal's rows, at the end of the transaction."""
        self.journal.write(self.nodes)


def _is_name(name: bytes) -> bool:
    return name not in (b"", b".", b"..") and b"/" not in name and b"\0" not in name


def unique(recorded: Iterable[Recorded]) -> list[Recorded]:
    """Each file once, in order."""
    return list(dict.fromkeys(recorded))
