"""Prototxt text to messages and back, with the place of every field.

Rules: protobuf's text_format.cc as Caffe calls it (io.cpp, ReadProtoFromTextFile): a singular field may stand once,
required fields must be there. Where Caffe stops at the first field that it does not know, all of them are collected.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import cache, lru_cache, partial
from typing import Any, NamedTuple, cast

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from caffe_compat.dialects import is_fork_field
from caffe_compat.errors import TextError, Where
from caffe_compat.source import Document, SourceMap, UnknownField
from caffe_compat.tokens import Decoded, Lines, foreign, printable, quote, swallowed
from caffe_compat.tokens import decode as _decode
from caffe_compat.untyped import INFINITE, INTEGER, REAL, Untyped, node_lines, one_line

MAX_LISTED = 20
"""Most unknown enum values, and most places of each, that an error names."""

SPARE = "fork_type"
"""The field of V1LayerParameter that keeps a layer type of a fork, which stands in text under `type`."""

_LAYERS = frozenset({"LayerParameter", "V1LayerParameter"})
_LAYER_PATH = re.compile(r"(?:.*?\.)?layers?\[[0-9]+\]")
_BOOLEANS = {"true": True, "True": True, "t": True, "false": False, "False": False, "f": False}


def decode(data: bytes, source: str = "<string>") -> str:
    """The characters of a prototxt file: UTF-8, or what a byte-order mark says; other bytes as Latin-1.

    Raises:
        TextError: the bytes after a UTF-16 or UTF-32 mark are not that.
    """
    return _decode(data, source).text.removeprefix("\ufeff")


def parse(text: str | bytes, message_type: type[Message], source: str = "<string>") -> Document:
    """Read prototxt text.

    Args:
        text: characters, or the bytes of a file, which `decode` turns into characters.
        message_type: what the text states, e.g. `pb.NetParameter`.
        source: the file's name for messages.

    Returns:
        The message and its source map: the place of every field (of the value, for values in a list after the first
        bracket), the fields that the message type does not have, and warnings.

    Raises:
        TextError: at the first token that cannot be read; for unknown enum values, which are collected, at the first.
    """
    decoded = _decode(text, source) if isinstance(text, bytes) else Decoded(text, ())
    parser = _Parser(decoded.text.removeprefix("\ufeff"), source)
    message = message_type()
    try:
        parser.run(message)
    except TextError as error:
        remedy = foreign(parser.text[:4096].encode("latin-1", "replace")) or error.remedy
        raise TextError(error.what, where=error.where, remedy=remedy) from None
    warnings = [*decoded.warnings, *swallowed(parser.text, source)]
    if len(parser.text) != len(decoded.text):
        warnings.append(f"{source}: starts with a byte-order mark, which Caffe refuses")
    return Document(message, parser.map(warnings))


# -- tables ------------------------------------------------------------------------------------------------


class _Field(NamedTuple):
    """What the parser needs to know about a field."""

    name: str
    repeated: bool
    is_message: bool
    read: Callable[[_Parser, _Field], Any]
    values: Mapping[str, int]
    of_fork: bool
    spare: str


@cache
def _table(descriptor: Descriptor) -> dict[str, _Field]:
    return {field.name: _field(field) for field in descriptor.fields if field.name != SPARE}


def _field(field: FieldDescriptor) -> _Field:
    enum = field.enum_type.values if field.enum_type else ()
    is_bytes = field.type == FieldDescriptor.TYPE_BYTES
    return _Field(
        name=field.name,
        repeated=not field.has_presence,  # in proto2 every singular field has presence
        is_message=field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE,
        read=_read_bytes if is_bytes else _READERS.get(field.cpp_type, _read_bytes),
        values={value.name: value.number for value in enum},
        of_fork=is_fork_field(field),
        spare=SPARE if field.full_name.endswith("V1LayerParameter.type") else "",
    )


# -- values ------------------------------------------------------------------------------------------------


def _read_integer(parser: _Parser, field: _Field, low: int, high: int) -> int:
    start, negative = parser.start, parser.accept("-")
    token = parser.token
    if not INTEGER.fullmatch(token):
        raise parser.wrong(field, "a whole number", parser.octal_remedy())
    base = 16 if token[:2] in ("0x", "0X") else 8 if token[0] == "0" else 10
    value = int(token, base) if len(token) < 30 else high + 2
    value = -value if negative else value
    if not low <= value <= high or (negative and low == 0):
        what = f'{"-" * negative}{printable(token)} is out of range for "{field.name}"'
        raise parser.error(what, start, f"give {low} to {high}")
    parser.advance()
    return value


def _read_real(parser: _Parser, field: _Field) -> float:
    negative = parser.accept("-")
    token = parser.token
    if REAL.fullmatch(token):
        value = float(token.rstrip("fF"))
    elif token.lower() in INFINITE:
        value = INFINITE[token.lower()]
    else:
        raise parser.wrong(field, "a decimal number", parser.octal_remedy())
    parser.advance()
    return -value if negative else value


def _read_bool(parser: _Parser, field: _Field) -> bool:
    if parser.kind == "number":
        return bool(_read_integer(parser, field, 0, 1))
    if parser.token not in _BOOLEANS:
        raise parser.wrong(field, "true or false")
    value = _BOOLEANS[parser.token]
    parser.advance()
    return value


def _read_enum(parser: _Parser, field: _Field) -> int:
    names = field.values
    if parser.kind == "name":
        token, known = parser.token, parser.token in names
        number = names.get(token, next(iter(names.values())))
    elif parser.kind == "number" or parser.token == "-":
        start = parser.start
        number = _read_integer(parser, field, -(2**31), 2**31 - 1)
        if number not in names.values():
            raise parser.error(f'unknown value {number} for "{field.name}"', start, _allowed("", names))
        return number
    else:
        unquoted = "remove the quotes" if parser.token.strip("\"'") in names else ""
        raise parser.wrong(field, f"one of {', '.join(names)}", unquoted)
    if not known:
        what = f'unknown value "{printable(token)}" for "{field.name}"'
        remedy = "" if parser.invalid else _allowed(token, names)  # only the first one's is shown
        parser.invalid.append(parser.error(what, remedy=remedy))
    parser.advance()
    return number


def _allowed(token: str, names: Mapping[str, int]) -> str:
    near = get_close_matches(token[:60].upper(), names, 1)
    return (f"did you mean {near[0]}? " if near else "") + f"Caffe has {', '.join(names)}"


def _read_bytes(parser: _Parser, field: _Field) -> bytes:
    if parser.kind != "string":
        raise parser.wrong(field, "a string", "put it in quotes")
    return parser.take_bytes()


def _read_string(parser: _Parser, field: _Field) -> str:
    start = parser.start
    value = _read_bytes(parser, field)
    try:
        return value.decode()
    except UnicodeDecodeError:
        what = f'the escapes in the string for "{field.name}" are not UTF-8'
        raise parser.error(what, start, "write the characters themselves") from None


_READERS: Mapping[int, Callable[[_Parser, _Field], Any]] = {
    FieldDescriptor.CPPTYPE_INT32: partial(_read_integer, low=-(2**31), high=2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: partial(_read_integer, low=-(2**63), high=2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: partial(_read_integer, low=0, high=2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: partial(_read_integer, low=0, high=2**64 - 1),
    FieldDescriptor.CPPTYPE_FLOAT: _read_real,
    FieldDescriptor.CPPTYPE_DOUBLE: _read_real,
    FieldDescriptor.CPPTYPE_BOOL: _read_bool,
    FieldDescriptor.CPPTYPE_ENUM: _read_enum,
    FieldDescriptor.CPPTYPE_STRING: _read_string,
}


# -- messages ----------------------------------------------------------------------------------------------


class _Parser(Untyped):
    """Reads one text into one message.

    Attributes:
        offsets: path -> offset of each field.
        names: path -> name of each layer.
        unknown: offset, path and text of each unknown field.
        invalid: unknown enum values; reported at the end.
    """

    def __init__(self, text: str, source: str) -> None:
        super().__init__(text, source)
        self.offsets: dict[str, int] = {}
        self.names: dict[str, str] = {}
        self.unknown: list[tuple[int, str, str]] = []
        self.invalid: list[TextError] = []

    def run(self, message: Message) -> None:
        """Read the whole text into `message`."""
        self.advance()
        self.fields(message, "", "")
        if self.invalid:
            raise _merged(self.invalid)
        if not message.IsInitialized():
            missing: list[str] = cast(Any, message).FindInitializationErrors()
            raise self.incomplete(missing[0])

    def fields(self, message: Message, prefix: str, close: str) -> None:
        """Read fields up to the token `close`."""
        table = _table(message.DESCRIPTOR)
        while self.token != close:
            field = table.get(self.token)
            if field is None:
                self.unknown_field(prefix)
            elif field.of_fork:
                self.fork_field(message, field, prefix)
            else:
                self.known_field(message, field, prefix)
            self.separator()

    def known_field(self, message: Message, field: _Field, prefix: str) -> None:
        start, path = self.start, prefix + field.name
        self.advance()
        if not self.accept(":") and not field.is_message:
            what = f'expected ":" after "{field.name}", got {self.got()}'
            raise self.error(what, remedy=f'write "{field.name}: ..."')
        if field.repeated:
            values = getattr(message, field.name)
            if self.accept("["):
                self.elements(values, field, path)
            else:
                self.element(values, field, path, start)
        elif path in self.offsets:
            raise self.twice(field, path, start)
        else:
            self.offsets[path] = start
            self.singular(message, field, path, start)

    def fork_field(self, message: Message, field: _Field, prefix: str) -> None:
        """A field that forks have; what does not fit it is another fork's field of that name, kept as unknown."""
        start, around, places = self.start, list(self.open), len(self.offsets)
        invalid, unknown = len(self.invalid), len(self.unknown)
        taken = len(getattr(message, field.name)) if field.repeated else int(prefix + field.name in self.offsets)
        try:
            self.known_field(message, field, prefix)
            if len(self.invalid) == invalid:
                return
        except TextError:
            self.open = around
        del self.invalid[invalid:], self.unknown[unknown:]
        while len(self.offsets) > places:
            self.offsets.popitem()
        if field.repeated:
            del getattr(message, field.name)[taken:]
        elif not taken:
            message.ClearField(field.name)
        self.end = start
        self.advance()
        self.unknown_field(prefix)

    def singular(self, message: Message, field: _Field, path: str, start: int) -> None:
        if field.is_message:
            inner = getattr(message, field.name)
            inner.SetInParent()
            self.body(inner, field.name, path, start)
        elif field.spare and self.kind == "name" and self.token not in field.values:
            setattr(message, field.spare, self.token)
            self.advance()
        else:
            setattr(message, field.name, field.read(self, field))

    def elements(self, values: Any, field: _Field, path: str) -> None:
        """The rest of a list after its bracket."""
        if self.accept("]"):
            return
        self.element(values, field, path, self.start)
        while self.accept(","):
            self.element(values, field, path, self.start)
        self.end_list(field.name)

    def element(self, values: Any, field: _Field, path: str, start: int) -> None:
        """One more value of a repeated field."""
        path = f"{path}[{len(values)}]"
        self.offsets[path] = start
        if field.is_message:
            self.body(values.add(), field.name, path, start)
        else:
            values.append(field.read(self, field))

    def body(self, message: Message, name: str, path: str, start: int) -> None:
        """A message in its brackets."""
        close = self.enter(name, start, message)
        self.fields(message, path + ".", close)
        self.leave()
        if message.DESCRIPTOR.name in _LAYERS:
            self.names[path] = _layer_name(message)

    # -- unknown fields ------------------------------------------------------------------------------------

    def unknown_field(self, prefix: str) -> None:
        start = self.start
        for node in self.any_field():
            self.unknown.append((start, prefix + node.name, one_line(node)))

    # -- what is wrong -------------------------------------------------------------------------------------

    def layer(self) -> str:
        around = (entry.message for entry in self.open if entry.message is not None)
        names = (_layer_name(message) for message in around if message.DESCRIPTOR.name in _LAYERS)
        return printable(next(names, ""))

    def wrong(self, field: _Field, wanted: str, remedy: str = "") -> TextError:
        """The token is not a value for the field."""
        if self.token == "[" and not field.repeated:
            return self.error(f'"{field.name}" takes one value, got a list', remedy=f"give {wanted}")
        if self.kind in ("symbol", "end"):
            return self.error(f'expected a value for "{field.name}", got {self.got()}', remedy=f"give {wanted}")
        return self.error(f'expected {wanted} for "{field.name}", got {self.got()}', remedy=remedy or f"give {wanted}")

    def octal_remedy(self) -> str:
        octal = re.match("0[0-9]", self.token)
        return "remove the leading zero, which stands for octal" if octal else ""

    def twice(self, field: _Field, path: str, start: int) -> TextError:
        first = self.lines.where(self.offsets[path])
        what = f'"{field.name}" is given a second time (first at {first.line}:{first.column})'
        return self.error(what, start, "remove one")

    def incomplete(self, path: str) -> TextError:
        """A required field is not there."""
        parent, _, name = path.rpartition(".")
        what = f'required field "{name}" is missing' + (f" in {parent}" if parent else "")
        where = self.places().get(parent, self.lines.where(0))
        return TextError(what, where=where, remedy=f'add "{name}: ..."')

    # -- result --------------------------------------------------------------------------------------------

    def places(self) -> _Positions:
        return _Positions(self.offsets, self.names, self.lines)

    def map(self, warnings: Sequence[str]) -> SourceMap:
        places = self.places()
        unknown = [UnknownField(places.where(path, start), path, text) for start, path, text in self.unknown]
        return SourceMap(self.source, places, tuple(unknown), tuple(warnings))


class _Positions(Mapping[str, Where]):
    """The place of each field, made when it is asked for."""

    def __init__(self, offsets: Mapping[str, int], names: Mapping[str, str], lines: Lines) -> None:
        self._offsets, self._names, self._lines = offsets, names, lines

    def __getitem__(self, path: str) -> Where:
        return self.where(path, self._offsets[path])

    def __iter__(self) -> Iterator[str]:
        return iter(self._offsets)

    def __len__(self) -> int:
        return len(self._offsets)

    def where(self, path: str, offset: int) -> Where:
        """The place at `offset`, with the name of the layer that `path` is in."""
        layer = _LAYER_PATH.match(path)
        return self._lines.where(offset, self._names.get(layer[0], "") if layer else "")


def _layer_name(layer: Any) -> str:
    """The name of a layer of any generation."""
    return str(layer.name or (layer.layer.name if layer.DESCRIPTOR.name == "V1LayerParameter" else ""))


def _merged(errors: Sequence[TextError]) -> TextError:
    """The first of several errors, which also tells of the others."""
    places: dict[str, list[str]] = {}
    for error in errors:
        places.setdefault(error.what, []).append(f"{error.where.line}:{error.where.column}")
    if len(errors) == 1:
        return errors[0]
    what = _listed([f"{what} at {_listed(at, ', ')}" for what, at in places.items()], "; also ")
    return TextError(what, where=errors[0].where, remedy=errors[0].remedy)


def _listed(items: Sequence[str], separator: str) -> str:
    more = [f"{len(items) - MAX_LISTED} more"] if len(items) > MAX_LISTED else []
    return separator.join([*items[:MAX_LISTED], *more])


# -- printing ----------------------------------------------------------------------------------------------

_LEADING = {
    "NetParameter": ("name", "input", "input_shape", "input_dim"),
    "V1LayerParameter": ("layer", "name", "type"),
    "SolverParameter": ("net", "net_param"),
}
"""Fields that stand before the others, which follow in the order of their numbers."""
_TRAILING = ("layers", "layer")
"""Repeated messages that stand after everything else in a net."""


def dump(message: Message, unknown: Mapping[str, Sequence[str]] | None = None) -> str:
    """Prototxt text as people write it: two spaces, one field a line, the shortest numbers that read back the same.

    Args:
        message: any message; fields that its type does not have are not printed.
        unknown: path of a message inside `message` ("" itself, `layer[2].convolution_param`) -> texts of fields to
            put at its end, as `unknown_fields` gives them.

    Raises:
        TextError: a text in `unknown` is not a field.
        ValueError: a path in `unknown` is not that of a message that is there.
    """
    left = dict(unknown or {})
    lines = list(_message_lines(message, "", "", left))
    if left:
        raise ValueError(f"no message at {', '.join(map(repr, left))}")
    return "".join(f"{line}\n" for line in lines)


def unknown_fields(source: SourceMap) -> dict[str, list[str]]:
    """The unknown fields of a file for `dump`: path of the message they are in -> their texts."""
    found: dict[str, list[str]] = {}
    for field in source.unknown:
        name = _Parser(field.text, field.path)
        name.advance()
        parent = field.path.removesuffix(name.any_name()).removesuffix(".")
        found.setdefault(parent, []).append(field.text)
    return found


def _message_lines(message: Message, path: str, indent: str, unknown: dict[str, Sequence[str]]) -> Iterator[str]:
    for field, value in sorted(message.ListFields(), key=_place_of):
        repeated = not field.has_presence
        for index, item in enumerate(value if repeated else [value]):
            if field.message_type is None:
                text = f"type: {item}" if field.name == SPARE else f"{field.name}: {_value_text(field, item)}"
                yield indent + text
                continue
            name = f"{field.name}[{index}]" if repeated else field.name
            yield f"{indent}{field.name} {{"
            yield from _message_lines(item, f"{path}.{name}" if path else name, indent + "  ", unknown)
            yield f"{indent}}}"
    for text in unknown.pop(path, ()):
        parser = _Parser(text, f"unknown field in {path or 'the root'}")
        parser.advance()
        for node in parser.any_fields(""):
            yield from node_lines(node, indent)


def _place_of(entry: tuple[FieldDescriptor, object]) -> tuple[int, int]:
    field = entry[0]
    message = field.containing_type.name if field.containing_type else ""
    leading = _LEADING.get(message, ())
    if field.name in leading:
        return 0, leading.index(field.name)
    return (2 if message == "NetParameter" and field.name in _TRAILING else 1), field.number


def _value_text(field: FieldDescriptor, value: Any) -> str:
    write = _WRITERS.get(field.cpp_type)
    if write:
        return write(value)
    if field.enum_type is not None:
        return str(field.enum_type.values_by_number[value].name)
    return str(value)


def _float_text(value: float) -> str:
    if abs(value) < 1e7 and value == int(value):
        return f"{value:.0f}"  # keeps the sign of -0
    return _shortest(struct.pack("<f", value))


@lru_cache(maxsize=4096)
def _shortest(packed: bytes) -> str:
    """The shortest decimal that reads back as the same float32."""
    (value,) = struct.unpack("<f", packed)
    texts = (f"{value:.{digits}g}" for digits in range(1, 10))
    return next((t for t in texts if abs(float(t)) < _BEYOND and struct.pack("<f", float(t)) == packed), str(value))


def _double_text(value: float) -> str:
    return repr(value).removesuffix(".0")


def _string_text(value: str | bytes) -> str:
    return quote(value.encode() if isinstance(value, str) else value)


_BEYOND = 3.4028235677973366e38
"""From here on decimals read as an infinite float32."""
_WRITERS: Mapping[int, Callable[[Any], str]] = {
    FieldDescriptor.CPPTYPE_FLOAT: _float_text,
    FieldDescriptor.CPPTYPE_DOUBLE: _double_text,
    FieldDescriptor.CPPTYPE_BOOL: lambda value: "true" if value else "false",
    FieldDescriptor.CPPTYPE_STRING: _string_text,
}
