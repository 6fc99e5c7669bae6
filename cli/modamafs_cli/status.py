"""``modamafs status``."""

from __future__ import annotations

from typing import Any

import click

from modamafs import mounting
from modamafs.control import client
from modamafs.errors import ModamaError
from modamafs_cli._common import RunningMount, all_mounts, emit, json_option
from modamafs_cli._text import printable

PATIENCE_S = 2.0


@click.command("status")
@click.argument("mountpoint", required=False)
@json_option
@click.pass_context
def command(ctx: click.Context, mountpoint: str | None, as_json: bool) -> None:
    """Show the mounts of this machine, or the one on MOUNTPOINT; exit status 1 if there is none.

    \b
    Example:
      modamafs status --json | jq '.[].passthrough'
    """
    mounts = all_mounts()
    if mountpoint is not None:
        real = mounting.real_mountpoint(mountpoint)
        mounts = [mount for mount in mounts if mount.spec.mountpoint == real]
    reports = [report(mount) for mount in mounts]
    text = "\n\n".join(_block(mount) for mount in reports) or "nothing is mounted"
    emit(reports, text, as_json=as_json)
    if not reports:
        ctx.exit(1)


def report(mount: RunningMount) -> dict[str, Any]:
    """Everything that is known of a mount; what only the daemon knows is null if it is silent."""
    spec, state = mount.spec, mount.state
    known: dict[str, Any] = {
        "mountpoint": spec.mountpoint,
        "store": spec.store,
        "state": state.state if state else "starting",
        "answers": False,
        "passthrough": None,
        "read_only": spec.read_only,
        "view": spec.view,
        "supervisor_pid": state.supervisor_pid if state and mount.is_supervised else 0,
        "worker_pid": state.worker_pid if state else 0,
        "restarts": state.restarts if state else 0,
        "immutable_flag": state.immutable_flag if state else None,
        "guard": _guard(mount),
        "error": state.error if state else None,
        "sealed_trees": None,
        "watching": None,
        "index": None,
        "hooks": None,
    }
    try:
        known |= client.call(mount.runtime, "status", timeout_s=PATIENCE_S)
        known["answers"] = True
    except ModamaError as error:
        known["error"] = known["error"] or error.message
    if not known["supervisor_pid"] and known["state"] != "failed":
        known["state"] = "running without supervisor" if known["answers"] else "dead"
    return known


def _guard(mount: RunningMount) -> str:
    if not mount.spec.guard:
        return "off"
    return mount.state.guard or "on" if mount.state else "on"


def _watched(watching: bool | None) -> str | None:
    if watching is None:
        return None
    return "yes, what changes there is seen at once" if watching else "no, clients ask every time"


def _index(index: dict[str, Any] | None) -> str | None:
    """What the index says of itself: its state, how much is in it, and what is wrong."""
    if index is None:
        return None
    text = str(index["state"])
    if "files" in index:
        text += f", {index['files']} entries"
    return f"{text}: {index['message']}" if index.get("message") else text


def _hooks(hooks: dict[str, Any] | None) -> str | None:
    """What the hooks say of themselves: which there are, what is pending, and what went wrong."""
    if hooks is None:
        return None
    text = str(hooks["state"])
    if hooks.get("events"):
        text += f", {', '.join(hooks['events'])}; {hooks['pending']} pending"
    if hooks.get("failures"):
        last = hooks["last_failure"]
        text += (
            f"; {hooks['failures']} failed, last {last['hook']} at {last['at']} "
            f"({last['event']} {printable(last['path'])}: {last['message']})"
        )
    return f"{text}: {hooks['message']}" if hooks.get("message") else text


def _block(known: dict[str, Any]) -> str:
    passthrough = {
        True: "yes, the kernel reads and writes",
        False: "no, through the daemon",
        None: "not known",
    }[known["passthrough"]]
    lines = {
        "store": known["store"] + (" (read-only)" if known["read_only"] else ""),
        "view": known["view"],
        "state": known["state"],
        "error": known["error"],
        "passthrough": passthrough,
        "immutable flags": "yes" if known["immutable_flag"] else "no",
        "guard": known["guard"],
        "store watched": _watched(known["watching"]),
        "index": _index(known["index"]),
        "hooks": _hooks(known["hooks"]),
        "sealed trees": known["sealed_trees"],
        "open handles": known.get("open_handles"),
        "worker restarts": known["restarts"],
        "processes": f"supervisor {known['supervisor_pid']}, worker {known['worker_pid']}",
    }
    shown = (f"  {name + ':':<17}{value}" for name, value in lines.items() if value is not None)
    return "\n".join([known["mountpoint"], *shown])
