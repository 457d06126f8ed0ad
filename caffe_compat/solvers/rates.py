"""Learning rate policies (SGDSolver::GetLearningRate, sgd_solver.cpp)."""

from __future__ import annotations

from collections.abc import Callable
from math import exp

import numpy as np

from caffe_compat.errors import VggcError
from caffe_compat.schema import pb

Param = pb.SolverParameter


def _fixed(param: Param, _iteration: int, _step: int) -> float:
    return param.base_lr


def _by_step(param: Param, _iteration: int, step: int) -> float:
    return float(param.base_lr * param.gamma**step)


def _exp(param: Param, iteration: int, _step: int) -> float:
    return float(param.base_lr * param.gamma**iteration)


def _inv(param: Param, iteration: int, _step: int) -> float:
    return float(param.base_lr * (1 + param.gamma * iteration) ** -param.power)


def _poly(param: Param, iteration: int, _step: int) -> float:
    return float(param.base_lr * (1 - iteration / param.max_iter) ** param.power)


def _sigmoid(param: Param, iteration: int, _step: int) -> float:
    return param.base_lr / (1 + exp(-param.gamma * (iteration - param.stepsize)))


POLICIES: dict[str, Callable[[Param, int, int], float]] = {
    "fixed": _fixed,
    "step": _by_step,
    "exp": _exp,
    "inv": _inv,
    "multistep": _by_step,
    "poly": _poly,
    "sigmoid": _sigmoid,
}
"""lr_policy -> rate from the solver, the iteration (from 0) and the number of steps taken."""


def check(param: Param, where: str) -> None:
    """Refuse a policy that Caffe does not have, or one without what it needs.

    Raises:
        VggcError: it says what is missing.
    """
    policy = param.lr_policy
    if policy not in POLICIES:
        what = f'unknown lr_policy "{policy}"'
        raise VggcError(what, where=where, remedy=f"use one of {', '.join(POLICIES)}")
    if policy in ("step", "sigmoid") and param.stepsize <= 0:
        raise VggcError(
            f'lr_policy "{policy}" with stepsize {param.stepsize}', where=where, remedy="state stepsize > 0"
        )
    if policy not in ("fixed", "poly") and param.gamma < 0:
        raise VggcError(f'lr_policy "{policy}" with gamma {param.gamma:g}', where=where, remedy="state gamma >= 0")


def next_step(param: Param, iteration: int, step: int) -> int:
    """The number of steps taken by an iteration; "multistep" takes at most one each time it is asked."""
    if param.lr_policy == "step":
        return iteration // param.stepsize
    due = param.lr_policy == "multistep" and step < len(param.stepvalue) and iteration >= param.stepvalue[step]
    return step + 1 if due else step


def rate(param: Param, iteration: int, step: int) -> float:
    """The learning rate, a float32 number as in Caffe."""
    return float(np.float32(POLICIES[param.lr_policy](param, iteration, step)))
