"""A client of NFSv3 and NFSv4.0 without any mount: libnfs, by ctypes.

Source: nfsc/libnfs.h of libnfs 4.0. Its calls return a negative errno.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import uuid
from ctypes import POINTER, byref, c_char_p, c_int, c_uint32, c_uint64, c_void_p
from typing import Any

from modamafs.errors import NotInstalled
from modamafs.exports.client import Client, Seen, error

PACKAGE = "libnfs13"
WRITE_BYTES = {3: 4 << 20, 4: 3 << 10}
"""Handed to libnfs at once. It makes WRITEs of 1 MiB of it and has them all under way together, as
Linux's client does. Of NFSv4, libnfs 4.0 can't encode more in a request (measured: 3800 are, 4000
are not)."""
READ_BYTES = 1 << 20
_F_SETLK = 0
_WHOLE = (1 << 64) - 1


class _Stat(ctypes.Structure):
    _fields_ = tuple(
        (name, c_uint64)
        for name in (
            "dev", "ino", "mode", "nlink", "uid", "gid", "rdev", "size", "blksize", "blocks",
            "atime", "mtime", "ctime", "atime_nsec", "mtime_nsec", "ctime_nsec", "used",
        )
    )  # fmt: skip


class _Entry(ctypes.Structure):
    pass


_Entry._fields_ = (("next", POINTER(_Entry)), ("name", c_char_p), ("inode", c_uint64))


class _Lock(ctypes.Structure):
    """struct nfs4_flock"""

    _fields_ = (
        ("l_type", c_int),
        ("l_whence", c_int),
        ("l_pid", c_uint32),
        ("l_start", c_uint64),
        ("l_len", c_uint64),
    )


class _Timeval(ctypes.Structure):
    _fields_ = (("tv_sec", ctypes.c_long), ("tv_usec", ctypes.c_long))


def _load() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL("libnfs.so.13")
    except OSError as missing:
        raise NotInstalled(f"libnfs is not installed: 'apt install {PACKAGE}'") from missing
    for name in ("nfs_init_context", "nfs_parse_url_dir", "libnfs_authunix_create"):
        getattr(library, name).restype = c_void_p
    library.nfs_get_error.restype = c_char_p
    library.nfs_readdir.restype = POINTER(_Entry)
    return library


class NfsClient(Client):
    """As a user of another machine: root there or anybody, by number."""

    protocol = "NFS"
    _is_lost = False
    """The connection broke: libnfs 4.0 would tell those that are waiting for an answer, when the
    context is given back; but they wait no more, and it crashes."""

    def __init__(
        self,
        server: str,
        port: int,
        export: str,
        *,
        version: int = 4,
        uid: int = 0,
        gid: int = 0,
        groups: tuple[int, ...] = (),
        mount_port: int = 0,
    ) -> None:
        """``groups``: the others that the user is in. ``mount_port``: of NFSv3; 0: rpcbind is
        asked. OSError: the server refuses."""
        self._again: dict[str, Any] = {
            "server": server, "port": port, "export": export, "version": version,
            "uid": uid, "gid": gid, "groups": groups, "mount_port": mount_port,
        }  # fmt: skip
        self._library = _load()
        self._context = c_void_p(self._library.nfs_init_context())
        if not self._context:
            raise MemoryError
        # Servers take one user for each name of a client.
        self._name = c_char_p(f"modamafs-{uuid.uuid4()}".encode())
        self._library.nfs4_set_client_name(self._context, self._name)
        self.protocol = f"NFSv{version}"
        self._write_bytes = WRITE_BYTES[version]
        try:
            self._connect(
                f"nfs://{server}/{export}?nfsport={port}&version={version}"
                + (f"&mountport={mount_port}" if mount_port else ""),
                uid,
                gid,
                groups,
            )
        except BaseException:
            self.close()
            raise

    def _connect(self, url: str, uid: int, gid: int, groups: tuple[int, ...]) -> None:
        parsed = c_void_p(self._library.nfs_parse_url_dir(self._context, c_char_p(url.encode())))
        if not parsed:
            raise error(errno.EINVAL, self._words(), url)
        server, path = ctypes.cast(parsed, POINTER(c_char_p))[:2]
        numbers = (c_uint32 * len(groups))(*groups)
        who = self._library.libnfs_authunix_create(b"modamafs", uid, gid, len(groups), numbers)
        self._library.nfs_set_auth(self._context, c_void_p(who))
        try:
            self._call("mount", server, path, path=url)
        finally:
            self._library.nfs_destroy_url(parsed)

    def close(self) -> None:
        """Hang up."""
        if self._context and not self._is_lost:
            self._library.nfs_destroy_context(self._context)
            self._context = c_void_p()

    def _words(self) -> str:
        words = self._library.nfs_get_error(self._context)
        return words.decode(errors="replace").strip() if words else ""

    def _call(self, name: str, *arguments: Any, path: str) -> int:
        result = int(getattr(self._library, f"nfs_{name}")(self._context, *arguments))
        if result < 0:
            words = self._words()
            self._is_lost = self._is_lost or words.startswith("nfs_service failed")
            raise error(-result, words, path)
        return result

    @staticmethod
    def _path(path: str) -> c_char_p:
        return c_char_p(b"/" + os.fsencode(path))

    def listing(self, path: str = "") -> list[str]:
        """By READDIR."""
        directory = c_void_p()
        self._call("opendir", self._path(path), byref(directory), path=path)
        names = []
        while entry := self._library.nfs_readdir(self._context, directory):
            names.append(os.fsdecode(entry.contents.name))
        self._library.nfs_closedir(self._context, directory)
        return sorted(set(names) - {".", ".."})

    def stat(self, path: str) -> Seen:
        """By GETATTR."""
        found = _Stat()
        self._call("stat64", self._path(path), byref(found), path=path)
        return Seen(
            stat.S_ISDIR(found.mode),
            found.size,
            found.mtime * 10**9 + found.mtime_nsec,
            stat.S_IMODE(found.mode),
            found.uid,
            found.gid,
        )

    def open(self, path: str, flags: int, mode: int = 0o644) -> c_void_p:
        """A file handle, for ``pread``, ``pwrite`` and ``close_file``."""
        handle = c_void_p()
        self._call("open2", self._path(path), flags, mode, byref(handle), path=path)
        return handle

    def close_file(self, handle: c_void_p) -> None:
        """Give it back; OSError: what was written is not safe."""
        self._call("close", handle, path="")

    def pread(self, handle: c_void_p, offset: int, length: int) -> bytes:
        """Up to so many bytes."""
        buffer = ctypes.create_string_buffer(length)
        done = self._call("pread", handle, c_uint64(offset), c_uint64(length), buffer, path="")
        return buffer.raw[:done]

    def pwrite(self, handle: c_void_p, offset: int, data: bytes) -> None:
        """All of them."""
        left = memoryview(data)
        while left:
            piece = bytes(left[: self._write_bytes])
            done = self._call(
                "pwrite", handle, c_uint64(offset), c_uint64(len(piece)), piece, path=""
            )
            left, offset = left[done:], offset + done

    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        """By READ."""
        handle = self.open(path, os.O_RDONLY)
        try:
            pieces = []
            while length is None or length > 0:
                wanted = READ_BYTES if length is None else min(length, READ_BYTES)
                piece = self.pread(handle, offset, wanted)
                if not piece:
                    break
                pieces.append(piece)
                offset += len(piece)
                length = None if length is None else length - len(piece)
            return b"".join(pieces)
        finally:
            self.close_file(handle)

    def write(self, path: str, data: bytes) -> None:
        """By OPEN, SETATTR, WRITE and COMMIT; libnfs 4.0 makes new files only with O_CREAT."""
        try:
            self._write(path, os.O_RDWR | os.O_TRUNC, 0, data)
        except FileNotFoundError:
            self._write(path, os.O_RDWR | os.O_CREAT, 0, data)

    def write_at(self, path: str, offset: int, data: bytes) -> None:
        """By OPEN and WRITE."""
        self._write(path, os.O_RDWR, offset, data)

    def _write(self, path: str, flags: int, offset: int, data: bytes) -> None:
        handle = self.open(path, flags)
        try:
            self.pwrite(handle, offset, data)
            self._call("fsync", handle, path=path)
        finally:
            self.close_file(handle)

    def truncate(self, path: str, size_bytes: int) -> None:
        """By SETATTR."""
        self._call("truncate", self._path(path), c_uint64(size_bytes), path=path)

    def mkdir(self, path: str) -> None:
        """By MKDIR, or CREATE."""
        self._call("mkdir2", self._path(path), 0o755, path=path)

    def rmdir(self, path: str) -> None:
        """By RMDIR, or REMOVE."""
        self._call("rmdir", self._path(path), path=path)

    def remove(self, path: str) -> None:
        """By REMOVE."""
        self._call("unlink", self._path(path), path=path)

    def rename(self, old: str, new: str) -> None:
        """By RENAME."""
        self._call("rename", self._path(old), self._path(new), path=old)

    def link(self, path: str, name: str) -> None:
        """One more name, by LINK."""
        self._call("link", self._path(path), self._path(name), path=path)

    def symlink(self, target: str, name: str) -> None:
        """By SYMLINK, or CREATE."""
        self._call("symlink", c_char_p(os.fsencode(target)), self._path(name), path=name)

    def mknod(self, path: str, mode: int) -> None:
        """By MKNOD, or CREATE."""
        self._call("mknod", self._path(path), mode, 0, path=path)

    def chmod(self, path: str, mode: int) -> None:
        """By SETATTR."""
        self._call("chmod", self._path(path), mode, path=path)

    def chown(self, path: str, uid: int, gid: int) -> None:
        """By SETATTR."""
        self._call("chown", self._path(path), uid, gid, path=path)

    def utime(self, path: str, mtime_s: int) -> None:
        """By SETATTR."""
        times = (_Timeval * 2)(_Timeval(mtime_s), _Timeval(mtime_s))
        self._call("utimes", self._path(path), times, path=path)

    def lock_shared(self, path: str) -> None:
        """By LOCK, of NFSv4; by a client of its own, since libnfs 4.0 loses count after that."""
        with NfsClient(**self._again) as own:
            handle = own.open(path, os.O_RDONLY)
            for kind in (0, 2):  # F_RDLCK, F_UNLCK
                lock = _Lock(l_type=kind, l_len=_WHOLE)
                own._call("fcntl", handle, _F_SETLK, byref(lock), path=path)
