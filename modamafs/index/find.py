"""``modamafs find``: what of a store matches a query, and may be seen by who asks.

The index says where to look. Whether an entry is there, and whether the caller may know of it, is
looked up on the store, step by step from its root, each time: an index that lags behind shows
nobody what is closed to them. Times are nanoseconds since 1970 (UTC).
"""

from __future__ import annotations

import contextlib
import heapq
import json
import pwd
import sqlite3
import time
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence
from itertools import groupby, islice
from pathlib import Path as FilePath
from typing import Any, NamedTuple, TypeAlias

from modamafs.errors import InvalidRequest, TookTooLong
from modamafs.index.database import NotIndexed, open_reader
from modamafs.index.folders import LONGEST_PATH_BYTES, Folder, Folders
from modamafs.index.nodes import DEPTH_OF_PROJECTS, DEPTH_OF_SESSIONS
from modamafs.index.query import (
    TRIGRAM,
    Between,
    Extension,
    Hash,
    Metadata,
    Owner,
    Path,
    Pattern,
    Place,
    Sql,
    Term,
    Word,
    fold,
    inodes,
    parse,
    trigrams,
    where,
)
from modamafs.landing.words import utc
from modamafs.model import Attributes, Caller
from modamafs.store.backing import Store

PAGE_LIMIT = 1000
PATIENCE_S = 10.0
"""After so long a search is given up."""
FEW = 2000
"""So few entries are looked at one by one, whatever else is asked for."""
MANY = 300_000
"""More are not gathered: then the whole index is looked through, in its order."""
FIRST_ROWS = 8000
"""Looked through before anything is gathered: what is frequent fills a page from them."""
ROWS = 2000
"""As many at a time."""
SAMPLE = 100
"""Names that are looked at, to know what most have."""
NOTED = 5000
"""Up to so many inodes with a word are remembered."""
STEPS = 20_000
"""Of SQLite's machine, between two looks at the clock."""

_COLUMNS = "n.id, n.parent, n.name, n.ino, n.generation, n.kind, n.uid, n.sealed"

Row: TypeAlias = tuple[int, int, str | bytes, int, int, str, int, int]


class Result(NamedTuple):
    """An entry that matches. The names of the fields are part of the interface (JSON)."""

    path: str
    """Relative to the store (surrogateescape)."""
    kind: str
    size_bytes: int
    mtime: str
    """ISO 8601, UTC."""
    sealed: bool


class Page(NamedTuple):
    """Some of the results."""

    results: list[Result]
    next: int | None
    """``after`` of the next page; None: there are no more."""


def find(
    connection: sqlite3.Connection,
    store: Store,
    query_text: str,
    caller: Caller,
    *,
    after: int = 0,
    limit: int = PAGE_LIMIT,
    within: bytes = b"",
    shows: Callable[[bytes], bool] | None = None,
    now_ns: int | None = None,
    patience_s: float = PATIENCE_S,
) -> Page:
    """The results behind ``after`` that lie below ``within`` (a path relative to the store).

    Only what the caller may see: who can search every directory above, and read the one that it
    lies in; who asks for metadata or hashes, also read the entry itself. ``caller.groups`` has to
    be known. ``shows`` takes a path, and says whether the mount has it.

    InvalidRequest (EINVAL): the query can't be understood. TookTooLong (ETIMEDOUT). NotIndexed
    (ENOENT): the index can't be read. OSError: there are no descriptors left.
    """
    query = parse(query_text, time.time_ns() if now_ns is None else now_ns)
    deadline_s = time.monotonic() + patience_s
    connection.set_progress_handler(lambda: time.monotonic() > deadline_s, STEPS)
    search = _Search(connection, store, query.terms, caller, within, shows, deadline_s, limit + 1)
    try:
        with contextlib.closing(search):
            connection.execute("BEGIN")  # the index as it is now, for all that is asked of it
            found = list(search.results(after))
    except sqlite3.OperationalError as error:
        if "interrupted" in str(error):
            raise _too_slow(patience_s) from None
        raise NotIndexed(f"the index can't be read ({error}): try again") from None
    except sqlite3.DatabaseError as error:
        raise NotIndexed(
            f"the index is damaged ({error}): make it again with 'modamafs index rebuild'"
        ) from None
    except _TooSlow:
        raise _too_slow(patience_s) from None
    finally:
        connection.set_progress_handler(None, 0)
        if connection.in_transaction:
            connection.rollback()
    return Page(
        [result for _, result in found[:limit]], found[limit - 1][0] if len(found) > limit else None
    )


class _TooSlow(Exception):
    pass


def _too_slow(patience_s: float) -> TookTooLong:
    return TookTooLong(
        f"the search took longer than {patience_s:g} s: add words that are less frequent, or a "
        "directory with --in"
    )


def find_command(
    store: Store,
    index_directory: FilePath,
    arguments: Mapping[str, Any],
    caller: Caller,
    *,
    shows: Callable[[bytes], bool] | None = None,
) -> dict[str, Any]:
    """What the control socket's ``find`` answers; see ``find``. Blocking.

    ``arguments``: query, after (0), limit (1000), path (""). Returns results, next, and state: of
    the index, "ok" or "building", with a message for people.
    """
    query, after, limit, within = _checked(arguments)
    with contextlib.closing(open_reader(index_directory)) as connection:
        page = find(
            connection, store, query, caller, after=after, limit=limit, within=within, shows=shows
        )
        return {
            "results": [result._asdict() for result in page.results],
            "next": page.next,
            "state": _state(connection),
        }


def _checked(arguments: Mapping[str, Any]) -> tuple[str, int, int, bytes]:
    unknown = sorted(arguments.keys() - {"query", "after", "limit", "path"})
    if unknown:
        raise InvalidRequest(f"find takes no {unknown[0]!r}; it takes query, after, limit and path")
    query, path = arguments.get("query"), arguments.get("path", "")
    if not isinstance(query, str):
        raise InvalidRequest("find needs a query, which is a text")
    numbers = []
    for name, default, least, most in (
        ("after", 0, 0, 2**63 - 1),
        ("limit", PAGE_LIMIT, 1, PAGE_LIMIT),
    ):
        number = arguments.get(name, default)
        if type(number) is not int or not least <= number <= most:
            raise InvalidRequest(f"find: {name} is a number from {least} to {most}")
        numbers.append(number)
    if not isinstance(path, str):
        raise InvalidRequest("find: the path is a text, relative to the store")
    try:
        within = path.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise InvalidRequest("find: the path is no text") from None
    parts = within.strip(b"/").split(b"/") if within.strip(b"/") else []
    if any(part in (b"", b".", b"..") or b"\0" in part for part in parts):
        raise InvalidRequest("find: the path is relative to the store, without '.' and '..'")
    return query, numbers[0], numbers[1], b"/".join(parts)


def _state(connection: sqlite3.Connection) -> dict[str, str]:
    try:
        known = dict(connection.execute("SELECT key, value FROM info").fetchall())
    except sqlite3.DatabaseError as error:
        raise NotIndexed(f"the index can't be read ({error}): try again") from None
    if known.get("complete"):
        return {"state": "ok", "message": ""}
    return {"state": "building", "message": "the index is being built"}


# ---- the search ----------------------------------------------------------------------------------


class _Source(NamedTuple):
    """Every entry that can match a term, and some that can't."""

    ids: list[int]
    streams: list[Sql]
    """More of them, in order: each takes the number that they are to be above as its last value."""
    size: int


_Entry: TypeAlias = tuple[Row, Folder, str]
"""What the index has of an entry, the directory that it lies in, and its name, folded."""
_Test: TypeAlias = tuple[int, Callable[[_Entry], bool], bool, Container[int] | None]
"""Of a term: its number, whether it holds for an entry itself, whether that is not wanted, and the
inodes of those for which a note decides; None: maybe for all."""


class _Candidate(NamedTuple):
    row: Row
    folder: Folder
    name: bytes
    undecided: list[int]
    """Terms that hold if a note has them."""


class _Search:
    def __init__(
        self,
        connection: sqlite3.Connection,
        store: Store,
        terms: Sequence[Term],
        caller: Caller,
        within: bytes,
        shows: Callable[[bytes], bool] | None,
        deadline_s: float,
        wanted: int,
    ) -> None:
        """``wanted``: as many results are looked for."""
        self._connection = connection
        self._store = store
        self._terms = terms
        self._is_root = caller.uid == 0
        self._within = within.split(b"/") if within else []
        self._shows = shows
        self._deadline_s = deadline_s
        self._wanted = wanted
        self._folders = Folders(store, caller)
        self._known: dict[int, Folder | None] = {
            store.volume.root_ino: Folder(None, b"", store.volume.root_ino, 0, self._within)
        }
        self._read: dict[int, tuple[int, str | bytes, int]] = {}
        self._noted_by: dict[int, set[int] | None] = {}
        self._units: dict[Metadata, list[str | None]] = {}
        self._sample: list[str] | None = None
        self._asks_for_contents = any(isinstance(term, Metadata | Hash) for term in terms)

    def close(self) -> None:
        self._folders.close()

    def results(self, after: int) -> Iterator[tuple[int, Result]]:
        """In the order of the index, each with its number in it."""
        self._prepare()
        for rows in self._rows(after):
            for result in self._chosen(rows):
                yield result
                self._wanted -= 1
                if not self._wanted:
                    return

    def _check_time(self) -> None:
        if time.monotonic() > self._deadline_s:
            raise _TooSlow

    def _all(self, sql: Sql | str, *values: object) -> list[Any]:
        text, own = (sql, ()) if isinstance(sql, str) else sql
        return self._connection.execute(text, (*own, *values)).fetchall()

    def _prepare(self) -> None:
        """What is known before anything is looked through."""
        self._wheres: list[Sql] = []
        self._tests: list[_Test] = []
        self._named: dict[int, set[int]] = {}
        """For each term about places: the directories whose name or path it has; and those
        where a record has it."""
        self._recorded: dict[int, set[int]] = {}
        self._hashed: dict[int, set[int]] = {}
        for number, term in enumerate(self._terms):
            condition = where(term, self._units_of(term) if isinstance(term, Metadata) else ())
            if condition is not None:
                self._wheres.append(condition)
                continue
            match term:
                case Word():
                    self._noted_by[number] = self._few_noted(term.notes)
                case Place():
                    self._named[number], self._recorded[number] = self._places(term)
                case Owner():
                    self._recorded[number] = self._owned(term)
                case Hash():
                    self._hashed[number] = set(self._with_hash(term))
            self._tests.append(self._test(number, term))

    # -- which rows --

    def _rows(self, after: int) -> Iterator[list[Row]]:
        """Rows that may match, in order: the fewest that it takes to find them all."""
        source = self._cheapest(FEW, enough=FEW // 10)
        if source is None:
            until = after + FIRST_ROWS
            yield from self._scan(after, until)
            after = until
            source = self._cheapest(MANY)
        if source is None:
            yield from self._scan(after, None)
        else:
            yield from self._fetch(self._merged(source, after))

    def _cheapest(self, most: int, enough: int = 0) -> _Source | None:
        best: _Source | None = None
        for term in (None, *sorted(self._terms, key=_rank)):
            self._check_time()
            found = self._source(term, min(most, best.size) if best else most)
            if found and (best is None or found.size < best.size):
                best = found
            if best and best.size <= enough:
                break
        return best

    def _scan(self, after: int, until: int | None) -> Iterator[list[Row]]:
        conditions = [Sql("n.id > ? AND n.parent != 0", (after,)), *self._wheres]
        if until is not None:
            conditions.append(Sql("n.id <= ?", (until,)))
        cursor = self._connection.execute(
            f"SELECT {_COLUMNS} FROM nodes n NOT INDEXED WHERE "
            f"{' AND '.join(one.text for one in conditions)} ORDER BY n.id",
            [value for one in conditions for value in one.values],
        )
        size = 100
        while rows := cursor.fetchmany(size):
            yield rows
            size = min(2 * size, ROWS)

    def _fetch(self, ids: Iterator[int]) -> Iterator[list[Row]]:
        conditions = "".join(f" AND {one.text}" for one in self._wheres)
        values = [value for one in self._wheres for value in one.values]
        size = 100
        while some := list(islice(ids, size)):
            yield self._connection.execute(
                f"SELECT {_COLUMNS} FROM nodes n WHERE n.id IN (SELECT value FROM json_each(?)) "
                f"AND n.parent != 0{conditions} ORDER BY n.id",
                [json.dumps(some), *values],
            ).fetchall()
            size = min(2 * size, ROWS, max(100, self._wanted))

    def _merged(self, source: _Source, after: int) -> Iterator[int]:
        streams: list[Iterable[int]] = [[number for number in source.ids if number > after]]
        for sql in source.streams:
            cursor = self._connection.execute(sql.text, (*sql.values, after))
            streams.append(number for (number,) in cursor)
        return (number for number, _ in groupby(heapq.merge(*streams)))

    # -- where the entries are that a term can match --

    def _source(self, term: Term | None, most: int) -> _Source | None:
        """None: they are more than ``most``, or there is no index for them. Of the term None: what
        lies below ``within``."""
        if term is None:
            return self._gathered(most, folders=self._inside()) if self._within else None
        if term.negated:
            return None
        match term:
            case Word(pattern, notes):
                inos = [] if notes is None else [_noted_by(notes)]
                return self._gathered(most, pattern, inos, with_contents=True)
            case Path(pattern):
                return self._gathered(most, _part_of_path(pattern), with_contents=True)
            case Extension(suffix):
                return self._gathered(most, Pattern(((suffix,),)))
            case Place():
                number = self._terms.index(term)
                places = self._named[number] | self._recorded[number]
                return self._gathered(most, folders=places)
            case Metadata():
                return self._gathered(most, inos=[inodes(term, self._units_of(term))])
            case Hash():
                ids = sorted(self._hashed[self._terms.index(term)])
                return _Source(ids, [], len(ids)) if len(ids) <= most else None
            case Between(field, low, high):
                column = "size_bytes" if field == "size" else "mtime_ns"
                found = self._all(
                    f"SELECT id FROM nodes WHERE {column} BETWEEN ? AND ? LIMIT ?",
                    low, high, most + 1,
                )  # fmt: skip
                if len(found) > most:
                    return None
                return _Source(sorted(number for (number,) in found), [], len(found))
        return None

    def _gathered(
        self,
        most: int,
        names: Pattern | None = None,
        inos: Sequence[Sql] = (),
        folders: Collection[int] = (),
        *,
        with_contents: bool = False,
    ) -> _Source | None:
        """Entries with such a name, of these inodes, and all in directories that are among them;
        ``folders``: these directories, and all in them."""
        few, streams, size = self._named_like(names, most)
        if len(folders) > most or (size > most and most <= FEW):
            return None
        ids = set(few)
        places = set(folders)
        if names is not None and with_contents:
            places |= self._folders_like(names, most)
        own = Sql("SELECT value AS ino FROM json_each(?)", (json.dumps(list(folders)),))
        for sql in (*inos, own):
            found = self._all(
                "SELECT n.id, n.ino, n.kind FROM "
                f"(SELECT * FROM ({sql.text}) LIMIT ?) i CROSS JOIN nodes n ON n.ino = i.ino",
                *sql.values, most + 1,
            )  # fmt: skip
            ids.update(number for number, _, _ in found)
            places.update(ino for _, ino, kind in found if kind == "directory")
            if len(found) > most:
                return None
        if len(ids) + len(places) > most:
            return None
        if places:
            ids.update(self._below(places, most + 1))
        if len(ids) > most:
            return None
        return _Source(sorted(ids), streams, size - len(few) + len(ids))

    def _named_like(self, names: Pattern | None, most: int) -> _Source:
        """Entries whose name may match; more than ``most`` are not counted."""
        if names is None:
            return _Source([], [], 0)
        pieces = names.pieces()
        match = trigrams(pieces)
        likes = names.likes()
        if match is None:  # too short: every name is looked at
            sql = Sql(
                f"SELECT id FROM nodes WHERE ({_like(likes)}) AND id > ? ORDER BY id", tuple(likes)
            )
            return _Source([], [sql], MANY)
        rarer = trigrams([self._rarest(piece) for piece in pieces])
        if rarer == match:
            sql = Sql(
                "SELECT rowid FROM names WHERE names MATCH ? AND rowid > ? ORDER BY rowid", (match,)
            )
        else:
            sql = Sql(
                "SELECT n.id FROM names CROSS JOIN nodes n ON n.id = names.rowid "
                f"WHERE ({_like(likes, 'n.name')}) AND names MATCH ? AND names.rowid > ? "
                "ORDER BY names.rowid",
                (*likes, rarer),
            )
        if most > FEW:
            count = f"SELECT count(*) FROM ({sql.text} LIMIT ?)"
            [(size,)] = self._all(count, *sql.values, 0, most + 1)
            return _Source([], [sql], size)
        # Asked for once: that takes longer than all that is done with them.
        found = [number for (number,) in self._all(f"{sql.text} LIMIT ?", *sql.values, 0, most + 1)]
        return _Source(found, [] if len(found) <= most else [sql], len(found))

    def _rarest(self, piece: str) -> str:
        """What is left of a piece without what begins and ends it in most names: there SQLite
        would look through nearly all of them. All of it, where nothing is."""
        start, end = 0, len(piece)
        while end - start >= TRIGRAM and self._is_common(piece[start : start + TRIGRAM]):
            start += 1
        while end - start >= TRIGRAM and self._is_common(piece[end - TRIGRAM : end]):
            end -= 1
        return piece[start:end] if end - start >= TRIGRAM else piece

    def _is_common(self, letters: str) -> bool:
        """Whether most names have them, as far as a sample says."""
        if self._sample is None:
            [(last,)] = self._all("SELECT coalesce(max(id), 0) FROM nodes")
            step = last // SAMPLE + 1
            found = self._all(
                "SELECT name FROM nodes WHERE id IN (SELECT value FROM json_each(?))",
                json.dumps(list(range(step, last + 1, step))),
            )
            self._sample = [fold(_text(_bytes(name))) for (name,) in found]
        return 2 * sum(letters in name for name in self._sample) > len(self._sample)

    def _below(self, inos: Iterable[int], most: int) -> Iterator[int]:
        """Entries in directories, at any depth."""
        found = self._all(
            "WITH RECURSIVE below (ino) AS (SELECT value FROM json_each(?) UNION "
            "SELECT n.ino FROM below b CROSS JOIN nodes n ON n.parent = b.ino "
            "WHERE n.kind = 'directory') "
            "SELECT n.id FROM below b CROSS JOIN nodes n ON n.parent = b.ino LIMIT ?",
            json.dumps(list(inos)), most,
        )  # fmt: skip
        return (number for (number,) in found)

    def _folders_like(self, pattern: Pattern, most: int) -> set[int]:
        """Directories whose name matches; if they are more than ``most``, some of them."""
        likes = pattern.likes()
        found = self._connection.execute(
            f"SELECT ino, name FROM nodes WHERE kind = 'directory' AND ({_like(likes)})", likes
        )
        matching = (ino for ino, name in found if pattern.matches(fold(_text(_bytes(name)))))
        return set(islice(matching, most + 1))

    def _inside(self) -> list[int]:
        """The directory that everything has to lie in."""
        ino = self._store.volume.root_ino
        for name in self._within:
            found = self._all(
                "SELECT ino FROM nodes WHERE parent = ? AND name = ? AND kind = 'directory'",
                ino, _stored(name),
            )  # fmt: skip
            if not found:
                return []
            [(ino,)] = found
        return [ino]

    # -- what terms are about --

    def _units_of(self, term: Metadata) -> list[str | None]:
        """Those that the index has for the keys."""
        if term.measure is None:
            return []
        if term not in self._units:
            found = self._all(
                "WITH RECURSIVE found (key, unit) AS (SELECT value, '' FROM json_each(?) UNION ALL "
                "SELECT key, (SELECT min(m.unit) FROM metadata m "
                "WHERE m.key = found.key AND m.unit > found.unit) FROM found "
                "WHERE unit IS NOT NULL) SELECT DISTINCT unit FROM found",
                json.dumps(term.keys),
            )
            self._units[term] = [None, *(unit for (unit,) in found if unit is not None)]
        return self._units[term]

    def _places(self, term: Place) -> tuple[set[int], set[int]]:
        """Directories of projects or sessions: by name or path, and by what their record says."""
        steps = "nodes r JOIN nodes a ON a.parent = r.ino JOIN nodes p ON p.parent = a.ino"
        if term.field == "project":
            sql = (
                "SELECT p.ino, coalesce(t.title, ''), a.name, p.name "
                f"FROM {steps} LEFT JOIN projects t ON t.ino = p.ino"
            )
        else:
            said = "instrument" if term.field == "instrument" else "title"
            sql = (
                f"SELECT s.ino, coalesce(t.{said}, ''), a.name, p.name, s.name FROM {steps} "
                "JOIN nodes s ON s.parent = p.ino AND s.kind = 'directory' "
                "LEFT JOIN sessions t ON t.ino = s.ino"
            )
        sql += " WHERE r.parent = 0 AND a.kind = 'directory' AND p.kind = 'directory'"
        named, recorded = set(), set()
        for ino, said, *names in self._connection.execute(sql):
            parts = [fold(_text(_bytes(name))) for name in names]
            if term.pattern.matches(fold(str(said))):
                recorded.add(ino)
            if term.field != "instrument" and (
                term.pattern.matches(parts[-1])
                or (
                    any("/" in text for form in term.pattern.forms for text in form)
                    and term.pattern.matches("/".join(parts))
                )
            ):
                named.add(ino)
        return named, recorded

    def _owned(self, term: Owner) -> set[int]:
        """Sessions, and projects, whose record names somebody as owner."""
        found = self._all("SELECT ino, owner FROM sessions WHERE owner IS NOT NULL")
        return {ino for ino, owner in found if _names(term.name, str(owner))}

    def _with_hash(self, term: Hash) -> Iterator[int]:
        found = self._all(
            "SELECT parent, seal, path FROM hashes WHERE blake3 BETWEEN ? AND ? LIMIT ?",
            term.prefix, term.prefix + "g", MANY,
        )  # fmt: skip
        like = (term.prefix + "%", "%:" + term.prefix + "%")
        found += self._all(
            "SELECT parent, name, '' FROM seals WHERE content_hash LIKE ? OR content_hash LIKE ?",
            *like,
        )
        for parent, seal, path in found:
            ino = number = parent
            for name in (_bytes(seal), *(part for part in _bytes(path).split(b"/") if part)):
                rows = self._all(
                    "SELECT id, ino FROM nodes WHERE parent = ? AND name = ?", ino, _stored(name)
                )
                if not rows:
                    break
                [(number, ino)] = rows
            else:
                yield number

    def _few_noted(self, notes: str | None) -> set[int] | None:
        """The inodes about which a word was written; None: they are more than a few."""
        if notes is None:
            return set()
        found = self._all(_noted_by(notes, " LIMIT ?"), NOTED + 1)
        return {ino for (ino,) in found} if len(found) <= NOTED else None

    def _noted(self, number: int, inos: Sequence[int]) -> set[int]:
        """Those of the inodes about which the word was written."""
        known = self._noted_by[number]
        if known is not None:
            return known
        term = self._terms[number]
        assert isinstance(term, Word) and term.notes is not None
        near: set[int] = set()
        wanted = sorted(set(inos))
        start = 0
        for index, ino in enumerate(wanted):  # inodes of a directory have numbers near each other
            if index + 1 == len(wanted) or wanted[index + 1] - ino > 100:
                sql = _noted_by(term.notes, " AND rowid BETWEEN ? AND ?")
                near.update(found for (found,) in self._all(sql, wanted[start], ino))
                start = index + 1
        return near

    # -- which of the rows --

    def _chosen(self, rows: Sequence[Row]) -> Iterator[tuple[int, Result]]:
        candidates = []
        self._read_folders({row[1] for row in rows})
        for row in rows:
            self._check_time()
            candidate = self._considered(row)
            if candidate is not None:
                candidates.append(candidate)
        noted = {
            number: self._noted(
                number, [one.row[3] for one in candidates if number in one.undecided]
            )
            for number in {number for one in candidates for number in one.undecided}
        }
        for one in candidates:
            result = self._result(one, noted)
            if result is not None:
                yield one.row[0], result

    def _considered(self, row: Row) -> _Candidate | None:
        """What of the query can be decided without the store says yes, or nothing."""
        ino, name = row[3], row[2]
        folder = self._known.get(row[1]) or self._folder(row[1])
        if folder is None or not folder.is_inside:
            return None
        if not (folder.shown or self._folders.shows_names(folder)):
            return None
        text = fold(name if isinstance(name, str) else _text(name))
        undecided = []
        for number, holds, negated, noted in self._tests:
            if folder.holds >> number & 1 or holds((row, folder, text)):
                if negated:
                    return None
            elif noted is None or ino in noted:
                undecided.append(number)
            elif not negated:
                return None
        return _Candidate(row, folder, _bytes(name), undecided)

    def _test(self, number: int, term: Term) -> _Test:
        """Whether a term holds for an entry itself, notes aside."""
        holds: Callable[[_Entry], bool]
        noted: Container[int] | None = ()
        match term:
            case Word(pattern):
                holds = _name_test(pattern)
                noted = self._noted_by[number]
            case Extension(suffix):
                holds = lambda entry: entry[0][5] == "file" and entry[2].endswith(suffix)  # noqa: E731
            case Path(pattern):
                holds = _path_test(pattern)

            case Owner(name):
                uid = _uid(name)
                holds = lambda entry: entry[0][6] == uid or self._is_place(number, entry[0])  # noqa: E731
            case Place():
                named = self._named[number]
                holds = lambda entry: entry[0][3] in named or self._is_place(number, entry[0])  # noqa: E731
            case Hash():
                hashed = self._hashed[number]
                holds = lambda entry: entry[0][0] in hashed  # noqa: E731
            case _:
                raise AssertionError(term)
        return number, holds, term.negated, noted

    def _is_place(self, number: int, row: Row) -> bool:
        """Whether a directory's record has it, and the caller may know what that says."""
        if row[3] not in self._recorded[number]:
            return False
        folder = self._folder(row[3])
        return folder is not None and self._folders.shows_record(folder)

    def _folder(self, ino: int) -> Folder | None:
        """The directory with that inode number; None: it is not in the index, or too deep."""
        if ino in self._known:
            return self._known[ino]
        self._read_folders({ino})
        missing: list[int] = []
        met: set[int] = set()
        while ino not in self._known and ino in self._read and ino not in met:
            met.add(ino)
            missing.append(ino)
            ino = self._read[ino][0]
        above = self._known.get(ino)
        for ino in reversed(missing):
            self._check_time()
            _, stored, generation = self._read[ino]
            name = _bytes(stored)
            folder = None
            if above is not None and above.length_below(name) <= LONGEST_PATH_BYTES:
                folder = Folder(above, name, ino, generation, self._within)
                folder.holds = self._holding(folder)
            self._known[ino] = above = folder
        return above

    def _read_folders(self, inos: set[int]) -> None:
        """What the index says of directories, and of all above them: level by level."""
        while wanted := [ino for ino in inos if ino not in self._known and ino not in self._read]:
            self._check_time()
            found = self._all(
                "SELECT ino, parent, name, generation FROM nodes "
                "WHERE ino IN (SELECT value FROM json_each(?)) AND kind = 'directory'",
                json.dumps(wanted),
            )
            self._read.update(
                (ino, (parent, name, generation)) for ino, parent, name, generation in found
            )
            inos = {parent for _, parent, _, _ in found}

    def _holding(self, folder: Folder) -> int:
        """The bits of the terms that hold for all that lies in a directory."""
        assert folder.above is not None
        holds = folder.above.holds
        text = ""
        for number, *_ in self._tests:
            if holds >> number & 1:
                continue
            text = text or fold(_text(folder.name))
            if self._holds_below(number, self._terms[number], folder, text):
                holds |= 1 << number
        return holds

    def _holds_below(self, number: int, term: Term, folder: Folder, text: str) -> bool:
        match term:
            case Word(pattern):
                return pattern.matches(text) or (
                    folder.depth in (DEPTH_OF_PROJECTS, DEPTH_OF_SESSIONS)
                    and folder.ino in self._noted(number, [folder.ino])
                    and self._folders.shows_record(folder)
                )
            case Path(pattern):
                return not pattern.whole and pattern.matches(fold(_text(folder.path())))
            case Place():
                if folder.ino in self._named[number]:
                    return True
                return folder.ino in self._recorded[number] and self._folders.shows_record(folder)
            case Owner():
                return folder.ino in self._recorded[number] and self._folders.shows_record(folder)
        return False

    def _result(self, one: _Candidate, noted: Mapping[int, set[int]]) -> Result | None:
        """The entry as it is on the store, if it is there, and all of the query holds."""
        _, _, _, ino, generation, kind, _, sealed = one.row
        for number in one.undecided:
            if not self._terms[number].negated and ino not in noted[number]:
                return None
        path = one.folder.path_below(one.name)
        if self._shows is not None and not self._shows(path):
            return None
        found = self._folders.entry(one.folder, one.name)
        if found is None or (found.ino, found.generation) != (ino, generation):
            return None
        if self._folders.hides(one.folder, one.name, found) or not self._is_known(
            one, found, noted
        ):
            return None
        return Result(_text(path), kind, found.size_bytes, utc(found.mtime_ns), bool(sealed))

    def _is_known(self, one: _Candidate, found: Attributes, noted: Mapping[int, set[int]]) -> bool:
        """Whether notes decide as the query has it, and the caller may know what decides."""
        is_noted = {number for number in one.undecided if one.row[3] in noted[number]}
        may_read = True
        if not self._is_root and (is_noted or self._asks_for_contents):
            may_read = self._folders.may_read(one.folder, one.name, found)
        if self._asks_for_contents and not (may_read and self._knows_records(one.folder)):
            return False
        return all(
            (number in is_noted and may_read) != self._terms[number].negated
            for number in one.undecided
        )

    def _knows_records(self, folder: Folder | None) -> bool:
        """Whether the caller may know what is written about the session and project above."""
        while folder is not None:
            if folder.depth in (
                DEPTH_OF_PROJECTS,
                DEPTH_OF_SESSIONS,
            ) and not self._folders.shows_record(folder):
                return False
            folder = folder.above
        return True


def _path_test(pattern: Pattern) -> Callable[[_Entry], bool]:
    """Many entries of one directory come one after the other: its path is made once for them."""
    of: Folder | None = None
    above = ""

    def holds(entry: _Entry) -> bool:
        nonlocal of, above
        _, folder, text = entry
        if folder is not of:
            of, above = folder, fold(_text(folder.path_below(b"")))
        return pattern.matches(above + text)

    return holds


def _name_test(pattern: Pattern) -> Callable[[_Entry], bool]:
    if len(pattern.forms) == 1 and not pattern.whole:
        [[piece]] = pattern.forms
        return lambda entry: piece in entry[2]
    return lambda entry: pattern.matches(entry[2])


def _rank(term: Term) -> tuple[int, int]:
    """Which are asked first how frequent they are: those that take no time, or are long words."""
    match term:
        case Hash() | Place():
            return 0, 0
        case Word(pattern) | Path(pattern):
            return 1, -min(map(len, pattern.pieces()))
        case Metadata() | Between():
            return 2, 0
    return 3, 0


def _part_of_path(pattern: Pattern) -> Pattern:
    """Something that the name of the entry, or of a directory above, has for sure."""
    longest = []
    for form in pattern.forms:
        parts = [part for text in form[::2] for part in text.split("/")]
        longest.append((max(parts, key=len),))
    return Pattern(tuple(longest))


def _noted_by(notes: str, more: str = "") -> Sql:
    return Sql(f"SELECT rowid AS ino FROM words WHERE words MATCH ?{more}", (notes,))


def _like(likes: Sequence[str], name: str = "name") -> str:
    return " OR ".join([f"CAST({name} AS TEXT) LIKE ? ESCAPE '\\'"] * len(likes))


def _uid(name: str) -> int | None:
    """Of a login name, or a number."""
    try:
        return pwd.getpwnam(name).pw_uid
    except (KeyError, ValueError):
        return int(name) if name.isascii() and name.isdigit() and len(name) < 11 else None


def _names(wanted: str, owner: str) -> bool:
    """Whether a record's owner is meant: by login name, or by words of the person's name."""
    return set(fold(wanted).split()) <= {*fold(owner).split(), fold(owner)}


def _bytes(name: str | bytes) -> bytes:
    """A name from the index."""
    return name.encode() if isinstance(name, str) else name


def _stored(name: bytes) -> str | bytes:
    """A name as the index has it."""
    try:
        return name.decode()
    except UnicodeDecodeError:
        return name


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")
