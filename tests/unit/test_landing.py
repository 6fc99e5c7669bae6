"""Landing directories: every name, over facts of every kind, and names that mean harm."""

from __future__ import annotations

import configparser
import json
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, get_args
from urllib.parse import unquote_to_bytes, urlsplit

import html5lib
import pytest
from datacite import schema45
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from modamafs import landing
from modamafs.catalog import FileMetadata, Measured, Person, Project, Session
from modamafs.landing import files, links, metadata_json, page, readme, seal, words
from modamafs.landing.facts import Entry, Facts, Kind, Seal

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from rocrate.rocrate import ROCrate

DOCS = Path(__file__).parents[2] / "docs/landing.md"
NAMES = sorted(landing.modules())
KINDS: tuple[Kind, ...] = get_args(Kind)
PATHS = ("", "tem", "tem/phase-plates", "tem/phase-plates/2026-11-23", "tem/phase-plates/x/raw/y")
SVG = "{http://www.w3.org/2000/svg}"
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b55"
    "0000000a49444154789c636000000002000148afa4710000000049454e44ae426082"
)
HOSTILE = (
    "<script>alert(1)</script>",
    "\"><img src=x onerror=alert(1)>'",
    "a\nb\r\n# heading\n\n---\n* item",
    "gnp.\u202egpj",
    "\udcff\udc80 no UTF-8",
    "{{ 7*7 }}{% raw %}",
    "`code` [link](javascript:alert(1)) ![i](http://x/y) **bold** &lt; | _x_ <b>",
    "\x00\x1b[31m\u2028\u2066\ufeff\U0001ffff",
    "C:\\con.txt",
    "ro-crate-metadata.json",
    "../../etc/passwd",
    "#1 100% a+b?c=d&e;f:g@h",
    "</style></title><!--",
)

ANNA = Person(
    name="Anna Lindqvist",
    user="anna",
    orcid="0000-0002-1825-0097",
    affiliation="Universität Überall",
)
PROJECT = Project(
    id="5b0e8f1e-52a1-4a5c-9f0e-2d5a3e0b9a11",
    title="Phase plates",
    description="Thin films.\n\nAnd more.",
    owner=Person(name="Maren Voss", user="maren"),
    members=(ANNA, Person(name="Tomás Ortega")),
    license="CC-BY-4.0",
    keywords=("phase plate",),
    links={"Proposal": "https://proposals.example.org/4711"},
    created_at="2026-03-02T08:00:00Z",
    extra={"x-other": 1},
)
SESSION = Session(
    id="f4f1c1c4-7f44-4c29-a6c1-0bb1a3f3e111",
    title="Defocus series",
    owner=ANNA,
    instrument="Titan",
    date="2026-11-23",
    sample="PP-17",
    sampledb_id=4711,
    elabftw_id=318,
    metadata={"beam_current": Measured(value=48, unit="pA")},
)
RECORD = {
    "content_hash": "blake3:" + "f0" * 32,
    "attribute_hash": "blake3:" + "47" * 32,
    "file_count": 2,
    "size_bytes": 4300,
    "sealed_at": "2026-11-24T04:24:43Z",
    "sealed_by": "anna",
    "until": None,
    "hold": False,
    "immutable_flag": True,
}
VERIFIED = {
    "ok": False,
    "verified_at": "2026-12-01T02:00:11Z",
    "verified_by": "root",
    "damaged": ["a.mib"],
    "missing": ["gone.txt"],
    "added": [],
    "changed": [],
    "manifest": [],
}
SEALED = Seal("raw", "sealed", RECORD, VERIFIED)
LINKS = {
    "nextcloud": "https://cloud.example.org/index.php/apps/files/files?dir=/{directory}",
    "jupyterhub": "https://jupyter.example.org/hub/user-redirect/lab/tree/{path}",
    "libertem": "https://libertem.example.org/#action=open&path=%2Fdata%2F{file_query}",
    "sampledb": "https://sampledb.example.org/objects/{sampledb_id}",
    "elabftw": "https://eln.example.org/experiments.php?mode=view&id={elabftw_id}",
    "view": "https://data.example.org/{path}/",
}
ENTRIES = (
    Entry("raw", "directory", 4096, 10**18),
    Entry("raw/a.mib", "file", 4096, 10**18, "ab" * 32),
    Entry("raw/b.hdf5", "file", 204, 10**18, "cd" * 32),
    Entry("raw/sub", "directory", 4096, 10**18),
    Entry("raw/sub/link", "link", 5, 10**18),
    Entry("script.py", "file", 10, 10**18),
)
METADATA = {
    "raw/a.mib": FileMetadata(
        path="raw/a.mib",
        size_bytes=4096,
        mtime_ns=10**18,
        reader="rsciio 0.7",
        values={
            "beam_energy": Measured(value=300, unit="keV"),
            "defocus": Measured(value=-20.5, unit="nm"),
            "all.json": Measured(value="hidden"),
            "a/b": Measured(value="no name"),
        },
        preview_png=PNG,
    ),
    "raw/b.hdf5": FileMetadata(
        path="raw/b.hdf5", size_bytes=204, mtime_ns=10**18, problem="truncated\nfile"
    ),
}
FULL = Facts(
    path=PATHS[3],
    kind="session",
    owner="anna",
    group="er-c",
    mode=0o2750,
    mtime_ns=10**18,
    changed_ns=1795430000 * 10**9,
    project=PROJECT,
    session=SESSION,
    problems=("session.json: what is wrong",),
    entries=ENTRIES,
    seals=(SEALED,),
    metadata=METADATA,
    links=LINKS,
    publisher="Centre for Electron Microscopy",
)


def of_kind(kind: Kind, facts: Facts) -> Facts:
    """The same as if of another kind."""
    depth = KINDS.index(kind)
    return replace(
        facts,
        kind=kind,
        path=PATHS[depth],
        project=facts.project if depth >= 2 else None,
        session=facts.session if depth >= 3 else None,
    )


EMPTY = Facts("tem/x/y", "session", "1001", "1001", 0o755, 0, 0)


def hostile() -> Iterator[Facts]:
    """Each name everywhere that a name can be."""
    for text in HOSTILE:
        line = re.sub(r"[\x00-\x1f\x7f]", "", text)
        name = text.replace("/", "_").replace("\0", "")
        path = f"{name}/sub/{name}"
        person = Person(name=line, user=line, affiliation=line)
        values = {line: Measured(value=line, unit=line), name: Measured(value=text)}
        yield replace(
            FULL,
            path=f"{name}/{name}/{name}",
            owner=line,
            project=Project(
                id=line, title=line, description=text, owner=person, license=line,
                members=(person,), keywords=(line,), metadata=values,
                links={line: line, "js": "javascript:alert(1)", "d": "data:text/html,<b>"},
            ),
            session=Session(
                id=line, title=line, description=text, owner=person, date="2026-11-23",
                instrument=line, sample=line, keywords=(line,), metadata=values,
            ),
            problems=(text,),
            entries=tuple(sorted((
                Entry(name, "directory", 1, 1), Entry(f"{name}/sub", "directory", 1, 1),
                Entry(path, "file", 1, -(10**30), line), Entry(f"{path}.h5", "file", 1, 10**30)),
                key=lambda entry: entry.path)),
            seals=(Seal(name, "sealed", dict.fromkeys(RECORD, text),
                        {"ok": False, "damaged": [text], "verified_at": text, "missing": text}),),
            metadata={path: FileMetadata(path=path, size_bytes=1, mtime_ns=1, problem=text,
                                         values=values,
                                         preview_png=text.encode("utf-8", "replace")),
                      f"{path}.h5": FileMetadata(path=path, size_bytes=1, mtime_ns=1,
                                                 values=values)},
            publisher=line,
        )  # fmt: skip


HOSTILE_FACTS = list(hostile())
ALL_FACTS = [
    EMPTY,
    FULL,
    *(of_kind(kind, facts) for kind in KINDS for facts in (EMPTY, FULL)),
    *(of_kind(kind, facts) for kind in KINDS for facts in HOSTILE_FACTS),
    *HOSTILE_FACTS,
]


def leaves(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, bytes]]:
    """All files of a directory."""
    for name, found in content.items():
        assert name
        assert "/" not in name and "\0" not in name and name not in (".", "..")
        if isinstance(found, Mapping):
            yield from leaves(found, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", found()


def rendered(name: str, facts: Facts) -> dict[str, bytes]:
    """What a module shows, by path."""
    module = landing.modules()[name]
    if hasattr(module, "entries"):
        return dict(leaves(module.entries(facts), f"{name}/"))
    content = module.render(facts)
    return {} if content is None else {name: content}


def parsed(facts: Facts) -> Any:
    """The page as browsers read it."""
    return html5lib.parse(page.render(facts).decode(), namespaceHTMLElements=False)


# ---- all of them ---------------------------------------------------------------------------------


def test_these_are_all() -> None:
    assert NAMES == [
        "README.md", "datacite.json", "files", "index.html", "links", "links.json",
        "metadata.json", "ro-crate-metadata.json", "seal",
    ]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_utf8_that_ends_in_a_newline(name: str) -> None:
    for facts in ALL_FACTS:
        for path, content in rendered(name, facts).items():
            content.decode("utf-8")
            assert content.endswith(b"\n"), path


@pytest.mark.parametrize("name", NAMES)
def test_the_same_facts_give_the_same_bytes(name: str) -> None:
    """Also in another process, another day: nothing depends on the hash seed or the clock."""
    for facts in (EMPTY, FULL, HOSTILE_FACTS[0]):
        assert rendered(name, facts) == rendered(name, facts)
    reordered = replace(FULL, metadata=dict(reversed(METADATA.items())),
                        links=dict(reversed(LINKS.items())))  # fmt: skip
    assert rendered(name, reordered) == rendered(name, FULL)


@cache
def digests(seed: str) -> dict[str, str]:
    """Of all names, from a process of its own."""
    code = (
        "import hashlib, json, time; time.time = lambda: 12345.0\n"
        "from tests.unit.test_landing import *\n"
        "print(json.dumps({n: hashlib.sha256(repr(rendered(n, FULL)).encode()).hexdigest()"
        " for n in NAMES}))"
    )
    environment = {"PYTHONHASHSEED": seed, "TZ": "Asia/Tokyo" if seed == "1" else "UTC"}
    root = Path(__file__).parents[2]
    found = subprocess.run([sys.executable, "-c", code], env=environment, cwd=root,
                           capture_output=True, text=True, check=True)  # fmt: skip
    known: dict[str, str] = json.loads(found.stdout)
    return known


@pytest.mark.parametrize("name", NAMES)
def test_the_same_in_another_process_and_time_zone(name: str) -> None:
    assert digests("1")[name] == digests("2")[name]


@pytest.mark.parametrize("name", NAMES)
def test_documented(name: str) -> None:
    module = landing.modules()[name]
    shown = name + "/" if hasattr(module, "entries") else name
    assert "\n" not in module.ABOUT
    assert f"| `{shown}` | {module.ABOUT} |\n" in DOCS.read_text()
    assert module.__doc__
    assert hasattr(module, "entries") or module.MEDIA_TYPE


@pytest.mark.parametrize(
    ("heading", "keys"),
    [
        ("### `metadata.json`", metadata_json.KEYS),
        ("### `seal/`", seal.FILES),
        ("### `files/`", files.OWN),
        ("## Links", {f"{{{name}}}": about for name, about in links.PLACEHOLDERS.items()}),
    ],
)
def test_each_key_is_documented(heading: str, keys: Mapping[str, str]) -> None:
    section = DOCS.read_text().split(f"\n{heading}\n")[1].split("\n## ")[0].split("\n### ")[0]
    rows = dict(re.findall(r"^\| `([^`]+)` \| (.*) \|$", section, re.MULTILINE))
    assert rows == dict(keys)


def test_what_says_that_it_needs_no_list_of_files_needs_none() -> None:
    for module in landing.modules().values():
        if not getattr(module, "NEEDS_ENTRIES", True):
            without = replace(FULL, entries=(), metadata={})
            assert rendered(module.NAME, FULL) == rendered(module.NAME, without)


# ---- index.html ----------------------------------------------------------------------------------


@pytest.mark.parametrize("facts", ALL_FACTS)
def test_the_page_has_no_scripts_and_loads_nothing(facts: Facts) -> None:
    tree = parsed(facts)
    allowed = {
        "html", "head", "meta", "title", "style", "body", "a", "header", "div", "span", "nav", "ol",
        "li", "p", "h1", "h2", "main", "section", "ul", "dl", "dt", "dd", "br", "time", "code",
        "bdi", "strong", "table", "thead", "tbody", "tr", "th", "td", "details", "summary",
        "figure", "figcaption", "img", "footer", "svg", "rect", "path",
    }  # fmt: skip
    for element in tree.iter():
        assert element.tag.removeprefix(SVG) in allowed
        for attribute, value in element.attrib.items():
            assert not attribute.startswith("on")
            if attribute == "src":
                assert re.fullmatch(r"data:image/png;base64,[A-Za-z0-9+/=]+", value)
            if attribute == "href":
                scheme = urlsplit(value).scheme
                assert scheme in links.SCHEMES or re.fullmatch(
                    r"#\w+|[\w.-]+|seals/[\w.%~-]+\.B3SUMS", value, re.ASCII
                )
            assert attribute not in ("style", "srcdoc", "action", "background", "poster")
    styles = list(tree.iter("style"))
    assert len(styles) == 1
    assert "url(" not in styles[0].text
    assert "@import" not in styles[0].text
    assert "<script" not in page.render(facts).decode()


def test_the_policy_allows_the_style_and_nothing_else() -> None:
    head = parsed(FULL).find("head")
    policy = head.find("meta[@http-equiv='Content-Security-Policy']").get("content")
    import base64
    import hashlib

    digest = base64.b64encode(hashlib.sha256(head.find("style").text.encode()).digest()).decode()
    assert policy == (
        f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


@pytest.mark.parametrize("facts", ALL_FACTS)
def test_the_page_is_well_formed_and_has_nothing_unseen(facts: Facts) -> None:
    text = page.render(facts).decode()
    parser = html5lib.HTMLParser(strict=True)
    parser.parse(text)
    assert not re.search(
        "[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]", text
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_page_can_be_found_through_by_a_screen_reader(kind: Kind) -> None:
    tree = parsed(of_kind(kind, FULL))
    assert tree.get("lang") == "en"
    for landmark in ("header", "main", "footer"):
        assert len(list(tree.iter(landmark))) == 1
    assert len(list(tree.iter("h1"))) == 1
    identifiers = [element.get("id") for element in tree.iter() if element.get("id")]
    assert len(identifiers) == len(set(identifiers))
    for element in tree.iter():
        if element.get("aria-labelledby"):
            assert element.get("aria-labelledby") in identifiers
        if element.tag == "th":
            assert element.get("scope") in ("col", "row")
        if element.tag == "img":
            assert element.get("alt")
        if element.tag == SVG + "svg":
            assert element.get("aria-hidden") == "true"
    for table in tree.iter("table"):
        width = len(table.findall("thead/tr/th"))
        assert {len(list(row)) for row in table.findall("tbody/tr")} == {width}


def text_of(facts: Facts) -> str:
    """What can be read on the page."""
    body = parsed(facts).find("body")
    return " ".join(" ".join(body.itertext()).split())


def test_what_the_page_of_a_session_says() -> None:
    text = text_of(FULL)
    for wanted in (
        "Centre for Electron Microscopy", "Defocus series", "Phase plates", "Anna Lindqvist",
        "ORCID 0000-0002-1825-0097", "Universität Überall", "Maren Voss", "Tomás Ortega",
        "2026-11-23", "Titan", "PP-17", "CC-BY-4.0", "phase plate", RECORD["content_hash"],
        "2 files, 4.3 kB",
        "2026-11-24 04:24 UTC by anna", "raw is not as it was sealed", "damaged: a.mib",
        "missing: gone.txt", "2026-12-01 02:00 UTC", "Beam current 48 pA", "Nextcloud",
        "JupyterHub",
        "LiberTEM", "SampleDB", "eLabFTW", "Viewer", "Proposal", "session.json: what is wrong",
        "can’t be read: truncated\\nfile", "4.1 kB", "Merlin (MIB)", "4 files, 4.3 kB",
    ):  # fmt: skip
        assert str(wanted) in text, wanted
    rows = parsed(FULL).findall(".//tbody/tr")
    assert [row.get("class") for row in rows] == ["marked", None, None, None]
    assert len(list(parsed(FULL).iter("img"))) == 1


def test_the_page_of_a_project_is_about_its_sessions() -> None:
    facts = replace(
        of_kind("project", FULL),
        entries=(Entry("s1", "directory", 1, 1), Entry("s2", "directory", 1, 1)),
        seals=(replace(SEALED, path="s1/raw"), replace(SEALED, path="s2/raw", verified=None)),
    )
    text = text_of(facts)
    assert "s1/ not as sealed sealed (raw)" in text
    assert "s2/ sealed (raw)" in text
    assert "2 sessions" in text
    links = [link.get("href") for link in parsed(facts).findall(".//tbody//a")]
    assert "https://data.example.org/tem/phase-plates/s1/" in links
    assert not any("libertem" in link for link in links)


def test_a_large_table_says_how_many_more_there_are() -> None:
    entries = tuple(Entry(f"{number:05}", "file", 1, 1) for number in range(2000))
    facts = replace(EMPTY, entries=entries, entries_left_out=1234)
    assert len(parsed(facts).findall(".//tbody/tr")) == page.ROWS_LIMIT
    assert "and 2,734 more" in text_of(facts)
    assert "more than 2,000 files" in text_of(facts)
    assert "and 3,134 more" in readme.render(facts).decode()


def test_previews_are_pictures_and_not_too_many() -> None:
    entries = tuple(Entry(f"{number:05}", "file", 1, 1) for number in range(100))
    png = {e.path: FileMetadata(path=e.path, size_bytes=1, mtime_ns=1, preview_png=PNG)
           for e in entries}  # fmt: skip
    svg = {path: replace_preview(found, b"<svg onload='alert(1)'>") for path, found in png.items()}
    assert len(list(parsed(replace(EMPTY, entries=entries, metadata=png)).iter("img"))) == 24
    assert not list(parsed(replace(EMPTY, entries=entries, metadata=svg)).iter("img"))


def replace_preview(found: FileMetadata, preview: bytes) -> FileMetadata:
    """The same with another picture."""
    return FileMetadata(
        path=found.path, size_bytes=1, mtime_ns=1, values=found.values, preview_png=preview
    )


def test_what_all_files_have_alike_is_said_once() -> None:
    energy, current = Measured(value=300, unit="keV"), Measured(value=1, unit="pA")
    values: tuple[dict[str, Measured], ...] = (
        {"energy": energy, "current": current, "defocus": Measured(value=1)},
        {"current": current, "energy": energy, "defocus": Measured(value=2)},
    )
    metadata = {
        entry.path: FileMetadata(path=entry.path, size_bytes=1, mtime_ns=1, values=found)
        for entry, found in zip(words.files(FULL), values, strict=False)
    }
    facts = replace(FULL, metadata=metadata)
    assert list(words.common(facts)) == ["current", "energy"]
    assert words.common(replace(facts, metadata=dict(reversed(metadata.items())))) == {
        "current": current,
        "energy": energy,
    }
    assert text_of(facts).count("300 keV") == 1
    assert "Energy (all files) 300 keV" in text_of(facts)


# ---- README.md -----------------------------------------------------------------------------------


@given(st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("`*_[]<>&#-+1.!~|\\\n ")))
def test_any_text_is_text_in_markdown(text: str) -> None:
    line = readme.escaped(words.shown(text))
    for made in (f"# {line}", f"- x: {line}", readme.escaped(text)):
        tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(made)
        inline = [part for token in tokens for part in token.children or ()]
        assert {part.type for part in inline} <= {"text", "softbreak", "hardbreak", "text_special"}
        if made.startswith("# "):
            content = "".join(part.content for part in inline)
            assert content.split() == words.shown(text).split()


@given(st.text())
def test_any_text_is_code_in_markdown(text: str) -> None:
    tokens = MarkdownIt("commonmark").parse(f"- {readme.code(text)}")
    inline = [part for token in tokens for part in token.children or ()]
    assert [part.type for part in inline] == ["code_inline"]
    assert inline[0].content.strip() == words.shown(text).strip()


@pytest.mark.parametrize("facts", HOSTILE_FACTS)
def test_nothing_in_the_readme_is_markup_of_somebody_elses(facts: Facts) -> None:
    tokens = MarkdownIt("commonmark").parse(readme.render(facts).decode())
    types = [part.type for token in tokens for part in (token, *(token.children or ()))]
    assert "html_inline" not in types
    assert "html_block" not in types
    assert "image" not in types
    assert types.count("heading_open") <= 6
    links_ = [part.attrs["href"] for token in tokens for part in token.children or ()
              if part.type == "link_open"]  # fmt: skip
    assert all(urlsplit(str(link)).scheme in links.SCHEMES for link in links_)


# ---- links ---------------------------------------------------------------------------------------


def test_links_of_a_session() -> None:
    assert dict(links.urls(FULL)) == {
        "elabftw": "https://eln.example.org/experiments.php?mode=view&id=318",
        "jupyterhub": "https://jupyter.example.org/hub/user-redirect/lab/tree/" + PATHS[3],
        "nextcloud": "https://cloud.example.org/index.php/apps/files/files?dir=/" + PATHS[3],
        "sampledb": "https://sampledb.example.org/objects/4711",
        "view": f"https://data.example.org/{PATHS[3]}/",
        "Proposal": "https://proposals.example.org/4711",
    }


def test_deep_links_of_a_file() -> None:
    assert dict(links.urls(FULL, "raw/a b.mib")) == {
        "jupyterhub": f"https://jupyter.example.org/hub/user-redirect/lab/tree/{PATHS[3]}/raw/a%20b.mib",
        "libertem": "https://libertem.example.org/#action=open&path=%2Fdata%2F"
        "tem%2Fphase-plates%2F2026-11-23%2Fraw%2Fa%20b.mib",
        "nextcloud": f"https://cloud.example.org/index.php/apps/files/files?dir=/{PATHS[3]}/raw",
        "view": f"https://data.example.org/{PATHS[3]}/raw/a%20b.mib/",
    }


def test_no_value_no_link() -> None:
    facts = replace(FULL, session=None, links=LINKS | {"id": "https://x.example.org/{id}"})
    assert "sampledb" not in links.urls(facts)
    assert links.urls(facts)["id"].endswith(PROJECT.id)
    area = of_kind("area", facts)
    assert set(links.urls(area)) == {"jupyterhub", "nextcloud", "view"}
    every = "https://h.example.org/" + "/".join(f"{{{name}}}" for name in links.PLACEHOLDERS)
    assert "every" in links.urls(replace(FULL, links={"every": every}), "file")


@given(st.binary(min_size=1).filter(lambda name: not re.search(rb"[/\0]", name)))
def test_any_name_is_only_a_part_of_the_url(name: bytes) -> None:
    text = name.decode("utf-8", "surrogateescape")
    facts = replace(
        EMPTY, path=f"tem/p/{text}", links={"a": "https://h.example.org/x/{path}?q={path_query}#f"}
    )
    url = urlsplit(links.urls(facts)["a"])
    assert (url.scheme, url.netloc, url.fragment) == ("https", "h.example.org", "f")
    assert unquote_to_bytes(url.path) == b"/x/tem/p/" + name
    assert unquote_to_bytes(url.query) == b"q=tem/p/" + name
    assert url.path.count("/") == 4
    assert "/" not in url.query


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("https://h.example.org/{nope}", "{nope}"),
        ("https://h.example.org/{}", "{}"),
        ("https://h.example.org/{path!r}", "{path!r}"),
        ("https://h.example.org/{path.x}", "{path.x}"),
        ("https://h.example.org/{path", "brace"),
        ("https://h.example.org/path}", "brace"),
        ("https://{area}.example.org/", "host"),
        ("{path}", "host"),
        ("javascript:alert('{path}')", "host"),
        ("https:///{path}", "host"),
        ("file:///data/{path}", "host"),
        ("https://h.example.org/a b", "spaces"),
        ("https://h.example.org/a\nb", "spaces"),
    ],
)
def test_a_template_that_is_none_is_refused(template: str, why: str) -> None:
    with pytest.raises(ValueError, match=re.escape(why)):
        links.check_template(template)
    assert "a" not in links.urls(replace(FULL, links={"a": template}))


def test_the_documented_templates_are_good() -> None:
    import tomllib

    text = DOCS.read_text().split("```toml\n")[1].split("```")[0]
    templates = tomllib.loads(text)["links"]
    assert set(templates) == set(links.LABELS)
    for template in templates.values():
        links.check_template(template)


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("https://example.org/a", "https://example.org/a"),
        ("https://example.org/ä \"<>", "https://example.org/%C3%A4%20%22%3C%3E"),
        ("https://bücher.example/", "https://xn--bcher-kva.example/"),
        ("mailto:a@example.org", "mailto:a@example.org"),
        ("javascript:alert(1)", None),
        ("JaVaScRiPt:alert(1)", None),
        (" javascript:alert(1)", None),
        ("java\tscript:alert(1)", None),
        ("data:text/html,x", None),
        ("file:///etc/passwd", None),
        ("//example.org", None),
        ("example.org", None),
        ("https:example.org", None),
        ("https://[", None),
        ("", None),
    ],
)  # fmt: skip
def test_what_may_be_made_a_link(text: str, url: str | None) -> None:
    assert links.safe_url(text) == url


@pytest.mark.parametrize("facts", ALL_FACTS)
def test_shortcuts_are_read_as_windows_does(facts: Facts) -> None:
    shown = rendered("links", facts)
    urls = links.urls(facts)
    assert len(shown) == len(urls)
    for (path, content), url in zip(shown.items(), urls.values(), strict=True):
        name = path.removeprefix("links/")
        assert name.endswith(".url")
        assert not re.search(r'[<>:"/\\|?*\x00-\x1f]', name)
        assert len(name.encode()) < 256
        assert content.count(b"\r\n") == content.count(b"\n") == 2
        parser = configparser.RawConfigParser()
        parser.read_string(content.decode("ascii"))
        assert parser.sections() == ["InternetShortcut"]
        assert parser["InternetShortcut"]["URL"] == url


def test_titles_that_would_be_the_same_file_and_devices() -> None:
    titles = ("a/b", "a:b", "a_b", "CON", "nul.x", "...", "é" * 300)
    project = Project(
        id="", title="", owner=ANNA, links=dict.fromkeys(titles, "https://x.example/")
    )
    found = list(rendered("links", replace(EMPTY, project=project)))
    assert found[:6] == [
        "links/a_b.url", "links/a_b-2.url", "links/a_b-3.url", "links/_CON.url", "links/_nul.x.url",
        "links/_.url",
    ]  # fmt: skip
    assert len(found) == 7


# ---- seal and files ------------------------------------------------------------------------------


def values_of(*seals: Seal, kind: Kind = "session") -> dict[str, str]:
    """The files of ``seal/``."""
    shown = rendered("seal", replace(of_kind(kind, EMPTY), seals=seals))
    return {
        path.removeprefix("seal/"): content.decode().rstrip("\n") for path, content in shown.items()
    }


def test_seal_of_a_session_is_that_of_its_raw() -> None:
    assert values_of(SEALED) == {
        "state": "sealed", "path": "raw", "below": "raw",
        "content_hash": RECORD["content_hash"], "attribute_hash": RECORD["attribute_hash"],
        "file_count": "2", "size_bytes": "4300", "sealed_at": "2026-11-24T04:24:43Z",
        "sealed_by": "anna", "hold": "false", "immutable_flag": "true",
        "verified_at": "2026-12-01T02:00:11Z", "verified_by": "root", "verified_ok": "false",
        "damaged": "a.mib", "missing": "gone.txt",
    }  # fmt: skip


def test_which_seal_it_is() -> None:
    other, own = replace(SEALED, path="other"), replace(SEALED, path=".", state="sealing")
    assert values_of() == {"state": "open"}
    assert values_of(other)["path"] == "other"
    assert values_of(other, SEALED)["path"] == "raw"
    assert values_of(own, other)["state"] == "sealing"
    assert values_of(replace(SEALED, path=".."), kind="directory")["path"] == ".."
    both = values_of(other, replace(other, path="x"))
    assert both == {"state": "open", "below": "other\nx"}
    assert values_of(replace(SEALED, path="s/raw"), kind="project") == {
        "state": "open",
        "below": "s/raw",
    }


@given(st.sampled_from([".", "raw", "..", "../..", "a/b"]), st.sampled_from([".", "x", "raw/x"]))
def test_findings_are_told_by_paths_in_this_directory(root: str, path: str) -> None:
    """Compared with what the file system says of such paths."""
    import posixpath

    facts = replace(EMPTY, path="s/p/raw", seals=(Seal(root, "sealed", {}, {"damaged": [path]}),))
    full = posixpath.normpath(posixpath.join("s/p/raw", root, path))
    inside = full == "s/p/raw" or full.startswith("s/p/raw/")
    expected = {posixpath.relpath(full, "s/p/raw"): "damaged"} if inside else {}
    assert seal.findings(facts) == expected


def test_files_one_value_each() -> None:
    found = rendered("files", FULL)
    assert found["files/raw/a.mib/beam_energy"] == b"300 keV\n"
    assert found["files/raw/a.mib/defocus"] == b"-20.5 nm\n"
    assert found["files/raw/a.mib/b3"] == b"ab" * 32 + b"\n"
    assert found["files/raw/a.mib/url"].count(b"\n") == 4
    assert found["files/raw/b.hdf5/problem"] == b"truncated\\nfile\n"
    everything = json.loads(found["files/raw/a.mib/all.json"])
    assert everything["values"]["all.json"] == {"value": "hidden", "unit": None}
    assert everything["values"]["a/b"]["value"] == "no name"
    assert set(everything) == set(
        re.findall(
            r"`(\w+)`", DOCS.read_text().split("`all.json` has the keys")[1].split(" (key")[0]
        )
    ) - {"null"} | {"links"}
    assert "files/raw/a.mib/problem" not in found
    assert {path.split("/")[1] for path in found} == {"raw", "script.py"}
    for name in ("", "nothing", "raw/a.mib", "sub"):
        assert name not in files.entries(FULL)


def test_files_beyond_the_list_are_there_too() -> None:
    facts = replace(FULL, entries=(), entries_left_out=5)
    assert rendered("files", facts)["files/raw/a.mib/beam_energy"] == b"300 keV\n"


class Counted(dict[str, FileMetadata]):
    """A mapping that counts how often something is taken out of it."""

    taken = 0

    def get(self, key: str, default: Any = None) -> Any:
        """As dict does."""
        Counted.taken += 1
        return super().get(key, default)

    def __getitem__(self, key: str) -> FileMetadata:
        Counted.taken += 1
        return super().__getitem__(key)


def test_files_are_made_when_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = tuple(Entry(f"raw/{number:05}", "file", 1, 1) for number in range(10_000))
    one_value = {"k": Measured(value=1)}
    metadata = Counted(
        (e.path, FileMetadata(path=e.path, size_bytes=1, mtime_ns=1, values=one_value))
        for e in entries
    )
    facts = replace(FULL, entries=entries, metadata=metadata)
    monkeypatch.setattr(files, "json_text", lambda _: pytest.fail("rendered"))
    Counted.taken = 0
    top = files.entries(facts)
    assert Counted.taken == 0
    assert list(top) == ["raw"]
    below = top["raw"]
    assert isinstance(below, Mapping)
    one = below["05000"]
    assert isinstance(one, Mapping)
    assert dict(one.items())["k"]() == b"1\n"  # type: ignore[operator]
    assert Counted.taken < 10
    assert len(below) == 10_000


# ---- JSON ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("facts", ALL_FACTS)
def test_metadata_says_everything(facts: Facts) -> None:
    found = json.loads(metadata_json.render(facts))
    assert list(found) == list(metadata_json.KEYS)
    assert found["path"] == facts.path
    assert [file["path"] for file in found["files"]] == [entry.path for entry in facts.entries]
    assert found["problems"] == list(facts.problems)
    assert (
        found["links"]
        == dict(links.urls(facts))
        == json.loads(rendered("links.json", facts)["links.json"])
    )
    if facts is FULL:
        assert found["project"]["x-other"] == 1
        assert found["project"]["title"] == "Phase plates"
        assert found["session"]["metadata"] == {"beam_current": {"value": 48, "unit": "pA"}}
        assert found["seals"][0]["record"] == RECORD
        assert found["files"][1]["values"]["beam_energy"] == {"value": 300, "unit": "keV"}


def test_numbers_that_json_does_not_have() -> None:
    for text in ("plain", "\udcff"):
        found = words.json_text({"a": float("nan"), "b": [float("inf")], "c": text, "d": 2**70})
        assert json.loads(found, parse_constant=pytest.fail) == {
            "a": None,
            "b": [None],
            "c": text,
            "d": 2**70,
        }


@pytest.mark.parametrize("facts", ALL_FACTS)
def test_datacite_is_valid(facts: Facts) -> None:
    found = json.loads(rendered("datacite.json", facts)["datacite.json"])
    schema45.validate(found)
    assert not list(schema45.validator.iter_errors(found))
    assert found["schemaVersion"] == "http://datacite.org/schema/kernel-4"


def test_what_datacite_says() -> None:
    found = json.loads(rendered("datacite.json", FULL)["datacite.json"])
    assert found["creators"][0]["name"] == "Anna Lindqvist"
    assert found["creators"][0]["nameIdentifiers"][0]["nameIdentifier"].endswith(ANNA.orcid or "")
    assert found["publisher"] == {"name": "Centre for Electron Microscopy"}
    assert found["publicationYear"] == "2026"
    assert found["types"]["resourceTypeGeneral"] == "Dataset"
    assert found["rightsList"][0]["rightsUri"] == "https://spdx.org/licenses/CC-BY-4.0"
    identifiers = {known["alternateIdentifier"] for known in found["alternateIdentifiers"]}
    assert {SESSION.id, RECORD["content_hash"]} <= identifiers
    assert "doi" not in found
    with_doi = Project(id="", title="", owner=ANNA, links={"DOI": "https://doi.org/10.5281/z.1"})
    again = replace(of_kind("project", FULL), project=with_doi)
    assert json.loads(rendered("datacite.json", again)["datacite.json"])["doi"] == "10.5281/z.1"
    empty = json.loads(rendered("datacite.json", EMPTY)["datacite.json"])
    assert empty["publisher"] == {"name": "(:unav)"}
    assert empty["creators"] == [{"name": "1001", "nameType": "Personal"}]
    assert empty["publicationYear"] == "1970"


@pytest.mark.parametrize("facts", ALL_FACTS)
def test_the_crate_is_read_back(facts: Facts) -> None:
    found = json.loads(rendered("ro-crate-metadata.json", facts)["ro-crate-metadata.json"])
    assert found["@context"] == "https://w3id.org/ro/crate/1.2/context"
    crate = ROCrate(deepcopy(found))  # it takes it apart
    root = crate.root_dataset
    for wanted in ("name", "description", "datePublished", "license", "author"):
        assert root[wanted], wanted
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", root["datePublished"])
    identifiers = [entity["@id"] for entity in found["@graph"]]
    assert len(identifiers) == len(set(identifiers))
    referred = re.findall(r'\{"@id": ("[^"]*")\}', json.dumps(found["@graph"]))
    for reference in map(json.loads, referred):
        assert reference in identifiers or reference.startswith("https://w3id.org/ro/crate/"), (
            reference
        )
    names = {words.valid(entry.path) for entry in facts.entries if entry.kind != "link"}
    parts = {part["name"] for part in root.get("hasPart", [])}
    assert parts == names - {"ro-crate-metadata.json"}


def test_what_the_crate_says() -> None:
    found = json.loads(rendered("ro-crate-metadata.json", FULL)["ro-crate-metadata.json"])
    crate = ROCrate(deepcopy(found))  # it takes it apart
    root = crate.root_dataset
    assert root["datePublished"] == "2026-11-24"
    assert root["dateCreated"] == "2026-11-23"
    assert root["license"].id == "https://spdx.org/licenses/CC-BY-4.0"
    assert root["author"][0].id == f"https://orcid.org/{ANNA.orcid}"
    assert root["author"][0]["affiliation"]["name"] == "Universität Überall"
    action = root["mentions"]
    assert action["instrument"].type == "IndividualProduct"
    assert action["instrument"]["name"] == "Titan"
    file = crate.get("raw/a.mib")
    assert file.type == "File"
    assert file["contentSize"] == "4096"
    assert file["encodingFormat"] == "application/x-merlin-mib"
    assert file["identifier"] == "blake3:" + "ab" * 32
    values = {
        value["name"]: (value["value"], value.get("unitText"))
        for value in file["additionalProperty"]
    }
    assert values["beam_energy"] == (300, "keV")
    assert crate.get("raw/")["identifier"] == RECORD["content_hash"]


# ---- words ---------------------------------------------------------------------------------------


@given(st.text(st.characters()))
def test_shown_is_one_line_of_utf8(text: str) -> None:
    shown = words.shown(text)
    shown.encode()
    assert len(shown.splitlines()) <= 1
    assert not re.search("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", shown)
    assert words.shown(shown) == shown


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0 bytes"), (1, "1 byte"), (999, "999 bytes"), (1000, "1.0 kB"), (99_949, "99.9 kB"),
        (99_950, "100 kB"), (999_499, "999 kB"), (999_500, "1.0 MB"), (81604378624, "81.6 GB"),
        (10**18, "1000 PB"), ("many\n", "many\\n"), (None, "None"),
    ],
)  # fmt: skip
def test_size(number: object, text: str) -> None:
    assert words.size(number) == text


@given(st.integers(-(10**30), 10**30))
def test_any_time_has_words(time_ns: int) -> None:
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ|@-?\d+", words.utc(time_ns))


# ---- any facts -----------------------------------------------------------------------------------

LINES = st.text(st.characters(exclude_categories=["Cc"]), max_size=20)
NUMBERS = st.integers(-(2**63), 2**63)
FILE_NAMES = (
    st.binary(min_size=1, max_size=12)
    .filter(lambda name: not re.search(rb"[/\0]", name) and name not in (b".", b".."))
    .map(lambda name: name.decode("utf-8", "surrogateescape"))
)
MEASURED = st.dictionaries(
    LINES,
    st.builds(
        Measured,
        value=st.integers() | st.floats() | LINES | st.booleans(),
        unit=st.none() | LINES,
    ),
    max_size=3,
)
PEOPLE = st.builds(Person, name=LINES, user=st.none() | LINES)
PROJECTS = st.builds(
    Project,
    id=LINES,
    title=LINES,
    description=st.text(),
    owner=PEOPLE,
    members=st.lists(PEOPLE, max_size=2).map(tuple),
    license=st.none() | LINES,
    metadata=MEASURED,
    links=st.dictionaries(LINES, LINES, max_size=2),
)
SESSIONS = st.builds(
    Session,
    id=LINES,
    title=LINES,
    owner=PEOPLE,
    date=st.just("2026-01-01"),
    sampledb_id=st.none() | st.integers(),
    metadata=MEASURED,
)
SEAL_RECORDS = st.dictionaries(st.sampled_from(sorted(RECORD)), LINES | st.none() | NUMBERS)
STATES = st.sampled_from(["open", "sealing", "sealed", "unsealing"])


@st.composite
def any_facts(draw: st.DrawFn) -> Facts:
    """Facts as they might be."""
    kind = draw(st.sampled_from(KINDS))
    depth = KINDS.index(kind)
    below = st.lists(FILE_NAMES, min_size=1, max_size=3).map("/".join)
    paths = sorted(draw(st.lists(below, max_size=5, unique=True)))
    above = draw(st.sampled_from([[], ["."], [".."][:depth]]))
    kinds = st.sampled_from(["file", "directory", "link", "other"])
    return Facts(
        path="/".join(draw(FILE_NAMES) for _ in range(depth)),
        kind=kind,
        owner=draw(LINES),
        group="g",
        mode=draw(st.integers(0, 0o7777)),
        mtime_ns=draw(NUMBERS),
        changed_ns=draw(NUMBERS),
        project=draw(st.none() | PROJECTS) if depth > 1 else None,
        session=draw(st.none() | SESSIONS) if depth > 2 else None,
        entries=tuple(Entry(path, draw(kinds), draw(st.integers(0, 2**63)), 0) for path in paths),
        metadata={
            path: FileMetadata(path=path, size_bytes=1, mtime_ns=1, values=draw(MEASURED))
            for path in paths[:2]
        },
        seals=tuple(
            Seal(path, draw(STATES), draw(SEAL_RECORDS), draw(st.none() | st.just(VERIFIED)))
            for path in [*above, *paths[2:]]
        ),
        links=LINKS,
    )


@settings(max_examples=60, deadline=None)
@given(any_facts())
def test_any_facts(facts: Facts) -> None:
    for name in NAMES:
        for content in rendered(name, facts).values():
            content.decode()
            assert content.endswith(b"\n")
    schema45.validate(json.loads(rendered("datacite.json", facts)["datacite.json"]))
    html5lib.HTMLParser(strict=True).parse(page.render(facts).decode())


def test_nothing_heavy_is_imported_before_it_is_needed() -> None:
    code = (
        "import sys; from modamafs import landing; landing.modules();"
        "print([name for name in ('jinja2', 'rocrate', 'requests') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"
