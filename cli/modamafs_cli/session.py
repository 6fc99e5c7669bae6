"""``modamafs session``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from modamafs_cli._catalogue import (
    Decorated,
    ask,
    ask_and_print,
    prepared,
    remove_option,
    show_record,
    table,
    who,
    words,
)
from modamafs_cli._common import emit, json_option


@click.group("session")
def command() -> None:
    """Make sessions in a project, and describe them.

    \b
    Example:
      modamafs session create /data/tem/phase-plates/2026-11-23 --title "First light"
    """


def _measurement(function: Decorated) -> Decorated:
    options: list[Callable[[Decorated], Decorated]] = [
        click.option(
            "--elabftw-id", type=click.IntRange(min=1), metavar="N",
            help="The experiment's number in eLabFTW.",
        ),
        click.option(
            "--sampledb-id", type=click.IntRange(min=1), metavar="N",
            help="The sample's number in SampleDB.",
        ),
        click.option("--sample", metavar="TEXT", help="What was measured."),
        click.option("--date", metavar="YYYY-MM-DD", help="The day of the measurement."),
        click.option("--instrument", metavar="TEXT", help="What it was measured with."),
    ]  # fmt: skip
    for option in options:
        function = option(function)
    return function


@command.command("create")
@click.argument("path")
@words
@_measurement
def create(path: str, as_json: bool, **options: Any) -> None:
    """Make the session PATH: AREA/PROJECT/SESSION in the store, with a record and an empty 'raw'.

    The project's owner and members may, stewards, and root. The date is today's if none is given.

    \b
    Example:
      modamafs session create /data/tem/phase-plates/2026-11-23 --title "First light" \\
        --instrument "Titan Holo" --sample PP-7 --sampledb-id 42 --meta "beam_energy=300 keV"
    """
    ask_and_print("session-create", path, as_json=as_json, is_new=True, **prepared(options))


@command.command("set")
@click.argument("path")
@words
@_measurement
@remove_option
def set_(path: str, as_json: bool, **options: Any) -> None:
    """Change the record of the session PATH; its owner may, stewards, and root.

    Also when its data are sealed: the record lies beside them. Keywords, links and values are added
    to those that there are; --remove takes some out. With --title, a directory without a record
    gets one.

    \b
    Example:
      modamafs session set /data/tem/phase-plates/2026-11-23 --keyword hologram --remove meta=dose
    """
    ask_and_print("session-set", path, as_json=as_json, **prepared(options))


@command.command("show")
@click.argument("path")
@json_option
def show(path: str, as_json: bool) -> None:
    """Show the record of the session PATH; exit status 1 where it has none that can be read.

    \b
    Example:
      modamafs session show --json /data/tem/phase-plates/2026-11-23 | jq .seals
    """
    show_record("session-show", path, as_json=as_json)


@command.command("list")
@click.argument("path", default=".")
@json_option
def list_(path: str, as_json: bool) -> None:
    """List the sessions below PATH: a project, an area or a store.

    \b
    Example:
      modamafs session list --json /data/tem/phase-plates | jq -r '.[] | select(.seals.raw) | .path'
    """
    result = ask("session-list", path)
    rows = []
    for one in result:
        record = one["record"]
        sealed = " ".join(f"{name}:{state}" for name, state in one["seals"].items())
        if record is None:
            rows.append([one["path"], "", one["problem"] or "", one["directory"]["owner"], sealed])
        else:
            owner = who(record["owner"])
            rows.append([one["path"], record["date"], record["title"], owner, sealed])
    text = table(("path", "date", "title", "owner", "seals"), rows)
    emit(result, text or f"{path}: no sessions", as_json=as_json)
