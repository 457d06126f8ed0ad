"""Features of images: a blob of a net, of crops or over whole images, over several scales (Appendix B)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod

import numpy as np
from numpy.typing import NDArray

from caffe_compat.errors import GraphError, VggcError
from repro.collecting import Running, collect
from repro.evaluation import check_scales
from repro.image_sets import ImageSet
from repro.models import Classifier
from repro.passes import Reading
from repro.protocols import Floats, mean, unit_length

AVERAGE, STACK = "average", "stack"
JOINS = (AVERAGE, STACK)
RAW, JOINED, EACH = "raw", "joined", "each"
LENGTHS = (RAW, JOINED, EACH)
"""What is brought to length 1: nothing; what scales are joined to; each scale's features, and what they are joined to.
"""
WHOLE = "dense"
Keep = Callable[[int, Mapping[str, NDArray[np.float32]]], None]
"""Takes (image, blob -> features)."""


@dataclass(frozen=True)
class Kind:
    """Which features.

    Attributes:
        blobs: of the net.
        protocol: "center" is Caffe's extract_features; "tencrop" and "multicrop" are means over crops; "dense" is the
            mean over the places of the whole image and of its mirror.
        join: of several scales the mean, or one behind the other.
        length: one of `LENGTHS`.
    """

    blobs: tuple[str, ...]
    protocol: str = "center"
    join: str = AVERAGE
    length: str = RAW

    def joined(self, raw: Sequence[Floats]) -> NDArray[np.float32]:
        """One image's features from those at each scale."""
        each = [unit_length(values) for values in raw] if self.length == EACH else raw
        made = mean(each) if self.join == AVERAGE else np.concatenate(each)
        return (made if self.length == RAW else unit_length(made)).astype(np.float32)


@dataclass
class Extracted:
    """What became of the images.

    Attributes:
        sizes: blob -> number of features.
        engine: what ran the net, and why.
        unreadable: image -> why.
    """

    sizes: dict[str, int]
    engine: str = ""
    unreadable: dict[int, str] = field(default_factory=dict)


def feature_sizes(model: Classifier, kind: Kind, scales: int) -> dict[str, int]:
    """How many features each blob gives.

    Raises:
        GraphError: the net has no such blob.
    """
    times = scales if kind.join == STACK else 1
    shapes = {blob: model.graph.shapes[_called(model, blob)][1:] for blob in kind.blobs}
    return {b: times * (prod(shape[:1]) if kind.protocol == WHOLE else prod(shape)) for b, shape in shapes.items()}


def _called(model: Classifier, blob: str) -> str:
    """What the net calls a blob.

    In a net that was an ONNX file of ours the last of the values that layers in place give a blob may be missing, when
    that layer does nothing; then it is the one before.

    Raises:
        GraphError: it has no such blob.
    """
    known = model.graph.shapes
    if blob in known:
        return blob
    earlier = [name for name in known if name.rpartition("@")[0] == blob and name.rpartition("@")[2].isdigit()]
    if not earlier or model.path.suffix.lower() != ".onnx":
        raise GraphError(f"no blob called {blob}", where=str(model.path), remedy=f"blobs: {', '.join(known)}")
    return max(earlier, key=lambda name: int(name.rpartition("@")[2]))


def extract(
    model: Classifier,
    images: ImageSet,
    kind: Kind,
    running: Running,
    keep: Keep,
    *,
    strict: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Extracted:
    """The features of every image, in no particular order.

    Args:
        keep: is given each image's features when they are complete.
        strict: an image that cannot be read is an error; else it is left out.

    Raises:
        VggcError: the net cannot be run so, or an image cannot be read.
    """
    scales = running.scales_for(model)
    found = Extracted(feature_sizes(model, kind, len(scales)))
    check_scales(model, [kind.protocol], scales)
    model = replace(model, file=None)  # an ONNX file shows its outputs only
    ends = np.cumsum([size // (len(scales) if kind.join == STACK else 1) for size in found.sizes.values()])
    parts: dict[int, dict[int, Floats]] = {}

    def sink(index: int, _name: str, scale: int, values: Floats) -> None:
        part = parts.setdefault(index, {})
        part[scale] = values
        if len(part) == len(scales):
            each = [np.split(part[q], ends[:-1]) for q in scales]
            keep(index, {b: kind.joined(raw) for b, raw in zip(kind.blobs, zip(*each, strict=True), strict=True)})
            del parts[index]

    def failed(index: int, error: VggcError) -> None:
        if strict:
            raise error
        found.unreadable[index] = str(error)

    readings = {kind.protocol: Reading(tuple(_called(model, blob) for blob in kind.blobs))}
    found.engine = collect(model, images, readings, running, sink, failed, progress).said
    return found


def features(model: Classifier, images: ImageSet, kind: Kind, running: Running | None = None) -> NDArray[np.float32]:
    """The features of one blob, (images, features), in memory.

    Raises:
        VggcError: see `extract`.
    """
    running = running or Running()
    (blob,) = kind.blobs
    size = feature_sizes(model, kind, len(running.scales_for(model)))[blob]
    made = np.zeros((len(images), size), np.float32)

    def keep(index: int, values: Mapping[str, NDArray[np.float32]]) -> None:
        made[index] = values[blob]

    extract(model, images, kind, running, keep)
    return made
