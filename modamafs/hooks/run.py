"""One run of a command: limited in time, its output kept short, and all that it has started ended.

A *keeper* does that, a fork of this process that waits for nothing but the command: it ends the run
also when this process is killed. What a command starts and leaves behind comes to the keeper
(PR_SET_CHILD_SUBREAPER), whatever session it has made for itself, and is ended with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import pwd
import resource
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence

import msgspec

log = logging.getLogger(__name__)

OUTPUT_BYTES = 2000
"""Of what a command writes, the last ones are kept."""
END_S = 5.0
"""How long it is tried to end what was started; what waits for a disk can't be killed."""
DESCRIPTORS = 1024
SEARCHED = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PR_SET_CHILD_SUBREAPER = 36


class Run(msgspec.Struct, frozen=True):
    """How a run has ended."""

    status: int | None
    """Exit status, or minus the signal; None: it was never started."""
    seconds: float = 0.0
    output: bytes = b""
    timed_out: bool = False
    error: str = ""
    """Why it could not be started, or what is left of it."""

    @property
    def ok(self) -> bool:
        """Whether it has done what it was to do, as far as anybody can know."""
        return self.status == 0 and not self.timed_out and not self.error


def run(
    command: Sequence[bytes],
    environment: Mapping[bytes, bytes],
    user: str | None,
    timeout_s: float,
    given_up_fd: int,
) -> Run | None:
    """Run a command, and wait for its end.

    None: ``given_up_fd`` has become readable meanwhile; who then ends this process ends the run.
    """
    reader, writer = os.pipe()
    alive, ours = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(ours)
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, 0)
            os.dup2(null, 1)
            kept = _Keeper(command, environment, user, timeout_s, alive).keep()
            os.write(writer, msgspec.json.encode(kept))
        except Exception:
            log.exception("keeper-failed")
        finally:
            os._exit(0)
    os.close(writer)
    os.close(alive)
    try:
        answer = b""
        poller = select.poll()
        poller.register(reader, select.POLLIN)
        poller.register(given_up_fd, select.POLLIN)
        while True:
            ready = {fd for fd, _ in poller.poll()}
            if given_up_fd in ready:
                return None
            piece = os.read(reader, 65536)
            if not piece:
                break
            answer += piece
        os.waitpid(pid, 0)
    finally:
        os.close(reader)
        os.close(ours)
    if answer:
        return msgspec.json.decode(answer, type=Run)
    return Run(None, error="the process that watches over it has died")


class _Keeper:
    """See above; a process of its own."""

    def __init__(
        self,
        command: Sequence[bytes],
        environment: Mapping[bytes, bytes],
        user: str | None,
        timeout_s: float,
        alive_fd: int,
    ) -> None:
        self._command = command
        self._environment = environment
        self._user = user
        self._timeout_s = timeout_s
        self._alive_fd = alive_fd
        self._output = b""
        self._timed_out = False

    def keep(self) -> Run:
        """Until nothing is left of it."""
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_CHILD_SUBREAPER, ctypes.c_ulong(1), 0, 0, 0):
            number = ctypes.get_errno()
            return Run(None, error=f"no subreaper: {os.strerror(number)}")
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(DESCRIPTORS, most), most))
        began_s = time.monotonic()
        try:
            process = self._start()
        except OSError as error:
            return Run(None, error=f"can't be started: {error.strerror}")
        except KeyError:
            return Run(None, error=f"can't be started: there is no user {self._user!r}")
        assert process.stdout
        self._wait(process, began_s + self._timeout_s)
        with contextlib.suppress(ProcessLookupError):  # its group at once: nobody can fork away
            os.killpg(process.pid, signal.SIGKILL)
        try:
            status = process.wait(END_S)
        except subprocess.TimeoutExpired:
            status = None
        is_left = not _end_children()
        while self._read(process.stdout.fileno()):
            pass
        seconds = round(time.monotonic() - began_s, 3)
        left = "some of its processes can't be killed" if is_left else ""
        return Run(status, seconds, self._output, self._timed_out, left)

    def _start(self) -> subprocess.Popen[bytes]:
        """OSError, KeyError: no such user."""
        account = pwd.getpwuid(0) if self._user is None else pwd.getpwnam(self._user)
        environment = {
            b"PATH": SEARCHED.encode(),
            b"LANG": b"C.UTF-8",
            b"HOME": os.fsencode(account.pw_dir),
            b"SHELL": b"/bin/sh",
            b"USER": os.fsencode(account.pw_name),
            b"LOGNAME": os.fsencode(account.pw_name),
        }
        process = subprocess.Popen(
            self._command,
            env={**environment, **self._environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd="/",
            umask=0o022,
            start_new_session=True,
            user=account.pw_uid,
            group=account.pw_gid,
            extra_groups=os.getgrouplist(account.pw_name, account.pw_gid),
        )
        assert process.stdout
        os.set_blocking(process.stdout.fileno(), False)
        return process

    def _wait(self, process: subprocess.Popen[bytes], deadline_s: float) -> None:
        """Until it ends, its time is over, or nobody wants it any more."""
        assert process.stdout
        out = process.stdout.fileno()
        ended = os.pidfd_open(process.pid)
        poller = select.poll()
        for fd in (ended, out, self._alive_fd):
            poller.register(fd, select.POLLIN)
        try:
            while True:
                left_s = deadline_s - time.monotonic()
                if left_s <= 0:
                    self._timed_out = True
                    return
                ready = {fd for fd, _ in poller.poll(left_s * 1000 + 1)}
                if ended in ready or self._alive_fd in ready:
                    return
                if out in ready and not self._read(out):
                    poller.unregister(out)  # it has closed it, and goes on
        finally:
            os.close(ended)

    def _read(self, out: int) -> bool:
        """Take a piece of what was written. False: there is none."""
        try:
            piece = os.read(out, 1 << 16)
        except BlockingIOError:
            return False
        self._output = (self._output + piece)[-OUTPUT_BYTES:]
        return bool(piece)


def _end_children() -> bool:
    """End all children, and theirs, which are ours by then. Whether none is left."""
    deadline_s = time.monotonic() + END_S
    own = f"/proc/self/task/{os.getpid()}/children"
    while True:
        with open(own) as file:
            for pid in file.read().split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return True
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.005)
