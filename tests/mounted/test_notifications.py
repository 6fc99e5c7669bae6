"""What changes on the store raises events for who watches the mount, and changes nothing itself."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from modamafs.watch.nudges import AS_DIRECTORY, AS_FILE, BESIDE, CHANGED, NEW_DIRECTORY, NEW_FILE
from tests.mounted.test_watch import LONG, sync, wait_until_quiet, watcher_pid
from tests.mounted.test_watch_outside import HOLDER
from tests.support.inotify import ATTRIB, ISDIR, MOVED_FROM, MOVED_TO, Event, Inotify
from tests.support.mounts import Mount, modamafs, wait_until
from tests.support.syscalls import RENAME_EXCHANGE, RENAME_NOREPLACE, renameat2_at
from tests.support.targets import Workshop
from tests.support.trees import remove
from tests.support.users import STRANGER, as_user

_libc = ctypes.CDLL(None, use_errno=True)
ATTRIBUTE = CHANGED.decode()
HERE = "area/project/session"


@pytest.fixture(params=["ext4", "xfs", "btrfs"])
def store(
    request: pytest.FixtureRequest, workshop: Workshop, new_name: Callable[[], str]
) -> Iterator[Path]:
    store: Path = workshop.image(request.param).root / f"notify-{new_name()}"
    (store / HERE / "raw").mkdir(parents=True)
    (store / HERE / "old").write_bytes(b"old")
    yield store
    remove(store)


@pytest.fixture
def mount(workshop: Workshop, store: Path, new_name: Callable[[], str]) -> Iterator[Mount]:
    with Mount(store, workshop.mountpoint(new_name()), *LONG) as mount:
        wait_until_quiet(mount)
        yield mount


one_kind = pytest.mark.parametrize("store", ["ext4"], indirect=True)
"""For what does not depend on the file system."""


def facts(root: Path) -> dict[str, Any]:
    """All that must not change by telling of it."""
    found: dict[str, Any] = {}
    for directory, names, files in os.walk(root):
        for path in (Path(directory), *(Path(directory, name) for name in (*names, *files))):
            status = path.lstat()
            found[str(path)] = (*status[:7], status.st_mtime_ns, status.st_ctime_ns)
    return found


@contextlib.contextmanager
def as_watcher(gid: int = AS_FILE) -> Iterator[None]:
    """Come to the mount as a nudge does: not by paths, of which it is told the opposite."""
    _libc.setfsgid(ctypes.c_uint32(gid))
    try:
        yield
    finally:
        _libc.setfsgid(0)


def refusal(function: Callable[[], object]) -> int:
    """The errno."""
    with pytest.raises(OSError) as caught:
        function()
    return caught.value.errno or 0


def test_every_change_of_a_file_is_told(mount: Mount) -> None:
    here, seen = mount.store / HERE, mount.root / HERE
    os.listdir(seen)
    with Inotify(seen) as told:
        (here / "new").write_bytes(b"1")
        told.wait_for(MOVED_TO, "new")
        assert (seen / "new").read_bytes() == b"1"
        assert (seen / "new").stat().st_ino == (here / "new").stat().st_ino
        told.events.clear()
        with (here / "new").open("ab") as file:
            file.write(b"2")
        told.wait_for(ATTRIB, "new")
        assert (seen / "new").read_bytes() == b"12"
        told.events.clear()
        (here / "new").chmod(0o600)
        told.wait_for(ATTRIB, "new")
        (here / "new").rename(here / "renamed")
        told.wait_for(MOVED_FROM, "new")
        told.wait_for(MOVED_TO, "renamed")
        assert not (seen / "new").exists()
        (here / "renamed").unlink()
        told.wait_for(MOVED_FROM, "renamed")
        (here / "old").unlink()
        told.wait_for(MOVED_FROM, "old")
        assert os.listdir(seen) == ["raw"]


def test_every_change_of_a_directory_is_told(mount: Mount) -> None:
    here, seen = mount.store / HERE, mount.root / HERE
    with Inotify(seen) as told:
        (here / "new").mkdir()
        told.wait_for(MOVED_TO | ISDIR, "new")
        (seen / "new/made").touch()
        assert os.listdir(here / "new") == ["made"]
        (here / "new").rename(mount.store / "area/elsewhere")
        told.wait_for(MOVED_FROM | ISDIR, "new")
        (mount.store / "area/elsewhere").rename(here / "back")
        told.wait_for(MOVED_TO | ISDIR, "back")
        assert os.listdir(seen / "back") == ["made"]
        (here / "back/made").unlink()
        (here / "back").rmdir()
        told.wait_for(MOVED_FROM | ISDIR, "back")
        here.chmod(0o700)
        told.wait_for(ATTRIB | ISDIR, "")


@one_kind
def test_who_has_it_open_goes_on(mount: Mount) -> None:
    """A nudge moves the kernel's entries about: nobody must lose what he works with."""
    here, seen = mount.store / HERE, mount.root / HERE
    with Inotify(seen) as told, (seen / "old").open("rb") as file:
        (here / "new").mkdir()
        told.wait_for(MOVED_TO | ISDIR, "new")
        with subprocess.Popen(
            ["sh", "-c", "read line; pwd -P; ls"],
            cwd=seen / "new", stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        ) as shell:  # fmt: skip
            (here / "new/inside").touch()
            (here / "old").write_bytes(b"newer")
            told.wait_for(ATTRIB, "old")
            out, _ = shell.communicate("\n")
        assert out.split() == [str(seen / "new"), "inside"]
        assert file.read() == b"newer"
        directory = os.open(seen, os.O_PATH)
        with as_watcher():  # as if it had just come
            beside = os.open(mount.root / os.fsdecode(BESIDE), os.O_PATH)
            with pytest.raises(FileExistsError):
                renameat2_at((beside, NEW_FILE), (directory, "old"), RENAME_NOREPLACE)
        os.close(beside)
        os.close(directory)
        assert os.readlink(f"/proc/self/fd/{file.fileno()}") == str(seen / "old")


@one_kind
def test_what_clients_do_is_told_once(mount: Mount) -> None:
    here, seen = mount.store / HERE, mount.root / HERE
    with Inotify(seen) as told:
        (seen / "mine").write_bytes(b"1")
        (seen / "mine").unlink()
        sync(mount)
        (here / "end").touch()
        told.wait_for(MOVED_TO, "end")
    nudged = (MOVED_TO, MOVED_FROM, ATTRIB)
    assert [event for event in told.events if event.name == "mine" and event.mask in nudged] == []


@one_kind
def test_another_mount_tells_of_what_is_done_through_this_one(
    mount: Mount, workshop: Workshop, new_name: Callable[[], str]
) -> None:
    with (
        Mount(mount.store, workshop.mountpoint(new_name()), *LONG) as other,
        Inotify(other.root / HERE) as told,
    ):
        (mount.root / HERE / "new").write_bytes(b"1")
        told.wait_for(MOVED_TO, "new")
        (mount.root / HERE / "new").unlink()
        told.wait_for(MOVED_FROM, "new")


@one_kind
def test_telling_changes_nothing_on_the_store(mount: Mount) -> None:
    here, seen = mount.store / HERE, mount.root / HERE
    (here / "new").write_bytes(b"1")
    sync(mount)
    before = facts(mount.store / "area")
    with Inotify(seen) as told:
        sync(mount)
        with mount.expected_in_log("watcher-died"):
            os.kill(watcher_pid(mount), signal.SIGKILL)  # the next one tells everybody to look
            told.wait_for(ATTRIB | ISDIR, "")
        for _ in range(3):
            os.setxattr(seen / "new", ATTRIBUTE, b"value")
        directory = os.open(seen, os.O_PATH)
        with as_watcher():
            beside = os.open(mount.root / os.fsdecode(BESIDE), os.O_PATH)
            with pytest.raises(FileNotFoundError):
                renameat2_at((directory, "new"), (beside, "0"), 0)
            with pytest.raises(FileExistsError):
                renameat2_at((beside, NEW_FILE), (directory, "nothing"), RENAME_NOREPLACE)
            for flags in (0, RENAME_EXCHANGE):
                with pytest.raises(OSError) as caught:
                    renameat2_at((beside, NEW_FILE), (directory, "new"), flags)
                assert caught.value.errno in (errno.EINVAL, errno.ENOENT)
            renameat2_at((directory, "nothing"), (beside, "0"), 0)
        os.close(beside)
        os.close(directory)
    assert facts(mount.store / "area") == before
    assert (seen / "new").read_bytes() == b"1"
    assert sorted(os.listdir(seen)) == ["new", "old", "raw"]


def requests(mount: Mount) -> int:
    """How many nudges there were so far."""
    return sum(mount.requests(name) for name in ("SETXATTR", "RENAME", "RENAME2"))


@one_kind
def test_nobody_is_told_of_a_name_twice_by_the_nudges_themselves(mount: Mount) -> None:
    """What raises events through the mount must raise none on the store."""
    here, seen = mount.store / HERE, mount.root / HERE
    with Inotify(seen) as told, Inotify(here) as on_store:
        (here / "new").write_bytes(b"1")
        (here / "old").unlink()
        told.wait_for(MOVED_TO, "new")
        told.wait_for(MOVED_FROM, "old")
        before = requests(mount)
        for number in range(5):
            (here / f"last{number}").touch()
            told.wait_for(MOVED_TO, f"last{number}")
        on_store.wait_until(lambda: any(e.name == "last4" for e in on_store.events), "the store's")
        assert not [e for e in on_store.events if e.mask & (MOVED_FROM | MOVED_TO)]
        assert before < requests(mount) <= before + 3 * 5


@one_kind
def test_the_attribute_is_nobodys(mount: Mount) -> None:
    path = mount.root / HERE / "old"
    before = path.stat().st_ctime_ns
    for value in (b"", b"value"):
        os.setxattr(path, ATTRIBUTE, value)
        assert ATTRIBUTE not in os.listxattr(path)
        assert refusal(lambda: os.getxattr(path, ATTRIBUTE)) == errno.ENODATA
        assert refusal(lambda: os.removexattr(path, ATTRIBUTE)) == errno.EPERM
    assert os.listxattr(mount.store / HERE / "old") == []
    assert path.stat().st_ctime_ns == before

    def set_it() -> int:
        return refusal(lambda: os.setxattr(path, ATTRIBUTE, b""))

    assert as_user(STRANGER, set_it) == errno.EPERM
    assert as_user(STRANGER, os.listxattr, path) == []


@one_kind
def test_the_place_beside_is_nobodys(mount: Mount) -> None:
    root = mount.root
    beside = root / os.fsdecode(BESIDE)
    seen = root / HERE
    with as_watcher():
        place = os.open(beside, os.O_PATH)
    assert os.listdir(root) == os.listdir(root)
    assert os.fsdecode(BESIDE) not in os.listdir(root)
    assert refusal(beside.lstat) == errno.ENOENT
    assert refusal(beside.mkdir) == errno.EPERM
    assert refusal(lambda: (seen / "old").rename(beside)) == errno.EPERM
    assert refusal(lambda: (seen / os.fsdecode(BESIDE)).lstat()) == errno.ENOENT
    for gid in (0, AS_FILE, AS_DIRECTORY):
        with as_watcher(gid):
            for name in (NEW_FILE, NEW_DIRECTORY, b"0"):
                path = f"/proc/self/fd/{place}/{name.decode()}"
                assert refusal(lambda path=path: os.mkdir(path)) in (  # type: ignore[misc]
                    errno.EROFS, errno.EEXIST, errno.ESTALE,
                )  # fmt: skip
                with contextlib.suppress(OSError):
                    os.close(os.open(path, os.O_WRONLY | os.O_CREAT))
                    pytest.fail("it can be written to")
    directory = os.open(seen, os.O_PATH)
    with as_watcher(), contextlib.suppress(OSError):
        os.close(os.open("nothing", os.O_WRONLY, dir_fd=directory))
        pytest.fail("it can be written to")
    os.close(directory)
    os.close(place)
    assert refusal((seen / "nothing").lstat) == errno.ENOENT
    assert sorted(os.listdir(seen)) == ["old", "raw"]


@one_kind
def test_a_tree_is_sealed(mount: Mount) -> None:
    raw = mount.store / HERE / "raw"
    (raw / "below").mkdir()
    (raw / "below/file").write_bytes(b"1")
    seen = mount.root / HERE / "raw"
    with Inotify(seen / "below") as told, Inotify(mount.root / HERE) as above:
        done = modamafs("seal", seen)
        assert done.returncode == 0, done.stderr
        told.wait_for(ATTRIB, "file")
        above.wait_for(ATTRIB | ISDIR, "raw")
        assert not (seen / "below/file").stat().st_mode & 0o222
        told.events.clear()
        before = facts(mount.store / HERE / "raw")
        os.setxattr(seen / "below/file", ATTRIBUTE, b"")  # it is no change, so nobody refuses it
        told.wait_for(ATTRIB, "file")
        assert facts(mount.store / HERE / "raw") == before
        done = modamafs("unseal", "--reason", "test", seen)
        assert done.returncode == 0, done.stderr
        told.wait_until(lambda: told.events.count(Event(ATTRIB, "file")) > 1, "the unsealing")


@one_kind
def test_a_private_project(mount: Mount) -> None:
    """Who works in it is told; who can't list it does not learn its name."""
    private = mount.store / "area/secret"
    made = modamafs("project", "create", mount.root / "area/secret", "--private", "--title", "S")
    assert made.returncode == 0, made.stderr
    (private / "inside").mkdir()
    with (
        Inotify(mount.root / "area/secret/inside") as inside,
        Inotify(mount.root / "area/secret") as secret,
        Inotify(mount.root / "area/project") as project,
        Inotify(mount.root / "area") as area,
    ):
        (private / "inside/new").write_bytes(b"1")
        inside.wait_for(MOVED_TO, "new")
        private.chmod(0o710)
        private.chmod(0o700)
        (private / "file").touch()
        secret.wait_for(MOVED_TO, "file")
        (mount.store / "area/project").chmod(0o750)
        project.wait_for(ATTRIB | ISDIR, "")
        private.rename(mount.store / "area/hidden")
        area.wait_for(ATTRIB | ISDIR, "")
        (mount.store / "area/public").mkdir()
        area.wait_for(MOVED_TO | ISDIR, "public")
        names = {event.name for event in area.events}
        area.events.clear()
        remove(mount.store / "area/hidden")
        (mount.store / "area/public").rmdir()
        area.wait_for(ATTRIB | ISDIR, "")
    assert names | {event.name for event in area.events} <= {"", "public", "project"}


@one_kind
@pytest.mark.parametrize("projects", [["area/project"], ["area/project", "area/second"]])
def test_views(
    mount: Mount, projects: list[str], workshop: Workshop, new_name: Callable[[], str]
) -> None:
    for project in ("area/second", "area/third"):
        (mount.store / project).mkdir()
    done = modamafs("view", "add", mount.store, "view", *projects)
    assert done.returncode == 0, done.stderr
    place = workshop.mountpoint(new_name())
    with Mount(mount.store, place, *LONG, "--view", "view") as view:
        inside = view.root if len(projects) == 1 else view.root / "area/project"
        with contextlib.ExitStack() as stack:
            top = stack.enter_context(Inotify(inside))
            session = stack.enter_context(Inotify(inside / "session"))
            above = stack.enter_context(Inotify(view.root))
            (mount.store / HERE / "new").write_bytes(b"1")
            session.wait_for(MOVED_TO, "new")
            (mount.store / "area/project/other").mkdir()
            top.wait_for(MOVED_TO | ISDIR, "other")
            (mount.store / HERE / "new").unlink()
            session.wait_for(MOVED_FROM, "new")
            assert os.listdir(inside / "session") == os.listdir(mount.store / HERE)
            (mount.store / "area/third").rename(mount.store / "area/fourth")
            (mount.store / "area/project/last").mkdir()
            top.wait_for(MOVED_TO | ISDIR, "last")
            names = {event.name for event in (*above.events, *top.events)}
            assert names <= {"", "other", "last", "session"}


@one_kind
def test_a_read_only_mount_is_told_nothing_and_goes_on(
    mount: Mount, workshop: Workshop, new_name: Callable[[], str]
) -> None:
    """There the kernel lets nobody do what could raise an event."""
    with (
        Mount(mount.store, workshop.mountpoint(new_name()), *LONG, "--read-only") as reader,
        Inotify(reader.root / HERE) as told,
        Inotify(mount.root / HERE) as other,
    ):
        wait_until_quiet(reader)
        (mount.store / HERE / "new").write_bytes(b"1")
        other.wait_for(MOVED_TO, "new")
        wait_until((reader.root / HERE / "new").exists, "the file")
        sync(reader)
        path = reader.root / HERE / "old"
        assert refusal(lambda: os.setxattr(path, ATTRIBUTE, b"")) == errno.EROFS
        assert told.events == []


@one_kind
def test_it_can_be_switched_off(
    mount: Mount, workshop: Workshop, new_name: Callable[[], str]
) -> None:
    """While another mount of the same store goes on telling."""
    (mount.store / ".modama").mkdir(exist_ok=True)
    (mount.store / ".modama/config.toml").write_text("[watch]\nnotify_clients = false\n")
    with Mount(mount.store, workshop.mountpoint(new_name()), *LONG) as silent:
        wait_until_quiet(silent)
        with Inotify(silent.root / HERE) as told, Inotify(mount.root / HERE) as other:
            for number in range(5):
                (mount.store / HERE / f"new{number}").write_bytes(b"1")
                sync(silent)
                other.wait_for(MOVED_TO, f"new{number}")
            assert (silent.root / HERE / "new4").exists()
            (silent.root / HERE / "end").touch()
            told.wait_until(lambda: any(e.name == "end" for e in told.events), "an event")
            assert {event.name for event in told.events} == {"end"}


@one_kind
def test_who_holds_a_directory_keeps_nobody_else_waiting(mount: Mount) -> None:
    for name in ("held", "free"):
        (mount.store / HERE / name).mkdir()
        (mount.store / HERE / name / "file").write_bytes(b"1")
    held, free = mount.root / HERE / "held", mount.root / HERE / "free"
    with Inotify(held) as told_held, Inotify(free) as told_free:
        (mount.store / HERE / "held/new").touch()
        (mount.store / HERE / "free/new").touch()
        told_held.wait_for(MOVED_TO, "new")
        told_free.wait_for(MOVED_TO, "new")
        with subprocess.Popen(
            [sys.executable, "-c", HOLDER, held], stdout=subprocess.PIPE
        ) as holder:
            try:
                assert holder.stdout
                assert holder.stdout.readline() == b"ready\n"
                stack = Path(f"/proc/{holder.pid}/stack")
                wait_until(lambda: "userfault" in stack.read_text(), "the directory to be held")
                for number in range(20):
                    (mount.store / HERE / "held" / str(number)).touch()
                (mount.store / HERE / "free/more").touch()
                told_free.wait_for(MOVED_TO, "more")
                (free / "a").mkdir()
                (mount.root / HERE / "a").mkdir()
                (free / "a").rename(mount.root / HERE / "a/b")  # needs the lock of all renames
                sync(mount)
            finally:
                holder.kill()
            told_held.wait_for(MOVED_TO, "19")


@one_kind
def test_the_worker_is_killed_while_there_is_something_to_tell(mount: Mount) -> None:
    here, seen = mount.store / HERE, mount.root / HERE
    with (
        Inotify(seen) as told,
        mount.expected_in_log("worker-died how=was killed by SIGKILL", "watcher-died"),
    ):
        for number in range(5):
            for other in range(20):
                (here / f"new{number}-{other}").touch()
            mount.kill_worker()
            (here / f"last{number}").touch()
            told.wait_for(MOVED_TO, f"last{number}", seconds=60)
    assert sorted(os.listdir(seen)) == sorted(os.listdir(here))


@one_kind
def test_it_can_be_unmounted_while_there_is_something_to_tell(
    store: Path, workshop: Workshop, new_name: Callable[[], str]
) -> None:
    (store / HERE / "changing").touch()
    is_over = threading.Event()

    def change() -> None:
        while not is_over.wait(0.001):
            (store / HERE / "changing").chmod(0o600)

    changing = threading.Thread(target=change)
    changing.start()
    try:
        for _ in range(5):
            with Mount(store, workshop.mountpoint(new_name()), *LONG) as mount:
                told = Inotify(mount.root / HERE)
                told.wait_for(ATTRIB, "changing")
            told.close()
    finally:
        is_over.set()
        changing.join()


@one_kind
def test_so_many_changes_that_not_all_are_told_one_by_one(mount: Mount) -> None:
    here, seen = mount.store / HERE, mount.root / HERE
    with Inotify(seen) as told:
        for number in range(3000):
            (here / f"new{number}").touch()
        told.wait_for(ATTRIB | ISDIR, "", seconds=60)
        for number in range(60):  # while it is told of so many, one more may not be named
            (here / f"last{number}").touch()
            with contextlib.suppress(TimeoutError):
                told.wait_for(MOVED_TO, f"last{number}", seconds=1)
                break
        else:
            pytest.fail("it goes on for ever")
