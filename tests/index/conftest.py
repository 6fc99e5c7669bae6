"""Fixtures of the index's tests."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.index.support import Scene


@pytest.fixture
def on_disk() -> Iterator[Path]:
    """A directory on a file system that a store may lie on."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to open files by handle")
    path = Path(tempfile.mkdtemp(prefix="modamafs-index-", dir="/var/tmp"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def scene(on_disk: Path) -> Iterator[Scene]:
    """An empty store with its index."""
    scene = Scene(on_disk)
    yield scene
    scene.close()
