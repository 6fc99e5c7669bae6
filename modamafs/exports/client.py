"""What a client of a share can be asked to do, whatever the protocol is.

Paths are relative to the share, with slashes; "" is its root. Everything that a server refuses is
an OSError with the errno that is closest to what the server said, and the server's own words.
"""

from __future__ import annotations

import errno
import os
from types import TracebackType
from typing import NamedTuple, Self


class Seen(NamedTuple):
    """What a client is told of an entry; None: the protocol does not say."""

    is_directory: bool
    size_bytes: int
    mtime_ns: int
    mode: int | None = None
    """Permission bits."""
    uid: int | None = None
    gid: int | None = None
    read_only: bool | None = None
    """Windows' attribute."""


class Client:
    """A connection to a share as one user; a context manager. Not for several threads."""

    protocol = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Hang up."""

    def listing(self, path: str = "") -> list[str]:
        """The names in a directory, without "." and "..", sorted."""
        raise self._lacks("listing")

    def stat(self, path: str) -> Seen:
        """Of an entry; of a symbolic link, what it leads to."""
        raise self._lacks("stat")

    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        """A file's bytes, or a part of them."""
        raise self._lacks("read")

    def write(self, path: str, data: bytes) -> None:
        """Make a file, or replace what is in it."""
        raise self._lacks("write")

    def write_at(self, path: str, offset: int, data: bytes) -> None:
        """Change bytes of a file that is there."""
        raise self._lacks("writing into a file")

    def truncate(self, path: str, size_bytes: int) -> None:
        """Set a file's size."""
        raise self._lacks("truncate")

    def mkdir(self, path: str) -> None:
        """Make a directory."""
        raise self._lacks("mkdir")

    def rmdir(self, path: str) -> None:
        """Remove an empty directory."""
        raise self._lacks("rmdir")

    def remove(self, path: str) -> None:
        """Remove a file."""
        raise self._lacks("remove")

    def rename(self, old: str, new: str) -> None:
        """Give an entry another name, or move it; what has that name is replaced."""
        raise self._lacks("rename")

    def chmod(self, path: str, mode: int) -> None:
        """Set permission bits."""
        raise self._lacks("chmod")

    def utime(self, path: str, mtime_s: int) -> None:
        """Set the time of the last change."""
        raise self._lacks("utime")

    def lock_shared(self, path: str) -> None:
        """Open a file to read it, lock all of it as readers do, without waiting; and let go."""
        raise self._lacks("locks")

    def _lacks(self, what: str) -> OSError:
        return OSError(errno.EOPNOTSUPP, f"{self.protocol} has no {what} here")


def error(number: int, words: str, path: str) -> OSError:
    """What a client raises: OSError makes its own subclass of it (PermissionError, …)."""
    return OSError(number, f"{os.strerror(number)} ({words})" if words else None, path)
