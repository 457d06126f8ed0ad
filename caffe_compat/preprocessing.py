"""How a net's data layers prepare images: mean, scale, crop and channel order (data_transformer.cpp)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from caffe_compat.errors import FormatError
from caffe_compat.schema import pb
from caffe_compat.upgrade import upgrade


def preprocessing(net: pb.NetParameter) -> dict[str, Any]:
    """What the TEST data layer of a net (else any data layer) does to an image; {} when the net has none.

    Keys, each only where the net states it: `mean_value` (one a channel, in the net's channel order), `mean_file`,
    `scale` (applied after the mean), `crop_size`, `resize` (height, width of ImageData), `channel_order` ("BGR",
    what Caffe's image readers give).
    """
    found = [layer for layer in upgrade(net).layer if layer.HasField("transform_param")]
    if not found:
        return {}
    layer = min(found, key=lambda each: pb.TEST not in {rule.phase for rule in each.include})
    param = layer.transform_param
    entries: dict[str, Any] = {"channel_order": "BGR"}
    if param.mean_value:
        entries["mean_value"] = [round(value, 6) for value in param.mean_value]
    for name in ("mean_file", "scale", "crop_size"):
        if param.HasField(name):  # type: ignore[arg-type]
            entries[name] = getattr(param, name)
    image = layer.image_data_param
    if image.new_height or image.new_width:
        entries["resize"] = [image.new_height, image.new_width]
    return entries


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
