"""``modamafs export demo``: the same files as a network drive, an NFS path and a WebDAV folder."""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shlex
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import click
from rich.console import Console
from rich.text import Text

from modamafs import mounting
from modamafs.config import MountSpec
from modamafs.errors import ModamaError, NotInstalled
from modamafs.exports.check import examine
from modamafs.exports.client import Client
from modamafs.exports.nfs_client import NfsClient
from modamafs.exports.servers import ADDRESS, Ganesha, Identity, Samba, Server, WebDav
from modamafs.exports.share import Share, share
from modamafs.exports.smb_client import SmbClient
from modamafs.exports.webdav_client import WebDavClient
from modamafs_cli import mount
from modamafs_cli._common import emit, find_mount, json_option
from modamafs_cli._export import sealed_file, table
from modamafs_cli._place import Place, stop_by_signal, temporary
from modamafs_cli._sealing import ask

NAME = "data"
SESSION = "tem/demo/2026-07-01"
WRITABLE = f"{SESSION}/notes"
PORTS = {"samba": 4450, "nfs": 12049, "webdav": 8445}


class Person(NamedTuple):
    """Who tries it out, and owns the files."""

    name: str
    identity: Identity
    password: str


class Served(NamedTuple):
    """A server and how it is reached."""

    kind: str
    server: Server
    ways: list[str]
    connect: Callable[[], Client]


@click.command("demo")
@click.option(
    "--directory", type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Make it in this directory, not in /tmp.",
)  # fmt: skip
@click.option("--smb-port", default=PORTS["samba"], show_default=True, help="0: any.")
@click.option("--nfs-port", default=PORTS["nfs"], show_default=True, help="0: any.")
@click.option("--webdav-port", default=PORTS["webdav"], show_default=True, help="0: any.")
@click.option("--once", is_flag=True, help="Start, check, stop; without waiting for Ctrl-C.")
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    directory: Path | None,
    smb_port: int,
    nfs_port: int,
    webdav_port: int,
    once: bool,
    as_json: bool,
) -> None:
    """Start smbd, NFS-Ganesha and a WebDAV server over a mount of made-up data. Needs root.

    Only this machine reaches them. Ctrl-C stops them, and removes everything.

    \b
    Example:
      sudo modamafs export demo
    """
    ports = {"samba": smb_port, "nfs": nfs_port, "webdav": webdav_port}
    console = Console(quiet=as_json, highlight=False)
    with stop_by_signal(), temporary(ctx, directory, keep=False) as place:
        mounting.check(MountSpec(store=str(place.store), mountpoint=str(place.data)))
        person = _person()
        shown = _mounted(ctx, place, person)
        with contextlib.ExitStack() as stack:
            lacking: list[str] = []
            served = _served(stack, place, shown, person, ports, lacking)
            if not served:
                raise ModamaError("; ".join(lacking))
            reports = [_checked(console, one, shown) for one in served]
            for words in lacking:
                _say(console, f"\nleft out: {words}")
            ok = all(row["ok"] is not False for one in reports for row in one["checks"])
            if not once and not as_json:
                _wait(console, place)
    emit({"servers": reports, "left_out": lacking}, "", as_json=as_json)
    if not ok:
        ctx.exit(1)


def _person() -> Person:
    """Who gave the command by sudo; root's demo is nobody's, as root is shown other rights."""
    uid = int(os.environ.get("SUDO_UID", 0))
    known = pwd.getpwuid(uid) if uid else pwd.getpwnam("nobody")
    identity = Identity(
        known.pw_uid,
        known.pw_gid,
        tuple(os.getgrouplist(known.pw_name, known.pw_gid)),
    )
    return Person(known.pw_name, identity, secrets.token_urlsafe(9))


def _mounted(ctx: click.Context, place: Place, person: Person) -> Share:
    """A store with a session, of which ``raw`` is sealed, and notes beside it."""
    place.directory.chmod(0o755)
    raw = place.store / SESSION / "raw"
    raw.mkdir(parents=True)
    notes = place.store / WRITABLE
    notes.mkdir()
    (raw / "scan.raw").write_bytes(bytes(range(256)) * 4096)
    (notes / "README.txt").write_text("The session is sealed; this directory is not.\n")
    for path in (place.store, *sorted(place.store.rglob("*"))):
        os.chown(path, person.identity.uid, person.identity.gid)
    ctx.invoke(mount.command, store=str(place.store), mountpoint=str(place.data))
    ask("seal", str(place.data / SESSION / "raw"))
    return share(NAME, place.data, place.data)


def _served(
    stack: contextlib.ExitStack,
    place: Place,
    shown: Share,
    person: Person,
    ports: dict[str, int],
    lacking: list[str],
) -> list[Served]:
    """Those that are installed, running; ``lacking`` gets what the others need."""
    users = {person.name: person.password}
    smbd = Samba(place.directory / "samba", [shown], users, ports["samba"])
    ganesha = Ganesha(place.directory / "nfs", [shown], ports["nfs"], squash="No_Root_Squash")
    webdav = WebDav(
        place.directory / "webdav", shown, users, ports["webdav"], acts_as=person.identity
    )
    uid, gid = person.identity[:2]
    plans = [
        Served(
            "Samba", smbd,
            [f"smbclient -p {smbd.port} -U {person.name}%{person.password} //{ADDRESS}/{NAME}"],
            lambda: SmbClient(ADDRESS, smbd.port, NAME, person.name, person.password),
        ),
        Served(
            "NFS", ganesha,
            [
                f"nfs-ls 'nfs://{ADDRESS}/{NAME}?nfsport={ganesha.port}&version=4'",
                f"mount -t nfs4 -o port={ganesha.port} {ADDRESS}:/{NAME} /mnt",
            ],
            lambda: NfsClient(ADDRESS, ganesha.port, NAME, uid=uid, gid=gid),
        ),
        Served(
            "WebDAV", webdav,
            [
                f"http://{ADDRESS}:{webdav.port}/{NAME}/   as {person.name}, {person.password}",
                f"rclone lsf --webdav-url http://{ADDRESS}:{webdav.port}/{NAME} "
                f"--webdav-user {person.name} "
                f"--webdav-pass $(rclone obscure {shlex.quote(person.password)}) :webdav:",
            ],
            lambda: WebDavClient(ADDRESS, webdav.port, NAME, person.name, person.password),
        ),
    ]  # fmt: skip
    running = []
    for plan in plans:
        try:
            stack.enter_context(plan.server)
        except NotInstalled as error:
            lacking.append(f"{plan.kind}: {error.message}")
        else:
            running.append(plan)
    return running


def _checked(console: Console, one: Served, shown: Share) -> dict[str, Any]:
    """Say how it is reached, and what it answers."""
    _say(console, f"\n{one.kind}, port {one.server.port} of this machine", "bold")
    for way in one.ways:
        _say(console, f"  {way}", "cyan")
    found = find_mount(str(shown.mountpoint))
    rows = list(examine(one.connect, writable=WRITABLE, sealed=sealed_file(shown, found)))
    for line in table(rows).splitlines():
        _say(console, f"    {line}")
    return {
        "kind": one.kind,
        "port": one.server.port,
        "checks": [row._asdict() for row in rows],
    }


def _wait(console: Console, place: Place) -> None:
    with contextlib.suppress(KeyboardInterrupt):
        _say(console, f"\nThe same files, local: {place.data}", "bold")
        _say(console, "Ctrl-C stops the servers and removes everything.")
        signal.pause()


def _say(console: Console, text: str, style: str = "") -> None:
    console.print(Text(text, style), soft_wrap=True)
