"""Nextcloud: a share as External Storage of the type Local, by calls of ``occ``.

Source: Nextcloud's administration manual, "External storage" and "occ"; what was measured with
Nextcloud 31 is in ``docs/exports/nextcloud.md``.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from modamafs.errors import InvalidRequest, ModamaError
from modamafs.exports.share import Share

PLACES = (Path("/var/www/nextcloud/occ"), Path("/var/www/html/occ"))
TIMEOUT_S = 120.0
ALL, ONCE = "0", "1"
"""When Nextcloud looks whether files have changed: never, or once for each request."""


class Call(NamedTuple):
    """One call of ``occ`` and why it is made."""

    arguments: tuple[str, ...]
    why: str


def calls(share: Share, mount_id: str, groups: Sequence[str]) -> list[Call]:
    """What there is to call once there is a mount; ``mount_id``: its number."""
    restricted = [
        Call(
            ("files_external:applicable", mount_id, f"--add-group={group}"),
            "only this group sees it",
        )
        for group in groups
    ]
    return [
        Call(
            ("files_external:option", mount_id, "filesystem_check_changes", ONCE),
            "a mount that occ made never looks for what others changed",
        ),
        Call(
            ("files_external:option", mount_id, "enable_sharing", "true"),
            "people may share what is in it",
        ),
        Call(
            ("files_external:option", mount_id, "readonly", "true" if share.read_only else "false"),
            "as the share says",
        ),
        *restricted,
        Call(("files_external:verify", mount_id), "can it be reached?"),
    ]


ENABLE = Call(("app:enable", "files_external"), "comes with Nextcloud, and is off")
UMASK = Call(
    ("config:system:set", "localstorage.umask", "--type=integer", "--value=2"),
    "what is uploaded can be written by its group, as on the other protocols",
)


def create(share: Share) -> Call:
    """Make the mount; it prints the number."""
    return Call(
        (
            "files_external:create", f"/{share.name}", "local", "null::null",
            "-c", f"datadir={share.path}", "--output=json",
        ),
        "a directory of this machine",
    )  # fmt: skip


def script(share: Share, groups: Sequence[str]) -> str:
    """All of it for a shell, to be read and run by hand."""
    lines = [
        "# Nextcloud reads and writes as its web server's user: let that user into the groups of",
        "# the projects, with 'usermod -aG GROUP www-data', and start php-fpm again.",
        "# Replace ID by the number that files_external:create prints.",
        "occ='sudo -u www-data php /var/www/nextcloud/occ'",
    ]
    for call in (ENABLE, UMASK, create(share), *calls(share, "ID", groups)):
        lines += [f"# {call.why}", f"$occ {shlex.join(call.arguments)}"]
    if not groups:
        lines += [
            "# Everybody sees it. For one group only:",
            "# $occ files_external:applicable ID --add-group=GROUP",
        ]
    return "\n".join(lines) + "\n"


class Occ:
    """Nextcloud's command."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = list(command)

    def call(self, *arguments: str) -> str:
        """What it prints. Raises ModamaError with what it complains of."""
        try:
            done = subprocess.run(
                [*self._command, *arguments],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
                timeout=TIMEOUT_S,
                cwd="/",
            )
        except FileNotFoundError as error:
            raise ModamaError(f"{self._command[0]} is not there: name occ with --occ") from error
        except subprocess.TimeoutExpired as error:
            raise ModamaError(
                f"'occ {shlex.join(arguments)}' does not end within {TIMEOUT_S:.0f} s"
            ) from error
        if done.returncode:
            words = (done.stderr.strip() or done.stdout.strip()).splitlines()
            raise ModamaError(
                f"'occ {shlex.join(arguments)}' fails: {words[-1] if words else done.returncode}"
            )
        return done.stdout

    def mounts(self) -> list[dict[str, Any]]:
        """The external storages that there are."""
        found = json.loads(self.call("files_external:list", "--all", "--output=json"))
        return [mount for mount in found if isinstance(mount, dict)]


def default_occ() -> list[str]:
    """The command for the Nextcloud of this machine, as its owner. Raises ModamaError."""
    for place in PLACES:
        if place.exists():
            return ["sudo", "-u", f"#{place.stat().st_uid}", "php", str(place)]
    raise ModamaError(
        f"no Nextcloud in {' or '.join(str(place.parent) for place in PLACES)}: "
        "name its command, as with --occ 'sudo -u www-data php /srv/nextcloud/occ'"
    )


def install(occ: Occ, share: Share, groups: Sequence[str], *, dry_run: bool) -> list[str]:
    """Make the mount, or set what an earlier one of ours lacks; returns what was called.

    Raises InvalidRequest: the name is taken, or a storage reaches the same files.
    """
    done = []

    def call(one: Call) -> str:
        done.append(f"occ {shlex.join(one.arguments)}")
        return "" if dry_run else occ.call(*one.arguments)

    call(ENABLE)
    number = _existing(occ, share)
    if number is None:
        answer = call(create(share))
        number = "ID" if dry_run else _number(answer)
    call(UMASK)
    for one in calls(share, number, groups):
        call(one)
    return done


def _number(answer: str) -> str:
    found = json.loads(answer)
    return str(found["mount_id"] if isinstance(found, dict) else found)


def _existing(occ: Occ, share: Share) -> str | None:
    own = os.path.normpath(share.path)
    found = None
    for mount in occ.mounts():
        directory = str(mount.get("configuration", {}).get("datadir", ""))
        there = os.path.normpath(directory) if directory else ""
        is_same = there == own
        if str(mount.get("mount_point", "")).strip("/") == share.name:
            if not is_same:
                raise InvalidRequest(
                    f"Nextcloud has an external storage /{share.name} already, of {there or '?'}: "
                    "choose another --name"
                )
            found = str(mount["mount_id"])
        elif there and os.path.commonpath([there, own]) in (there, own):
            raise InvalidRequest(
                f"Nextcloud's external storage {mount.get('mount_point')} reaches the same files "
                f"({there}): two of them share file ids, and a link of one gives rights in the "
                "other; mount a view of its own for this one"
            )
    return found
