"""What the layers of Cascade R-CNN share: boxes whose both edges belong to them, and codes relative to others.

Rules: bbox_util.cpp of zhaoweicai/cascade-rcnn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from caffe_compat.layers.base import Layer
from caffe_compat.layers.boxes import Floats

ZERO, HALF, ONE, TWO = (np.float32(value) for value in (0, 0.5, 1, 2))
LEAST_SIZE = TWO
"""Width and height that a true box counts for at least when it is encoded."""
COORDINATES = 4


def areas(boxes: Floats) -> Floats:
    """Width times height, 0 for a box that ends before it starts: (n, 4) -> (n,) (BBoxSize)."""
    sides = boxes[:, 2:] - boxes[:, :2]
    area: Floats = np.where((sides < 0).any(1), ZERO, (sides + ONE).prod(1))
    return area


def overlaps(a: Floats, b: Floats, mode: str = "IOU") -> Floats:
    """What boxes share, as a part of the union (IOU), of the smaller one (IOMU) or of `a` (IOFU): (n, m).

    Boxes that only touch share a column of pixels, but no row of them (JaccardOverlap).
    """
    low, high = np.maximum(a[:, None, :2], b[:, :2]), np.minimum(a[:, None, 2:], b[:, 2:])
    apart = (low[..., 0] > high[..., 0]) | (low[..., 1] >= high[..., 1])
    shared = np.where(apart, ZERO, (high - low + ONE).prod(2))
    own, other = areas(a)[:, None], areas(b)
    whole = {"IOMU": np.minimum(own, other), "IOFU": own}.get(mode, own + other - shared)
    inverted = np.any(a[:, None, :2] > a[:, None, 2:], axis=2) | np.any(b[:, :2] > b[:, 2:], axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio: Floats = np.where(inverted | (whole <= 0), ZERO, shared / whole)
    return ratio


def pair_overlaps(a: Floats, b: Floats) -> Floats:
    """Intersection over union of pairs of boxes (x, y, width, height): (n, 4), (n, 4) -> (n,) (JaccardOverlap)."""
    low = np.maximum(a[:, :2], b[:, :2])
    high = np.minimum(a[:, :2] + a[:, 2:], b[:, :2] + b[:, 2:]) - ONE
    empty = (a[:, 2:] <= 0).any(1) | (b[:, 2:] <= 0).any(1)
    shared = np.where((low > high).any(1), ZERO, (high - low + ONE).prod(1))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio: Floats = np.where(empty, ZERO, shared / (a[:, 2:].prod(1) + b[:, 2:].prod(1) - shared))
    return ratio


def with_sizes(boxes: Floats) -> Floats:
    """Corners (n, 4) -> x, y, width, height."""
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2] + ONE], 1)


@dataclass(frozen=True)
class Regression:
    """Means and deviations of codes, (4,) each."""

    means: Floats
    stds: Floats

    @classmethod
    def of(cls, layer: Layer) -> Regression:
        """Those of `bbox_reg_param`; 0 and 1 unless both are stated."""
        param = layer.param.bbox_reg_param
        if not (param.bbox_mean and param.bbox_std):
            return cls(np.zeros(COORDINATES, np.float32), np.ones(COORDINATES, np.float32))
        for name in ("bbox_mean", "bbox_std"):
            values = getattr(param, name)
            what = f"{len(values)} {name} value(s)"
            layer.check(len(values) == COORDINATES, what, field=f"bbox_reg_param.{name}[0]", remedy="state 4")
        what = f"bbox_std {list(param.bbox_std)}"
        layer.check(min(param.bbox_std) > 0, what, field="bbox_reg_param.bbox_std[0]", remedy="use numbers above 0")
        return cls(np.array(param.bbox_mean, np.float32), np.array(param.bbox_std, np.float32))

    def with_priors(self, code: Floats, priors: Floats) -> Floats:
        """Corners (n, C, 4) of codes (n, C, 4) relative to priors (n, 4) (DecodeBBoxesWithPrior)."""
        sizes = (priors[:, 2:] - priors[:, :2] + ONE)[:, None]
        centres = (HALF * (priors[:, 2:] + priors[:, :2]))[:, None]
        code = code * self.stds + self.means
        with np.errstate(over="ignore"):
            size = sizes * np.exp(code[..., 2:])
        low = code[..., :2] * sizes + centres - (size - ONE) / TWO
        return np.concatenate([low, low + size - ONE], -1)


@dataclass(frozen=True)
class Fields:
    """Boxes of G sizes around every cell of a map, `stride` pixels apart.

    Attributes:
        sizes: width and height, (G, 2).
    """

    sizes: Floats
    stride: int

    @classmethod
    def of(cls, layer: Layer, param: Any, path: str) -> Fields:
        """Those of a message with field_w, field_h and stride at `path` of the layer."""
        what = f"{len(param.field_w)} field_w for {len(param.field_h)} field_h"
        fine = 0 < len(param.field_w) == len(param.field_h)
        layer.check(fine, what, field=path, remedy="state both for every size")
        return cls(np.array([param.field_w, param.field_h], np.float32).T, param.stride)

    def places(self, height: int, width: int) -> Floats:
        """Middles of the cells, x and y: (2, H, W)."""
        middles: Floats = (np.indices((height, width), np.float32)[::-1] + HALF) * np.float32(self.stride)
        return middles

    def decode(self, code: Floats, regression: Regression, bounds: Sequence[Floats]) -> Floats:
        """x, y, width and height of codes (N * G, 4, H, W), each within its bounds (4,) (DecodeGroupBBoxes)."""
        groups = len(self.sizes)
        code = code.reshape(-1, groups, *code.shape[1:])
        means, stds, low, high = (v[:, None, None] for v in (regression.means, regression.stds, *bounds))
        code = np.minimum(high, np.maximum(low, code * stds + means))
        sizes = self.sizes[:, :, None, None]
        size = sizes * np.exp(code[:, :, 2:])
        corner = code[:, :, :2] * sizes + self.places(*code.shape[3:]) - size / TWO
        decoded: Floats = np.concatenate([corner, size], 2)
        return decoded.reshape(-1, *decoded.shape[2:])

    def encode(self, boxes: Floats, regression: Regression) -> Floats:
        """Codes of boxes told by middle and size, (N * G, 4, H, W) (EncodeGroupBBoxes)."""
        boxes = boxes.reshape(-1, len(self.sizes), *boxes.shape[1:])
        sizes = self.sizes[:, :, None, None]
        shift = (boxes[:, :, :2] - self.places(*boxes.shape[3:])) / sizes
        grown = np.log(np.maximum(boxes[:, :, 2:], LEAST_SIZE) / sizes)
        code = np.concatenate([shift, grown], 2)
        code = (code - regression.means[:, None, None]) / regression.stds[:, None, None]
        return code.reshape(-1, *code.shape[2:])


def field_bounds(shift: float, ratio: float) -> tuple[Floats, Floats]:
    """Least and largest code of boxes that move by 1/shift of a field and grow or shrink `ratio` times."""
    least = np.array([-1 / shift] * 2 + [-np.log(ratio)] * 2, np.float32)
    return least, -least
