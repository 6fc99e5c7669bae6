"""pynfs against NFS-Ganesha over a mount and over the bare directory beside it.

``python -m tests.conformance.pynfs --pynfs DIR`` takes about twenty minutes, as root, most of them
waiting for leases to end; it writes ``docs/exports/pynfs.md``. DIR is a checkout of
https://github.com/kofemann/pynfs in which ``./setup.py build`` was run. Both directories lie on one
ext4 image; NFS 4.0 and 4.1 have a server each on either side, and all four run at the same time.
Tests that differ are run another three times, one after the other.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from itertools import product
from pathlib import Path

from modamafs.exports import servers
from modamafs.exports.share import Share
from tests.conformance.smbtorture import (
    AGAIN,
    NOT_REACHED,
    Outcome,
    Outcomes,
    Ran,
    paragraph,
    same,
    table,
    times,
    two_sides,
    version,
)
from tests.support.mounts import command

DOCUMENT = Path(__file__).parents[2] / "docs" / "exports" / "pynfs.md"
SIDES = ("bare", "mount")
VERSIONS: Mapping[str, tuple[str, ...]] = {"4.0": (), "4.1": ("--minorversion=1",)}
"""The versions of NFS that pynfs has tests for, and what is said to these."""
PORTS = {key: 12061 + number for number, key in enumerate(product(SIDES, VERSIONS))}
LIMIT_S = 3600.0
"""For all tests of a version."""
TESTS = ("all",)
"""Pynfs' own choice: all but those that restart the server, or want what few servers have."""
KINDS = {
    "PASS": "success",
    "WARNING": "warning",
    "FAILURE": "failure",
    "OMIT": "skip",
    "UNSUPPORTED": "skip",
    "RUNNING": "timeout",
}
RESULT = re.compile(rf"(\S+) +(st_\w+)\.\w+ +: ({'|'.join(KINDS)})")


def parsed(output: str) -> Outcomes:
    """What pynfs says with ``-v``: the last of each test, which is called "module CODE" here."""
    outcomes: Outcomes = {}
    lines = output.splitlines()
    for number, line in enumerate(lines):
        if (found := RESULT.match(line)) is None:
            continue
        said = []
        for more in lines[number + 1 :]:
            if not more.startswith("  "):
                break
            said.append(more.strip())
        code, module, kind = found.groups()
        outcomes[f"{module} {code}"] = Outcome(KINDS[kind], " ".join(said))
    return outcomes


def run(
    pynfs: Path, python: str, nfs: str, port: int, tests: Iterable[str]
) -> tuple[Outcomes, float]:
    """Of one side, and how long it took."""
    began_s = time.monotonic()
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        process = subprocess.Popen(
            [
                # Nobody else ends it when this process is interrupted.
                "setpriv", "--pdeathsig=KILL",
                python, "-u", "testserver.py", f"127.0.0.1:{port}/data", "--maketree", "--rundeps",
                "-v", *VERSIONS[nfs], *tests,
            ],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=pynfs / f"nfs{nfs}",
        )  # fmt: skip
        try:
            process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        output.seek(0)
        said = output.read()
    if not (outcomes := parsed(said)):
        raise RuntimeError(f"pynfs {nfs}: {said[-1000:]}")
    return outcomes, time.monotonic() - began_s


def compare(pynfs: Path, python: str, versions: Sequence[str], tests: Sequence[str]) -> list[Ran]:
    """These tests of these versions on both sides, and what differs several times more."""

    def one(side: str, nfs: str, tests: Iterable[str]) -> tuple[Outcomes, float]:
        return run(pynfs, python, nfs, PORTS[side, nfs], tests)

    with ThreadPoolExecutor(len(PORTS)) as pool:
        jobs = {key: pool.submit(one, *key, tests) for key in product(SIDES, versions)}
    results = []
    for nfs in versions:
        (bare, bare_s), (mount, mount_s) = (jobs[side, nfs].result() for side in SIDES)
        ran = Ran(nfs, bare, mount, bare_s, mount_s, [])
        if codes := [test.split()[1] for test in ran.differing()]:
            ran.again.extend(
                (one("bare", nfs, codes)[0], one("mount", nfs, codes)[0]) for _ in range(AGAIN)
            )
        results.append(ran)
    return results


# what comes of it


def modules(ran: Ran) -> list[list[str]]:
    """A row for each of pynfs' modules, those that differ first."""
    differing = {test.split()[0] for test in ran.differing()}
    names = sorted({test.split()[0] for test in {*ran.bare, *ran.mount}})
    return [
        [f"{ran.suite} {name}", *(numbers(side, f"{name} ") for side in (ran.bare, ran.mount))]
        for name in sorted(names, key=lambda name: name not in differing)
    ]


def numbers(outcomes: Outcomes, prefix: str = "") -> str:
    """Passed / with a warning / failed / omitted, of the tests whose names begin like this."""
    kinds = [outcome.kind for test, outcome in outcomes.items() if test.startswith(prefix)]
    failed = sum(kind in ("failure", "timeout", "none") for kind in kinds)
    return " / ".join(
        str(number)
        for number in (kinds.count("success"), kinds.count("warning"), failed, kinds.count("skip"))
    )


def differences(ran: Iterable[Ran]) -> list[list[str]]:
    """A row for each test that does not have the same outcome."""
    return [
        [
            f"{one.suite} {test}",
            one.bare.get(test, NOT_REACHED).kind,
            one.mount.get(test, NOT_REACHED).kind,
            times((bare for bare, _ in one.again), test),
            times((mount for _, mount in one.again), test),
            one.mount.get(test, NOT_REACHED).said or one.bare.get(test, NOT_REACHED).said,
        ]
        for one in ran
        for test in one.differing()
    ]


def common(ran: Iterable[Ran], kinds: Sequence[str]) -> list[list[str]]:
    """A row for each test that has the same outcome on both sides, and one of these."""
    rows = []
    for one in ran:
        for test, bare in sorted(one.bare.items()):
            mount = one.mount.get(test, NOT_REACHED)
            if bare.kind in kinds and mount.kind == bare.kind:
                said = (
                    bare.said
                    if same(bare.said, mount.said)
                    else f"bare: {bare.said}; mount: {mount.said}"
                )
                rows.append([f"{one.suite} {test}", said])
    return rows


DIFFERENCE = ("test", "bare", "mount", "passes again: bare", "mount", "what it says")


def document(ran: Sequence[Ran], versions: str, minutes: float, configuration: str) -> str:
    """The whole of ``docs/exports/pynfs.md``."""
    different = differences(ran)
    warned = common(ran, ("warning",))
    warnings = ["## Warnings on both sides", "", *table(("test", "what it says"), warned), ""]
    return "\n".join(
        [
            "# pynfs",
            "",
            *paragraph(
                f"""The NFS community's own tests, against stock NFS-Ganesha over a mount and over a
                bare directory of the same ext4 file system, written by `python -m
                tests.conformance.pynfs --pynfs DIR` (by hand, as root, {minutes:.0f} minutes; `make
                test` does not run it). {versions}, {date.today():%Y-%m-%d}."""
            ),
            *paragraph(
                f"""What pynfs calls `all`, on both sides and for both versions at the same time.
                Tests that differ are run {AGAIN} times more, one after the other. Numbers are:
                passed / passed with a warning / failed / omitted by pynfs."""
            ),
            *table(
                ("NFS", "bare", "mount", "differing", "bare took", "mount took"),
                (
                    (
                        one.suite,
                        numbers(one.bare),
                        numbers(one.mount),
                        len(one.differing()) or "–",
                        f"{one.bare_s:.0f} s",
                        f"{one.mount_s:.0f} s",
                    )
                    for one in ran
                ),
            ),
            "",
            "## Differences",
            "",
            *(table(DIFFERENCE, different) if different else ["None."]),
            "",
            "## Modules",
            "",
            *table(("module", "bare", "mount"), (row for one in ran for row in modules(one))),
            "",
            "## Failing on both sides",
            "",
            *paragraph(
                """So with Ganesha over ext4 itself. Where the two sides say something else, both
                are quoted."""
            ),
            *table(("test", "what it says"), common(ran, ("failure", "timeout", "none"))),
            "",
            *(warnings if warned else []),
            "## Configuration",
            "",
            *paragraph("On both sides the same, but for the paths and the ports:"),
            "```",
            *(line for line in configuration.splitlines() if line.strip()),
            "```",
            "",
        ]
    )


def commit(checkout: Path) -> str:
    """Which pynfs it is."""
    done = subprocess.run(
        ["git", "-C", checkout, "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or "of unknown version"


def main(arguments: Sequence[str] | None = None) -> int:
    """0: no test that passes over the bare directory always fails over the mount."""
    parser = argparse.ArgumentParser("python -m tests.conformance.pynfs", description=__doc__)
    parser.add_argument("--pynfs", type=Path, required=True, help="a checkout, built")
    parser.add_argument("--python", help="what runs it; default: its .venv's, or python3")
    parser.add_argument("--nfs", choices=VERSIONS, help="only the tests of this one")
    parser.add_argument("tests", nargs="*", help="codes; only these, and write no document")
    chosen = parser.parse_args(arguments)
    if os.geteuid():
        parser.error("needs root")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    pynfs = chosen.pynfs.resolve()
    own = pynfs / ".venv" / "bin" / "python"
    python = chosen.python or (str(own) if own.exists() else "python3")
    began_s = time.monotonic()
    configuration = ""
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="conf-nfs-")))
        directory.chmod(0o755)
        sides = stack.enter_context(two_sides(directory, 0))
        for (side, nfs), port in PORTS.items():
            share = Share(
                name="data", path=sides[side].path / nfs, mountpoint=sides[side].mountpoint
            )
            share.path.mkdir()
            server = servers.Ganesha(
                directory / f"ganesha-{side}-{nfs}", [share], port, squash="No_Root_Squash"
            )
            stack.enter_context(server)
            written = (server.directory / "ganesha.conf").read_text()
            configuration = written.replace(str(directory), "DIRECTORY")
        ran = compare(
            pynfs, python, [chosen.nfs] if chosen.nfs else [*VERSIONS], chosen.tests or TESTS
        )
    minutes = (time.monotonic() - began_s) / 60
    versions = (
        f"pynfs {commit(pynfs)}, NFS-Ganesha {version('ganesha.nfsd', '-v')}, "
        f"Linux {platform.release()}, modamafs {version(*command(), '--version')}"
    )
    print(*table(DIFFERENCE, differences(ran)), "", sep="\n")
    print(
        *table(("module", "bare", "mount"), (row for one in ran for row in modules(one))), sep="\n"
    )
    if not (chosen.tests or chosen.nfs):
        DOCUMENT.parent.mkdir(exist_ok=True)
        DOCUMENT.write_text(document(ran, versions, minutes, configuration))
        print(f"\nwritten: {DOCUMENT}")
    return int(any(row[1] == "success" and row[4].startswith("0 of") for row in differences(ran)))


if __name__ == "__main__":
    sys.exit(main())
