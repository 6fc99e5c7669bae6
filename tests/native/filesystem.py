# ruff: noqa: ARG002
"""A minimal pyfuse3 file system over ``_channel``: the child process of ``kernel.py``.

    python -m tests.native.filesystem FD INIT_BIN WANTED STACK_DEPTH TRICK

TRICK is what goes wrong: ``init-answered`` (the kernel has had an answer to INIT: ENOENT),
``spurious`` (a request is read where none is waiting), ``not-callable`` (the handler is None);
``quick`` is none: the functions of ``quick.py`` answer what they can (``_channel.set_quick``).
Extended attributes answer what the test wants to know (see ``getxattr``). What the file system does
otherwise hangs on the inode number. Exit status: 0 at the mount's end, an errno if reading fails.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
import sys
from typing import Any

import trio

from tests.native import sanitized

sanitized.use_if_asked()

from modamafs.fuse import channel  # noqa: E402

channel.load(interpose=True)

import pyfuse3  # noqa: E402
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, RequestContext  # noqa: E402

from modamafs.fuse import _channel  # noqa: E402
from tests.native import quick  # noqa: E402

SET_OPEN, PLAIN, KEEP_CACHE, DIRECT_IO = 10, 11, 12, 13
"""Inodes whose opens differ; a file's handle is its number times 100."""

RAISE, REFUSE, REPLY_EMPTY, REPLY_AND_RAISE = 66, 67, 68, 69
"""Inodes at which the handler of the additional requests fails, refuses, says just "done", and
fails after it has answered."""

OPEN_FLAGS = channel.FOPEN_PASSTHROUGH | channel.FOPEN_NOFLUSH | 1 << 6
BACKING_ID = 4321

PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2
SECCOMP_RET_ERRNO, SECCOMP_RET_ALLOW = 0x00050000, 0x7FFF0000
SYS_READ, SYS_WRITE, SYS_WRITEV = 0, 1, 20  # x86-64
NUMBER, FD, LENGTH = 0, 16, 32  # offsets in struct seccomp_data


def fail_with(number: int, call: int, fd: int, length: int | None = None) -> None:
    """From now on, make ``read`` or ``write`` of ``fd`` (and of so many bytes) fail."""
    wanted = [(NUMBER, call), (FD, fd)] + ([] if length is None else [(LENGTH, length)])
    program = []
    for position, (offset, value) in enumerate(wanted):
        rest = 2 * (len(wanted) - position) - 1
        program += [(0x20, 0, 0, offset), (0x15, 0, rest, value)]  # load a word; unequal: allow
    program += [(0x06, 0, 0, SECCOMP_RET_ERRNO | number), (0x06, 0, 0, SECCOMP_RET_ALLOW)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in program))
    filter_program = struct.pack("@HxxxxxxP", len(program), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS, which an ordinary user needs
    if libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, filter_program):
        raise OSError(ctypes.get_errno(), "seccomp")


class FileSystem(pyfuse3.Operations):
    """See the module."""

    supports_dot_lookup = True
    enable_writeback_cache = False
    enable_acl = True

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = fd
        self._calls: list[tuple[Any, ...]] = []

    async def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        """The state of the channel, as Python prints it; or what makes the next step fail."""
        match name:
            case b"agreed":
                return repr(_channel.agreed()).encode()
            case b"current":
                return repr(_channel.current()).encode()
            case b"current_owner":
                return repr(_channel.current_owner()).encode()
            case b"seen":
                return repr(_channel.seen()).encode()
            case b"calls":
                calls, self._calls = self._calls, []
                return repr(calls).encode()
            case b"quick":
                noted, quick.calls[:] = list(quick.calls), []
                return repr(noted).encode()
            case b"attached":
                return repr(_channel.attached()).encode()
            case b"enodev":
                fail_with(errno.ENODEV, SYS_READ, self._fd)
                return b"None"
            case b"enospc":
                fail_with(errno.ENOSPC, SYS_WRITEV, self._fd)
                return b"None"
            case b"terminate":
                pyfuse3.terminate()
                return b"None"
        raise FUSEError(errno.ENODATA)

    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        self._calls.append(("open", inode, flags))
        if inode == SET_OPEN:
            _channel.set_open(inode * 100, OPEN_FLAGS, BACKING_ID)
        return FileInfo(
            fh=inode * 100,
            keep_cache=inode == KEEP_CACHE,
            direct_io=inode == DIRECT_IO,
            nonseekable=inode == DIRECT_IO,
        )

    async def setattr(
        self, inode: int, attr: EntryAttributes, fields: Any, fh: int | None, ctx: RequestContext
    ) -> EntryAttributes:
        self._calls.append(("setattr", inode, attr.st_size, fields.update_size, fh))
        return attributes()

    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        if inode == SET_OPEN:
            flags = channel.FOPEN_CACHE_DIR | channel.FOPEN_KEEP_CACHE
            _channel.set_open(inode * 100, flags, 0)
        return inode * 100

    async def create(
        self, parent: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        self._calls.append(("create", parent, name, mode, flags, ctx.uid, ctx.gid, ctx.umask))
        if parent == SET_OPEN:
            _channel.set_open(777, OPEN_FLAGS, BACKING_ID)
        return FileInfo(fh=777), attributes()

    def extra(
        self, opcode: int, req: int, ino: int, uid: int, gid: int, pid: int, *arguments: Any
    ) -> None:
        """The handler of the requests that pyfuse3 has none for."""
        self._calls.append((opcode, ino, uid, gid, pid, *arguments))
        if ino == RAISE:
            raise ValueError("on purpose")
        if ino == REFUSE:
            _channel.reply(req, errno.EDQUOT, b"never seen")
        elif ino == REPLY_EMPTY:
            _channel.reply(req, 0, b"")
        else:
            _channel.reply(req, 0, b"payload of %d" % opcode)
        if ino == REPLY_AND_RAISE:
            raise ValueError("after the reply")


def attributes() -> EntryAttributes:
    """Every field different, so that none can stand in for another."""
    entry = EntryAttributes()
    entry.st_ino = 0x1122334455667788
    entry.generation = 0x99AABBCC
    entry.entry_timeout = 12.5
    entry.attr_timeout = 3.25
    entry.st_mode = stat.S_IFREG | 0o4751
    entry.st_nlink = 17
    entry.st_uid = 1001
    entry.st_gid = 1002
    entry.st_rdev = 0x0803
    entry.st_size = 0x1_0000_0001
    entry.st_blksize = 8192
    entry.st_blocks = 0x2_0000_0003
    entry.st_atime_ns = 1_600_000_001_000_000_111
    entry.st_mtime_ns = 1_600_000_002_000_000_222
    entry.st_ctime_ns = -1_000_000_000 + 333  # 1969
    return entry


async def serve(scheduler: channel.Scheduler, *, spurious: bool) -> None:
    """pyfuse3's main loop."""
    if spurious:
        waiting = scheduler.wait_readable
        tries = iter(range(5))

        async def wait_readable(fd: int) -> None:
            if next(tries, None) is None:
                await waiting(fd)

        scheduler.wait_readable = wait_readable  # type: ignore[method-assign]
    await pyfuse3.main(min_tasks=1_000, max_tasks=64)


def main() -> int:
    fd, init_path, wanted, depth, trick = sys.argv[1:]
    if trick == "init-answered":
        fail_with(errno.ENOENT, SYS_WRITE, int(fd), 80)
    os.set_blocking(int(fd), False)
    init_fd = os.open(init_path, os.O_RDWR | os.O_CREAT, 0o600) if init_path else -1
    operations = FileSystem(int(fd))
    handler: Any = None if trick == "not-callable" else operations.extra
    _channel.attach(int(fd), init_fd, int(wanted), int(depth), handler)
    if trick == "quick":
        quick.set_up(_channel)
    pyfuse3.init(operations, "/", set())
    assert _channel.attached()
    lent = channel.scheduler(pyfuse3)
    assert lent is not None
    status = 0
    try:
        trio.run(lambda: serve(lent, spurious=trick == "spurious"))
    except* OSError as group:
        status = next(error.errno for error in group.exceptions if isinstance(error, OSError)) or 1
    pyfuse3.close(unmount=False)
    _channel.detach()
    return status


if __name__ == "__main__":
    sys.exit(main())
