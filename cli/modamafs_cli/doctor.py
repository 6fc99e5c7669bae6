"""``modamafs doctor``: what this machine can do, and what to do about each "no"."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import click

from modamafs import mounting
from modamafs.errors import ModamaError
from modamafs.store.backing import Store
from modamafs.store.seals import Seals
from modamafs.watch.group import open_group
from modamafs_cli._common import emit, json_option

# fcntl.h
_AT_FDCWD = -100
_MAX_HANDLE_BYTES = 128

_libc = ctypes.CDLL(None, use_errno=True)


class Check(NamedTuple):
    """One question and its answer."""

    name: str
    ok: bool
    needed: bool
    """Without it nothing can be mounted here."""
    found: str
    advice: str
    """What to do about a "no"."""


@click.command("doctor")
@click.argument("store", required=False, type=click.Path(path_type=Path))
@json_option
@click.pass_context
def command(ctx: click.Context, store: Path | None, as_json: bool) -> None:
    """Say what this machine, and the file system of STORE, can do, and what to do about each "no".

    Exit status 1 when nothing can be mounted here. Run it as root, as the daemon runs.

    \b
    Example:
      sudo modamafs doctor /storage/er-c-data
    """
    directory = Path(os.path.realpath(store or tempfile.gettempdir()))
    if not directory.is_dir():
        raise ModamaError(f"{directory} is not a directory: name the store's directory")
    checks = [*machine(), *file_system(directory), *seals(directory), *servers()]
    lines = [f"{'yes' if c.ok else 'no':<4}{c.name}: {c.found}" + _advice(c) for c in checks]
    emit([check._asdict() for check in checks], "\n".join(lines), as_json=as_json)
    if not all(check.ok for check in checks if check.needed):
        ctx.exit(1)


def _advice(check: Check) -> str:
    return "" if check.ok else f"\n      → {check.advice}"


def machine() -> list[Check]:
    """The kernel, libfuse, and what this process may do."""
    release = platform.release()
    numbers = [int(number) for number in re.findall(r"\d+", release)[:2]]
    libfuse, libfuse_version = _libfuse()
    capable = mounting.has_capability(mounting.CAP_SYS_ADMIN)
    return [
        Check(
            "passthrough", numbers >= [6, 9], False, f"Linux {release}",
            "needs Linux 6.9 or later (on Debian 12 from backports); "
            "until then everything is read and written through the daemon",
        ),
        _device(),
        Check(
            "libfuse", libfuse_version >= [3, 0], True, libfuse,
            "install libfuse 3: 'apt install libfuse3-3'",
        ),
        Check(
            "channel", libfuse_version >= [3, 14], False, libfuse,
            "passthrough and surviving a killed daemon need libfuse 3.14 or later (Debian 12)",
        ),
        Check(
            "CAP_SYS_ADMIN", capable, True, "in effect" if capable else "not in effect",
            "mounting needs root: run it with sudo; in a container add the capability",
        ),
    ]  # fmt: skip


def _device() -> Check:
    try:
        os.close(os.open(mounting.FUSE_DEVICE, os.O_RDWR | os.O_CLOEXEC))
        found = "opens"
    except OSError as error:
        found = error.strerror or str(error)
    advice = "'modprobe fuse'; in a container '--device /dev/fuse'"
    return Check("/dev/fuse", found == "opens", True, found, advice)


def _libfuse() -> tuple[str, list[int]]:
    for name in ("libfuse3.so.3", "libfuse3.so.4"):
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        library.fuse_pkgversion.restype = ctypes.c_char_p
        version = library.fuse_pkgversion().decode()
        return f"{name} {version}", [int(number) for number in re.findall(r"\d+", version)[:2]]
    return "not found", [0]


def file_system(directory: Path) -> list[Check]:
    """What a store in ``directory`` could do; leaves nothing behind."""
    there = next((m for m in reversed(mounting.mounts()) if m.dev == directory.stat().st_dev), None)
    fstype = there.fstype if there else "unknown"
    place = f"{directory} ({fstype})"
    return [
        Check(
            "file system", fstype in ("ext4", "xfs", "btrfs"), False, place,
            "tested are ext4, XFS and btrfs: put the store on one of them",
        ),
        _try(
            "extended attributes", True, lambda: mounting.takes_xattrs(directory), place,
            "seals and ACLs need them: put the store on ext4, XFS or btrfs",
        ),
        _try(
            "immutable flag", False, lambda: mounting.takes_immutable_flag(directory), place,
            "seals then hold in the mount, but not on the store itself: "
            "run as root (CAP_LINUX_IMMUTABLE), on ext4, XFS or btrfs",
        ),
        _try(
            "fanotify", False, lambda: _watches(directory), place,
            "changes made on the store itself are then seen when the timeouts end, not at once: "
            "run as root, with a kernel from 5.17 on (a btrfs subvolume can't be watched whole)",
        ),
        _try(
            "file handles", False, lambda: _gives_handles(directory), place,
            "nodes are then kept in a table, and NFS handles do not outlive a remount: "
            "put the store on ext4, XFS or btrfs",
        ),
    ]  # fmt: skip


def seals(directory: Path) -> list[Check]:
    """Whether what is sealed in a store has its second wall; nothing where nothing is sealed."""
    with Store(directory) as store:
        asked = Seals(store)
        roots = asked.sealed_roots()
        lacking = asked.without_wall()
    if not roots:
        return []
    found = f"{len(roots)} sealed directories"
    if lacking:
        named = ", ".join(os.fsdecode(root) for root in lacking[:3])
        more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
        found += f", {len(lacking)} without immutable flags or not finished: {named}{more}"
    return [
        Check(
            "seals", not lacking, False, found,
            "every mount refuses changes there all the same; 'modamafs seal --resume STORE' "
            "finishes what was interrupted, 'modamafs seal --repair PATH' sets lost flags",
        )
    ]  # fmt: skip


def _try(name: str, needed: bool, attempt: Callable[[], bool], found: str, advice: str) -> Check:
    try:
        return Check(name, attempt(), needed, found, advice)
    except OSError as error:
        return Check(name, False, needed, f"{found}: {error.strerror}", advice)


def _watches(directory: Path) -> bool:
    os.close(open_group(directory))
    return True


class _FileHandle(ctypes.Structure):
    _fields_ = (
        ("handle_bytes", ctypes.c_uint),
        ("handle_type", ctypes.c_int),
        ("f_handle", ctypes.c_ubyte * _MAX_HANDLE_BYTES),
    )


def _gives_handles(directory: Path) -> bool:
    handle = _FileHandle(handle_bytes=_MAX_HANDLE_BYTES)
    mount_id = ctypes.c_int()
    if _libc.name_to_handle_at(
        _AT_FDCWD, os.fsencode(directory), ctypes.byref(handle), ctypes.byref(mount_id), 0
    ):
        raise _last_error()
    return True


def _last_error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))


def servers() -> list[Check]:
    """The servers that can export a mount."""
    return [
        _server("Samba", "smbd", "samba"),
        _server("NFS-Ganesha", "ganesha.nfsd", "nfs-ganesha nfs-ganesha-vfs"),
    ]


def _server(name: str, program: str, packages: str) -> Check:
    path = shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    advice = f"only for that export: 'apt install {packages}'"
    return Check(name, path is not None, False, path or "not installed", advice)
