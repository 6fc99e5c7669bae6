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
from modamafs.doors import acl_of
from modamafs.errors import ConfigurationError, ModamaError
from modamafs.extraction import cache
from modamafs.extraction.wanted import is_wanted
from modamafs.landing.facts import ENTRIES_LIMIT, Entry, Facts, Kind, Seal
from modamafs.model import RECORDS, is_own_name
from modamafs.sealing.manifest import parse_b3sum_line
from modamafs.store.backing import Store
from modamafs.store.catalogue import read_project, read_session
from modamafs.store.records import open_plain, read_record
from modamafs.store.seals import SEALS, Seals
from modamafs.tree.privacy import Privacy
from modamafs.tree.scope import Scope

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
        self,
        store: Store,
        seals: Seals,
        scope: Scope,
        privacy: Privacy,
        missing: Told | None = None,
    ) -> None:
        """``missing`` is told of files whose metadata are not known, or not right any more."""
        self._scope = scope
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
        return [root for root in found if not root.startswith(below) or self._may_tell(root, below)]

    def _may_tell(self, root: bytes, below: bytes) -> bool:
        """Whether what lies at ``root`` is for all who may read the directory that is above it."""
        if not self._scope.is_whole and self._scope.path_in_mount(root) is None:
            return False
        if depth_of(below.rstrip(b"/")) < PROJECT_DEPTH:
            project = b"/".join(root.split(b"/")[:PROJECT_DEPTH])
            if self._privacy.is_private(project):
                return False
        with _opened(self._store.root_fd, below) as fd:
            reader = Readers(fd)
        return reader.may_all_reach(self._store.root_fd, below.rstrip(b"/"), root[len(below) :])

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
            if not self._scope.is_whole and depth < PROJECT_DEPTH:
                walk = (e for e in walk if self._scope.shows(fd, os.fsencode(e.path)))
            if depth == PROJECT_DEPTH - 1:
                walk = (entry for entry in walk if not self._is_private(relative, entry))
            entries = tuple(sorted(itertools.islice(walk, ENTRIES_LIMIT), key=_path_of_entry))
            left_out = sum(1 for _ in itertools.islice(walk, COUNTED_LIMIT))
        metadata = self._metadata(relative, fd) if depth >= SESSION_DEPTH else {}
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
                manifest = parent + b"/.modama/seals/" + name + b".B3SUMS"
                fd = open_plain(self._store.root_fd, manifest)
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

    def _metadata(self, relative: bytes, here_fd: int) -> Mapping[str, FileMetadata]:
        session = session_of(relative)
        assert session is not None
        with _opened(self._store.root_fd, session) as fd:
            known = cache.load(fd)
        inside = os.fsdecode(relative[len(session) + 1 :])
        prefix = inside + "/" if inside else ""
        return _Below(known, prefix, self._store.root_fd, relative, Readers(here_fd))


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
        readers: Readers,
    ) -> None:
        self._known = known
        self._prefix = prefix
        self._root_fd = root_fd
        self._relative = relative
        self._readers = readers

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
        return self._readers.may_all_reach(self._root_fd, self._relative, os.fsencode(path))


class Readers:
    """Those who may read a directory, and so what is told of it; may all of them read something?

    In doubt, no.
    """

    def __init__(self, fd: int) -> None:
        """Of an open directory."""
        found = os.fstat(fd)
        self._mode, self._uid, self._gid = found.st_mode, found.st_uid, found.st_gid
        self._acl = acl_of(fd)

    def may_all_read(self, found: os.stat_result, dir_fd: int, name: bytes) -> bool:
        """Whether all may read a file, or list and enter a directory: by mode and ACL."""
        wanted = 5 if stat.S_ISDIR(found.st_mode) else 4
        if found.st_mode & wanted == wanted:
            return True
        if self._mode & 0o004:
            return False
        if self._acl is not None:  # others are named in there: they have to be in the other, too
            same = (found.st_uid, found.st_gid) == (self._uid, self._gid)
            return same and _acl_at(dir_fd, name) == self._acl
        group = found.st_gid == self._gid and found.st_mode >> 3 & wanted == wanted
        group = group and _acl_at(dir_fd, name) is None
        if self._mode & 0o040 or found.st_uid != self._uid:
            return group
        return True

    def may_all_reach(self, root_fd: int, above: bytes, path: bytes) -> bool:
        """Whether all may read what lies at ``path`` below the directory ``above``."""
        here = above
        for name in path.split(b"/"):
            place = here
            here = here + b"/" + name if here else name
            try:
                found = os.stat(here, dir_fd=root_fd, follow_symlinks=False)
                with _opened(root_fd, place) as fd:
                    if not self.may_all_read(found, fd, name):
                        return False
            except OSError:
                return False
        return True


def _acl_at(dir_fd: int, name: bytes) -> bytes | None:
    try:
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=dir_fd)
    except OSError:
        return b""
    try:
        return acl_of(fd)
    finally:
        os.close(fd)


class _opened:
    """A directory of the store, open in a ``with`` block."""

    def __init__(self, root_fd: int, path: bytes) -> None:
        self._fd = os.open(path or b".", _DIRECTORY, dir_fd=root_fd)

    def __enter__(self) -> int:
        return self._fd

    def __exit__(self, *exception: object) -> None:
        os.close(self._fd)


def _entries(fd: int, hashes: Mapping[str, str], *, deep: bool) -> Iterator[Entry]:
    readers = Readers(fd)
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
            if stat.S_ISDIR(found.st_mode) and not readers.may_all_read(found, here, name):
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
