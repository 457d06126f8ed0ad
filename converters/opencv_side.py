"""A Caffe model run by OpenCV 4's own importer, as a side of a comparison."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caffe_compat.errors import VggcError
from caffe_compat.graph import Graph
from caffe_compat.loading import State, open_net
from converters.sides import Side, caffe_side
from converters.streaming import Target
from converters.to_caffe import write_net

Array = NDArray[Any]

DETECTION = 7
"""Numbers in a row of DetectionOutput: image, label, score, box."""


def opencv_side(path: Path, net: Path | None, state: State | None) -> Side:
    """A .caffemodel that OpenCV reads and runs.

    Args:
        path: the model.
        net: its prototxt, which OpenCV reads too; without one it is given the net in the model.
        state: profile, dialect and input shapes, for our own reading of it.

    Raises:
        VggcError: OpenCV 4 is not installed, or cannot read it.
    """
    cv2 = _opencv()
    if path.suffix.lower() != ".caffemodel":
        raise VggcError("OpenCV's importer reads .caffemodel files", where=str(path), remedy="give one as A")
    source, weights = (net, path) if net else (path, None)
    opened = open_net(source, weights, state, deploy=True)
    side = caffe_side(str(path), opened)
    try:
        loaded = cv2.dnn.readNetFromCaffe(str(net), str(path)) if net else _alone(cv2, path, opened.graph)
    except cv2.error as error:
        raise _refused(path, error) from error
    loaded.enableFusion(False)

    def run(inputs: Mapping[str, Array]) -> dict[str, Array]:
        for blob, array in inputs.items():
            loaded.setInput(np.ascontiguousarray(array, np.float32), blob)
        try:
            return {**inputs, **_blobs(loaded, opened.graph, len(next(iter(inputs.values()), [1])))}
        except cv2.error as error:
            raise _refused(path, error) from error

    return replace(side, engine=f"OpenCV {cv2.__version__}", run=run)


def _opencv() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise VggcError("OpenCV is not installed", remedy="pip install 'opencv-python-headless<5'") from error
    if not hasattr(cv2.dnn, "readNetFromCaffe"):
        what = f"OpenCV {cv2.__version__} does not read Caffe's nets any more"
        raise VggcError(what, remedy="pip install 'opencv-python-headless<5'")
    return cv2


def _alone(cv2: Any, path: Path, graph: Graph) -> Any:
    """The net that the model carries, as text for OpenCV."""
    from caffe_compat.weights import Weights
    from converters.model import Model

    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "net.prototxt"
        with Target(text) as target:
            write_net(Model(graph, {}, Weights(())), target)
            target.finish()
            target.rename()
        return cv2.dnn.readNetFromCaffe(str(text), str(path))


def _refused(path: Path, error: Exception) -> VggcError:
    text = " ".join(str(error).split())
    return VggcError(f"OpenCV refuses it: {text}", where=str(path), remedy="it does not know all of Caffe's layers")


def _blobs(net: Any, graph: Graph, batch: int) -> dict[str, Array]:
    """Every blob, as the last layer that writes it leaves it."""
    known = set(net.getLayerNames())
    writers = {top.blob: node for node in graph.nodes if node.layer.TYPE != "Input" for top in node.tops}
    nodes = {id(node): node for node in writers.values()}
    names = [node.layer.name if node.layer.name in known else node.tops[0].blob for node in nodes.values()]
    found: dict[str, Array] = {}
    for node, tops in zip(nodes.values(), net.forwardAndRetrieve(names), strict=True):
        for top, values in zip(node.tops, tops, strict=False):
            if writers[top.blob] is node:
                array = _rows(np.array(values)) if node.layer.TYPE == "DetectionOutput" else np.array(values)
                shape = graph.values[top]
                same = (batch, *shape[1:]) if shape[:1] else shape
                found[top.blob] = array.reshape(same) if array.size == prod(same) else array
    return found


def _rows(boxes: Array) -> Array:
    """Detections in Caffe's order, by image, label and falling score; OpenCV has the best of an image first."""
    rows = boxes.reshape(-1, DETECTION)
    return rows[np.lexsort((-rows[:, 2], rows[:, 1], rows[:, 0]))].reshape(1, 1, -1, DETECTION)
