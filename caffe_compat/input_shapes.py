"""Shapes of the Input layers that replace data layers: by what the data layers, the net and its weights say."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod

from caffe_compat.errors import GraphError, Where
from caffe_compat.graph import Graph, rebuild
from caffe_compat.layers.base import Context, Shape
from caffe_compat.schema import pb
from caffe_compat.upgrade import copy_fields
from caffe_compat.weights import Blob, Weights

LARGEST = 1024
"""Height and width up to which a fitting size is looked for."""

CHANNELS: dict[str, Callable[[Blob], int]] = {
    "Convolution": lambda blob: blob.shape[1],
    "ConvolutionDepthwise": lambda blob: blob.shape[0],
    "DepthwiseConvolution": lambda blob: blob.shape[0],
    "Deconvolution": lambda blob: blob.shape[0],
    "BatchNorm": lambda blob: blob.values.size,
    "Scale": lambda blob: blob.values.size,
}
"""Type -> channels of its bottom (per group for Convolution), by its first blob."""


@dataclass(frozen=True)
class DataInput:
    """An Input layer without shapes.

    Attributes:
        index: of the layer in its net.
        data: the data layers that it stands for; none for inputs of which a saved net only had the names.
    """

    index: int
    data: tuple[pb.LayerParameter, ...]


@dataclass(frozen=True)
class _Blob:
    """An input blob; parts of its shape that are not known yet are 0, `shape` is empty until all are."""

    name: str
    layer: pb.LayerParameter
    shape: Shape = ()
    size: tuple[int, int] = (0, 0)
    channels: int = 0
    reason: str = ""


def fill_shapes(
    net: pb.NetParameter,
    inputs: Sequence[DataInput],
    weights: Weights | None,
    given: Mapping[str, Sequence[int]],
    context: Context,
) -> list[str]:
    """Give the Input layers of `net` their shapes, in place. Returns what was replaced, and what told the shape.

    In this order: the shape given; the shape that the data layer states; the size of its crop, of resize_param or of
    its images with the channels of the first layer that has weights; the size at which the first InnerProduct layer
    fits its weights.

    Raises:
        GraphError: none of these tells the shape.
    """
    blobs = [_stated(top, item, given) for item in inputs for top in net.layer[item.index].top]
    if not all(blob.shape for blob in blobs):
        blobs = _Search(net, weights, blobs, context).solve()
    shapes = {blob.name: blob for blob in blobs}
    notes = []
    for item in inputs:
        layer = net.layer[item.index]
        for top in layer.top:
            layer.input_param.shape.add(dim=shapes[top].shape)
        told = ", ".join(f'"{t}" {" x ".join(map(str, shapes[t].shape))} ({shapes[t].reason})' for t in layer.top)
        replaced = ", ".join(f'"{data.name}" ({data.type})' for data in item.data)
        notes.append(f"replaced layer {replaced} by an Input: {told}" if item.data else f"added an Input: {told}")
    return notes


# -- what is stated ----------------------------------------------------------------------------------------


def _stated(top: str, item: DataInput, given: Mapping[str, Sequence[int]]) -> _Blob:
    data = item.data[0] if item.data else pb.LayerParameter(type="Input")
    blob = _Blob(top, data, size=_size(data), channels=_color(data))
    if top in given:
        return replace(blob, shape=tuple(int(dim) for dim in given[top]), reason="as asked for")
    position = list(data.top).index(top) if top in data.top else 0
    shape = _declared(data, position)
    return replace(blob, shape=shape, reason="stated by the layer") if shape else blob


def _declared(data: pb.LayerParameter, position: int) -> Shape:
    """The shape that a MemoryData or DummyData layer states for a top (their LayerSetUp)."""
    memory, dummy = data.memory_data_param, data.dummy_data_param
    if data.type == "MemoryData" and position == 0:
        return (memory.batch_size, memory.channels, memory.height, memory.width)
    if data.type == "DummyData" and dummy.shape:
        return tuple(dummy.shape[position if len(dummy.shape) > 1 else 0].dim)
    if data.type == "DummyData" and dummy.num:
        sizes = (dummy.num, dummy.channels, dummy.height, dummy.width)
        return tuple(dims[position if len(dims) > 1 else 0] for dims in sizes)
    return ()


def _size(data: pb.LayerParameter) -> tuple[int, int]:
    """Height and width of the images that a data layer gives, 0 where it does not say."""
    messages = (data.transform_param, data.data_param, data.image_data_param, data.window_data_param)
    crop = next((message.crop_size for message in messages if message.crop_size), 0)
    if crop:
        return (crop, crop)
    transform, image = data.transform_param, data.image_data_param
    resize = transform.resize_param  # of SSD; FIT_SMALL_SIZE keeps the image's own proportions
    resized = resize.resize_mode != resize.FIT_SMALL_SIZE and (resize.height, resize.width)
    stated = ((transform.crop_h, transform.crop_w), resized, (image.new_height, image.new_width))
    return next((size for size in stated if size and all(size)), (0, 0))


def _color(data: pb.LayerParameter) -> int:
    """Channels of the images that a data layer gives, 0 where it does not say."""
    transform = data.transform_param
    if transform.force_gray or (data.type == "ImageData" and not data.image_data_param.is_color):
        return 1
    return 3 if transform.force_color or len(transform.mean_value) == 3 or data.type == "ImageData" else 0


# -- what the weights tell ---------------------------------------------------------------------------------


class _Search:
    """Finds the missing shapes by building the net with candidates."""

    def __init__(self, net: pb.NetParameter, weights: Weights | None, blobs: Sequence[_Blob], context: Context) -> None:
        self.context = context
        self.net = pb.NetParameter()
        for layer in net.layer:
            copy_fields(layer, self.net.layer.add(), leave={"blobs"})
        self.blobs = list(blobs)
        self.weights = {layer.name: layer.blobs for layer in weights or () if layer.blobs}

    def solve(self) -> list[_Blob]:
        self.blobs = [blob if blob.shape else self.with_channels(blob) for blob in self.blobs]
        self.blobs = [self.sized(blob, *blob.size) if all(blob.size) else blob for blob in self.blobs]
        if not all(blob.shape for blob in self.blobs):
            self.find_size()
        return self.blobs

    def readers(self, blob: str) -> Iterator[pb.LayerParameter]:
        """The layers that depend on a blob."""
        reached = {blob}
        for layer in self.net.layer:
            if reached.intersection(layer.bottom):
                reached.update(layer.top)
                yield layer

    def build(self, blobs: Sequence[_Blob]) -> Graph:
        context = Context(profile=self.context.profile, dialect=self.context.dialect)
        return rebuild(self.net, context, {blob.name: blob.shape for blob in blobs})

    def with_channels(self, blob: _Blob) -> _Blob:
        """The channels, or the whole shape of a vector, that the first layer with weights asks for."""
        first = next((layer for layer in self.readers(blob.name) if layer.name in self.weights), None)
        if first is None and blob.channels:
            return replace(blob, reason="channels of the data layer")
        if first is None:
            raise self.failure(blob)
        stored = self.weights[first.name][0]
        reason = f'channels of layer "{first.name}"'
        if first.type == "InnerProduct":
            return self.vector(blob, stored.values.size // max(first.inner_product_param.num_output, 1), reason)
        if first.type not in CHANNELS or (len(stored.shape) < 2 and first.type.endswith("volution")):
            raise self.failure(blob)
        channels = CHANNELS[first.type](stored) * (first.convolution_param.group if first.type == "Convolution" else 1)
        times = range(1, 17) if any(layer.type == "Slice" for layer in self.readers(blob.name)) else range(1, 2)
        trials = [replace(blob, channels=n * channels, reason=reason) for n in times]
        return max(trials, key=self.suits) if len(trials) > 1 else trials[0]

    def suits(self, blob: _Blob) -> int:
        """How many of the layers that tell channels get blobs of the stored shape, 0 when one does not."""
        size = blob.size if all(blob.size) else (LARGEST, LARGEST)
        graph = self.build([replace(blob, shape=(1, blob.channels, *size)), *(b for b in self.blobs if b.shape)])
        params = graph.params
        told = [la.name for la in self.readers(blob.name) if la.type in CHANNELS and la.name in self.weights]
        fits = [self.weights[name][0].matches(params[name][0]) for name in told if name in params]
        return len(fits) if all(fits) else 0

    def vector(self, blob: _Blob, count: int, reason: str) -> _Blob:
        """The input of an InnerProduct layer of `count` inputs."""
        pixels = prod(blob.size)
        if pixels and count % pixels == 0:
            return replace(blob, channels=count // pixels, reason=reason)
        return replace(blob, shape=(1, count), reason=f"inputs{reason.removeprefix('channels')}")

    def sized(self, blob: _Blob, height: int, width: int, why: str = "size of the data layer") -> _Blob:
        if blob.shape:
            return blob
        return replace(blob, shape=(1, blob.channels, height, width), reason=f"{why}, {blob.reason}")

    def find_size(self) -> None:
        """One height and width for all blobs that lack them, by the first InnerProduct layer."""
        lacking = [blob for blob in self.blobs if not blob.shape]
        layer = next((la for la in self.readers(lacking[0].name) if la.type == "InnerProduct"), None)
        if layer is None or layer.name not in self.weights:
            raise self.failure(lacking[0])
        sizes, excess = range(1, LARGEST + 1), partial(self.excess, layer)
        least, beyond = bisect_left(sizes, 0, key=excess), bisect_right(sizes, 0, key=excess)
        if least == beyond or beyond == LARGEST:
            raise self.failure(lacking[0])
        fitting = sizes[least:beyond]
        size = max(fitting, key=lambda n: (n & -n, n))  # 28 rather than 27, 224 rather than 223
        where = f"from {fitting[0]} to {fitting[-1]}" if len(fitting) > 1 else f"at {size}"
        self.blobs = [self.sized(blob, size, size, f'layer "{layer.name}" fits {where}') for blob in self.blobs]

    def excess(self, layer: pb.LayerParameter, size: int) -> int:
        """Inputs of an InnerProduct layer at a size, less those that its weights have; -1 when the net breaks."""
        graph = self.build([self.sized(blob, size, size) for blob in self.blobs])
        if layer.name not in graph.params:
            return -1
        return prod(graph.params[layer.name][0]) - self.weights[layer.name][0].values.size

    def failure(self, blob: _Blob) -> GraphError:
        teller = f'{blob.layer.type} layer "{blob.layer.name}"' if blob.layer.name else "the net"
        what = f'{teller} does not tell the shape of the input "{blob.name}"'
        remedy = f"give it: --input-shape {blob.name}=1,{blob.channels or 3},224,224"
        return GraphError(what, where=Where(layer=blob.layer.name), remedy=remedy)
