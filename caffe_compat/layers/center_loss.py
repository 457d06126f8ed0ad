"""CenterLoss: keeps features near their class's center."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from math import prod
from typing import TYPE_CHECKING, Any

from caffe_compat.layers.base import Shape, register
from caffe_compat.layers.loss import LossLayer, label_indices
from caffe_compat.schema import pb

if TYPE_CHECKING:
    from torch import Tensor


@register
class CenterLoss(LossLayer):
    """loss = 1/(2N) sum_n |x_n - center[label_n]|^2 (center_loss_layer.cpp of ydwen/caffe-face).

    The blob holds the centers (num_output, values of an item). Gradient of x: (x - center) / N; of center j: the sum of
    center - x over the items of class j, divided by their number + 1, whatever the loss_weight. The top has no
    loss_weight unless the net states one.
    """

    TYPE = "CenterLoss"
    DIALECTS = ("caffe-face",)
    PARAM = "center_loss_param"
    BLOBS = ("weight",)
    LOSS = False

    def setup(self, bottoms: Sequence[Shape]) -> None:
        super().setup(bottoms)
        data, labels = bottoms
        what = f"distance_type {self.p.distance_type}"
        plain = self.p.distance_type == "L2"
        self.check(plain, what, field="center_loss_param.distance_type", remedy="only L2 is supported")
        axis = self.axis(self.p.axis, len(data), "center_loss_param.axis")
        self.width = prod(data[axis:])
        what = f"axis {axis}: features of {self.width} values for items of {prod(data[1:])}"
        whole = self.width == prod(data[1:])
        self.check(whole, what, field="center_loss_param.axis", remedy="use axis 1")
        what = f"labels of shape {labels} for data of shape {data}"
        self.check(prod(labels[1:]) == 1, what, field="bottom[1]", remedy="feed one label per item")

    def blob_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        return [(self.p.num_output, self.width)]

    def fillers(self) -> list[pb.FillerParameter]:
        return [self.p.center_filler]

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        x = bottoms[0].flatten(1)
        index, _ = label_indices(self, bottoms[1].flatten(), self.p.num_output)
        return [_center_loss()(x, blobs[0], index)]


@cache
def _center_loss() -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """A function (x (N, K), centers, labels (N,)) with the gradients of the layer."""
    import torch
    from torch.autograd.function import once_differentiable

    class Run(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, centers: Tensor, index: Tensor) -> Tensor:
            distance = x - centers[index]
            ctx.save_for_backward(distance, index)
            ctx.classes = len(centers)
            return distance.square().sum() / (2 * len(x))

        @staticmethod
        @once_differentiable  # type: ignore[untyped-decorator]
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
            distance, index = ctx.saved_tensors
            counts = index.bincount(minlength=ctx.classes).unsqueeze(1)
            sums = distance.new_zeros(ctx.classes, distance.shape[1]).index_add(0, index, distance)
            return grad * distance / len(distance), -sums / (counts + 1), None

    return Run.apply  # type: ignore[no-any-return]
