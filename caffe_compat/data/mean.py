"""The mean image of a database (compute_image_mean.cpp)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from caffe_compat.data.records import Database, Record
from caffe_compat.data.sources import RecordSource, side_by_side
from caffe_compat.errors import FormatError
from caffe_compat.schema import pb
from caffe_compat.writing import new_file

CHUNK = 256
"""Records that are decoded at once."""


@dataclass(frozen=True)
class Mean:
    """A mean image.

    Attributes:
        values: (C, H, W) float32.
        count: images that it was made of.
    """

    values: NDArray[np.float32]
    count: int

    @property
    def channels(self) -> list[float]:
        """The mean of each channel, for mean_value."""
        return [float(value) for value in self.values.mean(axis=(1, 2), dtype=np.float64)]

    def write(self, path: Path) -> None:
        """Write it as a binary BlobProto of shape (1, C, H, W), as Caffe's tool does.

        Raises:
            VggcError: it cannot be written.
        """
        channels, height, width = self.values.shape
        blob = pb.BlobProto(num=1, channels=channels, height=height, width=width)
        blob.data.extend(self.values.ravel().tolist())
        with new_file(path) as file:
            file.write(blob.SerializeToString())


def mean_of(database: Database, progress: Callable[[int], None] | None = None) -> Mean:
    """The mean of all images of a database, which have one shape; encoded ones keep the channels that they have.

    Sums are kept in float32 and in the order of the keys, as Caffe does: with millions of images the last digits are
    those of Caffe, not of the exact mean.

    Args:
        progress: is told how many images are done.

    Raises:
        FormatError: the database is damaged or empty, or an image has another shape than the first.
    """
    source, items = RecordSource(database), database.items()
    total: NDArray[np.float32] | None = None
    count = 0
    while records := [Record(*item) for item in islice(items, CHUNK)]:
        for record, item in zip(records, side_by_side(source.load, records), strict=True):
            total = np.zeros(item.image.shape, np.float32) if total is None else total
            if item.image.shape != total.shape:
                what = f'record "{record.name}" has shape {item.image.shape}, the first one {total.shape}'
                remedy = "convert the images with --resize-height and --resize-width"
                raise FormatError(what, where=str(database.path), remedy=remedy)
            total += item.image
        count += len(records)
        if progress:
            progress(count)
    if total is None:
        raise FormatError("this database holds no record", where=str(database.path), remedy="write records into it")
    return Mean(total / np.float32(count), count)
