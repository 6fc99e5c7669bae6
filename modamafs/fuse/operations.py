"""The adapter: pyfuse3's handlers on one side, the tree on the other, no decision in between.

A handler is named like its system call. Quick ones are plain functions; those that may take long go
to a thread and let others be served meanwhile (``_in_thread``).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import stat
import struct
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias, TypeVar

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, RequestContext, SetattrFields

from modamafs.fuse import _channel
from modamafs.fuse.boundary import errno_of, handler, quick_handler, slow_handler
from modamafs.fuse.channel import (
    FOPEN_CACHE_DIR,
    FOPEN_DIRECT_IO,
    FOPEN_KEEP_CACHE,
    FOPEN_NOFLUSH,
    FOPEN_PARALLEL_DIRECT_WRITES,
    FOPEN_PASSTHROUGH,
    SETXATTR_ACL_KILL_SGID,
    scheduler,
)
from modamafs.fuse.phantoms import LASTING_S, Phantoms, is_phantom, is_watcher
from modamafs.fuse.virtual import Commands, Virtual, is_ours
from modamafs.model import RECORDS, ROOT, TEMPORARY, Attributes, Caller
from modamafs.store import backing
from modamafs.tree.core import LARGE_BYTES, Tree
from modamafs.tree.handles import Entry, Handle
from modamafs.tree.recorded import Recorded
from modamafs.tree.shown import Shown
from modamafs.tree.virtual import is_virtual
from modamafs.watch.nudges import CHANGED

Result = TypeVar("Result")

log = logging.getLogger("modamafs.fuse")

INLINE_WRITE_BYTES = 64 << 10
"""Up to this size a write without passthrough is done at once; a larger one in a thread."""

INLINE_FALLOCATE_BYTES = 1 << 20
"""The same for fallocate."""

SCAN_BYTES = 8192
"""How much of a directory is read at a time: about what one reply to the kernel holds."""

NAMES_IN_REPLY = 5
"""How much longer an entry is in a reply of READDIRPLUS than in one of getdents64(2), about."""
LISTED_DIRECTORIES = 4096

CHANGING_TIMEOUT_S = 0.0
"""How long the kernel may believe attributes that change without its noticing; see ``Handle``."""

# fuse_lowlevel.h: what SETATTR is to change
SET_MODE, SET_UID, SET_GID, SET_SIZE = (1 << bit for bit in range(4))
SET_ATIME, SET_MTIME = 1 << 4 | 1 << 7, 1 << 5 | 1 << 8  # to what is given, or to now
SET_ATTRIBUTES = SET_MODE | SET_UID | SET_GID | SET_ATIME | SET_MTIME

Time: TypeAlias = tuple[int, int]
"""Seconds since 1970, and nanoseconds."""

NOT_QUICK: int = NotImplemented
"""Says to the channel that pyfuse3's handler is to be asked."""

WRITE_OUT = struct.Struct("=II")
LSEEK_OUT = struct.Struct("=Q")
STATX_OUT = struct.Struct("=QII16x IIQIIIH2xQQQQ qI4xqI4xqI4xqI4x IIII112x")
STATX_BASIC_STATS = 0x7FF
STATX_BTIME = 0x800
IOCTL_OUT = struct.Struct("=iIII")

# linux/fs.h: what chattr(1) and xfs_io(8) ask; (changes something, size of the argument)
INODE_IOCTLS = {
    0x80086601: (False, 4),  # FS_IOC_GETFLAGS
    0x40086602: (True, 4),  # FS_IOC_SETFLAGS
    0x801C581F: (False, 28),  # FS_IOC_FSGETXATTR
    0x401C5820: (True, 28),  # FS_IOC_FSSETXATTR
    0x80087601: (False, 8),  # FS_IOC_GETVERSION
}


def caller_of(ctx: RequestContext) -> Caller:
    """Who sent the request that is being handled. To be asked before anything is awaited."""
    return Caller(ctx.uid, ctx.gid, ctx.pid, ctx.umask, *_channel.current())


def reply(req: int, error: int, payload: bytes = b"") -> None:
    """Answer a request of the channel's; that the kernel does not take it must end nothing."""
    try:
        _channel.reply(req, error, payload)
    except OSError as failure:
        log.error("reply-refused errno=%s", failure.errno)


def _nanoseconds(since_1970: Time) -> int:
    seconds, nanoseconds = since_1970
    return seconds * 1_000_000_000 + nanoseconds


class Timeouts(NamedTuple):
    """For how long the kernel may believe what it was told, in seconds."""

    attributes_s: float
    entries_s: float

    def at_least(self, trusted_s: float) -> Timeouts:
        """The same for what is watched; what must not be believed at all stays so."""
        return Timeouts(*(max(one, trusted_s) if one else one for one in self))


class Operations(pyfuse3.Operations):
    """The file system as pyfuse3 wants it."""

    supports_dot_lookup = True
    enable_writeback_cache = False
    enable_acl = True

    def __init__(
        self,
        tree: Tree,
        shown: Shown,
        commands: Commands,
        recorded: Recorded,
        nursery: trio.Nursery,
        *,
        timeouts: Timeouts,
        watched_timeout_s: float,
    ) -> None:
        """``watched_timeout_s``: how long things may be believed while the store is watched."""
        super().__init__()
        self.tree = tree
        self._nursery = nursery
        self._unwatched = timeouts
        self._watched = timeouts.at_least(watched_timeout_s)
        self._timeouts = timeouts
        self._threads = trio.CapacityLimiter(16)
        self._virtual = Virtual(shown, tree.handles, self._in_thread, commands)
        self._phantoms = Phantoms(tree, shown.privacy, self._virtual.has)
        self._scheduler = scheduler(pyfuse3)
        self._recorded = recorded
        self._changing = tree.handles.changing
        self._quick: dict[int, Callable[..., bytes]] = {
            21: self._setxattr,
            39: self._ioctl,
            44: self._readdirplus,
            46: self._lseek,
            52: self._statx,
        }
        self._slow: dict[int, Callable[..., bytes]] = {
            43: self._fallocate,
            47: self._copy_file_range,
        }
        self._listed: OrderedDict[int, float] = OrderedDict()
        self.trust(watched=False)

    def trust(self, watched: bool) -> None:
        """From now on, what changes on the store is noticed at once, or is not."""
        self._timeouts = self._watched if watched else self._unwatched
        self._listed.clear()
        _channel.set_timeouts(
            self._timeouts.entries_s, self._timeouts.attributes_s, CHANGING_TIMEOUT_S
        )

    async def _in_thread(
        self,
        function: Callable[..., Result],
        *arguments: Any,
        limiter: trio.CapacityLimiter | None = None,
    ) -> Result:
        """Run what may take long elsewhere, and serve others meanwhile."""
        if self._scheduler is not None:
            self._scheduler.turn.give_up()
        limiter = limiter or self._threads
        return await trio.to_thread.run_sync(function, *arguments, limiter=limiter)

    def _close_later(self, fd: int | None) -> None:
        """Close a descriptor that may hold a large file's blocks, and wait for nobody."""
        if fd is not None:
            self._nursery.start_soon(trio.to_thread.run_sync, os.close, fd)

    # ---- attributes -------------------------------------------------------------------------

    def _attributes(self, found: Attributes) -> EntryAttributes:
        entry = EntryAttributes()
        (
            entry.st_ino, entry.generation, entry.st_mode, entry.st_nlink, entry.st_uid,
            entry.st_gid, entry.st_rdev, entry.st_size, entry.st_blocks, entry.st_blksize,
            entry.st_atime_ns, entry.st_mtime_ns, entry.st_ctime_ns, _, _, _,
        ) = found  # fmt: skip
        entry.attr_timeout, entry.entry_timeout = self._timeouts
        if is_phantom(found.ino):
            entry.attr_timeout, entry.entry_timeout = LASTING_S, 0.0
        elif is_virtual(found.ino):
            if self._virtual.is_lasting(found.ino):
                entry.attr_timeout, entry.entry_timeout = self._unwatched
            else:
                entry.attr_timeout = entry.entry_timeout = 0.0
        elif found.ino in self._changing:
            entry.attr_timeout = CHANGING_TIMEOUT_S
        return entry

    def _entry(self, found: Attributes) -> EntryAttributes:
        entry = self._attributes(found)
        node = self.tree.node(found)
        if node == ROOT:
            entry.st_ino = ROOT
        return entry

    # ---- without a coroutine ----------------------------------------------------------------

    def quick(self) -> dict[int, Callable[..., object]]:
        """What answers most requests, by opcode: see ``_channel.set_quick``.

        What these leave over (NOT_QUICK), pyfuse3's handlers of the same names answer.
        """
        return {
            1: self.quick_lookup,
            3: self.quick_getattr,
            4: self.quick_setattr,
            9: self.quick_mkdir,
            10: self.quick_unlink,
            11: self.quick_rmdir,
            14: self.quick_open,
            18: self.quick_release,
            22: self.quick_getxattr,
            27: self.quick_opendir,
            29: self.quick_release,
            35: self.quick_create,
        }

    @quick_handler
    def quick_lookup(self, parent: int, name: bytes) -> Attributes | int:
        """What an entry of the store is."""
        if self._virtual.has(parent, name) or is_watcher(*_channel.current_owner()):
            return NOT_QUICK
        found = self.tree.lookup(parent, name)
        if found is None:
            return errno.ENOENT if self._timeouts is self._unwatched else 0
        return found

    @quick_handler
    def quick_getattr(self, node: int) -> Attributes | int:
        """The attributes of an inode of the store."""
        return NOT_QUICK if is_virtual(node) else self.tree.getattr(node)

    @quick_handler
    def quick_getxattr(self, node: int, name: bytes) -> bytes | int:
        """An extended attribute of an inode of the store."""
        if is_virtual(node):
            return NOT_QUICK
        value = self.tree.getxattr(node, name)
        return errno.ENODATA if value is None else value

    @quick_handler
    def quick_setattr(
        self, node: int, fields: int, mode: int, uid: int, gid: int, atime: Time, mtime: Time
    ) -> Attributes | int:
        """Change attributes; not the size, which may take long."""
        if is_virtual(node) or fields & SET_SIZE or not fields & SET_ATTRIBUTES:
            return NOT_QUICK
        return self.tree.setattr(
            node,
            mode=mode if fields & SET_MODE else None,
            uid=uid if fields & SET_UID else None,
            gid=gid if fields & SET_GID else None,
            atime_ns=_nanoseconds(atime) if fields & SET_ATIME else None,
            mtime_ns=_nanoseconds(mtime) if fields & SET_MTIME else None,
        )

    @quick_handler
    def quick_mkdir(self, parent: int, name: bytes, mode: int, who: tuple[Any, ...]) -> Attributes:
        """Make a directory."""
        self._virtual.refuse(parent, name)
        return self.tree.mknod(parent, name, mode | stat.S_IFDIR, 0, Caller(*who))

    @quick_handler
    def quick_unlink(self, parent: int, name: bytes, who: tuple[Any, ...]) -> int:
        """Remove a name that is no directory's."""
        self._unlink(parent, name, Caller(*who))
        return 0

    @quick_handler
    def quick_rmdir(self, parent: int, name: bytes, who: tuple[Any, ...]) -> int:
        """Remove a directory."""
        self._rmdir(parent, name, Caller(*who))
        return 0

    @quick_handler
    def quick_open(self, node: int, flags: int, who: tuple[Any, ...]) -> tuple[int, int, int] | int:
        """Open a file of the store; not to truncate it, which may take long."""
        if is_virtual(node) or flags & os.O_TRUNC:
            return NOT_QUICK
        return self._opened(self._open(node, flags, Caller(*who)))

    @quick_handler
    def quick_create(
        self, parent: int, name: bytes, mode: int, flags: int, who: tuple[Any, ...]
    ) -> tuple[int, int, int, Attributes]:
        """Make a file and open it."""
        handle, found = self._create(parent, name, mode, flags, Caller(*who))
        return *self._opened(handle), found

    @quick_handler
    def quick_opendir(self, node: int, who: tuple[Any, ...]) -> tuple[int, int, int]:
        """Open a directory."""
        handle, flags = self._opendir(node, Caller(*who))
        return handle.fh, flags, 0

    @quick_handler
    def quick_release(self, fh: int) -> int:
        """A file or a directory was closed."""
        self._release(fh)
        return 0

    # ---- what is there ----------------------------------------------------------------------

    @slow_handler
    async def lookup(self, parent: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        if is_watcher(ctx.uid, ctx.gid):
            found = self._phantoms.lookup(parent, name, ctx.gid)
        elif self._virtual.has(parent, name):
            found = await self._virtual.lookup(parent, name, caller_of(ctx))
        else:
            found = self.tree.lookup(parent, name)
        if found is None:
            raise FUSEError(errno.ENOENT)  # of what is virtual, that is not to be believed
        return self._entry(found)

    async def forget(self, inode_list: object) -> None:
        """Nothing is kept of what the kernel knows (the channel does not even ask)."""

    @slow_handler
    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        if is_phantom(inode):
            return self._attributes(self._phantoms.attributes(inode))
        if is_virtual(inode):
            return self._attributes(await self._virtual.getattr(inode, caller_of(ctx)))
        return self._attributes(self.tree.getattr(inode))

    @slow_handler
    async def setattr(
        self,
        inode: int,
        attr: EntryAttributes,
        fields: SetattrFields,
        fh: int | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        caller = caller_of(ctx)
        if is_virtual(inode):
            return self._attributes(await self._virtual.setattr(inode, caller))
        if fields.update_size:
            found = await self._truncate(inode, attr.st_size, caller, fh)
        else:
            found = None
        if (
            found is None
            or fields.update_mode
            or fields.update_uid
            or fields.update_gid
            or (fields.update_atime or fields.update_mtime)
        ):
            found = self.tree.setattr(
                inode,
                mode=attr.st_mode if fields.update_mode else None,
                uid=attr.st_uid if fields.update_uid else None,
                gid=attr.st_gid if fields.update_gid else None,
                atime_ns=attr.st_atime_ns if fields.update_atime else None,
                mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
            )
        return self._attributes(found)

    async def _truncate(
        self, inode: int, size_bytes: int, caller: Caller, fh: int | None = None
    ) -> Attributes:
        if self.tree.getattr(inode).blocks > LARGE_BYTES // 512:
            return await self._in_thread(self.tree.truncate, inode, size_bytes, caller, fh)
        return self.tree.truncate(inode, size_bytes, caller, fh)

    @slow_handler
    async def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        if is_virtual(inode):
            return await self._virtual.readlink(inode, caller_of(ctx))
        return self.tree.readlink(inode)

    @handler
    def statfs(self, ctx: RequestContext) -> pyfuse3.StatvfsData:
        found = self.tree.statvfs()
        data = pyfuse3.StatvfsData()
        for name in (
            "f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail", "f_files", "f_ffree",
            "f_favail", "f_namemax",
        ):  # fmt: skip
            setattr(data, name, getattr(found, name))
        return data

    # ---- entries ----------------------------------------------------------------------------

    @handler
    def mknod(
        self, parent: int, name: bytes, mode: int, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        self._virtual.refuse(parent, name)
        return self._entry(self.tree.mknod(parent, name, mode, rdev, caller_of(ctx)))

    @handler
    def mkdir(self, parent: int, name: bytes, mode: int, ctx: RequestContext) -> EntryAttributes:
        self._virtual.refuse(parent, name)
        return self._entry(self.tree.mknod(parent, name, mode | stat.S_IFDIR, 0, caller_of(ctx)))

    @handler
    def symlink(
        self, parent: int, name: bytes, target: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        self._virtual.refuse(parent, name)
        return self._entry(self.tree.symlink(parent, name, target, caller_of(ctx)))

    @handler
    def link(
        self, inode: int, new_parent: int, new_name: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        self._virtual.refuse_node(inode)
        self._virtual.refuse(new_parent, new_name)
        return self._entry(self.tree.link(inode, new_parent, new_name, caller_of(ctx)))

    @handler
    def unlink(self, parent: int, name: bytes, ctx: RequestContext) -> None:
        self._unlink(parent, name, caller_of(ctx))

    def _unlink(self, parent: int, name: bytes, caller: Caller) -> None:
        self._virtual.refuse(parent, name)
        self._close_later(self.tree.unlink(parent, name, caller))

    @handler
    def rmdir(self, parent: int, name: bytes, ctx: RequestContext) -> None:
        self._rmdir(parent, name, caller_of(ctx))

    def _rmdir(self, parent: int, name: bytes, caller: Caller) -> None:
        self._virtual.refuse(parent, name)
        self.tree.rmdir(parent, name, caller)

    @handler
    def rename(
        self,
        parent_old: int,
        name_old: bytes,
        parent_new: int,
        name_new: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> None:
        if self._phantoms.is_rename(parent_old, parent_new):
            self._phantoms.rename(parent_old, name_old, parent_new, name_new, flags)
            return
        self._virtual.refuse(parent_old, name_old)
        self._virtual.refuse(parent_new, name_new)
        self._close_later(
            self.tree.rename(parent_old, name_old, parent_new, name_new, flags, caller_of(ctx))
        )
        self._recorded.renamed(parent_new, name_new)

    # ---- files ------------------------------------------------------------------------------

    @staticmethod
    def _opened(handle: Handle) -> tuple[int, int, int]:
        """What the kernel is told of an open file: its handle, FOPEN_* flags, the backing id."""
        flags = FOPEN_NOFLUSH | FOPEN_PARALLEL_DIRECT_WRITES
        if handle.backing_id:
            flags |= FOPEN_PASSTHROUGH
        return handle.fh, flags, handle.backing_id

    def _file_info(self, handle: Handle) -> FileInfo:
        if self._scheduler is not None:
            _channel.set_open(*self._opened(handle))
        return FileInfo(fh=handle.fh, keep_cache=False)

    @slow_handler
    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        caller = caller_of(ctx)
        if is_virtual(inode):
            return await self._open_virtual(inode, flags, caller)
        if flags & os.O_TRUNC:
            await self._truncate(inode, 0, caller)
            flags &= ~os.O_TRUNC
        return self._file_info(self._open(inode, flags, caller))

    def _open(self, inode: int, flags: int, caller: Caller) -> Handle:
        handle = self.tree.open(inode, flags, caller)
        if handle.backing_id and flags & os.O_ACCMODE == os.O_RDWR:
            # Through a mapping it may change without the kernel's noticing: what it knows so far
            # must not be believed for longer than what it is told from now on.
            with contextlib.suppress(FileNotFoundError):
                pyfuse3.invalidate_inode(inode, attr_only=True)
        return handle

    async def _open_virtual(self, inode: int, flags: int, caller: Caller) -> FileInfo:
        handle = await self._virtual.open(inode, flags, caller)
        if self._scheduler is not None:
            _channel.set_open(handle.fh, FOPEN_DIRECT_IO if handle.is_live else 0, 0)
        return FileInfo(fh=handle.fh, keep_cache=False, direct_io=handle.is_live)

    @handler
    def create(
        self, parent: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        handle, found = self._create(parent, name, mode, flags, caller_of(ctx))
        return self._file_info(handle), self._entry(found)

    def _create(
        self, parent: int, name: bytes, mode: int, flags: int, caller: Caller
    ) -> tuple[Handle, Attributes]:
        self._virtual.refuse(parent, name)
        handle, found = self.tree.create(parent, name, mode, flags, caller)
        handle.name = name
        return handle, found

    @handler
    def release(self, fh: int) -> None:
        self._release(fh)

    def _release(self, fh: int) -> None:
        handle = self.tree.handles.find(fh)  # None: a release that is sent again
        if handle is not None and is_virtual(handle.ino):
            self._virtual.release(handle)
        elif handle is not None:
            self._recorded.closed(handle)
        fd = self.tree.release(fh)
        if fd is not None:
            os.close(fd)

    @slow_handler
    async def flush(self, fh: int) -> None:
        """Nothing is held back here, but a command: what a client wrote is with the store."""
        handle = self.tree.handles.get(fh)
        if is_virtual(handle.ino):
            await self._virtual.flush(handle)

    @slow_handler
    async def fsync(self, fh: int, datasync: bool) -> None:
        if is_virtual(self.tree.handles.get(fh).ino):
            return
        await self._in_thread(lambda: self.tree.fsync(fh, data_only=datasync))

    fsyncdir = fsync

    @slow_handler
    async def read(self, fh: int, off: int, size: int) -> bytes:
        handle = self.tree.handles.get(fh)
        if is_virtual(handle.ino):
            return await self._virtual.read(handle, off, size)
        fd = self.tree.descriptor(handle)
        buffer = bytearray(size)
        try:
            got = os.preadv(fd, [buffer], off, os.RWF_NOWAIT)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EOPNOTSUPP):
                raise
            got = 0
        if got < size:  # the end of the file, or not all of it in memory
            return await self._in_thread(os.pread, fd, size, off)
        return bytes(buffer)

    @slow_handler
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        uid, gid = _channel.current_owner()
        handle = self.tree.handles.get(fh)
        if is_virtual(handle.ino):
            return await self._virtual.write(handle, buf, Caller(uid, gid))
        uid, gid = self.tree.writes_as(uid, gid)
        fd = self.tree.descriptor(handle)
        if len(buf) > INLINE_WRITE_BYTES:
            return await self._in_thread(backing.write, fd, buf, off, uid, gid)
        return backing.write(fd, buf, off, uid, gid)

    # ---- directories ------------------------------------------------------------------------

    @handler
    def opendir(self, inode: int, ctx: RequestContext) -> int:
        handle, flags = self._opendir(inode, caller_of(ctx))
        if self._scheduler is not None:
            _channel.set_open(handle.fh, flags, 0)
        return handle.fh

    def _opendir(self, inode: int, caller: Caller) -> tuple[Handle, int]:
        """The handle, and FOPEN_* flags."""
        if is_virtual(inode):
            handle = self._virtual.opendir(inode, caller)
        else:
            handle = self.tree.opendir(inode, caller)
        handle.caller = caller
        if is_virtual(inode) or self._virtual.depends_on_caller(handle):
            return handle, 0
        handle.is_known = self._was_just_listed(inode)
        return handle, FOPEN_CACHE_DIR | (FOPEN_KEEP_CACHE if handle.is_known else 0)

    def _was_just_listed(self, inode: int) -> bool:
        """Whether the kernel still believes the entries of the last listing.

        If it does, the names may come from its cache; if not, listing anew brings the attributes of
        all entries along, which is cheaper than asking for one after the other.
        """
        now = time.monotonic()
        if self._listed.get(inode, 0.0) > now:
            return True
        self._listed[inode] = now + self._timeouts.entries_s
        self._listed.move_to_end(inode)
        if len(self._listed) > LISTED_DIRECTORIES:
            self._listed.popitem(last=False)
        return False

    @handler
    def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """Only without interposition; see ``_readdirplus``."""
        handle, entries = self._entries(fh, start_id, None)
        for name, offset, found in entries[handle.position :]:
            if not pyfuse3.readdir_reply(token, name, self._attributes(found), offset):
                break
            handle.position += 1
            handle.offset = offset

    def _entries(self, fh: int, offset: int, caller: Caller | None) -> tuple[Handle, list[Entry]]:
        """Entries from a position on; ``handle.position`` is the first to give."""
        handle = self.tree.handles.get(fh)
        caller = caller or handle.caller or Caller(handle.uid, handle.gid)
        if is_virtual(handle.ino):
            return handle, self._virtual.readdir(handle, offset, caller)
        filtered = self._virtual.depends_on_caller(handle)
        while not is_ours(offset):
            handle, entries = self.tree.readdir(fh, offset, SCAN_BYTES)
            if filtered and handle.position < len(entries):
                offset = entries[-1][1]
                entries = self._virtual.seen(handle, caller)
            elif not entries:
                break
            if handle.position < len(entries):
                return handle, entries
        return handle, self._virtual.listed_besides(handle, offset)

    def _readdirplus(self, ino: int, caller: Caller, fh: int, offset: int, size: int) -> bytes:
        if self.tree.handles.get(fh).is_known and not is_ours(offset):
            # Something in it has changed, so the names are asked for; the rest the kernel knows.
            names = self.tree.names(fh, offset, size // NAMES_IN_REPLY)
            packed = _channel.pack_names(names, size, RECORDS, TEMPORARY) if names else b""
            if packed:
                return packed
        handle, entries = self._entries(fh, offset, caller)
        are_ours = bool(entries[handle.position :]) and is_virtual(entries[handle.position][2].ino)
        timeouts = self._unwatched if are_ours else self._timeouts
        packed, count = _channel.pack_entries(
            entries,
            handle.position,
            size,
            self.tree.store.volume.dev,
            timeouts.entries_s,
            timeouts.attributes_s,
            self._changing,
            CHANGING_TIMEOUT_S,
        )
        if count:
            handle.position += count
            handle.offset = entries[handle.position - 1][1]
        return packed

    releasedir = release

    # ---- extended attributes ----------------------------------------------------------------

    @slow_handler
    async def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        if is_virtual(inode):
            value = await self._virtual.getxattr(inode, name, caller_of(ctx))
        else:
            value = self.tree.getxattr(inode, name)
        if value is None:
            raise FUSEError(errno.ENODATA)
        return value

    @handler
    def listxattr(self, inode: int, ctx: RequestContext) -> list[bytes]:
        if is_virtual(inode):
            return []
        return self.tree.listxattr(inode, privileged=ctx.uid == 0)

    @handler
    def removexattr(self, inode: int, name: bytes, ctx: RequestContext) -> None:
        self._virtual.refuse_node(inode)
        self.tree.removexattr(inode, name, caller_of(ctx))

    @handler
    def setxattr(self, inode: int, name: bytes, value: bytes, ctx: RequestContext) -> None:
        """Only without interposition: the flags are lost on the way here."""
        self._virtual.refuse_node(inode)
        if name == CHANGED:
            self._phantoms.change(inode)
            return
        self.tree.setxattr(inode, name, value, 0, caller_of(ctx), keep_setid=True)

    # ---- what pyfuse3 has no handler for ----------------------------------------------------

    def extra(
        self, opcode: int, req: int, ino: int, uid: int, gid: int, pid: int, *arguments: Any
    ) -> None:
        """Called by the channel; answers with ``_channel.reply``, now or later."""
        caller = Caller(uid, gid, pid, 0, *_channel.current())
        quick = self._quick.get(opcode)
        if is_virtual(ino):
            self._nursery.start_soon(self._answer_virtual, req, opcode, ino, caller, *arguments)
            return
        if opcode == 43 and arguments[3] <= INLINE_FALLOCATE_BYTES:
            quick = self._fallocate_now
        if quick is None:
            answer: Callable[..., Any] = self._answer_later
            self._nursery.start_soon(answer, req, self._slow[opcode], caller, *arguments)
            return
        try:
            payload = quick(ino, caller, *arguments)
        except Exception as error:
            reply(req, errno_of(error, quick.__name__))
        else:
            reply(req, 0, payload)

    async def _answer_virtual(
        self, req: int, opcode: int, ino: int, caller: Caller, *arguments: Any
    ) -> None:
        try:
            payload = await self._virtual_extra(opcode, ino, caller, *arguments)
        except Exception as error:
            reply(req, errno_of(error, f"virtual {opcode}"))
        else:
            reply(req, 0, payload)

    async def _virtual_extra(self, opcode: int, ino: int, caller: Caller, *arguments: Any) -> bytes:
        if opcode == 44:
            return await self._virtual.in_thread(self._readdirplus, ino, caller, *arguments)
        if opcode == 46:
            fh, offset, whence = arguments
            return LSEEK_OUT.pack(self._virtual.seek(self.tree.handles.get(fh), offset, whence))
        if opcode == 52:
            return self._statx_of(await self._virtual.getattr(ino, caller))
        if opcode == 39:
            raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))
        if opcode == 47:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))  # then it is read and written
        self._virtual.refuse_node(ino)
        return b""

    async def _answer_later(self, req: int, slow: Callable[..., bytes], *arguments: Any) -> None:
        try:
            payload = await trio.to_thread.run_sync(slow, *arguments, limiter=self._threads)
        except Exception as error:
            reply(req, errno_of(error, slow.__name__))
        else:
            reply(req, 0, payload)

    def _setxattr(
        self, ino: int, caller: Caller, name: bytes, value: bytes, flags: int, acl_flags: int
    ) -> bytes:
        if name == CHANGED:
            self._phantoms.change(ino)
            return b""
        keep_setid = not acl_flags & SETXATTR_ACL_KILL_SGID
        self.tree.setxattr(ino, name, value or b"", flags, caller, keep_setid=keep_setid)
        return b""

    def _statx(self, ino: int, caller: Caller) -> bytes:
        """``statx(2)`` with the time of birth, which a plain GETATTR has no field for."""
        return self._statx_of(self.tree.getattr(ino))

    def _statx_of(self, found: Attributes) -> bytes:
        timeout_s = self._attributes(found).attr_timeout
        times = (found.atime_ns, found.btime_ns, found.ctime_ns, found.mtime_ns)
        return STATX_OUT.pack(
            int(timeout_s), int(timeout_s % 1 * 1e9), 0,
            STATX_BASIC_STATS | (STATX_BTIME if found.btime_ns else 0),
            found.block_size_bytes, 0, found.nlink, found.uid, found.gid, found.mode,
            found.ino, found.size_bytes, found.blocks, 0,
            *(part for time_ns in times for part in divmod(time_ns, 1_000_000_000)),
            os.major(found.rdev), os.minor(found.rdev), 0, 0,
        )  # fmt: skip

    def _lseek(self, ino: int, caller: Caller, fh: int, offset: int, whence: int) -> bytes:
        return LSEEK_OUT.pack(self.tree.seek(fh, offset, whence))

    def _ioctl(
        self, ino: int, caller: Caller, fh: int, command: int, flags: int, data: bytes, size: int
    ) -> bytes:
        if command not in INODE_IOCTLS:
            raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))
        changing, length = INODE_IOCTLS[command]
        fd = self.tree.inode_flags_fd(ino, changing=changing)
        try:
            argument = bytearray(data[:length].ljust(length, b"\0"))
            fcntl.ioctl(fd, command, argument)
        finally:
            os.close(fd)
        return IOCTL_OUT.pack(0, 0, 0, 0) + (b"" if changing else bytes(argument[:size]))

    def _fallocate(self, caller: Caller, fh: int, mode: int, offset: int, length: int) -> bytes:
        self.tree.fallocate(fh, mode, offset, length, caller)
        return b""

    def _fallocate_now(self, ino: int, caller: Caller, *arguments: int) -> bytes:
        return self._fallocate(caller, *arguments)

    def _copy_file_range(
        self,
        caller: Caller,
        fh_in: int,
        offset_in: int,
        ino_out: int,
        fh_out: int,
        offset_out: int,
        length: int,
        flags: int,
    ) -> bytes:
        copied = self.tree.copy_file_range(fh_in, offset_in, fh_out, offset_out, length)
        return WRITE_OUT.pack(copied, 0)
