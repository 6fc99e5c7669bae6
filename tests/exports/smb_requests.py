"""Requests of SMB that few programs send, one each. Source: [MS-SMB2], [MS-FSCC]."""

from __future__ import annotations

import struct
from typing import Any

from smbprotocol.ioctl import CtlCode, IOCTLFlags, SMB2IOCTLRequest, SMB2IOCTLResponse
from smbprotocol.open import SMB2SetInfoRequest

from modamafs.exports.smb_client import SmbClient

# What is asked of an open entry: [MS-SMB2] 2.2.13.1.
READ_DATA, WRITE_DATA, APPEND_DATA = 0x1, 0x2, 0x4
READ_EA, WRITE_EA, DELETE_CHILD = 0x8, 0x10, 0x40
READ_ATTRIBUTES, WRITE_ATTRIBUTES = 0x80, 0x100
DELETE, READ_CONTROL, WRITE_DAC, WRITE_OWNER = 0x10000, 0x20000, 0x40000, 0x80000
MAXIMUM_ALLOWED, GENERIC_ALL, GENERIC_WRITE = 0x2000000, 0x10000000, 0x40000000

# What becomes of a name that is there, or is not.
SUPERSEDE, OPEN, CREATE, OPEN_IF, OVERWRITE, OVERWRITE_IF = range(6)

# How.
DIRECTORY_FILE, NON_DIRECTORY_FILE, DELETE_ON_CLOSE = 0x1, 0x40, 0x1000

SECURITY_INFORMATION = 3
"""The kind of SET_INFO that sets owners and ACLs."""
FILE_INFORMATION = 1


def ioctl(client: SmbClient, opened: Any, code: int, data: bytes = b"", room: int = 0) -> bytes:
    """FSCTL_…; ``room``: for how many bytes of answer."""
    request = SMB2IOCTLRequest()
    request["ctl_code"] = code
    request["file_id"] = opened.file_id
    request["max_output_response"] = room
    request["flags"] = IOCTLFlags.SMB2_0_IOCTL_IS_FSCTL
    request["buffer"] = data
    answer = SMB2IOCTLResponse()
    answer.unpack(client.send(opened, request)["data"].get_value())
    return bytes(answer["buffer"].get_value())


def set_sparse(client: SmbClient, opened: Any) -> None:
    """Holes may be made from now on."""
    ioctl(client, opened, CtlCode.FSCTL_SET_SPARSE, b"\x01")


def zero(client: SmbClient, opened: Any, offset: int, end: int) -> None:
    """Make a hole, or write zeros."""
    ioctl(client, opened, CtlCode.FSCTL_SET_ZERO_DATA, struct.pack("<QQ", offset, end))


def allocated(client: SmbClient, opened: Any, length: int) -> list[tuple[int, int]]:
    """Where there are bytes and no holes: offsets and lengths."""
    data = struct.pack("<QQ", 0, length)
    answer = ioctl(client, opened, CtlCode.FSCTL_QUERY_ALLOCATED_RANGES, data, 4096)
    return list(struct.iter_unpack("<QQ", answer))


def copy_chunk(client: SmbClient, source: Any, target: Any, length: int) -> None:
    """The server copies the first bytes of one file to another, itself."""
    key = ioctl(client, source, CtlCode.FSCTL_SRV_REQUEST_RESUME_KEY, room=32)[:24]
    chunks = key + struct.pack("<II", 1, 0) + struct.pack("<QQII", 0, 0, length, 0)
    ioctl(client, target, CtlCode.FSCTL_SRV_COPYCHUNK_WRITE, chunks, 12)


def set_raw_info(
    client: SmbClient,
    opened: Any,
    number: int,
    data: bytes,
    *,
    kind: int = FILE_INFORMATION,
    additional: int = 0,
) -> None:
    """SET_INFO of what smbprotocol has no structure for."""
    request = SMB2SetInfoRequest()
    request["info_type"] = kind
    request.fields["file_info_class"].enum_strict = False  # it knows only some of the numbers
    request["file_info_class"] = number
    request["additional_information"] = additional
    request["file_id"] = opened.file_id
    request["buffer"] = data
    client.send(opened, request)
