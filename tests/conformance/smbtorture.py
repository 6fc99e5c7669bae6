"""smbtorture over a mount and over the bare directory beside it, and where they differ.

``python -m tests.conformance.smbtorture`` takes about half an hour, as root; it writes
``docs/exports/smbtorture.md``. Both directories lie on one ext4 image, each behind an smbd of its
own with the same configuration. A suite runs on both at the same time, and when they differ another
three times, one after the other.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import pwd
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import NamedTuple

from modamafs.exports import samba, servers
from modamafs.exports.share import Share
from tests.support.images import Image
from tests.support.mounts import Mount

REPOSITORY = Path(__file__).parents[2]
DOCUMENT = REPOSITORY / "docs" / "exports" / "smbtorture.md"

USER, PASSWORD = "modtorture", "torture"
PORTS = {"bare": 44510, "mount": 44511}
LIMIT_S = 120.0
"""For a suite. What it has not said by then has failed."""
AGAIN = 3
"""How often a suite is repeated whose outcomes differ."""

# What a standalone smbd can be asked. Left out: what measures or waits for a person (bench-*,
# hold-*, iometer, ping-pong, maxfid), what tries all numbers to see what comes (scan*), what takes
# longer than LIMIT_S on any file system (defer_open, casetable, utable, createx_sharemodes_dir over
# a mount), and what asks for a module that delays requests (aio_delay, async_dosmode), for
# snapshots (twrp), for Kerberos, or for a share with other options than ours
# (change_notify_disabled, create_no_streams, acls_non_canonical, fruit).
SMB2 = """
    acls charset check-sharemode compound compound_async compound_find connect create credits
    delete-on-close-perms deny dir dosmode durable-open durable-open-disconnect durable-v2-delay
    durable-v2-open ea fileid getinfo ioctl ioctl-on-stream lease lock mangle maximum_allowed mkdir
    multichannel notify notify-inotify openattr oplock read rename replay rw samba3misc sdread
    secleak session session-id set-sparse-ioctl setinfo sharemode streams tcon
    timestamp_resolution timestamps winattr zero-data-ioctl
"""
BASE = """
    aliases attr birthtime charset chkpath createx_access createx_sharemodes_file delaywrite delete
    deny1 deny2 deny3 denydos dir1 dir2 disconnect lock mangle maximum_allowed negnowait ntdeny1
    ntdeny2 nttrans open openattr properties rename rw1 secleak smb tcon tcondev trans2 unlink vuid
    winattr xcopy
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

STORED = """\
    read only = no
    ea support = yes
    store dos attributes = yes
    map readonly = no
    map archive = no
    map hidden = no
    map system = no
"""
MODULES = """\
    # ACLs and streams of Windows, in extended attributes.
    vfs objects = acl_xattr streams_xattr
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
    """A suite, on both sides."""

    suite: str
    bare: Outcomes
    mount: Outcomes
    bare_s: float
    mount_s: float
    again: list[tuple[Outcomes, Outcomes]]
    """Bare and mount once more, several times, when the first two differed."""

    def differing(self) -> list[str]:
        """Tests that went well on one side only."""
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
    """A directory of ``owner`` on ext4 as it is, and one on the same file system through a mount."""
    with Image("ext4", directory) as image:
        for name in ("bare", "store"):
            (image.root / name).mkdir()
        with Mount(image.root / "store", directory / "mount") as mount:
            sides = {
                "bare": Share(name="share", path=image.root / "bare/data", mountpoint=image.root),
                "mount": Share(name="share", path=mount.root / "data", mountpoint=mount.root),
            }
            for share in sides.values():
                share.path.mkdir()
                share.path.chmod(0o755)
                os.chown(share.path, owner, -1)
            yield sides


@contextlib.contextmanager
def system_user(name: str) -> Iterator[int]:
    """The uid of a user of the system, who is made for the block if there is none."""
    try:
        yield pwd.getpwnam(name).pw_uid
        return
    except KeyError:
        pass
    subprocess.run(
        ["useradd", "--no-create-home", "--shell", "/usr/sbin/nologin", name], check=True
    )
    try:
        yield pwd.getpwnam(name).pw_uid
    finally:
        subprocess.run(["userdel", name], check=True)


def empty(directory: Path) -> None:
    """Remove what a suite left behind."""
    for path in directory.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


# one suite


def smbd(directory: Path, side: str, share: Share) -> servers.Samba:
    """With one share as we recommend it, and others that smbtorture can make more of."""
    recommended = share.model if False else share  # placeholder
    return servers.Samba(directory, [recommended], {USER: PASSWORD}, PORTS[side])
