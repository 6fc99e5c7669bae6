"""What a change says to who watches, how it is merged, and who watches, as /proc says."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from modamafs.watch.events import ATTRIB, CLOSE_WRITE, CREATE, DELETE, MODIFY, ONDIR, RENAME, Event
from modamafs.watch.nudger import MOST_NAMES, MOST_WAITING, Waiting
from modamafs.watch.nudges import Nudge, What, of
from modamafs.watch.watched import Handle, Watchers, parse
from tests.support.inotify import Inotify

GONE, COME, CHANGED = What.GONE, What.COME, What.CHANGED


@pytest.mark.parametrize(
    ("event", "nudges"),
    [
        (
            Event(CREATE | MODIFY | CLOSE_WRITE, 1, 10, b"n", 11),
            [(10, b"n", COME | CHANGED, False)],
        ),
        (Event(CREATE | ONDIR, 1, 10, b"n", 11), [(10, b"n", COME, True)]),
        (Event(ATTRIB, 1, 10, b"n", 11), [(10, b"n", CHANGED, False)]),
        (Event(DELETE | CREATE, 1, 10, b"n", 11), [(10, b"n", GONE | COME, False)]),
        (Event(ATTRIB | ONDIR, 1, 10, b".", 10), [(10, b"", CHANGED, True)]),
        (
            Event(RENAME | ONDIR, 1, 10, b"n", 11, 12, b"m"),
            [(10, b"n", GONE, True), (12, b"m", COME | CHANGED, True)],
        ),
        (Event(RENAME, 1, 0, b"", 11, 12, b"m"), [(12, b"m", COME | CHANGED, False)]),
        (Event(MODIFY, 1, 0, b"", 11), []),
        (Event(CREATE, 1, 10, b".modama", 11), []),
        (Event(RENAME, 1, 10, b".modama~1", 11, 10, b"m"), [(10, b"m", COME | CHANGED, False)]),
    ],
)
def test_what_a_change_says(event: Event, nudges: list[tuple[int, bytes, What, bool]]) -> None:
    assert [tuple(one) for one in of(event)] == nudges


def test_what_happens_to_the_same_entry_is_said_once() -> None:
    waiting = Waiting()
    waiting.add([Nudge(1, b"a", COME), Nudge(2, b"a", GONE), Nudge(1, b"a", CHANGED)])
    waiting.wait(None)
    assert waiting.directories() == ([1, 2], False)
    assert waiting.take([1, 3]) == {1: [Nudge(1, b"a", COME | CHANGED)], 3: []}
    assert waiting.directories() == ([2], False)


def test_of_too_many_entries_only_their_directory_is_named() -> None:
    waiting = Waiting()
    waiting.add(Nudge(1, b"%d" % number, COME) for number in range(MOST_NAMES + 10))
    [nudges] = waiting.take([1]).values()
    assert len(nudges) == MOST_NAMES + 1
    assert nudges[-1] == Nudge(1, b"", CHANGED)


def test_of_too_many_directories_none_is_named() -> None:
    waiting = Waiting()
    waiting.add(Nudge(number, b"a", COME) for number in range(MOST_WAITING + 10))
    directories, everywhere = waiting.directories()
    assert len(directories) == MOST_WAITING
    assert everywhere
    waiting.take([], everywhere=True)
    assert waiting.directories() == (directories, False)
    waiting.take(directories)
    waiting.add([Nudge(1, b"a", COME)])
    assert waiting.directories() == ([1], False)


def test_who_waits_is_woken() -> None:
    waiting = Waiting()
    thread = threading.Thread(target=waiting.wait, args=(None,))
    thread.start()
    waiting.add([Nudge(1, b"a", COME)])
    thread.join(30)
    assert not thread.is_alive()


def test_what_proc_says_of_inotify() -> None:
    fdinfo = b"""pos:\t0
flags:\t04000
mnt_id:\t17
ino:\t1038
inotify wd:2 ino:ea2571 sdev:31 mask:fce ignored_mask:0 fhandle-bytes:c fhandle-type:81 f_handle:000000000100000000000000
inotify wd:1 ino:7 sdev:800012 mask:fce ignored_mask:0 fhandle-bytes:c fhandle-type:81 f_handle:010000000700000001020304
inotify wd:3 ino:8 sdev:31 mask:fce ignored_mask:0 \n"""  # noqa: E501
    root = Handle(0x81, bytes.fromhex("000000000100000000000000"))
    assert dict(parse(fdinfo, os.makedev(0, 0x31))) == {1: root}
    [(node, handle)] = parse(fdinfo, os.makedev(8, 0x12))
    assert (node, handle.content[8:]) == (1 << 32 | 7, bytes([1, 2, 3, 4]))


def test_who_watches_is_found_whatever_others_have_open(tmp_path: Path) -> None:
    here, dev = tmp_path, tmp_path.stat().st_dev
    watchers = Watchers()
    fds = [os.open(here, os.O_RDONLY)]
    try:
        for _ in range(20):  # a path that no link in /proc can say
            os.mkdir("x" * 250, dir_fd=fds[-1])
            fds.append(os.open("x" * 250, os.O_RDONLY, dir_fd=fds[-1]))
        before = watchers.all(dev).keys()
        with Inotify(here):
            found = watchers.all(dev).keys()
            assert len(found - before) == 1
            assert watchers.known(dev).keys() == found
        assert found - before and not (found - before) & watchers.known(dev).keys()
    finally:
        while len(fds) > 1:
            os.close(fds.pop())
            os.rmdir("x" * 250, dir_fd=fds[-1])
        os.close(fds.pop())
