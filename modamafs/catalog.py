"""The words of the catalogue: projects, sessions, people, instruments, measured values, views.

Frozen structures without any I/O. ``project.json`` and ``session.json`` are these, as JSON; what a
record holds besides (fields of other programs) is kept in ``extra`` and written back untouched.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

SCHEMA = 1
"""The version of the records' form; a record without one counts as this."""

Text = Annotated[str, msgspec.Meta(max_length=10_000)]
Line = Annotated[str, msgspec.Meta(max_length=1000, pattern=r"^[^\x00-\x1f\x7f]*$")]
Visibility = Literal["members", "private"]
"""``members``: listed for everybody, as its directory's mode says; ``private``: for members only,
and closed to all others."""


class Person(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody, as far as it is known."""

    name: Line
    user: Line | None = None
    """The login name on this system."""
    orcid: Annotated[str, msgspec.Meta(pattern=r"^\d{4}-\d{4}-\d{4}-\d{3}[\dX]$")] | None = None
    affiliation: Line | None = None


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """One value, as an instrument file or a person gives it."""

    value: str | int | float | bool
    unit: Line | None = None

    def __str__(self) -> str:
        text = str(self.value).lower() if isinstance(self.value, bool) else str(self.value)
        return f"{text} {self.unit}" if self.unit else text


class Project(msgspec.Struct, frozen=True, kw_only=True):
    """``<area>/<project>/.modama/project.json``."""

    schema: int = SCHEMA
    id: str
    """A UUID that stays the same when the directory is renamed."""
    title: Line
    description: Text = ""
    owner: Person
    members: tuple[Person, ...] = ()
    group: Line | None = None
    """The group of users that may write; None: access is by the directory's mode alone."""
    visibility: Visibility = "members"
    license: Line | None = None
    """An SPDX identifier or a URL."""
    keywords: tuple[Line, ...] = ()
    links: dict[Line, Line] = {}
    """Title → URL, besides those that ``config.toml`` has templates for."""
    metadata: dict[Line, Measured] = {}
    created_at: str = ""
    """UTC, ISO 8601 with ``Z``."""
    extra: dict[str, Any] = {}
    """What else the record holds, kept as it is. Not a key of its own in the file."""


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """``<area>/<project>/<session>/.modama/session.json``."""

    schema: int = SCHEMA
    id: str
    title: Line
    description: Text = ""
    owner: Person
    instrument: Line | None = None
    date: Annotated[str, msgspec.Meta(pattern=r"^\d{4}-\d{2}-\d{2}$")]
    """The day of the measurement."""
    sample: Line | None = None
    sampledb_id: int | None = None
    """The object's number in SampleDB."""
    elabftw_id: int | None = None
    """The experiment's number in the electronic lab notebook."""
    keywords: tuple[Line, ...] = ()
    links: dict[Line, Line] = {}
    metadata: dict[Line, Measured] = {}
    created_at: str = ""
    extra: dict[str, Any] = {}


class View(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``<store>/.modama/views/<name>.json``: what of a store a mount may show.

    Nothing is kept in ``extra``: a key that is not understood might restrict what is shown.
    """

    schema: Literal[1] = 1
    title: Line = ""
    projects: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    """``area/project`` (surrogateescape). Of one project, the mount's root is the project's
    directory; of several, the store's, with these only."""
    read_only: bool = False
    owner: Line | None = None
    """The login name of who is shown to own everything, and owns what is created."""


class FileMetadata(msgspec.Struct, frozen=True, kw_only=True):
    """What a reader found in one instrument file; kept in the session's records."""

    path: str
    """Relative to the session's directory (surrogateescape)."""
    size_bytes: int
    mtime_ns: int
    """Of the file when it was read: another size or time, and it is read again."""
    reader: str = ""
    """The reader's name and version; "" where none took the file."""
    problem: str | None = None
    """Why it can't be read, in one line; then ``values`` is empty."""
    values: dict[str, Measured] = {}
    """By key in lower_snake_case: ``beam_energy`` → 300 keV; ``shape`` → "(64, 128, 128)"."""
    preview_png: bytes | None = None
    """A small picture (at most 256 pixels a side, 64 KiB) where the reader gives one."""
