"""The worker's end of the control socket.

Anybody may connect; who asks is what the kernel says (``SO_PEERCRED``), and each command decides.
"""

from __future__ import annotations

import errno
import logging
import os
import pwd
import socket
import struct
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
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
"""Takes the arguments and who asks; returns what JSON can say, or raises ``ModamaError``."""

SO_PEERGROUPS = 59
GETSOCKOPT_LIMIT_BYTES = 1024
"""As much as Python takes."""
CONNECTIONS_LIMIT = 64
"""So that nobody can use up the worker's descriptors."""
IDLE_TIMEOUT_S = 60.0


async def serve(
    socket_path: Path,
    commands: Mapping[str, Command],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer requests at ``socket_path`` (which is replaced) until cancelled."""
    listener = trio.SocketListener(trio.socket.from_stdlib_socket(_listen(socket_path)))
    connections = 0

    async def handle(stream: trio.SocketStream) -> None:
        nonlocal connections
        async with stream:
            connections += 1
            try:
                if connections > CONNECTIONS_LIMIT:
                    busy = OSError(errno.EAGAIN, "too many connections: try again later")
                    await stream.send_all(encode_error(busy))
                else:
                    await _converse(stream, commands)
            except trio.BrokenResourceError as error:
                LOG.debug("client-left error=%s", error)
            finally:
                connections -= 1  # before it is closed: who sees that may come again

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


async def _converse(stream: trio.SocketStream, commands: Mapping[str, Command]) -> None:
    peer = _caller(stream.socket)
    try:
        async with aclosing(_lines(stream)) as lines:
            async for line in lines:
                await stream.send_all(await _answer(line, commands, peer))
    except InvalidRequest as error:  # a line without an end: what follows can't be understood
        await stream.send_all(encode_error(error))


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
        # More than fit: those that the databases give the user.
        return tuple(os.getgrouplist(pwd.getpwuid(uid).pw_name, gid))
    return struct.unpack(f"{len(packed) // 4}I", packed)


async def _lines(stream: trio.SocketStream) -> AsyncGenerator[bytes, None]:
    buffer = bytearray()
    while True:
        line, newline, rest = buffer.partition(b"\n")
        if newline:
            buffer = rest
            yield bytes(line)
            continue
        if len(buffer) >= LINE_LIMIT_BYTES:
            raise InvalidRequest(f"the line is longer than {LINE_LIMIT_BYTES} bytes")
        with trio.move_on_after(IDLE_TIMEOUT_S):
            piece = await stream.receive_some(LINE_LIMIT_BYTES - len(buffer))
            if piece:
                buffer += piece
                continue
        return


async def _answer(line: bytes, commands: Mapping[str, Command], peer: Caller) -> bytes:
    name = "?"
    try:
        request = decode_request(line)
        name = request.command
        if name not in commands:
            known = ", ".join(sorted(commands))
            raise InvalidRequest(f"no such command: {name!r}; there is {known}")  # noqa: TRY301
        return encode_result(await commands[name](request.arguments, peer))
    except (ModamaError, OSError) as error:
        LOG.debug("command-refused command=%s uid=%d error=%s", name, peer.uid, error)
        return encode_error(error)
    except Exception:
        LOG.exception("command-failed command=%s uid=%d", name, peer.uid)
        return encode_error(OSError(errno.EIO, "internal error: see the daemon's log"))
