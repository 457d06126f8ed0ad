"""Initial values of parameter blobs (filler.hpp of BVLC Caffe; under "dec2013" that of 3213bd87e).

The distributions are Caffe's, the random numbers are numpy's: equal seeds give other samples than Caffe.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil, isfinite, prod, sqrt
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from caffe_compat.errors import VggcError
from caffe_compat.schema import pb

if TYPE_CHECKING:
    from caffe_compat.layers.base import Layer, Shape

Array = NDArray[np.float32]
Rule = Callable[[pb.FillerParameter, "Shape", np.random.Generator], Array]

DCT_SIZES = range(2, 9)
"""Of the kernels that the fork for steganalysis keeps in files."""
FIELDS_2013 = {"type", "value", "min", "max", "mean", "std"}
TYPES_2013 = {"constant", "uniform", "gaussian", "positive_unitball", "xavier"}


def fill(
    filler: pb.FillerParameter, shape: Sequence[int], generator: np.random.Generator, profile: str = "bvlc"
) -> Array:
    """Initial values of a blob.

    Args:
        filler: which distribution, and its parameters.
        shape: the blob's; fan-in and fan-out follow from it.
        generator: the source of random numbers.
        profile: under "dec2013" every blob counts as (num, channels, height, width).

    Returns:
        A float32 array of that shape in memory of its own.

    Raises:
        VggcError: the filler is unknown, or its parameters or the shape break one of Caffe's checks.
    """
    why = problem(filler, shape, profile, forks=True)
    if why:
        raise VggcError(why, remedy=f"fillers: {', '.join(sorted(known(profile)))}")
    counted = legacy(shape) if profile == "dec2013" else tuple(shape)
    return FILLERS[filler.type](filler, counted, generator).reshape(tuple(shape))


def legacy(shape: Sequence[int]) -> Shape:
    """A shape as (num, channels, height, width): ones are put before it."""
    return (1,) * (4 - len(shape)) + tuple(shape)


def known(profile: str, *, forks: bool = False) -> set[str]:
    """The filler types of a profile; with those that forks have, if asked for."""
    return TYPES_2013 if profile == "dec2013" else set(FILLERS) - (set() if forks else set(OF_FORKS))


def problem(filler: pb.FillerParameter, shape: Sequence[int], profile: str = "bvlc", *, forks: bool = False) -> str:
    """Why Caffe would refuse to fill a blob of that shape; "" if it would not. Fillers of forks count if asked for."""
    if filler.type not in known(profile, forks=forks):
        return f'unknown filler "{filler.type}"'
    newer = {f.name for f, _ in filler.ListFields()} - FIELDS_2013
    if profile == "dec2013" and newer:
        return f'filler "{filler.type}" has {", ".join(sorted(newer))}, which profile dec2013 does not know'
    if not prod(shape):
        return f"nothing to fill in a blob of shape {tuple(shape)}"
    if filler.type != "gaussian" and filler.sparse != -1:
        return f'filler "{filler.type}" does not support sparse'
    return CHECKS[filler.type](filler, shape) if filler.type in CHECKS else ""


def check_fillers(layer: Layer, shapes: Sequence[Shape]) -> None:
    """Check the weight and bias fillers of a layer.

    Raises:
        LayerError: Caffe would refuse to initialise a blob.
    """
    for name, filler, shape in zip(("weight_filler", "bias_filler"), layer.fillers(), shapes, strict=False):
        forks = layer.context.dialect in OF_FORKS.get(filler.type, ())
        why = problem(filler, shape, layer.context.profile, forks=forks)
        if why:
            choice = ", ".join(sorted(known(layer.context.profile)))
            raise layer.error(f"{name}: {why}", field=f"{layer.PARAM}.{name}", remedy=f"fillers: {choice}")


# -- checks (math_functions.cpp, filler.hpp) -------------------------------------------------------------------


def _check_uniform(filler: pb.FillerParameter, _shape: Sequence[int]) -> str:
    bounded = filler.min <= filler.max and isfinite(filler.min) and isfinite(filler.max)
    return "" if bounded else f"uniform filler needs min <= max, got {filler.min} and {filler.max}"


def _check_gaussian(filler: pb.FillerParameter, shape: Sequence[int]) -> str:
    if not filler.std > 0:
        return f"gaussian filler needs std > 0, got {filler.std}"
    if not -1 <= filler.sparse <= shape[0]:
        return f"gaussian filler needs sparse from -1 to {shape[0]}, the first size, got {filler.sparse}"
    return ""


def _check_bilinear(_filler: pb.FillerParameter, shape: Sequence[int]) -> str:
    square = len(shape) == 4 and shape[2] == shape[3]
    return "" if square else f"bilinear filler needs 4 axes and a square kernel, got {tuple(shape)}"


def _check_dct(filler: pb.FillerParameter, shape: Sequence[int]) -> str:
    wanted = int(filler.type.removeprefix("dct")) ** 4
    return "" if prod(shape) == wanted else f"{filler.type} fills {wanted} values, got a blob of shape {tuple(shape)}"


CHECKS: dict[str, Callable[[pb.FillerParameter, Sequence[int]], str]] = {
    "uniform": _check_uniform,
    "gaussian": _check_gaussian,
    "bilinear": _check_bilinear,
    **dict.fromkeys((f"dct{size}" for size in DCT_SIZES), _check_dct),
}

# -- distributions ---------------------------------------------------------------------------------------------


def _constant(filler: pb.FillerParameter, shape: Shape, _generator: np.random.Generator) -> Array:
    return np.full(shape, filler.value, np.float32)


def _uniform(low: float, high: float, shape: Shape, generator: np.random.Generator) -> Array:
    """Samples of [low, high]; one array of float32 is all the memory it takes."""
    a, b = np.float32(low), np.float32(high)
    out = generator.random(shape, dtype=np.float32)
    out *= b - a
    out += a
    np.minimum(out, b, out=out)
    return out


def _normal(mean: float, std: float, shape: Shape, generator: np.random.Generator) -> Array:
    out = generator.standard_normal(shape, dtype=np.float32)
    out *= np.float32(std)
    out += np.float32(mean)
    return out


def _between(filler: pb.FillerParameter, shape: Shape, generator: np.random.Generator) -> Array:
    return _uniform(filler.min, filler.max, shape, generator)


def _gaussian(filler: pb.FillerParameter, shape: Shape, generator: np.random.Generator) -> Array:
    """N(mean, std); `sparse` keeps each sample with probability sparse / shape[0]."""
    out = _normal(filler.mean, filler.std, shape, generator)
    if filler.sparse >= 0:
        out *= generator.random(shape, dtype=np.float32) < filler.sparse / shape[0]
    return out


def _positive_unitball(_filler: pb.FillerParameter, shape: Shape, generator: np.random.Generator) -> Array:
    """U(0, 1), then each slice of the first axis is divided by its sum."""
    out = _uniform(0, 1, shape, generator).reshape(shape[0], -1)
    out /= out.sum(axis=1, keepdims=True)
    return out.reshape(shape)


def _fan(filler: pb.FillerParameter, shape: Shape) -> float:
    """The number that the variance is divided by: fan-in unless variance_norm says otherwise."""
    fan_in = prod(shape) // shape[0]
    fan_out = prod(shape) // shape[1] if len(shape) > 1 else prod(shape)
    norms: dict[Any, float] = {
        pb.FillerParameter.FAN_IN: fan_in,
        pb.FillerParameter.FAN_OUT: fan_out,
        pb.FillerParameter.AVERAGE: (fan_in + fan_out) / 2,
    }
    return norms[filler.variance_norm]


def _xavier(filler: pb.FillerParameter, shape: Shape, generator: np.random.Generator) -> Array:
    """U(-s, s) with s = sqrt(3 / fan)."""
    scale = sqrt(3 / _fan(filler, shape))
    return _uniform(-scale, scale, shape, generator)


def _msra(filler: pb.FillerParameter, shape: Shape, generator: np.random.Generator) -> Array:
    """N(0, s) with s = sqrt(2 / fan); caffe-windows' alpha makes it sqrt(2 / fan / (1 + alpha^2))."""
    return _normal(0, sqrt(2 / _fan(filler, shape) / (1 + filler.alpha**2)), shape, generator)


def _gaussian_unitball(_filler: pb.FillerParameter, shape: Shape, generator: np.random.Generator) -> Array:
    """N(0, 1), then each slice of the first axis is divided by the root of its sum of squares."""
    out = _normal(0, 1, shape, generator).reshape(shape[0], -1)
    out /= np.sqrt(np.square(out).sum(axis=1, keepdims=True) + np.float32(1e-12))
    return out.reshape(shape)


def _bilinear(_filler: pb.FillerParameter, shape: Shape, _generator: np.random.Generator) -> Array:
    """The kernel of bilinear interpolation, (1 - |x/f - c|) (1 - |y/f - c|), in every (height, width) slice."""
    half = ceil(shape[3] / 2)
    centre = np.float32((shape[3] - 1) / (2 * half))
    steps = np.arange(shape[3], dtype=np.float32) / np.float32(half)
    line = np.float32(1) - np.abs(steps - centre)
    values: Array = np.broadcast_to(line[:, None] * line, shape).copy()
    return values


def _dct(filler: pb.FillerParameter, shape: Shape, _generator: np.random.Generator) -> Array:
    """The waves of a discrete cosine transform, by rising frequency, of those alike the one that waves down first."""
    size = int(filler.type.removeprefix("dct"))
    at = np.arange(size)
    waves = np.cos((2 * at[:, None] + 1) * at * np.pi / (2 * size)) * np.sqrt(2 / size)
    waves[:, 0] /= np.sqrt(2)
    order = sorted(np.ndindex(size, size), key=lambda pair: (sum(pair), -pair[0]))
    values = np.array([np.outer(waves[:, down], waves[:, across]) for down, across in order], np.float32)
    return values.reshape(shape)


FILLERS: dict[str, Rule] = {
    "constant": _constant,
    "uniform": _between,
    "gaussian": _gaussian,
    "positive_unitball": _positive_unitball,
    "xavier": _xavier,
    "msra": _msra,
    "bilinear": _bilinear,
    "gaussian_unitball": _gaussian_unitball,
    **dict.fromkeys((f"dct{size}" for size in DCT_SIZES), _dct),
}
"""Filler type -> distribution."""

OF_FORKS = {
    "gaussian_unitball": ("caffe-windows",),
    **dict.fromkeys((f"dct{size}" for size in DCT_SIZES), ("steganalysis",)),
}
"""Filler type that BVLC Caffe does not have -> the dialects that have it."""
