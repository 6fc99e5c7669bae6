"""SIGKILL at any moment: the file is in order, and the index finds back by itself."""

from __future__ import annotations

import json
import os
import random
import select
import signal
import subprocess
import sys
from pathlib import Path

from modamafs.index.reconcile import Index
from modamafs.store.backing import Store
from tests.index.support import differences, reconcile, whole

KILLS = 30


def test_killed_at_random(on_disk: Path) -> None:
    (on_disk / "store").mkdir()
    (on_disk / "outside").mkdir()
    some = random.Random(5)
    with Store(on_disk / "store") as store:
        for kill in range(KILLS):
            kill_after(on_disk, kill, some.randrange(1, 12), some.random() * 0.03)
            if kill and kill % 3 == 0:
                continue  # killed again, before anybody has looked
            whole(on_disk / "index")
            index = Index(store, on_disk / "index")
            assert index.state()["state"] in ("building", "catching up", "ok")
            reconcile(index)
            assert differences(store, on_disk / "index") == [], kill
            index.close()


def kill_after(base: Path, seed: int, lines: int, more_s: float) -> None:
    """Have a process work on the index until it has said so much, and a little longer."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.index.test_killed", base, str(seed)],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdout
    for _ in range(lines):
        assert json.loads(process.stdout.readline())["state"] != "unavailable"
    select.select([], [], [], more_s)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()


def work(base: Path, seed: int) -> None:
    """Things happen, and are told, for ever."""
    from tests.index.life import Life

    store = Store(base / "store")
    life = Life(base / "store", base / "outside", seed)
    for _ in range(50):
        life.step()
    life.take()
    index = Index(store, base / "index")
    while True:
        steps = index.reconcile(lambda _: None) if index.needs_reconcile else range(5)
        if life.random.random() < 0.1:
            steps = index.rebuild(lambda _: None)
        for _ in steps:
            for _ in range(20):
                life.step()
            index.apply(life.take())
            print(json.dumps(index.state()), flush=True)


if __name__ == "__main__":
    import modamafs.index.reconcile

    modamafs.index.reconcile.STEP_ENTRIES = 20
    work(Path(os.fsdecode(sys.argv[1])), int(sys.argv[2]))
