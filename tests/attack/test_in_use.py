"""What is being written, or has a name outside, can't be sealed: and then nothing has happened."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from tests.attack import scene
from tests.attack.conftest import Sealed
from tests.support.mounts import modamafs
from tests.support.trees import differences
from tests.support.users import BOB, TEAM

PYTHON = "/usr/bin/python3"
WRITER = """
import ctypes, os, sys
path, how = sys.argv[1:]
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
READ, READ_WRITE, SHARED = 1, 3, 1
fd = os.open(path, os.O_RDWR)
size = os.fstat(fd).st_size
if how != "descriptor":
    protection = READ if how == "mapping to read" else READ_WRITE
    address = libc.mmap(None, ctypes.c_size_t(size), protection, SHARED, fd, ctypes.c_long(0))
    os.close(fd)
print("ready", flush=True)
for line in sys.stdin:
    offset, content = line.split()
    offset, content = int(offset), content.encode()
    if how == "descriptor":
        assert os.pwrite(fd, content, offset) == len(content)
    else:
        assert libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(size), READ_WRITE) == 0
        ctypes.memmove(address + offset, content, len(content))
    print("written", flush=True)
"""
HOW = ("descriptor", "mapping", "mapping to read")
"""Descriptors of the mappings are closed; the one to read could be made writable at any time."""


class Writer:
    """A process that has a file open for writing, as long as the block lasts."""

    def __init__(self, path: Path, how: str) -> None:
        self._process = subprocess.Popen(
            [PYTHON, "-I", "-S", "-c", WRITER, str(path), how],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            user=BOB.uid,
            group=BOB.gid,
            extra_groups=BOB.groups,
        )
        self.pid = self._process.pid

    def __enter__(self) -> Self:
        assert self._answer() == "ready\n"
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._process:
            assert self._process.stdin
            self._process.stdin.close()
            status = self._process.wait()
        assert error or status == 0

    def write(self, offset: int, content: str) -> None:
        """Write there, and return when it is done."""
        assert self._process.stdin
        self._process.stdin.write(f"{offset} {content}\n")
        self._process.stdin.flush()
        assert self._answer() == "written\n"

    def _answer(self) -> str:
        assert self._process.stdout
        return self._process.stdout.readline()


@pytest.fixture
def raw(sealed: Sealed, new_name: Callable[[], str]) -> Iterator[Path]:
    """A directory that can be sealed; its path in the store."""
    raw = Path(f"used-{new_name()}", "session", "raw")
    (sealed.mount.root / raw / "frames").mkdir(parents=True)
    for name in ("1.dat", "2.dat", "frames/3.dat"):
        path = sealed.mount.root / raw / name
        path.write_bytes(bytes(scene.BLOCK * 2))
        os.chown(path, BOB.uid, TEAM)
    yield raw


def seal_in_vain(sealed: Sealed, raw: Path) -> str:
    """Try to seal; what it says. Nothing may have changed, and nothing be sealed."""
    for mount in (sealed.mount, sealed.second):
        for path in (mount.root / raw).rglob("*.dat"):
            # What is in a mapping may come at any time, and syncfs(2) does not wait for FUSE's.
            fd = os.open(path, os.O_RDONLY)
            os.fsync(fd)
            os.close(fd)
    before = scene.whole(sealed.store / raw)
    done = modamafs("seal", sealed.mount.root / raw)
    assert done.returncode >= 3, done.stderr
    assert differences(before, scene.whole(sealed.store / raw)) == []
    assert not list((sealed.store / raw.parent).glob(".modama/seals/raw*"))
    for mount in (sealed.mount, sealed.second):
        (mount.root / raw / "new").touch()
        (mount.root / raw / "new").unlink()
    return done.stderr


@pytest.mark.parametrize("how", HOW)
def test_a_writer_is_named_and_loses_nothing(sealed: Sealed, raw: Path, how: str) -> None:
    path = sealed.mount.root / raw / "frames" / "3.dat"
    with Writer(path, how) as writer:
        writer.write(0, "before")
        said = seal_in_vain(sealed, raw)
        assert "frames/3.dat" in said
        assert str(writer.pid) in said
        assert str(BOB.uid) in said  # a user without a name
        assert "python3" in said
        assert "1.dat" not in said
        writer.write(scene.BLOCK, "after")
    expected = b"before".ljust(scene.BLOCK, b"\0") + b"after".ljust(scene.BLOCK, b"\0")
    done = modamafs("seal", sealed.mount.root / raw)
    assert done.returncode == 0, done.stderr
    assert path.read_bytes() == expected
    assert (sealed.store / raw / "frames" / "3.dat").read_bytes() == expected


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("where", ["second mount", "store"])
def test_a_writer_elsewhere_is_in_the_way(sealed: Sealed, raw: Path, where: str, how: str) -> None:
    root = sealed.store if where == "store" else sealed.second.root
    with Writer(root / raw / "1.dat", how) as writer:
        assert "1.dat" in seal_in_vain(sealed, raw)
        writer.write(0, "after")
    done = modamafs("seal", sealed.mount.root / raw)
    assert done.returncode == 0, done.stderr
    assert (sealed.store / raw / "1.dat").read_bytes()[:6] == b"after\0"


def test_all_writers_are_named(sealed: Sealed, raw: Path) -> None:
    directory = sealed.mount.root / raw
    with (
        Writer(directory / "1.dat", "descriptor") as one,
        Writer(directory / "2.dat", "mapping") as other,
    ):
        said = seal_in_vain(sealed, raw)
        for expected in ("1.dat", "2.dat", str(one.pid), str(other.pid)):
            assert expected in said


def test_a_name_outside_is_in_the_way(sealed: Sealed, raw: Path) -> None:
    outside = sealed.mount.root / raw.parent / "elsewhere.dat"
    outside.hardlink_to(sealed.mount.root / raw / "1.dat")
    said = seal_in_vain(sealed, raw)
    assert "1.dat" in said
    assert "elsewhere.dat" in said
    outside.write_bytes(b"still open")
    outside.unlink()
    assert modamafs("seal", sealed.mount.root / raw).returncode == 0
