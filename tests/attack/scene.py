"""The tree that is sealed and attacked, and everything about it that must stay as it was."""

from __future__ import annotations

import functools
import io
import os
import stat
from pathlib import Path

import h5py

from tests.support.differential import (
    GROUP_OBJ,
    MASK,
    NOBODY,
    OTHER,
    USER,
    USER_OBJ,
    acl,
)
from tests.support.syscalls import get_flags
from tests.support.trees import Entry, snapshot
from tests.support.users import ALICE, BOB, ROOT, TEAM, User

USERS: dict[str, User] = {"root": ROOT, "owner": ALICE, "another": BOB}
"""The owner owns everything; another is in the group that may write everything."""

AREA = "area"
PROJECT = f"{AREA}/project"
SESSION = f"{PROJECT}/session"
RAW = f"{SESSION}/raw"
"""What is sealed."""

SCAN = f"{RAW}/scan.h5"
PLAIN = f"{RAW}/plain.dat"
FRAMES = f"{RAW}/frames"
FRAME = f"{FRAMES}/1.raw"
"""No name that a reader of instrument files takes: it would write down what it finds."""
TWIN = f"{FRAMES}/twin.h5"
"""Another name of SCAN."""
EMPTY = f"{RAW}/empty"
LATEST = f"{RAW}/latest"
PIPE = f"{RAW}/pipe"

NOTES = f"{SESSION}/notes.dat"
BESIDE = f"{SESSION}/beside"
SPARE_SESSION = f"{PROJECT}/spare"
SPARE_PROJECT = f"{AREA}/spare"
SPARE_AREA = "spare"
AREAS = (AREA, SPARE_AREA)

ANCESTORS = {"session": SESSION, "project": PROJECT, "area": AREA}
SPARE = {"session": SPARE_SESSION, "project": SPARE_PROJECT, "area": SPARE_AREA}
DIRECTORIES = (
    AREA, PROJECT, SESSION, RAW, FRAMES, EMPTY, BESIDE, SPARE_SESSION, SPARE_PROJECT, SPARE_AREA
)  # fmt: skip
FILES = (SCAN, PLAIN, FRAME, NOTES)
OBJECTS = (*DIRECTORIES, *FILES, TWIN, LATEST, PIPE)

BLOCK = 4096
FRAME_BYTES = b"frame".ljust(BLOCK, b".") * 4
LONG_AGO_NS = 1_000_000_000 * 10**9

ACCESS_ACL = acl(
    (USER_OBJ, 6, NOBODY),
    (USER, 6, BOB.uid),
    (GROUP_OBJ, 6, NOBODY),
    (MASK, 6, NOBODY),
    (OTHER, 4, NOBODY),
)
DEFAULT_ACL = acl(
    (USER_OBJ, 7, NOBODY),
    (USER, 7, BOB.uid),
    (GROUP_OBJ, 7, NOBODY),
    (MASK, 7, NOBODY),
    (OTHER, 5, NOBODY),
)


@functools.cache
def hdf5() -> bytes:
    """A small HDF5 file."""
    with io.BytesIO() as buffer:
        with h5py.File(buffer, "w") as file:
            file["counts"] = list(range(1000))
            file["counts"].attrs["instrument"] = "Titan"
        return buffer.getvalue()


def build(root: Path) -> None:
    """Make the tree below ``root``, so that modes and ACLs would allow everything to USERS."""
    for directory in DIRECTORIES:
        (root / directory).mkdir()
    (root / SCAN).write_bytes(hdf5())
    (root / PLAIN).write_bytes(b"plain".ljust(BLOCK, b"-") * 16)
    (root / NOTES).write_bytes(b"notes".ljust(BLOCK, b"_") * 16)
    (root / FRAME).write_bytes(FRAME_BYTES)
    (root / TWIN).hardlink_to(root / SCAN)
    (root / LATEST).symlink_to("frames/1.raw")
    os.mkfifo(root / PIPE)
    for name in OBJECTS:
        os.chown(root / name, ALICE.uid, TEAM, follow_symlinks=False)
        if name != LATEST:
            (root / name).chmod(0o775 if name in DIRECTORIES else 0o664)
    for name in (SCAN, FRAMES, RAW):
        os.setxattr(root / name, "user.instrument", b"Titan")
        os.setxattr(root / name, "trusted.instrument", b"Titan")
    os.setxattr(root / SCAN, "system.posix_acl_access", ACCESS_ACL)
    for name in (FRAMES, RAW):
        os.setxattr(root / name, "system.posix_acl_default", DEFAULT_ACL)
    for name in reversed(OBJECTS):
        os.utime(root / name, ns=(LONG_AGO_NS, LONG_AGO_NS), follow_symlinks=False)


def whole(store: Path) -> dict[bytes, Entry]:
    """Everything that there is to know of a store's tree, records and flags included."""
    tree = snapshot(store)
    for relative, entry in tree.items():
        path = os.path.join(os.fsencode(store), relative)
        entry["all xattrs"] = {
            name: os.getxattr(path, name, follow_symlinks=False)
            for name in sorted(os.listxattr(path, follow_symlinks=False))
        }
        if stat.S_IFMT(int(entry["mode"], 8)) in (stat.S_IFREG, stat.S_IFDIR):
            entry["flags"] = f"{get_flags(path):#x}"
    return tree
