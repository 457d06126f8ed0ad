"""Batches of a set, made ahead by threads, cut for several processes, and resumable at any image."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from caffe_compat.data.images import Image, opencv
from repro.image_sets import DataError, ImageSet
from repro.pipeline.augment import Preparation, View, crop_of, write_floats
from repro.pipeline.draws import epoch_order

Floats = NDArray[np.float32]
AHEAD = 2
"""Batches that are made ahead."""
TOGETHER = 4
"""Images that a thread makes at once."""
IN_A_ROW = 1000
"""Images that stand beside each other and cannot be read are too many to go on."""


class Batch(NamedTuple):
    """This process's part of a batch.

    Attributes:
        data: (n, 3, crop, crop) float32, less the mean; or, with `pixels`, (n, crop, crop, 3) uint8. B G R.
        labels: (n) int64.
        subtracted: (n, 3) float32: what is, or with `pixels` is to be, subtracted from each channel.
        next: (epoch, position) from where to start to go on after this batch.
    """

    data: Floats | Image
    labels: NDArray[np.int64]
    subtracted: Floats
    next: tuple[int, int]


@dataclass
class Loader:
    """Batches of a set, in the order that follows from the preparation's seed.

    The images form one endless row, epoch after epoch, each in an order of its own; a batch is the next `batch_size`
    of the row and may reach over the end of an epoch. With several processes each makes a part of every batch, and the
    parts, one behind the other by rank, are the batch that one process would make. At most `ahead` + 1 batches are in
    memory besides those that the caller holds. OpenCV's own threads are off while a loader runs.

    An image that cannot be read is replaced by the next one in the set that can, seen as the missing one would have
    been.

    Attributes:
        images, augment, batch_size: what is loaded; the size is that of all processes together.
        workers: threads; None for one a processor.
        rank, world: which of how many processes this is.
        start: (epoch, position in it) of the first image, as `Batch.next` has it.
        strict: an image that cannot be read is an error.
        pixels: leave the arithmetic to the caller: a quarter of the memory and of the way to an accelerator.
            `data.float() - subtracted` has the same bits.
        once: one pass in the order of the set, the last batch being smaller, instead of the endless row.
        ahead: batches to make ahead.
        unreadable: images of this process that could not be read, by their index, with the reason.
        report: is told of each of them, once, from the thread that asks for batches.

    Raises:
        DataError: there are no images, or settings do not fit.
    """

    images: ImageSet
    augment: Preparation
    batch_size: int
    workers: int | None = None
    rank: int = 0
    world: int = 1
    start: tuple[int, int] = (0, 0)
    strict: bool = False
    pixels: bool = False
    once: bool = False
    ahead: int = AHEAD
    report: Callable[[DataError], None] | None = None
    unreadable: dict[int, DataError] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        if not len(self.images):
            raise DataError("there are no images", where=self.images.source, remedy="name a set with images")
        if self.batch_size < 1 or not 0 <= self.rank < self.world or self.ahead < 0:
            what = f"batch size {self.batch_size}, rank {self.rank} of {self.world}, {self.ahead} ahead"
            raise DataError(what, remedy="choose batch size >= 1, 0 <= rank < world, ahead >= 0")
        if min(self.start) < 0 or self.start[1] >= len(self.images):
            what = f"a start at image {self.start[1]} of epoch {self.start[0]} in a set of {len(self.images)}"
            raise DataError(what, where=self.images.source, remedy="go on with the set that the snapshot was made with")

    def __iter__(self) -> Iterator[Batch]:
        """The batches.

        Raises:
            DataError: an image cannot be read and `strict` is set, or too many cannot.
        """
        waiting: deque[_Job] = deque()
        workers = self.workers or os.cpu_count() or 1
        with _one_thread(), ThreadPoolExecutor(workers, "vggc-load") as pool:
            try:
                for job in self._jobs():
                    job.begin(pool)
                    waiting.append(job)
                    if len(waiting) > self.ahead:
                        yield self._finished(waiting.popleft())
                while waiting:
                    yield self._finished(waiting.popleft())
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _finished(self, job: _Job) -> Batch:
        batch = job.finish()
        for index, error in sorted(job.failed, key=lambda each: each[0]):
            if index not in self.unreadable:
                self.unreadable[index] = error
                if self.report:
                    self.report(error)
        return batch

    def _jobs(self) -> Iterator[_Job]:
        """This process's part of each batch."""
        for slots, end in self._once() if self.once else self._endless():
            first, last = (len(slots) * rank // self.world for rank in (self.rank, self.rank + 1))
            yield _Job(self, slots[first:last], end)

    def _once(self) -> Iterator[tuple[list[tuple[int, int]], tuple[int, int]]]:
        count, epoch = len(self.images), self.start[0]
        for first in range(self.start[1], count, self.batch_size):
            last = min(first + self.batch_size, count)
            yield [(epoch, index) for index in range(first, last)], divmod(epoch * count + last, count)

    def _endless(self) -> Iterator[tuple[list[tuple[int, int]], tuple[int, int]]]:
        """Epoch and index of each image of a batch, and where the next begins."""
        count = len(self.images)
        epoch, position = self.start
        order = epoch_order(self.augment.seed, epoch, count)
        while True:
            slots: list[tuple[int, int]] = []
            while len(slots) < self.batch_size:
                taken = order[position : position + self.batch_size - len(slots)].tolist()
                slots += [(epoch, index) for index in taken]
                position += len(taken)
                if position == count:
                    epoch, position = epoch + 1, 0
                    order = epoch_order(self.augment.seed, epoch, count)
            yield slots, (epoch, position)


class _Job:
    """The part of a batch that one process makes.

    Args:
        slots: epoch and index of each image.
    """

    def __init__(self, loader: Loader, slots: list[tuple[int, int]], end: tuple[int, int]) -> None:
        self.loader, self.slots, self.end = loader, slots, end
        self.failed: list[tuple[int, DataError]] = []
        self.futures: list[Future[None]] = []

    def begin(self, pool: ThreadPoolExecutor) -> None:
        """Have the images made."""
        count, crop = len(self.slots), self.loader.augment.crop
        self.data = (
            np.empty((count, crop, crop, 3), np.uint8)
            if self.loader.pixels
            else np.empty((count, 3, crop, crop), np.float32)
        )
        self.labels, self.subtracted = np.empty(count, np.int64), np.empty((count, 3), np.float32)
        self.futures = [pool.submit(self._make, first) for first in range(0, count, TOGETHER)]

    def finish(self) -> Batch:
        """Wait for them."""
        for future in self.futures:
            future.result()
        return Batch(self.data, self.labels, self.subtracted, self.end)

    def _make(self, first: int) -> None:
        for slot in range(first, min(first + TOGETHER, len(self.slots))):
            epoch, index = self.slots[slot]
            view = self.loader.augment.view(epoch, index)
            part, found = self._readable(index, view)
            self.labels[slot], self.subtracted[slot] = self.loader.images.items.labels[found], view.subtracted
            if self.loader.pixels:
                self.data[slot] = part
            else:
                write_floats(part, view.subtracted, self.data[slot])

    def _readable(self, index: int, view: View) -> tuple[Image, int]:
        """The crop of an image, or of the next that can be read, and its index."""
        loader, count = self.loader, len(self.loader.images)
        errors: list[DataError] = []
        for number in range(index, index + min(count, IN_A_ROW)):
            made = self._crop(number % count, view)
            if not isinstance(made, DataError):
                return made, number % count
            if loader.strict:
                raise made
            errors.append(made)
        what = f"{len(errors):,} images in a row cannot be read; the first: {errors[0].what}"
        raise DataError(what, where=errors[0].where, remedy=errors[0].remedy)

    def _crop(self, index: int, view: View) -> Image | DataError:
        if index in self.loader.unreadable:
            return self.loader.unreadable[index]
        try:
            return crop_of(self.loader.images, index, view, self.loader.augment)
        except DataError as error:
            self.failed.append((index, error))
            return error


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let OpenCV work in the thread that calls it."""
    cv2 = opencv()
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)
