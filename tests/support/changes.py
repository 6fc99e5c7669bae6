"""Random changes to a directory tree, and what a tree is, for comparing a store with its mount."""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

NAMES = [f"n{number}" for number in range(12)]
ERRORS = (
    FileExistsError, FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError,
)  # fmt: skip


class Changer:
    """Makes one random change after the other below a directory."""

    def __init__(self, root: Path, seed: int) -> None:
        self.root = root
        self._random = random.Random(seed)
        self._kinds: list[Callable[[], None]] = [
            self.make_file, self.make_file, self.make_directory, self.append, self.replace,
            self.truncate, self.write_mapped, self.chmod, self.set_xattr, self.remove_xattr,
            self.rename, self.rename, self.exchange_link, self.link, self.remove, self.utime,
        ]  # fmt: skip

    def change(self, times: int = 1) -> None:
        """So many changes; what can't be done is no change."""
        for _ in range(times):
            with contextlib.suppress(*ERRORS):
                try:
                    self._random.choice(self._kinds)()
                except OSError as error:
                    if error.errno not in (22, 31, 39, 61):  # EINVAL, EMLINK, ENOTEMPTY, ENODATA
                        raise

    def _directory(self) -> Path:
        path = self.root
        while self._random.random() < 0.6:
            below = [one for one in sorted(path.iterdir()) if one.is_dir() and not one.is_symlink()]
            if not below:
                break
            path = self._random.choice(below)
        return path

    def _new(self) -> Path:
        return self._directory() / self._random.choice(NAMES)

    def _any(self) -> Path:
        return self._random.choice(sorted(self._directory().iterdir()) or [self.root / "nothing"])

    def _file(self) -> Path:
        path = self._any()
        if not stat.S_ISREG(path.lstat().st_mode):
            raise IsADirectoryError
        return path

    def _bytes(self) -> bytes:
        return self._random.randbytes(self._random.randrange(1, 5000))

    def make_file(self) -> None:
        with open(self._new(), "xb") as file:
            file.write(self._bytes())

    def make_directory(self) -> None:
        self._new().mkdir()

    def append(self) -> None:
        with open(self._file(), "ab") as file:
            file.write(self._bytes())

    def replace(self) -> None:
        target = self._file()
        new = target.with_name("new")
        new.write_bytes(self._bytes())
        new.rename(target)

    def truncate(self) -> None:
        os.truncate(self._file(), self._random.randrange(10_000))

    def write_mapped(self) -> None:
        with open(self._file(), "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
            memory[0] = self._random.randrange(256)

    def chmod(self) -> None:
        path = self._any()
        if not path.is_symlink():
            path.chmod(self._random.choice([0o600, 0o644, 0o700, 0o755]))

    def utime(self) -> None:
        os.utime(self._any(), (1, self._random.randrange(10**9)), follow_symlinks=False)

    def set_xattr(self) -> None:
        os.setxattr(self._file(), "user.test", self._bytes()[:20])

    def remove_xattr(self) -> None:
        os.removexattr(self._file(), "user.test")

    def rename(self) -> None:
        self._any().rename(self._new())

    def exchange_link(self) -> None:
        path = self._new()
        if path.is_symlink():
            path.unlink()
        path.symlink_to(self._random.choice(NAMES))

    def link(self) -> None:
        os.link(self._file(), self._new())

    def remove(self) -> None:
        path = self._any()
        if stat.S_ISDIR(path.lstat().st_mode):
            path.rmdir()
        else:
            path.unlink()


def look(root: Path, chooser: random.Random) -> None:
    """Look at things as programs do, so that the kernel remembers them."""
    for directory, names, files in os.walk(root):
        for name in (*names, *files, *NAMES[:3]):
            if chooser.random() < 0.5:
                continue
            with contextlib.suppress(OSError):
                found = os.lstat(f"{directory}/{name}")
                if stat.S_ISREG(found.st_mode):
                    os.listxattr(f"{directory}/{name}")
                elif stat.S_ISLNK(found.st_mode):
                    os.readlink(f"{directory}/{name}")


def by_name(root: Path, known: dict[str, Any]) -> dict[str, Any]:
    """The same as ``snapshot`` of what is known, and of names that are not there, without listing.

    A listing would bring news of everything that it names.
    """
    found: dict[str, Any] = {}
    directories = [path for path, facts in known.items() if stat.S_ISDIR(facts[1])]
    names = {os.path.normpath(f"{path}/{name}") for path in directories for name in NAMES}
    for path in sorted(known.keys() | names):
        with contextlib.suppress(FileNotFoundError):
            found[path] = _facts(root / path)
    return found


def snapshot(root: Path) -> dict[str, Any]:
    """Everything below a directory: attributes, content, targets, extended attributes."""
    found: dict[str, Any] = {".": _facts(root)}
    for directory, names, files in os.walk(root):
        for name in (*names, *files):
            path = Path(directory, name)
            found[str(path.relative_to(root))] = _facts(path)
    return found


def _facts(path: Path) -> tuple[Any, ...]:
    status = path.lstat()
    facts = (
        status.st_ino, status.st_mode, status.st_nlink, status.st_uid, status.st_gid,
        status.st_mtime_ns,
    )  # fmt: skip
    if stat.S_ISREG(status.st_mode):
        xattrs = {name: os.getxattr(path, name) for name in sorted(os.listxattr(path))}
        return (*facts, status.st_size, path.read_bytes(), tuple(xattrs.items()))
    if stat.S_ISLNK(status.st_mode):
        return (*facts, os.readlink(path))
    return facts
