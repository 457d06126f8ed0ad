"""Writing a .caffemodel and a .prototxt of any generation.

The net's small messages are made first; blob payloads then go straight from their source, each framed by its size.
Layout: protobuf's encoding of caffe.proto's NetParameter; shapes as Blob::ToProto of BVLC Caffe, or num, channels,
height and width in older generations.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from google.protobuf.message import Message

from caffe_compat.binding import bind
from caffe_compat.dec2013 import PROFILE as DEC2013
from caffe_compat.dialects import dialects, restore
from caffe_compat.errors import ConversionError, FormatError, raise_all
from caffe_compat.graph import Graph, Node
from caffe_compat.guessing import guess_net
from caffe_compat.schema import pb
from caffe_compat.source import SourceMap
from caffe_compat.tags import BYTES, encode_varint
from caffe_compat.textformat import dump
from caffe_compat.upgrade import copy_fields
from caffe_compat.weights import Blob, Shape
from converters.downgrade import downgrade, refused
from converters.model import Model
from converters.spelling import spell_out
from converters.streaming import Payloads, Target

if TYPE_CHECKING:
    from converters.importing.translation import Imported

LARGEST = 2**31 - 1
"""Bytes that protobuf, and so Caffe, reads of one file."""
LEGACY_AXES = 4


class Form(NamedTuple):
    """Whose binary form: the generation, and the fork, "" for BVLC Caffe."""

    generation: str
    dialect: str


class Place(NamedTuple):
    """Where the blobs of a layer stand: field numbers from the net down to the message that holds them."""

    path: tuple[int, ...]
    blobs: int


def _number(message: type[Message], field: str) -> int:
    return int(message.DESCRIPTOR.fields_by_name[field].number)


PLACES = {
    "V2": Place((_number(pb.NetParameter, "layer"),), _number(pb.LayerParameter, "blobs")),
    "V1": Place((_number(pb.NetParameter, "layers"),), _number(pb.V1LayerParameter, "blobs")),
    "V0": Place(
        (_number(pb.NetParameter, "layers"), _number(pb.V1LayerParameter, "layer")),
        _number(pb.V0LayerParameter, "blobs"),
    ),
}
DATA = _number(pb.BlobProto, "data")


def write(model: Model, target: Target, payloads: Payloads, generation: str = "V2") -> None:
    """Write the net with its weights. The same model always gives the same bytes.

    Raises:
        ConversionError: weights are missing or have other names than Caffe's, the net is too large, or a layer has no
            form in that generation; `Problems` when several.
    """
    graph = _checked(model)
    for part in _pieces(model, graph, _message(model, graph, generation), generation):
        if isinstance(part, Blob):
            payloads.send(part, target)
        else:
            target.write(part)


def write_net(model: Model, target: Target, generation: str = "V2") -> None:
    """Write the net without weights as prototxt.

    Raises:
        ConversionError: a layer has no form in that generation; `Problems` when several.
    """
    target.write(dump(_message(model, _built(model), generation)).encode())


def save(made: Imported, path: str | Path, generation: str = "V2", *, force: bool = False) -> tuple[Path, Path]:
    """Write a net that was made of another program: the .caffemodel and the .prototxt beside it, which are returned.

    Raises:
        ConversionError: see `write`; or one of the files exists and `force` is not given.
    """
    target = Path(path)
    paths = target, target.with_suffix(".prototxt")
    there = [each for each in paths if each.exists() and not force]
    raise_all(ConversionError("the target exists", where=str(each), remedy="set force to replace it") for each in there)
    model = model_of(made)
    with Payloads() as payloads, Target(target) as file, Target(paths[1]) as text:
        write(model, file, payloads, generation)
        write_net(model, text, generation)
        for each in (text, file):
            each.finish()
        payloads.check()
        for each in (text, file):
            each.rename()
    return paths


def model_of(made: Imported, source: str = "") -> Model:
    """A net that was made of another program, ready to be written in any format.

    Raises:
        GraphError: Caffe would refuse the net.
    """
    graph = Graph.from_net(made.net, source=SourceMap(source or made.weights.source))
    return Model(graph, bind(graph, made.weights).arrays, made.weights, made.notes)


def _built(model: Model) -> Graph:
    """The graph, under rules that files of Caffe stand for."""
    if model.graph is None:
        raise ConversionError("a caffemodel carries its net", remedy="give the net (--net), not --weights-only")
    if model.graph.context.profile == DEC2013:
        what = "the net was built by the rules of December 2013, which the result cannot say"
        raise ConversionError(what, remedy="use --profile bvlc")
    return model.graph


def _checked(model: Model) -> Graph:
    graph = _built(model)
    if model.renamed:
        raise ConversionError("a caffemodel has Caffe's names", remedy="use --names caffe")
    missing = [node for node in graph.nodes if any(key not in model.arrays for key in node.params)]
    raise_all(
        ConversionError("there are no weights for it", where=node.layer.where(), remedy="give weights of the whole net")
        for node in missing
    )
    return graph


def _message(model: Model, graph: Graph, generation: str) -> pb.NetParameter:
    """The net without weights, as programs of its generation and fork read it."""
    made = downgrade(net_of(graph, model.preprocessing), generation)
    own = dialects().get(graph.context.dialect or guess_net(made).dialect)
    if generation == "V2" and own and not own.has(pb.LayerParameter.DESCRIPTOR, "input_param"):
        _inputs_outside(made)
    return made


def _inputs_outside(net: pb.NetParameter) -> None:
    """Inputs as fields of the net, in place of Input layers, which came later than the fork."""
    layers = list(net.layer)
    del net.layer[:]
    for layer in layers:
        if layer.type != "Input":
            net.layer.append(layer)
            continue
        net.input.extend(layer.top)
        once = len(layer.input_param.shape) == 1
        net.input_shape.extend(list(layer.input_param.shape) * (len(layer.top) if once else 1))


def net_of(graph: Graph, ready: Mapping[str, Any] | None = None) -> pb.NetParameter:
    """The net that the graph is, without rules for phases, and with the inputs' shapes of this graph.

    Args:
        graph: the net.
        ready: how images are prepared; the Input layer of images says it in the words of a data layer, which Caffe
            does not read there.
    """
    net = pb.NetParameter(name=graph.net.name)
    if graph.net.HasField("force_backward"):
        net.force_backward = graph.net.force_backward
    for node in graph.nodes:
        layer = net.layer.add()
        copy_fields(node.layer.param, layer, leave={"blobs", "include", "exclude"})
        spell_out(node, layer)
        if layer.type == "Input":
            shapes = [graph.inputs[top] for top in layer.top]
            once = len(layer.input_param.shape) == 1 and len(set(shapes)) == 1
            layer.input_param.ClearField("shape")
            for shape in shapes[:1] if once else shapes:
                layer.input_param.shape.add(dim=shape)
    images = [layer for layer in net.layer if layer.type == "Input" and any(map(_is_image, layer.input_param.shape))]
    if ready and len(images) == 1 and ready.get("channel_order") != "RGB":
        images[0].transform_param.CopyFrom(_transform(ready))
    return net


def _is_image(shape: pb.BlobShape) -> bool:
    return len(shape.dim) == LEGACY_AXES


def _transform(ready: Mapping[str, Any]) -> pb.TransformationParameter:
    """The words of a data layer, as far as it has any."""
    made = pb.TransformationParameter(mean_value=ready.get("mean_value", ()))
    for name in ("scale", "mean_file", "crop_size"):
        if name in ready:
            setattr(made, name, ready[name])
    return made


# -- bytes -------------------------------------------------------------------------------------------------


def _pieces(model: Model, graph: Graph, made: pb.NetParameter, generation: str) -> Iterator[bytes | Blob]:
    """The file: bytes, and blobs whose values follow; layers of a fork have its own numbers."""
    dialect = graph.context.dialect or guess_net(made).dialect
    header = pb.NetParameter()
    copy_fields(made, header, leave={"layer", "layers"})
    total = header.ByteSize()
    yield header.SerializeToString(deterministic=True)
    nodes = [node for node in graph.nodes if not made.input or node.layer.TYPE != "Input"]
    layers: Sequence[Any] = made.layer if generation == "V2" else made.layers
    for node, layer in zip(nodes, layers, strict=True):
        parts = list(_layer(model, node, layer, Form(generation, dialect)))
        total += sum(map(_size, parts))
        if total > LARGEST:
            what = f"the file would exceed {LARGEST} bytes, the most that protobuf reads"
            raise refused(node.layer.param, what, "write .caffemodel.h5")
        yield from parts


def _layer(model: Model, node: Node, layer: Any, form: Form) -> Iterator[bytes | Blob]:
    """One layer: its message, and its blobs in the innermost message of the path."""
    place = PLACES[form.generation]
    arrays = [model.arrays[key] for key in node.params]
    parts: list[bytes | Blob] = []
    for blob, shape in zip(arrays, node.blob_shapes, strict=True):
        parts += _blob(blob, _header(node, shape, form.generation), place.blobs)
    inner = [] if len(place.path) == 1 else [layer.layer]
    for message, number in zip([*inner, layer], reversed(place.path), strict=True):
        copy = type(message)()
        copy_fields(message, copy, leave={"layer"} if message is layer and inner else set())
        parts = [_restored(copy, node, form), *parts]
        parts = [_frame(number, sum(map(_size, parts))), *parts]
    yield from parts


def _restored(message: Message, node: Node, form: Form) -> bytes:
    """A layer's message without blobs, as its fork writes it."""
    data = message.SerializeToString(deterministic=True)
    if form.generation != "V2":
        return data
    try:
        return restore(data, form.dialect)
    except FormatError as error:
        raise refused(node.layer.param, error.what, error.remedy) from error


def _header(node: Node, shape: Shape, generation: str) -> pb.BlobProto:
    """The blob without its values."""
    if generation == "V2":
        return pb.BlobProto(shape=pb.BlobShape(dim=shape))
    if len(shape) > LEGACY_AXES:
        raise refused(node.layer.param, f"a blob of {len(shape)} axes; older generations have {LEGACY_AXES}")
    num, channels, height, width = (*[1] * (LEGACY_AXES - len(shape)), *shape)
    return pb.BlobProto(num=num, channels=channels, height=height, width=width)


def _blob(blob: Blob, header: pb.BlobProto, number: int) -> list[bytes | Blob]:
    """The blob up to its values, then the values."""
    if blob.values.dtype.name != "float32":
        raise ConversionError(f"values of type {blob.values.dtype}", where=blob.where, remedy="cast them to float32")
    head = header.SerializeToString(deterministic=True) + _frame(DATA, blob.values.nbytes)
    return [_frame(number, len(head) + blob.values.nbytes) + head, blob]


def _frame(number: int, size: int) -> bytes:
    """Tag and length of a field that holds `size` bytes."""
    return encode_varint(number << 3 | BYTES) + encode_varint(size)


def _size(part: bytes | Blob) -> int:
    return int(part.values.nbytes) if isinstance(part, Blob) else len(part)
