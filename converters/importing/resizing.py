"""Resize and Upsample: whole factors with the nearest neighbour; bilinear between the corners."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from converters.importing.builder import Builder, Value
from converters.importing.geometry import stated
from converters.importing.padding import crop, every
from converters.importing.program import Array, Op, Shape
from converters.importing.translation import refuse_unless, rule

PLACES: dict[str, Callable[[Array, float, int, int], Array]] = {
    "asymmetric": lambda i, scale, _n, _m: i / scale,
    "half_pixel": lambda i, scale, _n, _m: (i + 0.5) / scale - 0.5,
    "pytorch_half_pixel": lambda i, scale, _n, m: (i + 0.5) / scale - 0.5 if m > 1 else np.zeros_like(i),
    "align_corners": lambda i, _s, n, m: i * (n - 1) / (m - 1) if m > 1 else np.zeros_like(i),
    "tf_half_pixel_for_nn": lambda i, scale, _n, _m: (i + 0.5) / scale,
}
"""coordinate_transformation_mode -> where in the input (size n) each place i of the output (size m) lies."""

ROUND: dict[str, Callable[[Array], Array]] = {
    "floor": np.floor,
    "ceil": np.ceil,
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
}

LINEAR = "align the corners of bilinear resizing (Interp), use the nearest neighbour, or ConvTranspose"


@rule("Resize", "Upsample")
def resize(b: Builder, op: Op) -> list[Value]:
    """Every value repeated, or each n-th taken; between aligned corners values are mixed."""
    x, mode = b.read(op, 0), op.get("mode", "nearest")
    scales, shape = _target(b, op, x.shape)
    if x.shape == shape and all(scale == 1 for scale in scales):
        return [x]
    corners = op.get("coordinate_transformation_mode") == "align_corners" and len(x.shape) == 4
    if mode == "linear" and corners and shape[:2] == x.shape[:2] and min(shape) > 0:
        b.notes.append(f'"{b.base_name(op)}": Interp is a layer of the pspnet fork, BVLC Caffe does not have it')
        return [b.one(op, "Interp", [x], height=shape[2], width=shape[3])]
    refuse_unless(mode == "nearest", op, f'mode "{mode}"', LINEAR)
    right = len(x.shape) >= 3 and shape[:2] == x.shape[:2] and min(shape) > 0 and max(shape) < 2**20
    refuse_unless(right, op, f"{list(x.shape)} to {list(shape)}", "resize axes behind the channels only")
    indices = [_indices(op, *each) for each in zip(x.shape[2:], shape[2:], scales[2:], strict=True)]
    return [_pick(b, op, x, indices)]


def _target(b: Builder, op: Op, shape: Shape) -> tuple[list[float], Shape]:
    """Scale of each axis, and the new shape."""
    if op.kind == "Upsample" or op.version < 11:
        given = op.get("scales") if op.version < 9 else b.constant(op, 1, "scales").reshape(-1).tolist()
        sizes = None
    else:
        scales, stated_sizes = b.optional(op, 2, "scales"), b.optional(op, 3, "sizes")
        given = scales.reshape(-1).tolist() if scales is not None and scales.size else None
        sizes = [int(n) for n in stated_sizes.reshape(-1)] if stated_sizes is not None else None
    plain = not op.get("axes") and op.get("keep_aspect_ratio_policy", "stretch") in ("stretch", None)
    right = plain and len(given or sizes or []) == len(shape) and all(0 < n < 2**20 for n in given or sizes or [0])
    refuse_unless(right, op, f"scales {given}, sizes {sizes}", "state a scale for every axis")
    if given:
        return list(given), tuple(
            int(np.floor(np.float32(n) * np.float32(s))) for n, s in zip(shape, given, strict=True)
        )
    return [size / own for size, own in zip(sizes or [], shape, strict=True)], tuple(sizes or [])


def _indices(op: Op, size: int, new: int, scale: float) -> Array:
    """The place of the input that each place of the output takes."""
    old = op.kind == "Upsample" or op.version < 11
    place = "asymmetric" if old else op.get("coordinate_transformation_mode", "half_pixel")
    rounding = "floor" if old else op.get("nearest_mode", "round_prefer_floor")
    refuse_unless(place in PLACES and rounding in ROUND, op, f"{place}, {rounding}", "use asymmetric and floor")
    where = PLACES[place](np.arange(new, dtype=np.float64), scale, size, new)
    return np.clip(ROUND[rounding](np.round(where, 9)), 0, size - 1).astype(np.int64)


def _pick(b: Builder, op: Op, x: Value, indices: Sequence[Array]) -> Value:
    """Repeat or leave out values along each spatial axis."""
    factors: list[int] = []
    steps: list[int] = []
    for axis, found in enumerate(indices, 2):
        size = x.shape[axis]
        factor = len(found) // size
        if factor >= 1 and np.array_equal(found, np.arange(size * factor) // factor):
            factors, steps = [*factors, factor], [*steps, 1]
            continue
        step = int(found[1] - found[0]) if len(found) > 1 else 1
        regular = step > 0 and np.array_equal(found, found[0] + step * np.arange(len(found)))
        what = f"axis {axis} of size {size} to {len(found)} is no whole factor"
        refuse_unless(regular, op, what, "resize by a whole factor")
        x = crop(b, op, x, axis, int(found[0]), int(found[-1]) + 1)
        factors, steps = [*factors, 1], [*steps, step]
    return _repeat(b, op, every(b, op, x, steps), factors)


def _repeat(b: Builder, op: Op, x: Value, factors: Sequence[int]) -> Value:
    """Each value as a block: a Deconvolution of each channel alone, with weights of 1."""
    if all(factor == 1 for factor in factors):
        return x
    weight = np.ones((x.shape[1], 1, *factors), np.float32)
    group = x.shape[1] if x.shape[1] != 1 else None
    fields = {**stated("kernel_size", factors), "group": group, **stated("stride", factors, 1)}
    return b.one(op, "Deconvolution", [x], [weight], num_output=x.shape[1], bias_term=False, **fields)
