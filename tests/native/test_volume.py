"""``_volume``: what the backing file system is told, and as whom."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gc
import os
import random
import stat
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from modamafs.model import Attributes
from modamafs.store import _volume
from modamafs.store._volume import Volume
from tests.native import sanitized
from tests.support.descriptors import none_left
from tests.support.images import Image
from tests.support.syscalls import RENAME_EXCHANGE, RENAME_NOREPLACE
from tests.support.users import in_child

FS_IOC_GETVERSION = 0x80087601
CAP_FSETID, CAP_SYS_RESOURCE = 4, 24
UID, GID, TEAM = 4001, 4002, 4003

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to act as somebody else")


@contextlib.contextmanager
def opened(path: Path, flags: int = os.O_RDONLY) -> Iterator[int]:
    fd = os.open(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    """A descriptor of ``tmp_path``."""
    with opened(tmp_path) as fd:
        yield fd


@pytest.fixture(autouse=True)
def nothing_stays_changed() -> Iterator[None]:
    """Whoever it was done as: the thread is itself again afterwards, and no descriptor is left."""
    before = identity()
    with none_left():
        yield
    assert identity() == before


def identity() -> list[str]:
    lines = Path("/proc/thread-self/status").read_text().splitlines()
    return [line for line in lines if line.startswith(("Uid", "Gid", "Cap", "Umask", "Groups"))]


@pytest.fixture(scope="module", params=["ext4", "xfs", "btrfs"])
def volume_root(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Path]]:
    """The root of a file system of each kind."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount an image")
    with Image(request.param, tmp_path_factory.mktemp("image")) as image:
        yield request.param, image.root


# ---- looking -------------------------------------------------------------------------------------


def fill(root: Path) -> list[Path]:
    """One of every kind, with sizes, times and links."""
    root.mkdir()
    file = root / "file"
    file.write_bytes(b"x" * 10_000)
    os.utime(file, ns=(1_000_000_000_123_456_789, 1_100_000_000_987_654_321))
    file.chmod(0o4741)
    (root / "second name").hardlink_to(file)
    sparse = root / "sparse"
    sparse.touch()
    os.truncate(sparse, 1 << 33)
    (root / "directory" / "below").mkdir(parents=True)
    (root / "dangling").symlink_to("nowhere")
    os.mkfifo(root / "fifo")
    paths = [file, root / "second name", sparse, root / "directory", root / "dangling"]
    if os.geteuid() == 0:
        os.mknod(root / "device", stat.S_IFCHR | 0o600, os.makedev(0x123, 0x34567))
        os.mknod(root / "block", stat.S_IFBLK | 0o600, os.makedev(7, 300))
        os.chown(root / "sparse", UID, GID)
        os.chown(root / "dangling", UID, GID, follow_symlinks=False)
        paths += [root / "device", root / "block"]
    return [*paths, root / "fifo", root]


def assert_same(found: Attributes | None, path: Path) -> None:
    st = path.lstat()
    assert found is not None
    assert found[:1] + found[2:13] == (
        st.st_ino, st.st_mode, st.st_nlink, st.st_uid, st.st_gid, st.st_rdev, st.st_size,
        st.st_blocks, st.st_blksize, st.st_atime_ns, st.st_mtime_ns, st.st_ctime_ns,
    )  # fmt: skip
    assert found.dev == st.st_dev
    assert found.immutable is False
    if found.btime_ns:
        born = subprocess.check_output(["stat", "--format=%W", str(path)], text=True)
        assert found.btime_ns // 10**9 == int(born)


def test_attributes_are_lstats(volume_root: tuple[str, Path]) -> None:
    fstype, top = volume_root
    root = top / "attributes"
    paths = fill(root)
    with opened(root) as fd, opened(top) as top_fd:
        volume = Volume(top_fd)
        assert volume.kind == fstype
        assert volume.root_ino == top.lstat().st_ino
        assert volume.dev == top.lstat().st_dev
        assert_same(volume.lookup(top_fd, b"attributes"), root)
        for path in paths[:-1]:
            assert_same(volume.lookup(fd, os.fsencode(path.name)), path)
        for path in paths:
            with opened(path, os.O_PATH | os.O_NOFOLLOW) as node:
                assert_same(volume.attributes(node), path)
            assert_same(volume.attributes_of(path.lstat().st_ino), path)
        assert volume.attributes(fd).btime_ns > 0
        assert volume.lookup(fd, b"nothing") is None
        with pytest.raises(NotADirectoryError), opened(root / "file") as file:
            volume.lookup(file, b"below")
        with pytest.raises(OSError, match="long"):
            volume.lookup(fd, b"n" * 256)


def test_the_generation_is_the_file_systems_own(volume_root: tuple[str, Path]) -> None:
    _, top = volume_root
    with opened(top) as top_fd:
        volume = Volume(top_fd)
        generations = set()
        for number in range(5):
            path = top / f"generation {number}"
            path.touch()
            with opened(path) as fd:
                version = fcntl.ioctl(fd, FS_IOC_GETVERSION, bytes(8))
                generation = int.from_bytes(version[:4], sys.byteorder)
                assert volume.attributes(fd).generation == generation
                found = volume.lookup(top_fd, os.fsencode(path.name))
                assert found is not None
                assert found.generation == generation
                generations.add(generation)
            path.unlink()
        assert generations != {0}


def test_open_by_number(volume_root: tuple[str, Path]) -> None:
    _, top = volume_root
    path = top / "to open"
    path.write_bytes(b"content")
    ino = path.stat().st_ino
    with opened(top) as top_fd:
        volume = Volume(top_fd)
        fd = volume.open(ino, os.O_RDONLY)
        assert os.pread(fd, 100, 0) == b"content"
        assert fcntl.fcntl(fd, fcntl.F_GETFD) == fcntl.FD_CLOEXEC
        path.unlink()
        again = volume.open(ino, os.O_RDONLY)
        assert os.pread(again, 100, 0) == b"content", "also without a name, while it is open"
        os.close(again)
        os.close(fd)
        for call in (lambda: volume.open(ino, os.O_PATH), lambda: volume.attributes_of(ino)):
            with pytest.raises(OSError, match="Stale") as raised:
                call()
            assert raised.value.errno == errno.ESTALE
        for wrong in (0, 1 << 31, (1 << 64) - 1):
            with pytest.raises(OSError, match=r".") as raised:
                volume.open(wrong, os.O_PATH)
            assert raised.value.errno in (errno.ESTALE, errno.EINVAL)


def test_a_file_system_without_handles_of_ours() -> None:
    with opened(Path("/proc")) as fd:
        volume = Volume(fd)
        assert volume.kind == "other"
        assert volume.attributes(fd).generation == 0
        with pytest.raises(OSError, match="not supported") as raised:
            volume.open(1, os.O_PATH)
        assert raised.value.errno == errno.EOPNOTSUPP


def listing(volume: Volume, fd: int, size_bytes: int) -> list[tuple[bytes, int, Attributes]]:
    entries: list[tuple[bytes, int, Attributes]] = []
    offset = 0
    while batch := volume.scan(fd, offset, size_bytes):
        entries += batch
        offset = batch[-1][1]
    return entries


def test_scan_is_scandir(volume_root: tuple[str, Path]) -> None:
    _, top = volume_root
    root = top / "many"
    paths = fill(root)
    for number in range(400):
        (root / f"{number:03}-{'n' * (number % 200)}").touch()
    (root / os.fsdecode(b"\xff\xfe\n")).touch()
    expected = {b".", b"..", *(os.fsencode(entry.name) for entry in os.scandir(root))}
    with opened(root) as fd, opened(top) as top_fd:
        volume = Volume(top_fd)
        whole = listing(volume, fd, 1 << 20)
        assert len(whole) == len(expected)
        assert {name for name, _, _ in whole} == expected
        assert len({offset for _, offset, _ in whole}) == len(whole)
        assert all(0 < offset < 1 << 63 for _, offset, _ in whole)
        for size_bytes in (-1, 0, 512, 4096):
            again = listing(volume, fd, size_bytes)
            assert [entry[:2] for entry in again] == [entry[:2] for entry in whole]
        for at in random.Random(1).sample(range(len(whole)), 40):
            rest = volume.scan(fd, whole[at][1], 1 << 16)
            expected_rest = [entry[:2] for entry in whole[at + 1 :]][: len(rest)]
            assert [entry[:2] for entry in rest] == expected_rest
            assert rest or at == len(whole) - 1
        named = {name: found for name, _, found in whole}
        for path in paths[:-1]:
            assert_same(named[os.fsencode(path.name)], path)
        assert named[b"."].ino == volume.attributes(fd).ino
        assert named[b".."].ino == top.stat().st_ino


def test_scan_goes_on_where_entries_have_vanished(volume_root: tuple[str, Path]) -> None:
    _, top = volume_root
    root = top / "vanishing"
    root.mkdir()
    for number in range(200):
        (root / f"{number:03}").touch()
    with opened(root) as fd, opened(top) as top_fd:
        volume = Volume(top_fd)
        first = volume.scan(fd, 0, 512)
        seen = [name for name, _, _ in first]
        kept = {b"199", b"100"} - set(seen)
        for number in range(200):
            if b"%03d" % number not in kept:
                (root / f"{number:03}").unlink()
        (root / "new").touch()
        rest: list[bytes] = []
        offset = first[-1][1]
        while batch := volume.scan(fd, offset, 512):
            rest += [name for name, _, _ in batch]
            offset = batch[-1][1]
        assert kept <= set(rest)
        assert len(rest) == len(set(rest))
        assert not set(rest) & set(seen)


def test_scan_of_what_is_no_directory(tmp_path: Path, directory: int) -> None:
    (tmp_path / "file").touch()
    volume = Volume(directory)
    with opened(tmp_path / "file") as fd, pytest.raises(NotADirectoryError):
        volume.scan(fd, 0, 4096)
    with pytest.raises(OSError, match="Bad file"):
        volume.scan(-1, 0, 4096)
    (tmp_path / "gone").mkdir()
    with opened(tmp_path / "gone") as fd:
        (tmp_path / "gone").rmdir()
        with pytest.raises(FileNotFoundError):
            volume.scan(fd, 0, 4096)


# ---- acting as somebody --------------------------------------------------------------------------


@needs_root
@pytest.mark.parametrize(("uid", "gid"), [(0, 0), (UID, GID), (0, GID), (UID, 0)])
def test_what_is_made_belongs_to_the_caller(
    tmp_path: Path, directory: int, uid: int, gid: int
) -> None:
    tmp_path.chmod(0o700)  # nobody else may: that is for the kernel to decide, and it has
    os.close(_volume.create(directory, b"file", os.O_CREAT | os.O_RDWR, 0o664, uid, gid, 0o027))
    _volume.mknod(directory, b"directory", stat.S_IFDIR | 0o775, 0, uid, gid, 0o027)
    _volume.mknod(directory, b"fifo", stat.S_IFIFO | 0o666, 0, uid, gid, 0)
    device = os.makedev(0x123, 0x45678)
    _volume.mknod(directory, b"device", stat.S_IFCHR | 0o666, device, uid, gid, 0o077)
    _volume.symlink(b"target \xff", directory, b"link", uid, gid)
    modes = {"file": 0o640, "directory": 0o750, "fifo": 0o666, "device": 0o600, "link": 0o777}
    for name, mode in modes.items():
        st = (tmp_path / name).lstat()
        assert (st.st_uid, st.st_gid, stat.S_IMODE(st.st_mode)) == (uid, gid, mode), name
    assert (tmp_path / "device").lstat().st_rdev == device
    assert os.fsencode((tmp_path / "link").readlink()) == b"target \xff"


@needs_root
def test_a_setgid_directory_gives_its_group(tmp_path: Path, directory: int) -> None:
    os.chown(tmp_path, 0, TEAM)
    tmp_path.chmod(0o2775)
    os.close(_volume.create(directory, b"file", os.O_CREAT | os.O_WRONLY, 0o664, UID, GID, 0))
    _volume.mknod(directory, b"directory", stat.S_IFDIR | 0o775, 0, UID, GID, 0)
    _volume.symlink(b"target", directory, b"link", UID, GID)
    for name in ("file", "directory", "link"):
        assert (tmp_path / name).lstat().st_gid == TEAM
        assert (tmp_path / name).lstat().st_uid == UID
    assert (tmp_path / "directory").stat().st_mode & stat.S_ISGID
    assert not (tmp_path / "file").stat().st_mode & stat.S_ISGID


@needs_root
def test_create_keeps_the_mode_that_was_asked_for(tmp_path: Path, directory: int) -> None:
    os.close(_volume.create(directory, b"x", os.O_CREAT | os.O_WRONLY, 0o6755, UID, GID, 0))
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o6755


@needs_root
def test_a_default_acl_counts_and_not_the_umask(tmp_path: Path, directory: int) -> None:
    subprocess.run(["setfacl", "-d", "-m", "u::rw,g::rw,o::-,m::rw", str(tmp_path)], check=True)
    os.close(_volume.create(directory, b"file", os.O_CREAT | os.O_RDWR, 0o666, UID, GID, 0o077))
    _volume.mknod(directory, b"fifo", stat.S_IFIFO | 0o666, 0, UID, GID, 0o077)
    for name in ("file", "fifo"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o660


@needs_root
def test_an_unnamed_file_and_a_name_for_it(tmp_path: Path, directory: int) -> None:
    fd = _volume.create(directory, b".", os.O_TMPFILE | os.O_RDWR, 0o640, UID, GID, 0)
    try:
        os.write(fd, b"content")
        assert os.listdir(tmp_path) == []
        _volume.link(fd, directory, b"named")
        st = (tmp_path / "named").stat()
        assert (st.st_uid, st.st_gid, st.st_nlink) == (UID, GID, 1)
        with pytest.raises(FileExistsError):
            _volume.link(fd, directory, b"named")
    finally:
        os.close(fd)
    with opened(tmp_path / "named", os.O_PATH) as path_fd:
        _volume.link(path_fd, directory, b"again")
    assert (tmp_path / "again").read_bytes() == b"content"


@needs_root
def test_a_refused_call_is_an_error_and_the_identity_is_back(
    tmp_path: Path, directory: int
) -> None:
    (tmp_path / "there").touch()
    before, umask = identity(), 0o022
    os.umask(umask)
    calls: list[Callable[[], object]] = [
        lambda: _volume.create(directory, b"there", os.O_CREAT | os.O_EXCL, 0o600, UID, GID, 0o7),
        lambda: _volume.create(directory, b"no/where", os.O_CREAT, 0o600, UID, GID, 0o7),
        lambda: _volume.create(-1, b"x", os.O_CREAT, 0o600, UID, GID, 0o7),
        lambda: _volume.mknod(directory, b"there", stat.S_IFDIR, 0, UID, GID, 0o7),
        lambda: _volume.mknod(directory, b"x", 0o170000, 0, UID, GID, 0o7),
        lambda: _volume.symlink(b"", directory, b"x", UID, GID),
        lambda: _volume.truncate(directory, 0, UID, GID),
        lambda: _volume.truncate(-1, 0, UID, GID),
        lambda: _volume.fallocate(directory, 0, 0, 1, UID, GID),
        lambda: _volume.write(-1, b"x", 0, UID, GID),
        lambda: _volume.write(-1, b"x", 0, 0, GID),
        lambda: _volume.ioctl_as(directory, 0x5401, bytearray(64), UID, GID),
        lambda: _volume.setxattr_as(directory, b"nonsense", b"", 0, UID, GID, False),
        lambda: _volume.setxattr_as(-1, b"user.x", b"", 0, UID, GID, True),
    ]
    for call in calls:
        with pytest.raises(OSError, match=r"."):
            call()
        assert identity() == before
        assert os.umask(umask) == umask
    assert os.listdir(tmp_path) == ["there"]


@needs_root
def test_capabilities_that_were_given_up_do_not_come_back() -> None:
    def give_up_and_act() -> tuple[list[str], list[str]]:
        _volume.drop_capability(CAP_SYS_RESOURCE)
        before = identity()
        fd = os.memfd_create("scratch")
        _volume.truncate(fd, 10, UID, GID)
        return before, identity()

    before, after = in_child(give_up_and_act)
    assert before == after
    effective = [line for line in after if line.startswith(("CapEff", "CapPrm"))]
    assert len(effective) == 2
    assert all(not int(line.split()[1], 16) & 1 << CAP_SYS_RESOURCE for line in effective)


@needs_root
def test_what_others_do_meanwhile_they_do_as_themselves(tmp_path: Path) -> None:
    """The identity is the thread's: truncating lets other threads run."""
    done = threading.Event()
    owners = set()

    def make() -> None:
        for number in range(300):
            path = tmp_path / f"mine {number}"
            path.touch()
            owners.add((path.stat().st_uid, path.stat().st_gid))
        done.set()

    fd = os.memfd_create("scratch")
    thread = threading.Thread(target=make)
    thread.start()
    while not done.is_set():
        _volume.truncate(fd, 1 << 20, UID, GID)
        _volume.truncate(fd, 0, UID, GID)
    thread.join()
    os.close(fd)
    assert owners == {(0, 0)}


# ---- set-user-id bits ----------------------------------------------------------------------------


@needs_root
@pytest.mark.parametrize(("uid", "mode"), [(0, 0o6755), (UID, 0o755)])
def test_truncate_clears_set_user_id_for_an_ordinary_user(
    tmp_path: Path, uid: int, mode: int
) -> None:
    path = tmp_path / "program"
    path.write_bytes(b"x" * 100)
    path.chmod(0o6755)
    with opened(path, os.O_WRONLY) as fd:
        _volume.truncate(fd, 7, uid, uid)
    assert path.stat().st_size == 7
    assert stat.S_IMODE(path.stat().st_mode) == mode


@needs_root
@pytest.mark.parametrize(("uid", "mode"), [(0, 0o6755), (UID, 0o755)])
def test_fallocate_clears_set_user_id_for_an_ordinary_user(
    tmp_path: Path, uid: int, mode: int
) -> None:
    path = tmp_path / "program"
    path.touch()
    path.chmod(0o6755)
    with opened(path, os.O_WRONLY) as fd:
        _volume.fallocate(fd, 0, 4096, 4096, uid, uid)
    assert path.stat().st_size == 8192
    assert stat.S_IMODE(path.stat().st_mode) == mode


@needs_root
@pytest.mark.parametrize(("uid", "mode"), [(0, 0o6755), (UID, 0o755)])
def test_write_clears_set_user_id_for_an_ordinary_user(tmp_path: Path, uid: int, mode: int) -> None:
    path = tmp_path / "program"
    path.write_bytes(b"0123456789")
    path.chmod(0o6755)
    with opened(path, os.O_WRONLY) as fd:
        assert _volume.write(fd, b"abc", 8, uid, uid) == 3
        assert _volume.write(fd, b"", 0, uid, uid) == 0
    assert path.read_bytes() == b"01234567abc"
    assert stat.S_IMODE(path.stat().st_mode) == mode


ACL = struct.pack("=I" + "HHI" * 3, 2, 1, 6, 0xFFFFFFFF, 4, 6, 0xFFFFFFFF, 32, 4, 0xFFFFFFFF)


@needs_root
@pytest.mark.parametrize(("keep", "mode"), [(True, 0o2664), (False, 0o664)])
def test_an_acl_by_somebody_outside_the_group(tmp_path: Path, keep: bool, mode: int) -> None:
    path = tmp_path / "file"
    path.touch()
    os.chown(path, UID, TEAM)
    path.chmod(0o2664)
    with opened(path, os.O_PATH) as fd:
        _volume.setxattr_as(fd, b"system.posix_acl_access", ACL, 0, UID, GID, keep)
    assert stat.S_IMODE(path.stat().st_mode) == mode


# ---- the rest ------------------------------------------------------------------------------------


def test_setxattr_of_any_bytes_and_with_flags(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    with opened(path, os.O_PATH) as fd:
        _volume.setxattr_as(fd, b"user.\xff", b"\0value\0", os.XATTR_CREATE, 0, 0, True)
        with pytest.raises(FileExistsError):
            _volume.setxattr_as(fd, b"user.\xff", b"", os.XATTR_CREATE, 0, 0, True)
        with pytest.raises(OSError, match="No data"):
            _volume.setxattr_as(fd, b"user.other", b"", os.XATTR_REPLACE, 0, 0, True)
        _volume.setxattr_as(fd, b"user.empty", b"", 0, 0, 0, True)
    assert os.getxattr(path, b"user.\xff") == b"\0value\0"
    assert os.getxattr(path, b"user.empty") == b""


@needs_root
def test_setxattr_of_a_symbolic_link_is_its_own(tmp_path: Path) -> None:
    (tmp_path / "target").touch()
    (tmp_path / "link").symlink_to("target")
    with opened(tmp_path / "link", os.O_PATH | os.O_NOFOLLOW) as fd:
        _volume.setxattr_as(fd, b"trusted.x", b"v", 0, 0, 0, True)
    assert os.getxattr(tmp_path / "link", "trusted.x", follow_symlinks=False) == b"v"
    assert os.listxattr(tmp_path / "target") == []


def test_rename_flags(tmp_path: Path, directory: int) -> None:
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").write_text("b")
    with pytest.raises(FileExistsError):
        _volume.rename(directory, b"a", directory, b"b", RENAME_NOREPLACE)
    _volume.rename(directory, b"a", directory, b"b", RENAME_EXCHANGE)
    assert ((tmp_path / "a").read_text(), (tmp_path / "b").read_text()) == ("b", "a")
    _volume.rename(directory, b"a", directory, b"b", 0)
    assert os.listdir(tmp_path) == ["b"]
    assert (tmp_path / "b").read_text() == "b"
    with pytest.raises(OSError, match="Invalid"):
        _volume.rename(directory, b"b", directory, b"c", 1 << 20)
    (tmp_path / "below").mkdir()
    with opened(tmp_path / "below") as below:
        _volume.rename(directory, b"b", below, b"\xff", RENAME_NOREPLACE)
    assert os.listdir(os.fsencode(tmp_path / "below")) == [b"\xff"]


@needs_root
def test_chown_of_one_of_both(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    with opened(tmp_path / "link", os.O_PATH | os.O_NOFOLLOW) as fd:
        for uid, gid, expected in [
            (UID, 0xFFFFFFFF, (UID, 0)),
            (0xFFFFFFFF, GID, (UID, GID)),
            (0, TEAM, (0, TEAM)),
            (0xFFFFFFFE, 0xFFFFFFFE, (0xFFFFFFFE, 0xFFFFFFFE)),
        ]:
            _volume.chown(fd, uid, gid)
            st = (tmp_path / "link").lstat()
            assert (st.st_uid, st.st_gid) == expected


@pytest.mark.parametrize(
    "ns", [0, 1, -1, -999_999_999, -1_000_000_000, -1_000_000_001, 2**33 * 10**9 + 123_456_789]
)
def test_utimens(tmp_path: Path, ns: int) -> None:
    path = tmp_path / "file"
    path.touch()
    with opened(path, os.O_PATH) as fd:
        _volume.utimens(fd, ns, 5)
        assert (path.stat().st_atime_ns, path.stat().st_mtime_ns) == (ns, 5)
        _volume.utimens(fd, None, ns)
        assert (path.stat().st_atime_ns, path.stat().st_mtime_ns) == (ns, ns)
        _volume.utimens(fd, 7, None)
        assert (path.stat().st_atime_ns, path.stat().st_mtime_ns) == (7, ns)
        assert Volume(fd).attributes(fd).mtime_ns == ns


def test_utimens_of_a_symbolic_link_is_its_own(tmp_path: Path) -> None:
    (tmp_path / "target").touch()
    (tmp_path / "link").symlink_to("target")
    before = (tmp_path / "target").stat().st_mtime_ns
    with opened(tmp_path / "link", os.O_PATH | os.O_NOFOLLOW) as fd:
        _volume.utimens(fd, 1, 2)
    assert (tmp_path / "link").lstat().st_mtime_ns == 2
    assert (tmp_path / "target").stat().st_mtime_ns == before


def test_ioctl_fills_the_buffer(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    with opened(path) as fd:
        flags = bytearray(b"\xff" * 4)
        assert _volume.ioctl_as(fd, 0x80086601, flags, 0, 0) == 0  # FS_IOC_GETFLAGS
        expected = fcntl.ioctl(fd, 0x80086601, bytes(8))[:4]
        assert bytes(flags) == expected


# ---- wrong arguments, many times -----------------------------------------------------------------


def test_errors_leave_nothing_behind(tmp_path: Path, directory: int) -> None:
    (tmp_path / "file").touch()
    volume = Volume(directory)
    name, value = b"a name that is nowhere", bytearray(b"value")
    wrong: list[tuple[Callable[..., object], tuple[object, ...]]] = [
        (Volume, (-1,)),
        (Volume, ()),
        (Volume, ("x",)),
        (volume.open, (1,)),
        (volume.open, ("1", 0)),
        (volume.open, (1, None)),
        (volume.open, (-1, 0)),
        (volume.open, (1 << 64, 0)),
        (volume.open, (0, os.O_PATH)),
        (volume.attributes, (-1,)),
        (volume.attributes, (None,)),
        (volume.attributes_of, (0,)),
        (volume.attributes_of, (-1,)),
        (volume.attributes_of, ("1",)),
        (volume.lookup, (directory,)),
        (volume.lookup, (directory, "text")),
        (volume.lookup, ("1", name)),
        (volume.lookup, (-1, name)),
        (volume.scan, (-1, 0, 4096)),
        (volume.scan, (directory, -1, 4096)),
        (volume.scan, (directory, "0", 4096)),
        (volume.scan, (directory, 0)),
        (_volume.create, (directory, name, os.O_RDONLY, 0, 0, 0, 0)),
        (_volume.create, (directory, "text", 0, 0, 0, 0, 0)),
        (_volume.create, (directory, b"nul\0", 0, 0, 0, 0, 0)),
        (_volume.mknod, (directory, b"file", stat.S_IFDIR, 0, 0, 0, 0)),
        (_volume.mknod, (directory, name, stat.S_IFDIR)),
        (_volume.symlink, (b"", directory, name, 0, 0)),
        (_volume.symlink, ("text", directory, name, 0, 0)),
        (_volume.truncate, (-1, 0, 0, 0)),
        (_volume.truncate, (-1, "0", 0, 0)),
        (_volume.fallocate, (-1, 0, 0, 0, 0, 0)),
        (_volume.write, (-1, value, 0, 0, 0)),
        (_volume.write, (-1, "text", 0, 0, 0)),
        (_volume.ioctl_as, (-1, 0, value, 0, 0)),
        (_volume.ioctl_as, (-1, 0, name, 0, 0)),
        (_volume.setxattr_as, (-1, name, value, 0, 0, 0, True)),
        (_volume.setxattr_as, (-1, name, "text", 0, 0, 0, True)),
        (_volume.setxattr_as, (-1, "text", value, 0, 0, 0, True)),
        (_volume.rename, (-1, name, -1, name, 0)),
        (_volume.rename, (directory, name, directory, "text", 0)),
        (_volume.link, (-1, directory, name)),
        (_volume.link, (directory, directory, None)),
        (_volume.chown, (-1, 0, 0)),
        (_volume.chown, (-1, "0", 0)),
        (_volume.utimens, (-1, 0, None)),
        (_volume.utimens, (directory, "0", None)),
        (_volume.utimens, (directory, 0, 1 << 100)),
        (_volume.drop_capability, ("x",)),
    ]

    def hammer() -> None:
        for function, arguments in wrong:
            with pytest.raises((OSError, TypeError, ValueError, OverflowError)):
                function(*arguments)
        assert volume.lookup(directory, name) is None
        volume.scan(directory, 0, 4096)

    hammer()
    watched = [name, value, volume, None, True, False]
    gc.collect()
    before = [sys.getrefcount(thing) for thing in watched]
    blocks = sys.getallocatedblocks()
    for _ in range(50):
        hammer()
    gc.collect()
    after = [sys.getrefcount(thing) for thing in watched]
    assert max(abs(new - old) for new, old in zip(after, before, strict=True)) < 20
    assert sys.getallocatedblocks() - blocks < 50, "less than one block a round"
    value += b"not exported any more"


def test_results_are_freed(tmp_path: Path, directory: int) -> None:
    for number in range(20):
        (tmp_path / str(number)).touch()
    volume = Volume(directory)

    def use() -> None:
        volume.scan(directory, 0, 1 << 16)
        volume.attributes(directory)
        assert volume.lookup(directory, b"7") is not None

    use()
    gc.collect()
    types = sys.getrefcount(Attributes)
    blocks = sys.getallocatedblocks()
    for _ in range(200):
        use()
    gc.collect()
    assert sys.getrefcount(Attributes) == types, "each instance holds its type"
    assert sys.getallocatedblocks() - blocks < 200


@pytest.mark.parametrize("number", [-1, 64, 1 << 20])
def test_a_capability_that_does_not_exist_is_an_error(tmp_path: Path, number: int) -> None:
    code = f"""if True:
        from tests.native import sanitized
        sanitized.use_if_asked()
        from modamafs.store import _volume
        try:
            _volume.drop_capability({number})
        except (ValueError, OSError):
            print("refused")
    """
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        env=sanitized.environment(tmp_path) if sanitized.in_use() else None,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "refused\n"), done.stderr


@pytest.mark.parametrize("name", [b"file\0more", b""])
def test_a_name_is_looked_up_whole(tmp_path: Path, directory: int, name: bytes) -> None:
    (tmp_path / "file").touch()
    found: object = None
    with contextlib.suppress(ValueError, FileNotFoundError):
        found = Volume(directory).lookup(directory, name)
    assert found is None
