"""RNN: a plain recurrent net with its own output layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from caffe_compat.layers.base import OnnxWriter, Shape, register
from caffe_compat.layers.recurrent import Recurrent
from caffe_compat.schema import pb

if TYPE_CHECKING:
    from torch import Tensor


@register
class RNN(Recurrent):
    """h_t = tanh(W_hh (cont_t h_{t-1}) + W_xh x_t + b_h [+ W_xh_static x_static]), o_t = tanh(W_ho h_t + b_o).

    The top is o. Parameter blobs: W_xh, b_h, [W_xh_static,] W_hh, W_ho, b_o. Source: rnn_layer.cpp.
    """

    TYPE = "RNN"
    BLOBS = ("W_xh", "b_h")
    STATES = ("h",)
    GATES = 1

    def blob_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        units = self.p.num_output
        return [*self.input_blobs(bottoms), (units, units), (units,)]

    def fillers(self) -> list[pb.FillerParameter]:
        return [*super().fillers(), self.p.weight_filler, self.p.bias_filler]

    def steps(self, inputs: Tensor, cont: Tensor, states: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        import torch
        from torch.nn.functional import linear

        w_hh, w_ho, b_o = blobs
        (h,) = states
        hidden = []
        for x, go_on in zip(inputs, cont, strict=True):
            h = torch.tanh(linear(go_on * h, w_hh) + x)
            hidden.append(h)
        return [torch.tanh(linear(torch.stack(hidden), w_ho, b_o)), h]

    def onnx_step(self, g: OnnxWriter, x: str, cont: str, states: list[str], blobs: list[str]) -> tuple[str, list[str]]:
        w_hh, w_ho, b_o = blobs
        kept = g.op("Mul", [*states, cont])
        h = g.op("Tanh", g.op("Add", [*g.op("MatMul", [*kept, w_hh]), x]))
        output = g.op("Tanh", g.op("Add", [*g.op("MatMul", [*h, w_ho]), b_o]))
        return output[0], h
