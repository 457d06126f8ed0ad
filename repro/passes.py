"""Running a net over rescaled images: crops in batches, whole images by shape, results one by one.

Crops of several images share a batch, and so do whole images of one shape, each with its mirror. A batch is limited
by its pixels. An image that alone is beyond the limit is cut into parts along its longer side, which overlap by what a
place of the result depends on; what is computed is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from caffe_compat.data.images import Image
from caffe_compat.graph import Graph
from caffe_compat.receptive import Field, receptive_fields
from repro.engines import Engine
from repro.models import Preparation
from repro.protocols import CROPS, Crop, Floats, softmax

PIXELS = {"cpu": 2**20, "cuda": 2**23}
"""Pixels of a batch by kind of device. VGG nets need about half a KiB a pixel."""
WAITING = 4
"""As many times the pixels of a batch wait until there are enough images of one shape."""


@dataclass(frozen=True)
class Reading:
    """What is taken from the net.

    Attributes:
        blobs: read for each crop, or at each place of a whole image; values of several stand one behind the other.
        normalised: Softmax it at once, over the channels.
        finish: what becomes of a whole image's mean over places, before the mean with its mirror's.
    """

    blobs: tuple[str, ...]
    normalised: bool = False
    finish: Callable[[Floats], Floats] = lambda mean: mean


def posterior_reading(scores: str, posteriors: str) -> Reading:
    """Posteriors, from the net's own Softmax where it has one."""
    return Reading((posteriors,)) if posteriors else Reading((scores,), normalised=True)


def score_reading(scores: str) -> Reading:
    """Scores, which Softmax follows after the mean over places."""
    return Reading((scores,), finish=softmax)


Sink = Callable[[int, str, int, Floats], None]
"""Takes (image, pass, scale, result)."""


@dataclass
class _Sum:
    """The results of an image's crops so far."""

    wanted: int
    total: Floats | None = None
    done: int = 0

    def add(self, value: Floats) -> bool:
        """Whether that was the last one."""
        self.total = value if self.total is None else self.total + value
        self.done += 1
        return self.done == self.wanted


_Kind = tuple[int, int, tuple[str, ...]]
"""Height, width, passes."""


@dataclass
class _Bucket:
    """Whole images of one shape, through the same passes."""

    images: list[tuple[int, int, Image]] = field(default_factory=list)

    @property
    def pixels(self) -> int:
        return sum(image.shape[0] * image.shape[1] for _, _, image in self.images)


class Runner:
    """Takes rescaled images and gives the results of passes to a sink, not in the order of the images.

    Args:
        engine: runs the net.
        prepare: pixels -> input.
        crop: side of the net's input.
        crops: passes over crops -> what is read.
        whole: passes over whole images -> what is read.
        sink: see Sink; it may be set later.
        pixels: limit of a batch; 0 for the device's in `PIXELS`.
        graph: the net for whole images, which tells how images may be cut; without it they are not.
        mirror: take mirrors too, of crops and of whole images.
    """

    def __init__(
        self,
        engine: Engine,
        prepare: Preparation,
        crop: int,
        crops: Mapping[str, Reading],
        whole: Mapping[str, Reading],
        sink: Sink = lambda *_: None,
        *,
        pixels: int = 0,
        graph: Graph | None = None,
        mirror: bool = True,
    ) -> None:
        self.engine, self.prepare, self.crop, self.sink, self.mirror = engine, prepare, crop, sink, mirror
        self.crops, self.whole = dict(crops), dict(whole)
        self.limit = pixels or PIXELS.get(engine.device.type, PIXELS["cpu"])
        self.batch = max(1, self.limit // (crop * crop))
        self.tiles = Tiles.of(graph, {blob for each in whole.values() for blob in each.blobs}) if graph else None
        self._queue: list[tuple[int, str, int, Tensor]] = []
        self._sums: dict[tuple[int, str, int], _Sum] = {}
        self._buckets: dict[_Kind, _Bucket] = {}

    def add(self, index: int, scale: int, image: Image, names: Sequence[str] | None = None) -> None:
        """Take a rescaled image (H, W, 3), BGR, through some of the passes, or all of them."""
        crops, whole = (tuple(n for n in known if names is None or n in names) for known in (self.crops, self.whole))
        if crops:
            self._add_crops(index, scale, image, crops)
        if whole:
            kind = (image.shape[0], image.shape[1], whole)
            bucket = self._buckets.setdefault(kind, _Bucket())
            bucket.images.append((index, scale, image))
            if 2 * bucket.pixels >= self.limit:
                self._run_whole(kind)
            while sum(each.pixels for each in self._buckets.values()) > WAITING * self.limit:
                self._run_whole(max(self._buckets, key=lambda each: self._buckets[each].pixels))

    def finish(self) -> None:
        """Run what still waits for others."""
        while self._queue:
            self._run_crops()
        for kind in list(self._buckets):
            self._run_whole(kind)

    def first_batch(self, image: Image) -> tuple[Tensor, Reading, bool]:
        """A batch such as this image gives: for trying engines."""
        if self.crops:
            name, reading = next(iter(self.crops.items()))
            places = self._places(name, image)
            cut = list(self._cut(image, places))[: self.batch]
            return torch.stack(cut), reading, False
        rows, columns = (min(size, max(self.crop, self.limit // (2 * image.shape[0]))) for size in image.shape[:2])
        pair = self._pair([image[:rows, :columns]])
        return pair, next(iter(self.whole.values())), True

    # -- crops ---------------------------------------------------------------------------------------------------

    def _add_crops(self, index: int, scale: int, image: Image, names: Sequence[str]) -> None:
        for name in names:
            places = self._places(name, image)
            self._sums[index, name, scale] = _Sum(len(places))
            for crop in self._cut(image, places):
                self._queue.append((index, name, scale, crop))
                if len(self._queue) >= self.batch:
                    self._run_crops()

    def _places(self, name: str, image: Image) -> list[Crop]:
        places = CROPS[name](image.shape[0], image.shape[1], self.crop)
        return [place for place in places if self.mirror or not place.mirrored]

    def _cut(self, image: Image, places: Sequence[Crop]) -> Iterator[Tensor]:
        """Views of the image, or of its mirror, that the crops are."""
        x = self._input(image)
        mirror, side = x.flip(-1) if any(place.mirrored for place in places) else x, self.crop
        for y, left, mirrored in places:
            start = x.shape[-1] - left - side if mirrored else left
            yield (mirror if mirrored else x)[:, y : y + side, start : start + side]

    def _input(self, image: Image) -> Tensor:
        return torch.from_numpy(self.prepare(image)).to(self.engine.device)

    def _run_crops(self) -> None:
        queue, self._queue = self._queue[: self.batch], self._queue[self.batch :]
        x = torch.stack([crop for *_, crop in queue])
        readings = list(dict.fromkeys(self.crops[name] for _, name, _, _ in queue))
        found = self._run(x, readings, False)
        values = {reading: _each(reading, value) for reading, value in zip(readings, found, strict=True)}
        for row, (index, name, scale, _) in enumerate(queue):
            key = (index, name, scale)
            if self._sums[key].add(values[self.crops[name]][row]):
                total = self._sums.pop(key)
                assert total.total is not None
                self.sink(index, name, scale, total.total / total.wanted)

    # -- whole images --------------------------------------------------------------------------------------------

    def _run_whole(self, kind: _Kind) -> None:
        images, (height, width, names) = self._buckets.pop(kind).images, kind
        most = max(1, self.limit // (2 * height * width))
        for start in range(0, len(images), most):
            part = images[start : start + most]
            means = self.means([image for _, _, image in part], names)
            for name, mean in zip(names, means, strict=True):
                for (index, scale, _), flips in zip(part, mean, strict=True):
                    each = [self.whole[name].finish(flip) for flip in flips]
                    self.sink(index, name, scale, sum(each[1:], each[0]) / len(each))

    def means(self, images: Sequence[Image], names: Sequence[str] | None = None) -> list[Floats]:
        """For each pass what is read of images of one shape and of their mirrors, in the mean over places.

        (images, 2, channels), 1 without mirrors; `names` says which passes, by default all.
        """
        shape, readings = images[0].shape[:2], [self.whole[name] for name in names or self.whole]
        if 2 * shape[0] * shape[1] * len(images) <= self.limit or self.tiles is None:
            found = self._place_means(self._pair(images), readings)
        else:
            each = [self._one_by_one(image, readings) for image in images]
            found = [np.concatenate(pairs) for pairs in zip(*each, strict=True)]
        return [values.reshape(len(images), 1 + self.mirror, -1) for values in found]

    def _one_by_one(self, image: Image, readings: Sequence[Reading]) -> list[Floats]:
        """As `_place_means` for one large image and its mirror, one after the other, in parts where that is needed."""
        flips = (image, np.ascontiguousarray(image[:, ::-1]))[: 1 + self.mirror]
        each = [self._parts(flip, readings) for flip in flips]
        return [np.concatenate(pair) for pair in zip(*each, strict=True)]

    def _parts(self, image: Image, readings: Sequence[Reading]) -> list[Floats]:
        height, width = image.shape[:2]
        if height * width <= self.limit or self.tiles is None:
            return self._place_means(self._input(image)[None], readings)
        totals: list[Floats] | None = None
        along, across = (0, width) if height > width else (1, height)
        places = 0
        for part in self.tiles.cut(image.shape[along], self.limit // across, along):
            window = image[part.start : part.stop] if along == 0 else image[:, part.start : part.stop]
            maps = self._run(self._input(window)[None], readings, True)
            kept = [[each.narrow(2 + along, part.first, part.count) for each in blobs] for blobs in maps]
            sums = [_over_places(r, each, torch.sum) for r, each in zip(readings, kept, strict=True)]
            totals = sums if totals is None else [a + b for a, b in zip(totals, sums, strict=True)]
            places += kept[0][0][0, 0].numel()
        assert totals is not None
        return [total / places for total in totals]

    def _place_means(self, x: Tensor, readings: Sequence[Reading]) -> list[Floats]:
        """Means over places, (N, channels) for each reading."""
        maps = self._run(x, readings, True)
        return [_over_places(r, each, torch.mean) for r, each in zip(readings, maps, strict=True)]

    def _run(self, x: Tensor, readings: Sequence[Reading], whole: bool) -> list[list[Tensor]]:
        """The blobs of each reading."""
        blobs = blobs_of(readings)
        found = dict(zip(blobs, self.engine.run(x, blobs, whole), strict=True))
        return [[found[blob] for blob in reading.blobs] for reading in readings]

    def _pair(self, images: Sequence[Image]) -> Tensor:
        """Each image and its mirror, one behind the other."""
        x = torch.stack([self._input(image) for image in images])
        if not self.mirror:
            return x
        return torch.stack([x, x.flip(-1)], 1).flatten(0, 1)


def blobs_of(readings: Iterable[Reading]) -> list[str]:
    """Every blob that is read, once."""
    return list(dict.fromkeys(blob for reading in readings for blob in reading.blobs))


def _each(reading: Reading, blobs: Sequence[Tensor]) -> Floats:
    """(N, values) of crops."""
    flat = torch.cat([blob.flatten(1).double() for blob in blobs], 1)
    values: Floats = (flat.softmax(1) if reading.normalised else flat).cpu().numpy()
    return values


def _over_places(reading: Reading, blobs: Sequence[Tensor], reduce: Callable[..., Tensor]) -> Floats:
    """(N, channels) of whole images, float64."""
    maps = [blob.flatten(2) if blob.ndim > 2 else blob[..., None] for blob in blobs]
    if reading.normalised:
        maps = [each.softmax(1) for each in maps]
    values: Floats = torch.cat([reduce(each.double(), -1) for each in maps], 1).cpu().numpy()
    return values


# -- parts of images -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """A part of an image along one axis, and which places of its result count.

    Attributes:
        start, stop: rows or columns of the image.
        first, count: places of the part's own result that are places of the whole one.
    """

    start: int
    stop: int
    first: int
    count: int


@dataclass(frozen=True)
class Tiles:
    """How images may be cut so that the results of the parts are those of the whole.

    Attributes:
        fields: what a place depends on, along rows and columns.
        sizes: places of an image of some size, along rows and columns.
    """

    fields: tuple[Field, Field]
    sizes: Callable[[int, int], int]

    @classmethod
    def of(cls, graph: Graph, blobs: set[str]) -> Tiles | None:
        """For blobs of a net for whole images; None where they do not depend on the image by windows alone."""
        known = receptive_fields(graph)
        wanted = [known.get(graph.last(blob)) for blob in blobs]
        if None in wanted or not wanted:
            return None
        fields = set(wanted)
        return cls(next(iter(fields)), _sizes(graph, next(iter(blobs)))) if len(fields) == 1 else None  # type: ignore[arg-type]

    def cut(self, size: int, most: int, axis: int) -> Iterator[Part]:
        """The parts of an axis, each of about `most` pixels along it, and never too small for one place."""
        field = self.fields[axis]
        places = self.sizes(size, axis)
        step = max(1, (most - field.size) // field.step)
        for first in range(0, places, step):
            last = min(places, first + step) - 1
            start = max(0, first * field.step - field.before) // field.step * field.step
            stop = size if last == places - 1 else min(size, last * field.step + field.behind + 1)
            yield Part(start, stop, first - start // field.step, last - first + 1)


def _sizes(graph: Graph, blob: str) -> Callable[[int, int], int]:
    """Places of a blob along an axis, by the rules of the layers; the other axis has the declared size."""
    from caffe_compat.graph import rebuild

    (name, declared), last = next(iter(graph.inputs.items())), graph.last(blob)

    def sizes(size: int, axis: int) -> int:
        shape = list(declared)
        shape[2 + axis] = size
        return rebuild(graph.net, graph.context, {name: shape}).values[last][2 + axis]

    return sizes
