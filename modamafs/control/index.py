"""What the control socket answers from the index."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio

from modamafs.control.searchers import Searchers
from modamafs.control.server import Command, Question
from modamafs.control.watch import Watch
from modamafs.errors import InvalidRequest, NotPermitted, NotSupported
from modamafs.index.sessions import IndexedSession, SessionReader
from modamafs.model import Caller
from modamafs.tree.core import Tree
from modamafs.tree.mapped import MappedTree

VIEWS_PATIENCE_S = 0.25
"""For the index, of who looks at views: then the store itself is asked."""
LONGEST_WAIT_S = 60
"""For changes; who wants to wait longer asks again."""
BEHIND = {
    "state": "catching up",
    "message": "the index lags behind what happens on the store; results may be old",
}


def sessions_of(watch: Watch, directory: Path) -> Callable[[], list[IndexedSession] | None]:
    """What the index has of sessions, as the store is now; None: ask the store. In a thread."""
    reader = SessionReader(directory)

    def ask() -> list[IndexedSession] | None:
        if threading.current_thread() is threading.main_thread():
            return None  # plain libfuse asks from there, and nothing could answer meanwhile
        if watch.index.get("state") != "ok":
            return None
        is_right = trio.from_thread.run(watch.sync, VIEWS_PATIENCE_S)
        return reader.sessions() if is_right else None

    return ask


def for_anybody(state: dict[str, Any]) -> dict[str, Any]:
    """What ``status`` says of the index, without numbers that rise with what is done in private."""
    is_well = state.get("state") == "ok"
    return {"state": state.get("state"), "message": "" if is_well else state.get("message", "")}


def commands(
    tree: Tree, watch: Watch, searchers: Searchers, directory: Path | None
) -> dict[str, Command]:
    """``find`` and its kin; ``directory``: where the index is, None: nowhere."""

    def check() -> None:
        if directory is None:
            raise NotSupported(
                "this store has no index: see [index] in its .modama/config.toml, and mount again"
            )
        if isinstance(tree, MappedTree):
            raise NotSupported(
                "this mount shows everything as one user's: use a mount of the whole store"
            )

    def state(*, is_current: bool) -> dict[str, Any] | None:
        """What to say of the index; None: what it says of itself."""
        known = watch.index.get("state")
        if known not in ("ok", "elsewhere", None):
            return {"state": known, "message": watch.index.get("message", "")}
        return None if is_current else BEHIND

    async def find(arguments: dict[str, Any], peer: Caller) -> bytearray:
        check()
        is_current = bool(arguments.get("after")) or await watch.sync()
        found = await searchers.ask("find", arguments, peer, state(is_current=is_current))
        return found.line

    async def changes(arguments: dict[str, Any], peer: Caller) -> bytearray:
        """Those since a position; where there are none, it is waited for them, if so wished."""
        check()
        wait_s = arguments.pop("wait_s", 0)
        if not isinstance(wait_s, int | float) or not 0 <= wait_s <= LONGEST_WAIT_S:
            raise InvalidRequest(f"changes: wait_s is a number from 0 to {LONGEST_WAIT_S}")
        await watch.sync()
        deadline_s = trio.current_time() + wait_s
        while True:
            found = await searchers.ask("changes", arguments, peer)
            left_s = deadline_s - trio.current_time()
            position = found.told.get("empty_until")
            if position is None or arguments.get("since") is None or left_s <= 0:
                return found.line
            if position == arguments["since"]:
                await watch.news(left_s)
            arguments["since"] = position  # past what the caller may not see

    async def sync(arguments: dict[str, Any], peer: Caller) -> bool:
        """Whether everything that has happened on the store by now is noticed."""
        return await watch.sync()

    async def rebuild(arguments: dict[str, Any], peer: Caller) -> dict[str, Any]:
        check()
        if peer.uid != 0:
            raise NotPermitted("only root may have the index made again")
        await watch.rebuild()
        return watch.index

    return {
        "find": Question(find),
        "changes": Question(changes),
        "sync": Question(sync),
        "index-rebuild": rebuild,
    }
