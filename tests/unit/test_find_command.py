"""``modamafs find`` on a store that is not mounted: output, exit status, whom it answers."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from modamafs.index.database import FILE, index_dir
from modamafs.store.backing import Store
from tests.support.indexed import Indexed
from tests.support.mounts import command
from tests.support.users import STRANGER, as_user

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, whose the index is")

NAMES = (
    b"tem/pp/s1/raw/tilt.mrc", b"tem/pp/s1/raw/new\nline.dm4", b"tem/pp/s1/raw/caf\xe9.dm4",
    b"tem/pp/s1/raw/phase plate.tif", b"tem/pp/s2/raw/tilt.mrc",
)  # fmt: skip


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A store with an index that is whole."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        os.chmod(directory, 0o755)
        top = Path(directory) / "store"
        for name in NAMES:
            path = os.path.join(os.fsencode(top), name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
        (top / ".modama").mkdir()
        (top / ".modama/config.toml").touch()
        with Store(top) as store:
            where = index_dir(store, Path(directory) / "index")
            where.mkdir(mode=0o700, parents=True)
            index = Indexed(store)
            index.value("tem/pp/s1/raw/tilt.mrc", "beam_energy", 300.0, "keV")
            index.connection.execute("INSERT INTO info VALUES ('complete', 1)")
            with sqlite3.connect(where / FILE) as file:
                index.connection.backup(file)
            file.close()
        yield top


def run(
    place: Path, *arguments: str | bytes, where: Path | None = None
) -> subprocess.CompletedProcess[bytes]:
    """The command, in the store or elsewhere."""
    environment = {
        **os.environ,
        "MODAMAFS_INDEX_DIR": str(place.parent / "index"),
        "MODAMAFS_RUNTIME_DIR": str(place.parent / "run"),
    }
    return subprocess.run(
        [*command(), "find", *arguments],
        cwd=where or place, env=environment, capture_output=True, check=False, timeout=60,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip


def paths(place: Path, *names: bytes) -> list[bytes]:
    """As they are printed."""
    return sorted(os.path.join(os.fsencode(place), name) for name in names)


def test_a_path_a_line(place: Path) -> None:
    done = run(place, "tilt")
    assert (done.returncode, done.stderr) == (0, b"")
    assert sorted(done.stdout.splitlines()) == paths(place, NAMES[0], NAMES[4])


def test_nothing_found(place: Path) -> None:
    done = run(place, "nothing of the kind")
    assert (done.returncode, done.stdout, done.stderr) == (1, b"", b"")


def test_names_of_any_bytes(place: Path) -> None:
    done = run(place, "--print0", "*.dm4")
    assert sorted(done.stdout.split(b"\0")[:-1]) == paths(place, NAMES[1], NAMES[2])
    assert run(place, b"caf\xe9").stdout == paths(place, NAMES[2])[0] + b"\n"


def test_a_terminal_is_given_nothing_to_obey(place: Path) -> None:
    main, other = os.openpty()
    environment = {**os.environ, "MODAMAFS_INDEX_DIR": str(place.parent / "index")}
    done = subprocess.run(
        [*command(), "find", "*.dm4"], cwd=place, env=environment, stdout=other, check=False,
        stdin=subprocess.DEVNULL, timeout=60,
    )  # fmt: skip
    os.close(other)
    seen = os.read(main, 65536)
    os.close(main)
    assert done.returncode == 0
    assert rb"new\nline.dm4" in seen
    assert rb"caf\udce9.dm4" in seen
    assert len(seen.splitlines()) == 2


def test_json(place: Path) -> None:
    done = run(place, "--json", "dm4 line")
    [line] = done.stdout.splitlines()
    found = json.loads(line)
    assert os.fsencode(found.pop("path")) == paths(place, NAMES[1])[0]
    assert found.pop("mtime").endswith("Z")
    assert found == {"kind": "file", "size_bytes": 0, "sealed": False}


@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        (["phase plate"], 1),  # one argument: the query
        (["plate phase"], 1),
        (["phase plate", "tif"], 1),
        (["plate phase", "tif"], 0),  # several: each with spaces is a phrase
        (["tilt", "beam_energy>= 200 keV"], 1),
        (["--", "tilt", "-s1"], 1),
        (["tilt -s1"], 1),
        (["--limit", "2", "*"], 2),
        (["--in", "tem/pp/s2", "mrc"], 1),
        (["--in", ".", "mrc"], 2),
    ],
)
def test_how_many(place: Path, arguments: list[str], count: int) -> None:
    done = run(place, "--count", *arguments)
    assert done.stdout == b"%d\n" % count, done.stderr
    assert done.returncode == (0 if count else 1)
    assert json.loads(run(place, "--json", "--count", *arguments).stdout) == {"count": count}


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ([], b"Missing argument"),
        (["xyz:1"], b"there are project:"),
        (["tilt", "size:>1e400"], b"write size:>1GB"),
        (["tilt", "-raw"], b"behind '--'"),
        (['"tilt'], b"quote"),
        (["--limit", "0", "x"], b"--limit"),
        (["--print0", "--json", "x"], b"--print0"),
    ],
)
def test_wrong_usage(place: Path, arguments: list[str], why: bytes) -> None:
    done = run(place, *arguments)
    assert done.returncode == 2
    assert why in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == b""


@pytest.mark.parametrize("arguments", [["--in", "/proc", "x"], ["--in", "nowhere", "x"],
                                       ["--in", "tem/pp/s2/raw/tilt.mrc", "x"]])  # fmt: skip
def test_what_lies_in_no_store(place: Path, arguments: list[str]) -> None:
    done = run(place, *arguments)
    assert done.returncode == 3
    assert len(done.stderr.splitlines()) == 1


def test_without_a_store(place: Path) -> None:
    done = run(place, "tilt", where=Path("/"))
    assert done.returncode == 3
    assert b"--in" in done.stderr


def test_others_need_a_mount(place: Path) -> None:
    done = as_user(STRANGER, run, place, "tilt")
    assert done.returncode == 3
    assert b"mount the store" in done.stderr
    assert done.stdout == b""


def test_no_index(place: Path, tmp_path: Path) -> None:
    (tmp_path / ".modama").mkdir()
    (tmp_path / ".modama/config.toml").touch()
    done = run(place, "tilt", where=tmp_path)
    assert done.returncode == 3
    assert b"index rebuild" in done.stderr


def test_an_index_that_is_being_built(place: Path) -> None:
    with Store(place) as store:
        path = index_dir(store, place.parent / "index") / FILE
    with sqlite3.connect(path) as file:
        file.execute("UPDATE info SET value = 0 WHERE key = 'complete'")
    try:
        done = run(place, "tilt")
    finally:
        with sqlite3.connect(path) as file:
            file.execute("UPDATE info SET value = 1 WHERE key = 'complete'")
    assert done.returncode == 0
    assert done.stderr.startswith(b"modamafs: results may be incomplete: ")
    assert len(done.stdout.splitlines()) == 2
