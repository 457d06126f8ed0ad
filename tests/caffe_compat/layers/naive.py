"""Caffe's layers as plain loops over float64 arrays, to hold the real ones against."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from math import ceil, floor

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
FLT_MAX = float(np.finfo(np.float32).max)


def _places(index: Sequence[int], tap: Sequence[int], stride: int, pad: int, dilation: int) -> tuple[int, ...]:
    return tuple(i * stride - pad + k * dilation for i, k in zip(index, tap, strict=True))


def _inside(places: Sequence[int], sizes: Sequence[int]) -> bool:
    return all(0 <= place < size for place, size in zip(places, sizes, strict=True))


def conv_size(size: int, kernel: int, stride: int = 1, pad: int = 0, dilation: int = 1) -> int:
    """C's integer division drops the fraction, also of a negative number."""
    return int((size + 2 * pad - (dilation * (kernel - 1) + 1)) / stride) + 1


def im2col(x: Array, kernel: Sequence[int], stride: int = 1, pad: int = 0, dilation: int = 1) -> Array:
    """(N, C, sizes...) -> (N, C, taps, positions...)."""
    sizes = x.shape[2:]
    out = [conv_size(n, k, stride, pad, dilation) for n, k in zip(sizes, kernel, strict=True)]
    columns = np.zeros((*x.shape[:2], int(np.prod(kernel)), *out))
    for row, tap in enumerate(product(*map(range, kernel))):
        for index in product(*map(range, out)):
            places = _places(index, tap, stride, pad, dilation)
            if _inside(places, sizes):
                columns[(slice(None), slice(None), row, *index)] = x[(slice(None), slice(None), *places)]
    return columns


def convolution(
    x: Array, weight: Array, bias: Array, stride: int = 1, pad: int = 0, dilation: int = 1, group: int = 1
) -> Array:
    columns = im2col(x, weight.shape[2:], stride, pad, dilation)
    flat = weight.reshape(*weight.shape[:2], -1)
    parts = zip(np.split(columns, group, axis=1), np.split(flat, group), strict=True)
    y = np.concatenate([np.einsum("nck...,ock->no...", part, kernels) for part, kernels in parts], axis=1)
    return y + bias.reshape(-1, *[1] * (x.ndim - 2))


def deconvolution(
    x: Array, weight: Array, bias: Array, stride: int = 1, pad: int = 0, dilation: int = 1, group: int = 1
) -> Array:
    """Every input value puts the kernel, times itself, into the output."""
    sizes = [
        stride * (n - 1) + dilation * (k - 1) + 1 - 2 * pad for n, k in zip(x.shape[2:], weight.shape[2:], strict=True)
    ]
    y = np.zeros((x.shape[0], weight.shape[1] * group, *sizes))
    y += bias.reshape(-1, *[1] * len(sizes))
    inputs, outputs = x.shape[1] // group, weight.shape[1]
    for index, tap in product(product(*map(range, x.shape[2:])), product(*map(range, weight.shape[2:]))):
        places = _places(index, tap, stride, pad, dilation)
        if not _inside(places, sizes):
            continue
        for g in range(group):
            channels, outs = slice(g * inputs, (g + 1) * inputs), slice(g * outputs, (g + 1) * outputs)
            put = x[(slice(None), channels, *index)] @ weight[(channels, slice(None), *tap)]
            y[(slice(None), outs, *places)] += put
    return y


def pool_size(size: int, kernel: int, stride: int, pad: int, padded: bool, round_up: bool = True) -> int:
    """`padded`: some axis has padding."""
    rounded = (ceil if round_up else floor)((size + 2 * pad - kernel) / stride)
    count = rounded + 1
    return count - 1 if padded and (count - 1) * stride >= size + pad else count


def pool_windows(
    sizes: tuple[int, int], kernel: int, stride: int, pad: int, round_up: bool = True
) -> Iterator[tuple[tuple[int, int], tuple[slice, slice], int]]:
    """Place in the top, slices of the bottom, and AVE's divisor of every window."""
    outs = [pool_size(size, kernel, stride, pad, pad > 0, round_up) for size in sizes]
    for index in product(*map(range, outs)):
        starts = [i * stride - pad for i in index]
        ends = [min(start + kernel, size + pad) for start, size in zip(starts, sizes, strict=True)]
        divisor = (ends[0] - starts[0]) * (ends[1] - starts[1])
        rows, columns = (slice(max(s, 0), max(min(e, n), 0)) for s, e, n in zip(starts, ends, sizes, strict=True))
        yield (index[0], index[1]), (rows, columns), divisor


def max_pool(x: Array, kernel: int, stride: int, pad: int = 0, round_up: bool = True) -> tuple[Array, Array]:
    """Maxima and their places h * W + w, -1 for an empty window."""
    return _max_pool(x, list(pool_windows((x.shape[2], x.shape[3]), kernel, stride, pad, round_up)))


def _max_pool(x: Array, windows: list[tuple[tuple[int, int], tuple[slice, slice], int]]) -> tuple[Array, Array]:
    shape = (*x.shape[:2], *(1 + max((index[axis] for index, _, _ in windows), default=-1) for axis in (0, 1)))
    y, mask = np.full(shape, -FLT_MAX), np.full(shape, -1.0)
    for (index, slices, _), n, c in product(windows, range(shape[0]), range(shape[1])):
        for h in range(slices[0].start, slices[0].stop):
            for w in range(slices[1].start, slices[1].stop):
                if x[n, c, h, w] > y[(n, c, *index)]:
                    y[(n, c, *index)] = x[n, c, h, w]
                    mask[(n, c, *index)] = h * x.shape[3] + w
    return y, mask


def max_pool_gradient(x: Array, mask: Array, top_diff: Array) -> Array:
    """Each window's gradient goes to the place that its mask names."""
    grad = np.zeros(x.shape)
    for n, c, h, w in np.ndindex(*mask.shape):
        place = int(mask[n, c, h, w])
        if place >= 0:
            grad[n, c, place // x.shape[3], place % x.shape[3]] += top_diff[n, c, h, w]
    return grad


def ave_pool(x: Array, kernel: int, stride: int, pad: int = 0, round_up: bool = True) -> Array:
    windows = list(pool_windows((x.shape[2], x.shape[3]), kernel, stride, pad, round_up))
    y = np.zeros((*x.shape[:2], *(1 + max(index[axis] for index, _, _ in windows) for axis in (0, 1))))
    with np.errstate(all="ignore"):
        for index, slices, divisor in windows:
            y[(..., *index)] = x[(..., *slices)].sum((2, 3)) / np.float64(divisor)
    return y


def lrn_across(x: Array, size: int, alpha: float, beta: float, k: float) -> Array:
    y = np.zeros(x.shape)
    for c in range(x.shape[1]):
        first = max(0, c - (size - 1) // 2)
        last = min(x.shape[1], c - (size - 1) // 2 + size)
        scale = k + alpha / size * np.square(x[:, first:last]).sum(1)
        y[:, c] = x[:, c] * scale**-beta
    return y


def lrn_within(x: Array, size: int, alpha: float, beta: float) -> Array:
    return x * (1 + alpha * ave_pool(np.square(x), size, 1, (size - 1) // 2)) ** -beta
