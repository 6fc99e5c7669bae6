"""A directory that can be sealed, and where its records lie.

``<parent>/.modama/seals/``: ``<name>.json`` the seal's record, ``<name>.B3SUMS`` and
``<name>.mtree`` the manifests, ``<name>.verified`` when it was last proved, ``<name>.worm`` that
files in it become immutable by themselves. ``<parent>/.modama/history.jsonl``: what happened.
"""

from __future__ import annotations

import fcntl
import grp
import json
import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Self

from modamafs.config import load_config
from modamafs.errors import Busy, ConfigurationError, DamagedRecord, InvalidRequest
from modamafs.model import RECORDS, SealState
from modamafs.store.backing import Store
from modamafs.store.records import (
    append_line,
    open_below,
    open_plain,
    open_records,
    read_record,
)
from modamafs.store.seals import SEALS, covering

HISTORY = b"history.jsonl"
LONGEST_NAME_BYTES = 255 - len(b".verified.new")
LONGEST_PATH_BYTES = 3500
"""So that the record's path, and the sealed directory's seen from outside, fit into PATH_MAX."""
MISSING_KEYS: dict[str, Any] = {
    "content_hash": None,
    "attribute_hash": None,
    "b3sums_hash": None,
    "file_count": None,
    "size_bytes": None,
    "immutable_flag": False,
    "immutable_before": [],
    "until": None,
    "hold": False,
}
"""What a record of an earlier version does not say."""
SESSION_DEPTH = 3
"""AREA/PROJECT/SESSION."""
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Place:
    """See the module. Open for as long as a ``with`` block lasts."""

    def __init__(self, store: Store, relative: bytes) -> None:
        """``relative``: the path in the store. InvalidRequest (EINVAL): nothing to be sealed."""
        self.store = store
        self.relative = os.path.normpath(relative).strip(b"/")
        parts = self.relative.split(b"/")
        self.shown = os.fsdecode(self.relative)
        if self.relative in (b"", b".") or len(parts) < 2 or b".." in parts or RECORDS in parts:
            raise InvalidRequest(
                f"{self.shown or '/'}: a seal covers a session's directory "
                "(AREA/PROJECT/SESSION/raw); "
                "the store's root, an area and modamafs's own directories can't be sealed"
            )
        self.name = parts[-1]
        if len(self.name) > LONGEST_NAME_BYTES or len(self.relative) > LONGEST_PATH_BYTES:
            raise InvalidRequest(f"{self.shown}: the name is too long to be sealed; rename it")
        self.owners: set[int] = set()
        """The user ids of who owns the directory, and the session that it lies in."""
        self.parent_fd, self.fd = self._open(parts)
        self.record = self.name + b".json"
        self.b3sums = self.name + b".B3SUMS"
        self.mtree = self.name + b".mtree"
        self.verified = self.name + b".verified"
        self.worm = self.name + b".worm"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        os.close(self.fd)
        os.close(self.parent_fd)

    def _open(self, parts: list[bytes]) -> tuple[int, int]:
        parent = os.dup(self.store.root_fd)
        for depth, part in enumerate(parts, 1):
            try:
                fd = os.open(part, _DIRECTORY, dir_fd=parent)
            except OSError as error:
                os.close(parent)
                shown = os.fsdecode(b"/".join(parts[:depth]))
                if isinstance(error, NotADirectoryError):
                    raise InvalidRequest(
                        f"{shown} is no directory: only a directory can be sealed, "
                        "and not through a symbolic link"
                    ) from None
                raise InvalidRequest(f"{shown}: {error.strerror}") from None
            if depth in (SESSION_DEPTH, len(parts)):
                self.owners.add(os.fstat(fd).st_uid)
            if depth == len(parts):
                return parent, fd
            os.close(parent)
            parent = fd
        raise AssertionError("a path has at least one part")

    def is_still_there(self) -> bool:
        """Whether the path still leads to the directory that is open, and its parent to ours."""
        try:
            parent, fd = self._open(self.relative.split(b"/"))
        except InvalidRequest:
            return False
        try:
            return os.path.sameopenfile(fd, self.fd) and os.path.sameopenfile(
                parent, self.parent_fd
            )
        finally:
            os.close(fd)
            os.close(parent)

    def covering(self) -> bytes | None:
        """The sealed directory that this is, or lies in."""
        return covering(self.store, self.relative)

    @contextmanager
    def records(self, *, make: bool) -> Iterator[int | None]:
        """The directory of the records, ours alone in the block; None: there is none.

        ``make`` it where it is missing. Busy (EBUSY): somebody is at work here.
        """
        if make:
            fd = open_records(self.parent_fd, RECORDS, SEALS)
        else:
            try:
                above = open_below(self.parent_fd, RECORDS)
            except FileNotFoundError:
                yield None
                return
            try:
                fd = os.open(SEALS, _DIRECTORY, dir_fd=above)
            except FileNotFoundError:
                yield None
                return
            finally:
                os.close(above)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Busy(
                    f"{self.shown} is being sealed, verified or unsealed just now: wait for that"
                ) from None
            yield fd
        finally:
            os.close(fd)

    def read(self) -> dict[str, Any] | None:
        """The seal's record as it is just now; None: open.

        DamagedRecord (EIO): there is one, and nothing can be done but to restore it.
        """
        try:
            record = read_record(self.parent_fd, RECORDS + b"/" + SEALS + b"/" + self.record)
            if record is None:
                return None
            SealState(record["state"])
        except (ValueError, LookupError, TypeError):
            raise DamagedRecord(
                f"the record of the seal on {self.shown} can't be understood, and it stays sealed: "
                f"restore {os.fsdecode(self.record)} in .modama/seals beside it from a backup"
            ) from None
        return MISSING_KEYS | record

    def write_history(self, event: dict[str, Any], *, once: bool = False) -> None:
        """Append to the history; ``once``: unless an attempt that was killed has done so."""
        fd = open_records(self.parent_fd, RECORDS)
        try:
            last = _last_line(fd) if once else None
            if last is None or any(last.get(key) != event.get(key) for key in ("event", "id")):
                append_line(fd, HISTORY, event)
        finally:
            os.close(fd)


def _last_line(fd: int) -> dict[str, Any] | None:
    try:
        history = open_plain(fd, HISTORY)
    except FileNotFoundError:
        return None
    with open(history, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - 65536))
        lines = file.read().splitlines()
    if not lines:
        return None
    try:
        last = json.loads(lines[-1])
    except ValueError:  # a line that was cut off by a full disk, or somebody's own
        return None
    return last if isinstance(last, dict) else None


def stewards_gid(store: Store) -> int | None:
    """The group whose members may unseal; None: root only. ConfigurationError: no such group."""
    name = load_config(store.path).stewards.group
    if name is None:
        return None
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise ConfigurationError(
            f"{store.path}/.modama/config.toml: [stewards] group: there is no group {name!r} here"
        ) from None


def now() -> str:
    """The time, UTC, as records have it."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def user_name(uid: int) -> str:
    """The name of a user id, or the number."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
