"""The process that watches a mount's store: it tells the kernel what to forget, and has the index
written.

Started by the worker, and dies with it; the next one goes on where it was (``watch/log.py``). The
main thread reads events and tells the kernel, and waits for nothing but these; the index has a
thread of its own, and so has what takes long because a whole tree was sealed.

On the socket to the worker, one JSON object a line. From the worker: ``sync`` (a number: answer
when everything that has happened by now is in the index) and ``rebuild`` (a number: make a new
index). To it: ``watching`` (whether), ``synced`` and ``rebuilt`` (the number), ``recorded`` (files
to extract metadata from: session and path) and ``index`` (what ``status`` says of it).
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import heapq
import itertools
import json
import logging
import os
import queue
import select
import socket
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from modamafs.config import MountSpec, load_mount_spec
from modamafs.errors import ConfigurationError
from modamafs.index.feeder import Feeder
from modamafs.index.reconcile import Change
from modamafs.logs import configure_logging
from modamafs.model import RECORDS, ROOT, is_own_name
from modamafs.store.backing import Store, path_of
from modamafs.store.walk import Directory, walk
from modamafs.tree.state import saved_handles
from modamafs.watch import notices, nudges
from modamafs.watch.events import (
    ATTRIB,
    CLOSE_WRITE,
    CREATE,
    DELETE,
    MODIFY,
    ONDIR,
    OVERFLOW,
    RENAME,
    Event,
    parse,
)
from modamafs.watch.log import WATCH_GAP, WATCH_LOG, EventLog
from modamafs.watch.nudger import MOST_NAMES, Nudger
from modamafs.watch.nudges import Nudge, What
from modamafs.watch.teller import Teller
from modamafs.watch.written import WRITTEN, Written

log = logging.getLogger("modamafs.watcher")

MERGE_S = 0.004
"""The kernel merges what happens to the same file in this time into one event."""
ECHO_S = 1.0
"""After which the kernel is told again: what it had asked for before the change is answered now."""
CLOSED_S = 0.2
"""For how long a write may still be that of a client who has closed the file."""
WRITING_S = ECHO_S
"""How often there is news of a file that is being written; the echo of the last one tells of what
somebody else has written since."""
LOOK_S = 1.0
"""How often it is looked which mounts of the store there are."""
KNOWN_DIRECTORIES = 100_000
TOLD_AT_ONCE = 1000
"""Of a whole tree: what happens meanwhile waits for no more than that."""
MOST_READS = 256
"""As many as the kernel keeps events for; where more goes on happening, nobody waits for that."""
SEALS = b"/" + RECORDS + b"/seals"
WROTE = MODIFY | CLOSE_WRITE
OF_A_FILE = WROTE | ATTRIB


def main(arguments: list[str] | None = None) -> int:
    """The watcher's whole life."""
    parser = argparse.ArgumentParser(prog="python -m modamafs.watcher")
    parser.add_argument("--runtime", type=Path, required=True)
    parser.add_argument("--fuse-fd", type=int, required=True)
    parser.add_argument("--watch-fd", type=int)
    parser.add_argument("--worker-fd", type=int, required=True)
    parser.add_argument("--worker", type=int, required=True)
    options = parser.parse_args(arguments)
    try:
        return watch(options)
    except FileNotFoundError:
        if options.runtime.exists():
            raise
        return 0  # unmounted meanwhile


def watch(options: argparse.Namespace) -> int:
    """With the command line taken apart."""
    spec = load_mount_spec(options.runtime)
    configure_logging(spec.log_level)
    sys.setswitchinterval(0.001)  # the index's thread must not keep the kernel waiting
    with socket.socket(fileno=options.worker_fd) as worker, Store(Path(spec.store)) as store:
        watcher = Watcher(spec, options.runtime, store, options.fuse_fd, worker)
        watcher.run(options.watch_fd, options.worker)
        os._exit(0)  # at once: the next one waits for the index


class Writers:
    """The files that clients of this mount have open for writing, or had a moment ago."""

    def __init__(self, runtime: Path) -> None:
        self._written = Written(runtime / WRITTEN)
        self._open: dict[int, int] = {}
        self._closed_s: dict[int, float] = {}
        for _ in self._written.news():  # of an earlier watcher
            pass
        for ino, flags in saved_handles(runtime / "state.bin"):
            if flags & os.O_ACCMODE != os.O_RDONLY:
                self._open[ino] = self._open.get(ino, 0) + 1

    def look(self) -> None:
        """To be called after events were read, and before it is asked who wrote."""
        now_s = time.monotonic()
        for ino, opened in self._written.news():
            count = self._open.get(ino, 0) + (1 if opened else -1)
            self._closed_s.pop(ino, None)
            if count > 0:
                self._open[ino] = count
            else:
                self._open.pop(ino, None)
                self._closed_s[ino] = now_s
        for ino, closed_s in list(self._closed_s.items()):  # in the order of closing
            if closed_s > now_s - CLOSED_S:
                break
            del self._closed_s[ino]

    def __contains__(self, ino: int) -> bool:
        return ino in self._open or ino in self._closed_s


class Mounts:
    """All mounts of the store: what is done through one of them does not come from outside."""

    def __init__(self, store: str, runtime: Path, writers: Writers) -> None:
        self._store = store
        self._above = runtime.parent
        self._runtime = runtime
        self._others: dict[Path, Writers] = {runtime: writers}
        self._workers: list[int] = []
        self._looked_s = -LOOK_S
        self._known: dict[int, bool] = {}

    def look(self) -> None:
        """To be called after events were read."""
        now_s = time.monotonic()
        if now_s - self._looked_s >= LOOK_S:
            self._looked_s = now_s
            self._known.clear()
            self._workers.clear()
            for runtime in [*self._others]:
                if not (runtime / "mount.json").exists():
                    del self._others[runtime]
            for path in self._above.glob("*/mount.json"):
                with contextlib.suppress(OSError, ConfigurationError):
                    self._meet(path.parent)
        for runtime, writers in self._others.items():
            if runtime != self._runtime:
                writers.look()

    def _meet(self, runtime: Path) -> None:
        if load_mount_spec(runtime).store != self._store:
            return
        state = json.loads((runtime / "supervisor.json").read_bytes())
        self._workers.append(state["worker_pid"])
        if runtime not in self._others and (runtime / WRITTEN).exists():
            self._others[runtime] = Writers(runtime)

    def did(self, event: Event) -> bool:
        """Whether it was done through one of them, or by its daemon: who seals is its child."""
        if not event.mask & ~WROTE and any(event.ino in one for one in self._others.values()):
            return True
        known = self._known.get(event.thread)
        if known is None:
            known = self._known[event.thread] = (
                any(os.path.exists(f"/proc/{one}/task/{event.thread}") for one in self._workers)
                or _parent(event.thread) in self._workers
            )
        return known


def _parent(thread: int) -> int | None:
    """The process that has started the one of a thread, also when that has just ended."""
    try:
        stat = Path(f"/proc/{thread}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(stat.rpartition(b")")[2].split()[1])


class Territory:
    """Which directories lie in the store: the watch tells of its whole file system."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._prefix = self._its_prefix()
        self._is_everything = store.is_whole_volume()
        self._known: dict[int, bool] = {}

    def has(self, event: Event) -> bool:
        """Whether it may be about something in the store. To be asked of every event, in order."""
        if self._is_everything:
            return True
        if event.mask & ONDIR and event.mask & (CREATE | DELETE | RENAME):
            if event.mask & RENAME:
                self.forget()  # all that is below lies elsewhere now
            else:
                self._known.pop(event.ino, None)  # the number may be another directory's
        if not event.directory:
            return True
        return self._holds(event.directory) or (
            event.new_directory != 0 and self._holds(event.new_directory)
        )

    def comes_in(self, event: Event) -> bool:
        """Whether a directory was moved into the store, with what was done to it elsewhere."""
        return (
            not self._is_everything
            and event.mask & (RENAME | ONDIR) == RENAME | ONDIR
            and not self._holds(event.directory)
            and self._holds(event.new_directory)
        )

    def forget(self) -> None:
        """Something may lie elsewhere now, the store among it."""
        self._known.clear()
        self._prefix = self._its_prefix()

    def _its_prefix(self) -> bytes:
        return path_of(self._store.root_fd).rstrip(b"/") + b"/"

    def _holds(self, directory: int) -> bool:
        known = self._known.get(directory)
        if known is None:
            path = self.path(directory)
            if path is None:
                return True  # whatever is, or was, in it
            known = (path + b"/").startswith(self._prefix)
            if len(self._known) >= KNOWN_DIRECTORIES:
                self._known.clear()
            self._known[directory] = known
        return known

    def path(self, directory: int) -> bytes | None:
        """Where a directory is; None: nowhere, or deeper than a path can say."""
        try:
            fd = self._store.volume.open(directory, os.O_PATH)
        except OSError:
            return None
        try:
            return path_of(fd)
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            return None
        finally:
            os.close(fd)


class Watcher:
    """See above."""

    def __init__(
        self, spec: MountSpec, runtime: Path, store: Store, fuse_fd: int, worker: socket.socket
    ) -> None:
        self._store = store
        self._teller: Teller[bytes] = Teller(partial(notices.send, fuse_fd), notices.node_of)
        self._is_watching = False
        self._worker = worker
        self._saying = threading.Lock()
        self._heard = b""
        self._territory = Territory(store)
        self._root_ino = (spec.shows.root_ino if spec.shows else 0) or store.volume.root_ino
        # On a read-only mount nothing can be done that raises an event.
        wants_nudges = spec.notify_clients and not spec.read_only
        self._nudger = Nudger(fuse_fd, self._root_ino) if wants_nudges else None
        self._log = EventLog(runtime / WATCH_LOG)
        self._gap = runtime / WATCH_GAP
        self._logging = threading.Lock()
        self._writers = Writers(runtime)
        self._mounts = Mounts(spec.store, runtime, self._writers)
        self._threads: set[int] = set()
        """Who did what the kernel knows: with what is left of earlier workers, theirs, too."""
        self._own_thread = 0
        self._echoes: list[tuple[float, int, list[bytes]]] = []
        self._numbers = itertools.count()
        self._news_s: dict[int, float] = {}
        self._slow: queue.SimpleQueue[bytes | int] = queue.SimpleQueue()
        """Trees that were sealed, opened or moved in, and numbers of who waits for all before."""
        self._index_dir = Path(spec.index_dir) if spec.index_dir else None
        self._feeder = Feeder(
            store,
            self._index_dir,
            say=self._say,
            done=self._done,
            differs=self._differs,
            histories=not spec.read_only,
        )

    def run(self, watch_fd: int | None, worker: int) -> None:
        """Until the worker is gone, or the mount."""
        poller = select.poll()
        poller.register(self._worker, select.POLLIN)
        if watch_fd is not None:
            self._log.note_thread(worker)
            self._threads = set(self._log.threads)
            self._own_thread = worker
            self._feeder.ignore(watch_fd)
            poller.register(watch_fd, select.POLLIN)
        threading.Thread(target=self._refresh_trees, daemon=True).start()
        if self._nudger is not None:
            threading.Thread(target=self._nudger.run, daemon=True).start()
        try:
            if watch_fd is not None:
                self._replay()
            self._feeder.start(polling=watch_fd is None)
            self._is_watching = watch_fd is not None
            self._say({"watching": self._is_watching})
            while True:
                ready = {fd for fd, _ in poller.poll(self._until_echo_ms())}
                if watch_fd is not None and watch_fd in ready:
                    self._take(watch_fd)
                    time.sleep(MERGE_S)
                if self._worker.fileno() in ready and not self._listen(watch_fd):
                    return
                self._echo()
                self._catch_up()
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise  # nobody is to believe that this goes on
            log.info("watch-ended error=%s", error)  # the mount is gone, and so will be the worker
            while self._worker.recv(1 << 16):
                pass

    # ---- the worker -------------------------------------------------------------------------

    def _say(self, message: dict[str, Any]) -> None:
        """May be called by every thread."""
        with self._saying, contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._worker.sendall(json.dumps(message).encode() + b"\n")

    def _listen(self, watch_fd: int | None) -> bool:
        """Hear what the worker says. False: it is gone."""
        try:
            piece = self._worker.recv(1 << 16)
        except ConnectionResetError:
            piece = b""
        *lines, self._heard = (self._heard + piece).split(b"\n")
        for message in map(json.loads, lines):
            if "sync" in message:
                for _ in range(MOST_READS):
                    if watch_fd is None or not self._take(watch_fd):
                        break
                self._slow.put(message["sync"])
            elif "rebuild" in message:
                self._feeder.rebuild(message["rebuild"])
        return bool(piece)

    # ---- events -----------------------------------------------------------------------------

    def _replay(self) -> None:
        """What an earlier watcher had read when it was killed."""
        with self._logging:
            data, end, lost = self._log.pending(), self._log.end, self._log.lost
        if self._gap.exists():
            self._tell([notices.everything()])
            self._gap.unlink()
        if lost:
            self._feeder.everything()
        if data:
            self._deal_with(data, end)

    def _take(self, watch_fd: int) -> bool:
        """Deal with what has happened. False: nothing has."""
        with self._logging:
            was_lost = self._log.lost
            data = self._log.read(watch_fd)
            end = self._log.end
            if self._log.lost and not was_lost:
                self._feeder.everything()  # before the index can say that it is complete
        if data:
            self._deal_with(data, end)
        else:  # nothing is left of earlier workers, whose numbers may be others' by now
            self._threads = {self._own_thread}
        return bool(data)

    def _deal_with(self, data: bytes, end: int) -> None:
        self._writers.look()
        self._mounts.look()
        at_ns = time.time_ns()
        messages: dict[bytes, None] = {}
        news: list[Nudge] = []
        changes: dict[tuple[int, bytes, int, int, bytes], Change] = {}
        for event in parse(data):
            if event.mask & OVERFLOW:
                self._lost()
                continue
            if not self._territory.has(event):
                if not event.ino or event.mask & ONDIR or not event.mask & OF_A_FILE:
                    continue
                # It may have a name in the store as well.
                event = Event(event.mask & OF_A_FILE, event.thread, 0, b"", event.ino)
            is_ours = event.thread in self._threads
            is_written_here = not event.mask & ~WROTE and event.ino in self._writers
            if is_written_here and not event.mask & CLOSE_WRITE and self._is_old_news(event.ino):
                continue
            if not is_ours:
                for message in notices.of(event, self._root_ino):
                    messages[message] = None
                if self._territory.comes_in(event):
                    messages[notices.everything()] = None
                    self._refresh_later(event.new_directory, event.new_name)
                self._look_for_seals(event)
                if not is_written_here:
                    news += nudges.of(event)
            outside = not (is_ours or is_written_here or self._mounts.did(event))
            change = _change(event, outside=outside, at_ns=at_ns)
            if change is not None:
                key = (*change[:3], change.new_directory, change.new_name)
                changes[key] = _merged(changes.get(key), change)
        self._tell(messages)
        self._nudge(news)
        self._feeder.feed(list(changes.values()), end)

    def _is_old_news(self, ino: int) -> bool:
        """Whether there was news of a file that is being written a moment ago."""
        now_s = time.monotonic()
        if self._news_s.get(ino, 0.0) > now_s - WRITING_S:
            return True
        if len(self._news_s) > 10_000:
            self._news_s.clear()
        self._news_s[ino] = now_s
        return False

    def _lost(self) -> None:
        """More has happened than the kernel keeps."""
        log.info("events-lost")
        self._territory.forget()
        with self._logging:
            self._log.set_lost(True)
            self._feeder.everything()  # before the index can say that it is complete
        self._tell([notices.everything()])
        if self._nudger is not None:
            self._nudger.waiting.everywhere()

    def _done(self, end: int, complete: bool | None = None) -> None:
        """See ``feeder.Done``."""
        with self._logging:
            if complete is False:
                self._log.set_lost(True)
            elif complete and not self._feeder.is_to_look:
                self._log.set_lost(False)
            self._log.done(end)

    # ---- the kernel -------------------------------------------------------------------------

    def _tell(self, messages: Iterable[bytes]) -> None:
        kept = list(messages)
        if kept:
            self._teller.tell(kept)
            heapq.heappush(self._echoes, (time.monotonic() + ECHO_S, next(self._numbers), kept))

    def _until_echo_ms(self) -> float | None:
        look_s = LOOK_S if self._teller.is_behind or self._teller.has_dropped else None
        if self._echoes:
            echo_s = max(0.0, self._echoes[0][0] - time.monotonic())
            look_s = echo_s if look_s is None else min(look_s, echo_s)
        return None if look_s is None else look_s * 1000

    def _echo(self) -> None:
        while self._echoes and self._echoes[0][0] <= time.monotonic():
            self._teller.tell(heapq.heappop(self._echoes)[2])

    def _catch_up(self) -> None:
        """While too many directories are held, nobody is to believe anything for long."""
        if self._teller.has_dropped and self._is_watching:
            log.warning("watch-overwhelmed")
            self._is_watching = False
            self._say({"watching": False})
        if self._teller.starts_again():
            self._lost()
            self._is_watching = True
            self._say({"watching": True})

    def _differs(self, directory: int, name: bytes, ino: int) -> None:
        """The index was wrong about an entry, and so may be the kernel. From the index's thread."""
        changed = Event(CREATE | MODIFY, 0, directory, name, ino)
        self._teller.tell(notices.of(changed, self._root_ino))
        self._nudge([Nudge(directory, name, What.GONE | What.COME | What.CHANGED)])

    def _nudge(self, news: Iterable[Nudge]) -> None:
        """Have those told who watch, after the kernel was: they look at once."""
        if self._nudger is not None:
            self._nudger.waiting.add(news)

    # ---- whole trees ------------------------------------------------------------------------

    def _look_for_seals(self, event: Event) -> None:
        """Flags are set without an event; but a seal's record is written when they are."""
        for directory, name in (
            (event.directory, event.name),
            (event.new_directory, event.new_name),
        ):
            if not name.endswith(b".json") or not event.mask & (CREATE | DELETE | RENAME):
                continue
            path = self._territory.path(directory)
            if path is not None and path.endswith(SEALS):
                self._slow.put(path.removesuffix(SEALS) + b"/" + name.removesuffix(b".json"))

    def _refresh_later(self, directory: int, name: bytes) -> None:
        path = self._territory.path(directory)
        if path is not None:
            self._slow.put(path + b"/" + name)

    def _refresh_trees(self) -> None:
        """A thread: all of a tree that was sealed, or moved in, looks different now."""
        while True:
            path = self._slow.get()
            if isinstance(path, int):
                self._feeder.sync(path)
                continue
            try:
                self._refresh(path)
            except OSError as error:
                log.info("refresh-ended path=%r error=%s", path, error)

    def _refresh(self, path: bytes) -> None:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        top = os.open(path, flags)
        try:
            if self._store.contains(top):
                for directory in walk(top):
                    messages = self._forgetting(directory)
                    while some := list(itertools.islice(messages, TOLD_AT_ONCE)):
                        self._teller.tell(some)
                    self._nudge(_all_changed(directory))
                above = os.stat(os.path.dirname(path)).st_ino
                self._nudge([Nudge(above, os.path.basename(path), What.CHANGED, True)])
        finally:
            os.close(top)

    def _forgetting(self, directory: Directory) -> Iterator[bytes]:
        """What tells of a directory's attributes and listing, and of all in it."""
        ino = os.fstat(directory.fd).st_ino
        node = ROOT if ino == self._root_ino else ino
        yield notices.inode(node)
        for name in directory.directories:
            yield notices.entry(node, name)
        for name in directory.others:
            yield notices.entry(node, name)
            with contextlib.suppress(FileNotFoundError):
                yield notices.attributes(os.lstat(name, dir_fd=directory.fd).st_ino)


def _all_changed(directory: Directory) -> Iterator[Nudge]:
    """What is to be said of all that is in a directory; of too much, it is the directory itself."""
    ino = os.fstat(directory.fd).st_ino
    names = itertools.chain(directory.directories, directory.others)
    for name in itertools.islice(names, MOST_NAMES + 2):
        if not is_own_name(name):
            yield Nudge(ino, name, What.CHANGED)


def _change(event: Event, *, outside: bool, at_ns: int) -> Change | None:
    """Where the index is to look, and what it may find."""
    if event.mask & RENAME:
        what = "moved"
    elif event.mask & CREATE:
        what = "created"
    elif event.mask & DELETE:
        what = "removed"
    elif event.mask & WROTE:
        what = "modified"
    else:
        what = "attributes"
    return Change(
        event.directory,
        event.name,
        event.ino,
        what,
        outside,
        at_ns,
        event.new_directory,
        event.new_name,
    )


def _merged(earlier: Change | None, later: Change) -> Change:
    """Of two changes of the same thing; from outside only if none was made here."""
    if earlier is None:
        return later
    outside = earlier.outside and later.outside
    event = earlier.event if later.event in ("modified", "attributes") else later.event
    return later._replace(outside=outside, event=event, at_ns=earlier.at_ns)


if __name__ == "__main__":
    sys.exit(main())
