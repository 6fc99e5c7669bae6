"""The daemon dies at the worst moments of each change, and it is done exactly once.

``before``: the intent is written down, nothing is done. ``after``: it is done, and the result is
written down nowhere. The next worker gets the same request again and has to find out.
"""

from __future__ import annotations

import errno
import os
import signal
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.mounts import Mount, wait_until
from tests.support.targets import Workshop
from tests.support.trees import snapshot
from tests.support.users import ALICE, as_user
from tests.support.workloads import Run, Workload

WORKER_DIED = r"worker-died"
POINTS = ("before", "after")


class Change(NamedTuple):
    """One way to change a directory, and how to see that it was done once."""

    operation: str
    prepare: Callable[[Path], object]
    call: Callable[[Path], object]
    holds: Callable[[Path], bool]


def create(path: Path) -> None:
    """Create, write and close a new file."""
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o640)
    os.write(fd, b"content")
    assert os.pread(fd, 7, 0) == b"content"
    os.close(fd)


def nothing(_root: Path) -> None:
    """Needs no preparation."""


CHANGES = {
    "create": Change(
        "create",
        nothing,
        lambda root: create(root / "new"),
        lambda root: (
            (root / "new").read_bytes() == b"content"
            and stat.S_IMODE((root / "new").stat().st_mode) == 0o640
        ),
    ),
    "mkdir": Change(
        "mkdir",
        nothing,
        lambda root: (root / "new").mkdir(0o750),
        lambda root: (
            (root / "new").is_dir() and stat.S_IMODE((root / "new").stat().st_mode) == 0o750
        ),
    ),
    "mknod": Change(
        "mknod",
        nothing,
        lambda root: os.mkfifo(root / "new", 0o640),
        lambda root: (root / "new").is_fifo(),
    ),
    "symlink": Change(
        "symlink",
        nothing,
        lambda root: (root / "new").symlink_to("target"),
        lambda root: os.readlink(root / "new") == "target",
    ),
    "link": Change(
        "link",
        lambda root: (root / "old").write_text("content"),
        lambda root: os.link(root / "old", root / "new"),
        lambda root: (root / "new").samefile(root / "old") and (root / "old").stat().st_nlink == 2,
    ),
    "unlink": Change(
        "unlink",
        lambda root: (root / "old").write_text("content"),
        lambda root: (root / "old").unlink(),
        lambda root: not (root / "old").exists(),
    ),
    "unlink of one of two names": Change(
        "unlink",
        lambda root: ((root / "old").touch(), os.link(root / "old", root / "other")),
        lambda root: (root / "old").unlink(),
        lambda root: not (root / "old").exists() and (root / "other").stat().st_nlink == 1,
    ),
    "rmdir": Change(
        "rmdir",
        lambda root: (root / "old").mkdir(),
        lambda root: (root / "old").rmdir(),
        lambda root: not (root / "old").exists(),
    ),
    "rename": Change(
        "rename",
        lambda root: (root / "old").write_text("content"),
        lambda root: (root / "old").rename(root / "new"),
        lambda root: (root / "new").read_text() == "content" and not (root / "old").exists(),
    ),
    "rename over another": Change(
        "rename",
        lambda root: ((root / "old").write_text("content"), (root / "new").write_text("other")),
        lambda root: (root / "old").rename(root / "new"),
        lambda root: (root / "new").read_text() == "content" and not (root / "old").exists(),
    ),
    "rename of a directory to another one": Change(
        "rename",
        lambda root: ((root / "old" / "inner").mkdir(parents=True), (root / "parent").mkdir()),
        lambda root: (root / "old").rename(root / "parent" / "new"),
        lambda root: (root / "parent" / "new" / "inner").is_dir() and not (root / "old").exists(),
    ),
    "exchange": Change(
        "rename",
        lambda root: ((root / "old").write_text("one"), (root / "new").write_text("two")),
        lambda root: exchange(root / "old", root / "new"),
        lambda root: [(root / name).read_text() for name in ("old", "new")] == ["two", "one"],
    ),
    "setxattr": Change(
        "setxattr",
        lambda root: (root / "old").touch(),
        lambda root: os.setxattr(root / "old", "user.new", b"value", os.XATTR_CREATE),
        lambda root: os.getxattr(root / "old", "user.new") == b"value",
    ),
    "removexattr": Change(
        "removexattr",
        lambda root: ((root / "old").touch(), os.setxattr(root / "old", "user.old", b"value")),
        lambda root: os.removexattr(root / "old", "user.old"),
        lambda root: os.listxattr(root / "old") == [],
    ),
}


def exchange(one: Path, other: Path) -> None:
    """Swap two names."""
    from tests.support.syscalls import RENAME_EXCHANGE, renameat2

    renameat2(one, other, RENAME_EXCHANGE)


class Refusal(NamedTuple):
    """A change that has to fail, and that the daemon (not the kernel alone) has to refuse."""

    operation: str
    prepare: Callable[[Path], object]
    call: Callable[[Path], object]
    errno: int


REFUSALS = {
    "rmdir of a full directory": Refusal(
        "rmdir",
        lambda root: (root / "old" / "inner").mkdir(parents=True),
        lambda root: (root / "old").rmdir(),
        errno.ENOTEMPTY,
    ),
    "rename over a full directory": Refusal(
        "rename",
        lambda root: ((root / "old").mkdir(), (root / "new" / "inner").mkdir(parents=True)),
        lambda root: (root / "old").rename(root / "new"),
        errno.ENOTEMPTY,
    ),
    "setxattr of one that exists": Refusal(
        "setxattr",
        lambda root: ((root / "old").touch(), os.setxattr(root / "old", "user.old", b"value")),
        lambda root: os.setxattr(root / "old", "user.old", b"other", os.XATTR_CREATE),
        errno.EEXIST,
    ),
    "setxattr of one that is missing": Refusal(
        "setxattr",
        lambda root: (root / "old").touch(),
        lambda root: os.setxattr(root / "old", "user.old", b"other", os.XATTR_REPLACE),
        errno.ENODATA,
    ),
    "removexattr of one that is missing": Refusal(
        "removexattr",
        lambda root: (root / "old").touch(),
        lambda root: os.removexattr(root / "old", "user.old"),
        errno.ENODATA,
    ),
    "create of a name that exists": Refusal(
        "create",
        lambda root: (root / "new").touch(),
        lambda root: create(root / "new"),
        errno.EEXIST,
    ),
    "mkdir of a name that exists": Refusal(
        "mkdir",
        lambda root: (root / "new").mkdir(),
        lambda root: (root / "new").mkdir(),
        errno.EEXIST,
    ),
    "unlink of a missing name": Refusal(
        "unlink", nothing, lambda root: (root / "old").unlink(), errno.ENOENT
    ),
    "rename of a missing name": Refusal(
        "rename", nothing, lambda root: (root / "old").rename(root / "new"), errno.ENOENT
    ),
}


@pytest.fixture
def mount(
    workshop: Workshop, new_name: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Mount]:
    """A mount of a new store whose daemon minds the failpoint."""
    monkeypatch.setenv("MODAMAFS_FAILPOINTS", "1")
    store = workshop.image("ext4").root / f"store-{new_name()}"
    store.mkdir()
    with (
        Mount(store, workshop.mountpoint(store.name)) as mount,
        mount.expected_in_log(WORKER_DIED),
    ):
        yield mount


def set_failpoint(mount: Mount, operation: str, point: str) -> Path:
    """The next operation of this kind kills the worker."""
    failpoint = mount.runtime / "failpoint"
    (mount.runtime / "failpoint.new").write_text(f"{operation}:{point}")
    (mount.runtime / "failpoint.new").rename(failpoint)
    return failpoint


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_done_exactly_once(mount: Mount, name: str) -> None:
    change = CHANGES[name]
    for point in POINTS:
        root = mount.root / point
        root.mkdir(mode=0o755)
        change.prepare(root)
        restarts = mount.status()["restarts"]
        failpoint = set_failpoint(mount, change.operation, point)
        change.call(root)
        assert not failpoint.exists(), "the worker was not killed there"
        wait_until(
            lambda before=restarts: mount.status()["restarts"] == before + 1, "another worker"
        )
        assert change.holds(root)
        assert change.holds(mount.store / point)
        names = sorted(path.name for path in (mount.store / point).iterdir())
        assert names == sorted(path.name for path in root.iterdir())


def test_what_was_done_by_a_user_is_the_users(mount: Mount) -> None:
    """Done again by the next worker with the same credentials."""
    mount.root.chmod(0o777)
    for point in POINTS:
        for operation, call in [
            ("create", lambda root: create(root)),
            ("mkdir", lambda root: root.mkdir()),
            ("symlink", lambda root: root.symlink_to("x")),
        ]:
            path = mount.root / f"{operation} {point}"
            failpoint = set_failpoint(mount, operation, point)
            as_user(ALICE, call, path)
            assert not failpoint.exists()
            assert (path.lstat().st_uid, path.lstat().st_gid) == (ALICE.uid, ALICE.gid)


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_keeps_its_errno(mount: Mount, name: str) -> None:
    refusal = REFUSALS[name]
    for point in POINTS:
        root = mount.root / point
        root.mkdir()
        refusal.prepare(root)
        before = snapshot(mount.store / point)
        set_failpoint(mount, refusal.operation, point)
        with pytest.raises(OSError) as refused:
            refusal.call(root)
        assert refused.value.errno == refusal.errno
        assert snapshot(mount.store / point) == before
        (mount.runtime / "failpoint").unlink(missing_ok=True)


def call_and_say_how_it_ended(_run: Run, call: Callable[[Path], object], root: Path) -> int:
    """0 or the errno."""
    try:
        call(root)
    except OSError as error:
        return error.errno or -1
    return 0


@pytest.mark.parametrize(
    ("operation", "call", "meanwhile", "expected"),
    [
        ("create", lambda r: create(r / "x"), lambda s: (s / "x").touch(), errno.EEXIST),
        ("mkdir", lambda r: (r / "x").mkdir(), lambda s: (s / "x").mkdir(), errno.EEXIST),
        (
            "symlink",
            lambda r: (r / "x").symlink_to("mine"),
            lambda s: (s / "x").symlink_to("theirs"),
            errno.EEXIST,
        ),
        ("mknod", lambda r: os.mkfifo(r / "x"), lambda s: os.mkfifo(s / "x"), errno.EEXIST),
        (
            "rename",
            lambda r: (r / "old").rename(r / "x"),
            lambda s: (s / "old").rename(s / "elsewhere"),
            errno.ENOENT,
        ),
    ],
)
def test_what_somebody_did_on_the_store_meanwhile_is_not_claimed(
    mount: Mount,
    operation: str,
    call: Callable[[Path], object],
    meanwhile: Callable[[Path], object],
    expected: int,
) -> None:
    """While no worker lives, somebody makes the change on the store: the caller has not done it."""
    (mount.root / "old").touch()
    status = mount.status()
    worker, supervisor = status["worker_pid"], status["supervisor_pid"]
    set_failpoint(mount, operation, "before")
    os.kill(supervisor, signal.SIGSTOP)
    try:
        caller = Workload(call_and_say_how_it_ended, call, mount.root)
        wait_until(lambda: is_dead(worker), "the worker to die")
        meanwhile(mount.store)
        before = snapshot(mount.store)
    finally:
        os.kill(supervisor, signal.SIGCONT)
    assert caller.finish() == expected
    assert snapshot(mount.store) == before


def is_dead(pid: int) -> bool:
    """Whether the process has ended; its parent may not have asked how."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return True
    return fields[0] in "ZX"
