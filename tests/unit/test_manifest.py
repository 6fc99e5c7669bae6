"""The manifests and the hashes: what other programs make of them, and what they depend on."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
import stat
import subprocess
import tempfile
import threading
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from modamafs.model import Caller
from modamafs.sealing import hashing
from modamafs.sealing.contents import contents
from modamafs.sealing.hashing import MAPPED_BYTES, PIECE_BYTES, SMALL_BYTES, Hasher, Pace
from modamafs.sealing.manifest import (
    ATTRIBUTES,
    CONTENT,
    KINDS,
    Hashes,
    Line,
    b3sum_line,
    mtree_lines,
    parse_b3sum_line,
    parse_mtree,
)
from modamafs.sealing.seal import hashed, seal
from modamafs.store.backing import Store
from tests.support.targets import Workshop

ROOT = Caller(0, 0)
RAW = b"area/project/session/raw"
NAMES = [
    b"plain.tif",
    b"with space",
    b" leading and trailing ",
    b"new\nline",
    b"\n",
    b"back\\slash",
    b"\\n",
    b"ends with\\",
    b"#comment",
    b"a=b",
    b"type=dir",
    b"--check",
    b"*?[]{}!$`'\"",
    b"\t\r\x01\x7f",
    b"gr\xc3\xb6\xc3\x9fe \xc2\xb5m",
    b"a.txt",
    b"a-b",
    b"a0",
    b"~",
    b"x" * 255,
]
NOT_UTF8 = [b"\xff", b"caf\xe9.tif", b"\xff\n\\\xfe"]


@pytest.fixture
def top() -> Iterator[Path]:
    """A store's directory, on a file system that has file handles; thawed before it is removed."""
    directory = Path(tempfile.mkdtemp(prefix="modamafs-unit-", dir="/var/tmp"))
    yield directory
    subprocess.run(["chattr", "-R", "-f", "-i", str(directory)], check=False)
    shutil.rmtree(directory)


@pytest.fixture
def raw(top: Path) -> Path:
    """A session's directory with names of every kind, and files of every type."""
    path = top / os.fsdecode(RAW)
    path.mkdir(parents=True)
    for number, name in enumerate(NAMES):
        (path / os.fsdecode(name)).write_bytes(b"%d" % number)
    (path / "a").mkdir()
    (path / "a" / "b").write_bytes(b"in a")
    (path / "a" / "empty").mkdir()
    for number, name in enumerate(NAMES):
        (path / f"link {number}").symlink_to(os.fsdecode(name))
    os.mkfifo(path / "fifo")
    return path


class Found(NamedTuple):
    """What a tree comes to."""

    content_hash: str
    attribute_hash: str
    b3sums: bytes
    mtree: bytes


def manifest(directory: Path) -> Found:
    """What a seal would write."""
    hashes, hasher = Hashes(), Hasher(lambda _count: None)
    b3sums, mtree = b"", ATTRIBUTES
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for entry in contents(fd):
            line, _ = hashed(entry, hasher)
            hashes.add(line)
            mtree += mtree_lines(line)
            b3sums += b3sum_line(line) if entry.is_file else b""
    finally:
        os.close(fd)
    return Found(hashes.content_hash, hashes.attribute_hash, b3sums, mtree)


def run(directory: Path, *command: str) -> str:
    done = subprocess.run(command, cwd=directory, capture_output=True, check=False)
    assert done.returncode == 0, (done.stdout, done.stderr)
    return os.fsdecode(done.stdout)


# ---- other programs ------------------------------------------------------------------------------


def test_b3sum_proves_the_tree(top: Path, raw: Path) -> None:
    with Store(top) as store:
        record = seal(store, RAW, ROOT)
    checked = run(raw, "b3sum", "--check", "../.modama/seals/raw.B3SUMS")
    assert checked.count(": OK\n") == record["file_count"] == len(NAMES) + 1
    lines = (raw.parent / ".modama/seals/raw.B3SUMS").read_bytes().split(b"\n")[:-1]
    for name in NAMES:
        own = run(raw, "b3sum", "--", os.fsdecode(name))
        assert os.fsencode(own).removesuffix(b"\n") in lines, "byte by byte what b3sum prints"


def test_b3sum_proves_a_file_that_is_called_minus(raw: Path) -> None:
    """Which b3sum takes for its standard input."""
    (raw / "-").write_bytes(b"minus")
    (raw.parent / "raw.B3SUMS").write_bytes(manifest(raw).b3sums)
    run(raw, "b3sum", "--check", "--quiet", "../raw.B3SUMS")


def test_b3sum_finds_what_is_damaged(raw: Path) -> None:
    (raw.parent / "raw.B3SUMS").write_bytes(manifest(raw).b3sums)
    (raw / "new\nline").write_bytes(b"other")
    done = subprocess.run(
        ["b3sum", "--check", "--quiet", "../raw.B3SUMS"], cwd=raw, capture_output=True, check=False
    )
    assert done.returncode == 1
    assert b"\\new\\nline: FAILED" in done.stdout


def test_mtree_proves_the_attributes(top: Path, raw: Path) -> None:
    for number, name in enumerate(NOT_UTF8):
        (raw / os.fsdecode(name)).write_bytes(b"%d" % number)
    os.chown(raw / "plain.tif", 4001, 4002)
    (raw / "a0").chmod(0o4750)
    (raw / "a").chmod(0o1777)
    os.utime(raw / "a-b", ns=(5, 1_234_567_890_000_000_007))
    os.utime(raw / "a.txt", ns=(5, 1_000_000_000_500_000_000))
    os.setxattr(raw / "a", "user.x", b"1")
    with socket.socket(socket.AF_UNIX) as listening:
        here = os.open(raw, os.O_PATH)
        listening.bind(f"/proc/self/fd/{here}/socket")
        os.close(here)
    with Store(top) as store:
        record = seal(store, RAW, ROOT)
    assert run(raw.parent, "mtree", "-p", "raw", "-f", ".modama/seals/raw.mtree") == ""
    own = run(raw.parent, "b3sum", "--no-names", ".modama/seals/raw.mtree")
    assert record["attribute_hash"] == f"blake3:{own.strip()}"


@pytest.mark.parametrize("kind", [stat.S_IFCHR, stat.S_IFBLK])
@pytest.mark.parametrize("numbers", [(1, 3), (7, 300), (259, 1)])
def test_mtree_proves_a_device(raw: Path, kind: int, numbers: tuple[int, int]) -> None:
    os.mknod(raw / "device", 0o660 | kind, os.makedev(*numbers))
    (raw.parent / "raw.mtree").write_bytes(manifest(raw).mtree)
    assert run(raw.parent, "mtree", "-p", "raw", "-f", "raw.mtree") == ""


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: (raw / "a0").chmod(0o640),
        lambda raw: os.chown(raw / "a0", 1, 0),
        lambda raw: os.utime(raw / "a0", ns=(0, 1)),
        lambda raw: (raw / "link 3").unlink(),
        lambda raw: (raw / "more").touch(),
    ],
)
def test_mtree_finds_what_is_changed(raw: Path, change: Callable[[Path], object]) -> None:
    (raw.parent / "raw.mtree").write_bytes(manifest(raw).mtree)
    assert run(raw.parent, "mtree", "-p", "raw", "-f", "raw.mtree") == ""
    change(raw)
    done = subprocess.run(
        ["mtree", "-p", "raw", "-f", "raw.mtree"], cwd=raw.parent, capture_output=True, check=False
    )
    assert done.returncode != 0


def test_what_is_written_is_what_is_said(top: Path, raw: Path) -> None:
    expected = manifest(raw)
    with Store(top) as store:
        record = seal(store, RAW, ROOT)
    assert record["content_hash"] == expected.content_hash
    assert record["attribute_hash"] == expected.attribute_hash
    assert (raw.parent / ".modama/seals/raw.B3SUMS").read_bytes() == expected.b3sums
    assert (raw.parent / ".modama/seals/raw.mtree").read_bytes() == expected.mtree
    assert manifest(raw) == expected, "neither the flags nor the mark count"


# ---- lines ---------------------------------------------------------------------------------------

COMPONENTS = st.binary(min_size=1, max_size=40).filter(
    lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b"..")
)
PATHS = st.lists(COMPONENTS, min_size=1, max_size=4).map(b"/".join)
AWKWARD = st.sampled_from([*NAMES, *NOT_UTF8])
TARGETS = st.binary(min_size=1, max_size=60).filter(lambda target: b"\0" not in target)
DIGESTS = st.binary(min_size=32, max_size=32).map(bytes.hex)


@given(path=PATHS | AWKWARD, digest=DIGESTS)
def test_a_line_of_b3sum_says_what_it_was_made_of(path: bytes, digest: str) -> None:
    text = b3sum_line(Line(path, b"file", digest, b"", b""))
    assert text.endswith(b"\n")
    assert text.count(b"\n") == 1
    assert parse_b3sum_line(text) == (path, digest)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\n",
        b"0" * 64 + b"\n",
        b"0" * 64 + b"  \n",
        b"0" * 63 + b"  x\n",
        b"0" * 65 + b"  x\n",
        b"0" * 64 + b" x\n",
        b"A" * 64 + b"  x\n",
        b"\\" + b"0" * 64 + b"\n",
        b"hello\n",
        b"\xff\xfe",
    ],
)
def test_what_is_no_line_of_b3sum(text: bytes) -> None:
    with pytest.raises(ValueError, match="no line of a B3SUMS file"):
        parse_b3sum_line(text)


@st.composite
def lines(draw: st.DrawFn) -> Line:
    kind = draw(st.sampled_from(list(KINDS.values())))
    facts = b"mode=%04o uid=%d gid=%d time=%d.%09d" % (
        draw(st.integers(0, 0o7777)),
        draw(st.integers(0, 2**32 - 2)),
        draw(st.integers(0, 2**32 - 2)),
        draw(st.integers(-(2**31), 2**34)),
        draw(st.integers(0, 999_999_999)),
    )
    if draw(st.booleans()):
        facts += b"\n# xattrs=" + draw(DIGESTS).encode()
    target = draw(TARGETS | AWKWARD) if kind == b"link" else b""
    return Line(draw(PATHS | AWKWARD), kind, "", target, facts)


@given(st.lists(lines(), max_size=8))
def test_an_mtree_says_what_it_was_made_of(entries: list[Line]) -> None:
    root = Line(b"", b"dir", "", b"", b"mode=0755 uid=0 gid=0 time=1.000000000")
    written = b"".join(map(mtree_lines, [root, *entries]))
    assert all(32 <= c < 127 or c == 10 for c in written), "plain ASCII"
    text = (ATTRIBUTES + written).splitlines(keepends=True)
    assert list(parse_mtree(iter(text))) == [root, *entries]


@pytest.mark.parametrize(
    "text", [b"hello\n", b"./x type=file\n", b"\n", b"\xff\n", b"x type=file mode=0644\n"]
)
def test_what_is_no_mtree_of_ours(text: bytes) -> None:
    with pytest.raises(ValueError, match="none of ours"):
        list(parse_mtree(iter([*ATTRIBUTES.splitlines(keepends=True), text])))


@given(st.sets(PATHS | AWKWARD, max_size=8), DIGESTS)
def test_two_trees_have_two_content_hashes(paths: set[bytes], digest: str) -> None:
    """No two lists of entries are the same bytes."""
    entries = [Line(path, b"file", digest, b"", b"") for path in sorted(paths)]
    every = {content_hash_of(entries[:number]) for number in range(len(entries) + 1)}
    every |= {content_hash_of([*entries, Line(b"zz", b"link", "", b"x", b"")])}
    every |= {content_hash_of([*entries, Line(b"zz", b"link", "", b"y", b"")])}
    every |= {content_hash_of([*entries, Line(b"zz", b"dir", "", b"", b"")])}
    assert len(every) == len(entries) + 4


def content_hash_of(entries: list[Line]) -> str:
    hashes = Hashes()
    for entry in entries:
        hashes.add(entry)
    return hashes.content_hash


# ---- the order -----------------------------------------------------------------------------------


def test_the_order_is_that_of_the_paths_bytes(raw: Path) -> None:
    for number, name in enumerate(NOT_UTF8):
        (raw / os.fsdecode(name)).write_bytes(b"%d" % number)
    fd = os.open(raw, os.O_RDONLY | os.O_DIRECTORY)
    try:
        entries = [(entry.path, entry.is_directory) for entry in contents(fd)]
    finally:
        os.close(fd)
    assert entries[0] == (b"", True)
    keys = [path + b"/" * is_directory for path, is_directory in entries[1:]]
    assert keys == sorted(keys)
    files = [path for path, is_directory in entries if not is_directory]
    assert files == sorted(files)
    wanted = [b"a-b", b"a.txt", b"a", b"a/b", b"a/empty", b"a0"]
    assert [path for path, _ in entries if path in wanted] == wanted


def test_what_is_ours_is_left_out(raw: Path) -> None:
    before = manifest(raw)
    mtime_ns = (raw.stat().st_atime_ns, raw.stat().st_mtime_ns)
    (raw / ".modama").mkdir()
    (raw / ".modama" / "note").touch()
    (raw / ".modama~0").touch()
    os.utime(raw, ns=mtime_ns)
    assert manifest(raw) == before
    (raw / ".modama.txt").touch()
    assert manifest(raw).content_hash != before.content_hash


# ---- what the hashes depend on -------------------------------------------------------------------


def test_the_content_hash_is_the_one_that_is_defined(top: Path) -> None:
    """So that others, and later versions, can make it again."""
    tree = top / "tree"
    (tree / "a").mkdir(parents=True)
    (tree / "a" / "b").write_bytes(b"bytes")
    (tree / "a.txt").touch()
    (tree / "link").symlink_to("a/b")
    os.mkfifo(tree / "pipe")
    empty, digest = blake3(b"").hexdigest().encode(), blake3(b"bytes").hexdigest().encode()
    defined = blake3(
        b"modamafs content 1\n"
        b"file a.txt\0" + empty + b"\0"
        b"dir a\0\0"
        b"file a/b\0" + digest + b"\0"
        b"link link\0a/b\0"
        b"fifo pipe\0\0"
    )
    assert CONTENT == b"modamafs content 1\n"
    assert manifest(tree).content_hash == f"blake3:{defined.hexdigest()}"


def test_the_attribute_hash_is_the_one_that_is_defined(top: Path) -> None:
    tree = top / "tree"
    tree.mkdir(0o755)
    (tree / "a b").write_bytes(b"123")
    (tree / "a b").chmod(0o640)
    os.chown(tree / "a b", 4001, 4002)
    os.setxattr(tree / "a b", "user.z", b"\0\n")
    os.setxattr(tree / "a b", "user.b", b"")
    os.utime(tree / "a b", ns=(0, -1))
    os.utime(tree, ns=(0, 1_000_000_000_000_000_001))
    xattrs = blake3(b"user.b\x000\0" + b"user.z\x002\0\0\n").hexdigest()
    defined = (
        "#mtree v2.0\n# modamafs attributes 1\n"
        ". type=dir mode=0755 uid=0 gid=0 time=1000000000.000000001\n"
        "./a\\040b type=file mode=0640 uid=4001 gid=4002 size=3 time=-1.999999999\n"
        f"# xattrs={xattrs}\n"
    ).encode()
    found = manifest(tree)
    assert found.mtree == defined
    assert found.attribute_hash == f"blake3:{blake3(defined).hexdigest()}"


def retarget(raw: Path) -> None:
    (raw / "link 0").unlink()
    (raw / "link 0").symlink_to("elsewhere")


def become_a_pipe(raw: Path) -> None:
    (raw / "a0").unlink()
    os.mkfifo(raw / "a0")


CONTENT_CHANGES: dict[str, Callable[[Path], object]] = {
    "a name": lambda raw: (raw / "a.txt").rename(raw / "a.tx"),
    "a directory's name": lambda raw: (raw / "a" / "empty").rename(raw / "a" / "Empty"),
    "where it lies": lambda raw: (raw / "a" / "b").rename(raw / "b"),
    "a type": become_a_pipe,
    "a target": retarget,
    "a byte": lambda raw: (raw / "a.txt").write_bytes(b"!!"),
    "a byte more": lambda raw: (
        (raw / "a.txt").open("ab").close()
        or (raw / "a.txt").write_bytes((raw / "a.txt").read_bytes() + b"\0")
    ),
    "an empty directory more": lambda raw: (raw / "a" / "new").mkdir(),
    "an empty directory less": lambda raw: (raw / "a" / "empty").rmdir(),
    "an empty file more": lambda raw: (raw / "a" / "new").touch(),
}


@pytest.mark.parametrize("change", CONTENT_CHANGES)
def test_the_content_hash_changes_with(raw: Path, change: str) -> None:
    before = manifest(raw)
    CONTENT_CHANGES[change](raw)
    assert manifest(raw).content_hash != before.content_hash


ATTRIBUTE_CHANGES: dict[str, Callable[[Path], object]] = {
    "mode": lambda raw: (raw / "a0").chmod(0o600),
    "set-id": lambda raw: (raw / "a0").chmod(0o4644),
    "owner": lambda raw: os.chown(raw / "a0", 1, -1),
    "group": lambda raw: os.chown(raw / "a0", -1, 1),
    "time": lambda raw: os.utime(raw / "a0", ns=(0, raw.stat().st_mtime_ns + 1)),
    "xattr": lambda raw: os.setxattr(raw / "a0", "user.x", b"1"),
    "xattr without value": lambda raw: os.setxattr(raw / "a0", "user.x", b""),
    "trusted xattr": lambda raw: os.setxattr(raw / "a0", "trusted.x", b"1"),
    "xattr of a link": lambda raw: os.setxattr(
        raw / "link 0", "trusted.x", b"1", follow_symlinks=False
    ),
    "capability": lambda raw: run(raw, "setcap", "cap_chown=ep", "a0"),
    "ACL": lambda raw: run(raw, "setfacl", "-m", "u:4001:r", "a0"),
    "default ACL": lambda raw: run(raw, "setfacl", "-d", "-m", "u:4001:r", "a"),
    "owner of a link": lambda raw: os.lchown(raw / "link 0", 1, 1),
    "time of a link": lambda raw: os.utime(raw / "link 0", ns=(0, 1), follow_symlinks=False),
    "mode of a pipe": lambda raw: (raw / "fifo").chmod(0o600),
    "mode of itself": lambda raw: raw.chmod(0o700),
    "time of itself": lambda raw: os.utime(raw, ns=(0, 1)),
    "xattr of itself": lambda raw: os.setxattr(raw, "user.x", b"1"),
}


@pytest.mark.parametrize("change", ATTRIBUTE_CHANGES)
def test_the_attribute_hash_alone_changes_with(raw: Path, change: str) -> None:
    before = manifest(raw)
    ATTRIBUTE_CHANGES[change](raw)
    after = manifest(raw)
    assert after.attribute_hash != before.attribute_hash
    assert after.content_hash == before.content_hash
    assert after.attribute_hash == f"blake3:{blake3(after.mtree).hexdigest()}"


def test_xattrs_are_told_apart_by_name_and_value(raw: Path) -> None:
    hashes = set()
    times = (raw / "a0").stat()
    for name, value in [("user.a", b"bc"), ("user.ab", b"c"), ("user.a", b"b"), ("user.a", b"")]:
        os.setxattr(raw / "a0", name, value)
        hashes.add(manifest(raw).attribute_hash)
        os.removexattr(raw / "a0", name)
    assert len(hashes) == 4
    assert (raw / "a0").stat().st_mtime_ns == times.st_mtime_ns


NO_CHANGES: dict[str, Callable[[Path], object]] = {
    "the flag": lambda raw: subprocess.run(["chattr", "+i", str(raw / "a0")], check=True),
    "the flag of itself": lambda raw: subprocess.run(["chattr", "+i", str(raw)], check=True),
    "the mark": lambda raw: os.setxattr(raw, "user.modama.seal", b"id"),
    "our attributes": lambda raw: os.setxattr(raw / "a0", "trusted.modama.x", b"1"),
    "a label": lambda raw: os.setxattr(raw / "a0", "security.selinux", b"system_u:x\0"),
    "access": lambda raw: os.utime(raw / "a0", ns=(1, (raw / "a0").stat().st_mtime_ns)),
    "a new inode": lambda raw: (
        run(raw, "cp", "-a", "a0", "../a0")
        or (
            (stat_of := raw.stat())
            and (raw.parent / "a0").replace(raw / "a0")
            and os.utime(raw, ns=(0, stat_of.st_mtime_ns))
        )
    ),
}


@pytest.mark.parametrize("change", NO_CHANGES)
def test_neither_hash_depends_on(raw: Path, change: str) -> None:
    before = manifest(raw)
    NO_CHANGES[change](raw)
    assert manifest(raw) == before


@pytest.mark.parametrize(
    "attributes",
    [
        [name for name in ATTRIBUTE_CHANGES if "ACL" not in name],
        [name for name in ATTRIBUTE_CHANGES if "ACL" in name],
    ],
    ids=["all but ACLs", "ACLs"],
)
def test_a_copy_elsewhere_has_the_same_hashes(
    raw: Path, workshop: Workshop, new_name: Callable[[], str], attributes: Collection[str]
) -> None:
    """``cp -a``, from ext4 to XFS to btrfs and back."""
    for change in attributes:
        ATTRIBUTE_CHANGES[change](raw)
    for number, name in enumerate(NOT_UTF8):
        (raw / os.fsdecode(name)).write_bytes(b"%d" % number)
    run(raw, "setcap", "cap_chown=ep", "a0")
    os.utime(raw, ns=(0, 7))
    expected = manifest(raw)
    with contextlib.ExitStack() as stack:
        source = raw
        for fstype in ("xfs", "btrfs", "ext4"):
            copy = workshop.image(fstype).root / f"copy-{new_name()}"
            stack.callback(shutil.rmtree, copy)
            run(raw, "cp", "-a", str(source), str(copy))
            assert manifest(copy).mtree.splitlines() == expected.mtree.splitlines(), fstype
            assert manifest(copy) == expected, fstype
            source = copy


def test_a_sealed_tree_can_be_copied_and_proved(
    top: Path, raw: Path, workshop: Workshop, new_name: Callable[[], str]
) -> None:
    with Store(top) as store:
        record = seal(store, RAW, ROOT)
    session = workshop.image("xfs").root / f"session-{new_name()}"
    run(top, "cp", "-a", str(raw.parent), str(session))
    found = manifest(session / "raw")
    assert (found.content_hash, found.attribute_hash) == (
        record["content_hash"],
        record["attribute_hash"],
    )
    run(session / "raw", "b3sum", "--check", "--quiet", "../.modama/seals/raw.B3SUMS")
    shutil.rmtree(session)


# ---- hashing -------------------------------------------------------------------------------------

SIZES = [
    0,
    1,
    SMALL_BYTES - 1,
    SMALL_BYTES,
    SMALL_BYTES + 1,
    PIECE_BYTES - 1,
    PIECE_BYTES,
    PIECE_BYTES + 1,
    2 * PIECE_BYTES,
    3 * PIECE_BYTES + 5,
]


@pytest.fixture(scope="module")
def random_bytes() -> bytes:
    return os.urandom(max(SIZES))


@pytest.fixture
def told() -> list[int]:
    return []


@pytest.fixture
def hasher(told: list[int]) -> Iterator[Hasher]:
    threads = set(threading.enumerate())
    yield Hasher(told.append)
    assert set(threading.enumerate()) <= threads, "no thread is left"


@pytest.mark.parametrize("size", SIZES)
def test_digest(hasher: Hasher, told: list[int], random_bytes: bytes, size: int) -> None:
    with tempfile.TemporaryFile(dir="/var/tmp") as file:
        file.write(random_bytes[:size])
        file.flush()
        file.seek(0)
        expected = blake3(random_bytes[:size]).hexdigest(), size
        assert hasher.digest(file.fileno(), size) == expected
    assert sum(told) == size


@pytest.mark.parametrize(
    "forgotten",
    [
        (0, 0),
        (0, PIECE_BYTES),
        (PIECE_BYTES, PIECE_BYTES),
        (3 * PIECE_BYTES, 2 * PIECE_BYTES),
        (MAPPED_BYTES - PIECE_BYTES, 2 * PIECE_BYTES),
        (MAPPED_BYTES, 7 * PIECE_BYTES),
    ],
)
@pytest.mark.parametrize("beyond_bytes", [0, 1, PIECE_BYTES + 5])
def test_what_the_page_cache_lacks_is_read(
    hasher: Hasher, forgotten: tuple[int, int], beyond_bytes: int
) -> None:
    """Whichever parts it has; (0, 0) is everything."""
    data = os.urandom(PIECE_BYTES + beyond_bytes) + bytes(MAPPED_BYTES + 3) + os.urandom(4097)
    with tempfile.TemporaryFile(dir="/var/tmp") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
        file.seek(0)
        os.posix_fadvise(file.fileno(), *forgotten, os.POSIX_FADV_DONTNEED)
        assert hasher.digest(file.fileno(), len(data)) == (blake3(data).hexdigest(), len(data))


@pytest.mark.parametrize("missing", ["open", "preadv"])
def test_a_file_system_without_direct_io_is_read_all_the_same(
    monkeypatch: pytest.MonkeyPatch, hasher: Hasher, random_bytes: bytes, missing: str
) -> None:
    """Neither opening nor reading need take O_DIRECT; no real one here refuses either."""
    direct: set[int] = set()
    real_open, real_preadv = os.open, os.preadv

    def open_(path: bytes, flags: int) -> int:
        if flags & os.O_DIRECT and missing == "open":
            raise OSError(errno.EINVAL, "no O_DIRECT")
        fd = real_open(path, flags)
        if flags & os.O_DIRECT:
            direct.add(fd)
        return fd

    def preadv(fd: int, buffers: list[memoryview], offset: int, flags: int = 0) -> int:
        if fd in direct:
            raise OSError(errno.EINVAL, "no O_DIRECT")
        return real_preadv(fd, buffers, offset, flags)

    with tempfile.TemporaryFile(dir="/var/tmp") as file:
        file.write(random_bytes)
        file.flush()
        os.fsync(file.fileno())
        file.seek(0)
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        monkeypatch.setattr(os, "open", open_)
        monkeypatch.setattr(os, "preadv", preadv)
        digest, _ = hasher.digest(file.fileno(), len(random_bytes))
        monkeypatch.undo()
    assert digest == blake3(random_bytes).hexdigest()
    assert bool(direct) is (missing == "preadv")


@pytest.mark.parametrize("hint", [0, SMALL_BYTES, SMALL_BYTES + 1, 100 * PIECE_BYTES])
@pytest.mark.parametrize("size", [0, 7, SMALL_BYTES + 1, PIECE_BYTES + 1])
def test_the_size_is_a_hint_only(
    hasher: Hasher, told: list[int], random_bytes: bytes, size: int, hint: int
) -> None:
    """The file has shrunk, or grown, since somebody looked."""
    with tempfile.TemporaryFile(dir="/var/tmp") as file:
        file.write(random_bytes[:size])
        file.flush()
        file.seek(0)
        expected = blake3(random_bytes[:size]).hexdigest(), size
        assert hasher.digest(file.fileno(), hint) == expected
    assert sum(told) == size


@pytest.mark.parametrize("size", [0, SMALL_BYTES - 1, PIECE_BYTES, 3 * PIECE_BYTES + 5])
def test_a_file_that_changes_its_size_meanwhile_does_no_harm(
    random_bytes: bytes, size: int
) -> None:
    with tempfile.TemporaryFile(dir="/var/tmp") as file:
        file.write(random_bytes)
        file.flush()
        file.seek(0)
        _, length = Hasher(lambda _count: os.truncate(file.fileno(), size)).digest(
            file.fileno(), len(random_bytes)
        )
        assert length <= len(random_bytes)
        file.seek(0)
        more = iter([b"x" * PIECE_BYTES] * 3)
        _, length = Hasher(
            lambda _count: os.pwrite(file.fileno(), next(more, b""), len(random_bytes))
        ).digest(file.fileno(), SMALL_BYTES + 1)
        assert length >= size


def test_one_hasher_does_one_file_after_the_other(hasher: Hasher, random_bytes: bytes) -> None:
    for size in [*SIZES, *reversed(SIZES)]:
        with tempfile.TemporaryFile(dir="/var/tmp") as file:
            file.write(random_bytes[:size])
            file.flush()
            file.seek(0)
            assert hasher.digest(file.fileno(), size)[0] == blake3(random_bytes[:size]).hexdigest()


@pytest.mark.parametrize("size", [0, SMALL_BYTES + 1])
def test_an_error_of_reading_is_raised(hasher: Hasher, top: Path, size: int) -> None:
    """And the reader ends: see the fixture."""
    fd = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with pytest.raises(IsADirectoryError):
            hasher.digest(fd, size)
    finally:
        os.close(fd)


def test_an_error_of_who_is_told_ends_the_reader(random_bytes: bytes) -> None:
    """SIGTERM, which gives a seal up, arrives anywhere."""
    threads = set(threading.enumerate())

    def give_up(_count: int) -> None:
        raise InterruptedError

    with tempfile.TemporaryFile(dir="/var/tmp") as file:
        file.write(random_bytes)
        file.flush()
        file.seek(0)
        with pytest.raises(InterruptedError):
            Hasher(give_up).digest(file.fileno(), len(random_bytes))
    assert set(threading.enumerate()) <= threads


def test_the_pace_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock:
        now_s = 100.0

        def monotonic(self) -> float:
            return self.now_s

        def sleep(self, seconds: float) -> None:
            self.now_s += seconds

    clock = Clock()
    monkeypatch.setattr(hashing, "time", clock)
    pace = Pace(1000.0)
    pace(500)
    assert clock.now_s == 100.5
    clock.now_s += 10
    pace(500)
    assert clock.now_s == 110.5, "late already"
    pace(10_000)
    assert clock.now_s == 111.0
    Pace(None)(10**12)
    assert clock.now_s == 111.0
