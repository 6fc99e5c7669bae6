"""Every error of the domain and its errno, and nowhere else.

``message`` says what was refused, why, and what to do, in one line; it is what the command line
prints. The file system hands on ``errno`` only.
"""

from __future__ import annotations

import errno


class ModamaError(Exception):
    """Something was refused; ``errno`` is what a system call returns for it."""

    errno: int = errno.EIO

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class Sealed(ModamaError):
    """The tree is sealed: nothing in it changes, whoever asks."""

    errno = errno.EROFS


class SealedForWriting(Sealed):
    """It was opened to read and write at once: who is told EACCES tries again, to read alone.

    NFS-Ganesha does so (and only then) to lock a file that a client has open for reading.
    """

    errno = errno.EACCES


class ReadOnlyMount(ModamaError):
    """The mount was made with ``--read-only``."""

    errno = errno.EROFS


class VirtualReadOnly(ModamaError):
    """Landing directories and views are made by modamafs; only ``ctl`` can be written to."""

    errno = errno.EROFS


class NotSupported(ModamaError):
    """There is no such thing in this mount (ACLs where a view maps owners)."""

    errno = errno.EOPNOTSUPP


class Reserved(ModamaError):
    """The name belongs to modamafs (``.modama``, ``*.modama.*``)."""

    errno = errno.EPERM


class NotOnThisVolume(ModamaError):
    """Another file system (or btrfs subvolume) is mounted inside the store here."""

    errno = errno.EXDEV


class StaleHandle(ModamaError):
    """The kernel (or a file server) names an inode that is no more."""

    errno = errno.ESTALE


class Busy(ModamaError):
    """Somebody has it open for writing."""

    errno = errno.EBUSY


class DamagedRecord(ModamaError):
    """A record on the store can't be understood; what it is about stays as it is."""

    errno = errno.EIO


class Cancelled(ModamaError):
    """Somebody asked to give it up."""

    errno = errno.ECANCELED


class NotPermitted(ModamaError):
    """The caller may not do this."""

    errno = errno.EPERM


class NotAMember(ModamaError):
    """The project is closed to the caller."""

    errno = errno.EACCES


class InvalidRequest(ModamaError):
    """What was asked for makes no sense here (a file where a directory is needed, and so on)."""

    errno = errno.EINVAL


class TookTooLong(ModamaError):
    """A search was given up: ask for less."""

    errno = errno.ETIMEDOUT


class TooLong(ModamaError):
    """More was written than any command has."""

    errno = errno.EFBIG


class ConfigurationError(ModamaError):
    """A configuration file or option is wrong; the message names file, line and key."""

    errno = errno.EINVAL


class MountRefused(ModamaError):
    """The mount can't be made; nothing was changed."""

    errno = errno.EINVAL


class NotInstalled(ModamaError):
    """A program or library is missing that only this takes; the message names its package."""


class NotMounted(ModamaError):
    """No running mount answers for this path."""

    errno = errno.ENOENT
