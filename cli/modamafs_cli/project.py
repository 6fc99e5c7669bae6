"""``modamafs project``."""

from __future__ import annotations

from typing import Any

import click

from modamafs_cli._catalogue import (
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


@click.group("project")
def command() -> None:
    """Make projects, say who may work in them, and describe them.

    \b
    Example:
      modamafs project create /data/tem/phase-plates --title "Phase plates" --member bob
    """


@command.command("create")
@click.argument("path")
@words
@click.option("--member", "members", multiple=True, metavar="USER", help="Who may write, too.")
@click.option("--group", metavar="GROUP", help="A group whose members may write.")
@click.option("--private", is_flag=True, help="Close it to everybody else.")
@click.option("--license", metavar="SPDX", help="The data's licence, such as CC-BY-4.0.")
def create(path: str, private: bool, as_json: bool, **options: Any) -> None:
    """Make the project PATH: its directory, AREA/PROJECT in the store, and its record.

    Who can write to the area's directory may, stewards, and root; stewards and root also make the
    area. What is created in the project is writable for its owner, members and group.

    \b
    Examples:
      modamafs project create /data/tem/phase-plates --title "Phase plates" --member bob
      modamafs project create --private --group er-c --license CC-BY-4.0 \\
        --meta "beam_energy=300 keV" --link "Wiki=https://wiki.example.org/pp" \\
        --title "Phase plates" /data/tem/phase-plates
    """
    visibility = "private" if private else None
    arguments = prepared(options) | {"visibility": visibility}
    ask_and_print("project-create", path, as_json=as_json, is_new=True, **arguments)


@command.command("set")
@click.argument("path")
@words
@click.option("--member", "members", multiple=True, metavar="USER", help="One more who may write.")
@click.option("--group", metavar="GROUP", help="The group whose members may write.")
@click.option(
    "--private/--no-private", default=None, help="Close it to everybody else, or open it."
)
@click.option("--license", metavar="SPDX", help="The data's licence, such as CC-BY-4.0.")
@remove_option
def set_(path: str, private: bool | None, as_json: bool, **options: Any) -> None:
    """Change the record of the project PATH, and who may work in it; the owner may, and stewards.

    Keywords, members, links and values are added to those that there are; --remove takes some out.
    With --title, a directory without a record gets one. Sealed data keep their permissions.

    \b
    Examples:
      modamafs project set /data/tem/phase-plates --member carol --remove member=bob
      modamafs project set /data/tem/phase-plates --private
    """
    visibility = {True: "private", False: "members", None: None}[private]
    arguments = prepared(options) | {"visibility": visibility}
    ask_and_print("project-set", path, as_json=as_json, **arguments)


@command.command("show")
@click.argument("path")
@json_option
def show(path: str, as_json: bool) -> None:
    """Show the record of the project PATH; exit status 1 where it has none that can be read.

    \b
    Example:
      modamafs project show --json /data/tem/phase-plates | jq -r .record.title
    """
    show_record("project-show", path, as_json=as_json)


@command.command("list")
@click.argument("path", default=".")
@json_option
def list_(path: str, as_json: bool) -> None:
    """List the projects below PATH, a store or an area, that you can enter.

    \b
    Example:
      modamafs project list --json /data | jq -r '.[] | select(.problem) | .path'
    """
    result = ask("project-list", path)
    rows = []
    for one in result:
        record = one["record"]
        if record is None:
            rows.append([one["path"], one["problem"] or "", one["directory"]["owner"], ""])
        else:
            rows.append([one["path"], record["title"], who(record["owner"]), record["visibility"]])
    text = table(("path", "title", "owner", "visibility"), rows)
    emit(result, text or f"{path}: no projects", as_json=as_json)
