"""DetectionOutputExtended."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from caffe_compat.layers.base import Layer, Shape, register
from caffe_compat.layers.boxes import Floats, best, suppress
from caffe_compat.layers.detection_output import DetectionOutput
from caffe_compat.layers.legacy_axes import legacy_sizes


@register
class DetectionOutputExtended(DetectionOutput):
    """As SSD's DetectionOutput, with the anchor and cell of each box: (image, 1, score, box, anchor, x, y).

    Bottoms: location codes (N, H, W, A * 4), confidences of two classes (N, ...), of which 0 is the background, and
    prior boxes and their variances (1, 2, H * W * A * 4). The top is (1, 1, K, 10).
    Source: detection_output_extended_layer.cpp of openvinotoolkit/training_toolbox_caffe.
    """

    TYPE = "DetectionOutputExtended"
    DIALECTS = ("openvino",)
    BOTTOMS = (3, 3)
    row = 10

    def setup(self, bottoms: Sequence[Shape]) -> None:
        what, field = f"num_classes {self.p.num_classes}", "detection_output_param.num_classes"
        self.check(self.p.num_classes == 2, what, field=field, remedy="state 2, background and object")
        what, field = "share_location: false reads behind the confidences", "detection_output_param.share_location"
        self.check(self.p.share_location, what, field=field, remedy="share_location: true")
        self.classes, self.background, self.located = 2, 0, 1
        self._read_suppression()

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        """One row stands for the number that is not known yet."""
        loc, conf, prior = bottoms[0], bottoms[1], legacy_sizes(self, bottoms, 2)
        what = f"locations of shape {loc}"
        fine = len(loc) == 4 and loc[3] % 4 == 0
        self.check(fine, what, field="bottom[0]", remedy="permute them to (N, H, W, 4 anchors)")
        what = f"{loc[0]} items with locations, confidences of shape {conf}"
        fine = conf[:1] == loc[:1]
        self.check(fine, what, field="bottom[1]", remedy="feed both for the same images")
        priors = prior[2] // 4
        for position, each in (0, 4), (1, 2):
            shape = bottoms[position]
            what = (
                f"bottom {position} of shape {shape} has {prod(shape[1:])} values per item; {priors} priors need {each}"
            )
            fine = prod(shape[1:]) == priors * each
            self.check(fine, f"{what} each", field=f"bottom[{position}]", remedy="match the priors")
        what = f"the priors have shape {bottoms[2]}; boxes and variances are needed"
        self.check(prior[1] >= 2, what, field="bottom[2]", remedy="feed (1, 2, 4 priors)")
        self.width, self.anchors = loc[2], loc[3] // 4
        return [(1, 1, 1, self.row)]

    def _detect(self, image: int, boxes: Floats, scores: Floats) -> Floats:
        """The rows of an image."""
        order = best(scores[1], self.least, self.most)
        order = order[suppress(boxes[0][order], self.p.nms_param.nms_threshold, self.p.nms_param.eta)]
        order = order[: self.p.keep_top_k] if self.p.keep_top_k > -1 else order
        cells, anchor = np.divmod(order, self.anchors)
        y, x = np.divmod(cells, self.width)
        first = np.full_like(order, image), np.ones_like(order), scores[1, order]
        return np.column_stack([*first, boxes[0][order], anchor, x, y]).astype(np.float32)

    to_onnx = Layer.to_onnx
