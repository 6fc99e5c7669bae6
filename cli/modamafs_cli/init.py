"""``modamafs init``: make a directory a store."""

from __future__ import annotations

import os
from pathlib import Path

import click

from modamafs.config import CONFIG_FILE, DEFAULT_FILE
from modamafs.errors import InvalidRequest
from modamafs_cli._common import emit, json_option


@click.command("init")
@click.argument("store", type=click.Path(path_type=Path))
@json_option
def command(store: Path, as_json: bool) -> None:
    """Make STORE a store: write .modama/config.toml with every default, commented.

    The directory is made if need be; nothing that exists is changed.

    \b
    Example:
      modamafs init /storage/er-c-data
    """
    store = Path(os.path.realpath(store))
    if store.exists() and not store.is_dir():
        raise InvalidRequest(f"{store} is not a directory: name the directory to make a store")
    store.mkdir(exist_ok=True)
    path = store / CONFIG_FILE
    path.parent.mkdir(0o755, exist_ok=True)
    try:
        with path.open("x") as file:
            os.fchmod(file.fileno(), 0o644)  # whatever the umask: see is_store
            file.write(DEFAULT_FILE)
        created = True
    except FileExistsError:
        created = False
    emit(
        {"store": str(store), "config": str(path), "created": created},
        f"{'wrote' if created else 'left as it is:'} {path}\n"
        f"next: modamafs mount {store} MOUNTPOINT",
        as_json=as_json,
    )
