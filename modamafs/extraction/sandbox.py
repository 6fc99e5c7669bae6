"""What a process that reads other people's files can't do: by means of the kernel.

docs/design/extraction.md says what each of them is for. Linux only; numbers of system calls and
flags are from its uapi headers (landlock.h, prctl.h, capability.h, sched.h).
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import signal
import stat
import struct
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

NOBODY = 65534
CAP_DAC_READ_SEARCH = 2

_CLONE_NEWIPC, _CLONE_NEWPID, _CLONE_NEWNET = 0x08000000, 0x20000000, 0x40000000
_PR_SET_PDEATHSIG, _PR_SET_KEEPCAPS, _PR_SET_NO_NEW_PRIVS = 1, 8, 38
_CAPABILITY_VERSION_3 = 0x20080522
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_EXECUTE, _READ_FILE, _READ_DIR = 1, 4, 8
_FS_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}
"""How many rights of files the kernel's version of Landlock knows; 16 from the fifth on."""
_NET_RIGHTS, _SCOPES = 0b11, 0b11
_PATH_BENEATH = 1

_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2
_LOAD, _JUMP_IF_EQUAL, _JUMP_IF_GREATER_OR_EQUAL, _RETURN = 0x20, 0x15, 0x35, 0x06
_ALLOW, _KILL, _EACCES = 0x7FFF0000, 0x80000000, 0x00050000 | errno.EACCES
_X32 = 0x40000000
"""Another numbering of x86_64's calls begins here."""
_REFUSED: Mapping[str, tuple[int, Sequence[int]]] = {
    "x86_64": (
        0xC000003E,
        # socket, ioctl, truncate, chmod, fchmod, utime, setxattr …, removexattr …, utimes,
        # futimesat, fchmodat, unshare, utimensat, open_by_handle_at, io_uring_setup, fchmodat2,
        # setxattrat, removexattrat
        (41, 16, 76, 90, 91, 132, 188, 189, 190, 197, 198, 199, 235, 261,
         268, 272, 280, 304, 425, 452, 463, 466),
    ),
    "aarch64": (
        0xC00000B7,
        # setxattr …, removexattr …, ioctl, truncate, fchmod, fchmodat, utimensat, unshare,
        # socket, open_by_handle_at, io_uring_setup, fchmodat2, setxattrat, removexattrat
        (5, 6, 7, 14, 15, 16, 29, 45, 52, 53, 88, 97, 198, 265, 425, 452, 463, 466),
    ),
}  # fmt: skip
"""By machine: what the kernel calls it, and the calls that Landlock has no say in."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def landlock_version() -> int:
    """Of the kernel; 0 where it has none, or it is turned off."""
    version = int(_libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), 1))
    return max(version, 0)


def allow_reading_only(paths: Iterable[Path], fds: Sequence[int] = ()) -> None:
    """From now on: read below ``paths``, and what is open as ``fds``; write, make, execute nothing.

    Also no TCP and no signals to outside, as far as the kernel can. OSError: ENOSYS, EOPNOTSUPP.
    """
    version = landlock_version()
    handled = (1 << _FS_RIGHTS.get(version, 16)) - 1
    attributes = (ctypes.c_uint64 * 3)(handled, _NET_RIGHTS, _SCOPES)
    size = 8 if version < 4 else 16 if version < 6 else 24
    ruleset = _system_call(_CREATE_RULESET, attributes, ctypes.c_size_t(size), 0)
    try:
        for path in paths:
            try:
                fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
            except OSError:
                continue
            try:
                _allow(ruleset, fd)
            finally:
                os.close(fd)
        for fd in fds:
            _allow(ruleset, fd)
        forbid_new_privileges()
        _system_call(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _allow(ruleset: int, fd: int) -> None:
    rights = _READ_FILE | (_READ_DIR if stat.S_ISDIR(os.fstat(fd).st_mode) else 0)
    rule = ctypes.create_string_buffer(
        rights.to_bytes(8, sys.byteorder) + fd.to_bytes(4, sys.byteorder), 12
    )
    _system_call(_ADD_RULE, ruleset, _PATH_BENEATH, rule, 0)


def leave_network_and_processes() -> None:
    """No network but a loopback that is down; and children see no processes but their own."""
    if _libc.unshare(_CLONE_NEWPID | _CLONE_NEWNET | _CLONE_NEWIPC):
        raise _error()


def become_nobody(*, read_everything: bool) -> None:
    """Give up root and all capabilities, but for the one to read what only its owner may."""
    _prctl(_PR_SET_KEEPCAPS, int(read_everything))
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    kept = 1 << CAP_DAC_READ_SEARCH if read_everything else 0
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    data = (ctypes.c_uint32 * 6)(kept, kept, 0, 0, 0, 0)
    if _libc.capset(header, data):
        raise _error()
    forbid_new_privileges()


def forbid_new_privileges() -> None:
    """Set-user-ID programs give none any more."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def end_with_parent() -> None:
    """SIGKILL when the process that started this one ends. To be set after a change of user."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def be_first_to_go() -> None:
    """Where memory runs out, the kernel ends this process first."""
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")


def limit(*, data_bytes: int, address_bytes: int, cpu_s: int, descriptors: int) -> None:
    """Of this process; it can start none, no thread either, and write nothing to any file."""
    for what, most in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
        (resource.RLIMIT_NOFILE, descriptors),
        (resource.RLIMIT_DATA, data_bytes),
        (resource.RLIMIT_AS, address_bytes),
    ):
        resource.setrlimit(what, (most, most))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))


def refuse_calls() -> None:
    """From now on EACCES: sockets, and changing what belongs to a file that is open.

    Landlock has no say in these. On a machine whose numbers are not known nothing is refused.
    """
    known = _REFUSED.get(os.uname().machine)
    if known is None:
        return
    architecture, calls = known
    program = [(_LOAD, 0, 0, 4), (_JUMP_IF_EQUAL, 1, 0, architecture), (_RETURN, 0, 0, _KILL)]
    program += [(_LOAD, 0, 0, 0), (_JUMP_IF_GREATER_OR_EQUAL, len(calls) + 1, 0, _X32)]
    for left, call in zip(range(len(calls), 0, -1), calls, strict=True):
        program.append((_JUMP_IF_EQUAL, left, 0, call))
    program += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _EACCES)]
    packed = b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
    code = ctypes.create_string_buffer(packed, len(packed))
    header = struct.pack("@HP", len(program), ctypes.addressof(code))
    forbid_new_privileges()
    filters = ctypes.create_string_buffer(header, len(header))
    if _libc.prctl(_PR_SET_SECCOMP, ctypes.c_ulong(_SECCOMP_MODE_FILTER), filters, 0, 0):
        raise _error()


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0):
        raise _error()


def _system_call(number: int, *arguments: object) -> int:
    result = int(_libc.syscall(number, *arguments))
    if result < 0:
        raise _error()
    return result


def _error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))
