"""From ONNX to Caffe: every rule against ONNX Runtime, refusals, hostile files, and our own exports that come back."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from caffe_compat.errors import BinaryError, ConversionError, Problems, VggcError
from converters.from_onnx import from_onnx
from converters.importing.options import ImportOptions
from converters.importing.translation import REASONS, rules
from tests.converters.importing import Array, in_caffe, in_ort, feeds, model, same, types

IMAGE = "x: float[2, 4, 7, 9]"


def w(*shape: int, seed: int = 5) -> Array:
    """Weights."""
    return np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)


def positive(*shape: int) -> Array:
    return np.abs(w(*shape)) + np.float32(0.1)


class Case(NamedTuple):
    """A model, what layers it becomes ("" does not matter), and how it is imported."""

    body: str
    layers: str = ""
    inputs: str = IMAGE
    weights: dict[str, Any] = {}  # noqa: RUF012
    opset: int = 17
    options: ImportOptions = ImportOptions()
    outputs: str = "y"


CONV = {"w": w(6, 4, 3, 3), "b": w(6)}
STATISTICS = {"g": w(4), "b": w(4, seed=6), "m": w(4, seed=7), "v": positive(4)}
BN = "BatchNormalization<epsilon=0.001>"
FOLD = ImportOptions(fold_batch_norm=True)
CROP, PAD, FLOOR = (ImportOptions(pool_rewrite=name) for name in ("crop", "pad", "floor"))


def const(*values: float, shape: tuple[int, ...] | None = None) -> Array:
    return np.array(values, np.float32).reshape(shape if shape is not None else (len(values),))


def ints(*values: int) -> Array:
    return np.array(values, np.int64)


CASES = {
    # Conv
    "conv": Case("y = Conv(x, w, b)", "Convolution", weights=CONV),
    "conv without bias": Case("y = Conv(x, w)", "Convolution", weights=CONV),
    "conv strided": Case("y = Conv<strides=[2, 3], pads=[1, 2, 1, 2]>(x, w, b)", "Convolution", weights=CONV),
    "conv dilated": Case("y = Conv<dilations=[2, 3], pads=[2, 3, 2, 3]>(x, w, b)", "Convolution", weights=CONV),
    "conv grouped": Case("y = Conv<group=2>(x, w)", "Convolution", weights={"w": w(6, 2, 3, 2)}),
    "conv depthwise": Case("y = Conv<group=4, pads=[1,1,1,1]>(x, w)", "Convolution", weights={"w": w(4, 1, 3, 3)}),
    "conv pads behind": Case("y = Conv<strides=[2,2], pads=[0,0,1,1]>(x, w, b)", "Convolution", weights=CONV),
    "conv pads before": Case("y = Conv<strides=[2,2], pads=[2,1,0,0]>(x, w, b)", "Convolution", weights=CONV),
    "conv pads unequal dilated": Case("y = Conv<dilations=[2,2], pads=[0,0,2,1]>(x, w, b)", "", weights=CONV),
    "conv pads that change nothing": Case("y = Conv<strides=[3,3], pads=[0,0,1,0]>(x, w)", "Convolution", weights=CONV),
    "conv same upper": Case('y = Conv<auto_pad="SAME_UPPER", strides=[2,2]>(x, w)', "Convolution", weights=CONV),
    "conv same lower": Case('y = Conv<auto_pad="SAME_LOWER", strides=[2,2]>(x, w)', "Convolution", weights=CONV),
    "conv same lower even": Case('y = Conv<auto_pad="SAME_LOWER">(x, w)', "Convolution", weights={"w": w(2, 4, 2, 4)}),
    "conv valid": Case('y = Conv<auto_pad="VALID">(x, w)', "Convolution", weights=CONV),
    "conv 1d": Case("y = Conv<pads=[1, 1], strides=[2]>(x, w)", "Convolution", "x: float[2,4,9]", {"w": w(3, 4, 3)}),
    "conv 3d": Case("y = Conv(x, w)", "Convolution", "x: float[1,2,4,5,6]", {"w": w(3, 2, 2, 3, 2)}),
    "pad into conv": Case(
        "p = Pad(x, s)\n y = Conv(p, w)", "Convolution", weights={**CONV, "s": ints(0, 0, 1, 2, 0, 0, 1, 2)}
    ),
    "unequal pad into conv": Case(
        "p = Pad(x, s)\n y = Conv<strides=[2,2]>(p, w)",
        "Convolution",
        weights={**CONV, "s": ints(0, 0, 0, 0, 0, 0, 1, 1)},
    ),
    "conv transpose": Case(
        "y = ConvTranspose<strides=[2,2], pads=[1,1,1,1]>(x, w, b)",
        "Deconvolution",
        weights={"w": w(4, 3, 4, 4), "b": w(3)},
    ),
    "conv transpose grouped": Case(
        "y = ConvTranspose<group=2, strides=[2,1]>(x, w)", "Deconvolution", weights={"w": w(4, 3, 2, 3)}
    ),
    "conv transpose dilated": Case(
        "y = ConvTranspose<dilations=[2,1]>(x, w)", "Deconvolution", weights={"w": w(4, 3, 2, 3)}
    ),
    "conv transpose output padding": Case(
        "y = ConvTranspose<strides=[2,2], pads=[1,1,1,1], output_padding=[1,1]>(x, w, b)",
        "Deconvolution Slice Slice Silence",
        weights={"w": w(4, 3, 3, 3), "b": w(3)},
    ),
    "conv transpose grown": Case(
        "y = ConvTranspose<strides=[3,3], output_padding=[1,2]>(x, w, b)",
        "Deconvolution",
        weights={"w": w(4, 3, 3, 3), "b": w(3)},
    ),
    "conv transpose unequal": Case(
        "y = ConvTranspose<strides=[2,2], pads=[0,1,1,0]>(x, w)",
        "Deconvolution Slice Slice Silence",
        weights={"w": w(4, 3, 3, 3)},
    ),
    "conv transpose shaped": Case(
        "y = ConvTranspose<strides=[2,2], output_shape=[15, 18]>(x, w)", "", weights={"w": w(4, 3, 3, 3)}
    ),
    "conv transpose same": Case(
        'y = ConvTranspose<strides=[2,2], auto_pad="SAME_UPPER">(x, w)', "", weights={"w": w(4, 3, 3, 3)}
    ),
    # dense
    "gemm": Case("y = Gemm(x, w, b)", "InnerProduct", "x: float[3,5]", {"w": w(5, 4), "b": w(4)}),
    "gemm transposed": Case("y = Gemm<transB=1>(x, w)", "InnerProduct", "x: float[3,5]", {"w": w(4, 5)}),
    "gemm alpha beta": Case(
        "y = Gemm<alpha=0.5, beta=2.0>(x, w, b)", "InnerProduct", "x: float[3,5]", {"w": w(5, 4), "b": w(1, 4)}
    ),
    "gemm one bias": Case("y = Gemm(x, w, b)", "InnerProduct", "x: float[3,5]", {"w": w(5, 4), "b": w(1)}),
    "flatten gemm": Case("f = Flatten(x)\n y = Gemm(f, w)", "InnerProduct", weights={"w": w(252, 4)}),
    "reshape gemm": Case(
        "f = Reshape(x, s)\n y = Gemm(f, w)", "InnerProduct", weights={"w": w(252, 4), "s": ints(-1, 252)}
    ),
    "reshape of the batch": Case(
        "f = Reshape(x, s)\n y = Gemm(f, w)", "Reshape InnerProduct", weights={"w": w(9, 4), "s": ints(-1, 9)}
    ),
    "flatten read twice": Case(
        "f = Flatten(x)\n g = Gemm(f, w)\n h = Gemm(f, w)\n y = Add(g, h)",
        "Flatten InnerProduct InnerProduct Eltwise",
        weights={"w": w(252, 4)},
    ),
    "matmul": Case("y = MatMul(x, w)", "InnerProduct", "x: float[2,3,5]", {"w": w(5, 4)}),
    "matmul add": Case(
        "m = MatMul(x, w)\n y = Add(b, m)", "InnerProduct", "x: float[2,3,5]", {"w": w(5, 4), "b": w(4)}
    ),
    "conv add": Case("c = Conv(x, w)\n y = Add(c, t)", "Convolution", weights={**CONV, "t": w(1, 6, 1, 1)}),
    "embed": Case("y = Gather(t, x)", "Embed", "x: int64[2,3]", {"t": w(4, 6)}),
    "embed of floats": Case("i = Cast<to=7>(x)\n y = Gather(t, i)", "Embed", "x: float[2,3]", {"t": w(9, 6)}),
    # pooling
    "max pool": Case("y = MaxPool<kernel_shape=[3,3], strides=[2,2]>(x)", "Pooling"),
    "max pool ceil": Case("y = MaxPool<kernel_shape=[2,2], strides=[2,2], ceil_mode=1>(x)", "Pooling"),
    "max pool floor": Case("y = MaxPool<kernel_shape=[2,2], strides=[2,2]>(x)", "Pooling", options=FLOOR),
    "max pool cut": Case(
        "y = MaxPool<kernel_shape=[2,2], strides=[2,2]>(x)", "Slice Slice Pooling Silence", options=CROP
    ),
    "max pool padded": Case("y = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(x)", "Pooling"),
    "max pool resnet floor": Case(
        "y = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(x)",
        "Pooling",
        "x: float[1,2,8,10]",
        options=FLOOR,
    ),
    "max pool resnet cut": Case(
        "y = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(x)",
        "Pooling Slice Slice Silence",
        "x: float[1,2,8,10]",
        options=CROP,
    ),
    "max pool resnet zeros": Case(
        "r = Relu(x)\n y = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(r)",
        "ReLU Convolution Slice Slice Pooling Silence",
        "x: float[1,2,8,10]",
        options=PAD,
    ),
    "max pool same": Case(
        'y = MaxPool<kernel_shape=[2,2], auto_pad="SAME_UPPER">(x)', "Pooling Slice Slice Silence", options=CROP
    ),
    "max pool pads behind": Case(
        "y = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[0,0,1,1]>(x)", "Pooling", "x: float[1,2,8,10]"
    ),
    "max pool 1d": Case("y = MaxPool<kernel_shape=[3], strides=[2]>(x)", "Reshape Pooling Reshape", "x: float[2,3,9]"),
    "zeros into max pool": Case(
        "r = Relu(x)\n p = Pad(r, s)\n y = MaxPool<kernel_shape=[3,3]>(p)",
        "ReLU Pooling",
        weights={"s": ints(0, 0, 1, 1, 0, 0, 1, 1)},
    ),
    "zeros before max pool": Case(
        "p = Pad(x, s)\n y = MaxPool<kernel_shape=[3,3]>(p)",
        "Convolution Pooling",
        weights={"s": ints(0, 0, 1, 1, 0, 0, 1, 1)},
    ),
    "average pool": Case("y = AveragePool<kernel_shape=[3,3], strides=[2,2]>(x)", "Pooling"),
    "average pool counting pads": Case(
        "y = AveragePool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1], count_include_pad=1>(x)", "Pooling"
    ),
    "average pool not counting pads": Case(
        "y = AveragePool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(x)", "Pooling Scale"
    ),
    "average pool ceil": Case("y = AveragePool<kernel_shape=[2,2], strides=[2,2], ceil_mode=1>(x)", "Pooling"),
    "average pool ceil not counting": Case(
        "y = AveragePool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1], ceil_mode=1>(x)",
        "Pooling Scale",
        "x: float[1,2,8,10]",
    ),
    "average pool ceil counting": Case(
        "y = AveragePool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1], ceil_mode=1, count_include_pad=1>(x)",
        "Pooling",
        "x: float[1,2,8,10]",
        opset=19,
    ),
    "average pool floor": Case("y = AveragePool<kernel_shape=[2,2], strides=[2,2]>(x)", "Pooling", options=FLOOR),
    "average pool cut": Case(
        "y = AveragePool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1], count_include_pad=1>(x)",
        "",
        "x: float[1,2,8,10]",
        options=CROP,
    ),
    "average pool cut not counting": Case(
        "y = AveragePool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(x)", "", "x: float[1,2,8,10]", options=CROP
    ),
    "average pool zeros": Case(
        "y = AveragePool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1], count_include_pad=1>(x)",
        "",
        "x: float[1,2,8,10]",
        options=PAD,
    ),
    "average pool zeros not counted": Case(
        "y = AveragePool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(x)", "", "x: float[1,2,8,10]", options=PAD
    ),
    "zeros into average pool": Case(
        "p = Pad(x, s)\n y = AveragePool<kernel_shape=[3,3]>(p)", "Pooling", weights={"s": ints(0, 0, 1, 1, 0, 0, 1, 1)}
    ),
    "average pool 1d": Case("y = AveragePool<kernel_shape=[2]>(x)", "Reshape Pooling Reshape", "x: float[2,3,9]"),
    "global average": Case("y = GlobalAveragePool(x)", "Pooling"),
    "global max": Case("y = GlobalMaxPool(x)", "Pooling"),
    "global max 1d": Case("y = GlobalMaxPool(x)", "", "x: float[2,3,9]"),
    # functions
    "relu": Case("y = Relu(x)", "ReLU"),
    "leaky relu": Case("y = LeakyRelu<alpha=0.2>(x)", "ReLU"),
    "prelu": Case("y = PRelu(x, s)", "PReLU", weights={"s": w(4, 1, 1)}),
    "prelu shared": Case("y = PRelu(x, s)", "PReLU", weights={"s": w(1)}),
    "sigmoid": Case("y = Sigmoid(x)", "Sigmoid"),
    "tanh": Case("y = Tanh(x)", "TanH"),
    "elu": Case("y = Elu<alpha=0.5>(x)", "ELU"),
    "selu": Case("y = Selu(x)", "ELU Power"),
    "celu": Case("y = Celu<alpha=2.0>(x)", "Power ELU Power"),
    "softplus": Case("y = Softplus(x)", "BNLL"),
    "exp": Case("y = Exp(x)", "Exp"),
    "log": Case("a = Abs(x)\n y = Log(a)", "AbsVal Log"),
    "sqrt": Case("a = Abs(x)\n y = Sqrt(a)", "AbsVal Power"),
    "reciprocal": Case("y = Reciprocal(x)", "Power"),
    "neg": Case("y = Neg(x)", "Power"),
    "pow": Case("a = Abs(x)\n y = Pow(a, e)", "AbsVal Power", weights={"e": const(1.5, shape=())}),
    "relu6": Case("y = Clip(x, a, z)", "Clip", weights={"a": const(0, shape=()), "z": const(6, shape=())}),
    "clip from below": Case("y = Clip(x, a)", "ReLU", weights={"a": const(0, shape=())}),
    "clip from above": Case("y = Clip(x, , z)", "Clip", weights={"z": const(0.5, shape=())}),
    "clip by attributes": Case("y = Clip<min=-0.5, max=0.25>(x)", "Clip", opset=10),
    "hard sigmoid": Case("y = HardSigmoid<alpha=0.3, beta=0.4>(x)", "Power Clip"),
    "hard swish": Case("y = HardSwish(x)", "Power Clip Eltwise"),
    "hard swish of a line": Case(
        "t = Mul(x, c)\n y = HardSwish(t)", "Power Power Clip Eltwise", weights={"c": const(2)}
    ),
    "mish": Case("y = Mish(x)", "BNLL TanH Eltwise", opset=18),
    "swish": Case("s = Sigmoid(x)\n y = Mul(x, s)", "Sigmoid Eltwise"),
    "threshold": Case("g = Greater(x, c)\n y = Cast<to=1>(g)", "Threshold", weights={"c": const(0.3)}),
    # arithmetic
    "line": Case(
        "a = Mul(x, m)\n b = Add(a, s)\n y = Pow(b, e)",
        "Power",
        weights={"m": const(2), "s": const(3, shape=()), "e": const(2, shape=(1,))},
    ),
    "lines": Case(
        "a = Mul(x, m)\n b = Sub(s, a)\n y = Div(b, m)", "Power", weights={"m": const(2), "s": const(3, shape=())}
    ),
    "power twice": Case("a = Abs(x)\n b = Sqrt(a)\n y = Reciprocal(b)", "AbsVal Power Power"),
    "divided": Case("a = Abs(x)\n y = Div(c, a)", "AbsVal Power Power", weights={"c": const(3)}),
    "scale": Case("y = Mul(x, m)", "Scale", weights={"m": w(1, 4, 1, 1)}),
    "scale and shift": Case(
        "a = Mul(x, m)\n y = Add(a, s)", "Scale", weights={"m": w(4, 1, 1), "s": w(4, 1, 1, seed=9)}
    ),
    "scale twice": Case("a = Mul(x, m)\n y = Mul(a, s)", "Scale", weights={"m": w(4, 1, 1), "s": w(4, 1, 1, seed=9)}),
    "scale of places": Case("y = Mul(x, m)", "Scale", weights={"m": w(7, 9)}),
    "scale with a gap": Case("y = Mul(x, m)", "Scale", weights={"m": w(4, 1, 9)}),
    "scale of items": Case("y = Mul(x, m)", "Scale", weights={"m": w(2, 4, 7, 9)}),
    "shift": Case("y = Add(x, s)", "Bias", weights={"s": w(4, 1, 1)}),
    "shift twice": Case("a = Add(x, s)\n y = Sub(a, t)", "Bias", weights={"s": w(4, 1, 1), "t": w(1, 4, 1, 1)}),
    "constant less blob": Case("y = Sub(s, x)", "Power Bias", weights={"s": w(4, 1, 1)}),
    "constant by blob": Case("y = Div(s, x)", "Power Scale", weights={"s": w(4, 1, 1)}),
    "blob by constant": Case("y = Div(x, s)", "Scale", weights={"s": positive(4, 1, 1)}),
    "add": Case("a = Relu(x)\n y = Add(a, x)", "ReLU Eltwise"),
    "sub": Case("a = Relu(x)\n y = Sub(a, x)", "ReLU Eltwise"),
    "mul": Case("a = Relu(x)\n y = Mul(a, x)", "ReLU Eltwise"),
    "div": Case("a = Exp(x)\n y = Div(x, a)", "Exp Power Eltwise"),
    "square": Case("y = Mul(x, x)", "Eltwise"),
    "sum": Case("a = Relu(x)\n b = Abs(x)\n y = Sum(a, x, b)", "ReLU AbsVal Eltwise"),
    "mean": Case("a = Relu(x)\n b = Abs(x)\n y = Mean(a, x, b)", "ReLU AbsVal Eltwise"),
    "max": Case("a = Neg(x)\n y = Max(a, x)", "Power Eltwise"),
    "min": Case("a = Neg(x)\n y = Min(a, x)", ""),
    "squeeze and excite": Case(
        "p = GlobalAveragePool(x)\n s = Sigmoid(p)\n y = Mul(x, s)", "Pooling Sigmoid Flatten Scale"
    ),
    "added to all places": Case("p = GlobalAveragePool(x)\n y = Add(p, x)", "Pooling Flatten Bias"),
    "less the mean": Case("p = GlobalAveragePool(x)\n y = Sub(x, p)", "Pooling Power Flatten Bias"),
    "by the maximum": Case("p = GlobalMaxPool(x)\n y = Div(x, p)", "Pooling Power Flatten Scale"),
    "attention of places": Case(
        "c = Conv(x, w)\n y = Mul(x, c)", "Convolution Tile Eltwise", weights={"w": w(1, 4, 1, 1)}
    ),
    "both repeated": Case("y = Add(x, z)", "Tile Reshape Tile Tile Eltwise", "x: float[2,3,1]; z: float[1,4]"),
    # normalisation
    "batch norm": Case(f"y = {BN}(x, g, b, m, v)", "BatchNorm Scale", weights=STATISTICS),
    "batch norm plain": Case(
        "y = BatchNormalization(x, g, b, m, v)",
        "BatchNorm",
        weights={**STATISTICS, "g": np.ones(4, np.float32), "b": np.zeros(4, np.float32)},
    ),
    "batch norm of vectors": Case(f"y = {BN}(x, g, b, m, v)", "BatchNorm Scale", "x: float[3,4]", STATISTICS),
    "batch norm behind conv": Case(
        f"c = Conv(x, w, z)\n y = {BN}(c, g, b, m, v)",
        "Convolution BatchNorm Scale",
        weights={**STATISTICS, "w": w(4, 4, 3, 3), "z": w(4, seed=8)},
    ),
    "batch norm into conv": Case(
        f"c = Conv(x, w, z)\n y = {BN}(c, g, b, m, v)",
        "Convolution",
        weights={**STATISTICS, "w": w(4, 4, 3, 3), "z": w(4, seed=8)},
        options=FOLD,
    ),
    "batch norm into conv without bias": Case(
        f"c = Conv(x, w)\n y = {BN}(c, g, b, m, v)",
        "Convolution",
        weights={**STATISTICS, "w": w(4, 4, 3, 3)},
        options=FOLD,
    ),
    "batch norm into conv transpose": Case(
        f"c = ConvTranspose<group=2>(x, w)\n y = {BN}(c, g, b, m, v)",
        "Deconvolution",
        weights={**STATISTICS, "w": w(4, 2, 3, 3)},
        options=FOLD,
    ),
    "batch norm into gemm": Case(
        f"c = Gemm(x, w)\n y = {BN}(c, g, b, m, v)",
        "InnerProduct",
        "x: float[3,5]",
        {**STATISTICS, "w": w(5, 4)},
        options=FOLD,
    ),
    "batch norm not folded": Case(
        f"c = Conv(x, w)\n n = {BN}(c, g, b, m, v)\n y = Add(n, c)",
        "Convolution BatchNorm Scale Eltwise",
        weights={**STATISTICS, "w": w(4, 4, 3, 3)},
        options=FOLD,
    ),
    "lrn": Case("y = LRN<size=3, alpha=0.2, beta=0.5, bias=2.0>(x)", "LRN"),
    "softmax": Case("y = Softmax<axis=1>(x)", "Softmax"),
    "softmax of the last": Case("y = Softmax(x)", "Softmax"),
    "softmax of old": Case("y = Softmax(x)", "Flatten Softmax Reshape", opset=11),
    "softmax of old vectors": Case("y = Softmax(x)", "Softmax", "x: float[2,5]", opset=11),
    "mvn": Case("y = MeanVarianceNormalization<axes=[2,3]>(x)", "MVN"),
    # shapes
    "identity": Case("a = Identity(x)\n b = Dropout(a)\n y = Relu(b)", "ReLU"),
    "identity alone": Case("y = Identity(x)", "Split"),
    "flatten": Case("y = Flatten(x)", "Flatten"),
    "flatten at 2": Case("y = Flatten<axis=2>(x)", "Reshape"),
    "reshape": Case("y = Reshape(x, s)", "Reshape", weights={"s": ints(0, 2, -1, 9)}),
    "reshape of a shape": Case(
        "s = Shape(x)\n n = Gather<axis=0>(s, i)\n u = Unsqueeze(n, z)\n c = Concat<axis=0>(u, m)\n y = Reshape(x, c)",
        "Flatten",
        weights={"i": np.array(0), "z": ints(0), "m": ints(-1)},
    ),
    "reshape by constants": Case("s = Constant<value_ints=[2,-1]>()\n y = Reshape(x, s)", "Flatten"),
    "shape sliced": Case(
        "s = Shape(x)\n a = Slice(s, z, t)\n c = Concat<axis=0>(a, m)\n k = Cast<to=7>(c)\n y = Reshape(x, k)",
        "Reshape",
        weights={"z": ints(0), "t": ints(2), "m": ints(-1)},
    ),
    "squeeze": Case("p = GlobalAveragePool(x)\n y = Squeeze(p, a)", "Pooling Flatten", weights={"a": ints(2, 3)}),
    "squeeze by attribute": Case("p = GlobalAveragePool(x)\n y = Squeeze<axes=[3]>(p)", "Pooling Reshape", opset=11),
    "unsqueeze": Case("y = Unsqueeze(x, a)", "Reshape", "x: float[2,3]", {"a": ints(2, 3)}),
    "transpose": Case("y = Transpose<perm=[0,2,3,1]>(x)", "Permute"),
    "transpose of ones": Case("p = GlobalAveragePool(x)\n y = Transpose<perm=[0,2,3,1]>(p)", "Pooling Reshape"),
    "shuffle": Case(
        "a = Reshape(x, s)\n b = Transpose<perm=[0,2,1,3,4]>(a)\n y = Reshape(b, t)",
        "Reshape Permute Reshape",
        weights={"s": ints(0, 2, 2, 7, 9), "t": ints(0, -1, 7, 9)},
    ),
    "reshape back": Case(
        "a = Reshape(x, s)\n b = Reshape(a, t)\n y = Relu(b)", "ReLU", weights={"s": ints(0, -1), "t": ints(0, 4, 7, 9)}
    ),
    "depth to space": Case("y = DepthToSpace<blocksize=2>(x)", "Reshape Permute Reshape"),
    "depth to space by columns": Case('y = DepthToSpace<blocksize=2, mode="CRD">(x)', "Reshape Permute Reshape"),
    "space to depth": Case("y = SpaceToDepth<blocksize=2>(x)", "Reshape Permute Reshape", "x: float[2,3,4,6]"),
    "concat": Case("a = Relu(x)\n y = Concat<axis=1>(a, x)", "ReLU Concat"),
    "concat of places": Case("a = Relu(x)\n y = Concat<axis=-1>(a, x)", "ReLU Concat"),
    "concat with a constant": Case("y = Concat<axis=0>(x, c)", "Parameter Concat", weights={"c": w(1, 4, 7, 9)}),
    "split": Case("a, b = Split<axis=1>(x)\n y = Sub(a, b)", "Slice Eltwise"),
    "split unequal": Case("a, y = Split<axis=1>(x, s)", "Slice Silence", weights={"s": ints(1, 3)}),
    "split by attribute": Case("a, y = Split<axis=3, split=[2,7]>(x)", "Slice Silence", opset=11),
    "slice": Case("y = Slice(x, s, e, a)", "Slice Silence", weights={"s": ints(1), "e": ints(3), "a": ints(1)}),
    "slice from behind": Case(
        "y = Slice(x, s, e, a)", "Slice Slice Silence", weights={"s": ints(-5, 1), "e": ints(9**9, -2), "a": ints(2, 3)}
    ),
    "slice every second": Case(
        "y = Slice(x, s, e, a, t)",
        "Slice Slice Convolution Silence",
        weights={"s": ints(1, 1), "e": ints(99, 99), "a": ints(2, 3), "t": ints(2, 2)},
    ),
    "slice backwards": Case(
        "y = Slice(x, s, e, a, t)", "", weights={"s": ints(-1), "e": ints(-99), "a": ints(1), "t": ints(-1)}
    ),
    "slice by attributes": Case("y = Slice<starts=[1], ends=[3], axes=[2]>(x)", "Slice Silence", opset=9),
    "slice of nothing": Case(
        "a = Slice(x, s, e, a0)\n y = Relu(a)", "ReLU", weights={"s": ints(0), "e": ints(2**62), "a0": ints(1)}
    ),
    "gather channels": Case("y = Gather<axis=1>(x, i)", "", weights={"i": ints(2, 1, 0)}),
    "gather one": Case("y = Gather<axis=1>(x, i)", "Slice Reshape Silence", weights={"i": np.array(1)}),
    "pad": Case("p = Pad(x, s)\n y = Relu(p)", "Convolution ReLU", weights={"s": ints(0, 0, 1, 1, 0, 0, 1, 1)}),
    "pad unequal": Case(
        "y = Pad(x, s)", "Convolution Slice Slice Silence", weights={"s": ints(0, 0, 0, 2, 0, 0, 1, 1)}
    ),
    "pad channels": Case("y = Pad(x, s)", "Convolution", weights={"s": ints(0, 1, 0, 0, 0, 2, 0, 0)}),
    "pad below 0": Case("y = Pad(x, s)", "", weights={"s": ints(0, 0, -1, 0, 0, 0, 0, -2)}),
    "pad by attribute": Case("y = Pad<pads=[0,0,1,1,0,0,1,1]>(x)", "Convolution", opset=9),
    "pad some axes": Case("y = Pad(x, s, , a)", "", weights={"s": ints(1, 2), "a": ints(-1)}, opset=18),
    "pad twice": Case(
        "p = Pad(x, s)\n q = Pad(p, s)\n y = Conv(q, w)",
        "Convolution",
        weights={**CONV, "s": ints(0, 0, 1, 1, 0, 0, 1, 1)},
    ),
    "expand": Case("y = Expand(x, s)", "Reshape Tile", "x: float[2,3]", {"s": ints(2, 2, 3)}),
    "tile": Case("y = Tile(x, s)", "Tile Tile", weights={"s": ints(1, 2, 1, 3)}),
    # reduction
    "mean of places": Case("y = ReduceMean<axes=[2,3]>(x)", "Pooling"),
    "mean of places without axes": Case("y = ReduceMean<axes=[2,3], keepdims=0>(x)", "Pooling Flatten"),
    "mean by input": Case("y = ReduceMean<keepdims=0>(x, a)", "Pooling Flatten", weights={"a": ints(-1, -2)}, opset=18),
    "max of places": Case("y = ReduceMax<axes=[2,3]>(x)", "Pooling"),
    "sum of an item": Case("y = ReduceSum<keepdims=0>(x, a)", "Reduction", weights={"a": ints(1, 2, 3)}),
    "sum of the last": Case("y = ReduceSum(x, a)", "Reduction Reshape", weights={"a": ints(-1)}),
    "sum of all": Case("y = ReduceSum<keepdims=0>(x)", "Reduction"),
    "l1": Case("y = ReduceL1<axes=[3]>(x)", "Reduction Reshape"),
    "squares": Case("y = ReduceSumSquare<axes=[1,2,3], keepdims=0>(x)", "Reduction"),
    # sizes
    "nearest": Case(
        'y = Resize<mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor">(x, , s)',
        "Deconvolution",
        weights={"s": const(1, 1, 2, 3)},
    ),
    "nearest half pixel": Case('y = Resize<mode="nearest">(x, , s)', "Deconvolution", weights={"s": const(1, 1, 2, 2)}),
    "nearest to sizes": Case('y = Resize<mode="nearest">(x, , , s)', "Deconvolution", weights={"s": ints(2, 4, 21, 9)}),
    "nearest half": Case(
        'y = Resize<mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor">(x, , s)',
        "",
        "x: float[1,2,8,6]",
        {"s": const(1, 1, 0.5, 0.5)},
    ),
    "upsample": Case('y = Upsample<mode="nearest">(x, s)', "Deconvolution", weights={"s": const(1, 1, 2, 2)}, opset=9),
    "resize of old": Case(
        'y = Resize<mode="nearest">(x, s)', "Deconvolution", weights={"s": const(1, 1, 2, 2)}, opset=10
    ),
    # outputs
    "two outputs": Case("y = Relu(x)\n z = Exp(x)", "ReLU Exp", outputs="y, z"),
    "constant output": Case("y = Relu(x)\n z = Mul(c, c)", "ReLU Parameter", weights={"c": w(3)}, outputs="y, z"),
    "unused node": Case("y = Relu(x)\n z = Exp(x)", "ReLU"),
    "weights of weights": Case(
        "v = Mul(w, c)\n t = Transpose<perm=[1,0,2,3]>(v)\n y = Conv(x, t)",
        "Convolution",
        weights={"w": w(4, 3, 3, 3), "c": const(2)},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_rule_computes_what_onnx_runtime_does(name: str) -> None:
    case = CASES[name]
    made = model(case.inputs, case.body, case.outputs, case.opset, case.weights)
    imported = same(made, case.options)
    if case.layers:
        assert types(imported) == case.layers.split()
