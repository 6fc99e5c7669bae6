"""`python -m benchmarks.restart`: how long anybody waits when the worker is killed.

The worker of a modamafs mount is killed with SIGKILL, ten times at random moments, while one
process reads an open file and another creates, renames, stats and removes files in a loop. Printed
for each kill: the longest pause of each loop from that kill to the next. A witness reads the same
file on the bare directory all the time: its pauses are the machine's own.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import figures, load, machine, options, report, store
from benchmarks.systems import Modamafs, SystemFailedError

FILE_BYTES = 64 << 20
CALM_S = 3.0
"""How long the loops run undisturbed, on the bare directory and on the mount."""
NEW_WORKER_S = 30.0
JUDGED = ("metadata", "reader")
LIMITS = {"metadata": figures.RESTART_METADATA_S, "reader": figures.RESTART_READER_S}


@dataclass(slots=True)
class Loop:
    """One loop of `load.py`: while it runs a process, afterwards its findings."""

    process: subprocess.Popen[bytes]
    operations: int = 0
    errors: list[str] = field(default_factory=list)
    gaps: list[tuple[float, float]] = field(default_factory=list)

    def finish(self) -> None:
        """Stop the loop and take its findings."""
        self.process.terminate()
        try:
            output, _ = self.process.communicate(timeout=10)
            found: dict[str, Any] = json.loads(output)
        except (subprocess.TimeoutExpired, ValueError):
            self.process.kill()
            self.errors = ["the loop hangs or crashed"]
            return
        self.operations, self.errors = found["operations"], found["errors"]
        self.gaps = [(begin, end) for begin, end in found["gaps"]]

    def longest(self, since: float, until: float) -> float:
        """The longest pause that ended in this stretch of CLOCK_MONOTONIC, in seconds."""
        ended = (end - begin for begin, end in self.gaps if since < end <= until)
        return max(ended, default=load.NOTED_S)


@contextmanager
def loops(root: Path, bare: Path, work: str) -> Iterator[dict[str, Loop]]:
    """Both loops below `root` and the witness below `bare`, running inside the block.

    The metadata loop has the directory `work` of `root` for itself.
    """
    targets = {"metadata": root / work, "reader": root / "data", "witness": bare / "data"}
    running: dict[str, Loop] = {}
    try:
        for kind, target in targets.items():
            verb = "metadata" if kind == "metadata" else "reader"
            command = [sys.executable, "-I", "-S", load.__file__, verb, str(target)]
            running[kind] = Loop(subprocess.Popen(command, stdout=subprocess.PIPE))
        yield running
        for loop in running.values():
            loop.finish()
    finally:
        for loop in running.values():
            loop.process.kill()
            with suppress(subprocess.TimeoutExpired):
                loop.process.wait(5)


@dataclass(frozen=True, slots=True)
class Kill:
    """One killed worker, and when (CLOCK_MONOTONIC)."""

    at: float
    worker_pid: int


def kill(system: Modamafs, last: int | None, wait_s: float) -> Kill:
    """Wait, see that there is a new worker, kill it. Raises `SystemFailedError` if none came."""
    time.sleep(wait_s)  # asking earlier would load the machine just while the worker starts
    deadline = time.monotonic() + NEW_WORKER_S
    while time.monotonic() < deadline:
        with suppress(SystemFailedError, KeyError, TypeError, ValueError):
            pid = system.worker_pid()
            if pid not in (0, last):
                at = time.monotonic()
                os.kill(pid, signal.SIGKILL)
                return Kill(at, pid)
        time.sleep(0.1)
    raise SystemFailedError(f"no new worker within {NEW_WORKER_S:g} s")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = options.parser("python -m benchmarks.restart", __doc__)
    parser.add_argument("--kills", type=options.positive, default=10, help="default: 10")
    parser.add_argument(
        "--interval", type=float, default=2.0, help="mean seconds between kills; default: 2"
    )
    parser.add_argument("--seed", type=int, default=None, help="of the moments; default: any")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write; 0 when the limits are kept and no loop saw an error, else 1."""
    chosen = parse(arguments)
    if (reason := options.obstacle(["modamafs"])) is not None:
        return options.refuse(reason)
    seed = chosen.seed if chosen.seed is not None else random.SystemRandom().randrange(10**6)
    moments = random.Random(seed)
    kills: list[Kill] = []
    try:
        with store.directory(chosen.directory, store.QUICK) as place:
            store.make_file(place.root / "data", FILE_BYTES)
            facts = machine.facts(place.root)
            with loops(place.root, place.root, place.work) as bare:
                time.sleep(CALM_S)
            place.settle()
            system = Modamafs(place.root, place.mountpoint)
            with system.mounted(), loops(system.root, place.root, place.work) as loaded:
                begin = time.monotonic()
                time.sleep(CALM_S)
                calm = time.monotonic()
                for _ in range(chosen.kills):
                    last = kills[-1].worker_pid if kills else None
                    kills.append(kill(system, last, moments.uniform(0.5, 1.5) * chosen.interval))
                time.sleep(chosen.interval)
                end = time.monotonic()
                restarts = int(system.status()["restarts"])
    except KeyboardInterrupt:
        return options.refuse("interrupted")
    except (OSError, SystemFailedError) as error:
        print(f"benchmarks.restart: after {len(kills)} kills: {error}", file=sys.stderr)
        return 1
    facts |= {"seed": seed, "interval_s": chosen.interval, "restarts": restarts}
    return show(chosen.results, facts, bare, loaded, kills, (begin, calm, end))


def show(
    results: Path,
    facts: dict[str, object],
    bare: dict[str, Loop],
    loaded: dict[str, Loop],
    kills: list[Kill],
    times: tuple[float, float, float],
) -> int:
    """Print the table, write the JSON; the exit status."""
    begin, calm, end = times
    ends = [each.at for each in kills[1:]] + [end]
    gaps = {
        kind: [loop.longest(each.at, until) for each, until in zip(kills, ends, strict=True)]
        for kind, loop in loaded.items()
    }
    worst = {kind: max(found) for kind, found in gaps.items()}
    text = report.format_seconds
    always = (0.0, float("inf"))
    judge = [[LIMITS[kind][step] for kind in JUDGED] for step in (0, 1)]
    lines = [["longest pause", "metadata loop", "reader", "witness (bare)"]]
    lines.append(["bare directory", *(text(bare[kind].longest(*always)) for kind in gaps)])
    lines.append(["no kill", *(text(loaded[kind].longest(begin, calm)) for kind in gaps)])
    for number in range(len(kills)):
        lines.append([f"kill {number + 1}", *(text(gaps[kind][number]) for kind in gaps)])
    lines.append(["longest", *(text(worst[kind]) for kind in gaps)])
    for title, limits in zip(("first: less than", "wanted: less than"), judge, strict=True):
        lines.append([title, *map(text, limits), ""])
        met = [worst[kind] < limit for kind, limit in zip(JUDGED, limits, strict=True)]
        lines.append(["  met", *(report.VERDICT[each] for each in met), ""])
    lines.append(["errors seen", *(str(len(loaded[kind].errors)) for kind in gaps)])
    lines.append(["operations", *(str(loaded[kind].operations) for kind in gaps)])
    print(report.lines_up(lines))
    for kind in gaps:
        for error in loaded[kind].errors:
            print(f"{kind}: {error}")
    passed = all(
        worst[kind] < LIMITS[kind][0] and not loaded[kind].errors and loaded[kind].operations
        for kind in JUDGED
    )
    path = results / f"{report.stem('-restart')}.json"
    content: dict[str, object] = {
        "machine": facts,
        "kills": [asdict(each) for each in kills],
        "gaps_s": gaps,
        "longest_s": worst,
        "bare_longest_s": {kind: bare[kind].longest(*always) for kind in gaps},
        "errors": {kind: loaded[kind].errors for kind in gaps},
        "operations": {kind: loaded[kind].operations for kind in gaps},
        "limits_s": LIMITS,
        "passed": bool(passed),
    }
    report.write_json(path, content)
    print(f"written: {path}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
