"""What Caffe's loss layers have in common: scalar top, labels, normalisation (loss_layer.cpp)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar

from caffe_compat.layers.base import Layer, Shape
from caffe_compat.layers.dec2013 import check_fields
from caffe_compat.schema import pb

if TYPE_CHECKING:
    from torch import Tensor

    Mode = pb.LossParameter.NormalizationMode

FLT_MIN = 2.0**-126
"""Smallest normal float32; SoftmaxWithLoss takes no logarithm below it."""
LOG_THRESHOLD = 1e-20
"""Smallest probability that other losses take the logarithm of (kLOG_THRESHOLD, loss_layer.hpp)."""


class LossLayer(Layer):
    """Base of loss layers: data and labels in, a loss with no axes out, weight 1 unless the net says otherwise."""

    BOTTOMS = (2, 2)
    TOPS = (1, 1)
    AUTO_TOPS = True
    LOSS = True
    MAX_AXES: ClassVar[int | None] = None
    """Most axes of each bottom; 4 where Caffe uses the num/channels/height/width accessors."""
    PRE_FIXED: ClassVar[bool] = False
    """It knows the forks' normalization PRE_FIXED."""

    def setup(self, bottoms: Sequence[Shape]) -> None:
        self.check_batch(bottoms)
        what = f"normalization PRE_FIXED, which {self.TYPE} does not know here"
        known = self.PRE_FIXED or self.param.loss_param.normalization != pb.LossParameter.PRE_FIXED
        remedy = "state FULL, VALID, BATCH_SIZE or NONE, or name the dialect of the fork that has it"
        self.check(known, what, field="loss_param.normalization", remedy=remedy)
        most = self.most_axes()
        for position, shape in enumerate(bottoms):
            self.check(
                most is None or len(shape) <= most,
                f"bottom {position} has {len(shape)} axes; {self.TYPE} allows {most}",
                field=f"bottom[{position}]",
                remedy="put a Reshape or Flatten layer before it",
            )

    def most_axes(self) -> int | None:
        """Most axes of each bottom in this net; None for any number."""
        return self.MAX_AXES

    def check_batch(self, bottoms: Sequence[Shape]) -> None:
        """Data and labels have one first dimension (LossLayer::Reshape)."""
        data, labels = bottoms[0], bottoms[1]
        what = f"data of shape {data} and labels of shape {labels} differ in the first dimension"
        same = bool(data) and bool(labels) and data[0] == labels[0]
        self.check(same, what, field="bottom[1]", remedy="feed one label, or one row of them, per item")

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        return [()]

    def propagates(self, bottom: int) -> bool:
        return bottom != 1


class Loss2013(Layer):
    """Base of the loss layers of December 2013: no top; `loss` is what that Caffe computes in its backward pass."""

    PARAM = "loss_param"
    PROFILES = ("dec2013",)
    BOTTOMS = (2, 2)
    TOPS = (0, 0)
    KNOWN: ClassVar[tuple[str, ...]] = ()
    """Fields of the parameter message that this commit has."""

    def setup(self, bottoms: Sequence[Shape]) -> None:
        check_fields(self, self.KNOWN)
        check_one_label(self, bottoms)

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        return []

    def propagates(self, bottom: int) -> bool:
        return bottom == 0

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        return []

    def loss(self, bottoms: list[Tensor]) -> Tensor:
        """The loss; its gradients are those of that Caffe."""
        raise NotImplementedError(self.TYPE)


def check_same_sizes(layer: Layer, bottoms: Sequence[Shape]) -> None:
    """Every bottom has the sizes of bottom 0; axes of size 1 at the end do not count (channels, height, width)."""
    wanted = (*bottoms[0], 1, 1, 1)[:4]
    for position, shape in enumerate(bottoms):
        what = f"bottom {position} has shape {shape}, bottom 0 has {bottoms[0]}"
        same = (*shape, 1, 1, 1)[:4] == wanted
        layer.check(same, what, field=f"bottom[{position}]", remedy="make all bottoms the same size")


def check_label_count(layer: Layer, data: Shape, labels: Shape, axis: int) -> None:
    """One label for each prediction along `axis`."""
    wanted = prod(data[:axis] + data[axis + 1 :])
    what = f"{prod(labels)} labels for {wanted} predictions: data {data} has its classes on axis {axis}"
    remedy = "for predictions N x C x H x W feed N x H x W labels, whole numbers 0 to C-1"
    layer.check(prod(labels) == wanted, what, field="bottom[1]", remedy=remedy)


def check_one_label(layer: Layer, bottoms: Sequence[Shape]) -> None:
    """One label for each item of the batch."""
    data, labels = bottoms
    what = f"labels of shape {labels} for data of shape {data}"
    fine = bool(data) and prod(labels) == data[0]
    layer.check(fine, what, field="bottom[1]", remedy="feed one label per item")


def label_indices(
    layer: Layer, labels: Tensor, classes: int, ignore: int | None = None, field: str = "loss_param"
) -> tuple[Tensor, Tensor | None]:
    """Labels as class indices, truncated towards zero like a C cast, and which of them count.

    Args:
        labels: any shape; `ignore` is the label that does not count.
        classes: how many there are.
        field: the message that has `ignore_label`, for the error.

    Returns:
        (index, counted): int64, 0 where ignored; bool, None when all count.

    Raises:
        LayerError: a label that counts is not 0 to classes-1; Caffe would read foreign memory.
    """
    import torch

    index = labels.detach().to(torch.int64)
    counted = None if ignore is None else index != ignore
    if counted is not None:
        index = index.where(counted, 0)
    if index.numel() and not torch.compiler.is_compiling():
        low, high = torch.aminmax(index)
        if bool((low < 0) | (high >= classes)):
            _refuse_label(layer, index, classes, field)
    return index, counted


def _refuse_label(layer: Layer, index: Tensor, classes: int, field: str) -> None:
    flat = index.flatten()
    at = int(((flat < 0) | (flat >= classes)).nonzero()[0])
    value = int(flat[at])
    remedy = f"correct the labels, or set {field} {{ ignore_label: {value} }}"
    raise layer.error(
        f"label {value} at index {at} is not one of the {classes} classes 0 to {classes - 1}", remedy=remedy
    )


def ignored_label(param: Any) -> int | None:
    """`ignore_label` of a LossParameter or AccuracyParameter, None when not stated."""
    return param.ignore_label if param.HasField("ignore_label") else None


def normalization(param: pb.LossParameter, default: Mode = pb.LossParameter.VALID) -> Mode:
    """The mode that a loss_param asks for; the old `normalize` counts only when `normalization` is not stated."""
    if param.HasField("normalization"):
        return param.normalization
    if param.HasField("normalize"):
        return pb.LossParameter.VALID if param.normalize else pb.LossParameter.BATCH_SIZE
    return default


def normalizer(mode: Mode, outer: int, inner: int, counted: Tensor | None) -> Any:
    """What the summed loss is divided by, never less than 1 (get_normalizer).

    Args:
        mode: LossParameter.NormalizationMode.
        outer, inner: items before the class axis, positions behind it.
        counted: which labels count, None for all.

    Returns:
        A number, or a 0-d tensor when it depends on the labels.
    """
    if mode == pb.LossParameter.VALID and counted is not None:
        return counted.sum().clamp(min=1)
    values = {
        pb.LossParameter.FULL: outer * inner,
        pb.LossParameter.VALID: outer * inner,
        pb.LossParameter.BATCH_SIZE: outer,
        pb.LossParameter.NONE: 1,
    }
    return max(1, values[mode])


@cache
def clamp_straight() -> Callable[[Tensor, float | None, float | None], Tensor]:
    """A function (x, low, high): `x.clamp(low, high)` with the gradient of the identity.

    Caffe's losses clamp what they take the logarithm of, their gradients do not know of it.
    """
    import torch

    class ClampStraight(torch.autograd.Function):
        @staticmethod
        def forward(_ctx: Any, x: Tensor, low: float | None, high: float | None) -> Tensor:
            return x.clamp(low, high)

        @staticmethod
        def backward(_ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
            return grad, None, None

    return ClampStraight.apply  # type: ignore[no-any-return]
