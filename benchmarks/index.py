"""The index of a large store: how fast it is made, followed and checked, and how large it gets.

``python -m benchmarks.index DIRECTORY [FILES]`` (as root, on ext4, XFS or btrfs) makes a store in
the directory, and removes it again. Prints one JSON object.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from modamafs.index.check import check
from modamafs.index.database import FILE
from modamafs.index.reconcile import Change, Index
from modamafs.store.backing import Store

FILES_IN_SESSION = 500
SESSIONS_IN_PROJECT = 10
PROJECTS_IN_AREA = 20
CHANGES = 10_000


def make(store: Path, count: int) -> list[Path]:
    """A store of so many files; the directories that they lie in."""
    directories = []
    for number in range(count // FILES_IN_SESSION):
        project = number // SESSIONS_IN_PROJECT
        area = project // PROJECTS_IN_AREA
        raw = store / f"area {area}" / f"project {project}" / f"2026-11-{number:05d}" / "raw"
        raw.mkdir(parents=True)
        fd = os.open(raw, os.O_RDONLY)
        for frame in range(FILES_IN_SESSION):
            name = f"scan_{number:05d}_frame_{frame:04d}.tif"
            os.close(os.open(name, os.O_CREAT | os.O_WRONLY, dir_fd=fd))
        os.close(fd)
        directories.append(raw)
    return directories


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
    directories = make(base / "store", count)
    with Store(base / "store") as store:
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
    found["peak_rss_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    return found


def main() -> None:
    """See above."""
    base = Path(sys.argv[1]) / "modamafs-index-benchmark"
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 1_000_000
    try:
        print(json.dumps(measure(base, count), indent=2))
    finally:
        shutil.rmtree(base, ignore_errors=True)


if __name__ == "__main__":
    main()
