"""inotify(7): what programs, and smbd, are told of a directory."""

from __future__ import annotations

import ctypes
import os
import select
import struct
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

MODIFY, ATTRIB, CLOSE_WRITE, MOVED_FROM, MOVED_TO, CREATE, DELETE = (
    0x2, 0x4, 0x8, 0x40, 0x80, 0x100, 0x200,
)  # fmt: skip
ISDIR = 0x40000000
_ALL = MODIFY | ATTRIB | CLOSE_WRITE | MOVED_FROM | MOVED_TO | CREATE | DELETE
_EVENT = struct.Struct("=iIII")

_libc = ctypes.CDLL(None, use_errno=True)


class Event(NamedTuple):
    """One."""

    mask: int
    name: str


class Inotify:
    """Watches one directory for as long as a block lasts; remembers what it was told."""

    def __init__(self, directory: Path) -> None:
        self.events: list[Event] = []
        self._fd: int = _libc.inotify_init1(os.O_CLOEXEC)
        assert self._fd >= 0, os.strerror(ctypes.get_errno())
        watch = _libc.inotify_add_watch(self._fd, os.fsencode(directory), _ALL)
        assert watch >= 0, os.strerror(ctypes.get_errno())

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
        """Watch no more."""
        os.close(self._fd)

    def wait_for(self, mask: int, name: str, seconds: float = 30) -> None:
        """Return as soon as such an event is among those that there were."""
        self.wait_until(lambda: Event(mask, name) in self.events, f"{mask:#x} {name}", seconds)

    def wait_until(self, condition: Callable[[], bool], what: str, seconds: float = 30) -> None:
        """The same for any condition on the events."""
        deadline_s = time.monotonic() + seconds
        while not condition():
            ready, _, _ = select.select([self._fd], [], [], max(0, deadline_s - time.monotonic()))
            if not ready:
                raise TimeoutError(f"waited in vain for {what}; there were: {self.events}")
            self._read()

    def _read(self) -> None:
        data = os.read(self._fd, 1 << 16)
        at = 0
        while at < len(data):
            _, mask, _, length = _EVENT.unpack_from(data, at)
            name = data[at + _EVENT.size : at + _EVENT.size + length].rstrip(b"\0")
            self.events.append(Event(mask, os.fsdecode(name)))
            at += _EVENT.size + length
