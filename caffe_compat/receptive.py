"""Which part of an image a place of a blob depends on.

Place p of a blob with the field (step, before, behind) depends on the image's rows (or columns) from
p step - before to p step + behind, both included, and on no others; what lies outside the image are the zeros, or
the missing values, of padding. A layer with kernel extent e, stride s and pad p over a blob with the field
(S, B, A) gives (s S, B + p S, A + (e - 1 - p) S).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from caffe_compat.dense import BY_CHANNEL, POINTWISE
from caffe_compat.graph import Graph, Node, Value
from caffe_compat.layers.convolution import Convolution
from caffe_compat.layers.lrn import LRN
from caffe_compat.layers.pooling import Pooling

Fields = tuple["Field", "Field"]


@dataclass(frozen=True)
class Field:
    """Along one axis; see the module's docstring."""

    step: int = 1
    before: int = 0
    behind: int = 0

    @property
    def size(self) -> int:
        """How much of the image one place depends on."""
        return self.before + 1 + self.behind

    def through(self, extent: int, stride: int, pad: int) -> Field:
        """The field of a top whose windows are such."""
        before, behind = pad * self.step, (extent - 1 - pad) * self.step
        return Field(self.step * stride, self.before + before, self.behind + behind)


def receptive_fields(graph: Graph) -> dict[Value, Fields]:
    """(rows, columns) of every value that depends on the input image by windows alone.

    A value is left out when a layer on its way has no windows: one that flattens, pools globally, resizes, ...
    """
    found = {Value(blob): (Field(), Field()) for blob, shape in graph.inputs.items() if len(shape) == 4}
    for node in graph.nodes:
        if node.layer.TYPE == "Input" or not all(bottom in found for bottom in node.bottoms):
            continue
        fields = _through(node, [found[bottom] for bottom in node.bottoms])
        if fields is not None:
            found.update(dict.fromkeys(node.tops, fields))
    return found


def _through(node: Node, bottoms: Sequence[Fields]) -> Fields | None:
    joined = _joined(bottoms)
    windows = _windows(node)
    if joined is None or windows is None:
        return None
    rows, columns = (field.through(*window) for field, window in zip(joined, windows, strict=True))
    return rows, columns


def _joined(bottoms: Sequence[Fields]) -> Fields | None:
    """What several blobs of one size depend on together; None when their steps differ."""
    if not bottoms or len({tuple(field.step for field in fields) for fields in bottoms}) != 1:
        return None
    rows, columns = (
        Field(axis[0].step, max(field.before for field in axis), max(field.behind for field in axis))
        for axis in zip(*bottoms, strict=True)
    )
    return rows, columns


def _windows(node: Node) -> tuple[tuple[int, int, int], tuple[int, int, int]] | None:
    """(extent, stride, pad) of a layer's windows along rows and columns; None when it has none."""
    layer = node.layer
    if isinstance(layer, Convolution) and len(layer.geometry.kernel) == 2 and layer.geometry.axis == 1:
        geometry = layer.geometry
        rows, columns = zip(geometry.extent, geometry.stride, geometry.pad, strict=True)
        return rows, columns
    if isinstance(layer, Pooling) and not layer.everywhere and layer.tops == 1:
        window = layer.window
        rows, columns = zip(window.kernel, window.stride, window.pad, strict=True)
        return rows, columns
    if isinstance(layer, LRN):
        size = 1 if layer.p.norm_region == layer.p.ACROSS_CHANNELS else layer.p.local_size
        return (size, 1, (size - 1) // 2), (size, 1, (size - 1) // 2)
    if layer.TYPE in POINTWISE or (layer.TYPE in BY_CHANNEL and _along_channels(node)):
        return (1, 1, 0), (1, 1, 0)
    return None


def _along_channels(node: Node) -> bool:
    field = BY_CHANNEL[node.layer.TYPE]
    four = all(len(shape) == 4 for shape in node.layer.bottom_shapes[:1])
    return four and (not field or getattr(node.layer.param, field).axis % 4 == 1)
