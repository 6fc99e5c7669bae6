"""Seals on the store: the records that say that a directory is sealed.

Truth lies beside the sealed directory: ``<parent>/.modama/seals/<name>.json``, with the manifest
``<name>.B3SUMS`` beside it. Nothing else decides: a directory is sealed if, and only if, it or a
directory above it has such a record, in whatever state. So a second mount, or one that is started
later, or on another machine, needs to be told nothing.

``<store>/.modama/sealed/`` holds a symbolic link for every sealed directory, so that they can be
listed; it can be rebuilt from the records (``rebuild_list``).
"""

from __future__ import annotations

import bisect
import errno
import os
import time
import uuid
from collections.abc import Iterable, Iterator
from typing import Any

from blake3 import blake3

from modamafs.model import RECORDS, SealState
from modamafs.store import _volume
from modamafs.store.backing import Store, path_of
from modamafs.store.records import DIRECTORY_MODE, open_records, read_record, remove_record
from modamafs.store.walk import walk

SEALS = b"seals"
LIST = RECORDS + b"/sealed"
WORMS = RECORDS + b"/worm"
UNWALLED_AGE_S = 1.0
SETTLED_NS = 50_000_000
"""A directory that changed longer ago than this shows it in its time (kernels before 6.13 count in
ticks)."""


class Seals:
    """Asks the store at every question; only the list is remembered, while it is right."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._prefix = path_of(store.root_fd).rstrip(b"/") + b"/"
        self._listed: list[bytes] = []
        self._listed_at = -1
        self._searched = False
        self._walled: set[bytes] = set()
        self._looked_at_s = -1.0
        self._unwalled = False

    def search(self, *, write: bool) -> None:
        """Make the list where it is missing, by looking through the store. Takes long.

        Without ``write`` (or where there is nothing to write) it is only remembered.
        """
        if not is_listed(self._store):
            found = sorted(recorded_below(self._store.root_fd))
            if found and write:
                rebuild_list(self._store, found)
            self._listed = found
        self._searched = True

    def covers(self, fd: int) -> bool | None:
        """Whether what a descriptor names, or a directory above it, is sealed.

        None: the kernel can't tell the path. A file that was opened by handle may have none yet,
        and one of more than 4096 bytes has none.
        """
        relative = self._relative(fd)
        return None if relative is None else covering(self._store, relative) is not None

    def covers_entry(self, dir_fd: int, name: bytes) -> bool | None:
        """The same for an entry of a directory."""
        parent = self._relative(dir_fd)
        if parent and name in (b".", b".."):
            parent, name = os.path.split(parent if name == b"." else os.path.dirname(parent))
        if parent is None:
            return None
        return covering(self._store, parent + b"/" + name if parent else name) is not None

    def being_sealed(self, fd: int) -> bool:
        """Whether it lies in a directory that is only just being sealed, or opened.

        Then what was open for writing when that began may be written to its end.
        """
        relative = self._relative(fd)
        root = None if relative is None else covering(self._store, relative)
        if root is None:
            return False
        record = self._record(root)
        return record is not None and record.get("state") == SealState.SEALING.value

    def any(self) -> bool:
        """Whether anything at all is sealed, as far as is known so far."""
        return any(self._confirmed(self.listed()))

    def unwalled(self) -> bool:
        """Whether something is sealed, or being sealed, that may lack its immutable flags.

        What is shown of a file then has to be asked of the records. Looked at once a second at
        most; no permission depends on it.
        """
        now = time.monotonic()
        if now - self._looked_at_s >= UNWALLED_AGE_S:
            self._looked_at_s = now
            self._unwalled = not all(map(self._has_wall, self.listed()))
        return self._unwalled

    def without_wall(self) -> list[bytes]:
        """The sealed directories that lack the immutable flag, or whose flags are not complete."""
        return [root for root in self.sealed_roots() if not self._has_wall(root)]

    def is_surely_walled(self) -> bool:
        """Whether everything that is sealed just now has its immutable flags."""
        return all(map(self._has_wall, self.listed()))

    def _has_wall(self, root: bytes) -> bool:
        if root in self._walled:
            return True
        record = self._record(root)
        if record is None:
            return covering(self._store, root) is None
        if record.get("state") != SealState.SEALED.value or not record.get("immutable_flag"):
            return False
        try:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
            fd = os.open(root, flags, dir_fd=self._store.root_fd)
        except OSError as error:  # removed on the store: then there is nothing to protect
            return error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
        try:
            has_flag: bool = self._store.volume.attributes(fd).immutable
        finally:
            os.close(fd)
        if has_flag:
            self._walled.add(root)
        return has_flag

    def _record(self, root: bytes) -> dict[str, Any] | None:
        """What a record says; None where there is none, or it can't be read."""
        above, _, name = root.rpartition(b"/")
        path = above + b"/" + RECORDS if above else RECORDS
        try:
            return read_record(self._store.root_fd, path + b"/seals/" + name + b".json")
        except (OSError, ValueError):
            return None

    def _relative(self, fd: int) -> bytes | None:
        try:
            path = path_of(fd)
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            return self._relative_of_ancestor(fd)
        return self._inside(path)

    def _inside(self, path: bytes) -> bytes | None:
        """A path, relative to the store; None: it lies elsewhere."""
        if path + b"/" == self._prefix:
            return b""
        return path[len(self._prefix) :] if path.startswith(self._prefix) else None

    def _relative_of_ancestor(self, fd: int) -> bytes | None:
        """The path of the nearest directory above that has one: nothing deeper is ever sealed."""
        above = os.dup(fd)
        try:
            while True:
                try:
                    higher = os.open(b"..", os.O_PATH | os.O_DIRECTORY, dir_fd=above)
                except NotADirectoryError:
                    return None
                os.close(above)
                above = higher
                try:
                    return self._inside(path_of(above))
                except OSError as error:
                    if error.errno != errno.ENAMETOOLONG:
                        raise
        finally:
            os.close(above)

    def below(self, dir_fd: int, name: bytes) -> bool:
        """Whether the directory ``name`` in ``dir_fd`` is sealed, or anything below it."""
        if not self._searched and not is_listed(self._store):
            return self._is_recorded_below(dir_fd, name)
        roots = self.listed()
        if not roots:
            return False
        parent = self._relative(dir_fd)
        if parent is None:
            return True
        relative = parent + b"/" + name if parent else name
        inside = [root for root in _from(roots, relative) if _is_in(root, relative)]
        return any(self._confirmed(inside))

    def is_written_once(self, dir_fd: int, name: bytes) -> bool:
        """Whether a directory is one for writing once, has one below, or is full and lies in one.

        What became immutable in it is cited by its path.
        """
        roots = worms(self._store)
        if not roots:
            return False
        parent = self._relative(dir_fd)
        if parent is None:
            return True
        relative = parent + b"/" + name if parent else name
        if any(_is_in(root, relative) for root in roots):
            return True
        inside = any(_is_in(relative, root) for root in roots)
        return inside and bool(_entries(dir_fd, name))

    @staticmethod
    def _is_recorded_below(dir_fd: int, name: bytes) -> bool:
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=dir_fd)
        try:
            own = _entries(dir_fd, RECORDS + b"/" + SEALS)
            return name + b".json" in own or next(recorded_below(fd), None) is not None
        finally:
            os.close(fd)

    def sealed_roots(self) -> list[bytes]:
        """The paths of the sealed directories, relative to the store."""
        return list(self._confirmed(self.listed()))

    def listed(self) -> list[bytes]:
        """What the list says, sorted; it may know of one too many, never of one too few."""
        try:
            changed_ns = os.stat(LIST, dir_fd=self._store.root_fd).st_mtime_ns
        except FileNotFoundError:
            return self._listed
        if changed_ns != self._listed_at or time.time_ns() - changed_ns < SETTLED_NS:
            self._listed = sorted(listed(self._store))
            self._listed_at = changed_ns
            self._walled.intersection_update(self._listed)
        return self._listed

    def _confirmed(self, roots: Iterable[bytes]) -> Iterator[bytes]:
        return (root for root in roots if covering(self._store, root) == root)


def _from(roots: list[bytes], relative: bytes) -> Iterator[bytes]:
    """Those of the sorted paths that may be or lie in ``relative``."""
    for position in range(bisect.bisect_left(roots, relative), len(roots)):
        if not roots[position].startswith(relative):
            return
        yield roots[position]


def _is_in(root: bytes, relative: bytes) -> bool:
    return root == relative or root.startswith(relative + b"/")


def covering(store: Store, relative: bytes) -> bytes | None:
    """The sealed directory that a path (relative to the store) is, or lies in; None for none.

    OSError where that can't be told (EIO, ENOMEM): then nothing may be changed.
    """
    at = 0
    while at >= 0:
        end = relative.find(b"/", at)
        name = relative[at:end] if end >= 0 else relative[at:]
        record = relative[:at] + RECORDS + b"/seals/" + name + b".json"
        if _volume.exists(store.root_fd, record):
            return relative[:at] + name
        at = end + 1 if end >= 0 else -1
    return None


def listed(store: Store) -> Iterator[bytes]:
    """The sealed directories that the list knows."""
    return _links(store, LIST)


def _links(store: Store, directory: bytes) -> Iterator[bytes]:
    for name in _entries(store.root_fd, directory):
        try:
            yield os.readlink(directory + b"/" + name, dir_fd=store.root_fd)
        except FileNotFoundError:  # unsealed meanwhile
            continue


def is_listed(store: Store) -> bool:
    """Whether the list of sealed directories is there."""
    return os.access(LIST, os.F_OK, dir_fd=store.root_fd)


def rebuild_list(store: Store, found: Iterable[bytes]) -> None:
    """Make the list of the sealed directories that were found, unless it is there by now."""
    records = open_records(store.root_fd, RECORDS)
    building = b"sealed.%s.new" % uuid.uuid4().hex.encode()
    try:
        os.mkdir(building, DIRECTORY_MODE, dir_fd=records)
        fd = os.open(building, os.O_RDONLY | os.O_DIRECTORY, dir_fd=records)
        try:
            os.fchmod(fd, DIRECTORY_MODE)
            for relative in found:
                os.symlink(relative, _tag(relative), dir_fd=fd)
            os.fsync(fd)
        finally:
            os.close(fd)
        try:
            os.rename(building, b"sealed", src_dir_fd=records, dst_dir_fd=records)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            _remove_directory(records, building)  # somebody else was quicker, and has gone on
        os.fsync(records)
    finally:
        os.close(records)


def _remove_directory(dir_fd: int, name: bytes) -> None:
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=dir_fd)
    try:
        for entry in os.listdir(fd):
            os.unlink(entry, dir_fd=fd)
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=dir_fd)


def recorded_below(dir_fd: int) -> Iterator[bytes]:
    """The directories below that have a seal's record, relative to it, by looking everywhere."""
    for directory in walk(dir_fd):
        if RECORDS not in directory.directories:
            continue
        directory.directories.remove(RECORDS)
        for record in _entries(directory.fd, RECORDS + b"/" + SEALS):
            if record.endswith(b".json"):
                yield os.path.join(directory.path, record.removesuffix(b".json"))


def _entries(dir_fd: int, name: bytes) -> list[bytes]:
    try:
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=dir_fd)
    except FileNotFoundError:
        return []
    try:
        return [os.fsencode(entry) for entry in os.listdir(fd)]
    finally:
        os.close(fd)


def _tag(relative: bytes) -> bytes:
    return blake3(relative).hexdigest(16).encode()


def enlist(store: Store, relative: bytes) -> None:
    """Put a directory on the list; one that is there already is no error."""
    _enlist(store, b"sealed", relative)


def unlist(store: Store, relative: bytes) -> None:
    """Take a directory off the list; one that is not there is no error."""
    _unlist(store, b"sealed", relative)


def enlist_worm(store: Store, relative: bytes) -> None:
    """Put a directory on the list of those for writing once."""
    _enlist(store, b"worm", relative)


def unlist_worm(store: Store, relative: bytes) -> None:
    """Take a directory off that list."""
    if os.access(WORMS, os.F_OK, dir_fd=store.root_fd):
        _unlist(store, b"worm", relative)


def worms(store: Store) -> list[bytes]:
    """The directories for writing once; whether one still is, its record says."""
    return sorted(_links(store, WORMS))


def _enlist(store: Store, which: bytes, relative: bytes) -> None:
    fd = open_records(store.root_fd, RECORDS, which)
    try:
        os.symlink(relative, _tag(relative), dir_fd=fd)
        os.fsync(fd)
    except FileExistsError:
        return
    finally:
        os.close(fd)


def _unlist(store: Store, which: bytes, relative: bytes) -> None:
    fd = open_records(store.root_fd, RECORDS, which)
    try:
        remove_record(fd, _tag(relative))
    finally:
        os.close(fd)
