"""Over each protocol a sealed tree is shut: every door × everybody, and nothing ever changes."""

from __future__ import annotations

import contextlib
import http.client
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from modamafs.exports.nfs_client import NfsClient
from modamafs.exports.servers import Samba
from modamafs.exports.smb_client import SmbClient
from tests.attack import scene
from tests.attack.scene import (
    BESIDE,
    FRAME,
    FRAMES,
    NOTES,
    PLAIN,
    PROJECT,
    RAW,
    SCAN,
    SESSION,
    TWIN,
)
from tests.exports import doors
from tests.exports import smb_requests as smb
from tests.exports.conftest import SHARE, SQUASH, Exported, exported
from tests.exports.doors import Door, Reach
from tests.support.mounts import modamafs, wait_until
from tests.support.servers import PASSWORD, PEOPLE, accounts
from tests.support.targets import Workshop
from tests.support.trees import differences
from tests.support.users import ALICE, TEAM

MODULES = "smb-modules"
"""Samba with what keeps Windows' own attributes, streams and ACLs beside the files."""
OPTIONS = """\
    vfs objects = acl_xattr streams_xattr
    store dos attributes = yes
    map readonly = no
"""
TABLES = {
    "smb": doors.SMB,
    MODULES: doors.SMB_MODULES,
    "nfs4": doors.NFS4,
    "nfs3": doors.NFS3,
    "webdav": doors.WEBDAV,
}
ASKED = [
    (protocol, who)
    for protocol in TABLES
    for who in ("alice", "bob", "root")
    if who != "root" or protocol.startswith("nfs")
]
"""Alice owns everything, Bob is in the team that may write everything, and root is root here too:
by a server that squashes nobody."""


@dataclass
class Shared:
    """A share with a sealed tree in it, and room for trees that are not."""

    exported: Exported
    modules: Samba

    @contextlib.contextmanager
    def reach(self, protocol: str, who: str, path: Callable[[str], str] = str) -> Iterator[Reach]:
        """A new connection."""
        squash = "No_Root_Squash" if who == "root" else SQUASH
        if protocol == MODULES:
            with SmbClient("127.0.0.1", self.modules.port, SHARE, who, PASSWORD) as client:
                yield Reach(client, path)
        else:
            with self.exported.client(protocol, who, squash=squash) as client:
                yield Reach(client, path)

    def tree(self, name: str) -> None:
        """Build another one, below a directory of its own, in which it can be written."""
        top = self.exported.store / name
        top.mkdir()
        os.chown(top, ALICE.uid, TEAM)
        top.chmod(0o2775)
        scene.build(top)


@pytest.fixture(scope="module")
def shared(workshop: Workshop, new_name: Callable[[], str]) -> Iterator[Shared]:
    """Every client has seen the tree, as it was, before it is sealed."""
    with exported(workshop, f"doors-{new_name()}") as made, contextlib.ExitStack() as stack:
        scene.build(made.root)
        samba = Samba(
            made.directory / MODULES,
            [made.share],
            dict.fromkeys(PEOPLE, PASSWORD),
            extra=OPTIONS,
        )
        samba.environment = accounts(made.directory)
        shared = Shared(made, stack.enter_context(samba))
        for protocol, who in ASKED:
            with shared.reach(protocol, who) as at:
                for directory in scene.DIRECTORIES:
                    at.client.listing(directory)
                for file in scene.FILES:
                    at.client.read(file)
                    at.client.stat(file)
        done = modamafs("seal", made.root / RAW)
        assert done.returncode == 0, done.stderr
        yield shared


@pytest.fixture
def nothing_changes(shared: Shared) -> Iterator[None]:
    """Fail if anything about the sealed tree, or what is above it, is not as it was before."""

    def whole() -> dict[bytes, dict[str, object]]:
        return scene.whole(shared.exported.store / scene.AREA)

    before = whole()
    yield
    changed = differences(before, whole())
    assert not changed, "\n".join(changed)
    assert shared.exported.mount
    shared.exported.mount.fail_on_unexpected_log_lines()


def by_twin(path: str) -> str:
    """By the other name of a file."""
    return TWIN if path == SCAN else path


def by_views(path: str) -> str:
    """By the links in views/ to what is sealed."""
    if path.startswith(f"{SESSION}/"):
        return f"views/{PROJECT}/sealed/session{path.removeprefix(SESSION)}"
    return path


WAYS = {"path": str, "twin": by_twin, "views": by_views}
asked = pytest.mark.parametrize(("protocol", "who"), ASKED)


# Once by views/ is enough, and libnfs 4.0 follows no link on its way, over NFSv4.
@pytest.mark.parametrize(
    ("protocol", "who", "way"),
    [
        (protocol, who, way)
        for protocol, who in ASKED
        for way in WAYS
        if way != "views" or (who != "bob" and protocol != "nfs4")
    ],
)
@pytest.mark.usefixtures("nothing_changes")
def test_every_door_is_shut(shared: Shared, protocol: str, who: str, way: str) -> None:
    with shared.reach(protocol, who, WAYS[way]) as at:
        lines = doors.try_each(TABLES[protocol], at)
    assert not lines, "\n".join(lines)


@pytest.mark.parametrize("protocol", TABLES)
def test_without_a_seal_they_open(
    shared: Shared, protocol: str, new_name: Callable[[], str]
) -> None:
    """In the same share, for its owner: otherwise nothing would be proved by their being shut."""
    lines = []
    with shared.reach(protocol, "alice") as at:
        for door in TABLES[protocol]:
            if door.opens:
                name = f"twin-{new_name()}"
                shared.tree(name)
                before = scene.whole(shared.exported.store / name)
                outcome = doors.try_one(door, Reach(at.client, f"{name}/{{}}".format))
                if outcome != "SUCCEEDED":
                    lines.append(f"{door.name}: {outcome}")
                elif door.leaves_a_trace and not differences(
                    before, scene.whole(shared.exported.store / name)
                ):
                    lines.append(f"{door.name}: left no trace")
    assert not lines, "\n".join(lines)


# ---- landing/ and views/ -------------------------------------------------------------------------

LINK = f"views/{PROJECT}/sealed/session"
PAGES = {
    "landing tree": (f"landing/{SESSION}/README.md", f"landing/{SESSION}/new"),
    "landing directory": (f"{SESSION}/.modama/README.md", f"{SESSION}/.modama/new"),
    "records": (f"{SESSION}/.modama/seals/raw.json", f"{SESSION}/.modama/seals/new"),
    "views": (f"landing/{PROJECT}/README.md", f"views/{PROJECT}/sealed/new"),
}
"""A page, and a name that is not there."""


@asked
@pytest.mark.parametrize("page", PAGES)
@pytest.mark.usefixtures("nothing_changes")
def test_nothing_in_landing_and_views_is_anybodys_to_change(
    shared: Shared, protocol: str, who: str, page: str
) -> None:
    with shared.reach(protocol, who) as at:
        lines = doors.try_each(doors.shown(protocol, *PAGES[page], LINK), at)
    assert not lines, "\n".join(lines)


# ---- what goes on --------------------------------------------------------------------------------


@asked
@pytest.mark.usefixtures("nothing_changes")
def test_everything_that_reads_goes_on(shared: Shared, protocol: str, who: str) -> None:
    with shared.reach(protocol, who) as at:
        assert set(at.client.listing(RAW)) >= {"empty", "frames", "plain.dat", "scan.h5"}
        assert at.client.read(SCAN) == scene.hdf5()
        assert at.client.read(FRAME, scene.BLOCK, 10) == scene.FRAME_BYTES[:10]
        assert at.client.stat(PLAIN).size_bytes == 16 * scene.BLOCK
        if protocol not in ("nfs3", "webdav"):  # they have no locks, or no such ones
            at.client.lock_shared(SCAN)
        for path in (SCAN, FRAMES, RAW):
            seen = at.client.stat(path)
            if protocol == "smb":
                assert seen.read_only, path
            if seen.mode is not None:
                wait_until(
                    lambda path=path: not (at.client.stat(path).mode or 0) & 0o222,
                    f"{path} without write bits",
                )


@asked
def test_what_is_beside_stays_writable(shared: Shared, protocol: str, who: str) -> None:
    with shared.reach(protocol, who) as at:
        for directory in (SESSION, BESIDE, scene.SPARE_PROJECT):
            at.client.write(f"{directory}/mine", b"mine")
            at.client.rename(f"{directory}/mine", f"{directory}/still mine")
            assert at.client.read(f"{directory}/still mine") == b"mine"
            at.client.remove(f"{directory}/still mine")
            at.client.mkdir(f"{directory}/more")
            at.client.rmdir(f"{directory}/more")
        at.client.write(NOTES, at.client.read(NOTES))


# ---- what was open before the seal ---------------------------------------------------------------


@pytest.fixture
def session(shared: Shared, new_name: Callable[[], str]) -> str:
    """The path of another session in the share, whose ``raw`` nobody has sealed yet."""
    made = f"held-{new_name()}/project/session"
    store = shared.exported.store
    (store / made / "raw/frames").mkdir(parents=True)
    (store / made / "raw/data").write_bytes(b"measured")
    for directory, _, files in os.walk(store / made.partition("/")[0]):
        os.chown(directory, ALICE.uid, TEAM)
        os.chmod(directory, 0o2775)
        for file in files:
            os.chown(f"{directory}/{file}", ALICE.uid, TEAM)
            os.chmod(f"{directory}/{file}", 0o664)
    return made


def seal(shared: Shared, session: str) -> str:
    """What is said against it; \"\": it is sealed."""
    done = modamafs("seal", shared.exported.root / session / "raw")
    assert done.stderr or done.returncode == 0
    return done.stderr if done.returncode else ""


@contextlib.contextmanager
def writing(at: Reach, path: str, file: Path) -> Iterator[None]:
    """Somebody is in the middle of writing a file."""
    if isinstance(at.client, SmbClient):
        with at.client.opened(path, smb.WRITE_DATA):
            yield
    elif isinstance(at.client, NfsClient):
        with at.handle(path, os.O_RDWR):
            yield
    else:
        connection = http.client.HTTPConnection(*at.webdav._connection.sock.getpeername())
        connection.putrequest("PUT", at.webdav.url(path))
        for name, value in {**at.webdav._headers, "Content-Length": "8"}.items():
            connection.putheader(name, value)
        connection.endheaders(b"half")
        wait_until(lambda: file.stat().st_size == 0, "the server opens the file")
        yield
        connection.send(b"done")
        assert connection.getresponse().status < 300
        connection.close()


@pytest.mark.parametrize("protocol", ["smb", MODULES, "nfs4", "webdav"])  # NFSv3 opens nothing
def test_what_somebody_writes_is_not_sealed(shared: Shared, protocol: str, session: str) -> None:
    path = f"{session}/raw/data"
    with shared.reach(protocol, "alice") as at:
        with writing(at, path, shared.exported.store / path):
            said = seal(shared, session)
            assert "open for writing: data by" in said
        wait_until(lambda: seal(shared, session) == "", "sealing, after it is closed")
        with pytest.raises(PermissionError):
            at.client.write(path, b"too late")


@pytest.mark.parametrize("protocol", TABLES)
def test_what_was_written_can_be_sealed(shared: Shared, protocol: str, session: str) -> None:
    """No server keeps a file open for long that no client has open."""
    path = f"{session}/raw/data"
    with shared.reach(protocol, "alice") as at:
        at.client.write(path, b"written")
        wait_until(lambda: seal(shared, session) == "", "sealing")
        assert at.client.read(path) == b"written"
    assert (shared.exported.store / path).read_bytes() == b"written"


def held_by_smb(at: Reach, stack: contextlib.ExitStack, raw: str) -> list[Door]:
    """Handles that were given many rights, but not to write: that would be in a seal's way."""
    rights = (
        smb.READ_DATA | smb.READ_ATTRIBUTES | smb.WRITE_ATTRIBUTES | smb.WRITE_EA | smb.DELETE
        | smb.READ_CONTROL | smb.WRITE_DAC
    )  # fmt: skip
    held = []
    for name in ("data", "frames"):
        handle = stack.enter_context(at.smb.opened(f"{raw}/{name}", rights))
        held += [
            Door(f"{what} {name}", partial(attempt, at.smb, handle))
            for what, attempt in doors.smb_by_handle(f"{raw}/new").items()
        ]
    return held


def held_by_nfs(at: Reach, stack: contextlib.ExitStack, raw: str) -> list[Door]:
    """A handle to read: of NFSv3, it is good for everything."""
    handle = at.nfs.open(f"{raw}/data", os.O_RDONLY)
    stack.callback(at.nfs.close_file, handle)
    held = [
        Door("fchmod", lambda at: at.nfs._call("fchmod", handle, 0o777, path=raw)),
        Door("fchgrp", lambda at: at.nfs._call("fchown", handle, ALICE.uid, ALICE.gid, path=raw)),
    ]
    if at.nfs.protocol == "NFSv3":
        held += [
            Door("ftruncate", lambda at: at.nfs._call("ftruncate", handle, 3, path=raw)),
            Door("write", lambda at: at.nfs.pwrite(handle, 0, b"new"), by_nature=doors.UNTOLD),
        ]
    return held


OPEN = [
    ("smb", "alice"),
    *(pair for pair in ASKED if pair[0] == "nfs3"),
    ("nfs4", "alice"),
    ("nfs4", "root"),
]


@pytest.mark.parametrize(("protocol", "who"), OPEN)
def test_what_was_open_to_read_is_shut(
    shared: Shared, protocol: str, who: str, session: str
) -> None:
    with held_while_sealing(shared, protocol, who, session) as (at, held):
        lines = doors.try_each(held, at)
        assert not lines, "\n".join(lines)


def test_with_attributes_of_windows_a_delete_is_refused_late(shared: Shared, session: str) -> None:
    """Nothing is deleted; but smbd finds out when the file is closed. Hence the share has none."""
    with held_while_sealing(shared, MODULES, "alice", session) as (at, held):
        late = [line for line in doors.try_each(held, at) if line.startswith("delete")]
        assert late == ["delete data: SUCCEEDED", "delete frames: SUCCEEDED"]


@contextlib.contextmanager
def held_while_sealing(
    shared: Shared, protocol: str, who: str, session: str
) -> Iterator[tuple[Reach, list[Door]]]:
    """What was opened before the seal; nothing may have changed when all of it is closed."""
    store = shared.exported.store / session.partition("/")[0]
    with shared.reach(protocol, who) as at:
        stack = contextlib.ExitStack()
        hold = held_by_smb if isinstance(at.client, SmbClient) else held_by_nfs
        held = hold(at, stack, f"{session}/raw")
        assert seal(shared, session) == ""
        before = scene.whole(store)
        yield at, held
        with contextlib.suppress(OSError):  # smbd says once more what it has refused
            stack.close()
        assert at.client.read(f"{session}/raw/data") == b"measured"
    changed = differences(before, scene.whole(store))
    assert not changed, "\n".join(changed)
