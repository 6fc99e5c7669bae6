"""The jobs: one small class each, one row of the table each.

The runner calls, for every sample, `warm` (backing store, nothing mounted), then on a fresh mount
`setup` (unmeasured) and `run` (measured), and after the unmount `verify` (backing store again).
What is measured happens in a fresh process: `work.py`, or the real command.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from abc import ABC, abstractmethod
from pathlib import Path
from statistics import median
from typing import ClassVar

from benchmarks import work
from benchmarks.store import GIT, Store

TIMEOUT_S = 300.0
"""A measured process that takes longer is killed and reported as "hangs"."""


class JobFailedError(Exception):
    """A system could not do a job; the text names the errno, the signal or the wrong answer."""


def errno_name(number: int) -> str:
    """`EINVAL` for 22."""
    return errno.errorcode.get(number, str(number))


def named_in(message: str) -> str:
    """The errno whose text a command printed, or the end of what it printed."""
    for number, name in errno.errorcode.items():
        if os.strerror(number) in message:
            return name
    return (message.strip().splitlines() or ["no message"])[-1][-60:]


def command(*words: str | Path, directory: Path | None = None, output: Path | None = None) -> float:
    """Run a real command; the seconds from its start to its end. Raises `JobFailedError`."""
    with Path(output or os.devnull).open("wb") as stream:
        begin = time.perf_counter()
        try:
            done = subprocess.run(
                [str(word) for word in words],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.PIPE,
                cwd=directory,
                env=GIT,
                timeout=TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise JobFailedError("hangs") from None
        except OSError as error:  # the directory cannot be entered
            raise JobFailedError(errno_name(error.errno or 0)) from None
        seconds = time.perf_counter() - begin
    if done.returncode != 0:
        raise JobFailedError(named_in(done.stderr.decode(errors="replace")))
    return seconds


def worker(verb: str, *arguments: str | Path | int) -> float:
    """Run one verb of `work.py` in a fresh process; the seconds that it measured."""
    script = Path(work.__file__)
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", str(script), verb, *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise JobFailedError("hangs") from None
    if done.returncode < 0:
        raise JobFailedError(signal.Signals(-done.returncode).name)
    try:
        result = json.loads(done.stdout)
    except ValueError:
        raise JobFailedError(named_in(done.stderr.decode(errors="replace"))) from None
    if "errno" in result:
        raise JobFailedError(errno_name(result["errno"]))
    if "wrong" in result:
        raise JobFailedError(f"wrong: {result['wrong']}")
    return float(result["seconds"])


def expect(correct: bool, text: str) -> None:
    """Raise `JobFailedError("wrong: …")` unless `correct`."""
    if not correct:
        raise JobFailedError(f"wrong: {text}")


def warm_tree(top: Path) -> None:
    """Bring every entry below `top` into the kernel's caches of the backing store."""
    for folder, _, names in os.walk(top):
        for name in names:
            (Path(folder) / name).lstat()


class Job(ABC):
    """One row. `data` jobs move file content: modamafs's daemon must see none of it."""

    name: ClassVar[str]
    title: ClassVar[str]
    data: ClassVar[bool] = False

    def __init__(self, store: Store) -> None:
        self.store = store
        self.sizes = store.sizes

    @property
    def label(self) -> str:
        """The title with the amount of work."""
        return self.title

    def warm(self) -> None:  # noqa: B027 — nothing by default
        """Bring the backing store into the state that every system finds."""

    def setup(self, root: Path) -> None:  # noqa: B027
        """Prepare through the mount, unmeasured."""

    @abstractmethod
    def run(self, root: Path) -> float:
        """Do the job below `root`; the seconds it took. Raises `JobFailedError`."""

    def verify(self) -> None:  # noqa: B027
        """Check on the backing store what was done. Raises `JobFailedError`."""


class ReadJob(Job):
    """Reads of the data file, which lies in the backing store's page cache."""

    data = True

    def warm(self) -> None:
        work.read(str(self.store.root / "data"), str(self.sizes.file_bytes))

    @property
    def label(self) -> str:
        return f"{self.title}, {self.sizes.file_bytes >> 20} MiB"


class ReadBuffered(ReadJob):
    """The first read(2) of a file since the mount, from its start to its end."""

    name = "read"
    title = "read, buffered"

    def run(self, root: Path) -> float:
        return worker("read", root / "data", self.sizes.file_bytes)


class ReadDirect(ReadJob):
    """The same with O_DIRECT."""

    name = "read-direct"
    title = "read, O_DIRECT"

    def run(self, root: Path) -> float:
        return worker("read", root / "data", self.sizes.file_bytes, "direct")


class AgainJob(ReadJob):
    """A fresh open of a file that was read once through this mount."""

    def setup(self, root: Path) -> None:
        worker("read", root / "data", self.sizes.file_bytes)


class MapRead(AgainJob):
    """The whole file copied out of a shared mapping."""

    name = "mmap"
    title = "mmap read"

    def run(self, root: Path) -> float:
        return worker("map", root / "data", self.sizes.file_bytes)


class RandomRead(AgainJob):
    """4 KiB pread(2)s all over one open file."""

    name = "random"
    title = "random 4 KiB reads"

    def run(self, root: Path) -> float:
        path, size = root / "data", self.sizes.file_bytes
        return worker("random", path, size, self.sizes.random_reads)


class WriteBuffered(Job):
    """A new file in 64 KiB write(2)s, open and close included, fsync not."""

    name = "write"
    title = "write"
    data = True
    flags: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        return f"{self.title}, {self.sizes.file_bytes >> 20} MiB"

    def run(self, root: Path) -> float:
        return worker("write", root / self.store.work / "new", self.sizes.file_bytes, *self.flags)

    def verify(self) -> None:
        size = self.sizes.file_bytes
        with (self.store.root / self.store.work / "new").open("rb") as stream:
            expect(os.fstat(stream.fileno()).st_size == size, "size of the written file")
            for offset in range(0, size, max(work.CHUNK, size // 64)):
                stream.seek(offset)
                try:
                    work.check_block(stream.read(work.BLOCK), offset // work.BLOCK)
                except work.WrongAnswerError as error:
                    raise JobFailedError(f"wrong: {error}") from None


class WriteDirect(WriteBuffered):
    """A new file in 1 MiB write(2)s with O_DIRECT."""

    name = "write-direct"
    title = "write, O_DIRECT"
    flags = ("direct",)


class StatJob(Job):
    """stat(2) of the files of one directory."""

    passes: tuple[int, int]

    @property
    def label(self) -> str:
        return f"{self.title}, {self.sizes.files} files"

    def warm(self) -> None:
        warm_tree(self.store.root / "files")

    def run(self, root: Path) -> float:
        return worker("stat", root / "files", self.sizes.files, *self.passes)


class StatWarm(StatJob):
    """A pass right after an unmeasured one (the median of five)."""

    name = "stat-warm"
    title = "stat, warm"
    passes = (1, work.PARTS)


class StatCold(StatJob):
    """The first pass since the mount, over a warm backing store."""

    name = "stat-cold"
    title = "stat, cold"
    passes = (0, 1)


class ScanStat(StatJob):
    """The first scandir since the mount, and a stat of each entry."""

    name = "scandir"
    title = "scandir and stat"

    def run(self, root: Path) -> float:
        return worker("scan", root / "files", self.sizes.files)


class Find(Job):
    """`find -type f` in a tree: the first one since the mount, over a warm backing store."""

    name = "find"
    title = "find"

    @property
    def label(self) -> str:
        return f"{self.title}, {self.sizes.tree_files} files"

    def warm(self) -> None:
        warm_tree(self.store.root / "tree")

    def run(self, root: Path) -> float:
        output = self.store.source / "found"
        seconds = command("find", root / "tree", "-type", "f", output=output)
        expect(output.read_bytes().count(b"\n") == self.sizes.tree_files, "files found")
        return seconds


class Untar(Job):
    """`tar -xz` of small files into a new directory; the archive lies on the bare disk."""

    name = "untar"
    title = "untar"

    @property
    def label(self) -> str:
        return f"{self.title}, {self.sizes.tar_files} files"

    @property
    def archive(self) -> Path:
        """What is unpacked."""
        return self.store.source / "archive.tar.gz"

    def warm(self) -> None:
        self.archive.read_bytes()

    def unpack(self, root: Path) -> float:
        """Do it."""
        return command("tar", "-xf", self.archive, "-C", root / self.store.work)

    def run(self, root: Path) -> float:
        return self.unpack(root)

    def verify(self) -> None:
        # Content only, so that bindfs can be timed: through it files get another mtime.
        with tarfile.open(self.archive) as archive:
            for member in archive:
                if (stream := archive.extractfile(member)) is not None:
                    path = self.store.root / self.store.work / member.name
                    expect(path.is_file() and path.read_bytes() == stream.read(), member.name)


class RemoveTree(Untar):
    """`rm -rf` of what was just unpacked through the same mount."""

    name = "rm"
    title = "rm -rf"

    def setup(self, root: Path) -> None:
        self.unpack(root)

    def run(self, root: Path) -> float:
        return command("rm", "-rf", root / self.store.work / "tree")

    def verify(self) -> None:
        expect(not (self.store.root / self.store.work / "tree").exists(), "the tree is still there")


class GitClone(Job):
    """`git clone` of a packed repository that lies on the bare disk."""

    name = "git-clone"
    title = "git clone"

    @property
    def label(self) -> str:
        return f"{self.title}, {self.sizes.repository_files} files"

    def clone(self, root: Path) -> float:
        """Do it."""
        source = self.store.source / "repository.git"
        return command(
            "git", "clone", "--quiet", "--no-hardlinks", source, root / self.store.work / "clone"
        )

    def run(self, root: Path) -> float:
        return self.clone(root)

    def verify(self) -> None:
        output = self.store.source / "status"
        clone = self.store.root / self.store.work / "clone"
        command("git", "-C", clone, "status", "--porcelain", output=output)
        expect(output.stat().st_size == 0, "the clone's working tree differs")


class GitStatus(GitClone):
    """`git status` in a fresh clone, after an unmeasured one (the median of five)."""

    name = "git-status"
    title = "git status"

    def status(self, root: Path) -> float:
        """Do it once."""
        return command("git", "status", "--porcelain", directory=root / self.store.work / "clone")

    def setup(self, root: Path) -> None:
        self.clone(root)
        self.status(root)

    def run(self, root: Path) -> float:
        return median(self.status(root) for _ in range(work.PARTS))


JOBS: dict[str, type[Job]] = {
    job.name: job
    for job in (
        ReadBuffered,
        ReadDirect,
        MapRead,
        WriteBuffered,
        WriteDirect,
        RandomRead,
        StatWarm,
        StatCold,
        ScanStat,
        Find,
        Untar,
        RemoveTree,
        GitClone,
        GitStatus,
    )
}
"""In the order of the design's table."""
