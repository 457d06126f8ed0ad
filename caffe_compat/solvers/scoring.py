"""The passes and the lines of `caffe test` (tools/caffe.cpp)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from caffe_compat.module import Net
from caffe_compat.solvers.solver import loss_weights


@torch.no_grad()
def score(net: Net, iterations: int) -> Iterator[str]:
    """Run the net on its own data; yields Caffe's lines: each batch, then the loss and the means."""
    total: dict[str, np.ndarray] = {}
    loss = 0.0
    for batch in range(iterations):
        trace = net.trace()
        loss += float(trace.loss)
        for name in net.outputs:
            values = trace.blobs[name].detach().cpu().numpy().ravel()
            total[name] = total.get(name, np.zeros((), np.float32)) + values
            yield from (f"Batch {batch}, {name} = {value:g}" for value in values)
    yield f"Loss: {loss / iterations:g}"
    weights = loss_weights(net)
    for name, values in total.items():
        for value in values / iterations:
            weight = weights.get(name, 0)
            yield f"{name} = {value:g}" + (f" (* {weight:g} = {weight * value:g} loss)" if weight else "")
