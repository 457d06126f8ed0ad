"""Dropout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from caffe_compat.errors import ConversionError
from caffe_compat.layers.base import Layer, OnnxWriter, PythonWriter, Shape, register

if TYPE_CHECKING:
    from torch import Tensor


@register
class Dropout(Layer):
    """TRAIN: y = x mask / (1 - dropout_ratio), a fresh mask each time; TEST: y = x (dropout_layer.cpp).

    A recorded keep mask, an array of the bottom's size in `context.state["draws"][layer name]`, takes the place of
    the random one. Under dec2013 there is no backward pass in the TEST phase.

    With `scale_train: false`, which fast-rcnn and its descendants have, y = x mask and y = x (1 - dropout_ratio).
    """

    TYPE = "Dropout"
    V1 = ("DROPOUT",)
    V0 = ("dropout",)
    PARAM = "dropout_param"
    FORK_FIELDS = ("dropout_param.scale_train",)
    PROFILES = ("bvlc", "dec2013")
    INPLACE = True

    def setup(self, bottoms: Sequence[Shape]) -> None:
        self.ratio = self.p.dropout_ratio
        self.drops = self.phase == "TRAIN"
        self.scaled = self.p.scale_train
        self.no_backward = self.context.profile == "dec2013" and not self.drops
        what = f"dropout_ratio {self.ratio:g}; it must be >= 0 and < 1"
        field = "dropout_param.dropout_ratio"
        self.check(not self.drops or 0 <= self.ratio < 1, what, field=field, remedy="state the share to drop")

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        import torch

        x = bottoms[0]
        if not self.drops:
            return [self._copy(x) if self.scaled else x * self.share]
        mask = self.context.state.get("draws", {}).get(self.name)
        if mask is None and not self.scaled:
            mask = torch.nn.functional.dropout(torch.ones_like(x), self.ratio) != 0
        return [torch.nn.functional.dropout(x, self.ratio) if mask is None else self._masked(x, mask)]

    @property
    def share(self) -> float:
        """What remains of x on average, in float32 as 1 / (1 / (1 - dropout_ratio))."""
        one = np.float32(1)
        return float(one / (one / (one - np.float32(self.ratio))))

    def _copy(self, x: Tensor) -> Tensor:
        y = x.view_as(x)
        if self.no_backward and y.requires_grad:
            y.register_hook(self._refuse)  # type: ignore[no-untyped-call]
        return y

    def _masked(self, x: Tensor, mask: object) -> Tensor:
        import torch

        keep: Tensor = torch.as_tensor(mask, device=x.device)
        what = f"a recorded mask of shape {tuple(keep.shape)} for a bottom of shape {tuple(x.shape)}"
        self.check(keep.numel() == x.numel(), what, remedy="give one value for each element of the bottom")
        kept: Tensor = keep.reshape(x.shape).to(x.dtype)
        return x * (kept / (1 - self.ratio) if self.scaled else kept)

    def _refuse(self, gradient: Tensor) -> None:
        raise self.error(
            "Dropout has no backward pass in the TEST phase under profile dec2013",
            remedy="build the net for the TRAIN phase",
        )

    def to_python(self, w: PythonWriter, bottoms: list[str]) -> str:
        if self.drops:
            return super().to_python(w, bottoms)
        return bottoms[0] if self.scaled else f"{bottoms[0]} * {self.share!r}"

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        if self.drops:
            what = "Dropout is random in the TRAIN phase, so it has no exact form in ONNX"
            raise ConversionError(what, where=self.where(), remedy="build the net for the TEST phase")
        if self.scaled:
            g.op("Identity", bottoms, tops)
        else:
            g.op("Mul", [*bottoms, g.constant(np.float32(self.share))], tops)
