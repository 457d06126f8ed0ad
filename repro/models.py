"""A classification net from a file of any kind, ready to be evaluated: its blobs, and how its images are prepared."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caffe_compat.data.images import Image
from caffe_compat.dense import dense_arrays, dense_graph, scores_and_posteriors
from caffe_compat.errors import FormatError, GraphError, VggcError
from caffe_compat.graph import Graph
from caffe_compat.loading import State
from caffe_compat.preprocessing import carried
from converters.convert import Options as ConvertOptions
from converters.convert import prepare
from converters.mean import read as read_mean_image
from converters.model import Model

MEAN = (103.939, 116.779, 123.68)
"""Blue, green, red: the training set's mean pixel of the paper's released models."""
BGR, RGB = "BGR", "RGB"


@dataclass(frozen=True)
class Preparation:
    """What becomes of pixels (H, W, 3), BGR: (pixel - mean) * scale, channels first.

    Attributes:
        mean: one value a channel, in the net's order.
        scale: the factor that follows.
        order: of the net's channels, "BGR" or "RGB".
        said: where these come from.
    """

    mean: tuple[float, ...]
    scale: float = 1.0
    order: str = BGR
    said: str = ""

    def __call__(self, image: Image) -> NDArray[np.float32]:
        """(H, W, 3) bytes, BGR, to (C, H, W); a net with one channel gets grey."""
        if len(self.mean) == 1:
            from caffe_compat.data.images import opencv

            image = opencv().cvtColor(image, opencv().COLOR_BGR2GRAY)[..., None] if image.shape[2] == 3 else image
        pixels = image[..., ::-1] if self.order == RGB else image
        values = np.empty((pixels.shape[2], *pixels.shape[:2]), np.float32)
        np.subtract(pixels.transpose(2, 0, 1), np.array(self.mean, np.float32)[:, None, None], out=values)
        return values if self.scale == 1 else values * np.float32(self.scale)


def preparation(
    stated: Mapping[str, Any],
    channels: int,
    folder: Path,
    *,
    mean: str = "",
    scale: float | None = None,
    order: str = "",
) -> Preparation:
    """How images are prepared: by what the user says, else what the model says, else as the released VGG nets.

    Args:
        stated: see caffe_compat.preprocessing.
        channels: of the net's images.
        folder: where a mean file that the model names is looked for.
        mean: "B,G,R", or a file of a mean image (.binaryproto, .npy), of which the mean pixel is taken.

    Raises:
        VggcError: a mean is not there, or has another number of channels.
    """
    order = order or str(stated.get("channel_order", BGR))
    factor = float(stated.get("scale", 1)) if scale is None else scale
    values, said = _mean(mean, stated, folder, channels)
    values = values * channels if len(values) == 1 else values
    if len(values) != channels:
        what = f"a mean of {len(values)} values for images of {channels} channel(s)"
        raise VggcError(what, remedy="give --mean with one value a channel")
    return Preparation(values, factor, order, f"{order if channels == 3 else 'grey'}, mean {said}, scale {factor:g}")


def _mean(given: str, stated: Mapping[str, Any], folder: Path, channels: int) -> tuple[tuple[float, ...], str]:
    """The mean pixel, and where it is from."""
    if given:
        values = _numbers(given)
        return values or _mean_pixel(Path(given)), f"{given} (--mean)"
    if value := stated.get("mean_value"):
        values = tuple(float(each) for each in value)
        return values, f"{','.join(f'{each:g}' for each in values)} (the model's)"
    if name := stated.get("mean_file"):
        path = folder / Path(str(name)).name
        if not path.is_file():
            what = f"the model's mean is in the file {name}, which is not beside it"
            raise VggcError(what, remedy="give it with --mean FILE, or --mean B,G,R")
        return _mean_pixel(path), f"pixel of {path.name}"
    if channels != len(MEAN):
        return (0.0,) * channels, "0 (none is stated)"
    return MEAN, f"{','.join(map(str, MEAN))} (of the released VGG nets; the model states none)"


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        return ()


def _mean_pixel(path: Path) -> tuple[float, ...]:
    image = read_mean_image(path)
    return tuple(float(value) for value in image.reshape(image.shape[0], -1).mean(axis=1, dtype=np.float64))


# -- nets ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Classifier:
    """A net with one image input.

    Attributes:
        path: the file.
        model: the net and its weights; of an ONNX file that has no form in Caffe None.
        blob: the input.
        channels, crop: its sizes.
        scores, posteriors: blobs; "" where the net has no such.
        classes: how many; 0 when that is not known.
        prepare: pixels -> input.
        file: an ONNX file that is run as it is.
        batch: the only batch size that the file takes, 0 for any.
        notes: what a user should know.
    """

    path: Path
    model: Model | None
    blob: str
    channels: int
    crop: int
    scores: str
    posteriors: str
    classes: int
    prepare: Preparation
    file: Path | None = None
    batch: int = 0
    notes: tuple[str, ...] = field(default=())

    @property
    def graph(self) -> Graph:
        """The net.

        Raises:
            GraphError: the file has no form in Caffe.
        """
        if self.model is None or self.model.graph is None:
            what = "this ONNX model has no form as a net of Caffe"
            raise GraphError(what, where=str(self.path), remedy="evaluate it on crops (--protocol multicrop)")
        return self.model.graph

    @cached_property
    def dense(self) -> Model:
        """The net for whole images.

        Raises:
            GraphError: it has no such form.
        """
        graph, model = dense_graph(self.graph), self.model
        assert model is not None
        arrays = dense_arrays(graph, self.graph, model.arrays)
        return replace(model, graph=graph, arrays=arrays, renamed={})

    @cached_property
    def sha256(self) -> str:
        """Of the file."""
        with open(self.path, "rb") as data:
            return hashlib.file_digest(data, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(data)


def _digest(data: Any) -> str:
    digest = hashlib.sha256()
    while block := data.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def open_classifier(
    path: Path,
    net: Path | None = None,
    *,
    mean: str = "",
    scale: float | None = None,
    order: str = "",
    output: str = "",
    profile: str = "bvlc",
    dialect: str = "",
    python_layers: str | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> Classifier:
    """Open a model.

    Args:
        path: .caffemodel, .safetensors, .onnx; with `net` also .pt and .h5.
        net: prototxt of the net.
        mean, scale, order: see `preparation`.
        output: the blob of posteriors, when the net has several outputs.
        profile, dialect, python_layers, shapes: see `caffe_compat.load`.

    Raises:
        VggcError: it cannot be read, or is no net of one image input.
    """
    how = {"mean": mean, "scale": scale, "order": order}
    if path.suffix.lower() == ".onnx":
        return _onnx(path, net, how, output)
    state = State(profile=profile, dialect=dialect, input_shapes=shapes, python_layers=python_layers)
    model = prepare(path, ConvertOptions(net=net, state=state)).model
    return _classifier(path, model, how, output)


def _classifier(path: Path, model: Model, how: Mapping[str, Any], output: str) -> Classifier:
    graph = model.graph
    if graph is None:
        raise FormatError("there is no net", where=str(path), remedy="give it with --net")
    blob, (_n, channels, crop) = _input(path, graph.inputs)
    scores, posteriors = ("", output) if output else scores_and_posteriors(graph)
    if output and output not in graph.shapes:
        raise GraphError(f"no blob called {output}", where=str(path), remedy=f"blobs: {', '.join(graph.shapes)}")
    ready = preparation(model.preprocessing, channels, path.parent, **how)
    notes = (*model.notes, *_no_softmax(scores, posteriors))
    classes = prod(graph.shapes[posteriors or scores][1:])
    return Classifier(path, model, blob, channels, crop, scores, posteriors, classes, ready, notes=notes)


def _input(path: Path, inputs: Mapping[str, Sequence[int]]) -> tuple[str, tuple[int, int, int]]:
    """The only input, and (N, C, side) of it."""
    images = {blob: shape for blob, shape in inputs.items() if len(shape) == 4}
    if len(inputs) != 1 or len(images) != 1:
        what = f"a net with the inputs {', '.join(inputs) or 'none'}, where one of images is needed"
        raise GraphError(what, where=str(path), remedy="give a net with one input N x C x H x W")
    blob, (n, channels, height, width) = next(iter(images.items()))
    if height != width or not height or channels not in (1, 3):
        what = f'the input "{blob}" is {channels} x {height} x {width}; crops are square, of one or three channels'
        raise GraphError(what, where=str(path), remedy="give a shape with --input-shape")
    return blob, (n, channels, height)


def _no_softmax(scores: str, posteriors: str) -> tuple[str, ...]:
    return () if posteriors else (f"the net has no Softmax: posteriors are the Softmax of {scores}",)


def _onnx(path: Path, net: Path | None, how: Mapping[str, Any], output: str) -> Classifier:
    """An ONNX file, run as it is on crops, and as the net of Caffe that it becomes on whole images."""
    from converters.onnx_reading import read_model
    from converters.onnx_running import input_shapes
    from converters.pixels import PROPERTY

    if net is not None:
        raise VggcError("a file of this kind has its own net", where=str(path), remedy="leave --net out")
    proto = read_model(path)
    about = {entry.key: entry.value for entry in proto.metadata_props}
    if PROPERTY in about:
        what = "this ONNX model prepares images itself"
        raise VggcError(what, where=str(path), remedy="convert it again without --preprocess")
    blob, (batch, channels, crop) = _input(path, input_shapes(proto))
    outputs = [info.name for info in proto.graph.output]
    if (output not in outputs) if output else len(outputs) != 1:
        remedy = f"name one with --output: {', '.join(outputs)}"
        raise GraphError(f"the model has {len(outputs)} outputs", where=str(path), remedy=remedy)
    name = output or outputs[0]
    ends = any(node.op_type == "Softmax" and name in node.output for node in proto.graph.node)
    scores, posteriors = ("", name) if ends or output else (name, "")
    ready = preparation(carried(about), channels, path.parent, **how)
    try:
        model: Model | None = prepare(path, ConvertOptions()).model
    except VggcError:
        model = None
    notes = _no_softmax(scores, posteriors)
    shape = next(info.type.tensor_type.shape.dim for info in proto.graph.output if info.name == name)
    classes = prod(dim.dim_value for dim in shape[1:])
    return Classifier(path, model, blob, channels, crop, scores, posteriors, classes, ready, path, batch, notes)
