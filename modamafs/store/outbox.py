"""What hooks have not been told yet of seals: a file for each event, until somebody has done so.

Who seals puts an event there before what it tells of is final, and takes it back where that does
not come to pass: so nothing is lost, whoever is killed when. Whoever takes events from there looks
whether they hold already (``modamafs/hooks``), and may find one twice.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from blake3 import blake3

from modamafs.store.backing import Store
from modamafs.store.identity import store_id
from modamafs.store.records import NEW, read_record, remove_record, write_record

log = logging.getLogger(__name__)


class Event(msgspec.Struct, frozen=True):
    """What has happened to a sealed directory."""

    event: str
    path: bytes
    """Relative to the store."""
    seal_id: str


def hooks_dir(store: Store, base: Path) -> Path:
    """Where is kept what hooks have not been told yet; ``base`` is ``config.state_base``."""
    return base / store_id(store) / "hooks"


class Outbox:
    """The events of one store; several processes may use it at once."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def put(self, event: Event) -> None:
        """Add an event, durably, in the place of an equal one. OSError: it is not there."""
        with self._opened(make=True) as fd:
            equal = _named(fd, event)
            name = b"%020d-%s.json" % (time.time_ns(), _tag(event))
            record = {"event": event.event, "path": os.fsdecode(event.path), "id": event.seal_id}
            write_record(fd, name, record)
            for one in equal:
                remove_record(fd, one)

    def withdraw(self, event: Event) -> None:
        """Remove an event that has not come to pass, if it is there. OSError."""
        with self._opened() as fd:
            for name in _named(fd, event):
                remove_record(fd, name)

    def pending(self) -> list[tuple[bytes, Event]]:
        """All events and their files' names, the oldest first. OSError."""
        found = []
        with self._opened() as fd:
            for name in _names(fd):
                try:
                    record = read_record(fd, name)
                    if record is None:  # taken back meanwhile
                        continue
                    path = os.fsencode(record["path"])
                    found.append((name, Event(record["event"], path, record["id"])))
                except (ValueError, LookupError, TypeError) as error:
                    log.warning("event-unreadable file=%r error=%s", name, error)
                    remove_record(fd, name)
        return found

    def count(self) -> int:
        """How many events there are. OSError."""
        with self._opened() as fd:
            return len(_names(fd))

    def has(self, name: bytes) -> bool:
        """Whether an event has not been taken back, or replaced, since it was found. OSError."""
        with self._opened() as fd:
            return name in _names(fd)

    def remove(self, name: bytes) -> None:
        """Remove an event that was told; one that is not there any more is no error. OSError."""
        with self._opened() as fd:
            if fd >= 0:
                remove_record(fd, name)

    @contextmanager
    def _opened(self, *, make: bool = False) -> Iterator[int]:
        """The directory; -1: there is none."""
        if make:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            yield -1
            return
        try:
            yield fd
        finally:
            os.close(fd)


def _names(fd: int) -> list[bytes]:
    names = [] if fd < 0 else sorted(os.fsencode(name) for name in os.listdir(fd))
    return [name for name in names if name[:20].isdigit() and not name.endswith(NEW)]


def _named(fd: int, event: Event) -> list[bytes]:
    """The files of an event."""
    return [name for name in _names(fd) if name.endswith(b"-%s.json" % _tag(event))]


def _tag(event: Event) -> bytes:
    """Of its file's name: a seal's record is not asked what a file is to be called."""
    words = b"\0".join((event.event.encode(), event.path, os.fsencode(event.seal_id)))
    return blake3(words).hexdigest(16).encode()
