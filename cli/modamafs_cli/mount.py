"""``modamafs mount``."""

from __future__ import annotations

import os
from pathlib import Path

import click
import msgspec

from modamafs import mounting, supervisor
from modamafs.config import load_config, load_mount_spec, mount_spec, runtime_dir
from modamafs.errors import ConfigurationError
from modamafs.logs import configure_logging
from modamafs_cli._common import emit, json_option


@click.command("mount")
@click.argument("store")
@click.argument("mountpoint")
@click.option(
    "-o", "--options", multiple=True, metavar="KEY=VALUE,…",
    help="Mount options: those of mount(8), and guard=off, log_level=debug, attribute_timeout_s=5, "
    "entry_timeout_s=5, passthrough=off, channel=off, allow_other=off, view=NAME.",
)  # fmt: skip
@click.option("--view", metavar="NAME", help="Show what this view of the store says.")
@click.option("--read-only", is_flag=True, help="Refuse every change.")
@click.option("--no-passthrough", is_flag=True, help="Read and write through the daemon.")
@click.option("--no-channel", is_flag=True, help="Plain libfuse (then without passthrough too).")
@click.option("--foreground", is_flag=True, help="Stay; for service managers, and to see the log.")
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    store: str,
    mountpoint: str,
    options: tuple[str, ...],
    view: str | None,
    read_only: bool,
    no_passthrough: bool,
    no_channel: bool,
    foreground: bool,
    as_json: bool,
) -> None:
    """Mount STORE on the empty directory MOUNTPOINT, and return when the mount answers.

    \b
    Examples:
      modamafs mount /storage/er-c-data /data
      modamafs mount --read-only -o noexec,entry_timeout_s=60 /storage/er-c-data /data
      modamafs mount --view partners /storage/er-c-data /srv/partners
    """
    switches = {"read_only": read_only, "passthrough=off": no_passthrough}
    switches["channel=off"] = no_channel
    options += tuple(option for option, wanted in switches.items() if wanted)
    options += () if view is None else (f"view={view}",)
    mounting.check_answers(store)
    # What is mounted on it may be a mount that is to be taken over and that nobody serves just now.
    mounting.check_answers(os.path.dirname(os.path.abspath(mountpoint)))
    real_store = os.path.realpath(store)
    config = load_config(Path(real_store))
    try:
        spec = mount_spec(real_store, mounting.real_mountpoint(mountpoint), config, options)
    except ConfigurationError as error:
        raise click.UsageError(error.message, ctx) from error
    runtime = runtime_dir(spec.mountpoint, config)
    if foreground:
        configure_logging(spec.log_level)
        ctx.exit(supervisor.run_in_foreground(spec, runtime))
    supervisor.launch(runtime, supervisor.prepare(spec, runtime))
    emit(msgspec.to_builtins(load_mount_spec(runtime)), "", as_json=as_json)
