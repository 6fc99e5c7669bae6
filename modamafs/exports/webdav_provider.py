"""What WsgiDAV lacks to stand in for Nextcloud: refusals that say so, and moves that never copy.

Loaded by WsgiDAV, by name. Needs the extra ``exports``.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from typing import Any

from wsgidav.dav_error import (
    HTTP_FORBIDDEN,
    HTTP_INTERNAL_ERROR,
    HTTP_SERVICE_UNAVAILABLE,
    DAVError,
)
from wsgidav.fs_dav_provider import FileResource, FilesystemProvider, FolderResource
from wsgidav.mw.base_mw import BaseMiddleware

REFUSALS = (errno.EACCES, errno.EPERM, errno.EROFS)
IN_THE_WAY = (errno.ENOTEMPTY, errno.EEXIST, errno.EISDIR, errno.ENOTDIR)
"""What rename(2) says of a target that it does not replace."""


class Refusals(BaseMiddleware):  # type: ignore[misc]
    """What the file system refuses is 403, and no error of the server."""

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        """WSGI."""
        try:
            yield from self.next_app(environ, start_response)
        except (DAVError, OSError) as error:
            cause = error
            if isinstance(error, DAVError) and error.value == HTTP_INTERNAL_ERROR:
                cause = error.src_exception
            if not isinstance(cause, OSError) or cause.errno not in REFUSALS:
                raise
            raise DAVError(HTTP_FORBIDDEN, cause.strerror) from error


class _Whole:
    """Moves and removals by rename(2): where that is refused, nothing is copied or removed at all.

    WsgiDAV removes what a move replaces before it tries to move, and a directory entry by entry.
    """

    def _target(self, dest_path: str) -> str:
        provider = self.provider  # type: ignore[attr-defined]
        if provider.readonly:
            raise DAVError(HTTP_FORBIDDEN)
        return str(provider._loc_to_file_path(dest_path, self.environ))  # type: ignore[attr-defined]

    def handle_move(self, dest_path: str) -> bool:
        """See DAVResource.handle_move(): all of it, where something is replaced."""
        source, target = self._file_path, self._target(dest_path)  # type: ignore[attr-defined]
        if not os.path.lexists(target):
            return False
        with _refusals():
            _replace(source, target)
        self.remove_all_locks(recursive=True)  # type: ignore[attr-defined]
        return True

    def move_recursive(self, dest_path: str) -> None:
        """See DAVResource.move_recursive()."""
        with _refusals():
            os.rename(self._file_path, self._target(dest_path))  # type: ignore[attr-defined]

    def copy_move_single(self, dest_path: str, *, is_move: bool) -> None:
        """See DAVResource.copy_move_single()."""
        with _refusals():
            super().copy_move_single(dest_path, is_move=is_move)  # type: ignore[misc]


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """Where WsgiDAV makes an answer of an error itself, and ``Refusals`` sees none."""
    try:
        yield
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
        raise DAVError(HTTP_FORBIDDEN, error.strerror) from error


def _replace(source: str, target: str) -> None:
    """As rename(2), over whatever is there."""
    try:
        os.rename(source, target)
    except OSError as error:
        if error.errno not in IN_THE_WAY:
            raise
    else:
        return
    aside = _put_aside(target)
    try:
        os.rename(source, target)
    except OSError:
        os.rename(aside, target)
        raise
    _remove(aside)


def _put_aside(path: str) -> str:
    """Under another name beside it; refused where it is, or holds, what can't be removed."""
    aside = os.path.join(os.path.dirname(path), f".{uuid.uuid4()}~")
    os.rename(path, aside)
    return aside


def _remove(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        os.unlink(path)


class _File(_Whole, FileResource):  # type: ignore[misc]
    pass


class _Folder(_Whole, FolderResource):  # type: ignore[misc]
    def handle_delete(self) -> bool:
        """See DAVResource.handle_delete()."""
        self.delete()
        return True

    def delete(self) -> None:
        """Not at all where it may not be removed itself: no half of a directory is gone then."""
        if self.provider.readonly or not os.access(self._file_path, os.W_OK):
            raise DAVError(HTTP_FORBIDDEN)
        with _refusals():
            aside = _put_aside(self._file_path)
            try:
                shutil.rmtree(aside)
            except OSError:
                os.rename(aside, self._file_path)
                raise
        self.remove_all_locks(recursive=True)


class Provider(FilesystemProvider):  # type: ignore[misc]
    """The tree below a directory; links that lead out of it are not there.

    While nothing is mounted, or nobody answers there, each request is 503: an empty tree would be
    believed, and synchronized.
    """

    def __init__(self, root_folder: str, *, mountpoint: str, **options: Any) -> None:
        super().__init__(root_folder, **options)
        self._mountpoint = mountpoint

    def get_resource_inst(self, path: str, environ: dict[str, Any]) -> _File | _Folder | None:
        """See DAVProvider.get_resource_inst()."""
        if not os.path.ismount(self._mountpoint):
            raise DAVError(HTTP_SERVICE_UNAVAILABLE, f"nothing is mounted on {self._mountpoint}")
        there = self._loc_to_file_path(path, environ)
        root = self.root_folder_path_real
        if os.path.commonpath([root, os.path.realpath(there)]) != root:
            return None
        if not os.path.exists(there):
            return None
        return (_Folder if os.path.isdir(there) else _File)(path, environ, there)
