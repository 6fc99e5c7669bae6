"""`python -m benchmarks.landing`: landing directories and views over many sessions.

A project of 10,000 sessions with records. Measured in one mount: listing the landing tree, reading
`seal/state` of one session after the other, listing a view; beside them what listing and reading
cost on the bare store.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import figures, machine, options, report
from benchmarks.systems import Modamafs

READ_SESSIONS = 500
PASSES = 5


def make_sessions(project: Path, count: int) -> None:
    """Sessions with a record and an empty `raw`, one a day and instrument in turn."""
    (project / ".modama").mkdir(parents=True)
    owner = {"name": "Root", "user": "root"}
    described = {"id": str(uuid.uuid4()), "title": "Many sessions", "owner": owner}
    (project / ".modama/project.json").write_text(json.dumps(described))
    for number in range(count):
        session = project / f"s{number:05}"
        (session / "raw").mkdir(parents=True)
        (session / ".modama").mkdir()
        described = {
            "id": str(uuid.uuid4()),
            "title": f"Session {number}",
            "owner": owner,
            "instrument": f"instrument-{number % 7}",
            "date": f"20{number % 25:02}-{number % 12 + 1:02}-{number % 28 + 1:02}",
            "metadata": {"beam energy": {"value": 60 + number % 4 * 80, "unit": "keV"}},
        }
        (session / ".modama/session.json").write_text(json.dumps(described))
    os.sync()


def median_s(call: Callable[[], object], passes: int = PASSES) -> float:
    """The median time of a call, after one that does not count."""
    call()
    samples = []
    for _ in range(passes):
        begin = time.perf_counter()
        call()
        samples.append(time.perf_counter() - begin)
    return statistics.median(samples)


def measure(root: Path, mountpoint: Path, count: int) -> list[list[str]]:
    """The table's rows: job, modamafs, bare, limit, met."""
    project = Path("area/project")
    tree = mountpoint / "landing" / project
    names = sorted(os.listdir(root / project))[1 : READ_SESSIONS + 1]

    def states() -> list[float]:
        samples = []
        for name in names:
            begin = time.perf_counter()
            assert (tree / name / "seal/state").read_text() == "open\n"
            samples.append(time.perf_counter() - begin)
        return samples

    listed = median_s(lambda: os.listdir(tree))
    assert len(os.listdir(tree)) > count
    bare = median_s(lambda: os.listdir(root / project))
    cat_s = statistics.median(states())
    record = root / project / names[0] / ".modama/session.json"
    bare_cat_s = median_s(record.read_text, READ_SESSIONS)
    view = mountpoint / "views/all/by-instrument/instrument-3"
    view_s = median_s(lambda: os.listdir(view))
    assert len(os.listdir(view)) >= count // 7
    ls, cat = figures.LANDING_LIST_S, figures.LANDING_CAT_S
    return [
        ["job", "modamafs", "bare", "limit", "met"],
        [f"list {count} sessions in landing/", f"{listed * 1e3:.1f} ms", f"{bare * 1e3:.1f} ms",
         f"< {ls * 1e3:g} ms", report.VERDICT[listed < ls]],
        ["one cat seal/state", f"{cat_s * 1e3:.2f} ms", f"{bare_cat_s * 1e3:.2f} ms",
         f"< {cat * 1e3:g} ms", report.VERDICT[cat_s < cat]],
        ["list a view of a seventh of them", f"{view_s * 1e3:.1f} ms", "", "", ""],
    ]  # fmt: skip


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = options.parser("python -m benchmarks.landing", __doc__)
    parser.add_argument("--sessions", type=options.positive, default=10_000)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write; 0 when all limits are kept, 1 when not."""
    chosen = parse(arguments)
    with options.place_for("benchmarks.landing", chosen.directory) as place:
        facts = machine.facts(place.root)
        make_sessions(place.root / "area/project", chosen.sessions)
        system = Modamafs(place.root, place.mountpoint)
        with system.mounted():
            rows = measure(place.root, place.mountpoint, chosen.sessions)
    print(report.lines_up(rows))
    path = chosen.results / f"{report.stem('-landing')}.json"
    passed = report.VERDICT[False] not in {row[-1] for row in rows}
    content = {"machine": facts, "sessions": chosen.sessions, "rows": rows, "passed": passed}
    report.write_json(path, content)
    print(f"written: {path}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
