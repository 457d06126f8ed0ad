"""BatchNormalization, LRN and Softmax."""

from __future__ import annotations

import numpy as np

from converters.importing.arithmetic import affine
from converters.importing.builder import Builder, Made, Value
from converters.importing.program import Array, Op
from converters.importing.shaping import reshape
from converters.importing.translation import refuse_unless, rule


@rule("BatchNormalization")
def batch_normalization(b: Builder, op: Op) -> list[Value]:
    """BatchNorm with these statistics, then Scale unless its weights change nothing."""
    refuse_unless(
        not op.get("training_mode", 0) and not any(op.outputs[1:]), op, "it is in training mode", "export for inference"
    )
    x = b.read(op, 0)
    names = ("scale", "B", "input_mean", "input_var")
    gamma, beta, mean, variance = (b.weights(op, index, name) for index, name in enumerate(names, 1))
    channels = x.shape[1] if len(x.shape) > 1 else 0
    fits = all(each.shape == (channels,) for each in (gamma, beta, mean, variance))
    refuse_unless(
        fits, op, f"statistics of {list(mean.shape)} for {list(x.shape)}", "give one of each for every channel"
    )
    eps = op.get("epsilon", 1e-5)
    before = b.retract(x, "Convolution", "Deconvolution", "InnerProduct") if b.options.fold_batch_norm else None
    if before is not None:
        factor = gamma.astype(np.float64) / np.sqrt(variance.astype(np.float64) + np.float64(np.float32(eps)))
        return [_fold(b, op, before, factor, beta - mean * factor)]
    x = b.one(
        op, "BatchNorm", [x], [mean, variance, np.ones(1)], eps=eps if np.float32(eps) != np.float32(1e-5) else None
    )
    if (gamma == 1).all() and (beta == 0).all():
        return [x]
    return [b.one(op, "Scale", [x], [gamma, beta], "scale", bias_term=True)]


def _fold(b: Builder, op: Op, made: Made, factor: Array, term: Array) -> Value:
    """The layer before with factor and term in its weights, reckoned in float64; a note tells what rounding cost."""
    weight, *bias = (blob.astype(np.float64) for blob in made.blobs)
    by_channel = factor.reshape(-1, *[1] * (weight.ndim - 1))
    if made.param.type == "Deconvolution":  # (in, out / group, kernel...)
        group = made.param.convolution_param.group
        per_group = factor.reshape(group, 1, -1, *[1] * (weight.ndim - 2))
        scaled = (weight.reshape(group, -1, *weight.shape[1:]) * per_group).reshape(weight.shape)
    else:
        scaled = weight * by_channel
    exact = [scaled, (bias[0] * factor if bias else 0) + term]
    made.blobs = [np.asarray(each, np.float32) for each in exact]
    for message in (made.param.convolution_param, made.param.inner_product_param):
        if message.HasField("bias_term"):
            message.ClearField("bias_term")
    cost = max(
        float(np.abs(got - want).max(initial=0) / (np.abs(want).max(initial=0) or 1))
        for got, want in zip(made.blobs, exact, strict=True)
    )
    b.notes.append(
        f'BatchNormalization "{b.base_name(op)}" is in the weights of "{made.param.name}": factors '
        f"{factor.min():.3g} to {factor.max():.3g}; rounding to float32 cost at most {cost:.1e} of the largest"
    )
    return b.again(made)


@rule("LRN")
def lrn(b: Builder, op: Op) -> list[Value]:
    """Across channels."""
    size = int(op.get("size", 0))
    refuse_unless(size % 2 == 1, op, f"size {size}", "Caffe takes an odd size")
    alpha, beta, bias = op.get("alpha", 1e-4), op.get("beta", 0.75), op.get("bias", 1.0)
    k = bias if bias != 1 else None
    return [b.one(op, "LRN", [b.read(op, 0)], local_size=size, alpha=alpha, beta=beta, k=k)]


@rule("Softmax")
def softmax(b: Builder, op: Op) -> list[Value]:
    """Over one axis; before operator set 13 over all from one axis on."""
    x = b.read(op, 0)
    rank = len(x.shape)
    axis = int(op.get("axis", -1 if op.version >= 13 else 1))
    refuse_unless(-rank <= axis < rank, op, f"axis {axis} of {rank}", "check the model with onnx.checker")
    axis %= rank
    behind = [size for size in x.shape[axis + 1 :] if size != 1]
    if op.version >= 13 or not behind:
        return [_softmax(b, op, x, axis)]
    flat = b.one(op, "Flatten", [x], suffix="flat", axis=axis if axis != 1 else None)
    return [reshape(b, op, _softmax(b, op, flat, axis), x.shape, "shape")]


def _softmax(b: Builder, op: Op, x: Value, axis: int) -> Value:
    return b.one(op, "Softmax", [x], axis=axis if axis != 1 else None)


@rule("MeanVarianceNormalization")
def mean_variance(b: Builder, op: Op) -> list[Value]:
    """MVN with the eps of ONNX, over the places of each channel or over all of an item."""
    x = b.read(op, 0)
    rank = len(x.shape)
    axes = sorted(axis % rank for axis in op.get("axes", [0, 2, 3]))
    own = {tuple(range(2, rank)): False, tuple(range(1, rank)): True}
    right = tuple(axes) in own or (x.shape[0] == 1 and tuple(axes[1:]) in own)
    refuse_unless(rank == 4 and right, op, f"axes {axes} of {list(x.shape)}", "normalise each channel or item alone")
    across = own[tuple(axes if axes[0] else axes[1:])]
    return [affine(b, op, b.one(op, "MVN", [x], across_channels=across or None, eps=1e-9), 1, 0)]
