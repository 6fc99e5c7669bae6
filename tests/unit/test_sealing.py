"""Sealing and opening: what is refused, what is written, and what is left when it fails."""

from __future__ import annotations

import contextlib
import errno
import json
import mmap
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from modamafs.errors import (
    Busy,
    Cancelled,
    ConfigurationError,
    InvalidRequest,
    ModamaError,
    NotPermitted,
)
from modamafs.model import Caller
from modamafs.policy.decide import extend, may_be_opened, may_seal, may_unseal
from modamafs.sealing import place as place_module
from modamafs.sealing import seal as sealing
from modamafs.sealing.place import LONGEST_NAME_BYTES
from modamafs.sealing.progress import FAILPOINT, Progress
from modamafs.sealing.seal import SEAL_XATTR, Wish, interrupted, repair, resume, seal, unseal
from modamafs.sealing.verify import verify
from modamafs.store.backing import Store
from modamafs.store.seals import Seals, covering, listed
from tests.support.descriptors import none_left
from tests.support.syscalls import FS_IMMUTABLE_FL, get_flags
from tests.support.targets import Workshop
from tests.support.trees import differences, snapshot
from tests.support.users import in_child

ROOT = Caller(0, 0)
OWNER = Caller(4001, 4001)
OTHER = Caller(4002, 4002)
USERS_GID = 100
"""The group ``users``, which every Debian has."""
STEWARD = Caller(4003, 4003, groups=(USERS_GID,))
RAW = b"area/project/session/raw"
SESSION = b"area/project/session"
TODAY = date(2026, 3, 1)
DAY = timedelta(days=1)
KEPT_NAMES = ["raw.B3SUMS", "raw.json", "raw.mtree"]


@pytest.fixture
def top() -> Iterator[Path]:
    """A store's directory, on a file system that has file handles; thawed before it is removed."""
    directory = Path(tempfile.mkdtemp(prefix="modamafs-unit-", dir="/var/tmp"))
    yield directory
    thaw(directory)
    shutil.rmtree(directory)


@pytest.fixture
def store(top: Path) -> Iterator[Store]:
    with none_left(), Store(top) as opened:
        yield opened


@pytest.fixture
def raw(top: Path) -> Path:
    """A session's directory with a bit of everything."""
    return fill(top / os.fsdecode(RAW))


@pytest.fixture(params=["ext4", "xfs", "btrfs"])
def anywhere(
    request: pytest.FixtureRequest, workshop: Workshop, new_name: Callable[[], str]
) -> Iterator[Path]:
    """A store's directory on every file system."""
    directory = workshop.image(request.param).root / f"sealing-{new_name()}"
    directory.mkdir()
    fill(directory / os.fsdecode(RAW))
    yield directory
    thaw(directory)
    shutil.rmtree(directory)


def fill(path: Path) -> Path:
    (path / "frames" / "empty").mkdir(parents=True)
    (path / "frames" / "1.tif").write_bytes(b"first")
    (path / "frames" / "2.tif").write_bytes(b"second")
    (path / "large.mrc").write_bytes(os.urandom(300_000))
    (path / "nothing").touch()
    (path / "new\nline").write_bytes(b"n")
    (path / "back\\slash").write_bytes(b"b")
    (path / "größe µm").write_bytes(b"u")
    (path / "cr\r").write_bytes(b"r")
    (path / "link").symlink_to("frames/1.tif")
    os.mkfifo(path / "fifo")
    return path


def thaw(directory: Path) -> None:
    subprocess.run(["chattr", "-R", "-f", "-i", str(directory)], check=False)


def chattr(change: str, path: Path) -> None:
    subprocess.run(["chattr", change, str(path)], check=True)


@contextlib.contextmanager
def opened(path: Path, flags: int = os.O_PATH | os.O_NOFOLLOW) -> Iterator[int]:
    fd = os.open(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


def records(raw: Path) -> Path:
    return raw.parent / ".modama" / "seals"


def recorded(raw: Path) -> list[str]:
    return sorted(os.listdir(records(raw))) if records(raw).exists() else []


def record_of(raw: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((records(raw) / f"{raw.name}.json").read_text())
    return found


def change_record(raw: Path, **changes: object) -> None:
    path = records(raw) / f"{raw.name}.json"
    path.write_text(json.dumps(record_of(raw) | changes))


def history(raw: Path) -> list[dict[str, Any]]:
    path = raw.parent / ".modama" / "history.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def frozen(raw: Path) -> dict[str, bool]:
    """Which files and directories have the immutable flag; "." is the directory itself."""
    return {
        str(path.relative_to(raw)): bool(get_flags(path) & FS_IMMUTABLE_FL)
        for path in [raw, *raw.rglob("*")]
        if stat.S_IFMT(path.lstat().st_mode) in (stat.S_IFREG, stat.S_IFDIR)
        and ".modama" not in path.relative_to(raw).parts
    }


def check(manifest: bytes, directory: Path) -> dict[str, str]:
    """What ``b3sum --check`` does, by b3sum/what_does_check_do.md."""
    results = {}
    text = manifest.decode("utf-8")
    assert text.endswith("\n") or not text
    for line in text.split("\n")[:-1]:
        escaped = line.startswith("\\")
        match = re.fullmatch(r"([0-9a-f]{64})  (.+)", line.removeprefix("\\"), re.DOTALL)
        assert match, line
        path = match[2]
        if escaped:
            assert re.fullmatch(r"(?:[^\\]|\\\\|\\n)*", path, re.DOTALL), path
            path = re.sub(r"\\(.)", lambda found: {"n": "\n", "\\": "\\"}[found[1]], path)
        assert "\ufffd" not in path
        assert "\0" not in path
        assert blake3((directory / path).read_bytes()).hexdigest() == match[1]
        results[path] = match[1]
    return results


def is_open(store: Store, raw: Path) -> None:
    """Nothing says that it is sealed, or has been."""
    assert covering(store, RAW) is None
    assert list(listed(store)) == []
    assert Seals(store).sealed_roots() == []
    with opened(raw) as fd, opened(raw.parents[1]) as above:
        assert not Seals(store).covers(fd)
        assert not Seals(store).below(above, raw.parent.name.encode())
    assert recorded(raw) == []
    assert SEAL_XATTR.decode() not in os.listxattr(raw)
    assert not any(frozen(raw).values())


def is_sealed(store: Store, raw: Path) -> None:
    """Everything says that it is, and the manifest has its bytes."""
    record = record_of(raw)
    assert record["state"] == "sealed"
    assert recorded(raw) == KEPT_NAMES
    assert list(listed(store)) == [RAW]
    assert os.getxattr(raw, SEAL_XATTR).decode() == record["id"]
    assert all(frozen(raw).values())
    checked = check((records(raw) / "raw.B3SUMS").read_bytes(), raw)
    assert len(checked) == record["file_count"]
    assert verify(store, RAW, ROOT, remember=False)["ok"]


class Steps(Progress):
    """Notes every step, and does something at some of them."""

    def __init__(self, at: dict[str, Callable[[], object]] | None = None) -> None:
        super().__init__()
        self.at = at or {}
        self.seen: list[str] = []

    def step(self, name: str, *, once: bool = True) -> None:
        super().step(name, once=once)
        if name not in self.seen:
            self.seen.append(name)
        if name in self.at:
            self.at[name]()


def no_space() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def give_up() -> None:
    raise Cancelled("given up")


def seal_while_written(store: Store, raw: Path, steps: Steps) -> dict[str, Any]:
    """Somebody still writes, and closes the file when they are waited for."""
    with (raw / "frames" / "2.tif").open("r+b", buffering=0) as writer:
        if steps.at.get("waiting for writers") is None:
            steps.at["waiting for writers"] = writer.close
        return seal(store, RAW, ROOT, Wish(wait_s=None), steps)


# ---- sealing -------------------------------------------------------------------------------------


def test_a_seal_writes_the_record_and_the_manifests(store: Store, raw: Path) -> None:
    record = seal(store, RAW, ROOT)
    assert record_of(raw) == record
    assert recorded(raw) == KEPT_NAMES
    assert record["path"] == RAW.decode()
    assert record["state"] == "sealed"
    assert record["sealed_by"] == "root"
    for key in ("sealed_at", "requested_at"):
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", record[key])
    assert record["tool"].startswith("modamafs ")
    assert (record["until"], record["hold"]) == (None, False)
    assert record["immutable_flag"] is True
    checked = check((records(raw) / "raw.B3SUMS").read_bytes(), raw)
    files = [path for path in raw.rglob("*") if stat.S_ISREG(path.lstat().st_mode)]
    assert set(checked) == {str(path.relative_to(raw)) for path in files}
    assert len(files) == 8
    assert record["file_count"] == 8
    assert record["size_bytes"] == sum(path.stat().st_size for path in files)
    for key in ("content_hash", "attribute_hash"):
        assert re.fullmatch(r"blake3:[0-9a-f]{64}", record[key])
    (event,) = history(raw)
    unsaid = {"immutable_before", "wait_s", "state"}
    assert event == {"event": "sealed"} | {k: v for k, v in record.items() if k not in unsaid}
    assert Seals(store).sealed_roots() == [RAW]
    assert os.listdir(raw).count(".modama") == 0, "nothing is written into what is sealed"
    is_sealed(store, raw)


def test_records_can_be_read_by_everybody(store: Store, raw: Path) -> None:
    before = os.umask(0o077)
    try:
        seal(store, RAW, ROOT)
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in records(raw).iterdir()} == {0o644}
    assert stat.S_IMODE(records(raw).stat().st_mode) == 0o755


def test_the_manifest_is_sorted_by_the_bytes_of_the_paths(store: Store, raw: Path) -> None:
    for name in ("a", "frames-1", "frames.txt", "frames0", "Z"):
        (raw / name).touch()
    seal(store, RAW, ROOT)
    lines = (records(raw) / "raw.B3SUMS").read_bytes().splitlines()
    names = [re.sub(rb"^\\?[0-9a-f]{64}  ", b"", line) for line in lines]
    assert names == sorted(names)
    assert names.index(b"frames.txt") < names.index(b"frames/1.tif") < names.index(b"frames0")


def test_even_root_can_not_change_what_is_sealed_on_the_store(store: Store, raw: Path) -> None:
    seal(store, RAW, ROOT)
    attempts: list[Callable[[], object]] = [
        lambda: (raw / "large.mrc").write_bytes(b"other"),
        lambda: (raw / "frames" / "new").touch(),
        lambda: (raw / "frames" / "1.tif").unlink(),
        lambda: (raw / "link").unlink(),
        lambda: (raw / "frames").rename(raw.parent / "moved"),
        lambda: raw.rename(raw.parent / "moved"),
        lambda: (raw / "nothing").chmod(0o777),
        lambda: os.setxattr(raw, "user.x", b"1"),
        lambda: os.utime(raw / "large.mrc"),
        lambda: (raw.parent / "name").hardlink_to(raw / "large.mrc"),
    ]
    for attempt in attempts:
        with pytest.raises(PermissionError):
            attempt()
    assert verify(store, RAW, ROOT)["ok"]


def point_elsewhere(raw: Path) -> None:
    (raw / "link").unlink()
    (raw / "link").symlink_to("frames/2.tif")


def become_a_directory(raw: Path) -> None:
    (raw / "fifo").unlink()
    (raw / "fifo").mkdir()


CHANGES: dict[str, Callable[[Path], object]] = {
    "content": lambda raw: (raw / "frames" / "1.tif").write_bytes(b"First"),
    "name": lambda raw: (raw / "frames" / "1.tif").rename(raw / "frames" / "3.tif"),
    "empty directory": lambda raw: shutil.rmtree(raw / "frames" / "empty"),
    "target": point_elsewhere,
    "kind": become_a_directory,
}


@pytest.mark.parametrize("change", [None, *CHANGES])
def test_the_content_hash_is_the_contents(store: Store, raw: Path, change: str | None) -> None:
    first = seal(store, RAW, ROOT)
    unseal(store, RAW, ROOT, "to change it")
    if change:
        CHANGES[change](raw)
    second = seal(store, RAW, ROOT)
    assert (second["content_hash"] == first["content_hash"]) is (change is None)
    assert second["id"] != first["id"]


def test_what_is_sealed_already_stays_as_it_is(store: Store, raw: Path) -> None:
    first = seal(store, RAW, ROOT)
    path = records(raw) / "raw.json"
    before = path.stat()
    chattr("-i", raw / "large.mrc")
    (raw / "large.mrc").write_bytes(b"changed behind our back")
    assert seal(store, RAW, ROOT) == first
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert len(history(raw)) == 1


def test_a_seal_that_was_interrupted_is_made_again(store: Store, raw: Path) -> None:
    seal(store, RAW, ROOT)
    change_record(raw, state="sealing", content_hash=None)
    assert covering(store, RAW) == RAW, "until then it is as good as sealed"
    assert seal(store, RAW, ROOT)["state"] == "sealed"
    is_sealed(store, raw)


def test_an_unsealing_that_was_interrupted_is_finished_first(store: Store, raw: Path) -> None:
    seal(store, RAW, ROOT)
    change_record(raw, state="unsealing")
    with pytest.raises(Busy, match="--resume"):
        seal(store, RAW, ROOT)
    with pytest.raises(InvalidRequest, match="unsealing"):
        verify(store, RAW, ROOT)
    assert unseal(store, RAW, ROOT, "once more")["state"] == "open"
    is_open(store, raw)


def test_the_record_is_there_before_anything_is_looked_at(store: Store, raw: Path) -> None:
    states: dict[str, str] = {}
    steps = Steps()

    def look() -> None:
        assert covering(store, RAW) == RAW
        assert Seals(store).sealed_roots() == [RAW]
        states[steps.seen[-1]] = record_of(raw)["state"]

    seal(store, RAW, ROOT, progress=(first := Steps()))
    unseal(store, RAW, ROOT, "again")
    steps.at = dict.fromkeys(first.seen[first.seen.index("looking") :], look)
    seal(store, RAW, ROOT, progress=steps)
    assert states.pop("committed") == "sealed"
    assert set(states) >= {"looking", "freezing", "hashing", "committing"}
    assert set(states.values()) == {"sealing"}


@pytest.mark.parametrize(
    "relative", [RAW + b"/", b"/" + RAW, RAW.replace(b"project", b"./project/")]
)
def test_a_path_may_be_written_in_several_ways(store: Store, raw: Path, relative: bytes) -> None:
    assert seal(store, relative, ROOT)["path"] == RAW.decode()
    assert records(raw).exists()


@pytest.mark.parametrize(
    ("relative", "message"),
    [
        (b"", "can't be sealed"),
        (b".", "can't be sealed"),
        (b"/", "can't be sealed"),
        (b"area", "can't be sealed"),
        (b"area/project/..", "can't be sealed"),
        (b"../store/raw", "can't be sealed"),
        (b"area/.modama", "can't be sealed"),
        (b"area/project/session/.modama/seals", "can't be sealed"),
        (RAW + b"/nothing", "no directory"),
        (RAW + b"/link", "no directory"),
        (RAW + b"/nothing/below", "no directory"),
        (b"area/linked/session/raw", "no directory"),
        (RAW + b"/missing", "No such file"),
        (b"missing/too", "No such file"),
    ],
)
def test_what_can_not_be_sealed(
    store: Store, raw: Path, top: Path, relative: bytes, message: str
) -> None:
    (top / "area" / "linked").symlink_to("project")
    with pytest.raises(InvalidRequest, match=message):
        seal(store, relative, ROOT)
    is_open(store, raw)
    assert not list(top.rglob(".modama"))


@pytest.mark.parametrize("more", [0, 1])
def test_a_name_that_leaves_no_room_for_the_records_names(top: Path, more: int) -> None:
    name = b"n" * (LONGEST_NAME_BYTES + more)
    (top / "area" / name.decode()).mkdir(parents=True)
    with Store(top) as store:
        with pytest.raises(InvalidRequest, match="too long") if more else contextlib.nullcontext():
            seal(store, b"area/" + name, ROOT)
            verify(store, b"area/" + name, ROOT)
        assert (covering(store, b"area/" + name) is None) is bool(more)


def test_a_name_that_is_too_long_leaves_no_descriptor(top: Path) -> None:
    name = b"n" * (LONGEST_NAME_BYTES + 1)
    (top / "area" / name.decode()).mkdir(parents=True)

    def count_left() -> int:
        with Store(top) as store:
            before = len(os.listdir("/proc/self/fd"))
            with pytest.raises(InvalidRequest, match="too long"):
                seal(store, b"area/" + name, ROOT)
            return len(os.listdir("/proc/self/fd")) - before

    assert in_child(count_left) == 0


@pytest.mark.parametrize("name", [b"raw \xff", "raw \u00b5".encode("latin-1")])
def test_names_of_any_bytes_can_be_sealed(store: Store, top: Path, name: bytes) -> None:
    path = top / "area" / os.fsdecode(name)
    path.mkdir(parents=True)
    seal(store, b"area/" + name, ROOT)
    assert covering(store, b"area/" + name) == b"area/" + name
    assert unseal(store, b"area/" + name, ROOT, "to see")["state"] == "open"


def test_files_with_names_of_any_bytes_do_no_harm(store: Store, raw: Path) -> None:
    name = b"y\xffy"
    (raw / os.fsdecode(name)).write_bytes(b"content")
    assert seal(store, RAW, ROOT)["file_count"] == 9
    line = blake3(b"content").hexdigest().encode() + b"  " + name + b"\n"
    assert line in (records(raw) / "raw.B3SUMS").read_bytes()
    assert verify(store, RAW, ROOT)["ok"]


def test_what_had_the_flag_is_remembered_whatever_its_name(store: Store, raw: Path) -> None:
    path = raw / os.fsdecode(b"y\xffy")
    path.write_bytes(b"content")
    chattr("+i", path)
    seal(store, RAW, ROOT)
    unseal(store, RAW, ROOT, "to see")
    assert [name for name, flag in frozen(raw).items() if flag] == [path.name]


def test_an_empty_directory_can_be_sealed(store: Store, top: Path) -> None:
    (top / "area" / "raw").mkdir(parents=True)
    record = seal(store, b"area/raw", ROOT)
    assert (record["file_count"], record["size_bytes"]) == (0, 0)
    assert record["content_hash"] == "blake3:" + blake3(b"modamafs content 1\n").hexdigest()
    assert verify(store, b"area/raw", ROOT)["ok"]


def test_what_lies_in_something_sealed_is_not_sealed_again(store: Store, raw: Path) -> None:
    seal(store, RAW, ROOT)
    with pytest.raises(InvalidRequest, match=re.escape(RAW.decode())):
        seal(store, RAW + b"/frames", ROOT)
    assert not (raw / ".modama").exists()


def test_progress_counts_to_the_end(store: Store, raw: Path) -> None:
    steps = Steps()
    record = seal(store, RAW, ROOT, progress=steps)
    assert steps.known["done_files"] == steps.known["file_count"] == record["file_count"]
    assert steps.known["done_bytes"] == steps.known["size_bytes"] == record["size_bytes"]
    again = Steps()
    verify(store, RAW, ROOT, progress=again)
    assert again.known | {"step": ""} == steps.known | {"step": ""}
    assert raw.exists()


# ---- who may -------------------------------------------------------------------------------------

OWNERS = {4001}
WHO: list[tuple[Caller, int | None, bool, bool]] = [
    # caller, the stewards' group, may seal, may unseal
    (ROOT, None, True, True),
    (ROOT, USERS_GID, True, True),
    (OWNER, None, True, False),
    (OWNER, USERS_GID, True, False),
    (OTHER, None, False, False),
    (OTHER, USERS_GID, False, False),
    (STEWARD, None, False, False),
    (STEWARD, USERS_GID, True, True),
    (Caller(4004, USERS_GID), USERS_GID, True, True),
    (Caller(4004, USERS_GID), None, False, False),
    (Caller(4004, 0, groups=(0,)), USERS_GID, False, False),
    (Caller(4004, 4001, groups=(4001,)), USERS_GID, False, False),
]


@pytest.mark.parametrize(("caller", "stewards", "seals", "unseals"), WHO)
def test_who_may(caller: Caller, stewards: int | None, seals: bool, unseals: bool) -> None:
    with contextlib.nullcontext() if seals else pytest.raises(NotPermitted):
        may_seal(caller, OWNERS, stewards)
    with contextlib.nullcontext() if unseals else pytest.raises(NotPermitted):
        may_unseal(caller, stewards)


@pytest.mark.parametrize(
    ("record", "refused"),
    [
        ({}, None),
        ({"until": None, "hold": False}, None),
        ({"hold": True}, "on hold"),
        ({"until": str(TODAY - DAY)}, None),
        ({"until": str(TODAY)}, None),
        ({"until": str(TODAY + DAY)}, "sealed until 2026-03-02"),
        ({"until": str(TODAY - DAY), "hold": True}, "on hold"),
        ({"until": str(TODAY + DAY), "hold": True}, "on hold"),
    ],
)
def test_may_be_opened(record: dict[str, Any], refused: str | None) -> None:
    with pytest.raises(NotPermitted, match=refused) if refused else contextlib.nullcontext():
        may_be_opened({"path": "a/b", **record}, TODAY)


@pytest.mark.parametrize(
    ("known", "until", "refused"),
    [
        (None, TODAY + DAY, None),
        (None, TODAY, "passed already"),
        (None, TODAY - DAY, "passed already"),
        (TODAY + DAY, TODAY + DAY, None),
        (TODAY + DAY, TODAY + 2 * DAY, None),
        (TODAY + 2 * DAY, TODAY + DAY, "only be extended"),
        (TODAY - 2 * DAY, TODAY - DAY, "passed already"),
        (TODAY - 2 * DAY, TODAY + DAY, None),
    ],
)
def test_extend(known: date | None, until: date, refused: str | None) -> None:
    record = {"until": str(known) if known else None}
    with pytest.raises(NotPermitted, match=refused) if refused else contextlib.nullcontext():
        extend(record, until, TODAY)


def test_only_the_owner_or_root_can_seal(store: Store, raw: Path) -> None:
    os.chown(raw, OWNER.uid, OWNER.gid)
    with pytest.raises(NotPermitted):
        seal(store, RAW, OTHER)
    is_open(store, raw)
    assert not records(raw).exists()
    assert seal(store, RAW, OWNER)["sealed_by"] == "4001"


def test_the_owner_of_the_session_can_seal_what_lies_in_it(store: Store, raw: Path) -> None:
    os.chown(raw.parents[1], OTHER.uid, OTHER.gid)
    os.chown(raw.parent, OWNER.uid, OWNER.gid)
    with pytest.raises(NotPermitted):
        seal(store, RAW, OTHER)
    assert seal(store, RAW, OWNER)["state"] == "sealed"


def test_stewards_are_those_of_the_group_in_the_configuration(
    store: Store, raw: Path, top: Path
) -> None:
    os.chown(raw, OWNER.uid, OWNER.gid)
    seal(store, RAW, OWNER)
    with pytest.raises(NotPermitted):
        unseal(store, RAW, STEWARD, "no such group yet")
    config = top / ".modama" / "config.toml"
    config.write_text('[stewards]\ngroup = "users"\n')
    with pytest.raises(NotPermitted):
        unseal(store, RAW, OWNER, "mine")
    assert unseal(store, RAW, STEWARD, "ticket 8")["unsealed_by"] == "4003"
    config.write_text('[stewards]\ngroup = "no-such-group"\n')
    with pytest.raises(ConfigurationError, match="no-such-group"):
        seal(store, RAW, ROOT)


# ---- writers and links ---------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_APPEND])
def test_a_file_that_is_open_for_writing_is_in_the_way(store: Store, raw: Path, flags: int) -> None:
    with (
        opened(raw / "frames" / "2.tif", flags),
        pytest.raises(Busy, match=re.escape("frames/2.tif")),
    ):
        seal(store, RAW, ROOT)
    is_open(store, raw)
    assert history(raw) == []
    assert seal(store, RAW, ROOT)["state"] == "sealed"


def test_who_writes_is_named(store: Store, raw: Path) -> None:
    code = "import sys; f = open(sys.argv[1], 'ab'); print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(raw / "large.mrc")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdout
        writer.stdout.readline()
        with pytest.raises(Busy) as raised:
            seal(store, RAW, ROOT)
        writer.communicate()
    for word in ("large.mrc", f"pid {writer.pid}", "root", "--wait"):
        assert word in raised.value.message
    assert "\n" not in raised.value.message


def test_a_writable_mapping_is_in_the_way_too(store: Store, raw: Path) -> None:
    with opened(raw / "large.mrc", os.O_RDWR) as fd:
        mapping = mmap.mmap(fd, 4096)
    with pytest.raises(Busy, match="large"):
        seal(store, RAW, ROOT)
    mapping.close()
    seal(store, RAW, ROOT)


def test_readers_are_not(store: Store, raw: Path) -> None:
    with opened(raw / "large.mrc", os.O_RDONLY):
        seal(store, RAW, ROOT)


def test_many_writers_are_counted(store: Store, raw: Path) -> None:
    with contextlib.ExitStack() as stack:
        for number in range(5):
            (raw / f"{number}").touch()
            stack.enter_context(opened(raw / f"{number}", os.O_WRONLY))
        with pytest.raises(Busy, match="and 2 more"):
            seal(store, RAW, ROOT)


def test_writers_are_waited_for(store: Store, raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealing, "POLL_S", 0.0)
    assert seal_while_written(store, raw, steps := Steps())["state"] == "sealed"
    assert "waiting for writers" in steps.seen
    is_sealed(store, raw)


def test_somebody_who_comes_in_while_it_is_frozen_is_seen(anywhere: Path) -> None:
    """Where the flag does not stop an open descriptor (XFS, btrfs) nothing else would."""
    raw = anywhere / os.fsdecode(RAW)
    fds: list[int] = []
    steps = Steps({"freezing": lambda: fds.append(os.open(raw / "large.mrc", os.O_RDWR))})
    with Store(anywhere) as store:
        with pytest.raises(Busy, match=r"large\.mrc"):
            seal(store, RAW, ROOT, progress=steps)
        assert steps.seen[-1] == "waiting for writers"
        os.close(fds.pop())
        is_open(store, raw)
        seal(store, RAW, ROOT)
        is_sealed(store, raw)


@pytest.mark.parametrize("times", [1, 100])
def test_what_changes_while_it_is_hashed_is_hashed_again(
    store: Store, raw: Path, times: int
) -> None:
    """Somebody clears the flag on the store itself."""
    count = 0

    def change() -> None:
        nonlocal count
        count += 1
        if count <= times:
            chattr("-i", raw / "frames" / "1.tif")
            (raw / "frames" / "1.tif").write_bytes(b"%05d" % count)

    steps = Steps({"comparing": change})
    if times == 1:
        seal(store, RAW, ROOT, progress=steps)
        is_sealed(store, raw)
    else:
        with pytest.raises(Busy, match="goes on changing"):
            seal(store, RAW, ROOT, progress=steps)
        is_open(store, raw)
        assert history(raw) == []


def test_a_name_outside_is_in_the_way(store: Store, raw: Path, top: Path) -> None:
    (raw / "inside").hardlink_to(raw / "large.mrc")
    (top / "area" / "outside").hardlink_to(raw / "large.mrc")
    with pytest.raises(Busy, match="another name outside") as raised:
        seal(store, RAW, ROOT)
    assert "area/outside" in raised.value.message
    assert "inside" in raised.value.message or "large.mrc" in raised.value.message
    is_open(store, raw)
    (top / "area" / "outside").unlink()
    assert seal(store, RAW, ROOT)["file_count"] == 9, "two names inside are fine"


def test_both_names_of_a_file_are_said(store: Store, raw: Path, top: Path) -> None:
    (top / "area" / "other").mkdir()
    (top / "area" / "other" / "copy.tif").hardlink_to(raw / "frames" / "1.tif")
    with pytest.raises(Busy) as raised:
        seal(store, RAW, ROOT)
    assert raised.value.message.startswith("frames/1.tif ")
    assert "area/other/copy.tif" in raised.value.message
    assert "\n" not in raised.value.message


@pytest.mark.parametrize("name", ["link", "fifo"])
def test_a_second_name_of_a_link_or_a_pipe_counts_too(
    store: Store, raw: Path, top: Path, name: str
) -> None:
    os.link(raw / name, top / "area" / "second", follow_symlinks=False)
    with pytest.raises(Busy, match="area/second"):
        seal(store, RAW, ROOT)
    is_open(store, raw)


# ---- steps that fail -----------------------------------------------------------------------------


def test_a_full_disk_leaves_it_open(store: Store, raw: Path) -> None:
    """RLIMIT_FSIZE: the record fits, the manifest does not."""
    for number in range(60):
        (raw / f"{number:04}").touch()

    code = f"""if True:
        import resource, signal
        from pathlib import Path
        from modamafs.model import Caller
        from modamafs.sealing.seal import seal
        from modamafs.store.backing import Store
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
        with Store(Path({str(store.path)!r})) as store:
            seal(store, {RAW!r}, Caller(0, 0))
    """
    # not a forked child: blake3's threads would be missing in it
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "OSError: [Errno 27] File too large" in done.stderr, done
    is_open(store, raw)
    assert history(raw) == []
    assert seal(store, RAW, ROOT)["file_count"] == 68


@pytest.mark.parametrize("failure", [no_space, give_up])
def test_every_step_of_sealing_that_fails_leaves_it_open(
    store: Store,
    raw: Path,
    monkeypatch: pytest.MonkeyPatch,
    failure: Callable[[], None],
) -> None:
    """Or, if that is what the history says, sealed."""
    monkeypatch.setattr(sealing, "POLL_S", 0.0)
    before = snapshot(raw)
    seal_while_written(store, raw, known := Steps())
    unseal(store, RAW, ROOT, "all steps are known")
    assert len(known.seen) > 10
    problems = {}
    for step in known.seen:
        said = history(raw)
        with pytest.raises((OSError, Cancelled)):
            seal_while_written(store, raw, Steps({step: failure}))
        try:
            if history(raw) == said:
                is_open(store, raw)
                assert differences(before, snapshot(raw), ["ctime_ns"]) == []
            else:
                assert covering(store, RAW) == RAW, "the history says that it is sealed"
                is_sealed(store, raw)
        except AssertionError as error:
            problems[step] = str(error)
        assert seal(store, RAW, ROOT)["state"] == "sealed", step
        unseal(store, RAW, ROOT, "for the next")
    assert problems == {}


@pytest.mark.parametrize("path", [".", "frames", "frames/1.tif"])
def test_what_had_the_flag_has_it_whatever_fails(store: Store, raw: Path, path: str) -> None:
    seal(store, RAW, ROOT, progress=(known := Steps()))
    unseal(store, RAW, ROOT, "all steps are known")
    chattr("+i", raw / path)
    before = frozen(raw)
    assert sum(before.values()) == 1
    problems = {}
    for step in known.seen[: known.seen.index("committed")]:
        with pytest.raises(OSError) as raised:
            seal(store, RAW, ROOT, progress=Steps({step: no_space}))
        flags = [name for name, flag in frozen(raw).items() if flag]
        found = raised.value.errno, recorded(raw), flags
        if found != (errno.ENOSPC, [], [path]):
            problems[step] = found
            thaw(raw)
            with contextlib.suppress(OSError):
                os.removexattr(raw, SEAL_XATTR)
            shutil.rmtree(records(raw), ignore_errors=True)
            chattr("+i", raw / path)
    assert problems == {}


@pytest.mark.parametrize(
    ("module", "function", "number"),
    [
        (sealing, "enlist", 0),
        (sealing, "write_record", 0),  # "sealing"
        (sealing, "write_record", 1),  # what had the flag before
        (sealing._volume, "syncfs", 0),
        (sealing, "_mark", 0),
        (sealing.immutable, "change", 5),
        (sealing, "is_open_for_writing", 2),
        (sealing, "is_open_for_writing", 10),  # when it is frozen
        (sealing, "new_record", 0),  # the manifests
        (sealing, "new_record", 1),
        (sealing, "hashed", 3),
        (place_module, "append_line", 0),  # the history
        (sealing, "new_record", 2),  # "sealed"
        (sealing, "encode", 0),
    ],
)
def test_a_part_that_fails_leaves_it_open(
    store: Store,
    raw: Path,
    monkeypatch: pytest.MonkeyPatch,
    module: Any,
    function: str,
    number: int,
) -> None:
    original, count = getattr(module, function), iter(range(1000))

    def failing(*arguments: Any, **keywords: Any) -> Any:
        if next(count) == number:
            no_space()
        return original(*arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(module, function, failing)
        with pytest.raises(OSError, match="No space"):
            seal(store, RAW, ROOT)
    is_open(store, raw)
    assert history(raw) == []
    assert seal(store, RAW, ROOT)["state"] == "sealed"
    is_sealed(store, raw)


def test_a_file_that_can_not_be_read_is_named(
    store: Store, raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_self: object, _fd: int, _size: int) -> Any:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(sealing.Hasher, "digest", broken)
    with pytest.raises(OSError, match="Input/output error") as raised:
        seal(store, RAW, ROOT)
    assert raised.value.filename == "back\\slash"
    is_open(store, raw)


def test_every_step_of_opening_that_fails_can_be_finished(store: Store, raw: Path) -> None:
    before = snapshot(raw)
    seal(store, RAW, ROOT)
    unseal(store, RAW, ROOT, "all steps are known", known := Steps())
    assert len(known.seen) > 5
    for step in known.seen:
        record = seal(store, RAW, ROOT)
        with pytest.raises(OSError, match="No space"):
            unseal(store, RAW, ROOT, "reason", Steps({step: no_space}))
        if covering(store, RAW) is None:
            assert recorded(raw) == [], step
        elif record_of(raw)["state"] == "sealed":
            is_sealed(store, raw)
            unseal(store, RAW, ROOT, "reason")
        else:
            assert record_of(raw)["state"] == "unsealing", step
            assert list(interrupted(store, list(listed(store)))) == [RAW]
            assert resume(store, RAW, ROOT)["state"] == "open"
        is_open(store, raw)
        assert differences(before, snapshot(raw), ["ctime_ns"]) == [], step
        said = [event for event in history(raw) if event["id"] == record["id"]]
        assert [event["event"] for event in said] == ["sealed", "unsealed"], step
        assert said[1]["reason"] == "reason"


# ---- a process that is killed --------------------------------------------------------------------

KILLED = """
import sys
from pathlib import Path
from modamafs.model import Caller
from modamafs.sealing.seal import seal, unseal
from modamafs.store.backing import Store
with Store(Path(sys.argv[1])) as store:
    if sys.argv[2] == "seal":
        seal(store, sys.argv[3].encode(), Caller(0, 0))
    else:
        unseal(store, sys.argv[3].encode(), Caller(0, 0), "reason")
"""


def kill_at(step: str, top: Path, verb: str) -> None:
    """Let a process seal or unseal, and be killed at a step."""
    failpoint = top / "failpoint"
    failpoint.write_text(step)
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(top), verb, RAW.decode()],
        env={**os.environ, FAILPOINT: str(failpoint)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, (step, done.stderr)
    assert not failpoint.exists()


def some(steps: list[str], top: Path) -> list[str]:
    """All of them on one file system, some of them elsewhere."""
    return steps if top.parent.name.startswith("ext4") else steps[1::3]


def test_sealing_that_is_killed_at_any_step_is_finished(anywhere: Path) -> None:
    raw = anywhere / os.fsdecode(RAW)
    before = snapshot(raw)
    with Store(anywhere) as store:
        seal(store, RAW, ROOT, progress=(known := Steps()))
        unseal(store, RAW, ROOT, "all steps are known")
        for step in some(known.seen, anywhere):
            kill_at(step, anywhere, "seal")
            is_covered = covering(store, RAW) == RAW
            if is_covered:
                assert RAW in list(listed(store)), step
                state = record_of(raw)["state"]
                assert state in ("sealing", "sealed"), step
                if state == "sealed":
                    is_sealed(store, raw)
            else:
                assert not any(frozen(raw).values()), step
                assert SEAL_XATTR.decode() not in os.listxattr(raw), step
            record = resume(store, RAW, ROOT)
            assert record["state"] == ("sealed" if is_covered else "open"), step
            if is_covered:
                is_sealed(store, raw)
                said = [event for event in history(raw) if event["id"] == record["id"]]
                assert [event["event"] for event in said] == ["sealed"], step
                assert list(interrupted(store, list(listed(store)))) == []
                unseal(store, RAW, ROOT, "for the next")
            is_open(store, raw)
            assert differences(before, snapshot(raw), ["ctime_ns"]) == [], step


def test_opening_that_is_killed_at_any_step_is_finished(anywhere: Path) -> None:
    raw = anywhere / os.fsdecode(RAW)
    before = snapshot(raw)
    with Store(anywhere) as store:
        seal(store, RAW, ROOT)
        unseal(store, RAW, ROOT, "all steps are known", known := Steps())
        for step in some(known.seen, anywhere):
            record = seal(store, RAW, ROOT)
            kill_at(step, anywhere, "unseal")
            if covering(store, RAW) == RAW and record_of(raw)["state"] == "sealed":
                assert resume(store, RAW, ROOT)["state"] == "sealed"
                is_sealed(store, raw)
                unseal(store, RAW, ROOT, "reason")
            assert resume(store, RAW, ROOT)["state"] == "open"
            is_open(store, raw)
            assert differences(before, snapshot(raw), ["ctime_ns"]) == [], step
            said = [event for event in history(raw) if event["id"] == record["id"]]
            assert [event["event"] for event in said] == ["sealed", "unsealed"], step


def test_sealing_that_was_killed_can_be_opened(store: Store, raw: Path, top: Path) -> None:
    """Nothing is left of it, wherever it was; what had the flag before keeps it."""
    chattr("+i", raw / "nothing")
    seal(store, RAW, ROOT, progress=(known := Steps()))
    unseal(store, RAW, ROOT, "all steps are known")
    problems = {}
    for step in known.seen[known.seen.index("looking") :]:
        kill_at(step, top, "seal")
        assert unseal(store, RAW, ROOT, "given up")["state"] == "open"
        flags = {name for name, flag in frozen(raw).items() if flag}
        if recorded(raw) or flags != {"nothing"} or list(listed(store)):
            problems[step] = (recorded(raw), flags)
            shutil.rmtree(records(raw))
            chattr("+i", raw / "nothing")
    assert problems == {}


def test_sealing_that_was_killed_and_can_not_be_finished_is_rolled_back(
    store: Store, raw: Path, top: Path
) -> None:
    seal(store, RAW, ROOT, progress=(known := Steps()))
    unseal(store, RAW, ROOT, "all steps are known")
    problems = {}
    for step in known.seen[known.seen.index("looking") : known.seen.index("committed")]:
        kill_at(step, top, "seal")
        chattr("-i", raw / "large.mrc")
        with opened(raw / "large.mrc", os.O_RDWR), pytest.raises(Busy):
            resume(store, RAW, ROOT)
        if recorded(raw) or any(frozen(raw).values()) or list(listed(store)):
            problems[step] = recorded(raw)
            thaw(raw)
            shutil.rmtree(records(raw))
    assert problems == {}


@pytest.mark.parametrize("step", ["hashing", "committed"])
def test_what_was_wished_for_survives_a_kill(store: Store, raw: Path, step: str) -> None:
    """Whoever asked for a retention relies on it, also when another process finishes the seal."""

    def die() -> None:
        os._exit(9)

    wish = Wish(until=date(2100, 1, 1), hold=True)

    def seal_and_die() -> None:
        seal(store, RAW, ROOT, wish, Steps({step: die}))

    with pytest.raises(RuntimeError, match="without an answer"):
        in_child(seal_and_die)
    record = resume(store, RAW, ROOT)
    assert (record["until"], record["hold"]) == ("2100-01-01", True)
    assert record == record_of(raw)


def test_resuming_what_needs_nothing(store: Store, raw: Path) -> None:
    assert resume(store, RAW, ROOT) == {"path": RAW.decode(), "state": "open"}
    record = seal(store, RAW, ROOT)
    assert resume(store, RAW, ROOT) == record
    assert len(history(raw)) == 1
    with pytest.raises(NotPermitted):
        resume(store, RAW, OTHER)


# ---- two at once ---------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["enlisted", "freezing", "hashing", "committed"])
def test_two_do_not_work_on_one_directory_at_the_same_time(
    store: Store, raw: Path, step: str
) -> None:
    refused = []

    def others() -> None:
        attempts: list[Callable[[], object]] = [
            lambda: seal(store, RAW, ROOT),
            lambda: resume(store, RAW, ROOT),
            lambda: repair(store, RAW, ROOT),
            lambda: unseal(store, RAW, ROOT, "now"),
            lambda: verify(store, RAW, ROOT),
        ]
        for attempt in attempts:
            with pytest.raises(Busy, match="just now"):
                attempt()
            refused.append(attempt)

    seal(store, RAW, ROOT, progress=Steps({step: others}))
    assert len(refused) == 5
    assert len(history(raw)) == 1
    is_sealed(store, raw)


# ---- nested --------------------------------------------------------------------------------------


def test_a_sealed_directory_in_a_sealed_session(store: Store, raw: Path) -> None:
    session = raw.parent
    (session / "notes.txt").write_bytes(b"notes")
    record = seal(store, RAW, ROOT)
    outer = seal(store, SESSION, ROOT)
    assert outer["file_count"] == record["file_count"] + 1
    assert all(frozen(session).values())
    assert verify(store, SESSION, ROOT)["ok"]
    assert verify(store, RAW, ROOT, remember=False)["ok"]
    assert not get_flags(session / ".modama") & FS_IMMUTABLE_FL, "records stay writable"
    with pytest.raises(InvalidRequest, match="area/project/session is sealed"):
        unseal(store, RAW, ROOT, "the inner one first")
    with pytest.raises(InvalidRequest, match="area/project/session is sealed"):
        seal(store, SESSION + b"/raw", ROOT)
    assert unseal(store, SESSION, ROOT, "the outer one")["state"] == "open"
    is_sealed(store, raw)
    assert record_of(raw) == record
    assert [name for name, flag in frozen(session).items() if not flag] == [".", "notes.txt"]
    assert not (session.parent / ".modama" / "seals" / "session.json").exists()
    (session / "notes.txt").write_bytes(b"more")
    unseal(store, RAW, ROOT, "now")
    is_open(store, raw)


def test_progress_counts_what_is_sealed_by_itself_too(store: Store, raw: Path) -> None:
    seal(store, RAW, ROOT)
    (raw.parent / "notes.txt").write_bytes(b"notes")
    steps = Steps()
    record = seal(store, SESSION, ROOT, progress=steps)
    assert steps.known["done_files"] == record["file_count"]
    assert steps.known["file_count"] == record["file_count"]
    assert steps.known["size_bytes"] == record["size_bytes"]


def test_a_session_that_fails_to_be_sealed_leaves_what_is_sealed_in_it(
    store: Store, raw: Path
) -> None:
    seal(store, RAW, ROOT)
    seal(store, SESSION, ROOT, progress=(known := Steps()))
    unseal(store, SESSION, ROOT, "all steps are known")
    for step in known.seen[: known.seen.index("committed")]:
        with pytest.raises(OSError, match="No space"):
            seal(store, SESSION, ROOT, progress=Steps({step: no_space}))
        is_sealed(store, raw)
        assert not get_flags(raw.parent) & FS_IMMUTABLE_FL, step


@pytest.mark.parametrize("step", ["looking", "freezing", "hashing", "committing"])
def test_a_session_is_not_sealed_while_something_in_it_is(
    store: Store, raw: Path, step: str
) -> None:
    """That may fail yet: then it is open, and would lie open in something sealed."""
    outcomes: list[str] = []

    def outer() -> None:
        try:
            outcomes.append(seal(store, SESSION, ROOT)["state"])
        except Busy:
            outcomes.append("busy")
        no_space()

    with pytest.raises(OSError, match="No space"):
        seal(store, RAW, ROOT, progress=Steps({step: outer}))
    assert outcomes == ["busy"]
    assert covering(store, RAW) is None
    is_open(store, raw)


def test_what_is_half_open_is_not_opened_in_a_sealed_session(store: Store, raw: Path) -> None:
    """Either the session can't be sealed before that is finished, or that is not finished."""
    seal(store, RAW, ROOT)
    with pytest.raises(OSError, match="No space"):
        unseal(store, RAW, ROOT, "reason", Steps({"thawing": no_space}))
    with contextlib.suppress(Busy, InvalidRequest):
        seal(store, SESSION, ROOT)
        with contextlib.suppress(Busy, InvalidRequest):
            resume(store, RAW, ROOT)
        assert all(frozen(raw.parent).values())
        assert verify(store, SESSION, ROOT)["ok"]
    if covering(store, SESSION) is None:
        assert resume(store, RAW, ROOT)["state"] == "open"
        is_open(store, raw)


# ---- unsealing -----------------------------------------------------------------------------------


def test_unseal_opens_and_keeps_the_history(store: Store, raw: Path) -> None:
    before = snapshot(raw)
    record = seal(store, RAW, ROOT)
    event = unseal(store, RAW, ROOT, "wrong voltage, ticket 7")
    assert event["state"] == "open"
    assert event["id"] == record["id"]
    is_open(store, raw)
    assert differences(before, snapshot(raw), ["ctime_ns"]) == []
    sealed, unsealed = history(raw)
    assert sealed["event"] == "sealed"
    assert unsealed == {key: value for key, value in event.items() if key != "state"}
    assert unsealed["reason"] == "wrong voltage, ticket 7"
    assert unsealed["unsealed_by"] == "root"
    assert unsealed["content_hash"] == record["content_hash"]
    seal(store, RAW, ROOT)
    assert [event["event"] for event in history(raw)] == ["sealed", "unsealed", "sealed"]


def test_unseal_is_for_root_with_a_reason(store: Store, raw: Path) -> None:
    os.chown(raw, OWNER.uid, OWNER.gid)
    seal(store, RAW, OWNER)
    with pytest.raises(NotPermitted):
        unseal(store, RAW, OWNER, "mine")
    for reason in ("", "  \n\t"):
        with pytest.raises(InvalidRequest, match="reason"):
            unseal(store, RAW, ROOT, reason)
    is_sealed(store, raw)
    assert len(history(raw)) == 1


@pytest.mark.usefixtures("raw")
def test_unseal_of_what_is_not_sealed(store: Store) -> None:
    with pytest.raises(InvalidRequest, match="is not sealed"):
        unseal(store, RAW, ROOT, "because")
    seal(store, RAW, ROOT)
    with pytest.raises(InvalidRequest, match="raw is what is sealed"):
        unseal(store, RAW + b"/frames", ROOT, "because")
    assert covering(store, RAW) == RAW


def test_a_refused_unseal_writes_nothing_into_what_is_sealed(store: Store, raw: Path) -> None:
    seal(store, RAW, ROOT)
    with pytest.raises(InvalidRequest):
        unseal(store, RAW + b"/frames", ROOT, "because")
    assert not (raw / ".modama").exists()


def test_an_interrupted_seal_can_be_unsealed(store: Store, raw: Path) -> None:
    seal(store, RAW, ROOT)
    change_record(raw, state="sealing")
    unseal(store, RAW, ROOT, "interrupted")
    is_open(store, raw)


@pytest.mark.parametrize("path", [".", "frames", "frames/1.tif", "frames/empty"])
def test_what_was_immutable_before_is_so_afterwards(store: Store, raw: Path, path: str) -> None:
    """And nothing else: not what lies in it, not what it lies in."""
    chattr("+i", raw / path)
    before = frozen(raw)
    assert sum(before.values()) == 1
    seal(store, RAW, ROOT)
    assert all(frozen(raw).values())
    assert unseal(store, RAW, ROOT, "to see")["state"] == "open"
    assert frozen(raw) == before
    assert covering(store, RAW) is None


@pytest.mark.parametrize("content", [b"", b"[]", b"{}"])
@pytest.mark.parametrize("verb", ["seal", "unseal", "verify", "resume", "repair"])
def test_a_damaged_record_is_refused_in_words(
    store: Store, raw: Path, verb: str, content: bytes
) -> None:
    """It goes on being sealed; an error of Python's would tell nobody what to do."""
    seal(store, RAW, ROOT)
    (records(raw) / "raw.json").write_bytes(content)
    verbs: dict[str, Callable[[], object]] = {
        "seal": lambda: seal(store, RAW, ROOT),
        "unseal": lambda: unseal(store, RAW, ROOT, "damaged"),
        "verify": lambda: verify(store, RAW, ROOT),
        "resume": lambda: resume(store, RAW, ROOT),
        "repair": lambda: repair(store, RAW, ROOT),
    }
    with pytest.raises(ModamaError, match="raw"):
        verbs[verb]()
    assert covering(store, RAW) == RAW
    assert all(frozen(raw).values())


# ---- retention -----------------------------------------------------------------------------------


def test_retention_can_only_be_extended(store: Store, raw: Path) -> None:
    assert seal(store, RAW, ROOT, Wish(until=date(2100, 1, 1)))["until"] == "2100-01-01"
    assert record_of(raw)["until"] == "2100-01-01"
    with pytest.raises(NotPermitted, match="only be extended"):
        seal(store, RAW, ROOT, Wish(until=date(2099, 12, 31)))
    assert record_of(raw)["until"] == "2100-01-01"
    assert seal(store, RAW, ROOT, Wish(until=date(2100, 1, 2)))["until"] == "2100-01-02"
    with pytest.raises(NotPermitted, match="2100-01-02"):
        unseal(store, RAW, ROOT, "too early")
    is_sealed(store, raw)


def test_retention_is_over_on_its_day(store: Store, raw: Path) -> None:
    seal(store, RAW, ROOT)
    change_record(raw, until=str(datetime.now(UTC).date()))
    assert unseal(store, RAW, ROOT, "over")["state"] == "open"


def test_a_retention_that_is_over_already_is_refused_at_once(store: Store, raw: Path) -> None:
    with pytest.raises(NotPermitted, match="passed already"):
        seal(store, RAW, ROOT, Wish(until=date(2020, 1, 1)))
    is_open(store, raw)
    assert not records(raw).exists()


def test_a_hold_has_to_be_lifted_by_a_steward_with_a_reason(store: Store, raw: Path) -> None:
    os.chown(raw, OWNER.uid, OWNER.gid)
    seal(store, RAW, OWNER, Wish(hold=True, reason="case 12"))
    assert record_of(raw)["hold"] is True
    with pytest.raises(NotPermitted, match="--no-hold"):
        unseal(store, RAW, ROOT, "held")
    with pytest.raises(NotPermitted):
        seal(store, RAW, OWNER, Wish(hold=False, reason="mine"))
    with pytest.raises(InvalidRequest, match="reason"):
        seal(store, RAW, ROOT, Wish(hold=False, reason=" "))
    assert record_of(raw)["hold"] is True
    assert seal(store, RAW, OWNER)["hold"] is True, "nothing wished for, nothing changed"
    assert seal(store, RAW, ROOT, Wish(hold=False, reason="case closed"))["hold"] is False
    unseal(store, RAW, ROOT, "over")
    is_open(store, raw)


def test_every_change_of_the_retention_is_in_the_history(store: Store, raw: Path) -> None:
    seal(store, RAW, ROOT)
    seal(store, RAW, ROOT, Wish(until=date(2100, 1, 1)))
    seal(store, RAW, ROOT, Wish(until=date(2101, 1, 1)))
    seal(store, RAW, ROOT, Wish(until=date(2101, 1, 1)))  # no change
    seal(store, RAW, ROOT, Wish(hold=True, reason="case 12"))
    seal(store, RAW, ROOT, Wish(hold=False, reason="case closed"))
    kinds = [event["event"] for event in history(raw)]
    assert kinds == ["sealed"] + ["retention"] * 4
    until, extended, held, lifted = history(raw)[1:]
    assert (until["until"], extended["until"]) == ("2100-01-01", "2101-01-01")
    assert (held["hold"], held["reason"]) == (True, "case 12")
    assert (lifted["hold"], lifted["reason"], lifted["by"]) == (False, "case closed", "root")


def test_what_a_seal_is_made_with_is_in_the_history(store: Store, raw: Path) -> None:
    seal(store, RAW, ROOT, Wish(until=date(2100, 1, 1), hold=True, reason="case 12"))
    assert any(event.get("until") == "2100-01-01" for event in history(raw))
    assert any(event.get("hold") and event.get("reason") == "case 12" for event in history(raw))


# ---- flags that were lost ------------------------------------------------------------------------


def test_repair_sets_the_flags_that_are_missing(store: Store, raw: Path) -> None:
    record = seal(store, RAW, ROOT)
    assert repair(store, RAW, ROOT) == record | {"repaired": 0}
    chattr("-i", raw / "large.mrc")
    chattr("-i", raw / "frames")
    assert repair(store, RAW, ROOT)["repaired"] == 2
    is_sealed(store, raw)
    count = len(frozen(raw))
    thaw(raw)
    os.removexattr(raw, SEAL_XATTR)
    assert covering(store, RAW) == RAW, "a missing flag never means open"
    assert repair(store, RAW, ROOT)["repaired"] == count
    is_sealed(store, raw)
    assert record_of(raw) == record


def test_repair_of_what_lost_its_mark_only(store: Store, raw: Path) -> None:
    seal(store, RAW, ROOT)
    chattr("-i", raw)
    os.setxattr(raw, SEAL_XATTR, b"another")
    chattr("+i", raw)
    repair(store, RAW, ROOT)
    is_sealed(store, raw)


def test_repair_sets_flags_where_there_were_none(
    store: Store, raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that was moved to a file system with flags."""
    with monkeypatch.context() as patch:
        patch.setattr(sealing.immutable, "is_supported", lambda _fd: False)
        record = seal(store, RAW, ROOT)
        assert record["immutable_flag"] is False
        assert not any(frozen(raw).values())
        assert verify(store, RAW, ROOT)["ok"]
        with pytest.raises(InvalidRequest, match="without immutable flags"):
            repair(store, RAW, ROOT)
    assert repair(store, RAW, ROOT)["repaired"] == len(frozen(raw))
    assert record_of(raw) == record | {"immutable_flag": True}
    unseal(store, RAW, ROOT, "to see")
    is_open(store, raw)


def test_what_is_sealed_without_flags_can_be_opened(
    store: Store, raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sealing.immutable, "is_supported", lambda _fd: False)
    seal(store, RAW, ROOT)
    unseal(store, RAW, ROOT, "to see")
    is_open(store, raw)
    with pytest.raises(OSError, match="No space"):
        seal(store, RAW, ROOT, progress=Steps({"hashing": no_space}))
    is_open(store, raw)


def test_who_may_repair(store: Store, raw: Path) -> None:
    os.chown(raw, OWNER.uid, OWNER.gid)
    with pytest.raises(InvalidRequest, match="not sealed"):
        repair(store, RAW, ROOT)
    seal(store, RAW, OWNER)
    with pytest.raises(NotPermitted):
        repair(store, RAW, OWNER)
    change_record(raw, state="unsealing")
    with pytest.raises(InvalidRequest, match="not sealed"):
        repair(store, RAW, ROOT)


def test_a_directory_that_is_moved_away_at_the_gate_is_not_sealed_under_its_old_name(
    store: Store, raw: Path
) -> None:
    """Another one has its name by then: what says sealed would be another one than was frozen."""

    class Moving(Progress):
        def step(self, name: str, *, once: bool = True) -> None:
            if name == "gate":
                raw.rename(raw.with_name("elsewhere"))
                raw.mkdir()
            super().step(name, once=once)

    with pytest.raises(Busy, match="moved away"):
        seal(store, RAW, ROOT, progress=Moving())
    assert covering(store, RAW) is None
    for path in (raw, raw.with_name("elsewhere")):
        assert not get_flags(path) & FS_IMMUTABLE_FL


@pytest.mark.parametrize("what", [KeyboardInterrupt, ValueError])
def test_whatever_ends_it_leaves_it_open(
    store: Store, raw: Path, what: type[BaseException]
) -> None:
    """Ctrl-C, where no daemon does it; a defect of ours."""

    class Ending(Progress):
        def step(self, name: str, *, once: bool = True) -> None:
            super().step(name, once=once)
            if name == "hashing":
                raise what

    with pytest.raises(what):
        seal(store, RAW, ROOT, progress=Ending())
    assert covering(store, RAW) is None
    assert not get_flags(raw) & FS_IMMUTABLE_FL
