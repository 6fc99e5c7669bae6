"""Whether a share does what it should: asked of the running server, as a client."""

from __future__ import annotations

import contextlib
import errno
import uuid
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

from modamafs.exports.client import Client

REFUSALS = (errno.EACCES, errno.EPERM, errno.EROFS)
Result = TypeVar("Result")


class Row(NamedTuple):
    """One question and its answer."""

    question: str
    ok: bool | None
    """None: it could not be asked, which is no failure."""
    answer: str


class Sealed(NamedTuple):
    """A file of a sealed directory, as the client reaches it."""

    directory: str
    file: str


def examine(
    connect: Callable[[], Client],
    *,
    writable: str = "",
    sealed: Sealed | None = None,
    read_only: bool = False,
) -> Iterator[Row]:
    """Ask everything. ``writable``: a directory in which a file is made and removed again."""
    try:
        client = connect()
    except OSError as error:
        yield Row("connect", False, _said(error))
        return
    with client:
        yield Row("connect", True, client.protocol)
        yield from _reading(client)
        yield from _read_only(client, writable) if read_only else _writing(client, writable)
        if sealed is None:
            yield Row("sealed tree", None, "there is none in it: seal one, then check again")
        else:
            yield from _of_sealed(client, sealed)


def _reading(client: Client) -> Iterator[Row]:
    try:
        names = client.listing()
    except OSError as error:
        yield Row("list", False, _said(error))
    else:
        yield Row("list", bool(names), f"{len(names)} entries" if names else "nothing is in it")


def _writing(client: Client, directory: str) -> Iterator[Row]:
    name = f"{directory}/.modamafs-check-{uuid.uuid4()}".lstrip("/")
    data = uuid.uuid4().bytes * 1024
    try:
        client.write(name, data)
        came = client.read(name)
        client.remove(name)
    except OSError as error:
        yield Row("write and read", False, _said(error) + ", in " + (directory or "its root"))
        with contextlib.suppress(OSError):
            client.remove(name)
        return
    same = came == data
    yield Row("write and read", same, f"{len(data)} bytes" if same else "other bytes came back")


def _read_only(client: Client, directory: str) -> Iterator[Row]:
    name = f"{directory}/.modamafs-check-{uuid.uuid4()}".lstrip("/")
    yield _refused("write, of a read-only share", lambda: client.write(name, b"check"))
    with contextlib.suppress(OSError):
        client.remove(name)


def _of_sealed(client: Client, sealed: Sealed) -> Iterator[Row]:
    try:
        before = client.read(sealed.file, 0, 1 << 20)
    except OSError as error:
        yield Row("read a sealed file", False, _said(error))
        return
    yield Row("read a sealed file", True, f"{len(before)} bytes of {sealed.file}")
    new = f"{sealed.directory}/.modamafs-check-{uuid.uuid4()}"
    yield _refused("write into it", lambda: client.write_at(sealed.file, 0, before[:1] or b"x"))
    yield _refused("make a file beside it", lambda: client.write(new, b"check"))
    yield _refused(
        "rename the sealed directory",
        lambda: client.rename(sealed.directory, f"{sealed.directory}-{uuid.uuid4()}"),
    )
    with contextlib.suppress(OSError):
        shown = client.stat(sealed.file).read_only
        if shown is not None:
            yield Row("is shown read-only", shown, "yes" if shown else "no")
    try:
        client.lock_shared(sealed.file)
    except OSError as error:
        can_not = error.errno in (errno.EOPNOTSUPP, errno.ENOSYS)
        yield Row("lock it to read", None if can_not else False, _said(error))
    else:
        yield Row("lock it to read", True, "at once")
    try:
        same = client.read(sealed.file, 0, 1 << 20) == before
    except OSError as error:
        yield Row("is as it was", False, _said(error))
    else:
        yield Row("is as it was", same, "yes" if same else "NO: it has other bytes now")


def _refused(question: str, attempt: Callable[[], None]) -> Row:
    try:
        attempt()
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            return Row(f"refuses to {question}", None, _said(error))
        return Row(f"refuses to {question}", error.errno in REFUSALS, _said(error))
    return Row(f"refuses to {question}", False, "it was DONE")


def _said(error: OSError) -> str:
    return error.strerror or str(error)
