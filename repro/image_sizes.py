"""Height and width of an encoded image, from its first bytes."""

from __future__ import annotations

from struct import error, unpack_from

PNG = b"\x89PNG\r\n\x1a\n"
JPEG = b"\xff\xd8"
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Markers of frame headers: SOF0 to SOF15, without DHT, JPG and DAC (ITU-T T.81, table B.1)."""
ALONE = frozenset((0x01, *range(0xD0, 0xD8)))
"""Markers without a segment: TEM, RST0 to RST7."""
HEAD = 2**16
"""Bytes of a file that tell its size, nearly always."""


def stored_size(data: bytes) -> tuple[int, int] | None:
    """Height and width as the file has them, not turned by EXIF; None where these bytes do not tell them."""
    try:
        if data.startswith(PNG):
            width, height = unpack_from(">8x4x4xII", data)
            return height, width
        return _jpeg(data) if data.startswith(JPEG) else None
    except error:
        return None


def _jpeg(data: bytes) -> tuple[int, int] | None:
    at = 2
    while True:
        fill, marker = unpack_from(">BB", data, at)
        if fill != 0xFF:
            return None
        if marker in FRAMES:
            height, width = unpack_from(">HH", data, at + 5)
            return (height, width) if height else None  # zero: told after the first scan
        if marker == 0xFF:
            at += 1
        elif marker in ALONE:
            at += 2
        else:
            at += 2 + max(2, unpack_from(">H", data, at + 2)[0])
