"""``modamafs watch``."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import click

from modamafs.control import client
from modamafs.errors import NotMounted
from modamafs_cli._common import (
    RunningMount,
    json_option,
    locate,
    the_only_mount,
)
from modamafs_cli._sealing import locate_directory
from modamafs_cli._text import printable

WAIT_S = 30
PAGE_LIMIT = 1000


@click.command("watch")
@click.argument("path", required=False)
@click.option("--since", metavar="POSITION", help="Go on behind this position.")
@click.option("--once", is_flag=True, help="Print what has happened so far, and end.")
@json_option
@click.pass_context
def command(
    ctx: click.Context, path: str | None, since: str | None, once: bool, as_json: bool
) -> None:
    """Follow what changes below PATH, whoever changes it, a line for each change.

    With --json each line is an object with the position that --since takes: who remembers the last
    one misses nothing. An object with the event "lost" says that some changes in between are not
    known any more: look at everything, and go on with its position.

    \b
    Examples:
      modamafs watch /data/tem
      modamafs watch --json --since "$(cat position)" --once /data | ./mirror
    """
    mount, within = _where(path)
    arguments: dict[str, Any] = {
        "path": within.decode("utf-8", "surrogateescape"),
        "since": since,
        "limit": PAGE_LIMIT,
    }
    top = locate(mount.spec.mountpoint).relative if mount.spec.shows else b""
    try:
        _follow(mount, top, arguments, once=once, as_json=as_json)
    except KeyboardInterrupt:
        ctx.exit(0)


def _follow(
    mount: RunningMount, top: bytes, arguments: dict[str, Any], *, once: bool, as_json: bool
) -> None:
    while True:
        wait_s = 0 if once or arguments["since"] is None else WAIT_S
        page = client.call(mount.runtime, "changes", {**arguments, "wait_s": wait_s})
        for change in page["changes"]:
            _print(mount, top, change, as_json=as_json)
        if page["lost"]:
            _print_lost(page["position"], as_json=as_json)
        sys.stdout.flush()
        is_end = not page["changes"] and page["position"] == arguments["since"]
        if once and (is_end or page["lost"] or arguments["since"] is None):
            if arguments["since"] is None:
                position = {"event": "position", "position": page["position"]}
                click.echo(json.dumps(position) if as_json else page["position"])
            return
        arguments["since"] = page["position"]


def _where(path: str | None) -> tuple[RunningMount, bytes]:
    if path is not None:
        place = locate_directory(path)
    else:
        try:
            place = locate(".")
        except (NotMounted, OSError):
            mount = the_only_mount("name a path in one")
            return mount, locate(mount.spec.mountpoint).relative
    if place.mount is None:
        raise NotMounted(f"{place.store} is not mounted: changes are noticed while it is")
    return place.mount, place.relative


def _print(mount: RunningMount, top: bytes, change: dict[str, Any], *, as_json: bool) -> None:
    def shown(path: str | None) -> str | None:
        if path is None:
            return None
        relative = os.fsencode(path).removeprefix(top + b"/" if top else b"")
        return os.path.join(mount.spec.mountpoint, os.fsdecode(relative))

    change = {**change, "path": shown(change["path"]), "old_path": shown(change["old_path"])}
    if change["event"] == "lost":
        _print_lost(change["position"], as_json=as_json)
    elif as_json:
        click.echo(json.dumps(change))
    else:
        line = f"{change['at']}  {change['event']:<10}  {printable(change['path'])}"
        if change["old_path"]:
            line += f"  (was {printable(change['old_path'])})"
        if change["outside"]:
            line += "  [on the store]"
        click.echo(line.encode(errors="backslashreplace"))


def _print_lost(position: str, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"event": "lost", "position": position}))
    else:
        click.echo("some changes are not known any more: look at everything", err=True)
