"""The log of events between the kernel and the index: what was read and not written down yet.

The kernel copies events right into a mapped file in the runtime directory. A mapping is in the page
cache at once, and that does not die with a process: whoever comes after a killed watcher goes on
with what lies there. Layout (native byte order)::

    0     magic; how much of the events has been dealt with; 1 if some were lost; threads
    4096  events, one after the other; a length of 0 ends them

Only the index may lag behind; what the kernel is to forget is told at once, and again after a kill.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
from collections.abc import Iterable
from pathlib import Path

from modamafs.watch.events import length_at

WATCH_LOG = "watch.bin"
"""The file, in the runtime directory."""
WATCH_GAP = "watch.gap"
"""Beside it where the watch began later than the mount, until the kernel was told."""
MAGIC = b"modamaw1"
HEADER = struct.Struct("=8sQQ")
THREADS = struct.Struct("=16I")
THREADS_OFFSET = 1024
EVENTS_OFFSET = 4096
SIZE_BYTES = 8 << 20
READ_BYTES = 64 << 10


class EventLog:
    """One mount's log. Not for two threads at a time."""

    def __init__(self, path: Path) -> None:
        """Waits for an earlier watcher's end. No room there: it does not survive a kill."""
        self._memory, self._fd = _mapped(path)
        magic, self._done, lost = HEADER.unpack_from(self._memory)
        if magic != MAGIC or self._done > SIZE_BYTES - EVENTS_OFFSET:
            self._memory[EVENTS_OFFSET:] = bytes(SIZE_BYTES - EVENTS_OFFSET)
            self._done, lost = 0, 1
        self.lost = bool(lost)
        """The index was not told of everything, as at the beginning: it has to look at it."""
        self._before = 0
        self._end = self._find_end()
        self._write()

    @property
    def end(self) -> int:
        """How much was read so far; for ``done``."""
        end: int = self._before + self._end
        return end

    def close(self) -> None:
        """Unmap the file."""
        self._memory.close()
        os.close(self._fd)

    def _write(self) -> None:
        HEADER.pack_into(self._memory, 0, MAGIC, self._done, self.lost)

    def _find_end(self) -> int:
        end: int = self._done
        with memoryview(self._memory) as memory:
            while length := length_at(memory, EVENTS_OFFSET + end):
                end += length
        return end

    def pending(self) -> bytes:
        """What was read and not dealt with so far."""
        return self._memory[EVENTS_OFFSET + self._done : EVENTS_OFFSET + self._end]

    def read(self, fd: int) -> bytes:
        """The next events of a group; b"" for none. OSError."""
        if EVENTS_OFFSET + self._end + READ_BYTES > SIZE_BYTES:
            self._begin_anew(lost=self._done != self._end)
        begin = EVENTS_OFFSET + self._end
        with memoryview(self._memory) as memory, memory[begin : begin + READ_BYTES] as room:
            try:
                got = os.readv(fd, [room])
            except BlockingIOError:
                return b""
        self._end += got
        return self._memory[begin : begin + got]

    def done(self, up_to: int) -> None:
        """Everything before this ``end`` was dealt with."""
        if up_to - self._before <= self._done:
            return  # that was before it began anew
        self._done = up_to - self._before
        if self._done == self._end:
            self._begin_anew(lost=False)
        else:
            self._write()

    def _begin_anew(self, *, lost: bool) -> None:
        self.lost = self.lost or lost
        used, self._done, self._end = self._end, 0, 0
        self._before += used
        # First the events, then where they begin: a kill in between shows none, or all again.
        self._memory[EVENTS_OFFSET : EVENTS_OFFSET + used] = bytes(used)
        self._write()

    def set_lost(self, lost: bool) -> None:
        """Whether the index has to look at everything; to be remembered after a kill, too."""
        if lost != self.lost:
            self.lost = lost
            self._write()

    @property
    def threads(self) -> list[int]:
        """The main threads of the workers of this mount, the latest first."""
        return [pid for pid in THREADS.unpack_from(self._memory, THREADS_OFFSET) if pid]

    def note_thread(self, thread: int) -> None:
        """This worker's main thread; what it does was asked for by the kernel."""
        known: Iterable[int] = [thread, *(one for one in self.threads if one != thread)]
        packed = (*known, *([0] * 16))[:16]
        THREADS.pack_into(self._memory, THREADS_OFFSET, *packed)


def _mapped(path: Path) -> tuple[mmap.mmap, int]:
    """The memory, and a descriptor that holds the lock. Without room for it: memory of our own."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)  # an earlier watcher is at its end
        os.posix_fallocate(fd, 0, SIZE_BYTES)  # touching a page without room would be SIGBUS
        return mmap.mmap(fd, SIZE_BYTES), fd
    except OSError:
        return mmap.mmap(-1, SIZE_BYTES), fd
