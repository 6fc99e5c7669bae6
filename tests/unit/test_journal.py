"""The journal of intents: once, whatever was killed where."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from modamafs.model import Caller
from modamafs.tree.journal import SLOT, Intent, Journal
from modamafs.tree.state import JOURNAL_SLOT_BYTES, JOURNAL_SLOTS, State

FIRST = Caller(1001, 1002, request=100)
AGAIN = FIRST._replace(resent=True)
OPERATIONS = [
    "mknod", "mkdir", "symlink", "link", "unlink", "rmdir", "rename", "create", "setxattr",
    "removexattr",
]  # fmt: skip

Restart = Callable[[], Journal]


class Killed(BaseException):
    """In the place of SIGKILL."""


@pytest.fixture
def restart(tmp_path: Path) -> Iterator[Restart]:
    """The journal of the next worker."""
    states: list[State] = []

    def new() -> Journal:
        while states:
            states.pop().close()
        states.append(State(tmp_path / "state.bin"))
        return Journal(states[-1])

    yield new
    for state in states:
        state.close()


def done() -> str:
    return "done"


def answered() -> str:
    return "answered"


def never(*_: object) -> Any:
    raise AssertionError("not to be called")


def dies() -> str:
    raise Killed


def test_slots_fit() -> None:
    assert SLOT.size <= JOURNAL_SLOT_BYTES
    assert max(len(operation) for operation in OPERATIONS) <= 16


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_request_is_carried_out(restart: Restart, operation: str) -> None:
    assert restart().once(FIRST, operation, done, never, never) == "done"


@pytest.mark.parametrize("operation", OPERATIONS)
def test_finished_with_a_result(restart: Restart, operation: str) -> None:
    """Killed after it was done and noted, before the kernel was told."""
    restart().once(FIRST, operation, done, never, never, 7, 8)
    journal = restart()
    intent = journal.recall(AGAIN)
    assert intent is not None
    assert intent == Intent(operation, True, 0, 7, 8)
    assert journal.once(AGAIN, operation, never, never, answered, 7, 8) == "answered"


@pytest.mark.parametrize("operation", OPERATIONS)
def test_finished_with_an_errno(restart: Restart, operation: str) -> None:
    def fails() -> str:
        raise OSError(errno.ENOTEMPTY, "full")

    with pytest.raises(OSError, match="full"):
        restart().once(FIRST, operation, fails, never, never)
    with pytest.raises(OSError, match="not empty") as raised:
        restart().once(AGAIN, operation, never, never, never)
    assert raised.value.errno == errno.ENOTEMPTY


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("was_done", [True, False])
def test_pending(restart: Restart, operation: str, was_done: bool) -> None:
    """Killed between the note and its result: the names and numbers have to tell."""
    with pytest.raises(Killed):
        restart().once(FIRST, operation, dies, never, never, 7, 8)
    seen: list[Intent] = []

    def ask(intent: Intent) -> bool:
        seen.append(intent)
        return was_done

    journal = restart()
    if was_done:
        assert journal.once(AGAIN, operation, never, ask, answered) == "answered"
    else:
        assert journal.once(AGAIN, operation, done, ask, never) == "done"
    (intent,) = seen
    assert intent == Intent(operation, False, 0, 7, 8)


def test_somebody_elses_file_in_the_way_stays_eexist(restart: Restart) -> None:
    def in_the_way() -> str:
        raise FileExistsError(errno.EEXIST, "in the way")

    with pytest.raises(Killed):
        restart().once(FIRST, "mkdir", dies, never, never)
    with pytest.raises(FileExistsError):
        restart().once(AGAIN, "mkdir", in_the_way, lambda _: False, never)
    with pytest.raises(FileExistsError):
        restart().once(AGAIN, "mkdir", never, never, never)


def test_a_request_that_was_never_begun_is_carried_out(restart: Restart) -> None:
    restart().once(FIRST, "mkdir", done, never, never)
    other = AGAIN._replace(request=102)
    assert restart().once(other, "mkdir", done, never, never) == "done"


def test_a_request_that_was_not_sent_again_is_a_new_one(restart: Restart) -> None:
    restart().once(FIRST, "mkdir", done, never, never)
    assert restart().once(FIRST, "mkdir", done, never, never) == "done"


def test_an_error_that_is_no_system_calls_is_not_an_answer(restart: Restart) -> None:
    def defect() -> str:
        raise ValueError("on purpose")

    with pytest.raises(ValueError, match="on purpose"):
        restart().once(FIRST, "mkdir", defect, never, never)
    journal = restart()
    assert journal.once(AGAIN, "mkdir", done, lambda _: False, never) == "done"


def test_the_latest_64_are_known(restart: Restart) -> None:
    journal = restart()
    for request in range(2, 2 + 2 * 100, 2):
        journal.once(FIRST._replace(request=request), "mkdir", done, never, never, request)
    journal = restart()
    known = [
        request for request in range(2, 202, 2) if journal.recall(AGAIN._replace(request=request))
    ]
    assert known == list(range(202 - 2 * JOURNAL_SLOTS, 202, 2))


def test_an_intent_of_the_longest_numbers(restart: Restart) -> None:
    last = (1 << 64) - 1
    caller = FIRST._replace(request=(1 << 63) - 1)
    restart().once(caller, "removexattr", done, never, never, last, last)
    intent = restart().recall(caller._replace(resent=True))
    assert intent is not None
    assert (intent.operation, intent.ino, intent.other) == ("removexattr", last, last)


@pytest.mark.parametrize("finished", [True, False])
def test_what_was_made_is_noted_before_it_has_its_name(restart: Restart, finished: bool) -> None:
    journal = restart()

    def make() -> str:
        journal.note((1 << 64) - 7)
        return done() if finished else dies()

    with contextlib.nullcontext() if finished else pytest.raises(Killed):
        journal.once(FIRST, "mkdir", make, never, never, 0, 8)
    journal = restart()
    intent = journal.recall(AGAIN)
    assert intent is not None
    assert intent[:4] == ("mkdir", finished, 0, 0 if finished else (1 << 64) - 7)
    assert intent.other == 8


def test_a_note_is_the_current_requests(restart: Restart) -> None:
    journal = restart()
    journal.once(FIRST, "mkdir", done, never, never)
    second = FIRST._replace(request=102)

    def make() -> str:
        journal.note(9)
        return dies()

    with pytest.raises(Killed):
        journal.once(second, "mknod", make, never, never)
    journal = restart()
    known = [journal.recall(AGAIN._replace(request=request)) for request in (100, 102)]
    assert known == [Intent("mkdir", True, 0, 0, 0), Intent("mknod", False, 0, 9, 0)]


def test_a_worker_that_is_killed_before_the_request_came_forgets_nothing(restart: Restart) -> None:
    restart().once(FIRST, "mkdir", done, never, never)
    restart()  # and killed at once
    assert restart().once(AGAIN, "mkdir", never, never, answered) == "answered"


def test_a_worker_that_is_killed_while_it_answers_forgets_nothing(restart: Restart) -> None:
    restart().once(FIRST, "mkdir", done, never, never)
    with pytest.raises(Killed):
        restart().once(AGAIN, "mkdir", never, never, dies)
    assert restart().once(AGAIN, "mkdir", never, never, answered) == "answered"


def test_a_pending_intent_outlives_two_kills(restart: Restart) -> None:
    with pytest.raises(Killed):
        restart().once(FIRST, "mkdir", dies, never, never, 7)
    restart()
    assert restart().once(AGAIN, "mkdir", never, lambda intent: intent.ino == 7, answered)


# ---- failpoints ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("point", "made"), [("before", False), ("after", True)])
def test_a_failpoint_kills_once(tmp_path: Path, point: str, made: bool) -> None:
    failpoint, directory = tmp_path / "failpoint", tmp_path / "directory"
    failpoint.write_text(f"mkdir:{point}\n")
    pid = os.fork()
    if pid == 0:
        journal = Journal(State(tmp_path / "state.bin"), failpoint)
        journal.once(FIRST, "rename", done, never, never)  # another operation
        journal.once(FIRST, "mkdir", directory.mkdir, never, never)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert directory.exists() is made
    assert not failpoint.exists()
    state = State(tmp_path / "state.bin")
    journal = Journal(state, failpoint)
    intent = journal.recall(AGAIN)
    assert intent is not None
    assert (intent.operation, intent.finished) == ("mkdir", False)
    assert journal.once(AGAIN._replace(request=102), "mkdir", done, never, never) == "done"
    state.close()
