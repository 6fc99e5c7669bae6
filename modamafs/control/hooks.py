"""The worker's end of the hooks: starts the process that runs them, and the next when it dies."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import trio

from modamafs.control.jobs import lines_of

log = logging.getLogger(__name__)

SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 10.0
"""Between a process that has died and the next one."""
STABLE_S = 5.0


class Hooks:
    """One mount's."""

    def __init__(self, runtime: Path, *, is_watched: bool) -> None:
        self._runtime = runtime
        self._mount = runtime.stat().st_ino
        self._is_watched = is_watched
        self.state: dict[str, Any] = {"state": "off", "message": "none are configured"}
        """What ``status`` says of them."""

    def leave_out(self, why: str) -> None:
        """They are not run in this mount."""
        self.state = {"state": "off", "message": why}

    async def run(self) -> None:
        """Until it is unmounted: what is still open then needs none."""
        pause_s = SHORTEST_PAUSE_S
        while self._is_mounted():
            self.state = {"state": "starting", "message": ""}
            began_s = trio.current_time()
            try:
                await self._live()
            except OSError as error:
                log.error("hooks-not-started error=%s", error)
            except Exception:  # the mount has to go on
                log.exception("hooks-failed")
            lived_s = trio.current_time() - began_s
            pause_s = SHORTEST_PAUSE_S if lived_s > STABLE_S else min(LONGEST_PAUSE_S, pause_s * 2)
            await trio.sleep(pause_s)

    def _is_mounted(self) -> bool:
        try:
            return self._runtime.stat().st_ino == self._mount
        except FileNotFoundError:
            return False

    async def _live(self) -> None:
        """One process's life; its standard input ends with this one."""
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
