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


def quick_attributes(node: int) -> Any:
    """What a quick function answers about these inodes."""
    if node == QUICK_NOTHING:
        return 0
    if node == QUICK_REFUSED:
        return errno.ESTALE
    if node == QUICK_RAISES:
        raise ValueError("on purpose")
    if node == QUICK_WRONG:
        return "no answer"
    if not QUICK <= node < QUICK_WRONG:
        return NotImplemented
    ino = {QUICK_ROOT: 2, QUICK_CHANGING: 3}.get(node, QUICK_INO)
    return Attributes(
        ino, 0x99AABBCC, stat.S_IFREG | 0o4751, 17, 1001, 1002, 0x0803, 0x1_0000_0001,
        0x2_0000_0003, 8192, 1_600_000_001_000_000_111, 1_600_000_002_000_000_222,
        -1_000_000_000 + 333, 0, False, 0,
    )  # fmt: skip


def quick_getxattr(node: int, name: bytes) -> Any:
    """``value of NAME``, where the others answer with attributes."""
    found = quick_attributes(node)
    return b"value of " + name if isinstance(found, tuple) else found


def set_up(channel: Any) -> None:
    """Answer LOOKUP, GETATTR and GETXATTR without pyfuse3."""

    def lookup(parent: int, _name: bytes) -> Any:
        return quick_attributes(parent)

    channel.set_quick(lookup, quick_attributes, quick_getxattr, 2, {3})
    channel.set_timeouts(12.5, 3.25, 0.5)
