"""Published nets with Input layers in place of what reads their data: the shapes stated, else the usual ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from caffe_compat.schema import pb
from caffe_compat.upgrade import Upgraded

Shape = tuple[int, ...]

KEPT = frozenset({"ContinuationIndicator", "DummyData", "Parameter"})
"""Layers without bottoms that state the shapes of their tops."""
BATCH = 2
FRAMES = 16
VIDEO_TYPES = frozenset({"Convolution3D", "NdConvolution"})
"""Layers whose bottoms have an axis for frames."""
REGIONS = 8
FACE = 17
"""Values of the truth of a face: points, angles, attributes, size."""
SIDES = (224, 227, 299, 300, 32, 28, 64, 321, 416, 512, 331, 48, 12, 256, 128)
"""Heights and widths of images tried when the net states none."""
SIDE, EACH = 0, -1
"""Stand for the height or width of the images, and for the items of a batch."""
SHAPES: dict[str, Shape] = {
    "bbox_inside_weights": (REGIONS, 84),
    "bbox_outside_weights": (REGIONS, 84),
    "bbox_targets": (REGIONS, 84),
    "gt_boxes": (REGIONS, 5),
    "im_info": (1, 3),
    "image_sizes": (1, 2),
    "rois": (REGIONS, 5),
    "rpn_bbox_pred": (1, 36, 14, 14),
    "rpn_cls_prob_reshape": (1, 18, 14, 14),
}
"""Usual shapes of blobs beside the images."""
OF_TYPES: dict[str, Shape] = {"AnnotatedData": (1, 1, 8, 8)}
"""Usual shapes of the blobs after the first, by layer type."""
OF_ONE_IMAGE = frozenset({"gt_boxes", "rois"})
"""Blobs that stand beside a single image or few; the labels then are of regions."""
LABELS: tuple[Shape, ...] = ((EACH,), (EACH, 1, SIDE, SIDE), (1, 1, 8, 8), (EACH, 1, 1, 1), (EACH, 3, SIDE, SIDE))
"""Shapes tried for other blobs; items of eight numbers are the boxes of detection data."""
PYTHON_LOSSES = frozenset({"NormlizedMSE", "regression_Layer"})
PYTHON_FILTERS = frozenset({"cls_Layer", "cls_Layer_fc"})
"""Python layers whose second bottom holds labels, (N, 1)."""
COMPARED = {"SmoothL1Loss": 4}
"""Bottoms that a loss compares with its first, where these are more than two."""


@dataclass(frozen=True)
class Trial:
    """What the inputs of a net may look like.

    Attributes:
        side, channels, batch: of the images.
        frames: of videos, which have an axis for them; 0 for images.
        label: shape of other blobs.
        asked: blob -> the shape that the layers which read it ask for.
    """

    side: int
    channels: int
    batch: int = BATCH
    frames: int = 0
    label: Shape = LABELS[0]
    asked: Mapping[str, Shape] = field(default_factory=dict)

    def shape(self, layer: pb.LayerParameter, position: int) -> Shape:
        """The shape of a top, by its name and place."""
        blob, images = layer.top[position], (EACH, self.channels, *[self.frames] * bool(self.frames), SIDE, SIDE)
        few = OF_ONE_IMAGE.intersection(layer.top)
        label = (REGIONS,) if few and blob == "labels" else OF_TYPES.get(layer.type, self.label)
        stated = stated_shape(layer) if position == 0 else ()
        stated = stated or cascade_shape(layer, position, self.side)
        wanted = stated or self.asked.get(blob) or SHAPES.get(blob) or (label if position else images)
        known = {SIDE: self.side, EACH: 1 if few else self.batch}
        return tuple(known.get(size, size) for size in wanted)


def trials(net: pb.NetParameter) -> Iterator[Trial]:
    """What to try, the likeliest first; the second differs from the first in all, to tell what depends on shapes."""
    sides, batch, channels = stated_sides(net) or SIDES, stated_batch(net), stated_channels(net)
    first, frames = channels[0] if channels else 3, stated_frames(net)
    yield Trial(sides[0], first, batch, frames)
    if any(map(is_source, net.layer)):
        yield Trial(sides[-1] + 32 * (len(sides) == 1), 4 - first, BATCH + 1, frames, LABELS[1])
        for label in LABELS:
            for side in sides:
                yield from (Trial(side, count, batch, frames, label) for count in channels or (3, 1, 2, 6))


def stated_sides(net: pb.NetParameter) -> Sequence[int]:
    """Sizes that the data layers state, of the crop or else of the images."""
    found = []
    for layer in net.layer:
        transform, image = layer.transform_param, layer.image_data_param
        found += [transform.crop_size, transform.resize_param.height, image.new_height]
    return tuple(dict.fromkeys(size for size in found if size))


def stated_batch(net: pb.NetParameter) -> int:
    """The first batch size that a data layer states."""
    messages = ("data_param", "hdf5_data_param", "image_data_param", "video_data_param")
    sizes = [getattr(layer, name).batch_size for layer in net.layer for name in messages]
    return next((size for size in sizes if size), BATCH)


def stated_shape(layer: pb.LayerParameter) -> Shape:
    """The shape of its first top that a MemoryData layer states."""
    memory = layer.memory_data_param
    stated = (memory.batch_size, memory.channels, memory.height, memory.width)
    return stated if layer.type == "MemoryData" and all(stated) else ()


def stated_frames(net: pb.NetParameter) -> int:
    """Frames of the videos that a net takes, of stated or usual length; 0 where it takes images."""
    if not any(layer.type in VIDEO_TYPES for layer in net.layer):
        return 0
    lengths = [
        layer.video_data_param.new_length for layer in net.layer if layer.video_data_param.HasField("new_length")
    ]
    return max(lengths, default=FRAMES)


def cascade_shape(layer: pb.LayerParameter, position: int, side: int) -> Shape:
    """Of the data layers of Cascade R-CNN: maps of labels, one for each stride, then true boxes."""
    strides = layer.detection_data_param.stride
    if layer.type == "DetectionData" and 0 < position <= len(strides):
        return (EACH, 6, round(side / strides[position - 1]), round(side / strides[position - 1]))
    boxes = len(strides) + 1 if layer.type == "DetectionData" else 1 if layer.type == "EvalData" else 0
    return (REGIONS, 8, 1, 1) if boxes == position > 0 else ()


def stated_channels(net: pb.NetParameter) -> Sequence[int]:
    """Channels of videos: those of each frame of each segment; of JPEG's frequencies."""
    found = [64] if any(layer.type == "BdctToSpatial" for layer in net.layer) else []
    for layer in net.layer:
        video = layer.video_data_param
        if layer.type == "VideoData" and video.HasField("num_segments"):
            frame = 3 if video.modality == pb.VideoDataParameter.RGB else 2
            found.append(frame * video.new_length * video.num_segments)
    return found


def asked_shapes(net: pb.NetParameter, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """Shapes of source blobs by what reads them: as much as a Slice cuts, or as a loss compares them with.

    Args:
        net: the net.
        shapes: of the blobs that could be built.
    """
    tops = [list(layer.top) for layer in net.layer if is_source(layer)]
    sources = {top for own in tops for top in own if top not in own[:1] or "label" in top}
    found: dict[str, Shape] = {}
    for layer in net.layer:
        for position, blob in enumerate(layer.bottom):
            shape = asked_by(layer, position, shapes)
            if blob in sources and shape:
                found.setdefault(blob, shape)
    return found


def asked_by(layer: pb.LayerParameter, position: int, shapes: Mapping[str, Shape]) -> Shape:
    """The shape that one layer asks for; () when it does not tell."""
    if layer.type == "Slice" and layer.slice_param.axis == 1:
        points = layer.slice_param.slice_point
        return (EACH, points[-1] + 1 if points else len(layer.top))
    if layer.type == "FaceAttriEvaluate" and position == 1:
        return (EACH, FACE)
    if layer.python_param.layer in PYTHON_FILTERS and position == 1:
        return (EACH, 1)
    scores = shapes.get(layer.bottom[0], ()) if layer.bottom else ()
    if layer.type == "SoftmaxWithLoss" and position == 1 and len(scores) == 4:
        return (scores[0], 1, *scores[2:])
    loss = layer.type.endswith("Loss") or layer.python_param.layer in PYTHON_LOSSES
    compared = 0 < position < COMPARED.get(layer.type, 2) and loss
    return scores if compared else ()


def is_source(layer: pb.LayerParameter) -> bool:
    """Whether its tops are data from outside of no stated shape."""
    if layer.type == "Input":
        return not layer.input_param.shape
    return not layer.bottom and bool(layer.top) and layer.type not in KEPT


def with_names(upgraded: Upgraded, old: pb.NetParameter) -> Upgraded:
    """The net with an Input layer for the inputs of which `old`, its original, only states the names."""
    if not old.input or old.input_dim or old.input_shape:
        return upgraded
    net = pb.NetParameter(layer=[pb.LayerParameter(name="input", type="Input", top=old.input), *upgraded.net.layer])
    return replace(upgraded, net=net, origins=("", *upgraded.origins))


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
    for position in range(len(layer.top)):
        kept.input_param.shape.add(dim=trial.shape(layer, position))
    layer.CopyFrom(kept)
