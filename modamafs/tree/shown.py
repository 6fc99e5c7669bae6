"""The virtual trees: landing directories, the listed ``landing/``, and ``views/``.

Where each hangs is its key's origin: ``L`` the landing directory ``.modama`` of a directory of the
store, ``T`` the listed tree (the same, with the directories below it), ``V`` the views. Walking
from there along a key's names gives the node as it is now.

All of this may wait for the disk, or for a page to be rendered: it belongs into a thread, but one
call at a time. ``landing_of``, ``root_entry`` and what ``is_quick`` may run beside it.
"""

from __future__ import annotations

import os
import stat
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from modamafs import landing, views
from modamafs.doors import acl_of
from modamafs.errors import StaleHandle
from modamafs.index.sessions import IndexedSession
from modamafs.landing.facts import Facts
from modamafs.model import RECORDS, ROOT, Attributes, Caller, is_own_name
from modamafs.policy import access
from modamafs.store.backing import path_of
from modamafs.store.records import names_in, open_plain
from modamafs.tree.core import Tree, is_own_path
from modamafs.tree.facts import (
    PROJECT_DEPTH,
    SESSION_DEPTH,
    Gatherer,
    Told,
    depth_of,
    session_of,
)
from modamafs.tree.privacy import Privacy, with_groups
from modamafs.tree.sessions import Sessions
from modamafs.tree.virtual import (
    Control,
    Directory,
    File,
    Key,
    Link,
    Live,
    Node,
    Said,
    Table,
    attributes,
)

LANDING, TREE, VIEWS = b"L", b"T", b"V"
DIRECTORY = stat.S_IFDIR | 0o555
KEPT_FILES, KEPT_BYTES = 512, 64 << 20
KEPT_VIEWS = 32
ACCESS_ACL = b"system.posix_acl_access"
HISTORY, CONTROL, SEALS, SEAL, PROGRESS = b"history.jsonl", b"ctl", b"seals", b"seal", b"progress"
SESSIONS_RAW = b"raw"
"""What the ``ctl`` of a session is about: a seal covers what the instrument wrote."""


class Work(Protocol):
    """What is under way on a directory, and what came of it: see ``control/ctl.py``."""

    def progress(self, path: bytes) -> Said:
        """One line; b"" where nothing is under way."""

    def answer(self, path: bytes) -> Said:
        """What reading ``ctl`` gives."""


class Shown:
    """All virtual nodes of one mount."""

    def __init__(
        self,
        tree: Tree,
        table: Path,
        work: Work,
        *,
        landing_name: bytes = b"landing",
        views_name: bytes = b"views",
        listed: bool = False,
        missing: Told | None = None,
        indexed: Callable[[], list[IndexedSession] | None] | None = None,
    ) -> None:
        """``tree`` is the mounted store; an empty name leaves that tree out of the root.

        ``listed``: whether directories list their ``.modama``. ``missing`` is told of each file
        that is shown, and whose metadata are not known, or not right any more. ``indexed``: see
        ``Sessions``.
        """
        self.tree = tree
        self.work = work
        self.listed = listed
        self.table = Table(table)
        self.privacy = Privacy(tree.store)
        self.gatherer = Gatherer(tree.store, tree.seals, tree.scope, self.privacy, missing)
        self.sessions = Sessions(tree.store, indexed)
        self.at_root = {
            name: key
            for name, key in ((landing_name, Key(TREE, ROOT)), (views_name, Key(VIEWS, 0)))
            if name
        }
        self.taken = {CONTROL, HISTORY, SEALS, *map(os.fsencode, landing.modules())}
        self._files: OrderedDict[int, File] = OrderedDict()
        self._files_bytes = 0
        self._views: OrderedDict[Any, tuple[int, views.Directory]] = OrderedDict()

    def close(self) -> None:
        """Close the table."""
        self.table.close()

    # ---- finding nodes ----------------------------------------------------------------------

    def node(self, node: int, caller: Caller) -> Node:
        """The node of an id, as it is now. StaleHandle (ESTALE): there is no such node any more."""
        kept = self._files.get(node)
        if kept is not None:
            return kept
        key = self.table.key(node)
        found = self.walk(key, caller)
        if found is None or found.key.id != node:
            raise StaleHandle("it was another file that is gone by now")
        return found

    def walk(self, key: Key, caller: Caller) -> Node | None:
        """The node that a key leads to now; a rendered file may have other bytes."""
        found: Node | None = self._origin(key)
        for name in key.names:
            if found is None or not hasattr(found, "child"):
                return None
            found = found.child(name, caller)
        return found

    def _origin(self, key: Key) -> Directory:
        if key.origin == VIEWS:
            return ViewsDirectory(self, Key(VIEWS, 0))
        return LandingDirectory(self, key._replace(names=(), digest=b""))

    def directory(self, node: int, caller: Caller) -> Directory:
        """A virtual directory, as the caller sees it. NotADirectoryError, StaleHandle."""
        found = self.node(node, caller)
        if not hasattr(found, "child"):
            raise NotADirectoryError(20, os.strerror(20))
        return found  # type: ignore[return-value]

    def landing_of(self, node: int) -> Node:
        """The landing directory of a directory of the store."""
        return self.keep(LandingDirectory(self, Key(LANDING, node)))

    def above(self, key: Key) -> Attributes:
        """The attributes of what a tree hangs in: the directory that it is about, or the root."""
        return LandingDirectory(self, Key(LANDING, key.ino or ROOT)).like()

    def root_entry(self, name: bytes) -> Node | None:
        """What is called so at the mount's root."""
        key = self.at_root.get(name)
        return None if key is None else self.keep(self._origin(key))

    def lookup(self, node: int, name: bytes, caller: Caller) -> Node | None:
        """An entry of a virtual directory."""
        found = self.directory(node, caller).child(name, caller)
        return None if found is None else self.keep(found)

    def is_kept(self, node: int) -> bool:
        """Whether a node is a rendered file whose bytes are at hand."""
        return node in self._files

    def is_quick(self, node: int, name: bytes) -> bool:
        """Whether looking for an entry neither renders anything nor reads a record."""
        key = self.table.key(node)
        return key.origin == TREE and not key.names and name not in self.taken

    def is_lasting(self, node: int) -> bool:
        """Whether it is a landing directory: as lasting as the directory that it is about."""
        key = self.table.find(node)
        return key is not None and key.origin != VIEWS and not key.names

    def keep(self, found: Node) -> Node:
        """Have a later request, or a later worker, find it again by its id."""
        if isinstance(found, File):
            if found.key.id not in self._files:
                self._files[found.key.id] = found
                self._files_bytes += len(found.content)
            self._files.move_to_end(found.key.id)
            while len(self._files) > KEPT_FILES or self._files_bytes > KEPT_BYTES:
                _, forgotten = self._files.popitem(last=False)
                self._files_bytes -= len(forgotten.content)
                if forgotten is found:
                    break
        else:
            self.table.keep(found.key)
        return found

    def views_of(self, caller: Caller | None) -> views.Directory:
        """The views as this caller (None: anybody) sees them, by the paths of this mount."""
        everybody = self.sessions.all()
        # Where everything belongs to one user, there are no strangers.
        if caller is not None and self.tree.owners_are_shown:
            caller = with_groups(caller)
        who = None if caller is None else (caller.uid, caller.gid, caller.groups)
        known = self._views.get(who)
        if known is not None and known[0] == self.sessions.generation:
            return known[1]
        seen = everybody
        if caller is not None and self.tree.owners_are_shown:
            seen = self.sessions.of(caller)
        user = None if caller is None else self.privacy.user(caller)
        content = views.root(list(self._in_scope(seen)), user)
        self._views[who] = self.sessions.generation, content
        if len(self._views) > KEPT_VIEWS:
            self._views.popitem(last=False)
        return content

    def _in_scope(self, sessions: list[views.SessionFacts]) -> Iterator[views.SessionFacts]:
        """Those that this mount shows, by their paths in it."""
        scope = self.tree.scope
        for session in sessions:
            if scope.is_whole:
                yield session
                continue
            path = scope.path_in_mount(os.fsencode(session.path))
            if path is not None:
                yield replace(session, path=os.fsdecode(path))

    def acl(self, node: int, caller: Caller) -> bytes | None:
        """The ACL of a virtual node: as its directory's on the store, without writing."""
        found = self.node(node, caller)
        key = found.key
        if isinstance(found, Control | Link) or not self.tree.owners_are_shown:
            return None
        value: bytes | None = None
        if key.origin != VIEWS:
            value = self.tree.getxattr(key.ino, ACCESS_ACL)
        elif isinstance(found, ViewsDirectory) and (path := found.about()):
            fd = os.open(path, os.O_PATH | os.O_DIRECTORY, dir_fd=self.tree.store.root_fd)
            try:
                value = acl_of(fd)
            finally:
                os.close(fd)
        if value is None:
            return None
        readers = access.READ | access.SEARCH if hasattr(found, "child") else access.READ
        return access.masked(value, readers)


# ---- landing directories -------------------------------------------------------------------------


class LandingDirectory:
    """What is known of one directory of the store."""

    def __init__(self, shown: Shown, key: Key) -> None:
        self.key = key
        self._shown = shown

    @property
    def is_listed(self) -> bool:
        """Whether the directories below are entries, too."""
        return self.key.origin == TREE

    def like(self) -> Attributes:
        """The attributes of the directory that it is about. OSError: ESTALE.

        By a descriptor of our own: those that the tree keeps may be closed by its thread.
        """
        tree = self._shown.tree
        fd = tree.inodes.open(self.key.ino, os.O_PATH)
        try:
            return tree.shown_as(tree.store.volume.attributes(fd))
        finally:
            os.close(fd)

    def attributes(self) -> Attributes:
        """Whoever may read or search the directory may do so here."""
        like = self.like()
        return attributes(self.key, stat.S_IFDIR | like.mode & 0o555, like, like.mtime_ns)

    def open(self) -> int:
        """The directory itself; the caller closes it."""
        return self._shown.tree.inodes.open(self.key.ino, os.O_RDONLY | os.O_DIRECTORY)

    def place(self) -> tuple[int, bytes]:
        """A descriptor of the directory, and where it lies in the store. StaleHandle (ESTALE)."""
        fd = self.open()
        try:
            return fd, self._relative(fd)
        except BaseException:
            os.close(fd)
            raise

    def _relative(self, fd: int) -> bytes:
        tree = self._shown.tree
        path = path_of(fd)
        if not (tree.store.contains(fd) and tree.scope.holds(fd)) or is_own_path(path):
            raise StaleHandle("the directory has been removed")
        root = path_of(tree.store.root_fd).rstrip(b"/")
        return path[len(root) :].strip(b"/")

    def relative(self) -> bytes:
        """Where the directory lies in the store."""
        fd, relative = self.place()
        os.close(fd)
        return relative

    def facts(self, *, with_entries: bool = True) -> Facts:
        """What is known of the directory."""
        fd, relative = self.place()
        try:
            return self._shown.gatherer.facts(relative, fd, with_entries=with_entries)
        finally:
            os.close(fd)

    def child(self, name: bytes, caller: Caller) -> Node | None:
        """A file or directory about it; in the listed tree, also what is known of one in it."""
        key = self.key.child(name)
        if name == CONTROL:
            return self._control(key)
        if name == HISTORY:
            return self._stored(key, RECORDS + b"/" + HISTORY)
        if name == SEALS:
            return RecordsDirectory(self, key)
        module = landing.modules().get(os.fsdecode(name))
        if module is not None:
            return self._rendered(key, module)
        return self._below(name) if self.is_listed else None

    def _rendered(self, key: Key, module: Any) -> Node | None:
        facts = self.facts(with_entries=getattr(module, "NEEDS_ENTRIES", True))
        if hasattr(module, "entries"):
            return ContentDirectory(self, key, module.entries(facts), facts.changed_ns)
        content = module.render(facts)
        return None if content is None else File(key, content, self.like(), facts.changed_ns)

    def _control(self, key: Key) -> Node | None:
        relative = self.relative()
        if not self._has_control(relative):
            return None
        target = _target(relative)
        work = self._shown.work
        like, group_writes = self._of_session(relative)
        mode = 0o660 if group_writes else 0o600
        return Control(key, like, mode, target, lambda: work.answer(target))

    def _has_control(self, relative: bytes) -> bool:
        """In a view where everything belongs to one user, nobody's mode says who may seal."""
        return depth_of(relative) >= SESSION_DEPTH and self._shown.tree.owners_are_shown

    def _of_session(self, relative: bytes) -> tuple[Attributes, bool]:
        """The attributes of the session that it lies in, and whether its group may write there.

        Its owner may seal it, and its group if that could change everything in it anyway.
        """
        session = session_of(relative)
        assert session is not None
        tree = self._shown.tree
        flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW
        fd = os.open(session, flags, dir_fd=tree.store.root_fd)
        try:
            found: Attributes = tree.store.volume.attributes(fd)
            acl = acl_of(fd)
        finally:
            os.close(fd)
        return found, access.group_may(access.WRITE | access.SEARCH, found.mode, acl)

    def progress(self, key: Key) -> Node:
        """How far the work on it is."""
        target = _target(self.relative())
        return Live(key, self.like(), text=lambda: self._shown.work.progress(target))

    def _stored(self, key: Key, path: bytes) -> Node | None:
        """A file of the store's, relative to the directory."""

        def open_() -> int:
            fd = self.open()
            try:
                return open_plain(fd, path)
            finally:
                os.close(fd)

        try:
            os.close(open_())
        except OSError:
            return None
        return Live(key, self.like(), open=open_)

    def _below(self, name: bytes) -> Node | None:
        if is_own_name(name):
            return None
        found = self._shown.tree.lookup(self.key.ino, name)
        if found is None or not stat.S_ISDIR(found.mode):
            return None
        return LandingDirectory(self._shown, Key(TREE, found.ino))

    def listing(self, caller: Caller) -> Iterator[tuple[bytes, int]]:
        """All names; not those of private projects that are not the caller's."""
        fd, relative = self.place()
        try:
            if self._has_control(relative):
                yield CONTROL, stat.S_IFREG
            if os.access(RECORDS + b"/" + HISTORY, os.F_OK, dir_fd=fd):
                yield HISTORY, stat.S_IFREG
            yield SEALS, stat.S_IFDIR
            for name, module in landing.modules().items():
                is_there = getattr(module, "is_there", None)
                if is_there is None or is_there(self.facts(with_entries=False)):
                    kind = stat.S_IFDIR if hasattr(module, "entries") else stat.S_IFREG
                    yield os.fsencode(name), kind
            if self.is_listed:
                yield from self._directories(fd, relative, caller)
        finally:
            os.close(fd)

    def _directories(self, fd: int, relative: bytes, caller: Caller) -> Iterator[tuple[bytes, int]]:
        taken = self._shown.taken
        scope = self._shown.tree.scope
        may_be_private = depth_of(relative) == PROJECT_DEPTH - 1
        with os.scandir(fd) as entries:
            for entry in entries:
                name = os.fsencode(entry.name)
                if is_own_name(name) or name in taken or not entry.is_dir(follow_symlinks=False):
                    continue
                if not (scope.is_whole or scope.shows(fd, name)):
                    continue
                if may_be_private and not self._shown.privacy.is_shown(fd, name, caller):
                    continue
                yield name, stat.S_IFDIR


def _target(relative: bytes) -> bytes:
    """What is sealed and verified from there: of a session, what the instrument wrote."""
    return relative + b"/" + SESSIONS_RAW if depth_of(relative) == SESSION_DEPTH else relative


class ContentDirectory:
    """A directory that a module of ``landing`` gives, at any depth."""

    def __init__(
        self, landing_: LandingDirectory, key: Key, content: landing.Content, changed_ns: int
    ) -> None:
        self.key = key
        self._landing = landing_
        self._content = content
        self._changed_ns = changed_ns

    def attributes(self) -> Attributes:
        """As the landing directory's."""
        like = self._landing.like()
        return attributes(self.key, stat.S_IFDIR | like.mode & 0o555, like, self._changed_ns)

    def child(self, name: bytes, caller: Caller) -> Node | None:
        """A directory, or a file that is rendered now."""
        key = self.key.child(name)
        if key.names == (SEAL, PROGRESS):
            return self._landing.progress(key)
        found = self._content.get(os.fsdecode(name))
        if found is None:
            return None
        if isinstance(found, Mapping):
            return ContentDirectory(self._landing, key, found, self._changed_ns)
        return File(key, found(), self._landing.like(), self._changed_ns)

    def listing(self, caller: Caller) -> Iterator[tuple[bytes, int]]:
        """All names; nothing is rendered."""
        if self.key.names == (SEAL,):
            yield PROGRESS, stat.S_IFREG
        for name, found in self._content.items():
            kind = stat.S_IFDIR if isinstance(found, Mapping) else stat.S_IFREG
            yield os.fsencode(name), kind


class RecordsDirectory:
    """``seals``: the manifests and records of what is sealed in a directory, as they lie there."""

    def __init__(self, landing_: LandingDirectory, key: Key) -> None:
        self.key = key
        self._landing = landing_

    def attributes(self) -> Attributes:
        """As the landing directory's."""
        like = self._landing.like()
        return attributes(self.key, stat.S_IFDIR | like.mode & 0o555, like, like.mtime_ns)

    def child(self, name: bytes, caller: Caller) -> Node | None:
        """One of them."""
        if not _is_record(name):
            return None
        return self._landing._stored(self.key.child(name), RECORDS + b"/" + SEALS + b"/" + name)

    def listing(self, caller: Caller) -> Iterator[tuple[bytes, int]]:
        """All of them."""
        fd = self._landing.open()
        try:
            for name in names_in(fd, RECORDS, SEALS):
                if _is_record(name):
                    yield name, stat.S_IFREG
        finally:
            os.close(fd)


def _is_record(name: bytes) -> bool:
    return name.endswith((b".json", b".B3SUMS", b".mtree", b".verified"))


# ---- views ---------------------------------------------------------------------------------------


class ViewsDirectory:
    """``views/``, or a directory in it."""

    def __init__(self, shown: Shown, key: Key) -> None:
        self.key = key
        self._shown = shown

    def attributes(self) -> Attributes:
        """Those of an area or a project are for whom that is; all others are for everybody."""
        tree = self._shown.tree
        like = tree.getattr(ROOT)
        mode = DIRECTORY
        if path := self.about():
            fd = os.open(path, os.O_PATH | os.O_DIRECTORY, dir_fd=tree.store.root_fd)
            try:
                like = tree.shown_as(tree.store.volume.attributes(fd))
            finally:
                os.close(fd)
            mode = stat.S_IFDIR | like.mode & 0o555
        return attributes(self.key, mode, like, like.mtime_ns)

    def about(self) -> bytes:
        """The area or project that it is about, relative to the store; b"": none."""
        names = self.key.names[:PROJECT_DEPTH]
        return b"" if names[:1] in ((), (b"all",), (b"mine",)) else b"/".join(names)

    def _content(self, caller: Caller | None) -> views.Directory | None:
        """What this caller (None: anybody) is shown here; None: no such directory."""
        found: Any = self._shown.views_of(caller)
        for name in self.key.names:
            found = found.get(os.fsdecode(name))
            if not callable(found):
                return None
            found = found()
        content: views.Directory = found
        return content

    def child(self, name: bytes, caller: Caller) -> Node | None:
        """An entry; those of an area or a project are there whoever asks: its mode says who may."""
        text = os.fsdecode(name)
        names = (*self.key.names, name)
        content = self._content(caller)
        found = None if content is None else content.get(text)
        if found is None and len(names) <= PROJECT_DEPTH and names[0] not in (b"all", b"mine"):
            everything = self._content(None)
            found = None if everything is None else everything.get(text)
        if found is None:
            return None
        if callable(found):
            return ViewsDirectory(self._shown, self.key.child(name))
        target = views.relative(found, len(names))
        return Link(self.key.child(name), os.fsencode(target), self._shown.tree.getattr(ROOT))

    def listing(self, caller: Caller) -> Iterator[tuple[bytes, int]]:
        """What the caller may see."""
        content = self._content(caller)
        for name, found in (content or {}).items():
            yield os.fsencode(name), stat.S_IFDIR if callable(found) else stat.S_IFLNK
