"""ATen's operators in ONNX's words. Arguments come by their names in ATen's schemas."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from caffe_compat.errors import ConversionError, Where
from converters.importing.aten import SOURCE, Ref, Tracer

Arguments = Mapping[str, Any]
Mapped = Callable[[Tracer, Arguments], Any]


def _refuse(t: Tracer, what: str, remedy: str) -> ConversionError:
    return ConversionError(what, where=Where(f'{SOURCE}: module "{t.layer()}"'), remedy=remedy)


def _list(value: Any, count: int) -> list[int]:
    """One number for each axis."""
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    return values * count if len(values) == 1 else values


def _tensor(t: Tracer, value: Any) -> Ref:
    """A tensor, or a number as one."""
    return value if isinstance(value, Ref) else t.constant(np.array(value, np.float32))


def _unary(kind: str, **attributes: Any) -> Mapped:
    return lambda t, a: t.op(kind, [a.get("self", a.get("input"))], **attributes)


def _same(t: Tracer, a: Arguments) -> Any:
    """Copies and the like; to other types where the values are the same."""
    import torch

    kind = a.get("dtype")
    if kind not in (None, torch.float32):
        raise _refuse(t, f"a cast to {kind}", "keep to float32")
    return t.op("Identity", [a.get("self", a.get("input"))])


def _dropout(t: Tracer, a: Arguments) -> Any:
    if a["train"] and a["p"]:
        raise _refuse(t, "dropout that acts in evaluation mode", "call dropout with training=self.training")
    return t.op("Identity", [a["input"]])


# -- layers with weights -----------------------------------------------------------------------------------


def _conv(t: Tracer, a: Arguments) -> Any:
    rank = len(t.shapes[a["weight"]]) - 2
    x = _batched(t, a["input"], rank)
    given: dict[str, Any] = {"strides": _list(a["stride"], rank), "dilations": _list(a["dilation"], rank)}
    if isinstance(a["padding"], str):
        given["auto_pad"] = {"same": "SAME_UPPER", "valid": "VALID"}[a["padding"]]
    else:
        given["pads"] = _list(a["padding"], rank) * 2
    return t.op("Conv", [x, a["weight"], a["bias"]], group=a["groups"], **given)


def _batched(t: Tracer, x: Ref, rank: int) -> Ref:
    if len(t.shapes[x]) != rank + 2:
        raise _refuse(t, f"an input of {len(t.shapes[x])} axes", "put a batch axis before it")
    return x


def _conv_transpose(t: Tracer, a: Arguments) -> Any:
    rank = len(t.shapes[a["weight"]]) - 2
    x = _batched(t, a["input"], rank)
    given: dict[str, Any] = {
        key: _list(a[name], rank) for key, name in (("strides", "stride"), ("dilations", "dilation"))
    }
    given |= {"pads": _list(a["padding"], rank) * 2, "output_padding": _list(a["output_padding"], rank)}
    return t.op("ConvTranspose", [x, a["weight"], a["bias"]], group=a["groups"], **given)


def _linear(t: Tracer, a: Arguments) -> Any:
    if len(t.shapes[a["input"]]) == 2:
        return t.op("Gemm", [a["input"], a["weight"], a["bias"]], transB=1)
    rows = t.shapes[a["weight"]][::-1]
    matrix = t.op("Transpose", [a["weight"]], perm=[1, 0], shape=rows)
    made = t.op("MatMul", [a["input"], matrix])
    return made if a["bias"] is None else t.op("Add", [made, a["bias"]])


def _addmm(t: Tracer, a: Arguments) -> Any:
    return t.op("Gemm", [a["mat1"], a["mat2"], a["self"]], alpha=float(a["alpha"]), beta=float(a["beta"]))


def _matmul(t: Tracer, a: Arguments) -> Any:
    return t.op("MatMul", [a["self"], a.get("other", a.get("mat2"))])


def _batch_norm(t: Tracer, a: Arguments) -> Any:
    if a.get("training") or a["running_mean"] is None:
        raise _refuse(t, "batch normalisation with the statistics of the batch", "track running statistics")
    channels = t.shapes[a["running_mean"]]
    weight = a["weight"] if a["weight"] is not None else t.constant(np.ones(channels))
    bias = a["bias"] if a["bias"] is not None else t.constant(np.zeros(channels))
    return t.op("BatchNormalization", [a["input"], weight, bias, a["running_mean"], a["running_var"]], epsilon=a["eps"])


def _prelu(t: Tracer, a: Arguments) -> Any:
    slopes, rank = t.shapes[a["weight"]], len(t.shapes[a["self"]])
    shape = (*slopes, *[1] * (rank - 2)) if prod(slopes) > 1 else slopes
    slope = t.op("Reshape", [a["weight"], t.constant(shape, np.int64)], shape=shape)
    return t.op("PRelu", [a["self"], slope])


def _embedding(t: Tracer, a: Arguments) -> Any:
    return t.op("Gather", [a["weight"], a["indices"]], axis=0)


# -- pooling -----------------------------------------------------------------------------------------------


def _windows(t: Tracer, a: Arguments, rank: int) -> dict[str, Any]:
    kernel = _list(a["kernel_size"], rank)
    stride = a["stride"] if a["stride"] not in (None, []) else kernel
    pads = _list(a["padding"], rank) * 2
    _batched(t, a.get("self", a.get("input")), rank)
    return {"kernel_shape": kernel, "strides": _list(stride, rank), "pads": pads, "ceil_mode": int(a["ceil_mode"])}


def _max_pool(rank: int) -> Mapped:
    def made(t: Tracer, a: Arguments) -> Any:
        given = _windows(t, a, rank)
        return t.op("MaxPool", [a["self"]], dilations=_list(a["dilation"], rank), **given)

    return made


def _avg_pool(rank: int) -> Mapped:
    def made(t: Tracer, a: Arguments) -> Any:
        if a.get("divisor_override"):
            raise _refuse(t, "divisor_override", "leave it out and multiply the result")
        return t.op("AveragePool", [a["self"]], count_include_pad=int(a["count_include_pad"]), **_windows(t, a, rank))

    return made


def _adaptive(kind: str, rank: int) -> Mapped:
    def made(t: Tracer, a: Arguments) -> Any:
        x = _batched(t, a["self"], rank)
        sizes, wanted = t.shapes[x][2:], _list(a["output_size"], rank)
        wanted = [size if want is None else want for size, want in zip(sizes, wanted, strict=True)]
        if any(size % want for size, want in zip(sizes, wanted, strict=True)):
            what = f"adaptive pooling from {list(sizes)} to {wanted}, whose windows differ in size"
            raise _refuse(t, what, "choose an input for which the sizes divide")
        if all(want == 1 for want in wanted):
            return t.op(f"Global{kind}", [x])
        kernel = [size // want for size, want in zip(sizes, wanted, strict=True)]
        return t.op(kind, [x], kernel_shape=kernel, strides=kernel)

    return made


def _first(mapped: Mapped) -> Mapped:
    """An operator of which only the first result is made; its second may not be used."""
    return lambda t, a: [mapped(t, a), None]


# -- functions ---------------------------------------------------------------------------------------------


def _clip(low: str, high: str) -> Mapped:
    def made(t: Tracer, a: Arguments) -> Any:
        limits = [a.get(low), a.get(high)]
        if any(isinstance(limit, Ref) for limit in limits):
            raise _refuse(t, "limits that are tensors", "clamp between numbers")
        given = [None if limit is None else t.constant(np.array(limit)) for limit in limits]
        return t.op("Clip", [a["self"], *given])

    return made


def _relu6(t: Tracer, a: Arguments) -> Any:
    return _clip("low", "high")(t, {**a, "low": 0.0, "high": 6.0})


def _elu(t: Tracer, a: Arguments) -> Any:
    if a["input_scale"] != 1:
        raise _refuse(t, "elu with input_scale", "use celu")
    made = t.op("Elu", [a["self"]], alpha=float(a["alpha"]))
    return made if a["scale"] == 1 else t.op("Mul", [made, _tensor(t, a["scale"])])


def _softplus(t: Tracer, a: Arguments) -> Any:
    if a["beta"] != 1:
        raise _refuse(t, f"softplus with beta {a['beta']}", "use beta 1")
    return t.op("Softplus", [a["self"]])


def _softmax(kind: str) -> Mapped:
    return lambda t, a: t.op(kind, [a["self"]], axis=a["dim"])


def _power(t: Tracer, a: Arguments) -> Any:
    return t.op("Pow", [_tensor(t, a["self"]), _tensor(t, a["exponent"])])


def _rsqrt(t: Tracer, a: Arguments) -> Any:
    return t.op("Pow", [a["self"], t.constant(np.array(-0.5))])


def _binary(kind: str, swapped: bool = False) -> Mapped:
    def made(t: Tracer, a: Arguments) -> Any:
        pair = [_tensor(t, a["self"]), _tensor(t, a["other"])]
        if a.get("rounding_mode"):
            raise _refuse(t, "division that rounds", "divide without rounding")
        pair = pair[::-1] if swapped else pair
        if a.get("alpha", 1) != 1:
            pair[1] = t.op("Mul", [pair[1], _tensor(t, a["alpha"])], shape=t.shapes[pair[1]])
        return t.op(kind, pair)

    return made


# -- shapes ------------------------------------------------------------------------------------------------


def _reshape(t: Tracer, a: Arguments) -> Any:
    return t.op("Reshape", [a["self"], t.constant(t.result() or (), np.int64)])


def _permute(t: Tracer, a: Arguments) -> Any:
    rank = len(t.shapes[a["self"]])
    return t.op("Transpose", [a["self"]], perm=[axis % rank for axis in a["dims"]])


def _transpose(t: Tracer, a: Arguments) -> Any:
    rank = len(t.shapes[a["self"]])
    order = list(range(rank))
    if rank > 1:
        one, other = a.get("dim0", 0) % rank, a.get("dim1", 1) % rank
        order[one], order[other] = other, one
    return t.op("Transpose", [a["self"]], perm=order)


def _cat(t: Tracer, a: Arguments) -> Any:
    return t.op("Concat", a["tensors"], axis=a["dim"])


def _stack(t: Tracer, a: Arguments) -> Any:
    rank = len(t.shapes[a["tensors"][0]]) + 1
    axis = a["dim"] % rank
    parts = []
    for each in a["tensors"]:
        shape = (*t.shapes[each][:axis], 1, *t.shapes[each][axis:])
        parts.append(t.op("Reshape", [each, t.constant(shape, np.int64)], shape=shape))
    return t.op("Concat", parts, axis=axis)


def _parts(t: Tracer, x: Ref, sizes: Sequence[int], axis: int) -> Any:
    given = [x, t.constant(sizes, np.int64)]
    made = t.op("Split", given, outputs=len(sizes), axis=axis)
    return made if len(sizes) > 1 else [made]


def _split(t: Tracer, a: Arguments) -> Any:
    axis = a["dim"] % len(t.shapes[a["self"]])
    size = t.shapes[a["self"]][axis]
    if isinstance(a.get("split_sizes", a.get("split_size")), list):
        return _parts(t, a["self"], a.get("split_sizes", a.get("split_size")), axis)
    step = -(-size // a["chunks"]) if "chunks" in a else a["split_size"]
    return _parts(t, a["self"], [min(step, size - at) for at in range(0, size, step)], axis)


def _slice(t: Tracer, a: Arguments) -> Any:
    size = t.shapes[a["self"]][a["dim"]]
    start, stop, step = slice(a["start"], a["end"], a["step"]).indices(size)
    given = [t.constant([value], np.int64) for value in (start, stop, a["dim"], step)]
    return t.op("Slice", [a["self"], *given])


def _select(t: Tracer, a: Arguments) -> Any:
    return t.op("Gather", [a["self"], t.constant(a["index"], np.int64)], axis=a["dim"])


def _index(t: Tracer, a: Arguments) -> Any:
    given = [(axis, each) for axis, each in enumerate(a["indices"]) if each is not None]
    if len(given) != 1:
        raise _refuse(t, "indexing by several tensors", "index one axis at a time")
    return t.op("Gather", [a["self"], given[0][1]], axis=given[0][0])


def _expand(t: Tracer, a: Arguments) -> Any:
    return t.op("Expand", [a["self"], t.constant(t.result() or (), np.int64)])


def _repeat(t: Tracer, a: Arguments) -> Any:
    repeats, shape = a["repeats"], t.shapes[a["self"]]
    x, more = a["self"], len(repeats) - len(shape)
    if more:
        x = t.op("Reshape", [x, t.constant((*[1] * more, *shape), np.int64)], shape=(*[1] * more, *shape))
    return t.op("Tile", [x, t.constant(repeats, np.int64)])


def _pad(t: Tracer, a: Arguments) -> Any:
    rank, pads = len(t.shapes[a["self"]]), a["pad"]
    sides = [(pads[2 * i], pads[2 * i + 1]) for i in range(len(pads) // 2)][::-1]
    sides = [(0, 0)] * (rank - len(sides)) + sides
    given = t.constant([before for before, _ in sides] + [after for _, after in sides], np.int64)
    return t.op("Pad", [a["self"], given, _tensor(t, a.get("value") or 0.0)], mode=a.get("mode", "constant"))


def _reduce(kind: str) -> Mapped:
    def made(t: Tracer, a: Arguments) -> Any:
        axes = a.get("dim")
        axes = [axes] if isinstance(axes, int) else list(axes or range(len(t.shapes[a["self"]])))
        return t.op(kind, [a["self"], t.constant(axes, np.int64)], keepdims=int(a.get("keepdim", False)))

    return made


def _upsample(mode: str) -> Mapped:
    def made(t: Tracer, a: Arguments) -> Any:
        shape = t.result() or ()
        place = "align_corners" if a.get("align_corners") else "asymmetric" if mode == "nearest" else "half_pixel"
        given = ["", "", t.constant(shape, np.int64)]
        return t.op(
            "Resize", [a["input"], *given], mode=mode, nearest_mode="floor", coordinate_transformation_mode=place
        )

    return made


def _pixel_shuffle(t: Tracer, a: Arguments) -> Any:
    return t.op("DepthToSpace", [a["self"]], blocksize=a["upscale_factor"], mode="CRD")


_SAME = ("alias", "clone", "contiguous", "detach", "lift_fresh_copy", "to", "_to_copy", "lift_fresh")
_RESHAPES = ("view", "reshape", "flatten", "unflatten", "_unsafe_view", "squeeze", "unsqueeze", "view_copy")
_UNARY = {
    "relu": "Relu",
    "sigmoid": "Sigmoid",
    "tanh": "Tanh",
    "exp": "Exp",
    "log": "Log",
    "abs": "Abs",
    "neg": "Neg",
    "sqrt": "Sqrt",
    "reciprocal": "Reciprocal",
    "hardswish": "HardSwish",
    "mish": "Mish",
    "silu": "Swish",
    "selu": "Selu",
    "gelu": "Gelu",
    "layer_norm": "LayerNormalization",
    "group_norm": "GroupNormalization",
    "instance_norm": "InstanceNormalization",
}

TABLE: Mapping[str, Mapped] = {
    **dict.fromkeys(_SAME, _same),
    **dict.fromkeys(_RESHAPES, _reshape),
    **{name: _unary(kind) for name, kind in _UNARY.items()},
    **{f"conv{rank}d": _conv for rank in (1, 2, 3)},
    **{f"conv_transpose{rank}d": _conv_transpose for rank in (1, 2, 3)},
    "dropout": _dropout,
    "feature_dropout": _dropout,
    "linear": _linear,
    "addmm": _addmm,
    "mm": _matmul,
    "matmul": _matmul,
    "embedding": _embedding,
    "batch_norm": _batch_norm,
    "_native_batch_norm_legit_no_training": _first(_batch_norm),
    "prelu": _prelu,
    "max_pool1d": _max_pool(1),
    "max_pool2d": _max_pool(2),
    "max_pool2d_with_indices": _first(_max_pool(2)),
    "avg_pool1d": _avg_pool(1),
    "avg_pool2d": _avg_pool(2),
    "adaptive_avg_pool1d": _adaptive("AveragePool", 1),
    "adaptive_avg_pool2d": _adaptive("AveragePool", 2),
    "adaptive_max_pool1d": _first(_adaptive("MaxPool", 1)),
    "adaptive_max_pool2d": _first(_adaptive("MaxPool", 2)),
    "hardtanh": _clip("min_val", "max_val"),
    "relu6": _relu6,
    "clamp": _clip("min", "max"),
    "clamp_min": _clip("min", "none"),
    "clamp_max": _clip("none", "max"),
    "leaky_relu": lambda t, a: t.op("LeakyRelu", [a["self"]], alpha=float(a["negative_slope"])),
    "elu": _elu,
    "celu": lambda t, a: t.op("Celu", [a["self"]], alpha=float(a["alpha"])),
    "hardsigmoid": _unary("HardSigmoid", alpha=1 / 6, beta=0.5),
    "softplus": _softplus,
    "softmax": _softmax("Softmax"),
    "_softmax": _softmax("Softmax"),
    "log_softmax": _softmax("LogSoftmax"),
    "_log_softmax": _softmax("LogSoftmax"),
    "pow": _power,
    "rsqrt": _rsqrt,
    "add": _binary("Add"),
    "sub": _binary("Sub"),
    "rsub": _binary("Sub", swapped=True),
    "mul": _binary("Mul"),
    "div": _binary("Div"),
    "maximum": _binary("Max"),
    "minimum": _binary("Min"),
    "permute": _permute,
    "transpose": _transpose,
    "t": _transpose,
    "cat": _cat,
    "stack": _stack,
    "split": _split,
    "split_with_sizes": _split,
    "chunk": _split,
    "slice": _slice,
    "select": _select,
    "index": _index,
    "expand": _expand,
    "repeat": _repeat,
    "pad": _pad,
    "constant_pad_nd": _pad,
    "mean": _reduce("ReduceMean"),
    "sum": _reduce("ReduceSum"),
    "amax": _reduce("ReduceMax"),
    "upsample_nearest1d": _upsample("nearest"),
    "upsample_nearest2d": _upsample("nearest"),
    "upsample_bilinear2d": _upsample("linear"),
    "upsample_bicubic2d": _upsample("cubic"),
    "pixel_shuffle": _pixel_shuffle,
}
"""ATen operator without overload -> what it is in ONNX."""
