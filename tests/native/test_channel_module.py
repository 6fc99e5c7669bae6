"""What ``_channel`` gives to Python, without a file system behind it."""

from __future__ import annotations

import gc
import os
import stat
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from modamafs.fuse import _channel
from modamafs.model import Attributes
from tests.native import kernel as k
from tests.native import sanitized

DIRENT = struct.Struct("=QQII")


@pytest.fixture(autouse=True)
def detached() -> Iterator[None]:
    yield
    _channel.detach()


def handler(*arguments: object) -> None:
    """Never called here."""


def attach(path: Path | None = None, to: Callable[..., None] = handler) -> bool:
    if path is None:
        return _channel.attach(-1, -1, 0, 1, to)
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        return _channel.attach(-1, fd, 0, 1, to)
    finally:
        os.close(fd)


def test_the_modules_that_are_tested_are_the_ones_that_were_built() -> None:
    from modamafs.store import _volume

    for module in (_channel, _volume):
        path = Path(module.__file__ or "")
        assert (sanitized.BUILT in path.parents) is sanitized.in_use()


def test_attach_says_whether_it_is_a_replay(tmp_path: Path) -> None:
    assert attach() is False
    assert _channel.attached() is False, "libfuse has not taken it yet"
    assert attach(tmp_path / "new") is False
    saved = tmp_path / "saved"
    saved.write_bytes(k.SAVED_INIT.pack(104, 1, 0x1234567890, b"request"))
    assert attach(saved) is True
    assert _channel.agreed() == 0x1234567890
    assert attach() is False
    assert _channel.agreed() == 0


def test_a_replay_can_be_read_at_once(tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    saved.write_bytes(k.SAVED_INIT.pack(104, 1, 0, b"request"))
    attach()
    assert _channel.ready(0) is False
    attach(saved)
    assert _channel.ready(0) is True
    _channel.detach()
    assert _channel.ready(0) is False


def test_a_damaged_init_is_refused(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    damaged.write_bytes(k.SAVED_INIT.pack(257, 1, 0, b""))
    with pytest.raises(ValueError, match="damaged"):
        attach(damaged)
    damaged.write_bytes(b"\xff" * 10_000)
    with pytest.raises(ValueError, match="damaged"):
        attach(damaged)
    damaged.write_bytes(k.SAVED_INIT.pack(256, 1, 7, b"")[:16])
    assert attach(damaged) is True, "the rest is zeros"


def test_a_file_that_can_not_be_read_is_an_error(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(IsADirectoryError):
            _channel.attach(-1, fd, 0, 1, handler)
    finally:
        os.close(fd)


def test_ready() -> None:
    reader, writer = os.pipe()
    try:
        _channel.attach(reader, -1, 0, 1, handler)
        assert _channel.ready(0) is False
        assert _channel.ready(50) is False
        os.write(writer, b"x")
        assert _channel.ready(0) is True
        assert _channel.ready(1_000_000) is True
    finally:
        os.close(reader)
        os.close(writer)


def test_set_open_has_room_for_64_opens_without_a_reply() -> None:
    attach()
    for fh in range(64):
        _channel.set_open((1 << 63) + fh, 0xFFFFFFFF, -1)
    for _ in range(3):
        with pytest.raises(RuntimeError, match="opens without a reply"):
            _channel.set_open(64, 0, 0)
    attach()
    _channel.set_open(64, 0, 0)


def test_seen_starts_at_zero() -> None:
    attach()
    assert _channel.seen() == [0] * 64


def test_the_handler_is_held_for_as_long_as_it_is_attached() -> None:
    class Handler:
        def __call__(self, *arguments: object) -> None: ...

    own = Handler()
    before = sys.getrefcount(own)
    for _ in range(100):
        attach(to=own)
    assert sys.getrefcount(own) == before + 1
    _channel.detach()
    _channel.detach()
    assert sys.getrefcount(own) == before


# ---- pack_entries --------------------------------------------------------------------------------

HERE, ELSEWHERE = 0x0800, 0x0801


def entry(name: bytes, offset: int = 1, **fields: Any) -> tuple[bytes, int, Attributes]:
    values = {
        "ino": 0x1122334455667788, "generation": 0x99AABBCC, "mode": stat.S_IFREG | 0o4751,
        "nlink": 17, "uid": 1001, "gid": 1002, "rdev": 0x0803, "size_bytes": 0x1_0000_0001,
        "blocks": 0x2_0000_0003, "block_size_bytes": 8192, "atime_ns": 1_600_000_001_000_000_111,
        "mtime_ns": 1_600_000_002_000_000_222, "ctime_ns": -1, "btime_ns": 5, "immutable": False,
        "dev": HERE,
    }  # fmt: skip
    return name, offset, Attributes(**{**values, **fields})


def pack(
    entries: list[tuple[bytes, int, Attributes]],
    start: int = 0,
    size: int = 4096,
    changing: set[int] | None = None,
) -> tuple[bytes, int]:
    return _channel.pack_entries(entries, start, size, HERE, 12.5, 3.25, changing or set(), 0.5)


def unpack(packed: bytes) -> list[tuple[tuple[int, ...], tuple[int, ...], bytes]]:
    found = []
    while packed:
        head = k.ENTRY_OUT.unpack_from(packed)
        dirent = DIRENT.unpack_from(packed, 128)
        end = 152 + dirent[2]
        padded = (end + 7) // 8 * 8
        assert packed[end:padded] == bytes(padded - end)
        found.append((head, dirent, packed[152:end]))
        packed = packed[padded:]
    return found


def test_every_field_of_an_entry_has_its_place() -> None:
    packed, count = pack([entry(b"caf\xe9", (1 << 63) - 1)])
    ino = 0x1122334455667788
    assert count == 1
    assert packed == (
        k.ENTRY_OUT.pack(
            ino, 0x99AABBCC, 12, 3, 500_000_000, 250_000_000,
            ino, 0x1_0000_0001, 0x2_0000_0003,
            1_600_000_001, 1_600_000_002, (1 << 64) - 1, 111, 222, 999_999_999,
            stat.S_IFREG | 0o4751, 17, 1001, 1002, 0x0803, 8192, 0,
        )
        + DIRENT.pack(ino, (1 << 63) - 1, 4, stat.S_IFREG >> 12)
        + b"caf\xe9\0\0\0\0"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("ns", "seconds", "rest"),
    [(0, 0, 0), (999_999_999, 0, 999_999_999), (-1_000_000_000, -1, 0), (-1, -1, 999_999_999)],
)
def test_times_around_1970(ns: int, seconds: int, rest: int) -> None:
    packed, _ = pack([entry(b"x", mtime_ns=ns)])
    ((head, _, _),) = unpack(packed)
    assert (head[10], head[13]) == (seconds % (1 << 64), rest)


@pytest.mark.parametrize("length", [1, 7, 8, 9, 255])
def test_names_are_padded_to_eight_bytes(length: int) -> None:
    packed, count = pack([entry(b"n" * length), entry(b"m" * length)])
    assert count == 2
    assert len(packed) == 2 * ((152 + length + 7) // 8 * 8)
    assert [name for _, _, name in unpack(packed)] == [b"n" * length, b"m" * length]


@pytest.mark.parametrize(("size", "fit"), [(0, 0), (159, 0), (160, 1), (319, 1), (320, 2)])
def test_only_whole_entries_are_packed(size: int, fit: int) -> None:
    entries = [entry(b"%d" % number, number) for number in range(5)]
    packed, count = pack(entries, size=size)
    assert count == fit
    assert len(packed) == fit * 160
    rest, more = pack(entries, start=count)
    assert more == 5 - fit
    assert [dirent[1] for _, dirent, _ in unpack(packed + rest)] == [0, 1, 2, 3, 4]


def test_beyond_the_last_entry_there_is_none() -> None:
    assert pack([], 0) == (b"", 0)
    assert pack([entry(b"x")], 1) == (b"", 0)


def test_what_lies_on_another_device_is_only_named() -> None:
    packed, count = pack([entry(b"x", dev=ELSEWHERE, ino=9)])
    assert count == 1
    ((head, dirent, name),) = unpack(packed)
    assert head == (0,) * len(head), "node id 0: no entry, the kernel has to look it up"
    assert (dirent[0], name) == (9, b"x")


def test_attributes_of_a_changing_file_are_not_believed_for_long() -> None:
    packed, _ = pack([entry(b"x", ino=7), entry(b"y", ino=8)], changing={8})
    timeouts = [(head[3], head[5]) for head, _, _ in unpack(packed)]
    assert timeouts == [(3, 250_000_000), (0, 500_000_000)]


def test_pack_entries_takes_no_other_types() -> None:
    good = entry(b"x")
    for bad in (
        [(b"x", 1)], [("x", 1, good[2])], [(b"x", "1", good[2])], [(b"x", 1, 7)], [7], [None],
        [(b"x", 1, list(good[2]))],
    ):  # fmt: skip
        with pytest.raises((TypeError, SystemError)):
            pack(bad)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        pack((good,))  # type: ignore[arg-type]


# ---- pack_names ----------------------------------------------------------------------------------

LINUX_DIRENT64 = struct.Struct("=QqHB")


def dirents(*entries: tuple[bytes, int, int]) -> bytes:
    """What getdents64(2) gives: (name, position, type), the inode is the position and 100."""
    packed = b""
    for name, offset, kind in entries:
        length = (LINUX_DIRENT64.size + len(name) + 1 + 7) // 8 * 8
        head = LINUX_DIRENT64.pack(offset + 100, offset, length, kind)
        packed += (head + name + b"\0").ljust(length, b"\0")
    return packed


def test_names_are_told_without_attributes() -> None:
    records = dirents((b"caf\xe9", 7, 8), (b"d" * 255, (1 << 63) - 101, 4))
    first, second = unpack(_channel.pack_names(records, 4096, b".modama", b".modama~"))
    assert first == (k.ENTRY_OUT.unpack(bytes(128)), (107, 7, 4, 8), b"caf\xe9")
    assert second[1:] == (((1 << 63) - 1, (1 << 63) - 101, 255, 4), b"d" * 255)


def test_our_own_names_are_not_told() -> None:
    records = dirents(
        (b".modama", 1, 4), (b".modama~12", 2, 8), (b".modama.txt", 3, 8), (b"x", 4, 8)
    )
    told = unpack(_channel.pack_names(records, 4096, b".modama", b".modama~"))
    assert [name for _, _, name in told] == [b".modama.txt", b"x"]


def test_as_many_names_as_fit() -> None:
    records = dirents(*((b"%03d" % number, number, 8) for number in range(1, 100)))
    told = unpack(_channel.pack_names(records, 160 * 3 + 159, b"", b"none"))
    assert [name for _, _, name in told] == [b"001", b"002", b"003"]
    assert _channel.pack_names(b"", 4096, b"", b"none") == b""


def test_records_that_are_cut_off_end_the_list() -> None:
    whole = dirents((b"first", 1, 8), (b"second", 2, 8))
    for length in range(len(whole)):
        told = unpack(_channel.pack_names(whole[:length], 4096, b"", b"none"))
        assert [name for _, _, name in told] == [b"first"][: length // 32]


# ---- wrong arguments, many times -----------------------------------------------------------------


def test_wrong_arguments_leave_nothing_behind() -> None:
    attach()
    name, attributes = b"a name of its own", entry(b"")[2]
    calls: list[tuple[Callable[..., object], tuple[object, ...]]] = [
        (_channel.attach, ()),
        (_channel.attach, (-1, -1, 0, 1)),
        (_channel.attach, ("-1", -1, 0, 1, handler)),
        (_channel.attach, (1 << 40, -1, 0, 1, handler)),
        (_channel.ready, ("1",)),
        (_channel.ready, (1 << 80,)),
        (_channel.set_open, (1, 2)),
        (_channel.set_open, (None, 2, 3)),
        (_channel.reply, (1, 2)),
        (_channel.reply, (1, 2, "text")),
        (_channel.reply, (1, "2", b"")),
        (_channel.pack_entries, ([(name, 1)], 0, 4096, 0, 1.0, 1.0, set(), 1.0)),
        (_channel.pack_entries, ([(name, 1, None)], 0, 4096, 0, 1.0, 1.0, set(), 1.0)),
        (_channel.pack_entries, ([(name, 1, attributes)], 0, 4096, 0, 1.0, 1.0, [], 1.0)),
    ]

    def hammer() -> None:
        for function, arguments in calls:
            with pytest.raises((TypeError, OverflowError)):
                function(*arguments)
        pack([(name, 1, attributes)], changing={3})

    hammer()
    watched = [name, attributes, handler]
    before = [sys.getrefcount(thing) for thing in watched]
    gc.collect()
    blocks = sys.getallocatedblocks()
    for _ in range(100):
        hammer()
    gc.collect()
    assert [sys.getrefcount(thing) for thing in watched] == before
    assert sys.getallocatedblocks() - blocks < 100, "less than one block a round"
