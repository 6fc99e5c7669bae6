"""Noticing what was recorded: a file that was written and closed, or got its name, in a session."""

from __future__ import annotations

import os
from collections.abc import Callable

from modamafs.store.backing import path_of
from modamafs.tree.core import Tree
from modamafs.tree.facts import Told, session_of
from modamafs.tree.handles import Handle


class Recorded:
    """Tells somebody of the files whose names are worth a look."""

    def __init__(self, tree: Tree, is_wanted: Callable[[bytes], bool], tell: Told) -> None:
        """``is_wanted`` takes a name, or a path that ends in it."""
        self._tree = tree
        self._is_wanted = is_wanted
        self._tell = tell

    def closed(self, handle: Handle) -> None:
        """A client has closed a file; what was opened for reading does not matter."""
        if not handle.writable or (handle.name is not None and not self._is_wanted(handle.name)):
            return
        try:
            fd = self._tree.inodes.open(handle.ino, os.O_PATH)
        except OSError:  # it was removed meanwhile
            return
        try:
            self._say(path_of(fd))
        finally:
            os.close(fd)

    def renamed(self, parent: int, name: bytes) -> None:
        """A file has got its name, as programs do that write beside it first."""
        if self._is_wanted(name):
            self._say(path_of(self._tree.inodes.directory(parent)) + b"/" + name)

    def _say(self, path: bytes) -> None:
        root = path_of(self._tree.store.root_fd).rstrip(b"/") + b"/"
        relative = path[len(root) :] if path.startswith(root) else b""
        session = session_of(relative)
        if session is not None and session != relative and self._is_wanted(relative):
            self._tell(session, relative[len(session) + 1 :])
