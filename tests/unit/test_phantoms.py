"""The daemon's answers to nudges: the opposite of the truth, and never a change."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from modamafs.fuse import phantoms
from modamafs.fuse.phantoms import BESIDE_ID, Phantoms, is_phantom, is_watcher
from modamafs.model import ROOT, Caller
from modamafs.store.backing import Store
from modamafs.tree.core import RENAME_EXCHANGE, RENAME_NOREPLACE, Tree
from modamafs.tree.privacy import Privacy
from modamafs.tree.state import State
from modamafs.tree.virtual import is_virtual
from modamafs.watch.nudges import AS_DIRECTORY, AS_FILE, BESIDE, NEW_DIRECTORY, NEW_FILE

PRIVATE = '{"title": "Secret", "visibility": "private", "owner": "root"}'


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Tree]:
    top = tmp_path / "store"
    (top / "area/project/directory").mkdir(parents=True)
    (top / "area/project/file").touch()
    (top / "area/secret/.modama").mkdir(parents=True)
    (top / "area/secret/.modama/project.json").write_text(PRIVATE)
    (top / "area/secret").chmod(0o700)
    with Store(top) as store:
        state = State(tmp_path / "state.bin")
        tree = Tree(store, state)
        yield tree
        tree.close()
        state.close()


@pytest.fixture
def answers(tree: Tree) -> Phantoms:
    return Phantoms(tree, Privacy(tree.store), lambda _, name: name == b"views")


def node(tree: Tree, path: str) -> int:
    found = ROOT
    for name in path.split("/"):
        attributes = tree.lookup(found, name.encode())
        assert attributes is not None
        found = tree.node(attributes)
    return found


def refusal(function: Callable[[], object]) -> int | None:
    try:
        function()
    except OSError as error:
        return error.errno
    return None


def test_to_the_watcher_the_opposite_of_the_truth_is_said(tree: Tree, answers: Phantoms) -> None:
    project = node(tree, "area/project")
    for name in (b"file", b"directory", b"views"):
        assert answers.lookup(project, name, AS_FILE) is None
    for gid, kind in ((AS_FILE, stat.S_IFREG), (AS_DIRECTORY, stat.S_IFDIR)):
        found = answers.lookup(project, b"gone", gid)
        assert found is not None and stat.S_IFMT(found.mode) == kind
        assert is_phantom(found.ino) and is_virtual(found.ino)
        assert answers.attributes(found.ino)[:6] == found[:6]
        assert (found.uid, stat.S_IMODE(found.mode) & 0o077) == (0, 0)


def test_no_two_phantoms_are_the_same(tree: Tree, answers: Phantoms) -> None:
    """Also not of two workers: the kernel would take a directory for one under another name."""
    others = Phantoms(tree, Privacy(tree.store), lambda *_: False)
    found = [
        one.lookup(BESIDE_ID, NEW_DIRECTORY, AS_FILE) for one in (answers, answers, others, others)
    ]
    assert len({one.ino for one in found if one}) == 4


def test_what_is_open_stays_where_it_is(tree: Tree, answers: Phantoms) -> None:
    project = node(tree, "area/project")
    handle = tree.open(node(tree, "area/project/file"), os.O_RDONLY, Caller(0, 0))
    found = answers.lookup(project, b"file", AS_FILE)
    assert found is not None and found.ino == node(tree, "area/project/file")
    fd = tree.release(handle.fh)
    if fd is not None:
        os.close(fd)
    assert answers.lookup(project, b"file", AS_FILE) is None


def test_beside_there_are_two_entries(answers: Phantoms) -> None:
    beside = answers.lookup(ROOT, BESIDE, AS_FILE)
    assert beside is not None and beside.ino == BESIDE_ID and stat.S_ISDIR(beside.mode)
    file = answers.lookup(BESIDE_ID, NEW_FILE, AS_DIRECTORY)
    directory = answers.lookup(BESIDE_ID, NEW_DIRECTORY, AS_FILE)
    assert file and stat.S_ISREG(file.mode) and directory and stat.S_ISDIR(directory.mode)
    assert answers.lookup(BESIDE_ID, b"0", AS_FILE) is None


def test_only_what_is_so_is_said(tree: Tree, answers: Phantoms) -> None:
    project = node(tree, "area/project")
    before = sorted(os.listdir(tree.store.root_fd))

    def come(name: bytes, flags: int = RENAME_NOREPLACE) -> int | None:
        return refusal(lambda: answers.rename(BESIDE_ID, NEW_FILE, project, name, flags))

    def go(name: bytes, flags: int = 0) -> int | None:
        return refusal(lambda: answers.rename(project, name, BESIDE_ID, b"0", flags))

    assert (come(b"file"), come(b"gone")) == (None, errno.EEXIST)
    assert (go(b"file"), go(b"gone"), go(b"views")) == (errno.ENOENT, None, errno.ENOENT)
    assert come(b"file", 0) == come(b"file", RENAME_EXCHANGE) == errno.EINVAL
    assert go(b"gone", RENAME_EXCHANGE) == errno.EINVAL
    assert refusal(lambda: answers.rename(BESIDE_ID, b"0", BESIDE_ID, b"1", 0)) == errno.ENOENT
    assert sorted(os.listdir(tree.store.root_fd)) == before
    assert Phantoms.is_rename(project, BESIDE_ID) and Phantoms.is_rename(BESIDE_ID, project)
    assert not Phantoms.is_rename(project, ROOT)


def test_nobody_learns_of_a_private_project(tree: Tree, answers: Phantoms) -> None:
    area = node(tree, "area")

    def come(name: bytes) -> int | None:
        return refusal(
            lambda: answers.rename(BESIDE_ID, NEW_DIRECTORY, area, name, RENAME_NOREPLACE)
        )

    assert (come(b"project"), come(b"secret")) == (None, errno.EPERM)
    assert refusal(lambda: answers.lookup(area, b"gone", AS_DIRECTORY)) == errno.EPERM
    assert refusal(lambda: answers.rename(area, b"gone", BESIDE_ID, b"0", 0)) == errno.EPERM
    changes = {
        path: refusal(lambda path=path: answers.change(node(tree, path)))  # type: ignore[misc]
        for path in ("area", "area/project", "area/project/file", "area/secret")
    }
    assert changes == {**dict.fromkeys(changes), "area/secret": errno.EPERM}
    assert refusal(lambda: answers.change(ROOT)) is None


def test_who_is_the_watcher() -> None:
    assert is_watcher(0, AS_FILE) and is_watcher(0, AS_DIRECTORY)
    for who in ((0, 0), (2000, AS_FILE), (AS_FILE, AS_FILE)):
        assert not is_watcher(*who)
    for other in (1, 2, 1 << 61, 1 << 62 | 5, 1 << 63 | 5):
        assert not is_phantom(other)
    assert is_phantom(phantoms.BESIDE_ID)
