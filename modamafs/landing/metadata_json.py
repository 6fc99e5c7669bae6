"""``metadata.json``: everything that is known, for programs."""

from __future__ import annotations

from typing import Any

import msgspec

from modamafs.catalog import Project, Session
from modamafs.landing.facts import Facts, Seal
from modamafs.landing.files import known
from modamafs.landing.links import urls
from modamafs.landing.words import json_text, media_type, title, utc

NAME = "metadata.json"
MEDIA_TYPE = "application/json"
ABOUT = "Everything that is known, for programs: records, seals, files, extracted values, links"

KEYS = {
    "path": 'path in the store; `""` for the store',
    "kind": "`store`, `area`, `project`, `session` or `directory`",
    "title": "what it is called",
    "publisher": "who runs the store",
    "owner": "login name of the directory's owner",
    "group": "the directory's group",
    "mode": "the directory's mode, octal",
    "mtime_ns": "the directory's time of modification, nanoseconds since 1970",
    "changed_at": "when anything in here changed last, UTC",
    "project": "the project's record, or `null`",
    "session": "the session's record, or `null`",
    "seals": "a list: `path` from here, `state`, `record` and `verified` (what verify found last)",
    "files": "a list, sorted by path: the keys of `all.json`, `kind` and `media_type`",
    "files_left_out": "how many more there are",
    "links": "name → URL",
    "problems": "records that can't be understood, and why",
}


def render(facts: Facts) -> bytes:
    """An object with ``KEYS``."""
    return json_text(
        {
            "path": facts.path,
            "kind": facts.kind,
            "title": title(facts),
            "publisher": facts.publisher,
            "owner": facts.owner,
            "group": facts.group,
            "mode": f"{facts.mode:04o}",
            "mtime_ns": facts.mtime_ns,
            "changed_at": utc(facts.changed_ns),
            "project": _record(facts.project),
            "session": _record(facts.session),
            "seals": [_seal(seal) for seal in facts.seals],
            "files": _files(facts),
            "files_left_out": facts.entries_left_out,
            "links": dict(urls(facts)),
            "problems": list(facts.problems),
        }
    )


def _record(record: Project | Session | None) -> dict[str, Any] | None:
    """As the file on the store has it: fields of other programs beside ours."""
    if record is None:
        return None
    found: dict[str, Any] = msgspec.to_builtins(record)
    extra: dict[str, Any] = found.pop("extra")
    return extra | found


def _seal(seal: Seal) -> dict[str, Any]:
    return {
        "path": seal.path,
        "state": seal.state,
        "record": dict(seal.record),
        "verified": None if seal.verified is None else dict(seal.verified),
    }


def _files(facts: Facts) -> list[dict[str, Any]]:
    return [
        known(facts, entry.path, entry, facts.metadata.get(entry.path))
        | {"kind": entry.kind}
        | ({"media_type": media_type(entry.path)} if entry.kind == "file" else {})
        for entry in facts.entries
    ]
