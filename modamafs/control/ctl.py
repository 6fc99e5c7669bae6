"""What people write to a landing directory's ``ctl``, with whatever tool, over whatever protocol.

Who may write is the file's mode: the session's owner and group, checked by the kernel and by every
file server. That is why nobody is asked again here, and why nothing can be unsealed this way: over
NFS the server asks as root, whoever the person is.
"""

from __future__ import annotations

import codecs
import logging
import time
from typing import Any

import trio

from modamafs.control.jobs import Jobs
from modamafs.errors import InvalidRequest, ModamaError, TooLong
from modamafs.model import Caller
from modamafs.sealing.place import user_name
from modamafs.tree.virtual import Said

log = logging.getLogger(__name__)

LONGEST_BYTES = 4096
"""Of a command; nobody needs more than a few words."""
LOOK_EVERY_S = 0.02
BEFORE_THE_WALLS = {"", "gate", "enlisted", "looking"}
"""Steps of sealing at which it may still be refused; see ``sealing/seal.py``."""
USAGE = "write 'seal', 'seal wait' or 'verify'"
COMMANDS: dict[str, dict[str, Any]] = {
    "seal": {"verb": "seal", "wait_s": 0.0},
    "seal wait": {"verb": "seal", "wait_s": None},
    "verify": {"verb": "verify"},
}
MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def _explained(last: str) -> bytes:
    return f"# {USAGE}; 'seal/state' and 'seal/progress' tell more\n{last}\n".encode()


NOTHING_YET = Said(_explained("nothing was written yet"))


def text_of(data: bytes) -> str:
    """What somebody has written: UTF-8, or UTF-16 with its mark, as PowerShell does.

    InvalidRequest (EINVAL): it is no text.
    """
    mark, encoding = next((found for found in MARKS if data.startswith(found[0])), (b"", "utf-8"))
    try:
        return data[len(mark) :].decode(encoding)
    except UnicodeDecodeError:
        raise InvalidRequest(f"that is no text; {USAGE}") from None


def is_line(data: bytes) -> bool:
    """Whether a line has come to its end; without one, closing the file ends it."""
    try:
        return text_of(data).endswith("\n")
    except InvalidRequest:
        return False


class Ctl:
    """The commands that were written on one mount, and what came of them."""

    def __init__(self, jobs: Jobs, nursery: trio.Nursery, *, read_only: bool) -> None:
        self._jobs = jobs
        self._nursery = nursery
        self._read_only = read_only
        self._answers: dict[bytes, Said] = {}

    def progress(self, path: bytes) -> Said:
        """One line: how far the work on a directory is, by now; b"" where there is none."""
        known = self._jobs.progress(_text(path))
        if not known:
            return Said(b"")
        done, size = known.get("done_bytes"), known.get("size_bytes")
        line = f"{known['verb']}: {known.get('step', '')}"
        if size:
            line += f", {done} of {size} bytes ({100 * (done or 0) // size} %)"
        return Said(line.encode() + b"\n", time.time_ns())

    def answer(self, path: bytes) -> Said:
        """How to use ``ctl``, and, last, what came of what was written."""
        return self._answers.get(path, NOTHING_YET)

    def _say(self, path: bytes, last: str) -> None:
        self._answers[path] = Said(_explained(last), time.time_ns())

    def is_whole(self, data: bytes) -> bool:
        """Whether what was written so far is a command, or too much to be one."""
        return len(data) > LONGEST_BYTES or is_line(data)

    async def run(self, target: bytes, data: bytes, caller: Caller) -> None:
        """Carry out what was written.

        Returns once the gate is shut, for work that may take hours. Raises TooLong (EFBIG),
        InvalidRequest (EINVAL), Busy (EBUSY, with the writers), or whatever it is refused with;
        that is the last line of ``answer``, too.
        """
        try:
            await self._carry_out(target, data, caller)
        except (ModamaError, OSError) as error:
            said = error.message if isinstance(error, ModamaError) else error.strerror
            self._say(target, f"error: {said}")
            raise

    async def _carry_out(self, target: bytes, data: bytes, caller: Caller) -> None:
        if len(data) > LONGEST_BYTES:
            raise TooLong(f"that is more than {LONGEST_BYTES} bytes; {USAGE}")
        words = " ".join(text_of(data).split())
        if not words:
            return
        command = COMMANDS.get(words.lower())
        if command is None:
            raise InvalidRequest(f"{words[:40]!r} is no command here; {USAGE}")
        if self._read_only:
            raise InvalidRequest("this mount is read-only: use a writable one")
        by = user_name(caller.uid)
        self._say(target, f"{words}: begun by {by}")
        ended = trio.Event()
        failure: list[Exception] = []
        order = {**command, "path": _text(target), "by": by}
        self._nursery.start_soon(self._work, order, target, ended, failure)
        while not ended.is_set() and not self._is_shut(order):
            await trio.sleep(LOOK_EVERY_S)
        if failure:
            raise failure[0]

    def _is_shut(self, order: dict[str, Any]) -> bool:
        known = self._jobs.progress(order["path"]) or {}
        if known.get("verb") != order["verb"]:
            return False
        step = known.get("step", "")
        if order["verb"] == "verify":
            return bool(step)
        waiting = step == "waiting for writers"
        return step not in BEFORE_THE_WALLS and (not waiting or order["wait_s"] is None)

    async def _work(
        self, order: dict[str, Any], target: bytes, ended: trio.Event, failure: list[Exception]
    ) -> None:
        """The whole work, however long; what comes of it later is in ``answer``."""
        try:
            result = await self._jobs.run(order, Caller(0, 0))
        except (ModamaError, OSError) as error:
            said = error.message if isinstance(error, ModamaError) else str(error.strerror)
            self._say(target, f"error: {said}")
            log.info("ctl-refused verb=%s path=%r error=%s", order["verb"], target, said)
            failure.append(error)
        else:
            self._say(target, f"ok: {outcome(order['verb'], result)}")
        finally:
            ended.set()


def outcome(verb: str, result: dict[str, Any]) -> str:
    """One line about what was done."""
    if verb == "seal":
        return f"sealed since {result['sealed_at']} by {result['sealed_by']}"
    if result["ok"]:
        return f"verified {result['verified_at']}: as it was sealed"
    found = (f"{len(result[key])} {key}" for key in ("missing", "added", "changed", "damaged"))
    return f"verified {result['verified_at']}: NOT as it was sealed ({', '.join(found)})"


def _text(path: bytes) -> str:
    return path.decode("utf-8", "surrogateescape")
