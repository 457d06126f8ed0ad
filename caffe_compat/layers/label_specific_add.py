"""LabelSpecificAdd."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING

from caffe_compat.layers.base import Layer, OnnxWriter, Shape, register
from caffe_compat.layers.legacy_axes import legacy_sizes
from caffe_compat.layers.loss import label_indices

if TYPE_CHECKING:
    from torch import Tensor


@register
class LabelSpecificAdd(Layer):
    """TRAIN: the value of an item at its label less |bias|, if it is greater than that; TEST: y = x.

    The gradient passes as it is, not to the labels. transform_test has no effect: the fork asks for TRAIN as well.
    Source: label_specific_add.cpp of openvinotoolkit/training_toolbox_caffe.
    """

    TYPE = "LabelSpecificAdd"
    DIALECTS = ("openvino",)
    PARAM = "label_specific_add_param"
    BOTTOMS = (2, 2)
    INPLACE = True

    def notes(self) -> list[str]:
        return ["transform_test has no effect"] * self.p.transform_test

    def propagates(self, bottom: int) -> bool:
        return bottom == 0

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        num, *sizes = legacy_sizes(self, bottoms)
        what = f"labels of shape {bottoms[1]} for data of shape {bottoms[0]}"
        fine = prod(bottoms[1]) == num and prod(sizes) > 0
        self.check(fine, what, field="bottom[1]", remedy="feed one label per item")
        return [bottoms[0]]

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        import torch

        self.reshape(bottoms)
        x = bottoms[0]
        if self.phase == "TEST":
            return [x.view_as(x)]
        flat = x.detach().reshape(bottoms[1].numel(), -1)
        index = label_indices(self, bottoms[1].reshape(-1, 1), flat.shape[1])[0]
        own, bias = flat.gather(1, index), abs(self.p.bias)
        change = torch.zeros_like(flat).scatter_(1, index, torch.where(own > bias, -bias, 0.0).to(flat))
        return [x + change.reshape(x.shape)]

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        if self.phase != "TEST":
            super().to_onnx(g, bottoms, tops, blobs)
        g.op("Identity", bottoms[:1], tops)
