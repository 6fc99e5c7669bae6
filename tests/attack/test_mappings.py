"""Mappings from before a seal: they show what was measured, and nothing is changed through them."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Callable

import pytest

from tests.attack.conftest import Mapped, Sealed
from tests.attack.scene import FRAME_BYTES, USERS
from tests.support import syscalls
from tests.support.users import as_user

READ_WRITE = mmap.PROT_READ | mmap.PROT_WRITE


def write_by_proc(address: int, content: bytes) -> None:
    """As a debugger does, who may write where the program itself may not."""
    syscalls.be_an_ordinary_process()
    fd = os.open("/proc/self/mem", os.O_RDWR)
    try:
        os.pwrite(fd, content, address)
    finally:
        os.close(fd)


def attack(mapped: Mapped) -> dict[str, int | None]:
    """Try to make the shared mapping writable, or to write through it; errno or None each."""
    attempts: dict[str, Callable[[], object]] = {
        "mprotect": lambda: syscalls.protect(mapped.shared, mapped.length, READ_WRITE),
        "madvise": lambda: syscalls.advise(mapped.shared, mapped.length, syscalls.MADV_REMOVE),
        "/proc/self/mem": lambda: write_by_proc(mapped.shared, b"new"),
    }
    found: dict[str, int | None] = {}
    for name, attempt in attempts.items():
        try:
            attempt()
        except OSError as error:
            found[name] = error.errno
        else:
            found[name] = None
    return found


def write_privately(mapped: Mapped) -> tuple[bytes, bytes]:
    """Write into the private mapping; what it and the shared one hold then."""
    syscalls.write_memory(mapped.private, b"mine")
    write_by_proc(mapped.private + 4, b" alone")
    return (
        syscalls.read_memory(mapped.private, 10),
        syscalls.read_memory(mapped.shared, mapped.length),
    )


@pytest.mark.parametrize("who", USERS)
@pytest.mark.usefixtures("nothing_changes")
def test_a_shared_mapping_to_read_never_becomes_writable(sealed: Sealed, who: str) -> None:
    mapped = sealed.before[who].mapping
    found = as_user(USERS[who], attack, mapped)
    # All three are the kernel's own: the descriptor was to read, and mmap(2) remembers that.
    assert found == {"mprotect": errno.EACCES, "madvise": errno.EACCES, "/proc/self/mem": errno.EIO}
    assert syscalls.read_memory(mapped.shared, mapped.length) == FRAME_BYTES


@pytest.mark.parametrize("who", USERS)
@pytest.mark.usefixtures("nothing_changes")
def test_what_is_written_privately_stays_private(sealed: Sealed, who: str) -> None:
    private, shared = as_user(USERS[who], write_privately, sealed.before[who].mapping)
    assert private == b"mine alone"
    assert shared == FRAME_BYTES
    assert (sealed.mount.root / sealed.before[who].mapping.path).read_bytes() == FRAME_BYTES
