"""Hard links and symbolic links."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tests.support.targets import Target
from tests.support.users import ALICE, as_user


def test_hard_links_are_one_file(root: Path) -> None:
    (root / "other").mkdir()
    (root / "a").write_text("content")
    (root / "b").hardlink_to(root / "a")
    (root / "other" / "c").hardlink_to(root / "b")
    paths = [root / "a", root / "b", root / "other" / "c"]
    assert len({path.stat().st_ino for path in paths}) == 1
    assert [path.stat().st_nlink for path in paths] == [3, 3, 3]
    (root / "b").write_text("changed")
    assert [path.read_text() for path in paths] == ["changed"] * 3
    (root / "b").chmod(0o604)
    assert [path.stat().st_mode & 0o777 for path in paths] == [0o604] * 3


def test_a_file_lives_until_its_last_name_is_removed(root: Path) -> None:
    (root / "a").write_text("content")
    (root / "b").hardlink_to(root / "a")
    (root / "a").unlink()
    assert (root / "b").read_text() == "content"
    assert (root / "b").stat().st_nlink == 1
    (root / "a").hardlink_to(root / "b")
    (root / "b").unlink()
    assert (root / "a").read_text() == "content"


def test_removing_one_of_two_names_of_an_open_file(root: Path) -> None:
    (root / "a").write_text("content")
    (root / "b").hardlink_to(root / "a")
    fd = os.open(root / "a", os.O_RDWR)
    (root / "a").unlink()
    assert os.fstat(fd).st_nlink == 1
    os.pwrite(fd, b"C", 0)
    os.close(fd)
    assert (root / "b").read_text() == "Content"


def test_a_hard_link_to_a_symbolic_link_is_a_link_to_the_link(root: Path) -> None:
    (root / "link").symlink_to("nowhere")
    os.link(root / "link", root / "again", follow_symlinks=False)
    assert (root / "again").readlink() == Path("nowhere")
    assert (root / "again").lstat().st_ino == (root / "link").lstat().st_ino
    assert (root / "again").lstat().st_nlink == 2


def test_hard_links_to_special_files(root: Path) -> None:
    os.mkfifo(root / "fifo")
    os.link(root / "fifo", root / "again")
    assert (root / "again").lstat().st_ino == (root / "fifo").lstat().st_ino


def test_hard_links_that_are_refused(root: Path) -> None:
    (root / "file").touch()
    (root / "directory").mkdir()
    for source, link, expected in [
        ("directory", "new", errno.EPERM),
        ("missing", "new", errno.ENOENT),
        ("file", "directory", errno.EEXIST),
        ("file", "missing/new", errno.ENOENT),
    ]:
        with pytest.raises(OSError) as refused:
            os.link(root / source, root / link)
        assert refused.value.errno == expected
    assert (root / "file").stat().st_nlink == 1


def test_no_hard_link_leads_out_of_the_file_system(root: Path, tmp_path: Path) -> None:
    (root / "file").touch()
    with pytest.raises(OSError) as refused:
        os.link(root / "file", tmp_path / "out")
    assert refused.value.errno == errno.EXDEV


@pytest.mark.parametrize("length", [1, 59, 60, 61, 255, 1000, 4095])
def test_a_symbolic_link_keeps_its_target(target: Target, length: int) -> None:
    if target.fstype == "xfs":
        length = min(length, 1023)  # all that XFS can hold
    if target.fstype == "btrfs":
        length = min(length, 3900)  # has to fit into one node of its tree
    destination = ("0123456789/" * 400)[:length]
    (target.root / "link").symlink_to(destination)
    assert os.readlink(target.root / "link") == destination
    assert (target.root / "link").lstat().st_size == length
    assert os.readlink(target.store / "link") == destination


def test_a_symbolic_link_of_4096_bytes_is_too_long(root: Path) -> None:
    with pytest.raises(OSError) as refused:
        (root / "link").symlink_to("x" * 4096)
    assert refused.value.errno == errno.ENAMETOOLONG


def test_symbolic_links_are_followed(root: Path) -> None:
    (root / "directory").mkdir()
    (root / "directory" / "file").write_text("content")
    (root / "relative").symlink_to("directory/file")
    (root / "absolute").symlink_to(root / "directory")
    (root / "chain").symlink_to("absolute/../relative")
    assert (root / "relative").read_text() == "content"
    assert (root / "absolute" / "file").read_text() == "content"
    assert (root / "chain").read_text() == "content"


def test_a_dangling_symbolic_link(root: Path) -> None:
    (root / "link").symlink_to("later")
    assert (root / "link").is_symlink()
    with pytest.raises(FileNotFoundError):
        (root / "link").stat()
    (root / "link").write_text("made through the link")
    assert (root / "later").read_text() == "made through the link"


def test_symbolic_links_in_a_circle(root: Path) -> None:
    (root / "a").symlink_to("b")
    (root / "b").symlink_to("a")
    with pytest.raises(OSError) as refused:
        os.stat(root / "a")
    assert refused.value.errno == errno.ELOOP


def test_a_symbolic_link_has_an_owner_and_times_of_its_own(root: Path) -> None:
    (root / "file").touch()
    (root / "link").symlink_to("file")
    before = (root / "file").stat()
    os.chown(root / "link", 1234, 4321, follow_symlinks=False)
    os.utime(root / "link", ns=(1, 2_000_000_003), follow_symlinks=False)
    status = (root / "link").lstat()
    assert (status.st_uid, status.st_gid, status.st_mtime_ns) == (1234, 4321, 2_000_000_003)
    after = (root / "file").stat()
    assert (after.st_uid, after.st_mtime_ns) == (before.st_uid, before.st_mtime_ns)


def test_readlink_of_something_else(root: Path) -> None:
    (root / "file").touch()
    for path in (root / "file", root):
        with pytest.raises(OSError) as refused:
            os.readlink(path)
        assert refused.value.errno == errno.EINVAL


def test_a_symbolic_link_belongs_to_who_made_it(root: Path) -> None:
    root.chmod(0o777)
    as_user(ALICE, (root / "link").symlink_to, "target")
    status = (root / "link").lstat()
    assert (status.st_uid, status.st_gid) == (ALICE.uid, ALICE.gid)
    assert status.st_mode & 0o777 == 0o777
