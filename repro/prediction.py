"""What a net says of images: the classes it thinks of first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from caffe_compat.errors import VggcError
from repro.collecting import Running, collect
from repro.evaluation import check_scales, readings_of
from repro.image_sets import ImageSet
from repro.models import Classifier
from repro.protocols import POSTERIORS, Floats, mean, passes


@dataclass(frozen=True)
class Prediction:
    """Of one image.

    Attributes:
        name: the image's.
        classes, posteriors: those of the highest posterior, highest first.
        error: why it could not be read, else "".
    """

    name: str
    classes: tuple[int, ...] = ()
    posteriors: tuple[float, ...] = ()
    error: str = ""


@dataclass(frozen=True)
class Predictions:
    """Of all images, in their order.

    Attributes:
        engine: what ran the net, and why.
        scales: those used.
    """

    images: tuple[Prediction, ...]
    engine: str
    scales: tuple[int, ...]


def predict(
    model: Classifier,
    images: ImageSet,
    protocol: str,
    running: Running,
    *,
    average: str = POSTERIORS,
    top: int = 5,
) -> Predictions:
    """The classes of highest posterior under a protocol, averaged over scales.

    Raises:
        VggcError: the net cannot be run so.
    """
    wanted, scales = passes(protocol, average), running.scales_for(model)
    check_scales(model, wanted, scales)
    parts: dict[int, dict[tuple[str, int], Floats]] = {}
    errors: dict[int, str] = {}

    def keep(index: int, name: str, scale: int, values: Floats) -> None:
        parts.setdefault(index, {})[name, scale] = values

    def failed(index: int, error: VggcError) -> None:
        errors[index] = str(error)

    choice = collect(model, images, readings_of(model, wanted), running, keep, failed)
    names = images.items.names
    made = [_one(names[i], parts.get(i, {}), wanted, scales, top, errors.get(i, "")) for i in range(len(images))]
    return Predictions(tuple(made), choice.said, scales)


def _one(
    name: str,
    parts: Mapping[tuple[str, int], Floats],
    wanted: Sequence[str],
    scales: Sequence[int],
    top: int,
    error: str,
) -> Prediction:
    if error:
        return Prediction(name, error=error)
    posteriors = mean([parts[which, scale] for which in wanted for scale in scales])
    best = np.argsort(-posteriors, kind="stable")[:top]
    return Prediction(name, tuple(best.tolist()), tuple(posteriors[best].tolist()))
