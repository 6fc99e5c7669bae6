"""Real servers over real mounts, and clients of each."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from modamafs.exports.client import Client
from modamafs.exports.nfs_client import NfsClient
from modamafs.exports.servers import Ganesha, Identity, Samba, Server, WebDav
from modamafs.exports.share import Share, share
from modamafs.exports.smb_client import SmbClient
from modamafs.exports.webdav_client import WebDavClient
from tests.support.mounts import Mount
from tests.support.servers import PASSWORD, PEOPLE, Ganesha3, accounts
from tests.support.targets import Workshop
from tests.support.users import ALICE, ROOT, TEAM

PROTOCOLS = ("smb", "nfs4", "nfs3", "webdav")
SHARE = "data"
SQUASH = "Root_Squash"


@dataclass
class Exported:
    """A directory, as it is and behind servers; each is started when it is first asked for."""

    directory: Path
    """The servers' own things."""
    share: Share
    store: Path
    """The same directory on the store; of a bare one, the same path."""
    mount: Mount | None
    servers: dict[tuple[str, str, str], Server] = field(default_factory=dict)
    stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    @property
    def root(self) -> Path:
        """As local programs see it."""
        return self.share.path

    def server(self, protocol: str, who: str = "alice", *, squash: str = SQUASH) -> Server:
        """The running one. Of WebDAV there is one for each user, as a web server is one user; of
        NFS one for each ``squash``."""
        key = (
            protocol,
            who if protocol == "webdav" else "",
            squash if protocol.startswith("nfs") else "",
        )
        if key not in self.servers:
            self.servers[key] = self.stack.enter_context(self._make(*key))
        return self.servers[key]

    def _make(self, protocol: str, who: str, squash: str) -> Server:
        place = self.directory / f"{protocol}{who}{squash}"
        if protocol == "nfs4":
            return Ganesha(place, [self.share], squash=squash)
        if protocol == "nfs3":
            return Ganesha3(place, [self.share], squash=squash)
        server: Server
        if protocol == "smb":
            server = Samba(place, [self.share], dict.fromkeys(PEOPLE, PASSWORD))
        else:
            server = WebDav(
                place, self.share, dict.fromkeys(PEOPLE, PASSWORD), acts_as=Identity(*PEOPLE[who])
            )
        server.environment = accounts(self.directory)
        return server

    @contextlib.contextmanager
    def client(
        self, protocol: str, who: str = "alice", *, squash: str = SQUASH
    ) -> Iterator[Client]:
        """A new connection. ``who`` may be root over NFS: nobody to the server, unless ``squash``
        says otherwise."""
        server = self.server(protocol, who, squash=squash)
        address, port, name = "127.0.0.1", server.port, self.share.name
        if protocol == "smb":
            with SmbClient(address, port, name, who, PASSWORD) as smb:
                yield smb
        elif protocol == "webdav":
            with WebDavClient(address, port, name, who, PASSWORD) as webdav:
                yield webdav
        else:
            uid, gid, groups = PEOPLE[who] if who != "root" else ROOT
            inside = server.inside() if isinstance(server, Ganesha3) else contextlib.nullcontext()
            version = 3 if protocol == "nfs3" else 4
            with (
                inside,
                NfsClient(
                    address, port, name, version=version, uid=uid, gid=gid, groups=groups
                ) as nfs,
            ):
                yield nfs


@contextlib.contextmanager
def exported(
    workshop: Workshop, name: str, *, mounted: bool = True, options: tuple[str, ...] = ()
) -> Iterator[Exported]:
    """A new store in which Alice and her team may do everything, and what is exported of it."""
    store = workshop.image("ext4").root / name
    store.mkdir()
    os.chown(store, ALICE.uid, TEAM)
    store.chmod(0o2775)
    with contextlib.ExitStack() as stack:
        mount = None
        root = store
        if mounted:
            mount = stack.enter_context(Mount(store, workshop.mountpoint(name), *options))
            root = mount.root
        directory = workshop.mountpoint(f"{name}-servers")
        directory.mkdir()
        mountpoint = root if mounted else Path("/")
        made = Exported(directory, share(SHARE, root, mountpoint), store, mount)
        stack.enter_context(made.stack)
        yield made


@pytest.fixture(scope="session")
def plain(workshop: Workshop, new_name: Callable[[], str]) -> Iterator[Exported]:
    """A mount with nothing sealed in it, for all tests that keep to directories of their own."""
    with exported(workshop, f"exported-{new_name()}") as made:
        yield made


@pytest.fixture(scope="session")
def bare(workshop: Workshop, new_name: Callable[[], str]) -> Iterator[Exported]:
    """The same servers over a bare directory: the control."""
    with exported(workshop, f"bare-{new_name()}", mounted=False) as made:
        yield made


@pytest.fixture(params=PROTOCOLS)
def protocol(request: pytest.FixtureRequest) -> str:
    """Each of them."""
    return str(request.param)
