"""Those of Samba's own tests that take seconds; ``smbtorture.py`` runs the others by hand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest

from modamafs.exports.share import Share
from tests.conformance.smbtorture import (
    LIMIT_S,
    QUICK,
    USER,
    compare,
    counts,
    differences,
    lost,
    two_sides,
)
from tests.support.servers import PEOPLE
from tests.support.targets import Workshop


@pytest.fixture(scope="module")
def sides(workshop: Workshop) -> Iterator[Mapping[str, Share]]:
    directory = workshop.mountpoint("smbtorture")
    directory.mkdir()
    with two_sides(directory, PEOPLE[USER].uid) as sides:
        yield sides


@pytest.mark.timeout(4 * LIMIT_S)
@pytest.mark.parametrize("suite", QUICK)
def test_what_goes_well_over_the_bare_directory_does_so_over_the_mount(
    suite: str, sides: Mapping[str, Share]
) -> None:
    """What fails over the mount alone is repeated, on both: some depend on time."""
    ran = compare([("torture", suite)], sides, LIMIT_S, jobs=1)
    for _, one in ran:
        assert counts([one.bare])["success"]
    assert [row for row in differences(ran) if lost(row)] == []
