"""`python -m benchmarks.watch`: how soon a change on the store is seen through the mount.

The kernel caches for minutes what the mount has told it. Each change is made directly on the store,
of something that was looked at through the mount right before; then the mount is looked at without
a pause until it shows the change. Beside it, the same on the bare directory: what looking costs.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks import machine, options, report
from benchmarks.systems import Modamafs

CHANGES = 200
"""Of each kind."""
MEDIAN_MS, MOST_MS = 20.0, 100.0
"""Limits of the median and of the 99th percentile."""
PATIENCE_S = 30.0
PAUSE_S = 0.02
"""Between two changes, at most: some come alone, and some soon after another."""

Change = Callable[[Path, Path], Callable[[], bool]]
"""Makes a change below the first directory; says whether it is seen below the second one."""

_numbers = itertools.count()


def created(store: Path, seen: Path) -> Callable[[], bool]:
    """A new name, which was asked for in vain before."""
    name = f"new{next(_numbers)}"
    assert not (seen / name).exists()
    (store / name).touch()
    return (seen / name).exists


def appended(store: Path, seen: Path) -> Callable[[], bool]:
    """A file grows."""
    size = (seen / "file").stat().st_size
    with open(store / "file", "ab") as file:
        file.write(b"more")
    return lambda: (seen / "file").stat().st_size == size + 4


def chmod(store: Path, seen: Path) -> Callable[[], bool]:
    """Permissions."""
    mode = (seen / "file").stat().st_mode ^ 0o040
    (store / "file").chmod(mode & 0o7777)
    return lambda: (seen / "file").stat().st_mode == mode


def set_xattr(store: Path, seen: Path) -> Callable[[], bool]:
    """An extended attribute, and with it the time of the last change."""
    before = (seen / "file").stat().st_ctime_ns
    os.setxattr(store / "file", "user.benchmark", str(next(_numbers)).encode())
    return lambda: (seen / "file").stat().st_ctime_ns != before


def renamed(store: Path, seen: Path) -> Callable[[], bool]:
    """A directory with files has another name; a path through it is looked at."""
    [old] = store.glob("directory*")
    assert (seen / old.name / "file").exists()
    new = f"directory{next(_numbers)}"
    old.rename(store / new)
    return lambda: not (seen / old.name).exists() and (seen / new / "file").exists()


def removed(store: Path, seen: Path) -> Callable[[], bool]:
    """A name that was there."""
    name = f"old{next(_numbers)}"
    (store / name).touch()
    deadline_s = time.monotonic() + PATIENCE_S
    while not (seen / name).exists() and time.monotonic() < deadline_s:
        pass
    (store / name).unlink()
    return lambda: not (seen / name).exists()


def listed(store: Path, seen: Path) -> Callable[[], bool]:
    """A directory's listing, which the kernel has cached."""
    before = len(os.listdir(seen))
    os.listdir(seen)
    (store / f"listed{next(_numbers)}").touch()
    return lambda: len(os.listdir(seen)) == before + 1


KINDS: dict[str, Change] = {
    "create": created, "append": appended, "chmod": chmod, "setxattr": set_xattr,
    "rename a directory": renamed, "remove": removed, "create, listed": listed,
}  # fmt: skip


def delays_ms(store: Path, seen: Path, change: Change, chooser: random.Random) -> Iterator[float]:
    """From the end of the change to the first look that shows it."""
    for _ in range(CHANGES):
        time.sleep(chooser.random() * PAUSE_S)
        is_seen = change(store, seen)
        begin = time.perf_counter()
        while not is_seen():
            if time.perf_counter() - begin > PATIENCE_S:
                raise TimeoutError(f"{change.__name__} is not seen")
        yield (time.perf_counter() - begin) * 1000


def prepare(directory: Path) -> None:
    """What is changed."""
    (directory / "directory").mkdir(parents=True)
    (directory / "directory" / "file").touch()
    (directory / "file").touch()


def measure(root: Path, mountpoint: Path) -> tuple[list[list[str]], dict[str, list[float]], bool]:
    """Rows of the table, all samples, and whether all limits are met."""
    rows, samples, met = [], {}, True
    for number, (name, change) in enumerate(KINDS.items()):
        chooser = random.Random(number)
        there, bare = f"area/seen{number}", f"area/bare{number}"
        prepare(root / there)
        prepare(root / bare)
        (mountpoint / there / "file").stat()
        found = samples[name] = list(delays_ms(root / there, mountpoint / there, change, chooser))
        direct = list(delays_ms(root / bare, root / bare, change, chooser))
        median, most = statistics.median(found), sorted(found)[int(0.99 * len(found))]
        is_met = median <= MEDIAN_MS and most <= MOST_MS
        met = met and is_met
        rows.append(
            [
                name,
                f"{median:.2f} ms",
                f"{most:.2f} ms",
                f"{max(found):.2f} ms",
                f"{statistics.median(direct):.3f} ms",
                "yes" if is_met else "NO",
            ]
        )
    return rows, samples, met


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write; 0 when all limits are kept, 1 when not."""
    chosen: argparse.Namespace = options.parser("python -m benchmarks.watch", __doc__).parse_args(
        arguments
    )
    with options.place_for("benchmarks.watch", chosen.directory) as place:
        facts = machine.facts(place.root)
        (place.root / "area").mkdir()
        system = Modamafs(place.root, place.mountpoint)
        with system.mounted():
            rows, samples, met = measure(place.root, place.mountpoint)
    head = ["change on the store", "median", "99 %", "longest", "bare", "met"]
    print(report.lines_up([head, *rows]))
    print(f"\nlimits: median {MEDIAN_MS:g} ms, 99 % {MOST_MS:g} ms; {CHANGES} changes each")
    path = chosen.results / f"{report.stem('-watch')}.json"
    report.write_json(path, {"machine": facts, "samples_ms": samples, "passed": met})
    print(f"written: {path}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
