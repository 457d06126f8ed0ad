"""DetectionGroupAccuracy, and what it shares with the loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from caffe_compat.layers.base import Layer, Shape, register
from caffe_compat.layers.boxes import Floats, to_array
from caffe_compat.layers.cascade_boxes import COORDINATES, Fields, Regression, field_bounds, pair_overlaps
from caffe_compat.layers.legacy_axes import legacy_sizes

if TYPE_CHECKING:
    from torch import Tensor

NONE = np.float32(-1)
"""A mean of nothing."""


def check_groups(layer: Layer, fields: Fields, bottoms: Sequence[Shape]) -> None:
    """Scores (N G, C, H, W), codes (N G, 4, H, W) and truth (N G, 6, H, W) of G fields."""
    num, _, height, width = legacy_sizes(layer, bottoms)
    groups = len(fields.sizes)
    what = f"scores of shape {bottoms[0]} for {groups} fields"
    layer.check(num % groups == 0, what, field="bottom[0]", remedy=f"feed a multiple of {groups} maps")
    for position, channels in enumerate((layer.p.cls_num, COORDINATES, COORDINATES + 2)):
        wanted = (num, channels, height, width)
        what = f"bottom {position} has shape {bottoms[position]}"
        fine = legacy_sizes(layer, bottoms, position) == wanted
        layer.check(fine, what, field=f"bottom[{position}]", remedy=f"feed {wanted}")
    what = f"objectness tells two classes, cls_num is {layer.p.cls_num}"
    fine = layer.p.cls_num == 2 or not layer.p.objectness
    layer.check(fine, what, field=f"{layer.PARAM}.cls_num", remedy="set it to 2")


@register
class DetectionGroupAccuracy(Layer):
    """How well fields are told apart and boxes found (detection_group_accuracy_layer.cpp).

    Bottoms: scores (N G, C, H, W), codes (N G, 4, H, W) of boxes relative to the fields, truth (N G, 6, H, W): label,
    middle and size of the true box, overlap. Top 0 (1, 1, 1, 2): the part of fields, and of those with an object, whose
    largest score is that of the label; background that overlaps by bg_threshold and loss_param's ignore_label do not
    count. Top 1 (1, 1, 1, 1): the mean overlap of objects' boxes with the true ones. -1 stands for none. With
    `objectness` every label is 0 or 1. Source: zhaoweicai/cascade-rcnn.
    """

    TYPE = "DetectionGroupAccuracy"
    DIALECTS = ("cascade-rcnn",)
    PARAM = "detection_group_accuracy_param"
    FORK_FIELDS = ("bbox_reg_param",)
    BOTTOMS = (3, 3)
    TOPS = (1, 2)
    BACKWARD = False

    def setup(self, bottoms: Sequence[Shape]) -> None:
        self.fields = Fields.of(self, self.p, self.PARAM)
        self.regression = Regression.of(self)
        self.bounds = field_bounds(self.p.field_xyr, self.p.field_whr)

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        check_groups(self, self.fields, bottoms)
        shapes: list[Shape] = [(1, 1, 1, 2), (1, 1, 1, 1)]
        return shapes[: self.tops]

    def propagates(self, bottom: int) -> bool:
        return False

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        shapes = self.reshape(bottoms)
        scores, codes, truth = (to_array(bottom) for bottom in bottoms)
        labels = truth[:, 0].astype(int)
        clipped = np.minimum(labels, 1) if self.p.objectness else labels
        loss = self.param.loss_param
        counted = clipped != loss.ignore_label if loss.HasField("ignore_label") else np.ones(labels.shape, bool)
        judged = counted & ((clipped != 0) | (truth[:, -1] < np.float32(self.p.bg_threshold)))
        right = scores.argmax(1) == clipped
        accuracy = [_mean(right[judged]), _mean(right[judged & (clipped != 0)])]
        with_box = (labels != 0) & (labels != loss.ignore_label if loss.HasField("ignore_label") else True)
        means = [accuracy, [self._overlap(codes, truth, with_box)]]
        return [bottoms[0].new_tensor(mean).reshape(shape) for mean, shape in zip(means, shapes, strict=False)]

    def _overlap(self, codes: Floats, truth: Floats, counted: Floats) -> float:
        """The mean overlap of the counted boxes."""
        found = self.fields.decode(codes, self.regression, self.bounds).transpose(0, 2, 3, 1)[counted]
        wanted = truth[:, 1:-1].transpose(0, 2, 3, 1)[counted]
        wanted = np.concatenate([wanted[:, :2] - wanted[:, 2:] / 2, wanted[:, 2:]], 1)
        return _mean(pair_overlaps(found, wanted))


def _mean(values: Floats) -> float:
    return float(values.mean()) if len(values) else float(NONE)
