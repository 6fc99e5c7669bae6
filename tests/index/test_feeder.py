"""The thread that writes the index, and what it does with what it finds."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from modamafs.index import outside
from modamafs.index.feeder import Feeder
from modamafs.index.reconcile import Change
from modamafs.store.backing import Store
from tests.support.mounts import wait_until
from tests.support.users import in_child


def feed_a_change(base: Path, session: Path) -> str:
    """The session's history after a file was made beside the mount. In a process of its own: the
    thread ends with it."""
    outside.GATHERED_S = 0.0
    said: list[dict[str, Any]] = []

    def done(end: int, complete: bool | None = None) -> None:
        """Nobody keeps a log here."""

    feeder = Feeder(
        Store(base / "store"), base / "index", say=said.append, done=done, differs=lambda *_: None
    )
    feeder.start(polling=False)
    wait_until(lambda: any(one.get("index", {}).get("state") == "ok" for one in said), "the index")
    (session / "measured.txt").write_text("1")
    here, ino = session.stat().st_ino, (session / "measured.txt").stat().st_ino
    feeder.feed([Change(here, b"measured.txt", ino, "created", True, time.time_ns())], 1)
    history = session / ".modama/history.jsonl"
    wait_until(lambda: history.exists() and history.read_text().endswith("\n"), "the history")
    return history.read_text()


def test_what_came_from_outside_gets_into_the_history(on_disk: Path) -> None:
    session = on_disk / "store/area/project/session"
    (session / ".modama").mkdir(parents=True)
    (session / ".modama/session.json").write_text("{}")
    told = json.loads(in_child(lambda: feed_a_change(on_disk, session)))
    assert (told["event"], told["created"], told["paths"]) == (
        "changed-outside", 1, ["measured.txt"],
    )  # fmt: skip
