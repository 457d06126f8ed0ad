"""BatchNorm of NVIDIA's fork and its descendants, which may hold scale and bias as well."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from caffe_compat.layers.base import Layer, OnnxWriter, PythonWriter, Shape, register
from caffe_compat.layers.batch_norm import BatchNorm
from caffe_compat.schema import pb

if TYPE_CHECKING:
    from torch import Tensor

LEAST_EPS = 1e-5


@register
class BatchNormNvidia(BatchNorm):
    """y = scale (x - mean) / sqrt(variance + eps) + bias for each channel (batch_norm_layer.cpp, branch caffe-0.17).

    Blobs: mean and variance (channels,), a reserved 1 (1,) that nothing reads, and, with `scale_bias` or one of the
    fillers, scale and bias (channels,). eps is at least 1e-5. Multipliers are fixed: 0 for the first three, 1 for
    scale and bias, whatever the net says; `use_global_stats` is not read.

    TEST: mean and variance are blobs 0 and 1. TRAIN: they are those of the batch (variance divided by the count); the
    first two forward passes copy them to the blobs, later ones update: blob <- f blob + (1 - f) batch,
    f = moving_average_fraction.
    """

    DIALECTS = ("jacinto", "nvidia")
    BLOBS: ClassVar[tuple[str, ...]] = ("mean", "variance", "reserved", "weight", "bias")
    FORK_FIELDS = tuple(f"batch_norm_param.{name}" for name in ("scale_bias", "scale_filler", "bias_filler"))
    OUTPUT_FREE = False

    def setup(self, bottoms: Sequence[Shape]) -> None:
        super().setup(bottoms)
        self.eps = max(self.p.eps, LEAST_EPS)
        self.use_global_stats = self.phase == "TEST"
        self.scaled = self.p.scale_bias or self.has("scale_filler") or self.has("bias_filler")
        self.passes = 0

    def blob_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        each: Shape = (self.channels,)
        return [each, each, (1,), each, each][: 3 + 2 * self.scaled]

    def fillers(self) -> list[pb.FillerParameter]:
        one = pb.FillerParameter(type="constant", value=1)
        scale = self.p.scale_filler if self.has("scale_filler") else one
        return [pb.FillerParameter(), pb.FillerParameter(), one, scale, self.p.bias_filler][: 3 + 2 * self.scaled]

    def param_specs(self, given: Sequence[pb.ParamSpec], blobs: int) -> list[pb.ParamSpec]:
        names = [spec.name for spec in given] + [""] * (blobs - len(given))
        multipliers = [float(index > 2) for index in range(blobs)]
        specs = [pb.ParamSpec(lr_mult=value, decay_mult=value) for value in multipliers]
        for spec, name in zip(specs, names, strict=True):
            if name:
                spec.name = name
        return specs

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        from torch.nn.functional import batch_norm

        x, (mean, variance) = bottoms[0], (blob.detach() for blob in blobs[:2])
        weight, bias = blobs[3:] if self.scaled else (None, None)
        if self.use_global_stats:
            return [batch_norm(x, mean, variance, weight, bias, eps=self.eps)]
        axes = [axis for axis in range(x.dim()) if axis != 1]
        shape = [1, -1] + [1] * (x.dim() - 2)
        middle = x.mean(axes, keepdim=True)
        spread = (x - middle).square().mean(axes, keepdim=True)
        y = (x - middle) / (spread + self.eps).sqrt()
        self._update([mean, variance], [value.detach().view(-1) for value in (middle, spread)])
        return [y if weight is None or bias is None else y * weight.view(shape) + bias.view(shape)]

    def _update(self, blobs: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        """Move the blobs towards the statistics of the batch; at first, all the way."""
        kept = self.p.moving_average_fraction if self.passes > 1 else 0.0
        for blob, value in zip(blobs, values, strict=True):
            blob.mul_(kept).add_(value, alpha=1 - kept)
        self.passes += 1

    def fused(self, follower: Layer) -> None:
        return

    def to_python(self, w: PythonWriter, bottoms: list[str]) -> str:
        return Layer.to_python(self, w, bottoms)

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        if not self.use_global_stats:
            Layer.to_onnx(self, g, bottoms, tops, blobs)
        ones, zeros = (g.constant(np.full(self.channels, value, np.float32)) for value in (1, 0))
        scale, bias = blobs[3:] if self.scaled else (ones, zeros)
        g.op("BatchNormalization", [bottoms[0], scale, bias, *blobs[:2]], tops, epsilon=self.eps)
