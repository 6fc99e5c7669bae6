"""The process that seals, verifies or unseals one directory, for the worker that started it.

It has memory, processor time and an end of its own: hours of hashing delay nobody's request, and
whatever happens to it, the worker goes on. Its standard input is one line (``Order``), and its end
is the end of the worker: then this process ends at once, and the next worker resumes what it was
doing. It prints ``{"progress": …}`` lines, and last the line that answers the control command.
SIGTERM asks it to give up and to leave everything as it was.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import msgspec

from modamafs.control.protocol import encode_error, encode_result
from modamafs.errors import InvalidRequest, ModamaError
from modamafs.model import Caller
from modamafs.sealing.progress import Progress
from modamafs.sealing.seal import Wish, repair, resume, seal, unseal
from modamafs.sealing.verify import verify
from modamafs.sealing.worm import set_worm
from modamafs.store.backing import Store

NICENESS = 5
"""Interactive work goes first."""


class Order(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What is to be done; the arguments are those of the control command."""

    verb: str
    path: str
    """Relative to the store."""
    reason: str = ""
    wait_s: float | None = 0.0
    until: str | None = None
    """YYYY-MM-DD."""
    hold: bool | None = None
    max_bytes_per_s: float | None = None
    remember: bool = True
    grace_s: float | None = None
    by: str = ""
    """Who is to be named in the records, where the caller is not: through ``ctl``."""


def order(arguments: dict[str, Any], verb: str) -> Order:
    """Check the arguments of a command. InvalidRequest (EINVAL): what is wrong with them."""
    try:
        return msgspec.convert({**arguments, "verb": verb}, Order)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"{verb}: {error}") from error


def carry_out(store: Store, wanted: Order, caller: Caller, progress: Progress) -> dict[str, Any]:
    """Do it, in this process. Raises what the verb's function raises."""
    path = os.fsencode(wanted.path)
    actions: dict[str, Callable[[], dict[str, Any]]] = {
        "seal": lambda: seal(store, path, caller, _wish(wanted), progress),
        "unseal": lambda: unseal(store, path, caller, wanted.reason, progress),
        "resume": lambda: resume(store, path, caller, progress),
        "repair": lambda: repair(store, path, caller, progress),
        "verify": lambda: verify(
            store,
            path,
            caller,
            wanted.max_bytes_per_s,
            progress,
            remember=wanted.remember,
            by=wanted.by,
        ),
        "worm": lambda: set_worm(store, path, caller, wanted.grace_s),
    }
    return actions[wanted.verb]()


def _wish(wanted: Order) -> Wish:
    try:
        until = date.fromisoformat(wanted.until) if wanted.until else None
    except ValueError:
        raise InvalidRequest(f"--until {wanted.until}: write a date as 2036-12-31") from None
    return Wish(wanted.wait_s, until, wanted.hold, wanted.reason, wanted.by)


def main() -> int:
    """The process's whole life. Returns its exit status: 0, also when the order was refused."""
    line = json.loads(_first_line())
    threading.Thread(target=_end_with_the_worker, daemon=True).start()
    os.nice(NICENESS)

    def tell(known: dict[str, Any]) -> None:
        _print(json.dumps({"progress": known}).encode() + b"\n")

    progress = Progress(tell)
    signal.signal(signal.SIGTERM, lambda _number, _frame: progress.cancel())
    caller = Caller(**{**line["caller"], "groups": tuple(line["caller"]["groups"])})
    wanted = msgspec.convert(line["order"], Order)
    try:
        with Store(Path(line["store"])) as store:
            result = carry_out(store, wanted, caller, progress)
    except (ModamaError, OSError) as error:
        _print(encode_error(error))
    else:
        _print(encode_result(result))
    return 0


def _print(line: bytes) -> None:
    sys.stdout.buffer.write(line)
    sys.stdout.buffer.flush()


def _first_line() -> bytes:
    """Unbuffered: at the end of this process a thread still waits for the end of the input."""
    line = b""
    while not line.endswith(b"\n"):
        piece = os.read(0, 65536)
        if not piece:
            os.kill(os.getpid(), signal.SIGKILL)
        line += piece
    return line


def _end_with_the_worker() -> None:
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
