"""BatchNorm."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from caffe_compat.layers.base import Layer, OnnxWriter, PythonWriter, Run, Shape, register
from caffe_compat.onnx_forms import reduce
from caffe_compat.python_forms import call, number
from caffe_compat.schema import pb

if TYPE_CHECKING:
    from torch import Tensor


@register
class BatchNorm(Layer):
    """y = (x - mean) / sqrt(variance + eps) for each channel (axis 1), without scale and bias (batch_norm_layer.cpp).

    Blobs: sums of means and of variances, shape (channels,), and the weight of these sums, shape (1,); all start at 0
    and are never learned (lr_mult 0).

    Global statistics (use_global_stats; by default in the TEST phase): mean and variance are blobs 0 and 1 divided by
    blob 2, or 0 when that is 0. Otherwise they are those of the batch (variance over m = count / channels values), and
    each forward pass updates the blobs, f = moving_average_fraction:
    mean <- f mean + batch mean; variance <- f variance + m / (m - 1) batch variance (factor 1 for m = 1);
    weight <- f weight + 1.
    """

    TYPE = "BatchNorm"
    HEEDLESS = True
    FROM_ONNX = True
    OUTPUT_FREE = True
    PARAM = "batch_norm_param"
    BLOBS: ClassVar[tuple[str, ...]] = ("mean", "variance", "scale_factor")
    INPLACE = True

    def setup(self, bottoms: Sequence[Shape]) -> None:
        rank = len(bottoms[0])
        what = f"a bottom with {rank} axes; the channels are axis 1"
        self.check(rank >= 2, what, field="bottom[0]", remedy="reshape it to (N, channels)")
        self.channels = bottoms[0][1]
        self._scale: tuple[float, Any] = (1.0, None)
        self.fraction, self.eps = self.p.moving_average_fraction, self.p.eps
        self.use_global_stats = self.p.use_global_stats if self.has("use_global_stats") else self.phase == "TEST"
        if self.use_global_stats and type(self) is BatchNorm:
            self.overwrite = self._normed_there

    def blob_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        return [(self.channels,), (self.channels,), (1,)]

    def fillers(self) -> list[pb.FillerParameter]:
        return [pb.FillerParameter(type="constant")] * 3

    def param_specs(self, given: Sequence[pb.ParamSpec], blobs: int) -> list[pb.ParamSpec]:
        for index, spec in enumerate(given):
            what = f"lr_mult {spec.lr_mult:g} for the statistics of BatchNorm, which are not learned"
            self.check(spec.lr_mult == 0, what, field=f"param[{index}]", remedy="state lr_mult: 0, or no param")
        return [*given, *(pb.ParamSpec(lr_mult=0) for _ in range(blobs - len(given)))]

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        what = f"a bottom with {bottoms[0][1]} channels; the net was built for {self.channels}"
        same = bottoms[0][1] == self.channels
        self.check(same, what, field="bottom[0]", remedy="feed that many channels, or build the net anew")
        return [bottoms[0]]

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        if self.use_global_stats:
            return self._normed(bottoms, blobs)
        return [self._batch(bottoms[0], [blob.detach() for blob in blobs])]

    def _means(self, mean: Tensor, variance: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance from their weighted sums; a weight of 0 gives 0. They pass no gradient on."""
        import torch

        if mean.requires_grad or variance.requires_grad or factor.requires_grad:
            mean, variance, factor = mean.detach(), variance.detach(), factor.detach()
        if not factor.is_cpu or torch.compiler.is_compiling():
            scale = factor.reciprocal().nan_to_num(torch.nan, 0, 0)
            return mean * scale, variance * scale
        weight = factor.item()  # on the CPU a look costs less than arithmetic
        if weight == 1:
            return mean, variance
        known, scale = self._scale
        if weight != known or scale.dtype != factor.dtype:
            scale = factor.reciprocal() if weight else torch.zeros_like(factor)
            self._scale = weight, scale
        return mean * scale, variance * scale

    def fused(self, follower: Layer) -> tuple[Run, Run] | None:
        """With a Scale of its channels, which torch's kernel does in the same pass."""
        shape = getattr(follower, "operand", None)
        if follower.TYPE != "Scale" or not self.use_global_stats or len(follower.bottom_shapes) != 1:
            return None
        if shape != (self.channels,) or len(self.bottom_shapes[0]) - follower.after != 2:  # type: ignore[attr-defined]
            return None
        return self._normed, self._normed_there

    def _normed(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        """With global statistics; a weight and a bias may follow them."""
        import torch

        self.reshape(bottoms)
        mean, variance = self._means(*blobs[:3])
        weight, bias = (*blobs[3:], None, None)[:2]
        cudnn = torch.backends.cudnn.enabled
        return [torch.batch_norm(bottoms[0], weight, bias, mean, variance, False, 0.0, self.eps, cudnn)]

    def _normed_there(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        """The same in the bottom's memory, where torch has that: on processors, without gradients."""
        import torch

        x = bottoms[0]
        traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        if torch.is_grad_enabled() or traced or not x.is_cpu or blobs[0].dtype != x.dtype:
            return self._normed(bottoms, blobs)
        self.reshape(bottoms)
        mean, variance = self._means(*blobs[:3])
        weight, bias = (*blobs[3:], None, None)[:2]
        unused = _nothing(x.dtype)
        torch.native_batch_norm(x, weight, bias, mean, variance, False, 0.0, self.eps, out=(x, unused, unused))
        return [x]

    def _batch(self, x: Tensor, statistics: list[Tensor]) -> Tensor:
        import torch

        mean, variance = torch.zeros_like(statistics[0]), torch.zeros_like(statistics[1])
        if x.numel() > self.channels:
            y = torch.nn.functional.batch_norm(x, mean, variance, training=True, momentum=1.0, eps=self.eps)
        else:  # one value per channel, which torch refuses
            y = x - x
            mean.copy_(x.detach().view(-1))
        for blob, value in zip(statistics, (mean, variance, torch.ones_like(statistics[2])), strict=True):
            blob.mul_(self.fraction).add_(value)
        return y

    def to_python(self, w: PythonWriter, bottoms: list[str]) -> str:
        if not self.use_global_stats:
            return super().to_python(w, bottoms)
        norm = w.module(call(w.part("BatchNorm"), str(self.channels), eps=number(self.eps)))
        return f"{norm}({bottoms[0]}, {w.joined})" if w.joined else f"{norm}({bottoms[0]})"

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        if not self.use_global_stats:
            self._batch_to_onnx(g, bottoms[0], tops)
            return
        ones, zeros = (g.constant(np.full(self.channels, value, np.float32)) for value in (1, 0))
        g.op("BatchNormalization", [bottoms[0], ones, zeros, *self._folded(g, blobs)], tops, epsilon=self.eps)

    def _folded(self, g: OnnxWriter, blobs: list[str]) -> list[str]:
        """Mean and variance: the blobs themselves when their weight is 1."""
        factor = np.float32(g.array(blobs[2]).reshape(-1)[0])
        if factor == 1:
            return blobs[:2]
        scale = np.float32(0) if factor == 0 else np.float32(1) / factor
        return [g.constant(g.array(blob).astype(np.float32) * scale) for blob in blobs[:2]]

    def _batch_to_onnx(self, g: OnnxWriter, bottom: str, tops: list[str]) -> None:
        axes = [axis for axis in range(len(self.bottom_shapes[0])) if axis != 1]
        centred = g.op("Sub", [bottom, *reduce(g, "ReduceMean", bottom, axes, True)])
        variance = reduce(g, "ReduceMean", g.op("Mul", centred * 2)[0], axes, True)
        deviation = g.op("Sqrt", g.op("Add", [*variance, g.constant(np.array(self.eps, np.float32))]))
        g.op("Div", centred + deviation, tops)


@cache
def _nothing(dtype: Any) -> Tensor:
    """Stands for outputs that torch does not write."""
    import torch

    with torch.inference_mode(False):
        return torch.empty(0, dtype=dtype)
