"""Virtual nodes: what has no inode on the store, and yet a number that stays the same.

A node is known by its *key*: where it hangs (the landing directory of an inode, the listed landing
tree, the views) and the names from there. Its id is made from the key, so it is the same in every
worker and after every mount. A worker that is asked for an id has to find the key: those that the
kernel may still name, of directories and open files, are appended to a file in the runtime
directory, which survives the worker.

A rendered file's key ends in the digest of its bytes: other bytes are another file, as when an
editor replaces one. So what is open stays what it was, and the kernel may cache it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import struct
import threading
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

from blake3 import blake3

from modamafs.errors import StaleHandle
from modamafs.model import Attributes, Caller

VIRTUAL = 1 << 62
"""Set in the id of every virtual node; inode numbers of file systems do not reach this far."""

_HEAD = struct.Struct("=cQ")
_PREFIX = struct.Struct("=HI")
"""Length and CRC-32 of what follows."""
_TABLE = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
LIMIT_BYTES = 32 << 20
"""Of memory for keys: some 100,000."""
KEY_BYTES = 300
LONGEST_KEY_BYTES = 0xFFFF


def is_virtual(node: int) -> bool:
    """Whether a node id is one of a virtual node."""
    return bool(node & VIRTUAL)


class Key(NamedTuple):
    """What a virtual node is known by."""

    origin: bytes
    """One letter: which kind of tree it hangs in."""
    ino: int
    """The inode of the store that its tree belongs to; 0 for none."""
    names: tuple[bytes, ...] = ()
    digest: bytes = b""
    """Of a rendered file: which bytes it has."""

    def encode(self) -> bytes:
        """As bytes. Names hold no NUL, and no slash."""
        return _HEAD.pack(self.origin, self.ino) + b"/".join(self.names) + b"\0" + self.digest

    @classmethod
    def decode(cls, data: bytes) -> Key:
        """The opposite."""
        origin, ino = _HEAD.unpack_from(data)
        names, _, digest = data[_HEAD.size :].partition(b"\0")
        return cls(origin, ino, tuple(names.split(b"/")) if names else (), digest)

    @property
    def id(self) -> int:
        """The node id."""
        return VIRTUAL | int.from_bytes(blake3(self.encode()).digest(8), "big") & (VIRTUAL - 1)

    def child(self, name: bytes) -> Key:
        """The key of an entry of this directory."""
        return self._replace(names=(*self.names, name))


class Node(Protocol):
    """One virtual file, directory or link, as it is now."""

    key: Key

    def attributes(self) -> Attributes:
        """Its attributes; ``ino`` is the key's id."""


class Directory(Node, Protocol):
    """A virtual directory."""

    def child(self, name: bytes, caller: Caller) -> Node | None:
        """The entry of that name; None: there is none."""

    def listing(self, caller: Caller) -> Iterator[tuple[bytes, int]]:
        """The names that this caller is shown, each with its type (``S_IFMT``)."""


class File:
    """A virtual file with its bytes."""

    def __init__(self, key: Key, content: bytes, like: Attributes, mtime_ns: int) -> None:
        """``like`` has the owner and, for whom it can be read, the mode."""
        self.key = key._replace(digest=blake3(content).digest(8))
        self.content = content
        self._like = like
        self._mtime_ns = mtime_ns

    def attributes(self) -> Attributes:
        """Nobody may write to it."""
        mode = stat.S_IFREG | self._like.mode & 0o444
        return attributes(self.key, mode, self._like, self._mtime_ns, len(self.content))


class Said(NamedTuple):
    """A text, and since when it is that."""

    text: bytes
    at_ns: int = 0
    """0: as long as what it is about."""


class Live:
    """A virtual file that shows something as it is at this moment.

    Either a file of the store (``open``), or text that is made whenever it is read from the
    beginning (``text``).
    """

    def __init__(
        self,
        key: Key,
        like: Attributes,
        *,
        mode: int | None = None,
        open: Callable[[], int] | None = None,
        text: Callable[[], Said] | None = None,
    ) -> None:
        self.key = key
        self.open = open
        self.text = text
        self._like = like
        self._mode = like.mode & 0o444 if mode is None else mode

    def attributes(self) -> Attributes:
        """Size and times of the store's file, or of the text that would be read now."""
        mode = stat.S_IFREG | self._mode
        if self.open is None:
            said = self.text() if self.text else Said(b"")
            changed_ns = max(said.at_ns, self._like.mtime_ns)
            return attributes(self.key, mode, self._like, changed_ns, len(said.text))
        fd = self.open()
        try:
            found = os.fstat(fd)
        finally:
            os.close(fd)
        return attributes(self.key, mode, self._like, found.st_mtime_ns, found.st_size)


class Control(Live):
    """A file whose writing is a command about a directory."""

    def __init__(
        self, key: Key, like: Attributes, mode: int, target: bytes, text: Callable[[], Said]
    ) -> None:
        """``target``: the directory, relative to the store."""
        super().__init__(key, like, mode=mode, text=text)
        self.target = target


class Link:
    """A virtual symbolic link."""

    def __init__(self, key: Key, target: bytes, like: Attributes) -> None:
        self.key = key
        self.target = target
        self._like = like

    def attributes(self) -> Attributes:
        """As of every symbolic link, all permissions."""
        mode = stat.S_IFLNK | 0o777
        return attributes(self.key, mode, self._like, self._like.mtime_ns, len(self.target))


def attributes(
    key: Key, mode: int, like: Attributes, mtime_ns: int, size_bytes: int = 0
) -> Attributes:
    """The attributes of a virtual node: owner, device and block size as ``like``."""
    return like._replace(
        ino=key.id,
        generation=0,
        mode=mode,
        nlink=1,  # of a directory: nobody counts
        rdev=0,
        size_bytes=size_bytes,
        blocks=(size_bytes + 511) // 512,
        atime_ns=mtime_ns,
        mtime_ns=mtime_ns,
        ctime_ns=mtime_ns,
        btime_ns=0,
        immutable=False,
    )


class Table:
    """The keys of the ids that the kernel may name, also to a worker that has never seen them.

    As many as there is room for: of what was not asked for the longest, the key is forgotten. Then
    the kernel is told that the node is stale, and looks its name up again. For several threads.
    """

    def __init__(self, path: Path, limit_bytes: int = LIMIT_BYTES) -> None:
        """``path``: the file; what an earlier worker has appended is read."""
        self._lock = threading.Lock()
        self._path = path
        self._limit_bytes = limit_bytes
        self._keys: OrderedDict[int, Key] = OrderedDict()
        self._size_bytes = 0
        self._fd = os.open(path, _TABLE, 0o600)
        with open(self._fd, "rb", closefd=False) as file:
            data = file.read()
        at = 0
        while (key := _record_at(data, at)) is not None:
            self._remember(key)
            at += _PREFIX.size + len(key.encode())
        if at < len(data):  # a worker was killed here, or the disk was full
            os.ftruncate(self._fd, at)
        self._file_bytes = at

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def keep(self, key: Key) -> None:
        """Remember a key, beyond this worker's life if the disk has room for it.

        OSError: ENAMETOOLONG.
        """
        encoded = key.encode()
        if len(encoded) > LONGEST_KEY_BYTES:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        with self._lock:
            if key.id in self._keys:
                self._keys.move_to_end(key.id)
                return
            self._remember(key)
            if self._file_bytes > 2 * self._limit_bytes:
                self._compact()
            else:
                self._append(encoded)

    def find(self, node: int) -> Key | None:
        """The key of an id, if it is known."""
        return self._keys.get(node)

    def key(self, node: int) -> Key:
        """The key of an id. StaleHandle (ESTALE): nobody knows it."""
        with self._lock:
            key = self._keys.get(node)
            if key is not None:
                self._keys.move_to_end(node)
                return key
        raise StaleHandle(f"no virtual node has the number {node:#x}")

    def _remember(self, key: Key) -> None:
        self._keys[key.id] = key
        self._size_bytes += _cost(key)
        while self._size_bytes > self._limit_bytes:
            _, forgotten = self._keys.popitem(last=False)
            self._size_bytes -= _cost(forgotten)

    def _append(self, encoded: bytes) -> None:
        record = _PREFIX.pack(len(encoded), zlib.crc32(encoded)) + encoded
        try:
            written = os.write(self._fd, record)
        except OSError:
            written = 0
        if written != len(record):
            # No room: the next worker will not know it, and this one goes on.
            os.ftruncate(self._fd, self._file_bytes)
            return
        self._file_bytes += written

    def _compact(self) -> None:
        """Begin the file anew, with what is remembered."""
        new = self._path.with_name(self._path.name + ".new")
        with contextlib.suppress(OSError):  # no room: the old one stays as it is
            fd = os.open(new, _TABLE | os.O_TRUNC, 0o600)
            old, self._fd, self._file_bytes = self._fd, fd, 0
            for key in self._keys.values():
                self._append(key.encode())
            os.rename(new, self._path)
            os.close(old)


def _cost(key: Key) -> int:
    """About the memory that a key takes, in bytes."""
    return KEY_BYTES + sum(map(len, key.names)) + 40 * len(key.names)


def _record_at(data: bytes, at: int) -> Key | None:
    """The key that is written there; None at the end, and where nothing whole is."""
    if at + _PREFIX.size > len(data):
        return None
    length, checksum = _PREFIX.unpack_from(data, at)
    encoded = data[at + _PREFIX.size : at + _PREFIX.size + length]
    if len(encoded) < max(length, _HEAD.size) or zlib.crc32(encoded) != checksum:
        return None
    return Key.decode(encoded)
