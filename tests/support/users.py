"""Doing something as somebody else."""

from __future__ import annotations

import contextlib
import os
import pickle
from collections.abc import Callable, Iterator
from typing import NamedTuple, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class User(NamedTuple):
    """The credentials of a process."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    """Supplementary groups."""


TEAM = 3000
ROOT = User(0, 0)
ALICE = User(2000, 2000, (TEAM,))
BOB = User(2001, 2001, (TEAM,))
STRANGER = User(2002, 2002)


def as_user(user: User, function: Callable[P, T], /, *arguments: P.args, **keywords: P.kwargs) -> T:
    """Call ``function`` in a child process with these credentials and the umask 022.

    Returns what it returns and raises what it raises; both have to be picklable.
    """

    def become_and_call() -> T:
        os.setgroups(user.groups)
        os.setresgid(user.gid, user.gid, user.gid)
        os.setresuid(user.uid, user.uid, user.uid)
        os.umask(0o022)
        return function(*arguments, **keywords)

    return in_child(become_and_call)


def in_child(function: Callable[[], T]) -> T:
    """Call ``function`` in a forked child and return (or raise) what comes of it."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        outcome: tuple[T | None, BaseException | None]
        try:
            outcome = (function(), None)
        except BaseException as raised:  # noqa: BLE001 (handed on to the parent)
            outcome = (None, raised)
        with open(writer, "wb") as pipe:
            pickle.dump(outcome, pipe)
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        pickled = pipe.read()
    os.waitpid(pid, 0)
    if not pickled:
        raise RuntimeError("the child died without an answer")
    value, error = pickle.loads(pickled)  # our own child's bytes
    if error is not None:
        raise error
    return value  # type: ignore[no-any-return]


@contextlib.contextmanager
def acting_as(user: User) -> Iterator[None]:
    """File system calls in the block are made with these credentials, in this process."""
    own_groups = os.getgroups()
    os.setgroups(user.groups)
    os.setegid(user.gid)
    os.seteuid(user.uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(own_groups)
