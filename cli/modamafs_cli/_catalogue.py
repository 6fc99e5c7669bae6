"""What the commands about projects and sessions share: whom they ask, options, tables."""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from modamafs.control import client
from modamafs.errors import InvalidRequest, NotPermitted
from modamafs.model import Caller
from modamafs_cli._common import Place, emit, json_option, locate
from modamafs_cli._sealing import locate_directory
from modamafs_cli._text import printable

Decorated = TypeVar("Decorated", bound=Callable[..., Any])
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def ask(verb: str, path: str, *, is_new: bool = False, **arguments: Any) -> Any:
    """Have it done to ``path``, and return the result; arguments that are empty are not sent.

    The daemon of the mount does it; without a mount, this process. Then only root may change
    anything, and others see what the store shows them.
    """
    try:
        place = locate_new(path) if is_new else locate_directory(path)
    except PermissionError:  # what is closed to the caller is not always to the daemon: to stewards
        place = locate_new(path)
    wanted = {"path": os.fsdecode(place.relative)}
    wanted |= {key: value for key, value in arguments.items() if value not in (None, "", (), {})}
    if place.mount:
        return client.call(place.mount.runtime, verb, wanted)
    from modamafs import projects
    from modamafs.store.backing import Store

    if os.geteuid() != 0 and verb in projects.CHANGING:
        raise NotPermitted(
            f"{place.store} is not mounted: on the store itself only root makes and changes records"
        )
    caller = Caller(os.geteuid(), os.getegid(), os.getpid(), groups=tuple(os.getgroups()))
    with Store(place.store) as store:
        return projects.VERBS[verb](store, wanted, caller)


def ask_and_print(
    verb: str, path: str, *, as_json: bool, is_new: bool = False, **arguments: Any
) -> dict[str, Any]:
    """The same where the result is one project or session; prints it."""
    result: dict[str, Any] = ask(verb, path, is_new=is_new, **arguments)
    emit(result, described(result), as_json=as_json)
    return result


def show_record(verb: str, path: str, *, as_json: bool) -> None:
    """Print one project or session; exit status 1 where it has no record that can be read."""
    if ask_and_print(verb, path, as_json=as_json)["record"] is None:
        click.get_current_context().exit(1)


def locate_new(path: str) -> Place:
    """Where a directory will lie that is not there yet; what is above it may be missing as well."""
    trimmed = path.rstrip("/") or path
    above, missing = trimmed, ""
    while not os.path.lexists(above):
        above, name = os.path.split(above)
        if name in (".", ".."):
            raise InvalidRequest(f"{path}: there is nothing that '{name}' could be")
        missing = os.path.join(name, missing) if missing else name
        above = above or "."
    place = locate(above) if missing else locate_directory(above)
    relative = os.path.join(place.relative, os.fsencode(missing)) if missing else place.relative
    return place._replace(relative=relative)


# ---- options -------------------------------------------------------------------------------------


def words(function: Decorated) -> Decorated:
    """The options that projects and sessions, made and changed, have."""
    for option in (
        json_option,
        click.option("--link", "links", multiple=True, metavar="TITLE=URL", help="A link."),
        click.option(
            "--meta", "metadata", multiple=True, metavar="KEY=VALUE[ UNIT]",
            help="A value, such as 'beam_energy=300 keV'.",
        ),
        click.option("--keyword", "keywords", multiple=True, metavar="WORD", help="A keyword."),
        click.option("--owner", metavar="USER", help="Whose it is (stewards: somebody else's)."),
        click.option("--description", metavar="TEXT", help="What it is, at more length."),
        click.option("--title", metavar="TEXT", help="What it is, in a line."),
    ):  # fmt: skip
        function = option(function)
    return function


remove_option = click.option(
    "--remove", multiple=True, metavar="FIELD[=NAME]",
    help="Take something out of the record: 'keyword=old', 'meta=KEY', 'link=TITLE', …",
)  # fmt: skip


def prepared(options: dict[str, Any]) -> dict[str, Any]:
    """The options as the daemon takes them."""
    options["links"] = dict(_pair(link, "TITLE=URL") for link in options["links"])
    pairs = (_pair(value, "KEY=VALUE[ UNIT]") for value in options["metadata"])
    options["metadata"] = {key: _measured(value) for key, value in pairs}
    return options


def _pair(text: str, form: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip() or not value.strip():
        raise click.UsageError(f"'{text}': write {form}", click.get_current_context(silent=True))
    return key.strip(), value.strip()


def _measured(text: str) -> dict[str, Any]:
    """A number with or without a unit, or a text."""
    number, _, unit = text.partition(" ")
    digits = number.lstrip("+-")
    is_label = len(digits) > 1 and digits.startswith("0") and digits[1].isdigit()  # 007
    if not _NUMBER.fullmatch(number) or is_label or not math.isfinite(float(number)):
        return {"value": text}
    value = int(number) if digits.isdigit() else float(number)
    return {"value": value, "unit": unit.strip()} if unit.strip() else {"value": value}


# ---- output --------------------------------------------------------------------------------------


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows for people: a table on a terminal, otherwise lines with tabs between."""
    rows = [[printable(cell) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        return "\n".join("\t".join(row) for row in rows)
    drawn = Table(box=None, pad_edge=False)
    for heading in headings:
        drawn.add_column(heading, overflow="fold")
    for row in rows:
        drawn.add_row(*map(Text, row))
    console = Console()
    with console.capture() as captured:
        console.print(drawn)
    return captured.get().rstrip("\n")


def described(report: dict[str, Any]) -> str:
    """One project or session for people."""
    directory = report["directory"]
    where = f"{directory['owner']}:{directory['group']} {directory['mode']}"
    facts: list[tuple[str, Any]] = [("directory", where)]
    facts += [("sealed", f"{name} ({state})") for name, state in report.get("seals", {}).items()]
    record = report["record"]
    if report["problem"]:
        facts.append(("problem", report["problem"]))
    elif record is None:
        facts.append(("record", "none"))
    for key, value in (record or {}).items():
        facts += [(key.replace("_", " "), line) for line in _lines(value)]
    lines = [printable(report["path"])]
    last = ""
    for name, value in facts:
        lines.append(f"  {f'{printable(name)}:' if name != last else '':<16}{printable(value)}")
        last = name
    return "\n".join(lines)


def _lines(value: Any) -> list[str]:
    if isinstance(value, dict) and "name" in value:
        return [who(value)]
    if isinstance(value, dict):
        return [f"{key} = {_measure(one)}" for key, one in value.items()]
    if isinstance(value, (list, tuple)):
        return [line for one in value for line in _lines(one)]
    return [] if value in (None, "") else str(value).splitlines()


def _measure(value: Any) -> str:
    if isinstance(value, dict) and "value" in value:
        return f"{value['value']} {value.get('unit') or ''}".rstrip()
    return str(value)


def who(person: Any) -> str:
    """Somebody in a record."""
    name, user = person["name"], person.get("user")
    return f"{name} ({user})" if user and user != name else name
