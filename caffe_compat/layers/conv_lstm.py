"""ConvLSTM and ConvLSTMUnit: an LSTM over images, whose products with weights are convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from caffe_compat.layers.base import Layer, OnnxWriter, Shape, register
from caffe_compat.layers.convolution import Convolution
from caffe_compat.layers.lstm_unit import lstm_unit, onnx_unit
from caffe_compat.layers.recurrent import Recurrent
from caffe_compat.onnx_forms import reshape
from caffe_compat.schema import pb

if TYPE_CHECKING:
    from torch import Tensor

COPIED = ("kernel_size", "pad", "stride", "dilation")
"""Fields that say where the kernels are applied; those of one axis alone (kernel_h, ...) have no effect."""


@register
class ConvLSTM(Recurrent):
    """(i, f, o, g)_t = W_h * (cont_t h_{t-1}) + b + W_x * x_t + (w_i, w_f, w_o, 0) c_{t-1} [+ W_static * x_static]

    then an LSTMUnit step; `*` is a convolution that keeps height and width. x is (T, N, C, H, W), cont (T, N), the top
    h (T, N, num_output, H, W). With `expose_hidden` the initial h and c are bottoms, the final ones the last tops, and
    gradients flow through both. `lstm_conv_param` is stated once, or once for x (type "input") and once for h
    ("hidden"). `lstm_debug_param`: `ignore_x` leaves out W_x, `disable_hadamard` the terms of c, whose weights cover
    `num_axes_hadamard` axes from `axis_hadamard` on; `expose` shows c_t=1, h_t=3, ... as tops behind the first, without
    gradient. x_static is (1, N, C', H, W), and RecurrentLayer lets it pass for one stream only.

    Parameter blobs: [W_x,] [W_static,] two of size 1 that nothing reads (DummyForward's), W_h, b, [w_i, w_f, w_o,] two
    more of size 1. Source: conv_lstm_layer.cpp, conv_lstm_helper.hpp of agethen/ConvLSTM-for-Caffe.
    """

    TYPE = "ConvLSTM"
    DIALECTS = ("convlstm",)
    STATES = ("h", "c")
    GATES = 4

    # -- rules ---------------------------------------------------------------------------------------------

    def setup(self, bottoms: Sequence[Shape]) -> None:
        self.state: list[Tensor] = []
        self.debug = self.param.lstm_debug_param
        self.own = list(self.param.lstm_conv_param)
        what = f"lstm_conv_param is stated {len(self.own)} times"
        self.check(len(self.own) in (1, 2), what, field="lstm_conv_param", remedy="state it once or twice")
        self.units = self.own[0].num_output
        what = f"num_output is {' and '.join(str(each.num_output) for each in self.own)}"
        same = self.units > 0 and self.own[-1].num_output == self.units
        self.check(same, what, field="lstm_conv_param", remedy="state the same number of channels, at least 1")
        exposed = len(self.STATES) if self.p.expose_hidden else 0
        shown = len(self.debug.expose)
        what = f"{self.tops} top(s), where {1 + shown + exposed} are needed"
        remedy = "give the output, what lstm_debug_param exposes, and with expose_hidden h and c"
        self.check(self.tops == 1 + shown + exposed, what, field="top", remedy=remedy)
        self._check_counts(len(bottoms), exposed)
        self.static = len(bottoms) > 2 + exposed
        self._check_images(bottoms[0])
        self._make(bottoms)
        self._check_shapes(bottoms)

    def _check_counts(self, bottoms: int, exposed: int) -> None:
        fine = 2 + exposed <= bottoms <= 3 + exposed - self.debug.ignore_x
        what = f"{bottoms} bottoms, where {2 + exposed} are needed, or with x_static one more, unless x is ignored"
        self.check(fine, what, field="bottom", remedy="give x, cont, [x_static,] and with expose_hidden h and c")

    def _check_images(self, x: Shape) -> None:
        what = f"x has shape {x}; it must be (steps, streams, channels, height, width)"
        self.check(len(x) == 5 and x[0] > 0, what, field="bottom[0]", remedy="put a Reshape layer before it")
        names = [f"{state}_t={step}" for state in self.STATES for step in range(1, x[0] + 1)]
        for name in self.debug.expose:
            what, remedy = f'"{name}" cannot be exposed', f"expose one of {names[0]} to {names[-1]}"
            self.check(name in names, what, field="lstm_debug_param.expose", remedy=remedy)

    def _make(self, bottoms: Sequence[Shape]) -> None:
        """The convolutions, and the shape of w_i, w_f and w_o."""
        steps, streams, channels, *sizes = bottoms[0]
        into, hidden = self._choose("hidden", "input"), self._choose("input", "hidden")
        self.hidden = self._convolution(hidden, (streams, self.units, *sizes), bias=True)
        self.input = None if self.debug.ignore_x else self._convolution(into, (steps * streams, channels, *sizes))
        self.still = self._convolution(into, bottoms[2][1:]) if self.static else None
        first, count = self.debug.axis_hadamard, self.debug.num_axes_hadamard
        what = f"{count} axes from axis {first} on, where c has 5"
        remedy = "use axis_hadamard 3, num_axes_hadamard 2"
        self.check(first + count <= 5, what, field="lstm_debug_param", remedy=remedy)
        self.covered = (1, streams, self.units, *sizes)[first : first + count]
        self.behind = 5 - first - count

    def _choose(self, other: str, own: str) -> pb.LSTMConvolutionParameter:
        """The parameters of x's or h's convolution: the first, unless it is said to be the other's."""
        if self.own[0].type != other:
            return self.own[0]
        what = f'the only lstm_conv_param has type "{other}"'
        unread = own == "hidden" and self.debug.ignore_x
        self.check(len(self.own) == 2 or unread, what, field="lstm_conv_param", remedy=f'state one of type "{own}" too')
        return self.own[-1]

    def _convolution(self, stated: pb.LSTMConvolutionParameter, shape: Shape, *, bias: bool = False) -> Convolution:
        param = pb.LayerParameter(name=self.name, type="Convolution", bottom=["x"], top=["y"])
        own = param.convolution_param
        for name in COPIED:
            getattr(own, name).extend(getattr(stated, name))
        own.num_output, own.group, own.bias_term = 4 * stated.num_output, stated.group, bias
        own.weight_filler.CopyFrom(stated.weight_filler)
        own.bias_filler.CopyFrom(stated.bias_filler)
        what = "bias_term is false, where the biases of the gates are those of h's convolution"
        self.check(stated.bias_term or not bias, what, field="lstm_conv_param", remedy="remove bias_term")
        made = Convolution(param, self.context, lambda _path: self.where("lstm_conv_param"))
        made.setup([shape])
        (top,) = made.top_shapes([shape])
        what = f"a convolution makes {top[2]} x {top[3]} of {shape[2]} x {shape[3]}"
        self.check(top[2:] == shape[2:], what, field="lstm_conv_param", remedy="pad by (kernel_size - 1) / 2")
        return made

    def _check_shapes(self, bottoms: Sequence[Shape]) -> None:
        x, cont = bottoms[:2]
        what = f"cont has shape {cont} for x of shape {x}"
        self.check(cont == x[:2], what, field="bottom[1]", remedy=f"feed continuation indicators {x[:2]}")
        if self.static:
            still = bottoms[2]
            what = f"x_static has shape {still} for x of shape {x}; both must be of one stream and one size"
            fine = len(still) == 5 and still[:2] == (1, x[1]) == (1, 1) and still[3:] == x[3:]
            self.check(fine, what, field="bottom[2]", remedy=f"feed (1, 1, channels, {x[3]}, {x[4]})")
        wanted = (1, x[1], self.units, *x[3:])
        for position in range(2 + self.static, len(bottoms)):
            what = f"the initial state in bottom {position} has shape {bottoms[position]}; it must be {wanted}"
            self.check(bottoms[position] == wanted, what, field=f"bottom[{position}]", remedy="feed that shape")

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        steps, streams, _, *sizes = bottoms[0]
        return [(steps, streams, self.units, *sizes), *[(1, streams, self.units, *sizes)] * (self.tops - 1)]

    def _blobs(self) -> list[tuple[Shape, pb.FillerParameter]]:
        weight, bias = self.hidden.weight_shape, (self.GATES * self.units,)
        inputs = [made for made in (self.input, self.still) if made is not None]
        unread = [((1,), pb.FillerParameter())] * 2
        ones = pb.FillerParameter(type="constant", value=1)
        return [
            *((made.weight_shape, made.p.weight_filler) for made in inputs),
            *unread,
            (weight, self.hidden.p.weight_filler),
            (bias, self.hidden.p.bias_filler),
            *[(self.covered, ones)] * (0 if self.debug.disable_hadamard else 3),
            *unread,
        ]

    def blob_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        return [shape for shape, _ in self._blobs()]

    def fillers(self) -> list[pb.FillerParameter]:
        return [filler for _, filler in self._blobs()]

    def macs(self, bottoms: Sequence[Shape], tops: Sequence[Shape]) -> int:
        steps, streams, _, *sizes = bottoms[0]
        each = [made for made in (self.hidden, self.input) if made is not None]
        once = prod(self.still.weight_shape) if self.still else 0
        return streams * prod(sizes) * (steps * sum(prod(made.weight_shape) for made in each) + once)

    def propagates(self, bottom: int) -> bool:
        return bottom != 1

    # -- work ----------------------------------------------------------------------------------------------

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        import torch

        x, cont = bottoms[0], bottoms[1].detach()
        what = f"{x.shape[0]} steps, but the net was built for {self.bottom_shapes[0][0]}"
        self.check(x.shape[0] == self.bottom_shapes[0][0], what, remedy="build the net for this number of steps")
        self._check_shapes([tuple(bottom.shape) for bottom in bottoms])
        terms, peepholes = self._terms(bottoms, blobs)
        h, c = self._initial(x, bottoms[2 + self.static :])
        hidden, cells = [], []
        for step, go_on in enumerate(cont):
            (gates,) = self.hidden.forward([go_on.view(-1, 1, 1, 1) * h], self._gates(blobs))
            for term in (each[step % len(each)] for each in terms):
                gates = gates + term
            if peepholes:
                parts = [(c[None] * weight)[0] for weight in peepholes]
                gates = gates + torch.cat([*parts, torch.zeros_like(c)], 1)
            flat = lstm_unit(c.flatten(1), gates.flatten(1), go_on.unsqueeze(1))
            c, h = (state.view_as(h) for state in flat)
            hidden.append(h)
            cells.append(c)
        if not self.p.expose_hidden:
            self.state = [h.detach(), c.detach()]
        shown = [self._shown(name, hidden, cells) for name in self.debug.expose]
        return [torch.stack(hidden), *shown, *([h[None], c[None]] if self.p.expose_hidden else [])]

    def _terms(self, bottoms: list[Tensor], blobs: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """What x and x_static add to the gates, (T or 1, N, 4 D, H, W); and w_i, w_f, w_o, ready for c."""
        rest, terms = iter(blobs), []
        for made, bottom in ((self.input, bottoms[0]), (self.still, bottoms[2] if self.static else None)):
            if made is not None and bottom is not None:
                (y,) = made.forward([bottom.flatten(0, 1)], [next(rest)])
                terms.append(y.reshape(*bottom.shape[:2], *y.shape[1:]))
        peepholes = [] if self.debug.disable_hadamard else list(islice(rest, 4, 7))
        return terms, [weight.reshape(*weight.shape, *[1] * self.behind) for weight in peepholes]

    def _gates(self, blobs: list[Tensor]) -> list[Tensor]:
        """W_h and b."""
        first = 2 + (self.input is not None) + self.static
        return blobs[first : first + 2]

    def _shown(self, name: str, hidden: list[Tensor], cells: list[Tensor]) -> Tensor:
        state, _, step = name.partition("_t=")
        return (hidden if state == "h" else cells)[int(step) - 1].detach()[None]

    def _initial(self, x: Tensor, exposed: list[Tensor]) -> list[Tensor]:
        streams = x.shape[1]
        if exposed:
            return [state.squeeze(0) for state in exposed]
        if self.state and len(self.state[0]) >= streams:
            return [state[:streams].to(x) for state in self.state]
        return [x.new_zeros(streams, self.units, *x.shape[3:]) for _ in self.STATES]

    # -- ONNX ----------------------------------------------------------------------------------------------

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        if self.debug.expose:
            Layer.to_onnx(self, g, bottoms, tops, blobs)
        super().to_onnx(g, bottoms, tops, blobs)

    def _onnx_inputs(self, g: OnnxWriter, bottoms: list[str], blobs: list[str]) -> str:
        """What x and x_static add to the gates, (T, N, 4 D, H, W), or zeros that go with any of that shape."""
        rest, total = iter(blobs), g.constant(np.zeros((self.bottom_shapes[0][0], 1, 1, 1, 1), np.float32))
        for made, position in ((self.input, 0), (self.still, 2)):
            if made is not None:
                y = self._onnx_convolution(g, made, bottoms[position], [next(rest)], self.bottom_shapes[position])
                total = g.op("Add", [y, total])[0]
        return total

    def _onnx_convolution(self, g: OnnxWriter, made: Convolution, x: str, blobs: list[str], shape: Shape) -> str:
        """Convolve (T, N, C, H, W)."""
        images = reshape(g, x, (-1, *shape[2:]))[0]
        y = g.op("Conv", [images, *blobs], **made.onnx_attributes(shape[3:]))[0]
        return reshape(g, y, (shape[0], -1, self.GATES * self.units, *shape[3:]))[0]

    def _onnx_matrices(self, g: OnnxWriter, blobs: list[str]) -> list[str]:
        first = 2 + (self.input is not None) + self.static
        shape = (*self.covered, *[1] * self.behind)
        peepholes = [] if self.debug.disable_hadamard else blobs[first + 2 : first + 5]
        return [*blobs[first : first + 2], *(reshape(g, weight, shape)[0] for weight in peepholes)]

    def onnx_step(self, g: OnnxWriter, x: str, cont: str, states: list[str], blobs: list[str]) -> tuple[str, list[str]]:
        h, c = states
        go_on = g.op("Unsqueeze", [cont, g.constant(np.array([3, 4]))])[0]
        shape = (1, self.bottom_shapes[0][1], self.units, *self.bottom_shapes[0][3:])
        gates = self._onnx_convolution(g, self.hidden, g.op("Mul", [h, go_on])[0], blobs[:2], shape)
        gates = g.op("Add", [gates, x])[0]
        if peepholes := blobs[2:]:
            parts = [g.op("Mul", [c, weight])[0] for weight in peepholes]
            none = g.op("Mul", [c, g.constant(np.zeros(1, np.float32))])
            gates = g.op("Add", [gates, *g.op("Concat", [*parts, *none], axis=2)])[0]
        c, h = onnx_unit(g, c, gates, go_on, self.units)
        return h, [h, c]


@register
class ConvLSTMUnit(Layer):
    """LSTMUnit over images: c_prev (1, N, D, H, W), gates (1, N, 4 D, H, W), cont (1, N) -> c, h (1, N, D, H, W).

    Source: conv_lstm_unit_layer.cpp of agethen/ConvLSTM-for-Caffe.
    """

    TYPE = "ConvLSTMUnit"
    DIALECTS = ("convlstm",)
    BOTTOMS = (3, 3)
    TOPS = (2, 2)

    def setup(self, bottoms: Sequence[Shape]) -> None:
        for position, (shape, axes) in enumerate(zip(bottoms, (5, 5, 2), strict=True)):
            what = f"bottom {position} has shape {shape}; it must have {axes} axes and start with 1"
            fine = len(shape) == axes and shape[0] == 1
            self.check(fine, what, field=f"bottom[{position}]", remedy="put a Reshape layer before it")
        cells, gates, cont = bottoms
        what = f"bottoms {cells}, {gates} and {cont} do not belong together"
        fine = gates == (1, cells[1], 4 * cells[2], *cells[3:]) and cont[1] == cells[1]
        self.check(fine, what, field="bottom[1]", remedy="feed four gates for each value, and one cont a stream")

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        return [bottoms[0], bottoms[0]]

    def propagates(self, bottom: int) -> bool:
        return bottom != 2

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        cells, gates, cont = bottoms
        return [y.view_as(cells) for y in lstm_unit(cells.flatten(2), gates.flatten(2), cont.detach().unsqueeze(2))]

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        cont = g.op("Unsqueeze", [bottoms[2], g.constant(np.array([2, 3, 4]))])[0]
        onnx_unit(g, bottoms[0], bottoms[1], cont, self.bottom_shapes[0][2], tops)
