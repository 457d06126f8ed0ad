"""Everything that a run is made of, as `run.json` keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from math import ceil
from typing import Any

from caffe_compat.errors import VggcError

PRECISIONS = ("float32", "bfloat16", "float16")
CHANGEABLE = {"max_epochs", "max_iter", "snapshot_every", "keep", "display", "workers", "micro_batch"}
"""Settings with which an interrupted run may go on: they change how long and how, not what is computed. With another
micro-batch sums are rounded differently."""


@dataclass(frozen=True)
class Settings:
    """A run by Sect. 3.1; the defaults are the paper's.

    Attributes:
        net, data: what was named on the command line.
        labels, root: as for `repro.datasets.open_images`.
        batch: images of an update.
        micro_batch: images of a pass; 0 chooses by memory.
        rate, momentum, weight_decay: of SGD.
        drops: how often the rate is divided by 10.
        patience: validations without a better top-1 accuracy after which it is.
        max_epochs, max_iter: where training ends at the latest; max_iter 0 follows from the epochs.
        scale: S, one side or the least and the largest of a range.
        crop: side of the crops, 0 for the net's.
        flip, colour: whether images are mirrored and their colours shifted at random.
        init: rule for initial weights, see `repro.training.nets.INITS`; "" for the net's own.
        init_from: run or weights that the first four convolutions and the last three InnerProducts come from.
        weights: run or weights that all layers come from.
        seed: of all random draws.
        validate_every: iterations between validations, 0 for once an epoch.
        snapshot_every: iterations between snapshots besides those after validations, 0 for none.
        keep: snapshots that are kept.
        display: iterations between log lines.
        precision: of the passes; parameters, gradients and updates are always float32.
        channels_last, compiled, checkpointing: how the passes are computed.
        workers: threads that prepare images, 0 chooses.
        strict_data: stop at an image that cannot be read.
        dialect: the fork that the net is for, "" to judge by its layers.
        python_layers: folder of pycaffe code whose layers may be run; "" runs none.
    """

    net: str
    data: str
    labels: str = ""
    root: str = ""
    batch: int = 256
    micro_batch: int = 0
    rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 0.0005
    drops: int = 3
    patience: int = 3
    max_epochs: float = 74
    max_iter: int = 0
    scale: tuple[int, ...] = (256,)
    crop: int = 0
    flip: bool = True
    colour: bool = True
    init: str = ""
    init_from: str = ""
    weights: str = ""
    seed: int = 0
    validate_every: int = 0
    snapshot_every: int = 0
    keep: int = 2
    display: int = 20
    precision: str = "float32"
    channels_last: bool = False
    compiled: bool = False
    checkpointing: bool = False
    workers: int = 0
    strict_data: bool = False
    dialect: str = ""
    python_layers: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", tuple(self.scale))
        at_least = {"batch": 1, "patience": 1, "keep": 1, "display": 1, "drops": 0, "max_iter": 0, "validate_every": 0}
        for name, least in at_least.items():
            if getattr(self, name) < least:
                raise VggcError(f"{name} is {getattr(self, name)}", remedy=f"state {least} or more")
        if not 1 <= len(self.scale) <= 2 or min(self.scale) < 1 or sorted(self.scale) != list(self.scale):
            raise VggcError(f"scale {self.scale}", remedy="state one side, or the least and the largest")
        if self.precision not in PRECISIONS:
            raise VggcError(f"precision {self.precision}", remedy=f"use one of {', '.join(PRECISIONS)}")
        if not self.rate > 0 or not self.max_epochs > 0:
            raise VggcError(f"rate {self.rate:g}, max_epochs {self.max_epochs:g}", remedy="state numbers above 0")

    @property
    def validation_scale(self) -> int:
        """S of the images that validation crops from: the middle of a range (Q = 0.5 (Smin + Smax), Sect. 4.1)."""
        return sum(self.scale) // len(self.scale)

    def iterations(self, images: int) -> int:
        """Updates at which training ends at the latest."""
        return self.max_iter or ceil(self.max_epochs * images / self.batch)

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "scale": list(self.scale)}


def from_json(found: Mapping[str, Any], where: str) -> Settings:
    """Settings as `run.json` keeps them.

    Raises:
        VggcError: one is not known.
    """
    known = {each.name for each in fields(Settings)}
    if unknown := sorted(set(found) - known):
        raise VggcError(f"unknown setting {', '.join(unknown)}", where=where, remedy="use the version that wrote it")
    return Settings(**found)


def differences(before: Settings, now: Settings) -> list[str]:
    """What keeps a run from going on with other settings, one "name: then, now" each."""
    old, new = before.as_json(), now.as_json()
    changed = [name for name in old if old[name] != new[name] and name not in CHANGEABLE]
    return [f"{name}: {old[name]} then, {new[name]} now" for name in changed]
