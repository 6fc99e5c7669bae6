"""Reads what instruments have written, in the background, and keeps what was found.

One file at a time, in a process of its own; the worker waits for it in a thread and is not delayed.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections import OrderedDict
from pathlib import Path

import trio

from modamafs.catalog import FileMetadata
from modamafs.extraction import cache
from modamafs.extraction.reading import Limits, NotRegular, ReaderProcess, open_beneath
from modamafs.extraction.wanted import extension_of, is_wanted, known
from modamafs.sealing.writers import is_open_for_writing
from modamafs.store.backing import Store
from modamafs.store.records import open_below

log = logging.getLogger(__name__)

QUEUE_LIMIT = 10_000
SETTLED_S = 2.0
"""A file that changed less long ago is left alone for now."""
RETRY_S = 10.0
"""After which a file that is open for writing is looked at again."""
IDLE_S = 60.0
"""Without work for so long, the process ends: it takes memory."""
TRIES = 200
"""How often one is found busy before it is left to be asked for again."""

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_GONE = {errno.ECANCELED, errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ESTALE}


class Busy(Exception):
    """Somebody is writing it."""


class Extractor:
    """The queue of one store. ``request`` is called in trio's thread, from anywhere."""

    def __init__(
        self,
        store: Store,
        *,
        read_only: bool = False,
        limits: Limits | None = None,
        workdir: Path | None = None,
        settled_s: float = SETTLED_S,
        retry_s: float = RETRY_S,
        queue_limit: int = QUEUE_LIMIT,
    ) -> None:
        """``workdir``: a directory for the process alone, made anew by it; as in ``/run``."""
        self._store = store
        self._read_only = read_only
        self._limits = limits
        self._workdir = workdir
        self._settled_s = settled_s
        self._retry_s = retry_s
        self._queue_limit = queue_limit
        self._queue: OrderedDict[tuple[bytes, bytes], tuple[float, int]] = OrderedDict()
        """When to look at which file next (``trio.current_time``), and how often it was busy."""
        self._pruned: set[bytes] = set()
        self._woken = trio.Event()
        self._is_working = False

    def __len__(self) -> int:
        """How many files wait, or are being read."""
        return len(self._queue) + self._is_working

    def request(self, session: bytes, path: bytes) -> None:
        """Have a file read, if a reader takes it and what is known of it is not right any more.

        ``session``: relative to the store; ``path``: to the session. Costs nothing to ask again.
        """
        if self._read_only or (session, path) in self._queue or not is_wanted(path):
            return
        if len(self._queue) >= self._queue_limit:
            (old_session, old), _ = self._queue.popitem(last=False)
            log.warning("extraction-queue-full dropped=%r", old_session + b"/" + old)
        self._queue[session, path] = 0.0, 0
        self._woken.set()

    async def run(self) -> None:
        """Work the queue off, until it is cancelled."""
        await trio.to_thread.run_sync(known)
        while True:
            process = ReaderProcess(self._limits, self._workdir)
            try:
                await self._wait()
                while True:
                    await self._work(process)
                    with trio.move_on_after(IDLE_S) as idle:
                        await self._wait()
                    if idle.cancelled_caught:
                        break
            finally:
                process.close()

    async def _wait(self) -> None:
        """Until there is something to do."""
        while True:
            self._woken = trio.Event()
            now_s = trio.current_time()
            due_s = min((due for due, _ in self._queue.values()), default=None)
            if due_s is not None and due_s <= now_s:
                return
            with trio.move_on_after(float("inf") if due_s is None else due_s - now_s):
                await self._woken.wait()

    async def _work(self, process: ReaderProcess) -> None:
        now_s = trio.current_time()
        for key, (due_s, tries) in list(self._queue.items()):
            if due_s > now_s or key not in self._queue:
                continue
            del self._queue[key]
            session, path = key
            self._is_working = True
            try:
                await trio.to_thread.run_sync(
                    self._look, process, session, path, abandon_on_cancel=True
                )
            except Busy:
                if tries < TRIES:
                    self._queue.setdefault(key, (trio.current_time() + self._retry_s, tries + 1))
            except OSError as error:
                if error.errno not in _GONE:
                    log.warning("extraction-failed path=%r error=%s", session + b"/" + path, error)
            finally:
                self._is_working = False

    def _look(self, process: ReaderProcess, session: bytes, path: bytes) -> None:
        """Read one file and write down what was found. Runs in a thread."""
        session_fd = _open_session(self._store, session)
        try:
            if session not in self._pruned:
                self._pruned.add(session)
                cache.prune(session_fd)
            try:
                status = _settled(session_fd, path, self._settled_s)
            except (FileNotFoundError, NotRegular):
                cache.remove(session_fd, os.fsdecode(path))
                return
            known_already = cache.load(session_fd).get(os.fsdecode(path))
            if known_already is not None and not cache.stale(known_already, status):
                return
            found = process.read(session_fd, path)
            if found is None:
                return
            if cache.stale(found, _settled(session_fd, path, 0)):
                raise Busy  # it was changed meanwhile
            cache.write(session_fd, found)
            log.debug("extracted path=%r problem=%s", session + b"/" + path, found.problem)
        finally:
            os.close(session_fd)


def extract_now(
    store: Store,
    session: bytes,
    path: bytes,
    *,
    process: ReaderProcess | None = None,
    write: bool = True,
) -> FileMetadata | None:
    """Read one file now, however it looks, and write down what was found unless told not to.

    None: no reader takes it. NotRegular: a link, a FIFO …; OSError: ENOENT, EROFS, ENOSPC.
    """
    if extension_of(path) not in known():
        return None
    session_fd = _open_session(store, session)
    try:
        if process is None:
            with ReaderProcess() as own:
                found = own.read(session_fd, path)
        else:
            found = process.read(session_fd, path)
        if found is not None and write:
            cache.write(session_fd, found)
        return found
    finally:
        os.close(session_fd)


def _settled(session_fd: int, path: bytes, settled_s: float) -> os.stat_result:
    """How a file is that nobody writes. Busy: somebody does, or has just now."""
    try:
        fd = open_beneath(session_fd, path)
    except BlockingIOError:
        raise Busy from None
    try:
        status = os.fstat(fd)
        if 0 <= time.time() - status.st_mtime < settled_s:
            raise Busy
        try:
            if is_open_for_writing(fd):
                raise Busy
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EACCES, errno.EPERM):
                raise
        return status
    finally:
        os.close(fd)


def _open_session(store: Store, session: bytes) -> int:
    """Its directory; no symbolic link is followed. OSError."""
    if not {b"", b".", b".."}.isdisjoint(session.split(b"/")):
        raise OSError(errno.EINVAL, "no session")
    found = open_below(store.root_fd, session)
    try:
        return os.open(b".", _DIRECTORY, dir_fd=found)
    finally:
        os.close(found)
