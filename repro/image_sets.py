"""Labelled images that can be read one by one, in any order and from any thread."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
from numpy.typing import NDArray

from caffe_compat.data.images import Image, decode_image
from caffe_compat.errors import VggcError, Where
from repro.image_sizes import stored_size

UNKNOWN = -1
"""The label of an image whose class is not known."""


class DataError(VggcError):
    """Images that cannot be read, or do not fit what they are for."""


@dataclass(frozen=True)
class Item:
    """An image's name in its set, and its class; `UNKNOWN` when that is not known."""

    name: str
    label: int


class Items(Sequence[Item]):
    """The items of a set; of millions, only names and labels are kept.

    Attributes:
        names: one an image.
        labels: (n) int64.
    """

    def __init__(self, names: Sequence[str], labels: Sequence[int] | NDArray[np.integer]) -> None:
        self.names, self.labels = names, np.asarray(labels, np.int64)

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> Items: ...
    def __getitem__(self, index: int | slice) -> Item | Items:
        if isinstance(index, slice):
            return Items(self.names[index], self.labels[index])
        return Item(self.names[index], int(self.labels[index]))


class ImageSet(ABC):
    """Images with names and labels.

    Attributes:
        items: what is known of the images without reading them.
        classes: the classes' names, empty where they have none; labels count them.
        source: where the images are, for messages.
    """

    items: Items
    classes: tuple[str, ...]
    source: str

    def __len__(self) -> int:
        return len(self.items)

    @abstractmethod
    def stored(self, index: int) -> bytes | Image:
        """An image as it is stored: a file in its own encoding, or pixels (H, W, 1 or 3), BGR.

        Raises:
            VggcError: it cannot be read.
        """

    def head(self, index: int) -> bytes | Image:
        """As `stored`; of a file, the start may do."""
        return self.stored(index)

    def place(self, index: int) -> Where:
        """The image's place, for messages."""
        return Where(f"{self.source}: {self.items.names[index]}")

    def read(self, index: int, reduce: int = 1) -> Image:
        """An image (H, W, 3), uint8, BGR, as `cv::imread(file, CV_LOAD_IMAGE_COLOR)` gave it to Caffe in 2014.

        Grey is replicated to three channels. CMYK is converted by OpenCV, without a colour profile. Of 16 bits the
        upper 8 are kept in PNG and PNM, the nearest of 8 bits in TIFF. Transparency is dropped, not blended. The
        orientation that a camera has noted (EXIF) is not followed: OpenCV 2.4 did not know it. Float images are
        refused. Of an image that is cut off nothing is used.

        Args:
            reduce: 2, 4 or 8 to decode encoded images at that fraction of their size; the pixels are not those of
                decoding and resizing.

        Raises:
            DataError: it cannot be read; the message names it.
        """
        try:
            found = self.stored(index)
            image = decode_image(found, True, turn=False, reduce=reduce) if isinstance(found, bytes) else found
        except VggcError as error:
            remedy = error.remedy if isinstance(error, DataError) else "replace the image, or take it out of the set"
            raise DataError(error.what, where=self.place(index), remedy=remedy) from error
        return in_colour(image)

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of an image; from its first bytes where these tell them (JPEG, PNG).

        Raises:
            DataError: it cannot be read; the message names it.
        """
        try:
            found = self.head(index)
        except VggcError as error:
            raise DataError(error.what, where=self.place(index), remedy=error.remedy) from error
        size = stored_size(found) if isinstance(found, bytes) else found.shape
        height, width = (size or self.read(index).shape)[:2]
        return height, width


class Subset(ImageSet):
    """Some images of a set, in the order of `indices`."""

    def __init__(self, images: ImageSet, indices: Sequence[int] | NDArray[np.integer]) -> None:
        self.images, self.indices = images, np.asarray(indices, np.int64)
        names = [images.items.names[index] for index in self.indices]
        self.items = Items(names, images.items.labels[self.indices])
        self.classes, self.source = images.classes, images.source

    def stored(self, index: int) -> bytes | Image:
        return self.images.stored(int(self.indices[index]))

    def head(self, index: int) -> bytes | Image:
        return self.images.head(int(self.indices[index]))

    def place(self, index: int) -> Where:
        return self.images.place(int(self.indices[index]))


class EncodedImages(ImageSet):
    """Images whose files are in memory."""

    def __init__(self, files: Sequence[bytes], items: Items, classes: tuple[str, ...], source: str) -> None:
        self.files, self.items, self.classes, self.source = files, items, classes, source

    def stored(self, index: int) -> bytes:
        return self.files[index]


def in_colour(image: Image) -> Image:
    """An image (H, W, 1 or 3) with three channels.

    Raises:
        DataError: it has another number of them.
    """
    if image.ndim == 3 and image.shape[2] == 3:
        return image
    if image.ndim == 3 and image.shape[2] == 1:
        return np.repeat(image, 3, axis=2)
    raise DataError(f"an image of shape {image.shape}", remedy="use images with one channel or three")


def require_labels(images: ImageSet, classes: int) -> None:
    """See that every image has a label that counts `classes` classes from 0.

    Raises:
        DataError: one has none, or another; the message names the first.
    """
    labels = images.items.labels
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if not wrong.size:
        return
    first = images.items[int(wrong[0])]
    got = "no label" if first.label == UNKNOWN else f"label {first.label}"
    what = f"{got}, where the net has {classes} classes (labels 0 to {classes - 1}); {wrong.size:,} image(s) like it"
    raise DataError(what, where=images.place(int(wrong[0])), remedy="correct the labels, or the net's num_output")
