"""Whatever somebody asks for is answered, or refused in one line that says why."""

from __future__ import annotations

import os
import sqlite3
import tempfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from modamafs.errors import InvalidRequest, ModamaError, TookTooLong
from modamafs.index import query
from modamafs.index.database import FILE, NotIndexed, open_reader
from modamafs.index.find import find, find_command
from modamafs.index.folders import LONGEST_PATH_BYTES
from modamafs.model import Caller
from modamafs.store.backing import Store
from tests.support.indexed import Indexed
from tests.support.trees import remove

ROOT = Caller(0, 0)
INJECTION = b"'; DROP TABLE nodes; --.txt"


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Indexed]:
    top = tmp_path_factory.mktemp("store")
    (top / "a/p/s/raw").mkdir(parents=True)
    for name in (
        b"tilt.mrc",
        b"caf\xe9.dm4",
        b"'; DROP TABLE nodes; --.txt",
        b"smile \xf0\x9f\x98\x80",
    ):
        (top / "a/p/s/raw" / os.fsdecode(name)).touch()
    with Store(top) as store:
        index = Indexed(store)
        index.value("a/p/s/raw/tilt.mrc", "beam_energy", 300.0, "keV")
        index.note("a/p/s/raw/tilt.mrc", "beam_energy 300 keV smile")
        yield index


def answer(index: Indexed, text: str) -> int:
    """How much is found; InvalidRequest with a single line, or TookTooLong, otherwise."""
    try:
        return len(find(index.connection, index.store, text, ROOT, now_ns=0).results)
    except InvalidRequest as error:
        assert "\n" not in error.message
        assert len(error.message) < 400
        error.message.encode()
        raise


REFUSED = [
    ("", "is empty"),
    ("   \t\n", "is empty"),
    ('"', "quote"),
    ('tilt "raw', "quote"),
    ('""', "finds nothing"),
    ("til\0t", "NUL"),
    ("a" * 4097, "longer than 4096"),
    ("ä" * 2049, "longer than 4096"),
    ("x" * (1 << 20), "longer than 4096"),
    ("a " * 1000, "more than 32"),
    (" ".join(map(str, range(10_000))), "longer than 4096"),
    ("half \ud800 a character", "no text"),
    ("xyz:1", "project:, session:"),
    ("http://example.org/", "there is no 'http:'"),
    ("project:", "has no value"),
    ("project: x", "has no value"),
    ("beam_energy=", "no value"),
    ("beam_energy> 300keV", "no value"),
    ("beam_energy >300keV", "no key"),
    ("beam_energy > 300keV", "no value"),
    ('beam_energy=""', "no value"),
    ("beam_energy>*", "can't be compared"),
    ("detector<C*", "can't be compared"),
    ("key=caf\udce9", "no text"),
    ("x=1e9999", "too large"),
    ("x=1e400keV", "too large"),
    ("size:>1e400", "write size:"),
    ("size:>" + "9" * 30, "no file is that large"),
    ("size:1e400", "write size:"),
    ("size:9999999999TB", "no file is that large"),
    ("size:-1", "write size:"),
    ("size:NaN", "write size:"),
    ("size:..", "write size:"),
    ("size:2MB..1MB", "larger than the second"),
    ("size:1..2..3", "write size:"),
    ("size:1furlong", "write size:"),
    ("size:¹", "write size:"),
    ("changed:0000-00-00", "no such day"),
    ("changed:2026-02-30", "no such day"),
    ("changed:2026-13", "no such day"),
    ("changed:9999-12-31T24:00", "no such day"),
    ("changed:99999-01-01", "write changed:"),
    ("changed:soon", "write changed:"),
    ("changed:<5m", "write changed:"),
    ("changed:..", "write changed:"),
    ("changed:2026..2025", "after the second"),
    ("changed:1h..2h", "write changed:"),
    ("sealed:maybe", "sealed:yes or sealed:no"),
    ("hash:xyz", "hexadecimal"),
    ("hash:ab1", "4 to 64"),
    ("hash:" + "a" * 65, "4 to 64"),
    ("*a" * 17, "wildcards"),
    ("k=" + "*a" * 17, "wildcards"),
    ("path:" + "?" * 17, "wildcards"),
]


@pytest.mark.parametrize(("text", "why"), REFUSED, ids=[repr(text[:30]) for text, _ in REFUSED])
def test_what_is_refused_says_why(index: Indexed, text: str, why: str) -> None:
    with pytest.raises(InvalidRequest, match=why):
        answer(index, text)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("AND", 0), ("tilt AND", 0), ("NOT tilt", 0), ("NEAR(tilt mrc)", 0), ("^tilt", 0),
        ("(", 0), (")", 0), ("tilt)", 0), ("{name}", 0), ("+tilt", 0), ("'", 1), ("\\", 0),
        ("%", 0), ("_", 0), ("__", 0), (".*", 0), ("[a-z]+", 0), ("(a+)+$", 0), ("^.*$", 0),
        ("x' OR '1'='1", 0), ('"; DROP TABLE nodes; --"', 1),
        ("😀", 1), ("smile 😀", 1), ("\udce9", 1), ("caf\udce9.dm4", 1), ("\udcff\udcfe", 0),
        ("-", 1), ("--", 7), ("---", 7), ('-""', 1), ("*" * 16, 8), ("?", 8),
        ("...", 0), ("--tilt", 8),
        ("12:30", 0), ("a" * 4096, 0), ("a " * 32, 8), ("-a " * 32, 0), ("\u202etxt", 0),
        ("k=" + "9" * 400, 0), ("k>1e-9999", 0), ("k=0x10", 0), ("k=NaN", 0),
        ("k=inf", 0), ("k<-1e308", 0), ("beam_energy<1e308keV", 1), ("beam_energy>-1e308eV", 1),
        ("beam_energy=300" + "k" * 500, 0), ("beam_energy=3E2keV", 1), ("beam_energy=300'", 0),
        ("beam_energy=300keV^99", 0), ("beam_energy=300keV/0", 0), ("beam_energy=1/0", 0),
        ("size:>0.0000000000000000000001", 0), ("changed:<999999999years", 8),
        ("changed:>999999999years", 0), ("changed:0001", 0), ("changed:9999-12-31", 0),
        ("changed:..9999", 8), ("changed:0001..", 8), ("type:*", 0), ("type:%", 0),
        ("type:'", 0), ("owner:%", 0), ("owner:-1", 0), ("owner:99999999999999999999", 0),
        ("owner:\udce9", 0), ("path:../../etc", 0), ("path:/", 7), ("/", 7), ("//", 7),
        ("project:%", 0), ("session:'", 0), ("hash:" + "f" * 64, 0), ("PROJECT:p tilt", 1),
    ],
)  # fmt: skip
def test_what_is_text_like_any_other(index: Indexed, text: str, count: int) -> None:
    assert answer(index, text) == count
    assert index.connection.execute("SELECT count(*) FROM nodes").fetchone() == (9,)


PIECES = st.one_of(
    st.text(max_size=8),
    st.text(st.characters(min_codepoint=0xDC80, max_codepoint=0xDCFF), max_size=3),
    st.sampled_from(
        (*(f"{field}:" for field in query.FIELDS), "beam_energy", "=", "!=", ">=", "<", "*", "?",
         '"', "-", " ", "\\", "..", "1", "300", "keV", "GB", "2026-11", "T10:00", "1e", "AND",
         "NEAR(", ")", "^", "/", "tilt", "%", "'", ":", "\0", "today", "h", "µ", "²", "\u0130")
    ),
)  # fmt: skip


@settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(PIECES, max_size=12).map("".join))
@example("size:>1e400")
@example("changed:0001")
@example("changed:9999")
@example("x=1" + "0" * 400)
@example("\U0010ffff*")
def test_any_text_is_answered_or_refused(index: Indexed, text: str) -> None:
    try:
        answer(index, text)
    except InvalidRequest:
        return


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=20), st.text(max_size=20))
def test_any_units_can_be_asked_for(one: str, other: str) -> None:
    there, back = query.conversion(one, other), query.conversion(other, one)
    assert (there is None) == (back is None)
    if there and back:
        assert there * back == pytest.approx(1.0)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.text(st.characters(blacklist_characters='"\0'), min_size=1), min_size=2))
def test_quoted_arguments_are_as_many_terms(arguments: list[str]) -> None:
    tokens = query._tokens(" ".join(map(query.quoted, arguments)))
    assert len(tokens) == len(arguments)


@pytest.mark.parametrize(
    ("pattern", "name"),
    [("*a" * 16, "a" * 255 + "b"), ("*?" * 8 + "x", "a" * 255), ("*" * 15 + "x", "y" * 255)],
)
def test_wildcards_are_matched_in_few_steps(pattern: str, name: str) -> None:
    [term] = query.parse(pattern, 0).terms
    assert isinstance(term, query.Word)
    assert not term.pattern.matches(name + "!")  # would take for ever, if all ways were tried


@pytest.mark.parametrize(
    "arguments",
    [
        {}, {"query": None}, {"query": 1}, {"query": ["tilt"]}, {"query": "tilt", "limit": 0},
        {"query": "tilt", "limit": 1001}, {"query": "tilt", "limit": True},
        {"query": "tilt", "after": -1}, {"query": "tilt", "after": "0"},
        {"query": "tilt", "after": 2**63}, {"query": "tilt", "after": 1.5},
        {"query": "tilt", "path": None}, {"query": "tilt", "path": ".."},
        {"query": "tilt", "path": "a/../b"}, {"query": "tilt", "path": "a\0"},
        {"query": "tilt", "path": "\ud800"}, {"query": "tilt", "uid": 0},
    ],
)  # fmt: skip
def test_arguments_that_make_no_sense_are_refused(
    index: Indexed, tmp_path: Path, arguments: dict[str, object]
) -> None:
    with pytest.raises(InvalidRequest):
        find_command(index.store, tmp_path, arguments, ROOT)


def test_a_search_that_takes_too_long_is_given_up(index: Indexed) -> None:
    with pytest.raises(TookTooLong, match="longer than"):
        find(index.connection, index.store, "tilt", ROOT, patience_s=-1)
    assert not index.connection.in_transaction
    assert answer(index, "tilt") == 1  # the connection is of use afterwards


def test_one_statement_that_takes_too_long_is_given_up(
    index: Indexed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modamafs.index.find._Search._check_time", lambda _: None)
    monkeypatch.setattr("modamafs.index.find.STEPS", 1)
    with pytest.raises(TookTooLong, match="longer than"):
        find(index.connection, index.store, "tilt", ROOT, patience_s=-1)
    assert answer(index, "tilt") == 1


def test_no_index_says_what_to_do(index: Indexed, tmp_path: Path) -> None:
    with pytest.raises(NotIndexed, match="index rebuild"):
        find_command(index.store, tmp_path / "nowhere", {"query": "tilt"}, ROOT)


@pytest.mark.parametrize("part", [slice(100, 60_000), slice(4096, 8192), slice(0, 16)])
def test_a_damaged_index_says_what_to_do(index: Indexed, tmp_path: Path, part: slice) -> None:
    with sqlite3.connect(tmp_path / FILE) as copy:
        index.connection.backup(copy)
    copy.close()
    data = bytearray((tmp_path / FILE).read_bytes())
    data[part] = b"\x5a" * len(data[part])
    (tmp_path / FILE).write_bytes(data)
    for text in ("tilt", "beam_energy>1keV", "project:p", "*", "smile"):
        try:
            find_command(index.store, tmp_path, {"query": text}, ROOT)
        except ModamaError as error:
            assert isinstance(error, NotIndexed)
            assert "index" in error.message


def test_a_loop_in_a_damaged_index_ends(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    with Store(tmp_path) as store:
        index = Indexed(store)
        index.connection.execute("UPDATE nodes SET parent = ino WHERE name = 'a'")
        assert find(index.connection, store, "b", ROOT).results == []


def test_an_index_being_built_says_so(index: Indexed, tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / FILE) as copy:
        index.connection.backup(copy)
    found = find_command(index.store, tmp_path, {"query": "tilt"}, ROOT)
    assert found["state"]["state"] == "building"
    assert found["results"][0]["path"] == "a/p/s/raw/tilt.mrc"
    copy.execute("INSERT INTO info VALUES ('complete', 1)")
    copy.commit()
    copy.close()
    assert find_command(index.store, tmp_path, {"query": "tilt"}, ROOT)["state"]["state"] == "ok"
    open_reader(tmp_path).close()


@pytest.fixture
def deep() -> Iterator[Path]:
    """An empty directory for what pytest could not remove."""
    directory = Path(tempfile.mkdtemp(dir="/var/tmp"))
    directory.chmod(0o755)
    yield directory
    remove(directory)


def dig(top: Path, name: bytes, count: int) -> int:
    """Directories in each other, and a file in the last one, of which a descriptor comes back."""
    fd = os.open(top, os.O_RDONLY)
    for _ in range(count):
        os.mkdir(name, dir_fd=fd)
        below = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(os.open(b"bottom.txt", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    return fd


def test_very_deep_directories(deep: Path) -> None:
    os.close(dig(deep, b"deep", 1500))
    with Store(deep) as store:
        index = Indexed(store)
        for caller in (ROOT, Caller(2000, 2000)):
            [one] = find(index.connection, store, "bottom.txt", caller).results
            assert one.path == "deep/" * 1500 + "bottom.txt"


def test_what_lies_too_deep_is_not_found(deep: Path) -> None:
    name = b"d" * 63
    most = LONGEST_PATH_BYTES // 64  # with the slashes between them
    (deep / "top").mkdir()
    os.close(dig(deep / "top", name, most))
    with Store(deep) as store:
        index = Indexed(store)
        found = find(index.connection, store, "type:dir", ROOT).results
        # The last one that is found lies in one whose path is not too long, but has one that is.
        assert len(found) == 1 + most
        assert len(found[-1].path) > LONGEST_PATH_BYTES
        assert answer(index, "bottom.txt") == 0
        assert answer(index, "path:top/ddd*") == most
        assert answer(index, "-bottom.txt type:file") == 0


@pytest.mark.parametrize("text", ["type:file -dddd", "path:ddd/*/file"])
def test_deep_directories_take_no_more_memory_than_their_names(deep: Path, text: str) -> None:
    count = 1000
    bottom = dig(deep, b"d" * 255, LONGEST_PATH_BYTES // 256 - 1)
    for number in range(count):
        os.mkdir(b"%d" % number, dir_fd=bottom)
        os.close(os.open(b"%d/file" % number, os.O_CREAT | os.O_WRONLY, dir_fd=bottom))
    os.close(bottom)
    with Store(deep) as store:
        index = Indexed(store)
        tracemalloc.start()
        assert len(find(index.connection, store, text, ROOT, limit=10).results) <= 10
        most_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert most_bytes < count * 4096


def test_the_same_names_elsewhere_are_not_within(deep: Path) -> None:
    for path in ("a/p", "p/p", "a/p/p", "a/a/p"):
        (deep / path).mkdir(parents=True, exist_ok=True)
        (deep / path / "rare").touch()
    for number in range(300):  # so that rare names are looked for first
        (deep / f"a/p/{number}").touch()
    with Store(deep) as store:
        index = Indexed(store)
        page = find(index.connection, store, "rare", ROOT, within=b"a/p")
        assert {result.path for result in page.results} == {"a/p/rare", "a/p/p/rare"}
