"""The records of what was removed are kept, in ``<store>/.modama/history/``."""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
from datetime import UTC, datetime

from modamafs.model import RECORDS
from modamafs.store.backing import Store, path_of
from modamafs.store.records import open_below, open_records

HISTORY = b"history"
KEPT = b"records"
PATH = b"path"
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Kept:
    """Records that were taken away from a directory, until that is gone for good."""

    def __init__(self, store: Store, place: bytes | None) -> None:
        self._store = store
        self._place = place

    def put_back(self) -> None:
        """The directory was not removed after all.

        OSError: ENOENT, it is gone; ENOTDIR, symbolic links lead to where it was.
        """
        if self._place is None:
            return
        place = os.open(self._place, _DIRECTORY, dir_fd=self._store.root_fd)
        try:
            there = open_below(self._store.root_fd, os.readlink(PATH, dir_fd=place))
            try:
                os.rename(KEPT, RECORDS, src_dir_fd=place, dst_dir_fd=there)
            finally:
                os.close(there)
            os.unlink(PATH, dir_fd=place)
        finally:
            os.close(place)
        os.rmdir(self._place, dir_fd=self._store.root_fd)


def keep(store: Store, fd: int, path: bytes) -> Kept:
    """Move the records of a directory, which is open as ``fd``, to the store's history.

    Of ``path``, as the kernel knows it, what lies below the store is written down beside them.
    Records that hold nothing are removed.
    """
    if _remove_empty(fd):
        return Kept(store, None)
    name = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ-").encode() + uuid.uuid4().hex[:8].encode()
    history = open_records(store.root_fd, RECORDS, HISTORY)
    try:
        os.fchmod(history, 0o700)  # whatever was private there stays so
        place = open_records(history, name)
        try:
            os.symlink(os.path.relpath(path, path_of(store.root_fd)), PATH, dir_fd=place)
            os.fsync(place)
            os.rename(RECORDS, KEPT, src_dir_fd=fd, dst_dir_fd=place)
        except OSError:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(PATH, dir_fd=place)
            os.rmdir(name, dir_fd=history)
            raise
        finally:
            os.close(place)
    finally:
        os.close(history)
    return Kept(store, RECORDS + b"/" + HISTORY + b"/" + name)


def _remove_empty(fd: int) -> bool:
    """Remove records that hold no file. Whether there are none now."""
    try:
        records = os.open(RECORDS, _DIRECTORY, dir_fd=fd)
    except FileNotFoundError:
        return True
    try:
        for name in os.listdir(records):
            os.rmdir(name, dir_fd=records)
        os.rmdir(RECORDS, dir_fd=fd)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.ENOTDIR, errno.EEXIST):
            raise
        return False
    finally:
        os.close(records)
    return True
