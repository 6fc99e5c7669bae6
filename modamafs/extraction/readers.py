"""What a reader of instrument files is: a plug-in of the entry point group ``modamafs.readers``.

A reader runs in a process of its own, in a sandbox (``process.py``), with one file at a time, which
it can read and nothing else. What it returns is checked by who asked, as a reader is only as
trustworthy as the file that it reads.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Protocol

from modamafs.catalog import Measured

GROUP = "modamafs.readers"
VALUES_LIMIT = 500
KEY = re.compile(r"[a-z][a-z0-9_]{0,63}")
TEXT_LIMIT = 1000
"""Characters of one value."""
UNIT_LIMIT = 40
PREVIEW_LIMIT_BYTES = 64 << 10
PREVIEW_SIDE = 256
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True, slots=True)
class Found:
    """What a reader found in a file."""

    values: Mapping[str, Measured] = field(default_factory=dict)
    """By key in lower_snake_case; docs/metadata.md has those that readers share."""
    preview: bytes | Callable[[], bytes | None] | None = None
    """A PNG of at most 256 pixels a side and 64 KiB, or what makes one: that is called last, and
    whatever becomes of it, the values are kept."""


class Reader(Protocol):
    """What an entry point names: a module or an object.

    Loading it should be quick. It may have two more attributes: ``load()``, called once before the
    first file, for imports that take long; and ``beside``, a mapping from an extension to patterns
    (``{stem}_*.ser``) of other files of the same directory that are read with such a file: they are
    then there, too. ``{stem}`` is the file's name without its extension, ``{prefix}`` that without
    what follows its last ``_``.
    """

    @property
    def name(self) -> str:
        """For people: ``rosettasciio``."""

    @property
    def version(self) -> str:
        """Of what reads."""

    @property
    def extensions(self) -> Collection[str]:
        """In lower case, with the dot."""

    def read(self, path: Path, /) -> Found:
        """Read a file. Any exception: it can't be, and its text says why, for people."""


def plugins() -> list[EntryPoint]:
    """All that are installed, not loaded: other people's first, as they are for fewer files."""
    found = entry_points(group=GROUP)
    return sorted(found, key=lambda point: (point.value.startswith("modamafs."), point.name))


def checked_values(values: Mapping[str, Measured]) -> dict[str, Measured]:
    """What may be kept of a reader's values: no odd keys, no NaN, one line each, not too many."""
    kept: dict[str, Measured] = {}
    for key, found in values.items():
        value, unit = found.value, found.unit
        if isinstance(value, float) and not math.isfinite(value):
            continue
        if isinstance(value, int) and abs(value) >= 1 << 63:
            value = float(value)
        if isinstance(value, str):
            value = one_line(value, TEXT_LIMIT)
        if value == "" or not KEY.fullmatch(key):
            continue
        if len(kept) == VALUES_LIMIT:
            break
        kept[key] = Measured(value=value, unit=one_line(unit, UNIT_LIMIT) if unit else None)
    return kept


def checked_preview(picture: bytes | None) -> bytes | None:
    """The picture, if it is a PNG of the size that is allowed."""
    if picture is None or len(picture) > PREVIEW_LIMIT_BYTES or len(picture) < 33:
        return None
    if not picture.startswith(PNG_SIGNATURE) or picture[12:16] != b"IHDR":
        return None
    width, height = struct.unpack(">II", picture[16:24])
    return picture if 0 < width <= PREVIEW_SIDE and 0 < height <= PREVIEW_SIDE else None


def one_line(text: str, limit: int) -> str:
    """Printable text in one line; what is too long ends in ``…``."""
    clean = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"
