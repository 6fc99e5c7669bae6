"""A tree in which everything belongs to one user: what a view with ``owner`` is.

Shown is that user, with their primary group, and what is created is stored under both, whoever
asks. Modes are as they are. Whatever could give somebody more than that, or would say something of
the store's real owners, is not there: ACLs and all extended attributes but ``user.*``, set-user-id
and set-group-id bits, other owners, device files. The mount is ``nosuid`` and ``nodev`` besides.
"""

from __future__ import annotations

import stat
from pathlib import Path

from modamafs.config import ViewSpec
from modamafs.errors import InvalidRequest, NotPermitted, NotSupported
from modamafs.model import Attributes, Caller
from modamafs.store.backing import Store
from modamafs.tree.core import BackingFiles, Tree, is_reserved_xattr
from modamafs.tree.handles import Entry, Handle
from modamafs.tree.scope import Scope, scope_of
from modamafs.tree.state import State
from modamafs.watch.written import Written

SET_ID = stat.S_ISUID | stat.S_ISGID
RENAME_WHITEOUT = 4


class MappedTree(Tree):
    """See the module."""

    def __init__(
        self,
        store: Store,
        state: State,
        backing_files: BackingFiles | None = None,
        *,
        uid: int,
        gid: int,
        read_only: bool = False,
        failpoint: Path | None = None,
        scope: Scope | None = None,
        written: Written | None = None,
    ) -> None:
        """``uid`` and ``gid`` are whom everything belongs to."""
        super().__init__(
            store,
            state,
            backing_files,
            read_only=read_only,
            failpoint=failpoint,
            scope=scope,
            written=written,
        )
        self._uid = uid
        self._gid = gid

    owners_are_shown = False

    def shown_as(self, found: Attributes) -> Attributes:
        return self._mapped(found)

    def _mapped(self, found: Attributes) -> Attributes:
        return found._replace(uid=self._uid, gid=self._gid, mode=found.mode & ~SET_ID)

    def _owner(self, caller: Caller) -> Caller:
        return caller._replace(uid=self._uid, gid=self._gid)

    def writes_as(self, uid: int, gid: int) -> tuple[int, int]:  # noqa: ARG002
        return self._uid, self._gid

    # ---- what is shown ----------------------------------------------------------------------

    def lookup(self, parent: int, name: bytes) -> Attributes | None:
        found = super().lookup(parent, name)
        return None if found is None else self._mapped(found)

    def getattr(self, node: int) -> Attributes:
        return self._mapped(super().getattr(node))

    def _scan(self, handle: Handle, offset: int, size_bytes: int) -> list[Entry]:
        entries = super()._scan(handle, offset, size_bytes)
        return [(name, offset, self._mapped(found)) for name, offset, found in entries]

    # ---- what may change --------------------------------------------------------------------

    def setattr(
        self,
        node: int,
        *,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        atime_ns: int | None = None,
        mtime_ns: int | None = None,
    ) -> Attributes:
        """NotPermitted (EPERM) for another owner than the one that is shown."""
        if uid not in (None, self._uid) or gid not in (None, self._gid):
            raise NotPermitted("in this view everything belongs to one user")
        if mode is not None:
            mode = stat.S_IMODE(mode) & ~SET_ID
            found = self.inodes.attributes(node)
            if stat.S_ISDIR(found.mode):  # not shown, but what groups are inherited by
                mode |= found.mode & SET_ID
        return self._mapped(super().setattr(node, mode=mode, atime_ns=atime_ns, mtime_ns=mtime_ns))

    def truncate(
        self, node: int, size_bytes: int, caller: Caller, fh: int | None = None
    ) -> Attributes:
        return self._mapped(super().truncate(node, size_bytes, self._owner(caller), fh))

    def fallocate(self, fh: int, mode: int, offset: int, length: int, caller: Caller) -> None:
        super().fallocate(fh, mode, offset, length, self._owner(caller))

    def inode_flags_fd(self, node: int, *, changing: bool) -> int:
        """NotPermitted (EPERM) for changing them: they are the owner's on the store."""
        if changing:
            raise NotPermitted("in this view nobody changes the flags of files")
        return super().inode_flags_fd(node, changing=False)

    # ---- entries ----------------------------------------------------------------------------

    def mknod(self, parent: int, name: bytes, mode: int, rdev: int, caller: Caller) -> Attributes:
        """NotPermitted (EPERM) for a device."""
        if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
            raise NotPermitted("in this view nobody makes device files")
        return self._mapped(super().mknod(parent, name, mode & ~SET_ID, rdev, self._owner(caller)))

    def symlink(self, parent: int, name: bytes, target: bytes, caller: Caller) -> Attributes:
        return self._mapped(super().symlink(parent, name, target, self._owner(caller)))

    def link(self, node: int, parent: int, name: bytes, caller: Caller) -> Attributes:
        return self._mapped(super().link(node, parent, name, caller))

    def rename(
        self,
        parent: int,
        name: bytes,
        new_parent: int,
        new_name: bytes,
        flags: int,
        caller: Caller,
    ) -> int | None:
        """InvalidRequest (EINVAL) for RENAME_WHITEOUT, which makes a device file."""
        if flags & RENAME_WHITEOUT:
            raise InvalidRequest("in this view nobody makes device files")
        return super().rename(parent, name, new_parent, new_name, flags, caller)

    def create(
        self, parent: int, name: bytes, mode: int, flags: int, caller: Caller
    ) -> tuple[Handle, Attributes]:
        handle, found = super().create(parent, name, mode & ~SET_ID, flags, self._owner(caller))
        return handle, self._mapped(found)

    def open(self, node: int, flags: int, caller: Caller) -> Handle:
        return super().open(node, flags, self._owner(caller))

    # ---- extended attributes ----------------------------------------------------------------

    def getxattr(self, node: int, name: bytes) -> bytes | None:
        return super().getxattr(node, name) if _is_shown(name) else None

    def listxattr(self, node: int, *, privileged: bool) -> list[bytes]:
        return [name for name in super().listxattr(node, privileged=privileged) if _is_shown(name)]

    def setxattr(
        self, node: int, name: bytes, value: bytes, flags: int, caller: Caller, *, keep_setid: bool
    ) -> None:
        """NotSupported (EOPNOTSUPP) for ACLs, and all that are not ``user.*``."""
        _check_is_shown(name)
        super().setxattr(node, name, value, flags, self._owner(caller), keep_setid=keep_setid)

    def removexattr(self, node: int, name: bytes, caller: Caller) -> None:
        """NotSupported (EOPNOTSUPP) for ACLs, and all that are not ``user.*``."""
        _check_is_shown(name)
        super().removexattr(node, name, caller)


def _is_shown(name: bytes) -> bool:
    return name.startswith(b"user.")


def _check_is_shown(name: bytes) -> None:
    if not _is_shown(name) and not is_reserved_xattr(name):
        raise NotSupported("in this view there are no ACLs, and no extended attributes but user.*")


def tree_of(
    store: Store,
    state: State,
    backing_files: BackingFiles | None,
    *,
    view: ViewSpec | None,
    read_only: bool,
    failpoint: Path | None,
    written: Written | None,
) -> Tree:
    """The tree of a mount of the store, or of a view. MountRefused: what the view shows is gone."""
    scope = scope_of(store, view)
    if view is None or view.uid is None or view.gid is None:
        return Tree(
            store,
            state,
            backing_files,
            read_only=read_only,
            failpoint=failpoint,
            scope=scope,
            written=written,
        )
    return MappedTree(
        store,
        state,
        backing_files,
        uid=view.uid,
        gid=view.gid,
        read_only=read_only,
        failpoint=failpoint,
        scope=scope,
        written=written,
    )
