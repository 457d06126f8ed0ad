"""Nets for inference by torch.compile."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


def compiled(net: nn.Module) -> Callable[..., Any]:
    """The net by torch.compile, with its parameters as constants: packed for the processor, BatchNorm folded.

    What is changed in the parameters after the first call does not count. There are no gradients, and sums are rounded
    in another order. Inputs of a new shape are compiled anew, which takes seconds.
    """
    import torch
    from torch._inductor import config

    fast = torch.compile(net.eval())

    @wraps(net.forward)
    def run(*given: Any, **named: Any) -> Any:
        with torch.no_grad(), config.patch(freezing=True):
            return fast(*given, **named)

    return run
