"""AnchorEmbeddingExtractor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from caffe_compat.layers.base import Layer, Shape, register
from caffe_compat.layers.legacy_axes import legacy_sizes

if TYPE_CHECKING:
    from torch import Tensor

ITEM, BOX, ANCHOR, TRACK, ACTION, X, Y = 0, 2, 6, 7, 8, 9, 10
RECORD = 11
ANCHORS = 4


@register
class AnchorEmbeddingExtractor(Layer):
    """The values of all channels at the cells where detections were found, (K, C), and their labels, (K).

    Bottoms: rows (item, -, xmin, ymin, xmax, ymax, anchor, track, action, x, y), and a map (N, C, H, W) for each of
    four anchors. Rows of item -1 do not count, nor do those with an action of num_valid_actions or more. Labels are
    the rows' column label_src_pos. A third top has 1 / (rows of the same track and item) with output_instance_weights,
    or (item, box) with output_proposals. When no row counts, there is one of zeros, with -1 in the other tops.
    Source: anchor_embedding_extractor_layer.cpp of openvinotoolkit/training_toolbox_caffe.
    """

    TYPE = "AnchorEmbeddingExtractor"
    DIALECTS = ("openvino",)
    PARAM = "embedding_extractor_param"
    BOTTOMS = (ANCHORS + 1, ANCHORS + 1)
    TOPS = (2, 3)
    VARIES = True

    def setup(self, bottoms: Sequence[Shape]) -> None:
        field, anchors, position = self.PARAM, self.p.num_anchors, self.p.label_src_pos
        what = f"num_anchors {anchors}"
        self.check(anchors == ANCHORS, what, field=f"{field}.num_anchors", remedy=f"state {ANCHORS}, the only number")
        what, fine = f"label_src_pos {position}", self.has("label_src_pos") and 0 <= position < RECORD
        what = what if self.has("label_src_pos") else "label_src_pos is not stated"
        self.check(fine, what, field=f"{field}.label_src_pos", remedy=f"use 0 to {RECORD - 1}")
        modes = self.p.output_instance_weights + self.p.output_proposals
        what = f"three tops, with {modes} of output_instance_weights and output_proposals"
        self.check(self.tops == 2 or modes == 1, what, field=field, remedy="state one of them, or list two tops")
        self.actions = self.p.num_valid_actions if self.has("num_valid_actions") else -1

    def propagates(self, bottom: int) -> bool:
        return bottom > 0

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        """One row stands for the number that is not known yet."""
        legacy_sizes(self, bottoms)
        for position, shape in enumerate(bottoms[1:], 1):
            what = f"bottom {position} has shape {shape}, bottom 1 {bottoms[1]}"
            fine = shape == bottoms[1] and len(shape) == 4 and 0 not in shape
            self.check(fine, what, field=f"bottom[{position}]", remedy="feed maps (N, C, H, W) of one shape")
        third: Shape = (1, 5) if self.p.output_proposals else (1,)
        return [(1, bottoms[1][1]), (1,), third][: self.tops]

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        import torch

        self.reshape(bottoms)
        rows, maps = self._rows(bottoms[0].detach()), torch.stack(bottoms[1:])
        whole = rows.to(torch.int64)
        if not len(rows):
            third = rows.new_full((1, 5) if self.p.output_proposals else (1,), -1)
            return [maps.new_zeros(1, maps.shape[2]), rows.new_full((1,), -1), third][: self.tops]
        item, anchor, x, y = (whole[:, place] for place in (ITEM, ANCHOR, X, Y))
        self._check_places(whole[:, [ANCHOR, ITEM, Y, X]], [maps.shape[axis] for axis in (0, 1, 3, 4)])
        found = maps[anchor, item, :, y, x]
        return [found, whole[:, self.p.label_src_pos].to(rows), self._third(rows, whole)][: self.tops]

    def _rows(self, detections: Tensor) -> Tensor:
        """The rows that count."""
        import torch

        *_, count, width = legacy_sizes(self, [tuple(detections.shape)])
        what = f"detections of shape {tuple(detections.shape)}"
        self.check(width == RECORD, what, field="bottom[0]", remedy=f"feed rows of {RECORD} values")
        rows = detections.reshape(-1, RECORD)[:count]
        whole = rows.to(torch.int64)
        counted = whole[:, ITEM] >= 0
        return rows[counted & (whole[:, ACTION] < self.actions) if self.actions >= 0 else counted]

    def _check_places(self, places: Tensor, sizes: Sequence[int]) -> None:
        outside = ((places < 0) | (places >= places.new_tensor(sizes))).any(1)
        first = places[outside][:1].tolist()
        what = f"a detection with anchor, item, y, x {first}; there are {list(sizes)}"
        self.check(not first, what, field="bottom[0]", remedy="correct the detections")

    def _third(self, rows: Tensor, whole: Tensor) -> Tensor:
        if self.p.output_proposals:
            proposals = rows[:, BOX - 1 : BOX + 4].clone()
            proposals[:, 0] = whole[:, ITEM].to(rows)
            return proposals
        instance = whole[:, TRACK] * 1000 + whole[:, ITEM]
        counts = (instance[:, None] == instance).sum(1)
        return counts.to(rows).reciprocal()
