"""DetectionEvaluate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from caffe_compat.layers.base import Layer, Shape, register
from caffe_compat.layers.boxes import Floats, areas, overlaps, to_array
from caffe_compat.layers.cascade_boxes import overlaps as cascade_overlaps
from caffe_compat.layers.files import inner_path
from caffe_compat.layers.legacy_axes import legacy_sizes
from caffe_compat.schema import pb

if TYPE_CHECKING:
    from torch import Tensor

DETECTION, TRUTH, RESULT = 7, 8, 5
"""Values of a row of bottom 0, bottom 1 and the top."""
LARGEST_LIST = 2**26
"""Bytes of a file with the sizes of images."""
SIZES = "detection_evaluate_param.name_size_file"

ByLabel = Mapping[tuple[int, int], Floats]
"""(image, label) -> rows."""


@register
class DetectionEvaluate(Layer):
    """Tells true from false detections: rows (image, label, score, true positive, false positive), (1, 1, K, 5).

    Bottoms: rows of DetectionOutput, and true boxes (image, label, instance, xmin, ymin, xmax, ymax, difficult) up to
    the first with image -1. The top begins with a row (-1, label, number of true boxes, -1, -1) for each class but the
    background. Then, by image and label, each detection, best first where there are true boxes of its label: true if it
    overlaps one by overlap_threshold, and is the first to overlap that one most. With evaluate_difficult_gt false,
    difficult boxes are not counted, and a detection of one is neither true nor false.
    `name_size_file` has lines "name height width": then boxes are clipped, brought back to pixels by `resize_param`
    and compared there, with the next size for each image that has detections.
    openvino: labels of true boxes from num_classes on count as the last one; with two classes all are background + 1.
    Source: detection_evaluate_layer.cpp, bbox_util.cpp of weiliu89/caffe, branch ssd, and of
    openvinotoolkit/training_toolbox_caffe.
    """

    TYPE = "DetectionEvaluate"
    DIALECTS = ("ssd", "openvino")
    PARAM = "detection_evaluate_param"
    BOTTOMS = (2, None)
    BACKWARD = False

    def setup(self, bottoms: Sequence[Shape]) -> None:
        field = "detection_evaluate_param.num_classes"
        self.check(self.has("num_classes"), "num_classes is missing", field=field, remedy="state it")
        background = int(np.uint32(self.p.background_label_id).astype(np.int32))
        what = f"background_label_id {background} is not one of the {self.p.num_classes} classes"
        fine = -1 <= background < self.p.num_classes
        field = "detection_evaluate_param.background_label_id"
        self.check(fine, what, field=field, remedy="state the background's label")
        what = f"overlap_threshold {self.p.overlap_threshold} is not positive"
        field = "detection_evaluate_param.overlap_threshold"
        self.check(self.p.overlap_threshold > 0, what, field=field, remedy="use a value from 0 to 1")
        resize = self.p.resize_param
        what = f"resize_param has height {resize.height} and width {resize.width}"
        sized = not self.has("resize_param") or min(resize.height, resize.width) > 0
        self.check(
            sized, what, field="detection_evaluate_param.resize_param", remedy="state the size of the net's input"
        )
        self.background = background
        self.labels = [label for label in range(self.p.num_classes) if label != background]
        self.sizes: list[tuple[int, int]] | None = None
        self.position = 0

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        """As if every row of bottom 0 were a detection."""
        for position, width in (0, DETECTION), (1, TRUTH):
            num, channels, _, got = legacy_sizes(self, bottoms, position)
            what = f"bottom {position} has shape {bottoms[position]}"
            remedy = f"feed (1, 1, rows, {width})"
            self.check((num, channels, got) == (1, 1, width), what, field=f"bottom[{position}]", remedy=remedy)
        return [(1, 1, len(self.labels) + bottoms[0][2], RESULT)]

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        import torch

        self.reshape(bottoms)
        top = self._rows(to_array(bottoms[0]).reshape(-1, DETECTION), to_array(bottoms[1]).reshape(-1, TRUTH))
        return [torch.from_numpy(top[None, None]).to(bottoms[0])]

    def _rows(self, found: Floats, true_rows: Floats) -> Floats:
        """The rows of the top."""
        truth = by_label(self._true_rows(true_rows))
        head = [(-1, label, self._count(truth, label), -1, -1) for label in self.labels]
        count = int((found[:, 1] != -1).sum())
        rows = np.concatenate([np.zeros((0, RESULT)), *self._judge(found[found[:, 0].astype(int) != -1], truth)])
        top = np.zeros((len(head) + max(count, len(rows)), RESULT), np.float32)
        top[: len(head)] = np.array(head).reshape(-1, RESULT)
        top[len(head) : len(head) + len(rows)] = rows
        return top

    def _true_rows(self, rows: Floats) -> Floats:
        """The rows up to the first without an image, with the labels that count."""
        ends = np.flatnonzero(rows[:, 0].astype(int) == -1)
        rows = rows[: ends[0] if len(ends) else len(rows)].copy()
        if self.context.dialect == "openvino":
            last = rows[:, 1].clip(max=self.p.num_classes - 1)
            rows[:, 1] = self.background + 1 if self.p.num_classes == 2 else last
        self._check_no_background(rows, "true box", 1)
        return rows

    def _check_no_background(self, rows: Floats, what: str, position: int) -> None:
        fine = not (rows[:, 1].astype(int) == self.background).any()
        what = f"a {what} has the background's label {self.background}"
        self.check(fine, what, field=f"bottom[{position}]", remedy="correct the labels")

    def _count(self, truth: ByLabel, label: int) -> int:
        """True boxes of a label that count."""
        own = [rows for (_, other), rows in truth.items() if other == label]
        return sum(len(rows) if self.p.evaluate_difficult_gt else int((rows[:, 7] == 0).sum()) for rows in own)

    def _judge(self, found: Floats, truth: ByLabel) -> Iterator[NDArray[np.float64]]:
        """The rows of the detections, by image and label."""
        self._check_no_background(found, "detection", 0)
        own = by_label(found)
        for image in sorted({image for image, _ in own}):
            for label in sorted(label for other, label in own if other == image and label != -1):
                true, false = self._compare(own[image, label], truth.get((image, label)))
                rows = own[image, label]
                if (image, label) in truth:
                    rows = rows[best_first(rows)]
                yield np.column_stack([np.full(len(rows), image), np.full(len(rows), label), rows[:, 2], true, false])
            if self.p.name_size_file:
                self.position = (self.position + 1) % len(self._sizes())

    def _compare(self, rows: Floats, truth: Floats | None) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Which detections of a label, best first, are true and which are false."""
        if truth is None:
            return np.zeros(len(rows), bool), np.ones(len(rows), bool)
        shared = self._overlaps(rows[best_first(rows), 3:7], truth[:, 3:7])
        nearest = shared.argmax(1)
        hit = shared.max(1) >= np.float32(self.p.overlap_threshold)
        counts = np.ones(len(truth), bool) if self.p.evaluate_difficult_gt else truth[:, 7] == 0
        true = np.zeros(len(rows), bool)
        first = np.unique(np.where(hit, nearest, -1), return_index=True)[1]
        true[first] = (hit & counts[nearest])[first]
        return true, ~hit | (counts[nearest] & ~true)

    # -- pixels --------------------------------------------------------------------------------------------

    def _overlaps(self, found: Floats, truth: Floats) -> Floats:
        if not self.p.name_size_file:
            return overlaps(found, truth)
        size = self._sizes()[self.position]
        resize = self.p.resize_param if self.has("resize_param") else None
        return pixel_overlaps(*in_pixels(found, size, resize), *in_pixels(truth, size, resize))

    def _sizes(self) -> list[tuple[int, int]]:
        """(height, width) of each image, from the file."""
        if self.sizes is None:
            name, remedy = self.p.name_size_file, 'write lines "name height width"'
            path = inner_path(self, name, SIZES)
            try:
                what = f'"{name}" has {path.stat().st_size} bytes; a list of sizes has at most {LARGEST_LIST}'
                self.check(path.stat().st_size <= LARGEST_LIST, what, field=SIZES, remedy=remedy)
                words = path.read_text(errors="surrogateescape").split()
                self.sizes = [(int(h), int(w)) for h, w in zip(words[1::3], words[2::3], strict=True)]
            except (OSError, ValueError) as error:
                raise self.error(f'"{name}" cannot be read: {error}', field=SIZES, remedy=remedy) from error
            self.check(bool(self.sizes), f'"{name}" lists no image', field=SIZES, remedy=remedy)
        return self.sizes


@register
class DetectionEvaluateCascade(DetectionEvaluate):
    """Tells true from false detections of pixels: rows (image, label, score, true positive, false positive).

    Bottoms: rows of FrcnnOutput (D, 7), true boxes (G, 8): image (-1: none), x1, y1, x2, y2, label, ignored, difficult,
    and height and width of each image (N, 2). Label 0 is background. Boxes are scaled to the sizes that
    `name_size_file` lists, the next for each image that has detections; both their edges belong to them. The rest is as
    in SSD; the top has the shape (K, 5, 1, 1).
    Source: detection_evaluate_layer.cpp, bbox_util.cpp of zhaoweicai/cascade-rcnn.
    """

    DIALECTS = ("cascade-rcnn",)  # type: ignore[assignment]
    BOTTOMS = (3, 3)  # type: ignore[assignment]

    def setup(self, bottoms: Sequence[Shape]) -> None:
        super().setup(bottoms)
        self.check(bool(self.p.name_size_file), "name_size_file is missing", field=SIZES, remedy="state it")

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        """As if every row of bottom 0 were a detection."""
        for position, width in (0, DETECTION), (1, TRUTH), (2, 2):
            what = f"bottom {position} has shape {bottoms[position]}"
            fine = legacy_sizes(self, bottoms, position)[1] == width
            self.check(fine, what, field=f"bottom[{position}]", remedy=f"feed (rows, {width})")
        return [(len(self.labels) + bottoms[0][0], RESULT, 1, 1)]

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        import torch

        self.reshape(bottoms)
        found, truth, sizes = (to_array(bottom).reshape(len(bottom), -1) for bottom in bottoms)
        truth = truth[truth[:, 0].astype(int) != -1]
        images = sorted({int(image) for image in found[:, 0] if int(image) != -1})
        what = f"detections of image {max(images, default=0)}, and sizes of {len(sizes)}"
        fine = max(images, default=0) < len(sizes)
        self.check(fine, what, field="bottom[2]", remedy="feed height and width of every image")
        scale = np.ones((int(max([*images, *truth[:, 0]], default=0)) + 1, 4), np.float32)
        for step, image in enumerate(images):
            size = self._sizes()[(self.position + step) % len(self._sizes())]
            scale[image] = np.tile(np.array(size[::-1], np.float32) / sizes[image, ::-1], 2)
        found = np.concatenate([found[:, [0, 5, 6]], found[:, 1:5] * scale[found[:, 0].astype(int)]], 1)
        truth = np.concatenate([truth[:, [0, 5, 6]], truth[:, 1:5] * scale[truth[:, 0].astype(int)], truth[:, 7:]], 1)
        return [torch.from_numpy(self._rows(found, truth)[:, :, None, None]).to(bottoms[0])]

    def _overlaps(self, found: Floats, truth: Floats) -> Floats:
        return cascade_overlaps(found, truth)


def by_label(rows: Floats) -> ByLabel:
    """Rows, in their order, by image and label."""
    keys = rows[:, :2].astype(int)
    return {(i, c): rows[(keys == (i, c)).all(1)] for i, c in sorted({(int(i), int(c)) for i, c in keys})}


def best_first(rows: Floats) -> NDArray[np.intp]:
    """Order by falling score."""
    return np.argsort(-rows[:, 2], kind="stable")


def in_pixels(boxes: Floats, size: tuple[int, int], resize: pb.ResizeParameter | None) -> tuple[Floats, Floats]:
    """Boxes in the pixels of an image of that height and width, and their areas (OutputBBox)."""
    height, width = size
    modes = pb.ResizeParameter
    if resize is not None and resize.resize_mode == modes.FIT_SMALL_SIZE and resize.height_scale and resize.width_scale:
        scaled = boxes * np.array([resize.width_scale, resize.height_scale] * 2, np.float32)
        scaled = scaled.clip(0, np.array([width, height] * 2, np.float32))
        return scaled, areas(scaled)
    if resize is not None and resize.resize_mode == modes.FIT_LARGE_SIZE_AND_PAD:
        boxes = without_padding(boxes, size, resize)
    scaled = boxes.clip(0, 1) * np.array([width, height] * 2, np.float32)
    sides = scaled[:, 2:] - scaled[:, :2]
    more = np.float32(width > 1 or height > 1)
    inverted = np.any(sides < 0, axis=1)
    return scaled, np.where(inverted, np.float32(0), (sides + more).prod(1))


def without_padding(boxes: Floats, size: tuple[int, int], resize: pb.ResizeParameter) -> Floats:
    """Boxes as parts of an image that was fitted into a larger one and padded (ProjectBBox).

    A box that lies in the padding stays as it is.
    """
    aspect = np.float32(size[1]) / np.float32(size[0])
    height, width = np.float32(resize.height), np.float32(resize.width)
    low = np.zeros(2, np.float32)
    if aspect > width / height:
        low[1] = (height - width / aspect) / 2 / height
    else:
        low[0] = (width - height * aspect) / 2 / width
    high = 1 - low
    outside = np.any((boxes[:, :2] >= high) | (boxes[:, 2:] <= low), axis=1, keepdims=True)
    inner = (boxes - np.tile(low, 2)) / np.tile(high - low, 2)
    projected: Floats = np.where(outside, boxes, inner)
    return projected


def pixel_overlaps(a: Floats, a_areas: Floats, b: Floats, b_areas: Floats) -> Floats:
    """Intersection over union of boxes that end with their last pixel; boxes apart share one pixel, as in the fork."""
    low, high = np.maximum(a[:, None, :2], b[:, :2]), np.minimum(a[:, None, 2:], b[:, 2:])
    apart = np.any((b[:, :2] > a[:, None, 2:]) | (b[:, 2:] < a[:, None, :2]), axis=-1, keepdims=True)
    sides = np.where(apart, np.float32(0), high - low) + np.float32(1)
    common = sides.prod(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = common / (a_areas[:, None] + b_areas - common)
    shared: Floats = np.where(np.all(sides > 0, axis=-1), ratio, np.float32(0))
    return shared
