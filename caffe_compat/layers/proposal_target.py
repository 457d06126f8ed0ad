"""ProposalTarget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from caffe_compat.layers.base import Layer, Shape, register
from caffe_compat.layers.boxes import Floats, Indices, to_array
from caffe_compat.layers.cascade_boxes import COORDINATES, ONE, Regression, pair_overlaps, with_sizes
from caffe_compat.layers.legacy_axes import legacy_sizes
from caffe_compat.layers.rpn_targets import drawn

if TYPE_CHECKING:
    from torch import Tensor

SMALLEST = 32
"""Width and height, at least, of a region that is drawn because there is no other."""


@dataclass(frozen=True)
class _Match:
    """Regions (n, 5), told by item, x, y, width, height, with the true box of each (-1: none) and its overlap."""

    rois: Floats
    truth: Indices
    overlap: Floats

    def plus(self, roi: Floats) -> _Match:
        """One more, which is background."""
        return _Match(np.vstack([self.rois, roi]), np.append(self.truth, -1), np.append(self.overlap, np.float32(0)))


@register
class ProposalTarget(Layer):
    """Regions drawn for training, and their targets (proposal_target_layer.cpp).

    Bottoms: regions (R, 5): item, x1, y1, x2, y2; true boxes (G, 7 or more): item (-1: none), x1, y1, x2, y2, label,
    ignored. With append_gtbox these count as regions. Objects overlap a true box of their item by fg_thr, unless it is
    ignored; background overlaps by bg_thr_lw to below bg_thr_hg. Of batch_size regions fg_fraction, rounded, are
    objects, as far as there are; with -1 all are taken. Where background lacks, pickup_discard adds regions of neither
    kind; without any region one is drawn at random.
    Tops, (K, ..., 1, 1): regions (5), label (1), targets at the label's place, or with `cls_aware` false at that of
    objects, weights there (1 if the overlap is from bbox_thr_lw to bbox_thr_hg), these again, the matched true box (6):
    label, x1, y1, x2, y2, overlap; and, if asked for, weights of the samples, which bring objects to fg_fraction.
    Source: zhaoweicai/cascade-rcnn.
    """

    TYPE = "ProposalTarget"
    DIALECTS = ("cascade-rcnn",)
    PARAM = "proposal_target_param"
    FORK_FIELDS = ("bbox_reg_param",)
    BOTTOMS = (2, 2)
    TOPS = (6, 7)
    BACKWARD = False
    VARIES = True

    def setup(self, bottoms: Sequence[Shape]) -> None:
        self.regression = Regression.of(self)
        what = f"batch_size {self.p.batch_size}"
        fine = self.p.batch_size == -1 or self.p.batch_size > 0
        self.check(fine, what, field="proposal_target_param.batch_size", remedy="use -1 for all, or a number above 0")
        what = f"fg_thr {self.p.fg_thr:g} is below bg_thr_hg {self.p.bg_thr_hg:g}"
        self.check(self.p.fg_thr >= self.p.bg_thr_hg, what, field="proposal_target_param.fg_thr", remedy="raise it")
        self.aware = self.param.bbox_reg_param.cls_aware
        self.classes = self.p.cls_num if self.aware else 2

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        count, width = legacy_sizes(self, bottoms)[:2]
        what = f"regions of shape {bottoms[0]}"
        self.check(width == 5, what, field="bottom[0]", remedy="feed (R, 5): item, x1, y1, x2, y2")
        what = f"true boxes of shape {bottoms[1]}"
        enough = legacy_sizes(self, bottoms, 1)[1] >= 7
        self.check(
            enough, what, field="bottom[1]", remedy="feed (G, 8): item, x1, y1, x2, y2, label, ignored, difficult"
        )
        rows = max(count, 1) if self.p.batch_size == -1 else self.p.batch_size
        targets = COORDINATES * self.classes
        return [(rows, size, 1, 1) for size in (5, 1, targets, targets, targets, 6, 1)[: self.tops]]

    def propagates(self, bottom: int) -> bool:
        return False

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        import torch

        self.reshape(bottoms)
        rois, truth = (to_array(bottom).reshape(len(bottom), -1) for bottom in bottoms)
        truth = truth[truth[:, 0] != -1]
        self._check_items(rois, truth)
        matches = self._matched(rois, truth)
        matches, kept, count = self._drawn(matches, truth)
        labels = np.zeros(len(kept), np.float32)
        labels[:count] = truth[matches.truth[kept[:count]], 5]
        what = f"label {labels.max(initial=0):g} of {self.p.cls_num} classes"
        fine = labels.max(initial=0) < self.p.cls_num or not self.aware
        self.check(fine, what, field="bottom[1]", remedy="state more cls_num")
        tops = self._tops(matches, kept, labels, truth)
        return [torch.from_numpy(np.float32(top)[:, :, None, None]).to(bottoms[0]) for top in tops[: self.tops]]

    def _check_items(self, rois: Floats, truth: Floats) -> None:
        most = self.p.num_img_per_batch
        for position, items in enumerate((rois[:, 0], truth[:, 0])):
            what = f"items {items.min(initial=0):g} to {items.max(initial=0):g}, with num_img_per_batch {most}"
            fine = bool(((items >= 0) | (position == 0)).all() and (items < most).all())
            self.check(fine, what, field=f"bottom[{position}]", remedy="state more num_img_per_batch")

    def _matched(self, rois: Floats, truth: Floats) -> _Match:
        """The regions with the true box that each overlaps most, of its own item."""
        own = np.concatenate([truth[:, :1], with_sizes(truth[:, 1:5])], 1)
        boxes = np.concatenate([rois[:, :1], with_sizes(rois[:, 1:])], 1)
        boxes = np.concatenate([boxes, own]) if self.p.append_gtbox else boxes
        if not len(own):
            return _Match(boxes, np.full(len(boxes), -1), np.zeros(len(boxes), np.float32))
        pairs = pair_overlaps(boxes.repeat(len(own), 0)[:, 1:], np.tile(own, (len(boxes), 1))[:, 1:])
        shared = np.where(boxes[:, :1] == own[:, 0], pairs.reshape(len(boxes), -1), -ONE)
        nearest, most = shared.argmax(1), shared.max(1)
        return _Match(boxes, np.where(most < 0, -1, nearest), np.maximum(most, 0))

    def _drawn(self, matches: _Match, truth: Floats) -> tuple[_Match, Indices, int]:
        """The regions, the indices of those drawn, objects first, and how many these are."""
        p, overlap = self.p, matches.overlap
        object_ = overlap >= np.float32(p.fg_thr)
        known = truth[matches.truth, 6] == 0 if len(truth) else object_
        between = ~object_ & (overlap >= np.float32(p.bg_thr_lw)) & (overlap < np.float32(p.bg_thr_hg))
        objects, others = np.flatnonzero(object_ & known), np.flatnonzero(between)
        batch = len(objects) + len(others) if p.batch_size == -1 else p.batch_size
        most = len(objects) if p.batch_size == -1 else int(np.floor(p.fg_fraction * batch + 0.5))
        objects = drawn(objects, most) if len(objects) > most else objects
        room = batch - len(objects)
        if len(others) > room:
            others = drawn(others, room)
        elif p.pickup_discard:
            others = np.append(others, np.flatnonzero(~object_ & ~between)[: room - len(others)])
        if not len(objects) + len(others):
            matches = matches.plus(self._at_random(truth))
            others = np.array([len(matches.rois) - 1])
        return matches, np.concatenate([objects, others]), len(objects)

    def _at_random(self, truth: Floats) -> Floats:
        """A region that overlaps no true box by fg_thr."""
        import torch

        width, height = self.p.img_width, self.p.img_height
        what = f"no region is left, and img_width {width}, img_height {height} allow none of {SMALLEST} x {SMALLEST}"
        field = "proposal_target_param"
        self.check(min(width, height) > SMALLEST, what, field=field, remedy="state the images' size")
        while True:
            item = int(torch.randint(self.p.num_img_per_batch, ()))
            corner = [int(torch.randint(side - SMALLEST, ())) for side in (width, height)]
            ends = [int(torch.randint(side - low, ())) for side, low in zip((width, height), corner, strict=True)]
            roi = np.array([item, *corner, *(max(end, SMALLEST) for end in ends)], np.float32)
            own = with_sizes(truth[truth[:, 0] == item, 1:5])
            if (pair_overlaps(np.tile(roi[1:], (len(own), 1)), own) < np.float32(self.p.fg_thr)).all():
                return roi

    def _tops(self, matches: _Match, kept: Indices, labels: Floats, truth: Floats) -> list[Floats]:
        rois, count = matches.rois[kept], int((labels > 0).sum())
        matched = truth[matches.truth[kept[:count]]]
        overlap = matches.overlap[kept[:count]]
        found = np.zeros((len(kept), 6), np.float32)
        found[:count] = np.column_stack([labels[:count], matched[:, 1:5], overlap])
        place = (labels if self.aware else np.minimum(labels, 1)).astype(int)
        at = np.eye(self.classes, dtype=np.float32)[place] * (labels > 0)[:, None]  # (K, classes)
        codes = np.zeros((len(kept), 1, COORDINATES), np.float32)
        codes[:count, 0] = self._codes(rois[:count, 1:], with_sizes(matched[:, 1:5]))
        low, high = np.float32(self.p.bbox_thr_lw), np.float32(self.p.bbox_thr_hg)
        weights = (at * ((found[:, 5:] >= low) & (found[:, 5:] <= high))).repeat(COORDINATES, 1)
        corners = np.concatenate([rois[:, :3], rois[:, 1:3] + rois[:, 3:] - ONE], 1)
        targets = (at[:, :, None] * codes).reshape(len(kept), -1)
        return [corners, labels[:, None], targets, weights, weights, found, self._sample_weights(found)[:, None]]

    def _codes(self, boxes: Floats, truth: Floats) -> Floats:
        shift = (truth[:, :2] + truth[:, 2:] / 2 - boxes[:, :2] - boxes[:, 2:] / 2) / boxes[:, 2:]
        code = np.concatenate([shift, np.log(truth[:, 2:] / boxes[:, 2:])], 1)
        normal: Floats = (code - self.regression.means) / self.regression.stds
        return normal

    def _sample_weights(self, found: Floats) -> Floats:
        object_ = found[:, 0] > 0
        weights = np.where(object_, found[:, 5], ONE) if self.p.iou_weighted else np.ones(len(found), np.float32)
        objects = weights[object_].sum()
        if not objects:
            return weights
        others = max(weights[~object_].sum(), ONE)
        part = np.where(object_, self.p.fg_fraction / objects, (1 - self.p.fg_fraction) / others)
        scaled: Floats = weights * (part * len(found))
        return scaled
