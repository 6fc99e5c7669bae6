"""Metadata of instrument files, as they come to be seen in a mount; broken files among them."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from modamafs.catalog import FileMetadata
from modamafs.extraction import cache
from tests.mounted.test_tutorial import EM
from tests.support.mounts import Mount, wait_until
from tests.support.targets import Workshop
from tests.support.trees import remove

RAW = Path("area/project/session/raw")
SIDE_FILES = {"README.md", "ROI_Random_Scan_info.txt"}


@pytest.fixture
def mount(workshop: Workshop, new_name: Callable[[], str]) -> Iterator[Mount]:
    if not EM.is_dir():
        pytest.skip(f"needs the instrument files in {EM}")
    store = workshop.image("ext4").root / f"metadata-{new_name()}"
    (store / RAW).mkdir(parents=True)
    with Mount(store, workshop.mountpoint(store.name)) as mount:
        yield mount
    remove(store)


def known(mount: Mount, name: str) -> Path:
    """Where it is said what is known of a file in ``raw``, once a reader has looked at it."""
    path = mount.root / RAW.parent / ".modama/files/raw" / name

    def is_there() -> bool:
        return len(set(os.listdir(path)) - {"all.json", "url", "b3"}) > 0

    wait_until(is_there, f"what is known of {name}", 120)
    return path


def recorded(mount: Mount) -> dict[str, FileMetadata]:
    """What the store has a record of. Nobody looks at a page: that would have it read, too."""
    session = os.open(mount.store / RAW.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return dict(cache.load(session))
    finally:
        os.close(session)


def test_all_that_can_be_read_is(mount: Mount) -> None:
    names = sorted(path.name for path in EM.iterdir() if path.name not in SIDE_FILES)
    assert len(names) == 15
    for name in names:
        shutil.copyfile(EM / name, mount.root / RAW / name)
    wait_until(lambda: recorded(mount).keys() == {f"raw/{name}" for name in names}, "all", 120)
    for name in names:
        found = known(mount, name)
        assert not (found / "problem").exists(), name
        assert (found / "shape").read_text().startswith("("), name
        everything = json.loads((found / "all.json").read_text())
        assert everything["metadata"]["values"] if "metadata" in everything else everything
    assert (known(mount, "EELS_SI.dm4") / "beam_energy").read_text() == "200 keV\n"
    page = (mount.root / RAW.parent / ".modama/index.html").read_text()
    assert page.count("data:image/png") >= 10


SAID = {
    "truncated": "truncated",
    "empty": "empty",
    "random": "can't be read",
    "sparse": ("truncated", "can't be read"),
}


def test_broken_files_are_said_to_be_and_hurt_nobody(mount: Mount) -> None:
    raw = mount.root / RAW
    whole = (EM / "EELS_SI.dm4").read_bytes()
    emd = (EM / "fei_example_tem_stack.emd").read_bytes()
    broken = {
        "truncated.dm4": whole[: len(whole) // 2],
        "truncated.emd": emd[: len(emd) // 2],
        "empty.dm4": b"",
        "empty.emd": b"",
        "random.dm4": os.urandom(100_000),
        "random.emd": os.urandom(100_000),
        "sparse.dm4": whole[:64],
        "sparse.emd": emd[:64],
    }
    for name, content in broken.items():
        (raw / name).write_bytes(content)
        if name.startswith("sparse"):
            os.truncate(raw / name, 4 << 30)
    (raw / "good.dm4").write_bytes(whole)
    (raw / "written beside").write_bytes(whole)
    (raw / "written beside").rename(raw / "renamed.dm4")
    written = {f"raw/{name}" for name in (*broken, "good.dm4", "renamed.dm4")}
    wait_until(lambda: recorded(mount).keys() == written, "all", 120)
    for name in broken:
        problem = (known(mount, name) / "problem").read_text()
        assert problem.startswith(SAID[name.partition(".")[0]]), (name, problem)
        assert len(problem.splitlines()) == 1, name
        assert set(os.listdir(known(mount, name))) <= {"all.json", "problem", "url", "b3"}
        assert name in (mount.root / RAW.parent / ".modama/README.md").read_text()
    for name in ("good.dm4", "renamed.dm4"):
        assert (known(mount, name) / "beam_energy").read_text() == "200 keV\n"
        assert (raw / name).read_bytes() == whole


def test_a_file_that_changes_is_read_again(mount: Mount) -> None:
    shutil.copyfile(EM / "EELS_SI.dm4", mount.root / RAW / "scan.dm4")
    assert (known(mount, "scan.dm4") / "beam_energy").exists()
    (mount.root / RAW / "scan.dm4").write_bytes(b"")

    def is_read_again() -> bool:
        return recorded(mount)["raw/scan.dm4"].problem is not None

    wait_until(is_read_again, "the second look", 60)
    assert (known(mount, "scan.dm4") / "problem").exists()


def test_what_came_by_another_way_is_read_when_somebody_looks(mount: Mount) -> None:
    shutil.copyfile(EM / "EELS_SI.dm4", mount.store / RAW / "scan.dm4")
    assert (known(mount, "scan.dm4") / "beam_energy").read_text() == "200 keV\n"


def reading_process(mount: Mount) -> int:
    """The process that the worker has read files with."""
    children = Path(f"/proc/{mount.worker_pid()}/task").glob("*/children")
    for pid in " ".join(path.read_text() for path in children).split():
        if b"modamafs.extraction.process" in Path(f"/proc/{pid}/cmdline").read_bytes():
            return int(pid)
    raise AssertionError("there is no such process")


def test_a_reader_may_be_killed(mount: Mount) -> None:
    """And so may the worker: the next one has that read, when somebody looks."""
    shutil.copyfile(EM / "EELS_SI.dm4", mount.root / RAW / "first.dm4")
    assert (known(mount, "first.dm4") / "beam_energy").exists()
    with mount.expected_in_log("reading-process-lost"):
        os.kill(reading_process(mount), signal.SIGKILL)
        shutil.copyfile(EM / "EELS_SI.dm4", mount.root / RAW / "second.dm4")
        wait_until(lambda: "raw/second.dm4" in recorded(mount), "the next reader", 60)
    assert str(recorded(mount)["raw/second.dm4"].values["beam_energy"]) == "200 keV"
    shutil.copyfile(EM / "EELS_SI.dm4", mount.root / RAW / "scan.dm4")
    with mount.expected_in_log("worker-died"):
        mount.kill_worker()
    energy = mount.root / RAW.parent / ".modama/files/raw/scan.dm4/beam_energy"
    wait_until(energy.exists, "what the next worker's reader says, once somebody looks", 60)
    assert energy.read_text() == "200 keV\n"
    with pytest.raises(OSError) as caught:
        energy.write_text("1")
    assert caught.value.errno == errno.EROFS
