"""What the watcher and the daemon have agreed on, so that a change from outside raises events.

What the kernel is told to forget raises no inotify event. So the watcher *nudges*: it makes system
calls on the mount which change nothing, and whose success the kernel tells to who watches:

- an entry has changed: ``setxattr`` of ``CHANGED`` on it (IN_ATTRIB). The daemon says yes, and does
  nothing, because of the name alone;
- an entry is gone: it is renamed to an entry of ``BESIDE`` (IN_MOVED_FROM);
- an entry has come: an entry of ``BESIDE`` is renamed to it (IN_MOVED_TO).

``BESIDE`` is a directory that nobody sees but who comes as ``AS_FILE`` or ``AS_DIRECTORY``, and to
him the opposite of the truth is said: what is there is not there, so that it can come; what is not
there is there, so that it can go. Nothing of this reaches the store, whoever asks: the daemon has
one answer to renaming from or to ``BESIDE``, and that is one of words.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import NamedTuple

from modamafs.model import TEMPORARY, is_own_name
from modamafs.watch.events import (
    ATTRIB,
    CLOSE_WRITE,
    CREATE,
    DELETE,
    MODIFY,
    ONDIR,
    RENAME,
    Event,
)

CHANGED = b"trusted.modama.changed"
"""The attribute: as everything called so, nobody ever has it, gets it, or sees it."""
BESIDE = TEMPORARY + b"beside"
"""In the mount's root."""
AS_FILE, AS_DIRECTORY = 0xFFFFFE01, 0xFFFFFE02
"""Group ids (setfsgid(2)) of root for a call about a file, or a directory: they are nobody's."""
NEW_FILE, NEW_DIRECTORY = b"file", b"directory"
"""Entries of ``BESIDE`` which are there; all others are not."""


class What(enum.Flag):
    """What has happened to an entry; may be several, in this order."""

    GONE = enum.auto()
    COME = enum.auto()
    CHANGED = enum.auto()


class Nudge(NamedTuple):
    """What is to be said about one entry of a directory, or (``name`` is empty) of itself."""

    directory: int
    """Its inode number on the store."""
    name: bytes
    what: What
    is_directory: bool = False
    """Whether the entry is one."""


def of(event: Event) -> Iterator[Nudge]:
    """What a change of the store says to who watches the directory."""
    mask, is_directory = event.mask, bool(event.mask & ONDIR)
    what = What(0)
    if mask & (DELETE | RENAME):
        what |= What.GONE
    if mask & CREATE:
        what |= What.COME
    if mask & (MODIFY | CLOSE_WRITE | ATTRIB):
        what |= What.CHANGED
    name = b"" if event.name == b"." else event.name
    if event.directory and what and not is_own_name(name):
        yield Nudge(event.directory, name, what, is_directory)
    if mask & RENAME and event.new_directory and not is_own_name(event.new_name):
        # Who knows the name already looks whether it is another file now.
        came = What.COME | What.CHANGED
        yield Nudge(event.new_directory, event.new_name, came, is_directory)
