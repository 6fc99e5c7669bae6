"""``modamafs demo`` for real: what it promises, and that nothing is left of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.janitor import mounts_below
from tests.support.mounts import command, installed
from tests.support.targets import Workshop

COLUMNS = 80

pytestmark = pytest.mark.usefixtures("place")


@pytest.fixture
def place(
    workshop: Workshop, new_name: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """A directory for temporary files, in which nothing may be left."""
    directory = workshop.mountpoint(f"demo-{new_name()}")
    directory.mkdir()
    monkeypatch.setenv("TMPDIR", str(directory))
    yield directory
    assert mounts_below(directory) == []
    assert list(directory.iterdir()) == []
    running = list(Path(os.environ["MODAMAFS_RUNTIME_DIR"]).glob(r"*modamafs\\x2ddemo*"))
    assert running == []


def test_what_it_promises() -> None:
    done = installed("demo", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    figures = json.loads(done.stdout)
    assert figures["passthrough"] is True
    assert figures["reads_seen"] == 0
    assert figures["opens_seen"] > 0
    assert figures["listed"] == 3
    assert figures["read_mounted_gb_per_s"] > 0
    assert figures["seal"]["state"] == "sealed"
    assert figures["seal"]["content_hash"].startswith("blake3:")
    assert len(figures["refused"]) == 3
    for refused in figures["refused"]:
        assert refused["message"].endswith("Read-only file system")
    assert figures["kill"]["restarts"] == 1
    assert figures["kill"]["worker_pid"] not in (0, figures["kill"]["killed_pid"])
    assert figures["kill"]["reader_bytes"] > 0
    assert figures["verified"] is True


def test_without_passthrough_the_daemon_reads() -> None:
    done = installed("demo", "--json", "--no-passthrough")
    assert (done.returncode, done.stderr) == (0, "")
    figures = json.loads(done.stdout)
    assert figures["passthrough"] is False
    assert figures["reads_seen"] > 0
    assert len(figures["refused"]) == 3


def test_in_a_pipe_it_is_plain_and_when_kept_it_can_be_played_with(place: Path) -> None:
    done = installed("demo", "--keep")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.isascii()
    assert "\x1b" not in done.stdout
    assert "\r" not in done.stdout
    for line in done.stdout.splitlines():
        assert len(line) <= COLUMNS or str(place) in line or command()[0] in line
    [kept] = place.iterdir()
    raw = kept / "data/holography/skyrmions/2026-07-01/raw"
    assert sorted(path.name for path in raw.iterdir()) == [
        "4dstem.h5",
        "acquisition.log",
        "tilt.mrc",
    ]
    told = [line.strip() for line in done.stdout.partition("It stays mounted")[2].splitlines()]
    script = "\n".join(["shopt -s expand_aliases; set -e", *told[1:]])
    played = subprocess.run(
        ["/bin/bash", "-c", script], capture_output=True, text=True, check=False
    )
    assert played.returncode == 0, played.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("moment", ["A store is", "answers after", "mrcfile", "kill -9"])
def test_it_can_be_interrupted_at_any_moment(number: signal.Signals, moment: str) -> None:
    with subprocess.Popen(
        [*command(), "demo"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        start_new_session=True,
    ) as demo:
        assert demo.stdout and demo.stderr
        for line in demo.stdout:
            if moment in line:
                break
        os.killpg(demo.pid, number)
        demo.stdout.read()
        complaint = demo.stderr.read()
    assert demo.returncode == 3
    assert complaint.endswith("modamafs: interrupted\n")


@pytest.mark.parametrize(
    ("prefix", "environment", "complaint"),
    [
        (
            ["setpriv", "--bounding-set=-sys_admin"],
            {},
            "modamafs: mounting needs root (CAP_SYS_ADMIN): run it with sudo\n",
        ),
        (
            [],
            {"PYTHONPATH": "{place}.without"},
            "modamafs: the demo needs h5py: "
            f"run '{sys.executable} -m pip install numpy h5py mrcfile'\n",
        ),
    ],
)
def test_what_is_missing_is_said_in_one_line(
    place: Path, prefix: list[str], environment: dict[str, str], complaint: str
) -> None:
    without = Path(f"{place}.without")
    without.mkdir()
    (without / "h5py.py").write_text("raise ModuleNotFoundError(name='h5py')\n")
    added = {key: value.format(place=place) for key, value in environment.items()}
    done = subprocess.run(
        [*prefix, *command(), "demo"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | added,
    )
    assert (done.returncode, done.stdout, done.stderr) == (3, "", complaint)
