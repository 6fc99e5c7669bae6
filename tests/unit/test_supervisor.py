"""The supervisor with real processes: a worker that only says what becomes of it, on a tmpfs.

Nothing here sleeps: every step waits for what the worker, or the service manager, is told.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from modamafs import mounting, supervisor
from modamafs.config import Config, mount_spec, save_mount_spec, write_json
from modamafs.supervisor import SupervisorState, load_state
from tests.support.mounts import wait_until

pytestmark = pytest.mark.mount  # of a tmpfs: it needs root

PATIENCE_S = 20

WORKER = """
import json, os, signal, socket, struct, sys

events = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
events.connect(os.environ["EVENTS"])
orders = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)

def say(event):
    known = {"event": event, "pid": os.getpid(), "arguments": sys.argv[1:]}
    known["generation"] = open(os.environ["GENERATION"]).read()
    known["environment"] = sorted(os.environ)
    events.send(json.dumps(known).encode())

signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
how = open(os.environ["BEHAVIOUR"]).read()
if "--standby" in sys.argv:
    if how == "broken":
        sys.exit("SyntaxError: invalid syntax")
    say("standby")
    try:
        os.write(0, b"r")
        told = os.read(0, 1)
    except (BrokenPipeError, ConnectionResetError):  # the supervisor is gone
        told = b""
    if told != b"g":
        say("retired")
        sys.exit(0)
runtime = sys.argv[sys.argv.index("--runtime") + 1]
with open(runtime + "/init.bin", "wb") as file:  # the kernel resends, as _channel.c notes it
    file.write(struct.pack("=IIQ", 0, 1, int(os.environ.get("AGREED", 1 << 39))))
say("active")
if how == "crash":
    sys.exit("ModuleNotFoundError: No module named 'pyfuse3'")
number = signal.sigwait([signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
say(signal.Signals(number).name)
sys.exit({signal.SIGTERM: 75, signal.SIGUSR1: 0, signal.SIGUSR2: 1}[number])
"""

DRIVER = """
import json, os, sys
from pathlib import Path
from modamafs import config, supervisor
from modamafs.logs import configure_logging

for name, value in json.loads(os.environ["LIMITS"]).items():
    setattr(supervisor, name, value)
runtime = Path(os.environ["RUNTIME"])
spec = config.load_mount_spec(runtime)
configure_logging("debug")
fd = int(os.environ["FUSE_FD"] or os.open("/dev/null", os.O_RDWR))
os.set_inheritable(fd, False)
adopted = os.environ.get("ADOPTED") == "1"
prepared = supervisor.Prepared(fd, supervisor.load_state(runtime))
report = lambda error: print(json.dumps(error), flush=True)
command = [sys.executable, os.environ["WORKER"]]
sys.exit(supervisor.Supervisor(
    spec, runtime, prepared, command=command, report=report, adopted=adopted).run())
"""


class Stage:
    """A supervisor in a process of its own, and what it and its workers say."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.mountpoint = directory / "mnt"
        self.runtime = directory / "runtime"
        self.limits: dict[str, float] = {"STANDBY_DELAY_S": 0.0}
        self.environment: dict[str, str] = {}
        for path in (self.mountpoint, self.runtime):
            path.mkdir()
        (directory / "worker.py").write_text(WORKER)
        (directory / "driver.py").write_text(DRIVER)
        self._pinned = os.open(self.runtime, os.O_RDONLY | os.O_DIRECTORY)
        self._fuse_fd: int | None = None
        self.behave("well")
        self.install("1")
        self._events = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._events.bind(str(directory / "events"))
        self._events.settimeout(PATIENCE_S)
        self._heard: list[dict[str, Any]] = []
        self._pids: set[int] = set()
        self._process: subprocess.Popen[str] | None = None
        spec = mount_spec(str(directory), str(self.mountpoint), Config())
        save_mount_spec(spec, self.runtime)
        state = SupervisorState(supervisor_pid=0, supervisor_started=0)
        write_json(self.runtime / "supervisor.json", msgspec.to_builtins(state))

    def behave(self, how: str) -> None:
        """What workers do that are started from now on."""
        (self.directory / "behaviour").write_text(how)

    def install(self, generation: str) -> None:
        """Another version of the worker."""
        (self.directory / "generation").write_text(generation)

    def start(self) -> None:
        mounting.guard(str(self.mountpoint))
        mount_tmpfs(self.mountpoint)
        self.start_supervisor()

    def start_unanswered(self) -> None:
        """With a mount that nobody serves."""
        mounting.guard(str(self.mountpoint))
        spec = mount_spec(str(self.directory), str(self.mountpoint), Config())
        self._fuse_fd = mounting.mount(spec)
        self.start_supervisor()

    def start_supervisor(self) -> None:
        variables = {
            "EVENTS": "events", "BEHAVIOUR": "behaviour", "GENERATION": "generation",
            "RUNTIME": "runtime", "WORKER": "worker.py",
        }  # fmt: skip
        environment = {name: str(self.directory / path) for name, path in variables.items()}
        environment["LIMITS"] = json.dumps(self.limits)
        fds = [self._fuse_fd] if self._fuse_fd is not None else []
        environment["FUSE_FD"] = "".join(map(str, fds))
        with (self.directory / "log").open("a") as log:
            self._process = subprocess.Popen(
                [sys.executable, self.directory / "driver.py"],
                env={**os.environ, **environment, **self.environment},
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                pass_fds=fds,
            )
        if fds:
            os.close(fds[0])

    @property
    def process(self) -> subprocess.Popen[str]:
        assert self._process
        return self._process

    def report(self) -> Any:
        """What the supervisor says once: null when the mount answers, or the error."""
        assert self.process.stdout
        return json.loads(self.process.stdout.readline())

    def hear(self, event: str, pid: int | None = None) -> dict[str, Any]:
        """The next event of this kind; others are kept."""
        while True:
            for known in self._heard:
                if known["event"] == event and pid in (None, known["pid"]):
                    self._heard.remove(known)
                    return known
            try:
                self._heard.append(json.loads(self._events.recv(65536)))
                self._pids.add(self._heard[-1]["pid"])
            except TimeoutError:
                raise AssertionError(f"no {event}: {self._heard}\n{self.log()}") from None

    def heard_nothing_of(self, event: str) -> bool:
        return all(known["event"] != event for known in self._heard)

    def state(self) -> SupervisorState:
        """The supervisor's state, wherever the runtime directory is by now."""
        return load_state(Path(f"/proc/self/fd/{self._pinned}"))

    def wait_for_state(self, condition: Callable[[SupervisorState], bool]) -> None:
        """Return when it holds; the file is replaced, which inotify sees."""
        libc = ctypes.CDLL(None, use_errno=True)
        fd = libc.inotify_init1(os.O_CLOEXEC)
        moved_to = 0x80
        try:
            place = f"/proc/self/fd/{self._pinned}".encode()
            assert libc.inotify_add_watch(fd, place, moved_to) >= 0
            while not condition(self.state()):
                assert select.select([fd], [], [], PATIENCE_S)[0], self.log()
                os.read(fd, 65536)
        finally:
            os.close(fd)

    def end(self) -> int:
        """Wait for the supervisor to end by itself."""
        return self.process.wait(timeout=PATIENCE_S)

    def log(self) -> str:
        return (self.directory / "log").read_text()

    def close(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()
            assert self._process.stdout
            self._process.stdout.close()
        for pid in self._pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._events.close()
        os.close(self._pinned)
        with contextlib.suppress(OSError):
            mounting.unmount(str(self.mountpoint), lazy=True)
        mounting.unguard(str(self.mountpoint))


def mount_tmpfs(mountpoint: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mount(b"test", os.fsencode(mountpoint), b"tmpfs", ctypes.c_ulong(0), None) == 0


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    built = Stage(tmp_path)
    yield built
    built.close()


@pytest.fixture
def running(stage: Stage) -> Stage:
    """A supervisor whose mount answers, with a worker and a standby."""
    stage.start()
    assert stage.report() is None
    return stage


def test_a_worker_and_then_a_standby_are_started(running: Stage) -> None:
    active, standby = running.hear("active"), running.hear("standby")
    assert active["arguments"][0:2] == ["--runtime", str(running.runtime)]
    assert active["arguments"][2] == "--fd"
    assert standby["arguments"] == [*active["arguments"], "--standby"]
    state = running.state()
    assert state.worker_pid == active["pid"]
    assert state.supervisor_pid == running.process.pid
    assert (state.state, state.restarts) == ("running", 0)
    assert supervisor.is_alive(state)


def test_killed_workers_are_replaced_by_standbys(running: Stage) -> None:
    active = running.hear("active")
    for count in range(1, 4):
        standby = running.hear("standby")
        os.kill(active["pid"], signal.SIGKILL)
        active = running.hear("active")
        assert active["pid"] == standby["pid"]
        running.wait_for_state(functools.partial(serves, active["pid"]))
        assert running.state().restarts == count


def serves(pid: int, state: SupervisorState) -> bool:
    return state.worker_pid == pid


def test_without_a_standby_a_worker_is_started(stage: Stage) -> None:
    stage.limits["STANDBY_DELAY_S"] = 3600
    stage.start()
    assert stage.report() is None
    first = stage.hear("active")
    os.kill(first["pid"], signal.SIGKILL)
    second = stage.hear("active")
    assert second["pid"] != first["pid"]
    assert "--standby" not in second["arguments"]


def test_both_may_be_killed_at_once(running: Stage) -> None:
    active, standby = running.hear("active"), running.hear("standby")
    for killed in (standby, active):
        os.kill(killed["pid"], signal.SIGKILL)
    third = running.hear("active")
    assert third["pid"] not in (active["pid"], standby["pid"])


def test_a_worker_that_ends_by_itself_is_replaced(running: Stage) -> None:
    active, standby = running.hear("active"), running.hear("standby")
    os.kill(active["pid"], signal.SIGUSR2)
    assert running.hear("active")["pid"] == standby["pid"]


def test_a_planned_restart_takes_what_is_on_the_disk(running: Stage) -> None:
    active, stale = running.hear("active"), running.hear("standby")
    running.install("2")
    running.process.send_signal(signal.SIGHUP)
    fresh = running.hear("standby")
    assert fresh["pid"] != stale["pid"]
    assert fresh["generation"] == "2"
    assert running.hear("SIGTERM")["pid"] == active["pid"]
    assert running.hear("active")["pid"] == fresh["pid"]
    running.hear("standby")
    state = running.state()
    assert (state.restarts, state.planned, state.error) == (1, 1, None)
    assert state.worker_pid == fresh["pid"]


def test_a_broken_upgrade_leaves_the_old_worker(running: Stage) -> None:
    active = running.hear("active")
    running.hear("standby")
    running.behave("broken")
    running.process.send_signal(signal.SIGHUP)
    running.wait_for_state(lambda state: state.planned == 1)
    state = running.state()
    assert "the old one goes on" in (state.error or "")
    assert (state.worker_pid, state.state) == (active["pid"], "running")
    assert running.heard_nothing_of("SIGTERM")
    assert "invalid syntax" in running.log()
    os.kill(active["pid"], signal.SIGKILL)  # and it is still looked after
    running.behave("well")
    assert running.hear("active")["pid"] != active["pid"]


def test_a_worker_that_does_not_end_is_killed(stage: Stage) -> None:
    stage.limits["GRACE_S"] = 0.5
    stage.start()
    assert stage.report() is None
    active, _ = stage.hear("active"), stage.hear("standby")
    os.kill(active["pid"], signal.SIGSTOP)
    stage.process.send_signal(signal.SIGHUP)
    fresh = stage.hear("standby")
    assert stage.hear("active")["pid"] == fresh["pid"]


def test_a_worker_that_always_dies_is_given_up(stage: Stage) -> None:
    stage.limits |= {"DEATHS_LIMIT": 4, "SHORT_LIVES_LIMIT": 2, "LONGEST_PAUSE_S": 0.01}
    stage.start()
    assert stage.report() is None
    active = stage.hear("active")  # it has looked by now how to behave
    stage.behave("crash")
    os.kill(active["pid"], signal.SIGKILL)
    second = stage.hear("active")  # the standby may have looked before
    with contextlib.suppress(ProcessLookupError):
        os.kill(second["pid"], signal.SIGKILL)
    assert stage.end() == supervisor.EXIT_GAVE_UP
    state = stage.state()
    assert (state.state, state.worker_pid) == ("failed", 0)
    assert "5 workers died" in (state.error or "")
    assert mounting.mounted_at(str(stage.mountpoint)) is None
    assert mounting.is_guarded(str(stage.mountpoint)), "an empty directory is not the store"


def test_a_worker_that_can_not_start_fails_the_mount(stage: Stage) -> None:
    stage.behave("crash")
    (stage.runtime / "daemon.log").write_text("Traceback …\nImportError: no pyfuse3\n\n")
    stage.start_unanswered()
    error = stage.report()
    assert "ended with status 1 before the mount answered" in error
    assert error.endswith(": ImportError: no pyfuse3")
    assert stage.end() == supervisor.EXIT_GAVE_UP
    assert nothing_is_left(stage)


def test_a_mount_that_never_answers_is_given_up(stage: Stage) -> None:
    stage.limits["READY_TIMEOUT_S"] = 0.5
    stage.start_unanswered()
    active = stage.hear("active")
    assert "did not answer within" in stage.report()
    assert stage.end() == supervisor.EXIT_GAVE_UP
    assert nothing_is_left(stage)
    with pytest.raises(ProcessLookupError):
        os.kill(active["pid"], 0)


def test_a_connection_that_ends_under_a_mount_is_a_failure(running: Stage) -> None:
    os.kill(running.hear("active")["pid"], signal.SIGUSR1)
    assert running.end() == supervisor.EXIT_GAVE_UP
    assert running.state().state == "failed"
    assert mounting.is_guarded(str(running.mountpoint))


def test_sigterm_unmounts(running: Stage) -> None:
    active, standby = running.hear("active"), running.hear("standby")
    running.process.terminate()
    wait_for_unmount(running)
    os.kill(active["pid"], signal.SIGUSR1)  # as the kernel tells a real worker
    assert running.end() == 0
    assert nothing_is_left(running)
    with pytest.raises(ProcessLookupError):
        os.kill(standby["pid"], 0)


def test_sigterm_unmounts_also_what_is_in_use(stage: Stage) -> None:
    stage.limits["GRACE_S"] = 0.2
    stage.start()
    assert stage.report() is None
    active = stage.hear("active")
    with (stage.mountpoint / "file").open("w"):
        stage.process.terminate()
        assert stage.end() == 0
    assert nothing_is_left(stage)
    with pytest.raises(ProcessLookupError):
        os.kill(active["pid"], 0)


def test_an_unmount_by_somebody_else_is_the_end(running: Stage) -> None:
    active = running.hear("active")
    mounting.unmount(str(running.mountpoint))
    os.kill(active["pid"], signal.SIGUSR1)
    assert running.end() == 0
    assert nothing_is_left(running)


def test_what_is_detached_is_served_until_it_is_closed(running: Stage) -> None:
    active = running.hear("active")
    with (running.mountpoint / "file").open("w"):
        mounting.unmount(str(running.mountpoint), lazy=True)
        running.wait_for_state(lambda state: state.state == "detached")
        assert not running.runtime.exists(), "the name is free for the next mount"
        assert not mounting.is_guarded(str(running.mountpoint))
        os.kill(active["pid"], signal.SIGKILL)
        second = running.hear("active")
        assert Path(second["arguments"][1]).samefile(runtime_of(running))
        os.kill(second["pid"], signal.SIGUSR1)
        assert running.end() == 0
    assert nothing_is_left(running)


def test_workers_do_not_see_the_service_manager(stage: Stage) -> None:
    with service_manager(stage) as manager:
        stage.start()
        text, fds = hear_from(manager, "FDSTORE=1")
        assert text.split() == ["FDSTORE=1", "FDNAME=fuse"]
        [fd] = fds
        assert os.fstat(fd).st_rdev == Path("/dev/null").stat().st_rdev
        os.close(fd)
        text, fds = hear_from(manager, "READY=1")
        assert f"MAINPID={stage.process.pid}" in text.split()
        assert not fds
        assert "NOTIFY_SOCKET" not in stage.hear("active")["environment"]
        stage.process.terminate()
        hear_from(manager, "STOPPING=1")
        # A worker ends so when the kernel has ended the connection, which unmounting does.
        wait_until(lambda: mounting.mounted_at(str(stage.mountpoint)) is None, "unmounted")
        os.kill(stage.state().worker_pid, signal.SIGUSR1)
        hear_from(manager, "FDSTOREREMOVE=1")
        assert stage.end() == 0


@contextlib.contextmanager
def service_manager(stage: Stage) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(PATIENCE_S)
        manager.bind(f"\0modamafs-test-{os.getpid()}")
        stage.environment["NOTIFY_SOCKET"] = f"@modamafs-test-{os.getpid()}"
        yield manager


def hear_from(manager: socket.socket, start: str) -> tuple[str, list[int]]:
    text, fds, _, _ = socket.recv_fds(manager, 4096, 4)
    assert text.decode().startswith(start)
    return text.decode(), fds


def test_an_adopted_mount_goes_on(stage: Stage) -> None:
    stage.start()
    assert stage.report() is None
    active = stage.hear("active")
    stage.process.kill()
    stage.process.wait()
    assert not supervisor.is_alive(stage.state())
    os.kill(active["pid"], signal.SIGKILL)  # as systemd does
    stage.environment["ADOPTED"] = "1"
    assert stage.process.stdout
    stage.process.stdout.close()
    stage.start_supervisor()
    assert stage.report() is None
    assert stage.hear("active")["pid"] != active["pid"]
    assert stage.state().restarts == 1
    assert supervisor.is_alive(stage.state())


def test_standbys_end_with_their_supervisor(running: Stage) -> None:
    standby = running.hear("standby")
    running.process.kill()
    running.hear("retired", standby["pid"])
    os.kill(running.hear("active")["pid"], 0)  # the worker goes on


def test_descriptors_come_back_from_the_service_manager() -> None:
    # In a process of its own, as the numbers start at 3.
    script = """if True:
        import os
        from modamafs.supervisor import take_stored_fd
        os.dup2(os.open("/dev/zero", os.O_RDONLY), 4)
        os.dup2(os.open("/dev/null", os.O_RDONLY), 3)
        os.environ |= {"LISTEN_FDS": "2", "LISTEN_FDNAMES": "other:fuse"}
        assert take_stored_fd("fuse") is None
        os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "2"}
        os.environ |= {"LISTEN_FDNAMES": "other:fuse"}
        assert take_stored_fd("fuse") == 4
        assert not os.get_inheritable(4)
        assert not [name for name in os.environ if name.startswith("LISTEN")]
        try:
            os.fstat(3)
        except OSError:
            print("closed")
    """
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("closed\n", "")


def test_a_process_number_alone_is_not_believed() -> None:
    state = SupervisorState(supervisor_pid=os.getpid(), supervisor_started=1)
    assert not supervisor.is_alive(state)
    with pytest.raises(ProcessLookupError):
        supervisor.send_signal(state, signal.SIGKILL)


def wait_for_unmount(stage: Stage) -> None:
    with open("/proc/self/mountinfo", "rb") as mountinfo:
        poller = select.poll()
        poller.register(mountinfo, select.POLLPRI)
        while mounting.mounted_at(str(stage.mountpoint)):
            assert poller.poll(PATIENCE_S * 1000), stage.log()


def runtime_of(stage: Stage) -> Path:
    [runtime] = stage.directory.glob("runtime*")
    return runtime


def nothing_is_left(stage: Stage) -> bool:
    return (
        mounting.mounted_at(str(stage.mountpoint)) is None
        and not mounting.is_guarded(str(stage.mountpoint))
        and not list(stage.directory.glob("runtime*"))
    )
