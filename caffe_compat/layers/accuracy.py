"""Accuracy: the share of labels among the best predictions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from math import inf, prod
from typing import TYPE_CHECKING, Any

from caffe_compat.layers.base import Layer, Shape, register
from caffe_compat.layers.dec2013 import check_fields
from caffe_compat.layers.loss import LOG_THRESHOLD, check_label_count, check_one_label, ignored_label, label_indices
from caffe_compat.layers.pooling import FLT_MAX

if TYPE_CHECKING:
    from torch import Tensor


@register
class Accuracy(Layer):
    """Share of the labels for which fewer than `top_k` other classes score at least as high as the true one.

    So a tie with the true class counts against it. Labels that equal `ignore_label` do not count; without any that
    count the result is 0. A second top holds the share for each class, 0 for classes without labels. No backward: a
    gradient is refused when the net gives the top a loss_weight. With `min_is_better`, which happynear/caffe-windows
    has, the lowest scores are the best. Source: accuracy_layer.cpp.
    """

    TYPE = "Accuracy"
    V1 = ("ACCURACY",)
    V0 = ("accuracy",)
    PARAM = "accuracy_param"
    FORK_FIELDS = ("accuracy_param.min_is_better",)
    BOTTOMS = (2, 2)
    TOPS = (1, 2)
    BACKWARD = False

    def setup(self, bottoms: Sequence[Shape]) -> None:
        data, labels = bottoms
        classes = prod(data) // max(prod(labels), 1)
        what = f"top_k {self.p.top_k} is more than the {classes} classes"
        self.check(self.p.top_k <= classes, what, field="accuracy_param.top_k", remedy=f"use 1 to {classes}")
        axis = self.axis(self.p.axis, len(data), "accuracy_param.axis")
        check_label_count(self, data, labels, axis)

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        return [(), (bottoms[0][self.p.axis],)][: self.tops]

    def propagates(self, bottom: int) -> bool:
        return bottom == 0 and any(self.param.loss_weight)

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        tops = self._shares(bottoms[0].detach(), bottoms[1])
        return [_refusing()(self, bottoms[0], top) for top in tops] if any(self.param.loss_weight) else tops

    def _shares(self, data: Tensor, labels: Tensor) -> list[Tensor]:
        axis = self.p.axis % data.ndim
        classes, outer, inner = data.shape[axis], prod(data.shape[:axis]), prod(data.shape[axis + 1 :])
        scores = data.reshape(outer, classes, inner)
        labels = labels.reshape(outer, 1, inner)
        index, counted = label_indices(self, labels, classes, ignored_label(self.p), "accuracy_param")
        scores = -scores if self.p.min_is_better else scores
        better = (scores >= scores.gather(1, index)).sum(1, keepdim=True) - 1  # the true class is among them
        hit = better < self.p.top_k  # (outer, 1, inner)
        if counted is not None:
            index, hit = index[counted], hit[counted]
        whole = hit.sum() / max(hit.numel(), 1)
        return [whole.to(data.dtype), *self._per_class(index, hit, classes, data)][: self.tops]

    def _per_class(self, index: Tensor, hit: Tensor, classes: int, data: Tensor) -> list[Tensor]:
        if self.tops < 2:
            return []
        labels = index.flatten().bincount(minlength=classes)
        hits = index[hit].bincount(minlength=classes)
        return [hits.to(data.dtype) / labels.clamp(min=1)]


@register
class Accuracy2013(Layer):
    """Top (1, 2, 1, 1): share of items whose best class is the label, and mean of -log(max(p[label], 1e-20)).

    Ties go to the lowest class, NaN counts as -FLT_MAX. No backward: a gradient is refused, and that of the net's loss
    as well when something below learns. Source: loss_layer.cu of December 2013; net.cpp (Backward).
    """

    TYPE = "Accuracy"
    V0 = ("accuracy",)
    PARAM = "accuracy_param"
    PROFILES = ("dec2013",)
    BOTTOMS = (2, 2)
    BACKWARD = False

    def setup(self, bottoms: Sequence[Shape]) -> None:
        check_fields(self, ())
        check_one_label(self, bottoms)

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        return [(1, 2, 1, 1)]

    def propagates(self, bottom: int) -> bool:
        return bottom == 0

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        import torch

        p = bottoms[0].detach().flatten(1)  # (N, C)
        index, _ = label_indices(self, bottoms[1].reshape(len(p), 1), p.shape[1])
        best = p.nan_to_num(-FLT_MAX, inf, -FLT_MAX).argmax(1, keepdim=True)
        hits = (best == index).to(p.dtype).mean()
        likelihood = -p.gather(1, index).clamp(min=LOG_THRESHOLD).log().mean()
        return [_refusing()(self, bottoms[0], torch.stack([hits, likelihood]).view(1, 2, 1, 1))]

    def loss(self, bottoms: list[Tensor]) -> Tensor:
        """0, for the net's backward pass to come here."""
        return _refusing()(self, bottoms[0], bottoms[0].new_zeros(()))


@cache
def _refusing() -> Callable[[Layer, Tensor, Tensor], Tensor]:
    """A function (layer, data, top): `top`, whose gradient is refused."""
    import torch

    class Refusing(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, layer: Layer, _data: Tensor, top: Tensor) -> Tensor:
            ctx.layer = layer
            return top.clone()

        @staticmethod
        def backward(ctx: Any, _grad: Tensor) -> None:  # type: ignore[override]
            raise ctx.layer.error("Accuracy has no backward pass", remedy="train on a loss layer instead")

    return Refusing.apply  # type: ignore[no-any-return]
