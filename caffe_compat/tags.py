"""Protobuf's wire format, tag by tag, without trusting a single length.

Rules: protobuf's encoding; groups, which no Caffe file has, are refused.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from typing import Any, NamedTuple

from google.protobuf.descriptor import FieldDescriptor

from caffe_compat.errors import BinaryError, Where

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
WIRE_NAMES = {VARINT: "varint", FIXED64: "64-bit", BYTES: "bytes", 3: "group", 4: "end of group", FIXED32: "32-bit"}
MAX_FIELDS = 500_000
MAX_NUMBER = (1 << 29) - 1
DAMAGED = "the file is cut short, damaged, or of another format: fetch it again"

_SIZES = {FIXED64: 8, FIXED32: 4}
_WIRES = {
    FieldDescriptor.TYPE_DOUBLE: FIXED64,
    FieldDescriptor.TYPE_FIXED64: FIXED64,
    FieldDescriptor.TYPE_SFIXED64: FIXED64,
    FieldDescriptor.TYPE_FLOAT: FIXED32,
    FieldDescriptor.TYPE_FIXED32: FIXED32,
    FieldDescriptor.TYPE_SFIXED32: FIXED32,
    FieldDescriptor.TYPE_STRING: BYTES,
    FieldDescriptor.TYPE_BYTES: BYTES,
    FieldDescriptor.TYPE_MESSAGE: BYTES,
}


class Field(NamedTuple):
    """One field: the tag stands at `start`, what it holds at `value` up to `end`."""

    number: int
    wire: int
    start: int
    value: int
    end: int


def fits(descriptor: Any, wire: int) -> bool:
    """Whether protobuf reads a field of that wire type as the one described."""
    own = _WIRES.get(descriptor.type, VARINT)
    return wire == own or (wire == BYTES and own != BYTES and not descriptor.has_presence)


class Tags:
    """The fields of messages in one mapped file.

    Attributes:
        place, layer: what is being read, for messages; set by the caller.

    Raises:
        BinaryError: from every method, when a tag, number or length breaks the format.
    """

    def __init__(self, data: mmap.mmap | bytes, source: str) -> None:
        self.data = data
        self.source = source
        self.place = "the file"
        self.layer = ""
        self._left = MAX_FIELDS

    def fields(self, start: int, end: int) -> Iterator[Field]:
        """The fields of the message that lies at start..end."""
        while start < end:
            field = self.field(start, end)
            yield field
            start = field.end

    def field(self, start: int, end: int) -> Field:
        """The field whose tag stands at `start`, in a message that ends at `end`."""
        self._left -= 1
        if self._left < 0:
            raise self.error(start, f"more than {MAX_FIELDS} fields outside the values", DAMAGED)
        tag, value = self.varint(start, end)
        number, wire = tag >> 3, tag & 7
        if not 0 < number <= MAX_NUMBER:
            raise self.error(start, f"{self.place} has field number {number}; 1 to {MAX_NUMBER} are legal", DAMAGED)
        if wire == VARINT:
            return Field(number, wire, start, value, self.varint(value, end)[1])
        if wire == BYTES:
            size, value = self.varint(value, end)
        elif wire in _SIZES:
            size = _SIZES[wire]
        else:
            name = WIRE_NAMES.get(wire, "illegal")
            raise self.error(start, f"{self.place} has field #{number} of wire type {wire} ({name})", DAMAGED)
        if size > end - value:
            what = f"field #{number} of {self.place} claims {size} bytes, but only {end - value} are left"
            raise self.error(start, what, DAMAGED)
        return Field(number, wire, start, value, value + size)

    def varint(self, at: int, end: int) -> tuple[int, int]:
        """The number at `at`, unsigned 64-bit, and the offset after it."""
        data, value = self.data, 0
        for shift in range(0, 70, 7):
            if at >= end:
                raise self.error(at, f"{self.place} ends in the middle of a number", DAMAGED)
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value & 0xFFFF_FFFF_FFFF_FFFF, at
        raise self.error(at - 10, f"{self.place} has a number of more than 10 bytes", DAMAGED)

    def error(self, offset: int, what: str, remedy: str = "") -> BinaryError:
        """An error at a byte of the file."""
        return BinaryError(what, where=self.here(offset), remedy=remedy)

    def here(self, offset: int) -> Where:
        """A byte of the file, in the layer that is being read."""
        return Where(self.source, offset=offset, layer=self.layer)


def encode_varint(value: int) -> bytes:
    """A non-negative number as protobuf writes it."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
