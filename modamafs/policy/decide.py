"""One decision, made at the gate: may this operation go ahead?

Ordinary permission (modes, ACLs, sticky directories) is the kernel's business; see
``default_permissions`` in mount.fuse3(8). What is decided here holds for root as well.
"""

from __future__ import annotations

from modamafs.errors import ReadOnlyMount, Sealed
from modamafs.model import Operation


def decide(operation: Operation, *, sealed: bool, read_only: bool) -> None:
    """Return if ``operation`` may go ahead.

    ``sealed``: the inode, or a directory above it, is sealed, or is being sealed or unsealed.
    ``read_only``: the mount was made so.

    Raises Sealed or ReadOnlyMount, both EROFS.
    """
    if operation is Operation.READ:
        return
    if read_only:
        raise ReadOnlyMount("this mount is read-only; use a writable mount of the same store")
    if sealed:
        raise Sealed(
            "this is sealed: it stays as it was measured; a steward can unseal it with "
            "`modamafs unseal PATH --reason TEXT`"
        )
