"""Who has a file open for writing: the kernel says whether, ``/proc`` says who.

Whether is certain: no lease for reading is given on a file that anybody has open for writing, be
it through passthrough, through a mapping whose descriptor is closed, or by the kernel itself.

Who is what ``/proc`` shows (proc_pid_fdinfo(5), proc_pid_maps(5), proc_pid_map_files(5)), and it is
only asked for words: no file system is touched, as another one that hangs would hang us too.
Through passthrough, too, descriptors and mappings show the mount's device and not the store's, and
the inode number is the same on both. Not to be seen: the kernel's own files (loop devices, knfsd),
descriptors under way in a socket, and processes of other users unless this one is privileged. Two
btrfs subvolumes of one file system share their device and inode numbers, so a process may be named
that has the file of the same number in the other one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import pwd
import re
import signal
import stat
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from modamafs import mounting
from modamafs.store.backing import Store, path_of

LONGEST_COMMAND = 80
"""Characters of a command line that are shown."""
NAMED_AT_MOST = 3

_DAEMONS = {b"modamafs.worker", b"modamafs.supervisor"}
"""As ``python -m`` is given them: they hold files open for others."""

_GONE_OR_NOT_OURS = {errno.ENOENT, errno.ESRCH, errno.EACCES, errno.EPERM}

_FDINFO = re.compile(rb"^mnt_id:\s*([0-9]+)\nino:\s*([0-9]+)$", re.MULTILINE)
_MAPPING = re.compile(
    rb"^([0-9a-f]+-[0-9a-f]+) .... [0-9a-f]+ ([0-9a-f]+):([0-9a-f]+) ([1-9][0-9]*) +(/.*)$",
    re.MULTILINE,
)
"""Addresses, device (hexadecimal), inode number, path (a newline in it is escaped)."""


class Writer(NamedTuple):
    """A process that has a file open for writing."""

    path: bytes
    """Relative to the directory that is to be sealed."""
    pid: int
    user: str
    """The name of the process's real user id, or the number where it has no name."""
    command: str
    """The command line's beginning, in printable characters."""


def is_open_for_writing(fd: int) -> bool:
    """Whether anybody has the file open for writing, through passthrough or a mapping too.

    ``fd`` names a regular file of the store (O_PATH will do) and is not open for writing itself.
    True as well while somebody holds a lease that opening it has to break (a file server's).
    OSError: EACCES (neither the owner nor CAP_LEASE), EINVAL (a file system without leases, or no
    regular file).
    """
    try:
        fresh = os.open(b"/proc/self/fd/%d" % fd, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except BlockingIOError:
        return True
    try:
        # Who opens it for writing in between makes the kernel send a signal: not the SIGIO that
        # would end this process, but one that is ignored.
        fcntl.fcntl(fresh, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fresh, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(fresh, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except BlockingIOError:
        return True
    finally:
        os.close(fresh)
    return False


def find_writers(store: Store, inodes: Mapping[int, bytes]) -> list[Writer]:
    """The processes that have one of these inodes of the store open for writing, sorted.

    ``inodes`` maps inode numbers to the paths that they are called by. What this process may not
    look at is left out, and this process itself; a daemon of ours is named only where nobody else
    is found.
    """
    if not inodes:
        return []
    devices = _Devices(store)
    found: dict[int, list[_Process]] = {}
    own_pid = int(os.readlink("/proc/self"))
    for pid in [int(name) for name in os.listdir("/proc") if name.isdigit()]:
        if pid == own_pid:
            continue
        with _gone_is_fine():
            process = _Process(pid)
            devices.learn_namespace(process)
            for ino in set(process.open_for_writing(inodes, devices)):
                found.setdefault(ino, []).append(process)
    writers = set()
    for ino, processes in found.items():
        clients = [process for process in processes if not process.is_daemon()]
        for process in clients or processes:
            with _gone_is_fine():
                writers.add(Writer(inodes[ino], process.pid, process.user(), process.command()))
    return sorted(writers)


def describe(busy: Sequence[bytes], writers: Sequence[Writer]) -> str:
    """One line for people: which of the ``busy`` paths are open for writing, and by whom."""
    words = []
    for path in busy:
        theirs = [writer for writer in writers if writer.path == path]
        for each in theirs:
            who = f"{each.command} (pid {each.pid}, {each.user})"
            words.append(f"{_printable(path)} by {who}")
        if not theirs:
            words.append(f"{_printable(path)} (its process can't be seen from here)")
    more = len(words) - NAMED_AT_MOST
    return ", ".join(words[:NAMED_AT_MOST]) + (f" and {more} more" if more > 0 else "")


# ---- processes -----------------------------------------------------------------------------------


class _Process:
    """What ``/proc`` shows of a process; OSError (ENOENT, ESRCH) when it has ended."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.directory = b"/proc/%d" % pid
        self._fds = os.listdir(self.directory + b"/fd")
        if not self._fds:
            self._look_at_threads()

    def _look_at_threads(self) -> None:
        """The first thread of a process may have ended before the others: it shows nothing."""
        for thread in os.listdir(self.directory + b"/task"):
            directory = self.directory + b"/task/" + thread
            with _gone_is_fine():
                self._fds = os.listdir(directory + b"/fd")
                if self._fds:
                    self.directory = directory
                    return

    def open_for_writing(self, inodes: Mapping[int, bytes], devices: _Devices) -> Iterator[int]:
        """The inodes among these that are the store's, as often as they are met."""
        for name in self._fds:
            with _gone_is_fine():
                path = self._path_of(name)
                # A link's own mode says how it is open: that is known faster than the rest.
                if path.startswith(b"/") and self._is_open_for_writing(b"/fd/" + name):
                    yield from self._of_descriptor(name, path, inodes, devices)
        for match in _MAPPING.finditer(self._maps()):
            ino = int(match[4])
            if ino not in inodes:
                continue
            with _gone_is_fine():
                # What counts is how the file is open, and not what the mapping allows just now.
                if self._is_open_for_writing(b"/map_files/" + match[1]):
                    device = os.makedev(int(match[2], 16), int(match[3], 16))
                    path = match[5].replace(b"\\012", b"\n")
                    if devices.is_ours(device, path, inodes[ino]):
                        yield ino

    def _path_of(self, name: bytes) -> bytes:
        """Where a descriptor leads to; no path may be longer than 4096 bytes: that is ``/``."""
        try:
            return os.readlink(self.directory + b"/fd/" + name)
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            return b"/"

    def _maps(self) -> bytes:
        with _gone_is_fine():
            return self.read("maps")
        return b""

    def _of_descriptor(
        self, name: bytes, path: bytes, inodes: Mapping[int, bytes], devices: _Devices
    ) -> Iterator[int]:
        match = _FDINFO.search(self.read("fdinfo/" + os.fsdecode(name)))
        if match and (ino := int(match[2])) in inodes:
            device = devices.of_mount(int(match[1]), self)
            if devices.is_ours(device, path, inodes[ino]):
                yield ino

    def _is_open_for_writing(self, link: bytes) -> bool:
        """How the file is open that a link in ``/proc/PID`` leads to; lstat(2) asks no file."""
        return bool(os.lstat(self.directory + link).st_mode & stat.S_IWUSR)

    def namespace(self) -> bytes:
        """What the kernel calls its mount namespace."""
        return os.readlink(self.directory + b"/ns/mnt")

    def mounts(self) -> list[mounting.MountInfo]:
        """What is mounted where it is."""
        return mounting.parse_mountinfo(self.read("mountinfo"))

    def is_daemon(self) -> bool:
        """Whether it is a process of a mount: those hold files open for others."""
        with _gone_is_fine():
            return not _DAEMONS.isdisjoint(self.read("cmdline").split(b"\0"))
        return False

    def user(self) -> str:
        """The name of its real user id, or the number."""
        match = re.search(rb"^Uid:\s*([0-9]+)", self.read("status"), re.MULTILINE)
        uid = int(match[1]) if match else 0
        try:
            return pwd.getpwuid(uid).pw_name
        except KeyError:
            return str(uid)

    def command(self) -> str:
        """The beginning of its command line, or its name where there is none."""
        words = self.read("cmdline").rstrip(b"\0").split(b"\0")
        words[0] = words[0].rpartition(b"/")[2]
        shown = _printable(b" ".join(words) or self.read("comm").rstrip(b"\n"))
        return shown if len(shown) <= LONGEST_COMMAND else shown[: LONGEST_COMMAND - 1] + "…"

    def read(self, name: str) -> bytes:
        """One of its files."""
        with open(os.path.join(os.fsdecode(self.directory), name), "rb", buffering=0) as file:
            return file.readall()


@contextlib.contextmanager
def _gone_is_fine() -> Iterator[None]:
    """What ends while it is looked at, or may not be looked at, is left out."""
    try:
        yield
    except OSError as error:
        if error.errno not in _GONE_OR_NOT_OURS:
            raise


def _printable(raw: bytes) -> str:
    """For one line on a terminal: what can't be shown is escaped."""
    text = raw.decode(errors="backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


# ---- devices -------------------------------------------------------------------------------------


class _Devices:
    """The devices that show the store's files: its file system, and the mounts of the store.

    As mountinfo calls them: btrfs tells ``stat(2)`` another device.
    """

    def __init__(self, store: Store) -> None:
        self._sources = {os.fsdecode(path_of(store.root_fd)), os.fspath(store.path)}
        self._of_mount: dict[int, int] = {}
        self._ours: dict[int, bool] = {}
        self._namespaces: set[bytes] = set()
        self._pids: set[int] = set()
        own = _Process(int(os.readlink("/proc/self")))
        self.learn_namespace(own)
        match = _FDINFO.search(own.read(f"fdinfo/{store.root_fd}"))
        device = self._of_mount.get(int(match[1])) if match else None
        self._ours[os.fstat(store.root_fd).st_dev if device is None else device] = True

    def learn_namespace(self, process: _Process) -> None:
        """Read what is mounted where the process is, unless that is known."""
        namespace = process.namespace()
        if namespace not in self._namespaces:
            self._namespaces.add(namespace)
            self._learn(process)

    def _learn(self, process: _Process) -> None:
        self._pids.add(process.pid)
        for mount in process.mounts():
            self._of_mount[mount.mount_id] = mount.dev
            if mount.fstype != mounting.FSTYPE:
                self._ours.setdefault(mount.dev, False)
            elif mount.source in self._sources:
                self._ours[mount.dev] = True

    def of_mount(self, mount_id: int, process: _Process) -> int | None:
        """The device of a mount that the process has a file open on; None: nobody's any more."""
        if mount_id not in self._of_mount and process.pid not in self._pids:
            self._learn(process)  # after chroot(2) it sees others than its namespace's first did
        return self._of_mount.get(mount_id)

    def is_ours(self, device: int | None, path: bytes, expected: bytes) -> bool:
        """Whether a file of an expected inode number on the device is the store's.

        On a mount that was detached while in use, or one whose source is called otherwise where it
        was made, the path decides: it ends as is expected.
        """
        known = None if device is None else self._ours.get(device)
        return path.endswith(b"/" + expected) if known is None else known
