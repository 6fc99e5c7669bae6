"""Directories that a search has met: where they are, whether they are still there, who may enter.

Each is opened step by step from the store's root, and has to be the inode that the index means.
"""

from __future__ import annotations

import errno
import os
import resource
from collections import OrderedDict
from collections.abc import Sequence

from modamafs.doors import Door, acl_of, hides_entry
from modamafs.index.nodes import DEPTH_OF_PROJECTS
from modamafs.model import Attributes, Caller
from modamafs.policy import access
from modamafs.store.backing import PATH_FLAGS, Store

OPEN_LIMIT = 1000
"""Directories that are held open at a time, or half of what the process may open: those of one lot
of hits are looked at twice."""
LONGEST_PATH_BYTES = 16 << 10
"""Of a directory, from the store's root: four times PATH_MAX. What lies deeper is not found."""

NONE_LEFT = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}
"""Says nothing of what was to be opened."""
_OTHERS = 0o005
_ENTRY = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


class Folder:
    """A directory: what the index says of it, and what the store says when it is asked.

    Searches meet a great many: none has its path, which is made when it is asked for.
    """

    __slots__ = (
        "above", "depth", "door", "fd", "found", "generation", "holds", "ino", "is_gone",
        "is_inside", "is_on_way", "length_bytes", "may_enter", "name", "reads", "shown",
    )  # fmt: skip

    def __init__(
        self, above: Folder | None, name: bytes, ino: int, generation: int, within: Sequence[bytes]
    ) -> None:
        """``within``: the names on the way to what everything has to lie in."""
        self.above = above
        self.name = name
        self.ino = ino
        self.generation = generation
        self.depth: int = above.depth + 1 if above else 0
        self.length_bytes: int = above.length_below(name) if above else 0
        """Of the path."""
        self.is_on_way: bool = above is None or (
            above.is_on_way and self.depth <= len(within) and within[above.depth] == name
        )
        """It is one of the directories on that way, or the end of it."""
        self.is_inside: bool = (above is not None and above.is_inside) or (
            self.is_on_way and self.depth == len(within)
        )
        self.holds = 0
        """Bits: terms that hold for it, or for a directory above it, and so for what is in it."""
        self.fd = -1
        self.found: Attributes | None = None
        self.is_gone = False
        self.door: Door | None = None
        self.may_enter: bool | None = None
        self.reads: bool | None = None
        self.shown: bool | None = None

    def length_below(self, name: bytes) -> int:
        """How long the path of an entry is, in bytes."""
        return self.length_bytes + bool(self.length_bytes) + len(name)

    def path(self) -> bytes:
        """From the store's root, which has an empty one."""
        names = []
        step = self
        while step.above is not None:
            names.append(step.name)
            step = step.above
        return b"/".join(reversed(names))

    def path_below(self, name: bytes) -> bytes:
        """The path of an entry."""
        return self.path() + b"/" + name if self.above is not None else name


class Folders:
    """Directories that were met, by inode number; opened step by step from the root."""

    def __init__(self, store: Store, caller: Caller) -> None:
        self._store = store
        self._caller = caller
        self._open: OrderedDict[Folder, None] = OrderedDict()
        self._most_open = min(OPEN_LIMIT, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)

    def close(self) -> None:
        """Close all."""
        for folder in self._open:
            os.close(folder.fd)
            folder.fd = -1
        self._open.clear()

    def open(self, folder: Folder) -> int:
        """An O_PATH descriptor, which stays ours; -1: it is not there any more."""
        if folder.above is None:
            return self._store.root_fd
        if folder.fd >= 0:
            self._open.move_to_end(folder)
            return folder.fd
        missing = []
        step: Folder | None = folder
        while step is not None and step.above is not None and step.fd < 0:
            if step.is_gone:
                break
            missing.append(step)
            step = step.above
        for step in reversed(missing):
            above = step.above
            assert above is not None
            step.is_gone = above.is_gone or not self._open_in(step, above)
            if step.is_gone:
                return -1
        return folder.fd

    def _open_in(self, folder: Folder, above: Folder) -> bool:
        above_fd = self._store.root_fd if above.above is None else above.fd
        try:
            fd = os.open(folder.name, PATH_FLAGS, dir_fd=above_fd)
        except OSError as error:
            if error.errno in NONE_LEFT:
                raise
            return False  # removed, another kind of thing by now, or it can't be read
        try:
            found = self._store.volume.attributes(fd)
        except OSError:
            os.close(fd)
            return False
        if (found.ino, found.generation) != (folder.ino, folder.generation) or (
            found.dev != self._store.volume.dev
        ):
            os.close(fd)
            return False
        folder.fd, folder.found = fd, found
        self._open[folder] = None
        if len(self._open) > self._most_open:
            oldest, _ = self._open.popitem(last=False)
            os.close(oldest.fd)
            oldest.fd = -1
        return True

    def may(self, wanted: int, folder: Folder) -> bool:
        """Whether the caller has these permissions on the directory itself."""
        if self._caller.uid == 0:
            return True
        if folder.door is None:
            fd = self.open(folder)
            if fd < 0:
                return False
            found = folder.found or self._store.volume.attributes(fd)
            folder.door = Door(found.mode & 0o7777, found.uid, found.gid, acl_of(fd))
        return folder.door.lets(wanted, self._caller)

    def may_enter(self, folder: Folder) -> bool:
        """Whether the caller can go as far as into it."""
        unknown = []
        step: Folder | None = folder
        while step is not None and step.may_enter is None:
            unknown.append(step)
            step = step.above
        may = step is None or bool(step.may_enter)
        for step in reversed(unknown):
            may = may and self.may(access.SEARCH, step)
            step.may_enter = may
        return may

    def shows_names(self, folder: Folder) -> bool:
        """Whether the caller can go into it, and list it."""
        if folder.shown is None:
            folder.shown = self._caller.uid == 0 or (
                self.may_enter(folder) and self.may(access.READ, folder)
            )
        return folder.shown

    def shows_record(self, folder: Folder) -> bool:
        """Whether the caller may know what is written about a directory."""
        if folder.reads is None:
            folder.reads = self.may(access.READ | access.SEARCH, folder)
        return folder.reads

    def entry(self, folder: Folder, name: bytes) -> Attributes | None:
        """What is there now with that name."""
        fd = self.open(folder)
        if fd < 0:
            return None
        try:
            return self._store.volume.lookup(fd, name)
        except OSError as error:
            if error.errno in NONE_LEFT:
                raise
            return None

    def may_read(self, folder: Folder, name: bytes, found: Attributes) -> bool:
        """Whether the caller may read an entry, of a directory also enter it."""
        if self._caller.uid == 0:
            return True
        try:
            fd = os.open(name, _ENTRY, dir_fd=self.open(folder))
        except OSError as error:
            if error.errno in NONE_LEFT:
                raise
            return False
        try:
            acl = acl_of(fd)
        finally:
            os.close(fd)
        wanted = access.READ | (access.SEARCH if is_directory(found) else 0)
        return access.may(wanted, self._caller, found.mode & 0o7777, found.uid, found.gid, acl)

    def hides(self, folder: Folder, name: bytes, found: Attributes) -> bool:
        """Whether it is a project that is not for the caller to know of: as in lists of areas."""
        if (
            self._caller.uid == 0
            or folder.depth != DEPTH_OF_PROJECTS - 1
            or not is_directory(found)
            or found.mode & _OTHERS
        ):
            return False
        try:
            return hides_entry(self.open(folder), name, self._caller)
        except OSError as error:
            if error.errno in NONE_LEFT:
                raise
            return True


def is_directory(found: Attributes) -> bool:
    """By its mode."""
    return found.mode & 0o170000 == 0o040000
