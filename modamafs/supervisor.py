"""Keeps a mount alive: holds ``/dev/fuse``, starts the worker, and the next one when it dies.

It does nothing else, so that it never dies itself: one thread, one ``poll``, nothing that could
wait for the mount (what might, ``stat`` and ``umount``, is done in a child process).

A *standby* has everything imported and waits to be told to go, so that the gap after a kill is
short. It talks through its stdin, a socket: it sends ``r`` when it is warm, and goes when it
receives ``g``; at the end of file it exits. See ``docs/design/contracts.md``.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import errno
import fcntl
import functools
import json
import logging
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from modamafs import mounting
from modamafs.config import (
    Config,
    MountSpec,
    index_base,
    load_config,
    load_mount_spec,
    read_json,
    save_mount_spec,
    write_json,
)
from modamafs.errors import ConfigurationError, MountRefused
from modamafs.index.database import index_dir
from modamafs.logs import configure_logging
from modamafs.store import views
from modamafs.store.backing import Store
from modamafs.watch.group import open_group
from modamafs.watch.log import WATCH_GAP, WATCH_LOG

LOG = logging.getLogger("modamafs.supervisor")

EXIT_PLANNED = 75
"""EX_TEMPFAIL: the worker ended because it was asked to, the mount goes on."""
EXIT_GAVE_UP = 3

READY_TIMEOUT_S = 60.0
"""A new mount that does not answer by then has failed."""
GRACE_S = 10.0
"""A worker that was asked to end, or a standby that was to become warm, has this long."""
STANDBY_DELAY_S = 0.25
"""The next standby leaves the processor to the worker that has just started."""
STANDBY_RETRY_S = 10.0
STABLE_S = 0.5
"""A worker that lived shorter than this had a short life."""
SHORT_LIVES_LIMIT = 10
"""Up to so many short lives in a row, the next worker is started at once; then come pauses."""
LONGEST_PAUSE_S = 2.0
DEATHS_LIMIT = 20
DEATHS_WINDOW_S = 60.0
"""More deaths than the limit within the window: no worker will do."""
DETACHED = "~"
"""In the name of a runtime directory; in a mount point's escaped name it is escaped."""

FUSE_HAS_RESEND = 1 << 39

WORKER = (sys.executable, "-P", "-m", "modamafs.worker")


class SupervisorState(msgspec.Struct, kw_only=True):
    """``supervisor.json``: what the supervisor says of itself."""

    supervisor_pid: int
    supervisor_started: int
    """Start time in clock ticks since boot: a process number alone may be somebody else's."""
    worker_pid: int = 0
    """0 between two workers."""
    restarts: int = 0
    planned: int = 0
    """Planned restarts that have come to their end, one way or the other."""
    state: str = "starting"
    """starting, running, restarting, stopping, detached (unmounted, but in use), failed."""
    error: str | None = None
    """Why the last planned restart, or the mount, failed."""
    immutable_flag: bool = False
    """Files of the store can be made immutable."""
    guard: str | None = None
    """What the guard on the mount point lacks; None: nothing, or it was not wanted."""


def load_state(runtime: Path) -> SupervisorState:
    """Read ``supervisor.json``; ENOENT: there is no supervisor yet."""
    return read_json(runtime / "supervisor.json", SupervisorState)


def survives_worker(runtime: Path) -> bool:
    """Whether the kernel gives a new worker the requests that a killed one has left unanswered.

    If not, whoever waits for one of them would wait for ever: better an end to the mount.
    """
    try:
        saved = (runtime / "init.bin").read_bytes()  # struct saved_init in fuse/_channel.c
    except FileNotFoundError:
        return False
    _, answered, agreed = struct.unpack_from("=IIQ", saved)
    return bool(answered and agreed & FUSE_HAS_RESEND)


def is_detached(runtime: Path) -> bool:
    """Whether it is that of a mount that is gone, but for files that are still open."""
    return DETACHED in runtime.name


def is_alive(state: SupervisorState) -> bool:
    """Whether the supervisor that wrote ``state`` still runs."""
    return _start_time(state.supervisor_pid) == state.supervisor_started


def send_signal(state: SupervisorState, number: signal.Signals) -> None:
    """Signal the supervisor that wrote ``state``; ESRCH when it is gone."""
    fd = os.pidfd_open(state.supervisor_pid)
    try:
        if not is_alive(state):  # asked while the pidfd holds the process number
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
        signal.pidfd_send_signal(fd, number)
    finally:
        os.close(fd)


def _start_time(pid: int) -> int | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, *fields = text.rpartition(b")")[2].split()
    return None if state in b"ZX" else int(fields[18])


# --- systemd (sd_notify(3), sd_listen_fds(3)) -----------------------------------------------------


class ServiceManager:
    """The service manager's end; says nothing where there is none."""

    def __init__(self) -> None:
        self._address = os.environ.pop("NOTIFY_SOCKET", "")

    def notify(self, *assignments: str, fds: Sequence[int] = ()) -> None:
        """Send ``NAME=value`` lines, and descriptors with them."""
        if not self._address:
            return
        address = self._address
        if address.startswith("@"):
            address = f"\0{address[1:]}"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifier:
            try:
                notifier.connect(address)
                socket.send_fds(notifier, ["\n".join(assignments).encode()], list(fds))
            except OSError as error:
                LOG.warning("notify-failed address=%s error=%s", self._address, error)


def take_stored_fd(name: str) -> int | None:
    """Take the descriptor ``name`` back from the service manager; others are closed."""
    environment = {k: os.environ.pop(f"LISTEN_{k}", "") for k in ("PID", "FDS", "FDNAMES")}
    if environment["PID"] != str(os.getpid()):
        return None
    taken = None
    for fd, fd_name in enumerate(environment["FDNAMES"].split(":")[: int(environment["FDS"])], 3):
        if fd_name == name and taken is None:
            os.set_inheritable(fd, False)
            taken = fd
        else:
            os.close(fd)
    return taken


# --- from nothing to a mount ----------------------------------------------------------------------


class Prepared(NamedTuple):
    """A mount that no worker serves yet."""

    fuse_fd: int
    state: SupervisorState


def prepare(spec: MountSpec, runtime: Path) -> Prepared:
    """Check everything, then make the runtime directory, the guard and the mount: all, or none.

    ``mount.json`` then has what the view says, too. Raises ``MountRefused``.
    """
    spec = views.applied(spec)
    mounting.check(spec)
    with Store(Path(spec.store)) as store:
        store.check()
        config = load_config(Path(spec.store))
        check_names(_root_of(spec), config)
        above = index_base(config)
        if above is not None:
            spec = msgspec.structs.replace(spec, index_dir=str(index_dir(store, above)))
    runtime.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    with _exclusive(runtime.parent / ".lock"), contextlib.ExitStack() as undo:
        mounting.check(spec)  # again: somebody may have mounted while we waited for the lock
        _clear_leftovers(runtime)
        runtime.mkdir(mode=0o755)
        undo.callback(shutil.rmtree, runtime)
        state = SupervisorState(
            supervisor_pid=0,
            supervisor_started=0,
            immutable_flag=not spec.read_only and mounting.takes_immutable_flag(Path(spec.store)),
        )
        if spec.guard:
            state.guard = mounting.guard(spec.mountpoint)
            undo.callback(mounting.unguard, spec.mountpoint)
            if state.guard:
                LOG.info("guard-incomplete mountpoint=%s reason=%s", spec.mountpoint, state.guard)
        save_mount_spec(spec, runtime)
        write_json(runtime / "supervisor.json", msgspec.to_builtins(state))
        fuse_fd = mounting.mount(spec)
        undo.pop_all()
    return Prepared(fuse_fd, state)


def _root_of(spec: MountSpec) -> Path:
    """The directory of the store that becomes the mount's root."""
    only = spec.shows.projects if spec.shows and spec.shows.root_ino else ("",)
    return Path(spec.store, only[0])


def check_names(root: Path, config: Config) -> None:
    """MountRefused: what is mounted has an entry where the mount shows a tree of its own."""
    for section, name in (("landing", config.landing.name), ("views", config.views.name)):
        if name and os.path.lexists(root / name):
            raise MountRefused(
                f"{root} has an entry {name!r}, where the mount shows its {section}: rename that "
                "entry, or set another name in the store's .modama/config.toml, "
                f'[{section}] name = "…" ("" for none)'
            )


def tear_down(mountpoint: str, runtime: Path) -> None:
    """Undo ``prepare`` when no supervisor is there to do it, and the mount is gone."""
    mounting.unguard(mountpoint)
    shutil.rmtree(runtime, ignore_errors=True)


@contextlib.contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _clear_leftovers(runtime: Path) -> None:
    """Remove the runtime directory of a mount that is gone; its supervisor may be tidying up."""
    deadline = time.monotonic() + GRACE_S
    while runtime.exists():
        try:
            state = load_state(runtime)
        except (FileNotFoundError, ConfigurationError):
            state = None
        if state is None or not is_alive(state):
            shutil.rmtree(runtime, ignore_errors=True)
        elif time.monotonic() > deadline:
            raise MountRefused(
                f"process {state.supervisor_pid} still unmounts what was there before: "
                f"wait for it, or end it with 'kill {state.supervisor_pid}'"
            )
        else:
            time.sleep(0.01)


def adopt(spec: MountSpec, runtime: Path) -> tuple[MountSpec, Prepared] | None:
    """Take over the mount that an earlier supervisor left with the service manager.

    What it was mounted with stays. None: there is nothing to take over; a mount whose daemon is
    dead was taken away then, so that the service can start again.
    """
    managed = "NOTIFY_SOCKET" in os.environ
    fuse_fd = take_stored_fd("fuse")
    there = mounting.mounted_at(spec.mountpoint)
    if there and there.fstype == mounting.FSTYPE:
        if fuse_fd is not None and not _is_dead(fuse_fd):
            try:
                prepared = Prepared(fuse_fd, load_state(runtime))
                return load_mount_spec(runtime), prepared
            except (FileNotFoundError, ConfigurationError) as error:
                LOG.warning("adoption-failed runtime=%s error=%s", runtime, error)
                mounting.unmount(spec.mountpoint, lazy=True)
        elif managed and mounting.is_wedged(spec.mountpoint):
            LOG.warning("dead-mount-removed mountpoint=%s", spec.mountpoint)
            mounting.unmount(spec.mountpoint, lazy=True)
    if fuse_fd is not None:
        os.close(fuse_fd)
    return None


def _is_dead(fuse_fd: int) -> bool:
    poller = select.poll()
    poller.register(fuse_fd, 0)
    return bool(poller.poll(0))  # POLLERR: the connection is aborted


def _open_watch(spec: MountSpec, runtime: Path, *, after_gap: bool) -> int | None:
    """The watch on the store, which the workers share one after the other; None: there is none.

    It knows nothing of what was before it: nor does what an earlier one has left behind.
    ``after_gap``: by then the kernel may have been told things that have changed meanwhile.
    """
    (runtime / WATCH_LOG).unlink(missing_ok=True)
    if after_gap:
        (runtime / WATCH_GAP).touch()
    try:
        return open_group(Path(spec.store))
    except OSError as error:
        LOG.warning("store-not-watched store=%s error=%s", spec.store, error)
        return None


# --- the supervisor -------------------------------------------------------------------------------


class Worker(NamedTuple):
    """A worker process; ``channel`` is the supervisor's end of a standby's stdin."""

    process: subprocess.Popen[bytes]
    pidfd: int
    channel: socket.socket | None


class Supervisor:
    """One mount's supervisor; ``run`` returns the exit status when the mount is gone.

    ``report`` is called once: with None when the mount answers, or with why it never will.
    """

    def __init__(
        self,
        spec: MountSpec,
        runtime: Path,
        prepared: Prepared,
        *,
        command: Sequence[str] = WORKER,
        report: Callable[[str | None], None] | None = None,
        adopted: bool = False,
    ) -> None:
        there = mounting.mounted_at(spec.mountpoint)
        if there is None:
            raise MountRefused(f"nothing is mounted on {spec.mountpoint}")
        self._spec = spec
        self._mount = there
        self._runtime = runtime
        self._fuse_fd = prepared.fuse_fd
        self._watch_fd = _open_watch(spec, runtime, after_gap=adopted) if spec.watch else None
        self._command = command
        self._report = report
        self._manager = ServiceManager()
        self._state = prepared.state
        self._state.supervisor_pid = os.getpid()
        self._state.supervisor_started = _start_time(os.getpid()) or 0
        self._state.worker_pid = 0
        self._state.restarts += adopted
        self._answered = adopted  # from then on no single death of a worker ends the mount
        self._detached = False
        self._worker: Worker | None = None
        self._worker_since = 0.0
        self._standby: Worker | None = None
        self._planned = False
        self._helpers: set[int] = set()
        self._deaths: collections.deque[float] = collections.deque(maxlen=DEATHS_LIMIT + 1)
        self._short_lives = 0
        self._poller = select.poll()
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._timers: dict[str, tuple[float, Callable[[], None]]] = {}
        self._exit_status: int | None = None

    def run(self) -> int:
        """Serve until the mount is gone (0), or no worker can be kept running (3)."""
        with self._signals() as wakeup, open("/proc/self/mountinfo", "rb") as mountinfo:
            self._watch(wakeup.fileno(), select.POLLIN, functools.partial(self._on_signal, wakeup))
            # The kernel says POLLPRI when something was mounted or unmounted (proc_pid_mounts(5)).
            self._watch(mountinfo.fileno(), select.POLLPRI, self._on_mounts_changed)
            self._manager.notify("FDSTORE=1", "FDNAME=fuse", fds=[self._fuse_fd])
            if not self._answered:
                self._set_timer("ready", READY_TIMEOUT_S, self._on_not_ready)
            self._start_worker()
            self._probe()
            while self._exit_status is None:
                self._run_once()
        return self._exit_status

    # -- events

    def _run_once(self) -> None:
        soonest = min((when for when, _ in self._timers.values()), default=None)
        timeout_ms = None if soonest is None else max(0.0, soonest - time.monotonic()) * 1000 + 1
        callbacks = [self._callbacks[fd] for fd, _ in self._poller.poll(timeout_ms)]
        now = time.monotonic()
        for name in [name for name, (when, _) in self._timers.items() if when <= now]:
            callbacks.append(self._timers.pop(name)[1])
        for callback in callbacks:
            if self._exit_status is not None:
                return
            try:
                callback()
            except Exception:
                LOG.exception("event-failed callback=%s", callback)

    def _watch(self, fd: int, events: int, callback: Callable[[], None]) -> None:
        self._callbacks[fd] = callback
        self._poller.register(fd, events)

    def _unwatch(self, fd: int) -> None:
        del self._callbacks[fd]
        self._poller.unregister(fd)

    def _set_timer(self, name: str, delay_s: float, callback: Callable[[], None]) -> None:
        self._timers[name] = (time.monotonic() + delay_s, callback)

    def _drop_timers(self, *names: str) -> None:
        for name in names:
            self._timers.pop(name, None)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[socket.socket]:
        reader, writer = socket.socketpair()
        with reader, writer:
            reader.setblocking(False)
            writer.setblocking(False)
            signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
            handled = (signal.SIGHUP, signal.SIGTERM, signal.SIGINT)
            before = {number: signal.signal(number, lambda *_: None) for number in handled}
            try:
                yield reader
            finally:
                signal.set_wakeup_fd(-1)
                for number, handler in before.items():
                    signal.signal(number, handler)

    def _on_signal(self, wakeup: socket.socket) -> None:
        received = set(wakeup.recv(4096))
        if received & {signal.SIGTERM, signal.SIGINT}:
            self._stop()
        elif signal.SIGHUP in received:
            self._plan_restart()

    def _in_child(self, action: Callable[[], None], done: Callable[[bool], None]) -> None:
        """Carry out in a child process what may wait for the mount."""
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                signal.set_wakeup_fd(-1)
                action()
                status = 0
            except OSError as error:
                LOG.error("helper-failed error=%s", error)
            finally:
                os._exit(status)
        pidfd = os.pidfd_open(pid)
        self._helpers.add(pid)

        def ended() -> None:
            self._unwatch(pidfd)
            os.close(pidfd)
            self._helpers.discard(pid)
            done(os.waitpid(pid, 0)[1] == 0)

        self._watch(pidfd, select.POLLIN, ended)

    # -- workers

    def _spawn(self, *, standby: bool) -> Worker:
        arguments = ["--runtime", str(self._runtime), "--fd", str(self._fuse_fd)]
        fds = [self._fuse_fd]
        if self._watch_fd is not None:
            arguments += ["--watch-fd", str(self._watch_fd)]
            fds.append(self._watch_fd)
        ours = theirs = None
        if standby:
            arguments.append("--standby")
            ours, theirs = socket.socketpair()
            ours.setblocking(False)
        try:
            process = subprocess.Popen(
                [*self._command, *arguments],
                stdin=theirs.fileno() if theirs else subprocess.DEVNULL,
                pass_fds=fds,
                cwd="/",
                process_group=0,  # Ctrl-C is for the supervisor
            )
        except OSError:
            if ours:
                ours.close()
            raise
        finally:
            if theirs:
                theirs.close()
        worker = Worker(process, os.pidfd_open(process.pid), ours)
        self._watch(worker.pidfd, select.POLLIN, functools.partial(self._on_exit, worker))
        return worker

    def _start_worker(self) -> None:
        """Let the standby go, or start a worker where there is none."""
        self._drop_timers("pause", "grace")
        self._worker_since = time.monotonic()
        standby, self._standby = self._standby, None
        if standby and self._let_go(standby):
            self._worker = standby
        else:
            try:
                self._worker = self._spawn(standby=False)
            except OSError as error:
                self._on_worker_died(f"could not be started: {error}")
                return
        self._state.worker_pid = self._worker.process.pid
        self._state.state = "detached" if self._detached else "running"
        if self._planned:
            self._end_planned(None)
        self._record()
        LOG.info(
            "worker-started pid=%d standby=%s", self._state.worker_pid, self._worker is standby
        )
        if self._answered:
            self._set_timer("standby", STANDBY_DELAY_S, self._start_standby)

    def _let_go(self, standby: Worker) -> bool:
        assert standby.channel
        try:
            standby.channel.send(b"g")
        except OSError:  # it has just died as well
            standby.process.kill()
            return False
        return True  # the channel stays: what it still says must not fail

    def _start_standby(self) -> None:
        if self._standby or self._detached or self._state.state == "stopping":
            return
        try:
            self._standby = standby = self._spawn(standby=True)
        except OSError as error:
            self._on_standby_failed(f"could not be started: {error}")
            return
        assert standby.channel
        heard = functools.partial(self._on_standby_message, standby)
        self._watch(standby.channel.fileno(), select.POLLIN, heard)

    def _on_standby_message(self, standby: Worker) -> None:
        assert standby.channel
        try:
            warm = standby.channel.recv(16) != b""
        except OSError:
            warm = False
        if not warm:
            self._close_channel(standby)
        elif self._planned and standby is self._standby:
            self._drop_timers("warm")
            self._end_worker()

    def _close_channel(self, worker: Worker) -> None:
        if worker.channel and worker.channel.fileno() >= 0:
            if worker.channel.fileno() in self._callbacks:
                self._unwatch(worker.channel.fileno())
            worker.channel.close()

    def _retire_standby(self) -> None:
        standby, self._standby = self._standby, None
        self._drop_timers("standby")
        if standby:
            standby.process.kill()

    def _on_exit(self, worker: Worker) -> None:
        status = worker.process.wait()
        self._unwatch(worker.pidfd)
        os.close(worker.pidfd)
        self._close_channel(worker)
        if worker is self._standby:
            self._standby = None
            self._on_standby_failed(_describe(status))
        elif worker is self._worker:
            self._worker = None
            self._state.worker_pid = 0
            self._on_worker_exit(status)

    def _on_worker_exit(self, status: int) -> None:
        if status == 0 or _is_dead(self._fuse_fd):
            if self._is_mounted():
                self._give_up("the kernel ended the connection, and the mount is still there")
            else:
                self._finish()
        elif self._state.state == "stopping":
            if not self._is_mounted():
                self._finish()
        elif status == EXIT_PLANNED or self._planned:
            LOG.info("worker-ended how=%s", _describe(status))
            self._state.restarts += 1
            self._start_worker()
        else:
            self._state.restarts += 1
            self._on_worker_died(_describe(status))

    def _on_worker_died(self, how: str) -> None:
        if not self._answered:
            self._give_up(f"the worker {how} before the mount answered{_last_words(self._runtime)}")
            return
        if not survives_worker(self._runtime):
            self._give_up(
                f"the worker {how}, and nothing can hand what it was asked to another one (that "
                "takes Linux 6.9 and the channel)"
            )
            return
        LOG.warning("worker-died how=%s", how)
        now = time.monotonic()
        self._deaths.append(now)
        if len(self._deaths) > DEATHS_LIMIT and now - self._deaths[0] < DEATHS_WINDOW_S:
            self._give_up(f"{len(self._deaths)} workers died within {DEATHS_WINDOW_S:.0f} s")
            return
        lived_s = now - self._worker_since
        self._short_lives = self._short_lives + 1 if lived_s < STABLE_S else 0
        if self._short_lives <= SHORT_LIVES_LIMIT:
            self._start_worker()
            return
        self._state.state = "restarting"
        self._record()
        pause_s = min(LONGEST_PAUSE_S, 0.05 * 2 ** (self._short_lives - SHORT_LIVES_LIMIT))
        self._set_timer("pause", pause_s, self._start_worker)

    def _on_standby_failed(self, how: str) -> None:
        LOG.error("standby-failed how=%s", how)
        self._set_timer("standby", STANDBY_RETRY_S, self._start_standby)
        if self._planned:
            self._end_planned(f"the new worker {how}, so the old one goes on: see its log")

    # -- planned restarts

    def _plan_restart(self) -> None:
        """Start a worker with what is on the disk now; when it is warm, end the old one."""
        if self._planned or self._state.state == "stopping":
            return
        self._planned = True
        if self._detached:
            self._end_planned("it is unmounted, and only there for files that are still open")
            return
        self._state.state = "restarting"
        self._record()
        self._retire_standby()
        self._set_timer("warm", GRACE_S, self._on_not_warm)
        self._start_standby()

    def _on_not_warm(self) -> None:
        self._retire_standby()
        self._on_standby_failed(f"was not ready within {GRACE_S:.0f} s")

    def _end_worker(self) -> None:
        if self._worker:
            self._worker.process.terminate()
            self._set_timer("grace", GRACE_S, self._worker.process.kill)
        else:
            self._start_worker()

    def _end_planned(self, error: str | None) -> None:
        self._drop_timers("warm")
        self._planned = False
        self._state.planned += 1
        self._state.error = error
        if self._worker and not self._detached:
            self._state.state = "running"
        self._record()

    # -- the mount

    def _probe(self) -> None:
        def ask() -> None:
            status = os.stat(self._spec.mountpoint)
            os.statvfs(self._spec.mountpoint)
            if status.st_dev != self._mount.dev:
                raise OSError(errno.ESTALE, "something else is mounted there")

        if self._exit_status is None:
            self._in_child(ask, self._on_probed)

    def _on_probed(self, answers: bool) -> None:
        if answers:
            self._answered = True
            self._drop_timers("ready")
            self._manager.notify("READY=1", f"MAINPID={os.getpid()}", "STATUS=mounted")
            self._tell(None)
            self._set_timer("standby", STANDBY_DELAY_S, self._start_standby)
        elif self._answered:
            self._set_timer("probe", 1.0, self._probe)
        else:
            self._give_up(f"the mount answers with an error{_last_words(self._runtime)}")

    def _on_not_ready(self) -> None:
        words = _last_words(self._runtime)
        self._give_up(f"the mount did not answer within {READY_TIMEOUT_S:.0f} s{words}")

    def _is_mounted(self) -> bool:
        if self._detached:  # for good; the kernel may have given its numbers to another mount
            return False
        ours = (self._mount.mount_id, self._mount.dev)
        return any((mount.mount_id, mount.dev) == ours for mount in mounting.mounts())

    def _on_mounts_changed(self) -> None:
        if self._detached or self._is_mounted():
            return
        if self._state.state == "stopping":
            if self._worker is None:
                self._finish()
            return
        # Unmounted, perhaps lazily: the name and the mount point are free, and the worker goes on
        # for files that are still open, until the kernel ends the connection.
        self._unguard()
        self._detached = True
        self._retire_standby()
        moved = self._runtime.with_name(f"{self._runtime.name}{DETACHED}{os.getpid()}")
        self._runtime.rename(moved)
        self._runtime = moved
        self._state.state = "detached"
        self._record()
        LOG.info("detached mountpoint=%s", self._spec.mountpoint)

    def _stop(self) -> None:
        """Unmount, lazily if it is in use; what is still open after the grace period is lost."""
        if self._state.state == "stopping":
            return
        self._state.state = "stopping"
        self._record()
        self._manager.notify("STOPPING=1")
        self._retire_standby()
        self._drop_timers("ready", "pause", "warm")
        self._set_timer("force", GRACE_S, self._finish)
        if self._is_mounted():
            self._in_child(self._unmount, self._on_unmounted)
        elif self._worker is None:
            self._finish()

    def _unmount(self) -> None:
        try:
            mounting.unmount(self._spec.mountpoint)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            mounting.unmount(self._spec.mountpoint, lazy=True)

    def _on_unmounted(self, done: bool) -> None:
        if not done:
            self._finish()

    # -- the end

    def _finish(self) -> None:
        """Leave nothing behind."""
        self._disconnect()
        if not self._detached:
            self._unguard()
        shutil.rmtree(self._runtime, ignore_errors=True)
        LOG.info("unmounted mountpoint=%s", self._spec.mountpoint)
        self._tell("it was unmounted before it answered")
        self._exit_status = 0

    def _give_up(self, why: str) -> None:
        """End a mount that no worker can serve.

        Once it has answered, the guard stays, so that nobody takes the empty mount point for the
        store, and so do ``supervisor.json`` and the log, until ``modamafs umount`` or ``mount``.
        """
        LOG.critical("gave-up reason=%s", why)
        self._disconnect()
        if self._answered:
            self._state.state = "failed"
            self._state.error = why
            self._record()
        else:
            self._unguard()
            shutil.rmtree(self._runtime, ignore_errors=True)
        self._tell(why)
        self._exit_status = EXIT_GAVE_UP

    def _disconnect(self) -> None:
        """End all children, then the connection, then the mount (which can't wait for it then)."""
        workers = [worker for worker in (self._worker, self._standby) if worker]
        for worker in workers:
            worker.process.kill()
        for pid in self._helpers:
            os.kill(pid, signal.SIGKILL)
        self._manager.notify("FDSTOREREMOVE=1", "FDNAME=fuse")
        os.close(self._fuse_fd)
        if self._watch_fd is not None:
            os.close(self._watch_fd)
        for worker in workers:
            worker.process.wait()
            os.close(worker.pidfd)
            self._close_channel(worker)
        for pid in self._helpers:
            os.waitpid(pid, 0)
        self._state.worker_pid = 0
        if self._is_mounted():
            with _logged("unmount-failed"):
                mounting.unmount(self._spec.mountpoint, lazy=True)

    def _unguard(self) -> None:
        with _logged("guard-not-undone"):
            mounting.unguard(self._spec.mountpoint)

    def _record(self) -> None:
        with _logged("state-not-written"):
            write_json(self._runtime / "supervisor.json", msgspec.to_builtins(self._state))

    def _tell(self, error: str | None) -> None:
        report, self._report = self._report, None
        if report:
            with _logged("nobody-listens"):
                report(error)


@contextlib.contextmanager
def _logged(event: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        LOG.error("%s error=%s", event, error)


def _describe(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    return f"was killed by {signal.Signals(-status).name}"


def _last_words(runtime: Path) -> str:
    """What the log ends with, as it explains best why a worker did not start."""
    try:
        lines = (runtime / "daemon.log").read_text(errors="replace").split("\n")
    except FileNotFoundError:
        return ": see the messages above"
    last = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
    return f": {last}"


# --- as a process of its own ----------------------------------------------------------------------


def launch(runtime: Path, prepared: Prepared) -> None:
    """Start the supervisor as a daemon, and return when the mount answers.

    Raises ``MountRefused`` when it never will; everything is undone then.
    """
    reader, writer = os.pipe()
    log = os.open(runtime / "daemon.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
    fds = ["--fd", str(prepared.fuse_fd), "--report-fd", str(writer)]
    daemon = subprocess.Popen(
        [sys.executable, "-P", "-m", "modamafs.supervisor", "--runtime", str(runtime), *fds],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        pass_fds=[prepared.fuse_fd, writer],
        cwd="/",
        start_new_session=True,
    )
    for fd in (log, writer, prepared.fuse_fd):
        os.close(fd)
    with open(reader, "rb") as pipe:
        answer = pipe.read()
    if not answer:
        how = _describe(daemon.wait())
        words = _last_words(runtime)
        spec = load_mount_spec(runtime)
        mounting.unmount(spec.mountpoint, lazy=True)
        tear_down(spec.mountpoint, runtime)
        raise MountRefused(f"the supervisor {how}{words}")
    if error := json.loads(answer)["error"]:
        daemon.wait()
        raise MountRefused(error)
    daemon.returncode = 0  # not waited for: it is to outlive this process


def run_in_foreground(spec: MountSpec, runtime: Path) -> int:
    """Mount, or take the mount over from the service manager, and serve it; see ``run``.

    Raises ``MountRefused`` when it never answered; everything is undone then.
    """
    adopted = adopt(spec, runtime)
    if adopted:
        spec, prepared = adopted
    else:
        prepared = prepare(spec, runtime)
        spec = load_mount_spec(runtime)
    told: list[str | None] = []
    supervisor = Supervisor(
        spec, runtime, prepared, report=told.append, adopted=adopted is not None
    )
    status = supervisor.run()
    if told and told[0] and status:
        raise MountRefused(told[0])
    return status


def main() -> int:
    """Run one supervisor; ``launch`` starts it like this."""
    parser = argparse.ArgumentParser(prog="python -m modamafs.supervisor")
    parser.add_argument("--runtime", type=Path, required=True)
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--report-fd", type=int, required=True)
    arguments = parser.parse_args()
    for fd in (arguments.fd, arguments.report_fd):
        os.set_inheritable(fd, False)
    spec = load_mount_spec(arguments.runtime)
    configure_logging(spec.log_level)

    def report(error: str | None) -> None:
        with open(arguments.report_fd, "w") as pipe:
            json.dump({"error": error}, pipe)

    prepared = Prepared(arguments.fd, load_state(arguments.runtime))
    return Supervisor(spec, arguments.runtime, prepared, report=report).run()


if __name__ == "__main__":
    sys.exit(main())
