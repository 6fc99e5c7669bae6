"""What people do over each protocol, on the mount as on the bare directory."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import pytest

from modamafs.exports.client import Client
from modamafs.exports.servers import Samba
from modamafs.exports.smb_client import SmbClient
from modamafs.exports.webdav_client import WebDavClient
from tests.exports.conftest import SHARE, Exported
from tests.exports.smb_requests import READ_DATA, WRITE_DATA, allocated, copy_chunk, zero
from tests.support.differential import GROUP_OBJ, MASK, NOBODY, OTHER, USER, USER_OBJ, acl
from tests.support.mounts import wait_until
from tests.support.servers import PASSWORD, Ganesha3
from tests.support.trees import differences, snapshot
from tests.support.users import ALICE, BOB, STRANGER, TEAM

MiB = 1 << 20
PIECE = random.Random(1).randbytes(MiB)
SIZES = (0, 1, 4095, 4096, 4097, 70_001, MiB + 1)


@dataclass(frozen=True)
class Folder:
    """A directory of a test's own in an exported one, in which Alice's team may do everything."""

    place: Exported
    protocol: str
    name: str

    @property
    def store(self) -> Path:
        """On the store."""
        return self.place.store / self.name

    @property
    def local(self) -> Path:
        """As local programs see it: through the mount."""
        return self.place.root / self.name

    def path(self, name: str) -> str:
        """Of an entry, as clients write it."""
        return f"{self.name}/{name}"

    def client(self, who: str = "alice") -> AbstractContextManager[Client]:
        """A new connection."""
        return self.place.client(self.protocol, who)


@pytest.fixture(params=["plain", "bare"])
def place(request: pytest.FixtureRequest) -> Exported:
    """The mount, and the bare directory as the control."""
    found: Exported = request.getfixturevalue(request.param)
    return found


def new_folder(place: Exported, protocol: str, name: str) -> Folder:
    made = Folder(place, protocol, f"{protocol}-{name}")
    made.local.mkdir()
    os.chown(made.local, ALICE.uid, TEAM)
    made.local.chmod(0o2775)
    return made


@pytest.fixture
def folder(place: Exported, protocol: str, new_name: Callable[[], str]) -> Iterator[Folder]:
    """New for each test, over each protocol, in both places."""
    yield new_folder(place, protocol, new_name())
    if place.mount:
        place.mount.fail_on_unexpected_log_lines()


@pytest.fixture
def smb_folder(place: Exported, new_name: Callable[[], str]) -> Folder:
    """The same, over SMB alone."""
    return new_folder(place, "smb", new_name())


@pytest.fixture
def webdav_folder(place: Exported, new_name: Callable[[], str]) -> Folder:
    """The same, over WebDAV alone."""
    return new_folder(place, "webdav", new_name())


def content(size_bytes: int) -> bytes:
    """Bytes that are not those of another offset, up to 1 MiB."""
    return (PIECE * (size_bytes // MiB + 1))[:size_bytes]


# ---- files and directories -----------------------------------------------------------------------


def test_what_is_uploaded_is_on_the_store_byte_for_byte(folder: Folder) -> None:
    with folder.client() as client:
        for size in SIZES:
            client.write(folder.path(f"{size}"), content(size))
            assert (folder.store / f"{size}").read_bytes() == content(size)
            assert client.stat(folder.path(f"{size}")).size_bytes == size
        assert client.listing(folder.name) == sorted(map(str, SIZES))


def test_what_is_on_the_store_is_downloaded_byte_for_byte(folder: Folder) -> None:
    for size in SIZES:
        (folder.store / f"{size}").write_bytes(content(size))
    with folder.client() as client:
        for size in SIZES:
            assert client.read(folder.path(f"{size}")) == content(size)


def test_parts_are_read_at_any_offset(folder: Folder) -> None:
    (folder.store / "data").write_bytes(content(3 * MiB))
    with folder.client() as client:
        for offset, length in ((0, 1), (1, 4096), (MiB - 1, 2), (2 * MiB + 7, 100_000)):
            expected = content(3 * MiB)[offset : offset + length]
            assert client.read(folder.path("data"), offset, length) == expected
        assert client.read(folder.path("data"), 3 * MiB - 5, 100) == content(3 * MiB)[-5:]


def test_overwriting_keeps_the_file_that_it_is(folder: Folder) -> None:
    """So that hard links, and whoever has it open, see the new bytes."""
    with folder.client() as client:
        client.write(folder.path("data"), content(100_000))
        before = (folder.store / "data").stat()
        client.write(folder.path("data"), b"shorter")
        assert (folder.store / "data").read_bytes() == b"shorter"
        client.write(folder.path("data"), content(9000))
        after = (folder.store / "data").stat()
    assert (folder.store / "data").read_bytes() == content(9000)
    assert (after.st_ino, after.st_mode, after.st_uid) == (
        before.st_ino, before.st_mode, before.st_uid
    )  # fmt: skip


@pytest.mark.parametrize("protocol", ["smb", "nfs4", "nfs3"])  # WebDAV writes whole files
def test_bytes_are_changed_in_place_and_cut_off(folder: Folder) -> None:
    with folder.client() as client:
        client.write(folder.path("data"), content(10_000))
        client.write_at(folder.path("data"), 5000, b"changed")
        expected = content(5000) + b"changed" + content(10_000)[5007:]
        assert (folder.store / "data").read_bytes() == expected
        client.write_at(folder.path("data"), 20_000, b"behind a hole")
        client.truncate(folder.path("data"), 20_006)
        assert (folder.store / "data").read_bytes() == expected + bytes(10_000) + b"behind"


def test_renaming(folder: Folder) -> None:
    with folder.client() as client:
        client.write(folder.path("old"), b"old")
        client.mkdir(folder.path("directory"))
        client.mkdir(folder.path("elsewhere"))
        client.write(folder.path("directory/inside"), b"inside")
        inode = (folder.store / "old").stat().st_ino

        client.rename(folder.path("old"), folder.path("new"))
        assert client.listing(folder.name) == ["directory", "elsewhere", "new"]
        client.rename(folder.path("new"), folder.path("elsewhere/new"))
        client.rename(folder.path("directory"), folder.path("elsewhere/directory"))
        assert client.listing(folder.name) == ["elsewhere"]
        assert client.read(folder.path("elsewhere/directory/inside")) == b"inside"

        client.rename(folder.path("elsewhere/new"), folder.path("elsewhere/directory/inside"))
        assert client.read(folder.path("elsewhere/directory/inside")) == b"old"
        assert client.listing(folder.path("elsewhere")) == ["directory"]
    assert (folder.store / "elsewhere/directory/inside").stat().st_ino == inode


def test_removing(folder: Folder) -> None:
    with folder.client() as client:
        client.mkdir(folder.path("directory"))
        client.write(folder.path("directory/file"), b"")
        with pytest.raises(OSError) as refused:
            client.rmdir(folder.path("directory"))
        assert refused.value.errno in (errno.ENOTEMPTY, errno.EEXIST)
        client.remove(folder.path("directory/file"))
        assert client.listing(folder.path("directory")) == []
        client.rmdir(folder.path("directory"))
        assert client.listing(folder.name) == []
        with pytest.raises(FileNotFoundError):
            client.stat(folder.path("directory"))
    assert list(folder.store.iterdir()) == []


def test_a_thousand_small_files_are_all_listed(folder: Folder) -> None:
    names = [f"frame_{number:04}.dat" for number in range(1000)]
    with folder.client() as client:
        for name in names:
            client.write(folder.path(name), name.encode())
        assert client.listing(folder.name) == names
    assert {path.name: path.read_bytes() for path in folder.store.iterdir()} == {
        name: name.encode() for name in names
    }


def test_forty_levels_deep(folder: Folder) -> None:
    path = folder.name
    with folder.client() as client:
        for level in range(40):
            path += f"/level-{level}"
            client.mkdir(path)
        client.write(f"{path}/file", b"deep")
        assert client.read(f"{path}/file") == b"deep"
        client.rename(f"{path}/file", folder.path("file"))
        assert client.listing(path) == []
    assert (folder.store / "file").read_bytes() == b"deep"


NAMES = {
    "composed": "M\u00fcller",
    "decomposed": "Mu\u0308ller",
    "Japanese": "電子顕微鏡",
    "emoji": "🔬 scan",
    "signs": "50% (a+b) #1 & 'more'",
    "255 bytes": "a" * 251 + ".dat",
    "255 bytes of two each": "ü" * 125 + "-.dat",
}


def test_names_are_kept_byte_for_byte(folder: Folder) -> None:
    with folder.client() as client:
        for kind, name in NAMES.items():
            client.write(folder.path(name), kind.encode())
        assert client.listing(folder.name) == sorted(NAMES.values())
        for kind, name in NAMES.items():
            assert client.read(folder.path(name)) == kind.encode(), kind
            client.rename(folder.path(name), folder.path("renamed"))
            client.rename(folder.path("renamed"), folder.path(name))
    found = {os.fsencode(path.name): path.read_bytes() for path in folder.store.iterdir()}
    assert found == {name.encode(): kind.encode() for kind, name in NAMES.items()}
    with folder.client() as client:
        for name in NAMES.values():
            client.remove(folder.path(name))
    assert list(folder.store.iterdir()) == []


def test_names_of_the_store_are_read(folder: Folder) -> None:
    for kind, name in NAMES.items():
        (folder.store / name).mkdir()
        (folder.store / name / name).write_text(kind)
    with folder.client() as client:
        assert client.listing(folder.name) == sorted(NAMES.values())
        for kind, name in NAMES.items():
            assert client.read(folder.path(f"{name}/{name}")) == kind.encode()


# ---- large files --------------------------------------------------------------------------------

LARGE_BYTES = 300 * MiB + 1
UPLOADED_BYTES = {"nfs4": 4 * MiB + 1}
"""libnfs 4.0 writes 3 KiB at a time over NFSv4."""


def test_a_large_file_there_and_back(folder: Folder) -> None:
    size = UPLOADED_BYTES.get(folder.protocol, LARGE_BYTES)
    with folder.client() as client:
        client.write(folder.path("large"), content(size))
        assert (folder.store / "large").stat().st_size == size
        assert is_content((folder.store / "large").read_bytes(), size)
        if size < LARGE_BYTES:
            (folder.store / "large").write_bytes(content(LARGE_BYTES))
        assert is_content(client.read(folder.path("large")), LARGE_BYTES)
        client.remove(folder.path("large"))


def is_content(data: bytes, size_bytes: int) -> bool:
    """Nothing is said of what differs: it takes long to find the words."""
    return data == content(size_bytes)


def test_parts_beyond_four_gibibytes(folder: Folder) -> None:
    with (folder.store / "sparse").open("wb") as file:
        file.seek(5 << 30)
        file.write(b"far away")
    with folder.client() as client:
        assert client.stat(folder.path("sparse")).size_bytes == (5 << 30) + 8
        assert client.read(folder.path("sparse"), (5 << 30) - 4, 12) == bytes(4) + b"far away"


# ---- whose it is, and who may --------------------------------------------------------------------

MODES = {
    "smb": (0o664, 0o2775),
    "nfs4": (0o600, 0o2755),
    "nfs3": (0o644, 0o2755),
    "webdav": (0o644, 0o2755),
}
"""Of files and directories: SMB's as the share says, NFS's as the client asks (libnfs 4.0 asks for
nothing when it makes a file over NFSv4), WebDAV's by the server's umask."""


def test_what_somebody_writes_is_theirs_and_the_teams(folder: Folder) -> None:
    (folder.local / "left").touch()  # the directory has been seen before
    with folder.client("bob") as client:
        client.write(folder.path("file"), b"bob's")
        client.mkdir(folder.path("directory"))
        client.write(folder.path("directory/file"), b"bob's")
    for name in ("file", "directory", "directory/file"):
        status = (folder.store / name).stat()
        assert (status.st_uid, status.st_gid) == (BOB.uid, TEAM), name
    file, directory = MODES[folder.protocol]
    assert f"{(folder.store / 'file').stat().st_mode & 0o7777:o}" == f"{file:o}"
    assert f"{(folder.store / 'directory').stat().st_mode & 0o7777:o}" == f"{directory:o}"
    with folder.client("bob") as client:
        assert client.read(folder.path("file")) == b"bob's"
        if folder.protocol.startswith("nfs"):
            seen = client.stat(folder.path("file"))
            assert (seen.uid, seen.gid, seen.mode) == (BOB.uid, TEAM, file)


def test_over_webdav_all_that_is_written_is_the_servers(webdav_folder: Folder) -> None:
    server = webdav_folder.place.server("webdav", "alice")
    with WebDavClient("127.0.0.1", server.port, "data", "bob", PASSWORD) as client:
        client.write(webdav_folder.path("file"), b"bob's")
    assert (webdav_folder.store / "file").stat().st_uid == ALICE.uid


def test_a_stranger_reads_and_changes_nothing(folder: Folder) -> None:
    (folder.store / "file").write_bytes(b"ours")
    with folder.client("stranger") as client:
        assert client.read(folder.path("file")) == b"ours"
        for attempt in (
            lambda: client.write(folder.path("file"), b"theirs"),
            lambda: client.write(folder.path("new"), b"theirs"),
            lambda: client.mkdir(folder.path("directory")),
            lambda: client.rename(folder.path("file"), folder.path("new")),
            lambda: client.remove(folder.path("file")),
        ):
            with pytest.raises(PermissionError):
                attempt()
    assert {path.name: path.read_bytes() for path in folder.store.iterdir()} == {"file": b"ours"}


DEFAULT = (
    (USER_OBJ, 7, NOBODY), (USER, 7, STRANGER.uid), (GROUP_OBJ, 7, NOBODY), (MASK, 7, NOBODY),
    (OTHER, 0, NOBODY),
)  # fmt: skip


def test_a_default_acl_is_inherited(folder: Folder) -> None:
    os.setxattr(folder.local, "system.posix_acl_default", acl(*DEFAULT))
    with folder.client() as client:
        client.mkdir(folder.path("directory"))
        client.write(folder.path("directory/file"), b"alice's")
    inherited = os.getxattr(folder.store / "directory", "system.posix_acl_default")
    assert inherited == acl(*DEFAULT)
    access = os.getxattr(folder.store / "directory/file", "system.posix_acl_access")
    # What the client asks for takes from the mask, and nothing from whom the ACL names.
    assert acl((USER, 7, STRANGER.uid))[4:] in access
    assert (folder.store / "directory/file").stat().st_mode & 0o007 == 0, "others may nothing"
    if not folder.protocol.startswith("nfs"):  # Debian's Ganesha goes by modes alone
        with folder.client("stranger") as client:
            assert client.read(folder.path("directory/file")) == b"alice's"


# ---- others at the same time ---------------------------------------------------------------------


def test_two_clients_see_each_others_changes(folder: Folder) -> None:
    with folder.client("alice") as alice, folder.client("bob") as bob:
        assert bob.listing(folder.name) == []
        alice.write(folder.path("file"), b"from alice")
        (folder.local / "file").chmod(0o664)
        assert bob.listing(folder.name) == ["file"]
        assert bob.read(folder.path("file")) == b"from alice"
        bob.mkdir(folder.path("directory"))
        bob.write(folder.path("directory/answer"), b"from bob, and longer")
        assert alice.listing(folder.path("directory")) == ["answer"]
        assert alice.stat(folder.path("directory/answer")).size_bytes == 20
        bob.rename(folder.path("directory/answer"), folder.path("moved"))
        assert alice.listing(folder.path("directory")) == []
        assert alice.listing(folder.name) == ["directory", "file", "moved"]
        alice.write(folder.path("file"), b"again")
        assert bob.read(folder.path("file")) == b"again"
        alice.remove(folder.path("file"))
        with pytest.raises(FileNotFoundError):
            bob.read(folder.path("file"))


@pytest.mark.parametrize("where", ["through the mount", "on the store"])
def test_a_local_change_is_seen(folder: Folder, where: str) -> None:
    here = folder.local if where == "through the mount" else folder.store
    with folder.client() as client:

        def seen() -> dict[str, bytes]:
            try:
                return {
                    name: client.read(folder.path(name)) for name in client.listing(folder.name)
                }
            except OSError:  # it went between the two requests
                return {}

        client.write(folder.path("file"), b"before")
        assert seen() == {"file": b"before"}
        (here / "file").write_bytes(b"after, and longer")
        wait_until(lambda: seen() == {"file": b"after, and longer"}, "the new bytes")
        (here / "new").write_bytes(b"new")
        wait_until(lambda: "new" in client.listing(folder.name), "the new file")
        (here / "file").rename(here / "renamed")
        (here / "new").unlink()
        wait_until(lambda: seen() == {"renamed": b"after, and longer"}, "the new names")


# ---- what only one protocol has ------------------------------------------------------------------


def test_over_smb_a_name_is_found_in_any_case(smb_folder: Folder) -> None:
    with smb_folder.client() as client:
        client.write(smb_folder.path("Scan.MIB"), b"scan")
        assert client.read(smb_folder.path("sCAN.mib")) == b"scan"
        client.write(smb_folder.path("SCAN.MIB"), b"the same file")
        client.rename(smb_folder.path("scan.mib"), smb_folder.path("scan.mib"))
        assert client.listing(smb_folder.name) == ["scan.mib"]
    assert {path.name: path.read_bytes() for path in smb_folder.store.iterdir()} == {
        "scan.mib": b"the same file"
    }


def test_over_smb_holes_are_made(smb_folder: Folder) -> None:
    """FSCTL_SET_ZERO_DATA frees the blocks on the store."""
    file = smb_folder.store / "data"
    with smb_folder.client() as client:
        assert isinstance(client, SmbClient)
        client.write(smb_folder.path("data"), content(MiB))
        blocks = file.stat().st_blocks
        with client.opened(smb_folder.path("data"), READ_DATA | WRITE_DATA) as opened:
            zero(client, opened, MiB // 4, MiB // 2)
            assert allocated(client, opened, MiB)[0][0] == 0
    assert file.read_bytes() == content(MiB // 4) + bytes(MiB // 4) + content(MiB)[MiB // 2 :]
    assert blocks - file.stat().st_blocks == MiB // 4 // 512


def test_over_smb_the_server_copies(smb_folder: Folder) -> None:
    """FSCTL_SRV_COPYCHUNK_WRITE, as Explorer copies within a share."""
    with smb_folder.client() as client:
        assert isinstance(client, SmbClient)
        client.write(smb_folder.path("one"), content(MiB))
        client.write(smb_folder.path("other"), b"")
        with (
            client.opened(smb_folder.path("one"), READ_DATA) as one,
            client.opened(smb_folder.path("other"), READ_DATA | WRITE_DATA) as other,
        ):
            copy_chunk(client, one, other, MiB)
    assert (smb_folder.store / "other").read_bytes() == content(MiB)


def test_over_webdav_the_server_copies(webdav_folder: Folder) -> None:
    with webdav_folder.client() as client:
        assert isinstance(client, WebDavClient)
        client.mkdir(webdav_folder.path("one"))
        client.write(webdav_folder.path("one/file"), content(MiB))
        client.copy(webdav_folder.path("one"), webdav_folder.path("other"))
    assert (webdav_folder.store / "other/file").read_bytes() == content(MiB)


# ---- the programs that people have ---------------------------------------------------------------


def run(*command: str | Path, cwd: Path, env: Mapping[str, str] | None = None) -> str:
    """What a program says; it must succeed."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=os.environ | (env or {}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_smbclient(smb_folder: Folder, tmp_path: Path) -> None:
    server = smb_folder.place.server("smb")
    assert isinstance(server, Samba)
    (tmp_path / "local").write_bytes(content(MiB))

    def smbclient(commands: str) -> str:
        return run(
            "smbclient", f"//127.0.0.1/{SHARE}", f"--configfile={server.configuration}",
            f"--port={server.port}", f"--user=alice%{PASSWORD}", "--directory", smb_folder.name,
            "--command", commands, cwd=tmp_path,
        )  # fmt: skip

    smbclient("put local there; rename there renamed; mkdir directory")
    assert (smb_folder.store / "renamed").read_bytes() == content(MiB)
    listed = smbclient("ls")
    assert "renamed" in listed
    assert "directory" in listed
    smbclient("get renamed back; del renamed; rmdir directory")
    assert (tmp_path / "back").read_bytes() == content(MiB)
    assert list(smb_folder.store.iterdir()) == []


@pytest.mark.parametrize("version", [3, 4])
def test_nfs_tools(
    place: Exported, new_name: Callable[[], str], tmp_path: Path, version: int
) -> None:
    protocol = f"nfs{version}"
    folder = new_folder(place, protocol, new_name())
    server = place.server(protocol)
    (tmp_path / "local").write_text("Die größte Datei\n" * 100)
    (folder.store / "large").write_bytes(content(MiB + 1))

    def url(name: str) -> str:
        return (
            f"nfs://127.0.0.1/{SHARE}/{folder.name}{name}?nfsport={server.port}"
            f"&version={version}&uid={ALICE.uid}&gid={TEAM}"
        )

    with server.inside() if isinstance(server, Ganesha3) else contextlib.nullcontext():
        run("nfs-cp", "local", url("/there"), cwd=tmp_path)
        run("nfs-cp", url("/large"), "back", cwd=tmp_path)
        listed = run("nfs-ls", url(""), cwd=tmp_path)
        said = run("nfs-cat", url("/there"), cwd=tmp_path)
    assert said == (folder.store / "there").read_text() == (tmp_path / "local").read_text()
    assert (folder.store / "there").stat().st_uid == ALICE.uid
    assert (tmp_path / "back").read_bytes() == content(MiB + 1)
    assert {line.split()[-1] for line in listed.splitlines()} >= {"there", "large"}


def test_rclone(webdav_folder: Folder, tmp_path: Path) -> None:
    """A tree is synchronised there and back, and compared each time."""
    server = webdav_folder.place.server("webdav")
    one, other = tmp_path / "one", tmp_path / "other"
    for number, name in enumerate(NAMES.values()):
        if len(name.encode()) < 200:  # rclone writes under a longer name first
            (one / f"{number}").mkdir(parents=True)
            (one / f"{number}" / name).write_bytes(content(number * 10_000))
    environment = {
        "RCLONE_CONFIG": "/dev/null",
        "RCLONE_WEBDAV_URL": f"http://127.0.0.1:{server.port}/{SHARE}/{webdav_folder.name}",
        "RCLONE_WEBDAV_USER": "alice",
        "RCLONE_WEBDAV_PASS": run("rclone", "obscure", PASSWORD, cwd=tmp_path).strip(),
    }
    for command in (
        ("sync", one, ":webdav:"),
        ("check", "--download", one, ":webdav:"),
        ("sync", ":webdav:", other),
        ("check", "--download", ":webdav:", other),
    ):
        run("rclone", *command, cwd=tmp_path, env=environment)
    assert differences(snapshot(one), snapshot(webdav_folder.store), ATTRIBUTES) == []
    (one / "0" / NAMES["composed"]).unlink()
    (one / "1" / NAMES["decomposed"]).write_bytes(b"shorter")
    run("rclone", "sync", one, ":webdav:", cwd=tmp_path, env=environment)
    assert differences(snapshot(one), snapshot(webdav_folder.store), ATTRIBUTES) == []


ATTRIBUTES = ("mode", "nlink", "owner", "ino", "mtime_ns", "ctime_ns")
"""What a copy by rclone does not share with the original."""


def test_litmus(
    plain: Exported, bare: Exported, new_name: Callable[[], str], tmp_path: Path
) -> None:
    """The mount fails in nothing that the bare directory does not fail in."""
    failures = {}
    for name, place in (("mount", plain), ("bare", bare)):
        folder = new_folder(place, "webdav", new_name())
        server = place.server("webdav")
        done = subprocess.run(
            ["litmus", "-k", f"http://127.0.0.1:{server.port}/{SHARE}/{folder.name}/", "alice",
             PASSWORD],
            cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        said = done.stdout.replace(folder.name, "FOLDER").replace(f":{server.port}/", "/")
        lines = said.splitlines()
        summaries = [line for line in lines if line.startswith("<- summary for `")]
        assert len(summaries) == 5, done.stdout
        failures[name] = [line for line in lines if "FAIL" in line] + summaries
    assert failures["mount"] == failures["bare"]
