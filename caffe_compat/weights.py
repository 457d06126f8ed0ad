"""Parameter blobs by layer name, in memory or still in their file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np

from caffe_compat.errors import Where

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Blob:
    """One parameter blob.

    Attributes:
        shape: as the file states it; four sizes when `legacy`.
        values: the numbers, one-dimensional float32, float64 or float16 in C order; a view of the mapped file where
            its encoding allows (little endian, packed), and then possibly unaligned and read-only.
        legacy: the file gives num/channels/height/width, so leading ones may be missing from the true shape.
        path, offset: where `values` lies as one run of bytes in a file, "" and -1 when it does not.
        where: place for messages.
    """

    shape: Shape
    values: np.ndarray
    legacy: bool = False
    path: str = ""
    offset: int = -1
    where: Where = field(default_factory=Where)

    @property
    def array(self) -> np.ndarray:
        """The values in `shape`."""
        return self.values.reshape(self.shape)

    def matches(self, shape: Sequence[int]) -> bool:
        """Whether Caffe would copy this blob into one of `shape` (Blob::ShapeEquals)."""
        if not self.legacy:
            return self.shape == tuple(shape)
        return len(shape) <= 4 and (1,) * (4 - len(shape)) + tuple(shape) == self.shape

    def __post_init__(self) -> None:
        if self.values.size != prod(self.shape):
            raise ValueError(f"{self.values.size} values for shape {self.shape}")


@dataclass(frozen=True)
class LayerBlobs:
    """The blobs of one layer in a weight file.

    Attributes:
        name: the layer's name, which binds it to a net.
        blobs: in Caffe's order as far as the file tells it.
        type: the V2 type string when the file says it, else "".
        names: what the file calls the blobs: "weight", "bias" or another name in the layer's BLOBS, or an index;
            shared blobs may be left out. () stands for 0, 1, ...
    """

    name: str
    blobs: tuple[Blob, ...]
    type: str = ""
    where: Where = field(default_factory=Where)
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Weights:
    """All blobs of a file, in file order; a name may come more than once (Caffe lets the last one win).

    Attributes:
        format: "caffemodel", "hdf5", "safetensors" or "pt".
        metadata: entries of a safetensors header; "caffe_net" is the net as prototxt text.
        notes: what the file holds besides and was not read.
    """

    layers: tuple[LayerBlobs, ...]
    source: str = ""
    format: str = "caffemodel"
    metadata: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[LayerBlobs]:
        return iter(self.layers)

    @property
    def count(self) -> int:
        """Number of values in all blobs."""
        return sum(blob.values.size for layer in self.layers for blob in layer.blobs)
