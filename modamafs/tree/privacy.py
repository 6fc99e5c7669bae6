"""Private projects: who is shown that they exist.

Who may *enter* one, its directory's mode and ACL say, and the kernel checks that. Listing its name
is what is decided here, by the same permissions. A look-up by name always finds it: a stranger's
ENOENT would take the directory away under those who work in it.
"""

from __future__ import annotations

import os
import pwd
import stat

from modamafs import doors
from modamafs.model import Caller
from modamafs.store.backing import PATH_FLAGS, Store

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
        return not self._may_be_private(found) or self._is_for(area_fd, name, caller)

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
        try:
            fd = os.open(path, PATH_FLAGS, dir_fd=self._store.root_fd)
        except OSError:
            return True
        try:
            return doors.is_private(fd)
        finally:
            os.close(fd)

    @staticmethod
    def _is_for(area_fd: int, name: bytes, caller: Caller) -> bool:
        if caller.uid == 0:
            return True
        try:
            return not doors.hides_entry(area_fd, name, with_groups(caller))
        except OSError:
            return False

    @staticmethod
    def user(caller: Caller) -> str:
        """The caller's login name; the number where it has none."""
        try:
            return pwd.getpwuid(caller.uid).pw_name
        except KeyError:
            return str(caller.uid)


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
