"""Open files and directories: what the kernel's ``fh`` stands for.

The table lies in the runtime state, so that a new worker knows every handle that the kernel still
holds, and the backing id of every inode that is open (a second id for such an inode would make the
client's next open fail with EIO). Descriptors die with a worker; they are opened anew when needed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field

from modamafs.errors import StaleHandle
from modamafs.model import Attributes, Caller
from modamafs.tree.state import HANDLE, HANDLE_SLOTS, HANDLES_OFFSET, State, slots

Entry = tuple[bytes, int, Attributes]


@dataclass(slots=True)
class Handle:
    """One open file or directory."""

    fh: int
    ino: int
    """The node id."""
    flags: int
    """The client's open flags; O_DIRECTORY for a directory."""
    backing_id: int
    """What the kernel reads and writes by itself; 0 where it asks us."""
    uid: int
    gid: int
    fd: int | None = None
    """Our own descriptor: of every directory, and of files without passthrough."""
    name: bytes | None = None
    """The name that it was made with, of a file that was made by this opening."""
    content: bytes | None = None
    """Of a virtual file: what it was when it was opened."""
    is_live: bool = False
    """Of a virtual file: its size is known only when it is read; past the page cache, then."""
    caller: Caller | None = None
    """Who opened a directory, as this worker was told; None after another worker."""
    private: bool | None = None
    """Of a directory: whether what is listed depends on who asks; None: not known yet."""
    is_known: bool = False
    """Of a directory: whether the kernel still believes what it was told of all of its entries."""
    entries: list[Entry] = field(default_factory=list)
    """Directories: the entries that were read last, and not all handed out yet."""
    position: int = 0
    """Directories: index into ``entries`` of the next one."""
    offset: int = 0
    """Directories: the cookie at which the kernel will go on, if it reads on in order."""

    @property
    def writable(self) -> bool:
        """Whether it was opened for writing."""
        return self.flags & os.O_ACCMODE != os.O_RDONLY

    @property
    def changes_unseen(self) -> bool:
        """Whether its file's attributes can change without the kernel's noticing at once.

        Through a shared mapping, which takes a descriptor for reading and writing; and where set-id
        bits go at a write, which is why such a file has no backing id.
        """
        return self.flags & os.O_ACCMODE == os.O_RDWR or (self.writable and not self.backing_id)

    def take_fd(self) -> int | None:
        """Give up the descriptor: the caller closes it."""
        fd, self.fd = self.fd, None
        return fd


@dataclass(slots=True)
class OpenInode:
    """What is shared by all handles of one inode."""

    backing_id: int = 0
    handles: int = 0
    writers: int = 0
    changing: int = 0
    """Of the writers, those that ``changes_unseen``."""


class Handles:
    """The table. It is the only place that knows which inodes are open."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._by_fh: dict[int, Handle] = {}
        self._free: list[int] = []
        self._earlier: dict[int, Handle] = {}
        self._inodes: dict[int, OpenInode] = {}
        self.writing: set[int] = set()
        """The inodes that are open for writing."""
        self.changing: set[int] = set()
        """Those of them whose attributes are not to be believed for long."""
        for slot, fields in enumerate(slots(state.memory, state.used_slots)):
            fh, ino, request, flags, backing_id, uid, gid = fields
            if not fh:
                self._free.append(slot)
                continue
            handle = Handle(fh, ino, flags, backing_id, uid, gid)
            self._count(handle)
            self._earlier[request] = handle

    def _count(self, handle: Handle) -> None:
        self._by_fh[handle.fh] = handle
        inode = self._inodes.setdefault(handle.ino, OpenInode())
        inode.handles += 1
        if handle.writable:
            inode.writers += 1
            self.writing.add(handle.ino)
        if handle.changes_unseen:
            inode.changing += 1
            self.changing.add(handle.ino)
        inode.backing_id = inode.backing_id or handle.backing_id

    def __len__(self) -> int:
        return len(self._by_fh)

    def __iter__(self) -> Iterator[Handle]:
        return iter(self._by_fh.values())

    def add(
        self, ino: int, flags: int, caller: Caller, backing_id: int = 0, fd: int | None = None
    ) -> Handle:
        """A new handle, written down before the kernel hears of it. OSError: ENFILE."""
        slot = self._free.pop() if self._free else self._state.used_slots
        if slot >= HANDLE_SLOTS:
            raise OSError(23, "too many open files on this mount")
        fh = self._state.next_serial(slot) * HANDLE_SLOTS + slot
        HANDLE.pack_into(
            self._state.memory,
            HANDLES_OFFSET + slot * HANDLE.size,
            fh,
            ino,
            caller.request,
            flags,
            backing_id,
            caller.uid,
            caller.gid,
        )
        handle = Handle(fh, ino, flags, backing_id, caller.uid, caller.gid, fd)
        self._count(handle)
        return handle

    def get(self, fh: int) -> Handle:
        """The handle of a number that the kernel sent. StaleHandle (ESTALE)."""
        try:
            return self._by_fh[fh]
        except KeyError:
            raise StaleHandle(f"no open file has the handle {fh}") from None

    def find(self, fh: int) -> Handle | None:
        """The handle of a number; None where it is closed already."""
        return self._by_fh.get(fh)

    def recall(self, caller: Caller) -> Handle | None:
        """The handle that an earlier worker made for a request that is sent again."""
        return self._earlier.pop(caller.request, None) if caller.resent else None

    def inode(self, ino: int) -> OpenInode | None:
        """What is shared by the handles of an inode; None where it is not open."""
        return self._inodes.get(ino)

    def backing_ids(self) -> set[int]:
        """The backing ids in use."""
        return {inode.backing_id for inode in self._inodes.values() if inode.backing_id}

    def remove(self, fh: int) -> tuple[Handle, int] | None:
        """Forget a handle; with it, the backing id that nobody uses any more (0 for none).

        None for a handle that is gone already: a release that is sent again.
        """
        handle = self._by_fh.pop(fh, None)
        if handle is None:
            return None
        slot = fh % HANDLE_SLOTS
        HANDLE.pack_into(
            self._state.memory, HANDLES_OFFSET + slot * HANDLE.size, 0, 0, 0, 0, 0, 0, 0
        )
        self._free.append(slot)
        inode = self._inodes[handle.ino]
        inode.handles -= 1
        if handle.writable:
            inode.writers -= 1
            if not inode.writers:
                self.writing.discard(handle.ino)
        if handle.changes_unseen:
            inode.changing -= 1
            if not inode.changing:
                self.changing.discard(handle.ino)
        if inode.handles:
            return handle, 0
        del self._inodes[handle.ino]
        return handle, inode.backing_id
