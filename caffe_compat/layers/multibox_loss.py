"""MultiBoxLoss: what SSD is trained with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import log
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from caffe_compat.layers.base import Shape, register
from caffe_compat.layers.box_matching import FREE, HARD_EXAMPLE, Truth, match, match_label, mine, read_truth
from caffe_compat.layers.boxes import Code, Floats, Indices, Priors, to_array
from caffe_compat.layers.detection_output import check_predictions, check_sized, read_priors
from caffe_compat.layers.legacy_axes import legacy_sizes
from caffe_compat.layers.loss import FLT_MIN, LossLayer, clamp_straight, normalization
from caffe_compat.layers.straight_through import straight_through
from caffe_compat.schema import pb

if TYPE_CHECKING:
    from torch import Tensor

Labels = NDArray[np.int64]

ROW = 8
"""Values of a true box: image, label, instance, xmin, ymin, xmax, ymax, difficult."""
NONE, SOFTMAX, L2 = pb.MultiBoxLossParameter.NONE, pb.MultiBoxLossParameter.SOFTMAX, pb.MultiBoxLossParameter.L2


class Matched(NamedTuple):
    """What `match` found for an image and a column of locations, 0 where all classes share them."""

    image: int
    column: int
    true: Indices
    most: Floats


@dataclass(frozen=True)
class Sample:
    """What a pass trains with.

    Attributes:
        image, column, prior: of each matched location.
        boxes, labels: the true box of each match.
        negative_image, negative_prior: of each negative example.
    """

    image: Indices
    column: Indices
    prior: Indices
    boxes: Floats
    labels: Labels
    negative_image: Indices
    negative_prior: Indices


def gather(found: Sequence[Matched], truth: Mapping[int, Truth], negatives: Sequence[Indices] = ()) -> Sample:
    """All matches in a row, and with them the negative examples of each entry of `found`."""
    priors = [np.flatnonzero(m.true >= 0) for m in found]
    true = [m.true[own] for m, own in zip(found, priors, strict=True)]
    no_boxes, nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.intp)
    return Sample(
        np.concatenate([nothing, *(np.full(len(own), m.image) for m, own in zip(found, priors, strict=True))]),
        np.concatenate([nothing, *(np.full(len(own), m.column) for m, own in zip(found, priors, strict=True))]),
        np.concatenate([nothing, *priors]),
        np.concatenate([no_boxes, *(truth[m.image].boxes[own] for m, own in zip(found, true, strict=True))]),
        np.concatenate([nothing, *(truth[m.image].labels[own] for m, own in zip(found, true, strict=True))]),
        np.concatenate([nothing, *(np.full(len(own), m.image) for m, own in zip(found, negatives, strict=False))]),
        np.concatenate([nothing, *negatives]),
    )


@register
class MultiBoxLoss(LossLayer):
    """loss = (loc_weight * location loss + confidence loss) / Z over the boxes that matching and mining choose.

    Bottoms: location codes (N, P * 4), or (N, P * C * 4) without `share_location`; confidences (N, P * C), no softmax
    before; prior boxes and variances (1, 2, P * 4); true boxes (1, 1, G, 8) with rows (image, label, instance, xmin,
    ymin, xmax, ymax, difficult), image -1 for none. Which boxes count: box_matching.py. An image without true boxes
    counts only with mining_type NONE, which takes the confidences of all priors.

    Location loss: sum of SMOOTH_L1 or of d^2 / 2 over the matches' codes. Confidence loss: sum of softmax losses, or of
    logistic losses whose targets are background_label_id but 1 at the label. Z by loss_param: VALID (default) the
    matches, FULL N P, BATCH_SIZE N, NONE 1; at least 1. A part whose `propagate_down` is false is left out.

    As in the fork: with encode_variance_in_target both code and target are divided by the variances, of which the
    gradient knows nothing; with LOGISTIC and NONE the target of prior j of image i stands at i P + j C + label of all
    confidences in a row, which is right for the first image alone.
    openvino: labels from num_classes on count as the last one; with two classes every label is background + 1.
    Source: multibox_loss_layer.cpp, bbox_util.cpp of weiliu89/caffe, branch ssd, and of
    openvinotoolkit/training_toolbox_caffe.
    """

    TYPE = "MultiBoxLoss"
    DIALECTS = ("ssd", "openvino")
    PARAM = "multibox_loss_param"
    BOTTOMS = (4, 4)

    def setup(self, bottoms: Sequence[Shape]) -> None:
        super().setup(bottoms)
        self._check_classes()
        mining = self.p.mining_type != NONE
        what = f"do_neg_mining {self.p.do_neg_mining} contradicts mining_type"
        agrees = not self.has("do_neg_mining") or self.p.do_neg_mining == mining
        self.check(agrees, what, field="multibox_loss_param.do_neg_mining", remedy="remove it")
        what = "mining needs locations that all classes share"
        field = "multibox_loss_param.mining_type"
        remedy = "state share_location: true or mining_type: NONE"
        self.check(not mining or self.p.share_location, what, field=field, remedy=remedy)
        what = f"sample_size {self.p.sample_size} is not positive"
        fine = self.p.mining_type != HARD_EXAMPLE or self.p.sample_size > 0
        self.check(fine, what, field="multibox_loss_param.sample_size", remedy="make it > 0")
        self.located = 1 if self.p.share_location else self.classes
        self.code = Code(self.p.code_type, self.p.encode_variance_in_target)
        self.mining = mining

    def _check_classes(self) -> None:
        field = "multibox_loss_param.num_classes"
        self.classes, self.background = self.p.num_classes, int(np.uint32(self.p.background_label_id).astype(np.int32))
        known = self.classes >= 1
        self.check(known, "num_classes is missing or 0", field=field, remedy="state it, with the background")
        softmax = self.p.conf_loss_type == SOFTMAX
        what = f"background_label_id {self.background} is not one of the {self.classes} classes"
        below = self.background < self.classes or not (softmax or self.p.mining_type != NONE)
        field, remedy = "multibox_loss_param.background_label_id", "state the background's label"
        self.check(below and (self.background >= 0 or not softmax), what, field=field, remedy=remedy)
        what = f"map_object_to_agnostic with {self.classes} classes and background {self.background}"
        fine = self.background + 1 < self.classes == (2 if self.background >= 0 else 1)
        field, remedy = (
            "multibox_loss_param.map_object_to_agnostic",
            "it takes two classes, of which 0 is the background",
        )
        self.check(fine or not self.p.map_object_to_agnostic, what, field=field, remedy=remedy)

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        check_predictions(self, bottoms, self.classes, self.located)
        width = legacy_sizes(self, bottoms, 3)[3]
        what = f"the true boxes have shape {bottoms[3]}"
        self.check(width == ROW, what, field="bottom[3]", remedy=f"feed (1, 1, G, {ROW}) as AnnotatedData does")
        return [()]

    def propagates(self, bottom: int) -> bool:
        return bottom < 2

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        self.reshape(bottoms)
        priors = read_priors(bottoms[2])
        loc = bottoms[0].view(len(bottoms[0]), len(priors.boxes), self.located, 4)
        conf = bottoms[1].view(len(loc), len(priors.boxes), self.classes)
        sample = self._sample(loc, conf, priors, self._truth(bottoms[3]))
        count = {
            pb.LossParameter.FULL: len(loc) * len(priors.boxes),
            pb.LossParameter.VALID: len(sample.prior),
            pb.LossParameter.BATCH_SIZE: len(loc),
            pb.LossParameter.NONE: 1,
        }[normalization(self.param.loss_param)]
        parts = [self.p.loc_weight * self._loc_losses(loc, priors, sample).sum(), self._conf_loss(conf, sample)]
        down = self.param.propagate_down or [True, True]
        total: Any = sum(part for part, counts in zip(parts, down, strict=False) if counts)
        return [loc.new_zeros(()) + total / max(1, count)]

    # -- choosing ------------------------------------------------------------------------------------------

    def _truth(self, bottom: Tensor) -> Mapping[int, Truth]:
        """Image -> its true boxes."""
        rows = to_array(bottom).reshape(-1, ROW)[: legacy_sizes(self, [tuple(bottom.shape)])[2]]
        rows = rows[np.trunc(rows[:, 0]) != -1].copy()
        if self.context.dialect == "openvino":
            last = rows[:, 1].clip(max=self.classes - 1)
            rows[:, 1] = self.background + 1 if self.classes == 2 else last
        what = f"a true box has the background's label {self.background}"
        fine = not (np.trunc(rows[:, 1]) == self.background).any()
        self.check(fine, what, field="bottom[3]", remedy="correct the labels")
        return read_truth(rows if self.p.use_difficult_gt else rows[rows[:, 7] == 0])

    def _sample(self, loc: Tensor, conf: Tensor, priors: Priors, truth: Mapping[int, Truth]) -> Sample:
        images = [i for i in range(len(loc)) if i in truth]
        found = [m for i in images for m in self._match(i, to_array(loc[i]), priors, truth[i])]
        sample = gather(found, truth)
        self._check_labels(sample)
        if not self.mining:
            return sample
        losses = self._mining_losses(loc, conf, priors, sample)
        mined = [mine(m.true, m.most, losses[m.image], self._compared(loc[m.image], priors), self.p) for m in found]
        kept = [m._replace(true=true) for m, (true, _) in zip(found, mined, strict=True)]
        return gather(kept, truth, [negative for _, negative in mined])

    def _match(self, image: int, loc: Floats, priors: Priors, truth: Truth) -> Iterator[Matched]:
        columns = [c for c in range(self.located) if self.p.share_location or c != self.background]
        if self.p.use_prior_for_matching:
            index, most = match(priors.boxes, truth.boxes, self.p)
            for c in columns:
                own = self.p.share_location or ((index >= 0) & (truth.labels[index.clip(0)] == c))
                yield Matched(image, c, np.where(own, index, FREE), most)
            return
        check_sized(self, priors.boxes, self.code, "prior box", 2)
        for c in columns:
            boxes = self.code.decode(priors.boxes, priors.variances, loc[:, c])
            if self.p.share_location:
                yield Matched(image, c, *match(boxes, truth.boxes, self.p))
            else:
                yield Matched(image, c, *match_label(boxes, truth, c, self.p))

    def _check_labels(self, sample: Sample) -> None:
        bad = (sample.labels < 0) | (sample.labels >= self.classes)
        wrong = bool(bad.any()) and (self.mining or not self.p.map_object_to_agnostic)
        first = int(sample.labels[bad.argmax()]) if wrong else 0
        what = f"a true box has label {first}, not one of the {self.classes} classes 0 to {self.classes - 1}"
        self.check(not wrong, what, field="bottom[3]", remedy="correct the labels, or num_classes")

    def _mining_losses(self, loc: Tensor, conf: Tensor, priors: Priors, sample: Sample) -> Floats:
        """The loss of each prior, (N, P): of its confidences, and for HARD_EXAMPLE of its location."""
        labels = np.full(conf.shape[:2], self.background)
        labels[sample.image, sample.prior] = sample.labels
        rows = conf.detach().flatten(0, 1)
        if self.p.conf_loss_type == SOFTMAX:
            losses = softmax_losses(rows, labels.ravel())
        else:
            targets = (labels.reshape(-1, 1) == np.arange(self.classes)).astype(np.float32)
            losses = logistic_losses(rows, targets).sum(1)
        values: Floats = to_array(losses).reshape(labels.shape).copy()
        if self.p.mining_type == HARD_EXAMPLE:
            values[sample.image, sample.prior] += to_array(self._loc_losses(loc.detach(), priors, sample).sum(1))
        return values

    def _compared(self, loc: Tensor, priors: Priors) -> Floats | None:
        """The boxes that are suppressed before mining, if any are."""
        if not (self.has("nms_param") and self.p.nms_param.nms_threshold > 0):
            return None
        if self.p.use_prior_for_nms:
            return priors.boxes
        check_sized(self, priors.boxes, self.code, "prior box", 2)
        return self.code.decode(priors.boxes, priors.variances, to_array(loc)[:, 0])

    # -- losses --------------------------------------------------------------------------------------------

    def _loc_losses(self, loc: Tensor, priors: Priors, sample: Sample) -> Tensor:
        """Of each value of each match, (M, 4)."""
        import torch

        boxes, variances = priors.boxes[sample.prior], priors.variances[sample.prior]
        fine = bool((variances > 0).all())
        self.check(fine, "a variance is not positive", field="bottom[2]", remedy="correct the PriorBox layers")
        target = torch.from_numpy(self.code.encode(boxes, variances, sample.boxes)).to(loc)
        code = loc[sample.image, sample.prior, sample.column]
        inside = self._inside(boxes, variances, code) if self.p.bp_inside else None
        if self.code.in_target:
            divisor = torch.from_numpy(variances).to(loc)
            target, code = target / divisor, straight_through()(code, code / divisor)
        difference = code - target
        if inside is not None:
            difference = difference.where(torch.from_numpy(inside).to(loc.device), 0)
        if self.p.loc_loss_type == L2:
            return difference.square() / 2
        return torch.nn.functional.smooth_l1_loss(difference, torch.zeros_like(difference), reduction="none")

    def _inside(self, boxes: Floats, variances: Floats, code: Tensor) -> NDArray[np.bool_]:
        """Which sides of the matched boxes lie inside the image; others have no loss."""
        if not self.p.use_prior_for_matching:
            boxes = self.code.decode(boxes, variances, to_array(code))
        return (boxes >= 0) & (boxes <= 1)

    def _conf_loss(self, conf: Tensor, sample: Sample) -> Tensor:
        count, classes = conf.shape[1:]
        labels = np.full_like(sample.labels, self.background + 1) if self.p.map_object_to_agnostic else sample.labels
        softmax = self.p.conf_loss_type == SOFTMAX
        if self.mining:
            images = np.concatenate([sample.image, sample.negative_image])
            rows = conf[images, np.concatenate([sample.prior, sample.negative_prior])]
            labels = np.concatenate([labels, np.full(len(sample.negative_prior), self.background)])
            if softmax:
                return softmax_losses(rows, labels).sum()
            places = np.arange(len(labels)) * classes + labels
            places = places[labels >= 0]
        else:
            rows = conf.flatten(0, 1)
            if softmax:
                every = np.full(len(rows), self.background)
                every[sample.image * count + sample.prior] = labels
                return softmax_losses(rows, every).sum()
            places = sample.image * count + sample.prior * classes + labels
        targets = np.full(tuple(rows.shape), self.background, np.float32)
        targets.ravel()[places] = 1
        return logistic_losses(rows, targets).sum()


def softmax_losses(rows: Tensor, labels: Labels) -> Tensor:
    """-log(max(p[label], FLT_MIN)) of each row, p its softmax: (n, C), (n) -> (n)."""
    import torch

    index = torch.from_numpy(labels).to(rows.device)
    log_p = torch.log_softmax(rows, 1).gather(1, index[:, None]).squeeze(1)
    return clamp_straight()(-log_p, None, -log(FLT_MIN))


def logistic_losses(rows: Tensor, targets: Floats) -> Tensor:
    """Of each value, (n, C)."""
    import torch
    from torch.nn.functional import binary_cross_entropy_with_logits

    return binary_cross_entropy_with_logits(rows, torch.from_numpy(targets).to(rows), reduction="none")
