"""The records of what was found: ``<session>/.modama/metadata/<hash of the path>.json``.

Each is a ``FileMetadata`` as JSON, the preview in base64. They can be made again at any time, so
they are written whole or not at all, but not synced; what can't be understood counts as missing.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import threading
import time
import weakref
from collections.abc import Iterator, Mapping
from typing import cast

import msgspec
from blake3 import blake3

from modamafs.catalog import FileMetadata
from modamafs.model import RECORDS
from modamafs.store.records import NEW, RECORD_MODE, encode, open_records

METADATA = b"metadata"
SUFFIX = b".json"
ABANDONED_S = 3600.0
"""After which what was never finished is removed."""
LARGEST_RECORD_BYTES = 1 << 20

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def name_of(path: str) -> bytes:
    """The record's name: 32 hexadecimal digits of BLAKE3 of the path's bytes, and ``.json``."""
    return blake3(os.fsencode(path)).hexdigest(16).encode() + SUFFIX


def load(session_fd: int) -> Mapping[str, FileMetadata]:
    """What is known of a session's files, by path relative to it.

    Nothing is read before it is asked for, and nothing kept: a record that is written later is
    found, too. Of files that are gone there are none. ``session_fd`` may be closed afterwards.
    """
    return Records(session_fd)


def stale(known: FileMetadata, found: os.stat_result) -> bool:
    """Whether a file has changed since it was read: its size or time is another."""
    return (known.size_bytes, known.mtime_ns) != (found.st_size, found.st_mtime_ns)


class Records(Mapping[str, FileMetadata]):
    """See ``load``."""

    def __init__(self, session_fd: int) -> None:
        self._session_fd = os.dup(session_fd)
        weakref.finalize(self, os.close, self._session_fd)

    def __getitem__(self, path: str) -> FileMetadata:
        with _directory(self._session_fd) as fd:
            known = _read(fd, name_of(path)) if fd is not None else None
        if known is None or known.path != path or not self._is_there(path):
            raise KeyError(path)
        return known

    def __iter__(self) -> Iterator[str]:
        return iter([path for path, _ in self._all()])

    def __len__(self) -> int:
        return sum(1 for _ in self._all())

    def _all(self) -> Iterator[tuple[str, FileMetadata]]:
        with _directory(self._session_fd) as fd:
            if fd is None:
                return
            for name in _names(fd):
                known = _read(fd, name)
                if known is not None and name_of(known.path) == name and self._is_there(known.path):
                    yield known.path, known

    def _is_there(self, path: str) -> bool:
        return _is_file(self._session_fd, path)


def write(session_fd: int, found: FileMetadata) -> None:
    """Write a record in the place of an older one. OSError: nothing has changed."""
    fd = open_records(session_fd, RECORDS, METADATA)
    try:
        name = name_of(found.path)
        # Several mounts of one store, and several processes, may be at it.
        temporary = name + b".%d.%d" % (os.getpid(), threading.get_ident()) + NEW
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            with open(os.open(temporary, flags, RECORD_MODE, dir_fd=fd), "wb") as file:
                os.fchmod(file.fileno(), RECORD_MODE)
                file.write(_encode(found))
            os.rename(temporary, name, src_dir_fd=fd, dst_dir_fd=fd)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=fd)
            raise
    finally:
        os.close(fd)


def remove(session_fd: int, path: str) -> None:
    """Remove the record of a file; one that is not there is no error."""
    with _directory(session_fd) as fd:
        if fd is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name_of(path), dir_fd=fd)


def prune(session_fd: int) -> int:
    """Remove the records of files that are gone, and what is no record. How many went."""
    count = 0
    with _directory(session_fd) as fd:
        if fd is None:
            return 0
        for name in os.listdir(fd):
            raw = os.fsencode(name)
            if raw.endswith(NEW) and not _is_old(fd, raw):  # somebody is writing it
                continue
            known = _read(fd, raw) if raw.endswith(SUFFIX) else None
            if known is None or name_of(known.path) != raw or not _is_file(session_fd, known.path):
                with contextlib.suppress(FileNotFoundError, IsADirectoryError):
                    os.unlink(raw, dir_fd=fd)
                    count += 1
    return count


def _is_old(dir_fd: int, name: bytes) -> bool:
    try:
        return time.time() - os.stat(name, dir_fd=dir_fd).st_mtime > ABANDONED_S
    except OSError:
        return False


def _encode(found: FileMetadata) -> bytes:
    """As JSON; what is not UTF-8 in a path is escaped (``\\udcff``), as in all records."""
    record = msgspec.to_builtins(found)
    return encode({key: value for key, value in record.items() if value is not None})


def _read(dir_fd: int, name: bytes) -> FileMetadata | None:
    try:
        fd = os.open(name, _FILE, dir_fd=dir_fd)
    except OSError:
        return None
    with open(fd, "rb") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size > LARGEST_RECORD_BYTES:
            return None
        try:
            # Not msgspec's own decoder: it takes no lone surrogates.
            return msgspec.convert(json.load(file), FileMetadata)
        except (OSError, ValueError, RecursionError, msgspec.ValidationError):
            return None


def _names(fd: int) -> list[bytes]:
    return sorted(raw for name in os.listdir(fd) if (raw := os.fsencode(name)).endswith(SUFFIX))


def _is_file(session_fd: int, path: str) -> bool:
    raw = os.fsencode(path)
    if not raw or raw.startswith(b"/") or b".." in raw.split(b"/") or b"\0" in raw:
        return False
    try:
        found = os.stat(raw, dir_fd=session_fd, follow_symlinks=False)
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode)


@contextlib.contextmanager
def _directory(session_fd: int) -> Iterator[int | None]:
    """The directory of the records; None where there is none."""
    fd: int | None = os.dup(session_fd)
    try:
        for name in (RECORDS, METADATA):
            try:
                below = os.open(name, _DIRECTORY, dir_fd=fd)
            except OSError:
                os.close(cast(int, fd))
                fd = None
                break
            os.close(cast(int, fd))
            fd = below
        yield fd
    finally:
        if fd is not None:
            os.close(fd)
