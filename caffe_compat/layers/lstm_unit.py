"""LSTMUnit: one step of an LSTM after its gates' inputs are known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from caffe_compat.layers.base import Layer, OnnxWriter, Shape, register

if TYPE_CHECKING:
    from torch import Tensor


@register
class LSTMUnit(Layer):
    """c = cont s(f) c_prev + s(i) tanh(g), h = s(o) tanh(c); s the logistic function, cont 0 drops c_prev.

    Bottoms: c_prev (1, N, D), gates (1, N, 4D) in the order i, f, o, g, cont (1, N). Tops: c, h (1, N, D).
    The gradient of f uses F (1 - F) with F = cont s(f), which is the derivative only where cont is 0 or 1.
    Source: lstm_unit_layer.cpp.
    """

    TYPE = "LSTMUnit"
    BOTTOMS = (3, 3)
    TOPS = (2, 2)

    def setup(self, bottoms: Sequence[Shape]) -> None:
        for position, (shape, axes) in enumerate(zip(bottoms, (3, 3, 2), strict=True)):
            what = f"bottom {position} has shape {shape}; it must have {axes} axes and start with 1"
            fine = len(shape) == axes and shape[0] == 1
            self.check(fine, what, field=f"bottom[{position}]", remedy="put a Reshape layer before it")
        cells, gates, cont = bottoms
        what = f"bottoms {cells}, {gates} and {cont} differ in their number of streams (axis 1)"
        self.check(cells[1] == gates[1] == cont[1], what, field="bottom[1]", remedy="feed the same streams")
        what = f"{gates[2]} gate values for {cells[2]} units"
        self.check(gates[2] == 4 * cells[2], what, field="bottom[1]", remedy=f"feed {4 * cells[2]}")

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        return [bottoms[0], bottoms[0]]

    def propagates(self, bottom: int) -> bool:
        return bottom != 2

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        return list(lstm_unit(bottoms[0], bottoms[1], bottoms[2].detach().unsqueeze(2)))

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        cont = g.op("Unsqueeze", [bottoms[2], g.constant(np.array([2]))])[0]
        onnx_unit(g, bottoms[0], bottoms[1], cont, self.bottom_shapes[0][2], tops)


def lstm_unit(c_prev: Tensor, gates: Tensor, cont: Tensor) -> tuple[Tensor, Tensor]:
    """One step: c_prev (..., D), gates (..., 4D), cont (..., 1) -> c, h (..., D)."""
    import torch

    i, f, o, g = gates.chunk(4, -1)
    c = _forget_gate()(f, cont) * c_prev + torch.sigmoid(i) * torch.tanh(g)
    return c, torch.sigmoid(o) * torch.tanh(c)


@cache
def _forget_gate() -> Callable[[Tensor, Tensor], Tensor]:
    """A function (f, cont): cont s(f), 0 where cont is; the gradient is F (1 - F) of that value."""
    import torch

    class ForgetGate(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, f: Tensor, cont: Tensor) -> Tensor:
            gate = (cont * torch.sigmoid(f)).where(cont != 0, 0)
            ctx.save_for_backward(gate)
            return gate

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
            (gate,) = ctx.saved_tensors
            return grad * gate * (1 - gate), None

    return ForgetGate.apply  # type: ignore[no-any-return]


def onnx_unit(
    g: OnnxWriter, c_prev: str, gates: str, cont: str, units: int, tops: Sequence[str] = ()
) -> tuple[str, str]:
    """The nodes of one step, cont (1, N, 1). Returns c and h, called as `tops` if given."""
    sizes = g.constant(np.array([units] * 4))
    i, f, o, new = g.op("Split", [gates, sizes], 4, axis=2)
    kept = g.op("Mul", [*g.op("Mul", [*g.op("Sigmoid", [f]), cont]), c_prev])
    added = g.op("Mul", [*g.op("Sigmoid", [i]), *g.op("Tanh", [new])])
    c = g.op("Add", [*kept, *added], tops[:1] or 1)
    h = g.op("Mul", [*g.op("Sigmoid", [o]), *g.op("Tanh", c)], tops[1:] or 1)
    return c[0], h[0]
