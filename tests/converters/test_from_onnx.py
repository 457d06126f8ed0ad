"""From ONNX to Caffe: every rule against ONNX Runtime, refusals, hostile files, and our own exports that come back."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
import torch
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper, numpy_helper

import caffe_compat as cc
from caffe_compat.errors import BinaryError, ConversionError, Problems, VggcError
from caffe_compat.graph import Graph, ParamKey
from caffe_compat.schema import pb
from caffe_compat.textformat import parse
from caffe_compat.upgrade import upgrade_net
from caffe_compat.weights import Blob, Weights
from converters.convert import Options, convert
from converters.from_onnx import from_onnx
from converters.importing.options import ImportOptions
from converters.importing.program import Op, Program
from converters.importing.translation import REASONS, rules, translate
from converters.model import Model
from converters.onnx import Options as OnnxOptions
from converters.onnx import write as write_onnx
from converters.streaming import Payloads, Target
from converters.to_caffe import model_of
from tests import models
from tests.converters.importing import Array, feeds, in_caffe, in_ort, model, same, types
from tests.shared import ROOT
from tests.tolerances import ENGINES

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
    "bilinear between corners": Case(
        'y = Resize<mode="linear", coordinate_transformation_mode="align_corners">(x, , , s)',
        "Interp",
        weights={"s": ints(2, 4, 13, 20)},
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


def test_every_rule_has_a_case() -> None:
    tried = {word.split("(")[0].split("<")[0] for case in CASES.values() for word in case.body.split()}
    assert set(rules()) <= tried | {"Swish", "Silu"}, "Swish came with operator set 24, Silu is torch's"
    assert not set(REASONS) & set(rules())


def test_the_newest_swish() -> None:
    op = Op("Swish", "s", ("x",), ("y",), {"alpha": 2.0})
    made = translate(Program("net", "", {"x": (2, 3)}, ("y",), (op,), {}))
    x = w(2, 3)
    assert np.allclose(in_caffe(made, {"x": x})["y"], x / (1 + np.exp(-2 * x)), atol=1e-6)


# -- pooling that rounds down ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize("rewrite", ["floor", "crop", "pad"])
@pytest.mark.parametrize("count", [0, 1])
def test_every_way_of_rounding_down_is_exact(kind: str, rewrite: str, count: int) -> None:
    """Kernels, strides, pads and sizes at random; a way may be refused, but never differ."""
    rng = np.random.default_rng(7)
    done = 0
    for _ in range(60):
        kernel, size = rng.integers(1, 5, 2), rng.integers(5, 14, 2)
        stride = rng.integers(1, 4, 2)
        pads = [int(rng.integers(0, k)) for k in (*kernel, *kernel)]
        text = f"kernel_shape={kernel.tolist()}, strides={stride.tolist()}, pads={pads}"
        text += f", count_include_pad={count}" if kind == "AveragePool" else ""
        made = model(f"x: float[1, 2, {size[0]}, {size[1]}]", f"r = Relu(x)\n y = {kind}<{text}>(r)")
        with suppress(ConversionError):
            same(made, ImportOptions(pool_rewrite=rewrite))
            done += 1
    assert done >= 15


def test_rounding_down_is_refused_by_default() -> None:
    made = model("x: float[1,2,8,8]", "y = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(x)")
    with pytest.raises(ConversionError, match="4 x 4, Caffe, which rounds up, has 5 x 5") as error:
        from_onnx(made)
    assert '"floor", "crop"' in error.value.remedy
    assert '"pad"' not in error.value.remedy, "zeros would win over values below 0"
    with pytest.raises(ConversionError, match="pool_rewrite"):
        ImportOptions(pool_rewrite="round")


# -- what is said ------------------------------------------------------------------------------------------

REFUSED = {
    "LogSoftmax": Case("y = LogSoftmax(x)"),
    "InstanceNormalization": Case("y = InstanceNormalization(x, g, b)", weights={"g": w(4), "b": w(4)}),
    "Erf": Case("y = Erf(x)"),
    "dilations": Case("y = MaxPool<kernel_shape=[2,2], dilations=[2,2]>(x)"),
    "its indices are used": Case("y, z = MaxPool<kernel_shape=[2,2]>(x)", outputs="y, int64 z"),
    "its weight is computed": Case("y = Conv(x, x)"),
    "transposes A": Case("y = Gemm<transA=1>(x, w)", inputs="x: float[5,3]", weights={"w": w(5, 4)}),
    "constants only": Case("y = MatMul(x, x)", inputs="x: float[3,3]"),
    "only A is constant": Case("y = MatMul(w, x)", inputs="x: float[3,3]", weights={"w": w(3, 3)}),
    'mode "reflect"': Case('y = Pad<mode="reflect">(x, s)', weights={"s": ints(0, 0, 1, 1, 0, 0, 1, 1)}),
    "padding with 1": Case("y = Pad(x, s, c)", weights={"s": ints(0, 0, 1, 1, 0, 0, 1, 1), "c": const(1, shape=())}),
    'mode "linear"': Case('y = Resize<mode="linear">(x, , s)', weights={"s": const(1, 1, 2, 2)}),
    "no whole factor": Case('y = Resize<mode="nearest">(x, , s)', weights={"s": const(1, 1, 1.5, 1.5)}),
    "odd size": Case("y = LRN<size=4>(x)"),
    "training mode": Case("y, q, r = BatchNormalization<training_mode=1>(x, g, b, m, v)", weights=STATISTICS),
    "last axes only": Case("y = ReduceMean<axes=[1]>(x)"),
    "fractions are dropped": Case("i = Cast<to=7>(x)\n y = Cast<to=1>(i)"),
    "whole numbers": Case("i = Cast<to=7>(x)\n y = Mul(i, i)", outputs="int64 y"),
    "one for each channel": Case("y = PRelu(x, s)", weights={"s": w(9)}),
    "min 1 above max 0": Case("y = Clip(x, a, z)", weights={"a": const(1, shape=()), "z": const(0, shape=())}),
    "enlarges": Case("y = Add(x, s)", inputs="x: float[2,1]", weights={"s": w(2, 5)}),
    "2 exponents": Case("y = Pow(x, e)", inputs="x: float[3,2]", weights={"e": const(2, 3)}),
    "division by a constant 0": Case("y = Div(x, z)", weights={"z": const(0)}),
    "two axes": Case("y = MaxPool<kernel_shape=[2,2,2]>(x)", inputs="x: float[1,2,4,4,4]"),
    "larger than its input": Case("y = Conv(x, w)", weights={"w": w(2, 4, 9, 9)}),
    "before operator set 19": Case(
        "y = AveragePool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1], ceil_mode=1, count_include_pad=1>(x)",
        inputs="x: float[1,2,8,10]",
    ),
    "takes the last": Case("y = ArgMax<axis=1>(x)", outputs="int64 y"),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_has_no_form_is_refused(reason: str) -> None:
    case = REFUSED[reason]
    made = model(case.inputs, case.body, case.outputs, case.opset, case.weights)
    with pytest.raises(ConversionError) as error:
        from_onnx(made)
    assert reason in f"{error.value.what}; {error.value.remedy}"
    assert 'node "' in str(error.value.where)
    assert error.value.remedy


def test_all_refusals_come_at_once() -> None:
    body = "a = Erf(x)\n b = LRN<size=2>(a)\n c = Mish(x)\n d = Sum(b, c)\n y = LogSoftmax(d)"
    with pytest.raises(Problems) as error:
        from_onnx(model(IMAGE, body, opset=18))
    assert [str(each).split(":")[2].strip() for each in error.value.errors] == ["Erf", "LRN", "LogSoftmax"]


def test_what_nothing_needs_is_not_judged() -> None:
    assert types(same(model(IMAGE, "a = Erf(x)\n y = Relu(x)"))) == ["ReLU"]


def test_names_come_from_weights_nodes_and_tensors() -> None:
    made = model(IMAGE, "c = Conv(x, w)\n r = Relu(c)\n y = Exp(r)", weights={"w": w(3, 4, 1, 1)})
    made.graph.initializer[0].name = made.graph.node[0].input[1] = "stem.conv.weight"
    made.graph.node[1].name, made.graph.node[2].name = "/stem/act/Relu", "/Exp"
    found = from_onnx(made).net
    assert [(layer.name, list(layer.top)) for layer in found.layer[1:]] == [
        ("stem.conv", ["c"]), ("stem/act", ["r"]), ("exp", ["y"]),
    ]  # fmt: skip


def test_an_output_that_is_read_as_well_keeps_its_name() -> None:
    made = same(model(IMAGE, "a = Relu(x)\n y = Exp(a)\n z = Identity(a)", "y, a, z"))
    assert types(made) == ["ReLU", "Exp", "Split"]


def test_an_input_that_is_not_used_is_left_out() -> None:
    made = from_onnx(model("x: float[2,3]; z: float[1]", "y = Relu(x)"))
    assert [layer.name for layer in made.net.layer] == ["x", "y"]
    assert made.losses == ('input "z" is not used and left out',)


@pytest.mark.parametrize("batch", [1, 3])
def test_an_open_batch_is_put_in(batch: int) -> None:
    body = "f = Reshape(x, s)\n y = Gemm(f, w)"
    made = model("x: float[N, 2, 3]", body, weights={"s": ints(0, -1), "w": w(6, 4)})
    imported = same(made, ImportOptions(batch=batch), batch)
    assert list(imported.net.layer[0].input_param.shape[0].dim) == [batch, 2, 3]
    assert types(imported) == ["InnerProduct"]


def test_other_open_sizes_have_to_be_given() -> None:
    made = model("x: float[N, 3, H, W]", "y = Relu(x)")
    with pytest.raises(ConversionError, match=r"\(1, 3, H, W\)") as error:
        from_onnx(made)
    assert "--input-shape" in error.value.remedy
    found = from_onnx(made, ImportOptions(input_shapes={"x": (2, 3, 8, 9)}))
    assert list(found.net.layer[0].input_param.shape[0].dim) == [2, 3, 8, 9]
    for shape in ((2, 4, 8, 9), (2, 3, 8), (2, 3, 0, 9)):
        with pytest.raises(ConversionError, match="give a shape that agrees"):
            from_onnx(made, ImportOptions(input_shapes={"x": shape}))
    with pytest.raises(ConversionError, match="no input called z"):
        from_onnx(model(IMAGE, "y = Relu(x)"), ImportOptions(input_shapes={"z": (1,)}))


def test_halves_and_doubles_become_float32() -> None:
    for kind in (np.float16, np.float64):
        made = model(IMAGE, "c = Cast<to=1>(w)\n y = Conv(x, c)", weights={"w": w(3, 4, 1, 1).astype(kind)})
        imported = same(made)
        assert any("of other precision" in note for note in imported.losses)


def test_folding_tells_what_it_cost() -> None:
    case = CASES["batch norm into conv"]
    made = same(model(case.inputs, case.body, weights=case.weights), FOLD)
    (note,) = made.notes
    assert 'in the weights of "c": factors' in note
    assert float(note.rpartition("cost at most ")[2].split()[0]) < 1e-7


# -- hostile files -----------------------------------------------------------------------------------------


def broken(change: Any, body: str = "y = Conv(x, w)") -> onnx.ModelProto:
    made = model(IMAGE, body, weights={"w": w(3, 4, 1, 1)})
    change(made)
    return made


def tensor(**fields: Any) -> Any:
    """A change: the weight as stated."""

    def change(made: onnx.ModelProto) -> None:
        made.graph.initializer[0].CopyFrom(TensorProto(name="w", **fields))

    return change


def node(kind: str, inputs: list[str], outputs: list[str], at: int = 0) -> Any:
    return lambda made: made.graph.node.insert(at, helper.make_node(kind, inputs, outputs))


HUGE = 2**62
HOSTILE: dict[str, tuple[Any, str]] = {
    "claims 2^62 values": (tensor(dims=[HUGE], data_type=1, raw_data=b"1234"), "1 values; its sizes"),
    "claims a product beyond 64 bits": (tensor(dims=[2**40, 2**40], data_type=1, raw_data=b""), "0 values"),
    "negative size": (tensor(dims=[-1, 4], data_type=1, float_data=[1.0]), "has the sizes"),
    "a hundred axes": (tensor(dims=[1] * 100, data_type=1, float_data=[1.0]), "has the sizes"),
    "bytes and a half": (tensor(dims=[1], data_type=1, raw_data=b"123456"), "1.5 values"),
    "of strings": (tensor(dims=[1], data_type=8, string_data=[b"x"]), "holds STRING"),
    "of no type": (tensor(dims=[1], data_type=77, raw_data=b"1234"), "holds type 77"),
    "whole numbers": (tensor(dims=[3, 4, 1, 1], data_type=7, int64_data=[2**40 + 1] * 12), "float32 cannot hold"),
    "of other rank": (tensor(dims=[12], data_type=1, float_data=[1.0] * 12), "weight of"),
    "missing weight": (lambda made: made.graph.ClearField("initializer"), "initializer or input is missing"),
    "a circle": (node("Add", ["y", "x"], ["a"]), "circle"),
    "itself": (lambda made: made.graph.node[0].input.__setitem__(0, "y"), "circle"),
    "made twice": (node("Relu", ["x"], ["y"]), "made twice"),
    "an output of nothing": (lambda made: made.graph.output[0].__setattr__("name", "z"), "nothing makes the output"),
    "no output": (lambda made: made.graph.ClearField("output"), "no output"),
    "sparse": (lambda made: made.graph.sparse_initializer.add(), "sparse"),
    "another domain": (lambda made: made.graph.node[0].__setattr__("domain", "com.evil"), "com.evil"),
    "an enormous input": (
        lambda made: made.graph.input[0].type.tensor_type.shape.dim[1].__setattr__("dim_value", HUGE),
        "has the shape",
    ),
    "an input without type": (lambda made: made.graph.input[0].ClearField("type"), "has the shape"),
    "pads of 2^62": (
        lambda made: made.graph.node[0].attribute.append(helper.make_attribute("pads", [HUGE] * 4)),
        "Conv|pads|kernel|Convolution|convolution",
    ),
    "too few pads": (lambda made: made.graph.node[0].attribute.append(helper.make_attribute("pads", [1])), "pads"),
    "stride 0": (lambda made: made.graph.node[0].attribute.append(helper.make_attribute("strides", [0, 1])), "strides"),
    "group 0": (lambda made: made.graph.node[0].attribute.append(helper.make_attribute("group", 0)), "group 0"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_broken_model_is_refused(name: str) -> None:
    change, message = HOSTILE[name]
    with pytest.raises(VggcError, match=message):
        from_onnx(broken(change))


@pytest.mark.parametrize(
    "body",
    [
        "s = Constant<value_ints=[4611686018427387904]>()\n c = ConstantOfShape(s)\n y = Add(x, c)",
        "s = Constant<value_ints=[100000,100000]>()\n c = ConstantOfShape(s)\n y = Add(x, c)",
        "s = Constant<value_ints=[9,1000000,1000000]>()\n k = Constant<value_float=1.0>()\n"
        " c = Expand(k, s)\n y = Add(x, c)",
        "s = Constant<value_ints=[1000000000000]>()\n k = Constant<value_floats=[1.0]>()\n"
        " c = Tile(k, s)\n y = Add(x, c)",
        "a = Constant<value_int=0>()\n b = Constant<value_int=4611686018427387904>()\n d = Constant<value_int=1>()\n"
        " c = Range(a, b, d)\n f = Cast<to=1>(c)\n y = Add(x, f)",
        "k = Constant<value_floats=[1.0]>()\n p = Constant<value_ints=[0,1000000000000]>()\n"
        " c = Pad(k, p)\n y = Add(x, c)",
    ],
)
def test_constants_cannot_grow_without_end(body: str) -> None:
    with pytest.raises(VggcError, match=r"values|cannot be computed"):
        from_onnx(model(IMAGE, body))


def test_many_constants_cannot_grow_together() -> None:
    lines = ["s = Constant<value_ints=[4000,4000]>()"] + [f"c{i} = ConstantOfShape(s)" for i in range(50)]
    lines += [f"y = Sum({', '.join(f'c{i}' for i in range(50))}, x)"]
    with pytest.raises(VggcError, match="claims more than it holds"):
        from_onnx(model("x: float[4000,4000]", "\n ".join(lines)))


def test_a_tensor_far_larger_than_caffe_holds_is_refused() -> None:
    body = "s = Constant<value_ints=[1,1,100000,100000]>()\n y = Expand(x, s)"
    with pytest.raises(VggcError, match="2147483647 values at most"):
        from_onnx(model("x: float[1,1,1,1]", body))


def external(tmp_path: Path, **entries: str) -> Path:
    """A model whose weight lies in another file."""
    folder = tmp_path / "model"
    folder.mkdir()
    made = model(IMAGE, "y = Conv(x, w)", weights={"w": w(3, 4, 1, 1)})
    data = made.graph.initializer[0]
    for path in (folder / "w.bin", tmp_path / "w.bin"):
        path.write_bytes(b"head" + data.raw_data)
    data.ClearField("raw_data")
    data.data_location = TensorProto.EXTERNAL
    for key, value in {"location": "w.bin", "offset": "4", "length": "48", **entries}.items():
        data.external_data.add(key=key, value=value)
    (folder / "m.onnx").write_bytes(made.SerializeToString())
    return folder / "m.onnx"


def test_external_data_beside_the_model_is_read(tmp_path: Path) -> None:
    made = from_onnx(external(tmp_path))
    (blob,) = next(layer.blobs for layer in made.weights if layer.name == "y")
    assert np.array_equal(blob.array, w(3, 4, 1, 1))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"location": "../w.bin"}, "not a plain file"),
        ({"location": "a/../../w.bin"}, "not a plain file"),
        ({"location": "/etc/passwd"}, "not a plain file"),
        ({"location": ""}, "not a plain file"),
        ({"location": "..\\w.bin"}, "not a plain file"),
        ({"location": "w.bin\0"}, "not a plain file"),
        ({"location": "soft.bin"}, "not a plain file"),
        ({"location": "linked/w.bin"}, "not a plain file"),
        ({"location": "none.bin"}, "no such file"),
        ({"location": "."}, "not a plain file|folder"),
        ({"offset": "5"}, "lies at bytes"),
        ({"offset": str(2**63)}, "lies at bytes"),
        ({"offset": "-4"}, 'has the offset "-4"'),
        ({"length": "44"}, "11 values"),
        ({"length": "9" * 30}, "has the length"),
    ],
)
def test_external_data_elsewhere_is_refused(entries: dict[str, str], message: str, tmp_path: Path) -> None:
    path = external(tmp_path, **entries)
    (path.parent / "soft.bin").symlink_to(tmp_path / "w.bin")
    (path.parent / "linked").symlink_to(tmp_path)
    with pytest.raises(BinaryError, match=message):
        from_onnx(path)


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    for data in (b"", b"\xff" * 100, b"not onnx", b"\x08\x08"):
        (tmp_path / "m.onnx").write_bytes(data)
        with pytest.raises(VggcError):
            from_onnx(tmp_path / "m.onnx")
    with pytest.raises(VggcError):
        from_onnx(tmp_path / "none.onnx")


def test_random_damage_never_ends_in_anything_but_an_error() -> None:
    case = CASES["reshape of a shape"]
    whole = model(case.inputs, case.body, weights=case.weights).SerializeToString()
    rng = np.random.default_rng(3)
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(int(rng.integers(1, 6))):
            data[int(rng.integers(len(data)))] = int(rng.integers(256))
        with suppress(VggcError, DecodeError):
            from_onnx(onnx.ModelProto.FromString(bytes(data)))


# -- our own exports ---------------------------------------------------------------------------------------

GOLDEN = ROOT / "tests/data/golden/layers"
MOST_ROUNDS = 3
COMES_BACK = 190
"""Nets of single layers that are exported and come back; the others have no form in ONNX, or none in Caffe again."""


def exported(made: Model, path: Path) -> onnx.ModelProto:
    with Payloads() as payloads, Target(path) as target:
        write_onnx(made, target, payloads, OnnxOptions(17, False))
        target.finish()
        target.rename()
    return onnx.load(path)


def first_export(path: Path, target: Path) -> onnx.ModelProto | None:
    """A net with random weights in ONNX; None when it cannot be built alone, or has no form there."""
    net = upgrade_net(parse(path.read_bytes(), pb.NetParameter, path.name).message).net  # type: ignore[arg-type]
    try:
        graph = Graph.from_net(net, folder=str(GOLDEN))
        arrays = models.with_weights(net).arrays
        blobs = {
            ParamKey(i, k): arrays[node.layer.name, k]
            for i, node in enumerate(graph.nodes)
            for k in range(len(node.params))
            if (node.layer.name, k) in arrays
        }
        made = {key: Blob(values.shape, values.reshape(-1)) for key, values in blobs.items()}
        return exported(Model(graph, made, Weights(())), target)
    except (VggcError, KeyError):
        return None


def test_our_own_exports_come_back_and_stay(tmp_path: Path) -> None:
    came, floor = 0, ImportOptions(pool_rewrite="floor")
    for path in sorted(GOLDEN.glob("*.prototxt")):
        first = first_export(path, tmp_path / "first.onnx")
        if first is None:
            continue
        try:
            imported = same(first, floor)
        except (ConversionError, Problems, BinaryError):
            continue
        for _ in range(MOST_ROUNDS):
            again = from_onnx(exported(model_of(imported), tmp_path / "next.onnx"), floor)
            if again.net == imported.net:
                break
            imported = again
        assert again.net == imported.net, path.name
        for mine, theirs in zip(imported.weights, again.weights, strict=True):
            assert all(np.array_equal(a.values, b.values) for a, b in zip(mine.blobs, theirs.blobs, strict=True)), (
                path.name
            )
        came += 1
    assert came >= COMES_BACK


# -- the command -------------------------------------------------------------------------------------------


def test_the_command_makes_files_that_load(tmp_path: Path) -> None:
    made = model(
        "x: float[2,3,9,9]",
        "c = Conv(x, w)\n p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(c)\n y = Relu(p)",
        weights={"w": w(4, 3, 3, 3)},
    )
    (tmp_path / "m.onnx").write_bytes(made.SerializeToString())
    for generation in ("V2", "V1"):
        options = Options(generation=generation, pool_rewrite="crop", force=True)
        report = convert(tmp_path / "m.onnx", [tmp_path / "n.caffemodel"], options)
        assert (report.format, report.generation) == ("onnx", "V2")
        assert [result.format for result in report.results] == ["caffemodel", "prototxt"]
        arrays = feeds(made)
        net = cc.load(tmp_path / "n.prototxt", tmp_path / "n.caffemodel")
        with torch.no_grad():
            got = net({"x": torch.from_numpy(arrays["x"])})["y"].numpy()
        assert ENGINES.ratio(got, in_ort(made, arrays)["y"]) <= 1
    with pytest.raises(ConversionError, match="as a whole"):
        convert(tmp_path / "m.onnx", [tmp_path / "o.pt"], Options(net=tmp_path / "n.prototxt"))


# -- values that stay in the file ------------------------------------------------------------------------------


def test_large_weights_are_copied_from_where_they_lie(tmp_path: Path) -> None:
    """Of two tensors with one name the last counts, whichever of them is large."""
    large, small = w(64, 64, 5, 5), w(64)
    made = model("x: float[1,64,9,9]", "y = Conv(x, w, b)", weights={"w": large, "b": small})
    path = tmp_path / "m.onnx"
    path.write_bytes(made.SerializeToString())
    imported = from_onnx(path)
    weight, bias = next(layer for layer in imported.weights if layer.blobs).blobs
    assert (weight.path, bias.path) == (str(path), "")
    data = path.read_bytes()[weight.offset : weight.offset + large.nbytes]
    assert data == large.tobytes() == weight.values.tobytes()
    np.testing.assert_array_equal(bias.values, small)
    assert read_model_values(path, made) == read_model_values(tmp_path / "n.onnx", made, twice=True)


def read_model_values(path: Path, made: onnx.ModelProto, twice: bool = False) -> bytes:
    """The kernels that the import gives, when the file has another tensor of that name before."""
    if twice:
        first = numpy_helper.from_array(np.zeros((64, 64, 5, 5), np.float32), "w")
        body = onnx.ModelProto(graph=onnx.GraphProto(initializer=[first])).SerializeToString()
        path.write_bytes(body + made.SerializeToString())
    layers = (layer for layer in from_onnx(path).weights if layer.blobs)
    return next(layers).blobs[0].values.tobytes()
