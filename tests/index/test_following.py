"""Who follows changes is told of what lay in directories that he may list, and page by page."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from modamafs.index import changes, follow
from modamafs.index.changes import LONGEST_PATH_BYTES
from modamafs.index.follow import follow_command
from modamafs.index.reconcile import Change
from modamafs.model import Caller
from tests.index.support import Scene

OWNER, OTHER = Caller(2000, 2000), Caller(2002, 2002)
ROOT = Caller(0, 0)


def position(scene: Scene) -> str:
    state = scene.index.state()
    return f"{state['epoch']}:{state['position']}"


def page(scene: Scene, since: str, caller: Caller, **more: Any) -> dict[str, Any]:
    return follow_command(scene.store, scene.directory, {"since": since, **more}, caller)


def told(scene: Scene, since: str, caller: Caller) -> list[tuple[str, str]]:
    """Event and path of all pages."""
    found: list[tuple[str, str]] = []
    while True:
        answer = page(scene, since, caller)
        found += [(one["event"], one["path"]) for one in answer["changes"]]
        if answer["position"] == since:
            return found
        since = answer["position"]


def closed(scene: Scene, path: str) -> Path:
    """A directory of OWNER's, in one where everybody may write."""
    directory = scene.mkdir(path)
    directory.parent.chmod(0o1777 & ~0o1000)
    directory.chmod(0o700)
    os.chown(directory, OWNER.uid, OWNER.gid)
    scene.apply()
    return directory


def names_of(answers: list[tuple[str, str]]) -> str:
    return " ".join(path for _, path in answers)


def test_a_directory_in_the_place_of_a_closed_one_opens_nothing(scene: Scene) -> None:
    directory = closed(scene, "pub/s1/closed")
    start = position(scene)
    scene.write(directory / "patient-X.txt")
    scene.apply()
    scene.write(directory / "patient-X.txt", b"more")
    scene.apply()
    assert "patient" in names_of(told(scene, start, OWNER))
    assert "patient" not in names_of(told(scene, start, OTHER))
    scene.move(directory, directory.with_name("zz"))
    scene.mkdir(directory)
    scene.apply()
    assert "patient" not in names_of(told(scene, start, OTHER))
    assert ("created", "pub/s1/closed") in told(scene, start, OTHER), "that one is for everybody"
    assert "patient" in names_of(told(scene, start, ROOT))


def test_nor_does_one_in_the_place_of_a_private_project(scene: Scene) -> None:
    project = closed(scene, "area/secret")
    start = position(scene)
    scene.mkdir(project / "s1")
    scene.apply()
    scene.write(project / "s1/patient-X.txt")
    scene.apply()
    scene.move(project, project.with_name("moved"))
    scene.mkdir(project)
    scene.apply()
    scene.mkdir(project / "s1")
    scene.apply()
    assert "patient" in names_of(told(scene, start, ROOT))
    assert "patient" not in names_of(told(scene, start, OTHER))
    assert ("created", "area/secret/s1") in told(scene, start, OTHER)


def test_a_directory_that_was_made_twice_in_one_breath(scene: Scene) -> None:
    """The same path, but not the directory that the entry was seen in."""
    directory = closed(scene, "pub/s1/closed")
    start = position(scene)
    scene.write(directory / "patient-X.txt")
    scene.move(directory, directory.with_name("zz"))
    scene.mkdir(directory)
    scene.apply()
    assert "zz/patient" in names_of(told(scene, start, ROOT))
    assert "patient" not in names_of(told(scene, start, OTHER))


def test_what_is_there_is_told_whoever_asks(scene: Scene) -> None:
    start = position(scene)
    scene.write("area/project/session/file")
    scene.apply()
    scene.write("area/project/session/file", b"more")
    scene.write("top")
    scene.apply()
    assert told(scene, start, OTHER) == told(scene, start, ROOT)
    assert ("created", "top") in told(scene, start, OTHER)
    assert ("modified", "area/project/session/file") in told(scene, start, OTHER)


def test_another_inode_with_the_same_number_is_another_directory(scene: Scene) -> None:
    start = position(scene)
    scene.write("file")
    scene.apply()
    assert told(scene, start, OTHER) == [("created", "file")]
    index = scene.index._database
    assert index is not None
    index.connection.execute("UPDATE changes SET generation = generation + 1")
    assert told(scene, start, OTHER) == []


def test_symbolic_links_lead_nowhere(scene: Scene) -> None:
    directory = closed(scene, "pub/s1/closed")
    start = position(scene)
    scene.write(directory / "patient-X.txt")
    scene.apply()
    directory.chmod(0o755)
    moved = scene.move(directory, directory.with_name("zz"))
    directory.symlink_to(moved)
    scene.say("created", directory, directory.lstat().st_ino)
    scene.apply()
    assert "patient" not in names_of(told(scene, start, OTHER))


def test_what_is_gone_is_told_by_where_it_lay(scene: Scene) -> None:
    closed_one = closed(scene, "pub/s1/closed")
    gone = [scene.write(f"pub/s1/{place}") for place in ("open-1", "closed/patient-1")]
    moved = [scene.write(f"pub/s1/{place}") for place in ("open-2", "closed/patient-2")]
    scene.apply()
    start = position(scene)
    for path in gone:
        scene.remove(path)
    for path in moved:
        scene.move(path, scene.root / f"pub/s1/now-{path.name[-9:]}")
    scene.apply()
    scene.move(closed_one, closed_one.with_name("zz"))
    scene.mkdir(closed_one)
    scene.apply()
    found = page(scene, start, OTHER)["changes"]
    seen = [(one["event"], one["path"], one["old_path"]) for one in found]
    assert ("removed", "pub/s1/open-1", None) in seen
    assert ("moved", "pub/s1/now-open-2", "pub/s1/open-2") in seen
    assert ("created", "pub/s1/now-patient-2", None) in seen
    assert "closed/" not in str(seen)
    assert "pub/s1/closed/patient-1" in names_of(told(scene, start, ROOT))


def test_a_removed_directory_whose_name_is_taken_at_once(scene: Scene) -> None:
    """And its inode number, too, as ext4 does: the generation is another one."""
    directory = closed(scene, "pub/s1/closed")
    scene.write(directory / "patient-1")
    scene.apply()
    start = position(scene)
    scene.remove(directory)
    scene.mkdir(directory)
    scene.apply()
    assert "patient" not in names_of(told(scene, start, OTHER))
    assert ("created", "pub/s1/closed") in told(scene, start, OTHER)


# ---- pages ---------------------------------------------------------------------------------------


def test_a_page_ends_with_its_bytes(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    start = position(scene)
    for number in range(10):
        scene.write(f"{number}" * 200)
    scene.apply()
    monkeypatch.setattr(follow, "PAGE_BYTES", 500)
    first = page(scene, start, OTHER)
    assert len(first["changes"]) == 3
    assert first["position"] == first["changes"][-1]["position"]
    assert len(told(scene, start, OTHER)) == 10, "nothing is passed over"


def test_a_page_ends_in_time_and_is_one_step_further(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = position(scene)
    directory = closed(scene, "pub/s1/closed")
    for number in range(3):
        scene.write(directory / f"patient-{number}")
        scene.write(f"open-{number}")
    scene.apply()
    monkeypatch.setattr(follow, "PAGE_S", 0.0)
    since, pages = start, 0
    while (answer := page(scene, since, OTHER))["position"] != since:
        assert len(answer["changes"]) <= 1
        since = answer["position"]
        pages += 1
    assert pages == int(position(scene).partition(":")[2]) - int(start.partition(":")[2])
    found = told(scene, start, OTHER)
    assert [path for _, path in found if "open-" in path] == [f"open-{n}" for n in range(3)]
    assert "patient" not in names_of(found)


# ---- what is too deep for a path ----------------------------------------------------------------


def chain(scene: Scene, levels: int) -> int:
    """Directories in each other, with names of 255 bytes; a descriptor of the lowest one."""
    here = os.open(scene.root, os.O_RDONLY)
    for _ in range(levels):
        name = b"x" * 255
        os.mkdir(name, dir_fd=here)
        below = os.open(name, os.O_RDONLY, dir_fd=here)
        number = len(scene.changes)
        scene.changes.append(
            Change(os.fstat(here).st_ino, name, os.fstat(below).st_ino, "created", True, number)
        )
        scene.apply(as_is=True)
        os.close(here)
        here = below
    return here


def test_what_is_too_deep_for_a_path_is_a_change_of_a_directory_above(scene: Scene) -> None:
    start = position(scene)
    here = chain(scene, 20)
    found = told(scene, start, OTHER)
    deepest = "/".join(["x" * 255] * 16)
    assert len(deepest) == LONGEST_PATH_BYTES
    assert found[:16] == [("created", deepest[: 256 * n - 1]) for n in range(1, 17)]
    assert found[16:] == [("modified", deepest)] * 4
    start = position(scene)
    for name in (b"file", b"another"):
        os.close(os.open(name, os.O_CREAT | os.O_WRONLY, dir_fd=here))
        scene.changes.append(Change(os.fstat(here).st_ino, name, 0, "created", True, 1))
    scene.apply()
    [change] = page(scene, start, OTHER)["changes"]
    assert (change["event"], change["path"], change["kind"]) == ("modified", deepest, "directory")
    start = position(scene)
    root = os.open(scene.root, os.O_RDONLY)
    os.rename(b"file", b"found", src_dir_fd=here, dst_dir_fd=root)
    inodes = os.fstat(here).st_ino, os.fstat(root).st_ino
    ino = (scene.root / "found").stat().st_ino
    scene.changes.append(Change(inodes[0], b"file", ino, "moved", True, 1, inodes[1], b"found"))
    scene.apply()
    os.close(root)
    os.close(here)
    assert sorted(told(scene, start, ROOT)) == [("created", "found"), ("modified", deepest)]


def test_the_oldest_are_forgotten_by_their_bytes(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changes, "PRUNED_BYTES", 1000)
    entries = scene.index._entries
    assert entries is not None
    monkeypatch.setattr(entries.journal, "_kept_bytes", 10_000)
    for number in range(200):
        scene.write(f"{number:0200}")
        if number % 10 == 9:
            scene.apply(as_is=True)
    scene.apply()
    [(count, size_bytes)] = scene.rows("SELECT count(*), sum(length(path)) FROM changes")
    assert 50 <= count <= 55
    assert size_bytes <= 11_000
    [(newest,)] = scene.rows("SELECT max(position) FROM changes")
    assert f"{scene.index.state()['position']}" == f"{newest}"
