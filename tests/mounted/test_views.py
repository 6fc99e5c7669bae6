"""Mounts of views: nothing leads out of one, and one that maps owners gives nobody more rights."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import json
import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.differential import GROUP_OBJ, MASK, NOBODY, OTHER, USER, USER_OBJ, acl
from tests.support.mounts import Mount, modamafs
from tests.support.syscalls import (
    FileHandle,
    get_flags,
    name_to_handle_at,
    open_by_handle_at,
    renameat2,
    set_flags,
)
from tests.support.targets import Workshop
from tests.support.users import ALICE, BOB, ROOT, STRANGER, User, as_user

GUEST = "modamafs-guest"
RENAME_EXCHANGE, RENAME_WHITEOUT = 2, 4
FRESH = ("-o", "attribute_timeout_s=0,entry_timeout_s=0")
MakeView = Callable[..., Mount]

one_kind = pytest.mark.parametrize("store", ["ext4"], indirect=True)
"""For what does not depend on the file system."""


@pytest.fixture
def projects(store: Path) -> Path:
    """A store with four projects in two areas."""
    for project in ("tem/mine", "tem/yours", "xrd/ours", "xrd/theirs"):
        session = store / project / "session"
        (session / "raw").mkdir(parents=True)
        (session / "raw/scan").write_text(project)
        (session / "notes").write_text(project)
    (store / "tem/loose").write_text("a file between projects")
    return store


@pytest.fixture
def main(projects: Path, workshop: Workshop) -> Iterator[Mount]:
    """The whole store."""
    with Mount(projects, workshop.mountpoint(projects.name), *FRESH) as mount:
        yield mount


@pytest.fixture
def view(projects: Path, workshop: Workshop) -> Iterator[MakeView]:
    """Makes a view of some projects, and mounts it."""
    with contextlib.ExitStack() as stack:
        count = iter(range(100))

        def make(*shown: str, options: tuple[str, ...] = (), added: tuple[str, ...] = ()) -> Mount:
            name = f"view{next(count)}"
            add(projects, name, *shown, *added)
            point = workshop.mountpoint(f"{projects.name}-{name}")
            return stack.enter_context(Mount(projects, point, "--view", name, *FRESH, *options))

        yield make


def add(store: Path, *arguments: str) -> None:
    done = modamafs("view", "add", store, *arguments)
    assert done.returncode == 0, done.stderr


def names(directory: Path) -> set[str]:
    """The store's own entries; what a mount adds at its root is another's test."""
    return set(os.listdir(directory)) - {"landing", "views"}


def refused(number: int, function: Callable[..., object], *arguments: object) -> None:
    with pytest.raises(OSError) as caught:
        function(*arguments)
    assert caught.value.errno == number, caught.value


# ---- one project ---------------------------------------------------------------------------------


def test_one_project_is_the_root(view: MakeView, projects: Path) -> None:
    mount = view("tem/mine")
    assert names(mount.root) == {"session"}
    assert (mount.root / "session/notes").read_text() == "tem/mine"
    (mount.root / "new").write_text("x")
    assert (projects / "tem/mine/new").read_text() == "x"
    assert mount.status()["view"] == "view0"
    assert mount.status()["passthrough"] is True
    assert mount.root.stat().st_ino != (mount.root / "session").stat().st_ino


@one_kind
def test_nothing_above(view: MakeView) -> None:
    root = view("tem/mine").root
    above = root.parent.stat()
    fd = os.open(root, os.O_RDONLY)
    try:
        found = os.stat("..", dir_fd=fd)
        assert (found.st_dev, found.st_ino) == (above.st_dev, above.st_ino)
        assert os.stat("session/../..", dir_fd=fd).st_ino == above.st_ino
        refused(errno.ENOENT, os.stat, root / "session/../yours")
        refused(errno.ENOENT, os.stat, root / "tem")
    finally:
        os.close(fd)


def test_a_symbolic_link_leads_only_where_its_path_leads(view: MakeView, projects: Path) -> None:
    (projects / "tem/mine/up").symlink_to("../yours/session/notes")
    (projects / "tem/mine/in").symlink_to("session/notes")
    root = view("tem/mine").root
    assert os.readlink(root / "up") == "../yours/session/notes"
    refused(errno.ENOENT, os.stat, root / "up")
    assert (root / "in").read_text() == "tem/mine"


def test_a_hard_link_has_a_name_in_it_or_is_not_in_it(view: MakeView, projects: Path) -> None:
    (projects / "tem/mine/both").hardlink_to(projects / "tem/yours/session/notes")
    root = view("tem/mine").root
    assert (root / "both").read_text() == "tem/yours"
    (root / "third").hardlink_to(root / "both")
    assert (root / "third").stat().st_nlink == 3
    refused(errno.EXDEV, os.link, root / "both", projects / "tem/yours/fourth")


HANDLES = ["", "tem", "tem/yours", "tem/yours/session/notes", "xrd/ours/session/raw", "tem/loose"]


@pytest.mark.parametrize(
    "shown", [("tem/mine",), ("tem/mine", "xrd/theirs")], ids=["one", "several"]
)
def test_a_handle_of_what_is_outside_is_stale(
    view: MakeView, main: Mount, projects: Path, shown: tuple[str, ...]
) -> None:
    mount = view(*shown)
    fd = os.open(mount.root, os.O_RDONLY)
    try:
        for taken_from, path in itertools.product((main.root, projects), HANDLES):
            if path == "" and taken_from == main.root:
                continue  # the root has the same handle in every mount
            if path in ("", "tem") and len(shown) > 1:
                continue  # that is in it
            handle = name_to_handle_at((None, str(taken_from / path)))
            for flags in (os.O_RDONLY, os.O_PATH):
                with pytest.raises(OSError) as caught:
                    os.close(open_by_handle_at(fd, handle, flags))
                assert caught.value.errno == errno.ESTALE, (taken_from, path)
            assert leads_back(main, main.root / path)
    finally:
        os.close(fd)


def leads_back(main: Mount, path: Path) -> bool:
    """The control: in the mount that shows it, the handle leads there."""
    fd = os.open(main.root, os.O_RDONLY)
    try:
        opened = open_by_handle_at(fd, name_to_handle_at((None, str(path))), os.O_PATH)
        same = os.fstat(opened).st_ino == path.stat().st_ino
        os.close(opened)
        return same
    finally:
        os.close(fd)


def test_a_handle_of_what_is_inside_leads_there(view: MakeView, main: Mount) -> None:
    """Also in a mount that has never seen it."""
    handle = name_to_handle_at((None, str(main.root / "tem/mine/session/raw")))
    root = view("tem/mine").root
    fd = os.open(root, os.O_RDONLY)
    try:
        opened = open_by_handle_at(fd, handle, os.O_RDONLY)
        assert os.listdir(opened) == ["scan"]
        assert names(Path(f"/proc/self/fd/{opened}/../..")) == {"session"}
        os.close(opened)
    finally:
        os.close(fd)


@pytest.mark.parametrize("shown", [("tem/mine",), ("tem/mine", "xrd/ours")], ids=["one", "several"])
def test_what_is_moved_out_is_gone_at_once(
    view: MakeView, main: Mount, shown: tuple[str, ...]
) -> None:
    """Also for who has a handle, or stands in it."""
    mount = view(*shown)
    session = mount.root / ("session" if len(shown) == 1 else "tem/mine/session")
    inside = os.open(session / "raw", os.O_RDONLY | os.O_DIRECTORY)
    note = os.open(session / "notes", os.O_PATH)
    handle = name_to_handle_at((note, ""), 0x1000)
    top = os.open(mount.root, os.O_RDONLY)
    try:
        os.close(os.open("scan", os.O_RDONLY, dir_fd=inside))
        (main.root / "tem/mine/session").rename(main.root / "tem/yours/moved")
        refused(errno.ENOENT, os.stat, session)
        refused(errno.ESTALE, lambda: os.open("scan", os.O_RDONLY, dir_fd=inside))
        refused(errno.ESTALE, open_by_handle_at, top, handle, os.O_RDONLY)
        refused(errno.ESTALE, os.mkdir, f"/proc/self/fd/{inside}/new")
    finally:
        for fd in (inside, note, top):
            os.close(fd)
    assert not (main.root / "tem/yours/moved/raw/new").exists()


@one_kind
def test_the_project_may_be_renamed(view: MakeView, projects: Path) -> None:
    mount = view("tem/mine")
    (projects / "tem/mine").rename(projects / "xrd/renamed")
    shutil.copytree(projects / "tem/yours", projects / "tem/mine")
    with mount.expected_in_log("worker-died"):
        mount.kill_worker()
    assert (mount.root / "session/notes").read_text() == "tem/mine"
    done = modamafs("info", mount.root / "session")
    assert done.returncode == 3
    assert "has been renamed" in done.stderr


# ---- several projects ----------------------------------------------------------------------------


def test_several_projects(view: MakeView, projects: Path) -> None:
    root = view("tem/mine", "xrd/ours").root
    assert names(root) == {"tem", "xrd"}
    assert os.listdir(root / "tem") == ["mine"]
    assert os.listdir(root / "xrd") == ["ours"]
    for hidden in ("tem/yours", "xrd/theirs", "tem/loose", "tem/mine/../yours"):
        refused(errno.ENOENT, os.stat, root / hidden)
    (root / "xrd/ours/new").write_text("x")
    assert (projects / "xrd/ours/new").read_text() == "x"
    (root / "tem/mine/session/notes").rename(root / "xrd/ours/notes")
    assert (projects / "xrd/ours/notes").read_text() == "tem/mine"


ABOVE_PROJECTS: dict[str, Callable[[Path], object]] = {
    "create": lambda root: (root / "new").touch(),
    "create in an area": lambda root: (root / "tem/new").touch(),
    "mkdir": lambda root: (root / "tem/new").mkdir(),
    "mkdir of what is hidden": lambda root: (root / "tem/yours").mkdir(),
    "symlink": lambda root: (root / "new").symlink_to("x"),
    "link": lambda root: (root / "tem/new").hardlink_to(root / "tem/mine/session/notes"),
    "rename a project": lambda root: (root / "tem/mine").rename(root / "tem/other"),
    "rename an area": lambda root: (root / "tem").rename(root / "other"),
    "exchange projects": lambda root: renameat2(
        root / "tem/mine", root / "xrd/ours", RENAME_EXCHANGE
    ),
    "move out of a project": lambda root: (root / "tem/mine/session").rename(root / "tem/new"),
    "move over a hidden one": lambda root: (root / "tem/mine/session").rename(root / "tem/yours"),
    "rmdir": lambda root: (root / "xrd/ours").rmdir(),
    "chmod": lambda root: (root / "tem").chmod(0o777),
    "chown": lambda root: os.chown(root, 1, 1),
    "utimens": lambda root: os.utime(root / "tem"),
    "setxattr": lambda root: os.setxattr(root / "tem", "user.x", b"y"),
    "O_TMPFILE": lambda root: os.close(os.open(root / "tem", os.O_TMPFILE | os.O_RDWR)),
    "chattr": lambda root: set_flags(root / "tem", get_flags(root / "tem") | 0x40),
}


def test_nothing_changes_above_the_projects(view: MakeView, projects: Path) -> None:
    root = view("tem/mine", "xrd/ours").root
    before = sorted(map(str, projects.rglob("*")))
    for what, door in ABOVE_PROJECTS.items():
        with pytest.raises(OSError) as caught:
            door(root)
        assert caught.value.errno in (errno.EROFS, errno.EEXIST), (what, caught.value)
    assert sorted(map(str, projects.rglob("*"))) == before


@one_kind
def test_a_new_project_is_in_no_view(view: MakeView, main: Mount) -> None:
    root = view("tem/mine", "xrd/ours").root
    (main.root / "tem/later").mkdir()
    assert os.listdir(root / "tem") == ["mine"]
    refused(errno.ENOENT, os.stat, root / "tem/later")


# ---- seals, read-only ----------------------------------------------------------------------------


@pytest.mark.parametrize("shown", [("tem/mine",), ("tem/mine", "xrd/ours")], ids=["one", "several"])
def test_a_seal_holds_at_the_next_request(
    view: MakeView, main: Mount, shown: tuple[str, ...]
) -> None:
    mount = view(*shown)
    raw = mount.root / ("session/raw" if len(shown) == 1 else "tem/mine/session/raw")
    (raw / "scan").write_text("still open")
    done = modamafs("seal", main.root / "tem/mine/session/raw")
    assert done.returncode == 0, done.stderr
    refused(errno.EROFS, (raw / "scan").write_text, "sealed")
    refused(errno.EROFS, (raw / "new").touch)
    refused(errno.EROFS, raw.rename, raw.with_name("cooked"))
    assert stat.S_IMODE((raw / "scan").stat().st_mode) & 0o222 == 0
    (raw.parent / "notes").write_text("beside it")


@one_kind
def test_sealing_through_a_view(view: MakeView, projects: Path, main: Mount) -> None:
    mount = view("tem/mine")
    done = modamafs("seal", "--json", mount.root / "session/raw")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["path"] == "tem/mine/session/raw"
    assert (projects / "tem/mine/session/.modama/seals/raw.json").is_file()
    refused(errno.EROFS, (main.root / "tem/mine/session/raw/new").touch)


@one_kind
def test_read_only(view: MakeView) -> None:
    mount = view("tem/mine", added=("--read-only",))
    refused(errno.EROFS, (mount.root / "new").touch)
    assert os.statvfs(mount.root).f_flag & os.ST_RDONLY
    assert mount.status()["read_only"] is True
    refused(errno.EROFS, (mount.root / "session/notes").write_text, "x")


# ---- the command ---------------------------------------------------------------------------------


@one_kind
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("name", "tem/none"), "no project"),
        (("name", "tem"), "AREA/PROJECT"),
        (("name", "tem/mine/session"), "AREA/PROJECT"),
        (("name", "../tem"), "AREA/PROJECT"),
        (("name", "/etc"), "AREA/PROJECT"),
        (("name", "tem/.modama"), "AREA/PROJECT"),
        (("name", "tem/loose"), "no project"),
        (("name", "tem/link"), "no project"),
        (("name", "tem/mine", "tem/mine"), "twice"),
        (("../name", "tem/mine"), "no name of a view"),
        (("Name", "tem/mine"), "no name of a view"),
        (("name", "tem/mine", "--owner", "no-such-user"), "no user"),
        (("name", "tem/mine", "--owner", "root"), "root"),
        (("name", "tem/mine", "--title", "a\nb"), "title"),
    ],
)
def test_a_view_that_is_refused(projects: Path, arguments: tuple[str, ...], words: str) -> None:
    (projects / "tem/link").symlink_to("mine")
    done = modamafs("view", "add", projects, *arguments)
    assert done.returncode == 3, done.stdout
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (projects / ".modama/views").exists() or not os.listdir(projects / ".modama/views")


@one_kind
def test_a_view_that_is_not_there_is_not_mounted(projects: Path, workshop: Workshop) -> None:
    point = workshop.mountpoint(f"{projects.name}-none")
    point.mkdir()
    add(projects, "one", "tem/mine")
    done = modamafs("mount", "-o", "view=none", projects, point)
    assert done.returncode == 3
    assert "no view 'none'" in done.stderr
    assert "one" in done.stderr
    assert not os.path.ismount(point)
    shutil.rmtree(projects / "tem/mine")
    done = modamafs("mount", "--view", "one", projects, point)
    assert done.returncode == 3
    assert "no project" in done.stderr


@one_kind
@pytest.mark.parametrize("damage", ["", "{}", "[]", '{"projects": ["tem/mine"], "readonly": true}'])
def test_a_damaged_record_is_refused(projects: Path, workshop: Workshop, damage: str) -> None:
    add(projects, "one", "tem/mine")
    record = projects / ".modama/views/one.json"
    record.write_text(damage)
    point = workshop.mountpoint(f"{projects.name}-damaged")
    point.mkdir()
    done = modamafs("mount", "--view", "one", projects, point)
    assert done.returncode == 3
    assert str(record) in done.stderr
    done = modamafs("view", "list", "--json", projects)
    [report] = json.loads(done.stdout)
    assert report["problem"]
    assert modamafs("view", "remove", projects, "one").returncode == 0


@one_kind
def test_a_record_that_others_can_write_is_refused(projects: Path, workshop: Workshop) -> None:
    add(projects, "one", "tem/mine")
    os.chown(projects / ".modama/views/one.json", ALICE.uid, ALICE.gid)
    point = workshop.mountpoint(f"{projects.name}-others")
    point.mkdir()
    done = modamafs("mount", "--view", "one", projects, point)
    assert done.returncode == 3
    assert "somebody else than root" in done.stderr


@one_kind
def test_list_and_remove(view: MakeView, projects: Path) -> None:
    mount = view("tem/mine", "xrd/ours", added=("--title", "Both"))
    [report] = json.loads(modamafs("view", "list", "--json", projects).stdout)
    assert report == {
        "name": "view0", "mounted_on": [str(mount.root)], "problem": None, "title": "Both",
        "projects": ["tem/mine", "xrd/ours"], "read_only": False, "owner": None,
    }  # fmt: skip
    done = modamafs("view", "remove", projects, "view0")
    assert done.returncode == 3
    assert f"is mounted on {mount.root}" in done.stderr
    assert modamafs("view", "remove", projects, "other").returncode == 1
    assert modamafs("umount", mount.root).returncode == 0
    mount.is_unmounted = True
    assert modamafs("view", "remove", projects, "view0").returncode == 0
    assert json.loads(modamafs("view", "list", "--json", projects).stdout) == []


@one_kind
def test_what_is_only_there_for_open_files_is_not_mounted(view: MakeView, projects: Path) -> None:
    mount = view("tem/mine")
    with (mount.root / "session/notes").open() as held:
        assert modamafs("umount", "--lazy", mount.root).returncode == 0
        mount.is_unmounted = True
        [report] = json.loads(modamafs("view", "list", "--json", projects).stdout)
        assert report["mounted_on"] == []
        nowhere = modamafs("export", "samba", "show", mount.root)
        assert "is in no running mount" in nowhere.stderr
        done = modamafs("view", "remove", projects, "view0")
        assert done.returncode == 0, done.stderr
        assert held.read() == "tem/mine"


@one_kind
def test_only_root_makes_views(projects: Path) -> None:
    done = as_user(ALICE, modamafs, "view", "add", projects, "one", "tem/mine")
    assert done.returncode == 3
    assert "only root" in done.stderr


# ---- mapped owners -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guest() -> Iterator[User]:
    """A user of this system, for as long as these tests run."""
    subprocess.run(["useradd", "--no-create-home", "--user-group", GUEST], check=True)
    try:
        user_id = subprocess.run(["id", "-u", GUEST], capture_output=True, check=True).stdout
        group_id = subprocess.run(["id", "-g", GUEST], capture_output=True, check=True).stdout
        yield User(int(user_id), int(group_id))
    finally:
        subprocess.run(["userdel", GUEST], check=True)


@pytest.fixture
def mapped(view: MakeView, projects: Path, guest: User) -> Mount:  # noqa: ARG001
    """A view of a project in which everything is shown as the guest's."""
    session = projects / "tem/mine/session"
    for path in (session, session / "raw", session / "notes"):
        os.chown(path, ALICE.uid, ALICE.gid)
    shutil.copy("/usr/bin/id", session / "id")
    (session / "id").chmod(0o6755)
    os.mknod(session / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    (session / "null").chmod(0o666)
    os.setxattr(session / "notes", "user.sample", b"Fe")
    os.setxattr(session / "notes", "trusted.sample", b"Fe")
    os.setxattr(session / "notes", "system.posix_acl_access", ACL)
    (session / "raw").chmod(0o2770)
    return view("tem/mine", added=("--owner", GUEST))


ACL = acl(
    (USER_OBJ, 6, NOBODY), (USER, 6, BOB.uid), (GROUP_OBJ, 4, NOBODY), (MASK, 6, NOBODY),
    (OTHER, 0, NOBODY),
)  # fmt: skip


@one_kind
def test_everything_is_the_guests(mapped: Mount, guest: User, projects: Path) -> None:
    session = mapped.root / "session"
    with os.scandir(session) as entries:
        found = [*(entry.stat(follow_symlinks=False) for entry in entries), session.stat()]
    assert {(one.st_uid, one.st_gid) for one in found} == {(guest.uid, guest.gid)}
    assert not any(one.st_mode & (stat.S_ISUID | stat.S_ISGID) for one in found)
    assert stat.S_IMODE((session / "raw").stat().st_mode) == 0o770
    assert (projects / "tem/mine/session/raw").stat().st_uid == ALICE.uid
    assert as_user(guest, os.listdir, session / "raw") == ["scan"]
    as_user(guest, (session / "notes").write_text, "the guest's words")
    for other in (ALICE, STRANGER):
        refused(errno.EACCES, as_user, other, os.listdir, session / "raw")
    assert os.statvfs(mapped.root).f_flag & (os.ST_NOSUID | os.ST_NODEV) == (
        os.ST_NOSUID | os.ST_NODEV
    )


def make_all(directory: Path) -> None:
    (directory / "file").write_text("x")
    (directory / "directory").mkdir()
    (directory / "link").symlink_to("file")
    os.mkfifo(directory / "pipe")
    os.close(os.open(directory, os.O_TMPFILE | os.O_RDWR))


MADE = ("file", "directory", "link", "pipe")


def test_what_is_made_is_stored_as_the_guests(mapped: Mount, guest: User, projects: Path) -> None:
    for user in (guest, ROOT):
        directory = own_directory(mapped, user)
        as_user(user, make_all, directory)
        for name in MADE:
            stored = (projects / "tem/mine/session" / directory.name / name).lstat()
            assert (stored.st_uid, stored.st_gid) == (guest.uid, guest.gid), (user, name)


def own_directory(mapped: Mount, user: User) -> Path:
    """A new directory in the view, made by that user."""
    directory = mapped.root / "session" / f"of-{user.uid}"
    as_user(user, directory.mkdir)
    return directory


@one_kind
def test_no_other_owner(mapped: Mount, guest: User, projects: Path) -> None:
    note = mapped.root / "session/notes"
    for user in (ROOT, guest):
        for uid, gid in ((ALICE.uid, -1), (0, 0), (-1, ALICE.gid)):
            refused(errno.EPERM, as_user, user, os.chown, note, uid, gid)
    as_user(guest, os.chown, note, guest.uid, guest.gid)  # as cp -p does
    stored = (projects / "tem/mine/session/notes").stat()
    assert (stored.st_uid, stored.st_gid) == (ALICE.uid, ALICE.gid)


def make_set_id(directory: Path) -> None:
    os.umask(0)
    os.close(os.open(directory / "file", os.O_CREAT | os.O_RDWR, 0o6755))
    os.mkdir(directory / "directory", 0o7755)
    os.mknod(directory / "node", stat.S_IFREG | 0o6755)
    (directory / "changed").write_text("#!/bin/sh")
    (directory / "changed").chmod(0o6755)
    (directory / "directory").chmod(0o7755)


def test_no_set_id_bits(mapped: Mount, guest: User, projects: Path) -> None:
    for user in (guest, ROOT):
        directory = own_directory(mapped, user)
        as_user(user, make_set_id, directory)
        for name in ("file", "node", "changed", "directory"):
            for place in (directory, projects / "tem/mine/session" / directory.name):
                found = (place / name).stat()
                assert not found.st_mode & (stat.S_ISUID | stat.S_ISGID), (user, name)


def test_a_program_that_has_set_id_bits_on_the_store(
    mapped: Mount, guest: User, projects: Path
) -> None:
    """It gives nobody its owner's rights, and loses the bits when it is written to."""
    program = mapped.root / "session/id"
    ran = as_user(guest, run, [str(program), "-u"])
    assert int(ran) == guest.uid
    for user in (guest, ROOT):
        (projects / "tem/mine/session/id").chmod(0o6755)
        as_user(user, append, program)
        assert not (projects / "tem/mine/session/id").stat().st_mode & stat.S_ISUID
    (projects / "tem/mine/session/id").chmod(0o6755)
    as_user(guest, program.chmod, 0o700)
    assert stat.S_IMODE((projects / "tem/mine/session/id").stat().st_mode) == 0o700


def run(command: list[str]) -> bytes:
    return subprocess.run(command, capture_output=True, check=True).stdout


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


def test_the_hidden_bit_of_a_directory_stays(mapped: Mount, guest: User, projects: Path) -> None:
    as_user(guest, (mapped.root / "session/raw").chmod, 0o755)
    assert stat.S_IMODE((projects / "tem/mine/session/raw").stat().st_mode) == 0o2755


def test_no_acls(mapped: Mount, guest: User, projects: Path) -> None:
    note, raw = mapped.root / "session/notes", mapped.root / "session/raw"
    stored = projects / "tem/mine/session/notes"
    for user in (guest, ROOT):
        assert as_user(user, os.listxattr, note) == ["user.sample"]
        for name in ("system.posix_acl_access", "trusted.sample", "security.NTACL"):
            if name.startswith("trusted") and user is not ROOT:
                continue
            refused(errno.ENODATA, as_user, user, os.getxattr, note, name)
        refused(errno.EOPNOTSUPP, as_user, user, os.setxattr, note, "system.posix_acl_access", ACL)
        refused(errno.EOPNOTSUPP, as_user, user, os.setxattr, raw, "system.posix_acl_default", ACL)
        for name in ("security.capability", "security.NTACL", "trusted.x") * (user is ROOT):
            with pytest.raises(OSError) as caught:
                os.setxattr(note, name, CAPABILITY)
            assert caught.value.errno == errno.EOPNOTSUPP
        as_user(user, os.setxattr, note, "user.more", b"x")
        assert os.getxattr(stored, "system.posix_acl_access") == ACL
        assert os.getxattr(stored, "user.more") == b"x"
        as_user(user, os.removexattr, note, "user.more")


CAPABILITY = b"\x01\x00\x00\x02" + b"\xff\xff\xff\xff" + bytes(12)
"""``cap_…=ep``, all of the lower ones (``struct vfs_cap_data``, revision 2)."""


def test_no_devices(mapped: Mount, guest: User, projects: Path) -> None:
    session = mapped.root / "session"
    for user in (guest, ROOT):
        for kind in (stat.S_IFCHR, stat.S_IFBLK):
            refused(errno.EPERM, as_user, user, os.mknod, session / "new", kind | 0o666, 0x103)
        refused(errno.EACCES, as_user, user, os.open, session / "null", os.O_RDWR)
        with pytest.raises(OSError):
            as_user(user, renameat2, session / "notes", session / "moved", RENAME_WHITEOUT)
        assert (projects / "tem/mine/session/notes").is_file()
        assert not (projects / "tem/mine/session/new").exists()


def test_no_flags(mapped: Mount, projects: Path) -> None:
    note = mapped.root / "session/notes"
    for flag in (0x10, 0x40):  # immutable, no dump
        refused(errno.EPERM, set_flags, note, get_flags(note) | flag)
    assert get_flags(projects / "tem/mine/session/notes") & 0x50 == 0


@one_kind
def test_a_guest_moves_and_removes_what_is_there(
    mapped: Mount, guest: User, projects: Path
) -> None:
    session = mapped.root / "session"
    as_user(guest, (session / "notes").rename, session / "raw/notes")
    stored = projects / "tem/mine/session/raw/notes"
    assert stored.stat().st_uid == ALICE.uid
    as_user(guest, (session / "raw/notes").unlink)
    assert not stored.exists()


@one_kind
def test_a_seal_holds_for_the_guest(mapped: Mount, guest: User, main: Mount) -> None:
    done = modamafs("seal", main.root / "tem/mine/session/raw")
    assert done.returncode == 0, done.stderr
    raw = mapped.root / "session/raw"
    refused(errno.EROFS, (raw / "new").touch)
    refused(errno.EACCES, as_user, guest, (raw / "new").touch)  # nothing there looks writable
    refused(errno.EACCES, as_user, guest, (raw / "scan").write_text, "x")
    refused(errno.EROFS, as_user, guest, raw.chmod, 0o777)


@one_kind
def test_a_guest_can_not_seal(mapped: Mount, guest: User) -> None:
    """What is shown as the guest's own is not."""
    done = as_user(guest, modamafs, "seal", mapped.root / "session/raw")
    assert done.returncode != 0
    assert "only the session's owner" in done.stderr


@one_kind
def test_the_same_after_the_worker_was_killed(mapped: Mount, guest: User, projects: Path) -> None:
    with mapped.expected_in_log("worker-died"):
        mapped.kill_worker()
    assert (mapped.root / "session/notes").stat().st_uid == guest.uid
    as_user(guest, (mapped.root / "session/late").write_text, "x")
    assert (projects / "tem/mine/session/late").stat().st_uid == guest.uid
    refused(errno.ENOENT, os.stat, mapped.root / "../yours")


@one_kind
def test_locks_work(mapped: Mount, guest: User) -> None:
    def lock() -> None:
        with (mapped.root / "session/notes").open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    as_user(guest, lock)


def test_a_handle_is_mapped_too(mapped: Mount, main: Mount, guest: User) -> None:
    handle: FileHandle = name_to_handle_at((None, str(main.root / "tem/mine/session/raw")))
    fd = os.open(mapped.root, os.O_RDONLY)
    try:
        opened = open_by_handle_at(fd, handle, os.O_PATH)
        found = os.fstat(opened)
        os.close(opened)
        assert (found.st_uid, found.st_gid, found.st_mode & 0o7000) == (guest.uid, guest.gid, 0)
    finally:
        os.close(fd)
