"""Regular files: creating, reading, writing, growing, shrinking, mapping, deleting."""

from __future__ import annotations

import errno
import mmap
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from tests.support.syscalls import aligned
from tests.support.targets import Target
from tests.support.users import ALICE, as_user, in_child

MiB = 1 << 20


def create(path: Path, content: bytes = b"") -> int:
    """A new file, open for reading and writing."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
    assert os.write(fd, content) == len(content)
    return fd


# creating and opening


def test_what_was_written_is_read_back(root: Path) -> None:
    content = os.urandom(3 * MiB + 17)
    (root / "file").write_bytes(content)
    assert (root / "file").read_bytes() == content


def test_a_new_file_is_empty_and_regular(root: Path) -> None:
    os.close(create(root / "file"))
    status = (root / "file").lstat()
    assert stat.S_ISREG(status.st_mode)
    assert (status.st_size, status.st_nlink) == (0, 1)


def test_the_umask_applies_to_a_new_file(root: Path) -> None:
    previous = os.umask(0o027)
    try:
        os.close(os.open(root / "file", os.O_CREAT | os.O_WRONLY, 0o666))
    finally:
        os.umask(previous)
    assert stat.S_IMODE((root / "file").stat().st_mode) == 0o640


def test_o_excl_refuses_a_name_that_exists(root: Path) -> None:
    os.close(create(root / "file"))
    (root / "dangling").symlink_to("nowhere")
    for name in ("file", "dangling"):
        with pytest.raises(FileExistsError):
            create(root / name)


def test_o_creat_without_o_excl_opens_what_exists(root: Path) -> None:
    (root / "file").write_bytes(b"kept")
    fd = os.open(root / "file", os.O_CREAT | os.O_RDWR, 0o600)
    assert os.read(fd, 10) == b"kept"
    os.close(fd)


def test_o_trunc_empties_the_file(root: Path) -> None:
    (root / "file").write_bytes(b"x" * 10000)
    fd = os.open(root / "file", os.O_WRONLY | os.O_TRUNC)
    assert os.fstat(fd).st_size == 0
    assert (root / "file").stat().st_size == 0
    os.write(fd, b"new")
    os.close(fd)
    assert (root / "file").read_bytes() == b"new"


def test_a_file_created_read_only_can_be_written_by_its_creator(root: Path) -> None:
    """Git creates its objects like this, also as an ordinary user."""
    root.chmod(0o777)

    def create_read_only() -> None:
        fd = os.open(root / "object", os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o444)
        os.write(fd, b"content")
        assert os.pread(fd, 7, 0) == b"content"
        os.close(fd)

    as_user(ALICE, create_read_only)
    assert (root / "object").read_bytes() == b"content"
    with pytest.raises(PermissionError):
        as_user(ALICE, os.open, root / "object", os.O_WRONLY)


def test_root_opens_a_file_of_mode_0_and_others_do_not(root: Path) -> None:
    (root / "file").write_bytes(b"secret")
    (root / "file").chmod(0)
    assert (root / "file").read_bytes() == b"secret"
    (root / "file").write_bytes(b"changed")
    with pytest.raises(PermissionError):
        as_user(ALICE, (root / "file").read_bytes)


@pytest.mark.parametrize(
    ("name", "flags", "expected"),
    [
        ("link", os.O_RDONLY | os.O_NOFOLLOW, errno.ELOOP),
        ("file", os.O_RDONLY | os.O_DIRECTORY, errno.ENOTDIR),
        ("directory", os.O_WRONLY, errno.EISDIR),
        ("directory", os.O_RDWR | os.O_CREAT, errno.EISDIR),
        ("missing", os.O_RDONLY, errno.ENOENT),
        ("file/below", os.O_RDONLY, errno.ENOTDIR),
        ("file/below", os.O_CREAT | os.O_WRONLY, errno.ENOTDIR),
        ("missing/below", os.O_CREAT | os.O_WRONLY, errno.ENOENT),
    ],
)
def test_open_refuses(root: Path, name: str, flags: int, expected: int) -> None:
    (root / "file").touch()
    (root / "directory").mkdir()
    (root / "link").symlink_to("file")
    with pytest.raises(OSError) as refused:
        os.open(root / name, flags, 0o644)
    assert refused.value.errno == expected


def test_a_descriptor_does_only_what_it_was_opened_for(root: Path) -> None:
    (root / "file").write_bytes(b"content")
    reading = os.open(root / "file", os.O_RDONLY)
    writing = os.open(root / "file", os.O_WRONLY)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.write(reading, b"x")
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.read(writing, 1)
    with pytest.raises(OSError, match=r"Invalid argument|Bad file descriptor"):
        os.ftruncate(reading, 0)
    os.close(reading)
    os.close(writing)
    assert (root / "file").read_bytes() == b"content"


def test_o_path_names_a_file_without_opening_it(root: Path) -> None:
    (root / "file").write_bytes(b"content")
    (root / "file").chmod(0)
    fd = os.open(root / "file", os.O_PATH)
    assert os.fstat(fd).st_ino == (root / "file").stat().st_ino
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.read(fd, 1)
    os.close(fd)


def test_many_descriptors_of_one_file_are_open_together(root: Path) -> None:
    (root / "file").write_bytes(b"content")
    fds = [os.open(root / "file", (os.O_RDONLY, os.O_RDWR)[n % 2]) for n in range(200)]
    assert all(os.pread(fd, 7, 0) == b"content" for fd in fds)
    for fd in fds:
        os.close(fd)


def test_an_unnamed_file_works_or_is_cleanly_unsupported(target: Target) -> None:
    """O_TMPFILE: programs fall back on a named file when the answer is EOPNOTSUPP."""
    try:
        fd = os.open(target.root, os.O_TMPFILE | os.O_RDWR, 0o600)
    except OSError as error:
        assert target.mount
        assert error.errno == errno.EOPNOTSUPP
        return
    os.write(fd, b"content")
    assert os.fstat(fd).st_nlink == 0
    assert os.listdir(target.root) == []
    # A directory descriptor makes Python call linkat(2), which follows the link.
    proc = os.open("/proc/self/fd", os.O_RDONLY)
    os.link(str(fd), target.root / "named", src_dir_fd=proc, follow_symlinks=True)
    os.close(proc)
    os.close(fd)
    assert (target.root / "named").read_bytes() == b"content"


# reading and writing


def test_append_goes_to_the_end_whatever_others_wrote(root: Path) -> None:
    (root / "log").touch()
    one = os.open(root / "log", os.O_WRONLY | os.O_APPEND)
    other = os.open(root / "log", os.O_WRONLY | os.O_APPEND)
    for _ in range(100):
        os.write(one, b"one\n")
        os.write(other, b"two\n")
    os.lseek(one, 0, os.SEEK_SET)
    os.write(one, b"end\n")
    os.close(one)
    os.close(other)
    assert (root / "log").read_bytes() == b"one\ntwo\n" * 100 + b"end\n"


def test_two_processes_append_without_losing_a_line(root: Path) -> None:
    (root / "log").touch()
    line = b"0123456789abcde\n"

    def append() -> None:
        fd = os.open(root / "log", os.O_WRONLY | os.O_APPEND)
        for _ in range(500):
            os.write(fd, line)
        os.close(fd)

    pid = os.fork()
    if pid == 0:
        append()
        os._exit(0)
    append()
    assert os.waitpid(pid, 0)[1] == 0
    assert (root / "log").read_bytes() == line * 1000


def test_pread_and_pwrite_leave_the_position_alone(root: Path) -> None:
    fd = create(root / "file", b"0123456789")
    os.lseek(fd, 4, os.SEEK_SET)
    assert os.pwrite(fd, b"ab", 0) == 2
    assert os.pread(fd, 3, 1) == b"b23"
    assert os.read(fd, 10) == b"456789"
    assert os.read(fd, 10) == b""
    assert os.pread(fd, 10, 100) == b""
    os.close(fd)


def test_scattered_reads_and_writes(root: Path) -> None:
    fd = create(root / "file")
    assert os.pwritev(fd, [b"one", b"", b"three"], 2) == 8
    first, second = bytearray(3), bytearray(100)
    assert os.preadv(fd, [first, second], 1) == 9
    assert (bytes(first), bytes(second[:6])) == (b"\0on", b"ethree")
    os.close(fd)


def test_an_open_reader_sees_what_an_open_writer_writes(root: Path) -> None:
    writer = create(root / "file")
    reader = os.open(root / "file", os.O_RDONLY)
    for number in range(50):
        line = f"line {number}\n".encode()
        os.write(writer, line)
        assert os.read(reader, 100) == line
        assert (root / "file").stat().st_size == os.lseek(reader, 0, os.SEEK_CUR)
    os.close(reader)
    os.close(writer)


def test_another_process_sees_the_new_size_at_once(root: Path) -> None:
    fd = create(root / "file")
    for size in (1, 4096, 70000):
        os.pwrite(fd, b"x", size - 1)
        assert in_child(lambda: (root / "file").stat().st_size) == size
    os.close(fd)


def test_sendfile_copies_to_another_file(root: Path) -> None:
    source = create(root / "source", bytes(range(256)) * 1000)
    copy = create(root / "copy")
    assert os.sendfile(copy, source, 100, 200000) == 200000
    os.close(source)
    os.close(copy)
    assert (root / "copy").read_bytes() == (root / "source").read_bytes()[100:200100]


def test_shutil_copies_content_mode_and_times(root: Path) -> None:
    (root / "source").write_bytes(os.urandom(MiB))
    (root / "source").chmod(0o640)
    os.utime(root / "source", ns=(1_000_000_000_123_456_789, 1_100_000_000_987_654_321))
    shutil.copy2(root / "source", root / "copy")
    before, after = (root / "source").stat(), (root / "copy").stat()
    assert (root / "copy").read_bytes() == (root / "source").read_bytes()
    assert (after.st_mode, after.st_mtime_ns) == (before.st_mode, before.st_mtime_ns)


def test_direct_io_reads_and_writes(root: Path) -> None:
    content = os.urandom(64 * 4096)
    fd = os.open(root / "file", os.O_RDWR | os.O_CREAT | os.O_DIRECT, 0o644)
    assert os.pwrite(fd, aligned(content), 0) == len(content)
    buffer = mmap.mmap(-1, 8 * 4096)
    assert os.preadv(fd, [buffer], 4 * 4096) == 8 * 4096
    assert buffer[:] == content[4 * 4096 : 12 * 4096]
    os.close(fd)
    assert (root / "file").read_bytes() == content


def test_direct_and_buffered_descriptors_see_each_other(root: Path) -> None:
    (root / "file").write_bytes(b"a" * 8192)
    buffered = os.open(root / "file", os.O_RDWR)
    direct = os.open(root / "file", os.O_RDWR | os.O_DIRECT)
    os.pwrite(buffered, b"b" * 4096, 0)
    buffer = mmap.mmap(-1, 4096)
    assert os.preadv(direct, [buffer], 0) == 4096
    assert buffer[:] == b"b" * 4096
    os.pwrite(direct, aligned(b"c" * 4096), 4096)
    assert os.pread(buffered, 4096, 4096) == b"c" * 4096
    os.close(buffered)
    os.close(direct)


def test_fsync_and_fdatasync_of_files_and_directories(root: Path) -> None:
    fd = create(root / "file", b"content")
    os.fsync(fd)
    os.fdatasync(fd)
    os.close(fd)
    reading = os.open(root / "file", os.O_RDONLY)
    os.fsync(reading)
    os.close(reading)
    directory = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(directory)
    os.fdatasync(directory)
    os.close(directory)


# size


def test_truncate_shortens_and_lengthens(root: Path) -> None:
    (root / "file").write_bytes(b"0123456789")
    os.truncate(root / "file", 4)
    assert (root / "file").read_bytes() == b"0123"
    os.truncate(root / "file", 8)
    assert (root / "file").read_bytes() == b"0123\0\0\0\0"


def test_ftruncate_and_truncate_meet_on_an_open_file(root: Path) -> None:
    fd = create(root / "file", b"0123456789")
    os.ftruncate(fd, 6)
    assert (root / "file").stat().st_size == 6
    os.truncate(root / "file", 3)
    assert os.fstat(fd).st_size == 3
    assert os.pread(fd, 10, 0) == b"012"
    os.close(fd)


def test_what_was_cut_off_does_not_come_back(root: Path) -> None:
    fd = create(root / "file", b"x" * 10000)
    os.ftruncate(fd, 5000)
    os.ftruncate(fd, 10000)
    assert os.pread(fd, 10000, 0) == b"x" * 5000 + b"\0" * 5000
    os.close(fd)


def test_truncate_needs_a_writable_file(root: Path) -> None:
    (root / "file").write_bytes(b"content")
    with pytest.raises(PermissionError):
        as_user(ALICE, os.truncate, root / "file", 0)
    with pytest.raises(IsADirectoryError):
        os.truncate(root, 0)
    assert (root / "file").read_bytes() == b"content"


def test_offsets_beyond_4_gib(root: Path) -> None:
    fd = create(root / "file")
    offset = 5 << 30
    os.pwrite(fd, b"far", offset)
    assert os.fstat(fd).st_size == offset + 3
    assert os.pread(fd, 3, offset) == b"far"
    os.close(fd)
    assert (root / "file").stat().st_size == offset + 3


# mapping


def test_a_shared_mapping_writes_to_the_file(target: Target) -> None:
    path = target.root / "file"
    path.write_bytes(b"." * 8192)
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 8192) as mapping:
        mapping[4090:4100] = b"0123456789"
        assert os.pread(file.fileno(), 10, 4090) == b"0123456789"
        mapping.flush()
        assert target.on_store(path).read_bytes()[4090:4100] == b"0123456789"
    assert path.read_bytes()[4088:4102] == b"..0123456789.."


def test_a_mapping_sees_what_is_written(root: Path) -> None:
    fd = create(root / "file", b"." * 4096)
    with mmap.mmap(fd, 4096, prot=mmap.PROT_READ) as mapping:
        os.pwrite(fd, b"written", 100)
        assert mapping[100:107] == b"written"
    os.close(fd)


def test_a_private_mapping_leaves_the_file_alone(root: Path) -> None:
    (root / "file").write_bytes(b"." * 4096)
    with (
        open(root / "file", "rb") as file,
        mmap.mmap(file.fileno(), 4096, access=mmap.ACCESS_COPY) as mapping,
    ):
        mapping[:4] = b"mine"
        assert mapping[:5] == b"mine."
    assert (root / "file").read_bytes() == b"." * 4096


def test_two_processes_share_a_mapping(root: Path) -> None:
    fd = create(root / "file", b"." * 4096)
    with mmap.mmap(fd, 4096) as mapping:

        def write_through_an_own_mapping() -> None:
            with open(root / "file", "r+b") as file, mmap.mmap(file.fileno(), 4096) as own:
                own[:5] = b"hello"

        in_child(write_through_an_own_mapping)
        assert mapping[:6] == b"hello."
    os.close(fd)


def test_a_mapping_outlives_its_descriptor_and_its_name(root: Path) -> None:
    fd = create(root / "file", b"content".ljust(4096, b"."))
    with mmap.mmap(fd, 4096) as mapping:
        os.close(fd)
        (root / "file").unlink()
        mapping[-3:] = b"end"
        assert mapping[:7] == b"content"
        assert mapping[-3:] == b"end"


# programs


def test_a_program_runs_and_its_file_is_busy_meanwhile(root: Path) -> None:
    shutil.copy("/bin/cat", root / "program")
    with subprocess.Popen(
        [root / "program"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write(b"running\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"running\n"
        with pytest.raises(OSError) as refused:
            os.open(root / "program", os.O_WRONLY)
        assert refused.value.errno == errno.ETXTBSY
        process.stdin.close()
    os.close(os.open(root / "program", os.O_WRONLY))


def test_a_file_that_is_being_written_does_not_run(root: Path) -> None:
    shutil.copy("/bin/true", root / "program")
    fd = os.open(root / "program", os.O_WRONLY)
    with pytest.raises(OSError) as refused:
        subprocess.run([root / "program"], check=False)
    assert refused.value.errno == errno.ETXTBSY
    os.close(fd)
    assert subprocess.run([root / "program"], check=False).returncode == 0


# deleted or renamed while open


def test_an_unlinked_file_lives_on_in_its_descriptors(root: Path) -> None:
    fd = create(root / "file", b"content")
    (root / "file").unlink()
    assert not (root / "file").exists()
    status = os.fstat(fd)
    assert (status.st_nlink, status.st_size) == (0, 7)
    os.pwrite(fd, b"more", 7)
    assert os.pread(fd, 100, 0) == b"contentmore"
    os.fsync(fd)
    os.close(fd)


def test_attributes_of_an_unlinked_file_can_be_set(root: Path) -> None:
    fd = create(root / "file", b"content")
    (root / "file").unlink()
    os.fchmod(fd, 0o604)
    os.fchown(fd, 1234, 4321)
    os.utime(fd, ns=(1_000_000_001, 2_000_000_002))
    os.ftruncate(fd, 3)
    os.utime(fd, ns=(1_000_000_001, 2_000_000_002))
    status = os.fstat(fd)
    assert stat.S_IMODE(status.st_mode) == 0o604
    assert (status.st_uid, status.st_gid, status.st_size) == (1234, 4321, 3)
    assert (status.st_atime_ns, status.st_mtime_ns) == (1_000_000_001, 2_000_000_002)
    assert os.pread(fd, 10, 0) == b"con"
    os.close(fd)


def test_extended_attributes_of_an_unlinked_file(root: Path) -> None:
    fd = create(root / "file")
    os.setxattr(fd, "user.before", b"1")
    (root / "file").unlink()
    os.setxattr(fd, "user.after", b"2")
    assert os.getxattr(fd, "user.before") == b"1"
    assert sorted(os.listxattr(fd)) == ["user.after", "user.before"]
    os.removexattr(fd, "user.before")
    assert os.listxattr(fd) == ["user.after"]
    os.close(fd)


def test_an_unlinked_file_can_be_opened_again_through_proc(root: Path) -> None:
    fd = create(root / "file", b"content")
    (root / "file").unlink()
    again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
    os.close(fd)
    assert os.pread(again, 100, 0) == b"content"
    os.pwrite(again, b"C", 0)
    assert os.pread(again, 100, 0) == b"Content"
    os.close(again)


def test_a_new_file_of_the_same_name_is_another_file(root: Path) -> None:
    old = create(root / "file", b"old")
    (root / "file").unlink()
    new = create(root / "file", b"new")
    assert os.fstat(old).st_ino != os.fstat(new).st_ino
    assert (os.pread(old, 9, 0), os.pread(new, 9, 0)) == (b"old", b"new")
    os.close(old)
    os.close(new)


def test_a_renamed_file_stays_the_same_file(root: Path) -> None:
    fd = create(root / "before", b"content")
    (root / "before").rename(root / "after")
    os.pwrite(fd, b"C", 0)
    assert os.fstat(fd).st_ino == (root / "after").stat().st_ino
    assert (root / "after").read_bytes() == b"Content"
    os.close(fd)


def test_a_file_that_was_replaced_lives_on_in_its_descriptors(root: Path) -> None:
    """How editors save: write another file, rename it over the old one."""
    fd = create(root / "file", b"old")
    (root / "new").write_bytes(b"new")
    (root / "new").rename(root / "file")
    assert os.pread(fd, 9, 0) == b"old"
    assert os.fstat(fd).st_nlink == 0
    assert (root / "file").read_bytes() == b"new"
    os.close(fd)
