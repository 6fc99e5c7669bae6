"""Who may do what: owners, groups (also supplementary ones), directories' bits, ACLs."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.targets import Target
from tests.support.users import ALICE, BOB, ROOT, STRANGER, TEAM, User, as_user


def mode(path: Path) -> int:
    """The permission bits, set-id bits and sticky bit."""
    return stat.S_IMODE(path.lstat().st_mode)


def owner(path: Path) -> tuple[int, int]:
    """User and group."""
    status = path.lstat()
    return status.st_uid, status.st_gid


def own(path: Path, user: User | int, group: int, bits: int) -> None:
    """Give ``path`` this owner, group and mode."""
    os.chown(path, user.uid if isinstance(user, User) else user, group)
    path.chmod(bits)


def set_acl(path: Path, *entries: str) -> None:
    """``setfacl -m``."""
    subprocess.run(["setfacl", "-m", ",".join(entries), path], check=True)


def get_acl(path: Path) -> list[str]:
    """The entries that ``getfacl`` shows, with numbers for names."""
    shown = subprocess.run(
        ["getfacl", "-cnpE", path], check=True, capture_output=True, text=True
    ).stdout
    return shown.split()


def refused(user: User, call: Callable[..., object], *arguments: object) -> None:
    """The user is told EACCES or EPERM."""
    with pytest.raises(PermissionError):
        as_user(user, call, *arguments)


# owner, group, others


def test_what_a_user_creates_is_the_users(target: Target) -> None:
    root = target.root
    root.chmod(0o777)

    def create_everything() -> None:
        (root / "file").touch()
        (root / "directory").mkdir()
        (root / "link").symlink_to("file")
        os.mkfifo(root / "fifo")
        os.mknod(root / "node", stat.S_IFREG | 0o644)
        os.link(root / "file", root / "hard")

    as_user(ALICE, create_everything)
    assert len(list(root.iterdir())) == 6
    for path in root.iterdir():
        assert owner(path) == (ALICE.uid, ALICE.gid)
        assert owner(target.on_store(path)) == (ALICE.uid, ALICE.gid)


def test_modes_decide_for_owner_group_and_others(root: Path) -> None:
    path = root / "file"
    path.write_bytes(b"content")
    own(path, ALICE, TEAM, 0o640)
    as_user(ALICE, path.write_bytes, b"changed")
    assert as_user(BOB, path.read_bytes) == b"changed"
    refused(BOB, path.write_bytes, b"no")
    refused(STRANGER, path.read_bytes)
    own(path, ALICE, TEAM, 0o007)  # the owner's class comes first
    refused(ALICE, path.read_bytes)
    refused(BOB, path.read_bytes)
    assert as_user(STRANGER, path.read_bytes) == b"changed"


def test_a_supplementary_group_lets_write_and_create(target: Target) -> None:
    directory = target.root / "team"
    directory.mkdir()
    own(directory, 0, TEAM, 0o775)
    as_user(ALICE, (directory / "file").write_bytes, b"content")
    assert owner(directory / "file") == (ALICE.uid, ALICE.gid)
    own(directory / "file", ALICE, TEAM, 0o664)
    as_user(BOB, (directory / "file").write_bytes, b"changed")
    as_user(BOB, (directory / "file").rename, directory / "renamed")
    as_user(BOB, (directory / "renamed").unlink)
    refused(STRANGER, (directory / "file").touch)
    refused(STRANGER, (directory / "new").mkdir)


def test_many_supplementary_groups(root: Path) -> None:
    """More than the 32 that some interfaces can carry."""
    user = User(2003, 2003, tuple(range(5000, 5100)))
    (root / "directory").mkdir()
    own(root / "directory", 0, 5099, 0o770)
    as_user(user, (root / "directory" / "file").touch)
    assert owner(root / "directory" / "file") == (2003, 2003)


def test_a_directory_without_x_hides_its_entries_and_without_r_its_list(root: Path) -> None:
    (root / "inner").mkdir()
    (root / "inner" / "file").write_text("content")
    (root / "inner" / "file").chmod(0o644)
    (root / "inner").chmod(0o744)
    assert as_user(ALICE, os.listdir, root / "inner") == ["file"]
    refused(ALICE, (root / "inner" / "file").stat)
    (root / "inner").chmod(0o711)
    refused(ALICE, os.listdir, root / "inner")
    assert as_user(ALICE, (root / "inner" / "file").read_text) == "content"
    (root / "inner").chmod(0o755)
    refused(ALICE, (root / "inner" / "new").touch)
    refused(ALICE, (root / "inner" / "file").unlink)
    refused(ALICE, (root / "inner" / "file").rename, root / "inner" / "new")


def test_others_are_refused_everything_that_changes(root: Path) -> None:
    (root / "file").write_text("content")
    (root / "directory").mkdir()
    for call in (
        lambda: (root / "file").write_text("no"),
        lambda: (root / "file").unlink(),
        lambda: (root / "file").chmod(0o777),
        lambda: os.chown(root / "file", ALICE.uid, -1),
        lambda: os.truncate(root / "file", 0),
        lambda: os.setxattr(root / "file", "user.test", b"no"),
        lambda: (root / "new").touch(),
        lambda: (root / "new").mkdir(),
        lambda: (root / "new").symlink_to("x"),
        lambda: os.mkfifo(root / "new"),
        lambda: (root / "directory").rmdir(),
        lambda: (root / "file").rename(root / "new"),
        lambda: (os.listxattr(root / "file") and None) or os.utime(root / "file"),
    ):
        refused(STRANGER, call)
    assert sorted(path.name for path in root.iterdir()) == ["directory", "file"]
    assert (root / "file").read_text() == "content"


def test_permissions_follow_a_chmod_at_once(root: Path) -> None:
    (root / "file").write_text("content")
    for bits, allowed in [(0o600, False), (0o604, True), (0o600, False), (0o644, True)]:
        (root / "file").chmod(bits)
        if allowed:
            assert as_user(ALICE, (root / "file").read_text) == "content"
        else:
            refused(ALICE, (root / "file").read_text)


def test_an_open_descriptor_outlives_the_permission(root: Path) -> None:
    (root / "file").touch()
    (root / "file").chmod(0o666)

    def write_after_chmod() -> None:
        fd = os.open(root / "file", os.O_RDWR)
        as_root_done.wait()
        os.write(fd, b"still allowed")
        os.close(fd)

    class Later:
        """The chmod, by root: the child can't, so the file's own owner does."""

        def wait(self) -> None:
            (root / "file").chmod(0)

    as_root_done = Later()
    os.chown(root / "file", ALICE.uid, ALICE.gid)
    as_user(ALICE, write_after_chmod)
    assert (root / "file").read_bytes() == b"still allowed"


# directories' bits


def test_a_setgid_directory_hands_its_group_on(target: Target) -> None:
    team = target.root / "team"
    team.mkdir()
    own(team, 0, TEAM, 0o2775)

    def create() -> None:
        (team / "file").touch()
        (team / "directory" / "inner").mkdir(parents=True)
        (team / "link").symlink_to("file")
        os.mkfifo(team / "fifo")

    as_user(BOB, create)
    for name in ("file", "directory", "directory/inner", "link", "fifo"):
        assert owner(team / name) == (BOB.uid, TEAM), name
        assert owner(target.on_store(team / name)) == (BOB.uid, TEAM), name
    assert mode(team / "directory") == 0o2755
    assert mode(team / "directory" / "inner") == 0o2755
    assert mode(team / "file") == 0o644


def test_a_setgid_directory_of_a_foreign_group(root: Path) -> None:
    """Who is no member creates for the group all the same; the set-group-id bit is not his."""
    (root / "foreign").mkdir()
    own(root / "foreign", 0, TEAM, 0o2777)

    def create() -> None:
        os.close(os.open(root / "foreign" / "file", os.O_CREAT | os.O_WRONLY, 0o2755))
        (root / "foreign" / "directory").mkdir()

    as_user(STRANGER, create)
    assert owner(root / "foreign" / "file") == (STRANGER.uid, TEAM)
    assert mode(root / "foreign" / "file") == 0o755
    assert mode(root / "foreign" / "directory") == 0o2755


def test_in_a_sticky_directory_nobody_removes_what_is_anothers(root: Path) -> None:
    """The usual project directory: drwxrwsr-t."""
    shared = root / "shared"
    shared.mkdir()
    own(shared, 0, TEAM, 0o3775)
    assert stat.filemode(shared.stat().st_mode) == "drwxrwsr-t"
    as_user(ALICE, (shared / "alices").write_text, "content")
    as_user(ALICE, (shared / "directory").mkdir)
    refused(BOB, (shared / "alices").unlink)
    refused(BOB, (shared / "directory").rmdir)
    refused(BOB, (shared / "alices").rename, shared / "bobs")
    as_user(BOB, (shared / "bobs").touch)
    refused(BOB, (shared / "bobs").rename, shared / "alices")
    as_user(BOB, (shared / "bobs").unlink)
    as_user(ALICE, (shared / "alices").unlink)
    as_user(ALICE, (shared / "directory").rmdir)


def test_root_without_a_group_still_may_everything(root: Path) -> None:
    (root / "private").mkdir()
    own(root / "private", ALICE, ALICE.gid, 0o700)
    as_user(ALICE, (root / "private" / "file").touch)
    assert as_user(ROOT, os.listdir, root / "private") == ["file"]
    as_user(ROOT, (root / "private" / "file").unlink)


# the umask and default ACLs


@pytest.mark.parametrize(
    ("umask", "file", "directory"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700)]
)
def test_the_umask(root: Path, umask: int, file: int, directory: int) -> None:
    root.chmod(0o777)

    def create() -> None:
        os.umask(umask)
        os.close(os.open(root / "file", os.O_CREAT | os.O_WRONLY, 0o666))
        os.mkdir(root / "directory", 0o777)
        os.mkfifo(root / "fifo", 0o666)
        os.mknod(root / "node", stat.S_IFREG | 0o666)

    as_user(ALICE, create)
    assert [mode(root / name) for name in ("file", "directory", "fifo", "node")] == [
        file,
        directory,
        file,
        file,
    ]


def test_a_default_acl_beats_the_umask(target: Target) -> None:
    team = target.root / "team"
    team.mkdir()
    own(team, 0, TEAM, 0o2775)
    set_acl(team, "d:u::rwx", "d:g::rwx", "d:o::r-x", f"d:u:{BOB.uid}:rwx", "d:m::rwx")

    def create() -> None:
        os.umask(0o077)
        os.close(os.open(team / "file", os.O_CREAT | os.O_WRONLY, 0o666))
        os.mkdir(team / "directory", 0o777)
        os.mknod(team / "node", stat.S_IFREG | 0o660)
        os.mkfifo(team / "fifo", 0o666)

    as_user(ALICE, create)
    assert mode(team / "file") == 0o664
    assert mode(team / "directory") == 0o2775
    assert mode(team / "node") == 0o660
    assert mode(team / "fifo") == 0o664
    assert get_acl(team / "file") == [
        "user::rw-",
        f"user:{BOB.uid}:rwx",
        "group::rwx",
        "mask::rw-",
        "other::r--",
    ]
    assert get_acl(team / "directory") == [
        "user::rwx",
        f"user:{BOB.uid}:rwx",
        "group::rwx",
        "mask::rwx",
        "other::r-x",
        "default:user::rwx",
        f"default:user:{BOB.uid}:rwx",
        "default:group::rwx",
        "default:mask::rwx",
        "default:other::r-x",
    ]
    for name in ("file", "directory", "node", "fifo"):
        assert get_acl(team / name) == get_acl(target.on_store(team / name))
    as_user(BOB, (team / "file").write_text, "by the ACL")
    as_user(BOB, (team / "directory" / "inner").touch)


def test_a_minimal_default_acl_beats_the_umask_too(root: Path) -> None:
    set_acl(root, "d:u::rwx", "d:g::rwx", "d:o::---")
    root.chmod(0o777)

    def create() -> None:
        os.umask(0o022)
        os.close(os.open(root / "file", os.O_CREAT | os.O_WRONLY, 0o666))

    as_user(ALICE, create)
    assert mode(root / "file") == 0o660
    assert "system.posix_acl_access" not in os.listxattr(root / "file")


# access ACLs


def test_an_acl_grants_and_denies(root: Path) -> None:
    path = root / "file"
    path.write_text("content")
    own(path, 0, 0, 0o644)
    set_acl(path, f"u:{ALICE.uid}:rw", f"u:{BOB.uid}:---", f"g:{TEAM}:r")
    as_user(ALICE, path.write_text, "by the ACL")
    refused(BOB, path.read_text)
    assert as_user(STRANGER, path.read_text) == "by the ACL"
    set_acl(path, "m::r")
    refused(ALICE, path.write_text, "masked")
    assert mode(path) == 0o644


def test_an_acl_of_a_group_counts_for_its_supplementary_members(root: Path) -> None:
    (root / "directory").mkdir()
    own(root / "directory", 0, 0, 0o700)
    refused(ALICE, os.listdir, root / "directory")
    set_acl(root / "directory", f"g:{TEAM}:rwx")
    as_user(ALICE, (root / "directory" / "file").touch)
    as_user(BOB, (root / "directory" / "file").unlink)
    refused(STRANGER, os.listdir, root / "directory")


def test_an_acl_and_the_mode_follow_each_other(target: Target) -> None:
    path = target.root / "file"
    path.touch()
    path.chmod(0o600)
    set_acl(path, f"u:{ALICE.uid}:rw")
    assert mode(path) == 0o660  # the mask
    path.chmod(0o640)
    expected = ["user::rw-", f"user:{ALICE.uid}:rw-", "group::---", "mask::r--", "other::---"]
    assert get_acl(path) == expected
    assert get_acl(target.on_store(path)) == expected
    subprocess.run(["setfacl", "-b", path], check=True)
    assert "system.posix_acl_access" not in os.listxattr(path)
    assert mode(path) == 0o600


def test_an_acl_that_says_no_more_than_the_mode_is_the_mode(root: Path) -> None:
    (root / "file").touch()
    set_acl(root / "file", "u::rwx", "g::r-x", "o::---")
    assert mode(root / "file") == 0o750
    assert "system.posix_acl_access" not in os.listxattr(root / "file")


def test_acls_that_are_refused(root: Path) -> None:
    (root / "file").touch()
    (root / "directory").mkdir()
    set_acl(root / "directory", "d:u::rwx", "d:g::rx", "d:o::---")
    default = os.getxattr(root / "directory", "system.posix_acl_default")
    with pytest.raises(OSError) as error:
        os.setxattr(root / "file", "system.posix_acl_access", b"nonsense")
    assert error.value.errno in (errno.EINVAL, errno.EOPNOTSUPP)
    with pytest.raises(PermissionError):
        os.setxattr(root / "file", "system.posix_acl_default", default)
    refused(ALICE, os.setxattr, root / "directory", "system.posix_acl_default", default)
    refused(ALICE, os.removexattr, root / "directory", "system.posix_acl_default")


def test_chmod_by_a_stranger_to_the_group_takes_setgid_with_an_acl(root: Path) -> None:
    """An ACL sets the mode, and must not smuggle in the set-group-id bit."""
    (root / "file").touch()
    own(root / "file", STRANGER, TEAM, 0o2755)
    as_user(STRANGER, set_acl, root / "file", "u::rwx", "g::rwx", "o::---")
    assert mode(root / "file") == 0o770
