"""The keys of virtual nodes: what they survive, and what they cost."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from modamafs.errors import StaleHandle
from modamafs.tree.virtual import VIRTUAL, Key, Table, is_virtual

KEYS = [
    Key(b"L", 17),
    Key(b"T", 1),
    Key(b"V", 0, (b"area", b"project")),
    Key(b"L", 2**63, (b"files", b"\xff\n", b"x" * 255), b"12345678"),
]


def test_an_id_is_the_same_everywhere_and_no_inode_number() -> None:
    assert len({key.id for key in KEYS}) == len(KEYS)
    for key in KEYS:
        assert Key.decode(key.encode()) == key
        assert is_virtual(key.id)
        assert VIRTUAL <= key.id < 2**63
    one = Key(b"L", 17, (b"seal",), b"12345678")
    others = ({"origin": b"T"}, {"ino": 18}, {"names": (b"links",)}, {"digest": b"12345679"})
    assert len({one.id, *(one._replace(**other).id for other in others)}) == 5
    assert one.id == ID_OF_ONE, "kernels and file servers have kept it"
    assert not is_virtual(2**48)


ID_OF_ONE = 0x61DBA21F9FF6306E


def test_another_worker_finds_the_keys(tmp_path: Path) -> None:
    table = Table(tmp_path / "t")
    for key in KEYS:
        table.keep(key)
    size = (tmp_path / "t").stat().st_size
    for key in KEYS:
        table.keep(key)
    table.close()
    again = Table(tmp_path / "t")
    assert [again.key(key.id) for key in KEYS] == KEYS
    again.keep(KEYS[0])
    assert (tmp_path / "t").stat().st_size == size, "each is written once"
    with pytest.raises(StaleHandle):
        again.key(Key(b"L", 18).id)
    assert again.find(Key(b"L", 18).id) is None
    again.close()


@pytest.mark.parametrize("cut", range(1, 40))
def test_a_worker_may_be_killed_while_it_writes(tmp_path: Path, cut: int) -> None:
    table = Table(tmp_path / "t")
    for key in KEYS[:-1]:
        table.keep(key)
    whole = (tmp_path / "t").stat().st_size
    table.keep(KEYS[-1])
    table.close()
    os.truncate(tmp_path / "t", (tmp_path / "t").stat().st_size - cut)
    for last in (None, KEYS[-1]):
        again = Table(tmp_path / "t")
        assert [again.key(key.id) for key in KEYS[:-1]] == KEYS[:-1]
        assert again.find(KEYS[-1].id) == last
        assert last or (tmp_path / "t").stat().st_size == whole, "nothing of it is left"
        again.keep(KEYS[-1])
        assert again.key(KEYS[-1].id) == KEYS[-1]
        again.close()


def test_damage_ends_the_reading_and_nothing_else(tmp_path: Path) -> None:
    table = Table(tmp_path / "t")
    for key in KEYS[:-1]:
        table.keep(key)
    whole = (tmp_path / "t").stat().st_size
    table.keep(KEYS[-1])
    table.close()
    data = bytearray((tmp_path / "t").read_bytes())
    data[(whole + len(data)) // 2] ^= 1  # in the last one
    (tmp_path / "t").write_bytes(data)
    again = Table(tmp_path / "t")
    assert [again.find(key.id) for key in KEYS] == [*KEYS[:-1], None]
    assert (tmp_path / "t").stat().st_size == whole
    again.keep(KEYS[-1])
    again.close()
    again = Table(tmp_path / "t")
    assert [again.key(key.id) for key in KEYS] == KEYS
    again.close()


def test_it_does_not_grow_for_ever(tmp_path: Path) -> None:
    limit = 100_000
    table = Table(tmp_path / "t", limit)
    first = KEYS[0]
    table.keep(first)
    before = begun_anew = 0
    for number in range(20_000):
        new = Key(b"V", number, (b"x" * 200,))
        table.keep(new)
        assert table.find(first.id) == first
        table.keep(first)  # asked for all the time
        size = (tmp_path / "t").stat().st_size
        assert size <= 2 * limit + 1000
        if size < before:
            begun_anew += 1
            again = Table(tmp_path / "t", limit)
            assert (again.find(new.id), again.find(first.id)) == (new, first)
            again.close()
        before = size
    assert begun_anew > 10
    assert table.key(first.id) == first
    with pytest.raises(StaleHandle):
        table.key(Key(b"V", 0, (b"x" * 200,)).id)
    last = Key(b"V", 19_999, (b"x" * 200,))
    assert table.key(last.id) == last
    table.close()
    again = Table(tmp_path / "t", limit)
    assert again.key(last.id) == last
    again.close()


def test_without_room_this_worker_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = Table(tmp_path / "t")
    table.keep(KEYS[0])
    write = os.write

    def full(_fd: int, _data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:5]))
    table.keep(KEYS[1])
    monkeypatch.setattr(os, "write", full)
    table.keep(KEYS[3])
    monkeypatch.undo()
    table.keep(KEYS[2])
    assert [table.key(key.id) for key in KEYS] == KEYS
    table.close()
    again = Table(tmp_path / "t")
    assert [again.find(key.id) for key in KEYS] == [KEYS[0], None, KEYS[2], None]
    again.close()


def test_a_key_that_is_too_long_is_refused(tmp_path: Path) -> None:
    table = Table(tmp_path / "t")
    with pytest.raises(OSError) as caught:
        table.keep(Key(b"L", 1, (b"x" * 255,) * 256))
    assert caught.value.errno == errno.ENAMETOOLONG
    table.keep(KEYS[0])
    table.close()
    again = Table(tmp_path / "t")
    assert again.key(KEYS[0].id) == KEYS[0]
    again.close()
