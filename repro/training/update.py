"""Caffe's rule for SGD, in place: h <- m h + r (g + d w), w <- w - h (sgd_solver.cpp).

r is the rate times the blob's lr_mult, d the weight decay times its decay_mult; the rate is inside the history h.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from caffe_compat.graph import ParamKey
from caffe_compat.module import Net


class Momentum:
    """The history of a net's parameters, and the update.

    Attributes:
        keys, blobs: every parameter of the net, in Caffe's order.
        history: one tensor each.
    """

    def __init__(self, net: Net, momentum: float, weight_decay: float) -> None:
        owned = net.owned
        self.keys: list[ParamKey] = list(owned)
        self.blobs: list[nn.Parameter] = list(owned.values())
        self.history = [torch.zeros_like(blob) for blob in self.blobs]
        self._momentum = momentum
        alike: dict[tuple[float, float], list[int]] = defaultdict(list)
        for index, (key, blob) in enumerate(owned.items()):
            if blob.requires_grad:
                rate, decay = multipliers(net, key)
                alike[rate, decay * weight_decay].append(index)
        self._alike = dict(alike)

    @property
    def learning(self) -> list[nn.Parameter]:
        """The blobs that are changed."""
        return [blob for blob in self.blobs if blob.requires_grad]

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Change the parameters by their gradients, which are changed as well."""
        for (multiplier, decay), indices in self._alike.items():
            blobs: list[Tensor] = [self.blobs[index] for index in indices]
            history = [self.history[index] for index in indices]
            gradients = _gradients(blobs)
            if decay:
                torch._foreach_add_(gradients, blobs, alpha=decay)
            torch._foreach_mul_(history, self._momentum)
            torch._foreach_add_(history, gradients, alpha=rate * multiplier)
            torch._foreach_sub_(blobs, history)


def multipliers(net: Net, key: ParamKey) -> tuple[float, float]:
    """lr_mult and decay_mult of a blob; shared ones take those that any of its layers states (Net::AppendParam)."""
    specs = [
        spec for node in net.graph.nodes for each, spec in zip(node.params, node.specs, strict=True) if each == key
    ]
    rate = next((spec.lr_mult for spec in specs if spec.HasField("lr_mult")), 1.0)
    decay = next((spec.decay_mult for spec in specs if spec.HasField("decay_mult")), 1.0)
    return rate, decay


def _gradients(blobs: Sequence[Tensor]) -> list[Tensor]:
    return [torch.zeros_like(blob) if blob.grad is None else blob.grad for blob in blobs]
