"""The control socket, over real sockets."""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import json
import logging
import os
import queue
import socket
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from modamafs.control import client, server
from modamafs.control.protocol import (
    LINE_LIMIT_BYTES,
    SOCKET,
    Request,
    decode_reply,
    decode_request,
    encode_error,
    encode_request,
    encode_result,
)
from modamafs.errors import InvalidRequest, ModamaError, NotMounted, Sealed
from modamafs.model import Caller
from tests.support.mounts import wait_until
from tests.support.users import BOB, STRANGER, User, acting_as

Ask = Callable[..., Any]


async def echo(arguments: dict[str, Any], peer: Caller) -> dict[str, Any]:
    return {"arguments": arguments, "peer": peer._asdict()}


async def refuse(_arguments: dict[str, Any], _peer: Caller) -> None:
    raise Sealed("raw is sealed: ask a steward")


async def miss(_arguments: dict[str, Any], _peer: Caller) -> None:
    raise FileNotFoundError(errno.ENOENT, "No such file or directory", "/a\udcff")


async def crash(_arguments: dict[str, Any], _peer: Caller) -> None:
    raise KeyError("a bug")


async def lose(_arguments: dict[str, Any], _peer: Caller) -> None:
    raise OSError(errno.EBADF, "Bad file descriptor", 5)


async def say(arguments: dict[str, Any], _peer: Caller) -> bytes:
    return encode_result("x" * arguments.get("size", 0))


COMMANDS: dict[str, server.Command] = {
    "echo": echo,
    "refuse": refuse,
    "miss": miss,
    "crash": crash,
    "lose": lose,
    "say": say,
}


class Doings:
    """Something that lasts until it is let go, as a question and as work."""

    def __init__(self) -> None:
        self.heard: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._is_over = trio.Event()
        self.commands: dict[str, server.Command] = {
            "ask": server.Question(self._last),
            "work": self._last,
            "let-go": self._let_go,
        }

    async def _last(self, _arguments: dict[str, Any], _peer: Caller) -> str:
        self.heard.put("begun")
        try:
            await self._is_over.wait()
        except trio.Cancelled:
            self.heard.put("given up")
            raise
        self.heard.put("done")
        return "done"

    async def _let_go(self, _arguments: dict[str, Any], _peer: Caller) -> None:
        self._is_over.set()


@contextlib.contextmanager
def serving(path: Path, commands: dict[str, server.Command] = COMMANDS) -> Iterator[None]:
    """A server in a thread of its own, for as long as a block lasts."""
    started: queue.SimpleQueue[tuple[trio.lowlevel.TrioToken, trio.CancelScope]]
    started = queue.SimpleQueue()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(server.serve, path, commands)
            started.put((trio.lowlevel.current_trio_token(), nursery.cancel_scope))

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        ended = pool.submit(trio.run, main)
        token, scope = started.get(timeout=10)
        try:
            yield
        finally:
            token.run_sync_soon(scope.cancel)
            ended.result(timeout=10)


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Path]:
    """A runtime directory whose path is longer than a socket address may be."""
    directory = tmp_path / ("x" * 120)
    directory.mkdir()
    with serving(directory / SOCKET):
        yield directory


@pytest.fixture
def ask(runtime: Path) -> Ask:
    return partial(client.call, runtime, timeout_s=10)


def test_a_command_gets_its_arguments_and_the_peer(ask: Ask) -> None:
    answer = ask("echo", {"path": "raw\udcff/ü"})
    assert answer["arguments"] == {"path": "raw\udcff/ü"}
    peer = answer["peer"]
    assert (peer["uid"], peer["gid"], peer["pid"]) == (os.geteuid(), os.getegid(), os.getpid())


def test_anybody_may_connect(runtime: Path) -> None:
    assert (runtime / SOCKET).stat().st_mode & 0o777 == 0o666
    assert [path.name for path in runtime.iterdir()] == [SOCKET]


def test_a_refusal_keeps_errno_and_message(ask: Ask) -> None:
    with pytest.raises(ModamaError, match="raw is sealed: ask a steward") as refused:
        ask("refuse")
    assert refused.value.errno == errno.EROFS


def test_an_oserror_keeps_errno_and_file(ask: Ask) -> None:
    with pytest.raises(ModamaError, match="/a\udcff: No such file") as refused:
        ask("miss")
    assert refused.value.errno == errno.ENOENT


def test_a_bug_is_logged_and_told_from_a_refusal(
    ask: Ask, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ModamaError, match="internal error") as refused:
        ask("crash")
    assert refused.value.errno == errno.EIO
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert "KeyError" in caplog.text


def test_unknown_commands_are_refused(ask: Ask) -> None:
    with pytest.raises(
        ModamaError, match="there is crash, echo, lose, miss, refuse, say"
    ) as refused:
        ask("sael")
    assert refused.value.errno == errno.EINVAL


@contextlib.contextmanager
def connection(runtime: Path, user: User | None = None) -> Iterator[socket.socket]:
    """``user``: whose it is, if not our own."""
    if user is not None and os.geteuid() != 0:
        pytest.skip("needs root, to be somebody else")
    directory = os.open(runtime, os.O_PATH)
    try:
        with socket.socket(socket.AF_UNIX) as connected:
            connected.settimeout(10)
            with acting_as(user) if user else contextlib.nullcontext():
                connected.connect(f"/proc/self/fd/{directory}/{SOCKET}")
            yield connected
    finally:
        os.close(directory)


def everything(connected: socket.socket) -> list[dict[str, Any]]:
    """All answers, until the server closes (or has had enough)."""
    text = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := connected.recv(65536):
            text += piece
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize(
    "line",
    [
        b"", b"seal", b"[]", b"1", b"{}", b'{"command": 1}', b"\xff\xfe", b"[" * 60000,
        b'{"command": "echo", "arguments": []}', b'{"command": "echo", "more": 1}',
    ],
)  # fmt: skip
def test_a_bad_line_is_answered_and_the_next_one_counts(runtime: Path, line: bytes) -> None:
    with connection(runtime) as stream:
        stream.sendall(line + b'\n{"command": "echo"}\n')
        stream.shutdown(socket.SHUT_WR)
        bad, good = everything(stream)
    assert (bad["ok"], bad["errno"]) == (False, errno.EINVAL)
    assert good["ok"]


def test_an_endless_line_ends_the_conversation(runtime: Path) -> None:
    with connection(runtime) as stream:
        stream.sendall(b"x" * (LINE_LIMIT_BYTES + 1))
        [answer] = everything(stream)
    assert answer["ok"] is False
    assert "longer" in answer["message"]


def test_lines_may_come_in_pieces(runtime: Path) -> None:
    with connection(runtime) as stream:
        for piece in (b'{"command"', b': "echo"', b"}\n", b'{"command": "echo"}\n{'):
            stream.sendall(piece)
        stream.shutdown(socket.SHUT_WR)
        assert [answer["ok"] for answer in everything(stream)] == [True, True]


def test_clients_that_leave_are_no_trouble(runtime: Path, ask: Ask) -> None:
    for _ in range(5):
        with connection(runtime) as stream:
            stream.sendall(b'{"command": "echo"}\n' * 100)
    assert (ask("echo"))["arguments"] == {}


def served(stream: socket.socket) -> bool:
    """Whether it is answered; False: there are too many."""
    with contextlib.suppress(BrokenPipeError):
        stream.sendall(b'{"command": "say"}\n')
    answer = decode_line(stream.makefile("rb").readline())
    assert answer["ok"] or "too many connections" in answer["message"]
    return bool(answer["ok"])


def decode_line(line: bytes) -> dict[str, Any]:
    answer = json.loads(line)
    assert isinstance(answer, dict)
    return answer


def test_there_is_a_limit_of_connections(
    runtime: Path, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "CONNECTIONS_OF_ONE", 1)
    monkeypatch.setattr(server, "CONNECTIONS_OF_ROOT", 1)
    with connection(runtime) as stream:
        assert served(stream)
        with pytest.raises(ModamaError, match="too many connections"):
            ask("echo")
        stream.shutdown(socket.SHUT_WR)
        assert stream.recv(65536) == b""
    assert ask("echo")


def test_one_user_does_not_keep_the_others_out(runtime: Path, ask: Ask) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(server.CONNECTIONS_OF_ONE):
            assert served(stack.enter_context(connection(runtime, STRANGER)))
        for _ in range(server.CONNECTIONS_LIMIT):
            with connection(runtime, STRANGER) as stream:
                assert not served(stream)
        with connection(runtime, BOB) as stream:
            assert served(stream)
        assert ask("echo")


def test_all_users_together_do_not_keep_root_out(
    runtime: Path, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "CONNECTIONS_LIMIT", 1)
    with connection(runtime, STRANGER) as one:
        assert served(one)
        with connection(runtime, BOB) as other:
            assert not served(other)
        assert ask("echo")


def test_who_does_not_take_the_answer_is_sent_away(
    runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "CONNECTIONS_OF_ONE", 1)
    monkeypatch.setattr(server, "CONNECTIONS_OF_ROOT", 1)
    monkeypatch.setattr(server, "SEND_TIMEOUT_S", 0.05)

    def is_answered() -> bool:
        with connection(runtime) as stream:
            return served(stream)

    with connection(runtime) as stuck:
        stuck.sendall(b'{"command": "say", "arguments": {"size": 8000000}}\n')
        assert stuck.recv(1) == b"{"
        wait_until(is_answered, "the place of who takes nothing", 10)


def test_who_takes_for_ever_to_ask_is_sent_away(
    runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "IDLE_TIMEOUT_S", 0.3)
    with connection(runtime) as stream, pytest.raises((BrokenPipeError, ConnectionResetError)):
        for _ in range(60):
            stream.sendall(b" ")
            time.sleep(0.05)


def test_a_question_is_given_up_with_its_client(tmp_path: Path) -> None:
    doings = Doings()
    with serving(tmp_path / SOCKET, doings.commands):
        with connection(tmp_path) as stream:
            stream.sendall(b'{"command": "ask"}\n{"command": "work"}\n')
            assert doings.heard.get(timeout=10) == "begun"
        assert doings.heard.get(timeout=10) == "given up"
        with pytest.raises(queue.Empty):  # and what else it has sent is not begun
            doings.heard.get(timeout=0.2)


def test_work_is_not_given_up_with_its_client(tmp_path: Path) -> None:
    doings = Doings()
    with serving(tmp_path / SOCKET, doings.commands):
        with connection(tmp_path) as stream:
            stream.sendall(b'{"command": "work"}\n')
            assert doings.heard.get(timeout=10) == "begun"
        client.call(tmp_path, "let-go", timeout_s=10)
        assert doings.heard.get(timeout=10) == "done"


def test_who_has_said_everything_still_gets_an_answer(tmp_path: Path) -> None:
    doings = Doings()
    with serving(tmp_path / SOCKET, doings.commands), connection(tmp_path) as stream:
        stream.sendall(b'{"command": "ask"}\n')
        stream.shutdown(socket.SHUT_WR)
        assert doings.heard.get(timeout=10) == "begun"
        client.call(tmp_path, "let-go", timeout_s=10)
        [answer] = everything(stream)
    assert answer == {"ok": True, "result": "done"}


def test_more_groups_than_fit_of_somebody_unknown(runtime: Path, ask: Ask) -> None:
    nobody = User(54321, 54322, tuple(range(50_000, 50_300)))
    with connection(runtime, nobody) as stream:
        stream.sendall(b'{"command": "echo"}\n')
        peer = decode_line(stream.makefile("rb").readline())["result"]["peer"]
    assert (peer["uid"], peer["groups"]) == (54321, [54322])
    assert ask("echo")


def test_a_defect_ends_no_more_than_its_connection(
    ask: Ask, caplog: pytest.LogCaptureFixture
) -> None:
    """One for which there are no words: the name of its file is a number."""
    with pytest.raises(ModamaError, match="internal error") as refused:
        ask("lose")
    assert refused.value.errno == errno.EIO
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert ask("echo")


@pytest.mark.parametrize(
    "arguments", [{"path": "a\0b"}, {"path": "\ud800"}, {"path": ["\ud800"]}, {"name": "a\udfff"}]
)
def test_what_is_no_text_is_refused(
    ask: Ask, arguments: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ModamaError) as refused:
        ask("echo", arguments)
    assert refused.value.errno == errno.EINVAL
    assert "\n" not in refused.value.message
    assert not caplog.records


def test_who_says_nothing_is_sent_away(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "IDLE_TIMEOUT_S", 0.0)
    with connection(runtime) as stream:
        assert everything(stream) == []


def test_a_new_server_takes_the_place_of_a_dead_one(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / SOCKET))
    with serving(tmp_path / SOCKET):
        assert client.call(tmp_path, "echo", timeout_s=10)


def test_without_a_server_nothing_is_mounted(tmp_path: Path) -> None:
    with pytest.raises(NotMounted, match="No such file"):
        client.call(tmp_path, "echo")
    with pytest.raises(NotMounted):
        client.call(tmp_path / "missing", "echo")


def test_a_server_that_does_not_answer(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / SOCKET))
        listener.listen()
        with pytest.raises(NotMounted, match="timed out"):
            client.call(tmp_path, "echo", timeout_s=0.01)


def test_requests_that_are_too_long_are_not_sent() -> None:
    with pytest.raises(InvalidRequest):
        encode_request(Request("echo", {"path": "x" * LINE_LIMIT_BYTES}))


def test_lines_are_read_as_they_were_written() -> None:
    request = Request("seal", {"path": "a\nb\udcff"})
    line = encode_request(request)
    assert line.count(b"\n") == 1
    assert decode_request(line) == request
    assert decode_reply(encode_result([1, None])) == [1, None]
    with pytest.raises(ModamaError, match="b: nothing") as refused:
        decode_reply(encode_error(OSError(errno.EBUSY, "nothing", b"b")))
    assert refused.value.errno == errno.EBUSY
