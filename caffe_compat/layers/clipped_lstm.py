"""Lstm: the forks' LSTM with clipped gradients, older than BVLC's LSTM."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from caffe_compat.errors import ConversionError
from caffe_compat.layers.base import Layer, OnnxWriter, Shape, register
from caffe_compat.onnx_forms import reshape
from caffe_compat.schema import pb

if TYPE_CHECKING:
    from torch import Tensor

TO_ONNX = (0, 2, 1, 3)
"""Gates i, f, o, g -> i, o, f, g."""
TO_TORCH = (0, 1, 3, 2)
"""Gates i, f, o, g -> i, f, g, o."""


@register
class Lstm(Layer):
    """(i, f, o, g)_t = W_i x_t + b + cont_t W_h h_{t-1}, c_t = cont_t s(f) c_{t-1} + s(i) tanh(g), h_t = s(o) tanh(c_t)

    with s the sigmoid. x is (T, N, I) and the top (T, N, num_output), or x has two or four axes, the first T times
    batch_size, and the top is (T batch_size, num_output). Without bottom 1, cont is 0 at the first step and 1 after it.
    Bottom 1 holds it, (T,), for one stream (for more the forks read wrong places); then the states go on where the
    forward pass before ended, without gradient. `reset` zeroes them.

    The gradients of the four gates before s and tanh are clipped to +-clipping_threshold, if that is above 0. The
    gradient of W_h does not know of cont. Parameter blobs: W_i, W_h, b, their rows in the order i, f, o, g.
    Source: lstm_layer.cu of junhyukoh/caffe-lstm, tianzhi0549/CTPN and senlinuc/caffe_ocr. (Their CPU code adds the
    first stream's W_h h to all streams.)
    """

    TYPE = "Lstm"
    DIALECTS = ("ctpn", "caffe-ocr", "caffe-lstm")
    PARAM = "lstm_param"
    BOTTOMS = (1, 2)
    BLOBS = ("W_i", "W_h", "b")

    # -- rules ---------------------------------------------------------------------------------------------

    def setup(self, bottoms: Sequence[Shape]) -> None:
        self.units = self.p.num_output
        self.check(self.units > 0, "num_output is 0", field="lstm_param.num_output", remedy="state the number of units")
        self.check(self.p.batch_size > 0, "batch_size is 0", field="lstm_param.batch_size", remedy="use 1 or more")
        self.clip = self.p.clipping_threshold
        self.state: tuple[Tensor, Tensor] | None = None
        self.inputs = self._sequence(bottoms[0])[2]

    def _sequence(self, x: Shape) -> Shape:
        """(T, N, I) of a bottom."""
        what = f"the bottom has shape {x}; it must be (T, N, I), or (T N, I)"
        self.check(2 <= len(x) <= 4 and 0 not in x, what, field="bottom[0]", remedy="put a Reshape layer before it")
        if len(x) == 3:
            return x
        streams = self.p.batch_size
        what = f"{x[0]} steps of {streams} streams"
        whole = x[0] % streams == 0
        self.check(whole, what, field="lstm_param.batch_size", remedy="feed a multiple of batch_size")
        return (x[0] // streams, streams, prod(x[1:]))

    def blob_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        return [(4 * self.units, self.inputs), (4 * self.units, self.units), (4 * self.units,)]

    def fillers(self) -> list[pb.FillerParameter]:
        return [self.p.weight_filler, self.p.weight_filler, self.p.bias_filler]

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        steps, streams, inputs = self._sequence(bottoms[0])
        what = f"{inputs} values a step; the net was built for {self.inputs}"
        same = inputs == self.inputs
        self.check(same, what, field="bottom[0]", remedy="feed that many, or build the net anew")
        if len(bottoms) == 2:
            what = f"indicators of shape {bottoms[1]} for {steps} steps of {streams} stream(s)"
            fine = streams == 1 and bottoms[1][:1] == (prod(bottoms[1]),) == (steps,)
            self.check(fine, what, field="bottom[1]", remedy="feed one stream, and one indicator a step")
        return [(*bottoms[0][:2], self.units) if len(bottoms[0]) == 3 else (bottoms[0][0], self.units)]

    def propagates(self, bottom: int) -> bool:
        return bottom == 0

    def macs(self, bottoms: Sequence[Shape], tops: Sequence[Shape]) -> int:
        steps, streams, inputs = self._sequence(bottoms[0])
        return steps * streams * 4 * int(self.units) * (inputs + int(self.units))

    # -- work ----------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Start the next forward pass from zero states."""
        self.state = None

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        import torch

        top = self.reshape(bottoms)[0]
        x = bottoms[0].reshape(self._sequence(bottoms[0].shape))
        clipping = self.clip > 0 and torch.is_grad_enabled()
        if len(bottoms) == 1 and not clipping:
            return [self._whole(x, blobs).reshape(top)]
        return [self._steps(x, bottoms[1:], blobs).reshape(top)]

    def _whole(self, x: Tensor, blobs: list[Tensor]) -> Tensor:
        """All steps at once, by torch's own LSTM."""
        import torch

        w_i, w_h, bias = (blob.view(4, self.units, -1)[list(TO_TORCH)].reshape(blob.shape) for blob in blobs)
        start = x.new_zeros(1, x.shape[1], self.units)
        weights = [w_i, w_h, bias, torch.zeros_like(bias)]
        return torch.lstm(x, (start, start), weights, True, 1, 0.0, False, False, False)[0]

    def _steps(self, x: Tensor, indicators: list[Tensor], blobs: list[Tensor]) -> Tensor:
        """One step after the other, (T, N, num_output)."""
        import torch
        from torch.nn.functional import linear

        w_i, w_h, bias = blobs
        start = x.new_zeros(x.shape[1], self.units)
        h, c = (state.to(x) for state in self.state) if self.state and indicators else (start, start)
        cont = indicators[0].detach().flatten() if indicators else (torch.arange(len(x), device=x.device) > 0).to(x)
        hidden = []
        for inputs, go_on in zip(linear(x, w_i, bias), cont, strict=True):
            gates = inputs + _carried()(h, w_h, go_on)
            if self.clip > 0 and gates.requires_grad:
                gates.register_hook(self._clipped)
            i, f, o = gates[:, : 3 * self.units].sigmoid().chunk(3, 1)
            c = go_on * f * c + i * gates[:, 3 * self.units :].tanh()
            h = o * c.tanh()
            hidden.append(h)
        if indicators:
            self.state = (h.detach(), c.detach())
        return torch.stack(hidden)

    def saved(self) -> dict[str, Any]:
        return {str(index): state.cpu().numpy() for index, state in enumerate(self.state or ())}

    def resume(self, saved: Mapping[str, Any]) -> None:
        import torch

        self.state = (torch.tensor(saved["0"]), torch.tensor(saved["1"])) if saved else None

    def _clipped(self, grad: Tensor) -> Tensor:
        return grad.clamp(-self.clip, self.clip)

    # -- ONNX ----------------------------------------------------------------------------------------------

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        if len(bottoms) == 2:
            raise ConversionError(
                "Lstm with indicators carries its state from one forward pass to the next, ONNX models have none",
                where=self.where("bottom[1]"),
                remedy="remove bottom 1 where every pass starts a sequence",
            )
        x = bottoms[0]
        if len(self.bottom_shapes[0]) != 3:
            x = reshape(g, x, [-1, self.p.batch_size, self.inputs])[0]
        weights = [self._for_onnx(g, blob, shape) for blob, shape in zip(blobs, self.blob_shapes([]), strict=True)]
        y = g.op("LSTM", [x, *weights], hidden_size=self.units)  # (T, 1, N, num_output)
        shape = [0, -1, self.units] if len(self.bottom_shapes[0]) == 3 else [-1, self.units]
        reshape(g, y[0], shape, tops)

    def _for_onnx(self, g: OnnxWriter, blob: str, shape: Shape) -> str:
        """The blob with its gates in ONNX's order, for one direction; two biases."""
        values = g.array(blob).astype(np.float32).reshape(4, self.units, *shape[1:])[list(TO_ONNX)].reshape(1, *shape)
        return g.constant(values if len(shape) == 2 else np.concatenate([values, np.zeros_like(values)], 1))


@cache
def _carried() -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """A function (h, w, cont): cont h w^T; the gradient of w is as if cont were 1."""
    import torch
    from torch.autograd.function import once_differentiable

    class Carried(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, h: Tensor, weight: Tensor, cont: Tensor) -> Tensor:
            ctx.save_for_backward(h, weight, cont)
            return cont * (h @ weight.t())

        @staticmethod
        @once_differentiable  # type: ignore[untyped-decorator]
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
            h, weight, cont = ctx.saved_tensors
            return cont * (grad @ weight), grad.t() @ h, None

    return Carried.apply  # type: ignore[no-any-return]
