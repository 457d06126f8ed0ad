"""Python layers of published nets, by the names that these give them.

They stand behind those that a user registers and behind a folder of `python_layers`.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING

from caffe_compat.layers.base import Layer, Shape
from caffe_compat.layers.python import known_layer

if TYPE_CHECKING:
    from torch import Tensor

TINY = 1e-6
UNLABELLED = -1


class _Distance(Layer):
    """A loss over (N, ...) predictions and as many true values, whose gradient leaves the loss weight out."""

    BOTTOMS = (2, 2)

    def setup(self, bottoms: Sequence[Shape]) -> None:
        what = f"bottoms of shape {bottoms[0]} and {bottoms[1]} differ in their size"
        same = prod(bottoms[0]) == prod(bottoms[1]) and len(bottoms[1]) > 1
        self.check(same, what, field="bottom[1]", remedy="make both bottoms the same size, (N, values)")

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        return [(1,)]

    def loss(self, apart: Tensor, scaled: Tensor) -> Tensor:
        """Half the mean square of `scaled`; its gradient for `apart` is taken to be `scaled` / N."""
        import torch

        value = scaled.detach().square().sum() / len(apart) / 2
        slope = (scaled.detach() * apart).sum() / len(apart)
        if slope.requires_grad:
            slope.register_hook(torch.ones_like)  # type: ignore[no-untyped-call]
        return (value + slope - slope.detach()).reshape(1)


@known_layer("NormlizedMSE.NormlizedMSE", "python.NormlizedMSE.NormlizedMSE")
class NormlizedMSE(_Distance):
    """loss = 1/(2N) sum ((a - b) / d)^2, d = 1e-6 + distance of the points (b0, b1) and (b2, b3) of each item.

    As gradient the code takes (a - b) / d / N, which is d times the derivative, for bottom 0, and its negative for
    bottom 1, whatever the loss weight. Source: NormlizedMSE.py of ishay2b/VanillaCNN.
    """

    def setup(self, bottoms: Sequence[Shape]) -> None:
        super().setup(bottoms)
        what = f"bottoms of shape {bottoms[0]} and {bottoms[1]}"
        fine = bottoms[0] == bottoms[1] and len(bottoms[0]) == 2 and bottoms[0][1] >= 4
        self.check(fine, what, field="bottom[0]", remedy="feed (N, values), the eyes first, twice")

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        predicted, true = bottoms
        apart = predicted - true
        eyes = true[:, :2] - true[:, 2:4]
        return [self.loss(apart, apart / (TINY + eyes.square().sum(1, keepdim=True).sqrt()))]


@known_layer("pythonLayer.regression_Layer")
class MtcnnRegression(_Distance):
    """loss = 1/(2N) sum (a - b)^2; 0, also its gradient, when the first true value of every item is -1.

    The gradient is that of loss weight 1, whatever the weight. Source: pythonLayer.py of CongWeilin/mtcnn-caffe.
    """

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        predicted, true = bottoms
        apart = predicted - true.reshape(predicted.shape)
        counts = (true[:, 0] != UNLABELLED).any()
        return [self.loss(apart, apart if counts else apart * 0)]


@known_layer("pythonLayer.cls_Layer", "pythonLayer.cls_Layer_fc")
class MtcnnValid(Layer):
    """Items whose label is not -1, in front of items of 0: scores (N, 2), labels (N, 1) (pythonLayer.py).

    `cls_Layer_fc` gives the scores as (N, 2, 1, 1). Differs: the code's backward pass fails unless all labels or none
    are -1; here the gradient goes to the items that were taken. Source: CongWeilin/mtcnn-caffe.
    """

    BOTTOMS = (2, 2)
    TOPS = (2, 2)

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        count = bottoms[0][0] if bottoms[0] else 0
        tail: Shape = (2, 1, 1) if self.param.python_param.layer == "cls_Layer_fc" else (2,)
        what, remedy = f"scores of shape {bottoms[0]}", f"feed (N, {', '.join(map(str, tail))})"
        self.check(bottoms[0][1:] == tail, what, field="bottom[0]", remedy=remedy)
        what = f"labels of shape {bottoms[1]} for {count} items"
        self.check(bottoms[1] == (count, 1), what, field="bottom[1]", remedy=f"feed ({count}, 1)")
        return [bottoms[0], bottoms[1]]

    def propagates(self, bottom: int) -> bool:
        return bottom == 0

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        import torch

        valid = bottoms[1][:, 0] != UNLABELLED
        rest = len(valid) - int(valid.sum())
        return [torch.cat([x[valid], x.new_zeros(rest, *x.shape[1:])]) for x in bottoms]
