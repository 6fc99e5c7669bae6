"""How the renderers say things: names, sizes, times, types, people; and JSON."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import msgspec

from modamafs.catalog import Measured, Person
from modamafs.landing.facts import Entry, Facts

_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff\ufdd0-\ufdef"
    + "".join(f"{chr(plane << 16 | 0xFFFE)}{chr(plane << 16 | 0xFFFF)}" for plane in range(17))
    + "]"
)
"""What a name may hold and nobody would see, or what makes a line look like another: control
characters, line separators, marks of direction, bytes that are no UTF-8, noncharacters."""

_FIRST_BYTE, _LAST_BYTE = 0xDC80, 0xDCFF  # surrogateescape

_FORMATS = {
    "h5": ("application/x-hdf5", "HDF5"),
    "hdf5": ("application/x-hdf5", "HDF5"),
    "hspy": ("application/x-hdf5", "HyperSpy (HDF5)"),
    "nxs": ("application/x-hdf5", "NeXus (HDF5)"),
    "emd": ("application/x-hdf5", "EMD (HDF5)"),
    "mrc": ("image/x-mrc", "MRC"),
    "mrcs": ("image/x-mrc", "MRC stack"),
    "st": ("image/x-mrc", "MRC tilt series"),
    "dm3": ("image/x-dm3", "DigitalMicrograph 3"),
    "dm4": ("image/x-dm4", "DigitalMicrograph 4"),
    "ser": ("application/x-tia-ser", "TIA series"),
    "emi": ("application/x-tia-emi", "TIA"),
    "mib": ("application/x-merlin-mib", "Merlin (MIB)"),
    "hdr": ("text/plain", "Header"),
    "blo": ("application/x-blockfile", "Blockfile"),
    "tvips": ("application/x-tvips", "TVIPS"),
    "eer": ("image/x-eer", "EER"),
    "npy": ("application/x-npy", "NumPy array"),
    "npz": ("application/x-npz", "NumPy archive"),
    "tif": ("image/tiff", "TIFF"),
    "tiff": ("image/tiff", "TIFF"),
    "png": ("image/png", "PNG"),
    "jpg": ("image/jpeg", "JPEG"),
    "jpeg": ("image/jpeg", "JPEG"),
    "gif": ("image/gif", "GIF"),
    "svg": ("image/svg+xml", "SVG"),
    "bmp": ("image/bmp", "BMP"),
    "mp4": ("video/mp4", "MPEG-4"),
    "avi": ("video/x-msvideo", "AVI"),
    "pdf": ("application/pdf", "PDF"),
    "txt": ("text/plain", "Text"),
    "log": ("text/plain", "Log"),
    "md": ("text/markdown", "Markdown"),
    "csv": ("text/csv", "CSV"),
    "tsv": ("text/tab-separated-values", "TSV"),
    "html": ("text/html", "HTML"),
    "xml": ("application/xml", "XML"),
    "json": ("application/json", "JSON"),
    "yaml": ("application/yaml", "YAML"),
    "yml": ("application/yaml", "YAML"),
    "toml": ("application/toml", "TOML"),
    "py": ("text/x-python", "Python"),
    "ipynb": ("application/x-ipynb+json", "Jupyter notebook"),
    "zip": ("application/zip", "ZIP"),
    "gz": ("application/gzip", "gzip"),
    "tar": ("application/x-tar", "tar"),
}
"""By suffix. Python's ``mimetypes`` depends on files of the machine, so it is not the same
everywhere, and knows none of the formats of microscopes."""


# ---- text ----------------------------------------------------------------------------------------


def shown(text: object) -> str:
    """A name or value in one harmless line: what nobody would see is escaped as in Python."""
    return _UNSAFE.sub(_escape, str(text))


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    if _FIRST_BYTE <= code <= _LAST_BYTE:
        return f"\\x{code - 0xDC00:02x}"
    short = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(found[0])
    if short:
        return short
    return (
        f"\\x{code:02x}"
        if code < 0x100
        else f"\\u{code:04x}"
        if code < 1 << 16
        else f"\\U{code:08x}"
    )


def paragraphs(text: str) -> list[str]:
    """A text of several lines; each paragraph is harmless, and has no empty line."""
    lines = re.split(r"\r\n|\r|\n", text)
    parts = re.split(r"\n\s*\n", "\n".join(lines))
    return ["\n".join(map(shown, part.strip().split("\n"))) for part in parts if part.strip()]


def percent(text: str, safe: str = "/") -> str:
    """Percent-encoded for a URL; bytes that are no UTF-8 as they are."""
    return quote(raw(text), safe=safe)


def raw(text: str) -> bytes:
    """The bytes of a name."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half of a surrogate pair: no name on the store has that
        return text.encode("utf-8", "replace")


def valid(value: Any) -> Any:
    """The same with every text in it valid UTF-8, for formats whose readers insist on it."""
    if isinstance(value, str):
        return re.sub("[\ud800-\udfff]", "\ufffd", value)
    if isinstance(value, dict):
        return {valid(key): valid(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [valid(part) for part in value]
    return value


def json_text(value: Any) -> bytes:
    """JSON in UTF-8.

    A byte in a name that is no UTF-8 is ``\\udcXX``, as Python writes it; a number that JSON has no
    word for (infinity) is ``null``.
    """
    try:
        text = msgspec.json.encode(value, enc_hook=str)
        return msgspec.json.format(text, indent=2) + b"\n"
    except (UnicodeEncodeError, OverflowError, TypeError):  # what msgspec refuses; ten times slower
        slow = json.dumps(_finite(value), ensure_ascii=False, indent=2, default=str)
    escaped = re.sub("[\ud800-\udfff]", lambda found: f"\\u{ord(found[0]):04x}", slow)
    return escaped.encode() + b"\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# ---- numbers and times ---------------------------------------------------------------------------


def size(size_bytes: object) -> str:
    """``81.6 GB``, in powers of 1000; as it is, if that is no number (records come from files)."""
    if not isinstance(size_bytes, int | float):
        return shown(size_bytes)
    value = float(size_bytes)
    if abs(value) < 1000:
        return "1 byte" if value == 1 else f"{value:.0f} bytes"
    units = iter(("kB", "MB", "GB", "TB", "PB"))
    value, unit = value / 1000, next(units)
    while abs(value) >= 999.5 and (larger := next(units, "")):
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if value >= 99.95 else f"{value:.1f} {unit}"


def count(number: object, one: str, many: str = "") -> str:
    """``1 file``, ``12,345 files``."""
    text = f"{number:,}" if isinstance(number, int) else shown(number)
    return f"{text} {one if number == 1 else many or one + 's'}"


def utc(time_ns: int) -> str:
    """``2026-11-23T09:12:44Z``."""
    try:
        return f"{datetime.fromtimestamp(time_ns // 10**9, UTC):%Y-%m-%dT%H:%M:%SZ}".rjust(20, "0")
    except (OverflowError, ValueError, OSError):  # a time that no calendar has
        return f"@{time_ns // 10**9}"


def time(stamp: object) -> str:
    """``2026-11-23 09:12 UTC``, of what a record has as ISO 8601."""
    found = re.fullmatch(r"(\d{4,}-\d\d-\d\d)T(\d\d:\d\d)(?::\d\d(?:\.\d+)?)?Z", str(stamp))
    return f"{found[1]} {found[2]} UTC" if found else shown(stamp)


def suffix(path: str) -> str:
    """The suffix of a file's name in lower case; "" if there is none."""
    name = path.rpartition("/")[2]
    return name.rpartition(".")[2].lower() if "." in name[1:] else ""


def media_type(path: str) -> str:
    """By the suffix; the same on every machine."""
    return _FORMATS.get(suffix(path), ("application/octet-stream", ""))[0]


def format_name(path: str) -> str:
    """What a person calls the format; "" if nobody knows."""
    return _FORMATS.get(suffix(path), ("", shown(suffix(path).upper()[:10])))[1]


# ---- of facts ------------------------------------------------------------------------------------


def parts(facts: Facts) -> list[str]:
    """The names on the path from the store."""
    return facts.path.split("/") if facts.path else []


def name(facts: Facts) -> str:
    """The directory's own name; "" of the store."""
    return facts.path.rpartition("/")[2]


def title(facts: Facts) -> str:
    """What it is called, in one line (not yet harmless)."""
    if facts.kind == "session" and facts.session and facts.session.title:
        return facts.session.title
    if facts.kind == "project" and facts.project and facts.project.title:
        return facts.project.title
    return name(facts) or facts.publisher or "Research data"


def kind(facts: Facts) -> str:
    """What it is, as people say."""
    return {"session": "measurement session", "store": "data store"}.get(facts.kind, facts.kind)


def creators(facts: Facts) -> list[Person]:
    """Who made the data: the session's owner, otherwise the project's, otherwise whom the
    directory belongs to. Never empty."""
    if facts.session:
        return [facts.session.owner]
    if facts.project:
        return [facts.project.owner]
    return [Person(name=facts.owner or "unknown", user=facts.owner or None)]


def project_people(facts: Facts) -> list[Person]:
    """The project's owner and members who are not creators, each once."""
    if not facts.project:
        return []
    seen = {_who(person) for person in creators(facts)}
    found = []
    for person in (facts.project.owner, *facts.project.members):
        if _who(person) not in seen:
            seen.add(_who(person))
            found.append(person)
    return found


def _who(person: Person) -> str:
    return person.orcid or person.user or person.name


def license_url(facts: Facts) -> str | None:
    """Of the project's licence: the URL that it is, or that of the SPDX identifier."""
    text = facts.project.license if facts.project else None
    if not text:
        return None
    if re.match(r"https?://", text):
        return quote(raw(text), safe="!#$%&'()*+,/:;=?@[]~")
    return f"https://spdx.org/licenses/{text}" if re.fullmatch(r"[\w.+-]+", text, re.A) else None


def day(facts: Facts) -> str:
    """The day that the data is of, ISO 8601: of the measurement; otherwise of the record, the seal,
    or the last change."""
    if facts.session:
        return facts.session.date
    sealed = [str(seal.record.get("sealed_at") or "") for seal in facts.seals]
    known = [facts.project.created_at if facts.project else "", *sealed, utc(facts.changed_ns)]
    return next((at[:10] for at in known if re.match(r"\d{4}-\d\d-\d\d", at)), "1970-01-01")


def published(facts: Facts) -> str:
    """The day from which on the data is what it is: of the seal; without one ``day``."""
    for seal in facts.seals:
        at = str(seal.record.get("sealed_at") or "")
        if covers(seal.path) and re.match(r"\d{4}-\d\d-\d\d", at):
            return at[:10]
    own = [str(seal.record.get("sealed_at") or "") for seal in facts.seals]
    days = [at[:10] for at in own if re.match(r"\d{4}-\d\d-\d\d", at)]
    return max(days) if days and facts.kind == "session" else day(facts)


def covers(path: str) -> bool:
    """Whether the seal with that path covers the whole directory."""
    return path == "." or path == ".." or path.startswith("../")


def keywords(facts: Facts) -> list[str]:
    """The session's and the project's, each once."""
    both = (*(facts.session.keywords if facts.session else ()),
            *(facts.project.keywords if facts.project else ()))  # fmt: skip
    return list(dict.fromkeys(both))


def description(facts: Facts) -> str:
    """The session's, or else the project's; below a session none."""
    if facts.kind == "session" and facts.session:
        return facts.session.description
    return facts.project.description if facts.kind == "project" and facts.project else ""


def measured(facts: Facts) -> dict[str, Measured]:
    """The values that people gave: the project's, and over them the session's."""
    found = dict(facts.project.metadata) if facts.project else {}
    return found | (dict(facts.session.metadata) if facts.session else {})


def common(facts: Facts) -> dict[str, Measured]:
    """The extracted values that all (at least two) readable files have alike."""
    read = [found.values for found in facts.metadata.values() if found.values]
    if len(read) < 2:
        return {}
    return {
        key: value
        for key, value in sorted(read[0].items())
        if all(values.get(key) == value for values in read)
    }


def files(facts: Facts) -> Iterator[Entry]:
    """The entries that are no directories."""
    return (entry for entry in facts.entries if entry.kind != "directory")
