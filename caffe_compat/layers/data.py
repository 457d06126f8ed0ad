"""Data: images and labels from LMDB or LevelDB."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from caffe_compat.data.random_numbers import CRand, Draw
from caffe_compat.data.records import open_database
from caffe_compat.data.sources import RecordSource, Source
from caffe_compat.data.transform import Transform2013
from caffe_compat.layers.base import Shape, register
from caffe_compat.layers.base_data import Floats, TransformedSource, to_tensor
from caffe_compat.layers.dec2013 import check_fields
from caffe_compat.layers.files import inner_name

if TYPE_CHECKING:
    from torch import Tensor


@register
class Data(TransformedSource):
    """Top 0 (batch_size, C, H, W), top 1 (batch_size) labels, from the Datum records of `data_param.source`.

    Records come in the order of their keys, from the first again after the last; whether the folder is LMDB or LevelDB
    its files say, not `backend`. C, H and W are those of the images, H and W of the crop where there is one. Encoded
    images are decoded to the channels that they have, unless force_color or force_gray is set. `rand_skip` has no
    effect. Without the database H and W are `crop_size`, else those of the mean file; C is that of the mean file, the
    number of mean values when there are several, 1 with force_gray, else 3.
    Source: data_layer.cpp, data_transformer.cpp.
    """

    TYPE = "Data"
    V1 = ("DATA",)
    V0 = ("data",)
    PARAM = "data_param"
    TOPS = (1, 2)

    def setup(self, bottoms: Sequence[Shape]) -> None:
        transform = self.param.transform_param
        both = transform.force_color and transform.force_gray
        what = "both force_color and force_gray are set"
        self.check(not both, what, field="transform_param.force_gray", remedy="keep one")
        super().setup(bottoms)

    def open_source(self) -> Source | None:
        path = inner_name(self, self.p.source)
        transform = self.param.transform_param
        color = transform.force_color if transform.force_color or transform.force_gray else None
        return None if path is None else RecordSource(open_database(path), color)

    def declared_shape(self) -> Shape:
        transform = self.param.transform_param
        mean = self.mean_shape()
        means = len(transform.mean_value)
        channels = mean[0] if mean else means if means > 1 else 1 if transform.force_gray else 3
        crop = transform.crop_size
        if crop:
            what = f"crop_size {crop} is larger than the mean image {mean}"
            fine = mean is None or crop <= min(mean[1:])
            self.check(fine, what, field="transform_param.crop_size", remedy="crop less")
            return (channels, crop, crop)
        if mean:
            return mean
        what = f'the size of the images in "{self.p.source}" is not known without reading it'
        remedy = f"write it, state transform_param.crop_size, or {self.as_input()}"
        raise self.error(what, field=f"{self.PARAM}.source", remedy=remedy)


@register
class Data2013(Data):
    """As Data, with exactly two tops and labels (batch_size, 1, 1, 1).

    A crop must be smaller than the image, mirror needs a crop, and floats cannot be cropped. The first rand() %
    rand_skip records are skipped. All random numbers are those of the C library's rand(), which was never seeded and
    which all layers share: `context.state["rand"]`, a function, takes its place. Each batch is read while the one
    before is handed out, so that a change of phase comes one batch late: see `prefetch`.
    Source: data_layer.cpp of December 2013.
    """

    PROFILES = ("dec2013",)
    TOPS = (2, 2)
    TRANSFORM = Transform2013

    def setup(self, bottoms: Sequence[Shape]) -> None:
        check_fields(self, ("source", "batch_size", "rand_skip"))
        transform = self.param.transform_param
        what = "mirror without crop_size"
        fine = transform.crop_size > 0 or not transform.mirror
        self.check(fine, what, field="transform_param.mirror", remedy="state a crop_size, or mirror: false")
        self.ahead: tuple[Floats, Floats] | None = None
        self.drawn: list[int] = []
        super().setup(bottoms)
        self.random = self.rand
        floats = self.first is not None and self.first.image.dtype != np.uint8
        what = "floats cannot be cropped"
        self.check(not (floats and transform.crop_size), what, field="transform_param.crop_size", remedy="store bytes")

    def rand(self) -> int:
        """The next number of the C library's generator."""
        draw: Draw = self.context.state.setdefault("rand", CRand())
        self.drawn.append(draw())
        return self.drawn[-1]

    def declared_shape(self) -> Shape:
        shape, mean = super().declared_shape(), self.mean_shape()
        crop = self.param.transform_param.crop_size
        what = f"crop_size {crop} is not smaller than the images {mean}"
        fine = not crop or mean is None or crop < min(mean[1:])
        self.check(fine, what, field="transform_param.crop_size", remedy="leave crop_size out")
        return shape

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        batch = self.p.batch_size
        return [(batch, *self.image), (batch, 1, 1, 1)]

    def start(self, source: Source) -> None:
        if self.p.rand_skip:
            source.skip(self.rand() % self.p.rand_skip)

    def prefetch(self, phase: str = "") -> None:
        """Read the batch that the next forward pass hands out, unless it is there.

        Args:
            phase: "TRAIN" or "TEST" for this batch; "" for the layer's.
        """
        if self.ahead is None:
            usual, phase = self.transform, phase or self.phase
            self.running()
            self.before, self.drawn = self.stand(), []
            self.transform = Transform2013(usual.param, phase == "TRAIN", usual.mean)
            self.ahead = self.batch()
            self.transform = usual
            self.before |= {"draws": self.drawn, "phase": phase}

    def saved(self) -> dict[str, Any]:
        """The batch that was read ahead is told by the numbers that it was drawn with."""
        return self.before if self.ahead else self.stand()

    def resume(self, saved: Mapping[str, Any]) -> None:
        super().resume(saved)
        self.ahead = None
        if "draws" in saved:
            self.random = iter(saved["draws"]).__next__
            self.prefetch(saved["phase"])
            self.random = self.rand
            self.before["draws"] = list(saved["draws"])

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        self.prefetch()
        assert self.ahead is not None
        (images, labels), self.ahead = self.ahead, None
        self.prefetch()
        return [to_tensor(images, copy=False), to_tensor(labels.reshape(-1, 1, 1, 1), copy=False)]
