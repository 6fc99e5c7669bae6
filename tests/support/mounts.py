"""A real mount in processes of its own, for as long as a block lasts."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import string
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.support.command import call
from tests.support.syscalls import force_unmount

SUSPICIOUS = re.compile(r"\b(WARNING|ERROR|CRITICAL)\b|Traceback \(most recent call last\)")


def modamafs(*arguments: str | Path, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """Run the command and say how it ended."""
    return call([command()[0], *map(str, arguments)], timeout)


def installed(*arguments: str | Path, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """The same, started as people do; ``modamafs`` is several times as fast."""
    return subprocess.run(
        [*command(), *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )


def command() -> list[str]:
    """How ``modamafs`` is started: the one that is installed beside this Python."""
    installed = Path(sys.executable).with_name("modamafs")
    return [str(installed)] if installed.exists() else [sys.executable, "-m", "modamafs_cli.main"]


def runtime_directory(mountpoint: Path) -> Path:
    """Where the processes of this mount keep what outlives them."""
    plain = string.ascii_letters + string.digits + ":_."
    escaped = "".join(
        "-" if c == "/" else c if c in plain else "".join(rf"\x{b:02x}" for b in os.fsencode(c))
        for c in str(mountpoint).strip("/")
    )
    return Path(os.environ.get("MODAMAFS_RUNTIME_DIR", "/run/modamafs")) / escaped


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 30) -> None:
    """Return as soon as ``condition()`` holds; fail when it still does not after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:g} s in vain: {what}")
        time.sleep(0.005)


class Mount:
    """``modamafs mount STORE MOUNTPOINT OPTIONS``, unmounted at the end of the block.

    The daemon's log must hold no warning and no error but those that a test expects.
    """

    def __init__(self, store: Path, mountpoint: Path, *options: str) -> None:
        self.store = store
        self.root = mountpoint
        self.options = options
        self.runtime = runtime_directory(mountpoint)
        self._log_fd: int | None = None
        self._expected: list[str] = []
        self.is_unmounted = False
        """Set by a test that has unmounted it itself."""

    def __enter__(self) -> Self:
        self.root.mkdir(exist_ok=True)
        done = modamafs("mount", self.store, self.root, *self.options)
        if done.returncode:
            log = self.runtime / "daemon.log"
            raise RuntimeError(
                f"modamafs mount: exit status {done.returncode}\n{done.stderr}"
                + (log.read_text(errors="replace")[-4000:] if log.exists() else "")
            )
        with contextlib.suppress(FileNotFoundError):
            # Open, so that it can be read when the supervisor has tidied up as well.
            self._log_fd = os.open(self.runtime / "daemon.log", os.O_RDONLY | os.O_CLOEXEC)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        processes = self._processes()
        failure = None if self.is_unmounted else self._unmount()
        while force_unmount(self.root):
            failure = failure or "modamafs umount succeeded and left it mounted"
        for pid in processes if failure else ():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        unexpected = self.unexpected_log_lines()
        if self._log_fd is not None:
            os.close(self._log_fd)
        if error is None:
            assert failure is None, failure
            assert not unexpected, "\n".join(["in the daemon's log:", *unexpected])

    def _unmount(self) -> str | None:
        """Returns what went wrong."""
        try:
            done = modamafs("umount", self.root)
        except subprocess.TimeoutExpired:
            return "modamafs umount does not return"
        return f"modamafs umount: {done.stderr}" if done.returncode else None

    def status(self) -> dict[str, Any]:
        """What ``modamafs status --json`` says of this mount."""
        done = modamafs("status", "--json", self.root)
        assert done.returncode == 0, done.stderr
        [report] = json.loads(done.stdout)
        assert isinstance(report, dict)
        return report

    def worker_pid(self) -> int:
        """The process that answers the kernel."""
        return int(self.status()["worker_pid"])

    def requests(self, name: str) -> int:
        """How many requests of this kind the daemon has been sent so far."""
        return int(self.status()["requests"].get(name, 0))

    def kill_worker(self) -> None:
        """SIGKILL it, and return when another one answers."""
        pid = self.worker_pid()
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: self.worker_pid() not in (pid, 0), "another worker")

    @contextlib.contextmanager
    def expected_in_log(self, *patterns: str) -> Iterator[None]:
        """Warnings and errors that match are no failure, when they are logged in this block."""
        self.fail_on_unexpected_log_lines()
        self._expected += patterns
        try:
            yield
            self.fail_on_unexpected_log_lines()
        finally:
            del self._expected[-len(patterns) :]

    def fail_on_unexpected_log_lines(self) -> None:
        """Fail when something was logged since the last call that nobody expected."""
        unexpected = self.unexpected_log_lines()
        assert not unexpected, "\n".join(["in the daemon's log:", *unexpected])

    def unexpected_log_lines(self) -> list[str]:
        """New suspicious lines of the daemon's log, each with the lines that belong to it."""
        if self._log_fd is None:
            return []
        new = b""
        while piece := os.read(self._log_fd, 1 << 20):
            new += piece
        lines = new.decode(errors="replace").splitlines()
        suspicious = [
            index
            for index, line in enumerate(lines)
            if SUSPICIOUS.search(line)
            and not any(re.search(pattern, line) for pattern in self._expected)
        ]
        return lines[suspicious[0] :][:60] if suspicious else []

    def _processes(self) -> list[int]:
        with contextlib.suppress(OSError, ValueError):
            known = json.loads((self.runtime / "supervisor.json").read_text())
            return [int(known[key]) for key in ("supervisor_pid", "worker_pid") if known.get(key)]
        return []
