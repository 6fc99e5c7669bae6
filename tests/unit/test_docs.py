"""The man page names every command, every option and every setting."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from modamafs import config
from modamafs_cli.main import Commands, cli
from tests.attack.doors import DOORS, EVERY_DOOR

PAGE = (Path(__file__).parents[2] / "docs/modamafs.8.md").read_text()
SEALS = (Path(__file__).parents[2] / "docs/seals.md").read_text()
SECTIONS = (
    "NAME", "SYNOPSIS", "DESCRIPTION", "COMMANDS", "MOUNT OPTIONS", "FILES", "EXIT STATUS",
    "EXAMPLES", "SEE ALSO",
)  # fmt: skip


def commands() -> dict[str, click.Command]:
    """All of them, by name."""
    assert isinstance(cli, Commands)
    context = click.Context(cli)
    found = {name: cli.get_command(context, name) for name in cli.list_commands(context)}
    return {name: command for name, command in found.items() if command}


def section(heading: str, level: str = "##") -> str:
    """The text below a heading, up to the next one of the same level or above."""
    match = re.search(
        rf"^{level} {re.escape(heading)}\n(.*?)(?=^#{{2,{len(level)}}} |\Z)",
        PAGE,
        re.MULTILINE | re.DOTALL,
    )
    assert match, f"the man page has no section '{heading}'"
    return match[1]


@pytest.mark.parametrize("heading", SECTIONS)
def test_the_usual_sections(heading: str) -> None:
    assert section(heading).strip()


@pytest.mark.parametrize("name", sorted(commands()))
def test_each_command_with_all_its_options(name: str) -> None:
    text = section(f"modamafs {name}", "###")
    for parameter in commands()[name].params:
        if isinstance(parameter, click.Argument):
            assert parameter.name
            assert f"*{parameter.name.upper()}*" in text
        else:
            for option in parameter.opts:
                assert f"**{option}**" in text, f"{name} {option}"


def test_no_command_that_does_not_exist() -> None:
    assert set(re.findall(r"^### modamafs (\w+)$", PAGE, re.MULTILINE)) == set(commands())


def test_each_mount_option() -> None:
    text = section("MOUNT OPTIONS")
    named = set(re.findall(r"\*\*([\w.=-]+)\*\*", text))
    for option in config._OURS:
        assert re.search(rf"^\*\*{option}\*\*", text, re.MULTILINE), option
    assert {*config._SETS, *config._CLEARS, *config._NOT_OURS} <= named
    assert {prefix for prefix in config._NOT_OURS_PREFIXES if prefix != "user="} <= named


def test_each_setting_of_the_configuration() -> None:
    text = section("FILES")
    for name in config.Config.__struct_fields__:
        assert rf"\[{name}\]" in text
    sections = (
        config.MountSection, config.StewardsSection, config.LandingSection, config.ViewsSection
    )  # fmt: skip
    for structure in sections:
        for key in structure.__struct_fields__:
            assert f"**{key}**" in text, key


def test_the_table_of_doors_is_complete() -> None:
    assert f"{len(DOORS)} doors" in SEALS
    table = SEALS.split("### Every door")[1]
    for phrase in EVERY_DOOR:
        assert phrase.split(" of a sealed tree")[0] in table, phrase


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(test_\w+)`", SEALS))))
def test_each_test_that_the_seals_page_names(name: str) -> None:
    tests = Path(__file__).parents[1]
    assert any(f"def {name}(" in path.read_text() for path in tests.rglob("test_*.py"))


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(?:tests/)?([\w/]+\.py)`", SEALS))))
def test_each_file_that_the_seals_page_names(name: str) -> None:
    root = Path(__file__).parents[2]
    assert any(
        (place / name).exists()
        for place in (root / "tests", root / "tests/attack", root / "modamafs")
    )
