"""SIGKILL at every step of sealing and unsealing: what is left is a state, and is finished."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from tests.support.mounts import Mount, modamafs, wait_until
from tests.support.syscalls import FS_IMMUTABLE_FL, get_flags
from tests.support.targets import Workshop
from tests.support.trees import remove, snapshot

SESSION = Path("area/project/session")
RAW = SESSION / "raw"
SEALING = (
    "gate", "enlisted", "looking", "syncing", "marking", "freezing", "froze one", "looking again",
    "hashing", "hashed a file", "comparing", "committing", "remembering", "committed",
)  # fmt: skip
UNSEALING = (
    "opening", "remembering", "thawing", "thawed one", "unmarking", "removing records", "opened",
)  # fmt: skip
KILLED = {"the process that seals": "", "the worker": ":parent"}
CASES = [
    ("ext4", "the process that seals"),
    ("xfs", "the process that seals"),
    ("btrfs", "the worker"),
]


@pytest.fixture
def fstype() -> str:
    """Given by the parameters."""
    raise NotImplementedError


def test_these_are_all_the_steps() -> None:
    import modamafs.sealing.seal as module

    source = Path(module.__file__).read_text()
    named = set(SEALING) | set(UNSEALING) | {"waiting for writers"}
    for step in named:
        assert f'"{step}"' in source, step
    called = {
        part.split('"')[1]
        for part in source.replace("progress.step(", "step(").split("step(")[1:]
        if part.startswith('"')
    }
    assert called <= named


@pytest.fixture
def mount(
    request: pytest.FixtureRequest,
    workshop: Workshop,
    new_name: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Iterator[Mount]:
    """A mount whose sealing can be made to end at a step."""
    monkeypatch.setenv("MODAMAFS_SEALING_FAILPOINT", str(tmp_path / "failpoint"))
    store = workshop.image(request.getfixturevalue("fstype")).root / f"killed-{new_name()}"
    raw = store / RAW
    (raw / "frames").mkdir(parents=True)
    (raw / "scan.h5").write_bytes(b"measured" * 1000)
    for number in range(3):
        (raw / "frames" / f"{number}.mrc").write_bytes(b"frame %d" % number)
    (raw / "latest").symlink_to("frames/1.mrc")
    with (
        Mount(store, workshop.mountpoint(store.name)) as mount,
        mount.expected_in_log("sealer-killed", "resume-failed", "worker-died", "worker-ended"),
    ):
        yield mount
    remove(store)


def record(mount: Mount) -> dict[str, Any] | None:
    """What the store says of the seal."""
    path = mount.store / SESSION / ".modama/seals/raw.json"
    if not path.exists():
        return None
    found = json.loads(path.read_text())
    assert isinstance(found, dict)
    return found


def content(mount: Mount) -> dict[bytes, Any]:
    """The tree without what freezing changes."""
    return {
        path: {key: value for key, value in entry.items() if key != "ctime_ns"}
        for path, entry in snapshot(mount.store / RAW).items()
    }


def is_frozen(mount: Mount) -> set[bool]:
    """Whether files and directories have the flag."""
    raw = mount.store / RAW
    paths = [raw, *(path for path in raw.rglob("*") if not path.is_symlink())]
    return {bool(get_flags(path) & FS_IMMUTABLE_FL) for path in paths}


def assert_consistent(mount: Mount, before: dict[bytes, Any]) -> str:
    """Nothing is lost, and the state is one that the design names; returns it."""
    assert content(mount) == before
    found = record(mount)
    if found is None:
        return "open"
    if found["state"] == "sealed":
        raw = mount.store / RAW
        lines = (raw.parent / ".modama/seals/raw.B3SUMS").read_text().splitlines()
        expected = [
            f"{blake3((raw / name).read_bytes()).hexdigest()}  {name}"
            for name in ("frames/0.mrc", "frames/1.mrc", "frames/2.mrc", "scan.h5")
        ]
        assert lines == expected
        assert is_frozen(mount) == {True}
    assert found["state"] in ("sealing", "sealed", "unsealing")
    with pytest.raises(OSError, match="Read-only") as refused:
        os.truncate(mount.root / RAW / "scan.h5", 1)
    assert refused.value.errno == errno.EROFS
    return str(found["state"])


def finish(mount: Mount) -> None:
    """What a steward does when something was interrupted."""
    done = modamafs("seal", "--resume", mount.store)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("fstype", "killed"), CASES)
@pytest.mark.usefixtures("fstype")
def test_sealing(mount: Mount, tmp_path: Path, killed: str) -> None:
    before = content(mount)
    for step in SEALING:
        (tmp_path / "failpoint").write_text(step + KILLED[killed])
        pid = mount.worker_pid()
        modamafs("seal", mount.root / RAW)
        assert not (tmp_path / "failpoint").exists(), f"{step} was not reached"
        if KILLED[killed]:
            wait_until(lambda pid=pid: mount.worker_pid() not in (pid, 0), "another worker")
        assert_consistent(mount, before)
        wait_until(lambda: record(mount) is None or record(mount)["state"] == "sealed", step)
        finish(mount)
        if assert_consistent(mount, before) == "open":  # it had not come to the gate
            assert step in ("gate", "enlisted")
            assert is_frozen(mount) == {False}
            assert modamafs("seal", mount.root / RAW).returncode == 0
            assert assert_consistent(mount, before) == "sealed"
        assert modamafs("verify", mount.root / RAW).returncode == 0
        done = modamafs("unseal", mount.root / RAW, "--reason", "again")
        assert done.returncode == 0, done.stderr
        assert is_frozen(mount) == {False}
        (mount.root / RAW / "scan.h5").chmod(0o644)


@pytest.mark.parametrize(("fstype", "killed"), CASES)
@pytest.mark.usefixtures("fstype")
def test_unsealing(mount: Mount, tmp_path: Path, killed: str) -> None:
    before = content(mount)
    for step in UNSEALING:
        assert modamafs("seal", mount.root / RAW).returncode == 0
        (tmp_path / "failpoint").write_text(step + KILLED[killed])
        pid = mount.worker_pid()
        modamafs("unseal", mount.root / RAW, "--reason", f"killed at {step}")
        assert not (tmp_path / "failpoint").exists(), f"{step} was not reached"
        if KILLED[killed]:
            wait_until(lambda pid=pid: mount.worker_pid() not in (pid, 0), "another worker")
        state = assert_consistent(mount, before)
        wait_until(lambda: record(mount) is None or record(mount)["state"] == "sealed", step)
        finish(mount)
        if assert_consistent(mount, before) == "sealed":
            assert step == "opening", f"{step}: {state}"
            assert modamafs("unseal", mount.root / RAW, "--reason", step).returncode == 0
        assert is_frozen(mount) == {False}
        assert not list((mount.store / SESSION / ".modama/seals").iterdir())
        history = (mount.store / SESSION / ".modama/history.jsonl").read_text().splitlines()
        events = [json.loads(line)["event"] for line in history]
        assert events == ["sealed", "unsealed"] * (len(events) // 2), "each once"
        (mount.root / RAW / "scan.h5").chmod(0o644)


def test_without_a_mount_the_next_one_finishes_it(
    workshop: Workshop, new_name: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Sealed on the store itself, and killed."""
    monkeypatch.setenv("MODAMAFS_SEALING_FAILPOINT", str(tmp_path / "failpoint"))
    store = workshop.image("ext4").root / f"killed-{new_name()}"
    (store / RAW).mkdir(parents=True)
    (store / RAW / "file").write_text("content")
    assert modamafs("init", store).returncode == 0
    (tmp_path / "failpoint").write_text("hashing")
    assert modamafs("seal", store / RAW).returncode == -9
    subprocess.run(["touch", store / RAW / "file"], check=False)
    with Mount(store, workshop.mountpoint(store.name)) as mount:
        wait_until(lambda: (record(mount) or {}).get("state") == "sealed", "it is finished")
        assert modamafs("verify", mount.root / RAW).returncode == 0
        with pytest.raises(OSError, match="Read-only"):
            (mount.root / RAW / "file").write_text("other")
