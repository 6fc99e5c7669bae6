"""Which directories hooks are told of, for what has changed on the store. Pure."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

MOST_DIRECTORIES = 20
"""Of one merge; where more have changed, the directories above them are told."""
MOST_GATHERED = 10_000
"""Directories that are kept apart while they are gathered."""


def places(change: Mapping[str, Any]) -> Iterator[tuple[bytes, bool]]:
    """The directories that a change (as ``follow_command`` tells it) is to be looked for in.

    And whether in all below, too: what came with all that is in it is a single change.
    """
    event, path = change["event"], os.fsencode(change["path"])
    is_directory = change["kind"] == "directory"
    if event == "lost":
        yield b"", True
    elif event == "modified" and is_directory:  # somewhere deep below
        yield path, True
    else:
        yield os.path.dirname(path), False
        if event == "moved" and change["old_path"]:
            yield os.path.dirname(os.fsencode(change["old_path"])), False
        if is_directory and event in ("created", "moved"):
            yield path, True


class Gathered:
    """What has changed in a while: directories, and whether all below them may have changed."""

    def __init__(self) -> None:
        self._found: dict[bytes, bool] = {}

    def __len__(self) -> int:
        return len(self._found)

    def add(self, path: bytes, recursive: bool) -> None:
        """One more."""
        self._found[path] = recursive or self._found.get(path, False)
        if len(self._found) > MOST_GATHERED:
            self._found = merged(self._found, MOST_DIRECTORIES)

    def take(self) -> dict[bytes, bool]:
        """All of it, merged; there is nothing then."""
        found, self._found = self._found, {}
        return merged(found, MOST_DIRECTORIES)


def merged(found: Mapping[bytes, bool], limit: int) -> dict[bytes, bool]:
    """Not more than ``limit`` directories, in the order of their paths, that stand for all.

    Nothing is told that lies below a directory of which all is told. Where there are too many,
    paths are cut off: as many names from the top are left as make few enough of them.
    """
    apart = _without_covered(found)
    if len(apart) <= limit:
        return apart
    split = {path: _parts(path) for path in apart}
    depth = 0
    while len({parts[: depth + 1] for parts in split.values()}) <= limit:
        depth += 1
    cut: dict[bytes, bool] = {}
    for path, parts in split.items():
        above = b"/".join(parts[:depth])
        cut[above] = cut.get(above, False) or apart[path] or above != path
    return _without_covered(cut)


def _without_covered(found: Mapping[bytes, bool]) -> dict[bytes, bool]:
    kept: dict[bytes, bool] = {}
    above: tuple[bytes, ...] | None = None
    for parts, path in sorted((_parts(path), path) for path in found):
        if above is None or parts[: len(above)] != above:
            kept[path] = found[path]
            above = parts if found[path] else None
    return kept


def _parts(path: bytes) -> tuple[bytes, ...]:
    return tuple(path.split(b"/")) if path else ()
