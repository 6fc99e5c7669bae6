"""``seal/``: whether the data can still change, and what proves it; one value a file."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from modamafs.landing.facts import Facts, Seal
from modamafs.landing.words import covers, parts, shown

NAME = "seal"
ABOUT = "The seal, one value a file: `state`, `content_hash`, `sealed_at`, `verified_ok`, …"
NEEDS_ENTRIES = False

OF_RECORD = {
    "content_hash": "hash of names and bytes; any faithful copy has the same",
    "attribute_hash": "hash of owners, modes, times and extended attributes",
    "file_count": "how many files are sealed",
    "size_bytes": "how many bytes they have",
    "requested_at": "when sealing was asked for",
    "sealed_at": "since when it is sealed",
    "sealed_by": "who sealed it",
    "until": "it stays sealed at least until then",
    "hold": "`true`: it stays sealed until a steward lifts that",
    "reason": "why it was sealed, or is being unsealed",
    "immutable_flag": "`true`: the store itself refuses changes, too",
}
OF_VERIFICATION = {
    "verified_at": "when everything was read again and compared",
    "verified_by": "who had it compared",
    "verified_ok": "`true`: everything was as it was sealed",
}
FINDINGS = {
    "damaged": "files with other bytes although nothing else has changed, one path a line",
    "missing": "what was sealed and is not there any more",
    "changed": "what has other attributes, or other bytes and another time",
    "added": "what was not there when it was sealed",
    "manifest": "what is wrong with the manifests themselves",
}
OTHERS = {
    "state": "`open`, `sealing`, `sealed` or `unsealing`",
    "path": "what is sealed, from here: `.` is this directory, `raw` in a session",
    "below": "all sealed directories in this one, one path a line",
}
FILES = OTHERS | OF_RECORD | OF_VERIFICATION | FINDINGS
"""What may be in ``seal/``, with what it means. A value that there is none of has no file."""


def of(facts: Facts) -> Seal | None:
    """The seal that a directory is asked about.

    The one that covers it, be it its own or of a directory above. Otherwise, of a session, that of
    its ``raw``, or of the only sealed directory in it. Otherwise none: the directory is open,
    whatever there is in it.
    """
    for seal in facts.seals:
        if covers(seal.path):
            return seal
    if facts.kind != "session":
        return None
    for seal in facts.seals:
        if seal.path == "raw":
            return seal
    return facts.seals[0] if len(facts.seals) == 1 else None


def entries(facts: Facts) -> Mapping[str, partial[bytes]]:
    """By name; see ``FILES``."""
    return {name: partial(_line, text) for name, text in values(facts).items()}


def values(facts: Facts) -> dict[str, str]:
    """The values as text, without the newline at the end."""
    seal = of(facts)
    found: dict[str, str] = {"state": seal.state if seal else "open"}
    if seal:
        found["path"] = shown(seal.path)
    below = [shown(seal.path) for seal in facts.seals if not covers(seal.path)]
    if below:
        found["below"] = "\n".join(below)
    if seal:
        for name in OF_RECORD:
            _put(found, name, seal.record.get(name))
        if seal.verified is not None:
            for name in ("verified_at", "verified_by", *FINDINGS):
                _put(found, name, seal.verified.get(name))
            _put(found, "verified_ok", seal.verified.get("ok"))
    return found


def _put(found: dict[str, str], name: str, value: Any) -> None:
    if isinstance(value, list | tuple):
        text = "\n".join(map(shown, value))
    elif isinstance(value, bool):
        text = str(value).lower()
    else:
        text = "" if value is None else shown(value)
    if text:
        found[name] = text


def _line(text: str) -> bytes:
    return text.encode() + b"\n"


# ---- for the others ------------------------------------------------------------------------------


def verified_ok(seal: Seal) -> bool | None:
    """What ``verify`` said last; None: it never was asked."""
    return None if seal.verified is None else seal.verified.get("ok") is True


def findings(facts: Facts) -> dict[str, str]:
    """By path in this directory: ``damaged``, ``missing``, ``changed`` or ``added``."""
    found: dict[str, str] = {}
    for seal in facts.seals:
        for word in ("added", "changed", "missing", "damaged"):  # the worst is said
            listed = (seal.verified or {}).get(word)
            for path in listed if isinstance(listed, list | tuple) else ():
                inside = _inside(facts, seal, str(path))
                if inside is not None:
                    found[inside] = word
    return found


def _inside(facts: Facts, seal: Seal, path: str) -> str | None:
    """A path in the sealed directory as one in this directory; None: it lies elsewhere."""
    here = parts(facts)
    steps = [step for step in seal.path.split("/") if step != "."]
    up = steps.count("..")
    root = here[: len(here) - up] + steps[up:]
    full = root + ([] if path == "." else path.split("/"))
    return "/".join(full[len(here) :]) or "." if full[: len(here)] == here else None
