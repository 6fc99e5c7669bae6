"""Facts about the machine, for the record beside the figures."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib import metadata
from pathlib import Path

from benchmarks.systems import SYSTEMS, run

LATENCY = Path("/dev/cpu_dma_latency")


@contextmanager
def awake(wanted: bool) -> Iterator[bool]:
    """Keep idle cores from being halted inside the block (PM QoS); whether that could be asked for.

    A FUSE request is two wake-ups. In a virtual machine a halted core takes 100 µs to wake up, one
    that polls 5: without this the figures say how idle the machine happened to be.
    """
    with ExitStack() as stack:
        asked = False
        if wanted:
            with suppress(OSError):
                stream = stack.enter_context(LATENCY.open("wb", buffering=0))
                stream.write(struct.pack("=i", 0))  # in force until it is closed
                asked = True
        yield asked


def cpu_model() -> str:
    """What /proc/cpuinfo calls the processor."""
    found = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else platform.machine()


def file_system(path: Path) -> str:
    """Type and options of the file system that `path` lies on."""
    device = path.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    found = ""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if before.split()[2] == wanted:
            found = f"{after.split()[0]} ({after.split()[2]})"
    return found


def libfuse() -> str:
    """The version of the shared libfuse3."""
    with suppress(OSError, AttributeError):
        version = ctypes.CDLL("libfuse3.so.3").fuse_pkgversion
        version.restype = ctypes.c_char_p
        return str(version().decode())
    return "none"


def facts(directory: Path) -> dict[str, object]:
    """All of them; `directory` is where the store lies."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    revision = run("git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty")
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "memory_mib": memory >> 20,
        "kernel": platform.release(),
        "file_system": file_system(directory),
        "python": platform.python_version(),
        "libfuse": libfuse(),
        "pyfuse3": metadata.version("pyfuse3"),
        "trio": metadata.version("trio"),
        "revision": revision.stdout.strip(),
        "systems": {name: system.version() for name, system in SYSTEMS.items()},
        "load_before": os.getloadavg()[0],
    }
