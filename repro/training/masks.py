"""Dropout masks that depend on the seed, the iteration, the layer and the image's place in the batch alone.

They are the same however a batch is split over processes and passes, and need no state in a snapshot. The generator
is Philox, which gives its n-th number without the ones before: Salmon et al., "Parallel random numbers: as easy as
1, 2, 3" (2011).
"""

from __future__ import annotations

from math import prod
from zlib import crc32

import numpy as np
import torch
from numpy.typing import NDArray

from caffe_compat.module import Net

_BLOCK = 8
"""32-bit numbers that one step of Philox gives."""


def keep_mask(
    seed: int, iteration: int, layer: str, first: int, count: int, size: int, ratio: float
) -> NDArray[np.bool_]:
    """Which values of a Dropout layer are kept.

    Args:
        seed: of the run.
        iteration: from 0.
        layer: its name.
        first: place of the first image in the whole batch.
        count: images.
        size: values of an image.
        ratio: the share to drop.

    Returns:
        bool (count, size).
    """
    blocks = -(-size // _BLOCK)
    philox = np.random.Philox(counter=[first * blocks, iteration, 0, 0], key=[seed, crc32(layer.encode())])
    numbers = philox.random_raw(count * blocks * 4).view(np.uint32).reshape(count, blocks * _BLOCK)
    kept: NDArray[np.bool_] = numbers[:, :size] >= np.uint32(min(round(ratio * 2**32), 2**32 - 1))
    return kept


class Masks:
    """Gives the Dropout layers of a net their masks before each pass."""

    def __init__(self, net: Net, seed: int, device: torch.device) -> None:
        self._seed, self._device = seed, device
        self._state = net.graph.context.state
        dropouts = [node.layer for node in net.graph.nodes if node.layer.TYPE == "Dropout" and node.layer.drops]  # type: ignore[attr-defined]
        self._layers = [
            (layer.name, prod(layer.bottom_shapes[0][1:]), float(layer.p.dropout_ratio)) for layer in dropouts
        ]

    def draw(self, iteration: int, first: int, count: int) -> None:
        """Prepare a pass over `count` images from place `first` of the batch."""
        self._state["draws"] = {
            name: torch.from_numpy(keep_mask(self._seed, iteration, name, first, count, size, ratio)).to(self._device)
            for name, size, ratio in self._layers
        }
