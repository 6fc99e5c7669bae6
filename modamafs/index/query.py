"""The language of ``modamafs find``: from what people type to what is asked of the index.

Pure: no files, no database, no clock. What can't be understood is ``InvalidRequest`` (EINVAL), in
one line that says how to write it. Values are never part of an SQL text. ``docs/find.md`` has
every form, with examples.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Literal, NamedTuple, NoReturn, TypeAlias

from modamafs.errors import InvalidRequest

LONGEST_BYTES = 4096
TERMS_LIMIT = 32
STARS_LIMIT = 16
"""Wildcards in one word: more would only take long."""
SHORTEST_HASH = 4
DAY_NS = 86_400 * 10**9
LARGEST = 2**63 - 1
"""What an integer of SQLite can be."""
ALIKE = 1e-6
"""Numbers that differ by less, relatively, are the same: instruments write 32-bit floats."""

TRIGRAM = 3
_NO_TEXT = re.compile("[\ud800-\udfff]+")
_LAST = "\U0010ffff"
_UNICODE_ERRORS = "surrogateescape"


class Sql(NamedTuple):
    """A piece of SQL, and the values for its question marks."""

    text: str
    values: tuple[int | float | str | bytes | None, ...] = ()


# ---- what a query is made of ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Pattern:
    """A piece of a name, or, with wildcards, a whole one; capitals don't matter."""

    forms: tuple[tuple[str, ...], ...]
    """Folded: text, and then in turn a wildcard and text. Accents may be written in two ways
    (macOS decomposes them)."""
    whole: tuple[re.Pattern[str], ...] = ()
    """Of a pattern with wildcards, for each form."""

    def matches(self, folded: str) -> bool:
        """``folded``: as ``fold`` gives it."""
        if self.whole:
            return any(pattern.fullmatch(folded) for pattern in self.whole)
        return any(form[0] in folded for form in self.forms)

    def pieces(self) -> list[str]:
        """For each form the longest piece that a matching name has for sure; may be ""."""
        return [
            max((piece for text in form[::2] for piece in _NO_TEXT.split(text)), key=len)
            for form in self.forms
        ]

    def likes(self) -> list[str]:
        """LIKE patterns (``ESCAPE '\\'``), one of which fits every name that matches."""
        likes = ["%".join(map(escaped, form[::2])) for form in self.forms]
        return likes if self.whole else [f"%{like}%" for like in likes]


@dataclass(frozen=True, slots=True)
class Word:
    """In the name, or in what is written about it; or of a directory above."""

    pattern: Pattern
    notes: str | None
    """What ``words`` MATCHes; None: it can't be there."""
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Measure:
    """A number and its unit; "" where none was given."""

    number: float
    unit: str


@dataclass(frozen=True, slots=True)
class Metadata:
    """A value of the file; without one, of its session, or else its project."""

    keys: tuple[str, ...]
    """The ways in which the key may be written."""
    operator: str
    """=, !=, <, <=, >, >=, or *: there is one."""
    text: str = ""
    measure: Measure | None = None
    """None: it is no number."""
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Place:
    """In a project or session with that name, title or path, or one of that instrument."""

    field: str
    """project, session, instrument"""
    pattern: Pattern
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Owner:
    """A user's, or of a session whose record names them."""

    name: str
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Path:
    """The path from the store."""

    pattern: Pattern
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Extension:
    """A file whose name ends so; folded, with the dot."""

    suffix: str
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of entry, as in ``nodes``."""

    kind: str
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Sealed:
    """It is, or lies in, a sealed directory."""

    sealed: bool
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Between:
    """Size of a file in bytes, or when contents changed last in ns; both ends are in it."""

    field: str
    """size, changed"""
    low: int
    high: int
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Hash:
    """The beginning of a BLAKE3 hash: of a file in a sealed directory, or of the directory."""

    prefix: str
    negated: bool = False


Term: TypeAlias = (
    Word | Metadata | Place | Owner | Path | Extension | Kind | Sealed | Between | Hash
)


@dataclass(frozen=True, slots=True)
class Query:
    """All terms have to hold."""

    terms: tuple[Term, ...]


# ---- from text -----------------------------------------------------------------------------------


class _Token(NamedTuple):
    text: str
    plain: tuple[bool, ...]
    """For each letter, whether it stood outside of quotes."""

    def find(self, what: str) -> int:
        """Where one of the letters stands outside of quotes; -1: nowhere."""
        return next((i for i, c in enumerate(self.text) if c in what and self.plain[i]), -1)

    def tail(self, start: int) -> _Token:
        return _Token(self.text[start:], self.plain[start:])


def parse(text: str, now_ns: int) -> Query:
    """Understand a query. Bytes that are no UTF-8 are surrogates, as in the names of files.

    InvalidRequest (EINVAL): it can't be understood; nothing else is raised, whatever the text.
    """
    try:
        size_bytes = len(text.encode("utf-8", _UNICODE_ERRORS))
    except UnicodeEncodeError:
        raise InvalidRequest("the query is no text: it has half a character") from None
    if size_bytes > LONGEST_BYTES:
        raise InvalidRequest(f"the query is longer than {LONGEST_BYTES} bytes: shorten it")
    if "\0" in text:
        raise InvalidRequest("the query has a NUL byte, which no name has")
    tokens = _tokens(text)
    if not tokens:
        raise InvalidRequest("the query is empty: write what to look for; '*' finds everything")
    if len(tokens) > TERMS_LIMIT:
        raise InvalidRequest(f"the query has more than {TERMS_LIMIT} words: leave some out")
    return Query(tuple(_term(token, now_ns) for token in tokens))


def quoted(argument: str) -> str:
    """One of several arguments of a command line as one term: in quotes where it has spaces."""
    if not re.search(r"\s", argument) or '"' in argument:
        return argument
    match = re.match(r"-?[^\W\d][\w.-]*(?::|[<>!]?=|<|>)|-?", argument)
    head = match[0] if match else ""
    return head + '"' + argument[len(head) :].strip().replace("\\", "\\\\") + '"'


def _tokens(text: str) -> list[_Token]:
    tokens: list[_Token] = []
    letters: list[str] = []
    plain: list[bool] = []
    in_quotes = begun = False
    position = 0
    while position < len(text):
        letter = text[position]
        position += 1
        if in_quotes and letter == "\\" and text[position : position + 1] in ('"', "\\"):
            letters.append(text[position])
            plain.append(False)
            position += 1
        elif letter == '"':
            in_quotes = not in_quotes
            begun = True
        elif letter.isspace() and not in_quotes:
            if begun:
                tokens.append(_Token("".join(letters), tuple(plain)))
            letters, plain, begun = [], [], False
        else:
            letters.append(letter)
            plain.append(not in_quotes)
            begun = True
    if in_quotes:
        raise InvalidRequest('a quote (") has no end: write "words that belong together"')
    if begun:
        tokens.append(_Token("".join(letters), tuple(plain)))
    return tokens


_OPERATOR = re.compile(r"!=|>=|<=|==|=|>|<")


def _term(token: _Token, now_ns: int) -> Term:
    negated = token.find("-") == 0 and len(token.text) > 1
    if negated:
        token = token.tail(1)
    if not token.text.strip():
        raise InvalidRequest('"" finds nothing: write something between the quotes')
    colon, sign = token.find(":"), token.find("=<>!")
    if colon > 0 and (sign < 0 or colon < sign):
        name = token.text[:colon]
        if re.fullmatch(r"[^\W\d][\w-]*", name) and all(token.plain[:colon]):
            return _field(name, token.tail(colon + 1), negated, now_ns)
    if sign >= 0:
        match = _OPERATOR.match(token.text, sign)
        if match and match.end() < len(token.text) and _is_key(token.text[:sign]):
            return _metadata(token.text[:sign], match[0], token.tail(match.end()), negated)
        if match and (sign == 0 or match.end() == len(token.text)):
            if sign == 0 and match.end() < len(token.text):
                raise InvalidRequest(
                    f"{_shown(token.text)}: there is no key before the '{match[0]}'; write "
                    "key=value without spaces, or what you look for in quotes"
                )
            raise InvalidRequest(
                f"{_shown(token.text)}: there is no value after the '{match[0]}'; write "
                'key=value or key="some value", without spaces around it'
            )
    if "/" in token.text:  # no name has one
        return _path(token, negated)
    return Word(_pattern(token), _notes(token), negated)


def _is_key(text: str) -> bool:
    return re.fullmatch(r"[^\W\d][\w .-]*", text) is not None


def _pattern(token: _Token, *, tail_of_path: bool = False) -> Pattern:
    parts: list[str] = [""]
    for letter, plain in zip(token.text, token.plain, strict=True):
        if plain and letter in "*?":
            parts += [letter, ""]
        else:
            parts[-1] += letter
    if len(parts) // 2 > STARS_LIMIT:
        raise InvalidRequest(f"{_shown(token.text)} has more than {STARS_LIMIT} wildcards")
    ways: list[tuple[str, ...]] = []
    for composed in (parts, _normalized("NFC", parts), _normalized("NFD", parts)):
        way = tuple(map(fold, composed))
        if way not in ways:
            ways.append(way)
    if len(parts) == 1:
        return Pattern(tuple(ways))
    return Pattern(tuple(ways), tuple(_expression(way, tail_of_path) for way in ways))


def _normalized(form: Literal["NFC", "NFD"], parts: Sequence[str]) -> list[str]:
    return [unicodedata.normalize(form, part) for part in parts]


def _expression(form: tuple[str, ...], tail_of_path: bool) -> re.Pattern[str]:
    """Each ``*`` is done with at the first place that fits what follows: never tried again."""
    expression = "(?:.*/)?" if tail_of_path else ""
    group = ""
    for index, part in enumerate(form):
        if index % 2 == 0:
            group += re.escape(part)
        elif part == "?":
            group += "."
        else:
            expression += f"(?>{group})" if index > 1 else group
            group = ".*?"
    last = group.removeprefix(".*?")
    expression += f".*{last}" if group != last else last
    return re.compile(expression, re.DOTALL)


def _notes(token: _Token) -> str | None:
    stars = [i for i, c in enumerate(token.text) if c in "*?" and token.plain[i]]
    if re.search("[\ud800-\udfff]", token.text):
        return None
    if not stars:
        return _phrase(token.text)
    if stars == [len(token.text) - 1] and token.text.endswith("*") and len(token.text) > 1:
        return _phrase(token.text[:-1]) + " *"
    return None


def _phrase(text: str) -> str:
    """A string of FTS5: nothing in it is an operator."""
    return '"' + text.replace('"', '""') + '"'


def trigrams(pieces: Sequence[str]) -> str | None:
    """What ``names`` MATCHes for every name with one of the pieces; None: some are too short."""
    if any(len(piece) < TRIGRAM for piece in pieces):
        return None
    return " OR ".join(map(_phrase, pieces))


def escaped(text: str) -> str:
    """For LIKE: SQLite knows capitals of ASCII only, whatever else there is may be anything."""
    return re.sub(r"[^\x00-\x7f]+", "%", re.sub(r"([\\%_])", r"\\\1", text))


def fold(text: str) -> str:
    """Without capitals, letter by letter, so that a piece of a name stays one."""
    if text.isascii():
        return text.lower()
    return "".join(low if len(low := letter.lower()) == 1 else letter for letter in text)


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:39] + "…")


# ---- fields --------------------------------------------------------------------------------------

FIELDS = (
    "project", "session", "instrument", "owner", "path", "type", "size", "changed", "sealed",
    "hash",
)  # fmt: skip
_KINDS = {
    "file": "file", "f": "file", "dir": "directory", "directory": "directory", "d": "directory",
    "folder": "directory", "link": "symlink", "symlink": "symlink", "l": "symlink",
    "fifo": "fifo", "pipe": "fifo", "socket": "socket",
}  # fmt: skip


def _field(name: str, token: _Token, negated: bool, now_ns: int) -> Term:
    field, value = name.lower(), token.text.strip()
    if field not in FIELDS:
        raise InvalidRequest(
            f"there is no {_shown(name + ':')}; there are {', '.join(f'{f}:' for f in FIELDS)}, "
            f'key=value for metadata, and quotes for text with a colon: "{name[:20]}:…"'
        )
    if not value:
        raise InvalidRequest(f"{field}: has no value; write {field}:something, without a space")
    match field:
        case "project" | "session" | "instrument":
            return Place(field, _pattern(token), negated)
        case "path":
            return _path(token, negated)
        case "owner":
            return Owner(value, negated)
        case "type":
            kind = _KINDS.get(value.lower())
            if kind:
                return Kind(kind, negated)
            return Extension("." + fold(value.removeprefix("*").removeprefix(".")), negated)
        case "sealed":
            if value.lower() not in ("yes", "no", "true", "false"):
                raise InvalidRequest(f"sealed:{_shown(value)}: write sealed:yes or sealed:no")
            return Sealed(value.lower() in ("yes", "true"), negated)
        case "size":
            return Between("size", *_sizes(value), negated)
        case "changed":
            return Between("changed", *_times(value, now_ns), negated)
        case _:
            prefix = value.lower().removeprefix("b3:").removeprefix("blake3:")
            if not re.fullmatch(rf"[0-9a-f]{{{SHORTEST_HASH},64}}", prefix):
                raise InvalidRequest(
                    f"hash:{_shown(value)}: write {SHORTEST_HASH} to 64 hexadecimal digits"
                )
            return Hash(prefix, negated)


def _path(token: _Token, negated: bool) -> Path:
    """A path from the store; with wildcards it may leave out directories in front."""
    text = token.text
    start = 1 if text.startswith("/") and len(text) > 1 else 0
    end = len(text) - 1 if text.endswith("/") and len(text) > start + 1 else len(text)
    token = _Token(text[start:end], token.plain[start:end])
    return Path(_pattern(token, tail_of_path=start == 0), negated)


_SIZES = {
    "": 1, "b": 1, "byte": 1, "bytes": 1,
    **{f"{p}{b}": 1000**e for e, p in enumerate("kmgtpe", 1) for b in ("", "b")},
    **{f"{p}i{b}": 1024**e for e, p in enumerate("kmgtpe", 1) for b in ("", "b")},
}  # fmt: skip


def _sizes(value: str) -> tuple[int, int]:
    """The smallest and the largest size, in bytes."""
    low, dots, high = value.partition("..")
    if dots:
        if not low and not high:
            _wrong_size(value)
        ends = (_size(low, value) if low else 0, _size(high, value) if high else LARGEST)
        if ends[0] > ends[1]:
            raise InvalidRequest(f"size:{_shown(value)}: the first size is larger than the second")
        return ends
    operator, number = _split_operator(value)
    return _ends(operator, (size := _size(number, value)), size)


def _size(text: str, whole: str) -> int:
    match = re.fullmatch(r"(\d{1,30}(?:\.\d{0,30})?|\.\d{1,30})\s*([a-zA-Z]*)", text.strip(), re.A)
    factor = _SIZES.get(match[2].lower()) if match else None
    if not match or factor is None:
        _wrong_size(whole)
    size = int(Decimal(match[1]) * factor)
    if size > LARGEST:
        raise InvalidRequest(f"size:{_shown(whole)}: no file is that large")
    return size


def _wrong_size(value: str) -> NoReturn:
    raise InvalidRequest(
        f"size:{_shown(value)}: write size:>1GB, size:<=10MiB or size:10MB..1GB "
        "(kB, MB, GB, TB or KiB, MiB, GiB, TiB)"
    )


def _split_operator(value: str) -> tuple[str, str]:
    match = re.match(r"(>=|<=|==|=|>|<)?\s*(.*)", value, re.DOTALL)
    assert match
    return match[1] or "=", match[2]


def _ends(operator: str, first: int, last: int) -> tuple[int, int]:
    """The smallest and the largest number, compared with those from ``first`` to ``last``."""
    match operator:
        case ">":
            ends = last + 1, LARGEST
        case ">=":
            ends = first, LARGEST
        case "<":
            ends = -LARGEST, first - 1
        case "<=":
            ends = -LARGEST, last
        case _:
            ends = first, last
    low, high = (max(-LARGEST, min(end, LARGEST)) for end in ends)
    return low, high


_AGES_S = {
    **dict.fromkeys(("s", "sec", "second", "seconds"), 1),
    **dict.fromkeys(("min", "minute", "minutes"), 60),
    **dict.fromkeys(("h", "hour", "hours"), 3600),
    **dict.fromkeys(("d", "day", "days"), 86_400),
    **dict.fromkeys(("w", "week", "weeks"), 7 * 86_400),
    **dict.fromkeys(("mo", "month", "months"), 30 * 86_400),
    **dict.fromkeys(("y", "year", "years"), 365 * 86_400),
}


def _times(value: str, now_ns: int) -> tuple[int, int]:
    """The first and the last moment, in ns since 1970; days are those of UTC."""
    low, dots, high = value.partition("..")
    if dots:
        if not low and not high:
            _wrong_time(value)
        first = _moment(low, value, now_ns)[0] if low else -LARGEST
        last = _moment(high, value, now_ns)[1] if high else LARGEST
        if first > last:
            raise InvalidRequest(f"changed:{_shown(value)}: the first day is after the second")
        return _ends(">=", first, first)[0], _ends("<=", last, last)[1]
    operator, text = _split_operator(value)
    age = re.fullmatch(r"(\d{1,9})\s*([a-z]+)", text.strip().lower(), re.A)
    if age and age[2] in _AGES_S:
        then = now_ns - int(age[1]) * _AGES_S[age[2]] * 10**9
        return _ends("<=" if operator.startswith(">") else ">=", then, then)
    return _ends(operator, *_moment(text, value, now_ns))


def _moment(text: str, whole: str, now_ns: int) -> tuple[int, int]:
    """The first and the last nanosecond of a year, month, day, minute or second."""
    text = text.strip().lower()
    if text in ("today", "yesterday"):
        first = now_ns // DAY_NS * DAY_NS - (DAY_NS if text == "yesterday" else 0)
        return first, first + DAY_NS - 1
    match = re.fullmatch(
        r"(\d{4})(?:-(\d\d?)(?:-(\d\d?)(?:[t ](\d\d):(\d\d)(?::(\d\d))?z?)?)?)?", text, re.A
    )
    if not match:
        _wrong_time(whole)
    parts = (int(part) if part else None for part in match.groups())
    year, month, day, hour, minute, second = parts
    try:
        begin = datetime(
            year or 0, month or 1, day or 1, hour or 0, minute or 0, second or 0, tzinfo=UTC
        )
        if month is None:
            length_s = _seconds(datetime(begin.year, 12, 31, tzinfo=UTC) - begin) + 86_400
        elif day is None:
            length_s = _seconds((begin + timedelta(days=31)).replace(day=1) - begin)
        else:
            length_s = 86_400 if hour is None else 60 if second is None else 1
    except (ValueError, OverflowError):
        raise InvalidRequest(f"changed:{_shown(whole)}: there is no such day") from None
    first = _seconds(begin - datetime(1970, 1, 1, tzinfo=UTC)) * 10**9
    return first, first + length_s * 10**9 - 1


def _seconds(span: timedelta) -> int:
    return span.days * 86_400 + span.seconds


def _wrong_time(value: str) -> NoReturn:
    raise InvalidRequest(
        f"changed:{_shown(value)}: write changed:<1h (min, h, d, w, months, years), changed:today, "
        "changed:2026-11-24, changed:>2026-11 or changed:2026-11-01..2026-11-24"
    )


# ---- metadata ------------------------------------------------------------------------------------

_NUMBER = r"[+-]?(?:[0-9]{1,40}\.?[0-9]{0,40}|\.[0-9]{1,40})(?:[eE][+-]?[0-9]{1,4})?"
_MEASURE = re.compile(rf"({_NUMBER})(?:\s+(\S.*)|([^\W\d_].*|[%°].*))?", re.DOTALL)
_DAYS = re.compile(r"\d{4}-\d\d(-\d\d)?", re.ASCII)


def _metadata(key: str, operator: str, token: _Token, negated: bool) -> Metadata:
    lowered = key.strip().lower()
    keys = tuple(dict.fromkeys((key.strip(), lowered, re.sub(r"[\s.-]+", "_", lowered))))
    operator = "=" if operator == "==" else operator
    value = token.text.strip()
    if not value:
        raise InvalidRequest(f"{_shown(key)}: there is no value; {key[:40]}=* finds any")
    if re.search("[\ud800-\udfff]", value + key):
        raise InvalidRequest(f"{_shown(key)}: the value is no text (UTF-8)")
    if value == "*" and token.find("*") >= 0:
        if operator not in ("=", "!="):
            raise InvalidRequest(f"{_shown(key)}: '*' can't be compared; write {key[:40]}=*")
        return Metadata(keys, "*", negated=negated != (operator == "!="))
    if token.find("*?") >= 0:
        if operator not in ("=", "!="):
            raise InvalidRequest(f"{_shown(key)}: wildcards can't be compared with '{operator}'")
        if sum(letter in "*?" for letter in value) > STARS_LIMIT:
            raise InvalidRequest(f"{_shown(value)} has more than {STARS_LIMIT} wildcards")
        return Metadata(keys, "like" if operator == "=" else "!like", _like(token), None, negated)
    return Metadata(keys, operator, value, _measure(value), negated)


def _like(token: _Token) -> str:
    text = ""
    for letter, plain in zip(token.text, token.plain, strict=True):
        wildcard = {"*": "%", "?": "_"}.get(letter) if plain else None
        text += wildcard or re.sub(r"([\\%_])", r"\\\1", letter)
    return text


def _measure(text: str) -> Measure | None:
    match = _MEASURE.fullmatch(text)
    if not match:
        return None
    number = float(match[1])
    if not math.isfinite(number):
        raise InvalidRequest(f"{_shown(text)}: the number is too large")
    return Measure(number, (match[2] or match[3] or "").strip())


def condition(term: Metadata, units: Iterable[str | None]) -> Sql:
    """Whether a row of ``metadata`` (``m``) with one of the keys is it: 1 or 0.

    ``units`` are those that the index has for the key.
    """
    match term.operator:
        case "*":
            return Sql("1")
        case "like":
            return Sql("(m.text LIKE ? ESCAPE '\\')", (term.text,))
        case "!like":
            return Sql("(m.text NOT LIKE ? ESCAPE '\\')", (term.text,))
    operator = "=" if term.operator == "!=" else term.operator
    found = _joined(" OR ", _compared(term, operator, units), "0")
    return Sql(
        f"(NOT ({found.text}))" if term.operator == "!=" else f"({found.text})", found.values
    )


def _joined(between: str, parts: Sequence[Sql], nothing: str) -> Sql:
    text = between.join(part.text for part in parts)
    return Sql(text or nothing, tuple(value for part in parts for value in part.values))


def _compared(term: Metadata, operator: str, units: Iterable[str | None]) -> list[Sql]:
    """Conditions, one of which has to hold; an index helps with each."""
    parts = [
        Sql("(m.unit IS ? AND m.number BETWEEN ? AND ?)", (unit, *ends))
        for unit, *ends in ranges(term, operator, units)
    ]
    text = "m.text COLLATE NOCASE"
    if _DAYS.fullmatch(term.text):  # text, but one that stands for all days in it
        low, high = term.text, term.text + _LAST
        end = high if operator in (">", "<=") else low
        if operator == "=":
            parts.append(Sql(f"({text} BETWEEN ? AND ?)", (low, high)))
        else:
            parts.append(Sql(f"(m.number IS NULL AND {text} {operator} ?)", (end,)))
    elif operator == "=":
        ways = tuple(dict.fromkeys((term.text, term.text.lower(), term.text.upper())))
        parts.append(Sql(f"({text} IN ({','.join('?' * len(ways))}))", ways))
    elif term.measure is None:
        parts.append(Sql(f"(m.number IS NULL AND {text} {operator} ?)", (term.text,)))
    return parts


def ranges(
    term: Metadata, operator: str, units: Iterable[str | None]
) -> list[tuple[str | None, float, float]]:
    """For each unit that can be compared: which numbers, from and to, it may have."""
    if term.measure is None:
        return []
    number, wanted = term.measure.number, term.measure.unit
    found = []
    for unit in units:
        factor = 1.0 if not wanted else conversion(wanted, unit or "")
        if factor is not None:
            found.append((unit, *_range(number * factor, operator)))
    return found


def _range(number: float, operator: str) -> tuple[float, float]:
    width = abs(number) * ALIKE
    low, high = number - width, number + width
    match operator:
        case "=":
            return low, high
        case ">":
            return math.nextafter(high, math.inf), math.inf
        case ">=":
            return low, math.inf
        case "<":
            return -math.inf, math.nextafter(low, -math.inf)
    return -math.inf, high


# ---- units ---------------------------------------------------------------------------------------

_PREFIXES = {
    "Q": 30, "R": 27, "Y": 24, "Z": 21, "E": 18, "P": 15, "T": 12, "G": 9, "M": 6, "k": 3, "h": 2,
    "da": 1, "": 0, "d": -1, "c": -2, "m": -3, "u": -6, "µ": -6, "μ": -6, "n": -9, "p": -12,
    "f": -15, "a": -18, "z": -21, "y": -24, "r": -27, "q": -30,
}  # fmt: skip
_WITH_PREFIX = {
    **{unit: (unit, 1.0) for unit in (
        "m", "g", "s", "A", "K", "mol", "cd", "Hz", "N", "Pa", "J", "W", "C", "V", "F", "S", "Wb",
        "T", "H", "lm", "lx", "Bq", "Gy", "Sv", "rad", "sr", "eV", "bar", "cps", "L",
    )},
    "Ω": ("Ω", 1.0), "ohm": ("Ω", 1.0), "Ohm": ("Ω", 1.0), "l": ("L", 1.0),
}  # fmt: skip
"""Symbols that may have an SI prefix: the quantity, and how much of it."""
_ALONE = {
    "e": ("e", 1.0), "px": ("px", 1.0),
    "Å": ("m", 1e-10), "Angstrom": ("m", 1e-10), "angstrom": ("m", 1e-10), "micron": ("m", 1e-6),
    "min": ("s", 60.0), "h": ("s", 3600.0), "d": ("s", 86_400.0),
    "sec": ("s", 1.0), "rpm": ("rpm", 1.0),
    "deg": ("rad", math.pi / 180), "°": ("rad", math.pi / 180), "degree": ("rad", math.pi / 180),
    "degrees": ("rad", math.pi / 180),
    "°C": ("°C", 1.0), "degC": ("°C", 1.0), "°F": ("°F", 1.0),
    "%": ("", 0.01), "ppm": ("", 1e-6), "Torr": ("Pa", 101_325 / 760),
    "volt": ("V", 1.0), "volts": ("V", 1.0), "second": ("s", 1.0), "seconds": ("s", 1.0),
    "meter": ("m", 1.0), "metre": ("m", 1.0), "kelvin": ("K", 1.0),
}  # fmt: skip
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻·⋅×", "0123456789-***")


def _symbols() -> dict[str, tuple[str, float]]:
    found = {
        unicodedata.normalize("NFKC", prefix + unit): (quantity, amount * 10.0**exponent)
        for unit, (quantity, amount) in _WITH_PREFIX.items()
        for prefix, exponent in _PREFIXES.items()
    }
    alone = {unicodedata.normalize("NFKC", unit): meaning for unit, meaning in _ALONE.items()}
    return found | alone


_SYMBOLS = _symbols()
_FOLDED: Mapping[str, Sequence[str]] = {
    low: sorted(unit for unit in _SYMBOLS if unit.lower() == low)
    for low in {unit.lower() for unit in _SYMBOLS}
}
_FACTOR = re.compile(r"(.*?[^\d^*-])(?:\^|\*\*)?(-?\d{1,2})?", re.DOTALL)


def conversion(wanted: str, unit: str) -> float | None:
    """By what to multiply a number in ``wanted`` to have it in ``unit``; None: they differ in kind.

    ``keV`` is none of ``kV``. A unit that nobody knows is the same as itself only.
    """
    if wanted == unit:
        return 1.0
    mine, other = _meaning(wanted), _meaning(unit)
    if mine is None or other is None:
        return 1.0 if wanted.casefold() == unit.casefold() else None
    if mine[0] != other[0]:
        return None
    factor = mine[1] / other[1]
    return factor if math.isfinite(factor) and factor else None


def _meaning(unit: str) -> tuple[tuple[tuple[str, int], ...], float] | None:
    """The quantities with their powers, and how much of them; None: unknown."""
    text = unicodedata.normalize("NFKC", unit.translate(_SUPERSCRIPTS)).strip()
    powers: dict[str, int] = {}
    amount = 1.0
    sign = 1
    if not text or len(text) > 60:
        return None
    for part in re.split(r"(/|(?<!\*)\*(?!\*)|\s+)", text):
        if part == "/":
            sign = -1
        elif part.strip("* ") and part != "1":
            match = _FACTOR.fullmatch(part)
            symbol = _symbol(match[1]) if match else None
            if not match or symbol is None:
                return None
            power = sign * int(match[2] or 1)
            powers[symbol[0]] = powers.get(symbol[0], 0) + power
            try:
                amount *= symbol[1] ** power
            except (OverflowError, ZeroDivisionError):
                return None
    if not 0 < amount < math.inf:
        return None
    powers.pop("", None)
    return tuple(sorted((name, power) for name, power in powers.items() if power)), amount


def _symbol(text: str) -> tuple[str, float] | None:
    """``kev`` is keV; but ``mev`` may be two, and is none."""
    if text in _SYMBOLS:
        return _SYMBOLS[text]
    ways = _FOLDED.get(text.lower(), ())
    return _SYMBOLS[ways[0]] if len(ways) == 1 else None


# ---- to SQL --------------------------------------------------------------------------------------


def where(term: Term, units: Iterable[str | None] = ()) -> Sql | None:
    """The term as a condition on a row of ``nodes`` (``n``); None where SQL alone can't decide it.

    ``units``: for metadata, those that the index has for its keys.
    """
    match term:
        case Metadata():
            wanted = _nearest(term, condition(term, units))
        case Between("size", low, high):
            wanted = Sql("(n.kind = 'file' AND n.size_bytes BETWEEN ? AND ?)", (low, high))
        case Between(_, low, high):
            wanted = Sql("(n.mtime_ns BETWEEN ? AND ?)", (low, high))
        case Kind(kind):
            wanted = Sql("(n.kind = ?)", (kind,))
        case Sealed(sealed):
            wanted = Sql("(n.sealed = ?)", (int(sealed),))
        case _:
            return None
    return Sql(f"(NOT {wanted.text})", wanted.values) if term.negated else wanted


def _nearest(term: Metadata, wanted: Sql) -> Sql:
    """The value that counts is the file's own; without one its session's, or else its project's."""
    marks = ",".join("?" * len(term.keys))
    one = f"(SELECT max({wanted.text}) FROM metadata m WHERE m.ino = {{}} AND m.key IN ({marks}))"
    text = ", ".join(one.format(ino) for ino in ("n.ino", "n.session", "n.project"))
    return Sql(f"coalesce({text}, 0)", (*wanted.values, *term.keys) * 3)


def inodes(term: Metadata, units: Sequence[str | None]) -> Sql:
    """Inodes that have such a value themselves (some twice); ``where`` still has to hold."""
    if term.operator in ("=", ">", ">=", "<", "<="):
        conditions = _compared(term, term.operator, units)
    else:
        conditions = [condition(term, units)]
    found = [
        Sql(f"SELECT m.ino FROM metadata m WHERE m.key = ? AND {one.text}", (key, *one.values))
        for key in term.keys
        for one in conditions
    ]
    return _joined(" UNION ALL ", found, "SELECT 0 WHERE 0")
