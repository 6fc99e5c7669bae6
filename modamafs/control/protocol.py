"""The control socket's lines: one JSON object a line, each way (``docs/design/contracts.md``).

The standard library's ``json``, as file names that are no UTF-8 (surrogateescape) pass it.
"""

from __future__ import annotations

import errno
import json
import os
from typing import Any, NamedTuple

from modamafs.errors import InvalidRequest, ModamaError

SOCKET = "control.sock"
LINE_LIMIT_BYTES = 65536
"""The longest request, with its newline."""


class Request(NamedTuple):
    """A command and its arguments."""

    command: str
    arguments: dict[str, Any]


def encode_request(request: Request) -> bytes:
    """One line; raises ``InvalidRequest`` when it is too long."""
    line = json.dumps(request._asdict()).encode() + b"\n"
    if len(line) > LINE_LIMIT_BYTES:
        raise InvalidRequest(f"the request is longer than {LINE_LIMIT_BYTES} bytes: shorten it")
    return line


def decode_request(line: bytes) -> Request:
    """Check a line that anybody may have sent; raises ``InvalidRequest``."""
    try:
        request = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"not a line of JSON: {error}") from error
    match request:
        case {"command": str(command), **rest} if rest.keys() <= {"arguments"}:
            arguments = rest.get("arguments", {})
            if isinstance(arguments, dict):
                return Request(command, arguments)
    raise InvalidRequest('not a request: send {"command": NAME, "arguments": {…}}')


def encode_result(result: Any) -> bytes:
    """The line that says that a command was done."""
    return json.dumps({"ok": True, "result": result}).encode() + b"\n"


def encode_error(error: ModamaError | OSError) -> bytes:
    """The line that says that a command was refused, or failed."""
    if isinstance(error, ModamaError):
        number, message = error.errno, error.message
    else:
        number = error.errno or errno.EIO
        message = str(error.strerror or error)
        if error.filename is not None:
            message = f"{os.fsdecode(error.filename)}: {message}"
    return json.dumps({"ok": False, "errno": number, "message": message}).encode() + b"\n"


def decode_reply(line: bytes) -> Any:
    """Return the result, or raise ``ModamaError`` with the errno and message of the other end."""
    reply = json.loads(line)
    if reply["ok"]:
        return reply["result"]
    error = ModamaError(reply["message"])
    error.errno = reply["errno"]
    raise error
