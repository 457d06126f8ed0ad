"""The permutohedral lattice: a filter with Gaussian weights over points of few dimensions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from math import prod, sqrt
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

BLOCK = 4
"""Points that the fork places together; those that the last block lacks lie at the origin."""

FARTHEST = 2**15 - 1
"""The largest coordinate of a vertex, which the fork keeps as a short."""


@dataclass(frozen=True)
class Lattice:
    """Vertices around points, and which of them are neighbours (modified_permutohedral.cpp of torrvision/caffe).

    Attributes:
        vertices: (points, d + 1), the vertices of each point's simplex.
        weights: (points, d + 1), its barycentric coordinates, float32.
        neighbours: (d + 1, 2, count), the vertices before and behind along each axis; `count` where there is none.
        count: how many vertices there are. Some may belong to no point: see `BLOCK`.
    """

    vertices: Ints
    weights: Floats
    neighbours: Ints
    count: int

    @classmethod
    def of(cls, features: Floats) -> Lattice:
        """The lattice of points (points, d), float32.

        Every rounding is that of the fork's float32: it decides which vertices exist, and blurring uses no others.

        Raises:
            OverflowError: the points lie so far apart that vertices cannot be numbered.
        """
        points, d = features.shape
        missing = -points % BLOCK
        keys, weights = _simplices(np.concatenate([features, np.zeros((missing, d), np.float32)]))
        packed, strides = _packed(keys)
        known, vertices = np.unique(packed, return_inverse=True)
        steps = (d + 1) * strides - strides.sum()
        steps = np.append(steps, -strides.sum())  # the last coordinate is not kept: it follows from the others
        sides = [[_places(known, known + way * step) for way in (1, -1)] for step in steps]
        kept = vertices.reshape(-1, d + 1)[:points]
        return cls(kept, weights[:points], np.array(sides), len(known))

    def on(self, like: Tensor) -> Filter:
        """The filter for values of that type and device."""
        import torch

        vertices = torch.from_numpy(np.ascontiguousarray(self.vertices.T)).to(like.device)
        weights = torch.from_numpy(np.ascontiguousarray(self.weights.T)).to(like)
        return Filter(vertices, weights, torch.from_numpy(self.neighbours).to(like.device), self.count)


@dataclass(frozen=True)
class Filter:
    """A lattice as tensors: splat onto it, blur along each axis, slice.

    Attributes:
        vertices, weights: (d + 1, points), `weights` of the values' type.
        neighbours, count: as `Lattice` has them.
    """

    vertices: Tensor
    weights: Tensor
    neighbours: Tensor
    count: int

    def __call__(self, values: Tensor) -> Tensor:
        """(channels, points) -> (channels, points); the gradient is the filter with the axes in the other order."""
        return _filtering()(values, self)

    def run(self, values: Tensor, *, reverse: bool) -> Tensor:
        """The filter without a gradient; `reverse` blurs along the last axis first."""
        rows = values.T.contiguous()
        lattice = rows.new_zeros(self.count + 1, rows.shape[1])  # the last is for neighbours that are not there
        for at, weight in zip(self.vertices, self.weights[..., None], strict=True):
            lattice.index_add_(0, at, rows * weight)
        for before, behind in self.neighbours.flip(0) if reverse else self.neighbours:
            lattice[:-1] += lattice[before].add_(lattice[behind]).mul_(0.5)
        sliced = rows.new_zeros(rows.shape)
        for at, weight in zip(self.vertices, self.weights[..., None], strict=True):
            sliced.addcmul_(lattice[at], weight)
        axes = len(self.neighbours) - 1
        return sliced.mul_(1 / (1 + 2.0**-axes)).T.contiguous()


@cache
def _filtering() -> Callable[[Tensor, Filter], Tensor]:
    import torch

    class Filtering(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, values: Tensor, own: Filter) -> Tensor:
            ctx.own = own
            return own.run(values, reverse=False)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
            return ctx.own.run(grad, reverse=True), None

    return Filtering.apply  # type: ignore[no-any-return]


# -- where points lie --------------------------------------------------------------------------------------


def _simplices(features: Floats) -> tuple[Ints, Floats]:
    """Keys (points, d + 1, d) and barycentric coordinates (points, d + 1) of the vertices around each point."""
    points, d = features.shape
    elevated = _elevated(features)
    if not np.abs(elevated).max() < FARTHEST - 2 * d:
        raise OverflowError(f"vertices have coordinates beyond {FARTHEST}")
    nearest, rank = _nearest(elevated)
    low = np.arange(d + 1)
    canonical = np.where(low[None] <= d - low[:, None], low[:, None], low[:, None] - (d + 1))  # (vertex, rank)
    keys = nearest[:, None, :d] + canonical[:, rank[:, :d]].transpose(1, 0, 2)
    parts = (elevated - nearest.astype(np.float32)) * np.float32(1 / (d + 1))
    each = np.arange(points)[:, None]
    weights = np.zeros((points, d + 2), np.float32)
    weights[each, d - rank] = parts
    weights[each, d - rank + 1] -= parts
    weights[:, 0] += np.float32(1) + weights[:, d + 1]
    return keys, weights[:, : d + 1]


def _elevated(features: Floats) -> Floats:
    """Points (points, d) on the plane whose coordinates (points, d + 1) add up to 0."""
    points, d = features.shape
    deviation = np.float32(sqrt(2 / 3) * (d + 1))
    total, elevated = np.zeros(points, np.float32), np.empty((points, d + 1), np.float32)
    for axis in range(d, 0, -1):
        scaled = features[:, axis - 1] * np.float32(1 / sqrt(axis * (axis + 1)) * float(deviation))
        elevated[:, axis] = total - np.float32(axis) * scaled
        total = total + scaled
    elevated[:, 0] = total
    return elevated


def _nearest(elevated: Floats) -> tuple[Ints, Ints]:
    """The nearest point of the lattice with remainder 0, and the place of each coordinate's difference by size."""
    size = elevated.shape[1]
    rounded = np.rint(elevated * np.float32(1 / size))
    nearest = rounded * np.float32(size)
    rest = elevated - nearest
    rank = np.zeros(elevated.shape, np.int64)
    for one in range(size):
        for other in range(one + 1, size):
            less = rest[:, one] < rest[:, other]
            rank[:, one] += less
            rank[:, other] += ~less
    rank += rounded.sum(axis=1).astype(np.int64)[:, None]  # off the plane by so many steps
    back = size * ((rank < 0).astype(np.int64) - (rank >= size))
    return nearest.astype(np.int64) + back, rank + back


def _packed(keys: Ints) -> tuple[Ints, Ints]:
    """One number for each key (points, d + 1, d), and what a step along each axis adds to it."""
    d = keys.shape[2]
    flat = keys.reshape(-1, d)
    low = flat.min(axis=0) - (d + 1)  # neighbours must not run into another row
    sizes = [int(size) for size in flat.max(axis=0) + (d + 1) - low + 1]
    if prod(sizes) >= 2**62:
        raise OverflowError(f"a lattice of {' x '.join(map(str, sizes))} places")
    strides = np.array([prod(sizes[axis + 1 :]) for axis in range(d)])
    return (flat - low) @ strides, strides


def _places(known: Ints, wanted: Ints) -> Ints:
    """Where numbers stand among the sorted ones; `len(known)` for those that do not."""
    found = np.searchsorted(known, wanted)
    found[found == len(known)] = 0
    return np.where(known[found] == wanted, found, len(known))
