"""``README.md``: what this is, for a terminal and for web interfaces that show Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterator

from modamafs.catalog import Person
from modamafs.landing import seal as seals
from modamafs.landing.facts import Entry, Facts, Seal
from modamafs.landing.links import label, urls
from modamafs.landing.words import (
    common,
    count,
    creators,
    description,
    files,
    keywords,
    kind,
    license_url,
    measured,
    paragraphs,
    project_people,
    shown,
    size,
    time,
    title,
    utc,
)

NAME = "README.md"
MEDIA_TYPE = "text/markdown"
ABOUT = "What this is, for people in a terminal: title, people, seal, links, files"

FILES_LIMIT = 100
"""How many files are listed; all are in ``metadata.json``."""


def render(facts: Facts) -> bytes:
    """Markdown. Whatever names and records hold is text in it, and never markup."""
    sections = [
        [f"# {escaped(title(facts))}"],
        [f"**{note}**" for note in _warnings(facts)],
        [*_about(facts)],
        *([escaped(part)] for part in paragraphs(description(facts))),
        _section("Seal", _seals(facts)),
        _section("Values", _values(facts)),
        _section("Links", _links(facts)),
        _section(_heading(facts), _entries(facts)),
        _section("What can't be read", (f"- {escaped(text)}" for text in facts.problems)),
    ]
    return ("\n\n".join("\n".join(lines) for lines in sections if lines) + "\n").encode()


def escaped(text: object) -> str:
    """As text in Markdown, in lines that begin no list, heading or quotation."""
    lines = []
    for line in str(text).split("\n"):
        plain = re.sub(
            r"([\\`*<>\[\]|~$]|(?<![^\W_])_|_(?![^\W_])|&(?=#?\w+;)|!(?=\[))", r"\\\1", shown(line)
        )
        plain = re.sub(
            r"^(\s*)([#+\-=:](?=[\s#+\-=:]|$)|\d+(?=[.)](?:\s|$)))", _escape_first, plain
        )
        lines.append(plain.strip())
    return "\n".join(lines)


def _escape_first(found: re.Match[str]) -> str:
    """The mark that a line begins with; of ``1.`` it is the point that is one."""
    return f"{found[1]}{found[2]}\\" if found[2].isdigit() else f"{found[1]}\\{found[2]}"


def code(text: object) -> str:
    """As code, with as many backticks around it as are needed."""
    plain = shown(text)
    fence = "`" * (max(map(len, re.findall("`+", plain)), default=0) + 1)
    space = " " if plain.startswith(("`", " ")) or plain.endswith(("`", " ")) or not plain else ""
    return f"{fence}{space}{plain}{space}{fence}"


def _section(heading: str, lines: Iterator[str]) -> list[str]:
    found = list(lines)
    return [f"## {heading}", "", *found] if found else []


def _warnings(facts: Facts) -> Iterator[str]:
    for seal in facts.seals:
        if seals.verified_ok(seal) is False:
            yield f"Not as it was sealed: {code(seal.path)}; see below."


def _about(facts: Facts) -> Iterator[str]:
    if facts.path:
        yield f"- {kind(facts).capitalize()}: {code(facts.path)}"
    if facts.publisher:
        yield f"- Kept by: {escaped(facts.publisher)}"
    if facts.project and facts.kind != "project":
        yield f"- Project: {escaped(facts.project.title)}"
    if facts.session and facts.kind != "session":
        yield f"- Session: {escaped(facts.session.title)}"
    known = facts.session or facts.project
    heading = ("Measured by" if facts.session else "Owner") if known else "Belongs to"
    yield f"- {heading}: {'; '.join(map(_person, creators(facts)))}"
    people = project_people(facts)
    if people:
        yield f"- {'Members' if not facts.session else 'Project team'}: " + "; ".join(
            map(_person, people)
        )
    if facts.session:
        yield f"- Date: {escaped(facts.session.date)}"
        if facts.session.instrument:
            yield f"- Instrument: {escaped(facts.session.instrument)}"
        if facts.session.sample:
            yield f"- Sample: {escaped(facts.session.sample)}"
    if facts.project and facts.project.license:
        url = license_url(facts)
        text = escaped(facts.project.license)
        yield f"- Licence: {f'[{text}](<{url}>)' if url else text}"
    if keywords(facts):
        yield f"- Keywords: {escaped(', '.join(keywords(facts)))}"
    yield f"- Last change: {utc(facts.changed_ns)}"


def _person(person: Person) -> str:
    found = escaped(person.name)
    if person.affiliation:
        found += f", {escaped(person.affiliation)}"
    return found + (f" (<https://orcid.org/{person.orcid}>)" if person.orcid else "")


def _seals(facts: Facts) -> Iterator[str]:
    if not facts.seals and facts.kind in ("session", "directory"):
        yield "Not sealed: everything can still be changed."
    for seal in facts.seals[:FILES_LIMIT]:
        yield f"- {code(seal.path)}: " + "; ".join(_seal(seal))
        if len(facts.seals) == 1 or seal is seals.of(facts):
            yield from _proof(seal)
    if len(facts.seals) > FILES_LIMIT:
        yield f"- and {len(facts.seals) - FILES_LIMIT} more"


def _seal(seal: Seal) -> Iterator[str]:
    record = seal.record
    by = f" by {escaped(record['sealed_by'])}" if record.get("sealed_by") else ""
    at = f" since {escaped(time(record['sealed_at']))}" if record.get("sealed_at") else ""
    yield f"{seal.state}{at}{by}"
    if record.get("file_count") is not None:
        total = (
            f", {escaped(size(record['size_bytes']))}"
            if record.get("size_bytes") is not None
            else ""
        )
        yield f"{escaped(count(record['file_count'], 'file'))}{total}"
    if record.get("until"):
        yield f"until {escaped(record['until'])} at least"
    if record.get("hold"):
        yield "on hold"


def _proof(seal: Seal) -> Iterator[str]:
    if seal.record.get("content_hash"):
        yield f"  - Content hash: {code(seal.record['content_hash'])}"
    if seal.verified is None:
        yield "  - Never verified"
        return
    ok = seals.verified_ok(seal)
    at = escaped(time(seal.verified.get("verified_at") or "at an unknown time"))
    yield f"  - Verified {at}: {'as it was sealed' if ok else 'not as it was sealed'}"
    for word in seals.FINDINGS:
        listed = seal.verified.get(word)
        for path in (listed if isinstance(listed, list | tuple) else ())[:FILES_LIMIT]:
            yield f"    - {word}: {code(path)}"


def _values(facts: Facts) -> Iterator[str]:
    for key, value in sorted((measured(facts) | common(facts)).items()):
        yield f"- {escaped(key)}: {escaped(value)}"


def _links(facts: Facts) -> Iterator[str]:
    for name, url in urls(facts).items():
        yield f"- [{escaped(label(name))}](<{url}>)"


def _heading(facts: Facts) -> str:
    return {"store": "Areas", "area": "Projects", "project": "Sessions"}.get(facts.kind, "Files")


def _entries(facts: Facts) -> Iterator[str]:
    listed = list(files(facts) if facts.kind in ("session", "directory") else facts.entries)
    marks = seals.findings(facts)
    for entry in listed[:FILES_LIMIT]:
        yield f"- {code(entry.path)}{_entry(entry)}" + (
            f" **{marks[entry.path]}**" if entry.path in marks else ""
        )
    more = len(listed[FILES_LIMIT:]) + facts.entries_left_out
    if more:
        yield f"- and {count(more, 'more', 'more')}; as far as they are known, in `metadata.json`"


def _entry(entry: Entry) -> str:
    if entry.kind == "file":
        return f" ({size(entry.size_bytes)})"
    return "" if entry.kind == "directory" else " (link)" if entry.kind == "link" else " (special)"
