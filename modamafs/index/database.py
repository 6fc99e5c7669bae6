"""The SQLite file of an index: where it lies, how it is opened, and what is done if it is no good.

A file that can't be used is set aside and a new one made; nothing in it is worth more than the time
that it takes to look through the store again. Times are measured in docs/design/index.md.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import uuid
from collections.abc import Iterable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

from modamafs.errors import ModamaError
from modamafs.store.backing import Store
from modamafs.store.identity import store_id

VERSION = 2
"""Of schema.sql, in ``PRAGMA user_version``."""
FILE = "index.db"
LOCK = "writer.lock"
DAMAGED = "index.db.damaged"
NEWER = "index.db.newer"
BESIDE = ("-wal", "-shm", "-journal")
"""Files that SQLite keeps beside it; those of one database would destroy another."""
MAGIC = b"SQLite format 3\0"
PATIENCE_S = 1.0
"""For somebody else who is writing."""
CACHE_KIB = 64 << 10
LARGE_CACHE_KIB = 256 << 10
"""While many changes are written at once: pages that don't fit are written several times."""
CHECKPOINT_PAGES = 8000
"""So that the write-ahead log stays at about 32 MB, but for a single large transaction."""
JOURNAL_LIMIT_BYTES = 64 << 20
LEAST_FREE_BYTES = 32 << 20
"""With less on the disk nothing is written: others need it more, and SQLite maps a file into
memory, which is fatal where there are no blocks for it."""
LARGEST_TRANSACTION = 50_000
"""Rows that are written; a transaction that writes more is ended, and another one begun."""
TORN = "torn"
"""In ``info``: 1 while only a part of such a transaction is in the file."""


class NotIndexed(ModamaError):
    """There is no index, or none that can be read; the message says what to do."""

    errno = 2


class Trouble(Exception):
    """The index can't be used just now; in one line, without what happens next.

    ``damaged``: it never will be, as it is. ``newer``: a later modamafs has made it.
    """

    def __init__(self, message: str, *, damaged: bool = False, newer: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.damaged = damaged
        self.newer = newer


def index_dir(store: Store, above: Path = Path("/var/lib/modamafs")) -> Path:
    """Where the index of a store lies."""
    return above / store_id(store)


def lock_writer(directory: Path) -> int | None:
    """A descriptor that holds the lock of an index's only writer; None: somebody else has it.

    OSError: the directory can't be made, or written.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd


class Writer(sqlite3.Connection):
    """A connection whose transactions have an end, however much is written in one: see ``writing``.

    What is written in a single statement is never divided.
    """

    directory: Path
    """In which there has to be room on the disk."""
    _counted_from: int | None = None
    """``total_changes`` when the transaction began; None: there is none of ``writing``."""
    is_torn = False
    """The file has only a part of what was begun, and can't be made right by looking again."""

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """A transaction, taken back if the block raises. sqlite3.Error; Trouble: no room is left.

        Where more than ``LARGEST_TRANSACTION`` rows are written it is ended in between, with a mark
        that it is not whole; who finds that mark on opening makes the file anew.
        """
        super().execute("BEGIN IMMEDIATE")
        self._counted_from = self.total_changes
        try:
            yield
            if self.is_torn:
                super().execute("DELETE FROM info WHERE key = ?", (TORN,))
            super().execute("COMMIT")
        except BaseException:
            self._counted_from = None
            if self.in_transaction:
                with contextlib.suppress(sqlite3.Error):
                    super().execute("ROLLBACK")
            raise
        self._counted_from = None
        self.is_torn = False

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        """As in sqlite3."""
        self._divide()
        return super().execute(sql, parameters)

    def executemany(self, sql: str, parameters: Iterable[Any], /) -> sqlite3.Cursor:
        """As in sqlite3."""
        self._divide()
        return super().executemany(sql, parameters)

    def _divide(self) -> None:
        if (
            self._counted_from is None
            or self.total_changes - self._counted_from < LARGEST_TRANSACTION
        ):
            return
        expect_room(self.directory)
        if not self.is_torn:
            super().execute("INSERT OR REPLACE INTO info VALUES (?, 1)", (TORN,))
            self.is_torn = True
        super().execute("COMMIT")
        super().execute("BEGIN IMMEDIATE")
        self._counted_from = self.total_changes


class Database:
    """The file, open for writing; made, or made anew, where it is missing or can't be used."""

    def __init__(self, directory: Path) -> None:
        """Trouble: not just now. It has set aside what is damaged, or newer, before it says so."""
        self.directory = directory
        self.path = directory / FILE
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            directory.chmod(0o700)
        except OSError as error:
            raise Trouble(f"{directory} can't be made: {error.strerror}") from None
        make_room(directory)
        try:
            self._open()
        except Trouble as trouble:
            if not (trouble.damaged or trouble.newer):
                raise
            set_aside(directory, NEWER if trouble.newer else DAMAGED)
            self._open()
        if self._is_torn():
            self.close()
            remove(directory)
            self._open()

    def _is_torn(self) -> bool:
        try:
            found = self.connection.execute("SELECT 1 FROM info WHERE key = ?", (TORN,)).fetchone()
        except sqlite3.Error as error:
            self.connection.close()
            raise trouble_of(error) from None
        return found is not None

    def _open(self) -> None:
        try:
            if self.path.is_fifo() or self.path.is_socket():
                raise Trouble(f"{self.path} is no file", damaged=True)
            if not self.path.exists():
                _remove_beside(self.path)
            fd = os.open(
                self.path,
                os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC,
                0o600,
            )
            try:
                os.fchmod(fd, 0o600)
                found = os.fstat(fd)
            finally:
                os.close(fd)
        except OSError as error:
            raise Trouble(
                f"{self.path} can't be written: {error.strerror}",
                damaged=error.errno in (21, 40),  # a directory, a symbolic link
            ) from None
        self._identity = (found.st_dev, found.st_ino)
        self._size_bytes = 0
        try:
            self.connection = sqlite3.connect(
                self.path,
                timeout=PATIENCE_S,
                isolation_level=None,
                check_same_thread=False,
                cached_statements=256,
                factory=Writer,
            )
            self.connection.directory = self.directory
        except sqlite3.Error as error:
            raise trouble_of(error) from None
        try:
            self._prepare()
        except sqlite3.Error as error:
            self.connection.close()
            raise trouble_of(error) from None
        except Trouble:
            self.connection.close()
            raise

    def _prepare(self) -> None:
        connection = self.connection
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version > VERSION:
            raise Trouble(f"{self.path} was made by a newer modamafs", newer=True)
        mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        if mode != "wal":
            raise Trouble(f"{self.path} can't have a write-ahead log here")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
        connection.execute(f"PRAGMA journal_size_limit = {JOURNAL_LIMIT_BYTES}")
        connection.execute("PRAGMA temp_store = MEMORY")
        connection.execute("PRAGMA trusted_schema = OFF")
        if version == 0 and not _schema_of(connection):
            self._make()
            version = VERSION
        if version != VERSION or _schema_of(connection) != _expected():
            raise Trouble(f"{self.path} has another form than this modamafs makes", damaged=True)
        self.epoch: str = self._info("epoch")
        self.is_complete = bool(self._info("complete"))

    def _make(self) -> None:
        epoch = uuid.uuid4().hex
        self.connection.executescript(
            f"BEGIN IMMEDIATE;\n{schema()}\n"
            f"INSERT INTO info VALUES ('epoch', '{epoch}'), ('complete', 0);\n"
            f"PRAGMA user_version = {VERSION};\nCOMMIT;"
        )

    def _info(self, key: str) -> str:
        found = self.connection.execute("SELECT value FROM info WHERE key = ?", (key,)).fetchone()
        if found is None:
            raise Trouble(f"{self.path} doesn't say its {key}", damaged=True)
        return found[0]  # type: ignore[no-any-return]

    def set_info(self, key: str, value: object) -> None:
        """One of the things that the index says of itself. sqlite3.Error."""
        self.connection.execute("INSERT OR REPLACE INTO info VALUES (?, ?)", (key, value))

    def is_there(self) -> bool:
        """Whether the file at its path is still the one that is open, and not cut off."""
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            found = os.fstat(fd)
            if (found.st_dev, found.st_ino) != self._identity:
                return False
            if found.st_size < self._size_bytes:
                return False
            self._size_bytes = found.st_size
            return found.st_size == 0 or os.pread(fd, len(MAGIC), 0) == MAGIC
        except OSError:
            return False
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def large(self) -> Iterator[None]:
        """More memory, for as long as the block lasts. sqlite3.Error."""
        self.connection.execute(f"PRAGMA cache_size = -{LARGE_CACHE_KIB}")
        yield
        self.connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        self.connection.execute("PRAGMA shrink_memory")

    def expect_room(self) -> None:
        """Trouble: the disk is as good as full."""
        expect_room(self.directory)

    def close(self) -> None:
        """Close it; never fails. A large write-ahead log goes, where nobody reads it just now."""
        with contextlib.suppress(sqlite3.Error):
            if _size_of_log(self.directory) > JOURNAL_LIMIT_BYTES:
                self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        with contextlib.suppress(sqlite3.Error):
            self.connection.close()


def make_room(directory: Path) -> None:
    """Trouble: the disk is as good as full, also without what was set aside as damaged.

    If it is what a large transaction has left behind that takes the room, all of the index goes:
    SQLite can't shorten its log without opening the file. Only for who holds the writer's lock.
    """
    with contextlib.suppress(Trouble):
        expect_room(directory)
        return
    with contextlib.suppress(OSError):
        _remove_one(directory / DAMAGED)
    if _size_of_log(directory) > JOURNAL_LIMIT_BYTES:
        remove(directory)
    expect_room(directory)


def _size_of_log(directory: Path) -> int:
    try:
        return (directory / (FILE + "-wal")).lstat().st_size
    except OSError:
        return 0


def expect_room(directory: Path) -> None:
    """Trouble: the disk that a directory lies on is as good as full."""
    try:
        found = os.statvfs(directory)
    except OSError:  # said by whatever comes next
        return
    if found.f_bavail * found.f_frsize < LEAST_FREE_BYTES:
        raise Trouble(
            f"the disk that the index lies on is full: {LEAST_FREE_BYTES >> 20} MiB have to be "
            f"free where {directory} lies"
        )


def set_aside(directory: Path, name: str) -> None:
    """Give the file another name, in the place of one that had it before. Trouble: impossible."""
    path = directory / FILE
    try:
        _remove_beside(directory / name)
        if path.is_dir() and not path.is_symlink():
            path.rename(directory / f"{name}-{uuid.uuid4().hex[:8]}")
        elif os.path.lexists(path):
            path.replace(directory / name)
        with contextlib.suppress(FileNotFoundError):  # what is not in the file yet
            (directory / (FILE + "-wal")).replace(directory / (name + "-wal"))
        _remove_beside(path)
    except OSError as error:
        raise Trouble(f"{path} is no good, and can't be set aside: {error.strerror}") from None


def remove(directory: Path) -> None:
    """Remove the file, for a new one. Trouble: impossible."""
    path = directory / FILE
    try:
        _remove_one(path)
    except OSError as error:
        raise Trouble(f"{path} can't be removed: {error.strerror}") from None


def _remove_one(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    _remove_beside(path)


def _remove_beside(path: Path) -> None:
    for suffix in BESIDE:
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + suffix).unlink()


def schema() -> str:
    """The text of schema.sql."""
    return resources.files("modamafs.index").joinpath("schema.sql").read_text("utf-8")


_known: dict[str, str] = {}


def _expected() -> dict[str, str]:
    if not _known:
        with contextlib.closing(sqlite3.connect(":memory:")) as connection:
            connection.executescript(schema())
            _known.update(_schema_of(connection))
    return _known


def _schema_of(connection: sqlite3.Connection) -> dict[str, str]:
    return dict(
        connection.execute(
            "SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL AND name != 'sqlite_stat1'"
        )
    )


WAITS = {
    sqlite3.SQLITE_BUSY: "another program has locked the index",
    sqlite3.SQLITE_LOCKED: "another program has locked the index",
    sqlite3.SQLITE_FULL: "the disk that the index lies on is full",
    sqlite3.SQLITE_READONLY: "the index can't be written to",
    sqlite3.SQLITE_CANTOPEN: "the index can't be opened",
    sqlite3.SQLITE_PERM: "the index can't be opened",
    sqlite3.SQLITE_IOERR: "the disk that the index lies on gives errors",
    sqlite3.SQLITE_NOMEM: "there is not enough memory for the index",
    sqlite3.SQLITE_INTERRUPT: "the index was interrupted",
}
"""What passes; everything else is damage."""


def trouble_of(error: sqlite3.Error) -> Trouble:
    """What an error of SQLite means for the file."""
    code = getattr(error, "sqlite_errorcode", None)
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    if code is not None and code != sqlite3.SQLITE_IOERR_SHORT_READ and code & 0xFF in WAITS:
        return Trouble(f"{WAITS[code & 0xFF]} ({name})")
    return Trouble(f"the index is damaged: {error} ({name})", damaged=True)


def open_reader(directory: Path) -> sqlite3.Connection:
    """The index for reading only, whoever writes it meanwhile.

    NotIndexed: there is none, or another version's; the message says what to do.
    """
    path = directory / FILE
    advice = "it is made when the store is mounted, and by `modamafs index rebuild`"
    if not path.is_file():
        raise NotIndexed(f"there is no index in {directory}: {advice}")
    try:
        connection = sqlite3.connect(
            f"file:{quote(os.fsencode(path))}?mode=ro",
            uri=True,
            timeout=PATIENCE_S,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version == VERSION:
                connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
                return connection
        except sqlite3.Error:
            connection.close()
            raise
    except sqlite3.Error as error:
        raise NotIndexed(f"{path} can't be read ({error}): {advice}") from None
    connection.close()
    raise NotIndexed(f"{path} has another form (version {version}, not {VERSION}): {advice}")
