"""Which files are worth a look, known without loading any reader.

What our own reader takes is a list in here. What others take is asked of a process of its own, as
the worker loads no plug-in.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import logging
import os
import subprocess
import sys
from collections.abc import Mapping

from modamafs.extraction.readers import plugins

log = logging.getLogger(__name__)

COMMAND = [sys.executable, "-P", "-m", "modamafs.extraction.process"]
"""Without the working directory among the places that modules come from."""
LISTING_S = 60.0
OURS = "modamafs.extraction.em:reader"

ROSETTASCIIO: Mapping[str, tuple[str, ...]] = {
    ".emd": ("{stem}_*.emd",),
    ".emi": ("{stem}_*.ser",),
    ".mib": ("{stem}.hdr",),
    ".mrc": ("{prefix}_info.txt", "{prefix}_scan_coordinates.csv"),
    ".rpl": ("{stem}.raw", "{stem}.bin"),
    ".spd": ("{stem}.spc", "{stem}.ipr"),
    ".tvips": ("{prefix}_*.tvips",),
    **dict.fromkeys(
        (
            *(".ali", ".app5", ".bcf", ".blo", ".de5", ".dens", ".dm3", ".dm4", ".eds", ".elid"),
            *(".ems", ".emsa", ".hspy", ".lsd", ".msa", ".nxs", ".prz", ".pts", ".sac", ".ser"),
            *(".spc", ".spx", ".sur", ".tif", ".tiff", ".tvf", ".unf", ".wdf"),
        ),
        (),
    ),
}
"""What RosettaSciIO reads and mostly instruments write, and what belongs to such a file. Not .csv,
.xml, .h5, .png … of which most files are something else, and each would be said to be broken."""


def has_rosettasciio() -> bool:
    """Whether the extra ``modamafs[em]`` is installed; it is not imported."""
    return importlib.util.find_spec("rsciio") is not None


def wanted_extensions() -> frozenset[str]:
    """In lower case, with the dot. The first call may take a second, where other plug-ins are."""
    return frozenset(known())


def is_wanted(path: bytes) -> bool:
    """Whether a reader takes a file of this name."""
    return extension_of(path) in known()


def extension_of(path: bytes) -> str:
    """In lower case, with the dot; "" for none."""
    return os.path.splitext(os.fsdecode(path))[1].lower()


@functools.cache
def known() -> Mapping[str, tuple[str, ...]]:
    """What is taken, and the patterns of what belongs to it."""
    if all(point.value == OURS for point in plugins()):
        return ROSETTASCIIO if plugins() and has_rosettasciio() else {}
    try:
        listed = subprocess.run(
            [*COMMAND, "--list"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            timeout=LISTING_S,
            check=True,
            cwd="/",
        )
        found = json.loads(listed.stdout)
        return {extension: tuple(patterns) for extension, patterns in found.items()}
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        log.warning("readers-unknown error=%s", error)
        return ROSETTASCIIO if has_rosettasciio() else {}
