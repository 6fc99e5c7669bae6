"""The journal of intents: a request that is sent again is carried out once.

When a worker is killed between reading a request and answering it, the kernel sends the request to
the next worker again. For most that does no harm. Creating, removing and renaming must not be done
twice, nor fail because they were done before, nor claim what somebody else has done. So each writes
down what it is about to do (and the inode numbers that it is about to do it to) before, and the
result after. Of a request that comes again, either the result is known, or the names and inode
numbers show whether it was done. What is made new has its inode number written down (``note``)
before it gets its name, so that it is not taken for what somebody on the store has made meanwhile,
nor the other way round.

One thing can't be told: whether a name that is gone was removed by the killed worker or, in the
moments since, by somebody on the store. It is taken for ours; what the client wanted is so either
way.
"""

from __future__ import annotations

import os
import signal
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

from modamafs.model import Caller
from modamafs.tree.state import JOURNAL_OFFSET, JOURNAL_SLOT_BYTES, JOURNAL_SLOTS, State

SLOT = struct.Struct("=QQ16siiQQ")

PENDING, FINISHED = 1, 2

Result = TypeVar("Result")


class Intent(NamedTuple):
    """What an earlier worker wrote down of a request."""

    operation: str
    finished: bool
    errno: int
    ino: int
    """The inode that the request was about to act on, or had made; 0 for none."""
    other: int
    """The inode in the way of the new name; 0 for none."""


class Journal:
    """See the module. Requests are carried out one at a time, so one slot is pending at most."""

    def __init__(self, state: State, failpoint: Path | None = None) -> None:
        """``failpoint`` names a file for tests: ``OPERATION:POINT`` in it makes this process kill
        itself there, once: ``before`` anything is done, ``between`` (made, but without its name) or
        ``after`` everything is done and before the result is written down."""
        self._memory = state.memory
        self._failpoint = failpoint
        self._armed = ""
        self._count = 0
        self._pending: tuple[int, int, int, bytes, int] = (0, 0, 0, b"", 0)
        self._earlier: dict[int, Intent] = {}
        self._load()

    def _load(self) -> None:
        """Read what earlier workers wrote; it stays, for the next one, until it is overwritten."""
        found = sorted(
            SLOT.unpack_from(self._memory, JOURNAL_OFFSET + slot * JOURNAL_SLOT_BYTES)
            for slot in range(JOURNAL_SLOTS)
        )
        for count, request, operation, status, errno, ino, other in found:
            if count:
                self._earlier[request] = Intent(
                    operation.rstrip(b"\0").decode(), status == FINISHED, errno, ino, other
                )
                self._count = count

    def recall(self, caller: Caller) -> Intent | None:
        """What an earlier worker wrote down of the caller's request, if it was sent again."""
        return self._earlier.get(caller.request) if caller.resent else None

    def once(
        self,
        caller: Caller,
        operation: str,
        do: Callable[[], Result],
        was_done: Callable[[Intent], bool],
        redo: Callable[[], Result],
        ino: int = 0,
        other: int = 0,
    ) -> Result:
        """``do()`` unless an earlier worker has done it; then ``redo()``, which only answers.

        ``was_done`` decides for an intent without a result. OSError: what ``do`` raises, also when
        an earlier worker's attempt had raised it.
        """
        intent = self.recall(caller)
        if intent is not None:
            if intent.finished and intent.errno:
                raise OSError(intent.errno, os.strerror(intent.errno))
            if intent.finished or was_done(intent):
                return redo()
        self._count = count = self._count + 1
        at = JOURNAL_OFFSET + count % JOURNAL_SLOTS * JOURNAL_SLOT_BYTES
        tag = operation.encode()
        pack = SLOT.pack_into
        pack(self._memory, at, count, caller.request, tag, PENDING, 0, ino, other)
        self._pending = (at, count, caller.request, tag, other)
        if self._failpoint is not None:
            self._arm(operation)
        try:
            result = do()
        except OSError as error:
            pack(self._memory, at, count, caller.request, tag, FINISHED, error.errno, ino, other)
            raise
        self._die_at("after")
        pack(self._memory, at, count, caller.request, tag, FINISHED, 0, ino, other)
        return result

    def note(self, ino: int) -> None:
        """From within ``do``: this inode was made, and is about to get its name."""
        at, count, request, tag, other = self._pending
        SLOT.pack_into(self._memory, at, count, request, tag, PENDING, 0, ino, other)
        self._die_at("between")

    def _arm(self, operation: str) -> None:
        assert self._failpoint is not None
        try:
            wanted, _, point = self._failpoint.read_text().strip().partition(":")
        except FileNotFoundError:
            return
        if wanted == operation:
            self._failpoint.unlink()
            self._armed = point
            self._die_at("before")

    def _die_at(self, point: str) -> None:
        if self._armed == point:
            os.kill(os.getpid(), signal.SIGKILL)
