"""Defaults spelled out in the nets that are written, where OpenCV's Caffe importer wants them stated.

The net means the same: these are the values that Caffe takes when a field is missing.
"""

from __future__ import annotations

from itertools import accumulate

from caffe_compat.graph import Node
from caffe_compat.schema import pb

DETECTION = ("share_location", "background_label_id", "keep_top_k")
"""Fields without which detection_output_layer.cpp of OpenCV refuses a DetectionOutput layer."""
VARIANCE = 0.1
"""Of all four sides of a prior box, when none is stated (prior_box_layer.cpp of weiliu89/caffe)."""


def spell_out(node: Node, layer: pb.LayerParameter) -> None:
    """State the defaults of a layer.

    Args:
        node: the layer in its graph.
        layer: its message, which is changed.
    """
    if layer.type == "DetectionOutput":
        for name in DETECTION:
            setattr(layer.detection_output_param, name, getattr(layer.detection_output_param, name))
    elif layer.type in ("PriorBox", "PriorBoxClustered") and not layer.prior_box_param.variance:
        layer.prior_box_param.variance.append(VARIANCE)
    elif layer.type == "Slice" and len(layer.top) > 1 and not layer.slice_param.slice_point:
        param = layer.slice_param
        axis = param.slice_dim if param.HasField("slice_dim") else param.axis
        ends = accumulate(shape[axis] for shape in node.layer.top_shapes_built)
        param.slice_point.extend(list(ends)[:-1])
