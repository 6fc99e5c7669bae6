"""The peer: a plain pyfuse3 passthrough, written the way pyfuse3's documentation shows one.

`python pyfuse3_passthrough.py SOURCE MOUNTPOINT` runs in the foreground until it is unmounted.

It keeps to the documented example where that decides speed, with pyfuse3's defaults untouched: a
table inode → paths, every operation by path inside trio's one thread, one descriptor per open
inode, no entry or attribute timeouts, the whole directory read again for each readdir request,
`FileInfo` and `default_options` as they come, and no net under `read` and `write`. (So a client's
O_DIRECT, handed on to the backing file with a buffer that is not aligned, ends the daemon.)
It is no starting point for a file system of your own; `modamafs/fuse` is.
"""
# System calls are the subject, and signatures are those of the handlers.
# ruff: noqa: ARG002

import errno
import os
import stat
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import pyfuse3
import trio
from pyfuse3 import (
    EntryAttributes,
    FileHandleT,
    FileInfo,
    FileNameT,
    FlagT,
    FUSEError,
    InodeT,
    ModeT,
    ReaddirToken,
    RequestContext,
    SetattrFields,
    StatvfsData,
)

COPIED = ("st_ino", "st_mode", "st_nlink", "st_uid", "st_gid", "st_rdev", "st_size")
TIMES = ("st_atime_ns", "st_mtime_ns", "st_ctime_ns")
BLOCKS = ("f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail")
FILES = ("f_files", "f_ffree", "f_favail", "f_namemax")


@contextmanager
def errors() -> Iterator[None]:
    """Turn an OSError into the errno of the reply."""
    try:
        yield
    except OSError as error:
        raise FUSEError(error.errno or errno.EIO) from None


class Passthrough(pyfuse3.Operations):
    """Mirror the directory `source`."""

    enable_writeback_cache = True

    def __init__(self, source: str) -> None:
        super().__init__()
        self.paths: dict[InodeT, set[str]] = {pyfuse3.ROOT_INODE: {source}}
        self.lookups: defaultdict[InodeT, int] = defaultdict(int)
        self.descriptors: dict[InodeT, FileHandleT] = {}
        self.inodes: dict[FileHandleT, InodeT] = {}
        self.opens: dict[FileHandleT, int] = {}

    def path(self, inode: InodeT) -> str:
        """One of the paths of a known inode."""
        for path in self.paths.get(inode, ()):
            return path
        raise FUSEError(errno.ENOENT)

    def child(self, parent: InodeT, name: FileNameT) -> str:
        """The path of an entry of a known directory."""
        return os.path.join(self.path(parent), os.fsdecode(name))

    def remember(self, inode: InodeT, path: str) -> None:
        """Note a looked-up path; the kernel will forget it by count."""
        self.lookups[inode] += 1
        self.paths.setdefault(inode, set()).add(path)

    def drop(self, inode: InodeT, path: str) -> None:
        """Note that a path has gone."""
        paths = self.paths.get(inode)
        if paths is not None:
            paths.discard(path)
            if not paths:
                del self.paths[inode]

    def attributes(self, path: str | None = None, fd: int | None = None) -> EntryAttributes:
        """The attributes of a path or a descriptor, for a reply."""
        with errors():
            status = os.fstat(fd) if path is None and fd is not None else os.lstat(path or "")
        entry = EntryAttributes()
        for name in (*COPIED, *TIMES):
            setattr(entry, name, getattr(status, name))
        entry.generation = 0
        entry.entry_timeout = 0
        entry.attr_timeout = 0
        entry.st_blksize = 512
        entry.st_blocks = (entry.st_size + 511) // 512
        return entry

    def entry(self, path: str, ctx: RequestContext | None = None) -> EntryAttributes:
        """The reply for a path that was looked up, or created (then owned by the caller)."""
        if ctx is not None:
            with errors():
                os.chown(path, ctx.uid, ctx.gid, follow_symlinks=False)
        attributes = self.attributes(path)
        self.remember(attributes.st_ino, path)
        return attributes

    async def lookup(
        self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        path = self.child(parent_inode, name)
        attributes = self.attributes(path)
        if name not in (b".", b".."):
            self.remember(attributes.st_ino, path)
        return attributes

    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        for inode, count in inode_list:
            self.lookups[inode] -= count
            if self.lookups[inode] <= 0:
                del self.lookups[inode]
                self.paths.pop(inode, None)

    async def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:
        if inode in self.descriptors:
            return self.attributes(fd=self.descriptors[inode])
        return self.attributes(self.path(inode))

    async def setattr(
        self,
        inode: InodeT,
        attr: EntryAttributes,
        fields: SetattrFields,
        fh: FileHandleT | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        target: int | str = self.path(inode) if fh is None else fh
        # Never through a symbolic link; chmod(2) and truncate(2) are not asked for on one.
        follow = fh is not None
        with errors():
            if fields.update_size:
                os.truncate(target, attr.st_size)
            if fields.update_mode:
                os.chmod(target, stat.S_IMODE(attr.st_mode))
            if fields.update_uid or fields.update_gid:
                uid = attr.st_uid if fields.update_uid else -1
                gid = attr.st_gid if fields.update_gid else -1
                os.chown(target, uid, gid, follow_symlinks=follow)
            if fields.update_atime or fields.update_mtime:
                now = os.stat(target, follow_symlinks=follow)
                atime = attr.st_atime_ns if fields.update_atime else now.st_atime_ns
                mtime = attr.st_mtime_ns if fields.update_mtime else now.st_mtime_ns
                os.utime(target, None, ns=(atime, mtime), follow_symlinks=follow)
        return await self.getattr(inode, ctx)

    async def readlink(self, inode: InodeT, ctx: RequestContext) -> FileNameT:
        with errors():
            return FileNameT(os.fsencode(os.readlink(self.path(inode))))

    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        return FileHandleT(inode)

    async def readdir(self, fh: FileHandleT, start_id: int, token: ReaddirToken) -> None:
        directory = self.path(InodeT(fh))
        found = []
        with errors():
            names = pyfuse3.listdir(directory)
        for name in names:
            path = os.path.join(directory, name)
            with suppress(FUSEError):
                attributes = self.attributes(path)
                found.append((attributes.st_ino, path, name, attributes))
        found.sort(key=lambda each: each[:2])
        for inode, path, name, attributes in found:
            if inode <= start_id:
                continue
            if not pyfuse3.readdir_reply(token, FileNameT(os.fsencode(name)), attributes, inode):
                break
            self.remember(inode, path)

    async def mknod(
        self,
        parent_inode: InodeT,
        name: FileNameT,
        mode: ModeT,
        rdev: int,
        ctx: RequestContext,
    ) -> EntryAttributes:
        path = self.child(parent_inode, name)
        with errors():
            os.mknod(path, mode & ~ctx.umask, rdev)
        return self.entry(path, ctx)

    async def mkdir(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, ctx: RequestContext
    ) -> EntryAttributes:
        path = self.child(parent_inode, name)
        with errors():
            os.mkdir(path, mode & ~ctx.umask)
        return self.entry(path, ctx)

    async def symlink(
        self, parent_inode: InodeT, name: FileNameT, target: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        path = self.child(parent_inode, name)
        with errors():
            os.symlink(os.fsdecode(target), path)
        return self.entry(path, ctx)

    async def link(
        self,
        inode: InodeT,
        new_parent_inode: InodeT,
        new_name: FileNameT,
        ctx: RequestContext,
    ) -> EntryAttributes:
        path = self.child(new_parent_inode, new_name)
        with errors():
            os.link(self.path(inode), path, follow_symlinks=False)
        return self.entry(path)

    async def unlink(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        path = self.child(parent_inode, name)
        with errors():
            inode = InodeT(os.lstat(path).st_ino)
            os.unlink(path)
        self.drop(inode, path)

    async def rmdir(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        path = self.child(parent_inode, name)
        with errors():
            inode = InodeT(os.lstat(path).st_ino)
            os.rmdir(path)
        self.drop(inode, path)

    async def rename(
        self,
        parent_inode_old: InodeT,
        name_old: FileNameT,
        parent_inode_new: InodeT,
        name_new: FileNameT,
        flags: FlagT,
        ctx: RequestContext,
    ) -> None:
        if flags:
            raise FUSEError(errno.EINVAL)
        old = self.child(parent_inode_old, name_old)
        new = self.child(parent_inode_new, name_new)
        with errors():
            with suppress(FileNotFoundError):
                self.drop(InodeT(os.lstat(new).st_ino), new)
            os.rename(old, new)
            inode = InodeT(os.lstat(new).st_ino)
        if inode in self.paths:
            self.paths[inode].discard(old)
            self.paths[inode].add(new)

    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> FileInfo:
        if inode not in self.descriptors:
            with errors():
                self.opened(inode, FileHandleT(os.open(self.path(inode), flags)))
        handle = self.descriptors[inode]
        self.opens[handle] += 1
        return FileInfo(fh=handle)

    async def create(
        self,
        parent_inode: InodeT,
        name: FileNameT,
        mode: ModeT,
        flags: FlagT,
        ctx: RequestContext,
    ) -> tuple[FileInfo, EntryAttributes]:
        path = self.child(parent_inode, name)
        with errors():
            handle = FileHandleT(os.open(path, flags | os.O_CREAT | os.O_TRUNC, mode))
        attributes = self.entry(path)
        self.opened(attributes.st_ino, handle)
        self.opens[handle] += 1
        return FileInfo(fh=handle), attributes

    def opened(self, inode: InodeT, handle: FileHandleT) -> None:
        """Note the descriptor of an inode that is open from now on."""
        self.descriptors[inode] = handle
        self.inodes[handle] = inode
        self.opens[handle] = 0

    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        os.lseek(fh, off, os.SEEK_SET)
        return os.read(fh, size)

    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        os.lseek(fh, off, os.SEEK_SET)
        return os.write(fh, buf)

    async def release(self, fh: FileHandleT) -> None:
        self.opens[fh] -= 1
        if self.opens[fh] == 0:
            del self.opens[fh]
            del self.descriptors[self.inodes.pop(fh)]
            with errors():
                os.close(fh)

    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        with errors():
            status = os.statvfs(self.path(pyfuse3.ROOT_INODE))
        reply = StatvfsData()
        for name in (*BLOCKS, *FILES):
            setattr(reply, name, getattr(status, name))
        return reply


def main(source: str, mountpoint: str) -> None:
    """Serve until unmounted."""
    os.umask(0)
    options = {*pyfuse3.default_options, "fsname=pyfuse3_passthrough"}
    pyfuse3.init(Passthrough(source), mountpoint, options)
    try:
        trio.run(pyfuse3.main)
    finally:
        pyfuse3.close(unmount=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
