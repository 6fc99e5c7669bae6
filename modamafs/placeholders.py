"""Commands with placeholders in braces, as hooks have them. Pure.

A command is a list of arguments; nothing is ever read by a shell. ``{{`` and ``}}`` are braces.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

PLACEHOLDERS = {
    "event": "what has happened",
    "path": "of the directory, in the store; empty: the store itself",
    "session": "of the session that it is or lies in, in the store; empty: it lies in none",
    "recursive": "1: all below the directory may have changed, 0: only its own entries",
    "store": "absolute path of the store",
    "mountpoint": "absolute path of the mount",
    "hook": "the hook's name",
}
CHOSEN_BY_USERS = ("path", "session")
"""May begin with "-" and be taken for an option."""

_TOKEN = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


def check_command(command: Sequence[str]) -> None:
    """ValueError, saying why: it is no command with placeholders, or not a safe one."""
    if not command or not command[0]:
        raise ValueError('write the program and its arguments: ["program", "argument", …]')
    if any("\0" in argument for argument in command):
        raise ValueError("no argument can have a NUL character in it")
    names = [[name for _, name in _pieces(argument) if name] for argument in command]
    if names[0]:
        raise ValueError("the program has no placeholders: it has to be always the same")
    end = command.index("--") if "--" in command else len(command)
    for argument, (_, first) in ((one, next(_pieces(one), ("", ""))) for one in command[:end]):
        if first in CHOSEN_BY_USERS and argument.startswith("{"):
            raise ValueError(
                f'{argument!r} could begin with "-" and be taken for an option: '
                f'write "{{store}}/{argument}", or an argument "--" before it'
            )


def filled(argument: str, values: Mapping[str, bytes]) -> bytes:
    """An argument of a checked command, with the bytes that its placeholders stand for."""
    return b"".join(
        values[name] if name else literal.encode() for literal, name in _pieces(argument)
    )


def _pieces(argument: str) -> Iterator[tuple[str, str]]:
    """What stands there as it is, or (with an empty text) the name of a placeholder.

    ValueError: there is no such placeholder, or a brace lacks its other half.
    """
    end = 0
    for token in _TOKEN.finditer(argument):
        if token.start() > end:
            yield argument[end : token.start()], ""
        end = token.end()
        name = token[1]
        if name is not None:
            if name not in PLACEHOLDERS:
                known = ", ".join(f"{{{known}}}" for known in PLACEHOLDERS)
                raise ValueError(f"no placeholder is called {{{name}}}: there are {known}")
            yield "", name
        elif len(token[0]) == 2:
            yield token[0][0], ""
        else:
            raise ValueError(f"{argument!r}: write {token[0] * 2} for a brace")
    if end < len(argument):
        yield argument[end:], ""
