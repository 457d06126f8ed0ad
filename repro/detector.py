"""A small detector built like SSD's face detectors, with made-up weights: what the guide in the README converts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from caffe_compat.graph import Graph, ParamKey
from caffe_compat.loading import open_net
from caffe_compat.weights import Blob, Weights
from caffe_compat.writing import new_file
from converters.model import Model
from converters.streaming import Payloads, Target
from converters.to_caffe import write

Array = NDArray[np.float32]

SIZE = 120
"""Height and width of the images."""
CLASSES = 2
"""Background and face."""
SOURCES = (("conv3_norm", 3, 10, 22), ("conv4", 4, 24, 48))
"""Blob that boxes are predicted from, boxes a place, smallest and largest size in pixels."""


def write_detector(folder: Path, seed: int = 0) -> tuple[Path, Path, Path]:
    """Write face.prototxt, face.caffemodel and face.png, an image to look for boxes in; returns their paths."""
    net, weights, image = (folder / f"face.{kind}" for kind in ("prototxt", "caffemodel", "png"))
    with new_file(net) as text:
        text.write(prototxt().encode())
    graph = open_net(net).graph
    arrays = dict(_arrays(graph, np.random.default_rng(seed)))
    with Payloads() as payloads, Target(weights) as target:
        write(Model(graph, arrays, Weights(())), target, payloads)
        target.finish()
        target.rename()
    with new_file(image) as file:
        file.write(picture(np.random.default_rng(seed)))
    return net, weights, image


# -- the net ---------------------------------------------------------------------------------------------------


def prototxt() -> str:
    """The net as its authors would have published it."""
    shape = f"shape {{ dim: 1 dim: 3 dim: {SIZE} dim: {SIZE} }}"
    lines = ['name: "face"', _layer("data", "Input", [], f"input_param {{ {shape} }}")]
    bottom = "data"
    for index, width in enumerate((8, 16, 24, 32), 1):
        lines.append(_convolution(f"conv{index}", bottom, width, stride=2))
        lines.append(f'layer {{ name: "relu{index}" type: "ReLU" bottom: "conv{index}" top: "conv{index}" }}')
        bottom = f"conv{index}"
    scale = 'norm_param { across_spatial: false channel_shared: false scale_filler { type: "constant" value: 20 } }'
    lines.append(_layer("conv3_norm", "Normalize", ["conv3"], scale))
    for blob, boxes, low, high in SOURCES:
        lines += _head(blob, boxes, low, high)
    return "\n".join([*lines, *_ending()]) + "\n"


def _head(blob: str, boxes: int, low: int, high: int) -> list[str]:
    """Locations, confidences and prior boxes of one blob."""
    lines = []
    for what, count in (("loc", 4), ("conf", CLASSES)):
        name = f"{blob}_mbox_{what}"
        lines.append(_convolution(name, blob, boxes * count))
        order = "permute_param { order: 0 order: 2 order: 3 order: 1 }"
        lines.append(_layer(f"{name}_perm", "Permute", [name], order))
        lines.append(_layer(f"{name}_flat", "Flatten", [f"{name}_perm"], "flatten_param { axis: 1 }"))
    ratios = "aspect_ratio: 2 flip: true" if boxes == 4 else "aspect_ratio: 2 flip: false"
    variances = "variance: 0.1 variance: 0.1 variance: 0.2 variance: 0.2"
    param = f"prior_box_param {{ min_size: {low} max_size: {high} {ratios} clip: false {variances} offset: 0.5 }}"
    return [*lines, _layer(f"{blob}_mbox_priorbox", "PriorBox", [blob, "data"], param)]


def _ending() -> list[str]:
    """All boxes together, and those that are left."""
    lines = [
        _layer(
            f"mbox_{what}",
            "Concat",
            [f"{blob}_mbox_{what}{tail}" for blob, *_ in SOURCES],
            f"concat_param {{ axis: {axis} }}",
        )
        for what, tail, axis in (("loc", "_flat", 1), ("conf", "_flat", 1), ("priorbox", "", 2))
    ]
    shape = f"reshape_param {{ shape {{ dim: 0 dim: -1 dim: {CLASSES} }} }}"
    lines.append(_layer("mbox_conf_reshape", "Reshape", ["mbox_conf"], shape))
    lines.append(_layer("mbox_conf_softmax", "Softmax", ["mbox_conf_reshape"], "softmax_param { axis: 2 }"))
    lines.append(_layer("mbox_conf_flatten", "Flatten", ["mbox_conf_softmax"], "flatten_param { axis: 1 }"))
    param = (
        f"detection_output_param {{ num_classes: {CLASSES} share_location: true background_label_id: 0 "
        "nms_param { nms_threshold: 0.45 top_k: 400 } code_type: CENTER_SIZE keep_top_k: 20 "
        "confidence_threshold: 0.01 }"
    )
    bottoms = ["mbox_loc", "mbox_conf_flatten", "mbox_priorbox"]
    return [*lines, _layer("detection_out", "DetectionOutput", bottoms, param)]


def _convolution(name: str, bottom: str, outputs: int, stride: int = 1) -> str:
    param = f"convolution_param {{ num_output: {outputs} kernel_size: 3 pad: 1 stride: {stride} }}"
    return _layer(name, "Convolution", [bottom], param)


def _layer(name: str, kind: str, bottoms: list[str], param: str) -> str:
    read = "".join(f' bottom: "{bottom}"' for bottom in bottoms)
    return f'layer {{ name: "{name}" type: "{kind}"{read} top: "{name}" {param} }}'


# -- weights and pixels ----------------------------------------------------------------------------------------


def _arrays(graph: Graph, rng: np.random.Generator) -> Iterator[tuple[ParamKey, Blob]]:
    """Weights that keep the size of what goes through; the first layer's divide by that of pixels, the last ones' are
    small, so that boxes stay near their priors."""
    for position, node in enumerate(graph.nodes):
        for index, shape in enumerate(node.blob_shapes):
            inputs = max(1, int(np.prod(shape[1:])))
            name = node.layer.name
            gain = np.sqrt(2 / inputs) / (64 if name == "conv1" else 8 if "_mbox_" in name else 1)
            values = rng.normal(0, gain, shape) if len(shape) > 1 else np.full(shape, 20.0 * name.endswith("_norm"))
            made = values.astype(np.float32)
            yield ParamKey(position, index), Blob(made.shape, made.ravel())


def picture(rng: np.random.Generator) -> bytes:
    """A PNG of smooth blotches."""
    import cv2

    small = rng.integers(0, 256, (12, 16, 3), np.uint8)
    large = cv2.resize(small, (320, 240), interpolation=cv2.INTER_CUBIC)
    return bytes(cv2.imencode(".png", large)[1])
