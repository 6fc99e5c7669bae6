"""What concerns the store and happens elsewhere, or where somebody holds a directory.

The store is a directory of a file system that holds other things as well.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.mounted.test_watch import LONG, sync, wait_until_quiet, watcher_pid
from tests.support.mounts import Mount, modamafs, wait_until
from tests.support.targets import Workshop
from tests.support.trees import remove


@pytest.fixture
def elsewhere(workshop: Workshop, new_name: Callable[[], str]) -> Iterator[Path]:
    """A directory beside the store, on the same file system."""
    top = workshop.image("ext4").root / f"beside-{new_name()}"
    (top / "elsewhere").mkdir(parents=True)
    yield top / "elsewhere"
    remove(top)


@pytest.fixture
def mount(workshop: Workshop, elsewhere: Path) -> Iterator[Mount]:
    store = elsewhere.parent / "above" / "store"
    (store / "d").mkdir(parents=True)
    with Mount(store, workshop.mountpoint(elsewhere.parent.name), *LONG) as mount:
        wait_until_quiet(mount)
        yield mount


def assert_index_is_right(mount: Mount) -> None:
    sync(mount)
    done = modamafs("index", "check", mount.root)
    assert done.returncode == 0, done.stdout


def settle(*paths: Path) -> None:
    """The kernel was told of all that has happened, twice, and remembers these from then on."""
    time.sleep(2.5)
    for path in paths:
        path.stat()


def test_a_file_is_changed_through_its_name_elsewhere(mount: Mount, elsewhere: Path) -> None:
    seen = mount.root / "d" / "file"
    (mount.store / "d" / "file").write_bytes(b"one")
    other = elsewhere / "file"
    other.hardlink_to(mount.store / "d" / "file")
    wait_until(lambda: seen.stat().st_nlink == 2, "the link")
    settle(seen)
    for number, size in enumerate((5, 7)):
        with other.open("ab") as file:
            file.write(b"22")
        wait_until(lambda size=size: seen.stat().st_size == size, "the size")  # type: ignore[misc]
        other.chmod(0o600 + number)
        wait_until(lambda n=number: seen.stat().st_mode & 0o777 == 0o600 + n, "the mode")  # type: ignore[misc]
    other.unlink()
    wait_until(lambda: seen.stat().st_nlink == 1, "the link's end")
    assert_index_is_right(mount)


def test_a_directory_comes_back_changed(
    workshop: Workshop, elsewhere: Path, new_name: Callable[[], str]
) -> None:
    store = elsewhere.parent / "above" / "store"
    (store / "d/moved/below").mkdir(parents=True)
    for name in ("kept", "gone", "changed"):
        (store / "d/moved/below" / name).write_bytes(b"1")
    with Mount(store, workshop.mountpoint(new_name()), *LONG) as mount:
        wait_until_quiet(mount)
        seen = mount.root / "d/moved/below"

        def look() -> tuple[dict[str, int], int, list[bool]]:
            sizes = {name: (seen / name).stat().st_size for name in os.listdir(seen)}
            return (
                sizes,
                seen.stat().st_mode & 0o777,
                [(seen / n).exists() for n in ("gone", "new")],
            )

        assert look() == ({"kept": 1, "gone": 1, "changed": 1}, 0o755, [True, False])
        settle()
        (store / "d/moved").rename(elsewhere / "moved")
        settle()
        (elsewhere / "moved/below/gone").unlink()
        (elsewhere / "moved/below/new").write_bytes(b"22")
        (elsewhere / "moved/below/changed").write_bytes(b"333")
        (elsewhere / "moved/below").chmod(0o711)
        settle()
        (elsewhere / "moved").rename(store / "d/moved")
        right = ({"kept": 1, "new": 2, "changed": 3}, 0o711, [False, True])

        def looks_right() -> bool:
            with contextlib.suppress(FileNotFoundError):  # listed before, and asked for after
                return seen.exists() and look() == right
            return False

        wait_until(looks_right, "what was done to it elsewhere")
        assert_index_is_right(mount)


def test_a_directory_comes_in_while_events_are_lost(mount: Mount, elsewhere: Path) -> None:
    most = int(Path("/proc/sys/fs/fanotify/max_queued_events").read_text())
    moved = elsewhere / "moved"
    moved.mkdir()
    (moved / "file").write_bytes(b"1")
    (moved / "file").write_bytes(b"1")  # the watcher has met the directory, and knows where it is
    sync(mount)
    pid = watcher_pid(mount)
    os.kill(pid, signal.SIGSTOP)
    try:
        for number in range(most + 10):
            os.mknod(elsewhere / str(number))
        moved.rename(mount.store / "d/moved")
    finally:
        os.kill(pid, signal.SIGCONT)
    seen = mount.root / "d/moved/file"
    wait_until(seen.exists, "the directory")
    sync(mount)
    assert seen.stat().st_size == 1
    (mount.store / "d/moved/file").write_bytes(b"22")
    wait_until(lambda: seen.stat().st_size == 2, "a change in it")
    assert_index_is_right(mount)


def test_a_directory_above_the_store_is_renamed(mount: Mount) -> None:
    above = mount.store.parent
    seen = mount.root / "d/file"
    (mount.store / "d/file").write_bytes(b"1")
    wait_until(seen.exists, "the file")
    settle(seen)
    away = above.parent / "renamed"
    above.rename(away)
    try:
        (away / "store/d/file").write_bytes(b"22")
        wait_until(lambda: seen.stat().st_size == 2, "a change meanwhile")
        settle(seen)
    finally:
        away.rename(above)
    (mount.store / "d/file").write_bytes(b"333")
    wait_until(lambda: seen.stat().st_size == 3, "a change afterwards")
    assert_index_is_right(mount)


HOLDER = """
import ctypes, fcntl, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
uffd = libc.syscall(323, 0)  # userfaultfd(2): who touches the memory waits for us
assert uffd >= 0, os.strerror(ctypes.get_errno())
fcntl.ioctl(uffd, 0xC018AA3F, bytearray(struct.pack("=QQQ", 0xAA, 0, 0)))
libc.mmap.restype = ctypes.c_void_p
memory = libc.mmap(None, ctypes.c_size_t(4096), 3, 0x22, -1, ctypes.c_long(0))
fcntl.ioctl(uffd, 0xC020AA00, bytearray(struct.pack("=QQQQ", memory, 4096, 1, 0)))
fd = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECTORY)
print("ready", flush=True)
libc.syscall(217, fd, ctypes.c_void_p(memory), 4096)  # getdents64(2)
"""


def test_who_holds_a_directory_keeps_nobody_else_waiting(mount: Mount) -> None:
    """He lists it into memory that is not there, and so has its lock for as long as he likes."""
    for name in ("held", "free"):
        (mount.store / "d" / name).mkdir()
        (mount.store / "d" / name / "file").write_bytes(b"1")
    held, free = mount.root / "d/held", mount.root / "d/free"
    wait_until(lambda: (held / "file").exists() and (free / "file").exists(), "the files")
    settle(held / "file", free / "file")
    assert not (free / "new").exists()
    inside = os.open(held / "file", os.O_PATH)
    with subprocess.Popen([sys.executable, "-c", HOLDER, held], stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout
            assert holder.stdout.readline() == b"ready\n"
            stack = Path(f"/proc/{holder.pid}/stack")
            wait_until(lambda: "userfault" in stack.read_text(), "the directory to be held")
            for number in range(20):
                (mount.store / "d/held" / str(number)).touch()
            (mount.store / "d/free/file").write_bytes(b"22")
            wait_until(lambda: (free / "file").stat().st_size == 2, "a change elsewhere")
            (mount.store / "d/free/new").touch()
            wait_until((free / "new").exists, "a new file elsewhere")
            os.chmod(mount.store / "d/held/file", 0o600)
            wait_until(lambda: os.fstat(inside).st_mode & 0o777 == 0o600, "a change in it")
            assert mount.status()["watching"]
            assert "directory-held" in (mount.runtime / "daemon.log").read_text()
        finally:
            holder.kill()
        os.close(inside)
        wait_until(lambda: len(os.listdir(held)) == 21, "what was made in it")
        assert_index_is_right(mount)
