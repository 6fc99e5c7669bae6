"""``modamafs demo``: see it work on made-up data, in seconds; nothing is left behind.

Every figure is measured here and now, every message is what the command printed.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, Self

import click
from rich.console import Console
from rich.text import Text

from modamafs import mounting, supervisor
from modamafs.config import MountSpec
from modamafs.errors import ModamaError
from modamafs_cli import mount
from modamafs_cli._common import emit, find_mount, json_option
from modamafs_cli._place import Place, fstype_of, stop_by_signal, temporary, unmount
from modamafs_cli._sealing import ask
from modamafs_cli.status import report

WIDTH = 80
BLOCK_BYTES = 1 << 20
READ_ROUNDS = 9
READ_ROUNDS_AT_LEAST = 3
READ_BUDGET_S = 2.5
READ_ON_S = 0.4
"""How long the reader reads before its daemon is killed, and after."""
PATIENCE_S = 10.0


@click.command("demo")
@click.option("--keep", is_flag=True, help="Leave it mounted, to play with, and say how to end it.")
@click.option(
    "--directory", type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Make it in this directory (on storage of your own, say), not in /tmp.",
)  # fmt: skip
@click.option(
    "--no-passthrough", is_flag=True, help="Show it as it is on kernels before 6.9: slower."
)
@json_option
@click.pass_context
def command(
    ctx: click.Context, keep: bool, directory: Path | None, no_passthrough: bool, as_json: bool
) -> None:
    """See it work on made-up data: a mount, its rate, a seal, a killed daemon. Needs root.

    Everything is made in a temporary directory and removed again, also after Ctrl-C.

    \b
    Examples:
      sudo modamafs demo
      sudo modamafs demo --directory /storage --keep
    """
    console = Console(quiet=as_json, highlight=False)
    console.width = min(console.width, WIDTH)
    with stop_by_signal() as check, temporary(ctx, directory, keep=keep) as place:
        mounting.check(MountSpec(store=str(place.store), mountpoint=str(place.data)))
        tour = Tour(
            ctx, console, place, _made_up_data(), passthrough=not no_passthrough, check=check
        )
        figures = tour.show(keep=keep)
    if not keep:
        tour.tell_what_is_next()
    emit(figures, "", as_json=as_json)


def _made_up_data() -> ModuleType:
    try:
        from modamafs_cli import _demo_store
    except ModuleNotFoundError as error:
        raise ModamaError(
            f"the demo needs {error.name}: run '{sys.executable} -m pip install numpy h5py mrcfile'"
        ) from error
    return _demo_store


# --- what is measured -----------------------------------------------------------------------------


class Rates(NamedTuple):
    """What alternating rounds over one file gave, in GB/s, sorted."""

    bare: list[float]
    mounted: list[float]


def _compare_rates(bare: Path, mounted: Path) -> Rates:
    """Read the same file by both paths, in turn; it is in memory before."""
    _read(bare)
    _read(mounted)
    size_gb = bare.stat().st_size / 1e9
    rates = Rates([], [])
    started = time.monotonic()
    while len(rates.bare) < READ_ROUNDS_AT_LEAST or (
        len(rates.bare) < READ_ROUNDS and time.monotonic() - started < READ_BUDGET_S
    ):
        rates.bare.append(size_gb / _read(bare))
        rates.mounted.append(size_gb / _read(mounted))
    return Rates(sorted(rates.bare), sorted(rates.mounted))


def _read(path: Path) -> float:
    buffer = bytearray(BLOCK_BYTES)
    with open(path, "rb", buffering=0) as file:
        started = time.perf_counter()
        while file.readinto(buffer):
            pass
        return time.perf_counter() - started


class Reader(threading.Thread):
    """Reads a file again and again, and compares each block with what it should be."""

    def __init__(self, path: Path, original: Path, made_up: ModuleType) -> None:
        super().__init__(daemon=True)
        self._path = path
        self._original = original
        self._made_up = made_up
        self._wanted = True
        self.bytes_read = 0
        self.longest_gap_s = 0.0
        self.fault: str | None = None

    def run(self) -> None:
        """Read until the end of the block, or until something is wrong."""
        try:
            self._read_on()
        except OSError as error:
            self.fault = error.strerror or str(error)

    def _read_on(self) -> None:
        original = self._made_up.bytes_of(self._original)
        buffer = bytearray(BLOCK_BYTES)
        with open(self._path, "rb", buffering=0) as file:
            at, last = 0, time.monotonic()
            while self._wanted:
                count = file.readinto(buffer) or 0
                if not count:
                    at = file.seek(0)
                    continue
                if not self._made_up.equal(memoryview(buffer)[:count], original[at : at + count]):
                    self.fault = f"other bytes than those written, at {at}"
                    return
                at += count
                self.bytes_read += count
                now = time.monotonic()
                self.longest_gap_s = max(self.longest_gap_s, now - last)
                last = now

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._wanted = False
        self.join(PATIENCE_S)
        if self.is_alive():
            self.fault = f"no answer within {PATIENCE_S:.0f} s"


# --- what is shown --------------------------------------------------------------------------------


class Tour:
    """The steps, in order: each says why, does it, and says what came of it."""

    def __init__(
        self,
        ctx: click.Context,
        console: Console,
        place: Place,
        made_up: ModuleType,
        *,
        passthrough: bool,
        check: Callable[[], None],
    ) -> None:
        self._ctx = ctx
        self._check = check
        self._console = console
        self._place = place
        self._made_up = made_up
        self._passthrough = passthrough
        self._session = place.data / made_up.SESSION
        self._raw = self._session / "raw"
        self._file = self._raw / "4dstem.h5"
        self._bare_file = place.store / made_up.SESSION / "raw/4dstem.h5"
        self._figures: dict[str, Any] = {"kernel": platform.release()}
        self._steps = 0

    def show(self, *, keep: bool) -> dict[str, Any]:
        """All of it; the figures. ModamaError when something is not as it should be."""
        self._line("modamafs demo, on made-up data; every figure is measured now", "bold")
        self._fill()
        self._mount()
        self._list()
        self._read()
        self._open_formats()
        self._seal()
        self._refuse()
        self._kill()
        self._verify()
        if keep:
            self._tell_how_to_play()
        else:
            self._unmount()
        self._figures["kept"] = (
            {"store": str(self._place.store), "mountpoint": str(self._place.data)} if keep else None
        )
        return self._figures

    # -- steps

    def _fill(self) -> None:
        self._why("A store is plain directories: area, project, session")
        started = time.monotonic()
        with self._console.status(" writing", spinner="line"):
            files, size_bytes = self._made_up.write(self._place.store)
        seconds = time.monotonic() - started
        fstype = fstype_of(self._place.store)
        image = " in an image" if self._place.image else ""
        self._figures |= {"fstype": fstype, "file_count": files, "size_bytes": size_bytes}
        self._say(f"{self._place.store}  ({fstype}{image})")
        self._say(f"{files} files, {size_bytes / 1e6:.0f} MB, written in {seconds:.1f} s")

    def _mount(self) -> None:
        self._why("Mounted, it is one file system for everybody")
        self._say(f"# cd {self._place.directory}", "cyan")
        switch = "" if self._passthrough else "--no-passthrough "
        store = self._place.store.relative_to(self._place.directory)
        self._say(f"# modamafs mount {switch}{store} data", "cyan")
        started = time.monotonic()
        self._ctx.invoke(
            mount.command,
            store=str(self._place.store),
            mountpoint=str(self._place.data),
            no_passthrough=not self._passthrough,
        )
        seconds = time.monotonic() - started
        self._passthrough = bool(self._status()["passthrough"])
        self._figures |= {"passthrough": self._passthrough, "mount_s": round(seconds, 3)}
        how = (
            "the kernel reads and writes by itself (passthrough)"
            if self._passthrough
            else "fallback: the daemon reads and writes (no passthrough)"
        )
        self._say(f"answers after {seconds:.2f} s; {how}")
        if not self._passthrough:
            self._say("bare speed takes Linux 6.9 or later (Debian 12: from backports)")

    def _list(self) -> None:
        self._why("Names, owners, modes and dates are the store's own")
        self._say(f"# ls -lh data/{self._made_up.SESSION}/raw", "cyan")
        done = self._shell(f"ls -lh data/{self._made_up.SESSION}/raw", self._place.directory)
        if done.returncode:
            raise ModamaError(f"the listing failed: {done.stdout.strip()}")
        lines = done.stdout.splitlines()
        for line in lines:
            self._say(line)
        self._figures["listed"] = len(lines) - 1

    def _read(self) -> None:
        self._why("The same file, through the mount and beside it, in turn, warm")
        with self._console.status(" reading", spinner="line"):
            rates = _compare_rates(self._bare_file, self._file)
        bare, mounted = statistics.median(rates.bare), statistics.median(rates.mounted)
        self._figures |= {
            "read_bare_gb_per_s": round(bare, 2),
            "read_mounted_gb_per_s": round(mounted, 2),
            "read_ratio": round(mounted / bare, 3),
            "read_rounds": len(rates.bare),
        }
        self._say(f"bare      {bare:5.2f} GB/s")
        self._say(f"mounted   {mounted:5.2f} GB/s   {mounted / bare:.2f} of bare", "bold")
        self._say(
            f"medians of {len(rates.bare)} rounds; bare alone varied from "
            f"{rates.bare[0]:.2f} to {rates.bare[-1]:.2f}"
        )

    def _open_formats(self) -> None:
        self._why("The software of the field finds ordinary files")
        started = time.monotonic()
        opened = self._made_up.open_formats(self._raw)
        seconds = time.monotonic() - started
        self._say(f"h5py      {opened.hdf5}")
        self._say(f"mrcfile   {opened.mrc}, memory-mapped")
        self._say(f"numpy     {opened.mapped_bytes / 1e6:.0f} MB memory-mapped and summed up")
        seen = self._status()["requests"]
        self._figures |= {
            "formats_s": round(seconds, 3),
            "opens_seen": seen["OPEN"],
            "reads_seen": seen["READ"],
        }
        self._say(
            f"the daemon saw {seen['OPEN']} opens and {seen['READ']} reads so far"
            + (": bytes do not pass through it" if self._passthrough else ""),
            "bold",
        )
        if self._passthrough and seen["READ"]:
            raise ModamaError("in spite of passthrough, the daemon was asked to read")

    def _seal(self) -> None:
        self._why("Sealed, what was measured stays as it was measured")
        self._say(f"# modamafs seal data/{self._made_up.SESSION}/raw", "cyan")
        started = time.monotonic()
        record = ask("seal", str(self._raw))
        seconds = time.monotonic() - started
        self._figures["seal"] = record
        if record["state"] != "sealed":
            raise ModamaError(f"after sealing, the state is {record['state']}")
        self._say(record["content_hash"])
        self._say(
            f"{record['file_count']} files, {record['size_bytes'] / 1e6:.0f} MB, "
            f"written to the disk and hashed in {seconds:.1f} s"
        )

    def _refuse(self) -> None:
        self._why("Nobody changes it by accident, not even root; beside it, work goes on")
        self._say(f"# cd data/{self._made_up.SESSION}", "cyan")
        refusals = []
        for line in ("echo oops >> raw/acquisition.log", "rm raw/tilt.mrc", "mv raw old"):
            done = self._attempt(line)
            if not done.returncode:
                raise ModamaError(f"'{line}' was not refused")
            refusals.append({"command": line, "message": done.stdout.strip()})
        self._figures["refused"] = refusals
        if self._attempt("echo 'Scan 4 is better.' >> notes.md").returncode:
            raise ModamaError("notes.md, beside the sealed directory, can't be written")
        self._say("done")

    def _attempt(self, line: str) -> subprocess.CompletedProcess[str]:
        self._say(f"# {line}", "cyan")
        done = self._shell(line, self._session)
        for message in done.stdout.splitlines():
            self._say(message, "red")
        return done

    def _kill(self) -> None:
        self._why("The daemon may die: the mount does not, and nobody notices")
        self._figures["kill"] = None
        if not self._status().get("survives_worker"):
            self._say("left out: this takes Linux 6.9 or later and libfuse 3.14 or later")
            return
        runtime = find_mount(str(self._place.data)).runtime
        with Reader(self._file, self._bare_file, self._made_up) as reader:
            time.sleep(READ_ON_S)
            killed = supervisor.load_state(runtime).worker_pid
            self._say(f"# kill -9 {killed}    (while a program reads {self._file.name})", "cyan")
            os.kill(killed, signal.SIGKILL)
            started = time.monotonic()
            os.listdir(self._place.data / self._made_up.OTHER_SESSION / "raw")
            answered_s = time.monotonic() - started
            time.sleep(READ_ON_S)
        if reader.fault:
            raise ModamaError(f"the reader did not survive the daemon's end: {reader.fault}")
        state = supervisor.load_state(runtime)
        self._figures["kill"] = {
            "killed_pid": killed,
            "worker_pid": state.worker_pid,
            "restarts": state.restarts,
            "reader_bytes": reader.bytes_read,
            "reader_longest_gap_ms": round(reader.longest_gap_s * 1e3, 1),
            "answered_after_ms": round(answered_s * 1e3, 1),
        }
        self._say(
            f"it went on, {reader.bytes_read / 1e9:.1f} GB, every byte right; "
            f"longest gap {reader.longest_gap_s * 1e3:.0f} ms",
            "bold",
        )
        self._say(
            f"process {state.worker_pid} has taken over; "
            f"the next listing took {answered_s * 1e3:.0f} ms"
        )

    def _verify(self) -> None:
        self._why("The proof lies on the store, as plain text, for b3sum -c")
        self._say(f"# modamafs verify data/{self._made_up.SESSION}/raw", "cyan")
        result = ask("verify", str(self._raw))
        if not result["ok"]:
            raise ModamaError(f"{self._raw} is not what was sealed: {result}")
        self._figures["verified"] = True
        self._say(f"{result['file_count']} files, as they were sealed")
        manifest = self._place.store / self._made_up.SESSION / ".modama/seals/raw.B3SUMS"
        lines = manifest.read_text().splitlines()
        line = next(line for line in lines if line.endswith(f"  {self._file.name}"))
        self._say(f"{line[:16]}...  {self._file.name}: as b3sum has it")

    def _unmount(self) -> None:
        self._why("Unmounted, the store is what it was: plain directories")
        self._say("# modamafs umount data", "cyan")
        unmount(self._ctx, self._place.data)
        self._say(f"this one was for show: {self._place.directory} is removed")

    # -- at the end

    def _tell_how_to_play(self) -> None:
        """What to try on what was left mounted."""
        self._why("It stays mounted, for you")
        self._tell(
            f"cd {shlex.quote(str(self._place.directory))}",
            "modamafs status",
            f"modamafs unseal data/{self._made_up.SESSION}/raw --reason trying",
            "modamafs umount data",
            *(["SUDO umount disk"] if self._place.image else []),
            'cd / && SUDO rm -r "$OLDPWD"',
        )

    def tell_what_is_next(self) -> None:
        """Commands for data of one's own."""
        home = os.path.expanduser(f"~{os.environ.get('SUDO_USER', '')}")
        self._line("\nOn data of your own, read-only to begin with:", "bold")
        self._tell(
            "SUDO mkdir -p /mnt/modamafs",
            f"modamafs mount --read-only {shlex.quote(home)} /mnt/modamafs",
            "modamafs umount /mnt/modamafs",
        )

    def _tell(self, *lines: str) -> None:
        """Commands as the one who started the demo can give them."""
        sudo = "sudo " if "SUDO_USER" in os.environ else ""
        program = Path(sys.argv[0]).absolute()
        if shutil.which("modamafs") != str(program):
            self._say(f"alias modamafs='{sudo}{program}'")
        else:
            lines = tuple(re.sub("^modamafs ", f"{sudo}modamafs ", line) for line in lines)
        for line in lines:
            self._say(line.replace("SUDO ", sudo))

    # -- helpers

    def _status(self) -> dict[str, Any]:
        known = report(find_mount(str(self._place.data)))
        if not known["answers"]:
            raise ModamaError(f"the mount's daemon does not answer: {known['error']}")
        return known

    @staticmethod
    def _shell(line: str, directory: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["/bin/sh", "-c", line],
            cwd=directory,
            env=os.environ | {"LC_ALL": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )

    def _why(self, text: str) -> None:
        self._check()
        self._steps += 1
        self._line(f"\n{self._steps:2}  {text}", "bold")

    def _say(self, text: str, style: str = "") -> None:
        self._line(f"    {text}", style)

    def _line(self, text: str, style: str) -> None:
        self._console.print(Text(text, style), soft_wrap=True)
