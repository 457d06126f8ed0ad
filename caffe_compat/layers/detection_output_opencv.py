"""DetectionOutput as OpenCV's importer of Caffe nets has it."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from caffe_compat.layers.base import Shape, register
from caffe_compat.layers.boxes import CENTER_SIZE, Floats, best, overlaps, suppress, to_array
from caffe_compat.layers.detection_output import DetectionOutput

if TYPE_CHECKING:
    from torch import Tensor

ONE, HALF, ZERO = np.float32(1), np.float32(0.5), np.float32(0)


@register
class DetectionOutputOpencv(DetectionOutput):
    """Boxes that are left after suppression, as rows (image, label, score, xmin, ymin, xmax, ymax).

    As in SSD, but: location codes (N, ...) and confidences (N, ...) may have any further axes; the priors
    (1, 2, P * 4, ...) have no variances, (1, 1, P * 4, ...), with variance_encoded_in_target; code types but
    CENTER_SIZE are read as CORNER; with normalized_bbox false both edges of a box belong to it; nms_param.eta means
    nothing; confidence_threshold is 0 unless stated. The top is (1, 1, N keep_top_k, 7): the rows of each image by
    falling score, then 0.
    Source: detection_output_layer.cpp of opencv/opencv, modules/dnn.
    """

    DIALECTS = ("opencv",)  # type: ignore[assignment]
    FORK_FIELDS = ("detection_output_param.normalized_bbox",)

    def setup(self, bottoms: Sequence[Shape]) -> None:
        super().setup(bottoms)
        what = f"keep_top_k {self.p.keep_top_k}"
        field = "detection_output_param.keep_top_k"
        self.check(self.p.keep_top_k > 0, what, field=field, remedy="state how many boxes are kept")
        self.least = self.p.confidence_threshold

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        codes, scores, priors = bottoms[:3]
        channels = 1 if self.p.variance_encoded_in_target else 2
        what = f"priors of shape {priors}"
        fine = len(priors) >= 3 and priors[1] == channels and priors[2] % 4 == 0
        self.check(fine, what, field="bottom[2]", remedy=f"feed (1, {channels}, 4 P)")
        count = priors[2] // 4
        for position, shape, each in (0, codes, 4 * self.located), (1, scores, self.classes):
            what = f"bottom {position} has shape {shape} for {count} priors"
            fine = shape[:1] == codes[:1] and prod(shape[1:]) == count * each
            self.check(fine, what, field=f"bottom[{position}]", remedy=f"feed ({codes[0]}, {count * each})")
        return [(1, 1, codes[0] * self.p.keep_top_k, 7)]

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        import torch

        shape = self.reshape(bottoms)[0]
        num = len(bottoms[0])
        codes, scores, priors = (to_array(bottom).reshape(len(bottom), -1) for bottom in bottoms[:3])
        count = scores.shape[1] // self.classes
        given = priors[0].reshape(-1, count, 1, 4)
        code = codes.reshape(num, count, self.located, 4)
        boxes = self._decode(given[0], code if len(given) == 1 else code * given[1]).swapaxes(1, 2)
        likely = np.ascontiguousarray(scores.reshape(num, count, -1).swapaxes(1, 2))
        found = np.concatenate([self._detect(image, boxes[image], likely[image]) for image in range(num)])
        rows = np.zeros(shape[2:], np.float32)
        rows[: len(found)] = found
        return [torch.from_numpy(rows[None, None]).to(bottoms[0])]

    def _decode(self, priors: Floats, code: Floats) -> Floats:
        if self.p.code_type != CENTER_SIZE:
            return priors + code
        size = priors[..., 2:] - priors[..., :2] + (ZERO if self.p.normalized_bbox else ONE)
        middle = code[..., :2] * size + priors[..., :2] + size * HALF
        with np.errstate(over="ignore"):
            reach = np.exp(code[..., 2:]) * size * HALF
        return np.concatenate([middle - reach, middle + reach], -1)

    def _detect(self, image: int, boxes: Floats, scores: Floats) -> Floats:
        """The rows of an image, best first."""
        shared = overlaps if self.p.normalized_bbox else closed_overlaps
        rows = [np.zeros((0, 7), np.float32)]
        for label in range(self.classes):
            if label != self.background:
                own = boxes[label if self.located > 1 else 0]
                order = best(scores[label], self.least, self.most)
                order = order[suppress(own[order], self.p.nms_param.nms_threshold, overlap=shared)]
                kept = scores[label, order, None]
                rows.append(np.concatenate([np.full_like(kept, image), np.full_like(kept, label), kept, own[order]], 1))
        together = np.concatenate(rows)
        return together[np.argsort(-together[:, 2], kind="stable")[: self.p.keep_top_k]]


def closed_overlaps(a: Floats, b: Floats) -> Floats:
    """Intersection over union of boxes whose both edges belong to them, 0 where nothing is shared (JaccardOverlap)."""
    low, high = np.maximum(a[:, None, :2], b[:, :2]), np.minimum(a[:, None, 2:], b[:, 2:])
    common = _area(low, high)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = common / (_area(a[:, :2], a[:, 2:])[:, None] + _area(b[:, :2], b[:, 2:]) - common)
    shared: Floats = np.where(common > 0, ratio, ZERO)
    return shared


def _area(low: Floats, high: Floats) -> Floats:
    area: Floats = np.where(np.any(high < low, axis=-1), ZERO, (high - low + ONE).prod(-1))
    return area
