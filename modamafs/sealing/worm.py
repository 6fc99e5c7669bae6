"""Directories for writing once: a file becomes immutable some time after its last writer has gone.

While a session is recorded, new files stay possible and finished ones can't be changed any more.
The immutable flag is the wall, so it holds on the store as well; a store without such flags can't
have it. Sealing the directory as a whole ends it.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Iterator
from typing import Any

from modamafs.errors import Busy, InvalidRequest
from modamafs.model import RECORDS, Caller
from modamafs.policy import decide
from modamafs.sealing import immutable
from modamafs.sealing.contents import contents
from modamafs.sealing.place import Place, now, stewards_gid, user_name
from modamafs.sealing.writers import is_open_for_writing
from modamafs.store.backing import Store
from modamafs.store.records import read_record, remove_record, write_record
from modamafs.store.seals import SEALS, enlist_worm, unlist_worm, worms

log = logging.getLogger(__name__)

LOOK_FOR_WORMS_S = 5.0
"""How often it is asked whether there is such a directory."""
SHORTEST_PAUSE_S = 0.2


def set_worm(
    store: Store, relative: bytes, caller: Caller, grace_s: float | None
) -> dict[str, Any]:
    """Make a directory one for writing once; with None, end it (what is immutable stays so).

    Raises InvalidRequest (EINVAL): sealed already, or no immutable flags here; NotPermitted
    (EPERM): the owner or a steward may begin it, a steward end it; Busy (EBUSY).
    """
    with Place(store, relative) as place:
        above = place.covering()
        if above is not None:
            raise InvalidRequest(f"{os.fsdecode(above)} is sealed: nothing in it changes anyway")
        stewards = stewards_gid(store)
        decide.may_seal(caller, place.owners, stewards)
        if grace_s is None:
            decide.may_unseal(caller, stewards)
        elif not grace_s > 0:
            raise InvalidRequest("the time of grace has to be longer than 0 seconds")
        with place.records(make=True) as records:
            assert records is not None
            if not immutable.is_supported(records):
                raise InvalidRequest(
                    f"{place.shown} lies on a file system without immutable flags, or this "
                    "process may not set them: it can only be sealed as a whole"
                )
            known = read_record(records, place.worm)
            if known is not None and grace_s is not None and grace_s > known["grace_s"]:
                decide.may_unseal(caller, stewards)
            event = {"event": "worm", "path": place.shown, "grace_s": grace_s, "at": now()}
            event |= {"by": user_name(caller.uid), "id": None}
            if grace_s is None:
                remove_record(records, place.worm)
                unlist_worm(store, place.relative)
            else:
                enlist_worm(store, place.relative)
                write_record(records, place.worm, event)
            place.write_history(event)
            return event | {"state": "open" if grace_s is None else "worm"}


class Sweeper:
    """Goes through these directories, again and again. For one thread."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._closed_since_s: dict[int, float] = {}
        """When a file was first seen without a writer, by inode."""

    def sweep(self) -> float:
        """Make immutable what is due. How many seconds to wait before the next time."""
        pause_s = LOOK_FOR_WORMS_S
        seen: set[int] = set()
        for root in worms(self._store):
            try:
                with Place(self._store, root) as place:
                    record = read_record(
                        place.parent_fd, RECORDS + b"/" + SEALS + b"/" + place.worm
                    )
                    if record is None:
                        continue
                    grace_s = float(record["grace_s"])
                    pause_s = min(pause_s, max(grace_s / 4, SHORTEST_PAUSE_S))
                    with place.records(make=False) as records:
                        if records is not None and place.covering() is None:
                            self._sweep(place, grace_s, seen)
            except (InvalidRequest, FileNotFoundError):  # removed, or made a file, meanwhile
                continue
            except Busy:  # it is being sealed
                continue
            except (OSError, ValueError, KeyError, TypeError) as error:
                log.warning("worm-failed path=%r error=%s", root, error)
        for ino in self._closed_since_s.keys() - seen:
            del self._closed_since_s[ino]
        return pause_s

    def _sweep(self, place: Place, grace_s: float, seen: set[int]) -> None:
        for fd, ino in _candidates(place):
            seen.add(ino)
            if is_open_for_writing(fd):
                self._closed_since_s.pop(ino, None)
                continue
            at_s = time.monotonic()
            closed_for_s = at_s - self._closed_since_s.setdefault(ino, at_s)
            unchanged_for_s = time.time() - os.fstat(fd).st_ctime
            if closed_for_s < grace_s or unchanged_for_s < grace_s:
                continue
            os.fsync(fd)
            immutable.change(fd, True)
            if is_open_for_writing(fd):  # somebody came in between: not yet
                immutable.change(fd, False)
                self._closed_since_s.pop(ino, None)


def _candidates(place: Place) -> Iterator[tuple[int, int]]:
    """The files that have bytes and lack the flag: a descriptor, for that step, and the inode."""
    for entry in contents(place.fd, vanishing=True):
        if not entry.is_file or not entry.found.st_size:
            continue
        try:
            fd = entry.open()
        except OSError as error:
            if error.errno == errno.ENOENT:
                continue
            raise
        try:
            if not immutable.is_immutable(fd):
                yield fd, entry.found.st_ino
        finally:
            os.close(fd)
