"""Dialects: what each fork of Caffe calls its fields, and under which numbers it writes them.

Facts: caffe.proto and the REGISTER_LAYER_CLASS lines of the forks (schema/dialects.json, the forks most met first).
The schema holds the union of all; fields that no two forks number alike have numbers of ours there, from `OURS` on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.resources import files
from typing import Any, TypeAlias

from google.protobuf.message import Message

from caffe_compat.errors import FormatError
from caffe_compat.schema import pb
from caffe_compat.tags import BYTES, VARINT, Field, Tags, encode_varint

OURS = 100_000_001
"""First number of the fields and enum values whose numbers in the schema appear in no file."""
FOREIGN = 300_000_000
"""Added to the numbers of fields that a fork has and the schema does not."""
BVLC = "bvlc"
"""BVLC Caffe alone: fields and layers of forks are refused."""

Kind: TypeAlias = Any
"""The descriptor of a message type."""
FieldKind: TypeAlias = Any
"""The descriptor of a field."""
Renumber = Callable[[Kind, int], tuple[int, FieldKind | None]]
"""Message and number -> the new number, and the field of the schema that either stands for."""
Revalue = Callable[[FieldKind, int], int]
"""Enum field and value -> the new value."""


@dataclass(frozen=True)
class Dialect:
    """A fork's own part of the format.

    Attributes:
        name: the short name.
        repositories: other names: the fork's repositories, the first as "owner/name" or "owner/name@branch".
        types: layer type that BVLC Caffe does not have -> the dialect that defines it the same way, or itself.
        v1_types: name that it has added to V1LayerParameter.LayerType -> type string of generation V2.
        fields: message -> field name -> number; of BVLC's messages only what differs, of the forks' all fields when
            they are not those of the schema.
        enums: enum -> value name -> number, where they differ from the schema's.
        defaults: "Message.field" -> its default, where forks disagree.
        required: layer type -> the field that a layer must state to be taken for one of this fork: it must be stated
            there, or other forks do not have it.
        minor: it gathers the layers of others or is seldom met, so that others are preferred.
    """

    name: str
    repositories: tuple[str, ...]
    types: Mapping[str, str]
    v1_types: Mapping[str, str]
    fields: Mapping[str, Mapping[str, int]]
    enums: Mapping[str, Mapping[str, int]]
    defaults: Mapping[str, float]
    required: Mapping[str, str]
    minor: bool

    @cached_property
    def names(self) -> Mapping[str, Mapping[int, str]]:
        """Message -> number -> field name."""
        return {kind: {number: name for name, number in own.items()} for kind, own in self.fields.items()}

    def field(self, kind: Kind, number: int) -> FieldKind | str | None:
        """What a number means: a field of the schema, the name of one that it does not have, or nothing."""
        name = self.names.get(kind.name, {}).get(number)
        if name is not None:
            return kind.fields_by_name.get(name, name)
        field = kind.fields_by_number.get(number)
        moved = field is None or field.name in self.fields.get(kind.name, {})
        return field if not moved and self.has(kind, field.name) else None

    def has(self, kind: Kind, name: str) -> bool:
        """Whether a message has a field of that name here."""
        own = self.fields.get(kind.name, {})
        if name in own:
            return True
        field = kind.fields_by_name.get(name)
        if field is None or field.number >= OURS or field.number in own.values():
            return False
        return not (own and is_fork_message(kind))

    def enum_value(self, field: FieldKind, number: int) -> int:
        """The schema's number of an enum value; one that it does not have is `FOREIGN` plus its own."""
        names = {own: name for name, own in self.enums.get(_enum_name(field), {}).items()}
        known = field.enum_type.values_by_name.get(names.get(number, ""))
        return known.number if known else FOREIGN + number if number in names else number


def is_fork_message(kind: Kind) -> bool:
    """Whether BVLC Caffe has no such message."""
    return kind.name not in _bvlc_messages()


def is_fork_field(field: FieldKind) -> bool:
    """Whether BVLC Caffe has no such field."""
    return field.number >= OURS or is_fork_message(field.containing_type)


@cache
def _bvlc_messages() -> frozenset[str]:
    """Every message that is reached from a net, solver or record without the forks' fields."""
    seen: set[str] = set()
    roots = (pb.NetParameter, pb.SolverParameter, pb.SolverState, pb.Datum, pb.BlobProtoVector)
    left: list[Kind] = [root.DESCRIPTOR for root in roots]
    while left:
        kind = left.pop()
        seen.add(kind.name)
        inner = (field.message_type for field in kind.fields if field.message_type and field.number < OURS)
        left += [message for message in inner if message.name not in seen]
    return frozenset(seen)


# -- names -------------------------------------------------------------------------------------------------


@cache
def dialects() -> Mapping[str, Dialect]:
    """Short name -> dialect, the most used first."""
    table = json.loads(files("caffe_compat.schema").joinpath("dialects.json").read_text())
    return {name: _dialect(name, entry) for name, entry in table.items()}


def _dialect(name: str, entry: Mapping[str, Any]) -> Dialect:
    types = {kind: origin for origin, kinds in entry["types"].items() for kind in kinds}
    return Dialect(
        name,
        tuple(entry["repositories"]),
        dict(sorted(types.items())),
        entry.get("v1_types", {}),
        entry["fields"],
        entry.get("enums", {}),
        entry.get("defaults", {}),
        entry.get("required", {}),
        entry.get("minor", False),
    )


def resolve(name: str) -> str:
    """The short name of a dialect.

    Args:
        name: a short name, a repository ("weiliu89/caffe", with or without "@branch"), "bvlc", or "" for none.

    Raises:
        FormatError: there is no such dialect.
    """
    if name in ("", BVLC) or name in dialects():
        return name
    wanted = name.lower()
    for dialect in dialects().values():
        if wanted in (dialect.name, *map(str.lower, dialect.repositories)):
            return dialect.name
    known = ", ".join([BVLC, *dialects()])
    raise FormatError(f'no dialect is called "{name}"', remedy=f"use one of {known}")


def forks_with_type(kind: str) -> tuple[str, ...]:
    """The dialects that have a layer type."""
    return tuple(dialect.name for dialect in dialects().values() if kind in dialect.types)


def forks_with_v1_type(name: str) -> tuple[str, ...]:
    """The dialects that have added a name to the layer types of generation V1."""
    return tuple(dialect.name for dialect in dialects().values() if name in dialect.v1_types)


def forks_with_field(kind: str, name: str) -> tuple[str, ...]:
    """The dialects that have a field in a message of that name."""
    return tuple(dialect.name for dialect in dialects().values() if name in dialect.fields.get(kind, {}))


def has_input_layers(name: str) -> bool:
    """Whether a dialect has input_param; forks older than that use its number for something else."""
    own = dialects().get(name)
    return own is None or own.has(pb.LayerParameter.DESCRIPTOR, "input_param")


# -- numbers -----------------------------------------------------------------------------------------------


def translate(data: bytes, dialect: str, kind: type[Message] = pb.LayerParameter) -> bytes:
    """A message as a fork writes it -> as the schema reads it.

    Fields that the schema does not have keep their contents under `FOREIGN` plus their number.

    Args:
        data: the message.
        dialect: a name that `resolve` knows; "" and "bvlc" change nothing.
        kind: the message type.

    Raises:
        FormatError: there is no such dialect.
        BinaryError: the bytes are no message.
    """
    own = dialects().get(resolve(dialect))
    if own is None:
        return data
    return _Rewriter(Tags(data, f"<{kind.DESCRIPTOR.name}>"), _inward(own), own.enum_value).run(kind)


def restore(data: bytes, dialect: str, kind: type[Message] = pb.LayerParameter) -> bytes:
    """A message as the schema writes it -> as a fork reads it; the inverse of `translate`.

    Raises:
        FormatError: there is no such dialect, or it lacks a field or enum value that the message has.
    """
    own = dialects().get(resolve(dialect))
    outward, values = (_outward(own), _values_outward(own)) if own else (_no_forks, _no_fork_values)
    return _Rewriter(Tags(data, f"<{kind.DESCRIPTOR.name}>"), outward, values).run(kind)


def _inward(own: Dialect) -> Renumber:
    def renumber(kind: Kind, old: int) -> tuple[int, FieldKind | None]:
        field = own.field(kind, old)
        if isinstance(field, str) or (field is None and old in kind.fields_by_number):
            return FOREIGN + old, None
        return (old if field is None else field.number), field

    return renumber


def _outward(own: Dialect) -> Renumber:
    def renumber(kind: Kind, old: int) -> tuple[int, FieldKind | None]:
        if old >= FOREIGN:
            return old - FOREIGN, None
        field = kind.fields_by_number.get(old)
        if field is None:
            return old, None
        new = own.fields.get(kind.name, {}).get(field.name, old)
        if own.field(kind, new) is not field:
            raise _lacks(own.name, f"{kind.name}.{field.name}")
        return new, field

    return renumber


def _no_forks(kind: Kind, old: int) -> tuple[int, FieldKind | None]:
    field = kind.fields_by_number.get(old)
    if old >= OURS:
        raise _lacks("BVLC Caffe", f"{kind.name}.{field.name if field else old}")
    return old, field


def _values_outward(own: Dialect) -> Revalue:
    def value(field: FieldKind, old: int) -> int:
        if old >= FOREIGN:
            return old - FOREIGN
        known, numbers = field.enum_type.values_by_number.get(old), own.enums.get(_enum_name(field), {})
        new = numbers.get(known.name, old) if known else old
        if known and (new >= OURS or (known.name not in numbers and old in numbers.values())):
            raise _lacks(own.name, f"{_enum_name(field)} {known.name}")
        return new

    return value


def _no_fork_values(field: FieldKind, old: int) -> int:
    if OURS <= old < 1 << 31:
        raise _lacks("BVLC Caffe", f"{_enum_name(field)} {field.enum_type.values_by_number[old].name}")
    return old


def _enum_name(field: FieldKind) -> str:
    return str(field.enum_type.full_name).removeprefix("caffe_compat.")


def _lacks(name: str, what: str) -> FormatError:
    return FormatError(f"{name} has no {what}", remedy="write the net as text, or name the fork that it is for")


@dataclass(frozen=True)
class _Rewriter:
    """Writes a message again with other numbers; everything else stays."""

    tags: Tags
    renumber: Renumber
    revalue: Revalue

    def run(self, kind: type[Message]) -> bytes:
        return self.message(kind.DESCRIPTOR, 0, len(self.tags.data))

    def message(self, kind: Kind, start: int, end: int) -> bytes:
        return b"".join(self.field(kind, part) for part in self.tags.fields(start, end))

    def field(self, kind: Kind, part: Field) -> bytes:
        number, field = self.renumber(kind, part.number)
        body = self.body(field, part)
        size = encode_varint(len(body)) if part.wire == BYTES else b""
        return encode_varint(number << 3 | part.wire) + size + body

    def body(self, field: FieldKind | None, part: Field) -> bytes:
        if field is not None and field.message_type is not None and part.wire == BYTES:
            return self.message(field.message_type, part.value, part.end)
        if field is not None and field.enum_type is not None and part.wire == VARINT:
            return encode_varint(self.revalue(field, self.tags.varint(part.value, part.end)[0]))
        return self.tags.data[part.value : part.end]
