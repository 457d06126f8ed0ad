"""Window files of R-CNN, and how a window becomes an image of the net's size (window_data_layer.cpp)."""

from __future__ import annotations

import math
import mmap
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from caffe_compat.data.images import Image, opencv, resize
from caffe_compat.errors import TextError, Where
from caffe_compat.mapped import map_file

LARGEST = 2**32
"""Bytes of a window file."""
HEAD = re.compile(rb"\s*#\s+(\d{1,10})\s+(\S+)\s+(\d{1,10})\s+(\d{1,10})\s+(\d{1,10})\s+(\d{1,10})(?=\s|$)")
"""# index, path, channels, height, width, number of windows."""
VALUES = 6
"""Of a window: label, overlap, x1, y1, x2, y2."""
F = np.float32


@dataclass(frozen=True)
class WindowFile:
    """Images and the windows in them.

    Attributes:
        images: paths as the file has them.
        channels: of the last image, as Caffe has it.
        windows: (n, 6) int64: image, label, x1, y1, x2, y2; both corners are inside.
        overlaps: (n) float32, with the nearest object.
    """

    images: tuple[str, ...]
    channels: int
    windows: NDArray[np.int64]
    overlaps: NDArray[np.float32]


def read_windows(path: Path) -> WindowFile:
    """Read a window file.

    Raises:
        VggcError: there is no such file, or it may not be read.
        TextError: it is no window file; images must be numbered 0, 1, 2, ...
    """
    data = map_file(path)
    if len(data) > LARGEST:
        what = f"{len(data):,} bytes; a window file has at most {LARGEST:,}"
        raise TextError(what, where=str(path), remedy="name the window file")
    images: list[str] = []
    parts, channels, position = [], 0, 0
    while match := HEAD.match(data, position):
        index, count = int(match[1]), int(match[6])
        if index != len(images):
            raise _wrong(path, data, position, f"image {index} as the {len(images)}th, counted from 0")
        position = data.find(b"#", match.end())
        position = position if position >= 0 else len(data)
        parts.append(_windows(path, data, match.end(), position, index, count))
        images.append(match[2].decode(errors="surrogateescape"))
        channels = int(match[3])
    if data[position:].strip() or not images:
        raise _wrong(path, data, position, "no image here")
    windows = np.concatenate(parts)
    return WindowFile(tuple(images), channels, np.delete(windows, 2, 1).astype(np.int64), windows[:, 2].astype(F))


def _windows(path: Path, data: mmap.mmap, start: int, end: int, index: int, count: int) -> NDArray[np.float64]:
    """The windows of an image, (count, 7): image, label, overlap, corners."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # numpy's way to say that it has met a word
        try:
            values = np.fromstring(data[start:end].strip(), np.float64, sep=" ")
        except ValueError:
            values = np.empty(0)
    if values.size != count * VALUES:
        what = f"image {index} has {count} windows; {values.size} of {count * VALUES} numbers follow"
        raise _wrong(path, data, start, what)
    windows = values.reshape(count, VALUES)
    whole = np.delete(windows, 1, 1)
    if not (np.abs(whole) < 2**31).all() or (whole != np.rint(whole)).any() or np.isnan(values).any():
        raise _wrong(path, data, start, f"image {index} has a label or corner that is no integer")
    return np.insert(windows, 0, index, 1)


def _wrong(path: Path, data: mmap.mmap, position: int, what: str) -> TextError:
    line = data[:position].count(b"\n") + 1
    remedy = 'write "# index", path, channels, height, width, number of windows; for each "label overlap x1 y1 x2 y2"'
    return TextError(f"this is no window file: {what}", where=Where(str(path), line, 1), remedy=remedy)


# -- cutting windows out ---------------------------------------------------------------------------------------


class Box(NamedTuple):
    """Corners in pixels, both inside."""

    x1: int
    y1: int
    x2: int
    y2: int


class Placed(NamedTuple):
    """A window, warped, and where in the crop it lies; around it is nothing."""

    image: Image
    top: int
    left: int


@dataclass(frozen=True)
class Warp:
    """How windows are cut out.

    Attributes:
        crop: side of the result.
        context: pixels around the window that the result shall have on each side.
        square: widen the window to a square first.
    """

    crop: int
    context: int = 0
    square: bool = False

    def __call__(self, image: Image, box: Box, mirrored: bool) -> Placed:
        """Cut a window out of an image (H, W, C) and resize it.

        Raises:
            ValueError: it lies outside the image.
        """
        size, top, left = (self.crop, self.crop), 0, 0
        if self.context > 0 or self.square:
            box, size, top, left = self._expanded(image, box, mirrored)
        inside = 0 <= box.x1 <= box.x2 < image.shape[1] and 0 <= box.y1 <= box.y2 < image.shape[0]
        if not inside or min(size) <= 0:
            raise ValueError(f"{tuple(box)} lies outside an image of {image.shape[0]} x {image.shape[1]}")
        part = resize(image[box.y1 : box.y2 + 1, box.x1 : box.x2 + 1], *size)
        if mirrored:
            part = opencv().flip(part, 1).reshape(part.shape)
        return Placed(part, top, left)

    def _expanded(self, image: Image, box: Box, mirrored: bool) -> tuple[Box, tuple[int, int], int, int]:
        """The window with its context, inside the image; its warped height and width; top and left in the crop."""
        xs = self._axis(box.x1, box.x2, image.shape[1], self._half(box))
        ys = self._axis(box.y1, box.y2, image.shape[0], self._half(box))
        left = xs.after if mirrored else xs.before
        height, width = min(ys.size, self.crop - ys.before), min(xs.size, self.crop - left)
        return Box(xs.first, ys.first, xs.last, ys.last), (height, width), ys.before, left

    def _half(self, box: Box) -> np.float32:
        """Half the longer side when windows are squared, else 0."""
        longer = max(box.x2 - box.x1, box.y2 - box.y1) + 1
        half: np.float32 = F(longer if self.square else 0) / F(2)
        return half

    def _axis(self, first: int, last: int, size: int, least: np.float32) -> _Axis:
        """A window along one axis of an image, all in float32 as Caffe's Dtype."""
        scale = F(self.crop) / F(self.crop - 2 * self.context)
        half = F(last - first + 1) / F(2)
        centre, half = F(first) + half, np.maximum(half, least)
        first, last = _round(centre - half * scale), _round(centre + half * scale)
        ratio = F(self.crop) / F(last - first + 1)
        before, after = max(0, -first), max(0, last - size + 1)
        clipped = last - first + 1 - before - after
        sizes = (_round(F(length) * ratio) for length in (clipped, before, after))
        return _Axis(first + before, last - after, *sizes)


class _Axis(NamedTuple):
    """First and last pixel of a window; its warped size, and what is left free before and after it."""

    first: int
    last: int
    size: int
    before: int
    after: int


def _round(value: np.float32) -> int:
    """The nearest integer, halves away from zero, as C's round."""
    return math.floor(abs(float(value)) + 0.5) * (1 if value >= 0 else -1)
