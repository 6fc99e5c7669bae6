"""A store on which things happen at random, and what a watch would say of them."""

from __future__ import annotations

import contextlib
import json
import os
import random
import stat
from pathlib import Path

from modamafs.catalog import FileMetadata, Measured
from modamafs.extraction import cache
from modamafs.index.reconcile import Change

NAMES = [
    *(b"a", b"b", b"raw", b"frame_0001.tif", b"x.emd", b"scan.mrc", b"Phase Plates", b".hidden"),
    *(b"\xff\xfe no text", b"new\nline.tif", "größe µm.dm4".encode(), b"n" * 255, b"back\\slash"),
    *(b"c", b"d", b"e", b"f", b"g.csv", b"h.emd", b"i.mrc"),
]
PROJECT = {"id": "p", "title": "A project", "owner": {"name": "Alice", "user": "alice"}}
SESSION = {"id": "s", "title": "A session", "owner": {"name": "Bob"}, "date": "2026-11-23"}
BROKEN = [b"", b"{", b"[]", b'{"title": 7}', b"\xff", b"[" * 100_000, b'{"a": NaN}']


class Life:
    """``store`` and ``outside`` are directories of one file system."""

    def __init__(self, store: Path, outside: Path, seed: int, *, records: bool = True) -> None:
        self.store = os.fsencode(store)
        self.outside = os.fsencode(outside)
        self.random = random.Random(seed)
        self.records = records
        self.changes: list[Change] = []
        self._clock = 0

    # ---- hints -----------------------------------------------------------------------------------

    def _hint(
        self, event: str, path: bytes, ino: int, new: bytes | None = None, parent: int = 0
    ) -> None:
        self._clock += 1
        directory, name = os.path.split(path)
        parent = parent or os.lstat(directory).st_ino
        new_directory, new_name = os.path.split(new) if new else (b"", b"")
        self.changes.append(
            Change(
                parent,
                name,
                ino,
                event,
                True,
                self._clock,
                os.lstat(new_directory).st_ino if new else 0,
                new_name,
            )
        )

    def take(self) -> list[Change]:
        """What was seen since."""
        changes, self.changes = self.changes, []
        return changes

    # ---- choosing --------------------------------------------------------------------------------

    def _directories(self, top: bytes) -> list[bytes]:
        found = [top]
        for here in found:
            if len(found) > 400:
                break
            with os.scandir(here) as entries:
                found += [
                    entry.path
                    for entry in entries
                    if entry.is_dir(follow_symlinks=False) and not entry.name.startswith(b".modama")
                ]
        return found

    def _directory(self) -> bytes:
        top = self.outside if self.random.random() < 0.1 else self.store
        found = self._directories(top)
        # Rather deep ones: what matters begins at the third level.
        return max(self.random.choice(found) for _ in range(2))

    def _entry(self, *, kind: str = "") -> bytes | None:
        for _ in range(8):
            here = self._directory()
            names = [name for name in os.listdir(here) if not name.startswith(b".modama")]
            if names:
                path = os.path.join(here, self.random.choice(names))
                is_directory = stat.S_ISDIR(os.lstat(path).st_mode)
                if not kind or (kind == "directory") == is_directory:
                    return path
        return None

    def _free(self) -> bytes | None:
        path = os.path.join(self._directory(), self.random.choice(NAMES))
        return None if os.path.lexists(path) or len(path) > 3000 else path

    # ---- what happens ----------------------------------------------------------------------------

    def step(self) -> None:
        """One thing."""
        kinds = [
            *(self.make_file,) * 8,
            *(self.make_directory,) * 8,
            *(self.write,) * 4,
            *(self.rename,) * 7,
            *(self.remove,) * 5,
            *(
                self.chmod,
                self.link,
                self.symlink,
                self.fifo,
                self.replace,
                self.save,
                self.remove_tree,
            ),
        ]
        if self.records:
            kinds += [*(self.describe,) * 3, self.seal, self.seal, self.unseal, self.extract]
            kinds += [self.extract, self.spoil, self.move_records, self.history]
        with contextlib.suppress(FileNotFoundError, FileExistsError, IsADirectoryError):
            self.random.choice(kinds)()

    def make_file(self) -> None:
        path = self._free()
        if path:
            with open(path, "wb") as file:
                file.write(bytes(self.random.randrange(100)))
            self._hint("created", path, os.lstat(path).st_ino)

    def make_directory(self) -> None:
        path = self._free()
        if path:
            os.mkdir(path)
            self._hint("created", path, os.lstat(path).st_ino)

    def write(self) -> None:
        path = self._entry(kind="file")
        if path and stat.S_ISREG(os.lstat(path).st_mode):
            with open(path, "ab") as file:
                file.write(bytes(self.random.randrange(1, 100)))
            self._hint("modified", path, os.lstat(path).st_ino)

    def chmod(self) -> None:
        path = self._entry()
        if path and not stat.S_ISLNK(os.lstat(path).st_mode):
            os.chmod(path, self.random.choice([0o600, 0o644, 0o755, 0o700]))
            self._hint("attributes", path, os.lstat(path).st_ino)

    def link(self) -> None:
        path, new = self._entry(kind="file"), self._free()
        if path and new:
            os.link(path, new, follow_symlinks=False)
            self._hint("created", new, os.lstat(new).st_ino)

    def symlink(self) -> None:
        path = self._free()
        if path:
            os.symlink(self.random.choice([b"..", b"/", b"nowhere", self.outside]), path)
            self._hint("created", path, os.lstat(path).st_ino)

    def fifo(self) -> None:
        path = self._free()
        if path:
            os.mkfifo(path)
            self._hint("created", path, os.lstat(path).st_ino)

    def rename(self) -> None:
        path, new = self._entry(), self._free()
        if path and new and not (new + b"/").startswith(path + b"/"):
            self._rename(path, new)

    def _rename(self, path: bytes, new: bytes) -> None:
        ino = os.lstat(path).st_ino
        victim = os.lstat(new) if os.path.lexists(new) else None
        os.rename(path, new)
        self._hint("moved", path, ino, new)
        if victim is not None and victim.st_nlink > 1:  # said of the inode, by no name
            self._clock += 1
            self.changes.append(Change(0, b"", victim.st_ino, "attributes", True, self._clock))

    def replace(self) -> None:
        path, new = self._entry(kind="file"), self._entry(kind="file")
        if path and new and os.lstat(path).st_ino != os.lstat(new).st_ino:
            self._rename(path, new)

    def save(self) -> None:
        """As an editor does."""
        path = self._entry(kind="file")
        if path:
            new = os.path.join(os.path.dirname(path), b".save.tmp")
            with open(new, "wb") as file:
                file.write(bytes(self.random.randrange(100)))
            self._hint("created", new, os.lstat(new).st_ino)
            self._rename(new, path)

    def remove(self) -> None:
        path = self._entry(kind="file")
        if path:
            self._remove(path)

    def _remove(self, path: bytes) -> None:
        ino = os.lstat(path).st_ino
        parent = os.lstat(os.path.dirname(path)).st_ino
        (os.rmdir if stat.S_ISDIR(os.lstat(path).st_mode) else os.unlink)(path)
        self._hint("removed", path, ino, parent=parent)

    def remove_tree(self) -> None:
        path = self._entry(kind="directory")
        if not path:
            return
        before, self.changes = self.changes, []
        for here, folders, files in os.walk(path, topdown=False):
            for name in files + folders:
                self._remove(os.path.join(here, name))
        self._remove(path)
        self.random.shuffle(self.changes)
        self.changes = before + self.changes

    # ---- records ---------------------------------------------------------------------------------

    def _records(self, directory: bytes, *folders: bytes) -> bytes:
        path = directory
        for name in (b".modama", *folders):
            path = os.path.join(path, name)
            if not os.path.lexists(path):
                os.mkdir(path)
                self._hint("created", path, os.lstat(path).st_ino)
        return path

    def _write_record(self, path: bytes, data: bytes) -> None:
        new = path + b".new"
        with open(new, "wb") as file:
            file.write(data)
        self._hint("created", new, os.lstat(new).st_ino)
        self._rename(new, path)

    def describe(self) -> None:
        directory = self._directory()
        name = self.random.choice([b"project.json", b"session.json"])
        base = PROJECT if name == b"project.json" else SESSION
        record = base | {
            "title": f"Titel {self.random.randrange(1000)}",
            "metadata": {"Beam Energy": {"value": self.random.randrange(9), "unit": "keV"}},
        }
        data = json.dumps(record).encode()
        if self.random.random() < 0.2:
            data = self.random.choice(BROKEN)
        with contextlib.suppress(NotADirectoryError):
            self._write_record(os.path.join(self._records(directory), name), data)

    def seal(self) -> None:
        path = self._entry(kind="directory")
        if not path:
            return
        parent, name = os.path.split(path)
        if len(name) > 200:
            return
        with contextlib.suppress(NotADirectoryError):
            seals = self._records(parent, b"seals")
            lines = [
                b"%064x  frame_%d\n" % (self.random.randrange(1 << 60), number)
                for number in range(self.random.randrange(5))
            ]
            self._write_record(os.path.join(seals, name + b".B3SUMS"), b"".join(lines))
            record = {
                "state": self.random.choice(["sealing", "sealed", "sealed", "unsealing"]),
                "content_hash": f"blake3:{self.random.randrange(99)}",
                "file_count": len(lines),
            }
            data = json.dumps(record).encode()
            if self.random.random() < 0.1:
                data = self.random.choice(BROKEN)
            self._write_record(os.path.join(seals, name + b".json"), data)

    def unseal(self) -> None:
        for directory in self._directories(self.store):
            seals = os.path.join(directory, b".modama/seals")
            if os.path.isdir(seals) and self.random.random() < 0.3:
                for name in os.listdir(seals):
                    if name.endswith(b".json"):
                        self._remove(os.path.join(seals, name))
                        return

    def extract(self) -> None:
        """What the extraction would write of some file."""
        path = self._entry(kind="file")
        if not path or not path.startswith(self.store + b"/"):
            return
        relative = path[len(self.store) + 1 :]
        parts = relative.split(b"/")
        if len(parts) < 4:
            return
        session = os.path.join(self.store, *parts[:3])
        inside = os.fsdecode(b"/".join(parts[3:]))
        with contextlib.suppress(NotADirectoryError):
            records = self._records(session, b"metadata")
            found = FileMetadata(
                path=inside,
                size_bytes=1,
                mtime_ns=1,
                values={"beam_energy": Measured(value=self.random.randrange(300), unit="keV")},
            )
            fd = os.open(session, os.O_RDONLY)
            try:
                cache.write(fd, found)
            finally:
                os.close(fd)
            record = os.path.join(records, cache.name_of(inside))
            self._hint("moved", record + b".new", os.lstat(record).st_ino, record)

    def spoil(self) -> None:
        """Something odd is put where a record is expected."""
        directory = self._directory()
        with contextlib.suppress(NotADirectoryError):
            place = self._records(directory)
            name = self.random.choice([b"project.json", b"session.json", b"seals", b"metadata"])
            path = os.path.join(place, name)
            if os.path.lexists(path):
                if not os.path.isdir(path):
                    self._remove(path)
                return
            kind = self.random.randrange(4)
            if kind == 0:
                os.mkfifo(path)
            elif kind == 1:
                os.symlink(b"/dev/zero", path)
            elif kind == 2:
                os.mkdir(path)
            else:
                with open(path, "wb") as file:
                    file.truncate(1 << 31)
            self._hint("created", path, os.lstat(path).st_ino)

    def move_records(self) -> None:
        """All records of a directory go, or come from elsewhere."""
        directory, other = self._directory(), self._directory()
        path, new = os.path.join(directory, b".modama"), os.path.join(other, b".modama")
        if os.path.lexists(path) and not os.path.lexists(new):
            self._rename(path, new)

    def history(self) -> None:
        """Something in a .modama that nobody asks for."""
        with contextlib.suppress(NotADirectoryError):
            place = self._records(self._directory(), b"history")
            path = os.path.join(place, b"%d" % self._clock)
            os.mkdir(path)
            self._hint("created", path, os.lstat(path).st_ino)
