"""The worker's end of the control socket.

Anybody may connect; who asks is what the kernel says (``SO_PEERCRED``), and each command decides.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import pwd
import select
import socket
import struct
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import trio

from modamafs.control.protocol import (
    LINE_LIMIT_BYTES,
    decode_request,
    encode_error,
    encode_result,
)
from modamafs.errors import InvalidRequest, ModamaError
from modamafs.model import Caller

LOG = logging.getLogger(__name__)

Command = Callable[[dict[str, Any], Caller], Awaitable[Any]]
"""Takes the arguments and who asks; returns what JSON can say, or raises ``ModamaError``.

Bytes are a line that says it already.
"""


@dataclass(frozen=True, slots=True)
class Question:
    """A command that changes nothing: it is given up when who asked has gone."""

    command: Command

    def __call__(self, arguments: dict[str, Any], peer: Caller) -> Awaitable[Any]:
        """As the command."""
        return self.command(arguments, peer)


SO_PEERGROUPS = 59
GETSOCKOPT_LIMIT_BYTES = 1024
"""As much as Python takes."""
CONNECTIONS_LIMIT = 64
"""So that nobody can use up the worker's descriptors."""
CONNECTIONS_OF_ONE = 16
"""So that nobody can keep the others out."""
CONNECTIONS_OF_ROOT = 16
"""On top: root is never kept out by others."""
IDLE_TIMEOUT_S = 60.0
"""For a whole request to come."""
SEND_TIMEOUT_S = 60.0
"""For a whole answer to be taken."""


BUSY = OSError(errno.EAGAIN, "too many connections: try again later")
DEFECT = OSError(errno.EIO, "internal error: see the daemon's log")
GONE = object()
"""The result of what nobody waits for any more."""


class Connections:
    """How many there are, of whom."""

    def __init__(self) -> None:
        self._of: Counter[int] = Counter()

    def has_room(self, uid: int) -> bool:
        """Whether there may be another one of this user's."""
        if uid == 0:
            return self._of[0] < CONNECTIONS_OF_ROOT
        others = self._of.total() - self._of[0]
        return self._of[uid] < CONNECTIONS_OF_ONE and others < CONNECTIONS_LIMIT

    @contextmanager
    def one_of(self, uid: int) -> Iterator[None]:
        """One more, for as long as the block lasts."""
        self._of[uid] += 1
        try:
            yield
        finally:
            self._of[uid] -= 1
            if not self._of[uid]:
                del self._of[uid]


async def serve(
    socket_path: Path,
    commands: Mapping[str, Command],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer requests at ``socket_path`` (which is replaced) until cancelled."""
    listener = trio.SocketListener(trio.socket.from_stdlib_socket(_listen(socket_path)))
    connections = Connections()

    async def handle(stream: trio.SocketStream) -> None:
        async with stream:
            try:
                peer = _caller(stream.socket)
                if connections.has_room(peer.uid):
                    with connections.one_of(peer.uid):  # until before it is closed
                        await _converse(stream, commands, peer)
                else:
                    await _send(stream, encode_error(BUSY))
            except trio.BrokenResourceError as error:
                LOG.debug("client-left error=%s", error)
            except Exception:  # nobody else's connection ends with it
                LOG.exception("connection-failed")
                with suppress(trio.BrokenResourceError):
                    await _send(stream, encode_error(DEFECT))

    async with listener, trio.open_nursery() as nursery:
        await nursery.start(trio.serve_listeners, handle, [listener])
        task_status.started()


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # Socket addresses are short (108 bytes), paths are not. Renamed when it listens, so that
        # clients never find nothing.
        temporary = f"/proc/self/fd/{directory}/{os.getpid()}.sock"
        Path(temporary).unlink(missing_ok=True)
        listener.bind(temporary)
        Path(temporary).chmod(0o666)
        listener.listen()
        Path(temporary).rename(f"/proc/self/fd/{directory}/{path.name}")
    except OSError:
        listener.close()
        raise
    finally:
        os.close(directory)
    return listener


async def _converse(
    stream: trio.SocketStream, commands: Mapping[str, Command], peer: Caller
) -> None:
    try:
        async with aclosing(_lines(stream)) as lines:
            async for line in lines:
                answer = await _answer(line, commands, peer, stream.socket)
                if answer is None or not await _send(stream, answer):
                    return
    except InvalidRequest as error:  # a line without an end: what follows can't be understood
        await _send(stream, encode_error(error))


async def _send(stream: trio.SocketStream, answer: bytes | bytearray) -> bool:
    """Whether it was taken in time."""
    with trio.move_on_after(SEND_TIMEOUT_S):
        await stream.send_all(answer)
        return True
    LOG.info("answer-not-taken size_bytes=%d", len(answer))
    return False


def _caller(connection: trio.socket.SocketType) -> Caller:
    size_bytes = struct.calcsize("3i")
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size_bytes)
    pid, uid, gid = struct.unpack("3i", credentials)
    return Caller(uid=uid, gid=gid, pid=pid, umask=0o077, groups=_groups(connection, uid, gid))


def _groups(connection: trio.socket.SocketType, uid: int, gid: int) -> tuple[int, ...]:
    """The supplementary groups that the peer had when it connected."""
    try:
        packed = connection.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, GETSOCKOPT_LIMIT_BYTES)
    except OSError as error:
        if error.errno != errno.ERANGE:
            raise
        # More than fit: those that the databases give the user, if they know of one.
        try:
            return tuple(os.getgrouplist(pwd.getpwuid(uid).pw_name, gid))
        except KeyError:
            return (gid,)
    return struct.unpack(f"{len(packed) // 4}I", packed)


async def _lines(stream: trio.SocketStream) -> AsyncGenerator[bytes, None]:
    buffer = bytearray()
    while True:
        with trio.move_on_after(IDLE_TIMEOUT_S):
            while b"\n" not in buffer:
                if len(buffer) >= LINE_LIMIT_BYTES:
                    raise InvalidRequest(f"the line is longer than {LINE_LIMIT_BYTES} bytes")
                piece = await stream.receive_some(LINE_LIMIT_BYTES - len(buffer))
                if not piece:
                    return
                buffer += piece
        line, newline, buffer = buffer.partition(b"\n")
        if not newline:
            return
        yield bytes(line)


async def _answer(
    line: bytes, commands: Mapping[str, Command], peer: Caller, client: trio.socket.SocketType
) -> bytes | bytearray | None:
    """None: it was a question, and the client has gone."""
    name = "?"
    try:
        request = decode_request(line)
        name = request.command
        if name not in commands:
            known = ", ".join(sorted(commands))
            raise InvalidRequest(f"no such command: {name!r}; there is {known}")  # noqa: TRY301
        _check_text(request.arguments)
        command = commands[name]
        work = partial(command, request.arguments, peer)
        if isinstance(command, Question):
            result = await _unless_gone(client, work)
            if result is GONE:
                LOG.debug("question-given-up command=%s uid=%d", name, peer.uid)
                return None
        else:
            result = await work()
        return result if isinstance(result, bytes | bytearray) else encode_result(result)
    except (ModamaError, OSError) as error:
        LOG.debug("command-refused command=%s uid=%d error=%s", name, peer.uid, error)
        return encode_error(error)
    except Exception:
        LOG.exception("command-failed command=%s uid=%d", name, peer.uid)
        return encode_error(DEFECT)


def _check_text(arguments: dict[str, Any]) -> None:
    """InvalidRequest (EINVAL): half a character somewhere, or a path that no file can have."""
    try:
        json.dumps(arguments, ensure_ascii=False).encode("utf-8", "surrogateescape")
    except (UnicodeEncodeError, RecursionError):
        raise InvalidRequest("the arguments are no text") from None
    path = arguments.get("path")
    if isinstance(path, str) and "\0" in path:
        raise InvalidRequest("a path has no NUL character in it")


async def _unless_gone(client: trio.socket.SocketType, work: Callable[[], Awaitable[Any]]) -> Any:
    """What comes of some work, which is cancelled when the client goes: then ``GONE``."""
    result: Any = GONE
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_cancel_when_gone, client, nursery.cancel_scope)
        try:
            result = await work()
        except Exception as error:  # noqa: BLE001 (not as one of a group)
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return result


async def _cancel_when_gone(client: trio.socket.SocketType, scope: trio.CancelScope) -> None:
    """Who has only said everything (``SHUT_WR``) still listens: that is no end."""
    with suppress(OSError), select.epoll() as watching:
        watching.register(client.fileno(), 0)  # EPOLLHUP is told unasked
        await trio.lowlevel.wait_readable(watching.fileno())
        scope.cancel()
