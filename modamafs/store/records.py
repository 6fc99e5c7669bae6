"""Records: JSON files on the store that are written whole or not at all.

A record is written beside its name, synced, renamed over it, and the directory synced: whoever
reads it, after a crash too, finds the old one or the new one.

Records lie where users may write, and what is done here is done as root: nothing that somebody has
put in a record's place is followed, waited for, changed, or opened to others.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from modamafs.store.backing import PATH_FLAGS

NEW = b".new"
RECORD_MODE = 0o644
LARGEST_BYTES = 256 << 20
"""Of a record that is read: a seal's names every file that was immutable before."""
_WAITLESS = os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
_MADE_HERE = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
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


@contextlib.contextmanager
def new_record(dir_fd: int, name: bytes) -> Iterator[BinaryIO]:
    """A file that takes the place of ``name``, durably, at the end of the block.

    What lies where it is written, as left by a crash, is removed: it is always a file of its own.
    OSError, or whatever ends the block: then nothing has changed; EISDIR, EEXIST: something lies
    there that can't be removed, or is put there again.
    """
    temporary = name + NEW
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary, dir_fd=dir_fd)
    fd = os.open(temporary, os.O_WRONLY | _MADE_HERE, RECORD_MODE, dir_fd=dir_fd)
    try:
        with open(fd, "wb") as file:
            os.fchmod(fd, RECORD_MODE)
            yield file
            file.flush()
            os.fsync(fd)
        os.rename(temporary, name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=dir_fd)
        raise
    os.fsync(dir_fd)


def read_record(dir_fd: int, name: bytes) -> dict[str, Any] | None:
    """A record; None where there is none.

    ValueError: it is no JSON object, or larger than 256 MiB. OSError: see ``open_plain``.
    """
    try:
        fd = open_plain(dir_fd, name)
    except FileNotFoundError:
        return None
    with open(fd, "rb") as file:
        size_bytes = os.fstat(fd).st_size
        if size_bytes > LARGEST_BYTES:
            raise ValueError(f"{os.fsdecode(name)} is larger than {LARGEST_BYTES >> 20} MiB")
        record = json.loads(file.read(size_bytes + 1))
    if not isinstance(record, dict):
        raise ValueError(f"{os.fsdecode(name)} is no JSON object")  # noqa: TRY004
    return record


def open_plain(dir_fd: int, path: bytes) -> int:
    """A descriptor of a regular file, for reading. No symbolic link is followed, at no step.

    Nobody is waited for. OSError: ELOOP, ENOTDIR; EINVAL, or ENXIO of a socket, for what is no
    regular file (a FIFO would wait for ever); EAGAIN: somebody has a lease on it.
    """
    above, _, name = path.rpartition(b"/")
    here = open_below(dir_fd, above)
    try:
        fd = os.open(name, os.O_RDONLY | _WAITLESS, dir_fd=here)
    finally:
        os.close(here)
    return _checked(fd)


def open_sole(dir_fd: int, path: bytes) -> int:
    """The same of a file that has no other name, where it would be another's file, or seem many.

    OSError: as ``open_plain``; EMLINK: it has other names (hard links).
    """
    return _checked(open_plain(dir_fd, path), is_sole=True)


def open_below(dir_fd: int, path: bytes) -> int:
    """An O_PATH descriptor of a directory, or ``dir_fd`` itself (b""), to which no link has led.

    OSError: ENOENT; ENOTDIR, of symbolic links, too.
    """
    here = os.dup(dir_fd)
    for part in filter(None, path.split(b"/")):
        try:
            below = os.open(part, PATH_FLAGS, dir_fd=here)
        finally:
            os.close(here)
        here = below
    return here


def _checked(fd: int, *, is_sole: bool = False) -> int:
    """The descriptor, closed if that is no regular file (EINVAL), or has other names (EMLINK)."""
    found = os.fstat(fd)
    if stat.S_ISREG(found.st_mode) and not (is_sole and found.st_nlink > 1):
        return fd
    os.close(fd)
    if stat.S_ISREG(found.st_mode):
        raise OSError(errno.EMLINK, "it has other names (hard links)")
    raise OSError(errno.EINVAL, "no regular file")


def names_in(dir_fd: int, *path: bytes) -> list[bytes]:
    """The names in a directory below, sorted; none where it is missing, or lies behind a link."""
    here = os.dup(dir_fd)
    try:
        for part in path:
            below = os.open(part, os.O_RDONLY | PATH_FLAGS & ~os.O_PATH, dir_fd=here)
            os.close(here)
            here = below
        return sorted(os.fsencode(name) for name in os.listdir(here))
    except (FileNotFoundError, NotADirectoryError):
        return []
    finally:
        os.close(here)


def append_line(dir_fd: int, name: bytes, record: Mapping[str, Any]) -> None:
    """Append one JSON line durably; what is there already is never touched, nor is its mode.

    Nobody is waited for. OSError: ENOSPC, EROFS, EDQUOT; EINVAL, ELOOP, EISDIR: something else
    lies there than a regular file; EMLINK: that has other names (hard links), and may be somebody's
    who is not meant. Then nothing has changed.
    """
    fd = _open_for_appending(dir_fd, name)
    try:
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


def _open_for_appending(dir_fd: int, name: bytes) -> int:
    """See ``append_line``; a file that is made here is for everybody to read."""
    flags = os.O_RDWR | os.O_APPEND
    with contextlib.suppress(FileNotFoundError):
        return _checked(os.open(name, flags | _WAITLESS, dir_fd=dir_fd), is_sole=True)
    try:
        fd = os.open(name, flags | _MADE_HERE, RECORD_MODE, dir_fd=dir_fd)
    except FileExistsError:  # somebody else has made it meanwhile
        return _checked(os.open(name, flags | _WAITLESS, dir_fd=dir_fd), is_sole=True)
    os.fchmod(fd, RECORD_MODE)
    return fd


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
