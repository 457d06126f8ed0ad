"""PriorBox, and what PriorBoxClustered shares with it."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from caffe_compat.layers.base import Layer, OnnxWriter, Shape, register
from caffe_compat.layers.legacy_axes import legacy_sizes

if TYPE_CHECKING:
    from torch import Tensor

Pair = tuple[float, float]

SAME = 1e-6
"""Aspect ratios that differ by less are one."""


class BasePriorBox(Layer):
    """Boxes around the cell centres of bottom 0, as parts of the image: top (1, 2, cells * boxes * 4).

    Row 0 holds (xmin, ymin, xmax, ymax) of each cell's boxes, cells row by row; row 1 their variances, of which one or
    four are given, 0.1 by default. A centre lies at (x + offset) step; the step is by default the image's size divided
    by the bottom's. The image's size is that of bottom 1 unless stated. With `clip` boxes end at the image's border.
    Centres are float32 and corners float64 rounded to the top's type, as in the fork.
    """

    PARAM = "prior_box_param"
    BOTTOMS = (1, None)
    BACKWARD = False

    sizes: NDArray[np.float32]
    """(boxes of a cell, 2): width and height."""
    rows: int = 1
    """How many times each of them stands in a cell."""

    def setup(self, bottoms: Sequence[Shape]) -> None:
        self.sizes = np.array(self.box_sizes(), np.float32)
        self.variance = self._variance()
        self.image = self._pair("img_size", "img", "img_h", "img_w")
        self.step = self._pair("step", "step", "step_h", "step_w")
        what = "neither the image's size is stated nor is there a bottom 1 to take it from"
        known = self.image is not None or len(bottoms) > 1
        self.check(known, what, field="bottom", remedy="state img_size, or add the image as bottom 1")
        self._made: tuple[tuple[int, ...], NDArray[np.float64]] | None = None

    def box_sizes(self) -> list[Pair]:
        """Width and height, in pixels of the image, of each box of a cell."""
        raise NotImplementedError(self.TYPE)

    def _variance(self) -> list[float]:
        given = list(self.p.variance)
        field = "prior_box_param.variance"
        what = f"{len(given)} variances"
        self.check(len(given) in (0, 1, 4), what, field=f"{field}[0]", remedy="state one, or four, or none for 0.1")
        for position, value in enumerate(given):
            what = f"variance {value} is not positive"
            self.check(value > 0, what, field=f"{field}[{position}]", remedy="make it > 0")
        return given or [0.1]

    def _pair(self, both: str, stem: str, high: str, wide: str) -> Pair | None:
        """(h, w) of a size given in one way, None when it is not given."""
        apart = [name for name in (high, wide) if self.has(name)]
        stated = [*apart, *([both] if self.has(both) else [])]
        if not stated:
            return None
        field = f"prior_box_param.{stated[0]}"
        what = f"both {both} and {stated[0]} are given"
        self.check(not apart or both not in stated, what, field=field, remedy="keep one")
        names = (high, wide) if apart else (both, both)
        pair = (getattr(self.p, names[0]), getattr(self.p, names[1]))
        what = f"{stem} {pair[0]} x {pair[1]} must be positive"
        self.check(min(pair) > 0, what, field=field, remedy=f"state {both}, or both {high} and {wide}, > 0")
        return pair

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        _, _, height, width = legacy_sizes(self, bottoms)
        count = height * width * len(self.sizes) * self.rows * 4
        self.check(
            count > 0, f"bottom 0 of shape {bottoms[0]} is empty", field="bottom[0]", remedy="feed a larger blob"
        )
        return [(1, 2, count)]

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        import torch

        self.reshape(bottoms)
        boxes = self._boxes([bottom.shape for bottom in bottoms])
        return [torch.from_numpy(boxes).to(bottoms[0])]

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        g.op("Identity", [g.constant(self._boxes(self.bottom_shapes).astype(np.float32))], tops)

    def _boxes(self, bottoms: Sequence[Shape]) -> NDArray[np.float64]:
        """The top, computed anew only when sizes have changed."""
        _, _, height, width = legacy_sizes(self, bottoms)
        image = self.image or legacy_sizes(self, bottoms, 1)[2:]
        sizes = (height, width, int(image[0]), int(image[1]))
        if self._made is None or self._made[0] != sizes:
            corners = self._corners(*sizes)
            corners = corners.clip(0, 1) if self.p.clip else corners
            variances = np.resize(np.array(self.variance, np.float32), corners.size)
            self._made = sizes, np.stack([corners.ravel(), variances])[None]
        return self._made[1]

    def _corners(
        self, height: int, width: int, image_height: int, image_width: int, down: float | None = None
    ) -> NDArray[np.float64]:
        """(height, width, boxes, 4); `down` is the offset of y if it is another than that of x."""
        size = np.array([image_width, image_height], np.float32)
        cells = np.array([width, height], np.float32)
        step = size / cells if self.step is None else np.array(self.step[::-1], np.float32)
        offset = np.array([self.p.offset, self.p.offset if down is None else down], np.float32)
        axes = zip((width, height), offset, step, strict=True)
        x, y = ((np.arange(n, dtype=np.float32) + first) * s for n, first, s in axes)
        centres = np.stack(np.broadcast_arrays(x, y[:, None]), -1)[:, :, None].astype(np.float64)  # (H, W, 1, 2)
        half = self.sizes.astype(np.float64) / 2
        return np.concatenate([centres - half, centres + half], -1) / np.tile(size.astype(np.float64), 2)


@register
class PriorBox(BasePriorBox):
    """Boxes of several sizes and shapes around the cell centres of bottom 0: top (1, 2, cells * boxes * 4).

    For each min_size m, rounded down, in this order: a square of side m; if there are max_sizes a square of side
    sqrt(m M), M rounded down too; for each aspect ratio r but 1 a box m sqrt(r) x m / sqrt(r). With `flip` 1 / r
    follows each r. A ratio within 1e-6 of one already there is left out. The rest is as in BasePriorBox.
    denser_prior_boxes, of MhLiao/TextBoxes_plusplus: each box is followed by one like it at (y + 1) step.
    Source: prior_box_layer.cpp of weiliu89/caffe, branch ssd.
    """

    TYPE = "PriorBox"
    DIALECTS = ("ssd",)
    FORK_FIELDS = ("prior_box_param.denser_prior_boxes",)

    def setup(self, bottoms: Sequence[Shape]) -> None:
        super().setup(bottoms)
        self.rows = 2 if self.p.denser_prior_boxes else 1

    def _corners(
        self, height: int, width: int, image_height: int, image_width: int, down: float | None = None
    ) -> NDArray[np.float64]:
        sizes = height, width, image_height, image_width
        corners = super()._corners(*sizes, down)
        if self.rows == 1:
            return corners
        return np.stack([corners, super()._corners(*sizes, 1)], 3).reshape(height, width, -1, 4)

    def box_sizes(self) -> list[Pair]:
        least, most = list(self.p.min_size), list(self.p.max_size)
        self._check_sizes(least, most)
        ratios = [np.sqrt(ratio) for ratio in self._ratios()[1:]]
        boxes: list[Pair] = []
        for position, size in enumerate(map(int, least)):
            boxes.append((size, size))
            if most:
                boxes.append((sqrt(size * int(most[position])),) * 2)
            boxes += [(float(np.float32(size) * root), float(np.float32(size) / root)) for root in ratios]
        return boxes

    def _check_sizes(self, least: list[float], most: list[float]) -> None:
        field = "prior_box_param.min_size"
        self.check(bool(least), "min_size is missing", field=field, remedy="state at least one")
        for position, size in enumerate(least):
            what = f"min_size {size} is not positive"
            self.check(size > 0, what, field=f"{field}[{position}]", remedy="make it > 0")
        field = "prior_box_param.max_size"
        what = f"{len(most)} max_size for {len(least)} min_size"
        self.check(len(most) in (0, len(least)), what, field=f"{field}[0]", remedy="state one for each, or none")
        for position, (low, high) in enumerate(zip(least, most, strict=False)):
            what = f"max_size {high} is not above min_size {low}"
            self.check(high > low, what, field=f"{field}[{position}]", remedy="make it larger")

    def _ratios(self) -> list[np.float32]:
        """1 first, then those given with their inverses, each once."""
        ratios = [np.float32(1)]
        for given in map(np.float32, self.p.aspect_ratio):
            if all(abs(float(given - ratio)) >= SAME for ratio in ratios):
                ratios += [given, np.float32(1 / float(given))][: 2 if self.p.flip else 1]
        return ratios
