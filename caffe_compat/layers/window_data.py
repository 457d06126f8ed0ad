"""WindowData: windows cut from images, for R-CNN."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from caffe_compat.layers.base import Shape, register
from caffe_compat.layers.base_data import ImageSource
from caffe_compat.layers.files import inner_file

HEAD = 2**16
"""Bytes of the window file in which the first image is described."""


@register
class WindowData(ImageSource):
    """Top 0 (batch_size, C, crop_size, crop_size), top 1 (batch_size) labels, from the windows of `source`.

    C is that of the first image in the window file ("# index, path, channels, height, width, ..."), 3 when the file is
    not there. Source: window_data_layer.cpp.
    """

    TYPE = "WindowData"
    V1 = ("WINDOW_DATA",)
    V0 = ("window_data",)
    PARAM = "window_data_param"

    def setup(self, bottoms: Sequence[Shape]) -> None:
        super().setup(bottoms)
        self.check_means(self.image[0])

    def image_shape(self) -> Shape:
        crop = self.param.transform_param.crop_size
        self.check(crop > 0, "crop_size is 0", field="transform_param.crop_size", remedy="state the windows' size")
        return (self._channels(), crop, crop)

    def _channels(self) -> int:
        field = "window_data_param.source"
        path = inner_file(self, self.p.source)
        if path is None:
            return 3
        with open(path, "rb") as file:
            words = list(islice(file.read(HEAD).split(), 4))
        fine = len(words) == 4 and words[0] == b"#" and words[3].isdigit() and int(words[3][:9]) > 0
        what = f'"{path.name}" does not start with "# index", a path and a number of channels'
        self.check(fine, what, field=field, remedy="write the window file as R-CNN does")
        return int(words[3][:9])
