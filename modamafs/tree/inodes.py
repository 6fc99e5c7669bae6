"""Node identity: from the kernel's node id to the inode, by whoever has never seen it before.

A node id is the store's own inode number (the root's is 1), and the store itself resolves it, by
``open_by_handle_at(2)``. So there is no table to lose with a worker, nothing to forget, and no
descriptor held for an inode that the kernel merely knows. Only directories are kept open, a bounded
number of them, since every lookup goes through one; a directory that is removed meanwhile does no
harm by being held, while a file's bytes would stay on the disk.
"""

from __future__ import annotations

import os
from collections import OrderedDict

from modamafs.model import ROOT, Attributes
from modamafs.store.backing import Store
from modamafs.tree.scope import Scope

OPEN_DIRECTORIES = 2048


class Inodes:
    """Resolves node ids. Three verbs: ``directory``, ``open``, ``attributes``."""

    def __init__(self, store: Store, scope: Scope) -> None:
        self._scope = scope
        self._volume = store.volume
        self.root_ino = scope.root_ino
        self._directories: OrderedDict[int, int] = OrderedDict()

    def close(self) -> None:
        """Close every directory that is held open."""
        while self._directories:
            os.close(self._directories.popitem()[1])

    def node(self, attributes: Attributes) -> int:
        """The node id of an inode of the store."""
        return ROOT if attributes.ino == self.root_ino else attributes.ino

    def ino(self, node: int) -> int:
        """The store's inode number of a node id."""
        return self.root_ino if node == ROOT else node

    def directory(self, node: int) -> int:
        """A descriptor of a directory, open for reading. It stays ours: don't close or keep it.

        OSError: ESTALE (no such inode any more), ENOTDIR. StaleHandle: it is not in the scope.
        """
        if node == ROOT:
            return self._scope.root_fd
        directories = self._directories
        fd = directories.get(node)
        if fd is not None:
            directories.move_to_end(node)
        else:
            fd = self._volume.open(node, os.O_RDONLY | os.O_DIRECTORY)
            directories[node] = fd
            if len(directories) > OPEN_DIRECTORIES:
                os.close(directories.popitem(last=False)[1])
        if not self._scope.is_whole:
            self._scope.admit_directory(fd)
        return fd

    def forget(self, node: int) -> None:
        """A directory was removed: its number may soon be another's."""
        fd = self._directories.pop(node, None)
        if fd is not None:
            os.close(fd)

    def open(self, node: int, flags: int) -> int:
        """A new descriptor of any inode, also of one without a name; the caller closes it.

        OSError: ESTALE, and whatever opening that file with these flags gives. StaleHandle: it lies
        outside of the scope by now.
        """
        fd = self._volume.open(self.ino(node), flags)
        if not self._scope.is_whole and node != ROOT:
            try:
                self._scope.admit(fd)
            except BaseException:
                os.close(fd)
                raise
        return fd

    def attributes(self, node: int) -> Attributes:
        """The attributes of an inode. OSError: ESTALE."""
        if node == ROOT:
            return self._volume.attributes(self._scope.root_fd)
        fd = self._directories.get(node)
        if fd is not None:
            return self._volume.attributes(fd)
        return self._volume.attributes_of(node)
