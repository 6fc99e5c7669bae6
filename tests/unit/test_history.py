"""The records of what was removed are kept, or put back if it was not removed after all."""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from modamafs.model import Caller
from modamafs.sealing.seal import seal, unseal
from modamafs.store import history
from modamafs.store.backing import Store
from modamafs.store.history import Kept, keep
from tests.support.descriptors import none_left
from tests.support.trees import differences, snapshot

ROOT = Caller(0, 0)


@pytest.fixture
def store() -> Iterator[Store]:
    directory = Path(tempfile.mkdtemp(prefix="modamafs-unit-", dir="/var/tmp"))
    try:
        with none_left(), Store(directory) as opened:
            yield opened
    finally:
        subprocess.run(["chattr", "-R", "-f", "-i", str(directory)], check=False)
        shutil.rmtree(directory)


@pytest.fixture
def session(store: Store) -> Path:
    """A session that was sealed once, and is empty now but for that."""
    path = store.path / "area/project/session"
    (path / "raw").mkdir(parents=True)
    seal(store, b"area/project/session/raw", ROOT)
    unseal(store, b"area/project/session/raw", ROOT, "measured again")
    (path / "raw").rmdir()
    return path


def keep_of(store: Store, directory: Path) -> Kept:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return keep(store, fd, os.fsencode(directory))
    finally:
        os.close(fd)


def kept(store: Store) -> list[Path]:
    directory = store.path / ".modama" / "history"
    return sorted(directory.iterdir()) if directory.exists() else []


def test_records_are_kept(store: Store, session: Path) -> None:
    before = snapshot(session / ".modama")
    keep_of(store, session)
    assert os.listdir(session) == []
    session.rmdir()
    (place,) = kept(store)
    assert re.fullmatch(r"\d{8}T\d{6}Z-[0-9a-f]{8}", place.name)
    assert sorted(os.listdir(place)) == ["path", "records"]
    assert os.readlink(place / "path") == "area/project/session"
    assert differences(before, snapshot(place / "records"), ["ctime_ns"]) == []
    lines = (place / "records" / "history.jsonl").read_text().splitlines()
    assert "measured again" in lines[-1]


def test_what_was_private_stays_so(store: Store, session: Path) -> None:
    keep_of(store, session)
    assert stat.S_IMODE((store.path / ".modama" / "history").stat().st_mode) == 0o700


def test_records_are_put_back(store: Store, session: Path) -> None:
    before = snapshot(session / ".modama")
    keep_of(store, session).put_back()
    assert differences(before, snapshot(session / ".modama"), ["ctime_ns"]) == []
    assert kept(store) == []


def test_what_is_gone_gets_nothing_back(store: Store, session: Path) -> None:
    records = keep_of(store, session)
    session.rmdir()
    with pytest.raises(FileNotFoundError):
        records.put_back()
    (place,) = kept(store)
    assert sorted(os.listdir(place)) == ["path", "records"], "they are kept all the same"


def test_nothing_is_put_back_through_a_link(store: Store, session: Path) -> None:
    records = keep_of(store, session)
    elsewhere = store.path / "private"
    (elsewhere / "session").mkdir(parents=True)
    session.parent.rename(store.path / "moved")
    session.parent.symlink_to(elsewhere)
    with pytest.raises(NotADirectoryError):
        records.put_back()
    assert os.listdir(elsewhere / "session") == []


@pytest.mark.parametrize("below", [[], ["seals"], ["seals", "other"]])
def test_records_that_hold_nothing_are_removed(store: Store, below: list[str]) -> None:
    directory = store.path / "area"
    (directory / ".modama").mkdir(parents=True)
    for name in below:
        (directory / ".modama" / name).mkdir()
    records = keep_of(store, directory)
    assert os.listdir(directory) == []
    assert kept(store) == []
    records.put_back()
    assert os.listdir(directory) == []


def test_no_records_are_no_error(store: Store) -> None:
    (store.path / "area").mkdir()
    keep_of(store, store.path / "area").put_back()
    assert os.listdir(store.path) == ["area"]


@pytest.mark.parametrize("content", ["file", "seals/raw.json", "deep/er/empty", "dangling"])
def test_records_that_hold_anything_are_kept(store: Store, content: str) -> None:
    directory = store.path / "area"
    path = directory / ".modama" / content
    path.parent.mkdir(parents=True)
    path.symlink_to("nowhere") if content == "dangling" else path.touch()
    keep_of(store, directory)
    assert os.listdir(directory) == []
    (place,) = kept(store)
    assert os.path.lexists(place / "records" / content)


@pytest.mark.parametrize("instead", ["file", "link"])
def test_what_is_no_directory_is_not_followed(store: Store, instead: str) -> None:
    directory = store.path / "area"
    directory.mkdir()
    path = directory / ".modama"
    path.touch() if instead == "file" else path.symlink_to("/etc")
    with pytest.raises(OSError) as raised:
        keep_of(store, directory)
    assert raised.value.errno in (errno.ENOTDIR, errno.ELOOP)
    assert os.path.lexists(path)
    assert kept(store) == []


def test_sessions_of_one_name_are_kept_side_by_side(store: Store) -> None:
    directory = store.path / "area" / "session"
    for number in range(3):
        (directory / ".modama").mkdir(parents=True)
        (directory / ".modama" / "note").write_text(f"{number}")
        keep_of(store, directory)
        directory.rmdir()
    assert {(place / "records" / "note").read_text() for place in kept(store)} == {"0", "1", "2"}


def test_names_of_any_bytes(store: Store) -> None:
    directory = store.path / os.fsdecode(b"area \xff\n")
    (directory / ".modama").mkdir(parents=True)
    (directory / ".modama" / "note").touch()
    records = keep_of(store, directory)
    (place,) = kept(store)
    assert os.readlink(os.fsencode(place / "path")) == b"area \xff\n"
    records.put_back()
    assert (directory / ".modama" / "note").exists()


@pytest.mark.parametrize("function", ["symlink", "rename"])
def test_a_full_store_leaves_the_records_where_they_were(
    store: Store, session: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    before = snapshot(session / ".modama")

    def full(*_arguments: object, **_keywords: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(history.os, function, full)
        with pytest.raises(OSError, match="No space"):
            keep_of(store, session)
    assert snapshot(session / ".modama") == before
    assert kept(store) == [], "nothing is said to be kept that is not"
    keep_of(store, session)
    assert os.listdir(session) == []
