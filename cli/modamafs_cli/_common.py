"""What several commands need: output, and the mounts of this machine."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import click

from modamafs import mounting, supervisor
from modamafs.config import (
    Config,
    MountSpec,
    ViewSpec,
    is_store,
    load_config,
    load_mount_spec,
    runtime_base,
    runtime_dir,
)
from modamafs.errors import ConfigurationError, NotMounted
from modamafs.supervisor import SupervisorState

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def emit(result: Any, text: str, *, as_json: bool) -> None:
    """Print a command's result, for programs or for people."""
    if as_json:
        click.echo(json.dumps(result, indent=2))
    elif text:
        click.echo(text.encode(errors="backslashreplace"))


class RunningMount(NamedTuple):
    """A mount and its processes, as far as they have left a trace."""

    spec: MountSpec
    runtime: Path
    state: SupervisorState | None

    @property
    def is_supervised(self) -> bool:
        """Whether its supervisor runs."""
        return self.state is not None and supervisor.is_alive(self.state)

    @property
    def is_mounted(self) -> bool:
        """The same, but for one that was unmounted and is only there for files that are open."""
        return self.is_supervised and not supervisor.is_detached(self.runtime)


def runtime_of(mountpoint: str) -> Path:
    """The runtime directory of what is (or was last) mounted there."""
    there = mounting.mounted_at(mountpoint)
    return runtime_dir(mountpoint, _config_of(there.source) if there else None)


def _config_of(store: str) -> Config | None:
    try:
        return load_config(Path(store))
    except ConfigurationError:  # broken since it was mounted
        return None


def load_mount(runtime: Path) -> RunningMount | None:
    """What the files in a runtime directory say; None: there are none."""
    try:
        spec = load_mount_spec(runtime)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        state = supervisor.load_state(runtime)
    except FileNotFoundError:
        state = None
    return RunningMount(spec, runtime, state)


def all_mounts() -> list[RunningMount]:
    """Every mount that has a runtime directory, also one that failed."""
    directories: set[Path] = set()
    with contextlib.suppress(FileNotFoundError):
        directories = {path for path in runtime_base().iterdir() if path.is_dir()}
    for mount in mounting.mounts():
        if mount.fstype == mounting.FSTYPE:
            directories.add(runtime_dir(mount.mountpoint, _config_of(mount.source)))
    found = (load_mount(directory) for directory in sorted(directories))
    return [mount for mount in found if mount]


def running_mounts() -> list[RunningMount]:
    """Every mount that is mounted, and whose supervisor runs."""
    return [mount for mount in all_mounts() if mount.is_mounted]


def find_mount(mountpoint: str) -> RunningMount:
    """The mount there, or ``NotMounted``."""
    real = mounting.real_mountpoint(mountpoint)
    mount = load_mount(runtime_of(real))
    if mount is None:
        raise NotMounted(f"no modamafs is mounted on {real}: see 'modamafs status'")
    return mount


def the_only_mount(advice: str) -> RunningMount:
    """The mount that is meant where nobody has named one; NotMounted: none, or several.

    ``advice``: how to name one.
    """
    mounts = running_mounts()
    mounts = [mount for mount in mounts if mount.spec.shows is None] or mounts
    if not mounts:
        raise NotMounted(f"no store is mounted: mount one, or {advice}")
    if len(mounts) > 1 and (mounts[0].spec.shows or len({one.spec.store for one in mounts}) > 1):
        there = ", ".join(sorted(mount.spec.mountpoint for mount in mounts))
        raise NotMounted(f"several are mounted ({there}): {advice}")
    return mounts[0]


class Place(NamedTuple):
    """Where a path that somebody named lies in a store."""

    store: Path
    relative: bytes
    mount: RunningMount | None


def locate(path: str) -> Place:
    """Find the store of ``path``, given as seen in a mount or on the store.

    Without a running mount, the store is the closest directory above that 'modamafs init' made one.
    Raises ``NotMounted`` when it is in no store, and OSError (ENOENT …) when it does not exist.
    """
    real = os.path.realpath(path, strict=True)
    running = running_mounts()
    roots = [(mount.spec.mountpoint, mount) for mount in running]
    roots += [(mount.spec.store, mount) for mount in running]
    inside = [(root, mount) for root, mount in roots if Path(real).is_relative_to(root)]
    if inside:
        root, mount = max(inside, key=_closest)
        relative = _relative(real, root)
        if root == mount.spec.mountpoint and mount.spec.shows:
            relative = _from_view(mount.spec, mount.spec.shows, relative)
        return Place(Path(mount.spec.store), relative, mount)
    for directory in (Path(real), *Path(real).parents):
        if is_store(directory):
            return Place(directory, _relative(real, str(directory)), None)
    raise NotMounted(
        f"{real} is in no mounted store: mount its store, or make it one with 'modamafs init'"
    )


def _closest(found: tuple[str, RunningMount]) -> tuple[int, bool, bool]:
    """Of several mounts, one that shows the whole store, and can be written to, goes first."""
    root, mount = found
    return len(root), not mount.spec.read_only, mount.spec.shows is None


def _from_view(spec: MountSpec, shows: ViewSpec, relative: bytes) -> bytes:
    """From a path in the mount of a view to one in the store.

    Raises ``NotMounted`` where the project has been renamed since.
    """
    if len(shows.projects) > 1:
        return relative
    [project] = shows.projects
    with contextlib.suppress(PermissionError):
        try:
            found = os.stat(f"{spec.store}/{project}", follow_symlinks=False).st_ino
        except FileNotFoundError:
            found = 0
        if found != shows.root_ino:
            raise NotMounted(
                f"{project} has been renamed since the view {spec.view!r} was mounted on "
                f"{spec.mountpoint}: give the path as on the store, or mount the view again"
            )
    return os.path.join(os.fsencode(project), relative).rstrip(b"/")


def _relative(path: str, root: str) -> bytes:
    relative = os.path.relpath(path, root)
    return b"" if relative == "." else os.fsencode(relative)
