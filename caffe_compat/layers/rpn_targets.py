"""What py-faster-rcnn's Python layers ask of anchors and of proposals while a net is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from caffe_compat.layers.base import Layer, Shape
from caffe_compat.layers.boxes import Indices, to_array
from caffe_compat.layers.proposal import anchors, read_text
from caffe_compat.layers.python import register_layer

if TYPE_CHECKING:
    from torch import Tensor

Doubles = NDArray[np.float64]

BACKGROUND, IGNORED = 0, -1


class Targets(Layer):
    """Base of both; nothing is learned through them."""

    BACKWARD = False
    BOX = 5
    """Values of a true box: x1, y1, x2, y2, label."""

    def propagates(self, bottom: int) -> bool:
        return False

    def check_truth(self, shape: Shape) -> None:
        what = f"true boxes of shape {shape}"
        fine = len(shape) == 2 and shape[1] == self.BOX
        self.check(fine, what, field="bottom[1]", remedy="feed (G, 5): x1, y1, x2, y2, label")

    def read_truth(self, tensor: Tensor) -> Doubles:
        boxes = to_array(tensor).astype(np.float64)
        self.check(len(boxes) > 0, "no true box", field="bottom[1]", remedy="feed items that have one")
        return boxes


def overlaps(a: Doubles, b: Doubles) -> Doubles:
    """Intersection over union of boxes whose both edges belong to them: (n, 4), (m, 4) -> (n, m) (bbox.pyx)."""
    low, high = np.maximum(a[:, None, :2], b[:, :2]), np.minimum(a[:, None, 2:4], b[:, 2:4])
    shared = np.maximum(high - low + 1, 0).prod(2)
    area_a, area_b = ((boxes[:, 2:4] - boxes[:, :2] + 1).prod(1) for boxes in (a, b))
    ratio: Doubles = shared / (area_a[:, None] + area_b - shared)
    return ratio


def transform(boxes: Doubles, truth: Doubles) -> Doubles:
    """Shifts of the centre by the box's size, and logarithms of the sizes' ratios, (n, 4) (bbox_transform.py)."""
    size, wanted = boxes[:, 2:] - boxes[:, :2] + 1, truth[:, 2:] - truth[:, :2] + 1
    shift = (truth[:, :2] + wanted / 2 - boxes[:, :2] - size / 2) / size
    return np.concatenate([shift, np.log(wanted / size)], 1)


def drawn(found: Indices, count: int) -> Indices:
    """`count` of the indices at most, drawn without replacement."""
    import torch

    order: Indices = torch.randperm(len(found)).numpy()
    return found[order[: max(count, 0)]]


@register_layer("rpn.anchor_target_layer.AnchorTargetLayer")
class AnchorTargetLayer(Targets):
    """Labels of anchors and their targets (lib/rpn/anchor_target_layer.py of rbgirshick/py-faster-rcnn).

    Bottoms: a map (1, ..., H, W), true boxes (G, 5), the image's height, width and scale; a fourth is not read.
    Anchors are those of the ProposalLayer, at every cell, inside the image but for `allowed_border` pixels. One is for
    an object (1) if it overlaps a true box by 0.7, or more than any other anchor does; it is background (0) if it
    overlaps none by 0.3; the rest is ignored (-1). 128 of the former and, with those, 256 in all are drawn.
    Tops: labels (1, 1, A H, W); the targets of the true box that it overlaps most, weights 1 for anchors of objects,
    and weights 1 / drawn for those drawn, each (1, 4 A, H, W) and 0 elsewhere. Settings are the defaults of config.py.
    """

    BOTTOMS = (3, 4)
    TOPS = (4, 4)
    RATIOS = (0.5, 1.0, 2.0)
    POSITIVE, NEGATIVE = 0.7, 0.3
    BATCH, OBJECTS = 256, 128

    def setup(self, bottoms: Sequence[Shape]) -> None:
        stated = read_text(self, ("feat_stride",), ("scales", "allowed_border"))
        self.stride, self.border = stated["feat_stride"][0], stated.get("allowed_border", [0.0])[0]
        self.anchors = anchors(16, self.RATIOS, stated.get("scales", [8, 16, 32])).astype(np.float64)

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        shape, count = bottoms[0], len(self.anchors)
        what = f"a map of shape {shape}"
        self.check(len(shape) == 4 and shape[0] == 1, what, field="bottom[0]", remedy="feed one item, (1, C, H, W)")
        self.check_truth(bottoms[1])
        what = f"image sizes of shape {bottoms[2]}"
        fine = len(bottoms[2]) == 2 and bottoms[2][1] >= 2
        self.check(fine, what, field="bottom[2]", remedy="feed (1, 3): height, width, scale")
        height, width = shape[2:]
        return [(1, 1, count * height, width), *[(1, 4 * count, height, width)] * 3]

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        import torch

        shapes = self.reshape(bottoms)
        height, width = bottoms[0].shape[2:]
        truth, info = self.read_truth(bottoms[1]), to_array(bottoms[2])[0]
        every = self._everywhere(height, width)
        edge = np.array([info[1], info[0]]) + self.border
        inside = np.flatnonzero((every[:, :2] >= -self.border).all(1) & (every[:, 2:] < edge).all(1))
        what = f"no anchor lies inside an image of {info[1]:g} x {info[0]:g}"
        self.check(len(inside) > 0, what, field="bottom[2]", remedy="feed larger images, or state allowed_border")
        tops = [np.full(len(every), IGNORED, np.float32), *(np.zeros((len(every), 4), np.float32) for _ in range(3))]
        for top, values in zip(tops, self._targets(every[inside], truth), strict=True):
            top[inside] = values
        maps = [top.reshape(1, height, width, -1).transpose(0, 3, 1, 2) for top in tops]
        pairs = zip(maps, shapes, strict=True)
        return [torch.from_numpy(top.reshape(shape).copy()).to(bottoms[0]) for top, shape in pairs]

    def _everywhere(self, height: int, width: int) -> Doubles:
        """The anchors of all cells, (H * W * A, 4)."""
        y, x = np.indices((height, width), np.float64).reshape(2, -1, 1) * self.stride
        return np.asarray((self.anchors + np.concatenate([x, y, x, y], 1)[:, None]).reshape(-1, 4))

    def _targets(self, boxes: Doubles, truth: Doubles) -> tuple[Any, ...]:
        """Labels, targets and both weights of the anchors inside the image."""
        shared = overlaps(boxes, truth)
        most = shared.max(1)
        labels = np.full(len(boxes), IGNORED)
        labels[most < self.NEGATIVE] = BACKGROUND
        labels[(shared == shared.max(0)).any(1) | (most >= self.POSITIVE)] = 1
        labels = self._drawn(labels)
        targets = transform(boxes, truth[shared.argmax(1), :4])
        counted = labels >= 0
        inside, outside = np.zeros_like(targets), np.zeros_like(targets)
        inside[labels == 1] = 1
        outside[counted] = 1 / max(counted.sum(), 1)
        return labels, targets, inside, outside

    def _drawn(self, labels: Indices) -> Indices:
        """The labels of those drawn; the others' become -1."""
        left = np.full_like(labels, IGNORED)
        objects = drawn(np.flatnonzero(labels == 1), self.OBJECTS)
        left[objects] = 1
        left[drawn(np.flatnonzero(labels == BACKGROUND), self.BATCH - len(objects))] = BACKGROUND
        return left


@register_layer("rpn.proposal_target_layer.ProposalTargetLayer")
class ProposalTargetLayer(Targets):
    """Proposals drawn for training, and their targets (lib/rpn/proposal_target_layer.py of rbgirshick/py-faster-rcnn).

    Bottoms: proposals (R, 5), item 0, x1, y1, x2, y2; true boxes (G, 5), which count as proposals too. Of those that
    overlap a true box by 0.5, 32 are drawn; of the others, as background, as many as make up 128 with them.
    Tops: the proposals drawn (K, 5), the label of the box overlapped most (K,), targets of their class, weights 1 there
    and again these, each (K, 4 num_classes). Targets are less the means 0 and divided by the deviations 0.1 and, for
    sizes, 0.2. Settings are those of experiments/cfgs/faster_rcnn_end2end.yml; sizes are known after a forward pass.
    """

    BOTTOMS = (2, 2)
    TOPS = (5, 5)
    BATCH, OBJECTS = 128, 32
    THRESHOLD = 0.5
    DEVIATIONS = (0.1, 0.1, 0.2, 0.2)

    def setup(self, bottoms: Sequence[Shape]) -> None:
        self.classes = int(read_text(self, ("num_classes",))["num_classes"][0])

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        what = f"proposals of shape {bottoms[0]}"
        fine = len(bottoms[0]) == 2 and bottoms[0][1] == self.BOX
        self.check(fine, what, field="bottom[0]", remedy="feed (R, 5): 0, x1, y1, x2, y2")
        self.check_truth(bottoms[1])
        return [(1, self.BOX), (1, 1), *[(1, 4 * self.classes)] * 3]

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        import torch

        self.reshape(bottoms)
        truth = self.read_truth(bottoms[1])
        rois = np.concatenate([to_array(bottoms[0]).astype(np.float64), np.insert(truth[:, :4], 0, 0, 1)])
        self.check(not rois[:, 0].any(), "proposals of several items", field="bottom[0]", remedy="feed one item")
        shared = overlaps(rois[:, 1:], truth)
        kept, count = self._drawn(shared.max(1))
        nearest = truth[shared.argmax(1)[kept]]
        labels = np.where(np.arange(len(kept)) < count, nearest[:, 4], BACKGROUND)
        what = f"label {labels.max(initial=0):g} of {self.classes} classes"
        self.check(labels.max(initial=0) < self.classes, what, field="bottom[1]", remedy="state more num_classes")
        codes = transform(rois[kept, 1:], nearest[:, :4]) / np.array(self.DEVIATIONS)
        weights = np.eye(self.classes)[labels.astype(int)] * (labels > 0)[:, None]  # (K, num_classes)
        targets = (weights[:, :, None] * codes[:, None]).reshape(len(kept), -1)
        weights = weights.repeat(4, 1)
        tops = (rois[kept], labels, targets, weights, weights)
        return [torch.from_numpy(np.asarray(top, np.float32)).to(bottoms[0]) for top in tops]

    def _drawn(self, most: Doubles) -> tuple[Indices, int]:
        """Indices of the proposals drawn, those of objects first, and how many these are."""
        objects = drawn(np.flatnonzero(most >= self.THRESHOLD), self.OBJECTS)
        others = drawn(np.flatnonzero(most < self.THRESHOLD), self.BATCH - len(objects))
        return np.concatenate([objects, others]), len(objects)
