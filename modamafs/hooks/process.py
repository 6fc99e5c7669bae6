"""The process that runs the hooks of a store: one at a time, in order.

Started by a mount's worker, and ends with it, in the middle of a run, too; the next one begins that
run again. Of all mounts of a store one has the lock, and runs them. What was not told yet is kept
where the index is, in ``hooks/``: the outbox of seals (``store/outbox.py``), and ``changes.json``,
up to where the index's journal of changes was told.

Standard input ends with the worker. Each line of standard output is what ``status`` says of hooks.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import logging
import logging.handlers
import os
import select
import sqlite3
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from modamafs.config import (
    HookSection,
    MountSpec,
    load_config,
    load_hooks,
    load_mount_spec,
    read_json,
    state_base,
    write_json,
)
from modamafs.errors import ConfigurationError, DamagedRecord, InvalidRequest, ModamaError
from modamafs.hooks.changed import Gathered, places
from modamafs.hooks.run import Run, run
from modamafs.index.follow import PAGE_LIMIT, follow_command
from modamafs.logs import configure_logging
from modamafs.model import Caller, SealState
from modamafs.placeholders import filled
from modamafs.sealing.place import SESSION_DEPTH, Place
from modamafs.store.backing import Store
from modamafs.store.outbox import Event, Outbox, hooks_dir

log = logging.getLogger("modamafs.hooks")

LOOK_S = 1.0
"""How often it is looked whether something has happened."""
MERGE_S = 3.0
"""What changes in this time after a first change is told at once."""
SAVE_AFTER = 10_000
"""Changes that concern no hook, after which it is noted that they were looked at."""
LOG_BYTES = 1 << 20
"""Of hooks.log, and of the one before it."""
NOT_YET = (SealState.SEALING.value, SealState.UNSEALING.value)
ROOT = Caller(0, 0)
NO_POSITION = "lost:0"
"""One that no index knows."""


class Told(msgspec.Struct, frozen=True):
    """``changes.json``: up to where the journal of changes was told."""

    position: str


def main(arguments: list[str] | None = None) -> int:
    """The process's whole life."""
    parser = argparse.ArgumentParser(prog="python -m modamafs.hooks")
    parser.add_argument("--runtime", type=Path, required=True)
    parser.add_argument("--watched", action="store_true")
    options = parser.parse_args(arguments)
    try:
        return _serve(options)
    except FileNotFoundError:
        if options.runtime.exists():
            raise
        return 0  # unmounted meanwhile


def _serve(options: argparse.Namespace) -> int:
    spec = load_mount_spec(options.runtime)
    configure_logging(spec.log_level)
    with Store(Path(spec.store)) as store:
        try:
            hooks = load_hooks(store.path)
        except ConfigurationError as error:
            log.warning("hooks-ignored reason=%s", error.message)
            _say({"state": "refused", "message": error.message})
            _is_over(None)
            return 0
        base = state_base(load_config(store.path))
        directory = hooks_dir(store, base)
        Hooks(spec, options.runtime, store, hooks, directory, is_watched=options.watched).go_on()
    return 0


class Hooks:
    """See above."""

    def __init__(
        self,
        spec: MountSpec,
        runtime: Path,
        store: Store,
        hooks: Mapping[str, HookSection],
        directory: Path,
        *,
        is_watched: bool,
    ) -> None:
        self._spec = spec
        self._store = store
        self._hooks = hooks
        self._directory = directory
        self._outbox = Outbox(directory)
        self._runs = _run_log(runtime / "hooks.log")
        self._runtime = runtime
        self._mount = runtime.stat().st_ino
        self._wants_changes = any("changed" in hook.on for hook in hooks.values())
        self._follows: _Follower | None = None
        """Made when it has the lock: until then another process moves the position on."""
        self._is_watched = is_watched
        self._due = 0
        self._lock_fd: int | None = None
        self._said: dict[str, Any] = {}
        self._running: str | None = None
        self._failures = 0
        self._last_failure: dict[str, Any] | None = None

    def go_on(self) -> None:
        """Until the worker has ended, or the mount."""
        while self._is_mounted():
            if self._has_lock():
                try:
                    if not (self._tell_of_seals() and self._tell_of_changes()):
                        return
                except OSError as error:
                    log.error("hooks-failed error=%s", error)
            self._say_state()
            if _is_over(LOOK_S):
                return

    def _is_mounted(self) -> bool:
        """Whether it is; a lazily unmounted one leaves the hooks to the next."""
        try:
            return self._runtime.stat().st_ino == self._mount
        except FileNotFoundError:
            return False

    def _has_lock(self) -> bool:
        """Whether this process is the one that runs the store's hooks.

        The keeper of a run has the same lock: nothing is begun before it has ended.
        """
        if self._lock_fd is not None:
            return True
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(self._directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            log.error("hooks-failed error=%s", error)
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return False
        self._lock_fd = fd
        if self._wants_changes and self._spec.index_dir:
            path = self._directory / "changes.json"
            self._follows = _Follower(self._store, Path(self._spec.index_dir), path)
        return True

    # ---- what has happened ------------------------------------------------------------------

    def _tell_of_seals(self) -> bool:
        """False: it is over."""
        for name, event in self._outbox.pending():
            # In this order: what does not come to pass is taken back before that can be seen.
            if self._holds_already(event) and self._outbox.has(name):
                if not self._run_all(event.event, event.path, recursive=True):
                    return False
                self._outbox.remove(name)
        return True

    def _holds_already(self, event: Event) -> bool:
        """Whether what is to be told has come to pass; who seals is interrupted, or at it."""
        try:
            with Place(self._store, event.path) as place:
                record = place.read()
        except (InvalidRequest, DamagedRecord, OSError):  # removed, or moved, since
            return True
        return record is None or record.get("id") != event.seal_id or record["state"] not in NOT_YET

    def _tell_of_changes(self) -> bool:
        """False: it is over."""
        follows = self._follows
        if follows is None:
            # Who wants to know later is told of what happens from then on.
            (self._directory / "changes.json").unlink(missing_ok=True)
            return True
        due = follows.due()
        self._due = len(due)
        for path, recursive in due.items():
            if not self._run_all("changed", path, recursive=recursive):
                return False
            self._due -= 1
        follows.save()
        return True

    # ---- running ----------------------------------------------------------------------------

    def _run_all(self, event: str, path: bytes, *, recursive: bool) -> bool:
        """Run every hook for an event. False: it is over, and not all were run."""
        for name, hook in self._hooks.items():
            if event not in hook.on:
                continue
            values = self._values(name, event, path, recursive=recursive)
            self._running = name
            self._say_state()
            ended = run(
                [filled(argument, values) for argument in hook.command],
                {b"MODAMAFS_" + key.upper().encode(): value for key, value in values.items()},
                hook.user,
                hook.timeout_s,
                sys.stdin.fileno(),
            )
            self._running = None
            if ended is None:
                return False
            self._note(name, event, path, ended)
        return True

    def _values(self, hook: str, event: str, path: bytes, *, recursive: bool) -> dict[str, bytes]:
        parts = path.split(b"/")
        session = b"/".join(parts[:SESSION_DEPTH]) if len(parts) >= SESSION_DEPTH else b""
        return {
            "event": event.encode(),
            "path": path,
            "session": session,
            "recursive": b"1" if recursive else b"0",
            "store": os.fsencode(self._spec.store),
            "mountpoint": os.fsencode(self._spec.mountpoint),
            "hook": hook.encode(),
        }

    def _note(self, hook: str, event: str, path: bytes, ended: Run) -> None:
        """A line in hooks.log, and of failures in ``status``, too."""
        shown = os.fsdecode(path)
        why = "timed out" if ended.timed_out else ended.error
        self._runs.log(
            logging.INFO if ended.ok else logging.WARNING,
            "hook=%s event=%s path=%r status=%s seconds=%.3f%s output=%r",
            hook, event, shown, ended.status, ended.seconds,
            f" why={why!r}" if why else "", ended.output.decode(errors="backslashreplace"),
        )  # fmt: skip
        if not ended.ok:
            self._failures += 1
            self._last_failure = {
                "at": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
                "hook": hook,
                "event": event,
                "path": shown,
                "status": ended.status,
                "message": why or f"exit status {ended.status}",
            }

    # ---- status -----------------------------------------------------------------------------

    def _say_state(self) -> None:
        pending = 0
        if self._lock_fd is not None:
            gathered = self._follows.count if self._follows else 0
            pending = self._outbox.count() + gathered + self._due
        state = {
            "state": "elsewhere" if self._lock_fd is None else "ok",
            "message": self._message(),
            "events": {name: list(hook.on) for name, hook in self._hooks.items()},
            "pending": pending,
            "running": self._running,
            "failures": self._failures,
            "last_failure": self._last_failure,
        }
        if state != self._said:
            self._said = state
            _say(state)

    def _message(self) -> str:
        if self._lock_fd is None:
            return "another mount of the store runs them"
        if self._wants_changes:
            if self._follows is None:
                return "nobody is told of changes: the store has no index"
            if self._follows.trouble:
                return self._follows.trouble
            if not self._is_watched:
                return "the store is not watched: what is done through mounts is told, too"
        return ""


class _Follower:
    """Reads the index's journal of changes, and gathers what came from outside."""

    def __init__(self, store: Store, index_dir: Path, path: Path) -> None:
        self._store = store
        self._index_dir = index_dir
        self._path = path
        self._gathered = Gathered()
        self._since_s = 0.0
        self._read = self._saved = self._saved_position()
        self._has_told = False
        self.trouble = ""
        """Why nothing can be read just now."""

    @property
    def count(self) -> int:
        """Of directories that are to be told."""
        return len(self._gathered)

    def due(self) -> dict[bytes, bool]:
        """The directories to tell of now; nothing while more may come. ``save`` it then."""
        try:
            self._gather()
            self.trouble = ""
        except (ModamaError, sqlite3.Error, OSError) as error:
            self.trouble = f"nobody is told of changes: {error}"
        if not self._gathered or time.monotonic() < self._since_s + MERGE_S:
            return {}
        self._has_told = True
        return self._gathered.take()

    def _gather(self) -> None:
        """All that was written since. ModamaError: there is no index; sqlite3.Error."""
        while True:
            since = self._read
            arguments = {"since": since, "limit": PAGE_LIMIT}
            page = follow_command(self._store, self._index_dir, arguments, ROOT)
            lost = [{"event": "lost", "path": "", "kind": None, "outside": True}]
            for change in lost if page["lost"] else page["changes"]:
                if change["outside"]:
                    if not self._gathered:
                        self._since_s = time.monotonic()
                    for path, recursive in places(change):
                        self._gathered.add(path, recursive)
            self._read = page["position"]
            if since is None:
                self._write()
            if self._read == since or page["lost"] or since is None:
                return

    def save(self) -> None:
        """All that was due is told: write down so. OSError."""
        if self._gathered or self._read is None:
            return
        if self._has_told or _number(self._read) - _number(self._saved) >= SAVE_AFTER:
            self._write()

    def _write(self) -> None:
        write_json(self._path, msgspec.to_builtins(Told(self._read or "")))
        self._saved, self._has_told = self._read, False

    def _saved_position(self) -> str | None:
        """None: nobody has followed changes yet."""
        try:
            return read_json(self._path, Told).position
        except FileNotFoundError:
            return None
        except ConfigurationError as error:  # cut off, as by a power failure
            log.warning("position-lost error=%s", error.message)
            return NO_POSITION


def _number(position: str | None) -> int:
    return int(position.rpartition(":")[2]) if position else 0


def _run_log(path: Path) -> logging.Logger:
    """hooks.log, for root to read."""
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
    handler = logging.handlers.RotatingFileHandler(
        path, maxBytes=LOG_BYTES, backupCount=1, encoding="utf-8", errors="backslashreplace"
    )
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    runs = logging.getLogger("modamafs.hooks.runs")
    runs.addHandler(handler)
    runs.setLevel(logging.INFO)
    runs.propagate = False
    return runs


def _is_over(wait_s: float | None) -> bool:
    """Wait for the end of the worker, but no longer than that (None: until then)."""
    poller = select.poll()
    poller.register(sys.stdin.fileno(), select.POLLIN)
    return bool(poller.poll(None if wait_s is None else wait_s * 1000))


def _say(state: dict[str, Any]) -> None:
    with contextlib.suppress(BrokenPipeError):  # the worker is gone, which is noticed
        sys.stdout.buffer.write(json.dumps(state).encode() + b"\n")
        sys.stdout.buffer.flush()
