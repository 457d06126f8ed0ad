"""Yolov3DetectionOutput."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from caffe_compat.layers.base import Shape, register
from caffe_compat.layers.boxes import Floats
from caffe_compat.layers.yolo_detection_output import BaseYoloOutput, sigmoid


@register
class Yolov3DetectionOutput(BaseYoloOutput):
    """Boxes of YOLOv3's predictions that are left after suppression, as rows of DetectionOutput: top (1, 1, K, 7).

    Each bottom t holds num_box times (tx, ty, tw, th, object, classes...) along the channels, (N, channels, H, W).
    Box n has the anchor (bw, bh), in pixels, of `biases` that mask[t g + n] names, g = masks / mask_group_num, and the
    image has W anchors_scale[t] x H anchors_scale[t] pixels: x = (column + s(tx)) / W, y = (row + s(ty)) / H, width =
    exp(tw) bw / image width, height likewise, s the logistic function. Every class with s(object) s(class) above
    confidence_threshold is a prediction of its own. With `gaussian_box` there are (tx, ux, ty, uy, tw, uw, th, uh)
    and the object's score is multiplied by 1 - mean(s(u)). The rest is as in BaseYoloOutput.
    Source: yolov3_detection_output_layer.cpp, bbox_util.cpp of eric612/MobileNet-YOLO.
    """

    TYPE = "Yolov3DetectionOutput"
    DIALECTS = ("mobilenet-yolo",)
    PARAM = "yolov3_detection_output_param"

    def setup(self, bottoms: Sequence[Shape]) -> None:
        groups, param = self.p.mask_group_num, "yolov3_detection_output_param"
        stated = self.has("num_classes") and self.p.num_classes > 0
        field = f"{param}.num_classes"
        self.check(stated, "num_classes is missing or 0", field=field, remedy="state it, without a background")
        what = f"{len(bottoms)} bottom(s) for {groups} mask_group_num"
        same = len(bottoms) == groups
        self.check(same, what, field=f"{param}.mask_group_num", remedy="state the number of bottoms")
        scales = len(self.p.anchors_scale)
        what = f"{scales} anchors_scale for {groups} bottom(s)"
        self.check(scales >= groups, what, field=f"{param}.anchors_scale[0]", remedy="state one for each bottom")
        self.step = len(self.p.mask) // groups
        needed = (groups - 1) * self.step + self.p.num_box
        what = f"{len(self.p.mask)} mask(s) for {groups} bottom(s) with {self.p.num_box} boxes each"
        fine = self.p.num_box > 0 and len(self.p.mask) >= needed
        self.check(fine, what, field=f"{param}.mask[0]", remedy="state num_box masks for each bottom")
        pairs = len(self.p.biases) // 2
        what = f"a mask names anchor {max(self.p.mask)}; there are {pairs} pairs of biases"
        self.check(
            max(self.p.mask) < pairs, what, field=f"{param}.biases[0]", remedy="state two biases for each anchor"
        )
        self.anchors = np.array(self.p.biases[: 2 * pairs], np.float32).reshape(-1, 2)[list(self.p.mask)]
        self.first = 8 if self.p.gaussian_box else 4
        """Where the object's value stands."""

    def check_bottom(self, position: int, shape: Shape) -> None:
        each = self.first + 1 + self.p.num_classes
        what = f"bottom {position} has {shape[1]} channels; {self.p.num_box} boxes of {each} values are needed"
        fine, field = shape[1] >= self.p.num_box * each, f"bottom[{position}]"
        self.check(fine, what, field=field, remedy="match num_box and num_classes with the layer before")

    def predictions(self, position: int, x: Floats) -> Floats:
        boxes, each = self.p.num_box, self.first + 1 + self.p.num_classes
        num, _, height, width = x.shape
        values = x[:, : boxes * each].reshape(num, boxes, each, height, width).transpose(0, 3, 4, 1, 2)
        sure = sigmoid(values[..., self.first])
        if self.p.gaussian_box:
            sure = sure * (4 - sigmoid(values[..., 1:8:2]).sum(-1)) / np.float32(4)
            values = values[..., [0, 2, 4, 6, *range(8, each)]]
        scores = sigmoid(values[..., 5:]) * sure[..., None]  # (N, row, column, box, class)
        found = np.argwhere(scores > np.float32(self.p.confidence_threshold))
        own = values[tuple(found[:, :4].T)]
        anchors = self.anchors[position * self.step + found[:, 3]]
        cells = np.array([width, height], np.float32)
        centre = (found[:, [2, 1]].astype(np.float32) + sigmoid(own[:, :2])) / cells
        size = np.exp(own[:, 2:4]) * anchors / (cells * np.float32(self.p.anchors_scale[position]))
        return np.column_stack([found[:, 4], scores[tuple(found.T)], centre, size]).astype(np.float32)
