"""BLAKE3 of files, on all cores, with little memory.

A large file is read into two buffers by turns by one thread, while another hashes the buffer that
is full (on all cores, within one buffer). Mapping a file instead is slower here, and what is mapped
counts as memory: see ``docs/seals.md``.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Iterator

from blake3 import blake3

BUFFER_BYTES = 8 << 20
"""Fits into the last level cache, so that hashing finds it there."""
SMALL_BYTES = 1 << 20
"""Up to this size a thread costs more than it brings."""

Told = Callable[[int], None]
"""Is called with the number of bytes that were done since the last call."""


class Pace:
    """Keeps the rate of reading at or below a limit."""

    def __init__(self, bytes_per_s: float | None) -> None:
        """None: as fast as it goes."""
        self._bytes_per_s = bytes_per_s
        self._began = time.monotonic()
        self._done_bytes = 0

    def __call__(self, done_bytes: int) -> None:
        """So many bytes were done: wait until they should have been."""
        if self._bytes_per_s is None:
            return
        self._done_bytes += done_bytes
        ahead_s = self._done_bytes / self._bytes_per_s - (time.monotonic() - self._began)
        if ahead_s > 0:
            time.sleep(ahead_s)


class Hasher:
    """Hashes one file after the other. Not for several threads at once."""

    def __init__(self, told: Told) -> None:
        self._told = told
        self._buffers = (memoryview(bytearray(BUFFER_BYTES)), memoryview(bytearray(BUFFER_BYTES)))

    def digest(self, fd: int, size_bytes: int) -> tuple[str, int]:
        """The digest (hexadecimal) of a file from its beginning, and how many bytes it had.

        ``size_bytes`` is a hint. OSError: EIO where the disk can't read it any more.
        """
        if size_bytes <= SMALL_BYTES:
            return self._small(fd)
        hasher = blake3(max_threads=blake3.AUTO)
        total = 0
        for piece in self._pieces(fd):
            hasher.update(piece)
            total += len(piece)
            self._told(len(piece))
        return hasher.hexdigest(), total

    def _small(self, fd: int) -> tuple[str, int]:
        buffer, filled = self._buffers[0], 0
        hasher = blake3()
        total = 0
        while filled := os.readv(fd, [buffer]):
            hasher.update(buffer[:filled])
            total += filled
        self._told(total)
        return hasher.hexdigest(), total

    def _pieces(self, fd: int) -> Iterator[memoryview]:
        free: queue.SimpleQueue[memoryview | None] = queue.SimpleQueue()
        full: queue.SimpleQueue[memoryview | OSError] = queue.SimpleQueue()
        for buffer in self._buffers:
            free.put(buffer)

        def read() -> None:
            while (buffer := free.get()) is not None:
                try:
                    full.put(buffer[: os.readv(fd, [buffer])])
                except OSError as error:
                    full.put(error)

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        try:
            while True:
                piece = full.get()
                if isinstance(piece, OSError):
                    raise piece
                if not piece:
                    return
                yield piece
                free.put(self._buffers[piece.obj is self._buffers[1].obj])
        finally:
            free.put(None)
            reader.join()
