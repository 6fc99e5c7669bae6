"""The table to beat (docs/design, "Figures"): the limits of each row, as ratios to bare."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Target:
    """`first` is to be reached now; `goal` is where to go, None meaning "faster than bindfs"."""

    first: float
    goal: float | None = None

    def first_met(self, ratio: float) -> bool:
        """Whether `ratio` (to bare) is good enough."""
        return ratio <= self.first

    def goal_met(self, ratio: float, bindfs: float | None) -> bool | None:
        """Whether `ratio` reaches the goal; None when bindfs was not measured in this run."""
        if self.goal is not None:
            return ratio <= self.goal
        return None if bindfs is None else ratio < bindfs

    @property
    def goal_text(self) -> str:
        """The goal as the table prints it."""
        return "< bindfs" if self.goal is None else f"≤ {self.goal:g}"


TARGETS: dict[str, Target] = {
    "read": Target(1.1, 1.03),
    "read-direct": Target(1.1, 1.03),
    "mmap": Target(1.1, 1.03),
    "write": Target(1.2, 1.05),
    "write-direct": Target(1.1, 1.05),
    "random": Target(1.15, 1.05),
    "stat-warm": Target(1.2, 1.1),
    "stat-cold": Target(25),
    "scandir": Target(25),
    "find": Target(15),
    "untar": Target(5),
    "rm": Target(9),
    "git-clone": Target(6),
    "git-status": Target(7),
}
"""By job name, in the order of the design's table."""

RESTART_METADATA_S = (1.0, 0.5)
"""Longest gap of a metadata loop when the worker is killed: to reach first, wanted."""
RESTART_READER_S = (0.1, 0.05)
"""Longest gap of a reader when the worker is killed: to reach first, wanted."""
MEMORY_MB = 60.0
"""Memory of the worker per 100,000 known inodes, in 10⁶ bytes."""
SEAL_RATIO = 0.9
"""Rate of sealing, and of verifying, large files, to that of `b3sum` on the same files."""
SEAL_FILE_US = 300.0
"""Sealing, and verifying, many small files: time for each."""
SEAL_MB = 400.0
"""Memory of the process that seals or verifies, in 10⁶ bytes."""
LANDING_LIST_S = 0.5
"""Listing the landing directories of 10,000 sessions, warm."""
LANDING_CAT_S = 0.005
"""One `cat seal/state` in there, the median."""
EXPORT_READ, EXPORT_WRITE = 0.95, 0.9
"""Rate of a server over the mount, to that of the same server over the bare directory."""
EXPORT_SMALL_TIMES = 5.0
"""Time for 1000 small files over SMB, the case of names ignored, in times of the bare directory."""
