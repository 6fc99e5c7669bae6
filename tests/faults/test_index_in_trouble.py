"""The index may be killed, damaged, deleted: nobody who uses the mount notices, and it heals."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from modamafs.control import client
from modamafs.errors import NotMounted
from modamafs.supervisor import load_state
from tests.support.changes import Changer, snapshot
from tests.support.images import Image
from tests.support.mounts import Mount, modamafs, wait_until
from tests.support.targets import Workshop
from tests.support.trees import remove

KILLS = 50
TROUBLE = "index-"
"""What the daemon may say in its log."""


@pytest.fixture
def store(workshop: Workshop, new_name: Callable[[], str]) -> Iterator[Path]:
    directory = workshop.image("ext4").root / f"store-{new_name()}"
    (directory / "area" / "project" / "session").mkdir(parents=True)
    yield directory
    remove(directory)


@pytest.fixture
def mount(workshop: Workshop, store: Path) -> Iterator[Mount]:
    with Mount(store, workshop.mountpoint(store.name)) as mount:
        wait_until(lambda: state(mount) == "ok", "the index")
        yield mount


def state(mount: Mount) -> str:
    with contextlib.suppress(NotMounted):  # between two workers
        return str(client.call(mount.runtime, "status", timeout_s=60)["index"]["state"])
    return ""


def sync(mount: Mount) -> bool:
    with contextlib.suppress(NotMounted):
        return bool(client.call(mount.runtime, "sync", timeout_s=60))
    return False


def directory_of(mount: Mount) -> Path:
    import json

    return Path(json.loads((mount.runtime / "mount.json").read_text())["index_dir"])


def indexed(path: Path) -> dict[str, tuple[Any, ...]]:
    """Every entry of the index, by path; independent of the code that wrote it."""
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        rows = connection.execute(
            "WITH RECURSIVE tree (path, ino, size, mtime, uid, mode) AS ("
            " SELECT '.', ino, 0, 0, 0, 0 FROM nodes WHERE parent = 0"
            " UNION ALL SELECT tree.path || '/' || nodes.name, nodes.ino, nodes.size_bytes,"
            "  nodes.mtime_ns, nodes.uid, nodes.mode"
            "  FROM nodes JOIN tree ON nodes.parent = tree.ino)"
            " SELECT path, ino, size, mtime, uid, mode FROM tree WHERE path <> '.'"
        ).fetchall()
        count = connection.execute("SELECT count(*) FROM nodes WHERE parent <> 0").fetchone()[0]
    assert len(rows) == count, "rows that hang on nothing"
    return {path: rest for path, *rest in ((row[0], *row[1:]) for row in rows)}  # type: ignore[misc]


def on_store(root: Path) -> dict[str, tuple[Any, ...]]:
    found: dict[str, tuple[Any, ...]] = {}
    for directory, names, files in os.walk(root):
        if ".modama" in names:
            names.remove(".modama")
        for name in (*names, *files):
            path = Path(directory, name)
            status = path.lstat()
            mode = status.st_mode & 0o7777
            found["./" + str(path.relative_to(root))] = [  # type: ignore[assignment]
                status.st_ino, status.st_size, status.st_mtime_ns, status.st_uid, mode,
            ]  # fmt: skip
    return found


def assert_index_is_right(mount: Mount) -> None:
    """As the store is, after what has happened by now was looked at."""
    path = directory_of(mount) / "index.db"

    def is_right() -> bool:
        if not sync(mount) or state(mount) != "ok":
            return False
        return indexed(path) == on_store(mount.store)

    wait_until(is_right, "the index to be as the store", 60)


def children(pid: int) -> Iterator[int]:
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            yield from map(int, file.read_text().split())


def watcher(mount: Mount) -> int | None:
    for pid in children(load_state(mount.runtime).worker_pid):
        with contextlib.suppress(OSError):
            if b"modamafs.watcher" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
    return None


LOAD = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tests.support.changes import Changer
changers = [Changer(Path(path), number) for number, path in enumerate(sys.argv[2:])]
while True:
    for changer in changers:
        changer.change(3)
"""


@contextlib.contextmanager
def load(*roots: Path) -> Iterator[subprocess.Popen[bytes]]:
    here = Path(__file__).parent.parent.parent
    process = subprocess.Popen([sys.executable, "-c", LOAD, here, *map(str, roots)])
    try:
        yield process
        assert process.poll() is None, "somebody was told of an error"
    finally:
        process.kill()
        process.wait()


def test_fifty_kills_of_worker_and_watcher(mount: Mount) -> None:
    """Each moment is another; the index is whole at the end, and as the store is."""
    chooser = random.Random(20261126)
    session = Path("area/project/session")
    for name in ("a", "b"):
        (mount.store / session / name).mkdir()
    roots = (mount.root / session / "a", mount.store / session / "b")
    with mount.expected_in_log("worker-died", "watcher-died", TROUBLE):
        with load(*roots):
            for number in range(KILLS):
                if number % 5 == 0:
                    mount.kill_worker()
                    continue
                wait_until(lambda: watcher(mount) is not None, "a watcher")
                pid = watcher(mount)
                if chooser.random() < 0.5:  # in the middle of something, or not
                    sync(mount)
                if pid is not None:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
        assert_index_is_right(mount)


def delete(path: Path) -> None:
    for one in path.parent.glob("index.db*"):
        one.unlink()


def delete_directory(path: Path) -> None:
    remove(path.parent)


def truncate(path: Path) -> None:
    os.truncate(path, 0)


def cut_off(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2 // 4096 * 4096)


def randomize(path: Path) -> None:
    chooser = random.Random(1)
    for one in path.parent.glob("index.db*"):
        if "damaged" not in one.name:
            with open(one, "r+b") as file:
                file.write(chooser.randbytes(one.stat().st_size))


@pytest.mark.parametrize("harm", [delete, delete_directory, truncate, cut_off, randomize])
def test_a_damaged_index_heals(mount: Mount, harm: Callable[[Path], None]) -> None:
    session = mount.root / "area" / "project" / "session"
    (session / "d").mkdir()
    (mount.store / "area" / "other").mkdir()
    changer = Changer(session / "d", 3)
    changer.change(300)
    assert_index_is_right(mount)
    with mount.expected_in_log(TROUBLE), load(session / "d"):
        harm(directory_of(mount) / "index.db")
        Changer(mount.store / "area" / "other", 9).change(20)
        for _ in range(3):
            sync(mount)
    with mount.expected_in_log(TROUBLE):
        assert_index_is_right(mount)
        assert snapshot(session / "d") == snapshot(mount.store / "area/project/session/d")


def test_somebody_else_holds_the_lock(mount: Mount) -> None:
    """The mount goes on, it is said, and afterwards nothing is missing."""
    session = mount.root / "area" / "project" / "session"
    (session / "d").mkdir()
    path = directory_of(mount) / "index.db"
    with mount.expected_in_log(TROUBLE):
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            Changer(session / "d", 3).change(200)
            wait_until(lambda: state(mount) == "unavailable", "the status to say it")
            assert "lock" in mount.status()["index"]["message"]
            other.execute("ROLLBACK")
        assert_index_is_right(mount)


def test_no_room_for_the_index(
    workshop: Workshop, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a full disk of its own the index waits for room; the store is not its business."""
    with Image("ext4", tmp_path) as small:
        monkeypatch.setenv("MODAMAFS_INDEX_DIR", str(small.root))
        with Mount(store, workshop.mountpoint(store.name)) as mount:
            wait_until(lambda: state(mount) == "ok", "the index")
            session = mount.root / "area" / "project" / "session"
            filler = small.root / "filler"
            with mount.expected_in_log(TROUBLE):
                with open(filler, "wb") as file:
                    size = 0
                    for step in (1 << 26, 1 << 20, 1 << 12):
                        with contextlib.suppress(OSError):
                            while True:
                                os.posix_fallocate(file.fileno(), size, step)
                                size += step
                for number in range(5000):
                    os.mknod(session / f"{number:05}-{'x' * 200}")
                wait_until(lambda: state(mount) == "unavailable", "the status to say it")
                assert modamafs("status", mount.root).returncode == 0
                filler.unlink()
                assert_index_is_right(mount)


def test_a_directory_that_nobody_may_write(
    workshop: Workshop, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    above = tmp_path / "index"
    above.mkdir()
    subprocess.run(["chattr", "+i", above], check=True)
    monkeypatch.setenv("MODAMAFS_INDEX_DIR", str(above))
    try:
        with (
            Mount(store, workshop.mountpoint(store.name)) as mount,
            mount.expected_in_log(TROUBLE),
        ):
            wait_until(lambda: state(mount) == "unavailable", "the status to say it")
            (mount.root / "area" / "file").write_text("content")
            subprocess.run(["chattr", "-i", above], check=True)
            assert_index_is_right(mount)
    finally:
        subprocess.run(["chattr", "-i", above], check=True)
