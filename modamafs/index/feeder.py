"""The thread that writes the index: fed with what changes, and told what came of it.

Of all mounts of a store, one writes its index: the one that holds the lock. The others take over
when it ends.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from modamafs.index.database import lock_writer
from modamafs.index.outside import Histories
from modamafs.index.reconcile import Applied, Change, Index
from modamafs.store.backing import Store
from modamafs.watch import group

log = logging.getLogger(__name__)

GATHER_S = 0.05
"""What happens in this time is written in one transaction; who waits for the index does not."""
LOOK_S = 1.0
"""How often it is looked whether the index, or the lock, is there again."""
POLL_S = 10.0
"""Without a watch: how long after having looked at everything it is done again, at least; it never
takes more than a tenth of the time."""
MOST_FED = 100_000
"""Changes that wait for the thread; more, and everything is looked at instead."""
LATE_S = 5.0
"""What was fed is late when it is not in the index after so long, which is said."""
LATE = {
    "state": "catching up",
    "message": "what has changed for a while is not in the index yet",
}
AFTER_DEFECT_S = 5.0
NICENESS = 15
"""Of the thread: what people wait for goes first."""


class Done(Protocol):
    """Told that nobody needs what was fed up to an end any more.

    ``complete`` True: the index is as the store is. False: it was not told of some of it. None: as
    it was.
    """

    def __call__(self, end: int, complete: bool | None = None) -> None: ...


class Feeder:
    """The thread, and what it is to do. Every method may be called by another thread."""

    def __init__(
        self,
        store: Store,
        directory: Path | None,
        *,
        say: Callable[[dict[str, Any]], None],
        done: Done,
        differs: Callable[[int, bytes, int], None],
        histories: bool = True,
    ) -> None:
        """``directory``: where the index is; None: there is none.

        ``histories``: whether to write what comes from outside into the sessions' histories.
        """
        self._store = store
        self._directory = directory
        self._say = say
        self._done = done
        self._differs = differs
        self._woken = threading.Condition()
        self._changes: list[Change] = []
        self._end = 0
        self._everything = False
        self._has_skipped = False
        self._syncs: list[int] = []
        self._rebuilds: list[int] = []
        self._polling = False
        self._index: Index | None = None
        self._histories = Histories(store) if histories else None
        self._lock_fd: int | None = None
        self._telling = threading.Lock()
        self._said: dict[str, Any] = {}
        self._state: dict[str, Any] = {}
        """What the thread has to say; what is said may be that it is late."""
        self._waits_since_s: float | None = None
        """How long there has been something that the thread has not taken yet."""
        self._works_since_s: float | None = None
        """The same of what it has taken, and not got through."""
        self._looked_at_all_s = 0.0
        self._pause_s = POLL_S
        self._thread = threading.Thread(target=self._run, name="index", daemon=True)

    def ignore(self, watch_fd: int) -> None:
        """Don't let the watch tell of the index itself."""
        if self._directory is not None:
            try:
                self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                group.ignore(watch_fd, self._directory)
            except OSError as error:
                log.warning("index-not-ignored directory=%s error=%s", self._directory, error)

    def start(self, *, polling: bool) -> None:
        """Begin. ``polling``: nobody will feed it; it has to look by itself."""
        self._polling = polling
        self._thread.start()
        threading.Thread(target=self._look_for_lateness, name="index-late", daemon=True).start()

    def feed(self, changes: Sequence[Change], end: int) -> None:
        """Something may have changed; with it, all up to ``end`` was said.

        Where the thread has not got through ``MOST_FED`` changes, these are dropped and anything
        may have changed.
        """
        with self._woken:
            self._changes.extend(changes)
            self._end = end
            count = len(self._changes)
            if count > MOST_FED:
                self._changes.clear()
                self._everything = True
            if changes:
                self._is_given()
        if count > MOST_FED:
            log.warning("index-changes-dropped count=%d", count)
            self._done(end, complete=False)

    def everything(self) -> None:
        """Anything may have changed."""
        with self._woken:
            self._everything = True
            self._is_given()

    def _is_given(self) -> None:
        """There is something to do; with the lock held."""
        if self._waits_since_s is None:
            self._waits_since_s = time.monotonic()
        self._woken.notify()

    @property
    def is_to_look(self) -> bool:
        """Whether anything may have changed that it has not begun to look for."""
        return self._everything

    def sync(self, number: int) -> None:
        """Answer when what was fed so far is in the index, as far as there is one."""
        with self._woken:
            self._syncs.append(number)
            self._is_given()

    def rebuild(self, number: int) -> None:
        """Make a new index, and answer when it is there."""
        with self._woken:
            self._rebuilds.append(number)
            self._is_given()

    # ---- the thread -------------------------------------------------------------------------

    def _run(self) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        while True:
            try:
                self._wait()
                self._work()
            except Exception:
                log.exception("index-failed")
                self._begin_anew()

    def _begin_anew(self) -> None:
        """After a defect of ours: nobody else is to suffer from it."""
        self._tell({"state": "unavailable", "message": "an internal error: see the daemon's log"})
        index, self._index = self._index, None
        if index is not None:
            index.close()
        self.everything()
        time.sleep(AFTER_DEFECT_S)

    def _wait(self) -> None:
        with self._woken:
            if not (self._everything or self._syncs or self._rebuilds):
                self._woken.wait_for(self._has_something, LOOK_S)
            if self._changes and not self._syncs:
                self._woken.wait_for(lambda: bool(self._syncs), GATHER_S)

    def _has_something(self) -> bool:
        return bool(self._changes or self._syncs or self._rebuilds or self._everything)

    def _work(self) -> None:
        if not self._is_writer():
            self._pass_by()
            return
        if self._index is None:
            assert self._directory is not None
            self._index = Index(self._store, self._directory)
        index = self._index
        self._apply(index)
        with self._woken:
            rebuilds, self._rebuilds = self._rebuilds, []
        if rebuilds:
            self._go_through(index, index.rebuild(self._tell, self._differs))
            for number in rebuilds:
                self._say({"rebuilt": number, "index": index.state()})
        elif self._everything or index.needs_reconcile or self._is_time_to_look():
            self._go_through(index, index.reconcile(self._tell, self._differs))
        self._tell(index.state())

    def _is_writer(self) -> bool:
        if self._directory is None:
            self._tell({"state": "off", "message": "the store's config.toml says so, in [index]"})
            return False
        if self._lock_fd is not None:
            return True
        try:
            fd = lock_writer(self._directory)
        except OSError as error:
            self._tell({"state": "unavailable", "message": f"{self._directory}: {error.strerror}"})
            return False
        if fd is None:
            self._tell({"state": "elsewhere", "message": "another mount of the store writes it"})
            return False
        self._lock_fd = fd
        if self._has_skipped:
            self._has_skipped, self._everything = False, True
        return True

    def _pass_by(self) -> None:
        with self._woken:
            syncs, self._syncs = self._syncs, []
            rebuilds, self._rebuilds = self._rebuilds, []
            self._changes, end = [], self._end
            self._everything = False
            self._waits_since_s = self._works_since_s = None
        self._has_skipped = True
        self._done(end, complete=False)
        for number in syncs:
            self._say({"synced": number})
        for number in rebuilds:
            self._say({"rebuilt": number})

    def _apply(self, index: Index) -> None:
        with self._woken:
            changes, self._changes = self._changes, []
            syncs, self._syncs = self._syncs, []
            end = self._end
            since_s, self._waits_since_s = self._waits_since_s, None
            self._works_since_s = self._works_since_s or since_s
        self._report(index.apply(changes))
        if not index.needs_reconcile and index.state()["state"] != "unavailable":
            self._done(end)
        for number in syncs:
            self._say({"synced": number})
        with self._woken:
            if not self._everything:  # else it is to be begun, and said
                self._works_since_s = None

    def _report(self, applied: Applied) -> None:
        if self._histories is not None:
            self._histories.note(applied.noted)
            self._histories.write()
        if applied.recorded:
            files = [[os.fsdecode(one.session), os.fsdecode(one.path)] for one in applied.recorded]
            self._say({"recorded": files})

    def _go_through(self, index: Index, steps: Iterator[Applied]) -> None:
        """Everything, in small steps; what happens meanwhile is not kept waiting."""
        with self._woken:
            self._everything = False
            end = self._end
        began_s = time.monotonic()
        for applied in steps:
            self._report(applied)
            self._apply(index)
        self._looked_at_all_s = time.monotonic()
        self._pause_s = max(POLL_S, 10 * (self._looked_at_all_s - began_s))
        if not index.needs_reconcile:
            self._done(end, complete=True)

    def _is_time_to_look(self) -> bool:
        return self._polling and time.monotonic() > self._looked_at_all_s + self._pause_s

    def _tell(self, state: dict[str, Any]) -> None:
        with self._telling:
            self._state = state
            self._say_state()

    def _say_state(self) -> None:
        """Say it if it is another than before; with the lock held."""
        state = self._state
        if state.get("state") == "ok" and self._is_late():
            state = state | LATE
        if state != self._said:
            self._said = state
            self._say({"index": state})

    def _is_late(self) -> bool:
        with self._woken:
            since_s = self._works_since_s or self._waits_since_s
        return since_s is not None and time.monotonic() - since_s > LATE_S

    def _look_for_lateness(self) -> None:
        """A thread of its own: the one that is late may be held up by whatever it looks at."""
        while True:
            time.sleep(LOOK_S)
            with self._telling:
                self._say_state()
