"""BatchNormScale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from caffe_compat.layers.base import Layer, OnnxWriter, PythonWriter, Shape, register
from caffe_compat.layers.batch_norm import BatchNorm
from caffe_compat.schema import pb

if TYPE_CHECKING:
    from torch import Tensor

STATISTICS = 3
"""Blobs that are not learned."""


@register
class BatchNormScale(BatchNorm):
    """BatchNorm with scale and bias as blobs 3 and 4, shape (channels,), which start at 1 and 0.

    In place y = scale (x - mean) / sqrt(variance + eps) + bias. With a top of its own the fork scales the bottom
    itself, y = scale x + bias, and the statistics of a batch do no more than update the blobs.

    The fork's backward pass is not followed: it does not multiply the gradient of `scale` by the normalised values.
    Source: batch_norm_scale_layer.cpp, batch_norm_scale_layer.cu of yuqj1991/caffe_train.
    """

    TYPE = "BatchNormScale"
    DIALECTS = ("yuqj1991",)
    BLOBS: ClassVar[tuple[str, ...]] = ("mean", "variance", "scale_factor", "weight", "bias")
    OUTPUT_FREE = False
    BACKWARD = False

    def blob_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        return [*super().blob_shapes(bottoms), (self.channels,), (self.channels,)]

    def fillers(self) -> list[pb.FillerParameter]:
        return [*super().fillers(), pb.FillerParameter(value=1), pb.FillerParameter()]

    def param_specs(self, given: Sequence[pb.ParamSpec], blobs: int) -> list[pb.ParamSpec]:
        statistics = super().param_specs(given[:STATISTICS], STATISTICS)
        learned = list(given[STATISTICS:])
        return [*statistics, *learned, *(pb.ParamSpec() for _ in range(blobs - STATISTICS - len(learned)))]

    @property
    def normalises(self) -> bool:
        """Whether what it scales are the normalised values."""
        return self.param.bottom[:1] == self.param.top[:1]

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        normal = super().forward(bottoms, blobs[:STATISTICS])[0]
        x = normal if self.normalises else bottoms[0]
        scale, bias = (blob.view(1, -1, *[1] * (x.dim() - 2)) for blob in blobs[STATISTICS:])
        return [x * scale + bias]

    def fused(self, follower: Layer) -> None:
        return

    def to_python(self, w: PythonWriter, bottoms: list[str]) -> str:
        return Layer.to_python(self, w, bottoms)

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        if not self.use_global_stats or not self.normalises:
            Layer.to_onnx(self, g, bottoms, tops, blobs)
        statistics = self._folded(g, blobs)
        g.op("BatchNormalization", [bottoms[0], *blobs[STATISTICS:], *statistics], tops, epsilon=self.eps)
