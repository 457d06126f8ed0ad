"""The staged schedule of Sect. 3.1: S = 256, then S = 384 from there, then S in [256; 512] from there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from repro.training.nets import training_net
from repro.training.settings import Settings

FINE = 0.1
"""Of the rate, what training starts with that goes on from another scale: 0.001 of 0.01."""
CROP = 224
STAGES = (("256", (256,)), ("384", (384,)), ("jitter", (256, 512)))
"""Folder -> S for crops of 224; for others in proportion."""


def stages(settings: Settings, out: Path) -> list[tuple[Settings, Path]]:
    """The runs, each of which starts from the best weights of the one before.

    Raises:
        VggcError: the net is none.
    """
    crop = training_net(settings.net, 2, crop=settings.crop, dialect=settings.dialect).crop
    made: list[tuple[Settings, Path]] = []
    for folder, sides in STAGES:
        stage = replace(settings, scale=tuple(round(side * crop / CROP) for side in sides))
        if made:
            before = str(made[-1][1])
            stage = replace(stage, rate=settings.rate * FINE, weights=before, init="", init_from="")
        made.append((stage, out / folder))
    return made
