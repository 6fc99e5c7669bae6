"""A process that searches in the index for one mount, one question at a time, until it is let go.

Not a thread of the worker's: a search is a lot of Python, and would keep the kernel waiting. A line
of JSON each way, on standard input and output: the verb, its arguments, who asks; and a reply as on
the control socket.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from modamafs.config import MountSpec, load_mount_spec
from modamafs.control.protocol import encode_error, encode_result
from modamafs.errors import ModamaError
from modamafs.index.find import find_command
from modamafs.index.follow import follow_command
from modamafs.model import Caller
from modamafs.store.backing import Store
from modamafs.tree.scope import scope_of

VERBS: dict[str, Callable[..., dict[str, Any]]] = {"find": find_command, "changes": follow_command}
NICENESS = 5


def main(arguments: list[str] | None = None) -> int:
    """Answer until standard input ends."""
    parser = argparse.ArgumentParser(prog="python -m modamafs.searcher")
    parser.add_argument("--runtime", type=Path, required=True)
    options = parser.parse_args(arguments)
    os.nice(NICENESS)
    spec = load_mount_spec(options.runtime)
    with Store(Path(spec.store)) as store:
        answer = partial(_answer, store, spec)
        for line in sys.stdin.buffer:
            sys.stdout.buffer.write(answer(line))
            sys.stdout.buffer.flush()
    return 0


def _answer(store: Store, spec: MountSpec, line: bytes) -> bytes:
    question = json.loads(line)
    uid, gid, pid, groups = question["caller"]
    caller = Caller(uid, gid, pid, groups=tuple(groups))
    assert spec.index_dir is not None
    try:
        scope = scope_of(store, spec.shows)
        try:
            shows = None if scope.is_whole else partial(_is_shown, scope)
            found = VERBS[question["verb"]](
                store, Path(spec.index_dir), question["arguments"], caller, shows=shows
            )
        finally:
            scope.close()
    except (ModamaError, OSError) as error:
        return encode_error(error)
    return encode_result(found)


def _is_shown(scope: Any, path: bytes) -> bool:
    return scope.path_in_mount(path) is not None


if __name__ == "__main__":
    sys.exit(main())
