"""Seals on the store: the records that say that a directory is sealed.

Truth lies beside the sealed directory: ``<parent>/.modama/seals/<name>.json``, with the manifest
``<name>.B3SUMS`` beside it. Nothing else decides: a directory is sealed if, and only if, it or a
directory above it has such a record, in whatever state. So a second mount, or one that is started
later, or on another machine, needs to be told nothing.

``<store>/.modama/sealed/`` holds a symbolic link for every sealed directory, so that they can be
listed; it can be rebuilt from the records (``rebuild_list``).
"""

from __future__ import annotations

import errno
import fcntl
import os
import pwd
import stat
import uuid
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from blake3 import blake3

from modamafs.errors import Busy, InvalidRequest, NotPermitted
from modamafs.model import RECORDS, Caller, SealState, is_own_name
from modamafs.store import _volume
from modamafs.store.backing import Store, path_of
from modamafs.store.records import (
    DIRECTORY_MODE,
    append_line,
    open_records,
    read_record,
    remove_record,
    write_record,
)
from modamafs.store.walk import walk

SEALS = b"seals"
HISTORY = b"history.jsonl"
LIST = RECORDS + b"/sealed"
LONGEST_NAME_BYTES = 255 - len(b".B3SUMS.new")
LONGEST_PATH_BYTES = 3500
"""So that the record's path, and the sealed directory's seen from outside, fit into PATH_MAX."""


class Seals:
    """Asks the store at every question; only the list is remembered, while it is right."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._prefix = path_of(store.root_fd).rstrip(b"/") + b"/"
        self._listed: list[bytes] = []
        self._listed_at = -1
        self._searched = False

    def search(self, *, write: bool) -> None:
        """Make the list where it is missing, by looking through the store. Takes long.

        Without ``write`` (or where there is nothing to write) it is only remembered.
        """
        if not is_listed(self._store):
            found = list(recorded_below(self._store.root_fd))
            if found and write:
                rebuild_list(self._store, found)
            self._listed = found
        self._searched = True

    def covers(self, fd: int) -> bool | None:
        """Whether what a descriptor names, or a directory above it, is sealed.

        None: the kernel can't tell the path. A file that was opened by handle may have none yet,
        and one of more than 4096 bytes has none.
        """
        relative = self._relative(fd)
        return None if relative is None else covering(self._store, relative) is not None

    def any(self) -> bool:
        """Whether anything at all is sealed, as far as is known so far."""
        return bool(self.sealed_roots())

    def _relative(self, fd: int) -> bytes | None:
        try:
            path = path_of(fd)
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            return self._relative_of_ancestor(fd)
        if path + b"/" == self._prefix:
            return b""
        return path[len(self._prefix) :] if path.startswith(self._prefix) else None

    def _relative_of_ancestor(self, fd: int) -> bytes | None:
        """The path of the nearest directory above that has one: nothing deeper is ever sealed."""
        try:
            above = os.open(b"..", os.O_PATH | os.O_DIRECTORY, dir_fd=fd)
        except NotADirectoryError:
            return None
        try:
            return self._relative(above)
        finally:
            os.close(above)

    def below(self, dir_fd: int, name: bytes) -> bool:
        """Whether the directory ``name`` in ``dir_fd`` is sealed, or anything below it."""
        if not self._searched and not is_listed(self._store):
            return self._is_recorded_below(dir_fd, name)
        roots = self.sealed_roots()
        if not roots:
            return False
        parent = self._relative(dir_fd)
        if parent is None:
            return True
        relative = parent + b"/" + name if parent else name
        return any(root == relative or root.startswith(relative + b"/") for root in roots)

    @staticmethod
    def _is_recorded_below(dir_fd: int, name: bytes) -> bool:
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=dir_fd)
        try:
            own = _entries(dir_fd, RECORDS + b"/" + SEALS)
            return name + b".json" in own or next(recorded_below(fd), None) is not None
        finally:
            os.close(fd)

    def sealed_roots(self) -> list[bytes]:
        """The paths of the sealed directories, relative to the store."""
        try:
            changed_ns = os.stat(LIST, dir_fd=self._store.root_fd).st_mtime_ns
        except FileNotFoundError:
            changed_ns = self._listed_at
        if changed_ns != self._listed_at:
            self._listed = list(listed(self._store))
            self._listed_at = changed_ns
        return [root for root in self._listed if covering(self._store, root) == root]


def covering(store: Store, relative: bytes) -> bytes | None:
    """The sealed directory that a path (relative to the store) is, or lies in; None for none.

    OSError where that can't be told (EIO, ENOMEM): then nothing may be changed.
    """
    at = 0
    while at >= 0:
        end = relative.find(b"/", at)
        name = relative[at:end] if end >= 0 else relative[at:]
        record = relative[:at] + RECORDS + b"/seals/" + name + b".json"
        if _volume.exists(store.root_fd, record):
            return relative[:at] + name
        at = end + 1 if end >= 0 else -1
    return None


def listed(store: Store) -> Iterator[bytes]:
    """The sealed directories that the list knows."""
    for name in _entries(store.root_fd, LIST):
        yield os.readlink(LIST + b"/" + name, dir_fd=store.root_fd)


def is_listed(store: Store) -> bool:
    """Whether the list of sealed directories is there."""
    return os.access(LIST, os.F_OK, dir_fd=store.root_fd)


def rebuild_list(store: Store, found: Iterable[bytes]) -> None:
    """Make the list of the sealed directories that were found, unless it is there by now."""
    records = open_records(store.root_fd, RECORDS)
    building = b"sealed.%s.new" % uuid.uuid4().hex.encode()
    try:
        os.mkdir(building, DIRECTORY_MODE, dir_fd=records)
        fd = os.open(building, os.O_RDONLY | os.O_DIRECTORY, dir_fd=records)
        try:
            os.fchmod(fd, DIRECTORY_MODE)
            for relative in found:
                os.symlink(relative, _tag(relative), dir_fd=fd)
            os.fsync(fd)
        finally:
            os.close(fd)
        try:
            os.rename(building, b"sealed", src_dir_fd=records, dst_dir_fd=records)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            _remove_directory(records, building)  # somebody else was quicker, and has gone on
        os.fsync(records)
    finally:
        os.close(records)


def _remove_directory(dir_fd: int, name: bytes) -> None:
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=dir_fd)
    try:
        for entry in os.listdir(fd):
            os.unlink(entry, dir_fd=fd)
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=dir_fd)


def recorded_below(dir_fd: int) -> Iterator[bytes]:
    """The directories below that have a seal's record, relative to it, by looking everywhere."""
    for directory in walk(dir_fd):
        if RECORDS not in directory.directories:
            continue
        directory.directories.remove(RECORDS)
        for record in _entries(directory.fd, RECORDS + b"/" + SEALS):
            if record.endswith(b".json"):
                yield os.path.join(directory.path, record.removesuffix(b".json"))


def _entries(dir_fd: int, name: bytes) -> list[bytes]:
    try:
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=dir_fd)
    except FileNotFoundError:
        return []
    try:
        return [os.fsencode(entry) for entry in os.listdir(fd)]
    finally:
        os.close(fd)


def _tag(relative: bytes) -> bytes:
    return blake3(relative).hexdigest(16).encode()


def _enlist(store: Store, relative: bytes) -> None:
    fd = open_records(store.root_fd, RECORDS, b"sealed")
    try:
        os.symlink(relative, _tag(relative), dir_fd=fd)
    except FileExistsError:
        return
    finally:
        os.close(fd)


def _unlist(store: Store, relative: bytes) -> None:
    fd = open_records(store.root_fd, RECORDS, b"sealed")
    try:
        remove_record(fd, _tag(relative))
    finally:
        os.close(fd)


# ---- sealing and unsealing -----------------------------------------------------------------------


class _Place:
    """A directory that can be sealed, its parent, and where its record lies."""

    def __init__(self, store: Store, relative: bytes) -> None:
        self.store = store
        self.relative = os.path.normpath(relative).strip(b"/")
        parts = self.relative.split(b"/")
        shown = os.fsdecode(self.relative)
        if self.relative in (b"", b".") or len(parts) < 2 or b".." in parts or RECORDS in parts:
            raise InvalidRequest(
                f"{shown or '/'}: a seal covers a session's directory (AREA/PROJECT/SESSION/raw); "
                "the store's root, an area and modamafs's own directories can't be sealed"
            )
        self.name = parts[-1]
        if len(self.name) > LONGEST_NAME_BYTES or len(self.relative) > LONGEST_PATH_BYTES:
            raise InvalidRequest(f"{shown}: the name is too long to be sealed; rename it")
        self.parent_fd, self.fd = _open_directory(store, parts)
        self.record = self.name + b".json"
        self.manifest = self.name + b".B3SUMS"

    def open_records(self) -> int:
        """The directory of the records, made where it is missing, and ours alone until closed.

        Busy: somebody else is sealing or unsealing here.
        """
        return self._lock(open_records(self.parent_fd, RECORDS, SEALS))

    def open_existing_records(self) -> int | None:
        """The same, but None where there is none."""
        try:
            fd = os.open(
                RECORDS + b"/" + SEALS, os.O_RDONLY | os.O_DIRECTORY, dir_fd=self.parent_fd
            )
        except FileNotFoundError:
            return None
        return self._lock(fd)

    def _lock(self, fd: int) -> int:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            shown = os.fsdecode(self.relative)
            raise Busy(f"{shown} is being sealed or unsealed just now: wait for that") from None
        return fd

    def write_history(self, event: dict[str, Any]) -> None:
        fd = open_records(self.parent_fd, RECORDS)
        try:
            append_line(fd, HISTORY, event)
        finally:
            os.close(fd)

    def close(self) -> None:
        os.close(self.fd)
        os.close(self.parent_fd)


def _open_directory(store: Store, parts: list[bytes]) -> tuple[int, int]:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    parent = os.dup(store.root_fd)
    for position, part in enumerate(parts):
        try:
            fd = os.open(part, flags, dir_fd=parent)
        except OSError as error:
            os.close(parent)
            shown = os.fsdecode(b"/".join(parts[: position + 1]))
            if isinstance(error, NotADirectoryError):
                raise InvalidRequest(
                    f"{shown} is no directory: only a directory can be sealed"
                ) from None
            raise InvalidRequest(f"{shown}: {error.strerror}") from None
        if position == len(parts) - 1:
            return parent, fd
        os.close(parent)
        parent = fd
    raise AssertionError("a path has at least one part")


def seal(store: Store, relative: bytes, caller: Caller) -> dict[str, Any]:
    """Seal a directory; one that is sealed already stays as it is, and its record is returned.

    The record is there first (state ``sealing``), so that from then on every mount refuses every
    change; then it is made sure that nobody has a file open for writing and that no file has a
    name outside; then everything is synced and hashed; then the record says ``sealed``.

    Takes as long as reading the data. Raises InvalidRequest (EINVAL), NotPermitted (EPERM), Busy
    (EBUSY, with the names of the files), OSError; then the directory is open as before.
    """
    place = _Place(store, relative)
    try:
        above = covering(store, place.relative)
        if above is not None and above != place.relative:
            raise InvalidRequest(f"{os.fsdecode(above)} is sealed, and this lies in it")
        if caller.uid not in (0, os.stat(place.fd).st_uid):
            raise NotPermitted("only the owner of a directory, or root, can seal it")
        records = place.open_records()
        try:
            record = read_record(records, place.record)
            if record is None or record["state"] != SealState.SEALED.value:
                record = _seal(place, records, caller)
            return record
        finally:
            os.close(records)
    finally:
        place.close()


def _seal(place: _Place, records: int, caller: Caller) -> dict[str, Any]:
    record: dict[str, Any] = {
        "path": os.fsdecode(place.relative),
        "id": str(uuid.uuid4()),
        "state": SealState.SEALING.value,
        "content_hash": None,
        "attribute_hash": None,
        "file_count": None,
        "size_bytes": None,
        "sealed_at": _now(),
        "sealed_by": _user(caller.uid),
        "immutable_flag": False,
        "tool": f"modamafs {version('modamafs')}",
    }
    if not is_listed(place.store):
        rebuild_list(place.store, recorded_below(place.store.root_fd))
    try:
        _enlist(place.store, place.relative)
        write_record(records, place.record, record)
        _refuse_writers_and_outside_links(place)
        os.sync()
        manifest, facts = _manifest(place)
        write_record(records, place.manifest, manifest)
        record |= facts | {"state": SealState.SEALED.value}
        write_record(records, place.record, record)
        place.write_history({"event": "sealed", **record})
    except BaseException:
        remove_record(records, place.manifest)
        remove_record(records, place.record)
        _unlist(place.store, place.relative)
        raise
    return record


def unseal(store: Store, relative: bytes, caller: Caller, reason: str) -> dict[str, Any]:
    """Open a sealed directory again; who and why is kept in its history for ever.

    Raises NotPermitted (EPERM): only root may; InvalidRequest (EINVAL): not sealed, or no reason.
    """
    if caller.uid != 0:
        raise NotPermitted("only root can unseal")
    if not reason.strip():
        raise InvalidRequest("unsealing needs a reason: --reason TEXT")
    place = _Place(store, relative)
    try:
        records = place.open_existing_records()
        try:
            record = None if records is None else read_record(records, place.record)
            if records is None or record is None:
                above = covering(store, place.relative)
                raise InvalidRequest(
                    f"{os.fsdecode(place.relative)} is not sealed"
                    if above is None
                    else f"{os.fsdecode(above)} is what is sealed: unseal that"
                )
            event = {
                "event": "unsealed",
                "path": record["path"],
                "id": record["id"],
                "content_hash": record["content_hash"],
                "unsealed_at": _now(),
                "unsealed_by": _user(caller.uid),
                "reason": reason,
            }
            place.write_history(event)
            remove_record(records, place.record)
            remove_record(records, place.manifest)
            _unlist(store, place.relative)
        finally:
            if records is not None:
                os.close(records)
    finally:
        place.close()
    return event | {"state": SealState.OPEN.value}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _contents(fd: int) -> Iterator[tuple[bytes, bytes, int, os.stat_result]]:
    """Everything below a directory: path relative to it, name, its directory, attributes."""
    for directory in walk(fd):
        for name in [*directory.directories, *directory.others]:
            if is_own_name(name):
                if name in directory.directories:
                    directory.directories.remove(name)
                continue
            found = os.stat(name, dir_fd=directory.fd, follow_symlinks=False)
            yield os.path.join(directory.path, name), name, directory.fd, found


def _refuse_writers_and_outside_links(place: _Place) -> None:
    busy: list[str] = []
    names: dict[int, int] = {}
    links: dict[int, tuple[int, str]] = {}
    for path, name, dir_fd, found in _contents(place.fd):
        if not stat.S_ISREG(found.st_mode):
            continue
        names[found.st_ino] = names.get(found.st_ino, 0) + 1
        links[found.st_ino] = (found.st_nlink, os.fsdecode(path))
        if _is_open_for_writing(name, dir_fd):
            busy.append(os.fsdecode(path))
    if busy:
        more = f" and {len(busy) - 3} more" if len(busy) > 3 else ""
        raise Busy(f"open for writing: {', '.join(busy[:3])}{more}; close them and seal again")
    outside = [path for ino, (count, path) in links.items() if count > names[ino]]
    if outside:
        raise Busy(
            f"{outside[0]} has another name outside of {os.fsdecode(place.relative)} "
            "(find it with `find STORE -samefile`): remove one of them and seal again"
        )


def _is_open_for_writing(name: bytes, dir_fd: int) -> bool:
    """Whether anybody has the file open for writing, through passthrough too (``F_SETLEASE``)."""
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _manifest(place: _Place) -> tuple[bytes, dict[str, Any]]:
    """The manifest in ``b3sum`` format, and what the record says of the content."""
    content = blake3()
    lines: list[bytes] = []
    size_bytes = 0
    entries: list[tuple[bytes, int, bytes]] = []
    for path, name, dir_fd, found in _contents(place.fd):
        detail = b""
        if stat.S_ISREG(found.st_mode):
            detail, length = _hash_file(name, dir_fd)
            size_bytes += length
        elif stat.S_ISLNK(found.st_mode):
            detail = os.readlink(name, dir_fd=dir_fd)
        entries.append((path, stat.S_IFMT(found.st_mode), detail))
    for path, kind, detail in sorted(entries):
        if kind == stat.S_IFREG:
            lines.append(_b3sum_line(detail, path))
        content.update(b"%o %s\0%s\0" % (kind, path, detail))
    return b"".join(lines), {
        "content_hash": f"blake3:{content.hexdigest()}",
        "file_count": len(lines),
        "size_bytes": size_bytes,
    }


def _hash_file(name: bytes, dir_fd: int) -> tuple[bytes, int]:
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        hasher = blake3(max_threads=blake3.AUTO)
        hasher.update_mmap(f"/proc/self/fd/{fd}")
        return hasher.hexdigest().encode(), os.fstat(fd).st_size
    finally:
        os.close(fd)


def _b3sum_line(digest: bytes, path: bytes) -> bytes:
    """One line as ``b3sum`` prints it: names with a backslash or newline are escaped and marked."""
    if b"\\" in path or b"\n" in path:
        path = path.replace(b"\\", b"\\\\").replace(b"\n", b"\\n")
        return b"\\%s  %s\n" % (digest, path)
    return b"%s  %s\n" % (digest, path)
