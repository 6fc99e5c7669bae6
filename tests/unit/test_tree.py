"""The tree over a store, without a kernel: identity, names, listings, open files, restarts."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from modamafs.errors import Busy, NotOnThisVolume, Reserved, Sealed, StaleHandle
from modamafs.model import ROOT, Attributes, Caller
from modamafs.sealing.seal import seal, unseal
from modamafs.store.backing import Store
from modamafs.tree import core
from modamafs.tree import handles as handles_module
from modamafs.tree import inodes as inodes_module
from modamafs.tree.core import Tree
from modamafs.tree.handles import Handle
from modamafs.tree.state import State
from tests.support.descriptors import none_left
from tests.support.images import Image

ADMIN = Caller(0, 0, request=2)
USER = Caller(4001, 4001, umask=0o022, request=4)


class Backing:
    """The kernel's backing files: they outlive the worker."""

    def __init__(self) -> None:
        self.next = 1
        self.open: dict[int, int] = {}
        self.error: OSError | None = None

    def register(self, fd: int, _caller: Caller) -> int:
        if self.error:
            raise self.error
        self.open[self.next] = os.dup(fd)
        self.next += 1
        return self.next - 1

    def close(self, backing_id: int) -> None:
        if backing_id in self.open:
            os.close(self.open.pop(backing_id))


class World:
    """A store, and the workers that serve it one after the other."""

    def __init__(self, top: Path) -> None:
        self.top = top / "store"
        self.top.mkdir()
        self.kernel = Backing()
        self.backing: Backing | None = self.kernel
        self._state_path = top / "state.bin"
        self._requests = iter(range(100, 1_000_000, 2))
        self._stack = contextlib.ExitStack()
        self.tree = self._start()

    def _start(self, **options: Any) -> Tree:
        store = self._stack.enter_context(Store(self.top))
        state = State(self._state_path)
        self._stack.callback(state.close)
        tree = Tree(store, state, self.backing, **options)
        self._stack.callback(tree.close)
        return tree

    def restart(self, **options: Any) -> Tree:
        """The worker is killed, and another one started."""
        self.close()
        self.tree = self._start(**options)
        return self.tree

    def close(self) -> None:
        self._stack.close()

    def caller(self, who: Caller = USER) -> Caller:
        """Who asks, with a request of its own."""
        return who._replace(request=next(self._requests))

    def node(self, path: str) -> int:
        """The node of a path, by looking up one name after the other."""
        node: int = ROOT
        for name in path.split("/"):
            found = self.tree.lookup(node, os.fsencode(name))
            assert found is not None, path
            node = self.tree.node(found)
        return node


@pytest.fixture
def world() -> Iterator[World]:
    """On a file system that has file handles. No descriptor is left afterwards."""
    with (
        none_left(),
        tempfile.TemporaryDirectory(prefix="modamafs-unit-", dir="/var/tmp") as directory,
    ):
        new = World(Path(directory))
        try:
            yield new
        finally:
            new.close()
            subprocess.run(["chattr", "-R", "-i", directory], check=False, capture_output=True)
        for backing_id in [*(new.kernel.open)]:
            new.kernel.close(backing_id)


@pytest.fixture
def raw(world: World) -> Path:
    path = world.top / "area" / "session" / "raw"
    path.mkdir(parents=True)
    (path / "file").write_bytes(b"content")
    (path / "directory").mkdir()
    return path


# ---- identity ------------------------------------------------------------------------------------


def test_a_node_is_the_stores_inode_and_the_root_is_1(world: World) -> None:
    (world.top / "file").touch()
    found = world.tree.lookup(ROOT, b"file")
    assert found is not None
    assert world.tree.node(found) == found.ino == (world.top / "file").stat().st_ino
    root = world.tree.getattr(ROOT)
    assert root.ino == world.top.stat().st_ino
    assert world.tree.node(root) == ROOT
    assert world.tree.lookup(ROOT, b"nothing") is None


def test_a_worker_that_has_never_seen_it_knows_every_node(world: World) -> None:
    (world.top / "a" / "b").mkdir(parents=True)
    (world.top / "a" / "b" / "file").write_bytes(b"content")
    (world.top / "a" / "link").symlink_to("b/file")
    directory, file, link = world.node("a/b"), world.node("a/b/file"), world.node("a/link")
    (world.top / "a").rename(world.top / "moved")
    tree = world.restart()
    assert tree.getattr(file).size_bytes == 7
    assert tree.readlink(link) == b"b/file"
    found = tree.lookup(directory, b"file")
    assert found is not None
    assert found.ino == file


def test_a_removed_node_is_stale(world: World) -> None:
    for name in ("file", "unseen"):
        (world.top / name).touch()
    (world.top / "directory").mkdir()
    nodes = [world.node(name) for name in ("file", "unseen", "directory")]
    world.tree.lookup(nodes[2], b"x")  # it is held open from now on
    world.tree.unlink(ROOT, b"file", world.caller())
    (world.top / "unseen").unlink()
    world.tree.rmdir(ROOT, b"directory", world.caller())
    calls: list[Callable[[int], object]] = [
        lambda node: world.tree.getattr(node),
        lambda node: world.tree.setattr(node, mode=0o600),
        lambda node: world.tree.lookup(node, b"x"),
    ]
    for node in nodes:
        for call in calls:
            with pytest.raises(OSError, match=r".") as raised:
                call(node)
            assert raised.value.errno == errno.ESTALE


def test_a_file_without_a_name_is_there_while_it_is_open(world: World) -> None:
    world.backing = None
    tree = world.restart()
    (world.top / "file").write_bytes(b"content")
    node = world.node("file")
    handle = tree.open(node, os.O_RDWR, world.caller())
    assert tree.unlink(ROOT, b"file", world.caller()) is None
    assert os.pread(tree.descriptor(handle), 100, 0) == b"content"
    assert tree.getattr(node).nlink == 0
    fd = tree.release(handle.fh)
    assert fd is not None
    os.close(fd)
    with pytest.raises(OSError, match="Stale"):
        tree.getattr(node)


def test_no_more_directories_are_held_than_there_is_room_for(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inodes_module, "OPEN_DIRECTORIES", 3)
    for number in range(10):
        (world.top / f"{number}" / "below").mkdir(parents=True)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        for number in range(10):
            assert world.node(f"{number}/below")
    assert len(os.listdir("/proc/self/fd")) <= before + 4


def test_dots(world: World) -> None:
    (world.top / "a" / "b").mkdir(parents=True)
    (world.top / "a" / "file").touch()
    a, b, file = world.node("a"), world.node("a/b"), world.node("a/file")
    tree = world.restart()
    for node, name, expected in [
        (b, b".", b), (b, b"..", a), (a, b"..", tree.inodes.root_ino), (file, b".", file),
        (ROOT, b".", tree.inodes.root_ino), (ROOT, b"..", tree.inodes.root_ino),
    ]:  # fmt: skip
        found = tree.lookup(node, name)
        assert found is not None
        assert found.ino == expected
    with pytest.raises(StaleHandle):
        tree.lookup(world.top.parent.stat().st_ino, b".")
    outside = world.top.parent / "store beside"
    outside.mkdir()
    with pytest.raises(StaleHandle):
        tree.lookup(outside.stat().st_ino, b".")


def test_our_own_records_can_not_be_reached_by_number(world: World, raw: Path) -> None:
    seal(world.tree.store, b"area/session/raw", ADMIN)
    for path in [raw.parent / ".modama", raw.parent / ".modama" / "seals" / "raw.json"]:
        with pytest.raises(StaleHandle):
            world.tree.lookup(path.stat().st_ino, b".")


# ---- names of our own ----------------------------------------------------------------------------

OWN = [b".modama", core.TEMPORARY + b"17"]


def test_our_own_names_are_not_shown(world: World) -> None:
    (world.top / ".modama" / "seals").mkdir(parents=True)
    (world.top / ".modama.txt").touch()
    (world.top / os.fsdecode(core.TEMPORARY + b"17")).mkdir()
    for name in OWN:
        assert world.tree.lookup(ROOT, name) is None
    assert world.tree.lookup(ROOT, b".modama.txt") is not None
    assert {name for name, _, _ in read_all(world, ROOT)} == {b".", b"..", b".modama.txt"}


@pytest.mark.parametrize("name", OWN)
def test_our_own_names_are_refused(world: World, name: bytes) -> None:
    (world.top / "file").touch()
    (world.top / "directory").mkdir()
    (world.top / ".modama").mkdir()
    tree, who, file = world.tree, world.caller(), world.node("file")
    calls: list[Callable[[], object]] = [
        lambda: tree.mknod(ROOT, name, stat.S_IFREG | 0o600, 0, who),
        lambda: tree.mknod(ROOT, name, stat.S_IFDIR | 0o700, 0, who),
        lambda: tree.symlink(ROOT, name, b"target", who),
        lambda: tree.link(file, ROOT, name, who),
        lambda: tree.unlink(ROOT, name, who),
        lambda: tree.rmdir(ROOT, name, who),
        lambda: tree.rename(ROOT, name, ROOT, b"x", 0, who),
        lambda: tree.rename(ROOT, b"file", ROOT, name, 0, who),
        lambda: tree.rename(ROOT, b"directory", ROOT, name, core.RENAME_EXCHANGE, who),
        lambda: tree.create(ROOT, name, 0o600, os.O_RDWR | os.O_CREAT, who),
    ]
    for call in calls:
        with pytest.raises(Reserved) as raised:
            call()
        assert raised.value.errno == errno.EPERM
    assert sorted(os.listdir(world.top)) == [".modama", "directory", "file"]


@pytest.mark.parametrize(
    ("name", "own"),
    [
        (b"user.modama", True), (b"user.modama.seal", True), (b"trusted.modama.x", True),
        (b"user.x.modama.y", True), (b"user.modamafs", False), (b"user.mymodama", False),
        (b"modama.user", False), (b"user.x", False),
    ],
)  # fmt: skip
def test_extended_attributes_of_our_own(world: World, name: bytes, own: bool) -> None:
    assert core.is_reserved_xattr(name) is own
    if not name.startswith((b"user.", b"trusted.")):
        return
    file = world.top / "file"
    file.touch()
    os.setxattr(file, name, b"value")
    node, tree = world.node("file"), world.tree
    if own:
        assert tree.listxattr(node, privileged=True) == []
        assert tree.getxattr(node, name) is None
        with pytest.raises(Reserved):
            tree.setxattr(node, name, b"other", 0, world.caller(), keep_setid=True)
        with pytest.raises(Reserved):
            tree.removexattr(node, name, world.caller())
        assert os.getxattr(file, name) == b"value"
    else:
        assert tree.listxattr(node, privileged=True) == [name]
        assert tree.getxattr(node, name) == b"value"
        tree.setxattr(node, name, b"other", 0, world.caller(), keep_setid=True)
        assert os.getxattr(file, name) == b"other"
        tree.removexattr(node, name, world.caller())
        assert os.listxattr(file) == []


# ---- listings ------------------------------------------------------------------------------------


def read_all(
    world: World,
    node: int,
    *,
    at_a_time: int = 1000,
    size_bytes: int = 512,
    between: Callable[[int], None] = lambda _: None,
) -> list[tuple[bytes, int, Attributes]]:
    """Read a directory as the adapter does, handing out so many entries with every reply."""
    handle = world.tree.opendir(node, world.caller())
    got: list[tuple[bytes, int, Attributes]] = []
    offset, rounds = 0, 0
    while True:
        handle, entries = world.tree.readdir(handle.fh, offset, size_bytes)
        batch = entries[handle.position : handle.position + at_a_time]
        if not batch:
            break
        got += batch
        handle.position += len(batch)
        handle.offset = offset = batch[-1][1]
        between(rounds)
        rounds += 1
    fd = world.tree.release(handle.fh)
    assert fd is not None
    os.close(fd)
    return got


@pytest.mark.parametrize("at_a_time", [1, 3, 1000])
def test_a_listing_has_every_entry_once(world: World, at_a_time: int) -> None:
    directory = world.top / "directory"
    directory.mkdir()
    for number in range(150):
        (directory / f"{number:03}{'x' * (number % 90)}").touch()
    (directory / os.fsdecode(b"\xff\n")).symlink_to("x")
    got = read_all(world, world.node("directory"), at_a_time=at_a_time)
    assert sorted(name for name, _, _ in got) == sorted(
        [b".", b"..", *os.listdir(os.fsencode(directory))]
    )
    assert len({offset for _, offset, _ in got}) == len(got)
    for name, _, found in got[2:]:
        assert world.tree.lookup(world.node("directory"), name) == found


def test_entries_may_vanish_while_it_is_read(world: World) -> None:
    directory = world.top / "directory"
    directory.mkdir()
    for number in range(100):
        (directory / f"{number:03}").touch()
    kept = {b"%03d" % number for number in range(0, 100, 10)}

    def remove_some(rounds: int) -> None:
        for number in range(100):
            if number % 10 and number % 7 == rounds % 7:
                (directory / f"{number:03}").unlink(missing_ok=True)

    entries = read_all(world, world.node("directory"), at_a_time=2, between=remove_some)
    got = [name for name, _, _ in entries]
    assert len(got) == len(set(got))
    assert kept <= set(got)


def test_a_listing_goes_on_anywhere(world: World) -> None:
    """rewinddir, seekdir, and a worker that is killed in between."""
    for number in range(60):
        (world.top / f"{number:03}").touch()
    whole = [entry[:2] for entry in read_all(world, ROOT)]
    handle = world.tree.opendir(ROOT, world.caller())
    for at in (30, 5, 61, 0, 30):
        handle, entries = world.tree.readdir(handle.fh, whole[at][1], 512)
        assert [entry[:2] for entry in entries] == whole[at + 1 :][: len(entries)]
        assert handle.position == 0
    _, entries = world.tree.readdir(handle.fh, 0, 512)
    assert [entry[:2] for entry in entries] == whole[: len(entries)]
    tree = world.restart()
    again, entries = tree.readdir(handle.fh, whole[30][1], 512)
    assert [entry[:2] for entry in entries] == whole[31:][: len(entries)]
    fd = tree.release(again.fh)
    assert fd is not None
    os.close(fd)


def test_above_the_root_there_is_only_the_root(world: World) -> None:
    found = {name: found for name, _, found in read_all(world, ROOT)}
    assert found[b"."] == found[b".."] == world.tree.getattr(ROOT)


@pytest.mark.mount
def test_another_file_system_in_the_store_is_named_and_not_entered(world: World) -> None:
    nested = world.top / "nested"
    nested.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", str(nested)], check=True)
    try:
        with pytest.raises(NotOnThisVolume):
            world.tree.lookup(ROOT, b"nested")
        assert b"nested" in {name for name, _, _ in read_all(world, ROOT)}
    finally:
        subprocess.run(["umount", str(nested)], check=True)


# ---- making and removing -------------------------------------------------------------------------


def test_what_is_made_is_the_callers(world: World) -> None:
    tree = world.tree
    made = {
        "fifo": tree.mknod(ROOT, b"fifo", stat.S_IFIFO | 0o666, 0, world.caller()),
        "directory": tree.mknod(ROOT, b"directory", stat.S_IFDIR | 0o777, 0, world.caller()),
        "link": tree.symlink(ROOT, b"link", b"\xff", world.caller()),
        "empty": tree.mknod(ROOT, b"empty", stat.S_IFREG | 0o666, 0, world.caller()),
    }
    handle, made["file"] = tree.create(ROOT, b"file", 0o666, os.O_WRONLY, world.caller())
    for name, found in made.items():
        st = (world.top / name).lstat()
        assert (st.st_ino, st.st_uid, st.st_gid, st.st_mode) == (
            found.ino, USER.uid, USER.gid, found.mode,
        ), name  # fmt: skip
        assert name == "link" or stat.S_IMODE(st.st_mode) & 0o022 == 0, "the umask"
    assert sorted(os.listdir(world.top)) == sorted(made), "and nothing else is left"
    assert tree.release(handle.fh) is None


@pytest.mark.parametrize(
    "flags",
    [
        os.O_RDONLY,
        os.O_WRONLY,
        os.O_RDWR,
        os.O_WRONLY | os.O_APPEND,
    ],
)
@pytest.mark.parametrize("passthrough", [True, False])
def test_create_opens_in_every_way(world: World, flags: int, passthrough: bool) -> None:
    if not passthrough:
        world.backing = None
    tree = world.restart()
    handle, _ = tree.create(ROOT, b"x", 0o400, flags | os.O_CREAT | os.O_EXCL, world.caller())
    fd = tree.release(handle.fh)
    assert (fd is None) is passthrough
    if fd is not None:
        os.close(fd)


def test_what_is_there_is_not_made(world: World) -> None:
    (world.top / "file").touch()
    (world.top / "directory").mkdir()
    tree = world.tree
    for name in (b"file", b"directory"):
        calls: list[Callable[[], object]] = [
            lambda: tree.mknod(ROOT, name, stat.S_IFDIR | 0o700, 0, world.caller()),  # noqa: B023
            lambda: tree.mknod(ROOT, name, stat.S_IFREG | 0o600, 0, world.caller()),  # noqa: B023
            lambda: tree.symlink(ROOT, name, b"target", world.caller()),  # noqa: B023
            lambda: tree.link(world.node("file"), ROOT, name, world.caller()),  # noqa: B023
            lambda: tree.create(ROOT, name, 0o600, os.O_RDWR | os.O_EXCL, world.caller()),  # noqa: B023
        ]
        for call in calls:
            with pytest.raises(FileExistsError):
                call()
        with pytest.raises(StaleHandle):
            tree.create(ROOT, name, 0o600, os.O_RDWR, world.caller())
    assert sorted(os.listdir(world.top)) == ["directory", "file"], "nothing is left behind"


def test_names_that_are_too_long(world: World) -> None:
    name = b"n" * 256
    tree = world.tree
    for call in (
        lambda: tree.mknod(ROOT, name, stat.S_IFDIR | 0o700, 0, world.caller()),
        lambda: tree.symlink(ROOT, name, b"target", world.caller()),
        lambda: tree.create(ROOT, name, 0o600, os.O_RDWR, world.caller()),
        lambda: tree.rename(ROOT, b"x", ROOT, name, 0, world.caller()),
    ):
        with pytest.raises(OSError, match="too long"):
            call()
    assert os.listdir(world.top) == []
    assert tree.mknod(ROOT, b"n" * 255, stat.S_IFDIR | 0o700, 0, world.caller())


def test_directories_with_what_an_ended_mount_left_can_be_removed(world: World) -> None:
    directory = world.top / "directory"
    (directory / os.fsdecode(core.TEMPORARY + b"1")).mkdir(parents=True)
    (directory / os.fsdecode(core.TEMPORARY + b"2")).touch()
    world.tree.rmdir(ROOT, b"directory", world.caller())
    directory.mkdir()
    (directory / os.fsdecode(core.TEMPORARY + b"1")).mkdir()
    (directory / "file").touch()
    with pytest.raises(OSError, match="not empty"):
        world.tree.rmdir(ROOT, b"directory", world.caller())
    assert len(os.listdir(directory)) == 2


def test_directories_that_only_grow(world: World) -> None:
    """chattr +a: something can be made there, and nothing renamed or removed."""
    directory = world.top / "directory"
    directory.mkdir()
    node = world.node("directory")
    subprocess.run(["chattr", "+a", str(directory)], check=True)
    try:
        with contextlib.suppress(PermissionError):
            world.tree.mknod(node, b"new", stat.S_IFDIR | 0o755, 0, world.caller())
        assert os.listdir(directory) == ["new"]
    finally:
        subprocess.run(["chattr", "-a", str(directory)], check=True)


def test_a_large_file_is_freed_by_whoever_closes_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(core, "LARGE_BYTES", 4096)
    for name in ("a", "b", "c"):
        (world.top / name).write_bytes(b"x" * 10_000)
    (world.top / "c2").hardlink_to(world.top / "c")
    assert world.tree.unlink(ROOT, b"c", world.caller()) is None, "it has another name"
    pins = [
        world.tree.unlink(ROOT, b"a", world.caller()),
        world.tree.rename(ROOT, b"c2", ROOT, b"b", 0, world.caller()),
    ]
    for pin in pins:
        assert pin is not None
        assert os.fstat(pin).st_nlink == 0
        assert os.fstat(pin).st_blocks > 0
        os.close(pin)
    assert os.listdir(world.top) == ["b"]
    with pytest.raises(FileNotFoundError):
        world.tree.unlink(ROOT, b"a", world.caller())


# ---- requests that are sent again ----------------------------------------------------------------


def twice(world: World, call: Callable[[Tree, Caller], object]) -> object:
    """The worker is killed after it has carried the request out; the next one gets it again."""
    who = world.caller()
    first = call(world.tree, who)
    if isinstance(first, int):
        os.close(first)
    return call(world.restart(), who._replace(resent=True))


def test_making_is_done_once(world: World) -> None:
    (world.top / "file").touch()
    file = world.node("file")
    made = [
        twice(world, lambda tree, who: tree.mknod(ROOT, b"d", stat.S_IFDIR | 0o755, 0, who)),
        twice(world, lambda tree, who: tree.mknod(ROOT, b"f", stat.S_IFIFO | 0o644, 0, who)),
        twice(world, lambda tree, who: tree.symlink(ROOT, b"l", b"target", who)),
        twice(world, lambda tree, who: tree.link(file, ROOT, b"h", who)),
    ]
    for found, name in zip(made, "dflh", strict=True):
        assert isinstance(found, Attributes)
        assert found.ino == (world.top / name).lstat().st_ino
    assert sorted(os.listdir(world.top)) == ["d", "f", "file", "h", "l"]


def test_removing_is_done_once(world: World) -> None:
    (world.top / "file").touch()
    (world.top / "directory").mkdir()
    assert twice(world, lambda tree, who: tree.unlink(ROOT, b"file", who)) is None
    assert twice(world, lambda tree, who: tree.rmdir(ROOT, b"directory", who)) is None
    assert os.listdir(world.top) == []


@pytest.mark.parametrize("flags", [0, core.RENAME_NOREPLACE, core.RENAME_EXCHANGE])
def test_renaming_is_done_once(world: World, flags: int) -> None:
    (world.top / "a").write_text("a")
    if flags != core.RENAME_NOREPLACE:
        (world.top / "b").write_text("b")
    assert twice(world, lambda tree, who: tree.rename(ROOT, b"a", ROOT, b"b", flags, who)) is None
    assert (world.top / "b").read_text() == "a"
    assert (world.top / "a").exists() is (flags == core.RENAME_EXCHANGE)


def test_attributes_are_set_and_removed_once(world: World) -> None:
    (world.top / "file").touch()
    node = world.node("file")

    def create(tree: Tree, who: Caller) -> None:
        tree.setxattr(node, b"user.x", b"v", os.XATTR_CREATE, who, keep_setid=True)

    twice(world, create)
    assert os.getxattr(world.top / "file", "user.x") == b"v"
    twice(world, lambda tree, who: tree.removexattr(node, b"user.x", who))
    assert os.listxattr(world.top / "file") == []


@pytest.mark.parametrize("name", [b"new", b"."])
def test_opening_is_done_once(world: World, name: bytes) -> None:
    who, flags = world.caller(), os.O_RDWR | os.O_CREAT | os.O_EXCL
    if name == b".":
        flags = os.O_RDWR | os.O_TMPFILE
    handle, found = world.tree.create(ROOT, name, 0o600, flags, who)
    again, found_again = world.restart().create(ROOT, name, 0o600, flags, who._replace(resent=True))
    assert again.fh == handle.fh
    assert found_again.ino == found.ino
    assert again.backing_id == handle.backing_id == 1
    assert list(world.kernel.open) == [1]
    assert world.tree.release(again.fh) is None
    who = world.caller()
    handle = world.tree.opendir(ROOT, who)
    again = world.restart().opendir(ROOT, who._replace(resent=True))
    assert again.fh == handle.fh
    assert world.tree.release(again.fh) is None


def test_a_failure_stays_a_failure(world: World) -> None:
    (world.top / "taken").touch()
    who = world.caller()
    calls: list[Callable[[Tree, Caller], object]] = [
        lambda tree, who: tree.mknod(ROOT, b"taken", stat.S_IFDIR | 0o700, 0, who),
        lambda tree, who: tree.create(ROOT, b"taken", 0o600, os.O_RDWR | os.O_EXCL, who),
    ]
    for call in calls:
        who = world.caller()
        with pytest.raises(FileExistsError):
            call(world.tree, who)
        (world.top / "taken").unlink()
        with pytest.raises(FileExistsError):
            call(world.restart(), who._replace(resent=True))
        (world.top / "taken").touch()


class Killed(BaseException):
    """In the place of SIGKILL."""


KILLED_AT = {
    "before it is made": ("modamafs.store.backing.mknod", False),
    "before it is noted": ("modamafs.tree.journal.Journal.note", False),
    "before it has its name": ("modamafs.store.backing.rename", False),
    "after everything": ("modamafs.tree.core.Tree._entry", True),
}


@pytest.mark.parametrize("point", KILLED_AT)
@pytest.mark.parametrize("meanwhile", [False, True])
def test_mkdir_killed_anywhere(
    world: World, monkeypatch: pytest.MonkeyPatch, point: str, meanwhile: bool
) -> None:
    """It succeeds exactly once; and what somebody else has made meanwhile is not claimed."""
    target, done = KILLED_AT[point]
    who = world.caller()

    def kill(*arguments: Any, **_: Any) -> Any:
        if done and arguments[-1] != b"new":  # _entry is asked for the temporary name before
            return world.tree._volume.lookup(*arguments[-2:])
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(target, kill)
        with pytest.raises(Killed):
            world.tree.mknod(ROOT, b"new", stat.S_IFDIR | 0o755, 0, who)
    assert (world.top / "new").exists() is done
    if meanwhile and not done:
        (world.top / "new").mkdir()
        os.chown(world.top / "new", USER.uid, USER.gid)
    again = who._replace(resent=True)
    tree = world.restart()
    if meanwhile and not done:
        with pytest.raises(FileExistsError):
            tree.mknod(ROOT, b"new", stat.S_IFDIR | 0o755, 0, again)
    else:
        found = tree.mknod(ROOT, b"new", stat.S_IFDIR | 0o755, 0, again)
        assert found.ino == (world.top / "new").stat().st_ino
    assert os.listdir(world.top) == ["new"], "nothing half made is left"


# ---- open files ----------------------------------------------------------------------------------


def test_one_inode_has_one_backing_id(world: World) -> None:
    (world.top / "file").touch()
    backing, node = world.kernel, world.node("file")
    made = [world.tree.open(node, flags, world.caller()) for flags in (os.O_RDONLY, os.O_RDWR)]
    tree = world.restart()
    made.append(tree.open(node, os.O_WRONLY, world.caller()))
    assert [handle.backing_id for handle in made] == [1, 1, 1]
    assert list(backing.open) == [1]
    for handle in made[:2]:
        tree.release(handle.fh)
        assert list(backing.open) == [1]
        tree.release(handle.fh)  # sent again: no harm
        assert list(backing.open) == [1]
    tree.release(made[2].fh)
    assert backing.open == {}
    assert tree.open(node, os.O_RDONLY, world.caller()).backing_id == 2


def test_a_registration_that_was_lost_is_closed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    (world.top / "file").touch()
    backing, node = world.kernel, world.node("file")
    kept = world.tree.open(node, os.O_RDONLY, world.caller())
    (world.top / "other").touch()
    with monkeypatch.context() as patch:

        def kill(*_: Any, **__: Any) -> Handle:
            raise Killed

        patch.setattr(handles_module.Handles, "add", kill)
        patch.setattr(Backing, "close", kill)  # a killed worker closes nothing
        with pytest.raises(Killed):
            world.tree.open(world.node("other"), os.O_RDONLY, world.caller())
    assert set(backing.open) == {1, 2}
    world.restart()
    assert set(backing.open) == {1}
    assert world.tree.handles.get(kept.fh).backing_id == 1
    world.restart()
    assert set(backing.open) == {1}


def test_a_registration_that_fails_is_the_opens_error(world: World) -> None:
    (world.top / "file").touch()
    world.kernel.error = OSError(errno.ELOOP, "stacked")
    with pytest.raises(OSError, match="stacked"):
        world.tree.open(world.node("file"), os.O_RDONLY, world.caller())
    world.kernel.error = None
    assert world.restart().open(world.node("file"), os.O_RDONLY, world.caller()).backing_id == 1


def test_a_full_table_leaves_no_registration(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    (world.top / "file").touch()
    monkeypatch.setattr(handles_module, "HANDLE_SLOTS", 0)
    with pytest.raises(OSError, match="too many"):
        world.tree.open(world.node("file"), os.O_RDONLY, world.caller())
    assert world.kernel.open == {}


def test_truncate_at_open(world: World) -> None:
    (world.top / "file").write_bytes(b"content")
    world.tree.open(world.node("file"), os.O_WRONLY | os.O_TRUNC, world.caller())
    assert (world.top / "file").read_bytes() == b""


def test_handles_of_the_fallback_are_opened_anew(world: World) -> None:
    world.backing = None
    world.restart()
    (world.top / "file").write_bytes(b"content")
    node = world.node("file")
    reader = world.tree.open(node, os.O_RDONLY, world.caller())
    writer = world.tree.open(node, os.O_WRONLY, world.caller())
    tree = world.restart()
    for fh, writable in [(reader.fh, False), (writer.fh, True)]:
        fd = tree.descriptor(tree.handles.get(fh))
        assert os.pread(fd, 7, 0) == b"content"
        with contextlib.nullcontext() if writable else pytest.raises(OSError, match="Bad file"):
            os.pwrite(fd, b"C", 0)
        released = tree.release(fh)
        assert released == fd
        os.close(fd)


# ---- seals ---------------------------------------------------------------------------------------


def mutations(world: World) -> dict[str, Callable[[Tree], object]]:
    """Everything that changes something in ``raw``, or where it lies."""
    raw, file = world.node("area/session/raw"), world.node("area/session/raw/file")
    area, session, who = world.node("area"), world.node("area/session"), world.caller(ADMIN)
    reader = world.tree.open(file, os.O_RDONLY, who)
    return {
        "create": lambda tree: tree.create(raw, b"x", 0o600, os.O_RDWR, who),
        "unnamed": lambda tree: tree.create(raw, b".", 0o600, os.O_RDWR | os.O_TMPFILE, who),
        "mknod": lambda tree: tree.mknod(raw, b"x", stat.S_IFREG | 0o600, 0, who),
        "mkdir": lambda tree: tree.mknod(raw, b"x", stat.S_IFDIR | 0o700, 0, who),
        "symlink": lambda tree: tree.symlink(raw, b"x", b"target", who),
        "link in": lambda tree: tree.link(world.node("free"), raw, b"x", who),
        "link out": lambda tree: tree.link(file, ROOT, b"x", who),
        "unlink": lambda tree: tree.unlink(raw, b"file", who),
        "rmdir": lambda tree: tree.rmdir(raw, b"directory", who),
        "rmdir itself": lambda tree: tree.rmdir(session, b"raw", who),
        "rename in": lambda tree: tree.rename(ROOT, b"free", raw, b"x", 0, who),
        "rename out": lambda tree: tree.rename(raw, b"file", ROOT, b"x", 0, who),
        "rename within": lambda tree: tree.rename(raw, b"file", raw, b"x", 0, who),
        "rename itself": lambda tree: tree.rename(session, b"raw", session, b"x", 0, who),
        "rename above": lambda tree: tree.rename(area, b"session", area, b"x", 0, who),
        "rename far above": lambda tree: tree.rename(ROOT, b"area", ROOT, b"x", 0, who),
        "exchange": lambda tree: tree.rename(ROOT, b"beside", ROOT, b"area", 2, who),
        "replace": lambda tree: tree.rename(ROOT, b"beside", session, b"raw", 0, who),
        "chmod": lambda tree: tree.setattr(file, mode=0o600),
        "chown": lambda tree: tree.setattr(file, uid=1),
        "chown itself": lambda tree: tree.setattr(raw, gid=1),
        "utimens": lambda tree: tree.setattr(file, mtime_ns=0),
        "truncate": lambda tree: tree.truncate(file, 0, who),
        "setxattr": lambda tree: tree.setxattr(file, b"user.x", b"", 0, who, keep_setid=True),
        "removexattr": lambda tree: tree.removexattr(file, b"user.y", who),
        "flags": lambda tree: tree.inode_flags_fd(file, changing=True),
        "open to write": lambda tree: tree.open(file, os.O_WRONLY, who),
        "open for both": lambda tree: tree.open(file, os.O_RDWR, who),
        "open to truncate": lambda tree: tree.open(file, os.O_RDONLY | os.O_TRUNC, who),
        "fallocate": lambda tree: tree.fallocate(reader.fh, 0, 0, 100, who),
        "copy": lambda tree: tree.copy_file_range(reader.fh, 0, reader.fh, 100, 1),
    }


@pytest.mark.parametrize("restarted", [False, True])
def test_nothing_changes_what_is_sealed(world: World, raw: Path, restarted: bool) -> None:
    (world.top / "free").touch()
    (world.top / "beside").mkdir()
    os.setxattr(raw / "file", "user.y", b"")
    attempts = mutations(world)
    seal(world.tree.store, b"area/session/raw", ADMIN)
    before = subprocess.check_output(
        ["find", str(raw), "-printf", "%P %i %m %U %G %n %T@ %C@ %s\n"]
    )
    if restarted:
        world.restart()
    for name, attempt in attempts.items():
        with pytest.raises(Sealed):
            attempt(world.tree)
            pytest.fail(f"{name} was let through")
    after = subprocess.check_output(["find", str(raw), "-printf", "%P %i %m %U %G %n %T@ %C@ %s\n"])
    assert before == after
    reader = world.tree.open(world.node("area/session/raw/file"), os.O_RDONLY, world.caller())
    world.tree.release(reader.fh)
    world.tree.mknod(world.node("area/session"), b"beside", stat.S_IFDIR | 0o700, 0, ADMIN)
    unseal(world.tree.store, b"area/session/raw", ADMIN, "to see")
    assert world.tree.setattr(world.node("area/session/raw/file"), mode=0o600)


def test_a_read_only_mount_changes_nothing(world: World, raw: Path) -> None:
    (world.top / "free").touch()
    (world.top / "beside").mkdir()
    attempts = mutations(world)
    tree = world.restart(read_only=True)
    for attempt in attempts.values():
        with pytest.raises(Exception, match="read-only") as raised:
            attempt(tree)
        assert getattr(raised.value, "errno", None) == errno.EROFS
    assert sorted(os.listdir(raw)) == ["directory", "file"]


def test_what_a_client_has_open_for_writing_is_not_sealed_after_a_restart(
    world: World, raw: Path
) -> None:
    world.backing = None
    world.restart()
    world.tree.open(world.node("area/session/raw/file"), os.O_WRONLY, world.caller())
    with pytest.raises(Busy):
        seal(world.tree.store, b"area/session/raw", ADMIN)
    tree = world.restart()
    with pytest.raises(Busy):
        seal(tree.store, b"area/session/raw", ADMIN)
    assert raw.exists()


def test_nor_a_set_id_file_which_is_never_passed_through(world: World, raw: Path) -> None:
    (raw / "file").chmod(0o4755)
    handle = world.tree.open(world.node("area/session/raw/file"), os.O_RDWR, world.caller(ADMIN))
    assert handle.backing_id == 0
    with pytest.raises(Busy):
        seal(world.tree.store, b"area/session/raw", ADMIN)
    with pytest.raises(Busy):
        seal(world.restart().store, b"area/session/raw", ADMIN)


@pytest.mark.mount
def test_a_file_whose_name_the_store_forgot_is_judged_by_its_flag() -> None:
    """The client's kernel still knows the file; the store's has dropped its name.

    Where a flag is missing, it is in doubt until it is looked up.
    """
    with (
        tempfile.TemporaryDirectory(prefix="modamafs-unit-", dir="/var/tmp") as directory,
        Image("ext4", Path(directory)) as image,
    ):
        names = ["open/file", "sealed/file"]
        for name in names:
            (image.root / "area" / name).parent.mkdir(parents=True)
            (image.root / "area" / name).touch()
        node, sealed = [(image.root / "area" / name).stat().st_ino for name in names]
        with Store(image.root) as store:
            seal(store, b"area/sealed", ADMIN)

        def forget() -> None:
            subprocess.run(["umount", str(image.root)], check=True)
            again = ["mount", "-o", "loop", f"{directory}/ext4.image", str(image.root)]
            subprocess.run(again, check=True)

        @contextlib.contextmanager
        def new_tree() -> Iterator[Tree]:
            with Store(image.root) as store, contextlib.ExitStack() as stack:
                state = State(Path(directory) / "state.bin")
                stack.callback(state.close)
                tree = Tree(store, state)
                stack.callback(tree.close)
                yield tree

        forget()
        with new_tree() as tree:
            with pytest.raises(Sealed):
                tree.setattr(sealed, mode=0o640)
            assert stat.S_IMODE(tree.setattr(node, mode=0o600).mode) == 0o600
        subprocess.run(["chattr", "-i", str(image.root / "area" / "sealed")], check=True)
        forget()
        with new_tree() as tree:
            with pytest.raises(Sealed):
                tree.setattr(node, mode=0o640)
            parent: int = ROOT
            for name in (b"area", b"open", b"file"):
                found = tree.lookup(parent, name)
                assert found
                parent = found.ino
            assert parent == node
            assert stat.S_IMODE(tree.setattr(node, mode=0o640).mode) == 0o640
