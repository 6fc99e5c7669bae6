"""``index.html``: the landing page. It needs nothing but itself, and has no scripts."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from functools import cache
from importlib.resources import files as resources
from itertools import islice
from typing import TYPE_CHECKING, Any

from modamafs.catalog import Measured, Person
from modamafs.landing import seal as seals
from modamafs.landing.facts import Entry, Facts, Seal
from modamafs.landing.links import given, label, safe_url, urls
from modamafs.landing.words import (
    common,
    count,
    covers,
    creators,
    description,
    files,
    format_name,
    keywords,
    kind,
    license_url,
    measured,
    name,
    paragraphs,
    parts,
    percent,
    project_people,
    shown,
    size,
    time,
    title,
    utc,
)

if TYPE_CHECKING:
    from jinja2 import Template

NAME = "index.html"
MEDIA_TYPE = "text/html"
ABOUT = "The landing page: opens from any file manager, and needs no network"

ROWS_LIMIT = 500
"""How many files (or directories) the table has."""
PREVIEWS_LIMIT = 24
"""How many previews; each is up to 64 KiB."""
LISTED_LIMIT = 20
"""How many damaged files are named above the table."""

_PNG = b"\x89PNG\r\n\x1a\n"
_ROWS = {
    "store": ("Areas", "area"),
    "area": ("Projects", "project"),
    "project": ("Sessions", "session"),
}


def render(facts: Facts) -> bytes:
    """HTML. Whatever names and records hold is text in it, and never markup."""
    return _template().render(_context(facts)).encode() + b"\n"


@cache
def _template() -> Template:
    """Read once, so that the page stays the same when another version is installed meanwhile."""
    from jinja2 import DictLoader, Environment, StrictUndefined
    from markupsafe import Markup

    place = resources(__package__) / "templates"
    css = (place / "page.css").read_text(encoding="utf-8").strip()
    environment = Environment(
        loader=DictLoader({NAME: (place / "page.html").read_text(encoding="utf-8")}),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["css"] = Markup(css)  # ours, and no user's
    environment.globals["css_hash"] = base64.b64encode(
        hashlib.sha256(css.encode()).digest()
    ).decode()
    environment.filters["shown"] = shown
    environment.filters["key"] = key_words
    return environment.get_template(NAME)


def key_words(key: str) -> str:
    """``beam_energy`` → ``Beam energy``."""
    words = shown(key).replace("_", " ").strip()
    return words[:1].upper() + words[1:] if words.isascii() and words.islower() else words


def _context(facts: Facts) -> dict[str, Any]:
    links = urls(facts)
    listed = list(files(facts) if facts.kind in ("session", "directory") else facts.entries)
    rows = list(_rows(facts, listed[:ROWS_LIMIT]))
    return {
        "title": shown(title(facts)),
        "kind": kind(facts).capitalize(),
        "publisher": shown(facts.publisher),
        "path": [shown(part) for part in parts(facts)],
        "facts": facts,
        "description": paragraphs(description(facts)),
        "creators": list(map(_person, creators(facts))),
        "creators_heading": ("Measured by" if facts.session else "Owner")
        if facts.session or facts.project else "Belongs to",
        "people": list(map(_person, project_people(facts))),
        "keywords": list(map(shown, keywords(facts))),
        "license": shown(facts.project.license or "") if facts.project else "",
        "license_url": license_url(facts),
        "changed": time(utc(facts.changed_ns)),
        "badge": _badge(facts),
        "seals": [_seal(facts, seal) for seal in _shown_seals(facts)],
        "seals_summary": _summary(facts) if _ROWS.get(facts.kind) else None,
        "links": [(shown(label(link)), url) for link, url in links.items()],
        "unlinked": [(shown(link), shown(text)) for link, text in given(facts).items()
                     if safe_url(text) is None],
        "values": _measured(measured(facts)),
        "common": _measured(common(facts)),
        "rows": rows,
        "rows_heading": _ROWS[facts.kind][0] if facts.kind in _ROWS else "Files",
        "rows_summary": _rows_summary(facts, listed),
        "is_files": facts.kind not in _ROWS,
        "previews": list(islice(_previews(facts, listed), PREVIEWS_LIMIT)),
        "has_hashes": any(row["b3"] for row in rows),
        "has_links": any(row["links"] for row in rows),
        "more": len(listed) - len(rows) + facts.entries_left_out,
        "problems": list(map(shown, facts.problems)),
    }  # fmt: skip


def _person(person: Person) -> dict[str, str | None]:
    return {
        "name": shown(person.name),
        "affiliation": shown(person.affiliation or ""),
        "orcid": person.orcid,
    }


def _measured(values: dict[str, Measured]) -> list[tuple[str, str]]:
    return [(key_words(key), shown(value)) for key, value in sorted(values.items())]


# ---- seals ---------------------------------------------------------------------------------------


def _shown_seals(facts: Facts) -> list[Seal]:
    """Of a session and below all, of others the one that covers them: the table has the rest."""
    if facts.kind in ("session", "directory"):
        return list(facts.seals[:LISTED_LIMIT])
    return [seal for seal in facts.seals[:1] if covers(seal.path)]


def _badge(facts: Facts) -> tuple[str, str]:
    """A class and a word for the head of the page."""
    if any(seals.verified_ok(seal) is False for seal in facts.seals):
        return "bad", "Damaged" if "damaged" in seals.findings(facts).values() else "Not as sealed"
    seal = seals.of(facts)
    if seal is None:
        return ("", "") if facts.kind in _ROWS else ("open", "Open")
    if seal.state == "sealed":
        return "good", "Sealed"
    return ("open", "Open") if seal.state == "open" else ("busy", f"{seal.state.capitalize()} …")


def _seal(facts: Facts, seal: Seal) -> dict[str, Any]:
    record = seal.record
    verified = seal.verified or {}
    findings = []
    for word in seals.FINDINGS:
        listed = verified.get(word)
        if isinstance(listed, list | tuple) and listed:
            findings.append((word, [shown(path) for path in listed[:LISTED_LIMIT]],
                             max(0, len(listed) - LISTED_LIMIT)))  # fmt: skip
    size_text = size(record["size_bytes"]) if record.get("size_bytes") is not None else ""
    count_text = count(record["file_count"], "file") if record.get("file_count") is not None else ""
    return {
        "path": _place(facts, seal),
        "state": seal.state,
        "by": shown(record.get("sealed_by") or ""),
        "at": time(record.get("sealed_at") or ""),
        "amount": ", ".join(filter(None, (count_text, size_text))),
        "content_hash": shown(record.get("content_hash") or ""),
        "attribute_hash": shown(record.get("attribute_hash") or ""),
        "manifest": f"seals/{percent(seal.path, '')}.B3SUMS"
        if seal.state == "sealed" and not covers(seal.path) and "/" not in seal.path else "",
        "until": shown(record.get("until") or ""),
        "hold": bool(record.get("hold")),
        "reason": shown(record.get("reason") or ""),
        "ok": seals.verified_ok(seal),
        "verified_at": time(verified.get("verified_at") or ""),
        "verified_by": shown(verified.get("verified_by") or ""),
        "findings": findings,
    }  # fmt: skip


def _place(facts: Facts, seal: Seal) -> str:
    if seal.path == ".":
        return shown(name(facts)) or "the whole store"
    if covers(seal.path):
        here = parts(facts)
        return shown("/".join(here[: len(here) - seal.path.count("..")]))
    return shown(seal.path)


def _summary(facts: Facts) -> str | None:
    sealed = sum(seal.state == "sealed" for seal in facts.seals)
    return f"{count(sealed, 'sealed directory', 'sealed directories')} in here" if sealed else None


# ---- the table -----------------------------------------------------------------------------------


def _rows(facts: Facts, entries: list[Entry]) -> Iterator[dict[str, Any]]:
    marks = seals.findings(facts)
    same = common(facts)
    for entry in entries:
        metadata = facts.metadata.get(entry.path)
        folder, _, own = entry.path.rpartition("/")
        mark = marks.get(entry.path) or _mark_below(facts, entry)
        yield {
            "folder": shown(folder + "/") if folder else "",
            "name": shown(own) + ("/" if entry.kind == "directory" else ""),
            "type": {"directory": "Directory", "link": "Link", "other": "Special file"}.get(
                entry.kind, format_name(entry.path)
            ),
            "size": size(entry.size_bytes) if entry.kind == "file" else "",
            "bytes": entry.size_bytes,
            "changed": utc(entry.mtime_ns)[:10],
            "b3": shown(entry.b3 or ""),
            "mark": mark,
            "sealed": _sealed_below(facts, entry) if facts.kind in _ROWS else None,
            "problem": shown(metadata.problem) if metadata and metadata.problem else "",
            "values": _measured({key: value for key, value in metadata.values.items()
                                 if same.get(key) != value}) if metadata else [],
            "links": [(shown(label(link)), url) for link, url in
                      urls(facts, entry.path, is_file=entry.kind == "file").items()]
            if entry.kind in ("file", "directory") else [],
        }  # fmt: skip


def _previews(facts: Facts, entries: list[Entry]) -> Iterator[dict[str, str]]:
    for entry in entries:
        metadata = facts.metadata.get(entry.path)
        png = metadata.preview_png if metadata else None
        if png and png.startswith(_PNG):
            yield {
                "name": shown(entry.path.rpartition("/")[2]),
                "png": base64.b64encode(png).decode(),
            }


def _below(facts: Facts, entry: Entry) -> list[Seal]:
    return [
        seal
        for seal in facts.seals
        if seal.path == entry.path or seal.path.startswith(entry.path + "/")
    ]


def _mark_below(facts: Facts, entry: Entry) -> str | None:
    """Of a directory: whether something sealed in it is not as it was."""
    if facts.kind not in _ROWS or entry.kind != "directory":
        return None
    bad = any(seals.verified_ok(seal) is False for seal in _below(facts, entry))
    return "not as sealed" if bad else None


def _sealed_below(facts: Facts, entry: Entry) -> str:
    """Of a directory: what of it is sealed, in words."""
    if facts.seals and covers(facts.seals[0].path):
        return facts.seals[0].state
    found = _below(facts, entry)
    if facts.kind != "project":
        sealed = sum(seal.state == "sealed" for seal in found)
        return f"{sealed:,} sealed" if sealed else ""
    return ", ".join(f"{seal.state} ({shown(seal.path[len(entry.path) + 1 :])})"
                     if seal.path != entry.path else seal.state for seal in found[:3])  # fmt: skip


def _rows_summary(facts: Facts, listed: list[Entry]) -> str:
    more = facts.entries_left_out
    if facts.kind in _ROWS:
        return count(len(listed) + more, _ROWS[facts.kind][1])
    total = size(sum(entry.size_bytes for entry in listed if entry.kind == "file"))
    at_least = "more than " if more else ""
    return f"{at_least}{count(len(listed), 'file')}, {at_least}{total}"
