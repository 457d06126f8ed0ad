"""ImageData: images and labels from a list of files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from caffe_compat.data.lists import read_list
from caffe_compat.data.random_numbers import generator
from caffe_compat.data.sources import Item, ListSource, Source
from caffe_compat.layers.base import Shape, register
from caffe_compat.layers.base_data import TransformedSource
from caffe_compat.layers.files import inner_file, inner_name, inner_path

SOURCE = "image_data_param.source"


@register
class ImageData(TransformedSource):
    """Top 0 (batch_size, C, H, W), top 1 (batch_size) labels, from the lines "file label" of `source`.

    A file's name is `root_folder` and what the line has, one after the other without a slash between. Images are
    decoded to three channels (BGR), or to one with is_color: false, and resized to new_height x new_width where stated.
    `shuffle` puts them into another order for every round; at the start rand_skip of them at most are left out.
    Without the list, or its first image, H and W are `crop_size`, else new_height and new_width.
    Source: image_data_layer.cpp.
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

    def open_source(self) -> Source | None:
        path = inner_file(self, self.p.source)
        if path is None:
            return None
        return ListSource(
            read_list(path),
            self._find,
            color=self.p.is_color,
            size=(self.p.new_height, self.p.new_width),
            shuffle=generator(self.seed, self.name, "shuffle") if self.p.shuffle else None,
        )

    def first_item(self, source: Source) -> Item | None:
        """The first image; None when it is not there, as in a net that came without its images, and the net states a
        size."""
        assert isinstance(source, ListSource)
        name = source.images.names[source.peek()]
        stated = self.param.transform_param.crop_size or self.p.new_height
        return None if stated and inner_name(self, self.p.root_folder + name) is None else super().first_item(source)

    def _find(self, name: str) -> Path:
        root: str = self.p.root_folder
        path = inner_path(self, root + name, SOURCE)
        what = f'"{root}{name}" does not exist, "{root}/{name}" does'
        fine = not root or path.exists() or not inner_path(self, f"{root}/{name}", SOURCE).exists()
        self.check(fine, what, field="image_data_param.root_folder", remedy="end root_folder with a slash")
        return path

    def start(self, source: Source) -> None:
        if not self.p.rand_skip:
            return
        skip = self.random() % self.p.rand_skip
        what = f"rand_skip leaves out {skip} images, and the list has no more"
        assert isinstance(source, ListSource)
        self.check(skip < len(source.order), what, field="image_data_param.rand_skip", remedy="state a smaller one")
        source.skip(skip)

    def declared_shape(self) -> Shape:
        size = (self.p.new_height, self.p.new_width)
        crop = self.param.transform_param.crop_size
        what = f"crop_size {crop} is larger than new_height {size[0]} x new_width {size[1]}"
        fine = not size[0] or crop <= min(size)
        self.check(fine, what, field="transform_param.crop_size", remedy="crop less, or resize to more")
        what = f'the size of the images in "{self.p.source}" is not known without reading one'
        remedy = f"write it, state new_height and new_width or crop_size, or {self.as_input()}"
        self.check(bool(crop or size[0]), what, field=SOURCE, remedy=remedy)
        return (3 if self.p.is_color else 1, *((crop, crop) if crop else size))
