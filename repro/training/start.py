"""Weights that a run starts from, other than random ones (Sect. 3.1)."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from caffe_compat.errors import WeightsError
from caffe_compat.module import Net
from caffe_compat.weight_files import read_weights
from caffe_compat.weights import LayerBlobs
from repro.training.run_folder import weights_of
from repro.training.settings import Settings

CONVOLUTIONS, DENSE = 4, 3
"""Deeper nets take over the first four convolutions and the last three fully connected layers of net A."""


def start_from(net: Net, settings: Settings) -> Iterator[str]:
    """Copy the weights that the settings name into a new net; yields what was done.

    Raises:
        VggcError: there are none, or they do not fit.
    """
    if settings.weights:
        path = weights_of(settings.weights)
        net.copy_trained(read_weights(path), strict=True)
        yield f"all layers start from {path}"
    if settings.init_from:
        yield from take_over(net, str(weights_of(settings.init_from)))


@torch.no_grad()
def take_over(net: Net, path: str) -> Iterator[str]:
    """Copy the first four convolutions and the last three fully connected layers of a file, by name.

    Raises:
        WeightsError: none of them fits.
    """
    params = net.params
    types = {node.layer.name: node.layer.TYPE for node in net.graph.nodes}
    named = [(layer, layer.type or types.get(layer.name)) for layer in read_weights(path) if layer.blobs]
    chosen = [layer for layer, kind in named if kind == "Convolution"][:CONVOLUTIONS]
    chosen += [layer for layer, kind in named if kind == "InnerProduct"][-DENSE:]
    fitting = [layer for layer in chosen if _fits(layer, net)]
    if not fitting:
        what = f"none of its layers {', '.join(layer.name for layer in chosen)} has the shape of one in the net"
        raise WeightsError(what, where=path, remedy="name a run of a net with layers in common, such as A")
    for layer in fitting:
        for blob, values in zip(params[layer.name], layer.blobs, strict=True):
            blob.copy_(torch.from_numpy(values.values.copy()).view(blob.shape))
    yield f"{', '.join(layer.name for layer in fitting)} start from {path}"
    if others := [layer.name for layer in chosen if layer not in fitting]:
        yield f"{', '.join(others)} of {path} do not fit; those layers start at random"


def _fits(layer: LayerBlobs, net: Net) -> bool:
    blobs = net.params.get(layer.name, [])
    return len(blobs) == len(layer.blobs) and all(
        theirs.matches(tuple(ours.shape)) for ours, theirs in zip(blobs, layer.blobs, strict=True)
    )
