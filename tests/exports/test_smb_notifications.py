"""A Windows client that shows a directory is told of what changes in it on the store."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import smbclient
from smbprotocol.change_notify import (
    ChangeNotifyFlags,
    CompletionFilter,
    FileAction,
    FileSystemWatcher,
)
from smbprotocol.open import (
    CreateDisposition,
    CreateOptions,
    DirectoryAccessMask,
    ImpersonationLevel,
    ShareAccess,
)

from tests.exports.conftest import SHARE, Exported, exported
from tests.mounted.test_notifications import facts
from tests.support.mounts import modamafs, wait_until
from tests.support.servers import PASSWORD
from tests.support.targets import Workshop
from tests.support.users import ALICE

HERE = "area/project/session"
EXPLORER = (
    CompletionFilter.FILE_NOTIFY_CHANGE_FILE_NAME
    | CompletionFilter.FILE_NOTIFY_CHANGE_DIR_NAME
    | CompletionFilter.FILE_NOTIFY_CHANGE_ATTRIBUTES
    | CompletionFilter.FILE_NOTIFY_CHANGE_SIZE
    | CompletionFilter.FILE_NOTIFY_CHANGE_LAST_WRITE
    | CompletionFilter.FILE_NOTIFY_CHANGE_CREATION
)
ADDED, REMOVED, MODIFIED = (
    FileAction.FILE_ACTION_ADDED,
    FileAction.FILE_ACTION_REMOVED,
    FileAction.FILE_ACTION_MODIFIED,
)
PATIENCE_S = 60.0

Told = tuple[int, str]


class Explorer:
    """Has a directory open, has listed it, and waits for changes, again after each answer."""

    def __init__(self, place: Exported, path: str, *, recursive: bool = False) -> None:
        server = place.server("smb")
        self.told: list[Told] = []
        self._connections: dict[str, Any] = {}
        self._flags = ChangeNotifyFlags.SMB2_WATCH_TREE if recursive else 0
        self._path = rf"\\{'127.0.0.1'}\{SHARE}" + "".join(f"\\{name}" for name in path.split("/"))
        self._with: dict[str, Any] = {
            "username": "alice", "password": PASSWORD, "port": server.port,
            "connection_cache": self._connections,
        }  # fmt: skip
        self.listing()
        session = smbclient.register_session("127.0.0.1", **self._with)
        from smbprotocol.open import Open
        from smbprotocol.tree import TreeConnect

        tree = TreeConnect(session, rf"\\127.0.0.1\{SHARE}")
        tree.connect()
        self._open = Open(tree, path.replace("/", "\\"))
        self._open.create(
            ImpersonationLevel.Impersonation,
            DirectoryAccessMask.FILE_LIST_DIRECTORY | DirectoryAccessMask.SYNCHRONIZE,
            0,
            ShareAccess.FILE_SHARE_READ
            | ShareAccess.FILE_SHARE_WRITE
            | ShareAccess.FILE_SHARE_DELETE,
            CreateDisposition.FILE_OPEN,
            CreateOptions.FILE_DIRECTORY_FILE,
        )
        self._wait()

    def _wait(self) -> None:
        self._watcher = FileSystemWatcher(self._open)
        self._watcher.start(EXPLORER, self._flags)

    def listing(self) -> dict[str, int]:
        """Names and sizes."""
        found = smbclient.scandir(self._path, **self._with)
        return {one.name: one.smb_info.end_of_file for one in found}

    def wait_for(self, *told: Told) -> None:
        """Return when all of this was told, asking again after each answer."""

        def was_told() -> bool:
            answer = self._watcher.result
            if answer is not None:
                self.told += [(a["action"].get_value(), a["file_name"].get_value()) for a in answer]
                self._wait()
            return all(one in self.told for one in told)

        try:
            wait_until(was_told, f"{told}", PATIENCE_S)
        except TimeoutError as error:
            raise TimeoutError(f"{error}; told was {self.told}") from None
        self.told = [one for one in self.told if one not in told]

    def close(self) -> None:
        """Hang up."""
        smbclient.reset_connection_cache(fail_on_error=False, connection_cache=self._connections)


@pytest.fixture
def place(workshop: Workshop, new_name: Callable[[], str]) -> Iterator[Exported]:
    with exported(workshop, f"notified-{new_name()}") as place:
        here = place.store / HERE
        (here / "raw").mkdir(parents=True)
        (here / "old").write_bytes(b"old")
        assert place.mount
        wait_until(lambda: bool(place.mount and place.mount.status()["watching"]), "the watch")
        yield place


@contextlib.contextmanager
def explorer(place: Exported, path: str, *, recursive: bool = False) -> Iterator[Explorer]:
    shown = Explorer(place, path, recursive=recursive)
    try:
        yield shown
    finally:
        shown.close()


def test_what_changes_in_a_directory_that_is_shown(place: Exported) -> None:
    here = place.store / HERE
    with explorer(place, HERE) as shown:
        (here / "new").write_bytes(b"1")
        shown.wait_for((ADDED, "new"))
        assert shown.listing()["new"] == 1
        before = facts(here)
        with (here / "old").open("ab") as file:
            file.write(b"er")
        shown.wait_for((MODIFIED, "old"))
        assert shown.listing()["old"] == 5
        (here / "new").rename(here / "renamed")
        shown.wait_for((REMOVED, "new"), (ADDED, "renamed"))
        assert set(shown.listing()) >= {"renamed", "old"}
        (here / "renamed").unlink()
        shown.wait_for((REMOVED, "renamed"))
        assert "renamed" not in shown.listing()
        (here / "old").unlink()
        shown.wait_for((REMOVED, "old"))
        (here / "directory").mkdir()
        shown.wait_for((ADDED, "directory"))
        (here / "directory").rename(here / "other")
        shown.wait_for((REMOVED, "directory"), (ADDED, "other"))
        (here / "other").rmdir()
        shown.wait_for((REMOVED, "other"))
        assert facts(here / "raw") == {
            k: v for k, v in before.items() if k.startswith(f"{here}/raw")
        }


def test_what_changes_further_down(place: Exported) -> None:
    """smbd watches the directory itself only, not what is in its directories."""
    with explorer(place, HERE, recursive=True) as shown, explorer(place, f"{HERE}/raw") as below:
        (place.store / HERE / "raw/new").write_bytes(b"1")
        below.wait_for((ADDED, "new"))
        shown.wait_for((ADDED, r"raw\new"))


def test_a_tree_that_is_sealed(place: Exported) -> None:
    (place.store / HERE / "raw/file").write_bytes(b"1")
    raw = place.root / HERE / "raw"
    with explorer(place, f"{HERE}/raw") as shown, explorer(place, HERE) as above:
        shown.wait_for()
        done = modamafs("seal", raw)
        assert done.returncode == 0, done.stderr
        shown.wait_for((MODIFIED, "file"))
        above.wait_for((MODIFIED, "raw"))


def test_a_private_project(place: Exported) -> None:
    os.chown(place.store / "area", ALICE.uid, ALICE.gid)
    made = modamafs("project", "create", place.root / "area/secret", "--private", "--title", "S")
    assert made.returncode == 0, made.stderr
    private = place.store / "area/secret"
    os.chown(private, ALICE.uid, ALICE.gid)
    with explorer(place, "area/secret") as shown:
        (private / "new").write_bytes(b"1")
        shown.wait_for((ADDED, "new"))


def test_what_can_not_be_named(place: Exported) -> None:
    """What is no news of one name comes as one of none: the client lists anew."""
    with explorer(place, "area") as shown:
        (place.store / "area/project").rename(place.store / "area/gone")
        shown.wait_for((MODIFIED, ""))
        assert set(shown.listing()) >= {"gone"}


def test_an_smbd_that_is_killed_delays_nobody(place: Exported) -> None:
    with explorer(place, HERE) as shown:
        server = place.server("smb")
        server.kill()
        (place.store / HERE / "meanwhile").write_bytes(b"1")
        wait_until((place.root / HERE / "meanwhile").exists, "the file")
        server.start()
        shown.close()
    with explorer(place, HERE) as shown:
        assert "meanwhile" in shown.listing()
        (place.store / HERE / "meanwhile").unlink()
        shown.wait_for((REMOVED, "meanwhile"))


def test_the_path_is_the_shares(place: Exported) -> None:
    """The tests would prove nothing if they listed the store."""
    with explorer(place, HERE) as shown:
        assert set(shown.listing()) == set(os.listdir(place.root / HERE))
        assert Path(place.share.path) == place.root
