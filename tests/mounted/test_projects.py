"""Projects and sessions as people make them: who may, who gets in, what is left of a failure."""

from __future__ import annotations

import errno
import grp
import json
import os
import pwd
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from modamafs import projects
from modamafs.control import client
from modamafs.errors import Busy, InvalidRequest, ModamaError
from modamafs.model import Caller
from modamafs.store import catalogue
from modamafs.store.backing import Store
from tests.support.mounts import Mount, modamafs
from tests.support.targets import Workshop
from tests.support.users import ROOT, User, as_user

TEAM = "modamafs-team"
STEWARDS = "modamafs-stewards"
FRESH = ("-o", "attribute_timeout_s=0,entry_timeout_s=0")

one_kind = pytest.mark.parametrize("store", ["ext4"], indirect=True)
"""For what does not depend on the file system."""


class People(NamedTuple):
    """Users of this system; Carol is in the team, Dora a steward, Eve a stranger."""

    alice: User
    bob: User
    carol: User
    dora: User
    eve: User


def login(name: str) -> str:
    return f"modamafs-{name}"


@pytest.fixture(scope="module")
def people() -> Iterator[People]:
    """Users of this system, for as long as these tests run."""
    groups = {"carol": TEAM, "dora": STEWARDS}
    try:
        for group in (TEAM, STEWARDS):
            subprocess.run(["groupadd", group], check=True)
        found = []
        for name in People._fields:
            more = ["--groups", groups[name]] if name in groups else []
            subprocess.run(
                ["useradd", "--no-create-home", "--user-group", *more, login(name)], check=True
            )
            user = pwd.getpwnam(login(name))
            gids = tuple(os.getgrouplist(user.pw_name, user.pw_gid))
            found.append(User(user.pw_uid, user.pw_gid, gids))
        yield People(*found)
    finally:
        for name in People._fields:
            subprocess.run(["userdel", login(name)], check=False)
        for group in (TEAM, STEWARDS):
            subprocess.run(["groupdel", group], check=False)


@pytest.fixture
def store(store: Path, people: People) -> Path:
    """A store with an area that Alice may make projects in."""
    store.chmod(0o755)
    (store / "tem").mkdir()
    (store / "tem").chmod(0o755)
    os.chown(store / "tem", people.alice.uid, people.alice.gid)
    (store / ".modama").mkdir()
    (store / ".modama/config.toml").write_text(f'[stewards]\ngroup = "{STEWARDS}"\n')
    return store


@pytest.fixture
def mount(store: Path, workshop: Workshop) -> Iterator[Mount]:
    with Mount(store, workshop.mountpoint(store.name), *FRESH) as mount:
        yield mount


def run(user: User, *arguments: str | Path) -> Any:
    """The result of a command that succeeds."""
    done = as_user(user, modamafs, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def refusal(user: User, *arguments: str | Path) -> str:
    """The one line of a command that is refused."""
    done = as_user(user, modamafs, *arguments)
    assert done.returncode >= 2, done.stdout
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def refused(user: User, number: int, function: Any, *arguments: Any) -> None:
    with pytest.raises(OSError) as caught:
        as_user(user, function, *arguments)
    assert caught.value.errno == number, caught.value


def create_with_umask(path: Path, umask: int = 0o077) -> None:
    os.umask(umask)
    (path / "made").mkdir()
    (path / "made/file").write_text("x")


def append(path: Path) -> None:
    with open(path, "a") as file:
        file.write("more")


def everything(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


# ---- what is made --------------------------------------------------------------------------------


def test_a_project_and_a_session(mount: Mount, people: People) -> None:
    path = mount.root / "tem/plates"
    made = run(
        people.alice, "project", "create", path, "--title", "Phase plates", "--description", "Long",
        "--member", login("bob"), "--license", "CC-BY-4.0", "--keyword", "holography",
        "--meta", "beam_energy=300 keV", "--meta", "batch=007", "--meta", "note=thin film",
        "--link", "Wiki=https://wiki.example.org/?a=b",
    )  # fmt: skip
    assert made["path"] == "tem/plates"
    assert made["problem"] is None
    record = json.loads((mount.store / "tem/plates/.modama/project.json").read_text())
    assert record == made["record"]
    assert record["title"] == "Phase plates"
    assert record["owner"]["user"] == login("alice")
    assert [member["user"] for member in record["members"]] == [login("bob")]
    assert record["visibility"] == "members"
    assert record["links"] == {"Wiki": "https://wiki.example.org/?a=b"}
    assert record["metadata"] == {
        "beam_energy": {"value": 300, "unit": "keV"},
        "batch": {"value": "007", "unit": None},
        "note": {"value": "thin film", "unit": None},
    }
    assert record["created_at"].endswith("Z")
    found = path.stat()
    assert (found.st_uid, found.st_gid) == (people.alice.uid, people.alice.gid)
    assert stat.S_IMODE(found.st_mode) == 0o3775
    session = run(
        people.bob, "session", "create", path / "2026-11-23", "--title", "First light",
        "--instrument", "Titan", "--date", "2026-11-23", "--sample", "PP-7",
        "--sampledb-id", "42", "--elabftw-id", "7",
    )  # fmt: skip
    record = json.loads((mount.store / "tem/plates/2026-11-23/.modama/session.json").read_text())
    assert record == session["record"]
    assert (record["sampledb_id"], record["elabftw_id"]) == (42, 7)
    assert record["owner"]["user"] == login("bob")
    assert session["seals"] == {}
    for directory in (path / "2026-11-23", path / "2026-11-23/raw"):
        found = directory.stat()
        assert (found.st_uid, found.st_gid) == (people.bob.uid, people.alice.gid)
        assert stat.S_IMODE(found.st_mode) == 0o2775
    assert os.listdir(path / "2026-11-23") == ["raw"]
    assert os.listdir(path / "2026-11-23/raw") == []
    assert run(people.eve, "project", "show", path)["record"]["title"] == "Phase plates"
    assert [one["path"] for one in run(people.eve, "project", "list", mount.root)] == ["tem/plates"]
    [listed] = run(people.eve, "session", "list", path)
    assert listed["record"] == record
    assert modamafs("seal", path / "2026-11-23/raw").returncode == 0
    assert run(people.eve, "session", "list", mount.root)[0]["seals"] == {"raw": "sealed"}


def test_what_members_create_is_writable_for_all_of_them(mount: Mount, people: People) -> None:
    path = mount.root / "tem/plates"
    session = path / "one"
    run(ROOT, "project", "create", path, "--title", "t", "--owner", login("alice"),
        "--member", login("bob"), "--group", TEAM)  # fmt: skip
    assert path.stat().st_gid == grp.getgrnam(TEAM).gr_gid
    run(people.bob, "session", "create", session, "--title", "t")
    for user, name in ((people.alice, "raw"), (people.bob, "."), (people.carol, "raw/made")):
        as_user(user, create_with_umask, session / name)
    for file in session.rglob("file"):
        assert file.stat().st_gid == grp.getgrnam(TEAM).gr_gid
        assert file.stat().st_mode & 0o060 == 0o060
        for user in (people.alice, people.bob, people.carol):
            as_user(user, append, file)
        refused(people.eve, errno.EACCES, append, file)
        assert as_user(people.eve, file.read_text).startswith("x")
    assert len(list(session.rglob("file"))) == 3
    # They write in each other's sessions, and can't remove them.
    refused(people.carol, errno.EPERM, os.rename, session, path / "two")


@one_kind
def test_without_a_group_the_owners_own_one_gets_nothing(mount: Mount, people: People) -> None:
    everybody = people.eve._replace(gid=people.alice.gid)
    for name, private in (("open", []), ("closed", ["--private"])):
        path = mount.root / "tem" / name
        run(people.alice, "project", "create", path, "--title", "t", *private)
        refused(everybody, errno.EACCES, os.mkdir, path / "x")
    refused(everybody, errno.EACCES, os.listdir, mount.root / "tem/closed")
    assert as_user(everybody, os.listdir, mount.root / "tem/open") == []


# ---- private -------------------------------------------------------------------------------------


def test_private_is_closed_to_strangers_and_open_to_members(mount: Mount, people: People) -> None:
    path = mount.root / "tem/secret"
    run(people.alice, "project", "create", "--private", path, "--title", "t",
        "--member", login("bob"))  # fmt: skip
    run(people.alice, "session", "create", path / "one", "--title", "t")
    (path / "one/raw/scan").write_text("x")
    assert stat.S_IMODE(path.stat().st_mode) & 0o2777 == 0o2770
    for place in (mount.root, mount.store):
        for call, name in (
            (os.listdir, "tem/secret"),
            (os.stat, "tem/secret/one"),
            (os.listdir, "tem/secret/one/raw"),
            (os.mkdir, "tem/secret/x"),
        ):
            refused(people.eve, errno.EACCES, call, place / name)
            refused(people.dora, errno.EACCES, call, place / name)
        assert as_user(people.bob, (place / "tem/secret/one/raw/scan").read_text) == "x"
    as_user(people.bob, append, path / "one/raw/scan")
    assert run(people.eve, "project", "list", mount.root) == []
    assert run(people.eve, "session", "list", mount.root) == []
    refusal(people.eve, "session", "list", path)
    refusal(people.eve, "project", "show", path)
    for verb in ("project-show", "session-show", "session-list"):
        with pytest.raises(ModamaError, match="closed to you") as caught:
            arguments = {"path": "tem/secret/one" if verb == "session-show" else "tem/secret"}
            as_user(people.eve, call_and_keep, mount.runtime, verb, arguments)
        assert caught.value.errno == errno.EACCES
    for user in (people.alice, people.bob, ROOT):
        assert len(run(user, "project", "list", mount.root)) == 1
        assert len(run(user, "session", "list", mount.root)) == 1
    run(people.alice, "project", "set", path, "--no-private")
    assert len(run(people.eve, "project", "list", mount.root)) == 1
    (mount.store / "tem").chmod(0o700)
    assert run(people.eve, "project", "list", mount.root) == []


def call_and_keep(runtime: Path, verb: str, arguments: dict[str, Any]) -> Any:
    return client.call(runtime, verb, arguments)


def test_who_comes_and_who_goes(mount: Mount, people: People) -> None:
    path = mount.root / "tem/plates"
    run(people.alice, "project", "create", path, "--title", "t", "--member", login("bob"))
    run(people.alice, "session", "create", path / "one", "--title", "t")
    as_user(people.alice, create_with_umask, path / "one")
    file = path / "one/made/file"
    as_user(people.bob, append, file)
    read_only = path / "one/made/read-only"
    read_only.write_text("x")
    read_only.chmod(0o444)
    refused(people.carol, errno.EACCES, append, file)
    run(people.alice, "session", "create", path / "sealed", "--title", "t")
    (path / "sealed/raw/scan").write_text("x")
    assert modamafs("seal", path / "sealed/raw").returncode == 0
    elsewhere = mount.root / "tem/elsewhere"
    elsewhere.write_text("x")
    os.link(elsewhere, path / "one/linked")
    changed = run(people.alice, "project", "set", path, "--member", login("carol"),
                  "--remove", f"member={login('bob')}", "--private")  # fmt: skip
    assert [member["user"] for member in changed["record"]["members"]] == [login("carol")]
    as_user(people.carol, append, file)
    as_user(people.carol, create_with_umask, path / "one/raw")
    assert as_user(people.carol, (path / "sealed/raw/scan").read_text) == "x"
    refused(people.carol, errno.EACCES, append, read_only)
    assert os.listxattr(elsewhere) == []
    refused(people.bob, errno.EACCES, append, file)
    run(people.alice, "project", "set", path, "--no-private")
    refused(people.bob, errno.EACCES, append, file)
    refused(people.bob, errno.EACCES, os.mkdir, path / "one/x")
    assert as_user(people.bob, file.read_text)
    assert modamafs("verify", path / "sealed/raw").returncode == 0
    run(ROOT, "project", "set", path, "--group", TEAM)
    assert file.stat().st_gid == grp.getgrnam(TEAM).gr_gid
    run(people.alice, "project", "set", path, "--remove", "group")
    assert path.stat().st_gid == people.alice.gid


@one_kind
def test_a_directory_that_is_there_becomes_a_project(mount: Mount, people: People) -> None:
    path = mount.root / "tem/old"
    (path / "one/raw").mkdir(parents=True)
    (path / "one/raw/scan").write_text("x")
    for each in (path, path / "one", path / "one/raw", path / "one/raw/scan"):
        os.chown(each, people.alice.uid, people.alice.gid)
    assert as_user(people.alice, modamafs, "project", "show", path).returncode == 1
    assert "title" in refusal(people.alice, "project", "set", path, "--keyword", "x")
    assert "project set" in refusal(people.alice, "session", "create", path / "two", "--title", "t")
    assert not (mount.store / "tem/old/.modama/project.json").exists()
    mode = path.stat().st_mode
    run(people.alice, "project", "set", path, "--title", "Old")
    assert path.stat().st_mode == mode
    run(people.alice, "session", "set", path / "one", "--title", "One", "--date", "2020-02-29")
    refused(people.bob, errno.EACCES, append, path / "one/raw/scan")
    run(people.alice, "project", "set", path, "--member", login("bob"))
    as_user(people.bob, append, path / "one/raw/scan")
    as_user(people.bob, create_with_umask, path / "one/raw")
    assert run(people.bob, "session", "list", path)[0]["record"]["date"] == "2020-02-29"


# ---- who may -------------------------------------------------------------------------------------


@one_kind
def test_who_may_make_and_change_what(mount: Mount, people: People) -> None:
    path = mount.root / "tem/plates"
    title = ("--title", "t")
    assert "write to the area" in refusal(people.bob, "project", "create", path, *title)
    assert "steward or root" in refusal(
        people.alice, "project", "create", path, *title, "--owner", login("bob")
    )
    assert "in that group" in refusal(
        people.alice, "project", "create", path, *title, "--group", TEAM
    )
    assert "steward or root makes it" in refusal(
        people.alice, "project", "create", mount.root / "new/plates", *title
    )
    assert everything(mount.store / "tem") == []
    run(people.dora, "project", "create", mount.root / "new/plates", *title)
    assert stat.S_IMODE((mount.root / "new").stat().st_mode) == 0o755
    assert (mount.root / "new").stat().st_uid == 0
    run(people.alice, "project", "create", path, *title, "--private", "--member", login("bob"))
    refusal(people.eve, "session", "create", path / "one", *title)
    run(people.bob, "session", "create", path / "one", *title)
    run(people.dora, "session", "create", path / "two", *title, "--owner", login("bob"))
    assert "steward or root" in refusal(
        people.bob, "session", "create", path / "three", *title, "--owner", login("alice")
    )
    run(people.alice, "session", "create", path / "three", *title, "--owner", login("bob"))
    assert (path / "three").stat().st_uid == people.bob.uid
    for user, arguments in (
        (people.bob, ("project", "set", path)),
        (people.eve, ("project", "set", path)),
        (people.alice, ("session", "set", path / "one")),
        (people.eve, ("session", "set", path / "one")),
    ):
        refusal(user, *arguments, *title)
    for user in (people.alice, people.dora, ROOT):
        run(user, "project", "set", path, "--title", f"by {user.uid}")
    for user in (people.bob, people.dora, ROOT):
        run(user, "session", "set", path / "one", "--title", f"by {user.uid}")
    assert run(people.bob, "session", "show", path / "one")["record"]["title"] == "by 0"
    assert "no member" in refusal(people.alice, "project", "set", path, "--remove", "member=x")
    for option in ("--owner", "--member", "--group"):
        assert "there is no" in refusal(
            ROOT, "project", "create", mount.root / "tem/x", *title, option, "nobody-at-all"
        )
    run(people.dora, "project", "set", path, "--owner", login("bob"))
    assert path.stat().st_uid == people.bob.uid
    run(people.bob, "project", "set", path, "--title", "mine now")


@one_kind
def test_a_read_only_mount_and_no_mount(store: Path, workshop: Workshop, people: People) -> None:
    path = store / "tem/plates"
    assert "only root" in refusal(people.alice, "project", "create", path, "--title", "t")
    run(ROOT, "project", "create", path, "--title", "t", "--owner", login("alice"))
    run(ROOT, "session", "create", path / "one", "--title", "t")
    assert run(people.eve, "project", "list", store)[0]["path"] == "tem/plates"
    with Mount(store, workshop.mountpoint(store.name), "--read-only") as mount:
        for arguments in (
            ("project", "create", mount.root / "tem/new"),
            ("project", "set", mount.root / "tem/plates"),
            ("session", "create", mount.root / "tem/plates/two"),
            ("session", "set", mount.root / "tem/plates/one"),
        ):
            assert "read-only" in refusal(ROOT, *arguments, "--title", "t")
        assert len(run(people.eve, "session", "list", mount.root / "tem/plates")) == 1
    assert everything(store / "tem") == sorted(
        ["plates", "plates/.modama", "plates/.modama/project.json", "plates/one",
         "plates/one/.modama", "plates/one/.modama/session.json", "plates/one/raw"]
    )  # fmt: skip


@one_kind
def test_a_view_shows_and_changes_its_projects_only(
    store: Path, workshop: Workshop, people: People
) -> None:
    for name in ("mine", "yours"):
        run(ROOT, "project", "create", store / "tem" / name, "--title", "t",
            "--owner", login("alice"))  # fmt: skip
    assert modamafs("view", "add", store, "partners", "tem/mine").returncode == 0
    point = workshop.mountpoint(f"{store.name}-view")
    with Mount(store, point, "--view", "partners", *FRESH) as view:
        listed = as_user(people.alice, call_and_keep, view.runtime, "project-list", {})
        assert [one["path"] for one in listed] == ["tem/mine"]
        for verb in ("project-show", "project-set", "session-create"):
            path = "tem/yours/one" if verb == "session-create" else "tem/yours"
            with pytest.raises(ModamaError, match="not in the view"):
                client.call(view.runtime, verb, {"path": path, **titled(verb)})
        run(people.alice, "session", "create", view.root / "one", "--title", "t")
    assert (store / "tem/mine/one/raw").is_dir()
    assert not (store / "tem/yours/one").exists()


def titled(verb: str) -> dict[str, str]:
    return {} if verb == "project-show" else {"title": "t"}


# ---- names and other input -----------------------------------------------------------------------


NAMES = (
    *("", "tem", "tem/a/b", "tem/..", "tem/.", "../x", "tem/a\0b", "tem\0/a", f"tem/{'x' * 256}"),
    *("tem/con", "tem/Nul.txt", "tem/PLATES", "tem/рlаtes", "tem/plates ", "tem/.modama"),
    *("tem/.modama~new", ".modama/x", "landing/x", "views/x", "tem/a\\b", "tem/\udcff", "tem//"),
    *("TEM/x", "nothing\n/x", "tem/plates"),
)


@one_kind
def test_names_that_are_refused(mount: Mount) -> None:
    client.call(mount.runtime, "project-create", {"path": "tem/plates", "title": "t"})
    before = everything(mount.store)
    for path in NAMES:
        with pytest.raises(ModamaError) as caught:
            client.call(mount.runtime, "project-create", {"path": path, "title": "t"})
        assert caught.value.errno == errno.EINVAL, path
        assert len(caught.value.message.splitlines()) == 1, path
        assert everything(mount.store) == before, path


@one_kind
def test_arguments_that_make_no_sense(mount: Mount) -> None:
    good: dict[str, Any] = {"path": "tem/plates", "title": "t"}
    for verb, wrong in (
        ("project-create", {"title": None}),
        ("project-create", {"title": " "}),
        ("project-create", {"title": "two\nlines"}),
        ("project-create", {"title": 3}),
        ("project-create", {"path": 3}),
        ("project-create", {"unknown": 1}),
        ("project-create", {"members": "bob"}),
        ("project-create", {"visibility": "hidden"}),
        ("project-create", {"links": {"x": "javascript:alert(1)"}}),
        ("project-create", {"links": {"x": "nothing"}}),
        ("project-create", {"metadata": {"x": 3}}),
        ("project-create", {"keywords": [" "]}),
        ("project-create", {"keywords": ["x" * 900] * 10 + [f"{n}" for n in range(3)] * 9000}),
        ("session-create", {"date": "2026-02-30"}),
        ("session-create", {"date": "20260101"}),
        ("session-create", {"date": "yesterday"}),
        ("session-create", {"path": "tem/nothing/one"}),
        ("session-list", {"path": "a/b/c"}),
        ("project-show", {"path": "tem/../tem/x"}),
        ("project-set", {"path": "tem/plates"}),
    ):
        with pytest.raises(ModamaError) as caught:
            client.call(mount.runtime, verb, good | wrong)
        assert caught.value.errno == errno.EINVAL, wrong
    assert everything(mount.store / "tem") == []
    for arguments in (["--link", "x"], ["--meta", "=3"], ["--meta", "x="]):
        done = modamafs("project", "create", mount.root / "tem/x", "--title", "t", *arguments)
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1


@one_kind
def test_nothing_leads_out_of_the_store(mount: Mount, tmp_path: Path) -> None:
    (mount.store / "tem/link").symlink_to(tmp_path)
    (mount.store / "link").symlink_to(tmp_path)
    for verb, path in (
        ("project-create", "link/x"),
        ("project-set", "tem/link"),
        ("session-create", "tem/link/x"),
        ("session-list", "tem/link"),
    ):
        with pytest.raises(ModamaError):
            client.call(mount.runtime, verb, {"path": path} | ({"title": "t"} if "list" not in verb
                                                              else {}))  # fmt: skip
    assert list(tmp_path.iterdir()) == []


# ---- records that were edited --------------------------------------------------------------------


@one_kind
def test_a_record_that_is_no_json_is_left_alone(mount: Mount, people: People) -> None:
    path = mount.root / "tem/plates"
    run(people.alice, "project", "create", path, "--title", "t")
    record = mount.store / "tem/plates/.modama/project.json"
    record.write_text('{"title": "oops",\n}')
    message = refusal(people.alice, "project", "set", path, "--title", "t")
    assert "tem/plates/.modama/project.json" in message
    assert "line 2" in message
    assert "repair" in message
    assert record.read_text() == '{"title": "oops",\n}'
    assert "line 2" in refusal(people.alice, "session", "create", path / "one", "--title", "t")
    done = as_user(people.eve, modamafs, "project", "show", path)
    assert done.returncode == 1
    assert "line 2" in done.stdout
    assert "line 2" in run(people.eve, "project", "list", mount.root)[0]["problem"]
    assert everything(path) == []


@one_kind
def test_fields_that_others_have_added_are_kept(mount: Mount, people: People) -> None:
    path = mount.root / "tem/plates"
    run(people.alice, "project", "create", path, "--title", "t", "--keyword", "a")
    record = mount.store / "tem/plates/.modama/project.json"
    edited = json.loads(record.read_text()) | {"doi": "10.1/x", "grant": {"id": [1, None]}}
    edited["owner"]["orcid"] = "0000-0002-1825-0097"
    edited["owner"]["phone"] = "123"
    record.write_text(json.dumps(edited))
    run(people.alice, "project", "set", path, "--title", "new", "--keyword", "b",
        "--remove", "keyword=a", "--meta", "x=1.5", "--license", "MIT")  # fmt: skip
    assert json.loads(record.read_text()) == edited | {
        "title": "new",
        "keywords": ["b"],
        "metadata": {"x": {"value": 1.5, "unit": None}},
        "license": "MIT",
    }
    run(people.alice, "project", "set", path, "--remove", "license", "--remove", "meta=x")
    changed = json.loads(record.read_text())
    assert (changed["license"], changed["metadata"]) == (None, {})
    assert "there is no such thing" in refusal(
        people.alice, "project", "set", path, "--remove", "title"
    )


@one_kind
def test_an_edit_meanwhile_is_not_lost(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = Caller(0, 0)
    record = store / "tem/plates/.modama/project.json"
    with Store(store) as opened:
        projects.create_project(opened, {"path": "tem/plates", "title": "t"}, root)
        (store / "tem/plates/one").mkdir()
        (store / "tem/plates/one/file").touch()
        before = snapshot(store)
        share_inside = projects._share_inside

        def edit(*arguments: Any) -> None:
            share_inside(*arguments)
            assert snapshot(store) != before
            record.write_text(record.read_text().replace('"t"', '"edited"'))

        monkeypatch.setattr(projects, "_share_inside", edit)
        with pytest.raises(Busy, match="edited by somebody else"):
            projects.set_project(
                opened, {"path": "tem/plates", "members": [login("bob")], "title": "u"}, root
            )
    assert json.loads(record.read_text())["title"] == "edited"
    record.write_text(record.read_text().replace('"edited"', '"t"'))
    assert snapshot(store) == before


@one_kind
def test_a_sealed_session(mount: Mount, people: People) -> None:
    path = mount.root / "tem/plates/one"
    run(people.alice, "project", "create", path.parent, "--title", "t")
    run(people.alice, "session", "create", path, "--title", "t")
    assert modamafs("seal", path / "raw").returncode == 0
    changed = run(people.alice, "session", "set", path, "--title", "after")
    assert (changed["record"]["title"], changed["seals"]) == ("after", {"raw": "sealed"})
    assert modamafs("verify", path / "raw").returncode == 0
    assert modamafs("seal", path).returncode == 0
    with pytest.raises(ModamaError, match="is sealed") as caught:
        client.call(mount.runtime, "session-set", {"path": "tem/plates/one", "title": "x"})
    assert caught.value.errno == errno.EROFS
    assert modamafs("seal", path.parent).returncode == 0
    assert "is sealed" in refusal(ROOT, "session", "create", path.parent / "two", "--title", "t")
    assert "is sealed" in refusal(ROOT, "project", "set", path.parent, "--title", "t")
    assert run(ROOT, "session", "show", path)["record"]["title"] == "after"


# ---- failures ------------------------------------------------------------------------------------


def fill(path: Path) -> None:
    """Until not a block, and not an inode, is left."""
    with open(path, "wb", buffering=0) as file:
        for piece in (1 << 20, 1 << 12):
            try:
                while True:
                    file.write(bytes(piece))
            except OSError:
                pass


def small_image(directory: Path) -> Path:
    file = directory / "image"
    options = ["-b", "4096", "-m", "0", "-N", "256", "-O", "^has_journal,^resize_inode"]
    subprocess.run(["mkfs.ext4", "-q", "-F", *options, file, "2M"], check=True)
    return file


@pytest.mark.usefixtures("people")
@pytest.mark.parametrize("verb", ["project-create", "session-create", "project-set"])
def test_a_full_disk_leaves_nothing(verb: str, tmp_path: Path) -> None:
    """With every number of blocks left, from none to enough."""
    root = tmp_path / "store"
    root.mkdir()
    subprocess.run(["mount", "-o", "loop", small_image(tmp_path), root], check=True)
    try:
        with Store(root) as store:
            caller = Caller(0, 0)
            projects.create_project(store, {"path": "tem/old", "title": "t"}, caller)
            projects.create_session(store, {"path": "tem/old/one", "title": "t"}, caller)
            shutil.rmtree(root / "lost+found")
            for number in range(30):
                (root / f"spare-{number}").write_bytes(bytes(4096))
            fill(root / "filler")
            arguments = {
                "project-create": {"path": "new/plates", "title": "t"},
                "session-create": {"path": "tem/old/two", "title": "t"},
                "project-set": {"path": "tem/old", "description": "x" * 9000,
                                "members": [login("bob"), login("carol")]},
            }[verb]  # fmt: skip
            failures = 0
            for number in range(30):
                before = snapshot(root)
                try:
                    projects.VERBS[verb](store, arguments, caller)
                    break
                except OSError as error:
                    assert error.errno == errno.ENOSPC
                failures += 1
                assert snapshot(root) == before
                (root / f"spare-{number}").unlink()
            else:
                pytest.fail("there is never room")
            assert failures
    finally:
        subprocess.run(["umount", root], check=True)


def snapshot(root: Path) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted([root, *root.rglob("*")]):
        status = path.stat()
        content = path.read_bytes() if path.suffix == ".json" else b""
        xattrs = [(name, os.getxattr(path, name)) for name in sorted(os.listxattr(path))]
        found[str(path)] = (status.st_mode, status.st_uid, status.st_gid, content, xattrs)
    return found


@one_kind
def test_what_a_killed_process_has_left_goes_with_the_next(mount: Mount) -> None:
    left = mount.store / "tem/.modama~new"
    (left / "raw").mkdir(parents=True)
    (left / "raw/x").touch()
    assert os.listdir(mount.root / "tem") == []
    client.call(mount.runtime, "project-create", {"path": "tem/plates", "title": "t"})
    assert os.listdir(mount.store / "tem") == ["plates"]


@one_kind
def test_two_at_once_make_one(store: Path) -> None:
    with Store(store) as opened:
        fd = os.open(store, os.O_RDONLY)
        with catalogue.locked(fd, "it"), pytest.MonkeyPatch.context() as patch:
            patch.setattr(catalogue, "PATIENCE_S", 0.0)
            with pytest.raises(Busy, match="changed just now"):
                projects.create_project(opened, {"path": "tem/a", "title": "t"}, Caller(0, 0))
        os.close(fd)
        projects.create_project(opened, {"path": "tem/a", "title": "t"}, Caller(0, 0))
        with pytest.raises(InvalidRequest, match="there already"):
            projects.create_project(opened, {"path": "tem/a", "title": "t"}, Caller(0, 0))


# ---- what is printed -----------------------------------------------------------------------------


@one_kind
def test_output_for_people(mount: Mount, people: People) -> None:
    assert "no projects" in modamafs("project", "list", mount.root).stdout
    path = mount.root / "tem/plates"
    run(people.alice, "project", "create", path, "--title", "[red]Plates[/red]", "--meta", "e=3 V")
    run(people.alice, "session", "create", path / "one", "--title", "\u202eone",
        "--date", "2026-11-23")  # fmt: skip
    listed = modamafs("project", "list", mount.root).stdout
    assert listed.split("\t")[:2] == ["tem/plates", "[red]Plates[/red]"]
    assert modamafs("session", "list", path).stdout.split("\t")[1:3] == ["2026-11-23", "\\u202eone"]
    shown = modamafs("project", "show", path).stdout
    assert "e = 3 V" in shown
    script = f"{modamafs_on_a_terminal('project', 'list', mount.root)}"
    assert "[red]Plates[/red]" in script
    assert "owner" in script
    assert modamafs("project").returncode == 2
    for group in ("project", "session"):
        for name in ("create", "set", "show", "list"):
            assert "Example" in modamafs(group, name, "--help").stdout


def modamafs_on_a_terminal(*arguments: str | Path) -> str:
    from tests.support.mounts import command

    line = " ".join(map(str, [*command(), *arguments]))
    done = subprocess.run(
        ["script", "-qec", line, "/dev/null"], stdin=subprocess.DEVNULL, capture_output=True,
        text=True, check=True, env={**os.environ, "COLUMNS": "200", "TERM": "dumb"},
    )  # fmt: skip
    return done.stdout
