"""``modamafs unseal``."""

from __future__ import annotations

import click

from modamafs_cli._common import emit, json_option
from modamafs_cli._sealing import ask


@click.command("unseal")
@click.argument("path")
@click.option("--reason", required=True, help="Why; it is kept in the history.")
@json_option
def command(path: str, reason: str, as_json: bool) -> None:
    """Open the sealed directory PATH again; for stewards, and it is recorded.

    \b
    Example:
      modamafs unseal /data/holography/skyrmions/2026-07-01/raw --reason "wrong calibration file"
    """
    if not reason.strip():
        raise click.UsageError("--reason must say why", click.get_current_context())
    result = ask("unseal", path, reason=reason)
    emit(result, f"{path}: {result['state']}", as_json=as_json)
