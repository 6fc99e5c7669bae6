"""What the three programs' command lines have in common."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks import report, store
from benchmarks.systems import SYSTEMS, SystemFailedError


def positive(text: str) -> int:
    """Parse a number of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


def parser(program: str, description: str | None) -> argparse.ArgumentParser:
    """A parser that knows where the store and the results go."""
    made = argparse.ArgumentParser(
        prog=program,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument(
        "--directory",
        type=Path,
        default=store.DEFAULT_DIRECTORY,
        help="where the backing store is made, and removed at the end; default: %(default)s",
    )
    made.add_argument("--results", type=Path, default=report.RESULTS, help="default: %(default)s")
    return made


def add_idle(made: argparse.ArgumentParser) -> None:
    """``--idle``, which ``machine.awake`` goes by."""
    made.add_argument(
        "--idle",
        action="store_true",
        help="let idle cores be halted; a request then costs what waking them up costs",
    )


def refuse(text: str) -> int:
    """Say why nothing was measured; exit status 2."""
    print(f"benchmarks: {text}", file=sys.stderr)
    return 2


def obstacle(systems: list[str]) -> str | None:
    """Why these systems cannot be measured here, or None. SIGTERM cleans up from now on."""
    if os.geteuid() != 0:
        return "mounting needs root; try sudo"
    for name in systems:
        reason = SYSTEMS[name].missing()
        if reason is not None:
            return f"{name} cannot run here: {reason}"
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    return None


@contextmanager
def place_for(program: str, directory: Path) -> Iterator[store.Store]:
    """A store for one program that measures modamafs alone. SystemExit: why nothing came of it."""
    if (reason := obstacle(["modamafs"])) is not None:
        sys.exit(refuse(reason))
    try:
        with store.directory(directory, store.QUICK) as place:
            yield place
    except KeyboardInterrupt:
        sys.exit(refuse("interrupted"))
    except (OSError, SystemFailedError) as error:
        print(f"{program}: {error}", file=sys.stderr)
        sys.exit(1)
