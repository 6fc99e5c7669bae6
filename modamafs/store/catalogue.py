"""The catalogue on the store: ``project.json`` and ``session.json``, read and written.

Records may be edited by hand, and by other programs. What can't be understood is no error but a
problem, said in one line for people; nothing that somebody has put there makes a reader raise, or
wait. What a record holds besides, at any depth, is written back as it was.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec

from modamafs.catalog import SCHEMA, Project, Session
from modamafs.errors import Busy, InvalidRequest
from modamafs.model import RECORDS
from modamafs.store.backing import PATH_FLAGS, Store
from modamafs.store.records import encode, new_record, open_below, open_records

LARGEST_BYTES = 1 << 20
"""Of a record."""
LARGEST_SEAL_BYTES = 64 << 20
"""Of a seal's, which names every file that was immutable before."""
PATIENCE_S = 10.0
"""For whoever changes the same directory just now."""
LOOK_EVERY_S = 0.02

Record = TypeVar("Record", Project, Session)

_NAMES: dict[type[Any], bytes] = {Project: b"project.json", Session: b"session.json"}
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Loaded(NamedTuple, Generic[Record]):
    """What a directory's record is just now."""

    record: Record | None
    problem: str | None
    """Why it can't be understood; in one line, with the name of the file."""
    data: bytes | None
    """The text that was read; None: there is no record, or it can't be read."""


class ProjectEntry(NamedTuple):
    """A directory where projects lie."""

    path: bytes
    """``area/project``."""
    attributes: os.stat_result
    record: Project | None
    problem: str | None


class SessionEntry(NamedTuple):
    """A directory where sessions lie."""

    path: bytes
    """``area/project/session``."""
    attributes: os.stat_result
    record: Session | None
    problem: str | None
    seals: tuple[tuple[str, str], ...]
    """Of the directories in it that are sealed, or being so: name and state; "damaged" where the
    record of the seal can't be understood."""


def read_project(dir_fd: int) -> tuple[Project | None, str | None]:
    """The record of a project's directory, or what is wrong with it; (None, None): it has none.

    ``dir_fd`` may be O_PATH. Never raises.
    """
    found = load(dir_fd, Project)
    return found.record, found.problem


def read_session(dir_fd: int) -> tuple[Session | None, str | None]:
    """The same for a session's directory."""
    found = load(dir_fd, Session)
    return found.record, found.problem


# ---- reading -------------------------------------------------------------------------------------


def load(dir_fd: int, kind: type[Record]) -> Loaded[Record]:
    """The record of a directory, and its text. Never raises."""
    name = _NAMES[kind]
    data = None
    try:
        data = _read(dir_fd, name)
        if data is None:
            return Loaded(None, None, None)
        return Loaded(_converted(_parsed(data), kind), None, data)
    except OSError as error:
        why = f"can't be read: {error.strerror}"
    except msgspec.ValidationError as error:
        why = f"is wrong: {error}"
    except (ValueError, RecursionError) as error:  # JSON's own among them
        why = f"is wrong: {error}"
    return Loaded(None, " ".join(f".modama/{name.decode()} {why}".split()), data)


def from_text(text: str, kind: type[Record]) -> Record | None:
    """A record of its text; None: it can't be understood."""
    try:
        return _converted(_parsed(text.encode("utf-8", "surrogateescape")), kind)
    except (msgspec.ValidationError, ValueError, RecursionError):
        return None


def _read(dir_fd: int, name: bytes) -> bytes | None:
    """None: there is no record. ValueError: it is no file, or too large. OSError."""
    try:
        records = os.open(RECORDS, PATH_FLAGS, dir_fd=dir_fd)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ELOOP):
            raise ValueError("lies in a .modama that is no directory: remove that") from None
        raise
    try:
        fd = _open_plain(records, name)
    except FileNotFoundError:
        return None
    finally:
        os.close(records)
    with open(fd, "rb", buffering=0) as file:
        data = b""
        while piece := file.read(LARGEST_BYTES + 1 - len(data)):
            data += piece
        if len(data) > LARGEST_BYTES:
            raise ValueError(f"it is larger than {LARGEST_BYTES} bytes")
        return data


def _open_plain(dir_fd: int, name: bytes | str) -> int:
    """ValueError: it is no plain file; opening it does not wait for anybody."""
    try:
        fd = os.open(name, _FILE, dir_fd=dir_fd)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise ValueError("it is no plain file (a symbolic link, or a socket)") from None
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise ValueError("it is no plain file")
    return fd


def _parsed(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"no JSON: line {error.lineno}, column {error.colno}: {error.msg}"
        ) from None
    except UnicodeDecodeError as error:
        raise ValueError(f"no UTF-8: byte {error.start}") from None
    if not isinstance(found, dict):
        raise ValueError("no JSON object: it has to begin with {")  # noqa: TRY004
    return found


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is no number of JSON")


def _converted(found: dict[str, Any], kind: type[Record]) -> Record:
    known = set(kind.__struct_fields__) - {"extra"}
    fields = {key: value for key, value in found.items() if key in known}
    schema = fields.get("schema", SCHEMA)
    if isinstance(schema, int) and schema > SCHEMA:
        raise ValueError(
            f"schema {schema} is newer than what this modamafs knows ({SCHEMA}): upgrade it"
        )
    extra = {key: value for key, value in found.items() if key not in known}
    return msgspec.convert(fields | {"extra": extra}, kind)


# ---- writing -------------------------------------------------------------------------------------


def write(dir_fd: int, record: Record) -> None:
    """Write the record of a directory that has none, durably, all or nothing.

    OSError: ENOSPC, EROFS, EDQUOT. InvalidRequest (EINVAL): it is too large.
    """
    nothing: Loaded[Record] = Loaded(None, None, None)
    with replacing(dir_fd, record, nothing):
        pass


@contextmanager
def replacing(dir_fd: int, record: Record, old: Loaded[Record]) -> Iterator[None]:
    """Replace what was read as ``old``, durably, at the end of the block.

    There is room for it on the disk from the beginning of the block on; whatever ends the block
    leaves the record as it is. Busy (EBUSY): it was edited meanwhile. InvalidRequest (EINVAL): it
    is too large. OSError: ENOSPC, EROFS, EDQUOT.
    """
    kind = type(record)
    name = _NAMES[kind]
    data = encode(_document(record, old), indent=2)
    if len(data) > LARGEST_BYTES:
        raise InvalidRequest(
            f"that makes a record of {len(data)} bytes: {LARGEST_BYTES} are the most"
        )
    fd = open_records(dir_fd, RECORDS)
    try:
        with new_record(fd, name) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            yield
            now = load(dir_fd, kind)
            if now.data != old.data or (now.problem and old.data is None):
                raise Busy(
                    f".modama/{name.decode()} was edited by somebody else meanwhile: "
                    "look at it, and try again"
                )
    finally:
        os.close(fd)


def _document(record: Record, old: Loaded[Record]) -> dict[str, Any]:
    new = _as_json(record)
    if old.record is None or old.data is None:
        return new
    kept = _merged(new, _as_json(old.record), _parsed(old.data))
    assert isinstance(kept, dict)
    return kept


def _as_json(record: Project | Session) -> dict[str, Any]:
    document: dict[str, Any] = msgspec.to_builtins(record)
    extra = document.pop("extra")
    return {**document, **extra}


def _merged(new: Any, old: Any, text: Any) -> Any:
    """The new value, with what stands in the text besides wherever the value is the old one."""
    if new == old:
        return text
    if isinstance(new, dict) and isinstance(old, dict) and isinstance(text, dict):
        merged = {
            key: _merged(value, old[key], text[key]) if key in old and key in text else value
            for key, value in new.items()
        }
        return merged | {key: text[key] for key in text if key not in old and key not in new}
    if isinstance(new, (list, tuple)) and isinstance(old, (list, tuple)):
        return [text[old.index(value)] if value in old else value for value in new]
    return new


@contextmanager
def locked(dir_fd: int, shown: str) -> Iterator[None]:
    """Nobody else who asks for this directory is in such a block. Busy (EBUSY) after 10 s."""
    fd = os.open(b".", _DIRECTORY, dir_fd=dir_fd)
    try:
        deadline_s = time.monotonic() + PATIENCE_S
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline_s:
                    raise Busy(f"{shown} is being changed just now: try again later") from None
            time.sleep(LOOK_EVERY_S)
        yield
    finally:
        os.close(fd)


# ---- all of them ---------------------------------------------------------------------------------


def projects(store: Store) -> Iterator[ProjectEntry]:
    """Every directory of an area, sorted by path; those whose name begins with a dot are none."""
    for area in directories(store.root_fd, b"."):
        for path, fd in _opened(store, area):
            attributes = os.fstat(fd)
            record, problem = read_project(fd)
            yield ProjectEntry(path, attributes, record, problem)


def sessions(store: Store, project_path: bytes) -> Iterator[SessionEntry]:
    """Every directory of a project (``area/project``), sorted by name; dotted ones are none."""
    for path, fd in _opened(store, project_path):
        yield session(fd, path)


def session(dir_fd: int, path: bytes) -> SessionEntry:
    """What the directory of a session, at ``path`` in the store, says of itself."""
    attributes = os.fstat(dir_fd)
    record, problem = read_session(dir_fd)
    return SessionEntry(path, attributes, record, problem, tuple(_seals(dir_fd)))


def _opened(store: Store, above: bytes) -> Iterator[tuple[bytes, int]]:
    """The directories in ``above``: path, and an O_PATH descriptor until the next one."""
    try:
        above_fd = open_below(store.root_fd, above)
    except OSError:
        return
    try:
        for name in directories(above_fd, b"."):
            try:
                fd = os.open(name, PATH_FLAGS, dir_fd=above_fd)
            except OSError:  # gone meanwhile
                continue
            try:
                yield above + b"/" + name, fd
            finally:
                os.close(fd)
    finally:
        os.close(above_fd)


def directories(dir_fd: int, path: bytes) -> list[bytes]:
    """The names in a directory that may be an area, a project or a session, sorted."""
    try:
        fd = os.open(path, _DIRECTORY, dir_fd=dir_fd)
    except OSError:
        return []
    try:
        with os.scandir(fd) as entries:
            return sorted(
                os.fsencode(entry.name)
                for entry in entries
                if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False)
            )
    finally:
        os.close(fd)


def sealed_names(dir_fd: int) -> list[str]:
    """The names in a directory that have the record of a seal, in whatever state."""
    return [name for name, _ in _seals(dir_fd)]


def _seals(dir_fd: int) -> Iterator[tuple[str, str]]:
    try:
        fd = os.open(RECORDS + b"/seals", _DIRECTORY, dir_fd=dir_fd)
    except OSError:
        return
    try:
        for name in sorted(os.listdir(fd)):
            if name.endswith(".json"):
                yield name.removesuffix(".json"), _state(fd, name)
    finally:
        os.close(fd)


def _state(seals_fd: int, name: str) -> str:
    try:
        with open(_open_plain(seals_fd, name), "rb", buffering=0) as file:
            state = _parsed(file.read(LARGEST_SEAL_BYTES))["state"]
    except (OSError, ValueError, LookupError, RecursionError):
        return "damaged"
    return state if isinstance(state, str) else "damaged"
