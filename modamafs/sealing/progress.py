"""What long work says of itself while it goes on."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from modamafs.errors import Cancelled

TELL_EVERY_S = 0.1
FAILPOINT = "MODAMAFS_SEALING_FAILPOINT"
"""For tests: names a file that names a step; there, once, ``kill`` or ``kill parent`` happens."""


NO_WAY_BACK = {"committing", "opening", "thawing"}
"""What has come to one of these steps is finished."""


class Progress:
    """Counts, tells somebody now and then, and is where work is given up when that is asked for."""

    def __init__(self, tell: Callable[[dict[str, Any]], None] | None = None) -> None:
        self._tell = tell
        self._told_at_s = 0.0
        self._failpoint = os.environ.get(FAILPOINT)
        self._is_cancelled = self._is_final = False
        self.known: dict[str, Any] = {
            "step": "",
            "done_bytes": 0,
            "size_bytes": None,
            "done_files": 0,
            "file_count": None,
        }

    def cancel(self) -> None:
        """Have the work given up at its next step. Only notes that, so a signal's handler may."""
        self._is_cancelled = True

    def _give_up(self) -> None:
        if self._is_cancelled and not self._is_final:
            self._is_cancelled = False  # what follows is the way back
            raise Cancelled("given up: everything is as it was before")

    def step(self, name: str, *, once: bool = True) -> None:
        """Something is about to begin. Cancelled (ECANCELED): it is not to."""
        if self._failpoint:
            self._fail_at(name)
        self._is_final = self._is_final or name in NO_WAY_BACK
        self._give_up()
        if once:
            self.known["step"] = name
            self._say(now=True)

    def expect(self, files: int, size_bytes: int) -> None:
        """How much there is to do."""
        self.known |= {"file_count": files, "size_bytes": size_bytes}
        self.known |= {"done_files": 0, "done_bytes": 0}

    def bytes(self, count: int) -> None:
        """So many bytes more were done. Cancelled (ECANCELED): no more are to be."""
        self._give_up()
        self.known["done_bytes"] += count
        self._say()

    def file(self) -> None:
        """One more file was done."""
        self.known["done_files"] += 1

    def _say(self, *, now: bool = False) -> None:
        if self._tell is None:
            return
        at_s = time.monotonic()
        if now or at_s - self._told_at_s >= TELL_EVERY_S:
            self._told_at_s = at_s
            self._tell(self.known)

    def _fail_at(self, name: str) -> None:
        assert self._failpoint
        try:
            wanted, _, whom = Path(self._failpoint).read_text().strip().partition(":")
        except FileNotFoundError:
            return
        if wanted != name:
            return
        Path(self._failpoint).unlink()
        if whom == "parent":
            os.kill(os.getppid(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)
