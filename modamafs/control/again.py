"""A process beside the worker is started again when it has ended, for as long as it is wanted."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 10.0
"""Between a process that has died and the next one."""
STABLE_S = 5.0


class Mounted:
    """Whether a mount is still there under its name, and not only for files that are open.

    Once it is unmounted its runtime directory has another name, and another mount's may have its.
    """

    def __init__(self, runtime: Path) -> None:
        self._runtime = runtime
        self._ino = runtime.stat().st_ino

    def __call__(self) -> bool:
        try:
            return self._runtime.stat().st_ino == self._ino
        except FileNotFoundError:
            return False


async def again_and_again(
    live: Callable[[], Awaitable[None]],
    is_wanted: Callable[[], bool],
    log: logging.Logger,
    started: str,
    failed: str,
) -> None:
    """Have it live until it is not wanted any more, or this is cancelled.

    Who dies young is waited for twice as long each time. ``started`` and ``failed``: the events'
    names, where it could not be started, and for what nobody has foreseen: the mount has to go on.
    """
    pause_s = SHORTEST_PAUSE_S
    while is_wanted():
        began_s = trio.current_time()
        try:
            await live()
        except OSError as error:
            log.error("%s error=%s", started, error)
        except Exception:
            log.exception(failed)
        lived_s = trio.current_time() - began_s
        pause_s = SHORTEST_PAUSE_S if lived_s > STABLE_S else min(LONGEST_PAUSE_S, pause_s * 2)
        await trio.sleep(pause_s)
