"""The worker's end of the hooks: starts the process that runs them, and the next when it dies."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import trio

from modamafs.control.again import Mounted, again_and_again
from modamafs.control.jobs import lines_of

log = logging.getLogger(__name__)


class Hooks:
    """One mount's."""

    def __init__(self, runtime: Path, *, is_watched: bool) -> None:
        self._runtime = runtime
        self._is_mounted = Mounted(runtime)
        self._is_watched = is_watched
        self.state: dict[str, Any] = {"state": "off", "message": "none are configured"}
        """What ``status`` says of them."""

    def leave_out(self, why: str) -> None:
        """They are not run in this mount."""
        self.state = {"state": "off", "message": why}

    async def run(self) -> None:
        """Until it is unmounted: what is still open then needs none."""
        await again_and_again(
            self._live, self._is_mounted, log, "hooks-not-started", "hooks-failed"
        )

    async def _live(self) -> None:
        """One process's life; its standard input ends with this one."""
        self.state = {"state": "starting", "message": ""}
        process = await trio.lowlevel.open_process(
            [
                sys.executable, "-P", "-m", "modamafs.hooks", "--runtime", str(self._runtime),
                *(["--watched"] if self._is_watched else []),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd="/",
        )  # fmt: skip
        assert process.stdin is not None and process.stdout is not None
        try:
            async for line in lines_of(process.stdout):
                self.state = json.loads(line)
            level = logging.WARNING if self._is_mounted() else logging.INFO
            log.log(level, "hooks-died pid=%d", process.pid)
        finally:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.stdin.aclose()
                await process.stdout.aclose()
                await process.wait()
