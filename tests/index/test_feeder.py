"""The thread that writes the index, and what it does with what it finds."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from modamafs.index import feeder as feeding
from modamafs.index import outside
from modamafs.index.changes import Noted
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


@pytest.mark.parametrize("kind", ["fifo", "link"])
def test_a_history_that_is_none_is_no_bar_to_others(
    on_disk: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(outside, "GATHERED_S", 0.0)
    secret = on_disk / "secret"
    secret.write_text("secret")
    secret.chmod(0o600)
    histories = [on_disk / f"store/a/p/{name}/.modama/history.jsonl" for name in "st"]
    for history in histories:
        history.parent.mkdir(parents=True)
        (history.parent / "session.json").write_text("{}")
    os.mkfifo(histories[0]) if kind == "fifo" else os.link(secret, histories[0])
    with Store(on_disk / "store") as store:
        written = outside.Histories(store)
        written.note([Noted("created", f"a/p/{name}/x".encode(), True) for name in "st"])
        written.write()
    assert json.loads(histories[1].read_text())["created"] == 1
    assert (secret.read_text(), secret.stat().st_mode & 0o777) == ("secret", 0o600)


def test_paths_that_are_very_long_are_only_counted(
    on_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outside, "GATHERED_S", 0.0)
    records = on_disk / "store/a/p/s/.modama"
    records.mkdir(parents=True)
    (records / "session.json").write_text("{}")
    with Store(on_disk / "store") as store:
        histories = outside.Histories(store)
        paths = (b"a/p/s/x", b"a/p/s" + 1000 * b"/deeper")
        histories.note([Noted("created", path, True) for path in paths])
        histories.write()
    told = json.loads((records / "history.jsonl").read_text())
    assert (told["created"], told["paths"]) == (2, ["x"])


class HeldUp:
    """A feeder whose thread is held up from when it has written ``measured.txt`` until it may go
    on."""

    def __init__(self, base: Path) -> None:
        self.said: list[dict[str, Any]] = []
        self.done: list[tuple[int, bool | None]] = []
        self._is_held = threading.Event()
        self.may_go_on = threading.Event()
        self.root = base / "store"
        self.feeder = Feeder(
            Store(self.root),
            base / "index",
            say=self.said.append,
            done=self._done,
            differs=lambda *_: None,
        )
        self.feeder.start(polling=False)
        wait_until(lambda: self.states()[-1:] == ["ok"], "the index")
        self.feed("measured.txt", 1)
        assert self._is_held.wait(30)

    def _done(self, end: int, complete: bool | None = None) -> None:
        self.done.append((end, complete))
        if end == 1 and not self.may_go_on.is_set():
            self._is_held.set()
            self.may_go_on.wait()

    def feed(self, name: str, end: int) -> None:
        (self.root / name).touch()
        ino = (self.root / name).stat().st_ino
        change = Change(self.root.stat().st_ino, name.encode(), ino, "created", True, 1)
        self.feeder.feed([change], end)

    def states(self) -> list[str]:
        return [one["index"]["state"] for one in list(self.said) if "index" in one]


def late_and_in_time_again(base: Path) -> list[str]:
    feeding.LATE_S = 0.2
    feeding.LOOK_S = 0.05
    held = HeldUp(base)
    wait_until(lambda: held.states()[-1] == "catching up", "that it is late")
    number = len(held.states())
    held.may_go_on.set()
    wait_until(lambda: held.states()[-1] == "ok", "that it is not")
    return held.states()[number:]


def test_who_is_held_up_does_not_say_that_all_is_well(on_disk: Path) -> None:
    (on_disk / "store").mkdir()
    assert in_child(lambda: late_and_in_time_again(on_disk)) == ["ok"]


def feed_too_much(base: Path) -> tuple[int, list[tuple[int, bool | None]], int]:
    feeding.MOST_FED = 10
    held = HeldUp(base)
    most = 0
    for number in range(2, 100):
        held.feed(f"{number}.tif", number)
        most = max(most, len(held.feeder._changes))
    held.may_go_on.set()
    wait_until(lambda: (99, True) in held.done, "that everything was looked at")
    wait_until(lambda: held.states()[-1] == "ok", "that it is said")
    files = [one["index"]["files"] for one in held.said if "index" in one]
    return most, held.done, files[-1]


def test_what_it_does_not_get_through_is_dropped_and_looked_for(on_disk: Path) -> None:
    (on_disk / "store").mkdir()
    most, done, files = in_child(lambda: feed_too_much(on_disk))
    assert most <= 10
    dropped = [end for end, complete in done if complete is False]
    assert dropped[0] == 12, "nobody is to believe that these are in the index"
    assert done.index((99, True)) > done.index((dropped[-1], False))
    assert files == 99
