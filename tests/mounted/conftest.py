"""Stores and mounts of a test's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.mounts import Mount
from tests.support.targets import Workshop
from tests.support.trees import remove


@pytest.fixture(params=["ext4", "xfs", "btrfs"])
def store(
    request: pytest.FixtureRequest, workshop: Workshop, new_name: Callable[[], str]
) -> Iterator[Path]:
    """A new store, on each kind of file system."""
    directory: Path = workshop.image(request.param).root / f"store-{new_name()}"
    directory.mkdir()
    yield directory
    remove(directory)


@pytest.fixture(params=["", "--no-passthrough"])
def mount(request: pytest.FixtureRequest, workshop: Workshop, store: Path) -> Iterator[Mount]:
    """A mount of that store, with passthrough and without."""
    options = [request.param] if request.param else []
    with Mount(store, workshop.mountpoint(store.name), *options) as mount:
        yield mount
