"""What people do over each protocol, on the mount as on the bare directory."""

from __future__ import annotations

import pytest

from tests.exports.conftest import Exported


@pytest.fixture(params=["plain", "bare"])
def place(request: pytest.FixtureRequest) -> Exported:
    """The mount, and the bare directory as the control."""
    found: Exported = request.getfixturevalue(request.param)
    return found


def test_what_was_written_is_read(place: Exported, protocol: str) -> None:
    with place.client(protocol) as client:
        client.write("new.dat", b"abc" * 1000)
        assert client.read("new.dat") == b"abc" * 1000
        assert (place.store / "new.dat").read_bytes() == b"abc" * 1000
        client.remove("new.dat")
        assert not (place.store / "new.dat").exists()
