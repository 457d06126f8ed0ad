"""The Split layers that Caffe puts where several layers read a blob (insert_splits.cpp); they stand in saved nets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from caffe_compat.schema import pb


class TopLoss(NamedTuple):
    """The loss weights of a top: its own, and that which stands at the split behind it."""

    own: float = 0.0
    split: float = 0.0


class _Top(NamedTuple):
    """A top by its layer's and its own position."""

    layer: int
    top: int


def insert_splits(layers: Sequence[pb.LayerParameter]) -> list[pb.LayerParameter]:
    """Copies of the layers, with a Split behind each top that is read more than once.

    A stated loss weight counts as a reader; it moves to the split's first top, and all that the layer states go.
    """
    makers, readers, weights = _readers(layers)
    used: Counter[_Top] = Counter()
    result = []
    for index, layer in enumerate(layers):
        copy = pb.LayerParameter()
        copy.CopyFrom(layer)
        for position, blob in enumerate(layer.bottom):
            top = makers[index, position]
            if readers[top] > 1:
                copy.bottom[position] = _split_blob(layers[top.layer].name, blob, top.top, used[top])
                used[top] += 1
        result.append(copy)
        for position, blob in enumerate(layer.top):
            top = _Top(index, position)
            if readers[top] > 1:
                result.append(_split(layer.name, blob, position, readers[top], weights.get(top, 0.0)))
                if weights.get(top):
                    copy.ClearField("loss_weight")
                    used[top] += 1
    return result


def reads(layers: Sequence[pb.LayerParameter]) -> list[list[int]]:
    """For each layer, how many bottoms read each of its tops; bottoms that nothing makes do not count."""
    makers, _, _ = _readers(layers)
    found = [[0] * len(layer.top) for layer in layers]
    for top in makers.values():
        found[top.layer][top.top] += 1
    return found


def stated_losses(layer: pb.LayerParameter, read: Sequence[int]) -> tuple[list[float], dict[int, float]]:
    """What is left of a layer's loss weights when splits stand, and the top -> weight that have moved to splits."""
    moved = {top: weight for top, weight in enumerate(layer.loss_weight) if top < len(read) and weight and read[top]}
    return [] if moved else list(layer.loss_weight), moved


def _readers(
    layers: Sequence[pb.LayerParameter],
) -> tuple[dict[tuple[int, int], _Top], Counter[_Top], dict[_Top, float]]:
    """For each bottom the top that it reads; for each top the number of readers, and its stated loss weight."""
    last: dict[str, _Top] = {}
    makers: dict[tuple[int, int], _Top] = {}
    readers: Counter[_Top] = Counter()
    weights: dict[_Top, float] = {}
    for index, layer in enumerate(layers):
        for position, blob in enumerate(layer.bottom):
            if blob in last:
                makers[index, position] = last[blob]
                readers[last[blob]] += 1
        last.update({blob: _Top(index, position) for position, blob in enumerate(layer.top)})
        for blob, weight in zip(layer.top, layer.loss_weight, strict=False):
            weights[last[blob]] = weight
            readers[last[blob]] += weight != 0
    return makers, readers, weights


def _split(layer: str, blob: str, top: int, count: int, weight: float) -> pb.LayerParameter:
    made = pb.LayerParameter(name=f"{blob}_{layer}_{top}_split", type="Split", bottom=[blob])
    made.top.extend(_split_blob(layer, blob, top, index) for index in range(count))
    if weight:
        made.loss_weight.extend([weight] + [0.0] * (count - 1))
    return made


def _split_blob(layer: str, blob: str, top: int, index: int) -> str:
    return f"{blob}_{layer}_{top}_split_{index}"
