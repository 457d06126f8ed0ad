"""DecodeBBox."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from caffe_compat.layers.base import Layer, Shape, register
from caffe_compat.layers.boxes import Floats, to_array
from caffe_compat.layers.cascade_boxes import Regression
from caffe_compat.layers.legacy_axes import legacy_sizes

if TYPE_CHECKING:
    from torch import Tensor

CODES, ROI = 8, 5
"""Values of a row of bottom 0, of which the last four count, and of bottom 1."""


@register
class DecodeBBox(Layer):
    """Regions moved and sized by codes, for the next stage of a cascade (decode_bbox_layer.cpp).

    Bottoms: codes of background and object (R, 8), regions (R, 5): item, x1, y1, x2, y2, and in phase TRAIN, if
    asked for, rows that end with the overlap of each region's true box. The top has the moved regions, (K, 5, 1, 1).
    In phase TRAIN those that end before they start are left out, and those whose true box overlaps by gt_iou_thr.
    Source: zhaoweicai/cascade-rcnn.
    """

    TYPE = "DecodeBBox"
    DIALECTS = ("cascade-rcnn",)
    PARAM = "decode_bbox_param"
    FORK_FIELDS = ("bbox_reg_param",)
    BOTTOMS = (2, None)
    BACKWARD = False
    VARIES = True

    def setup(self, bottoms: Sequence[Shape]) -> None:
        self.regression = Regression.of(self)

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        count = bottoms[0][0] if bottoms[0] else 1
        for position, width in (0, CODES), (1, ROI):
            what = f"bottom {position} has shape {bottoms[position]}"
            fine = legacy_sizes(self, bottoms, position)[:2] == (count, width)
            self.check(fine, what, field=f"bottom[{position}]", remedy=f"feed ({count}, {width})")
        if len(bottoms) > 2:
            what = f"true boxes of shape {bottoms[2]} for {count} regions"
            same = legacy_sizes(self, bottoms, 2)[0] == count
            self.check(same, what, field="bottom[2]", remedy="feed one row for each region")
            what = "true boxes count in phase TRAIN alone"
            self.check(self.phase == "TRAIN", what, field="bottom[2]", remedy="remove this bottom")
        return [bottoms[1]]

    def propagates(self, bottom: int) -> bool:
        return False

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        import torch

        self.reshape(bottoms)
        codes, rois, *truth = (to_array(bottom).reshape(len(bottom), -1) for bottom in bottoms)
        boxes = self.regression.with_priors(codes[:, None, 4:], rois[:, 1:])[:, 0]
        kept = self._kept(boxes, truth)
        what = "no region is left"
        self.check(bool(kept.any()), what, field="bottom[0]", remedy="train with proposals that are no true boxes")
        rows = np.concatenate([rois[kept, :1], boxes[kept]], 1)
        return [torch.from_numpy(rows[:, :, None, None]).to(bottoms[0])]

    def _kept(self, boxes: Floats, truth: Sequence[Floats]) -> Any:
        if self.phase != "TRAIN":
            return np.ones(len(boxes), bool)
        kept = (boxes[:, :2] <= boxes[:, 2:]).all(1)
        for rows in truth[:1]:
            kept &= rows[:, -1] < np.float32(self.p.gt_iou_thr)
        return kept
