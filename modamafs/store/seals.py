"""Seals on the store: the records that say that a directory is sealed.

Truth lies beside the sealed directory: ``<parent>/.modama/seals/<name>.json``. Nothing else decides:
a directory is sealed if, and only if, it or a directory above it has such a record. So a second
mount, or one that is started later, or on another machine, needs to be told nothing.
"""

from __future__ import annotations

import os

from modamafs.model import RECORDS
from modamafs.store.backing import Store, path_of

RECORD_DIRECTORY = RECORDS + b"/seals/"


class Seals:
    """Asks the store, at every question."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._prefix = path_of(store.root_fd).rstrip(b"/") + b"/"

    def covers(self, fd: int) -> bool:
        """Whether what a descriptor names, or a directory above it, is sealed."""
        path = path_of(fd)
        if not path.startswith(self._prefix):
            return False
        above = b""
        for name in path[len(self._prefix) :].split(b"/"):
            if self._has_record(above, name):
                return True
            above += name + b"/"
        return False

    def below(self, dir_fd: int, name: bytes) -> bool:
        """Whether the directory ``name`` in ``dir_fd`` is sealed, or anything below it."""
        path = path_of(dir_fd) + b"/" + name
        if not path.startswith(self._prefix):
            return False
        relative = path[len(self._prefix) :]
        return any(
            root == relative or root.startswith(relative + b"/") for root in self.sealed_roots()
        )

    def _has_record(self, above: bytes, name: bytes) -> bool:
        return os.access(
            above + RECORD_DIRECTORY + name + b".json", os.F_OK, dir_fd=self._store.root_fd
        )

    def sealed_roots(self) -> list[bytes]:
        """The paths of the sealed directories, relative to the store."""
        return []
