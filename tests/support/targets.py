"""What the behaviour suite runs against."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tests.support.images import Image
from tests.support.mounts import Mount, modamafs


class Kind(NamedTuple):
    """One kind of target."""

    fstype: str
    mounted: bool
    passthrough: bool = False
    view: bool = False
    """The mount is one of a view: of a project in the store."""


KINDS = {
    "bare-ext4": Kind("ext4", mounted=False),
    "bare-xfs": Kind("xfs", mounted=False),
    "bare-btrfs": Kind("btrfs", mounted=False),
    "mount-ext4": Kind("ext4", mounted=True, passthrough=True),
    "mount-xfs": Kind("xfs", mounted=True, passthrough=True),
    "mount-btrfs": Kind("btrfs", mounted=True, passthrough=True),
    "fallback-ext4": Kind("ext4", mounted=True),
    "view-ext4": Kind("ext4", mounted=True, passthrough=True, view=True),
}
"""The bare directories are the control: the suite has to pass there, or it is wrong itself."""

MOUNTS = [name for name, kind in KINDS.items() if kind.mounted]
PASSTHROUGH = [name for name, kind in KINDS.items() if kind.passthrough]


@dataclass(frozen=True)
class Target:
    """A directory to try things in."""

    kind: str
    fstype: str
    root: Path
    """As a client sees it."""
    store: Path
    """The same directory on the store; for a bare directory the same path."""
    mount: Mount | None

    def below(self, name: str) -> Target:
        """A new directory in it, made the way a client makes one."""
        (self.root / name).mkdir()
        (self.root / name).chmod(0o755)
        return Target(self.kind, self.fstype, self.root / name, self.store / name, self.mount)

    def on_store(self, path: Path) -> Path:
        """The store's path of a path below ``root``."""
        return self.store / path.relative_to(self.root)


class Workshop:
    """Makes file systems and mounts when they are first asked for, and keeps them."""

    def __init__(self, directory: Path, stack: contextlib.ExitStack) -> None:
        self._directory = directory
        self._stack = stack
        self._images: dict[str, Image] = {}
        self._targets: dict[str, Target] = {}
        for name in ("images", "mounts", "run"):
            (directory / name).mkdir()

    def image(self, fstype: str) -> Image:
        """The file system of this type that all tests share."""
        if fstype not in self._images:
            image = Image(fstype, self._directory / "images")
            self._images[fstype] = self._stack.enter_context(image)
        return self._images[fstype]

    def mountpoint(self, name: str) -> Path:
        """A directory to mount on."""
        return self._directory / "mounts" / name

    def target(self, name: str) -> Target:
        """The target of this kind that all tests share."""
        if name not in self._targets:
            self._targets[name] = self._make(name)
        return self._targets[name]

    def _make(self, name: str) -> Target:
        kind = KINDS[name]
        # XFS: the store is the root of a file system of its own; otherwise a directory in one.
        if name == "mount-xfs":
            own = self._directory / "images" / name
            own.mkdir()
            store = self._stack.enter_context(Image(kind.fstype, own)).root
        else:
            store = self.image(kind.fstype).root / name
        store.mkdir(exist_ok=True)
        if not kind.mounted:
            return Target(name, kind.fstype, store, store, None)
        options = () if kind.passthrough else ("--no-passthrough",)
        shown = store
        if kind.view:
            shown = store / "area/project"
            shown.mkdir(parents=True)
            done = modamafs("view", "add", store, "shown", "area/project")
            assert done.returncode == 0, done.stderr
            options += ("--view", "shown")
        mount = self._stack.enter_context(Mount(store, self.mountpoint(name), *options))
        assert mount.status()["passthrough"] is kind.passthrough
        return Target(name, kind.fstype, mount.root, shown, mount)
