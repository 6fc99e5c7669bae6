"""A tree that others change while it is walked through."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from modamafs.store.walk import FLAGS, walk


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    for name in ("a", "b", "c"):
        (tmp_path / name / "below").mkdir(parents=True)
        (tmp_path / name / "file").write_bytes(b"")
    fd = os.open(tmp_path, FLAGS)
    yield tmp_path, fd
    os.close(fd)


def remove(path: Path) -> None:
    path.rename(path.parent.parent / f"{path.parent.name}-away")


def replace_by_file(path: Path) -> None:
    remove(path)
    path.write_bytes(b"")


def replace_by_link(path: Path) -> None:
    remove(path)
    path.symlink_to(path.parent / "a")


def replace_by_pipe(path: Path) -> None:
    remove(path)
    os.mkfifo(path)


@pytest.mark.parametrize("harm", [remove, replace_by_file, replace_by_link, replace_by_pipe])
def test_what_is_no_directory_any_more_is_left_out(
    tree: tuple[Path, int], harm: Callable[[Path], None]
) -> None:
    root, fd = tree
    steps = walk(fd)
    found = {next(steps).path}
    harm(root / "b")
    found.update(here.path for here in steps)
    assert found == {b"", b"a", b"a/below", b"c", b"c/below"}


def test_a_directory_that_is_moved_away_under_it_is_told(tree: tuple[Path, int]) -> None:
    root, fd = tree
    steps = walk(fd)
    while (here := next(steps)).path.count(b"/") == 0:
        pass
    (root / "elsewhere").mkdir()
    (root / os.fsdecode(os.path.dirname(here.path))).rename(root / "elsewhere" / "d")
    with pytest.raises(OSError, match="moved while") as told:
        list(steps)
    assert told.value.errno == errno.ESTALE
