"""The images of a run: those to train with, cut at random, and those to validate with, cut in the middle."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from repro.datasets import DataError, ImageSet, open_images, require_labels
from repro.pipeline import Augment, Centre, Loader, Statistics
from repro.pipeline import Batch as Loaded
from repro.training.group import Group
from repro.training.passes import Batch, floats
from repro.training.settings import Settings

VALIDATED = 64
"""Images of a pass in validation, in all processes together."""


class Feed(Protocol):
    """Where images come from."""

    @property
    def count(self) -> int:
        """Images of the training set."""

    def batches(self, start: int) -> Iterator[Batch]:
        """This process's part of each batch, from iteration `start` on, without end."""

    def validation(self) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's part of the images for validation, with labels."""


def open_sets(settings: Settings) -> tuple[ImageSet, ImageSet]:
    """The images for training and for validation.

    Raises:
        VggcError: they are not there, or do not fit together.
    """
    labels, root = (Path(name) if name else None for name in (settings.labels, settings.root))
    train = open_images(settings.data, labels=labels, root=root, split="train")
    val = open_images(settings.data, labels=labels, root=root, split="val")
    for images in (train, val):
        require_labels(images, len(train.classes))
    return train, val


class Images:
    """Both sets, prepared as Sect. 3.1 says.

    Args:
        train, val: the images.
        settings: of the run.
        crop: side of the crops.
        statistics: of the images for training.
        group: the processes.
        report: is told of images that cannot be read.
    """

    def __init__(
        self,
        train: ImageSet,
        val: ImageSet,
        settings: Settings,
        crop: int,
        statistics: Statistics,
        group: Group,
        report: Callable[[DataError], None] = lambda _error: None,
    ) -> None:
        self.train, self.val, self.group = train, val, group
        self.settings, self.report = settings, report
        self.unreadable: dict[str, str] = {}
        least, most = settings.scale[0], settings.scale[-1]
        colour = statistics.colour() if settings.colour else None
        self._augment = Augment(settings.seed, crop, (least, most), statistics.mean, colour, settings.flip)
        self._centre = Centre(crop, settings.validation_scale, statistics.mean)
        group.share(settings.batch)

    @property
    def count(self) -> int:
        return len(self.train)

    def batches(self, start: int) -> Iterator[Batch]:
        """See `Feed`."""
        place = divmod(start * self.settings.batch, self.count)
        first = self.group.rank * self.group.share(self.settings.batch)
        for number, loaded in enumerate(self._loader(self.train, self._augment, self.settings.batch, place)):
            yield Batch(start + number, *self._tensors(loaded), first)

    def validation(self) -> Iterator[tuple[Tensor, Tensor]]:
        """See `Feed`."""
        for loaded in self._loader(self.val, self._centre, VALIDATED, (0, 0), once=True):
            if len(loaded.labels):
                images, labels, subtracted = self._tensors(loaded)
                yield floats(images.to(self.group.device, non_blocking=True), subtracted), labels

    def _loader(
        self, images: ImageSet, how: Augment | Centre, size: int, start: tuple[int, int], once: bool = False
    ) -> Loader:
        settings, group = self.settings, self.group
        return Loader(
            images,
            how,
            size,
            workers=settings.workers or None,
            rank=group.rank,
            world=group.world,
            start=start,
            strict=settings.strict_data,
            pixels=group.device.type == "cuda",
            once=once,
            report=self._unreadable,
        )

    def _tensors(self, loaded: Loaded) -> tuple[Tensor, Tensor, Tensor | None]:
        """Images, labels and, where the images are pixels yet, what is to be subtracted from these."""
        pin = self.group.device.type == "cuda"
        images, labels, subtracted = (torch.from_numpy(each) for each in loaded[:3])
        if not pin:
            return images, labels, None
        return images.pin_memory(), labels.pin_memory(), subtracted.to(self.group.device)

    def _unreadable(self, error: DataError) -> None:
        self.unreadable[str(error.where)] = error.what
        self.report(error)
