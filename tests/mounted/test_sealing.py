"""Sealing as people meet it: who may, who is in the way, what is refused, what is shown."""

from __future__ import annotations

import errno
import grp
import json
import mmap
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from modamafs.control import client
from modamafs.errors import ModamaError
from tests.support.images import Image
from tests.support.mounts import Mount, command, modamafs, wait_until
from tests.support.syscalls import FS_IMMUTABLE_FL, get_flags, set_flags
from tests.support.targets import Workshop
from tests.support.trees import differences, remove, snapshot
from tests.support.users import ALICE, BOB, STRANGER, User, as_user

SESSION = Path("area/project/session")
RAW = SESSION / "raw"
STEWARDS = grp.getgrnam("games")
STEWARD = User(2003, 2003, (STEWARDS.gr_gid,))
NO_CACHE = ("-o", "attribute_timeout_s=0,entry_timeout_s=0")


@pytest.fixture
def store(workshop: Workshop, new_name: Callable[[], str]) -> Iterator[Path]:
    """A store with a session of Alice's; the group games are its stewards."""
    directory = workshop.image("ext4").root / f"sealing-{new_name()}"
    (directory / RAW / "frames").mkdir(parents=True)
    (directory / ".modama").mkdir()
    config = f'[stewards]\ngroup = "{STEWARDS.gr_name}"\n'
    (directory / ".modama/config.toml").write_text(config)
    (directory / RAW / "scan.h5").write_bytes(b"measured" * 1000)
    (directory / RAW / "frames/1.mrc").write_bytes(b"frame")
    os.mkfifo(directory / RAW / "fifo")
    (directory / RAW / "latest").symlink_to("frames/1.mrc")
    for path in [directory / SESSION, *(directory / SESSION).rglob("*")]:
        os.chown(path, ALICE.uid, ALICE.gid, follow_symlinks=False)
    yield directory
    remove(directory)


@pytest.fixture
def mount(store: Path, workshop: Workshop) -> Iterator[Mount]:
    """That store, mounted."""
    with Mount(store, workshop.mountpoint(store.name), *NO_CACHE) as mount:
        yield mount


def run(*arguments: str | Path) -> dict[str, Any]:
    """The result of a command that succeeds."""
    done = modamafs(arguments[0], "--json", *arguments[1:])
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def refusal(*arguments: str | Path, user: User | None = None) -> str:
    """The one line of a command that is refused."""
    done = as_user(user, modamafs, *arguments) if user else modamafs(*arguments)
    assert done.returncode >= 2, done.stdout
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def state(path: Path) -> str | None:
    """What the store says of a directory."""
    record = path.parent / ".modama/seals" / f"{path.name}.json"
    return json.loads(record.read_text())["state"] if record.exists() else None


# ---- who may -------------------------------------------------------------------------------------


def test_the_owner_a_steward_and_root_may_seal_and_only_stewards_unseal(mount: Mount) -> None:
    raw = mount.root / RAW
    assert "only the session's owner" in refusal("seal", raw, user=BOB)
    assert "only the session's owner" in refusal("seal", "--worm", "60", raw, user=BOB)
    for user in (ALICE, STEWARD, None):
        done = as_user(user, modamafs, "seal", raw) if user else modamafs("seal", raw)
        assert done.returncode == 0, done.stderr
        assert state(mount.store / RAW) == "sealed"
        assert "only the session's owner" in refusal("verify", raw, user=BOB)
        assert as_user(ALICE, modamafs, "verify", raw).returncode == 0
        for stranger in (ALICE, BOB):
            assert "only a steward" in refusal("unseal", raw, "--reason", "x", user=stranger)
            assert "only a steward" in refusal("seal", "--repair", raw, user=stranger)
        assert as_user(STEWARD, modamafs, "unseal", raw, "--reason", "x").returncode == 0
        assert state(mount.store / RAW) is None
    history = (mount.store / SESSION / ".modama/history.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in history]
    assert [event["event"] for event in events] == ["sealed", "verified", "unsealed"] * 3
    sealers = [event["sealed_by"] for event in events if event["event"] == "sealed"]
    assert sealers == [str(ALICE.uid), str(STEWARD.uid), "root"]


def test_nobody_is_told_what_lies_in_a_directory_that_is_closed_to_them(mount: Mount) -> None:
    """Neither by an answer, nor by its being another one."""
    closed = mount.store / "area" / "project" / "closed"
    (closed / "there" / "raw").mkdir(parents=True)
    (closed / "file").touch()
    closed.chmod(0o700)

    def told(verb: str, name: str) -> tuple[str, int | None]:
        order = {"path": f"area/project/{name}"}
        try:
            return repr(client.call(mount.runtime, verb, order, timeout_s=60)), None
        except ModamaError as error:
            return error.message, error.errno

    for verb in ("seal", "verify", "resume", "worm", "cancel", "progress"):
        answers = {
            as_user(STRANGER, told, verb, name)
            for name in (
                "closed/there", "closed/there/raw", "closed/file", "closed/missing",
                "closed/there/missing", "/closed//there/", "closed/there/../there",
            )
        }  # fmt: skip
        assert len(answers) == 1, (verb, answers)
    message, _ = as_user(STRANGER, told, "seal", "missing")
    assert "No such file" in message


def test_a_stewards_group_that_does_not_exist_is_said(mount: Mount) -> None:
    (mount.store / ".modama/config.toml").write_text('[stewards]\ngroup = "nobody-at-all"\n')
    assert "nobody-at-all" in refusal("seal", mount.root / RAW)
    assert state(mount.store / RAW) is None


def test_without_a_mount_only_root_may(store: Path) -> None:
    assert "only root" in refusal("seal", store / RAW, user=ALICE)
    assert modamafs("seal", store / RAW).returncode == 0
    assert modamafs("verify", store / RAW).returncode == 0
    assert modamafs("unseal", store / RAW, "--reason", "x").returncode == 0


def test_a_directory_has_one_name_whatever_a_client_calls_it(mount: Mount) -> None:
    for name in (f"//{RAW}", f"/{RAW}/", f"{SESSION}/../session/raw"):
        result = client.call(mount.runtime, "seal", {"path": name})
        assert result["path"] == str(RAW)
        client.call(mount.runtime, "unseal", {"path": name, "reason": "x"})
    with pytest.raises(ModamaError, match="can't be sealed"):
        client.call(mount.runtime, "seal", {"path": "../.."})


# ---- writers -------------------------------------------------------------------------------------

HOLD = (
    "import sys,os; f=open(sys.argv[1],'r+b',buffering=0); print(flush=True); {}; sys.stdin.read()"
)


class Holder:
    """A process that has a file open for writing, until told otherwise."""

    def __init__(self, path: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self.process.stdout
        self.process.stdout.readline()

    def __enter__(self) -> Holder:
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.communicate()


@pytest.mark.parametrize("options", [(), ("--no-passthrough",)])
def test_a_writer_is_named_and_can_be_waited_for(
    store: Path, workshop: Workshop, options: tuple[str, ...]
) -> None:
    with Mount(store, workshop.mountpoint(store.name), *options) as mount:
        raw = mount.root / RAW
        with Holder(raw / "scan.h5") as holder:
            message = refusal("seal", raw)
            assert "scan.h5" in message
            assert str(holder.process.pid) in message
            assert "root" in message
            assert "python" in message
            assert state(mount.store / RAW) is None
            assert "scan.h5" in refusal("seal", "--wait", "0.3", raw)
            assert state(mount.store / RAW) is None
            (raw / "still open").touch()
            waiting = subprocess.Popen([*command(), "seal", "--wait", str(raw)])
            wait_until(lambda: state(mount.store / RAW) == "sealing", "the gate is shut")
            with pytest.raises(OSError, match="Read-only"):
                (raw / "new").touch()
            with pytest.raises(OSError, match="Read-only"):
                (raw / "frames/1.mrc").write_text("x")
            with pytest.raises(OSError, match="Read-only"):
                os.truncate(raw / "scan.h5", 0)
            assert "being sealed" in refusal("unseal", raw, "--reason", "x")
        assert waiting.wait(60) == 0
        assert state(mount.store / RAW) == "sealed"


@pytest.mark.parametrize("options", [(), ("--no-passthrough",)])
def test_a_writer_finishes_while_the_seal_waits_and_loses_nothing(
    store: Path, workshop: Workshop, options: tuple[str, ...]
) -> None:
    with Mount(store, workshop.mountpoint(store.name), *options) as mount:
        raw = mount.root / RAW
        with open(raw / "scan.h5", "r+b", buffering=0) as file:
            file.write(b"before")
            waiting = subprocess.Popen([*command(), "seal", "--wait", str(raw)])
            wait_until(lambda: state(mount.store / RAW) == "sealing", "the gate is shut")
            file.write(b" and after")
            with mount.expected_in_log("worker-died"):
                mount.kill_worker()
            file.write(b", and after a restart")
            file.truncate(40)
            os.posix_fallocate(file.fileno(), 0, 50)
            with mmap.mmap(file.fileno(), 0) as mapping:
                mapping[48:50] = b"ok"
            os.fsync(file.fileno())
        assert waiting.wait(60) == 0
        assert state(mount.store / RAW) == "sealed"
        content = (mount.store / RAW / "scan.h5").read_bytes()
        assert content.startswith(b"before and after, and after a restart")
        assert content[48:] == b"ok"
        assert modamafs("verify", raw).returncode == 0


def test_waiting_can_be_given_up(mount: Mount) -> None:
    raw = mount.root / RAW
    before = snapshot(mount.store / RAW)
    assert modamafs("seal", "--cancel", raw).returncode == 1
    with Holder(raw / "scan.h5"):
        for how in ("Ctrl-C", "--cancel"):
            waiting = subprocess.Popen(
                [*command(), "seal", "--wait", str(raw)],
                stderr=subprocess.PIPE,
                text=True,
                # Where the tests run in the background, Ctrl-C is ignored, and that is inherited.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
            wait_until(lambda: state(mount.store / RAW) == "sealing", "the gate is shut")
            if how == "Ctrl-C":
                waiting.send_signal(signal.SIGINT)
            else:
                assert "only the session's owner" in refusal("seal", "--cancel", raw, user=BOB)
                assert modamafs("seal", "--cancel", raw).returncode == 0
            _, message = waiting.communicate(timeout=60)
            assert waiting.returncode == 3
            assert "given up" in message
            assert state(mount.store / RAW) is None
    assert differences(before, snapshot(mount.store / RAW), ["ctime_ns"]) == []
    (raw / "scan.h5").write_text("open")


# ---- what is refused -----------------------------------------------------------------------------


def test_what_can_not_be_sealed(mount: Mount) -> None:
    (mount.root / "area/file").touch()
    (mount.root / "link").symlink_to(RAW)
    for path, word in {
        "": "root",
        "area": "area",
        "area/file": "directory",
        f"{RAW}/scan.h5": "directory",
        f"{RAW}/fifo": "directory",
        "nothing": "No such file",
        "link": "symbolic link",
        f"{RAW}/latest": "symbolic link",
        f"{SESSION}/.modama": "modamafs's own",
        f"{SESSION}/.modama/files/raw": "modamafs's own",
        f"landing/{RAW}": "No such file",
        "area/../..": "",
        "/proc": "no mounted store",
    }.items():
        assert word in refusal("seal", mount.root / path), path
    assert "No such file" in refusal("seal", mount.store / SESSION / ".modama/seals")
    assert not (mount.store / ".modama/sealed").exists()


def test_sealed_already_says_since_when(mount: Mount) -> None:
    first = run("seal", mount.root / RAW)
    again = modamafs("seal", mount.root / RAW)
    assert again.returncode == 0
    assert f"sealed since {first['sealed_at']}" in again.stdout
    assert run("seal", mount.root / RAW) == first
    assert "raw is sealed" in refusal("seal", mount.root / RAW / "frames")


def test_the_keys_that_programs_rely_on(mount: Mount) -> None:
    sealed = run("seal", mount.root / RAW)
    assert {
        "path", "state", "content_hash", "attribute_hash", "file_count", "size_bytes", "sealed_at",
        "sealed_by", "immutable_flag",
    } <= sealed.keys()  # fmt: skip
    assert sealed["file_count"] == 2
    assert sealed["size_bytes"] == 8005
    assert sealed["immutable_flag"] is True
    verified = run("verify", mount.root / RAW)
    assert {"ok", "missing", "added", "changed", "damaged"} <= verified.keys()
    assert verified["ok"] is True
    info = run("info", mount.root / RAW / "frames/1.mrc")
    assert info["sealed"] is True
    assert info["seal"]["content_hash"] == sealed["content_hash"]
    assert info["seal"]["verified"]["ok"] is True
    assert run("info", mount.root / SESSION)["sealed"] is False


def test_a_hard_link_outside_is_named(mount: Mount) -> None:
    (mount.root / SESSION / "other name").hardlink_to(mount.root / RAW / "scan.h5")
    message = refusal("seal", mount.root / RAW)
    assert "scan.h5 has another name outside" in message
    assert f"{SESSION}/other name" in message
    assert state(mount.store / RAW) is None
    (mount.root / SESSION / "other name").unlink()
    assert modamafs("seal", mount.root / RAW).returncode == 0


def test_a_file_that_can_not_be_read(workshop: Workshop, tmp_path: Path) -> None:
    """A disk with a bad inode."""
    with Image("ext4", tmp_path) as image:
        raw = image.root / RAW
        raw.mkdir(parents=True)
        for name in ("good", "broken"):
            (raw / name).write_bytes(os.urandom(100_000))
        assert modamafs("init", image.root).returncode == 0
        subprocess.run(["umount", image.root], check=True)
        break_it = f"set_inode_field /{RAW}/broken block[0] 0"
        disk = tmp_path / "ext4.image"
        subprocess.run(["debugfs", "-w", "-R", break_it, disk], check=True, capture_output=True)
        subprocess.run(["mount", "-o", "loop", disk, image.root], check=True)
        message = refusal("seal", raw)
        assert "broken" in message
        assert state(raw) is None
        assert not get_flags(raw) & FS_IMMUTABLE_FL
        assert not get_flags(raw / "good") & FS_IMMUTABLE_FL
        with Mount(image.root, workshop.mountpoint("bad-inode")) as mount:
            assert "broken" in refusal("seal", mount.root / RAW)
            (mount.root / RAW / "good").write_text("still open")


def fill(path: Path) -> None:
    """Take all of the space that is left."""
    size = piece = 256 << 20
    with open(path, "wb") as file:
        while piece >= 4096:
            try:
                os.posix_fallocate(file.fileno(), size - piece, piece)
                size += piece
            except OSError:
                size -= piece // 2
                piece //= 2


def test_a_full_disk(workshop: Workshop, tmp_path: Path) -> None:
    with Image("ext4", tmp_path) as image:
        raw = image.root / RAW
        raw.mkdir(parents=True)
        for number in range(300):
            (raw / f"frame-{number:04}").write_bytes(b"frame")
        with Mount(image.root, workshop.mountpoint("full-disk")) as mount:
            fill(image.root / "area/filler")
            assert os.statvfs(image.root).f_bavail == 0
            before = snapshot(raw)
            message = refusal("seal", mount.root / RAW)
            assert "No space left" in message
            assert state(raw) is None
            assert differences(before, snapshot(raw), ["ctime_ns"]) == []
            assert not get_flags(raw) & FS_IMMUTABLE_FL
            (mount.root / RAW / "frame-0001").unlink()
            (image.root / "area/filler").unlink()
            assert modamafs("seal", mount.root / RAW).returncode == 0
            assert modamafs("verify", mount.root / RAW).returncode == 0


def test_read_only_mounts_and_stores(store: Path, workshop: Workshop) -> None:
    first, second = workshop.mountpoint(store.name), workshop.mountpoint(f"{store.name}-ro")
    with Mount(store, first, *NO_CACHE) as mount, Mount(store, second, "--read-only") as reader:
        done = modamafs("seal", mount.root / RAW)
        assert done.returncode == 0, done.stderr
        assert modamafs("verify", reader.root / RAW).returncode == 0
        assert modamafs("unseal", mount.root / RAW, "--reason", "x").returncode == 0
    with Mount(store, second, "--read-only") as reader:
        assert "read-only" in refusal("seal", reader.root / RAW)
        assert state(store / RAW) is None


def test_a_store_that_is_read_only(workshop: Workshop, tmp_path: Path) -> None:
    with Image("ext4", tmp_path) as image:
        (image.root / RAW).mkdir(parents=True)
        assert modamafs("init", image.root).returncode == 0
        subprocess.run(["mount", "-o", "remount,ro", image.root], check=True)
        assert "Read-only file system" in refusal("seal", image.root / RAW)
        with Mount(image.root, workshop.mountpoint("ro-store"), "--read-only") as mount:
            assert "read-only" in refusal("seal", mount.root / RAW)


# ---- what is shown -------------------------------------------------------------------------------


def test_write_bits_and_acls_say_beforehand_what_can_not_be_done(mount: Mount) -> None:
    raw = mount.root / RAW
    (raw / "scan.h5").chmod(0o2664)
    subprocess.run(["setfacl", "-m", f"u:{BOB.uid}:rw", raw / "frames/1.mrc"], check=True)
    os.setxattr(raw / "scan.h5", "security.NTACL", b"windows")
    stored = snapshot(mount.store / RAW)
    assert as_user(ALICE, os.access, raw / "scan.h5", os.W_OK)
    assert modamafs("seal", raw).returncode == 0
    for path in (raw, raw / "scan.h5", raw / "frames", raw / "frames/1.mrc"):
        assert not path.stat().st_mode & 0o222, path
        for user in (ALICE, BOB):
            assert not as_user(user, os.access, path, os.W_OK), path
    assert stat.S_IMODE((raw / "scan.h5").stat().st_mode) == 0o2444
    listed = {entry.name: entry.stat().st_mode for entry in os.scandir(raw)}
    assert listed["scan.h5"] & 0o777 == 0o444
    acl = subprocess.check_output(["getfacl", "-nc", raw / "frames/1.mrc"], text=True)
    assert f"user:{BOB.uid}:r--" in acl
    assert "w" not in acl.replace("write", "")
    assert "security.NTACL" not in os.listxattr(raw / "scan.h5")
    with pytest.raises(OSError, match="No data"):
        os.getxattr(raw / "scan.h5", "security.NTACL")
    assert modamafs("unseal", raw, "--reason", "x").returncode == 0
    assert os.getxattr(raw / "scan.h5", "security.NTACL") == b"windows"
    assert as_user(BOB, os.access, raw / "frames/1.mrc", os.W_OK)
    assert differences(stored, snapshot(mount.store / RAW), ["ctime_ns"]) == []
    assert differences(stored, snapshot(raw), ["ctime_ns"]) == []


def test_a_sealed_directory_is_newer_so_that_clients_notice(mount: Mount) -> None:
    raw = mount.root / RAW
    os.utime(raw / "frames", (1, 1))
    os.utime(raw / "scan.h5", (1, 1))
    assert modamafs("seal", raw).returncode == 0
    frozen = (mount.store / RAW / "frames").stat()
    assert frozen.st_mtime_ns == 1_000_000_000
    assert (raw / "frames").stat().st_mtime_ns == frozen.st_ctime_ns
    assert (raw / "scan.h5").stat().st_mtime_ns == 1_000_000_000


def test_without_flags_the_record_alone_protects_and_shows_it(mount: Mount) -> None:
    """As after a copy, or a restore."""
    raw = mount.root / RAW
    first = run("seal", raw)
    subprocess.run(["chattr", "-R", "-i", mount.store / RAW], check=False, capture_output=True)
    with mount.expected_in_log("worker-died"):
        mount.kill_worker()
    for path in (raw, raw / "scan.h5", raw / "frames", raw / "frames/1.mrc"):
        assert not path.stat().st_mode & 0o222, path
        for change in (lambda path=path: path.chmod(0o777), lambda path=path: os.utime(path)):
            with pytest.raises(OSError, match="Read-only") as refused:
                change()
            assert refused.value.errno == errno.EROFS
    assert not {entry.stat().st_mode & 0o222 for entry in os.scandir(raw) if entry.is_file()} - {0}
    doctor = modamafs("doctor", mount.store)
    assert "1 without immutable flags" in doctor.stdout
    assert str(RAW) in doctor.stdout
    repaired = run("seal", "--repair", raw)
    assert repaired["repaired"] == 4
    assert repaired["content_hash"] == first["content_hash"]
    assert get_flags(mount.store / RAW / "frames/1.mrc") & FS_IMMUTABLE_FL
    assert run("seal", "--repair", raw)["repaired"] == 0
    assert "without immutable flags" not in modamafs("doctor", mount.store).stdout
    assert modamafs("verify", raw).returncode == 0


# ---- what belongs to it --------------------------------------------------------------------------


def test_the_records_of_a_removed_session_are_kept(mount: Mount) -> None:
    session = mount.root / SESSION
    assert modamafs("seal", session / "raw").returncode == 0
    done = subprocess.run(["rm", "-rf", session], check=False, capture_output=True)
    assert done.returncode
    with pytest.raises(OSError, match="Read-only"):
        session.rmdir()
    assert modamafs("unseal", session / "raw", "--reason", "wrong sample").returncode == 0
    subprocess.run(["rm", "-r", session], check=True)
    assert not (mount.store / SESSION).exists()
    [kept] = (mount.store / ".modama/history").iterdir()
    assert os.readlink(kept / "path") == str(SESSION)
    events = (kept / "records/history.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in events] == ["sealed", "unsealed"]
    assert stat.S_IMODE((mount.store / ".modama/history").stat().st_mode) == 0o700


def test_a_directory_with_records_can_be_replaced_by_a_rename(mount: Mount) -> None:
    session = mount.root / SESSION
    assert modamafs("seal", session / "raw").returncode == 0
    assert modamafs("unseal", session / "raw", "--reason", "x").returncode == 0
    subprocess.run(["rm", "-r", session / "raw"], check=True)
    other = session.with_name("other")
    other.mkdir()
    (other / "file").touch()
    other.rename(session)
    assert [path.name for path in session.iterdir()] == ["file"]
    assert len(list((mount.store / ".modama/history").iterdir())) == 1


def test_a_whole_session_with_something_sealed_in_it(mount: Mount) -> None:
    session = mount.root / SESSION
    (session / "notes.txt").write_text("draft")
    assert modamafs("seal", session / "raw").returncode == 0
    assert modamafs("seal", session).returncode == 0
    with pytest.raises(OSError, match="Read-only"):
        (session / "notes.txt").write_text("more")
    assert "unseal that first" in refusal("unseal", session / "raw", "--reason", "x")
    assert modamafs("verify", session).returncode == 0
    assert modamafs("unseal", session, "--reason", "x").returncode == 0
    (session / "notes.txt").write_text("more")
    assert get_flags(mount.store / RAW / "scan.h5") & FS_IMMUTABLE_FL
    with pytest.raises(OSError, match="Read-only"):
        (session / "raw/scan.h5").write_text("more")
    assert modamafs("verify", session / "raw").returncode == 0


def test_what_was_immutable_before_stays_so(mount: Mount) -> None:
    set_flags(mount.store / RAW / "scan.h5", FS_IMMUTABLE_FL | get_flags(mount.store / RAW))
    assert modamafs("seal", mount.root / RAW).returncode == 0
    assert modamafs("unseal", mount.root / RAW, "--reason", "x").returncode == 0
    assert get_flags(mount.store / RAW / "scan.h5") & FS_IMMUTABLE_FL
    assert not get_flags(mount.store / RAW / "frames/1.mrc") & FS_IMMUTABLE_FL


# ---- how long ------------------------------------------------------------------------------------


def test_until_and_hold(mount: Mount) -> None:
    raw = mount.root / RAW
    assert "passed already" in refusal("seal", "--until", "2020-01-01", raw)
    assert "write a date" in refusal("seal", "--until", "soon", raw)
    assert state(mount.store / RAW) is None
    assert run("seal", "--until", "2098-01-01", "--hold", raw)["until"] == "2098-01-01"
    assert "only be extended" in refusal("seal", "--until", "2090-01-01", raw)
    assert run("seal", "--until", "2099-01-01", raw)["until"] == "2099-01-01"
    assert "on hold" in refusal("unseal", raw, "--reason", "x")
    assert "only a steward" in refusal("seal", "--no-hold", "--reason", "x", raw, user=ALICE)
    assert "needs a reason" in refusal("seal", "--no-hold", raw)
    assert run("seal", "--no-hold", "--reason", "case closed", raw)["hold"] is False
    assert "sealed until 2099-01-01" in refusal("unseal", raw, "--reason", "x")
    assert state(mount.store / RAW) == "sealed"
    lines = (mount.store / SESSION / ".modama/history.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    assert [event["event"] for event in events] == ["sealed", "retention", "retention"]
    assert events[-1]["reason"] == "case closed"


# ---- writing once --------------------------------------------------------------------------------


def test_what_is_recorded_becomes_immutable_file_by_file(mount: Mount) -> None:
    raw = mount.root / RAW
    (raw / "empty").touch()
    with open(raw / "growing", "wb", buffering=0) as growing:
        growing.write(b"1")
        assert run("seal", "--worm", "0.2", raw)["state"] == "worm"
        wait_until(
            lambda: bool(get_flags(mount.store / RAW / "scan.h5") & FS_IMMUTABLE_FL), "the grace"
        )
        for change in (
            lambda: (raw / "scan.h5").write_text("x"),
            lambda: (raw / "scan.h5").unlink(),
            lambda: (raw / "scan.h5").rename(raw / "other"),
            lambda: (raw / "frames").rename(raw / "other"),
            lambda: raw.rename(raw.with_name("other")),
        ):
            with pytest.raises(OSError, match=r"Read-only|not permitted"):
                change()
        growing.write(b"2")
        assert not get_flags(mount.store / RAW / "growing") & FS_IMMUTABLE_FL
    (raw / "new").write_text("still possible")
    for name in ("growing", "new"):
        wait_until(
            lambda name=name: bool(get_flags(mount.store / RAW / name) & FS_IMMUTABLE_FL), name
        )
    assert (raw / "growing").read_bytes() == b"12"
    (raw / "empty").write_text("not empty any more")
    assert "only a steward" in refusal("seal", "--no-worm", raw, user=ALICE)
    assert modamafs("seal", raw).returncode == 0
    assert not (mount.store / SESSION / ".modama/seals/raw.worm").exists()
    assert modamafs("verify", raw).returncode == 0
