"""Everything that reads works in a sealed tree, at once, for everybody who could read before."""

from __future__ import annotations

import fcntl
import mmap
import os
import stat
import struct
from collections.abc import Callable
from pathlib import Path

import h5py
import pytest

from tests.attack.conftest import Sealed
from tests.attack.scene import (
    BLOCK,
    EMPTY,
    FRAME,
    FRAME_BYTES,
    FRAMES,
    LATEST,
    PIPE,
    RAW,
    SCAN,
    USERS,
    hdf5,
)
from tests.support.users import as_user

WHOLE_FILE = struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0)
"""``struct flock``, to read."""


def read(root: Path) -> None:
    assert (root / SCAN).read_bytes() == hdf5()


def read_with_o_creat(root: Path) -> None:
    """As programs do that only want it to be there."""
    fd = os.open(root / FRAME, os.O_RDONLY | os.O_CREAT, 0o666)
    assert os.read(fd, 5) == b"frame"
    os.close(fd)


def read_direct(root: Path) -> None:
    fd = os.open(root / FRAME, os.O_RDONLY | os.O_DIRECT)
    with mmap.mmap(-1, BLOCK * 4) as buffer:
        assert os.preadv(fd, [buffer], 0) == len(FRAME_BYTES)
        assert buffer[:] == FRAME_BYTES
    os.close(fd)


def read_mapped(root: Path) -> None:
    with (
        open(root / FRAME, "rb") as file,
        mmap.mmap(file.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ) as mapping,
    ):
        assert mapping[:] == FRAME_BYTES


def write_privately(root: Path) -> None:
    protection = mmap.PROT_READ | mmap.PROT_WRITE
    with (
        open(root / FRAME, "rb") as file,
        mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, protection) as mapping,
    ):
        mapping[:4] = b"mine"
        assert mapping[:8] == b"mine" + FRAME_BYTES[4:8]
        assert os.pread(file.fileno(), 8, 0) == FRAME_BYTES[:8]


def lock(how: int) -> Callable[[Path], None]:
    """flock(2), on a descriptor to read."""

    def attempt(root: Path) -> None:
        with open(root / SCAN, "rb") as file:
            fcntl.flock(file, how | fcntl.LOCK_NB)
            fcntl.flock(file, fcntl.LOCK_UN)

    return attempt


def lock_range(command: int) -> Callable[[Path], None]:
    """A read lock of fcntl(2)."""

    def attempt(root: Path) -> None:
        with open(root / SCAN, "rb") as file:
            fcntl.fcntl(file, command, WHOLE_FILE)

    return attempt


def read_hdf5(root: Path) -> None:
    """With HDF5's own lock, as LiberTEM does."""
    assert "HDF5_USE_FILE_LOCKING" not in os.environ
    with h5py.File(root / SCAN, "r") as file:
        assert file["counts"][500] == 500
        assert file["counts"].attrs["instrument"] == "Titan"


def list_directories(root: Path) -> None:
    names = {"empty", "frames", "latest", "pipe", "plain.dat", "scan.h5"}
    assert set(os.listdir(root / RAW)) == names
    assert {entry.name for entry in os.scandir(root / FRAMES)} == {"1.raw", "twin.h5"}
    assert os.listdir(root / EMPTY) == []


def look(root: Path) -> None:
    """stat(2): what was measured is what is shown, but for the write bits."""
    status = (root / SCAN).stat()
    assert stat.S_IMODE(status.st_mode) == 0o444
    assert (status.st_uid, status.st_nlink, status.st_size) == (
        USERS["owner"].uid,
        2,
        len(hdf5()),
    )
    assert stat.S_IMODE((root / FRAMES).stat().st_mode) == 0o555
    assert stat.S_IMODE((root / RAW).stat().st_mode) == 0o555
    assert stat.S_ISFIFO((root / PIPE).stat().st_mode)


def read_xattrs(root: Path) -> None:
    for name in (SCAN, FRAMES, RAW):
        assert os.getxattr(root / name, "user.instrument") == b"Titan"
        assert "user.instrument" in os.listxattr(root / name)


def read_acls(root: Path) -> None:
    """They are shown without any right to write."""
    value = os.getxattr(root / SCAN, "system.posix_acl_access")
    permissions = [entry[1] for entry in struct.iter_unpack("<HHI", value[4:])]
    assert permissions
    assert not any(permission & 2 for permission in permissions)


def follow(root: Path) -> None:
    assert os.readlink(root / LATEST) == "frames/1.raw"
    assert (root / LATEST).read_bytes() == FRAME_BYTES


def may_read(root: Path) -> None:
    for name in (SCAN, FRAMES, RAW):
        assert os.access(root / name, os.R_OK)


READS: dict[str, Callable[[Path], None]] = {
    "read": read,
    "open O_CREAT to read": read_with_o_creat,
    "read O_DIRECT": read_direct,
    "mmap PROT_READ": read_mapped,
    "mmap MAP_PRIVATE": write_privately,
    "flock LOCK_SH": lock(fcntl.LOCK_SH),
    "flock LOCK_EX": lock(fcntl.LOCK_EX),
    "fcntl read lock": lock_range(fcntl.F_SETLK),
    "open file description read lock": lock_range(fcntl.F_OFD_SETLK),
    "h5py.File": read_hdf5,
    "listdir": list_directories,
    "getxattr and listxattr": read_xattrs,
    "readlink": follow,
    "access": may_read,
}

SHOWN: dict[str, Callable[[Path], None]] = {
    "without write bits": look,
    "without write bits in ACLs": read_acls,
}
"""For a mount in which the kernel remembers nothing: elsewhere it may, for some seconds."""


def all_of(reads: dict[str, Callable[[Path], None]], root: Path) -> dict[str, str]:
    """What does not work, and why."""
    failed = {}
    for name, attempt in reads.items():
        try:
            attempt(root)
        except (OSError, AssertionError) as error:
            failed[name] = repr(error)
    return failed


@pytest.mark.parametrize("who", USERS)
@pytest.mark.usefixtures("nothing_changes")
def test_everything_that_reads_works(sealed: Sealed, who: str) -> None:
    for mount in (sealed.mount, sealed.second, sealed.late):
        assert as_user(USERS[who], all_of, READS, mount.root) == {}


@pytest.mark.parametrize("who", USERS)
@pytest.mark.usefixtures("nothing_changes")
def test_a_seal_is_seen(sealed: Sealed, who: str) -> None:
    for mount in (sealed.second, sealed.late):
        assert as_user(USERS[who], all_of, SHOWN, mount.root) == {}
        may_write = [
            name
            for name in (RAW, SCAN, FRAME, FRAMES, EMPTY)
            if as_user(USERS[who], os.access, mount.root / name, os.W_OK)
        ]
        if who != "root":  # access(2) promises root everything, whatever the bits
            assert may_write == []


@pytest.mark.parametrize("who", USERS)
@pytest.mark.usefixtures("nothing_changes")
def test_what_was_open_before_is_read_on(sealed: Sealed, who: str) -> None:
    fds = sealed.before[who].descriptors

    def contents() -> list[bytes]:
        return [os.pread(fds[name], 1 << 20, 0) for name in (SCAN, FRAME)]

    assert as_user(USERS[who], contents) == [hdf5(), FRAME_BYTES]
    assert set(os.listdir(fds[FRAMES])) == {"1.raw", "twin.h5"}


@pytest.mark.usefixtures("nothing_changes")
def test_a_named_pipe_keeps_nothing_of_what_goes_through(sealed: Sealed) -> None:
    """Its name is sealed; what goes through it was never part of the tree."""
    fd = os.open(sealed.mount.root / PIPE, os.O_RDWR | os.O_NONBLOCK)
    os.write(fd, b"passing by")
    assert os.read(fd, 100) == b"passing by"
    os.close(fd)
