"""A mount can't be told from a bare directory by any sequence of system calls.

``MODAMAFS_EXAMPLES`` says how many programs of 50 steps are tried on each file system.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from tests.support import differential, trees
from tests.support.differential import DifferenceFound, Side
from tests.support.targets import Workshop

EXAMPLES = int(os.environ.get("MODAMAFS_EXAMPLES", "25"))

pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def sides(
    workshop: Workshop, new_name: Callable[[], str]
) -> Callable[[str, str], tuple[Side, Side]]:
    """Two new directories, one in each of two targets."""

    def make(one: str, other: str) -> tuple[Side, Side]:
        return (
            Side(os.fsencode(workshop.target(one).root / new_name())),
            Side(os.fsencode(workshop.target(other).root / new_name())),
        )

    return make


@pytest.mark.parametrize("fstype", ["ext4", "xfs", "btrfs"])
def test_two_bare_directories_are_the_same(
    sides: Callable[[str, str], tuple[Side, Side]], fstype: str
) -> None:
    """The control: what differs here is no fault of a mount."""
    bare = f"bare-{fstype}"
    differential.explore(lambda: sides(bare, bare), EXAMPLES)


@pytest.mark.parametrize("kind", ["mount-ext4", "mount-xfs", "mount-btrfs", "fallback-ext4"])
def test_a_mount_is_a_bare_directory(
    sides: Callable[[str, str], tuple[Side, Side]], workshop: Workshop, kind: str
) -> None:
    target = workshop.target(kind)

    def same_on_the_store(one: Side, _other: Side) -> None:
        stored = os.fsencode(target.store) + one.root.removeprefix(os.fsencode(target.root))
        found = trees.differences(trees.snapshot(one.root), trees.snapshot(stored))
        if found:
            raise DifferenceFound("\n".join(["the mount and its store differ:", *found]))

    differential.explore(
        lambda: sides(kind, f"bare-{target.fstype}"), EXAMPLES, finally_=same_on_the_store
    )
    if target.mount:
        target.mount.fail_on_unexpected_log_lines()


class DropsChmod(Side):
    """Says that it did it."""

    def run(self, step: differential.Step) -> object:
        return None if step.call is differential.chmod else super().run(step)


class ForgetsTheLastByte(Side):
    """Of what is read at an offset."""

    def run(self, step: differential.Step) -> object:
        result = super().run(step)
        return result[:-1] if isinstance(result, bytes) else result


class SaysEperm(Side):
    """Where a name is missing and ENOENT is the answer."""

    def run(self, step: differential.Step) -> object:
        result = super().run(step)
        return "EPERM" if result == "ENOENT" else result


class LosesOwners(Side):
    """Everything is created by root."""

    def run(self, step: differential.Step) -> object:
        if step.call is differential.mkdir:
            step = differential.Step(step.call, step.arguments, differential.ROOT, step.umask)
        return super().run(step)


class KeepsAttributes(Side):
    """Removes none; nobody looks before the end."""

    def run(self, step: differential.Step) -> object:
        if step.call is differential.removexattr:
            super().run(step)
            with differential.acting_as(differential.ROOT):
                os.setxattr(self.root, "user.one", b"still here")
        return super().run(step) if step.call is not differential.removexattr else "ENODATA"


@pytest.mark.parametrize(
    "broken", [DropsChmod, ForgetsTheLastByte, SaysEperm, LosesOwners, KeepsAttributes]
)
def test_a_broken_directory_is_found_out(
    sides: Callable[[str, str], tuple[Side, Side]], broken: type[Side]
) -> None:
    """The comparison can fail."""

    def one_is_broken() -> tuple[Side, Side]:
        good, other = sides("bare-ext4", "bare-ext4")
        return good, broken(other.root)

    with pytest.raises(DifferenceFound):
        differential.explore(one_is_broken, EXAMPLES)
