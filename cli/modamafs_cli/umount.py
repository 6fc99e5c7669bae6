"""``modamafs umount``."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import click

from modamafs import mounting, supervisor
from modamafs.errors import Busy, NotMounted, NotPermitted
from modamafs_cli._common import RunningMount, emit, json_option, load_mount, runtime_of

PATIENCE_S = 5.0


@click.command("umount")
@click.argument("mountpoint")
@click.option("--lazy", is_flag=True, help="Also while in use: gone for newcomers at once.")
@json_option
def command(mountpoint: str, lazy: bool, as_json: bool) -> None:
    """Unmount MOUNTPOINT and undo its guard; also a mount whose daemon is dead.

    \b
    Example:
      modamafs umount /data
    """
    real = mounting.real_mountpoint(mountpoint)
    there = mounting.mounted_at(real)
    runtime = runtime_of(real)
    mount = load_mount(runtime)
    if there and there.fstype == mounting.FSTYPE:
        _unmount(real, lazy=lazy)
    elif there:
        raise NotMounted(f"what is mounted on {real} is {there.fstype}: use 'umount {real}'")
    elif not _left_behind(real, runtime):
        raise NotMounted(f"no modamafs is mounted on {real}: see 'modamafs status'")
    _tidy_up(mount, real, runtime, lazy=lazy)
    emit({"mountpoint": real, "mounted": False}, "", as_json=as_json)


def _unmount(mountpoint: str, *, lazy: bool) -> None:
    answer = mounting.probe(mountpoint)
    try:
        if answer is None:
            mounting.unmount_silent(mountpoint, lazy=lazy)
        else:
            mounting.unmount(mountpoint, lazy=lazy or answer in mounting.DEAD)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise Busy(
                f"{mountpoint} is in use: 'fuser -vm {mountpoint}' shows by whom; end that, "
                "or use --lazy"
            ) from error
        if error.errno == errno.ETIMEDOUT:
            raise Busy(
                f"{mountpoint} stays mounted, as its daemon does not answer: use --lazy"
            ) from error
        if error.errno == errno.EPERM:
            raise NotPermitted("unmounting needs root: run it with sudo") from error
        raise


def _left_behind(mountpoint: str, runtime: Path) -> bool:
    return runtime.exists() or mounting.is_guarded(mountpoint)


def _tidy_up(mount: RunningMount | None, mountpoint: str, runtime: Path, *, lazy: bool) -> None:
    """Wait for the supervisor to undo the guard and to end; undo it when there is none."""
    deadline = time.monotonic() + PATIENCE_S
    while mount and mount.is_supervised:
        if lazy and not runtime.exists():
            return  # it ends when the last file is closed
        if time.monotonic() > deadline:
            if not runtime.exists():
                return  # also mounted elsewhere (bind mount)
            raise Busy(
                f"{mountpoint} is unmounted, but its supervisor does not tidy up: "
                f"see {runtime}/daemon.log"
            )
        time.sleep(0.01)
    if os.path.isdir(mountpoint):
        supervisor.tear_down(mountpoint, runtime)
