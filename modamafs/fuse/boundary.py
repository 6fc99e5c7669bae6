"""The one boundary between the tree's errors and the kernel's: nothing else may leave a handler.

A stray exception would end pyfuse3's main loop, and with it the mount. ModamaError and OSError
become their errno; anything else is a defect: EIO for the client, a traceback for the log.
"""

from __future__ import annotations

import errno
import functools
import logging
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

from pyfuse3 import FUSEError

from modamafs.errors import ModamaError

log = logging.getLogger("modamafs.fuse")
Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def errno_of(error: Exception, operation: str) -> int:
    """The errno for a client; logs what is a defect of ours."""
    if isinstance(error, ModamaError | OSError) and error.errno:
        number = error.errno
    else:
        log.error("defect operation=%s", operation, exc_info=error)
        number = errno.EIO
    if log.isEnabledFor(logging.DEBUG):
        log.debug("refused operation=%s errno=%s", operation, errno.errorcode.get(number, number))
    return number


def handler(
    function: Callable[Parameters, Result],
) -> Callable[Parameters, Coroutine[Any, Any, Result]]:
    """Make a pyfuse3 handler of a plain function."""
    name = function.__name__

    @functools.wraps(function)
    async def handle(*arguments: Parameters.args, **keywords: Parameters.kwargs) -> Result:
        try:
            return function(*arguments, **keywords)
        except FUSEError:
            raise
        except Exception as error:
            raise FUSEError(errno_of(error, name)) from None

    return handle


def quick_handler(function: Callable[Parameters, Result]) -> Callable[Parameters, Result | int]:
    """Make a function for ``_channel.set_quick`` of one that raises."""
    name = function.__name__.removeprefix("quick_")

    @functools.wraps(function)
    def handle(*arguments: Parameters.args, **keywords: Parameters.kwargs) -> Result | int:
        try:
            return function(*arguments, **keywords)
        except FUSEError as error:
            return int(error.errno)
        except Exception as error:
            return errno_of(error, name)

    return handle


def slow_handler(
    function: Callable[Parameters, Coroutine[Any, Any, Result]],
) -> Callable[Parameters, Coroutine[Any, Any, Result]]:
    """Make a pyfuse3 handler of a coroutine function: one that may wait for a thread."""
    name = function.__name__

    @functools.wraps(function)
    async def handle(*arguments: Parameters.args, **keywords: Parameters.kwargs) -> Result:
        try:
            return await function(*arguments, **keywords)
        except FUSEError:
            raise
        except Exception as error:
            raise FUSEError(errno_of(error, name)) from None

    return handle
