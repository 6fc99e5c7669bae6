"""Long work on sealed directories: one process each, one at a time for a directory."""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import trio

from modamafs.control.protocol import decode_reply
from modamafs.errors import Busy, Cancelled, InvalidRequest, ModamaError
from modamafs.model import Caller, SealState

log = logging.getLogger(__name__)

ENDS_IN = {"seal": SealState.SEALED.value, "unseal": SealState.OPEN.value}
LINE_LIMIT_BYTES = 64 << 20
"""Of a reply: ``verify`` names every file that it misses."""
SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 30.0
"""Between two attempts to resume what somebody else is at."""


@dataclass(slots=True)
class Job:
    """What is being done to one directory."""

    verb: str
    process: trio.Process | None = None
    is_cancelled: bool = False
    progress: dict[str, Any] = field(default_factory=dict)


class Jobs:
    """The processes of one mount that seal, verify and unseal."""

    def __init__(self, store: str, noticed: Callable[[], Awaitable[object]] | None = None) -> None:
        """``store``: absolute path. ``noticed`` returns when what was done is seen by everybody."""
        self._store = store
        self._noticed = noticed
        self._running: dict[str, Job] = {}
        self._ended = trio.Event()

    def progress(self, path: str) -> dict[str, Any] | None:
        """How far the work on a directory is; None: there is none."""
        job = self._running.get(path)
        return None if job is None else {"verb": job.verb, **job.progress}

    def cancel(self, path: str) -> bool:
        """Ask the work on a directory to be given up. Whether there is any."""
        job = self._running.get(path)
        if job is None or job.process is None:
            return False
        job.is_cancelled = True
        job.process.send_signal(signal.SIGTERM)
        return True

    async def run(self, order: dict[str, Any], caller: Caller) -> dict[str, Any]:
        """Have it done and return the result; raises what the process was refused with.

        Work on the same directory is waited for, but for sealing: who wants to unseal, or verify,
        what is being sealed is told so (Busy, EBUSY). A process that is killed is followed by one
        that finishes what it was doing.
        """
        async with self._turn(order["path"], order["verb"]) as job:
            reply = await self._converse(job, order, caller)
            if reply is not None:
                return reply
            if not job.is_cancelled:
                log.warning("sealer-killed verb=%s path=%r", order["verb"], order["path"])
            if order["verb"] in ENDS_IN:
                again = {"verb": "resume", "path": order["path"]}
                reply = await self._converse(job, again, caller)
                if reply is not None and reply["state"] == ENDS_IN[order["verb"]]:
                    return reply
            if job.is_cancelled:
                raise Cancelled("given up: everything is as it was before")
        raise OSError(
            errno.EIO,
            f"the process that was to {order['verb']} {order['path']} was killed: "
            "try again; what it had begun to seal stays shut until then",
        )

    @asynccontextmanager
    async def _turn(self, path: str, verb: str) -> AsyncIterator[Job]:
        while (running := self._running.get(path)) is not None:
            if verb != running.verb and running.verb == "seal":
                raise Busy(
                    f"{path} is being sealed just now: wait for that, "
                    "or give it up with 'modamafs seal --cancel'"
                )
            await self._ended.wait()
        job = self._running[path] = Job(verb)
        try:
            yield job
        finally:
            del self._running[path]
            self._ended.set()
            self._ended = trio.Event()

    async def _converse(
        self, job: Job, order: dict[str, Any], caller: Caller
    ) -> dict[str, Any] | None:
        """One process's life; None: it ended without an answer."""
        process = await trio.lowlevel.open_process(
            [sys.executable, "-m", "modamafs.sealer"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        job.process = process
        who = {**caller._asdict(), "request": 0, "resent": False}
        line = {"store": self._store, "order": order, "caller": who}
        answer = None
        try:
            await process.stdin.send_all(json.dumps(line).encode() + b"\n")
            async for text in lines_of(process.stdout):
                told = json.loads(text)
                if "progress" in told:
                    job.progress = told["progress"]
                else:
                    answer = text
            if answer is not None and self._noticed is not None:
                await self._noticed()  # while it can still be seen whose child has done it
        except trio.BrokenResourceError:
            log.debug("sealer-left pid=%d", process.pid)
        finally:
            job.process = None
            with trio.CancelScope(shield=True):
                await process.stdin.aclose()  # if it still runs, it ends itself
                await process.stdout.aclose()
                await process.wait()
        if answer is None:
            return None
        result = decode_reply(answer)
        assert isinstance(result, dict)
        return result


async def lines_of(stream: trio.abc.ReceiveStream) -> AsyncIterator[bytes]:
    """The lines that a process prints. OSError (EMSGSIZE): one has no end."""
    buffer = bytearray()
    async for piece in stream:
        buffer += piece
        if len(buffer) > LINE_LIMIT_BYTES:
            raise OSError(errno.EMSGSIZE, "the answer is too long")
        *lines, rest = buffer.split(b"\n")
        buffer = bytearray(rest)
        for line in lines:
            yield bytes(line)


def path_argument(arguments: dict[str, Any]) -> str:
    """The path that a command was given. InvalidRequest (EINVAL)."""
    path = arguments.get("path")
    if not isinstance(path, str):
        raise InvalidRequest("say which directory: path")
    return os.path.normpath(path).lstrip("/")  # one name for a directory


async def resume_all(jobs: Jobs, paths: list[str]) -> None:
    """Finish what earlier workers were doing."""
    root = Caller(0, 0)

    async def resume(path: str) -> None:
        pause_s = SHORTEST_PAUSE_S
        while True:
            try:
                record = await jobs.run({"verb": "resume", "path": path}, root)
            except (ModamaError, OSError) as error:
                # EBUSY: another mount is at it, or what an ended worker had started.
                if error.errno != errno.EBUSY:
                    log.warning("resume-failed path=%r error=%s", path, error)
                    return
                log.info("resume-waits path=%r error=%s", path, error)
            else:
                log.info("resumed path=%r state=%s", path, record["state"])
                return
            await trio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    async with trio.open_nursery() as nursery:
        for path in paths:
            nursery.start_soon(resume, path)
