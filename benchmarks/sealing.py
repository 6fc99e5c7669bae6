"""`python -m benchmarks.sealing`: sealing and verifying beside `b3sum` on the same files.

Two trees: a few large files, and many small ones. In each round `b3sum` hashes a tree, modamafs
seals it, verifies it and unseals it, one after the other, each beginning with an empty page cache
(`--warm`: with a full one). Rates are of whole commands, from the shell's prompt to the next one.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks import figures, machine, options, report
from benchmarks.systems import Modamafs, SystemFailedError, run

PIECE_BYTES = 64 << 20
SMALL_BYTES = 2000
SESSION = Path("area/project/session")


class Sample(NamedTuple):
    """One command."""

    seconds: float
    peak_mb: float
    """Resident memory of the process, at most."""


def command(*words: str | Path) -> Sample:
    """Run one command to its end; SystemFailedError when it fails."""
    begin = time.monotonic()
    pid = os.posix_spawnp(
        words[0],
        [str(word) for word in words],
        os.environ,
        file_actions=[(os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0)],
    )
    _, status, usage = os.wait4(pid, 0)
    seconds = time.monotonic() - begin
    if status:
        raise SystemFailedError(f"{' '.join(map(str, words[:3]))} …: status {status}")
    return Sample(seconds, usage.ru_maxrss / 1e3)


def make_large(directory: Path, size_bytes: int, file_bytes: int) -> None:
    """Files without holes, of bytes that no disk can compress."""
    directory.mkdir(parents=True)
    piece = os.urandom(PIECE_BYTES)
    for number in range(size_bytes // file_bytes):
        with open(directory / f"scan-{number:03}.raw", "wb", buffering=0) as file:
            for _ in range(file_bytes // PIECE_BYTES):
                file.write(piece)
    os.sync()


def make_small(directory: Path, count: int) -> None:
    """Files of SMALL_BYTES, 1000 a directory."""
    for number in range(count):
        path = directory / f"{number // 1000:04}" / f"frame-{number:06}.tif"
        if number % 1000 == 0:
            path.parent.mkdir(parents=True)
        path.write_bytes(number.to_bytes(8, "big") * (SMALL_BYTES // 8))
    os.sync()


def round_of(tree: Path, *, warm: bool) -> dict[str, Sample]:
    """Each command once, over the same tree."""
    modamafs = str(Path(sys.executable).with_name("modamafs"))
    files = [str(path) for path in sorted(tree.rglob("*")) if path.is_file()]
    listed = tree.with_name(f"{tree.name}.files")
    listed.write_text("\n".join(files) + "\n")
    commands: dict[str, list[str]] = {
        "b3sum": ["xargs", "-a", str(listed), "-d", "\n", "-n", "1000000", "b3sum"],
        "seal": [modamafs, "seal", str(tree)],
        "verify": [modamafs, "verify", str(tree)],
        "unseal": [modamafs, "unseal", str(tree), "--reason", "benchmark"],
    }
    samples = {}
    for name, words in commands.items():
        if warm:
            run("sh", "-c", f"cat {tree}/* >/dev/null 2>&1; true", timeout_s=600)
        else:
            os.sync()
            Path("/proc/sys/vm/drop_caches").write_text("3")
        samples[name] = command(*words)
        print(f"  {name:<8}{samples[name].seconds:8.2f} s", file=sys.stderr, flush=True)
    listed.unlink()
    return samples


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = options.parser("python -m benchmarks.sealing", __doc__)
    parser.add_argument("--gb", type=options.positive, default=20, help="large files; default: 20")
    parser.add_argument("--file-mb", type=options.positive, default=1024, help="default: 1024")
    parser.add_argument("--files", type=options.positive, default=100_000, help="small ones")
    parser.add_argument("--rounds", type=options.positive, default=3)
    parser.add_argument("--warm", action="store_true", help="with a full page cache")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write; 0 when all limits are kept, 1 when not."""
    chosen = parse(arguments)
    if shutil.which("b3sum") is None:
        return options.refuse("b3sum is not installed: apt install b3sum")
    size_bytes, file_bytes = chosen.gb * 1000**3, chosen.file_mb << 20
    size_bytes -= size_bytes % file_bytes
    with options.place_for("benchmarks.sealing", chosen.directory) as place:
        if place.free() < size_bytes * 1.1:
            return options.refuse(f"{chosen.directory} has no room for {chosen.gb} GB")
        Modamafs.command("init", place.root)
        facts = machine.facts(place.root)
        large, small = place.root / SESSION / "large", place.root / SESSION / "small"
        make_large(large, size_bytes, file_bytes)
        make_small(small, chosen.files)
        measured: dict[str, list[dict[str, Sample]]] = {"large": [], "small": []}
        for number in range(chosen.rounds):
            for tree in (large, small):
                print(f"round {number + 1}, {tree.name}", file=sys.stderr, flush=True)
                measured[tree.name].append(round_of(tree, warm=chosen.warm))
    rows, passed = judge(measured, size_bytes, chosen.files)
    print(report.lines_up(rows))
    path = chosen.results / f"{report.stem('-sealing-warm' if chosen.warm else '-sealing')}.json"
    content: dict[str, object] = {
        "machine": facts,
        "warm": chosen.warm,
        "size_bytes": size_bytes,
        "small_files": chosen.files,
        "samples": {
            name: [{job: sample._asdict() for job, sample in one.items()} for one in rounds]
            for name, rounds in measured.items()
        },
        "rows": rows,
        "passed": passed,
    }
    report.write_json(path, content)
    print(f"written: {path}")
    return 0 if passed else 1


def judge(
    measured: dict[str, list[dict[str, Sample]]], size_bytes: int, files: int
) -> tuple[list[list[str]], bool]:
    """The table, and whether every limit is kept."""
    rows = [["job", "median", "beside b3sum", "limit", "peak memory", "limit", "met"]]
    verdicts = []
    for tree, rounds in measured.items():
        for job in rounds[0]:
            seconds = statistics.median(one[job].seconds for one in rounds)
            ratio = statistics.median(one["b3sum"].seconds / one[job].seconds for one in rounds)
            peak_mb = max(one[job].peak_mb for one in rounds)
            limit, met = "", True
            if tree == "large":
                shown = f"{size_bytes / seconds / 1e9:.2f} GB/s"
                if job in ("seal", "verify"):
                    limit, met = f"≥ {figures.SEAL_RATIO:g}", ratio >= figures.SEAL_RATIO
            else:
                each_us = seconds / files * 1e6
                shown = f"{each_us:.0f} µs a file"
                if job in ("seal", "verify"):
                    limit = f"≤ {figures.SEAL_FILE_US:g} µs a file"
                    met = each_us <= figures.SEAL_FILE_US
            judged = job in ("seal", "verify")
            met = met and (not judged or peak_mb <= figures.SEAL_MB)
            verdicts.append(met)
            rows.append(
                [
                    f"{job} {tree}",
                    shown,
                    f"{ratio:.2f}",
                    limit,
                    f"{peak_mb:.0f} MB",
                    f"≤ {figures.SEAL_MB:g}" if judged else "",
                    report.VERDICT[met] if judged else "",
                ]
            )
    return rows, all(verdicts)


if __name__ == "__main__":
    sys.exit(main())
