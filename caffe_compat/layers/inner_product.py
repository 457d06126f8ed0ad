"""InnerProduct: the fully connected layer."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING

from caffe_compat.fillers import check_fillers
from caffe_compat.layers.base import Layer, OnnxWriter, PythonWriter, Shape, register
from caffe_compat.layers.dec2013 import FOUR_AXES, check_fields
from caffe_compat.onnx_forms import reshape
from caffe_compat.python_forms import call
from caffe_compat.schema import pb

if TYPE_CHECKING:
    from torch import Tensor


@register
class InnerProduct(Layer):
    """top = bottom weight^T + bias over everything from `axis` on (inner_product_layer.cpp).

    With bottom (M..., K...): M are the axes before `axis`, K = the product of the others, top (M..., num_output).
    Blobs: weight (num_output, K), or (K, num_output) with `transpose`; bias (num_output).
    """

    TYPE = "InnerProduct"
    FROM_ONNX = True
    OUTPUT_FREE = True
    FORK_FIELDS = ("inner_product_param.weight_filler.alpha",)
    V1 = ("INNER_PRODUCT",)
    V0 = ("innerproduct",)
    PARAM = "inner_product_param"
    BLOBS = ("weight", "bias")

    def setup(self, bottoms: Sequence[Shape]) -> None:
        self._axis = self.axis(self.p.axis, len(bottoms[0]), "inner_product_param.axis")
        what = f"num_output is {self.p.num_output}"
        self.check(self.p.num_output > 0, what, field="inner_product_param.num_output", remedy="make it > 0")
        self._transpose = bool(self.p.transpose)
        self._flat = self._axis == len(bottoms[0]) - 1
        check_fillers(self, self.blob_shapes(bottoms))

    def blob_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        outputs, inputs = self.p.num_output, prod(bottoms[0][self._axis :])
        weight = (inputs, outputs) if self.p.transpose else (outputs, inputs)
        return [weight, (outputs,)] if self.p.bias_term else [weight]

    def fillers(self) -> list[pb.FillerParameter]:
        return [self.p.weight_filler, self.p.bias_filler][: 2 if self.p.bias_term else 1]

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        return [(*bottoms[0][: self._axis], self.p.num_output)]

    def macs(self, bottoms: Sequence[Shape], tops: Sequence[Shape]) -> int:
        return prod(bottoms[0]) * int(self.p.num_output)

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        from torch.nn.functional import linear

        x = bottoms[0] if self._flat else bottoms[0].flatten(self._axis)
        weight = blobs[0].t() if self._transpose else blobs[0]
        return [linear(x, weight, *blobs[1:])]

    def to_python(self, w: PythonWriter, bottoms: list[str]) -> str:
        x = bottoms[0] if self._flat else f"{bottoms[0]}.flatten({self._axis})"
        shapes = self.blob_shapes(self.bottom_shapes)
        if self._transpose:
            blobs = w.module(call(w.part("Blobs"), **dict(zip(self.BLOBS, map(str, shapes), strict=False))))
            return call("F.linear", x, f"{blobs}.weight.t()", *([f"{blobs}.bias"] if self.p.bias_term else []))
        outputs, inputs = shapes[0]
        bias = None if self.p.bias_term else "False"
        return f"{w.module(call('nn.Linear', str(inputs), str(outputs), bias=bias))}({x})"

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        x, shape = bottoms[0], self.bottom_shapes[0]
        if self._axis != 1 or len(shape) != 2:
            dims = (-1 if self._axis else 1, prod(shape[self._axis :]))
            x = reshape(g, x, dims)[0]
        top = self.top_shapes_built[0]
        plain = len(top) == 2
        y = g.op("Gemm", [x, *blobs], tops if plain else 1, transB=0 if self.p.transpose else 1)
        if not plain:
            reshape(g, y[0], (-1, *top[1:]) if self._axis else top, tops)


@register
class InnerProduct2013(InnerProduct):
    """InnerProduct of 3213bd87e (inner_product_layer.cpp): top (N, num_output, 1, 1).

    Blobs have four axes, weight (1, 1, num_output, K) and bias (1, 1, 1, num_output); a filler's fan-in is therefore
    num_output * K.
    """

    PROFILES = ("dec2013",)

    def setup(self, bottoms: Sequence[Shape]) -> None:
        check_fields(self, {"num_output", "bias_term", "weight_filler", "bias_filler"})
        shape = bottoms[0]
        self.check(len(shape) == 4, f"the bottom has shape {shape}", field="bottom", remedy=FOUR_AXES)
        super().setup(bottoms)

    def blob_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        return [(1,) * (4 - len(shape)) + shape for shape in super().blob_shapes(bottoms)]

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        return [(*shape, 1, 1) for shape in super().top_shapes(bottoms)]

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        y = super().forward(bottoms, [blobs[0][0, 0], *(bias.flatten() for bias in blobs[1:])])[0]
        return [y[:, :, None, None]]

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        flat = [(self.p.num_output, -1), (-1,)][: len(blobs)]
        matrix = [reshape(g, blob, dims)[0] for blob, dims in zip(blobs, flat, strict=True)]
        super().to_onnx(g, bottoms, tops, matrix)
