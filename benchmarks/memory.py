"""`python -m benchmarks.memory`: what 100,000 known inodes cost the worker.

A tree of that many files is walked through a fresh modamafs mount with one stat a file, so that the
kernel knows every inode; the worker's resident memory is compared before and after.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import figures, jobs, machine, options, report, store
from benchmarks.systems import Modamafs

SETTLE_S = 1.0
UNIT = 100_000


def memory_bytes(pid: int) -> dict[str, int]:
    """Resident and private memory of a process: `rss` and `private`, in bytes."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    found = {name: int(size) << 10 for name, size in re.findall(r"(\w+):\s+(\d+) kB", text)}
    return {"rss": found["Rss"], "private": found["Private_Clean"] + found["Private_Dirty"]}


def descriptors(pid: int) -> int:
    """How many descriptors a process holds."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = options.parser("python -m benchmarks.memory", __doc__)
    parser.add_argument("--files", type=options.positive, default=UNIT, help="default: 100000")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write; 0 when the limit is kept, 1 when not."""
    chosen = parse(arguments)
    with options.place_for("benchmarks.memory", chosen.directory) as place:
        store.make_tree(place.root / "tree", chosen.files)
        facts = machine.facts(place.root)
        system = Modamafs(place.root, place.mountpoint)
        with system.mounted():
            os.listdir(system.root)
            time.sleep(SETTLE_S)
            pid = system.worker_pid()
            before, held = memory_bytes(pid), descriptors(pid)
            begin = time.monotonic()
            jobs.warm_tree(system.root / "tree")
            seconds = time.monotonic() - begin
            time.sleep(SETTLE_S)
            after, holds = memory_bytes(pid), descriptors(pid)
            same = system.worker_pid() == pid
    if not same:
        print("benchmarks.memory: the worker was replaced meanwhile", file=sys.stderr)
        return 1
    grown = {kind: (after[kind] - before[kind]) / chosen.files * UNIT / 1e6 for kind in before}
    passed = grown["rss"] <= figures.MEMORY_MB
    lines = [["worker's memory, MB", "before", "after", f"per {UNIT:,} inodes", "limit", "met"]]
    for kind in before:
        limit = [f"≤ {figures.MEMORY_MB:g}", report.VERDICT[passed]] if kind == "rss" else ["", ""]
        sizes = [f"{size[kind] / 1e6:.1f}" for size in (before, after)]
        lines.append([kind, *sizes, f"{grown[kind]:.1f}", *limit])
    lines.append(["descriptors held", str(held), str(holds), "", "", ""])
    print(report.lines_up(lines))
    print(f"{chosen.files:,} files walked in {seconds:.1f} s")
    path = chosen.results / f"{report.stem('-memory')}.json"
    content: dict[str, object] = {
        "machine": facts,
        "files": chosen.files,
        "walk_s": seconds,
        "before_bytes": before,
        "after_bytes": after,
        "mb_per_100000": grown,
        "limit_mb": figures.MEMORY_MB,
        "descriptors": {"before": held, "after": holds},
        "passed": passed,
    }
    report.write_json(path, content)
    print(f"written: {path}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
