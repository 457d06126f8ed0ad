"""DetectionGroupLoss."""

from __future__ import annotations

from collections.abc import Sequence
from math import log
from typing import TYPE_CHECKING

import numpy as np

from caffe_compat.layers.base import Shape, register
from caffe_compat.layers.boxes import Floats, Indices, to_array
from caffe_compat.layers.cascade_boxes import Fields, Regression, field_bounds
from caffe_compat.layers.detection_group_accuracy import check_groups
from caffe_compat.layers.loss import FLT_MIN, LossLayer, clamp_straight, label_indices
from caffe_compat.layers.rpn_targets import drawn
from caffe_compat.layers.smooth_l1_loss import smooth_l1

if TYPE_CHECKING:
    from torch import Tensor

MINING = ("random", "bootstrap", "mixture")
RANKING = ("conf_prob", "conf_loss")
LOSSES = ("Smooth_L1", "Euclidean_L2")


@register
class DetectionGroupLoss(LossLayer):
    """Softmax loss of the fields' classes plus lambda times the loss of their boxes (detection_group_loss_layer.cpp).

    Bottoms as of DetectionGroupAccuracy. In each item fields with an object and of background (overlap below
    bg_threshold) are drawn: all objects and bg_multiple times as many of background, min_num_neg at least; or, with
    batch_size, that many, one object to bg_multiple of background. Background is drawn at random, by falling
    neg_ranking_type ("bootstrap"), or half and half ("mixture"). The softmax loss is the mean over those drawn, with
    weights of one object to bg_multiple if pos_neg_weighted; the boxes' loss is the mean over the coordinates of
    objects drawn, codes cut off at the bounds when field_xyr and field_whr are both stated, of which gradients do not
    know.
    The top (1, 1, 1, 2) holds the loss and its part of boxes; gradients come from the first alone.
    Source: zhaoweicai/cascade-rcnn.
    """

    TYPE = "DetectionGroupLoss"
    DIALECTS = ("cascade-rcnn",)
    PARAM = "detection_group_loss_param"
    FORK_FIELDS = ("bbox_reg_param",)
    BOTTOMS = (3, 3)
    AUTO_TOPS = True

    def setup(self, bottoms: Sequence[Shape]) -> None:
        super().setup(bottoms)
        self.fields = Fields.of(self, self.p, self.PARAM)
        self.regression = Regression.of(self)
        named = (("neg_mining_type", MINING), ("neg_ranking_type", RANKING), ("bbox_loss_type", LOSSES))
        for name, known in named:
            what = f'{name} "{getattr(self.p, name)}" is not known'
            fine = getattr(self.p, name) in known
            self.check(fine, what, field=f"{self.PARAM}.{name}", remedy=f"use {', '.join(known)}")
        what = f"batch_size {self.p.batch_size}"
        fine = self.p.batch_size == -1 or self.p.batch_size > 0
        self.check(fine, what, field=f"{self.PARAM}.batch_size", remedy="use -1 for all objects, or a number above 0")

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        check_groups(self, self.fields, bottoms)
        return [(1, 1, 1, 2)]

    def propagates(self, bottom: int) -> bool:
        return bottom < 2

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        import torch

        self.reshape(bottoms)
        scores, codes, truth = bottoms
        labels = truth[:, 0].detach().trunc()
        clipped = labels.clamp(max=1) if self.p.objectness else labels
        loss = self.param.loss_param
        ignored = loss.ignore_label if loss.HasField("ignore_label") else None
        index, counted = label_indices(self, clipped, scores.shape[1], ignored)
        logarithm = scores.log_softmax(1).gather(1, index.unsqueeze(1)).squeeze(1)
        errors = -clamp_straight()(logarithm, log(FLT_MIN), None)
        kept = self._kept(to_array(errors), to_array(scores.softmax(1)[:, 0]), to_array(truth))
        drawn_ = torch.from_numpy(kept).to(scores.device)
        weights = torch.from_numpy(self._weights(kept, to_array(labels))).to(scores)
        judged = drawn_ if counted is None else drawn_ & counted
        classes = (errors * weights)[judged].sum() / judged.sum().clamp(min=1)
        boxes = getattr(self.p, "lambda") * self._box_loss(codes, truth, judged & (labels != 0))
        return [torch.stack([classes + boxes, boxes.detach()]).reshape(1, 1, 1, 2)]

    def _box_loss(self, codes: Tensor, truth: Tensor, counted: Tensor) -> Tensor:
        import torch

        wanted = torch.from_numpy(self.fields.encode(to_array(truth[:, 1:5]), self.regression)).to(codes)
        if self.has("field_xyr") and self.has("field_whr"):
            codes = self._bounded(codes)
        shift = (codes - wanted).permute(0, 2, 3, 1)[counted]
        each = smooth_l1(shift) if self.p.bbox_loss_type == "Smooth_L1" else shift * shift / 2
        return each.sum() / max(each.numel(), 1)

    def _bounded(self, codes: Tensor) -> Tensor:
        """Codes within their bounds, normalised by the means over both coordinates."""
        import torch

        means, stds = self.regression.means, self.regression.stds
        least, most = field_bounds(self.p.field_xyr, self.p.field_whr)
        parts = []
        for at in (0, 2):
            mean, std = (means[at] + means[at + 1]) / 2, np.sqrt(stds[at] * stds[at + 1])
            low, high = (float((bound[at] - mean) / std) for bound in (least, most))
            parts.append(clamp_straight()(codes[:, at : at + 2], low, high))
        return torch.cat(parts, 1)

    def _kept(self, errors: Floats, background: Floats, truth: Floats) -> Indices:
        """Which fields are drawn, (N G, H, W)."""
        ranks = errors if self.p.neg_ranking_type == "conf_loss" else 1 - background
        labels, overlap = truth[:, 0].astype(int), truth[:, -1]
        kept = np.zeros(labels.shape, bool)
        items = len(kept) // len(self.fields.sizes)
        others = (labels == 0) & (overlap < np.float32(self.p.bg_threshold))
        parts = (each.reshape(items, -1) for each in (kept, labels > 0, others, ranks))
        for into, object_, other, rank in zip(*parts, strict=True):
            objects, negatives = np.flatnonzero(object_), np.flatnonzero(other)
            most, least = self._counts(len(objects), len(negatives))
            into[drawn(objects, most) if len(objects) > most else objects] = True
            into[self._negatives(negatives, rank, least) if len(negatives) > least else negatives] = True
        return kept

    def _counts(self, objects: int, others: int) -> tuple[int, int]:
        """Objects and background fields to draw."""
        if self.p.batch_size == -1:
            return objects, min(max(objects * self.p.bg_multiple, self.p.min_num_neg), others)
        most = min(int(self.p.batch_size / (1 + self.p.bg_multiple) + 0.5), objects)
        return most, min(self.p.batch_size - most, others)

    def _negatives(self, found: Indices, ranks: Floats, count: int) -> Indices:
        """Background fields drawn; of equally hard ones the later are preferred, as pairs are sorted."""
        hard = {"random": 0, "bootstrap": count, "mixture": int(count * 0.5 + 0.5)}[self.p.neg_mining_type]
        order = found[np.lexsort((-found, -ranks[found]))]
        return np.concatenate([order[:hard], drawn(order[hard:], count - hard)])

    def _weights(self, kept: Indices, labels: Floats) -> Floats:
        """Of the fields: 1, or such that objects have one part in 1 + bg_multiple."""
        weights = np.ones(kept.shape, np.float32)
        if self.p.pos_neg_weighted:
            part = 1 / (1 + self.p.bg_multiple)
            for own, share in (labels > 0, part), (labels <= 0, 1 - part):
                count = (kept & own).sum()
                weights[own] *= share * kept.sum() / count if count else 1
        return weights
