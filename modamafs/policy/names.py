"""Names of areas, projects and sessions: safe in URLs and on Windows, and none looks like another.

They become parts of URLs, of shares' paths and of citations, so they are chosen more narrowly than
file names, which may be anything: letters, digits 0-9, space, ``.``, ``_`` and ``-``, with the
letters of one script. Accented letters are plain letters in their composed form (NFC). Scripts
whose letters can hardly be told apart from these, or that are written from right to left beside
digits, are left out. Sources: Microsoft, "Naming Files, Paths, and Namespaces"; Unicode UTS #39.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from modamafs.errors import InvalidRequest

LONGEST_BYTES = 100
"""File systems take 255; names get suffixes, and paths are put together of several."""

_FORBIDDEN = '/\\:*?"<>|'
_COMMON = frozenset("0123456789 ._-")
_DEVICE = re.compile(r"(?i)(con|prn|aux|nul|com[1-9]|lpt[1-9]) *(\..*)?")
_LATIN_WITHOUT_BASE = frozenset("ßẞæÆœŒøØłŁđĐðÐþÞħĦŋŊı")
"""Letters of European alphabets that are no letter from A to Z with a mark."""
_LONG_VOWEL = "ー"
_JAPANESE = frozenset({"CJK", "HIRAGANA", "KATAKANA"})
_SCRIPTS = frozenset({"LATIN", "GREEK", "CYRILLIC", "HANGUL", *_JAPANESE})

_LOOKS_LIKE = str.maketrans(
    # Cyrillic, Greek, and among Latin letters and digits; katakana and ideographs.
    "аԁеһіјкӏорԛсѕухԝгАВЕЅНІЈКМОРСТХУԚԜЬЗГПФЛαγικνορυχΑΒΕΖΗΙΚΜΝΟΡΤΥΧI10ıÐニロカエトハタヘリー",
    "adehijklopqcsyxwrABESHlJKMOPCTXYQWb3ΓΠΦΛayikvopuxABEZHlKMNOPTYXllOiĐ二口力工卜八夕へり一",
)


def check_name(name: str) -> None:
    """Return if an area, a project or a session may be called so.

    InvalidRequest (EINVAL): what is wrong, and what to do. What names there are already is asked
    by ``check_siblings``.
    """
    shown = ascii(name) if not name.isprintable() else f"'{name}'"
    if not name:
        raise InvalidRequest("a name is missing: give one")
    if name.lower().startswith(".modama"):
        raise InvalidRequest(f"{shown}: names that begin with .modama are modamafs's own")
    if name in (".", ".."):
        raise InvalidRequest(f"{shown} is no name: give the directory's own name")
    for letter in name:
        if letter in _FORBIDDEN or ord(letter) < 0x20 or ord(letter) == 0x7F:
            raise InvalidRequest(
                f"{shown}: {letter!r} can't be in a name, for Windows and URLs: leave it out"
            )
    if name[0] in ". " or name[-1] in ". ":
        raise InvalidRequest(f"{shown}: a name can't begin or end with a dot or a space")
    if _DEVICE.fullmatch(name):
        raise InvalidRequest(f"{shown} is a device on Windows, with any ending: use another name")
    if any("\ud800" <= letter <= "\udfff" for letter in name):
        raise InvalidRequest(f"{shown} is no UTF-8: use another name")
    size_bytes = len(name.encode())
    if size_bytes > LONGEST_BYTES:
        raise InvalidRequest(
            f"a name of {size_bytes} bytes: shorten it to {LONGEST_BYTES} bytes at most"
        )
    if unicodedata.normalize("NFC", name) != name:
        raise InvalidRequest(
            f"{shown}: an accent is a character by itself: type the accented letter (Unicode NFC)"
        )
    scripts = {_script(letter, shown) for letter in name if letter not in _COMMON}
    if len(scripts) > 1 and not scripts <= _JAPANESE:
        mixed = " and ".join(sorted(script.capitalize() for script in scripts))
        raise InvalidRequest(
            f"{shown} mixes {mixed} letters, which may look the same: use those of one script"
        )


def _script(letter: str, shown: str) -> str:
    """The script of a letter; InvalidRequest for everything that is no plain letter."""
    name = unicodedata.name(letter, "unnamed character")
    script = re.split("[ -]", name)[0]
    plain = (
        (unicodedata.category(letter) in ("Lu", "Ll", "Lo") or letter == _LONG_VOWEL)
        and unicodedata.normalize("NFKC", letter) == letter
        and script in _SCRIPTS
    )
    if script == "LATIN":
        base = unicodedata.normalize("NFD", letter)[0]
        plain = plain and (base.isascii() or letter in _LATIN_WITHOUT_BASE)
    if script == "HANGUL":  # its single parts can be combined, or invisible
        plain = plain and name.startswith("HANGUL SYLLABLE")
    if not plain:
        raise InvalidRequest(
            f"{shown}: {name.lower()} (U+{ord(letter):04X}) can't be in a name: "
            "use plain letters, digits, '-', '_', '.' and spaces"
        )
    return script


def check_siblings(name: str, siblings: Iterable[str]) -> None:
    """Return if ``name`` can't be taken for one of the names beside it.

    InvalidRequest (EINVAL): it is there already, or differs only by upper and lower case, by
    Unicode normalisation, or by letters that look the same. Siblings may be any file names
    (surrogateescape).
    """
    keys = _keys(name)
    for sibling in siblings:
        if sibling == name:
            raise InvalidRequest(f"'{name}' is there already: use another name")
        if any(mine == other for mine, other in zip(keys, _keys(sibling), strict=True)):
            shown = f"'{sibling}'" if sibling.isprintable() else ascii(sibling)
            raise InvalidRequest(
                f"'{name}' looks like {shown}, which is there already (upper and lower case, "
                "accents and look-alikes count as the same): use another name"
            )


def _keys(name: str) -> tuple[str, str]:
    """Names that share one of these look the same, as they are or with the case changed."""
    if name.isascii():  # most are: quick
        return _skeleton(name).lower(), _skeleton(name.lower())
    plain = unicodedata.normalize("NFKC", name)
    return _skeleton(plain).casefold(), _skeleton(plain.casefold())


def _skeleton(name: str) -> str:
    if name.isascii():
        looks = name.translate(_LOOKS_LIKE)
    else:
        looks = unicodedata.normalize("NFD", name).translate(_LOOKS_LIKE)
        looks = unicodedata.normalize("NFC", looks)
    return " ".join(looks.split())
