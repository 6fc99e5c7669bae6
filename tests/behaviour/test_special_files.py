"""Named pipes, sockets and devices."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from tests.support.targets import Target
from tests.support.users import ALICE, as_user

NULL = os.makedev(1, 3)


@pytest.mark.parametrize(
    ("kind", "device"),
    [
        (stat.S_IFREG, 0),
        (stat.S_IFIFO, 0),
        (stat.S_IFSOCK, 0),
        (stat.S_IFCHR, os.makedev(1, 3)),
        (stat.S_IFCHR, os.makedev(260, 70000)),
        (stat.S_IFBLK, os.makedev(7, 200)),
    ],
)
def test_mknod_makes_it_and_the_store_has_it(target: Target, kind: int, device: int) -> None:
    os.mknod(target.root / "node", kind | 0o640, device)
    for path in (target.root / "node", target.store / "node"):
        status = path.lstat()
        assert stat.S_IFMT(status.st_mode) == kind
        assert stat.S_IMODE(status.st_mode) == 0o640
        assert status.st_rdev == device
    (target.root / "node").unlink()
    assert not (target.store / "node").exists()


def test_a_named_pipe_connects_two_processes(root: Path) -> None:
    os.mkfifo(root / "fifo")
    pid = os.fork()
    if pid == 0:
        (root / "fifo").write_bytes(b"through the pipe")
        os._exit(0)
    assert (root / "fifo").read_bytes() == b"through the pipe"
    assert os.waitpid(pid, 0)[1] == 0


def test_a_socket_connects(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind("socket")
        assert stat.S_ISSOCK((root / "socket").lstat().st_mode)
        server.listen()
        client.connect("socket")
        accepted, _ = server.accept()
        with accepted:
            client.sendall(b"hello")
            assert accepted.recv(10) == b"hello"


def test_a_device_file_is_the_device(root: Path) -> None:
    os.mknod(root / "null", stat.S_IFCHR | 0o666, NULL)
    fd = os.open(root / "null", os.O_RDWR)
    assert os.write(fd, b"into the void") == 13
    assert os.read(fd, 10) == b""
    os.close(fd)
    assert (root / "null").lstat().st_size == 0


def test_an_ordinary_user_makes_pipes_and_no_devices(root: Path) -> None:
    root.chmod(0o777)
    as_user(ALICE, os.mkfifo, root / "fifo")
    assert (root / "fifo").lstat().st_uid == ALICE.uid
    with pytest.raises(PermissionError):
        as_user(ALICE, os.mknod, root / "null", stat.S_IFCHR | 0o666, NULL)
    assert not (root / "null").exists()
