"""Pixels in, blobs out: what an ONNX model with preprocessing inside is fed with, and the same in numpy.

Such a model says under PROPERTY, as JSON: `input`, its input (uint8, N x H x W x C); `blob`, the net's input that is
made of it; `swap`, whether the channels are exchanged (RGB and BGR); `mean`, the tensor that is subtracted, "" for
none; `scale`, the factor that follows.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from caffe_compat.errors import FormatError
from converters.input_values import Inputs, decode, sizes_text

if TYPE_CHECKING:
    from converters.sides import Side

Array = NDArray[Any]
Shape = tuple[int, ...]

PROPERTY = "vggc_pixels"


def prepare(image: Array, swap: bool, mean: Array | None, scale: float) -> Array:
    """The blob (N, C, H, W) of pixels (N, H, W, C): (pixel - mean) * scale.

    Args:
        image: uint8.
        swap: exchange the order of the channels.
        mean: (C,) or (H, W, C), in the order of the blob's channels.
        scale: 1 for none.
    """
    values = (image[..., ::-1] if swap else image).astype(np.float32)
    values = values if mean is None else values - mean
    values = values * np.float32(scale)
    return np.ascontiguousarray(values.transpose(0, 3, 1, 2))


def pixels(shapes: Mapping[str, Shape], path: Path | None, seed: int, takes: Mapping[str, Any]) -> Inputs:
    """Pixels for a net's only input, from an image or at random, in the channel order that the model takes.

    Raises:
        VggcError: the file is not an image that can be read.
    """
    ((_blob, (count, channels, *size)),) = shapes.items()
    name, shape = str(takes.get("input", "")), (count, *size, channels)
    if path is None:
        values = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
        return Inputs({name: values}, (f"{name}: {sizes_text(shape)}, uniform from 0 to 255, seed {seed}",))
    image, how = decode(path, channels, (size[0], size[1]))
    image = image[..., ::-1] if takes.get("swap") else image
    values = np.ascontiguousarray(np.broadcast_to(image, shape))
    return Inputs({name: values}, (f"{name}: {sizes_text(shape)} from {path.name}, {how}",))


def feed(side: Side, image: Array, maker: Side, blob: str) -> dict[str, Array]:
    """What a side is fed with: the pixels, or what `maker`, which takes pixels, makes of them, in numpy.

    Raises:
        FormatError: what `maker` says about itself is not what `vggc convert` writes.
    """
    if side.takes:
        return {str(side.takes["input"]): image}
    takes = maker.takes
    mean = str(takes.get("mean", ""))
    scale = takes.get("scale", 1)
    if (mean and mean not in maker.weights) or not isinstance(scale, int | float):
        raise FormatError(f'what it says under "{PROPERTY}" does not hold', where=maker.path)
    return {blob: prepare(image, bool(takes.get("swap")), maker.weights[mean] if mean else None, scale)}
