"""The same system calls on two directories, compared step by step.

A step is an object with arguments and a ``run(side)``; its result (or its errno) must be the same
on both sides. What two directories can't have in common is taken out of the results: inode
numbers, and times that were not set explicitly.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import shutil
import stat
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.support import syscalls, trees
from tests.support.users import ALICE, ROOT, TEAM, User, acting_as

KiB = 1 << 10
SET_EXPLICITLY_BEFORE_NS = 1_500_000_000 * 10**9
"""Times before this were set by a step and are the same on both sides; later ones mean "now"."""


class DifferenceFound(AssertionError):
    """The two sides are not the same."""


@dataclass
class Side:
    """One of the two directories, and the files that are open in it."""

    root: bytes
    descriptors: dict[int, int] = field(default_factory=dict)

    def path(self, relative: bytes) -> bytes:
        return self.root + b"/" + relative

    def fd(self, slot: int) -> int:
        """The descriptor in this slot; EBADF where nothing is open."""
        if slot not in self.descriptors:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return self.descriptors[slot]

    def close_all(self) -> None:
        for fd in self.descriptors.values():
            os.close(fd)
        self.descriptors.clear()

    def run(self, step: Step) -> object:
        """The comparable result of a step: a value or the name of an errno."""
        os.umask(step.umask)
        try:
            with acting_as(step.user):
                return step.call(self, *step.arguments)
        except OSError as error:
            return errno.errorcode[error.errno or 0]
        finally:
            os.umask(0o022)


@dataclass(frozen=True)
class Step:
    """One call, by one user."""

    call: Callable[..., object]
    arguments: tuple[Any, ...]
    user: User
    umask: int

    def __repr__(self) -> str:
        who = "root" if self.user == ROOT else f"uid {self.user.uid}"
        arguments = ", ".join(map(trees.shortened, self.arguments))
        return f"{self.call.__name__}({arguments}) by {who}, umask {self.umask:03o}"


# the calls: each takes a side and arguments, and returns what must be the same


def status_of(status: os.stat_result) -> tuple[object, ...]:
    """What has to be the same in two directories."""
    directory = stat.S_ISDIR(status.st_mode)
    return (
        f"{status.st_mode:o}",
        status.st_nlink,
        status.st_uid,
        status.st_gid,
        status.st_rdev,
        None if directory else status.st_size,
        status.st_mtime_ns if status.st_mtime_ns < SET_EXPLICITLY_BEFORE_NS else "now",
    )


def open_(side: Side, slot: int, path: bytes, flags: int, mode: int) -> object:
    fd = os.open(side.path(path), flags | os.O_NONBLOCK, mode)
    if slot in side.descriptors:
        os.close(side.descriptors[slot])
    side.descriptors[slot] = fd
    return status_of(os.fstat(fd))


def close(side: Side, slot: int) -> object:
    if slot in side.descriptors:
        os.close(side.descriptors.pop(slot))
    return None


def write(side: Side, slot: int, size: int) -> object:
    return os.write(side.fd(slot), b"w" * size)


def pwrite(side: Side, slot: int, offset: int, content: bytes) -> object:
    return os.pwrite(side.fd(slot), content, offset)


def read(side: Side, slot: int, size: int) -> object:
    return os.read(side.fd(slot), size)


def pread(side: Side, slot: int, offset: int, size: int) -> object:
    return os.pread(side.fd(slot), size, offset)


def read_direct(side: Side, path: bytes, block: int) -> object:
    fd = os.open(side.path(path), os.O_RDONLY | os.O_DIRECT | os.O_NONBLOCK)
    try:
        with mmap.mmap(-1, 8192) as buffer:
            return buffer[: os.preadv(fd, [buffer], block * 4096)]
    finally:
        os.close(fd)


def write_mapped(side: Side, slot: int, offset: int, content: bytes) -> object:
    fd = side.fd(slot)
    size = os.fstat(fd).st_size
    if size == 0:
        return "empty"
    with mmap.mmap(fd, size) as mapping:
        end = min(size, offset + len(content))
        if offset < end:
            mapping[offset:end] = content[: end - offset]
        mapping.flush()
    return size


def read_mapped(side: Side, path: bytes) -> object:
    fd = os.open(side.path(path), os.O_RDONLY | os.O_NONBLOCK)
    try:
        if os.fstat(fd).st_size == 0:
            return "empty"
        with mmap.mmap(fd, 0, prot=mmap.PROT_READ) as mapping:
            return mapping[:]
    finally:
        os.close(fd)


def seek(side: Side, slot: int, offset: int, whence: int) -> object:
    return os.lseek(side.fd(slot), offset, whence)


def fstat(side: Side, slot: int) -> object:
    return status_of(os.fstat(side.fd(slot)))


def fsync(side: Side, slot: int) -> object:
    return os.fsync(side.fd(slot))


def ftruncate(side: Side, slot: int, size: int) -> object:
    return os.ftruncate(side.fd(slot), size)


def fallocate(side: Side, slot: int, mode: int, offset: int, length: int) -> object:
    return syscalls.fallocate(side.fd(slot), mode, offset, length)


def copy_range(side: Side, source: int, target: int, size: int, start: int, to: int) -> object:
    return os.copy_file_range(side.fd(source), side.fd(target), size, start, to)


def flock(side: Side, slot: int, how: int) -> object:
    return fcntl.flock(side.fd(slot), how | fcntl.LOCK_NB)


def fchmod(side: Side, slot: int, mode: int) -> object:
    return os.fchmod(side.fd(slot), mode)


def fchown(side: Side, slot: int, uid: int, gid: int) -> object:
    return os.fchown(side.fd(slot), uid, gid)


def fsetxattr(side: Side, slot: int, name: bytes, value: bytes) -> object:
    return os.setxattr(side.fd(slot), name, value)


def truncate(side: Side, path: bytes, size: int) -> object:
    return os.truncate(side.path(path), size)


def lstat(side: Side, path: bytes) -> object:
    return status_of(os.lstat(side.path(path)))


def access(side: Side, path: bytes, mode: int) -> object:
    return os.access(side.path(path), mode, effective_ids=True)


def readdir(side: Side, path: bytes) -> object:
    with os.scandir(side.path(path)) as entries:
        return sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries)


def readlink(side: Side, path: bytes) -> object:
    return os.readlink(side.path(path))


def statfs(side: Side, path: bytes) -> object:
    return os.statvfs(side.path(path)).f_namemax


def mkdir(side: Side, path: bytes, mode: int) -> object:
    return os.mkdir(side.path(path), mode)


def rmdir(side: Side, path: bytes) -> object:
    return os.rmdir(side.path(path))


def unlink(side: Side, path: bytes) -> object:
    return os.unlink(side.path(path))


def rename(side: Side, source: bytes, target: bytes, flags: int) -> object:
    return syscalls.renameat2(side.path(source), side.path(target), flags)


def link(side: Side, source: bytes, target: bytes) -> object:
    return os.link(side.path(source), side.path(target), follow_symlinks=False)


def symlink(side: Side, target: bytes, path: bytes) -> object:
    return os.symlink(target, side.path(path))


def mknod(side: Side, path: bytes, mode: int, device: int) -> object:
    return os.mknod(side.path(path), mode, device)


def chmod(side: Side, path: bytes, mode: int) -> object:
    return os.chmod(side.path(path), mode)


def chown(side: Side, path: bytes, uid: int, gid: int) -> object:
    return os.chown(side.path(path), uid, gid, follow_symlinks=False)


def utimens(side: Side, path: bytes, atime: tuple[int, int], mtime: tuple[int, int]) -> object:
    return syscalls.utimensat(side.path(path), atime, mtime)


def setxattr(side: Side, path: bytes, name: bytes, value: bytes, flags: int) -> object:
    return os.setxattr(side.path(path), name, value, flags, follow_symlinks=False)


def getxattr(side: Side, path: bytes, name: bytes) -> object:
    return os.getxattr(side.path(path), name, follow_symlinks=False)


def listxattr(side: Side, path: bytes) -> object:
    return sorted(os.listxattr(side.path(path), follow_symlinks=False))


def removexattr(side: Side, path: bytes, name: bytes) -> object:
    return os.removexattr(side.path(path), name, follow_symlinks=False)


# what they are called with


def acl(*entries: tuple[int, int, int]) -> bytes:
    """The value of system.posix_acl_*: (tag, permissions, id) each."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
NOBODY = 0xFFFFFFFF

ACLS = [
    acl((USER_OBJ, 7, NOBODY), (GROUP_OBJ, 5, NOBODY), (OTHER, 0, NOBODY)),
    acl(
        (USER_OBJ, 6, NOBODY),
        (USER, 7, ALICE.uid),
        (GROUP_OBJ, 4, NOBODY),
        (GROUP, 6, TEAM),
        (MASK, 6, NOBODY),
        (OTHER, 4, NOBODY),
    ),
    acl(
        (USER_OBJ, 7, NOBODY),
        (USER, 0, ALICE.uid),
        (GROUP_OBJ, 7, NOBODY),
        (MASK, 7, NOBODY),
        (OTHER, 7, NOBODY),
    ),
    acl((USER_OBJ, 7, NOBODY)),  # incomplete
    b"nonsense",
]

NAMES = [
    b"a",
    b"b",
    b"c",
    b"new\nline",
    b"\xff\xfe",
    "µ".encode(),
    b"x" * 255,
    b"x" * 256,
]
DIRECTORIES = [b"", b"", b"team/", b"sticky/", b"acl/", b"a/", b"team/a/"]

paths = st.builds(
    lambda directory, name, tail: directory + name + tail,
    st.sampled_from(DIRECTORIES),
    st.sampled_from(NAMES[:2]) | st.sampled_from(NAMES[:2]) | st.sampled_from(NAMES),
    st.sampled_from([b""] * 12 + [b"/", b"/.", b"/.."]),
) | st.sampled_from([b"team", b"sticky", b"acl", b"file", b"link", b"."])
slots = st.integers(0, 2)
offsets = st.sampled_from([0, 1, 100, 4095, 4096, 10000, 65536, 1 << 20])
sizes = st.sampled_from([0, 1, 3, 4096, 5000, 70000])
contents = st.builds(lambda byte, size: byte * size, st.sampled_from([b"p", b"q", b"\0"]), sizes)
modes = st.sampled_from(
    [0, 0o400, 0o600, 0o644, 0o666, 0o755, 0o777, 0o1777, 0o2775, 0o4755, 0o6777]
)
uids = st.sampled_from([-1, 0, ALICE.uid, 2001])
gids = st.sampled_from([-1, 0, ALICE.gid, TEAM, 4000])
open_flags = st.builds(
    lambda access, flags: access | sum(flags),
    st.sampled_from([os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR]),
    st.sets(
        st.sampled_from(
            [
                os.O_CREAT,
                os.O_CREAT,
                os.O_EXCL,
                os.O_TRUNC,
                os.O_APPEND,
                os.O_NOFOLLOW,
                os.O_DIRECTORY,
                os.O_SYNC,
            ]
        ),
        max_size=4,
    ),
) | st.just(os.O_CREAT | os.O_RDWR)
xattr_names = st.sampled_from(
    [b"user.one", b"user.two", b"trusted.one", b"security.one", b"nonsense", b"user." + b"n" * 251]
)
xattr_values = st.sampled_from([b"", b"1", b"\0\xff", b"v" * 1000])
xattr_flags = st.sampled_from([0, 0, os.XATTR_CREATE, os.XATTR_REPLACE])
seconds = st.sampled_from([(1_000_000_001, 123_456_789), (1_234_567_890, 1), (0, 0)])
times = seconds | st.sampled_from([(0, syscalls.UTIME_NOW), (0, syscalls.UTIME_OMIT)])

CALLS: list[tuple[Callable[..., object], tuple[st.SearchStrategy[Any], ...]]] = [
    (open_, (slots, paths, open_flags, modes)),
    (open_, (slots, paths, open_flags, modes)),
    (open_, (slots, paths, st.just(os.O_CREAT | os.O_RDWR), st.just(0o666))),
    (close, (slots,)),
    (write, (slots, sizes)),
    (pwrite, (slots, offsets, contents)),
    (read, (slots, sizes)),
    (pread, (slots, offsets, sizes)),
    (read_direct, (paths, st.sampled_from([0, 1, 5]))),
    (write_mapped, (slots, offsets, contents)),
    (read_mapped, (paths,)),
    (
        seek,
        (slots, offsets, st.sampled_from([os.SEEK_SET, os.SEEK_END, os.SEEK_DATA, os.SEEK_HOLE])),
    ),
    (fstat, (slots,)),
    (fsync, (slots,)),
    (ftruncate, (slots, offsets)),
    (fallocate, (slots, st.sampled_from([0, 1, 2, 3, 16, 17]), offsets, sizes)),
    (copy_range, (slots, slots, sizes, offsets, offsets)),
    (flock, (slots, st.sampled_from([fcntl.LOCK_EX, fcntl.LOCK_SH, fcntl.LOCK_UN]))),
    (fchmod, (slots, modes)),
    (fchown, (slots, uids, gids)),
    (fsetxattr, (slots, xattr_names, xattr_values)),
    (truncate, (paths, offsets)),
    (lstat, (paths,)),
    (access, (paths, st.integers(0, 7))),
    (readdir, (paths,)),
    (readlink, (paths,)),
    (statfs, (paths,)),
    (mkdir, (paths, modes)),
    (mkdir, (paths, st.just(0o777))),
    (rmdir, (paths,)),
    (unlink, (paths,)),
    (rename, (paths, paths, st.sampled_from([0, 0, 0, 1, 2, 3, 8]))),
    (rename, (paths, paths, st.just(0))),
    (link, (paths, paths)),
    (symlink, (paths | st.just(b"y" * 1000), paths)),
    (mknod, (paths, st.sampled_from([stat.S_IFIFO, stat.S_IFREG, stat.S_IFSOCK]), st.just(0))),
    (mknod, (paths, st.just(stat.S_IFCHR | 0o666), st.just(os.makedev(1, 3)))),
    (chmod, (paths, modes)),
    (chown, (paths, uids, gids)),
    (utimens, (paths, times, times)),
    (setxattr, (paths, xattr_names, xattr_values, xattr_flags)),
    (
        setxattr,
        (
            paths,
            st.sampled_from([b"system.posix_acl_access", b"system.posix_acl_default"]),
            st.sampled_from(ACLS),
            st.just(0),
        ),
    ),
    (getxattr, (paths, xattr_names | st.just(b"system.posix_acl_access"))),
    (listxattr, (paths,)),
    (removexattr, (paths, xattr_names | st.just(b"system.posix_acl_access"))),
]

steps = st.one_of(
    *[
        st.builds(
            Step,
            st.just(call),
            st.tuples(*arguments),
            st.sampled_from([ROOT, ALICE, ALICE]),
            st.sampled_from([0o022, 0o022, 0, 0o077]),
        )
        for call, arguments in CALLS
    ]
)


def prepare(side: Side) -> None:
    """Directories of the kinds that a facility has, so that most calls find something to do."""
    root = Path(os.fsdecode(side.root))
    root.mkdir()
    root.chmod(0o777)
    for name, mode in (("team", 0o2775), ("sticky", 0o3777), ("acl", 0o777)):
        (root / name).mkdir()
        os.chown(root / name, 0, TEAM)
        (root / name).chmod(mode)
    (root / "a").mkdir()
    os.chown(root / "a", ALICE.uid, ALICE.gid)
    for name in ("b", "a/b", "team/b", "sticky/b", "acl/b"):
        (root / name).write_bytes(b"b" * 5000)
        (root / name).chmod(0o666)
    os.setxattr(root / "acl", "system.posix_acl_default", ACLS[1])
    (root / "file").write_bytes(b"content" * 1000)
    (root / "file").chmod(0o666)
    (root / "link").symlink_to("file")
    for name in ("team", "sticky", "acl", "file"):
        os.utime(root / name, (1_000_000_000, 1_000_000_000))
    open_(side, 0, b"file", os.O_RDWR, 0)


def compare(one: Side, other: Side, program: Iterable[Step]) -> None:
    """Run the steps on both sides; raise `DifferenceFound` at the first difference."""
    done: list[str] = []
    with contextlib.ExitStack() as stack:
        for side in (one, other):
            prepare(side)
            stack.callback(side.close_all)
        for step in program:
            first, second = one.run(step), other.run(step)
            done.append(f"{step!r} -> {trees.shortened(first)}")
            if first != second:
                raise DifferenceFound(
                    "\n".join([*done, f"but on the second side -> {trees.shortened(second)}"])
                )
        found = trees.differences(
            trees.snapshot(one.root), trees.snapshot(other.root), ignoring=trees.IDENTITY
        )
        if found:
            raise DifferenceFound("\n".join([*done, "and then the trees differ:", *found]))


def explore(
    make_sides: Callable[[], tuple[Side, Side]],
    examples: int,
    length: int = 50,
    finally_: Callable[[Side, Side], None] = lambda _one, _other: None,
) -> None:
    """Look for a program of ``length`` steps that tells the two sides apart.

    The programs are the same in every run. ``finally_`` may check more after each of them.
    A program that shows a difference is shown with only those steps that it takes.
    """

    def difference(program: list[Step]) -> DifferenceFound | None:
        one, other = make_sides()
        try:
            compare(one, other, program)
            finally_(one, other)
        except DifferenceFound as found:
            return found
        finally:
            for side in (one, other):
                shutil.rmtree(side.root)
        return None

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        report_multiple_bugs=False,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(steps, min_size=length, max_size=length))
    def same_on_both_sides(program: list[Step]) -> None:
        # Not raised here: Hypothesis would run and print all 50 steps again.
        if not failures and difference(program):
            failures.append(program)

    failures: list[list[Step]] = []
    same_on_both_sides()
    if failures:
        shortest = without_needless_steps(failures[0], difference)
        raise difference(shortest) or DifferenceFound(f"once only: {failures[0]}")


def without_needless_steps(
    program: list[Step], difference: Callable[[list[Step]], DifferenceFound | None]
) -> list[Step]:
    """The program without what can be left out one by one and still shows a difference."""
    for index in reversed(range(len(program))):
        shorter = program[:index] + program[index + 1 :]
        if difference(shorter):
            program = shorter
    return program
