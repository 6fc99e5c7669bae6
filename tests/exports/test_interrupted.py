"""What clients are told when a worker, a server or the whole mount dies under them.

======================  ====================  ====================  ================  ==============
what happens            SMB                   NFSv4                 NFSv3             WebDAV
======================  ====================  ====================  ================  ==============
the worker is killed    nothing               nothing               nothing           nothing
the server is killed    the connection is     the connection is     a pause           downloads are
                        lost: go on where     lost: go on where                       short: Range;
                        it was                it was                                  uploads: again
the mount is dead       errors                errors                errors            errors
unmounted, lazily       errors                goes on, rightly;     the same          503
                                              started: refused
mounted again           works                 restart the server    restart it        works
======================  ====================  ====================  ================  ==============

Files that a server has open go on all the while: their data never pass through the daemon. NFSv4 is
that of libnfs 4.0, which never connects again (``rpc_connect_port_async`` leaves that switched
off); the kernel's own client, that would reclaim its state, is not on this machine.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import hashlib
import http.client
import multiprocessing
import os
import random
import signal
import socket
import stat
import subprocess
from collections.abc import Callable, Iterator
from multiprocessing.synchronize import Semaphore
from pathlib import Path
from typing import Self, TypeVar

import pytest
from smbprotocol.exceptions import SMBException

from modamafs.errors import ModamaError
from modamafs.exports.client import Client
from modamafs.exports.nfs_client import NfsClient
from modamafs.exports.servers import Server
from modamafs.exports.smb_client import SmbClient
from tests.exports.conftest import SHARE, Exported, exported
from tests.support.mounts import Mount, modamafs, wait_until
from tests.support.servers import PASSWORD
from tests.support.targets import Workshop
from tests.support.users import ALICE, TEAM
from tests.support.workloads import Run, Workload

KiB, MiB = 1 << 10, 1 << 20
WORKER_DIED = "worker-died"
KILLS = 4
PIECES = 24
"""Of a file; a client moves one after the other, and may be held up between two."""
PIECE_BYTES = {"smb": MiB, "nfs4": 24 * KiB, "nfs3": MiB, "webdav": MiB}
"""libnfs 4.0 writes 3 KiB at a time over NFSv4."""
LOST = (OSError, SMBException, http.client.HTTPException)
"""What clients raise whose server is gone, or that are refused."""

nfs_only = pytest.mark.parametrize("protocol", ["nfs4", "nfs3"])
T = TypeVar("T")
fork = multiprocessing.get_context("fork")


@pytest.fixture
def place(
    request: pytest.FixtureRequest, workshop: Workshop, new_name: Callable[[], str]
) -> Iterator[Exported]:
    """A mount of its own, with servers of its own: what is killed here disturbs no other test."""
    options = getattr(request, "param", ())
    with exported(workshop, f"killed-{new_name()}", options=options) as made:
        yield made
        for server in made.servers.values():
            server.kill()
        end_what_is_detached(made.mount)


def end_what_is_detached(mount: Mount | None) -> None:
    """The supervisors of mounts that were unmounted while somebody used them."""
    assert mount

    def left() -> list[Path]:
        return list(mount.runtime.parent.glob(f"{mount.runtime.name}~*"))

    for runtime in left():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(runtime.name.rpartition("~")[2]), signal.SIGTERM)
    wait_until(lambda: not left(), "the end of what was unmounted")


@pytest.fixture
def content(protocol: str) -> bytes:
    """Of the files that are moved."""
    return random.Random(protocol).randbytes(PIECES * PIECE_BYTES[protocol])


def put(path: Path, content: bytes) -> None:
    """Alice's file, on the store."""
    path.write_bytes(content)
    os.chown(path, ALICE.uid, TEAM)


def only_server(place: Exported) -> Server:
    [server] = place.servers.values()
    return server


# ---- transfers, piece by piece -------------------------------------------------------------------


def http_request(
    place: Exported, method: str, path: str, headers: dict[str, str]
) -> http.client.HTTPConnection:
    """The head of one, to the server that runs now."""
    connection = http.client.HTTPConnection("127.0.0.1", place.server("webdav").port, timeout=60)
    connection.putrequest(method, f"/{SHARE}/{path}")
    secret = base64.b64encode(f"alice:{PASSWORD}".encode()).decode()
    for name, value in {"Authorization": f"Basic {secret}", **headers}.items():
        connection.putheader(name, value)
    connection.endheaders()
    return connection


def download(place: Exported, protocol: str, path: str, offset: int) -> Iterator[bytes]:
    """The pieces of a file from ``offset`` on, by one open file or one request."""
    piece_bytes = PIECE_BYTES[protocol]
    if protocol == "webdav":
        connection = http_request(place, "GET", path, {"Range": f"bytes={offset}-"})
        with contextlib.closing(connection), connection.getresponse() as answer:
            assert answer.status == 206
            while piece := answer.read(piece_bytes):
                yield piece
            if answer.length:  # http.client says so only where all is read at once
                raise http.client.IncompleteRead(b"", answer.length)
        return
    with place.client(protocol) as client:
        if isinstance(client, SmbClient):
            with client.open(path, "rb") as file:
                file.seek(offset)
                while piece := file.read(piece_bytes):
                    yield piece
        elif isinstance(client, NfsClient):
            handle = client.open(path, os.O_RDONLY)
            while piece := client.pread(handle, offset, piece_bytes):
                yield piece
                offset += len(piece)
            client.close_file(handle)


def upload(place: Exported, protocol: str, path: str, content: bytes, offset: int) -> Iterator[int]:
    """Writes ``content`` from ``offset`` on, by one open file or one request; yields how far it
    is."""
    ends = [*range(offset, len(content), PIECE_BYTES[protocol]), len(content)][1:]
    if protocol == "webdav":  # there is no PUT of a part
        head = {"Content-Length": str(len(content))}
        with contextlib.closing(http_request(place, "PUT", path, head)) as connection:
            for end in ends:
                connection.send(content[end - PIECE_BYTES[protocol] : end])
                yield end
            assert connection.getresponse().status in (201, 204)
        return
    with place.client(protocol) as client:
        if isinstance(client, SmbClient):
            with client.open(path, "r+b" if offset else "wb") as file:
                file.seek(offset)
                for end in ends:
                    left = memoryview(content)[offset:end]
                    while left:
                        left = left[file.write(left) :]
                    yield (offset := end)
        elif isinstance(client, NfsClient):
            handle = client.open(path, os.O_RDWR | (0 if offset else os.O_CREAT))
            for end in ends:
                client.pwrite(handle, offset, content[offset:end])
                yield (offset := end)
            client.close_file(handle)


def downloaded(
    run: Run, allowed: Semaphore, place: Exported, protocol: str, path: str
) -> tuple[str, list[str]]:
    """The hash of what came, and what interrupted it; a piece for each that is ``allowed``."""
    found = bytearray()
    interruptions: list[str] = []
    while True:
        has_moved = False
        try:
            for piece in download(place, protocol, path, len(found)):
                found += piece
                has_moved = True
                run.goes_on()
                allowed.acquire()
        except LOST as error:
            interruptions += [type(error).__name__] * has_moved
            wait_for_server(place, protocol)
        else:
            return hashlib.sha256(found).hexdigest(), interruptions


def uploaded(
    run: Run, allowed: Semaphore, place: Exported, protocol: str, path: str, content: bytes
) -> list[str]:
    """Returns what interrupted it."""
    done = 0
    interruptions: list[str] = []
    while True:
        has_moved = False
        try:
            for arrived in upload(place, protocol, path, content, done):
                done = arrived if protocol != "webdav" else 0
                has_moved = True
                run.goes_on()
                allowed.acquire()
        except LOST as error:
            interruptions += [type(error).__name__] * has_moved
            wait_for_server(place, protocol)
        else:
            return interruptions


def wait_for_server(place: Exported, protocol: str) -> None:
    """Until it listens again, and a client may begin where it was."""
    if protocol == "nfs3":
        raise AssertionError("libnfs connects again by itself")
    address = ("127.0.0.1", place.server(protocol).port)

    def listens() -> bool:
        with contextlib.suppress(OSError), socket.create_connection(address, 5):
            return True
        return False

    wait_until(listens, "the server")


class Both:
    """A download and an upload at once, each in a process of its own, that are held up where a
    test wants to kill something meanwhile."""

    def __init__(self, place: Exported, protocol: str, content: bytes) -> None:
        self._place = place
        self._content = content
        put(place.store / "long", content)
        place.server(protocol)
        self._allowed = [fork.Semaphore(0), fork.Semaphore(0)]
        self._down = Workload(downloaded, self._allowed[0], place, protocol, "long")
        self._up = Workload(uploaded, self._allowed[1], place, protocol, "new", content)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._down.kill()
        self._up.kill()

    def go_on(self) -> None:
        """Let each of them move some pieces; returns while they do."""
        both = (self._down, self._up)
        before = [work.run.rounds for work in both]
        for allowed in self._allowed:
            for _ in range(PIECES // (KILLS + 2)):
                allowed.release()
        for work, rounds in zip(both, before, strict=True):
            wait_until(
                lambda work=work, rounds=rounds: work.run.rounds > rounds or work.has_ended(),
                f"{work.name} to go on",
            )

    def finish(self) -> tuple[list[str], list[str]]:
        """Let them end, and see that all bytes are right; what interrupted the two."""
        for allowed in self._allowed:
            for _ in range(2 * PIECES):
                allowed.release()
        digest, while_down = self._down.finish()
        while_up = self._up.finish()
        assert digest == hashlib.sha256(self._content).hexdigest()
        assert (self._place.store / "new").read_bytes() == self._content
        assert (self._place.root / "new").read_bytes() == self._content
        return while_down, while_up


@pytest.mark.parametrize(
    "place", [(), ("--no-passthrough",)], indirect=True, ids=["passthrough", "fallback"]
)
def test_transfers_go_on_while_the_worker_is_killed(
    place: Exported, protocol: str, content: bytes
) -> None:
    assert place.mount
    with place.mount.expected_in_log(WORKER_DIED):
        with Both(place, protocol, content) as both:
            for _ in range(KILLS):
                both.go_on()
                place.mount.kill_worker()
            assert both.finish() == ([], [])
        assert place.mount.status()["restarts"] == KILLS


def test_transfers_go_on_after_the_server_was_killed(
    place: Exported, protocol: str, content: bytes
) -> None:
    """NFSv3 has no state, and its client waits. Others are told, and go on where they were; a PUT
    begins again, as there is none of a part."""
    with Both(place, protocol, content) as both:
        both.go_on()
        only_server(place).kill()
        only_server(place).start()
        while_down, while_up = both.finish()
    is_told = protocol != "nfs3"
    assert bool(while_down) is is_told, while_down
    assert bool(while_up) is is_told, while_up


# ---- handles of NFS ------------------------------------------------------------------------------


@nfs_only
def test_handles_outlive_the_worker(place: Exported, protocol: str) -> None:
    """Of a file that was opened before, and of the directory that was mounted.

    By a client for each: libnfs 4.0 loses count of its requests where one open file of two fails.
    """
    assert place.mount
    put(place.store / "file", b"before, ")
    with (
        place.mount.expected_in_log(WORKER_DIED),
        place.client(protocol) as holder,
        place.client(protocol) as client,
    ):
        assert isinstance(holder, NfsClient)
        handle = holder.open("file", os.O_RDWR)
        client.mkdir("directory")
        for number in range(3):
            place.mount.kill_worker()
            assert holder.pread(handle, 0, 8) == b"before, "
            holder.pwrite(handle, 8 + number, str(number).encode())
            client.write(f"directory/{number}", b"x")
            client.rename(f"directory/{number}", f"directory/renamed-{number}")
        assert holder.pread(handle, 0, 100) == b"before, 012"
        holder.close_file(handle)
        assert client.listing("directory") == [f"renamed-{number}" for number in range(3)]
    assert (place.store / "file").read_bytes() == b"before, 012"


def test_handles_outlive_the_server(place: Exported) -> None:
    """With NFSv3: they are the store's own inode numbers and generations."""
    put(place.store / "file", b"before, ")
    with place.client("nfs3") as client:
        assert isinstance(client, NfsClient)
        handle = client.open("file", os.O_RDWR)
        client.mkdir("directory")
        for number in range(2):
            only_server(place).kill()
            only_server(place).start()
            assert client.pread(handle, 0, 8) == b"before, "
            client.pwrite(handle, 8 + number, str(number).encode())
            client.write(f"directory/{number}", b"x")
        client.close_file(handle)
        assert client.listing("directory") == ["0", "1"]
    assert (place.store / "file").read_bytes() == b"before, 01"


@nfs_only
def test_handles_after_another_mount(place: Exported, protocol: str) -> None:
    """A server that runs on serves the mount that it has, which is gone for others, and its data
    are right; after its restart an old handle is stale, or leads where it did."""
    assert place.mount
    put(place.store / "file", b"right")
    held = place.store / "file"
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(place.client(protocol))
        assert isinstance(client, NfsClient)
        handle = client.open("file", os.O_RDWR)
        assert client.pread(handle, 0, 9) == b"right"
        unmount(place.mount)
        mount_again(place.mount)
        assert right_or_refused(lambda: client.pread(handle, 0, 9), b"right")
        assert right_or_refused(client.listing, ["file", "landing", "views"])
        for word in (b"RIGHT", b"right"):
            with contextlib.suppress(OSError):
                client.pwrite(handle, 0, word)
                assert held.read_bytes() == word
        only_server(place).kill()
        only_server(place).start()
        assert right_or_refused(lambda: client.pread(handle, 0, 9), held.read_bytes())
        with contextlib.suppress(OSError):
            client.pwrite(handle, 0, b"again")
            assert held.read_bytes() == b"again"
    with place.client(protocol) as client:
        assert client.listing() == ["file", "landing", "views"]
        assert client.read("file") == held.read_bytes()


# ---- listings ------------------------------------------------------------------------------------

DIRECTORIES = 40
"""For each kill: a server keeps what it has listed, so each is listed once."""


def listed(
    run: Run, allowed: Semaphore, place: Exported, protocol: str, expected: list[str]
) -> tuple[int, list[str]]:
    """How many directories had all their names, and which errors there were."""
    complete, errors = 0, []
    with place.client(protocol) as client:
        for number in range(DIRECTORIES * KILLS):
            try:
                found = client.listing(f"{number:03}")
            except OSError as error:
                errors.append(str(error))
            else:
                assert found == expected, number
                complete += 1
            run.goes_on()
            allowed.acquire()
    return complete, errors


def test_no_listing_is_empty_while_the_worker_is_killed(place: Exported, protocol: str) -> None:
    """Nor is there an error: requests wait for the next worker."""
    assert place.mount
    names = [f"{number:02}" for number in range(20)]
    for number in range(DIRECTORIES * KILLS):
        (place.store / f"{number:03}").mkdir()
        for name in names:
            (place.store / f"{number:03}" / name).touch()
    place.server(protocol)
    allowed = fork.Semaphore(0)
    work = Workload(listed, allowed, place, protocol, names)
    with contextlib.ExitStack() as stack, place.mount.expected_in_log(WORKER_DIED):
        stack.callback(work.kill)
        for _ in range(KILLS):
            before = work.run.rounds
            for _ in range(DIRECTORIES):
                allowed.release()
            wait_until(
                lambda before=before: work.run.rounds > before or work.has_ended(), "listings"
            )
            place.mount.kill_worker()
        assert work.finish() == (DIRECTORIES * KILLS, [])


# ---- without the mount ---------------------------------------------------------------------------


def is_dead(root: Path) -> bool:
    try:
        os.listdir(root)
    except OSError as error:
        return error.errno == errno.ENOTCONN
    return False


def kill_both(mount: Mount) -> None:
    """Nobody answers any more; the mount is there, and each request is ENOTCONN."""
    status = mount.status()
    for pid in (status["supervisor_pid"], status["worker_pid"]):
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: is_dead(mount.root), "the end of the connection")


def kill_both_and_detach(mount: Mount) -> None:
    """As somebody does who tidies up without ``modamafs umount``: its guard holds."""
    kill_both(mount)
    subprocess.run(["umount", "--lazy", mount.root], check=True)
    assert stat.S_IMODE(mount.root.stat().st_mode) == 0


def unmount(mount: Mount) -> None:
    """Although servers use it: that undoes the guard, as an ordinary umount does."""
    done = modamafs("umount", "--lazy", mount.root)
    assert done.returncode == 0, done.stderr
    mount.is_unmounted = True


def mount_again(mount: Mount) -> None:
    """From then on it is the new one's log that must hold no warning."""
    mount.fail_on_unexpected_log_lines()
    done = modamafs("mount", mount.store, mount.root)
    assert done.returncode == 0, done.stderr
    mount.is_unmounted = False
    assert mount._log_fd is not None
    os.close(mount._log_fd)
    mount._log_fd = os.open(mount.runtime / "daemon.log", os.O_RDONLY | os.O_CLOEXEC)


def right_or_refused(ask: Callable[[], T], right: T) -> bool:
    """Whether that is what came; an error is as good."""
    try:
        found = ask()
    except LOST:
        return True
    return found == right


def never_wrong(place: Exported, client: Client, name: str) -> None:
    """What the client is shown is what is there, or an error; what it writes is on the store, or
    refused."""
    there = sorted([*os.listdir(place.store), "landing", "views"])
    assert right_or_refused(client.listing, there)
    assert right_or_refused(lambda: client.listing("directory"), ["file"])
    assert right_or_refused(lambda: client.read("directory/file"), b"content")
    try:
        client.write(name, b"new")
    except LOST:
        assert not (place.store / name).exists()
    else:
        assert (place.store / name).read_bytes() == b"new"


def try_to(do: Callable[[Client], None], place: Exported, protocol: str) -> None:
    """With a new connection, if there is one."""
    with contextlib.suppress(*LOST), place.client(protocol) as client:
        do(client)


@pytest.mark.parametrize("end", [kill_both, kill_both_and_detach, unmount])
def test_without_the_mount_no_server_shows_or_fills_an_empty_tree(
    place: Exported, protocol: str, end: Callable[[Mount], None]
) -> None:
    """Neither to who was connected, nor to others, nor when the server is started meanwhile."""
    assert place.mount
    root = place.mount.root
    (place.store / "directory").mkdir()
    put(place.store / "directory/file", b"content")
    server = place.server(protocol)
    with contextlib.ExitStack() as stack:
        connected = stack.enter_context(place.client(protocol))
        never_wrong(place, connected, "before")
        assert (place.store / "before").read_bytes() == b"new"
        end(place.mount)
        never_wrong(place, connected, "connected")
    try_to(lambda client: never_wrong(place, client, "later"), place, protocol)
    server.kill()
    with contextlib.suppress(ModamaError):  # that it does not start is as good
        server.start()
        try_to(lambda client: never_wrong(place, client, "restarted"), place, protocol)
    if not place.mount.is_unmounted:
        unmount(place.mount)
    assert os.listdir(root) == []
    mount_again(place.mount)
    if protocol.startswith("nfs") or server.process is None:
        server.kill()
        server.start()
    with place.client(protocol) as client:
        never_wrong(place, client, "after")
    assert (place.store / "after").read_bytes() == b"new"


@pytest.mark.parametrize("protocol", ["smb", "nfs4"])
def test_unmounting_is_refused_while_clients_are_connected(place: Exported, protocol: str) -> None:
    """And nothing has happened then. (WebDAV's server holds nothing between two requests; the one
    for NFSv3 has a mount of its own here.)"""
    with place.client(protocol) as client:
        client.mkdir("directory")
        done = modamafs("umount", place.root)
        assert done.returncode == 3
        assert "is in use" in done.stderr
        client.write("directory/file", b"content")
        assert client.listing("directory") == ["file"]
    assert (place.store / "directory/file").read_bytes() == b"content"
