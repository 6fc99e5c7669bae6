"""Writing a share into a server's configuration: all of it or nothing, and never over what is
somebody else's.

Each share has a file of its own, which says in its first line that it was made here. The server's
main file gets one line that includes it, between two marks.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple

from modamafs.errors import InvalidRequest

MARK = "# Made by 'modamafs export"
"""How each file of ours begins."""
Action = Literal["make", "change", "add to", "remove", "remove from", "leave"]


class Step(NamedTuple):
    """What is to become of one file; ``content`` None: it is removed."""

    action: Action
    path: Path
    content: str | None
    what: str
    """In a few words, for people."""


def headed(kind: str, share_path: Path, content: str) -> str:
    """The text of a file of ours."""
    return (
        f"{MARK} {kind} install' for {share_path}: made anew by that, so change nothing here.\n"
        f"{content}"
    )


def of_own_file(path: Path, content: str, share_path: Path, *, replace: bool) -> Step:
    """The step that makes a file of ours.

    Raises InvalidRequest: somebody else's file is there, or ours for another directory, and
    ``replace`` was not said.
    """
    there = _read(path)
    if there is None:
        return Step("make", path, content, "the share")
    if not there.startswith(MARK):
        raise InvalidRequest(
            f"{path} is there and was not made by modamafs: choose another --name, or move it away"
        )
    if there == content:
        return Step("leave", path, content, "as it should be")
    first = there.partition("\n")[0]
    if f" for {share_path}: " not in first and not replace:
        other = re.search(r"' for (.*): made anew", first)
        raise InvalidRequest(
            f"{path} exports {other[1] if other else 'another directory'} by this name: "
            "choose another --name, or say --replace"
        )
    return Step("change", path, content, "the share")


def of_line(path: Path, line: str, name: str) -> Step:
    """The step that adds a line to a file that is somebody else's, which is kept otherwise."""
    there = _read(path) or ""
    block = _block(line, name)
    if block in there:
        return Step("leave", path, there, "includes it already")
    without = _without(there, name)
    joint = "" if not without or without.endswith("\n") else "\n"
    return Step("add to", path, f"{without}{joint}{block}", line)


def of_removal(own: Path, main: Path, name: str) -> list[Step]:
    """The steps that take both away again. InvalidRequest: the file is somebody else's."""
    steps = []
    there = _read(main)
    if there is not None and _without(there, name) != there:
        steps.append(Step("remove from", main, _without(there, name), "its line"))
    content = _read(own)
    if content is not None:
        if not content.startswith(MARK):
            raise InvalidRequest(f"{own} was not made by modamafs: remove it yourself")
        steps.append(Step("remove", own, None, "the share"))
    return steps


def carry_out(steps: Iterable[Step]) -> None:
    """Do it, in order; when one fails, those before it are undone. OSError."""
    undo: list[tuple[Path, str | None]] = []
    try:
        for step in steps:
            if step.action == "leave":
                continue
            before = _read(step.path)
            _write(step.path, step.content)
            undo.append((step.path, before))
    except BaseException:
        for path, before in reversed(undo):
            _write(path, before)
        raise


def _block(line: str, name: str) -> str:
    return f"# modamafs: {name} (one line, made by 'modamafs export')\n{line}\n"


def _without(text: str, name: str) -> str:
    mark = re.escape(_block("", name).rstrip("\n"))
    return re.sub(rf"^{mark}\n.*\n?", "", text, flags=re.MULTILINE)


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except FileNotFoundError:
        return None


def _write(path: Path, content: str | None) -> None:
    """In one step, with the owner and the mode that it has; through a symbolic link."""
    path = Path(os.path.realpath(path))
    if content is None:
        path.unlink(missing_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    mode, uid, gid = 0o644, -1, -1
    with contextlib.suppress(FileNotFoundError):
        before = path.stat()
        mode, uid, gid = stat.S_IMODE(before.st_mode), before.st_uid, before.st_gid
    fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(fd, "w") as file:
            file.write(content)
            os.fchown(fd, uid, gid)
            os.fchmod(fd, mode)
            file.flush()
            os.fsync(fd)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
