"""What survives a worker: the mapped file."""

from __future__ import annotations

import os
import signal
import stat
import struct
from pathlib import Path

import pytest

from modamafs.model import Caller
from modamafs.tree import state
from modamafs.tree.handles import Handles
from modamafs.tree.journal import Journal
from modamafs.tree.state import State


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.bin"


def test_the_layout_fits() -> None:
    assert state.HEADER.size <= state.JOURNAL_OFFSET
    journal_end = state.JOURNAL_OFFSET + state.JOURNAL_SLOTS * state.JOURNAL_SLOT_BYTES
    assert journal_end <= state.HANDLES_OFFSET
    assert state.HANDLES_OFFSET + state.HANDLE_SLOTS * state.HANDLE.size == state.SIZE_BYTES
    assert state.HANDLE.size == 40


def test_a_new_file_is_empty_sparse_and_private(path: Path) -> None:
    new = State(path)
    assert new.fresh
    assert new.used_slots == 0
    assert new.lost_registration() is None
    new.close()
    st = path.stat()
    assert st.st_size == state.SIZE_BYTES
    assert st.st_blocks * 512 <= state.ALLOCATED_BYTES
    assert stat.S_IMODE(st.st_mode) == 0o600


def test_it_is_there_again(path: Path) -> None:
    first = State(path)
    assert [first.next_serial(slot) for slot in (0, 1, 5, 2)] == [1, 2, 3, 4]
    first.begin_registration()
    first.end_registration(7)
    first.close()
    second = State(path)
    assert not second.fresh
    assert second.used_slots == 6
    assert second.next_serial(0) == 5
    assert second.lost_registration() is None
    second.close()


def test_it_survives_sigkill(path: Path) -> None:
    pid = os.fork()
    if pid == 0:
        dying = State(path)
        dying.next_serial(41)
        dying.begin_registration()
        os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    after = State(path)
    assert after.used_slots == 42
    assert after.lost_registration() == 1
    after.close()


def test_a_lost_registration_is_the_one_after_the_last(path: Path) -> None:
    first = State(path)
    for backing_id in (1, 2, 5, 3):
        first.begin_registration()
        first.end_registration(backing_id)
    first.begin_registration()
    first.close()
    second = State(path)
    assert second.lost_registration() == 6
    second.end_registration(6)
    second.close()
    third = State(path)
    assert third.lost_registration() is None
    third.begin_registration()
    assert third.lost_registration() == 7
    third.close()


@pytest.mark.parametrize(
    "content", [b"", b"modamaf", b"modamaf0" + b"\xff" * 100, b"\xff" * 20_000]
)
def test_a_file_of_another_version_starts_empty(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    first = State(path)
    assert first.fresh
    assert first.used_slots == 0
    assert len(Handles(first)) == 0
    Journal(first)
    first.close()


def test_nothing_of_another_version_comes_back_with_the_next_worker(path: Path) -> None:
    path.write_bytes(b"modamaf0".ljust(state.JOURNAL_OFFSET, b"\0") + b"\xff" * 4096)
    first = State(path)
    Journal(first)
    first.close()
    second = State(path)
    caller = Caller(0, 0, request=(1 << 64) - 1, resent=True)
    assert Journal(second).recall(caller) is None
    second.close()


def test_the_header_is_where_it_is_documented(path: Path) -> None:
    one = State(path)
    one.next_serial(9)
    one.begin_registration()
    one.end_registration(77)
    one.begin_registration()
    one.close()
    assert struct.unpack_from("=8sQQii", path.read_bytes()) == (b"modamaf1", 10, 1, 1, 77)
