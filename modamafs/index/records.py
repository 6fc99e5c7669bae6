"""What the records on the store say, as the index has it. Only the store is read in here.

Whatever somebody has put into a ``.modama``, nothing raises, waits, or is followed out of it; how
much of it is read has a limit. A seal's record, its manifest and the extraction's records count
only where they have no other name: hard links would have one large file read many times.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import msgspec

from modamafs.catalog import FileMetadata, Measured, Person, Project, Session
from modamafs.extraction.cache import LARGEST_RECORD_BYTES, name_of
from modamafs.index.scan import FRAME_BYTES, Name, as_name
from modamafs.model import RECORDS, Attributes, SealState
from modamafs.sealing.manifest import parse_b3sum_line
from modamafs.store import catalogue
from modamafs.store._volume import Volume
from modamafs.store.records import open_sole
from modamafs.store.seals import SEALS

METADATA = b"metadata"
JSON = b".json"
B3SUMS = b".B3SUMS"
DAMAGED = "damaged"
"""The state of a seal whose record can't be understood, or is not read."""
LARGEST_SEAL_BYTES = 16 << 20
"""Of a seal's record; a larger one is damaged, for the index. Only the state and a few numbers are
needed: what was immutable before is skipped, but all of it has to be gone through."""
LARGEST_FIELD_BYTES = 4096
LARGEST_MANIFEST_BYTES = 8 << 30
MOST_HASHED_FILES = 20_000_000
"""Of a manifest; what it has more is not in the index."""
LONGEST_LINE_BYTES = 3 * 4096 + 100
"""Of a manifest: twice the longest path (PATH_MAX), escaped, and its hash."""
_INSIDE = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Value(NamedTuple):
    """A row of ``metadata``, without the inode."""

    key: str
    number: float | None
    text: str
    unit: str | None


class Described(NamedTuple):
    """What is known of one inode: values by key, and words."""

    values: tuple[Value, ...] = ()
    words: str = ""


class ProjectRow(NamedTuple):
    """A row of ``projects``, without the inode."""

    title: str | None
    owner: str | None
    visibility: str | None
    record: str | None
    problem: str | None


class SessionRow(NamedTuple):
    """A row of ``sessions``, without the inodes."""

    title: str | None
    owner: str | None
    instrument: str | None
    date: str | None
    record: str | None
    problem: str | None


class SealRow(NamedTuple):
    """A row of ``seals``, without the key."""

    state: str
    content_hash: str | None
    sealed_at: str | None
    sealed_by: str | None
    file_count: int | None
    size_bytes: int | None


class _SealFields(msgspec.Struct):
    """What is needed of a seal's record, as its text has it; all else is skipped."""

    state: msgspec.Raw = msgspec.Raw()
    content_hash: msgspec.Raw = msgspec.Raw()
    sealed_at: msgspec.Raw = msgspec.Raw()
    sealed_by: msgspec.Raw = msgspec.Raw()
    file_count: msgspec.Raw = msgspec.Raw()
    size_bytes: msgspec.Raw = msgspec.Raw()


class Metadata(NamedTuple):
    """What the record of an instrument file says."""

    about: bytes
    """The file's path, relative to the session."""
    described: Described


def text(value: str) -> str:
    """A text that SQLite takes: no lone surrogates, no NUL."""
    return value.encode("utf-8", "replace").decode().replace("\0", " ")


def _line(value: str | None) -> str | None:
    return None if value is None else text(value)


# ---- where records lie ---------------------------------------------------------------------------


class Place:
    """The ``.modama`` of a directory that is open."""

    def __init__(self, volume: Volume, dir_fd: int) -> None:
        """``dir_fd`` is borrowed, and may be O_PATH."""
        self._volume = volume
        self.dir_fd = dir_fd
        self._fd: int | None = None
        self.stamp = ""
        """Of the ``.modama`` itself where it is no directory; "": it is one, or is not there."""
        try:
            self._fd = os.open(RECORDS, _INSIDE, dir_fd=dir_fd)
        except OSError:
            found = self._lookup(dir_fd, RECORDS)
            self.stamp = "" if found is None else _stamp(found)

    def close(self) -> None:
        """Close it; the directory stays open."""
        if self._fd is not None:
            os.close(self._fd)

    def stamp_of(self, path: bytes) -> str:
        """Tells whether a record has changed; "": there is none."""
        if self._fd is None:
            return self.stamp
        folder, _, name = path.rpartition(b"/")
        if not folder:
            found = self._lookup(self._fd, name)
            return "" if found is None else _stamp(found)
        fd = self._open(folder)
        if fd is None:
            return ""
        try:
            found = self._lookup(fd, name)
            return "" if found is None else _stamp(found)
        finally:
            os.close(fd)

    def stamps(self, folder: bytes) -> Iterator[tuple[bytes, str]]:
        """Name and stamp of everything in a directory of records."""
        fd = self._open(folder)
        if fd is None:
            return
        try:
            at = 0
            while batch := self._volume.scan(fd, at, FRAME_BYTES):
                at = batch[-1][1]
                for name, _, found in batch:
                    if name not in (b".", b".."):
                        yield name, _stamp(found)
        except OSError:
            return
        finally:
            os.close(fd)

    def _open(self, folder: bytes) -> int | None:
        if self._fd is None:
            return None
        try:
            return os.open(folder, _INSIDE, dir_fd=self._fd)
        except OSError:
            return None

    def _lookup(self, fd: int, name: bytes) -> Attributes | None:
        try:
            return self._volume.lookup(fd, name)
        except OSError:
            return None

    # ---- what they say ---------------------------------------------------------------------------

    def project(self) -> tuple[ProjectRow | None, Described]:
        """Of a project's directory; None: it has no record."""
        found = catalogue.load(self.dir_fd, Project)
        if found.record is None:
            if found.problem is None:
                return None, Described()
            return ProjectRow(None, None, None, None, text(found.problem)), Described()
        record = found.record
        row = ProjectRow(
            text(record.title),
            _owner(record.owner),
            record.visibility,
            text((found.data or b"").decode("utf-8", "replace")),
            None,
        )
        people = [record.owner, *record.members]
        texts = [record.title, record.description, record.license, *record.keywords]
        return row, _described(record.metadata, people, texts)

    def session(self) -> tuple[SessionRow | None, Described]:
        """Of a session's directory."""
        found = catalogue.load(self.dir_fd, Session)
        if found.record is None:
            if found.problem is None:
                return None, Described()
            return SessionRow(None, None, None, None, None, text(found.problem)), Described()
        record = found.record
        row = SessionRow(
            text(record.title),
            _owner(record.owner),
            _line(record.instrument),
            record.date,
            text((found.data or b"").decode("utf-8", "replace")),
            None,
        )
        texts = [
            record.title,
            record.description,
            record.sample,
            record.instrument,
            record.date,
            *record.keywords,
        ]
        return row, _described(record.metadata, [record.owner], texts)

    def seals(self) -> dict[bytes, str]:
        """Of each directory that has the record of a seal: name and stamp, of the manifest, too."""
        stamps = dict(self.stamps(SEALS))
        return {
            name.removesuffix(JSON): (
                f"{stamp} {stamps.get(name.removesuffix(JSON) + B3SUMS, '')}".rstrip()
            )
            for name, stamp in stamps.items()
            if name.endswith(JSON)
        }

    def seal(self, name: bytes) -> SealRow:
        """What the record of a seal says; "damaged" where it is none, or larger than 16 MiB."""
        data = self._data(SEALS + b"/" + name + JSON, LARGEST_SEAL_BYTES)
        try:
            fields = _seal_fields(data or b"")
            return SealRow(
                SealState(_field(fields.state)).value,
                _as(_field(fields.content_hash), str),
                _as(_field(fields.sealed_at), str),
                _as(_field(fields.sealed_by), str),
                _as(_field(fields.file_count), int),
                _as(_field(fields.size_bytes), int),
            )
        except (ValueError, RecursionError, msgspec.DecodeError):
            return SealRow(DAMAGED, None, None, None, None, None)

    def hashes(self, name: bytes) -> Iterator[tuple[Name, str]]:
        """Path and BLAKE3 of each file that a manifest has, up to what is no line of one.

        None of one that is larger than 8 GiB; of any other the first 20 million.
        """
        fd = self._open_sole(SEALS + b"/" + name + B3SUMS)
        if fd is None:
            return
        with open(fd, "rb") as file:
            try:
                if os.fstat(fd).st_size > LARGEST_MANIFEST_BYTES:
                    return
                for _ in range(MOST_HASHED_FILES):
                    line = file.readline(LONGEST_LINE_BYTES)
                    if not line or (len(line) == LONGEST_LINE_BYTES and line[-1:] != b"\n"):
                        return
                    path, digest = parse_b3sum_line(line)
                    yield as_name(path), digest
            except (OSError, ValueError):
                return

    def metadata(self, name: bytes) -> Metadata | None:
        """What a record of the extraction says; None: it can't be understood."""
        data = self._data(METADATA + b"/" + name, LARGEST_RECORD_BYTES)
        try:
            known = msgspec.convert(json.loads(data or b""), FileMetadata)
            about = os.fsencode(known.path)
            if name_of(known.path) != name:
                return None
        except (ValueError, RecursionError, msgspec.ValidationError):
            return None
        return Metadata(about, _described(known.values, [], []))

    def _data(self, path: bytes, largest_bytes: int) -> bytes | None:
        fd = self._open_sole(path)
        if fd is None:
            return None
        with open(fd, "rb") as file:
            try:
                size_bytes = os.fstat(fd).st_size
                return file.read(size_bytes) if size_bytes <= largest_bytes else None
            except OSError:
                return None

    def _open_sole(self, path: bytes) -> int | None:
        if self._fd is None:
            return None
        try:
            return open_sole(self._fd, path)
        except (OSError, ValueError):
            return None


def _seal_fields(data: bytes) -> _SealFields:
    """msgspec.DecodeError, RecursionError: it is no JSON object."""
    try:
        return msgspec.json.decode(data, type=_SealFields)
    except msgspec.DecodeError:
        if b"\\ud" not in data:
            raise
    # Names that are no UTF-8 are written as half characters, which are no JSON for msgspec.
    return msgspec.json.decode(data.replace(b"\\ud", b"\\u0"), type=_SealFields)


def _field(text: msgspec.Raw) -> Any:
    """None: there is none, or it is too long to be one. ValueError, RecursionError."""
    data = bytes(text)
    return json.loads(data) if data and len(data) <= LARGEST_FIELD_BYTES else None


def _stamp(found: Attributes) -> str:
    return f"{found.ino}.{found.generation}.{found.size_bytes}.{found.ctime_ns}"


def _owner(person: Person) -> str:
    return text(person.user or person.name)


def _as(value: Any, kind: type[Any]) -> Any:
    """A value of a record that anybody may have written, or None where it is of another kind."""
    if not isinstance(value, kind) or isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value if abs(value) < 1 << 63 else None
    return text(value)


# ---- values and words ----------------------------------------------------------------------------


def _described(
    metadata: Mapping[str, Measured], people: Iterable[Person], texts: Iterable[str | None]
) -> Described:
    values: dict[str, Value] = {}
    words = [part for part in texts if part]
    for person in people:
        words += [part for part in (person.name, person.user, person.affiliation) if part]
    for name, measured in metadata.items():
        key = key_of(name)
        if key and key not in values:
            values[key] = _value(key, measured)
        words.append(f"{name.replace('_', ' ')} {measured}")
    return Described(tuple(values[key] for key in sorted(values)), text("\n".join(words)))


def key_of(name: str) -> str:
    """A key as the index has it: ``Beam Energy`` → ``beam_energy``."""
    return re.sub(r"\W+", "_", text(name)).strip("_").lower()


def _value(key: str, measured: Measured) -> Value:
    value = measured.value
    number: float | None = None
    if isinstance(value, (int, float)):
        try:
            number = float(value)
        except OverflowError:
            number = None
        if number is not None and math.isnan(number):
            number = None
    shown = str(value).lower() if isinstance(value, bool) else str(value)
    return Value(key, number, text(shown), _line(measured.unit))


def merged(parts: list[Described]) -> Described:
    """What several records say of the same inode: the first one that has a key counts."""
    if len(parts) == 1:
        return parts[0]
    values: dict[str, Value] = {}
    for part in parts:
        for value in part.values:
            values.setdefault(value.key, value)
    words = "\n".join(part.words for part in parts if part.words)
    return Described(tuple(values[key] for key in sorted(values)), words)
