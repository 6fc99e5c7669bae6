"""Which files are written through the mount: told by the worker, asked by the watcher.

The kernel writes to the store by itself, on behalf of whichever client: the store's watch can't
tell that from what programs do directly on the store. So the worker notes every opening for
writing, and its end, in a ring in the runtime directory. Layout (native byte order)::

    0     how many notes were ever made
    64    4096 notes of {inode number, 1 for opened or 0 for closed}
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from pathlib import Path

WRITTEN = "written.bin"
"""The file, in the runtime directory."""
_COUNT = struct.Struct("=Q")
_NOTE = struct.Struct("=QQ")
NOTES_OFFSET = 64
NOTES = 4096
SIZE_BYTES = NOTES_OFFSET + NOTES * _NOTE.size


class Written:
    """The ring, from either side."""

    def __init__(self, path: Path) -> None:
        """OSError: ENOSPC."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, SIZE_BYTES)
            self._memory = mmap.mmap(fd, SIZE_BYTES)
        finally:
            os.close(fd)
        self._count: int = _COUNT.unpack_from(self._memory)[0]

    def close(self) -> None:
        """Unmap the file."""
        self._memory.close()

    def note(self, ino: int, *, opened: bool) -> None:
        """The worker's side: before the kernel is answered."""
        _NOTE.pack_into(self._memory, NOTES_OFFSET + self._count % NOTES * _NOTE.size, ino, opened)
        self._count += 1
        _COUNT.pack_into(self._memory, 0, self._count)

    def news(self) -> Iterator[tuple[int, bool]]:
        """The watcher's side: what was noted since it asked last; the oldest may be missing."""
        count: int = _COUNT.unpack_from(self._memory)[0]
        first, self._count = max(self._count, count - NOTES), count
        for number in range(first, count):
            ino, opened = _NOTE.unpack_from(
                self._memory, NOTES_OFFSET + number % NOTES * _NOTE.size
            )
            yield ino, bool(opened)
