"""``ro-crate-metadata.json``: the directory as a research object, RO-Crate 1.2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from modamafs.catalog import Measured, Person
from modamafs.landing.facts import Entry, Facts
from modamafs.landing.links import urls
from modamafs.landing.words import (
    common,
    creators,
    day,
    description,
    json_text,
    keywords,
    kind,
    license_url,
    measured,
    media_type,
    percent,
    project_people,
    published,
    title,
    utc,
    valid,
)

if TYPE_CHECKING:
    from rocrate.rocrate import ROCrate

NAME = "ro-crate-metadata.json"
MEDIA_TYPE = "application/ld+json"
ABOUT = "The directory as a research object (RO-Crate 1.2), with all files and values"

VERSION = "1.2"


def render(facts: Facts) -> bytes:
    """Paths in it are relative to the directory that it describes."""
    from rocrate.rocrate import ROCrate  # 0.1 s and 29 MB: only where a crate is read

    crate = ROCrate(version=VERSION)
    _Crate(crate, facts).describe()
    return json_text(valid(crate.metadata.generate()))


class _Crate:
    """The entities of one crate."""

    def __init__(self, crate: ROCrate, facts: Facts) -> None:
        self._crate = crate
        self._facts = facts
        self._values: dict[tuple[str, str, str | None], dict[str, str]] = {}

    def describe(self) -> None:
        """Everything."""
        facts, root = self._facts, self._crate.root_dataset
        found: dict[str, Any] = {
            "name": title(facts),
            "description": description(facts).strip() or _description(facts),
            "datePublished": published(facts),
            "dateCreated": day(facts),
            "dateModified": utc(facts.changed_ns),
            "license": self._license(),
            "author": [self._person(person) for person in creators(facts)],
            "keywords": ", ".join(keywords(facts)),
            "identifier": self._identifiers(),
            "url": urls(facts).get("view", ""),
            "publisher": self._add("#publisher", "Organization", {"name": facts.publisher})
            if facts.publisher else "",
            "isPartOf": self._project() if facts.kind in ("session", "directory") else "",
            "contributor": [self._person(person) for person in project_people(facts)]
            if facts.kind == "project" else "",
            "variableMeasured": self._all(measured(facts) | common(facts)),
        }  # fmt: skip
        for name, value in found.items():
            if value:
                root[name] = value
        self._measurement()
        for entry in facts.entries:
            self._entry(entry)

    def _add(self, identifier: str, kind: str, properties: Mapping[str, Any]) -> dict[str, str]:
        """An entity that is no file; a reference to it."""
        from rocrate.model import ContextEntity

        known = {name: value for name, value in properties.items() if value not in ("", None, [])}
        self._crate.add(ContextEntity(self._crate, identifier, {"@type": kind, **known}))
        return {"@id": identifier}

    def _person(self, person: Person) -> dict[str, str]:
        identifier = (
            f"https://orcid.org/{person.orcid}"
            if person.orcid
            else f"#person-{percent(person.user or person.name, '')}"
        )
        affiliation: Any = ""
        if person.affiliation:
            name = f"#organization-{percent(person.affiliation, '')}"
            affiliation = self._add(name, "Organization", {"name": person.affiliation})
        properties = {"name": person.name, "affiliation": affiliation}
        return self._add(identifier, "Person", properties)

    def _license(self) -> Any:
        text = self._facts.project.license if self._facts.project else None
        url = license_url(self._facts)
        if url:
            return self._add(url, "CreativeWork", {"name": text})
        return text or "No licence is recorded; ask the authors before using this."

    def _identifiers(self) -> list[str]:
        facts = self._facts
        record = {"session": facts.session, "project": facts.project}.get(facts.kind)
        return [known for known in (record and record.id, self._content_hash(".")) if known]

    def _content_hash(self, path: str) -> str | None:
        """Of what is sealed there: any faithful copy has the same."""
        hashes = [
            seal.record.get("content_hash") for seal in self._facts.seals if seal.path == path
        ]
        return str(hashes[0]) if hashes and hashes[0] else None

    def _project(self) -> Any:
        project = self._facts.project
        if project is None:
            return ""
        return self._add(
            "#project",
            "Collection",
            {
                "name": project.title,
                "identifier": project.id,
                "description": project.description.strip(),
                "author": self._person(project.owner),
                "contributor": [self._person(person) for person in project.members],
            },
        )

    def _measurement(self) -> None:
        """With what, by whom, and when the data was made."""
        session = self._facts.session
        if session is None:
            return
        sample: Any = ""
        if session.sample or session.sampledb_id is not None:
            sample = self._add(
                "#sample",
                "Thing",
                {
                    "name": session.sample or f"Sample {session.sampledb_id}",
                    "identifier": "" if session.sampledb_id is None else str(session.sampledb_id),
                    "url": urls(self._facts).get("sampledb", ""),
                },
            )
            self._crate.root_dataset["about"] = sample
        instrument: Any = ""
        if session.instrument:
            instrument = self._add("#instrument", "IndividualProduct", {"name": session.instrument})
        self._crate.root_dataset["mentions"] = self._add(
            "#measurement",
            "CreateAction",
            {
                "name": f"Measurement of {session.date}",
                "agent": self._person(session.owner),
                "instrument": instrument,
                "object": sample,
                "result": {"@id": "./"},
                "endTime": session.date,
            },
        )

    def _all(self, values: Mapping[str, Measured]) -> list[dict[str, str]]:
        return [self._value(key, value) for key, value in sorted(values.items())]

    def _value(self, key: str, value: Measured) -> dict[str, str]:
        """Files with the same value share one entity."""
        known = (key, repr(value.value), value.unit)
        if known not in self._values:
            self._values[known] = self._add(
                f"#value-{len(self._values) + 1}",
                "PropertyValue",
                {"name": key, "value": value.value, "unitText": value.unit},
            )
        return self._values[known]

    def _entry(self, entry: Entry) -> None:
        from rocrate.model import DataEntity

        identifier = percent(entry.path)
        if identifier == NAME:  # the crate's own
            return
        if entry.kind == "directory":
            properties: dict[str, Any] = {"@type": "Dataset", "name": entry.path}
            content_hash = self._content_hash(entry.path)
            if content_hash:
                properties["identifier"] = content_hash
            identifier += "/"
        elif entry.kind == "file":
            metadata = self._facts.metadata.get(entry.path)
            properties = {
                "@type": "File",
                "name": entry.path,
                "contentSize": str(entry.size_bytes),
                "encodingFormat": media_type(entry.path),
                "dateModified": utc(entry.mtime_ns),
            }
            if entry.b3:
                properties["identifier"] = f"blake3:{entry.b3}"
            if metadata and metadata.values:
                properties["additionalProperty"] = self._all(metadata.values)
        else:
            return
        self._crate.add(DataEntity(self._crate, identifier, properties))


def _description(facts: Facts) -> str:
    """RO-Crate wants one in any case."""
    session = facts.session
    if session and facts.kind == "session":
        with_what = f" with {session.instrument}" if session.instrument else ""
        return f"Measured{with_what} on {session.date}."
    return f"The {kind(facts)} {facts.path}." if facts.path else "A store of research data."
