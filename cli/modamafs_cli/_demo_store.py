"""The made-up measurements of ``modamafs demo``: what instruments write, in seconds.

Needs the extra ``demo`` (numpy, h5py, mrcfile).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import h5py
import mrcfile
import numpy as np

SESSION = Path("holography/skyrmions/2026-07-01")
OTHER_SESSION = Path("ptychography/mos2/2026-07-02")

SCAN = (48, 48)
DETECTOR = (256, 256)
STEM_BYTES = SCAN[0] * SCAN[1] * DETECTOR[0] * DETECTOR[1] * 2
TILTS = 41
NOISES = 16
DATASET = "entry/data/diffraction"


class Written(NamedTuple):
    """What a store was filled with."""

    file_count: int
    size_bytes: int


def write(store: Path) -> Written:
    """Fill the directory ``store`` with two sessions. OSError: ENOSPC, and so on."""
    generator = np.random.default_rng(seed=1)
    raw = store / SESSION / "raw"
    other = store / OTHER_SESSION / "raw"
    for directory in (raw, other):
        directory.mkdir(parents=True)
    _write_4d_stem(raw / "4dstem.h5", generator)
    _write_tilt_series(raw / "tilt.mrc", generator)
    (raw / "acquisition.log").write_text(
        "".join(f"09:{n:02}:00 scan row {n} of {SCAN[0]} done, 300 kV\n" for n in range(SCAN[0]))
    )
    (raw.parent / "notes.md").write_text("# Skyrmions\n\nScan 3 is the good one.\n")
    _write_tilt_series(other / "overview.mrc", generator)
    files = [path for path in store.rglob("*") if path.is_file()]
    return Written(len(files), sum(path.stat().st_size for path in files))


def _write_4d_stem(path: Path, generator: np.random.Generator) -> None:
    """A diffraction pattern for each scan position: a disc that magnetic fields deflect."""
    y, x = np.indices(DETECTOR)
    disc = np.hypot(y - DETECTOR[0] // 2, x - DETECTOR[1] // 2) < DETECTOR[0] // 4
    frames = generator.poisson(disc * 400.0 + 2.0, (NOISES, *DETECTOR)).astype(np.uint16)
    with h5py.File(path, "w") as file:
        data = file.create_dataset(DATASET, (*SCAN, *DETECTOR), np.uint16)
        data.attrs["beam_energy"] = "300 keV"
        row = np.empty((SCAN[1], *DETECTOR), np.uint16)
        for i in range(SCAN[0]):
            for j in range(SCAN[1]):
                shift = (int(6 * np.sin(i / 4)), int(6 * np.sin(j / 4)))
                row[j] = np.roll(frames[(i * SCAN[1] + j) % NOISES], shift, (0, 1))
            data[i] = row


def _write_tilt_series(path: Path, generator: np.random.Generator) -> None:
    stack = generator.integers(0, 4096, (TILTS, *DETECTOR), np.int16)
    with mrcfile.new(path, data=stack) as file:
        file.voxel_size = 2.5


class Opened(NamedTuple):
    """What the readers of the field made of the files."""

    hdf5: str
    mrc: str
    mapped_bytes: int
    sum_image: tuple[int, ...]
    """The shape of the image that the sum over all diffraction patterns gives."""


def open_formats(raw: Path) -> Opened:
    """Read the files of ``raw`` as h5py and mrcfile do, and sum up all of a memory mapping."""
    with h5py.File(raw / "4dstem.h5", "r") as file:
        data = file[DATASET]
        hdf5 = f"{_shape(data)} {data.dtype}, {data.attrs['beam_energy']}"
        offset = data.id.get_offset()
        shape, dtype = data.shape, data.dtype
        first = data[0, 0]
    with mrcfile.mmap(raw / "tilt.mrc", "r") as stack:
        mrc = f"{_shape(stack.data)} {stack.data.dtype}, voxel {stack.voxel_size.x:.1f} A"
    mapped = np.memmap(raw / "4dstem.h5", dtype, "r", offset, shape)
    if not np.array_equal(mapped[0, 0], first):
        raise AssertionError("the mapping and the reader differ")
    image = mapped.reshape(-1, *DETECTOR).sum(0, dtype=np.uint32)
    return Opened(hdf5, mrc, mapped.nbytes, image.shape)


def _shape(array: Any) -> str:
    return " x ".join(map(str, array.shape))


def bytes_of(path: Path) -> Any:
    """A read-only mapping of a whole file, as an array of bytes."""
    return np.memmap(path, np.uint8, "r")


def equal(one: Any, other: Any) -> bool:
    """Whether two buffers hold the same bytes."""
    return np.array_equal(np.frombuffer(one, np.uint8), other)
