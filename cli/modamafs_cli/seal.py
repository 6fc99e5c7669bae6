"""``modamafs seal``."""

from __future__ import annotations

import os
from typing import Any

import click

from modamafs.control import client
from modamafs.model import Caller
from modamafs_cli._common import emit, json_option, locate


@click.command("seal")
@click.argument("path")
@json_option
def command(path: str, as_json: bool) -> None:
    """Seal the directory PATH: from now on nobody changes anything in it.

    PATH may be given as seen in the mount or on the store.

    \b
    Example:
      modamafs seal /data/holography/skyrmions/2026-07-01/raw
    """
    result = ask("seal", path)
    emit(result, f"{path}: {result['state']}", as_json=as_json)


def ask(verb: str, path: str, **arguments: str) -> dict[str, Any]:
    """Have the daemon of the mount that ``path`` is in do it; do it here when there is none."""
    place = locate(path)
    if place.mount:
        arguments["path"] = os.fsdecode(place.relative)
        result = client.call(place.mount.runtime, verb, arguments)
    else:
        from modamafs.store import seals

        umask = os.umask(0o077)
        os.umask(umask)
        caller = Caller(uid=os.geteuid(), gid=os.getegid(), pid=os.getpid(), umask=umask)
        result = getattr(seals, verb)(place.store, place.relative, caller, **arguments)
    assert isinstance(result, dict)
    return result
