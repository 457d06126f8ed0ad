"""Data: images and labels from LMDB or LevelDB."""

from __future__ import annotations

from collections.abc import Sequence

from caffe_compat.layers.base import Shape, register
from caffe_compat.layers.base_data import ImageSource
from caffe_compat.layers.dec2013 import check_fields


@register
class Data(ImageSource):
    """Top 0 (batch_size, C, H, W), top 1 (batch_size) labels, from the Datum records of `data_param.source`.

    H and W are `transform_param.crop_size`, else those of the mean file, which has the size of the images. C is that
    of the mean file, the number of mean values when there are several, 1 with force_gray, else 3; the database is not
    opened for it. Source: data_layer.cpp, data_transformer.cpp.
    """

    TYPE = "Data"
    V1 = ("DATA",)
    V0 = ("data",)
    PARAM = "data_param"
    TOPS = (1, 2)

    def image_shape(self) -> Shape:
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
        remedy = f"state transform_param.crop_size, or {self.as_input()}"
        raise self.error(what, field=f"{self.PARAM}.source", remedy=remedy)


@register
class Data2013(Data):
    """As Data, with exactly two tops and labels (batch_size, 1, 1, 1).

    A crop must be smaller than the image, and mirror needs a crop. Source: data_layer.cpp of December 2013.
    """

    PROFILES = ("dec2013",)
    TOPS = (2, 2)

    def setup(self, bottoms: Sequence[Shape]) -> None:
        check_fields(self, ("source", "batch_size", "rand_skip"))
        transform = self.param.transform_param
        what = "mirror without crop_size"
        fine = transform.crop_size > 0 or not transform.mirror
        self.check(fine, what, field="transform_param.mirror", remedy="state a crop_size, or mirror: false")
        super().setup(bottoms)

    def image_shape(self) -> Shape:
        shape, mean = super().image_shape(), self.mean_shape()
        crop = self.param.transform_param.crop_size
        what = f"crop_size {crop} is not smaller than the images {mean}"
        fine = not crop or mean is None or crop < min(mean[1:])
        self.check(fine, what, field="transform_param.crop_size", remedy="leave crop_size out")
        return shape

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        batch = self.p.batch_size
        return [(batch, *self.image), (batch, 1, 1, 1)]
