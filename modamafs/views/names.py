"""Names of entries that are made of what people wrote: safe in Windows, in a URL, in a shell."""

from __future__ import annotations

import hashlib
import re

LONGEST_BYTES = 255
_UNSAFE = re.compile(r"""[/\\:*?"<>|#%]""")
_DEVICES = re.compile(r"(?:con|prn|aux|nul|com\d|lpt\d)(?:\..*)?", re.IGNORECASE)


def safe(text: str) -> str:
    r"""A name for a text, never empty, of at most 255 bytes.

    ``/ \ : * ? " < > | # %``, what can't be printed, and spaces and dots at both ends become ``_``.
    Two texts can have the same name; where it is too long, it ends in a hash of the text.
    """
    name = "".join(letter if letter.isprintable() else "_" for letter in text)
    name = _UNSAFE.sub("_", name)
    name = re.sub(r"^[. ]+|[. ]+$", lambda ends: "_" * len(ends[0]), name) or "_"
    if _DEVICES.fullmatch(name):
        name = f"_{name}"
    return shortened(name, text)


def joined(*names: str) -> str:
    """One name for several, with ``~`` between them; within one of them, ``%7E`` stands for it.

    Other names give another one; in what is too long a hash, after ``~~``, sees to that. The names
    are those of files, not empty, and otherwise stay as they are (surrogateescape).
    """
    name = "~".join(name.replace("%7E", "%257E").replace("~", "%7E") for name in names)
    return shortened(name, name)


def shortened(name: str, text: str) -> str:
    """At most 255 bytes of a name; if it is longer, a hash of ``text`` is its end."""
    if _size(name) <= LONGEST_BYTES:
        return name
    digest = hashlib.blake2s(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
    room = LONGEST_BYTES - len(digest) - 2
    while _size(name) > room:
        over = _size(name) - room
        name = name[: -max(1, over // 4)]
    return f"{name}~~{digest}"


def _size(name: str) -> int:
    return len(name.encode("utf-8", "surrogateescape"))
