"""``_channel``, byte by byte: the test plays the kernel at the other end of a socketpair."""

from __future__ import annotations

import errno
import os
import random
import stat
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from modamafs.fuse import channel
from tests.native import kernel as k
from tests.native import quick as fs
from tests.native.kernel import Kernel

# linux/fuse.h: what libfuse sets by itself where it is offered
ASYNC_READ = 1 << 0
EXPORT_SUPPORT = 1 << 4
BIG_WRITES = 1 << 5
DO_READDIRPLUS = 1 << 13
PARALLEL_DIROPS = 1 << 18
POSIX_ACL = 1 << 20
MAX_PAGES = 1 << 22
BY_LIBFUSE = ASYNC_READ | EXPORT_SUPPORT | BIG_WRITES | DO_READDIRPLUS | MAX_PAGES | POSIX_ACL

EVERYTHING = (1 << 42) - 1 & ~(1 << 31)
WANTED = (
    channel.DONT_MASK
    | channel.CACHE_SYMLINKS
    | channel.SETXATTR_EXT
    | channel.HAS_RESEND
    | channel.PASSTHROUGH
    | channel.HANDLE_KILLPRIV_V2
)
RESEND = (7, 0, b"", 16)


# ---- INIT ----------------------------------------------------------------------------------------


def test_all_that_is_wanted_and_offered_is_agreed_on(tmp_path: Path) -> None:
    with Kernel(tmp_path, wanted=WANTED, depth=2) as kernel:
        reply = kernel.init(EVERYTHING)
        assert reply.major == 7
        assert reply.all_flags & WANTED == WANTED
        assert reply.flags & channel.INIT_EXT, "or the kernel does not look at flags2"
        assert reply.all_flags & BY_LIBFUSE == BY_LIBFUSE
        assert reply.max_stack_depth == 2
        assert kernel.query(b"agreed") == reply.all_flags
        assert kernel.query(b"attached") is True


def test_what_libfuse_set_stays(tmp_path: Path) -> None:
    replies = []
    for wanted in (0, WANTED):
        directory = tmp_path / str(wanted)
        directory.mkdir()
        with Kernel(directory, wanted=wanted) as kernel:
            replies.append(kernel.init(EVERYTHING))
    plain, patched = replies
    assert plain.all_flags & channel.PASSTHROUGH == 0
    assert plain.max_stack_depth == 0
    assert patched == plain._replace(
        flags=plain.flags | WANTED & 0xFFFFFFFF,
        flags2=plain.flags2 | WANTED >> 32,
        max_stack_depth=1,
    )


@pytest.mark.parametrize(
    "missing",
    [
        channel.DONT_MASK, channel.CACHE_SYMLINKS, channel.SETXATTR_EXT, channel.HAS_RESEND,
        channel.PASSTHROUGH, channel.HANDLE_KILLPRIV_V2,
    ],
)  # fmt: skip
def test_what_the_kernel_does_not_offer_is_not_set(tmp_path: Path, missing: int) -> None:
    with Kernel(tmp_path, wanted=WANTED) as kernel:
        reply = kernel.init(EVERYTHING & ~missing)
        assert reply.all_flags & WANTED == WANTED & ~missing
        assert reply.max_stack_depth == (0 if missing == channel.PASSTHROUGH else 1)
        assert kernel.query(b"agreed") == reply.all_flags


def test_flags2_count_only_with_init_ext(tmp_path: Path) -> None:
    """An older kernel leaves garbage there."""
    with Kernel(tmp_path, wanted=WANTED) as kernel:
        reply = kernel.init(EVERYTHING & ~channel.INIT_EXT)
        assert reply.flags2 == 0
        assert reply.max_stack_depth == 0
        assert reply.flags & WANTED == WANTED & 0xFFFFFFFF


def test_init_is_saved_with_what_was_agreed_on(tmp_path: Path) -> None:
    with Kernel(tmp_path, wanted=WANTED) as kernel:
        reply = kernel.init(EVERYTHING)
        length, answered, flags, request = k.SAVED_INIT.unpack(kernel.init_path.read_bytes())
        assert (length, answered, flags) == (104, 1, reply.all_flags)
        header = k.REQUEST.pack(104, k.INIT, 2, 1, k.UID, k.GID, k.PID, 0, 0)
        assert request == (header + k.init_body(EVERYTHING)).ljust(256, b"\0")


def test_without_a_file_to_save_it_to_the_mount_works(tmp_path: Path) -> None:
    with Kernel(tmp_path, wanted=WANTED, save=False) as kernel:
        kernel.init(EVERYTHING)
        assert kernel.query(b"attached") is True
        assert not kernel.init_path.exists()


def test_a_short_init_is_an_old_kernels(tmp_path: Path) -> None:
    """Before 7.36 it ends with the first flags."""
    with Kernel(tmp_path, wanted=WANTED) as kernel:
        offer = (DO_READDIRPLUS | channel.DONT_MASK | channel.INIT_EXT) & 0xFFFFFFFF
        reply = kernel.call(k.INIT, k.init_body(offer, minor=31)[:16])
        assert reply.error == 0
        out = k.InitReply(*k.INIT_OUT.unpack(reply.body))
        assert out.flags2 == 0
        assert out.flags & WANTED == channel.DONT_MASK
        assert kernel.query(b"attached") is True


def test_an_init_that_is_too_long_to_be_saved_is_answered_by_libfuse_alone(tmp_path: Path) -> None:
    with Kernel(tmp_path, wanted=WANTED) as kernel:
        reply = kernel.call(k.INIT, k.init_body(EVERYTHING).ljust(217, b"\0"))
        assert reply.error == 0
        assert kernel.query(b"agreed") == 0
        assert kernel.init_path.read_bytes() == b"", "a later worker must not take it for agreed"


def test_the_longest_init_that_can_be_saved_is(tmp_path: Path) -> None:
    with Kernel(tmp_path, wanted=WANTED) as kernel:
        kernel.call(k.INIT, k.init_body(EVERYTHING).ljust(216, b"\1"))
        assert kernel.query(b"agreed") & WANTED == WANTED
        saved = k.SAVED_INIT.unpack(kernel.init_path.read_bytes())
        assert saved[0] == 256
        assert saved[3].endswith(b"\1")


# ---- a second worker -----------------------------------------------------------------------------


def test_a_new_worker_asks_for_what_was_not_answered(tmp_path: Path) -> None:
    with Kernel(tmp_path, wanted=WANTED) as kernel:
        agreed = kernel.init(EVERYTHING).all_flags
        kernel.kill()
    with Kernel(tmp_path, wanted=WANTED, first=100) as kernel:
        assert kernel.receive() == RESEND
        assert kernel.query(b"agreed") == agreed
        assert sum(kernel.query(b"seen")[: k.INIT + 1]) == 2, "a replay is no request: 2 GETXATTR"
        opened = kernel.call(k.OPEN, k.OPEN_IN.pack(0, 0), 10)
        assert opened.error == 0


def test_without_has_resend_nothing_is_asked_for(tmp_path: Path) -> None:
    with Kernel(tmp_path, wanted=WANTED) as kernel:
        kernel.init(EVERYTHING & ~channel.HAS_RESEND)
        kernel.kill()
    with Kernel(tmp_path, wanted=WANTED, first=100) as kernel:
        assert kernel.query(b"agreed") & channel.HAS_RESEND == 0


def test_the_replay_takes_the_flags_that_were_agreed_on(tmp_path: Path) -> None:
    """A new version may want something else: the kernel has its answer."""
    with Kernel(tmp_path, wanted=channel.HAS_RESEND) as kernel:
        agreed = kernel.init(EVERYTHING).all_flags
        kernel.kill()
    with Kernel(tmp_path, wanted=WANTED, first=100) as kernel:
        assert kernel.receive() == RESEND
        assert kernel.query(b"agreed") == agreed
        # among them is no SETXATTR_EXT: the message has the short layout
        body = k.SETXATTR_COMPAT_IN.pack(5, 0) + b"user.name\0value"
        assert kernel.call(k.SETXATTR, body, 20).error == 0
        assert kernel.query(b"calls")[0][-4:] == (b"user.name", b"value", 0, 0)


def test_an_init_that_was_never_answered_is_answered_by_the_next_worker(tmp_path: Path) -> None:
    body = k.init_body(EVERYTHING)
    header = k.REQUEST.pack(40 + len(body), k.INIT, 2, 1, 0, 0, 0, 0, 0)
    (tmp_path / "init.bin").write_bytes(k.SAVED_INIT.pack(104, 0, 0, header + body))
    with Kernel(tmp_path, wanted=WANTED, first=100) as kernel:
        reply = kernel.receive()
        assert (reply.error, reply.unique, reply.length) == (0, 2, 80)
        assert k.InitReply(*k.INIT_OUT.unpack(reply.body)).all_flags & WANTED == WANTED
        assert kernel.query(b"attached") is True, "and nothing is sent before"
        assert k.SAVED_INIT.unpack(kernel.init_path.read_bytes())[1] == 1


def test_an_answer_that_could_not_be_noted_is_no_error(tmp_path: Path) -> None:
    """The first worker died between answering INIT and noting it: the kernel says ENOENT."""
    body = k.init_body(EVERYTHING)
    header = k.REQUEST.pack(40 + len(body), k.INIT, 2, 1, 0, 0, 0, 0, 0)
    (tmp_path / "init.bin").write_bytes(k.SAVED_INIT.pack(104, 0, 0, header + body))
    with Kernel(tmp_path, wanted=WANTED, trick="init-answered", first=100) as kernel:
        assert kernel.receive() == RESEND
        assert kernel.query(b"agreed") & WANTED == WANTED
        _, answered, flags, _ = k.SAVED_INIT.unpack(kernel.init_path.read_bytes())
        assert answered == 1
        assert flags & WANTED == WANTED


def test_an_empty_file_is_a_new_mount(tmp_path: Path) -> None:
    (tmp_path / "init.bin").touch()
    with Kernel(tmp_path, wanted=WANTED) as kernel:
        assert kernel.init(EVERYTHING).all_flags & WANTED == WANTED


# ---- which request it is -------------------------------------------------------------------------


def test_current_tells_the_request_and_whether_it_was_sent_again(tmp_path: Path) -> None:
    with Kernel(tmp_path, wanted=WANTED) as kernel:
        kernel.init(EVERYTHING)
        assert kernel.query(b"current", unique=0x1234567890AB) == (0x1234567890AB, False)
        assert kernel.query(b"current", unique=0x42 | k.RESENT) == (0x42, True)
        assert kernel.query(b"current", unique=0x44) == (0x44, False)


def test_current_owner_is_who_sent_the_request(kernel: Kernel) -> None:
    assert kernel.query(b"current_owner") == (k.UID, k.GID)


def test_a_resent_request_is_answered_under_its_own_number(tmp_path: Path) -> None:
    with Kernel(tmp_path, wanted=WANTED) as kernel:
        kernel.init(EVERYTHING)
        unique = 0x42 | k.RESENT
        for opcode, body in [
            (k.OPEN, k.OPEN_IN.pack(0, 0)),
            (k.LSEEK, k.LSEEK_IN.pack(1, 2, 3, 0)),
            (k.GETXATTR, k.GETXATTR_IN.pack(10, 0) + b"user.none\0"),
        ]:
            assert kernel.call(opcode, body, 10, unique=unique).unique == unique


def test_seen_counts_by_opcode(tmp_path: Path) -> None:
    with Kernel(tmp_path, wanted=WANTED) as kernel:
        kernel.init(EVERYTHING)
        for _ in range(3):
            kernel.call(k.OPEN, k.OPEN_IN.pack(0, 0), 11)
        kernel.call(k.TMPFILE, k.CREATE_IN.pack(os.O_RDWR, 0o600, 0, 0) + b"/\0")
        assert kernel.call(63, b"").error == -errno.ENOSYS
        assert kernel.call(64, b"").error == -errno.ENOSYS, "beyond what is counted"
        assert kernel.call(999, b"").error == -errno.ENOSYS
        expected = [0] * 64
        expected[k.INIT] = expected[k.TMPFILE] = expected[63] = 1
        expected[k.OPEN] = 3
        expected[k.GETXATTR] = 2
        assert kernel.query(b"seen") == expected


# ---- open ----------------------------------------------------------------------------------------

OPEN_FLAGS = (
    channel.FOPEN_PASSTHROUGH | channel.FOPEN_NOFLUSH | channel.FOPEN_PARALLEL_DIRECT_WRITES
)


def test_open_says_what_set_open_was_told(tmp_path: Path) -> None:
    with Kernel(tmp_path, wanted=WANTED) as kernel:
        kernel.init(EVERYTHING)
        reply = kernel.call(k.OPEN, k.OPEN_IN.pack(os.O_RDWR, 0), 10)
        assert reply.error == 0
        assert reply.body == k.OPEN_OUT.pack(1000, OPEN_FLAGS, 4321)
        assert kernel.query(b"calls") == [("open", 10, os.O_RDWR)]


@pytest.mark.parametrize(
    ("node", "flags"), [(11, 0), (12, channel.FOPEN_KEEP_CACHE), (13, 1 << 0 | 1 << 2)]
)
def test_open_without_set_open_has_libfuses_flags(tmp_path: Path, node: int, flags: int) -> None:
    with Kernel(tmp_path, wanted=WANTED) as kernel:
        kernel.init(EVERYTHING)
        reply = kernel.call(k.OPEN, k.OPEN_IN.pack(os.O_RDONLY, 0), node)
        assert reply.body == k.OPEN_OUT.pack(node * 100, flags, 0)


def test_what_set_open_was_told_counts_once_and_for_its_handle(tmp_path: Path) -> None:
    with Kernel(tmp_path, wanted=WANTED) as kernel:
        kernel.init(EVERYTHING)
        for node, out in [
            (10, k.OPEN_OUT.pack(1000, OPEN_FLAGS, 4321)),
            (11, k.OPEN_OUT.pack(1100, 0, 0)),
            (10, k.OPEN_OUT.pack(1000, OPEN_FLAGS, 4321)),
        ] * 40:  # more than set_open() has room for
            assert kernel.call(k.OPEN, k.OPEN_IN.pack(os.O_RDONLY, 0), node).body == out


def test_opendir(tmp_path: Path) -> None:
    with Kernel(tmp_path, wanted=WANTED) as kernel:
        kernel.init(EVERYTHING)
        reply = kernel.call(k.OPENDIR, k.OPEN_IN.pack(os.O_DIRECTORY, 0), 10)
        assert reply.body == k.OPEN_OUT.pack(1000, 1 << 3 | 1 << 1, 0)
        reply = kernel.call(k.OPENDIR, k.OPEN_IN.pack(os.O_DIRECTORY, 0), 11)
        assert reply.body[:8] == struct.pack("=Q", 1100)


ENTRY = k.ENTRY_OUT.pack(
    0x1122334455667788, 0x99AABBCC, 12, 3, 500_000_000, 250_000_000,
    0x1122334455667788, 0x1_0000_0001, 0x2_0000_0003,
    1_600_000_001, 1_600_000_002, (1 << 64) - 1, 111, 222, 333,
    stat.S_IFREG | 0o4751, 17, 1001, 1002, 0x0803, 8192, 0,
)  # fmt: skip


@pytest.mark.parametrize(
    ("parent", "opened"),
    [
        (10, k.OPEN_OUT.pack(777, OPEN_FLAGS, 4321)),
        (11, k.OPEN_OUT.pack(777, channel.FOPEN_KEEP_CACHE, 0)),
    ],
)
def test_create(tmp_path: Path, parent: int, opened: bytes) -> None:
    with Kernel(tmp_path, wanted=WANTED) as kernel:
        kernel.init(EVERYTHING)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
        body = k.CREATE_IN.pack(flags, stat.S_IFREG | 0o640, 0o027, 0) + b"caf\xe9\0"
        reply = kernel.call(k.CREATE, body, parent)
        assert reply.error == 0
        assert reply.length == 16 + 128 + 16
        assert reply.body == ENTRY + opened
        assert kernel.query(b"calls") == [
            ("create", parent, b"caf\xe9", stat.S_IFREG | 0o640, flags, k.UID, k.GID, 0o027)
        ]


def test_tmpfile_arrives_as_create(tmp_path: Path) -> None:
    with Kernel(tmp_path, wanted=WANTED) as kernel:
        kernel.init(EVERYTHING)
        flags = os.O_RDWR | os.O_TMPFILE
        body = k.CREATE_IN.pack(flags, stat.S_IFREG | 0o600, 0o022, 0) + b"/\0"
        reply = kernel.call(k.TMPFILE, body, 10)
        assert reply.body == ENTRY + k.OPEN_OUT.pack(777, OPEN_FLAGS, 4321)
        ((name, _, _, _, seen_flags, *_),) = kernel.query(b"calls")
        assert name == "create"
        assert seen_flags & os.O_TMPFILE == os.O_TMPFILE


# ---- requests that pyfuse3 has no handler for ----------------------------------------------------


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Kernel]:
    with Kernel(tmp_path, wanted=WANTED) as playing:
        playing.init(EVERYTHING)
        yield playing


@pytest.mark.parametrize("value", [b"value", b"", b"\0\xff" * 500])
@pytest.mark.parametrize("acl_flags", [0, channel.SETXATTR_ACL_KILL_SGID, 0xFFFFFFFF])
def test_setxattr_with_the_long_layout(kernel: Kernel, value: bytes, acl_flags: int) -> None:
    name = b"system.posix_acl_access"
    body = k.SETXATTR_IN.pack(len(value), os.XATTR_CREATE, acl_flags, 0) + name + b"\0" + value
    assert kernel.call(k.SETXATTR, body, 20) == (0, 6, b"payload of 21", 29)
    who = (k.SETXATTR, 20, k.UID, k.GID, k.PID)
    assert kernel.query(b"calls") == [(*who, name, value, os.XATTR_CREATE, acl_flags)]


def test_the_flags_of_one_setxattr_are_not_the_nexts(kernel: Kernel) -> None:
    for acl_flags in (channel.SETXATTR_ACL_KILL_SGID, 0, 1, 0):
        body = k.SETXATTR_IN.pack(1, 0, acl_flags, 0) + b"user.x\0v"
        kernel.call(k.SETXATTR, body, 20)
        assert kernel.query(b"calls")[0][-1] == acl_flags


def test_setxattr_with_the_short_layout(tmp_path: Path) -> None:
    with Kernel(tmp_path, wanted=WANTED) as kernel:
        kernel.init(EVERYTHING & ~channel.SETXATTR_EXT)
        body = k.SETXATTR_COMPAT_IN.pack(5, os.XATTR_REPLACE) + b"user.name\0value"
        assert kernel.call(k.SETXATTR, body, 20).error == 0
        (call,) = kernel.query(b"calls")
        assert call[5:] == (b"user.name", b"value", os.XATTR_REPLACE, 0)


def test_ioctl(kernel: Kernel) -> None:
    body = k.IOCTL_IN.pack(0xFFFFFFFF00000007, 5, 0x80086601, 0xDEADBEEF, 4, 8) + b"\x01\0\xff\x04"
    assert kernel.call(k.IOCTL, body, 20) == (0, 6, b"payload of 39", 29)
    who = (k.IOCTL, 20, k.UID, k.GID, k.PID)
    expected = (*who, 0xFFFFFFFF00000007, 0x80086601, 5, b"\x01\0\xff\x04", 8)
    assert kernel.query(b"calls") == [expected]


def test_ioctl_without_data(kernel: Kernel) -> None:
    kernel.call(k.IOCTL, k.IOCTL_IN.pack(7, 0, 0x5421, 0, 0, 0), 20)
    assert kernel.query(b"calls")[0][5:] == (7, 0x5421, 0, b"", 0)


def test_fallocate(kernel: Kernel) -> None:
    body = k.FALLOCATE_IN.pack(1 << 63 | 7, 1 << 40, (1 << 62) + 1, 3, 0)
    assert kernel.call(k.FALLOCATE, body, 20) == (0, 6, b"payload of 43", 29)
    who = (k.FALLOCATE, 20, k.UID, k.GID, k.PID)
    assert kernel.query(b"calls") == [(*who, 1 << 63 | 7, 3, 1 << 40, (1 << 62) + 1)]


def test_lseek(kernel: Kernel) -> None:
    body = k.LSEEK_IN.pack(7, 1 << 40, os.SEEK_HOLE, 0)
    assert kernel.call(k.LSEEK, body, 20) == (0, 6, b"payload of 46", 29)
    who = (k.LSEEK, 20, k.UID, k.GID, k.PID)
    assert kernel.query(b"calls") == [(*who, 7, 1 << 40, os.SEEK_HOLE)]


def test_copy_file_range(kernel: Kernel) -> None:
    body = k.COPY_FILE_RANGE_IN.pack(7, 1 << 40, 21, 8, (1 << 40) + 1, (1 << 62) + 3, 0)
    assert kernel.call(k.COPY_FILE_RANGE, body, 20) == (0, 6, b"payload of 47", 29)
    who = (k.COPY_FILE_RANGE, 20, k.UID, k.GID, k.PID)
    numbers = (7, 1 << 40, 21, 8, (1 << 40) + 1, (1 << 62) + 3, 0)
    assert kernel.query(b"calls") == [(*who, *numbers)]


def test_readdirplus(kernel: Kernel) -> None:
    body = k.READ_IN.pack(7, (1 << 62) + 5, 4096, 0, 0, 0, 0)
    assert kernel.call(k.READDIRPLUS, body, 20) == (0, 6, b"payload of 44", 29)
    who = (k.READDIRPLUS, 20, k.UID, k.GID, k.PID)
    assert kernel.query(b"calls") == [(*who, 7, (1 << 62) + 5, 4096)]


REQUESTS = {
    k.SETXATTR: k.SETXATTR_IN.pack(1, 0, 0, 0) + b"user.x\0v",
    k.IOCTL: k.IOCTL_IN.pack(7, 0, 0x5421, 0, 0, 0),
    k.FALLOCATE: k.FALLOCATE_IN.pack(7, 0, 1, 0, 0),
    k.LSEEK: k.LSEEK_IN.pack(7, 0, 3, 0),
    k.COPY_FILE_RANGE: k.COPY_FILE_RANGE_IN.pack(7, 0, 21, 8, 0, 1, 0),
    k.READDIRPLUS: k.READ_IN.pack(7, 0, 4096, 0, 0, 0, 0),
}


@pytest.mark.parametrize("opcode", REQUESTS)
def test_reply_answers_an_error(kernel: Kernel, opcode: int) -> None:
    reply = kernel.call(opcode, REQUESTS[opcode], 67)
    assert reply == (-errno.EDQUOT, 6, b"", 16)


@pytest.mark.parametrize("opcode", REQUESTS)
def test_reply_without_payload_is_done(kernel: Kernel, opcode: int) -> None:
    assert kernel.call(opcode, REQUESTS[opcode], 68) == (0, 6, b"", 16)


@pytest.mark.parametrize("opcode", REQUESTS)
def test_a_handler_that_raises_is_eio_and_the_loop_goes_on(kernel: Kernel, opcode: int) -> None:
    assert kernel.call(opcode, REQUESTS[opcode], 66) == (-errno.EIO, 6, b"", 16)
    assert kernel.call(opcode, REQUESTS[opcode], 20).error == 0
    assert "on purpose" in kernel.log()


def test_a_handler_that_can_not_be_called_is_eio(tmp_path: Path) -> None:
    with Kernel(tmp_path, wanted=WANTED, trick="not-callable") as kernel:
        kernel.init(EVERYTHING)
        assert kernel.call(k.LSEEK, REQUESTS[k.LSEEK], 20).error == -errno.EIO
        assert kernel.query(b"attached") is True


def test_a_handler_that_raises_after_its_reply_answers_once(tmp_path: Path) -> None:
    with Kernel(tmp_path, wanted=WANTED) as kernel:
        kernel.init(EVERYTHING)
        assert kernel.call(k.LSEEK, REQUESTS[k.LSEEK], 69).error == 0
        assert kernel.query(b"attached") is True, "and this is the very next message"


def test_a_reply_that_nobody_takes_does_no_harm(tmp_path: Path) -> None:
    """The write fails; nothing is answered twice, and the next request is read."""
    with Kernel(tmp_path, wanted=WANTED) as kernel:
        kernel.init(EVERYTHING)
        kernel.send(k.GETXATTR, k.GETXATTR_IN.pack(100, 0) + b"enospc\0")
        kernel.send(k.LSEEK, REQUESTS[k.LSEEK], 20)
        kernel.send(k.LSEEK, REQUESTS[k.LSEEK], 67)
        kernel.send(k.GETXATTR, k.GETXATTR_IN.pack(100, 0) + b"terminate\0")
        assert kernel.wait() == 0, kernel.log()


# ---- the loop ------------------------------------------------------------------------------------


def test_a_read_that_finds_nothing_does_not_end_the_loop(tmp_path: Path) -> None:
    with Kernel(tmp_path, wanted=WANTED, trick="spurious") as kernel:
        kernel.init(EVERYTHING)
        assert kernel.query(b"attached") is True
        assert kernel.query(b"seen")[k.GETXATTR] == 3


def test_the_loop_ends_when_the_mount_is_gone(tmp_path: Path) -> None:
    """ENODEV is what /dev/fuse says then."""
    with Kernel(tmp_path, wanted=WANTED) as kernel:
        kernel.init(EVERYTHING)
        kernel.query(b"enodev")
        kernel.send(k.OPEN, k.OPEN_IN.pack(0, 0), 10)
        assert kernel.wait() == 0


def test_the_loop_ends_with_an_error_when_reading_fails(tmp_path: Path) -> None:
    with Kernel(tmp_path, wanted=WANTED) as kernel:
        kernel.init(EVERYTHING)
        kernel.send(k.LSEEK, b"", 20)  # a header alone is a whole request…
        kernel.receive()
        kernel._socket.send(b"\0" * 39)  # … and less than that is none
        assert kernel.wait() == errno.EIO


def test_many_requests_at_once(kernel: Kernel) -> None:
    """All are answered, each with its own body: nothing is mixed up by the waiting ones."""
    sent = {}
    for number in range(200):
        node = 10 if number % 3 else 11
        sent[kernel.send(k.OPEN, k.OPEN_IN.pack(os.O_RDONLY, 0), node)] = node
        if len(sent) >= 8:
            reply = kernel.receive()
            node = sent.pop(reply.unique)
            assert struct.unpack_from("=Q", reply.body)[0] == node * 100
    while sent:
        sent.pop(kernel.receive().unique)


# ---- the requests that there are most of ---------------------------------------------------------

NAME = b"caf\xe9\0"
HALF = 500_000_000
ATTRIBUTES = (
    0x1_0000_0001, 0x2_0000_0003, 1_600_000_001, 1_600_000_002, 2**64 - 1, 111, 222, 333,
    stat.S_IFREG | 0o4751, 17, 1001, 1002, 0x0803, 8192, 0,
)  # fmt: skip


@pytest.fixture
def quick(tmp_path: Path) -> Iterator[Kernel]:
    with Kernel(tmp_path, wanted=WANTED, trick="quick") as playing:
        playing.init(EVERYTHING)
        yield playing


@pytest.mark.parametrize(
    ("parent", "node", "valid"), [(30, fs.QUICK_INO, 3), (31, 1, 3), (32, 3, 0)]
)
def test_a_quick_lookup(quick: Kernel, parent: int, node: int, valid: int) -> None:
    """The store's root is node 1; what is in ``changing`` is not believed for long."""
    rest = 250_000_000 if valid else HALF
    expected = k.ENTRY_OUT.pack(node, 0x99AABBCC, 12, valid, HALF, rest, node, *ATTRIBUTES)
    assert quick.call(k.LOOKUP, NAME, parent)[::2] == (0, expected)


def test_a_quick_lookup_of_nothing_may_be_believed(quick: Kernel) -> None:
    reply = quick.call(k.LOOKUP, NAME, fs.QUICK_NOTHING)
    assert reply.error == 0
    assert reply.body == k.ENTRY_OUT.pack(0, 0, 12, 0, HALF, *[0] * 17)


def test_a_quick_getattr(quick: Kernel) -> None:
    for node, ino, valid, rest in ((30, fs.QUICK_INO, 3, 250_000_000), (32, 3, 0, HALF)):
        reply = quick.call(k.GETATTR, k.GETATTR_IN.pack(0, 0, 0), node)
        assert reply[::2] == (0, k.ATTR_OUT.pack(valid, rest, 0, ino, *ATTRIBUTES))


def test_a_quick_getxattr(quick: Kernel) -> None:
    def call(size: int) -> tuple[int, bytes]:
        reply = quick.call(k.GETXATTR, k.GETXATTR_IN.pack(size, 0) + b"user.x\0", 30)
        return reply.error, reply.body

    assert call(100) == (0, b"value of user.x")
    assert call(15) == (0, b"value of user.x")
    assert call(14) == (-errno.ERANGE, b"")
    assert call(0) == (0, struct.pack("=II", 15, 0))


CALLER = (k.UID, k.GID, k.PID)
SETATTR = k.SETATTR_IN.pack(0x31, 0, 0, 0, 11, 22, 33, 111, 222, 333, 0o640, 1001, 1002)
BODIES = {
    k.LOOKUP: NAME,
    k.GETATTR: k.GETATTR_IN.pack(0, 0, 0),
    k.SETATTR: SETATTR,
    k.MKDIR: k.MKDIR_IN.pack(0o40750, 0o27) + NAME,
    k.UNLINK: NAME,
    k.RMDIR: NAME,
    k.OPEN: k.OPEN_IN.pack(os.O_RDWR | os.O_APPEND, 0),
    k.GETXATTR: k.GETXATTR_IN.pack(100, 0) + b"user.x\0",
    k.OPENDIR: k.OPEN_IN.pack(0, 0),
    k.CREATE: k.CREATE_IN.pack(os.O_WRONLY | os.O_EXCL, 0o100640, 0o27, 0) + NAME,
}


def test_a_quick_setattr(quick: Kernel) -> None:
    reply = quick.call(k.SETATTR, SETATTR, 30)
    assert reply[::2] == (0, k.ATTR_OUT.pack(3, 250_000_000, 0, fs.QUICK_INO, *ATTRIBUTES))
    times = ((11, 111), (22, 222))
    assert quick.query(b"quick") == [("setattr", 30, 0x31, 0o640, 1001, 1002, *times)]


def test_a_quick_setattr_to_now(quick: Kernel) -> None:
    """Where the kernel gives a time as well, that is it: it is what it knows already."""
    for fields, given in ((0x1B0, True), (0x180, False)):
        body = k.SETATTR_IN.pack(fields, 0, 0, 0, 11, 22, 33, 111, 222, 333, 0, 0, 0)
        before = time.time_ns()
        quick.call(k.SETATTR, body, 30)
        [(*_, seen, _, _, _, atime, mtime)] = quick.query(b"quick")
        assert seen == fields
        if given:
            assert (atime, mtime) == ((11, 111), (22, 222))
        else:
            assert atime == mtime
            assert before <= atime[0] * 1_000_000_000 + atime[1] <= time.time_ns()


def test_what_is_made_quickly(quick: Kernel) -> None:
    entry = k.ENTRY_OUT.pack(
        fs.QUICK_INO, 0x99AABBCC, 12, 3, HALF, 250_000_000, fs.QUICK_INO, *ATTRIBUTES
    )
    assert quick.call(k.MKDIR, BODIES[k.MKDIR], 30, unique=1000)[::2] == (0, entry)
    assert quick.call(k.CREATE, BODIES[k.CREATE], 30, unique=1002 | k.RESENT)[::2] == (
        0,
        entry + k.OPEN_OUT.pack(*fs.OPENED),
    )
    assert quick.query(b"quick") == [
        ("mkdir", 30, NAME[:-1], 0o40750, (*CALLER, 0o27, 1000, False)),
        ("create", 30, NAME[:-1], 0o100640, os.O_WRONLY | os.O_EXCL,
         (*CALLER, 0o27, 1002, True)),
    ]  # fmt: skip


def test_what_is_removed_quickly(quick: Kernel) -> None:
    assert quick.call(k.UNLINK, NAME, 30, unique=1000)[::2] == (0, b"")
    assert quick.call(k.RMDIR, NAME, 30, unique=1002 | k.RESENT)[::2] == (0, b"")
    assert quick.query(b"quick") == [
        ("unlink", 30, NAME[:-1], (*CALLER, 0, 1000, False)),
        ("rmdir", 30, NAME[:-1], (*CALLER, 0, 1002, True)),
    ]


def test_what_is_opened_and_closed_quickly(quick: Kernel) -> None:
    opened = (0, k.OPEN_OUT.pack(*fs.OPENED))
    assert quick.call(k.OPEN, BODIES[k.OPEN], 30, unique=1000)[::2] == opened
    assert quick.call(k.OPENDIR, BODIES[k.OPENDIR], 30, unique=1002)[::2] == opened
    assert quick.call(k.RELEASE, k.RELEASE_IN.pack(30, 0, 0, 0), 77)[::2] == (0, b"")
    assert quick.call(k.RELEASEDIR, k.RELEASE_IN.pack(31, 0, 0, 0), 77)[::2] == (0, b"")
    assert quick.query(b"quick") == [
        ("open", 30, os.O_RDWR | os.O_APPEND, (*CALLER, 0, 1000, False)),
        ("opendir", 30, (*CALLER, 0, 1002, False)),
        ("release", 30),
        ("releasedir", 31),
    ]


@pytest.mark.parametrize("opcode", BODIES)
def test_quick_refusals(quick: Kernel, opcode: int) -> None:
    """An errno is passed on; what is no answer at all is an error of ours, and no end."""
    body = BODIES[opcode]
    assert quick.call(opcode, body, fs.QUICK_REFUSED).error == -errno.ESTALE
    assert quick.call(opcode, body, fs.QUICK_RAISES).error == -errno.EIO
    assert quick.call(opcode, body, fs.QUICK_WRONG).error == -errno.EIO
    if opcode not in (k.LOOKUP, k.UNLINK, k.RMDIR, k.MKDIR):
        assert quick.call(opcode, body, fs.QUICK_NOTHING).error == -errno.EIO
    assert quick.query(b"attached") is True


def test_what_is_not_quick_is_left_to_pyfuse3(quick: Kernel) -> None:
    for opcode, error in ((k.GETXATTR, errno.ENODATA), (k.LOOKUP, errno.ENOSYS),
                          (k.GETATTR, errno.ENOSYS), (k.UNLINK, errno.ENOSYS)):  # fmt: skip
        assert quick.call(opcode, BODIES[opcode], 99).error == -error
    assert quick.call(k.OPEN, BODIES[k.OPEN], 99).body == k.OPEN_OUT.pack(9900, 0, 0)
    assert quick.call(k.CREATE, BODIES[k.CREATE], 99).error == 0
    assert quick.query(b"calls") == [
        ("open", 99, os.O_RDWR | os.O_APPEND),
        ("create", 99, NAME[:-1], 0o100640, os.O_WRONLY | os.O_EXCL, k.UID, k.GID, 0o27),
    ], "once each"


def test_what_is_left_to_pyfuse3_is_the_whole_message(quick: Kernel) -> None:
    """libfuse takes the bit that says that there is a file handle out of it."""
    size, fh = 1 << 3, 1 << 6
    body = k.SETATTR_IN.pack(size | fh, 77, 4096, 0, 11, 22, 33, 111, 222, 333, 0, 0, 0)
    assert quick.call(k.SETATTR, body, 99).error == 0
    assert quick.query(b"calls") == [("setattr", 99, 4096, True, 77)]


def test_quick_and_others_in_any_order(quick: Kernel) -> None:
    """Many at a time: each is answered once, with what belongs to it."""
    kinds = random.Random(5)
    waiting: dict[int, int] = {}
    for _ in range(500):
        node = kinds.choice([30, 31, 99])
        waiting[quick.send(k.OPEN, BODIES[k.OPEN], node)] = node
        while len(waiting) > kinds.randrange(40):
            reply = quick.receive()
            fh = 9900 if waiting.pop(reply.unique) == 99 else fs.OPENED[0]
            assert k.OPEN_OUT.unpack(reply.body)[0] == fh
    while waiting:
        waiting.pop(quick.receive().unique)
    assert len(quick.query(b"calls")) + len(quick.query(b"quick")) > 500


def test_only_what_can_be_quick_takes_a_function() -> None:
    from modamafs.fuse import _channel

    for opcode in (0, 2, 16, 64, -1, 1 << 20):
        with pytest.raises(ValueError, match="opcode"):
            _channel.set_quick({opcode: print}, 2, set())
