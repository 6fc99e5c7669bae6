"""The channel to the kernel: how pyfuse3 comes to use ours, and what is agreed on.

``load()`` has to run before anything imports pyfuse3: it loads ``_channel`` so that its symbols
come before libfuse's (see ``_channel.c``), and it lends pyfuse3 a scheduler that does not go
through the event loop for a request that is waiting already.
"""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import trio

from modamafs.model import Caller
from modamafs.store import backing

if TYPE_CHECKING:
    from types import ModuleType

# linux/fuse.h: flags of the INIT reply
DONT_MASK = 1 << 6
CACHE_SYMLINKS = 1 << 23
HANDLE_KILLPRIV_V2 = 1 << 28
SETXATTR_EXT = 1 << 29
INIT_EXT = 1 << 30
HAS_EXPIRE_ONLY = 1 << 35
PASSTHROUGH = 1 << 37
HAS_RESEND = 1 << 39

# linux/fuse.h: flags of an open's reply
FOPEN_DIRECT_IO = 1 << 0
FOPEN_KEEP_CACHE = 1 << 1
FOPEN_CACHE_DIR = 1 << 3
FOPEN_NOFLUSH = 1 << 5
FOPEN_PARALLEL_DIRECT_WRITES = 1 << 6
FOPEN_PASSTHROUGH = 1 << 7

SETXATTR_ACL_KILL_SGID = 1

BACKING_OPEN = 0x4010E501  # _IOW(229, 1, struct fuse_backing_map)
BACKING_CLOSE = 0x4004E502  # _IOW(229, 2, uint32_t)
BACKING_MAP = struct.Struct("=iIQ")

OPCODES = {
    1: "LOOKUP", 2: "FORGET", 3: "GETATTR", 4: "SETATTR", 5: "READLINK", 6: "SYMLINK", 8: "MKNOD",
    9: "MKDIR", 10: "UNLINK", 11: "RMDIR", 12: "RENAME", 13: "LINK", 14: "OPEN", 15: "READ",
    16: "WRITE", 17: "STATFS", 18: "RELEASE", 20: "FSYNC", 21: "SETXATTR", 22: "GETXATTR",
    23: "LISTXATTR", 24: "REMOVEXATTR", 25: "FLUSH", 26: "INIT", 27: "OPENDIR", 28: "READDIR",
    29: "RELEASEDIR", 30: "FSYNCDIR", 34: "ACCESS", 35: "CREATE", 36: "INTERRUPT", 38: "DESTROY",
    39: "IOCTL", 40: "POLL", 42: "BATCH_FORGET", 43: "FALLOCATE", 44: "READDIRPLUS",
    45: "RENAME2", 46: "LSEEK", 47: "COPY_FILE_RANGE", 50: "SYNCFS", 51: "TMPFILE", 52: "STATX",
}  # fmt: skip

SPIN_US = 30
"""How long to look for the next request before the event loop is asked to wait for it: about what a
client takes from one answer to its next request, and what waking up would cost."""


def load(*, interpose: bool) -> None:
    """Load ``_channel`` and pyfuse3. RuntimeError if pyfuse3 was imported before."""
    if "pyfuse3" in sys.modules:
        raise RuntimeError("pyfuse3 was imported before its channel was loaded")
    flags = sys.getdlopenflags()
    if interpose:
        sys.setdlopenflags(os.RTLD_NOW | os.RTLD_GLOBAL)
    try:
        from modamafs.fuse import _channel
    finally:
        sys.setdlopenflags(flags)
    import pyfuse3

    if interpose:
        pyfuse3.trio = Scheduler(_channel.ready)  # type: ignore[attr-defined]


class KernelBackingFiles:
    """Files that the kernel reads and writes by itself (``FUSE_DEV_IOC_BACKING_OPEN``)."""

    def __init__(self, fuse_fd: int) -> None:
        self._fuse_fd = fuse_fd

    def register(self, fd: int, caller: Caller) -> int:
        """Register an open file; what is written through it is written as the caller.

        OSError: ELOOP (the store lies on a stacked file system), EPERM (no CAP_SYS_ADMIN).
        """
        request = bytearray(BACKING_MAP.pack(fd, 0, 0))
        return backing.ioctl_as(self._fuse_fd, BACKING_OPEN, request, caller.uid, caller.gid)

    def close(self, backing_id: int) -> None:
        """Take a registration back; files that are open on it stay open."""
        request = bytearray(struct.pack("=I", backing_id))
        try:
            backing.ioctl_as(self._fuse_fd, BACKING_CLOSE, request, 0, 0)
        except FileNotFoundError:
            return  # an id that was never given


class Turn:
    """Whose turn it is to read requests: one task's, until it has to wait for something else.

    pyfuse3 has several tasks take requests in turn, each passing a lock on to the next, which costs
    a round through the event loop for every request. Here the task that has answered a request
    reads the next one itself. Only one that goes off to wait (``give_up``) lets another one in.
    """

    def __init__(self) -> None:
        self._reader: trio.lowlevel.Task | None = None
        self._lot = trio.lowlevel.ParkingLot()

    async def __aenter__(self) -> None:
        me = trio.lowlevel.current_task()
        while self._reader is not None and self._reader is not me:
            await self._lot.park()
        self._reader = me

    async def __aexit__(self, *exception: object) -> None:
        """The turn is kept: for as long as the request is answered without waiting."""

    def give_up(self) -> None:
        """Let another task read on while this one waits."""
        if self._reader is trio.lowlevel.current_task():
            self._reader = None
            self._lot.unpark()


class _Nursery:
    """A nursery whose tasks give up their turn when they end."""

    def __init__(self, turn: Callable[[], Turn]) -> None:
        self._turn = turn
        self._manager = trio.open_nursery()

    async def __aenter__(self) -> _Nursery:
        self._nursery = await self._manager.__aenter__()
        return self

    async def __aexit__(self, *exception: Any) -> bool | None:
        return await self._manager.__aexit__(*exception)

    def start_soon(self, function: Callable[..., Any], *arguments: Any, name: object) -> None:
        async def run() -> None:
            try:
                await function(*arguments)
            finally:
                self._turn().give_up()

        self._nursery.start_soon(run, name=name)


class Scheduler:
    """What pyfuse3 uses of trio, in the module's place (``pyfuse3.asyncio`` does the same)."""

    ClosedResourceError = trio.ClosedResourceError

    def __init__(self, ready: Callable[[int], bool]) -> None:
        """``ready(spin_us)`` says whether a request is to be read now; see ``_channel.ready``."""
        self.lowlevel = self
        self.turn = Turn()
        self.current_task = trio.lowlevel.current_task
        self.current_trio_token = trio.lowlevel.current_trio_token
        self.notify_closing = trio.lowlevel.notify_closing
        self._ready = ready

    def Lock(self) -> Turn:
        """pyfuse3's lock around waiting for a request."""
        return self.turn

    def open_nursery(self) -> _Nursery:
        """pyfuse3's nursery for the tasks that take requests."""
        return _Nursery(lambda: self.turn)

    async def wait_readable(self, fd: int) -> None:
        """Return when a request can be read; after many in a row, when others have had a turn."""
        if not self._ready(SPIN_US):
            await trio.lowlevel.wait_readable(fd)


def scheduler(pyfuse3: ModuleType) -> Scheduler | None:
    """The scheduler that was lent to pyfuse3; None without interposition."""
    lent = pyfuse3.trio
    return lent if isinstance(lent, Scheduler) else None
