"""Commands that are run when something has happened: with which words, how often, whoever dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from modamafs.control import client
from modamafs.store.outbox import Event, Outbox
from tests.mounted.test_watch import is_watching, sync
from tests.support.mounts import Mount, modamafs, wait_until
from tests.support.targets import Workshop
from tests.support.trees import remove
from tests.support.users import ALICE, as_user

SESSION = b"area/project/session"
ODD = [b"raw", b"-rf", b"a\nb", b"\xff\xfe", b"$(id) `id` {event} 'x\"", b"\xc3\xbc"]

RECORDER = """#!/bin/sh
# Keeps the arguments and the environment of each call in files of their own, numbered in order.
# Waits before that as long as there is a file "wait".
echo $$ >>"$0.started"
while [ -e "$0.wait" ]; do sleep 0.02; done
mkdir -p "$0.calls"
new=$(mktemp "$0.calls/new.XXXXXX")
env -0 >"$new"
mv "$new" "$new.env"
printf '%s\\0' "$@" >"$new"
mv "$new.env" "$0.calls/$(printf %04d $(ls "$0.calls" | grep -c args)).env"
mv "$new" "$0.calls/$(printf %04d $(ls "$0.calls" | grep -c args)).args"
"""


class Recorder:
    """A command that keeps what it was called with."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.write_text(RECORDER)
        path.chmod(0o755)

    def calls(self) -> list[list[bytes]]:
        """The arguments of each call so far."""
        found = sorted(Path(f"{self.path}.calls").glob("*.args"))
        return [path.read_bytes().split(b"\0")[:-1] for path in found]

    def environment(self, number: int) -> dict[bytes, bytes]:
        """That of a call."""
        lines = Path(f"{self.path}.calls/{number:04}.env").read_bytes().split(b"\0")[:-1]
        return dict(line.split(b"=", 1) for line in lines)  # type: ignore[misc]

    def wait_for(self, *calls: list[bytes]) -> None:
        """Return when there were these calls; fail when there are others."""
        wait_until(lambda: len(self.calls()) >= len(calls), f"calls: {calls}")
        assert self.calls() == [*calls]

    def hold(self) -> None:
        """From now on it waits."""
        Path(f"{self.path}.wait").touch()

    def let_go(self) -> None:
        """It goes on."""
        Path(f"{self.path}.wait").unlink()

    def started(self) -> list[int]:
        """The processes that were started so far."""
        path = Path(f"{self.path}.started")
        return [int(pid) for pid in path.read_text().split()] if path.exists() else []


@pytest.fixture
def recorder(tmp_path: Path) -> Recorder:
    return Recorder(tmp_path / "recorder")


def command(recorder: Recorder, *arguments: str) -> str:
    return json.dumps([str(recorder.path), *arguments])


@pytest.fixture
def store(workshop: Workshop, new_name: Callable[[], str]) -> Iterator[Path]:
    directory = workshop.image("ext4").root / f"hooks-{new_name()}"
    (directory / "area/project/session/raw").mkdir(parents=True)
    (directory / "area/project/session/raw/file").write_bytes(b"measured")
    (directory / ".modama").mkdir()
    yield directory
    remove(directory)


def configure(store: Path, text: str) -> None:
    (store / ".modama/config.toml").write_text(text)
    (store / ".modama/config.toml").chmod(0o644)


def for_seals(recorder: Recorder) -> str:
    return f"""
[hooks.seals]
on = ["sealed", "unsealed", "verified", "damaged"]
command = {command(recorder, "{event}", "--path={path}", "--", "{path}")}
"""


def for_changes(recorder: Recorder) -> str:
    return f"""
[hooks.changes]
on = ["changed"]
command = {command(recorder, "{event}", "--", "{path}", "{recursive}")}
"""


def told(event: bytes, path: bytes) -> list[bytes]:
    return [event, b"--path=" + path, b"--", path]


@pytest.fixture
def mounted(workshop: Workshop, store: Path, recorder: Recorder) -> Iterator[Mount]:
    """With a hook for what becomes of seals, and one for changes."""
    configure(store, for_seals(recorder) + for_changes(recorder))
    with Mount(store, workshop.mountpoint(store.name)) as mount:
        wait_for_hooks(mount)
        wait_until(lambda: is_watching(mount), "the store to be watched")
        yield mount


def hooks(mount: Mount) -> dict[str, Any]:
    found = mount.status()["hooks"]
    assert isinstance(found, dict)
    return found


def wait_for_hooks(mount: Mount, state: str = "ok") -> None:
    wait_until(
        lambda: hooks(mount)["state"] == state and not hooks(mount)["message"].startswith("nobody"),
        f"hooks: {state}",
    )


def follows(mount: Mount) -> bool:
    """Whether changes are told from now on."""
    index = Path(json.loads((mount.runtime / "mount.json").read_text())["index_dir"])
    return (index / "hooks/changes.json").exists() and mount.status()["index"]["state"] == "ok"


def hooks_pid(mount: Mount) -> int:
    worker = mount.worker_pid()
    for children in Path(f"/proc/{worker}/task").glob("*/children"):
        for pid in children.read_text().split():
            if b"modamafs.hooks" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return int(pid)
    raise ProcessLookupError("no hooks")


def log_lines(mount: Mount) -> list[str]:
    return (mount.runtime / "hooks.log").read_text().splitlines()


def do(*arguments: str | Path | bytes) -> None:
    words = [os.fsdecode(one) if isinstance(one, bytes) else one for one in arguments]
    done = modamafs(*words)
    assert done.returncode == 0, done.stderr


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


# ---- what is told --------------------------------------------------------------------------------


def test_seals_are_told_whatever_their_names(mounted: Mount, recorder: Recorder) -> None:
    top = os.fsencode(mounted.root) + b"/" + SESSION
    expected = []
    for name in ODD:
        path = SESSION + b"/" + name
        os.makedirs(top + b"/" + name, exist_ok=True)
        do("seal", top + b"/" + name)
        do("verify", top + b"/" + name)
        do("unseal", "--reason", "test", top + b"/" + name)
        expected += [told(event, path) for event in (b"sealed", b"verified", b"unsealed")]
    recorder.wait_for(*expected)
    for number, call in enumerate(expected):
        environment = recorder.environment(number)
        facts = {name: value for name, value in environment.items() if name.startswith(b"MODAMAFS")}
        assert facts == {
            b"MODAMAFS_EVENT": call[0],
            b"MODAMAFS_PATH": call[3],
            b"MODAMAFS_SESSION": SESSION,
            b"MODAMAFS_RECURSIVE": b"1",
            b"MODAMAFS_STORE": os.fsencode(mounted.store),
            b"MODAMAFS_MOUNTPOINT": os.fsencode(mounted.root),
            b"MODAMAFS_HOOK": b"seals",
        }
    wait_until(lambda: hooks(mounted)["pending"] == 0, "nothing to be pending")
    assert len(log_lines(mounted)) == len(expected)
    assert all("status=0" in line for line in log_lines(mounted))
    assert (mounted.runtime / "hooks.log").stat().st_mode & 0o777 == 0o600


def test_damage_is_told(mounted: Mount, recorder: Recorder) -> None:
    raw = mounted.root / os.fsdecode(SESSION) / "raw"
    do("seal", raw)
    file = mounted.store / os.fsdecode(SESSION) / "raw/file"
    subprocess.run(["chattr", "-i", file], check=True)
    file.write_bytes(b"MEASURED")
    assert modamafs("verify", raw).returncode == 1
    path = SESSION + b"/raw"

    def seals() -> list[list[bytes]]:
        return [call for call in recorder.calls() if call[0] != b"changed"]

    wait_until(lambda: len(seals()) == 2, "two calls")
    assert seals() == [told(b"sealed", path), told(b"damaged", path)]


def test_a_refused_seal_is_not_told(mounted: Mount, recorder: Recorder) -> None:
    session = mounted.root / os.fsdecode(SESSION)
    with (session / "raw/file").open("ab"):
        assert modamafs("seal", session / "raw").returncode >= 3
    (session / "other").mkdir()
    do("seal", session / "other")
    recorder.wait_for(told(b"sealed", SESSION + b"/other"))


def test_changes_on_the_store_are_told_once_for_each_directory(
    mounted: Mount, recorder: Recorder
) -> None:
    wait_until(lambda: follows(mounted), "the journal to be followed")
    pid = hooks_pid(mounted)
    os.kill(pid, signal.SIGSTOP)  # so that all of this happens at once for it
    top = mounted.store / "area/project"
    seen = mounted.root / "area/project"
    for number in range(30):
        (top / "session/raw" / f"new{number}").write_bytes(b"x")
        (top / "session" / f"{number}\n").touch()
        (seen / f"seen{number}").write_bytes(b"x")
    (top / "session/raw/file").write_bytes(b"changed")
    os.mkdir(os.fsencode(top) + b"/-\xff")
    for number in range(30):
        (top / os.fsdecode(b"-\xff") / str(number)).touch()
    sync(mounted)
    os.kill(pid, signal.SIGCONT)
    recorder.wait_for(
        [b"changed", b"--", b"area/project", b"0"],
        [b"changed", b"--", b"area/project/-\xff", b"1"],
        [b"changed", b"--", b"area/project/session", b"0"],
        [b"changed", b"--", b"area/project/session/raw", b"0"],
    )


def test_many_directories_are_told_as_one(mounted: Mount, recorder: Recorder) -> None:
    wait_until(lambda: follows(mounted), "the journal to be followed")
    for number in range(50):
        (mounted.root / "area/project/session" / str(number)).mkdir()
    sync(mounted)
    pid = hooks_pid(mounted)
    os.kill(pid, signal.SIGSTOP)
    for number in range(50):
        (mounted.store / "area/project/session" / str(number) / "file").touch()
    (mounted.store / "area/file").touch()
    sync(mounted)
    os.kill(pid, signal.SIGCONT)
    recorder.wait_for(
        [b"changed", b"--", b"area", b"0"],
        [b"changed", b"--", SESSION, b"1"],
    )


def test_what_is_done_through_the_mount_is_no_change(mounted: Mount, recorder: Recorder) -> None:
    wait_until(lambda: follows(mounted), "the journal to be followed")
    seen = mounted.root / "area/project/session"
    (seen / "new").mkdir()
    (seen / "new/file").write_bytes(b"x")
    (seen / "new/file").write_bytes(b"xy")
    (seen / "new/file").chmod(0o600)
    (seen / "new/file").rename(seen / "new/other")
    (seen / "raw/file").unlink()
    sync(mounted)
    do("seal", seen / "new")
    do("unseal", "--reason", "test", seen / "new")
    path = SESSION + b"/new"
    recorder.wait_for(told(b"sealed", path), told(b"unsealed", path))
    sync(mounted)
    (mounted.root / "last").mkdir()
    sync(mounted)  # else both would be one change, made through the mount
    (mounted.store / "last/marker").touch()  # told after all that was before it, also by its name
    recorder.wait_for(
        told(b"sealed", path), told(b"unsealed", path), [b"changed", b"--", b"last", b"0"]
    )


# ---- hooks that misbehave ------------------------------------------------------------------------

HANGS = """#!/bin/sh
trap '' TERM
sleep 1000 & echo $! >>"$0.pids"
setsid sleep 1000 & echo $! >>"$0.pids"
setsid sh -c 'setsid sleep 1000 & echo $!' >>"$0.pids"
echo $$ >>"$0.pids"
touch "$0.done"
sleep 1000
"""


def test_a_hook_that_hangs_is_killed_with_all_it_has_started(
    workshop: Workshop, store: Path, recorder: Recorder, tmp_path: Path
) -> None:
    hangs = tmp_path / "hangs"
    hangs.write_text(HANGS)
    hangs.chmod(0o755)
    before = f'[hooks.hangs]\non = ["sealed"]\ncommand = ["{hangs}"]\ntimeout_s = 2\n'
    configure(store, before + for_seals(recorder))
    with Mount(store, workshop.mountpoint(store.name)) as mount:
        do("seal", mount.root / os.fsdecode(SESSION) / "raw")
        wait_until(Path(f"{hangs}.done").exists, "the one that hangs")
        assert recorder.calls() == []
        (mount.root / "file").write_bytes(b"the mount goes on")
        recorder.wait_for(told(b"sealed", SESSION + b"/raw"))
        pids = [int(pid) for pid in Path(f"{hangs}.pids").read_text().split()]
        assert len(pids) == 4
        assert [pid for pid in pids if is_alive(pid)] == []
        wait_until(lambda: hooks(mount)["pending"] == 0, "nothing to be pending")
        last = hooks(mount)["last_failure"]
        assert (last["hook"], last["message"]) == ("hangs", "timed out")
        assert "hook=hangs event=sealed path='area/project/session/raw'" in log_lines(mount)[0]
        assert "why='timed out'" in log_lines(mount)[0]


def test_a_hook_that_fails_is_said(workshop: Workshop, store: Path, recorder: Recorder) -> None:
    loud = "head -c 5000000 /dev/zero | tr '\\\\0' x; printf 'the\\nend'; exit 3"
    configure(
        store,
        f'[hooks.loud]\non = ["sealed"]\ncommand = ["sh", "-c", "{loud}"]\n'
        '[hooks.nothing]\non = ["sealed"]\ncommand = ["/nowhere/at/all"]\n'
        '[hooks.nobody]\non = ["sealed"]\ncommand = ["id"]\nuser = "nobody"\n'
        '[hooks.unknown]\non = ["sealed"]\ncommand = ["id"]\nuser = "nobody-of-that-name"\n'
        + for_seals(recorder),
    )
    with Mount(store, workshop.mountpoint(store.name)) as mount:
        do("seal", mount.root / os.fsdecode(SESSION) / "raw")
        recorder.wait_for(told(b"sealed", SESSION + b"/raw"))
        wait_until(lambda: hooks(mount)["pending"] == 0, "nothing to be pending")
        found = hooks(mount)
        assert found["failures"] == 3
        assert found["last_failure"]["hook"] == "unknown"
        assert found["last_failure"]["path"] == "area/project/session/raw"
        lines = log_lines(mount)
        assert len(lines) == 5
        assert "hook=loud" in lines[0] and "status=3" in lines[0]
        assert r"xxxthe\nend" in lines[0]
        assert len(lines[0]) < 5000
        assert "hook=nothing" in lines[1] and "can't be started: No such file" in lines[1]
        assert "uid=65534(nobody)" in lines[2]
        assert "there is no user" in lines[3]
        (mount.root / "file").write_bytes(b"the mount goes on")
        text = modamafs("status", mount.root).stdout
        assert "3 failed, last unknown at" in text
        others = as_user(ALICE, client.call, mount.runtime, "status")
        assert "hooks" not in others


# ---- whoever dies --------------------------------------------------------------------------------


def test_what_was_under_way_is_begun_again(mounted: Mount, recorder: Recorder) -> None:
    recorder.hold()
    raw = mounted.root / os.fsdecode(SESSION) / "raw"
    do("seal", raw)
    wait_until(lambda: len(recorder.started()) == 1, "the first run")
    with mounted.expected_in_log("hooks-died", "worker-died"):
        os.kill(hooks_pid(mounted), signal.SIGKILL)
        wait_until(lambda: len(recorder.started()) == 2, "the second run")
        mounted.kill_worker()
        wait_until(lambda: len(recorder.started()) == 3, "the third run")
    assert [is_alive(pid) for pid in recorder.started()] == [False, False, True]
    recorder.let_go()
    recorder.wait_for(told(b"sealed", SESSION + b"/raw"))
    do("unseal", "--reason", "test", raw)
    recorder.wait_for(told(b"sealed", SESSION + b"/raw"), told(b"unsealed", SESSION + b"/raw"))


def test_changes_are_told_by_the_next_one(mounted: Mount, recorder: Recorder) -> None:
    wait_until(lambda: follows(mounted), "the journal to be followed")
    with mounted.expected_in_log("hooks-died", "worker-died", "watcher-died"):
        pid = hooks_pid(mounted)
        os.kill(pid, signal.SIGSTOP)
        (mounted.store / "area/new").touch()
        sync(mounted)
        os.kill(pid, signal.SIGKILL)
        recorder.wait_for([b"changed", b"--", b"area", b"0"])
        recorder.hold()
        (mounted.store / "area/project/new").touch()
        wait_until(lambda: len(recorder.started()) == 2, "a run")
        (mounted.store / "area/project/session/new").touch()
        mounted.kill_worker()
        wait_until(lambda: len(recorder.started()) >= 3, "another run")
        recorder.let_go()
        again = {b"area/project", SESSION}
        wait_until(lambda: {call[2] for call in recorder.calls()[1:]} == again, "both")


@pytest.mark.parametrize("step", ["remembering", "remembering:parent", "committed:parent"])
def test_a_seal_that_is_killed_is_told_when_it_is_one(
    workshop: Workshop,
    store: Path,
    recorder: Recorder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
) -> None:
    monkeypatch.setenv("MODAMAFS_SEALING_FAILPOINT", str(tmp_path / "failpoint"))
    configure(store, for_seals(recorder))
    path = SESSION + b"/raw"
    with (
        Mount(store, workshop.mountpoint(store.name)) as mount,
        mount.expected_in_log("sealer-killed", "worker-died"),
    ):
        (tmp_path / "failpoint").write_text(step)
        modamafs("seal", mount.root / os.fsdecode(path))
        record = store / "area/project/session/.modama/seals/raw.json"
        wait_until(lambda: json.loads(record.read_text())["state"] == "sealed", "the seal")
        assert not (tmp_path / "failpoint").exists()
        recorder.wait_for(told(b"sealed", path))
        wait_until(lambda: hooks(mount)["pending"] == 0, "nothing to be pending")
        (tmp_path / "failpoint").write_text(
            "thawing" + step.removeprefix("remembering").removeprefix("committed")
        )
        modamafs("unseal", "--reason", "test", mount.root / os.fsdecode(path))
        wait_until(lambda: not record.exists(), "the end of the seal")
        recorder.wait_for(told(b"sealed", path), told(b"unsealed", path))


def test_what_happens_while_nothing_is_mounted(
    workshop: Workshop, store: Path, recorder: Recorder
) -> None:
    configure(store, for_seals(recorder) + for_changes(recorder))
    with Mount(store, workshop.mountpoint(store.name)) as mount:
        wait_until(lambda: follows(mount), "the journal to be followed")
    do("seal", store / os.fsdecode(SESSION) / "raw")
    (store / "area/new").touch()
    assert recorder.calls() == []
    with Mount(store, workshop.mountpoint(store.name)) as mount:
        wait_until(lambda: [b"changed", b"--", b"area", b"0"] in recorder.calls(), "the change")
        assert recorder.calls()[0] == told(b"sealed", SESSION + b"/raw")


def test_what_is_taken_back_meanwhile_is_not_told(mounted: Mount, recorder: Recorder) -> None:
    index = Path(json.loads((mounted.runtime / "mount.json").read_text())["index_dir"])
    outbox = Outbox(index / "hooks")
    first, second, third = (Event("sealed", b"gone/%d" % n, "id") for n in range(3))
    recorder.hold()
    outbox.put(first)
    wait_until(lambda: len(recorder.started()) == 1, "the first run")
    pid = hooks_pid(mounted)
    with mounted.expected_in_log("hooks-died"):
        outbox.put(second)
        outbox.put(third)
        os.kill(pid, signal.SIGKILL)  # so that the next one finds all three at once
        wait_until(lambda: len(recorder.started()) == 2, "the first run of the next one")
    outbox.withdraw(second)
    recorder.let_go()
    recorder.wait_for(told(b"sealed", first.path), told(b"sealed", third.path))


# ---- who runs them -------------------------------------------------------------------------------


def test_one_mount_of_a_store_runs_them(
    workshop: Workshop, store: Path, recorder: Recorder
) -> None:
    configure(store, for_seals(recorder) + for_changes(recorder))
    raw = os.fsdecode(SESSION) + "/raw"
    path = SESSION + b"/raw"
    with Mount(store, workshop.mountpoint(f"{store.name}-2")) as second:
        wait_for_hooks(second)
        with Mount(store, workshop.mountpoint(store.name)) as first:
            wait_for_hooks(first, "elsewhere")
            wait_until(lambda: follows(second), "the journal to be followed")
            do("seal", first.root / raw)
            recorder.wait_for(told(b"sealed", path))
            assert recorder.environment(0)[b"MODAMAFS_MOUNTPOINT"] == os.fsencode(second.root)
            (store / "area/new").touch()
            expected = [told(b"sealed", path), [b"changed", b"--", b"area", b"0"]]
            recorder.wait_for(*expected)
            wait_until(lambda: hooks(second)["pending"] == 0, "nothing to be pending")
            do("umount", second.root)
            second.is_unmounted = True
            wait_for_hooks(first)
            do("unseal", "--reason", "test", first.root / raw)
            (store / "area/project/new").touch()
            expected += [told(b"unsealed", path), [b"changed", b"--", b"area/project", b"0"]]
            wait_until(lambda: all(one in recorder.calls() for one in expected), "both")
            calls = recorder.calls()
            assert [calls.count(one) for one in expected] == [1] * 4  # and nothing a second time
            number = calls.index(expected[2])
            assert recorder.environment(number)[b"MODAMAFS_MOUNTPOINT"] == os.fsencode(first.root)


def test_a_view_runs_none(workshop: Workshop, store: Path, recorder: Recorder) -> None:
    configure(store, for_seals(recorder))
    do("view", "add", store, "shown", "area/project")
    view = Mount(store, workshop.mountpoint(f"{store.name}-2"), "--view", "shown")
    with view, Mount(store, workshop.mountpoint(store.name)) as whole:
        wait_for_hooks(whole)
        assert hooks(view)["state"] == "off"
        do("seal", view.root / "session/raw")
        recorder.wait_for(told(b"sealed", SESSION + b"/raw"))


def test_without_an_index_seals_are_told(
    workshop: Workshop, store: Path, recorder: Recorder
) -> None:
    off = "[index]\nenabled = false\n[watch]\nenabled = false\n"
    configure(store, off + for_seals(recorder) + for_changes(recorder))
    with Mount(store, workshop.mountpoint(store.name)) as mount:
        do("seal", mount.root / os.fsdecode(SESSION) / "raw")
        recorder.wait_for(told(b"sealed", SESSION + b"/raw"))
        assert "no index" in hooks(mount)["message"]


def test_a_new_configuration_holds_after_a_restart(
    workshop: Workshop, store: Path, recorder: Recorder
) -> None:
    raw = os.fsdecode(SESSION) + "/raw"
    with Mount(store, workshop.mountpoint(store.name)) as mount:
        assert hooks(mount) == {"state": "off", "message": "none are configured"}
        do("seal", mount.root / raw)
        configure(store, for_seals(recorder))
        do("restart", mount.root)
        wait_for_hooks(mount)
        do("unseal", "--reason", "test", mount.root / raw)
        recorder.wait_for(told(b"unsealed", SESSION + b"/raw"))


@pytest.mark.parametrize("spoiled", ["config.toml", "."])
def test_what_others_could_have_written_is_not_run(
    workshop: Workshop, store: Path, recorder: Recorder, spoiled: str
) -> None:
    raw = os.fsdecode(SESSION) + "/raw"
    configure(store, for_seals(recorder))
    above = store / ".modama"
    os.chown(above / spoiled, ALICE.uid, ALICE.gid)
    with Mount(store, workshop.mountpoint(store.name)) as mount:
        with mount.expected_in_log("hooks-ignored reason=.*config.toml: hooks are run only"):
            wait_for_hooks(mount, "refused")
            do("seal", mount.root / raw)
            assert "are root's" in hooks(mount)["message"]
        os.chown(above / spoiled, 0, 0)
        do("restart", mount.root)
        wait_for_hooks(mount)
        do("unseal", "--reason", "test", mount.root / raw)
        recorder.wait_for(told(b"unsealed", SESSION + b"/raw"))
        assert len(recorder.started()) == 1


def test_a_wrong_configuration_is_one_line(workshop: Workshop, store: Path) -> None:
    configure(store, '[hooks.a]\non = ["sealed"]\ncommand = ["ls", "{nothing}"]\n')
    mountpoint = workshop.mountpoint(store.name)
    mountpoint.mkdir()
    done = modamafs("mount", store, mountpoint)
    assert done.returncode >= 3
    [line] = done.stderr.splitlines()
    assert f"{store}/.modama/config.toml, line 3, key hooks.a.command: no placeholder" in line
