"""What tells one store from another on this machine, so that what is kept of each lies apart."""

from __future__ import annotations

import struct

from blake3 import blake3

from modamafs.store.backing import Store


def store_id(store: Store) -> str:
    """16 hexadecimal digits that tell one store from every other on this machine."""
    root = store.volume.attributes(store.root_fd)
    # Not statvfs.f_fsid: ext4's and btrfs's are made of the UUID, but 0 elsewhere is no error.
    fsid = store.statvfs().f_fsid
    words = struct.pack("=QQQ", fsid & 0xFFFFFFFFFFFFFFFF, root.ino, root.generation)
    return blake3(words).hexdigest(8)
