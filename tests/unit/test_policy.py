"""The one decision: every combination of what it is made from."""

from __future__ import annotations

import errno
import itertools

import pytest

from modamafs.errors import ModamaError, ReadOnlyMount, Sealed
from modamafs.model import Operation
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
