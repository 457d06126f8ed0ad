"""DetectionOutput, and how SSD's layers read their bottoms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from caffe_compat.errors import ConversionError
from caffe_compat.layers.base import Layer, OnnxWriter, Shape, register
from caffe_compat.layers.boxes import CORNER, Code, Floats, Priors, best, sizes, suppress, to_array
from caffe_compat.layers.detection_onnx import Detection, write_detection
from caffe_compat.layers.legacy_axes import legacy_sizes
from caffe_compat.layers.pooling import FLT_MAX

if TYPE_CHECKING:
    from torch import Tensor


def check_predictions(layer: Layer, bottoms: Sequence[Shape], classes: int, located: int, values: int = 4) -> int:
    """The number of priors that location, confidence and prior bottoms agree on.

    Args:
        classes: of the confidences.
        located: classes with locations of their own, 1 when all share one.
        values: of a location.

    Raises:
        LayerError: they do not agree.
    """
    (num, loc, *_), (conf_num, conf, *_) = (legacy_sizes(layer, bottoms, position) for position in (0, 1))
    priors = legacy_sizes(layer, bottoms, 2)[2] // 4
    what = f"{num} items with locations, {conf_num} with confidences"
    layer.check(num == conf_num, what, field="bottom[1]", remedy="feed both for the same images")
    for position, got, each in (0, loc, values * located), (1, conf, classes):
        shape, wanted = bottoms[position], priors * each
        what = f"bottom {position} of shape {shape} has {got} values per item; {priors} priors need {wanted}"
        fits = got == wanted and all(size == 1 for size in shape[2:])
        layer.check(fits, what, field=f"bottom[{position}]", remedy="flatten it, and match num_classes and the priors")
    what = f"the priors have shape {bottoms[2]}; boxes and variances are needed"
    layer.check(legacy_sizes(layer, bottoms, 2)[1] >= 2, what, field="bottom[2]", remedy="feed (1, 2, 4 priors)")
    return priors


def read_priors(prior: Tensor) -> Priors:
    """The values of a PriorBox layer's top, (1, 2, P * 4)."""
    rows = to_array(prior).reshape(-1, prior.shape[2])
    boxes, variances = (row[: len(row) // 4 * 4].reshape(-1, 4) for row in rows[:2])
    return Priors(boxes, variances)


def check_sized(layer: Layer, boxes: Floats, code: Code, what: str, position: int) -> None:
    """Refuse boxes without width or height where the code divides by them.

    Raises:
        LayerError: naming the first such box.
    """
    if code.kind != CORNER:
        flat = ~(sizes(boxes) > 0).all(-1)
        first = boxes[int(flat.argmax())].tolist() if flat.any() else []
        remedy = "correct it, or use code_type CORNER"
        message = f"{what} {first} has no width or no height"
        layer.check(not first, message, field=f"bottom[{position}]", remedy=remedy)


@register
class DetectionOutput(Layer):
    """Boxes that are left after suppression, as rows (image, label, score, xmin, ymin, xmax, ymax): (1, 1, K, 7).

    Bottoms: location codes (N, P * 4), or (N, P * C * 4) without `share_location`; confidences (N, P * C); prior boxes
    and their variances (1, 2, P * 4); a fourth one is not read. For each image and class but the background: the
    nms_param.top_k best scores above confidence_threshold, then suppression of boxes that overlap a kept one by more
    than nms_threshold, which shrinks by eta as long as it is above 0.5. The keep_top_k best of an image stay. Rows are
    ordered by image, label, falling score; equal scores keep the priors' order. Boxes are not clipped. When nothing is
    left there is one row (image, -1, ...) for each image. `save_output_param` and `visualize` only write files and
    open windows in the fork; here they do nothing.
    Source: detection_output_layer.cpp, bbox_util.cpp of weiliu89/caffe, branch ssd.
    """

    TYPE = "DetectionOutput"
    DIALECTS = ("ssd",)
    PARAM = "detection_output_param"
    BOTTOMS = (3, 4)
    BACKWARD = False
    VARIES = True
    row: int = 7
    """Values of a detection."""

    def setup(self, bottoms: Sequence[Shape]) -> None:
        stated = self.has("num_classes")
        field = "detection_output_param.num_classes"
        self.check(stated, "num_classes is missing", field=field, remedy="state it, with the background")
        self.classes, self.background = self.p.num_classes, self.p.background_label_id
        what = "without a background class (background_label_id -1) no location is read when all classes share them"
        fine = not self.p.share_location or self.background != -1
        field = "detection_output_param.background_label_id"
        self.check(fine, what, field=field, remedy="state the background, or share_location: false")
        self.located = 1 if self.p.share_location else self.classes
        self._read_suppression()

    def _read_suppression(self) -> None:
        self.code = Code(self.p.code_type, self.p.variance_encoded_in_target)
        self.least = self.p.confidence_threshold if self.has("confidence_threshold") else -FLT_MAX
        nms = self.p.nms_param
        field = "detection_output_param.nms_param"
        what = f"nms_threshold {nms.nms_threshold} is negative"
        self.check(nms.nms_threshold >= 0, what, field=f"{field}.nms_threshold", remedy="use a value from 0 to 1")
        fine = 0 < nms.eta <= 1
        self.check(fine, f"eta {nms.eta} is not in (0, 1]", field=f"{field}.eta", remedy="leave it out for 1")
        self.most = nms.top_k if nms.HasField("top_k") else -1

    def notes(self) -> list[str]:
        writes = self.p.save_output_param.output_directory
        found = [f'no files are written to "{writes}" (save_output_param)'] if writes else []
        return found + ["no window is opened (visualize)"] * self.p.visualize

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        """One row stands for the number that is not known yet."""
        check_predictions(self, bottoms, self.classes, self.located)
        return [(1, 1, 1, 7)]

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        import torch

        self.reshape(bottoms)
        num = len(bottoms[0])
        priors = read_priors(bottoms[2])
        check_sized(self, priors.boxes, self.code, "prior box", 2)
        codes = to_array(bottoms[0]).reshape(num, len(priors.boxes), self.located, -1)
        boxes = self._outlines(Priors(priors.boxes[:, None], priors.variances[:, None]), codes).swapaxes(1, 2)
        scores = np.ascontiguousarray(to_array(bottoms[1]).reshape(num, len(priors.boxes), -1).swapaxes(1, 2))
        found = [self._detect(image, boxes[image], scores[image]) for image in range(num)]
        rows = np.concatenate(found) if found else np.zeros((0, self.row), np.float32)
        if not len(rows):
            rows = np.full((num, self.row), -1, np.float32)
            rows[:, 0] = np.arange(num)
        return [torch.from_numpy(rows[None, None]).to(bottoms[0])]

    def _outlines(self, priors: Priors, codes: Floats) -> Floats:
        """Boxes, in four values or, of forks, more."""
        return self.code.decode(priors.boxes, priors.variances, codes)

    def _detect(self, image: int, boxes: Floats, scores: Floats) -> Floats:
        """The rows of an image."""
        rows = [np.zeros((0, self.row), np.float32)]
        for label in range(self.classes):
            if label != self.background:
                own = boxes[label if self.located > 1 else 0]
                order = best(scores[label], self.least, self.most)
                order = order[suppress(own[order, :4], self.p.nms_param.nms_threshold, self.p.nms_param.eta)]
                kept = scores[label, order, None]
                rows.append(np.concatenate([np.full_like(kept, image), np.full_like(kept, label), kept, own[order]], 1))
        together = np.concatenate(rows)
        return self._keep_best(together) if -1 < self.p.keep_top_k < len(together) else together

    def _keep_best(self, rows: Floats) -> Floats:
        """The best rows, again by label."""
        rows = rows[np.argsort(-rows[:, 2], kind="stable")[: self.p.keep_top_k]]
        return rows[np.argsort(rows[:, 1], kind="stable")]

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        """The same rows; prior boxes without width or height are not refused there."""
        if self.p.nms_param.eta != 1:
            raise ConversionError(
                f"DetectionOutput with eta {self.p.nms_param.eta:g} has no exact form in ONNX: its suppression adapts",
                where=self.where("type"),
                remedy=f"remove this layer, which makes {', '.join(self.param.bottom[:3])} outputs, and suppress boxes "
                "in the program that runs the model; or convert to PyTorch (.safetensors)",
            )
        priors = check_predictions(self, self.bottom_shapes, self.classes, self.located)
        labels = tuple(label for label in range(self.classes) if label != self.background)
        p = self.p
        write_detection(
            g,
            Detection(
                priors,
                self.classes,
                labels,
                self.located,
                self.code,
                self.least,
                self.most,
                p.nms_param.nms_threshold,
                p.keep_top_k,
            ),
            bottoms,
            tops,
        )
