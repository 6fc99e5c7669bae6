"""`python -m benchmarks.exports`: each server over the mount beside the same server over the bare
directory, in alternating rounds.

Both directories lie in the same backing store. Large files are read (from a full page cache) and
written by a client on this machine; small ones are put by smbclient, with the names' case ignored,
as Windows needs it. The watcher reads the events of both directories.
"""

from __future__ import annotations

import argparse
import base64
import ctypes
import http.client
import os
import pwd
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks import figures, machine, options, report
from benchmarks.store import Store
from benchmarks.systems import SYSTEMS, SystemFailedError, run
from modamafs.exports.nfs_client import WRITE_BYTES, NfsClient
from modamafs.exports.servers import ADDRESS, Identity, Samba, WebDav
from modamafs.exports.share import Share
from tests.support.servers import Ganesha3

SIDES = ("bare", "mount")
PIECE_BYTES = 1 << 20
SMALL_PIECE_BYTES = 256 << 10
"""Of a client that waits for each WRITE before it sends the next one."""
SMALL_BYTES = 1000
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MOST_KEPT_BYTES = 1 << 28
USER, PASSWORD = "nobody", "benchmark"

Job = Callable[[str, Path, str], None]
"""What is timed: on a side, with a file (or directory) of the client's, and a name for what is new
there."""


@contextmanager
def servers(place: Store) -> Iterator[dict[str, Job]]:
    """All of them, running; the jobs by name."""
    shares = {
        "bare": Share(name="bare", path=place.root / "bare", mountpoint=Path("/")),
        "mount": Share(name="mount", path=place.mountpoint / "mounted", mountpoint=Path("/")),
    }
    nobody = pwd.getpwnam(USER)
    with ExitStack() as stack:
        smb = stack.enter_context(
            Samba(place.base / "smb", list(shares.values()), {USER: PASSWORD})
        )
        nfs = stack.enter_context(
            Ganesha3(place.base / "nfs", list(shares.values()), squash="No_Root_Squash")
        )
        webdav = {
            side: stack.enter_context(
                WebDav(
                    place.base / f"webdav-{side}", one, {USER: PASSWORD},
                    acts_as=Identity(nobody.pw_uid, nobody.pw_gid),
                )
            )
            for side, one in shares.items()
        }  # fmt: skip

        def smbclient(side: str, *commands: str) -> None:
            done = run(
                "smbclient", "-p", str(smb.port), "-U", f"{USER}%{PASSWORD}",
                f"//{ADDRESS}/{side}", "-c", ";".join(commands), timeout_s=600,
            )  # fmt: skip
            if done.returncode or "NT_STATUS" in done.stdout + done.stderr:
                raise SystemFailedError(f"smbclient: {done.stdout}{done.stderr}"[:500])

        def nfs_read(version: int) -> Job:
            def read(side: str, source: Path, _new: str) -> None:
                with nfs.inside(), NfsClient(ADDRESS, nfs.port, side, version=version) as client:
                    file = client.open(source.name, os.O_RDONLY)
                    offset = 0
                    while piece := client.pread(file, offset, PIECE_BYTES):
                        offset += len(piece)
                    client.close_file(file)

            return read

        def nfs_write(piece_bytes: int) -> Job:
            def write(side: str, source: Path, new: str) -> None:
                with nfs.inside(), NfsClient(ADDRESS, nfs.port, side, version=3) as client:
                    file = client.open(new, os.O_RDWR | os.O_CREAT)
                    offset = 0
                    with source.open("rb", buffering=0) as origin:
                        while piece := origin.read(piece_bytes):
                            client.pwrite(file, offset, piece)
                            offset += len(piece)
                    client.close_file(file)

            return write

        def http_of(side: str, method: str, name: str, body: object = None) -> None:
            connection = http.client.HTTPConnection(ADDRESS, webdav[side].port, timeout=600)
            secret = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
            headers = {"Authorization": f"Basic {secret}"}
            connection.request(method, f"/{side}/{name}", body, headers)  # type: ignore[arg-type]
            answer = connection.getresponse()
            while answer.read(PIECE_BYTES):
                pass
            assert answer.status < 300, answer.status
            connection.close()

        def put(side: str, source: Path, new: str) -> None:
            with source.open("rb") as file:
                http_of(side, "PUT", new, file)

        yield {
            "smb read": lambda side, source, _: smbclient(side, f"get {source.name} /dev/null"),
            "smb write": lambda side, source, new: smbclient(side, f"put {source} {new}"),
            "nfs3 read": nfs_read(3),
            "nfs4 read": nfs_read(4),
            "nfs3 write": nfs_write(WRITE_BYTES[3]),
            "nfs3 small write": nfs_write(SMALL_PIECE_BYTES),
            "webdav read": lambda side, source, _: http_of(side, "GET", source.name),
            "webdav write": put,
            "smb small": lambda side, source, new: smbclient(
                side, f"mkdir {new}", f"cd {new}", f"lcd {source}", "prompt off", "mput *"
            ),
        }


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = options.parser("python -m benchmarks.exports", __doc__)
    parser.add_argument("--mb", type=options.positive, default=1024, help="default: 1024")
    parser.add_argument("--files", type=options.positive, default=1000, help="default: 1000")
    parser.add_argument(
        "--rounds",
        type=options.positive,
        default=10,
        help="default: 10. An even number: who writes first in a round is slower",
    )
    parser.add_argument("--jobs", help="comma-separated; all of them")
    options.add_idle(parser)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write; 0 when all limits are kept, 1 when not."""
    chosen = parse(arguments)
    keep_buffers()
    with (
        machine.awake(not chosen.idle) as awake,
        options.place_for("benchmarks.exports", chosen.directory) as place,
        ExitStack() as stack,
    ):
        place.base.chmod(0o755)
        facts = machine.facts(place.root)
        for side in ("bare", "mounted"):
            (place.root / side).mkdir()
            (place.root / side).chmod(0o777)
        system = SYSTEMS["modamafs"](place.root, place.mountpoint)
        system.mount()
        stack.callback(system.unmount)
        large = make_source(place, chosen.mb << 20)
        small = make_small(place, chosen.files)
        measured: dict[str, dict[str, list[float]]] = {}
        with servers(place) as jobs:
            for name in chosen.jobs.split(",") if chosen.jobs else jobs:
                source = small if name.endswith("small") else large
                measured[name] = measure(place, name, jobs[name], source, chosen.rounds)
        system.alive()
    rows, passed = judge(measured, chosen)
    print(report.lines_up(rows))
    path = chosen.results / f"{report.stem('-exports' + ('-idle' if chosen.idle else ''))}.json"
    report.write_json(
        path,
        {
            "machine": facts,
            "cores_kept_awake": awake,
            "large_mb": chosen.mb,
            "small_files": chosen.files,
            "seconds": measured,
            "rows": rows,
            "passed": passed,
        },
    )
    print(f"written: {path}")
    return 0 if passed else 1


def keep_buffers() -> None:
    """Have the client's memory kept by malloc(3), as the kernel's clients keep theirs.

    Otherwise most of what a client in Python does is to ask the kernel for empty pages.
    """
    libc = ctypes.CDLL(None)
    for parameter in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD):
        assert libc.mallopt(parameter, _MOST_KEPT_BYTES) == 1


def make_source(place: Store, size_bytes: int) -> Path:
    """A file of the client's, and the same on both sides."""
    place.source.mkdir(exist_ok=True)
    path = place.source / "large"
    for target in (path, place.root / "bare/large", place.root / "mounted/large"):
        with target.open("wb") as file:
            piece = os.urandom(PIECE_BYTES)
            for _ in range(size_bytes // PIECE_BYTES):
                file.write(piece)
        target.chmod(0o644)
    os.sync()
    return path


def make_small(place: Store, count: int) -> Path:
    """Files of the client's."""
    directory = place.source / "small"
    directory.mkdir()
    for number in range(count):
        (directory / f"frame-{number:06}.tif").write_bytes(bytes(SMALL_BYTES))
    return directory


def measure(place: Store, name: str, job: Job, source: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds of each side, in rounds in which now the one and now the other begins."""
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    for number in range(rounds + 1):  # the first one is to warm up
        for side in SIDES if number % 2 else SIDES[::-1]:
            os.sync()
            # A name of its own: servers remember what had a name, also when it is removed locally.
            new = f"{name.replace(' ', '-')}-{number}"
            begin = time.monotonic()
            job(side, source, new)
            spent = time.monotonic() - begin
            remove(place, side, new)
            if number:
                seconds[side].append(spent)
    shown = "  ".join(f"{side} {statistics.median(seconds[side]):.2f} s" for side in SIDES)
    print(f"{name:<18}{shown}", file=sys.stderr, flush=True)
    return seconds


def remove(place: Store, side: str, new: str) -> None:
    """Take away what was made."""
    directory = place.root / "bare" if side == "bare" else place.mountpoint / "mounted"
    run("rm", "-rf", directory / new)


def judge(
    measured: dict[str, dict[str, list[float]]], chosen: argparse.Namespace
) -> tuple[list[list[str]], bool]:
    """The table, losses first, and whether every limit is kept."""
    lines = []
    for name, seconds in measured.items():
        bare, mount = (statistics.median(seconds[side]) for side in SIDES)
        if name.endswith("small"):
            loss = mount / bare / figures.EXPORT_SMALL_TIMES
            shown = f"{mount / bare:.2f} times"
            limit = f"≤ {figures.EXPORT_SMALL_TIMES:g} times"
            rates = [f"{chosen.files / one:.0f} files/s" for one in (bare, mount)]
        else:
            least = figures.EXPORT_READ if name.endswith("read") else figures.EXPORT_WRITE
            loss = least / (bare / mount)
            shown, limit = f"{bare / mount:.2f} of it", f"≥ {least:g}"
            rates = [f"{chosen.mb * 1.048576 / one / 1e3:.2f} GB/s" for one in (bare, mount)]
        lines.append((loss, [name, *rates, shown, limit, report.VERDICT[loss <= 1]]))
    rows = [["job", "bare", "mount", "beside bare", "limit", "met"]]
    rows += [line for _, line in sorted(lines, key=lambda line: -line[0])]
    return rows, all(loss <= 1 for loss, _ in lines)


if __name__ == "__main__":
    sys.exit(main())
