"""A net over images that are at hand: every result goes to a sink, nothing is kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from caffe_compat.data.lists import ENDINGS
from caffe_compat.data.records import is_database
from caffe_compat.errors import VggcError
from repro.datasets import DIGITS, FileImages, open_images
from repro.engines import Choice, Settings, choose, engines, only
from repro.feeding import Rescaling, feed
from repro.image_sets import UNKNOWN, DataError, ImageSet, Items
from repro.models import Classifier
from repro.passes import Reading, Runner, Sink, blobs_of
from repro.protocols import CROPS


@dataclass(frozen=True)
class Running:
    """How images go through a net.

    Attributes:
        scales: smallest sides Q; () for one in proportion to the net's crops, 256 for 224.
        rescaling: how images come to them.
        settings: how the net is run.
        pixels: limit of a batch; 0 for the device's own.
        workers: threads that decode; 0 for one a processor.
        mirror: average with mirrors.
    """

    scales: tuple[int, ...] = ()
    rescaling: Rescaling = field(default_factory=Rescaling)
    settings: Settings = field(default_factory=Settings)
    pixels: int = 0
    workers: int = 0
    mirror: bool = True

    def scales_for(self, model: Classifier) -> tuple[int, ...]:
        """The scales for a model."""
        return self.scales or (usual_scale(model.crop),)


def usual_scale(crop: int) -> int:
    """256 for crops of 224, and in proportion."""
    return round(crop * 256 / 224)


def collect(
    model: Classifier,
    images: ImageSet,
    readings: Mapping[str, Reading],
    running: Running,
    sink: Sink,
    failed: Callable[[int, VggcError], None],
    progress: Callable[[int, int], None] | None = None,
) -> Choice:
    """Run passes over all images of a set.

    Args:
        readings: pass -> what is read.
        failed: told of images that cannot be read.

    Returns:
        What ran the net.
    """
    scales, indices = running.scales_for(model), list(range(len(images)))
    choice = _chosen(model, images, readings, running)
    runner = _runner(model, readings, choice, running)
    runner.sink = sink
    for done, fed in enumerate(feed(images, indices, lambda _: scales, running.rescaling, running.workers), 1):
        if fed.error is not None:
            failed(fed.index, fed.error)
        for scale, view in fed.views.items():
            runner.add(fed.index, scale, view)
        if progress:
            progress(done, len(indices))
    runner.finish()
    return choice


def _chosen(model: Classifier, images: ImageSet, readings: Mapping[str, Reading], running: Running) -> Choice:
    """The engine; where there is a choice it is made on the first image that can be read."""
    blobs = blobs_of(readings.values())
    found = engines(model, running.settings, blobs, sorted({name not in CROPS for name in readings}))
    scale = running.scales_for(model)[0]
    for fed in feed(images, range(len(images)), lambda _: [scale], running.rescaling, 1) if len(found) > 1 else ():
        if fed.views:
            x, reading, whole = _runner(model, readings, only(found[0]), running).first_batch(fed.views[scale])
            return choose(found, x, reading.blobs[0], whole)
    return only(found[0])


def _runner(model: Classifier, readings: Mapping[str, Reading], choice: Choice, running: Running) -> Runner:
    return runner_of(model, readings, choice, running.pixels, running.mirror)


def runner_of(model: Classifier, readings: Mapping[str, Reading], choice: Choice, pixels: int, mirror: bool) -> Runner:
    """What runs passes through a net."""
    crops = {name: reading for name, reading in readings.items() if name in CROPS}
    whole = {name: reading for name, reading in readings.items() if name not in CROPS}
    graph = model.dense.graph if whole else None
    return Runner(choice.engine, model.prepare, model.crop, crops, whole, pixels=pixels, graph=graph, mirror=mirror)


# -- which images ------------------------------------------------------------------------------------------------


def images_at(places: Sequence[str]) -> ImageSet:
    """The images that a command names: files; or one folder, list or database of them.

    Raises:
        DataError: there are none.
    """
    only_one = places[0] if len(places) == 1 else ""
    path = Path(only_one)
    if only_one and path.is_dir() and not is_database(path):
        names = sorted(entry.name for entry in path.iterdir() if entry.name.lower().endswith(ENDINGS))
        if names:
            return FileImages(path, Items(names, np.full(len(names), UNKNOWN)), (), only_one)
    if only_one and (only_one == DIGITS or path.is_dir() or not only_one.lower().endswith(ENDINGS)):
        return open_images(only_one)
    missing = next((place for place in places if not Path(place).is_file()), None)
    if missing is not None:
        raise DataError("no such image", where=missing, remedy="check the path")
    return FileImages(Path(), Items(tuple(places), np.full(len(places), UNKNOWN)), (), "the images given")
