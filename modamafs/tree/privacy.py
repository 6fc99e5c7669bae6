"""Private projects: who is shown that they exist.

Who may *enter* one, its directory's mode and ACL say, and the kernel checks that. Listing its name
is what is decided here, by the same permissions. A look-up by name always finds it: a stranger's
ENOENT would take the directory away under those who work in it.
"""

from __future__ import annotations

import os
import pwd
import stat

from modamafs.model import Caller
from modamafs.policy import access
from modamafs.store.backing import Store
from modamafs.store.catalogue import read_project

ACCESS_ACL = "system.posix_acl_access"
OTHERS = 0o005


class Privacy:
    """Asks the store at every question."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def is_shown(self, area_fd: int, name: bytes, caller: Caller) -> bool:
        """Whether an entry of an area is listed for the caller."""
        try:
            found = os.stat(name, dir_fd=area_fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return not self._may_be_private(found) or self._is_for(area_fd, name, found, caller)

    def has_private(self, area_fd: int) -> bool:
        """Whether the listing of an area depends on who asks."""
        fd = os.open(
            b".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=area_fd
        )  # with a position of its own
        try:
            with os.scandir(fd) as entries:
                return any(
                    entry.is_dir(follow_symlinks=False)
                    and self._may_be_named_private(fd, entry.name)
                    for entry in entries
                )
        finally:
            os.close(fd)

    def _may_be_named_private(self, area_fd: int, name: str) -> bool:
        try:
            return self._may_be_private(os.stat(name, dir_fd=area_fd, follow_symlinks=False))
        except FileNotFoundError:  # removed meanwhile
            return False

    @staticmethod
    def _may_be_private(found: os.stat_result) -> bool:
        return stat.S_ISDIR(found.st_mode) and not found.st_mode & OTHERS

    def is_private(self, path: bytes) -> bool:
        """Whether a project (``area/project``) is not for everybody to know."""
        try:
            found = os.stat(path, dir_fd=self._store.root_fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        if not self._may_be_private(found):
            return False
        return self._look(self._store.root_fd, path)[0]

    @staticmethod
    def _look(dir_fd: int, name: bytes) -> tuple[bool, bytes | None]:
        """Whether a project's record says that it is private, or can't be read; and its ACL."""
        try:
            fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=dir_fd)
        except OSError:
            return True, None
        try:
            project, problem = read_project(fd)
            acl = acl_of(fd)
        finally:
            os.close(fd)
        is_private = project is not None and project.visibility == "private"
        return is_private or problem is not None, acl

    def _is_for(self, area_fd: int, name: bytes, found: os.stat_result, caller: Caller) -> bool:
        if caller.uid == 0:
            return True
        is_private, acl = self._look(area_fd, name)
        if not is_private:
            return True
        wanted = access.READ | access.SEARCH
        mode = stat.S_IMODE(found.st_mode)
        return access.may(wanted, with_groups(caller), mode, found.st_uid, found.st_gid, acl)

    @staticmethod
    def user(caller: Caller) -> str:
        """The caller's login name; the number where it has none."""
        try:
            return pwd.getpwuid(caller.uid).pw_name
        except KeyError:
            return str(caller.uid)


def acl_of(fd: int) -> bytes | None:
    """The ACL of what a descriptor (O_PATH will do) names; None where there is none."""
    try:
        return os.getxattr(f"/proc/self/fd/{fd}", ACCESS_ACL)
    except OSError:
        return None


def with_groups(caller: Caller) -> Caller:
    """The caller with the supplementary groups of the process that asks (proc_pid_status(5))."""
    if caller.groups or not caller.pid:
        return caller
    try:
        with open(f"/proc/{caller.pid}/status", "rb") as file:
            line = next(line for line in file if line.startswith(b"Groups:"))
    except (OSError, StopIteration):
        return caller
    return caller._replace(groups=tuple(map(int, line.split()[1:])))
