"""smbtorture over a mount and over the bare directory beside it, and where they differ.

``python -m tests.conformance.smbtorture`` takes about a quarter of an hour, as root; it writes
``docs/exports/smbtorture.md``. Both directories lie on one ext4 image. A suite runs on both at the
same time, in directories and with smbds of its own, and some suites run at the same time: most of
them wait. Tests that differ are run another three times, with nothing beside them.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import NamedTuple

from modamafs.exports import samba, servers
from modamafs.exports.share import Share
from tests.support.images import Image
from tests.support.mounts import Mount, command
from tests.support.servers import PEOPLE, accounts

REPOSITORY = Path(__file__).parents[2]
DOCUMENT = REPOSITORY / "docs" / "exports" / "smbtorture.md"

USER, PASSWORD = "alice", "torture"
SIDES = ("bare", "mount")
NAME = "recommended"
"""Of the share whose section is the one that ``modamafs export`` writes."""
LIMIT_S = 240.0
"""For a suite. What it has not said by then has failed."""
SLOW = (
    "base.createx_sharemodes_dir",
    "base.createx_sharemodes_file",
    "base.delaywrite",
    "base.nttrans",
    "raw.search",
    "smb2.compound_find",
    "smb2.dir",
)
"""Suites that have five times as long. Most of them make thousands of files: before each, smbd
reads the whole directory."""
QUICK = (
    "smb2.acls",
    "smb2.create",
    "smb2.delete-on-close-perms",
    "smb2.durable-v2-open",
    "smb2.fileid",
    "smb2.getinfo",
    "smb2.ioctl",
    "smb2.lock",
    "smb2.mkdir",
    "smb2.read",
    "smb2.rename",
    "smb2.rw",
    "smb2.streams",
    "base.rename",
    "base.unlink",
    "raw.eas",
    "raw.read",
    "raw.write",
    "vfs.streams_xattr",
)
"""Suites for the share "torture" that take seconds: ``make test`` runs them."""
AGAIN = 3
"""How often a test is repeated whose outcomes differ."""

# What a standalone smbd can be asked. Left out: what measures or waits for somebody (bench-*,
# hold-*, iometer, ping-pong, maxfid), what tries all numbers to see what comes (scan*), what takes
# longer than LIMIT_S on any file system (casetable, smb, utable; defer_open, deny1 and deny2 wait
# for a second a thousand times), and what wants a module that delays requests (aio_delay,
# async_dosmode), snapshots (twrp), Kerberos, or a share with other options
# (change_notify_disabled, create_no_streams, acls_non_canonical, fruit).
SMB2 = """
    acls charset check-sharemode compound compound_async connect create credits
    delete-on-close-perms deny dosmode durable-open durable-open-disconnect durable-v2-delay
    durable-v2-open ea fileid getinfo ioctl ioctl-on-stream lease lock mangle maximum_allowed mkdir
    multichannel notify notify-inotify openattr oplock read rename replay rw samba3misc sdread
    secleak session session-id set-sparse-ioctl setinfo sharemode streams tcon timestamp_resolution
    timestamps winattr zero-data-ioctl compound_find dir
"""
BASE = """
    aliases attr birthtime charset chkpath createx_access createx_sharemodes_dir
    createx_sharemodes_file delaywrite delete deny3 denydos dir1 dir2 disconnect lock mangle
    maximum_allowed negnowait ntdeny1 ntdeny2 nttrans open openattr properties rename rw1 secleak
    tcon tcondev trans2 unlink vuid winattr xcopy
"""
RAW = """
    acls chkpath close composite context eas ioctl lock mkdir mux notify open oplock qfileinfo
    qfsinfo read rename samba3badpath samba3caseinsensitive samba3checkfsp samba3closeerr samba3hide
    samba3oplocklogoff samba3posixtimedlock samba3rootdirfid search seek session sfileinfo streams
    unlink write
"""
SMB2_SUITES = tuple(f"smb2.{name}" for name in SMB2.split())
SUITES: Mapping[str, tuple[str, ...]] = {
    "torture": (
        *SMB2_SUITES,
        "vfs.acl_xattr",
        "vfs.streams_xattr",
        *(f"base.{name}" for name in BASE.split()),
        *(f"raw.{name}" for name in RAW.split()),
        "unix.info2",
        "unix.whoami",
    ),
    "leases": ("smb2.kernel-oplocks",),
    "recommended": SMB2_SUITES,
}
"""The suites for each share."""

KNOWN = {
    "smb2.dir find": """Samba 4.17 makes up the time of birth from the earliest seconds of a file's
        times and the nanoseconds of its ctime. Whoever looks at a new file before and after its
        mode is set, in the next second, sees two. Over a mount this takes milliseconds more, so it
        is met more often (2 of 10 times).""",
    "smb2.notify tree": """Fails over the bare directory, too, now and then.""",
    "raw.notify tree": """Fails over the bare directory, too, now and then.""",
    "base.createx_sharemodes_dir createx_sharemodes_dir": """Needs more time where the machine has
        other work.""",
    "base.nttrans nttrans": """Needs more time where the machine has other work.""",
}
"""Why tests were seen to go well on one side only."""

# More of smb.conf: the options of the share "torture" are those of exports.md, but that attributes
# and what Windows keeps beside a file are stored. Without the first module nobody has the right to
# execute a file that was made without it, and smbtorture asks for all rights everywhere.
EXTRA = """
[global]
    # The suites base.* and raw.* speak SMB 1.
    server min protocol = NT1
[torture]
    path = {path}
    read only = no
    ea support = yes
    store dos attributes = yes
    map readonly = no
    map archive = no
    map hidden = no
    map system = no
    vfs objects = acl_xattr streams_xattr
[leases]
    # Oplocks as leases of the kernel, which programs on the server break as well.
    path = {path}
    read only = no
    kernel oplocks = yes
    oplocks = yes
    level2 oplocks = no
    vfs objects = streams_xattr
[hideunread]
    # The suite smb2.acls looks for it.
    path = {path}
    read only = no
    hide unreadable = yes
    vfs objects = acl_xattr
"""


class Outcome(NamedTuple):
    """How a test ended."""

    kind: str
    """success, failure, error, skip, timeout; none: it was not reached."""
    said: str = ""

    @property
    def failed(self) -> bool:
        """A test that is skipped has not."""
        return self.kind not in ("success", "skip")


Outcomes = dict[str, Outcome]
"""Of each test of a suite, by its name."""
NOT_REACHED = Outcome("none", "not reached")


class Ran(NamedTuple):
    """A suite (of pynfs: a version of NFS), on both sides."""

    suite: str
    bare: Outcomes
    mount: Outcomes
    bare_s: float
    mount_s: float
    again: list[tuple[Outcomes, Outcomes]]
    """What differs, on bare and mount once more, several times."""

    def differing(self) -> list[str]:
        """Tests that do not have the same outcome."""
        return [
            test
            for test in sorted({*self.bare, *self.mount})
            if self.bare.get(test, NOT_REACHED).kind != self.mount.get(test, NOT_REACHED).kind
        ]

    def failing(self) -> list[str]:
        """Tests that fail on both sides."""
        return [
            test
            for test in sorted({*self.bare, *self.mount})
            if self.bare.get(test, NOT_REACHED).failed and self.mount.get(test, NOT_REACHED).failed
        ]


# two directories


@contextlib.contextmanager
def two_sides(directory: Path, owner: int) -> Iterator[dict[str, Share]]:
    """A directory of ``owner`` on ext4, and another one on the same ext4 through a mount."""
    with Image("ext4", directory) as image:
        for name in ("bare", "store"):
            (image.root / name).mkdir()
        with Mount(image.root / "store", directory / "mount") as mount:
            sides = {
                "bare": Share(name=NAME, path=image.root / "bare/data", mountpoint=image.root),
                "mount": Share(name=NAME, path=mount.root / "data", mountpoint=mount.root),
            }
            for share in sides.values():
                share.path.mkdir()
                share.path.chmod(0o755)
                os.chown(share.path, owner, -1)
            yield sides


@contextlib.contextmanager
def directory_in(share: Share, name: str) -> Iterator[Share]:
    """A new directory in it, owned as it is, as a share for the block."""
    own = Share(name=share.name, path=share.path / name, mountpoint=share.mountpoint)
    own.path.mkdir()
    os.chown(own.path, share.path.stat().st_uid, -1)
    try:
        yield own
    finally:
        shutil.rmtree(own.path, ignore_errors=True)


# one suite


def parsed(output: str) -> Outcomes:
    """What smbtorture's subunit stream says. A test that was begun and not ended is out of time."""
    outcomes: Outcomes = {}
    lines = iter(output.splitlines())
    for line in lines:
        kind, _, rest = line.partition(": ")
        if kind == "test":
            outcomes.setdefault(rest.strip(), Outcome("timeout", "does not end"))
        elif kind in ("success", "failure", "error", "skip"):
            said: list[str] = []
            if rest.endswith(" ["):
                rest = rest.removesuffix(" [")
                for more in lines:
                    if more == "]":
                        break
                    said.append(more.strip().replace("../../source4/torture/", ""))
            before = outcomes.get(rest.strip())
            if before is None or before.kind in ("timeout", "success", "skip"):
                outcomes[rest.strip()] = Outcome(kind, " ".join(said))
    return outcomes


def run(
    suite: str, tests: Sequence[str], share: str, port: int, limit_s: float
) -> tuple[Outcomes, float]:
    """Of one side, and how long it took. ``tests``: only these of the suite; none means all."""
    protocol = [] if suite.startswith(("smb2.", "vfs.")) else ["--option=clientminprotocol=NT1"]
    if protocol:
        protocol.append("--max-protocol=NT1")
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="conf-smbtorture-") as place:
        process = subprocess.Popen(
            [
                "smbtorture", f"//127.0.0.1/{share}", "-p", str(port),
                f"--user={USER}%{PASSWORD}", "--format=subunit", *protocol,
                *([f"{suite}.{test}" for test in tests] or [suite]),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=place,
            text=True,
            errors="replace",
        )  # fmt: skip
        try:
            output, _ = process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            # Some suites have processes of their own.
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
    took_s = time.monotonic() - began_s
    return parsed(output) or {"(it says nothing)": Outcome("error", output[-200:])}, took_s


def one_side(
    suite: str, tests: Sequence[str], name: str, share: Share, limit_s: float
) -> tuple[Outcomes, float]:
    """Run a suite in a directory of its own, with an smbd that knows of nothing else."""
    with (
        directory_in(share, f"{suite}-{name}") as own,
        tempfile.TemporaryDirectory(prefix="conf-smbd-") as place,
    ):
        smbd = servers.Samba(
            Path(place), [own], {USER: PASSWORD}, extra=EXTRA.format(path=own.path)
        )
        smbd.environment = accounts(Path(place))
        with smbd:
            return run(suite, tests, name, smbd.port, limit_s * (5 if suite in SLOW else 1))


def compare(
    work: Sequence[tuple[str, str]], sides: Mapping[str, Share], limit_s: float, jobs: int
) -> list[tuple[str, Ran]]:
    """Run each suite of each share on both sides, and several times more what differs.

    ``work``: the shares' names and the suites; ``jobs``: how many at the same time.
    """

    def one(side: str, share: str, suite: str, tests: Sequence[str] = ()) -> tuple[Outcomes, float]:
        return one_side(suite, tests, share, sides[side], limit_s)

    def both(share: str, suite: str) -> tuple[str, Ran]:
        with ThreadPoolExecutor(len(SIDES)) as pool:
            (bare, bare_s), (mount, mount_s) = pool.map(one, SIDES, (share, share), (suite, suite))
        ran = Ran(suite, bare, mount, bare_s, mount_s, [])
        print(" ".join(suites([(share, ran)])[0]), file=sys.stderr, flush=True)
        return share, ran

    with ThreadPoolExecutor(jobs) as pool:
        results = list(pool.map(both, *zip(*work, strict=True)))
    for share, ran in results:
        if tests := ran.differing():
            print(f"again: {ran.suite} {' '.join(tests)}", file=sys.stderr, flush=True)
            # A suite that is a single test has no name for it.
            only = tests if len({*ran.bare, *ran.mount}) > 1 else []
            ran.again.extend(
                (one("bare", share, ran.suite, only)[0], one("mount", share, ran.suite, only)[0])
                for _ in range(AGAIN)
            )
    return results


# what comes of it


def counts(outcomes: Iterable[Outcomes]) -> Counter[str]:
    """How many went well ("success"), were skipped ("skip"), failed ("failed")."""
    return Counter(
        "failed" if outcome.failed else outcome.kind for one in outcomes for outcome in one.values()
    )


def cell(text: str) -> str:
    """As a cell of a table in Markdown."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").strip() or "–"


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Lines of Markdown."""
    return [
        "| " + " | ".join(heads) + " |",
        "|" + " --- |" * len(heads),
        *("| " + " | ".join(cell(str(value)) for value in row) + " |" for row in rows),
    ]


def times(outcomes: Iterable[Outcomes], test: str) -> str:
    """How often a test went well of the times it was repeated."""
    kinds = [one.get(test, NOT_REACHED).kind for one in outcomes]
    return f"{kinds.count('success')} of {len(kinds)}"


def same(one: str, other: str) -> bool:
    """Whether two failures are the same, but for numbers."""
    plain = [re.sub(r"0x[0-9A-Fa-f]+|[0-9]+", "0", text) for text in (one, other)]
    return plain[0] == plain[1]


def differences(ran: Iterable[tuple[str, Ran]]) -> list[list[str]]:
    """A row for each test that went well on one side only; ``ran``: with the share's name."""
    return [
        [
            f"`{one.suite} {test}`",
            share,
            one.bare.get(test, NOT_REACHED).kind,
            one.mount.get(test, NOT_REACHED).kind,
            times((bare for bare, _ in one.again), test),
            times((mount for _, mount in one.again), test),
            one.mount.get(test, NOT_REACHED).said or one.bare.get(test, NOT_REACHED).said,
        ]
        for share, one in ran
        for test in one.differing()
    ]


def verdict(ran: Sequence[tuple[str, Ran]]) -> list[str]:
    """Lines about the table of differences: which count, and why there are others."""
    rows = differences(ran)
    count = sum(lost(row) for row in rows)
    tests = dict.fromkeys(row[0].strip("`") for row in rows)
    return [
        *paragraph(
            f"""{count or "None"} of them went well over the bare directory and failed over the
            mount each time it was repeated; the others depend on time and on what else the machine
            does. In the table, "none" means that a test was not reached."""
        ),
        *(
            line
            for test in tests
            if test in KNOWN
            for line in [*textwrap.wrap(f"- `{test}`: {' '.join(KNOWN[test].split())}", 100)]
        ),
    ]


def lost(difference: Sequence[str]) -> bool:
    """Whether a row of ``differences`` is of a test that the mount makes fail."""
    return difference[2] == "success" and difference[5].startswith("0 of")


def common_failures(ran: Iterable[tuple[str, Ran]]) -> list[list[str]]:
    """A row for each test that fails on both sides."""
    rows = []
    for share, one in ran:
        for test in one.failing():
            bare = one.bare.get(test, NOT_REACHED).said
            mount = one.mount.get(test, NOT_REACHED).said
            said = bare if same(bare, mount) else f"bare: {bare}; mount: {mount}"
            rows.append([f"`{one.suite} {test}`", share, said])
    return rows


def suites(ran: Iterable[tuple[str, Ran]]) -> list[list[str]]:
    """A row for each suite, those that differ first."""
    rows = []
    for share, one in sorted(ran, key=lambda pair: not pair[1].differing()):
        bare, mount = counts([one.bare]), counts([one.mount])
        rows.append(
            [
                one.suite,
                share,
                f"{bare['success']} / {bare['failed']} / {bare['skip']}",
                f"{mount['success']} / {mount['failed']} / {mount['skip']}",
                f"{one.bare_s:.1f} s",
                f"{one.mount_s:.1f} s",
                str(len(one.differing()) or "–"),
            ]
        )
    return rows


DIFFERENCE = ("test", "share", "bare", "mount", "again: bare", "again: mount", "what it says")
SUITE = ("suite", "share", "bare", "mount", "bare", "mount", "differing")


def total(ran: Iterable[tuple[str, Ran]], share: str) -> list[str]:
    """A row of counts for all suites of a share."""
    of_share = [one for name, one in ran if name == share]
    bare = counts(one.bare for one in of_share)
    mount = counts(one.mount for one in of_share)
    return [
        share,
        str(len(of_share)),
        *(str(bare[kind]) for kind in ("success", "failed", "skip")),
        *(str(mount[kind]) for kind in ("success", "failed", "skip")),
        str(sum(len(one.differing()) for one in of_share)),
    ]


def paragraph(text: str) -> list[str]:
    """Lines of a width that can be read, and an empty one."""
    return [*textwrap.wrap(" ".join(text.split()), 100), ""]


def document(ran: Sequence[tuple[str, Ran]], versions: str, minutes: float) -> str:
    """The whole of ``docs/exports/smbtorture.md``."""
    shares = list(dict.fromkeys(share for share, _ in ran))
    options = samba.section(
        Share(name=NAME, path=Path("DIRECTORY"), mountpoint=Path("MOUNTPOINT")), guard=False
    )
    different = differences(ran)
    kinds = ("passed", "failed", "skipped")
    heads = (
        "share",
        "suites",
        *(f"{side}: {kind}" for side in SIDES for kind in kinds),
        "differing",
    )
    return "\n".join(
        [
            "# smbtorture",
            "",
            *paragraph(
                f"""Samba's own tests, against the same smbd over a mount and over a bare directory
                of the same ext4 file system, written by `python -m tests.conformance.smbtorture`
                (by hand, as root, {minutes:.0f} minutes; `make test` runs the {len(QUICK)} suites
                that take seconds). {versions}, {date.today():%Y-%m-%d}."""
            ),
            *paragraph(
                f"""A suite runs on both sides at the same time, each with an smbd that was just
                started and a limit of {LIMIT_S:.0f} s, or five times that for those known to be
                long. Tests that went well on one side only are run {AGAIN} times more, with nothing
                beside them. "Failed" includes what was not ended or not reached within the limit.
                Times are those of some suites at once."""
            ),
            *table(heads, (total(ran, share) for share in shares)),
            "",
            *paragraph(
                f"""The share `{NAME}` is configured as `modamafs export` does it; `torture` stores
                what Windows keeps beside a file, as most of the tests want it; `leases` is for the
                suite that needs leases of the kernel. What fails on `{NAME}` alone asks for the
                right to execute a file that is not executable, for streams, or for attributes that
                are stored."""
            ),
            "## Differences",
            "",
            *([*table(DIFFERENCE, different), "", *verdict(ran)] if different else ["None."]),
            "",
            "## Suites",
            "",
            *paragraph("Passed / failed / skipped, and how long it took."),
            *table(SUITE, suites(ran)),
            "",
            "## Failing on both sides",
            "",
            *paragraph(
                """So with Samba over ext4 itself. Where the two sides say something else, both are
                quoted."""
            ),
            *table(("test", "share", "what it says"), common_failures(ran)),
            "",
            "## Configuration",
            "",
            *paragraph("On both sides the same, but for the paths:"),
            "```ini",
            *(
                line.strip()
                for line in (options + EXTRA.format(path="DIRECTORY")).splitlines()
                if line.strip()
            ),
            "```",
            "",
        ]
    )


def version(*words: str) -> str:
    """The first version number that a program says of itself."""
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    found = re.search(r"\d+(\.\d+)+\S*", done.stdout + done.stderr)
    return found.group() if found else "unknown"


def main(arguments: Sequence[str] | None = None) -> int:
    """0: no test that goes well over the bare directory always fails over the mount."""
    parser = argparse.ArgumentParser("python -m tests.conformance.smbtorture", description=__doc__)
    parser.add_argument("suites", nargs="*", help="only these, and write no document")
    parser.add_argument("--share", choices=SUITES, help="only the suites for this one")
    parser.add_argument("--limit", type=float, default=LIMIT_S, help="seconds for a suite")
    parser.add_argument("--jobs", type=int, default=4, help="suites at the same time; default: 4")
    chosen = parser.parse_args(arguments)
    if os.geteuid():
        parser.error("needs root")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    work = [
        (share, suite)
        for share, known in SUITES.items()
        for suite in known
        if chosen.share in (None, share) and (not chosen.suites or suite in chosen.suites)
    ]
    began_s = time.monotonic()
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="conf-smb-")))
        directory.chmod(0o755)
        sides = stack.enter_context(two_sides(directory, PEOPLE[USER].uid))
        ran = compare(work, sides, chosen.limit, chosen.jobs)
    minutes = (time.monotonic() - began_s) / 60
    versions = (
        f"smbd and smbtorture {version('smbtorture', '--version')}, "
        f"Linux {platform.release()}, modamafs {version(*command(), '--version')}"
    )
    print(*table(DIFFERENCE, differences(ran)), "", *table(SUITE, suites(ran)), sep="\n")
    if not (chosen.suites or chosen.share):
        DOCUMENT.parent.mkdir(exist_ok=True)
        DOCUMENT.write_text(document(ran, versions, minutes))
        print(f"\nwritten: {DOCUMENT}")
    return int(any(map(lost, differences(ran))))


if __name__ == "__main__":
    sys.exit(main())
