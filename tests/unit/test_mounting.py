"""What is refused before mounting, the guard, and ``mountinfo``."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from modamafs import mounting
from modamafs.config import Config, MountSpec, mount_spec
from modamafs.errors import MountRefused
from modamafs.mounting import MountInfo

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

MOUNTINFO = rb"""22 27 0:21 / /proc rw,relatime - proc proc rw
36 35 98:0 /mnt1 /mnt\0402\134 rw,noatime master:1 shared:7 - ext3 /dev/root rw,errors=continue
94 27 0:43 / /data rw - fuse.modamafs /srv/a\040b\011c\012\377 rw,user_id=0,allow_other
95 94 0:43 / /data rw - tmpfs - rw
"""


def test_mountinfo_is_unescaped() -> None:
    _, ext3, ours, odd = mounting.parse_mountinfo(MOUNTINFO)
    assert ext3 == MountInfo(36, os.makedev(98, 0), "/mnt 2\\", "ext3", "/dev/root")
    assert ours.source == "/srv/a b\tc\n\udcff"
    assert ours.fstype == mounting.FSTYPE
    assert (odd.fstype, odd.source) == ("tmpfs", "-")


def test_the_newest_mount_is_the_visible_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounting, "mounts", lambda: mounting.parse_mountinfo(MOUNTINFO))
    there = mounting.mounted_at("/data")
    assert there
    assert there.mount_id == 95
    assert mounting.mounted_at("/dat") is None


def test_this_machines_mountinfo_is_understood() -> None:
    assert any(mount.mountpoint == "/" for mount in mounting.mounts())


def test_real_mountpoint_follows_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there")
    (tmp_path / "chain").symlink_to(tmp_path / "link")
    (tmp_path / "loop").symlink_to("loop")
    monkeypatch.chdir(tmp_path)
    real = os.path.realpath(tmp_path)
    for path in ("there", "link", "chain", "./chain/", "link/../chain"):
        assert mounting.real_mountpoint(path) == f"{real}/there"
    assert mounting.real_mountpoint("missing/x") == f"{real}/missing/x"
    assert mounting.real_mountpoint("/") == "/"
    assert mounting.real_mountpoint("loop") == f"{real}/loop"


# --- refusals -------------------------------------------------------------------------------------


class Case:
    """A store and a mount point that are fine, to be spoilt."""

    def __init__(self, directory: Path) -> None:
        self.store = directory / "store"
        self.mountpoint = directory / "mnt"
        self.device = directory / "fuse"
        self.store.mkdir()
        self.mountpoint.mkdir()
        self.device.touch()

    def spec(self, *options: str) -> MountSpec:
        return mount_spec(str(self.store), str(self.mountpoint), Config(), options)

    def refusal(self, *options: str) -> str:
        """Why it is refused; nothing may have changed."""
        before = self.everything()
        with pytest.raises(MountRefused) as refused:
            mounting.check(self.spec(*options), self.device)
        assert self.everything() == before
        assert "\n" not in refused.value.message
        return refused.value.message

    def everything(self) -> list[tuple[str, int, int, int]]:
        found = []
        for directory, _, files in os.walk(self.store.parent):
            for path in (directory, *(f"{directory}/{name}" for name in files)):
                status = os.lstat(path)
                found.append((path, status.st_mode, status.st_mtime_ns, status.st_ctime_ns))
        return found


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Case:
    monkeypatch.setattr(mounting, "has_capability", lambda _number: True)
    return Case(Path(os.path.realpath(tmp_path)))


@pytest.fixture
def mounted(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Pretend that something is mounted."""

    def pretend(mountpoint: Path, fstype: str, source: str = "/srv/other") -> None:
        there = MountInfo(77, 1, str(mountpoint), fstype, source)
        monkeypatch.setattr(mounting, "mounts", lambda: [there])

    return pretend


def test_what_is_fine_is_not_refused(case: Case) -> None:
    mounting.check(case.spec(), case.device)


def test_no_privilege(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounting, "has_capability", lambda _number: False)
    assert "CAP_SYS_ADMIN" in case.refusal()


def test_no_device(case: Case) -> None:
    case.device.unlink()
    assert "modprobe fuse" in case.refusal()


def test_store_missing(case: Case) -> None:
    case.store.rmdir()
    assert "does not exist" in case.refusal()


def test_store_is_a_file(case: Case) -> None:
    case.store.rmdir()
    case.store.touch()
    assert "not a directory" in case.refusal()


def test_store_on_a_dead_mount(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    dead_at(monkeypatch, case.store)
    assert "repair what it lies on" in case.refusal()


def test_store_read_only(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    here = os.statvfs(case.store)
    read_only = os.statvfs_result((*here[:8], here.f_flag | os.ST_RDONLY, here.f_namemax))
    monkeypatch.setattr(os, "statvfs", lambda _path: read_only)
    assert "--read-only" in case.refusal()
    mounting.check(case.spec("ro"), case.device)


def test_store_without_xattrs(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_arguments: object) -> bytes:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "getxattr", unsupported)
    assert "extended attributes" in case.refusal()


def test_store_with_another_file_system_inside(case: Case, mounted: Callable[..., None]) -> None:
    mounted(case.store / "a/b", "xfs")
    assert f"{case.store}/a/b (xfs)" in case.refusal()
    mounted(Path(f"{case.store}-2"), "xfs")
    mounting.check(case.spec(), case.device)


def test_store_is_the_mount_point(case: Case) -> None:
    case.mountpoint = case.store
    assert "on itself" in case.refusal()


def test_store_inside_the_mount_point(case: Case) -> None:
    case.store = case.mountpoint / "sub/store"
    case.store.mkdir(parents=True)
    assert "would be hidden" in case.refusal()


def test_mount_point_inside_the_store(case: Case) -> None:
    case.mountpoint = case.store / "sub/mnt"
    case.mountpoint.mkdir(parents=True)
    assert "contain itself" in case.refusal()


def test_mount_point_missing(case: Case) -> None:
    case.mountpoint.rmdir()
    assert "does not exist" in case.refusal()


def test_mount_point_is_a_file(case: Case) -> None:
    case.mountpoint.rmdir()
    case.mountpoint.touch()
    assert "not a directory" in case.refusal()


def test_mount_point_not_empty(case: Case) -> None:
    (case.mountpoint / "thesis.tex").touch()
    assert "not empty" in case.refusal()


def test_mounted_already(case: Case, mounted: Callable[..., None]) -> None:
    mounted(case.mountpoint, mounting.FSTYPE, str(case.store))
    message = case.refusal()
    assert "already mounted" in message
    assert f"modamafs umount {case.mountpoint}" in message


def test_something_else_mounted(case: Case, mounted: Callable[..., None]) -> None:
    mounted(case.mountpoint, "nfs4", "server:/home")
    assert "server:/home, nfs4" in case.refusal()


@pytest.mark.parametrize(
    ("fstype", "advice"), [(mounting.FSTYPE, "'modamafs umount"), ("fuse.sshfs", "'umount -l")]
)
def test_dead_mount(
    case: Case,
    mounted: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    fstype: str,
    advice: str,
) -> None:
    mounted(case.mountpoint, fstype)
    dead_at(monkeypatch, case.mountpoint)
    message = case.refusal()
    assert "daemon is dead" in message
    assert f"{advice} {case.mountpoint}'" in message


def dead_at(monkeypatch: pytest.MonkeyPatch, dead: Path) -> None:
    whole_stat = Path.stat

    def stat_(path: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        if path == dead and follow_symlinks:
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
        return whole_stat(path, follow_symlinks=follow_symlinks)

    monkeypatch.setattr(Path, "stat", stat_)


# --- probes and the guard -------------------------------------------------------------------------


def test_probes_leave_no_trace(tmp_path: Path) -> None:
    before = tmp_path.stat()
    assert mounting.takes_xattrs(tmp_path) == mounting.takes_xattrs(tmp_path)
    assert mounting.takes_immutable_flag(tmp_path) == mounting.takes_immutable_flag(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert tmp_path.stat().st_mtime_ns == before.st_mtime_ns
    assert os.listxattr(tmp_path) == []


def test_proc_takes_no_xattrs() -> None:
    assert not mounting.takes_xattrs(Path("/proc"))
    assert not mounting.takes_immutable_flag(Path("/proc"))


@pytest.fixture
def mountpoint(tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "guarded"
    directory.mkdir()
    directory.chmod(0o2750)
    yield directory
    mounting.unguard(str(directory))


@needs_root
def test_the_guard_and_its_end(mountpoint: Path) -> None:
    assert not mounting.is_guarded(str(mountpoint))
    assert mounting.guard(str(mountpoint)) is None
    assert mounting.is_guarded(str(mountpoint))
    assert stat.S_IMODE(mountpoint.stat().st_mode) == 0
    with pytest.raises(PermissionError):
        (mountpoint / "file").touch()
    assert mounting.unguard(str(mountpoint))
    assert stat.S_IMODE(mountpoint.stat().st_mode) == 0o2750
    assert os.listxattr(mountpoint) == []
    (mountpoint / "file").touch()
    assert not mounting.unguard(str(mountpoint))


@needs_root
def test_a_second_guard_remembers_the_first_mode(mountpoint: Path) -> None:
    mounting.guard(str(mountpoint))
    assert mounting.guard(str(mountpoint)) is None
    mounting.unguard(str(mountpoint))
    assert stat.S_IMODE(mountpoint.stat().st_mode) == 0o2750


@needs_root
def test_what_is_not_roots_is_left_alone(mountpoint: Path) -> None:
    os.chown(mountpoint, 1000, 1000)
    mountpoint.chmod(0o755)
    assert "not root's" in (mounting.guard(str(mountpoint)) or "")
    assert stat.S_IMODE(mountpoint.stat().st_mode) == 0o755


@needs_root
def test_without_the_immutable_flag_the_mode_has_to_do(
    mountpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(_fd: int, _immutable: bool) -> None:
        raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))

    monkeypatch.setattr(mounting, "set_immutable", unsupported)
    assert "no immutable flag" in (mounting.guard(str(mountpoint)) or "")
    assert stat.S_IMODE(mountpoint.stat().st_mode) == 0
    assert mounting.unguard(str(mountpoint))
    assert stat.S_IMODE(mountpoint.stat().st_mode) == 0o2750


def test_there_is_no_guard_on_nothing(tmp_path: Path) -> None:
    assert not mounting.is_guarded(str(tmp_path / "missing"))


def test_unmounting_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=str(tmp_path)) as failed:
        mounting.unmount(str(tmp_path))
    assert failed.value.errno in (errno.EINVAL, errno.EPERM)


def test_names_with_a_carriage_return_are_one_line() -> None:
    """Anybody can make such a mount, in a user namespace of their own."""
    line = b"44 34 0:40 / /mnt\rx rw - tmpfs x\ry rw\n"
    [found] = mounting.parse_mountinfo(line)
    assert (found.mountpoint, found.source) == ("/mnt\rx", "x\ry")
