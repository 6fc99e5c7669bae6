"""The boundary: nothing but FUSEError leaves a handler, and what is our own defect is logged."""

from __future__ import annotations

import errno
import logging

import pytest
import trio
from pyfuse3 import FUSEError

from modamafs import errors
from modamafs.fuse.boundary import errno_of, handler, slow_handler

DOMAIN = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, errors.ModamaError)
]

EXPECTED = [
    (errors.Sealed("sealed"), errno.EROFS),
    (errors.StaleHandle("gone"), errno.ESTALE),
    (errors.Reserved("ours"), errno.EPERM),
    (OSError(errno.EDQUOT, "full"), errno.EDQUOT),
    (FileNotFoundError(errno.ENOENT, "nothing"), errno.ENOENT),
    (OSError("without a number"), errno.EIO),
    (OSError(0, "with none"), errno.EIO),
    (ValueError("a defect"), errno.EIO),
    (KeyError(7), errno.EIO),
    (RecursionError(), errno.EIO),
    (MemoryError(), errno.EIO),
    (ExceptionGroup("many", [OSError(errno.ENOENT, "one")]), errno.EIO),
]
DEFECTS = [error for error, number in EXPECTED if number == errno.EIO]


@pytest.mark.parametrize("kind", DOMAIN)
def test_every_error_of_the_domain_has_an_errno(
    kind: type[errors.ModamaError], caplog: pytest.LogCaptureFixture
) -> None:
    assert errno_of(kind("message"), "open") == kind.errno
    assert kind.errno in errno.errorcode
    assert not caplog.records


@pytest.mark.parametrize("wrapper", [handler, slow_handler])
@pytest.mark.parametrize(("error", "number"), EXPECTED)
def test_what_leaves_a_handler(
    error: Exception, number: int, wrapper: object, caplog: pytest.LogCaptureFixture
) -> None:
    def plain(first: int, *, second: int) -> None:
        assert (first, second) == (1, 2)
        raise error

    async def slow(first: int, *, second: int) -> None:
        plain(first, second=second)

    function = handler(plain) if wrapper is handler else slow_handler(slow)
    with pytest.raises(FUSEError) as raised:
        trio.run(lambda: function(1, second=2))
    assert raised.value.errno == number
    defects = [record for record in caplog.records if record.levelno >= logging.ERROR]
    if error in DEFECTS:
        (record,) = defects
        assert record.name == "modamafs.fuse"
        assert (
            record.getMessage() == f"defect operation={'plain' if wrapper is handler else 'slow'}"
        )
        assert record.exc_info
        assert record.exc_info[1] is error
    else:
        assert not defects


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)])
def test_what_is_no_error_passes(error: BaseException) -> None:
    def plain() -> None:
        raise error

    with pytest.raises(type(error)):
        trio.run(handler(plain))


def test_a_cancelled_request_is_cancelled() -> None:
    async def slow() -> None:
        await trio.sleep_forever()

    async def cancel() -> bool:
        with trio.CancelScope() as scope:
            scope.cancel()
            await slow_handler(slow)()
        return scope.cancelled_caught

    assert trio.run(cancel)


def test_fuse_errors_and_results_pass() -> None:
    async def slow(value: int) -> int:
        return value

    def refuse() -> None:
        raise FUSEError(errno.ENOENT)

    assert trio.run(handler(lambda value: value + 1), 7) == 8
    assert trio.run(slow_handler(slow), 7) == 7
    assert slow_handler(slow).__name__ == "slow"
    assert handler(refuse).__name__ == "refuse"
    with pytest.raises(FUSEError) as raised:
        trio.run(handler(refuse))
    assert raised.value.errno == errno.ENOENT


def test_every_refusal_is_one_debug_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "modamafs.fuse")
    errno_of(errors.Sealed("sealed"), "unlink")
    assert caplog.messages == ["refused operation=unlink errno=EROFS"]
