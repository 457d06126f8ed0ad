"""ImageData: images and labels from a list of files."""

from __future__ import annotations

from collections.abc import Sequence

from caffe_compat.layers.base import Shape, register
from caffe_compat.layers.base_data import ImageSource


@register
class ImageData(ImageSource):
    """Top 0 (batch_size, C, H, W), top 1 (batch_size) labels, from the lines "file label" of `source`.

    C is 3, or 1 with is_color: false. H and W are `transform_param.crop_size`, else new_height and new_width; without
    either the first image would have to be read. Source: image_data_layer.cpp.
    """

    TYPE = "ImageData"
    V1 = ("IMAGE_DATA",)
    V0 = ("images",)
    PARAM = "image_data_param"

    def setup(self, bottoms: Sequence[Shape]) -> None:
        height, width = self.p.new_height, self.p.new_width
        what = f"new_height {height} without new_width" if height else f"new_width {width} without new_height"
        fine = bool(height) == bool(width)
        field = "image_data_param.new_height" if height else "image_data_param.new_width"
        self.check(fine, what, field=field, remedy="state both or none")
        super().setup(bottoms)
        self.check_means(self.image[0])

    def image_shape(self) -> Shape:
        size = (self.p.new_height, self.p.new_width)
        crop = self.param.transform_param.crop_size
        what = f"crop_size {crop} is larger than new_height {size[0]} x new_width {size[1]}"
        fine = not size[0] or crop <= min(size)
        self.check(fine, what, field="transform_param.crop_size", remedy="crop less, or resize to more")
        what = f'the size of the images in "{self.p.source}" is not known without reading one'
        remedy = f"state new_height and new_width or crop_size, or {self.as_input()}"
        self.check(bool(crop or size[0]), what, field="image_data_param.source", remedy=remedy)
        return (3 if self.p.is_color else 1, *((crop, crop) if crop else size))
