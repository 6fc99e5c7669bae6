"""What hooks are told of, and with which words; the outbox; and how a run is ended."""

from __future__ import annotations

import errno
import itertools
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from modamafs.hooks.changed import MOST_DIRECTORIES, MOST_GATHERED, Gathered, merged, places
from modamafs.hooks.run import OUTPUT_BYTES, Run, run
from modamafs.model import Caller
from modamafs.placeholders import PLACEHOLDERS, check_command, filled
from modamafs.sealing.progress import Progress
from modamafs.sealing.seal import seal
from modamafs.store.backing import Store
from modamafs.store.outbox import Event, Outbox, hooks_dir
from tests.support.mounts import wait_until

VALUES = {name: name.upper().encode() for name in PLACEHOLDERS}


# ---- placeholders --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "bytes_"),
    [
        ("", b""),
        ("plain", b"plain"),
        ("--path=/ann/{path}/{event}", b"--path=/ann/PATH/EVENT"),
        ("{store}{mountpoint}", b"STOREMOUNTPOINT"),
        ("{{path}} {{{path}}}", b"{path} {PATH}"),
        ("$(id) `id` ; \u00fc", "$(id) `id` ; \u00fc".encode()),
    ],
)
def test_placeholders_are_replaced(argument: str, bytes_: bytes) -> None:
    check_command(["program", argument])
    assert filled(argument, VALUES) == bytes_


@pytest.mark.parametrize(
    "path", [b"", b"-rf", b"a\nb", b"\xff\xfe", b"{event}", b"$(id) 'x' \"y\""]
)
def test_what_is_put_in_is_not_looked_at(path: bytes) -> None:
    assert filled("<{path}>", {**VALUES, "path": path}) == b"<" + path + b">"


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ([], "program"),
        ([""], "program"),
        (["{store}/x"], "always the same"),
        (["x", "{nothing}"], "{nothing}"),
        (["x", "{}"], "{}"),
        (["x", "{path"], "write {{"),
        (["x", "path}"], "write }}"),
        (["x", "{path}"], "option"),
        (["x", "{session}/x"], "option"),
        (["x", "{path}", "--"], "option"),
    ],
)
def test_what_is_no_command(command: list[str], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        check_command(command)


def test_a_path_is_no_option() -> None:
    check_command(["x", "./{path}", "{store}/{path}", "--", "{path}", "{session}"])
    check_command(["x", "{{path}}"])


# ---- merging -------------------------------------------------------------------------------------


def change(event: str, path: str, kind: str = "file", old_path: str | None = None) -> Any:
    return {"event": event, "path": path, "kind": kind, "old_path": old_path}


@pytest.mark.parametrize(
    ("told", "found"),
    [
        (change("created", "a/b"), [(b"a", False)]),
        (change("removed", "a/b", "directory"), [(b"a", False)]),
        (change("modified", "b"), [(b"", False)]),
        (change("attributes", ""), [(b"", False)]),
        (change("attributes", "a/b", "directory"), [(b"a", False)]),
        (change("created", "a/b", "directory"), [(b"a", False), (b"a/b", True)]),
        (change("moved", "a/b", "file", "c/\udcff/b"), [(b"a", False), (b"c/\xff", False)]),
        (
            change("moved", "a/b", "directory", "c/b"),
            [(b"a", False), (b"c", False), (b"a/b", True)],
        ),
        (change("moved", "a/b", "directory"), [(b"a", False), (b"a/b", True)]),
        (change("modified", "a/b", "directory"), [(b"a/b", True)]),
        ({"event": "lost", "path": "", "kind": None, "old_path": None}, [(b"", True)]),
    ],
)
def test_where_a_change_is_looked_for(told: Any, found: list[tuple[bytes, bool]]) -> None:
    assert list(places(told)) == found


@pytest.mark.parametrize(
    ("found", "told"),
    [
        ({}, {}),
        ({b"b": False, b"a": False}, {b"a": False, b"b": False}),
        ({b"a": True, b"a/b": False, b"a/c": True, b"ab": False}, {b"a": True, b"ab": False}),
        ({b"a": False, b"a/b": True}, {b"a": False, b"a/b": True}),
        ({b"": True, b"a": False}, {b"": True}),
        # Too many:
        ({b"a/b": False, b"a/c": False, b"a/d": False, b"a/e": True}, {b"a": True}),
        (
            {b"a/1": False, b"a/2": False, b"b": False, b"c": True},
            {b"a": True, b"b": False, b"c": True},
        ),
        ({b"a": False, b"b": False, b"c": False, b"d": False}, {b"": True}),
        ({b"x/y/a": False, b"x/y/b": False, b"x/y/c": False, b"x/y/d": False}, {b"x/y": True}),
        ({b"": False, b"a/1": False, b"a/2": False, b"a/3": False}, {b"": False, b"a": True}),
    ],
)  # fmt: skip
def test_directories_are_merged(found: dict[bytes, bool], told: dict[bytes, bool]) -> None:
    assert merged(found, 3) == told
    assert list(merged(found, 3)) == sorted(told)


@pytest.mark.parametrize("seed", range(50))
def test_whatever_is_merged_stands_for_all(seed: int) -> None:
    chance = random.Random(seed)
    found = {
        b"/".join(chance.choices([b"a", b"b", b"c"], k=chance.randrange(5))): chance.random() < 0.1
        for _ in range(chance.randrange(60))
    }
    told = merged(found, 7)
    assert len(told) <= 7
    for path, recursive in found.items():
        above = {
            path,
            *(path[:end] for end in range(len(path)) if path[end : end + 1] == b"/"),
            b"",
        }
        assert any(told.get(one) for one in above) or (told.get(path) is False and not recursive)


def test_what_is_gathered_has_an_end() -> None:
    gathered = Gathered()
    assert gathered.take() == {}
    gathered.add(b"a", True)
    gathered.add(b"a", False)
    assert gathered.take() == {b"a": True}
    for number in range(3 * MOST_GATHERED):
        gathered.add(b"area/%d/%d" % (number % 7, number), False)
        assert len(gathered) <= MOST_GATHERED
    assert len(gathered) > 0
    told = gathered.take()
    assert told == {b"area/%d" % number: True for number in range(7)}
    assert len(told) <= MOST_DIRECTORIES
    assert not gathered


# ---- the outbox ----------------------------------------------------------------------------------


def test_events_are_kept_in_order_until_they_were_told(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "hooks")
    assert outbox.pending() == []
    assert outbox.count() == 0
    events = [Event(event, b"a/\xff\n", "1") for event in ("sealed", "verified", "unsealed")]
    for event in events:
        outbox.put(event)
    assert [event for _, event in outbox.pending()] == events
    assert outbox.count() == 3
    name, _ = outbox.pending()[1]
    outbox.remove(name)
    outbox.remove(name)
    assert [event for _, event in outbox.pending()] == [events[0], events[2]]


def test_an_event_that_comes_again_is_there_once(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "hooks")
    verified, other = Event("verified", b"a/b", "1"), Event("verified", b"a/b", "2")
    outbox.put(verified)
    [(name, _)] = outbox.pending()
    outbox.put(other)
    outbox.put(verified)
    assert [event for _, event in outbox.pending()] == [other, verified]
    outbox.remove(name)  # who was telling of the first one leaves the second
    assert [event for _, event in outbox.pending()] == [other, verified]


def test_an_event_is_taken_back(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "hooks")
    event = Event("sealed", b"a/b", "../../id")
    outbox.withdraw(event)
    outbox.remove(b"0" * 20 + b"-x.json")
    outbox.put(event)
    outbox.withdraw(event)
    assert outbox.pending() == []
    assert os.listdir(tmp_path) == ["hooks"]


@pytest.mark.parametrize("text", [b"", b"{}", b"[]", b'{"event": "sealed", "path": 1, "id": "1"}'])
def test_an_event_that_was_cut_off_is_in_nobodys_way(
    tmp_path: Path, text: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    outbox = Outbox(tmp_path)
    (tmp_path / ("0" * 20 + "-x.json")).write_bytes(text)
    (tmp_path / "changes.json").write_bytes(text)
    outbox.put(Event("sealed", b"a/b", "1"))
    assert [event.path for _, event in outbox.pending()] == [b"a/b"]
    assert "event-unreadable" in caplog.text
    assert outbox.count() == 1


@pytest.fixture
def hooked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Store, Outbox]]:
    """A store with a hook for everything."""
    monkeypatch.setenv("MODAMAFS_INDEX_DIR", str(tmp_path / "index"))
    top = tmp_path / "store"
    (top / "area/project/session/raw").mkdir(parents=True)
    (top / "area/project/session/raw/file").write_bytes(b"x")
    (top / ".modama").mkdir()
    (top / ".modama/config.toml").write_text(
        "[hooks.a]\non = ['sealed', 'unsealed', 'verified', 'damaged']\ncommand = ['true']\n"
    )
    with Store(top) as store:
        yield store, Outbox(hooks_dir(store, tmp_path / "index"))


RAW = b"area/project/session/raw"


def test_what_is_rolled_back_is_not_told(hooked: tuple[Store, Outbox]) -> None:
    store, outbox = hooked
    seen = []

    def tell(known: dict[str, Any]) -> None:
        if known["step"] == "remembering":
            seen.extend(outbox.pending())
            raise BrokenPipeError(errno.EPIPE, "the worker is gone")

    with pytest.raises(BrokenPipeError):
        seal(store, RAW, Caller(0, 0), progress=Progress(tell))
    assert [event.event for _, event in seen] == ["sealed"]
    assert outbox.pending() == []


def test_no_seal_fails_because_nobody_can_be_told(
    hooked: tuple[Store, Outbox], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store, _ = hooked
    (tmp_path / "index").write_text("no directory")
    assert seal(store, RAW, Caller(0, 0))["state"] == "sealed"
    assert "hooks-not-told event=sealed" in caplog.text


# ---- a run ---------------------------------------------------------------------------------------


@pytest.fixture
def never() -> Iterator[int]:
    """A descriptor that does not become readable."""
    reader, writer = os.pipe()
    yield reader
    os.close(reader)
    os.close(writer)


def sh(script: str, never: int, timeout_s: float = 60.0, user: str | None = None) -> Run:
    ended = run([b"sh", b"-c", script.encode()], {b"X": b"\xff"}, user, timeout_s, never)
    assert ended is not None
    return ended


def test_a_run_says_how_it_ended(never: int) -> None:
    assert sh("exit 0", never).ok
    assert sh("exit 3", never).status == 3
    assert sh("kill -9 $$", never).status == -9
    assert not sh("exit 3", never).ok
    ended = sh("printf '%s' \"$X\"; echo; echo err >&2; pwd; umask; id -u; cat; ulimit -n", never)
    assert ended.output.startswith(b"\xff\nerr\n/\n0022\n0\n")
    assert int(ended.output.splitlines()[-1]) <= 1024
    assert sh("id -un", never, user="nobody").output == b"nobody\n"


def test_nothing_of_the_daemon_is_handed_on(never: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "x")
    ended = sh("env; ls /proc/self/fd", never)
    assert b"SECRET" not in ended.output
    assert b"HOME=/root" in ended.output
    assert ended.output.splitlines()[-4:] == [b"0", b"1", b"2", b"3"]  # 3 is what ls reads


def test_what_can_not_be_started(never: int) -> None:
    nothing = run([b"/nowhere/at/all"], {}, None, 60, never)
    assert nothing is not None
    assert nothing.status is None
    assert "No such file" in nothing.error
    assert "no user 'nobody-of-that-name'" in sh("true", never, user="nobody-of-that-name").error


def test_output_is_kept_short(never: int) -> None:
    ended = sh("head -c 5000000 /dev/zero | tr '\\0' x; echo the end; exit 4", never)
    assert ended.status == 4
    assert len(ended.output) == OUTPUT_BYTES
    assert ended.output.endswith(b"xxxthe end\n")


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


LEAVES = """
trap '' TERM HUP
sleep 1000 & echo $!
setsid sleep 1000 & echo $!
setsid sh -c 'setsid sleep 1000 & echo $!'
exec 2>/dev/null
"""


@pytest.mark.parametrize("end", ["exit 0", "exec >&-; sleep 1000", "while :; do echo; done"])
def test_all_that_it_has_started_ends_with_it(tmp_path: Path, never: int, end: str) -> None:
    script = f"exec 3>&1 >{tmp_path}/pids; {LEAVES} exec >&3 3>&-; {end}"
    ended = sh(script, never, timeout_s=2)
    assert ended.timed_out is (end != "exit 0")
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert len(pids) == 3
    assert [pid for pid in pids if is_alive(pid)] == []


def test_it_ends_with_who_wants_it(tmp_path: Path) -> None:
    """The process that waits for it is killed; its keeper is not."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        script = f"exec >{tmp_path}/pids; {LEAVES} echo done; sleep 1000"
        run([b"sh", b"-c", script.encode()], {}, None, 1000, reader)
        os._exit(0)
    pids = tmp_path / "pids"
    wait_until(lambda: pids.exists() and "done" in pids.read_text(), "the command")
    left = [int(one) for one in pids.read_text().split()[:-1]]
    assert all(is_alive(one) for one in left)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    wait_until(lambda: not any(is_alive(one) for one in left), "the end of all it has started")
    os.close(reader)
    os.close(writer)


def test_it_is_given_up() -> None:
    reader, writer = os.pipe()
    os.close(writer)
    assert run([b"sleep", b"1000"], {}, None, 1000, reader) is None
    os.close(reader)


def test_every_event_has_its_word() -> None:
    """What the configuration takes is what is announced."""
    from typing import get_args

    from modamafs.config import HookEvent

    sources = [Path("modamafs/sealing") / name for name in ("seal.py", "verify.py")]
    top = Path(__file__).parents[2]
    text = "".join((top / one).read_text() for one in sources)
    for event in itertools.filterfalse("changed".__eq__, get_args(HookEvent)):
        assert f'"{event}"' in text
