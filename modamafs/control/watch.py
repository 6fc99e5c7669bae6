"""The worker's end of the watch: starts the watcher, and the next one when it dies."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio

from modamafs.control.again import Mounted, again_and_again

log = logging.getLogger(__name__)

PATIENCE_S = 5.0
"""For an index that is being written; what is known then has to do."""
LONGEST_LINE_BYTES = 64 << 20


class Watch:
    """One mount's."""

    def __init__(
        self,
        runtime: Path,
        fuse_fd: int,
        watch_fd: int | None,
        *,
        recorded: Callable[[bytes, bytes], None],
    ) -> None:
        """``recorded``: told of a file that may hold metadata (session, path in it)."""
        self._runtime = runtime
        self._is_mounted = Mounted(runtime)
        self._fuse_fd = fuse_fd
        self._watch_fd = watch_fd
        self.trust: Callable[[bool], None] = lambda _watched: None
        """Told whether what changes on the store is noticed at once, from now on."""
        self._recorded = recorded
        self._stream: trio.SocketStream | None = None
        self._sending = trio.Lock()
        self._numbers = itertools.count(1)
        self._waiting: dict[int, trio.Event] = {}
        self._changed = trio.Event()
        self.is_watching = False
        self.index: dict[str, Any] = {"state": "starting"}
        """What ``status`` says of the index."""

    async def run(self) -> None:
        """Until it is unmounted: what is still open then needs none."""
        await again_and_again(
            self._live, self._is_mounted, log, "watcher-not-started", "watch-failed"
        )

    async def _live(self) -> None:
        """One watcher's life."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                process = await self._start(theirs)
            except BaseException:
                ours.close()
                raise
        self._stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
        try:
            async with self._stream:
                with contextlib.suppress(trio.BrokenResourceError):
                    await self._listen(self._stream)
            level = logging.WARNING if self._is_mounted() else logging.INFO
            log.log(level, "watcher-died pid=%d", process.pid)
        finally:
            self._stream = None
            self.is_watching = False
            self.trust(False)
            self.index = {"state": "starting"}
            self._release()
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()

    async def _start(self, theirs: socket.socket) -> trio.Process:
        fds = ["--fuse-fd", str(self._fuse_fd), "--worker-fd", str(theirs.fileno())]
        pass_fds = [self._fuse_fd, theirs.fileno()]
        if self._watch_fd is not None:
            fds += ["--watch-fd", str(self._watch_fd)]
            pass_fds.append(self._watch_fd)
        return await trio.lowlevel.open_process(
            [
                sys.executable, "-P", "-m", "modamafs.watcher",
                "--runtime", str(self._runtime), "--worker", str(os.getpid()), *fds,
            ],
            stdin=subprocess.DEVNULL,
            pass_fds=pass_fds,
            cwd="/",
        )  # fmt: skip

    def _release(self) -> None:
        for event in self._waiting.values():
            event.set()
        self._waiting.clear()

    async def _listen(self, stream: trio.SocketStream) -> None:
        buffer = b""
        while piece := await stream.receive_some(1 << 16):
            *lines, buffer = (buffer + piece).split(b"\n")
            for line in lines:
                self._hear(json.loads(line))
            if len(buffer) > LONGEST_LINE_BYTES:
                log.error("watcher-said-too-much")
                return

    def _hear(self, message: dict[str, Any]) -> None:
        if "watching" in message:
            self.is_watching = message["watching"]
            self.trust(self.is_watching)
        if "index" in message:
            self.index = message["index"]
            self._changed.set()
            self._changed = trio.Event()
        for session, path in message.get("recorded", ()):
            self._recorded(os.fsencode(session), os.fsencode(path))
        for kind in ("synced", "rebuilt"):
            event = self._waiting.pop(message.get(kind, 0), None)
            if event is not None:
                event.set()

    async def sync(self, timeout_s: float = PATIENCE_S) -> bool:
        """Wait until the index has everything that has happened by now. False: it may lack some."""
        with trio.move_on_after(timeout_s):
            return await self._ask("sync")
        return False

    async def rebuild(self) -> bool:
        """Have a new index made; returns when it is there. False: no watcher, or it has died."""
        return await self._ask("rebuild")

    async def _ask(self, what: str) -> bool:
        stream = self._stream
        if stream is None:
            return False
        number = next(self._numbers)
        event = self._waiting[number] = trio.Event()
        try:
            async with self._sending:
                await stream.send_all(json.dumps({what: number}).encode() + b"\n")
            await event.wait()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return False
        finally:
            self._waiting.pop(number, None)
        return self._stream is stream

    async def news(self, timeout_s: float) -> None:
        """Wait until the index says something new of itself, or the time is over."""
        with trio.move_on_after(timeout_s):
            await self._changed.wait()
