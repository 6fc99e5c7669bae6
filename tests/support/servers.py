"""Real servers for the tests, and the people that they know."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from modamafs.exports.servers import PATIENCE_S, Ganesha, program
from tests.support.users import ALICE, BOB, STRANGER, TEAM, User

PASSWORD = "correct horse battery staple"
PEOPLE: Mapping[str, User] = {"alice": ALICE, "bob": BOB, "stranger": STRANGER}
"""Alice and Bob are in the same team."""
_CLONE_NEWNET = 0x40000000

_libc = ctypes.CDLL(None, use_errno=True)


def accounts(directory: Path) -> dict[str, str]:
    """The environment of a process that knows ``PEOPLE``, though the system does not.

    With libnss-wrapper, as Samba tests itself: nobody is added to /etc/passwd.
    """
    passwd, group = directory / "passwd", directory / "group"
    passwd.write_text(
        Path("/etc/passwd").read_text()
        + "".join(
            f"{name}:x:{user.uid}:{user.gid}::/nonexistent:/bin/false\n"
            for name, user in PEOPLE.items()
        )
    )
    members = ",".join(name for name, user in PEOPLE.items() if TEAM in user.groups)
    group.write_text(
        Path("/etc/group").read_text()
        + "".join(f"{name}:x:{user.gid}:\n" for name, user in PEOPLE.items())
        + f"team:x:{TEAM}:{members}\n"
    )
    return {
        "LD_PRELOAD": "libnss_wrapper.so",
        "NSS_WRAPPER_PASSWD": str(passwd),
        "NSS_WRAPPER_GROUP": str(group),
    }


class Ganesha3(Ganesha):
    """With NFSv3, and so with rpcbind: in a network of its own, that ``inside`` enters.

    When it is killed and started again, it is in the same network.
    """

    _network: int | None = None

    def _prepare(self) -> list[str]:
        self.version_3 = True
        command = super()._prepare()
        rpcbind = program("rpcbind", "rpcbind")
        # Without another address than 127.0.0.1, getaddrinfo(3) finds not even that. rpcbind keeps
        # its socket in /run. Umounts reach this mount namespace, too.
        script = (
            "ip link set lo up && ip address replace 10.255.255.1/32 dev lo && "
            f"mount -t tmpfs tmpfs /run && {{ {rpcbind} -f & }} && "
            'while [ ! -S /run/rpcbind.sock ]; do sleep 0.02; done && exec "$@"'
        )
        network = ["unshare", "--net"]
        if self._network is not None:
            network = ["nsenter", f"--net=/proc/{os.getpid()}/fd/{self._network}"]
        return [
            *network, "unshare", "--mount", "--propagation", "slave", "sh", "-c", script, "sh",
            *command,
        ]  # fmt: skip

    def start(self) -> None:
        """See ``Server``."""
        super().start()
        assert self.process is not None
        if self._network is None:
            self._network = os.open(f"/proc/{self.process.pid}/ns/net", os.O_RDONLY)

    def stop(self) -> None:
        """See ``Server``; the network goes, too."""
        if self.process is not None:
            # Before rpcbind, which it tells at its end; otherwise it waits three seconds for that.
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(PATIENCE_S / 3)
        super().stop()
        if self._network is not None:
            os.close(self._network)
            self._network = None

    def _answers(self) -> bool:
        """It listens before rpcbind knows where its mount protocol (program 100005) is."""
        ask = [program("rpcinfo", "rpcbind"), "-T", "tcp", "127.0.0.1", "100005", "3"]
        with contextlib.suppress(OSError), self.inside():
            return (
                super()._answers()
                and subprocess.run(ask, capture_output=True, check=False).returncode == 0
            )
        return False

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """What this thread connects to in the block is in the server's network."""
        assert self.process is not None
        with (
            open("/proc/thread-self/ns/net") as outside,
            open(f"/proc/{self.process.pid}/ns/net") as network,
        ):
            _set_network(network.fileno())
            try:
                yield
            finally:
                _set_network(outside.fileno())


def _set_network(fd: int) -> None:
    if _libc.setns(fd, _CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
