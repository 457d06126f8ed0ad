"""EvalDetection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from caffe_compat.layers.base import Layer, Shape, register
from caffe_compat.layers.boxes import Floats, to_array
from caffe_compat.layers.region_loss import ROW, annotated
from caffe_compat.layers.yolo_detection_output import centred_overlaps, sigmoid

if TYPE_CHECKING:
    from torch import Tensor

OBJECT, CLASSES = 4, 5
"""Where a box's object value and its classes stand."""
LEAST = np.float32(0.005)
"""Scores below which nothing counts."""


@register
class EvalDetection(Layer):
    """Tells true from false detections of YOLOv2: top (N, num_class + 4 B), B = side^2 num_object.

    Bottoms: predictions (N, num_object (5 + num_class), side, side) as of RegionLoss, and SSD's true boxes
    (1, 1, G, 8). An image's row begins with the number of true boxes of each class. Then, by class and falling score,
    each detection: class, score, true, false. Every class of a box with an object value and a product of both of at
    least 0.005 is one; its score is that product (MULTIPLY), either of them (OBJ, PROB). With nms from 0 on one that
    overlaps a better one of its class by nms is left out; without it there are none. True is the first that overlaps
    the nearest true box by `threshold`; a detection that overlaps less is neither, where there are true boxes of its
    class. `save_output_param` only writes files in the fork; here it does nothing, and `sqrt` and `constriant` neither.
    Source: eval_detection_layer.cpp of choasup/caffe-yolo9000.
    """

    TYPE = "EvalDetection"
    DIALECTS = ("yolo9000",)
    PARAM = "eval_detection_param"
    BOTTOMS = (2, None)
    BACKWARD = False

    def setup(self, bottoms: Sequence[Shape]) -> None:
        what = f"{len(self.p.biases)} biases for {self.p.num_object} boxes"
        enough = len(self.p.biases) >= 2 * self.p.num_object > 0
        field = "eval_detection_param.biases[0]"
        self.check(enough, what, field=field, remedy="state width and height of each box")
        self.anchors = np.array(self.p.biases[: 2 * self.p.num_object], np.float32).reshape(-1, 2)

    def notes(self) -> list[str]:
        writes = self.p.save_output_param.output_directory
        return [f'no files are written to "{writes}" (save_output_param)'] if writes else []

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        shape, labels = bottoms[:2]
        count, side = self.p.num_object, self.p.side
        wanted = (count * (CLASSES + self.p.num_class), side, side)
        what = f"the predictions have shape {shape} for {count} boxes of {self.p.num_class} classes, side {side}"
        fine = len(shape) == 4 and shape[1:] == wanted
        self.check(fine, what, field="bottom[0]", remedy=f"feed (N, {', '.join(map(str, wanted))})")
        what = f"the true boxes have shape {labels}"
        fine = len(labels) == 4 and labels[3] == ROW
        self.check(fine, what, field="bottom[1]", remedy=f"feed (1, 1, G, {ROW})")
        return [(shape[0], self.p.num_class + 4 * side * side * count)]

    def propagates(self, bottom: int) -> bool:
        return False

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        import torch

        top = np.zeros(self.reshape(bottoms)[0], np.float32)
        x = to_array(bottoms[0])
        truth = annotated(self, to_array(bottoms[1]), len(x))
        classes = self.p.num_class
        what = f"a true box of label {truth[:, 1].max(initial=1):g} of {classes} classes"
        fine = bool(((truth[:, 1] >= 1) & (truth[:, 1] <= classes)).all())
        self.check(fine, what, field="bottom[1]", remedy="use labels from 1 on")
        for image, row in enumerate(top):
            own = truth[truth[:, 0] == image, 1:]
            labels = own[:, 0].astype(int) - 1
            row[:classes] = np.bincount(labels, minlength=classes)
            found = [self._judge(rows, own[labels == label, 1:]) for label, rows in self._detections(x[image])]
            rows = np.concatenate([np.zeros((0, 4), np.float32), *found])[: (len(row) - classes) // 4]
            row[classes : classes + rows.size] = rows.ravel()
        return [torch.from_numpy(top).to(bottoms[0])]

    def _detections(self, x: Floats) -> list[tuple[int, Floats]]:
        """(class, rows (class, score, x, y, width, height)), best first."""
        side, count, threshold = self.p.side, self.p.num_object, self.p.nms
        if threshold < 0:
            return []
        values = x.reshape(count, -1, side * side).transpose(2, 0, 1).reshape(side * side * count, -1)
        likely = np.exp(values[:, CLASSES:] - values[:, CLASSES:].max(1, keepdims=True))
        likely /= likely.sum(1, keepdims=True)
        sure = sigmoid(values[:, OBJECT])[:, None]
        both = likely * sure
        score = {self.p.OBJ: np.broadcast_to(sure, likely.shape), self.p.PROB: likely}.get(self.p.score_type, both)
        counted = (sure >= LEAST) & (both > LEAST)
        boxes = self._boxes(values)
        found = []
        for label in range(self.p.num_class):
            at = np.flatnonzero(counted[:, label])
            at = at[np.argsort(-score[at, label], kind="stable")]
            at = at[self._kept(boxes[at])]
            rows = np.concatenate([np.full((len(at), 1), label), score[at, label, None], boxes[at]], 1)
            found.append((label, rows[rows[:, 1] >= LEAST].astype(np.float32)))
        return found

    def _boxes(self, values: Floats) -> Floats:
        side, count = self.p.side, self.p.num_object
        cell = np.arange(len(values)) // count
        centre = (np.stack([cell % side, cell // side], 1) + sigmoid(values[:, :2])) / side
        size = np.exp(values[:, 2:4]) * np.tile(self.anchors, (side * side, 1)) / side
        boxes: Floats = np.concatenate([centre, size], 1).astype(np.float32)
        return boxes

    def _kept(self, boxes: Floats) -> list[int]:
        """Which boxes, best first, overlap none kept before them by nms."""
        shared = centred_overlaps(boxes, boxes)
        kept: list[int] = []
        for at in range(len(boxes)):
            if not (shared[kept, at] >= np.float32(self.p.nms)).any():
                kept.append(at)
        return kept

    def _judge(self, rows: Floats, truth: Floats) -> Floats:
        """class, score, true, false of detections."""
        judged = np.zeros((len(rows), 4), np.float32)
        judged[:, :2] = rows[:, :2]
        if not len(truth):
            judged[:, 3] = 1
            return judged
        shared = centred_overlaps(rows[:, 2:], truth)
        taken: set[int] = set()
        for at, (most, nearest) in enumerate(zip(shared.max(1), shared.argmax(1), strict=True)):
            if most >= np.float32(self.p.threshold):
                judged[at, 3 if int(nearest) in taken else 2] = 1
                taken.add(int(nearest))
        return judged
