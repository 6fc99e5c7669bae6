"""What comes from outside, in the sessions' histories: changes that were made on the store itself.

Many changes soon after each other are one line, with how many there were of which kind and the
first few paths.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

from modamafs.index.changes import Noted
from modamafs.model import RECORDS
from modamafs.sealing.place import HISTORY, SESSION_DEPTH, now
from modamafs.store.backing import PATH_FLAGS, Store
from modamafs.store.catalogue import read_session
from modamafs.store.records import append_line, open_records

log = logging.getLogger(__name__)

GATHERED_S = 20.0
"""What changes in this time after a first change is on the same line."""
EXAMPLES = 5
LONGEST_EXAMPLE_BYTES = 4096
"""Paths that are longer are counted, and not named."""


class _Session:
    def __init__(self, now_s: float) -> None:
        self.since_s = now_s
        self.counts: Counter[str] = Counter()
        self.examples: list[bytes] = []


class Histories:
    """Gathers, and writes now and then. For one thread."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._sessions: dict[bytes, _Session] = {}

    def note(self, changes: Iterable[Noted]) -> None:
        """What was found; what was done through a mount does not matter."""
        now_s = time.monotonic()
        for event, path, outside in changes:
            parts = path.split(b"/")
            if not outside or len(parts) <= SESSION_DEPTH or RECORDS in parts:
                continue
            name = b"/".join(parts[:SESSION_DEPTH])
            session = self._sessions.setdefault(name, _Session(now_s))
            session.counts[event] += 1
            below = b"/".join(parts[SESSION_DEPTH:])
            if len(below) > LONGEST_EXAMPLE_BYTES:
                continue
            if len(session.examples) < EXAMPLES and below not in session.examples:
                session.examples.append(below)

    def write(self) -> None:
        """Write what was gathered for long enough. Where that can't be done, it is only logged."""
        due_s = time.monotonic() - GATHERED_S
        for name, session in list(self._sessions.items()):
            if session.since_s <= due_s:
                del self._sessions[name]
                try:
                    self._append(name, _line(session))
                except OSError as error:
                    log.info("history-not-written session=%r error=%s", name, error)

    def _append(self, name: bytes, line: dict[str, Any]) -> None:
        """Only sessions that have a record have a history of this."""
        fd = os.dup(self._store.root_fd)
        try:
            for part in name.split(b"/"):
                below = os.open(part, PATH_FLAGS, dir_fd=fd)
                os.close(fd)
                fd = below
            if read_session(fd) == (None, None):
                return
            records = open_records(fd, RECORDS)
            try:
                append_line(records, HISTORY, line)
            finally:
                os.close(records)
        finally:
            os.close(fd)


def _line(session: _Session) -> dict[str, Any]:
    return {
        "event": "changed-outside",
        "at": now(),
        **dict(sorted(session.counts.items())),
        "paths": [os.fsdecode(path) for path in session.examples],
    }
