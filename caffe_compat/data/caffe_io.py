"""Preprocessing as pycaffe's `caffe.io` does it: Transformer, resize_image, oversample (python/caffe/io.py).

Numbers are those of pycaffe with scikit-image 0.19, which smooths before it makes images smaller; neither that package
nor scipy is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caffe_compat.errors import GraphError

Floats = NDArray[np.float32]
Matrix = NDArray[np.float64]
OVERSAMPLED = 10
TRUNCATED = 4.0
"""Standard deviations at which the smoothing ends."""


class Transformer:
    """Prepares images for a net's inputs, and turns inputs back into images.

    Args:
        inputs: input blob -> shape (N, C, H, W), e.g. `net.inputs`.

    Raises:
        GraphError: from the methods, for an unknown input or a setting that does not fit its shape.
    """

    def __init__(self, inputs: Mapping[str, Sequence[int]]) -> None:
        self.inputs = {name: tuple(shape) for name, shape in inputs.items()}
        self.transpose: dict[str, Sequence[int]] = {}
        self.channel_swap: dict[str, Sequence[int]] = {}
        self.raw_scale: dict[str, float] = {}
        self.mean: dict[str, NDArray[Any]] = {}
        self.input_scale: dict[str, float] = {}

    def preprocess(self, name: str, image: NDArray[Any]) -> Floats:
        """An image (H', W', C) as the input takes it, (C, H, W) in float32.

        In this order: resize, transpose, channel_swap, raw_scale, minus the mean, input_scale.
        """
        size = self._shape(name)[2:]
        values = np.array(image, np.float32)
        if values.shape[:2] != size:
            values = resize_image(values, size)
        if name in self.transpose:
            values = values.transpose(self.transpose[name])
        if name in self.channel_swap:
            values = values[list(self.channel_swap[name])]
        values = values * np.float32(self.raw_scale.get(name, 1))
        if name in self.mean:
            values = (values - self.mean[name]).astype(np.float32)
        return np.asarray(values * np.float32(self.input_scale.get(name, 1)))

    def deprocess(self, name: str, values: NDArray[Any]) -> Floats:
        """The image of an input; undoes all of `preprocess` but the resizing."""
        self._shape(name)
        image = np.array(values, np.float32).squeeze() / np.float32(self.input_scale.get(name, 1))
        if name in self.mean:
            image = (image + self.mean[name]).astype(np.float32)
        image = image / np.float32(self.raw_scale.get(name, 1))
        if name in self.channel_swap:
            image = image[np.argsort(self.channel_swap[name])]
        if name in self.transpose:
            image = image.transpose(np.argsort(self.transpose[name]))
        return np.asarray(image)

    def set_transpose(self, name: str, order: Sequence[int]) -> None:
        """The order of axes: (2, 0, 1) turns (H, W, C) into (C, H, W)."""
        self._count(order, len(self._shape(name)) - 1, "axes")
        self.transpose[name] = order

    def set_channel_swap(self, name: str, order: Sequence[int]) -> None:
        """The order of channels: (2, 1, 0) turns RGB into BGR; they are the first axis after `transpose`."""
        self._count(order, self._shape(name)[1], "channels")
        self.channel_swap[name] = order

    def set_raw_scale(self, name: str, scale: float) -> None:
        """A factor before the mean: 255 for nets that were trained on bytes."""
        self._shape(name)
        self.raw_scale[name] = scale

    def set_input_scale(self, name: str, scale: float) -> None:
        """A factor after the mean."""
        self._shape(name)
        self.input_scale[name] = scale

    def set_mean(self, name: str, mean: NDArray[Any]) -> None:
        """What is subtracted: one value a channel, or an image (H, W) or (C, H, W), which is resized to the input."""
        shape = self._shape(name)
        if mean.ndim == 1:
            self._count(mean, shape[1], "mean values")
            self.mean[name] = mean[:, None, None]
            return
        mean = mean[None] if mean.ndim == 2 else mean
        if mean.ndim != 3:
            raise GraphError(f"a mean of shape {mean.shape}", remedy="give (C), (H, W) or (C, H, W)")
        if mean.shape != shape[1:]:
            low, high = mean.min(), mean.max()
            normal = ((mean - low) / (high - low)).transpose(1, 2, 0) if high > low else mean.transpose(1, 2, 0) * 0
            mean = resize_image(normal, shape[2:]).transpose(2, 0, 1) * (high - low) + low
        self.mean[name] = mean

    def _shape(self, name: str) -> tuple[int, ...]:
        if name not in self.inputs:
            raise GraphError(f'no input called "{name}"', remedy=f"inputs: {', '.join(self.inputs) or 'none'}")
        return self.inputs[name]

    def _count(self, given: Any, wanted: int, what: str) -> None:
        if len(given) != wanted:
            raise GraphError(f"{len(given)} {what} for an input with {wanted}", remedy=f"give {wanted}")


def oversample(images: Sequence[NDArray[Any]] | NDArray[Any], crop: Sequence[int] | NDArray[Any]) -> Floats:
    """Four corners and the middle of each image, then the same mirrored: (10 n, height, width, C).

    Args:
        images: (H, W, C), all of one size.
        crop: height and width.
    """
    height, width = (int(side) for side in crop)
    rows, columns, _ = images[0].shape
    corners = [(top, left) for top in (0, rows - height) for left in (0, columns - width)]
    middle = (int(rows / 2.0 - height / 2.0), int(columns / 2.0 - width / 2.0))
    crops = []
    for image in images:
        five = [image[top : top + height, left : left + width] for top, left in (*corners, middle)]
        crops += five + [part[:, ::-1] for part in five]
    return np.stack(crops).astype(np.float32)


def resize_image(image: NDArray[Any], size: Sequence[int], order: int = 1) -> Floats:
    """An image (H, W, C) of another size (height, width).

    Images with 1 or 3 channels go through scikit-image's resize: smoothed along axes that become shorter, then
    interpolated linearly between pixel centres, with the image's least value around it. Others go through
    scipy's zoom: the corners' centres stay where they are.

    Args:
        order: of interpolation; 1 alone.

    Raises:
        GraphError: another order.
    """
    if order != 1:
        raise GraphError(f"interp_order {order}", remedy="use 1, linear interpolation")
    if image.shape[-1] not in (1, 3):
        return _along(image.astype(np.float64), size, _corner_weights).astype(np.float32)
    low, high = image.min(), image.max()
    if high <= low:
        return np.full((*size, image.shape[-1]), low, np.float32)
    normal = ((image - low) / (high - low)).astype(np.float64)
    resized = _along(_along(normal, size, _smoothing), size, _centre_weights)
    return np.asarray(resized.clip(0, 1) * (high - low) + low, np.float32)


# -- interpolation along one axis as a matrix ------------------------------------------------------------------


def _along(image: Matrix, size: Sequence[int], weights: Callable[[int, int], Matrix]) -> Matrix:
    """The image with a matrix (new, old) applied to its rows and one to its columns."""
    rows, columns = (weights(old, int(new)) for old, new in zip(image.shape[:2], size, strict=True))
    return np.asarray(reduce(np.matmul, (rows, image.transpose(2, 0, 1), columns.T)).transpose(1, 2, 0))


def _linear(positions: NDArray[Any], old: int) -> Matrix:
    """Weights of `old` pixels at some positions; around them are zeros."""
    return np.asarray(np.maximum(0, 1 - np.abs(positions[:, None] - np.arange(old))))


def _centre_weights(old: int, new: int) -> Matrix:
    return _linear((np.arange(new) + 0.5) * (old / new) - 0.5, old)


def _corner_weights(old: int, new: int) -> Matrix:
    return _linear(np.arange(new) * ((old - 1) / (new - 1) if new > 1 else 0), old)


def _smoothing(old: int, new: int) -> Matrix:
    """A Gaussian that takes away what the shorter axis cannot hold; with zeros around the image."""
    sigma = max(0.0, (old / new - 1) / 2)
    if not sigma:
        return np.eye(old)
    reach = int(TRUNCATED * sigma + 0.5)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    offsets = np.arange(old)[None] - np.arange(old)[:, None] + reach
    return np.where((offsets >= 0) & (offsets <= 2 * reach), kernel[offsets.clip(0, 2 * reach)], 0)
