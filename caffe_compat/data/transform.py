"""What transform_param does to an image: crop, mean, scale and mirror (data_transformer.cpp)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from caffe_compat.data.random_numbers import Draw
from caffe_compat.errors import GraphError
from caffe_compat.schema import pb

Floats = NDArray[np.float32]
Planes = NDArray[np.uint8] | NDArray[np.float32]
"""An image (C, H, W)."""
Shape = tuple[int, ...]


class Part(NamedTuple):
    """The part of an image that is kept, and whether it is mirrored."""

    top: int
    left: int
    mirrored: bool


@dataclass(frozen=True)
class Transform:
    """The transformation of a data layer.

    Attributes:
        param: the net's; what forks have added to it is not looked at.
        train: crop at random, not in the middle.
        mean: the mean image (C, H, W) of `mean_file`.
    """

    param: pb.TransformationParameter
    train: bool
    mean: Floats | None = None

    def shape(self, image: Shape) -> Shape:
        """Shape (C, height, width) of what becomes of an image (C, H, W) (InferBlobShape).

        Raises:
            GraphError: it is smaller than the crop, or does not fit the means.
        """
        channels, height, width = image
        crop = self.param.crop_size
        if crop > min(height, width):
            what = f"crop_size {crop} is larger than an image of {height} x {width}"
            raise GraphError(what, remedy="crop less, or write larger images")
        if self.mean is not None and self.mean.shape != image:
            what = f"the mean image has shape {self.mean.shape}, an image {image}"
            raise GraphError(what, remedy="use the mean of these images (vggc data mean), or mean_value")
        means = len(self.param.mean_value)
        if means not in (0, 1, channels):
            what = f"{means} mean_value entries for images of {channels} channel(s)"
            raise GraphError(what, remedy="state one, or one per channel")
        return (channels, crop or height, crop or width)

    def draws(self, random: Draw) -> list[int]:
        """The raw random numbers for one image, in the order in which Caffe draws them."""
        count = bool(self.param.mirror) + 2 * bool(self.train and self.param.crop_size)
        return [random() for _ in range(count)]

    def part(self, image: Shape, draws: Sequence[int]) -> Part:
        """What is kept of an image (C, H, W)."""
        mirrored = bool(self.param.mirror) and draws[0] % 2 == 1
        crop = self.param.crop_size
        room = [size - crop if crop else 0 for size in image[1:]]
        if self.train and crop:
            top, left = (draw % (spare + 1) for draw, spare in zip(draws[-2:], room, strict=True))
            return Part(top, left, mirrored)
        return Part(room[0] // 2, room[1] // 2, mirrored)

    def __call__(self, image: Planes, draws: Sequence[int] = ()) -> Floats:
        """(part of the image - mean) * scale, mirrored last, in float32.

        Args:
            image: (C, H, W), any strides.
            draws: from `draws`.

        Raises:
            GraphError: see `shape`.
        """
        values: Floats = np.empty(self.shape(image.shape), np.float32)
        self.write(image, draws, values)
        return values

    def write(self, image: Planes, draws: Sequence[int], values: Floats) -> None:
        """As calling it, into an array of the shape that `shape` gives."""
        _, height, width = values.shape
        part = self.part(image.shape, draws)
        rows, columns = slice(part.top, part.top + height), slice(part.left, part.left + width)
        target = values[:, :, ::-1] if part.mirrored else values
        if self.mean is not None:
            np.subtract(image[:, rows, columns], self.mean[:, rows, columns], out=target)
        elif self.param.mean_value:
            mean = np.array(self.param.mean_value, np.float32).reshape(-1, 1, 1)
            np.subtract(image[:, rows, columns], mean, out=target)
        else:
            target[...] = image[:, rows, columns]
        if self.param.scale != 1:
            target *= np.float32(self.param.scale)


class Transform2013(Transform):
    """As Caffe of December 2013: a crop is smaller than the image, offsets are drawn before mirror, and the last
    possible offset is never used (data_layer.cpp)."""

    def shape(self, image: Shape) -> Shape:
        crop = self.param.crop_size
        if crop and crop >= min(image[1:]):
            what = f"crop_size {crop} is not smaller than an image of {image[1]} x {image[2]}"
            raise GraphError(what, remedy="leave crop_size out, or use profile bvlc")
        return super().shape(image)

    def part(self, image: Shape, draws: Sequence[int]) -> Part:
        mirrored = bool(self.param.mirror) and draws[-1] % 2 == 1
        crop = self.param.crop_size
        room = [size - crop if crop else 0 for size in image[1:]]
        if self.train and crop:
            return Part(draws[0] % room[0], draws[1] % room[1], mirrored)
        return Part(room[0] // 2, room[1] // 2, mirrored)
