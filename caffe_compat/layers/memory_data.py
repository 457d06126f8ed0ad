"""MemoryData: batches from arrays in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from caffe_compat.layers.base import Shape, register
from caffe_compat.layers.base_data import SourceLayer, check_means, to_tensor

if TYPE_CHECKING:
    from torch import Tensor


@register
class MemoryData(SourceLayer):
    """Tops: batches of the arrays given by `set_arrays`, in turn and from the start again; nothing is transformed.

    Top 0 (batch_size, channels, height, width), top 1 labels: (batch_size) while the net is built, and
    (batch_size, 1, 1, 1) from the first forward pass on. Source: memory_data_layer.cpp.
    """

    TYPE = "MemoryData"
    V1 = ("MEMORY_DATA",)
    PARAM = "memory_data_param"
    TOPS = (2, 2)

    def setup(self, bottoms: Sequence[Shape]) -> None:
        check_means(self)
        for name in ("batch_size", "channels", "height", "width"):
            field = f"memory_data_param.{name}"
            self.check(getattr(self.p, name) > 0, f"{name} is 0", field=field, remedy=f"state a positive {name}")
        self.item: Shape = (self.p.channels, self.p.height, self.p.width)
        self.arrays: tuple[np.ndarray, np.ndarray] | None = None
        self.position = 0

    def top_shapes(self, bottoms: Sequence[Shape]) -> list[Shape]:
        return [(self.p.batch_size, *self.item), (self.p.batch_size,)]

    def set_arrays(self, data: np.ndarray, labels: np.ndarray) -> None:
        """The arrays to take batches from, from their start.

        Args:
            data: (n, channels, height, width), n a multiple of batch_size; not copied.
            labels: (n) or (n, 1, 1, 1).

        Raises:
            LayerError: other shapes.
        """
        what = f"data of shape {data.shape}; the layer takes (n, {', '.join(map(str, self.item))})"
        self.check(data.shape[1:] == self.item, what, remedy="reshape the array")
        what = f"labels of shape {labels.shape} for {len(data)} items"
        fine = labels.ndim > 0 and labels.size == len(labels) == len(data)
        self.check(fine, what, remedy="give one label per item")
        batch = self.p.batch_size
        what = f"{len(data)} items; batch_size is {batch}"
        self.check(len(data) > 0 and len(data) % batch == 0, what, remedy=f"give a multiple of {batch}")
        self.arrays = data, labels.reshape(-1, 1, 1, 1)
        self.position = 0

    def saved(self) -> dict[str, Any]:
        return {"position": self.position}

    def resume(self, saved: Mapping[str, Any]) -> None:
        self.position = int(saved["position"])

    def forward(self, bottoms: list[Tensor], blobs: list[Tensor]) -> list[Tensor]:
        if self.arrays is None:
            raise self.error("MemoryData has no arrays", remedy="call net.set_input_arrays(data, labels) first")
        batch = slice(self.position, self.position + self.p.batch_size)
        self.position = batch.stop % len(self.arrays[0])
        return [to_tensor(array[batch]) for array in self.arrays]
