"""A grey picture as a PNG (ISO/IEC 15948), without a library for it."""

from __future__ import annotations

import struct
import zlib

from modamafs.extraction.readers import PNG_SIGNATURE


def grey_png(width: int, height: int, pixels: bytes) -> bytes:
    """``pixels``: one byte each, row by row; ``width * height`` of them."""
    if len(pixels) != width * height or not pixels:
        raise ValueError(f"{len(pixels)} pixels are no picture of {width} × {height}")
    rows = b"".join(b"\0" + pixels[start : start + width] for start in range(0, len(pixels), width))
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        PNG_SIGNATURE
        + _chunk(b"IHDR", header)
        + _chunk(b"IDAT", zlib.compress(rows, 9))
        + _chunk(b"IEND", b"")
    )


def _chunk(kind: bytes, body: bytes) -> bytes:
    checksum = zlib.crc32(kind + body)
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)
