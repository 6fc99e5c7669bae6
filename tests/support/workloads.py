"""Programs that work in a directory until they are told to stop, and notice every fault.

Each runs in a process of its own, checks everything that it gets back, and returns what it has
done and the longest time that it had to wait. Used by ``tests/faults`` and by ``benchmarks``.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import select
import signal
import stat
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

MiB = 1 << 20
T = TypeVar("T")


class Run:
    """What a workload shares with whoever started it."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("fork")
        self._stopping = context.Event()
        self._rounds = context.Value("Q", 0, lock=False)

    def goes_on(self) -> bool:
        """Count a round; False when it is time to finish."""
        self._rounds.value += 1
        return not self._stopping.is_set()

    @property
    def rounds(self) -> int:
        """How many rounds were begun."""
        return int(self._rounds.value)

    def stop(self) -> None:
        """Let it finish its round."""
        self._stopping.set()


class Workload(Generic[T]):
    """A function that runs in a child process; it gets a `Run` as its first argument."""

    def __init__(self, function: Callable[..., T], *arguments: Any) -> None:
        self.name = function.__name__
        self.run = Run()
        self._result, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            outcome: tuple[T | None, BaseException | None]
            try:
                outcome = (function(self.run, *arguments), None)
            except BaseException as error:  # noqa: BLE001 (handed on to the parent)
                error.add_note(f"in the workload {self.name}, round {self.run.rounds}")
                outcome = (None, error)
            with open(writer, "wb") as pipe:
                pickle.dump(outcome, pipe)
            os._exit(0)
        os.close(writer)

    def has_ended(self) -> bool:
        """Whether it has ended before it was told to: it found a fault."""
        return bool(select.select([self._result], [], [], 0)[0])

    def finish(self, timeout_s: float = 60) -> T:
        """Stop it, and return (or raise) what it found."""
        self.run.stop()
        if not select.select([self._result], [], [], timeout_s)[0]:
            self.kill()
            raise TimeoutError(f"{self.name} did not finish within {timeout_s:g} s")
        with open(self._result, "rb") as pipe:
            value, error = pickle.load(pipe)  # our own child's bytes
        os.waitpid(self.pid, 0)
        self.pid = 0
        if error is not None:
            raise error
        return value  # type: ignore[no-any-return]

    def kill(self) -> None:
        """End it, if it still runs."""
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            os.close(self._result)
            self.pid = 0


class Waits:
    """Measures the longest time between two marks."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self.longest_s = 0.0

    def mark(self) -> None:
        """Something was answered."""
        now = time.monotonic()
        self.longest_s = max(self.longest_s, now - self._last)
        self._last = now

    def restart(self) -> None:
        """What was done since the last mark was nobody's answer."""
        self._last = time.monotonic()


@dataclass
class Found:
    """What a workload has to say."""

    rounds: int
    longest_wait_s: float
    log: dict[str, Any] = field(default_factory=dict)


def block(number: int, size: int = MiB) -> bytes:
    """The content that belongs to this number, and to no other."""
    return number.to_bytes(8, "little") * (size // 8)


# reading, writing, looking


def read_a_large_file(run: Run, path: Path, blocks: int) -> Found:
    """Read a file of ``block(0)``, ``block(1)``, … from one descriptor, again and again."""
    fd = os.open(path, os.O_RDONLY)
    waits = Waits()
    while run.goes_on():
        number = run.rounds % blocks
        content = os.pread(fd, MiB, number * MiB)
        waits.mark()
        if content != block(number):
            raise AssertionError(f"block {number} is not what it was")
        waits.restart()
    os.close(fd)
    return Found(run.rounds, waits.longest_s)


def write_a_large_file(run: Run, path: Path, blocks: int) -> Found:
    """Write numbered blocks, round and round; say which number each block has in the end."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
    waits = Waits()
    last: dict[int, int] = {}
    while run.goes_on():
        where = run.rounds % blocks
        content = block(run.rounds, MiB // 4)
        waits.restart()
        if os.pwrite(fd, content, where * len(content)) != len(content):
            raise AssertionError("a short write")
        waits.mark()
        last[where] = run.rounds
    for where, number in last.items():
        if os.pread(fd, MiB // 4, where * MiB // 4) != block(number, MiB // 4):
            raise AssertionError(f"what was written as {number} is not what is read")
    os.close(fd)
    return Found(run.rounds, waits.longest_s, {"blocks": last})


def look_at_everything(run: Run, directory: Path) -> Found:
    """stat and list a directory of files, whose sizes are their numbers."""
    names = sorted(os.listdir(directory))
    waits = Waits()
    while run.goes_on():
        name = names[run.rounds % len(names)]
        if (directory / name).stat().st_size != int(name):
            raise AssertionError(f"{name} has another size")
        waits.mark()
        if run.rounds % len(names) == 0:
            if sorted(os.listdir(directory)) != names:
                raise AssertionError("the list has changed")
            waits.mark()
    return Found(run.rounds, waits.longest_s)


def use_unlinked_files(run: Run, directory: Path) -> Found:
    """Files that were deleted while open: write, read, grow and stat them."""
    fds = []
    for number in range(4):
        path = directory / f"unlinked-{number}"
        fds.append(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        os.pwrite(fds[-1], block(number, 4096), 0)
        path.unlink()
    waits = Waits()
    while run.goes_on():
        number = run.rounds % len(fds)
        fd = fds[number]
        size = 4096 * (2 + run.rounds % 50)
        os.pwrite(fd, block(run.rounds, 4096), 4096)
        os.ftruncate(fd, size)
        status = os.fstat(fd)
        waits.mark()
        if (status.st_nlink, status.st_size) != (0, size):
            raise AssertionError(f"fstat says {status.st_nlink} links, {status.st_size} bytes")
        if os.pread(fd, 8192, 0) != block(number, 4096) + block(run.rounds, 4096):
            raise AssertionError("an unlinked file has another content")
        waits.mark()
    for fd in fds:
        os.close(fd)
    return Found(run.rounds, waits.longest_s)


# changing names


def change_names(run: Run, directory: Path) -> Found:
    """Every call that must be done exactly once; none may fail. See `expected_names`."""
    waits = Waits()
    while run.goes_on():
        number = run.rounds - 1
        here = directory / f"{number:06}"
        for call in (
            lambda: here.mkdir(0o755),
            lambda: _create(here / "file", number),
            lambda: (here / "file").rename(here / "renamed"),
            lambda: os.link(here / "renamed", here / "linked"),
            lambda: (here / "symlink").symlink_to(str(number)),
            lambda: os.mkfifo(here / "fifo"),
            lambda: (here / "directory").mkdir(),
            lambda: (here / "directory").rename(here / "renamed directory"),
            lambda: (here / "directory").mkdir(),
            lambda: (here / "directory").rmdir(),
            lambda: os.setxattr(here / "renamed", "user.number", b"%d" % number, os.XATTR_CREATE),
            lambda: os.setxattr(here / "renamed", "user.gone", b"1", os.XATTR_CREATE),
            lambda: os.removexattr(here / "renamed", "user.gone"),
            lambda: _create(here / "gone", number),
            lambda: (here / "gone").unlink(),
            lambda: (here / "linked").rename(here.with_suffix(".linked")),
        ):
            call()
            waits.mark()
    return Found(run.rounds - 1, waits.longest_s)


def _create(path: Path, number: int) -> None:
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o640)
    os.write(fd, b"%d" % number)
    os.close(fd)


def check_names(directory: Path, rounds: int) -> None:
    """What ``change_names`` must have left after so many rounds, all of it and nothing else."""
    expected = {f"{n:06}{end}" for n in range(rounds) for end in ("", ".linked")}
    assert set(os.listdir(directory)) == expected
    for number in range(rounds):
        here = directory / f"{number:06}"
        assert sorted(os.listdir(here)) == ["fifo", "renamed", "renamed directory", "symlink"]
        assert (here / "renamed").read_bytes() == b"%d" % number
        assert (here / "renamed").stat().st_nlink == 2
        assert (here / "renamed").stat().st_mode == stat.S_IFREG | 0o640
        assert os.listxattr(here / "renamed") == ["user.number"]
        assert here.with_suffix(".linked").stat().st_ino == (here / "renamed").stat().st_ino
        assert os.readlink(here / "symlink") == str(number)
        assert stat.S_ISFIFO((here / "fifo").stat().st_mode)


# competing for names

PRIZES = ("open", "mkdir", "symlink", "link", "rename", "unlink")


def compete_for_names(run: Run, directory: Path, barrier: Any, competitor: int) -> Found:
    """Two of these go for the same names at the same time, and log what they got."""
    won: list[str] = []
    waits = Waits()
    try:
        while run.goes_on():
            number = run.rounds - 1
            if competitor == 0:
                for name in ("take", "remove"):
                    _create(directory / f"{number:06}.to {name}", number)
            barrier.wait(60)
            for kind in PRIZES:
                try:
                    _go_for(directory, kind, number, competitor)
                except (FileExistsError, FileNotFoundError):
                    pass
                else:
                    won.append(f"{number:06}.{kind}")
                waits.mark()
            barrier.wait(60)
    except threading.BrokenBarrierError:
        pass  # the other one was stopped
    barrier.abort()
    return Found(run.rounds - 1, waits.longest_s, {"won": won})


def _go_for(directory: Path, kind: str, number: int, competitor: int) -> None:
    prize = directory / f"{number:06}.{kind}"
    if kind == "open":
        os.close(os.open(prize, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        os.setxattr(prize, "user.competitor", b"%d" % competitor)
    elif kind == "mkdir":
        prize.mkdir()
    elif kind == "symlink":
        prize.symlink_to(str(competitor))
    elif kind == "link":
        os.link(directory / "source", prize)
    elif kind == "rename":
        (directory / f"{number:06}.to take").rename(directory / f"{number:06}.of {competitor}")
    else:
        (directory / f"{number:06}.to remove").unlink()


def check_prizes(directory: Path, results: Sequence[Found]) -> None:
    """Exactly one of the competitors has got each prize, and it is the one who says so."""
    rounds = max(found.rounds for found in results)
    won = [set(found.log["won"]) for found in results]
    assert not won[0] & won[1], "both have won"
    decided = {f"{n:06}.{kind}" for n in range(rounds - 1) for kind in PRIZES}
    assert decided <= won[0] | won[1], "nobody has won"
    for name in decided:
        number, kind = name.split(".")
        winner = 0 if name in won[0] else 1
        if kind == "open":
            assert os.getxattr(directory / name, "user.competitor") == b"%d" % winner
        elif kind == "mkdir":
            assert (directory / name).is_dir()
        elif kind == "symlink":
            assert os.readlink(directory / name) == str(winner)
        elif kind == "link":
            assert (directory / name).stat().st_ino == (directory / "source").stat().st_ino
        elif kind == "rename":
            assert (directory / f"{number}.of {winner}").exists()
            assert not (directory / f"{number}.of {1 - winner}").exists()
        else:
            assert not (directory / f"{number}.to remove").exists()


# all of them


class EverythingAtOnce:
    """All workloads in one new directory, as a block; `finish` checks what they leave behind."""

    def __init__(self, root: Path, large_file_mib: int = 64) -> None:
        self.root = root
        self._blocks = large_file_mib
        self._workloads: list[Workload[Found]] = []

    def __enter__(self) -> Self:
        for name in ("files", "names", "prizes", "unlinked"):
            (self.root / name).mkdir()
        for number in range(100):
            (self.root / "files" / str(number)).write_bytes(b"x" * number)
        (self.root / "prizes" / "source").touch()
        with open(self.root / "large", "wb") as file:
            for number in range(self._blocks):
                file.write(block(number))
        barrier = multiprocessing.get_context("fork").Barrier(2)
        for function, *arguments in (
            (read_a_large_file, self.root / "large", self._blocks),
            (write_a_large_file, self.root / "written", self._blocks),
            (look_at_everything, self.root / "files"),
            (use_unlinked_files, self.root / "unlinked"),
            (change_names, self.root / "names"),
            (compete_for_names, self.root / "prizes", barrier, 0),
            (compete_for_names, self.root / "prizes", barrier, 1),
        ):
            self._workloads.append(Workload(function, *arguments))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for workload in self._workloads:
            workload.kill()

    def wait_for_rounds(self, rounds: int, timeout_s: float = 60) -> None:
        """Return when each workload has begun so many more; fail when one has found a fault."""
        wanted = [workload.run.rounds + rounds for workload in self._workloads]
        deadline = time.monotonic() + timeout_s
        for workload, goal in zip(self._workloads, wanted, strict=True):
            while workload.run.rounds < goal:
                for other in self._workloads:
                    if other.has_ended():
                        other.finish()
                        raise AssertionError(f"{other.name} has ended early")
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{workload.name} does not get on")
                time.sleep(0.002)

    def finish(self, store: Path) -> dict[str, Found]:
        """Stop all, and compare what they say they did with what the store holds."""
        for workload in self._workloads:
            workload.run.stop()
        results = [(workload.name, workload.finish()) for workload in self._workloads]
        found = dict(results)
        for where, number in found["write_a_large_file"].log["blocks"].items():
            with open(store / "written", "rb") as file:
                file.seek(where * MiB // 4)
                assert file.read(MiB // 4) == block(number, MiB // 4)
        assert os.listdir(store / "unlinked") == []
        check_names(store / "names", found["change_names"].rounds)
        check_prizes(
            store / "prizes", [each for name, each in results if name == "compete_for_names"]
        )
        return found


def report(found: dict[str, Found]) -> str:
    """Rounds and longest waits, a line each."""
    return "\n".join(
        f"{name:<20} {each.rounds:>8} rounds, longest wait {each.longest_wait_s * 1000:7.1f} ms"
        for name, each in found.items()
    )
