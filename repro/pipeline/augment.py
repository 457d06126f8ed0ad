"""What becomes of one image: rescaled, cropped, flipped, its colours shifted, less the mean pixel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from caffe_compat.data.images import Image, opencv
from caffe_compat.errors import VggcError
from repro.image_sets import DataError, ImageSet
from repro.pipeline.colour import Colour
from repro.pipeline.draws import Draws
from repro.rescaling import rescale, rescaled_size

Floats = NDArray[np.float32]
NUMBERS = 10
"""Random numbers of an image: scale, top, left, mirror, and three normal ones of two."""
MIDDLE = 0.5 - 2.0**-40
REDUCTIONS = (8, 4, 2)
"""Fractions of the size that JPEG can be decoded at."""


class View(NamedTuple):
    """How an image is seen.

    Attributes:
        scale: the smallest side of the rescaled image.
        top, left: shares of the room that there is for the crop, from 0 up to, not with, 1.
        mirrored: columns are reversed.
        subtracted: (3) float32, B G R: the mean pixel less the shift of colours.
    """

    scale: int
    top: float
    left: float
    mirrored: bool
    subtracted: Floats


class Preparation(Protocol):
    """What turns images into crops of one size.

    Attributes:
        crop: height and width of a crop.
        seed: of the order of images in an epoch.
        reduced: decode JPEG at 1/2, 1/4 or 1/8 of its size where that is at least what is needed. It is faster, and
            not the same: libjpeg averages in the frequency domain, and the bilinear rescaling starts from that.
    """

    @property
    def crop(self) -> int: ...
    @property
    def seed(self) -> int: ...
    @property
    def reduced(self) -> bool: ...

    def view(self, epoch: int, index: int) -> View:
        """How an image is seen in an epoch."""


@dataclass(frozen=True)
class Augment:
    """The paper's augmentation; each draw is a function of (seed, epoch, index of the image).

    Attributes:
        seed: of all draws.
        crop: side of the square crop.
        scales: the smallest side S of the rescaled image, or the least and largest S, of which one is drawn an image,
            all integers between alike.
        mean: (3) the mean pixel, B G R.
        colour: the shifts of colours; None for none.
        flip: mirror every other image.
        reduced: see `Preparation`.

    Raises:
        DataError: a crop larger than the smallest scale.
    """

    seed: int
    crop: int
    scales: int | tuple[int, int]
    mean: Sequence[float] | NDArray[np.floating]
    colour: Colour | None = None
    flip: bool = True
    reduced: bool = False

    def __post_init__(self) -> None:
        least, largest = self.range
        if not 0 < self.crop <= least <= largest:
            what = f"crops of {self.crop} from images with a smallest side of {least} to {largest}"
            raise DataError(what, remedy="choose crop <= least scale <= largest scale")

    @property
    def range(self) -> tuple[int, int]:
        """The least and the largest S."""
        return (self.scales, self.scales) if isinstance(self.scales, int) else self.scales

    def view(self, epoch: int, index: int) -> View:
        draws, (least, largest) = Draws(self.seed, epoch, index, NUMBERS), self.range
        scale = least + draws.below(largest - least + 1)
        top, left, mirrored = draws.uniform(), draws.uniform(), draws.uniform() < 0.5
        shift = self.colour.shift(draws.normal() for _ in range(3)) if self.colour else 0.0
        subtracted = (np.asarray(self.mean, np.float64) - shift).astype(np.float32)
        return View(scale, top, left, mirrored and self.flip, subtracted)


@dataclass(frozen=True)
class Centre:
    """The crop in the middle, for validation: at ((H - crop) // 2, (W - crop) // 2), as Caffe has it."""

    crop: int
    scale: int
    mean: Sequence[float] | NDArray[np.floating]
    seed: int = 0
    reduced: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.crop <= self.scale:
            what = f"crops of {self.crop} from images with a smallest side of {self.scale}"
            raise DataError(what, remedy="choose crop <= scale")

    def view(self, epoch: int, index: int) -> View:
        return View(self.scale, MIDDLE, MIDDLE, False, np.asarray(self.mean, np.float64).astype(np.float32))


def crop_of(images: ImageSet, index: int, view: View, how: Preparation) -> Image:
    """The crop (crop, crop, 3) of uint8 that a view shows of an image; colours and mean come later.

    Raises:
        DataError: the image cannot be read, or would become too large.
    """
    crop = how.crop
    image = images.read(index, _reduction(images.size(index), view.scale) if how.reduced else 1)
    height, width = rescaled_size(image.shape[0], image.shape[1], view.scale)
    try:
        image = rescale(image, view.scale)
    except VggcError as error:
        raise DataError(error.what, where=images.place(index), remedy=error.remedy) from error
    top, left = _offset(view.top, height - crop), _offset(view.left, width - crop)
    part = image[top : top + crop, left : left + crop]
    return np.asarray(opencv().flip(part, 1)) if view.mirrored else part


def write_floats(part: Image, subtracted: Floats, out: Floats) -> None:
    """`part` (H, W, 3) of uint8 less what is subtracted from each channel, into (3, H, W) of float32."""
    for plane, level, target in zip(opencv().split(part), subtracted, out, strict=True):
        np.subtract(plane, level, out=target)


def batch(
    images: ImageSet, augment: Preparation, epoch: int, indices: Sequence[int] | NDArray[np.integer]
) -> tuple[Floats, NDArray[np.int64]]:
    """Images (n, 3, crop, crop) and their labels (n), one after another in this thread; what `Loader` must equal.

    Raises:
        DataError: an image cannot be read.
    """
    data = np.empty((len(indices), 3, augment.crop, augment.crop), np.float32)
    for out, index in zip(data, map(int, indices), strict=True):
        view = augment.view(epoch, index)
        write_floats(crop_of(images, index, view, augment), view.subtracted, out)
    return data, images.items.labels[np.asarray(indices, np.int64)]


def _offset(share: float, room: int) -> int:
    """Of `room` + 1 places one; a share drawn from [0, 1) gives all alike, `MIDDLE` gives room // 2."""
    return int(share * (room + 1))


def _reduction(size: tuple[int, int], smallest: int) -> int:
    """The strongest reduction that leaves the smallest side at least as large as wanted."""
    return next((each for each in REDUCTIONS if -(-min(size) // each) >= smallest), 1)
