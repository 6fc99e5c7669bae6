"""``modamafs info``."""

from __future__ import annotations

import os
from typing import Any

import click

from modamafs.sealing.place import Place
from modamafs.sealing.verify import last_verified
from modamafs.store.backing import Store
from modamafs.store.seals import covering
from modamafs_cli._common import emit, json_option, locate


@click.command("info")
@click.argument("path")
@json_option
def command(path: str, as_json: bool) -> None:
    """Show where PATH lies, and whether it is sealed: since when, by whom, and when last proved.

    \b
    Example:
      modamafs info --json /data/holography/skyrmions/2026-07-01/raw/scan.h5 | jq .seal.state
    """
    place = locate(path)
    with Store(place.store) as store:
        sealed = covering(store, place.relative) if place.relative else None
        result: dict[str, Any] = {
            "path": os.fsdecode(place.relative),
            "store": str(place.store),
            "mountpoint": place.mount.spec.mountpoint if place.mount else None,
            "sealed": sealed is not None,
            "seal": None,
        }
        if sealed is not None:
            with Place(store, sealed) as where:
                result["seal"] = (where.read() or {}) | {"verified": last_verified(where)}
    emit(result, "\n".join(_lines(path, result)), as_json=as_json)


def _lines(path: str, result: dict[str, Any]) -> list[str]:
    facts: dict[str, Any] = {"store": result["store"], "mounted on": result["mountpoint"]}
    seal = result["seal"]
    if seal is None:
        facts["seal"] = "none: open"
    else:
        facts |= {
            "seal": f"{seal.get('state')} ({seal.get('path')})",
            "sealed at": seal.get("sealed_at"),
            "sealed by": seal.get("sealed_by"),
            "files": seal.get("file_count"),
            "bytes": seal.get("size_bytes"),
            "content hash": seal.get("content_hash"),
            "attributes": seal.get("attribute_hash"),
            "immutable": "yes" if seal.get("immutable_flag") else "no",
            "until": seal.get("until"),
            "on hold": "yes" if seal.get("hold") else None,
        }
        proved = seal["verified"]
        facts["verified"] = (
            f"{proved['verified_at']} by {proved['verified_by']}: "
            f"{'as it was sealed' if proved['ok'] else 'NOT as it was sealed'}"
            if proved
            else "never"
        )
    return [path] + [f"  {name + ':':<14}{value}" for name, value in facts.items() if value]
