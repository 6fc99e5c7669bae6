"""Projects, sessions, seals and metadata are what their records say, whatever these are."""

from __future__ import annotations

import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from modamafs.catalog import FileMetadata, Measured
from modamafs.extraction import cache
from modamafs.index import records
from tests.index.life import BROKEN, PROJECT, SESSION
from tests.index.support import Scene, reconcile


def metadata(scene: Scene, session: Path, path: str, **values: Any) -> Path:
    """The record that the extraction would write of a file."""
    found = FileMetadata(
        path=path,
        size_bytes=1,
        mtime_ns=1,
        reader="test",
        values={key: Measured(value=value, unit="keV") for key, value in values.items()},
    )
    fd = os.open(session, os.O_RDONLY)
    cache.write(fd, found)
    os.close(fd)
    record = session / ".modama/metadata" / os.fsdecode(cache.name_of(path))
    scene.say("moved", record.with_name("x.new"), record.stat().st_ino, record)
    return record


def test_a_project_and_a_session(scene: Scene) -> None:
    project = PROJECT | {
        "visibility": "private",
        "keywords": ["Holographie"],
        "members": [{"name": "Ümit"}],
        "metadata": {"Film Thickness": {"value": 8.5, "unit": "nm"}, "ok": {"value": True}},
    }
    session = SESSION | {"instrument": "Titan", "sample": "PP-7"}
    record = scene.record("a/p/.modama/project.json", project)
    scene.record("a/p/s/.modama/session.json", session)
    scene.write("a/p/s/raw/x")
    scene.apply()
    ino = (scene.root / "a/p").stat().st_ino
    session_ino = (scene.root / "a/p/s").stat().st_ino
    assert scene.rows("SELECT ino, title, owner, visibility, record, problem FROM projects") == [
        (ino, "A project", "alice", "private", record.read_text(), None)
    ]
    assert scene.rows("SELECT ino, project, title, owner, instrument, date FROM sessions") == [
        (session_ino, ino, "A session", "Bob", "Titan", "2026-11-23")
    ]
    assert scene.rows("SELECT * FROM metadata ORDER BY key") == [
        (ino, "film_thickness", 8.5, "8.5", "nm"),
        (ino, "ok", 1.0, "true", None),
    ]
    found = "SELECT ino FROM notes WHERE ino IN (SELECT rowid FROM words WHERE words MATCH ?)"
    assert scene.rows(found, "umit") == [(ino,)]
    assert scene.rows(found, "titan") == [(session_ino,)]
    assert scene.rows("SELECT DISTINCT project, session FROM nodes WHERE name='x'") == [
        (ino, session_ino)
    ]
    scene.record("a/p/.modama/project.json", PROJECT)
    scene.apply()
    assert scene.rows("SELECT * FROM metadata") == []
    assert scene.rows(found, "umit") == []
    scene.remove(record)
    scene.apply()
    assert scene.rows("SELECT * FROM projects") == []


def test_records_move_with_their_directory(scene: Scene) -> None:
    scene.record("a/p/.modama/project.json", PROJECT)
    scene.record("a/p/s/.modama/session.json", SESSION)
    scene.write("a/p/s/x.emd")
    metadata(scene, scene.root / "a/p/s", "x.emd", beam_energy=300)
    scene.mkdir("b/q")
    scene.apply()
    for new in ("b/q/s", "t", "b/q/u", "b/q/u/v", "a/p/s"):
        old = next(scene.root.rglob("x.emd")).parent
        if old / "v" == scene.root / new:
            continue
        scene.move(old, scene.root / new)
        scene.apply()
        depth = len(new.split("/"))
        assert len(scene.rows("SELECT * FROM sessions")) == (depth == 3)
        assert len(scene.rows("SELECT * FROM metadata")) == (depth == 3)


@pytest.mark.parametrize("number", range(len(BROKEN)))
def test_a_record_that_is_none(scene: Scene, number: int) -> None:
    for name in ("project.json", "session.json", "seals/s.json"):
        scene.record(f"a/p/.modama/{name}", BROKEN[number])
        scene.record(f"a/p/s/.modama/{name}", BROKEN[number])
    scene.record("a/p/s/.modama/metadata/00.json", BROKEN[number])
    scene.apply()
    ((title, problem),) = scene.rows("SELECT title, problem FROM projects")
    assert title is None and "project.json" in problem
    assert scene.rows("SELECT DISTINCT state FROM seals") == [("damaged",)]
    scene.record("a/p/.modama/project.json", PROJECT)
    scene.apply()
    assert scene.rows("SELECT title, problem FROM projects") == [("A project", None)]


@pytest.mark.parametrize("kind", ["fifo", "symlink", "directory", "huge", "endless"])
def test_something_else_lies_where_a_record_is_expected(scene: Scene, kind: str) -> None:
    scene.write("a/p/s/raw/x")
    for name in (
        *("a/p/.modama/project.json", "a/p/s/.modama/session.json", "a/p/s/.modama/metadata"),
        *("a/p/s/.modama/seals/raw.json", "a/p/s/.modama/seals/raw.B3SUMS", "b/.modama"),
        *("a/p/.modama/seals", "a/p/s/.modama/metadata2/x.json", "a/p/t/.modama/metadata/x.json"),
    ):
        path = scene.root / name
        scene.mkdir(path.parent)
        if kind == "fifo":
            os.mkfifo(path)
        elif kind == "symlink":
            path.symlink_to("/etc")
        elif kind == "directory":
            path.mkdir()
        elif kind == "endless":
            path.symlink_to("/dev/zero")
        else:
            path.touch()
            os.truncate(path, 1 << 40)
        scene.say("created", path, path.lstat().st_ino)
    scene.apply()
    scene.index.rebuild(lambda _: None)
    reconcile(scene.index)
    assert scene.differences() == []
    assert scene.index.state()["state"] == "ok"
    assert scene.rows("SELECT count(*) FROM projects WHERE problem IS NULL") == [(0,)]


def test_a_seal(scene: Scene) -> None:
    scene.write("a/p/s/raw/d/x")
    scene.write("a/p/s/note")
    scene.apply()
    digest = "0" * 63 + "1"
    lines = (
        f"{digest}  d/x\n".encode()
        + b"\\" + b"2" * 64 + b"  new\\nline\\\\\n"
        + b"3" * 64 + b"  \xff\xfe\n"
        + b"4" * 64 + b"  ./-\n"
        + b"5" * 64 + b"  last"
    )  # fmt: skip
    seal = scene.record("a/p/s/.modama/seals/raw.json", {"state": "sealing"})
    assert scene.apply().resealed == [b"a/p/s/raw"]
    sealed = "SELECT name FROM nodes WHERE sealed ORDER BY name"
    assert scene.rows(sealed) == [("d",), ("raw",), ("x",)]
    assert scene.rows("SELECT * FROM hashes") == []
    scene.write("a/p/s/.modama/seals/raw.B3SUMS", lines)
    record = {"state": "sealed", "content_hash": "blake3:1", "file_count": 5, "size_bytes": 1 << 70}
    scene.record(seal, record)
    assert scene.apply().resealed == [b"a/p/s/raw"]
    assert scene.rows("SELECT state, content_hash, file_count, size_bytes FROM seals") == [
        ("sealed", "blake3:1", 5, None)
    ]
    assert dict(scene.rows("SELECT path, blake3 FROM hashes")) == {
        "d/x": digest,
        "new\nline\\": "2" * 64,
        b"\xff\xfe": "3" * 64,
        "-": "4" * 64,
        "last": "5" * 64,
    }
    scene.move(scene.root / "a/p", scene.root / "a/q")
    scene.apply()
    assert scene.rows(sealed) == [("d",), ("raw",), ("x",)]
    scene.remove(scene.root / "a/q/s/.modama/seals/raw.json")
    assert scene.apply().resealed == [b"a/q/s/raw"]
    assert scene.rows(sealed) == []
    assert scene.rows("SELECT * FROM hashes") == []


@pytest.mark.parametrize("nonsense", [b"no line\n", b"\0" * 100_000 + b"\n", b"0" * 64 + b"  "])
def test_a_manifest_ends_with_the_first_line_that_is_none(scene: Scene, nonsense: bytes) -> None:
    path = b"a" * 100_000 if nonsense.endswith(b"  ") else b""
    line = b"%s  %s\n"
    lines = line % (b"1" * 64, b"x") + nonsense + path + b"\n" + line % (b"2" * 64, b"y")
    scene.record("a/p/s/.modama/seals/raw.json", {"state": "sealed"})
    scene.write("a/p/s/.modama/seals/raw.B3SUMS", lines)
    scene.apply()
    assert scene.rows("SELECT path FROM hashes") == [("x",)]


def test_a_manifest_has_limits(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    seals = "a/p/s/.modama/seals"
    for name, count in (("few", 3), ("many", 9), ("sparse", 3)):
        lines = [f"{digit}" * 64 + f"  {digit}\n" for digit in range(count)]
        scene.write(f"{seals}/{name}.B3SUMS", "".join(lines).encode())
        scene.record(f"{seals}/{name}.json", {"state": "sealed"})
    os.truncate(scene.root / seals / "sparse.B3SUMS", 15 << 40)
    monkeypatch.setattr(records, "MOST_HASHED_FILES", 5)
    scene.apply()
    assert scene.rows("SELECT seal, count(*) FROM hashes GROUP BY seal ORDER BY seal") == [
        ("few", 3),
        ("many", 5),
    ]


def test_many_hashes_are_written_and_forgotten_in_parts(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modamafs.index.described.HASHES_AT_ONCE", 3)
    seal = scene.record("a/p/s/.modama/seals/raw.json", {"state": "sealed"})
    for count in (10, 7, 3):
        lines = "".join(f"{count:064x}  {number}/x\n" for number in range(count))
        scene.write("a/p/s/.modama/seals/raw.B3SUMS", lines.encode())
        scene.apply()
        assert scene.rows("SELECT count(*), min(blake3) FROM hashes") == [(count, f"{count:064x}")]
    scene.remove(seal)
    scene.apply()
    assert scene.rows("SELECT * FROM hashes") == []


def test_records_with_other_names_do_not_count(scene: Scene) -> None:
    path = scene.write("a/p/s/x.emd")
    seals = scene.root / "a/p/s/.modama/seals"
    named = [
        scene.record(seals / "raw.json", {"state": "sealed"}),
        scene.write(seals / "raw.B3SUMS", b"0" * 64 + b"  x\n"),
        metadata(scene, path.parent, "x.emd", one=1),
    ]
    found = "SELECT (SELECT state FROM seals), (SELECT count(*) FROM hashes), count(*)"
    scene.apply()
    assert scene.rows(f"{found} FROM metadata") == [("sealed", 1, 1)]
    for wanted in (("sealed", 1, 0), ("sealed", 0, 0), ("damaged", 0, 0)):
        record = named.pop()
        os.link(record, scene.outside / record.name)
        scene.say("attributes", record, record.stat().st_ino)
        scene.apply()
        assert scene.rows(f"{found} FROM metadata") == [wanted]
    for link in scene.outside.iterdir():
        link.unlink()
    reconcile(scene.index)
    assert scene.rows(f"{found} FROM metadata") == [("sealed", 1, 1)]


def test_what_was_immutable_before_is_passed_over(scene: Scene) -> None:
    """Of a seal that names a great many files, all the rest is known; it takes no memory."""
    record = {"state": "sealed", "content_hash": "blake3:1", "immutable_before": ["\udcff", 1]}
    data = json.dumps(record).encode()[:-2] + b", []" * (2 << 20) + b'], "file_count": 7}'
    scene.record("a/p/s/.modama/seals/raw.json", data)
    tracemalloc.start()
    scene.apply(as_is=True)
    most_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert scene.rows("SELECT state, content_hash, file_count FROM seals") == [
        ("sealed", "blake3:1", 7)
    ]
    assert most_bytes < 4 * len(data)


def test_a_seal_that_is_too_large_is_damaged(scene: Scene) -> None:
    path = "a/p/s/.modama/seals/raw.json"
    data = json.dumps({"state": "sealed"}).encode()
    scene.record(path, data + b" " * (records.LARGEST_SEAL_BYTES - len(data)))
    scene.apply()
    assert scene.rows("SELECT state FROM seals") == [("sealed",)]
    scene.record(path, data + b" " * (records.LARGEST_SEAL_BYTES - len(data) + 1))
    scene.apply()
    assert scene.rows("SELECT state FROM seals") == [("damaged",)]


def test_flags_change_times_and_nobody_is_told(scene: Scene) -> None:
    path = scene.write("a/p/s/raw/d/x")
    scene.apply()
    os.utime(path)  # as the flag does: another change time
    scene.record("a/p/s/.modama/seals/raw.json", {"state": "sealed"})
    scene.apply()


def test_a_seal_in_a_sealed_directory_and_one_of_a_file(scene: Scene) -> None:
    scene.write("a/p/s/raw/d/x")
    scene.record("a/p/s/raw/d/.modama/seals/x.json", {"state": "sealed"})
    scene.record("a/p/.modama/seals/s.json", {"state": "unsealing"})
    scene.apply()
    scene.remove(scene.root / "a/p/.modama/seals/s.json")
    scene.apply()
    assert scene.rows("SELECT name FROM nodes WHERE sealed") == [("x",)]


def test_metadata_follow_their_file(scene: Scene) -> None:
    path = scene.write("a/p/s/raw/x.emd")
    session = scene.root / "a/p/s"
    record = metadata(scene, session, "raw/x.emd", beam_energy=300, name="Titan", huge=10**400)
    scene.apply()
    ino = path.stat().st_ino
    assert scene.rows("SELECT ino, key, number, text, unit FROM metadata ORDER BY key") == [
        (ino, "beam_energy", 300.0, "300", "keV"),
        (ino, "huge", None, str(10**400), "keV"),
        (ino, "name", None, "Titan", "keV"),
    ]
    scene.move(path, path.with_name("y.emd"))
    scene.apply()
    assert scene.rows("SELECT * FROM metadata") == []
    scene.move(path.with_name("y.emd"), path)
    scene.apply()
    assert len(scene.rows("SELECT * FROM metadata")) == 3
    scene.move(path.parent, session / "new")
    scene.apply()
    assert scene.rows("SELECT * FROM metadata") == []
    scene.move(session / "new", path.parent)
    scene.move(scene.write("a/p/s/raw/tmp"), path)
    scene.apply()
    assert scene.rows("SELECT DISTINCT ino FROM metadata") == [(path.stat().st_ino,)]
    metadata(scene, session, "raw/x.emd", beam_energy=200)
    scene.apply()
    assert scene.rows("SELECT key, number FROM metadata") == [("beam_energy", 200.0)]
    scene.remove(record)
    scene.apply()
    assert scene.rows("SELECT * FROM metadata") == []
    assert scene.rows("SELECT * FROM notes") == []


def test_two_records_are_about_the_same_inode(scene: Scene) -> None:
    path = scene.write("a/p/s/x.emd")
    other = scene.mkdir("a/p/t") / "y.emd"
    os.link(path, other)
    scene.say("created", other, path.stat().st_ino)
    metadata(scene, path.parent, "x.emd", one=1, two=1)
    metadata(scene, other.parent, "y.emd", two=2, three=2)
    scene.apply()
    assert [row[0] for row in scene.rows("SELECT key FROM metadata ORDER BY key")] == [
        *("one", "three", "two"),
    ]
    scene.remove(path)
    scene.apply()
    assert [row[0] for row in scene.rows("SELECT key FROM metadata ORDER BY key")] == [
        *("three", "two"),
    ]


def test_metadata_that_say_a_wrong_path(scene: Scene) -> None:
    scene.write("a/p/s/x.emd")
    session = scene.root / "a/p/s"
    for path in ("../t/x.emd", "/etc/passwd", "", "x.emd/", "\udcff", "\ud800", "a\0b", "raw"):
        record = {"path": path, "size_bytes": 1, "mtime_ns": 1, "values": {"a": {"value": 1}}}
        name = "0" * 32
        if path != "\ud800":
            name = cache.name_of(path).decode().removesuffix(".json")
        scene.write(session / f".modama/metadata/{name}.json", json.dumps(record).encode())
    scene.mkdir(session / "raw")
    scene.apply()
    assert scene.rows("SELECT * FROM metadata") == []


def test_text_that_is_no_text(scene: Scene) -> None:
    record = PROJECT | {
        "title": "\udcff and \ud83d",
        "metadata": {"\udc80 key": {"value": "a\0b\udcff", "unit": "\udcff"}},
    }
    scene.write("a/p/.modama/project.json", json.dumps(record).encode())
    scene.apply()
    assert scene.rows("SELECT count(*) FROM metadata") == [(1,)]
