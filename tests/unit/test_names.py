"""Names that are safe in URLs and on Windows, and look like no other."""

from __future__ import annotations

import errno
import unicodedata

import pytest

from modamafs.errors import InvalidRequest
from modamafs.policy.names import LONGEST_BYTES, check_name, check_siblings

GOOD = [
    "tem", "2026-11-23", "Phase plates", "v1.2_final", "x" * LONGEST_BYTES, "ü" * 50, "-x",
    "Müller", "løve", "Straße", "łódź", "naïve", "ΑΘΗΝΑ", "проба", "データ", "東京タワー", "실험",
    "console", "com", "com10", "nulls", "lpt", "modama",
]  # fmt: skip

BAD = {
    "": "missing",
    ".": "no name",
    "..": "no name",
    ".modama": "own",
    ".modama~new": "own",
    ".MODAMA": "own",
    "a/b": "'/'",
    "../b": "'/'",
    "a\\b": "Windows",
    "a:b": "':'",
    "a*": "Windows",
    "a?": "Windows",
    'a"b': "Windows",
    "a<b": "Windows",
    "a>b": "Windows",
    "a|b": "Windows",
    "a\0b": "Windows",
    "a\nb": "Windows",
    "a\x7fb": "Windows",
    ".hidden": "begin or end",
    "end.": "begin or end",
    "end ": "begin or end",
    " begin": "begin or end",
    "con": "device",
    "PRN": "device",
    "Aux.txt": "device",
    "nul.tar.gz": "device",
    "COM1": "device",
    "lpt9.dat": "device",
    "con .x": "device",
    "x" * 101: "shorten",
    "x" * 256: "shorten",
    "ü" * 51: "shorten",
    "u\u0308": "NFC",
    "A\u030angstrom": "NFC",
    "\u212bngstrom": "NFC",  # ANGSTROM SIGN
    "cоpy": "mixes Cyrillic and Latin",
    "µm": "micro sign",
    "μm": "mixes Greek and Latin",
    "ｆull": "fullwidth",
    "a\u00a0b": "no-break space",
    "a\u200bb": "zero width",
    "a\u202eb": "right-to-left",
    "a\u00adb": "soft hyphen",
    "a\ufeffb": "no-break",
    "a\u2215b": "division slash",
    "a\u2010b": "hyphen",
    "ɑ": "alpha",
    "ᎪᏢ": "cherokee",
    "١": "arabic",
    "x\u0331": "combining",
    "\u1160": "hangul",
    "\u3164": "hangul filler",
    "100%": "percent",
    "a#b": "number sign",
    "a&b": "ampersand",
    "\udcff": "UTF-8",
    "𝐚": "mathematical",
    "🔬": "microscope",
}


@pytest.mark.parametrize("name", GOOD)
def test_a_good_name(name: str) -> None:
    assert unicodedata.normalize("NFC", name) == name
    check_name(name)


@pytest.mark.parametrize("name", BAD, ids=ascii)
def test_a_bad_name_is_refused_in_one_line_that_says_why(name: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        check_name(name)
    assert BAD[name] in refused.value.message
    assert refused.value.errno == errno.EINVAL
    assert refused.value.message.isprintable()


@pytest.mark.parametrize(
    ("name", "sibling"),
    [
        ("same", "same"),
        ("Same", "sAME"),
        ("Müller", "mÜLLER"),
        ("Müller", "Mu\u0308ller"),
        ("copy", "сору"),  # Cyrillic
        ("Copy", "сору"),
        ("сору", "COPY"),
        ("run-1", "run-l"),
        ("run-I", "run-l"),
        ("Run-I", "run-1"),
        ("2026-10", "2026-1O"),
        ("a b", "a  b"),
        ("full", "ｆull"),
        ("Straße", "STRASSE"),
        ("ΑΒΕ", "ABE"),  # Greek
        ("ニ", "二"),
    ],
)
def test_names_that_can_be_taken_for_each_other(name: str, sibling: str) -> None:
    for mine, other in ((name, sibling), (sibling, name)):
        with pytest.raises(InvalidRequest, match="already"):
            check_siblings(mine, ["unlike", other])


@pytest.mark.parametrize(
    ("name", "sibling"),
    [("run-1", "run-2"), ("run-1", "run-i"), ("a-b", "a_b"), ("Müller", "Muller"), ("é", "è"),
     ("100", "1000"), ("проба", "proba"), ("a", "\udcff")],
)  # fmt: skip
def test_names_that_can_not(name: str, sibling: str) -> None:
    check_siblings(name, [sibling])
