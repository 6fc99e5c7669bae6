"""A client of SMB 3 without any mount: smbprotocol, which asks as Windows does.

Needs the extra ``exports``.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from modamafs.errors import NotInstalled
from modamafs.exports.client import Client, Seen, error

READ_ONLY, DIRECTORY = 0x1, 0x10
DELETE = 0x10000
OPEN = 1
_SHARE_ALL = 0x7
_SHARED, _AT_ONCE, _UNLOCK = 0x1, 0x10, 0x4
_ERRNO = {
    0xC0000022: errno.EACCES,  # ACCESS_DENIED
    0xC0000061: errno.EACCES,  # PRIVILEGE_NOT_HELD
    0xC00000A2: errno.EROFS,  # MEDIA_WRITE_PROTECTED
    0xC0000121: errno.EACCES,  # CANNOT_DELETE
    0xC000006D: errno.EACCES,  # LOGON_FAILURE
    0xC00000CC: errno.ENOENT,  # BAD_NETWORK_NAME
    0xC0000034: errno.ENOENT,  # OBJECT_NAME_NOT_FOUND
    0xC000003A: errno.ENOENT,  # OBJECT_PATH_NOT_FOUND
    0xC0000035: errno.EEXIST,  # OBJECT_NAME_COLLISION
    0xC0000043: errno.EBUSY,  # SHARING_VIOLATION
    0xC0000054: errno.EAGAIN,  # FILE_LOCK_CONFLICT
    0xC0000055: errno.EAGAIN,  # LOCK_NOT_GRANTED
    0xC00000BA: errno.EISDIR,  # FILE_IS_A_DIRECTORY
    0xC0000103: errno.ENOTDIR,  # NOT_A_DIRECTORY
    0xC0000101: errno.ENOTEMPTY,  # DIRECTORY_NOT_EMPTY
    0xC000007F: errno.ENOSPC,  # DISK_FULL
    0xC0000033: errno.EINVAL,  # OBJECT_NAME_INVALID
    0xC00000BB: errno.EOPNOTSUPP,  # NOT_SUPPORTED
}
Result = TypeVar("Result")


class SmbClient(Client):
    """As a user, with a password."""

    protocol = "SMB"

    def __init__(self, server: str, port: int, share: str, user: str, password: str) -> None:
        """OSError: the server refuses. NotInstalled: smbprotocol is not there."""
        try:
            import smbclient
        except ModuleNotFoundError as missing:
            raise NotInstalled(
                f"{missing.name} is not installed: 'pip install modamafs[exports]'"
            ) from missing
        self._smb = smbclient
        self._root = rf"\\{server}\{share}"
        self._with: dict[str, Any] = {
            "username": user,
            "password": password,
            "port": port,
            "connection_cache": {},
        }
        self._server = server
        self._ask("", lambda: smbclient.register_session(server, **self._with))

    def close(self) -> None:
        """Hang up, whatever the server says to that."""
        from smbprotocol.exceptions import SMBException

        connections = self._with["connection_cache"]
        while connections:
            _, connection = connections.popitem()
            try:
                connection.disconnect()
            except (SMBException, OSError):
                connection.disconnect(close=False)  # without a word

    def path(self, path: str) -> str:
        """As Windows writes it."""
        return self._root + "\\" + path.replace("/", "\\")

    def _ask(self, path: str, call: Callable[[], Result]) -> Result:
        from smbprotocol.exceptions import (
            SMBAuthenticationError,
            SMBException,
            SMBOSError,
            SMBResponseException,
        )

        try:
            return call()
        except (SMBOSError, SMBResponseException) as refused:
            status = refused.ntstatus if isinstance(refused, SMBOSError) else refused.status
            raise error(_ERRNO.get(status, errno.EIO), f"NT status {status:#x}", path) from refused
        except SMBAuthenticationError as refused:
            raise error(errno.EACCES, str(refused).splitlines()[0], path) from refused
        except (SMBException, ValueError) as failed:
            if isinstance(failed.__cause__, OSError):  # of connecting
                raise failed.__cause__ from failed
            raise error(errno.EIO, str(failed).splitlines()[0], path) from failed

    def listing(self, path: str = "") -> list[str]:
        """By QUERY_DIRECTORY."""
        return sorted(self._ask(path, lambda: self._smb.listdir(self.path(path), **self._with)))

    def stat(self, path: str) -> Seen:
        """By QUERY_INFO."""
        found = self._ask(path, lambda: self._smb.stat(self.path(path), **self._with))
        attributes = found.st_file_attributes
        return Seen(
            bool(attributes & DIRECTORY),
            found.st_size,
            found.st_mtime_ns,
            read_only=bool(attributes & READ_ONLY),
        )

    def open(self, path: str, mode: str, **options: Any) -> Any:
        """A raw file object, shared with everybody; ``mode`` as of open()."""
        return self._ask(
            path,
            lambda: self._smb.open_file(
                self.path(path), mode, buffering=0, share_access="rwd", **options, **self._with
            ),
        )

    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        """By READ."""
        with self.open(path, "rb") as file:

            def read() -> bytes:
                file.seek(offset)
                if length is None:
                    return bytes(file.readall())
                pieces, left = [], length
                while left and (piece := file.read(left)):
                    pieces.append(piece)
                    left -= len(piece)
                return b"".join(pieces)

            return self._ask(path, read)

    def write(self, path: str, data: bytes) -> None:
        """By CREATE that overwrites, WRITE and CLOSE."""
        self._write(path, "wb", 0, data)

    def write_at(self, path: str, offset: int, data: bytes) -> None:
        """By CREATE that opens, and WRITE."""
        self._write(path, "r+b", offset, data)

    def _write(self, path: str, mode: str, offset: int, data: bytes) -> None:
        with self.open(path, mode) as file:

            def write() -> None:
                file.seek(offset)
                left = memoryview(data)
                while left:
                    left = left[file.write(left) :]

            self._ask(path, write)

    def truncate(self, path: str, size_bytes: int) -> None:
        """By SET_INFO."""
        self._ask(path, lambda: self._smb.truncate(self.path(path), size_bytes, **self._with))

    def mkdir(self, path: str) -> None:
        """By CREATE."""
        self._ask(path, lambda: self._smb.mkdir(self.path(path), **self._with))

    def rmdir(self, path: str) -> None:
        """By a handle that deletes when it is closed."""
        self._ask(path, lambda: self._smb.rmdir(self.path(path), **self._with))

    def remove(self, path: str) -> None:
        """By a handle that deletes when it is closed."""
        self._ask(path, lambda: self._smb.remove(self.path(path), **self._with))

    def rename(self, old: str, new: str) -> None:
        """By SET_INFO, replacing what is there."""
        # smbclient.replace() opens what is there to execute it, and few files are programs.
        from smbprotocol.file_info import FileRenameInformation

        renaming = FileRenameInformation()
        renaming["replace_if_exists"] = True
        renaming["file_name"] = new.replace("/", "\\")
        with self.opened(old, DELETE) as opened:
            self.set_info(opened, renaming)

    @contextlib.contextmanager
    def opened(
        self,
        path: str,
        access: int,
        disposition: int = OPEN,
        options: int = 0,
        attributes: int = 0,
    ) -> Iterator[Any]:
        """An entry of any kind, by CREATE, for single requests: smbprotocol's ``Open``.

        ``access``, ``disposition``, ``options`` and ``attributes`` are those of [MS-SMB2] 2.2.13.
        """
        from smbclient._pool import get_smb_tree
        from smbprotocol.open import ImpersonationLevel, Open

        tree, name = self._ask(path, lambda: get_smb_tree(self.path(path), **self._with))
        entry = Open(tree, name)
        self._ask(
            path,
            lambda: entry.create(
                ImpersonationLevel.Impersonation,
                access, attributes, _SHARE_ALL, disposition, options,
            ),
        )  # fmt: skip
        try:
            yield entry
        finally:
            self._ask(path, entry.close)

    def send(self, opened: Any, request: Any) -> Any:
        """One more request about what is open; returns the server's answer to it."""
        tree = opened.tree_connect

        def ask() -> Any:
            sent = opened.connection.send(request, tree.session.session_id, tree.tree_connect_id)
            return opened.connection.receive(sent)

        return self._ask(opened.file_name, ask)

    def set_info(self, opened: Any, information: Any) -> None:
        """SET_INFO, of a structure of [MS-FSCC] 2.4."""
        from smbprotocol.open import SMB2SetInfoRequest

        request = SMB2SetInfoRequest()
        request["info_type"] = information.INFO_TYPE
        request["file_info_class"] = information.INFO_CLASS
        request["file_id"] = opened.file_id
        request["buffer"] = information
        self.send(opened, request)

    def utime(self, path: str, mtime_s: int) -> None:
        """By SET_INFO."""
        times = (mtime_s, mtime_s)
        self._ask(path, lambda: self._smb.utime(self.path(path), times, **self._with))

    def lock_shared(self, path: str) -> None:
        """By LOCK."""
        from smbprotocol.open import SMB2LockElement, SMB2LockRequest

        with self.open(path, "rb") as file:
            for flags in (_SHARED | _AT_ONCE, _UNLOCK):
                element = SMB2LockElement()
                element["offset"] = 0
                element["length"] = (1 << 63) - 1
                element["flags"] = flags
                request = SMB2LockRequest()
                request["file_id"] = file.fd.file_id
                request["locks"] = [element]
                self.send(file.fd, request)
