"""A whole directory tree as a value that can be compared."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Entry = dict[str, Any]

IDENTITY = ("ino", "mtime_ns", "ctime_ns")
"""What two copies of a tree do not share, and two views of one tree do."""


def snapshot(root: str | bytes | os.PathLike[str]) -> dict[bytes, Entry]:
    """Everything below ``root``, by relative path: attributes, content, links, xattrs.

    Leaves out what belongs to modamafs. Access times are left out, since looking changes them.
    """
    tree: dict[bytes, Entry] = {}
    top = os.fsencode(root)
    for directory, _, _ in os.walk(top):
        tree[os.path.relpath(directory, top)] = _entry(directory)
        for name in os.listdir(directory):
            path = os.path.join(directory, name)
            if name != b".modama" and not stat.S_ISDIR(os.lstat(path).st_mode):
                tree[os.path.relpath(path, top)] = _entry(path)
    return tree


def _entry(path: bytes) -> Entry:
    status = os.lstat(path)
    entry: Entry = {
        "mode": f"{status.st_mode:o}",
        "nlink": status.st_nlink,
        "owner": (status.st_uid, status.st_gid),
        "ino": status.st_ino,
        "mtime_ns": status.st_mtime_ns,
        "ctime_ns": status.st_ctime_ns,
        "rdev": status.st_rdev,
        "xattrs": {
            name: os.getxattr(path, name, follow_symlinks=False)
            for name in sorted(os.listxattr(path, follow_symlinks=False))
            if ".modama." not in name
        },
    }
    if stat.S_ISREG(status.st_mode):
        entry["size"] = status.st_size
        with open(path, "rb") as file:
            entry["content"] = file.read()
    elif stat.S_ISLNK(status.st_mode):
        entry["size"] = status.st_size
        entry["target"] = os.readlink(path)
    return entry


def remove(root: Path) -> None:
    """Everything, also what is sealed."""
    subprocess.run(["chattr", "-R", "-f", "-i", root], check=False, capture_output=True)
    subprocess.run(["rm", "-rf", root], check=True)


def differences(
    one: dict[bytes, Entry], other: dict[bytes, Entry], ignoring: Iterable[str] = ()
) -> list[str]:
    """What differs, a line each; [] when the trees are equal."""
    found = []
    for path in sorted(one.keys() | other.keys()):
        if path not in one or path not in other:
            found.append(f"{path!r}: only in {'the first' if path in one else 'the second'}")
            continue
        for key in sorted((one[path].keys() | other[path].keys()) - set(ignoring)):
            first, second = one[path].get(key), other[path].get(key)
            if first != second:
                found.append(f"{path!r}: {key}: {shortened(first)} != {shortened(second)}")
    return found


def shortened(value: object) -> str:
    """Its ``repr``, cut where nobody would read on."""
    text = repr(value)
    return text if len(text) < 200 else f"{text[:200]}… ({len(text)} characters)"
