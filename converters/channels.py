"""Blue and red exchanged in the weights of a net's first layer: what `--rgb` does.

Caffe's nets take BGR, as OpenCV decodes images. With the kernels' input channels in reverse order the same net takes
RGB, and the other way round; values are moved, none is changed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from caffe_compat.errors import ConversionError
from caffe_compat.graph import Graph, Node, Value
from caffe_compat.layers.convolution import Convolution
from caffe_compat.weights import Blob
from converters.model import Model

COLORS = 3
OTHER = {"BGR": "RGB", "RGB": "BGR"}


def exchanged(model: Model) -> Model:
    """The model for images whose channels are in the other order, with a note.

    Raises:
        ConversionError: there is no net, its images are not of three channels, or something but a Convolution of its
            own weights takes them.
    """
    graph = model.graph
    if graph is None:
        raise ConversionError("--rgb needs the net", remedy="leave out --weights-only")
    blob = _images(graph)
    arrays = dict(model.arrays)
    for node in _readers(graph, blob):
        key = node.params[0]
        arrays[key] = _reversed(arrays[key], node)
    ready = turned(model.preprocessing)
    note = f"exchanged blue and red in the weights that read {blob}: it takes {ready['channel_order']} now"
    now = "" if model.exchanged else blob
    return replace(model, arrays=arrays, preprocessing=ready, exchanged=now, notes=(*model.notes, note))


def _images(graph: Graph) -> str:
    """The input that is an image."""
    found = [blob for blob, shape in graph.inputs.items() if len(shape) == 4 and shape[1] == COLORS]
    if len(found) != 1:
        what = f"{len(found)} of the net's inputs are images of {COLORS} channels; one is needed"
        raise ConversionError(what, remedy="leave out --rgb")
    return found[0]


def _readers(graph: Graph, blob: str) -> list[Node]:
    """The convolutions that take an input.

    Raises:
        ConversionError: another layer takes it, or one of them has weights that others have too.
    """
    users = Counter(key for node in graph.nodes for key in node.params)
    found = [node for node in graph.nodes if Value(blob) in node.bottoms]
    for node in found:
        layer, remedy = node.layer, "exchange the channels of the images instead"
        if not isinstance(layer, Convolution) or layer.geometry.axis != 1 or layer.p.group != 1:
            raise ConversionError(f"a {layer.TYPE} layer takes {blob}, not a plain convolution", remedy=remedy)
        if users[node.params[0]] > 1:
            raise ConversionError("others share its weights", where=layer.where(), remedy=remedy)
    return found


def _reversed(blob: Blob, node: Node) -> Blob:
    """The kernels, (outputs, channels, ...), with the channels in reverse order."""
    values = blob.values.reshape(node.blob_shapes[0])[:, ::-1]
    return replace(blob, values=np.ascontiguousarray(values).ravel(), path="", offset=-1)


def turned(ready: Mapping[str, Any]) -> dict[str, Any]:
    """How images are prepared when the channels come in the other order."""
    made = {**ready, "channel_order": OTHER[ready.get("channel_order", "BGR")]}
    if len(ready.get("mean_value", ())) == COLORS:
        made["mean_value"] = list(ready["mean_value"])[::-1]
    return made
