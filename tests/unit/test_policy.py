"""The one decision, and who may enter: every combination of what they are made from."""

from __future__ import annotations

import errno
import itertools
import struct

import pytest

from modamafs.errors import ModamaError, ReadOnlyMount, Sealed
from modamafs.model import Caller, Operation
from modamafs.policy import access
from modamafs.policy.decide import decide

ALL = list(itertools.product(Operation, (False, True), (False, True)))


@pytest.mark.parametrize(("operation", "sealed", "read_only"), ALL)
def test_decide(operation: Operation, sealed: bool, read_only: bool) -> None:
    raised: ModamaError | None = None
    try:
        decide(operation, sealed=sealed, read_only=read_only)
    except ModamaError as error:
        raised = error
    if operation is Operation.READ or not (sealed or read_only):
        assert raised is None
    else:
        assert type(raised) is (ReadOnlyMount if read_only else Sealed)
        assert raised.errno == errno.EROFS


@pytest.mark.parametrize(
    ("sealed", "read_only", "hint"), [(True, False, "unseal"), (False, True, "writable")]
)
def test_a_refusal_says_what_to_do_in_one_line(sealed: bool, read_only: bool, hint: str) -> None:
    with pytest.raises(ModamaError) as raised:
        decide(Operation.WRITE, sealed=sealed, read_only=read_only)
    assert hint in raised.value.message
    assert "\n" not in raised.value.message


ACCESS = {"owner": Caller(1, 9), "group": Caller(2, 7), "supplementary": Caller(2, 9, groups=(7,)),
          "other": Caller(2, 9), "owner in group": Caller(1, 7)}  # fmt: skip


@pytest.mark.parametrize("who", ACCESS)
def test_a_mode_is_the_acl_of_three_entries_that_says_the_same(who: str) -> None:
    """The class that somebody is in decides, and no other: acl(5)."""
    nobody = 0xFFFFFFFF
    for mode in range(0o1000):
        acl = struct.pack("<I", 2) + b"".join(
            struct.pack("<HHI", tag, mode >> shift & 7, nobody)
            for tag, shift in ((0x01, 6), (0x04, 3), (0x20, 0))
        )
        for wanted in range(8):
            allowed = access.may(wanted, ACCESS[who], mode, 1, 7, None)
            assert allowed == access.may(wanted, ACCESS[who], mode, 1, 7, acl)
            shift = 6 if who.startswith("owner") else 0 if who == "other" else 3
            assert allowed == (mode >> shift & wanted == wanted)
