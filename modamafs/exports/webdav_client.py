"""A client of WebDAV servers (WsgiDAV, Nextcloud) without any mount.

Source: RFC 4918.
"""

from __future__ import annotations

import base64
import contextlib
import email.utils
import errno
import http.client
import urllib.parse
import xml.etree.ElementTree as ElementTree

from modamafs.exports.client import Client, Seen, error

_ERRNO = {
    401: errno.EACCES,
    403: errno.EACCES,
    404: errno.ENOENT,
    405: errno.EEXIST,
    409: errno.ENOENT,
    412: errno.EEXIST,
    423: errno.EBUSY,
    507: errno.ENOSPC,
}
TIMEOUT_S = 60.0


class WebDavClient(Client):
    """As a user, with a password."""

    protocol = "WebDAV"

    def __init__(
        self,
        server: str,
        port: int,
        root: str,
        user: str,
        password: str,
        *,
        is_secure: bool = False,
    ) -> None:
        """``root``: the share's path on the server, like "/data"; ``is_secure``: by TLS."""
        kind = http.client.HTTPSConnection if is_secure else http.client.HTTPConnection
        self._connection = kind(server, port, timeout=TIMEOUT_S)
        self._connection.connect()
        self._root = "/" + root.strip("/")
        secret = base64.b64encode(f"{user}:{password}".encode()).decode()
        self._headers = {"Authorization": f"Basic {secret}"}

    def close(self) -> None:
        """Hang up."""
        self._connection.close()

    def url(self, path: str) -> str:
        """The path of an entry on the server."""
        return urllib.parse.quote(f"{self._root}/{path}".rstrip("/"))

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> bytes:
        """One request; returns what the server sent. OSError for a status from 300 on."""
        self._connection.request(method, self.url(path), body, self._headers | (headers or {}))
        answer = self._connection.getresponse()
        content = answer.read()
        if answer.status >= 300:
            number = _ERRNO.get(answer.status, errno.EIO)
            raise error(number, f"HTTP {answer.status} {answer.reason}", path)
        if answer.status == 207 and method != "PROPFIND":  # some part of it was refused
            for element in ElementTree.fromstring(content).iter("{DAV:}status"):
                status = int((element.text or "").split()[1])
                if status >= 300:
                    raise error(_ERRNO.get(status, errno.EIO), f"HTTP {status}", path)
        return content

    def _properties(self, path: str, depth: int) -> dict[str, ElementTree.Element]:
        content = self.request("PROPFIND", path, headers={"Depth": str(depth)})
        found = {}
        for response in ElementTree.fromstring(content).iter("{DAV:}response"):
            href = urllib.parse.unquote(response.findtext("{DAV:}href", "")).rstrip("/")
            found[href] = response
        return found

    def listing(self, path: str = "") -> list[str]:
        """By PROPFIND."""
        own = urllib.parse.unquote(self.url(path))
        return sorted(href.rpartition("/")[2] for href in self._properties(path, 1) if href != own)

    def stat(self, path: str) -> Seen:
        """By PROPFIND."""
        [response] = self._properties(path, 0).values()
        mtime_ns = 0
        with contextlib.suppress(ValueError):
            modified = response.findtext(".//{DAV:}getlastmodified", "")
            mtime_ns = int(email.utils.parsedate_to_datetime(modified).timestamp()) * 10**9
        return Seen(
            response.find(".//{DAV:}resourcetype/{DAV:}collection") is not None,
            int(response.findtext(".//{DAV:}getcontentlength") or 0),
            mtime_ns,
        )

    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        """By GET."""
        if offset == 0 and length is None:
            return self.request("GET", path)
        last = "" if length is None else str(offset + length - 1)
        return self.request("GET", path, headers={"Range": f"bytes={offset}-{last}"})

    def write(self, path: str, data: bytes) -> None:
        """By PUT."""
        self.request("PUT", path, data)

    def mkdir(self, path: str) -> None:
        """By MKCOL."""
        self.request("MKCOL", path)

    def rmdir(self, path: str) -> None:
        """By DELETE, if it is empty."""
        if self.listing(path):
            raise error(errno.ENOTEMPTY, "", path)
        self.request("DELETE", path)

    def remove(self, path: str) -> None:
        """By DELETE, which removes whole directories, too."""
        self.request("DELETE", path)

    def rename(self, old: str, new: str) -> None:
        """By MOVE."""
        self.request("MOVE", old, headers={"Destination": self.url(new), "Overwrite": "T"})

    def copy(self, old: str, new: str) -> None:
        """By COPY."""
        self.request("COPY", old, headers={"Destination": self.url(new), "Overwrite": "T"})
