"""What the records on the store say, as the index has it. Only the store is read in here.

Whatever somebody has put into a ``.modama``, nothing raises, waits, or is followed out of it.
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
from modamafs.store.catalogue import LARGEST_SEAL_BYTES
from modamafs.store.records import open_plain
from modamafs.store.seals import SEALS

METADATA = b"metadata"
JSON = b".json"
B3SUMS = b".B3SUMS"
LONGEST_LINE_BYTES = 3 * 4096 + 100
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
        """What the record of a seal says."""
        damaged = SealRow("damaged", None, None, None, None, None)
        record = self._json(SEALS + b"/" + name + JSON, LARGEST_SEAL_BYTES)
        if not isinstance(record, dict):
            return damaged
        try:
            state = SealState(record.get("state")).value
        except ValueError:
            return damaged
        return SealRow(
            state,
            _as(record.get("content_hash"), str),
            _as(record.get("sealed_at"), str),
            _as(record.get("sealed_by"), str),
            _as(record.get("file_count"), int),
            _as(record.get("size_bytes"), int),
        )

    def hashes(self, name: bytes) -> Iterator[tuple[Name, str]]:
        """Path and BLAKE3 of each file that a manifest has; what is no line of one is left out."""
        fd = self._open_plain(SEALS + b"/" + name + B3SUMS)
        if fd is None:
            return
        with open(fd, "rb") as file:
            try:
                while line := file.readline(LONGEST_LINE_BYTES):
                    try:
                        path, digest = parse_b3sum_line(line)
                    except ValueError:
                        continue
                    yield as_name(path), digest
            except OSError:
                return

    def metadata(self, name: bytes) -> Metadata | None:
        """What a record of the extraction says; None: it can't be understood."""
        found = self._json(METADATA + b"/" + name, LARGEST_RECORD_BYTES)
        try:
            known = msgspec.convert(found, FileMetadata)
            about = os.fsencode(known.path)
            if name_of(known.path) != name:
                return None
        except (ValueError, RecursionError, msgspec.ValidationError):
            return None
        return Metadata(about, _described(known.values, [], []))

    def _json(self, path: bytes, largest_bytes: int) -> Any:
        fd = self._open_plain(path)
        if fd is None:
            return None
        with open(fd, "rb") as file:
            try:
                if os.fstat(fd).st_size > largest_bytes:
                    return None
                data = file.read(largest_bytes + 1)
                return json.loads(data) if len(data) <= largest_bytes else None
            except (OSError, ValueError, RecursionError):
                return None

    def _open_plain(self, path: bytes) -> int | None:
        if self._fd is None:
            return None
        try:
            return open_plain(self._fd, path)
        except (OSError, ValueError):
            return None


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
