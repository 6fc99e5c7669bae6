"""What is sealed stays as it is, whoever asks, after a restart and in a second mount too."""

from __future__ import annotations

import errno
import fcntl
import itertools
import json
import mmap
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from blake3 import blake3

from tests.support.mounts import Mount, modamafs
from tests.support.targets import Workshop
from tests.support.trees import remove, snapshot
from tests.support.users import ALICE, as_user

SESSION = Path("area/project/session")
RAW = SESSION / "raw"


@pytest.fixture
def sealed(mount: Mount) -> Mount:
    """A session whose raw data are sealed."""
    seal_a_session(mount)
    return mount


@pytest.fixture(
    scope="module",
    params=itertools.product(("ext4", "xfs", "btrfs"), ((), ("--no-passthrough",))),
    ids=lambda kind: "-".join((kind[0], *kind[1])),
)
def for_all(
    request: pytest.FixtureRequest, workshop: Workshop, new_name: Callable[[], str]
) -> Iterator[Mount]:
    """The same for all tests that leave it sealed, and the mount as it is."""
    fstype, options = request.param
    store = workshop.image(fstype).root / f"sealed-{new_name()}"
    store.mkdir()
    with Mount(store, workshop.mountpoint(store.name), *options) as mount:
        seal_a_session(mount)
        yield mount
    remove(store)


@pytest.fixture
def stays_sealed(for_all: Mount) -> Iterator[Mount]:
    """``for_all``; it's this test's fault if something is amiss in its log."""
    for_all.fail_on_unexpected_log_lines()
    yield for_all
    for_all.fail_on_unexpected_log_lines()


def seal_a_session(mount: Mount) -> None:
    """Make one with raw data, and seal those."""
    raw = mount.root / RAW
    (raw / "frames").mkdir(parents=True)
    (raw / "scan.h5").write_bytes(b"measured" * 1000)
    (raw / "frames" / "1.mrc").write_bytes(b"frame")
    (raw / "latest").symlink_to("frames/1.mrc")
    (mount.root / SESSION / "notes.txt").write_text("draft")
    os.setxattr(raw / "scan.h5", "user.instrument", b"Titan")
    done = modamafs("seal", "--json", raw)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["state"] == "sealed"


def touch_with_flags(path: Path, flags: int) -> None:
    os.close(os.open(path, flags))


DOORS: dict[str, Callable[[Path], object]] = {
    "write": lambda raw: (raw / "scan.h5").write_bytes(b"x"),
    "append": lambda raw: touch_with_flags(raw / "scan.h5", os.O_WRONLY | os.O_APPEND),
    "open for reading and writing": lambda raw: touch_with_flags(raw / "scan.h5", os.O_RDWR),
    "O_TRUNC": lambda raw: touch_with_flags(raw / "scan.h5", os.O_RDONLY | os.O_TRUNC),
    "O_TMPFILE": lambda raw: touch_with_flags(raw, os.O_TMPFILE | os.O_RDWR),
    "truncate": lambda raw: os.truncate(raw / "scan.h5", 3),
    "create": lambda raw: (raw / "new").touch(),
    "create below": lambda raw: (raw / "frames" / "new").touch(),
    "mkdir": lambda raw: (raw / "new").mkdir(),
    "mkfifo": lambda raw: os.mkfifo(raw / "new"),
    "symlink": lambda raw: (raw / "new").symlink_to("x"),
    "link in": lambda raw: (raw / "new").hardlink_to(raw.parent / "notes.txt"),
    "link out": lambda raw: (raw.parent / "new").hardlink_to(raw / "scan.h5"),
    "unlink": lambda raw: (raw / "scan.h5").unlink(),
    "unlink a symbolic link": lambda raw: (raw / "latest").unlink(),
    "rmdir": lambda raw: (raw / "frames").rmdir(),
    "rename within": lambda raw: (raw / "scan.h5").rename(raw / "other.h5"),
    "rename out": lambda raw: (raw / "scan.h5").rename(raw.parent / "scan.h5"),
    "rename in": lambda raw: (raw.parent / "notes.txt").rename(raw / "notes.txt"),
    "rename over": lambda raw: (raw.parent / "notes.txt").replace(raw / "scan.h5"),
    "rename the sealed directory": lambda raw: raw.rename(raw.with_name("cooked")),
    "rename the session": lambda raw: raw.parent.rename(raw.parent.with_name("other")),
    "rename the area": lambda raw: raw.parents[2].rename(raw.parents[2].with_name("other")),
    "chmod": lambda raw: (raw / "scan.h5").chmod(0o777),
    "chmod the directory": lambda raw: raw.chmod(0o777),
    "chown": lambda raw: os.chown(raw / "scan.h5", 7, 7),
    "chown a symbolic link": lambda raw: os.lchown(raw / "latest", 7, 7),
    "utime": lambda raw: os.utime(raw / "scan.h5", (1, 1)),
    "setxattr": lambda raw: os.setxattr(raw / "scan.h5", "user.instrument", b"x"),
    "removexattr": lambda raw: os.removexattr(raw / "scan.h5", "user.instrument"),
    "chattr": lambda raw: subprocess.run(
        ["chattr", "+d", raw / "scan.h5"], check=True, stderr=subprocess.DEVNULL
    ),
}


def errno_at(door: str, raw: Path) -> int | None:
    """What a caller sees; None for success."""
    try:
        DOORS[door](raw)
    except OSError as error:
        return error.errno
    except subprocess.CalledProcessError:
        return errno.EROFS
    return None


def test_every_door_is_shut(stays_sealed: Mount) -> None:
    raw = stays_sealed.root / RAW
    before = snapshot(stays_sealed.store)
    for door in DOORS:
        # EACCES: of what is opened to read as well.
        assert errno_at(door, raw) in (errno.EROFS, errno.EACCES), f"{door}, as root"
        assert snapshot(stays_sealed.store) == before, f"{door}, as root"
    # The kernel may say no before us to anybody else.
    refusals = (errno.EROFS, errno.EACCES, errno.EPERM)
    for door in DOORS:
        assert as_user(ALICE, errno_at, door, raw) in refusals, f"{door}, as a user"
        assert snapshot(stays_sealed.store) == before, f"{door}, as a user"


def test_reading_goes_on(stays_sealed: Mount) -> None:
    path = stays_sealed.root / RAW / "scan.h5"
    assert path.read_bytes() == b"measured" * 1000
    with open(path, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapping:
            assert mapping[:8] == b"measured"
    assert os.getxattr(path, "user.instrument") == b"Titan"
    assert sorted(os.listdir(stays_sealed.root / RAW)) == ["frames", "latest", "scan.h5"]


def test_what_lies_beside_stays_writable(stays_sealed: Mount) -> None:
    (stays_sealed.root / SESSION / "notes.txt").write_text("more")
    (stays_sealed.root / SESSION / "figures").mkdir()
    (stays_sealed.root / SESSION / "figures").rename(stays_sealed.root / SESSION / "plots")


def test_it_holds_after_restarts_and_in_a_second_mount(sealed: Mount, workshop: Workshop) -> None:
    path = RAW / "scan.h5"
    assert modamafs("restart", sealed.root).returncode == 0
    with pytest.raises(OSError, match="Read-only") as refused:
        (sealed.root / path).chmod(0o777)
    assert refused.value.errno == errno.EROFS
    with Mount(sealed.store, workshop.mountpoint(sealed.root.name + "-second")) as second:
        with pytest.raises(OSError, match="Read-only"):
            (second.root / path).write_bytes(b"x")
        # A seal that is set through one mount holds in the other with its very next request.
        (second.root / "area" / "project" / "other").mkdir()
        (second.root / "area" / "project" / "other" / "file").write_text("1")
        assert modamafs("seal", sealed.root / "area" / "project" / "other").returncode == 0
        with pytest.raises(OSError, match="Read-only"):
            (second.root / "area" / "project" / "other" / "file").write_text("2")


def test_the_manifest_proves_the_bytes(stays_sealed: Mount) -> None:
    manifest = (stays_sealed.store / SESSION / ".modama/seals/raw.B3SUMS").read_text()
    expected = "".join(
        f"{blake3((stays_sealed.store / RAW / name).read_bytes()).hexdigest()}  {name}\n"
        for name in ("frames/1.mrc", "scan.h5")
    )
    assert manifest == expected


def test_unsealing_needs_root_and_a_reason_and_is_remembered(sealed: Mount) -> None:
    raw = sealed.root / RAW
    assert modamafs("unseal", raw, "--reason", " ").returncode != 0
    done = as_user(ALICE, modamafs, "unseal", raw, "--reason", "mine")
    assert done.returncode != 0
    assert "root" in done.stderr
    assert modamafs("unseal", raw, "--reason", "the wrong sample").returncode == 0
    (raw / "scan.h5").write_bytes(b"new")
    history = (sealed.store / SESSION / ".modama/history.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in history] == ["sealed", "unsealed"]
    assert json.loads(history[1])["reason"] == "the wrong sample"


def test_a_writer_is_in_the_way(mount: Mount) -> None:
    raw = mount.root / RAW
    raw.mkdir(parents=True)
    with open(raw / "file", "wb") as file:
        file.write(b"measuring")
        done = modamafs("seal", raw)
        assert done.returncode >= 3
        assert "file" in done.stderr
        assert len(done.stderr.splitlines()) == 1
    (raw / "file").write_bytes(b"more")
    assert modamafs("seal", raw).returncode == 0
    again = modamafs("seal", "--json", raw)
    assert again.returncode == 0, "sealed already is no error"


def test_what_can_not_be_sealed_is_refused_in_one_line(stays_sealed: Mount) -> None:
    for path in ("", "area", "area/project/session/raw/scan.h5", "nowhere"):
        done = modamafs("seal", stays_sealed.root / path)
        assert done.returncode >= 2
        assert len(done.stderr.splitlines()) == 1
        assert "Traceback" not in done.stderr
