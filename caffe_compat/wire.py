"""Binary nets: everything but the parameter blobs becomes a small message, the blobs become views of the map.

Rules: protobuf's wire format; blob.cpp (FromProto) and caffe.proto of BVLC Caffe; NVIDIA's fork for raw_data.
"""

from __future__ import annotations

import mmap
import os
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from math import prod
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

from caffe_compat.dialects import Dialect, dialects, translate
from caffe_compat.errors import BinaryError, Where
from caffe_compat.generations import V0_TYPES, V1_TYPES
from caffe_compat.guessing import Guess, guess_file, told
from caffe_compat.mapped import PathName, kind_of, map_file
from caffe_compat.schema import pb
from caffe_compat.source import Document, SourceMap, UnknownField
from caffe_compat.tags import BYTES, DAMAGED, FIXED32, FIXED64, VARINT, WIRE_NAMES, Field, Tags, encode_varint, fits
from caffe_compat.weights import Blob, LayerBlobs, Weights

MAX_AXES = 32
MAX_DIM = 2**31 - 1
MAX_SMALL = 64 << 20  # bytes outside the blobs
MAX_PARTS = 100_000
MAX_UNKNOWN = 10_000
UNFILLED = "Caffe refuses it as well: save the model again with the program that wrote it"

M = TypeVar("M", bound=Message)
_BLOB: Any = pb.BlobProto.DESCRIPTOR


@dataclass(frozen=True)
class Model:
    """A caffemodel.

    Attributes:
        net: the net without blobs, in the file's own generation; fields that the schema does not know are kept.
        weights: the blobs, views of the mapped file.
        map: byte offsets of layers and blobs, unknown fields, warnings.
        guess: the fork that wrote it.
    """

    net: pb.NetParameter
    weights: Weights
    map: SourceMap
    guess: Guess


def read_caffemodel(path: PathName, dialect: str = "") -> Model:
    """Read a binary net of any generation and size without loading its values.

    Args:
        path: the file.
        dialect: the fork that wrote it; "" to judge by the file, "bvlc" for BVLC Caffe.

    Raises:
        VggcError: there is no such file or dialect, or it may not be read.
        BinaryError: it is not a caffemodel, is damaged, or a blob's values do not fill its shape.
    """
    source = os.fspath(path)
    carved = _carve(map_file(source), source, pb.NetParameter, "a caffemodel", dialect)
    if carved.message.layer and carved.message.layers:
        what = "it has both layer and layers, which are of different generations"
        remedy = "write the whole net in one generation; Caffe would refuse it or drop those of the newer one"
        raise carved.carver.tags.error(carved.carver.positions["layer[0]"].offset, what, remedy)
    layers = _layers(carved)
    return Model(carved.message, Weights(tuple(layers), source), carved.map(source), carved.guess)


def read_message(path: PathName, kind: type[M], dialect: str = "") -> Document:
    """Read a binary message whole, except for blobs, which are left out unread.

    Args:
        path: the file.
        kind: what it is.
        dialect: as for `read_caffemodel`.

    Raises:
        VggcError: there is no such file or dialect, or it may not be read.
        BinaryError: it is not such a message.
    """
    source = os.fspath(path)
    carved = _carve(map_file(source), source, kind, f"a binary {kind.DESCRIPTOR.name}", dialect)
    return Document(carved.message, carved.map(source), carved.guess)


def read_blob(path: PathName) -> Blob:
    """Read a file that is one blob (.binaryproto).

    Raises:
        VggcError: there is no such file, or it may not be read.
        BinaryError: it is not a blob, is damaged, or its values do not fill its shape.
    """
    source = os.fspath(path)
    data = map_file(source)
    refuse_other_kinds(data, source, "a blob (.binaryproto)")
    site = _Site("", "", Field(0, BYTES, 0, 0, len(data)))
    return _BlobReader(_Carver(Tags(data, source)), site, 0, _Skipped()).read()


def refuse_other_kinds(data: mmap.mmap | bytes, source: str, wanted: str) -> None:
    """Raise BinaryError when the first bytes say that this is something else."""
    kind = kind_of(data)
    if kind.name:
        what = f"this is not {wanted} but {_article(kind.name)}"
        raise BinaryError(what, where=Where(source, offset=0), remedy=kind.remedy)


def _article(noun: str) -> str:
    if noun in ("text", "gzip", "bzip2", "xz", "zip", "7z", "HDF5", "pickle", "safetensors"):
        return f"{noun} data" if noun != "text" else noun
    return f"a {noun}"


# -- the small messages ------------------------------------------------------------------------------------


class _Site(NamedTuple):
    """A blob in the file: the path of its layer, its own path, its place."""

    owner: str
    path: str
    field: Field


@dataclass
class _Carver:
    """Copies a message without its blobs, and notes what stands where."""

    tags: Tags
    own: Dialect | None = None
    sites: list[_Site] = field(default_factory=list)
    positions: dict[str, Where] = field(default_factory=dict)
    unknown: list[UnknownField] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    small: int = 0

    def message(self, kind: Any, start: int, end: int, path: str = "") -> bytes | None:
        """The bytes of the message at start..end without blobs; None when they stay as they are."""
        parts: list[bytes] = []
        kept = start  # bytes before it are in `parts`
        counts: Counter[int] = Counter()
        for part in self.tags.fields(start, end):
            inner = self.replacement(self.meaning(kind, part), part, path, counts)
            if inner is not None:
                parts += [self.tags.data[kept : part.start], inner]
                kept = part.end
        self.check_required(kind, counts, path, start)
        return b"".join([*parts, self.tags.data[kept:end]]) if parts else None

    def meaning(self, kind: Any, part: Field) -> Any:
        """The field, the name of one that only the fork has, or None."""
        return self.own.field(kind, part.number) if self.own else kind.fields_by_number.get(part.number)

    def replacement(self, descriptor: Any, part: Field, path: str, counts: Counter[int]) -> bytes | None:
        """What stands for the field in the copy; None when it stays as it is."""
        if descriptor is None or isinstance(descriptor, str) or not fits(descriptor, part.wire):
            self.spend(part)
            self.stranger(descriptor, part, path)
            return None
        inside = f"{path}.{descriptor.name}" if path else descriptor.name
        if not descriptor.has_presence:  # in proto2 only repeated fields have none
            inside += f"[{counts[descriptor.number]}]"
        counts[descriptor.number] += 1
        if descriptor.type == FieldDescriptor.TYPE_MESSAGE:
            return self.child(descriptor, part, inside)
        self.spend(part)
        if descriptor.type == FieldDescriptor.TYPE_STRING:
            return self.string(part, inside)
        if descriptor.type == FieldDescriptor.TYPE_ENUM and part.wire == VARINT:
            self.check_enum(descriptor, part, inside)
        return None

    def spend(self, part: Field) -> None:
        """Count a field against the bytes that a net may have outside its blobs."""
        self.small += part.end - part.start
        if self.small > MAX_SMALL:
            what = f"more than {MAX_SMALL >> 20} MiB outside the blobs, here in {self.tags.place}"
            raise self.tags.error(part.start, what, DAMAGED)

    def child(self, descriptor: Any, part: Field, path: str) -> bytes | None:
        """A message inside: a blob is cut out, another is rewritten when it had blobs."""
        top, blob = "." not in path, descriptor.message_type is _BLOB
        if top:
            self.tags.place = path
        if top or blob:
            self.note_position(path, part)
        if blob:
            self.sites.append(_Site(path.split(".", 1)[0], path, part))
            return b""
        inner = self.message(descriptor.message_type, part.value, part.end, path)
        if top:
            self.tags.place = "the file"
        return None if inner is None else _delimited(part.number, inner)

    def note_position(self, path: str, part: Field) -> None:
        self.positions[path] = Where(self.tags.source, offset=part.start)
        if len(self.positions) > MAX_PARTS:
            raise self.tags.error(part.start, f"more than {MAX_PARTS} layers and blobs", DAMAGED)

    # -- what the schema does not foresee ------------------------------------------------------------------

    def stranger(self, descriptor: Any, part: Field, path: str) -> None:
        """Note a field that the schema does not have, or has with another type; protobuf keeps it."""
        if isinstance(descriptor, str):
            self.note_unknown(part, f"{path}.{descriptor}" if path else descriptor, ignored=False)
            return
        if descriptor is not None and not path:
            kind = descriptor.containing_type.name
            what = f"field #{part.number} ({descriptor.name}) is of type {WIRE_NAMES[part.wire]}: this is no {kind}"
            remedy = "means, solver states, database records and ONNX models look so; give another file"
            raise self.tags.error(part.start, what, remedy)
        self.note_unknown(part, f"{path}.#{part.number}" if path else f"#{part.number}")

    def note_unknown(self, part: Field, path: str, text: str = "", *, ignored: bool = True) -> None:
        where = Where(self.tags.source, offset=part.start)
        self.unknown.append(UnknownField(where, path, text or self.summary(part), ignored))
        if len(self.unknown) > MAX_UNKNOWN:
            raise self.tags.error(part.start, f"more than {MAX_UNKNOWN} fields that Caffe does not have", DAMAGED)

    def summary(self, part: Field) -> str:
        """The field in one line: its number or its first bytes."""
        if part.wire == VARINT:
            return f"#{part.number}: {self.tags.varint(part.value, part.end)[0]}"
        size, head = part.end - part.value, self.tags.data[part.value : min(part.end, part.value + 16)]
        number = f" = {np.frombuffer(head, _FLOATS[part.wire])[0]:g}" if part.wire in _FLOATS else ""
        return f"#{part.number}: {size} bytes {head.hex(' ')}{' ...' if size > len(head) else ''}{number}"

    def check_enum(self, descriptor: Any, part: Field, path: str) -> None:
        """protobuf moves enum values that it does not know to the unknown fields."""
        value = self.tags.varint(part.value, part.end)[0]
        meant = self.own.enum_value(descriptor, value) if self.own else value
        if meant not in descriptor.enum_type.values_by_number:
            self.note_unknown(part, path, f"{descriptor.name}: {value}")

    def check_required(self, kind: Any, counts: Counter[int], path: str, start: int) -> None:
        """A message without what Caffe requires in it is most likely another fork's."""
        missing = [name for name in _required(kind.name) if not counts[kind.fields_by_name[name].number]]
        if missing:
            text = f"lacks {', '.join(missing)}, which Caffe requires"
            self.unknown.append(UnknownField(Where(self.tags.source, offset=start), path, text))

    def string(self, part: Field, path: str) -> bytes | None:
        """The field as UTF-8 when it is not; Caffe itself does not look."""
        data = self.tags.data[part.value : part.end]
        try:
            data.decode()
        except UnicodeDecodeError:
            self.warnings.append(f"byte {part.value}: {path} is not UTF-8; read as Latin-1")
            return _delimited(part.number, data.decode("latin-1").encode())
        return None


_FLOATS = {FIXED32: "<f4", FIXED64: "<f8"}


@cache
def _required(message: str) -> tuple[str, ...]:
    """The fields that a message of that name has to have."""
    kind = getattr(pb, message, None)
    return tuple(kind().FindInitializationErrors()) if kind else ()


def _delimited(number: int, data: bytes) -> bytes:
    return encode_varint(number << 3 | BYTES) + encode_varint(len(data)) + data


@dataclass(frozen=True)
class _Carved(Generic[M]):
    """A message without blobs, and where they are."""

    message: M
    carver: _Carver
    guess: Guess

    def map(self, source: str) -> SourceMap:
        carver = self.carver
        return SourceMap(source, carver.positions, tuple(carver.unknown), tuple(carver.warnings))


def _carve(data: mmap.mmap | bytes, source: str, kind: type[M], wanted: str, dialect: str) -> _Carved[M]:
    refuse_other_kinds(data, source, wanted)
    guess = guess_file(data, source, dialect) if kind is pb.NetParameter else told(dialect) or Guess()
    carver = _Carver(Tags(data, source), dialects().get(guess.numbers))
    small = carver.message(kind.DESCRIPTOR, 0, len(data))
    small = translate(data[:] if small is None else small, guess.numbers, kind)
    message = _parse(carver.tags, kind, small, 0)
    if not message.ListFields() or (isinstance(message, pb.NetParameter) and not (message.layer or message.layers)):
        lacks = "layers" if isinstance(message, pb.NetParameter) else "field of one"
        raise carver.tags.error(0, f"this is not {wanted}: it has no {lacks}", DAMAGED)
    return _Carved(message, carver, guess)


def _parse(tags: Tags, kind: type[M], data: bytes, offset: int) -> M:
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise tags.error(offset, f"protobuf refuses {tags.place}: {error}", DAMAGED) from error


# -- the blobs ---------------------------------------------------------------------------------------------

_NUMBERS = {"data": "<f4", "diff": "<f4", "double_data": "<f8", "double_diff": "<f8"}
_RAW = {pb.BlobProto.FLOAT16: "<f2", pb.BlobProto.FLOAT: "<f4", pb.BlobProto.DOUBLE: "<f8"}
_DIFFS = ("diff", "double_diff", "raw_diff")
_LEGACY = ("num", "channels", "height", "width")


def _layers(carved: _Carved[pb.NetParameter]) -> list[LayerBlobs]:
    """Every layer of the net in file order, also those without blobs."""
    carver, skipped = carved.carver, _Skipped()
    sites: dict[str, list[_Site]] = {path: [] for path in carver.positions if _is_layer(path)}
    for site in carver.sites:
        sites[site.owner].append(site)
    layers = []
    for path, own in sites.items():
        name, kind = _describe(carved.message, path)
        carver.tags.layer = name
        blobs = tuple(_BlobReader(carver, site, index, skipped).read() for index, site in enumerate(own))
        layers.append(LayerBlobs(name, blobs, kind, carver.positions[path].in_layer(name)))
    if skipped.blobs:
        text = f"gradients of {skipped.blobs} blob(s), {skipped.size} bytes, are in the file and were not read"
        carver.warnings.append(text)
    return layers


def _is_layer(path: str) -> bool:
    return "." not in path and path.startswith(("layer[", "layers["))


def _describe(net: pb.NetParameter, path: str) -> tuple[str, str]:
    """Name and V2 type of the layer at `layer[i]` or `layers[i]`."""
    generation, _, index = path.rstrip("]").partition("[")
    if generation == "layer":
        return net.layer[int(index)].name, net.layer[int(index)].type
    v1 = net.layers[int(index)]
    if v1.HasField("layer"):
        return v1.layer.name, V1_TYPES.get(V0_TYPES.get(v1.layer.type, ""), v1.layer.type)
    return v1.name, V1_TYPES[pb.V1LayerParameter.LayerType.Name(v1.type)]


@dataclass
class _Skipped:
    blobs: int = 0
    size: int = 0


class _BlobReader:
    """Reads one blob."""

    def __init__(self, carver: _Carver, site: _Site, index: int, skipped: _Skipped) -> None:
        self.carver, self.tags, self.site, self.index, self.skipped = carver, carver.tags, site, index, skipped
        self.parts: dict[str, list[Any]] = {}
        self.offsets: dict[str, int] = {}
        self.diffs = Counter[str]()
        self.first_unknown = len(carver.unknown)

    def read(self) -> Blob:
        self.tags.place = f"blob {self.index}"
        proto = self.walk()
        values, offset = self.values(proto)
        legacy = any(proto.HasField(name) for name in _LEGACY)
        shape = tuple(getattr(proto, name) for name in _LEGACY) if legacy else tuple(proto.shape.dim)
        self.check(shape, values.size, legacy or bool(shape))
        self.check_gradients(values.size)
        self.skipped.blobs += bool(self.diffs)
        self.skipped.size += self.diffs.total()
        where = self.tags.here(self.site.field.start)
        return Blob(shape, values, legacy, self.tags.source if offset >= 0 else "", offset, where)

    def walk(self) -> pb.BlobProto:
        """Collect the values; all else becomes a message."""
        small, counts = [], Counter[int]()
        at, end = self.site.field.value, self.site.field.end
        while at < end:
            part = self.tags.field(at, end)
            descriptor = self.carver.meaning(_BLOB, part)
            name = descriptor.name if descriptor is not None and fits(descriptor, part.wire) else ""
            at = part.end
            if name in _NUMBERS:
                at = self.numbers(name, part, end)
            elif name in ("raw_data", "raw_diff"):
                self.chunk(name, np.dtype("u1"), part)
            else:
                inner = self.carver.replacement(descriptor, part, self.site.path, counts)
                small.append(self.tags.data[part.start : part.end] if inner is None else inner)
        return _parse(self.tags, pb.BlobProto, b"".join(small), self.site.field.start)

    def numbers(self, name: str, part: Field, end: int) -> int:
        """A packed chunk, or a run of single values; the offset after it."""
        dtype = np.dtype(_NUMBERS[name])
        if part.wire == BYTES:
            self.chunk(name, dtype, part)
            return part.end
        run = _run(self.tags.data, part, end, dtype)
        self.keep(name, run["value"], run.nbytes)
        self.offsets[name] = -1
        return int(part.start + run.nbytes)

    def chunk(self, name: str, dtype: np.dtype[Any], part: Field) -> None:
        size = part.end - part.value
        if size % dtype.itemsize:
            what = f"{name} of blob {self.index} has {size} bytes, no multiple of {dtype.itemsize}"
            raise self.tags.error(part.start, what, DAMAGED)
        if size:
            self.offsets[name] = -1 if name in self.parts else part.value
            values = np.frombuffer(self.tags.data, dtype, size // dtype.itemsize, part.value)
            self.keep(name, values, size)

    def keep(self, name: str, values: Any, size: int) -> None:
        if name in _DIFFS:
            self.diffs[name] += size
        elif name == "raw_data":
            self.parts[name] = [values]  # a singular field: the last one counts
        else:
            self.parts.setdefault(name, []).append(values)

    def values(self, proto: pb.BlobProto) -> tuple[Any, int]:
        """The values and their offset, -1 when they are not one run; double_data wins over data (blob.cpp)."""
        found = [name for name in ("double_data", "data", "raw_data") if name in self.parts]
        if not found:
            return np.zeros(0, np.float32), -1
        if len(found) > 1:
            self.carver.warnings.append(f"{self.site.path}: {found[0]} is read, {', '.join(found[1:])} ignored")
        name = found[0]
        parts, offset = self.parts[name], self.offsets[name]
        if name == "raw_data":
            return self.raw(proto, parts[0], offset), offset
        return (parts[0] if offset >= 0 else np.concatenate(parts)), offset

    def raw(self, proto: pb.BlobProto, data: Any, offset: int) -> Any:
        """raw_data of NVIDIA's fork."""
        if not proto.HasField("raw_data_type") or proto.raw_data_type not in _RAW:
            kind = pb.BlobProto.Type.Name(proto.raw_data_type) if proto.HasField("raw_data_type") else "no type"
            what = f"raw_data of blob {self.index} has {kind}; FLOAT16, FLOAT and DOUBLE are read"
            raise self.tags.error(self.site.field.start, what, "save it as float32 with the fork that wrote it")
        dtype = np.dtype(_RAW[proto.raw_data_type])
        if data.size % dtype.itemsize:
            what = f"raw_data of blob {self.index} has {data.size} bytes, no multiple of {dtype.itemsize}"
            raise self.tags.error(offset, what, DAMAGED)
        return data.view(dtype)

    def check_gradients(self, count: int) -> None:
        """There are as many gradients as values; double_diff wins over diff (Blob::FromProto)."""
        name = next((name for name in ("double_diff", "diff") if self.diffs[name]), "")
        found = self.diffs[name] // np.dtype(_NUMBERS[name]).itemsize if name else count
        if found != count:
            what = f"blob {self.index} has {count} values but {found} gradients ({name})"
            raise self.tags.error(self.site.field.start, what, UNFILLED)

    def check(self, shape: tuple[int, ...], count: int, stated: bool) -> None:
        """The rules of Blob::Reshape, and that the values fill the shape."""
        blob, at = f"blob {self.index}", self.site.field.start
        if len(shape) > MAX_AXES:
            raise self.tags.error(at, f"{blob} has {len(shape)} axes; Caffe allows {MAX_AXES}", DAMAGED)
        if any(not 0 <= dim <= MAX_DIM for dim in shape):
            what = f"{blob} has shape {' x '.join(map(str, shape))}; sizes are 0 to {MAX_DIM}"
            raise self.tags.error(at, what, DAMAGED)
        if prod(shape) != count:
            text = f"shape {' x '.join(map(str, shape))} ({prod(shape)})" if stated else "no shape (1)"
            strange = [u.path.rpartition(".")[2] for u in self.carver.unknown[self.first_unknown :]]
            remedy = f"its values may be in a fork's field, {', '.join(strange)}" if strange else UNFILLED
            raise self.tags.error(at, f"{blob} has {count} values but {text}", remedy)


def _run(data: mmap.mmap | bytes, part: Field, end: int, dtype: np.dtype[Any]) -> Any:
    """Records (tag, value) from `part` on for as long as the tag repeats."""
    tag = data[part.start]
    width = 1 + dtype.itemsize
    record = np.dtype([("tag", "u1"), ("value", dtype)])
    if part.value - part.start > 1:  # the tag is spelt with needless bytes
        record = np.dtype(
            {
                "names": ["value"],
                "formats": [dtype],
                "offsets": [part.value - part.start],
                "itemsize": part.end - part.start,
            }
        )
        return np.frombuffer(data, record, 1, part.start)
    records = np.frombuffer(data, record, (end - part.start) // width, part.start)
    length, block = 1, 64
    while length < len(records):  # blocks grow, so that short runs cost little
        same = records["tag"][length : length + block] == tag
        if not same.all():
            return records[: length + int(same.argmin())]
        length, block = length + len(same), block * 2
    return records
