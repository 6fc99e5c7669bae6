"""What has to survive a worker's SIGKILL: open handles, backing ids, the journal of intents.

One file in the runtime directory, mapped into memory: a store into a mapping is in the page cache
at once, and the page cache does not die with a process. It does die with the machine, as the mount
does. Layout (native byte order, fixed offsets)::

    0     header    magic, number of slots ever used, last serial, registering, last backing id
    4096  journal   64 slots of 64 bytes
    8192  handles   2^20 slots of 40 bytes (a sparse file: only what is touched takes memory)
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from pathlib import Path

MAGIC = b"modamaf1"
HEADER = struct.Struct("=8sQQii")
JOURNAL_OFFSET = 4096
JOURNAL_SLOTS = 64
JOURNAL_SLOT_BYTES = 64
HANDLES_OFFSET = 8192
HANDLE_SLOTS = 1 << 20
HANDLE = struct.Struct("=QQQIiII")
ALLOCATED_BYTES = 64 << 10
"""How much of the file gets room on the disk at a time."""
SIZE_BYTES = HANDLES_OFFSET + HANDLE_SLOTS * HANDLE.size


class State:
    """The mapped file. A new file, or one of another version, starts empty."""

    def __init__(self, path: Path) -> None:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, SIZE_BYTES)
            self.memory = mmap.mmap(fd, SIZE_BYTES)
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd
        self._allocated = 0
        self._allocate(HANDLES_OFFSET)
        magic: bytes
        self._used: int
        self._serial: int
        self._registering: int
        self._last_id: int
        magic, self._used, self._serial, self._registering, self._last_id = HEADER.unpack_from(
            self.memory
        )
        self.fresh = magic != MAGIC
        if self.fresh:
            self._used = self._serial = self._registering = self._last_id = 0
            self.memory[JOURNAL_OFFSET:HANDLES_OFFSET] = bytes(HANDLES_OFFSET - JOURNAL_OFFSET)
            self._write()

    def close(self) -> None:
        """Unmap the file; its content stays."""
        self.memory.close()
        os.close(self._fd)

    def _allocate(self, up_to: int) -> None:
        """Have room for so many bytes: touching a page that there is none for would be SIGBUS.

        OSError: ENOSPC.
        """
        if up_to > self._allocated:
            size = -(-up_to // ALLOCATED_BYTES) * ALLOCATED_BYTES
            os.posix_fallocate(self._fd, 0, min(size, SIZE_BYTES))
            self._allocated = size

    def _write(self) -> None:
        HEADER.pack_into(
            self.memory, 0, MAGIC, self._used, self._serial, self._registering, self._last_id
        )

    @property
    def used_slots(self) -> int:
        """How many handle slots were ever used: the rest of the table is empty."""
        return self._used

    def next_serial(self, slot: int) -> int:
        """A number that no earlier handle had; ``slot`` is counted as used from now on.

        OSError: ENOSPC.
        """
        self._allocate(HANDLES_OFFSET + (slot + 1) * HANDLE.size)
        self._serial += 1
        self._used = max(self._used, slot + 1)
        self._write()
        return self._serial

    def begin_registration(self) -> None:
        """A backing file is about to be registered with the kernel."""
        self._registering = 1
        self._write()

    def end_registration(self, backing_id: int) -> None:
        """The backing id is written down in a handle (or closed again)."""
        self._registering = 0
        self._last_id = max(self._last_id, backing_id)
        self._write()

    def lost_registration(self) -> int | None:
        """The backing id that a killed worker may have been given and could not write down.

        The kernel gives ids in order (``idr_alloc_cyclic``), so it can only be the one after the
        last that was written down.
        """
        return self._last_id + 1 if self._registering else None


def slots(memory: mmap.mmap, used: int) -> Iterator[tuple[int, ...]]:
    """The first slots of the table of handles: fields as in ``HANDLE``, all 0 for a free one."""
    for slot in range(used):
        yield HANDLE.unpack_from(memory, HANDLES_OFFSET + slot * HANDLE.size)


def saved_handles(path: Path) -> Iterator[tuple[int, int]]:
    """Inode number and open flags of every handle in the file, for who only looks."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if os.fstat(fd).st_size < SIZE_BYTES:
            return
        with mmap.mmap(fd, SIZE_BYTES, prot=mmap.PROT_READ) as memory:
            magic, used, *_ = HEADER.unpack_from(memory)
            for fh, ino, _, flags, *_ in slots(memory, used if magic == MAGIC else 0):
                if fh:
                    yield ino, flags
    finally:
        os.close(fd)
