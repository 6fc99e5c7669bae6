"""What can't be mounted is refused in one clear line, and nothing is changed."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.janitor import mounts_below
from tests.support.mounts import Mount, command, modamafs, wait_until
from tests.support.targets import Workshop
from tests.support.users import ALICE, as_user


class Place:
    """A store, a mount point, and what both were before."""

    def __init__(self, store: Path, mountpoint: Path) -> None:
        self.store = store
        self.mountpoint = mountpoint
        self.before = self.facts()

    def facts(self) -> object:
        found = [path.lstat() for path in (self.store, self.mountpoint) if path.exists()]
        return (
            [(entry.st_mode, entry.st_uid, entry.st_nlink) for entry in found],
            mounts_below(Path(os.environ["MODAMAFS_RUNTIME_DIR"]).parent),
            sorted(os.listdir(os.environ["MODAMAFS_RUNTIME_DIR"])),
        )

    def refused(self, done: subprocess.CompletedProcess[str], *words: str) -> None:
        assert done.returncode >= 3, (done.returncode, done.stderr)
        assert done.stdout == ""
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert done.stderr.startswith("modamafs: ")
        for word in words:
            assert word in done.stderr
        assert self.facts() == self.before


@pytest.fixture
def place(workshop: Workshop, new_name: Callable[[], str]) -> Place:
    store = workshop.image("ext4").root / f"store-{new_name()}"
    store.mkdir()
    Path(os.environ["MODAMAFS_RUNTIME_DIR"]).mkdir(exist_ok=True)
    mountpoint = workshop.mountpoint(store.name)
    mountpoint.mkdir()
    return Place(store, mountpoint)


def test_a_store_that_does_not_exist(place: Place) -> None:
    place.refused(modamafs("mount", "/nowhere/at/all", place.mountpoint), "does not exist")


def test_a_store_that_is_a_file(place: Place) -> None:
    path = place.store / "file"
    path.touch()
    place.refused(modamafs("mount", path, place.mountpoint), "not a directory")


def test_a_mount_point_inside_the_store(place: Place) -> None:
    (place.store / "inside").mkdir()
    place.before = place.facts()
    place.refused(modamafs("mount", place.store, place.store / "inside"), "inside the store")


def test_a_store_inside_the_mount_point(place: Place) -> None:
    store = place.mountpoint / "store"
    store.mkdir()
    place.before = place.facts()
    place.refused(modamafs("mount", store, place.mountpoint), "inside the mount point")


def test_a_mount_point_that_is_not_empty(place: Place) -> None:
    (place.mountpoint / "file").touch()
    place.refused(modamafs("mount", place.store, place.mountpoint), "not empty")


def test_a_mount_point_that_does_not_exist(place: Place) -> None:
    place.refused(modamafs("mount", place.store, place.mountpoint / "no"), "does not exist")


def test_a_store_that_is_mounted_there_already(place: Place) -> None:
    with Mount(place.store, place.mountpoint):
        place.before = place.facts()
        place.refused(modamafs("mount", place.store, place.mountpoint), "already mounted")


def test_a_mount_point_in_use(place: Place) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "none", place.mountpoint], check=True)
    try:
        place.before = place.facts()
        place.refused(modamafs("mount", place.store, place.mountpoint), "in use")
    finally:
        subprocess.run(["umount", place.mountpoint], check=True)


@pytest.fixture
def tmpfs(place: Place) -> Iterator[Path]:
    """A file system of another kind, mounted in the store."""
    path = place.store / "other"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", path], check=True)
    try:
        place.before = place.facts()
        yield path
    finally:
        subprocess.run(["umount", path], check=True)


def test_another_file_system_inside_the_store(place: Place, tmpfs: Path) -> None:
    place.refused(modamafs("mount", place.store, place.mountpoint), str(tmpfs))


def test_a_store_without_file_handles_that_can_be_made(place: Place, tmpfs: Path) -> None:
    store = tmpfs / "store"
    store.mkdir()
    place.before = place.facts()
    place.refused(modamafs("mount", store, place.mountpoint), "ext4, XFS and btrfs")


def test_a_subvolume_inside_the_store(place: Place, workshop: Workshop) -> None:
    store = workshop.image("btrfs").root / f"subvolumes-{place.store.name}"
    store.mkdir()
    subprocess.run(["btrfs", "-q", "subvolume", "create", store / "inner"], check=True)
    try:
        place.before = place.facts()
        place.refused(modamafs("mount", store, place.mountpoint), "subvolume", str(store))
    finally:
        subprocess.run(["btrfs", "-q", "subvolume", "delete", store / "inner"], check=True)


def test_a_read_only_store(place: Place) -> None:
    subprocess.run(["mount", "--bind", place.store, place.store], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", place.store], check=True)
    try:
        place.before = place.facts()
        place.refused(modamafs("mount", place.store, place.mountpoint), "read-only")
        with (
            Mount(place.store, place.mountpoint, "--read-only") as mount,
            pytest.raises(OSError, match="Read-only"),
        ):
            (mount.root / "file").touch()
    finally:
        subprocess.run(["umount", place.store], check=True)


def test_no_privilege(place: Place) -> None:
    done = as_user(ALICE, modamafs, "mount", place.store, place.mountpoint)
    place.refused(done, "root")


def test_no_device(place: Place) -> None:
    script = 'mount --bind /dev/null /dev/fuse && exec "$@"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", *command(), "mount", place.store,
         place.mountpoint],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode >= 3
    assert len(done.stderr.splitlines()) == 1
    assert place.facts() == place.before


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [
        ("[mount]\nguard = maybe\n", 2, ""),
        ("[mount]\n\nentry_timeout_s = 'long'\n", 3, "entry_timeout_s"),
        ("[mount]\nentry_timeouts = 1\n", 2, "entry_timeouts"),
        ("[mouth]\n", 1, "mouth"),
    ],
)
def test_a_broken_configuration(place: Place, text: str, line: int, key: str) -> None:
    path = place.store / ".modama" / "config.toml"
    path.parent.mkdir()
    path.write_text(text)
    place.before = place.facts()
    done = modamafs("mount", place.store, place.mountpoint)
    place.refused(done, str(path), f"{line}", key)


def test_an_unknown_option_is_a_matter_of_usage(place: Place) -> None:
    done = modamafs("mount", place.store, place.mountpoint, "-o", "colour=red")
    assert done.returncode == 2
    assert "colour" in done.stderr
    assert place.facts() == place.before


def test_a_wedged_old_mount(place: Place) -> None:
    """Its processes were all killed at once: it answers nobody, and umount clears it away."""
    mount = Mount(place.store, place.mountpoint)
    with mount:
        status = mount.status()
        os.kill(status["supervisor_pid"], signal.SIGSTOP)
        os.kill(status["worker_pid"], signal.SIGKILL)
        os.kill(status["supervisor_pid"], signal.SIGKILL)
        wait_until(lambda: not is_alive(place.mountpoint), "the mount to be dead")
        done = modamafs("mount", place.store, place.mountpoint)
        assert done.returncode >= 3
        assert "modamafs umount" in done.stderr
        assert modamafs("umount", place.mountpoint).returncode == 0
        mount.is_unmounted = True
    with Mount(place.store, place.mountpoint) as again:
        (again.root / "file").touch()
    assert (place.store / "file").exists()


def is_alive(path: Path) -> bool:
    try:
        os.stat(path)
    except OSError:
        return False
    return True


def test_the_guard_keeps_the_mount_point_shut_until_it_is_unmounted(place: Place) -> None:
    with Mount(place.store, place.mountpoint):
        under = place.mountpoint.parent / "under"
        under.mkdir()
        subprocess.run(["mount", "--bind", place.mountpoint.parent, under], check=True)
        try:
            guarded = under / place.mountpoint.name
            assert guarded.stat().st_mode & 0o7777 == 0
            with pytest.raises(PermissionError):
                (guarded / "file").touch()
        finally:
            subprocess.run(["umount", under], check=True)
            under.rmdir()
    assert place.mountpoint.stat().st_mode & 0o777 == 0o755
