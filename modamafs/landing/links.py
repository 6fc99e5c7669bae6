"""``links/``: where else the directory can be opened, as Internet shortcuts; and the deep links
that everything else shows.

A template is a URL with placeholders in braces::

    https://cloud.example.org/index.php/apps/files/files?dir=/{directory}

Where a placeholder has no value there is no link. Values are percent-encoded, so that a directory's
name can never become another part of the URL.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache, partial
from urllib.parse import quote, urlsplit

from modamafs.landing.facts import Facts
from modamafs.landing.words import parts, percent

NAME = "links"
ABOUT = "Where else to open this: one Internet shortcut (`.url`) for each link, for a double click"
NEEDS_ENTRIES = False

PLACEHOLDERS = {
    "path": "path in the store, of the directory or the file",
    "path_query": "the same with `/` encoded too",
    "directory": "path in the store, of the directory; of a file, the directory that it lies in",
    "directory_query": "the same with `/` encoded too",
    "file": "path in the store of a file; directories get no link",
    "file_query": "the same with `/` encoded too",
    "project_path": "AREA/PROJECT",
    "session_path": "AREA/PROJECT/SESSION",
    "area": "name of the area",
    "project": "name of the project's directory",
    "session": "name of the session's directory",
    "id": "the session's id; outside of sessions the project's",
    "sampledb_id": "number of the sample in SampleDB, of the session",
    "elabftw_id": "number of the experiment in eLabFTW, of the session",
}
DEEP = ("path", "path_query", "directory", "directory_query", "file", "file_query")
"""A template with one of these is also a deep link of each file, and of each listed directory."""

SCHEMES = ("http", "https", "ftp", "sftp", "dav", "davs", "mailto")
"""What may be made a link: nothing that runs code, or opens local files."""

LABELS = {
    "nextcloud": "Nextcloud",
    "jupyterhub": "JupyterHub",
    "libertem": "LiberTEM",
    "sampledb": "SampleDB",
    "elabftw": "eLabFTW",
    "view": "Viewer",
}

_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_DEVICES = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?")
_NAME_BYTES = 200
"""File systems take 255 bytes; some clients add something of theirs."""


def check_template(text: str) -> None:
    """ValueError, saying why: it is no template for links."""
    for name in _PLACEHOLDER.findall(text):
        if name not in PLACEHOLDERS:
            known = ", ".join(f"{{{known}}}" for known in PLACEHOLDERS)
            raise ValueError(f"no placeholder is called {{{name}}}: there are {known}")
    bare = _PLACEHOLDER.sub("", text)
    if "{" in bare or "}" in bare:
        raise ValueError("a brace without its other half (%7B and %7D are braces in a URL)")
    if re.search(r"[\x00-\x20\x7f]", text):
        raise ValueError("a URL has no spaces and control characters (%20 is a space in a URL)")
    if not re.match(r"https?://[\w.:@\[\]-]+([/?#]|$)", text, re.ASCII):
        raise ValueError("it has to begin with http:// or https:// and the name of a host")


def urls(facts: Facts, inside: str = "", *, is_file: bool = True) -> Mapping[str, str]:
    """The links of the directory, by name; or the deep links of one file (or directory) in it.

    From the templates of the configuration first, then those that the session's and the project's
    record have by themselves. All are safe to be made links, in ASCII.
    """
    values = _values(facts, inside, is_file=is_file)
    found: dict[str, str] = {}
    for name, template in sorted(facts.links.items()):
        url = _filled(template, values, deep=bool(inside))
        if url is not None:
            found[name] = url
    if not inside:
        for name, text in given(facts).items():
            url = safe_url(text)
            if url is not None:
                found.setdefault(name, url)
    return found


def given(facts: Facts) -> dict[str, str]:
    """What the records have as links, safe or not."""
    found = dict(facts.project.links) if facts.project else {}
    return found | (dict(facts.session.links) if facts.session else {})


def label(name: str) -> str:
    """What people call it."""
    return LABELS.get(name, name)


def safe_url(text: str) -> str | None:
    """A URL that may be made a link, in ASCII; None: it is none, or might do harm."""
    text = text.strip()
    try:
        split = urlsplit(text)
        host = split.hostname or ""
        if host and not host.isascii():
            text = text.replace(host, host.encode("idna").decode(), 1)
    except ValueError:
        return None
    scheme, colon, rest = text.partition(":")
    if not colon or scheme.lower() not in SCHEMES or not rest:
        return None
    if scheme.lower() != "mailto" and not (host and rest.startswith("//")):
        return None
    return _quoted(text)


def _values(facts: Facts, inside: str, *, is_file: bool) -> dict[str, str]:
    names = [*parts(facts), *(inside.split("/") if inside else ())]
    path = "/".join(names)
    if inside and is_file:
        del names[-1]
    directory = "/".join(names)
    found = {
        "path": percent(path),
        "path_query": percent(path, ""),
        "directory": percent(directory),
        "directory_query": percent(directory, ""),
    }
    if inside and is_file:
        found |= {"file": found["path"], "file_query": found["path_query"]}
    for depth, name in enumerate(("area", "project", "session")):
        if len(names) > depth:
            found[name] = percent(names[depth], "")
            found[f"{name}_path"] = percent("/".join(names[: depth + 1]))
    record = facts.session or facts.project
    if record and record.id:
        found["id"] = percent(record.id, "")
    if facts.session and facts.session.sampledb_id is not None:
        found["sampledb_id"] = str(facts.session.sampledb_id)
    if facts.session and facts.session.elabftw_id is not None:
        found["elabftw_id"] = str(facts.session.elabftw_id)
    return found


def _filled(template: str, values: Mapping[str, str], *, deep: bool) -> str | None:
    literals, wanted = _parsed(template)
    if not literals or any(name not in values for name in wanted):
        return None
    if deep and not any(name in DEEP for name in wanted):
        return None
    filled = (values[name] + literal for name, literal in zip(wanted, literals[1:], strict=True))
    return literals[0] + "".join(filled)


@lru_cache(maxsize=128)
def _parsed(template: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What stands between the placeholders, and these; nothing, if it is no template."""
    try:
        check_template(template)
    except ValueError:  # the configuration was checked when it was read
        return (), ()
    pieces = _PLACEHOLDER.split(template)
    return tuple(map(_quoted, pieces[::2])), tuple(pieces[1::2])


def _quoted(url: str) -> str:
    """In ASCII; what has a meaning in a URL keeps it."""
    return quote(url, safe="!#$%&'()*+,/:;=?@[]~", errors="replace")


# ---- the directory -------------------------------------------------------------------------------


def entries(facts: Facts) -> Mapping[str, partial[bytes]]:
    """``<name>.url`` for each link."""
    found: dict[str, partial[bytes]] = {}
    for name, url in urls(facts).items():
        plain = stem = file_name(name)
        number = 2
        while f"{stem}.url" in found:
            stem, number = f"{plain}-{number}", number + 1
        found[f"{stem}.url"] = partial(shortcut, url)
    return found


def shortcut(url: str) -> bytes:
    """An Internet shortcut as Windows, KDE and GNOME know it; ``url`` is ASCII."""
    return f"[InternetShortcut]\r\nURL={url}\r\n".encode("ascii")


def file_name(title: str) -> str:
    """A title as a file's name that every system takes, Windows too."""
    plain = re.sub(r'[\x00-\x1f\x7f<>:"/\\|?*\ud800-\udfff]+', "_", title)
    plain = plain.encode()[:_NAME_BYTES].decode(errors="ignore").strip(" .")
    return f"_{plain}" if not plain or _DEVICES.fullmatch(plain) else plain
