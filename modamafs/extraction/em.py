"""Our reader: what RosettaSciIO reads of electron microscopes' files, under names of ours.

Loaded in the process that reads only; RosettaSciIO itself (GPL) is an optional extra and imported
when it is used. docs/metadata.md has the keys.
"""

from __future__ import annotations

import importlib
import math
import re
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

from modamafs.catalog import Measured
from modamafs.extraction.picture import TOUCHED_LIMIT_BYTES, picture_of
from modamafs.extraction.readers import Found
from modamafs.extraction.wanted import ROSETTASCIIO, has_rosettasciio

Signals = Sequence[Mapping[str, Any]]
"""What RosettaSciIO returns of a file."""

SIGNALS_LIMIT = 20
AXES_LIMIT = 8
DIGITS = 12
"""Of a float; enough for whatever is measured, and 0.30000000000000004 is nobody's value."""

OF_EACH_SIGNAL = {"title", "shape", "dtype", "signal_type", "quantity"}
"""Where a file has several, those of the others are ``signal_2_title`` and so on."""
UNPACKED = {"MRC", "Blockfile"}
"""Formats whose data are as large in memory: a file that is smaller has lost some."""

PRELOADED = ("digitalmicrograph", "tia", "emd", "mrc", "tiff", "hspy", "nexus", "blockfile",
             "bruker")  # fmt: skip
NOT_USED = {"MRCZ", "Image", "numpy", "HSPY-zip", "USID", "Delmic", "Arina", "Tofwerk"}

_BEAM = r"Acquisition_instrument\.(?:TEM|SEM)\."
_ANY = r"Acquisition_instrument\.(?:(?:TEM|SEM)\.)?"

KEYS: tuple[tuple[str, str, str | None], ...] = (
    (r"General\.title", "title", None),
    (r"General\.date", "acquisition_date", None),
    (r"General\.time", "acquisition_time", None),
    (r"General\.time_zone", "time_zone", None),
    (r"General\.authors", "operator", None),
    (r"Sample\.(?:name|description)", "sample", None),
    (r"Sample\.elements", "elements", None),
    (r"Signal\.signal_type", "signal_type", None),
    (r"Signal\.quantity", "quantity", None),
    (_BEAM + r"microscope", "microscope", None),
    (_BEAM + r"acquisition_mode", "acquisition_mode", None),
    (_BEAM + r"beam_energy", "beam_energy", "keV"),
    (_BEAM + r"beam_current", "beam_current", "nA"),
    (_BEAM + r"screen_current", "screen_current", "nA"),
    (_BEAM + r"probe_area", "probe_area", "nm²"),
    (_BEAM + r"magnification", "magnification", None),
    (_BEAM + r"camera_length", "camera_length", "mm"),
    (_BEAM + r"working_distance", "working_distance", "mm"),
    (_BEAM + r"convergence_angle", "convergence_angle", "mrad"),
    (_BEAM + r"(?:rotation|scan_rotation)", "scan_rotation", "deg"),
    (_BEAM + r"Stage\.tilt_alpha", "tilt_alpha", "deg"),
    (_BEAM + r"Stage\.tilt_beta", "tilt_beta", "deg"),
    (_BEAM + r"(?:Stage\.)?tilt(?:_stage)?", "tilt", "deg"),
    (_BEAM + r"Stage\.rotation", "stage_rotation", "deg"),
    (_BEAM + r"Stage\.x", "stage_x", "mm"),
    (_BEAM + r"Stage\.y", "stage_y", "mm"),
    (_BEAM + r"Stage\.z", "stage_z", "mm"),
    (_ANY + r"Detector\.(?:\w+\.)?[Nn]ame", "detector", None),
    (_ANY + r"Detector\.(?:EDS\.)?(?:detector_type|EDS_det)", "detector", None),
    (_BEAM + r"Detector\.EELS\.spectrometer", "spectrometer", None),
    (_BEAM + r"dwell_time", "dwell_time", "s"),
    (_BEAM + r"Detector\.EELS\.dwell_time", "dwell_time", "s"),
    (_BEAM + r"(?:Detector\.)?(?:Camera|EELS)\.exposure", "exposure", "s"),
    (_ANY + r"Detector\.integration_time", "exposure", "s"),
    (_BEAM + r"Detector\.EELS\.collection_angle", "collection_angle", "mrad"),
    (_BEAM + r"Detector\.EELS\.aperture(?:_size)?", "aperture_size", "mm"),
    (_ANY + r"Detector\.(?:EELS\.frame_number|EDS\.number_of_frames|frames)", "frames", None),
    (_BEAM + r"Detector\.EDS\.live_time", "live_time", "s"),
    (_BEAM + r"Detector\.EDS\.real_time", "real_time", "s"),
    (_BEAM + r"Detector\.EDS\.azimuth_angle", "azimuth_angle", "deg"),
    (_BEAM + r"Detector\.EDS\.elevation_angle", "elevation_angle", "deg"),
    (_BEAM + r"Detector\.EDS\.solid_angle", "solid_angle", "sr"),
    (_BEAM + r"Detector\.EDS\.energy_resolution_MnKa", "energy_resolution", "eV"),
    (_ANY + r"Detector\.pmt_voltage", "pmt_voltage", "V"),
    (_ANY + r"Spectrometer\.central_wavelength", "central_wavelength", "nm"),
)
"""A path in HyperSpy's metadata → our key and its unit (that of HyperSpy's metadata structure)."""

NUMBERS = frozenset(key for _, key, unit in KEYS if unit) | {"magnification", "frames"}

_STAGE_OF_UNKNOWN_UNIT = dict.fromkeys(("stage_x", "stage_y", "stage_z"), (1, None))

OVERRIDES: Mapping[str, Mapping[str, tuple[float, str | None]]] = {
    "Blockfile": {"camera_length": (1e3, "mm"), "scan_rotation": (1, None)},
    "MSA": {"dwell_time": (1e-3, "s"), "exposure": (1e-3, "s")},
    "MRC": _STAGE_OF_UNKNOWN_UNIT,
    "Bruker": _STAGE_OF_UNKNOWN_UNIT,
    "PantaRhei": {"camera_length": (1, None)},
    "EMD": {"elevation_angle": (1, None)},
}
"""Where RosettaSciIO gives another unit than it says: a factor and the unit, or none where it is
not known. A value without a unit is better than one with a wrong unit."""

MORE: Mapping[str, tuple[tuple[str, str, float, str | None], ...]] = {
    "EMD": (
        ("Stage.Position.x", "stage_x", 1e3, "mm"),
        ("Stage.Position.y", "stage_y", 1e3, "mm"),
        ("Stage.Position.z", "stage_z", 1e3, "mm"),
        ("Optics.BeamConvergence", "convergence_angle", 1e3, "mrad"),
        ("Optics.LastMeasuredScreenCurrent", "screen_current", 1e9, "nA"),
        ("Optics.NominalMagnification", "magnification", 1, None),
        ("BinaryResult.Detector", "detector", 0, None),
        ("Instrument.Manufacturer", "manufacturer", 0, None),
        ("Instrument.ControlSoftwareVersion", "software_version", 0, None),
        ("simulation_parameters.E0", "beam_energy", 1, "keV"),
        ("simulation_parameters.probeSemiangle", "convergence_angle", 1, "mrad"),
    ),
    "TIFF": (
        ("fei_metadata.Stage.StageX", "stage_x", 1e3, "mm"),
        ("fei_metadata.Stage.StageY", "stage_y", 1e3, "mm"),
        ("fei_metadata.Stage.StageZ", "stage_z", 1e3, "mm"),
        ("fei_metadata.Stage.StageR", "stage_rotation", 180 / math.pi, "deg"),
        ("fei_metadata.Stage.StageT", "tilt", 180 / math.pi, "deg"),
        ("Make", "manufacturer", 0, None),
        ("Model", "detector", 0, None),
        ("Artist", "operator", 0, None),
        ("Software", "software", 0, None),
    ),
    "Bruker": (("Microscope.WD", "working_distance", 1, "mm"),),
    "TIA": (("ObjectInfo.Manufacturer", "manufacturer", 0, None),),
}
"""Of the original metadata, what RosettaSciIO does not map, or not well: path, key, factor (0: it
is text), unit. Velox and FEI's TIFF have SI units."""


class RosettaSciIO:
    """See the module."""

    name = "rosettasciio"
    beside = ROSETTASCIIO

    @property
    def version(self) -> str:
        """Of RosettaSciIO; "" where it is not installed."""
        try:
            return installed_version("rosettasciio")
        except PackageNotFoundError:
            return ""

    @property
    def extensions(self) -> Collection[str]:
        """None where RosettaSciIO is not installed."""
        return ROSETTASCIIO if has_rosettasciio() else ()

    def load(self) -> None:
        """What takes long: half a second."""
        if not has_rosettasciio():
            return
        dask = importlib.import_module("dask")
        dask.config.set(scheduler="synchronous")  # the reading process has no threads
        for name in (*(f"rsciio.{name}" for name in PRELOADED), "tifffile", "pint", "dask.array"):
            try:
                importlib.import_module(name)
            except ImportError:  # then such files can't be read
                continue

    def read(self, path: Path) -> Found:
        """Read a file with the first of RosettaSciIO's plug-ins that can."""
        problem: Exception = ValueError("no reader of RosettaSciIO takes it")
        has_problem = False
        for plugin in _plugins(path.suffix):
            try:
                return _read(plugin, path)
            except Exception as error:  # noqa: BLE001 - the readers raise whatever happens
                if not has_problem:
                    problem, has_problem = error, True
        raise problem


def _plugins(suffix: str) -> Iterator[Any]:
    wanted = suffix[1:].lower()
    for plugin in importlib.import_module("rsciio").IO_PLUGINS:
        extensions = {extension.lower() for extension in plugin["file_extensions"]}
        if wanted in extensions and plugin["name"] not in NOT_USED:
            yield plugin


def _read(plugin: Mapping[str, Any], path: Path) -> Found:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reader = importlib.import_module(plugin["api"])
        signals = reader.file_reader(str(path), lazy=True)
        if not signals:
            raise ValueError("there are no data in it")
        if plugin["name"] in UNPACKED:
            _check_size(path, signals)
        values = _values_of(signals[0], plugin["name"])
        values["format"] = Measured(value=plugin["name"])
        if len(signals) > 1:
            values["signals"] = Measured(value=len(signals))
        for number, signal in enumerate(signals[1:SIGNALS_LIMIT], 2):
            for key, found in _values_of(signal, plugin["name"]).items():
                if key in OF_EACH_SIGNAL:
                    values[f"signal_{number}_{key}"] = found
                elif not key.startswith("axis_"):
                    values.setdefault(key, found)
    return Found(dict(sorted(values.items())), _preview_of(reader.file_reader, path, signals))


def _check_size(path: Path, signals: Signals) -> None:
    size_bytes = path.stat().st_size
    data_bytes = sum(signal["data"].nbytes for signal in signals)
    if data_bytes == 0:
        raise ValueError("there are no data in it")
    if data_bytes > size_bytes:
        raise ValueError(f"truncated: {size_bytes} bytes, and the data alone are {data_bytes}")


def _preview_of(
    read: Callable[..., Signals], path: Path, signals: Signals
) -> Callable[[], bytes | None]:
    def draw() -> bytes | None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return _first_picture(signals)
            except Exception:
                # A compressed TIFF, read lazily, is unpacked into a file, and there is no place.
                if sum(signal["data"].nbytes for signal in signals) > TOUCHED_LIMIT_BYTES:
                    raise
                return _first_picture(read(str(path), lazy=False))

    return draw


def _first_picture(signals: Signals) -> bytes | None:
    for signal in signals[:SIGNALS_LIMIT]:
        axes = [bool(axis.get("navigate")) for axis in signal.get("axes", ())]
        picture = picture_of(signal["data"], axes)
        if picture is not None:
            return picture
    return None


# ---- values --------------------------------------------------------------------------------------


def _values_of(signal: Mapping[str, Any], plugin: str) -> dict[str, Measured]:
    original = signal.get("original_metadata") or {}
    values = _of_metadata(_mapped(signal, original), plugin)
    for path, key, factor, unit in MORE.get(plugin, ()):
        found = _measured(key, _at(original, path), factor, unit)
        if found is not None and (key not in values or key.startswith("stage_") or key == "tilt"):
            values[key] = found
    if "package" in signal:
        software = f"{signal['package']} {signal.get('package_version', '')}".strip()
        values["software"] = Measured(value=software)
    values |= _of_data(signal)
    return values


def _of_metadata(leaves: Mapping[str, Any], plugin: str) -> dict[str, Measured]:
    values: dict[str, Measured] = {}
    paths = sorted(leaves, key=lambda path: ".SEM." in path)  # where both are, it is no SEM
    for pattern, key, unit in KEYS:
        for path in paths:
            value = leaves[path]
            if key not in values and re.fullmatch(pattern, path):
                factor, its_unit = OVERRIDES.get(plugin, {}).get(key, (1, unit))
                found = _measured(key, value, factor if key in NUMBERS else 0, its_unit)
                if found is not None:
                    values[key] = found
    return values


def _mapped(signal: Mapping[str, Any], original: Mapping[str, Any]) -> dict[str, Any]:
    """HyperSpy's metadata, flat: what the reader gives, and what its mapping finds."""
    leaves = dict(_leaves(signal.get("metadata") or {}))
    for path, target in (signal.get("mapping") or {}).items():
        value = _at(original, path)
        if target is None or value is None:
            continue
        where, function = target
        try:
            given = _Tags(value) if isinstance(value, Mapping) else value
            value = function(given) if function else value
        except Exception:  # noqa: BLE001, S112 - a value that can't be converted is left out
            continue
        if isinstance(value, Mapping):
            leaves.update(_leaves(value, where + "."))
        elif value is not None:
            leaves[where] = value
    return leaves


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _at(tree: Any, path: str) -> Any:
    """What lies at a path of names with dots between them; None: nothing.

    A name may be written as HyperSpy does: with ``_`` for what is no letter and no digit.
    """
    if not path:
        return tree
    if not isinstance(tree, Mapping):
        return None
    if path in tree:
        return tree[path]
    first, _, rest = path.partition(".")
    for key in tree:
        name = str(key)
        if name == first or _slug(name) == _slug(first):
            below = rest
        elif "." in name and path.startswith(name + "."):
            below = path[len(name) + 1 :]
        else:
            continue
        found = _at(tree[key], below)
        if found is not None:
            return found
    return None


class _Tags(dict[str, Any]):
    """A part of the original metadata as HyperSpy shows it to the functions of a mapping."""

    def __init__(self, tree: Mapping[str, Any]) -> None:
        super().__init__({_slug(str(key)): value for key, value in tree.items()})

    def get(self, path: str, default: Any = None) -> Any:
        """Of a path of names with dots between them."""
        found = _at(self, path)
        return default if found is None else found


def _slug(name: str) -> str:
    """As HyperSpy's ``slugify`` does it."""
    return re.sub(r"[^\w]", "", re.sub(r"[\s-]+", "_", name.strip()))


def _measured(key: str, value: Any, factor: float, unit: str | None) -> Measured | None:
    """``factor`` 0: it is text."""
    value = _plain(value)
    if value is None or value == "":
        return None
    if factor == 0:
        return Measured(value=value if isinstance(value, str) else str(value))
    if isinstance(value, str):
        number = re.fullmatch(r"\s*([-+]?[0-9.]+(?:[eE][-+]?[0-9]+)?)\s*(\S*)\s*", value)
        if number is None:
            return Measured(value=value)
        if number[2] not in ("", unit):
            return Measured(value=value)
        value = float(number[1])
    if isinstance(value, bool):
        return None
    if not math.isfinite(value) or (value == 0 and key in _NEVER_ZERO):
        return None
    return Measured(value=_rounded(value * factor), unit=unit)


_NEVER_ZERO = {"beam_energy", "magnification", "camera_length", "working_distance", "exposure",
               "dwell_time", "beam_current"}  # fmt: skip
"""Zero means: not known."""


def _rounded(value: float) -> int | float:
    rounded = float(f"{value:.{DIGITS}g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e15 else rounded


def _plain(value: Any) -> str | int | float | bool | None:
    """One value of Python's own types; None: it is none, or too much."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace").strip("\0 ")
    if isinstance(value, list | tuple):
        return ", ".join(str(_plain(item)) for item in value[:100]) if value else None
    item = getattr(value, "item", None)
    if callable(item):
        if getattr(value, "size", 1) != 1:
            return None
        # A float32 has as many digits as it has: not 0.10000000149011612.
        is_short = getattr(getattr(value, "dtype", None), "name", "") == "float32"
        value = float(str(value)) if is_short and value.ndim == 0 else item()
        return _plain(value) if isinstance(value, bytes) else value
    if isinstance(value, str):
        return value.strip()
    return value if isinstance(value, bool | int | float) else None


def _of_data(signal: Mapping[str, Any]) -> dict[str, Measured]:
    data = signal["data"]
    dtype = data.dtype
    values = {
        "shape": Measured(value=str(tuple(int(size) for size in data.shape))),
        "dtype": Measured(value=_name_of(dtype)),
    }
    for number, axis in enumerate(signal.get("axes", ())[:AXES_LIMIT], 1):
        unit = _plain(axis.get("units"))
        unit = unit if isinstance(unit, str) and unit else None
        for part in ("name", "size", "scale", "offset"):
            value = _plain(axis.get(part))
            if isinstance(value, bool) or value is None or value == "":
                continue
            if isinstance(value, float):
                if not math.isfinite(value):
                    continue
                value = _rounded(value)
            with_unit = unit if part in ("scale", "offset") else None
            values[f"axis_{number}_{part}"] = Measured(value=value, unit=with_unit)
    return values


def _name_of(dtype: Any) -> str:
    if not dtype.names:
        return str(dtype.name)
    bits = 8 * dtype.itemsize // len(dtype.names)
    return "".join(dtype.names).lower() + str(bits)


reader = RosettaSciIO()
