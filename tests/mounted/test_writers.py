"""Who has a file open for writing: real processes, through a mount and beside it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from modamafs.sealing.writers import Writer, describe, find_writers, is_open_for_writing
from modamafs.store.backing import Store
from tests.support.janitor import mounts_below
from tests.support.mounts import Mount, modamafs, wait_until
from tests.support.syscalls import force_unmount, mount
from tests.support.targets import Workshop
from tests.support.users import ALICE, as_user, in_child

NOBODY = 65534
ODD_NAME = b"new\nline \xff.h5"

HOLDER = """
import ctypes, mmap, os, sys, threading
how, uid, path = sys.argv[1], int(sys.argv[2]), os.fsencode(sys.argv[3])
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + 3 * [ctypes.c_int] + [ctypes.c_long]
os.setuid(uid)
flags = {"reading": os.O_RDONLY, "appending": os.O_WRONLY | os.O_APPEND}.get(how, os.O_RDWR)
fd = os.open(path, flags)
map_shared = {
    "mapping": mmap.PROT_READ | mmap.PROT_WRITE,
    "mapping read-only": mmap.PROT_READ,
    "mapping privately": mmap.PROT_READ,
}
if how in map_shared:
    kind = mmap.MAP_PRIVATE if how == "mapping privately" else mmap.MAP_SHARED
    assert libc.mmap(None, 4096, map_shared[how], kind, fd, 0) != ctypes.c_void_p(-1).value
    os.close(fd)
if how == "holding it twice":
    os.dup(fd)
def wait():
    print(os.getpid(), flush=True)
    sys.stdin.read()
    os._exit(0)
if how == "in a thread":
    threading.Thread(target=wait).start()
    libc.syscall(60, 0)  # exit(2): this thread alone
wait()
"""


class Holders(contextlib.ExitStack):
    """Processes that hold files open, ended at the end of the block."""

    def start(
        self,
        path: bytes | Path,
        how: str = "writing",
        *,
        uid: int = 0,
        within: tuple[str | Path, ...] = (),
        arguments: tuple[str, ...] = (),
    ) -> int:
        """Start one and return its process number when it holds the file."""
        interpreter = (sys.executable, "-c", HOLDER)
        process = subprocess.Popen(
            [*within, *interpreter, how, str(uid), os.fsencode(path), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.callback(process.communicate)
        assert process.stdout
        return int(process.stdout.readline())


@pytest.fixture
def holders() -> Iterator[Holders]:
    with Holders() as holders:
        yield holders


def make(directory: Path, *names: bytes) -> dict[int, bytes]:
    """Files that everybody may write to, by inode number."""
    inodes = {}
    for name in names:
        path = os.path.join(os.fsencode(directory), name)
        with open(path, "wb") as file:
            file.write(b"content" * 1000)
        os.chmod(path, 0o666)
        inodes[os.stat(path).st_ino] = name
    return inodes


def is_busy(path: Path) -> bool:
    fd = os.open(path, os.O_PATH)
    try:
        return is_open_for_writing(fd)
    finally:
        os.close(fd)


def pids(found: list[Writer]) -> dict[bytes, list[int]]:
    by_path: dict[bytes, list[int]] = {}
    for writer in found:
        by_path.setdefault(writer.path, []).append(writer.pid)
    return by_path


WRITERS = [
    "writing",
    "appending",
    "holding it twice",
    "mapping",
    "mapping read-only",
    "mapping privately",
    "in a thread",
]


def test_whoever_writes_is_found(mount: Mount, holders: Holders) -> None:
    names = [how.encode() for how in [*WRITERS, "reading", "on the store"]]
    make(mount.root, *names, ODD_NAME)
    root = os.fsencode(mount.root)
    inodes = {os.stat(os.path.join(mount.store, os.fsdecode(n))).st_ino: n for n in names}
    inodes[os.stat(os.fsencode(mount.store) + b"/" + ODD_NAME).st_ino] = ODD_NAME
    expected = {how.encode(): [holders.start(mount.root / how, how)] for how in WRITERS}
    expected[b"on the store"] = [holders.start(mount.store / "on the store")]
    expected[ODD_NAME] = [
        holders.start(root + b"/" + ODD_NAME),
        holders.start(root + b"/" + ODD_NAME, "mapping"),
    ]
    holders.start(mount.root / "reading", "reading")

    with Store(mount.store) as store:
        assert pids(find_writers(store, inodes)) == {k: sorted(v) for k, v in expected.items()}
    for path in inodes.values():
        assert is_busy(mount.store / os.fsdecode(path)) is (path != b"reading"), path
    holders.close()
    with Store(mount.store) as store:  # the mount lets go of a file a moment after it was closed
        wait_until(lambda: find_writers(store, inodes) == [], "nobody writes any more")


def test_on_the_store_without_a_mount(store: Path, holders: Holders) -> None:
    inodes = make(store, *(how.encode() for how in [*WRITERS, "reading"]))
    expected = {how.encode(): [holders.start(store / how, how)] for how in WRITERS}
    holders.start(store / "reading", "reading")
    with Store(store) as opened:
        assert pids(find_writers(opened, inodes)) == expected
    for path in inodes.values():
        assert is_busy(store / os.fsdecode(path)) is (path != b"reading"), path


def test_the_user_and_the_command(mount: Mount, holders: Holders) -> None:
    names = {b"nobody": NOBODY, b"no name": ALICE.uid}
    make(mount.root, *names)
    mount.root.chmod(0o755)
    inodes = {(mount.store / os.fsdecode(name)).stat().st_ino: name for name in names}
    for name, uid in names.items():
        holders.start(mount.root / os.fsdecode(name), uid=uid)
    with Store(mount.store) as store:
        found = {writer.path: writer for writer in find_writers(store, inodes)}
    assert {path: writer.user for path, writer in found.items()} == {
        b"nobody": "nobody",
        b"no name": str(ALICE.uid),
    }
    command = found[b"nobody"].command
    assert command.startswith(rf"{Path(sys.executable).name} -c \nimport ctypes")
    assert len(command) == 80
    assert command.isprintable()
    assert describe([b"nobody"], list(found.values())).endswith(", nobody)")


def test_the_same_numbers_on_another_file_system_are_nobody(
    workshop: Workshop, new_name: Callable[[], str], holders: Holders
) -> None:
    """Inode numbers are the same on every new file system; devices are not."""
    store, other = (workshop.image(fstype).root / new_name() for fstype in ("ext4", "xfs"))
    store.mkdir()
    other.mkdir()
    (number,) = make(other, b"file")
    holders.start(other / "file")
    holders.start(other / "file", "mapping")
    with Store(store) as opened:
        assert find_writers(opened, {number: b"file"}) == []


def test_a_mount_that_is_detached_but_in_use(mount: Mount, holders: Holders) -> None:
    (mount.root / "raw").mkdir()
    names = [b"raw/file", b"raw/" + ODD_NAME]
    make(mount.root, *names)
    inodes = {os.stat(os.path.join(os.fsencode(mount.store), n)).st_ino: n for n in names}
    expected = {
        name: sorted(
            holders.start(os.path.join(os.fsencode(mount.root), name), how)
            for how in ("writing", "mapping")
        )
        for name in names
    }
    worker = Path(f"/proc/{mount.worker_pid()}")
    # With the last file the connection ends, and the answer to its release may come too late.
    with mount.expected_in_log(r"fuse_release\(\): fuse_reply_\* failed with No such file"):
        assert modamafs("umount", "--lazy", mount.root).returncode == 0
        mount.is_unmounted = True
        with Store(mount.store) as store:
            assert pids(find_writers(store, inodes)) == expected
        holders.close()
        wait_until(lambda: not worker.exists(), "the end of the worker")


def test_in_another_mount_namespace(mount: Mount, holders: Holders, tmp_path: Path) -> None:
    """A mount of the mount, and one of the store, that are to be seen from nowhere else."""
    names = [b"by the mount", b"on the store"]
    make(mount.root, *names)
    inodes = {(mount.store / os.fsdecode(name)).stat().st_ino: name for name in names}
    expected = {}
    for name, directory in zip(names, (mount.root, mount.store), strict=True):
        bind = 'mount --bind "$0" "$1" && shift && exec "$@"'
        there = ("unshare", "--mount", "sh", "-c", bind, directory, tmp_path)
        path = tmp_path / os.fsdecode(name)
        expected[name] = sorted(
            holders.start(path, how, within=there) for how in ("writing", "mapping")
        )
    with Store(mount.store) as store:
        assert pids(find_writers(store, inodes)) == expected


def test_a_mount_that_is_made_in_another_mount_namespace(
    store: Path, holders: Holders, workshop: Workshop
) -> None:
    """By its device, as the name that it is open by is not the one that is known."""
    inodes = make(store, b"file")
    (store / "link").hardlink_to(store / "file")
    mountpoint = workshop.mountpoint(f"{store.name}-elsewhere")
    mountpoint.mkdir()
    script = '"$1" -m modamafs_cli.main mount "$2" "$3" && shift 3 && "$@"; umount -l "$0"'
    there = ("unshare", "--mount", "sh", "-c", script, mountpoint)
    there += (sys.executable, store, mountpoint)
    writers = [holders.start(mountpoint / "link", "mapping", within=there)]
    assert not mountpoint.is_mount()
    with Store(store) as opened:
        assert pids(find_writers(opened, inodes)) == {b"file": writers}


def test_a_daemon_is_named_only_where_nobody_else_is(store: Path, holders: Holders) -> None:
    inodes = make(store, b"file", b"other")
    daemon = holders.start(store / "file", arguments=("modamafs.worker",))
    with Store(store) as opened:
        assert pids(find_writers(opened, inodes)) == {b"file": [daemon]}
        client = holders.start(store / "file")
        assert pids(find_writers(opened, inodes)) == {b"file": [client]}


def test_this_process_does_not_name_itself(store: Path) -> None:
    inodes = make(store, b"file")
    with open(store / "file", "r+b"), Store(store) as opened:
        assert is_busy(store / "file")
        assert find_writers(opened, inodes) == []


def test_what_may_not_be_looked_at_is_left_out(store: Path, holders: Holders) -> None:
    inodes = make(store, b"file", b"own")
    holders.start(store / "file")
    own = holders.start(store / "own", uid=ALICE.uid)

    def look() -> list[Writer]:
        with Store(store) as opened:
            return find_writers(opened, inodes)

    found = as_user(ALICE, look)
    assert pids(found) in ({}, {b"own": [own]})  # after setuid(2) a process is only root's to see
    assert "can't be seen" in describe([b"file"], found)


def test_a_mount_that_hangs_does_not_matter(store: Path, holders: Holders, tmp_path: Path) -> None:
    inodes = make(store, b"file")
    fd = os.open("/dev/fuse", os.O_RDWR)
    try:
        mount("hangs", tmp_path, "fuse.modamafs", 0, f"fd={fd},rootmode=40000,user_id=0,group_id=0")
        waiting = subprocess.Popen(
            [sys.executable, "-c", f"print(flush=True); import os; os.stat({str(tmp_path)!r})"],
            stdout=subprocess.PIPE,
            cwd="/",
        )
        assert waiting.stdout
        waiting.stdout.readline()
        writer = holders.start(store / "file")
        with Store(store) as opened:
            assert pids(find_writers(opened, inodes)) == {b"file": [writer]}
        force_unmount(tmp_path)
        waiting.wait()
        waiting.stdout.close()
    finally:
        os.close(fd)
        for point, _ in mounts_below(tmp_path.parent):
            force_unmount(point)


def test_processes_that_come_and_go(store: Path, holders: Holders) -> None:
    inodes = make(store, b"file")
    writer = holders.start(store / "file")
    stop = threading.Event()

    def come_and_go() -> None:
        while not stop.is_set():
            subprocess.run(["sh", "-c", f"exec 3>>{store}/file"], check=True)

    busy = threading.Thread(target=come_and_go)
    busy.start()
    try:
        with Store(store) as opened:
            for _ in range(50):
                assert writer in pids(find_writers(opened, inodes))[b"file"]
    finally:
        stop.set()
        busy.join()


def test_asking_is_survived_when_somebody_opens_it_meanwhile(store: Path) -> None:
    """The kernel tells the lease's holder with a signal that is deadly by default."""
    make(store, b"file")

    def ask_and_open() -> int:
        stop = threading.Event()

        def open_it() -> None:
            while not stop.is_set():
                os.close(os.open(store / "file", os.O_WRONLY))

        opener = threading.Thread(target=open_it)
        opener.start()
        fd = os.open(store / "file", os.O_RDONLY)
        asked = sum(is_open_for_writing(fd) in (True, False) for _ in range(20_000))
        stop.set()
        opener.join()
        return asked

    assert in_child(ask_and_open) == 20_000


def test_what_has_no_lease(store: Path) -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        is_busy(store)
