"""`python -m benchmarks.index`: the index of a large store.

How fast it is made, from a cold disk and a warm one, followed, checked and searched, and how large
it gets. Without a mount: what the watcher does in its thread, and the searcher in its process.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import random
import resource
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import machine, options, report
from modamafs.index.check import check
from modamafs.index.database import FILE, open_reader
from modamafs.index.find import find
from modamafs.index.reconcile import Change, Index
from modamafs.model import Caller
from modamafs.store.backing import Store

FILES_IN_SESSION = 500
SESSIONS_IN_PROJECT = 10
PROJECTS_IN_AREA = 20
CHANGES = 10_000
PASSES = 9
QUERIES = {
    "part of a name": "frame_0042", "a name": "scan_00007_frame_0042.tif", "glob": "*_0007.tif",
    "key=value": "beam_energy=300keV", "key>value": "beam_energy>0.25MeV", "a word": "skyrmions",
    "a rare word": "magnons", "words and a name": "magnons frame_0042",
}  # fmt: skip
LEAST_FILES_PER_S, MOST_APPLY_S, MOST_QUERY_MS = 20_000, 5.0, 50.0


def make(store: Path, count: int) -> list[Path]:
    """A store of so many files; the directories that they lie in."""
    directories = []
    for number in range(count // FILES_IN_SESSION):
        project = number // SESSIONS_IN_PROJECT
        area = project // PROJECTS_IN_AREA
        raw = store / f"area {area}" / f"project {project}" / f"2026-11-{number:05d}" / "raw"
        raw.mkdir(parents=True)
        describe(raw.parent, number)
        fd = os.open(raw, os.O_RDONLY)
        for frame in range(FILES_IN_SESSION):
            name = f"scan_{number:05d}_frame_{frame:04d}.tif"
            os.close(os.open(name, os.O_CREAT | os.O_WRONLY, dir_fd=fd))
        os.close(fd)
        directories.append(raw)
    return directories


def describe(session: Path, number: int) -> None:
    """A record with words and a value."""
    (session / ".modama").mkdir()
    what = "magnons" if number % 997 == 7 else "skyrmions" if number % 3 else "vortices"
    record = {
        "id": str(number),
        "title": f"Run {number}: {what}",
        "owner": {"name": "Root", "user": "root"},
        "date": f"2026-11-{number % 28 + 1:02d}",
        "metadata": {"beam energy": {"value": 60 + number % 4 * 80, "unit": "keV"}},
    }
    (session / ".modama/session.json").write_text(json.dumps(record))


def change(directories: list[Path], count: int) -> list[Change]:
    """So many random changes, and what a watch says of them."""
    some = random.Random(7)
    changes = []
    for number in range(count):
        directory = some.choice(directories)
        names = os.listdir(directory)
        parent = directory.stat().st_ino
        path = directory / some.choice(names)
        ino = path.lstat().st_ino
        kind = number % 4
        if kind == 0:
            path = directory / f"new {number}.tif"
            path.touch()
            changes.append(Change(parent, _name(path), path.stat().st_ino, "created", True, number))
        elif kind == 1:
            path.write_bytes(b"1")
            changes.append(Change(parent, _name(path), ino, "modified", True, number))
        elif kind == 2:
            path.unlink()
            changes.append(Change(parent, _name(path), ino, "removed", True, number))
        else:
            other = some.choice(directories)
            new = other / f"moved {number}.tif"
            path.rename(new)
            new_parent = other.stat().st_ino
            changes.append(
                Change(parent, _name(path), ino, "moved", True, number, new_parent, _name(new))
            )
    return changes


def _name(path: Path) -> bytes:
    return os.fsencode(path.name)


def drop_caches() -> None:
    """So that directories are read from the disk."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def measure(base: Path, count: int) -> dict[str, Any]:
    """The figures."""
    found: dict[str, Any] = {"files": count}
    directories = make(base / "indexed", count)
    with Store(base / "indexed") as store:
        for kind in ("cold", "warm"):
            if kind == "cold":
                drop_caches()
            index = Index(store, base / f"index-{kind}")
            began_s = time.monotonic()
            longest_s = 0.0
            for _ in index.reconcile(lambda _: None):
                longest_s = max(longest_s, time.monotonic() - began_s - found.get("_at_s", 0.0))
                found["_at_s"] = time.monotonic() - began_s
            found[f"rebuild_{kind}_files_per_s"] = round(count / (time.monotonic() - began_s))
            found[f"longest_step_{kind}_s"] = round(longest_s, 3)
            del found["_at_s"]
            if kind == "cold":
                index.close()
        began_s = time.monotonic()
        for _ in index.reconcile(lambda _: None):
            pass
        found["reconcile_files_per_s"] = round(count / (time.monotonic() - began_s))
        changes = change(directories, CHANGES)
        began_s = time.monotonic()
        index.apply(changes)
        found["apply_10000_changes_s"] = round(time.monotonic() - began_s, 2)
        assert not index.needs_reconcile
        index.close()
        size_bytes = (base / "index-warm" / FILE).stat().st_size
        found["index_bytes_per_file"] = round(size_bytes / count)
        began_s = time.monotonic()
        found["differences"] = sum(1 for _ in check(store, base / "index-warm", 0))
        found["check_files_per_s"] = round(count / (time.monotonic() - began_s))
        found["find_ms"] = searches_ms(store, base / "index-warm")
    found["peak_rss_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    return found


def searches_ms(store: Store, directory: Path) -> dict[str, float]:
    """The median of each query's first page, warm, as root."""
    found = {}
    gc.disable()  # as in the searcher
    with contextlib.closing(open_reader(directory)) as connection:
        for name, query in QUERIES.items():
            samples = []
            for _ in range(PASSES + 1):
                began_s = time.perf_counter()
                page = find(connection, store, query, Caller(0, 0))
                samples.append((time.perf_counter() - began_s) * 1000)
                assert page.results, query
                gc.collect()
            found[name] = round(statistics.median(samples[1:]), 1)
    gc.enable()
    return found


def rows_of(found: dict[str, Any]) -> list[list[str]]:
    """The table."""
    apply_s, find_ms = found["apply_10000_changes_s"], found["find_ms"]
    cold, warm = found["rebuild_cold_files_per_s"], found["rebuild_warm_files_per_s"]
    least, verdict = LEAST_FILES_PER_S, report.VERDICT
    return [
        ["job", "measured", "limit", "met"],
        ["first build, cold", f"{cold} files/s", f">= {least}", verdict[cold >= least]],
        ["first build, warm", f"{warm} files/s", f">= {least}", verdict[warm >= least]],
        ["look at everything again", f"{found['reconcile_files_per_s']} files/s", "", ""],
        [f"apply {CHANGES} changes", f"{apply_s} s", f"< {MOST_APPLY_S:g} s",
         verdict[apply_s < MOST_APPLY_S]],
        ["check", f"{found['check_files_per_s']} files/s", "", ""],
        ["differences found", str(found["differences"]), "0", verdict[not found["differences"]]],
        *([f"find, {name}", f"{ms} ms", f"< {MOST_QUERY_MS:g} ms", verdict[ms < MOST_QUERY_MS]]
          for name, ms in find_ms.items()),
        ["size", f"{found['index_bytes_per_file']} bytes/file", "", ""],
        ["memory", f"{found['peak_rss_mib']} MiB", "", ""],
        ["longest step, warm", f"{found['longest_step_warm_s']} s", "", ""],
    ]  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write; 0 when all limits are kept, 1 when not."""
    parser = options.parser("python -m benchmarks.index", __doc__)
    parser.add_argument("--files", type=options.positive, default=1_000_000)
    chosen: argparse.Namespace = parser.parse_args(arguments)
    with options.place_for("benchmarks.index", chosen.directory) as place:
        facts = machine.facts(place.root)
        found = measure(place.root.parent, chosen.files)
    rows = rows_of(found)
    print(report.lines_up(rows))
    path = chosen.results / f"{report.stem('-index')}.json"
    passed = report.VERDICT[False] not in {row[-1] for row in rows}
    report.write_json(path, {"machine": facts, **found, "passed": passed})
    print(f"written: {path}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
