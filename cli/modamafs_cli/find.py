"""``modamafs find``."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click

from modamafs.control import client
from modamafs.errors import InvalidRequest, NotMounted, NotPermitted, NotSupported
from modamafs.index.query import parse, quoted
from modamafs.model import Caller
from modamafs_cli._common import RunningMount, json_option, locate, the_only_mount
from modamafs_cli._sealing import locate_directory
from modamafs_cli._text import printable

PAGE_LIMIT = 1000


class Find(click.Command):
    """Says what to do about a word that looks like an option."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click does."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            hint = "words to leave out go behind '--': modamafs find -- tilt -raw"
            raise click.UsageError(f"{error.format_message()} {hint}", ctx) from None


@click.command("find", cls=Find)
@click.argument("query", nargs=-1, required=True)
@click.option("--in", "directory", metavar="PATH", help="Only what lies below this directory.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="At most so many.")
@click.option("--count", is_flag=True, help="Print how many there are.")
@click.option("--print0", is_flag=True, help="End each path with a NUL byte, for 'xargs -0'.")
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    query: tuple[str, ...],
    directory: str | None,
    limit: int | None,
    count: bool,
    print0: bool,
    as_json: bool,
) -> None:
    """Find files and directories by name, words and metadata; exit status 1 if there are none.

    All words of QUERY have to match. docs/find.md has all that can be asked for.

    \b
    Examples:
      modamafs find skyrmions tilt
      modamafs find '*.dm4' 'beam_energy>=200keV' changed:2026-11 size:10MB..1GB
      modamafs find --in /data/tem --json type:mrc -- -calibration
    """
    if print0 and (as_json or count):
        raise click.UsageError("--print0 goes with neither --json nor --count", ctx)
    text = _text(query)
    try:
        parse(text, time.time_ns())
    except InvalidRequest as error:
        raise click.UsageError(error.message, ctx) from None
    where = _where(directory)
    found = 0
    for result in _results(where, text, limit):
        found += 1
        if not count:
            _print(where, result, print0=print0, as_json=as_json)
    if count:
        click.echo(json.dumps({"count": found}) if as_json else found)
    if not found:
        ctx.exit(1)


def _text(arguments: tuple[str, ...]) -> str:
    """One argument is the query; of several, each is a term."""
    text = arguments[0] if len(arguments) == 1 else " ".join(map(quoted, arguments))
    return os.fsencode(text).decode("utf-8", "surrogateescape")


class _Where(NamedTuple):
    store: Path
    mount: RunningMount | None
    within: bytes
    """Of the store, what is looked through."""
    top: bytes
    """Of the store, what the root of the mount is."""
    shown: bytes
    """Where that is seen."""


def _where(directory: str | None) -> _Where:
    """What to look through: below ``directory``; without it, the store that one is in, or the only
    one that is mounted."""
    if directory is not None:
        place = locate_directory(directory)
        if not os.path.isdir(directory):
            raise InvalidRequest(f"{directory} is no directory: --in takes one")
        within: bytes | None = place.relative
    else:
        try:
            place = locate(".")
        except (NotMounted, OSError):
            place = locate(the_only_mount("name one with --in").spec.mountpoint)
        within = None
    if place.mount is None:
        store = os.fsencode(place.store)
        return _Where(place.store, None, within or b"", b"", store)
    mountpoint = place.mount.spec.mountpoint
    top = locate(mountpoint).relative if place.mount.spec.shows else b""
    within = top if within is None else within
    return _Where(place.store, place.mount, within, top, os.fsencode(mountpoint))


def _results(where: _Where, text: str, limit: int | None) -> Iterator[dict[str, Any]]:
    after: int | None = 0
    left = limit
    was_told = False
    while after is not None and left != 0:
        page = _ask(
            where,
            {
                "query": text,
                "after": after,
                "limit": PAGE_LIMIT if left is None else min(left, PAGE_LIMIT),
                "path": where.within.decode("utf-8", "surrogateescape"),
            },
        )
        state = page["state"]
        if state["state"] != "ok" and not was_told:
            was_told = True
            message = state.get("message") or state["state"]
            click.echo(f"modamafs: results may be incomplete: {message}", err=True)
        yield from page["results"]
        after = page["next"]
        if left is not None:
            left -= len(page["results"])


def _ask(where: _Where, arguments: dict[str, Any]) -> dict[str, Any]:
    if where.mount:
        page = client.call(where.mount.runtime, "find", arguments)
        assert isinstance(page, dict)
        return page
    if os.geteuid() != 0:
        raise NotPermitted(
            f"{where.store} is not mounted: its index is root's; mount the store to search in it"
        )
    from modamafs.config import index_base, load_config
    from modamafs.index.database import index_dir
    from modamafs.index.find import find_command
    from modamafs.store.backing import Store

    above = index_base(load_config(where.store))
    if above is None:
        raise NotSupported(f"{where.store} has no index: its config.toml says so, in [index]")
    caller = Caller(os.geteuid(), os.getegid(), os.getpid(), groups=tuple(os.getgroups()))
    with Store(where.store) as store:
        return find_command(store, index_dir(store, above), arguments, caller)


def _print(where: _Where, result: dict[str, Any], *, print0: bool, as_json: bool) -> None:
    path = result["path"].encode("utf-8", "surrogateescape")
    if where.top:
        path = path.removeprefix(where.top + b"/")
    path = os.path.join(where.shown, path)
    if as_json:
        click.echo(json.dumps(result | {"path": path.decode("utf-8", "surrogateescape")}))
    elif print0:
        click.echo(path + b"\0", nl=False)
    elif sys.stdout.isatty():
        click.echo(printable(os.fsdecode(path)).encode(errors="backslashreplace"))
    else:
        click.echo(path)
