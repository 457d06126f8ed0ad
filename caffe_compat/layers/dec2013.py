"""What layers of the "dec2013" profile share (BVLC Caffe at 3213bd87e, 22 Dec 2013)."""

from __future__ import annotations

from collections.abc import Collection

from caffe_compat.layers.base import Layer

FOUR_AXES = "profile dec2013 needs (num, channels, height, width)"


def check_fields(layer: Layer, known: Collection[str]) -> None:
    """Refuse parameters that the layer did not have at that commit.

    Args:
        layer: a layer with a parameter message.
        known: names of fields of that message that have a counterpart in generation V0.

    Raises:
        LayerError: the net states another field.
    """
    for field, _ in layer.p.ListFields():
        what = f"{layer.TYPE} has no {field.name} under profile dec2013"
        layer.check(field.name in known, what, field=f"{layer.PARAM}.{field.name}", remedy="use profile bvlc")
