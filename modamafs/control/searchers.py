"""The processes that search in the index, a few at most: started when they are needed."""

from __future__ import annotations

import errno
import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import trio

from modamafs.control.protocol import decode_reply
from modamafs.model import Caller

log = logging.getLogger(__name__)

AT_MOST = 2
"""Processes, and so searches at a time; the others wait."""
KEPT_S = 60.0
"""How long one is kept for the next question."""
LONGEST_ANSWER_BYTES = 64 << 20


class Searchers:
    """One mount's."""

    def __init__(self, runtime: Path) -> None:
        self._runtime = runtime
        self._free: list[tuple[trio.Process, float]] = []
        self._turns = trio.CapacityLimiter(AT_MOST)

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

    async def ask(self, verb: str, arguments: dict[str, Any], caller: Caller) -> dict[str, Any]:
        """Have it answered. Raises what the search was refused with. OSError: EIO."""
        who = [caller.uid, caller.gid, caller.pid, list(caller.groups)]
        question = {"verb": verb, "arguments": arguments, "caller": who}
        async with self._turns:
            process = await self._take()
            try:
                answer = await self._converse(process, json.dumps(question).encode() + b"\n")
            except BaseException:
                with trio.CancelScope(shield=True):
                    await self._end(process)
                raise
            self._free.append((process, trio.current_time()))
        found: dict[str, Any] = decode_reply(answer)
        return found

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

    async def _converse(self, process: trio.Process, question: bytes) -> bytes:
        assert process.stdin is not None and process.stdout is not None
        answer = b""
        try:
            await process.stdin.send_all(question)
            while not answer.endswith(b"\n") and len(answer) < LONGEST_ANSWER_BYTES:
                piece = await process.stdout.receive_some(1 << 16)
                if not piece:
                    break
                answer += piece
        except trio.BrokenResourceError:
            answer = b""
        if not answer.endswith(b"\n"):
            log.warning("searcher-died pid=%d", process.pid)
            raise OSError(errno.EIO, "the search ended in the middle: try again")
        return answer

    @staticmethod
    async def _end(process: trio.Process) -> None:
        process.kill()
        await process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                await pipe.aclose()
