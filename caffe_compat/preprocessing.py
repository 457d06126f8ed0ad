"""How a net's data layers prepare images: mean, scale, crop and channel order (data_transformer.cpp)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from caffe_compat.errors import FormatError
from caffe_compat.schema import pb
from caffe_compat.upgrade import upgrade

IMAGES = ("Data", "ImageData", "WindowData", "AnnotatedData", "Input")
"""Types that read images as OpenCV decodes them, or databases that Caffe's tools made so. Of an Input layer, which has
no use for it, `vggc convert` lets transform_param say how images are prepared."""


def preprocessing(net: pb.NetParameter, channels: int = 3) -> dict[str, Any]:
    """What the TEST data layer of a net (else any data layer) does to an image; {} when the net has none.

    Keys, each only where the net states it: `mean_value` (one a channel, in the net's channel order, or one for
    all), `mean_file`, `scale` (applied after the mean), `crop_size`, `resize` (height, width that ImageData and
    the SSD fork's layers warp to), and `channel_order`, "BGR", where images have colours.

    Args:
        net: of any generation.
        channels: of the net's images.

    Raises:
        UpgradeError: the net cannot be upgraded.
    """
    found = [layer for layer in upgrade(net).layer if layer.HasField("transform_param")]
    if not found:
        return {}
    layer = min(found, key=lambda each: pb.TEST not in {rule.phase for rule in each.include})
    param = layer.transform_param
    entries: dict[str, Any] = {}
    if layer.type in IMAGES and channels == 3 and not param.force_gray:
        entries["channel_order"] = "BGR"
    if param.mean_value:
        entries["mean_value"] = [_short(value) for value in param.mean_value]
    if param.HasField("scale"):
        entries["scale"] = _short(param.scale)
    for name in ("mean_file", "crop_size"):
        if getattr(param, name):
            entries[name] = getattr(param, name)
    image, resize = layer.image_data_param, param.resize_param
    if image.new_height or image.new_width:
        entries["resize"] = [image.new_height, image.new_width]
    elif resize.height and resize.width and resize.resize_mode == resize.WARP:
        entries["resize"] = [resize.height, resize.width]
    return entries


def color_channels(shapes: Mapping[str, Sequence[int]]) -> int:
    """Channels of a net's images: the first of its blobs with four axes; 0 when it has none."""
    return next((shape[1] for shape in shapes.values() if len(shape) == 4), 0)


def _short(value: float) -> float:
    """The shortest number that is the same float32: 0.017, not 0.017000000923871994."""
    return float(str(np.float32(value)))


def carried(metadata: Mapping[str, str]) -> dict[str, Any]:
    """What a converted file says under "preprocessing"; {} when it says nothing.

    Raises:
        FormatError: the entry is no table.
    """
    try:
        found = json.loads(metadata.get("preprocessing", "{}"))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise FormatError('the metadata entry "preprocessing" is no JSON table', remedy="convert the model again")
    return found
