"""Records: JSON files on the store that are written whole or not at all.

A record is written beside its name, synced, renamed over it, and the directory synced: whoever
reads it, after a crash too, finds the old one or the new one.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO

NEW = b".new"
RECORD_MODE = 0o644
_STEP = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
DIRECTORY_MODE = 0o755
"""Set after opening, too: the umask of the process is whoever's request is being handled."""


def encode(record: Mapping[str, Any], indent: int | None = None) -> bytes:
    """A record as JSON with a newline; what is not UTF-8 in a name is escaped (``\\udcff``)."""
    text = json.dumps(record, indent=indent, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace") + b"\n"


def write_record(dir_fd: int, name: bytes, record: Mapping[str, Any]) -> None:
    """Write a record durably.

    OSError: ENOSPC, EROFS, EDQUOT; then nothing has changed.
    """
    with new_record(dir_fd, name) as file:
        file.write(encode(record, indent=2))


@contextmanager
def new_record(dir_fd: int, name: bytes) -> Iterator[BinaryIO]:
    """A file that takes the place of ``name``, durably, at the end of the block.

    OSError, or whatever ends the block: then nothing has changed.
    """
    temporary = name + NEW
    fd = os.open(
        temporary,
        os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC,
        RECORD_MODE,
        dir_fd=dir_fd,
    )
    try:
        with open(fd, "wb") as file:
            os.fchmod(fd, RECORD_MODE)
            yield file
            file.flush()
            os.fsync(fd)
        os.rename(temporary, name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
    except BaseException:
        os.unlink(temporary, dir_fd=dir_fd)
        raise
    os.fsync(dir_fd)


def read_record(dir_fd: int, name: bytes) -> dict[str, Any] | None:
    """A record; None where there is none. ValueError: it is no JSON object."""
    try:
        fd = open_plain(dir_fd, name)
    except FileNotFoundError:
        return None
    with open(fd, "rb") as file:
        record = json.load(file)
    if not isinstance(record, dict):
        raise ValueError(f"{os.fsdecode(name)} is no JSON object")  # noqa: TRY004
    return record


def open_plain(dir_fd: int, path: bytes) -> int:
    """A descriptor of a regular file, for reading. No symbolic link is followed, at no step.

    OSError: ELOOP, ENOTDIR; EINVAL for what is no regular file (a FIFO would wait for ever).
    """
    *above, name = path.split(b"/")
    here = os.dup(dir_fd)
    try:
        for part in above:
            below = os.open(part, _STEP, dir_fd=here)
            os.close(here)
            here = below
        fd = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
    finally:
        os.close(here)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "no regular file")
    return fd


def names_in(dir_fd: int, *path: bytes) -> list[bytes]:
    """The names in a directory below, sorted; none where it is missing, or lies behind a link."""
    here = os.dup(dir_fd)
    try:
        for part in path:
            below = os.open(part, os.O_RDONLY | _STEP & ~os.O_PATH, dir_fd=here)
            os.close(here)
            here = below
        return sorted(os.fsencode(name) for name in os.listdir(here))
    except (FileNotFoundError, NotADirectoryError):
        return []
    finally:
        os.close(here)


def append_line(dir_fd: int, name: bytes, record: Mapping[str, Any]) -> None:
    """Append one JSON line durably; what is there already is never touched."""
    fd = os.open(
        name,
        os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC,
        RECORD_MODE,
        dir_fd=dir_fd,
    )
    try:
        os.fchmod(fd, RECORD_MODE)
        line = encode(record)
        before = os.fstat(fd).st_size
        if before and os.pread(fd, 1, before - 1) != b"\n":
            line = b"\n" + line  # a crash has cut the last line off: it stays, by itself
        try:
            if os.write(fd, line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # noqa: TRY301
            os.fsync(fd)
        except OSError:
            os.ftruncate(fd, before)
            raise
    finally:
        os.close(fd)
    os.fsync(dir_fd)


def remove_record(dir_fd: int, name: bytes) -> None:
    """Remove a record durably; one that is not there is no error."""
    try:
        os.unlink(name, dir_fd=dir_fd)
    except FileNotFoundError:
        return
    os.fsync(dir_fd)


def open_records(dir_fd: int, *names: bytes) -> int:
    """A descriptor of a directory for records below ``dir_fd``, made where it is missing."""
    fd = os.dup(dir_fd)
    for name in names:
        try:
            below = _open_directory(fd, name)
        finally:
            os.close(fd)
        fd = below
    return fd


def _open_directory(dir_fd: int, name: bytes) -> int:
    try:
        os.mkdir(name, DIRECTORY_MODE, dir_fd=dir_fd)
        made = True
    except FileExistsError:
        made = False
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=dir_fd)
    if made:
        os.fchmod(fd, DIRECTORY_MODE)
        os.fsync(dir_fd)
    return fd
