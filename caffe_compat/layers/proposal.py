"""Proposals of regions: py-faster-rcnn's Python layer, and the Proposal layers of others."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from caffe_compat.layers.base import Layer, Shape, register
from caffe_compat.layers.boxes import Floats, suppress, to_array
from caffe_compat.layers.python import register_layer

if TYPE_CHECKING:
    from torch import Tensor

ENTRY = re.compile(r"""['"]?(\w+)['"]?\s*:\s*(?:!!python/tuple\s*)?(\[[^][]*\]|\([^()]*\)|[-+.\w]+)""")
"""A key and its value in the YAML or the dict of a param_str."""
ONE = np.float32(1)
HALF = np.float32(0.5)


def anchors(base: int, ratios: Sequence[float], scales: Sequence[float]) -> Floats:
    """Boxes around the middle of a cell of base x base pixels, ratio by ratio: (ratios * scales, 4).

    A ratio's width is sqrt(base^2 / ratio) and its height width ratio, both rounded; then both times each scale.
    """
    ratio = np.asarray(ratios, np.float64)
    widths = np.floor(np.sqrt(base * base / ratio) + 0.5)
    heights = np.floor(widths * ratio + 0.5)
    sizes = np.stack([widths, heights], 1)[:, None] * np.asarray(scales, np.float64)[:, None]  # (ratios, scales, 2)
    return around((base - 1) / 2, sizes.reshape(-1, 2))


def around(middle: float, sizes: Any) -> Floats:
    """Boxes of those sizes, (n, 2), both edges belonging to them: (n, 4)."""
    reach = (sizes - 1) / 2
    return np.concatenate([middle - reach, middle + reach], 1).astype(np.float32)


def overlaps(a: Floats, b: Floats) -> Floats:
    """Intersection over union of boxes whose both edges belong to them: (n, 4), (m, 4) -> (n, m)."""
    low, high = np.maximum(a[:, None, :2], b[:, :2]), np.minimum(a[:, None, 2:], b[:, 2:])
    shared = np.maximum(high - low + ONE, np.float32(0)).prod(2)
    ratio: Floats = shared / (areas(a)[:, None] + areas(b) - shared)
    return ratio


def areas(boxes: Floats) -> Floats:
    area: Floats = (boxes[:, 2:] - boxes[:, :2] + ONE).prod(1)
    return area


class Proposals(Layer):
    """Base of layers that propose regions: anchors at every place, moved and sized by what the net says of each.

    Bottoms: scores (N, 2 A, H, W), of which the second half are for objects; deltas (N, 4 A, H, W); the image's height,
    width and scale. Of a box with width w, height h and centre x, y the proposal has the centre x + dx w, y + dy h, and
    the size w exp(dw), h exp(dh); it is cut off at the image's edges. The best `before` by score go into non-maximum
    suppression, the best `after` of those left are the top, (R, 5): item, x1, y1, x2, y2; a second top holds scores.
    """

    BOTTOMS = (3, 3)
    TOPS = (1, 2)
    BACKWARD = False
    SINGLE: ClassVar[bool] = True
    """Only one item is allowed."""
    INFO: ClassVar[int] = 3
    """Values of an item in bottom 2."""

    stride: int
    anchors: Floats
    before: int
    after: int
    threshold: float

    def propagates(self, bottom: int) -> bool:
        return False

    def check_bottoms(self, bottoms: Sequence[Shape]) -> None:
        scores, deltas, info = bottoms
        count = len(self.anchors)
        what = f"scores of shape {scores} for {count} anchors"
        fine = len(scores) == 4 and scores[1] == 2 * count and (scores[0] == 1 or not self.SINGLE)
        self.check(fine, what, field="bottom[0]", remedy=f"feed (1, {2 * count}, H, W)")
        what = f"deltas of shape {deltas} for scores of shape {scores}"
        fine = deltas == (scores[0], 4 * count, *scores[2:])
        self.check(fine, what, field="bottom[1]", remedy=f"feed {(scores[0], 4 * count, *scores[2:])}")
        what = f"image sizes of shape {info}"
        fine = len(info) >= 1 and int(np.prod(info)) >= self.INFO
        self.check(fine, what, field="bottom[2]", remedy=f"feed {self.INFO} values: height, width, scale")

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        import torch

        self.reshape(bottoms)
        scores, deltas, info = (to_array(bottom) for bottom in bottoms)
        found = [self._of_item(*item, info.ravel()) for item in zip(scores, deltas, strict=True)]
        rois = [np.insert(boxes, 0, item, 1) for item, (boxes, _) in enumerate(found)]
        tops = self.finish(np.concatenate(rois), np.concatenate([best for _, best in found]))
        return [torch.from_numpy(top).to(bottoms[0]) for top in tops[: self.tops]]

    def _of_item(self, scores: Floats, deltas: Floats, info: Floats) -> tuple[Floats, Floats]:
        """Boxes and scores that are left, best first."""
        values = scores[len(self.anchors) :].transpose(1, 2, 0).ravel()
        boxes, values = self.filtered(self._moved(deltas, info), values, info)
        order = np.argsort(-values, kind="stable")[: self.before or None]
        order = order[suppress(boxes[order], self.threshold, overlap=overlaps)][: self.after or None]
        return boxes[order], values[order]

    def _moved(self, deltas: Floats, info: Floats) -> Floats:
        """Every proposal inside the image, (H * W * A, 4)."""
        height, width = deltas.shape[1:]
        y, x = np.indices((height, width), np.float32).reshape(2, -1, 1) * np.float32(self.stride)
        boxes = (self.anchors + np.concatenate([x, y, x, y], 1)[:, None]).reshape(-1, 4)
        code = deltas.transpose(1, 2, 0).reshape(-1, 4)
        size = boxes[:, 2:] - boxes[:, :2] + ONE
        centre = code[:, :2] * size + (boxes[:, :2] + HALF * size)
        with np.errstate(over="ignore"):
            reach = HALF * (np.exp(code[:, 2:]) * size)
        moved = np.concatenate([centre - reach, centre + reach], 1)
        edge = np.array([info[1], info[0]] * 2, np.float32) - ONE
        cut: Floats = np.maximum(np.minimum(moved, edge), np.float32(0))
        return cut

    def filtered(self, boxes: Floats, scores: Floats, info: Floats) -> tuple[Floats, Floats]:
        """What takes part, before it is sorted."""
        return boxes, scores

    def finish(self, rois: Floats, scores: Floats) -> list[Floats]:
        """The tops."""
        return [rois, scores]


def is_large(boxes: Floats, least: Floats) -> Any:
    """Which boxes are at least so wide and high; `least` is (width, height)."""
    return (boxes[:, 2:] - boxes[:, :2] + ONE >= least).all(1)


@register_layer("rpn.proposal_layer.ProposalLayer")
class ProposalLayer(Proposals):
    """Proposals of a region proposal network (lib/rpn/proposal_layer.py of rbgirshick/py-faster-rcnn).

    `param_str` states feat_stride and, if not 8, 16 and 32, the scales; anchors are 16 pixels times these, of the
    ratios 0.5, 1 and 2. Boxes below 16 pixels times the image's scale in either direction are left out. 6000 boxes go
    into the suppression (TRAIN: 12000), 300 are proposed (TRAIN: 2000); the overlap may be 0.7. The tops have sizes of
    their own only after a forward pass: (R, 5) and (R, 1).
    """

    LEAST = 16
    RATIOS = (0.5, 1.0, 2.0)

    def setup(self, bottoms: Sequence[Shape]) -> None:
        stated = read_text(self, ("feat_stride",), ("scales",))
        self.stride = int(stated["feat_stride"][0])
        self.anchors = anchors(16, self.RATIOS, stated.get("scales", [8, 16, 32]))
        self.before, self.after = (6000, 300) if self.phase == "TEST" else (12000, 2000)
        self.threshold = 0.7
        self.check_bottoms(bottoms)

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        self.check_bottoms(bottoms)
        return [(1, 5), (1, 1, 1, 1)][: self.tops]

    def filtered(self, boxes: Floats, scores: Floats, info: Floats) -> tuple[Floats, Floats]:
        keep = is_large(boxes, np.float32(self.LEAST) * info[[2, 2]])
        return boxes[keep], scores[keep]

    def finish(self, rois: Floats, scores: Floats) -> list[Floats]:
        return [rois, scores[:, None]]


def read_text(layer: Layer, required: Sequence[str], optional: Sequence[str] = ()) -> dict[str, list[float]]:
    """The positive numbers of a param_str, a YAML or Python mapping; a single one is a list as well.

    Raises:
        LayerError: it is no such mapping, lacks one of the `required` keys or has others than these and `optional`.
    """
    text = layer.p.param_str
    entries = {key: re.findall(r"[-+.\w]+", value) for key, value in ENTRY.findall(text)}
    rest = ENTRY.sub("", text).translate(str.maketrans("", "", "{},")).strip()
    numbers = {key: [float(v) for v in values if _is_number(v)] for key, values in entries.items()}
    what = f'param_str "{text}" is not {" and ".join([*required, *optional])}'
    known = not rest and set(required) <= numbers.keys() <= {*required, *optional}
    whole = all(numbers[key] and len(numbers[key]) == len(entries[key]) for key in entries)
    positive = all(value > 0 for values in numbers.values() for value in values)
    remedy = f"state \"'{required[0]}': 16\", or write a layer of your own under another name"
    layer.check(known and whole and positive, what, field="python_param.param_str", remedy=remedy)
    return numbers


def _is_number(text: str) -> bool:
    return bool(re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", text))


class Proposal(Proposals):
    """Base of the layers called Proposal, whose parameters are `proposal_param`."""

    TYPE = "Proposal"
    PARAM = "proposal_param"

    def setup(self, bottoms: Sequence[Shape]) -> None:
        for name in ("ratio", "scale"):
            values = getattr(self.p, name)
            what = f"{name} {list(values)} must be positive numbers, and there must be one at least"
            field = f"proposal_param.{name}[0]" if values else "proposal_param"
            self.check(bool(values) and min(values) > 0, what, field=field, remedy=f"state each {name} of the anchors")
        for name in ("feat_stride", "base_size", "pre_nms_topn", "post_nms_topn"):
            field = f"proposal_param.{name}"
            self.check(getattr(self.p, name) > 0, f"{name} is 0", field=field, remedy="use 1 or more")
        self.stride, self.threshold = self.p.feat_stride, self.p.nms_thresh
        self.before, self.after = self.p.pre_nms_topn, self.p.post_nms_topn
        self.anchors = self.own_anchors()
        self.check_bottoms(bottoms)

    def own_anchors(self) -> Floats:
        return anchors(self.p.base_size, self.p.ratio, self.p.scale)


@register
class ProposalOpencv(Proposal):
    """Proposals of a region proposal network, as OpenCV's importer of Caffe nets has it (proposal_layer.cpp).

    Anchors are base_size pixels times `scale`, of each `ratio`, feat_stride pixels apart. pre_nms_topn boxes go into
    the suppression, where the overlap may be nms_thresh; the tops are (post_nms_topn, 5) and (post_nms_topn, 1), 0
    where fewer are left. min_size has no effect. Source: opencv/opencv, modules/dnn.
    """

    DIALECTS = ("opencv",)

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        self.check_bottoms(bottoms)
        shapes: list[Shape] = [(self.after, 5), (self.after, 1)]
        return shapes[: self.tops]

    def finish(self, rois: Floats, scores: Floats) -> list[Floats]:
        missing = ((0, self.after - len(rois)), (0, 0))
        return [np.pad(rois, missing), np.pad(scores[:, None], missing)]


@register
class ProposalWindows(Proposal):
    """Proposals of a region proposal network, for every item (proposal_layer.cpp of happynear/caffe-windows).

    Anchors have the width scale / sqrt(ratio) and the height width ratio, rounded, halves up, after 1 is taken off;
    both edges lie inside. Bottom 2 holds height, width and their scales for the first item, which count for all. Boxes
    below min_size times the scale in either direction have the score 0. pre_nms_topn boxes go into the suppression,
    where the overlap may be nms_thresh, and post_nms_topn at most are proposed. The tops have sizes of their own only
    after a forward pass: (R, 5) and (R,).
    """

    DIALECTS = ("caffe-windows",)
    SINGLE = False
    INFO = 4

    def own_anchors(self) -> Floats:
        base, ratio = np.float32(self.p.base_size), np.asarray(self.p.ratio, np.float32)
        widths = np.sqrt(base * base / ratio)
        sizes = np.stack([widths, widths * ratio], 1)[:, None] * np.asarray(self.p.scale, np.float32)[:, None]
        return around((self.p.base_size - 1) / 2, np.trunc(sizes.reshape(-1, 2) / base - HALF) + 1)

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        self.check_bottoms(bottoms)
        count = bottoms[0][0] * self.after
        shapes: list[Shape] = [(count, 5), (count,)]
        return shapes[: self.tops]

    def filtered(self, boxes: Floats, scores: Floats, info: Floats) -> tuple[Floats, Floats]:
        least = np.float32(self.p.min_size) * info[[3, 2]]
        return boxes, scores * is_large(boxes, least)
