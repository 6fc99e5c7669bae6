"""Alternating rounds over jobs and systems, and what came out of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median

from benchmarks.figures import TARGETS
from benchmarks.jobs import Job, JobFailedError
from benchmarks.store import Store
from benchmarks.systems import System, SystemFailedError

SETTLE_S = 0.1
MOUNTED_S = 1.0
"""Between mount and job, for every system: daemons go on starting after they answer."""
CONTENT_REQUESTS = ("READ", "WRITE")
"""What the daemon must not see of a passthrough file."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One job on one system once: how long it took, or why it did not."""

    seconds: float | None
    failure: str | None = None
    requests: dict[str, int] | None = None
    unasked: str | None = None


@dataclass(slots=True)
class Row:
    """All samples of one job, by system."""

    job: str
    label: str
    data: bool
    samples: dict[str, list[Sample]] = field(default_factory=dict)

    def seconds(self, system: str) -> float | None:
        """The median of a system's rounds; None when a round failed."""
        taken = [sample.seconds for sample in self.samples.get(system, [])]
        done = [seconds for seconds in taken if seconds is not None]
        return median(done) if done and len(done) == len(taken) else None

    def noise(self) -> float:
        """Bare's slowest round beside its fastest one: how far the figures can be trusted."""
        taken = [sample.seconds for sample in self.samples["bare"] if sample.seconds is not None]
        return max(taken) / min(taken) if taken else float("inf")

    def ratio(self, system: str) -> float | None:
        """The median beside bare's median of the same rounds."""
        mine, bare = self.seconds(system), self.seconds("bare")
        return None if mine is None or bare is None else mine / bare

    def failure(self, system: str) -> str | None:
        """How the system failed the job, with the number of rounds if some went well."""
        samples = self.samples.get(system, [])
        failures = [sample.failure for sample in samples if sample.failure is not None]
        if not failures:
            return None
        often = "" if len(failures) == len(samples) else f" {len(failures)}/{len(samples)}"
        return failures[0] + often

    def first_met(self, system: str = "modamafs") -> bool | None:
        """Whether "to reach first" is met; None when the system was not measured."""
        if not self.samples.get(system):
            return None
        ratio = self.ratio(system)
        return ratio is not None and TARGETS[self.job].first_met(ratio)

    def goal_met(self, system: str = "modamafs") -> bool | None:
        """Whether the goal is met; None when that cannot be said from this run."""
        if not self.samples.get(system):
            return None
        ratio = self.ratio(system)
        if ratio is None:
            return False
        return TARGETS[self.job].goal_met(ratio, self.ratio("bindfs"))

    def loss(self, system: str = "modamafs") -> float:
        """Ratio beside "to reach first": above 1 is a miss, infinite a failure."""
        if not self.samples.get(system):
            return 0.0
        ratio = self.ratio(system)
        return float("inf") if ratio is None else ratio / TARGETS[self.job].first

    def content_requests(self) -> dict[str, int] | None:
        """READ and WRITE requests that modamafs's daemon saw; None when it did not say."""
        if not self.data:
            return {}
        total = dict.fromkeys(CONTENT_REQUESTS, 0)
        for sample in self.samples.get("modamafs", []):
            if sample.requests is None:
                return None
            for kind in CONTENT_REQUESTS:
                total[kind] += sample.requests.get(kind, 0)
        return total


def passthrough(rows: Sequence[Row]) -> dict[str, int] | None:
    """READ and WRITE requests over all rows; None when modamafs was not asked or did not say."""
    total = dict.fromkeys(CONTENT_REQUESTS, 0)
    asked = [row for row in rows if row.data and row.samples.get("modamafs")]
    for row in asked:
        counts = row.content_requests()
        if counts is None:
            return None
        for kind, count in counts.items():
            total[kind] += count
    return total if asked else None


def missed(rows: Sequence[Row]) -> list[str]:
    """The rows, passthrough included, whose "to reach first" modamafs misses."""
    names = [row.label for row in rows if row.first_met() is False]
    asked = any(row.data and row.samples.get("modamafs") for row in rows)
    if asked and passthrough(rows) != dict.fromkeys(CONTENT_REQUESTS, 0):
        names.append("reads and writes seen by the daemon")
    return names


def sample(job: Job, system: System, store: Store) -> Sample:
    """Do one job once on one system, freshly mounted, and leave nothing behind."""
    requests, unasked = None, None
    try:
        job.warm()
        with system.mounted():
            time.sleep(MOUNTED_S)
            try:
                job.setup(system.root)
                seconds = job.run(system.root)
                if job.data:
                    requests, unasked = count(system)
            except JobFailedError as error:
                verb = "fails" if system.alive() else "dies"
                return Sample(None, f"{verb} {error}")
        job.verify()
    except JobFailedError as error:
        return Sample(None, f"fails {error}")
    except SystemFailedError as error:
        return Sample(None, str(error))
    finally:
        store.settle()
        time.sleep(SETTLE_S)
    return Sample(seconds, None, requests, unasked)


def count(system: System) -> tuple[dict[str, int] | None, str | None]:
    """The requests that the daemon has seen, or why it did not say; the sample stands anyway."""
    try:
        return system.requests(), None
    except SystemFailedError as error:
        return None, str(error)


def measure(
    store: Store,
    jobs: Sequence[type[Job]],
    systems: Sequence[type[System]],
    rounds: int,
    progress: Callable[[str], None],
) -> list[Row]:
    """All jobs on all systems, `rounds` times; the order of the systems rotates."""
    made = [job(store) for job in jobs]
    rows = [Row(job.name, job.label, job.data) for job in made]
    for turn in range(rounds):
        for number, (job, row) in enumerate(zip(made, rows, strict=True)):
            shift = (turn + number) % len(systems)
            for kind in [*systems[shift:], *systems[:shift]]:
                progress(f"round {turn + 1}/{rounds}  {job.label}  {kind.name}")
                taken = sample(job, kind(store.root, store.mountpoint), store)
                row.samples.setdefault(kind.name, []).append(taken)
                said = f"{taken.seconds:.4f} s" if taken.seconds is not None else taken.failure
                progress(f"round {turn + 1}/{rounds}  {job.label}  {kind.name}  {said}\n")
    return rows
