"""A sealed tree on each kind of file system, in each kind of mount, and what was had before."""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.attack import scene, ways
from tests.support import syscalls
from tests.support.mounts import Mount, modamafs
from tests.support.syscalls import FileHandle
from tests.support.targets import Workshop
from tests.support.trees import differences, snapshot
from tests.support.users import ALICE, TEAM, acting_as

FRESH = ("-o", "attribute_timeout_s=0,entry_timeout_s=0")
"""So that what the kernel remembers decides nothing."""


class Place(NamedTuple):
    """A kind of file system and a kind of mount."""

    fstype: str
    mode: str

    @property
    def options(self) -> tuple[str, ...]:
        """Of ``modamafs mount``."""
        return ("--no-passthrough",) if self.mode == "fallback" else ()


PLACES = [
    Place(fstype, mode)
    for fstype in ("ext4", "xfs", "btrfs")
    for mode in ("passthrough", "fallback")
]


@pytest.fixture(scope="session", params=PLACES, ids="-".join)
def place(request: pytest.FixtureRequest) -> Place:
    """Each kind of file system with each kind of mount."""
    found: Place = request.param
    return found


@dataclass
class Mapped:
    """Mappings of a file, made before the seal."""

    path: str
    length: int
    shared: int
    """The address of the one to read, shared."""
    private: int
    """The address of the one to write, private."""


@dataclass
class Before:
    """What one user had in hand before the seal."""

    descriptors: dict[str, int]
    path_descriptors: dict[str, int]
    mapping: Mapped


@dataclass
class Sealed:
    """A sealed tree, seen through three mounts of its store."""

    place: Place
    store: Path
    mount: Mount
    second: Mount
    """Mounted before the seal; the kernel remembers nothing of it."""
    late: Mount
    """Mounted after the seal."""
    view: Mount
    """Of the project alone, mounted before the seal."""
    handles: dict[str, FileHandle]
    """Taken from the first mount."""
    second_handles: dict[str, FileHandle]
    """Taken from the second, in which nothing is open."""
    before: dict[str, Before] = field(default_factory=dict)


def new_store(directory: Path) -> Path:
    """A store in which the owner may make and rename areas."""
    directory.mkdir()
    os.chown(directory, ALICE.uid, TEAM)
    directory.chmod(0o775)
    return directory


def take(stack: contextlib.ExitStack, root: Path, who: str) -> Before:
    """Open and map everything, as this user."""
    with acting_as(scene.USERS[who]):
        descriptors = ways.open_all(root, os.O_RDONLY)
        path_descriptors = ways.open_all(root, os.O_PATH)
        length = scene.BLOCK * 4
        fd = descriptors[scene.FRAME]
        shared = syscalls.map_file(fd, length, mmap.PROT_READ, mmap.MAP_SHARED)
        protection = mmap.PROT_READ | mmap.PROT_WRITE
        private = syscalls.map_file(fd, length, protection, mmap.MAP_PRIVATE)
    syscalls.read_memory(shared, length)  # its pages are there
    stack.callback(ways.close_all, [*descriptors.values(), *path_descriptors.values()])
    stack.callback(syscalls.unmap, shared, length)
    stack.callback(syscalls.unmap, private, length)
    mapped = Mapped(scene.FRAME, length, shared, private)
    return Before(descriptors, path_descriptors, mapped)


@contextlib.contextmanager
def sealed_tree(place: Place, workshop: Workshop, name: str) -> Iterator[Sealed]:
    """A new store with a sealed tree in it, and its mounts."""
    store = new_store(workshop.image(place.fstype).root / name)
    with contextlib.ExitStack() as stack:

        def mounted(suffix: str, *options: str) -> Mount:
            point = workshop.mountpoint(f"{name}{suffix}")
            return stack.enter_context(Mount(store, point, *place.options, *options))

        mount, second = mounted(""), mounted("-2", *FRESH)
        assert mount.status()["passthrough"] is (place.mode == "passthrough")
        scene.build(mount.root)
        made = modamafs("view", "add", mount.root, "one", scene.PROJECT)
        assert made.returncode == 0, made.stderr
        view = mounted("-4", "--view", "one", *FRESH)
        whole = [root / area for root in (mount.root, second.root) for area in scene.AREAS]
        for path in (*whole, view.root / "session", view.root / "spare"):
            snapshot(path)  # the kernel remembers what it was
        handles = ways.handles_of_all(mount.root)
        second_handles = ways.handles_of_all(second.root)
        with contextlib.ExitStack() as held:
            before = {who: take(held, mount.root, who) for who in scene.USERS}
            done = modamafs("seal", mount.root / scene.RAW)
            assert done.returncode == 0, done.stderr
            late = mounted("-3")
            yield Sealed(place, store, mount, second, late, view, handles, second_handles, before)


@pytest.fixture(scope="session")
def sealed(place: Place, workshop: Workshop, new_name: Callable[[], str]) -> Iterator[Sealed]:
    """One sealed tree for all attacks, since none of them changes anything."""
    with sealed_tree(place, workshop, f"sealed-{new_name()}") as sealed:
        yield sealed


@pytest.fixture
def nothing_changes(sealed: Sealed) -> Iterator[None]:
    """Fail if anything about the store is not afterwards as it was before."""
    before = scene.whole(sealed.store)
    yield
    assert differences(before, scene.whole(sealed.store)) == []
