"""Directories for writing once: what becomes immutable, when, and what never does."""

from __future__ import annotations

import contextlib
import json
import logging
import mmap
import os
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from modamafs.errors import Busy, InvalidRequest, NotPermitted
from modamafs.model import Caller
from modamafs.sealing import worm
from modamafs.sealing.seal import seal, unseal
from modamafs.sealing.worm import LOOK_FOR_WORMS_S, Sweeper, set_worm
from modamafs.store.backing import Store
from modamafs.store.seals import listed, worms
from tests.support.syscalls import FS_IMMUTABLE_FL, get_flags
from tests.support.targets import Workshop

ROOT = Caller(0, 0)
OWNER = Caller(4001, 4001)
OTHER = Caller(4002, 4002)
RAW = b"area/project/session/raw"
GRACE_S = 10.0


class Clock:
    """The time, and as much later as is wished for."""

    def __init__(self) -> None:
        self.later_s = 0.0

    def time(self) -> float:
        return time.time() + self.later_s

    def monotonic(self) -> float:
        return time.monotonic() + self.later_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(worm, "time", made)
    return made


@pytest.fixture(params=["ext4", "xfs", "btrfs"])
def top(
    request: pytest.FixtureRequest, workshop: Workshop, new_name: Callable[[], str]
) -> Iterator[Path]:
    """A store's directory on every file system; thawed before it is removed."""
    directory = workshop.image(request.param).root / f"worm-{new_name()}"
    directory.mkdir()
    yield directory
    thaw(directory)
    shutil.rmtree(directory)


@pytest.fixture
def here() -> Iterator[Path]:
    """One where the tests run, for what is the same everywhere."""
    directory = Path(tempfile.mkdtemp(prefix="modamafs-unit-", dir="/var/tmp"))
    yield directory
    thaw(directory)
    shutil.rmtree(directory)


def make_store(top: Path) -> Path:
    (top / os.fsdecode(RAW)).mkdir(parents=True)
    return top / os.fsdecode(RAW)


def thaw(directory: Path) -> None:
    subprocess.run(["chattr", "-R", "-f", "-i", str(directory)], check=False)


def frozen(raw: Path) -> set[str]:
    """What has the immutable flag."""
    return {
        str(path.relative_to(raw))
        for path in [raw, *raw.rglob("*")]
        if stat.S_IFMT(path.lstat().st_mode) in (stat.S_IFREG, stat.S_IFDIR)
        and get_flags(path) & FS_IMMUTABLE_FL
    }


def history(raw: Path) -> list[dict[str, Any]]:
    lines = (raw.parent / ".modama" / "history.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


# ---- what becomes immutable ----------------------------------------------------------------------


def test_a_file_becomes_immutable_after_the_grace(top: Path, clock: Clock) -> None:
    raw = make_store(top)
    with Store(top) as store:
        set_worm(store, RAW, ROOT, GRACE_S)
        (raw / "frames").mkdir()
        (raw / "frames" / "1.tif").write_bytes(b"first")
        sweeper = Sweeper(store)
        for later_s in (0.0, 5.0, 9.0):
            clock.later_s = later_s
            sweeper.sweep()
            assert frozen(raw) == set()
        clock.later_s = 11.0
        sweeper.sweep()
        assert frozen(raw) == {"frames/1.tif"}
        with pytest.raises(PermissionError):
            (raw / "frames" / "1.tif").write_bytes(b"other")
        with pytest.raises(PermissionError):
            (raw / "frames" / "1.tif").unlink()
        (raw / "frames" / "2.tif").write_bytes(b"second, new files stay possible")
        clock.later_s = 30.0
        sweeper.sweep()
        clock.later_s = 41.0
        sweeper.sweep()
        assert frozen(raw) == {"frames/1.tif", "frames/2.tif"}


def test_an_empty_file_never_does(top: Path, clock: Clock) -> None:
    """A measurement that has been announced, and not begun."""
    raw = make_store(top)
    with Store(top) as store:
        set_worm(store, RAW, ROOT, GRACE_S)
        (raw / "announced").touch()
        (raw / "link").symlink_to("announced")
        os.mkfifo(raw / "fifo")
        sweeper = Sweeper(store)
        for days in range(5):
            clock.later_s = days * 86400.0
            sweeper.sweep()
        assert frozen(raw) == set()
        (raw / "announced").write_bytes(b"begun")
        sweeper.sweep()
        assert frozen(raw) == set(), "it has its own time of grace"


@pytest.mark.parametrize("mapped", [False, True])
def test_an_open_file_never_does(top: Path, clock: Clock, mapped: bool) -> None:
    raw = make_store(top)
    with Store(top) as store, contextlib.ExitStack() as stack:
        set_worm(store, RAW, ROOT, GRACE_S)
        (raw / "scan").write_bytes(b"data")
        file = stack.enter_context((raw / "scan").open("r+b"))
        close: Callable[[], object] = file.close
        if mapped:
            mapping = mmap.mmap(file.fileno(), 4)
            file.close()
            close = mapping.close
        sweeper = Sweeper(store)
        for days in range(5):
            clock.later_s = days * 86400.0
            sweeper.sweep()
        assert frozen(raw) == set()
        close()
        sweeper.sweep()
        assert frozen(raw) == set(), "the time of grace begins when it is closed"
        clock.later_s += GRACE_S - 1
        sweeper.sweep()
        assert frozen(raw) == set()
        clock.later_s += 2
        sweeper.sweep()
        assert frozen(raw) == {"scan"}


def test_opening_it_again_begins_anew(top: Path, clock: Clock) -> None:
    raw = make_store(top)
    with Store(top) as store:
        set_worm(store, RAW, ROOT, GRACE_S)
        (raw / "scan").write_bytes(b"data")
        sweeper = Sweeper(store)
        sweeper.sweep()
        clock.later_s = 60.0
        with (raw / "scan").open("r+b"):
            sweeper.sweep()
        sweeper.sweep()
        assert frozen(raw) == set()
        clock.later_s = 75.0
        with (raw / "scan").open("rb"):
            sweeper.sweep()
        assert frozen(raw) == {"scan"}, "readers are not in the way"


def test_a_change_in_between_begins_anew(here: Path, clock: Clock) -> None:
    """Somebody wrote and closed it between two sweeps: its ctime says so."""
    raw = make_store(here)
    with Store(here) as store:
        set_worm(store, RAW, ROOT, GRACE_S)
        (raw / "scan").write_bytes(b"data")
        sweeper = Sweeper(store)
        sweeper.sweep()
        clock.later_s = 11.0
        real = time.time()
        os.utime(raw / "scan")  # its ctime is now
        clock.later_s = 9.0 + time.time() - real
        sweeper.sweep()
        assert frozen(raw) == set()


def test_a_new_sweeper_waits_for_the_grace_again(here: Path, clock: Clock) -> None:
    """After a restart nobody knows since when a file is closed."""
    raw = make_store(here)
    with Store(here) as store:
        set_worm(store, RAW, ROOT, GRACE_S)
        (raw / "scan").write_bytes(b"data")
        clock.later_s = 3600.0
        sweeper = Sweeper(store)
        sweeper.sweep()
        assert frozen(raw) == set()
        clock.later_s += GRACE_S + 1
        sweeper.sweep()
        assert frozen(raw) == {"scan"}


def test_whoever_opens_it_at_that_moment_is_let_through(
    here: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = make_store(here)
    with Store(here) as store:
        set_worm(store, RAW, ROOT, GRACE_S)
        (raw / "scan").write_bytes(b"data")
        sweeper = Sweeper(store)
        sweeper.sweep()
        clock.later_s = 11.0
        change = worm.immutable.change
        writers = []

        def change_late(fd: int, immutable: bool) -> bool:
            if immutable:
                writers.append(os.open(raw / "scan", os.O_WRONLY))
            return change(fd, immutable)

        with monkeypatch.context() as patch:
            patch.setattr(worm.immutable, "change", change_late)
            sweeper.sweep()
        assert len(writers) == 1
        assert frozen(raw) == set()
        assert os.write(writers[0], b"more") == 4
        os.close(writers.pop())
        sweeper.sweep()
        assert frozen(raw) == set()
        clock.later_s = 23.0
        sweeper.sweep()
        assert frozen(raw) == {"scan"}


# ---- what a sweep looks at -----------------------------------------------------------------------


def test_without_such_directories_it_looks_seldom(here: Path) -> None:
    make_store(here)
    with Store(here) as store:
        assert Sweeper(store).sweep() == LOOK_FOR_WORMS_S
        set_worm(store, RAW, ROOT, 2.0)
        assert Sweeper(store).sweep() == 0.5
        set_worm(store, RAW, ROOT, 0.001)
        assert Sweeper(store).sweep() == worm.SHORTEST_PAUSE_S
        set_worm(store, RAW, ROOT, 3600.0)
        assert Sweeper(store).sweep() == LOOK_FOR_WORMS_S


@pytest.mark.parametrize("record", [b"", b"{", b"[]", b"{}", b'{"grace_s": "x"}'])
def test_one_that_is_damaged_does_not_stop_the_others(
    here: Path, clock: Clock, caplog: pytest.LogCaptureFixture, record: bytes
) -> None:
    raw = make_store(here)
    (raw.parent / "other").mkdir()
    with Store(here) as store:
        set_worm(store, RAW, ROOT, GRACE_S)
        set_worm(store, b"area/project/session/other", ROOT, GRACE_S)
        (raw / "scan").write_bytes(b"data")
        (raw.parent / ".modama" / "seals" / "other.worm").write_bytes(record)
        sweeper = Sweeper(store)
        with caplog.at_level(logging.WARNING):
            sweeper.sweep()
            clock.later_s = 11.0
            sweeper.sweep()
        assert frozen(raw) == {"scan"}
        assert "worm-failed" in caplog.text


@pytest.mark.parametrize("instead", ["nothing", "file", "link"])
def test_one_that_is_gone_is_left_out(
    here: Path, caplog: pytest.LogCaptureFixture, instead: str
) -> None:
    raw = make_store(here)
    with Store(here) as store:
        set_worm(store, RAW, ROOT, GRACE_S)
        raw.rmdir()
        if instead == "file":
            raw.touch()
        elif instead == "link":
            raw.symlink_to("/etc")
        Sweeper(store).sweep()
        shutil.rmtree(raw.parent)
        Sweeper(store).sweep()
    assert caplog.text == ""


@pytest.mark.parametrize("gone", ["b", "b/c"])
def test_what_vanishes_meanwhile_keeps_nothing_else_from_it(
    here: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, gone: str
) -> None:
    """A program that makes and removes temporary files, while others are finished."""
    raw = make_store(here)
    with Store(here) as store:
        set_worm(store, RAW, ROOT, GRACE_S)
        (raw / gone).parent.mkdir(exist_ok=True)
        for name in ("a", gone, "z"):
            (raw / name).write_bytes(b"data")
        asked = worm.is_open_for_writing

        def ask(fd: int) -> bool:
            path = raw / "b"
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            return asked(fd)

        sweeper = Sweeper(store)
        sweeper.sweep()
        clock.later_s = 11.0
        with monkeypatch.context() as patch:
            patch.setattr(worm, "is_open_for_writing", ask)
            sweeper.sweep()
        assert not (raw / "b").exists()
        assert frozen(raw) == {"a", "z"}


def test_one_in_something_sealed_is_left_alone(here: Path, clock: Clock) -> None:
    raw = make_store(here)
    with Store(here) as store:
        set_worm(store, RAW, ROOT, GRACE_S)
        (raw / "scan").write_bytes(b"data")
        seal(store, b"area/project/session", ROOT)
        thaw(raw)
        sweeper = Sweeper(store)
        sweeper.sweep()
        clock.later_s = 11.0
        sweeper.sweep()
        assert frozen(raw) == set()


# ---- sealing ends it -----------------------------------------------------------------------------


def test_sealing_the_directory_ends_it(top: Path, clock: Clock) -> None:
    raw = make_store(top)
    with Store(top) as store:
        set_worm(store, RAW, ROOT, GRACE_S)
        (raw / "1.tif").write_bytes(b"first")
        sweeper = Sweeper(store)
        sweeper.sweep()
        clock.later_s = 11.0
        sweeper.sweep()
        (raw / "2.tif").write_bytes(b"second")
        seal(store, RAW, ROOT)
        assert frozen(raw) == {".", "1.tif", "2.tif"}
        assert worms(store) == []
        assert list(listed(store)) == [RAW]
        names = sorted(os.listdir(raw.parent / ".modama" / "seals"))
        assert names == ["raw.B3SUMS", "raw.json", "raw.mtree"]
        unseal(store, RAW, ROOT, "to see")
        assert frozen(raw) == {"1.tif"}, "what was written once stays so"
        clock.later_s = 60.0
        sweeper.sweep()
        assert frozen(raw) == {"1.tif"}


def test_a_seal_that_fails_does_not_end_it(here: Path) -> None:
    raw = make_store(here)
    with Store(here) as store:
        set_worm(store, RAW, ROOT, GRACE_S)
        with (raw / "scan").open("wb"), pytest.raises(Busy):
            seal(store, RAW, ROOT)
        assert worms(store) == [RAW]
        assert os.listdir(raw.parent / ".modama" / "seals") == ["raw.worm"]


# ---- beginning and ending ------------------------------------------------------------------------


def test_it_is_recorded(here: Path) -> None:
    raw = make_store(here)
    with Store(here) as store:
        event = set_worm(store, RAW, ROOT, GRACE_S)
        assert (event["state"], event["grace_s"], event["by"]) == ("worm", GRACE_S, "root")
        assert worms(store) == [RAW]
        record = json.loads((raw.parent / ".modama" / "seals" / "raw.worm").read_text())
        assert record | {"state": "worm"} == event
        assert history(raw) == [record]
        assert os.listdir(raw) == []


def test_it_can_be_ended(here: Path, clock: Clock) -> None:
    raw = make_store(here)
    with Store(here) as store:
        set_worm(store, RAW, ROOT, GRACE_S)
        (raw / "1.tif").write_bytes(b"first")
        sweeper = Sweeper(store)
        sweeper.sweep()
        clock.later_s = 11.0
        sweeper.sweep()
        (raw / "2.tif").write_bytes(b"second")
        assert set_worm(store, RAW, ROOT, None)["state"] == "open"
        assert worms(store) == []
        clock.later_s = 60.0
        sweeper.sweep()
        clock.later_s = 120.0
        sweeper.sweep()
        assert frozen(raw) == {"1.tif"}


def test_every_change_is_in_the_history(here: Path) -> None:
    raw = make_store(here)
    with Store(here) as store:
        for grace_s in (GRACE_S, 20.0, None, 5.0):
            set_worm(store, RAW, ROOT, grace_s)
    assert [event["grace_s"] for event in history(raw)] == [GRACE_S, 20.0, None, 5.0]


@pytest.mark.parametrize("grace_s", [0.0, -1.0, float("nan")])
def test_a_grace_that_is_none_is_refused(here: Path, grace_s: float) -> None:
    make_store(here)
    with Store(here) as store:
        with pytest.raises(InvalidRequest, match="grace"):
            set_worm(store, RAW, ROOT, grace_s)
        assert worms(store) == []
    assert not list(here.rglob(".modama"))


def test_who_may(here: Path) -> None:
    raw = make_store(here)
    os.chown(raw.parent, OWNER.uid, OWNER.gid)
    with Store(here) as store:
        with pytest.raises(NotPermitted):
            set_worm(store, RAW, OTHER, GRACE_S)
        assert set_worm(store, RAW, OWNER, GRACE_S)["by"] == "4001"
        for caller in (OTHER, OWNER):
            with pytest.raises(NotPermitted):
                set_worm(store, RAW, caller, None)
        assert worms(store) == [RAW]
        set_worm(store, RAW, ROOT, None)


def test_the_owner_can_not_end_it_by_a_longer_grace(here: Path) -> None:
    """Ending it is a steward's; putting it off for a hundred years comes to the same."""
    raw = make_store(here)
    os.chown(raw, OWNER.uid, OWNER.gid)
    with Store(here) as store:
        set_worm(store, RAW, OWNER, GRACE_S)
        with pytest.raises(NotPermitted):
            set_worm(store, RAW, OWNER, 3e9)


@pytest.mark.parametrize("relative", [b"", b"area", b"area/.modama", b"area/missing"])
def test_what_can_not_be_one(here: Path, relative: bytes) -> None:
    make_store(here)
    with Store(here) as store, pytest.raises(InvalidRequest):
        set_worm(store, relative, ROOT, GRACE_S)


def test_what_is_sealed_can_not_be_one(here: Path) -> None:
    raw = make_store(here)
    (raw / "frames").mkdir()
    with Store(here) as store:
        seal(store, RAW, ROOT)
        for relative in (RAW, RAW + b"/frames"):
            for grace_s in (GRACE_S, None):
                with pytest.raises(InvalidRequest, match="is sealed"):
                    set_worm(store, relative, ROOT, grace_s)
        assert worms(store) == []
    assert not (raw / ".modama").exists()


def test_without_flags_there_is_none(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_store(here)
    monkeypatch.setattr(worm.immutable, "is_supported", lambda _fd: False)
    with Store(here) as store, pytest.raises(InvalidRequest, match="without immutable flags"):
        set_worm(store, RAW, ROOT, GRACE_S)
    assert not [path for path in here.rglob(".modama/**/*") if not path.is_dir()]
