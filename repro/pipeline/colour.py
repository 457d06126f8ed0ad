"""The mean pixel of a set of images, and the directions in which their colours vary."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from caffe_compat.errors import FormatError
from caffe_compat.mapped import map_file
from caffe_compat.writing import new_file
from repro.image_sets import DataError, ImageSet

Floats = NDArray[np.float64]
MAGNITUDES = ("eigenvalue", "deviation")
STD = 0.1
LEVELS = 255.0
CHUNK = 64
"""Images that are read ahead."""
Progress = Callable[[int, int], None]
"""Is told how many images are done, of how many."""


@dataclass(frozen=True)
class Colour:
    """Principal components of pixels, to shift colours along (Sect. 4.1 of Krizhevsky et al. 2012).

    Attributes:
        directions: (3, 3), a unit vector a column, B G R.
        magnitudes: (3), in grey levels: what a shift of 1 along each direction means.
        std: standard deviation of the shifts.
    """

    directions: Floats
    magnitudes: Floats
    std: float = STD

    def shift(self, normals: Iterable[float]) -> Floats:
        """What to add to each pixel (B, G, R), from three numbers of variance 1."""
        alphas = np.fromiter(normals, np.float64) * self.std
        return np.asarray((self.directions * (alphas * self.magnitudes)).sum(axis=1), np.float64)


@dataclass(frozen=True)
class Statistics:
    """Means of the images' pixels; every image counts the same, whatever its size.

    Attributes:
        mean: (3) B G R.
        covariance: (3, 3) of the pixels, in grey levels squared.
        images: how many it was made of.
        unreadable: how many more could not be read.
        fingerprint: of the set, see `fingerprint`.
    """

    mean: Floats
    covariance: Floats
    images: int
    unreadable: int = 0
    fingerprint: str = ""

    def colour(self, magnitude: str = "eigenvalue", std: float = STD) -> Colour:
        """The principal components, the largest first, each with its largest entry positive.

        Args:
            magnitude: what a shift of 1 means. "eigenvalue", as the texts of both papers have it: the covariance's
                eigenvalue, of pixels from 0 to 1 (their scale is not stated; of 0 to 255 colours would be lost).
                "deviation", as Krizhevsky's program cuda-convnet2 has it: its square root, some three times as much.

        Raises:
            DataError: there is no such magnitude.
        """
        if magnitude not in MAGNITUDES:
            raise DataError(f'no magnitude called "{magnitude}"', remedy=f"magnitudes: {', '.join(MAGNITUDES)}")
        values, vectors = np.linalg.eigh(self.covariance)
        values, vectors = np.maximum(values[::-1], 0), vectors[:, ::-1]
        largest = vectors[np.abs(vectors).argmax(axis=0), range(3)]
        sizes = values / LEVELS if magnitude == "eigenvalue" else np.sqrt(values)
        return Colour(vectors * np.where(largest < 0, -1.0, 1.0), sizes, std)

    def write(self, path: Path) -> None:
        """Write them as JSON, with all digits.

        Raises:
            VggcError: it cannot be written.
        """
        record = {
            "mean_bgr": self.mean.tolist(),
            "covariance_bgr": self.covariance.tolist(),
            "images": self.images,
            "unreadable": self.unreadable,
            "set": self.fingerprint,
        }
        with new_file(path) as file:
            file.write(json.dumps(record, indent=2).encode() + b"\n")

    @classmethod
    def load(cls, path: Path) -> Statistics:
        """What `write` has written.

        Raises:
            FormatError: it is something else.
            VggcError: it may not be read.
        """
        data = map_file(path)
        try:
            record = json.loads(data[:])
            mean, covariance = (np.array(record[name], np.float64) for name in ("mean_bgr", "covariance_bgr"))
            counts = int(record["images"]), int(record["unreadable"])
            if mean.shape != (3,) or covariance.shape != (3, 3) or not np.isfinite([*mean, *covariance.ravel()]).all():
                raise ValueError("not of three colours")
            return cls(mean, covariance, *counts, str(record["set"]))
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            what = f"these are no statistics of images: {error}"
            raise FormatError(what, where=str(path), remedy="remove the file; it is made anew") from error
        finally:
            data.close()


def statistics(
    images: ImageSet,
    *,
    workers: int | None = None,
    most: int | None = None,
    strict: bool = False,
    progress: Progress | None = None,
) -> Statistics:
    """The statistics of a set, the same for any number of workers.

    Args:
        workers: threads; None for one a processor.
        most: use that many images, evenly spread over the set, instead of all.
        strict: an image that cannot be read is an error, not passed over.

    Raises:
        DataError: no image can be read, or one cannot and `strict` is set.
    """
    chosen = _spread(len(images), most)
    sums, products, count = np.zeros(3), np.zeros((3, 3)), 0
    failed: DataError | None = None
    with ThreadPoolExecutor(workers or os.cpu_count() or 1, "vggc-statistics") as pool:
        for start in range(0, len(chosen), CHUNK):
            for one in pool.map(lambda index: _moments(images, index), chosen[start : start + CHUNK]):
                if isinstance(one, DataError):
                    failed = failed or one
                    continue
                sums, products, count = sums + one[0], products + one[1], count + 1
            if failed is not None and strict:
                raise failed
            if progress:
                progress(min(start + CHUNK, len(chosen)), len(chosen))
    if not count:
        raise failed or DataError("there are no images", where=images.source, remedy="name a set with images")
    mean = sums / count
    covariance = products / count - np.outer(mean, mean)
    return Statistics(mean, covariance, count, len(chosen) - count, fingerprint(images))


def fingerprint(images: ImageSet) -> str:
    """A digest of the names in a set, by which a file of statistics is known to belong to it."""
    digest = hashlib.sha256()
    for name in images.items.names:
        digest.update(name.encode(errors="surrogateescape") + b"\0")
    return digest.hexdigest()


def cached_statistics(
    images: ImageSet, path: Path, compute: Callable[[ImageSet], Statistics] = statistics
) -> Statistics:
    """The statistics in a file when they are of this set; else they are computed and written there.

    Raises:
        VggcError: see `statistics`, `Statistics.load` and `Statistics.write`.
    """
    if path.exists():
        found = Statistics.load(path)
        if found.fingerprint == fingerprint(images):
            return found
    made = compute(images)
    made.write(path)
    return made


def _spread(count: int, most: int | None) -> list[int]:
    if most is None or most >= count:
        return list(range(count))
    return [position * count // most for position in range(most)]


def _moments(images: ImageSet, index: int) -> tuple[Floats, Floats] | DataError:
    """The mean of an image's pixels, and of their products; sums are exact (integers below 2**53)."""
    try:
        pixels = images.read(index).reshape(-1, 3).astype(np.float64)
    except DataError as error:
        return error
    return pixels.sum(axis=0) / len(pixels), pixels.T @ pixels / len(pixels)
