"""The two manifests of a sealed directory and its two hashes: how they are written and read.

``NAME.B3SUMS`` has the BLAKE3 hash of every file in ``b3sum`` format, ``NAME.mtree`` the attributes
of every entry in mtree(5) format; both in the order of ``contents``, so that both can be made, and
compared, line by line. Both hashes are defined in ``docs/seals.md``; whatever is changed here has
to be changed there, and gets a new number in ``CONTENT`` or ``ATTRIBUTES``.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from typing import NamedTuple

import xattr
from blake3 import blake3

from modamafs.sealing.contents import Entry

CONTENT = b"modamafs content 1\n"
ATTRIBUTES = b"#mtree v2.0\n# modamafs attributes 1\n"

KINDS = {
    stat.S_IFREG: b"file",
    stat.S_IFDIR: b"dir",
    stat.S_IFLNK: b"link",
    stat.S_IFIFO: b"fifo",
    stat.S_IFSOCK: b"socket",
    stat.S_IFBLK: b"block",
    stat.S_IFCHR: b"char",
}

LEFT_OUT_XATTRS = re.compile(
    rb"(^|.*\.)modama\..*|security\.(selinux|ima|evm)|trusted\.SGI_.*|btrfs\..*"
)
"""Ours, and what belongs to the system that the tree lies on."""


class Line(NamedTuple):
    """What is known of one entry."""

    path: bytes
    """b"" is the directory itself."""
    kind: bytes
    """``KINDS``."""
    digest: str
    """BLAKE3, hexadecimal; "" for what is no regular file."""
    target: bytes
    """Of a symbolic link."""
    attributes: bytes
    """Mode, owner, size, time, device, and the digest of the extended attributes, as mtree has
    them; the same bytes for the same attributes."""


class Hashes:
    """The content hash and the attribute hash, entry by entry."""

    def __init__(self) -> None:
        self._content = blake3(CONTENT)
        self._attributes = blake3(ATTRIBUTES)

    def add(self, line: Line) -> None:
        """The next entry, in the order of ``contents``."""
        if line.path:
            self._content.update(content_record(line))
        self._attributes.update(mtree_lines(line))

    @property
    def content_hash(self) -> str:
        """``blake3:`` and 64 hexadecimal digits."""
        return f"blake3:{self._content.hexdigest()}"

    @property
    def attribute_hash(self) -> str:
        """The same, of the mtree manifest's bytes."""
        return f"blake3:{self._attributes.hexdigest()}"


def content_record(line: Line) -> bytes:
    """What an entry adds to the content hash. Neither paths nor targets can hold a NUL."""
    return b"%s %s\0%s%s\0" % (line.kind, line.path, line.digest.encode(), line.target)


def line_of(entry: Entry, digest: str = "", fd: int | None = None) -> Line:
    """The line of an entry; ``fd`` is a descriptor of a regular file, if there is one already."""
    found = entry.found
    target = b""
    facts = b"mode=%04o uid=%d gid=%d" % (
        stat.S_IMODE(found.st_mode),
        found.st_uid,
        found.st_gid,
    )
    if entry.is_file:
        facts += b" size=%d" % found.st_size
    elif stat.S_ISLNK(found.st_mode):
        target = os.readlink(entry.name, dir_fd=entry.dir_fd)
    elif stat.S_ISBLK(found.st_mode) or stat.S_ISCHR(found.st_mode):
        facts += b" device=native,%d,%d" % (os.major(found.st_rdev), os.minor(found.st_rdev))
    facts += b" time=%d.%09d" % divmod(found.st_mtime_ns, 1_000_000_000)
    facts += _xattrs(entry, fd)
    return Line(entry.path, KINDS[entry.kind], digest, target, facts)


def _xattrs(entry: Entry, fd: int | None) -> bytes:
    """A comment with the digest of the extended attributes; b"" where there are none."""
    place: int | bytes
    if fd is not None:
        place = fd
    else:
        place = b"/proc/self/fd/%d/%s" % (entry.dir_fd, entry.name)
    names = [
        name
        for name in map(os.fsencode, xattr.list(place, nofollow=fd is None))
        if not LEFT_OUT_XATTRS.fullmatch(name)
    ]
    if not names:
        return b""
    hasher = blake3()
    for name in sorted(names):
        value = xattr.get(place, name, nofollow=fd is None)
        hasher.update(b"%s\0%d\0%s" % (name, len(value), value))
    return b"\n# xattrs=%s" % hasher.hexdigest().encode()


# ---- b3sum ---------------------------------------------------------------------------------------


MINUS = b"./-"
"""A file of that name; ``-`` alone is standard input to ``b3sum``."""


def b3sum_line(line: Line) -> bytes:
    """One line as ``b3sum`` prints it: names with a backslash or newline are escaped and marked."""
    path = line.path if line.path != b"-" else MINUS
    if b"\\" in path or b"\n" in path:
        path = path.replace(b"\\", b"\\\\").replace(b"\n", b"\\n")
        return b"\\%s  %s\n" % (line.digest.encode(), path)
    return b"%s  %s\n" % (line.digest.encode(), path)


def parse_b3sum_line(text: bytes) -> tuple[bytes, str]:
    """Path and digest. ValueError: it is no such line."""
    escaped = text.startswith(b"\\")
    digest, separator, path = text[escaped:].rstrip(b"\n").partition(b"  ")
    if not separator or not re.fullmatch(rb"[0-9a-f]{64}", digest) or not path:
        raise ValueError(f"no line of a B3SUMS file: {text[:100]!r}")
    if escaped:
        path = re.sub(rb"\\([\\n])", lambda found: b"\\" if found[1] == b"\\" else b"\n", path)
    return path if path != MINUS else b"-", digest.decode()


# ---- mtree ---------------------------------------------------------------------------------------

_PLAIN = frozenset(range(0x21, 0x7F)) - frozenset(b"\\#=*?[]")


def mtree_lines(line: Line) -> bytes:
    """One entry as mtree(5) has it, extended attributes in a comment below."""
    target = b" link=" + _escape(line.target) if line.target else b""
    name = b"./" + _escape(line.path) if line.path else b"."
    return b"%s type=%s%s %s\n" % (name, line.kind, target, line.attributes)


def parse_mtree(lines: Iterator[bytes]) -> Iterator[Line]:
    """The entries of a manifest that ``mtree_lines`` made (without digests).

    ValueError: it is none of ours.
    """
    last: Line | None = None
    for number, text in enumerate(lines):
        text = text.rstrip(b"\n")
        if text.startswith(b"# xattrs=") and last is not None:
            last = last._replace(attributes=last.attributes + b"\n" + text)
            continue
        if text.startswith(b"#"):
            continue
        if last is not None:
            yield last
        last = _parse_entry(text, number)
    if last is not None:
        yield last


_ENTRY = re.compile(rb"(\.|\./\S+) type=([a-z]+)(?: link=(\S+))? (mode=.*)")


def _parse_entry(text: bytes, number: int) -> Line:
    match = _ENTRY.fullmatch(text)
    if not match:
        raise ValueError(f"line {number + 1} of the mtree file is none of ours: {text[:100]!r}")
    name, kind, target, attributes = match.groups()
    return Line(_unescape(name[2:]), kind, "", _unescape(target or b""), attributes)


def _escape(name: bytes) -> bytes:
    if _SIMPLE.fullmatch(name):
        return name
    return b"".join(bytes((c,)) if c in _PLAIN else b"\\%03o" % c for c in name)


_SIMPLE = re.compile(rb"[A-Za-z0-9_./+,:@%~-]*")


def _unescape(name: bytes) -> bytes:
    if b"\\" not in name:
        return name
    return re.sub(rb"\\([0-7]{3})", lambda found: bytes((int(found[1], 8),)), name)
