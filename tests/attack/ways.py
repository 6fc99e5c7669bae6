"""How an object is reached: by path, by a descriptor from before, by its handle, and so on.

A door names what it attacks by its path in the store, and a way turns that into the arguments of a
system call. Whatever has to be had before the seal (descriptors, handles) is given to the way.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from tests.attack.scene import LATEST, OBJECTS, SCAN, TWIN
from tests.support.syscalls import (
    AT_EMPTY_PATH,
    AT_SYMLINK_NOFOLLOW,
    At,
    FileHandle,
    name_to_handle_at,
)
from tests.support.syscalls import open_by_handle_at as open_by_handle


class Node(NamedTuple):
    """What a system call on one inode is given."""

    target: int | str
    follow: bool
    """A link in /proc has to be followed; a symbolic link of ours must not be."""

    @property
    def is_path_only(self) -> bool:
        """An O_PATH descriptor, on which fchmod(2) and its kin are not for anybody."""
        return isinstance(self.target, int) and bool(
            fcntl.fcntl(self.target, fcntl.F_GETFL) & os.O_PATH
        )

    @property
    def path(self) -> str:
        """A path that leads to it, and has to be followed if it is a descriptor's."""
        return f"/proc/self/fd/{self.target}" if isinstance(self.target, int) else self.target

    @property
    def at(self) -> tuple[At, int]:
        """For the …at() calls: place and flags."""
        if isinstance(self.target, int):
            return (self.target, ""), AT_EMPTY_PATH
        return (None, self.target), 0 if self.follow else AT_SYMLINK_NOFOLLOW


class Way:
    """Fresh, by path."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def entry(self, path: str) -> At:
        """The name, for calls that change a directory."""
        return None, f"{self.root}/{path}"

    def node(self, path: str) -> Node:
        """The inode, for calls that change its attributes."""
        return Node(f"{self.root}/{path}", follow=False)

    def open(self, path: str, flags: int, mode: int = 0o666) -> int:
        """A new open file."""
        place, name = self.entry(path)
        return os.open(name, flags | os.O_NONBLOCK, mode, dir_fd=place)

    def descriptor(self, path: str) -> int:
        """A descriptor to read with: the one that there is, or a new one."""
        node = self.node(path)
        if isinstance(node.target, int) and not node.is_path_only:
            return node.target
        return self.open(path, os.O_RDONLY)

    def entry_path(self, path: str) -> str:
        """The name as one path."""
        place, name = self.entry(path)
        return os.fsdecode(name) if place is None else f"/proc/self/fd/{place}/{os.fsdecode(name)}"


class Through(Way):
    """By paths that lead elsewhere first: through a view."""

    def __init__(self, root: Path, inside: str, place: Path) -> None:
        """What lies ``inside`` of a path in the store is reached from ``place``."""
        super().__init__(root)
        self.inside = inside
        self.place = place

    def _path(self, path: str) -> str:
        if path.startswith(self.inside + "/"):
            return f"{self.place}{path.removeprefix(self.inside)}"
        return f"{self.root}/{path}"

    def entry(self, path: str) -> At:
        return None, self._path(path)

    def node(self, path: str) -> Node:
        return Node(self._path(path), follow=False)


class HardLink(Way):
    """By path, through the other name of a file."""

    def entry(self, path: str) -> At:
        return super().entry(TWIN if path == SCAN else path)

    def node(self, path: str) -> Node:
        return super().node(TWIN if path == SCAN else path)


class Descriptors(Way):
    """Through descriptors: f…() on them, …at() calls relative to directories."""

    def __init__(self, root: Path, fds: Mapping[str, int]) -> None:
        super().__init__(root)
        self.fds = fds

    def entry(self, path: str) -> At:
        directory, _, name = path.rpartition("/")
        return self.fds[directory], name

    def node(self, path: str) -> Node:
        return Node(self.fds[path], follow=True)


class Proc(Descriptors):
    """Through /proc/PID/fd/N of such descriptors."""

    def __init__(self, root: Path, fds: Mapping[str, int], pid: int | str) -> None:
        super().__init__(root, fds)
        self.pid = pid

    def entry(self, path: str) -> At:
        directory, _, name = path.rpartition("/")
        return None, f"/proc/{self.pid}/fd/{self.fds[directory]}/{name}"

    def node(self, path: str) -> Node:
        return Node(f"/proc/{self.pid}/fd/{self.fds[path]}", follow=True)

    def open(self, path: str, flags: int, mode: int = 0o666) -> int:
        if path in self.fds:
            return os.open(f"/proc/{self.pid}/fd/{self.fds[path]}", flags | os.O_NONBLOCK, mode)
        return super().open(path, flags, mode)


class Handles(Descriptors):
    """Through descriptors that were opened by handle; root opens by handle for writing too."""

    def __init__(
        self,
        root: Path,
        fds: Mapping[str, int],
        handles: Mapping[str, FileHandle],
        *,
        is_root: bool,
    ) -> None:
        super().__init__(root, fds)
        self.handles = handles
        self.is_root = is_root

    def open(self, path: str, flags: int, mode: int = 0o666) -> int:
        if path not in self.handles:
            return super().open(path, flags, mode)
        if self.is_root:
            return open_by_handle(self.fds[""], self.handles[path], flags | os.O_NONBLOCK)
        return os.open(f"/proc/self/fd/{self.fds[path]}", flags | os.O_NONBLOCK, mode)


def open_all(root: Path, flags: int) -> dict[str, int]:
    """A descriptor of every object (of a symbolic link, O_PATH), and of the root as ``""``."""
    fds = {"": os.open(root, flags & os.O_PATH | os.O_RDONLY | os.O_DIRECTORY)}
    for name in OBJECTS:
        own = os.O_PATH if name == LATEST else flags
        fds[name] = os.open(root / name, own | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    return fds


def handles_of_all(root: Path) -> dict[str, FileHandle]:
    """The file handle of every object, as a file server would give it to its clients."""
    return {name: name_to_handle_at((None, root / name)) for name in OBJECTS}


def open_all_handles(mount_fd: int, handles: Mapping[str, FileHandle]) -> dict[str, int]:
    """A descriptor of every object, opened by its handle; the mount's own as ``""``."""
    fds = {"": os.dup(mount_fd)}
    for name, handle in handles.items():
        flags = os.O_PATH | os.O_NOFOLLOW if name == LATEST else os.O_RDONLY | os.O_NONBLOCK
        fds[name] = open_by_handle(mount_fd, handle, flags)
    return fds


def close_all(fds: Iterable[int]) -> None:
    """Close them."""
    for fd in fds:
        os.close(fd)
