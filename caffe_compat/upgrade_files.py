"""Files of older generations rewritten in the newest one: Caffe's upgrade_net_proto_* and upgrade_solver_proto_text."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import BinaryIO, cast

from google.protobuf.message import Message

from caffe_compat.dialects import has_input_layers, resolve, restore
from caffe_compat.errors import FormatError, UpgradeError, VggcError, Where, raise_all
from caffe_compat.mapped import map_file
from caffe_compat.reading import read_document
from caffe_compat.schema import pb
from caffe_compat.source import Document, SourceMap, UnknownField
from caffe_compat.tags import BYTES, Tags, encode_varint
from caffe_compat.textformat import dump, unknown_fields
from caffe_compat.upgrade import upgrade_net, upgrade_solver
from caffe_compat.writing import new_file

TEXT_SUFFIXES = (".prototxt", ".pbtxt", ".txt")
BINARY_SUFFIXES = (".caffemodel", ".binaryproto")


@dataclass(frozen=True)
class UpgradedFile:
    """A net or solver in the newest generation, still to be written.

    Attributes:
        source: name of the file.
        binary: whether it is binary.
        message: the result, without blobs.
        generation: of the file: "V0", "V1" or "V2"; "" for solvers.
        changed: whether the result differs from the file.
        problems: fields that have no place in the result. Caffe's tools write it all the same, and exit with 1.
        notes: what was changed, dropped or will be ignored.
        unknown: fields that Caffe does not have; they are kept, but for those among the problems.
        origins: for each layer of the result the path of its layer in the file.
        document: the file as it was read.
    """

    source: str
    binary: bool
    message: pb.NetParameter | pb.SolverParameter
    generation: str
    changed: bool
    problems: tuple[VggcError, ...]
    notes: tuple[str, ...]
    unknown: tuple[UnknownField, ...]
    origins: tuple[str, ...]
    document: Document

    def text(self) -> str:
        """The result as prototxt; what a text file says that Caffe does not know is kept."""
        carried: dict[str, list[str]] = {}
        for unknown in () if self.binary else self.unknown:
            place = _new_place(unknown, self.message, self.origins)
            if place is not None:
                carried.setdefault(place, []).append(unknown.text)
        return dump(self.message, carried)

    def write(self, target: Path, *, force: bool = False) -> None:
        """Write the result as the file is, text or binary with its blobs; a binary net may also become .prototxt.

        Raises:
            VggcError: `target` exists and `force` is not given, or it cannot be written.
            FormatError: a text file is to become a binary one.
        """
        if not self.binary and target.suffix in BINARY_SUFFIXES:
            what = f"{self.source} is text, without weights to put into {target.name}"
            raise FormatError(what, remedy="name the result .prototxt")
        if target.exists() and not force:
            raise VggcError(
                "the file exists", where=str(target), remedy="choose another name, or overwrite with --force"
            )
        text = None if self.binary and target.suffix not in TEXT_SUFFIXES else self.text()
        with new_file(target) as file:
            if text is None:
                _write_binary(self, file)
            else:
                file.write(text.encode())


def upgrade_file(path: str | PathLike[str], *, strict: bool = False, dialect: str = "") -> UpgradedFile:
    """Read a net or solver, text or binary, and bring it to the newest generation.

    Args:
        path: the file.
        strict: refuse fields that have no place in the result, and fields that neither Caffe nor a known fork has.
        dialect: the fork that wrote a binary net, "" to judge by the file; or the one whose layer types a V1 net has.

    Raises:
        FormatError: it cannot be read.
        UpgradeError: Caffe would refuse it; with `strict`, `Problems` for several fields.
    """
    document = read_document(path, dialect)
    message = document.message
    file = _net(document, message, resolve(dialect)) if isinstance(message, pb.NetParameter) else _solver(document)
    if strict:
        strange = {
            str(unknown.where): _strange(unknown, "neither Caffe nor a known fork has a field")
            for unknown in file.unknown
        }
        raise_all([*strange.values(), *(p for p in file.problems if str(p.where) not in strange)])
    return file


def _is_binary(places: SourceMap) -> bool:
    return next((where.offset >= 0 for where in places.positions.values()), False)


def _net(document: Document, net: pb.NetParameter, dialect: str) -> UpgradedFile:
    places = document.map
    up = upgrade_net(net, places, dialect)
    lost = [] if _is_binary(places) else _lost(places, up.net, up.origins)
    return UpgradedFile(
        source=places.source,
        binary=_is_binary(places),
        message=up.net,
        generation=up.generation,
        changed=up.changed,
        problems=(*up.problems, *lost),
        notes=(*up.notes, *places.warnings),
        unknown=tuple(places.unknown),
        origins=up.origins,
        document=document,
    )


def _solver(document: Document) -> UpgradedFile:
    places = document.map
    if any(".blobs[" in path for path in places.positions):
        what = "a binary solver with weights in an inline net"
        raise UpgradeError(what, where=places.source, remedy="keep the net in a file of its own")
    up = upgrade_solver(cast(pb.SolverParameter, document.message), places)
    return UpgradedFile(
        source=places.source,
        binary=_is_binary(places),
        message=up.solver,
        generation="",
        changed=up.changed,
        problems=(),
        notes=(*up.notes, *places.warnings),
        unknown=tuple(places.unknown),
        origins=(),
        document=document,
    )


# -- unknown fields of text files ---------------------------------------------------------------------------


def _lost(places: SourceMap, net: pb.NetParameter, origins: Sequence[str]) -> Iterator[VggcError]:
    for unknown in places.unknown:
        if _new_place(unknown, net, origins) is None:
            yield _strange(unknown, "no place in the newest generation for the unknown field")


def _strange(unknown: UnknownField, what: str) -> UpgradeError:
    name = unknown.path.rpartition(".")[2]
    return UpgradeError(f'{what} "{name}"', where=unknown.where, remedy=f"remove {name}")


def _new_place(unknown: UnknownField, message: Message, origins: Sequence[str]) -> str | None:
    """The path of the message that an unknown field of a text file goes to; None when it is no longer there."""
    (old,) = unknown_fields(SourceMap(unknown=(unknown,)))
    head, _, rest = old.partition(".")
    if head in origins:
        head = f"layer[{origins.index(head)}]"
        inside = "" if rest == "layer" else rest.removeprefix("layer.")  # V0 has its parameters in `layer`
        new = f"{head}.{inside}" if inside else head
    else:
        new = old
    return new if _has(message, new) else None


def _has(message: Message, path: str) -> bool:
    """Whether there is a message at a path."""
    for part in path.split(".") if path else ():
        name, _, index = part.rstrip("]").partition("[")
        if name not in message.DESCRIPTOR.fields_by_name:
            return False
        value = getattr(message, name)
        if index and int(index) >= len(value):
            return False
        if not index and not message.HasField(name):
            return False
        message = value[int(index)] if index else value
    return True


# -- binary files ------------------------------------------------------------------------------------------

CHUNK = 8 << 20
LAYER = pb.NetParameter.DESCRIPTOR.fields_by_name["layer"].number
BLOBS = pb.LayerParameter.DESCRIPTOR.fields_by_name["blobs"].number


def _write_binary(result: UpgradedFile, file: BinaryIO) -> None:
    """The result with the blobs of the file, byte by byte; a file that needs no change is copied."""
    if isinstance(result.message, pb.SolverParameter):
        file.write(result.message.SerializeToString(deterministic=True))
        return
    with open(result.source, "rb") as source:
        if not result.changed:
            shutil.copyfileobj(source, file, CHUNK)
            return
        header = pb.NetParameter()
        header.CopyFrom(result.message)
        header.ClearField("layer")
        tags = Tags(map_file(result.source), result.source)
        dialect = result.document.guess.numbers if result.document.guess else ""
        entries = list(zip(result.message.layer, result.origins, strict=True))
        if not has_input_layers(dialect):
            _put_inputs_back(header, [layer for layer, origin in entries if not origin])
            entries = [(layer, origin) for layer, origin in entries if origin]
        file.write(header.SerializeToString(deterministic=True))
        for layer, origin in entries:
            _write_layer(layer, dialect, list(_blobs(result.document.map, origin, tags)), source, file)


def _put_inputs_back(header: pb.NetParameter, layers: Sequence[pb.LayerParameter]) -> None:
    """State Input layers that the upgrade has made as fields of the net again, for forks older than that layer."""
    for layer in layers:
        header.input.extend(layer.top)
        header.input_shape.extend(layer.input_param.shape)


def _write_layer(
    layer: pb.LayerParameter, dialect: str, blobs: list[tuple[int, int]], source: BinaryIO, file: BinaryIO
) -> None:
    """One entry of `layer`: the small message as the dialect has it, then the blobs at (start, end) of `source`."""
    small = restore(layer.SerializeToString(deterministic=True), dialect)
    tags = [_head(BLOBS, end - start) for start, end in blobs]
    size = len(small) + sum(map(len, tags)) + sum(end - start for start, end in blobs)
    file.write(_head(LAYER, size) + small)
    for tag, (start, end) in zip(tags, blobs, strict=True):
        file.write(tag)
        source.seek(start)
        for at in range(start, end, CHUNK):
            file.write(source.read(min(CHUNK, end - at)))


def _blobs(places: SourceMap, origin: str, tags: Tags) -> Iterator[tuple[int, int]]:
    """Where the contents of a layer's blobs start and end in its file."""
    prefix = f"{origin}.layer.blobs" if f"{origin}.layer.blobs[0]" in places.positions else f"{origin}.blobs"
    index = 0
    while (where := places.positions.get(f"{prefix}[{index}]", Where())).offset >= 0:
        field = tags.field(where.offset, len(tags.data))
        yield field.value, field.end
        index += 1


def _head(number: int, size: int) -> bytes:
    return encode_varint(number << 3 | BYTES) + encode_varint(size)
