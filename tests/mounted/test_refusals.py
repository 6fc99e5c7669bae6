"""More that is refused: one clear line, the right exit status, and nothing changed.

The usual mistakes are in ``test_bad_input.py``; here are the corners.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.janitor import mounts_below
from tests.support.mounts import Mount, command, modamafs
from tests.support.syscalls import FS_IMMUTABLE_FL, force_unmount, get_flags, mount
from tests.support.targets import Workshop
from tests.support.users import ALICE, as_user


@dataclass
class Place:
    """A store and a mount point, and the command that is to be refused."""

    base: Path
    arguments: list[str | Path] = field(default_factory=list)
    within: list[str] = field(default_factory=list)
    """What the command is run with (``unshare …``)."""

    @property
    def store(self) -> Path:
        return self.base / "store"

    @property
    def mountpoint(self) -> Path:
        return self.base / "mountpoint"

    def run(self) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.within, *command(), *map(str, self.arguments)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )


@pytest.fixture
def place(workshop: Workshop, new_name: Callable[[], str]) -> Iterator[Place]:
    """A store with a file, and an empty mount point."""
    place = Place(workshop.image("ext4").root / f"place-{new_name()}")
    place.store.mkdir(parents=True)
    place.mountpoint.mkdir()
    (place.store / "file").write_text("content")
    place.arguments = ["mount", place.store, place.mountpoint]
    yield place
    for point, _ in mounts_below(place.base):
        force_unmount(point)


def everything(place: Place) -> dict[str, object]:
    """What a refused command must not have changed."""
    runtime = Path(os.environ["MODAMAFS_RUNTIME_DIR"])
    processes = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if os.fsencode(place.base) in path.read_bytes():
                processes.append(path.parent.name)
    mounts = mounts_below(place.base)
    found: dict[str, object] = {
        "mounts": mounts,
        "runtime directories": sorted(p.name for p in runtime.iterdir() if p.is_dir()),
        "processes": sorted(processes),
    }
    if not mounts:  # one that hangs can't be looked into
        for path in [place.base, *sorted(place.base.rglob("*"))]:
            status = path.lstat()
            found[str(path)] = (status.st_mode, status.st_mtime_ns, status.st_ctime_ns)
            if path.is_dir():
                found[f"{path} is immutable"] = bool(get_flags(path) & FS_IMMUTABLE_FL)
    return found


def assert_refused(place: Place, *words: str, usage: bool = False) -> None:
    """One line on stderr with these words in it, the right exit status, nothing changed."""
    before = everything(place)
    done = place.run()
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr
    if usage:
        assert done.returncode == 2
    else:
        assert done.returncode >= 3
    assert everything(place) == before


# the store


def test_a_mount_point_inside_the_store_by_a_symbolic_link(place: Place) -> None:
    (place.store / "mountpoint").mkdir()
    (place.base / "link").symlink_to(place.store)
    place.arguments = ["mount", place.base / "link", place.store / "mountpoint"]
    assert_refused(place, "inside")


def test_a_store_on_itself(place: Place) -> None:
    place.arguments = ["mount", place.store, place.store]
    assert_refused(place, str(place.store))


def test_a_store_without_extended_attributes(place: Place) -> None:
    mount("ramfs", place.store, "ramfs")
    assert_refused(place, "extended attributes")


# the configuration


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[mount]\nguard = tru\n", ["line 2"]),
        ('[mount]\nguard = "yes"\n', ["line 2", "guard"]),
        ("[mount]\nattribute_timeout_s = -1\n", ["line 2", "attribute_timeout_s"]),
        ("[mount]\n# \xff is not UTF-8\n", ["line 2", "UTF-8"]),
        ("mount = 1\n", ["line 1", "mount"]),
    ],
)
def test_a_broken_configuration(place: Place, text: str, words: list[str]) -> None:
    (place.store / ".modama").mkdir()
    path = place.store / ".modama" / "config.toml"
    path.write_bytes(text.encode("latin-1"))
    assert_refused(place, str(path), *words)


# the mount point


def test_a_mount_point_that_is_a_file(place: Place) -> None:
    place.mountpoint.rmdir()
    place.mountpoint.touch()
    assert_refused(place, str(place.mountpoint), "not a directory")


def test_an_old_mount_whose_daemon_is_dead(place: Place) -> None:
    fd = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={fd},rootmode=40000,user_id=0,group_id=0"
    mount(str(place.store), place.mountpoint, "fuse.modamafs", 0, options)
    os.close(fd)
    assert_refused(place, str(place.mountpoint), "dead", "umount")


@contextlib.contextmanager
def silent(place: Place, mountpoint: Path) -> Iterator[None]:
    """A mount by hand, whose daemon reads nothing."""
    fd = os.open("/dev/fuse", os.O_RDWR)
    try:
        options = f"fd={fd},rootmode=40000,user_id=0,group_id=0"
        mount(str(place.store), mountpoint, "fuse.modamafs", 0, options)
        yield
    finally:
        force_unmount(mountpoint)
        os.close(fd)


def test_an_old_mount_whose_daemon_does_not_answer(place: Place) -> None:
    with silent(place, place.mountpoint):
        assert_refused(place, str(place.mountpoint), "does not answer", "umount -l")
        (place.base / "link").symlink_to(place.mountpoint)
        place.arguments = ["mount", place.store, place.base / "link"]
        assert_refused(place, str(place.mountpoint), "does not answer", "umount -l")
        place.arguments.append("--foreground")
        assert_refused(place, str(place.mountpoint), "does not answer", "umount -l")


@pytest.mark.parametrize("below", ["", "below"])
def test_a_store_on_a_mount_whose_daemon_does_not_answer(place: Place, below: str) -> None:
    hangs = place.base / "hangs"
    hangs.mkdir()
    with silent(place, hangs):
        place.arguments = ["mount", hangs / below, place.mountpoint]
        assert_refused(place, str(hangs), "does not answer", "umount -l")


def test_a_mount_point_in_a_mount_whose_daemon_does_not_answer(place: Place) -> None:
    hangs = place.base / "hangs"
    hangs.mkdir()
    with silent(place, hangs):
        place.arguments = ["mount", place.store, hangs / "mountpoint"]
        assert_refused(place, str(hangs), "does not answer", "umount -l")


@pytest.mark.parametrize("options", [[], ["--lazy"]])
def test_a_mount_whose_daemon_does_not_answer_can_be_unmounted(
    place: Place, options: list[str]
) -> None:
    with silent(place, place.mountpoint):
        place.arguments = ["umount", *options, place.mountpoint]
        done = place.run()
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert mounts_below(place.base) == []
    with Mount(place.store, place.mountpoint):
        assert (place.mountpoint / "file").read_text() == "content"


def test_a_mount_whose_daemon_does_not_answer_hangs_nobody_else(place: Place) -> None:
    with silent(place, place.mountpoint):
        for arguments, status in (
            (["status", "--json", place.mountpoint], 1),
            (["status"], None),
            (["doctor", place.store], 0),
        ):
            place.arguments = list(arguments)
            done = place.run()
            assert done.stderr == ""
            assert status in (None, done.returncode), done.stdout


def test_a_stopped_daemon_is_left_alone(place: Place) -> None:
    """As by a debugger: what is mounted there comes back."""
    with Mount(place.store, place.mountpoint, "--no-passthrough") as mounted:
        worker = mounted.worker_pid()
        os.kill(worker, signal.SIGSTOP)
        try:
            # What the kernel remembers of the root may answer for the daemon.
            assert_refused(place, str(place.mountpoint), "already")
            status = mounted.status()
            assert (status["answers"], status["worker_pid"]) == (False, worker)
        finally:
            os.kill(worker, signal.SIGCONT)
        assert (place.mountpoint / "file").read_text() == "content"


# the machine


def test_no_dev_fuse(place: Place) -> None:
    without = (
        "mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3 && "
        'mknod -m 666 /dev/urandom c 1 9 && exec "$@"'
    )
    place.within = ["unshare", "--mount", "sh", "-c", without, "sh"]
    assert_refused(place, "/dev/fuse")


def test_root_without_the_capability(place: Place) -> None:
    """As in a container."""
    place.within = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"]
    assert_refused(place, "root")


def test_an_ordinary_user(place: Place) -> None:
    if not as_user(ALICE, os.access, command()[0], os.X_OK):
        pytest.skip("an ordinary user can't reach this checkout")
    place.within = ["setpriv", f"--reuid={ALICE.uid}", f"--regid={ALICE.gid}", "--clear-groups"]
    assert_refused(place, "root")


# usage


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["mount"], ["STORE"]),
        (["mount", "STORE"], ["MOUNTPOINT"]),
        (["mount", "--nonsense", "STORE", "MOUNTPOINT"], ["--nonsense"]),
        (["mount", "STORE", "MOUNTPOINT", "MORE"], ["MORE"]),
        (["mount", "-o", "nonsense", "STORE", "MOUNTPOINT"], ["nonsense"]),
        (["mount", "-o", "attribute_timeout_s=soon", "STORE", "MOUNTPOINT"], ["soon"]),
        (["umount"], ["MOUNTPOINT"]),
        (["nonsense"], ["nonsense"]),
    ],
)
def test_usage(place: Place, arguments: list[str], words: list[str]) -> None:
    names = {"STORE": str(place.store), "MOUNTPOINT": str(place.mountpoint)}
    place.arguments = [names.get(argument, argument) for argument in arguments]
    assert_refused(place, *words, usage=True)


@pytest.mark.parametrize("name", ["umount", "restart"])
def test_a_command_for_a_mount_that_is_not_there(place: Place, name: str) -> None:
    place.arguments = [name, place.mountpoint]
    assert_refused(place, str(place.mountpoint))


def test_status_of_nothing_is_an_empty_list(place: Place) -> None:
    done = modamafs("status", "--json", place.mountpoint)
    assert (done.returncode, done.stdout.strip()) == (1, "[]")


# and what is not refused


def test_any_bytes_in_the_paths(place: Place) -> None:
    for name in ("space, comma and µ", "new\nline and back\\slash", "\udcff"):
        store, mountpoint = place.base / f"store {name}", place.base / f"mountpoint {name}"
        store.mkdir()
        (store / "file").write_text("content")
        with Mount(store, mountpoint) as mounted:
            assert (mountpoint / "file").read_text() == "content"
            assert mounted.status()["mountpoint"] == str(mountpoint)
        assert list(mountpoint.iterdir()) == []
