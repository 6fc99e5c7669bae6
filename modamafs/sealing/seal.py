"""Sealing and opening: ``open → sealing → sealed → unsealing → open``, each state durable.

Every step can be done again: whoever finds ``sealing`` or ``unsealing`` (``resume``) goes on from
the beginning of that state. The record comes first and goes last, so that in between the directory
counts as sealed for every mount; see ``docs/seals.md``.
"""

from __future__ import annotations

import errno
import itertools
import os
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from importlib.metadata import version
from typing import Any

from blake3 import blake3

from modamafs.errors import Busy, DamagedRecord, InvalidRequest
from modamafs.model import Caller, SealState
from modamafs.policy import decide
from modamafs.sealing import immutable
from modamafs.sealing.announce import announce, withdraw
from modamafs.sealing.contents import Entry, contents
from modamafs.sealing.hashing import Hasher, Pace
from modamafs.sealing.manifest import ATTRIBUTES, Hashes, Line, b3sum_line, line_of, mtree_lines
from modamafs.sealing.place import Place, now, stewards_gid, user_name
from modamafs.sealing.progress import Progress
from modamafs.sealing.writers import describe, find_writers, is_open_for_writing
from modamafs.store import _volume
from modamafs.store.backing import Store
from modamafs.store.records import NEW, encode, new_record, remove_record, write_record
from modamafs.store.seals import (
    enlist,
    is_listed,
    rebuild_list,
    recorded_below,
    unlist,
    unlist_worm,
)

SEAL_XATTR = b"user.modama.seal"
"""On the root of a sealed directory: the seal's id."""
POLL_S = 0.1
RELEASE_S = 0.5
"""A file that was just closed is let go of by the mount a moment later."""
ATTEMPTS = 3
"""How often a directory is hashed that changes meanwhile, behind every wall."""
NAMED_OUTSIDE_LIMIT = 1_000_000
"""How many entries of the store are looked at for the other name of a file."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What is asked of a seal, besides the directory."""

    wait_s: float | None = 0.0
    """How long to wait for writers to close their files; None is as long as it takes."""
    until: date | None = None
    hold: bool | None = None
    """Set (True) or lift (False) the hold; None leaves it."""
    reason: str = ""
    """Why it is held, or why the hold is lifted."""
    by: str = ""
    """Whose name is recorded; "" for the caller's."""


NO_WISH = Wish()


def seal(
    store: Store,
    relative: bytes,
    caller: Caller,
    wish: Wish = NO_WISH,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Seal a directory; of one that is sealed already, the record is returned as it is.

    The record is there first (state ``sealing``), so that from then on every mount refuses every
    change; then nobody may have a file open for writing, and no file a name outside; then
    everything is synced, made immutable and hashed; then the record says ``sealed``.

    Takes as long as reading the data. Raises InvalidRequest (EINVAL), NotPermitted (EPERM), Busy
    (EBUSY, with the files and processes), OSError; then the directory is open as before.
    """
    progress = progress or Progress()
    with Place(store, relative) as place:
        above = place.covering()
        if above is not None and above != place.relative:
            raise InvalidRequest(f"{os.fsdecode(above)} is sealed, and this lies in it")
        stewards = stewards_gid(store)
        decide.may_seal(caller, place.owners, stewards)
        if wish.hold is False:
            decide.may_unseal(caller, stewards)
            if not wish.reason.strip():
                raise InvalidRequest("lifting a hold needs a reason: --reason TEXT")
        today = datetime.now(UTC).date()
        if wish.until is not None:
            decide.extend({}, wish.until, today)
        progress.step("gate")
        with place.records(make=True) as records:
            assert records is not None
            record = place.read()
            if record is None:
                record = _new_record(place, records, caller, wish)
                record = _Sealing(place, records, progress, wish).run(record)
            elif record["state"] == SealState.SEALING.value:
                record = _Sealing(place, records, progress, wish).run(record)
            elif record["state"] == SealState.UNSEALING.value:
                raise Busy(
                    f"the unsealing of {place.shown} was interrupted: "
                    "finish it with 'modamafs seal --resume'"
                )
            return _retain(place, records, record, caller, wish, today)


def _new_record(place: Place, records: int, caller: Caller, wish: Wish) -> dict[str, Any]:
    return {
        "path": place.shown,
        "id": str(uuid.uuid4()),
        "state": SealState.SEALING.value,
        "content_hash": None,
        "attribute_hash": None,
        "file_count": None,
        "size_bytes": None,
        "sealed_at": None,
        "sealed_by": wish.by or user_name(caller.uid),
        "requested_at": now(),
        "wait_s": wish.wait_s,
        "until": str(wish.until) if wish.until else None,
        "hold": bool(wish.hold),
        "reason": wish.reason,
        "immutable_flag": immutable.is_supported(records),
        "immutable_before": None,
        "tool": f"modamafs {version('modamafs')}",
    }


def _retain(
    place: Place,
    records: int,
    record: dict[str, Any],
    caller: Caller,
    wish: Wish,
    today: date,
) -> dict[str, Any]:
    """Set what was wished for: how long it stays sealed, and whether it is held."""
    changed: dict[str, Any] = {}
    if wish.until is not None and str(wish.until) != record.get("until"):
        decide.extend(record, wish.until, today)
        changed["until"] = str(wish.until)
    if wish.hold is not None and wish.hold is not bool(record.get("hold")):
        changed["hold"] = wish.hold
    if changed:
        event = {"event": "retention", "path": record["path"], "id": record["id"], **changed}
        event |= {"at": now(), "by": user_name(caller.uid), "reason": wish.reason}
        place.write_history(event)
        record |= changed
        write_record(records, place.record, record)
    return record


@dataclass(slots=True)
class _Look:
    """What was found in the way of a seal."""

    busy: dict[int, bytes] = field(default_factory=dict)
    """The files that are open for writing, by inode."""
    outside: list[tuple[bytes, int]] = field(default_factory=list)
    """The files that have a name outside, with their inodes."""
    immutable: list[bytes] = field(default_factory=list)
    """What has the flag already."""
    files: int = 0
    size_bytes: int = 0


class _Sealing:
    """From the gate to the commit."""

    def __init__(self, place: Place, records: int, progress: Progress, wish: Wish) -> None:
        self.place = place
        self.records = records
        self.progress = progress
        self.wish = wish

    def run(self, record: dict[str, Any]) -> dict[str, Any]:
        """Seal, or leave it open, whatever comes in between."""
        place, records, step = self.place, self.records, self.progress.step
        if not is_listed(place.store):
            rebuild_list(place.store, recorded_below(place.store.root_fd))
        try:
            enlist(place.store, place.relative)
            step("enlisted")
            write_record(records, place.record, record)
            self._refuse_others()
            step("looking")
            found = self._wait_for_writers()
            if record["immutable_before"] is None:
                record["immutable_before"] = [os.fsdecode(path) for path in found.immutable]
                write_record(records, place.record, record)
            step("syncing")
            _volume.syncfs(place.fd)
            step("marking")
            _mark(place, record["id"])
            record |= self._freeze_and_hash(record)
            self._commit(record)
        except BaseException:
            _roll_back(place, records, record)
            raise
        step("committed")
        remove_record(records, place.worm)
        unlist_worm(place.store, place.relative)
        return record

    def _refuse_others(self) -> None:
        """Busy: it was moved; something inside, or a directory above, is sealed or opened as well.

        Asked when the own record is there: of two that begin at once, one sees the other.
        """
        place = self.place
        if not place.is_still_there():
            raise Busy(f"{place.shown} was moved away meanwhile: look where it is, and seal again")
        above = place.covering()
        if above != place.relative:
            raise Busy(f"{os.fsdecode(above or b'')} is being sealed, and this lies in it")
        for inner in recorded_below(place.fd):
            with Place(place.store, place.relative + b"/" + inner) as inside:
                record = inside.read()
            if record is not None and record["state"] != SealState.SEALED.value:
                raise Busy(
                    f"{inside.shown} lies in it, and is in the state '{record['state']}': "
                    "wait for that, or finish it with 'modamafs seal --resume'"
                )

    def _commit(self, record: dict[str, Any]) -> None:
        self.progress.step("committing")
        event = {"event": "sealed", **_for_history(record)}
        remembered = False
        try:
            with new_record(self.records, self.place.record) as file:
                file.write(encode(record, indent=2))
                file.flush()
                os.fsync(file.fileno())  # from here on no full disk is in the way
                announce(self.place, "sealed", record)
                self.progress.step("remembering")
                self.place.write_history(event, once=True)
                remembered = True
        except OSError as error:
            if remembered:
                said = {"event": "not sealed", "path": record["path"], "id": record["id"]}
                self.place.write_history(said | {"at": now(), "reason": str(error)})
            raise

    def _wait_for_writers(self) -> _Look:
        """Busy: somebody writes, or a file has a name outside."""
        wait_s = self.wish.wait_s
        deadline_s = None if wait_s is None else time.monotonic() + max(wait_s, RELEASE_S)
        found = _look(self.place)
        self.progress.expect(found.files, found.size_bytes)
        while found.busy:
            self.progress.step("waiting for writers")
            if deadline_s is not None and time.monotonic() >= deadline_s:
                writers = find_writers(self.place.store, found.busy)
                raise Busy(
                    f"open for writing: {describe(list(found.busy.values()), writers)}; "
                    "close it and seal again, or wait for it with --wait"
                )
            time.sleep(POLL_S)
            found = _look(self.place)
        if found.outside:
            raise Busy(_named_outside(self.place, *found.outside[0]))
        return found

    def _freeze_and_hash(self, record: dict[str, Any]) -> dict[str, Any]:
        """Set the flags, look again for writers, hash, and see that nothing has changed since."""
        for _ in range(ATTEMPTS):
            if record["immutable_flag"]:
                self.progress.step("freezing")
                freeze(self.place, self.progress)
            self.progress.step("looking again")
            # Where a flag does not stop a descriptor that was open already (XFS, btrfs), it counts.
            self._wait_for_writers()
            self.progress.step("hashing")
            facts, seen = self._hash()
            self.progress.step("comparing")
            if _fingerprint(self.place) == seen:
                return facts
        raise Busy(
            f"{self.place.shown} goes on changing while it is sealed, on the store itself: "
            "find out what does that, and seal again"
        )

    def _hash(self) -> tuple[dict[str, Any], str]:
        """Write both manifests. What the record is to say, and the tree's fingerprint."""
        hashes, fingerprint = Hashes(), blake3()
        files = size_bytes = 0
        sums = blake3()
        hasher = Hasher(self.progress.bytes)
        with (
            new_record(self.records, self.place.b3sums) as b3sums,
            new_record(self.records, self.place.mtree) as mtree,
        ):
            mtree.write(ATTRIBUTES)
            for entry in contents(self.place.fd):
                fingerprint.update(_identity(entry))
                line, length = hashed(entry, hasher)
                hashes.add(line)
                mtree.write(mtree_lines(line))
                if entry.is_file:
                    text = b3sum_line(line)
                    b3sums.write(text)
                    sums.update(text)
                    files += 1
                    size_bytes += length
                    self.progress.file()
                    self.progress.step("hashed a file", once=False)
        return {
            "state": SealState.SEALED.value,
            "content_hash": hashes.content_hash,
            "attribute_hash": hashes.attribute_hash,
            "b3sums_hash": f"blake3:{sums.hexdigest()}",
            "file_count": files,
            "size_bytes": size_bytes,
            "sealed_at": now(),
        }, fingerprint.hexdigest()


def hashed(entry: Entry, hasher: Hasher, pace: Pace | None = None) -> tuple[Line, int]:
    """The line of an entry, with its digest, and how many bytes that were.

    OSError: with the path in ``filename``.
    """
    try:
        if not entry.is_file:
            return line_of(entry), 0
        fd = entry.open()
        try:
            digest, length = hasher.digest(fd, entry.found.st_size)
            if pace is not None:
                pace(length)
            return line_of(entry, digest, fd), length
        finally:
            os.close(fd)
    except OSError as error:
        raise OSError(error.errno, error.strerror, os.fsdecode(entry.path)) from error


def _identity(entry: Entry) -> bytes:
    """What is another as soon as an entry was changed in whatever way."""
    found = entry.found
    return b"%s\0%d %d %d %o\0" % (
        entry.path,
        found.st_ino,
        found.st_ctime_ns,
        found.st_size,
        found.st_mode,
    )


def _fingerprint(place: Place) -> str:
    fingerprint = blake3()
    for entry in contents(place.fd):
        fingerprint.update(_identity(entry))
    return fingerprint.hexdigest()


def _look(place: Place) -> _Look:
    """Look for what is in the way: writers, and names outside."""
    look = _Look()
    names: dict[int, int] = {}
    links: dict[int, tuple[int, bytes]] = {}
    inside = frozenset(recorded_below(place.fd))
    for entry in contents(place.fd, inside):
        if entry.path in inside:  # sealed by itself
            with Place(place.store, place.relative + b"/" + entry.path) as sealed:
                record = sealed.read() or {}
            look.files += record.get("file_count") or 0
            look.size_bytes += record.get("size_bytes") or 0
            continue
        if not (entry.is_file or entry.is_directory):
            if entry.found.st_nlink > 1:
                _count_name(entry, names, links)
            continue
        try:
            fd = entry.open()
        except OSError as error:
            raise OSError(error.errno, error.strerror, os.fsdecode(entry.path)) from error
        try:
            if immutable.is_immutable(fd):
                look.immutable.append(entry.path)
            if not entry.is_file:
                continue
            look.files += 1
            look.size_bytes += entry.found.st_size
            if entry.found.st_nlink > 1:
                _count_name(entry, names, links)
            if is_open_for_writing(fd):
                look.busy[entry.found.st_ino] = entry.path
        finally:
            os.close(fd)
    look.outside = [(path, ino) for ino, (count, path) in links.items() if count > names[ino]]
    return look


def _count_name(entry: Entry, names: dict[int, int], links: dict[int, tuple[int, bytes]]) -> None:
    ino = entry.found.st_ino
    names[ino] = names.get(ino, 0) + 1
    links[ino] = (entry.found.st_nlink, entry.path)


def _named_outside(place: Place, path: bytes, ino: int) -> str:
    other = _other_name(place, ino)
    where = os.fsdecode(other) if other else "which 'find STORE -samefile' tells"
    return (
        f"{os.fsdecode(path)} has another name outside of {place.shown}, {where}, and could be "
        "changed through that: remove one of them (or copy it) and seal again"
    )


def _other_name(place: Place, ino: int) -> bytes | None:
    """A name of the inode outside of the directory, by looking through the store for a while."""
    entries = contents(place.store.root_fd, frozenset([place.relative]))
    for entry in itertools.islice(entries, NAMED_OUTSIDE_LIMIT):
        if entry.found.st_ino == ino and not entry.is_directory:
            return entry.path
    return None


# ---- flags and marks -----------------------------------------------------------------------------


def _mark(place: Place, seal_id: str) -> None:
    """Write the seal's id to the directory; it can't be written once that is frozen."""
    value = seal_id.encode()
    try:
        if os.getxattr(place.fd, SEAL_XATTR) == value:
            return
    except OSError as error:
        if error.errno != errno.ENODATA:
            raise
    immutable.change(place.fd, False)
    os.setxattr(place.fd, SEAL_XATTR, value)
    os.fsync(place.fd)


def _unmark(place: Place, record: dict[str, Any]) -> None:
    """Remove the mark; if the directory had the flag before, it has it afterwards."""
    try:
        os.getxattr(place.fd, SEAL_XATTR)
    except OSError as error:
        if error.errno != errno.ENODATA:
            raise
    else:
        immutable.change(place.fd, False)
        os.removexattr(place.fd, SEAL_XATTR)
    if "" in (record["immutable_before"] or ()):
        immutable.change(place.fd, True)


def freeze(place: Place, progress: Progress) -> int:
    """Set the immutable flag on everything that can carry it, from the top down.

    How many lacked it.
    """
    return _change_flags(place, True, frozenset(), frozenset(), progress)


def _thaw(place: Place, record: dict[str, Any], progress: Progress) -> None:
    """Clear the flags, but for what is sealed by itself, and what had the flag before."""
    if not record["immutable_flag"] or record["immutable_before"] is None:  # nothing was frozen
        return
    kept = frozenset(os.fsencode(path) for path in record["immutable_before"])
    _change_flags(place, False, kept, frozenset(recorded_below(place.fd)), progress)


def _change_flags(
    place: Place,
    wanted: bool,
    kept: frozenset[bytes],
    sealed: frozenset[bytes],
    progress: Progress,
) -> int:
    changed = 0
    for entry in contents(place.fd, sealed):
        left = entry.path in kept or entry.path in sealed
        if left or not (entry.is_directory or entry.is_file):
            continue
        fd = entry.open()
        try:
            changed += immutable.change(fd, wanted)
        finally:
            os.close(fd)
        progress.step("froze one" if wanted else "thawed one", once=False)
    return changed


def _roll_back(place: Place, records: int, record: dict[str, Any]) -> None:
    """Leave it open, as it was. If that fails as well, ``sealing`` stays, and shut it stays."""
    withdraw(place, "sealed", record)
    _thaw(place, record, Progress())
    _unmark(place, record)
    _remove_records(place, records)


def _remove_records(place: Place, records: int) -> None:
    for name in (place.b3sums, place.mtree, place.verified, place.record):
        remove_record(records, name + NEW)
        remove_record(records, name)
    unlist(place.store, place.relative)


def _for_history(record: dict[str, Any]) -> dict[str, Any]:
    left_out = ("immutable_before", "wait_s", "state")
    return {key: value for key, value in record.items() if key not in left_out}


# ---- opening -------------------------------------------------------------------------------------


def unseal(
    store: Store, relative: bytes, caller: Caller, reason: str, progress: Progress | None = None
) -> dict[str, Any]:
    """Open a sealed directory again; who and why is kept in its history for ever.

    Raises NotPermitted (EPERM): stewards only, and not while it is held or retained;
    InvalidRequest (EINVAL): not sealed, or no reason.
    """
    progress = progress or Progress()
    decide.may_unseal(caller, stewards_gid(store))
    if not reason.strip():
        raise InvalidRequest("unsealing needs a reason: --reason TEXT")
    with Place(store, relative) as place, place.records(make=False) as records:
        record = None if records is None else place.read()
        if records is None or record is None:
            above = place.covering()
            raise InvalidRequest(
                f"{place.shown} is not sealed"
                if above is None
                else f"{os.fsdecode(above)} is what is sealed: unseal that"
            )
        above = place.covering()
        if above != place.relative:
            raise InvalidRequest(
                f"{os.fsdecode(above or b'')} is sealed, and this lies in it: unseal that first"
            )
        if record["state"] == SealState.SEALED.value:
            decide.may_be_opened(record, datetime.now(UTC).date())
        if record["state"] != SealState.UNSEALING.value:
            progress.step("opening")
            record |= {
                "state": SealState.UNSEALING.value,
                "unsealed_at": now(),
                "unsealed_by": user_name(caller.uid),
                "reason": reason,
            }
            write_record(records, place.record, record)
        return _open(place, records, record, progress)


def _open(place: Place, records: int, record: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """From ``unsealing`` to open."""
    event = {"event": "unsealed"} | {
        key: record.get(key)
        for key in ("path", "id", "content_hash", "unsealed_at", "unsealed_by", "reason")
    }
    progress.step("remembering")
    place.write_history(event, once=True)
    announce(place, "unsealed", record)
    progress.step("thawing")
    _thaw(place, record, progress)
    progress.step("unmarking")
    _unmark(place, record)
    progress.step("removing records")
    _remove_records(place, records)
    progress.step("opened")
    return event | {"state": SealState.OPEN.value}


# ---- after a crash, after a copy -----------------------------------------------------------------


def resume(
    store: Store, relative: bytes, caller: Caller, progress: Progress | None = None
) -> dict[str, Any]:
    """Finish what was interrupted; what can't be finished is rolled back, and raises.

    Returns the record, or ``{"state": "open", …}``. What is sealed, or open, stays as it is.
    Busy (EBUSY): somebody is at it.
    """
    progress = progress or Progress()
    with Place(store, relative) as place:
        decide.may_seal(caller, place.owners, stewards_gid(store))
        with place.records(make=False) as records:
            record = None if records is None else place.read()
            if records is None or record is None:
                unlist(store, place.relative)
                return {"path": place.shown, "state": SealState.OPEN.value}
            above = place.covering()
            if above != place.relative and record["state"] != SealState.SEALED.value:
                raise Busy(f"{os.fsdecode(above or b'')} is sealed, and this lies in it")
            if record["state"] == SealState.UNSEALING.value:
                return _open(place, records, record, progress)
            if record["state"] == SealState.SEALING.value:
                wish = Wish(wait_s=record.get("wait_s", 0.0))
                return _Sealing(place, records, progress, wish).run(record)
            enlist(store, place.relative)
            return record


def interrupted(store: Store, roots: list[bytes]) -> Iterator[bytes]:
    """Those of the listed directories that ``resume`` has something to do for."""
    for root in roots:
        try:
            with Place(store, root) as place:
                record = place.read()
        except (InvalidRequest, DamagedRecord, OSError):
            continue
        if record is None or record.get("state") != SealState.SEALED.value:
            yield root


def repair(
    store: Store, relative: bytes, caller: Caller, progress: Progress | None = None
) -> dict[str, Any]:
    """Set the immutable flags, and the mark, that a copy or a restore of the store has lost.

    Returns the record with ``repaired``, the number of flags that were missing. NotPermitted
    (EPERM): stewards only; InvalidRequest (EINVAL): not sealed, or there are no flags here.
    """
    progress = progress or Progress()
    decide.may_unseal(caller, stewards_gid(store))
    with Place(store, relative) as place, place.records(make=False) as records:
        record = None if records is None else place.read()
        if records is None or record is None or record["state"] != SealState.SEALED.value:
            raise InvalidRequest(f"{place.shown} is not sealed: there is nothing to repair")
        if not immutable.is_supported(records):
            raise InvalidRequest(
                f"{place.shown} lies on a file system without immutable flags, or this process may "
                "not set them (CAP_LINUX_IMMUTABLE): the mount protects it by its record alone"
            )
        enlist(store, place.relative)
        _mark(place, record["id"])
        progress.step("freezing")
        repaired = freeze(place, progress)
        if not record["immutable_flag"]:
            record["immutable_flag"] = True
            write_record(records, place.record, record)
        return record | {"repaired": repaired}
