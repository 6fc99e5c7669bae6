"""Who may enter a directory, and who may know of a project: asked of the store.

What the answers mean is decided in ``policy/access.py``.
"""

from __future__ import annotations

import errno
import os
from typing import NamedTuple

from modamafs.model import Caller
from modamafs.policy import access
from modamafs.store.backing import PATH_FLAGS
from modamafs.store.catalogue import read_project

_ACL = "system.posix_acl_access"
_NO_ACL = {errno.ENODATA, errno.EOPNOTSUPP}
_FOR_NOBODY = b"\2\0\0\0"


def acl_of(fd: int) -> bytes | None:
    """The ACL of what a descriptor (O_PATH will do) names; None: it has none, or can't have one.

    One that can't be read lets nobody in.
    """
    try:
        return os.getxattr(f"/proc/self/fd/{fd}", _ACL)
    except OSError as error:
        return None if error.errno in _NO_ACL else _FOR_NOBODY


class Door(NamedTuple):
    """Who may enter a directory: see acl(5)."""

    mode: int
    uid: int
    gid: int
    acl: bytes | None

    def lets(self, wanted: int, caller: Caller) -> bool:
        """Whether the caller, whose groups have to be known, has all of the wanted permissions."""
        return access.may(wanted, caller, self.mode, self.uid, self.gid, self.acl)


def door_of(fd: int) -> Door:
    """Of what a descriptor (O_PATH will do) names."""
    found = os.fstat(fd)
    return Door(found.st_mode, found.st_uid, found.st_gid, acl_of(fd))


def reaches(root_fd: int, path: bytes, caller: Caller) -> bool:
    """Whether the caller, whose groups have to be known, may search every directory above a path.

    ``path`` is relative to ``root_fd``. True where one of them is missing: that may be said.
    """
    fd = os.dup(root_fd)
    try:
        for part in os.path.normpath(path).strip(b"/").split(b"/"):
            if not door_of(fd).lets(access.SEARCH, caller):
                return False
            try:
                below = os.open(part, PATH_FLAGS, dir_fd=fd)
            except OSError:  # missing, or no directory: then nothing lies in it
                return True
            os.close(fd)
            fd = below
        return True
    finally:
        os.close(fd)


def is_private(project_fd: int) -> bool:
    """Whether a project's record says so, or can't be understood."""
    project, problem = read_project(project_fd)
    return problem is not None or (project is not None and project.visibility == "private")


def hides(project_fd: int, caller: Caller) -> bool:
    """Whether a project is private, and not the caller's, whose groups have to be known."""
    wanted = access.READ | access.SEARCH
    return is_private(project_fd) and not door_of(project_fd).lets(wanted, caller)


def hides_entry(dir_fd: int, path: bytes, caller: Caller) -> bool:
    """The same of a project by its path. OSError: no directory is there, or none can be opened."""
    fd = os.open(path, PATH_FLAGS, dir_fd=dir_fd)
    try:
        return hides(fd, caller)
    finally:
        os.close(fd)
