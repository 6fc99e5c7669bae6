"""Programs and file formats that people use, on a mount as on a bare directory."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import h5py
import mrcfile
import numpy as np
import pytest

from tests.support.targets import Target

EM_DATA = Path(
    os.environ.get("MODAMAFS_EM_DATA", Path(__file__).parents[3] / "shared" / "data" / "em")
)


# files of the field


@pytest.fixture
def data(target: Target) -> Path:
    """Files of electron microscopes, copied onto the target with an ordinary tool."""
    if not EM_DATA.is_dir():
        pytest.skip(f"no files in {EM_DATA}: set MODAMAFS_EM_DATA")
    subprocess.run(["cp", "-a", f"{EM_DATA}/.", target.root], check=True)
    return target.root


def test_copies_are_byte_for_byte(data: Path, target: Target) -> None:
    originals = [path for path in EM_DATA.iterdir() if path.is_file()]
    assert originals
    for original in originals:
        content = original.read_bytes()
        assert (data / original.name).read_bytes() == content
        assert (target.store / original.name).read_bytes() == content
        mapped = np.memmap(data / original.name, dtype=np.uint8, mode="r")
        assert mapped.tobytes() == content
        assert (data / original.name).stat().st_mtime_ns == original.stat().st_mtime_ns
    compared = subprocess.run(["diff", "-r", EM_DATA, data], check=False, capture_output=True)
    assert compared.returncode == 0, compared.stdout


def test_hdf5_files_open(data: Path) -> None:
    paths = [path for path in sorted(data.iterdir()) if h5py.is_hdf5(path)]
    assert paths
    for path in paths:
        seen: list[bytes] = []
        kept: list[bytes] = []
        for where, found in ((path, seen), (EM_DATA / path.name, kept)):
            with h5py.File(where, "r") as file:
                file.visititems(lambda name, item, found=found: found.append(_content(name, item)))
        assert seen == kept


def _content(name: str, item: h5py.Group | h5py.Dataset) -> bytes:
    if isinstance(item, h5py.Dataset) and item.dtype.kind in "iuf" and item.size:
        return name.encode() + np.asarray(item[()]).tobytes()
    return name.encode()


def test_mrc_files_open_mapped(data: Path) -> None:
    paths = sorted(data.glob("*.mrc"))
    assert paths
    for path in paths:
        with (
            mrcfile.mmap(path, permissive=True) as seen,
            mrcfile.open(EM_DATA / path.name, permissive=True) as kept,
        ):
            assert np.array_equal(seen.data, kept.data)


# programs


def test_hdf5_is_written_grown_and_read_back(root: Path) -> None:
    frames = np.arange(20 * 64 * 64, dtype=np.uint16).reshape(20, 64, 64)
    with h5py.File(root / "scan.h5", "w") as file:
        data = file.create_dataset(
            "data", (0, 64, 64), "u2", maxshape=(None, 64, 64), chunks=(4, 64, 64)
        )
        for number, frame in enumerate(frames):
            data.resize(number + 1, axis=0)
            data[number] = frame
            file.flush()
    with h5py.File(root / "scan.h5", "r") as file:
        assert np.array_equal(file["data"][()], frames)


def test_a_mapped_array_is_written_and_read_back(target: Target) -> None:
    path = target.root / "array.npy"
    array = np.lib.format.open_memmap(path, mode="w+", dtype="f4", shape=(256, 256))
    array[:] = np.random.default_rng(1).random((256, 256), dtype="f4")
    array.flush()
    assert np.array_equal(np.load(path), array)
    assert np.array_equal(np.load(target.store / "array.npy", mmap_mode="r"), array)


def test_tar_rsync_like_copies_and_git_work(root: Path) -> None:
    work = root / "work"
    work.mkdir()

    def git(*arguments: str) -> str:
        settings = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
        return subprocess.run(
            ["git", "-C", work, *settings, *arguments], check=True, capture_output=True, text=True
        ).stdout

    git("init", "-q")
    for number in range(20):
        (work / f"file-{number}").write_text(f"{number}\n")
    (work / "link").symlink_to("file-1")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    (work / "file-3").write_text("changed\n")
    git("commit", "-q", "-a", "-m", "second")
    assert git("status", "--porcelain") == ""
    git("fsck", "--strict")
    git("gc", "-q")
    subprocess.run(["tar", "-C", root, "-cf", root / "work.tar", "work"], check=True)
    (root / "copy").mkdir()
    subprocess.run(["tar", "-C", root / "copy", "-xpf", root / "work.tar"], check=True)
    subprocess.run(["diff", "-r", work, root / "copy" / "work"], check=True)
    subprocess.run(["cp", "-a", "--sparse=always", work, root / "again"], check=True)
    subprocess.run(["diff", "-r", work, root / "again"], check=True)
    subprocess.run(["rm", "-r", work, root / "again", root / "copy"], check=True)
    assert [path.name for path in root.iterdir()] == ["work.tar"]
