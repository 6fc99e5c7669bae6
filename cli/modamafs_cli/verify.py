"""``modamafs verify``."""

from __future__ import annotations

import re
from typing import Any

import click

from modamafs_cli._common import emit, json_option
from modamafs_cli._sealing import ask
from modamafs_cli._text import printable

UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30}


class Rate(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """Bytes per second: ``200M``, ``1.5G``, ``64MiB``."""

    name = "rate"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """In bytes per second."""
        if isinstance(value, float):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg]?i?)b?(?:/s)?", value.strip().lower())
        if not match or match[2] not in UNITS or not float(match[1]):
            self.fail(f"{value!r}: write bytes per second, as 200M or 1.5G", param, ctx)
        return float(match[1]) * UNITS[match[2]]


@click.command("verify")
@click.argument("path")
@click.option("--max-rate", type=Rate(), metavar="RATE", help="At most so much a second: 200M.")
@json_option
@click.pass_context
def command(ctx: click.Context, path: str, max_rate: float | None, as_json: bool) -> None:
    """Read the sealed directory PATH again and compare everything with what was sealed.

    Names what is missing, added, changed or damaged, and remembers when that was. Exit status 1 if
    anything is not as it was sealed.

    \b
    Example:
      modamafs verify --max-rate 200M /data/holography/skyrmions/2026-07-01/raw
    """
    result = ask("verify", path, max_bytes_per_s=max_rate)
    emit(result, "\n".join(_lines(path, result)), as_json=as_json)
    if not result["ok"]:
        ctx.exit(1)


def _lines(path: str, result: dict[str, Any]) -> list[str]:
    what = f"{result['file_count']} files, {result['size_bytes']} bytes"
    lines = [f"{path}: {'as it was sealed' if result['ok'] else 'NOT as it was sealed'} ({what})"]
    for kind in ("missing", "added", "changed", "damaged", "manifest"):
        lines += [f"  {kind + ':':<10}{printable(name)}" for name in result[kind]]
    if not result["ok"] and result["content_intact"]:
        lines.append("  names and bytes are those that were sealed: the content hash is the same")
    if not result["remembered"]:
        lines.append("  this could not be written down: the store is read-only or full")
    return lines
