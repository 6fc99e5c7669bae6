"""The table of open files, over the state that survives a worker."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from modamafs.errors import StaleHandle
from modamafs.model import Caller
from modamafs.tree import handles as module
from modamafs.tree.handles import Handle, Handles
from modamafs.tree.state import HANDLE_SLOTS, State

CALLER = Caller(1001, 1002, request=100)

Restart = Callable[[], Handles]


@pytest.fixture
def restart(tmp_path: Path) -> Iterator[Restart]:
    """The table of the next worker; the state of the one before is gone."""
    states: list[State] = []

    def new() -> Handles:
        while states:
            states.pop().close()
        states.append(State(tmp_path / "state.bin"))
        return Handles(states[-1])

    yield new
    for state in states:
        state.close()


def facts(handle: Handle) -> tuple[int, int, int, int, int, int]:
    return handle.fh, handle.ino, handle.flags, handle.backing_id, handle.uid, handle.gid


def test_a_handle_is_there_until_it_is_removed(restart: Restart) -> None:
    table = restart()
    handle = table.add(7, os.O_RDWR, CALLER, 3, None)
    assert facts(handle) == (handle.fh, 7, os.O_RDWR, 3, 1001, 1002)
    assert table.get(handle.fh) is handle
    assert list(table) == [handle]
    assert len(table) == 1
    removed = table.remove(handle.fh)
    assert removed == (handle, 3)
    assert len(table) == 0
    with pytest.raises(StaleHandle):
        table.get(handle.fh)


def test_a_release_that_comes_twice_does_no_harm(restart: Restart) -> None:
    table = restart()
    first = table.add(7, os.O_RDWR, CALLER, 3)
    second = table.add(7, os.O_RDWR, CALLER, 3)
    assert table.remove(first.fh) == (first, 0)
    assert table.remove(first.fh) is None
    assert table.inode(7) is not None
    assert table.remove(second.fh) == (second, 3)
    assert table.remove(second.fh) is None
    assert table.remove(12345) is None


def test_a_number_is_never_given_twice(restart: Restart) -> None:
    table = restart()
    seen = set()
    for _ in range(50):
        kept = table.add(7, os.O_RDONLY, CALLER)
        gone = table.add(8, os.O_RDONLY, CALLER)
        table.remove(gone.fh)
        seen |= {kept.fh, gone.fh}
        table = restart()
    assert len(seen) == 100
    assert 0 not in seen
    assert len(table) == 50


def test_slots_are_used_again(restart: Restart) -> None:
    table = restart()
    for _ in range(100):
        table.remove(table.add(7, os.O_RDONLY, CALLER).fh)
    for _ in range(10):
        table.add(7, os.O_RDONLY, CALLER)
    assert max(handle.fh % HANDLE_SLOTS for handle in table) == 9


def test_the_next_worker_knows_all_handles(restart: Restart) -> None:
    table = restart()
    made = [
        table.add(7, os.O_RDONLY, CALLER, 3),
        table.add(7, os.O_RDWR | os.O_APPEND, Caller(0xFFFFFFFE, 0, request=1 << 62), 3),
        table.add((1 << 64) - 1, os.O_DIRECTORY, CALLER, 0, 99),
        table.add(9, os.O_WRONLY, CALLER, 4),
    ]
    table.remove(made.pop().fh)
    table = restart()
    assert {facts(handle) for handle in table} == {facts(handle) for handle in made}
    assert all(handle.fd is None for handle in table), "descriptors die with their process"
    assert table.backing_ids() == {3}
    inode = table.inode(7)
    assert inode is not None
    assert (inode.backing_id, inode.handles, inode.writers) == (3, 2, 1)
    assert table.remove(made[0].fh) is not None
    assert table.remove(made[1].fh) == (module.Handle(*facts(made[1])), 3)
    assert table.inode(7) is None


def test_recall_is_for_the_request_that_is_sent_again(restart: Restart) -> None:
    table = restart()
    handle = table.add(7, os.O_RDWR, CALLER, 3)
    assert table.recall(CALLER._replace(resent=True)) is None, "this worker's own request"
    table = restart()
    assert table.recall(CALLER) is None, "not sent again"
    assert table.recall(Caller(0, 0, request=101, resent=True)) is None
    found = table.recall(CALLER._replace(resent=True))
    assert found is not None
    assert facts(found) == facts(handle)
    table = restart()
    assert table.recall(CALLER._replace(resent=True)) is not None, "also after one more restart"


def test_writers_are_counted(restart: Restart) -> None:
    table = restart()
    opened = [
        table.add(7, flags, CALLER) for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR)
    ]
    assert [handle.writable for handle in opened] == [False, True, True, True]
    counts = []
    while opened:
        inode = table.inode(7)
        assert inode is not None
        counts.append(inode.writers)
        table.remove(opened.pop().fh)
    assert counts == [3, 2, 1, 0]
    assert table.inode(7) is None


def test_writing_holds_what_is_open_for_writing(restart: Restart) -> None:
    table = restart()
    reader = table.add(6, os.O_RDONLY, CALLER)
    writers = [table.add(7, os.O_WRONLY, CALLER), table.add(7, os.O_RDWR, CALLER)]
    assert table.writing == {7}
    table.remove(writers.pop().fh)
    assert table.writing == {7}
    table = restart()
    assert table.writing == {7}
    table.remove(reader.fh)
    table.remove(writers.pop().fh)
    assert table.writing == set()


def test_a_full_table_is_enfile(restart: Restart, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HANDLE_SLOTS", 4)
    table = restart()
    made = [table.add(7, os.O_RDONLY, CALLER) for _ in range(4)]
    with pytest.raises(OSError, match="too many") as raised:
        table.add(7, os.O_RDONLY, CALLER)
    assert raised.value.errno == errno.ENFILE
    assert len(table) == 4
    table.remove(made[2].fh)
    table.add(7, os.O_RDONLY, CALLER)


def test_take_fd_gives_it_away(restart: Restart) -> None:
    handle = restart().add(7, os.O_RDONLY, CALLER, fd=5)
    assert handle.take_fd() == 5
    assert handle.take_fd() is None
