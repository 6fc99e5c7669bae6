"""Every door × everybody × every way to it × every place: refused, and nothing has changed."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.attack import doors, scene
from tests.attack.conftest import Place, Sealed, new_store, sealed_tree
from tests.attack.doors import DOORS, EVERY_DOOR, REFUSED, Door, Kind
from tests.attack.scene import USERS
from tests.attack.ways import (
    Descriptors,
    Handles,
    HardLink,
    Proc,
    Through,
    Way,
    close_all,
    handles_of_all,
    open_all,
    open_all_handles,
)
from tests.support.images import Image
from tests.support.mounts import Mount, modamafs
from tests.support.syscalls import (
    FS_IMMUTABLE_FL,
    FileHandle,
    get_flags,
    name_to_handle_at,
    open_by_handle_at,
    set_flags,
)
from tests.support.targets import Workshop
from tests.support.trees import differences
from tests.support.users import as_user


def by_path(sealed: Sealed, _who: str, _stack: contextlib.ExitStack) -> Way:
    return Way(sealed.mount.root)


def by_hard_link(sealed: Sealed, _who: str, _stack: contextlib.ExitStack) -> Way:
    return HardLink(sealed.mount.root)


def by_second_mount(sealed: Sealed, _who: str, _stack: contextlib.ExitStack) -> Way:
    return Way(sealed.second.root)


def by_late_mount(sealed: Sealed, _who: str, _stack: contextlib.ExitStack) -> Way:
    return Way(sealed.late.root)


def by_descriptor(sealed: Sealed, who: str, _stack: contextlib.ExitStack) -> Way:
    return Descriptors(sealed.mount.root, sealed.before[who].descriptors)


def by_path_descriptor(sealed: Sealed, who: str, _stack: contextlib.ExitStack) -> Way:
    return Descriptors(sealed.mount.root, sealed.before[who].path_descriptors)


def by_proc(sealed: Sealed, who: str, _stack: contextlib.ExitStack) -> Way:
    # Only root may look into another process.
    pid = os.getpid() if who == "root" else "self"
    return Proc(sealed.mount.root, sealed.before[who].descriptors, pid)


def by_proc_of_path_descriptor(sealed: Sealed, who: str, _stack: contextlib.ExitStack) -> Way:
    pid = os.getpid() if who == "root" else "self"
    return Proc(sealed.mount.root, sealed.before[who].path_descriptors, pid)


def by_handle(sealed: Sealed, who: str, stack: contextlib.ExitStack) -> Way:
    return handles(sealed.mount.root, sealed.handles, who, stack)


def by_forgotten_handle(sealed: Sealed, who: str, stack: contextlib.ExitStack) -> Way:
    # The kernel knows no name of what the handle leads to, nor of its parents.
    Path("/proc/sys/vm/drop_caches").write_text("2")
    return handles(sealed.second.root, sealed.second_handles, who, stack)


def by_handle_elsewhere(sealed: Sealed, who: str, stack: contextlib.ExitStack) -> Way:
    # As a file server does that was started again: the kernel has never seen it.
    return handles(sealed.late.root, sealed.handles, who, stack)


def handles(root: Path, taken: dict[str, FileHandle], who: str, stack: contextlib.ExitStack) -> Way:
    """Root opens them, and hands the descriptors on."""
    mount_fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    stack.callback(os.close, mount_fd)
    fds = open_all_handles(mount_fd, taken)
    stack.callback(close_all, fds.values())
    return Handles(root, fds, taken, is_root=who == "root")


def by_views(sealed: Sealed, _who: str, _stack: contextlib.ExitStack) -> Way:
    links = sealed.mount.root / "views" / scene.PROJECT / "sealed"
    return Through(sealed.mount.root, scene.SESSION, links / "session")


def by_view_mount(sealed: Sealed, _who: str, _stack: contextlib.ExitStack) -> Way:
    return Through(sealed.mount.root, scene.PROJECT, sealed.view.root)


WAYS: dict[str, Callable[[Sealed, str, contextlib.ExitStack], Way]] = {
    "path": by_path,
    "descriptor": by_descriptor,
    "O_PATH descriptor": by_path_descriptor,
    "proc": by_proc,
    "proc of an O_PATH descriptor": by_proc_of_path_descriptor,
    "hard link": by_hard_link,
    "second mount": by_second_mount,
    "late mount": by_late_mount,
    "handle": by_handle,
    "forgotten handle": by_forgotten_handle,
    "handle in a late mount": by_handle_elsewhere,
    "views": by_views,
    "view mount": by_view_mount,
}


@pytest.mark.parametrize("who", USERS)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.usefixtures("nothing_changes")
def test_every_door_is_shut(sealed: Sealed, way: str, who: str) -> None:
    tried = [door for door in DOORS if way != "hard link" or door.kind is Kind.FILE]
    with contextlib.ExitStack() as stack:
        reached = WAYS[way](sealed, who, stack)
        found = as_user(USERS[who], doors.attempt, tried, reached)
    assert doors.not_refused(tried, found, who, way) == []


@pytest.fixture(
    scope="module",
    params=[Place("ext4", "passthrough"), Place("btrfs", "fallback")],
    ids="-".join,
)
def flagless(
    request: pytest.FixtureRequest, workshop: Workshop, new_name: Callable[[], str]
) -> Iterator[Sealed]:
    """A sealed tree whose store has lost the immutable flags: the mount is the only wall."""
    with sealed_tree(request.param, workshop, f"flagless-{new_name()}") as sealed:
        for name in (*scene.DIRECTORIES, *scene.FILES):
            set_flags(sealed.store / name, get_flags(sealed.store / name) & ~FS_IMMUTABLE_FL)
        yield sealed


@pytest.mark.parametrize("way", WAYS)
def test_a_missing_flag_never_means_open(flagless: Sealed, way: str) -> None:
    tried = [door for door in DOORS if way != "hard link" or door.kind is Kind.FILE]
    before = scene.whole(flagless.store)
    for who in USERS:
        with contextlib.ExitStack() as stack:
            reached = WAYS[way](flagless, who, stack)
            found = as_user(USERS[who], doors.attempt, tried, reached)
        assert doors.not_refused(tried, found, who, way, by_us=True) == []
        assert differences(before, scene.whole(flagless.store)) == []


COLD: dict[str, Callable[[str], object]] = {
    "open for writing": lambda path: os.open(path, os.O_RDWR),
    "truncate": lambda path: os.truncate(path, 1),
    "chmod": lambda path: os.chmod(path, 0o777),
    "chown": lambda path: os.chown(path, 7, 7),
    "utimens": lambda path: os.utime(path, (1, 1)),
    "setxattr": lambda path: os.setxattr(path, "user.new", b"1"),
    "removexattr": lambda path: os.removexattr(path, "user.instrument"),
}


class Cold(NamedTuple):
    """A sealed file of which nothing is open, in a store without flags."""

    mount: Mount
    handle: FileHandle


@pytest.fixture(scope="module", params=["ext4", "xfs", "btrfs"])
def cold(
    request: pytest.FixtureRequest, workshop: Workshop, new_name: Callable[[], str]
) -> Iterator[Cold]:
    """The store is a whole file system: elsewhere a file without a path is not found at all."""
    directory = workshop.mountpoint(f"cold-{new_name()}")
    directory.mkdir()
    raw = Path("area", "session", "raw")
    with (
        Image(request.param, directory) as image,
        Mount(image.root, directory / "mount") as mount,
    ):
        (mount.root / raw).mkdir(parents=True)
        (mount.root / raw / "file").write_bytes(b"measured")
        os.setxattr(mount.root / raw / "file", "user.instrument", b"Titan")
        handle = name_to_handle_at((None, mount.root / raw / "file"))
        done = modamafs("seal", mount.root / raw)
        assert done.returncode == 0, done.stderr
        for path in (image.root / raw, image.root / raw / "file"):
            set_flags(path, get_flags(path) & ~FS_IMMUTABLE_FL)
        yield Cold(mount, handle)


@pytest.mark.parametrize("door", COLD)
def test_a_file_that_has_no_path_yet_is_sealed(cold: Cold, door: str) -> None:
    """As after a restart of a file server: neither the mount nor the store knows a name of it."""
    before = scene.whole(cold.mount.store)
    mount_fd = os.open(cold.mount.root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text("2")
        # O_PATH: nothing is opened on the store before the door itself is tried.
        fd = open_by_handle_at(mount_fd, cold.handle, os.O_PATH)
        try:
            with pytest.raises(OSError, match=r"Read-only|Permission denied"):
                COLD[door](f"/proc/self/fd/{fd}")
        finally:
            os.close(fd)
    finally:
        os.close(mount_fd)
    assert differences(before, scene.whole(cold.mount.store)) == []


# ---- that the table is complete, and that it can fail --------------------------------------------


def test_the_table_covers_every_phrase() -> None:
    phrases = re.split(r"; |, | and (?=append|truncate|reflink|link out)", REFUSED)
    assert list(EVERY_DOOR) == phrases
    assert all(EVERY_DOOR.values())
    assert {door.kind for door in DOORS} == set(Kind)
    assert len({door.name for door in DOORS}) == len(DOORS)


@pytest.fixture(scope="module")
def unsealed(workshop: Workshop) -> Iterator[Mount]:
    """A mount in which nothing is sealed."""
    store = new_store(workshop.image("ext4").root / "unsealed")
    with Mount(store, workshop.mountpoint("unsealed")) as mount:
        yield mount


def unsealed_tree(mount: Mount, name: str) -> Path:
    """A new tree in it; returns its path in the store."""
    store = new_store(mount.store / name)
    scene.build(store)
    return store


@pytest.mark.parametrize("door", [door for door in DOORS if door.opens_for], ids=lambda d: d.name)
def test_without_a_seal_it_opens(unsealed: Mount, new_name: Callable[[], str], door: Door) -> None:
    """Otherwise nothing would be proved by its being shut."""
    for who in door.opens_for:
        name = new_name()
        store = unsealed_tree(unsealed, name)
        before = scene.whole(store)
        assert outcome(door, Way(unsealed.root / name), who) is None, who
        if door.leaves_a_trace:
            assert differences(before, scene.whole(store)), who


def outcome(door: Door, way: Way, who: str) -> str | None:
    """The name of the errno."""
    [number] = as_user(USERS[who], doors.attempt, [door], way).values()
    return None if number is None else errno.errorcode[number]


def through_descriptors(root: Path, _is_root: bool) -> Descriptors:
    return Descriptors(root, open_all(root, os.O_RDONLY))


def through_path_descriptors(root: Path, _is_root: bool) -> Descriptors:
    return Descriptors(root, open_all(root, os.O_PATH))


def through_proc(root: Path, _is_root: bool) -> Descriptors:
    return Proc(root, open_all(root, os.O_RDONLY), "self")


def through_handles(root: Path, is_root: bool) -> Descriptors:
    taken = handles_of_all(root)
    mount_fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    fds = open_all_handles(mount_fd, taken)
    os.close(mount_fd)
    return Handles(root, fds, taken, is_root=is_root)


@pytest.mark.parametrize(
    ("through", "who"),
    [
        (through_descriptors, "owner"),
        (through_path_descriptors, "root"),
        (through_proc, "owner"),
        (through_handles, "root"),
        (through_handles, "another"),
    ],
)
def test_without_a_seal_every_way_leads_there(
    unsealed: Mount,
    new_name: Callable[[], str],
    through: Callable[[Path, bool], Descriptors],
    who: str,
) -> None:
    found = {}
    for door in DOORS:
        if who in door.opens_for:
            name = new_name()
            unsealed_tree(unsealed, name)
            way = through(unsealed.root / name, who == "root")
            found[door.name] = outcome(door, way, who)
            close_all(way.fds.values())
    assert {name: number for name, number in found.items() if number} == {}
