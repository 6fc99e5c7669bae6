"""The worker's side of the process that reads: what it is given, and how its answer is taken."""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import json
import logging
import os
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from base64 import b64decode
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from modamafs.catalog import FileMetadata, Measured
from modamafs.extraction.process import (
    ANSWER_LIMIT_BYTES,
    FILES_LIMIT,
    FIRST_FILE_FD,
    PROBLEM_LIMIT,
    Reply,
    Request,
)
from modamafs.extraction.readers import checked_preview, checked_values, one_line
from modamafs.extraction.sandbox import NOBODY
from modamafs.extraction.wanted import COMMAND, extension_of, known

log = logging.getLogger(__name__)

START_S = 120.0
MARGIN_S = 15.0
"""For the process to say itself that a file has taken too long; then it is ended itself."""
LARGEST_REPLY_BYTES = 4 * ANSWER_LIMIT_BYTES
NAMES_LIMIT = 100_000
"""Entries of a directory that are looked through for what belongs to a file."""

_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Of reading one file."""

    wall_s: float = 60.0
    cpu_s: int = 60
    memory_bytes: int = 2 << 30
    files: int = 500
    """After so many a new process is started: whatever the readers may have leaked is gone."""


class NotRegular(OSError):
    """Neither followed nor opened: a symbolic link, a FIFO, a device."""


class ReaderProcess:
    """Starts the process when it is needed; one file at a time. Blocking; not for several threads.

    ``close`` may be called from another thread: it ends what is being read.
    """

    def __init__(self, limits: Limits | None = None, workdir: Path | None = None) -> None:
        """``workdir``: an empty directory of one's own for links to what is read; made if None."""
        self.limits = limits or Limits()
        self._workdir = workdir
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._directory: Path | None = None
        self._left = 0
        self._closed = False

    def __enter__(self) -> ReaderProcess:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """Of the process that runs; None: none does."""
        return self._process.pid if self._process else None

    def close(self) -> None:
        """End it; nothing can be read any more."""
        self._closed = True
        self._stop()

    def read(self, session_fd: int, path: bytes) -> FileMetadata | None:
        """Read a file of a session. None: no reader takes it.

        What can't be read is no error: its ``problem`` says why. NotRegular; OSError: ENOENT and
        whatever else opening it gives; EAGAIN: somebody has a lease on it.
        """
        if extension_of(path) not in known():
            return None
        fds, names = open_with_beside(session_fd, path)
        try:
            status = os.fstat(fds[0])
            if status.st_size == 0:
                told: dict[str, Any] = {"problem": "empty: there are no bytes in it"}
            else:
                told = self._ask(fds, names)
        finally:
            for fd in fds:
                os.close(fd)
        return FileMetadata(
            path=os.fsdecode(path),
            size_bytes=status.st_size,
            mtime_ns=status.st_mtime_ns,
            **told,
        )

    def _ask(self, fds: Sequence[int], names: Sequence[bytes]) -> dict[str, Any]:
        for _ in range(2):  # whatever has ended the process need not be the file
            try:
                return _understand(self._converse(fds, names), self.limits)
            except TimeoutError:
                self._stop()
                return {"problem": f"took longer than {self.limits.wall_s:g} s"}
            except (ConnectionError, ValueError, msgspec.ValidationError) as error:
                self._stop()
                level = logging.INFO if self._is_over() else logging.WARNING
                log.log(level, "reading-process-lost error=%s", error)
        return {"problem": "the process that reads it ends"}

    def _is_over(self) -> bool:
        """Whether nobody wants to know any more: the mount is gone, and with it its directory."""
        return self._closed or (self._workdir is not None and not self._workdir.parent.exists())

    def _converse(self, fds: Sequence[int], names: Sequence[bytes]) -> Reply:
        """TimeoutError; ConnectionError, ValueError: the process is lost."""
        if self._left == 0:
            self._stop()
        if self._process is None:
            self._start()
        self._left -= 1
        directory, control = self._directory, self._control  # ``close`` may take them away
        if directory is None or control is None:
            raise ConnectionError("it was ended")
        request = Request(
            directory=str(directory),
            name=os.fsdecode(names[0]),
            wall_s=self.limits.wall_s,
            cpu_s=self.limits.cpu_s,
            memory_bytes=self.limits.memory_bytes,
        )
        line = json.dumps(msgspec.to_builtins(request)).encode() + b"\n"
        links = [os.path.join(os.fsencode(directory), name) for name in names]
        try:
            for number, link in enumerate(links):
                os.symlink(b"/proc/self/fd/%d" % (FIRST_FILE_FD + number), link)
            control.settimeout(MARGIN_S)
            sent = socket.send_fds(control, [line], fds)
            control.sendall(line[sent:])
            said = self._line(self.limits.wall_s + MARGIN_S)
        except OSError as error:
            if isinstance(error, TimeoutError | ConnectionError):
                raise
            raise ConnectionError(str(error)) from error
        finally:
            for link in links:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(link)
        return msgspec.convert(json.loads(said), Reply)

    def _line(self, wait_s: float) -> bytes:
        control = self._control
        if control is None:
            raise ConnectionError("it was ended")
        end_s = time.monotonic() + wait_s
        line = bytearray()
        while not line.endswith(b"\n"):
            control.settimeout(max(end_s - time.monotonic(), 0.001))
            piece = control.recv(1 << 16)
            if not piece or len(line) > LARGEST_REPLY_BYTES:
                raise ConnectionError("no answer")
            line += piece
        return bytes(line)

    def _start(self) -> None:
        if self._closed:
            raise OSError(errno.ECANCELED, "the process that reads was ended")
        self._directory = self._new_directory()
        ours, theirs = socket.socketpair()
        self._control = ours
        with theirs:
            self._process = subprocess.Popen(
                COMMAND,
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                env=_environment(),
                cwd="/",
                start_new_session=True,
            )
        self._left = self.limits.files
        try:
            self._line(START_S)
        except (OSError, TimeoutError) as error:
            self._stop()
            raise OSError(f"the process that reads instrument files does not start: {error}") from (
                error
            )

    def _new_directory(self) -> Path:
        if self._workdir is None:
            directory = Path(tempfile.mkdtemp(prefix="modamafs-reading-"))
        else:
            shutil.rmtree(self._workdir, ignore_errors=True)
            self._workdir.mkdir(mode=0o700, parents=True)
            directory = self._workdir
        if os.geteuid() == 0:
            os.chown(directory, NOBODY, NOBODY)
            directory.chmod(0o500)
        return directory

    def _stop(self) -> None:
        process, self._process = self._process, None
        control, self._control = self._control, None
        directory, self._directory = self._directory, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # and so the first one of its namespace
            process.wait()
        if control is not None:
            with contextlib.suppress(OSError):
                control.shutdown(socket.SHUT_RDWR)  # whoever waits for an answer is woken
            control.close()
        if directory is not None:
            shutil.rmtree(directory, ignore_errors=True)


def _environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PYTHONPATH", "PATH") if name in os.environ}
    one = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "TIFFFILE_NUM_THREADS",
           "NUMEXPR_NUM_THREADS")  # fmt: skip
    return {
        **kept,
        **dict.fromkeys(one, "1"),
        "HOME": "/nonexistent",
        "LANG": "C.UTF-8",
        "TZ": "UTC",
        "PYTHONDONTWRITEBYTECODE": "1",
        "HDF5_USE_FILE_LOCKING": "FALSE",
    }


# ---- its answer ----------------------------------------------------------------------------------


class _Values(msgspec.Struct):
    """The first line."""

    reader: str = ""
    problem: str | None = None
    values: dict[str, Measured] = {}


def _understand(reply: Reply, limits: Limits) -> dict[str, Any]:
    """What is kept of an answer: it is only as trustworthy as the file."""
    lines = reply.answer.split("\n")
    told = None
    if len(lines) > 1:  # the first one is whole
        try:
            told = msgspec.json.decode(lines[0], type=_Values)
        except (ValueError, msgspec.MsgspecError):
            return {"problem": "the reader's answer can't be understood"}
    if told is None:
        return {"problem": _ending(reply, limits)}
    reader = one_line(told.reader, 100)
    if told.problem is not None:
        return {"reader": reader, "problem": one_line(told.problem, PROBLEM_LIMIT) or "unreadable"}
    picture = None
    if len(lines) > 2:
        with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
            picture = checked_preview(b64decode(json.loads(lines[1])["preview_png"]))
    return {"reader": reader, "values": checked_values(told.values), "preview_png": picture}


def _ending(reply: Reply, limits: Limits) -> str:
    """Why there is no answer."""
    if reply.over == "time":
        return f"took longer than {limits.wall_s:g} s"
    if reply.over == "answer":
        return "the reader says too much"
    if reply.status == -signal.SIGXCPU:
        return f"needed more than {limits.cpu_s} s of processor time"
    if reply.status < 0:
        return f"the reader crashed ({signal.Signals(-reply.status).name})"
    return "the reader ended without an answer"


# ---- the files -----------------------------------------------------------------------------------


def open_beneath(session_fd: int, path: bytes) -> int:
    """A regular file of a session, open for reading; no symbolic link is followed on the way.

    NotRegular; OSError: ENOENT, ELOOP …, EAGAIN (a lease that would have to be broken).
    """
    directory, name = _open_parent(session_fd, path)
    try:
        return _open_regular(directory, name)
    finally:
        os.close(directory)


def open_with_beside(session_fd: int, path: bytes) -> tuple[list[int], list[bytes]]:
    """The file, and those of its directory that belong to it: descriptors and names."""
    directory, name = _open_parent(session_fd, path)
    fds: list[int] = []
    names: list[bytes] = []
    try:
        fds.append(_open_regular(directory, name))
        names.append(name)
        for other in _beside(directory, name):
            with contextlib.suppress(OSError):
                fds.append(_open_regular(directory, other))
                names.append(other)
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise
    finally:
        os.close(directory)
    return fds, names


def _open_parent(session_fd: int, path: bytes) -> tuple[int, bytes]:
    *above, name = path.split(b"/")
    if b".." in above or name in (b"", b".", b"..") or path.startswith(b"/"):
        raise NotRegular(f"{os.fsdecode(path)} is no path of a file in the session")
    directory = os.dup(session_fd)
    for part in above:
        try:
            below = os.open(part, _DIRECTORY, dir_fd=directory)
        finally:
            os.close(directory)
        directory = below
    return directory, name


def _open_regular(directory: int, name: bytes) -> int:
    """It is looked at before it is opened: to open a device does something, a FIFO blocks."""
    seen = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    try:
        if not stat.S_ISREG(os.fstat(seen).st_mode):
            raise NotRegular(f"{os.fsdecode(name)} is no regular file")
        return os.open(
            b"/proc/self/fd/%d" % seen, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        )
    finally:
        os.close(seen)


def _beside(directory: int, name: bytes) -> list[bytes]:
    patterns = known().get(extension_of(name), ())
    if not patterns:
        return []
    stem = os.path.splitext(os.fsdecode(name))[0]
    prefix = stem.rpartition("_")[0] or stem
    wanted = [
        pattern.format(stem=_literal(stem), prefix=_literal(prefix)).lower() for pattern in patterns
    ]
    found = []
    with os.scandir(f"/proc/self/fd/{directory}") as entries:
        for number, entry in enumerate(entries):
            if number == NAMES_LIMIT:
                break
            if any(fnmatch.fnmatchcase(entry.name.lower(), pattern) for pattern in wanted):
                found.append(os.fsencode(entry.name))
    return sorted(set(found) - {name})[: FILES_LIMIT - 1]


def _literal(text: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in text)
