"""Correlation1D."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from caffe_compat.layers.base import OnnxWriter, Shape, register
from caffe_compat.layers.correlation import Correlation
from caffe_compat.onnx_forms import reduce
from caffe_compat.schema import pb

if TYPE_CHECKING:
    from torch import Tensor

END = np.iinfo(np.int64).max


@register
class Correlation1D(Correlation):
    """How alike patches of two maps are, for each displacement of the second along x (correlation_layer1d.cu).

    Both maps (N, C, H, W) get `pad` columns of zeros left and right. A patch is kernel_size x kernel_size cells of all
    channels; patches start every stride_1 cells, columns from max_displacement on. With r = max_displacement /
    stride_2, rounded down, displacements are stride_2 times -r to r, with single_direction 1 times 0 to r, with -1
    times -(r + 1) to -1, and each is a channel of the top: the mean of products (MULTIPLY), or of absolute differences
    (SUBTRACT). do_abs has no effect. The gradients of SUBTRACT have the fork's slip: those of the first map take the
    sign of both maps at the displaced cell, those of the second at the cell itself; it is + where they are equal.
    Source: lmb-freiburg/flownet2.
    """

    TYPE = "Correlation1D"
    DIALECTS = ("flownet2",)

    def setup(self, bottoms: Sequence[Shape]) -> None:
        super().setup(bottoms)
        way, field = self.p.single_direction, "correlation_param.single_direction"
        self.check(abs(way) <= 1, f"single_direction {way}", field=field, remedy="use -1 (left), 0 (both) or 1 (right)")
        steps = {-1: range(-self.reach - 1, 0), 0: range(-self.reach, self.reach + 1), 1: range(self.reach + 1)}[way]
        self.moves = [step * self.p.stride_2 for step in steps]
        self.beyond = max(0, -self.moves[0] - self.p.max_displacement)
        what = (
            f"the displacement of {-self.moves[0]} cells to the left reads the row above, past {self.p.pad} of padding"
        )
        fine = self.beyond <= self.p.pad
        self.check(fine, what, field="correlation_param.pad", remedy=f"pad by at least {self.beyond}")

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        self.check_maps(bottoms)
        rows, columns = bottoms[0][2:]
        width = columns + 2 * (self.p.pad - self.p.max_displacement) - self.p.kernel_size + 1
        height = rows - self.p.kernel_size + 1
        what, field = f"neighbourhood and kernel do not fit into maps of shape {bottoms[0]}", "correlation_param"
        self.check(min(width, height) > 0, what, field=field, remedy="displace less, or pad more")
        return [(bottoms[0][0], len(self.moves), *(-(-room // self.p.stride_1) for room in (height, width)))]

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        import torch
        from torch.nn.functional import avg_pool2d, pad

        self.reshape(bottoms)
        a, b = (pad(bottom, (self.p.pad + self.beyond, self.p.pad)) for bottom in bottoms)
        alike = self._difference if self.p.correlation_type == pb.CorrelationParameter.SUBTRACT else self._product
        means = [alike(a, b, move).mean(1, keepdim=True) for move in self.moves]
        return [avg_pool2d(torch.cat(means, 1), self.p.kernel_size, self.p.stride_1)]

    def _cells(self, x: Tensor, move: int) -> Tensor:
        """The columns that patches of the first map take, displaced."""
        start = self.beyond + self.p.max_displacement
        return x.narrow(3, start + move, x.shape[3] - start - self.p.max_displacement)

    def _product(self, a: Tensor, b: Tensor, move: int) -> Tensor:
        return self._cells(a, 0) * self._cells(b, move)

    def _difference(self, a: Tensor, b: Tensor, move: int) -> Tensor:
        """|a - b|; the terms that are added are 0 and carry the gradients."""
        here, there = self._cells(a, 0), self._cells(b, move)
        signs = (a >= b).to(a) * 2 - 1
        of_a, of_b = ((part - part.detach(), at) for part, at in ((here, move), (there, 0)))
        carried = of_a[0] * self._cells(signs, of_a[1]) - of_b[0] * self._cells(signs, of_b[1])
        return (here - there).detach().abs() + carried

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        pads = g.constant(np.array([0, 0, 0, self.p.pad + self.beyond, 0, 0, 0, self.p.pad], np.int64))
        a, b = (g.op("Pad", [bottom, pads])[0] for bottom in bottoms)
        here, means = self._slice(g, a, 0), []
        for move in self.moves:
            there = self._slice(g, b, move)
            if self.p.correlation_type == pb.CorrelationParameter.SUBTRACT:
                alike = g.op("Abs", g.op("Sub", [here, there]))[0]
            else:
                alike = g.op("Mul", [here, there])[0]
            means += reduce(g, "ReduceMean", alike, [1], True)
        joined = g.op("Concat", means, axis=1)
        kernel, stride = ([size] * 2 for size in (self.p.kernel_size, self.p.stride_1))
        g.op("AveragePool", joined, tops, kernel_shape=kernel, strides=stride)

    def _slice(self, g: OnnxWriter, name: str, move: int) -> str:
        start, end = self.beyond + self.p.max_displacement + move, move - self.p.max_displacement
        bounds = (g.constant(np.array([value], np.int64)) for value in (start, end or END, 3))
        return g.op("Slice", [name, *bounds])[0]
