"""Embed: a row of a table for each index."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from caffe_compat.fillers import check_fillers
from caffe_compat.layers.base import Layer, OnnxWriter, Shape, register
from caffe_compat.onnx_forms import INT64
from caffe_compat.schema import pb

if TYPE_CHECKING:
    from torch import Tensor


@register
class Embed(Layer):
    """top[..., :] = weight[bottom[...], :] + bias (embed_layer.cpp).

    The bottom holds whole numbers of 0 to input_dim - 1 and gets no gradient; anything else is an error here, where
    Caffe reads beyond the table. Blobs: weight (input_dim, num_output), bias (num_output).
    """

    TYPE = "Embed"
    FROM_ONNX = True
    PARAM = "embed_param"
    BLOBS = ("weight", "bias")

    def setup(self, bottoms: Sequence[Shape]) -> None:
        for field in ("num_output", "input_dim"):
            value = getattr(self.p, field)
            self.check(value > 0, f"{field} is {value}", field=f"embed_param.{field}", remedy="make it > 0")
        check_fillers(self, self.blob_shapes(bottoms))

    def blob_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        weight = (self.p.input_dim, self.p.num_output)
        return [weight, (self.p.num_output,)] if self.p.bias_term else [weight]

    def fillers(self) -> list[pb.FillerParameter]:
        return [self.p.weight_filler, self.p.bias_filler][: 2 if self.p.bias_term else 1]

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        return [(*bottoms[0], self.p.num_output)]

    def propagates(self, bottom: int) -> bool:
        return False

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        from torch.nn.functional import embedding

        top = embedding(bottoms[0].long(), blobs[0])
        return [top + blobs[1] if len(blobs) > 1 else top]

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        places = g.op("Cast", bottoms, to=INT64)
        rows = g.op("Gather", [blobs[0], *places], 1 if blobs[1:] else tops)
        if blobs[1:]:
            g.op("Add", [*rows, blobs[1]], tops)
