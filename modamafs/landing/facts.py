"""What is known of one directory: everything that its landing directory shows, and no more.

Gathered by ``modamafs.tree`` (which reads the store), rendered by the modules beside this one,
which are pure: the same facts give the same bytes, whenever and wherever. So nothing in here is
relative to now. Paths are text (surrogateescape), relative to the store or to the directory as
said.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from modamafs.catalog import FileMetadata, Project, Session

Kind = Literal["store", "area", "project", "session", "directory"]
"""What a directory is, by its depth: AREA/PROJECT/SESSION; deeper ones are ``directory``."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One file, directory or link."""

    path: str
    """Relative to the directory that the facts are about."""
    kind: Literal["file", "directory", "link", "other"]
    size_bytes: int
    mtime_ns: int
    b3: str | None = None
    """BLAKE3 from the seal's manifest (hexadecimal); None where it is not sealed."""


@dataclass(frozen=True, slots=True)
class Seal:
    """A sealed directory (or one that is being sealed); its record's fields, see docs/seals.md."""

    path: str
    """Relative to the directory that the facts are about; "." for itself, and with ``../`` where a
    directory above it is what is sealed."""
    state: Literal["open", "sealing", "sealed", "unsealing"]
    record: Mapping[str, Any] = field(default_factory=dict)
    """``content_hash``, ``attribute_hash``, ``file_count``, ``size_bytes``, ``sealed_at``,
    ``sealed_by``, ``until``, ``hold``, ``reason``, ``immutable_flag``, …; empty where open."""
    verified: Mapping[str, Any] | None = None
    """What ``verify`` found last (``ok``, ``verified_at``, ``missing``, ``damaged``, …)."""


@dataclass(frozen=True, slots=True)
class Facts:
    """See the module."""

    path: str
    """Relative to the store; "" for the store itself."""
    kind: Kind
    owner: str
    """Login name (or number) of the directory's owner."""
    group: str
    mode: int
    mtime_ns: int
    changed_ns: int
    """When anything in here changed last: what is rendered has this as its time."""
    project: Project | None = None
    """Of the project that this is, or lies in; None where it has no (readable) record."""
    session: Session | None = None
    problems: tuple[str, ...] = ()
    """Records that can't be understood, and why: one line each, for people."""
    entries: tuple[Entry, ...] = ()
    """What the directory holds: of a session (and below) all files and directories down to the
    bottom, sorted by path, at most ``ENTRIES_LIMIT``; of others what lies directly in it."""
    entries_left_out: int = 0
    """How many more there are."""
    seals: tuple[Seal, ...] = ()
    """The sealed directories in it, at any depth; first the one that covers it, if there is one."""
    metadata: Mapping[str, FileMetadata] = field(default_factory=dict)
    """By path relative to this directory."""
    links: Mapping[str, str] = field(default_factory=dict)
    """URL templates of ``[links]`` in config.toml, by name (``nextcloud``, ``jupyterhub``,
    ``libertem``, ``sampledb``, ``elabftw``, ``view``); see ``landing/links.py``."""
    publisher: str = ""
    """``[landing] publisher`` in config.toml: who runs this store."""


ENTRIES_LIMIT = 10_000
