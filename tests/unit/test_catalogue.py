"""Records of projects and sessions: whatever somebody has put there."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from modamafs.catalog import Measured, Person, Project, Session
from modamafs.errors import Busy, InvalidRequest
from modamafs.store import catalogue
from modamafs.store.backing import Store

PROJECT = Project(
    id="5f8c",
    title="Skyrmions",
    owner=Person(name="Alice Adams", user="alice"),
    members=(Person(name="bob", user="bob"), Person(name="Carol")),
    keywords=("magnetism",),
    links={"Wiki": "https://wiki.example.org"},
    metadata={"beam_energy": Measured(value=300, unit="keV")},
)
SESSION = Session(id="9a1b", title="First light", owner=Person(name="Alice"), date="2026-11-23")


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY)
    yield fd
    os.close(fd)


@pytest.fixture
def record(tmp_path: Path) -> Path:
    (tmp_path / ".modama").mkdir()
    return tmp_path / ".modama/project.json"


def change(fd: int, **fields: Any) -> None:
    """What ``project set`` does to a record."""
    old = catalogue.load(fd, Project)
    assert old.record
    with catalogue.replacing(fd, msgspec.structs.replace(old.record, **fields), old):
        pass


# ---- there and back ------------------------------------------------------------------------------


def test_what_is_written_is_read(directory: int) -> None:
    assert catalogue.read_project(directory) == (None, None)
    assert catalogue.read_session(directory) == (None, None)
    catalogue.write(directory, PROJECT)
    catalogue.write(directory, SESSION)
    assert catalogue.read_project(directory) == (PROJECT, None)
    assert catalogue.read_session(directory) == (SESSION, None)


def test_a_descriptor_that_is_only_a_path_is_enough(tmp_path: Path, directory: int) -> None:
    catalogue.write(directory, PROJECT)
    fd = os.open(tmp_path, os.O_PATH)
    try:
        assert catalogue.read_project(fd) == (PROJECT, None)
    finally:
        os.close(fd)


def test_fields_of_others_are_kept_at_every_depth(directory: int, record: Path) -> None:
    written = {
        "id": "5f8c",
        "title": "Skyrmions",
        "owner": {"name": "Alice", "user": "alice", "phone": "123"},
        "members": [{"name": "bob", "user": "bob", "room": 7}, {"name": "carol", "room": 8}],
        "metadata": {"dose": {"value": 1.0, "by": "hand"}, "time": {"value": 2}},
        "doi": "10.1/x",
        "extra": {"a": [1]},
        "embargo": {"until": "2030-01-01"},
    }
    record.write_text(json.dumps(written))
    found, problem = catalogue.read_project(directory)
    assert problem is None
    assert found
    assert found.extra["doi"] == "10.1/x"
    assert found.extra["extra"] == {"a": [1]}
    carol = found.members[1]
    change(directory, title="Vortices", members=(carol, Person(name="dave", user="dave")))
    changed = json.loads(record.read_text())
    assert changed["title"] == "Vortices"
    assert changed["members"][0] == {"name": "carol", "room": 8}
    assert changed["members"][1]["user"] == "dave"
    for key in ("owner", "metadata", "doi", "extra", "embargo"):
        assert changed[key] == written[key], key
    change(directory, metadata={"time": Measured(value=3)})
    changed = json.loads(record.read_text())
    assert changed["metadata"] == {"time": {"value": 3, "unit": None}}
    assert changed["doi"] == "10.1/x"


def test_a_mark_that_windows_writes_is_no_problem(directory: int, record: Path) -> None:
    catalogue.write(directory, PROJECT)
    record.write_text("\ufeff" + record.read_text())
    assert catalogue.read_project(directory) == (PROJECT, None)


# ---- whatever is there ---------------------------------------------------------------------------

GOOD = '{"id": "1", "title": "t", "owner": {"name": "a"}'
WRONG = {
    "empty": (b"", "no JSON"),
    "cut off": (b'{"title": "x', "line 1, column"),
    "a comma too many": (GOOD.encode() + b",}", "line 1"),
    "no object": (b"[1, 2]", "has to begin with {"),
    "no title": (b'{"id": "1", "owner": {"name": "a"}}', "title"),
    "a number as title": (b'{"id": "1", "title": 3, "owner": {"name": "a"}}', "$.title"),
    "a title of two lines": (b'{"id": "1", "title": "a\\nb", "owner": {"name": "a"}}', "$.title"),
    "members are words": (GOOD.encode() + b', "members": ["bob"]}', "$.members"),
    "visibility": (GOOD.encode() + b', "visibility": "secret"}', "$.visibility"),
    "not a number": (GOOD.encode() + b', "metadata": {"a": {"value": NaN}}}', "NaN"),
    "newer": (GOOD.encode() + b', "schema": 2}', "upgrade"),
    "no UTF-8": (GOOD.encode() + b', "x": "\xff"}', "UTF-8"),
    "deep": (b"[" * 200_000, "wrong"),
    "deep object": (b'{"a":' * 100_000, "wrong"),
    "long number": (GOOD.encode() + b', "x": ' + b"1" * 10_000 + b"}", "wrong"),
    "large": (b" " * catalogue.LARGEST_BYTES + GOOD.encode() + b"}", "larger than"),
    "binary": (os.urandom(1000), "wrong"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_can_not_be_understood_is_said_in_a_line(
    name: str, directory: int, record: Path
) -> None:
    data, why = WRONG[name]
    record.write_bytes(data)
    found, problem = catalogue.read_project(directory)
    assert found is None
    assert problem
    assert why in problem
    assert problem.startswith(".modama/project.json ")
    assert len(problem.splitlines()) == 1


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        here = Path.cwd()
        os.chdir(path.parent)
        try:
            bound.bind(path.name)
        finally:
            os.chdir(here)


MAKERS: dict[str, Callable[[Path], object]] = {
    "fifo": lambda path: os.mkfifo(path),
    "directory": lambda path: path.mkdir(),
    "symbolic link": lambda path: path.symlink_to("/etc/passwd"),
    "dangling link": lambda path: path.symlink_to("nowhere"),
    "device": lambda path: path.symlink_to("/dev/zero"),
    "socket": make_socket,
}


@pytest.mark.parametrize("kind", MAKERS)
def test_what_is_no_file_is_a_problem_and_nobody_waits(
    kind: str, directory: int, record: Path
) -> None:
    MAKERS[kind](record)
    found, problem = catalogue.read_project(directory)
    assert found is None
    assert problem
    assert "plain file" in problem


def test_records_in_what_is_no_directory(tmp_path: Path, directory: int) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/project.json").write_text(GOOD + "}")
    (tmp_path / ".modama").symlink_to("elsewhere")
    found, problem = catalogue.read_project(directory)
    assert found is None
    assert problem
    assert "no directory" in problem


def test_an_edit_meanwhile_is_not_lost(directory: int, record: Path) -> None:
    catalogue.write(directory, PROJECT)
    old = catalogue.load(directory, Project)
    with (
        pytest.raises(Busy, match="edited by somebody else"),
        catalogue.replacing(directory, PROJECT, old),
    ):
        record.write_text(record.read_text().replace("Skyrmions", "Vortices"))
    assert "Vortices" in record.read_text()
    assert os.listdir(record.parent) == ["project.json"]


def test_a_record_that_appeared_meanwhile_is_not_lost(directory: int, record: Path) -> None:
    nothing: catalogue.Loaded[Project] = catalogue.Loaded(None, None, None)
    with pytest.raises(Busy), catalogue.replacing(directory, PROJECT, nothing):
        record.write_text("{}")
    assert record.read_text() == "{}"


def test_what_is_too_large_to_be_read_is_not_written(directory: int) -> None:
    catalogue.write(directory, PROJECT)
    with pytest.raises(InvalidRequest, match="bytes"):
        change(directory, keywords=tuple(f"{number}{'x' * 900}" for number in range(2000)))
    assert catalogue.read_project(directory) == (PROJECT, None)


# ---- all of them ---------------------------------------------------------------------------------


def test_all_projects_and_sessions(tmp_path: Path) -> None:
    for path in ("tem/a/s2/raw", "tem/a/s1", "tem/b", "xrd/.hidden", ".modama/x", ".snapshots/y"):
        (tmp_path / path).mkdir(parents=True)
    (tmp_path / "tem/file").touch()
    (tmp_path / "tem/a/file").touch()
    (tmp_path / "tem/link").symlink_to("a")
    (tmp_path / "link").symlink_to("tem")
    seals = tmp_path / "tem/a/s2/.modama/seals"
    seals.mkdir(parents=True)
    (seals / "raw.json").write_text('{"state": "sealed"}')
    (seals / "other.json").write_text("{")
    (seals / "raw.B3SUMS").touch()
    for path, record in (("tem/a", PROJECT), ("tem/a/s1", SESSION)):
        fd = os.open(tmp_path / path, os.O_RDONLY)
        catalogue.write(fd, record)
        os.close(fd)
    (tmp_path / "tem/b/.modama").mkdir()
    (tmp_path / "tem/b/.modama/project.json").write_text("{")
    with Store(tmp_path) as store:
        first, second = catalogue.projects(store)
        assert (first.path, first.record, first.problem) == (b"tem/a", PROJECT, None)
        assert first.attributes.st_ino == (tmp_path / "tem/a").stat().st_ino
        assert (second.path, second.record) == (b"tem/b", None)
        assert second.problem
        one, two = catalogue.sessions(store, b"tem/a")
        assert (one.path, one.record, one.seals) == (b"tem/a/s1", SESSION, ())
        assert (two.path, two.record, two.problem) == (b"tem/a/s2", None, None)
        assert two.seals == (("other", "damaged"), ("raw", "sealed"))
        assert list(catalogue.sessions(store, b"tem/link")) == []
        assert list(catalogue.sessions(store, b"tem/nothing")) == []


# ---- documentation -------------------------------------------------------------------------------

PAGE = (Path(__file__).parents[2] / "docs/records.md").read_text()


@pytest.mark.parametrize("kind", [Project, Session])
def test_every_field_is_documented_and_the_example_is_a_record(kind: type[Any]) -> None:
    name = f"{kind.__name__.lower()}.json"
    part = PAGE.split(f"{name}`\n")[1].split("\n## ")[0]
    for field in set(kind.__struct_fields__) - {"extra"}:
        assert f"`{field}`" in part, field
    example = json.loads(part.split("```json\n")[1].split("```")[0])
    record = json.loads(msgspec.json.encode(msgspec.convert(example, kind)))
    assert record == example | {"extra": {}}
    assert set(example) == set(kind.__struct_fields__) - {"extra"}
