"""What RNN and LSTM have in common (recurrent_layer.cpp): time, continuation indicators, carried state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from caffe_compat.errors import ConversionError
from caffe_compat.fillers import check_fillers
from caffe_compat.layers.base import Layer, OnnxWriter, Shape
from caffe_compat.schema import pb

if TYPE_CHECKING:
    from torch import Tensor


class Recurrent(Layer):
    """Base of recurrent layers over T steps of N streams.

    Bottoms: x (T, N, ...), cont (T, N), then x_static (N, ...) if given, then with `expose_hidden` the initial
    states (1, N, D). Tops: the output (T, N, D), then with `expose_hidden` the final states (1, N, D).
    Before step t the state is multiplied by cont[t]: 0 starts a new sequence.

    Without `expose_hidden` the final state is where the next forward pass starts; at first it is 0. When N shrinks the
    first streams keep their state, when N grows all start at 0. `reset` zeroes it. No gradient flows to or from exposed
    states, nor from one forward pass to the one before. T is fixed when the net is built.
    """

    PARAM = "recurrent_param"
    BOTTOMS = (2, None)
    TOPS = (1, None)
    LEARNS_WHOLE = True
    STATES: ClassVar[tuple[str, ...]]
    """Names of the states."""
    GATES: ClassVar[int]
    """Rows of the input weights per unit."""

    # -- rules ---------------------------------------------------------------------------------------------

    def setup(self, bottoms: Sequence[Shape]) -> None:
        units = self.p.num_output
        self.check(units > 0, "num_output is 0", field="recurrent_param.num_output", remedy="state the number of units")
        exposed = len(self.STATES) if self.p.expose_hidden else 0
        self._check_counts(len(bottoms), exposed)
        self.static = len(bottoms) > 2 + exposed
        self.state: list[Tensor] = []
        self._check_shapes(bottoms)
        check_fillers(self, self.blob_shapes(bottoms))

    def _check_counts(self, bottoms: int, exposed: int) -> None:
        wanted = f"{2 + exposed} or {3 + exposed}"
        names = ["x", "cont", "x_static (optional)", *(f"{s}_0" for s in self.STATES[:exposed])]
        what = f"{self.TYPE} takes {wanted} bottoms here, got {bottoms}"
        self.check(2 + exposed <= bottoms <= 3 + exposed, what, field="bottom", remedy=f"give {', '.join(names)}")
        what = f"{self.TYPE} has {1 + exposed} top(s) here, got {self.tops}"
        self.check(self.tops == 1 + exposed, what, field="top", remedy="expose_hidden adds a top per state")

    def _check_shapes(self, bottoms: Sequence[Shape]) -> None:
        x, cont = bottoms[:2]
        what = f"x has shape {x}; it must be (steps, streams, ...) with at least one more axis"
        self.check(len(x) > 2 and x[0] > 0, what, field="bottom[0]", remedy="put a Reshape layer before it")
        what = f"cont has shape {cont} for x of shape {x}"
        self.check(cont == x[:2], what, field="bottom[1]", remedy=f"feed continuation indicators {x[:2]}")
        if self.static:
            what = f"x_static has shape {bottoms[2]}; it must be ({x[1]}, ...)"
            fine = len(bottoms[2]) > 1 and bottoms[2][0] == x[1]
            self.check(fine, what, field="bottom[2]", remedy="feed one row per stream")
        wanted = (1, x[1], self.p.num_output)
        for position in range(2 + self.static, len(bottoms)):
            what = f"the initial state in bottom {position} has shape {bottoms[position]}; it must be {wanted}"
            self.check(bottoms[position] == wanted, what, field=f"bottom[{position}]", remedy="feed that shape")

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        steps, streams = bottoms[0][:2]
        return [(steps, streams, self.p.num_output), *[(1, streams, self.p.num_output)] * (self.tops - 1)]

    def input_blobs(self, bottoms: Sequence[Shape]) -> list[Shape]:
        """Weights and bias of x, weights of x_static if there is one, weights of the state."""
        rows = self.GATES * self.p.num_output
        static = [(rows, prod(bottoms[2][1:]))] if self.static else []
        return [(rows, prod(bottoms[0][2:])), (rows,), *static, (rows, self.p.num_output)]

    def blob_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        return self.input_blobs(bottoms)

    def fillers(self) -> list[pb.FillerParameter]:
        weight, bias = self.p.weight_filler, self.p.bias_filler
        return [weight, bias, *[weight] * (1 + self.static)]

    def macs(self, bottoms: Sequence[Shape], tops: Sequence[Shape]) -> int:
        steps, streams = bottoms[0][:2]
        matrices = [prod(shape) for shape in self.blob_shapes(bottoms) if len(shape) == 2]
        once = matrices.pop(1) if self.static else 0
        return streams * (steps * sum(matrices) + once)

    def propagates(self, bottom: int) -> bool:
        return bottom == 0 or (bottom == 2 and self.static)

    # -- work ----------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Start the next forward pass from zero states."""
        self.state = []

    def steps(self, inputs: Tensor, cont: Tensor, states: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        """Run all steps.

        Args:
            inputs: transformed x (and x_static), (T, N, GATES * D).
            cont: (T, N, 1).
            states: (N, D) each.
            blobs: those from the weights of the state on.

        Returns:
            The output (T, N, D) and the final states (N, D).
        """
        raise NotImplementedError(self.TYPE)

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        from torch.nn.functional import linear

        x, cont = bottoms[0], bottoms[1].detach()
        what = f"{x.shape[0]} steps, but the net was built for {self.bottom_shapes[0][0]}"
        self.check(x.shape[0] == self.bottom_shapes[0][0], what, remedy="build the net for this number of steps")
        self._check_shapes([tuple(bottom.shape) for bottom in bottoms])
        inputs = linear(x.flatten(2), blobs[0], blobs[1])
        if self.static:
            inputs = inputs + linear(bottoms[2].flatten(1), blobs[2])
        states = self._initial(x, bottoms[2 + self.static :])
        output, *final = self.steps(inputs, cont.unsqueeze(2), states, blobs[2 + self.static :])
        final = [state.detach() for state in final]
        if not self.p.expose_hidden:
            self.state = final
            return [output]
        return [output, *[state.unsqueeze(0) for state in final]]

    def saved(self) -> dict[str, Any]:
        return {str(index): state.cpu().numpy() for index, state in enumerate(self.state)}

    def resume(self, saved: Mapping[str, Any]) -> None:
        import torch

        self.state = [torch.tensor(saved[str(index)]) for index in range(len(saved))]

    def _initial(self, x: Tensor, exposed: list[Tensor]) -> list[Tensor]:
        streams = x.shape[1]
        if exposed:
            return [state.detach().squeeze(0) for state in exposed]
        if self.state and len(self.state[0]) >= streams:
            return [state[:streams].to(x) for state in self.state]
        return [x.new_zeros(streams, self.p.num_output) for _ in self.STATES]

    # -- ONNX ----------------------------------------------------------------------------------------------

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        if not self.p.expose_hidden:
            raise ConversionError(
                f"{self.TYPE} carries its state from one forward pass to the next, ONNX models have none",
                where=self.where("recurrent_param"),
                remedy="set recurrent_param { expose_hidden: true } and feed the states as inputs",
            )
        steps = self.bottom_shapes[0][0]
        inputs = split(g, self._onnx_inputs(g, bottoms, blobs), [1] * steps, 0)
        cont = split(g, g.op("Unsqueeze", [bottoms[1], g.constant(np.array([2]))])[0], [1] * steps, 0)
        states = bottoms[2 + self.static :]
        outputs = []
        rest = self._onnx_matrices(g, blobs)
        for step in range(steps):
            output, states = self.onnx_step(g, inputs[step], cont[step], states, rest)
            outputs.append(output)
        g.op("Concat", outputs, tops[:1], axis=0)
        for state, top in zip(states, tops[1:], strict=True):
            g.op("Identity", [state], [top])

    def _onnx_inputs(self, g: OnnxWriter, bottoms: list[str], blobs: list[str]) -> str:
        """x and x_static transformed, (T, N, GATES * D)."""
        rows = g.op("Gemm", [*g.op("Flatten", bottoms[:1], axis=2), *blobs[:2]], transB=1)[0]
        shape = [self.bottom_shapes[0][0], -1, self.GATES * self.p.num_output]
        inputs = g.op("Reshape", [rows, g.constant(np.array(shape))])[0]
        if not self.static:
            return inputs
        static = g.op("Gemm", [*g.op("Flatten", [bottoms[2]], axis=1), blobs[2]], transB=1)[0]
        return g.op("Add", [inputs, static])[0]

    def _onnx_matrices(self, g: OnnxWriter, blobs: list[str]) -> list[str]:
        """The blobs from the weights of the state on, matrices transposed for MatMul."""
        shapes = self.blob_shapes(self.bottom_shapes)
        rest = list(zip(blobs, shapes, strict=True))[2 + self.static :]
        return [g.op("Transpose", [blob], perm=[1, 0])[0] if len(shape) == 2 else blob for blob, shape in rest]

    def onnx_step(self, g: OnnxWriter, x: str, cont: str, states: list[str], blobs: list[str]) -> tuple[str, list[str]]:
        """The nodes of one step: (1, N, ...) throughout, matrices transposed. Returns output and states."""
        raise NotImplementedError(self.TYPE)


def split(g: OnnxWriter, name: str, sizes: Sequence[int], axis: int) -> list[str]:
    """Split into pieces of those sizes."""
    return g.op("Split", [name, g.constant(np.array(sizes))], len(sizes), axis=axis)
