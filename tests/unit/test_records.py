"""Records: written whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from modamafs.store import records
from modamafs.store.records import (
    append_line,
    new_record,
    open_below,
    open_records,
    open_sole,
    read_record,
    remove_record,
    write_record,
)
from tests.support.descriptors import none_left
from tests.support.users import in_child

RECORD = {"path": "wäge/\udcff", "list": [1, None, True], "text": "zwei\nZeilen"}


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    with none_left():
        fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
        yield fd
        os.close(fd)


def limited(size_bytes: int, function: Callable[[], Any]) -> Any:
    """Call it where no file may grow beyond a size: EFBIG, as a full disk is ENOSPC."""

    def limit_and_call() -> Any:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, size_bytes))
        return function()

    return in_child(limit_and_call)


def test_what_is_written_is_read(tmp_path: Path, directory: int) -> None:
    record = RECORD | {"path": "wäge"}
    write_record(directory, b"a.json", record)
    assert read_record(directory, b"a.json") == record
    text = (tmp_path / "a.json").read_text("utf-8")
    assert text.endswith("}\n")
    assert '  "path": "wäge"' in text, "for people too"
    write_record(directory, b"a.json", {})
    assert read_record(directory, b"a.json") == {}
    with new_record(directory, b"raw") as file:
        file.write(b"\0bytes\xff")
    assert (tmp_path / "raw").read_bytes() == b"\0bytes\xff"
    assert sorted(os.listdir(tmp_path)) == ["a.json", "raw"]
    assert stat.S_IMODE((tmp_path / "a.json").stat().st_mode) == 0o644


def test_there_may_be_none(directory: int) -> None:
    assert read_record(directory, b"none.json") is None
    remove_record(directory, b"none.json")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"7", b"\xff{}"])
def test_what_is_no_record_is_an_error(tmp_path: Path, directory: int, content: bytes) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"."):
        read_record(directory, b"x.json")


def test_symbolic_links_are_not_followed(tmp_path: Path, directory: int) -> None:
    target = tmp_path / "target"
    target.write_text('{"own": true}')
    for name in ("x.json", "x.json.new", "history"):
        (tmp_path / name).symlink_to(target)
    with pytest.raises(OSError, match="symbolic"):
        read_record(directory, b"x.json")
    write_record(directory, b"x.json", {})
    assert read_record(directory, b"x.json") == {}
    assert not (tmp_path / "x.json").is_symlink(), "its place is taken, as that of any other"
    with pytest.raises(OSError, match="symbolic"):
        append_line(directory, b"history", {})
    assert target.read_text() == '{"own": true}'
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / ".modama").symlink_to("elsewhere")
    with pytest.raises(NotADirectoryError):
        in_child(lambda: open_records(directory, b".modama", b"seals"))
    assert os.listdir(tmp_path / "elsewhere") == []


def test_a_half_written_one_of_before_is_overwritten(tmp_path: Path, directory: int) -> None:
    (tmp_path / "a.json.new").write_bytes(b"x" * 10_000)
    write_record(directory, b"a.json", {"a": 1})
    assert read_record(directory, b"a.json") == {"a": 1}
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_failing_write_changes_nothing(tmp_path: Path, directory: int) -> None:
    write_record(directory, b"a.json", {"old": True})
    big = {"new": "x" * 100_000}

    def write() -> None:
        write_record(directory, b"a.json", big)

    with pytest.raises(OSError, match="large") as raised:
        limited(5000, write)
    assert raised.value.errno == errno.EFBIG
    assert read_record(directory, b"a.json") == {"old": True}
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize("step", ["fsync", "rename"])
def test_a_failing_step_changes_nothing(
    tmp_path: Path, directory: int, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_record(directory, b"a.json", {"old": True})

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "on purpose")

    with monkeypatch.context() as patch:
        patch.setattr(os, step, fail)
        with pytest.raises(OSError, match="on purpose"):
            write_record(directory, b"a.json", {"old": False})
    assert read_record(directory, b"a.json") == {"old": True}
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_record_is_on_the_disk_before_it_has_its_name(
    directory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, rename = os.fsync, os.rename

    def note_fsync(fd: int) -> None:
        steps.append("directory" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file")
        assert steps[-1] == "directory" or os.fstat(fd).st_size > 0, "flushed before it is synced"
        fsync(fd)

    def note_rename(*arguments: Any, **keywords: Any) -> None:
        steps.append("rename")
        rename(*arguments, **keywords)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "rename", note_rename)
    write_record(directory, b"a.json", {})
    assert steps == ["file", "rename", "directory"]
    steps.clear()
    append_line(directory, b"history", {})
    assert steps == ["file", "directory"]
    steps.clear()
    remove_record(directory, b"a.json")
    assert steps == ["directory"]


def test_lines_are_appended(tmp_path: Path, directory: int) -> None:
    lines = [{"a": "eins\nzwei"}, {"b": "ü"}, {}]
    for line in lines:
        append_line(directory, b"history", line)
    text = (tmp_path / "history").read_text("utf-8")
    assert [json.loads(line) for line in text.splitlines()] == lines
    assert text.count("\n") == 3


def test_a_line_is_appended_whole_or_it_is_an_error(tmp_path: Path, directory: int) -> None:
    append_line(directory, b"history", {"first": 1})
    size_bytes = (tmp_path / "history").stat().st_size

    def append() -> None:
        append_line(directory, b"history", {"second": "x" * 100})

    with pytest.raises(OSError, match=r"."):
        limited(size_bytes + 20, append)


def in_time(function: Callable[[], Any]) -> Any:
    """Call it where waiting for ever ends, with an error."""

    def limit_and_call() -> Any:
        signal.alarm(20)
        return function()

    return in_child(limit_and_call)


def test_lines_are_not_given_to_who_waits_for_them(tmp_path: Path, directory: int) -> None:
    path = tmp_path / "history"
    os.mkfifo(path, 0o600)
    fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    with pytest.raises(OSError, match="no regular file") as raised:
        in_time(lambda: append_line(directory, b"history", {}))
    assert raised.value.errno == errno.EINVAL
    with pytest.raises(BlockingIOError):
        os.read(fd, 1)
    os.close(fd)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("kind", ["directory", "socket"])
def test_lines_are_appended_to_files_only(tmp_path: Path, directory: int, kind: str) -> None:
    if kind == "directory":
        (tmp_path / "history").mkdir()
    else:
        os.mknod(tmp_path / "history", stat.S_IFSOCK | 0o600)
    with pytest.raises(OSError, match=r"."):
        append_line(directory, b"history", {})


@pytest.mark.parametrize("name", [b"history", b"x.json.new"])
def test_the_file_of_somebody_else_stays_as_it_is(
    tmp_path: Path, directory: int, name: bytes
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("nobody's business\n")
    secret.chmod(0o600)
    os.link(secret, name, dst_dir_fd=directory)
    if name == b"history":
        with pytest.raises(OSError, match="other names") as raised:
            append_line(directory, name, {})
        assert raised.value.errno == errno.EMLINK
    else:
        write_record(directory, b"x.json", {"own": 1})
        assert read_record(directory, b"x.json") == {"own": 1}
    assert secret.read_text() == "nobody's business\n"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600


def test_nobody_is_waited_for_where_a_record_is_written(tmp_path: Path, directory: int) -> None:
    os.mkfifo(tmp_path / "x.json.new")
    in_time(lambda: write_record(directory, b"x.json", {"own": 1}))
    assert read_record(directory, b"x.json") == {"own": 1}


def test_a_history_is_for_everybody_unless_it_was_not(tmp_path: Path, directory: int) -> None:
    path = tmp_path / "history"

    def append_with_umask() -> None:
        os.umask(0o077)
        append_line(directory, b"history", {})

    in_child(append_with_umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    path.chmod(0o640)
    append_line(directory, b"history", {})
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_record_without_end_is_none(
    tmp_path: Path, directory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.json").write_text('{"padding": "' + "x" * 5000 + '"}')
    assert read_record(directory, b"x.json")
    monkeypatch.setattr(records, "LARGEST_BYTES", 5000)
    with pytest.raises(ValueError, match="larger than"):
        read_record(directory, b"x.json")


def test_what_is_read_as_one_file_has_one_name(tmp_path: Path, directory: int) -> None:
    (tmp_path / "x").touch()
    os.close(open_sole(directory, b"x"))
    os.link(tmp_path / "x", tmp_path / "y")
    with pytest.raises(OSError, match="other names"):
        open_sole(directory, b"x")


def test_no_link_leads_to_a_directory_below(tmp_path: Path, directory: int) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "link").symlink_to("a")
    fd = open_below(directory, b"a/b")
    assert os.fstat(fd).st_ino == (tmp_path / "a/b").stat().st_ino
    os.close(fd)
    for path in (b"link", b"link/b"):
        with pytest.raises(NotADirectoryError):
            open_below(directory, path)


def test_directories_for_records_are_made_once(tmp_path: Path, directory: int) -> None:
    for _ in range(2):
        fd = open_records(directory, b".modama", b"seals")
        assert os.fstat(fd).st_ino == (tmp_path / ".modama" / "seals").stat().st_ino
        os.close(fd)
    assert stat.S_IMODE((tmp_path / ".modama").stat().st_mode) == 0o755


def test_a_file_in_the_way_leaves_no_descriptor_behind(tmp_path: Path) -> None:
    (tmp_path / ".modama").touch()

    def count_left() -> int:
        directory = os.open(tmp_path, os.O_RDONLY)
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(NotADirectoryError):
            open_records(directory, b".modama", b"seals")
        return len(os.listdir("/proc/self/fd")) - before

    assert in_child(count_left) == 0
