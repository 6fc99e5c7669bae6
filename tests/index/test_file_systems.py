"""The same on the other file systems that a store may lie on: handles and numbers differ."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.index.support import differences, reconcile, whole
from tests.index.test_random import begin


@pytest.fixture(params=["xfs", "btrfs"])
def other(request: pytest.FixtureRequest, on_disk: Path) -> Iterator[Path]:
    """A file system of another kind."""
    make = f"mkfs.{request.param}"
    if not shutil.which(make):
        pytest.skip(f"{make} is not installed")
    image, here = on_disk / "disk", on_disk / "mounted"
    with image.open("wb") as file:
        file.truncate(400 << 20)
    here.mkdir()
    subprocess.run([make, "-q", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, here], check=True)
    yield here
    subprocess.run(["umount", here], check=True)


def test_told_and_not_told(other: Path) -> None:
    store, index, life = begin(other, 77)
    with store:
        reconcile(index)
        for number in range(600):
            life.step()
            if life.random.random() < 0.2:
                index.apply(life.take())
            if number == 400:
                index.apply(life.take())
                assert differences(store, other / "index") == []
        life.take()
        reconcile(index)
        assert differences(store, other / "index") == []
        index.close()
        whole(other / "index")
