"""Real servers, each for one's own: in a directory of its own, on an unprivileged port of this
machine, gone when the block ends. For ``modamafs export demo``, for trying a configuration out, and
for the tests.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from modamafs.errors import Busy, ModamaError, NotInstalled, NotMounted
from modamafs.exports import nfs, samba, webdav
from modamafs.exports.share import Share

PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
PATIENCE_S = 30.0
"""For a server to start, or to stop."""
ADDRESS = "127.0.0.1"


def program(name: str, packages: str) -> str:
    """The path of a server's program. Raises NotInstalled."""
    found = shutil.which(name, path=PATH)
    if found is None:
        raise NotInstalled(f"{name} is not installed: 'apt install {packages}'")
    return found


def free_port() -> int:
    """One that nobody listens on."""
    with socket.socket() as one:
        one.bind((ADDRESS, 0))
        return int(one.getsockname()[1])


class Server:
    """A process in a group of its own, that listens on ``port``."""

    name = ""

    def __init__(self, directory: Path, port: int = 0) -> None:
        """``directory``: made if need be; what the server keeps, and its log."""
        self.directory = directory
        self.port = port or free_port()
        self.environment: dict[str, str] = {}
        """What the server's environment has more than this process's."""
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        """What it said."""
        return self.directory / f"{self.name}.log"

    def _prepare(self) -> list[str]:
        """Write the configuration; returns the command."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Return when it answers. Raises Busy (EBUSY) for a port that is in use, ModamaError."""
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((ADDRESS, self.port))
            except OSError as error:
                raise Busy(
                    f"port {self.port} of {ADDRESS} is in use: name another one for {self.name}"
                ) from error
        self.directory.mkdir(parents=True, exist_ok=True)
        command = self._prepare()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd="/",
                env=os.environ | self.environment,
            )
        try:
            self._wait_until_it_answers()
        except BaseException:
            self.stop()
            raise

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection((ADDRESS, self.port), 1):
            return True
        return False

    def _wait_until_it_answers(self) -> None:
        assert self.process is not None
        deadline_s = time.monotonic() + PATIENCE_S
        while not self._answers():
            if self.process.poll() is not None:
                raise ModamaError(f"{self.name} does not start: {self._last_words()}")
            if time.monotonic() > deadline_s:
                raise ModamaError(f"{self.name} does not answer: {self._last_words()}")
            time.sleep(0.02)

    def _last_words(self) -> str:
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return f"{lines[-1] if lines else 'it said nothing'} (see {self.log})"

    def stop(self) -> None:
        """End it and all of its children; it may be gone already."""
        if self.process is None:
            return
        process, self.process = self.process, None
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(PATIENCE_S / 3)

    def kill(self) -> None:
        """As a crash does; ``start`` starts it again."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


class Samba(Server):
    """smbd with its own passwords."""

    name = "smbd"

    def __init__(
        self,
        directory: Path,
        shares: Sequence[Share],
        users: Mapping[str, str],
        port: int = 0,
        *,
        extra: str = "",
    ) -> None:
        """``users``: names that the system knows, and their passwords here; ``extra``: more of
        ``smb.conf``, for the last share."""
        super().__init__(directory, port)
        self.shares = shares
        self.users = users
        self.extra = extra

    @property
    def configuration(self) -> Path:
        """Its ``smb.conf``."""
        return self.directory / "smb.conf"

    def _prepare(self) -> list[str]:
        smbd = program("smbd", samba.PACKAGES)
        smbpasswd = program("smbpasswd", "samba-common-bin")
        self.directory.chmod(0o755)
        for name in samba.DIRECTORIES:
            (self.directory / name).mkdir(exist_ok=True)
        self.configuration.write_text(
            samba.private(self.shares, self.directory, self.port) + self.extra
        )
        for user, password in self.users.items():
            done = subprocess.run(
                [smbpasswd, "-c", str(self.configuration), "-a", "-s", user],
                input=f"{password}\n{password}\n",
                text=True,
                capture_output=True,
                check=False,
                env=os.environ | self.environment,
            )
            if done.returncode:
                raise ModamaError(f"smbpasswd refuses {user}: {done.stderr.strip()}")
        return [
            smbd, "--foreground", "--no-process-group", f"--configfile={self.configuration}",
        ]  # fmt: skip


class Ganesha(Server):
    """NFS-Ganesha."""

    name = "ganesha"

    def __init__(
        self,
        directory: Path,
        shares: Sequence[Share],
        port: int = 0,
        *,
        squash: str = "Root_Squash",
        version_3: bool = False,
    ) -> None:
        """``version_3``: as well; that takes rpcbind, which is not started here."""
        super().__init__(directory, port)
        self.shares = shares
        self.squash = squash
        self.version_3 = version_3

    def _prepare(self) -> list[str]:
        ganesha = program("ganesha.nfsd", nfs.PACKAGES)
        for share in self.shares:  # it opens what is there once, and keeps to that
            if not os.path.ismount(share.mountpoint):
                raise NotMounted(f"nothing is mounted on {share.mountpoint}: mount it first")
        (self.directory / "recovery").mkdir(exist_ok=True)
        configuration = self.directory / "ganesha.conf"
        configuration.write_text(
            nfs.private(
                self.shares,
                self.directory,
                self.port,
                version_3=self.version_3,
                squash=self.squash,
            )
        )
        return [
            ganesha, "-F", "-f", str(configuration), "-L", str(self.log),
            "-p", str(self.directory / "ganesha.pid"),
        ]  # fmt: skip


class Identity(NamedTuple):
    """Who a process is to the file system."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()


class WebDav(Server):
    """WsgiDAV, acting as the user who starts it, or as another."""

    name = "wsgidav"

    def __init__(
        self,
        directory: Path,
        share: Share,
        users: Mapping[str, str],
        port: int = 0,
        *,
        acts_as: Identity | None = None,
    ) -> None:
        """``users``: names and passwords, which say nothing of whom the server acts as."""
        super().__init__(directory, port)
        self.share = share
        self.users = users
        self.acts_as = acts_as

    def _prepare(self) -> list[str]:
        configuration = self.directory / "wsgidav.json"
        configuration.touch(0o600)
        configuration.write_text(
            json.dumps(webdav.configuration(self.share, self.port, dict(self.users)))
        )
        command = [sys.executable, "-m", "wsgidav.server.server_cli", "--config"]
        command.append(str(configuration))
        if self.acts_as is not None:
            uid, gid, groups = self.acts_as
            os.chown(configuration, uid, gid)
            command = [
                program("setpriv", "util-linux"), f"--reuid={uid}", f"--regid={gid}",
                f"--groups={','.join(map(str, groups))}" if groups else "--clear-groups",
                *command,
            ]  # fmt: skip
        return command
