"""FrcnnOutput."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from caffe_compat.layers.base import Layer, Shape, register
from caffe_compat.layers.boxes import Floats, suppress, to_array
from caffe_compat.layers.cascade_boxes import COORDINATES, Regression, overlaps
from caffe_compat.layers.legacy_axes import legacy_sizes

if TYPE_CHECKING:
    from torch import Tensor

DETECTION = 7
"""Values of a row of the top."""


@register
class FrcnnOutput(Layer):
    """Detections of one image from class probabilities and boxes of regions (frcnn_output_layer.cpp).

    Bottoms: probabilities (R, C), the first of background; codes (R, 4 C), or of background and object (R, 8) unless
    `cls_aware`; regions (R, 5 or 6): 0, x1, y1, x2, y2; height and width (1, 2), to which boxes are cut off. For each
    class, boxes of at least conf_thr go into non-maximum suppression by nms_type; the best max_det_num of all (0: all)
    are left. The top (1 + D, 7, 1, 1) has rows (image, xmin, ymin, xmax, ymax, label, confidence), by class, after a
    first one (0, -1, ...). `save_output_param` only writes files in the fork; here it does nothing.
    Source: zhaoweicai/cascade-rcnn.
    """

    TYPE = "FrcnnOutput"
    DIALECTS = ("cascade-rcnn",)
    PARAM = "frcnn_output_param"
    FORK_FIELDS = ("bbox_reg_param",)
    BOTTOMS = (4, 4)
    BACKWARD = False
    VARIES = True

    def setup(self, bottoms: Sequence[Shape]) -> None:
        self.regression = Regression.of(self)
        self.aware = self.param.bbox_reg_param.cls_aware
        self.overlap = partial(overlaps, mode=self.p.nms_type)

    def notes(self) -> list[str]:
        writes = self.p.save_output_param.output_directory
        return [f'no files are written to "{writes}" (save_output_param)'] if writes else []

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        count, classes = legacy_sizes(self, bottoms)[:2]
        codes = COORDINATES * (classes if self.aware else 2)
        wanted = (((count, classes),), ((count, codes),), ((count, 5), (count, 6)), ((1, 2),))
        for position, sizes in enumerate(wanted):
            what = f"bottom {position} has shape {bottoms[position]}"
            fine = legacy_sizes(self, bottoms, position)[:2] in sizes
            self.check(fine, what, field=f"bottom[{position}]", remedy=f"feed {' or '.join(map(str, sizes))}")
        return [(1, DETECTION, 1, 1)]

    def propagates(self, bottom: int) -> bool:
        return False

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        import torch

        self.reshape(bottoms)
        scores, codes, rois, size = (to_array(bottom).reshape(len(bottom), -1) for bottom in bottoms)
        what = "a region of another image, or one that ends before it starts"
        fine = not rois[:, 0].any() and bool((rois[:, 1:3] <= rois[:, 3:5]).all())
        self.check(fine, what, field="bottom[2]", remedy="feed the regions of one image")
        boxes = self.regression.with_priors(codes.reshape(len(codes), -1, COORDINATES), rois[:, 1:5])
        boxes[..., :2] = np.maximum(boxes[..., :2], 0)
        boxes[..., 2:] = np.minimum(boxes[..., 2:], size[0, ::-1])
        found = [self._of_class(label, scores, boxes) for label in range(1, scores.shape[1])]
        rows = self._best(np.concatenate([np.zeros((0, DETECTION), np.float32), *found]))
        first = np.full((1, DETECTION), -1, np.float32)
        first[0, 0] = 0
        return [torch.from_numpy(np.concatenate([first, rows])[:, :, None, None]).to(bottoms[0])]

    def _of_class(self, label: int, scores: Floats, boxes: Floats) -> Floats:
        """Rows of one class, best first."""
        own = np.flatnonzero(scores[:, label] >= np.float32(self.p.conf_thr))
        own = own[np.argsort(-scores[own, label], kind="stable")]
        mine = boxes[own, label if self.aware else 1]
        kept = suppress(mine, self.p.iou_thr, overlap=self.overlap)
        rows = np.zeros((len(kept), DETECTION), np.float32)
        rows[:, 1:5], rows[:, 5], rows[:, 6] = mine[kept], label, scores[own[kept], label]
        return rows

    def _best(self, rows: Floats) -> Floats:
        """The best of all classes, class by class."""
        if not 0 < self.p.max_det_num < len(rows):
            return rows
        kept = np.argsort(-rows[:, 6], kind="stable")[: self.p.max_det_num]
        return rows[kept[np.argsort(rows[kept, 5], kind="stable")]]
