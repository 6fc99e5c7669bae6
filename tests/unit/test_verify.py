"""Proving a sealed tree: whatever has become of it is named, and nothing else."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from modamafs.errors import InvalidRequest, NotPermitted
from modamafs.model import Caller
from modamafs.sealing import hashing
from modamafs.sealing.hashing import SMALL_BYTES, Hasher
from modamafs.sealing.place import Place
from modamafs.sealing.progress import Progress
from modamafs.sealing.seal import seal, unseal
from modamafs.sealing.verify import last_verified, verify
from modamafs.store import records as records_module
from modamafs.store.backing import Store
from modamafs.store.seals import covering
from tests.support.descriptors import none_left
from tests.support.targets import Workshop

ROOT = Caller(0, 0)
OWNER = Caller(4001, 4001)
OTHER = Caller(4002, 4002)
RAW = b"area/project/session/raw"
KINDS = ("missing", "added", "changed", "damaged", "manifest")


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
def raw(store: Store, top: Path) -> Path:
    """A sealed directory that has lost its flags, so that anybody can damage it."""
    path = fill(top / os.fsdecode(RAW))
    seal(store, RAW, ROOT)
    thaw(path)
    return path


def fill(path: Path) -> Path:
    (path / "frames" / "empty").mkdir(parents=True)
    (path / "frames" / "1.tif").write_bytes(b"first")
    (path / "frames" / "2.tif").write_bytes(b"second")
    (path / "frames.txt").write_bytes(b"frames")
    (path / "large.mrc").write_bytes(bytes(range(256)) * (SMALL_BYTES // 256 + 8))
    (path / "nothing").touch()
    (path / "new\nline").write_bytes(b"n")
    (path / "back\\slash").write_bytes(b"b")
    (path / "link").symlink_to("frames/1.tif")
    os.mkfifo(path / "fifo")
    return path


def thaw(directory: Path) -> None:
    subprocess.run(["chattr", "-R", "-f", "-i", str(directory)], check=False)


def records(raw: Path) -> Path:
    return raw.parent / ".modama" / "seals"


def found(result: dict[str, Any]) -> dict[str, list[str]]:
    """What was found, without what is empty."""
    return {kind: result[kind] for kind in KINDS if result[kind]}


def keeping_times(path: Path, change: Callable[[], object]) -> None:
    """Do something of which the times of a directory or file say nothing."""
    before = path.stat()
    change()
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


# ---- intact --------------------------------------------------------------------------------------


def test_what_is_intact_is_proved(store: Store, raw: Path) -> None:
    sealed = json.loads((records(raw) / "raw.json").read_text())
    result = verify(store, RAW, ROOT)
    assert result["ok"] is True
    assert found(result) == {}
    assert result["path"] == RAW.decode()
    assert result["content_hash"] == sealed["content_hash"]
    assert result["content_intact"] is True
    assert (result["file_count"], result["size_bytes"]) == (
        sealed["file_count"],
        sealed["size_bytes"],
    )
    assert result["verified_by"] == "root"


def test_it_is_the_same_on_every_file_system(
    workshop: Workshop, new_name: Callable[[], str]
) -> None:
    for fstype in ("ext4", "xfs", "btrfs"):
        directory = workshop.image(fstype).root / f"verify-{new_name()}"
        directory.mkdir()
        raw = fill(directory / os.fsdecode(RAW))
        try:
            with Store(directory) as store:
                seal(store, RAW, ROOT)
                assert verify(store, RAW, ROOT)["ok"], fstype
                thaw(raw)
                keeping_times(raw / "large.mrc", lambda raw=raw: flip(raw / "large.mrc"))
                assert found(verify(store, RAW, ROOT)) == {"damaged": ["large.mrc"]}
        finally:
            thaw(directory)
            shutil.rmtree(directory)


# ---- files that are not what they were -----------------------------------------------------------


def flip(path: Path, position: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    with path.open("r+b") as file:
        file.write(content)


@pytest.mark.parametrize("position", [0, SMALL_BYTES, -1])
def test_a_flipped_bit_is_damage(store: Store, raw: Path, position: int) -> None:
    path = raw / "large.mrc"
    keeping_times(path, lambda: flip(path, position))
    result = verify(store, RAW, ROOT)
    assert result["ok"] is False
    assert found(result) == {"damaged": ["large.mrc"]}
    assert result["content_intact"] is False


def test_every_damaged_file_is_named(store: Store, raw: Path) -> None:
    names = ["back\\slash", "frames.txt", "frames/1.tif", "frames/2.tif", "new\nline"]
    for name in names:
        keeping_times(raw / name, lambda name=name: flip(raw / name))
    assert found(verify(store, RAW, ROOT)) == {"damaged": names}


def test_a_file_that_can_not_be_read_is_damaged(
    store: Store, raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = Hasher.digest

    def broken(self: Hasher, fd: int, size_bytes: int) -> tuple[str, int]:
        if os.readlink(f"/proc/self/fd/{fd}").endswith("/1.tif"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return digest(self, fd, size_bytes)

    monkeypatch.setattr(Hasher, "digest", broken)
    result = verify(store, RAW, ROOT)
    assert (raw / "frames" / "1.tif").exists()
    assert found(result) == {"damaged": ["frames/1.tif"]}
    assert result["ok"] is result["content_intact"] is False


def replace(path: Path, make: Callable[[Path], object]) -> None:
    """Put something of another type in a name's place."""
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    make(path)


def link_elsewhere(raw: Path) -> None:
    before = (raw / "link").lstat()
    replace(raw / "link", lambda path: path.symlink_to("frames/2.tif"))
    os.utime(raw / "link", ns=(before.st_atime_ns, before.st_mtime_ns), follow_symlinks=False)


CHANGED: dict[str, tuple[str, Callable[[Path], object]]] = {
    "other bytes": ("large.mrc", lambda raw: flip(raw / "large.mrc")),
    "longer": ("frames/1.tif", lambda raw: (raw / "frames/1.tif").write_bytes(b"first!")),
    "shorter": (
        "frames/1.tif",
        lambda raw: keeping_times(
            raw / "frames/1.tif", lambda: os.truncate(raw / "frames/1.tif", 4)
        ),
    ),
    "emptied": ("large.mrc", lambda raw: os.truncate(raw / "large.mrc", 0)),
    "a new time": ("nothing", lambda raw: os.utime(raw / "nothing", ns=(0, 1))),
    "a mode": ("nothing", lambda raw: (raw / "nothing").chmod(0o600)),
    "an owner": ("nothing", lambda raw: os.chown(raw / "nothing", 4001, -1)),
    "a group": ("nothing", lambda raw: os.chown(raw / "nothing", -1, 4001)),
    "an attribute": ("nothing", lambda raw: os.setxattr(raw / "nothing", "user.x", b"1")),
    "an ACL": (
        "nothing",
        lambda raw: subprocess.run(["setfacl", "-m", "u:4001:r", raw / "nothing"], check=True),
    ),
    "a target": ("link", link_elsewhere),
    "a directory's mode": ("frames", lambda raw: (raw / "frames").chmod(0o700)),
    "a directory's time": ("frames/empty", lambda raw: os.utime(raw / "frames/empty", ns=(0, 1))),
    "a directory's attribute": ("frames", lambda raw: os.setxattr(raw / "frames", "user.x", b"")),
    "a pipe's mode": ("fifo", lambda raw: (raw / "fifo").chmod(0o600)),
    "a link's owner": ("link", lambda raw: os.lchown(raw / "link", 4001, 4001)),
    "its own mode": (".", lambda raw: raw.chmod(0o700)),
    "its own attribute": (".", lambda raw: os.setxattr(raw, "user.x", b"1")),
    "a pipe for a file": ("nothing", lambda raw: replace(raw / "nothing", os.mkfifo)),
    "a link for a file": (
        "nothing",
        lambda raw: replace(raw / "nothing", lambda path: path.symlink_to("/etc/passwd")),
    ),
    "a file for a link": ("link", lambda raw: replace(raw / "link", Path.touch)),
    "a file for a pipe": ("fifo", lambda raw: replace(raw / "fifo", Path.touch)),
    "a file for a directory": (
        "frames/empty",
        lambda raw: keeping_times(
            raw / "frames", lambda: replace(raw / "frames/empty", Path.touch)
        ),
    ),
    "a directory for a file": ("nothing", lambda raw: replace(raw / "nothing", Path.mkdir)),
}


@pytest.mark.parametrize("change", CHANGED)
def test_what_was_changed_is_said_to_be(store: Store, raw: Path, change: str) -> None:
    name, do = CHANGED[change]
    if name == ".":
        do(raw)
    else:
        keeping_times(raw, lambda: do(raw))
    result = verify(store, RAW, ROOT)
    assert result["ok"] is False
    assert found(result) == {"changed": [name]}


def test_attributes_alone_leave_the_content_intact(store: Store, raw: Path) -> None:
    (raw / "nothing").chmod(0o600)
    assert verify(store, RAW, ROOT)["content_intact"] is True
    flip(raw / "large.mrc")
    assert verify(store, RAW, ROOT)["content_intact"] is False


@pytest.mark.parametrize("name", ["frames", "frames.txt"])
def test_another_type_is_a_change_wherever_it_is_sorted(store: Store, raw: Path, name: str) -> None:
    """``frames.txt`` comes before what is in ``frames``, and after a file of that name."""
    make = Path.touch if name == "frames" else Path.mkdir
    keeping_times(raw, lambda: replace(raw / name, make))
    result = found(verify(store, RAW, ROOT))
    assert result.pop("changed") == [name]
    inside = ["frames/1.tif", "frames/2.tif", "frames/empty"]
    assert result == ({"missing": inside} if name == "frames" else {})


# ---- names that are not what they were -----------------------------------------------------------

REMOVED: dict[str, Callable[[Path], object]] = {
    "frames/1.tif": Path.unlink,
    "frames/empty": Path.rmdir,
    "link": Path.unlink,
    "fifo": Path.unlink,
    "nothing": Path.unlink,
    "new\nline": Path.unlink,
    "back\\slash": Path.unlink,
}


@pytest.mark.parametrize("name", REMOVED)
def test_what_is_missing_is_named(store: Store, raw: Path, name: str) -> None:
    keeping_times((raw / name).parent, lambda: REMOVED[name](raw / name))
    result = verify(store, RAW, ROOT)
    assert found(result) == {"missing": [name]}
    assert result["ok"] is result["content_intact"] is False


def test_a_directory_is_missing_with_all_that_was_in_it(store: Store, raw: Path) -> None:
    keeping_times(raw, lambda: shutil.rmtree(raw / "frames"))
    names = ["frames", "frames/1.tif", "frames/2.tif", "frames/empty"]
    assert found(verify(store, RAW, ROOT)) == {"missing": names}


def test_everything_can_be_missing(store: Store, raw: Path) -> None:
    def remove() -> None:
        for path in raw.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    keeping_times(raw, remove)
    result = verify(store, RAW, ROOT)
    assert set(found(result)) == {"missing"}
    assert len(result["missing"]) == 11


ADDED: dict[str, Callable[[Path], object]] = {
    "!first": Path.touch,
    "frames/1.tif~": Path.touch,
    "frames/1": Path.mkdir,
    "frames-": Path.mkdir,
    "zz": lambda path: path.symlink_to("x"),
    "zzz": os.mkfifo,
    ".hidden": Path.touch,
    ".modama.txt": Path.touch,
}


@pytest.mark.parametrize("name", ADDED)
def test_what_was_added_is_named(store: Store, raw: Path, name: str) -> None:
    keeping_times((raw / name).parent, lambda: ADDED[name](raw / name))
    result = verify(store, RAW, ROOT)
    assert found(result) == {"added": [name]}
    assert result["ok"] is result["content_intact"] is False


def test_a_new_name_is_one_that_is_missing_and_one_more(store: Store, raw: Path) -> None:
    keeping_times(raw, lambda: (raw / "frames").rename(raw / "pictures"))
    below = ["", "/1.tif", "/2.tif", "/empty"]
    assert found(verify(store, RAW, ROOT)) == {
        "missing": [f"frames{name}" for name in below],
        "added": [f"pictures{name}" for name in below],
    }


def test_many_things_at_once(store: Store, raw: Path) -> None:
    keeping_times(raw / "large.mrc", lambda: flip(raw / "large.mrc"))
    keeping_times(raw, (raw / "nothing").unlink)
    keeping_times(raw / "frames", (raw / "frames" / "3.tif").touch)
    (raw / "frames.txt").write_bytes(b"more frames")
    assert found(verify(store, RAW, ROOT)) == {
        "damaged": ["large.mrc"],
        "missing": ["nothing"],
        "added": ["frames/3.tif"],
        "changed": ["frames.txt"],
    }


PARTS = st.sampled_from(["a", "a.txt", "a-b", "a0", "b", "\n", "\udcff"])
TREES = st.dictionaries(
    st.lists(PARTS, min_size=1, max_size=3).map("/".join),
    st.sampled_from(["file", "other bytes", "other mode", "link", "other link"]),
    max_size=8,
)


def make_tree(directory: Path, wanted: dict[str, str]) -> dict[str, str]:
    """Make the leaves that are wanted, of equal times. What is there then, with its directories."""
    made: dict[str, str] = {}
    for name, kind in sorted(wanted.items()):
        above = [str(parent) for parent in Path(name).parents][:-1]
        if any(made.get(parent, "dir") != "dir" for parent in above) or name in made:
            continue
        made |= dict.fromkeys(above, "dir") | {name: kind}
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if "link" in kind:
            path.symlink_to(kind)
        else:
            path.write_bytes(b"1" if kind == "other bytes" else b"0")
            path.chmod(0o600 if kind == "other mode" else 0o644)
    for path in [*directory.rglob("*"), directory]:
        os.utime(path, ns=(0, 0), follow_symlinks=False)
    return made


@settings(max_examples=60, deadline=None)
@given(before=TREES, after=TREES, instead=st.booleans())
def test_whatever_was_done_is_said_and_nothing_else(
    before: dict[str, str], after: dict[str, str], instead: bool
) -> None:
    after = after if instead else before | after
    with tempfile.TemporaryDirectory(dir="/var/tmp") as top, Store(Path(top)) as store:
        directory = Path(top) / "area/raw"
        directory.mkdir(parents=True)
        old = make_tree(directory, before)
        seal(store, b"area/raw", ROOT)
        thaw(directory)
        for path in directory.iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        new = make_tree(directory, after)
        result = found(verify(store, b"area/raw", ROOT, remember=False))
    both = {name for name in old if name in new and old[name] != new[name]}
    damaged = {name for name in both if {old[name], new[name]} == {"file", "other bytes"}}
    expected = {
        "missing": set(old) - set(new),
        "added": set(new) - set(old),
        "changed": both - damaged,
        "damaged": damaged,
    }
    assert {kind: set(names) for kind, names in result.items()} == {
        kind: names for kind, names in expected.items() if names
    }


# ---- manifests that are not what they were -------------------------------------------------------


def swap_lines(content: bytes) -> bytes:
    lines = content.splitlines(keepends=True)
    lines[-1], lines[-2] = lines[-2], lines[-1]
    return b"".join(lines)


DAMAGED: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "cut in a line": lambda content: content[:-20],
    "cut after a line": lambda content: b"".join(content.splitlines(keepends=True)[:-1]),
    "half": lambda content: content[: len(content) // 2],
    "garbage": lambda _: b"\xff\x00 hello\n",
    "garbage in the middle": lambda content: content.replace(b"frames.txt", b"\n\xff\n", 1),
    "garbage at the end": lambda content: content + b"hello\n",
    "a line twice": lambda content: content + content.splitlines(keepends=True)[-1],
    "two lines swapped": swap_lines,
    "a name": lambda content: content.replace(b"frames.txt", b"frames.tx", 1),
    "CRLF": lambda content: content.replace(b"\n", b"\r\n"),
    "zeros": lambda content: bytes(len(content)),
}


@pytest.mark.parametrize("name", ["raw.B3SUMS", "raw.mtree"])
@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_manifest_proves_nothing(store: Store, raw: Path, name: str, damage: str) -> None:
    """And the content hash still says that the tree is what was sealed."""
    path = records(raw) / name
    path.write_bytes(DAMAGED[damage](path.read_bytes()))
    result = verify(store, RAW, ROOT)
    assert result["ok"] is False
    assert result["content_intact"] is True


@pytest.mark.parametrize("name", ["raw.B3SUMS", "raw.mtree"])
@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_manifest_is_not_taken_for_damaged_data(
    store: Store, raw: Path, name: str, damage: str
) -> None:
    path = records(raw) / name
    path.write_bytes(DAMAGED[damage](path.read_bytes()))
    result = verify(store, RAW, ROOT)
    assert result["manifest"], found(result)
    assert not result["damaged"]
    assert all("\n" not in words for words in result["manifest"])


@pytest.mark.parametrize("name", ["raw.B3SUMS", "raw.mtree"])
def test_a_missing_manifest_proves_nothing(store: Store, raw: Path, name: str) -> None:
    (records(raw) / name).unlink()
    result = verify(store, RAW, ROOT)
    assert found(result) == {"manifest": [f"{name}: No such file or directory"]}
    assert result["content_intact"] is True
    (records(raw) / name).symlink_to("/etc/passwd")
    assert list(found(verify(store, RAW, ROOT))) == ["manifest"]


def test_a_digest_of_another_file_is_found(store: Store, raw: Path) -> None:
    path = records(raw) / "raw.B3SUMS"
    good = blake3(b"first").hexdigest().encode()
    path.write_bytes(path.read_bytes().replace(good, blake3(b"other").hexdigest().encode()))
    result = verify(store, RAW, ROOT)
    assert result["ok"] is False
    assert result["content_intact"] is True


def test_a_forged_file_with_forged_manifests_is_found(store: Store, raw: Path) -> None:
    """All agree with each other, and not with the record."""
    path = raw / "frames" / "1.tif"
    keeping_times(path, lambda: path.write_bytes(b"forge"))
    manifest = records(raw) / "raw.B3SUMS"
    digests = [blake3(content).hexdigest().encode() for content in (b"first", b"forge")]
    manifest.write_bytes(manifest.read_bytes().replace(*digests))
    result = verify(store, RAW, ROOT)
    assert result["ok"] is result["content_intact"] is False
    assert list(found(result)) == ["manifest"]


def test_forged_attributes_with_a_forged_manifest_are_found(store: Store, raw: Path) -> None:
    (raw / "nothing").chmod(0o666)
    path = records(raw) / "raw.mtree"
    path.write_bytes(
        path.read_bytes().replace(
            b"./nothing type=file mode=0644", b"./nothing type=file mode=0666"
        )
    )
    result = verify(store, RAW, ROOT)
    assert list(found(result)) == ["manifest"]
    assert (result["ok"], result["content_intact"]) == (False, True)


def test_both_manifests_cut_alike_are_found(store: Store, raw: Path) -> None:
    """The last file is in neither of them."""
    for name, last in (("raw.B3SUMS", b"nothing\n"), ("raw.mtree", b"./nothing ")):
        path = records(raw) / name
        lines = path.read_bytes().splitlines(keepends=True)
        assert last in lines[-1]
        path.write_bytes(b"".join(lines[:-1]))
    result = verify(store, RAW, ROOT)
    assert result["ok"] is False
    assert result["content_intact"] is True


# ---- what is remembered --------------------------------------------------------------------------


def history(raw: Path) -> list[dict[str, Any]]:
    lines = (raw.parent / ".modama" / "history.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def remembered(store: Store) -> dict[str, Any] | None:
    with Place(store, RAW) as place:
        return last_verified(place)


def test_the_outcome_is_remembered(store: Store, raw: Path) -> None:
    assert remembered(store) is None
    result = verify(store, RAW, ROOT)
    assert result.pop("remembered") is True
    assert remembered(store) == result
    keeping_times(raw / "large.mrc", lambda: flip(raw / "large.mrc"))
    worse = verify(store, RAW, ROOT)
    assert worse.pop("remembered") is True
    assert remembered(store) == worse
    assert worse["damaged"] == ["large.mrc"]
    assert covering(store, RAW) == RAW, "damaged, and still sealed"


def test_every_outcome_is_in_the_history(store: Store, raw: Path) -> None:
    verify(store, RAW, ROOT)
    keeping_times(raw / "large.mrc", lambda: flip(raw / "large.mrc"))
    verify(store, RAW, ROOT)
    events = [event for event in history(raw) if event["event"] == "verified"]
    assert [event["ok"] for event in events] == [True, False]
    assert {event["by"] for event in events} == {"root"}


def test_it_need_not_be_remembered(store: Store, raw: Path) -> None:
    before = history(raw)
    assert verify(store, RAW, ROOT, remember=False)["remembered"] is False
    assert remembered(store) is None
    assert history(raw) == before


def test_a_full_store_is_proved_all_the_same(
    store: Store, raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(records_module.os, "fsync", full)
    result = verify(store, RAW, ROOT)
    monkeypatch.undo()
    assert (result["ok"], result["remembered"]) == (True, False)
    assert remembered(store) is None
    assert sorted(os.listdir(records(raw))) == ["raw.B3SUMS", "raw.json", "raw.mtree"]


def test_what_was_remembered_goes_with_the_seal(store: Store, raw: Path) -> None:
    verify(store, RAW, ROOT)
    unseal(store, RAW, ROOT, "to see")
    assert os.listdir(records(raw)) == []
    seal(store, RAW, ROOT)
    assert remembered(store) is None


# ---- what is refused -----------------------------------------------------------------------------


def test_what_is_not_sealed_can_not_be_proved(store: Store, raw: Path) -> None:
    with pytest.raises(InvalidRequest, match="raw is what is sealed"):
        verify(store, RAW + b"/frames", ROOT)
    unseal(store, RAW, ROOT, "to see")
    with pytest.raises(InvalidRequest, match="is not sealed"):
        verify(store, RAW, ROOT)
    with pytest.raises(InvalidRequest, match="is not sealed"):
        verify(store, b"area/project", ROOT)
    assert not (raw / ".modama").exists()


@pytest.mark.parametrize("state", ["sealing", "unsealing"])
def test_what_is_under_way_can_not_be_proved(store: Store, raw: Path, state: str) -> None:
    path = records(raw) / "raw.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"state": state}))
    with pytest.raises(InvalidRequest, match=f"'{state}'.*--resume"):
        verify(store, RAW, ROOT)


def test_who_may_prove_it(store: Store, raw: Path) -> None:
    os.chown(raw.parent, OWNER.uid, OWNER.gid)
    with pytest.raises(NotPermitted):
        verify(store, RAW, OTHER)
    assert remembered(store) is None
    assert verify(store, RAW, OWNER)["verified_by"] == "4001"


# ---- how fast ------------------------------------------------------------------------------------


def test_no_faster_than_is_wished_for(
    store: Store, raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Clock:
        now_s = 0.0

        def monotonic(self) -> float:
            return self.now_s

        def sleep(self, seconds: float) -> None:
            self.now_s += seconds

    clock = Clock()
    monkeypatch.setattr(hashing, "time", clock)
    size_bytes = verify(store, RAW, ROOT, size_rate := 1000.0)["size_bytes"]
    assert clock.now_s == pytest.approx(size_bytes / size_rate)
    assert raw.exists()


def test_progress_is_told(store: Store, raw: Path) -> None:
    told: list[dict[str, Any]] = []
    progress = Progress(lambda known: told.append(dict(known)))
    result = verify(store, RAW, ROOT, progress=progress)
    assert told[0]["step"] == "verifying"
    assert told[0]["size_bytes"] == result["size_bytes"]
    assert progress.known["done_bytes"] == result["size_bytes"]
    assert progress.known["done_files"] == progress.known["file_count"] == result["file_count"]
    assert raw.exists()
