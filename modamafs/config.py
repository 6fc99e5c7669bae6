"""What a mount is told: ``config.toml`` and ``-o`` options, read into frozen structures.

Every error is a ``ConfigurationError`` that says where (file, line, key, or the option) and what
would be right.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
import string
import tomllib
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from modamafs.errors import ConfigurationError
from modamafs.landing.links import check_template
from modamafs.placeholders import check_command

RUNTIME_DIR = "/run/modamafs"
INDEX_DIR = "/var/lib/modamafs"
CONFIG_FILE = Path(".modama/config.toml")
"""Where a store keeps its configuration, relative to its root."""

MS_RDONLY = 1 << 0
"""``mount(2)``: read-only."""
MS_NOSUID = 1 << 1
MS_NODEV = 1 << 2

Structure = TypeVar("Structure", bound=msgspec.Struct)
Seconds = Annotated[float, msgspec.Meta(ge=0, le=86400)]
LogLevel = Literal["debug", "info", "warning", "error"]


class MountSection(msgspec.Struct, frozen=True, kw_only=True):
    """``[mount]``: what holds for every mount of this store unless an option says otherwise."""

    attribute_timeout_s: Seconds = 1.0
    entry_timeout_s: Seconds = 1.0
    log_level: LogLevel = "info"
    guard: bool = True
    passthrough: bool = True
    runtime_dir: Annotated[str, msgspec.Meta(pattern="^/")] = RUNTIME_DIR


class WatchSection(msgspec.Struct, frozen=True, kw_only=True):
    """``[watch]``: noticing what changes on the store, whoever changes it."""

    enabled: bool = True
    timeout_s: Seconds = 300.0
    """How long clients may keep what they know while the store is watched."""
    notify_clients: bool = True
    """Whether who watches the mount (inotify, SMB clients) is told of what changes on the store."""


class IndexSection(msgspec.Struct, frozen=True, kw_only=True):
    """``[index]``: the file that answers questions about the store."""

    enabled: bool = True
    directory: Annotated[str, msgspec.Meta(pattern="^/")] = INDEX_DIR
    """What is above the directory of each store's index."""


class StewardsSection(msgspec.Struct, frozen=True, kw_only=True):
    """``[stewards]``: the people who may unseal; no group means root only."""

    group: Annotated[str, msgspec.Meta(min_length=1)] | None = None


Name = Annotated[str, msgspec.Meta(max_length=100, pattern=r"^[^/\x00]*$")]


class LandingSection(msgspec.Struct, frozen=True, kw_only=True):
    """``[landing]``: the landing directories."""

    name: Name = "landing"
    """Of the listed tree at the mount's root; empty: there is none."""
    listed: bool = False
    """Whether every directory lists its ``.modama``, for clients that can't name it."""
    publisher: str = ""
    """Who runs the store, as landing pages and data citations name it."""


class ViewsSection(msgspec.Struct, frozen=True, kw_only=True):
    """``[views]``: the directories of links by project, owner, instrument, date and metadata."""

    name: Name = "views"
    """Of the tree at the mount's root; empty: there is none."""


HookEvent = Literal["sealed", "unsealed", "verified", "damaged", "changed"]


class HookSection(msgspec.Struct, frozen=True, kw_only=True):
    """One hook of ``[hooks]``: a command that is run when something has happened."""

    on: Annotated[tuple[HookEvent, ...], msgspec.Meta(min_length=1)]
    command: tuple[str, ...]
    """Arguments with placeholders, see ``placeholders.py``; the first is the program."""
    user: Annotated[str, msgspec.Meta(min_length=1)] | None = None
    """Who runs it; None is root."""
    timeout_s: Annotated[float, msgspec.Meta(gt=0, le=86400)] = 60.0
    """After which it is killed, with all that it has started."""


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """``<store>/.modama/config.toml``; without a file, everything has its default."""

    mount: MountSection = MountSection()
    watch: WatchSection = WatchSection()
    index: IndexSection = IndexSection()
    stewards: StewardsSection = StewardsSection()
    landing: LandingSection = LandingSection()
    views: ViewsSection = ViewsSection()
    links: dict[str, str] = {}
    """Templates of links, by name; see docs/landing.md."""
    hooks: dict[str, HookSection] = {}
    """By name; see docs/hooks.md. To be run they are read with ``load_hooks``."""


class ViewSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What a view said when it was mounted: it holds until it is unmounted, whatever the view is by
    then."""

    projects: tuple[str, ...]
    """``area/project``; one: its directory is the root."""
    root_ino: int = 0
    """Of one project: its directory, wherever it is moved to; ``root_generation`` goes with it."""
    root_generation: int = 0
    uid: int | None = None
    """Who is shown to own everything; None: owners are as they are."""
    gid: int | None = None


class MountSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One mount: everything that its processes have to know. Kept in ``mount.json``."""

    store: str
    """Absolute, without symbolic links."""
    mountpoint: str
    """Absolute, without symbolic links."""
    read_only: bool = False
    passthrough: bool = True
    """Ask the kernel for passthrough (where it is not offered there is none)."""
    channel: bool = True
    """False: plain libfuse, no symbol interposition."""
    guard: bool = True
    view: str | None = None
    """The name of a view of the store; None: all of it."""
    shows: ViewSpec | None = None
    """What the view says; set when it is mounted, see ``store/views.py``."""
    attribute_timeout_s: Seconds = 1.0
    entry_timeout_s: Seconds = 1.0
    watch: bool = True
    """Watch the store, and let clients keep what they know for longer."""
    watch_timeout_s: Seconds = 300.0
    """For how long, then; what has a timeout of 0 keeps it."""
    notify_clients: bool = True
    """Raise inotify events on the mount for what changes on the store."""
    index_dir: str | None = None
    """Where the index of the store is; None: there is none."""
    log_level: LogLevel = "info"
    allow_other: bool = True
    flags: int = 0
    """``MS_…`` flags of ``mount(2)``; MS_RDONLY is set exactly when ``read_only`` is."""


# --- the file -------------------------------------------------------------------------------------

LINK_NAME = re.compile(r"[A-Za-z0-9_-]{1,60}")
_HEADER = re.compile(r"""^\s*\[\s*([\w."' -]+?)\s*\]""")
_ASSIGNMENT = re.compile(r"""^\s*([\w."' -]+?)\s*=""")
_TOML_LINE = re.compile(r"^(.*) \(at line (\d+), column \d+\)$", re.DOTALL)


def is_store(directory: Path) -> bool:
    """Whether a directory has a configuration that the caller may believe.

    It is root's, or the caller's own, and nobody else may write to it: who has a project could put
    one there, and have root write where it says.
    """
    try:
        found = [(directory / name).lstat() for name in (CONFIG_FILE.parent, CONFIG_FILE)]
    except OSError:
        return False
    kinds = [stat.S_IFMT(one.st_mode) for one in found]
    return kinds == [stat.S_IFDIR, stat.S_IFREG] and all(
        one.st_uid in (0, os.geteuid()) and not one.st_mode & 0o022 for one in found
    )


def load_config(store: Path) -> Config:
    """Read the configuration of ``store``; a missing file is an empty one.

    Raises ``ConfigurationError`` with the file, the line and the key.
    """
    path = store / CONFIG_FILE
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return Config()
    except OSError as error:
        raise ConfigurationError(f"{path}: can't be read: {error.strerror}") from error
    return parse_config(data, path)


def load_hooks(store: Path) -> dict[str, HookSection]:
    """The hooks of ``store``, if they may be believed: what they say is done as root.

    ConfigurationError: somebody else than root could have written them; or as ``load_config``.
    """
    path = store / CONFIG_FILE
    with contextlib.ExitStack() as opened:

        def open_roots(name: Path | str, flags: int, above: int | None = None) -> int:
            fd = os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
            opened.callback(os.close, fd)
            found = os.fstat(fd)
            if above is not None and (found.st_uid != 0 or found.st_mode & 0o022):
                raise PermissionError
            return fd

        try:
            top = open_roots(store, os.O_PATH | os.O_DIRECTORY)
            records = open_roots(CONFIG_FILE.parent.name, os.O_PATH | os.O_DIRECTORY, top)
            fd = open_roots(CONFIG_FILE.name, os.O_RDONLY | os.O_NONBLOCK, records)
            data = os.pread(fd, os.fstat(fd).st_size, 0)
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise ConfigurationError(
                f"{path}: hooks are run only where this file and the directory that it lies in "
                "are root's, no symbolic links, and nobody else may write to them"
            ) from error
    return parse_config(data, path).hooks


def parse_config(data: bytes, path: Path) -> Config:
    """Check and convert the text of a configuration file; ``path`` is for the messages."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigurationError(f"{path}, line {line}: not UTF-8: save it as UTF-8") from error
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        match = _TOML_LINE.match(str(error))
        line = int(match[2]) if match else len(text.splitlines())
        what = match[1] if match else str(error)
        raise ConfigurationError(f"{path}, line {line}: not valid TOML: {what}") from error
    sections: dict[str, Any] = {}
    for name, table in document.items():
        structure = _field_types(Config).get(name)
        if structure is None:
            raise _wrong(path, text, name, f"no such section; there is {_names(Config)}")
        if not isinstance(table, dict):
            raise _wrong(path, text, name, f"is a section: write [{name}] on a line of its own")
        if name == "links":
            sections[name] = _links(table, path, text)
            continue
        if name == "hooks":
            sections[name] = _hooks(table, path, text)
            continue
        sections[name] = _section(structure, name, table, path, text)
    return msgspec.convert(sections, Config, from_attributes=True)


def _links(table: dict[str, Any], path: Path, text: str) -> dict[str, str]:
    for key, value in table.items():
        if not isinstance(value, str) or not LINK_NAME.fullmatch(key):
            why = 'a link is NAME = "https://…", NAME of letters, digits, - and _'
            raise _wrong(path, text, f"links.{key}", why)
        try:
            check_template(value)
        except ValueError as error:
            raise _wrong(path, text, f"links.{key}", str(error)) from error
    return table


def _hooks(table: dict[str, Any], path: Path, text: str) -> dict[str, HookSection]:
    hooks = {}
    for name, settings in table.items():
        key = f"hooks.{name}"
        if not isinstance(settings, dict) or not LINK_NAME.fullmatch(name):
            why = "a hook is NAME.on = […] and NAME.command = […], NAME of letters, digits, - and _"
            raise _wrong(path, text, key, why)
        for needed in ("on", "command"):
            if needed not in settings:
                raise _wrong(path, text, key, f"this hook needs {needed} = […], too")
        hooks[name] = hook = _section(HookSection, key, settings, path, text)
        try:
            check_command(hook.command)
        except ValueError as error:
            raise _wrong(path, text, f"{key}.command", str(error)) from error
    return hooks


def _section(
    structure: type[Structure], name: str, table: dict[str, Any], path: Path, text: str
) -> Structure:
    types = _field_types(structure)
    for key, value in table.items():
        if key not in types:
            why = f"no such key; [{name}] has {_names(structure)}"
            raise _wrong(path, text, f"{name}.{key}", why)
        try:
            msgspec.convert(value, types[key])
        except msgspec.ValidationError as error:
            raise _wrong(path, text, f"{name}.{key}", _why(error, types[key])) from error
    return msgspec.convert(table, structure)


def _why(error: msgspec.ValidationError, expected: Any) -> str:
    if typing.get_origin(expected) is Literal:
        return f"write one of {', '.join(typing.get_args(expected))}"
    if expected == _field_types(HookSection)["on"]:
        return f"write a list of some of {', '.join(typing.get_args(HookEvent))}"
    return str(error)


def _wrong(path: Path, text: str, key: str, why: str) -> ConfigurationError:
    return ConfigurationError(f"{path}, line {_line_of(text, key)}, key {key}: {why}")


def _line_of(text: str, key: str) -> int:
    """The line that sets ``key``; the closest one above it when it is set inside a value."""
    table, closest = "", 1
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.match(line):
            table = name = _plain(header[1])
        elif assignment := _ASSIGNMENT.match(line):
            name = f"{table}.{_plain(assignment[1])}".lstrip(".")
        else:
            continue
        if name == key:
            return number
        if key.startswith(f"{name}."):
            closest = number
    return closest


def _plain(key: str) -> str:
    return re.sub(r"""["'\s]""", "", key)


def _field_types(structure: type[msgspec.Struct]) -> dict[str, Any]:
    return typing.get_type_hints(structure, include_extras=True)


def _names(structure: type[msgspec.Struct]) -> str:
    return ", ".join(structure.__struct_fields__)


DEFAULT_FILE = """\
# The configuration of this modamafs store. Every line that is commented out shows the default.

[mount]
# How long clients may keep what they know of a file, and of a name, without asking again.
# attribute_timeout_s = 1.0
# entry_timeout_s = 1.0

# debug, info, warning or error
# log_level = "info"

# Make an empty mount point unusable (mode 0000, immutable) for as long as nothing is mounted on it.
# guard = true

# Let the kernel read and write without the daemon (Linux 6.9 and later).
# passthrough = true

# Sockets and the state of running mounts; lost at a reboot, as the mounts are.
# runtime_dir = "/run/modamafs"

[watch]
# Notice what is changed directly on the store, and let clients keep what they know for longer.
# enabled = true
# timeout_s = 300.0

# Have SMB clients, and programs that watch the mount by inotify, told of it as well.
# notify_clients = true

[index]
# Find files, and tell what has changed. Each store's index has a directory of its own in this one;
# it may be deleted at any time.
# enabled = true
# directory = "/var/lib/modamafs"

[stewards]
# Members of this group may unseal; without it, root only.
# group = "modama-stewards"

[landing]
# The listed tree of landing directories at the mount's root; "" leaves it out.
# name = "landing"

# List '.modama' in every directory, for people whose programs can't open what is not listed.
# listed = false

# Who runs this store, for landing pages and citations.
# publisher = "Example Microscopy Centre"

[views]
# The tree of links by project, owner, instrument, date and metadata; "" leaves it out.
# name = "views"

[links]
# Where landing pages lead to; see docs/landing.md for what may stand in braces.
# nextcloud = "https://cloud.example.org/index.php/apps/files/files?dir=/{path}"
# jupyterhub = "https://jupyter.example.org/hub/user-redirect/lab/tree/{path}"
# libertem = "https://libertem.example.org/#action=open&path={path_query}"
# sampledb = "https://sampledb.example.org/objects/{sampledb_id}"
# elabftw = "https://elab.example.org/experiments.php?mode=view&id={elabftw_id}"
# view = "https://data.example.org/{path}/"

[hooks]
# Commands that are run when something has happened: sealed, unsealed, verified, damaged, or changed
# (on the store itself, not through a mount). No shell reads them; see docs/hooks.md for what may
# stand in braces. They are run as root where no user is named.
# nextcloud.on = ["sealed", "unsealed", "changed"]
# nextcloud.command = ["php", "/var/www/nextcloud/occ", "files:scan", "--path=/ann/files/T/{path}"]
# nextcloud.user = "www-data"
# nextcloud.timeout_s = 600
"""


# --- options --------------------------------------------------------------------------------------

# Flags of mount(2) by the option that sets them, and by the option that clears them (mount(8)).
_SETS = {
    "ro": MS_RDONLY,
    "nosuid": MS_NOSUID,
    "nodev": MS_NODEV,
    "noexec": 1 << 3,
    "sync": 1 << 4,
    "dirsync": 1 << 7,
    "noatime": 1 << 10,
    "nodiratime": 1 << 11,
    "silent": 1 << 15,
    "relatime": 1 << 21,
    "strictatime": 1 << 24,
    "lazytime": 1 << 25,
}
_CLEARS = {
    "rw": MS_RDONLY,
    "suid": _SETS["nosuid"],
    "dev": _SETS["nodev"],
    "exec": _SETS["noexec"],
    "async": _SETS["sync"],
    "atime": _SETS["noatime"],
    "diratime": _SETS["nodiratime"],
    "loud": _SETS["silent"],
    "norelatime": _SETS["relatime"],
    "nostrictatime": _SETS["strictatime"],
    "nolazytime": _SETS["lazytime"],
}
# For mount(8), fstab and systemd, not for a file system.
_NOT_OURS = {
    "defaults", "auto", "noauto", "nofail", "_netdev", "user", "nouser", "users", "owner",
    "noowner", "group", "nogroup",
}  # fmt: skip
_NOT_OURS_PREFIXES = ("x-", "X-", "comment=", "user=")

_OURS = (
    "read_only", "passthrough", "channel", "guard", "view", "attribute_timeout_s",
    "entry_timeout_s", "watch", "watch_timeout_s", "log_level", "allow_other",
)  # fmt: skip
_SWITCHES = {"on": True, "true": True, "yes": True, "1": True}
_SWITCHES |= {"off": False, "false": False, "no": False, "0": False}


def mount_spec(
    store: str, mountpoint: str, config: Config, options: Iterable[str] = ()
) -> MountSpec:
    """Put together what the configuration, and then each ``-o`` option, in order, say.

    ``options`` are ``key=value,key,…`` as after ``-o``. A switch without a value is switched on.
    Raises ``ConfigurationError`` that names the option.
    """
    section = config.mount
    settings: dict[str, Any] = {
        "attribute_timeout_s": section.attribute_timeout_s,
        "entry_timeout_s": section.entry_timeout_s,
        "log_level": section.log_level,
        "guard": section.guard,
        "passthrough": section.passthrough,
        "watch": config.watch.enabled,
        "watch_timeout_s": config.watch.timeout_s,
        "notify_clients": config.watch.notify_clients,
    }
    types = _field_types(MountSpec)
    flags = 0
    for option in (o.strip() for text in options for o in text.split(",")):
        key, has_value, value = option.partition("=")
        if not option or option in _NOT_OURS or option.startswith(_NOT_OURS_PREFIXES):
            continue
        if option in _SETS:
            flags |= _SETS[option]
        elif option in _CLEARS:
            flags &= ~_CLEARS[option]
        elif key not in _OURS:
            raise ConfigurationError(f"unknown mount option '{option}'; ours: {', '.join(_OURS)}")
        else:
            setting = _option_value(key, value if has_value else None, types[key])
            if key == "read_only":
                flags = flags | MS_RDONLY if setting else flags & ~MS_RDONLY
            else:
                settings[key] = setting
    read_only = bool(flags & MS_RDONLY)
    return MountSpec(
        store=store, mountpoint=mountpoint, read_only=read_only, flags=flags, **settings
    )


def _option_value(key: str, text: str | None, expected: Any) -> Any:
    if expected is bool:
        if text is None:
            return True
        if text.lower() not in _SWITCHES:
            raise ConfigurationError(f"mount option '{key}={text}': write on or off")
        return _SWITCHES[text.lower()]
    if not text:
        raise ConfigurationError(f"mount option '{key}' needs a value: {key}=…")
    try:
        return msgspec.convert(text, expected, strict=False)
    except msgspec.ValidationError as error:
        why = _why(error, expected)
        raise ConfigurationError(f"mount option '{key}={text}': {why}") from error


# --- the runtime directory ------------------------------------------------------------------------

_UNESCAPED = frozenset(string.ascii_letters + string.digits + ":_.")


def escape_path(path: str) -> str:
    """Make one file name of an absolute path, as ``systemd-escape --path`` does."""
    trimmed = path.strip("/")
    if not trimmed:
        return "-"
    escaped = []
    for position, byte in enumerate(os.fsencode(re.sub("/+", "/", trimmed))):
        character = chr(byte)
        if character == "/":
            escaped.append("-")
        elif character in _UNESCAPED and (position or character != "."):
            escaped.append(character)
        else:
            escaped.append(f"\\x{byte:02x}")
    return "".join(escaped)


def runtime_base(config: Config | None = None) -> Path:
    """Where the runtime directories are; ``MODAMAFS_RUNTIME_DIR`` (for tests) goes first."""
    configured = config.mount.runtime_dir if config else RUNTIME_DIR
    return Path(os.environ.get("MODAMAFS_RUNTIME_DIR", configured))


def runtime_dir(mountpoint: str, config: Config | None = None) -> Path:
    """The runtime directory of the mount at ``mountpoint`` (absolute), which may not exist yet."""
    return runtime_base(config) / escape_path(mountpoint)


def index_base(config: Config) -> Path | None:
    """What is above the stores' indexes; None: there are none. MODAMAFS_INDEX_DIR goes first."""
    return state_base(config) if config.index.enabled else None


def state_base(config: Config) -> Path:
    """What is above what is kept of each store on this machine, its index among it."""
    return Path(os.environ.get("MODAMAFS_INDEX_DIR", config.index.directory))


def save_mount_spec(spec: MountSpec, runtime: Path) -> None:
    """Write ``mount.json``, all or nothing."""
    write_json(runtime / "mount.json", msgspec.to_builtins(spec))


def load_mount_spec(runtime: Path) -> MountSpec:
    """Read ``mount.json`` (ENOENT: no mount has this runtime directory)."""
    return read_json(runtime / "mount.json", MountSpec)


def read_json(path: Path, structure: type[Structure]) -> Structure:
    """Read what ``write_json`` wrote; ``ConfigurationError`` when it is something else."""
    try:
        return msgspec.convert(json.loads(path.read_bytes()), structure)
    except (ValueError, msgspec.ValidationError) as error:
        raise ConfigurationError(f"{path}: {error}: unmount, and mount again") from error


def write_json(path: Path, value: Any) -> None:
    """Replace ``path`` in one step: readers see the old text or the new one.

    The standard library's ``json``, as file names that are no UTF-8 (surrogateescape) pass it.
    """
    temporary = path.with_name(f"{path.name}.new")
    temporary.write_text(json.dumps(value, indent=1) + "\n")
    temporary.replace(path)
