"""Preparing images inside an ONNX model: what `--preprocess` does.

The model then takes pixels as decoders give them, uint8, N x H x W x C in RGB order, of the size that the net takes.
In front of the net stand: the channels in the net's order, (pixel - mean) * scale, and N x C x H x W. The mean goes
before any padding of the first layer, which a changed bias could not do.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from caffe_compat.errors import ConversionError, FormatError
from converters.image_options import REMEDY, Mean, read_mean
from converters.model import Model
from converters.pixels import PROPERTY

IMAGE = "image"
"""Name of the model's input."""


@dataclass(frozen=True)
class Pixels:
    """How an image is prepared.

    Attributes:
        blob: the net's input.
        mean: subtracted: (C,) or (H, W, C), in the net's channel order; None for none.
        scale: the factor that follows.
        swap: the net takes BGR.
    """

    blob: str
    mean: Mean | None
    scale: float
    swap: bool


def read_pixels(model: Model, mean: str = "", *, turned: bool = False) -> Pixels:
    """What the net's data layer says, or the user in its place.

    Args:
        model: its `preprocessing` says it; without any it takes BGR.
        mean: name of the .binaryproto or .npy that the user gave as mean; numbers are in `preprocessing`.
        turned: the net's channels were exchanged after the mean was given.

    Raises:
        ConversionError: the net has not one input that is an image, or a mean is missing or does not fit.
    """
    blob, (_n, channels, *size) = _input(model)
    said: Mapping[str, Any] = model.preprocessing
    if mean:
        values = read_mean(mean)
        values = values[::-1] if turned and len(values) == channels else values
    elif said.get("mean_file") and not said.get("mean_value"):
        what = f"the net's mean is in the file {said['mean_file']}"
        raise ConversionError(what, remedy=REMEDY)
    else:
        values = np.array(said.get("mean_value", ()), np.float32)
    swap = channels == 3 and said.get("channel_order", "BGR") == "BGR"
    return Pixels(blob, _fitted(values, channels, (size[0], size[1])), float(said.get("scale", 1)), swap)


def _input(model: Model) -> tuple[str, tuple[int, ...]]:
    graph = model.graph
    if graph is None or len(graph.inputs) != 1:
        raise ConversionError("preprocessing needs a net with one input", remedy="leave out --preprocess")
    blob, shape = next(iter(graph.inputs.items()))
    if len(shape) != 4 or shape[1] not in (1, 3):
        what = f"the input {blob} is {' x '.join(map(str, shape))}, not an image of 1 or 3 channels"
        raise ConversionError(what, remedy="leave out --preprocess")
    return blob, shape


def _fitted(mean: Mean, channels: int, size: tuple[int, int]) -> Mean | None:
    """The mean for the net's input: one a channel, or the middle of a larger image, as Caffe's TEST phase crops."""
    if not mean.size or not mean.any():
        return None
    if mean.ndim == 1 and mean.size in (1, channels):
        return np.broadcast_to(mean, channels).astype(np.float32)
    if mean.ndim != 3 or mean.shape[0] != channels or mean.shape[1] < size[0] or mean.shape[2] < size[1]:
        what = f"a mean of {' x '.join(map(str, mean.shape))} for an input of {channels} x {size[0]} x {size[1]}"
        raise ConversionError(what, remedy="give one number a channel, or an image that is at least as large")
    top, left = (mean.shape[1] - size[0]) // 2, (mean.shape[2] - size[1]) // 2
    middle = mean[:, top : top + size[0], left : left + size[1]]
    return np.ascontiguousarray(middle.transpose(1, 2, 0), np.float32)


def sentence(pixels: Pixels) -> str:
    """What the model does with pixels, in words."""
    mean = pixels.mean
    if mean is None:
        less = "no mean"
    else:
        less = "less a mean image" if mean.ndim == 3 else f"less {', '.join(f'{value:g}' for value in mean)}"
    order = "RGB to BGR, " if pixels.swap else ""
    return f"the ONNX model takes {IMAGE}, uint8 N x H x W x C: {order}{less}, times {pixels.scale:g}"


# -- in the model ----------------------------------------------------------------------------------------------


def prepend(model: onnx.ModelProto, pixels: Pixels) -> None:
    """Let the model take pixels in place of the blob.

    Raises:
        FormatError: the model has no such input.
    """
    place = next((i for i, info in enumerate(model.graph.input) if info.name == pixels.blob), None)
    if place is None:
        raise FormatError(f"the model has no input {pixels.blob}")
    info = model.graph.input[place]
    taken = {name for node in model.graph.node for name in (*node.input, *node.output)}
    image = _unused(IMAGE, taken)
    nodes, constants = _nodes(image, pixels)
    batch, channels, height, width = info.type.tensor_type.shape.dim
    dims = [each.dim_param or each.dim_value for each in (batch, height, width, channels)]
    model.graph.value_info.append(info)
    del model.graph.input[place]
    model.graph.input.insert(place, helper.make_tensor_value_info(image, TensorProto.UINT8, dims))
    rest = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *rest])
    model.graph.initializer.extend(constants)
    _describe(model, image, pixels)


def _unused(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    return name


def _nodes(image: str, pixels: Pixels) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Nodes from the image to the blob, and what they need."""
    steps: list[tuple[str, NDArray[Any] | None, dict[str, Any]]] = [("Cast", None, {"to": TensorProto.FLOAT})]
    if pixels.swap:
        steps.append(("Gather", np.array([2, 1, 0], np.int64), {"axis": 3}))
    if pixels.mean is not None:
        steps.append(("Sub", pixels.mean, {}))
    if pixels.scale != 1:
        steps.append(("Mul", np.array(pixels.scale, np.float32), {}))
    steps.append(("Transpose", None, {"perm": [0, 3, 1, 2]}))
    nodes, constants, value = [], [], image
    for kind, constant, attributes in steps:
        top = pixels.blob if kind == "Transpose" else f"{image}/{kind}"
        names = [value]
        if constant is not None:
            names.append(_mean_name(image) if kind == "Sub" else f"{image}/{kind}/const")
            constants.append(numpy_helper.from_array(constant, names[-1]))
        nodes.append(helper.make_node(kind, names, [top], name=f"{image}/{kind}", **attributes))
        value = top
    return nodes, constants


def _mean_name(image: str) -> str:
    return f"{image}/mean"


def _describe(model: onnx.ModelProto, image: str, pixels: Pixels) -> None:
    """Say what the model does itself; what it said that users have to do goes."""
    about = {
        "input": image,
        "blob": pixels.blob,
        "swap": pixels.swap,
        "mean": "" if pixels.mean is None else _mean_name(image),
        "scale": float(np.float32(pixels.scale)),
    }
    kept = [(entry.key, entry.value) for entry in model.metadata_props if entry.key != "preprocessing"]
    helper.set_model_props(model, {**dict(kept), PROPERTY: json.dumps(about, sort_keys=True)})
    model.doc_string += f" Images go in as they are: {image} is uint8, N x H x W x C, in RGB order."
