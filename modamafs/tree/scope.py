"""What of a store a mount shows: all of it, the directory of one project, or several projects.

The tree asks this one object. Whatever is not in the scope does not exist in the mount: it is not
found by its name, not listed, and neither a node id nor a file server's handle leads to it. A path
is the one that the kernel knows just now, so what is moved out of a view leaves it.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable

from modamafs.config import ViewSpec
from modamafs.errors import MountRefused, StaleHandle
from modamafs.model import is_own_name
from modamafs.store.backing import Store, path_of

PROJECT_DEPTH = 2


class Scope:
    """The whole store; what shows less is derived from this."""

    is_whole = True

    def __init__(self, store: Store) -> None:
        self._store = store
        self._whole_volume = store.is_whole_volume()
        self.root_fd = store.root_fd
        """The root of the mount, open for reading; it stays ours."""
        self.root_ino = store.volume.root_ino

    def close(self) -> None:
        """Close what is held open."""

    def holds(self, fd: int) -> bool:
        """Whether what a descriptor names is known to lie in it, for who comes with a handle."""
        return self._whole_volume or self._store.contains(fd)

    def admit_directory(self, fd: int) -> None:
        """StaleHandle (ESTALE) for a directory that does not lie in it, or not any more."""

    def admit(self, fd: int) -> None:
        """StaleHandle (ESTALE) for what is known to lie only elsewhere by now.

        The kernel of this mount has been given its node id, so it was in it.
        """

    def shows(self, dir_fd: int, name: bytes) -> bool:
        """Whether an entry of a directory in it is in it as well."""
        return True

    def is_fixed(self, fd: int) -> bool:
        """Whether it is a directory above the projects, which stays as it is."""
        return False

    def path_in_store(self, path: bytes) -> bytes:
        """From a path relative to the mount's root to one relative to the store; b"": the root."""
        return path

    def path_in_mount(self, path: bytes) -> bytes | None:
        """The other way round; None where the mount does not show it."""
        return path


class _Part(Scope):
    """Not the whole store."""

    is_whole = False

    def _place(self, fd: int) -> bytes | None:
        """Where it lies: relative to the store; b"" is the store, None outside of it, or unknown.

        Of what lies deeper than a path can say, a directory above it that is in the same project.
        """
        path = _path_of_directory(fd)
        top = path_of(self._store.root_fd).rstrip(b"/")
        if path is None:
            return None
        if path == (top or b"/"):
            return b""
        return path[len(top) + 1 :] if path.startswith(top + b"/") else None

    def _has(self, place: bytes) -> bool:
        """Whether something with this path (relative to the store) is in it."""
        raise NotImplementedError

    def holds(self, fd: int) -> bool:
        place = self._place(fd)
        return place is not None and self._has(place)

    def admit_directory(self, fd: int) -> None:
        if not self.holds(fd):
            raise StaleHandle("this directory lies outside of the view")

    def admit(self, fd: int) -> None:
        found = os.fstat(fd)
        if stat.S_ISDIR(found.st_mode):
            self.admit_directory(fd)
        elif found.st_nlink == 1:  # of several names, the kernel may know the one elsewhere
            place = self._place(fd)
            if place is not None and not self._has(place):
                raise StaleHandle("this file lies outside of the view")


class OneProject(_Part):
    """One directory is the root of the mount, wherever in the store it lies by now."""

    def __init__(self, store: Store, ino: int, generation: int) -> None:
        """MountRefused: that directory is gone."""
        super().__init__(store)
        self.root_ino = ino
        try:
            self.root_fd = store.volume.open(ino, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise MountRefused(f"the directory of the view is gone ({error.strerror})") from error
        found = store.volume.attributes(self.root_fd)
        place = self._place(self.root_fd)
        if found.generation != generation or not place or _is_own(place):
            self.close()
            raise MountRefused("the directory of the view is gone from the store")

    def close(self) -> None:
        os.close(self.root_fd)

    def _has(self, place: bytes) -> bool:
        return _is_in(place, self._root())

    def _root(self) -> bytes:
        return self._place(self.root_fd) or b"\0"

    def path_in_store(self, path: bytes) -> bytes:
        root = self._root()
        return root + b"/" + path if path else root

    def path_in_mount(self, path: bytes) -> bytes | None:
        root = self._root()
        return path[len(root) + 1 :] if _is_in(path, root) else None


class Projects(_Part):
    """The store's root, the areas, and in them those projects that have these names."""

    def __init__(self, store: Store, projects: Iterable[bytes]) -> None:
        super().__init__(store)
        self._projects = frozenset(projects)
        self._areas = frozenset(project.split(b"/")[0] for project in self._projects)

    def _has(self, place: bytes) -> bool:
        parts = place.split(b"/", PROJECT_DEPTH) if place else []
        if len(parts) < PROJECT_DEPTH:
            return all(area in self._areas for area in parts)
        return b"/".join(parts[:PROJECT_DEPTH]) in self._projects

    def shows(self, dir_fd: int, name: bytes) -> bool:
        if name in (b".", b".."):
            return True
        place = self._place(dir_fd)
        return place is not None and self._has(place + b"/" + name if place else name)

    def is_fixed(self, fd: int) -> bool:
        place = self._place(fd)
        return place is not None and (not place or b"/" not in place)

    def path_in_mount(self, path: bytes) -> bytes | None:
        return path if self._has(path) else None


def scope_of(store: Store, view: ViewSpec | None) -> Scope:
    """The scope of a mount. MountRefused: what the view shows is gone."""
    if view is None:
        return Scope(store)
    if len(view.projects) == 1:
        return OneProject(store, view.root_ino, view.root_generation)
    return Projects(store, map(os.fsencode, view.projects))


def _is_in(path: bytes, directory: bytes) -> bool:
    return path == directory or path.startswith(directory + b"/")


def _is_own(path: bytes) -> bool:
    return any(map(is_own_name, path.split(b"/")))


def _path_of_directory(fd: int) -> bytes | None:
    """The path that the kernel knows; of a directory with one that is too long, one of a directory
    above it. None: none is known."""
    try:
        path = path_of(fd)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
    else:
        return path
    try:
        above = os.open(b"..", os.O_PATH | os.O_DIRECTORY, dir_fd=fd)
    except NotADirectoryError:
        return None
    try:
        return _path_of_directory(above)
    finally:
        os.close(above)
