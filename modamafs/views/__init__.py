"""The ``views/`` tree of a mount: sessions by what is known of them, as links.

Pure: no files, no clock. A directory is a mapping whose entries are made when they are looked at,
so that of 10,000 sessions only the level that is asked for is built.

``AREA/PROJECT/`` has ``latest``, ``sealed/``, ``open/``, ``by-owner/USER/``,
``by-instrument/NAME/``, ``by-date/YYYY/MM/`` and ``by/KEY=VALUE/``; in these each session has its
own name. ``all/`` has the same of all sessions, and ``mine/`` of those that the caller owns or is a
member of, which it also has directly; there a session is called ``AREA~PROJECT~SESSION``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeAlias

from modamafs.catalog import Measured, Project, Session
from modamafs.views.names import joined, safe

ALL, MINE = "all", "mine"
"""An area that is called so has no subtree of its own; its sessions are in ``all/``."""

Link: TypeAlias = str
"""A target: a path relative to the root of the mount (surrogateescape)."""
Entry: TypeAlias = "Link | Callable[[], Directory]"
Directory: TypeAlias = Mapping[str, Entry]


@dataclass(frozen=True, slots=True)
class SessionFacts:
    """What the views know of one session."""

    path: str
    """Of its directory, relative to the root of the mount (surrogateescape)."""
    area: str
    project_name: str
    session_name: str
    """The names of the directories."""
    session: Session | None
    """Its record; None where it has no (readable) one."""
    project: Project | None
    owner: str
    """The login name (or number) of who owns it."""
    mtime_ns: int
    """Of its directory."""
    sealed: bool

    @property
    def date(self) -> str:
        """The day of the measurement, YYYY-MM-DD; without a record, when it changed last (UTC)."""
        if self.session is not None:
            return self.session.date
        try:
            return datetime.fromtimestamp(self.mtime_ns // 1_000_000_000, UTC).date().isoformat()
        except (ValueError, OverflowError, OSError):
            return ""

    @property
    def age(self) -> tuple[str, str, str]:
        """What sessions are ordered by: the newest is the greatest."""
        return self.date, self.session_name, self.path


Name: TypeAlias = Callable[[SessionFacts], str]
Keys: TypeAlias = Callable[[SessionFacts], Iterable[str]]


def root(sessions: Sequence[SessionFacts], user: str | None) -> Directory:
    """The ``views/`` directory. ``user`` is the login name of the caller; None: not known."""
    return _Lazy(lambda: _root(sessions, user))


def relative(link: Link, depth: int) -> str:
    """A link's target as seen from its directory, which lies ``depth`` levels below the root."""
    return "../" * depth + link


class _Lazy(Mapping[str, Entry]):
    """A mapping that is made when it is first looked into."""

    def __init__(self, make: Callable[[], Directory]) -> None:
        self._make = make
        self._made: Directory | None = None

    def _entries(self) -> Directory:
        if self._made is None:
            self._made = self._make()
        return self._made

    def __getitem__(self, name: str) -> Entry:
        return self._entries()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries())

    def __len__(self) -> int:
        return len(self._entries())


def _root(sessions: Sequence[SessionFacts], user: str | None) -> Directory:
    entries: dict[str, Entry] = _grouped(sessions, lambda one: [one.area], _area)
    entries[ALL] = lambda: _subtrees(sessions, _unique_name)
    entries[MINE] = lambda: _mine([one for one in sessions if _is_of(one, user)])
    return entries


def _area(sessions: Sequence[SessionFacts]) -> Directory:
    return _grouped(
        sessions, lambda one: [one.project_name], lambda inside: _subtrees(inside, _own_name)
    )


def _mine(sessions: Sequence[SessionFacts]) -> Directory:
    return {**_links(sessions, _unique_name), **_subtrees(sessions, _unique_name)}


def _subtrees(sessions: Sequence[SessionFacts], name: Name) -> Directory:
    def leaf(inside: Sequence[SessionFacts]) -> Directory:
        return _links(inside, name)

    def month(inside: Sequence[SessionFacts]) -> Directory:
        return _grouped(inside, lambda one: [one.date[5:7]], leaf)

    entries: dict[str, Entry] = {
        "sealed": lambda: leaf([one for one in sessions if one.sealed]),
        "open": lambda: leaf([one for one in sessions if not one.sealed]),
        "by-owner": lambda: _grouped(sessions, lambda one: [safe(one.owner)], leaf),
        "by-instrument": lambda: _grouped(sessions, _instrument, leaf),
        "by-date": lambda: _grouped(sessions, _year, month),
        "by": lambda: _grouped(sessions, _properties, leaf),
    }
    if sessions:
        entries["latest"] = max(sessions, key=lambda one: one.age).path
    return entries


def _grouped(
    sessions: Iterable[SessionFacts],
    keys: Keys,
    below: Callable[[Sequence[SessionFacts]], Directory],
) -> dict[str, Entry]:
    """A directory for each key that a session has; with the same name, one for all of them."""
    groups: dict[str, dict[str, SessionFacts]] = {}
    for session in sessions:
        for key in keys(session):
            groups.setdefault(key, {})[session.path] = session

    def entry(inside: Sequence[SessionFacts]) -> Entry:
        return lambda: below(inside)

    return {key: entry(list(groups[key].values())) for key in sorted(groups)}


def _links(sessions: Iterable[SessionFacts], name: Name) -> dict[str, Entry]:
    return {name(one): one.path for one in sorted(sessions, key=lambda one: one.path)}


def _own_name(session: SessionFacts) -> str:
    return session.session_name


def _unique_name(session: SessionFacts) -> str:
    return joined(session.area, session.project_name, session.session_name)


def _is_of(session: SessionFacts, user: str | None) -> bool:
    if user is None:
        return False
    people = [session.session.owner] if session.session else []
    if session.project:
        people += [session.project.owner, *session.project.members]
    return session.owner == user or any(person.user == user for person in people)


def _instrument(session: SessionFacts) -> Iterable[str]:
    if session.session and session.session.instrument:
        yield safe(session.session.instrument)


def _year(session: SessionFacts) -> Iterable[str]:
    if session.date:
        yield session.date[:4]


def _properties(session: SessionFacts) -> Iterator[str]:
    """The names below ``by/``; of a key that the project has too, the session's value."""
    record, project = session.session, session.project
    values: dict[str, Measured] = dict(project.metadata) if project else {}
    keywords = list(project.keywords) if project else []
    if record:
        values |= record.metadata
        keywords += record.keywords
    for key, value in values.items():
        yield _property(key, str(value))
    for keyword in keywords:
        yield _property("keyword", keyword)
    if record and record.instrument:
        yield _property("instrument", record.instrument)
    if record and record.sample:
        yield _property("sample", record.sample)


def _property(key: str, value: str) -> str:
    return safe(f"{key.replace('=', '_')}={value}")
