"""Seals on the store: what is refused, what is written, and what is left when it fails."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from modamafs.errors import Busy, InvalidRequest, ModamaError, NotPermitted
from modamafs.model import Caller
from modamafs.store import seals
from modamafs.store.backing import Store
from modamafs.store.seals import Seals, covering, rebuild_list, seal, unseal
from tests.support.users import in_child

ROOT = Caller(0, 0)
OWNER = Caller(4001, 4001)
OTHER = Caller(4002, 4002)
RAW = b"area/project/session/raw"


@pytest.fixture
def top() -> Iterator[Path]:
    """A store's directory, on a file system that has file handles."""
    with tempfile.TemporaryDirectory(prefix="modamafs-unit-", dir="/var/tmp") as directory:
        yield Path(directory)


@pytest.fixture
def store(top: Path) -> Iterator[Store]:
    descriptors = len(os.listdir("/proc/self/fd"))
    with Store(top) as opened:
        yield opened
    assert len(os.listdir("/proc/self/fd")) == descriptors, "no descriptor is left"


@pytest.fixture
def raw(top: Path) -> Path:
    """A session's directory with a bit of everything."""
    path = top / os.fsdecode(RAW)
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


@contextlib.contextmanager
def opened(path: Path, flags: int = os.O_PATH | os.O_NOFOLLOW) -> Iterator[int]:
    fd = os.open(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


def records(raw: Path) -> Path:
    return raw.parent / ".modama" / "seals"


def history(raw: Path) -> list[dict[str, Any]]:
    path = raw.parent / ".modama" / "history.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


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
    assert Seals(store).sealed_roots() == []
    with opened(raw) as fd, opened(raw.parents[1]) as above:
        assert not Seals(store).covers(fd)
        assert not Seals(store).below(above, raw.parent.name.encode())
    if records(raw).exists():
        assert os.listdir(records(raw)) == []


# ---- sealing -------------------------------------------------------------------------------------


def test_a_seal_writes_the_record_and_the_manifest(store: Store, raw: Path) -> None:
    record = seal(store, RAW, ROOT)
    assert json.loads((records(raw) / "raw.json").read_text()) == record
    assert sorted(os.listdir(records(raw))) == ["raw.B3SUMS", "raw.json"]
    assert record["path"] == RAW.decode()
    assert record["state"] == "sealed"
    assert record["sealed_by"] == "root"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", record["sealed_at"])
    assert record["tool"].startswith("modamafs ")
    checked = check((records(raw) / "raw.B3SUMS").read_bytes(), raw)
    files = [path for path in raw.rglob("*") if stat.S_ISREG(path.lstat().st_mode)]
    assert set(checked) == {str(path.relative_to(raw)) for path in files}
    assert len(files) == 8
    assert record["file_count"] == 8
    assert record["size_bytes"] == sum(path.stat().st_size for path in files)
    assert re.fullmatch(r"blake3:[0-9a-f]{64}", record["content_hash"])
    (event,) = history(raw)
    assert event == {"event": "sealed", **record}
    assert Seals(store).sealed_roots() == [RAW]
    assert os.listdir(raw).count(".modama") == 0, "nothing is written into what is sealed"


def test_the_manifest_is_sorted(store: Store, raw: Path) -> None:
    seal(store, RAW, ROOT)
    lines = (records(raw) / "raw.B3SUMS").read_bytes().splitlines()
    names = [re.sub(rb"^\\?[0-9a-f]{64}  ", b"", line) for line in lines]
    assert names == sorted(names)


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
    (raw / "large.mrc").write_bytes(b"changed behind our back")
    assert seal(store, RAW, ROOT) == first
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert len(history(raw)) == 1


def test_a_seal_that_was_interrupted_is_made_again(store: Store, raw: Path) -> None:
    seal(store, RAW, ROOT)
    path = records(raw) / "raw.json"
    interrupted = json.loads(path.read_text()) | {"state": "sealing", "content_hash": None}
    path.write_text(json.dumps(interrupted))
    assert covering(store, RAW) == RAW, "until then it is as good as sealed"
    assert seal(store, RAW, ROOT)["state"] == "sealed"


def test_the_record_is_there_before_anything_is_looked_at(
    store: Store, raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[tuple[str, str]] = []

    def note(name: str) -> None:
        function = getattr(seals, name)

        def noting(*arguments: Any) -> Any:
            steps.append((name, json.loads((records(raw) / "raw.json").read_text())["state"]))
            assert covering(store, RAW) == RAW
            assert Seals(store).sealed_roots() == [RAW]
            return function(*arguments)

        monkeypatch.setattr(seals, name, noting)

    note("_refuse_writers_and_outside_links")
    note("_manifest")
    seal(store, RAW, ROOT)
    assert steps == [("_refuse_writers_and_outside_links", "sealing"), ("_manifest", "sealing")]


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
    name = b"n" * (seals.LONGEST_NAME_BYTES + more)
    (top / "area" / name.decode()).mkdir(parents=True)
    with Store(top) as store:
        with pytest.raises(InvalidRequest, match="too long") if more else contextlib.nullcontext():
            seal(store, b"area/" + name, ROOT)
        assert (covering(store, b"area/" + name) is None) is bool(more)


def test_a_name_that_is_too_long_leaves_no_descriptor(top: Path) -> None:
    name = b"n" * (seals.LONGEST_NAME_BYTES + 1)
    (top / "area" / name.decode()).mkdir(parents=True)

    def count_left() -> int:
        with Store(top) as store:
            before = len(os.listdir("/proc/self/fd"))
            with pytest.raises(InvalidRequest, match="too long"):
                seal(store, b"area/" + name, ROOT)
            return len(os.listdir("/proc/self/fd")) - before

    assert in_child(count_left) == 0


def test_only_the_owner_or_root_can_seal(store: Store, raw: Path) -> None:
    os.chown(raw, OWNER.uid, OWNER.gid)
    with pytest.raises(NotPermitted):
        seal(store, RAW, OTHER)
    is_open(store, raw)
    assert seal(store, RAW, OWNER)["sealed_by"] == "4001"


def test_what_lies_in_something_sealed_is_not_sealed_again(store: Store, raw: Path) -> None:
    seal(store, RAW, ROOT)
    with pytest.raises(InvalidRequest, match=re.escape(RAW.decode())):
        seal(store, RAW + b"/frames", ROOT)
    assert not (raw / ".modama").exists()


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


def test_a_name_outside_is_in_the_way(store: Store, raw: Path, top: Path) -> None:
    (raw / "inside").hardlink_to(raw / "large.mrc")
    (top / "outside").hardlink_to(raw / "large.mrc")
    with pytest.raises(Busy, match="another name outside"):
        seal(store, RAW, ROOT)
    is_open(store, raw)
    (top / "outside").unlink()
    assert seal(store, RAW, ROOT)["file_count"] == 9, "two names inside are fine"


# ---- when writing fails --------------------------------------------------------------------------


def test_a_full_disk_leaves_it_open(store: Store, raw: Path) -> None:
    """RLIMIT_FSIZE: the record fits, the manifest does not."""
    for number in range(60):
        (raw / f"{number:04}").touch()

    code = f"""if True:
        import resource, signal
        from pathlib import Path
        from modamafs.model import Caller
        from modamafs.store.backing import Store
        from modamafs.store.seals import seal
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


@pytest.mark.parametrize(
    ("function", "number"),
    [
        ("write_record", 0),  # "sealing"
        ("write_record", 1),  # the manifest
        ("append_line", 0),
        ("write_record", 2),  # "sealed"
        ("_hash_file", 3),
        ("_is_open_for_writing", 2),
    ],
)
def test_a_step_that_fails_leaves_it_open(
    store: Store, raw: Path, monkeypatch: pytest.MonkeyPatch, function: str, number: int
) -> None:
    original, count = getattr(seals, function), iter(range(100))

    def failing(*arguments: Any) -> Any:
        if next(count) == number:
            raise OSError(28, "No space left on device")
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(seals, function, failing)
        with pytest.raises(OSError, match="No space"):
            seal(store, RAW, ROOT)
    is_open(store, raw)
    assert history(raw) == []
    assert seal(store, RAW, ROOT)["state"] == "sealed"


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


# ---- two at once ---------------------------------------------------------------------------------


def test_two_do_not_seal_one_directory_at_the_same_time(
    store: Store, raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = seals._manifest
    seconds: list[str | None] = []

    def meanwhile(place: Any) -> Any:
        if not seconds:
            seconds.append("not yet")
            try:
                seconds.append(seal(store, RAW, ROOT)["id"])
            except ModamaError:
                seconds.append(None)
        return manifest(place)

    monkeypatch.setattr(seals, "_manifest", meanwhile)
    first = seal(store, RAW, ROOT)
    assert seconds[-1] in (None, first["id"])
    assert len(history(raw)) == 1


@pytest.mark.usefixtures("raw")
def test_what_is_unsealed_meanwhile_does_not_end_up_sealed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, outcome = seals._manifest, []

    def meanwhile(place: Any) -> Any:
        with contextlib.suppress(ModamaError):
            outcome.append(unseal(store, RAW, ROOT, "now")["state"])
        return manifest(place)

    monkeypatch.setattr(seals, "_manifest", meanwhile)
    with contextlib.suppress(ModamaError, OSError):
        outcome.append(seal(store, RAW, ROOT)["state"])
    assert outcome in (["open"], ["sealed"]), "one of both"
    assert (covering(store, RAW) is None) is (outcome == ["open"])


# ---- unsealing -----------------------------------------------------------------------------------


def test_unseal_opens_and_keeps_the_history(store: Store, raw: Path) -> None:
    record = seal(store, RAW, ROOT)
    event = unseal(store, RAW, ROOT, "wrong voltage, ticket 7")
    assert event["state"] == "open"
    assert event["id"] == record["id"]
    is_open(store, raw)
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
    assert covering(store, RAW) == RAW
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
    path = records(raw) / "raw.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"state": "sealing"}))
    unseal(store, RAW, ROOT, "interrupted")
    is_open(store, raw)


# ---- what is covered -----------------------------------------------------------------------------


def test_covers_by_descriptor(store: Store, raw: Path, top: Path) -> None:
    (raw.parent / "raw2").mkdir()
    (raw.parent / "raw2" / "file").touch()
    asking = Seals(store)
    inside = [raw, raw / "frames", raw / "frames" / "empty", raw / "large.mrc"]
    inside += [raw / "link", raw / "fifo"]
    outside = [top, top / "area", raw.parent, raw.parent / "raw2", raw.parent / "raw2" / "file"]
    for path in inside + outside:
        with opened(path) as fd:
            assert asking.covers(fd) is False
    seal(store, RAW, ROOT)
    for path, sealed in [*((path, True) for path in inside), *((path, False) for path in outside)]:
        with opened(path) as fd:
            assert asking.covers(fd) is sealed, path
    unseal(store, RAW, ROOT, "to see")
    for path in inside:
        with opened(path) as fd:
            assert asking.covers(fd) is False


def test_covers_asks_the_records_and_not_a_memory(store: Store, raw: Path) -> None:
    """Another mount, or another machine, has sealed it."""
    asking = Seals(store)
    with opened(raw / "large.mrc") as fd:
        assert not asking.covers(fd)
        records(raw).mkdir(parents=True)
        (records(raw) / "raw.json").write_text("{")
        assert asking.covers(fd), "in whatever state the record is"


@pytest.mark.usefixtures("raw")
def test_of_what_has_no_path_in_the_store_nothing_can_be_told(store: Store) -> None:
    with tempfile.TemporaryFile(dir="/var/tmp") as elsewhere:
        assert Seals(store).covers(elsewhere.fileno()) is None
    assert not Seals(store).any()
    seal(store, RAW, ROOT)
    assert Seals(store).any()


def deepen(directory: Path, levels: int) -> int:
    """A descriptor of a directory so many levels below, with names of 200 bytes."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(levels):
        os.mkdir("n" * 200, dir_fd=fd)
        below = os.open("n" * 200, os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
        os.close(fd)
        fd = below
    return fd


def test_paths_longer_than_path_max(store: Store, raw: Path) -> None:
    fd = deepen(raw / "frames" / "empty", 25)
    try:
        asking = Seals(store)
        with pytest.raises(OSError, match="too long"):
            os.readlink(f"/proc/self/fd/{fd}")
        assert not asking.covers(fd)
        seal(store, RAW, ROOT)
        assert asking.covers(fd)
        unseal(store, RAW, ROOT, "to see")
        assert not asking.covers(fd)
    finally:
        os.close(fd)
        subprocess.run(["rm", "-rf", str(raw / "frames" / "empty")], check=True)


def test_a_directory_near_path_max_is_sealed_or_refused() -> None:
    """The record's path is 19 bytes longer, and may be too long where the directory's is not."""
    top = Path(f"/var/tmp/{os.getpid() % 100000}")
    base = top / "area"
    base.mkdir(parents=True)
    fd = deepen(base, (4095 - len(str(base)) - 21) // 201)
    above = os.readlink(f"/proc/self/fd/{fd}")
    name = "m" * (4095 - len(above) - 1)
    os.mkdir(name, dir_fd=fd)
    below = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
    relative = f"{above}/{name}".removeprefix(f"{top}/").encode()
    try:
        with Store(top) as store:
            sealed = False
            with contextlib.suppress(InvalidRequest):
                sealed = seal(store, relative, ROOT)["state"] == "sealed"
            assert Seals(store).covers(below) is sealed
    finally:
        os.close(below)
        os.close(fd)
        subprocess.run(["rm", "-rf", str(top)], check=True)


def test_below(store: Store, raw: Path, top: Path) -> None:
    (top / "area" / "proj").mkdir()
    (raw / "deep").mkdir()
    asking = Seals(store)

    def below(path: Path) -> bool:
        with opened(path.parent) as fd:
            return asking.below(fd, os.fsencode(path.name))

    everything = [top / "area", top / "area" / "project", raw.parent, raw, raw / "deep"]
    assert not any(below(path) for path in everything)
    seal(store, RAW, ROOT)
    assert [below(path) for path in everything] == [True, True, True, True, False]
    assert not below(top / "area" / "proj"), "a name that is only the beginning of another"
    unseal(store, RAW, ROOT, "to see")
    assert not any(below(path) for path in everything)


def test_the_list_follows_every_change(store: Store, top: Path) -> None:
    asking = Seals(store)
    names = [b"area/%d" % number for number in range(8)]
    for name in names:
        (top / os.fsdecode(name)).mkdir(parents=True)
    for count, name in enumerate(names, 1):
        seal(store, name, ROOT)
        assert sorted(asking.sealed_roots()) == names[:count]
    for count, name in enumerate(names, 1):
        unseal(store, name, ROOT, "to see")
        assert sorted(asking.sealed_roots()) == names[count:]


def test_an_entry_of_the_list_without_its_record_is_not_believed(store: Store, raw: Path) -> None:
    """A crash, after the record was removed and before the list was told (or the other way)."""
    seal(store, RAW, ROOT)
    (records(raw) / "raw.json").unlink()
    with opened(raw.parents[1]) as fd:
        assert not Seals(store).below(fd, raw.parent.name.encode())
    assert Seals(store).sealed_roots() == []


def test_the_list_can_be_rebuilt(store: Store, raw: Path, top: Path) -> None:
    other = top / "area" / os.fsdecode("größe".encode()) / "raw"
    other.mkdir(parents=True)
    roots = [RAW, "area/größe/raw".encode()]
    for root in roots:
        seal(store, root, ROOT)
    listed = {path.name: path.readlink() for path in (top / ".modama" / "sealed").iterdir()}
    Seals(store).search(write=True)
    for path in (top / ".modama" / "sealed").iterdir():
        path.unlink()
    (top / ".modama" / "sealed").rmdir()
    asking = Seals(store)
    assert asking.sealed_roots() == []
    with opened(top) as fd:
        assert asking.below(fd, b"area"), "without the list, by looking"
    asking.search(write=False)
    assert sorted(asking.sealed_roots()) == sorted(roots)
    assert not (top / ".modama" / "sealed").exists()
    asking.search(write=True)
    assert sorted(Seals(store).sealed_roots()) == sorted(roots)
    again = {path.name: path.readlink() for path in (top / ".modama" / "sealed").iterdir()}
    assert again == listed
    rebuild_list(store, [])
    for root in roots:
        unseal(store, root, ROOT, "to see")
    assert Seals(store).sealed_roots() == []
    assert raw.exists()


def test_rebuilding_without_seals_is_nothing(store: Store, raw: Path, top: Path) -> None:
    Seals(store).search(write=True)
    assert not (top / ".modama").exists()
    is_open(store, raw)


@pytest.mark.parametrize("write", [True, False])
def test_a_list_that_is_lost_is_found_again(
    store: Store, raw: Path, top: Path, write: bool
) -> None:
    seal(store, RAW, ROOT)
    shutil.rmtree(top / ".modama")
    asking = Seals(store)
    with opened(raw.parents[1]) as above, opened(raw) as fd:
        assert asking.below(above, raw.parent.name.encode()), "before it is found, it looks itself"
        assert not asking.below(fd, b"frames")
        asking.search(write=write)
        assert asking.below(above, raw.parent.name.encode())
        assert not asking.below(fd, b"frames")
    assert asking.sealed_roots() == [RAW]
    assert (top / ".modama").exists() is write


def test_the_next_seal_makes_a_lost_list_complete(store: Store, raw: Path, top: Path) -> None:
    seal(store, RAW, ROOT)
    shutil.rmtree(top / ".modama")
    (top / "area" / "third").mkdir()
    seal(store, b"area/third", ROOT)
    assert sorted(Seals(store).sealed_roots()) == [RAW, b"area/third"]
    assert raw.exists()


def test_searching_survives_any_depth(store: Store, raw: Path, top: Path) -> None:
    """Whoever may write can make a tree like that."""
    fd = os.open(raw / "frames" / "empty", os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(3000):
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    try:
        asking = Seals(store)
        with opened(top / "area") as area:
            assert not asking.below(area, b"project")
            asking.search(write=True)
            assert not asking.below(area, b"project")
    finally:
        subprocess.run(["rm", "-rf", str(raw / "frames" / "empty")], check=True)
