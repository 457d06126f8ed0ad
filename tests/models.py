"""Small nets with made-up weights, and their caffemodels in every generation and encoding of numbers."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from google.protobuf import text_format
from numpy.typing import NDArray

from caffe_compat.graph import Graph, Node, ParamKey
from caffe_compat.schema import pb

Array = NDArray[np.float32]
Key = tuple[str, int]
"""A parameter blob: layer and index."""

FORMATS = ("safetensors", "pt", "onnx", "h5")
"""Suffixes of files with weights that do not depend on what the file is called."""

NETS = {
    "plain": """
        name: "plain"
        layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 12 dim: 12 } } }
        layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
                convolution_param { num_output: 4 kernel_size: 3 pad: 1 } }
        layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }
        layer { name: "norm1" type: "LRN" bottom: "conv1" top: "norm1" }
        layer { name: "pool1" type: "Pooling" bottom: "norm1" top: "pool1"
                pooling_param { pool: MAX kernel_size: 3 stride: 2 } }
        layer { name: "ip" type: "InnerProduct" bottom: "pool1" top: "ip" inner_product_param { num_output: 5 } }
        layer { name: "drop" type: "Dropout" bottom: "ip" top: "ip" }
        layer { name: "prob" type: "Softmax" bottom: "ip" top: "prob" }
    """,
    "shared": """
        name: "shared"
        layer { name: "data" type: "Input" top: "a" top: "b" input_param { shape { dim: 2 dim: 3 dim: 8 dim: 8 } } }
        layer { name: "one" type: "Convolution" bottom: "a" top: "one" param { name: "w" } param { name: "b" }
                convolution_param { num_output: 4 kernel_size: 3 stride: 2 } }
        layer { name: "two" type: "Convolution" bottom: "b" top: "two" param { name: "w" } param { name: "b" }
                convolution_param { num_output: 4 kernel_size: 3 stride: 2 } }
        layer { name: "both" type: "Concat" bottom: "one" bottom: "two" top: "both" }
        layer { name: "sum" type: "Eltwise" bottom: "one" bottom: "two" top: "sum"
                eltwise_param { coeff: 1 coeff: -0.5 } }
    """,
    "normalised": """
        name: "normalised"
        layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 9 dim: 9 } } }
        layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
                convolution_param { num_output: 6 kernel_size: 3 bias_term: false } }
        layer { name: "bn" type: "BatchNorm" bottom: "conv" top: "conv" }
        layer { name: "scale" type: "Scale" bottom: "conv" top: "conv" scale_param { bias_term: true } }
        layer { name: "relu" type: "PReLU" bottom: "conv" top: "conv" prelu_param { channel_shared: true } }
        layer { name: "gain" type: "Scale" bottom: "conv" top: "gain" scale_param { num_axes: 0 } }
        layer { name: "pool" type: "Pooling" bottom: "gain" top: "pool"
                pooling_param { pool: AVE kernel_size: 3 stride: 2 pad: 1 } }
    """,
    "grouped": """
        name: "grouped"
        layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 4 dim: 10 dim: 11 } } }
        layer { name: "wide" type: "Convolution" bottom: "data" top: "wide"
                convolution_param { num_output: 6 kernel_size: 3 dilation: 2 group: 2 pad: 2 } }
        layer { name: "up" type: "Deconvolution" bottom: "wide" top: "up"
                convolution_param { num_output: 6 kernel_size: 4 stride: 2 group: 3 bias_term: false } }
        layer { name: "tall" type: "Convolution" bottom: "up" top: "tall"
                convolution_param { num_output: 2 kernel_h: 3 kernel_w: 1 stride_h: 2 stride_w: 1 pad_h: 1 pad_w: 0 } }
    """,
    "names": """
        name: "names \\303\\274 /."
        layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 6 dim: 6 } } }
        layer { name: "inception_3a/1x1" type: "Convolution" bottom: "data" top: "inception_3a/1x1"
                convolution_param { num_output: 3 kernel_size: 1 } }
        layer { name: "res2.a" type: "Convolution" bottom: "inception_3a/1x1" top: "res2.a"
                convolution_param { num_output: 3 kernel_size: 1 } }
        layer { name: "a b\\"c" type: "ReLU" bottom: "res2.a" top: "res2.a" }
        layer { name: "\\303\\274ber" type: "InnerProduct" bottom: "res2.a" top: "\\303\\274ber"
                inner_product_param { num_output: 3 bias_term: false } }
    """,
    "in place": """
        name: "in place"
        layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 3 dim: 4 } } }
        layer { name: "ip" type: "InnerProduct" bottom: "data" top: "x" inner_product_param { num_output: 4 } }
        layer { name: "relu" type: "ReLU" bottom: "x" top: "x" relu_param { negative_slope: 0.1 } }
        layer { name: "power" type: "Power" bottom: "x" top: "x" power_param { power: 2 scale: 0.5 shift: 1 } }
        layer { name: "scale" type: "Scale" bottom: "x" top: "x" }
        layer { name: "drop" type: "Dropout" bottom: "x" top: "x" }
        layer { name: "out" type: "Sigmoid" bottom: "x" top: "x" }
    """,
}
"""Nets of generation V2, by what is special about them."""

V0 = """
    name: "plain"
    input: "data" input_dim: 2 input_dim: 3 input_dim: 12 input_dim: 12
    layers { layer { name: "pad1" type: "padding" pad: 1 } bottom: "data" top: "pad1" }
    layers { layer { name: "conv1" type: "conv" num_output: 4 kernelsize: 3 } bottom: "pad1" top: "conv1" }
    layers { layer { name: "relu1" type: "relu" } bottom: "conv1" top: "conv1" }
    layers { layer { name: "norm1" type: "lrn" } bottom: "conv1" top: "norm1" }
    layers { layer { name: "pool1" type: "pool" pool: MAX kernelsize: 3 stride: 2 } bottom: "norm1" top: "pool1" }
    layers { layer { name: "ip" type: "innerproduct" num_output: 5 } bottom: "pool1" top: "ip" }
    layers { layer { name: "drop" type: "dropout" } bottom: "ip" top: "ip" }
    layers { layer { name: "prob" type: "softmax" } bottom: "ip" top: "prob" }
"""
"""The net "plain" in generation V0."""

V1 = """
    name: "plain"
    input: "data" input_dim: 2 input_dim: 3 input_dim: 12 input_dim: 12
    layers { name: "conv1" type: CONVOLUTION bottom: "data" top: "conv1"
             convolution_param { num_output: 4 kernel_size: 3 pad: 1 } }
    layers { name: "relu1" type: RELU bottom: "conv1" top: "conv1" }
    layers { name: "norm1" type: LRN bottom: "conv1" top: "norm1" }
    layers { name: "pool1" type: POOLING bottom: "norm1" top: "pool1"
             pooling_param { pool: MAX kernel_size: 3 stride: 2 } }
    layers { name: "ip" type: INNER_PRODUCT bottom: "pool1" top: "ip" inner_product_param { num_output: 5 } }
    layers { name: "drop" type: DROPOUT bottom: "ip" top: "ip" }
    layers { name: "prob" type: SOFTMAX bottom: "ip" top: "prob" }
"""
"""The net "plain" in generation V1."""

GENERATIONS = {"V0": V0, "V1": V1, "V2": NETS["plain"]}


class Made(NamedTuple):
    """A net with its weights."""

    net: pb.NetParameter
    arrays: Mapping[Key, Array]


def made(name: str = "plain", seed: int = 0) -> Made:
    """One of `NETS` with random weights; shared blobs come once, statistics are positive."""
    return with_weights(text_format.Parse(NETS[name], pb.NetParameter()), seed)


def with_weights(net: pb.NetParameter, seed: int = 0) -> Made:
    """The net with random weights, as `made` gives them."""
    rng = np.random.default_rng(seed)
    arrays: dict[Key, Array] = {}
    for index, node in enumerate(Graph.from_net(net).nodes):
        for blob, (key, shape) in enumerate(zip(node.params, node.blob_shapes, strict=True)):
            if key == ParamKey(index, blob):
                values = rng.normal(0, 0.3, shape).astype(np.float32)
                arrays[node.layer.name, blob] = np.abs(values) + np.float32(0.1) if _positive(node, blob) else values
    return Made(net, arrays)


def _positive(node: Node, blob: int) -> bool:
    return node.layer.TYPE == "BatchNorm" and blob > 0


# -- blobs in each encoding --------------------------------------------------------------------------------


def packed(values: Array, blob: pb.BlobProto) -> bytes:
    blob.data.extend(values.ravel().tolist())
    return blob.SerializeToString()


def unpacked(values: Array, blob: pb.BlobProto) -> bytes:
    """As protobuf before packing wrote floats: each with its own tag."""
    return blob.SerializeToString() + b"".join(b"\x2d" + struct.pack("<f", value) for value in values.ravel())


def double(values: Array, blob: pb.BlobProto) -> bytes:
    blob.double_data.extend(values.ravel().tolist())
    return blob.SerializeToString()


def half(values: Array, blob: pb.BlobProto) -> bytes:
    """NVIDIA's raw_data."""
    blob.raw_data_type = pb.BlobProto.FLOAT16
    blob.raw_data = values.astype("<f2").tobytes()
    return blob.SerializeToString()


ENCODINGS: Mapping[str, Callable[[Array, pb.BlobProto], bytes]] = {
    "packed": packed,
    "unpacked": unpacked,
    "double": double,
    "half": half,
}


def caffemodel(model: Made, generation: str = "V2", encoding: str = "packed") -> bytes:
    """A binary net of that generation; the older ones state four sizes a blob.

    Generations V0 and V1 are there for "plain" alone. Blobs that share another's name are repeated, as Caffe does.
    """
    text = GENERATIONS[generation] if generation != "V2" else None
    net = text_format.Parse(text, pb.NetParameter()) if text else model.net
    graph = Graph.from_net(model.net)
    blobs = {
        node.layer.name: [
            model.arrays[graph.nodes[key.node].layer.name, key.blob].reshape(shape)
            for key, shape in zip(node.params, node.blob_shapes, strict=True)
        ]
        for node in graph.nodes
    }
    out = pb.NetParameter(name=net.name, input=net.input, input_dim=net.input_dim).SerializeToString()
    for number, layers in ((2, net.layers), (100, net.layer)):
        for layer in layers:
            out += delimited(number, _layer(layer, blobs, generation, encoding))
    return out


def _layer(layer: Any, arrays: Mapping[str, list[Array]], generation: str, encoding: str) -> bytes:
    name = layer.layer.name if generation == "V0" else layer.name
    number = {"V0": 50, "V1": 6, "V2": 7}[generation]
    blobs = b""
    for values in arrays.get(name, ()):
        head = pb.BlobProto()
        if generation == "V2":
            head.shape.dim.extend(values.shape)
        else:
            head.num, head.channels, head.height, head.width = (1,) * (4 - values.ndim) + values.shape
        blobs += delimited(number, ENCODINGS[encoding](values, head))
    if generation == "V0":
        inner = layer.layer.SerializeToString() + blobs
        rest = pb.V1LayerParameter(bottom=layer.bottom, top=layer.top)
        return delimited(1, inner) + rest.SerializeToString()
    return layer.SerializeToString() + blobs


def delimited(number: int, data: bytes) -> bytes:
    """A length-delimited field."""
    return varint(number << 3 | 2) + varint(len(data)) + data


def varint(value: int) -> bytes:
    """A number as protobuf writes it."""
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def write(path: Path, name: str = "plain", **how: str) -> Made:
    """Write a model; the net too, as prototxt beside it."""
    model = made(name)
    path.write_bytes(caffemodel(model, **how))
    path.with_suffix(".prototxt").write_text(text_format.MessageToString(model.net), encoding="utf-8")
    return model
