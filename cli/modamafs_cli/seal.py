"""``modamafs seal``."""

from __future__ import annotations

import math
import os
from typing import Any

import click

from modamafs.control import client
from modamafs.errors import ModamaError
from modamafs_cli._common import emit, json_option, locate
from modamafs_cli._sealing import ask, locate_directory

SHOWN = (
    "path", "state", "content_hash", "attribute_hash", "file_count", "size_bytes", "sealed_at",
    "sealed_by", "immutable_flag", "until", "hold", "id",
)  # fmt: skip


class _OptionalSeconds(click.Command):
    """So that ``--wait PATH`` is not taken for a number of seconds."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """``--wait`` alone is ``--wait=inf``."""
        plain = args.index("--") if "--" in args else len(args)
        for at, word in enumerate(args[:plain]):
            if word == "--wait" and not (at + 1 < plain and _is_number(args[at + 1])):
                args = [*args[:at], "--wait=inf", *args[at + 1 :]]
        return super().parse_args(ctx, args)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


@click.command("seal", cls=_OptionalSeconds)
@click.argument("path")
@click.option(
    "--wait", "wait_s", type=click.FloatRange(min=0), metavar="[SECONDS]",
    help="Wait until nobody has a file open for writing any more.",
)  # fmt: skip
@click.option("--until", metavar="DATE", help="Not to be unsealed before that (YYYY-MM-DD).")
@click.option("--hold/--no-hold", default=None, help="Not to be unsealed until that is lifted.")
@click.option("--reason", default="", help="Why it is held, or why that is lifted.")
@click.option(
    "--worm", "grace_s", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS",
    help="Don't seal: make each file immutable so long after its last writer has closed it.",
)  # fmt: skip
@click.option("--no-worm", is_flag=True, help="Don't seal: end that (stewards only).")
@click.option("--repair", is_flag=True, help="Set flags that a copy or a restore has lost.")
@click.option(
    "--resume", is_flag=True, help="Finish what was interrupted in PATH, or in its store."
)
@click.option("--cancel", is_flag=True, help="Give up the sealing of PATH that is under way.")
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    path: str,
    wait_s: float | None,
    until: str | None,
    hold: bool | None,
    reason: str,
    grace_s: float | None,
    no_worm: bool,
    repair: bool,
    resume: bool,
    cancel: bool,
    as_json: bool,
) -> None:
    """Seal the directory PATH: from now on nobody changes anything in it.

    PATH may be given as seen in the mount or on the store. The session's owner and the stewards
    may seal. Ctrl-C leaves it open, as it was.

    \b
    Examples:
      modamafs seal /data/holography/skyrmions/2026-07-01/raw
      modamafs seal --wait --until 2036-12-31 /data/holography/skyrmions/2026-07-01/raw
      modamafs seal --resume /data
    """
    if sum([grace_s is not None, no_worm, repair, resume, cancel]) > 1:
        raise click.UsageError(
            "--worm, --no-worm, --repair, --resume and --cancel: one of them", ctx
        )
    if resume:
        _resume(path, as_json=as_json)
        return
    if cancel:
        ctx.exit(0 if _cancel(path, as_json=as_json) else 1)
    if grace_s is not None or no_worm:
        result = ask("worm", path, grace_s=grace_s)
        text = f"{path}: {result['state']}"
        emit(result, text, as_json=as_json)
        return
    if repair:
        result = ask("repair", path)
        text = f"{path}: {result['repaired']} immutable flags were missing, and are set"
        emit(_shown(result) | {"repaired": result["repaired"]}, text, as_json=as_json)
        return
    if wait_s is None:
        wait_s = 0.0
    elif wait_s == math.inf:
        wait_s = None
    result = ask("seal", path, wait_s=wait_s, until=until, hold=hold, reason=reason)
    emit(_shown(result), _text(path, result), as_json=as_json)


def _shown(record: dict[str, Any]) -> dict[str, Any]:
    return {key: record.get(key) for key in SHOWN}


def _text(path: str, record: dict[str, Any]) -> str:
    lines = [
        f"{path}: sealed since {record['sealed_at']} by {record['sealed_by']}",
        f"  {record['file_count']} files, {record['size_bytes']} bytes",
        f"  content hash    {record['content_hash']}",
        f"  attribute hash  {record['attribute_hash']}",
    ]
    if not record["immutable_flag"]:
        lines.append("  without immutable flags: on the store itself nothing protects it")
    if record.get("until"):
        lines.append(f"  not to be unsealed before {record['until']}")
    if record.get("hold"):
        lines.append("  on hold")
    return "\n".join(lines)


def _resume(path: str, *, as_json: bool) -> None:
    """Everything below ``path`` that was interrupted."""
    from modamafs.sealing.seal import interrupted
    from modamafs.store.backing import Store
    from modamafs.store.seals import Seals

    place = locate(path)
    with Store(place.store) as store:
        seals = Seals(store)
        seals.search(write=False)
        within = [
            root
            for root in seals.listed()
            if not place.relative
            or root == place.relative
            or root.startswith(place.relative + b"/")
        ]
        left = list(interrupted(store, within))
    results = [ask("resume", str(place.store / os.fsdecode(root))) for root in left]
    text = "\n".join(f"{result['path']}: {result['state']}" for result in results)
    emit(results, text or f"{path}: nothing was interrupted", as_json=as_json)


def _cancel(path: str, *, as_json: bool) -> bool:
    place = locate_directory(path)
    if place.mount is None:
        raise ModamaError(f"{path}: without a mount nothing is sealed in the background")
    done = client.call(place.mount.runtime, "cancel", {"path": os.fsdecode(place.relative)})
    text = f"{path}: {'given up' if done else 'is not being sealed'}"
    emit({"cancelled": done}, text, as_json=as_json)
    return bool(done)
