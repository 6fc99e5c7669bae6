"""Nobody finds what they could not list, or learns what they could not read."""

from __future__ import annotations

import errno
import json
import os
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from modamafs.index.find import find
from modamafs.model import Caller
from modamafs.store.backing import Store
from modamafs.tree.privacy import Privacy
from tests.support.indexed import Indexed
from tests.support.users import ALICE, BOB, ROOT, STRANGER, TEAM, User, as_user

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to have files of others")

ACL = "system.posix_acl_access"
FILES = (
    "tem/open/s1/raw/open.dm4",
    "tem/open/s1/raw/mine.dm4",  # 0600, alice's
    "tem/open/s1/dark/dark.dm4",  # in a directory that can be gone through only: 0711
    "tem/open/s1/dark/lit/lit.dm4",
    "tem/open/s1/shut/shut.dm4",  # in one that can be listed only: 0744
    "tem/team/s1/team.dm4",  # 0750, of a group
    "tem/listed/s1/listed.dm4",  # a directory with an ACL for bob
    "tem/private/s1/private.dm4",
    "tem/half/s1/half.dm4",  # 0711 above, and a record that is private
    "vault/p/s/vault.dm4",  # an area that is closed
)


@pytest.fixture
def index() -> Iterator[Indexed]:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:  # where others get to
        os.chmod(directory, 0o755)
        yield from indexed(Path(directory) / "store")


def indexed(top: Path) -> Iterator[Indexed]:
    """A store with directories of all sorts."""
    for name in FILES:
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).touch()
    top.chmod(0o755)
    os.chown(top / "tem/open/s1/raw/mine.dm4", ALICE.uid, ALICE.gid)
    (top / "tem/open/s1/raw/mine.dm4").chmod(0o600)
    (top / "tem/open/s1/dark").chmod(0o711)
    (top / "tem/open/s1/shut").chmod(0o744)
    os.chown(top / "tem/team", 0, TEAM)
    (top / "tem/team").chmod(0o2750)
    (top / "tem/listed").chmod(0o700)
    os.setxattr(top / "tem/listed", ACL, acl_for(BOB.uid))
    for name, mode in (("private", 0o750), ("half", 0o711)):
        os.chown(top / "tem" / name, ALICE.uid, ALICE.gid)
        (top / "tem" / name).chmod(mode)
        record = {
            "id": "1", "title": "t", "owner": {"name": "a"}, "visibility": "private",
        }  # fmt: skip
        (top / "tem" / name / ".modama").mkdir()
        (top / "tem" / name / ".modama/project.json").write_text(json.dumps(record))
    (top / "vault").chmod(0o700)
    with Store(top) as store:
        index = Indexed(store)
        for name in FILES:
            index.value(name, "beam_energy", 300.0, "keV")
            index.note(name, f"words quokka {os.path.basename(name)[:-4]}note")
        yield index


def acl_for(uid: int) -> bytes:
    """rwx for the owner, r-x for that user, nothing for others."""
    entries = ((0x01, 7, 0), (0x02, 5, uid), (0x04, 0, 0), (0x10, 5, 0), (0x20, 0, 0))
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def found(index: Indexed, text: str, user: User) -> set[str]:
    caller = Caller(user.uid, user.gid, groups=user.groups)
    page = find(index.connection, index.store, text, caller)
    return {result.path for result in page.results}


OPEN = {"tem/open/s1/raw/open.dm4", "tem/open/s1/raw/mine.dm4", "tem/open/s1/dark/lit/lit.dm4"}
HALF = {"tem/half/s1/half.dm4"}  # 0711: whoever knows the names gets there
TEAMS = {"tem/team/s1/team.dm4"}
SEEN = [
    (ROOT, set(FILES)),
    (ALICE, OPEN | HALF | TEAMS | {"tem/private/s1/private.dm4"}),
    (BOB, OPEN | HALF | TEAMS | {"tem/listed/s1/listed.dm4"}),
    (STRANGER, OPEN | HALF),
]


@pytest.mark.parametrize(("user", "expected"), SEEN, ids=["root", "alice", "bob", "stranger"])
def test_only_what_could_be_listed(index: Indexed, user: User, expected: set[str]) -> None:
    assert found(index, "*.dm4", user) == expected
    assert found(index, "type:dm4", user) == expected
    assert found(index, "type:file -nothing", user) == expected


@pytest.mark.parametrize("user", [ROOT, ALICE, BOB, STRANGER], ids=str)
def test_the_same_as_can_be_listed_in_a_mount(index: Indexed, user: User) -> None:
    """By a process with these credentials; private projects as the mount's tree decides."""
    caller = Caller(user.uid, user.gid, groups=user.groups)
    privacy = Privacy(index.store)
    area_fd = os.open(index.store.path / "tem", os.O_RDONLY)
    try:
        hidden = {
            f"tem/{name}"
            for name in os.listdir(area_fd)
            if not privacy.is_shown(area_fd, name.encode(), caller)
        }
    finally:
        os.close(area_fd)
    names = [os.path.relpath(path, index.store.path) for path in index.store.path.rglob("*")]
    there = {name for name in names if ".modama" not in name}
    listed = as_user(user, lambda: {name for name in there if is_listed(index.store.path / name)})
    assert ("tem/private" in hidden) == (user in (BOB, STRANGER))
    assert found(index, "*", user) == listed - hidden


def is_listed(path: Path) -> bool:
    """Whether the name is in a list that this process can get, of a directory it can go into."""
    return os.access(path.parent, os.R_OK | os.X_OK)


@pytest.mark.parametrize("user", [BOB, STRANGER], ids=["bob", "stranger"])
@pytest.mark.parametrize("text", ["private", "type:dir private", "path:vault/p", "vault/p", "-x"])
def test_private_projects_do_not_exist_for_strangers(index: Indexed, user: User, text: str) -> None:
    private = [path for path in found(index, text, user) if "private" in path or "vault/" in path]
    assert private == []


def test_a_private_project_is_there_for_its_owner(index: Indexed) -> None:
    assert "tem/private" in found(index, "private", ALICE)
    assert "tem/half" in found(index, "half", ALICE)


@pytest.mark.parametrize(
    "text", ["beam_energy=300keV", "beam_energy=*", "beam_energy!=1keV", "-beam_energy=1keV"]
)
def test_values_of_files_that_can_not_be_read_are_not_told(index: Indexed, text: str) -> None:
    mine = "tem/open/s1/raw/mine.dm4"
    assert mine in found(index, f"{text} type:file", ALICE)
    assert mine not in found(index, f"{text} type:file", STRANGER)
    assert "tem/open/s1/raw/open.dm4" in found(index, f"{text} type:file", STRANGER)


def test_words_about_files_that_can_not_be_read_are_not_told(index: Indexed) -> None:
    mine = "tem/open/s1/raw/mine.dm4"
    assert mine in found(index, "minenote", ALICE)
    assert found(index, "minenote", STRANGER) == set()
    assert mine in found(index, "mine.dm4 -minenote", STRANGER)
    assert found(index, "mine.dm4 -minenote", ALICE) == set()


def test_words_about_files_many_of_which_are_noted(
    index: Indexed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modamafs.index.find.NOTED", 0)
    test_words_about_files_that_can_not_be_read_are_not_told(index)


def test_records_of_directories_that_can_not_be_listed_are_not_told(index: Indexed) -> None:
    (index.store.path / "tem/open/s1").chmod(0o711)
    index.session("tem/open/s1", title="hidden title", instrument="secretscope", owner="zoe")
    index.note("tem/open/s1", "hidden words")
    index.value("tem/open/s1", "temperature", 93.0, "K")
    for text in ("session:hidden", "instrument:secretscope", "owner:zoe", '"hidden words"',
                 "temperature=93K"):  # fmt: skip
        assert found(index, text, STRANGER) == set(), text
        assert "tem/open/s1/raw/open.dm4" in found(index, text, ROOT), text


def test_permissions_count_as_they_are_now(index: Indexed) -> None:
    (index.store.path / "tem/open").chmod(0o700)
    assert found(index, "open.dm4", STRANGER) == set()
    (index.store.path / "tem/open").chmod(0o755)
    assert found(index, '"open.dm4"', STRANGER) == {"tem/open/s1/raw/open.dm4"}


def test_what_is_gone_meanwhile_is_not_found(index: Indexed) -> None:
    raw = index.store.path / "tem/open/s1/raw"
    (raw / "open.dm4").unlink()
    assert found(index, "open.dm4", ROOT) == set()
    (raw / "open.dm4").touch()  # another file by now, of which nothing is known
    kept = os.open(raw, os.O_RDONLY)
    raw.rename(raw.with_name("raw2"))
    os.close(kept)
    assert found(index, "mine.dm4", ROOT) == set()


def test_another_directory_in_its_place_shows_nothing_of_the_old_one(index: Indexed) -> None:
    team = index.store.path / "tem/team"
    team.rename(team.with_name("elsewhere"))
    (team / "s1").mkdir(parents=True)
    (team / "s1/team.dm4").touch()
    assert found(index, "team.dm4", STRANGER) == set()


@pytest.mark.parametrize("name", ["raw", "raw/open.dm4"])
def test_a_symbolic_link_in_its_place_leads_nowhere(index: Indexed, name: str) -> None:
    place = index.store.path / "tem/open/s1" / name
    place.rename(index.store.path / "moved")
    place.symlink_to(index.store.path / "moved")
    assert found(index, '"open.dm4"', ROOT) == set()


def test_only_what_the_mount_shows(index: Indexed) -> None:
    page = find(
        index.connection, index.store, "*.dm4", Caller(0, 0),
        shows=lambda path: path.startswith(b"tem/team/"),
    )  # fmt: skip
    assert {result.path for result in page.results} == TEAMS


def test_pages_have_no_gaps_that_tell_of_what_is_hidden(index: Indexed) -> None:
    caller = Caller(STRANGER.uid, STRANGER.gid)
    page = find(index.connection, index.store, "*.dm4", caller, limit=len(OPEN | HALF))
    assert len(page.results) == len(OPEN | HALF)
    assert page.next is None  # although there are more rows, of others
    assert not find(index.connection, index.store, '"vault.dm4"', caller, limit=1).next


def test_permissions_that_can_not_be_read_let_nobody_in(
    index: Indexed, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: str) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "getxattr", broken)
    assert found(index, "*", STRANGER) == set()
    assert found(index, "*.dm4", ROOT) == set(FILES)


def test_no_descriptor_is_left_open(index: Indexed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modamafs.index.folders.OPEN_LIMIT", 2)
    before = os.listdir("/proc/self/fd")
    assert found(index, "*.dm4", ROOT) == set(FILES)
    assert os.listdir("/proc/self/fd") == before
