"""The systems under comparison: each shows one backing directory at one mount point.

A `System` mounts, says whether it still lives, and unmounts for certain: politely first, then by
aborting the FUSE connection and a lazy unmount. Mounting needs root.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

MOUNT_TIMEOUT_S = 30.0
INDEX_TIMEOUT_S = 60.0
UNMOUNT_TIMEOUT_S = 10.0
POLL_S = 0.005
HERE = Path(__file__).resolve().parent


class SystemFailedError(Exception):
    """A system could not be mounted, unmounted or asked."""


@contextmanager
def undisturbed() -> Iterator[None]:
    """Put Ctrl-C and SIGTERM off until the end of the block: nothing stays half mounted."""
    arrived: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda got, _: arrived.append(got)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
        if arrived:
            raise KeyboardInterrupt


def run(*command: str | Path, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
    """Run a helper command and keep what it says; never raises for its exit status.

    It has a session of its own: a Ctrl-C on the terminal is not for it.
    """
    return subprocess.run(
        [str(word) for word in command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout_s,
        start_new_session=True,
    )


def mount_device(mountpoint: Path) -> int | None:
    """The minor device number of what is mounted there, None when nothing is.

    Read from mountinfo, so that a dead mount is found too and no request is sent to anybody.
    """
    wanted = str(mountpoint)
    found = None
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        path = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), fields[4])
        if path == wanted:
            found = int(fields[2].split(":")[1])
    return found


class System(ABC):
    """One way to see `store`; `root` is where."""

    name: ClassVar[str]

    def __init__(self, store: Path, mountpoint: Path) -> None:
        self.store = store
        self.mountpoint = mountpoint

    @property
    def root(self) -> Path:
        """Where the store's entries are seen."""
        return self.mountpoint

    @classmethod
    def missing(cls) -> str | None:
        """Why this system cannot run here, or None."""
        return None

    @classmethod
    def version(cls) -> str:
        """What runs, for the record."""
        return ""

    @abstractmethod
    def mount(self) -> None:
        """Return when the mount answers.

        Raises `SystemFailedError` otherwise; `unmount` has to be called then as well.
        """

    @abstractmethod
    def alive(self) -> bool:
        """Whether the daemon serves its mount."""

    @abstractmethod
    def unmount(self) -> None:
        """Unmount and end the daemon. Never raises for a mount that is gone or dead."""

    def requests(self) -> dict[str, int] | None:
        """How many requests of each kind the daemon has seen, where it can say so."""
        return None

    @contextmanager
    def mounted(self) -> Iterator[None]:
        """Mounted inside the block, unmounted after it, also after Ctrl-C."""
        try:
            with undisturbed():
                self.mount()
            yield
        finally:
            with undisturbed():
                self.unmount()

    def detach(self) -> None:
        """Unmount whatever is at the mount point: umount, then abort the connection and `-l`."""
        deadline = time.monotonic() + UNMOUNT_TIMEOUT_S / 2
        while (device := mount_device(self.mountpoint)) is not None:
            if time.monotonic() > deadline:
                with suppress(OSError):
                    Path(f"/sys/fs/fuse/connections/{device}/abort").write_text("1")
                run("umount", "-l", self.mountpoint)
                time.sleep(0.1)
            elif run("umount", self.mountpoint).returncode != 0:
                time.sleep(0.1)


class Bare(System):
    """The backing directory itself: ratio 1."""

    name = "bare"

    @property
    def root(self) -> Path:
        return self.store

    def mount(self) -> None:
        pass

    def alive(self) -> bool:
        return True

    def unmount(self) -> None:
        pass


class Foreground(System):
    """A daemon that stays in the foreground, in a session of its own (Ctrl-C is not for it)."""

    process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def command(self) -> list[str]:
        """What to run."""

    def mount(self) -> None:
        log = self.mountpoint.with_name(f"{self.name}.log")
        with log.open("wb") as stream:
            self.process = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                start_new_session=True,
            )
        deadline = time.monotonic() + MOUNT_TIMEOUT_S
        while mount_device(self.mountpoint) is None:
            if self.process.poll() is not None or time.monotonic() > deadline:
                said = log.read_text(errors="replace").strip().splitlines()
                raise SystemFailedError(f"{self.name} does not mount: {' '.join(said[-1:])}")
            time.sleep(POLL_S)
        try:
            self.mountpoint.stat()
        except OSError as error:
            raise SystemFailedError(f"{self.name} does not answer: {error}") from error

    def alive(self) -> bool:
        if self.process is None:
            return False
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(0.2)  # a daemon on its way out is a dead one
        return self.process.returncode is None

    def unmount(self) -> None:
        self.detach()
        if self.process is None:
            return
        for end in (self.process.poll, self.process.terminate, self.process.kill):
            end()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(UNMOUNT_TIMEOUT_S / 2)
                break


class Bindfs(Foreground):
    """bindfs, its defaults (C, libfuse's path-based interface)."""

    name = "bindfs"

    @classmethod
    def missing(cls) -> str | None:
        return None if shutil.which("bindfs") else "apt install bindfs"

    @classmethod
    def version(cls) -> str:
        return run("bindfs", "--version").stdout.strip().removeprefix("bindfs ")

    def command(self) -> list[str]:
        return ["bindfs", "-f", str(self.store), str(self.mountpoint)]


class Mergerfs(Foreground):
    """mergerfs with one branch, its defaults (C++, a libfuse of its own, several threads)."""

    name = "mergerfs"

    @classmethod
    def missing(cls) -> str | None:
        return None if shutil.which("mergerfs") else "apt install mergerfs"

    @classmethod
    def version(cls) -> str:
        return run("mergerfs", "--version").stdout.partition("\n")[0].rpartition(" ")[2]

    def command(self) -> list[str]:
        return ["mergerfs", "-f", str(self.store), str(self.mountpoint)]


class Pyfuse3(Foreground):
    """A plain passthrough in Python, as pyfuse3's documentation shows one."""

    name = "pyfuse3"

    @classmethod
    def missing(cls) -> str | None:
        try:
            metadata.version("pyfuse3")
        except metadata.PackageNotFoundError:
            return "pip install pyfuse3"
        return None

    @classmethod
    def version(cls) -> str:
        return metadata.version("pyfuse3")

    def command(self) -> list[str]:
        script = HERE / "pyfuse3_passthrough.py"
        return [sys.executable, "-P", str(script), str(self.store), str(self.mountpoint)]


class Modamafs(System):
    """This project, its defaults: `modamafs mount STORE MOUNTPOINT`."""

    name = "modamafs"

    @staticmethod
    def command(*words: str | Path, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run the command line of this interpreter's modamafs."""
        script = Path(sys.executable).with_name("modamafs")
        start = [script] if script.exists() else [sys.executable, "-m", "modamafs_cli.main"]
        return run(*start, *words, timeout_s=timeout_s)

    @classmethod
    def missing(cls) -> str | None:
        try:
            done = cls.command("mount", "--help")
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
        if done.returncode == 0:
            return None
        return f"`modamafs mount` does not work: {(done.stderr.strip() or '?').splitlines()[-1]}"

    @classmethod
    def version(cls) -> str:
        with suppress(metadata.PackageNotFoundError):
            return metadata.version("modamafs")
        return "not installed"

    def mount(self) -> None:
        try:
            done = self.command("mount", self.store, self.mountpoint, timeout_s=MOUNT_TIMEOUT_S)
        except subprocess.TimeoutExpired as error:
            raise SystemFailedError("modamafs mount does not return") from error
        if done.returncode != 0 or mount_device(self.mountpoint) is None:
            said = done.stderr.strip().splitlines()
            raise SystemFailedError(f"modamafs does not mount: {' '.join(said[-1:])}")
        self.wait_for_index()

    def wait_for_index(self) -> None:
        """The store is watched, and its index written: as it is but for a moment after mounting."""
        deadline_s = time.monotonic() + INDEX_TIMEOUT_S
        while time.monotonic() < deadline_s:
            status = self.status()
            if status.get("watching") and status.get("index", {}).get("state") == "ok":
                return
            time.sleep(0.1)
        raise SystemFailedError("modamafs does not watch the store, or has no index")

    def alive(self) -> bool:
        try:
            os.statvfs(self.mountpoint)
        except OSError:
            return False
        return True

    def unmount(self) -> None:
        if mount_device(self.mountpoint) is not None:
            with suppress(subprocess.TimeoutExpired):
                self.command("umount", self.mountpoint, timeout_s=UNMOUNT_TIMEOUT_S)
        self.detach()
        # What the guard leaves behind when the mount did not end by `modamafs umount`.
        run("chattr", "-i", self.mountpoint)
        self.mountpoint.chmod(0o755)

    def status(self) -> dict[str, Any]:
        """What `modamafs status --json` says of this mount."""
        try:
            done = self.command("status", "--json", self.mountpoint)
        except subprocess.TimeoutExpired as error:
            raise SystemFailedError("modamafs status does not return") from error
        try:
            mounts: list[dict[str, Any]] = json.loads(done.stdout)
        except ValueError as error:
            said = " ".join(done.stderr.strip().splitlines()[-1:])
            raise SystemFailedError(f"modamafs status: exit {done.returncode}: {said}") from error
        for mount in mounts:
            if mount.get("mountpoint") == str(self.mountpoint):
                return mount
        raise SystemFailedError(f"modamafs status: does not list {self.mountpoint}")

    def worker_pid(self) -> int:
        """The process that answers requests now."""
        return int(self.status()["worker_pid"])

    def requests(self) -> dict[str, int] | None:
        counts = self.status().get("requests")
        return {str(kind): int(count) for kind, count in counts.items()} if counts else None


SYSTEMS: dict[str, type[System]] = {
    system.name: system for system in (Bare, Bindfs, Mergerfs, Pyfuse3, Modamafs)
}
"""In the order of the table's columns."""
