"""Blobs as Caffe's older layers see them: num, channels, height, width."""

from __future__ import annotations

from collections.abc import Sequence

from caffe_compat.layers.base import Layer, Shape


def legacy_sizes(layer: Layer, bottoms: Sequence[Shape], position: int = 0) -> tuple[int, int, int, int]:
    """num, channels, height and width of a bottom; axes that it lacks have size 1 (blob.hpp LegacyShape).

    Raises:
        LayerError: the bottom has more than four axes.
    """
    shape = bottoms[position]
    what = f"bottom {position} has {len(shape)} axes; {layer.TYPE} allows 4"
    remedy = "put a Reshape or Flatten layer before it"
    layer.check(len(shape) <= 4, what, field=f"bottom[{position}]", remedy=remedy)
    num, channels, height, width = (*shape, *(1,) * (4 - len(shape)))
    return num, channels, height, width
