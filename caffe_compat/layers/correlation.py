"""Correlation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from caffe_compat.layers.base import Layer, Shape, register
from caffe_compat.schema import pb

if TYPE_CHECKING:
    from torch import Tensor


@register
class Correlation(Layer):
    """How alike patches of two maps are, for each displacement of the second (correlation_layer.cpp).

    Both maps (N, C, H, W) are padded with `pad` zeros. A patch is kernel_size x kernel_size cells of all channels;
    patches start every stride_1 cells. With r = max_displacement / stride_2, rounded down, the displacements are
    -r to r times stride_2 in y, then in x, and each is a channel of the top: the mean of products (MULTIPLY), or of
    absolute differences (SUBTRACT). do_abs and single_direction have no effect.
    Source: lmb-freiburg/flownet2, and for the CPU synopsys-caffe, which has no backward pass.
    """

    TYPE = "Correlation"
    DIALECTS = ("synopsys",)
    PARAM = "correlation_param"
    BOTTOMS = (2, 2)

    def setup(self, bottoms: Sequence[Shape]) -> None:
        for name in ("kernel_size", "max_displacement"):
            self.check(self.has(name), f"{name} is not stated", field="correlation_param", remedy="state it")
        for name in ("stride_1", "stride_2"):
            field = f"correlation_param.{name}"
            self.check(getattr(self.p, name) > 0, f"{name} is 0", field=field, remedy="use 1 or more")
        what = f"kernel_size {self.p.kernel_size} is even"
        odd = self.p.kernel_size % 2 == 1
        self.check(odd, what, field="correlation_param.kernel_size", remedy="use an odd size")
        self.reach = self.p.max_displacement // self.p.stride_2

    def check_maps(self, bottoms: Sequence[Shape]) -> None:
        """Both are maps of one shape."""
        what = f"maps of shape {bottoms[0]} and {bottoms[1]}"
        same = len(bottoms[0]) == 4 and bottoms[0] == bottoms[1]
        self.check(same, what, field="bottom[1]", remedy="feed two maps (N, C, H, W) of one shape")

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        self.check_maps(bottoms)
        border = 2 * self.p.max_displacement + self.p.kernel_size - 1
        rooms = [size + 2 * self.p.pad - border for size in bottoms[0][2:]]
        what = f"neighbourhood and kernel do not fit into maps of shape {bottoms[0]}"
        self.check(
            min(rooms) > 0, what, field="correlation_param.max_displacement", remedy="displace less, or pad more"
        )
        height, width = (-(-room // self.p.stride_1) for room in rooms)
        return [(bottoms[0][0], (2 * self.reach + 1) ** 2, height, width)]

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        import torch
        from torch.nn.functional import pad

        shape = self.reshape(bottoms)[0]
        a, b = (pad(bottom, [self.p.pad] * 4) for bottom in bottoms)
        rows = [self._row(a, b, shape[2:], step) for step in range(-self.reach, self.reach + 1)]
        return [torch.cat(rows, 1) / (a.shape[1] * self.p.kernel_size**2)]

    def _row(self, a: Tensor, b: Tensor, size: Sequence[int], step: int) -> Tensor:
        """Sums over the patches for one displacement in y and every one in x, (N, 2 reach + 1, H, W)."""
        kernel, first, apart = self.p.kernel_size, self.p.max_displacement, self.p.stride_2
        subtract = self.p.correlation_type == pb.CorrelationParameter.SUBTRACT
        span, total = 2 * self.reach * apart + 1, a.new_zeros(())
        for i in range(kernel):
            top = self._lines(a, 2, first + i, size[0])
            low = self._lines(b, 2, first + i + step * apart, size[0])
            for j in range(kernel):
                patch = self._lines(top, 3, first + j, size[1]).unsqueeze(4)
                start = first + j - self.reach * apart
                width = span + (size[1] - 1) * self.p.stride_1
                others = low[..., start : start + width].unfold(3, span, self.p.stride_1)[..., ::apart]
                subtract = self.p.correlation_type == pb.CorrelationParameter.SUBTRACT
                total = total + ((patch - others).abs() if subtract else patch * others).sum(
                    1
                )  # (N, H, W, 2 reach + 1)
        return total.permute(0, 3, 1, 2)

    def _lines(self, x: Tensor, axis: int, start: int, count: int) -> Tensor:
        """Every stride_1-th line from `start`."""
        stride = self.p.stride_1
        return x.narrow(axis, start, (count - 1) * stride + 1).unfold(axis, 1, stride).squeeze(-1)
