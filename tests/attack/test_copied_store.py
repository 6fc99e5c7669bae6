"""A copy of a store is sealed as the store was, though copying loses the immutable flags."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.attack import doors, scene
from tests.attack.conftest import Sealed
from tests.attack.doors import DOORS, Kind
from tests.attack.scene import DIRECTORIES, FILES, USERS
from tests.attack.ways import Way
from tests.support.mounts import Mount, modamafs
from tests.support.syscalls import FS_IMMUTABLE_FL, get_flags
from tests.support.targets import Workshop
from tests.support.trees import differences
from tests.support.users import as_user

ANOTHER_KIND = {"ext4": "xfs", "xfs": "btrfs", "btrfs": "ext4"}
COPY = {"cp -a": ("cp", "-a"), "rsync -aX": ("rsync", "-aX")}


def protected(store: Path) -> list[str]:
    """What carries the immutable flag."""
    return [name for name in (*DIRECTORIES, *FILES) if get_flags(store / name) & FS_IMMUTABLE_FL]


@pytest.fixture(params=COPY)
def copied(
    request: pytest.FixtureRequest,
    sealed: Sealed,
    workshop: Workshop,
    new_name: Callable[[], str],
) -> Iterator[Mount]:
    """A mount of a copy on another kind of file system."""
    name = f"copied-{new_name()}"
    store = workshop.image(ANOTHER_KIND[sealed.place.fstype]).root / name
    subprocess.run([*COPY[request.param], f"{sealed.store}/", f"{store}/"], check=True)
    with Mount(store, workshop.mountpoint(name), *sealed.place.options) as mount:
        yield mount


def test_it_is_sealed_without_any_flag_and_they_can_be_brought_back(
    copied: Mount, sealed: Sealed
) -> None:
    assert protected(copied.store) == []
    before = scene.whole(copied.store)
    for who in USERS:
        found = as_user(USERS[who], doors.attempt, DOORS, Way(copied.root))
        assert doors.not_refused(DOORS, found, who, "a copy", by_us=True) == []
        assert differences(before, scene.whole(copied.store)) == []
    raw = Path(scene.RAW)
    record = Path(scene.SESSION, ".modama/seals", f"{raw.name}.json")
    original = json.loads((sealed.store / record).read_text())
    done = modamafs("seal", "--repair", "--json", copied.root / raw)
    assert done.returncode == 0, done.stderr
    inside = [name for name in (*DIRECTORIES, *FILES) if f"{name}/".startswith(f"{scene.RAW}/")]
    assert protected(copied.store) == inside
    verified = json.loads(modamafs("verify", "--json", copied.root / raw).stdout)
    assert verified["content_intact"] is True
    assert verified["content_hash"] == original["content_hash"]
    assert json.loads((copied.store / record).read_text())["id"] == original["id"]


@pytest.mark.usefixtures("nothing_changes")
def test_the_store_itself_refuses_root(sealed: Sealed) -> None:
    """The second wall: the flag, on everything that can carry one."""
    inside = [name for name in (*DIRECTORIES, *FILES) if f"{name}/".startswith(f"{scene.RAW}/")]
    assert protected(sealed.store) == inside
    # What stays open there: symbolic links' and pipes' attributes, ancestors, and the flag itself.
    flags = set(map(id, doors.EVERY_DOOR["FS_IOC_SETFLAGS"]))
    tried = [
        door
        for door in DOORS
        if door.kind in (Kind.FILE, Kind.DIRECTORY, Kind.ROOT) and id(door) not in flags
    ]
    found = as_user(USERS["root"], doors.attempt, tried, Way(sealed.store))
    assert doors.not_refused(tried, found, "root", "the store") == []
