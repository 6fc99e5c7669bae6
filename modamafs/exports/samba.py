"""Samba: a section of ``smb.conf`` for a share, and a whole configuration to try it out.

Source: smb.conf(5) of Samba 4.17; what was measured is in ``docs/exports/samba.md``.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from pathlib import Path

from modamafs.exports.share import Share

PACKAGES = "samba samba-vfs-modules"


def section(share: Share) -> str:
    """The section of one share."""
    return f"""\
[{share.name}]
    comment = research data (modamafs)
    path = {share.path}
    read only = {"yes" if share.read_only else "no"}
    # Nobody is connected to what lies below the mount point when the mount is gone.
    root preexec = /usr/bin/mountpoint -q {shlex.quote(str(share.mountpoint))}
    root preexec close = yes
    # Windows' read-only attribute says what the user may do by modes and ACLs: what is sealed is
    # shown to everybody without write permission, so Explorer says so before anybody tries.
    map readonly = permissions
    # Attributes that Windows would store beside a file are no part of the data; a seal would
    # refuse them, and copies would carry "read-only" along.
    store dos attributes = no
    map archive = no
    map hidden = no
    map system = no
    # What others make in a project stays the project's: its group, and its default ACL.
    create mask = 0775
    directory mask = 2775
    # Otherwise the masks give others what a default ACL denies them.
    inherit acls = yes
    # Locks are asked of the mount, so that SMB, NFS and local programs see each other's.
    posix locking = yes
    # A file that somebody reads can be sealed, and a sealed file can be read.
    kernel share modes = no
    # Space is allocated when it is written.
    strict allocate = no
    # Links of views/ and landing/ stay inside of the mount.
    follow symlinks = yes
    wide links = no
"""


def private(shares: Iterable[Share], directory: Path, port: int) -> str:
    """A whole ``smb.conf``: an smbd of its own, without root's Samba, on an unprivileged port."""
    places = "\n".join(
        f"    {name} = {directory}/{place}"
        for name, place in (
            ("private dir", "private"),
            ("lock directory", "lock"),
            ("state directory", "state"),
            ("cache directory", "cache"),
            ("pid directory", "pid"),
            ("ncalrpc dir", "ncalrpc"),
            ("log file", "log.smbd"),
            ("passdb backend", "private/passdb.tdb"),
        )
    ).replace("passdb backend = ", "passdb backend = tdbsam:")
    return f"""\
[global]
    server role = standalone server
    # Only this machine reaches it.
    interfaces = 127.0.0.1/8
    bind interfaces only = yes
    smb ports = {port}
    disable netbios = yes
    # Nothing is shared with the Samba that the machine may have.
{places}
    # No printers, and no helpers of its own.
    load printers = no
    printcap name = /dev/null
    disable spoolss = yes
    rpc start on demand helpers = false
    map to guest = never

{"".join(f"{section(share)}" for share in shares)}"""


DIRECTORIES = ("private", "lock", "state", "cache", "pid", "ncalrpc")
"""What ``private`` needs in its directory."""


def own_file(directory: Path, share: Share) -> Path:
    """Where a share's section is kept; ``directory``: of ``smb.conf``."""
    return directory / "modamafs" / f"{share.name}.conf"


def include(directory: Path, share: Share) -> str:
    """The line of ``smb.conf`` that reads it."""
    return f"include = {own_file(directory, share)}"


def sections(text: str) -> set[str]:
    """The names of all shares that a configuration has, as testparm(1) prints it."""
    found = re.findall(r"^\s*\[(.+?)\]\s*$", text, re.MULTILINE)
    return {name.lower() for name in found}
