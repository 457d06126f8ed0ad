"""What common mistakes in preparing images cost: the same evaluation with one of them made at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from repro.evaluation import Evaluation, Plan, Progress, evaluate
from repro.image_sets import ImageSet
from repro.models import BGR, RGB, Classifier
from repro.processes import Processes
from repro.scoring import Errors


@dataclass(frozen=True)
class Variant:
    """A way to prepare images.

    Attributes:
        name: for people.
        model, plan: what is changed.
    """

    name: str
    model: Callable[[Classifier], Classifier] = lambda model: model
    plan: Callable[[Plan], Plan] = lambda plan: plan


def _exchanged(model: Classifier) -> Classifier:
    """Channels in the other order, each with the mean that belongs to the place."""
    order = RGB if model.prepare.order == BGR else BGR
    return replace(model, prepare=replace(model.prepare, order=order))


def _without_mean(model: Classifier) -> Classifier:
    return replace(model, prepare=replace(model.prepare, mean=(0.0,) * model.channels))


def _square(plan: Plan) -> Plan:
    return replace(plan, rescaling=replace(plan.rescaling, square=True))


def _nearest(plan: Plan) -> Plan:
    return replace(plan, rescaling=replace(plan.rescaling, interpolation="nearest"))


VARIANTS = (
    Variant("as it should be"),
    Variant("red and blue exchanged", model=_exchanged),
    Variant("mean not subtracted", model=_without_mean),
    Variant("resized to a square", plan=_square),
    Variant("nearest pixel in place of bilinear", plan=_nearest),
)


@dataclass(frozen=True)
class Ablated:
    """One way and its result."""

    name: str
    errors: Errors


def ablate(
    models: Sequence[Classifier],
    images: ImageSet,
    plan: Plan,
    folder: Path,
    processes: Processes | None = None,
    progress: Progress | None = None,
) -> tuple[Evaluation, list[Ablated]] | None:
    """The proper evaluation, and the last row of each way's; None but in the first process."""
    found: list[Ablated] = []
    proper: Evaluation | None = None
    for variant in VARIANTS:
        made = evaluate(
            [variant.model(model) for model in models], images, variant.plan(plan), folder, processes, progress
        )
        if made is not None:
            proper = proper or made
            found.append(Ablated(variant.name, made.rows[-1].errors))
    return (proper, found) if proper is not None else None
