"""FaceAttriEvaluate."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from caffe_compat.layers.base import Layer, Shape, register
from caffe_compat.layers.boxes import Floats, to_array

if TYPE_CHECKING:
    from torch import Tensor

VALUES = 17
"""Of an item, in both bottoms."""
FIELD = "face_evaluate_param.facetype"


@register
class FaceAttriEvaluate(Layer):
    """How well points, attributes and angles of faces are predicted: top (1, 1, N, 10) (faceEvaluateLayer.cpp).

    Bottoms: predictions (N, 17 or more): five x, five y, yaw, pitch, roll in degrees, two scores of the gender, two of
    the glasses; truth (N, 17): the same places and angles, gender, glasses, width, height. The top has each point's
    distance in pixels over the diagonal, whether gender and glasses are right, and the cosines of the angles' errors.
    The class of a score is 1 when that is above 0 and above the other. The fork never takes back that an attribute is
    right: once it was, it is so for all later items. Source: yuqj1991/caffe_train.
    """

    TYPE = "FaceAttriEvaluate"
    DIALECTS = ("yuqj1991",)
    PARAM = "face_evaluate_param"
    BOTTOMS = (2, 2)
    BACKWARD = False

    def setup(self, bottoms: Sequence[Shape]) -> None:
        stated, remedy = self.has("facetype"), "state facetype: FACEATTRIBUTE"
        self.check(stated, "facetype is missing", field="face_evaluate_param", remedy=remedy)
        kind = self.p.FaceType.Name(self.p.facetype)
        self.check(kind == "FACEATTRIBUTE", f"facetype {kind}, which gives no top", field=FIELD, remedy=remedy)

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        (data, truth), count = bottoms, bottoms[0][0] if bottoms[0] else 0
        what = f"predictions of shape {data}"
        fine = len(data) > 1 and data[1] >= VALUES and prod(data[2:]) == 1
        self.check(fine, what, field="bottom[0]", remedy=f"feed (N, {VALUES})")
        what = f"truth of shape {truth} for {count} predictions"
        fine = prod(truth) == count * VALUES
        self.check(fine, what, field="bottom[1]", remedy=f"feed ({count}, {VALUES})")
        return [(1, 1, count, 10)]

    def propagates(self, bottom: int) -> bool:
        return False

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        import torch

        self.reshape(bottoms)
        data, truth = (to_array(bottom).reshape(len(bottoms[0]), -1) for bottom in bottoms)
        rows = np.column_stack([_distances(data, truth), _right(data, truth), _cosines(data, truth)])
        return [torch.from_numpy(rows.astype(np.float32)[None, None]).to(bottoms[0])]


def _distances(data: Floats, truth: Floats) -> Floats:
    size = truth[:, 15:17].astype(np.float64)
    apart = (data[:, :10] - truth[:, :10]).reshape(-1, 2, 5) * size[:, :, None]
    diagonal = np.sqrt(np.square(size).sum(1)).astype(np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Floats = np.sqrt(np.square(apart).sum(1)) / diagonal[:, None]
    return found


def _right(data: Floats, truth: Floats) -> Floats:
    """Whether gender and glasses of this item or of one before it are right."""
    chosen = data[:, [14, 16]] > np.maximum(data[:, [13, 15]], 0)
    right: Floats = np.maximum.accumulate(truth[:, 13:15] == chosen, axis=0)
    return right


def _cosines(data: Floats, truth: Floats) -> Floats:
    turn = np.float32(180)
    found: Floats = np.cos((data[:, 10:13] / turn - truth[:, 10:13] / turn) * np.pi, dtype=np.float64)
    return found
