"""What says that a tree is sealed can't be changed through the mount, by root either."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.attack.conftest import Sealed
from tests.attack.scene import RAW, SCAN, SESSION, USERS
from tests.support.syscalls import FS_IOC_GETVERSION, FileHandle, open_by_handle_at
from tests.support.users import as_user

RECORDS = f"{SESSION}/.modama"
SEALS = f"{RECORDS}/seals"
RECORD = f"{SEALS}/raw.json"

ATTACKS: dict[str, Callable[[Path], object]] = {
    "unlink": lambda root: os.unlink(root / RECORD),
    "unlink the list": lambda root: os.unlink(root / ".modama" / "sealed"),
    "rename": lambda root: os.rename(root / RECORD, root / SESSION / "raw.json"),
    "rename the directory": lambda root: os.rename(root / RECORDS, root / SESSION / "new"),
    "rename over": lambda root: os.rename(root / f"{SESSION}/notes.dat", root / RECORD),
    "rename over the directory": lambda root: os.rename(root / f"{SESSION}/beside", root / RECORDS),
    "write": lambda root: os.open(root / RECORD, os.O_WRONLY),
    "truncate": lambda root: os.truncate(root / RECORD, 0),
    "create": lambda root: os.open(root / SEALS / "new.json", os.O_CREAT | os.O_WRONLY),
    "mkdir": lambda root: os.mkdir(root / RECORDS),
    "symlink": lambda root: os.symlink("/nowhere", root / RECORDS),
    "rmdir": lambda root: os.rmdir(root / RECORDS),
    "chmod": lambda root: os.chmod(root / RECORD, 0),
    "write by the landing tree": lambda root: os.open(
        root / "landing" / SEALS.replace("/.modama", ""), os.O_WRONLY | os.O_CREAT
    ),
}


def attack(root: Path) -> dict[str, str | None]:
    """The name of each errno."""
    found: dict[str, str | None] = {}
    for name, attempt in ATTACKS.items():
        try:
            attempt(root)
        except OSError as error:
            found[name] = errno.errorcode[error.errno or 0]
        else:
            found[name] = None
    return found


@pytest.mark.parametrize("who", USERS)
@pytest.mark.usefixtures("nothing_changes")
def test_no_name_leads_to_the_records_themselves(sealed: Sealed, who: str) -> None:
    found = as_user(USERS[who], attack, sealed.mount.root)
    refused = {"ENOENT", "EPERM", "EROFS", "EACCES", "EEXIST", "EISDIR", "EXDEV"}
    assert {name: error for name, error in found.items() if error not in refused} == {}
    assert ".modama" not in os.listdir(sealed.mount.root / SESSION)


def forged(sealed: Sealed, path: str) -> FileHandle:
    """A handle such as the mount gives out, for a file that it never shows.

    A node id is the store's inode number, and the generation is the store's as well: a client of
    a file server can make one up.
    """
    fd = os.open(sealed.store / path, os.O_RDONLY)
    try:
        ino = os.fstat(fd).st_ino
        generation = fcntl.ioctl(fd, FS_IOC_GETVERSION, bytes(8))[:4]
    finally:
        os.close(fd)
    kind, content = sealed.handles[SCAN]
    return FileHandle(
        kind, struct.pack("=II", ino >> 32, ino & 0xFFFFFFFF) + generation + content[12:]
    )


def test_a_handle_is_made_as_it_is_forged_here(sealed: Sealed) -> None:
    """Otherwise the next test would prove nothing."""
    assert forged(sealed, SCAN).content[:12] == sealed.handles[SCAN].content[:12]


@pytest.mark.parametrize("flags", [os.O_RDWR, os.O_WRONLY | os.O_TRUNC, os.O_RDONLY])
@pytest.mark.usefixtures("nothing_changes")
def test_no_forged_handle_leads_to_the_records(sealed: Sealed, flags: int) -> None:
    mount_fd = os.open(sealed.mount.root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with pytest.raises(OSError, match=r"Stale|Read-only|not permitted|No such") as refused:
            os.close(open_by_handle_at(mount_fd, forged(sealed, RECORD), flags))
        assert refused.value.errno
        for directory in (RECORDS, SEALS):
            with pytest.raises(OSError, match=r"Stale|Read-only|not permitted|No such"):
                fd = open_by_handle_at(mount_fd, forged(sealed, directory), os.O_RDONLY)
                try:
                    os.close(os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
                finally:
                    os.close(fd)
    finally:
        os.close(mount_fd)


@pytest.mark.usefixtures("nothing_changes")
def test_the_seals_own_attributes_stay(sealed: Sealed) -> None:
    own = [name for name in os.listxattr(sealed.store / RAW) if ".modama." in name]
    assert own, "the root carries the seal's id"
    for name in own:
        assert name not in os.listxattr(sealed.mount.root / RAW)
        with pytest.raises(OSError, match=r"Read-only|not permitted"):
            os.removexattr(sealed.mount.root / RAW, name)
        with pytest.raises(OSError, match=r"Read-only|not permitted"):
            os.setxattr(sealed.mount.root / RAW, name, b"another")
