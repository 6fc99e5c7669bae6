"""Text for people."""

from __future__ import annotations


def printable(name: str) -> str:
    """A file name for people: what a terminal would obey is escaped."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in name
    )
