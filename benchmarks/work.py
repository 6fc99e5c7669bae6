"""The measured part of a job: one job in one fresh process, timed from inside.

Run as a script (standard library only, `python -I -S work.py VERB …`), so that the interpreter's
start-up and whatever the runner has in memory stay out of the figure. Prints one JSON object:
`{"seconds": s}`, or `{"errno": n}` with exit status 1 when a system call fails. A wrong answer
(short file, other content) is `{"wrong": text}`.

System calls are the subject here, so `os` is used throughout and never pathlib.
"""

import json
import mmap
import os
import random
import struct
import sys
from collections.abc import Callable
from statistics import median
from time import perf_counter

CHUNK = 1 << 20
"""Bytes a sequential read or direct write asks for at once."""
WRITE = 64 << 10
"""Bytes of one buffered write(2)."""
BLOCK = 4096
"""Bytes of one random read; every block of the data file starts with its own number."""
PARTS = 5
"""Warm jobs of milliseconds are done so many times; the median counts."""
HEADER = struct.Struct("<Q")


class WrongAnswerError(Exception):
    """The system answered quickly, and falsely."""


def check(correct: bool, text: str) -> None:
    """Raise `WrongAnswerError(text)` unless `correct`."""
    if not correct:
        raise WrongAnswerError(text)


def stamp(buffer: memoryview, first_block: int) -> None:
    """Number the blocks in `buffer`, the first one as `first_block`."""
    for index in range(len(buffer) // BLOCK):
        HEADER.pack_into(buffer, index * BLOCK, first_block + index)


def check_block(block: bytes | memoryview, number: int) -> None:
    """Raise `WrongAnswerError` unless `block` is block `number` of a stamped file."""
    check(HEADER.unpack_from(block)[0] == number, f"block {number} has other content")


def read(path: str, size: str, *flags: str) -> float:
    """Read a file of `size` bytes from its start to its end, 1 MiB a readv(2)."""
    buffer = mmap.mmap(-1, CHUNK)  # page-aligned, as O_DIRECT wants it
    total = 0
    begin = perf_counter()
    fd = os.open(path, os.O_RDONLY | (os.O_DIRECT if "direct" in flags else 0))
    while count := os.readv(fd, [buffer]):
        total += count
    os.close(fd)
    seconds = perf_counter() - begin
    check(total == int(size), f"{total} bytes instead of {size}")
    check_block(buffer[:BLOCK], (total - CHUNK) // BLOCK)
    return seconds


def map_read(path: str, size: str) -> float:
    """Map a file (shared, read-only) and copy all of it out, 1 MiB at a time."""
    length = int(size)
    buffer = bytearray(CHUNK)
    begin = perf_counter()
    fd = os.open(path, os.O_RDONLY)
    with mmap.mmap(fd, length, mmap.MAP_SHARED, mmap.PROT_READ) as mapping:
        os.close(fd)
        with memoryview(mapping) as view:
            for offset in range(0, length, CHUNK):
                buffer[:] = view[offset : offset + CHUNK]
    seconds = perf_counter() - begin
    check_block(bytes(buffer), (length - CHUNK) // BLOCK)
    return seconds


def write(path: str, size: str, *flags: str) -> float:
    """Create a file and write `size` bytes: 64 KiB writes, or 1 MiB ones with O_DIRECT. No fsync.

    The clock runs from before open(2) to after close(2).
    """
    direct = "direct" in flags
    step = CHUNK if direct else WRITE
    buffer = mmap.mmap(-1, step)
    stamp(memoryview(buffer), 0)
    begin = perf_counter()
    mode = os.O_CREAT | os.O_EXCL | os.O_WRONLY | (os.O_DIRECT if direct else 0)
    fd = os.open(path, mode, 0o644)
    for offset in range(0, int(size), step):
        HEADER.pack_into(buffer, 0, offset // BLOCK)
        if os.write(fd, buffer) != step:
            raise WrongAnswerError("short write")
    os.close(fd)
    return perf_counter() - begin


def random_reads(path: str, size: str, count: str) -> float:
    """Read `count` blocks of 4 KiB at seeded random places of an open file, in `PARTS` parts."""
    generator = random.Random(4096)
    blocks = int(size) // BLOCK
    offsets = [generator.randrange(blocks) * BLOCK for _ in range(int(count))]
    buffer = memoryview(bytearray(BLOCK))
    vector = [buffer]
    preadv = os.preadv
    fd = os.open(path, os.O_RDONLY)
    times = []
    for part in range(PARTS):
        begin = perf_counter()
        for offset in offsets[part::PARTS]:
            preadv(fd, vector, offset)
        times.append(perf_counter() - begin)
    for offset in offsets[:64]:
        preadv(fd, vector, offset)
        check_block(buffer, offset // BLOCK)
    os.close(fd)
    return median(times) * PARTS


def stat(directory: str, count: str, warm_passes: str, passes: str) -> float:
    """stat(2) `count` files of a directory by name: unmeasured passes, then measured ones.

    The median of the measured ones counts.
    """
    paths = [f"{directory}/{number:06d}" for number in range(int(count))]
    call = os.stat
    for _ in range(int(warm_passes)):
        for path in paths:
            call(path)
    times = []
    for _ in range(int(passes)):
        begin = perf_counter()
        for path in paths:
            call(path)
        times.append(perf_counter() - begin)
    check(call(paths[-1]).st_size == len(paths) - 1, "st_size is wrong")
    return median(times)


def scan(directory: str, count: str) -> float:
    """scandir a directory and stat every entry (`DirEntry.stat`, one fstatat(2) each)."""
    begin = perf_counter()
    with os.scandir(directory) as entries:
        sizes = [entry.stat(follow_symlinks=False).st_size for entry in entries]
    seconds = perf_counter() - begin
    check(sorted(sizes) == list(range(int(count))), "entries are missing or wrong")
    return seconds


VERBS: dict[str, Callable[..., float]] = {
    "read": read,
    "map": map_read,
    "write": write,
    "random": random_reads,
    "stat": stat,
    "scan": scan,
}


def main(arguments: list[str]) -> int:
    """Run one verb; the result goes to stdout."""
    result: dict[str, object]
    try:
        result = {"seconds": VERBS[arguments[0]](*arguments[1:])}
    except OSError as error:
        result = {"errno": error.errno}
    except WrongAnswerError as error:
        result = {"wrong": str(error)}
    print(json.dumps(result))
    return 0 if "seconds" in result else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
