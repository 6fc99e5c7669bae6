"""Several at work at once, and real instrument files: the mount and its store stay one tree."""

from __future__ import annotations

import mmap
import multiprocessing
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import pytest

from tests.support.targets import Target
from tests.support.trees import differences, snapshot

STEPS = 400
WORKERS = 3
EM_DATA = Path(os.environ.get("MODAMAFS_EM_DATA", Path(__file__).parents[3] / "shared/data/em"))


def work(directory: Path, seed: int) -> None:
    """Random changes of names and contents; whoever comes too late tries something else."""
    chance = random.Random(seed)

    def path() -> Path:
        return directory.joinpath(*chance.choices("abcdef", k=chance.randint(1, 3)))

    calls: list[Callable[[], object]] = [
        lambda: path().mkdir(),
        lambda: path().write_bytes(chance.randbytes(chance.randint(0, 20_000))),
        lambda: path().rename(path()),
        lambda: path().hardlink_to(path()),
        lambda: path().symlink_to("x" * chance.randint(1, 200)),
        lambda: path().unlink(),
        lambda: path().rmdir(),
        lambda: path().chmod(chance.randint(0, 0o777)),
        lambda: os.truncate(path(), chance.randint(0, 30_000)),
        lambda: os.setxattr(path(), "user.k", chance.randbytes(10)),
        lambda: os.listdir(path()),
    ]
    refused = 0
    for _ in range(STEPS):
        try:
            chance.choice(calls)()
        except OSError as error:
            assert error.errno not in (5, 107, 103, 116), error  # EIO, ENOTCONN, …, ESTALE
            refused += 1
    assert refused < STEPS


def test_processes_at_work_leave_one_tree(mounted: Target) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=work, args=(mounted.root, seed)) for seed in range(WORKERS)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * WORKERS
    found = differences(snapshot(mounted.root), snapshot(mounted.store))
    assert not found, "\n".join(found)
    assert len(snapshot(mounted.root)) > 5


def test_real_instrument_files_are_what_they_were(mounted: Target) -> None:
    if not EM_DATA.is_dir():
        pytest.skip(f"no instrument files in {EM_DATA} (set MODAMAFS_EM_DATA)")
    for path in EM_DATA.iterdir():
        copy = mounted.root / path.name
        shutil.copy(path, copy)
        content = path.read_bytes()
        assert copy.read_bytes() == content
        with open(copy, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapping:
            assert mapping[:] == content
        assert (mounted.store / path.name).read_bytes() == content
    with (
        h5py.File(mounted.root / "Si100_3D.emd", "r") as ours,
        h5py.File(EM_DATA / "Si100_3D.emd", "r") as theirs,
    ):
        names: list[str] = []
        theirs.visit(names.append)
        assert names
        for name in names:
            if isinstance(theirs[name], h5py.Dataset):
                assert (ours[name][()] == theirs[name][()]).all()
