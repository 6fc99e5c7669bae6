"""``datacite.json``: what DataCite needs to register a DOI.

DataCite Metadata Schema 4.5 in JSON, as its REST API takes it in ``data.attributes``. A DOI is
given when it is registered, so there is none here, unless the record has one among its links.
"""

from __future__ import annotations

import re
from typing import Any

from modamafs.catalog import Person
from modamafs.landing import seal as seals
from modamafs.landing.facts import Facts
from modamafs.landing.links import given, safe_url, urls
from modamafs.landing.words import (
    creators,
    day,
    description,
    files,
    json_text,
    keywords,
    license_url,
    media_type,
    project_people,
    published,
    size,
    title,
    valid,
)

NAME = "datacite.json"
MEDIA_TYPE = "application/vnd.datacite.datacite+json"
ABOUT = "What DataCite needs to register a DOI (Metadata Schema 4.5)"

SCHEMA = "http://datacite.org/schema/kernel-4"
UNKNOWN = "(:unav)"
"""DataCite's own word for a value that is not available."""


def render(facts: Facts) -> bytes:
    """Valid in itself also where nothing is known."""
    text = description(facts).strip()
    project = facts.project
    found: dict[str, Any] = {
        "doi": _doi(facts),
        "url": urls(facts).get("view"),
        "types": {
            "resourceTypeGeneral": "Dataset" if facts.kind in ("session", "directory")
            else "Collection",
            "resourceType": facts.kind,
        },
        "creators": [_person(person) for person in creators(facts)],
        "titles": _titles(facts),
        "publisher": {"name": facts.publisher or UNKNOWN},
        "publicationYear": published(facts)[:4],
        "subjects": [{"subject": word} for word in keywords(facts)],
        "contributors": [
            _person(person)
            | {"contributorType": "ProjectLeader" if project and person == project.owner
               else "ProjectMember"}
            for person in project_people(facts)
        ],
        "dates": _dates(facts),
        "alternateIdentifiers": _identifiers(facts),
        "relatedIdentifiers": [
            {"relatedIdentifier": url, "relatedIdentifierType": "URL",
             "relationType": "References"}
            for url in dict.fromkeys(filter(None, map(safe_url, given(facts).values())))
        ],
        "sizes": _sizes(facts),
        "formats": sorted({media_type(entry.path) for entry in files(facts)}),
        "rightsList": _rights(facts),
        "descriptions": [{"description": text, "descriptionType": "Abstract"}] if text else [],
        "schemaVersion": SCHEMA,
    }  # fmt: skip
    return json_text(valid({key: value for key, value in found.items() if value}))


def _person(person: Person) -> dict[str, Any]:
    found: dict[str, Any] = {"name": person.name or UNKNOWN, "nameType": "Personal"}
    if person.orcid:
        found["nameIdentifiers"] = [
            {
                "nameIdentifier": f"https://orcid.org/{person.orcid}",
                "nameIdentifierScheme": "ORCID",
                "schemeUri": "https://orcid.org",
            }
        ]
    if person.affiliation:
        found["affiliation"] = [{"name": person.affiliation}]
    return found


def _titles(facts: Facts) -> list[dict[str, str]]:
    found = [{"title": title(facts)}]
    if facts.project and facts.kind in ("session", "directory"):
        found.append({"title": facts.project.title, "titleType": "Other"})
    return found


def _dates(facts: Facts) -> list[dict[str, str]]:
    if facts.session:
        found = [{"date": facts.session.date, "dateType": "Collected"}]
    else:
        found = [{"date": day(facts), "dateType": "Created"}]
    seal = seals.of(facts)
    at = str(seal.record.get("sealed_at") or "") if seal else ""
    if re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", at):
        found.append({"date": at, "dateType": "Issued", "dateInformation": "sealed"})
    return found


def _identifiers(facts: Facts) -> list[dict[str, str]]:
    """The record's UUID, the path in the store, and the seal's content hash."""
    found = []
    record = {"session": facts.session, "project": facts.project}.get(facts.kind)
    if record and record.id:
        found.append((record.id, "UUID"))
    if facts.path:
        found.append((facts.path, "Path in the store"))
    seal = seals.of(facts)
    content = seal.record.get("content_hash") if seal else None
    if seal and content:
        whose = "" if seal.path == "." else f" of {seal.path}"
        found.append((str(content), f"Content hash{whose}"))
    return [
        {"alternateIdentifier": value, "alternateIdentifierType": kind} for value, kind in found
    ]


def _doi(facts: Facts) -> str | None:
    for url in given(facts).values():
        found = re.fullmatch(r"https?://(?:dx\.)?doi\.org/(10\.\d{4,9}/\S+)", url)
        if found and facts.kind in ("session", "project"):
            return found[1]
    return None


def _sizes(facts: Facts) -> list[str]:
    seal = seals.of(facts)
    if seal and "size_bytes" in seal.record and "file_count" in seal.record:
        return [size(seal.record["size_bytes"]), f"{seal.record['file_count']} files"]
    if facts.entries_left_out or facts.kind not in ("session", "directory"):
        return []
    listed = list(files(facts))
    return list(dict.fromkeys([size(sum(entry.size_bytes for entry in listed)),
                               f"{len(listed)} files"]))  # fmt: skip


def _rights(facts: Facts) -> list[dict[str, str]]:
    text = facts.project.license if facts.project else None
    if not text:
        return []
    found = {"rights": text}
    url = license_url(facts)
    if url:
        found["rightsUri"] = url
        if url.startswith("https://spdx.org/"):
            found |= {
                "rightsIdentifier": text,
                "rightsIdentifierScheme": "SPDX",
                "schemeUri": "https://spdx.org/licenses/",
            }
    return [found]
