"""``modamafs export``: what it prints, writes and finds out, and what it refuses."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from modamafs.exports.nfs_client import NfsClient
from modamafs.exports.servers import Ganesha, Samba
from modamafs.exports.smb_client import SmbClient
from tests.exports.conftest import Exported, exported
from tests.support.janitor import mounts_below
from tests.support.mounts import Mount, command, installed, modamafs
from tests.support.servers import PASSWORD
from tests.support.syscalls import FS_IMMUTABLE_FL, set_flags
from tests.support.targets import Workshop
from tests.support.users import ALICE, TEAM

RAW = "area/project/session/raw"
NO_ANY_PORT = ("--smb-port", "0", "--nfs-port", "0", "--webdav-port", "0")


@pytest.fixture(scope="module")
def place(workshop: Workshop, new_name: Callable[[], str]) -> Iterator[Exported]:
    """A mount with a sealed directory and a writable one."""
    with exported(workshop, f"command-{new_name()}") as made:
        raw = made.root / RAW
        raw.mkdir(parents=True)
        (raw / "scan.raw").write_bytes(b"measured" * 1000)
        (made.root / "notes").mkdir()
        for path in (raw, *raw.parents[:3], raw / "scan.raw", made.root / "notes"):
            os.chown(path, ALICE.uid, TEAM)
            path.chmod(0o775 if path.is_dir() else 0o664)
        assert modamafs("seal", raw).returncode == 0
        yield made


def export(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return modamafs("export", *arguments)


def refused(*arguments: str | Path) -> str:
    """What is said, in one line, of what is not done."""
    done = export(*arguments)
    assert (done.returncode, done.stdout) == (3, ""), done
    [line] = done.stderr.splitlines()
    return line


# ---- show ----------------------------------------------------------------------------------------


def test_samba_takes_what_is_shown(place: Exported, tmp_path: Path) -> None:
    shown = export("samba", "show", "--name", "data", "--private", tmp_path, place.root)
    assert shown.returncode == 0, shown.stderr
    configuration = tmp_path / "smb.conf"
    configuration.write_text(shown.stdout)
    subprocess.run(
        ["bash", "-c", shown.stdout.splitlines()[1].removeprefix("#")], check=True
    )  # as it says: mkdir
    read = subprocess.run(
        ["testparm", "--suppress-prompt", configuration], capture_output=True, text=True, check=True
    )
    assert "Unknown parameter" not in read.stderr
    assert "[data]" in read.stdout
    assert f"path = {place.root}" in read.stdout
    section = export("samba", "show", "--name", "data", place.root)
    assert section.stdout.rstrip() in shown.stdout


def test_of_a_directory_in_the_mount_and_read_only(place: Exported) -> None:
    shown = export("samba", "show", "--json", "--read-only", place.root / "notes")
    report = json.loads(shown.stdout)
    assert report["name"] == "notes"
    assert report["path"] == str(place.root / "notes")
    assert report["mountpoint"] == str(place.root)
    assert report["read_only"] is True
    assert "read only = yes" in report["configuration"]


def test_the_kernels_server_gets_a_file_system_id_that_stays(place: Exported) -> None:
    lines = [
        export("nfs", "show", "--kernel", "--name", "data", "--clients", "10.1.0.0/16", place.root)
        for _ in range(2)
    ]
    assert lines[0].stdout == lines[1].stdout
    assert lines[0].stdout.splitlines()[-1].startswith(f"{place.root} 10.1.0.0/16(rw,sync,")
    assert ",fsid=" in lines[0].stdout
    other = export("nfs", "show", "--kernel", "--name", "notes", place.root / "notes")
    assert other.stdout.splitlines()[-1].split("fsid=")[1] not in lines[0].stdout


def test_nextcloud_is_told_by_occ(place: Exported) -> None:
    shown = export("nextcloud", "show", "--name", "data", "--group", "em", place.root).stdout
    assert f"$occ files_external:create /data local null::null -c datadir={place.root}" in shown
    assert "$occ files_external:option ID filesystem_check_changes 1" in shown
    assert "$occ files_external:applicable ID --add-group=em" in shown
    assert subprocess.run(["sh", "-n"], input=shown, text=True, check=False).returncode == 0


# ---- install -------------------------------------------------------------------------------------


@pytest.fixture
def smb_conf(tmp_path: Path) -> Path:
    """As Debian brings it, and somebody has added a share."""
    path = tmp_path / "smb.conf"
    path.write_text("[global]\n    workgroup = LAB\n\n[scratch]\n    path = /tmp\n")
    path.chmod(0o640)
    return path


def test_installed_again_nothing_changes_and_uninstalled_all_is_as_before(
    place: Exported, smb_conf: Path
) -> None:
    before = smb_conf.read_bytes()
    install = ("samba", "install", "--directory", smb_conf.parent, "--name", "data", place.root)
    dry = export(*install, "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert f"path = {place.root}" in dry.stdout
    assert list(smb_conf.parent.iterdir()) == [smb_conf]
    assert smb_conf.read_bytes() == before

    done = export(*install)
    assert done.returncode == 0, done.stderr
    own = smb_conf.parent / "modamafs/data.conf"
    assert f"path = {place.root}" in own.read_text()
    assert smb_conf.read_bytes().startswith(before)
    assert smb_conf.stat().st_mode & 0o777 == 0o640
    after = smb_conf.read_bytes(), own.read_bytes()
    again = export(*install, "--json")
    assert {step["action"] for step in json.loads(again.stdout)["steps"]} == {"leave"}
    assert (smb_conf.read_bytes(), own.read_bytes()) == after

    read = subprocess.run(
        ["testparm", "-s", smb_conf], capture_output=True, text=True, check=True
    ).stdout
    assert "[data]" in read
    assert "[scratch]" in read

    gone = export("samba", "uninstall", "--directory", smb_conf.parent, "data")
    assert gone.returncode == 0, gone.stderr
    assert smb_conf.read_bytes() == before
    assert not own.exists()


def test_a_name_that_is_taken_is_refused(place: Exported, smb_conf: Path) -> None:
    install = ("samba", "install", "--directory", smb_conf.parent, "--name")
    assert "has a share [scratch] already" in refused(*install, "scratch", place.root)
    assert export(*install, "data", place.root).returncode == 0
    other = refused(*install, "data", place.root / "notes")
    assert f"exports {place.root} by this name" in other
    assert "--replace" in other
    assert export(*install, "data", place.root / "notes", "--replace").returncode == 0
    assert f"path = {place.root}/notes" in (smb_conf.parent / "modamafs/data.conf").read_text()
    for name in ("global", "a b", "../x", ""):
        assert "is no name for a share" in refused(*install, name, place.root)


def test_a_file_of_somebody_else_is_never_written_over(place: Exported, smb_conf: Path) -> None:
    own = smb_conf.parent / "modamafs/data.conf"
    own.parent.mkdir()
    own.write_text("[data]\n    path = /srv\n")
    install = ("samba", "install", "--directory", smb_conf.parent, "--name", "data")
    for more in ((), ("--replace",)):
        assert "was not made by modamafs" in refused(*install, *more, place.root)
    assert own.read_text() == "[data]\n    path = /srv\n"
    assert "was not made by modamafs" in refused(
        "samba", "uninstall", "--directory", smb_conf.parent, "data"
    )


def test_what_can_not_be_done_whole_is_not_done_at_all(place: Exported, smb_conf: Path) -> None:
    set_flags(smb_conf, FS_IMMUTABLE_FL)
    try:
        refused("samba", "install", "--directory", smb_conf.parent, "--name", "data", place.root)
    finally:
        set_flags(smb_conf, 0)
    assert not (smb_conf.parent / "modamafs/data.conf").exists()
    assert [path.name for path in smb_conf.parent.iterdir() if path.is_file()] == ["smb.conf"]


def test_a_server_that_is_not_there_is_named_with_its_package(
    place: Exported, tmp_path: Path
) -> None:
    for kind, package in (("samba", "samba"), ("nfs", "nfs-ganesha")):
        line = refused(kind, "install", "--directory", tmp_path, "--name", "data", place.root)
        assert f"apt install {package}" in line
    assert "--occ" in refused("nextcloud", "install", place.root)


def test_ganesha_serves_what_was_installed(place: Exported, tmp_path: Path) -> None:
    with Ganesha(tmp_path / "server", [place.share]) as running:
        port = running.port
    main = tmp_path / "server/ganesha.conf"
    main.write_text(main.read_text().split("EXPORT")[0])  # as it is before anything is exported
    before = main.read_bytes()
    install = ("nfs", "install", "--directory", main.parent, "--name", "data", place.root)
    assert export(*install).returncode == 0
    assert "Export_Id" not in main.read_text()
    taken = tmp_path / "server/modamafs/other.conf"
    taken.write_text('EXPORT { Export_Id = 1; Pseudo = "/notes"; }\n'.replace("; ", ";\n"))
    clash = refused("nfs", "install", "--directory", main.parent, place.root / "notes")
    assert 'has Pseudo = "/notes" already' in clash
    taken.unlink()

    class AsInstalled(Ganesha):
        def _prepare(self) -> list[str]:
            written = main.read_bytes()
            started = super()._prepare()
            main.write_bytes(written)
            return started

    with (
        AsInstalled(tmp_path / "server", [], port),
        NfsClient("127.0.0.1", port, "data", uid=ALICE.uid, gid=ALICE.gid) as client,
    ):
        assert "notes" in client.listing()
    assert export("nfs", "uninstall", "--directory", main.parent, "data").returncode == 0
    assert main.read_bytes() == before


OCC = """\
#!{python}
# Keeps what occ is told, as there is no package of Nextcloud to install here.
import json, pathlib, sys
state = pathlib.Path({state!r})
known = json.loads(state.read_text()) if state.exists() else {{"mounts": [], "calls": []}}
known["calls"].append(sys.argv[1:])
if sys.argv[1] == "files_external:list":
    print(json.dumps(known["mounts"]))
elif sys.argv[1] == "files_external:create":
    number = len(known["mounts"]) + 1
    directory = next(a for a in sys.argv if a.startswith("datadir=")).removeprefix("datadir=")
    known["mounts"].append({{"mount_id": number, "mount_point": sys.argv[2],
                             "configuration": {{"datadir": directory}}}})
    print(number)
elif sys.argv[1] == "files_external:verify" and "broken" in state.name:
    sys.exit("the storage can't be reached")
state.write_text(json.dumps(known))
"""


def occ(tmp_path: Path, state: str = "state.json") -> str:
    program = tmp_path / f"occ-{state}"
    program.write_text(OCC.format(python=sys.executable, state=str(tmp_path / state)))
    program.chmod(0o755)
    return str(program)


def test_nextcloud_gets_one_storage_however_often_it_is_installed(
    place: Exported, tmp_path: Path
) -> None:
    install = ("nextcloud", "install", "--occ", occ(tmp_path), "--name", "data")
    dry = export(*install, "--dry-run", place.root)
    assert dry.returncode == 0, dry.stderr
    assert "files_external:create /data" in dry.stdout
    known = json.loads((tmp_path / "state.json").read_text())
    assert [call[0] for call in known["calls"]] == ["files_external:list"]
    for _ in range(2):
        done = export(*install, "--group", "em", place.root)
        assert done.returncode == 0, done.stderr
    known = json.loads((tmp_path / "state.json").read_text())
    [mount] = known["mounts"]
    assert mount["configuration"]["datadir"] == str(place.root)
    assert ["files_external:option", "1", "filesystem_check_changes", "1"] in known["calls"]
    assert ["files_external:applicable", "1", "--add-group=em"] in known["calls"]
    assert "already, of" in refused(*install, place.root / "notes")
    overlapping = refused(*install[:-1], "notes", place.root / "notes")
    assert "reaches the same files" in overlapping
    assert "mount it read-only" in refused(*install, "--read-only", place.root)


def test_what_occ_complains_of_is_told(place: Exported, tmp_path: Path) -> None:
    broken = occ(tmp_path, "broken.json")
    line = refused("nextcloud", "install", "--occ", broken, "--name", "data", place.root)
    assert line.endswith("the storage can't be reached")
    assert "is not there" in refused("nextcloud", "install", "--occ", "/nowhere/occ", place.root)


# ---- check ---------------------------------------------------------------------------------------


def checks(*arguments: str | Path) -> tuple[int, dict[str, bool | None]]:
    done = export(*arguments)
    assert done.stderr == "", done.stderr
    return done.returncode, {row["question"]: row["ok"] for row in json.loads(done.stdout)}


@pytest.mark.parametrize("protocol", ["smb", "nfs4", "webdav"])
def test_each_server_is_found_to_be_right(
    place: Exported, protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODAMAFS_PASSWORD", PASSWORD)
    port = str(place.server(protocol).port)
    kind = {
        "smb": ("samba", "check", "--user", "alice", "--port", port),
        "nfs4": ("nfs", "check", "--uid", str(ALICE.uid), "--gid", str(ALICE.gid), "--port", port),
        "webdav": ("nextcloud", "check", "--user", "alice", "--url", f"http://127.0.0.1:{port}"),
    }[protocol]
    status, found = checks(*kind, "--name", "data", "--writable", "notes", "--json", place.root)
    assert status == 0, found
    assert found["connect"]
    assert found["list"]
    assert found["write and read"]
    assert found["read a sealed file"]
    assert found["refuses to make a file beside it"]
    assert found["refuses to rename the sealed directory"]
    assert found["is as it was"]
    assert found["lock it to read"] is (None if protocol == "webdav" else True)
    assert list((place.root / "notes").iterdir()) == []
    text = export(*kind, "--name", "data", "--writable", "notes", place.root).stdout
    assert text.splitlines()[0].split()[:2] == ["yes", "connect"]


def test_what_is_wrong_is_found(
    place: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODAMAFS_PASSWORD", PASSWORD)
    check = ("samba", "check", "--user", "alice", "--name", "data", "--json", place.root)
    status, found = checks(*check, "--port", "9")
    assert (status, found) == (1, {"connect": False})
    # A copy that is not sealed, behind the same name: as when the wrong directory is exported.
    copy = place.directory / "copy"
    copy.mkdir()
    subprocess.run(["cp", "-r", place.root / "area", place.root / "notes", copy], check=True)
    subprocess.run(["chmod", "-R", "a+rwX", copy], check=True)
    wrong = place.share.__class__(name="data", path=copy, mountpoint=Path("/"))
    server = Samba(tmp_path / "server", [wrong], {"alice": PASSWORD})
    server.environment = place.server("smb").environment
    with server:
        status, found = checks(*check, "--writable", "notes", "--port", str(server.port))
    assert status == 1
    assert found["write and read"] is True
    assert found["refuses to write into it"] is False
    assert found["refuses to make a file beside it"] is False


def test_a_server_that_refuses_the_goodbye_is_left_all_the_same(
    place: Exported, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a word, on standard error neither."""
    above = place.directory / "closed"
    (above / "data").mkdir(parents=True)
    above.chmod(0o700)
    inside = place.share.__class__(name="data", path=above / "data", mountpoint=Path("/"))
    server = Samba(place.directory / "server", [inside], {"alice": PASSWORD})
    server.environment = place.server("smb").environment
    with server:
        client = SmbClient("127.0.0.1", server.port, "data", "alice", PASSWORD)
        with pytest.raises(PermissionError):
            client.listing()
        client.close()
    assert caplog.records == []


# ---- bad input -----------------------------------------------------------------------------------


def test_only_what_lies_in_a_running_mount_is_exported(
    place: Exported, workshop: Workshop, tmp_path: Path, new_name: Callable[[], str]
) -> None:
    assert "is in no running mount" in refused("samba", "show", tmp_path)
    on_store = refused("nfs", "show", place.store / "notes")
    assert f"export {place.root}/notes" in on_store
    assert "is not a directory" in refused("nfs", "show", place.root / RAW / "scan.raw")
    assert "No such file" in refused("nfs", "show", place.root / "nowhere")
    store = workshop.image("ext4").root / f"gone-{new_name()}"
    store.mkdir()
    with Mount(store, workshop.mountpoint(store.name)) as mount:
        assert export("samba", "show", mount.root).returncode == 0
    assert "is in no running mount" in refused("samba", "show", mount.root)


def test_a_slow_mount_is_warned_of(workshop: Workshop, new_name: Callable[[], str]) -> None:
    store = workshop.image("ext4").root / f"slow-{new_name()}"
    store.mkdir()
    with Mount(store, workshop.mountpoint(store.name), "--no-passthrough") as mount:
        done = export("samba", "show", mount.root)
    assert done.returncode == 0
    assert "without passthrough" in done.stderr


def test_a_path_that_no_configuration_can_hold_is_refused(place: Exported) -> None:
    for name in ('quo"te', "per%cent", "semi;colon", "back\\slash"):
        (place.root / "notes" / name).mkdir()
        try:
            line = refused("samba", "show", "--name", "data", place.root / "notes" / name)
            assert "can't be written into a server's configuration" in line
        finally:
            (place.root / "notes" / name).rmdir()


# ---- demo ----------------------------------------------------------------------------------------


@pytest.fixture
def somewhere(workshop: Workshop, new_name: Callable[[], str]) -> Iterator[Path]:
    """A directory in which nothing may be left."""
    directory = workshop.mountpoint(f"export-demo-{new_name()}")
    directory.mkdir()
    yield directory
    assert mounts_below(directory) == []
    assert list(directory.iterdir()) == []


def test_the_demo_starts_all_three_and_leaves_nothing(somewhere: Path) -> None:
    done = installed("export", "demo", "--once", "--json", *NO_ANY_PORT, "--directory", somewhere)
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert [one["kind"] for one in report["servers"]] == ["Samba", "NFS", "WebDAV"]
    assert report["left_out"] == []
    for one in report["servers"]:
        assert all(row["ok"] is not False for row in one["checks"]), one
        assert any(row["question"] == "refuses to make a file beside it" for row in one["checks"])
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", one["port"]))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_demo_waits_and_ends_tidily(somewhere: Path, number: int) -> None:
    with subprocess.Popen(
        [*command(), "export", "demo", *NO_ANY_PORT, "--directory", str(somewhere)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    ) as demo:
        assert demo.stdout is not None
        for line in demo.stdout:
            if line.startswith("Ctrl-C stops"):
                break
        demo.send_signal(number)
        _, complaints = demo.communicate(timeout=60)
    assert complaints == ""
    assert demo.returncode == 0


def test_a_port_in_use_ends_the_demo_before_anything_is_shown(somewhere: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = installed(
            "export", "demo", "--once", *NO_ANY_PORT, "--nfs-port", port, "--directory", somewhere
        )
    assert (done.returncode, done.stdout) == (3, "")
    assert f"port {port} of 127.0.0.1 is in use" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_without_servers_the_demo_says_what_to_install(somewhere: Path, tmp_path: Path) -> None:
    no_program = tmp_path / "empty"
    no_program.touch(0o644)
    hide = (
        "mount -t tmpfs tmpfs /usr/sbin && "
        f'mount --bind {no_program} /usr/bin/ganesha.nfsd; exec "$@"'
    )
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "slave", "sh", "-c", hide, "sh",
         *command(), "export", "demo", "--once", *NO_ANY_PORT, "--directory", str(somewhere)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "left out: Samba: smbd is not installed: 'apt install samba" in done.stdout
    assert "left out: NFS: ganesha.nfsd is not installed: 'apt install nfs-ganesha" in done.stdout
    assert "WebDAV, port" in done.stdout
