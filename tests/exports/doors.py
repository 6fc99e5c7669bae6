"""Every door into a sealed tree that a protocol can express: each as one request that changes."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from smbprotocol.file_info import (
    FileBasicInformation,
    FileDispositionInformation,
    FileEndOfFileInformation,
    FileLinkInformation,
    FileRenameInformation,
)

from modamafs.exports.client import Client
from modamafs.exports.nfs_client import NfsClient
from modamafs.exports.smb_client import SmbClient
from modamafs.exports.webdav_client import WebDavClient
from tests.attack.scene import (
    ANCESTORS,
    BESIDE,
    BLOCK,
    EMPTY,
    FRAME,
    FRAMES,
    LATEST,
    NOTES,
    PIPE,
    PLAIN,
    PROJECT,
    RAW,
    SCAN,
    SESSION,
    SPARE,
)
from tests.exports import smb_requests as smb
from tests.support.users import ALICE

NONE: frozenset[int] = frozenset()
REFUSALS = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


@dataclass
class Reach:
    """A client, and how it reaches the tree of the scene."""

    client: Client
    path: Callable[[str], str]
    """From a path of the scene to one in the share."""
    is_done: bool = False
    """The request itself succeeded, whatever came afterwards."""

    def __call__(self, path: str) -> str:
        return self.path(path)

    @property
    def smb(self) -> SmbClient:
        """The client, of SMB."""
        assert isinstance(self.client, SmbClient)
        return self.client

    @property
    def nfs(self) -> NfsClient:
        """The client, of NFS."""
        assert isinstance(self.client, NfsClient)
        return self.client

    @property
    def webdav(self) -> WebDavClient:
        """The client, of WebDAV."""
        assert isinstance(self.client, WebDavClient)
        return self.client

    @contextlib.contextmanager
    def opened(self, path: str, access: int, *how: int) -> Iterator[Any]:
        """By SMB; see ``SmbClient.opened``. What fails at the end of the block has been done."""
        with self.smb.opened(self(path), access, *how) as opened:
            yield opened
            self.is_done = True

    @contextlib.contextmanager
    def handle(self, path: str, flags: int) -> Iterator[Any]:
        """By NFS; see ``NfsClient.open``. What fails at the end of the block has been done."""
        handle = self.nfs.open(self(path), flags)
        try:
            yield handle
        except OSError:
            with contextlib.suppress(OSError):
                self.nfs.close_file(handle)
            raise
        self.is_done = True
        self.nfs.close_file(handle)


Attempt = Callable[[Reach], object]


class Door(NamedTuple):
    """One request that would change a sealed tree."""

    name: str
    attempt: Attempt
    opens: bool = True
    """Whether Alice can do it while nothing is sealed."""
    leaves_a_trace: bool = True
    """Whether success is seen on the store; a mere opening leaves none."""
    by_nature: frozenset[int] = NONE
    """Refusals that come before anybody asks for a seal."""


def try_each(doors: Iterable[Door], reach: Reach) -> list[str]:
    """A line for each door that was not shut, at once."""
    lines = []
    for door in doors:
        outcome = try_one(door, reach)
        if outcome not in {errno.errorcode[number] for number in REFUSALS | door.by_nature}:
            lines.append(f"{door.name}: {outcome}")
    return lines


def try_one(door: Door, reach: Reach) -> str:
    """The name of the errno, or what else came of it."""
    reach.is_done = False
    try:
        door.attempt(reach)
    except OSError as error:
        name = errno.errorcode[error.errno or 0]
        if reach.is_done:
            return f"SUCCEEDED, and failed afterwards: {error}"
        return name if error.errno in REFUSALS | door.by_nature else f"{name}: {error}"
    return "SUCCEEDED"


# ---- what every protocol has -------------------------------------------------------------------

Rename = Callable[[Reach, str, str], None]
Remove = Callable[[Reach, str], None]
NOT_EMPTY = frozenset({errno.ENOTEMPTY, errno.EEXIST})
"""Servers say so of a directory that has entries, sealed or not."""
INSIDE = ((RAW, "in the root"), (FRAMES, "below the root"))


def renames(rename: Rename) -> list[Door]:
    """Out of, into, within, over; the sealed root, and all that is above it."""

    def door(name: str, old: str, new: str, by_nature: frozenset[int] = NONE) -> Door:
        return Door(name, lambda at: rename(at, old, new), opens=not by_nature, by_nature=by_nature)

    return [
        door("rename a file out", SCAN, f"{SESSION}/new"),
        door("rename a file out over another", SCAN, NOTES),
        door("rename a file below the root out", FRAME, f"{BESIDE}/new"),
        door("rename a directory out", FRAMES, f"{BESIDE}/new"),
        door("rename a file into it", NOTES, f"{RAW}/new"),
        door("rename a file into it, deeper", NOTES, f"{EMPTY}/new"),
        door("rename a directory into it", BESIDE, f"{FRAMES}/new"),
        door("rename within", SCAN, f"{RAW}/new"),
        door("rename within to another directory", PLAIN, f"{EMPTY}/new"),
        door("rename a directory within", FRAMES, f"{RAW}/new"),
        door("rename within over another", PLAIN, SCAN),
        door("rename a file over one of it", NOTES, SCAN),
        door("rename the sealed root", RAW, f"{SESSION}/new"),
        door("rename the sealed root into another directory", RAW, f"{BESIDE}/new"),
        *(
            door(f"rename the {name}", path, f"{path}-new")
            for name, path in ANCESTORS.items()
        ),
        *(
            door(f"rename the {name} into another directory", path, f"{SPARE[name]}/new")
            for name, path in ANCESTORS.items()
        ),
    ]  # fmt: skip


# ---- SMB ----------------------------------------------------------------------------------------


def smb_rename(at: Reach, old: str, new: str) -> None:
    renaming = FileRenameInformation()
    renaming["replace_if_exists"] = True
    renaming["file_name"] = at(new).replace("/", "\\")
    with at.opened(old, smb.DELETE) as opened:
        at.smb.set_info(opened, renaming)


def smb_link(at: Reach, old: str, new: str) -> None:
    linking = FileLinkInformation()
    linking["file_name"] = at(new).replace("/", "\\")
    with at.opened(old, smb.READ_DATA | smb.WRITE_ATTRIBUTES) as opened:
        at.smb.set_info(opened, linking)


def smb_delete(at: Reach, path: str) -> None:
    """FileDispositionInformation."""
    disposition = FileDispositionInformation()
    disposition["delete_pending"] = True
    with at.opened(path, smb.DELETE) as opened:
        at.smb.set_info(opened, disposition)


def smb_write(at: Reach, path: str, access: int, offset: int = 0) -> None:
    with at.opened(path, access) as opened:
        at.smb._ask(path, lambda: opened.write(b"new", offset))


def smb_delete_on_close(at: Reach, path: str) -> None:
    with at.opened(path, smb.DELETE, smb.OPEN, smb.DELETE_ON_CLOSE):
        pass


def smb_size(at: Reach, path: str, size_bytes: int) -> None:
    end = FileEndOfFileInformation()
    end["end_of_file"] = size_bytes
    with at.opened(path, smb.WRITE_DATA) as opened:
        at.smb.set_info(opened, end)


def smb_create(at: Reach, path: str, disposition: int, options: int = 0) -> None:
    with at.opened(path, smb.WRITE_DATA, disposition, options):
        pass


def smb_attributes(at: Reach, path: str, access: int = smb.WRITE_ATTRIBUTES, **values: int) -> None:
    basic = FileBasicInformation()
    for name, value in values.items():
        basic[name] = value
    with at.opened(path, access) as opened:
        at.smb.set_info(opened, basic)


def smb_raw_info(
    at: Reach, path: str, access: int, number: int, data: bytes, **options: int
) -> None:
    with at.opened(path, access) as opened:
        smb.set_raw_info(at.smb, opened, number, data, **options)


def smb_copy(at: Reach, source: str, target: str) -> None:
    with (
        at.smb.opened(at(source), smb.READ_DATA) as one,
        at.opened(target, smb.READ_DATA | smb.WRITE_DATA) as other,
    ):
        smb.copy_chunk(at.smb, one, other, BLOCK)


def smb_zero(at: Reach, path: str) -> None:
    with at.opened(path, smb.WRITE_DATA) as opened:
        smb.zero(at.smb, opened, 0, BLOCK)


def smb_sparse(at: Reach, path: str) -> None:
    with at.opened(path, smb.WRITE_DATA | smb.WRITE_ATTRIBUTES) as opened:
        smb.set_sparse(at.smb, opened)


def windows_sid(*parts: int) -> bytes:
    authority, *rest = parts
    return struct.pack(f"<BB6s{len(rest)}I", 1, len(rest), authority.to_bytes(6, "big"), *rest)


EVERYBODY = windows_sid(1, 0)
ALICES_GROUP = windows_sid(22, 2, ALICE.gid)
"""As Samba writes a group of Unix."""
DACL, GROUP = 4, 2
SELF_RELATIVE, DACL_PRESENT = 0x8000, 0x4


def acl_for_everybody() -> bytes:
    """A security descriptor that gives everybody everything."""
    entry = struct.pack("<BBHI", 0, 0, 8 + len(EVERYBODY), 0x1F01FF) + EVERYBODY
    listed = struct.pack("<BBHHH", 2, 0, 8 + len(entry), 1, 0) + entry
    return struct.pack("<BBHIIII", 1, 0, SELF_RELATIVE | DACL_PRESENT, 0, 0, 0, 20) + listed


def group_of_alice() -> bytes:
    """A security descriptor with another group."""
    return struct.pack("<BBHIIII", 1, 0, SELF_RELATIVE, 0, 20, 0, 0) + ALICES_GROUP


def extended_attribute(name: bytes, value: bytes) -> bytes:
    """FILE_FULL_EA_INFORMATION."""
    return struct.pack("<IBBH", 0, 0, len(name), len(value)) + name + b"\0" + value


FULL_EA, ALLOCATION, VALID_DATA_LENGTH = 15, 19, 39
LONG_AGO = 116444736000000000 + 10**7
"""1970, as Windows counts."""
READ_ONLY, HIDDEN, NORMAL = 0x1, 0x2, 0x80
EVERY_KIND = ((SCAN, "a file"), (FRAMES, "a directory"), (RAW, "the sealed root"))
FILES, DIRECTORIES = EVERY_KIND[:1], EVERY_KIND[1:]
LOST = frozenset({errno.ENOENT})
"""smbd tries once more as root where the user may not, and forgets what was said."""


def on_each_kind(
    name: str,
    attempt: Callable[[Reach, str], object],
    *,
    kinds: Iterable[tuple[str, str]] = EVERY_KIND,
    opens: bool = True,
    leaves_a_trace: bool = True,
    by_nature: frozenset[int] = NONE,
) -> list[Door]:
    """The same door on each kind of entry."""

    def on(path: str) -> Attempt:
        return lambda at: attempt(at, path)

    return [
        Door(f"{name} of {kind}", on(path), opens, leaves_a_trace, by_nature)
        for path, kind in kinds
    ]


def in_each_directory(name: str, attempt: Callable[[Reach, str], object]) -> list[Door]:
    """The same door with a new name in the root, and below it."""

    def on(directory: str) -> Attempt:
        return lambda at: attempt(at, f"{directory}/new")

    return [Door(f"{name} {where}", on(directory)) for directory, where in INSIDE]


def openings(accesses: dict[str, int]) -> list[Door]:
    """Opening a file for more than reading."""

    def on(access: int) -> Attempt:
        return lambda at: smb_create_with(at, SCAN, access)

    return [
        Door(f"open for {name}", on(access), leaves_a_trace=False)
        for name, access in accesses.items()
    ]


def smb_create_with(at: Reach, path: str, access: int) -> None:
    with at.opened(path, access):
        pass


def smb_stream(at: Reach, path: str) -> None:
    with at.opened(f"{path}:new", smb.WRITE_DATA, smb.OPEN_IF) as opened:
        at.smb._ask(path, lambda: opened.write(b"new", 0))


def smb_by_handle(new: str) -> dict[str, Callable[..., None]]:
    """What changes an entry that is open; ``new``: another name for it."""

    def delete(client: SmbClient, opened: Any, _: Reach) -> None:
        disposition = FileDispositionInformation()
        disposition["delete_pending"] = True
        client.set_info(opened, disposition)

    def rename(client: SmbClient, opened: Any, _: Reach) -> None:
        renaming = FileRenameInformation()
        renaming["file_name"] = new.replace("/", "\\")
        client.set_info(opened, renaming)

    def set_times(client: SmbClient, opened: Any, _: Reach) -> None:
        basic = FileBasicInformation()
        basic["last_write_time"] = LONG_AGO
        client.set_info(opened, basic)

    def set_acl(client: SmbClient, opened: Any, _: Reach) -> None:
        smb.set_raw_info(
            client, opened, 0, acl_for_everybody(), kind=smb.SECURITY_INFORMATION, additional=DACL
        )

    def set_attribute(client: SmbClient, opened: Any, _: Reach) -> None:
        smb.set_raw_info(client, opened, FULL_EA, extended_attribute(b"new", b"1"))

    return {
        "delete": delete, "rename": rename, "set the times of": set_times, "set an ACL of": set_acl,
        "set an extended attribute of": set_attribute,
    }  # fmt: skip


SMB: list[Door] = [
    Door("write", lambda at: smb_write(at, SCAN, smb.WRITE_DATA)),
    Door("write below the root", lambda at: smb_write(at, FRAME, smb.WRITE_DATA, 100)),
    Door("write with all that one is given",
         lambda at: smb_write(at, PLAIN, smb.MAXIMUM_ALLOWED)),
    Door("append", lambda at: smb_write(at, PLAIN, smb.APPEND_DATA, 16 * BLOCK)),
    Door("set the end of the file to nothing", lambda at: smb_size(at, SCAN, 0)),
    Door("set the end of the file to a part", lambda at: smb_size(at, SCAN, 100)),
    Door("set the end of the file to more", lambda at: smb_size(at, SCAN, 1 << 20)),
    Door("set the allocation size", lambda at: smb_raw_info(
        at, SCAN, smb.WRITE_DATA, ALLOCATION, struct.pack("<Q", 100))),
    *openings({
        "writing": smb.WRITE_DATA, "appending": smb.APPEND_DATA, "deleting": smb.DELETE,
        "writing attributes of one's own": smb.WRITE_EA, "GENERIC_WRITE": smb.GENERIC_WRITE,
    }),
    Door("FILE_SUPERSEDE", lambda at: smb_create(at, SCAN, smb.SUPERSEDE)),
    Door("FILE_OVERWRITE", lambda at: smb_create(at, SCAN, smb.OVERWRITE)),
    Door("FILE_OVERWRITE_IF", lambda at: smb_create(at, SCAN, smb.OVERWRITE_IF)),
    *in_each_directory("create a file", lambda at, new: smb_create(at, new, smb.CREATE)),
    *in_each_directory("open or create a file", lambda at, new: smb_create(at, new, smb.OPEN_IF)),
    *in_each_directory("create a directory", lambda at, new: smb_create(
        at, new, smb.CREATE, smb.DIRECTORY_FILE)),
    Door("delete a file", lambda at: smb_delete(at, SCAN)),
    Door("delete a file below the root", lambda at: smb_delete(at, FRAME)),
    Door("delete a directory", lambda at: smb_delete(at, EMPTY)),
    Door("delete a directory with entries", lambda at: smb_delete(at, FRAMES),
         opens=False, by_nature=NOT_EMPTY),
    Door("delete the sealed root", lambda at: smb_delete(at, RAW),
         opens=False, by_nature=NOT_EMPTY),
    Door("FILE_DELETE_ON_CLOSE", lambda at: smb_delete_on_close(at, SCAN)),
    Door("FILE_DELETE_ON_CLOSE of a directory", lambda at: smb_delete_on_close(at, EMPTY)),
    *renames(smb_rename),
    Door("link out", lambda at: smb_link(at, SCAN, f"{SESSION}/new")),
    Door("link in", lambda at: smb_link(at, NOTES, f"{RAW}/new")),
    Door("link within", lambda at: smb_link(at, SCAN, f"{EMPTY}/new")),
    *on_each_kind("set the times", lambda at, path: smb_attributes(
        at, path, last_write_time=LONG_AGO, last_access_time=LONG_AGO), by_nature=LOST),
    *on_each_kind("set HIDDEN", lambda at, path: smb_attributes(
        at, path, file_attributes=HIDDEN), leaves_a_trace=False),
    *on_each_kind("clear READONLY", lambda at, path: smb_attributes(
        at, path, file_attributes=NORMAL), leaves_a_trace=False),
    *on_each_kind("set an ACL", lambda at, path: smb_raw_info(
        at, path, smb.WRITE_DAC, 0, acl_for_everybody(),
        kind=smb.SECURITY_INFORMATION, additional=DACL)),
    *on_each_kind("set the group", lambda at, path: smb_raw_info(
        at, path, smb.WRITE_OWNER, 0, group_of_alice(),
        kind=smb.SECURITY_INFORMATION, additional=GROUP), kinds=DIRECTORIES),
    *on_each_kind("set an extended attribute", lambda at, path: smb_raw_info(
        at, path, smb.WRITE_EA, FULL_EA, extended_attribute(b"new", b"1"))),
    Door("remove an extended attribute", lambda at: smb_raw_info(
        at, SCAN, smb.WRITE_EA, FULL_EA, extended_attribute(b"instrument", b""))),
    Door("FSCTL_SET_ZERO_DATA", lambda at: smb_zero(at, SCAN)),
    Door("FSCTL_SRV_COPYCHUNK_WRITE", lambda at: smb_copy(at, NOTES, SCAN)),
    Door("FSCTL_SRV_COPYCHUNK_WRITE within", lambda at: smb_copy(at, PLAIN, FRAME)),
]  # fmt: skip

SMB_MODULES: list[Door] = [
    *SMB,
    *on_each_kind("write an alternate data stream", smb_stream),
    *on_each_kind("set READONLY", lambda at, path: smb_attributes(
        at, path, file_attributes=READ_ONLY)),
    Door("FSCTL_SET_SPARSE", lambda at: smb_sparse(at, SCAN)),
]  # fmt: skip
"""With modules that keep streams, ACLs and attributes of Windows beside a file."""


# ---- NFS ----------------------------------------------------------------------------------------


def nfs_write(at: Reach, path: str, flags: int = 0, offset: int = 0) -> None:
    with at.handle(path, os.O_RDWR | flags) as handle:
        at.nfs.pwrite(handle, offset, b"new")


def nfs_open(at: Reach, path: str, flags: int) -> None:
    with at.handle(path, os.O_RDWR | flags):
        pass


def nfs_by_handle(name: str, *arguments: int) -> Attempt:
    """A call on a handle that was opened to read."""

    def attempt(at: Reach) -> None:
        with own_connection(at) as own, own.handle(SCAN, os.O_RDONLY) as handle:
            own.nfs._call(name, handle, *arguments, path=SCAN)

    return attempt


def nfs_write_to_read(at: Reach) -> None:
    with own_connection(at) as own, own.handle(SCAN, os.O_RDONLY) as handle:
        own.nfs.pwrite(handle, 0, b"new")


@contextlib.contextmanager
def own_connection(at: Reach) -> Iterator[Reach]:
    """libnfs 4.0 loses count after some refusals of NFSv4."""
    with NfsClient(**at.nfs._again) as client:
        own = Reach(client, at.path)
        try:
            yield own
        finally:
            at.is_done = own.is_done


def nfs_rename(at: Reach, old: str, new: str) -> None:
    at.nfs.rename(at(old), at(new))


def writes(by_nature: frozenset[int] = NONE) -> list[Door]:
    """WRITE."""
    attempts: dict[str, Attempt] = {
        "write": lambda at: nfs_write(at, SCAN),
        "write below the root": lambda at: nfs_write(at, FRAME, offset=100),
        "append": lambda at: nfs_write(at, PLAIN, os.O_APPEND, 16 * BLOCK),
    }
    return [Door(name, attempt, by_nature=by_nature) for name, attempt in attempts.items()]


def attributes(kinds: Iterable[tuple[str, str]]) -> list[Door]:
    """SETATTR of modes, owners and times."""
    return [
        *on_each_kind("chmod", lambda at, path: at.nfs.chmod(at(path), 0o777), kinds=kinds),
        *on_each_kind(
            "chgrp", lambda at, path: at.nfs.chown(at(path), ALICE.uid, ALICE.gid), kinds=kinds
        ),
        *on_each_kind(
            "chown", lambda at, path: at.nfs.chown(at(path), 7, 7), kinds=kinds, opens=False
        ),
        *on_each_kind("utimes", lambda at, path: at.nfs.utime(at(path), 1), kinds=kinds),
    ]


NFS: list[Door] = [
    Door("open O_TRUNC", lambda at: nfs_open(at, SCAN, os.O_TRUNC)),
    Door("truncate to nothing", lambda at: at.nfs.truncate(at(SCAN), 0)),
    Door("truncate to a part", lambda at: at.nfs.truncate(at(SCAN), 100)),
    Door("truncate to more", lambda at: at.nfs.truncate(at(SCAN), 1 << 20)),
    *in_each_directory("create a file", lambda at, new: nfs_open(at, new, os.O_CREAT)),
    *in_each_directory("create a file O_EXCL", lambda at, new: nfs_open(
        at, new, os.O_CREAT | os.O_EXCL)),
    *in_each_directory("mkdir", lambda at, new: at.nfs.mkdir(at(new))),
    *in_each_directory("symlink", lambda at, new: at.nfs.symlink("nowhere", at(new))),
    Door("unlink", lambda at: at.nfs.remove(at(SCAN))),
    Door("unlink below the root", lambda at: at.nfs.remove(at(FRAME))),
    Door("unlink a symbolic link", lambda at: at.nfs.remove(at(LATEST))),
    Door("unlink a FIFO", lambda at: at.nfs.remove(at(PIPE))),
    Door("rmdir", lambda at: at.nfs.rmdir(at(EMPTY))),
    Door("rmdir of one with entries", lambda at: at.nfs.rmdir(at(FRAMES)),
         opens=False, by_nature=NOT_EMPTY),
    Door("rmdir of the sealed root", lambda at: at.nfs.rmdir(at(RAW)),
         opens=False, by_nature=NOT_EMPTY),
    *renames(nfs_rename),
    Door("rename a directory over an empty one", lambda at: nfs_rename(at, BESIDE, EMPTY)),
    Door("rename the sealed root over an empty directory",
         lambda at: nfs_rename(at, RAW, BESIDE)),
    Door("rename a symbolic link out", lambda at: nfs_rename(at, LATEST, f"{SESSION}/new")),
    Door("rename a FIFO out", lambda at: nfs_rename(at, PIPE, f"{SESSION}/new")),
    Door("rename over a FIFO", lambda at: nfs_rename(at, NOTES, PIPE)),
    Door("link out", lambda at: at.nfs.link(at(SCAN), at(f"{SESSION}/new"))),
    Door("link in", lambda at: at.nfs.link(at(NOTES), at(f"{RAW}/new"))),
    Door("link within", lambda at: at.nfs.link(at(SCAN), at(f"{EMPTY}/new"))),
    *attributes(FILES),
    Door("fchmod with a handle to read", nfs_by_handle("fchmod", 0o777)),
    Door("fchown with a handle to read", nfs_by_handle("fchown", ALICE.uid, ALICE.gid)),
]  # fmt: skip
"""Of both versions."""

NFS4: list[Door] = [
    *NFS,
    *writes(),
    Door("open to read and write", lambda at: nfs_open(at, SCAN, 0), leaves_a_trace=False),
]
"""libnfs 4.0 opens what it changes, over NFSv4, and directories and FIFOs can't be opened so."""

UNTOLD = frozenset({errno.EFAULT})
"""libnfs 4.0 says this of every WRITE of NFSv3 that a server refuses, whatever its words were."""

NFS3: list[Door] = [
    *NFS,
    *writes(UNTOLD),
    Door("write with a handle to read", nfs_write_to_read, by_nature=UNTOLD),
    Door("ftruncate with a handle to read", nfs_by_handle("ftruncate", 100)),
    *attributes(DIRECTORIES),
    Door("chmod of a FIFO", lambda at: at.nfs.chmod(at(PIPE), 0o777)),
    *in_each_directory("mknod a FIFO", lambda at, new: at.nfs.mknod(
        at(new), stat.S_IFIFO | 0o664)),
    *in_each_directory("mknod a socket", lambda at, new: at.nfs.mknod(
        at(new), stat.S_IFSOCK | 0o664)),
]  # fmt: skip
"""NFSv3 knows no opening, so that is no door of it, and any handle is good for everything."""


# ---- WebDAV -------------------------------------------------------------------------------------

PROPERTIES = b"""<?xml version="1.0"?>
<D:propertyupdate xmlns:D="DAV:"><D:set><D:prop>
<D:getlastmodified>Thu, 01 Jan 1970 00:00:01 GMT</D:getlastmodified>
</D:prop></D:set></D:propertyupdate>"""
LOCK = b"""<?xml version="1.0"?>
<D:lockinfo xmlns:D="DAV:"><D:lockscope><D:exclusive/></D:lockscope>
<D:locktype><D:write/></D:locktype></D:lockinfo>"""


def dav_move(at: Reach, old: str, new: str) -> None:
    at.webdav.rename(at(old), at(new))


WEBDAV: list[Door] = [
    Door("PUT over a file", lambda at: at.webdav.write(at(SCAN), b"new")),
    Door("PUT nothing over a file", lambda at: at.webdav.write(at(SCAN), b"")),
    Door("PUT over a file below the root", lambda at: at.webdav.write(at(FRAME), b"new")),
    *in_each_directory("PUT a new file", lambda at, new: at.webdav.write(at(new), b"new")),
    *in_each_directory("MKCOL", lambda at, new: at.webdav.mkdir(at(new))),
    Door("DELETE a file", lambda at: at.webdav.remove(at(SCAN))),
    Door("DELETE a file below the root", lambda at: at.webdav.remove(at(FRAME))),
    Door("DELETE an empty directory", lambda at: at.webdav.remove(at(EMPTY))),
    Door("DELETE a directory", lambda at: at.webdav.remove(at(FRAMES))),
    Door("DELETE the sealed root", lambda at: at.webdav.remove(at(RAW))),
    *(
        Door(f"DELETE the {name}", lambda at, path=path: at.webdav.remove(at(path)))
        for name, path in ANCESTORS.items()
    ),
    *renames(dav_move),
    Door("MOVE a file over a directory", lambda at: dav_move(at, NOTES, FRAMES)),
    Door("MOVE a directory over the sealed root", lambda at: dav_move(at, BESIDE, RAW)),
    Door("COPY over a file", lambda at: at.webdav.copy(at(NOTES), at(SCAN))),
    Door("COPY a file into it", lambda at: at.webdav.copy(at(NOTES), at(f"{RAW}/new"))),
    Door("COPY a directory into it", lambda at: at.webdav.copy(at(BESIDE), at(f"{FRAMES}/new"))),
    Door("COPY a directory over one of it", lambda at: at.webdav.copy(at(BESIDE), at(FRAMES))),
    Door("COPY a directory over the sealed root", lambda at: at.webdav.copy(at(BESIDE), at(RAW))),
    Door("COPY within", lambda at: at.webdav.copy(at(SCAN), at(f"{EMPTY}/new"))),
    *on_each_kind("PROPPATCH of the time", lambda at, path: at.webdav.request(
        "PROPPATCH", at(path), PROPERTIES), opens=False),
    Door("LOCK a new name", lambda at: at.webdav.request("LOCK", at(f"{RAW}/new"), LOCK)),
]  # fmt: skip


# ---- landing/ and views/: nothing in them is anybody's to change ---------------------------------


def shown(protocol: str, page: str, new: str, link: str) -> list[Door]:
    """``page`` is a page, ``new`` a name beside it, ``link`` leads to a session."""
    renamed = f"{PROJECT}/stolen"

    by_nature = {"write": UNTOLD if protocol == "nfs3" else NONE, "set_the_times": LOST}

    def named(**attempts: Attempt) -> list[Door]:
        return [
            Door(name.replace("_", " "), attempt, by_nature=by_nature.get(name, NONE))
            for name, attempt in attempts.items()
        ]

    tables = {
        "smb": named(
            write=lambda at: smb_write(at, page, smb.WRITE_DATA),
            overwrite=lambda at: smb_create(at, page, smb.OVERWRITE),
            truncate=lambda at: smb_size(at, page, 0),
            delete=lambda at: smb_delete(at, page),
            create=lambda at: smb_create(at, new, smb.CREATE),
            mkdir=lambda at: smb_create(at, new, smb.CREATE, smb.DIRECTORY_FILE),
            rename_out=lambda at: smb_rename(at, page, renamed),
            rename_into=lambda at: smb_rename(at, NOTES, new),
            set_the_times=lambda at: smb_attributes(at, page, last_write_time=LONG_AGO),
            rename_a_session=lambda at: smb_rename(at, link, renamed),
        ),
        "nfs": named(
            write=lambda at: nfs_write(at, page),
            truncate=lambda at: at.nfs.truncate(at(page), 0),
            unlink=lambda at: at.nfs.remove(at(page)),
            create=lambda at: nfs_open(at, new, os.O_CREAT),
            mkdir=lambda at: at.nfs.mkdir(at(new)),
            symlink=lambda at: at.nfs.symlink("nowhere", at(new)),
            rename_out=lambda at: nfs_rename(at, page, renamed),
            rename_into=lambda at: nfs_rename(at, NOTES, new),
            chmod=lambda at: at.nfs.chmod(at(page), 0o777),
            utimes=lambda at: at.nfs.utime(at(page), 1),
            unlink_a_session=lambda at: at.nfs.remove(at(link)),
            rename_a_session=lambda at: nfs_rename(at, link, renamed),
        ),
        "webdav": named(
            put=lambda at: at.webdav.write(at(page), b"new"),
            put_a_new_file=lambda at: at.webdav.write(at(new), b"new"),
            mkcol=lambda at: at.webdav.mkdir(at(new)),
            delete=lambda at: at.webdav.remove(at(page)),
            move_out=lambda at: dav_move(at, page, renamed),
            move_into=lambda at: dav_move(at, NOTES, new),
            copy_over=lambda at: at.webdav.copy(at(NOTES), at(page)),
            delete_a_session=lambda at: at.webdav.remove(at(link)),
            move_a_session=lambda at: dav_move(at, link, renamed),
        ),
    }
    return tables[protocol if protocol == "webdav" else protocol[:3]]
