"""The forward and backward passes of an update: a batch in micro-batches that fit the memory, gradients added up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np
import torch
from torch import Tensor

from caffe_compat.errors import VggcError
from caffe_compat.module import Net
from repro.training.gradients import Gradients
from repro.training.group import Group
from repro.training.masks import Masks
from repro.training.nets import TrainingNet
from repro.training.scaling import LossScale
from repro.training.settings import Settings
from repro.training.update import Momentum


class NotFiniteError(VggcError):
    """The loss or a parameter is no number any more."""


@dataclass(frozen=True)
class Batch:
    """What one process takes of a batch.

    Attributes:
        iteration: whose, from 0.
        images: (n, 3, crop, crop) float32, less the mean; or (n, crop, crop, 3) uint8.
        labels: (n) int64.
        subtracted: (n, 3), what channels of uint8 are to be less; None for float32.
        first: place of the first image in the whole batch.
    """

    iteration: int
    images: Tensor
    labels: Tensor
    subtracted: Tensor | None = None
    first: int = 0


class Passes:
    """Computes gradients of the mean loss over the whole batch, which is the same however it is split.

    Args:
        info, net: the net in phase TRAIN.
        update: its parameters.
        settings: of the run.
        group: the processes.
        micro: images of a pass.
    """

    def __init__(
        self, info: TrainingNet, net: Net, update: Momentum, settings: Settings, group: Group, micro: int
    ) -> None:
        self.micro = micro
        self.scale = LossScale.start(settings.precision)
        self._info, self._net, self._update = info, net, update
        self._settings, self._group = settings, group
        self._masks = Masks(net, settings.seed, group.device)
        self._gradients = Gradients(group, update.learning)
        self._weights = {
            top.blob: weight
            for node in net.graph.nodes
            for top, weight in zip(node.tops, node.loss_weights, strict=True)
            if weight
        }
        self._run = self._runner(net)

    def _runner(self, net: Net) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
        """How the losses are computed.

        Raises:
            VggcError: the settings do not go together, or not with the net.
        """
        settings, names = self._settings, list(self._weights)
        if not settings.checkpointing:
            run = torch.compile(net) if settings.compiled else net
            return lambda inputs: run(inputs, blobs=names)  # type: ignore[no-any-return]
        if settings.compiled:
            raise VggcError("--compile and --checkpointing do not go together", remedy="leave one of them out")
        twice = [
            node.layer.name for node in net.graph.nodes if "BatchNorm" in node.layer.TYPE or node.layer.TYPE == "BN"
        ]
        if twice:
            what = f"layer {twice[0]} keeps statistics, which computing activations again would count twice"
            raise VggcError(what, remedy="leave --checkpointing out")
        parts = max(1, round(len(net.graph.nodes) ** 0.5))
        return lambda inputs: net.checkpointed(inputs, names, parts)

    def __call__(self, batch: Batch) -> float:
        """Leave the gradients in the parameters; returns the loss of the whole batch.

        Raises:
            NotFiniteError: the loss is not finite; it says where that came from.
        """
        total = torch.zeros((), device=self._group.device)
        parts = list(self.parts(batch))
        self._gradients.begin()
        for number, part in enumerate(parts):
            loss = self._loss(part) * (len(part.labels) / self._settings.batch)
            if number + 1 == len(parts):
                self._gradients.last()
            (loss * self.scale.factor if self.scale.used else loss).backward()  # type: ignore[no-untyped-call]
            self._gradients.passed()
            total += loss.detach()
        value = self._group.sum([float(total)])[0]
        if not isfinite(value):
            raise self._not_finite(parts, value)
        return value

    def update(self, rate: float) -> bool:
        """Change the parameters; False when float16 gradients overflowed, so that there is nothing to change by."""
        finite = self.scale.used and self._unscaled()
        if self.scale.used:
            self.scale = self.scale.after(finite)
        if finite or not self.scale.used:
            self._update.step(rate)
        return finite or not self.scale.used

    def parts(self, batch: Batch) -> Iterator[Batch]:
        """The micro-batches, where they are computed."""
        device, form = self._group.device, torch.channels_last if self._settings.channels_last else None
        for start in range(0, len(batch.labels), self.micro):
            chosen = slice(start, start + self.micro)
            less = None if batch.subtracted is None else batch.subtracted[chosen]
            images = floats(batch.images[chosen].to(device, non_blocking=True), less)
            images = images.contiguous(memory_format=form) if form else images
            labels = batch.labels[chosen].to(device, non_blocking=True)
            yield Batch(batch.iteration, images, labels, None, batch.first + start)

    def _loss(self, part: Batch) -> Tensor:
        self._seed(part)
        with autocast(self._settings.precision, self._group.device):
            tops = self._run(self._inputs(part))
        return torch.stack([weight * tops[name].float().sum() for name, weight in self._weights.items()]).sum()

    def _inputs(self, part: Batch) -> dict[str, Tensor]:
        return {self._info.data: part.images, self._info.label: part.labels}

    def _seed(self, part: Batch) -> None:
        """Random layers draw by the place of the images; those other than Dropout by that of the first one."""
        self._masks.draw(part.iteration, part.first, len(part.labels))
        words = np.random.SeedSequence([self._settings.seed, part.iteration, part.first]).generate_state(1, np.uint64)
        torch.manual_seed(int(words[0] >> 1))

    def _unscaled(self) -> bool:
        """Divide the gradients by the scale; whether all are finite, which is the same in all processes."""
        gradients = [blob.grad for blob in self._update.learning if blob.grad is not None]
        torch._foreach_mul_(gradients, 1 / self.scale.factor)
        norms = torch.stack(torch._foreach_norm(gradients))
        return bool(torch.isfinite(norms).all())

    # -- what went wrong -----------------------------------------------------------------------------------

    @torch.no_grad()
    def _not_finite(self, parts: list[Batch], loss: float) -> NotFiniteError:
        what = f"the loss of iteration {parts[0].iteration} is {loss}"
        found = self.check()
        for part in parts if found is None else ():
            self._seed(part)
            blobs = self._net.trace(self._inputs(part)).blobs
            bad = next((name for name in self._net.graph.shapes if not bool(torch.isfinite(blobs[name]).all())), None)
            found = found or (bad and f'blob "{bad}"')
        origin = f"; {found} is the first that is not finite" if found else ""
        remedy = "lower the rate, or start from other weights (--init, --weights); the last snapshot is whole"
        return NotFiniteError(what + origin, remedy=remedy)

    @torch.no_grad()
    def check(self) -> str | None:
        """The first parameter that is not finite."""
        for key, blob in zip(self._update.keys, self._update.blobs, strict=True):
            if not bool(torch.isfinite(blob).all()):
                return f'parameter {key.blob} of layer "{self._net.graph.nodes[key.node].layer.name}"'
        return None


def floats(images: Tensor, subtracted: Tensor | None) -> Tensor:
    """Images (n, 3, h, w) of float32; of pixels (n, h, w, 3) with what each channel is to be less."""
    if subtracted is None:
        return images
    return images.permute(0, 3, 1, 2).float() - subtracted.to(images.device)[:, :, None, None]


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """The passes' precision."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, getattr(torch, precision))
