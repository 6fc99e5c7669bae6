"""``modamafs`` in a fork of the tests' process, where it is loaded already.

The tests run it some thousand times, and most of the time it takes is Python's start. Everything
else is as when it is started by a shell: what is open stays behind, output goes into pipes that
have to be let go of, and it has signal handlers and filters of warnings as Python begins with. That
it starts as an installed program is shown by the tests that use ``mounts.installed`` or
``mounts.command``.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import logging
import os
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from typing import NoReturn

from modamafs_cli.main import run

QUIET = (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning)


def call(words: Sequence[str], timeout_s: float) -> subprocess.CompletedProcess[str]:
    """Run it to its end. TimeoutExpired: it, or what holds its output, takes longer.

    ``words``: how it is called, and its arguments.
    """
    with contextlib.suppress(Exception):  # that is the command's to say
        importlib.import_module(f"modamafs_cli.{words[1]}")
    (out, out_end), (err, err_end) = os.pipe(), os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        _become(words, out_end, err_end)
    os.close(out_end)
    os.close(err_end)
    said = None
    try:
        said = _until_closed((out, err), time.monotonic() + timeout_s)
    finally:
        os.close(out)
        os.close(err)
        if said is None:
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
    if said is None:
        raise subprocess.TimeoutExpired(list(words), timeout_s)
    texts = [text.decode(errors="surrogateescape") for text in said]
    return subprocess.CompletedProcess(list(words), os.waitstatus_to_exitcode(status), *texts)


def _until_closed(fds: tuple[int, ...], end_s: float) -> list[bytes] | None:
    """What comes, until nobody has the other ends; None: somebody still has, and time is up."""
    said = dict.fromkeys(fds, b"")
    left = set(fds)
    while left:
        ready, _, _ = select.select(left, [], [], max(0.0, end_s - time.monotonic()))
        if not ready:
            return None
        for fd in ready:
            piece = os.read(fd, 1 << 16)
            said[fd] += piece
            if not piece:
                left.remove(fd)
    return list(said.values())


def _become(words: Sequence[str], out: int, err: int) -> NoReturn:
    status = 70
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out, 1)
        os.dup2(err, 2)
        faulthandler.disable()
        os.closerange(3, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.unraisablehook = sys.__unraisablehook__
        warnings.resetwarnings()
        for category in QUIET:
            warnings.simplefilter("ignore", category)
        logging.root.handlers.clear()
        logging.root.setLevel(logging.WARNING)
        errors = sys.__stdout__.errors if sys.__stdout__ else "strict"
        sys.stdin = open(0)  # noqa: SIM115
        sys.stdout = open(1, "w", errors=errors)  # noqa: SIM115
        sys.stderr = open(2, "w", errors="backslashreplace")  # noqa: SIM115
        sys.argv = list(words)
        tempfile.tempdir = None
        status = run(sys.argv[1:])
        sys.stdout.flush()
        sys.stderr.flush()
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:  # noqa: BLE001 (as Python does at its end)
        sys.excepthook(*sys.exc_info())
        sys.stderr.flush()
        status = 1
    finally:
        os._exit(status)
