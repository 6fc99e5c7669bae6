"""The load of `benchmarks.restart`: loops that note every pause, each in a process of its own.

Run as a script (standard library only): `python -I -S load.py reader FILE` or `… metadata
DIRECTORY`. The reader takes a rest after each chunk, so that its pauses are the file system's and
not those of a process that has used up its share of the processor. A loop runs until SIGTERM, then
prints one JSON object: `operations`, `errors` (texts) and `gaps`, the pauses of more than 5 ms as
pairs of CLOCK_MONOTONIC seconds, begin and end.
"""

import itertools
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from time import monotonic, sleep

NOTED_S = 0.005
CHUNK = 64 << 10
REST_S = 0.0002
PATIENCE = 20
"""Errors after which a loop gives up."""
NUMBERS = itertools.count(1)
"""Of the files; goes on after an error, so that no name is used twice."""


def reader(path: str) -> Iterator[None]:
    """Read an open file from start to end, again and again, 64 KiB at a time."""
    buffer = bytearray(CHUNK)
    fd = os.open(path, os.O_RDONLY)
    size = os.fstat(fd).st_size
    while True:
        for offset in range(0, size, len(buffer)):
            if os.preadv(fd, [buffer], offset) != len(buffer):
                raise OSError(0, "short read")
            yield
            sleep(REST_S)


def metadata(directory: str) -> Iterator[None]:
    """Create, rename, stat and unlink: every step is one or more requests to the daemon."""
    while True:
        number = next(NUMBERS)
        name, other = f"{directory}/{number}", f"{directory}/{number}.renamed"
        os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
        yield
        os.rename(name, other)
        yield
        os.stat(other)
        yield
        os.unlink(other)
        yield
        os.mkdir(name)
        yield
        os.rmdir(name)
        yield


LOOPS: dict[str, Callable[[str], Iterator[None]]] = {"reader": reader, "metadata": metadata}


class Stopped(BaseException):
    """SIGTERM arrived."""


def stop(*_: object) -> None:
    """Leave the loop, also out of a system call."""
    raise Stopped


def main(kind: str, target: str) -> None:
    """Run one loop until SIGTERM."""
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    operations = 0
    gaps: list[tuple[float, float]] = []
    errors: list[str] = []
    last = monotonic()
    try:
        while len(errors) < PATIENCE:
            try:
                for _ in LOOPS[kind](target):
                    now = monotonic()
                    operations += 1
                    if now - last > NOTED_S:
                        gaps.append((last, now))
                    last = now
            except OSError as error:
                errors.append(f"{error.filename or target}: {error.strerror}")
    except Stopped:
        gaps.append((last, monotonic()))
    print(json.dumps({"operations": operations, "errors": errors, "gaps": gaps}))


if __name__ == "__main__":
    main(*sys.argv[1:])
