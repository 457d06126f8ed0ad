"""Images decoded and rescaled by threads, ahead of the one that is worked on."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from caffe_compat.data.images import Image
from caffe_compat.errors import VggcError
from repro.image_sets import ImageSet
from repro.rescaling import BILINEAR, EVEN, rescale, resize

AHEAD = 3
"""Images a thread that may be ready or under way."""


@dataclass(frozen=True)
class Rescaling:
    """How an image comes to a scale.

    Attributes:
        rounding, interpolation: see `repro.rescaling`.
        square: both sides become Q, whatever the image's shape; only to see what that costs.
    """

    rounding: str = EVEN
    interpolation: str = BILINEAR
    square: bool = False

    def __call__(self, image: Image, scale: int) -> Image:
        if self.square:
            return resize(image, (scale, scale), self.interpolation)
        return rescale(image, scale, self.rounding, self.interpolation)


@dataclass(frozen=True)
class Fed:
    """One image.

    Attributes:
        index: its place in the set.
        views: scale -> the rescaled image; empty when it cannot be read.
        error: why it cannot.
    """

    index: int
    views: dict[int, Image]
    error: VggcError | None = None


def feed(
    images: ImageSet,
    indices: Sequence[int],
    scales: Callable[[int], Sequence[int]],
    rescaling: Rescaling,
    workers: int = 0,
) -> Iterator[Fed]:
    """The images in the order of `indices`.

    Args:
        scales: index -> the scales that are needed of that image.
        workers: threads; one for each processor when 0.
    """

    def make(index: int) -> Fed:
        try:
            image = images.read(index)
            return Fed(index, {scale: rescaling(image, scale) for scale in scales(index)})
        except VggcError as error:
            return Fed(index, {}, error)

    threads = workers or os.cpu_count() or 1
    waiting: deque[Future[Fed]] = deque()
    with ThreadPoolExecutor(threads, "vggc-feed") as pool:
        try:
            for index in indices:
                waiting.append(pool.submit(make, int(index)))
                if len(waiting) > AHEAD * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
