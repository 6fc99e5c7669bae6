"""The processes that search in the index, a few at most: started when they are needed."""

from __future__ import annotations

import errno
import json
import logging
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import trio

from modamafs.model import Caller

log = logging.getLogger(__name__)

AT_MOST = 2
"""Processes, and so searches at a time; the others wait. A user has one at a time."""
KEPT_S = 60.0
"""How long one is kept for the next question."""
LONGEST_ANSWER_BYTES = 16 << 20


class Answer(NamedTuple):
    """What a search came to."""

    told: dict[str, Any]
    """What the searcher says of it to the worker."""
    line: bytearray
    """The reply, as it goes to the client."""


class Searchers:
    """One mount's."""

    def __init__(self, runtime: Path) -> None:
        self._runtime = runtime
        self._free: list[tuple[trio.Process, float]] = []
        self._turns = trio.CapacityLimiter(AT_MOST)
        self._queues: dict[int, trio.Lock] = {}

    async def run(self) -> None:
        """End those that nobody has needed for a while; all of them when it is cancelled."""
        try:
            while True:
                await trio.sleep(KEPT_S / 2)
                now_s = trio.current_time()
                old = [one for one, since_s in self._free if since_s < now_s - KEPT_S]
                self._free = [one for one in self._free if one[0] not in old]
                for process in old:
                    await self._end(process)
        finally:
            with trio.CancelScope(shield=True):
                while self._free:
                    await self._end(self._free.pop()[0])

    async def ask(
        self,
        verb: str,
        arguments: dict[str, Any],
        caller: Caller,
        state: dict[str, Any] | None = None,
    ) -> Answer:
        """Have it answered; who is cancelled meanwhile ends the search, too.

        ``state``: of the index, if there is more to say of it than the index does. What the search
        was refused with is in the reply. OSError: EIO.
        """
        who = [caller.uid, caller.gid, caller.pid, list(caller.groups)]
        question = {
            "verb": verb, "arguments": arguments, "caller": who, "state": state,
            "most_bytes": LONGEST_ANSWER_BYTES,
        }  # fmt: skip
        async with self._turn(caller.uid):
            process = await self._take()
            try:
                answer = await self._converse(process, json.dumps(question).encode() + b"\n")
            except BaseException:
                with trio.CancelScope(shield=True):
                    await self._end(process)
                raise
            self._free.append((process, trio.current_time()))
        return answer

    @asynccontextmanager
    async def _turn(self, uid: int) -> AsyncIterator[None]:
        """The questions of one user one after the other, so that others' are answered meanwhile."""
        queue = self._queues.setdefault(uid, trio.Lock())
        try:
            async with queue, self._turns:
                yield
        finally:
            if not queue.locked() and self._queues.get(uid) is queue:
                del self._queues[uid]

    async def _take(self) -> trio.Process:
        while self._free:
            process, _ = self._free.pop()
            if process.poll() is None:
                return process
        return await trio.lowlevel.open_process(
            [sys.executable, "-P", "-m", "modamafs.searcher", "--runtime", str(self._runtime)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd="/",
        )

    async def _converse(self, process: trio.Process, question: bytes) -> Answer:
        """Two lines come back: what is for the worker, and the reply, which is not looked into."""
        assert process.stdin is not None and process.stdout is not None
        answer = bytearray()
        lines = 0
        try:
            await process.stdin.send_all(question)
            while lines < 2 and (piece := await process.stdout.receive_some(1 << 16)):
                answer += piece
                lines += piece.count(b"\n")
                if len(answer) > LONGEST_ANSWER_BYTES:
                    raise OSError(errno.EIO, "the search has found too much: ask for less")
        except trio.BrokenResourceError:
            lines = 0
        if lines < 2:
            log.warning("searcher-died pid=%d", process.pid)
            raise OSError(errno.EIO, "the search ended in the middle: try again")
        end = answer.index(b"\n") + 1
        told = json.loads(answer[:end])
        del answer[:end]  # which moves nothing: the rest may be long
        return Answer(told, answer)

    @staticmethod
    async def _end(process: trio.Process) -> None:
        process.kill()
        await process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                await pipe.aclose()
