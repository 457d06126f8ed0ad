"""DetectionOutput in ONNX: the boxes are decoded, suppressed by NonMaxSuppression, and put in order.

Everything follows the batch that is fed. N images, K classes without the background, P prior boxes, S boxes left.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from caffe_compat.layers.base import OnnxWriter
from caffe_compat.layers.boxes import CENTER_SIZE, CORNER, Code
from caffe_compat.layers.pooling import FLT_MAX
from caffe_compat.onnx_forms import FLOAT, INT64, reduce, reshape


@dataclass(frozen=True)
class Detection:
    """What a DetectionOutput layer does.

    Attributes:
        priors: number of prior boxes.
        classes: with the background.
        labels: the classes that are looked for.
        located: 1 when all classes share their locations, else `classes`.
        code: how boxes are told.
        least: scores must be above it.
        most: best scores of a class that are looked at, -1 for all.
        threshold: overlap above which the worse box goes.
        keep: best boxes of an image that stay, -1 for all.
    """

    priors: int
    classes: int
    labels: tuple[int, ...]
    located: int
    code: Code
    least: float
    most: int
    threshold: float
    keep: int


class _Form:
    """Writes the nodes."""

    def __init__(self, g: OnnxWriter, it: Detection) -> None:
        self.g, self.it = g, it

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        return self.g.op(kind, list(inputs), **attributes)[0]

    def numbers(self, *values: int) -> str:
        return self.g.constant(np.array(values, np.int64))

    def scalar(self, value: float) -> str:
        return self.g.constant(np.array(value, np.float32))

    def shaped(self, name: str, *sizes: int) -> str:
        return reshape(self.g, name, sizes)[0]

    def part(self, name: str, start: int, end: int, axis: int) -> str:
        return self.op("Slice", name, self.numbers(start), self.numbers(end), self.numbers(axis))

    # -- boxes ---------------------------------------------------------------------------------------------

    def decoded(self, codes: str, priors: str) -> str:
        """Boxes (N, P, located, 4) of the codes (N, P * located * 4)."""
        it = self.it
        rows = self.shaped(self.shaped(priors, -1, it.priors * 4), -1, it.priors, 1, 4)
        prior = self.shaped(self.part(rows, 0, 1, 0), it.priors, 1, 4)
        code = self.shaped(codes, 0, it.priors, it.located, 4)
        if not it.code.in_target:
            code = self.op("Mul", self.shaped(self.part(rows, 1, 2, 0), it.priors, 1, 4), code)
        if it.code.kind == CORNER:
            return self.op("Add", prior, code)
        first, last = self.part(prior, 0, 2, -1), self.part(prior, 2, 4, -1)
        size = self.op("Sub", last, first)
        if it.code.kind != CENTER_SIZE:
            return self.op("Add", prior, self.op("Mul", code, self.op("Concat", size, size, axis=-1)))
        two = self.scalar(2)
        middle = self.op("Div", self.op("Add", first, last), two)
        centre = self.op("Add", self.op("Mul", self.part(code, 0, 2, -1), size), middle)
        half = self.op("Div", self.op("Mul", self.op("Exp", self.part(code, 2, 4, -1)), size), two)
        return self.op("Concat", self.op("Sub", centre, half), self.op("Add", centre, half), axis=-1)

    def by_class(self, boxes: str) -> str:
        """Boxes (N, 1, P, 4), or (N, K, P, 4) where each class has its own."""
        turned = self.op("Transpose", boxes, perm=[0, 2, 1, 3])
        return turned if self.it.located == 1 else self.op("Gather", turned, self.numbers(*self.it.labels), axis=1)

    def scores(self, confidences: str) -> str:
        """Scores (N, K, P); those that are not among a class's best are as low as no score can be."""
        turned = self.op("Transpose", self.shaped(confidences, 0, self.it.priors, self.it.classes), perm=[0, 2, 1])
        scores = self.op("Gather", turned, self.numbers(*self.it.labels), axis=1)
        if not 0 <= self.it.most < self.it.priors:
            return scores
        best, places = self.g.op("TopK", [scores, self.numbers(self.it.most)], 2, axis=-1)
        lowest = self.op("Expand", self.scalar(-FLT_MAX), self.op("Shape", scores))
        return self.op("ScatterElements", lowest, places, best, axis=2)

    def selected(self, boxes: str, scores: str) -> tuple[str, str, str]:
        """Image, class and prior box of each box that is left, int64 (S, 1) each."""
        it = self.it
        if it.code.kind != CENTER_SIZE:  # a box that ends before it starts overlaps with nothing
            first, last = self.part(boxes, 0, 2, -1), self.part(boxes, 2, 4, -1)
            boxes = self.op("Concat", first, self.op("Max", first, last), axis=-1)
        if it.located > 1:
            scores = self.shaped(scores, -1, 1, it.priors)
        bounds = (self.g.constant(np.array([value], np.float32)) for value in (min(it.threshold, 1.0), it.least))
        found = self.op(
            "NonMaxSuppression", self.shaped(boxes, -1, it.priors, 4), scores, self.numbers(it.priors), *bounds
        )
        image, kind, prior = (self.part(found, column, column + 1, 1) for column in range(3))
        if it.located > 1:
            count = self.numbers(len(it.labels))
            image, kind = self.op("Div", image, count), self.op("Mod", image, count)
        return image, kind, prior

    # -- rows ----------------------------------------------------------------------------------------------

    def rows(self, boxes: str, scores: str) -> str:
        """(image, label, score, xmin, ymin, xmax, ymax) of each box that is left, the best scores first: (S, 7)."""
        image, kind, prior = self.selected(boxes, scores)
        score = self.op("GatherND", scores, self.op("Concat", image, kind, prior, axis=1))
        own = kind if self.it.located > 1 else self.op("Mul", kind, self.numbers(0))
        box = self.op("GatherND", boxes, self.op("Concat", image, own, prior, axis=1))
        label = self.op("Gather", self.numbers(*self.it.labels), kind, axis=0)
        columns = (self.op("Cast", name, to=FLOAT) for name in (image, label))
        rows = self.op("Concat", *columns, self.shaped(score, -1, 1), box, axis=1)
        return self.sorted(rows, score, largest=1)

    def sorted(self, rows: str, keys: str, largest: int) -> str:
        """The rows by their keys, (S,); equal ones stay as they are."""
        order = self.g.op("TopK", [keys, self.op("Shape", keys)], 2, axis=0, largest=largest)[1]
        return self.op("Gather", rows, order, axis=0)

    def kept(self, rows: str, images: str) -> str:
        """The first rows of each image, by image and label again.

        Args:
            images: 0, 1, ... N - 1, float32 (1, N).
        """
        it = self.it
        if it.keep > -1:
            own = self.op("Cast", self.op("Equal", self.part(rows, 0, 1, 1), images), to=INT64)  # (S, N)
            place = reduce(
                self.g, "ReduceSum", self.op("Mul", self.op("CumSum", own, self.numbers(0)), own), [1], False
            )[0]
            rows = self.op("Compress", rows, self.op("Less", place, self.numbers(it.keep + 1)), axis=0)
        image, label = (self.shaped(self.part(rows, column, column + 1, 1), -1) for column in (0, 1))
        key = self.op("Add", self.op("Mul", image, self.scalar(it.classes)), label)
        return self.sorted(rows, key, largest=0)

    def filled(self, rows: str, images: str) -> str:
        """The rows, or where there are none at all one row (image, -1, ...) for each image."""
        image = self.shaped(images, -1, 1)
        empty = self.op(
            "Concat", image, *[self.op("Sub", self.op("Mul", image, self.scalar(0)), self.scalar(1))] * 6, axis=1
        )
        none = self.op("Cast", self.op("Equal", self.part(self.op("Shape", rows), 0, 1, 0), self.numbers(0)), to=INT64)
        count = self.op("Mul", self.part(self.op("Shape", image), 0, 1, 0), none)
        return self.op("Concat", rows, self.op("Slice", empty, self.numbers(0), count, self.numbers(0)), axis=0)


def write_detection(g: OnnxWriter, it: Detection, bottoms: list[str], tops: list[str]) -> None:
    """Write the nodes of a DetectionOutput layer: locations, confidences and priors -> (1, 1, S, 7)."""
    form = _Form(g, it)
    count = form.shaped(form.part(form.op("Shape", bottoms[0]), 0, 1, 0))
    images = form.op("Range", form.g.constant(np.array(0, np.int64)), count, form.g.constant(np.array(1, np.int64)))
    images = form.shaped(form.op("Cast", images, to=FLOAT), 1, -1)
    boxes = form.by_class(form.decoded(bottoms[0], bottoms[2]))
    rows = form.kept(form.rows(boxes, form.scores(bottoms[1])), images)
    reshape(g, form.filled(rows, images), [1, 1, -1, 7], tops)
