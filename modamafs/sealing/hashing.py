"""Hashing files as fast as the disk, or the processor, goes.

What the page cache has is hashed where it is. The rest is read past it (O_DIRECT), some pieces
ahead while the one before them is hashed on all cores: that is quicker, and leaves other people's
data in the cache. See ``docs/design/sealing.md``.
"""

from __future__ import annotations

import errno
import mmap
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from blake3 import blake3

PIECE_BYTES = 4 << 20
READERS = 3
"""Pieces that are read at once, while one more is being hashed."""
MAPPED_BYTES = 128 << 20
SMALL_BYTES = 1 << 20
"""Up to this size a thread costs more than it brings."""

_MADV_POPULATE_READ = 22

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
        self._buffers = [memoryview(mmap.mmap(-1, PIECE_BYTES)) for _ in range(READERS + 1)]

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
        """One after the other; each is valid until the next one is asked for."""
        reads: deque[Future[memoryview]] = deque()
        offset = 0
        with _Source(fd) as source, ThreadPoolExecutor(READERS) as readers:
            while True:
                mapped = None
                while len(reads) < READERS and mapped is None:
                    if source.is_cached(offset):
                        if reads:
                            break
                        mapped = source.map(offset)
                    if mapped is None:
                        buffer = self._buffers[offset // PIECE_BYTES % len(self._buffers)]
                        reads.append(readers.submit(source.read, buffer, offset))
                        offset += PIECE_BYTES
                    else:
                        offset += len(mapped)
                piece = reads.popleft().result() if mapped is None else mapped
                if not piece:
                    return
                yield piece


class _Source:
    """A file, to be read in pieces, by several threads at once."""

    def __init__(self, fd: int) -> None:
        again = b"/proc/self/fd/%d" % fd
        self._fd = fd
        # Without this flag, asking whether a page is there would have the kernel read ahead.
        self._asked = os.open(again, os.O_RDONLY | os.O_CLOEXEC)
        os.posix_fadvise(self._asked, 0, 0, os.POSIX_FADV_RANDOM)
        try:
            self._direct = os.open(again, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
        except OSError:  # a file system that has no direct I/O
            self._direct = -1

    def __enter__(self) -> _Source:
        return self

    def __exit__(self, *exception: object) -> None:
        os.close(self._asked)
        if self._direct >= 0:
            os.close(self._direct)

    def is_cached(self, offset: int) -> bool:
        """Whether the page cache has the byte there. False at the end of the file."""
        try:
            return bool(os.preadv(self._asked, [bytearray(1)], offset, os.RWF_NOWAIT))
        except OSError:  # EAGAIN: it is not; EOPNOTSUPP: this file system does not tell
            return False

    def map(self, offset: int) -> memoryview | None:
        """The kernel's own pages from there on; None where it can't lend them.

        It can't if the disk can't be read: reading says why, where touching such a mapping would be
        the end of this process.
        """
        size_bytes = min(MAPPED_BYTES, os.fstat(self._fd).st_size - offset)
        try:
            mapped = mmap.mmap(self._fd, size_bytes, prot=mmap.PROT_READ, offset=offset)
            mapped.madvise(_MADV_POPULATE_READ)
        except (OSError, ValueError):
            return None
        return memoryview(mapped)

    def read(self, buffer: memoryview, offset: int) -> memoryview:
        """Fill the buffer, unless the file ends before. OSError: whatever reading gives."""
        filled = self._read_past_the_cache(buffer, offset)
        while filled < len(buffer):
            count = os.preadv(self._fd, [buffer[filled:]], offset + filled)
            if not count:
                break
            filled += count
        return buffer[:filled]

    def _read_past_the_cache(self, buffer: memoryview, offset: int) -> int:
        if self._direct < 0:
            return 0
        try:
            return os.preadv(self._direct, [buffer], offset)
        except OSError as error:
            if error.errno != errno.EINVAL:  # no direct I/O for this file, or this buffer
                raise
            return 0
