"""CenterGridOutput."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from caffe_compat.layers.base import Layer, Shape, register
from caffe_compat.layers.boxes import Floats, suppress, to_array
from caffe_compat.layers.yolo_detection_output import sigmoid

if TYPE_CHECKING:
    from torch import Tensor

SIDES, MARKS = 4, 10
"""Values of a box, and of the five points of a face."""
ONE, ZERO = np.float32(1), np.float32(0)
FIELD = "detection_output_param"


@register
class CenterGridOutput(Layer):
    """Faces found at the cells of grids and left after suppression, as rows of DetectionOutput: top (1, 1, K, 7).

    Each bottom, three or more, is (N, channels, H, W): four sides of a box, with `has_lm` the coordinates of five
    points, then one score under SIGMOID, or background and face under SOFTMAX. A cell has ratio = net_width / W pixels
    a side. A side or coordinate is (cell + 0.5 - value bias_scale / ratio) ratio, value / 2 under SIGMOID, held within
    the grid; `cell` is the column for x and the row for y, but for all coordinates of points the column. Rows hold
    image, 1, score, then sides and points divided by net_width and net_height, an image's best first; equal scores
    stay in the order of bottoms and cells. Scores must reach confidence_threshold; overlaps, with 1 added to the sides
    of what is shared alone, must not be above nms_thresh. When nothing is left there is (image, -1, ...) for each.

    Differs: the fork leaves the scores in the bottoms; here these stay as they are.
    Source: CenterGridDetectionLayer.cpp, center_bbox_util.cpp of yuqj1991/caffe_train.
    """

    TYPE = "CenterGridOutput"
    DIALECTS = ("yuqj1991",)
    PARAM = FIELD
    FORK_FIELDS = (FIELD,)
    BOTTOMS = (3, None)
    BACKWARD = False
    VARIES = True

    def setup(self, bottoms: Sequence[Shape]) -> None:
        self.soft = self.p.class_type == self.p.SOFTMAX
        self.marked = self.p.has_lm
        wanted = 2 if self.soft else 1
        what = f"num_classes {self.p.num_classes}"
        remedy = f"state {wanted} for class_type {'SOFTMAX' if self.soft else 'SIGMOID'}"
        self.check(self.p.num_classes == wanted, what, field=f"{FIELD}.num_classes", remedy=remedy)
        what = "has_lm with class_type SIGMOID, which has no points"
        self.check(self.soft or not self.marked, what, field=f"{FIELD}.has_lm", remedy="state SOFTMAX, or no has_lm")
        what = f"{len(self.p.bias_scale)} bias_scale for {len(bottoms)} bottoms"
        same = len(self.p.bias_scale) == len(bottoms)
        self.check(same, what, field=FIELD, remedy="state one for each bottom")
        self.first = SIDES + MARKS * self.marked
        """Where the scores stand."""
        stated = self.p.HasField("confidence_threshold")
        self.least = np.float32(self.p.confidence_threshold if stated else -np.inf)

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        """One row stands for the number that is not known yet."""
        wanted = self.first + self.p.num_classes
        for position, shape in enumerate(bottoms):
            what = f"bottom {position} has shape {shape}"
            fine = len(shape) == 4 and shape[0] == bottoms[0][0] and shape[1] == wanted
            remedy = f"feed ({bottoms[0][0]}, {wanted}, H, W)"
            self.check(fine, what, field=f"bottom[{position}]", remedy=remedy)
        return [(1, 1, 1, 3 + self.first)]

    def propagates(self, bottom: int) -> bool:
        return False

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        import torch

        self.reshape(bottoms)
        maps = [to_array(bottom) for bottom in bottoms]
        rows = np.concatenate([self._image(image, maps) for image in range(len(maps[0]))])
        if not len(rows):
            rows = np.full((len(maps[0]), 3 + self.first), -1, np.float32)
            rows[:, 0] = np.arange(len(rows))
        return [torch.from_numpy(rows[None, None]).to(bottoms[0])]

    def _image(self, image: int, maps: Sequence[Floats]) -> Floats:
        """The rows of an image."""
        found = np.concatenate([self._cells(x[image], scale) for x, scale in zip(maps, self.p.bias_scale, strict=True)])
        found = found[np.argsort(-found[:, 0], kind="stable")]
        kept = found[suppress(found[:, 1 : 1 + SIDES], self.p.nms_thresh, overlap=widened_overlaps)]
        kept = kept[: self.p.keep_top_k] if self.p.keep_top_k > 0 else kept
        sizes = np.array([self.p.net_width, self.p.net_height] * (self.first // 2), np.float32)
        head = np.column_stack([np.full(len(kept), image), np.ones(len(kept)), kept[:, 0]])
        rows: Floats = np.column_stack([head, kept[:, 1:] / sizes]).astype(np.float32)
        return rows

    def _cells(self, x: Floats, scale: int) -> Floats:
        """Rows (score, sides, points) of the cells that count, in pixels."""
        height, width = x.shape[1:]
        ratio = np.float32(self.p.net_width) / np.float32(width)
        places = np.stack(np.meshgrid(np.arange(width), np.arange(height)))[[0, 1, 0, 1, *[0] * (self.first - SIDES)]]
        reach = x[: self.first] * np.float32(scale) / (ratio if self.soft else 2 * ratio)
        values = ((places + 0.5 - reach) * ratio).astype(np.float32)
        limits = np.array([ratio * width, ratio * height] * (self.first // 2), np.float32)
        values = np.clip(values, ZERO, limits[:, None, None]).reshape(self.first, -1).T
        score = self._scores(x[self.first :]).reshape(-1)
        fine = (values[:, 2:4] > values[:, :2]).all(1) & (score >= self.least)
        cells: Floats = np.column_stack([score, values])[fine]
        return cells

    def _scores(self, x: Floats) -> Floats:
        if not self.soft:
            return sigmoid(x[0])
        powers = np.exp(x - x.max(0))
        scores: Floats = powers[1] / powers.sum(0)
        return scores


def widened_overlaps(a: Floats, b: Floats) -> Floats:
    """Overlap of (n, 4) with (m, 4) boxes; what is shared is taken to be 1 wider and higher (hard_nms)."""
    low, high = np.maximum(a[:, None, :2], b[:, :2]), np.minimum(a[:, None, 2:], b[:, 2:])
    common = np.maximum(high - low + ONE, ZERO).prod(-1)
    sizes = [(boxes[:, 2:] - boxes[:, :2]).prod(-1) for boxes in (a, b)]
    union = sizes[0][:, None] + sizes[1] - common
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio: Floats = np.nan_to_num(common / union, nan=0.0, posinf=np.inf, neginf=-np.inf)
    return ratio
