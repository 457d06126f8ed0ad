"""HDF5Output: writes its bottoms to a file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from caffe_compat.layers.base import Layer, Shape, register
from caffe_compat.layers.files import own_path, replacing

if TYPE_CHECKING:
    from torch import Tensor


@register
class HDF5Output(Layer):
    """Writes bottom 0 and 1 as datasets "data" and "label" (num, channels, height, width) to `file_name`.

    The file lies in the net's folder and is replaced by every forward pass; Caffe aborts at the second.
    Source: hdf5_output_layer.cpp.
    """

    TYPE = "HDF5Output"
    V1 = ("HDF5_OUTPUT",)
    V0 = ("hdf5_output",)
    PARAM = "hdf5_output_param"
    BOTTOMS = (2, 2)
    TOPS = (0, 0)
    BACKWARD = False

    def setup(self, bottoms: Sequence[Shape]) -> None:
        for position, shape in enumerate(bottoms):
            what = f"bottom {position} has {len(shape)} axes; HDF5Output allows 4"
            self.check(len(shape) <= 4, what, field=f"bottom[{position}]", remedy="put a Reshape layer before it")
        same = legacy(bottoms[0])[0] == legacy(bottoms[1])[0]
        what = f"bottoms of shape {bottoms[0]} and {bottoms[1]} differ in the first dimension"
        self.check(same, what, field="bottom[1]", remedy="write one batch")
        self.path = own_path(self, self.p.file_name, "hdf5_output_param.file_name")

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        return []

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        import h5py

        try:
            with replacing(self.path) as temporary, h5py.File(temporary, "w") as file:
                for name, bottom in zip(("data", "label"), bottoms, strict=True):
                    file.create_dataset(name, data=bottom.detach().cpu().view(legacy(tuple(bottom.shape))).numpy())
        except OSError as error:
            what = f'"{self.path.name}" cannot be written: {error}'
            field = "hdf5_output_param.file_name"
            raise self.error(what, field=field, remedy="name a file in a folder that may be written") from error
        return []


def legacy(shape: Shape) -> Shape:
    """A shape as (num, channels, height, width)."""
    return (*shape, 1, 1, 1, 1)[:4]
