"""Where a directory lies that is not in the index: outside the store, or in the records of one."""

from __future__ import annotations

import os
from typing import NamedTuple

from modamafs.index.nodes import Nodes
from modamafs.index.records import METADATA
from modamafs.model import RECORDS
from modamafs.store._volume import Volume
from modamafs.store.seals import SEALS

MOST_STEPS = 10_000
REMEMBERED = 100_000


class Whereabouts(NamedTuple):
    """``owner`` None: outside, or nothing of ours."""

    owner: int | None = None
    """Inode number of the indexed directory that it hangs on."""
    folder: bytes | None = None
    """Of the records: b"", b"seals", b"metadata", ELSEWHERE; None: it should be in the index."""


OUTSIDE = Whereabouts()
ELSEWHERE = b"/"
"""Of what is in a ``.modama`` and not asked for."""


class Surroundings:
    """Remembers directories that are not in the index, by inode number.

    One that comes into the store, or into a ``.modama``, is said to: see ``made`` and ``moved``.
    """

    def __init__(self, volume: Volume, nodes: Nodes) -> None:
        self._volume = volume
        self._nodes = nodes
        self._known: dict[int, Whereabouts] = {}

    def made(self, ino: int) -> None:
        """An inode of this number was made."""
        self._known.pop(ino, None)

    def moved(self, ino: int, *, is_across: bool) -> None:
        """It was moved, with all below; ``is_across``: into the index's reach, or out of it."""
        if is_across or ino in self._known:
            self._known.clear()

    def of(self, ino: int) -> Whereabouts:
        """Where a directory that has no row lies. sqlite3.Error."""
        found = self._known.get(ino)
        if found is not None:
            return found
        chain = [ino]
        met = {ino}
        try:
            fd = self._volume.open(ino, os.O_PATH | os.O_DIRECTORY)
        except OSError:
            return OUTSIDE
        try:
            found = self._climb(fd, chain, met)
        except OSError:
            return OUTSIDE
        if len(self._known) > REMEMBERED:
            self._known.clear()
        if found.owner is None:
            for above in chain:  # they all lie outside
                self._known[above] = OUTSIDE
        elif found.folder is not None:
            self._known[ino] = found
        return found

    def _climb(self, fd: int, chain: list[int], met: set[int]) -> Whereabouts:
        try:
            while len(chain) < MOST_STEPS:
                above = self._volume.lookup(fd, b"..")
                if above is None or above.dev != self._volume.dev or above.ino in met:
                    return OUTSIDE
                if self._nodes.directory(above.ino) is not None:
                    return self._inside(above.ino, chain)
                if self._known.get(above.ino) == OUTSIDE:
                    return OUTSIDE
                chain.append(above.ino)
                met.add(above.ino)
                os.close(fd)
                fd = -1
                fd = self._volume.open(above.ino, os.O_PATH | os.O_DIRECTORY)
            return OUTSIDE
        finally:
            if fd >= 0:
                os.close(fd)

    def _inside(self, owner: int, chain: list[int]) -> Whereabouts:
        """``chain``: from the directory up to what lies in the owner."""
        if not self._is_called(owner, RECORDS, chain[-1]):
            return Whereabouts(owner)
        if len(chain) == 1:
            return Whereabouts(owner, b"")
        for folder in (SEALS, METADATA):
            if len(chain) == 2 and self._is_called(chain[1], folder, chain[0]):
                return Whereabouts(owner, folder)
        return Whereabouts(owner, ELSEWHERE)

    def _is_called(self, directory: int, name: bytes, ino: int) -> bool:
        fd = self._volume.open(directory, os.O_PATH | os.O_DIRECTORY)
        try:
            found = self._volume.lookup(fd, name)
        finally:
            os.close(fd)
        return found is not None and found.ino == ino
