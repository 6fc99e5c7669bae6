"""What is changed directly on the store is seen through the mount, although the kernel caches."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path

import pytest

from modamafs.control import client
from tests.support.changes import Changer, by_name, look, snapshot
from tests.support.mounts import Mount, modamafs, wait_until
from tests.support.targets import Workshop
from tests.support.trees import remove

LONG = ("-o", "watch_timeout_s=86400")
PATIENCE_S = 20


def sync(mount: Mount) -> None:
    """Return when everything that has happened by now is noticed."""
    assert client.call(mount.runtime, "sync", timeout_s=60) is True


def is_watching(mount: Mount) -> bool:
    return bool(mount.status().get("watching"))


def watcher_pid(mount: Mount) -> int:
    worker = mount.worker_pid()
    for children in Path(f"/proc/{worker}/task").glob("*/children"):
        for pid in children.read_text().split():
            if b"modamafs.watcher" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return int(pid)
    raise ProcessLookupError("no watcher")


def has_another_watcher(mount: Mount, than: int) -> bool:
    try:
        return is_watching(mount) and watcher_pid(mount) != than
    except ProcessLookupError:
        return False


def wait_until_quiet(mount: Mount) -> None:
    """Watched; and the kernel will not be told once more to ask for everything, as at the start.

    A change that it should have been told of would be seen then, too.
    """
    wait_until(lambda: is_watching(mount), "the store to be watched")
    time.sleep(1.5)


@pytest.fixture
def watched(mount: Mount) -> Mount:
    wait_until_quiet(mount)
    return mount


@pytest.fixture
def store(workshop: Workshop, new_name: Callable[[], str]) -> Iterator[Path]:
    directory = workshop.image("ext4").root / f"watch-{new_name()}"
    directory.mkdir()
    yield directory
    remove(directory)


@pytest.fixture
def mount(workshop: Workshop, store: Path) -> Iterator[Mount]:
    (store / "d").mkdir()
    with Mount(store, workshop.mountpoint(store.name), *LONG) as mount:
        yield mount


@pytest.fixture(params=["ext4", "xfs", "btrfs"])
def everywhere(
    request: pytest.FixtureRequest, workshop: Workshop, new_name: Callable[[], str]
) -> Iterator[Mount]:
    store = workshop.image(request.param).root / f"watch-{new_name()}"
    (store / "d").mkdir(parents=True)
    with Mount(store, workshop.mountpoint(store.name), *LONG) as mount:
        wait_until_quiet(mount)
        yield mount
    remove(store)


@pytest.fixture(params=["", "--no-passthrough"])
def either(
    request: pytest.FixtureRequest, workshop: Workshop, new_name: Callable[[], str]
) -> Iterator[Mount]:
    """With passthrough, and with the kernel caching what files hold."""
    store = workshop.image("ext4").root / f"watch-{new_name()}"
    (store / "d").mkdir(parents=True)
    options = [*LONG, request.param] if request.param else LONG
    with Mount(store, workshop.mountpoint(store.name), *options) as mount:
        wait_until_quiet(mount)
        yield mount
    remove(store)


def assert_same(mount: Mount) -> None:
    """Nothing stays wrong."""
    sync(mount)
    wanted = snapshot(mount.store / "d")
    deadline_s = time.monotonic() + PATIENCE_S
    while (found := by_name(mount.root / "d", wanted)) != wanted or (
        found := snapshot(mount.root / "d")
    ) != wanted:
        if time.monotonic() > deadline_s:
            paths = sorted(found.keys() | wanted.keys())
            wrong = [path for path in paths if found.get(path) != wanted.get(path)]
            lines = [f"{path}: {found.get(path)} != {wanted.get(path)}" for path in wrong[:5]]
            raise AssertionError("\n".join([f"{len(wrong)} wrong", *lines]))
        time.sleep(0.2)


def test_the_kernel_does_remember(watched: Mount) -> None:
    """Or nothing here would show anything."""
    (watched.store / "d" / "file").write_bytes(b"1")
    (watched.root / "d" / "file").stat()
    before = watched.requests("LOOKUP"), watched.requests("GETATTR")
    for _ in range(100):
        (watched.root / "d" / "file").stat()
        assert not (watched.root / "d" / "nothing").exists()
    after = watched.requests("LOOKUP"), watched.requests("GETATTR")
    assert after[0] - before[0] <= 10
    assert after[1] - before[1] <= 10


def test_thousands_of_random_changes(everywhere: Mount) -> None:
    for seed in range(2):
        changer = Changer(everywhere.store / "d", seed)
        chooser = random.Random(seed)
        for _ in range(40):
            changer.change(40)
            look(everywhere.root / "d", chooser)
        assert_same(everywhere)


def test_with_and_without_passthrough_while_others_look(either: Mount) -> None:
    """Requests that are under way at the moment of a change must not leave what was before it."""
    script = (
        "import os, sys\n"
        "while True:\n"
        "    for directory, names, files in os.walk(sys.argv[1]):\n"
        "        for name in [*names, *files]:\n"
        "            try: os.stat(f'{directory}/{name}'); open(f'{directory}/{name}').close()\n"
        "            except OSError: pass\n"
    )
    readers = [
        subprocess.Popen([sys.executable, "-c", script, str(either.root / "d")]) for _ in range(2)
    ]
    try:
        Changer(either.store / "d", 7).change(3000)
    finally:
        for reader in readers:
            reader.kill()
            reader.wait()
    assert_same(either)


def test_changes_through_the_mount_and_beside_it(either: Mount) -> None:
    on_store, on_mount = Changer(either.store / "d", 1), Changer(either.root / "d", 2)
    for _ in range(200):
        on_store.change(5)
        sync(either)  # one writer after the other
        on_mount.change(5)
    assert_same(either)


def test_a_cached_listing_gets_new_names(watched: Mount) -> None:
    """Names that nobody has asked for, so that the kernel knows nothing of them."""
    shown = watched.root / "d"
    for number in range(5):
        (watched.store / "d" / f"first-{number}").write_bytes(b"")
        sync(watched)
        before = shown.stat().st_mtime_ns
        for _ in range(2):
            assert len(os.listdir(shown)) == 2 * number + 1
        (watched.store / "d" / f"second-{number}").write_bytes(b"")
        sync(watched)
        assert len(os.listdir(shown)) == 2 * number + 2
        assert shown.stat().st_mtime_ns == (watched.store / "d").stat().st_mtime_ns > before


def test_more_changes_than_the_kernel_keeps(watched: Mount) -> None:
    """Events are lost; what the mount shows is right all the same."""
    most = int(Path("/proc/sys/fs/fanotify/max_queued_events").read_text())
    changer = Changer(watched.store / "d", 11)
    changer.change(400)
    sync(watched)
    look(watched.root / "d", random.Random(0))
    held = os.open(watched.root / "d", os.O_RDONLY)
    pid = watcher_pid(watched)
    os.kill(pid, signal.SIGSTOP)
    try:
        changer.change(400)
        noise = watched.store / "noise"
        noise.mkdir()
        for number in range(most + 10):
            os.mknod(noise / str(number))
        look(watched.root / "d", random.Random(1))
        changer.change(400)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert_same(watched)
    os.close(held)
    assert "events-lost" in (watched.runtime / "daemon.log").read_text(), "nothing was lost"


def test_who_makes_a_project_finds_it_at_once(watched: Mount) -> None:
    """Though the mount was asked for the name before, and the watcher is late."""
    made = watched.root / "d/new"
    assert not made.exists()
    pid = watcher_pid(watched)
    os.kill(pid, signal.SIGSTOP)
    with ThreadPoolExecutor(1) as pool:
        try:
            arguments = {"path": "d/new", "title": "New"}
            answer = pool.submit(
                client.call, watched.runtime, "project-create", arguments, timeout_s=PATIENCE_S
            )
            wait_until((watched.store / "d/new").is_dir, "the project")
            assert wait([answer], timeout=1).not_done, "answered before it is seen"
        finally:
            os.kill(pid, signal.SIGCONT)
        answer.result(PATIENCE_S)
        assert made.is_dir()


def test_without_an_index_nothing_stays_wrong_either(
    workshop: Workshop, new_name: Callable[[], str]
) -> None:
    """Then nobody knows what was lost: the kernel has to ask for everything again."""
    store = workshop.image("ext4").root / f"watch-{new_name()}"
    (store / ".modama").mkdir(parents=True)
    (store / ".modama" / "config.toml").write_text("[index]\nenabled = false\n")
    (store / "d").mkdir()
    with Mount(store, workshop.mountpoint(store.name), *LONG) as mount:
        wait_until_quiet(mount)
        test_more_changes_than_the_kernel_keeps(mount)
        assert mount.status()["index"]["state"] == "off"
    remove(store)


def test_a_killed_watcher_misses_nothing(watched: Mount) -> None:
    changer = Changer(watched.store / "d", 5)
    chooser = random.Random(5)
    with watched.expected_in_log("watcher-died"):
        for _ in range(5):
            changer.change(200)
            look(watched.root / "d", chooser)
            pid = watcher_pid(watched)
            look(watched.root / "d", chooser)
            changer.change(50)
            os.kill(pid, signal.SIGKILL)
            changer.change(50)
            wait_until(partial(has_another_watcher, watched, pid), "the next watcher")
        assert_same(watched)


def test_what_is_only_there_for_open_files_is_watched_no_more(watched: Mount) -> None:
    """Nor does it take the mount that has its place by now for its own."""
    (watched.store / "d/file").write_bytes(b"1")
    pid, worker = watcher_pid(watched), Path(f"/proc/{watched.worker_pid()}")
    with (
        watched.expected_in_log(r"fuse_release\(\): fuse_reply_\* failed with No such file"),
        (watched.root / "d/file").open() as held,
    ):
        assert modamafs("umount", "--lazy", watched.root).returncode == 0
        watched.is_unmounted = True
        [left] = watched.runtime.parent.glob(f"{watched.runtime.name}~*")
        with Mount(watched.store, watched.root, *LONG):
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda: "watcher-died" in (left / "daemon.log").read_text(), "its end")
        assert held.read() == "1"
        held.close()
        wait_until(lambda: not worker.exists(), "the end of the worker")


def test_a_killed_worker_misses_nothing(watched: Mount) -> None:
    changer = Changer(watched.store / "d", 6)
    chooser = random.Random(6)
    with watched.expected_in_log("worker-died"):
        for _ in range(5):
            changer.change(200)
            look(watched.root / "d", chooser)
            watched.kill_worker()
            changer.change(50)
            wait_until(lambda: is_watching(watched), "the next watcher")
        assert_same(watched)


def test_a_writer_through_a_mapping_is_seen_when_it_closes(watched: Mount) -> None:
    import mmap

    path = watched.store / "d" / "mapped"
    path.write_bytes(bytes(8192))
    os.utime(path, (1, 1))
    sync(watched)
    assert (watched.root / "d" / "mapped").stat().st_mtime == 1
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        memory[4096] = 1
    sync(watched)
    assert (watched.root / "d" / "mapped").stat().st_mtime == path.stat().st_mtime > 1
    assert (watched.root / "d" / "mapped").read_bytes() == path.read_bytes()


def test_who_is_in_a_renamed_directory_stays_there(watched: Mount) -> None:
    """A look-up of the old name must not take the directory away under a process in it."""
    (watched.store / "d" / "old" / "below").mkdir(parents=True)
    script = (
        "import os\nprint(flush=True)\nwhile input() == '':\n    print(os.getcwd(), flush=True)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=watched.root / "d" / "old" / "below",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as inside:
        assert inside.stdin and inside.stdout
        inside.stdout.readline()

        def where(process: subprocess.Popen[str]) -> str:
            assert process.stdin and process.stdout
            process.stdin.write("\n")
            process.stdin.flush()
            return process.stdout.readline().strip()

        (watched.store / "d" / "old").rename(watched.store / "d" / "new")
        sync(watched)
        assert where(inside).endswith("/below"), "before anybody has asked for a name"
        assert not (watched.root / "d" / "old").exists()
        assert (watched.root / "d" / "new" / "below").is_dir()
        assert where(inside) == str(watched.root / "d" / "new" / "below")
        inside.stdin.write("end\n")
        inside.stdin.flush()


def test_sealing_is_shown_at_once(watched: Mount) -> None:
    """Flags are set without an event; what the mount shows depends on them."""
    area = watched.store / "d" / "area" / "project" / "session" / "raw"
    area.mkdir(parents=True)
    (area / "file").write_bytes(b"1")
    shown = watched.root / "d" / "area" / "project" / "session" / "raw"
    sync(watched)
    assert shown.stat().st_mode & 0o200 and (shown / "file").stat().st_mode & 0o200
    done = subprocess.run(
        [Path(sys.executable).with_name("modamafs"), "seal", shown],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    wait_until(lambda: not (shown / "file").stat().st_mode & 0o222, "the file to look sealed")
    wait_until(lambda: not shown.stat().st_mode & 0o222, "the directory to look sealed")
    subprocess.run(
        [Path(sys.executable).with_name("modamafs"), "unseal", "--reason", "t", shown],
        check=False,
        capture_output=True,
    )
    wait_until(lambda: bool((shown / "file").stat().st_mode & 0o200), "the file to look open")


def test_without_the_watch_timeouts_are_short(
    workshop: Workshop, new_name: Callable[[], str]
) -> None:
    store = workshop.image("ext4").root / f"watch-{new_name()}"
    (store / "d").mkdir(parents=True)
    with Mount(
        store,
        workshop.mountpoint(store.name),
        "-o",
        "watch=off,entry_timeout_s=0.05,attribute_timeout_s=0.05",
    ) as mount:
        assert not mount.status()["watching"]
        (mount.root / "d").stat()
        (store / "d").chmod(0o700)
        wait_until(lambda: (mount.root / "d").stat().st_mode & 0o777 == 0o700, "the change")
    remove(store)


def test_what_must_not_be_believed_never_is(
    workshop: Workshop, new_name: Callable[[], str]
) -> None:
    """A timeout of 0 stays 0."""
    store = workshop.image("ext4").root / f"watch-{new_name()}"
    (store / "d").mkdir(parents=True)
    options = ("-o", "entry_timeout_s=0,attribute_timeout_s=0")
    with Mount(store, workshop.mountpoint(store.name), *options) as mount:
        wait_until(lambda: is_watching(mount), "the store to be watched")
        before = mount.requests("GETATTR") + mount.requests("LOOKUP")
        for _ in range(50):
            (mount.root / "d").stat()
        assert mount.requests("GETATTR") + mount.requests("LOOKUP") - before >= 50
        assert json.loads(json.dumps(mount.status()["watching"])) is True
    remove(store)


def test_what_is_virtual_is_not_believed_to_be_missing(watched: Mount) -> None:
    """A landing directory shows what was found out meanwhile."""
    session = watched.store / "area" / "project" / "session"
    (session / "raw").mkdir(parents=True)
    shown = watched.root / "landing" / "area" / "project" / "session"
    for missing in ("history.jsonl", "seals/raw.json"):
        assert not (shown / missing).exists(), missing
    (session / ".modama" / "seals").mkdir(parents=True)
    (session / ".modama" / "history.jsonl").write_text("{}\n")
    assert (shown / "history.jsonl").read_text() == "{}\n"


def test_deeper_than_a_path_can_say(watched: Mount) -> None:
    """The kernel names no path there; what changes there, and afterwards elsewhere, is seen."""
    name = "d" * 250
    fd = os.open(watched.store / "d", os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(20):
        os.mkdir(name, dir_fd=fd)
        below = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.rename("file", "renamed", src_dir_fd=fd, dst_dir_fd=fd)
    os.close(fd)
    sync(watched)
    assert (watched.root / "d").stat().st_nlink == 3
    (watched.store / "d" / "shallow").mkdir()
    sync(watched)
    assert (watched.root / "d").stat().st_nlink == 4
    assert is_watching(watched)


def test_who_else_writes_what_is_open_for_writing_is_seen(watched: Mount) -> None:
    """Not at once, as the mount's own writes would be told of again and again; but he is."""
    path, beside = watched.root / "d" / "file", watched.store / "d" / "file"
    with open(path, "wb", buffering=0) as ours, open(beside, "ab", buffering=0) as theirs:
        for number in range(1, 20):
            ours.write(b"1")
            theirs.write(b"2")
            assert path.stat().st_size >= number
        for _ in range(3):
            wait_until(lambda: path.stat().st_size == beside.stat().st_size, "the size")
            theirs.write(b"3")  # and ours does not write any more
        wait_until(lambda: path.stat().st_size == beside.stat().st_size, "the size at the end")
