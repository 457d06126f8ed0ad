"""RegionLoss: what YOLOv2 is trained with."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from caffe_compat.layers.base import Layer, Shape, register
from caffe_compat.layers.boxes import Floats, Indices, to_array
from caffe_compat.layers.loss import LossLayer
from caffe_compat.layers.straight_through import straight_through
from caffe_compat.layers.yolo_detection_output import centred_overlaps, sigmoid

if TYPE_CHECKING:
    from torch import Tensor

ROW = 8
"""Values of a true box of SSD."""
MOST, VALUES = 300, 5
"""True boxes of an image, and the values of each: class, x, y, width, height."""
LEAST_BIASES = 10
"""With fewer, all are 0."""
OBJECT, CLASSES = 4, 5
"""Where a box's object value and its classes stand."""


@register
class RegionLoss(LossLayer):
    """loss = 1/N sum of e^2, with the gradient e / N, which is not the loss's derivative.

    Bottom 0 (N, num * (coords + 1 + num_class), S, S) holds num times (tx, ty, tw, th, object, classes...), bottom 1
    300 times (class, x, y, width, height) for each image, as parts of it, 0 behind the last. s is the logistic
    function, c_k the softmax of the classes; anchors come from `biases`, in cells. e is
        noobject_scale s(o) s(o) (1 - s(o)) at every object value o, but 0 where the predicted box overlaps a true one
        by more than thresh. In the cell of each true box, for the anchor (bias_match 0: the predicted box) that
        overlaps it most when both are centred, the first on a tie, the last true box when several meet:
        k (s(tx) - x') s(tx) (1 - s(tx)), ty likewise; k (tw - log(width S / bias)), th likewise, x' being the place
        within the cell; k = coord_scale, times 2 - width height with rescore 0;
        object_scale (s(o) - t) s(o) (1 - s(o)), t the overlap, 1 with rescore 0;
        class_scale (c_k - [k is the class]).
    A true box that no anchor overlaps trains the first value of all. The other fields mean nothing.
    Source: region_loss_layer.cpp of eric612/MobileNet-YOLO.
    """

    TYPE = "RegionLoss"
    DIALECTS = ("mobilenet-yolo",)
    PARAM = "region_loss_param"
    MEAN = True
    """The loss is divided by N, as its gradient is."""

    def setup(self, bottoms: Sequence[Shape]) -> None:
        given, needed = list(self.p.biases), 2 * self.p.num
        biases = given if len(given) >= LEAST_BIASES else [0.0] * LEAST_BIASES
        what = f"{len(biases)} biases for {self.p.num} boxes"
        field = "region_loss_param.biases[0]"
        self.check(len(biases) >= needed > 0, what, field=field, remedy="state width and height of each box")
        self.anchors = np.array(biases[:needed], np.float32).reshape(-1, 2)
        what = f"coords is {self.p.coords}; the classes begin at value {CLASSES}"
        self.check(self.p.coords >= OBJECT, what, field="region_loss_param.coords", remedy=f"state {OBJECT}")
        self.each = self.p.coords + 1 + self.p.num_class

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        shape, labels = bottoms
        what = f"the predictions have shape {shape}; (N, {self.p.num} * {self.each}, S, S) is needed"
        fine = len(shape) == 4 and shape[1] == self.p.num * self.each and shape[2] == shape[3]
        remedy = "match num and num_class with the layer before, and feed square images"
        self.check(fine, what, field="bottom[0]", remedy=remedy)
        what = f"the true boxes have shape {labels}; {MOST * VALUES} values for each of {shape[0]} images are needed"
        fine = prod(labels) >= shape[0] * MOST * VALUES
        self.check(fine, what, field="bottom[1]", remedy=f"feed ({shape[0]}, {MOST * VALUES})")
        return [()]

    def check_batch(self, bottoms: Sequence[Shape]) -> None:
        """`top_shapes` has its own rule."""

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        import torch

        self.reshape(bottoms)
        x = bottoms[0]
        labels = self._labels(to_array(bottoms[1]), len(x))
        with np.errstate(all="ignore"):
            errors = torch.from_numpy(self._errors(to_array(x), labels)).to(x).view(x.shape)
        value = errors.square().sum() / (len(x) if self.MEAN else 1)
        return [straight_through()((x * errors).sum() / len(x), value)]

    def _labels(self, values: Floats, images: int) -> Sequence[Floats]:
        """The true boxes of each image in rows (class, x, y, width, height)."""
        return list(values.ravel()[: images * MOST * VALUES].reshape(images, MOST, VALUES))

    def _counted(self, rows: Floats, column: int) -> Floats:
        """The rows up to the first with a 0 in that column."""
        return rows[: _until_zero(rows[:, column])]

    def _errors(self, x: Floats, labels: Sequence[Floats]) -> Floats:
        """e, (N, num, values of a box, S * S)."""
        side = x.shape[3]
        values = x.reshape(len(x), self.p.num, self.each, side * side).copy()
        values[:, :, OBJECT] = sigmoid(values[:, :, OBJECT])
        likely = values[:, :, CLASSES : CLASSES + self.p.num_class]
        np.exp(likely - likely.max(2, keepdims=True), out=likely)
        likely /= likely.sum(2, keepdims=True)
        boxes = self._boxes(values, side)
        errors: Floats = np.zeros(values.shape, np.float32)
        sure = values[:, :, OBJECT]
        errors[:, :, OBJECT] = np.float32(self.p.noobject_scale) * sure * ((1 - sure) * sure)
        for image, rows in enumerate(labels):
            near = self._near(boxes[image], self._counted(rows, 1)[:, 1:])
            errors[image, :, OBJECT][near] = 0
        for image, rows in enumerate(labels):
            self._train(errors, values, boxes, image, self._counted(rows, 3))
        return errors

    def _boxes(self, values: Floats, side: int) -> Floats:
        """The predicted boxes (x, y, width, height), (N, num, S * S, 4)."""
        cells = np.arange(side * side)
        x, y = ((cell + sigmoid(values[:, :, i])) / side for i, cell in enumerate((cells % side, cells // side)))
        size = np.exp(values[:, :, 2:4]) * self.anchors[:, :, None] / np.float32(side)
        boxes: Floats = np.stack([x, y, size[:, :, 0], size[:, :, 1]], -1).astype(np.float32)
        return boxes

    def _near(self, boxes: Floats, truth: Floats) -> NDArray[np.bool_]:
        """Which predicted boxes (num, S * S) overlap a true one by more than `thresh`."""
        shared = np.nan_to_num(centred_overlaps(boxes.reshape(-1, 4), truth), nan=0.0)
        near: NDArray[np.bool_] = shared.max(1, initial=0).reshape(boxes.shape[:2]) > np.float32(self.p.thresh)
        return near

    def _train(self, errors: Floats, values: Floats, boxes: Floats, image: int, rows: Floats) -> None:
        """Write the errors of the cells that true boxes, in rows (class, x, y, width, height), lie in."""
        side = int(values.shape[3] ** 0.5)
        truth = rows[:, 1:]
        cell = np.trunc(truth[:, :2] * np.float32(side)).astype(int)
        place = cell[:, 1] * side + cell[:, 0]
        what = f"a true box of image {image} has its centre outside the image"
        fine = bool(((place >= 0) & (place < side * side) & (cell >= 0).all(1)).all())
        self.check(fine, what, field="bottom[1]", remedy="give centres from 0 up to, but not including, 1")
        owner, box, place = self._owners(boxes[image], image, truth, place, side)
        own, anchors = values[owner, box, :, place], self.anchors[box]
        errors_there = [*self._place_errors(own, truth, cell, anchors, side), self._class_errors(own, rows[:, 0])]
        columns = [0, 1, 2, 3, OBJECT, *range(CLASSES, CLASSES + self.p.num_class)]
        errors[owner[:, None], box[:, None], columns, place[:, None]] = np.column_stack(errors_there)

    def _place_errors(
        self, own: Floats, truth: Floats, cell: Indices, anchors: Floats, side: int
    ) -> tuple[Floats, Floats]:
        """Errors of the place, (T, 4), and of the object value, (T)."""
        cells = np.float32(side)
        centre = sigmoid(own[:, :2])
        sizes = np.exp(own[:, 2:4]) * anchors / cells
        predicted = np.concatenate([(cell.astype(np.float32) + centre) / cells, sizes], 1)
        wanted = np.log(truth[:, 2:] * cells / anchors)
        inside = truth[:, :2] * cells - cell.astype(np.float32)
        weight = np.float32(self.p.coord_scale) * (1 if self.p.rescore else 2 - truth[:, 2:].prod(1, keepdims=True))
        place = weight * np.concatenate([(centre - inside) * centre * (1 - centre), own[:, 2:4] - wanted], 1)
        sure = own[:, OBJECT]
        overlap = np.diagonal(centred_overlaps(predicted, truth)) if self.p.rescore else np.float32(1)
        return place, np.float32(self.p.object_scale) * (sure - overlap) * ((1 - sure) * sure)

    def _owners(
        self, boxes: Floats, image: int, truth: Floats, place: Indices, side: int
    ) -> tuple[Indices, Indices, Indices]:
        """Image, box of the cell and cell that each true box trains."""
        sizes = self.anchors / np.float32(side) if self.p.bias_match else boxes[:, place, 2:].swapaxes(0, 1)
        sizes = np.broadcast_to(sizes, (len(truth), self.p.num, 2))
        centred = [np.concatenate([np.zeros_like(size), size], -1) for size in (sizes, truth[:, None, 2:])]
        shared = np.array([centred_overlaps(a, b)[:, 0] for a, b in zip(*centred, strict=True)]).reshape(
            len(truth), self.p.num
        )
        shared = np.nan_to_num(shared, nan=0.0)
        found = shared.max(1) > 0
        box = np.where(found, shared.argmax(1), 0)
        return np.where(found, image, 0), box, np.where(found, place, 0)

    def _class_errors(self, own: Floats, classes: Floats) -> Floats:
        wanted = np.trunc(classes)[:, None] == np.arange(self.p.num_class)
        result: Floats = np.float32(self.p.class_scale) * (own[:, CLASSES : CLASSES + self.p.num_class] - wanted)
        return result


@register
class RegionLossYolo9000(RegionLoss):
    """loss = sum of e^2, with the gradient e / N, as choasup/caffe-yolo9000 has it.

    Bottom 1 holds true boxes as SSD's AnnotatedData gives them, (1, 1, G, 8): item (-1: none), label from 1 on,
    instance, xmin, ymin, xmax, ymax, difficult; the images have `side` cells in both directions. As in RegionLoss, but
    for a true box the differences of the place count as -1 to 1 at most, and the object value has
    -2 object_scale (1 - s(o))^3 s(o) (1 - s(o)). softmax_tree and class_map are not followed.
    Source: region_loss_layer.cpp.
    """

    DIALECTS = ("yolo9000",)  # type: ignore[assignment]
    MEAN = False

    def setup(self, bottoms: Sequence[Shape]) -> None:
        super().setup(bottoms)
        for name in ("softmax_tree", "class_map"):
            field = f"region_loss_param.{name}"
            self.check(not getattr(self.p, name), f"{name} is not followed", field=field, remedy="remove it")

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        shape, labels = bottoms
        wanted = (self.p.num * self.each, self.p.side, self.p.side)
        what = f"the predictions have shape {shape}; {('N', *wanted)} is needed".replace("'", "")
        fine = len(shape) == 4 and shape[1:] == wanted
        remedy = "match num, num_class and side with the layer before"
        self.check(fine, what, field="bottom[0]", remedy=remedy)
        what = f"the true boxes have shape {labels}"
        fine = len(labels) == 4 and labels[3] == ROW
        self.check(fine, what, field="bottom[1]", remedy=f"feed (1, 1, G, {ROW})")
        return [()]

    def _labels(self, values: Floats, images: int) -> Sequence[Floats]:
        rows = annotated(self, values, images)
        rows[:, 1] -= 1
        return [rows[rows[:, 0] == image, 1:] for image in range(images)]

    def _counted(self, rows: Floats, column: int) -> Floats:
        return rows

    def _place_errors(
        self, own: Floats, truth: Floats, cell: Indices, anchors: Floats, side: int
    ) -> tuple[Floats, Floats]:
        cells = np.float32(side)
        centre = sigmoid(own[:, :2])
        inside = truth[:, :2] * cells - cell.astype(np.float32)
        wanted = np.log(truth[:, 2:] * cells / anchors)
        shift = (centre - inside).clip(-1, 1) * centre * (1 - centre)
        place = np.float32(self.p.coord_scale) * np.concatenate([shift, (own[:, 2:4] - wanted).clip(-1, 1)], 1)
        sure = own[:, OBJECT]
        return place, np.float32(-2 * self.p.object_scale) * (1 - sure) ** 3 * (sure * (1 - sure))


def annotated(layer: Layer, values: Floats, images: int) -> Floats:
    """SSD's true boxes, of any item but -1, in rows (item, label, x, y, width, height) around x, y."""
    rows = values.reshape(-1, ROW)
    rows = rows[rows[:, 0].astype(int) != -1]
    what = f"true boxes of item {rows[:, 0].max(initial=0):g} for {images} images"
    fine = bool(((rows[:, 0] >= 0) & (rows[:, 0] < images)).all())
    layer.check(fine, what, field="bottom[1]", remedy="correct the items")
    low, high = rows[:, 3:5], rows[:, 5:7]
    found: Floats = np.concatenate([rows[:, :2], (low + high) / 2, high - low], 1)
    return found


def _until_zero(values: Floats) -> int:
    """How many come before the first zero."""
    zeros = np.flatnonzero(values == 0)
    return int(zeros[0]) if len(zeros) else len(values)
