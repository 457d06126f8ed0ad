"""What Caffe's data layers have in common (base_data_layer.cpp, data_transformer.cpp)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from caffe_compat.errors import ConversionError
from caffe_compat.layers.base import Layer, OnnxWriter, Shape
from caffe_compat.layers.files import inner_file, read_blob

if TYPE_CHECKING:
    from torch import Tensor


class SourceLayer(Layer):
    """Base of layers without bottoms that bring data into the net."""

    BOTTOMS = (0, 0)
    BACKWARD = False

    def to_onnx(self, g: OnnxWriter, bottoms: list[str], tops: list[str], blobs: list[str]) -> None:
        raise ConversionError(
            f"{self.TYPE} reads data, an ONNX model takes it as input", where=self.where("type"), remedy=self.as_input()
        )

    def as_input(self) -> str:
        """The remedy that always works."""
        return f"replace this layer by an Input layer with top {', '.join(self.param.top) or 'of that name'}"


class ImageSource(SourceLayer):
    """Base of layers that read and transform images: top 0 (batch, C, H, W), top 1 labels (batch)."""

    TOPS = (2, 2)

    def setup(self, bottoms: Sequence[Shape]) -> None:
        transform = self.param.transform_param
        both = transform.HasField("mean_file") and len(transform.mean_value) > 0
        what = "transform_param has both mean_file and mean_value"
        self.check(not both, what, field="transform_param.mean_value", remedy="keep one of them")
        what = "batch_size is 0"
        self.check(self.p.batch_size > 0, what, field=f"{self.PARAM}.batch_size", remedy="state a positive batch_size")
        self.image = self.image_shape()

    def image_shape(self) -> Shape:
        """(C, H, W) of the transformed images.

        Raises:
            LayerError: it is not known without reading the source.
        """
        raise NotImplementedError(self.TYPE)

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        batch = self.p.batch_size
        return [(batch, *self.image), (batch,)][: self.tops]

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        raise self.error(f'reading "{self.p.source}" is not possible yet', field="type", remedy=self.as_input())

    def mean_shape(self) -> Shape | None:
        """(C, H, W) of the mean file, None when none is stated or it is not there."""
        transform = self.param.transform_param
        if not transform.HasField("mean_file"):
            return None
        path = inner_file(self, transform.mean_file)
        if path is None:
            return None
        shape, _ = read_blob(self, path, "transform_param.mean_file")
        what = f'the mean in "{path.name}" has shape {shape}; it must be (1, C, H, W)'
        fine = len(shape) >= 3 and all(size == 1 for size in shape[:-3])
        self.check(fine, what, field="transform_param.mean_file", remedy="use the mean of these images")
        return shape[-3:]

    def check_means(self, channels: int) -> None:
        """One mean_value for all channels, or one each."""
        given = len(self.param.transform_param.mean_value)
        what = f"{given} mean_value entries for {channels} channel(s)"
        remedy = "state one, or one per channel"
        self.check(given in (0, 1, channels), what, field="transform_param.mean_value[0]", remedy=remedy)


def to_tensor(array: np.ndarray) -> Tensor:
    """A tensor of its own memory in torch's default type, on its default device."""
    import torch

    copy: Any = np.array(array)
    return torch.as_tensor(copy, dtype=torch.get_default_dtype())
