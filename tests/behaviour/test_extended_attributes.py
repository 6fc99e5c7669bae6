"""Extended attributes, in all namespaces."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tests.support.targets import Target
from tests.support.users import ALICE, BOB, as_user

NAMESPACES = ["user", "trusted", "security"]


def own_names(path: Path) -> list[str]:
    """The attributes that a test has set, sorted."""
    return sorted(name for name in os.listxattr(path) if ".test" in name)


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_set_get_list_and_remove(target: Target, namespace: str) -> None:
    for path in (target.root / "file", target.root / "directory"):
        if path.name == "file":
            path.touch()
        else:
            path.mkdir()
        os.setxattr(path, f"{namespace}.test.one", b"\0 any \xff bytes")
        os.setxattr(path, f"{namespace}.test.two", b"2")
        for seen in (path, target.on_store(path)):
            assert os.getxattr(seen, f"{namespace}.test.one") == b"\0 any \xff bytes"
            assert own_names(seen) == [f"{namespace}.test.one", f"{namespace}.test.two"]
        os.removexattr(path, f"{namespace}.test.one")
        assert own_names(path) == [f"{namespace}.test.two"]
        assert own_names(target.on_store(path)) == [f"{namespace}.test.two"]


def test_create_and_replace(root: Path) -> None:
    path = root / "file"
    path.touch()
    with pytest.raises(OSError) as refused:
        os.setxattr(path, "user.test", b"1", os.XATTR_REPLACE)
    assert refused.value.errno == errno.ENODATA
    os.setxattr(path, "user.test", b"1", os.XATTR_CREATE)
    with pytest.raises(OSError) as refused:
        os.setxattr(path, "user.test", b"2", os.XATTR_CREATE)
    assert refused.value.errno == errno.EEXIST
    assert os.getxattr(path, "user.test") == b"1"
    os.setxattr(path, "user.test", b"2", os.XATTR_REPLACE)
    assert os.getxattr(path, "user.test") == b"2"


def test_a_missing_attribute(root: Path) -> None:
    (root / "file").touch()
    for call in (os.getxattr, os.removexattr):
        with pytest.raises(OSError) as refused:
            call(root / "file", "user.test")
        assert refused.value.errno == errno.ENODATA


@pytest.mark.parametrize("size", [0, 1, 255, 256, 4000])
def test_values_of_any_size(root: Path, size: int) -> None:
    (root / "file").touch()
    value = os.urandom(size)
    os.setxattr(root / "file", "user.test", value)
    assert os.getxattr(root / "file", "user.test") == value


def test_limits(root: Path) -> None:
    (root / "file").touch()
    os.setxattr(root / "file", "user." + "n" * 250, b"longest name")
    assert os.getxattr(root / "file", "user." + "n" * 250) == b"longest name"
    for name, size, expected in [
        ("user." + "n" * 251, 1, errno.ERANGE),
        ("user.test", 65537, errno.E2BIG),
    ]:
        with pytest.raises(OSError) as refused:
            os.setxattr(root / "file", name, bytes(size))
        assert refused.value.errno == expected


def test_unknown_namespaces_are_refused(root: Path) -> None:
    (root / "file").touch()
    for name in ("nonsense.test", "system.test"):
        with pytest.raises(OSError) as refused:
            os.setxattr(root / "file", name, b"1")
        assert refused.value.errno == errno.EOPNOTSUPP


def test_many_attributes(root: Path) -> None:
    (root / "file").touch()
    expected = {f"user.test.{number:02}": str(number).encode() for number in range(50)}
    for name, value in expected.items():
        os.setxattr(root / "file", name, value)
    seen = {name: os.getxattr(root / "file", name) for name in own_names(root / "file")}
    assert seen == expected


def test_attributes_of_a_symbolic_link(root: Path) -> None:
    (root / "file").touch()
    (root / "link").symlink_to("file")
    os.setxattr(root / "link", "trusted.test", b"link", follow_symlinks=False)
    assert own_names(root / "file") == []
    assert os.getxattr(root / "link", "trusted.test", follow_symlinks=False) == b"link"
    with pytest.raises(PermissionError):
        os.setxattr(root / "link", "user.test", b"1", follow_symlinks=False)


def test_user_attributes_need_the_files_permissions(root: Path) -> None:
    path = root / "file"
    path.touch()
    path.chmod(0o640)
    os.chown(path, ALICE.uid, ALICE.gid)
    as_user(ALICE, os.setxattr, path, "user.test", b"1")
    with pytest.raises(PermissionError):
        as_user(BOB, os.setxattr, path, "user.test", b"2")
    with pytest.raises(PermissionError):
        as_user(BOB, os.getxattr, path, "user.test")
    path.chmod(0o440)
    with pytest.raises(PermissionError):
        as_user(ALICE, os.removexattr, path, "user.test")


def test_trusted_and_security_attributes_are_roots(target: Target) -> None:
    path = target.root / "file"
    path.touch()
    os.chown(path, ALICE.uid, ALICE.gid)
    os.setxattr(path, "trusted.test", b"1")
    for name in ("trusted.test", "security.test"):
        with pytest.raises(PermissionError):
            as_user(ALICE, os.setxattr, path, name, b"2")
    if target.fstype != "btrfs":  # which lists them to everybody
        assert "trusted.test" not in as_user(ALICE, os.listxattr, path)
    with pytest.raises(OSError) as refused:
        as_user(ALICE, os.getxattr, path, "trusted.test")
    assert refused.value.errno in (errno.ENODATA, errno.EPERM)
    assert os.getxattr(path, "trusted.test") == b"1"


def test_attributes_stay_with_a_renamed_file_and_its_links(root: Path) -> None:
    (root / "a").touch()
    os.setxattr(root / "a", "user.test", b"1")
    (root / "a").rename(root / "b")
    (root / "c").hardlink_to(root / "b")
    assert os.getxattr(root / "c", "user.test") == b"1"
    os.setxattr(root / "c", "user.test", b"2")
    assert os.getxattr(root / "b", "user.test") == b"2"


@pytest.mark.parametrize("name", ["user.modama.x", "trusted.modama.x"])
def test_names_that_belong_to_modamafs_are_closed(mounted: Target, name: str) -> None:
    path = mounted.root / "file"
    path.touch()
    with pytest.raises(PermissionError):
        os.setxattr(path, name, b"forged")
    assert name not in os.listxattr(mounted.on_store(path))

    os.setxattr(mounted.on_store(path), name, b"genuine")
    (mounted.root / "other").touch()
    os.setxattr(mounted.store / "other", name, b"genuine")
    for seen in (path, mounted.root / "other"):
        assert name not in os.listxattr(seen)
        with pytest.raises(PermissionError):
            os.setxattr(seen, name, b"forged")
        with pytest.raises(PermissionError):
            os.removexattr(seen, name)
        with pytest.raises(OSError) as refused:
            os.getxattr(seen, name)
        assert refused.value.errno in (errno.ENODATA, errno.EPERM, errno.EACCES)
    assert os.getxattr(mounted.on_store(path), name) == b"genuine"
