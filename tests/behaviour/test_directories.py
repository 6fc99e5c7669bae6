"""Directories: making, removing, listing, renaming, and being inside of one meanwhile."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from pathlib import Path

import pytest

from tests.support.syscalls import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    getdents64,
    list_all,
    renameat2,
)
from tests.support.users import in_child

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY


def names(directory: Path) -> list[str]:
    """What is in it, sorted."""
    return sorted(entry.name for entry in directory.iterdir())


def kinds(directory: Path) -> dict[str, str]:
    """What is in it, and of which kind a listing says each is."""
    with os.scandir(directory) as entries:
        return {
            entry.name: "directory" if entry.is_dir(follow_symlinks=False) else "other"
            for entry in entries
        }


# making and removing


def test_mkdir_makes_an_empty_directory(root: Path) -> None:
    (root / "new").mkdir(0o750)
    assert stat.S_ISDIR((root / "new").lstat().st_mode)
    assert stat.S_IMODE((root / "new").lstat().st_mode) == 0o750
    assert names(root / "new") == []
    assert names(root) == ["new"]


def test_link_counts_of_directories_follow_the_file_system(root: Path) -> None:
    """Two and one for each subdirectory; always one on btrfs."""
    empty = root.stat().st_nlink
    (root / "a").mkdir()
    (root / "b").mkdir()
    with_two = root.stat().st_nlink
    (root / "a").rmdir()
    with_one = root.stat().st_nlink
    assert (empty, with_two, with_one) in [(2, 4, 3), (1, 1, 1)]


@pytest.mark.parametrize(
    ("call", "name", "expected"),
    [
        (os.mkdir, "directory", errno.EEXIST),
        (os.mkdir, "file", errno.EEXIST),
        (os.mkdir, "dangling", errno.EEXIST),
        (os.mkdir, "missing/new", errno.ENOENT),
        (os.mkdir, "file/new", errno.ENOTDIR),
        (os.rmdir, "full", errno.ENOTEMPTY),
        (os.rmdir, "file", errno.ENOTDIR),
        (os.rmdir, "missing", errno.ENOENT),
        (os.rmdir, "directory/.", errno.EINVAL),
        (os.rmdir, "directory/..", errno.ENOTEMPTY),
        (os.unlink, "directory", errno.EISDIR),
        (os.unlink, "missing", errno.ENOENT),
        (os.unlink, "file/", errno.ENOTDIR),
        (os.listdir, "file", errno.ENOTDIR),
    ],
)
def test_refused(root: Path, call: object, name: str, expected: int) -> None:
    (root / "directory").mkdir()
    (root / "full" / "inner").mkdir(parents=True)
    (root / "file").touch()
    (root / "dangling").symlink_to("nowhere")
    assert callable(call)
    with pytest.raises(OSError) as refused:
        call(f"{root}/{name}")
    assert refused.value.errno == expected
    assert names(root) == ["dangling", "directory", "file", "full"]


def test_a_removed_directory_that_is_still_open_is_dead(root: Path) -> None:
    (root / "gone").mkdir()
    fd = os.open(root / "gone", DIRECTORY)
    (root / "gone").rmdir()
    assert os.fstat(fd).st_nlink in (0, 1)  # btrfs keeps saying 1
    with pytest.raises(FileNotFoundError):
        getdents64(fd)
    with pytest.raises(FileNotFoundError):
        os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=fd)
    with pytest.raises(FileNotFoundError):
        os.mkdir("new", dir_fd=fd)
    os.close(fd)


def test_a_tree_is_removed(root: Path) -> None:
    for number in range(5):
        directory = root / "tree" / str(number) / "inner"
        directory.mkdir(parents=True)
        for name in "abc":
            (directory / name).write_text(name)
    shutil.rmtree(root / "tree")
    assert names(root) == []


# listing


def test_dot_and_dot_dot_are_listed_with_their_inode_numbers(root: Path) -> None:
    (root / "inner").mkdir()
    fd = os.open(root / "inner", DIRECTORY)
    listed = {entry.name: entry.ino for entry in list_all(fd)}
    os.close(fd)
    assert listed == {b".": (root / "inner").stat().st_ino, b"..": root.stat().st_ino}


def test_entries_are_listed_with_their_type_and_inode_number(root: Path) -> None:
    (root / "file").touch()
    (root / "directory").mkdir()
    (root / "link").symlink_to("file")
    os.mkfifo(root / "fifo")
    with os.scandir(root) as entries:
        for entry in entries:
            status = os.lstat(entry.path)
            assert entry.inode() == status.st_ino
            assert entry.is_file(follow_symlinks=False) == stat.S_ISREG(status.st_mode)
            assert entry.is_dir(follow_symlinks=False) == stat.S_ISDIR(status.st_mode)
            assert entry.is_symlink() == stat.S_ISLNK(status.st_mode)


def test_5000_entries_are_listed_once_each_and_found_again_by_position(root: Path) -> None:
    expected = {f"entry-{number:04}".encode() for number in range(5000)}
    directory = os.open(root, DIRECTORY)
    for name in expected:
        os.mknod(name, 0o644 | stat.S_IFREG, dir_fd=directory)
    os.close(directory)

    directory = os.open(root, DIRECTORY)  # btrfs lists what was there when it was opened
    listed = list_all(directory, size=4096)
    assert sorted(entry.name for entry in listed) == sorted({*expected, b".", b".."})
    offsets = [entry.offset for entry in listed]
    assert len(set(offsets)) == len(offsets)

    for index in (0, 1, 2, 77, 2500, 4998):
        os.lseek(directory, listed[index].offset, os.SEEK_SET)
        assert getdents64(directory, 1024)[0].name == listed[index + 1].name
    os.lseek(directory, listed[-1].offset, os.SEEK_SET)
    assert getdents64(directory) == []
    os.lseek(directory, 0, os.SEEK_SET)
    assert [entry.name for entry in list_all(directory)] == [entry.name for entry in listed]
    os.close(directory)


def test_entries_removed_while_listing_do_not_disturb_the_others(root: Path) -> None:
    """``rm -r`` removes what it has just read, and goes on reading."""
    for number in range(1000):
        (root / f"{number:04}").touch()
    fd = os.open(root, DIRECTORY)
    seen: list[bytes] = []
    while batch := getdents64(fd, 2048):
        for entry in batch:
            if entry.name not in (b".", b".."):
                seen.append(entry.name)
                os.unlink(entry.name, dir_fd=fd)
    os.close(fd)
    assert sorted(seen) == [f"{number:04}".encode() for number in range(1000)]
    assert names(root) == []


def test_entries_that_stay_are_listed_while_others_come_and_go(root: Path) -> None:
    stay = {f"stay-{number:03}".encode() for number in range(300)}
    for name in stay:
        (root / os.fsdecode(name)).touch()
    fd = os.open(root, DIRECTORY)
    seen: list[bytes] = []
    number = 0
    while batch := getdents64(fd, 1024):
        seen += [entry.name for entry in batch]
        (root / f"new-{number}").touch()
        if number:
            (root / f"new-{number - 1}").unlink()
        number += 1
    os.close(fd)
    assert stay <= set(seen)
    assert len(seen) == len(set(seen))


def test_a_rewound_directory_shows_what_is_new(root: Path) -> None:
    fd = os.open(root, DIRECTORY)
    assert len(list_all(fd)) == 2
    (root / "new").touch()
    os.lseek(fd, 0, os.SEEK_SET)
    assert b"new" in [entry.name for entry in list_all(fd)]
    (root / "new").unlink()
    os.lseek(fd, 0, os.SEEK_SET)
    assert len(list_all(fd)) == 2
    os.close(fd)


# renaming


def test_rename_moves_a_file_within_and_across_directories(root: Path) -> None:
    (root / "one").mkdir()
    (root / "two").mkdir()
    (root / "one" / "file").write_text("content")
    inode = (root / "one" / "file").stat().st_ino
    (root / "one" / "file").rename(root / "one" / "renamed")
    (root / "one" / "renamed").rename(root / "two" / "moved")
    assert names(root / "one") == []
    assert (root / "two" / "moved").read_text() == "content"
    assert (root / "two" / "moved").stat().st_ino == inode


def test_rename_replaces_a_file(root: Path) -> None:
    (root / "old").write_text("old")
    (root / "new").write_text("new")
    (root / "new").rename(root / "old")
    assert names(root) == ["old"]
    assert (root / "old").read_text() == "new"


def test_rename_replaces_an_empty_directory_only(root: Path) -> None:
    for name in ("moved/inner", "empty", "full/inner"):
        (root / name).mkdir(parents=True)
    with pytest.raises(OSError) as refused:
        (root / "moved").rename(root / "full")
    assert refused.value.errno in (errno.ENOTEMPTY, errno.EEXIST)
    (root / "moved").rename(root / "empty")
    assert names(root) == ["empty", "full"]
    assert names(root / "empty") == ["inner"]


def test_rename_does_not_mix_files_and_directories(root: Path) -> None:
    (root / "file").touch()
    (root / "directory").mkdir()
    with pytest.raises(IsADirectoryError):
        (root / "file").rename(root / "directory")
    with pytest.raises(NotADirectoryError):
        (root / "directory").rename(root / "file")


def test_a_directory_can_not_be_moved_into_itself(root: Path) -> None:
    (root / "outer" / "inner").mkdir(parents=True)
    for target in ("outer/inner/new", "outer/new"):
        with pytest.raises(OSError) as refused:
            (root / "outer").rename(root / target)
        assert refused.value.errno == errno.EINVAL
    with pytest.raises(OSError) as refused:
        (root / "outer" / "inner").rename(root / "outer")
    assert refused.value.errno == errno.ENOTEMPTY


def test_rename_of_a_missing_name(root: Path) -> None:
    (root / "kept").write_text("kept")
    with pytest.raises(FileNotFoundError):
        (root / "missing").rename(root / "kept")
    assert (root / "kept").read_text() == "kept"


def test_rename_onto_a_hard_link_of_itself_does_nothing(root: Path) -> None:
    (root / "a").write_text("content")
    (root / "b").hardlink_to(root / "a")
    (root / "a").rename(root / "b")
    assert names(root) == ["a", "b"]


def test_rename_noreplace_refuses_an_existing_name(root: Path) -> None:
    (root / "a").write_text("a")
    (root / "b").write_text("b")
    with pytest.raises(FileExistsError):
        renameat2(root / "a", root / "b", RENAME_NOREPLACE)
    assert (root / "b").read_text() == "b"
    renameat2(root / "a", root / "c", RENAME_NOREPLACE)
    assert names(root) == ["b", "c"]


def test_rename_exchange_swaps_anything(root: Path) -> None:
    (root / "file").write_text("file")
    (root / "directory" / "inner").mkdir(parents=True)
    (root / "link").symlink_to("somewhere")
    renameat2(root / "file", root / "directory", RENAME_EXCHANGE)
    assert (root / "directory").read_text() == "file"
    assert names(root / "file") == ["inner"]
    renameat2(root / "link", root / "file" / "inner", RENAME_EXCHANGE)
    assert (root / "file" / "inner").readlink() == Path("somewhere")
    assert (root / "link").is_dir()
    with pytest.raises(FileNotFoundError):
        renameat2(root / "link", root / "missing", RENAME_EXCHANGE)


def test_rename_flags_exclude_each_other(root: Path) -> None:
    (root / "a").touch()
    (root / "b").touch()
    with pytest.raises(OSError) as refused:
        renameat2(root / "a", root / "b", RENAME_EXCHANGE | RENAME_NOREPLACE)
    assert refused.value.errno == errno.EINVAL


def test_a_moved_directory_gets_a_new_parent(root: Path) -> None:
    (root / "one" / "moved").mkdir(parents=True)
    (root / "two").mkdir()
    (root / "one" / "moved").rename(root / "two" / "moved")
    assert (root / "two" / "moved" / "..").stat().st_ino == (root / "two").stat().st_ino
    fd = os.open(root / "two" / "moved", DIRECTORY)
    listed = {entry.name: entry.ino for entry in list_all(fd)}
    os.close(fd)
    assert listed[b".."] == (root / "two").stat().st_ino


def test_a_renamed_directory_keeps_its_descendants(root: Path) -> None:
    deep = root / "before" / "a" / "b"
    deep.mkdir(parents=True)
    (deep / "file").write_text("content")
    assert (deep / "file").stat().st_size == 7
    directory = os.open(deep, DIRECTORY)
    file = os.open(deep / "file", os.O_RDWR)

    (root / "before").rename(root / "after")

    assert (root / "after" / "a" / "b" / "file").read_text() == "content"
    assert not (root / "before").exists()
    assert os.stat("file", dir_fd=directory).st_size == 7
    os.pwrite(file, b"CONTENT", 0)
    os.close(os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=directory))
    assert names(root / "after" / "a" / "b") == ["file", "new"]
    assert (root / "after" / "a" / "b" / "file").read_text() == "CONTENT"
    os.close(file)
    os.close(directory)


def test_a_process_inside_a_renamed_directory_stays_there(root: Path) -> None:
    (root / "before" / "inner").mkdir(parents=True)

    def rename_around_me() -> tuple[str, list[str]]:
        os.chdir(root / "before" / "inner")
        (root / "before").rename(root / "after")
        Path("file").write_text("written by a relative path")
        return str(Path.cwd()), names(root / "after" / "inner")

    assert in_child(rename_around_me) == (str(root / "after" / "inner"), ["file"])


def test_the_working_directory_of_a_process_can_be_removed(root: Path) -> None:
    (root / "gone").mkdir()

    def remove_around_me() -> None:
        os.chdir(root / "gone")
        (root / "gone").rmdir()
        with pytest.raises(FileNotFoundError):
            Path.cwd()
        with pytest.raises(FileNotFoundError):
            Path("file").touch()

    in_child(remove_around_me)


# depth


def test_a_tree_deeper_than_path_max(root: Path) -> None:
    """No path leads there in one step; every directory is reached from the one above."""
    name = "d" * 200
    directory = os.open(root, DIRECTORY)
    for _ in range(40):
        os.mkdir(name, dir_fd=directory)
        inner = os.open(name, DIRECTORY, dir_fd=directory)
        os.close(directory)
        directory = inner
    fd = os.open("file", os.O_CREAT | os.O_RDWR, 0o644, dir_fd=directory)
    os.write(fd, b"deep")
    os.close(fd)
    os.rename("file", "renamed", src_dir_fd=directory, dst_dir_fd=directory)
    os.symlink("renamed", "link", dir_fd=directory)
    os.link("renamed", "hard", src_dir_fd=directory, dst_dir_fd=directory)
    assert os.stat("link", dir_fd=directory).st_size == 4
    assert os.stat("hard", dir_fd=directory).st_nlink == 2
    again = os.open(".", DIRECTORY, dir_fd=directory)
    assert sorted(entry.name for entry in list_all(again)) == [
        b".",
        b"..",
        b"hard",
        b"link",
        b"renamed",
    ]
    os.close(again)
    (root / name).rename(root / "renamed")
    fd = os.open("hard", os.O_RDONLY, dir_fd=directory)
    assert os.read(fd, 10) == b"deep"
    os.close(fd)
    os.close(directory)
    shutil.rmtree(root / "renamed")
    assert names(root) == []


def test_a_directory_that_was_just_listed_is_listed_right_after_each_change(root: Path) -> None:
    expected = {}
    for number in range(300):  # more than one reply holds
        name = f"{number:03}".rjust(60, "x")
        (root / name).mkdir() if number % 3 == 0 else (root / name).touch()
        expected[name] = "directory" if number % 3 == 0 else "other"
    assert kinds(root) == expected
    for number in range(10):
        (root / f"new{number}").touch()
        expected[f"new{number}"] = "other"
        assert kinds(root) == expected
        (root / f"new{number}").rename(root / f"moved{number}")
        del expected[f"new{number}"]
        expected[f"moved{number}"] = "other"
        assert kinds(root) == expected
        assert (root / f"moved{number}").stat().st_size == 0
    (root / "moved0").unlink()
    del expected["moved0"]
    assert kinds(root) == expected
