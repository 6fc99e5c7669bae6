"""The daemon can die at any moment, and nobody notices."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.mounts import Mount, modamafs, wait_until
from tests.support.targets import Workshop
from tests.support.workloads import EverythingAtOnce, report

WORKER_DIED = r"worker-died"
KILLS = 10
SEED = 20240229


@pytest.fixture
def store(workshop: Workshop, new_name: Callable[[], str]) -> Path:
    """A new store."""
    directory = workshop.image("ext4").root / f"store-{new_name()}"
    directory.mkdir()
    return directory


@pytest.fixture
def mount(workshop: Workshop, store: Path) -> Iterator[Mount]:
    """A mount of its own: what is killed here disturbs no other test."""
    with Mount(store, workshop.mountpoint(store.name)) as mount:
        yield mount


@pytest.fixture
def fallback(workshop: Workshop, store: Path) -> Iterator[Mount]:
    """The same without passthrough."""
    with Mount(store, workshop.mountpoint(store.name), "--no-passthrough") as mount:
        yield mount


def test_the_workloads_find_no_fault_with_a_bare_directory(store: Path) -> None:
    """The control: what they find elsewhere is a fault."""
    with EverythingAtOnce(store) as work:
        for _ in range(3):
            work.wait_for_rounds(20)
        print(report(work.finish(store)))


def test_nobody_notices_that_the_worker_is_killed_ten_times(mount: Mount) -> None:
    moments = random.Random(SEED)
    with mount.expected_in_log(WORKER_DIED), EverythingAtOnce(mount.root) as work:
        for _ in range(KILLS):
            work.wait_for_rounds(moments.randint(1, 12))
            mount.kill_worker()
        work.wait_for_rounds(10)
        print(report(work.finish(mount.store)))
    assert mount.status()["restarts"] == KILLS


def test_nobody_notices_planned_restarts(mount: Mount) -> None:
    with EverythingAtOnce(mount.root) as work:
        for _ in range(3):
            work.wait_for_rounds(5)
            before = mount.worker_pid()
            done = modamafs("restart", mount.root)
            assert done.returncode == 0, done.stderr
            assert mount.worker_pid() != before
        work.wait_for_rounds(5)
        print(report(work.finish(mount.store)))


def test_two_kills_in_a_row(mount: Mount) -> None:
    """The second one hits a worker that has just begun."""
    (mount.root / "file").write_text("content")
    with mount.expected_in_log(WORKER_DIED), EverythingAtOnce(mount.root) as work:
        work.wait_for_rounds(3)
        for _ in range(2):
            first = mount.worker_pid()
            os.kill(first, signal.SIGKILL)
            wait_until(lambda first=first: mount.worker_pid() not in (first, 0), "another worker")
            os.kill(mount.worker_pid(), signal.SIGKILL)
            work.wait_for_rounds(3)
        work.finish(mount.store)
    assert (mount.root / "file").read_text() == "content"


def test_locks_outlive_the_worker(mount: Mount) -> None:
    import fcntl

    from tests.support.users import in_child

    path = mount.root / "locked"
    path.touch()

    def try_to_lock() -> None:
        fcntl.flock(os.open(path, os.O_RDWR), fcntl.LOCK_EX | fcntl.LOCK_NB)

    with mount.expected_in_log(WORKER_DIED), open(path, "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        mount.kill_worker()
        with pytest.raises(BlockingIOError):
            in_child(try_to_lock)
        fcntl.flock(file, fcntl.LOCK_UN)
        in_child(try_to_lock)


def test_listings_go_on_where_they_were(mount: Mount) -> None:
    """A directory that is open when the worker dies is listed to its end, each name once."""
    from tests.support.syscalls import getdents64, list_all

    directory = mount.root / "directory"
    directory.mkdir()
    for number in range(500):
        (directory / f"{number:03}").touch()
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    with mount.expected_in_log(WORKER_DIED):
        listed = getdents64(fd, 2048)
        mount.kill_worker()
        listed += list_all(fd)
    os.close(fd)
    names = sorted(entry.name for entry in listed if entry.name not in (b".", b".."))
    assert names == [f"{number:03}".encode() for number in range(500)]


def test_without_passthrough_everything_but_open_files_survives(fallback: Mount) -> None:
    root = fallback.root
    (root / "directory").mkdir()
    (root / "directory" / "file").write_text("content")
    with fallback.expected_in_log(WORKER_DIED):
        for number in range(3):
            fallback.kill_worker()
            assert (root / "directory" / "file").read_text() == "content"
            assert (root / "directory" / "file").stat().st_size == 7
            (root / f"new-{number}").write_text("written afterwards")
            assert (root / f"new-{number}").read_text() == "written afterwards"
            (root / f"new-{number}").rename(root / "directory" / f"moved-{number}")
    assert sorted(path.name for path in (root / "directory").iterdir()) == [
        "file",
        "moved-0",
        "moved-1",
        "moved-2",
    ]
    assert (fallback.store / "directory" / "moved-2").read_text() == "written afterwards"


def test_the_mount_goes_on_when_the_supervisor_is_killed(mount: Mount) -> None:
    """As long as the worker lives; and then it can be unmounted."""
    (mount.root / "before").write_text("before")
    fd = os.open(mount.root / "before", os.O_RDWR)
    supervisor = mount.status()["supervisor_pid"]
    os.kill(supervisor, signal.SIGKILL)
    wait_until(lambda: mount.status()["supervisor_pid"] != supervisor, "status to notice")
    assert (mount.root / "before").read_text() == "before"
    (mount.root / "after").write_text("after")
    (mount.root / "directory").mkdir()
    os.pwrite(fd, b"BEFORE", 0)
    os.close(fd)
    assert (mount.store / "after").read_text() == "after"
    assert (mount.store / "before").read_text() == "BEFORE"
    done = modamafs("umount", mount.root)
    assert done.returncode == 0, done.stderr
    assert list(mount.root.iterdir()) == []
    mount.root.chmod(0o755)  # nothing guards it any more
    mount.is_unmounted = True
