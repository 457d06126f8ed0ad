"""BboxAccuracy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from caffe_compat.layers.base import Layer, Shape, register
from caffe_compat.layers.boxes import Floats, to_array
from caffe_compat.layers.cascade_boxes import COORDINATES, ONE, Regression, pair_overlaps, with_sizes
from caffe_compat.layers.legacy_axes import legacy_sizes

if TYPE_CHECKING:
    from torch import Tensor

SURE = np.float32(0.975)
"""Overlap from which on a region is taken for a true box, which tells nothing."""
TRUTH = 6
"""Values of a row of bottom 2: label, x1, y1, x2, y2, overlap."""


@register
class BboxAccuracy(Layer):
    """Mean overlap of moved regions with their true boxes, and that of the regions before (bbox_accuracy_layer.cpp).

    Bottoms: codes (R, 4 C), or of background and object (R, 8) unless `cls_aware`; regions (R, 5); matched true boxes
    (R, 6): label, x1, y1, x2, y2, overlap. Regions of label 0 and those that overlap by more than 0.975 do not count;
    without any others both tops, (1, 1, 1, 1), are -1. Source: zhaoweicai/cascade-rcnn.
    """

    TYPE = "BboxAccuracy"
    DIALECTS = ("cascade-rcnn",)
    FORK_FIELDS = ("bbox_reg_param",)
    BOTTOMS = (3, 3)
    TOPS = (1, 2)
    BACKWARD = False

    def setup(self, bottoms: Sequence[Shape]) -> None:
        self.regression = Regression.of(self)
        self.aware = self.param.bbox_reg_param.cls_aware

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        count, codes = legacy_sizes(self, bottoms)[:2]
        what = f"codes of shape {bottoms[0]}"
        remedy = "feed 8 values for each region, or set cls_aware"
        self.check(self.aware or codes == 2 * COORDINATES, what, field="bottom[0]", remedy=remedy)
        for position, width in (1, 5), (2, TRUTH):
            what = f"bottom {position} has shape {bottoms[position]} for {count} regions"
            fine = legacy_sizes(self, bottoms, position)[:2] == (count, width)
            self.check(fine, what, field=f"bottom[{position}]", remedy=f"feed ({count}, {width})")
        return [(1, 1, 1, 1)] * self.tops

    def propagates(self, bottom: int) -> bool:
        return False

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        shapes = self.reshape(bottoms)
        codes, rois, truth = (to_array(bottom).reshape(len(bottom), -1) for bottom in bottoms)
        counted = (truth[:, 0] >= 1) & (truth[:, -1] <= SURE)
        codes, rois, truth = codes[counted], rois[counted], truth[counted]
        own = truth[:, 0].astype(int) if self.aware else np.ones(len(truth), int)
        classes = codes.reshape(len(codes), codes.shape[1] // COORDINATES, COORDINATES)
        what = f"label {own.max(initial=0)} of {classes.shape[1]} classes"
        self.check(own.max(initial=0) < classes.shape[1], what, field="bottom[2]", remedy="correct the labels")
        before, wanted = with_sizes(rois[:, 1:5]), with_sizes(truth[:, 1:5])
        after = self._moved(before, classes[np.arange(len(own)), own])
        means = [pair_overlaps(boxes, wanted).mean() if len(wanted) else -ONE for boxes in (after, before)]
        return [bottoms[0].new_full(shape, float(mean)) for shape, mean in zip(shapes, means, strict=False)]

    def _moved(self, boxes: Floats, codes: Floats) -> Floats:
        """x, y, width, height of boxes told so, moved by codes."""
        codes = codes * self.regression.stds + self.regression.means
        size = boxes[:, 2:] * np.exp(codes[:, 2:])
        middle = boxes[:, :2] + boxes[:, 2:] / 2
        moved: Floats = np.concatenate([codes[:, :2] * boxes[:, 2:] + middle - size / 2, size], 1)
        return moved
