"""Telling who watches directories of the mount by inotify: smbd for its clients, and programs.

How, is said in ``nudges.py``. A thread does it, after the kernel was told to forget: what has
happened meanwhile to the same entry is said once. It may hang, in a directory that somebody holds,
and the watcher goes on. It asks ``/proc`` who watches, which takes time on a busy machine: so never
unless the kernel knows the directory at all, and for no more than a small part of the time.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import os
import struct
import threading
import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from modamafs import mounting
from modamafs.model import ROOT
from modamafs.store import backing
from modamafs.watch import notices
from modamafs.watch.nudges import (
    AS_DIRECTORY,
    AS_FILE,
    BESIDE,
    CHANGED,
    NEW_DIRECTORY,
    NEW_FILE,
    Nudge,
    What,
)
from modamafs.watch.teller import Teller
from modamafs.watch.watched import Handle, Watchers

log = logging.getLogger("modamafs.watcher")

MERGE_S = 0.05
"""What happens to the same entry in this time is said once."""
RESTS, SEARCH_RESTS, CALL_RESTS = 20, 50, 3
"""How many times as long as it took nobody is asked again who watches; no other process is; no more
nudges are given, each of which is some requests for the daemon."""
LONGEST_REST_S = 2.0
MOST_NAMES = 1000
"""Of a directory, at a time: who is told of more had better list it anew."""
MOST_WAITING = 50_000
GONE_NAMES = 64
_RENAME_NOREPLACE = 1
_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NOT_SO = (errno.ENOENT, errno.EEXIST, errno.ESTALE, errno.ENOTDIR)
"""It is otherwise by now, and there will be other news."""
_GONE = (errno.ENODEV, errno.ENOTCONN)
"""What is said of a mount that is no more."""

_libc = ctypes.CDLL(None, use_errno=True)


class Waiting:
    """Nudges that are to be given, each entry's merged. For several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._some = threading.Event()
        self._by_directory: dict[int, dict[bytes, Nudge]] = {}
        self._count = 0
        self._everywhere = False

    def add(self, nudges: Iterable[Nudge]) -> None:
        """Beyond the limits, a directory's are merged into one of itself, and then all into all."""
        with self._lock:
            for nudge in nudges:
                self._add(nudge)
        self._some.set()

    def _add(self, nudge: Nudge) -> None:
        names = self._by_directory.get(nudge.directory)
        if names is None:
            if self._count >= MOST_WAITING:
                self._everywhere = True
                return
            names = self._by_directory[nudge.directory] = {}
        earlier = names.get(nudge.name)
        if earlier is not None:
            nudge = nudge._replace(what=earlier.what | nudge.what)
        elif len(names) >= MOST_NAMES or self._count >= MOST_WAITING:
            nudge = Nudge(nudge.directory, b"", What.CHANGED)
        self._count += nudge.name not in names
        names[nudge.name] = nudge

    def everywhere(self) -> None:
        """Anything may have changed."""
        with self._lock:
            self._everywhere = True
        self._some.set()

    def wait(self, timeout_s: float | None) -> None:
        """Until there is something new, and for a moment: there may be more."""
        if self._some.wait(timeout_s):
            time.sleep(MERGE_S)
            self._some.clear()

    def directories(self) -> tuple[list[int], bool]:
        """Which ones there is something to say about; and whether anything may have changed."""
        with self._lock:
            return list(self._by_directory), self._everywhere

    def take(
        self, directories: Iterable[int], *, everywhere: bool = False
    ) -> dict[int, list[Nudge]]:
        """All of these directories; ``everywhere``: also, that anything may have changed."""
        taken: dict[int, list[Nudge]] = {}
        with self._lock:
            if everywhere:
                self._everywhere = False
            for directory in directories:
                taken[directory] = list(self._by_directory.pop(directory, {}).values())
                self._count -= len(taken[directory])
        return taken


class _Call(NamedTuple):
    """One nudge, and how its directory is reached."""

    node: int
    handle: Handle
    nudge: Nudge


class Nudger:
    """One mount's."""

    def __init__(self, fuse_fd: int, root_ino: int) -> None:
        """``root_ino``: the inode that is node 1."""
        self.waiting = Waiting()
        self._fuse_fd = fuse_fd
        self._root_ino = root_ino
        self._entrance = _Entrance(fuse_fd)
        self._teller = Teller(self._call, lambda call: call.node)
        self._watchers = Watchers()
        self._search_s = 0.0
        """When every process may be asked again."""

    def run(self) -> None:
        """A thread, until the mount is gone."""
        self.waiting.everywhere()  # an earlier watcher may not have come to an end with it
        patience_s: float | None = None
        while True:
            self.waiting.wait(patience_s)
            try:
                patience_s = self._give()
            except OSError as error:
                if error.errno in _GONE:
                    log.info("nudges-ended error=%s", error)
                    return
                log.warning("nudges-failed error=%s", error)  # and what they were, is not known
                time.sleep(LONGEST_REST_S)
                self.waiting.everywhere()
            if self._teller.starts_again():
                self.waiting.everywhere()

    def _give(self) -> float | None:
        """Nudge for who watches. Returns after how long (s) those whom nobody was found for, if
        there are any, are to be looked at again."""
        began_s = time.monotonic()
        directories, everywhere = self.waiting.directories()
        known = dict(self._known_to_kernel(directories))
        if not known and not everywhere:
            return None
        dev = self._entrance.dev()
        handles = self._watchers.known(dev)
        rest_s = RESTS * (time.monotonic() - began_s)
        is_left = everywhere or bool(known.keys() - handles)
        began_s = time.monotonic()
        if is_left and began_s >= self._search_s:
            # First taken, then searched: what comes later waits for another search.
            nudges = self.waiting.take(known.values(), everywhere=True)
            handles = self._watchers.all(dev)
            now_s = time.monotonic()
            self._search_s = now_s + min(LONGEST_REST_S, SEARCH_RESTS * (now_s - began_s))
            is_left = False
        else:
            everywhere = False
            nudges = self.waiting.take(ino for node, ino in known.items() if node in handles)
        began_s = time.monotonic()
        self._teller.tell(self._calls(nudges, known, handles, everywhere=everywhere))
        rest_s += CALL_RESTS * (time.monotonic() - began_s)
        time.sleep(min(LONGEST_REST_S, rest_s))
        return max(0.0, self._search_s - time.monotonic()) if is_left else None

    @staticmethod
    def _calls(
        nudges: dict[int, list[Nudge]],
        known: dict[int, int],
        handles: dict[int, Handle],
        *,
        everywhere: bool,
    ) -> Iterator[_Call]:
        for node, handle in handles.items():
            if everywhere:
                yield _Call(node, handle, Nudge(0, b"", What.CHANGED))
            for nudge in nudges.get(known.get(node, 0), ()):
                yield _Call(node, handle, nudge)

    def _known_to_kernel(self, directories: Iterable[int]) -> Iterator[tuple[int, int]]:
        """The node ids of those that somebody may be watching, and their inode numbers."""
        for ino in directories:
            node = ROOT if ino == self._root_ino else ino
            if notices.is_known(self._fuse_fd, node):
                yield node, ino
                continue
            taken = self.waiting.take([ino])[ino]
            if notices.is_known(self._fuse_fd, node):  # by now
                self.waiting.add(taken)

    def _call(self, call: _Call) -> None:
        """May wait, for who holds the directory."""
        nudge = call.nudge
        try:
            if nudge.name:  # also, nothing else is held while this waits
                notices.send(self._fuse_fd, notices.entry(call.node, nudge.name))
            with self._entrance.use() as beside:
                fd = _open_by_handle(beside, call.handle)
                try:
                    _nudge(fd, beside, nudge)
                finally:
                    os.close(fd)
        except OSError as error:
            if error.errno in _GONE:
                raise
            if error.errno not in _NOT_SO:
                log.info("nudge-failed node=%d error=%s", call.node, error)


def _nudge(directory: int, beside: int, nudge: Nudge) -> None:
    if not nudge.name:
        _change(directory, b"")
        return
    try:
        if What.GONE in nudge.what:
            _go(directory, beside, nudge)
        has_come = What.COME in nudge.what and _come(directory, beside, nudge)
        if What.CHANGED in nudge.what or (What.COME in nudge.what and not has_come):
            _change(directory, nudge.name)
    except PermissionError:  # a name that not everybody is to know
        if nudge.what & (What.GONE | What.COME):
            _change(directory, b"")


def _go(directory: int, beside: int, nudge: Nudge) -> None:
    target = b"%d" % (hash(nudge.name) % GONE_NAMES)
    with contextlib.suppress(FileNotFoundError), _as(nudge.is_directory):
        backing.rename(directory, nudge.name, beside, target, 0)


def _come(directory: int, beside: int, nudge: Nudge) -> bool:
    """False: the kernel has met it already, or it is not there."""
    source = NEW_DIRECTORY if nudge.is_directory else NEW_FILE
    with contextlib.suppress(FileExistsError), _as(nudge.is_directory):
        backing.rename(beside, source, directory, nudge.name, _RENAME_NOREPLACE)
        return True
    return False


def _change(directory: int, name: bytes) -> None:
    path = b"/proc/self/fd/%d" % directory
    if name:
        os.setxattr(path + b"/" + name, CHANGED, b"", follow_symlinks=False)
    else:
        os.setxattr(path, CHANGED, b"")


@contextlib.contextmanager
def _as(is_directory: bool) -> Iterator[None]:
    """This thread's system calls are a nudge."""
    before = _libc.setfsgid(ctypes.c_uint32(AS_DIRECTORY if is_directory else AS_FILE))
    try:
        yield
    finally:
        _libc.setfsgid(ctypes.c_uint32(before))


def _open_by_handle(mount: int, handle: Handle) -> int:
    packed = struct.pack("=Ii", len(handle.content), handle.kind) + handle.content
    fd: int = _libc.open_by_handle_at(mount, packed, _DIRECTORY)
    if fd < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return fd


class _Entrance:
    """``BESIDE``, by a mount of our own, so that nobody is kept from unmounting the other one."""

    def __init__(self, fuse_fd: int) -> None:
        self._fuse_fd = fuse_fd
        self._lock = threading.Lock()
        self._users = 0
        self._fd = -1
        self._dev: int | None = None

    def dev(self) -> int:
        """The device, as ``stat`` says it of everything there. OSError."""
        if self._dev is None:
            mount = mounting.another_mount(self._fuse_fd)
            try:
                self._dev = os.fstat(mount).st_dev
            finally:
                os.close(mount)
        return self._dev

    @contextlib.contextmanager
    def use(self) -> Iterator[int]:
        """Open for as long as somebody uses it. OSError."""
        with self._lock:
            if not self._users:
                self._fd = self._open()
            self._users += 1
        try:
            yield self._fd
        finally:
            with self._lock:
                self._users -= 1
                if not self._users:
                    os.close(self._fd)

    def _open(self) -> int:
        mount = mounting.another_mount(self._fuse_fd)
        try:
            with _as(is_directory=True):
                return os.open(BESIDE, os.O_RDONLY | os.O_DIRECTORY, dir_fd=mount)
        finally:
            os.close(mount)
