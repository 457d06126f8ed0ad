"""Boxes (xmin, ymin, xmax, ymax) of detection layers: sizes, overlaps, codes, suppression.

All is float32, as in the forks, whatever the net's type. Rules: bbox_util.cpp of weiliu89/caffe, branch ssd.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from caffe_compat.schema import pb

if TYPE_CHECKING:
    from torch import Tensor

Floats = NDArray[np.float32]
Indices = NDArray[np.intp]

CORNER, CENTER_SIZE = pb.PriorBoxParameter.CORNER, pb.PriorBoxParameter.CENTER_SIZE
BLOCK = 256
"""Boxes that are compared with each other at once."""
ZERO = np.float32(0)


def to_array(tensor: Tensor) -> Floats:
    """The values in float32 on the CPU."""
    values: Floats = tensor.detach().cpu().float().numpy()
    return values


def areas(boxes: Floats) -> Floats:
    """Width times height, 0 for a box that ends before it starts: (..., 4) -> (...) (BBoxSize)."""
    width, height = boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]
    return np.where((width < 0) | (height < 0), ZERO, width * height)


def overlaps(a: Floats, b: Floats) -> Floats:
    """Intersection over union, 0 where nothing is shared: (n, 4), (m, 4) -> (n, m) (JaccardOverlap)."""
    left, top, right, bottom = np.ascontiguousarray(b.T)
    width = np.minimum(a[:, 2, None], right) - np.maximum(a[:, 0, None], left)
    height = np.minimum(a[:, 3, None], bottom) - np.maximum(a[:, 1, None], top)
    shared = (width > 0) & (height > 0)
    width *= height
    union = areas(a)[:, None] + areas(b)
    union -= width
    with np.errstate(all="ignore"):
        width /= union
    ratio: Floats = np.where(shared, width, ZERO)
    return ratio


@dataclass(frozen=True)
class Priors:
    """Prior boxes and their variances, (P, 4) each."""

    boxes: Floats
    variances: Floats


# -- codes -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Code:
    """How a box is told relative to a prior box (EncodeBBox, DecodeBBox).

    CORNER       the differences of the corners.
    CORNER_SIZE  the same, divided by the prior's width and height.
    CENTER_SIZE  the difference of the centres divided by the prior's size, and the logarithm of the sizes' ratio.

    Attributes:
        kind: PriorBoxParameter.CodeType.
        in_target: the code is not divided by the variances.
    """

    kind: int
    in_target: bool

    def decode(self, priors: Floats, variances: Floats, code: Floats) -> Floats:
        """Boxes from codes; all (..., 4), as they broadcast."""
        code = code if self.in_target else variances * code
        if self.kind == CORNER:
            return priors + code
        size = sizes(priors)
        if self.kind != CENTER_SIZE:
            corners: Floats = priors + code * np.concatenate([size, size], -1)
            return corners
        centre = code[..., :2] * size + centres(priors)
        with np.errstate(over="ignore"):
            half = np.exp(code[..., 2:]) * size / np.float32(2)
        return np.concatenate([centre - half, centre + half], -1)

    def encode(self, priors: Floats, variances: Floats, boxes: Floats) -> Floats:
        """Codes of boxes; all (n, 4)."""
        if self.kind == CORNER:
            code = boxes - priors
        elif self.kind == CENTER_SIZE:
            shift = (centres(boxes) - centres(priors)) / sizes(priors)
            code = np.concatenate([shift, np.log(sizes(boxes) / sizes(priors))], -1)
        else:
            size = sizes(priors)
            code = (boxes - priors) / np.concatenate([size, size], -1)
        return code if self.in_target else code / variances


def sizes(boxes: Floats) -> Floats:
    """Width and height: (..., 4) -> (..., 2)."""
    return boxes[..., 2:] - boxes[..., :2]


def centres(boxes: Floats) -> Floats:
    """x and y: (..., 4) -> (..., 2)."""
    middle: Floats = (boxes[..., :2] + boxes[..., 2:]) / np.float32(2)
    return middle


# -- suppression -----------------------------------------------------------------------------------------------


def best(scores: Floats, threshold: float, most: int) -> Indices:
    """Indices of scores above the threshold, best first and equal ones in order; `most` of them unless negative."""
    above = np.flatnonzero(scores > np.float32(threshold))
    values = scores[above]
    if 0 < most < len(above):
        near = values >= np.partition(values, -most)[-most]
        above, values = above[near], values[near]
    order = np.argsort(-values, kind="stable")
    return above[order if most < 0 else order[:most]]


def suppress(
    boxes: Floats, threshold: float, eta: float = 1.0, overlap: Callable[[Floats, Floats], Floats] = overlaps
) -> Indices:
    """Indices of boxes whose overlap with none kept before them is above the threshold (ApplyNMSFast).

    After each box kept, a threshold above 0.5 is multiplied by eta, if that is below 1.
    """
    kept: list[Indices] = []
    limit = np.float32(threshold)
    for start in range(0, len(boxes), BLOCK):
        block = np.arange(start, min(start + BLOCK, len(boxes)))
        worst = np.zeros(len(block), np.float32)
        for before in kept:
            worst = np.maximum(worst, overlap(boxes[before], boxes[block]).max(0, initial=0))
        open_ = worst <= limit
        block, worst = block[open_], worst[open_]
        picked, limit = _suppress_block(overlap(boxes[block], boxes[block]), worst, limit, np.float32(eta))
        kept.append(block[picked])
    return np.concatenate(kept) if kept else np.arange(0)


def _suppress_block(shared: Floats, worst: Floats, limit: np.float32, eta: np.float32) -> tuple[list[int], np.float32]:
    """Kept indices and the last threshold; `worst` is each box's largest overlap with those kept before the block."""
    picked: list[int] = []
    count, fits = len(worst), shared <= limit
    free = np.append(worst <= limit, True)  # the last stands behind the block
    at = int(free.argmax())
    while at < count:
        picked.append(at)
        if eta < 1 and limit > 0.5:
            limit = limit * eta
            fits = shared <= limit
            free[:count] = (worst <= limit) & fits[picked].all(0)
        else:
            free[:count] &= fits[at]
        at += 1 + int(free[at + 1 :].argmax())
    return picked, limit
