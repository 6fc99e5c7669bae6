"""What the store and the mount show of each other, and what each keeps to itself."""

from __future__ import annotations

import errno
import mmap
import os
import stat
from pathlib import Path

import pytest

from tests.support.mounts import wait_until
from tests.support.syscalls import aligned
from tests.support.targets import Target
from tests.support.users import ALICE, as_user


def test_the_store_has_what_was_written_at_once(target: Target) -> None:
    target.root.chmod(0o777)
    fd = os.open(target.root / "file", os.O_CREAT | os.O_WRONLY, 0o640)
    os.write(fd, b"not closed yet")
    assert (target.store / "file").read_bytes() == b"not closed yet"
    os.close(fd)
    as_user(ALICE, (target.root / "alices").write_bytes, b"content")
    assert (target.store / "alices").read_bytes() == b"content"
    assert (target.store / "alices").stat().st_uid == ALICE.uid
    assert stat.S_IMODE((target.store / "file").stat().st_mode) == 0o640


def test_what_appears_on_the_store_appears_on_the_mount(target: Target) -> None:
    (target.store / "directory").mkdir()
    (target.store / "directory" / "file").write_bytes(b"content")
    os.setxattr(target.store / "directory" / "file", "user.test", b"1")
    assert (target.root / "directory" / "file").read_bytes() == b"content"
    assert os.getxattr(target.root / "directory" / "file", "user.test") == b"1"


def test_changes_on_the_store_are_seen_on_the_mount(target: Target) -> None:
    """Within a moment: the kernel's caches are told, or run out."""
    seen, stored = target.root / "file", target.store / "file"
    stored.write_bytes(b"one")
    assert seen.read_bytes() == b"one"
    assert seen.stat().st_size == 3
    stored.write_bytes(b"second")
    wait_until(lambda: seen.stat().st_size == 6, "the new size")
    wait_until(lambda: seen.read_bytes() == b"second", "the new content")
    stored.chmod(0o600)
    wait_until(lambda: stat.S_IMODE(seen.stat().st_mode) == 0o600, "the new mode")
    stored.rename(target.store / "renamed")
    wait_until(lambda: not seen.exists(), "the old name to go")
    wait_until(lambda: (target.root / "renamed").exists(), "the new name")
    wait_until(lambda: os.listdir(target.root) == ["renamed"], "the new list")
    (target.store / "renamed").unlink()
    wait_until(lambda: os.listdir(target.root) == [], "the end of it")


def test_a_name_that_was_missing_appears_when_the_store_has_it(target: Target) -> None:
    assert not (target.root / "later").exists()
    assert os.listdir(target.root) == []
    (target.store / "later").touch()
    wait_until(lambda: (target.root / "later").exists(), "the new name")
    wait_until(lambda: os.listdir(target.root) == ["later"], "the new list")


def test_the_records_stay_hidden_behind_their_reserved_name(mounted: Target) -> None:
    """In every directory, whether the store has records there or not."""
    (mounted.store / ".modama" / "inner").mkdir(parents=True)
    (mounted.store / ".modama" / "project.json").write_text("{}")
    (mounted.root / "empty").mkdir()
    (mounted.root / "file").touch()
    assert sorted(os.listdir(mounted.root)) == ["empty", "file"]
    for directory in (mounted.root, mounted.root / "empty"):
        name = directory / ".modama"
        for call in (
            lambda name=name: os.lstat(name / "inner"),
            lambda name=name: (name / "project.json").read_text(),
            lambda name=name: name.rmdir(),
            lambda name=name: name.rename(name.parent / "elsewhere"),
        ):
            with pytest.raises(OSError) as hidden:
                call()
            assert hidden.value.errno in (errno.ENOENT, errno.EPERM, errno.EACCES, errno.EROFS)
        assert "inner" not in os.listdir(name)
        assert "README.md" in os.listdir(name), "it is the landing directory"
        for call in (
            lambda name=name: name.mkdir(),
            lambda name=name: name.touch(),
            lambda name=name: name.symlink_to("x"),
            lambda name=name: os.mkfifo(name),
            lambda name=name: os.link(mounted.root / "file", name),
            lambda name=name: (mounted.root / "file").rename(name),
            lambda name=name: (mounted.root / "empty").rename(name),
        ):
            with pytest.raises(OSError) as closed:
                call()
            assert closed.value.errno in (
                errno.EPERM,
                errno.EACCES,
                errno.EROFS,
                errno.EEXIST,
                errno.EISDIR,
                errno.ENOTEMPTY,
                errno.EINVAL,  # a directory into itself
            )
    assert sorted(os.listdir(mounted.root)) == ["empty", "file"]
    assert (mounted.store / ".modama" / "project.json").read_text() == "{}"
    assert not (mounted.store / "empty" / ".modama").exists()


def test_a_tree_is_copied_and_removed_without_stumbling_over_the_records(mounted: Target) -> None:
    (mounted.store / "session" / ".modama").mkdir(parents=True)
    (mounted.store / "session" / "data").write_text("content")
    listed = [path.name for path in (mounted.root / "session").rglob("*")]
    assert listed == ["data"]


def test_reads_and_writes_never_reach_the_daemon(passthrough: Target) -> None:
    mount = passthrough.mount
    assert mount
    before = [mount.requests(name) for name in ("READ", "WRITE")]
    content = os.urandom(4 << 20)
    path = passthrough.root / "file"
    path.write_bytes(content)
    assert path.read_bytes() == content

    fd = os.open(path, os.O_RDWR | os.O_DIRECT)
    os.pwrite(fd, aligned(content[:8192]), 4096)
    buffer = mmap.mmap(-1, 8192)
    assert os.preadv(fd, [buffer], 4096) == 8192
    os.close(fd)

    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as mapping:
        mapping[:5] = b"hello"
        assert mapping[5:10] == content[5:10]

    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    os.write(fd, b"end")
    path.unlink()
    os.write(fd, b"and on")
    os.close(fd)

    assert [mount.requests(name) for name in ("READ", "WRITE")] == before


def test_two_names_of_an_open_file_share_the_kernels_data_path(passthrough: Target) -> None:
    """All opens of one inode that exist at the same time must name one backing file."""
    mount = passthrough.mount
    assert mount
    (passthrough.root / "a").write_bytes(b"content")
    (passthrough.root / "b").hardlink_to(passthrough.root / "a")
    one = os.open(passthrough.root / "a", os.O_RDONLY)
    other = os.open(passthrough.root / "b", os.O_RDWR)
    os.pwrite(other, b"C", 0)
    assert os.pread(one, 7, 0) == b"Content"
    os.close(one)
    assert os.pread(other, 7, 0) == b"Content"
    os.close(other)
    assert mount.requests("READ") == 0


def test_the_mount_says_what_it_is(mounted: Target) -> None:
    mount = mounted.mount
    assert mount
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    [line] = [line for line in lines if line.split()[4] == str(mount.root)]
    assert " - fuse.modamafs " in line
    report = mount.status()
    assert report["mountpoint"] == str(mount.root)
    assert report["store"] == str(mount.store)
    assert report["read_only"] is False
    assert report["restarts"] == 0
    os.kill(report["supervisor_pid"], 0)
    os.kill(report["worker_pid"], 0)
