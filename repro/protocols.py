"""The paper's test-time protocols as arithmetic: places of crops, averages, ranks (arXiv:1409.1556, Sect. 3.2).

- An image is rescaled so that its smallest side is Q (repro/rescaling.py).
- Crops of a rescaled image of H x W: `center` is at ((H - c) // 2, (W - c) // 2); `tencrop` are the four corners and
  the centre, then their mirrors (caffe.io.oversample); `multicrop` is a regular grid of 5 x 5, rows first, at
  rint(linspace(0, size - c, 5)), halves to the even number, then the mirrors: 50 crops.
- `dense` applies the net to the whole image and to its mirror: Softmax at every place, mean over places, mean of both.
  With averages of scores it is the mean of scores over places, Softmax, mean of both; the paper's text allows either.
- `both` is the mean of `dense` and `multicrop`. Several scales and several nets are averaged in the same way; every
  average is over posteriors, in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from caffe_compat.errors import VggcError

Floats = NDArray[np.float64]

GRID = 5
"""Crops a side of the grid."""
POSTERIORS, SCORES = "posteriors", "scores"
AVERAGES = (POSTERIORS, SCORES)
PROTOCOLS = ("dense", "multicrop", "both", "tencrop", "center")


class Crop(NamedTuple):
    """A crop: its upper left corner, and whether it is mirrored after it is cut out."""

    y: int
    x: int
    mirrored: bool = False


# -- places ----------------------------------------------------------------------------------------------------


def center(height: int, width: int, crop: int) -> list[Crop]:
    """The crop in the middle."""
    return [Crop((height - crop) // 2, (width - crop) // 2)]


def tencrop(height: int, width: int, crop: int) -> list[Crop]:
    """Corners and centre, then their mirrors."""
    bottom, right = height - crop, width - crop
    five = [Crop(0, 0), Crop(0, right), Crop(bottom, 0), Crop(bottom, right), *center(height, width, crop)]
    return [*five, *_mirrors(five)]


def multicrop(height: int, width: int, crop: int) -> list[Crop]:
    """A 5 x 5 grid, rows first, then its mirrors."""
    rows, columns = _places(height - crop), _places(width - crop)
    grid = [Crop(y, x) for y in rows for x in columns]
    return [*grid, *_mirrors(grid)]


def _places(room: int) -> list[int]:
    return [int(place) for place in np.rint(np.linspace(0, room, GRID))]


def _mirrors(crops: Iterable[Crop]) -> list[Crop]:
    return [Crop(crop.y, crop.x, True) for crop in crops]


CROPS: Mapping[str, Callable[[int, int, int], list[Crop]]] = {
    "center": center,
    "tencrop": tencrop,
    "multicrop": multicrop,
}
"""Protocol -> the crops of an image of some height and width, by the crop's side."""


# -- averages --------------------------------------------------------------------------------------------------


def passes(protocol: str, average: str = POSTERIORS) -> tuple[str, ...]:
    """The passes over an image that a protocol is the mean of: keys of `CROPS`, "dense" or "dense_scores".

    Raises:
        VggcError: there is no such protocol or average.
    """
    if protocol not in PROTOCOLS or average not in AVERAGES:
        raise VggcError(f"no protocol {protocol} with averages of {average}", remedy=f"use {', '.join(PROTOCOLS)}")
    dense = "dense" if average == POSTERIORS else "dense_scores"
    return {"dense": (dense,), "both": (dense, "multicrop")}.get(protocol, (protocol,))


def mean(parts: Sequence[NDArray[np.floating]]) -> Floats:
    """The mean of posteriors of several crops, scales, passes or nets, in float64."""
    total = np.zeros(parts[0].shape, np.float64)
    for part in parts:
        total += part
    return total / len(parts)


def softmax(scores: NDArray[np.floating]) -> Floats:
    """Along the last axis, in float64."""
    shifted = np.exp(scores.astype(np.float64) - scores.max(axis=-1, keepdims=True))
    result: Floats = shifted / shifted.sum(axis=-1, keepdims=True)
    return result


def unit_length(features: NDArray[np.floating]) -> Floats:
    """Each row divided by its Euclidean length, in float64; a row of zeros stays one."""
    values = features.astype(np.float64)
    length = np.sqrt((values * values).sum(axis=-1, keepdims=True))
    result: Floats = values / np.where(length > 0, length, 1)
    return result


def average_scales(raw: Sequence[NDArray[np.floating]]) -> Floats:
    """One descriptor of several scales: their mean, of length 1 (Appendix B)."""
    return unit_length(mean(raw))


def stack_scales(raw: Sequence[NDArray[np.floating]]) -> Floats:
    """One descriptor of several scales, in the order given: one behind the other, of length 1."""
    return unit_length(np.concatenate(raw, axis=-1))


# -- scoring ---------------------------------------------------------------------------------------------------


def ranks(posteriors: NDArray[np.floating], labels: NDArray[np.integer]) -> NDArray[np.int64]:
    """How many classes each label's posterior is not above: wrong in the first k where that is k or more.

    Of equal posteriors none counts as above the other (accuracy_layer.cpp of BVLC Caffe).

    Args:
        posteriors: (images, classes).
        labels: (images).
    """
    own = np.take_along_axis(posteriors, np.asarray(labels)[:, None], axis=1)
    with np.errstate(invalid="ignore"):
        return np.asarray((~(posteriors < own)).sum(axis=1) - 1, np.int64)
