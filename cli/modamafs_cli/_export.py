"""What the commands of ``modamafs export`` share: what is exported, and how it is told."""

from __future__ import annotations

import contextlib
import functools
import os
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from modamafs.control import client
from modamafs.errors import InvalidRequest, ModamaError, NotMounted
from modamafs.exports import place
from modamafs.exports.check import Row, Sealed, examine
from modamafs.exports.client import Client
from modamafs.exports.share import Share, share
from modamafs.store.backing import Store
from modamafs.store.seals import Seals
from modamafs_cli._common import RunningMount, emit, running_mounts
from modamafs_cli._text import printable

PATIENCE_S = 2.0
LOOKED_AT = 1000
"""Entries of a sealed directory that are looked at to find a file."""


def of_share(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command PATH, --name and --read-only; its function gets the share (``shown``)."""

    @click.argument("path")
    @click.option("--name", metavar="NAME", help="Of the share; the directory's.")
    @click.option("--read-only", is_flag=True, help="Nobody changes anything by it.")
    @functools.wraps(function)
    def run(path: str, name: str | None, read_only: bool, **others: Any) -> None:
        function(shown=_shared(path, name, read_only=read_only), **others)

    return run


def _shared(path: str, name: str | None, *, read_only: bool) -> Share:
    """The share of a directory in a mount; without a name, by that of the directory.

    Raises NotMounted (ENOENT): it lies in no running mount; InvalidRequest (EINVAL).
    """
    directory = Path(os.path.realpath(path, strict=True))
    if not directory.is_dir():
        raise InvalidRequest(f"{directory} is not a directory: export one")
    mount = mount_of(directory)
    _warn_of_fallback(mount)
    return share(
        (directory.name or "data") if name is None else name,
        directory,
        Path(mount.spec.mountpoint),
        read_only=read_only or mount.spec.read_only,
    )


def mount_of(directory: Path) -> RunningMount:
    """The mount that a directory lies in, by its real path. Raises NotMounted (ENOENT)."""
    running = running_mounts()
    inside = [one for one in running if directory.is_relative_to(one.spec.mountpoint)]
    if not inside:
        raise NotMounted(_where_else(str(directory), running))
    return max(inside, key=lambda one: len(one.spec.mountpoint))


def _where_else(real: str, running: Iterable[RunningMount]) -> str:
    for mount in running:
        if Path(real).is_relative_to(mount.spec.store):
            seen = os.path.join(mount.spec.mountpoint, os.path.relpath(real, mount.spec.store))
            return (
                f"{real} is on the store itself, where no mount keeps seals and rights: "
                f"export {os.path.normpath(seen)}"
            )
    return f"{real} is in no running mount: mount its store first (see 'modamafs status')"


def _warn_of_fallback(mount: RunningMount) -> None:
    known: dict[str, Any] = {}
    with contextlib.suppress(ModamaError):
        known = client.call(mount.runtime, "status", timeout_s=PATIENCE_S)
    if known.get("passthrough") is False:
        click.echo(
            f"modamafs: warning: {mount.spec.mountpoint} is mounted without passthrough: servers "
            "read and write it at a fraction of the speed (see 'modamafs doctor')",
            err=True,
        )


def tell_steps(steps: list[place.Step], after: list[str], *, dry_run: bool, as_json: bool) -> None:
    """Carry out a plan, or only say what it is. ``after``: what is left to do by hand."""
    if not dry_run:
        place.carry_out(steps)
    done = [{"action": step.action, "path": str(step.path)} for step in steps]
    lines = [f"{step.action:<11} {step.path}: {step.what}" for step in steps] or ["nothing to do"]
    if dry_run:
        lines.insert(0, "(a dry run: nothing is written)")
        for step in steps:
            if step.action in ("make", "change") and step.content:
                lines += ["", f"{step.path}:", step.content]
    is_done = all(step.action == "leave" for step in steps)
    lines += [] if is_done else after
    emit({"dry_run": dry_run, "steps": done, "then": after}, "\n".join(lines), as_json=as_json)


def checked(
    ctx: click.Context,
    shown: Share,
    connect: Callable[[], Client],
    writable: str,
    *,
    as_json: bool,
) -> None:
    """Ask the running server everything and print the table; exit status 1: something is wrong."""
    rows = list(
        examine(
            connect,
            writable=writable,
            sealed=sealed_file(shown, mount_of(shown.path)),
            read_only=shown.read_only,
        )
    )
    emit([row._asdict() for row in rows], "" if as_json else table(rows), as_json=as_json)
    if any(row.ok is False for row in rows):
        ctx.exit(1)


def table(rows: Iterable[Row]) -> str:
    """For people."""
    drawn = Table(box=None, show_header=False, pad_edge=False)
    drawn.add_column(no_wrap=True)
    drawn.add_column(no_wrap=True)
    drawn.add_column(overflow="fold")
    words = {True: "yes", False: "NO", None: "-"}
    for row in rows:
        drawn.add_row(words[row.ok], row.question, Text(printable(row.answer)))
    console = Console(highlight=False)
    with console.capture() as captured:
        console.print(drawn)
    return captured.get().rstrip()


def sealed_file(shown: Share, mount: RunningMount) -> Sealed | None:
    """A file of a sealed directory in a share; None: there is none, or only root is told."""
    with contextlib.suppress(PermissionError), Store(Path(mount.spec.store)) as store:
        for root in Seals(store).sealed_roots():
            path = _in_mount(mount, os.fsdecode(root))
            if path is not None and path.is_relative_to(shown.path):
                file = _some_file(path)
                if file is not None:
                    return Sealed(
                        str(path.relative_to(shown.path)), str(file.relative_to(shown.path))
                    )
    return None


def _in_mount(mount: RunningMount, root: str) -> Path | None:
    shows = mount.spec.shows
    if shows is not None and len(shows.projects) == 1:
        [project] = shows.projects
        if not root.startswith(f"{project}/"):
            return None
        root = root.removeprefix(f"{project}/")
    path = Path(mount.spec.mountpoint, root)
    return path if path.is_dir() else None


def _some_file(directory: Path) -> Path | None:
    looked_at = 0
    for above, _, names in os.walk(directory):
        for name in names:
            found = os.lstat(os.path.join(above, name))
            if stat.S_ISREG(found.st_mode) and found.st_size:
                return Path(above, name)
            looked_at += 1
        if looked_at > LOOKED_AT:
            break
    return None
