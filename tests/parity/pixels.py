"""How exact the values of a net fed with images can be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from caffe_compat.reading import read_document
from tests.tolerances import LAYERS, PIXELS_DECODED, PIXELS_RESIZED, Tolerance

JPEG = b"\xff\xd8\xff"
JPEG_NAMES = (".jpg", ".jpeg")


def pixel_tolerance(net_file: Path) -> Tolerance:
    """Room for other JPEG decoders and for rounding when images are resized, times the net's scale."""
    net: Any = read_document(net_file).message
    room = max((layer_room(layer, net_file.parent) for layer in net.layer), default=0.0)
    return replace(LAYERS, atol=LAYERS.atol + room)


def layer_room(layer: Any, folder: Path) -> float:
    images, transform = layer.image_data_param, layer.transform_param
    decoded = any(holds_jpeg(folder / source) for source in (layer.data_param.source, images.source) if source)
    resized = images.new_height or "resize_param" in {field.name for field, _ in transform.ListFields()}
    room = (PIXELS_DECODED.atol if decoded else 0.0) + (PIXELS_RESIZED.atol if resized else 0.0)
    return room * abs(float(transform.scale))


def holds_jpeg(source: Path) -> bool:
    """Whether a database has JPEG data, or a list names such files."""
    if source.is_dir():
        return any(JPEG in path.read_bytes() for path in source.iterdir())
    return source.exists() and any(name in source.read_text().lower() for name in JPEG_NAMES)
