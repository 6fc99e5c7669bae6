"""Requests about virtual nodes: landing directories and views. See ``modamafs.tree.shown``.

Answers may need the disk or render a page, so each goes to a thread, one at a time; requests about
the store go on meanwhile. Nothing here is believed by the kernel for any time: a look-up is cheap,
and what it finds depends on records, and on who asks.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

import trio

from modamafs.errors import StaleHandle, VirtualReadOnly
from modamafs.model import RECORDS, ROOT, Attributes, Caller
from modamafs.tree.core import ACCESS_ACL
from modamafs.tree.handles import Entry, Handle, Handles
from modamafs.tree.shown import LANDING, Shown
from modamafs.tree.virtual import Control, File, Key, Link, Live, Node, attributes, is_virtual

Result = TypeVar("Result")
InThread = Callable[..., Awaitable[Any]]

LISTED_AFTER = 1 << 62
"""Positions in the listing of the mount's root from here on are ours; the store's are below, or
are hashes of 63 bits, none of which is likely to be one of the next two."""
WRITES = 1 << 30
"""Among the flags of a handle: ``ctl`` was opened to be written to. Not O_WRONLY, for nothing of
the store is."""
NO_DEVICE = 0
"""Entries on another device than the store's are only named to the kernel."""


class Commands(Protocol):
    """Who carries out what is written to ``ctl``; see ``control/ctl.py``."""

    def is_whole(self, data: bytes) -> bool:
        """Whether that is a command already, so that nobody has to wait for the file's closing."""

    async def run(self, target: bytes, data: bytes, caller: Caller) -> None:
        """Carry it out. Raises what it is refused with."""


class Virtual:
    """The virtual nodes of one mount, for the adapter."""

    def __init__(
        self, shown: Shown, handles: Handles, in_thread: InThread, commands: Commands
    ) -> None:
        self.shown = shown
        self._handles = handles
        self._run = in_thread
        self._one = trio.CapacityLimiter(1)
        self._commands = commands
        self._opened: set[int] = set()
        """Handles of ``ctl`` that were opened with this worker."""
        self._written: dict[int, tuple[bytearray, Caller]] = {}
        """What was written to a handle and is no whole command yet, and by whom."""

    async def in_thread(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Run what is about virtual nodes elsewhere, after what else is."""
        result: Result = await self._run(function, *arguments, limiter=self._one)
        return result

    # ---- whose request it is ----------------------------------------------------------------

    def has(self, parent: int, name: bytes) -> bool:
        """Whether that entry is, or would be, ours."""
        return (
            is_virtual(parent) or name == RECORDS or (parent == ROOT and name in self.shown.at_root)
        )

    def refuse(self, parent: int, name: bytes) -> None:
        """VirtualReadOnly (EROFS) where nobody may make, remove or rename that entry."""
        if is_virtual(parent) or (parent == ROOT and name in self.shown.at_root):
            raise VirtualReadOnly(
                "landing directories and views show what is on the store: "
                "change that, or write to a session's 'ctl'"
            )

    @staticmethod
    def refuse_node(node: int) -> None:
        """VirtualReadOnly (EROFS) for what is virtual."""
        if is_virtual(node):
            raise VirtualReadOnly("this is made by modamafs, and can't be changed")

    def is_lasting(self, node: int) -> bool:
        """Whether the kernel may believe a virtual node for as long as those of the store."""
        return self.shown.is_lasting(node)

    # ---- what is there ----------------------------------------------------------------------

    async def lookup(self, parent: int, name: bytes, caller: Caller) -> Attributes | None:
        """The attributes of an entry; None: there is none."""

        def look() -> Attributes | None:
            found = self.shown.lookup(parent, name, caller)
            return None if found is None else found.attributes()

        if name in (b".", b".."):
            return await self.in_thread(self._dots, parent, name)
        if is_virtual(parent):
            return look() if self.shown.is_quick(parent, name) else await self.in_thread(look)
        if name == RECORDS:
            return self.shown.landing_of(parent).attributes()
        found = self.shown.root_entry(name)
        return None if found is None else found.attributes()

    def _dots(self, node: int, name: bytes) -> Attributes:
        """File servers that hold a handle ask for these."""
        key = self.shown.table.key(node)
        if name == b"." or key.names:
            found = self.shown.walk(key if name == b"." else key._replace(names=key.names[:-1]),
                                    Caller(0, 0))  # fmt: skip
            if found is None:
                raise StaleHandle("it has been removed")
            return self.shown.keep(found).attributes()
        return self.shown.above(key)

    async def getattr(self, node: int, caller: Caller) -> Attributes:
        """The attributes of a node; of an open file, those that it had when it was opened."""

        def look() -> Attributes:
            return self.shown.node(node, caller).attributes()

        try:
            return look() if self.shown.is_kept(node) else await self.in_thread(look)
        except StaleHandle:
            for handle in self._handles:
                if handle.ino == node and handle.content is not None:
                    return self._as_opened(handle)
            raise

    def _as_opened(self, handle: Handle) -> Attributes:
        assert handle.content is not None
        key = self.shown.table.key(handle.ino)
        like: Attributes = self.shown.tree.getattr(key.ino or ROOT)
        mode = stat.S_IFREG | like.mode & 0o444
        return attributes(key, mode, like, like.mtime_ns, len(handle.content))

    async def setattr(self, node: int, caller: Caller) -> Attributes:
        """Nothing is changed. Of ``ctl`` that is no error: editors and shells truncate first."""

        def look() -> Attributes:
            found = self.shown.node(node, caller)
            if not isinstance(found, Control):
                self.refuse_node(node)
            return found.attributes()

        return await self.in_thread(look)

    async def readlink(self, node: int, caller: Caller) -> bytes:
        """The target of a link. OSError: EINVAL."""

        def look() -> bytes:
            found = self.shown.node(node, caller)
            if not isinstance(found, Link):
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            return found.target

        return await self.in_thread(look)

    async def getxattr(self, node: int, name: bytes, caller: Caller) -> bytes | None:
        """The ACL, which is the one of the directory that it is about; None: nothing else."""
        if name != ACCESS_ACL:
            return None
        return await self.in_thread(self.shown.acl, node, caller)

    # ---- files ------------------------------------------------------------------------------

    async def open(self, node: int, flags: int, caller: Caller) -> Handle:
        """Open a file. VirtualReadOnly (EROFS) for writing to anything but ``ctl``."""
        recalled = self._handles.recall(caller)
        if recalled is not None:
            return recalled

        is_writer = flags & os.O_ACCMODE != os.O_RDONLY
        kept_flags = flags & ~os.O_ACCMODE | (WRITES if is_writer else 0)
        handle = self._handles.add(node, kept_flags, caller)
        self._opened.add(handle.fh)

        def open_() -> None:
            found = self.shown.node(node, caller)
            self.shown.table.keep(found.key)
            if flags & (os.O_ACCMODE | os.O_TRUNC) and not isinstance(found, Control):
                self.refuse_node(node)
            self._fill(handle, found)

        try:
            if self.shown.is_kept(node):
                open_()
            else:
                await self.in_thread(open_)
        except BaseException:
            self._handles.remove(handle.fh)
            raise
        return handle

    @staticmethod
    def _fill(handle: Handle, found: Node) -> None:
        handle.is_live = isinstance(found, Live) and found.open is None
        if isinstance(found, File):
            handle.content = found.content
        elif isinstance(found, Live) and found.open is not None:
            handle.fd = found.open()
        elif isinstance(found, Live) and found.text is not None:
            handle.content = found.text().text
        else:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))

    async def read(self, handle: Handle, offset: int, size_bytes: int) -> bytes:
        """What was there when it was opened; of a store's file, what is there now.

        What is live is made anew for who reads it from the beginning, as in proc(5): a file server
        has it open for longer than its clients.
        """
        was_opened_before = handle.content is None and handle.fd is None  # with an earlier worker
        if was_opened_before or (handle.is_live and offset == 0):
            who = Caller(handle.uid, handle.gid)
            await self.in_thread(lambda: self._fill(handle, self.shown.node(handle.ino, who)))
        if handle.fd is not None:
            return await self.in_thread(os.pread, handle.fd, size_bytes, offset)
        assert handle.content is not None
        return handle.content[offset : offset + size_bytes]

    async def write(self, handle: Handle, data: bytes, caller: Caller) -> int:
        """A command, or a piece of one."""
        written, _ = self._written.setdefault(handle.fh, (bytearray(), caller))
        written += data
        if self._commands.is_whole(bytes(written)):
            await self.flush(handle)
        return len(data)

    async def flush(self, handle: Handle) -> None:
        """A descriptor was closed: whatever was written is a whole command."""
        written = self._written.pop(handle.fh, None)
        if written is None and handle.flags & WRITES and handle.fh not in self._opened:
            # What an earlier worker was given, and whether it has done that, nobody knows.
            handle.flags &= ~WRITES
            raise OSError(errno.EIO, "the daemon was replaced meanwhile: see what 'ctl' says")
        if written is not None:
            data, caller = written
            await self._commands.run(await self._target(handle), bytes(data), caller)

    def release(self, handle: Handle) -> None:
        """The last descriptor is closed, after its ``flush``."""
        self._opened.discard(handle.fh)
        self._written.pop(handle.fh, None)

    async def _target(self, handle: Handle) -> bytes:
        found = await self.in_thread(self.shown.node, handle.ino, Caller(handle.uid, handle.gid))
        if not isinstance(found, Control):
            raise VirtualReadOnly("this is made by modamafs, and can't be changed")
        return found.target

    def seek(self, handle: Handle, offset: int, whence: int) -> int:
        """A file without holes (SEEK_DATA, SEEK_HOLE). OSError: ENXIO."""
        size_bytes = len(handle.content or b"")
        if handle.fd is not None:
            size_bytes = os.fstat(handle.fd).st_size
        if offset >= size_bytes:
            raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))
        return offset if whence == os.SEEK_DATA else size_bytes

    # ---- directories ------------------------------------------------------------------------

    def opendir(self, node: int, caller: Caller) -> Handle:
        """Open a virtual directory for reading."""
        recalled = self._handles.recall(caller)
        return recalled or self._handles.add(node, os.O_DIRECTORY, caller)

    def readdir(self, handle: Handle, offset: int, caller: Caller) -> list[Entry]:
        """All entries from a position on, by name and type only. For a thread."""
        if offset == 0 or not handle.entries:
            handle.entries = self._listing(handle.ino, caller)
        handle.position = offset
        return handle.entries

    def _listing(self, node: int, caller: Caller) -> list[Entry]:
        directory = self.shown.directory(node, caller)
        like: Attributes = self.shown.tree.getattr(ROOT)
        names = [(b".", stat.S_IFDIR), (b"..", stat.S_IFDIR), *directory.listing(caller)]
        entries: list[Entry] = []
        for position, (name, kind) in enumerate(names, 1):
            ino = node if len(name) <= 2 and not name.strip(b".") else directory.key.child(name).id
            named = like._replace(ino=ino, mode=kind, dev=NO_DEVICE)
            entries.append((name, position, named))
        return entries

    def listed_besides(self, handle: Handle, offset: int) -> list[Entry]:
        """What follows the entries of the store, from a position on."""
        is_root = handle.ino == self.shown.tree.inodes.root_ino
        names = dict(self.shown.at_root) if is_root else {}
        if self.shown.listed:
            names[RECORDS] = Key(LANDING, ROOT if is_root else handle.ino)
        handle.entries, handle.position = [], 0
        if names:
            like: Attributes = self.shown.tree.getattr(ROOT)
            first = offset - LISTED_AFTER if is_ours(offset) else 0
            handle.entries = [
                (name, LISTED_AFTER + number, like._replace(ino=key.id, mode=stat.S_IFDIR, dev=0))
                for number, (name, key) in enumerate(names.items(), 1)
                if number > first
            ]
        return handle.entries

    # ---- private projects -------------------------------------------------------------------

    def depends_on_caller(self, handle: Handle) -> bool:
        """Whether the listing of an open directory is not the same for everybody."""
        if handle.private is None:
            tree = self.shown.tree
            fd = tree.descriptor(handle)
            above = tree.store.volume.lookup(fd, b"..")
            root_ino = tree.store.volume.root_ino
            is_area = above is not None and above.ino == root_ino and handle.ino != root_ino
            handle.private = is_area and self.shown.privacy.has_private(fd)
        return handle.private

    def seen(self, handle: Handle, caller: Caller) -> list[Entry]:
        """Of the entries that were read, those that the caller is shown."""
        fd = self.shown.tree.descriptor(handle)
        handle.entries = [
            entry
            for entry in handle.entries[handle.position :]
            if entry[0] in (b".", b"..") or self.shown.privacy.is_shown(fd, entry[0], caller)
        ]
        handle.position = 0
        return handle.entries


def is_ours(offset: int) -> bool:
    """Whether a position in a listing is one of what is listed besides the store's entries."""
    return LISTED_AFTER < offset < LISTED_AFTER + 16
