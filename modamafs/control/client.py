"""The other end of the control socket: blocking, for the command line and for scripts."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from pathlib import Path
from typing import Any

from modamafs.control.protocol import SOCKET, Request, decode_reply, encode_request
from modamafs.errors import NotMounted


def call(
    runtime: Path,
    command: str,
    arguments: dict[str, Any] | None = None,
    *,
    timeout_s: float | None = None,
) -> Any:
    """Have the worker of the mount with this runtime directory carry out a command.

    Raises ``ModamaError`` when the command was refused, and ``NotMounted`` when no worker answers
    (``timeout_s`` is for each step of connecting, sending and receiving; None waits for ever).
    """
    request = encode_request(Request(command, arguments or {}))
    try:
        line = _exchange(runtime, request, timeout_s)
    except OSError as error:
        raise NotMounted(
            f"the mount's daemon does not answer ({error.strerror or error}): "
            "see 'modamafs status', and the log beside its socket"
        ) from error
    try:
        return decode_reply(line)
    except (json.JSONDecodeError, LookupError, TypeError) as error:
        raise NotMounted(
            "the mount's daemon ended in the middle of its answer: try again"
        ) from error


def _exchange(runtime: Path, request: bytes, timeout_s: float | None) -> bytes:
    directory = os.open(runtime, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout_s)
            # Socket addresses are short (108 bytes), paths are not.
            connection.connect(f"/proc/self/fd/{directory}/{SOCKET}")
            with contextlib.suppress(BrokenPipeError):  # it answered without asking: too many
                connection.sendall(request)
            with connection.makefile("rb") as lines:
                return lines.readline()
    finally:
        os.close(directory)
