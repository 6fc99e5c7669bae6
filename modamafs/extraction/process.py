"""The process that reads instrument files: ``python -P -m modamafs.extraction.process``.

It starts once for many files, as loading the readers takes long; each file is read by a fork of it,
which is locked up further: it can read that one file, those beside it that belong to it, and the
installed programs, and do nothing else. So one file can do nothing to what is said of the next.

Standard input is a socket (``AF_UNIX``, ``SOCK_STREAM``); its end is the end of this process. After
a line ``{"ready": true}``, each request is a line (``Request``) with the files' descriptors,
and is answered by a line (``Reply``). With ``--list`` it only prints what its readers take.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import socket
import sys
import time
import traceback
from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

import modamafs
from modamafs.extraction import sandbox
from modamafs.extraction.readers import (
    Found,
    Reader,
    checked_preview,
    checked_values,
    one_line,
    plugins,
)

NICENESS = 19
ANSWER_FD, FIRST_FILE_FD = 99, 100
"""In the fork; the directory that it is given has links to ``/proc/self/fd/100`` and so on."""
FILES_LIMIT = 32
DESCRIPTORS = 256
ADDRESS_EXTRA_BYTES = 4 << 30
"""Of address space, besides twice the files' size: mapping a file takes no memory."""
ANSWER_LIMIT_BYTES = 1 << 20
END_S = 1.0
PROBLEM_LIMIT = 300


class Request(msgspec.Struct, kw_only=True):
    """One file to be read."""

    directory: str
    """Where the links are."""
    name: str
    """Of the file in it (surrogateescape)."""
    wall_s: float
    cpu_s: int
    memory_bytes: int


class Reply(msgspec.Struct, kw_only=True):
    """How the fork has ended, and what it has said."""

    answer: str
    status: int
    """As ``os.waitstatus_to_exitcode``: negative for a signal."""
    over: str = ""
    """``time`` or ``answer``: why it was ended."""


def main(arguments: Sequence[str]) -> int:
    """The process's whole life."""
    listing = list(arguments) == ["--list"]
    control = None if listing else socket.socket(fileno=os.dup(0))
    nothing = os.open("/dev/null", os.O_RDWR)  # later nothing can be opened for writing
    os.dup2(nothing, 0)
    if control is not None:
        os.dup2(nothing, 1)
    os.nice(NICENESS)
    _contain(control)
    readers = _load_readers()
    if control is None:
        print(json.dumps(_extensions(readers)))
        return 0
    for reader in readers:
        load = getattr(reader, "load", None)
        if load is not None:
            load()
    control.sendall(b'{"ready": true}\n')
    serve(control, readers)
    return 0


def serve(control: socket.socket, readers: Sequence[Reader]) -> None:
    """Answer requests until there is nobody who asks."""
    while True:
        data, fds, _, _ = socket.recv_fds(control, 1 << 16, FILES_LIMIT)
        while data and not data.endswith(b"\n"):
            more = control.recv(1 << 16)
            data = data + more if more else b""
        if not data:
            return
        request = msgspec.convert(json.loads(data), Request)
        reply = _in_a_fork(control, readers, request, fds)
        for fd in fds:
            os.close(fd)
        control.sendall(json.dumps(msgspec.to_builtins(reply)).encode() + b"\n")


def _contain(control: socket.socket | None) -> None:
    """Become a process that can only read; as root, one in a namespace of its own, too."""
    sandbox.be_first_to_go()
    has_landlock = sandbox.landlock_version() > 0
    if os.geteuid() == 0:
        sandbox.leave_network_and_processes()
        child = os.fork()
        if child:
            if control is not None:
                control.close()
            _, status = os.waitpid(child, 0)
            os._exit(0 if status == 0 else 1)
        sandbox.become_nobody(read_everything=has_landlock)
        sandbox.end_with_parent()
    sandbox.forbid_new_privileges()
    if has_landlock:
        sandbox.allow_reading_only([Path("/")])


def _load_readers() -> list[Reader]:
    found = []
    for point in plugins():
        try:
            reader: Reader = point.load()
            _ = reader.name, reader.version, frozenset(reader.extensions), reader.read
        except Exception:  # noqa: BLE001 - a broken plug-in is no reason to do without the others
            traceback.print_exc()
        else:
            found.append(reader)
    return found


def _extensions(readers: Sequence[Reader]) -> dict[str, list[str]]:
    """What is taken, and what belongs to it."""
    known: dict[str, list[str]] = {}
    for reader in readers:
        beside = getattr(reader, "beside", {})
        for extension in reader.extensions:
            known.setdefault(extension, []).extend(beside.get(extension, ()))
    return known


# ---- the fork ------------------------------------------------------------------------------------


def _in_a_fork(
    control: socket.socket, readers: Sequence[Reader], request: Request, fds: Sequence[int]
) -> Reply:
    answer, write_end = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        try:
            _read_locked_up(readers, request, fds, write_end)
        finally:
            os._exit(1)
    os.close(write_end)
    try:
        said, over = _listen(control, pid, answer, time.monotonic() + request.wall_s)
    finally:
        os.close(answer)
    _, status = os.waitpid(pid, 0)
    if os.getpid() == 1:
        _end_all_others()
    text = said.decode(errors="replace")
    return Reply(answer=text, status=os.waitstatus_to_exitcode(status), over=over)


def _listen(control: socket.socket, pid: int, answer: int, end_s: float) -> tuple[bytes, str]:
    """What it says, until it ends or is ended."""
    said = bytearray()
    over = ""
    ended = os.pidfd_open(pid)
    poll = select.poll()
    poll.register(answer, select.POLLIN)
    poll.register(ended, select.POLLIN)
    poll.register(control, select.POLLHUP)
    try:
        while True:
            left_s = end_s - time.monotonic()
            ready = dict(poll.poll(max(0, int(left_s * 1000))))
            if control.fileno() in ready:
                os.kill(pid, signal.SIGKILL)
                os._exit(0)
            if answer in ready:
                piece = os.read(answer, 1 << 16)
                said += piece
                if not piece:  # it is about to end, or else it is ended
                    poll.unregister(answer)
                    end_s = min(end_s, time.monotonic() + END_S)
            elif ended in ready:
                return bytes(said), over
            if len(said) > ANSWER_LIMIT_BYTES:
                over = "answer"
            elif not ready:
                over = "time"
            if over:
                return bytes(said[:ANSWER_LIMIT_BYTES]), over
    finally:
        os.kill(pid, signal.SIGKILL)  # it is still ours: nobody has waited for it
        os.close(ended)


def _end_all_others() -> None:
    """As the first process of its namespace: nothing that a reader has started outlives it."""
    try:
        os.kill(-1, signal.SIGKILL)
        while True:
            os.waitpid(-1, 0)
    except (ProcessLookupError, ChildProcessError):
        pass


def _read_locked_up(
    readers: Sequence[Reader], request: Request, fds: Sequence[int], write_end: int
) -> None:
    os.dup2(1, 2)
    os.dup2(write_end, ANSWER_FD)
    for number, fd in enumerate(fds):
        os.dup2(fd, FIRST_FILE_FD + number)
    files = range(FIRST_FILE_FD, FIRST_FILE_FD + len(fds))
    os.closerange(3, ANSWER_FD)
    os.closerange(files.stop, 1 << 16)
    if sandbox.landlock_version() > 0:
        sandbox.allow_reading_only([*_programs(), Path(request.directory)], files)
    size_bytes = sum(os.fstat(fd).st_size for fd in files)
    sandbox.limit(
        data_bytes=request.memory_bytes,
        address_bytes=request.memory_bytes + ADDRESS_EXTRA_BYTES + 2 * size_bytes,
        cpu_s=request.cpu_s,
        descriptors=DESCRIPTORS,
    )
    sandbox.refuse_calls()
    path = Path(request.directory, request.name)
    found = None
    said: dict[str, Any] = {"problem": "no reader takes it"}
    for reader in readers:
        if path.suffix.lower() not in reader.extensions:
            continue
        try:
            found = reader.read(path)
            values = checked_values(found.values)
        except Exception as error:  # noqa: BLE001 - whatever a reader raises is its answer
            if "reader" not in said:
                said = {"problem": _describe(error, request)}
            found = None
        else:
            said = {"values": msgspec.to_builtins(values)}
        said["reader"] = f"{reader.name} {reader.version}"
        if found is not None:
            break
    _say(said)
    picture = _preview(found) if found else None
    if picture is not None:
        _say({"preview_png": b64encode(picture).decode()})
    os._exit(0)


def _preview(found: Found) -> bytes | None:
    try:
        return checked_preview(found.preview() if callable(found.preview) else found.preview)
    except Exception:  # noqa: BLE001 - then there is none
        return None


def _say(told: dict[str, Any]) -> None:
    line = json.dumps(told).encode() + b"\n"
    while line:
        line = line[os.write(ANSWER_FD, line) :]


def _describe(error: BaseException, request: Request) -> str:
    """Why, in one line for people; without our own directory."""
    if isinstance(error, MemoryError):
        return f"needed more than {_size(request.memory_bytes)} of memory"
    text = str(error).replace(request.directory + "/", "") or type(error).__name__
    text = one_line(text, PROBLEM_LIMIT)
    is_short = isinstance(error, EOFError) or any(word in text.lower() for word in _CUT_OFF)
    if text.startswith("truncated"):
        return text
    return f"truncated: {text}" if is_short else f"can't be read: {text}"


_CUT_OFF = (
    "truncated",
    "unpack requires",
    "unpack_from requires",
    "greater than file size",
    "buffer is smaller than",
    "end of file",
    "eof",
)


def _size(size_bytes: int) -> str:
    if size_bytes % (1 << 30) == 0:
        return f"{size_bytes >> 30} GiB"
    return f"{size_bytes >> 20} MiB"


def _programs() -> list[Path]:
    """Where what may still be imported lies."""
    assert modamafs.__file__ is not None
    places = [*sys.path, sys.prefix, sys.base_prefix, str(Path(modamafs.__file__).parent)]
    places += ["/usr", "/lib", "/lib64", "/dev/null", "/dev/urandom"]
    return [Path(place) for place in dict.fromkeys(places) if place.rstrip("/")]


if __name__ == "__main__":
    importlib.invalidate_caches()
    sys.exit(main(sys.argv[1:]))
