"""How a net's data layers prepare images: mean, scale, crop and channel order (data_transformer.cpp)."""

from __future__ import annotations

from typing import Any

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
