"""What somebody tries who should not: landing directories and views under attack."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.mounts import Mount, modamafs, wait_until
from tests.support.targets import Workshop
from tests.support.trees import remove
from tests.support.users import ALICE, BOB, STRANGER, TEAM, User, acting_as, as_user

SECRET = "hushhush"
"""In every name and record that a stranger must not meet."""
LOST = "worker-died"


def record(path: Path, **fields: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"id": str(uuid.uuid4()), **fields}))


def owned(directory: Path, owner: User, mode: int) -> Path:
    for path in [directory, *directory.rglob("*")]:
        os.chown(path, owner.uid, owner.gid, follow_symlinks=False)
    directory.chmod(mode)
    return directory


def session(directory: Path, *, mode: int = 0o755, word: str = "plain") -> Path:
    (directory / "raw").mkdir(parents=True)
    (directory / "raw/data.raw").write_bytes(b"data")
    record(
        directory / ".modama/session.json",
        title=word,
        owner={"name": "Alice", "user": "alice"},
        instrument=f"instrument {word}",
        date="2026-07-01",
        metadata={"sample": {"value": word}},
    )
    return owned(directory, ALICE, mode)


def project(directory: Path, *, mode: int = 0o755, **fields: object) -> Path:
    directory.mkdir(parents=True)
    record(
        directory / ".modama/project.json",
        title="a project",
        owner={"name": "Alice", "user": "alice"},
        **fields,
    )
    return owned(directory, ALICE, mode)


@pytest.fixture
def store(workshop: Workshop, new_name: Callable[[], str]) -> Iterator[Path]:
    directory = workshop.image("ext4").root / f"attacked-{new_name()}"
    project(directory / "area/open")
    session(directory / "area/open/session")
    yield directory
    remove(directory)


@pytest.fixture
def private(store: Path) -> Path:
    """A private project of Alice's and of the team's."""
    name = store / f"area/{SECRET}-project"
    project(name, visibility="private")
    session(name / f"{SECRET}-session", word=SECRET)
    os.chown(name, ALICE.uid, TEAM)
    name.chmod(0o770)
    return name


@pytest.fixture
def mountpoint(store: Path, workshop: Workshop) -> Path:
    return workshop.mountpoint(store.name)


def traces(root: Path, word: str = SECRET) -> list[str]:
    """Where the word is met by who goes through everything."""
    found = []
    for directory, directories, files in os.walk(root):
        for name in directories + files:
            path = Path(directory, name)
            if word in name:
                found.append(f"name {path}")
            if path.is_symlink():
                if word in os.readlink(path):
                    found.append(f"link {path}")
            elif name in files:
                try:
                    if word.encode() in path.read_bytes():
                        found.append(f"content {path}")
                except OSError:
                    pass
    return found


def order(ctl: Path, data: bytes) -> int:
    fd = os.open(ctl, os.O_WRONLY)
    try:
        return os.write(fd, data)
    finally:
        os.close(fd)


# ---- who sees what -------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [(), ("--no-passthrough",)], ids=["passthrough", "fallback"])
def test_a_stranger_meets_no_trace_of_a_private_project(
    store: Path, private: Path, mountpoint: Path, options: tuple[str, ...]
) -> None:
    with Mount(store, mountpoint, *options) as mount:
        done = modamafs("seal", mount.root / private.relative_to(store) / f"{SECRET}-session/raw")
        assert done.returncode == 0, done.stderr
        for place in ("landing", "views", ".modama", "area/.modama", "area/open/.modama"):
            traces(mount.root / place)  # root has gone through everything before
            assert as_user(STRANGER, traces, mount.root / place) == []
        assert as_user(BOB, traces, mount.root / "landing")
        assert as_user(BOB, traces, mount.root / "views")


@pytest.mark.usefixtures("private")
def test_nor_through_a_descriptor_of_somebody_else(store: Path, mountpoint: Path) -> None:
    with Mount(store, mountpoint) as mount:
        for place in ("area", "landing/area", "views/all/by-instrument"):
            fd = os.open(mount.root / place, os.O_RDONLY | os.O_DIRECTORY)
            try:
                assert any(SECRET in name for name in os.listdir(fd))

                def again(fd: int = fd) -> list[str]:
                    os.lseek(fd, 0, os.SEEK_SET)
                    return [name for name in os.listdir(fd) if SECRET in name]

                assert as_user(STRANGER, again) == []
                assert as_user(BOB, again) != []
            finally:
                os.close(fd)


@pytest.mark.usefixtures("private")
def test_nor_after_another_worker_has_taken_over(store: Path, mountpoint: Path) -> None:
    with Mount(store, mountpoint) as mount, mount.expected_in_log(LOST):
        with acting_as(STRANGER):
            fd = os.open(mount.root / "area", os.O_RDONLY | os.O_DIRECTORY)
        try:
            mount.kill_worker()
            assert as_user(STRANGER, os.listdir, fd) == ["open"]
        finally:
            os.close(fd)


@pytest.mark.usefixtures("private")
def test_nor_with_plain_libfuse(store: Path, mountpoint: Path) -> None:
    with Mount(store, mountpoint, "-o", "channel=off") as mount:
        assert as_user(STRANGER, os.listdir, mount.root / "area") == ["open"]
        assert as_user(STRANGER, traces, mount.root / "landing") == []


def test_a_directory_without_a_record_is_not_told_of_by_the_views(
    store: Path, mountpoint: Path
) -> None:
    session(store / f"area/closed/{SECRET}")
    owned(store / "area/closed", ALICE, 0o700)
    session(store / f"shut/project/{SECRET}")
    owned(store / "shut", ALICE, 0o700)
    session(store / "area/open/locked", mode=0o700, word=SECRET)
    with Mount(store, mountpoint) as mount:
        assert as_user(STRANGER, traces, mount.root / "views") == []


def test_who_may_enter_by_acl_reads_of_no_directory_that_has_none(
    store: Path, mountpoint: Path
) -> None:
    here = session(store / "area/open/shared", mode=0o750)
    (here / "closed").mkdir()
    (here / "closed" / SECRET).write_bytes(b"x")
    owned(here / "closed", ALICE, 0o750)
    subprocess.run(["setfacl", "-m", f"u:{STRANGER.uid}:rx", here], check=True)
    with Mount(store, mountpoint) as mount:
        shown = mount.root / "area/open/shared"
        with pytest.raises(PermissionError):
            as_user(STRANGER, os.listdir, shown / "closed")
        assert as_user(STRANGER, traces, shown / ".modama") == []


def test_a_member_by_acl_may_enter_the_view_of_the_project(store: Path, mountpoint: Path) -> None:
    here = project(store / "area/by-acl", mode=0o750, visibility="private")
    session(here / "session")
    subprocess.run(["setfacl", "-m", f"u:{STRANGER.uid}:rx", here], check=True)
    with Mount(store, mountpoint) as mount:
        assert as_user(STRANGER, os.listdir, mount.root / "area/by-acl") == ["session"]
        assert as_user(STRANGER, os.listdir, mount.root / "views/area/by-acl/open") == ["session"]


def test_a_view_of_some_projects_does_not_name_the_others(store: Path, mountpoint: Path) -> None:
    project(store / "area/other-shown")
    project(store / f"area/{SECRET}")
    project(store / f"{SECRET}/project")
    done = modamafs("view", "add", store, "some", "area/open", "area/other-shown")
    assert done.returncode == 0, done.stderr
    with Mount(store, mountpoint, "--view", "some") as mount:
        assert traces(mount.root / "landing") == []
        assert traces(mount.root / ".modama") == []


# ---- ctl -----------------------------------------------------------------------------------------


def test_who_may_not_seal_with_a_command_may_not_do_so_with_ctl(
    store: Path, mountpoint: Path
) -> None:
    here = store / "area/open/session"
    os.chown(here, ALICE.uid, TEAM)
    with Mount(store, mountpoint) as mount:
        shown = mount.root / "area/open/session"
        assert as_user(BOB, modamafs, "seal", shown / "raw").returncode != 0
        with pytest.raises(OSError):
            as_user(BOB, order, shown / ".modama/ctl", b"seal\n")


def test_two_descriptors_are_two_commands(store: Path, mountpoint: Path) -> None:
    with Mount(store, mountpoint) as mount, acting_as(ALICE):
        ctl = mount.root / "area/open/session/.modama/ctl"
        first, second = os.open(ctl, os.O_WRONLY), os.open(ctl, os.O_WRONLY)
        os.write(first, b"se")
        os.write(second, b"al")
        for fd in (first, second):
            with pytest.raises(OSError, match="Invalid argument"):
                os.close(fd)
        assert (ctl.parent / "seal/state").read_text() == "open\n"


def test_what_is_left_of_a_command_does_not_spoil_the_next(store: Path, mountpoint: Path) -> None:
    with Mount(store, mountpoint) as mount:
        ctl = mount.root / "area/open/session/.modama/ctl"
        with acting_as(ALICE):
            fd = os.open(ctl, os.O_WRONLY)
            os.write(fd, b"junk")
        os.write(fd, b" ")  # somebody else, with the same descriptor
        try:
            os.close(fd)
        except OSError as error:
            assert error.errno == errno.EINVAL
        as_user(ALICE, order, ctl, b"seal\n")


def test_a_command_that_was_lost_is_not_reported_as_done(store: Path, mountpoint: Path) -> None:
    with Mount(store, mountpoint) as mount, mount.expected_in_log(LOST):
        state = mount.root / "area/open/session/.modama/seal/state"
        worker = mount.worker_pid()  # no process is started in between: that closes the file
        with acting_as(ALICE):
            fd = os.open(state.parent.parent / "ctl", os.O_WRONLY)
            os.write(fd, b"seal")
        os.kill(worker, signal.SIGKILL)
        try:
            with acting_as(ALICE):
                os.close(fd)
        except OSError:
            return
        wait_until(lambda: state.read_text() in ("sealing\n", "sealed\n"), "the seal", seconds=5)


# ---- what lies on the store ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["history.jsonl", "seals/x.json"])
def test_a_fifo_among_the_records_delays_nobody(store: Path, mountpoint: Path, name: str) -> None:
    here = store / "area/open/session/.modama"
    (here / "seals").mkdir()
    fifo = here / name
    with Mount(store, mountpoint) as mount:
        os.mkfifo(fifo)
        pids = []
        try:
            for path in (f"area/open/session/.modama/{name}", "landing/area", "area/open"):
                if (pid := os.fork()) == 0:
                    with contextlib.suppress(OSError):
                        os.listdir(mount.root / path)
                    os._exit(0)
                pids.append(pid)
            deadline = time.monotonic() + 5
            while pids and time.monotonic() < deadline:
                pids = [pid for pid in pids if os.waitpid(pid, os.WNOHANG) == (0, 0)]
                time.sleep(0.02)
            assert pids == [], "it waits for who writes to the FIFO"
        finally:
            while pids:
                fd = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)
                time.sleep(0.1)
                os.close(fd)
                pids = [pid for pid in pids if os.waitpid(pid, os.WNOHANG) == (0, 0)]
            fifo.unlink()


def test_records_are_not_looked_for_elsewhere(store: Path, mountpoint: Path) -> None:
    elsewhere = store / "area/open/elsewhere"
    (elsewhere / "seals").mkdir(parents=True)
    (elsewhere / "history.jsonl").write_text(SECRET)
    (elsewhere / "seals/x.json").write_text(SECRET)
    owned(elsewhere, User(0, 0), 0o700)
    remove(store / "area/open/session/.modama")
    (store / "area/open/session/.modama").symlink_to(elsewhere)
    with Mount(store, mountpoint) as mount:
        assert as_user(STRANGER, traces, mount.root / "area/open/session/.modama") == []


# ---- the table -----------------------------------------------------------------------------------


@pytest.mark.parametrize("rest", [b"\x10", b"\0\0", b"\x05\0abcde"])
def test_a_spoilt_table_ends_nothing(store: Path, mountpoint: Path, rest: bytes) -> None:
    with Mount(store, mountpoint) as mount, mount.expected_in_log(LOST):
        shown = mount.root / "area/open/session/.modama"
        shown.stat()
        table = mount.runtime / "virtual.bin"
        whole = table.read_bytes()
        table.write_bytes(whole + rest)
        try:
            os.kill(mount.worker_pid(), signal.SIGKILL)
            time.sleep(1.5)
            assert "README.md" in os.listdir(shown)
            fd = os.open(mount.root / "area/open/session/raw/.modama", os.O_RDONLY)
            try:
                mount.kill_worker()
                assert "README.md" in os.listdir(fd)
            finally:
                os.close(fd)
        finally:
            if table.exists():
                table.write_bytes(whole)


def test_looking_for_what_is_not_there_costs_nothing_for_ever(
    store: Path, mountpoint: Path
) -> None:
    with Mount(store, mountpoint) as mount:
        places = ["landing", "views", "views/all", "area/open/session/.modama"]
        for place in places:
            (mount.root / place).stat()
        before = (mount.runtime / "virtual.bin").stat().st_size
        for number in range(500):
            for place in places:
                assert not (mount.root / place / f"nothing-{number}").exists()
        assert (mount.runtime / "virtual.bin").stat().st_size == before
