"""``links.json``: the links for programs."""

from __future__ import annotations

from modamafs.landing.facts import Facts
from modamafs.landing.links import urls
from modamafs.landing.words import json_text

NAME = "links.json"
MEDIA_TYPE = "application/json"
ABOUT = "The same links for programs: name → URL"
NEEDS_ENTRIES = False


def render(facts: Facts) -> bytes:
    """An object: the URL of each link by its name."""
    return json_text(dict(urls(facts)))
