"""DetectionOutput of TextBoxes++."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from caffe_compat.layers.base import Layer, Shape, register
from caffe_compat.layers.boxes import CENTER_SIZE, Floats, Priors, centres, sizes
from caffe_compat.layers.detection_output import DetectionOutput, check_predictions


@register
class DetectionOutputTextBoxes(DetectionOutput):
    """As SSD's DetectionOutput, with outlines: rows (image, label, score, box, outline), (1, 1, K, 15 or 12).

    A location is the code of a box, by which texts are suppressed, and that of the outline. With use_polygon, the
    default, these are four corners x, y from the upper left one clockwise: each lies v code size from the corner of
    the prior box, with its width and height and its first two variances v. Otherwise two points x1, y1, x2, y2 that lie
    so from its centre, and h = exp(v4 code) height. Codes are CENTER_SIZE without variance_encoded_in_target; the fork
    has no outlines for others.
    Source: detection_output_layer.cpp, bbox_util.cpp of MhLiao/TextBoxes_plusplus.
    """

    DIALECTS = ("textboxes",)  # type: ignore[assignment]
    FORK_FIELDS = ("detection_output_param.use_polygon",)

    def setup(self, bottoms: Sequence[Shape]) -> None:
        super().setup(bottoms)
        what, field = "a code_type without outlines", "detection_output_param.code_type"
        self.check(self.p.code_type == CENTER_SIZE, what, field=field, remedy="use CENTER_SIZE")
        what, field = "codes without variances have no outlines", "detection_output_param.variance_encoded_in_target"
        self.check(not self.p.variance_encoded_in_target, what, field=field, remedy="leave it out")
        self.row = 15 if self.p.use_polygon else 12

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        """One row stands for the number that is not known yet."""
        check_predictions(self, bottoms, self.classes, self.located, self.row - 3)
        return [(1, 1, 1, self.row)]

    def _outlines(self, priors: Priors, codes: Floats) -> Floats:
        """Boxes and outlines."""
        boxes = super()._outlines(priors, codes[..., :4])
        outline = self._polygons(priors, codes[..., 4:]) if self.p.use_polygon else self._lines(priors, codes[..., 4:])
        return np.concatenate([boxes, outline], -1)

    def _polygons(self, priors: Priors, codes: Floats) -> Floats:
        scaled = np.tile(priors.variances[..., :2], 4) * codes * np.tile(sizes(priors.boxes), 4)
        corners: Floats = scaled + priors.boxes[..., [0, 1, 2, 1, 2, 3, 0, 3]]
        return corners

    def _lines(self, priors: Priors, codes: Floats) -> Floats:
        size = sizes(priors.boxes)
        points = np.tile(priors.variances[..., :2], 2) * codes[..., :4] * np.tile(size, 2)
        with np.errstate(over="ignore"):
            height = np.exp(priors.variances[..., 3:] * codes[..., 4:]) * size[..., 1:]
        return np.concatenate([points + np.tile(centres(priors.boxes), 2), height], -1)

    to_onnx = Layer.to_onnx
