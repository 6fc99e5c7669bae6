"""Who may what over each protocol: projects of their own, whose files are whose, and ``ctl``.

smbd and WsgiDAV ask the mount as the user; so each sees and reaches what they may. NFS-Ganesha asks
as root and judges by modes alone: closed is closed, but names are shown to everybody. So each group
has a view mount of its own there, in which the projects of others do not exist.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pwd
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from smbprotocol.exceptions import SMBException

from modamafs.exports.client import Client
from modamafs.exports.share import share
from tests.exports.conftest import SHARE, Exported, exported
from tests.support.mounts import Mount, modamafs, wait_until
from tests.support.servers import PEOPLE
from tests.support.targets import Workshop
from tests.support.trees import remove
from tests.support.users import ALICE, BOB, TEAM, User, as_user

ALICES, BOBS = "skyrmions", "vortices"
"""The two projects: closed to everybody but the one whose it is."""
OWN = {"alice": ALICES, "bob": BOBS}
OTHERS = {"alice": BOBS, "bob": ALICES}
WORDS = {ALICES: "hushhush", BOBS: "psst"}
"""In the titles of a project and its session."""
DATA = b"measured"
GUEST = "games"
"""A user of this system with a group of their own."""

REFUSED = (OSError, SMBException)

each = pytest.mark.parametrize("who", ["alice", "bob"])
as_the_user = pytest.mark.parametrize("protocol", ["smb", "webdav"])
as_root = pytest.mark.parametrize("protocol", ["nfs4", "nfs3"])


def run(user: User, *arguments: str | Path) -> None:
    """A command that succeeds."""
    done = as_user(user, modamafs, *arguments)
    assert done.returncode == 0, done.stderr


def fill(root: Path) -> None:
    """Make both projects, each with a session, as their owners do."""
    (root / "tem").mkdir()
    os.chown(root / "tem", -1, TEAM)
    (root / "tem").chmod(0o2775)
    for who, name in OWN.items():
        project, user = root / "tem" / name, PEOPLE[who]
        run(user, "project", "create", "--private", "--title", WORDS[name], project)
        run(user, "session", "create", "--title", WORDS[name], project / "session")
        write_scan(user, project / "session")


def write_scan(user: User, session: Path) -> None:
    """As soon as the mount shows the session, which was made on the store."""
    wait_until((session / "raw").is_dir, "the session")
    as_user(user, (session / "raw/scan").write_bytes, DATA)


@pytest.fixture(scope="module")
def place(workshop: Workshop, new_name: Callable[[], str]) -> Iterator[Exported]:
    """The whole store, with both projects."""
    with exported(workshop, f"rights-{new_name()}") as made:
        fill(made.root)
        yield made
        for server in made.servers.values():
            server.kill()
        remove(made.store / "tem")


@contextlib.contextmanager
def exported_view(
    place: Exported, workshop: Workshop, name: str, project: str, *added: str
) -> Iterator[Exported]:
    """A new view of a project, mounted and exported."""
    done = modamafs("view", "add", place.store, name, f"tem/{project}", *added)
    assert done.returncode == 0, done.stderr
    point = workshop.mountpoint(f"{place.store.name}-{name}")
    with Mount(place.store, point, "--view", name) as mount:
        directory = workshop.mountpoint(f"{place.store.name}-{name}-servers")
        directory.mkdir()
        store = place.store / "tem" / project
        made = Exported(directory, share(SHARE, mount.root, mount.root), store, mount)
        with made.stack:
            yield made
            for server in made.servers.values():
                server.kill()


@pytest.fixture(scope="module")
def views(place: Exported, workshop: Workshop) -> Iterator[dict[str, Exported]]:
    """A view mount of each project, by the name of whose it is."""
    with contextlib.ExitStack() as stack:
        yield {
            who: stack.enter_context(exported_view(place, workshop, who, project))
            for who, project in OWN.items()
        }


def refused(number: int, call: Callable[..., object], *arguments: object) -> None:
    with pytest.raises(OSError) as caught:
        call(*arguments)
    assert caught.value.errno == number, caught.value


def shown(client: Client, path: str) -> Iterator[tuple[str, bytes]]:
    """All that the client can list from a directory on, and the files' bytes."""
    for name in client.listing(path):
        below = f"{path}/{name}".lstrip("/")
        if client.stat(below).is_directory:
            yield below, b""
            yield from shown(client, below)
        else:
            yield below, client.read(below)


def never_told(found: dict[str, bytes], project: str) -> None:
    """Neither its name nor its title is anywhere in what a client was shown."""
    for path, content in found.items():
        assert project not in path
        assert project.encode() not in content, path
        assert WORDS[project].encode() not in content, path


# ---- who reaches what ----------------------------------------------------------------------------


@each
@as_the_user
def test_each_works_in_their_own_project(place: Exported, protocol: str, who: str) -> None:
    own = f"tem/{OWN[who]}/session"
    with place.client(protocol, who) as client:
        assert client.listing(own) == ["raw"]
        assert client.read(f"{own}/raw/scan") == DATA
        client.write(f"{own}/{protocol}", b"new")
        client.mkdir(f"{own}/{protocol}-directory")
        client.rename(f"{own}/{protocol}", f"{own}/{protocol}-directory/file")
        assert client.read(f"{own}/{protocol}-directory/file") == b"new"
        client.remove(f"{own}/{protocol}-directory/file")
        client.rmdir(f"{own}/{protocol}-directory")


CLOSED: dict[str, Callable[[Client, str], object]] = {
    "list": lambda client, path: client.listing(path),
    "list a session": lambda client, path: client.listing(f"{path}/session"),
    "read": lambda client, path: client.read(f"{path}/session/raw/scan"),
    "read the landing page": lambda client, path: client.read(f"{path}/.modama/README.md"),
    "overwrite": lambda client, path: client.write(f"{path}/session/raw/scan", b"x"),
    "create": lambda client, path: client.write(f"{path}/new", b"x"),
    "make a directory": lambda client, path: client.mkdir(f"{path}/new"),
    "remove": lambda client, path: client.remove(f"{path}/session/raw/scan"),
    "rename into it": lambda client, path: client.rename("tem/mine", f"{path}/mine"),
    "rename out of it": lambda client, path: client.rename(f"{path}/session", "tem/mine/theirs"),
}
"""What somebody tries in a private project of another's."""


@each
def test_the_other_project_is_closed(place: Exported, protocol: str, who: str) -> None:
    """On every protocol, and no door of it leaves a trace."""
    path = f"tem/{OTHERS[who]}"
    mine = place.root / "tem/mine"
    as_user(PEOPLE[who], mine.mkdir)
    before = sorted(map(str, place.store.rglob("*")))
    try:
        with place.client(protocol, who) as client:
            for what, door in CLOSED.items():
                with pytest.raises(OSError) as caught:
                    door(client, path)
                assert caught.value.errno in (errno.EACCES, errno.ENOENT, errno.EPERM), what
        assert sorted(map(str, place.store.rglob("*"))) == before
        assert (place.store / path / "session/raw/scan").read_bytes() == DATA
    finally:
        mine.rmdir()


@each
@as_the_user
def test_the_other_project_is_not_shown(place: Exported, protocol: str, who: str) -> None:
    """Neither in listings nor on the pages of the area and the store; their own is."""
    own, others = OWN[who], OTHERS[who]
    with place.client(protocol, who) as client:
        for directory in ("tem", "landing/tem", "views/tem"):
            names = client.listing(directory)
            assert own in names, directory
            assert others not in names, directory
        refused(errno.EACCES, client.listing, f"views/tem/{others}")
        refused(errno.EACCES, client.listing, f"landing/tem/{others}")
        found = dict(shown(client, "landing")) | dict(shown(client, "tem"))
    assert any(WORDS[own].encode() in content for content in found.values())
    never_told(found, others)


@each
@as_the_user
def test_views_show_everybody_their_own_sessions(place: Exported, protocol: str, who: str) -> None:
    """In ``mine/`` and ``all/``; and links lead there."""
    link = f"tem~{OWN[who]}~session"
    own = PEOPLE[who].uid
    with place.client(protocol, who) as client:
        for tree in ("views/mine", "views/all"):
            assert client.listing(f"{tree}/open") == [link]
            assert client.listing(f"{tree}/sealed") == []
            assert client.listing(f"{tree}/by-owner") == [str(own)]
            assert client.listing(f"{tree}/by-owner/{own}") == [link], tree
            assert client.listing(f"{tree}/by-owner/{own}/{link}") == ["raw"]
            assert client.read(f"{tree}/open/{link}/raw/scan") == DATA


@each
@as_root
def test_over_nfs_each_group_has_a_view(
    views: dict[str, Exported], protocol: str, who: str
) -> None:
    """In whose export is their project alone, with its landing/ and views/."""
    own, others = OWN[who], OTHERS[who]
    with views[who].client(protocol, who) as client:
        assert client.listing() == ["landing", "session", "views"]
        assert client.read("session/raw/scan") == DATA
        client.write(f"session/{protocol}", b"new")
        assert (views[who].store / f"session/{protocol}").read_bytes() == b"new"
        client.remove(f"session/{protocol}")
        assert client.listing("landing/session/files/raw") == ["scan"]
        found = dict(shown(client, "landing")) | dict(shown(client, "session"))
    assert any(WORDS[own].encode() in content for content in found.values())
    never_told(found, others)


@each
@as_root
def test_a_view_is_closed_to_others(views: dict[str, Exported], protocol: str, who: str) -> None:
    """NFS hands its root to every client: what is closed there is the project's directory."""
    [view] = (view for owner, view in views.items() if owner != who)
    doors: list[Callable[[Client], object]] = [
        lambda client: client.listing(),
        lambda client: client.read("session/raw/scan"),
        lambda client: client.write("new", b"x"),
        lambda client: client.mkdir("new"),
        lambda client: client.listing("landing/session"),
    ]
    for door in doors:
        with pytest.raises(OSError) as caught, view.client(protocol, who) as client:
            door(client)
        assert caught.value.errno == errno.EACCES
    assert not (view.store / "new").exists()


# ---- whose files are whose -----------------------------------------------------------------------


@pytest.fixture
def directory(place: Exported, new_name: Callable[[], str]) -> Iterator[Path]:
    """A directory on the store, of Alice's team; servers keep names, so each has one of its own."""
    made = place.store / f"made-{new_name()}"
    made.mkdir()
    os.chown(made, ALICE.uid, TEAM)
    made.chmod(0o2775)
    yield made
    remove(made)


@each
def test_files_belong_to_who_wrote_them(
    place: Exported, protocol: str, who: str, directory: Path
) -> None:
    """And to the group of their directory, where it has the set-group-id bit; so do directories
    below, which hand it on. Elsewhere to the group of who wrote them."""
    user = PEOPLE[who]
    with place.client(protocol, who) as client:
        client.mkdir(f"{directory.name}/made")
        client.write(f"{directory.name}/made/file", b"x")
        client.write(f"{directory.name}/file", b"x")
        directory.chmod(0o775)
        client.write(f"{directory.name}/without", b"x")
    for path in ("file", "made", "made/file"):
        found = (directory / path).stat()
        assert (found.st_uid, found.st_gid) == (user.uid, TEAM), path
    assert (directory / "made").stat().st_mode & stat.S_ISGID
    found = (directory / "without").stat()
    assert (found.st_uid, found.st_gid) == (user.uid, user.gid)


def test_a_team_works_in_one_project(place: Exported, protocol: str, directory: Path) -> None:
    """What one of them makes the others may change, by the default ACL of ``modamafs project``.
    Somebody else may read it."""
    path = f"{directory.name}/project"
    as_user(ALICE, (place.root / path).mkdir)
    run(ALICE, "project", "set", "--title", "Ours", place.root / path)
    for entry in ("g::rwx", "d:g::rwx"):
        subprocess.run(["setfacl", "-m", entry, directory / "project"], check=True)
    with place.client(protocol, "alice") as client:
        if protocol.startswith("nfs"):  # libnfs asks for modes that mask the ACL
            as_user(ALICE, (place.root / path / "made").mkdir)
            as_user(ALICE, (place.root / path / "made/file").touch)
        else:
            client.mkdir(f"{path}/made")
        client.write(f"{path}/made/file", b"alice's")
    with place.client(protocol, "bob") as client:
        client.write(f"{path}/made/file", b"bob's")
        client.write(f"{path}/made/new", b"bob's")
        client.mkdir(f"{path}/made/below")
    made = directory / "project/made"
    assert (made / "file").read_bytes() == b"bob's"
    assert (made / "file").stat().st_uid == ALICE.uid
    assert {(made / name).stat().st_uid for name in ("new", "below")} == {BOB.uid}
    assert {(made / name).stat().st_gid for name in ("file", "new", "below")} == {TEAM}
    with place.client(protocol, "stranger") as client:
        assert client.read(f"{path}/made/file") == b"bob's"
        for name in ("file", "other"):
            with pytest.raises(OSError) as caught:
                client.write(f"{path}/made/{name}", b"x")
            assert caught.value.errno in (errno.EACCES, errno.EINVAL)  # EINVAL: so libnfs says
    assert (made / "file").read_bytes() == b"bob's"
    assert not (made / "other").exists()


@pytest.fixture(scope="module")
def guest() -> Iterator[User]:
    """Somebody whom servers know by name."""
    known = pwd.getpwnam(GUEST)
    user = User(known.pw_uid, known.pw_gid)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PEOPLE, GUEST, user)
        yield user


@pytest.fixture(scope="module")
def mapped(place: Exported, workshop: Workshop, guest: User) -> Iterator[Exported]:  # noqa: ARG001
    """A view of Alice's project in which everything is shown as the guest's."""
    with exported_view(place, workshop, "mapped", ALICES, "--owner", GUEST) as made:
        yield made


def test_in_a_view_with_an_owner_all_is_the_guests(
    mapped: Exported, protocol: str, guest: User
) -> None:
    """The guest works in it as whose it is; what they make is stored as theirs, in the group of
    the directory on the store, which has the set-group-id bit. The rest stays whose it is."""
    with mapped.client(protocol, GUEST) as client:
        assert client.read("session/raw/scan") == DATA
        client.mkdir(f"session/{protocol}")
        client.write(f"session/{protocol}/file", b"the guest's")
        client.write("session/raw/scan", DATA)
        assert client.read(f"session/{protocol}/file") == b"the guest's"
        seen = client.stat("session/raw/scan")
        assert seen.uid in (None, guest.uid)
    for path in (protocol, f"{protocol}/file"):
        found = (mapped.store / "session" / path).stat()
        assert (found.st_uid, found.st_gid) == (guest.uid, ALICE.gid), path
    assert (mapped.store / "session/raw/scan").stat().st_uid == ALICE.uid


def test_a_view_with_an_owner_is_closed_to_others(mapped: Exported, protocol: str) -> None:
    """To the real owner, too; and there is no ``ctl`` in it."""
    with contextlib.suppress(OSError), mapped.client(protocol, "alice") as client:
        refused(errno.EACCES, client.listing)
        refused(errno.EACCES, client.write, "new", b"x")
    assert not (mapped.store / "new").exists()
    with mapped.client(protocol, GUEST) as client:
        refused(errno.ENOENT, client.read, "session/.modama/ctl")


# ---- ctl -----------------------------------------------------------------------------------------


@pytest.fixture
def session(place: Exported, protocol: str, new_name: Callable[[], str]) -> Iterator[str]:
    """A session of Alice's in a project that everybody may read."""
    project = place.root / "tem" / f"open-{protocol}-{new_name()}"
    run(ALICE, "project", "create", "--title", "Open", project)
    run(ALICE, "session", "create", "--title", "Open", project / "session")
    write_scan(ALICE, project / "session")
    yield str((project / "session").relative_to(place.root))
    remove(place.store / "tem" / project.name)


def state(place: Exported, session: str) -> str:
    return (place.root / session / ".modama/seal/state").read_text().strip()


def seal(place: Exported, session: str) -> None:
    run(ALICE, "seal", place.root / session / "raw")


@pytest.mark.parametrize("protocol", ["smb", "nfs3", "webdav"])
def test_the_owner_seals_and_verifies_by_ctl(place: Exported, protocol: str, session: str) -> None:
    """It is recorded who it was. libnfs 4.0 opens no file for writing over NFSv4 whose directory
    it may not write to, so that is not shown here."""
    with place.client(protocol, "alice") as client:

        def answers(beginning: bytes) -> bool:
            return client.read(f"{session}/.modama/ctl").splitlines()[-1].startswith(beginning)

        assert answers(b"nothing was written yet")
        client.write(f"{session}/.modama/ctl", b"seal\n")
        wait_until(lambda: answers(b"ok: sealed since"), "the seal")
        for call in (client.remove, lambda path: client.write(path, b"x")):
            with pytest.raises(OSError):
                call(f"{session}/raw/scan")
        client.write(f"{session}/.modama/ctl", b"verify\n")
        wait_until(lambda: answers(b"ok: verified"), "verify")
        by_path = {name: client.read(f"{session}/.modama/seal/{name}") for name in VALUES}
    assert by_path == VALUES
    assert (place.store / session / "raw/scan").read_bytes() == DATA


VALUES = {
    "state": b"sealed\n",
    "sealed_by": f"{ALICE.uid}\n".encode(),
    "verified_by": f"{ALICE.uid}\n".encode(),
    "verified_ok": b"true\n",
}
"""Users have numbers where the system does not know their names."""


@pytest.mark.parametrize("who", ["bob", "stranger"])
@pytest.mark.parametrize("order", [b"seal\n", b"verify\n"])
def test_nobody_else_orders_by_ctl(
    place: Exported, protocol: str, session: str, who: str, order: bytes
) -> None:
    """Although they may read the session."""
    if order == b"verify\n":
        seal(place, session)
    before = state(place, session)
    with place.client(protocol, who) as client:
        assert client.read(f"{session}/raw/scan") == DATA
        refused(errno.EACCES, client.write, f"{session}/.modama/ctl", order)
        refused(errno.EACCES, client.write, f"landing/{session}/ctl", order)
    assert state(place, session) == before
    assert not (place.root / session / ".modama/seal/verified_at").exists()


def test_nobody_unseals_by_any_protocol(place: Exported, protocol: str, session: str) -> None:
    """Not even whoever has sealed it, by whatever name ``ctl`` is reached.

    An order without a newline is refused when it is closed, which NFSv3 does not know.
    """
    seal(place, session)
    for who in ("alice", "bob", "stranger"):
        with place.client(protocol, who) as client:
            for path in (f"{session}/.modama/ctl", f"landing/{session}/ctl"):
                for order in (b"unseal\n", b"UNSEAL\r\n", b"unseal --reason x\n", b"unseal"):
                    told = protocol != "nfs3" or who != "alice" or order != b"unseal"
                    with pytest.raises(REFUSED) if told else contextlib.nullcontext():
                        client.write(path, order)
            for path in (f"{session}/raw/scan", f"{session}/.modama/seals/raw.json"):
                with pytest.raises(OSError):
                    client.remove(path)
    assert state(place, session) == "sealed"
    assert (place.store / session / "raw/scan").read_bytes() == DATA
