"""What one user asks of a mount's control socket does not keep the others from theirs."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import signal
import socket
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from modamafs.control import client, searchers, server
from modamafs.control.protocol import SOCKET
from modamafs.errors import ModamaError
from modamafs.model import Caller
from modamafs.searcher import MEMORY_BYTES, _fitting
from tests.support.mounts import Mount, modamafs, wait_until
from tests.support.targets import Workshop
from tests.support.trees import remove
from tests.support.users import BOB, STRANGER, User, acting_as, in_child

PATIENCE_S = 60


@pytest.fixture
def mount(workshop: Workshop, new_name: Callable[[], str]) -> Iterator[Mount]:
    store = workshop.image("ext4").root / f"limits-{new_name()}"
    (store / "area").mkdir(parents=True)
    (store / "area/tilt.mrc").write_bytes(b"1")
    with Mount(store, workshop.mountpoint(store.name)) as mount:
        wait_until(lambda: mount.status()["index"]["state"] == "ok", "the index")
        yield mount
    remove(store)


@contextlib.contextmanager
def connection(mount: Mount, user: User) -> Iterator[socket.socket]:
    directory = os.open(mount.runtime, os.O_PATH)
    try:
        with socket.socket(socket.AF_UNIX) as connected:
            connected.settimeout(PATIENCE_S)
            with acting_as(user):
                connected.connect(f"/proc/self/fd/{directory}/{SOCKET}")
            yield connected
    finally:
        os.close(directory)


def say(stream: socket.socket, command: str, **arguments: Any) -> None:
    line = json.dumps({"command": command, "arguments": arguments}).encode() + b"\n"
    with contextlib.suppress(BrokenPipeError):
        stream.sendall(line)


def heard(stream: socket.socket) -> dict[str, Any]:
    answer = json.loads(stream.makefile("rb").readline())
    assert isinstance(answer, dict)
    return answer


def searching(mount: Mount) -> list[int]:
    """The processes that search."""
    found = []
    for children in Path(f"/proc/{mount.worker_pid()}/task").glob("*/children"):
        for pid in children.read_text().split():
            with contextlib.suppress(OSError):
                if b"modamafs.searcher" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.append(int(pid))
    return found


def watcher_pid(mount: Mount) -> int:
    for children in Path(f"/proc/{mount.worker_pid()}/task").glob("*/children"):
        for pid in children.read_text().split():
            if b"modamafs.watcher" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return int(pid)
    raise ProcessLookupError("no watcher")


def test_searches_of_one_user_are_one_after_the_other(mount: Mount) -> None:
    """One hangs: it has a process that is stopped. Others' searches do not wait for it."""
    client.call(mount.runtime, "find", {"query": "tilt"}, timeout_s=PATIENCE_S)
    [pid] = searching(mount)
    os.kill(pid, signal.SIGSTOP)
    with contextlib.ExitStack() as stack:
        streams = [stack.enter_context(connection(mount, STRANGER)) for _ in range(6)]
        for stream in streams:
            say(stream, "find", query="tilt")
            client.call(mount.runtime, "sync", timeout_s=PATIENCE_S)
        assert select.select(streams, [], [], 1.5)[0] == [], "they wait for each other"
        with connection(mount, BOB) as stream:
            say(stream, "find", query="tilt")
            assert len(heard(stream)["result"]["results"]) == 1
        assert select.select(streams, [], [], 0)[0] == []
        streams[0].close()
        for stream in streams[1:]:
            assert len(heard(stream)["result"]["results"]) == 1
    assert pid not in searching(mount), "what nobody waits for is ended"


def test_who_has_gone_does_not_use_up_his_connections(mount: Mount) -> None:
    page = client.call(mount.runtime, "changes", timeout_s=PATIENCE_S)
    for _ in range(server.CONNECTIONS_OF_ONE):
        with connection(mount, STRANGER) as stream:
            say(stream, "changes", since=page["position"], wait_s=60)

    def is_answered() -> bool:
        with connection(mount, STRANGER) as stream:
            say(stream, "sync")
            return bool(heard(stream)["ok"])

    wait_until(is_answered, "a place", 20)


def test_changes_are_waited_for(mount: Mount) -> None:
    """Past those that the caller may not know of."""
    (mount.store / "area/closed").mkdir(mode=0o700)
    page = client.call(mount.runtime, "changes", timeout_s=PATIENCE_S)
    with connection(mount, STRANGER) as stream:
        say(stream, "changes", since=page["position"], wait_s=60)
        (mount.store / "area/closed/diary").write_bytes(b"1")
        client.call(mount.runtime, "sync", timeout_s=PATIENCE_S)
        (mount.store / "area/public").write_bytes(b"1")
        [change] = heard(stream)["result"]["changes"]
    assert change["path"] == "area/public"


def test_an_index_that_lags_behind_says_so(mount: Mount) -> None:
    pid = watcher_pid(mount)
    os.kill(pid, signal.SIGSTOP)
    try:
        page = client.call(mount.runtime, "find", {"query": "tilt"}, timeout_s=PATIENCE_S)
        assert page["state"]["state"] == "catching up"
        assert len(page["results"]) == 1
        done = modamafs("find", "--in", mount.root, "tilt")
        assert "results may be old" in done.stderr
    finally:
        os.kill(pid, signal.SIGCONT)
    page = client.call(mount.runtime, "find", {"query": "tilt"}, timeout_s=PATIENCE_S)
    assert page["state"] == {"state": "ok", "message": ""}


def test_nobody_but_root_counts_what_others_do(mount: Mount) -> None:
    with connection(mount, STRANGER) as stream:
        say(stream, "status")
        known = heard(stream)["result"]
    assert known["index"] == {"state": "ok", "message": ""}
    assert not {"sealed_trees", "open_handles"} & known.keys()
    full = client.call(mount.runtime, "status", timeout_s=PATIENCE_S)
    assert {"files", "position"} <= full["index"].keys()
    assert "sealed_trees" in full


@pytest.mark.parametrize("verb", ["seal", "unseal", "verify", "progress", "cancel", "find"])
@pytest.mark.parametrize("path", ["area/a\0b", "area/\ud800"])
def test_paths_that_no_file_has(mount: Mount, verb: str, path: str) -> None:
    with pytest.raises(ModamaError) as refused:
        client.call(mount.runtime, verb, {"path": path}, timeout_s=PATIENCE_S)
    assert refused.value.errno == 22
    assert "\n" not in refused.value.message


# ---- the process that searches ------------------------------------------------------------------


def test_a_search_has_a_limit_of_memory(mount: Mount) -> None:
    client.call(mount.runtime, "find", {"query": "tilt"}, timeout_s=PATIENCE_S)
    [pid] = searching(mount)
    assert resource.prlimit(pid, resource.RLIMIT_AS) == (MEMORY_BYTES, MEMORY_BYTES)


def test_what_needs_too_much_memory_is_asked_for_in_parts() -> None:
    question = {"arguments": {"query": "x"}, "state": None, "most_bytes": 1000}

    def answer(size_bytes: int) -> bytes:
        """``size_bytes``: of a single result; more of them never have room in memory."""
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))

        def ask(arguments: dict[str, Any]) -> dict[str, Any]:
            return {"results": ["x" * (size_bytes if arguments["limit"] == 1 else 1 << 40)]}

        return _fitting(ask, question)[1]

    assert json.loads(in_child(partial(answer, 10)))["result"] == {"results": ["x" * 10]}
    with pytest.raises(OSError, match="too much memory") as refused:
        in_child(partial(answer, 1 << 40))
    assert refused.value.errno == 12
    with pytest.raises(ModamaError, match="more than 1000 bytes"):
        in_child(partial(answer, 2000))


def test_an_answer_that_is_too_long_has_fewer_results(
    mount: Mount, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked of the process itself, as the worker does."""
    for number in range(50):
        (mount.store / f"area/{'long' * 50}{number}").write_bytes(b"1")
    assert client.call(mount.runtime, "sync", timeout_s=PATIENCE_S)
    monkeypatch.setattr(searchers, "LONGEST_ANSWER_BYTES", 4000)

    async def ask() -> searchers.Answer:
        own = searchers.Searchers(mount.runtime)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(own.run)
            answer = await own.ask("find", {"query": "longlong"}, Caller(0, 0))
            nursery.cancel_scope.cancel()
        return answer

    page = json.loads(trio.run(ask).line)["result"]
    assert len(page["results"]) == 10
    assert page["next"] is not None
