"""Every door into a sealed tree: phrase by phrase what is refused, each as one system call."""

from __future__ import annotations

import enum
import errno
import mmap
import os
import socket
import stat
from collections.abc import Callable, Iterable
from typing import NamedTuple

from tests.attack.scene import (
    ACCESS_ACL,
    ANCESTORS,
    BESIDE,
    BLOCK,
    DEFAULT_ACL,
    EMPTY,
    FRAME,
    FRAMES,
    LATEST,
    NOTES,
    PIPE,
    PLAIN,
    RAW,
    SCAN,
    SESSION,
    SPARE,
)
from tests.attack.ways import Node, Way
from tests.support import syscalls
from tests.support.syscalls import RENAME_EXCHANGE, RENAME_NOREPLACE, UTIME_NOW, UTIME_OMIT
from tests.support.users import ALICE

RENAME_WHITEOUT = 4
NOW = (0, UTIME_NOW)
OMIT = (0, UTIME_OMIT)
NULL = os.makedev(1, 3)


NOBODY: frozenset[str] = frozenset()
ROOT_ALONE = frozenset({"root"})
OWNERS = frozenset({"root", "owner"})
EVERYBODY = frozenset({"root", "owner", "another"})


class Kind(enum.Enum):
    """What a door attacks."""

    FILE = enum.auto()
    DIRECTORY = enum.auto()
    SYMLINK = enum.auto()
    FIFO = enum.auto()
    ROOT = enum.auto()
    ANCESTOR = enum.auto()


class Door(NamedTuple):
    """One system call that would change a sealed tree."""

    name: str
    kind: Kind
    attempt: Callable[[Way], object]
    by_nature: frozenset[int] = frozenset()
    """Refusals that come from the kernel (or the store) before anybody asks for a seal."""
    opens_for: frozenset[str] = EVERYBODY
    """Who can do it, by path, while nothing is sealed; nobody, where the kernel never does it."""
    leaves_a_trace: bool = True
    """Whether success is seen on the store; an `open` without a write leaves none."""


# ---- the calls, on what a way leads to -----------------------------------------------------------


def make(way: Way, path: str, flags: int) -> int:
    """open(2) of a name that may not be there yet."""
    place, name = way.entry(path)
    return os.open(name, flags | os.O_NONBLOCK, 0o664, dir_fd=place)


def map_shared(fd: int) -> None:
    """Write into a shared mapping."""
    address = syscalls.map_file(fd, BLOCK, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED)
    syscalls.write_memory(address, b"mapped")
    syscalls.unmap(address, BLOCK)


def copy_into(way: Way, path: str) -> None:
    target = way.open(path, os.O_WRONLY)
    os.copy_file_range(way.open(NOTES, os.O_RDONLY), target, BLOCK, 0, 0)


def mkdir(way: Way, path: str) -> None:
    place, name = way.entry(path)
    os.mkdir(name, dir_fd=place)


def mknod(way: Way, path: str, mode: int, device: int = 0) -> None:
    place, name = way.entry(path)
    os.mknod(name, mode | 0o664, device, dir_fd=place)


def bind(way: Way, path: str) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(way.entry_path(path))


def symlink(way: Way, path: str) -> None:
    place, name = way.entry(path)
    os.symlink("nowhere", name, dir_fd=place)


def link(way: Way, source: str, target: str) -> None:
    syscalls.linkat(way.entry(source), way.entry(target), 0)


def link_inode(way: Way, source: str, target: str) -> None:
    """linkat(2) of what a descriptor is, not of a name."""
    node = way.node(source)
    flags = syscalls.AT_SYMLINK_FOLLOW if node.follow else 0
    syscalls.linkat((None, node.path), way.entry(target), flags)


def unlink(way: Way, path: str) -> None:
    place, name = way.entry(path)
    os.unlink(name, dir_fd=place)


def rmdir(way: Way, path: str) -> None:
    place, name = way.entry(path)
    os.rmdir(name, dir_fd=place)


def rename(way: Way, source: str, target: str, flags: int = 0) -> None:
    syscalls.renameat2_at(way.entry(source), way.entry(target), flags)


def chmod(node: Node, mode: int) -> None:
    if node.is_path_only:
        place, flags = node.at
        syscalls.fchmodat2(place, mode, flags)
    else:
        os.chmod(node.target, mode)


def chown(node: Node, uid: int, gid: int) -> None:
    if isinstance(node.target, int) and not node.is_path_only:
        os.fchown(node.target, uid, gid)
    else:
        place, flags = node.at
        syscalls.fchownat(place, uid, gid, flags)


def utimens(node: Node, atime: tuple[int, int], mtime: tuple[int, int]) -> None:
    place, flags = node.at
    syscalls.utimensat_at(place, atime, mtime, flags)


def setxattr(node: Node, name: str, value: bytes) -> None:
    if node.is_path_only:
        os.setxattr(node.path, name, value)
    elif isinstance(node.target, int):
        os.setxattr(node.target, name, value)
    else:
        os.setxattr(node.target, name, value, follow_symlinks=node.follow)


def removexattr(node: Node, name: str) -> None:
    if node.is_path_only:
        os.removexattr(node.path, name)
    elif isinstance(node.target, int):
        os.removexattr(node.target, name)
    else:
        os.removexattr(node.target, name, follow_symlinks=node.follow)


def set_flags(fd: int, *, add: int = 0, take: int = 0) -> None:
    syscalls.set_flags_of(fd, (syscalls.get_flags_of(fd) | add) & ~take)


# ---- the table -----------------------------------------------------------------------------------

FILE, DIRECTORY, SYMLINK, FIFO, ROOT, ANCESTOR = Kind
INSIDE = ((DIRECTORY, FRAMES, "below the root"), (ROOT, RAW, "in the root"))
NOT_EMPTY = frozenset({errno.ENOTEMPTY})
"""The store says so of a directory that has entries, sealed or not."""
EACH_WAY = (("", False), (", the other way round", True))


def in_each_directory(
    name: str,
    attempt: Callable[[Way, str], object],
    by_nature: Iterable[int] = (),
    opens_for: frozenset[str] = EVERYBODY,
    *,
    leaves_a_trace: bool = True,
) -> list[Door]:
    """The same door below the root, and in the root of the sealed tree itself."""

    def at(directory: str) -> Callable[[Way], object]:
        return lambda way: attempt(way, directory)

    return [
        Door(f"{name} {where}", kind, at(path), frozenset(by_nature), opens_for, leaves_a_trace)
        for kind, path, where in INSIDE
    ]


def on_each_node(
    name: str,
    attempt: Callable[[Node], object],
    opens_for: frozenset[str],
    *,
    symlink: bool,
) -> list[Door]:
    """The same door on each kind of object."""

    def on(path: str) -> Callable[[Way], object]:
        return lambda way: attempt(way.node(path))

    return [
        Door(f"{name} of a {kind.name.lower()}", kind, on(path), opens_for=opens_for)
        for kind, path in (
            (FILE, SCAN),
            (DIRECTORY, FRAMES),
            (ROOT, RAW),
            (FIFO, PIPE),
            *([(SYMLINK, LATEST)] if symlink else []),
        )
    ]


def exchanged(one: str, other: str, *, reverse: bool) -> Callable[[Way], object]:
    """RENAME_EXCHANGE, with the arguments in either order."""
    if reverse:
        one, other = other, one
    return lambda way: rename(way, one, other, RENAME_EXCHANGE)


def exchanges(name: str, kind: Kind, one: str, other: str) -> list[Door]:
    return [
        Door(f"RENAME_EXCHANGE {name}{suffix}", kind, exchanged(one, other, reverse=reverse))
        for suffix, reverse in EACH_WAY
    ]


def of_ancestors() -> list[Door]:
    """rename and rmdir of every directory above."""

    def doors(name: str) -> list[Door]:
        path, spare = ANCESTORS[name], SPARE[name]
        return [
            Door(f"rename the {name}", ANCESTOR, lambda way: rename(way, path, f"{path}-new")),
            Door(f"rename the {name} into another directory", ANCESTOR,
                 lambda way: rename(way, path, f"{spare}/new")),
            Door(f"RENAME_NOREPLACE the {name}", ANCESTOR,
                 lambda way: rename(way, path, f"{path}-new", RENAME_NOREPLACE)),
            Door(f"rename the {name} over an empty directory", ANCESTOR,
                 lambda way: rename(way, path, spare)),
            *exchanges(f"the {name}", ANCESTOR, path, spare),
            Door(f"rename an empty directory over the {name}", ANCESTOR,
                 lambda way: rename(way, spare, path), NOT_EMPTY, NOBODY),
            Door(f"rmdir the {name}", ANCESTOR, lambda way: rmdir(way, path), NOT_EMPTY, NOBODY),
        ]  # fmt: skip

    return [door for name in ANCESTORS for door in doors(name)]


def on_each_flag() -> list[Door]:
    """chattr(1) by both of its system calls."""

    def doors(kind: Kind, path: str) -> list[Door]:
        name = kind.name.lower()
        return [
            Door(f"clear the immutable flag of a {name}", kind,
                 lambda way: set_flags(way.descriptor(path), take=syscalls.FS_IMMUTABLE_FL),
                 opens_for=OWNERS, leaves_a_trace=False),
            Door(f"set a flag of a {name}", kind,
                 lambda way: set_flags(way.descriptor(path), add=syscalls.FS_NODUMP_FL),
                 opens_for=OWNERS),
            Door(f"FS_IOC_FSSETXATTR of a {name}", kind,
                 lambda way: syscalls.set_extended_flags_of(
                     way.descriptor(path), syscalls.FS_XFLAG_NODUMP),
                 opens_for=OWNERS),
        ]  # fmt: skip

    return [
        door
        for kind, path in ((FILE, SCAN), (DIRECTORY, FRAMES), (ROOT, RAW))
        for door in doors(kind, path)
    ]


NO_REFLINKS = frozenset({errno.EOPNOTSUPP})
"""ext4 has none, and FUSE hands no FICLONE on: the kernel says so, sealed or not."""
NO_WRITING_DESCRIPTOR = frozenset({errno.EACCES})
"""mmap(2): a shared writable mapping needs a descriptor that may write."""
NO_WHITEOUT = frozenset({errno.EINVAL})
"""FUSE's, and most stores', RENAME_WHITEOUT is for overlayfs alone."""
NO_DEDUPE = frozenset({errno.EOPNOTSUPP, errno.EINVAL, errno.EXDEV})
"""As for reflinks: FUSE has no such operation, and says one of these."""

EVERY_DOOR: dict[str, list[Door]] = {
    "write": [
        Door("write", FILE, lambda way: os.write(way.open(SCAN, os.O_WRONLY), b"new")),
        Door("pwrite", FILE, lambda way: os.pwrite(way.open(SCAN, os.O_RDWR), b"new", 100)),
        Door("write O_DIRECT", FILE, lambda way: os.write(
            way.open(SCAN, os.O_WRONLY | os.O_DIRECT), syscalls.aligned(bytes(BLOCK)))),
        Door("write below the root", FILE,
             lambda way: os.write(way.open(FRAME, os.O_WRONLY), b"new")),
    ],
    "append": [
        Door("append", FILE,
             lambda way: os.write(way.open(SCAN, os.O_WRONLY | os.O_APPEND), b"new")),
    ],
    "truncate": [
        Door("truncate to nothing", FILE, lambda way: os.truncate(way.node(SCAN).path, 0)),
        Door("truncate to a part", FILE, lambda way: os.truncate(way.node(SCAN).path, 100)),
        Door("truncate to more", FILE, lambda way: os.truncate(way.node(SCAN).path, 1 << 20)),
        Door("truncate to the same size", FILE,
             lambda way: os.truncate(way.node(FRAME).path, 4 * BLOCK), leaves_a_trace=False),
        Door("ftruncate", FILE, lambda way: os.ftruncate(way.open(SCAN, os.O_RDWR), 100)),
    ],
    "open for writing": [
        Door("open O_WRONLY", FILE, lambda way: way.open(SCAN, os.O_WRONLY), leaves_a_trace=False),
        Door("open O_RDWR", FILE, lambda way: way.open(SCAN, os.O_RDWR), leaves_a_trace=False),
        Door("open O_RDWR | O_CREAT", FILE,
             lambda way: make(way, SCAN, os.O_RDWR | os.O_CREAT), leaves_a_trace=False),
    ],
    "O_TRUNC": [
        Door("open O_WRONLY | O_TRUNC", FILE, lambda way: way.open(SCAN, os.O_WRONLY | os.O_TRUNC)),
        Door("open O_RDWR | O_TRUNC", FILE, lambda way: way.open(SCAN, os.O_RDWR | os.O_TRUNC)),
        Door("open O_RDONLY | O_TRUNC", FILE, lambda way: way.open(SCAN, os.O_RDONLY | os.O_TRUNC)),
        Door("open O_WRONLY | O_CREAT | O_TRUNC", FILE,
             lambda way: make(way, SCAN, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)),
    ],
    "O_TMPFILE into it": in_each_directory(
        "O_TMPFILE", lambda way, path: make(way, f"{path}/.", os.O_TMPFILE | os.O_RDWR),
        leaves_a_trace=False,
    ),
    "fallocate": [
        Door("fallocate", FILE,
             lambda way: syscalls.fallocate(way.open(SCAN, os.O_RDWR), 0, 0, 1 << 20)),
        Door("fallocate KEEP_SIZE", FILE, lambda way: syscalls.fallocate(
            way.open(SCAN, os.O_RDWR), syscalls.FALLOC_FL_KEEP_SIZE, 0, 1 << 20)),
        Door("fallocate PUNCH_HOLE", FILE, lambda way: syscalls.fallocate(
            way.open(SCAN, os.O_RDWR),
            syscalls.FALLOC_FL_PUNCH_HOLE | syscalls.FALLOC_FL_KEEP_SIZE, 0, BLOCK)),
        Door("fallocate ZERO_RANGE", FILE, lambda way: syscalls.fallocate(
            way.open(SCAN, os.O_RDWR), syscalls.FALLOC_FL_ZERO_RANGE, 0, BLOCK)),
    ],
    "copy_file_range": [
        Door("copy_file_range", FILE, lambda way: copy_into(way, SCAN)),
    ],
    "reflink into it": [
        Door("FICLONE", FILE, lambda way: syscalls.clone(
            way.open(NOTES, os.O_RDONLY), way.open(SCAN, os.O_WRONLY)), NO_REFLINKS, NOBODY),
        Door("FICLONERANGE", FILE, lambda way: syscalls.clone_range(
            way.open(NOTES, os.O_RDONLY), way.open(FRAME, os.O_WRONLY), BLOCK),
            NO_REFLINKS, NOBODY),
        Door("FIDEDUPERANGE", FILE, lambda way: syscalls.dedupe(
            way.descriptor(PLAIN), way.descriptor(FRAME), BLOCK), NO_DEDUPE, NOBODY),
    ],
    "shared writable mmap": [
        Door("mmap", FILE, lambda way: map_shared(way.open(SCAN, os.O_RDWR))),
        Door("mmap of a descriptor to read", FILE, lambda way: map_shared(way.descriptor(SCAN)),
             NO_WRITING_DESCRIPTOR, NOBODY),
    ],
    "create": [
        *in_each_directory("open O_CREAT",
            lambda way, path: make(way, f"{path}/new", os.O_CREAT | os.O_WRONLY)),
        *in_each_directory("open O_CREAT | O_EXCL",
            lambda way, path: make(way, f"{path}/new", os.O_CREAT | os.O_EXCL | os.O_WRONLY)),
        *in_each_directory("open O_CREAT to read",
            lambda way, path: make(way, f"{path}/new", os.O_CREAT | os.O_RDONLY)),
    ],
    "mkdir": in_each_directory("mkdir", lambda way, path: mkdir(way, f"{path}/new")),
    "mknod": [
        *in_each_directory("mkfifo", lambda way, path: mknod(way, f"{path}/new", stat.S_IFIFO)),
        *in_each_directory("mknod a file",
            lambda way, path: mknod(way, f"{path}/new", stat.S_IFREG)),
        *in_each_directory("mknod a socket",
            lambda way, path: mknod(way, f"{path}/new", stat.S_IFSOCK)),
        *in_each_directory("mknod a device",
            lambda way, path: mknod(way, f"{path}/new", stat.S_IFCHR, NULL), opens_for=ROOT_ALONE),
        *in_each_directory("bind", lambda way, path: bind(way, f"{path}/new")),
    ],
    "symlink": in_each_directory("symlink", lambda way, path: symlink(way, f"{path}/new")),
    "link in": in_each_directory("link in", lambda way, path: link(way, NOTES, f"{path}/new")),
    "link out": [
        Door("link out", FILE, lambda way: link(way, SCAN, f"{SESSION}/new")),
        Door("link out what is open", FILE, lambda way: link_inode(way, SCAN, f"{SESSION}/new")),
        Door("link within", FILE, lambda way: link(way, SCAN, f"{EMPTY}/new")),
        Door("link out a symbolic link", SYMLINK, lambda way: link(way, LATEST, f"{SESSION}/new"),
             opens_for=OWNERS),
        Door("link out a FIFO", FIFO, lambda way: link(way, PIPE, f"{SESSION}/new"),
             opens_for=OWNERS),
    ],
    "unlink": [
        Door("unlink", FILE, lambda way: unlink(way, SCAN)),
        Door("unlink below the root", FILE, lambda way: unlink(way, FRAME)),
        Door("unlink a symbolic link", SYMLINK, lambda way: unlink(way, LATEST)),
        Door("unlink a FIFO", FIFO, lambda way: unlink(way, PIPE)),
    ],
    "rmdir": [
        Door("rmdir", DIRECTORY, lambda way: rmdir(way, EMPTY)),
        Door("rmdir of one with entries", DIRECTORY, lambda way: rmdir(way, FRAMES),
             NOT_EMPTY, NOBODY),
        Door("rmdir of the sealed root", ROOT, lambda way: rmdir(way, RAW), NOT_EMPTY, NOBODY),
    ],
    "rename out of": [
        Door("rename out", FILE, lambda way: rename(way, SCAN, f"{SESSION}/new")),
        Door("rename a directory out", DIRECTORY, lambda way: rename(way, FRAMES, f"{BESIDE}/new")),
        Door("rename a symbolic link out", SYMLINK,
             lambda way: rename(way, LATEST, f"{SESSION}/new")),
        Door("rename a FIFO out", FIFO, lambda way: rename(way, PIPE, f"{SESSION}/new")),
        Door("rename out over a file", FILE, lambda way: rename(way, SCAN, NOTES)),
        Door("rename a directory out over another", DIRECTORY,
             lambda way: rename(way, FRAMES, BESIDE)),
        Door("RENAME_NOREPLACE out", FILE,
             lambda way: rename(way, SCAN, f"{SESSION}/new", RENAME_NOREPLACE)),
        Door("RENAME_WHITEOUT out", FILE,
             lambda way: rename(way, SCAN, f"{SESSION}/new", RENAME_WHITEOUT), NO_WHITEOUT, NOBODY),
    ],
    "into": [
        *in_each_directory("rename a file into",
            lambda way, path: rename(way, NOTES, f"{path}/new")),
        *in_each_directory("rename a directory into",
            lambda way, path: rename(way, BESIDE, f"{path}/new")),
        *in_each_directory("RENAME_NOREPLACE into",
            lambda way, path: rename(way, NOTES, f"{path}/new", RENAME_NOREPLACE)),
    ],
    "within": [
        Door("rename within", FILE, lambda way: rename(way, SCAN, f"{RAW}/new")),
        Door("rename within to another directory", FILE,
             lambda way: rename(way, SCAN, f"{EMPTY}/new")),
        Door("rename a directory within", DIRECTORY, lambda way: rename(way, FRAMES, f"{RAW}/new")),
        Door("rename a symbolic link within", SYMLINK,
             lambda way: rename(way, LATEST, f"{RAW}/new")),
        Door("RENAME_NOREPLACE within", FILE,
             lambda way: rename(way, SCAN, f"{RAW}/new", RENAME_NOREPLACE)),
    ],
    "over": [
        Door("rename over", FILE, lambda way: rename(way, NOTES, SCAN)),
        Door("rename over a symbolic link", SYMLINK, lambda way: rename(way, NOTES, LATEST)),
        Door("rename over a FIFO", FIFO, lambda way: rename(way, NOTES, PIPE)),
        Door("rename within over a file", FILE, lambda way: rename(way, PLAIN, SCAN)),
        Door("rename over a directory", DIRECTORY, lambda way: rename(way, BESIDE, EMPTY)),
        Door("rename over the sealed root", ROOT, lambda way: rename(way, BESIDE, RAW),
             NOT_EMPTY, NOBODY),
    ],
    "RENAME_EXCHANGE": [
        *exchanges("with a file outside", FILE, SCAN, NOTES),
        *exchanges("within", FILE, SCAN, FRAME),
        *exchanges("of a directory with one outside", DIRECTORY, FRAMES, BESIDE),
        *exchanges("of a symbolic link with a file outside", SYMLINK, LATEST, NOTES),
        *exchanges("of a FIFO with a file outside", FIFO, PIPE, NOTES),
        *exchanges("of the sealed root", ROOT, RAW, BESIDE),
    ],
    "rename or removal of any ancestor of a sealed tree up to the store's root": [
        *of_ancestors(),
        Door("rename the sealed root", ROOT, lambda way: rename(way, RAW, f"{SESSION}/new")),
        Door("rename the sealed root out", ROOT, lambda way: rename(way, RAW, f"{BESIDE}/new")),
        Door("RENAME_NOREPLACE the sealed root", ROOT,
             lambda way: rename(way, RAW, f"{SESSION}/new", RENAME_NOREPLACE)),
        Door("rename the sealed root over an empty directory", ROOT,
             lambda way: rename(way, RAW, BESIDE)),
    ],
    "chmod": [
        *on_each_node("chmod 0777", lambda node: chmod(node, 0o777), OWNERS, symlink=False),
        *on_each_node("chmod set-user-id", lambda node: chmod(node, 0o6775), OWNERS, symlink=False),
        *on_each_node("chmod sticky", lambda node: chmod(node, 0o1700), OWNERS, symlink=False),
    ],
    "chown": [
        *on_each_node("chown", lambda node: chown(node, 7, 7), ROOT_ALONE, symlink=True),
        *on_each_node("chgrp", lambda node: chown(node, -1, ALICE.gid), OWNERS, symlink=True),
    ],
    "utimens": [
        *on_each_node("utimens", lambda node: utimens(node, (1, 0), (1, 0)), OWNERS, symlink=True),
        *on_each_node("touch", lambda node: utimens(node, NOW, NOW), EVERYBODY, symlink=True),
        *on_each_node("utimens of mtime", lambda node: utimens(node, OMIT, (1, 0)),
                      OWNERS, symlink=True),
        *on_each_node("utimens of atime", lambda node: utimens(node, (1, 0), OMIT),
                      OWNERS, symlink=True),
    ],
    "setxattr": [
        Door("setxattr user", FILE, lambda way: setxattr(way.node(SCAN), "user.new", b"1")),
        Door("setxattr over a value", FILE,
             lambda way: setxattr(way.node(SCAN), "user.instrument", b"1")),
        Door("setxattr user of a directory", DIRECTORY,
             lambda way: setxattr(way.node(FRAMES), "user.new", b"1")),
        Door("setxattr user of the sealed root", ROOT,
             lambda way: setxattr(way.node(RAW), "user.new", b"1")),
        *on_each_node("setxattr trusted", lambda node: setxattr(node, "trusted.new", b"1"),
                      ROOT_ALONE, symlink=True),
        *on_each_node("setxattr security", lambda node: setxattr(node, "security.new", b"1"),
                      ROOT_ALONE, symlink=True),
    ],
    "removexattr": [
        Door("removexattr", FILE, lambda way: removexattr(way.node(SCAN), "user.instrument")),
        Door("removexattr of a directory", DIRECTORY,
             lambda way: removexattr(way.node(FRAMES), "user.instrument")),
        Door("removexattr of the sealed root", ROOT,
             lambda way: removexattr(way.node(RAW), "user.instrument")),
        Door("removexattr trusted", FILE,
             lambda way: removexattr(way.node(SCAN), "trusted.instrument"),
             opens_for=ROOT_ALONE),
    ],
    "ACL changes": [
        Door("set an access ACL over another", FILE,
             lambda way: setxattr(way.node(SCAN), "system.posix_acl_access", DEFAULT_ACL),
             opens_for=OWNERS),
        Door("set an access ACL", FILE,
             lambda way: setxattr(way.node(FRAME), "system.posix_acl_access", ACCESS_ACL),
             opens_for=OWNERS),
        Door("set an access ACL of a directory", DIRECTORY,
             lambda way: setxattr(way.node(FRAMES), "system.posix_acl_access", DEFAULT_ACL),
             opens_for=OWNERS),
        Door("set an access ACL of the sealed root", ROOT,
             lambda way: setxattr(way.node(RAW), "system.posix_acl_access", DEFAULT_ACL),
             opens_for=OWNERS),
        Door("set an access ACL of a FIFO", FIFO,
             lambda way: setxattr(way.node(PIPE), "system.posix_acl_access", ACCESS_ACL),
             opens_for=OWNERS),
        Door("set a default ACL", DIRECTORY,
             lambda way: setxattr(way.node(EMPTY), "system.posix_acl_default", DEFAULT_ACL),
             opens_for=OWNERS),
        Door("set a default ACL of the sealed root", ROOT,
             lambda way: setxattr(way.node(RAW), "system.posix_acl_default", ACCESS_ACL),
             opens_for=OWNERS),
        Door("remove an access ACL", FILE,
             lambda way: removexattr(way.node(SCAN), "system.posix_acl_access"), opens_for=OWNERS),
        Door("remove a default ACL", DIRECTORY,
             lambda way: removexattr(way.node(FRAMES), "system.posix_acl_default"),
             opens_for=OWNERS),
        Door("remove a default ACL of the sealed root", ROOT,
             lambda way: removexattr(way.node(RAW), "system.posix_acl_default"), opens_for=OWNERS),
    ],
    "FS_IOC_SETFLAGS": on_each_flag(),
}  # fmt: skip
"""By the words of the design's list of what is refused."""

REFUSED = (
    "write and append and truncate; open for writing, O_TRUNC, O_TMPFILE into it; fallocate, "
    "copy_file_range and reflink into it; shared writable mmap; create, mkdir, mknod, symlink; "
    "link in and link out; unlink, rmdir; rename out of, into, within, over, RENAME_EXCHANGE; "
    "rename or removal of any ancestor of a sealed tree up to the store's root; "
    "chmod, chown, utimens, setxattr, removexattr, ACL changes; FS_IOC_SETFLAGS"
)
"""The design's list itself; the ways that follow in it are ``WAYS`` in test_doors.py."""

DOORS = [door for doors in EVERY_DOOR.values() for door in doors]


def attempt(doors: Iterable[Door], way: Way) -> dict[str, int | None]:
    """Try each door; its errno, or None for success."""
    found: dict[str, int | None] = {}
    for door in doors:
        try:
            door.attempt(way)
        except OSError as error:
            found[door.name] = error.errno
        else:
            found[door.name] = None
    return found


def refusals(door: Door, who: str, *, by_us: bool) -> frozenset[int]:
    """What counts as a refusal: where the kernel decides first, ordinary users see EACCES.

    ``by_us``: no file system says no before the mount does, so root is told EROFS and nothing else,
    or EACCES of what is opened to read as well.
    """
    if who == "root":
        own = {errno.EROFS, errno.EACCES}
        return door.by_nature | (own if by_us else own | {errno.EPERM})
    return door.by_nature | {errno.EROFS, errno.EPERM, errno.EACCES}


def not_refused(
    doors: Iterable[Door],
    found: dict[str, int | None],
    who: str,
    way: str,
    *,
    by_us: bool = False,
) -> list[str]:
    """A line for each door that was not shut."""
    lines = []
    for door in doors:
        number = found[door.name]
        if number not in refusals(door, who, by_us=by_us):
            outcome = "SUCCEEDED" if number is None else errno.errorcode[number]
            lines.append(f"{door.name}: {outcome}, as {who}, by {way}")
    return lines
