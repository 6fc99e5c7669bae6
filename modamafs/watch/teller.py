"""Telling the kernel what to forget, without waiting for a directory that somebody holds.

The kernel takes a directory's lock for it, and whoever lists the directory has that lock: for as
long as he likes, if he reads the listing into memory of his own making. So every notification is
sent by a thread that may be left behind with it. What concerns the same directory waits with it.
So it is with everything that is done to directories of the mount; see ``nudger.py``.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from typing import Generic, TypeVar

Message = TypeVar("Message", bound=Hashable)

log = logging.getLogger("modamafs.watcher")

PATIENCE_S = 0.1
"""For a thread to get on; about what a change may take until it is seen."""
MOST_HELD = 32
"""Directories that are waited for at a time."""
MOST_WAITING = 10_000
"""Notifications that wait for one."""


class _Batch(Generic[Message]):
    """What one thread is to send."""

    def __init__(self, messages: Iterable[Message]) -> None:
        self.left = deque(messages)
        self.node = 0
        """What the message that is being sent is about."""
        self.moved_on = threading.Event()
        """Set after each message."""
        self.is_left_behind = False
        self.is_done = False


class Teller(Generic[Message]):
    """See the module. May be used by several threads."""

    def __init__(self, send: Callable[[Message], None], node_of: Callable[[Message], int]) -> None:
        """``send`` may wait for the directory that ``node_of`` names (0: for none)."""
        self._send_one = send
        self._node_of = node_of
        self._telling = threading.Lock()
        self._lock = threading.Lock()
        self._held: dict[int, dict[Message, None]] = {}
        """What waits for a directory, by its node; each once."""
        self._error: OSError | None = None
        self._has_dropped = False

    @property
    def is_behind(self) -> bool:
        """Whether something waits."""
        return bool(self._held)

    @property
    def has_dropped(self) -> bool:
        """Whether something is not going to be told: more was held than is waited for."""
        return self._has_dropped

    def starts_again(self) -> bool:
        """Whether something was dropped, and nothing is held any more: everything is to be told."""
        with self._lock:
            again = self._has_dropped and not self._held
            if again:
                self._has_dropped = False
            return again

    def tell(self, messages: Iterable[Message]) -> None:
        """Return when all are sent, but for what waits for a directory.

        OSError: ENODEV, the mount is gone.
        """
        with self._telling:
            batch: _Batch[Message] | None = _Batch(messages)
            while batch is not None:
                batch = self._send(batch)
        if self._error is not None:
            raise self._error

    def _send(self, batch: _Batch[Message]) -> _Batch[Message] | None:
        """None: done. Or what another thread is to go on with."""
        thread = threading.Thread(target=self._run, args=(batch,), daemon=True)
        thread.start()
        while True:
            thread.join(PATIENCE_S)
            if not thread.is_alive():
                return None
            if batch.moved_on.is_set():
                batch.moved_on.clear()
                continue
            with self._lock:
                if batch.moved_on.is_set() or batch.is_done:
                    continue
                batch.is_left_behind = True
                rest = _Batch(batch.left)
                batch.left.clear()
                self._held[batch.node] = {}
            log.info("directory-held node=%d", batch.node)  # as while a worker is restarted
            return rest

    def _run(self, batch: _Batch[Message]) -> None:
        """A thread."""
        try:
            while (message := self._next(batch)) is not None:
                self._send_one(message)
                with self._lock:
                    batch.moved_on.set()
        except OSError as error:
            with self._lock:
                self._error = error
                if batch.is_left_behind:
                    del self._held[batch.node]

    def _next(self, batch: _Batch[Message]) -> Message | None:
        with self._lock:
            if batch.is_left_behind:
                waiting = self._held[batch.node]
                if waiting:
                    message = next(iter(waiting))
                    del waiting[message]
                    return message
                del self._held[batch.node]
                return None
            while batch.left:
                message = batch.left.popleft()
                batch.node = self._node_of(message)
                if batch.node in self._held:
                    self._wait(self._held[batch.node], message)
                elif len(self._held) >= MOST_HELD:
                    self._has_dropped = True
                else:
                    return message
            batch.is_done = True
            return None

    def _wait(self, waiting: dict[Message, None], message: Message) -> None:
        if len(waiting) < MOST_WAITING:
            waiting[message] = None
        else:
            self._has_dropped = True
