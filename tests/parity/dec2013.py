"""Runs recorded from the commit of December 2013 (keys: golden2013/README.md)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from caffe_compat.module import Net, Trace
from tests.parity.cases import Case
from tests.parity.compare import Comparison
from tests.parity.nets import Call, Recorder, gradients, load, load_recorded, parameters, set_parameters, tensor
from tests.parity.records import Array, Key, Record, seeded_loss
from tests.tolerances import Tolerance

PROFILE = "dec2013"
INTERNAL = ("prob", "pool_idx", "mask_u32")
"""Keys for things inside a layer: the softmax of a loss, the chosen index, the raw numbers behind a mask. Loss and
gradients follow from them."""


def tolerance_of(entry: Mapping[str, Any]) -> Tolerance:
    """The case's own, from the index."""
    tol = entry.get("tol") or {}
    return Tolerance(rtol=tol.get("rtol", 1e-4), atol=tol.get("atol", 1e-6))


def load_2013(case: Case, **more: Any) -> Net:
    """The case's net under the profile."""
    return load(case.path("net.prototxt"), **state_of(case), **more)


def load_recorded_2013(case: Case) -> tuple[Net, Recorder]:
    """The same, with a recorder on its layers."""
    return load_recorded(case.path("net.prototxt"), **state_of(case))


def state_of(case: Case) -> dict[str, Any]:
    return {"phase": str(case.entry.get("phase", "train")).upper(), "profile": PROFILE}


def inject(net: Net, draws: Mapping[str, Array]) -> None:
    """Give layers the recorded randomness: keep masks of Dropout, uniforms of stochastic pooling.

    Layers take `context.state["draws"][layer name]` in place of random numbers.
    """
    net.graph.context.state["draws"] = dict(draws)


def check_layer_case(case: Case, compare: Comparison) -> None:
    """Forward, backward and each layer's own tops and bottom gradients."""
    record, tolerance = Record(case.path("case.npz")), tolerance_of(case.entry)
    net, recorder = load_recorded_2013(case)
    calls = recorder.calls
    inject(net, record.group("mask") | record.group("pool_u"))
    set_parameters(net, record.params("param"))
    for key in record.params("paramdiff"):  # computed for every blob of a layer, also where its rate is 0
        parameters(net)[key].requires_grad_()
    seeds, diffs, inner = record.group("topdiff"), record.group("diff"), record.params("layerdiff")
    inputs = {blob: tensor(array).requires_grad_(blob in diffs) for blob, array in record.group("in").items()}
    recorder.watched = watched_layers(net, diffs, inner)
    trace = net.trace(inputs)
    for blob, want in record.group("out").items():
        compare.array(f"out/{blob}", trace.blobs.get(blob), want, tolerance)
    for (layer, index), want in record.params("layertop").items():
        got = calls[layer].tops[index] if layer in calls else None
        compare.array(f"layertop/{layer}/{index}", got, want, tolerance)
    loss = record.value("loss")
    if loss is not None:
        compare.array("loss", trace.loss, np.asarray(loss), tolerance)
        total = seeded_loss(trace, seeds, compare)
        wanted = wanted_gradients(net, trace, calls, record, diffs, inner)
        check_gradients(total, wanted, tolerance, compare)
    for internal in INTERNAL:
        record.group(internal)
    compare.equal("keys that were not compared", record.unseen(), [])


def watched_layers(net: Net, diffs: Mapping[str, Array], inner: Mapping[Key, Array]) -> frozenset[str]:
    """Layers that write a bottom diff although nothing below them may be trainable (propagate_down is always true).

    Nets with in-place layers say it layer by layer, the others blob by blob.
    """
    if inner:
        return frozenset(layer for layer, _ in inner)
    return frozenset(n.layer.name for n in net.graph.nodes if any(v.blob in diffs for v in n.bottoms))


def wanted_gradients(
    net: Net,
    trace: Trace,
    calls: Mapping[str, Call],
    record: Record,
    diffs: Mapping[str, Array],
    inner: Mapping[Key, Array],
) -> dict[str, tuple[Any, Array]]:
    """Key -> the tensor whose gradient is wanted, and the recorded one."""
    own = parameters(net)
    wanted = {f"diff/{blob}": (earliest(net, trace, calls, blob), array) for blob, array in diffs.items()}
    for (layer, index), array in inner.items():
        wanted[f"layerdiff/{layer}/{index}"] = (calls[layer].bottoms[index] if layer in calls else None, array)
    for (layer, index), array in record.params("paramdiff").items():
        wanted[f"paramdiff/{layer}/{index}"] = (own.get((layer, index)), array)
    return wanted


def earliest(net: Net, trace: Trace, calls: Mapping[str, Call], blob: str) -> Any:
    """The first version of a blob that has a gradient: in-place layers below which nothing is trained write none."""
    versions = [trace.first[blob]] if blob in trace.first else []
    for node in net.graph.nodes:
        versions += [calls[node.layer.name].bottoms[i] for i, v in enumerate(node.bottoms) if v.blob == blob]
    return next((tensor for tensor in versions if tensor.requires_grad), versions[0] if versions else None)


def check_gradients(
    total: Any, wanted: Mapping[str, tuple[Any, Array]], tolerance: Tolerance, compare: Comparison
) -> None:
    for key, (tensor_, want) in wanted.items():
        got = None if tensor_ is None else gradients(total, [tensor_])[0]
        compare.array(key, got, want, tolerance)
