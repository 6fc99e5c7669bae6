"""One session with the kernel: attach to a mounted ``/dev/fuse`` descriptor and serve it."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any

import pyfuse3

from modamafs.fuse import _channel, channel
from modamafs.fuse.operations import Operations

WANTED = channel.DONT_MASK | channel.CACHE_SYMLINKS | channel.SETXATTR_EXT | channel.HAS_RESEND
WANTED_WITH_PASSTHROUGH = WANTED | channel.PASSTHROUGH | channel.HANDLE_KILLPRIV_V2


class Session(AbstractContextManager["Session"]):
    """The connection to the kernel. ``with`` it, ``attach`` it, then ``serve``."""

    def __init__(self, fuse_fd: int, runtime: Path, *, passthrough: bool, interpose: bool) -> None:
        self._fuse_fd = fuse_fd
        self._init_path = runtime / "init.bin"
        self._passthrough = passthrough
        self._interpose = interpose
        self._operations: Operations | None = None
        self.stopping = False

    def wants_passthrough(self) -> bool:
        """Whether passthrough will be asked for; the kernel may still say no."""
        return self._passthrough and self._interpose

    def attach(self, operations: Operations, stack_depth: int) -> None:
        """Take the descriptor over. RuntimeError if libfuse does not take ours."""
        self._operations = operations
        options = {"allow_other", "default_permissions", "fsname=modamafs"}
        if not self._interpose:
            pyfuse3.init(operations, f"/dev/fd/{self._fuse_fd}", options)
            return
        os.set_blocking(self._fuse_fd, False)
        init_fd = os.open(self._init_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        wanted = WANTED_WITH_PASSTHROUGH if self._passthrough else WANTED
        _channel.attach(self._fuse_fd, init_fd, wanted, stack_depth, operations.extra)
        _channel.set_quick(
            operations.quick(), operations.tree.inodes.root_ino, operations.tree.handles.changing
        )
        pyfuse3.init(operations, "/", set())
        if not _channel.attached():
            raise RuntimeError("libfuse did not take the channel: its symbols were not interposed")

    async def serve(self) -> None:
        """Answer the kernel until the mount is gone, or ``stop`` is called."""
        await pyfuse3.main(min_tasks=1_000, max_tasks=64)

    def stop(self) -> None:
        """End ``serve``; requests that were read are answered first."""
        self.stopping = True
        pyfuse3.terminate()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._operations is not None:
            pyfuse3.close(unmount=False)

    def facts(self) -> dict[str, Any]:
        """What ``status`` says of the session."""
        seen = _channel.seen()
        agreed = _channel.agreed()
        return {
            "passthrough": bool(agreed & channel.PASSTHROUGH),
            "survives_worker": bool(agreed & channel.HAS_RESEND),
            "requests": {name: seen[number] for number, name in channel.OPCODES.items()},
        }


def backing_files(fuse_fd: int) -> channel.KernelBackingFiles:
    """Where files are registered for passthrough."""
    return channel.KernelBackingFiles(fuse_fd)
