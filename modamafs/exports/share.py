"""A directory of a mount that a server hands on to others, under a name."""

from __future__ import annotations

import re
import uuid
import zlib
from pathlib import Path

import msgspec

from modamafs.errors import InvalidRequest

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
RESERVED_NAMES = ("global", "homes", "printers", "ipc", "admin")
"""What Samba means something else by."""
_NO_PATH = re.compile(r'[\x00-\x1f\x7f"%\\;]')
"""What some server's configuration gives another meaning, and has no way to quote."""
_NAMESPACE = uuid.UUID("0d9e59a1-3bd1-5b47-8c4e-8d8b33b6a1f4")


class Share(msgspec.Struct, frozen=True, kw_only=True):
    """What is exported. ``share`` checks what people give."""

    name: str
    path: Path
    """Absolute, as seen through the mount: its root, or a directory in it."""
    mountpoint: Path
    read_only: bool = False

    @property
    def number(self) -> int:
        """From 1 to 65535: the same for the same name, as NFS handles have to be."""
        return zlib.crc32(self.name.encode()) % 65535 + 1

    @property
    def uuid(self) -> uuid.UUID:
        """The same for the same name and path."""
        return uuid.uuid5(_NAMESPACE, f"{self.name}\0{self.path}")


def share(name: str, path: Path, mountpoint: Path, *, read_only: bool = False) -> Share:
    """A share that every server's configuration can hold.

    Raises InvalidRequest (EINVAL) for a name or a path that one of them can't.
    """
    if not NAME.fullmatch(name) or name.lower() in RESERVED_NAMES:
        raise InvalidRequest(
            f"{name!r} is no name for a share: take up to 64 letters, digits, '.', '_' and '-'"
            + (f", and none of {', '.join(RESERVED_NAMES)}" if NAME.fullmatch(name) else "")
        )
    text = str(path)
    if _NO_PATH.search(text) or not text.isprintable() or text != text.strip():
        raise InvalidRequest(
            f"{text!r} can't be written into a server's configuration: "
            "export a directory whose path has no quotes, '%', ';', backslashes or line breaks"
        )
    return Share(name=name, path=path, mountpoint=mountpoint, read_only=read_only)
