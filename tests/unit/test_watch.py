"""The watch: what fanotify says of real changes, and that no event is lost by a kill."""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from modamafs.model import ROOT
from modamafs.watch import events, group, notices
from modamafs.watch.events import (
    ATTRIB,
    CLOSE_WRITE,
    CREATE,
    DELETE,
    MODIFY,
    ONDIR,
    RENAME,
    Event,
)
from modamafs.watch.log import EVENTS_OFFSET, READ_BYTES, SIZE_BYTES, EventLog
from modamafs.watch.written import NOTES, Written

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to watch a file system")


@pytest.fixture
def store() -> Iterator[Path]:
    """Not in /tmp, which may be a tmpfs: without handles there."""
    import tempfile

    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        yield Path(name)


@pytest.fixture
def watched(store: Path) -> Iterator[int]:
    fd = group.open_group(store)
    yield fd
    os.close(fd)


def seen(fd: int, log: EventLog, below: Path) -> list[Event]:
    """What has happened directly in a directory, or to its entries, by this thread."""
    inos = {below.stat().st_ino} | {one.stat().st_ino for one in below.iterdir()}
    found: list[Event] = []
    while data := log.read(fd):
        found += [
            one
            for one in events.parse(data)
            if one.thread == threading.get_native_id() and {one.directory, one.ino} & inos
        ]
    return found


def test_every_change_names_its_directory_its_name_and_its_inode(
    store: Path, watched: int, tmp_path: Path
) -> None:
    log = EventLog(tmp_path / "log")
    here = store.stat().st_ino
    file = store / "file"
    file.write_bytes(b"1")
    ino = file.stat().st_ino
    [made] = seen(watched, log, store)
    assert made[2:5] == (here, b"file", ino)
    assert made.mask & CREATE and made.mask & MODIFY and made.mask & CLOSE_WRITE

    file.chmod(0o600)
    os.setxattr(file, "user.a", b"1")
    assert [one[2:5] for one in seen(watched, log, store)] == [(here, b"file", ino)]

    file.rename(store / "other")
    [moved] = seen(watched, log, store)
    assert moved.mask == RENAME
    assert moved[2:] == (here, b"file", ino, here, b"other")

    (store / "other").unlink()
    assert [(one.mask, one.name) for one in seen(watched, log, store) if one.name] == [
        (DELETE, b"other")
    ]


def test_of_a_directory_itself_the_inode_is_named(
    store: Path, watched: int, tmp_path: Path
) -> None:
    log = EventLog(tmp_path / "log")
    store.chmod(0o700)
    [changed] = seen(watched, log, store)
    assert changed.mask == ATTRIB | ONDIR
    assert (changed.name, changed.ino) == (b".", store.stat().st_ino)


def test_what_is_ignored_says_nothing(store: Path, watched: int, tmp_path: Path) -> None:
    (store / "index").mkdir()
    group.ignore(watched, store / "index")
    log = EventLog(tmp_path / "log")
    seen(watched, log, store)
    (store / "index" / "file").write_bytes(b"1")
    (store / "file").write_bytes(b"1")
    inside = (store / "index").stat().st_ino
    names = [one.name for one in seen(watched, log, store) if one.directory != inside]
    assert names == [b"file"]
    assert not seen(watched, log, store / "index")


def test_a_killed_reader_leaves_its_events_to_the_next(
    store: Path, watched: int, tmp_path: Path
) -> None:
    """The kernel has forgotten them; the file in the runtime directory has not."""
    pid = os.fork()
    if pid == 0:
        log = EventLog(tmp_path / "log")
        (store / "one").write_bytes(b"")
        log.read(watched)
        os.kill(os.getpid(), 9)
    os.waitpid(pid, 0)
    log = EventLog(tmp_path / "log")
    assert b"one" in [one.name for one in events.parse(log.pending())]
    end = log.end
    log.done(end)
    log.close()
    assert EventLog(tmp_path / "log").pending() == b""


def record(size: int) -> bytes:
    return struct.pack("=IBBHQii", size, events.VERSION, 0, 24, CREATE, -1, 7).ljust(size, b"\0")


def through_a_pipe(log: EventLog, data: bytes) -> bytes:
    reader, writer = os.pipe()
    os.write(writer, data)
    os.close(writer)
    try:
        return log.read(reader)
    finally:
        os.close(reader)


def test_a_full_log_says_that_something_was_lost(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "log")
    log.set_lost(False)
    piece = record(4096) * 8
    for _ in range((SIZE_BYTES - EVENTS_OFFSET - READ_BYTES) // len(piece)):
        through_a_pipe(log, piece)
    assert not log.lost
    end = log.end
    for _ in range(READ_BYTES // len(piece) + 1):
        through_a_pipe(log, piece)
    assert log.lost
    log.done(end)  # too late: that was before
    assert log.pending() != b""
    kept = len(log.pending())
    log.close()
    again = EventLog(tmp_path / "log")
    assert again.lost
    assert len(again.pending()) == kept


def test_what_was_dealt_with_makes_room(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "log")
    log.set_lost(False)
    for number in range(3 * SIZE_BYTES // (8 * 4096)):
        through_a_pipe(log, record(4096) * 8)
        if number % 2:
            log.done(log.end)
    assert not log.lost


def test_events_of_another_version_are_refused() -> None:
    strange = struct.pack("=IBBHQii", 24, 9, 0, 24, CREATE, -1, 7)
    with pytest.raises(ValueError, match="version 9"):
        list(events.parse(strange))


def test_writers_are_told_in_order_and_the_oldest_forgotten(tmp_path: Path) -> None:
    told, asked = Written(tmp_path / "ring"), Written(tmp_path / "ring")
    told.note(7, opened=True)
    told.note(7, opened=False)
    assert list(asked.news()) == [(7, True), (7, False)]
    assert list(asked.news()) == []
    for ino in range(NOTES + 10):
        told.note(ino, opened=True)
    assert [ino for ino, _ in asked.news()] == list(range(10, NOTES + 10))


def codes(messages: list[bytes]) -> list[tuple[int, bytes]]:
    return [(struct.unpack_from("=IiQ", one)[1], one[16:]) for one in messages]


@pytest.mark.parametrize(
    ("event", "told"),
    [
        (
            Event(CREATE, 1, 10, b"n", 11),
            [(3, struct.pack("=QII", 10, 1, 1) + b"n\0"), (2, struct.pack("=Qqq", 10, 0, 0)),
             (2, struct.pack("=Qqq", 11, -1, 0))],
        ),
        (Event(ATTRIB, 1, 10, b"n", 11), [(2, struct.pack("=Qqq", 11, -1, 0))]),
        (Event(ATTRIB | ONDIR, 1, 10, b".", 10), [(2, struct.pack("=Qqq", 10, -1, 0))]),
        (Event(MODIFY, 1, 10, b"n", 11), [(2, struct.pack("=Qqq", 11, 0, 0))]),
        (Event(ATTRIB | ONDIR, 1, 99, b".", 99), [(2, struct.pack("=Qqq", ROOT, -1, 0))]),
        (
            Event(RENAME, 1, 99, b"a", 11, 12, b"b"),
            [(3, struct.pack("=QII", ROOT, 1, 1) + b"a\0"), (2, struct.pack("=Qqq", ROOT, 0, 0)),
             (3, struct.pack("=QII", 12, 1, 1) + b"b\0"), (2, struct.pack("=Qqq", 12, 0, 0)),
             (2, struct.pack("=Qqq", 11, -1, 0))],
        ),
    ],
)  # fmt: skip
def test_what_the_kernel_is_told(event: Event, told: list[tuple[int, bytes]]) -> None:
    """Names expire only (1): whoever is in a directory stays in it. Inode 99 is the root."""
    assert codes(list(notices.of(event, 99))) == told
