"""The kernel's part, played over a socketpair: messages as ``linux/fuse.h`` lays them out."""

from __future__ import annotations

import ast
import itertools
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from tests.native import sanitized

ROOT = Path(__file__).parents[2]
PATIENCE_S = 60

REQUEST = struct.Struct("=IIQQIIIHH")
REPLY = struct.Struct("=IiQ")
INIT_IN = struct.Struct("=IIIII44x")
INIT_OUT = struct.Struct("=IIIIHHIIHHII24x")
OPEN_IN = struct.Struct("=II")
CREATE_IN = struct.Struct("=IIII")
GETXATTR_IN = struct.Struct("=II")
SETXATTR_IN = struct.Struct("=IIII")
SETXATTR_COMPAT_IN = struct.Struct("=II")
IOCTL_IN = struct.Struct("=QIIQII")
FALLOCATE_IN = struct.Struct("=QQQII")
LSEEK_IN = struct.Struct("=QQII")
COPY_FILE_RANGE_IN = struct.Struct("=QQQQQQQ")
READ_IN = struct.Struct("=QQIIQII")
OPEN_OUT = struct.Struct("=QIi")
ATTR_OUT = struct.Struct("=QII" + "QQQQQQIIIIIIIIII")
GETATTR_IN = struct.Struct("=IIQ")
SETATTR_IN = struct.Struct("=I4xQQQQQQIIII4xII4x")
MKDIR_IN = struct.Struct("=II")
RELEASE_IN = struct.Struct("=QIIQ")
ENTRY_OUT = struct.Struct("=QQQQII" + "QQQQQQIIIIIIIIII")
SAVED_INIT = struct.Struct("=IIQ256s")

(
    LOOKUP, GETATTR, SETATTR, MKDIR, UNLINK, RMDIR, OPEN, RELEASE, SETXATTR, GETXATTR, INIT,
    OPENDIR, RELEASEDIR, CREATE, IOCTL, FALLOCATE, READDIRPLUS, LSEEK, COPY_FILE_RANGE, TMPFILE,
) = 1, 3, 4, 9, 10, 11, 14, 18, 21, 22, 26, 27, 29, 35, 39, 43, 44, 46, 47, 51  # fmt: skip

RESENT = 1 << 63
UID, GID, PID = 1234, 2345, 0x7FFF0001


class Reply(NamedTuple):
    """A message to the kernel."""

    error: int
    unique: int
    body: bytes
    length: int
    """What the header says; checked to be the message's."""


class InitReply(NamedTuple):
    """``struct fuse_init_out``."""

    major: int
    minor: int
    max_readahead: int
    flags: int
    max_background: int
    congestion_threshold: int
    max_write: int
    time_gran: int
    max_pages: int
    map_alignment: int
    flags2: int
    max_stack_depth: int

    @property
    def all_flags(self) -> int:
        return self.flags | self.flags2 << 32


def init_body(offer: int, *, minor: int = 45) -> bytes:
    """``struct fuse_init_in`` of a kernel that offers these flags."""
    return INIT_IN.pack(7, minor, 131072, offer & 0xFFFFFFFF, offer >> 32)


class Kernel:
    """One end of the socketpair, and the child process at the other."""

    def __init__(
        self,
        directory: Path,
        *,
        wanted: int = 0,
        depth: int = 1,
        save: bool = True,
        trick: str = "",
        first: int = 2,
    ) -> None:
        self.init_path = directory / "init.bin"
        self._uniques = itertools.count(first, 2)
        self._log = directory / "filesystem.log"
        self._reports = directory
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(PATIENCE_S)
        with theirs, self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    sys.executable, "-m", "tests.native.filesystem",
                    str(theirs.fileno()), str(self.init_path) if save else "", str(wanted),
                    str(depth), trick,
                ],
                pass_fds=[theirs.fileno()], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log,
                stderr=log, env=sanitized.environment(directory) if sanitized.in_use() else None,
            )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._socket.close()
        try:
            status = self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise
        log = self.log()
        reports = [path.read_text(errors="replace") for path in self._reports.glob("report.*")]
        if kind is not None:
            print(log, *reports, sep="\n")
            return
        assert not reports, "\n".join(reports)
        # 5, EIO: libfuse's word for a read of 0 bytes, which /dev/fuse never gives
        assert status in (0, 5, -9), f"exit status {status}\n{log}"

    def log(self) -> str:
        """What the child has written."""
        return self._log.read_text(errors="replace")

    def kill(self) -> None:
        """SIGKILL, as a worker dies."""
        self._process.kill()
        self._process.wait()

    def wait(self) -> int:
        """The child's exit status."""
        return self._process.wait(PATIENCE_S)

    def send(self, opcode: int, body: bytes, node: int = 1, *, unique: int | None = None) -> int:
        """Send a request; its ``unique``."""
        if unique is None:
            unique = next(self._uniques)
        header = REQUEST.pack(REQUEST.size + len(body), opcode, unique, node, UID, GID, PID, 0, 0)
        self._socket.send(header + body)
        return unique

    def receive(self) -> Reply:
        """The next message from the file system."""
        message = self._socket.recv(1 << 20)
        assert message, f"the file system has gone\n{self.log()}"
        length, error, unique = REPLY.unpack_from(message)
        assert length == len(message)
        return Reply(error, unique, message[REPLY.size :], length)

    def call(self, opcode: int, body: bytes, node: int = 1, *, unique: int | None = None) -> Reply:
        """Send a request and take its reply."""
        sent = self.send(opcode, body, node, unique=unique)
        reply = self.receive()
        assert reply.unique == sent
        return reply

    def init(self, offer: int, *, minor: int = 45) -> InitReply:
        """The first request of every mount. What was agreed on is written down afterwards."""
        reply = self.call(INIT, init_body(offer, minor=minor))
        self.query(b"attached")
        assert reply.error == 0
        assert reply.length == 80
        return InitReply(*INIT_OUT.unpack(reply.body))

    def query(self, name: bytes, *, unique: int | None = None) -> Any:
        """What the file system says of its channel; see ``filesystem.FileSystem.getxattr``."""
        body = GETXATTR_IN.pack(1 << 16, 0) + name + b"\0"
        reply = self.call(GETXATTR, body, unique=unique)
        assert reply.error == 0, os.strerror(-reply.error)
        return ast.literal_eval(reply.body.decode())
