"""Pages: together they are everything, each once, whichever way the index is gone through."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from modamafs.index.find import find
from modamafs.model import Caller
from modamafs.store.backing import Store
from tests.support.indexed import Indexed

ROOT = Caller(0, 0)
WAYS = {
    "few": {},
    "gathered": {"FEW": 0, "FIRST_ROWS": 50, "NOTED": 10},
    "all": {"FEW": 0, "FIRST_ROWS": 50, "MANY": 0, "NOTED": 0},
}
QUERIES = (
    "image", "*.dm4", "ima*", "quokka", "beam_energy>100keV", "s0 raw", "project:p",
    "session:s1 type:file", "type:mrc", "size:0", "e_0", "1", "-dm4 type:file", "path:s2/raw",
    "changed:>1970", "owner:0", "sealed:no quokka", "image -quokka", "image_00", "*ge_00*.dm4",
)  # fmt: skip


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Indexed]:
    top = tmp_path_factory.mktemp("store")
    for session in range(4):
        raw = top / f"a/p/s{session}/raw"
        raw.mkdir(parents=True)
        (top / f"a/p/s{session}/figures").mkdir()
        (top / f"a/p/s{session}/figures/raw").mkdir()
        (top / f"a/p/s{session}/figures/raw/below").mkdir()
        for number in range(150):
            (raw / f"image_{number:04}.{('dm4', 'mrc')[number % 2]}").touch()
    with Store(top) as store:
        index = Indexed(store)
        for number in range(150):
            index.value(f"a/p/s1/raw/image_{number:04}.{('dm4', 'mrc')[number % 2]}",
                        "beam_energy", 300.0, "keV")  # fmt: skip
        for session in range(4):
            for number in (n for n in range(150) if n % 3 == 0 or n % (5 + session) == 1):
                name = f"image_{number:04}.{('dm4', 'mrc')[number % 2]}"
                index.note(f"a/p/s{session}/raw/{name}", "image quokka")
        yield index


def pages(index: Indexed, text: str, limit: int) -> list[list[str]]:
    """The paths of each page."""
    found = []
    after: int | None = 0
    while after is not None:
        page = find(index.connection, index.store, text, ROOT, after=after, limit=limit)
        found.append([result.path for result in page.results])
        after = page.next
    return found


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("limit", [1000, 100, 7])
@pytest.mark.parametrize("text", QUERIES)
def test_all_pages_are_everything_once(
    index: Indexed, text: str, limit: int, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = [r.path for r in find(index.connection, index.store, text, ROOT, limit=1000).results]
    for name, value in WAYS[way].items():
        monkeypatch.setattr(f"modamafs.index.find.{name}", value)
    found = pages(index, text, limit)
    assert [path for page in found for path in page] == whole
    assert all(len(page) == limit for page in found[:-1])
    assert 0 < len(found[-1]) <= limit
    assert len(set(whole)) == len(whole) > 100


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "text",
    [
        "mage_0014", "IMAGE_0014.DM4", "0014", "014.dm4", ".dm4", "e_0", "image_0000000",
        "*age_0?4*.mrc", "image_0014.*", "*mage*", "?mage_0149.mrc",
    ],
)  # fmt: skip
def test_names_most_of_which_begin_and_end_alike(
    index: Indexed, text: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What most names have is left out where SQLite looks, and must not be left out of the rest."""
    for name, value in WAYS[way].items():
        monkeypatch.setattr(f"modamafs.index.find.{name}", value)
    top = Path(os.readlink(f"/proc/self/fd/{index.store.root_fd}"))
    pattern = text.lower() if set("*?") & set(text) else f"*{text.lower()}*"
    expected = {
        str(path.relative_to(top))
        for path in top.glob("a/p/*/raw/*")
        if fnmatch.fnmatchcase(path.name, pattern)
    }
    found = pages(index, text, 1000)
    assert {path for page in found for path in page} == expected


def test_what_vanishes_between_pages_leaves_no_gap(tmp_path: Path) -> None:
    for number in range(30):
        (tmp_path / f"f{number:02}").touch()
    with Store(tmp_path) as store:
        own = Indexed(store)
        first = find(own.connection, store, "f", ROOT, limit=10)
        assert first.next is not None
        for number in (3, 9, 10, 12):
            (tmp_path / f"f{number:02}").unlink()
            own.connection.execute("DELETE FROM nodes WHERE name = ?", (f"f{number:02}",))
        rest = find(own.connection, store, "f", ROOT, after=first.next, limit=1000)
        names = [result.path for result in (*first.results, *rest.results)]
        assert names == [f"f{n:02}" for n in range(30) if n < 10 or n not in (10, 12)]


def test_names_of_any_bytes(tmp_path: Path) -> None:
    names = [
        b"\xff\xfe", b"tab\there", b"new\nline", b" ", b"-dash", b"\xe2\x82", b"a" * 255, b"'\"\\",
    ]  # fmt: skip
    for name in names:
        os.close(os.open(os.path.join(os.fsencode(tmp_path), name), os.O_CREAT | os.O_WRONLY))
    with Store(tmp_path) as store:
        index = Indexed(store)
        page = find(index.connection, store, "*", ROOT)
        assert sorted(os.fsencode(result.path) for result in page.results) == sorted(names)
        for name in names:
            text = os.fsdecode(name).replace("\\", "\\\\").replace('"', '\\"')
            if text.strip():
                found = find(index.connection, store, f'"{text}"', ROOT).results
                assert [os.fsencode(result.path) for result in found] == [name]
