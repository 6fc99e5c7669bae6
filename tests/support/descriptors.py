"""Whether descriptors are left open."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Iterator


@contextlib.contextmanager
def none_left() -> Iterator[None]:
    """AssertionError: after the block this process has other descriptors than before it."""
    gc.collect()  # so that nothing that an earlier test has left is closed in the block
    before = set(os.listdir("/proc/self/fd"))
    yield
    assert set(os.listdir("/proc/self/fd")) == before, "a descriptor is left"
