"""The tree: every operation of a file system over one store, without knowing FUSE.

Names are bytes, nodes are numbers, errors are ModamaError or OSError; results are the model's.
Every method is synchronous. Those that may take long (they say so) belong into a thread; all others
are a few system calls on a local file system, and one runs after the other, so that nothing comes
between a check and the change that it guards.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

from modamafs.errors import (
    ModamaError,
    NotOnThisVolume,
    Reserved,
    Sealed,
    SealedForWriting,
    StaleHandle,
)
from modamafs.model import RECORDS, ROOT, TEMPORARY, Attributes, Caller, Operation, is_own_name
from modamafs.policy.access import READ, SEARCH, masked
from modamafs.policy.decide import decide
from modamafs.store import backing, history
from modamafs.store.backing import Store
from modamafs.store.seals import Seals
from modamafs.tree.handles import Entry, Handle, Handles
from modamafs.tree.inodes import Inodes
from modamafs.tree.journal import Intent, Journal
from modamafs.tree.scope import Scope
from modamafs.tree.state import State
from modamafs.watch.written import Written

log = logging.getLogger(__name__)

O_TMPFILE = os.O_TMPFILE & ~os.O_DIRECTORY
LARGE_BYTES = 64 << 20
"""From this size on, freeing a file's blocks is left to a thread."""

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
CAPABILITY = b"security.capability"
ACCESS_ACL = b"system.posix_acl_access"
NT_ACL = b"security.NTACL"
WRITE_BITS = 0o222


class BackingFiles(Protocol):
    """Where files are registered that the kernel then reads and writes by itself."""

    def register(self, fd: int, caller: Caller) -> int:
        """The backing id of an open file. OSError where the kernel can't (ELOOP, EPERM, …)."""

    def close(self, backing_id: int) -> None:
        """Take a registration back; an id that the kernel does not know is no error."""


class Tree:
    """One mounted store."""

    def __init__(
        self,
        store: Store,
        state: State,
        backing_files: BackingFiles | None = None,
        *,
        read_only: bool = False,
        failpoint: Path | None = None,
        scope: Scope | None = None,
        written: Written | None = None,
    ) -> None:
        """``backing_files`` is None where all bytes go through this process (the fallback).

        ``scope`` is closed with the tree; None: the whole store. ``written`` is told of what is
        opened for writing; None: nobody asks.
        """
        self.store = store
        self.scope = scope or Scope(store)
        self.inodes = Inodes(store, self.scope)
        self.handles = Handles(state)
        self.journal = Journal(state, failpoint)
        self.seals = Seals(store)
        self.read_only = read_only
        self._state = state
        self._volume = store.volume
        self._backing_files = backing_files
        self._written = written
        lost = state.lost_registration()
        if lost is not None and backing_files is not None:
            if lost not in self.handles.backing_ids():
                backing_files.close(lost)
            state.end_registration(lost)
        self._reopen_writers()

    def close(self) -> None:
        """Close every descriptor; what the kernel holds is written down and stays."""
        for handle in self.handles:
            fd = handle.take_fd()
            if fd is not None:
                os.close(fd)
        self.inodes.close()
        self.scope.close()

    # ---- what is there ----------------------------------------------------------------------

    def node(self, attributes: Attributes) -> int:
        """The node id that goes with attributes."""
        return self.inodes.node(attributes)

    def lookup(self, parent: int, name: bytes) -> Attributes | None:
        """The attributes of an entry; None for no such entry.

        "." and ".." come from file servers that hold a handle; the node may be unknown so far and
        is resolved only if it lies in the scope (StaleHandle otherwise).
        """
        if is_own_name(name):
            return None
        if name in (b".", b".."):
            return self._lookup_dots(parent, name)
        attributes = self._find(self.inodes.directory(parent), name)
        if attributes is not None and attributes.dev != self._volume.dev:
            raise NotOnThisVolume(
                f"{os.fsdecode(name)} lies on another file system than its store; "
                "mount that one as a store of its own"
            )
        if attributes is not None and (attributes.immutable or self.seals.unwalled()):
            fd = self.inodes.directory(parent)
            return self._shown(attributes, lambda: self.seals.covers_entry(fd, name))
        return attributes

    def _find(self, dir_fd: int, name: bytes) -> Attributes | None:
        if not (self.scope.is_whole or self.scope.shows(dir_fd, name)):
            return None
        return self._volume.lookup(dir_fd, name)

    def _shown(self, found: Attributes, is_covered: Callable[[], bool | None]) -> Attributes:
        """What clients see of an inode: of what is sealed, that nobody may write.

        ``is_covered`` asks the records, which takes longer: only of what lacks the immutable flag.
        """
        kind = stat.S_IFMT(found.mode)
        if kind not in (stat.S_IFREG, stat.S_IFDIR) or not (found.immutable or is_covered()):
            return found
        if kind == stat.S_IFDIR:  # clients that look at directory times only notice the sealing
            found = found._replace(mtime_ns=max(found.mtime_ns, found.ctime_ns))
        return found._replace(mode=found.mode & ~WRITE_BITS)

    def _is_shown_sealed(self, node: int) -> bool:
        fd = self.inodes.open(node, os.O_PATH)
        try:
            found = self._volume.attributes(fd)
            return found.immutable or bool(self.seals.unwalled() and self.seals.covers(fd))
        finally:
            os.close(fd)

    def _lookup_dots(self, node: int, name: bytes) -> Attributes:
        fd = self.inodes.open(node, os.O_PATH)
        try:
            if not self.scope.holds(fd) or is_own_path(backing.path_of(fd)):
                raise StaleHandle(f"inode {node} does not lie in what is mounted")
            if name == b"." or node == ROOT:
                return self._shown(self._volume.attributes(fd), lambda: self.seals.covers(fd))
            above = self._volume.lookup(fd, b"..")
            if above is None:
                raise StaleHandle(f"directory {node} has been removed")
            return self._shown(above, lambda: self.seals.covers_entry(fd, b".."))
        finally:
            os.close(fd)

    def getattr(self, node: int) -> Attributes:
        """The attributes of an inode."""
        found = self.inodes.attributes(node)
        if found.immutable or self.seals.unwalled():
            return self._shown(found, lambda: self._covers_node(node))
        return found

    def _covers_node(self, node: int) -> bool | None:
        fd = self.inodes.open(node, os.O_PATH)
        try:
            return self.seals.covers(fd)
        finally:
            os.close(fd)

    def readlink(self, node: int) -> bytes:
        """The target of a symbolic link."""
        fd = self.inodes.open(node, os.O_PATH)
        try:
            return backing.readlink(fd)
        finally:
            os.close(fd)

    owners_are_shown = True
    """Whether owners are as they are on the store."""

    def shown_as(self, found: Attributes) -> Attributes:
        """Attributes of an inode of the store as this mount shows them."""
        return found

    def writes_as(self, uid: int, gid: int) -> tuple[int, int]:
        """User and group id to write with, of who wrote."""
        return uid, gid

    def statvfs(self) -> os.statvfs_result:
        """Sizes, counts and limits of the backing file system."""
        return self.store.statvfs()

    # ---- what may change --------------------------------------------------------------------

    def _admit(self, operation: Operation, fd: int, writer: Handle | None = None) -> None:
        """Let a mutation of what ``fd`` names, or of an entry in it, go ahead, or raise.

        ``writer``: the handle that it comes through, if it was opened for writing. Whoever had a
        file open when its sealing began may finish: it is not sealed before that.
        """
        sealed = self.seals.covers(fd)
        if sealed is None:
            sealed = self._may_be_sealed(fd)
        elif sealed and writer is not None and writer.writable:
            sealed = not self.seals.being_sealed(fd)
        read_only = self.read_only or (not self.scope.is_whole and self.scope.is_fixed(fd))
        decide(operation, sealed=sealed, read_only=read_only)

    def _open_to_write(self, node: int, flags: int, writer: Handle | None = None) -> int:
        """A descriptor of a file that may be written to. Opened first: sealing looks for that.

        Where it is immutable the store refuses, with EPERM: is it because it is sealed?
        """
        try:
            fd = self.inodes.open(node, flags)
        except PermissionError:
            fd = self.inodes.open(node, os.O_PATH)
            try:
                self._admit(Operation.WRITE, fd, writer)
            finally:
                os.close(fd)
            raise
        try:
            self._admit(Operation.WRITE, fd, writer)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _may_be_sealed(self, fd: int) -> bool:
        """Of what has no path, its flag says it, where all that is sealed has flags. In doubt, yes.

        But nothing is ever sealed while it is open for writing.
        """
        if not self.seals.any():
            return False
        found = self._volume.attributes(fd)
        if found.immutable or found.ino in self.handles.writing:
            return found.immutable
        can_carry_flag = stat.S_ISREG(found.mode) or stat.S_ISDIR(found.mode)
        return not (can_carry_flag and self.seals.is_surely_walled())

    def _enter(self, parent: int, name: bytes, operation: Operation) -> int:
        """The descriptor of a directory whose entry ``name`` is about to change."""
        if is_own_name(name):
            raise Reserved(f"{os.fsdecode(name)} is a name that modamafs keeps for its own records")
        fd = self.inodes.directory(parent)
        self._admit(operation, fd)
        return fd

    def setattr(
        self,
        node: int,
        *,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        atime_ns: int | None = None,
        mtime_ns: int | None = None,
    ) -> Attributes:
        """Change what is given and leave the rest."""
        fd = self.inodes.open(node, os.O_PATH)
        try:
            self._admit(Operation.SET_ATTRIBUTES, fd)
            if uid is not None or gid is not None:
                keep = 0xFFFFFFFF
                backing.chown(fd, keep if uid is None else uid, keep if gid is None else gid)
            if mode is not None:
                backing.chmod(fd, stat.S_IMODE(mode))
            if atime_ns is not None or mtime_ns is not None:
                backing.utimens(fd, atime_ns, mtime_ns)
            return self._volume.attributes(fd)
        finally:
            os.close(fd)

    def truncate(
        self, node: int, size_bytes: int, caller: Caller, fh: int | None = None
    ) -> Attributes:
        """Set a file's size; ``fh`` for ftruncate(2). May take long for a large file."""
        writer = None if fh is None else self.handles.get(fh)
        fd = self._open_to_write(node, os.O_WRONLY | os.O_NONBLOCK, writer)
        try:
            backing.truncate(fd, size_bytes, caller.uid, caller.gid)
            return self._volume.attributes(fd)
        finally:
            os.close(fd)

    # ---- seals ------------------------------------------------------------------------------

    def find_seals(self) -> None:
        """Make the list of sealed directories where it is missing. May take long.

        Until it is done, removing or renaming a directory looks through that directory instead.
        """
        self.seals.search(write=not self.read_only)

    # ---- entries ----------------------------------------------------------------------------

    def _entry(self, dir_fd: int, name: bytes) -> Attributes:
        attributes = self._volume.lookup(dir_fd, name)
        if attributes is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        return attributes

    def _is_named(self, dir_fd: int, name: bytes) -> Callable[[Intent], bool]:
        """Whether the inode of an interrupted request has got its name."""

        def was_done(intent: Intent) -> bool:
            found = self._volume.lookup(dir_fd, name)
            return found is not None and found.ino == intent.ino

        return was_done

    def _make(
        self,
        dir_fd: int,
        name: bytes,
        caller: Caller,
        operation: str,
        make: Callable[[bytes], None],
    ) -> Attributes:
        """Make an entry: under a temporary name first, so that it is known before it is seen."""
        temporary = TEMPORARY + b"%d" % caller.request

        def do() -> Attributes:
            if caller.resent:
                self._sweep(dir_fd, [temporary])
            if self._volume.lookup(dir_fd, name) is not None:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
            if backing.is_append_only(dir_fd):  # what has a name there keeps it
                make(name)
                return self._entry(dir_fd, name)
            make(temporary)
            try:
                self.journal.note(self._entry(dir_fd, temporary).ino)
                backing.rename(dir_fd, temporary, dir_fd, name, RENAME_NOREPLACE)
            except OSError:
                self._sweep(dir_fd, [temporary])
                raise
            return self._entry(dir_fd, name)

        return self.journal.once(
            caller,
            operation,
            do,
            self._is_named(dir_fd, name),
            lambda: self._entry(dir_fd, name),
        )

    @staticmethod
    def _sweep(dir_fd: int, names: Iterable[bytes]) -> None:
        """Remove what was made and never got its name."""
        for name in names:
            try:
                os.unlink(name, dir_fd=dir_fd)
            except FileNotFoundError:
                continue
            except IsADirectoryError:
                os.rmdir(name, dir_fd=dir_fd)

    def mknod(self, parent: int, name: bytes, mode: int, rdev: int, caller: Caller) -> Attributes:
        """Make a directory, FIFO, socket, device or empty file, as ``mode`` says."""
        fd = self._enter(parent, name, Operation.CREATE)
        return self._make(
            fd,
            name,
            caller,
            "mkdir" if stat.S_ISDIR(mode) else "mknod",
            lambda temporary: backing.mknod(fd, temporary, mode, rdev, caller),
        )

    def symlink(self, parent: int, name: bytes, target: bytes, caller: Caller) -> Attributes:
        """Make a symbolic link."""
        fd = self._enter(parent, name, Operation.CREATE)
        return self._make(
            fd,
            name,
            caller,
            "symlink",
            lambda temporary: backing.symlink(target, fd, temporary, caller),
        )

    def link(self, node: int, parent: int, name: bytes, caller: Caller) -> Attributes:
        """Give an inode one more name."""
        dir_fd = self._enter(parent, name, Operation.LINK)
        fd = self.inodes.open(node, os.O_PATH)
        try:
            self._admit(Operation.LINK, fd)
            ino = self._volume.attributes(fd).ino

            def do() -> Attributes:
                backing.link(fd, dir_fd, name)
                return self._volume.attributes(fd)

            return self.journal.once(
                caller,
                "link",
                do,
                self._is_named(dir_fd, name),
                lambda: self._volume.attributes(fd),
                ino,
            )
        finally:
            os.close(fd)

    def unlink(self, parent: int, name: bytes, caller: Caller) -> int | None:
        """Remove a name that is no directory's.

        A large file's last name goes at once and its blocks later: the descriptor that is returned
        keeps them, and closing it (in a thread, it may take long) frees them.
        """
        return self._remove(parent, name, caller, "unlink", directory=False)

    def rmdir(self, parent: int, name: bytes, caller: Caller) -> None:
        """Remove an empty directory."""
        self._remove(parent, name, caller, "rmdir", directory=True)

    def _remove(
        self, parent: int, name: bytes, caller: Caller, operation: str, *, directory: bool
    ) -> int | None:
        fd = self._enter(parent, name, Operation.REMOVE)
        victim = self._volume.lookup(fd, name)
        if victim is not None and stat.S_ISDIR(victim.mode):
            self._admit_ancestor(fd, name)
        pin = None
        if victim is not None and self._is_last_of_large(victim):
            pin = self.inodes.open(victim.ino, os.O_PATH)
        try:

            def do() -> None:
                if directory:
                    self._rmdir(fd, name)
                else:
                    os.unlink(name, dir_fd=fd)

            def was_done(intent: Intent) -> bool:
                return intent.ino != 0 and (victim is None or victim.ino != intent.ino)

            self.journal.once(
                caller, operation, do, was_done, lambda: None, victim.ino if victim else 0
            )
        except BaseException:
            if pin is not None:
                os.close(pin)
            raise
        if victim is not None and directory:
            self.inodes.forget(victim.ino)
        return pin

    def _rmdir(self, dir_fd: int, name: bytes) -> None:
        try:
            os.rmdir(name, dir_fd=dir_fd)
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                raise
            kept = self._vacate(dir_fd, name)
            if kept is None:
                raise
            try:
                os.rmdir(name, dir_fd=dir_fd)
            except OSError:
                kept.put_back()
                raise

    def _vacate(self, dir_fd: int, name: bytes) -> history.Kept | None:
        """Take away what a client can't see in a directory: then it is empty, and can be removed.

        That is what a mount that ended too early has left, and records, which are kept. None: the
        directory holds something else, and was left as it is.
        """
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=dir_fd)
        try:
            names = [os.fsencode(entry) for entry in os.listdir(fd)]
            if not all(map(is_own_name, names)):
                return None
            self._sweep(fd, [entry for entry in names if entry != RECORDS])
            return history.keep(self.store, fd, backing.path_of(fd))
        finally:
            os.close(fd)

    @staticmethod
    def _is_last_of_large(victim: Attributes) -> bool:
        last = stat.S_ISREG(victim.mode) and victim.nlink == 1
        return last and victim.blocks > LARGE_BYTES // 512

    def _admit_ancestor(self, dir_fd: int, name: bytes) -> None:
        """Let a directory lose its name only if nothing below it is sealed, or written once."""
        sealed = self.seals.below(dir_fd, name) or self.seals.is_written_once(dir_fd, name)
        decide(Operation.RENAME, sealed=sealed, read_only=self.read_only)

    def rename(
        self,
        parent: int,
        name: bytes,
        new_parent: int,
        new_name: bytes,
        flags: int,
        caller: Caller,
    ) -> int | None:
        """``renameat2(2)``. Where a large file was replaced, a descriptor, as from ``unlink``."""
        fd = self._enter(parent, name, Operation.RENAME)
        new_fd = self._enter(new_parent, new_name, Operation.RENAME)
        source = self._volume.lookup(fd, name)
        target = self._volume.lookup(new_fd, new_name)
        if source is not None and stat.S_ISDIR(source.mode):
            self._admit_ancestor(fd, name)
        if target is not None and stat.S_ISDIR(target.mode):
            self._admit_ancestor(new_fd, new_name)
        exchange = bool(flags & RENAME_EXCHANGE)
        pin = None
        if target is not None and not exchange and self._is_last_of_large(target):
            pin = self.inodes.open(target.ino, os.O_PATH)
        try:

            def was_done(intent: Intent) -> bool:
                if target is None or target.ino != intent.ino:
                    return False
                if exchange:
                    return source is not None and source.ino == intent.other
                return source is None or source.ino != intent.ino

            def do() -> None:
                try:
                    backing.rename(fd, name, new_fd, new_name, flags)
                except OSError as error:
                    replaced = target is not None and stat.S_ISDIR(target.mode) and not exchange
                    if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or not replaced:
                        raise
                    kept = None if flags & RENAME_NOREPLACE else self._vacate(new_fd, new_name)
                    if kept is None:
                        raise
                    try:
                        backing.rename(fd, name, new_fd, new_name, flags)
                    except OSError:
                        kept.put_back()
                        raise

            self.journal.once(
                caller,
                "rename",
                do,
                was_done,
                lambda: None,
                source.ino if source else 0,
                target.ino if target else 0,
            )
        except BaseException:
            if pin is not None:
                os.close(pin)
            raise
        if target is not None and not exchange and stat.S_ISDIR(target.mode):
            self.inodes.forget(target.ino)
        return pin

    # ---- open files -------------------------------------------------------------------------

    def create(
        self, parent: int, name: bytes, mode: int, flags: int, caller: Caller
    ) -> tuple[Handle, Attributes]:
        """Make a file and open it; with O_TMPFILE, one without a name.

        A file that has appeared under that name meanwhile is ESTALE without O_EXCL: the kernel then
        looks again, and opens it with the caller's rights on it.
        """
        unnamed = bool(flags & O_TMPFILE)
        dir_fd = self._enter(parent, name if not unnamed else b".", Operation.CREATE)
        handle = self.handles.recall(caller)
        if handle is not None:
            return handle, self.inodes.attributes(handle.ino)
        open_flags = self._access(flags)
        if unnamed:
            fd = backing.create_unnamed(dir_fd, open_flags | (flags & os.O_EXCL), mode, caller)
            return self._opened(fd, flags, caller)

        def do() -> int:
            fd = backing.create_unnamed(dir_fd, open_flags, mode, caller)
            try:
                self.journal.note(os.fstat(fd).st_ino)
                backing.link(fd, dir_fd, name)
            except BaseException:
                os.close(fd)
                raise
            return fd

        def redo() -> int:
            return self.inodes.open(self._entry(dir_fd, name).ino, open_flags)

        try:
            fd = self.journal.once(caller, "create", do, self._is_named(dir_fd, name), redo)
        except FileExistsError:
            if flags & os.O_EXCL:
                raise
            raise StaleHandle(f"{os.fsdecode(name)} has appeared meanwhile") from None
        return self._opened(fd, flags, caller)

    def _access(self, flags: int) -> int:
        """The flags to open a file on the store with, for a client's flags."""
        if self._backing_files is not None:
            return flags & (os.O_ACCMODE | os.O_APPEND)
        # The kernel says where to append, and reads the rest of a page that it writes.
        return os.O_RDWR if flags & os.O_ACCMODE else os.O_RDONLY

    def open(self, node: int, flags: int, caller: Caller) -> Handle:
        """Open a file. May take long with O_TRUNC on a large one."""
        handle = self.handles.recall(caller)
        if handle is not None:
            return handle
        access = self._access(flags) | os.O_NONBLOCK
        if flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC:
            try:
                fd = self._open_to_write(node, access)
            except Sealed as error:
                if flags & (os.O_ACCMODE | os.O_TRUNC) == os.O_RDWR:
                    raise SealedForWriting(error.message) from error
                raise
        else:
            fd = self.inodes.open(node, access)
        try:
            if flags & os.O_TRUNC:
                backing.truncate(fd, 0, caller.uid, caller.gid)
        except BaseException:
            os.close(fd)
            raise
        return self._opened(fd, flags, caller)[0]

    def _opened(self, fd: int, flags: int, caller: Caller) -> tuple[Handle, Attributes]:
        """The handle of a file that was just opened; takes the descriptor over."""
        backing_id = 0
        try:
            attributes = self._volume.attributes(fd)
            backing_id = self._backing_id(fd, attributes, caller)
            if not backing_id and self._backing_files is not None and flags & os.O_ACCMODE:
                fd = self._reopen(fd, attributes)
            handle = self.handles.add(
                attributes.ino, flags, caller, backing_id, None if backing_id else fd
            )
            if backing_id:
                self._state.end_registration(backing_id)
            if self._written is not None and handle.writable:
                self._written.note(attributes.ino, opened=True)
        except BaseException:
            os.close(fd)
            if backing_id and backing_id not in self.handles.backing_ids():
                self._close_backing_file(backing_id)
            raise
        if backing_id:
            os.close(fd)
        return handle, attributes

    def _reopen_writers(self) -> None:
        """After a restart: a file that is open for writing has to be seen to be (by a seal)."""
        for handle in self.handles:
            if handle.writable and not handle.backing_id:
                try:
                    self.descriptor(handle)
                except (OSError, ModamaError) as error:  # without a name, or sealed: it will see
                    log.warning("lost-open-file ino=%d error=%s", handle.ino, error)

    def _reopen(self, fd: int, attributes: Attributes) -> int:
        """The same file, opened so that the kernel's own reads and writes at a position work."""
        again = self.inodes.open(attributes.ino, os.O_RDWR)
        os.close(fd)
        return again

    def _backing_id(self, fd: int, attributes: Attributes, caller: Caller) -> int:
        if self._backing_files is None:
            return 0
        inode = self.handles.inode(attributes.ino)
        if inode is not None:  # the kernel wants one way for all who have it open at the same time
            return inode.backing_id
        if attributes.mode & (stat.S_ISUID | stat.S_ISGID):
            return 0  # what becomes of these bits depends on who writes: we have to see that
        self._state.begin_registration()
        return self._backing_files.register(fd, caller)

    def release(self, fh: int) -> int | None:
        """The kernel has closed a file. Returns a descriptor whose closing may take long."""
        removed = self.handles.remove(fh)
        if removed is None:
            return None
        handle, backing_id = removed
        if backing_id:
            self._close_backing_file(backing_id)
        if self._written is not None and handle.writable:
            self._written.note(self.inodes.ino(handle.ino), opened=False)
        return handle.take_fd()

    def _close_backing_file(self, backing_id: int) -> None:
        if self._backing_files is not None:
            self._backing_files.close(backing_id)

    def descriptor(self, handle: Handle) -> int:
        """Our own descriptor of an open file without passthrough, opened anew after a restart.

        OSError: ESTALE for a file without a name whose worker was killed.
        """
        if handle.fd is None:
            if handle.writable and not handle.backing_id:
                # While no worker held it open, it may have been sealed.
                handle.fd = self._open_to_write(handle.ino, os.O_RDWR, handle)
            else:
                handle.fd = self.inodes.open(handle.ino, os.O_RDONLY)
        return handle.fd

    def fsync(self, fh: int, *, data_only: bool) -> None:
        """Write a file or directory to the disk. Takes long."""
        fd = self.inodes.open(self.handles.get(fh).ino, os.O_RDONLY | os.O_NONBLOCK)
        try:
            if data_only:
                os.fdatasync(fd)
            else:
                os.fsync(fd)
        finally:
            os.close(fd)

    def fallocate(self, fh: int, mode: int, offset: int, length: int, caller: Caller) -> None:
        """``fallocate(2)``, all of the modes that the store has. May take long."""
        handle = self.handles.get(fh)
        fd = self._open_to_write(handle.ino, os.O_RDWR, handle)
        try:
            backing.fallocate(fd, mode, offset, length, caller.uid, caller.gid)
        finally:
            os.close(fd)

    def seek(self, fh: int, offset: int, whence: int) -> int:
        """Where the next hole or the next data begins (SEEK_HOLE, SEEK_DATA). OSError: ENXIO."""
        fd = self.inodes.open(self.handles.get(fh).ino, os.O_RDONLY)
        try:
            return os.lseek(fd, offset, whence)
        finally:
            os.close(fd)

    def copy_file_range(
        self, fh_in: int, offset_in: int, fh_out: int, offset_out: int, length: int
    ) -> int:
        """``copy_file_range(2)``: by reference where the store can. Takes long. Bytes copied."""
        source = self.inodes.open(self.handles.get(fh_in).ino, os.O_RDONLY)
        try:
            handle = self.handles.get(fh_out)
            target = self._open_to_write(handle.ino, os.O_WRONLY, handle)
            try:
                return os.copy_file_range(source, target, length, offset_in, offset_out)
            finally:
                os.close(target)
        finally:
            os.close(source)

    # ---- directories ------------------------------------------------------------------------

    def opendir(self, node: int, caller: Caller) -> Handle:
        """Open a directory for reading."""
        handle = self.handles.recall(caller)
        if handle is not None:
            return handle
        fd = self.inodes.open(node, os.O_RDONLY | os.O_DIRECTORY)
        try:
            ino = self.inodes.ino(node)
            return self.handles.add(ino, os.O_DIRECTORY, caller, fd=fd)
        except BaseException:
            os.close(fd)
            raise

    def readdir(self, fh: int, offset: int, size_bytes: int) -> tuple[Handle, list[Entry]]:
        """Entries from a position on, with attributes; ``handle.position`` is the first to give.

        Whoever hands them out moves ``position`` and ``offset`` along. Positions are the store's
        own, so that they are unique and stay valid as entries come and go.
        """
        handle = self.handles.get(fh)
        if offset == 0 or offset != handle.offset or handle.position >= len(handle.entries):
            handle.entries = self._scan(handle, offset, size_bytes)
            handle.position = 0
            handle.offset = offset
        return handle, handle.entries

    def names(self, fh: int, offset: int, size_bytes: int) -> bytes | None:
        """Entries from a position on, as ``linux_dirent64`` records, our own names among them.

        None where they can't be told without a look at each.
        """
        handle = self.handles.get(fh)
        fd = self.descriptor(handle)
        if handle.ino == self.inodes.root_ino or not self.scope.is_whole:
            return None
        return self._volume.names(fd, offset, size_bytes)

    def _scan(self, handle: Handle, offset: int, size_bytes: int) -> list[Entry]:
        fd = self.descriptor(handle)
        whole = self.scope.is_whole or not self.scope.is_fixed(fd)
        while entries := self._volume.scan(fd, offset, size_bytes):
            offset = entries[-1][1]
            kept = [
                entry
                if entry[0] != b".." or handle.ino != self.inodes.root_ino
                else (b"..", entry[1], self._volume.attributes(self.scope.root_fd))
                for entry in entries
                if not is_own_name(entry[0]) and (whole or self.scope.shows(fd, entry[0]))
            ]
            if self.seals.unwalled():
                kept = self._shown_entries(fd, kept)
            elif any(entry[2].immutable for entry in kept):
                kept = [(name, offset, self._shown(found, _no)) for name, offset, found in kept]
            if kept:
                return kept
        return []

    def _shown_entries(self, fd: int, entries: list[Entry]) -> list[Entry]:
        """Entries as clients see them where flags are missing: the records are asked."""
        here = self.seals.covers(fd)

        def shown(entry: Entry) -> Entry:
            name, offset, found = entry
            covered = self._shown(found, lambda: here or self.seals.covers_entry(fd, name))
            return name, offset, covered

        return [shown(entry) for entry in entries]

    # ---- extended attributes ----------------------------------------------------------------

    def getxattr(self, node: int, name: bytes) -> bytes | None:
        """The value of an extended attribute; None where there is none.

        An ACL of what is sealed lets nobody write, and Windows' is not shown at all.
        """
        if is_reserved_xattr(name):
            return None
        value = self._volume.getxattr(self.inodes.ino(node), name)
        if value is not None and name in (ACCESS_ACL, NT_ACL) and self._is_shown_sealed(node):
            return masked(value, READ | SEARCH) if name == ACCESS_ACL else None
        return value

    def listxattr(self, node: int, *, privileged: bool) -> list[bytes]:
        """The names of the extended attributes, without our own; ``trusted.*`` only for root."""
        fd = self.inodes.open(node, os.O_PATH)
        try:
            names = [
                name
                for name in backing.listxattr(fd)
                if not is_reserved_xattr(name) and (privileged or not name.startswith(b"trusted."))
            ]
        finally:
            os.close(fd)
        if NT_ACL in names and self._is_shown_sealed(node):
            names.remove(NT_ACL)
        return names

    def setxattr(
        self, node: int, name: bytes, value: bytes, flags: int, caller: Caller, *, keep_setid: bool
    ) -> None:
        """Set an extended attribute or ACL. OSError: EEXIST, ENODATA as ``flags`` say."""
        with self._changing_xattr(node, name) as fd:
            self.journal.once(
                caller,
                "setxattr",
                lambda: backing.setxattr(fd, name, value, flags, caller, keep_setid=keep_setid),
                lambda _: _has_value(fd, name, value),
                lambda: None,
            )

    def removexattr(self, node: int, name: bytes, caller: Caller) -> None:
        """Remove an extended attribute. OSError: ENODATA."""
        with self._changing_xattr(node, name) as fd:
            existed = _value(fd, name) is not None
            self.journal.once(
                caller,
                "removexattr",
                lambda: backing.removexattr(fd, name),
                lambda intent: bool(intent.other) and not existed,
                lambda: None,
                other=existed,
            )

    def _changing_xattr(self, node: int, name: bytes) -> _Descriptor:
        if is_reserved_xattr(name):
            raise Reserved("extended attributes *.modama.* are kept for modamafs's own records")
        fd = self.inodes.open(node, os.O_PATH)
        try:
            self._admit(Operation.SET_XATTR, fd)
        except BaseException:
            os.close(fd)
            raise
        return _Descriptor(fd)

    # ---- flags of an inode ------------------------------------------------------------------

    def inode_flags_fd(self, node: int, *, changing: bool) -> int:
        """A descriptor for FS_IOC_GETFLAGS and its kin; the caller closes it."""
        fd = self.inodes.open(node, os.O_RDONLY | os.O_NONBLOCK)
        try:
            if changing:
                self._admit(Operation.SET_ATTRIBUTES, fd)
        except BaseException:
            os.close(fd)
            raise
        return fd


class _Descriptor:
    """A descriptor that is closed at the end of a ``with`` block."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __enter__(self) -> int:
        return self._fd

    def __exit__(self, *exception: object) -> None:
        os.close(self._fd)


def is_own_path(path: bytes) -> bool:
    """Whether a path leads through one of our own directories."""
    return any(is_own_name(name) for name in path.split(b"/"))


def _no() -> bool:
    return False


def is_reserved_xattr(name: bytes) -> bool:
    """Whether an extended attribute is one of our own (``user.modama.…``, ``trusted.modama.…``)."""
    return b".modama." in name + b"."


def _value(fd: int, name: bytes) -> bytes | None:
    try:
        return backing.getxattr(fd, name)
    except OSError as error:
        if error.errno == errno.ENODATA:
            return None
        raise


def _has_value(fd: int, name: bytes, value: bytes) -> bool:
    return _value(fd, name) == value
