"""Proving a sealed tree: everything is read again and compared with both manifests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from modamafs.errors import InvalidRequest
from modamafs.model import RECORDS, Caller, SealState
from modamafs.policy import decide
from modamafs.sealing.announce import announce
from modamafs.sealing.contents import contents
from modamafs.sealing.hashing import Hasher, Pace
from modamafs.sealing.manifest import Hashes, Line, line_of, parse_b3sum_line, parse_mtree
from modamafs.sealing.place import Place, now, stewards_gid, user_name
from modamafs.sealing.progress import Progress
from modamafs.sealing.seal import hashed
from modamafs.store.backing import Store
from modamafs.store.records import read_record, write_record
from modamafs.store.seals import SEALS


@dataclass(slots=True)
class Findings:
    """Paths, relative to the sealed directory ("." is itself)."""

    missing: list[str] = field(default_factory=list)
    added: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    """Another type, target, or attributes; or other bytes and another size or time."""
    damaged: list[str] = field(default_factory=list)
    """Other bytes although nothing else has changed, or bytes that can't be read any more."""
    manifest: list[str] = field(default_factory=list)
    """What is wrong with the manifests themselves, in words."""

    @property
    def ok(self) -> bool:
        """Whether everything is as it was sealed."""
        return not (self.missing or self.added or self.changed or self.damaged or self.manifest)


def verify(
    store: Store,
    relative: bytes,
    caller: Caller,
    max_bytes_per_s: float | None = None,
    progress: Progress | None = None,
    *,
    remember: bool = True,
    by: str = "",
) -> dict[str, Any]:
    """Read everything in a sealed directory again and compare it with what was sealed.

    Returns ``ok`` and the lists of ``Findings``, and remembers when that was. Takes as long as
    reading the data. Raises InvalidRequest (EINVAL): not sealed; NotPermitted (EPERM); Busy
    (EBUSY); OSError.
    """
    progress = progress or Progress()
    with Place(store, relative) as place, place.records(make=False) as records:
        record = None if records is None else place.read()
        above = place.covering()
        if records is None or record is None:
            raise InvalidRequest(
                f"{place.shown} is not sealed, so there is nothing to compare it with"
                if above is None
                else f"{os.fsdecode(above)} is what is sealed: verify that"
            )
        decide.may_seal(caller, place.owners, stewards_gid(store))
        if record["state"] != SealState.SEALED.value:
            raise InvalidRequest(
                f"{place.shown} is in the state '{record['state']}': "
                "finish that first with 'modamafs seal --resume'"
            )
        progress.expect(record["file_count"], record["size_bytes"])
        progress.step("verifying")
        findings, hashes = _compare(place, records, record, Pace(max_bytes_per_s), progress)
        intact = hashes.content_hash == record["content_hash"]
        if findings.manifest and intact:  # the hashes say it: these are the manifests' faults
            findings.missing, findings.added, findings.damaged = [], [], []
            if hashes.attribute_hash == record["attribute_hash"]:
                findings.changed = []
        if findings.ok and not (intact and hashes.attribute_hash == record["attribute_hash"]):
            findings.manifest.append("the manifests are not those that the record was made with")
        result: dict[str, Any] = {
            "path": place.shown,
            "ok": findings.ok,
            "missing": findings.missing,
            "added": findings.added,
            "changed": findings.changed,
            "damaged": findings.damaged,
            "manifest": findings.manifest,
            "file_count": progress.known["done_files"],
            "size_bytes": progress.known["done_bytes"],
            "content_hash": hashes.content_hash,
            "content_intact": intact,
            "verified_at": now(),
            "verified_by": by or user_name(caller.uid),
        }
        remembered = remember and _remember(place, records, record, result)
        announce(place, "verified" if result["ok"] else "damaged", record)
        return result | {"remembered": remembered}


def _remember(place: Place, records: int, record: dict[str, Any], result: dict[str, Any]) -> bool:
    """Write down the outcome; a store that can't be written (full, read-only) is said."""
    try:
        write_record(records, place.verified, result)
        place.write_history(
            {"event": "verified", "id": record["id"], "path": place.shown, "ok": result["ok"]}
            | {"at": result["verified_at"], "by": result["verified_by"]}
        )
    except OSError:
        return False
    return True


def last_verified(place: Place) -> dict[str, Any] | None:
    """What ``verify`` remembered last; None: it never was."""
    return read_record(place.parent_fd, RECORDS + b"/" + SEALS + b"/" + place.verified)


def _shown(path: bytes) -> str:
    return os.fsdecode(path) or "."


def _compare(
    place: Place, records: int, record: dict[str, Any], pace: Pace, progress: Progress
) -> tuple[Findings, Hashes]:
    """Go through the tree and the manifests side by side: they have the same order."""
    findings, hashes = Findings(), Hashes()

    def told(count: int) -> None:
        progress.bytes(count)
        pace(count)

    hasher = Hasher(told)
    for name, key in ((place.b3sums, "b3sums_hash"), (place.mtree, "attribute_hash")):
        if record[key] is not None and _hash_of(records, name) not in (None, record[key]):
            findings.manifest.append(f"{os.fsdecode(name)} is not what sealing has written")
    with ExitStack() as stack:
        lines = _sealed_lines(stack, place, records, findings)
        expected = _Expected(lines)
        for entry in contents(place.fd):
            failure = None
            try:
                found, _ = hashed(entry, hasher)
            except OSError as error:
                failure = error
                found = line_of(entry)._replace(digest="unreadable")
            if entry.is_file:
                progress.file()
                progress.step("verified a file", once=False)
            hashes.add(found)
            known = expected.at(entry.path, entry.is_directory, findings)
            if known is None:
                findings.added.append(_shown(entry.path))
                continue
            if failure is None and found == known:
                continue
            same_facts = found._replace(digest="") == known._replace(digest="")
            (findings.damaged if same_facts else findings.changed).append(_shown(entry.path))
        expected.rest(findings)
    for path in set(findings.missing) & set(findings.added):  # sorts elsewhere as another type
        findings.missing.remove(path)
        findings.added.remove(path)
        findings.changed.append(path)
    return findings, hashes


def _hash_of(records: int, name: bytes) -> str | None:
    """None: it can't be read, which is said when it has to be."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=records)
    except OSError:
        return None
    try:
        digest, _ = Hasher(lambda _: None).digest(fd, os.fstat(fd).st_size)
    finally:
        os.close(fd)
    return f"blake3:{digest}"


class _Expected:
    """The sealed entries, asked for in the order of what is found."""

    def __init__(self, lines: Iterator[Line]) -> None:
        self._lines = lines
        self._next = next(lines, None)

    def at(self, path: bytes, is_directory: bool, findings: Findings) -> Line | None:
        """The entry with this path; those that should have come before it are missing."""
        key = _key(path, is_directory)
        while self._next is not None:
            line = self._next
            if line.path == path:
                self._next = next(self._lines, None)
                return line
            if _key(line.path, line.kind == b"dir") > key:
                return None
            findings.missing.append(_shown(line.path))
            self._next = next(self._lines, None)
        return None

    def rest(self, findings: Findings) -> None:
        """What is left is missing."""
        while self._next is not None:
            findings.missing.append(_shown(self._next.path))
            self._next = next(self._lines, None)


def _key(path: bytes, is_directory: bool) -> bytes:
    """Sorts as ``contents`` does."""
    return path + b"/" if is_directory and path else path


def _sealed_lines(
    stack: ExitStack, place: Place, records: int, findings: Findings
) -> Iterator[Line]:
    """The entries of both manifests, joined."""
    b3sums = _read(stack, records, place.b3sums, findings)
    mtree = _read(stack, records, place.mtree, findings)
    digests = _digests(b3sums, place, findings)
    try:
        for line in parse_mtree(iter(mtree)):
            if line.kind != b"file":
                yield line
                continue
            path, digest = next(digests, (b"", ""))
            if path != line.path and not findings.manifest:
                findings.manifest.append(
                    f"{os.fsdecode(place.b3sums)} and {os.fsdecode(place.mtree)} "
                    f"do not name the same files, from {_shown(line.path)!r} on"
                )
            yield line._replace(digest=digest)
    except ValueError as error:
        findings.manifest.append(str(error))
    if next(digests, None) is not None and not findings.manifest:
        findings.manifest.append(f"{os.fsdecode(place.b3sums)} names files that were not sealed")


def _digests(
    lines: BinaryIO | list[bytes], place: Place, findings: Findings
) -> Iterator[tuple[bytes, str]]:
    try:
        for text in lines:
            yield parse_b3sum_line(text)
    except ValueError as error:
        findings.manifest.append(f"{os.fsdecode(place.b3sums)}: {error}")


def _read(
    stack: ExitStack, records: int, name: bytes, findings: Findings
) -> BinaryIO | list[bytes]:
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=records)
    except OSError as error:
        findings.manifest.append(f"{os.fsdecode(name)}: {error.strerror}")
        return []
    return stack.enter_context(open(fd, "rb"))
