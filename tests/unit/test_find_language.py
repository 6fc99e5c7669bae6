"""What can be asked for with ``modamafs find``, and what is found then: docs/find.md."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from modamafs.index import query
from modamafs.index.find import find
from modamafs.model import Caller
from modamafs.store.backing import Store
from tests.support.indexed import Indexed

ROOT = Caller(0, 0)
DOCS = Path(__file__).parents[2] / "docs/find.md"
S1 = "holography/skyrmions/2026-07-01"
S2 = "holography/skyrmions/2026-11-24"
P1 = "tem/phase-plates/2026-11-24"
FILES: dict[str, tuple[int, str]] = {
    f"{S1}/raw/tilt.mrc": (2000, "2026-07-01T12:00:00"),
    f"{S1}/raw/Tilt_series.dm4": (2_000_000_000, "2026-07-01T23:59:59"),
    f"{S1}/raw/Scan 001.h5": (12_000_000, "2026-07-02T00:00:00"),
    f"{S1}/figures/plot.png": (1024, "2026-08-15T08:00:00"),
    f"{S2}/raw/overview.dm4": (0, "2026-11-24T09:30:00"),
    f"{S2}/raw/AND OR NOT.txt": (1, "2026-11-25T09:30:00"),
    f"{P1}/raw/image[3].tif": (1_000_000, "2025-12-31T23:00:00"),
    f"{P1}/raw/MÜNCHEN.tif": (999_999, "2026-11-23T10:00:00"),
    f"{P1}/raw/Mu\u0308nchen2.tif": (3, "2026-11-01T00:00:00"),
    f"{P1}/raw/caf\udce9.dm4": (4, "2026-10-31T23:59:59"),
    f"{P1}/raw/a*b.txt": (5, "1999-01-01T00:00:00"),
    f"{P1}/raw/50% done_x.txt": (6, "1960-01-01T00:00:00"),
    f"{P1}/raw/x\\": (8, "1995-01-01T00:00:00"),
    f"{P1}/raw/new\nline.txt": (7, "2026-11-25T09:59:00"),
}
NOW_NS = int(datetime(2026, 11, 25, 10, tzinfo=UTC).timestamp()) * 10**9
EVERYTHING = {os.path.basename(path) for path in FILES} | {
    "holography", "skyrmions", "2026-07-01", "2026-11-24", "raw", "figures", "tem", "phase-plates",
    "same.mrc", "shortcut", "pipe",
}  # fmt: skip
IN_S1 = {"raw", "tilt.mrc", "Tilt_series.dm4", "Scan 001.h5", "figures", "plot.png"}
IN_S2 = {"raw", "overview.dm4", "AND OR NOT.txt"}
IN_P1 = {"raw", "same.mrc", "shortcut", "pipe"} | {
    os.path.basename(path) for path in FILES if path.startswith("tem/")
}
TEXTS = {"a*b.txt", "50% done_x.txt", "new\nline.txt"}


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Indexed]:
    top = tmp_path_factory.mktemp("store")
    for name, (size_bytes, changed) in FILES.items():
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.truncate(path, size_bytes)
        at = int(datetime.fromisoformat(changed + "+00:00").timestamp()) * 10**9
        os.utime(path, ns=(at, at))
    os.link(top / f"{S1}/raw/tilt.mrc", top / f"{P1}/raw/same.mrc")
    (top / f"{P1}/raw/shortcut").symlink_to("same.mrc")
    os.mkfifo(top / f"{P1}/raw/pipe")
    for directory in [path for path in top.rglob("*") if path.is_dir()]:
        os.utime(directory, (0, 0))
    os.chown(top / f"{P1}/raw/a*b.txt", 4242, 0)
    os.utime(top / f"{P1}/raw/shortcut", (0, 0), follow_symlinks=False)
    os.utime(top / f"{P1}/raw/pipe", (0, 0))
    with Store(top) as store:
        index = Indexed(store)
        index.project("holography/skyrmions", title="Magnetic whirls in FeGe", owner="maren")
        index.project("tem/phase-plates", title="Thin films", owner="maren")
        index.session(S1, title="Tomography of a lamella", owner="Anna Lindqvist",
                      instrument="FEI Titan G2")  # fmt: skip
        index.session(P1, title="Ageing", owner="ben", instrument="JEOL ARM 200F")
        index.note("holography/skyrmions", "Magnetic whirls in FeGe helimagnets")
        index.note(S1, "Tomography of a lamella sample Fe₃Sn₂ größer")
        index.note(f"{P1}/raw/image[3].tif", "detector Ceta-D phase-plate aged 300 keV")
        tilt, series = f"{S1}/raw/tilt.mrc", f"{S1}/raw/Tilt_series.dm4"
        index.value(tilt, "beam_energy", 300.0, "keV")
        index.value(tilt, "detector", "Ceta")
        index.value(tilt, "exposure", 0.10000000149011612, "s")
        index.value(tilt, "acquisition_date", "2026-07-01")
        index.value(series, "beam_energy", 0.08, "MeV")
        index.value(series, "camera_length", 130.0, "mm")
        index.value(series, "magnification", 50000.0)
        index.value(series, "convergence_angle", 25.0, "mrad")
        index.value(series, "axis_1_scale", 0.5, "1/nm")
        index.value(series, "detector", "K3 IS")
        index.value(series, "counts", 12.0, "arb")
        index.value(f"{S1}/raw/Scan 001.h5", "pmt_voltage", 300.0, "kV")
        index.value(f"{S1}/raw/Scan 001.h5", "pixel", 2.0, "Å")
        index.value("holography/skyrmions", "beam_energy", 200.0, "keV")
        index.value(S1, "beam_energy", 120.0, "keV")
        index.seal(f"{S1}/raw", {"tilt.mrc": "ab12" * 16, "Scan 001.h5": "ab13" * 16}, "cd" * 32)
        yield index


def names(index: Indexed, text: str) -> set[str]:
    """The last parts of the paths of what is found."""
    page = find(index.connection, index.store, text, ROOT, now_ns=NOW_NS)
    assert page.next is None
    paths = [result.path for result in page.results]
    assert len(paths) == len(set(paths))
    return {os.path.basename(path) for path in paths}


TABLE: list[tuple[str, set[str]]] = [
    # words: in the name, in what is written about it, or of a directory above; all of them
    ("tilt", {"tilt.mrc", "Tilt_series.dm4"}),
    ("TILT", {"tilt.mrc", "Tilt_series.dm4"}),
    ("skyrmions tilt", {"tilt.mrc", "Tilt_series.dm4"}),
    ("phase-plates tilt", set()),
    ("skyrmions", {"skyrmions", "2026-07-01", "2026-11-24"} | IN_S1 | IN_S2),
    ("helimagnets png", {"plot.png"}),
    ("lamella raw .h5", {"Scan 001.h5"}),
    ("ceta-d", {"image[3].tif"}),
    ("GROßER figures", {"figures", "plot.png"}),
    ("tomogr*", {"2026-07-01"} | IN_S1),
    ("tomogr", set()),  # within a text, whole words
    ("aged", {"image[3].tif"}),
    ("ng", {"plot.png"}),
    ("h5", {"Scan 001.h5"}),
    ("h5 scan", {"Scan 001.h5"}),
    ("image[3]", {"image[3].tif"}),
    ("50%", {"50% done_x.txt"}),
    ("e_x", {"50% done_x.txt"}),
    ("eXx", set()),
    ("x\\", {"x\\"}),
    ("\\", {"x\\"}),
    ("münchen", {"MÜNCHEN.tif", "Mu\u0308nchen2.tif"}),
    ("MU\u0308NCHEN", {"MÜNCHEN.tif", "Mu\u0308nchen2.tif"}),
    ("ün", {"MÜNCHEN.tif", "Mu\u0308nchen2.tif"}),
    ("caf\udce9", {"caf\udce9.dm4"}),
    ("caf", {"caf\udce9.dm4"}),
    ("\udce9", {"caf\udce9.dm4"}),
    # phrases, and words that are operators elsewhere
    ('"Scan 001"', {"Scan 001.h5"}),
    ('"001 Scan"', set()),
    ('"magnetic whirls" png', {"plot.png"}),
    ('"whirls magnetic" png', set()),
    ("AND OR NOT", {"AND OR NOT.txt"}),
    ("tilt OR scan", set()),
    ("(tilt", set()),
    ("^tilt", set()),
    ("NEAR(tilt", set()),
    ('"new\nline"', {"new\nline.txt"}),
    # without
    ("tilt -series", {"tilt.mrc"}),
    ("tilt -raw", set()),
    ('txt -"AND OR"', TEXTS),
    ("raw dm4 -lamella", {"overview.dm4", "caf\udce9.dm4"}),
    ("-holography -phase-plates", {"tem"}),
    ("type:tif -aged", {"MÜNCHEN.tif", "Mu\u0308nchen2.tif"}),
    ('"-holography"', set()),
    # wildcards: the whole name
    ("*.dm4", {"Tilt_series.dm4", "overview.dm4", "caf\udce9.dm4"}),
    ("*.DM4", {"Tilt_series.dm4", "overview.dm4", "caf\udce9.dm4"}),
    ("tilt*", {"tilt.mrc", "Tilt_series.dm4"}),
    ("*tilt", set()),
    ("til?.mrc", {"tilt.mrc"}),
    ("til?", set()),
    ("*_*.dm4", {"Tilt_series.dm4"}),
    ('"*"', {"a*b.txt"}),
    ('a"*"b*', {"a*b.txt"}),
    ("a*b*", {"a*b.txt"}),
    ("*", EVERYTHING),
    ("figures*", {"figures", "plot.png"}),
    # metadata
    ("beam_energy=300keV", {"tilt.mrc", "same.mrc"}),
    ('beam_energy="300 keV"', {"tilt.mrc", "same.mrc"}),
    ("beam_energy=0.3MeV", {"tilt.mrc", "same.mrc"}),
    ("beam_energy=300000eV", {"tilt.mrc", "same.mrc"}),
    ("beam_energy=300kev", {"tilt.mrc", "same.mrc"}),
    ("Beam-Energy=300keV", {"tilt.mrc", "same.mrc"}),
    ("beam_energy=300", {"tilt.mrc", "same.mrc"}),
    ("beam_energy=300kV", set()),
    ("beam_energy=300V", set()),
    ("beam_energy=300eV", set()),
    ("pmt_voltage=300kV", {"Scan 001.h5"}),
    ("pmt_voltage=300000V", {"Scan 001.h5"}),
    ("pmt_voltage=300keV", set()),
    ("beam_energy=80keV", {"Tilt_series.dm4"}),
    ("beam_energy<100keV", {"Tilt_series.dm4"}),
    ("beam_energy<=80keV", {"Tilt_series.dm4"}),
    ("beam_energy<80keV", set()),
    ("beam_energy>200keV", {"tilt.mrc", "same.mrc"}),
    ("beam_energy>=200keV raw txt", {"AND OR NOT.txt"}),  # its project's: the session has none
    ("beam_energy=200keV raw", IN_S2),
    ("beam_energy=120keV", {"2026-07-01"} | IN_S1 - {"tilt.mrc", "Tilt_series.dm4"}),
    ("beam_energy!=300keV type:file skyrmions", {"Tilt_series.dm4", "Scan 001.h5", "plot.png",
                                                 "overview.dm4", "AND OR NOT.txt"}),
    ("-beam_energy=300keV mrc", set()),
    ("exposure=0.1s", {"tilt.mrc", "same.mrc"}),
    ("exposure=100ms", {"tilt.mrc", "same.mrc"}),
    ("exposure>100ms", set()),
    ("exposure>=0.1s", {"tilt.mrc", "same.mrc"}),
    ("camera_length>10cm", {"Tilt_series.dm4"}),
    ("camera_length<1m", {"Tilt_series.dm4"}),
    ("convergence_angle>1deg", {"Tilt_series.dm4"}),
    ("pixel=0.2nm", {"Scan 001.h5"}),
    ("pixel=200pm", {"Scan 001.h5"}),
    ("axis_1_scale=0.5nm^-1", {"Tilt_series.dm4"}),
    ("axis_1_scale=0.05Å⁻¹", {"Tilt_series.dm4"}),
    ("counts=12arb", {"Tilt_series.dm4"}),
    ("counts=12", {"Tilt_series.dm4"}),
    ("counts=12s", set()),
    ("magnification>=50000", {"Tilt_series.dm4"}),
    ("magnification>5e4", set()),
    ("magnification=5e4", {"Tilt_series.dm4"}),
    ("detector=ceta", {"tilt.mrc", "same.mrc"}),
    ('detector="k3 is"', {"Tilt_series.dm4"}),
    ("detector=k3*", {"Tilt_series.dm4"}),
    ("detector!=k3*", {"tilt.mrc", "same.mrc"}),
    ("detector=*", {"tilt.mrc", "Tilt_series.dm4", "same.mrc"}),
    ('detector="*"', set()),
    ("-detector=* type:mrc", set()),
    ("detector!=* skyrmions h5", {"Scan 001.h5"}),
    ("acquisition_date=2026-07", {"tilt.mrc", "same.mrc"}),
    ("acquisition_date>2026-07", set()),
    ("acquisition_date>=2026-07", {"tilt.mrc", "same.mrc"}),
    ("acquisition_date<2026-07-02", {"tilt.mrc", "same.mrc"}),
    ("acquisition_date<=2026-07", {"tilt.mrc", "same.mrc"}),
    ("no_such_key=1", set()),
    ("detector==Ceta mrc", {"tilt.mrc", "same.mrc"}),
    # places
    ("project:skyrm tilt", {"tilt.mrc", "Tilt_series.dm4"}),
    ('project:"magnetic whirls" png', {"plot.png"}),
    ("project:tem/phase-plates type:tif", {"image[3].tif", "MÜNCHEN.tif", "Mu\u0308nchen2.tif"}),
    ("project:tem/phase", {"phase-plates", "2026-11-24"} | IN_P1),
    ("project:holography", set()),
    ("-project:skyrmions dm4", {"caf\udce9.dm4"}),
    ("session:2026-07", {"2026-07-01"} | IN_S1),
    ("session:lamella png", {"plot.png"}),
    ("session:skyrmions/2026-11-24", {"2026-11-24"} | IN_S2),
    ("session:skyrmions", set()),
    ("session:*-24 txt", {"AND OR NOT.txt"} | TEXTS),
    ("instrument:titan", {"2026-07-01"} | IN_S1),
    ('instrument:"jeol arm" type:tif', {"image[3].tif", "MÜNCHEN.tif", "Mu\u0308nchen2.tif"}),
    ("instrument:fei*", {"2026-07-01"} | IN_S1),
    ("owner:4242", {"a*b.txt"}),
    ("owner:ben type:tif", {"image[3].tif", "MÜNCHEN.tif", "Mu\u0308nchen2.tif"}),
    ("owner:lindqvist", {"2026-07-01"} | IN_S1),
    ('owner:"anna lindqvist" png', {"plot.png"}),
    ("owner:ann", set()),
    ("owner:root png", {"plot.png"}),
    ("path:skyrmions/2026-07-01/fig", {"figures", "plot.png"}),
    ("skyrmions/2026-07-01/fig", {"figures", "plot.png"}),
    ("path:/holography/*/*.png", {"plot.png"}),
    ("path:2026-07-01/*.png", {"plot.png"}),
    ("path:/2026-07-01/*.png", set()),
    ("raw/*.dm4", {"Tilt_series.dm4", "overview.dm4", "caf\udce9.dm4"}),
    ("path:figures/", {"figures", "plot.png"}),
    # what they are
    ("type:file mrc", {"tilt.mrc", "same.mrc"}),
    ("type:dir raw", {"raw"}),
    ("type:link", {"shortcut"}),
    ("type:fifo", {"pipe"}),
    ("type:dm4", {"Tilt_series.dm4", "overview.dm4", "caf\udce9.dm4"}),
    ("type:.DM4", {"Tilt_series.dm4", "overview.dm4", "caf\udce9.dm4"}),
    ("type:h5", {"Scan 001.h5"}),
    ("type:m4", set()),
    ("-type:file -type:dir", {"shortcut", "pipe"}),
    ("size:2000", {"tilt.mrc", "same.mrc"}),
    ("size:>1GB", {"Tilt_series.dm4"}),
    ("size:>2GB", set()),
    ("size:>=2GB", {"Tilt_series.dm4"}),
    ("size:>1.9GiB", set()),
    ("size:>1.8GiB", {"Tilt_series.dm4"}),
    ("size:1KiB", {"plot.png"}),
    ("size:1024", {"plot.png"}),
    ("size:10MB..1GB", {"Scan 001.h5"}),
    ("size:12MB..12MB", {"Scan 001.h5"}),
    ("size:1MB", {"image[3].tif"}),
    ("size:..1B", {"overview.dm4", "AND OR NOT.txt"}),
    ("size:<1", {"overview.dm4"}),
    ("size:2g..", {"Tilt_series.dm4"}),
    ("sealed:yes", {"raw", "tilt.mrc", "Tilt_series.dm4", "Scan 001.h5"}),
    ("sealed:no tilt", set()),
    ("sealed:no png", {"plot.png"}),
    ("-sealed:yes png", {"plot.png"}),
    ("hash:ab12", {"tilt.mrc"}),
    (f"hash:{'ab13' * 16}", {"Scan 001.h5"}),
    ("hash:cdcdcdcd", {"raw"}),
    ("-hash:ab12 type:mrc", {"same.mrc"}),
    # when
    ("changed:<1h", {"AND OR NOT.txt", "new\nline.txt"}),
    ("changed:1h", {"AND OR NOT.txt", "new\nline.txt"}),
    ("changed:<29min", {"new\nline.txt"}),
    ("changed:today", {"AND OR NOT.txt", "new\nline.txt"}),
    ("changed:yesterday", {"overview.dm4"}),
    ("changed:>40years", {"50% done_x.txt", "holography", "skyrmions", "2026-07-01", "2026-11-24",
                          "raw", "figures", "tem", "phase-plates", "shortcut", "pipe"}),
    ("changed:2026-11-24", {"overview.dm4"}),
    ("changed:2026-07-01", {"tilt.mrc", "same.mrc", "Tilt_series.dm4"}),
    ("changed:2026-07", {"tilt.mrc", "same.mrc", "Tilt_series.dm4", "Scan 001.h5"}),
    ("changed:2026-11-01..2026-11-24", {"overview.dm4", "MÜNCHEN.tif", "Mu\u0308nchen2.tif"}),
    ("changed:>2026-11-24", {"AND OR NOT.txt", "new\nline.txt"}),
    ("changed:>2026-11", set()),
    ("changed:>=2026-11-25", {"AND OR NOT.txt", "new\nline.txt"}),
    ("changed:<1961", {"50% done_x.txt"}),
    ("changed:<=1960", {"50% done_x.txt"}),
    ("changed:<1960", set()),
    ("changed:2025..2025", {"image[3].tif"}),
    ("changed:2026-08.. -txt type:file", {"plot.png", "overview.dm4", "MÜNCHEN.tif",
                                          "Mu\u0308nchen2.tif", "caf\udce9.dm4"}),
    ("changed:2026-07-01T12:00", {"tilt.mrc", "same.mrc"}),
    ("changed:2026-07-01T12:00:01", set()),
]  # fmt: skip


@pytest.mark.parametrize(("text", "found"), TABLE, ids=[text for text, _ in TABLE])
def test_what_is_found(index: Indexed, text: str, found: set[str]) -> None:
    assert names(index, text) == found


@pytest.mark.parametrize("text", [text for text, _ in TABLE])
def test_the_whole_index_looked_through_finds_the_same(
    index: Indexed, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = find(index.connection, index.store, text, ROOT, now_ns=NOW_NS)
    monkeypatch.setattr("modamafs.index.find._Search._cheapest", lambda *_, **__: None)
    monkeypatch.setattr("modamafs.index.find.NOTED", 0)
    assert find(index.connection, index.store, text, ROOT, now_ns=NOW_NS) == quick


@pytest.mark.parametrize("text", [text for text, _ in TABLE])
def test_gathering_after_a_first_look_finds_the_same(
    index: Indexed, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = find(index.connection, index.store, text, ROOT, now_ns=NOW_NS)
    monkeypatch.setattr("modamafs.index.find.FEW", 0)
    monkeypatch.setattr("modamafs.index.find.FIRST_ROWS", 3)
    assert find(index.connection, index.store, text, ROOT, now_ns=NOW_NS) == quick


def test_a_result(index: Indexed) -> None:
    [result] = find(index.connection, index.store, '"tilt.mrc"', ROOT).results
    assert result._asdict() == {
        "path": f"{S1}/raw/tilt.mrc",
        "kind": "file",
        "size_bytes": 2000,
        "mtime": "2026-07-01T12:00:00Z",
        "sealed": True,
    }


def test_each_name_of_a_file_is_found(index: Indexed) -> None:
    paths = [one.path for one in find(index.connection, index.store, "detector=ceta", ROOT).results]
    assert sorted(paths) == sorted([f"{S1}/raw/tilt.mrc", f"{P1}/raw/same.mrc"])


@pytest.mark.parametrize(
    ("within", "found"),
    [
        (b"holography", {"Tilt_series.dm4", "overview.dm4"}),
        (S2.encode(), {"overview.dm4"}),
        (b"holo", set()),
        (b"holography/nothing", set()),
        (f"{S1}/raw/tilt.mrc".encode(), set()),
    ],
)
def test_only_what_lies_below(index: Indexed, within: bytes, found: set[str]) -> None:
    page = find(index.connection, index.store, "*.dm4", ROOT, within=within)
    assert {os.path.basename(result.path) for result in page.results} == found
    assert all(result.path.startswith(within.decode() + "/") for result in page.results)


def test_a_directory_is_not_below_itself(index: Indexed) -> None:
    page = find(index.connection, index.store, "type:dir", ROOT, within=S1.encode())
    assert {result.path for result in page.results} == {f"{S1}/raw", f"{S1}/figures"}


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["tilt", "raw"], "tilt raw"),
        (["phase plates", "raw"], '"phase plates" raw'),
        (["title=a b", "x"], 'title="a b" x'),
        (["-not this", "x"], '-"not this" x'),
        (["project:a b", "x"], 'project:"a b" x'),
        (["beam_energy>= 300 keV", "x"], 'beam_energy>="300 keV" x'),
        (["size:> 1 GB", "x"], 'size:"> 1 GB" x'),
        (['title="a b"', "x"], 'title="a b" x'),
        (["C:\\a b\\", "x"], 'C:"\\\\a b\\\\" x'),
    ],
)
def test_arguments_with_spaces_are_one_term_each(arguments: list[str], text: str) -> None:
    assert " ".join(map(query.quoted, arguments)) == text


def test_each_form_that_the_page_shows_is_understood() -> None:
    shown = re.findall(r"^\| `([^`]+)` \|", DOCS.read_text(), re.MULTILINE)
    assert len(shown) > 30
    for text in shown:
        query.parse(text.replace("\\|", "|"), NOW_NS)
    for field in query.FIELDS:
        assert any(text.startswith(f"{field}:") for text in shown), field


@pytest.mark.parametrize(
    ("wanted", "unit", "factor"),
    [
        ("keV", "MeV", 1e-3),
        ("um", "µm", 1.0),
        ("μm", "nm", 1e3),
        ("nm", "Å", 10.0),
        ("nm", "\u212b", 10.0),
        ("s", "ms", 1e3),
        ("min", "s", 60.0),
        ("nm²", "nm^2", 1.0),
        ("um²", "nm2", 1e6),
        ("1/nm", "Å⁻¹", 0.1),
        ("e/Å²", "e/nm²", 100.0),
        ("mA", "A", 1e-3),
        ("kohm", "Ω", 1e3),
        ("%", "ppm", 1e4),
        ("keV", "kV", None),
        ("keV", "V", None),
        ("nm", "s", None),
        ("nm", "nm²", None),
        ("K", "°C", None),
        ("mev", "eV", None),
        ("furlong", "m", None),
        ("furlong", "Furlong", 1.0),
        ("keV", "", None),
    ],
)
def test_units(wanted: str, unit: str, factor: float | None) -> None:
    assert query.conversion(wanted, unit) == (factor and pytest.approx(factor, rel=1e-12))
