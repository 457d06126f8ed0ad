"""Published nets with Input layers in place of what reads their data: the shapes stated, else the usual ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from caffe_compat.schema import pb
from caffe_compat.upgrade import Upgraded

Shape = tuple[int, ...]

KEPT = frozenset({"DummyData", "MemoryData", "Parameter"})
"""Layers without bottoms that state the shapes of their tops."""
BATCH = 2
SIDES = (224, 227, 300, 32, 28, 64, 321, 512, 48, 12, 256, 128)
"""Heights and widths of images tried when the net states none."""
SIDE = 0
"""Stands for the height or width of the images."""
SHAPES: dict[str, Shape] = {
    "bbox_inside_weights": (8, 84),
    "bbox_outside_weights": (8, 84),
    "bbox_targets": (8, 84),
    "gt_boxes": (8, 5),
    "im_info": (1, 3),
    "rois": (8, 5),
}
"""Usual shapes of blobs beside the images."""
LABELS: tuple[Shape, ...] = ((BATCH,), (BATCH, 1, SIDE, SIDE), (1, 1, 8, 8), (BATCH, 1, 1, 1), (BATCH, 3, SIDE, SIDE))
"""Shapes tried for other blobs; items of eight numbers are the boxes of detection data."""


@dataclass(frozen=True)
class Trial:
    """What the inputs of a net may look like."""

    side: int
    channels: int
    label: Shape

    def shape(self, blob: str, position: int) -> Shape:
        """The shape of a top, by its name and place."""
        image = (BATCH, self.channels, self.side, self.side)
        wanted = SHAPES.get(blob, image if position == 0 else self.label)
        return tuple(size or self.side for size in wanted)


def trials(net: pb.NetParameter) -> Iterator[Trial]:
    """What to try, the likeliest first; the second differs from the first in all, to tell what depends on shapes."""
    sides = stated_sides(net) or SIDES
    first = Trial(sides[0], 3, LABELS[0])
    yield first
    if any(map(is_source, net.layer)):
        yield Trial(sides[-1] + 32 * (len(sides) == 1), 1, LABELS[1])
        for label in LABELS:
            for side in sides:
                yield from (Trial(side, channels, label) for channels in (3, 1, 2, 6))


def stated_sides(net: pb.NetParameter) -> Sequence[int]:
    """Sizes that the data layers state, of the crop or else of the images."""
    found = []
    for layer in net.layer:
        transform, image = layer.transform_param, layer.image_data_param
        found += [transform.crop_size, transform.resize_param.height, image.new_height]
    return tuple(dict.fromkeys(size for size in found if size))


def is_source(layer: pb.LayerParameter) -> bool:
    """Whether its tops are data from outside of no stated shape."""
    if layer.type == "Input":
        return not layer.input_param.shape
    return not layer.bottom and bool(layer.top) and layer.type not in KEPT


def with_inputs(upgraded: Upgraded, trial: Trial) -> Upgraded:
    """The net with Input layers for its data sources."""
    net = pb.NetParameter()
    net.CopyFrom(upgraded.net)
    origins = list(upgraded.origins)
    for index, layer in enumerate(net.layer):
        if is_source(layer):
            make_input(layer, trial)
            origins[index] = ""
    return replace(upgraded, net=net, origins=tuple(origins))


def make_input(layer: pb.LayerParameter, trial: Trial) -> None:
    """Make an Input layer of a data source, in place."""
    kept = pb.LayerParameter(name=layer.name, type="Input", top=layer.top, include=layer.include, exclude=layer.exclude)
    for position, top in enumerate(layer.top):
        kept.input_param.shape.add(dim=trial.shape(top, position))
    layer.CopyFrom(kept)
