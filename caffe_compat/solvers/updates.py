"""How each solver turns gradients into updates (ComputeUpdateValue in src/caffe/solvers/*_solver.cpp).

Histories are kept as Caffe keeps them, the rate inside SGD's, so that snapshots can be exchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

from caffe_compat.errors import VggcError
from caffe_compat.schema import pb

Tensors = list[Tensor] | tuple[Tensor, ...]
SMALL = 2**16
"""Values in all below which sharing work among threads costs more than it saves."""


@dataclass(frozen=True)
class Step:
    """What an update is computed from.

    Attributes:
        param: the solver.
        diffs: gradients, with the decay.
        rates: learning rate of each blob.
        history: the solver's memory, one or two tensors a blob; changed in place.
        iteration: from 0.
    """

    param: pb.SolverParameter
    diffs: Tensors
    rates: Sequence[float]
    history: Tensors
    iteration: int

    def halves(self) -> tuple[Tensors, Tensors]:
        """The first and the second memory of solvers that keep two."""
        count = len(self.diffs)
        return self.history[:count], self.history[count:]


def regularize(diffs: Tensors, blobs: Tensors, decays: Sequence[float], kind: str) -> None:
    """Add the decay to the gradients: of "L2" decay * w, of "L1" decay * sign(w)."""
    for decay in set(decays) - {0.0}:
        members = [index for index, own in enumerate(decays) if own == decay]
        values: Tensors = [blobs[index] for index in members]
        values = torch._foreach_sign(values) if kind == "L1" else values
        torch._foreach_add_([diffs[index] for index in members], values, alpha=decay)


def _decayed(memory: Tensors, keep: float, values: Tensors) -> None:
    """memory <- keep memory + (1 - keep) values."""
    torch._foreach_mul_(memory, keep)
    torch._foreach_add_(memory, values, alpha=1 - keep)


def _squares(values: Tensors) -> Tensors:
    return torch._foreach_mul(values, values)


def _sgd(step: Step) -> Tensors:
    torch._foreach_mul_(step.history, step.param.momentum)
    torch._foreach_add_(step.history, torch._foreach_mul(step.diffs, step.rates))
    return step.history


def sgd_with_decay(step: Step, blobs: Tensors, decays: Sequence[float]) -> Tensors:
    """SGD with momentum and L2, blobs included, in one pass over memory: h <- m h + rate (diff + decay w), w <- w - h.

    Args:
        step: its diffs are without the decay.
        blobs: the parameters, which are changed.
        decays: for each of them.
    """
    groups: dict[tuple[float, float], list[int]] = {}
    for index, pair in enumerate(zip(step.rates, decays, strict=True)):
        groups.setdefault(pair, []).append(index)
    for (rate, decay), members in groups.items():
        own, diffs, history = ([tensors[i] for i in members] for tensors in (blobs, step.diffs, step.history))
        if sum(map(Tensor.numel, own)) < SMALL:
            _sgd_in_turn(step.param.momentum, rate, decay, (own, diffs, history))
        else:
            _sgd_at_once(step.param.momentum, rate, decay, (own, diffs, history))
    return step.history


def _sgd_at_once(momentum: float, rate: float, decay: float, tensors: tuple[Tensors, Tensors, Tensors]) -> None:
    """torch's fused SGD, whose dampening puts the rate into the history."""
    blobs, diffs, history = map(list, tensors)
    torch._fused_sgd_(
        blobs,
        diffs,
        history,
        weight_decay=decay,
        momentum=momentum,
        lr=1.0,
        dampening=1 - rate,
        nesterov=False,
        maximize=False,
        is_first_step=False,
    )


def _sgd_in_turn(momentum: float, rate: float, decay: float, tensors: tuple[Tensors, Tensors, Tensors]) -> None:
    """The same for small tensors, which the fused function would share among threads all the same."""
    blobs, diffs, history = tensors
    torch._foreach_mul_(history, momentum)
    torch._foreach_add_(history, diffs, alpha=rate)
    if decay:
        torch._foreach_add_(history, blobs, alpha=rate * decay)
    torch._foreach_sub_(blobs, history)


def _nesterov(step: Step) -> Tensors:
    momentum = step.param.momentum
    before = torch._foreach_mul(step.history, -momentum)
    after = torch._foreach_mul(_sgd(step), 1 + momentum)
    return torch._foreach_add(after, before)


def _by_root(step: Step) -> Tensors:
    """rate diff / (sqrt(history) + delta)."""
    roots = torch._foreach_add(torch._foreach_sqrt(step.history), step.param.delta)
    return torch._foreach_mul(torch._foreach_div(step.diffs, roots), step.rates)


def _adagrad(step: Step) -> Tensors:
    torch._foreach_add_(step.history, _squares(step.diffs))
    return _by_root(step)


def _rmsprop(step: Step) -> Tensors:
    _decayed(step.history, step.param.rms_decay, _squares(step.diffs))
    return _by_root(step)


def _adadelta(step: Step) -> Tensors:
    gradients, updates = step.halves()
    delta, momentum = step.param.delta, step.param.momentum
    _decayed(gradients, momentum, _squares(step.diffs))
    ratio = torch._foreach_div(torch._foreach_add(updates, delta), torch._foreach_add(gradients, delta))
    moved = torch._foreach_mul(step.diffs, torch._foreach_sqrt(ratio))
    _decayed(updates, momentum, _squares(moved))
    return torch._foreach_mul(moved, step.rates)


def _adam(step: Step) -> Tensors:
    first, second = step.halves()
    beta1, beta2, time = step.param.momentum, step.param.momentum2, step.iteration + 1
    _decayed(first, beta1, step.diffs)
    _decayed(second, beta2, _squares(step.diffs))
    correction = sqrt(1 - beta2**time) / (1 - beta1**time)
    roots = torch._foreach_add(torch._foreach_sqrt(second), step.param.delta)
    return torch._foreach_mul(torch._foreach_div(first, roots), [rate * correction for rate in step.rates])


@dataclass(frozen=True)
class Method:
    """A solver type: its rule, and how many tensors it remembers for each blob.

    Attributes:
        with_decay: decay, rule and update in one pass over memory, where there is such a function.
    """

    rule: Callable[[Step], Tensors]
    memories: int = 1
    with_decay: Callable[[Step, Tensors, Sequence[float]], Tensors] | None = None


METHODS = {
    "SGD": Method(_sgd, with_decay=sgd_with_decay),
    "Nesterov": Method(_nesterov),
    "AdaGrad": Method(_adagrad),
    "RMSProp": Method(_rmsprop),
    "AdaDelta": Method(_adadelta, 2),
    "Adam": Method(_adam, 2),
}


def method(param: pb.SolverParameter, where: str) -> Method:
    """The solver type's rule.

    Raises:
        VggcError: there is no such type, or its parameters are out of range.
    """
    if param.type not in METHODS:
        raise VggcError(f'unknown solver type "{param.type}"', where=where, remedy=f"use one of {', '.join(METHODS)}")
    if param.type in ("AdaGrad", "RMSProp") and param.momentum:
        raise VggcError(f"{param.type} takes no momentum", where=where, remedy="remove momentum")
    if param.type == "RMSProp" and not 0 <= param.rms_decay < 1:
        raise VggcError(f"rms_decay {param.rms_decay:g}", where=where, remedy="state 0 <= rms_decay < 1")
    return METHODS[param.type]
