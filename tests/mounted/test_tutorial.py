"""Every line of docs/tutorial.md is run, and prints what the page says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.mounts import command
from tests.support.syscalls import force_unmount
from tests.support.trees import remove

HERE = Path(__file__).parents[2]
PAGE = HERE / "docs/tutorial.md"
EM = Path(os.environ.get("MODAMAFS_EM_DATA", HERE.parent / "shared/data/em"))
MARK = "=== this command has ended ==="


class Step(NamedTuple):
    """One line of the page."""

    command: str
    expected: str


def steps() -> list[Step]:
    """All lines that begin with ``$`` in the page's consoles, and what follows each."""
    found: list[Step] = []
    for block in re.findall(r"^```console\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            line, _, expected = part.partition("\n")
            found.append(Step(line, expected))
    return found


def pattern(expected: str) -> re.Pattern[str]:
    """What is printed has to match: ``…`` is anything, over several lines if it stands alone."""
    lines = expected.splitlines(keepends=True)
    parts = [r"(.*\n)*" if line == "…\n" else re.escape(line).replace("…", ".*") for line in lines]
    return re.compile("".join(parts))


@pytest.fixture
def place() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="modamafs-tutorial-", dir="/var/tmp"))
    directory.chmod(0o755)
    try:
        yield directory
    finally:
        for name in ("guests", "data"):
            while force_unmount(directory / name):
                pass
            subprocess.run(["chattr", "-i", directory / name], capture_output=True, check=False)
        if (directory / "store").exists():
            remove(directory / "store")
        shutil.rmtree(directory, ignore_errors=True)


def test_the_tutorial(place: Path) -> None:
    if not EM.is_dir():
        pytest.skip(f"needs the instrument files in {EM}")
    binaries = str(Path(command()[0]).parent)
    environment = {
        **os.environ,
        "PATH": f"{binaries}:{os.environ['PATH']}",
        "EM": str(EM),
        "LC_ALL": "C.UTF-8",
        "MODAMAFS_RUNTIME_DIR": str(place / ".run"),
        "MODAMAFS_INDEX_DIR": str(place / ".index"),
    }
    (place / ".run").mkdir(mode=0o755)
    with subprocess.Popen(
        ["bash"], cwd=place, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    ) as shell:  # fmt: skip
        assert shell.stdin is not None
        assert shell.stdout is not None
        for step in steps():
            shell.stdin.write(f"{step.command}\necho '{MARK}'\n")
            shell.stdin.flush()
            printed = ""
            while (line := shell.stdout.readline()) and line.rstrip("\n") != MARK:
                printed += line
            assert pattern(step.expected).fullmatch(printed), f"$ {step.command}\n{printed}"
            assert line, f"the shell ended at: {step.command}"
        shell.stdin.close()
    assert len(steps()) > 30


def test_a_step_that_prints_something_else_is_noticed() -> None:
    assert pattern("a … b\n…\nend\n").fullmatch("a 1 b\nx\ny\nend\n")
    assert not pattern("a … b\n").fullmatch("a 1 c\n")
    assert not pattern("a … b\n").fullmatch("a 1\n2 b\n")
    assert not pattern("").fullmatch("more\n")
