"""The backing directory and the material that the jobs use: made once, removed at the end."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import work
from benchmarks.systems import run, undisturbed

DEFAULT_DIRECTORY = Path("/var/tmp")
INODES_A_GROUP = 8192
"""mke2fs's default; elsewhere the search for a fresh group is merely in vain."""
RECENT_S = 400.0
CANDIDATES = 30
GIT = {
    "PATH": os.environ.get("PATH", os.defpath),
    "LC_ALL": "C",
    "HOME": "/nonexistent",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_AUTHOR_NAME": "b",
    "GIT_AUTHOR_EMAIL": "b@localhost",
    "GIT_COMMITTER_NAME": "b",
    "GIT_COMMITTER_EMAIL": "b@localhost",
}
"""The environment of every measured command: nobody's settings, English messages."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much each job does."""

    file_bytes: int
    random_reads: int
    files: int
    tree_files: int
    tar_files: int
    repository_files: int = 254


FULL = Sizes(1 << 30, 50_000, 5000, 50_000, 2000)
QUICK = Sizes(64 << 20, 5000, 500, 5000, 200)


@dataclass(slots=True)
class Store:
    """`base/store` is what the systems show, `base/mnt` where, `base/source` is nobody's.

    `work` names the directory inside the store that the next sample may write to.
    """

    base: Path
    sizes: Sizes
    work: str = ""
    groups: dict[int, float] = field(default_factory=dict)

    @property
    def root(self) -> Path:
        """The backing directory."""
        return self.base / "store"

    @property
    def mountpoint(self) -> Path:
        """Where it is mounted; as deep as the backing directory, so that paths cost the same."""
        return self.base / "mnt"

    @property
    def source(self) -> Path:
        """The archive and the repository, outside of every mount."""
        return self.base / "source"

    def free(self) -> int:
        """Bytes that may still be written."""
        return shutil.disk_usage(self.base).free

    def settle(self) -> None:
        """Let nothing of the last sample weigh on the next one: neither pages nor inodes.

        What was written is deleted before it is synced. And the next sample gets a new directory in
        another block group, for ext4 does not give out an inode within a minute (six, if its block
        is dirty) of its deletion, and searches past all such inodes for each new file: unpacking
        the same archive in the same place again and again takes ten times as long on the bare disk.
        """
        if self.work:
            shutil.rmtree(self.root / self.work, ignore_errors=True)
        self.work = self.fresh_directory().name
        os.sync()

    def fresh_directory(self) -> Path:
        """Make a directory in a block group that was not used lately, as far as one turns up."""
        best: tuple[float, Path] | None = None
        for _ in range(CANDIDATES):
            path = Path(tempfile.mkdtemp(prefix="work-", dir=self.root))
            used = self.groups.get(path.stat().st_ino // INODES_A_GROUP, -RECENT_S)
            if best is None or used < best[0]:
                best, path = (used, path), best[1] if best else path
            if path != best[1]:
                path.rmdir()
            if time.monotonic() - best[0] > RECENT_S:
                break
        assert best is not None
        best[1].chmod(0o755)
        self.groups[best[1].stat().st_ino // INODES_A_GROUP] = time.monotonic()
        return best[1]


@contextmanager
def directory(parent: Path, sizes: Sizes) -> Iterator[Store]:
    """An empty store in a new directory below `parent`, removed at the end."""
    base = Path(tempfile.mkdtemp(prefix="modamafs-bench-", dir=parent.resolve(strict=True)))
    os.environ["MODAMAFS_INDEX_DIR"] = str(base / "index")  # it goes with the store
    try:
        store = Store(base, sizes)
        for path in (store.root, store.mountpoint, store.source):
            path.mkdir(mode=0o755)
        run("chattr", "+T", store.root)  # ext4: its directories go to different block groups
        store.settle()
        yield store
    finally:
        with undisturbed():
            shutil.rmtree(base, ignore_errors=True)
        if base.exists():
            print(f"benchmarks: {base} could not be removed", file=sys.stderr)


def fill(store: Store) -> None:
    """Make the data file, the directories, the archive and the repository."""
    make_file(store.root / "data", store.sizes.file_bytes)
    make_files(store.root / "files", store.sizes.files)
    make_tree(store.root / "tree", store.sizes.tree_files)
    make_archive(store.source, store.sizes.tar_files)
    make_repository(store.source, store.sizes.repository_files)
    os.sync()


def make_file(path: Path, size: int) -> None:
    """A file of random bytes (repeating after 1 MiB) whose blocks carry their numbers."""
    buffer = bytearray(random.Random(1).randbytes(work.CHUNK))
    with path.open("wb", buffering=0) as stream:
        for offset in range(0, size, work.CHUNK):
            work.stamp(memoryview(buffer), offset // work.BLOCK)
            stream.write(buffer)


def make_files(path: Path, count: int) -> None:
    """One directory of `count` files; file n is n bytes long."""
    path.mkdir()
    for number in range(count):
        (path / f"{number:06d}").write_bytes(b"x" * number)


def make_tree(path: Path, count: int, each: int = 100) -> None:
    """`count` empty files, `each` to a directory, the directories in one directory."""
    path.mkdir()
    for number in range(count):
        folder = path / f"{number // each:04d}"
        if number % each == 0:
            folder.mkdir()
        (folder / f"{number:06d}").touch()


def make_archive(source: Path, count: int) -> None:
    """`archive.tar.gz` with `count` text files (1 to 24 KiB) in directories of 50."""
    generator = random.Random(2)
    with tempfile.TemporaryDirectory(dir=source) as scratch:
        tree = Path(scratch) / "tree"
        for number in range(count):
            folder = tree / f"package{number // 50:03d}" / "source"
            folder.mkdir(parents=True, exist_ok=True)
            content = generator.randbytes(generator.randint(1, 24) << 9).hex()
            (folder / f"file{number:05d}.txt").write_text(content)
        with tarfile.open(source / "archive.tar.gz", "w:gz") as archive:
            archive.add(tree, "tree")


def make_repository(source: Path, count: int) -> None:
    """`repository.git`, bare and packed, with one commit of `count` files in directories of 10."""
    generator = random.Random(3)
    with tempfile.TemporaryDirectory(dir=source) as scratch:
        for number in range(count):
            folder = Path(scratch) / f"module{number // 10:02d}"
            folder.mkdir(exist_ok=True)
            lines = [generator.randbytes(30).hex() for _ in range(generator.randint(10, 120))]
            (folder / f"part{number:03d}.txt").write_text("\n".join(lines))
        bare = str(source / "repository.git")
        for words in (
            ["init", "--quiet", "--initial-branch", "main"],
            ["add", "."],
            ["commit", "--quiet", "--message", "everything"],
            ["gc", "--quiet"],
            ["clone", "--quiet", "--bare", "--no-hardlinks", ".", bare],
        ):
            subprocess.run(["git", *words], cwd=scratch, env=GIT, check=True)
