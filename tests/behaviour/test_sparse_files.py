"""Holes, reserved space, and copies that the file system makes itself."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.syscalls import (
    FALLOC_FL_KEEP_SIZE,
    FALLOC_FL_PUNCH_HOLE,
    FALLOC_FL_ZERO_RANGE,
    fallocate,
)
from tests.support.targets import Target

KiB = 1 << 10
MiB = 1 << 20


@pytest.fixture
def fd(root: Path) -> Iterator[int]:
    """A new file, open for reading and writing."""
    number = os.open(root / "file", os.O_RDWR | os.O_CREAT, 0o644)
    yield number
    os.close(number)


def test_a_gap_reads_as_zeros_and_takes_no_space(fd: int) -> None:
    os.pwrite(fd, b"end", 64 * MiB)
    assert os.pread(fd, 100, 32 * MiB) == bytes(100)
    assert os.fstat(fd).st_size == 64 * MiB + 3
    assert os.fstat(fd).st_blocks * 512 < MiB


def test_seek_finds_data_and_holes(fd: int) -> None:
    os.pwrite(fd, b"x" * 64 * KiB, 0)
    os.pwrite(fd, b"y" * 64 * KiB, MiB)
    os.fsync(fd)
    assert os.lseek(fd, 0, os.SEEK_DATA) == 0
    assert os.lseek(fd, 0, os.SEEK_HOLE) == 64 * KiB
    assert os.lseek(fd, 64 * KiB, os.SEEK_DATA) == MiB
    assert os.lseek(fd, MiB, os.SEEK_HOLE) == MiB + 64 * KiB
    for whence in (os.SEEK_DATA, os.SEEK_HOLE):
        with pytest.raises(OSError) as refused:
            os.lseek(fd, MiB + 64 * KiB, whence)
        assert refused.value.errno == errno.ENXIO


def test_seek_data_moves_the_position(fd: int) -> None:
    os.pwrite(fd, b"x", MiB)
    os.fsync(fd)
    position = os.lseek(fd, 4096, os.SEEK_DATA)
    assert os.lseek(fd, 0, os.SEEK_CUR) == position


def test_fallocate_reserves_space_and_sets_the_size(fd: int) -> None:
    os.posix_fallocate(fd, 0, MiB)
    assert os.fstat(fd).st_size == MiB
    assert os.fstat(fd).st_blocks * 512 >= MiB
    assert os.pread(fd, 10, MiB - 10) == bytes(10)


def test_fallocate_keeps_the_size_when_asked_to(fd: int) -> None:
    os.pwrite(fd, b"short", 0)
    fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, MiB)
    assert os.fstat(fd).st_size == 5
    assert os.fstat(fd).st_blocks * 512 >= MiB


def test_a_punched_hole_reads_as_zeros(target: Target, fd: int) -> None:
    os.pwrite(fd, b"x" * 256 * KiB, 0)
    assert os.pread(fd, 1, 100 * KiB) == b"x"
    fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 64 * KiB, 128 * KiB)
    expected = b"x" * 64 * KiB + bytes(128 * KiB) + b"x" * 64 * KiB
    assert os.pread(fd, MiB, 0) == expected
    os.fsync(fd)
    assert os.lseek(fd, 0, os.SEEK_HOLE) == 64 * KiB
    assert (target.store / "file").read_bytes() == expected


def test_a_zeroed_range_reads_as_zeros(fd: int) -> None:
    os.pwrite(fd, b"x" * 256 * KiB, 0)
    fallocate(fd, FALLOC_FL_ZERO_RANGE, 1000, 128 * KiB)
    assert os.pread(fd, 256 * KiB, 0) == (
        b"x" * 1000 + bytes(128 * KiB) + b"x" * (128 * KiB - 1000)
    )


@pytest.mark.parametrize(
    ("mode", "offset", "length", "expected"),
    [
        (0, 0, 0, {errno.EINVAL}),
        (0, -1, 10, {errno.EINVAL}),
        (FALLOC_FL_PUNCH_HOLE, 0, 10, {errno.EOPNOTSUPP}),
        (0, 1 << 62, 1 << 61, {errno.EFBIG, errno.ENOSPC}),
    ],
)
def test_fallocate_refuses(
    fd: int, mode: int, offset: int, length: int, expected: set[int]
) -> None:
    with pytest.raises(OSError) as refused:
        fallocate(fd, mode, offset, length)
    assert refused.value.errno in expected
    assert os.fstat(fd).st_size == 0


def test_copy_file_range_copies_a_part(root: Path, fd: int) -> None:
    content = os.urandom(300 * KiB)
    os.pwrite(fd, content, 0)
    copy = os.open(root / "copy", os.O_RDWR | os.O_CREAT, 0o644)
    copied = 0
    while copied < 200 * KiB:
        step = os.copy_file_range(fd, copy, 200 * KiB - copied, 4096 + copied, 100 + copied)
        assert step > 0
        copied += step
    assert os.pread(copy, MiB, 0) == bytes(100) + content[4096 : 4096 + 200 * KiB]
    assert os.fstat(copy).st_size == 100 + 200 * KiB
    assert os.copy_file_range(fd, copy, 100, MiB, 0) == 0
    os.close(copy)


def test_copy_file_range_moves_both_positions(root: Path, fd: int) -> None:
    os.write(fd, b"0123456789")
    os.lseek(fd, 2, os.SEEK_SET)
    copy = os.open(root / "copy", os.O_RDWR | os.O_CREAT, 0o644)
    assert os.copy_file_range(fd, copy, 5) == 5
    assert os.lseek(fd, 0, os.SEEK_CUR) == 7
    assert os.lseek(copy, 0, os.SEEK_CUR) == 5
    os.close(copy)
    assert (root / "copy").read_bytes() == b"23456"


def test_copy_file_range_within_one_file(fd: int) -> None:
    os.pwrite(fd, b"0123456789", 0)
    assert os.copy_file_range(fd, fd, 4, 0, 20) == 4
    assert os.pread(fd, 100, 0) == b"0123456789" + bytes(10) + b"0123"
    with pytest.raises(OSError) as refused:
        os.copy_file_range(fd, fd, 4, 0, 2)
    assert refused.value.errno == errno.EINVAL


def test_space_taken_and_given_back_is_the_stores(target: Target, fd: int) -> None:
    """``du`` says the same on the mount and on the store."""
    for change in (
        lambda: os.pwrite(fd, b"x" * MiB, 0),
        lambda: fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 512 * KiB),
        lambda: os.ftruncate(fd, 600 * KiB),
    ):
        change()
        os.fsync(fd)
        assert os.fstat(fd).st_blocks == (target.store / "file").stat().st_blocks
