"""What the commands about seals share: whom they ask, and the progress bar."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from modamafs.control import client
from modamafs.errors import InvalidRequest, ModamaError, NotMounted, NotPermitted
from modamafs.model import Caller
from modamafs_cli._common import Place, locate

ASK_EVERY_S = 0.2
PATIENCE_S = 10.0
"""For a new daemon to answer."""


def locate_directory(path: str) -> Place:
    """Where the directory lies that somebody named; a symbolic link may lead anywhere: refused.

    Raises InvalidRequest (EINVAL), and what ``locate`` does.
    """
    trimmed = path.rstrip("/") or path
    if os.path.islink(trimmed):
        raise InvalidRequest(
            f"{path} is a symbolic link: name the directory that it leads to, "
            f"{os.path.realpath(trimmed)}"
        )
    return locate(path)


def ask(verb: str, path: str, **arguments: Any) -> dict[str, Any]:
    """Have it done to the directory ``path``, with a progress bar on a terminal.

    The daemon of the mount does it; without a mount, this process, which then has to be root's.
    """
    place = locate_directory(path)
    order = {"path": os.fsdecode(place.relative), **arguments}
    if place.mount:
        return _ask_daemon(place.mount.runtime, verb, order)
    return _do_here(place, verb, order)


def _ask_daemon(runtime: Path, verb: str, order: dict[str, Any]) -> dict[str, Any]:
    outcome: list[Any] = []
    ended = threading.Event()

    def call() -> None:
        try:
            outcome.append(_call_again(runtime, verb, order))
        except BaseException as error:  # noqa: BLE001 (handed on below)
            outcome.append(error)
        ended.set()

    threading.Thread(target=call, daemon=True).start()
    try:
        with _bar(verb) as show:
            while not ended.wait(ASK_EVERY_S):
                if show:
                    with contextlib.suppress(ModamaError):
                        show(client.call(runtime, "progress", {"path": order["path"]}))
    except KeyboardInterrupt:
        client.call(runtime, "cancel", {"path": order["path"]})
        ended.wait()
        if not isinstance(outcome[0], BaseException):  # too late: it was all but done
            raise
    [result] = outcome
    if isinstance(result, BaseException):
        raise result
    assert isinstance(result, dict)
    return result


def _call_again(runtime: Path, verb: str, order: dict[str, Any]) -> Any:
    """The daemon may be replaced meanwhile; the next one goes on with what was begun."""
    try:
        return client.call(runtime, verb, order)
    except NotMounted:
        if verb != "seal":
            raise
    deadline_s = time.monotonic() + PATIENCE_S
    while True:
        try:
            client.call(runtime, "status", timeout_s=PATIENCE_S)
        except NotMounted:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(ASK_EVERY_S)
        else:
            return client.call(runtime, verb, order)


def _do_here(place: Place, verb: str, order: dict[str, Any]) -> dict[str, Any]:
    from modamafs import sealer
    from modamafs.sealing.progress import Progress as Told
    from modamafs.store.backing import Store

    if os.geteuid() != 0:
        raise NotPermitted(
            f"{place.store} is not mounted: on the store itself only root can {verb}"
        )
    caller = Caller(os.geteuid(), os.getegid(), os.getpid(), groups=tuple(os.getgroups()))
    wanted = sealer.order(order, verb)
    with _bar(verb) as show, Store(place.store) as store:
        return sealer.carry_out(store, wanted, caller, Told(show))


@contextlib.contextmanager
def _bar(verb: str) -> Iterator[Any]:
    """Gives a function that takes what ``Progress.known`` holds; None where nobody looks."""
    console = Console(stderr=True)
    if not console.is_terminal or not sys.stderr.isatty():
        yield None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task: TaskID = bar.add_task(verb, total=None)

        def show(known: dict[str, Any] | None) -> None:
            if known and known.get("step"):
                bar.update(
                    task,
                    description=known["step"],
                    total=known["size_bytes"],
                    completed=known["done_bytes"],
                )

        yield show
