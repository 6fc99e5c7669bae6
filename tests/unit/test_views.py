"""The tree of views: which sessions are where, with names that are safe, whatever people wrote."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modamafs.catalog import Measured, Person, Project, Session
from modamafs.views import Directory, SessionFacts, relative, root
from modamafs.views.names import joined, safe

ANN, BEN = Person(name="Ann Lee", user="ann"), Person(name="Ben Ode", user="ben")
TEM = Project(
    id="1", title="t", owner=ANN, members=(BEN,), keywords=("shared",),
    metadata={"voltage": Measured(value=300, unit="kV"), "site": Measured(value="Jülich")},
)  # fmt: skip
FIRST = Session(
    id="2", title="f", owner=ANN, date="2026-07-01", instrument="Titan/1", sample="Fe:Ge",
    keywords=("holography",), metadata={"voltage": Measured(value=200, unit="kV")},
)  # fmt: skip


def facts(path: str, session: Session | None = None, **changes: object) -> SessionFacts:
    area, project, name = path.split("/")
    known = SessionFacts(
        path=path, area=area, project_name=project, session_name=name, session=session,
        project=None, owner="carl", mtime_ns=1_769_904_000 * 10**9, sealed=False,
    )  # fmt: skip
    return replace(known, **changes)  # type: ignore[arg-type]


ONE = facts("tem/skyrmions/one", FIRST, project=TEM, owner="ann", sealed=True)
TWO = facts("tem/skyrmions/two")
THREE = facts("xrd/skyrmions/one", owner="dora")
ALL = [ONE, TWO, THREE]


def at(tree: Directory, path: str) -> Directory:
    for name in path.split("/"):
        below = tree[name]
        assert not isinstance(below, str)
        tree = below()
    return tree


def everything(tree: Directory, path: str = "") -> Iterator[tuple[str, str]]:
    """Every link with its path."""
    for name, entry in tree.items():
        here = f"{path}/{name}" if path else name
        if isinstance(entry, str):
            yield here, entry
        else:
            yield from everything(entry(), here)


def test_of_a_project() -> None:
    tree = root(ALL, None)
    assert set(tree) == {"tem", "xrd", "all", "mine"}
    assert set(at(tree, "tem")) == {"skyrmions"}
    assert dict(everything(at(tree, "tem/skyrmions"))) == {
        "latest": ONE.path,
        "sealed/one": ONE.path,
        "open/two": TWO.path,
        "by-owner/ann/one": ONE.path,
        "by-owner/carl/two": TWO.path,
        "by-instrument/Titan_1/one": ONE.path,
        "by-date/2026/07/one": ONE.path,
        "by-date/2026/02/two": TWO.path,
        "by/voltage=200 kV/one": ONE.path,
        "by/site=Jülich/one": ONE.path,
        "by/keyword=shared/one": ONE.path,
        "by/keyword=holography/one": ONE.path,
        "by/instrument=Titan_1/one": ONE.path,
        "by/sample=Fe_Ge/one": ONE.path,
    }


def test_of_everything() -> None:
    tree = at(root(ALL, None), "all")
    assert dict(at(tree, "open")) == {
        "tem~skyrmions~two": TWO.path,
        "xrd~skyrmions~one": THREE.path,
    }
    assert tree["latest"] == ONE.path


@pytest.mark.parametrize(
    ("user", "names"),
    [
        ("ann", {"tem~skyrmions~one"}),
        ("ben", {"tem~skyrmions~one"}),
        ("carl", {"tem~skyrmions~two"}),
        ("nobody", set()),
        (None, set()),
    ],
)
def test_those_of_the_caller(user: str | None, names: set[str]) -> None:
    mine = at(root(ALL, user), "mine")
    assert {name for name in mine if "~" in name} == names
    assert ("latest" in mine) is bool(names)


def test_the_latest_is_the_newest_and_of_one_day_the_last_by_name() -> None:
    def of_day(name: str, day: str) -> SessionFacts:
        return facts(f"a/p/{name}", replace_date(FIRST, day))

    sessions = [of_day("b", "2026-07-02"), of_day("c", "2026-07-02"), of_day("d", "2026-07-01")]
    assert at(root(sessions, None), "a/p")["latest"] == "a/p/c"
    assert "latest" not in at(root([], None), "all")


def replace_date(session: Session, day: str) -> Session:
    return Session(id="3", title="", owner=session.owner, date=day)


def test_what_has_the_same_name_when_it_is_safe_is_in_one_directory() -> None:
    def named(path: str, sample: str) -> SessionFacts:
        return facts(path, Session(id="4", title="", owner=ANN, date="2026-01-01", sample=sample))

    sessions = [named("a/p/1", "Fe/Ge"), named("a/p/2", "Fe:Ge"), named("a/p/3", "Fe_Ge")]
    for order in (sessions, sessions[::-1]):
        found = at(root(order, None), "a/p/by/sample=Fe_Ge")
        assert list(found.items()) == [("1", "a/p/1"), ("2", "a/p/2"), ("3", "a/p/3")]


def test_a_time_that_no_calendar_has_gives_no_date() -> None:
    assert at(root([facts("a/p/s", mtime_ns=-(1 << 80))], None), "a/p/by-date") == {}


def test_a_link_stays_inside() -> None:
    assert relative("tem/skyrmions/one", 4) == "../../../../tem/skyrmions/one"


def test_only_the_level_that_is_asked_for_is_made() -> None:
    class Counting(list[SessionFacts]):
        walks = 0

        def __iter__(self) -> Iterator[SessionFacts]:
            Counting.walks += 1
            return super().__iter__()

    tree = root(Counting(ALL), None)
    assert Counting.walks == 0
    assert set(tree) == {"tem", "xrd", "all", "mine"}
    assert Counting.walks == 1


HOSTILE = st.text(max_size=300) | st.text(
    alphabet='/\\:*?"<>|#%~=. \x00\x1f\x7f\u202e\ud800\udcff𝕏a', max_size=300
)
FILE_NAMES = (
    st.binary(min_size=1, max_size=255)
    .filter(lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b".."))
    .map(os.fsdecode)
)


@given(HOSTILE)
def test_a_safe_name(text: str) -> None:
    name = safe(text)
    assert 0 < len(name.encode()) <= 255
    assert name.isprintable()
    assert not re.search(r'[/\\:*?"<>|#%]', name)
    assert name.strip(". ") == name
    assert safe(name) == name


@pytest.mark.parametrize("name", ["con", "NUL", "Com1.txt", "lpt9"])
def test_no_name_of_a_device(name: str) -> None:
    assert safe(name) == f"_{name}"


def test_long_texts_that_differ_at_their_end_have_different_names() -> None:
    assert safe("ä" * 400 + "1") != safe("ä" * 400 + "2")


@given(st.sets(st.tuples(FILE_NAMES, FILE_NAMES, FILE_NAMES), max_size=8))
def test_a_joined_name_is_unique(names: set[tuple[str, str, str]]) -> None:
    found = {joined(*parts) for parts in names}
    assert len(found) == len(names)
    assert all(len(os.fsencode(name)) <= 255 and "/" not in name for name in found)


@given(FILE_NAMES, FILE_NAMES, FILE_NAMES, HOSTILE, HOSTILE)
def test_every_session_is_found_whatever_it_is_called(
    area: str, project: str, name: str, key: str, value: str
) -> None:
    session = Session(
        id="5", title="", owner=ANN, date="2026-07-01", instrument=value, sample=value,
        metadata={key: Measured(value=value)}, keywords=(value,),
    )  # fmt: skip
    found = SessionFacts(
        path=f"{area}/{project}/{name}", area=area, project_name=project, session_name=name,
        session=session, project=None, owner=value, mtime_ns=0, sealed=False,
    )  # fmt: skip
    links = list(everything(root([found], "ann")))
    assert {target for _, target in links} == {found.path}
    for path, _ in links:
        assert all(0 < len(os.fsencode(part)) <= 255 for part in path.split("/"))
