"""What the daemon answers to the watcher's nudges: nothing but words. See ``watch/nudges.py``.

No method here changes anything on the store, whatever it is asked and whoever asks.
"""

from __future__ import annotations

import errno
import itertools
import os
import secrets
import stat
from collections.abc import Callable

from modamafs.doors import is_private
from modamafs.model import ROOT, Attributes, Caller
from modamafs.tree.core import RENAME_NOREPLACE, Tree
from modamafs.tree.privacy import Privacy
from modamafs.tree.virtual import VIRTUAL
from modamafs.watch.nudges import (
    AS_DIRECTORY,
    AS_FILE,
    BESIDE,
    NEW_DIRECTORY,
    NEW_FILE,
)

PHANTOM = 1 << 63 | VIRTUAL
"""Set in the ids of phantoms; as they are virtual, nobody can do anything with them."""
BESIDE_ID = PHANTOM
LASTING_S = 86400.0
"""For how long the kernel may believe a phantom's attributes; its name, never."""
NOBODY = Caller(0xFFFFFFFE, 0xFFFFFFFE)
_IN_DIRECTORIES = 1 << 61
"""In a phantom's id: it is a directory."""


def is_phantom(node: int) -> bool:
    """Whether a node id is one of a phantom, or of the directory that they come from."""
    return node & PHANTOM == PHANTOM


def is_watcher(uid: int, gid: int) -> bool:
    """Whether a request is a nudge's; who else should be so called is told nothing but this."""
    return gid in (AS_FILE, AS_DIRECTORY) and uid == 0


class Phantoms:
    """Those of one mount."""

    def __init__(self, tree: Tree, privacy: Privacy, is_ours: Callable[[int, bytes], bool]) -> None:
        """``is_ours``: whether an entry is a virtual one."""
        self._tree = tree
        self._privacy = privacy
        self._is_ours = is_ours
        # Other ids than an earlier worker's: of a directory the kernel wants one name only.
        self._numbers = itertools.count(secrets.randbits(48) << 12)

    def lookup(self, parent: int, name: bytes, gid: int) -> Attributes | None:
        """The opposite of the truth. OSError: EPERM, where nobody is to learn of that name.

        But what somebody has open stays where it is: to him it would seem deleted for a while.
        """
        if parent == BESIDE_ID:
            if name not in (NEW_FILE, NEW_DIRECTORY):
                return None
            return self._new(is_directory=name == NEW_DIRECTORY)
        if parent == ROOT and name == BESIDE:
            return self.attributes(BESIDE_ID)
        if self._is_ours(parent, name):
            return None
        found = self._tree.lookup(parent, name)
        if found is not None:
            return None if self._tree.handles.inode(found.ino) is None else found
        self._check_gone(parent)
        return self._new(is_directory=gid == AS_DIRECTORY)

    def _new(self, *, is_directory: bool) -> Attributes:
        kind = _IN_DIRECTORIES if is_directory else 0
        return self.attributes(PHANTOM | kind | (next(self._numbers) & (_IN_DIRECTORIES - 1)))

    def attributes(self, node: int) -> Attributes:
        """Nobody's but root's."""
        is_directory = node == BESIDE_ID or node & _IN_DIRECTORIES
        like = self._tree.getattr(ROOT)
        return like._replace(
            ino=node,
            generation=0,
            mode=stat.S_IFDIR | 0o700 if is_directory else stat.S_IFREG | 0o600,
            nlink=1,
            uid=0,
            gid=0,
            rdev=0,
            size_bytes=0,
            blocks=0,
            immutable=False,
        )

    @staticmethod
    def is_rename(parent: int, new_parent: int) -> bool:
        """Whether renaming between these two is a nudge."""
        return BESIDE_ID in (parent, new_parent)

    def rename(
        self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int
    ) -> None:
        """Something has gone or come, if it really has. OSError: ENOENT, EEXIST, EPERM, EINVAL."""
        if flags != (0 if new_parent == BESIDE_ID else RENAME_NOREPLACE):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        if new_parent == BESIDE_ID:
            if parent == BESIDE_ID or self._is_there(parent, name):
                raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
            self._check_gone(parent)
        else:
            if not self._is_there(new_parent, new_name):
                raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
            self._check_come(new_parent, new_name)

    def change(self, node: int) -> None:
        """Something has changed. OSError: EPERM for a private project, which its area may list."""
        if node == ROOT or not stat.S_ISDIR(self._tree.getattr(node).mode):
            return
        fd = self._tree.inodes.directory(node)
        root_ino = self._tree.store.volume.root_ino
        above, top = (os.stat(path, dir_fd=fd).st_ino for path in ("..", "../.."))
        if top == root_ino != above and is_private(fd):
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    # ---- what is so -------------------------------------------------------------------------

    def _is_there(self, parent: int, name: bytes) -> bool:
        return self._is_ours(parent, name) or self._tree.lookup(parent, name) is not None

    def _holds_projects(self, directory: int) -> bool:
        """Whether not everybody who may list it is shown all of it."""
        fd = self._tree.inodes.directory(directory)
        if self._tree.scope.is_fixed(fd):
            return True
        above = None if directory == ROOT else self._tree.store.volume.lookup(fd, b"..")
        return above is not None and above.ino == self._tree.store.volume.root_ino

    def _check_gone(self, directory: int) -> None:
        """Of what is gone nobody can say any more to whom it was shown."""
        if self._holds_projects(directory):
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    def _check_come(self, directory: int, name: bytes) -> None:
        if self._holds_projects(directory):
            fd = self._tree.inodes.directory(directory)
            if not self._privacy.is_shown(fd, name, NOBODY):
                raise OSError(errno.EPERM, os.strerror(errno.EPERM))
