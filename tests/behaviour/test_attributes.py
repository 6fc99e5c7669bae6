"""Modes, owners, times, and what stat and statfs say."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
from pathlib import Path

import pytest

from tests.support.mounts import wait_until
from tests.support.syscalls import UTIME_NOW, UTIME_OMIT, utimensat
from tests.support.targets import Target
from tests.support.users import ALICE, BOB, ROOT, STRANGER, TEAM, as_user

SECOND = 1_000_000_000


def mode(path: Path) -> int:
    """The permission bits, set-id bits and sticky bit."""
    return stat.S_IMODE(path.lstat().st_mode)


def owner(path: Path) -> tuple[int, int]:
    """User and group."""
    status = path.lstat()
    return status.st_uid, status.st_gid


# chmod


@pytest.mark.parametrize("bits", [0, 0o600, 0o777, 0o4755, 0o2755, 0o1777, 0o7777])
def test_chmod_sets_all_bits(target: Target, bits: int) -> None:
    (target.root / "file").touch()
    (target.root / "directory").mkdir()
    for name in ("file", "directory"):
        (target.root / name).chmod(bits)
        assert mode(target.root / name) == bits
        assert mode(target.store / name) == bits


def test_only_the_owner_changes_the_mode(root: Path) -> None:
    (root / "file").touch(0o666)
    (root / "file").chmod(0o666)
    os.chown(root / "file", ALICE.uid, ALICE.gid)
    with pytest.raises(PermissionError):
        as_user(BOB, (root / "file").chmod, 0o777)
    as_user(ALICE, (root / "file").chmod, 0o640)
    assert mode(root / "file") == 0o640


def test_the_set_group_id_bit_is_for_members_of_the_group(root: Path) -> None:
    (root / "file").touch()
    os.chown(root / "file", STRANGER.uid, TEAM)
    as_user(STRANGER, (root / "file").chmod, 0o2755)
    assert mode(root / "file") == 0o755
    os.chown(root / "file", ALICE.uid, TEAM)
    as_user(ALICE, (root / "file").chmod, 0o2755)
    assert mode(root / "file") == 0o2755


def test_chmod_of_an_open_file(root: Path) -> None:
    fd = os.open(root / "file", os.O_CREAT | os.O_RDWR, 0o644)
    os.fchmod(fd, 0o400)
    assert os.fstat(fd).st_mode & 0o777 == 0o400
    assert mode(root / "file") == 0o400
    os.close(fd)


# chown


def test_root_gives_files_away(target: Target) -> None:
    path = target.root / "file"
    path.touch()
    for uid, gid, expected in [
        (1234, 4321, (1234, 4321)),
        (-1, 5, (1234, 5)),
        (6, -1, (6, 5)),
        (-1, -1, (6, 5)),
        (3_000_000_000, 4_000_000_000, (3_000_000_000, 4_000_000_000)),
    ]:
        os.chown(path, uid, gid)
        assert owner(path) == expected
        assert owner(target.on_store(path)) == expected


def test_the_owner_gives_the_file_to_a_group_of_his_own_only(root: Path) -> None:
    (root / "file").touch()
    os.chown(root / "file", ALICE.uid, ALICE.gid)
    as_user(ALICE, os.chown, root / "file", -1, TEAM)
    assert owner(root / "file") == (ALICE.uid, TEAM)
    for uid, gid in [(-1, STRANGER.gid), (BOB.uid, -1), (0, 0)]:
        with pytest.raises(PermissionError):
            as_user(ALICE, os.chown, root / "file", uid, gid)
    assert owner(root / "file") == (ALICE.uid, TEAM)


# the set-user-id and set-group-id bits


@pytest.mark.parametrize(
    ("before", "after"),
    [(0o6777, 0o777), (0o4777, 0o777), (0o2777, 0o777)],
)
def test_a_write_by_an_ordinary_user_takes_the_set_id_bits(
    target: Target, before: int, after: int
) -> None:
    path = target.root / "program"
    path.write_bytes(b"#!/bin/true")
    path.chmod(before)

    def append() -> None:
        fd = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.write(fd, b"\n")
        os.close(fd)

    as_user(ALICE, append)
    assert mode(path) == after
    assert mode(target.on_store(path)) == after


def test_truncate_by_an_ordinary_user_takes_the_set_id_bits(target: Target) -> None:
    def open_and_truncate() -> None:
        os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))

    for path, call in [
        (target.root / "a", lambda: os.truncate(target.root / "a", 2)),
        (target.root / "b", open_and_truncate),
    ]:
        path.write_bytes(b"content")
        path.chmod(0o6777)
        as_user(ALICE, call)
        assert mode(path) == 0o777
        assert mode(target.on_store(path)) == 0o777


def test_a_write_by_root_keeps_the_set_id_bits(root: Path) -> None:
    (root / "program").write_bytes(b"old")
    (root / "program").chmod(0o6755)
    fd = os.open(root / "program", os.O_WRONLY)
    os.write(fd, b"new")
    os.close(fd)
    assert mode(root / "program") == 0o6755


def test_chown_takes_the_set_id_bits(root: Path) -> None:
    (root / "program").touch()
    (root / "program").chmod(0o6755)
    os.chown(root / "program", ALICE.uid, ALICE.gid)
    assert mode(root / "program") == 0o755
    (root / "program").chmod(0o6755)
    as_user(ALICE, os.chown, root / "program", -1, TEAM)
    assert mode(root / "program") == 0o755


def test_chown_keeps_the_set_group_id_bit_of_directories(root: Path) -> None:
    (root / "directory").mkdir()
    (root / "directory").chmod(0o2775)
    os.chown(root / "directory", ALICE.uid, TEAM)
    assert mode(root / "directory") == 0o2775


def test_a_write_takes_file_capabilities(target: Target) -> None:
    """A program that was changed must not keep the privileges of the old one."""
    path = target.root / "program"
    path.write_bytes(b"old")
    path.chmod(0o777)
    capability = bytes.fromhex("0100000200040000000000000000000000000000")
    os.setxattr(path, "security.capability", capability)
    assert "security.capability" in os.listxattr(path)

    def overwrite() -> None:
        fd = os.open(path, os.O_WRONLY)
        os.write(fd, b"new")
        os.close(fd)

    as_user(ALICE, overwrite)
    assert "security.capability" not in os.listxattr(path)
    assert "security.capability" not in os.listxattr(target.on_store(path))


# times


def test_times_are_kept_to_the_nanosecond(target: Target) -> None:
    path = target.root / "file"
    path.touch()
    for atime, mtime in [
        (1_111_111_111_111_111_111, 1_222_222_222_222_222_222),
        (0, 1),
        (2_000_000_000 * SECOND + 999_999_999, 4_000_000_000 * SECOND + 7),
        (-1_000_000_000, -500_000_000 * SECOND),
        (10_413_792_000 * SECOND + 5, 12_000_000_000 * SECOND + 7),  # more than 64 bits can say
    ]:
        os.utime(path, ns=(atime, mtime))
        for seen in (path, target.on_store(path)):
            assert (seen.stat().st_atime_ns, seen.stat().st_mtime_ns) == (atime, mtime)


def test_utime_omit_and_now(root: Path) -> None:
    path = root / "file"
    path.touch()
    os.utime(path, ns=(SECOND, 2 * SECOND))
    utimensat(path, (5, 6), (0, UTIME_OMIT))
    assert (path.stat().st_atime_ns, path.stat().st_mtime_ns) == (5 * SECOND + 6, 2 * SECOND)
    utimensat(path, (0, UTIME_OMIT), (7, 8))
    assert (path.stat().st_atime_ns, path.stat().st_mtime_ns) == (5 * SECOND + 6, 7 * SECOND + 8)
    utimensat(path, (0, UTIME_OMIT), (0, UTIME_NOW))
    assert path.stat().st_atime_ns == 5 * SECOND + 6
    assert abs(path.stat().st_mtime_ns - path.stat().st_ctime_ns) < SECOND


def test_who_may_set_times(root: Path) -> None:
    path = root / "file"
    path.touch()
    path.chmod(0o666)
    as_user(BOB, os.utime, path)  # to now: whoever may write
    with pytest.raises(PermissionError):
        as_user(BOB, os.utime, path, (1, 1))
    os.chown(path, BOB.uid, BOB.gid)
    path.chmod(0)
    as_user(BOB, os.utime, path, (1, 1))  # to anything: the owner
    assert path.stat().st_mtime == 1
    with pytest.raises(PermissionError):
        as_user(ALICE, os.utime, path)


def test_every_change_moves_ctime(root: Path) -> None:
    path = root / "file"
    path.touch()
    changes = {
        "chmod": lambda: path.chmod(0o600),
        "chown": lambda: os.chown(path, 1, 1),
        "utime": lambda: os.utime(path, (1, 1)),
        "link": lambda: os.link(path, root / "link"),
        "unlink": lambda: (root / "link").unlink(),
        "setxattr": lambda: os.setxattr(path, "user.a", b"1"),
        "removexattr": lambda: os.removexattr(path, "user.a"),
        "write": lambda: path.write_bytes(b"content"),
        "truncate": lambda: os.truncate(path, 2),
        "rename": lambda: path.rename(path),
    }
    del changes["rename"]  # onto itself: nothing changes
    for name, change in changes.items():
        before = path.stat().st_ctime_ns
        wait_until_the_clock_ticks(root)
        change()
        assert path.stat().st_ctime_ns > before, name


def test_changes_of_entries_move_the_times_of_their_directory(root: Path) -> None:
    directory = root / "directory"
    directory.mkdir()
    for change in (
        lambda: (directory / "a").touch(),
        lambda: (directory / "a").rename(directory / "b"),
        lambda: os.link(directory / "b", directory / "c"),
        lambda: (directory / "b").unlink(),
        lambda: (directory / "d").mkdir(),
        lambda: (directory / "d").rmdir(),
        lambda: (directory / "e").symlink_to("x"),
    ):
        before = directory.stat()
        wait_until_the_clock_ticks(root)
        change()
        after = directory.stat()
        assert after.st_mtime_ns > before.st_mtime_ns
        assert after.st_ctime_ns > before.st_ctime_ns


def test_a_write_moves_mtime_and_a_chmod_does_not(root: Path) -> None:
    path = root / "file"
    path.write_bytes(b"content")
    os.utime(path, (1, 1))
    path.chmod(0o600)
    assert path.stat().st_mtime == 1
    fd = os.open(path, os.O_WRONLY)
    os.write(fd, b"x")
    assert path.stat().st_mtime > 1
    os.close(fd)
    assert path.stat().st_mtime > 1


def wait_until_the_clock_ticks(directory: Path) -> None:
    """Until a file made now gets another time than a file made before."""
    first = directory / "tick"
    first.touch()
    before = first.stat().st_mtime_ns

    def later() -> bool:
        os.utime(first)
        return first.stat().st_mtime_ns > before

    wait_until(later, "a later time stamp")
    first.unlink()


# what stat and statfs say


def test_stat_says_what_the_store_says(target: Target) -> None:
    root = target.root
    (root / "file").write_bytes(b"x" * 12345)
    (root / "empty").touch(0o600)
    (root / "directory" / "inner").mkdir(parents=True)
    (root / "link").symlink_to("file")
    (root / "hard").hardlink_to(root / "file")
    os.mkfifo(root / "fifo")
    os.mknod(root / "device", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.chown(root / "empty", 1234, 4321)
    os.sync()
    for path in [root, *root.rglob("*")]:
        seen, stored = path.lstat(), target.on_store(path).lstat()
        for field in (
            "st_ino",
            "st_mode",
            "st_nlink",
            "st_uid",
            "st_gid",
            "st_size",
            "st_blocks",
            "st_rdev",
            "st_mtime_ns",
            "st_ctime_ns",
        ):
            assert getattr(seen, field) == getattr(stored, field), (path, field)


def test_statfs_says_what_the_store_says(target: Target) -> None:
    os.sync()
    seen, stored = os.statvfs(target.root), os.statvfs(target.store)
    for field in ("f_frsize", "f_blocks", "f_files", "f_namemax"):
        assert getattr(seen, field) == getattr(stored, field), field
    assert abs(seen.f_bfree - stored.f_bfree) * seen.f_frsize < 64 << 20
    assert abs(seen.f_bavail - stored.f_bavail) * seen.f_frsize < 64 << 20


def test_access_asks_for_the_real_user(root: Path) -> None:
    (root / "file").touch()
    (root / "file").chmod(0o640)
    os.chown(root / "file", ALICE.uid, TEAM)
    for user, expected in [(ALICE, (True, True)), (BOB, (True, False)), (STRANGER, (False, False))]:
        seen = as_user(
            user, lambda: tuple(os.access(root / "file", how) for how in (os.R_OK, os.W_OK))
        )
        assert seen == expected
    assert not as_user(ROOT, os.access, root / "file", os.X_OK)
    assert not os.access(root / "missing", os.F_OK)


def test_errors_do_not_change_anything(root: Path) -> None:
    for call in (
        lambda: (root / "missing").chmod(0o600),
        lambda: os.chown(root / "missing", 1, 1),
        lambda: os.utime(root / "missing"),
        lambda: os.truncate(root / "missing", 0),
    ):
        with pytest.raises(OSError) as refused:
            call()
        assert refused.value.errno == errno.ENOENT
    assert list(root.iterdir()) == []


def test_the_time_of_birth_is_the_stores(mounted: Target) -> None:
    """What Samba shows as the time of creation (statx(2); GNU stat asks for it)."""
    (mounted.root / "file").touch()

    def birth(directory: Path) -> str:
        shown = subprocess.run(
            ["stat", "--format=%w", directory / "file"], capture_output=True, text=True, check=True
        )
        return shown.stdout

    assert birth(mounted.root) == birth(mounted.store)
    assert birth(mounted.root).startswith("20")
