"""Which directories of a mount somebody watches by inotify, as ``/proc`` says of every process."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

_MARK = re.compile(
    rb"^inotify wd:\w+ ino:\w+ sdev:(\w+) .*fhandle-type:(\w+) f_handle:(\w+)", re.MULTILINE
)
_NODE = struct.Struct("=II")
_INOTIFY = "anon_inode:inotify"
_NO_ANSWER = (FileNotFoundError, ProcessLookupError, PermissionError)
"""It has ended, was closed, or is not to be looked into."""


class Handle(NamedTuple):
    """What open_by_handle_at(2) takes."""

    kind: int
    content: bytes


def parse(fdinfo: bytes, dev: int) -> Iterator[tuple[int, Handle]]:
    """From a ``/proc/PID/fdinfo/FD``: the nodes that are watched on a device of FUSE, with handles.

    Source: ``fs/notify/fdinfo.c``; ``fuse_encode_fh`` in ``fs/fuse/inode.c``.
    """
    sdev = os.major(dev) << 20 | os.minor(dev)
    for device, kind, content in _MARK.findall(fdinfo):
        if int(device, 16) == sdev:
            handle = Handle(int(kind, 16), bytes.fromhex(content.decode()))
            upper, lower = _NODE.unpack_from(handle.content)
            yield upper << 32 | lower, handle


class Watchers:
    """Who watches a device, as of when it is asked."""

    def __init__(self) -> None:
        self._known: list[str] = []
        """Descriptors, below /proc, that directories were watched with."""

    def known(self, dev: int) -> dict[int, Handle]:
        """What is watched with the descriptors that were found the last time, by node id."""
        found: dict[int, Handle] = {}
        known, self._known = self._known, []
        for descriptor in known:
            self._look_at(descriptor, dev, found)
        return found

    def all(self, dev: int) -> dict[int, Handle]:
        """What is watched at all: takes some microseconds for every descriptor on the machine.

        Processes that even root may not look into (it lacks CAP_SYS_PTRACE) are passed over.
        """
        found: dict[int, Handle] = {}
        self._known = []
        for process in os.listdir("/proc"):
            if process.isdigit():
                with contextlib.suppress(*_NO_ANSWER):
                    for fd in os.listdir(f"/proc/{process}/fd"):
                        self._look_at(f"{process}/fd/{fd}", dev, found)
        return found

    def _look_at(self, descriptor: str, dev: int, found: dict[int, Handle]) -> None:
        with contextlib.suppress(*_NO_ANSWER):
            if _is_inotify(descriptor):
                with open(f"/proc/{descriptor.replace('/fd/', '/fdinfo/')}", "rb") as file:
                    watched = dict(parse(file.read(), dev))
                if watched:
                    found |= watched
                    self._known.append(descriptor)


def _is_inotify(descriptor: str) -> bool:
    try:
        return os.readlink(f"/proc/{descriptor}") == _INOTIFY
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:  # the path of something else
            raise
        return False
