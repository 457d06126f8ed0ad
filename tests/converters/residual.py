"""A small net with all that can be folded, and its weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from caffe_compat.graph import Graph, ParamKey
from caffe_compat.reading import parse_net
from caffe_compat.weights import Blob, Weights
from converters.model import Model
from converters.safetensors import write
from converters.streaming import Payloads, Target

RESIDUAL = """
name: "residual net"
input: "data"
input_shape { dim: 2 dim: 3 dim: 9 dim: 9 }
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
        convolution_param { num_output: 8 kernel_size: 3 stride: 2 pad: 1 bias_term: false } }
layer { name: "bn1" type: "BatchNorm" bottom: "conv1" top: "conv1" }
layer { name: "scale1" type: "Scale" bottom: "conv1" top: "conv1" scale_param { bias_term: true } }
layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }
layer { name: "2a/dw" type: "Convolution" bottom: "conv1" top: "2a/dw"
        convolution_param { num_output: 8 group: 8 kernel_h: 3 kernel_w: 1 pad_h: 1 pad_w: 0 } }
layer { name: "2a/bn" type: "BatchNorm" bottom: "2a/dw" top: "2a/bn" batch_norm_param { eps: 0.001 } }
layer { name: "sum" type: "Eltwise" bottom: "conv1" bottom: "2a/bn" top: "sum" }
layer { name: "pool" type: "Pooling" bottom: "sum" top: "pool" pooling_param { pool: AVE kernel_size: 3 stride: 2 } }
layer { name: "norm" type: "LRN" bottom: "pool" top: "norm" lrn_param { local_size: 5 alpha: 0.0003 beta: 0.6 } }
layer { name: "type" type: "InnerProduct" bottom: "norm" top: "type" inner_product_param { num_output: 7 } }
layer { name: "prob" type: "Softmax" bottom: "type" top: "prob" }
layer { name: "class" type: "InnerProduct" bottom: "norm" top: "class" inner_product_param { num_output: 2 } }
"""


def random_model(graph: Graph, seed: int = 0) -> Model:
    """Positive random weights: statistics and scales are used as they are."""
    generator = np.random.default_rng(seed)
    arrays = {}
    for position, node in enumerate(graph.nodes):
        for index, (key, shape) in enumerate(zip(node.params, node.blob_shapes, strict=True)):
            if key == ParamKey(position, index):
                arrays[key] = Blob(shape, generator.uniform(0.1, 0.9, shape).astype(np.float32).ravel())
    return Model(graph, arrays, Weights(()))


def parsed(text: str = RESIDUAL) -> Model:
    """The net of a prototxt with random weights."""
    return random_model(Graph.from_net(parse_net(text)))


def save(model: Model, path: Path) -> Path:
    """Write a .safetensors that carries the net."""
    with Payloads() as payloads, Target(path) as target:
        write(model, target, payloads)
        target.finish()
        target.rename()
    return path
