"""``modamafs index rebuild``, ``check`` and ``stats``."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import click
from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from modamafs.control import client
from modamafs.errors import Busy, ModamaError
from modamafs.store.backing import Store
from modamafs_cli._common import emit, json_option
from modamafs_cli._index import Indexed, index_of
from modamafs_cli._text import printable

ASK_EVERY_S = 0.2


@click.group("index")
def command() -> None:
    """Make the index of a store again, check it, and say what is in it (root)."""


path_argument = click.argument("path", required=False)


@command.command("rebuild")
@path_argument
@json_option
@click.pass_context
def rebuild(ctx: click.Context, path: str | None, as_json: bool) -> None:
    """Make a new index of the store that PATH lies in; exit status 1 if that did not work.

    Nobody has to wait for it: the mount goes on meanwhile.

    \b
    Example:
      modamafs index rebuild /data
    """
    there = index_of(path)
    state = _by_daemon(there) if there.mount else _here(there)
    emit(state, f"{there.store}: {_said(state)}", as_json=as_json)
    if state.get("state") != "ok":
        ctx.exit(1)


def _said(state: dict[str, Any]) -> str:
    text = f"{state['state']}, {state.get('files', 0)} entries"
    return f"{text}: {state['message']}" if state.get("message") else text


@contextlib.contextmanager
def _bar(there: Indexed) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A bar on a terminal, and none in a pipe. What is looked at, of the inodes that are in use."""
    if not sys.stderr.isatty():
        yield lambda _state: None
        return
    status = os.statvfs(there.store)
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("indexing", total=status.f_files - status.f_ffree or None)
        yield lambda state: progress.update(task, completed=state.get("looked_at", 0))


def _by_daemon(there: Indexed) -> dict[str, Any]:
    assert there.mount is not None
    runtime = there.mount.runtime
    ended = threading.Event()
    with _bar(there) as show:

        def ask() -> None:
            while not ended.wait(ASK_EVERY_S):
                with contextlib.suppress(ModamaError):
                    show(client.call(runtime, "status", timeout_s=10)["index"])

        asker = threading.Thread(target=ask)
        asker.start()
        try:
            found: dict[str, Any] = client.call(runtime, "index-rebuild")
        finally:
            ended.set()
            asker.join()
    return found


def _here(there: Indexed) -> dict[str, Any]:
    """Without a mount, this process does it."""
    from modamafs.index.database import lock_writer
    from modamafs.index.reconcile import Index

    lock = lock_writer(there.directory)
    if lock is None:
        raise Busy("somebody else writes this index just now: wait for that")
    with open(lock), Store(there.store) as store:
        index = Index(store, there.directory)
        try:
            with _bar(there) as show:
                for _ in index.rebuild(show):
                    index.apply([])
            return index.state()
        finally:
            index.close()


@command.command("check")
@path_argument
@json_option
@click.pass_context
def check(ctx: click.Context, path: str | None, as_json: bool) -> None:
    """Compare the index with the store; every difference is a line, and then exit status is 1.

    \b
    Example:
      modamafs index check /data
    """
    from modamafs.index.check import check as differences

    there = index_of(path)
    if there.mount:
        client.call(there.mount.runtime, "sync")
    found = []
    with Store(there.store) as store:
        for line in differences(store, there.directory):
            found.append(line)
            if not as_json:
                click.echo(printable(line).encode(errors="backslashreplace"))
    if as_json:
        click.echo(json.dumps({"ok": not found, "differences": found}, indent=2))
    elif not found:
        click.echo(f"{there.store}: the index is as the store is")
    if found:
        ctx.exit(1)


@command.command("stats")
@path_argument
@json_option
def stats(path: str | None, as_json: bool) -> None:
    """Say how much is in the index, and how large it is.

    \b
    Example:
      modamafs index stats --json | jq .size_bytes
    """
    from modamafs.index.check import stats as count

    there = index_of(path)
    found = count(there.directory) | {"directory": str(there.directory)}
    lines = [f"{name.replace('_', ' ') + ':':<22}{_shown(name, value)}" for name, value in
             found.items()]  # fmt: skip
    emit(found, "\n".join(lines), as_json=as_json)


def _shown(name: str, value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{number} {kind}" for kind, number in value.items()) or "none"
    if isinstance(value, int) and name.endswith("_bytes"):
        return f"{decimal(value)} ({value} bytes)"
    if isinstance(value, int) and name.endswith("_ns"):
        return datetime.fromtimestamp(value / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return "–" if value is None else str(value)
