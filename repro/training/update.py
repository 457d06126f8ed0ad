"""Caffe's SGD for all parameters of a net, and the history that goes with it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from caffe_compat.graph import ParamKey
from caffe_compat.module import Net
from caffe_compat.schema import pb
from caffe_compat.solvers import updates


class Momentum:
    """Parameters, their history with the rate inside, and the update of `caffe_compat.solvers.updates`.

    Attributes:
        keys, blobs: every parameter of the net, in Caffe's order.
        history: one tensor each.
        learning: the blobs that are changed: all but those of lr_mult 0.
    """

    def __init__(self, net: Net, momentum: float, weight_decay: float) -> None:
        owned = net.owned
        self.keys: list[ParamKey] = list(owned)
        self.blobs: list[nn.Parameter] = list(owned.values())
        self.history = [torch.zeros_like(blob) for blob in self.blobs]
        self.learning = [blob for blob in self.blobs if blob.requires_grad]
        self._param = pb.SolverParameter(momentum=momentum)
        pairs = [multipliers(net, key) for key, blob in owned.items() if blob.requires_grad]
        self._rates = [rate for rate, _ in pairs]
        self._decays = [decay * weight_decay for _, decay in pairs]

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Change the parameters by their gradients."""
        pairs = zip(self.blobs, self.history, strict=True)
        history = [memory for blob, memory in pairs if blob.requires_grad]
        gradients = [torch.zeros_like(blob) if blob.grad is None else blob.grad for blob in self.learning]
        rates = [rate * multiplier for multiplier in self._rates]
        step = updates.Step(self._param, gradients, rates, history, 0)
        updates.sgd_with_decay(step, list[Tensor](self.learning), self._decays)


def multipliers(net: Net, key: ParamKey) -> tuple[float, float]:
    """lr_mult and decay_mult of a blob; shared ones take those that any of its layers states (Net::AppendParam)."""
    specs = [
        spec for node in net.graph.nodes for each, spec in zip(node.params, node.specs, strict=True) if each == key
    ]
    rate = next((spec.lr_mult for spec in specs if spec.HasField("lr_mult")), 1.0)
    decay = next((spec.decay_mult for spec in specs if spec.HasField("decay_mult")), 1.0)
    return rate, decay
