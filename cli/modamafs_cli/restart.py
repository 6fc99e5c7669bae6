"""``modamafs restart``: an upgrade in place."""

from __future__ import annotations

import os
import signal
import time

import click

from modamafs import supervisor
from modamafs.errors import ModamaError, NotMounted
from modamafs_cli._common import emit, find_mount, json_option

PATIENCE_S = 3 * supervisor.GRACE_S


@click.command("restart")
@click.argument("mountpoint")
@json_option
def command(mountpoint: str, as_json: bool) -> None:
    """Replace the daemon of MOUNTPOINT by what is installed now; the mount stays.

    Open files stay open. If the new daemon does not start, the old one goes on.

    \b
    Example:
      pip install --upgrade modamafs && modamafs restart /data
    """
    mount = find_mount(mountpoint)
    before = mount.state
    if before is None or not mount.is_supervised:
        raise NotMounted(
            f"the supervisor of {mount.spec.mountpoint} is dead: unmount, and mount again"
        )
    supervisor.send_signal(before, signal.SIGHUP)
    deadline = time.monotonic() + PATIENCE_S
    while (state := supervisor.load_state(mount.runtime)).planned == before.planned:
        if time.monotonic() > deadline or not supervisor.is_alive(state):
            raise ModamaError(f"no restart within {PATIENCE_S:.0f} s: see 'modamafs status'")
        time.sleep(0.01)
    if state.error:
        raise ModamaError(f"not restarted: {state.error}")
    os.statvfs(mount.spec.mountpoint)  # returns when the new one answers
    emit(
        {
            "mountpoint": mount.spec.mountpoint,
            "worker_pid": state.worker_pid,
            "restarts": state.restarts,
        },
        f"{mount.spec.mountpoint}: process {state.worker_pid} has taken over "
        f"from {before.worker_pid}",
        as_json=as_json,
    )
