"""Caffe's solvers: `Solver` trains a net as `caffe train` does. Imported when first used, as it needs torch."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from caffe_compat.solvers.solver import Solver

__all__ = ["Solver"]


def __getattr__(name: str) -> Any:
    if name != "Solver":
        raise AttributeError(f"module 'caffe_compat.solvers' has no attribute {name!r}")
    from caffe_compat.solvers.solver import Solver

    return Solver
