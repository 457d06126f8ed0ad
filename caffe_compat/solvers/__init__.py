"""Caffe's solvers: `Solver` trains a net as `caffe train` does."""

from caffe_compat.solvers.solver import Solver

__all__ = ["Solver"]
