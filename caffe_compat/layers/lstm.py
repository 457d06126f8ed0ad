"""LSTM: long short-term memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from caffe_compat.layers.base import OnnxWriter, register
from caffe_compat.layers.lstm_unit import lstm_unit, onnx_unit
from caffe_compat.layers.recurrent import Recurrent

if TYPE_CHECKING:
    from torch import Tensor


@register
class LSTM(Recurrent):
    """(i, f, o, g)_t = W_hc (cont_t h_{t-1}) + W_xc x_t + b_c [+ W_xc_static x_static], then an LSTMUnit step.

    The top is h; the states are h and c. Parameter blobs: W_xc, b_c, [W_xc_static,] W_hc, their rows in the order
    i, f, o, g. Source: lstm_layer.cpp.
    """

    TYPE = "LSTM"
    BLOBS = ("W_xc", "b_c")
    STATES = ("h", "c")
    GATES = 4

    def steps(self, inputs: Tensor, cont: Tensor, states: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        import torch
        from torch.nn.functional import linear

        (w_hc,) = blobs
        h, c = states
        hidden = []
        for x, go_on in zip(inputs, cont, strict=True):
            c, h = lstm_unit(c, linear(go_on * h, w_hc) + x, go_on)
            hidden.append(h)
        return [torch.stack(hidden), h, c]

    def onnx_step(self, g: OnnxWriter, x: str, cont: str, states: list[str], blobs: list[str]) -> tuple[str, list[str]]:
        h, c = states
        gates = g.op("Add", [*g.op("MatMul", [*g.op("Mul", [h, cont]), *blobs]), x])[0]
        c, h = onnx_unit(g, c, gates, cont, self.p.num_output)
        return h, [h, c]
