"""Quick functions for ``filesystem.py``: what they answer hangs on the inode number."""

from __future__ import annotations

import errno
import stat
from typing import Any

from modamafs.model import Attributes

QUICK, QUICK_ROOT, QUICK_CHANGING, QUICK_NOTHING, QUICK_REFUSED, QUICK_RAISES, QUICK_WRONG = range(
    30, 37
)
"""Inodes at which the quick functions do something else; all others are pyfuse3's."""
QUICK_INO = 0x1122334455667788
OPENED = (0x1_0000_0007, 0x85, 4321)
"""What opening answers: the handle, flags, and the backing id."""

calls: list[tuple[Any, ...]] = []
"""What the functions were given, but for look-ups of attributes."""


def answer(node: int, found: Any) -> Any:
    """What is found, at the inodes where anything is."""
    if node == QUICK_NOTHING:
        return 0
    if node == QUICK_REFUSED:
        return errno.ESTALE
    if node == QUICK_RAISES:
        raise ValueError("on purpose")
    if node == QUICK_WRONG:
        return "no answer"
    return found if QUICK <= node < QUICK_WRONG else NotImplemented


def attributes(node: int) -> Attributes:
    """Every field different."""
    ino = {QUICK_ROOT: 2, QUICK_CHANGING: 3}.get(node, QUICK_INO)
    return Attributes(
        ino, 0x99AABBCC, stat.S_IFREG | 0o4751, 17, 1001, 1002, 0x0803, 0x1_0000_0001,
        0x2_0000_0003, 8192, 1_600_000_001_000_000_111, 1_600_000_002_000_000_222,
        -1_000_000_000 + 333, 0, False, 0,
    )  # fmt: skip


def lookup(parent: int, _name: bytes) -> Any:
    """The attributes of what does not hang on the name."""
    return answer(parent, attributes(parent))


def getattr_(node: int) -> Any:
    """The same of the inode."""
    return answer(node, attributes(node))


def getxattr(node: int, name: bytes) -> Any:
    """``value of NAME``."""
    return answer(node, b"value of " + name)


def noted(operation: str, answers: str) -> Any:
    """A function that keeps what it is given; the first of which is a node, or stands for one."""

    def function(node: int, *arguments: Any) -> Any:
        calls.append((operation, node, *arguments))
        found = {
            "nothing": 0, "attributes": attributes(node), "opened": OPENED,
            "created": (*OPENED, attributes(node)),
        }  # fmt: skip
        return answer(node, found[answers])

    return function


def set_up(channel: Any) -> None:
    """Answer what can be answered without pyfuse3."""
    channel.set_quick(
        {
            1: lookup,
            3: getattr_,
            4: noted("setattr", "attributes"),
            9: noted("mkdir", "attributes"),
            10: noted("unlink", "nothing"),
            11: noted("rmdir", "nothing"),
            14: noted("open", "opened"),
            18: noted("release", "nothing"),
            22: getxattr,
            27: noted("opendir", "opened"),
            29: noted("releasedir", "nothing"),
            35: noted("create", "created"),
        },
        2,
        {3},
    )
    channel.set_timeouts(12.5, 3.25, 0.5)
