"""Gathering what a landing directory shows, from the store alone.

What was gathered is kept for as long as nothing that can be told cheaply has changed; a walk
through a session's files is done again after a moment, for a file's size changes unseen.
"""

from __future__ import annotations

import grp
import itertools
import os
import pwd
import stat
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from modamafs.catalog import FileMetadata, Project, Session
from modamafs.config import Config, load_config
from modamafs.errors import ConfigurationError, ModamaError
from modamafs.extraction import cache
from modamafs.extraction.wanted import is_wanted
from modamafs.landing.facts import ENTRIES_LIMIT, Entry, Facts, Kind, Seal
from modamafs.model import RECORDS, is_own_name
from modamafs.sealing.manifest import parse_b3sum_line
from modamafs.store.backing import Store
from modamafs.store.catalogue import read_project, read_session
from modamafs.store.records import read_record
from modamafs.store.seals import SEALS, Seals
from modamafs.tree.privacy import Privacy

KEPT = 256
"""How many directories' facts are kept."""
WALK_AGAIN_S = 2.0
COUNTED_LIMIT = 1_000_000
"""How many files are counted that are not shown."""

_KINDS: tuple[Kind, ...] = ("store", "area", "project", "session")
PROJECT_DEPTH, SESSION_DEPTH = 2, 3
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def depth_of(relative: bytes) -> int:
    """How deep a directory lies in the store; 0 is the store itself."""
    return relative.count(b"/") + 1 if relative else 0


def session_of(relative: bytes) -> bytes | None:
    """The session that a path is, or lies in; None: none."""
    if depth_of(relative) < SESSION_DEPTH:
        return None
    return b"/".join(relative.split(b"/", SESSION_DEPTH)[:SESSION_DEPTH])


Told = Callable[[bytes, bytes], None]
"""Takes a session, relative to the store, and a file in it, relative to the session."""


class Gatherer:
    """Facts of the directories of one store: those that everybody may know who may read there.

    So private projects are left out of what is said of their area and of the store, and what lies
    in a directory that fewer people may read is left out of what is said of those above it.
    """

    def __init__(
        self, store: Store, seals: Seals, privacy: Privacy, missing: Told | None = None
    ) -> None:
        """``missing`` is told of files whose metadata are not known, or not right any more."""
        self._privacy = privacy
        self._missing = missing
        self._store = store
        self._seals = seals
        self._kept: OrderedDict[tuple[bytes, bool], tuple[Any, float, Facts]] = OrderedDict()

    def facts(self, relative: bytes, fd: int, *, with_entries: bool) -> Facts:
        """Of the open directory that lies there. OSError: whatever reading gives."""
        stamp = self._stamp(relative, fd)
        kept = self._kept.get((relative, with_entries))
        if kept is not None and kept[0] == stamp:
            age_s = time.monotonic() - kept[1]
            if not with_entries or age_s < WALK_AGAIN_S:
                return kept[2]
        found = self._gather(relative, fd, with_entries=with_entries)
        self._kept[relative, with_entries] = (stamp, time.monotonic(), found)
        self._kept.move_to_end((relative, with_entries))
        if len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return found

    def _stamp(self, relative: bytes, fd: int) -> Any:
        """What is another as soon as a record, or the directory itself, has changed."""
        watched = [b"", RECORDS + b"/" + SEALS, RECORDS + b"/metadata"]
        found = os.fstat(fd)
        return (
            found.st_ino,
            found.st_ctime_ns,
            tuple(self._changed(relative, name) for name in watched),
            self._record_times(relative),
            tuple(self._seals.listed()),
        )

    def _changed(self, relative: bytes, name: bytes) -> int:
        path = b"/".join(part for part in (relative, name) if part) or b"."
        try:
            return os.stat(path, dir_fd=self._store.root_fd).st_ctime_ns
        except OSError:
            return 0

    def _record_times(self, relative: bytes) -> tuple[int, ...]:
        parts = relative.split(b"/") if relative else []
        records = [b".modama/config.toml"]
        if len(parts) >= PROJECT_DEPTH:
            records.append(b"/".join([*parts[:PROJECT_DEPTH], RECORDS, b"project.json"]))
        session = session_of(relative)
        if session is not None:
            records += [session + b"/.modama/" + name for name in (b"session.json", b"metadata")]
        for root in self._related(relative):
            parent, _, name = root.rpartition(b"/")
            here = parent + b"/.modama/seals/" + name
            records += [here + b".json", here + b".verified"]
        return tuple(self._changed(name, b"") for name in records)

    def _related(self, relative: bytes) -> list[bytes]:
        """The sealed directories above, at, and below."""
        below = relative + b"/" if relative else b""
        found = [
            root
            for root in self._seals.listed()
            if root == relative or root.startswith(below) or relative.startswith(root + b"/")
        ]
        if depth_of(relative) >= PROJECT_DEPTH:
            return found
        projects = {b"/".join(root.split(b"/")[:PROJECT_DEPTH]) for root in found}
        private = tuple(path + b"/" for path in projects if self._privacy.is_private(path))
        return [root for root in found if not (root + b"/").startswith(private)]

    def _gather(self, relative: bytes, fd: int, *, with_entries: bool) -> Facts:
        found = os.fstat(fd)
        depth = depth_of(relative)
        problems: list[str] = []
        project = self._project(relative, problems)
        session = self._session(relative, problems)
        found_seals = (self._seal(root, relative, problems) for root in self._related(relative))
        seals = [seal for seal in found_seals if seal is not None]
        seals.sort(key=lambda seal: (not _covers(seal.path), seal.path))
        entries: tuple[Entry, ...] = ()
        left_out = 0
        if with_entries:
            hashes = self._hashes(relative, seals)
            deep = depth >= SESSION_DEPTH
            walk = _entries(fd, hashes, deep=deep)
            if depth == PROJECT_DEPTH - 1:
                walk = (entry for entry in walk if not self._is_private(relative, entry))
            entries = tuple(sorted(itertools.islice(walk, ENTRIES_LIMIT), key=_path_of_entry))
            left_out = sum(1 for _ in itertools.islice(walk, COUNTED_LIMIT))
        metadata = self._metadata(relative, found) if depth >= SESSION_DEPTH else {}
        self._ask_for(relative, entries, metadata)
        config = self._config(problems)
        times = [found.st_mtime_ns, *self._record_times(relative)]
        times += [entry.mtime_ns for entry in entries]
        return Facts(
            path=os.fsdecode(relative),
            kind=_KINDS[depth] if depth < len(_KINDS) else "directory",
            owner=_user(found.st_uid),
            group=_group(found.st_gid),
            mode=stat.S_IMODE(found.st_mode),
            mtime_ns=found.st_mtime_ns,
            changed_ns=max(times),
            project=project,
            session=session,
            problems=tuple(problems),
            entries=entries,
            entries_left_out=left_out,
            seals=tuple(seals),
            metadata=metadata,
            links=config.links,
            publisher=config.landing.publisher,
        )

    def _is_private(self, area: bytes, entry: Entry) -> bool:
        return entry.kind == "directory" and self._privacy.is_private(
            area + b"/" + os.fsencode(entry.path)
        )

    def _ask_for(
        self, relative: bytes, entries: tuple[Entry, ...], metadata: Mapping[str, FileMetadata]
    ) -> None:
        """Have read what no reader has looked at as it is now."""
        session = session_of(relative)
        if self._missing is None or session is None:
            return
        for entry in entries:
            path = os.fsencode(entry.path)
            if entry.kind != "file" or not is_wanted(path):
                continue
            known = metadata.get(entry.path)
            if known is None or (known.size_bytes, known.mtime_ns) != (
                entry.size_bytes,
                entry.mtime_ns,
            ):
                whole = relative + b"/" + path
                self._missing(session, whole[len(session) + 1 :])

    def _config(self, problems: list[str]) -> Config:
        try:
            return load_config(self._store.path)
        except ConfigurationError as error:
            problems.append(error.message)
            return Config()

    def _project(self, relative: bytes, problems: list[str]) -> Project | None:
        if depth_of(relative) < PROJECT_DEPTH:
            return None
        path = b"/".join(relative.split(b"/", PROJECT_DEPTH)[:PROJECT_DEPTH])
        with _opened(self._store.root_fd, path) as fd:
            record, problem = read_project(fd)
        problems += [problem] if problem else []
        return record

    def _session(self, relative: bytes, problems: list[str]) -> Session | None:
        path = session_of(relative)
        if path is None:
            return None
        with _opened(self._store.root_fd, path) as fd:
            record, problem = read_session(fd)
        problems += [problem] if problem else []
        return record

    def _seal(self, root: bytes, relative: bytes, problems: list[str]) -> Seal | None:
        parent, _, name = root.rpartition(b"/")
        here = parent + b"/.modama/seals/" + name
        try:
            record = read_record(self._store.root_fd, here + b".json")
            verified = read_record(self._store.root_fd, here + b".verified")
        except (ModamaError, ValueError, OSError) as error:
            problems.append(f"the record of the seal on {os.fsdecode(root)}: {error}")
            return Seal(_shown(root, relative), "sealed")
        if record is None:
            return None
        state = record.get("state")
        return Seal(
            _shown(root, relative),
            state if state in ("sealing", "sealed", "unsealing") else "sealed",
            record,
            verified,
        )

    def _hashes(self, relative: bytes, seals: list[Seal]) -> dict[str, str]:
        """By path relative to the directory; for as many files as are shown at most."""
        hashes: dict[str, str] = {}
        for seal in seals:
            if seal.state != "sealed" or "verified" in seal.record:
                continue
            root = os.path.normpath(os.path.join(relative, os.fsencode(seal.path)))
            parent, _, name = root.rpartition(b"/")
            try:
                fd = os.open(
                    parent + b"/.modama/seals/" + name + b".B3SUMS",
                    os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC,
                    dir_fd=self._store.root_fd,
                )
            except OSError:
                continue
            with open(fd, "rb") as lines:
                for line in itertools.islice(lines, COUNTED_LIMIT):
                    try:
                        path, digest = parse_b3sum_line(line)
                    except ValueError:
                        break
                    full = root + b"/" + path
                    if not relative or full.startswith(relative + b"/"):
                        inside = full[len(relative) + 1 if relative else 0 :]
                        hashes[os.fsdecode(inside)] = digest
        return hashes

    def _metadata(self, relative: bytes, above: os.stat_result) -> Mapping[str, FileMetadata]:
        session = session_of(relative)
        assert session is not None
        with _opened(self._store.root_fd, session) as fd:
            known = cache.load(fd)
        inside = os.fsdecode(relative[len(session) + 1 :])
        return _Below(known, inside + "/" if inside else "", self._store.root_fd, relative, above)


class _Below(Mapping[str, FileMetadata]):
    """Of what is known by path, that below one directory, by the path from there.

    Only of files that are for whoever may read the directory.
    """

    def __init__(
        self,
        known: Mapping[str, FileMetadata],
        prefix: str,
        root_fd: int,
        relative: bytes,
        above: os.stat_result,
    ) -> None:
        self._known = known
        self._prefix = prefix
        self._root_fd = root_fd
        self._relative = relative
        self._above = above

    def __getitem__(self, path: str) -> FileMetadata:
        if not self._is_for_the_same(path):
            raise KeyError(path)
        return self._known[self._prefix + path]

    def __iter__(self) -> Iterator[str]:
        prefix = self._prefix
        found = (path[len(prefix) :] for path in self._known if path.startswith(prefix))
        return (path for path in found if self._is_for_the_same(path))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _is_for_the_same(self, path: str) -> bool:
        here = self._relative
        for name in os.fsencode(path).split(b"/"):
            here += b"/" + name
            try:
                found = os.stat(here, dir_fd=self._root_fd, follow_symlinks=False)
            except OSError:
                return False
            if _is_for_fewer(found, self._above):
                return False
        return True


def _is_for_fewer(found: os.stat_result, above: os.stat_result) -> bool:
    """Whether fewer people may read something than may read the directory that is spoken of.

    By the modes, in which a mask stands for the group where there is an ACL: in doubt, fewer.
    """
    wanted = 5 if stat.S_ISDIR(found.st_mode) else 4
    others = found.st_mode & wanted == wanted
    if above.st_mode & 0o004:
        return not others
    group = found.st_gid == above.st_gid and found.st_mode >> 3 & wanted == wanted
    if above.st_mode & 0o040 or found.st_uid != above.st_uid:
        return not (group or others)
    return False


class _opened:
    """A directory of the store, open in a ``with`` block."""

    def __init__(self, root_fd: int, path: bytes) -> None:
        self._fd = os.open(path or b".", _DIRECTORY, dir_fd=root_fd)

    def __enter__(self) -> int:
        return self._fd

    def __exit__(self, *exception: object) -> None:
        os.close(self._fd)


def _entries(fd: int, hashes: Mapping[str, str], *, deep: bool) -> Iterator[Entry]:
    above = os.fstat(fd)
    for path, directories, files, here in os.fwalk(b".", dir_fd=fd):
        directories[:] = sorted(name for name in directories if not is_own_name(name))
        prefix = path[2:] + b"/" if path != b"." else b""
        closed = []
        for name in itertools.chain(directories, files):
            if is_own_name(name):
                continue
            try:
                found = os.stat(name, dir_fd=here, follow_symlinks=False)
            except FileNotFoundError:
                continue
            if stat.S_ISDIR(found.st_mode) and _is_for_fewer(found, above):
                closed.append(name)
            shown = os.fsdecode(prefix + name)
            yield Entry(
                shown, _kind(found.st_mode), found.st_size, found.st_mtime_ns, hashes.get(shown)
            )
        if not deep:
            return
        directories[:] = [name for name in directories if name not in closed]


def _kind(mode: int) -> Any:
    kinds = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "link"}
    return kinds.get(stat.S_IFMT(mode), "other")


def _path_of_entry(entry: Entry) -> str:
    return entry.path


def _shown(root: bytes, relative: bytes) -> str:
    return os.fsdecode(os.path.relpath(b"/" + root, b"/" + relative))


def _covers(path: str) -> bool:
    return path == "." or path.startswith("..")


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
