"""What a run would do, need and take: `vggc train --dry-run`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from math import ceil, prod

import torch

from caffe_compat.errors import VggcError
from caffe_compat.module import Net
from repro.training.memory import COPIES, activation_bytes, choose_micro_batch, parameter_bytes
from repro.training.nets import TrainingNet
from repro.training.passes import Batch, Passes
from repro.training.run_folder import weights_of
from repro.training.session import Session
from repro.training.settings import Settings
from repro.training.update import Momentum

BACKWARD = 3
"""A forward and a backward pass take so many times the operations of a forward pass."""
MEASURED = 2
"""Passes that are timed, after one that is not."""


@dataclass(frozen=True)
class Plan:
    """A run, before it begins.

    Attributes:
        settings: what it is made of.
        crop, classes, train_images, val_images: the net's and the data's.
        parameters: learnt numbers.
        macs: multiply-accumulates of a forward pass of one image.
        micro_batch: images of a pass; passes: of an update, in all processes together.
        epoch_iterations, iterations: updates of an epoch, and of the whole run at most.
        parameter_bytes: parameters, gradients and history; activation_bytes: of a pass; snapshot_bytes: of the files.
        seconds_per_update: as measured here with random images, in this process alone.
        missing: what has to be trained before.
        notes: what is replaced or changed in the net.
    """

    settings: Settings
    crop: int
    classes: int
    train_images: int
    val_images: int
    parameters: int
    macs: int
    micro_batch: int
    passes: int
    epoch_iterations: float
    iterations: int
    parameter_bytes: int
    activation_bytes: int
    snapshot_bytes: int
    seconds_per_update: float
    missing: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def flops(self) -> float:
        """Floating-point operations of an update."""
        return 2.0 * self.macs * BACKWARD * self.settings.batch

    @property
    def images_per_second(self) -> float:
        return self.settings.batch / self.seconds_per_update

    @property
    def hours(self) -> float:
        """Updates and validations, when images are there in time."""
        validations = self.iterations / (self.settings.validate_every or self.epoch_iterations)
        validated = validations * self.val_images / BACKWARD / self.images_per_second
        return (self.iterations * self.seconds_per_update + validated) / 3600


def plan(session: Session) -> Plan:
    """Plan a run; one pass is made to see how long it takes, and nothing is written.

    Raises:
        VggcError: the net does not fit the memory, or the other settings.
    """
    settings, info, group = session.settings, session.info, session.group
    graph = info.graph("TRAIN", 1)
    owned = {key: shape for node in graph.nodes for key, shape in zip(node.params, node.blob_shapes, strict=True)}
    macs = sum(
        node.layer.macs(node.layer.bottom_shapes, node.layer.top_shapes_built) for node in graph.nodes if node.params
    )
    micro = settings.micro_batch or choose_micro_batch(info, settings.batch, group.device)
    parameters = parameter_bytes(info)
    count = len(session.train)
    return Plan(
        settings=settings,
        crop=info.crop,
        classes=info.classes,
        train_images=count,
        val_images=len(session.val),
        parameters=sum(map(prod, owned.values())),
        macs=macs,
        micro_batch=micro,
        passes=ceil(settings.batch / micro),
        epoch_iterations=count / settings.batch,
        iterations=settings.iterations(count),
        parameter_bytes=parameters,
        activation_bytes=activation_bytes(info) * micro,
        snapshot_bytes=parameters // COPIES * 2,
        seconds_per_update=measured(session, info, micro),
        missing=tuple(_missing(settings)),
        notes=info.notes,
    )


def measured(session: Session, info: TrainingNet, micro: int) -> float:
    """Seconds of an update on random images in this process."""
    settings, group = session.settings, session.group
    net = Net(info.graph("TRAIN", micro), seed=settings.seed).to(group.device)
    update = Momentum(net, settings.momentum, settings.weight_decay)
    passes = Passes(info, net, update, settings, group, micro)
    size = min(micro, settings.batch)
    images = torch.randn(size, 3, info.crop, info.crop, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(size) % info.classes
    took = [_timed(partial(passes, Batch(at, images, labels)), group.device) for at in range(MEASURED + 1)]
    changed = _timed(partial(passes.update, 0.0), group.device)
    return min(took[1:]) * ceil(settings.batch / micro) / group.world + changed


def _timed(work: Callable[[], object], device: torch.device) -> float:
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def _missing(settings: Settings) -> Iterator[str]:
    """Weights that are to be started from, and are not there yet."""
    for name in (settings.weights, settings.init_from):
        try:
            if name:
                weights_of(name)
        except VggcError:
            yield name


def lines(made: Plan) -> Iterator[str]:
    """The plan for people."""
    settings, gib = made.settings, 2**30
    scale = "-".join(map(str, settings.scale))
    yield f"net {settings.net}: {made.parameters:,} parameters, {made.macs:,} multiply-accumulates an image forward"
    yield (
        f"data {settings.data}: {made.train_images:,} images to train, {made.val_images:,} to validate, "
        f"{made.classes:,} classes"
    )
    yield f"images: S = {scale}, crops of {made.crop}, validated at {settings.validation_scale}"
    yield (
        f"updates: batch {settings.batch} in {made.passes} passes of {made.micro_batch}, {made.flops / 1e12:.3g} TFLOP "
        f"each; {made.epoch_iterations:,.1f} an epoch, {made.iterations:,} at most"
    )
    yield (
        f"rate {settings.rate:g}, divided by 10 up to {settings.drops} times after {settings.patience} validations "
        f"without a better accuracy; momentum {settings.momentum:g}, weight decay {settings.weight_decay:g}"
    )
    start = " and ".join(filter(None, [settings.init or "the net's own fillers", settings.init_from, settings.weights]))
    yield f"weights start from {start}"
    yield (
        f"memory: {made.parameter_bytes / gib:.2f} GiB for parameters, gradients and history, "
        f"{made.activation_bytes / gib:.2f} GiB for a pass; disk: {made.snapshot_bytes / gib:.2f} GiB a snapshot, "
        f"{settings.keep} kept"
    )
    yield (
        f"measured: {made.seconds_per_update:.3g} s an update, {made.images_per_second:.3g} images/s; "
        f"at most {made.hours:,.1f} hours, when images are read fast enough"
    )
    for name in made.missing:
        yield f"missing: {name}, which this run starts from"
    for note in made.notes:
        yield f"note: {note}"


def as_json(made: Plan) -> dict[str, object]:
    """The plan for programs."""
    derived = {"flops": made.flops, "images_per_second": made.images_per_second, "hours": made.hours}
    return {**vars(made), "settings": made.settings.as_json(), **derived}
