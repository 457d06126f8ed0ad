"""BoxGroupOutput."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from caffe_compat.layers.base import Layer, Shape, register
from caffe_compat.layers.boxes import Floats, suppress, to_array
from caffe_compat.layers.cascade_boxes import COORDINATES, ONE, Fields, Regression, field_bounds, overlaps
from caffe_compat.layers.legacy_axes import legacy_sizes

if TYPE_CHECKING:
    from torch import Tensor

NOTHING = (0, 1, 1, 10, 10)
"""The region that stands there when there is none."""


@register
class BoxGroupOutput(Layer):
    """Proposals of regions from maps of different resolution (box_group_output_layer.cpp).

    Bottoms: for each `box_group_param` class probabilities (N G, C, H, W), the first that of background, and codes
    (N G, 4, H, W) of boxes relative to its G fields. Boxes with an objectness, 1 - background, of at least fg_thr, cut
    off at the map's edges, of at least min_size in both directions take part: the best max_nms_num of an item (0: all)
    go into non-maximum suppression by nms_type, of which max_post_nms_num (0: all) are proposed. Tops: regions
    (R, 5, 1, 1), item, x1, y1, x2, y2, and, if asked for, the same with the objectness (R, 6, 1, 1).
    Source: zhaoweicai/cascade-rcnn.
    """

    TYPE = "BoxGroupOutput"
    DIALECTS = ("cascade-rcnn",)
    PARAM = "box_group_output_param"
    FORK_FIELDS = ("bbox_reg_param",)
    BOTTOMS = (2, None)
    TOPS = (1, 2)
    BACKWARD = False
    VARIES = True

    def setup(self, bottoms: Sequence[Shape]) -> None:
        groups = self.p.box_group_param
        what = f"{len(bottoms)} bottoms for {len(groups)} box_group_param"
        remedy = "feed probabilities and codes for each"
        self.check(len(bottoms) == 2 * len(groups), what, field="box_group_output_param", remedy=remedy)
        path = "box_group_output_param.box_group_param"
        self.fields = [Fields.of(self, group, f"{path}[{index}]") for index, group in enumerate(groups)]
        self.regression = Regression.of(self)
        self.bounds = field_bounds(self.p.field_xyr, self.p.field_whr)
        self.overlap = partial(overlaps, mode=self.p.nms_type)

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        items, classes = legacy_sizes(self, bottoms)[0] // len(self.fields[0].sizes), legacy_sizes(self, bottoms)[1]
        for index, fields in enumerate(self.fields):
            num, channels, *size = legacy_sizes(self, bottoms, 2 * index)
            groups = len(fields.sizes)
            what = f"probabilities of shape {bottoms[2 * index]} for {items} item(s) of {groups} fields"
            fine = (num // groups, channels) == (items, classes)
            self.check(fine, what, field=f"bottom[{2 * index}]", remedy=f"feed ({items * groups}, {classes}, H, W)")
            wanted = (num, COORDINATES, *size)
            what = f"codes of shape {bottoms[2 * index + 1]} for probabilities of shape {bottoms[2 * index]}"
            fine = legacy_sizes(self, bottoms, 2 * index + 1) == wanted
            self.check(fine, what, field=f"bottom[{2 * index + 1}]", remedy=f"feed {wanted}")
        shapes: list[Shape] = [(1, 5, 1, 1), (1, 6, 1, 1)]
        return shapes[: self.tops]

    def propagates(self, bottom: int) -> bool:
        return False

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        import torch

        self.reshape(bottoms)
        arrays = [to_array(bottom) for bottom in bottoms]
        parts = [self._decoded(*pair) for pair in zip(self.fields, arrays[::2], arrays[1::2], strict=True)]
        found = [self._of_item(np.concatenate([part[item] for part in parts])) for item in range(len(parts[0]))]
        rows = np.concatenate([np.insert(boxes, 0, item, 1) for item, boxes in enumerate(found)])
        scored = rows if len(rows) else np.zeros((1, 6), np.float32)
        rois = rows[:, :5] if len(rows) else np.array([NOTHING], np.float32)
        tops = [np.ascontiguousarray(top)[:, :, None, None] for top in (rois, scored)]
        return [torch.from_numpy(top).to(bottoms[0]) for top in tops[: self.tops]]

    def _decoded(self, fields: Fields, scores: Floats, codes: Floats) -> Floats:
        """x1, y1, x2, y2, objectness of every box, field by field: (N, G * H * W, 5)."""
        boxes = fields.decode(codes, self.regression, self.bounds)
        low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:] - ONE
        size = np.array(boxes.shape[:1:-1], np.float32) * fields.stride  # width, height
        cut = [np.maximum(low, 0), np.minimum(high, size[:, None, None]), ONE - scores[:, :1]]
        rows = np.concatenate(cut, 1)
        count = len(rows) // len(fields.sizes)
        every: Floats = rows.transpose(0, 2, 3, 1).reshape(count, -1, 5)
        return every

    def _of_item(self, rows: Floats) -> Floats:
        """Those proposed, best first."""
        large = (rows[:, 2:4] - rows[:, :2] + ONE >= np.float32(self.p.min_size)).all(1)
        rows = rows[large & (rows[:, 4] >= np.float32(self.p.fg_thr))]
        rows = rows[np.argsort(-rows[:, 4], kind="stable")[: self.p.max_nms_num or None]]
        kept = suppress(rows[:, :4], self.p.iou_thr, overlap=self.overlap)
        return rows[kept[: self.p.max_post_nms_num or None]]
