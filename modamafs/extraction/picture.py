"""A small picture of data that may be large: of the part that can be had cheaply."""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from typing import Any

from modamafs.extraction.png import grey_png
from modamafs.extraction.readers import PREVIEW_LIMIT_BYTES, PREVIEW_SIDE

TOUCHED_LIMIT_BYTES = 64 << 20
"""Of the data that are read for it."""
LOW, HIGH = 1, 99
"""Percentiles that become black and white."""


def picture_of(data: Any, navigates: Sequence[bool]) -> bytes | None:
    """A PNG; None where there is nothing two-dimensional in it.

    ``data``: a NumPy or Dask array; ``navigates``: for each of its axes, whether it counts spectra
    or images rather than lying in them. Of a stack, the sum is shown where that is cheap, else the
    one in the middle.
    """
    shown = _two_axes(data.shape, navigates)
    if shown is None:
        return None
    others = tuple(axis for axis in range(data.ndim) if axis not in shown)
    if others and data.nbytes <= TOUCHED_LIMIT_BYTES and not data.dtype.names:
        data = _numbers(data).sum(axis=others)
    else:
        middle = tuple(data.shape[a] // 2 if a in others else slice(None) for a in range(data.ndim))
        data = data[middle]
    if data.nbytes > TOUCHED_LIMIT_BYTES:
        return None
    data = data.compute() if hasattr(data, "compute") else data
    for side in (PREVIEW_SIDE, PREVIEW_SIDE // 2):
        picture = _grey(data, side)
        if picture is None or len(picture) <= PREVIEW_LIMIT_BYTES:
            return picture
    return None


def _two_axes(shape: Sequence[int], navigates: Sequence[bool]) -> tuple[int, int] | None:
    if any(size == 0 for size in shape):
        return None
    axes = [axis for axis, size in enumerate(shape) if size > 1]
    if len(navigates) == len(shape):
        signal = [axis for axis in axes if not navigates[axis]]
        navigation = [axis for axis in axes if navigates[axis]]
    else:
        signal, navigation = axes, []
    for candidate in (signal, navigation, axes):
        if len(candidate) == 2:
            return candidate[0], candidate[1]
    return None


def _numbers(data: Any) -> Any:
    numpy = importlib.import_module("numpy")
    if data.dtype.names:  # colours
        parts = [data[name].astype("float32") for name in data.dtype.names[:3]]
        return sum(parts[1:], start=parts[0]) / len(parts)
    if data.dtype.kind == "c":
        data = abs(data)
    elif data.dtype.kind not in "biuf":
        raise TypeError(f"{data.dtype} is no number")
    return data.astype("float64" if data.dtype.itemsize > 4 else numpy.float32)


def _grey(data: Any, side: int) -> bytes | None:
    numpy = importlib.import_module("numpy")
    picture = numpy.asarray(_numbers(data))
    step = max(1, math.ceil(max(picture.shape) / side))
    height, width = (size // step for size in picture.shape)
    if height == 0 or width == 0:
        return None
    blocks = picture[: height * step, : width * step].reshape(height, step, width, step)
    picture = blocks.mean(axis=(1, 3))
    finite = picture[numpy.isfinite(picture)]
    if finite.size == 0:
        return None
    low, high = numpy.percentile(finite, [LOW, HIGH])
    if high <= low:
        low, high = finite.min(), finite.max()
    stretched = (numpy.nan_to_num(picture, nan=low) - low) / ((high - low) or 1)
    grey = (numpy.clip(stretched, 0, 1) * 255).round().astype("uint8")
    return grey_png(int(width), int(height), grey.tobytes())
