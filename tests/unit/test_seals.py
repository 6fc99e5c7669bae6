"""Seals on the store, asked: what is covered, what lies below, and the list of them all."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from modamafs.errors import InvalidRequest
from modamafs.model import Caller
from modamafs.sealing.place import LONGEST_PATH_BYTES
from modamafs.sealing.progress import Progress
from modamafs.sealing.seal import seal, unseal
from modamafs.sealing.worm import set_worm
from modamafs.store.backing import Store
from modamafs.store.seals import Seals, covering, rebuild_list
from tests.support.descriptors import none_left

ROOT = Caller(0, 0)
RAW = b"area/project/session/raw"


@pytest.fixture
def top() -> Iterator[Path]:
    """A store's directory, on a file system that has file handles; thawed before it is removed."""
    directory = Path(tempfile.mkdtemp(prefix="modamafs-unit-", dir="/var/tmp"))
    yield directory
    subprocess.run(["chattr", "-R", "-f", "-i", str(directory)], check=False)
    shutil.rmtree(directory)


@pytest.fixture
def store(top: Path) -> Iterator[Store]:
    with none_left(), Store(top) as opened:
        yield opened


@pytest.fixture
def raw(top: Path) -> Path:
    """A session's directory with a bit of everything."""
    path = top / os.fsdecode(RAW)
    (path / "frames" / "empty").mkdir(parents=True)
    (path / "frames" / "1.tif").write_bytes(b"first")
    (path / "large.mrc").write_bytes(os.urandom(300_000))
    (path / "nothing").touch()
    (path / "link").symlink_to("frames/1.tif")
    os.mkfifo(path / "fifo")
    return path


@contextlib.contextmanager
def opened(path: Path, flags: int = os.O_PATH | os.O_NOFOLLOW) -> Iterator[int]:
    fd = os.open(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


def records(raw: Path) -> Path:
    return raw.parent / ".modama" / "seals"


def chattr(change: str, path: Path) -> None:
    subprocess.run(["chattr", change, str(path)], check=True)


class Look(Progress):
    """Looks at something before every step."""

    def __init__(self, look: Callable[[str], object]) -> None:
        super().__init__()
        self._look = look

    def step(self, name: str, *, once: bool = True) -> None:
        super().step(name, once=once)
        self._look(name)


# ---- what is covered -----------------------------------------------------------------------------


def test_covers_by_descriptor(store: Store, raw: Path, top: Path) -> None:
    (raw.parent / "raw2").mkdir()
    (raw.parent / "raw2" / "file").touch()
    asking = Seals(store)
    inside = [raw, raw / "frames", raw / "frames" / "empty", raw / "large.mrc"]
    inside += [raw / "link", raw / "fifo"]
    outside = [top, top / "area", raw.parent, raw.parent / "raw2", raw.parent / "raw2" / "file"]
    for path in inside + outside:
        with opened(path) as fd:
            assert asking.covers(fd) is False
    seal(store, RAW, ROOT)
    for path, sealed in [*((path, True) for path in inside), *((path, False) for path in outside)]:
        with opened(path) as fd:
            assert asking.covers(fd) is sealed, path
    unseal(store, RAW, ROOT, "to see")
    for path in inside:
        with opened(path) as fd:
            assert asking.covers(fd) is False


def test_covers_asks_the_records_and_not_a_memory(store: Store, raw: Path) -> None:
    """Another mount, or another machine, has sealed it."""
    asking = Seals(store)
    with opened(raw / "large.mrc") as fd:
        assert not asking.covers(fd)
        records(raw).mkdir(parents=True)
        (records(raw) / "raw.json").write_text("{")
        assert asking.covers(fd), "in whatever state the record is"


@pytest.mark.usefixtures("raw")
def test_of_what_has_no_path_in_the_store_nothing_can_be_told(store: Store) -> None:
    with tempfile.TemporaryFile(dir="/var/tmp") as elsewhere:
        assert Seals(store).covers(elsewhere.fileno()) is None
    assert not Seals(store).any()
    seal(store, RAW, ROOT)
    assert Seals(store).any()


def deepen(directory: Path, levels: int, first: str = "") -> int:
    """A descriptor of a directory so many levels below, with names of 200 bytes."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    for name in [first] * bool(first) + ["n" * 200] * levels:
        os.mkdir(name, dir_fd=fd)
        below = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
        os.close(fd)
        fd = below
    return fd


def test_paths_longer_than_path_max(store: Store, raw: Path) -> None:
    fd = deepen(raw / "frames" / "empty", 25)
    try:
        asking = Seals(store)
        with pytest.raises(OSError, match="too long"):
            os.readlink(f"/proc/self/fd/{fd}")
        assert not asking.covers(fd)
        seal(store, RAW, ROOT)
        assert asking.covers(fd)
        unseal(store, RAW, ROOT, "to see")
        assert not asking.covers(fd)
    finally:
        os.close(fd)
        thaw = ["chattr", "-f", "-i", "{}", "+"]  # chattr -R does not reach that far down
        subprocess.run(["find", str(raw), "-execdir", *thaw], check=False)
        subprocess.run(["rm", "-rf", str(raw / "frames" / "empty")], check=True)


@pytest.mark.parametrize("more", [0, 1])
def test_the_longest_path_that_can_be_sealed(store: Store, top: Path, more: int) -> None:
    """Its record's path, and its own seen from outside, are longer and fit into PATH_MAX."""
    length = LONGEST_PATH_BYTES + more
    count = (length - len("area/") - 1) // 201
    fd = deepen(top, count, first="area")
    name = "m" * (length - len("area/") - count * 201)
    os.mkdir(name, dir_fd=fd)
    below = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
    relative = os.fsencode(os.readlink(f"/proc/self/fd/{below}").removeprefix(f"{top}/"))
    assert len(relative) == length
    try:
        with pytest.raises(InvalidRequest, match="too long") if more else contextlib.nullcontext():
            seal(store, relative, ROOT)
        assert Seals(store).covers(below) is not bool(more)
        assert Seals(store).sealed_roots() == ([] if more else [relative])
        if not more:
            unseal(store, relative, ROOT, "to see")
    finally:
        os.close(below)
        os.close(fd)


def test_below(store: Store, raw: Path, top: Path) -> None:
    (top / "area" / "proj").mkdir()
    (raw / "deep").mkdir()
    asking = Seals(store)

    def below(path: Path) -> bool:
        with opened(path.parent) as fd:
            return asking.below(fd, os.fsencode(path.name))

    everything = [top / "area", top / "area" / "project", raw.parent, raw, raw / "deep"]
    assert not any(below(path) for path in everything)
    seal(store, RAW, ROOT)
    assert [below(path) for path in everything] == [True, True, True, True, False]
    assert not below(top / "area" / "proj"), "a name that is only the beginning of another"
    unseal(store, RAW, ROOT, "to see")
    assert not any(below(path) for path in everything)


def test_the_list_follows_every_change(store: Store, top: Path) -> None:
    asking = Seals(store)
    names = [b"area/%d" % number for number in range(8)]
    for name in names:
        (top / os.fsdecode(name)).mkdir(parents=True)
    for count, name in enumerate(names, 1):
        seal(store, name, ROOT)
        assert sorted(asking.sealed_roots()) == names[:count]
    for count, name in enumerate(names, 1):
        unseal(store, name, ROOT, "to see")
        assert sorted(asking.sealed_roots()) == names[count:]


def test_an_entry_of_the_list_without_its_record_is_not_believed(store: Store, raw: Path) -> None:
    """A crash, after the record was removed and before the list was told (or the other way)."""
    seal(store, RAW, ROOT)
    (records(raw) / "raw.json").unlink()
    with opened(raw.parents[1]) as fd:
        assert not Seals(store).below(fd, raw.parent.name.encode())
    assert Seals(store).sealed_roots() == []


def test_the_list_can_be_rebuilt(store: Store, raw: Path, top: Path) -> None:
    other = top / "area" / os.fsdecode("größe".encode()) / "raw"
    other.mkdir(parents=True)
    roots = [RAW, "area/größe/raw".encode()]
    for root in roots:
        seal(store, root, ROOT)
    listed = {path.name: path.readlink() for path in (top / ".modama" / "sealed").iterdir()}
    Seals(store).search(write=True)
    for path in (top / ".modama" / "sealed").iterdir():
        path.unlink()
    (top / ".modama" / "sealed").rmdir()
    asking = Seals(store)
    assert asking.sealed_roots() == []
    with opened(top) as fd:
        assert asking.below(fd, b"area"), "without the list, by looking"
    asking.search(write=False)
    assert sorted(asking.sealed_roots()) == sorted(roots)
    assert not (top / ".modama" / "sealed").exists()
    asking.search(write=True)
    assert sorted(Seals(store).sealed_roots()) == sorted(roots)
    again = {path.name: path.readlink() for path in (top / ".modama" / "sealed").iterdir()}
    assert again == listed
    rebuild_list(store, [])
    for root in roots:
        unseal(store, root, ROOT, "to see")
    assert Seals(store).sealed_roots() == []
    assert raw.exists()


def test_rebuilding_without_seals_is_nothing(store: Store, raw: Path, top: Path) -> None:
    Seals(store).search(write=True)
    assert not (top / ".modama").exists()
    assert Seals(store).sealed_roots() == []
    assert covering(store, RAW) is None
    assert raw.exists()


@pytest.mark.parametrize("write", [True, False])
def test_a_list_that_is_lost_is_found_again(
    store: Store, raw: Path, top: Path, write: bool
) -> None:
    seal(store, RAW, ROOT)
    shutil.rmtree(top / ".modama")
    asking = Seals(store)
    with opened(raw.parents[1]) as above, opened(raw) as fd:
        assert asking.below(above, raw.parent.name.encode()), "before it is found, it looks itself"
        assert not asking.below(fd, b"frames")
        asking.search(write=write)
        assert asking.below(above, raw.parent.name.encode())
        assert not asking.below(fd, b"frames")
    assert asking.sealed_roots() == [RAW]
    assert (top / ".modama").exists() is write


def test_the_next_seal_makes_a_lost_list_complete(store: Store, raw: Path, top: Path) -> None:
    seal(store, RAW, ROOT)
    shutil.rmtree(top / ".modama")
    (top / "area" / "third").mkdir()
    seal(store, b"area/third", ROOT)
    assert sorted(Seals(store).sealed_roots()) == [RAW, b"area/third"]
    assert raw.exists()


def test_searching_survives_any_depth(store: Store, raw: Path, top: Path) -> None:
    """Whoever may write can make a tree like that."""
    fd = os.open(raw / "frames" / "empty", os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(3000):
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    try:
        asking = Seals(store)
        with opened(top / "area") as area:
            assert not asking.below(area, b"project")
            asking.search(write=True)
            assert not asking.below(area, b"project")
    finally:
        subprocess.run(["rm", "-rf", str(raw / "frames" / "empty")], check=True)


# ---- what is covered by a name, and what is under way --------------------------------------------


def test_covers_entry(store: Store, raw: Path) -> None:
    asking = Seals(store)
    session, inside, above = raw.parent, raw / "frames", raw.parents[1]
    entries = [
        (session, b"raw", True),
        (session, b"missing", False),
        (session, b".", False),
        (above, b"session", False),
        (raw, b"large.mrc", True),
        (raw, b"missing", True),
        (raw, b".", True),
        (raw, b"..", False),
        (inside, b"..", True),
        (raw.parents[3], b"area", False),
        (raw.parents[3], b"..", False),
    ]

    def covered() -> list[bool | None]:
        found = []
        for directory, name, _ in entries:
            with opened(directory) as fd:
                found.append(asking.covers_entry(fd, name))
        return found

    assert not any(covered())
    seal(store, RAW, ROOT)
    assert covered() == [sealed for _, _, sealed in entries]
    with tempfile.TemporaryDirectory(dir="/var/tmp") as elsewhere, opened(Path(elsewhere)) as fd:
        assert asking.covers_entry(fd, b"x") is None


def test_being_sealed_is_the_time_until_it_is(store: Store, raw: Path) -> None:
    asking = Seals(store)
    states: dict[str, bool] = {}
    with opened(raw / "large.mrc") as fd, opened(raw.parent) as above:
        assert not asking.being_sealed(fd)

        def look(step: str) -> None:
            states[step] = asking.being_sealed(fd)
            assert not asking.being_sealed(above)
            assert asking.covers(fd) is (step not in ("gate", "enlisted", "opened"))

        seal(store, RAW, ROOT, progress=Look(look))
        assert states.pop("gate") is states.pop("enlisted") is states.pop("committed") is False
        assert all(states.values())
        assert not asking.being_sealed(fd)
        states.clear()
        unseal(store, RAW, ROOT, "to see", Look(look))
        assert not any(states.values()), "opening is not sealing"


@pytest.mark.usefixtures("raw")
def test_the_list_is_ahead_of_the_records(store: Store) -> None:
    """So nothing is ever sealed that the list does not know."""
    asking = Seals(store)
    known: dict[str, bool] = {}

    def look(step: str) -> None:
        known[step] = RAW in asking.listed()

    seal(store, RAW, ROOT, progress=Look(look))
    assert known.pop("gate") is False
    assert all(known.values())
    known.clear()
    unseal(store, RAW, ROOT, "to see", Look(look))
    assert known.pop("opened") is False
    assert all(known.values())


# ---- flags that may be missing -------------------------------------------------------------------


def test_what_is_sealed_with_flags_is_walled(store: Store, raw: Path) -> None:
    assert Seals(store).is_surely_walled(), "nothing is sealed"
    assert not Seals(store).unwalled()
    walls: dict[str, bool] = {}

    def look(step: str) -> None:
        walls[step] = Seals(store).is_surely_walled()
        assert Seals(store).unwalled() is not walls[step]

    seal(store, RAW, ROOT, progress=Look(look))
    assert [step for step, walled in walls.items() if walled] == ["gate", "enlisted", "committed"]
    chattr("-i", raw)
    assert not Seals(store).is_surely_walled(), "a copy of the store has lost them"
    assert Seals(store).unwalled()
    chattr("+i", raw)
    assert Seals(store).is_surely_walled()
    unseal(store, RAW, ROOT, "to see", Look(lambda _: None))
    assert Seals(store).is_surely_walled()


@pytest.mark.usefixtures("raw")
def test_what_is_sealed_without_flags_is_not_walled(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("modamafs.sealing.immutable.is_supported", lambda _fd: False)
        seal(store, RAW, ROOT)
    assert not Seals(store).is_surely_walled()
    assert Seals(store).unwalled()


def test_a_record_that_can_not_be_read_is_no_wall(store: Store, raw: Path) -> None:
    seal(store, RAW, ROOT)
    (records(raw) / "raw.json").write_text("{")
    assert not Seals(store).is_surely_walled()
    assert Seals(store).unwalled()
    with opened(raw) as fd:
        assert Seals(store).covers(fd)
        assert not Seals(store).being_sealed(fd), "nothing more is let through"


@pytest.mark.parametrize("instead", ["nothing", "file", "link"])
def test_a_sealed_directory_that_is_gone_stops_nothing_else(
    store: Store, raw: Path, instead: str
) -> None:
    """Removed behind our back, on the store itself: every mount asks this for every file."""
    seal(store, RAW, ROOT)
    subprocess.run(["chattr", "-R", "-f", "-i", str(raw)], check=False)
    shutil.rmtree(raw)
    if instead == "file":
        raw.touch()
    elif instead == "link":
        raw.symlink_to("../session")
    assert Seals(store).unwalled() is not Seals(store).is_surely_walled()
    assert Seals(store).sealed_roots() == [RAW]
    with opened(raw.parent) as fd:
        assert Seals(store).covers_entry(fd, b"raw"), "nobody can put another one in its place"


# ---- directories for writing once ----------------------------------------------------------------


def test_is_written_once(store: Store, raw: Path, top: Path) -> None:
    (raw / "empty").mkdir()

    def written_once(path: Path) -> bool:
        with opened(path.parent) as fd:
            return Seals(store).is_written_once(fd, os.fsencode(path.name))

    everything = [top / "area", raw.parent, raw, raw / "frames", raw / "empty"]
    assert not any(written_once(path) for path in everything)
    set_worm(store, RAW, ROOT, 1.0)
    assert [written_once(path) for path in everything] == [True, True, True, True, False]
    (raw.parent / "other").mkdir()
    assert not written_once(raw.parent / "other")
    set_worm(store, RAW, ROOT, None)
    assert not any(written_once(path) for path in everything)
