"""``mount(2)`` and what has to hold before it: all refusals, the guard, ``/proc/self/mountinfo``.

A refusal is a ``MountRefused`` that says what, why, and what to do. Nothing is changed before all
of them are passed.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import re
import select
import signal
import stat
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from modamafs.config import MountSpec
from modamafs.errors import MountRefused

FSTYPE = "fuse.modamafs"
FUSE_DEVICE = Path("/dev/fuse")

MNT_DETACH = 2

# linux/mount.h, and the numbers of the calls, which are the same on all machines
_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432
_FSOPEN_CLOEXEC, _FSMOUNT_CLOEXEC = 1, 1
_FSCONFIG_SET_STRING, _FSCONFIG_CMD_CREATE = 1, 6
CAP_SYS_ADMIN = 21

# linux/fs.h
_FS_IOC_GETFLAGS = 0x80086601
_FS_IOC_SETFLAGS = 0x40086602
_FS_IMMUTABLE_FL = 0x10

GUARD_XATTR = "trusted.modama.guard"
"""On a guarded mount point: the mode that it had, in octal."""

DEAD = {errno.ENOTCONN, errno.ECONNABORTED}
"""What every system call says on a mount that nobody serves any more."""
_NO_SUCH_THING = {errno.EOPNOTSUPP, errno.ENOTTY, errno.ENOSYS, errno.EINVAL, errno.EPERM}
"""How file systems say that they know no xattrs (of a namespace), or no inode flags."""

PATIENCE_S = 3.0
"""A mount that says nothing for so long does not answer."""

_libc = ctypes.CDLL(None, use_errno=True)


# --- what is mounted ------------------------------------------------------------------------------


class MountInfo(NamedTuple):
    """One line of ``/proc/self/mountinfo`` (proc_pid_mountinfo(5))."""

    mount_id: int
    dev: int
    """``makedev`` of what ``stat`` says of files in it."""
    mountpoint: str
    fstype: str
    source: str


def parse_mountinfo(text: bytes) -> list[MountInfo]:
    """Parse ``/proc/self/mountinfo``: in the order of mounting, names unescaped."""
    # The kernel escapes newlines in names, and no carriage returns.
    return [_parse_line(line) for line in text.split(b"\n") if line]


def _parse_line(line: bytes) -> MountInfo:
    fields = line.split(b" ")
    fstype, source = fields[fields.index(b"-", 6) + 1 :][:2]
    major, minor = fields[2].split(b":")
    return MountInfo(
        mount_id=int(fields[0]),
        dev=os.makedev(int(major), int(minor)),
        mountpoint=_unescape(fields[4]),
        fstype=_unescape(fstype),
        source=_unescape(source),
    )


def _unescape(field: bytes) -> str:
    return os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda m: bytes([int(m[1], 8)]), field))


def mounts() -> list[MountInfo]:
    """Everything that is mounted in this process's mount namespace."""
    return parse_mountinfo(Path("/proc/self/mountinfo").read_bytes())


def mounted_at(mountpoint: str) -> MountInfo | None:
    """The mount that is visible at ``mountpoint`` (as ``real_mountpoint`` gives it), if any."""
    found = [mount for mount in mounts() if mount.mountpoint == mountpoint]
    return found[-1] if found else None


def real_mountpoint(path: str) -> str:
    """``path`` without symbolic links; unlike ``realpath`` it asks a mount there for nothing.

    A dead or hanging mount would answer with an error, or not at all.
    """
    path = os.path.abspath(path)
    for _ in range(40):
        parent, name = os.path.split(path)
        path = os.path.join(os.path.realpath(parent), name) if name else parent
        try:
            target = os.readlink(path)
        except OSError:
            return path
        path = os.path.normpath(os.path.join(os.path.dirname(path), target))
    return path


def is_wedged(mountpoint: str) -> bool:
    """Whether the mount there is dead: every system call on it fails, as nobody serves it."""
    return probe(mountpoint) in DEAD


def probe(path: str, patience_s: float = PATIENCE_S) -> int | None:
    """What ``stat(2)`` answers: 0 or an errno; None when it says nothing (seconds).

    Who asks a FUSE mount whose daemon hangs, or a network file system, may wait for ever: here a
    child process does.
    """
    return _in_child(lambda: os.stat(path), patience_s, kill=True)


def _in_child(function: Callable[[], object], patience_s: float, *, kill: bool) -> int | None:
    """Call it in a child process: 0 or its OSError's errno; None when it does not end in time.

    Then the child is left to itself (``kill``: told to end, which it does as soon as it can).
    """
    # A signal's handler that raises in the child would let it do its parent's work there.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    pid = os.fork()
    if pid == 0:
        number = errno.EIO
        try:
            # Nobody is to wait for a pipe or a lock that a child holds which never ends.
            os.closerange(0, os.sysconf("SC_OPEN_MAX"))
            function()
            number = 0
        except OSError as error:
            number = error.errno or number
        finally:
            os._exit(number)
    ended = os.pidfd_open(pid)
    try:
        poller = select.poll()
        poller.register(ended, select.POLLIN)
        done = False
        try:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            done = bool(poller.poll(patience_s * 1000))
        finally:
            if kill and not done:
                signal.pidfd_send_signal(ended, signal.SIGKILL)
                if poller.poll(patience_s * 1000):
                    os.waitpid(pid, 0)
        if not done:
            return None
    finally:
        os.close(ended)
    _, status = os.waitpid(pid, 0)
    return os.WEXITSTATUS(status) if os.WIFEXITED(status) else None


# --- refusals -------------------------------------------------------------------------------------


def check(spec: MountSpec, device: Path = FUSE_DEVICE) -> None:
    """Refuse what can't be mounted, with ``MountRefused``; changes nothing.

    ``spec`` has absolute paths without symbolic links.
    """
    _check_machine(device)
    _check_store(spec)
    _check_mountpoint(spec)


def check_answers(path: str) -> None:
    """Refuse a path, with ``MountRefused``, on which every system call waits, perhaps for ever.

    It may have symbolic links; what is called with it afterwards gets an answer, or an error.
    """
    if probe(path) is not None:
        return
    real = os.path.abspath(path)
    there = mounted_at(real)
    if there:
        raise _silent(there)
    raise MountRefused(
        f"{real} can't be reached: a mount on the way there does not answer, as its daemon or "
        "server hangs: 'findmnt' lists the mounts, and 'umount -l' takes one away"
    )


def _silent(there: MountInfo) -> MountRefused:
    return MountRefused(
        f"{there.source} is mounted on {there.mountpoint} already and its daemon does not answer: "
        f"'umount -l {there.mountpoint}' takes it away, then mount again"
    )


def _check_machine(device: Path) -> None:
    if not has_capability(CAP_SYS_ADMIN):
        raise MountRefused("mounting needs root (CAP_SYS_ADMIN): run it with sudo")
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        raise MountRefused(
            f"{device} can't be opened ({error.strerror}): the kernel's FUSE is missing; "
            "try 'modprobe fuse', and in a container pass --device /dev/fuse"
        ) from error


def _check_store(spec: MountSpec) -> None:
    store = Path(spec.store)
    try:
        status = store.stat()
    except FileNotFoundError as error:
        raise MountRefused(
            f"the store {store} does not exist: check the path, or make it with 'modamafs init'"
        ) from error
    except OSError as error:
        raise MountRefused(
            f"the store {store} can't be reached ({error.strerror}): repair what it lies on first"
        ) from error
    if not stat.S_ISDIR(status.st_mode):
        raise MountRefused(f"the store {store} is not a directory: name the directory to mount")
    if not spec.read_only and os.statvfs(store).f_flag & os.ST_RDONLY:
        raise MountRefused(
            f"the store {store} is on a read-only file system: remount that one writable, "
            "or mount the store with --read-only"
        )
    if not takes_xattrs(store):
        raise MountRefused(
            f"the file system of the store {store} has no extended attributes, which seals need: "
            "move the store to ext4, XFS or btrfs"
        )
    inside = [m for m in mounts() if m.mountpoint.startswith(f"{spec.store.rstrip('/')}/")]
    if inside:
        names = ", ".join(f"{m.mountpoint} ({m.fstype})" for m in inside[:3])
        more = f" and {len(inside) - 3} more" if len(inside) > 3 else ""
        raise MountRefused(
            f"inside the store {store} other file systems are mounted: {names}{more}; a store is "
            "one file system: unmount them, or mount each as a store of its own"
        )


def _check_mountpoint(spec: MountSpec) -> None:
    mountpoint = Path(spec.mountpoint)
    there = mounted_at(spec.mountpoint)
    if there and probe(spec.mountpoint) is None:
        raise _silent(there)
    try:
        status = mountpoint.stat()
    except FileNotFoundError as error:
        raise MountRefused(
            f"the mount point {mountpoint} does not exist: make it with 'mkdir'"
        ) from error
    except OSError as error:
        if error.errno not in DEAD:
            raise MountRefused(
                f"the mount point {mountpoint} can't be used ({error.strerror}): choose another"
            ) from error
        way_out = "modamafs umount" if there and there.fstype == FSTYPE else "umount -l"
        raise MountRefused(
            f"on {mountpoint} is a mount whose daemon is dead: run '{way_out} {mountpoint}' first"
        ) from error
    if there and there.fstype == FSTYPE:
        raise MountRefused(
            f"{there.source} is already mounted on {mountpoint}: "
            f"run 'modamafs umount {mountpoint}' first, or choose another mount point"
        )
    if there:
        raise MountRefused(
            f"the mount point {mountpoint} is in use ({there.source}, {there.fstype}, is mounted "
            "on it): unmount that first, or choose another"
        )
    if not stat.S_ISDIR(status.st_mode):
        raise MountRefused(f"the mount point {mountpoint} is not a directory: make one with mkdir")
    _check_nesting(Path(spec.store), mountpoint)
    if any(mountpoint.iterdir()):
        raise MountRefused(
            f"the mount point {mountpoint} is not empty, and what is in it would be hidden: "
            "empty it, or choose another"
        )


def _check_nesting(store: Path, mountpoint: Path) -> None:
    # By inode, as the same directory may have several paths (bind mounts).
    if os.path.samefile(store, mountpoint):
        raise MountRefused(f"{store} can't be mounted on itself: choose another mount point")
    if _lies_inside(store, mountpoint):
        raise MountRefused(
            f"the store {store} lies inside the mount point {mountpoint} and would be hidden: "
            "choose a mount point elsewhere"
        )
    if _lies_inside(mountpoint, store):
        raise MountRefused(
            f"the mount point {mountpoint} lies inside the store {store}, which would contain "
            "itself: choose a mount point elsewhere"
        )


def _lies_inside(path: Path, directory: Path) -> bool:
    return any(os.path.samefile(parent, directory) for parent in path.parents)


# --- what the machine can do ----------------------------------------------------------------------


def has_capability(number: int) -> bool:
    """Whether this process has the capability (capabilities(7)) in effect."""
    status = Path("/proc/self/status").read_text()
    match = re.search(r"^CapEff:\s*([0-9a-f]+)", status, re.MULTILINE)
    return bool(match and int(match[1], 16) >> number & 1)


def takes_xattrs(directory: Path) -> bool:
    """Whether files there can have extended attributes (of users, or trusted ones)."""
    return any(_takes_xattr(directory, f"{space}.modama.probe") for space in ("user", "trusted"))


def _takes_xattr(directory: Path, name: str) -> bool:
    try:
        os.getxattr(directory, name)
    except OSError as error:
        if error.errno in _NO_SUCH_THING:
            return False
        if error.errno != errno.ENODATA:
            raise
    try:
        with unnamed_file(directory) as fd:
            os.setxattr(fd, name, b"1")
    except OSError as error:
        if error.errno in _NO_SUCH_THING:
            return False
        if error.errno not in (errno.EROFS, errno.EISDIR, errno.EACCES):
            raise
        # No file can be made there without a name: that reading was answered has to do.
    return True


def takes_immutable_flag(directory: Path) -> bool:
    """Whether this process can make files there immutable (FS_IMMUTABLE_FL)."""
    try:
        with unnamed_file(directory) as fd:
            set_immutable(fd, True)
            set_immutable(fd, False)
    except OSError as error:
        if error.errno in _NO_SUCH_THING | {errno.EROFS, errno.EISDIR, errno.EACCES}:
            return False
        raise
    return True


@contextlib.contextmanager
def unnamed_file(directory: Path) -> Iterator[int]:
    """Open a file that never has a name (O_TMPFILE): trying things on it leaves no trace."""
    fd = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


def set_immutable(fd: int, immutable: bool) -> None:
    """Set or clear FS_IMMUTABLE_FL and leave the other flags; ENOTTY, EOPNOTSUPP: not there."""
    (flags,) = struct.unpack("l", fcntl.ioctl(fd, _FS_IOC_GETFLAGS, bytes(8)))
    wanted = flags | _FS_IMMUTABLE_FL if immutable else flags & ~_FS_IMMUTABLE_FL
    if wanted != flags:
        fcntl.ioctl(fd, _FS_IOC_SETFLAGS, struct.pack("l", wanted))


# --- the guard ------------------------------------------------------------------------------------


def guard(mountpoint: str) -> str | None:
    """Make an empty mount point unusable (mode 0000, immutable) until ``unguard``.

    Without the mount, servers and users then get an error, and not an empty directory that fills
    up the root disk. Returns what could not be done, and why, in words; None is all of it.
    """
    with _directory(mountpoint) as fd:
        status = os.fstat(fd)
        if status.st_uid != 0:
            return "the mount point is not root's, so it is left as it is"
        try:
            if _guarded_mode(fd) is None:
                mode = f"{stat.S_IMODE(status.st_mode):04o}"
                os.setxattr(fd, GUARD_XATTR, mode.encode())
            else:
                set_immutable(fd, False)  # an earlier mount's guard, perhaps half done
            os.fchmod(fd, 0)
        except OSError as error:
            if error.errno not in _NO_SUCH_THING | {errno.EROFS}:
                raise
            return f"the mount point's file system keeps no trusted xattrs ({error.strerror})"
        try:
            set_immutable(fd, True)
        except OSError as error:
            if error.errno not in _NO_SUCH_THING:
                raise
            return f"mode 0000 only: no immutable flag there ({error.strerror})"
    return None


def is_guarded(mountpoint: str) -> bool:
    """Whether a guard is on the directory there (False when there is none)."""
    try:
        with _directory(mountpoint) as fd:
            return _guarded_mode(fd) is not None
    except (FileNotFoundError, NotADirectoryError):
        return False


def unguard(mountpoint: str) -> bool:
    """Undo ``guard``; to be called when nothing is mounted there. False: there was no guard."""
    with _directory(mountpoint) as fd:
        mode = _guarded_mode(fd)
        if mode is None:
            return False
        try:
            set_immutable(fd, False)
        except OSError as error:
            if error.errno not in _NO_SUCH_THING:
                raise
        os.fchmod(fd, mode)
        os.removexattr(fd, GUARD_XATTR)
    return True


def _guarded_mode(fd: int) -> int | None:
    try:
        return int(os.getxattr(fd, GUARD_XATTR), 8) & 0o7777
    except OSError as error:
        if error.errno == errno.ENODATA or error.errno in _NO_SUCH_THING:
            return None
        raise


@contextlib.contextmanager
def _directory(path: str) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


# --- mount(2), umount(2) --------------------------------------------------------------------------


def mount(spec: MountSpec, device: Path = FUSE_DEVICE) -> int:
    """Mount and return the descriptor of ``/dev/fuse`` (close-on-exec) that serves the mount.

    Nothing answers until a worker reads from it. Raises ``MountRefused``.
    """
    fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={fd},rootmode=40000,user_id=0,group_id=0,default_permissions"
    if spec.allow_other:
        options += ",allow_other"
    failed = _libc.mount(
        os.fsencode(spec.store),
        os.fsencode(spec.mountpoint),
        FSTYPE.encode(),
        ctypes.c_ulong(spec.flags),
        options.encode(),
    )
    if failed:
        why = os.strerror(ctypes.get_errno())
        os.close(fd)
        raise MountRefused(f"the kernel refuses to mount on {spec.mountpoint}: {why}: see 'dmesg'")
    return fd


def another_mount(fuse_fd: int) -> int:
    """A descriptor (O_PATH) of another mount of what ``fuse_fd`` serves, that lies nowhere.

    It is gone when it is closed, with all that was opened by it. What is unmounted meanwhile is not
    busy by it. OSError: ENOTCONN, it is unmounted already; EINVAL before Linux 5.15.
    """
    context = _checked(_libc.syscall(_FSOPEN, b"fuse", _FSOPEN_CLOEXEC))
    try:
        options = {
            b"fd": b"%d" % fuse_fd,
            b"rootmode": b"40000",
            b"user_id": b"0",
            b"group_id": b"0",
        }
        for key, value in options.items():
            _checked(_libc.syscall(_FSCONFIG, context, _FSCONFIG_SET_STRING, key, value, 0))
        _checked(_libc.syscall(_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0))
        return _checked(_libc.syscall(_FSMOUNT, context, _FSMOUNT_CLOEXEC, 0))
    finally:
        os.close(context)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def unmount(mountpoint: str, *, lazy: bool = False) -> None:
    """``umount2(2)``: EBUSY while files are open, unless ``lazy``: detached now, gone when closed.

    May wait for the daemon, to write back what is dirty.
    """
    if _libc.umount2(os.fsencode(mountpoint), MNT_DETACH if lazy else 0):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), mountpoint)


def unmount_silent(mountpoint: str, *, lazy: bool = False) -> None:
    """The same for a mount whose daemon does not answer: what waits for it does not wait here.

    TimeoutError (ETIMEDOUT) when it is still mounted after that.
    """
    there = mounted_at(mountpoint)
    number = _in_child(lambda: unmount(mountpoint, lazy=lazy), PATIENCE_S, kill=False)
    if number is None and mounted_at(mountpoint) == there:
        number = errno.ETIMEDOUT
    if number:
        raise OSError(number, os.strerror(number), mountpoint)
