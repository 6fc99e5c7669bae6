"""Configuration files, mount options and runtime directories."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from modamafs import config
from modamafs.config import Config, HookSection, MountSpec, mount_spec, parse_config
from modamafs.errors import ConfigurationError

FILE = Path("/store/.modama/config.toml")
HOOK = '[hooks.a]\non = ["sealed"]\ncommand = ["ls"]\n'


def test_no_file_is_an_empty_file(tmp_path: Path) -> None:
    assert config.load_config(tmp_path) == Config()
    assert config.load_config(tmp_path / "missing") == Config()


@pytest.mark.parametrize(
    ("uid", "directory", "file", "is_store"),
    [
        (0, 0o755, 0o644, True),
        (0, 0o700, 0o600, True),
        (0, 0o775, 0o644, False),
        (0, 0o757, 0o644, False),
        (0, 0o755, 0o664, False),
        (0, 0o755, 0o646, False),
        (2000, 0o755, 0o644, False),
    ],
)
def test_only_a_configuration_that_nobody_else_can_write_makes_a_store(
    tmp_path: Path, uid: int, directory: int, file: int, is_store: bool
) -> None:
    above = tmp_path / ".modama"
    above.mkdir()
    (above / "config.toml").touch()
    os.chown(above / "config.toml", uid, -1)
    above.chmod(directory)
    (above / "config.toml").chmod(file)
    assert config.is_store(tmp_path) is is_store
    os.chown(above / "config.toml", 0, -1)
    os.chown(above, uid, -1)
    assert config.is_store(tmp_path) is is_store


def test_no_link_makes_a_store(tmp_path: Path) -> None:
    assert not config.is_store(tmp_path)
    elsewhere = tmp_path / "elsewhere" / ".modama"
    elsewhere.mkdir(parents=True)
    (elsewhere / "config.toml").touch()
    assert config.is_store(tmp_path / "elsewhere")
    (tmp_path / ".modama").symlink_to(elsewhere)
    assert not config.is_store(tmp_path)
    (tmp_path / ".modama").unlink()
    (tmp_path / ".modama").mkdir()
    (tmp_path / ".modama/config.toml").symlink_to(elsewhere / "config.toml")
    assert not config.is_store(tmp_path)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda above: os.chown(above, 2000, -1),
        lambda above: os.chown(above / "config.toml", 2000, -1),
        lambda above: above.chmod(0o775),
        lambda above: above.chmod(0o757),
        lambda above: (above / "config.toml").chmod(0o664),
        lambda above: (above / "config.toml").chmod(0o646),
        lambda above: (
            (above / "config.toml").rename(above / "x") and (above / "config.toml").symlink_to("x")
        ),
        lambda above: above.rename(above.parent / "x") and above.symlink_to("x"),
        lambda above: (above / "config.toml").unlink() or os.mkfifo(above / "config.toml", 0o600),
    ],
)
def test_hooks_are_read_from_what_only_root_can_write(
    tmp_path: Path, spoil: Callable[[Path], object]
) -> None:
    assert config.load_hooks(tmp_path) == {}
    above = tmp_path / ".modama"
    above.mkdir(mode=0o755)
    assert config.load_hooks(tmp_path) == {}
    (above / "config.toml").write_text(HOOK)
    (above / "config.toml").chmod(0o644)
    assert config.load_hooks(tmp_path) == {"a": HookSection(on=("sealed",), command=("ls",))}
    spoil(above)
    with pytest.raises(ConfigurationError, match=r"config\.toml: hooks are run only where"):
        config.load_hooks(tmp_path)


def test_a_store_that_is_a_file_has_no_configuration(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert config.load_config(tmp_path / "file") == Config()


def test_the_default_file_says_what_holds_without_it() -> None:
    text = config.DEFAULT_FILE
    assert parse_config(text.encode(), FILE) == Config()
    written = re.sub(r"^# (\w+ = )", r"\1", text, flags=re.MULTILINE)
    document = tomllib.loads(written)
    tables = ("links", "hooks")
    sections = {name: type(getattr(Config(), name)) for name in document if name not in tables}
    assert {*sections, *tables} == {*Config.__struct_fields__}
    for name, structure in sections.items():
        assert {*document[name]} == {*structure.__struct_fields__}
    examples = {"stewards": ["group"], "landing": ["publisher"], "links": [*document["links"]]}
    for name, keys in examples.items():  # these are none
        for key in keys:
            del document[name][key]
    assert {*document} == {*Config.__struct_fields__}
    for name, structure in sections.items():
        assert msgspec.convert(document[name], structure) == getattr(Config(), name)
    assert parse_config(written.encode(), FILE).links, "the examples are valid templates"
    hooked = re.sub(r"^# (\w+\.\w+ = )", r"\1", text, flags=re.MULTILINE)
    assert {*tomllib.loads(hooked)["hooks"]["nextcloud"]} == {*HookSection.__struct_fields__}
    assert parse_config(hooked.encode(), FILE).hooks, "so are those of hooks"


def test_settings_are_read() -> None:
    text = b'[mount]\nlog_level = "debug"\nentry_timeout_s = 5\n[stewards]\ngroup = "curators"\n'
    read = parse_config(text, FILE)
    assert read.mount.log_level == "debug"
    assert read.mount.entry_timeout_s == 5.0
    assert read.mount.attribute_timeout_s == 1.0
    assert read.stewards.group == "curators"


@pytest.mark.parametrize(
    ("text", "place", "why"),
    [
        ("[links]\nview = 1\n", "line 2, key links.view", "a link is NAME ="),
        ('[links]\nview = "ftp://a/{path}"\n', "line 2, key links.view", "begin with http"),
        ('[links]\nview = "https://a/{nothing}"\n', "line 2, key links.view", "{nothing}"),
        ('[hooks]\nsealed = ["ls"]\n', "line 2, key hooks.sealed", "a hook is NAME.on"),
        ('[hooks]\n"a b".on = ["sealed"]\n', "line 1, key hooks.a b", "a hook is NAME.on"),
        ('[hooks]\na.on = ["sealed"]\n', "line 1, key hooks.a:", "needs command"),
        ('[hooks.a]\ncommand = ["ls"]\n', "line 1, key hooks.a:", "needs on"),
        ('[hooks.a]\non = []\ncommand = ["ls"]\n', "line 2, key hooks.a.on", "sealed, unsealed"),
        (HOOK.replace("sealed", "opened"), "line 2, key hooks.a.on", "sealed, unsealed"),
        (HOOK + 'shell = "sh"\n', "line 4, key hooks.a.shell", "on, command, user, timeout_s"),
        (HOOK + "timeout_s = 0\n", "line 4, key hooks.a.timeout_s", "> 0"),
        (HOOK + 'user = ""\n', "line 4, key hooks.a.user", "length >= 1"),
        (HOOK.replace('["ls"]', '"ls"'), "line 3, key hooks.a.command", "Expected `array`"),
        (HOOK.replace('["ls"]', "[]"), "line 3, key hooks.a.command", "the program"),
        (HOOK.replace('"ls"', '"{store}/x"'), "line 3, key hooks.a.command", "always the same"),
        (HOOK.replace('"ls"', '"ls", "{name}"'), "line 3, key hooks.a.command", "{name}"),
        (HOOK.replace('"ls"', '"ls", "{path"'), "line 3, key hooks.a.command", "{{"),
        (HOOK.replace('"ls"', '"ls", "{path}"'), "line 3, key hooks.a.command", 'begin with "-"'),
        (HOOK.replace('"ls"', '"l\\u0000s"'), "line 3, key hooks.a.command", "NUL"),
        ('[landing]\nname = "a/b"\n', "line 2, key landing.name", "regex"),
        ("[mount]\nguard = 1\n", "line 2, key mount.guard", "Expected `bool`"),
        ("\n[mount]\n\nnonsense = 1\n", "line 4, key mount.nonsense", "no such key"),
        ("[mount]\n[mounts]\nguard = true\n", "line 2, key mounts", "no such section"),
        ("mount = 1\n", "line 1, key mount", "is a section"),
        ("[mount]\nlog_level = 'loud'\n", "line 2, key mount.log_level", "debug, info"),
        ("# x\nmount.entry_timeout_s = -1\n", "line 2, key mount.entry_timeout_s", ">= 0"),
        ("[mount]\nentry_timeout_s = nan\n", "line 2, key mount.entry_timeout_s", ">= 0"),
        ("#\nmount = {guard = 'x'}\n", "line 2, key mount.guard", "Expected `bool`"),
        ("[mount]\nruntime_dir = 'run'\n", "line 2, key mount.runtime_dir", "regex '^/'"),
        ("[mount]\nguard = true\nguard = true\n", "line 3:", "not valid TOML"),
        ("[mount]\n\nguard true\n", "line 3:", "not valid TOML"),
        ("[mount]\nguard", "line 2:", "not valid TOML"),
    ],
)
def test_errors_name_file_line_and_key(text: str, place: str, why: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        parse_config(text.encode(), FILE)
    message = refused.value.message
    assert message.startswith(f"{FILE}, {place}")
    assert why in message
    assert "\n" not in message


def test_errors_name_the_line_that_is_no_text() -> None:
    with pytest.raises(ConfigurationError, match=r"config\.toml, line 2: not UTF-8"):
        parse_config("[mount]\n# ü".encode("latin-1"), FILE)


def spec(*options: str, configuration: Config | None = None) -> MountSpec:
    return mount_spec("/store", "/mnt", configuration or Config(), options)


def test_options_overrule_the_configuration() -> None:
    configuration = parse_config(b"[mount]\nentry_timeout_s = 5\nguard = false\n", FILE)
    assert spec(configuration=configuration).entry_timeout_s == 5
    assert not spec(configuration=configuration).guard
    assert spec("guard,entry_timeout_s=2", configuration=configuration).guard
    assert spec("entry_timeout_s=7", "entry_timeout_s=2").entry_timeout_s == 2


def test_options_of_mount_8_become_flags() -> None:
    assert spec("rw,defaults,noauto,nofail,_netdev,user,users,x-systemd.automount").flags == 0
    assert spec("nosuid,nodev,noexec,noatime").flags == 2 | 4 | 8 | 1024
    assert spec("nosuid,suid,noatime,relatime,atime").flags == 1 << 21


@pytest.mark.parametrize("options", ["ro", "read_only", "read_only=yes", "rw,ro"])
def test_read_only_is_known_to_the_kernel_as_well(options: str) -> None:
    assert spec(options).read_only
    assert spec(options).flags == config.MS_RDONLY
    assert not spec(options, "rw").read_only
    assert spec(options, "rw").flags == 0


@pytest.mark.parametrize(
    ("option", "why"),
    [
        ("color=red", "unknown mount option 'color=red'"),
        ("remount", "unknown mount option 'remount'"),
        ("ro=1", "unknown mount option 'ro=1'"),
        ("flags=3", "unknown mount option 'flags=3'"),
        ("store=/", "unknown mount option 'store=/'"),
        ("guard=perhaps", "write on or off"),
        ("view", "needs a value"),
        ("log_level=loud", "debug, info"),
        ("entry_timeout_s=soon", "entry_timeout_s=soon"),
        ("entry_timeout_s=-1", ">= 0"),
    ],
)
def test_wrong_options_are_named(option: str, why: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        spec(f"rw,{option},noatime")
    assert why in refused.value.message


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/", "-"),
        ("/srv/data", "srv-data"),
        ("//srv///data/", "srv-data"),
        ("/srv/er-c data", r"srv-er\x2dc\x20data"),
        ("/.hidden/.x", r"\x2ehidden-.x"),
        ("/ü", r"\xc3\xbc"),
        ("/raw\udcff", r"raw\xff"),
    ],
)
def test_runtime_directories_are_named_as_systemd_names_units(path: str, name: str) -> None:
    assert config.escape_path(path) == name


def test_the_runtime_directory_can_be_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MODAMAFS_RUNTIME_DIR", raising=False)
    elsewhere = parse_config(b"[mount]\nruntime_dir = '/var/run/x'", FILE)
    assert config.runtime_dir("/data") == Path("/run/modamafs/data")
    assert config.runtime_dir("/data", elsewhere) == Path("/var/run/x/data")
    monkeypatch.setenv("MODAMAFS_RUNTIME_DIR", "/tmp/y")
    assert config.runtime_dir("/data", elsewhere) == Path("/tmp/y/data")


def test_a_mount_spec_comes_back_as_it_was(tmp_path: Path) -> None:
    saved = mount_spec("/st\udcffore", "/mnt", Config(), ["ro,view=group-7,nodev"])
    config.save_mount_spec(saved, tmp_path)
    assert config.load_mount_spec(tmp_path) == saved
    assert [path.name for path in tmp_path.iterdir()] == ["mount.json"]
    assert msgspec.structs.asdict(saved)["view"] == "group-7"


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"store": 1, "mountpoint": "/"}'])
def test_a_broken_mount_spec_says_so(tmp_path: Path, text: str) -> None:
    (tmp_path / "mount.json").write_text(text)
    with pytest.raises(ConfigurationError, match=r"mount\.json"):
        config.load_mount_spec(tmp_path)


def test_escaping_is_systemds(request: pytest.FixtureRequest) -> None:
    paths = ["/srv/er-c data", "/", "/a-b/.x/ü", "/.x", "/x~y", "/a:b_c.d"]
    try:
        done = subprocess.run(
            ["systemd-escape", "--path", *paths], capture_output=True, text=True, check=True
        )
    except FileNotFoundError:
        request.applymarker(pytest.mark.xfail(reason="no systemd-escape here", run=False))
        return
    assert done.stdout.split() == [config.escape_path(path) for path in paths]
