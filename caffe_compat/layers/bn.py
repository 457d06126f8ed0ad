"""BN: normalisation of channels, as two families of forks have it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from caffe_compat.layers.base import Layer, OnnxWriter, Shape, register
from caffe_compat.onnx_forms import append_axes, reduce, reshape
from caffe_compat.schema import pb

if TYPE_CHECKING:
    from torch import Tensor


class BNLayer(Layer):
    """Base of the forks' BN."""

    TYPE = "BN"
    PARAM = "bn_param"
    INPLACE = True
    AXES = 4

    def setup(self, bottoms: Sequence[Shape]) -> None:
        rank = len(bottoms[0])
        what = f"the bottom has {rank} axes; it takes 2 to {self.AXES}"
        self.check(2 <= rank <= self.AXES, what, field="bottom[0]", remedy="reshape it to (N, C, H, W)")
        self.channels = bottoms[0][1]

    def check_channels(self, bottoms: Sequence[Shape]) -> None:
        what = f"a bottom with {bottoms[0][1]} channels; the net was built for {self.channels}"
        same = bottoms[0][1] == self.channels
        self.check(same, what, field="bottom[0]", remedy="feed that many channels, or build the net anew")

    def write_batch(self, g: OnnxWriter, bottom: str, eps: float, blobs: list[str], tops: list[str]) -> list[str]:
        """Normalise with the batch's own statistics, scale, shift. Returns mean and variance, (1, C, 1, ...)."""
        rank = len(self.top_shapes_built[0])
        axes = [axis for axis in range(rank) if axis != 1]
        mean = reduce(g, "ReduceMean", bottom, axes, True)[0]
        centred = g.op("Sub", [bottom, mean])
        variance = reduce(g, "ReduceMean", g.op("Mul", centred * 2)[0], axes, True)[0]
        deviation = g.op("Sqrt", g.op("Add", [variance, g.constant(np.array(eps, np.float32))]))
        scale, shift = (reshape(g, blob, [1, -1] + [1] * (rank - 2))[0] for blob in blobs[:2])
        g.op("Add", [*g.op("Mul", [*g.op("Div", centred + deviation), scale]), shift], tops)
        return [mean, variance]


@register
class BN(BNLayer):
    """y = slope (x - mean) / sqrt(variance + eps) + bias for each channel (bn_layer.cpp of hszhao/PSPNet).

    Blobs, (1, C, 1, 1), in yjxiong/caffe (1, C): slope, bias, mean, variance; the latter two are never learned.
    TRAIN: mean and variance (divided by the count) are the batch's, and each forward pass updates the blobs:
    blob <- momentum blob + (1 - momentum) batch. TEST: they are the blobs, but the gradient is computed as if they
    were the batch's. `frozen`: they are the blobs in both phases, slope and bias are not learned either, and the
    gradient is the derivative.
    """

    DIALECTS = ("pspnet", "yjxiong")
    BLOBS = ("weight", "bias", "mean", "variance")

    def setup(self, bottoms: Sequence[Shape]) -> None:
        super().setup(bottoms)
        self.frozen, self.momentum, self.eps = self.p.frozen, self.p.momentum, self.p.eps
        self.moves = self.phase == "TRAIN" and not self.frozen

    def blob_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        return [(1, self.channels) if self.context.dialect == "yjxiong" else (1, self.channels, 1, 1)] * 4

    def fillers(self) -> list[pb.FillerParameter]:
        mean, variance = pb.FillerParameter(), pb.FillerParameter(value=1 if self.frozen else 0)
        return [self.p.slope_filler, self.p.bias_filler, mean, variance]

    def param_specs(self, given: Sequence[pb.ParamSpec], blobs: int) -> list[pb.ParamSpec]:
        specs = [pb.ParamSpec() for _ in range(blobs)]
        for spec, own in zip(specs, given, strict=False):
            spec.CopyFrom(own)
        for spec in specs if self.frozen else specs[2:]:
            spec.lr_mult = spec.decay_mult = 0
        return specs

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        self.check_channels(bottoms)
        return [bottoms[0]]

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        import torch

        x = bottoms[0]
        mean, variance = (blob.detach().view(-1) for blob in blobs[2:])
        slope, bias = ((blob.detach() if self.frozen else blob).view(-1) for blob in blobs[:2])
        if self.moves:
            return [self._batch(x, slope, bias, [mean, variance])]
        if self.frozen or not torch.is_grad_enabled():
            return [torch.nn.functional.batch_norm(x, mean, variance, slope, bias, eps=self.eps)]
        shape = [1, -1] + [1] * (x.dim() - 2)
        deviation = (variance + self.eps).sqrt()
        return [_as_of_batch()(x, mean.view(shape), deviation.view(shape)) * slope.view(shape) + bias.view(shape)]

    def _batch(self, x: Tensor, slope: Tensor, bias: Tensor, statistics: list[Tensor]) -> Tensor:
        import torch

        count = x.numel() // self.channels
        mean, variance = torch.zeros_like(statistics[0]), torch.zeros_like(statistics[1])
        if count > 1:
            y = torch.nn.functional.batch_norm(x, mean, variance, slope, bias, True, 1.0, self.eps)
        else:  # one value per channel, which torch refuses
            y = (x - x) * slope.view(1, -1, *[1] * (x.dim() - 2)) + bias.view(1, -1, *[1] * (x.dim() - 2))
            mean.copy_(x.detach().view(-1))
        for blob, value in zip(statistics, (mean, variance * self.share(count)), strict=True):
            blob.mul_(self.momentum).add_(value, alpha=1 - self.momentum)
        return y

    def share(self, count: int) -> float:
        """What the blob takes of a variance that is divided by count - 1."""
        return (count - 1) / count

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        if self.moves:
            self.write_batch(g, bottoms[0], self.eps, blobs, tops)
            return
        flat = [reshape(g, blob, [-1])[0] for blob in blobs]
        g.op("BatchNormalization", [bottoms[0], *flat], tops, epsilon=self.eps)


@register
class CuDNNBatchNorm(BN):
    """BN with fillers for scale and bias (cudnn_batch_norm_layer.cpp, cudnn_batch_norm_layer.cu of hujie-frank/GENet).

    Blobs, (1, C, 1, 1): scale, bias, mean, variance. As in cuDNN eps is at least 1e-5, and the variance that moves the
    blob is divided by count - 1.
    """

    TYPE = "CuDNNBatchNorm"
    DIALECTS = ("genet",)  # type: ignore[assignment]
    PARAM = "cudnn_batch_norm_param"

    def setup(self, bottoms: Sequence[Shape]) -> None:
        super().setup(bottoms)
        self.eps = max(self.eps, 1e-5)

    def fillers(self) -> list[pb.FillerParameter]:
        mean, variance = pb.FillerParameter(), pb.FillerParameter(value=1 if self.frozen else 0)
        return [self.p.scale_filler, self.p.bias_filler, mean, variance]

    def share(self, count: int) -> float:
        return 1.0


@register
class BNConv(BN):
    """BN in place (bn_conv_layer.cpp, bn_conv_layer.cu of GuanshuoXu/caffe_deep_learning_for_steganalysis).

    Blobs, (1, C, 1, 1): scale 1, shift 0, mean, variance; each forward pass in phase TRAIN updates the latter two:
    blob <- (1 - decay) blob + decay batch, and eps is 1e-10. With `fix` they are used in phase TRAIN as well.
    """

    TYPE = "BNConv"
    DIALECTS = ("steganalysis",)  # type: ignore[assignment]
    PARAM = "bn_conv_param"

    def setup(self, bottoms: Sequence[Shape]) -> None:
        BNLayer.setup(self, bottoms)
        self.frozen, self.momentum, self.eps = False, 1 - self.p.decay, 1e-10
        self.moves = self.phase == "TRAIN" and not self.p.fix

    def fillers(self) -> list[pb.FillerParameter]:
        return [pb.FillerParameter(value=1), *(pb.FillerParameter() for _ in range(3))]

    def param_specs(self, given: Sequence[pb.ParamSpec], blobs: int) -> list[pb.ParamSpec]:
        return Layer.param_specs(self, given, blobs)


@cache
def _as_of_batch() -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """A function (x, mean, deviation): (x - mean) / deviation, with the gradient as if they were the batch's own."""
    import torch
    from torch.autograd.function import once_differentiable

    class AsOfBatch(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
            y = (x - mean) / deviation
            ctx.save_for_backward(y, deviation)
            return y

        @staticmethod
        @once_differentiable  # type: ignore[untyped-decorator]
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
            y, deviation = ctx.saved_tensors
            axes = [axis for axis in range(y.dim()) if axis != 1]
            inner = grad - grad.mean(axes, keepdim=True) - y * (grad * y).mean(axes, keepdim=True)
            return inner / deviation, None, None

    return AsOfBatch.apply  # type: ignore[no-any-return]


@register
class BNSegnet(BNLayer):
    """LEARN: y = scale (x - mean) / sqrt(variance + 1e-9) + shift; INFERENCE: y = scale x + shift.

    Mean and variance, E[x^2] - E[x]^2, are the batch's in both phases; further tops (1, C, 1, 1), which INFERENCE does
    not have, hold them without gradient. Blobs: scale and shift, (1, C, 1, 1), one more 1 for five axes.
    Source: bn_layer.cpp of alexgkendall/caffe-segnet; five axes: superxuang/caffe_3d_faster_rcnn.
    """

    DIALECTS = ("segnet", "3d-faster-rcnn", "synopsys")
    TOPS = (1, 3)
    BLOBS = ("weight", "bias")
    AXES = 5
    EPS = 1e-9

    def setup(self, bottoms: Sequence[Shape]) -> None:
        super().setup(bottoms)
        self.learns = self.p.bn_mode == pb.BNParameter.LEARN
        fine = self.learns or self.tops == 1
        what = f"{self.tops} tops; with bn_mode INFERENCE there are no statistics"
        self.check(fine, what, field="top[1]", remedy="remove all tops but the first, or state bn_mode: LEARN")

    def blob_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        return [self._statistics_shape(bottoms)] * 2

    def _statistics_shape(self, bottoms: Sequence[Shape]) -> Shape:
        return (1, self.channels, *[1] * max(2, len(bottoms[0]) - 2))

    def fillers(self) -> list[pb.FillerParameter]:
        return [self.p.scale_filler, self.p.shift_filler]

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        self.check_channels(bottoms)
        data = bottoms[0] if len(bottoms[0]) > 4 else (*bottoms[0], 1, 1)[:4]
        return [data, *[self._statistics_shape(bottoms)] * (self.tops - 1)]

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        shapes = self.reshape(bottoms)
        x = bottoms[0].reshape(shapes[0])
        scale, shift = blobs
        if not self.learns:
            return [x * scale + shift]
        axes = [axis for axis in range(x.dim()) if axis != 1]
        mean = x.mean(axes, keepdim=True)
        variance = (x * x).mean(axes, keepdim=True) - mean * mean
        y = (x - mean) / (variance + self.EPS).sqrt() * scale + shift
        return [y, mean.detach(), variance.detach()][: self.tops]

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        rank = len(self.top_shapes_built[0])
        x = append_axes(g, bottoms[0], self.bottom_shapes[0], rank - len(self.bottom_shapes[0]))
        if not self.learns:
            g.op("Add", [*g.op("Mul", [x, blobs[0]]), blobs[1]], tops)
            return
        found = self.write_batch(g, x, self.EPS, blobs, tops[:1])
        for name, top, shape in zip(found, tops[1:], self.top_shapes_built[1:], strict=False):
            reshape(g, name, shape, [top])
