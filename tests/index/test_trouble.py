"""Whatever happens to the file, nothing is raised, it is said, and it heals by itself."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from modamafs.index import database
from modamafs.index.database import NotIndexed, index_dir, open_reader, store_id
from modamafs.index.reconcile import Index
from modamafs.store.backing import Store
from tests.index.support import Scene, differences, reconcile, whole
from tests.support.users import in_child

FILE = "index.db"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that nothing has to be waited for; pauses are looked at by themselves."""
    monkeypatch.setattr(database, "PATIENCE_S", 0.05)
    monkeypatch.setattr("modamafs.index.reconcile.SHORTEST_PAUSE_S", 0.0)
    monkeypatch.setattr("modamafs.index.reconcile.LONGEST_PAUSE_S", 0.0)


@pytest.fixture
def filled(scene: Scene) -> Scene:
    """Some files, so that the database has some pages."""
    for number in range(2000):
        scene.write(f"a/p/s/{number % 7}/frame {number:05}.tif")
    scene.apply()
    return scene


def heal(scene: Scene) -> None:
    """What the watcher does."""
    for _ in range(3):
        scene.index.apply([])
        if scene.index.needs_reconcile:
            for _ in scene.index.reconcile(lambda _: None):
                scene.index.apply([])
    assert not scene.index.needs_reconcile
    assert scene.index.state()["state"] == "ok", scene.index.state()
    assert scene.differences() == []


def test_it_is_deleted(filled: Scene) -> None:
    epoch = filled.index.state()["epoch"]
    for path in filled.directory.iterdir():
        path.unlink()
    filled.write("a/new")
    filled.apply(as_is=True)
    assert filled.index.needs_reconcile
    assert filled.index.state()["state"] == "building"
    heal(filled)
    assert filled.index.state()["epoch"] != epoch


def test_only_the_database_is_deleted_and_its_log_stays(filled: Scene) -> None:
    (filled.directory / FILE).unlink()
    filled.write("a/new")
    filled.apply(as_is=True)
    heal(filled)


def test_all_of_the_directory_is_deleted(filled: Scene) -> None:
    shutil.rmtree(filled.directory)
    filled.apply(as_is=True)
    heal(filled)
    assert filled.directory.stat().st_mode & 0o777 == 0o700
    assert (filled.directory / FILE).stat().st_mode & 0o777 == 0o600


def test_it_is_deleted_while_everything_is_looked_at(
    filled: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modamafs.index.reconcile.STEP_ENTRIES", 100)
    for number, _ in enumerate(filled.index.reconcile(lambda _: None)):
        if number == 2:
            (filled.directory / FILE).unlink()
    assert filled.index.needs_reconcile
    heal(filled)


def test_another_one_is_put_in_its_place(filled: Scene) -> None:
    shutil.copy(filled.directory / FILE, filled.directory / "copy")
    (filled.directory / "copy").rename(filled.directory / FILE)
    filled.write("a/new")
    filled.apply(as_is=True)
    heal(filled)


@pytest.mark.parametrize("size", [0, 1, 100, 4096, 8192, 100_000])
def test_it_is_cut_off(filled: Scene, size: int) -> None:
    os.truncate(filled.directory / FILE, size)
    filled.write("a/new")
    filled.apply(as_is=True)
    heal(filled)
    whole(filled.directory)


@pytest.mark.parametrize("part", ["all", "header", "middle", "one page"])
@pytest.mark.parametrize("when", ["open", "closed"])
def test_it_is_filled_with_nonsense(filled: Scene, part: str, when: str) -> None:
    path = filled.directory / FILE
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        root = connection.execute("SELECT rootpage FROM sqlite_master WHERE name='nodes'")
        page = root.fetchone()[0]
    if when == "closed":
        filled.index.close()
    size = path.stat().st_size
    begin, end = {
        "all": (0, size),
        "header": (0, 100),
        "middle": (size // 4, 3 * size // 4),
        "one page": ((page - 1) * 4096, page * 4096),
    }[part]
    with path.open("r+b") as file:
        file.seek(begin)
        file.write(os.urandom(end - begin))
    if when == "closed":
        filled.index = Index(filled.store, filled.directory)
    for number in range(5):
        filled.write(f"a/p/s/{number}/new")
        filled.apply(as_is=True)
        for _ in filled.index.reconcile(lambda _: None):
            pass
    # What SQLite has in memory still holds; who opens the file next finds the damage.
    filled.index.close()
    filled.index = Index(filled.store, filled.directory)
    for _ in range(2):
        for _ in filled.index.reconcile(lambda _: None):
            pass
    heal(filled)
    if part in ("all", "header"):
        assert (filled.directory / "index.db.damaged").exists()


def test_the_log_is_filled_with_nonsense(filled: Scene) -> None:
    path = filled.directory / f"{FILE}-wal"
    path.write_bytes(os.urandom(path.stat().st_size))
    filled.write("a/new")
    filled.apply(as_is=True)
    for _ in filled.index.reconcile(lambda _: None):
        pass
    filled.index.close()
    filled.index = Index(filled.store, filled.directory)
    for _ in filled.index.reconcile(lambda _: None):
        pass
    heal(filled)


@pytest.mark.parametrize(
    "statement",
    [
        "DROP TABLE metadata",
        "ALTER TABLE nodes ADD COLUMN more",
        "DROP INDEX nodes_ino",
        "DELETE FROM info",
        "PRAGMA user_version = 0",
    ],
)
def test_it_has_another_form(filled: Scene, statement: str) -> None:
    filled.index.close()
    with contextlib.closing(sqlite3.connect(filled.directory / FILE)) as connection:
        connection.execute(statement)
        connection.commit()
    filled.index = Index(filled.store, filled.directory)
    assert (filled.directory / "index.db.damaged").exists()
    heal(filled)


def test_a_newer_one_is_kept(filled: Scene) -> None:
    filled.index.close()
    with contextlib.closing(sqlite3.connect(filled.directory / FILE)) as connection:
        connection.execute("PRAGMA user_version = 1000")
        connection.execute("CREATE TABLE future (x)")
    with pytest.raises(NotIndexed, match="version 1000"):
        open_reader(filled.directory)
    filled.index = Index(filled.store, filled.directory)
    heal(filled)
    with contextlib.closing(sqlite3.connect(filled.directory / "index.db.newer")) as connection:
        assert connection.execute("SELECT count(*) FROM nodes").fetchone()[0] > 2000
        assert connection.execute("SELECT count(*) FROM future").fetchone() == (0,)


@pytest.mark.parametrize("kind", ["directory", "symlink", "fifo"])
def test_something_else_lies_there(filled: Scene, kind: str) -> None:
    filled.index.close()
    for path in filled.directory.iterdir():
        path.unlink()
    path = filled.directory / FILE
    if kind == "directory":
        (path / "full").mkdir(parents=True)
    elif kind == "symlink":
        path.symlink_to("/dev/null")
    else:
        os.mkfifo(path)
    filled.index = Index(filled.store, filled.directory)
    heal(filled)


def test_another_program_has_locked_it(filled: Scene) -> None:
    with locked(filled.directory / FILE):
        filled.write("a/new")
        position = filled.index.state()["position"]
        applied = filled.apply(as_is=True)
        assert applied.position == position
        state = filled.index.state()
        assert state["state"] == "unavailable"
        assert "locked" in state["message"] and "tried again" in state["message"]
        assert not filled.index.needs_reconcile
        assert list(filled.index.reconcile(lambda _: None)) == []
    filled.index.apply([])
    assert filled.index.state()["state"] == "ok"
    assert filled.differences() == []


def test_changes_are_lost_while_it_is_locked(
    filled: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modamafs.index.reconcile.MOST_WAITING", 5)
    with locked(filled.directory / FILE):
        for number in range(10):
            filled.write(f"a/new{number}")
            filled.apply(as_is=True)
        assert filled.index.needs_reconcile
    filled.index.apply([])
    assert filled.index.needs_reconcile
    assert filled.index.state()["state"] == "catching up"
    assert "lost" in [event for event, *_ in filled.journal()]
    filled.index.close()
    filled.index = Index(filled.store, filled.directory)
    assert filled.index.needs_reconcile
    heal(filled)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Somebody else writes, for as long as the block lasts."""
    script = (
        "import sqlite3, sys\n"
        "connection = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "connection.execute('BEGIN EXCLUSIVE')\n"
        "print('locked', flush=True)\n"
        "sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin and process.stdout
    assert process.stdout.readline() == b"locked\n"
    try:
        yield
    finally:
        process.stdin.close()
        process.wait()
        process.stdout.close()


@pytest.fixture
def small_disk(on_disk: Path) -> Iterator[Path]:
    """A disk of a few megabytes."""
    image, here = on_disk / "disk", on_disk / "small"
    with image.open("wb") as file:
        file.truncate(50 << 20)
    here.mkdir()
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", "-b", "4096", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, here], check=True)
    yield here
    subprocess.run(["umount", here], check=True)


@pytest.mark.parametrize("least_bytes", [database.LEAST_FREE_BYTES, 0])
def test_the_disk_is_full(
    small_disk: Path, on_disk: Path, monkeypatch: pytest.MonkeyPatch, least_bytes: int
) -> None:
    """Found out beforehand, or by SQLite."""
    monkeypatch.setattr(database, "LEAST_FREE_BYTES", least_bytes)
    root = on_disk / "store"
    for number in range(3000):
        path = root / f"a/p/s/{number % 11}"
        path.mkdir(parents=True, exist_ok=True)
        (path / f"a rather long name of a frame {number:06}.tif").touch()
    filler = small_disk / "filler"
    with Store(root) as store:
        index = Index(store, small_disk / "index")
        with filler.open("wb") as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(1 << 16))
                file.flush()
        for _ in range(3):
            for _ in index.reconcile(lambda _: None):
                pass
            assert index.state()["state"] == "unavailable"
            assert index.needs_reconcile
        assert "full" in index.state()["message"]
        filler.unlink()
        for _ in index.reconcile(lambda _: None):
            pass
        assert index.state()["state"] == "ok"
        assert differences(store, small_disk / "index") == []
        assert not (small_disk / "index/index.db.damaged").exists()
        index.close()
        whole(small_disk / "index")


def test_the_disk_can_only_be_read(small_disk: Path, on_disk: Path) -> None:
    root = on_disk / "store"
    (root / "a/p/s").mkdir(parents=True)
    remount = ["mount", "-o", "remount,ro", small_disk]
    with Store(root) as store:
        subprocess.run(remount, check=True)
        index = Index(store, small_disk / "index")
        assert index.state()["state"] == "unavailable"
        assert list(index.reconcile(lambda _: None)) == []
        subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
        reconcile(index)
        assert differences(store, small_disk / "index") == []
        index.close()
        subprocess.run(remount, check=True)
        index = Index(store, small_disk / "index")
        index.apply([])
        assert index.state()["state"] == "unavailable"
        subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
        index.apply([])
        assert index.state()["state"] == "ok"
        index.close()


@pytest.fixture
def divided(filled: Scene, monkeypatch: pytest.MonkeyPatch) -> Scene:
    """An index that writes a hundred rows at a time, and a session that is gone from the store."""
    monkeypatch.setattr(database, "LARGEST_TRANSACTION", 100)
    filled.move(filled.root / "a/p/s", filled.outside / "s")
    return filled


def torn(scene: Scene) -> bool:
    return bool(scene.rows("SELECT 1 FROM info WHERE key = ?", database.TORN))


def test_much_is_written_in_several_transactions(divided: Scene) -> None:
    assert divided.index._database is not None
    epoch = divided.index.state()["epoch"]
    statements: list[str] = []
    divided.index._database.connection.set_trace_callback(statements.append)
    divided.apply()
    divided.move(divided.outside / "s", divided.root / "a/p/s")
    divided.apply()
    assert statements.count("COMMIT") > 10
    assert not torn(divided)
    assert divided.index.state() | {"position": 0} == {
        "state": "ok", "message": "", "epoch": epoch, "position": 0, "files": 2010,
    }  # fmt: skip
    whole(divided.directory)


def test_it_is_killed_when_a_part_is_written(
    divided: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    epoch = divided.index.state()["epoch"]
    divided.index.close()

    def apply_and_die() -> None:
        monkeypatch.setattr("modamafs.index.entries.Entries.finish", lambda _: os._exit(9))
        Index(divided.store, divided.directory).apply(divided.changes)

    with pytest.raises(RuntimeError, match="died"):
        in_child(apply_and_die)
    assert torn(divided)
    divided.index = Index(divided.store, divided.directory)
    assert divided.index.state()["epoch"] != epoch
    heal(divided)


def test_it_fails_when_a_part_is_written(divided: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise OSError(errno.EMFILE, "on purpose")

    with monkeypatch.context() as patch:
        patch.setattr("modamafs.index.entries.Entries.finish", fail)
        divided.apply(as_is=True)
    assert torn(divided)
    assert divided.index.needs_reconcile
    assert divided.index.state()["state"] == "building"
    heal(divided)


def test_no_room_is_left_when_a_part_is_written(
    divided: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert divided.index._database is not None
    least_bytes = database.LEAST_FREE_BYTES

    def fill(statement: str) -> None:
        if statement == "COMMIT":
            monkeypatch.setattr(database, "LEAST_FREE_BYTES", 1 << 62)

    divided.index._database.connection.set_trace_callback(fill)
    divided.apply(as_is=True)
    assert torn(divided)
    assert divided.index.state()["state"] == "unavailable"
    assert "full" in divided.index.state()["message"]
    monkeypatch.setattr(database, "LEAST_FREE_BYTES", least_bytes)
    heal(divided)


def grow_log(scene: Scene, size_bytes: int) -> Path:
    """The write-ahead log, so large; who still reads an older state keeps it from shrinking."""
    log = scene.directory / f"{FILE}-wal"
    while log.stat().st_size < size_bytes:
        for path in (scene.root / "a/p/s").rglob("*.tif"):
            os.utime(path)
        reconcile(scene.index)
    return log


def test_a_large_log_goes_when_it_is_closed(filled: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "JOURNAL_LIMIT_BYTES", 1 << 20)
    with contextlib.closing(open_reader(filled.directory)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM nodes").fetchone()
        log = grow_log(filled, 2 << 20)
        reader.execute("COMMIT")
        filled.index.close()
        assert log.stat().st_size == 0
    filled.index = Index(filled.store, filled.directory)
    heal(filled)


@pytest.mark.parametrize("what", ["the log", "what was set aside"])
def test_the_disk_is_full_of_what_nobody_needs(
    small_disk: Path, on_disk: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr(database, "JOURNAL_LIMIT_BYTES", 2 << 20)
    monkeypatch.setattr(database, "LEAST_FREE_BYTES", 6 << 20)
    scene = Scene(on_disk)
    scene.index.close()
    scene.directory = small_disk / "index"
    scene.index = Index(scene.store, scene.directory)
    for number in range(1000):
        scene.write(f"a/p/s/{number:05}.tif")
    reconcile(scene.index)
    if what == "the log":
        reader = open_reader(scene.directory)
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM nodes").fetchone()
        grow_log(scene, 12 << 20)
        scene.index.close()
        reader.close()  # it may not write, and so the log stays
    else:
        scene.index.close()
        (scene.directory / database.DAMAGED).write_bytes(bytes(12 << 20))
    with (small_disk / "filler").open("wb") as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 16))
            file.flush()
    scene.index = Index(scene.store, scene.directory)
    heal(scene)
    scene.close()


def test_pauses_grow(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modamafs.index.reconcile.SHORTEST_PAUSE_S", 0.5)
    monkeypatch.setattr("modamafs.index.reconcile.LONGEST_PAUSE_S", 60.0)
    now_s = 1000.0
    monkeypatch.setattr("modamafs.index.reconcile.time.monotonic", lambda: now_s)
    scene.index.close()
    shutil.rmtree(scene.directory)
    scene.directory.write_text("in the way")
    tries = []
    real = database.Database

    def tried(directory: Path) -> database.Database:
        tries.append(now_s)
        return real(directory)

    monkeypatch.setattr("modamafs.index.reconcile.Database", tried)
    scene.index = Index(scene.store, scene.directory)
    while now_s < 1300:
        scene.index.apply([])
        now_s += 0.25
    gaps = [after - before for before, after in itertools.pairwise(tries)]
    assert gaps[:4] == [0.5, 1.0, 2.0, 4.0]
    assert max(gaps) == 60.0
    scene.directory.unlink()
    now_s += 60
    reconcile(scene.index)
    assert scene.differences() == []


def test_damage_that_comes_again_and_again_is_not_fought_for_ever(
    filled: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modamafs.index.reconcile.SHORTEST_PAUSE_S", 0.5)
    monkeypatch.setattr("modamafs.index.reconcile.LONGEST_PAUSE_S", 60.0)

    def fail(*_: object) -> None:
        raise sqlite3.DatabaseError("broken")

    monkeypatch.setattr("modamafs.index.entries.Entries.settle", fail)
    for number in range(50):
        filled.write(f"a/{number}")
        filled.apply(as_is=True)
        for _ in filled.index.reconcile(lambda _: None):
            pass
    assert filled.index.state()["state"] == "unavailable"
    assert "damaged" in filled.index.state()["message"]


def test_a_reader_of_directories_dies(filled: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modamafs.index.reconcile.STEP_ENTRIES", 10)
    own = str(os.getpid())
    for number, _ in enumerate(filled.index.reconcile(lambda _: None)):
        if number == 1:
            for process in Path("/proc").glob("[0-9]*"):
                with contextlib.suppress(OSError):
                    command = (process / "cmdline").read_bytes()
                    parent = (process / "stat").read_text().rpartition(")")[2].split()[1]
                    if b"modamafs.index.scan" in command and parent == own:
                        os.kill(int(process.name), 9)
    assert filled.index.needs_reconcile
    assert filled.index.state()["state"] == "catching up"
    heal(filled)


def test_where_it_lies(scene: Scene, on_disk: Path) -> None:
    (on_disk / "other").mkdir()
    with Store(on_disk / "other") as other, Store(scene.root) as same:
        assert store_id(same) == store_id(scene.store) != store_id(other)
        assert len(store_id(same)) == 16
        assert index_dir(same).parent == Path("/var/lib/modamafs")
    assert scene.rows("SELECT value FROM info WHERE key='store'") == [(str(scene.root),)]


def test_the_schema_comes_with_the_package(on_disk: Path) -> None:
    """Also in what is built for installing."""
    root = Path(__file__).parents[2]
    copy = on_disk / "copy"  # building leaves things behind
    for name in ("modamafs", "cli"):
        shutil.copytree(root / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md"):
        shutil.copy(root / name, copy)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--no-build-isolation", "--wheel-dir", str(on_disk), str(copy)]
    subprocess.run(command, check=True)
    (wheel,) = on_disk.glob("*.whl")
    listed = subprocess.run(
        [sys.executable, "-m", "zipfile", "-l", wheel], check=True, capture_output=True, text=True
    )
    assert "modamafs/index/schema.sql" in listed.stdout
