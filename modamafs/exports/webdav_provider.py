"""What WsgiDAV lacks to stand in for Nextcloud: refusals that say so, and moves that never copy.

Loaded by WsgiDAV, by name. Needs the extra ``exports``.
"""

from __future__ import annotations

import errno
import os
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


class _Moves:
    """By rename(2) alone: where that is refused, nothing is copied, and nothing removed."""

    def move_recursive(self, dest_path: str) -> None:
        """See DAVResource.move_recursive()."""
        provider = self.provider  # type: ignore[attr-defined]
        if provider.readonly:
            raise DAVError(HTTP_FORBIDDEN)
        target = provider._loc_to_file_path(dest_path, self.environ)  # type: ignore[attr-defined]
        try:
            os.rename(self._file_path, target)  # type: ignore[attr-defined]
        except OSError as error:
            if error.errno not in REFUSALS:
                raise
            raise DAVError(HTTP_FORBIDDEN, error.strerror) from error


class _File(_Moves, FileResource):  # type: ignore[misc]
    pass


class _Folder(_Moves, FolderResource):  # type: ignore[misc]
    def delete(self) -> None:
        """Not at all where it may not be removed itself: no half of a directory is gone then."""
        above = os.path.dirname(self._file_path)
        if not os.access(above, os.W_OK) or not os.access(self._file_path, os.W_OK):
            raise DAVError(HTTP_FORBIDDEN)
        super().delete()


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
