"""A small net with random weights, and its model file, for tests of evaluation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from google.protobuf import text_format

import caffe_compat as cc
from caffe_compat.schema import pb

SMALL = """
name: "small"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 16 dim: 16 } } }
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
        convolution_param { num_output: 6 kernel_size: 3 pad: 1 } }
layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }
layer { name: "pool1" type: "Pooling" bottom: "conv1" top: "pool1"
        pooling_param { pool: MAX kernel_size: 2 stride: 2 } }
layer { name: "conv2" type: "Convolution" bottom: "pool1" top: "conv2"
        convolution_param { num_output: 8 kernel_size: 3 pad: 1 } }
layer { name: "relu2" type: "ReLU" bottom: "conv2" top: "conv2" }
layer { name: "pool2" type: "Pooling" bottom: "conv2" top: "pool2"
        pooling_param { pool: MAX kernel_size: 2 stride: 2 } }
layer { name: "fc6" type: "InnerProduct" bottom: "pool2" top: "fc6" inner_product_param { num_output: 10 } }
layer { name: "relu6" type: "ReLU" bottom: "fc6" top: "fc6" }
layer { name: "drop6" type: "Dropout" bottom: "fc6" top: "fc6" }
layer { name: "fc8" type: "InnerProduct" bottom: "fc6" top: "fc8" inner_product_param { num_output: CLASSES } }
layer { name: "prob" type: "Softmax" bottom: "fc8" top: "prob" }
"""
CROP = 16


def small_net(classes: int = 7) -> pb.NetParameter:
    """The net: 16 x 16 crops, steps of 4 on whole images."""
    return cc.parse_net(SMALL.replace("CLASSES", str(classes)))


def write_model(path: Path, classes: int = 7, seed: int = 0, net: pb.NetParameter | None = None) -> Path:
    """Write a caffemodel with random weights that spread the posteriors; its net beside it as prototxt."""
    made = pb.NetParameter()
    made.CopyFrom(net or small_net(classes))
    generator = np.random.default_rng(seed)
    shapes = cc.Graph.from_net(made).params
    for layer in made.layer:
        for shape in shapes.get(layer.name, ()):
            fan = int(np.prod(shape[1:])) if len(shape) > 1 else 0
            deviation = (2 / fan) ** 0.5 / (64 if shape[1:2] == (3,) else 1) if fan else 0.1
            values = generator.normal(0, deviation, int(np.prod(shape)))
            layer.blobs.add(data=values.tolist(), shape=pb.BlobShape(dim=shape))
    path.write_bytes(made.SerializeToString())
    path.with_suffix(".prototxt").write_text(text_format.MessageToString(net or small_net(classes)))
    return path
