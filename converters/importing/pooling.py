"""MaxPool, AveragePool and the global ones: the same windows and divisors, or a rewriting that was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np

from caffe_compat.layers.pooling import Window
from converters.importing.builder import Builder, Value
from converters.importing.geometry import Windows, pair, read_windows
from converters.importing.padding import Sides, crop, padded, put_pads
from converters.importing.program import Array, Op
from converters.importing.translation import refuse_unless, rule

NONE: tuple[Sides, Sides] = ((0, 0), (0, 0))


@dataclass(frozen=True)
class Plan:
    """How windows of ONNX become those of a Pooling layer.

    Attributes:
        window: Caffe's.
        around: zeros to be put around the bottom, or places to be cut off where below 0, before.
        skip: windows of Caffe's to be left out at the front of each axis; what is too much behind goes as well.
        done: what was rewritten, for a note; "" for nothing.
    """

    window: Window
    around: tuple[Sides, Sides] = NONE
    skip: tuple[int, int] = (0, 0)
    done: str = ""


@rule("GlobalAveragePool", "GlobalMaxPool")
def global_pool(b: Builder, op: Op) -> list[Value]:
    """Pooling over everything behind the channels."""
    x = b.read(op, 0)
    return [everything(b, op, x, "MAX" if op.kind == "GlobalMaxPool" else "AVE")]


def everything(b: Builder, op: Op, x: Value, method: str) -> Value:
    """The maximum or mean of each channel, (N, C, 1...)."""
    refuse_unless(len(x.shape) >= 3, op, f"a bottom of {len(x.shape)} axes", "pool over (N, C, sizes...)")
    flat = _as_image(b, op, x)
    pool = None if method == "MAX" else flat_enum(method)
    made = b.one(op, "Pooling", [flat], pool=pool, global_pooling=True)
    ones = (*x.shape[:2], *[1] * (len(x.shape) - 2))
    return (
        made if made.shape == ones else b.one(op, "Reshape", [made], suffix="shape", shape={"dim": [0, 0, *ones[2:]]})
    )


def flat_enum(method: str) -> int:
    """PoolMethod by name."""
    return {"MAX": 0, "AVE": 1}[method]


def _as_image(b: Builder, op: Op, x: Value) -> Value:
    """(N, C, sizes...) with two sizes, which is all that Caffe pools over."""
    if len(x.shape) == 4:
        return x
    return b.one(op, "Reshape", [x], suffix="image", shape={"dim": [0, 0, 1, -1]})


@rule("MaxPool", "AveragePool")
def pool(b: Builder, op: Op) -> list[Value]:
    """Windows along one or two axes."""
    refuse_unless(len([name for name in op.outputs if name]) == 1, op, "its indices are used", "leave out the indices")
    x, rank = b.raw(op, 0), len(op_shape(b, op)) - 2
    refuse_unless(rank in (1, 2), op, f"windows over {rank} axes", "Caffe pools over two axes (N, C, H, W)")
    maximum = op.kind == "MaxPool"
    if x.array is not None or x.integer or (x.pads and (any(map(any, x.pads[:2])) or (maximum and not x.positive))):
        x = b.blob(op, x)
    windows = read_windows(op, x.sizes[2:], op.get("kernel_shape", []))
    refuse_unless(all(n == 1 for n in windows.dilation), op, f"dilations {list(windows.dilation)}", "use dilation 1")
    counted = _counted(op, windows, x.pads[2:] or ((0, 0),) * rank)
    windows = windows.wider(x.pads[2:]) if x.pads else windows
    x = replace(x, pads=(), shape=x.sizes)
    if rank == 1:
        x, windows, counted = _as_image(b, op, x), _with_axis(windows), ((0, 0), *counted)
    plan = _plan(b, op, windows, x.positive or not maximum)
    made = _pooled(b, op, x, windows, plan)
    if not maximum:
        made = _divided(b, op, made, windows, plan, counted)
    return [made if rank == 2 else b.one(op, "Reshape", [made], suffix="shape", shape={"dim": [0, 0, -1]})]


def op_shape(b: Builder, op: Op) -> tuple[int, ...]:
    """The shape of the first input."""
    return b.raw(op, 0).shape


def _with_axis(windows: Windows) -> Windows:
    """One-dimensional windows over images of height 1."""
    both: dict[str, Any] = {name: (1, *getattr(windows, name)) for name in ("sizes", "kernel", "stride", "dilation")}
    return replace(windows, pads=((0, 0), *windows.pads), **both)


# -- windows -----------------------------------------------------------------------------------------------


def _plan(b: Builder, op: Op, windows: Windows, zeros: bool) -> Plan:
    """The plan: nothing to rewrite, or as the option says.

    Args:
        zeros: zeros around the bottom change nothing (they are counted, or no value is below them).
    """
    kernel, stride = _two(windows.kernel), _two(windows.stride)
    plain = Window(kernel, stride, _two([before for before, _ in windows.pads]))
    if plain.output(windows.sizes) == windows.outputs and _below(plain):
        return Plan(plain)
    plans = [each for each in _rewritings(windows, plain, zeros) if _below(each.window)]
    chosen = next((each for each in plans if each.done == b.options.pool_rewrite), None)
    if chosen is None:
        what = f"sizes {_text(windows.outputs)}, Caffe, which rounds up, has {_text(plain.output(windows.sizes))}"
        names = ", ".join(f'"{name}"' for name in dict.fromkeys(each.done for each in plans))
        advice = (
            f"set pool_rewrite (--pool-rewrite) to {names}, which keep the result"
            if names
            else "choose another input size"
        )
        raise op.refuse(what, advice)
    said = "crop" if min(min(sides) for sides in chosen.around) < 0 else chosen.done
    b.notes.append(f'"{b.base_name(op)}": {_SAID[said]}')
    return chosen


_SAID = {
    "floor": "round_mode: FLOOR, which Caffe knows since 2018",
    "crop": "cut so that it has the size that rounding down gives",
    "pad": "zeros are put around its bottom so that nothing is rounded",
}


def _rewritings(windows: Windows, plain: Window, zeros: bool) -> list[Plan]:
    """All plans that give exactly the windows of ONNX."""
    plans = []
    floor = replace(plain, ceil=False)
    if floor.output(windows.sizes) == windows.outputs:
        plans.append(Plan(floor, done="floor"))
    around = _whole(windows)
    inside = all(before == 0 and after <= 0 for before, after in around)
    bare = Window(plain.kernel, plain.stride, (0, 0))
    if inside:
        return [*plans, *(Plan(bare, around, done=name) for name in ("crop", "pad"))]
    plans += _cropped(windows, plain)
    if zeros and not windows.ceil:
        plans.append(Plan(bare, around, done="pad"))
    return plans


def _whole(windows: Windows) -> tuple[Sides, Sides]:
    """What is to be put around the bottom so that the windows just fill it."""
    sides = []
    for axis, (before, _) in enumerate(windows.pads):
        end = (windows.outputs[axis] - 1) * windows.stride[axis] + windows.kernel[axis]
        sides.append((before, end - before - windows.sizes[axis]))
    return sides[0], sides[1]


def _cropped(windows: Windows, plain: Window) -> list[Plan]:
    """The plan that leaves out some of Caffe's windows, where its pad may be larger."""
    for skip in product(range(2), repeat=2):
        pad = _two([own + n * step for own, n, step in zip(plain.pad, skip, plain.stride, strict=True)])
        window = replace(plain, pad=pad)
        enough = zip(window.output(windows.sizes), windows.outputs, skip, strict=True)
        if _below(window) and all(got >= want + n for got, want, n in enough):
            return [Plan(window, NONE, _two(skip), "crop")]
    return []


def _below(window: Window) -> bool:
    """Caffe refuses a pad that is not below the kernel."""
    return not any(window.pad) or all(p < k for p, k in zip(window.pad, window.kernel, strict=True))


def _pooled(b: Builder, op: Op, x: Value, windows: Windows, plan: Plan) -> Value:
    """The Pooling layer, with what is to be done before and behind it."""
    for axis, (_, after) in enumerate(plan.around, 2):
        if after < 0:
            x = crop(b, op, x, axis, 0, x.shape[axis] + after)
    zeros = [(before, max(after, 0)) for before, after in plan.around]
    if any(map(any, zeros)):
        x = put_pads(b, op, padded(x, ((0, 0), (0, 0), *zeros)))
    window = plan.window
    fields: dict[str, Any] = {
        "pool": flat_enum("AVE") if op.kind == "AveragePool" else None,
        "round_mode": None if window.ceil else 1,
        **pair("kernel", window.kernel, single="kernel_size"),
        **pair("pad", window.pad, 0),
        **pair("stride", window.stride, 1),
    }
    made = b.one(op, "Pooling", [x], **fields)
    for axis, (skip, want) in enumerate(zip(plan.skip, windows.outputs, strict=True), 2):
        made = crop(b, op, made, axis, skip, skip + want)
    return made


# -- divisors ----------------------------------------------------------------------------------------------


def _counted(op: Op, windows: Windows, zeros: Sequence[Sides]) -> tuple[Sides, ...]:
    """How far before and behind the bottom places count as its own when ONNX takes a mean."""
    if not op.get("count_include_pad", 0):
        return tuple(zeros)
    beyond = [
        (windows.outputs[axis] - 1) * windows.stride[axis] + windows.kernel[axis] - before > size + after
        for axis, (size, (before, after)) in enumerate(zip(windows.sizes, windows.pads, strict=True))
    ]
    unclear = windows.ceil and any(beyond) and op.version < 19
    remedy = "export it with operator set 19 or newer, or with ceil_mode 0"
    refuse_unless(
        not unclear, op, "before operator set 19, runtimes disagree about ceil_mode with count_include_pad", remedy
    )
    return tuple((a + before, z + after) for (a, z), (before, after) in zip(zeros, windows.pads, strict=True))


def _divided(b: Builder, op: Op, made: Value, windows: Windows, plan: Plan, counted: Sequence[Sides]) -> Value:
    """The means, corrected where Caffe's divisors are others."""
    theirs = []
    for axis, (before, after) in enumerate(counted):
        start = np.arange(windows.outputs[axis]) * windows.stride[axis] - windows.pads[axis][0]
        end = np.minimum(start + windows.kernel[axis], windows.sizes[axis] + after)
        theirs.append(end - np.maximum(start, -before))
    bottom = [size + sum(sides) for size, sides in zip(windows.sizes, plan.around, strict=True)]
    ours = plan.window.divisors(bottom)
    (top, left), (height, width) = plan.skip, windows.outputs
    ratio = ours[top : top + height, left : left + width] / (theirs[0][:, None] * theirs[1])
    if (ratio == 1).all():
        return made
    b.notes.append(f'"{b.base_name(op)}": Caffe divides by other numbers at the edges, which a Scale corrects')
    return b.one(op, "Scale", [made], [_floats(ratio)], "divisors", axis=2, num_axes=-1)


def _floats(ratio: Array) -> Array:
    return ratio.astype(np.float32)


def _two(values: Sequence[int]) -> tuple[int, int]:
    return values[0], values[1]


def _text(sizes: Sequence[int]) -> str:
    return " x ".join(map(str, sizes))
