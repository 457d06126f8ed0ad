"""Where a loss that is no number comes from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from caffe_compat.module import Net, blob_name


@torch.no_grad()
def first_not_finite(net: Net, inputs: Mapping[str, Tensor], data: Mapping[str, Tensor], random: Tensor) -> str:
    """The first blob, in the net's order, with a value that is not finite, in words.

    Args:
        inputs: of the pass.
        data: what the layers without bottoms gave in it.
        random: torch's generator before it.
    """
    after = torch.get_rng_state()
    torch.set_rng_state(random)
    try:
        blobs = _blobs(net, inputs, data)
        return next((words for words, tensor in blobs if not finite(tensor)), "none when seen again")
    finally:
        torch.set_rng_state(after)


def _blobs(net: Net, inputs: Mapping[str, Tensor], data: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Blobs with words for them, in the order in which they come into being."""
    yield from ((f'input "{name}"', tensor) for name, tensor in inputs.items())
    yield from ((f'data blob "{name}"', tensor) for name, tensor in data.items())
    trace = net.trace(inputs, data)
    last = {value.blob: value for node in net.graph.nodes for value in node.tops}
    for node in net.graph.nodes:
        layer = node.layer
        for index, blob in enumerate(net.params.get(layer.name, ())):
            yield f'parameter {blob_name(layer, index)} of layer "{layer.name}"', blob
        for value in node.tops:
            words = f'top "{value.blob}" of layer "{layer.name}"'
            if value.version == 0 and value.blob:
                yield words, trace.first[value.blob]
            elif value == last[value.blob] and value.blob:
                yield words, trace.blobs[value.blob]


def finite(tensor: Tensor) -> bool:
    """Whether all its values are finite."""
    return bool(torch.isfinite(tensor).all())


def all_finite(tensors: Sequence[Tensor]) -> bool:
    """Whether all values of all of them are finite."""
    return all(map(finite, tensors))
