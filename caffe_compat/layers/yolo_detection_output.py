"""YoloDetectionOutput, and what it shares with Yolov3DetectionOutput."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from caffe_compat.errors import ConversionError
from caffe_compat.layers.base import Layer, OnnxWriter, Shape, register
from caffe_compat.layers.boxes import Floats, suppress, to_array

if TYPE_CHECKING:
    from torch import Tensor


def sigmoid(x: Floats) -> Floats:
    """1 / (1 + exp(-x)), computed in float64 and rounded."""
    values: Floats = (1 / (1 + np.exp(-x, dtype=np.float64))).astype(np.float32)
    return values


def centred_overlaps(a: Floats, b: Floats) -> Floats:
    """Intersection over union of boxes (x, y, width, height) around (x, y): (n, 4), (m, 4) -> (n, m) (box_iou)."""
    (low_a, high_a), (low_b, high_b) = ((c[:, :2] - c[:, 2:] / 2, c[:, :2] + c[:, 2:] / 2) for c in (a, b))
    sides = np.minimum(high_a[:, None], high_b) - np.maximum(low_a[:, None], low_b)
    common = np.where(np.any(sides < 0, axis=-1), np.float32(0), sides[..., 0] * sides[..., 1])
    with np.errstate(all="ignore"):
        ratio: Floats = common / (a[:, 2, None] * a[:, 3, None] + b[:, 2] * b[:, 3] - common)
    return ratio


def defined_overlaps(a: Floats, b: Floats) -> Floats:
    """As `centred_overlaps`; 0 / 0, which is never too much, as 0."""
    return np.nan_to_num(centred_overlaps(a, b), nan=0.0, posinf=np.inf, neginf=-np.inf)


class BaseYoloOutput(Layer):
    """Boxes of YOLO's predictions that are left after suppression, as rows of DetectionOutput: top (1, 1, K, 7).

    Rows (0, label, score, left, top, right, bottom), label 1 for class 0, by falling score; the image is always 0.
    A box is left out when its overlap with a better one that is kept reaches nms_threshold, whatever the classes and
    images of both. When nothing is left there is one row (image, -1, ...) for each image.
    """

    BOTTOMS = (1, None)
    BACKWARD = False

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        """One row stands for the number that is not known yet."""
        for position, shape in enumerate(bottoms):
            what = f"bottom {position} has shape {shape}; four axes are needed"
            field = f"bottom[{position}]"
            self.check(len(shape) == 4, what, field=field, remedy="feed (N, boxes * values, H, W)")
            self.check_bottom(position, shape)
        return [(1, 1, 1, 7)]

    def check_bottom(self, position: int, shape: Shape) -> None:
        """Refuse a bottom that does not hold the predictions that the parameters state."""
        raise NotImplementedError(self.TYPE)

    def predictions(self, position: int, x: Floats) -> Floats:
        """Rows (class, score, x, y, width, height) of a bottom's predictions that are good enough."""
        raise NotImplementedError(self.TYPE)

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        import torch

        self.reshape(bottoms)
        with np.errstate(over="ignore"):
            found = np.concatenate([self.predictions(i, to_array(bottom)) for i, bottom in enumerate(bottoms)])
        found = found[np.argsort(-found[:, 1], kind="stable")]
        below = np.nextafter(np.float32(self.p.nms_threshold), np.float32(-np.inf))
        found = found[suppress(found[:, 2:], float(below), overlap=defined_overlaps)]
        half = found[:, 4:] / 2
        corners = [found[:, 2:4] - half, found[:, 2:4] + half]
        rows = np.column_stack([np.zeros(len(found)), found[:, 0] + 1, found[:, 1], *corners]).astype(np.float32)
        if not len(rows):
            rows = np.full((len(bottoms[0]), 7), -1, np.float32)
            rows[:, 0] = np.arange(len(rows))
        return [torch.from_numpy(rows[None, None]).to(bottoms[0])]

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        names = ", ".join(self.param.bottom)
        raise ConversionError(
            f"{self.TYPE} has no exact form in ONNX: how many boxes are left depends on the image",
            where=self.where("type"),
            remedy=f"remove this layer, which makes {names} outputs, and suppress boxes in the program that runs the "
            "model; or convert to PyTorch (.safetensors)",
        )


@register
class YoloDetectionOutput(BaseYoloOutput):
    """Boxes of YOLOv2's predictions that are left after suppression, as rows of DetectionOutput: top (1, 1, K, 7).

    Bottoms 0 and 1 (others are not read) hold num_box times (tx, ty, tw, th, object, classes...) along the channels,
    (N, channels, S, S). With anchors (bw, bh) from `biases`, in cells: x = (column + s(tx)) / S, y likewise, width =
    exp(tw) bw / S, height likewise, s the logistic function. The score is s(object) times the softmax of the best
    class, and counts from confidence_threshold on. The rest is as in BaseYoloOutput. `coords` and `side` mean nothing,
    label_map_file is not read.
    Source: yolo_detection_output_layer.cpp of eric612/MobileNet-YOLO.
    """

    TYPE = "YoloDetectionOutput"
    DIALECTS = ("mobilenet-yolo",)
    PARAM = "yolo_detection_output_param"
    READ = 2
    """Bottoms that are read."""

    def setup(self, bottoms: Sequence[Shape]) -> None:
        field = "yolo_detection_output_param.num_classes"
        stated = self.has("num_classes") and self.p.num_classes > 0
        self.check(stated, "num_classes is missing or 0", field=field, remedy="state it, without a background")
        needed = 2 * self.p.num_box
        what = f"{len(self.p.biases)} biases for {self.p.num_box} boxes"
        fine = needed and len(self.p.biases) >= needed
        field = "yolo_detection_output_param.biases[0]"
        self.check(fine, what, field=field, remedy="state width and height of each box")
        self.anchors = np.array(self.p.biases[:needed], np.float32).reshape(-1, 2)

    def check_bottom(self, position: int, shape: Shape) -> None:
        channels, boxes = shape[1], self.p.num_box
        what = f"bottom {position} has {channels} channels; {boxes} boxes of {5 + self.p.num_classes} values are needed"
        fine = position >= self.READ or (channels % boxes == 0 and channels // boxes >= 5 + self.p.num_classes)
        field = f"bottom[{position}]"
        self.check(fine, what, field=field, remedy="match num_box and num_classes with the layer before")
        what = f"bottom {position} is {shape[2]} x {shape[3]}, lower than wide"
        fine = position >= self.READ or shape[2] >= shape[3]
        self.check(fine, what, field=field, remedy="feed square images")

    def predictions(self, position: int, x: Floats) -> Floats:
        if position >= self.READ:
            return np.zeros((0, 6), np.float32)
        num, channels, _, side = x.shape
        values = x[:, :, :side].reshape(num, self.p.num_box, channels // self.p.num_box, side, side)
        values = values.transpose(0, 3, 4, 1, 2)[..., : 5 + self.p.num_classes]  # (N, row, column, box, value)
        classes = values[..., 5:] - values[..., 5:].max(-1, keepdims=True)
        likely = np.exp(classes)
        likely /= likely.sum(-1, keepdims=True)
        score = sigmoid(values[..., 4]) * likely.max(-1)
        grid = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1)[:, :, None]  # (row, column, 1, xy)
        centre = (grid + sigmoid(values[..., :2])) / np.float32(side)
        size = np.exp(values[..., 2:4]) * self.anchors / np.float32(side)
        rows = np.concatenate([likely.argmax(-1)[..., None], score[..., None], centre, size], -1)
        good: Floats = rows[score >= np.float32(self.p.confidence_threshold)].astype(np.float32)
        return good
