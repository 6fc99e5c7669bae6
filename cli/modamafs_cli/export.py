"""``modamafs export``: hand a mount on to others by Samba, NFS or Nextcloud."""

from __future__ import annotations

import os
import shlex
import subprocess
import urllib.parse
from pathlib import Path

import click

from modamafs.errors import InvalidRequest, ModamaError
from modamafs.exports import nextcloud, nfs, place, samba, servers
from modamafs.exports.client import Client
from modamafs.exports.nfs_client import NfsClient
from modamafs.exports.share import Share
from modamafs.exports.smb_client import SmbClient
from modamafs.exports.webdav_client import WebDavClient
from modamafs_cli import _export_demo
from modamafs_cli._common import emit, json_option
from modamafs_cli._export import checked, mount_of, of_share, tell_steps

dry_run_option = click.option("--dry-run", is_flag=True, help="Only say what would be done.")
replace_option = click.option(
    "--replace", is_flag=True, help="Also where the share is one of another directory."
)
password_option = click.option(
    "--password", envvar="MODAMAFS_PASSWORD", prompt=True, hide_input=True, show_envvar=True,
    help="Better in the environment than here; without any, you are asked.",
)  # fmt: skip
writable_option = click.option(
    "--writable", metavar="DIRECTORY", default="",
    help="In the share: where a file is made and removed again; its root.",
)  # fmt: skip
server_option = click.option("--server", default="127.0.0.1", show_default=True)


@click.group("export")
def command() -> None:
    """Hand a mount on to others: a network drive, an NFS path, a Nextcloud folder.

    \b
    Each of samba, nfs and nextcloud has
      show     print the configuration, with the reasons
      install  write it where the server reads it
      check    ask the running server, as a client

    \b
    Example:
      modamafs export samba install --name data /data
    """


command.add_command(_export_demo.command)


# --- Samba ----------------------------------------------------------------------------------------


@command.group("samba")
def samba_group() -> None:
    """A network drive for Windows, macOS and Linux, by Samba."""


smb_directory_option = click.option(
    "--directory", type=click.Path(path_type=Path), default=Path("/etc/samba"), show_default=True,
    help="Where smb.conf is.",
)  # fmt: skip


@samba_group.command("show")
@of_share
@click.option(
    "--private", type=click.Path(path_type=Path), metavar="DIRECTORY",
    help="A whole configuration, to try it out with an smbd of its own in this directory.",
)  # fmt: skip
@click.option("--port", default=4450, show_default=True, help="Of that one.")
@json_option
def samba_show(shown: Share, private: Path | None, port: int, as_json: bool) -> None:
    """Print the share of PATH for smb.conf.

    \b
    Examples:
      modamafs export samba show --name data /data
      modamafs export samba show --private /tmp/try --port 4450 /data >/tmp/try/smb.conf
    """
    if private is None:
        text = samba.section(shown)
    else:
        private = private.absolute()
        text = _how_to_try_samba(private, port) + samba.private([shown], private, port)
    _show(shown, text, as_json=as_json)


def _how_to_try_samba(directory: Path, port: int) -> str:
    there = shlex.quote(str(directory))
    return f"""\
# To try it out, as root (USER is a user of this machine):
#   mkdir -p {there}/{{{",".join(samba.DIRECTORIES)}}}
#   smbpasswd -c {there}/smb.conf -a USER
#   smbd --foreground --no-process-group --configfile={there}/smb.conf
#   smbclient -p {port} -U USER //127.0.0.1/SHARE
"""


@samba_group.command("install")
@of_share
@smb_directory_option
@replace_option
@dry_run_option
@json_option
def samba_install(
    shown: Share,
    directory: Path,
    replace: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Write the share of PATH where smbd reads it; what is there is kept.

    \b
    Example:
      modamafs export samba install --name data --dry-run /data
    """
    main = _main_file(directory / "smb.conf", "samba")
    own = samba.own_file(directory, shown)
    steps = [
        place.of_own_file(
            own, place.headed("samba", shown.path, samba.section(shown)), shown.path,
            replace=replace,
        ),
        place.of_line(main, samba.include(directory, shown), shown.name),
    ]  # fmt: skip
    if not own.exists() and shown.name.lower() in samba.sections(_testparm(main)):
        raise InvalidRequest(f"{main} has a share [{shown.name}] already: choose another --name")
    tell_steps(
        steps,
        [
            "",
            "then: smbcontrol all reload-config",
            f"      modamafs export samba check --name {shown.name} --user USER {shown.path}",
        ],
        dry_run=dry_run,
        as_json=as_json,
    )


def _testparm(configuration: Path) -> str:
    testparm = servers.program("testparm", "samba-common-bin")
    done = subprocess.run(
        [testparm, "--suppress-prompt", str(configuration)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise ModamaError(f"{configuration} is not in order: {lines[-1] if lines else 'testparm'}")
    return done.stdout


@samba_group.command("uninstall")
@click.argument("name")
@smb_directory_option
@dry_run_option
@json_option
def samba_uninstall(name: str, directory: Path, dry_run: bool, as_json: bool) -> None:
    """Take the share NAME away again.

    \b
    Example:
      modamafs export samba uninstall data
    """
    own = directory / "modamafs" / f"{name}.conf"
    _uninstall(own, directory / "smb.conf", name, "smbcontrol all reload-config", dry_run, as_json)


@samba_group.command("check")
@of_share
@server_option
@click.option("--port", default=445, show_default=True)
@click.option("--user", required=True, help="A user of Samba.")
@password_option
@writable_option
@json_option
@click.pass_context
def samba_check(
    ctx: click.Context,
    shown: Share,
    server: str,
    port: int,
    user: str,
    password: str,
    writable: str,
    as_json: bool,
) -> None:
    """Ask the running smbd, as Windows does, whether the share of PATH is as it should be.

    \b
    Example:
      MODAMAFS_PASSWORD=… modamafs export samba check --name data --user alice /data
    """

    def connect() -> Client:
        return SmbClient(server, port, shown.name, user, password)

    checked(ctx, shown, connect, writable, as_json=as_json)


# --- NFS ------------------------------------------------------------------------------------------


@command.group("nfs")
def nfs_group() -> None:
    """An NFS path for Linux and macOS, by NFS-Ganesha."""


nfs_directory_option = click.option(
    "--directory", type=click.Path(path_type=Path), default=Path("/etc/ganesha"),
    show_default=True, help="Where ganesha.conf is.",
)  # fmt: skip
protocols_option = click.option(
    "--protocols", type=click.Choice(["4", "3,4"]), default="4", show_default=True,
    help="NFSv3 takes rpcbind, and can't lock.",
)  # fmt: skip
squash_option = click.option(
    "--squash", type=click.Choice(["Root_Squash", "No_Root_Squash", "All_Squash"]),
    default="Root_Squash", show_default=True, help="Whom root of a client is.",
)  # fmt: skip


@nfs_group.command("show")
@of_share
@protocols_option
@squash_option
@click.option("--kernel", is_flag=True, help="For the kernel's server: a line of exports(5).")
@click.option("--clients", default="10.0.0.0/24", show_default=True, help="Of that line.")
@click.option(
    "--private", type=click.Path(path_type=Path), metavar="DIRECTORY",
    help="A whole configuration, to try it out with a ganesha of its own in this directory.",
)  # fmt: skip
@click.option("--port", default=12049, show_default=True, help="Of that one.")
@json_option
def nfs_show(
    shown: Share,
    protocols: str,
    squash: str,
    kernel: bool,
    clients: str,
    private: Path | None,
    port: int,
    as_json: bool,
) -> None:
    """Print the export of PATH for ganesha.conf, or for exports(5).

    \b
    Examples:
      modamafs export nfs show --name data /data
      modamafs export nfs show --kernel --clients 192.168.7.0/24 /data
    """
    if kernel:
        text = nfs.kernel_export(shown, clients)
    elif private is None:
        text = nfs.export(shown, protocols=protocols, squash=squash) + nfs.ONCE + nfs.CLOSING
    else:
        private = private.absolute()
        there = shlex.quote(str(private))
        text = f"""\
# To try it out, as root:
#   mkdir -p {there}/recovery
#   ganesha.nfsd -F -f {there}/ganesha.conf -L {there}/log -p {there}/pid
#   nfs-ls 'nfs://127.0.0.1/{shown.name}?nfsport={port}&version=4'
""" + nfs.private([shown], private, port, squash=squash)
    _show(shown, text, as_json=as_json)


@nfs_group.command("install")
@of_share
@protocols_option
@squash_option
@nfs_directory_option
@replace_option
@dry_run_option
@json_option
def nfs_install(
    shown: Share,
    protocols: str,
    squash: str,
    directory: Path,
    replace: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Write the export of PATH where ganesha reads it; what is there is kept.

    \b
    Example:
      modamafs export nfs install --name data --dry-run /data
    """
    main = _main_file(directory / "ganesha.conf", nfs.PACKAGES)
    own = nfs.own_file(directory, shown)
    content = place.headed("nfs", shown.path, nfs.export(shown, protocols=protocols, squash=squash))
    steps = [
        place.of_own_file(own, content, shown.path, replace=replace),
        place.of_line(main, nfs.include(directory, shown), shown.name),
    ]
    for other in [main, *sorted((directory / "modamafs").glob("*.conf"))]:
        taken = None if other == own else nfs.taken(other.read_text(), shown)
        if taken:
            raise InvalidRequest(f"{other} has {taken} already: choose another --name")
    tell_steps(
        steps,
        [
            *_once_for_all(main),
            "",
            "then: systemctl reload-or-restart nfs-ganesha",
            f"      modamafs export nfs check --name {shown.name} {shown.path}",
        ],
        dry_run=dry_run,
        as_json=as_json,
    )


def _once_for_all(main: Path) -> list[str]:
    """What Ganesha needs for all of its exports, and takes one time only."""
    if "MDCACHE" in main.read_text():
        return []
    return ["", f"once, for all exports, add to {main}:", "", *nfs.CLOSING.splitlines()]


@nfs_group.command("uninstall")
@click.argument("name")
@nfs_directory_option
@dry_run_option
@json_option
def nfs_uninstall(name: str, directory: Path, dry_run: bool, as_json: bool) -> None:
    """Take the export NAME away again.

    \b
    Example:
      modamafs export nfs uninstall data
    """
    own = directory / "modamafs" / f"{name}.conf"
    then = "systemctl reload-or-restart nfs-ganesha"
    _uninstall(own, directory / "ganesha.conf", name, then, dry_run, as_json)


@nfs_group.command("check")
@of_share
@server_option
@click.option("--port", default=2049, show_default=True)
@click.option("--nfs-version", type=click.Choice(["3", "4"]), default="4", show_default=True)
@click.option("--uid", type=int, help="As whom; you.")
@click.option("--gid", type=int, help="Your group.")
@writable_option
@json_option
@click.pass_context
def nfs_check(
    ctx: click.Context,
    shown: Share,
    server: str,
    port: int,
    nfs_version: str,
    uid: int | None,
    gid: int | None,
    writable: str,
    as_json: bool,
) -> None:
    """Ask the running NFS server whether the export of PATH is as it should be.

    \b
    Example:
      modamafs export nfs check --name data --uid 2000 --gid 2000 --writable tem/demo /data
    """
    who = int(os.environ.get("SUDO_UID", os.getuid())) if uid is None else uid
    group = int(os.environ.get("SUDO_GID", os.getgid())) if gid is None else gid

    def connect() -> Client:
        return NfsClient(server, port, shown.name, version=int(nfs_version), uid=who, gid=group)

    checked(ctx, shown, connect, writable, as_json=as_json)


# --- Nextcloud ------------------------------------------------------------------------------------


@command.group("nextcloud")
def nextcloud_group() -> None:
    """A folder of Nextcloud, as External Storage."""


group_option = click.option(
    "--group", "groups", multiple=True, metavar="GROUP",
    help="Of Nextcloud: who sees it (may be given several times); everybody.",
)  # fmt: skip
occ_option = click.option(
    "--occ", metavar="COMMAND",
    help="How occ is called; without it, that of /var/www, as its owner.",
)  # fmt: skip


@nextcloud_group.command("show")
@of_share
@group_option
@json_option
def nextcloud_show(shown: Share, groups: tuple[str, ...], as_json: bool) -> None:
    """Print the calls of occ that make PATH a folder of Nextcloud.

    \b
    Example:
      modamafs export nextcloud show --name data --group microscopy /data
    """
    _show(shown, nextcloud.script(shown, groups), as_json=as_json)


@nextcloud_group.command("install")
@of_share
@group_option
@occ_option
@dry_run_option
@json_option
def nextcloud_install(
    shown: Share,
    groups: tuple[str, ...],
    occ: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Make PATH a folder of the Nextcloud on this machine, by calling occ.

    \b
    Example:
      modamafs export nextcloud install --name data --occ 'sudo -u www-data php /srv/nc/occ' /data
    """
    if shown.read_only and not mount_of(shown.path).spec.read_only:
        raise InvalidRequest(
            f"Nextcloud would write to {shown.path}, whatever it says to people: mount it "
            "read-only for that ('modamafs mount --read-only', or a view), and export that"
        )
    caller = nextcloud.Occ(shlex.split(occ) if occ else nextcloud.default_occ())
    done = nextcloud.install(caller, shown, groups, dry_run=dry_run)
    lines = ["(a dry run: nothing is changed)", *done] if dry_run else done
    emit({"dry_run": dry_run, "calls": done}, "\n".join(lines), as_json=as_json)


@nextcloud_group.command("check")
@of_share
@click.option(
    "--url", required=True, help="Of the user's files: https://HOST/remote.php/dav/files/USER"
)
@click.option("--user", required=True, help="A user of Nextcloud.")
@password_option
@writable_option
@json_option
@click.pass_context
def nextcloud_check(
    ctx: click.Context,
    shown: Share,
    url: str,
    user: str,
    password: str,
    writable: str,
    as_json: bool,
) -> None:
    """Ask the running Nextcloud (or another WebDAV server) whether PATH is as it should be.

    \b
    Example:
      MODAMAFS_PASSWORD=… modamafs export nextcloud check --name data --user alice \\
        --url https://cloud.example.org/remote.php/dav/files/alice /data
    """
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidRequest(f"{url!r} is no address: write https://HOST/PATH")
    is_secure = parts.scheme == "https"
    host, port = parts.hostname, parts.port or (443 if is_secure else 80)

    def connect() -> Client:
        root = f"{parts.path.rstrip('/')}/{shown.name}"
        return WebDavClient(host, port, root, user, password, is_secure=is_secure)

    checked(ctx, shown, connect, writable, as_json=as_json)


# --- what they share ------------------------------------------------------------------------------


def _show(shown: Share, text: str, *, as_json: bool) -> None:
    report = {
        "name": shown.name,
        "path": str(shown.path),
        "mountpoint": str(shown.mountpoint),
        "read_only": shown.read_only,
        "configuration": text,
    }
    emit(report, text.rstrip(), as_json=as_json)


def _main_file(path: Path, packages: str) -> Path:
    if not path.is_file():
        raise ModamaError(
            f"{path} is not there: 'apt install {packages}', or name its directory with --directory"
        )
    if not os.access(path.parent, os.W_OK):
        raise ModamaError(f"{path.parent} can't be written to: run this as root")
    return path


def _uninstall(own: Path, main: Path, name: str, then: str, dry_run: bool, as_json: bool) -> None:
    steps = place.of_removal(own, main, name)
    tell_steps(steps, ["", f"then: {then}"], dry_run=dry_run, as_json=as_json)
