"""What the commands about the index share: which store's, and where it is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from modamafs.config import index_base, load_config
from modamafs.errors import NotMounted, NotPermitted, NotSupported
from modamafs.index.database import index_dir
from modamafs.store.backing import Store
from modamafs_cli._common import RunningMount, locate, the_only_mount


class Indexed(NamedTuple):
    """A store, its mount where there is one, and its index's directory."""

    store: Path
    mount: RunningMount | None
    directory: Path


def index_of(path: str | None) -> Indexed:
    """The index of the store that ``path`` lies in; without one, as ``find`` chooses.

    NotPermitted: it is root's. NotSupported: the store has none.
    """
    if os.geteuid() != 0:
        raise NotPermitted("the index is root's: 'modamafs find' asks it for everybody")
    if path is not None:
        place = locate(path)
    else:
        try:
            place = locate(".")
        except (NotMounted, OSError):
            place = locate(the_only_mount("name a path in one").spec.mountpoint)
    above = index_base(load_config(place.store))
    if place.mount is not None and place.mount.spec.index_dir:
        return Indexed(place.store, place.mount, Path(place.mount.spec.index_dir))
    if above is None:
        raise NotSupported(f"{place.store} has no index: its config.toml says so, in [index]")
    with Store(place.store) as store:
        return Indexed(place.store, place.mount, index_dir(store, above))
