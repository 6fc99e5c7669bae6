"""Landing directories and views in a mount, as people and their programs meet them."""

from __future__ import annotations

import codecs
import errno
import filecmp
import json
import mmap
import os
import pwd
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from modamafs import landing
from tests.support.mounts import Mount, modamafs, wait_until
from tests.support.targets import Workshop
from tests.support.trees import remove
from tests.support.users import ALICE, BOB, User, as_user

SESSION = Path("area/project/session")
RAW = SESSION / "raw"
TITLE = "Domain walls at 5 K"


def record(path: Path, **fields: object) -> None:
    """Write a record as a person with an editor would."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(fields, indent=2))


@pytest.fixture
def store(workshop: Workshop, new_name: Callable[[], str]) -> Iterator[Path]:
    """A store with a session of Alice's."""
    directory = workshop.image("ext4").root / f"landing-{new_name()}"
    (directory / RAW / "frames").mkdir(parents=True)
    (directory / RAW / "scan.raw").write_bytes(b"measured" * 1000)
    (directory / RAW / "frames/1.raw").write_bytes(b"frame")
    (directory / SESSION / "notes.txt").write_text("notes\n")
    record(
        directory / SESSION / ".modama/session.json",
        id="5b1f6a4e-4a6c-4bb1-9c0d-0a5a6f3a9f11",
        title=TITLE,
        owner={"name": "Alice", "user": "alice"},
        instrument="Titan G3",
        date="2026-07-01",
        metadata={"temperature": {"value": 5, "unit": "K"}},
        lab_book="kept",
    )
    record(
        directory / "area/project/.modama/project.json",
        id="0f6f3c36-6a08-4a4f-8f0e-6e1f0b0f6a55",
        title="Skyrmions",
        owner={"name": "Alice", "user": "alice"},
    )
    for path in [directory / SESSION, *(directory / SESSION).rglob("*")]:
        os.chown(path, ALICE.uid, ALICE.gid, follow_symlinks=False)
    yield directory
    remove(directory)


@pytest.fixture
def mount(store: Path, workshop: Workshop) -> Iterator[Mount]:
    with Mount(store, workshop.mountpoint(store.name)) as mount:
        yield mount


@pytest.fixture
def here(mount: Mount) -> Path:
    """The session's landing directory."""
    return mount.root / SESSION / ".modama"


def everything(directory: Path) -> list[Path]:
    """All files below."""
    return sorted(path for path in directory.rglob("*") if path.is_file())


# ---- reading -------------------------------------------------------------------------------------


def test_it_is_reached_by_name_and_not_listed(mount: Mount) -> None:
    assert (mount.root / SESSION / ".modama/README.md").read_text().endswith("\n")
    for directory in (".", "area", "area/project", SESSION, RAW, RAW / "frames"):
        assert ".modama" not in os.listdir(mount.root / directory)
        assert (mount.root / directory / ".modama").is_dir()


def test_listed_where_people_can_not_type_a_path(store: Path, workshop: Workshop) -> None:
    record(store / ".modama/x.json")
    (store / ".modama/config.toml").write_text("[landing]\nlisted = true\n")
    with Mount(store, workshop.mountpoint(store.name)) as mount:
        for directory in (".", "area", SESSION, RAW):
            names = os.listdir(mount.root / directory)
            assert names.count(".modama") == 1
        assert sorted(os.listdir(mount.root)) == [".modama", "area", "landing", "views"]


def test_every_module_shows_in_every_kind_of_directory(mount: Mount) -> None:
    for directory in (".", "area", "area/project", SESSION, RAW):
        place = mount.root / directory / ".modama"
        names = set(os.listdir(place))
        for name in landing.modules():
            assert (place / name).exists() is (name in names), (directory, name)
        for entry in os.scandir(place):  # by the type that is listed
            assert entry.is_dir(follow_symlinks=False) is Path(entry.path).is_dir(), entry.path
        for file in everything(place):
            content = file.read_bytes()
            assert file.stat().st_size == len(content)
            assert content.endswith(b"\n") or file == place / "seal/progress", file
    assert TITLE in (mount.root / SESSION / ".modama/index.html").read_text()
    assert TITLE in (mount.root / RAW / ".modama/README.md").read_text()
    assert json.loads((mount.root / SESSION / ".modama/metadata.json").read_text())


def test_the_listed_tree_has_the_same_directories(mount: Mount) -> None:
    tree = mount.root / "landing"
    assert {"landing", "views", "area"} == set(os.listdir(mount.root))
    for directory in ("area", "area/project", SESSION, RAW):
        here, there = tree / directory, mount.root / directory / ".modama"
        below = {path.name for path in (mount.root / directory).iterdir() if path.is_dir()}
        assert set(os.listdir(here)) == set(os.listdir(there)) | below
        assert (here / "README.md").read_bytes() == (there / "README.md").read_bytes()
    found = subprocess.run(
        ["grep", "-rl", TITLE, tree], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert f"{tree}/{SESSION}/index.html" in found


def test_nothing_can_be_changed(here: Path, mount: Mount) -> None:
    readme = here / "README.md"
    attempts: list[Callable[[], object]] = [
        lambda: readme.write_text("mine"),
        lambda: readme.open("ab"),
        lambda: os.truncate(readme, 0),
        lambda: readme.unlink(),
        lambda: readme.chmod(0o666),
        lambda: os.chown(readme, 0, 0),
        lambda: os.utime(readme),
        lambda: os.setxattr(readme, "user.a", b"b"),
        lambda: (here / "new").write_text("mine"),
        lambda: (here / "new").mkdir(),
        lambda: (here / "new").symlink_to("x"),
        lambda: os.mkfifo(here / "new"),
        lambda: os.link(mount.root / SESSION / "notes.txt", here / "new"),
        lambda: os.link(readme, mount.root / SESSION / "new"),
        lambda: os.rename(mount.root / SESSION / "notes.txt", here / "ctl"),
        lambda: os.rename(readme, mount.root / SESSION / "new"),
        lambda: (here / "seal").rmdir(),
        lambda: (mount.root / "landing/new").mkdir(),
        lambda: (mount.root / "views/new").mkdir(),
        lambda: (mount.root / "landing").rmdir(),
        lambda: (mount.root / "views").rename(mount.root / "other"),
        lambda: (mount.root / "area").rename(mount.root / "landing"),
    ]
    for number, attempt in enumerate(attempts):
        with pytest.raises(OSError) as caught:
            attempt()
        refusals = (errno.EROFS, errno.EXDEV, errno.EEXIST, errno.ENOTEMPTY)
        assert caught.value.errno in refusals, number
    assert not (mount.root / SESSION / "new").exists()
    with pytest.raises(OSError) as caught:
        (mount.root / SESSION / ".modama").rename(mount.root / SESSION / "records")
    assert caught.value.errno in (errno.EPERM, errno.EROFS, errno.EXDEV)


def test_programs_of_every_day_work_on_it(here: Path, tmp_path: Path, mount: Mount) -> None:
    tree = mount.root / "landing" / SESSION
    changed_ns = max(path.lstat().st_ctime_ns for path in mount.store.rglob("*"))
    for file in everything(tree):
        assert file.stat().st_mtime_ns <= changed_ns, f"{file}: its time is that of what it shows"
    for copy in (["cp", "-r"], ["rsync", "-a"]):
        target = tmp_path / copy[0]
        target.mkdir()
        subprocess.run([*copy, f"{tree}/.", target], check=True)
        for file in everything(tree):
            assert filecmp.cmp(file, target / file.relative_to(tree), shallow=False)
    again = subprocess.run(
        ["rsync", "-a", "--modify-window=-1", "--itemize-changes", f"{tree}/", tmp_path / "rsync"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert again == ""
    subprocess.run(["tar", "-C", tree, "-cf", tmp_path / "a.tar", "."], check=True)
    found = subprocess.run(
        ["grep", "-r", TITLE, here], capture_output=True, text=True, check=True
    ).stdout
    assert "README.md" in found
    with (
        (here / "README.md").open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
    ):
        assert mapped[:] == (here / "README.md").read_bytes()
    with (here / "README.md").open("rb") as file:
        size_bytes = file.seek(0, os.SEEK_END)
        assert size_bytes == len((here / "README.md").read_bytes())
        assert file.seek(7, os.SEEK_DATA) == 7
        assert file.seek(7, os.SEEK_HOLE) == size_bytes


def test_an_open_file_stays_what_it_was(here: Path, store: Path) -> None:
    before = (here / "metadata.json").read_bytes()
    inode = (here / "metadata.json").stat().st_ino
    assert (here / "metadata.json").stat().st_ino == inode
    with (here / "metadata.json").open("rb") as held, (here / "metadata.json").open("rb") as read:
        assert read.read(10) == before[:10]
        path = store / SESSION / ".modama/session.json"
        changed = json.loads(path.read_text()) | {"title": "Something else that is longer"}
        path.write_text(json.dumps(changed))
        after = (here / "metadata.json").read_bytes()
        assert after != before
        assert b"Something else" in after
        assert held.read() == before
        assert read.read() == before[10:]
        assert os.fstat(held.fileno()).st_size == len(before)
        assert (here / "metadata.json").read_bytes() == after
    assert (here / "metadata.json").stat().st_ino != inode


def test_it_outlives_the_daemon(here: Path, mount: Mount) -> None:
    before = (here / "README.md").read_bytes()
    inode = here.stat().st_ino
    descriptor = os.open(here, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with (here / "README.md").open("rb") as file:
            with mount.expected_in_log("worker"):
                mount.kill_worker()
            assert file.read() == before
        assert here.stat().st_ino == inode
        assert "README.md" in os.listdir(descriptor)
        assert os.stat("README.md", dir_fd=descriptor).st_size == len(before)
    finally:
        os.close(descriptor)


def test_a_directory_that_is_renamed_keeps_its_landing_directory(here: Path, mount: Mount) -> None:
    assert str(SESSION) in (here / "README.md").read_text()
    descriptor = os.open(here, os.O_RDONLY | os.O_DIRECTORY)
    raw = os.open(here.parent / "raw", os.O_RDONLY | os.O_DIRECTORY)
    try:
        other = mount.root / "area/project/other"
        (mount.root / SESSION).rename(other)
        with open(os.open("README.md", os.O_RDONLY, dir_fd=descriptor)) as file:
            assert "area/project/other" in file.read()
        assert TITLE in (other / ".modama/README.md").read_text()
        with pytest.raises(FileNotFoundError):
            (mount.root / SESSION / ".modama/README.md").read_text()
        os.stat(".modama/README.md", dir_fd=raw)
        shutil.rmtree(other / "raw")
        with pytest.raises(OSError) as caught:
            os.stat(".modama/README.md", dir_fd=raw)
        assert caught.value.errno in (errno.ESTALE, errno.ENOENT)
    finally:
        os.close(descriptor)
        os.close(raw)


def test_records_that_were_edited_into_nonsense_are_said(here: Path, store: Path) -> None:
    (store / SESSION / ".modama/session.json").write_text('{"title": ')
    assert "session.json" in (here / "README.md").read_text()
    assert "session.json" in (here / "index.html").read_text()
    assert modamafs("session", "set", here.parent, "--title", "x").returncode >= 2
    assert (store / SESSION / ".modama/session.json").read_text() == '{"title": '


def test_with_landing_unlisted_copying_and_removing_are_as_everywhere(
    mount: Mount, store: Path, tmp_path: Path
) -> None:
    session = mount.root / SESSION
    for words in (["cp", "-a", session, tmp_path / "cp"],
                  ["rsync", "-a", f"{session}/", tmp_path / "rsync"],
                  ["tar", "-C", session, "-cf", tmp_path / "tar", "."]):  # fmt: skip
        subprocess.run(words, check=True)
    (tmp_path / "untarred").mkdir()
    subprocess.run(["tar", "-C", tmp_path / "untarred", "-xf", tmp_path / "tar"], check=True)
    for copy in ("cp", "rsync", "untarred"):
        names = sorted(str(p.relative_to(tmp_path / copy)) for p in (tmp_path / copy).rglob("*"))
        assert names == ["notes.txt", "raw", "raw/frames", "raw/frames/1.raw", "raw/scan.raw"]
    bare = subprocess.run(
        ["du", "-s", "--apparent-size", "-b", "--exclude=.modama", store / SESSION],
        capture_output=True, text=True, check=True,
    ).stdout.split()[0]  # fmt: skip
    seen = subprocess.run(
        ["du", "-s", "--apparent-size", "-b", session], capture_output=True, text=True, check=True
    ).stdout.split()[0]
    assert seen == bare
    subprocess.run(["rm", "-r", session], check=True)
    assert not session.exists()
    assert not (store / SESSION).exists()


def test_a_store_that_has_such_a_name_is_refused(store: Path, workshop: Workshop) -> None:
    (store / "views").mkdir()
    mountpoint = workshop.mountpoint(store.name)
    mountpoint.mkdir()
    done = modamafs("mount", store, mountpoint)
    assert done.returncode == 3
    [line] = done.stderr.splitlines()
    assert "views" in line
    assert "config.toml" in line
    (store / ".modama").mkdir()
    (store / ".modama/config.toml").write_text('[views]\nname = "by"\n[landing]\nname = ""\n')
    with Mount(store, mountpoint) as mount:
        assert sorted(os.listdir(mount.root)) == ["area", "by", "views"]


# ---- ctl -----------------------------------------------------------------------------------------

SENT: dict[str, list[bytes]] = {
    "echo": [b"seal\n"],
    "printf": [b"seal"],
    "cmd.exe": [b"seal\r\n"],
    "PowerShell 7": [codecs.BOM_UTF8 + b"seal\r\n"],
    "PowerShell 5": [codecs.BOM_UTF16_LE + "seal\r\n".encode("utf-16-le")],
    "UTF-16 BE": [codecs.BOM_UTF16_BE + "seal\n".encode("utf-16-be")],
    "in pieces": [b"se", b"al", b"\n"],
    "waiting": [b"seal wait\n"],
}


@pytest.mark.parametrize("sent", SENT.values(), ids=SENT)
def test_the_owner_seals_with_a_plain_tool(here: Path, store: Path, sent: list[bytes]) -> None:
    def write() -> None:
        flags = os.O_WRONLY | os.O_TRUNC
        fd = os.open(here / "ctl", flags)
        try:
            for piece in sent:
                assert os.write(fd, piece) == len(piece)
        finally:
            os.close(fd)
        os.utime(here / "ctl")
        (here / "ctl").chmod(0o644)

    as_user(ALICE, write)
    wait_until(lambda: (here / "seal/state").read_text() == "sealed\n", "the seal")
    assert (store / SESSION / ".modama/seals/raw.json").exists()
    written = json.loads((store / SESSION / ".modama/seals/raw.json").read_text())
    assert written["sealed_by"] == str(ALICE.uid)
    assert (here / "seal/content_hash").read_text().strip() == written["content_hash"]
    wait_until(lambda: (here / "seal/progress").read_text() == "", "the end of the work")
    assert "sealed since" in (here / "ctl").read_text().splitlines()[-1]
    assert (here / "seals/raw.B3SUMS").read_bytes().count(b"\n") == 2
    assert json.loads((here / "history.jsonl").read_text().splitlines()[-1])["event"] == "sealed"


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (b"unseal\n", errno.EINVAL),
        (b"seal now\n", errno.EINVAL),
        (os.urandom(100).replace(b"\n", b"") + b"\xff\n", errno.EINVAL),
        (b"x" * (1 << 20), errno.EFBIG),
    ],
)
def test_what_is_no_command_is_refused(here: Path, sent: bytes, expected: int) -> None:
    fd = os.open(here / "ctl", os.O_WRONLY)
    with pytest.raises(OSError) as caught:
        try:
            assert os.write(fd, sent)
        finally:
            os.close(fd)
    assert caught.value.errno == expected
    assert (here / "ctl").read_text().splitlines()[-1].startswith("error: ")
    assert (here / "seal/state").read_text() == "open\n"


def test_a_shell_says_what_is_wrong(here: Path) -> None:
    done = subprocess.run(
        ["bash", "-c", f"echo unseal > {here}/ctl"], capture_output=True, text=True, check=False
    )
    assert done.returncode
    assert "Invalid argument" in done.stderr


def test_an_editor_that_saves_by_renaming_is_refused(here: Path, tmp_path: Path) -> None:
    (tmp_path / "ctl").write_text("seal\n")
    with pytest.raises(OSError) as caught:
        os.rename(tmp_path / "ctl", here / "ctl")
    assert caught.value.errno in (errno.EXDEV, errno.EROFS)
    with pytest.raises(OSError) as caught:
        (here / ".ctl.swp").write_text("seal\n")
    assert caught.value.errno == errno.EROFS
    assert (here / "seal/state").read_text() == "open\n"


def test_strangers_may_not_write_to_it(here: Path) -> None:
    found = (here / "ctl").stat()
    assert stat.S_IMODE(found.st_mode) == 0o600, "the group may not write in the session"
    here.parent.chmod(0o775)
    wait_until(lambda: stat.S_IMODE((here / "ctl").stat().st_mode) == 0o660, "the group's right")
    assert (found.st_uid, found.st_gid) == (ALICE.uid, ALICE.gid)
    with pytest.raises(PermissionError):
        as_user(BOB, lambda: (here / "ctl").write_text("seal\n"))
    assert not (here.parent.parent / ".modama/ctl").exists(), "no session"


def test_who_is_in_the_way_is_said(here: Path, mount: Mount) -> None:
    with (mount.root / RAW / "scan.raw").open("r+b"), (here / "ctl").open() as held:
        assert held.read().endswith("nothing was written yet\n")
        before = (here / "ctl").stat()
        with pytest.raises(OSError) as caught:
            (here / "ctl").write_text("seal\n")
        assert caught.value.errno == errno.EBUSY
        text = (here / "ctl").read_text()
        last = text.splitlines()[-1]
        assert "scan.raw" in last
        assert str(os.getpid()) in last
        held.seek(0)
        assert held.read() == text, "file servers keep it open"
        assert (here / "ctl").stat().st_mtime_ns > before.st_mtime_ns, "their clients keep it"
        writing = subprocess.Popen(["sh", "-c", 'echo seal wait > "$0"', here / "ctl"])
        wait_until(lambda: writing.poll() is not None, "the gate to be shut, and no longer")
        assert writing.returncode == 0
        assert "waiting" in (here / "seal/progress").read_text()
        assert (here / "seal/state").read_text() == "sealing\n"
        with pytest.raises(OSError) as caught:
            (mount.root / RAW / "new").write_text("")
        assert caught.value.errno == errno.EROFS
    wait_until(lambda: (here / "seal/state").read_text() == "sealed\n", "the writer's end")


def test_verifying_by_ctl_finds_and_shows_damage(here: Path, store: Path) -> None:
    assert modamafs("seal", here.parent / "raw").returncode == 0
    (here / "ctl").write_text("verify\n")
    wait_until(lambda: "as it was sealed" in (here / "ctl").read_text(), "verify")
    assert (here / "seal/verified_at").read_text().startswith("20")
    file = store / RAW / "scan.raw"
    assert subprocess.run(["chattr", "-i", file], check=False).returncode == 0
    found = file.stat()
    with file.open("r+b") as opened:
        opened.write(b"M")
    os.utime(file, ns=(found.st_atime_ns, found.st_mtime_ns))
    (here / "ctl").write_text("verify\n")
    wait_until(lambda: "NOT as it was" in (here / "ctl").read_text(), "verify")
    lines = (here / "README.md").read_text().splitlines()
    assert "    - damaged: `scan.raw`" in lines
    assert "- `raw/scan.raw` (8.0 kB) **damaged**" in lines
    assert (here.parent / "raw/scan.raw").read_bytes().startswith(b"M"), "reading stays possible"


def test_history_can_be_followed(here: Path, mount: Mount) -> None:
    assert modamafs("seal", mount.root / RAW).returncode == 0
    with subprocess.Popen(
        ["timeout", "30", "tail", "-n", "+1", "-s", "0.1", "-f", here / "history.jsonl"],
        stdout=subprocess.PIPE,
    ) as tail:
        try:
            assert tail.stdout is not None
            assert b"sealed" in tail.stdout.readline()
            assert modamafs("verify", mount.root / RAW).returncode == 0
            assert b"verified" in tail.stdout.readline()
        finally:
            tail.terminate()


# ---- private projects ----------------------------------------------------------------------------


@pytest.fixture
def private(store: Path) -> Path:
    """A private project of Alice's beside the other one."""
    project = store / "area/umbra"
    (project / "secret/raw").mkdir(parents=True)
    (project / "secret/raw/scan.raw").write_bytes(b"secret")
    record(
        project / ".modama/project.json",
        id="6d0b2b0a-95a4-4a4f-8a4b-4d3b3d1b0f3e",
        title="Unpublished",
        owner={"name": "Alice", "user": "alice"},
        visibility="private",
    )
    record(
        project / "secret/.modama/session.json",
        id="a3f25c1e-50f5-4f5b-8b43-7f2fb2c4b0aa",
        title="Not to be known",
        owner={"name": "Alice", "user": "alice"},
        date="2026-07-02",
        metadata={"sample": {"value": "umbra-sample"}},
    )
    for path in [project, *project.rglob("*")]:
        os.chown(path, ALICE.uid, ALICE.gid)
    project.chmod(0o2770)
    return project


def names_below(directory: Path) -> set[str]:
    """Every name that somebody meets who looks everywhere."""
    return {
        name
        for _, directories, files in os.walk(directory, onerror=lambda _: None)
        for name in (*directories, *files)
    }


@pytest.mark.usefixtures("private")
def test_strangers_do_not_meet_a_private_project(mount: Mount) -> None:
    def look() -> set[str]:
        return names_below(mount.root)

    hers, others = as_user(ALICE, look), as_user(BOB, look)
    assert {"umbra", "secret"} <= hers
    hidden = {name for name in others if "umbra" in name or "secret" in name}
    assert hidden == set()
    assert "project" in others

    def enter() -> None:
        for path in ("area/umbra/secret", "area/umbra/.modama/README.md",
                     "landing/area/umbra/README.md", "landing/area/umbra/secret",
                     "views/area/umbra/latest"):  # fmt: skip
            with pytest.raises(PermissionError):
                os.stat(mount.root / path, follow_symlinks=False)
        for path in ("area/umbra", "landing/area/umbra", "views/area/umbra"):
            with pytest.raises(PermissionError):
                os.listdir(mount.root / path)

    as_user(BOB, enter)


def texts(directory: Path) -> str:
    """Everything that can be read below a directory."""
    found = []
    for path in everything(directory):
        try:
            found.append(path.read_bytes().decode(errors="replace"))
        except PermissionError:
            continue
    return "\n".join(found)


@pytest.mark.usefixtures("private")
def test_no_page_tells_of_a_private_project(mount: Mount) -> None:
    assert modamafs("seal", mount.root / "area/umbra/secret/raw").returncode == 0
    for place in (".modama", "area/.modama", "landing", "landing/area", "views"):
        for user in (BOB, ALICE):  # what is said of an area is the same for everybody
            if user is ALICE and not place.endswith(".modama"):
                continue
            read = as_user(user, texts, mount.root / place)
            for word in ("umbra", "secret", "Unpublished", "Not to be known"):
                assert word not in read, (place, word)
    assert "Not to be known" in as_user(ALICE, texts, mount.root / "area/umbra/secret/.modama")


def test_a_page_tells_no_more_than_everybody_may_know_who_reads_it(here: Path, store: Path) -> None:
    (store / RAW / "closed").mkdir()
    (store / RAW / "closed/confidential.raw").write_bytes(b"1")
    (store / RAW / "closed").chmod(0o700)
    read = as_user(BOB, texts, here)
    assert "frames/1.raw" in read
    assert "confidential" not in read


@pytest.mark.usefixtures("private")
def test_members_work_while_others_probe(mount: Mount) -> None:
    places = ("area/umbra", "landing/area/umbra/secret", "views/area/umbra/by-owner",
              "views/all/by-owner/alice")  # fmt: skip
    for place in places:
        with subprocess.Popen(
            ["bash", "-c", "read x; pwd -P && /bin/pwd && ls . >/dev/null"],
            cwd=mount.root / place, user=ALICE.uid, group=ALICE.gid, extra_groups=[],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        ) as inside:  # fmt: skip

            def probe() -> None:
                for _ in range(3):
                    names_below(mount.root)
                    os.path.exists(mount.root / place)  # noqa: B023

            as_user(BOB, probe)
            out, _ = inside.communicate("\n")
            assert inside.returncode == 0, place
            assert out.splitlines() == [str(mount.root / place)] * 2


@pytest.mark.usefixtures("private")
def test_opened_directories_are_listed_for_who_opened_them(mount: Mount) -> None:
    for _ in range(3):
        assert "umbra" in as_user(ALICE, lambda: os.listdir(mount.root / "area"))
        assert "umbra" not in as_user(BOB, lambda: os.listdir(mount.root / "area"))


# ---- views ---------------------------------------------------------------------------------------


def test_views_lead_to_sessions(mount: Mount) -> None:
    views = mount.root / "views"
    project = views / "area/project"
    assert (project / "latest").resolve() == mount.root / SESSION
    assert os.listdir(project / "open") == ["session"]
    assert os.listdir(project / "sealed") == []
    assert os.listdir(project / "by-date/2026/07") == ["session"]
    assert os.listdir(project / "by-instrument") == ["Titan G3"]
    assert os.listdir(project / "by-owner") == ["alice"]
    assert "temperature=5 K" in os.listdir(project / "by")
    for path in views.rglob("*"):
        if path.is_symlink():
            assert not os.readlink(path).startswith("/")
            assert path.resolve() == mount.root / SESSION
    assert modamafs("seal", mount.root / RAW).returncode == 0
    wait_until(lambda: os.listdir(project / "sealed") == ["session"], "the view to know")
    assert os.listdir(project / "open") == []


def test_mine_is_the_callers(mount: Mount, store: Path) -> None:
    def mine() -> set[str]:
        return names_below(mount.root / "views/mine")

    path = store / SESSION / ".modama/session.json"
    nobody = pwd.getpwuid(65534)
    user = User(nobody.pw_uid, nobody.pw_gid)
    assert not any("session" in name for name in as_user(user, mine))
    changed = json.loads(path.read_text()) | {"owner": {"name": "N", "user": nobody.pw_name}}
    path.write_text(json.dumps(changed))
    wait_until(lambda: any("session" in name for name in as_user(user, mine)), "the view to know")
    assert not any("session" in name for name in as_user(BOB, mine))
