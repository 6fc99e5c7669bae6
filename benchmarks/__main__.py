"""`python -m benchmarks`: every figure beside bare, bindfs, mergerfs and plain pyfuse3."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime

from benchmarks import machine, options, report, runner, store
from benchmarks.jobs import JOBS
from benchmarks.systems import SYSTEMS

ROOM = 4
"""Bytes of free disk asked for, in sizes of the data file (it, two written copies, the rest)."""


def names(known: Mapping[str, object], text: str) -> list[str]:
    """Parse a comma-separated choice of `known`, in the order of `known`."""
    wanted = {word.strip() for word in text.split(",")} - {""}
    if not wanted <= known.keys():
        unknown = ", ".join(sorted(wanted - known.keys()))
        raise argparse.ArgumentTypeError(f"{unknown}: not one of {', '.join(known)}")
    if not wanted:
        raise argparse.ArgumentTypeError("choose at least one")
    return [name for name in known if name in wanted]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = options.parser("python -m benchmarks", __doc__)
    parser.add_argument(
        "--systems",
        type=lambda text: names(SYSTEMS, text),
        default=list(SYSTEMS),
        help=f"from {','.join(SYSTEMS)}; bare is always measured",
    )
    parser.add_argument(
        "--jobs",
        type=lambda text: names(JOBS, text),
        default=list(JOBS),
        help=f"from {','.join(JOBS)}",
    )
    parser.add_argument("--rounds", type=options.positive, default=3, help="default: 3")
    parser.add_argument("--quick", action="store_true", help="small sizes, for development")
    options.add_idle(parser)
    return parser.parse_args(arguments)


def progress(text: str) -> None:
    """On a terminal one line that is rewritten; elsewhere finished samples only."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text.rstrip()}", end="", file=sys.stderr, flush=True)
    elif text.endswith("\n"):
        print(text, end="", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write; 0 when "to reach first" is met everywhere, 1 when not, 2 usage."""
    chosen = parse(arguments)
    systems = [name for name in SYSTEMS if name == "bare" or name in chosen.systems]
    if (reason := options.obstacle(systems)) is not None:
        return options.refuse(reason)
    sizes = store.QUICK if chosen.quick else store.FULL
    began = datetime.now().astimezone()
    try:
        with (
            machine.awake(not chosen.idle) as awake,
            store.directory(chosen.directory, sizes) as place,
        ):
            if place.free() < ROOM * sizes.file_bytes:
                return options.refuse(
                    f"{chosen.directory}: needs {ROOM * sizes.file_bytes >> 20} MiB"
                )
            facts = machine.facts(place.root)
            progress(f"preparing {place.root}\n")
            store.fill(place)
            kinds = [SYSTEMS[name] for name in systems]
            jobs = [JOBS[name] for name in chosen.jobs]
            rows = runner.measure(place, jobs, kinds, chosen.rounds, progress)
    except KeyboardInterrupt:
        return options.refuse("interrupted; everything is unmounted and removed")
    except OSError as error:
        return options.refuse(str(error))
    progress("")
    stem = report.stem(("-quick" if chosen.quick else "") + ("-idle" if chosen.idle else ""))
    run: dict[str, object] = {
        "began": began.isoformat(timespec="seconds"),
        "ended": datetime.now().astimezone().isoformat(timespec="seconds"),
        "rounds": chosen.rounds,
        "cores_kept_awake": awake,
        "sizes": asdict(sizes),
    }
    report.write_json(chosen.results / f"{stem}.json", report.record(rows, facts, run))
    title = (
        f"modamafs {facts['revision']}, {began:%Y-%m-%d}: {facts['cores']} cores {facts['cpu']}, "
        f"kernel {facts['kernel']}, medians of {chosen.rounds} rounds"
    )
    report.chart(rows, systems, title, chosen.results / f"{stem}.png")
    print(report.table(rows, systems))
    print()
    print(report.summary(rows))
    print(f"load before: {facts['load_before']:.1f} on {facts['cores']} cores")
    print(f"written: {chosen.results / stem}.json, .png")
    return 1 if runner.missed(rows) else 0


if __name__ == "__main__":
    sys.exit(main())
