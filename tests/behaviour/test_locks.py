"""flock and fcntl locks between processes."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.users import ALICE, as_user, in_child

EXCLUSIVE = fcntl.LOCK_EX | fcntl.LOCK_NB
SHARED = fcntl.LOCK_SH | fcntl.LOCK_NB


def flock(path: Path, how: int) -> None:
    """Open and flock it; the end of the process lets go."""
    fcntl.flock(os.open(path, os.O_RDWR), how)


def lockf(path: Path, how: int, length: int = 0, start: int = 0) -> None:
    """Open and lock a range of it; the end of the process lets go."""
    fcntl.lockf(os.open(path, os.O_RDWR), how, length, start)


@pytest.fixture
def path(root: Path) -> Path:
    """A file that everybody may lock."""
    (root / "file").write_bytes(b"0123456789")
    (root / "file").chmod(0o666)
    return root / "file"


@pytest.mark.parametrize("lock", [flock, lockf])
def test_an_exclusive_lock_keeps_others_out(path: Path, lock: Callable[[Path, int], None]) -> None:
    with open(path, "r+b") as file:
        (fcntl.flock if lock is flock else fcntl.lockf)(file, EXCLUSIVE)
        for how in (EXCLUSIVE, SHARED):
            with pytest.raises(BlockingIOError):
                in_child(lambda how=how: lock(path, how))
            with pytest.raises(BlockingIOError):
                as_user(ALICE, lock, path, how)
    in_child(lambda: lock(path, EXCLUSIVE))


@pytest.mark.parametrize("lock", [flock, lockf])
def test_shared_locks_go_together(path: Path, lock: Callable[[Path, int], None]) -> None:
    with open(path, "r+b") as file:
        (fcntl.flock if lock is flock else fcntl.lockf)(file, SHARED)
        in_child(lambda: lock(path, SHARED))
        with pytest.raises(BlockingIOError):
            in_child(lambda: lock(path, EXCLUSIVE))


def test_ranges_conflict_only_where_they_overlap(path: Path) -> None:
    with open(path, "r+b") as file:
        fcntl.lockf(file, EXCLUSIVE, 4, 2)
        in_child(lambda: lockf(path, EXCLUSIVE, 2, 0))
        in_child(lambda: lockf(path, EXCLUSIVE, 0, 6))
        with pytest.raises(BlockingIOError):
            in_child(lambda: lockf(path, EXCLUSIVE, 2, 5))
        fcntl.lockf(file, fcntl.LOCK_UN, 1, 5)
        in_child(lambda: lockf(path, EXCLUSIVE, 2, 5))


def test_two_descriptors_of_one_process_conflict_by_flock_only(path: Path) -> None:
    with open(path, "r+b") as one, open(path, "r+b") as other:
        fcntl.flock(one, EXCLUSIVE)
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, EXCLUSIVE)
        fcntl.lockf(one, EXCLUSIVE)
        fcntl.lockf(other, EXCLUSIVE)


@pytest.mark.parametrize("call", [fcntl.flock, fcntl.lockf])
def test_who_waits_gets_the_lock_when_it_is_let_go(
    path: Path, call: Callable[[int, int], None]
) -> None:
    waiting_reader, waiting_writer = os.pipe()
    fd = os.open(path, os.O_RDWR)
    call(fd, fcntl.LOCK_EX)
    pid = os.fork()
    if pid == 0:
        own = os.open(path, os.O_RDWR)
        os.write(waiting_writer, b"x")
        call(own, fcntl.LOCK_EX)
        os.pwrite(own, b"child", 0)
        os._exit(0)
    os.read(waiting_reader, 1)
    os.pwrite(fd, b"first", 0)
    call(fd, fcntl.LOCK_UN)
    assert os.waitpid(pid, 0)[1] == 0
    assert path.read_bytes() == b"child56789"
    for number in (fd, waiting_reader, waiting_writer):
        os.close(number)


def test_closing_lets_go(path: Path) -> None:
    fd = os.open(path, os.O_RDWR)
    fcntl.flock(fd, EXCLUSIVE)
    os.close(fd)
    in_child(lambda: flock(path, EXCLUSIVE))


def test_a_lock_on_a_read_only_descriptor(path: Path) -> None:
    """HDF5 takes a shared lock on what it reads."""
    with open(path, "rb") as file:
        fcntl.flock(file, SHARED)
        fcntl.lockf(file, SHARED)
        with pytest.raises(OSError, match="Bad file descriptor"):
            fcntl.lockf(file, EXCLUSIVE)


def test_locks_of_an_unlinked_file(path: Path) -> None:
    one = os.open(path, os.O_RDWR)
    other = os.open(path, os.O_RDWR)
    path.unlink()
    fcntl.flock(one, EXCLUSIVE)
    with pytest.raises(BlockingIOError):
        fcntl.flock(other, EXCLUSIVE)
    os.close(one)
    fcntl.flock(other, EXCLUSIVE)
    os.close(other)
