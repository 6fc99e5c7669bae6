"""``check`` finds every difference, and ``stats`` counts."""

from __future__ import annotations

import contextlib
import sqlite3

import pytest

from modamafs.index.check import check, stats
from modamafs.index.database import NotIndexed
from tests.index.life import PROJECT, SESSION
from tests.index.support import Scene
from tests.index.test_records import metadata

SPOILED = {
    "UPDATE nodes SET size_bytes=77 WHERE name='x.emd'": "a/p/s/raw/x.emd: size_bytes is 1",
    "UPDATE nodes SET mode=0 WHERE name='x.emd'": "mode is",
    "UPDATE nodes SET session=NULL WHERE name='x.emd'": "session is None in the index",
    "UPDATE nodes SET sealed=0 WHERE name='x.emd'": "sealed is 0 in the index, not 1",
    "UPDATE nodes SET generation=generation+1 WHERE name='raw'": "a/p/s/raw: generation is",
    "UPDATE nodes SET name='y' WHERE name='x.emd'": "a/p/s/raw/y: in the index, not on the store",
    "UPDATE nodes SET parent=999999999 WHERE name='raw'": "hangs on nothing",
    "DELETE FROM nodes WHERE name='x.emd'": "a/p/s/raw/x.emd: file on the store, not in the index",
    "DELETE FROM nodes WHERE parent=0": "another store",
    "DELETE FROM projects": "a/p: its record as a project",
    "UPDATE sessions SET title=''": "a/p/s: its record as a session",
    "UPDATE sessions SET project=7": "a/p/s: its record as a session",
    "UPDATE seals SET state='sealing'": "a/p/s: the seal of raw is",
    "DELETE FROM seals": "the seal of raw is",
    "DELETE FROM hashes": "the manifest of raw has 1 files on the store, 0 in the index",
    "UPDATE hashes SET blake3=''": "the hash of raw/x.emd is another",
    "UPDATE metadata SET number=1": "a/p/s/raw/x.emd: its metadata",
    "DELETE FROM metadata": "a/p/s/raw/x.emd: its metadata",
    "INSERT INTO metadata VALUES (5, 'a', 1, '1', NULL)": "metadata without a record: 5",
    "UPDATE notes SET text='' ": "its words",
    "DELETE FROM records WHERE kind='metadata'": "is not in the index as it is",
    "INSERT INTO records VALUES (7, 'seal', 'x', '', NULL, NULL)": "a directory that is not in it",
    "DELETE FROM names_docsize WHERE id=3": "a name that can't be searched: 3",
    "INSERT INTO names (rowid, name) VALUES (999, 'x')": "a name of nothing: 999",
    "UPDATE info SET value=0 WHERE key='complete'": "not everything was looked at",
}


@pytest.fixture
def described(scene: Scene) -> Scene:
    """A store with one of everything."""
    scene.record("a/p/.modama/project.json", PROJECT)
    scene.record("a/p/s/.modama/session.json", SESSION)
    scene.write("a/p/s/raw/x.emd")
    scene.write("a/p/s/.modama/seals/raw.B3SUMS", b"0" * 64 + b"  x.emd\n")
    scene.record("a/p/s/.modama/seals/raw.json", {"state": "sealed", "file_count": 1})
    metadata(scene, scene.root / "a/p/s", "raw/x.emd", beam_energy=300)
    scene.apply()
    return scene


@pytest.mark.parametrize("statement", SPOILED)
def test_a_difference_is_named(described: Scene, statement: str) -> None:
    with contextlib.closing(sqlite3.connect(described.directory / "index.db")) as connection:
        connection.execute("PRAGMA trusted_schema = ON")
        connection.execute(statement)
        connection.commit()
    lines = described.differences()
    assert any(SPOILED[statement] in line for line in lines), lines
    assert all("\n" not in line for line in lines)


def test_what_changes_meanwhile_is_no_difference(
    described: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = described.root / "a/p/s/raw/x.emd"
    path.write_bytes(b"longer")
    (described.root / "new").touch()

    def wait(_: float) -> None:
        """Somebody goes on writing; and the watcher tells of the other file."""
        path.write_bytes(b"longer still")
        described.say("created", described.root / "new", 0)
        described.index.apply(described.changes)

    monkeypatch.setattr("modamafs.index.check.time.sleep", wait)
    assert list(check(described.store, described.directory)) == []


def test_counts(described: Scene) -> None:
    found = stats(described.directory)
    assert found["kinds"] == {"directory": 5, "file": 1}
    assert found["size_bytes"] == 1
    assert found["sealed_entries"] == 2
    assert (found["projects"], found["sessions"], found["seals"], found["hashes"]) == (1, 1, 1, 1)
    assert found["metadata_keys"] == {"beam_energy": 1}
    assert found["complete"] and not found["stale"]
    assert found["position"] == described.index.state()["position"]
    assert found["epoch"] == described.index.state()["epoch"]
    assert found["oldest_change_at_ns"] == 1
    assert found["index_size_bytes"] > 4096


def test_there_is_no_index(scene: Scene) -> None:
    with pytest.raises(NotIndexed, match="index rebuild"):
        stats(scene.directory / "elsewhere")
    with pytest.raises(NotIndexed):
        list(check(scene.store, scene.directory / "elsewhere"))


def test_a_file_that_is_damaged(described: Scene) -> None:
    described.index.close()
    path = described.directory / "index.db"
    data = bytearray(path.read_bytes())
    data[8192:40960] = bytes(32768)
    path.write_bytes(data)
    assert any("damaged" in line for line in described.differences())
