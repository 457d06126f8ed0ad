"""What Caffe's tools say of a net's outputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from torch import Tensor

from caffe_compat.module import Net


def loss_weights(net: Net) -> dict[str, float]:
    """Blob -> its weight in the loss."""
    return {v.blob: w for node in net.graph.nodes for v, w in zip(node.tops, node.loss_weights, strict=True)}


def scores(net: Net, blobs: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """The elements of each output."""
    return {name: blobs[name].detach().cpu().numpy().ravel() for name in net.outputs}


def output_lines(net: Net, found: Mapping[str, np.ndarray]) -> Iterator[str]:
    """A line for each element of the outputs, with its part in the loss."""
    weights = loss_weights(net)
    for name, values in found.items():
        weight = weights.get(name, 0)
        for value in values:
            yield f"{name} = {value:g}" + (f" (* {weight:g} = {weight * value:g} loss)" if weight else "")
