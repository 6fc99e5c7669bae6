"""Directories are read here, by inode number, in processes of their own.

``Volume.scan`` keeps Python's lock while the kernel reads attributes from the disk, so readers are
processes: the watch is never held up by a cold disk, several directories are on the way at a time,
and a second core is used. A reader gets inode number and generation of a directory on its standard
input, and answers with frames, each a length and what ``marshal`` makes of a Frame.
"""

from __future__ import annotations

import contextlib
import errno
import marshal
import os
import select
import stat
import struct
import subprocess
import sys
from collections.abc import Iterator
from typing import NamedTuple

from modamafs.model import RECORDS, Attributes, is_own_name
from modamafs.store import _volume

KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "character",
    stat.S_IFBLK: "block",
}
FRAME_BYTES = 65536
"""Of what getdents64(2) gives at a time: about 2000 entries."""
READERS = 3
AHEAD = 4
"""Directories that each reader is asked for at a time."""
REQUEST = struct.Struct("=QQ")
LENGTH = struct.Struct("=Q")
FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOATIME

Name = str | bytes
"""As in the index: text, or the bytes of what is no UTF-8."""


class Seen(NamedTuple):
    """What an entry of a directory is, as in the columns of ``nodes``."""

    name: Name
    ino: int
    generation: int
    kind: str
    mode: int
    uid: int
    gid: int
    nlink: int
    size_bytes: int
    mtime_ns: int
    ctime_ns: int
    btime_ns: int


class Frame(NamedTuple):
    """Some entries of a directory; all of them come in one frame, or several in a row."""

    ino: int
    generation: int
    error: int
    """errno of why it can't be read (any further); ESTALE: it is no more."""
    is_first: bool
    is_last: bool
    has_records: bool
    """There is something called .modama in it."""
    entries: list[Seen]


def as_name(raw: bytes) -> Name:
    """A name as the index has it."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


LAST_NS = 2**63 - 1
"""In the year 2262: SQLite has no larger integers."""


def as_bytes(name: Name) -> bytes:
    """A name as the store has it."""
    return name.encode() if isinstance(name, str) else name


def seen(name: Name, found: Attributes) -> Seen:
    """An entry's columns."""
    mode = found.mode
    return Seen(
        name,
        found.ino,
        found.generation,
        KINDS[stat.S_IFMT(mode)],
        mode & 0o7777,
        found.uid,
        found.gid,
        found.nlink,
        found.size_bytes,
        min(found.mtime_ns, LAST_NS),
        min(found.ctime_ns, LAST_NS),
        min(found.btime_ns, LAST_NS),
    )


def look(volume: _volume.Volume, dir_fd: int, name: bytes) -> Seen | None:
    """What an entry is just now; None: there is none, or another file system is mounted there."""
    try:
        found = volume.lookup(dir_fd, name)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE, errno.ENAMETOOLONG):
            return None
        raise
    if found is None or found.dev != volume.dev:
        return None
    return seen(as_name(name), found)


def open_directory(volume: _volume.Volume, ino: int, generation: int, flags: int) -> int:
    """A descriptor of a directory. OSError: ESTALE where it is no more, or another one's now."""
    try:
        fd = volume.open(ino, flags)
    except OSError as error:
        if error.errno == errno.ENOTDIR:
            raise OSError(errno.ESTALE, "no directory any more") from None
        raise
    try:
        found = volume.attributes(fd)
    except BaseException:
        os.close(fd)
        raise
    if found.generation != generation or not stat.S_ISDIR(found.mode):
        os.close(fd)
        raise OSError(errno.ESTALE, "another inode")
    return fd


def frames(volume: _volume.Volume, ino: int, generation: int) -> Iterator[Frame]:
    """All of a directory, but what belongs to modamafs and what is mounted in it. Never raises."""
    frame = Frame(ino, generation, 0, True, False, False, [])
    is_begun = False
    try:
        fd = open_directory(volume, ino, generation, FLAGS)
        try:
            frame = frame._replace(has_records=volume.lookup(fd, RECORDS) is not None)
            at = 0
            while batch := volume.scan(fd, at, FRAME_BYTES):
                if is_begun:
                    yield frame
                    frame = frame._replace(is_first=False)
                is_begun = True
                at = batch[-1][1]
                frame = frame._replace(entries=_entries(volume.dev, batch))
        finally:
            os.close(fd)
    except OSError as error:
        frame = frame._replace(error=error.errno or errno.EIO, entries=[])
    yield frame._replace(is_last=True)


def _entries(dev: int, batch: list[tuple[bytes, int, Attributes]]) -> list[Seen]:
    return [
        seen(as_name(name), found)
        for name, _, found in batch
        if found.dev == dev and name not in (b".", b"..") and not is_own_name(name)
    ]


class Readers:
    """Several processes that read directories."""

    def __init__(self, root_fd: int, count: int = READERS) -> None:
        """OSError: they can't be started."""
        self._processes: list[subprocess.Popen[bytes]] = []
        self._asked: dict[int, int] = {}
        self._by_fd: dict[int, subprocess.Popen[bytes]] = {}
        self._poll = select.poll()
        try:
            for _ in range(count):
                self._start(root_fd)
        except BaseException:
            self.close()
            raise

    def _start(self, root_fd: int) -> None:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "modamafs.index.scan", str(root_fd)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[root_fd],
            cwd="/",
            bufsize=-1,
        )
        assert process.stdout is not None
        self._processes.append(process)
        fd = process.stdout.fileno()
        self._by_fd[fd] = process
        self._asked[fd] = 0
        self._poll.register(fd, select.POLLIN)

    @property
    def has_room(self) -> bool:
        """Whether another directory may be asked for."""
        return min(self._asked.values()) < AHEAD

    @property
    def is_idle(self) -> bool:
        """Whether everything that was asked for has come."""
        return not any(self._asked.values())

    def ask(self, ino: int, generation: int) -> None:
        """Have a directory read. OSError: a reader has died."""
        fd = min(self._asked, key=self._asked.__getitem__)
        self._asked[fd] += 1
        stdin = self._by_fd[fd].stdin
        assert stdin is not None
        stdin.write(REQUEST.pack(ino, generation))
        stdin.flush()

    def next(self) -> Frame:
        """The next frame, of any directory. OSError: a reader has died."""
        while True:
            for fd, _ in self._poll.poll(60_000):
                return self._read(fd)

    def _read(self, fd: int) -> Frame:
        stream = self._by_fd[fd].stdout
        assert stream is not None
        head = _exactly(stream.fileno(), LENGTH.size)
        fields = marshal.loads(_exactly(fd, *LENGTH.unpack(head)))
        frame = Frame._make(fields)
        if frame.is_last:
            self._asked[fd] -= 1
        return frame

    def close(self) -> None:
        """End them."""
        for process in self._processes:
            process.kill()
            for stream in (process.stdin, process.stdout):
                assert stream is not None
                with contextlib.suppress(OSError):
                    stream.close()
            process.wait()


def _exactly(fd: int, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = os.read(fd, size - len(data))
        if not piece:
            raise OSError(errno.EPIPE, "a process that reads directories has died")
        data += piece
    return bytes(data)


def main() -> None:
    """A reader, until its standard input ends."""
    volume = _volume.Volume(int(sys.argv[1]))
    with contextlib.suppress(OSError, KeyboardInterrupt):
        while request := sys.stdin.buffer.read(REQUEST.size):
            for frame in frames(volume, *REQUEST.unpack(request)):
                rows = [tuple(entry) for entry in frame.entries]
                data = marshal.dumps((*frame[:-1], rows))
                sys.stdout.buffer.write(LENGTH.pack(len(data)) + data)
                sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
