"""Metadata of instrument files: what is found, and what a reader can't do, whatever it reads."""

from __future__ import annotations

import importlib
import os
import shutil
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from modamafs.catalog import FileMetadata, Measured
from modamafs.extraction import cache, wanted
from modamafs.extraction.extractor import Extractor, extract_now
from modamafs.extraction.png import grey_png
from modamafs.extraction.readers import checked_preview, checked_values
from modamafs.extraction.reading import Limits, NotRegular, ReaderProcess
from modamafs.store.backing import Store

CHECKOUT = Path(__file__).parents[2]
SESSION = b"tem/phase-plates/2026-11-23"
READABLE = (
    "128x128-TEM_search.emi",
    "128x128-TEM_search_1.ser",
    "EELS_SI.dm4",
    "ROI_Random_Scan_movie.mrc",
    "Si100_3D.emd",
    "example2_v3.1.hspy",
    "fei_example_tem_stack.emd",
    "olympus_SIS.tif",
    "over16bit.bcf",
    "simple_signal.nxs",
    "test-MonarcCL_spectrum-SI.dm4",
    "test1.blo",
    "test_STEM_image.dm3",
    "test_diffraction_pattern.dm3",
    "test_loading_image_saved_with_DM.tif",
)
BEAM_ENERGIES = {
    "128x128-TEM_search.emi": "200 keV",
    "EELS_SI.dm4": "200 keV",
    "Si100_3D.emd": "100 keV",
    "example2_v3.1.hspy": "200 keV",
    "fei_example_tem_stack.emd": "300 keV",
    "over16bit.bcf": "10 keV",
    "test-MonarcCL_spectrum-SI.dm4": "5 keV",
    "test1.blo": "200 keV",
    "test_STEM_image.dm3": "200 keV",
    "test_diffraction_pattern.dm3": "200 keV",
}
WITHOUT_PREVIEW: set[str] = set()


@pytest.fixture(scope="module")
def em_data() -> Path:
    """Real files of instruments."""
    given = os.environ.get("MODAMAFS_EM_DATA")
    place = Path(given) if given else CHECKOUT.parent / "shared/data/em"
    if not (place / READABLE[0]).exists():
        pytest.skip(f"no instrument files in {place} (MODAMAFS_EM_DATA says where they are)")
    if not wanted.has_rosettasciio():
        pytest.skip("RosettaSciIO is not installed (pip install 'modamafs[em]')")
    return place


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """With an empty session in it."""
    (tmp_path / "store" / os.fsdecode(SESSION)).mkdir(parents=True)
    with Store(tmp_path / "store") as opened:
        yield opened


@pytest.fixture
def session(store: Store) -> Path:
    """Its directory."""
    return store.path / os.fsdecode(SESSION)


@pytest.fixture(scope="module")
def process() -> Iterator[ReaderProcess]:
    """One for all tests, as for all files."""
    with ReaderProcess() as started:
        yield started


def known(session: Path) -> dict[str, FileMetadata]:
    """What the session's records say."""
    fd = os.open(session, os.O_RDONLY)
    try:
        return dict(cache.load(fd))
    finally:
        os.close(fd)


def signals_of(path: Path) -> list[dict[str, Any]]:
    """What RosettaSciIO itself says of a file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for plugin in importlib.import_module("rsciio").IO_PLUGINS:
            extensions = [extension.lower() for extension in plugin["file_extensions"]]
            if path.suffix[1:] in extensions and plugin["name"] != "MRCZ":
                reader = importlib.import_module(plugin["api"])
                found: list[dict[str, Any]] = reader.file_reader(str(path))
                return found
    raise AssertionError(path)


# ---- real files ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", READABLE)
def test_a_real_file(
    name: str, em_data: Path, store: Store, session: Path, process: ReaderProcess
) -> None:
    for file in em_data.iterdir():
        if file.suffix in (Path(name).suffix, ".ser"):
            shutil.copy(file, session)
    own = session / name
    own.chmod(0o600)
    before = own.stat(), own.read_bytes()
    found = extract_now(store, SESSION, name.encode(), process=process)
    assert found is not None
    assert found.problem is None
    assert found.reader.startswith("rosettasciio ")
    assert (own.stat().st_mtime_ns, own.stat().st_ctime_ns) == (
        before[0].st_mtime_ns,
        before[0].st_ctime_ns,
    )
    assert own.read_bytes() == before[1]
    assert (found.size_bytes, found.mtime_ns) == (len(before[1]), before[0].st_mtime_ns)

    values = {key: str(value) for key, value in found.values.items()}
    first = signals_of(em_data / name)[0]
    assert values["shape"] == str(first["data"].shape)
    if not first["data"].dtype.names:
        assert values["dtype"] == first["data"].dtype.name
    assert values.get("title", "") == first["metadata"].get("General", {}).get("title", "")
    for number, axis in enumerate(first["axes"], 1):
        assert found.values[f"axis_{number}_scale"].value == pytest.approx(axis["scale"])
        assert found.values[f"axis_{number}_scale"].unit == (axis["units"] or None)
    assert values.get("beam_energy") == BEAM_ENERGIES.get(name)
    assert (found.preview_png is None) == (name in WITHOUT_PREVIEW)
    assert known(session) == {name: found}


def test_what_a_microscope_says(em_data: Path, store: Store, session: Path) -> None:
    shutil.copy(em_data / "fei_example_tem_stack.emd", session)
    found = extract_now(store, SESSION, b"fei_example_tem_stack.emd")
    assert found is not None
    values = {key: str(value) for key, value in found.values.items()}
    assert (
        values.items()
        >= {
            "acquisition_date": "2019-12-05",
            "acquisition_time": "10:03:44",
            "beam_energy": "300 keV",
            "camera_length": "478 mm",
            "detector": "BM-Ceta",
            "manufacturer": "FEI Company",
            "microscope": "Titan",
            "shape": "(2, 3, 3)",
            "stage_x": "0.012240795 mm",
            "tilt_alpha": "-12.586 deg",
        }.items()
    )


def test_eels(em_data: Path, store: Store, session: Path, process: ReaderProcess) -> None:
    shutil.copy(em_data / "EELS_SI.dm4", session)
    found = extract_now(store, SESSION, b"EELS_SI.dm4", process=process)
    assert found is not None
    assert (
        found.values.items()
        >= {
            "signal_type": Measured(value="EELS"),
            "beam_energy": Measured(value=200, unit="keV"),
            "convergence_angle": Measured(value=21, unit="mrad"),
            "collection_angle": Measured(value=62, unit="mrad"),
            "camera_length": Measured(value=550, unit="mm"),
            "microscope": Measured(value="FEI Titan"),
        }.items()
    )


def test_the_same_file_gives_the_same(em_data: Path, store: Store, session: Path) -> None:
    shutil.copy(em_data / "test1.blo", session)
    assert extract_now(store, SESSION, b"test1.blo") == extract_now(store, SESSION, b"test1.blo")


def test_several_signals(
    em_data: Path, store: Store, session: Path, process: ReaderProcess
) -> None:
    shutil.copy(em_data / "over16bit.bcf", session)
    found = extract_now(store, SESSION, b"over16bit.bcf", process=process)
    assert found is not None
    values = {key: str(value) for key, value in found.values.items()}
    assert values["signals"] == "2"
    assert (values["title"], values["shape"]) == ("BSE", "(3, 4)")
    assert (values["signal_2_title"], values["signal_2_shape"]) == ("EDX", "(3, 4, 4096)")
    assert values["real_time"] == "4677.660768 s"


def test_an_emi_needs_what_lies_beside_it(
    em_data: Path, store: Store, session: Path, process: ReaderProcess
) -> None:
    raw = session / "raw"
    raw.mkdir()
    shutil.copy(em_data / "128x128-TEM_search.emi", raw)
    alone = extract_now(store, SESSION, b"raw/128x128-TEM_search.emi", process=process)
    shutil.copy(em_data / "128x128-TEM_search_1.ser", raw)
    both = extract_now(store, SESSION, b"raw/128x128-TEM_search.emi", process=process)
    assert alone is not None
    assert both is not None
    assert alone.problem == "can't be read: there are no data in it"
    assert str(both.values["shape"]) == "(128, 128)"


def test_names_of_any_bytes(
    em_data: Path, store: Store, session: Path, process: ReaderProcess
) -> None:
    name = b"new\nline [x] {stem} \xff.dm3"
    shutil.copy(em_data / "test_STEM_image.dm3", os.path.join(os.fsencode(session), name))
    found = extract_now(store, SESSION, name, process=process)
    assert found is not None
    assert found.problem is None
    assert known(session) == {os.fsdecode(name): found}


# ---- files that are no good ----------------------------------------------------------------------


def problem_of(store: Store, name: str, process: ReaderProcess) -> str:
    """Why a file can't be read; it has no values then, and that is what is written down."""
    found = extract_now(store, SESSION, name.encode(), process=process)
    assert found is not None
    assert (found.values, found.preview_png) == ({}, None)
    assert known(store.path / os.fsdecode(SESSION))[name] == found
    assert found.problem
    assert found.problem.isprintable()
    assert "/proc" not in found.problem
    assert "modamafs-reading" not in found.problem
    return found.problem


@pytest.mark.parametrize(
    "name",
    ["EELS_SI.dm4", "test_STEM_image.dm3", "fei_example_tem_stack.emd", "simple_signal.nxs",
     "example2_v3.1.hspy", "test1.blo", "ROI_Random_Scan_movie.mrc"],
)  # fmt: skip
def test_truncated(
    name: str, em_data: Path, store: Store, session: Path, process: ReaderProcess
) -> None:
    data = (em_data / name).read_bytes()
    (session / name).write_bytes(data[: len(data) // 2])
    assert problem_of(store, name, process).startswith("truncated: ")


@pytest.mark.parametrize("extension", ["dm4", "emd", "tif", "mrc", "blo", "ser", "bcf", "nxs"])
def test_random_bytes(
    extension: str, em_data: Path, store: Store, session: Path, process: ReaderProcess
) -> None:
    del em_data
    (session / f"x.{extension}").write_bytes(bytes(range(255, 0, -1)) * 100)
    problem_of(store, f"x.{extension}", process)


def test_empty(em_data: Path, store: Store, session: Path, process: ReaderProcess) -> None:
    del em_data
    (session / "x.dm4").touch()
    assert problem_of(store, "x.dm4", process) == "empty: there are no bytes in it"


@pytest.mark.parametrize("extension", ["dm4", "emd", "emi", "tif", "mrc"])
def test_four_gigabytes_of_nothing(
    extension: str, em_data: Path, store: Store, session: Path, process: ReaderProcess
) -> None:
    del em_data
    with (session / f"x.{extension}").open("wb") as file:
        file.truncate(4 << 30)
    problem_of(store, f"x.{extension}", process)


@pytest.mark.parametrize("name", ["EELS_SI.dm4", "fei_example_tem_stack.emd", "test1.blo"])
def test_a_file_larger_than_the_limit_of_memory(
    name: str, em_data: Path, store: Store, session: Path, process: ReaderProcess
) -> None:
    shutil.copy(em_data / name, session)
    os.truncate(session / name, 4 << 30)
    found = extract_now(store, SESSION, name.encode(), process=process)
    assert found is not None
    assert found.problem is None
    assert str(found.values["beam_energy"]) == BEAM_ENERGIES[name]


def test_what_is_no_file_is_not_opened(
    em_data: Path, store: Store, session: Path, process: ReaderProcess
) -> None:
    os.mkfifo(session / "fifo.dm4")
    (session / "link.dm4").symlink_to("/etc/passwd")
    (session / "near.dm4").symlink_to(em_data / "EELS_SI.dm4")
    (session / "directory.dm4").mkdir()
    for name in (b"fifo.dm4", b"link.dm4", b"near.dm4", b"directory.dm4"):
        with pytest.raises(NotRegular):
            extract_now(store, SESSION, name, process=process)
    assert known(session) == {}


def test_no_way_out_of_the_session(
    em_data: Path, store: Store, session: Path, process: ReaderProcess
) -> None:
    (session / "raw").symlink_to(em_data)
    for path in (b"raw/EELS_SI.dm4", b"../EELS_SI.dm4", os.fsencode(em_data / "EELS_SI.dm4")):
        with pytest.raises(OSError):
            extract_now(store, SESSION, path, process=process)
    with pytest.raises(OSError):
        extract_now(store, b"tem/../tem", b"EELS_SI.dm4", process=process)


def test_what_no_reader_takes_has_no_record(store: Store, session: Path) -> None:
    (session / "notes.txt").write_text("sample is fine")
    assert extract_now(store, SESSION, b"notes.txt") is None
    assert list(session.iterdir()) == [session / "notes.txt"]


# ---- readers that are no good --------------------------------------------------------------------

HOSTILE = """
import os, signal, socket, subprocess, threading, time
from pathlib import Path
from modamafs.catalog import Measured
from modamafs.extraction.readers import Found

name, version, extensions = "hostile", "1", {".evil"}

def read(path):
    verb, _, argument = path.read_text().partition(" ")
    if verb == "allocate":
        bytearray(10 << 30)
    elif verb == "loop":
        while True:
            pass
    elif verb == "sleep":
        time.sleep(3600)
    elif verb == "fork":
        os.fork()
    elif verb == "thread":
        threading.Thread(target=print).start()
    elif verb == "run":
        subprocess.run(["/bin/true"], check=True)
    elif verb == "execute":
        os.execv("/bin/true", ["true"])
    elif verb == "write":
        Path(argument).write_text("was here")
    elif verb == "remove":
        os.unlink(argument)
    elif verb == "open":
        return Found({"text": Measured(value=Path(argument).read_text())})
    elif verb == "list":
        return Found({"names": Measured(value=" ".join(os.listdir(argument)))})
    elif verb == "append":
        with path.open("ab") as file:
            file.write(b"was here")
    elif verb == "connect":
        socket.create_connection(("127.0.0.1", int(argument)), timeout=5)
    elif verb == "send":
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", int(argument)))
    elif verb == "local":
        socket.socket(socket.AF_UNIX).connect(argument)
    elif verb == "chmod":
        path.chmod(0o777)
    elif verb == "utime":
        os.utime(path, (0, 0))
    elif verb == "kill":
        os.kill(os.getpid(), int(argument))
    elif verb == "killall":
        for pid in (os.getppid(), 1):
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                pass
    elif verb == "exit":
        os._exit(0)
    elif verb == "talk":
        while True:
            os.write(99, b"x" * 65536)
    elif verb == "lie":
        os.write(99, b'{"values": {"Bad Key": {"value": 1}, "nan": {"value": 1e999}}}\\n')
        os._exit(0)
    elif verb == "preview":
        def picture():
            time.sleep(3600)
        return Found({"kept": Measured(value=True)}, picture)
    return Found({"verb": Measured(value=verb), "uid": Measured(value=os.getuid())})
"""


@pytest.fixture(scope="module")
def hostile_plugin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Installed for a while, as pip would do it."""
    place = tmp_path_factory.mktemp("site")
    (place / "hostile_reader.py").write_text(HOSTILE)
    metadata = place / "hostile-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: hostile\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text("[modamafs.readers]\nhostile = hostile_reader\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(place))
        patch.setenv("PYTHONPATH", str(place))
        wanted.known.cache_clear()
        yield
    wanted.known.cache_clear()


@pytest.fixture(scope="module")
def hostile(hostile_plugin: None) -> Iterator[ReaderProcess]:
    """A process with small limits that has the plug-in."""
    del hostile_plugin
    with ReaderProcess(Limits(wall_s=20.0, cpu_s=1)) as started:
        yield started


def ask(store: Store, session: Path, process: ReaderProcess, text: str) -> FileMetadata:
    """Have the hostile reader do something; after that the same process reads the next file."""
    (session / "x.evil").write_text(text)
    (session / "next.evil").write_text("nothing")
    found = extract_now(store, SESSION, b"x.evil", process=process)
    pid = process.pid
    after = extract_now(store, SESSION, b"next.evil", process=process)
    assert found is not None
    assert after is not None
    assert after.problem is None
    assert str(after.values["verb"]) == "nothing"
    assert process.pid == pid
    return found


def test_a_plugin_is_found_and_not_loaded_in_here(hostile: ReaderProcess) -> None:
    del hostile
    assert ".evil" in wanted.wanted_extensions()
    assert "hostile_reader" not in sys.modules


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("allocate", "needed more than 2 GiB of memory"),
        ("loop", "needed more than 1 s of processor time"),
        ("fork", "can't be read: [Errno 11] Resource temporarily unavailable"),
        ("thread", "can't be read: can't start new thread"),
        ("run", "can't be read: [Errno 11] Resource temporarily unavailable"),
        ("execute", "can't be read: [Errno 13] Permission denied"),
        ("kill 9", "the reader crashed (SIGKILL)"),
        ("kill 11", "the reader crashed (SIGSEGV)"),
        ("exit", "the reader ended without an answer"),
        ("talk", "the reader says too much"),
    ],
)
def test_a_hostile_reader_is_contained(
    text: str, problem: str, store: Store, session: Path, hostile: ReaderProcess
) -> None:
    found = ask(store, session, hostile, text)
    assert found.problem == problem
    assert found.values == {}


def test_one_that_takes_too_long(store: Store, session: Path, hostile_plugin: None) -> None:
    del hostile_plugin
    with ReaderProcess(Limits(wall_s=0.3)) as process:
        assert ask(store, session, process, "sleep").problem == "took longer than 0.3 s"
        found = ask(store, session, process, "preview")
    assert found.problem is None
    assert found.values == {"kept": Measured(value=True)}


def test_it_writes_nothing(
    store: Store, session: Path, hostile: ReaderProcess, tmp_path: Path
) -> None:
    free = tmp_path / "free"
    free.mkdir()
    (free / "there").write_text("before")
    free.chmod(0o777)
    (free / "there").chmod(0o666)
    for target in (free / "new", free / "there", "/tmp/was-here", "/dev/shm/was-here"):
        assert "Permission denied" in str(ask(store, session, hostile, f"write {target}").problem)
    assert "denied" in str(ask(store, session, hostile, f"remove {free / 'there'}").problem)
    assert "denied" in str(ask(store, session, hostile, "append").problem)
    assert [path.name for path in free.iterdir()] == ["there"]
    assert (free / "there").read_text() == "before"
    assert (session / "x.evil").read_text() == "append"


def test_it_reads_only_what_it_was_given(
    store: Store, session: Path, hostile: ReaderProcess
) -> None:
    (session / "other.evil").write_text("secret")
    for path in (session / "other.evil", "/etc/passwd", "/etc/shadow", "/proc/1/environ"):
        assert "Permission denied" in str(ask(store, session, hostile, f"open {path}").problem)
    assert "denied" in str(ask(store, session, hostile, f"list {session}").problem)
    own = ask(store, session, hostile, f"open {session / 'x.evil'}")
    assert str(own.values["text"]) == f"open {session / 'x.evil'}"


def test_it_has_no_network(
    store: Store, session: Path, hostile: ReaderProcess, tmp_path: Path
) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
        socket.socket(socket.AF_UNIX) as local,
    ):
        udp.bind(("127.0.0.1", 0))
        local.bind(str(tmp_path / "socket"))
        local.listen()
        (tmp_path / "socket").chmod(0o777)
        for listening in (tcp, udp, local):
            listening.settimeout(0)
        assert ask(store, session, hostile, f"connect {tcp.getsockname()[1]}").problem
        assert ask(store, session, hostile, f"send {udp.getsockname()[1]}").problem
        assert ask(store, session, hostile, f"local {tmp_path / 'socket'}").problem
        for receive in (tcp.accept, lambda: udp.recv(1), local.accept):
            with pytest.raises(BlockingIOError):
                receive()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_it_changes_nothing_of_a_file_of_its_own_user(
    store: Store, session: Path, hostile: ReaderProcess
) -> None:
    for verb in ("chmod", "utime"):
        (session / "x.evil").write_text(verb)
        os.chown(session / "x.evil", 65534, 65534)
        before = (session / "x.evil").stat()
        found = extract_now(store, SESSION, b"x.evil", process=hostile)
        assert found is not None
        assert "denied" in str(found.problem)
        assert (session / "x.evil").stat().st_ctime_ns == before.st_ctime_ns


def test_it_ends_no_other_process(store: Store, session: Path, hostile: ReaderProcess) -> None:
    assert ask(store, session, hostile, "killall").problem is None


def test_its_word_is_not_taken(store: Store, session: Path, hostile: ReaderProcess) -> None:
    assert ask(store, session, hostile, "lie").values == {}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_it_is_nobody(store: Store, session: Path, hostile: ReaderProcess) -> None:
    assert ask(store, session, hostile, "nothing").values["uid"] == Measured(value=65534)


def test_a_process_that_is_killed_is_followed_by_another(
    store: Store, session: Path, hostile_plugin: None
) -> None:
    del hostile_plugin
    (session / "x.evil").write_text("nothing")
    with ReaderProcess() as process:
        first = extract_now(store, SESSION, b"x.evil", process=process)
        assert process.pid is not None
        os.kill(process.pid, 9)
        assert extract_now(store, SESSION, b"x.evil", process=process) == first


def test_what_is_given_up_leaves_no_record_and_no_process(
    store: Store, session: Path, hostile_plugin: None
) -> None:
    del hostile_plugin
    (session / "x.evil").write_text("sleep")
    process = ReaderProcess()
    with ThreadPoolExecutor() as threads:
        reading = threads.submit(extract_now, store, SESSION, b"x.evil", process=process)
        while not (forks := forks_of(process)):
            assert not reading.done()
        process.close()
        with pytest.raises(OSError):
            reading.result(timeout=60)
    assert known(session) == {}
    for pid in forks:
        while Path(f"/proc/{pid}").exists():  # the kernel is about to end it
            time.sleep(0.01)


def forks_of(process: ReaderProcess) -> list[str]:
    """The processes that read, below the one that was started and the first of its namespace."""
    pids = [str(process.pid)]
    for _ in range(2 if os.geteuid() == 0 else 1):
        pids = [
            child
            for pid in pids
            if (children := Path(f"/proc/{pid}/task/{pid}/children")).exists()
            for child in children.read_text().split()
        ]
    return pids


def test_after_some_files_it_is_started_anew(
    store: Store, session: Path, hostile_plugin: None
) -> None:
    del hostile_plugin
    (session / "x.evil").write_text("nothing")
    pids = set()
    with ReaderProcess(Limits(files=2)) as process:
        for _ in range(4):
            extract_now(store, SESSION, b"x.evil", process=process)
            pids.add(process.pid)
    assert len(pids) == 2
    assert process.pid is None


def test_the_worker_loads_no_reader() -> None:
    code = (
        "import sys, modamafs.extraction.extractor as e, modamafs.extraction.wanted as w\n"
        "w.wanted_extensions()\n"
        "assert not {'rsciio', 'numpy', 'h5py', 'dask'} & set(sys.modules), sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- values and pictures -------------------------------------------------------------------------


def test_values_that_are_kept() -> None:
    values = {
        "beam_energy": Measured(value=300, unit="keV"),
        "not a key": Measured(value=1),
        "nan": Measured(value=float("nan")),
        "infinite": Measured(value=float("inf")),
        "title": Measured(value="two\nlines\x1b[31m" + "x" * 2000),
        "empty": Measured(value=""),
        "huge": Measured(value=1 << 80),
    }
    kept = checked_values(values)
    assert set(kept) == {"beam_energy", "title", "huge"}
    assert str(kept["beam_energy"]) == "300 keV"
    assert str(kept["title"]).startswith("two lines [31mxxx")
    assert len(str(kept["title"])) == 1000


def test_a_picture() -> None:
    picture = grey_png(3, 2, bytes([0, 50, 100, 150, 200, 255]))
    assert checked_preview(picture) == picture
    image = pytest.importorskip("PIL.Image")
    with image.open(__import__("io").BytesIO(picture)) as opened:
        assert (opened.size, opened.mode) == ((3, 2), "L")
        assert opened.tobytes() == bytes([0, 50, 100, 150, 200, 255])


def test_pictures_that_are_refused() -> None:
    assert checked_preview(grey_png(257, 1, bytes(257))) is None
    assert checked_preview(b"<svg onload='alert(1)'/>" * 10) is None
    assert checked_preview(grey_png(1, 1, b"x") + bytes(1 << 16)) is None
    assert checked_preview(None) is None


def test_pictures_of_data() -> None:
    numpy = pytest.importorskip("numpy")
    picture_of = importlib.import_module("modamafs.extraction.picture").picture_of
    noise = numpy.random.default_rng(1).integers(0, 65535, (1000, 700)).astype("uint16")
    for data, navigates in (
        (noise, []),
        (noise > 5, [False, False]),
        (noise + 1j, [False, False]),
        (numpy.stack([noise, noise]), [True, False, False]),
        (numpy.where(numpy.eye(5), numpy.nan, noise[:5, :5]), []),
        (numpy.zeros((4, 4)), []),
        (numpy.zeros((3, 4, 100)), [True, True, False]),
    ):
        assert checked_preview(picture_of(data, navigates)) is not None
    assert picture_of(numpy.zeros(100), [False]) is None
    assert picture_of(numpy.zeros((0, 10)), []) is None
    assert picture_of(numpy.full((4, 4), numpy.nan), []) is None


# ---- records -------------------------------------------------------------------------------------


def test_records_of_files_that_are_gone_or_damaged(session: Path) -> None:
    for name in ("here.dm4", "changed.dm4"):
        (session / name).write_text("data")
    fd = os.open(session, os.O_RDONLY)
    try:
        for name in ("here.dm4", "gone.dm4", "changed.dm4"):
            cache.write(fd, FileMetadata(path=name, size_bytes=4, mtime_ns=1))
        records = session / ".modama/metadata"
        (records / os.fsdecode(cache.name_of("changed.dm4"))).write_bytes(b'{"path": "chang')
        (records / ("0" * 32 + ".json")).write_text("[" * 100_000)
        assert set(cache.load(fd)) == {"here.dm4"}
        assert "gone.dm4" not in cache.load(fd)
        assert len(list(records.iterdir())) == 4
        assert cache.prune(fd) == 3
        assert len(list(records.iterdir())) == 1
        (session / "here.dm4").unlink()
        assert dict(cache.load(fd)) == {}
    finally:
        os.close(fd)


def test_a_record_under_another_files_name_is_none(session: Path) -> None:
    (session / "a.dm4").write_text("data")
    fd = os.open(session, os.O_RDONLY)
    try:
        cache.write(fd, FileMetadata(path="a.dm4", size_bytes=4, mtime_ns=1))
        records = session / ".modama/metadata"
        os.rename(next(records.iterdir()), records / os.fsdecode(cache.name_of("b.dm4")))
        assert dict(cache.load(fd)) == {}
    finally:
        os.close(fd)


def test_no_record_is_written_through_a_link(session: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (session / ".modama").symlink_to(tmp_path / "elsewhere")
    fd = os.open(session, os.O_RDONLY)
    try:
        with pytest.raises(OSError):
            cache.write(fd, FileMetadata(path="a.dm4", size_bytes=4, mtime_ns=1))
        assert dict(cache.load(fd)) == {}
    finally:
        os.close(fd)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_record_is_json_that_others_can_read(session: Path) -> None:
    (session / "a.dm4").write_text("data")
    found = FileMetadata(
        path="a.dm4",
        size_bytes=4,
        mtime_ns=1,
        values={"beam_energy": Measured(value=300, unit="keV")},
        preview_png=grey_png(1, 1, b"x"),
    )
    fd = os.open(session, os.O_RDONLY)
    try:
        cache.write(fd, found)
        assert cache.load(fd)["a.dm4"] == found
    finally:
        os.close(fd)
    (record,) = (session / ".modama/metadata").iterdir()
    assert len(record.stem) == 32
    assert record.stat().st_mode & 0o777 == 0o644
    told = msgspec.json.decode(record.read_bytes())
    assert told["values"] == {"beam_energy": {"value": 300, "unit": "keV"}}


# ---- in the background ---------------------------------------------------------------------------


async def work_off(extractor: Extractor) -> None:
    """Until nothing is left."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(extractor.run)
        with trio.fail_after(120):
            while len(extractor):
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()


@pytest.mark.trio
async def test_what_is_asked_for_is_read(em_data: Path, store: Store, session: Path) -> None:
    shutil.copy(em_data / "test_STEM_image.dm3", session)
    (session / "notes.txt").touch()
    (session / "empty.dm4").touch()
    (session / "link.dm4").symlink_to("/etc/passwd")
    extractor = Extractor(store, settled_s=0)
    for name in (b"test_STEM_image.dm3", b"notes.txt", b"empty.dm4", b"link.dm4", b"gone.dm4"):
        extractor.request(SESSION, name)
        extractor.request(SESSION, name)
    assert len(extractor) == 4
    await work_off(extractor)
    found = known(session)
    assert set(found) == {"test_STEM_image.dm3", "empty.dm4"}
    assert str(found["test_STEM_image.dm3"].values["beam_energy"]) == "200 keV"


@pytest.mark.trio
async def test_it_is_read_again_only_when_it_has_changed(
    em_data: Path, store: Store, session: Path
) -> None:
    file = session / "x.dm3"
    shutil.copy(em_data / "test_STEM_image.dm3", file)
    extractor = Extractor(store, settled_s=0)
    extractor.request(SESSION, b"x.dm3")
    await work_off(extractor)
    (record,) = (session / ".modama/metadata").iterdir()
    first = record.stat().st_ino, known(session)["x.dm3"].values["title"]
    extractor.request(SESSION, b"x.dm3")
    await work_off(extractor)
    assert record.stat().st_ino == first[0]
    shutil.copy(em_data / "test_diffraction_pattern.dm3", file)
    assert cache.stale(known(session)["x.dm3"], file.stat())
    extractor.request(SESSION, b"x.dm3")
    await work_off(extractor)
    found = known(session)["x.dm3"]
    assert not cache.stale(found, file.stat())
    assert str(found.values["shape"]) == "(87, 87)"


@pytest.mark.trio
async def test_a_file_that_is_being_written_is_left_alone(
    em_data: Path, store: Store, session: Path
) -> None:
    file = session / "x.dm3"
    shutil.copy(em_data / "test_STEM_image.dm3", file)
    extractor = Extractor(store, settled_s=0, retry_s=0.01)
    extractor.request(SESSION, b"x.dm3")
    extractor.request(SESSION, b"never.dm3")
    async with trio.open_nursery() as nursery:
        with file.open("r+b"), trio.fail_after(60):
            nursery.start_soon(extractor.run)
            while len(extractor) > 1:
                await trio.sleep(0.01)
            assert known(session) == {}
            assert len(extractor) == 1
        with trio.fail_after(60):
            while len(extractor):
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    assert set(known(session)) == {"x.dm3"}


@pytest.mark.trio
async def test_one_that_was_written_just_now_is_left_alone(
    em_data: Path, store: Store, session: Path
) -> None:
    file = session / "x.dm3"
    shutil.copy(em_data / "test_STEM_image.dm3", file)
    os.utime(file)
    extractor = Extractor(store, settled_s=3600, retry_s=0.01)
    extractor.request(SESSION, b"x.dm3")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(extractor.run)
        await trio.sleep(0.1)
        assert known(session) == {}
        os.utime(file, (0, 0))
        with trio.fail_after(60):
            while len(extractor):
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    assert set(known(session)) == {"x.dm3"}


@pytest.mark.trio
async def test_a_read_only_mount_writes_nothing(em_data: Path, store: Store, session: Path) -> None:
    shutil.copy(em_data / "test_STEM_image.dm3", session)
    extractor = Extractor(store, read_only=True)
    extractor.request(SESSION, b"test_STEM_image.dm3")
    assert len(extractor) == 0
    await work_off(extractor)
    assert not (session / ".modama").exists()


def test_a_full_queue_drops_the_oldest(
    em_data: Path, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    del em_data
    extractor = Extractor(store, queue_limit=2)
    for name in (b"1.dm4", b"2.dm4", b"3.dm4"):
        extractor.request(SESSION, name)
    assert len(extractor) == 2
    assert "extraction-queue-full" in caplog.text
    assert "1.dm4" in caplog.text


@pytest.mark.trio
async def test_records_of_removed_files_go(em_data: Path, store: Store, session: Path) -> None:
    for name in ("a.dm3", "b.dm3", "c.dm3"):
        shutil.copy(em_data / "test_STEM_image.dm3", session / name)
        extract_now(store, SESSION, name.encode())
    (session / "a.dm3").unlink()
    extractor = Extractor(store, settled_s=0)
    extractor.request(SESSION, b"b.dm3")
    await work_off(extractor)
    assert len(list((session / ".modama/metadata").iterdir())) == 2
    (session / "c.dm3").unlink()
    extractor.request(SESSION, b"c.dm3")
    await work_off(extractor)
    assert len(list((session / ".modama/metadata").iterdir())) == 1
