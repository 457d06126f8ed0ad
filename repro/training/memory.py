"""How much memory a training step takes, and how many images fit."""

from __future__ import annotations

import os
from math import prod

import torch

from repro.training.nets import TrainingNet

FLOAT = 4
COPIES = 3
"""Tensors of each parameter's size: itself, its gradient and its history."""
SHARE = 0.5
"""Of the memory that is free, what the activations may take."""
PARTS = 8
"""Passes that a batch is made in at least, so that 1, 2, 4 and 8 processes make the same ones."""


def parameter_bytes(info: TrainingNet) -> int:
    """Bytes of parameters, gradients and history."""
    graph = info.graph("TRAIN", 1)
    owned = {key: shape for node in graph.nodes for key, shape in zip(node.params, node.blob_shapes, strict=True)}
    return COPIES * FLOAT * sum(map(prod, owned.values()))


def activation_bytes(info: TrainingNet) -> int:
    """Bytes that one image takes in a forward and a backward pass: every value, and the largest gradients."""
    sizes = sorted((prod(shape) for shape in info.graph("TRAIN", 1).values.values()), reverse=True)
    return FLOAT * (sum(sizes) + sum(sizes[:3]))


def free_bytes(device: torch.device) -> int:
    """Memory that is free on a device; 0 when that cannot be told."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return 0


def choose_micro_batch(info: TrainingNet, batch: int, device: torch.device) -> int:
    """Images of a pass: the largest divisor of a `PARTS`-th of the batch that fits."""
    room = SHARE * max(0, free_bytes(device) - parameter_bytes(info))
    fitting = max(1, int(room / activation_bytes(info)))
    grain = batch // PARTS if batch % PARTS == 0 else batch
    return max(size for size in range(1, grain + 1) if grain % size == 0 and size <= fitting)
