"""A process that searches in the index for one mount, one question at a time, until it is let go.

Not a thread of the worker's: a search is a lot of Python, and would keep the kernel waiting. Lines
of JSON on standard input and output. One comes: the verb, its arguments, who asks, what is to be
said of the index, and how long a reply may be. Two go back: what the worker has to know
(``empty_until``: the position of an answer without changes), and a reply as on the control socket,
which the worker hands on as it is.
"""

from __future__ import annotations

import argparse
import errno
import gc
import json
import os
import resource
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from modamafs.config import MountSpec, load_mount_spec
from modamafs.control.protocol import encode_error, encode_result
from modamafs.errors import ModamaError, TooLong
from modamafs.index.find import find_command
from modamafs.index.follow import follow_command
from modamafs.model import Caller
from modamafs.store.backing import Store
from modamafs.tree.scope import scope_of

VERBS: dict[str, Callable[..., dict[str, Any]]] = {"find": find_command, "changes": follow_command}
NICENESS = 5
MEMORY_BYTES = 1 << 30
"""Of addresses; docs/design/index.md says what searches need."""
PAGES = (1000, 100, 10, 1)
"""Results that are asked for at a time, until there is room for them in an answer."""


def main(arguments: list[str] | None = None) -> int:
    """Answer until standard input ends."""
    parser = argparse.ArgumentParser(prog="python -m modamafs.searcher")
    parser.add_argument("--runtime", type=Path, required=True)
    options = parser.parse_args(arguments)
    os.nice(NICENESS)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    spec = load_mount_spec(options.runtime)
    gc.disable()  # what a search makes holds no rings; looking for them takes longer than it
    with Store(Path(spec.store)) as store:
        for line in sys.stdin.buffer:
            for part in _answer(store, spec, line):
                sys.stdout.buffer.write(part)
            sys.stdout.buffer.flush()
            gc.collect()
    return 0


def _answer(store: Store, spec: MountSpec, line: bytes) -> tuple[bytes, bytes]:
    question = json.loads(line)
    uid, gid, pid, groups = question["caller"]
    caller = Caller(uid, gid, pid, groups=tuple(groups))
    assert spec.index_dir is not None
    try:
        scope = scope_of(store, spec.shows)
        try:
            shows = None if scope.is_whole else partial(_is_shown, scope)
            ask = partial(
                VERBS[question["verb"]], store, Path(spec.index_dir), caller=caller, shows=shows
            )
            return _fitting(ask, question)
        finally:
            scope.close()
    except (ModamaError, OSError) as error:
        return b"{}\n", encode_error(error)


def _fitting(ask: Callable[..., dict[str, Any]], question: dict[str, Any]) -> tuple[bytes, bytes]:
    """An answer that is not too long, with fewer results than were asked for if need be.

    TooLong (EFBIG), OSError (ENOMEM): not even one.
    """
    arguments = question["arguments"]
    most_bytes = question["most_bytes"]
    refused: Exception
    for limit in _limits(arguments.get("limit", PAGES[0])):
        try:
            found = ask(arguments={**arguments, "limit": limit})
            if question["state"] is not None:
                found["state"] = question["state"]
            line = encode_result(found)
        except MemoryError:
            refused = OSError(errno.ENOMEM, "that needs too much memory: ask for something else")
            continue
        told = _told(found)
        if len(told) + len(line) <= most_bytes:
            return told, line
        refused = TooLong(f"the answer has more than {most_bytes} bytes: ask for something else")
    raise refused


def _limits(limit: Any) -> list[Any]:
    """How many results to ask for, one number after the other."""
    if type(limit) is not int:
        return [limit]  # to be refused
    return [limit, *(fewer for fewer in PAGES if fewer < limit)]


def _told(found: dict[str, Any]) -> bytes:
    """What the worker has to know of an answer."""
    if found.get("changes") == [] and not found["lost"]:
        return json.dumps({"empty_until": found["position"]}).encode() + b"\n"
    return b"{}\n"


def _is_shown(scope: Any, path: bytes) -> bool:
    return scope.path_in_mount(path) is not None


if __name__ == "__main__":
    sys.exit(main())
