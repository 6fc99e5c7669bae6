"""The keys of virtual nodes: what they survive, and what they cost."""

from __future__ import annotations

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
    assert Key(b"L", 17).id == 0x4000000000000000 | Key(b"L", 17).id
    assert not is_virtual(2**48)


def test_another_worker_finds_the_keys(tmp_path: Path) -> None:
    table = Table(tmp_path / "t")
    for key in [*KEYS, *KEYS]:
        table.keep(key)
    table.close()
    size = (tmp_path / "t").stat().st_size
    again = Table(tmp_path / "t")
    assert [again.key(key.id) for key in KEYS] == KEYS
    assert (tmp_path / "t").stat().st_size == size, "each is written once"
    with pytest.raises(StaleHandle):
        again.key(Key(b"L", 18).id)
    assert again.find(Key(b"L", 18).id) is None
    again.close()


@pytest.mark.parametrize("cut", range(1, 40))
def test_a_worker_may_be_killed_while_it_writes(tmp_path: Path, cut: int) -> None:
    table = Table(tmp_path / "t")
    for key in KEYS:
        table.keep(key)
    table.close()
    os.truncate(tmp_path / "t", (tmp_path / "t").stat().st_size - cut)
    for _ in range(2):
        again = Table(tmp_path / "t")
        assert [again.key(key.id) for key in KEYS[:-1]] == KEYS[:-1]
        again.keep(KEYS[-1])
        assert again.key(KEYS[-1].id) == KEYS[-1]
        again.close()


def test_damage_ends_the_reading_and_nothing_else(tmp_path: Path) -> None:
    table = Table(tmp_path / "t")
    for key in KEYS:
        table.keep(key)
    table.close()
    data = bytearray((tmp_path / "t").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "t").write_bytes(data)
    again = Table(tmp_path / "t")
    assert again.key(KEYS[0].id) == KEYS[0]
    again.keep(KEYS[-1])
    again.close()
    assert Table(tmp_path / "t").key(KEYS[-1].id) == KEYS[-1]


def test_it_does_not_grow_for_ever(tmp_path: Path) -> None:
    limit = 100_000
    table = Table(tmp_path / "t", limit)
    first = KEYS[0]
    for number in range(20_000):
        table.keep(Key(b"V", number, (b"x" * 200,)))
        table.keep(first)  # asked for all the time
        assert (tmp_path / "t").stat().st_size <= 2 * limit + 1000
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
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:5]))
    table.keep(KEYS[1])
    monkeypatch.undo()
    table.keep(KEYS[2])
    assert [table.key(key.id) for key in KEYS[:3]] == KEYS[:3]
    table.close()
    again = Table(tmp_path / "t")
    assert [again.find(key.id) for key in KEYS[:3]] == [KEYS[0], None, KEYS[2]]
    again.close()
