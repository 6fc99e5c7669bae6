"""``modamafs find``, ``watch`` and ``index`` on a real mount, as several people use them."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from modamafs.control import client
from modamafs.errors import ModamaError
from tests.support.mounts import Mount, command, modamafs, wait_until
from tests.support.targets import Workshop
from tests.support.trees import remove
from tests.support.users import ALICE, ROOT, STRANGER, User, as_user

PRIVATE = "secret-plans"


@pytest.fixture(scope="module")
def mount(workshop: Workshop) -> Iterator[Mount]:
    """A store with a project for everybody, and one that is ALICE's alone."""
    store = workshop.image("ext4").root / "found"
    for project in ("open", PRIVATE):
        raw = store / "area" / project / "session" / "raw"
        raw.mkdir(parents=True)
        (raw / "tilt series.mrc").write_bytes(bytes(2000))
        (raw / f"of-{project}.dm4").write_bytes(b"1")
    record = {"id": "1", "title": "Plans", "owner": {"name": "Alice"}, "visibility": "private"}
    (store / "area" / PRIVATE / ".modama").mkdir()
    (store / "area" / PRIVATE / ".modama/project.json").write_text(json.dumps(record))
    (store / "area" / PRIVATE).chmod(0o700)
    os.chown(store / "area" / PRIVATE, ALICE.uid, ALICE.gid)
    with Mount(store, workshop.mountpoint("found")) as mount:
        done = modamafs("project", "set", mount.root / "area/open", "--title", "Open")
        assert done.returncode == 0, done.stderr
        done = modamafs(
            "session", "create", mount.root / "area/open/described", "--title", "Skyrmions at 5 K",
            "--instrument", "Titan G3",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        yield mount
    remove(store)


def found(mount: Mount, *query: str, user: User = ROOT) -> list[str]:
    """Paths relative to the mount, sorted."""
    done = run_as(user, "find", "--in", str(mount.root), "--json", *query)
    assert done.returncode in (0, 1), done.stderr
    paths = [json.loads(line)["path"] for line in done.stdout.splitlines()]
    assert bool(paths) == (done.returncode == 0)
    return sorted(os.path.relpath(path, mount.root) for path in paths)


def run_as(user: User, *arguments: str) -> subprocess.CompletedProcess[str]:
    return as_user(user, _run, arguments)


def _run(arguments: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*command(), *arguments],
        cwd="/",
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_what_was_written_just_now_is_found(mount: Mount) -> None:
    """Through the mount, and beside it; and what was removed just now is not. Asked at once."""

    def count(word: str) -> int:
        page = client.call(mount.runtime, "find", {"query": word}, timeout_s=60)
        return len(page["results"])

    for number in range(5):
        name = f"written-{number}.tif"
        (mount.root / "area" / name).write_bytes(b"1")
        (mount.store / "area" / f"beside-{name}").write_bytes(b"1")
        assert count(f"written-{number}") == 2
        (mount.root / "area" / name).unlink()
        (mount.store / "area" / f"beside-{name}").unlink()
        assert count(f"written-{number}") == 0


def test_words_of_the_record_find_what_is_in_the_session(mount: Mount) -> None:
    (mount.root / "area/open/described/image.tif").write_bytes(b"1")
    assert "area/open/described/image.tif" in found(mount, "skyrmions", "image")
    assert found(mount, "instrument:titan", "type:tif") == ["area/open/described/image.tif"]


def test_people_find_what_they_may_see(mount: Mount) -> None:
    assert found(mount, "tilt", user=ALICE) == [
        "area/open/session/raw/tilt series.mrc",
        f"area/{PRIVATE}/session/raw/tilt series.mrc",
    ]
    assert found(mount, "tilt", user=STRANGER) == ["area/open/session/raw/tilt series.mrc"]
    assert found(mount, "type:dm4", user=STRANGER) == ["area/open/session/raw/of-open.dm4"]
    for query in (f"of-{PRIVATE}", f"path:{PRIVATE}", f"project:{PRIVATE}"):
        done = run_as(STRANGER, "find", "--in", str(mount.root), query)
        assert (done.returncode, done.stdout) == (1, ""), query


def test_sealed_is_found_when_it_is_sealed(mount: Mount) -> None:
    session = mount.root / "area/open/session"
    assert found(mount, "sealed:yes", "type:dm4") == []
    done = modamafs("seal", session / "raw")
    assert done.returncode == 0, done.stderr
    assert found(mount, "sealed:yes", "type:dm4") == ["area/open/session/raw/of-open.dm4"]
    assert not (session / "raw/of-open.dm4").stat().st_mode & 0o222, "shown as sealed at once"


@pytest.mark.parametrize("query", ["size:>soon", 'open"quote', "x" * 5000, "nosuch:key"])
def test_what_can_not_be_understood_is_refused(mount: Mount, query: str) -> None:
    done = run_as(STRANGER, "find", "--in", str(mount.root), query)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1


def test_the_socket_takes_nothing_else(mount: Mount) -> None:
    """Who talks to the daemon without the command."""
    for verb, arguments in (
        ("find", {"query": "a'; DROP TABLE nodes; --"}),
        ("find", {"query": 'NEAR("a" "b") OR *'}),
        ("find", {"query": 5}),
        ("find", {"query": "a", "limit": 10**9}),
        ("find", {"query": "a", "path": "../.."}),
        ("changes", {"since": "x"}),
        ("changes", {"since": "a:" + "9" * 400}),
        ("changes", {"limit": "all"}),
        ("changes", {"wait_s": 1e9}),
    ):
        with contextlib.suppress(ModamaError):
            client.call(mount.runtime, verb, arguments, timeout_s=60)
    assert found(mount, "tilt")


def following(mount: Mount, since: str | None, user: User = ROOT) -> list[dict[str, Any]]:
    options = ["--since", since] if since else []
    done = run_as(user, "watch", "--json", "--once", *options, str(mount.root))
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_changes_are_followed_from_a_position(mount: Mount) -> None:
    [start] = following(mount, None)
    area = mount.root / "area"
    (area / "followed").write_bytes(b"1")
    first = following(mount, start["position"])
    (area / "followed").rename(area / "moved")
    (mount.store / "area/moved").unlink()
    rest = following(mount, first[-1]["position"])
    assert [(one["event"], one["path"]) for one in first] == [("created", f"{area}/followed")]
    assert not first[0]["outside"]
    assert rest[-1]["event"] == "removed"
    assert rest[-1]["outside"]
    assert following(mount, rest[-1]["position"]) == []


def test_what_is_written_through_the_mount_does_not_come_from_outside(mount: Mount) -> None:
    """The kernel writes by itself, as whoever the client is; so do programs on the store."""
    path = mount.root / "area/appended"
    path.write_bytes(b"1")
    (mount.store / "area/other").write_bytes(b"1")
    [start] = following(mount, None)
    with open(path, "ab") as file:
        file.write(b"2")
    [written] = following(mount, start["position"])
    with open(mount.store / "area/other", "ab") as file:
        file.write(b"3")
    [beside] = following(mount, written["position"])
    assert (written["event"], written["outside"]) == ("modified", False)
    assert (beside["event"], beside["outside"]) == ("modified", True)


def test_positions_outlive_the_daemon(mount: Mount) -> None:
    [start] = following(mount, None)
    with mount.expected_in_log("worker-died"):
        mount.kill_worker()
        (mount.root / "area/after").write_bytes(b"1")
        wait_until(lambda: len(following(mount, start["position"])) > 0, "the change")
        assert following(mount, start["position"])[0]["path"] == f"{mount.root}/area/after"


def test_nobody_follows_what_he_may_not_see(mount: Mount) -> None:
    [start] = following(mount, None)
    place = mount.root / "area" / PRIVATE / "session"
    (place / "diary").write_bytes(b"1")
    (mount.root / "area/public").write_bytes(b"1")
    paths = [one["path"] for one in following(mount, start["position"], STRANGER)]
    assert paths == [f"{mount.root}/area/public"]
    paths = [one["path"] for one in following(mount, start["position"], ALICE)]
    assert paths == [f"{place}/diary", f"{mount.root}/area/public"]
    (place / "diary").rename(mount.root / "area/published")
    [seen] = following(mount, following(mount, start["position"])[-2]["position"], STRANGER)[-1:]
    assert (seen["event"], seen["path"]) == ("created", f"{mount.root}/area/published")
    assert seen["old_path"] is None, "where it was is nobody's business"


def test_a_position_of_another_index_is_lost(mount: Mount) -> None:
    [start] = following(mount, None)
    done = modamafs("index", "rebuild", mount.root)
    assert done.returncode == 0, done.stderr
    [lost] = following(mount, start["position"])
    assert lost["event"] == "lost"
    assert following(mount, lost["position"]) == []


def test_the_index_is_checked_and_counted(mount: Mount) -> None:
    done = modamafs("index", "check", mount.root)
    assert (done.returncode, done.stderr) == (0, "")
    done = modamafs("index", "stats", "--json", mount.root)
    counted = json.loads(done.stdout)
    assert counted["kinds"]["directory"] >= 8
    path = Path(counted["directory"]) / "index.db"
    assert path.stat().st_mode & 0o777 == 0o600, "names in it are not everybody's to know"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE nodes SET size_bytes = 7 WHERE name = 'of-open.dm4'")
        connection.commit()
    done = modamafs("index", "check", mount.root)
    assert done.returncode == 1
    assert "of-open.dm4" in done.stdout
    assert modamafs("index", "rebuild", mount.root).returncode == 0
    assert modamafs("index", "check", mount.root).returncode == 0


def test_only_root_has_to_do_with_the_index_itself(mount: Mount) -> None:
    for verb in ("rebuild", "check", "stats"):
        done = run_as(STRANGER, "index", verb, str(mount.root))
        assert done.returncode >= 3, verb
        assert len(done.stderr.splitlines()) == 1


def test_a_killed_search_is_no_end(mount: Mount) -> None:
    assert found(mount, "tilt")
    worker = mount.worker_pid()
    searchers = [
        int(pid)
        for children in Path(f"/proc/{worker}/task").glob("*/children")
        for pid in children.read_text().split()
        if b"modamafs.searcher" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    assert searchers
    for pid in searchers:
        os.kill(pid, 9)
    wait_until(
        lambda: (
            not any(
                Path(f"/proc/{pid}/stat").exists()
                and b") Z" not in Path(f"/proc/{pid}/stat").read_bytes()
                for pid in searchers
            )
        ),
        "their end",
    )
    assert found(mount, "tilt")


def test_what_came_from_outside_is_in_the_history(
    workshop: Workshop, new_name: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from modamafs.index import outside
    from modamafs.index.changes import Noted
    from modamafs.index.outside import Histories
    from modamafs.store.backing import Store

    monkeypatch.setattr(outside, "GATHERED_S", 0.0)
    store = workshop.image("ext4").root / f"history-{new_name()}"
    session = store / "area/project/session"
    (session / "raw").mkdir(parents=True)
    (store / "area/project/plain/raw").mkdir(parents=True)
    (session / ".modama").mkdir()
    (session / ".modama/session.json").write_text("{}")
    changes = [
        Noted("created", b"area/project/session/raw/a", True),
        Noted("removed", b"area/project/plain/raw/b", True),
        Noted("created", b"area/project/session/raw/mine", False),
        Noted("removed", b"area/project/session/c", True),
        Noted("created", b"area/project/session/.modama/x", True),
        Noted("modified", b"area/file", True),
    ]
    with Store(store) as opened:
        histories = Histories(opened)
        histories.note(changes)
        histories.write()
        histories.write()
    [line] = (session / ".modama/history.jsonl").read_text().splitlines()
    told = json.loads(line)
    assert told.pop("at")
    assert told == {
        "event": "changed-outside", "created": 1, "removed": 1, "paths": ["raw/a", "c"],
    }  # fmt: skip
    assert not (store / "area/project/plain/.modama").exists()
    remove(store)
