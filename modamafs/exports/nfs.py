"""NFS: an export of NFS-Ganesha for a share, a whole configuration to try it out, and exports(5).

Source: ganesha-export-config(8) and ganesha-vfs-config(8) of 4.3; what was measured is in
``docs/exports/nfs.md``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from modamafs.exports.share import Share

PACKAGES = "nfs-ganesha nfs-ganesha-vfs"


def export(share: Share, *, protocols: str = "4", squash: str = "Root_Squash") -> str:
    """The block of one share for ``ganesha.conf``.

    ``protocols``: "4", or "3,4", which takes rpcbind.
    """
    return f"""\
EXPORT {{
    # Stable for this share: clients' handles hold it, also when the server is started again.
    Export_Id = {share.number};
    Filesystem_id = {share.number}.{share.number};
    Path = "{share.path}";
    Pseudo = "/{share.name}";
    Tag = "{share.name}";
    Protocols = {protocols};
    Access_Type = {"RO" if share.read_only else "RW"};
    # Root of a client is nobody special. What is sealed, it can't change either way.
    Squash = {squash};
    SecType = sys;
    # Ganesha remembers modes and names for a minute otherwise: what was sealed, closed to others
    # or written on the store would be seen that late. (0 is at once, and small files take longer.)
    Attr_Expiration_Time = 1;
    # Ganesha asks the mount as root and judges by modes: what depends on who asks (views/mine,
    # unlisted private projects) is the same for everybody. Give each group a view mount of its
    # own ('modamafs view add', 'modamafs mount --view').
    FSAL {{ Name = VFS; }}
}}
"""


def private(
    shares: Iterable[Share],
    directory: Path,
    port: int,
    *,
    version_3: bool = False,
    squash: str = "Root_Squash",
) -> str:
    """A whole ``ganesha.conf``: a server of its own on an unprivileged port of this machine.

    ``version_3`` takes rpcbind: only inside a network namespace.
    """
    protocols = "3,4" if version_3 else "4"
    exports = "".join(export(one, protocols=protocols, squash=squash) for one in shares)
    return f"""\
NFS_CORE_PARAM {{
    NFS_Port = {port};
    Bind_addr = 127.0.0.1;
    Protocols = {protocols};
    # Only NFSv3 needs them, and they need rpcbind.
    Enable_NLM = false;
    Enable_RQUOTA = false;
    mount_path_pseudo = true;
}}
NFSV4 {{
    # There is nobody before the first start who could claim locks of an earlier one.
    Graceless = true;
    RecoveryBackend = fs;
    RecoveryRoot = "{directory}/recovery";
    Minor_Versions = 0, 1, 2;
    # Owners are numbers: no directory service is asked.
    Only_Numeric_Owners = true;
}}
{CLOSING}{exports}"""


CLOSING = """\
MDCACHE {
    # Ganesha keeps a file open that it has written to, though no client has: no session could be
    # sealed after that. So it closes, every second, what it does not need.
    FD_LWMark_Percent = 0;
    LRU_Run_Interval = 1;
}
"""
"""For all exports of a server."""
ONCE = "# Once in ganesha.conf, for all exports:\n"


def kernel_export(share: Share, clients: str = "10.0.0.0/24") -> str:
    """A line for exports(5), the kernel's own server; not tried with it (see the docs)."""
    access = "ro" if share.read_only else "rw"
    path = str(share.path).replace(" ", r"\040")
    return f"""\
# For the kernel's server: /etc/exports.d/{share.name}.exports. A FUSE file system has no device
# number that lasts, so fsid is mandatory; replace the clients by yours.
{path} {clients}({access},sync,no_subtree_check,fsid={share.uuid},root_squash)
"""


def own_file(directory: Path, share: Share) -> Path:
    """Where a share's export is kept; ``directory``: of ``ganesha.conf``."""
    return directory / "modamafs" / f"{share.name}.conf"


def include(directory: Path, share: Share) -> str:
    """The line of ``ganesha.conf`` that reads it."""
    return f'%include "{own_file(directory, share)}"'


def taken(text: str, share: Share) -> str | None:
    """What of a configuration is in the way of a share: its name, or its number; or None."""
    for key, value in re.findall(r"^\s*(Pseudo|Export_Id|Tag)\s*=\s*([^;]+);", text, re.M | re.I):
        plain = value.strip().strip('"')
        if key.lower() == "export_id":
            if plain.isdigit() and int(plain) == share.number:
                return f"Export_Id = {plain}"
        elif plain.strip("/") == share.name:
            return f"{key} = {value.strip()}"
    return None
