"""A name is any bytes but NUL and the slash, up to 255 of them."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tests.support.targets import Target

NAMES = [
    b"plain",
    b"with space",
    b" leading and trailing ",
    b"new\nline",
    b"tab\tbell\a",
    b"quote\"'back\\slash",
    b"\xff\xfe not UTF-8",
    b"\x80",
    "Messung 5 µm.h5".encode(),
    "e\u0301".encode(),  # not normalised
    "\u00e9".encode(),
    b"-rf",
    b"...",
    b"..data",
    b".hidden",
    b"trailing dot.",
    b"CON",
    b"#?*:<>|",
    b"%41",
    b"x" * 255,
    b"\xe2\x82\xac" * 85,
    b"\n" * 255,
]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_name_is_kept_byte_for_byte(target: Target, name: bytes) -> None:
    root, store = os.fsencode(target.root), os.fsencode(target.store)
    path = root + b"/" + name
    with open(path, "wb") as file:
        file.write(b"content")
    assert os.listdir(root) == [name]
    assert os.listdir(store) == [name]
    with open(store + b"/" + name, "rb") as file:
        assert file.read() == b"content"
    os.symlink(name, root + b"/link")
    assert os.readlink(root + b"/link") == name
    os.rename(path, root + b"/other")
    os.rename(root + b"/other", path)
    os.setxattr(path, b"user.name", name)
    assert os.getxattr(path, b"user.name") == name
    os.unlink(path)
    os.mkdir(path)
    os.rmdir(path)
    assert os.listdir(root) == [b"link"]


def test_names_that_look_alike_are_different(root: Path) -> None:
    for name in ("e\u0301", "\u00e9", "A", "a"):
        (root / name).write_text(name)
    assert len(list(root.iterdir())) == 4
    assert (root / "e\u0301").read_text() == "e\u0301"


@pytest.mark.parametrize("call", [os.mkdir, os.lstat, os.unlink, os.rmdir, os.mkfifo, os.listxattr])
def test_256_bytes_are_too_long(root: Path, call: object) -> None:
    assert callable(call)
    with pytest.raises(OSError) as refused:
        call(root / ("x" * 256))
    assert refused.value.errno == errno.ENAMETOOLONG


def test_256_bytes_are_too_long_for_calls_with_two_names(root: Path) -> None:
    (root / "file").touch()
    for call in (os.link, os.rename, os.symlink):
        with pytest.raises(OSError) as refused:
            call(root / "file", root / ("x" * 256))
        assert refused.value.errno == errno.ENAMETOOLONG
    with pytest.raises(OSError) as refused:
        os.open(root / ("x" * 256), os.O_CREAT | os.O_WRONLY)
    assert refused.value.errno == errno.ENAMETOOLONG
    assert [entry.name for entry in root.iterdir()] == ["file"]


def test_statfs_says_how_long_a_name_may_be(root: Path) -> None:
    assert os.statvfs(root).f_namemax == 255
