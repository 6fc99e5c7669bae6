"""Thousands of things happen on a real store; afterwards the index is what the store is."""

from __future__ import annotations

from pathlib import Path

import pytest

from modamafs.index.reconcile import Index
from modamafs.store.backing import Store
from tests.index.life import Life
from tests.index.support import differences, reconcile, whole

SEEDS = range(3)
STEPS = 900


def begin(tmp: Path, seed: int, *, records: bool = True) -> tuple[Store, Index, Life]:
    (tmp / "store").mkdir()
    (tmp / "outside").mkdir()
    store = Store(tmp / "store")
    index = Index(store, tmp / "index")
    life = Life(tmp / "store", tmp / "outside", seed, records=records)
    for _ in range(150):
        life.step()
    life.take()
    return store, index, life


@pytest.mark.parametrize("seed", SEEDS)
def test_all_that_is_told_is_enough(on_disk: Path, seed: int) -> None:
    store, index, life = begin(on_disk, seed)
    reconcile(index)
    assert differences(store, on_disk / "index") == []
    for number in range(STEPS):
        life.step()
        if life.random.random() < 0.2:
            index.apply(life.take())
        if number % 300 == 299:
            index.apply(life.take())
            assert differences(store, on_disk / "index") == [], number
    assert not index.needs_reconcile
    assert index.state()["state"] == "ok"
    index.close()
    whole(on_disk / "index")
    store.close()


@pytest.mark.parametrize("seed", SEEDS)
def test_what_was_not_told_is_found(on_disk: Path, seed: int) -> None:
    store, index, life = begin(on_disk, 1000 + seed)
    reconcile(index)
    for number in range(STEPS):
        life.step()
        if life.random.random() < 0.1:
            changes = [change for change in life.take() if life.random.random() < 0.5]
            life.random.shuffle(changes)
            index.apply(changes)
        if number % 300 == 299:
            reconcile(index)
            assert differences(store, on_disk / "index") == [], number
    index.close()
    whole(on_disk / "index")
    store.close()


@pytest.mark.parametrize("seed", SEEDS)
def test_while_everything_is_looked_at(
    on_disk: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modamafs.index.reconcile.STEP_ENTRIES", 7)
    store, index, life = begin(on_disk, 2000 + seed)
    for round_ in range(4):
        steps = index.rebuild(lambda _: None) if round_ == 2 else index.reconcile(lambda _: None)
        for _ in steps:
            for _ in range(5):
                life.step()
            index.apply(life.take())
        assert not index.needs_reconcile
        assert differences(store, on_disk / "index") == [], round_
        for _ in range(100):
            life.step()
        life.take()
    index.close()
    whole(on_disk / "index")
    store.close()
