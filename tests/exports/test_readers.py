"""Sealed data are read as usual over each protocol, by programs that lock what they read.

HDF5 asks for a shared lock (flock) on each file that it opens to read. That must neither be refused
nor waited for on what is sealed, whoever else reads it by whatever protocol. Where a lock ends:

- SMB: smbnetfs, as the kernel's client with ``nobrl``, keeps a program's locks on its own machine;
  locks that a client asks the server for (Windows, here smbprotocol) are taken on the mount.
- NFS: neither the kernel nor Debian 12 has a client here that mounts it. So h5py reads by a Python
  file object on libnfs, while the lock that a mount would ask for is held by NFSv4's LOCK. NFSv3
  has none: NLM is switched off.
- WebDAV: has no such locks.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
from smbprotocol.open import SMB2LockElement, SMB2LockRequest

from modamafs.exports import nfs_client
from modamafs.exports.nfs_client import NfsClient
from modamafs.exports.smb_client import SmbClient
from tests.exports.conftest import PROTOCOLS, SHARE, Exported, exported
from tests.support.mounts import modamafs, wait_until
from tests.support.servers import PASSWORD
from tests.support.syscalls import force_unmount
from tests.support.targets import Workshop
from tests.support.trees import remove
from tests.support.users import ALICE, TEAM, in_child

pytestmark = pytest.mark.timeout(60)

SEALED = "area/project/session/raw"
SCAN = f"{SEALED}/scan.h5"
OPEN = "area/project/session/open.h5"
"""A copy that is not sealed."""
PATIENCE_S = 20
"""Opening a file takes a fraction of a second; what takes longer hangs."""
FRAMES = np.arange(100_000, dtype=np.float64)
F_RDLCK, F_UNLCK = 0, 2
SHARED, AT_ONCE, UNLOCK = 0x1, 0x10, 0x4
EVERYTHING = (1 << 63) - 1

READ = f"""
import sys, h5py
with h5py.File(sys.argv[1], "r") as file:
    frames = file["frames"][:]
assert frames.shape == ({len(FRAMES)},) and (frames == range({len(FRAMES)})).all()
"""


@pytest.fixture(scope="module")
def place(workshop: Workshop, new_name: Callable[[], str]) -> Iterator[Exported]:
    """A mount with a sealed HDF5 file, and one that is open."""
    with exported(workshop, f"readers-{new_name()}") as made:
        (made.root / SEALED).mkdir(parents=True)
        with h5py.File(made.root / SCAN, "w") as file:
            file["frames"] = FRAMES
        shutil.copy(made.root / SCAN, made.root / OPEN)
        for path in (made.store / "area").rglob("*"):
            os.chown(path, ALICE.uid, TEAM)
        done = modamafs("seal", made.root / SEALED)
        assert done.returncode == 0, done.stderr
        yield made
        remove(made.store / "area")


@pytest.fixture(scope="module")
def network_drive(place: Exported, workshop: Workshop) -> Iterator[Path]:
    """The share as a program sees it that knows nothing of SMB: mounted by smbnetfs."""
    home = place.directory / "smbnetfs"
    (home / ".smb").mkdir(parents=True)
    configuration = home / ".smb/smbnetfs.conf"
    configuration.touch(0o600)
    configuration.write_text(f'smb_query_browsers "false"\nauth "alice" "{PASSWORD}"\n')
    point = workshop.mountpoint(f"{place.store.name}-drive")
    point.mkdir()
    port = place.server("smb").port
    process = subprocess.Popen(
        ["smbnetfs", point, "-f", "-o", f"config={configuration},log_file={home}/log"],
        env=os.environ | {"HOME": str(home)},
        start_new_session=True,
    )
    try:
        wait_until(lambda: os.path.ismount(point) or process.poll() is not None, "smbnetfs")
        yield point / f"127.0.0.1:{port}" / SHARE
    finally:
        force_unmount(point)
        process.terminate()
        process.wait(PATIENCE_S)


def read_with_h5py(path: Path) -> None:
    """As a program of its own does, with what HDF5 locks by default; fails where that hangs."""
    subprocess.run(
        [sys.executable, "-c", READ, path],
        env={name: value for name, value in os.environ.items() if "HDF5" not in name},
        timeout=PATIENCE_S,
        check=True,
    )


class NfsFile(io.RawIOBase):
    """A file of an NFS server, as a Python file object."""

    def __init__(self, client: NfsClient, path: str) -> None:
        self._client = client
        self._handle = client.open(path, os.O_RDONLY)
        self._size_bytes = client.stat(path).size_bytes
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size_bytes}
        self._position = start[whence] + offset
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        piece = self._client.pread(self._handle, self._position, len(buffer))
        buffer[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)

    def close(self) -> None:
        if not self.closed:
            self._client.close_file(self._handle)
        super().close()


# ---- locks that are held -------------------------------------------------------------------------


@contextlib.contextmanager
def held_by_smb(place: Exported, path: str) -> Iterator[None]:
    """A shared lock on all of the file, asked of the server."""

    def ask(flags: int) -> None:
        element = SMB2LockElement()
        element["offset"], element["length"], element["flags"] = 0, EVERYTHING, flags
        request = SMB2LockRequest()
        request["file_id"], request["locks"] = file.fd.file_id, [element]
        client.send(file.fd, request)

    with place.client("smb") as client:
        assert isinstance(client, SmbClient)
        with client.open(path, "rb") as file:
            ask(SHARED | AT_ONCE)
            try:
                yield
            finally:
                ask(UNLOCK)


@contextlib.contextmanager
def held_by_nfs(place: Exported, path: str) -> Iterator[None]:
    """The same by LOCK of NFSv4."""

    def ask(kind: int) -> None:
        lock = nfs_client._Lock(l_type=kind, l_len=nfs_client._WHOLE)
        client._call("fcntl", handle, nfs_client._F_SETLK, ctypes.byref(lock), path=path)

    with place.client("nfs4") as client:
        assert isinstance(client, NfsClient)
        handle = client.open(path, os.O_RDONLY)
        ask(F_RDLCK)
        try:
            yield
        finally:
            ask(F_UNLCK)


@contextlib.contextmanager
def held_locally(place: Exported, path: str) -> Iterator[None]:
    """Both kinds that there are, of a program on the mount."""
    with (place.root / path).open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        yield


HOLDERS = {"smb": held_by_smb, "nfs": held_by_nfs, "local": held_locally}
by_each = pytest.mark.parametrize("holder", HOLDERS)


def lock_exclusively(path: Path) -> None:
    with path.open("r+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


# ---- readers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [SCAN, OPEN])
def test_h5py_on_a_network_drive(network_drive: Path, path: str) -> None:
    assert network_drive.is_dir()
    read_with_h5py(network_drive / path)


@by_each
def test_h5py_on_a_network_drive_while_others_read(
    network_drive: Path, place: Exported, holder: str
) -> None:
    with HOLDERS[holder](place, SCAN):
        read_with_h5py(network_drive / SCAN)


@pytest.mark.parametrize("protocol", ["nfs4", "nfs3"])
def test_h5py_over_nfs(place: Exported, protocol: str) -> None:
    """With the lock that a mount would have asked for, where the protocol has one."""
    locked = held_by_nfs(place, SCAN) if protocol == "nfs4" else contextlib.nullcontext()
    with locked, place.client(protocol) as client:
        assert isinstance(client, NfsClient)
        with io.BufferedReader(NfsFile(client, SCAN)) as raw, h5py.File(raw, "r") as file:
            assert (file["frames"][:] == FRAMES).all()


@by_each
def test_h5py_on_the_mount_while_others_read(place: Exported, holder: str) -> None:
    with HOLDERS[holder](place, SCAN):
        read_with_h5py(place.root / SCAN)


@by_each
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_clients_read_while_others_hold_locks(place: Exported, protocol: str, holder: str) -> None:
    with HOLDERS[holder](place, SCAN), place.client(protocol) as client:
        assert client.read(SCAN) == (place.store / SCAN).read_bytes()


@by_each
@pytest.mark.parametrize("other", HOLDERS)
def test_readers_do_not_exclude_each_other(place: Exported, holder: str, other: str) -> None:
    """Of any two protocols, or of one, on a sealed file."""
    with HOLDERS[holder](place, SCAN), HOLDERS[other](place, SCAN):
        read_with_h5py(place.root / SCAN)


@by_each
def test_locks_are_those_of_the_mount(place: Exported, holder: str) -> None:
    """The control: on an open file, a local writer is kept out as long as one of them is held."""
    with HOLDERS[holder](place, OPEN):
        with pytest.raises(OSError) as caught:
            in_child(lambda: lock_exclusively(place.root / OPEN))
        assert caught.value.errno in (errno.EAGAIN, errno.EACCES)
        read_with_h5py(place.root / OPEN)
    in_child(lambda: lock_exclusively(place.root / OPEN))
