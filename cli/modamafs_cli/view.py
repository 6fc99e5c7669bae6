"""``modamafs view``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import msgspec

from modamafs.catalog import View
from modamafs.errors import Busy, InvalidRequest, NotMounted, NotPermitted
from modamafs.store import views
from modamafs.store.backing import Store
from modamafs_cli._common import emit, json_option, locate, running_mounts
from modamafs_cli._text import printable


@click.group("view")
def command() -> None:
    """Say which projects of a store can be mounted by themselves, for groups and partners.

    \b
    Example:
      modamafs view add --read-only /storage/er-c-data partners holography/skyrmions
      modamafs mount --view partners /storage/er-c-data /srv/partners
    """


@command.command("list")
@click.argument("store")
@json_option
def list_views(store: str, as_json: bool) -> None:
    """List the views of STORE, and where they are mounted.

    \b
    Example:
      modamafs view list --json /storage/er-c-data | jq -r '.[].name'
    """
    with _opened(store) as opened:
        listed = views.all_views(opened)
        mounted = {found.name: _mountpoints(opened, found.name) for found in listed}
    reports = [_report(found, mounted[found.name]) for found in listed]
    text = "\n".join(map(_line, reports)) or f"{store}: no views"
    emit(reports, text, as_json=as_json)


@command.command("add")
@click.argument("store")
@click.argument("name")
@click.argument("projects", nargs=-1, required=True, metavar="AREA/PROJECT…")
@click.option("--read-only", is_flag=True, help="Every mount of it refuses every change.")
@click.option("--owner", metavar="USER", help="Who owns everything in it, and what is created.")
@click.option("--title", default="", help="What it is, for people.")
@json_option
def add_view(
    store: str,
    name: str,
    projects: tuple[str, ...],
    read_only: bool,
    owner: str | None,
    title: str,
    as_json: bool,
) -> None:
    """Make the view NAME of STORE, which shows these projects.

    \b
    Examples:
      modamafs view add /storage/er-c-data skyrmions holography/skyrmions
      modamafs view add --owner guest /storage/er-c-data visitors holography/skyrmions tem/inbox
    """
    _check_root()
    with _opened(store) as opened:
        if name in views.names(opened):
            raise InvalidRequest(
                f"{store} has a view {name!r} already: choose another name, or remove that first"
            )
        try:
            view = msgspec.convert(
                {
                    "title": title,
                    "projects": [project.rstrip("/") for project in projects],
                    "read_only": read_only,
                    "owner": owner,
                },
                View,
            )
        except msgspec.ValidationError as error:
            raise InvalidRequest(f"the view {name!r}: {error}") from error
        views.write(opened, name, view)
    result = _report(views.Listed(name, view, None), [])
    emit(result, _line(result), as_json=as_json)


@command.command("remove")
@click.argument("store")
@click.argument("name")
@json_option
@click.pass_context
def remove_view(ctx: click.Context, store: str, name: str, as_json: bool) -> None:
    """Remove the view NAME of STORE; the data stay. Exit status 1 if there is none.

    \b
    Example:
      modamafs view remove /storage/er-c-data partners
    """
    _check_root()
    with _opened(store) as opened:
        mounted = _mountpoints(opened, name)
        if mounted:
            raise Busy(
                f"the view {name!r} is mounted on {', '.join(mounted)}: "
                f"run 'modamafs umount {mounted[0]}' first"
            )
        done = views.remove(opened, name)
    text = f"{name}: {'removed' if done else f'{store} has no such view'}"
    emit({"name": name, "removed": done}, text, as_json=as_json)
    if not done:
        ctx.exit(1)


def _check_root() -> None:
    if os.geteuid() != 0:
        raise NotPermitted("only root says what views show: run it with sudo")


@contextmanager
def _opened(path: str) -> Iterator[Store]:
    """The store that ``path`` is, or is the mount of; any directory can be one."""
    try:
        place = locate(path)
    except NotMounted:
        directory = Path(os.path.realpath(path, strict=True))
    else:
        if place.relative:
            raise InvalidRequest(f"{path} lies in the store {place.store}: name the store itself")
        directory = place.store
    with Store(directory) as store:
        yield store


def _mountpoints(store: Store, name: str) -> list[str]:
    return [
        mount.spec.mountpoint
        for mount in running_mounts()
        if mount.spec.view == name and os.path.samefile(mount.spec.store, store.path)
    ]


def _report(found: views.Listed, mounted: list[str]) -> dict[str, Any]:
    view = found.view
    known = {"name": found.name, "mounted_on": mounted, "problem": found.problem}
    return known | {
        "title": view.title if view else None,
        "projects": list(view.projects) if view else None,
        "read_only": view.read_only if view else None,
        "owner": view.owner if view else None,
    }


def _line(report: dict[str, Any]) -> str:
    if report["problem"]:
        return f"{report['name']}: {printable(report['problem'])}"
    parts = [f"{report['name']}:", printable(" ".join(report["projects"]))]
    if report["read_only"]:
        parts.append("(read-only)")
    if report["owner"]:
        parts.append(f"(everything belongs to {report['owner']})")
    if report["title"]:
        parts.append(f"“{printable(report['title'])}”")
    if report["mounted_on"]:
        parts.append(f"on {', '.join(report['mounted_on'])}")
    return " ".join(parts)
