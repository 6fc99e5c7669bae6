"""``files/``: what is known of each file; one value a file, to be read with ``cat``.

Only what is asked for is made: a session may hold many thousand files.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Union

from modamafs.catalog import FileMetadata
from modamafs.landing.facts import Entry, Facts
from modamafs.landing.links import urls
from modamafs.landing.words import json_text, shown

NAME = "files"
ABOUT = "What was extracted from each file: `files/PATH/KEY`, one value a file, and `all.json`"

OWN = {
    "all.json": "everything known of the file",
    "url": "its deep links, one a line",
    "b3": "its BLAKE3 hash, where it is sealed",
    "problem": "why it can't be read, where it can't",
}
"""The files beside the values. A value that is called so is only in ``all.json``."""

Node = Union[Callable[[], bytes], "Mapping[str, Node]"]


def entries(facts: Facts) -> Mapping[str, Node]:
    """The directory's tree of files, each of which is a directory here."""
    return _Directory(facts, "")


class _Directory(Mapping[str, Node]):
    """A directory that holds files, or directories of files."""

    def __init__(self, facts: Facts, prefix: str) -> None:
        """``prefix``: its path and a slash; "" for the top."""
        self._facts = facts
        self._prefix = prefix

    def __getitem__(self, name: str) -> Node:
        if not name or "/" in name:
            raise KeyError(name)
        path = self._prefix + name
        entry = _entry(self._facts, path)
        metadata = self._facts.metadata.get(path)
        if metadata is not None or (entry is not None and entry.kind == "file"):
            return _File(self._facts, path, entry, metadata)
        below = _Directory(self._facts, path + "/")
        if next(iter(below), None) is None:
            raise KeyError(name)
        return below

    def __iter__(self) -> Iterator[str]:
        seen = set()
        for path in self._paths():
            name = path[len(self._prefix) :].partition("/")[0]
            if name not in seen:
                seen.add(name)
                yield name

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _paths(self) -> Iterator[str]:
        """Of the files in it, at any depth. Entries are sorted, so those are together."""
        listed = self._facts.entries
        at = bisect_left(listed, self._prefix, key=lambda entry: entry.path)
        while at < len(listed) and listed[at].path.startswith(self._prefix):
            if listed[at].kind == "file":
                yield listed[at].path
            at += 1
        # Of files beyond the limit, too.
        yield from sorted(path for path in self._facts.metadata if path.startswith(self._prefix))


class _File(Mapping[str, Node]):
    """What is known of one file."""

    def __init__(
        self, facts: Facts, path: str, entry: Entry | None, metadata: FileMetadata | None
    ) -> None:
        self._facts = facts
        self._path = path
        self._entry = entry
        self._metadata = metadata

    def __getitem__(self, name: str) -> Node:
        metadata = self._metadata
        if name == "all.json":
            return partial(_all, self._facts, self._path, self._entry, metadata)
        if name == "url" and urls(self._facts, self._path):
            return partial(_lines, [*urls(self._facts, self._path).values()])
        if name == "b3" and self._entry and self._entry.b3:
            return partial(_lines, [self._entry.b3])
        if name == "problem" and metadata and metadata.problem:
            return partial(_lines, [metadata.problem])
        if metadata and name in metadata.values and _is_name(name):
            return partial(_lines, [str(metadata.values[name])])
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        yield from (name for name in OWN if name in self)
        if self._metadata:
            yield from filter(_is_name, sorted(self._metadata.values))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def known(
    facts: Facts, path: str, entry: Entry | None, metadata: FileMetadata | None
) -> dict[str, Any]:
    """What ``all.json`` says of a file; None where nobody knows."""
    source = entry or metadata
    return {
        "path": path,
        "size_bytes": source.size_bytes if source else None,
        "mtime_ns": source.mtime_ns if source else None,
        "b3": entry.b3 if entry else None,
        "reader": metadata.reader if metadata else None,
        "problem": metadata.problem if metadata else None,
        "values": {
            key: {"value": value.value, "unit": value.unit}
            for key, value in sorted(metadata.values.items() if metadata else ())
        },
        "links": dict(urls(facts, path)),
    }


def _all(facts: Facts, path: str, entry: Entry | None, metadata: FileMetadata | None) -> bytes:
    return json_text(known(facts, path, entry, metadata))


def _entry(facts: Facts, path: str) -> Entry | None:
    at = bisect_left(facts.entries, path, key=lambda entry: entry.path)
    found = facts.entries[at] if at < len(facts.entries) else None
    return found if found is not None and found.path == path else None


def _is_name(key: str) -> bool:
    """Whether a value's key can be a file's name, and is none of ours."""
    return (
        key not in OWN
        and key not in ("", ".", "..")
        and not any(mark in key for mark in "/\0")
        and len(key.encode(errors="replace")) <= 255
    )


def _lines(values: list[str]) -> bytes:
    return "".join(f"{shown(value)}\n" for value in values).encode()
