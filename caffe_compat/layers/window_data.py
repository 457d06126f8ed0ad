"""WindowData: windows cut from images, for R-CNN."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from caffe_compat.data.images import Image, read_image
from caffe_compat.data.random_numbers import draw_from, generator, set_state, state_of
from caffe_compat.data.sources import side_by_side
from caffe_compat.data.windows import Box, Warp, WindowFile, read_windows
from caffe_compat.errors import VggcError
from caffe_compat.layers.base import Shape, register
from caffe_compat.layers.base_data import MEAN, Floats, ImageSource, to_tensor
from caffe_compat.layers.files import inner_file, inner_path

if TYPE_CHECKING:
    from torch import Tensor

SOURCE = "window_data_param.source"
MODES = ("warp", "square")


class Drawn(NamedTuple):
    """A window that was drawn: image, label, corners; and whether it is mirrored."""

    window: NDArray[np.int64]
    label: int
    mirrored: bool


@register
class WindowData(ImageSource):
    """Top 0 (batch_size, C, crop_size, crop_size), top 1 (batch_size) labels: windows of `source`, drawn at random.

    batch_size * fg_fraction of them, the last, are windows with overlap >= fg_threshold, the others, with label 0, are
    below bg_threshold. A window is warped to the crop; with context_pad, or crop_mode "square", it is widened first,
    and what falls outside the image is 0. Then mean and window_data_param.scale (transform_param's is not used). C is
    that of the window file, 3 when the file is not there; images are decoded to three channels.
    Random numbers follow from the layer's name and from `context.state["seed"]`. Source: window_data_layer.cpp.
    """

    TYPE = "WindowData"
    V1 = ("WINDOW_DATA",)
    V0 = ("window_data",)
    PARAM = "window_data_param"

    def setup(self, bottoms: Sequence[Shape]) -> None:
        path = inner_file(self, self.p.source)
        self.file: WindowFile | None = None
        with self.reading():
            self.file = read_windows(path) if path else None
        super().setup(bottoms)
        self.check_means(self.image[0])
        self.mean = self.read_mean()
        crop, context = self.image[1], self.p.context_pad
        what = f"context_pad {context} leaves nothing of crop_size {crop}"
        self.check(2 * context < crop, what, field="window_data_param.context_pad", remedy="state less than its half")
        self.warp = Warp(crop, context, self.p.crop_mode == "square")
        rank = self.context.state.get("share", (0, 1))[0] if self.phase == "TRAIN" else 0
        self.numbers = generator(self.seed, self.name, "windows", str(rank))
        self.random = draw_from(self.numbers)
        self.cache: dict[int, Image] = {}
        if self.file:
            self._check_mean(crop)
            self._sort(self.file)

    def image_shape(self) -> Shape:
        crop = self.param.transform_param.crop_size
        self.check(crop > 0, "crop_size is 0", field="transform_param.crop_size", remedy="state the windows' size")
        return (self.file.channels if self.file else 3, crop, crop)

    def _check_mean(self, crop: int) -> None:
        """The middle of the mean image covers the crop; Caffe takes the middle of its width for both sides."""
        if self.mean is None:
            return
        offset = (self.mean.shape[2] - crop) // 2
        fine = self.mean.shape[0] >= self.image[0] and offset >= 0 and offset + crop <= self.mean.shape[1]
        what = f"the mean image {self.mean.shape} does not cover a crop of {self.image}"
        self.check(fine, what, field=MEAN, remedy="use a square mean image, at least as large")

    def _sort(self, file: WindowFile) -> None:
        """The windows of objects, and those of background."""
        self.objects = file.windows[file.overlaps >= F(self.p.fg_threshold)]
        other = (file.overlaps < F(self.p.bg_threshold)) & (file.overlaps < F(self.p.fg_threshold))
        self.background = file.windows[other]
        what = "a window of an object has label 0"
        fine = bool((self.objects[:, 1] > 0).all())
        self.check(fine, what, field=SOURCE, remedy="give objects labels from 1 on, or raise fg_threshold")

    # -- running -------------------------------------------------------------------------------------------

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        drawn = self._draw(self._running())
        images = side_by_side(self._image, drawn)
        labels = np.array([each.label for each in drawn], np.float32)
        return [to_tensor(np.stack(images)), to_tensor(labels)]

    def saved(self) -> dict[str, Any]:
        return {"random": state_of(self.numbers)}

    def resume(self, saved: Mapping[str, Any]) -> None:
        set_state(self.numbers, saved["random"])

    def _running(self) -> WindowFile:
        if self.file is None:
            path = inner_path(self, self.p.source, SOURCE)
            raise self.error(f'"{path}" does not exist', field=SOURCE, remedy=f"write it, or {self.as_input()}")
        if self.param.transform_param.mean_file and self.mean is None:
            path = inner_path(self, self.param.transform_param.mean_file, MEAN)
            raise self.error(f'"{path}" does not exist', field=MEAN, remedy="write it with vggc data mean")
        for kind, windows in (("background", self.background), ("objects", self.objects)):
            what = f'"{self.p.source}" has no windows of {kind}'
            self.check(len(windows) > 0, what, field=SOURCE, remedy="add some, or change the thresholds")
        return self.file

    def _draw(self, file: WindowFile) -> list[Drawn]:
        """The windows of the next batch, background first."""
        batch = self.p.batch_size
        objects = int(F(batch) * F(self.p.fg_fraction))
        return [self._draw_one(False) for _ in range(batch - objects)] + [self._draw_one(True) for _ in range(objects)]

    def _draw_one(self, wanted: bool) -> Drawn:
        windows = self.objects if wanted else self.background
        window = windows[self.random() % len(windows)]
        mirrored = self.param.transform_param.mirror and self.random() % 2 == 1
        return Drawn(window, int(window[1]) if wanted else 0, mirrored)

    def _image(self, drawn: Drawn) -> Floats:
        """A window of the net's size."""
        name = self.file.images[drawn.window[0]] if self.file else ""
        box = Box(*drawn.window[2:].tolist())
        try:
            part, top, left = self.warp(self._read(int(drawn.window[0]), name), box, drawn.mirrored)
        except ValueError as error:
            raise self.error(f'image "{name}": the window {error}', field=SOURCE, remedy="correct the file") from error
        rows, columns = slice(top, top + part.shape[0]), slice(left, left + part.shape[1])
        values = np.zeros(self.image, np.float32)
        values[:, rows, columns] = (part.transpose(2, 0, 1) - self._mean(rows, columns)) * F(self.p.scale)
        return values

    def _mean(self, rows: slice, columns: slice) -> Floats:
        """What is subtracted from a part of the crop."""
        if self.mean is None:
            values = self.param.transform_param.mean_value or [0]
            return np.array(values, np.float32).reshape(-1, 1, 1)
        offset = (self.mean.shape[2] - self.image[1]) // 2
        return self.mean[
            : self.image[0],
            rows.start + offset : rows.stop + offset,
            columns.start + offset : columns.stop + offset,
        ]

    def _read(self, index: int, name: str) -> Image:
        if index in self.cache:
            return self.cache[index]
        try:
            image = read_image(inner_path(self, self.p.root_folder + name, SOURCE))
        except VggcError as error:
            raise self.error(f'image "{name}": {error.what}', field=SOURCE, remedy=error.remedy) from error
        what = f'image "{name}" has {image.shape[2]} channels, the window file says {self.image[0]}'
        self.check(image.shape[2] == self.image[0], what, field=SOURCE, remedy="state channels 3")
        if self.p.cache_images:
            self.cache[index] = image
        return image


F = np.float32
