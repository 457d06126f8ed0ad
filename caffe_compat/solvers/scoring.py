"""The passes and the lines of `caffe test` (tools/caffe.cpp)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from caffe_compat.module import Net
from caffe_compat.solvers.debug_lines import debug_pass
from caffe_compat.solvers.outputs import output_lines, scores


@dataclass(frozen=True)
class Score:
    """The means over some batches.

    Attributes:
        iterations: batches.
        loss: the net's loss.
        outputs: output blob -> mean of each element.
    """

    iterations: int
    loss: float
    outputs: dict[str, np.ndarray]


@torch.no_grad()
def run_batches(net: Net, iterations: int, log: Callable[[str], None]) -> Score:
    """Run the net on its own data; `log` gets Caffe's lines: each batch, then the loss and the means."""
    device = next((blob.device for blob in net.parameters()), torch.device("cpu"))
    log("Use CPU." if device.type == "cpu" else f"Use GPU with device ID {device.index}")
    log(f"Running for {iterations} iterations.")
    total: dict[str, np.ndarray] = {}
    loss = 0.0
    for batch in range(iterations):
        trace = debug_pass(net, {}, log) if net.graph.net.debug_info else net.scored()
        loss += float(trace.loss)
        for name, values in scores(net, trace.blobs).items():
            total[name] = total.get(name, np.zeros((), np.float32)) + values
            for value in values:
                log(f"Batch {batch}, {name} = {value:g}")
    log(f"Loss: {loss / iterations:g}")
    means = {name: values / iterations for name, values in total.items()}
    for line in output_lines(net, means):
        log(line)
    return Score(iterations, loss / iterations, means)


def score(net: Net, iterations: int) -> Iterator[str]:
    """The lines alone."""
    lines: list[str] = []
    run_batches(net, iterations, lines.append)
    yield from lines
