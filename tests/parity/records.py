"""One recorded run of a net in an npz file (keys: golden/README.md), and its comparison with ours."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caffe_compat.graph import Graph
from caffe_compat.module import Net, Trace
from tests.parity.compare import Comparison
from tests.parity.nets import Call, Recorder, gradients, parameters, set_parameters, tensor
from tests.tolerances import EXACT, NOISE_AROUND_ZERO, Tolerance

Array = NDArray[Any]
Key = tuple[str, int]

COUNTING = frozenset({"Accuracy", "Threshold"})
"""Layers whose tops are counts or flags: exact."""
SECOND = frozenset({"Data", "HDF5Data", "ImageData", "MemoryData", "Pooling"})
"""Layers whose further tops are labels or indices."""
NORMALISING = frozenset({"BatchNorm", "BN"})
AUTOMATIC = "(automatic)"


class Record:
    """The arrays of an npz file; it notes which were asked for, so that no key goes unseen."""

    def __init__(self, path: Path) -> None:
        with np.load(path) as stored:
            self.arrays: dict[str, Array] = {key: stored[key] for key in stored.files}
        self.seen: set[str] = set()
        self.meta: dict[str, Any] = json.loads(str(self.value("meta", "{}")))
        self.phase = str(self.value("phase", "TEST")).upper()

    def value(self, key: str, default: Any = None) -> Any:
        self.seen.add(key)
        return self.arrays.get(key, default)

    def group(self, prefix: str) -> dict[str, Array]:
        """`<prefix>/<name>` -> array."""
        found = {key: array for key, array in self.arrays.items() if key.startswith(prefix + "/")}
        self.seen.update(found)
        return {key[len(prefix) + 1 :]: array for key, array in found.items()}

    def params(self, prefix: str) -> dict[Key, Array]:
        """`<prefix>/<layer>/<i>` -> array; a layer's name may hold slashes."""
        return {param_key(name): array for name, array in self.group(prefix).items()}

    @property
    def repeats(self) -> list[int]:
        """The numbers k of the further forward passes, `seq<k>/...`."""
        return sorted({int(m[1]) for key in self.arrays if (m := re.match(r"seq(\d+)/", key))})

    def unseen(self) -> list[str]:
        return sorted(set(self.arrays) - self.seen)


def param_key(name: str) -> Key:
    layer, _, index = name.rpartition("/")
    return layer, int(index)


# -- structure ---------------------------------------------------------------------------------------------


def automatic_splits(layers: Iterable[list[Any]], own: frozenset[str]) -> dict[str, str]:
    """Top of a split that Caffe inserted -> the blob that it copies (insert_splits.cpp)."""
    source: dict[str, str] = {}
    for name, kind, bottoms, tops in layers:
        if kind == "Split" and name not in own and tops == [f"{name}_{k}" for k in range(len(tops))]:
            source |= dict.fromkeys(tops, bottoms[0])
    return source


def check_structure(meta: Mapping[str, Any], graph: Graph, compare: Comparison) -> dict[str, str]:
    """Layers, tops and bottoms, blob order, inputs, outputs, loss weights and parameter shapes.

    Returns:
        The blobs of splits that Caffe inserted and we do not have, with what they copy.
    """
    layers = meta.get("layers", [])
    split = automatic_splits(layers, frozenset(layer.name for layer in graph.net.layer))
    if layers:
        want = [
            [name, kind, [split.get(b, b) for b in bottoms], [t for t in tops if t != AUTOMATIC]]
            for name, kind, bottoms, tops in layers
            if not any(top in split for top in tops)
        ]
        compare.equal("layers", _layers(graph), want)
    for key, own in (("inputs", list(graph.inputs)), ("outputs", list(graph.outputs))):
        if key in meta:
            compare.equal(key, own, [blob for blob in meta[key] if blob not in split])
    if "params" in meta:
        own_shapes = {name: [list(shape) for shape in shapes] for name, shapes in graph.params.items()}
        compare.equal("params", own_shapes, {name: shapes for name, shapes in meta["params"].items() if shapes})
    names = meta.get("blob_names", [])
    if names:
        compare.equal("blobs", list(graph.shapes), [n for n in names if n not in split and n != AUTOMATIC])
    if names and "blob_loss_weights" in meta:
        stated = zip(names, meta["blob_loss_weights"], strict=True)
        compare.equal("loss weights", loss_weights(graph), merged(stated, split))
    return split


def _layers(graph: Graph) -> list[list[Any]]:
    return [
        [n.layer.name, n.layer.TYPE, [v.blob for v in n.bottoms], [v.blob for v in n.tops if v.blob]]
        for n in graph.nodes
    ]


def loss_weights(graph: Graph) -> dict[str, float]:
    """Blob -> weight, where there is one."""
    tops = [(v.blob or AUTOMATIC, w) for n in graph.nodes for v, w in zip(n.tops, n.loss_weights, strict=True)]
    return merged(tops, {})


def merged(weights: Iterable[tuple[str, float]], split: Mapping[str, str]) -> dict[str, float]:
    """Blob -> weight with that of a blob's splits counted as its own."""
    merged: dict[str, float] = {}
    for blob, weight in weights:
        if weight:
            merged[split.get(blob, blob)] = merged.get(split.get(blob, blob), 0.0) + float(np.float32(weight))
    return merged


# -- numbers -----------------------------------------------------------------------------------------------


class Replay:
    """Runs one recorded case on our net.

    Args:
        record: the recorded run.
        net: the net, built for the record's phase.
        recorder: on the net's layers.
        tolerance: for all values that are not counts.
        forward_exact: False when a recorded forward pass need not be reproduced.
        backward_exact: False when a recorded backward pass need not be reproduced.
        random: the values depend on random numbers: only Dropout's own rule is checked.
    """

    def __init__(
        self,
        record: Record,
        net: Net,
        recorder: Recorder,
        tolerance: Tolerance,
        *,
        forward_exact: bool = True,
        backward_exact: bool = True,
        random: bool = False,
    ) -> None:
        self.record, self.net, self.recorder, self.tolerance, self.random = record, net, recorder, tolerance, random
        self.forward_exact, self.backward_exact = forward_exact and not random, backward_exact and not random
        self.exact = counting_blobs(record.meta.get("layers", []))

    def run(self, compare: Comparison) -> None:
        """Every step that was recorded, each key compared."""
        check_structure(self.record.meta, self.net.graph, compare)
        before = self.record.params("param")
        set_parameters(self.net, before)
        if memory := self.record.group("memory"):
            self.net.set_input_arrays(memory["data"], memory["labels"])
        trace = self.first_pass(compare)
        self.values("", trace, compare)
        self.statistics("", before, compare)
        for k in self.record.repeats:
            changed = {blob: tensor(array) for blob, array in self.record.group(f"seq{k}/in").items()}
            trace = self.net.trace(self.inputs() | changed)
            self.values(f"seq{k}/", trace, compare)
            self.statistics(f"seq{k}/", {}, compare)
        self.shapes(trace, compare)
        if not (self.record.repeats or self.random):
            self.plain_call(compare)
        compare.equal("keys that were not compared", self.record.unseen(), [])

    def inputs(self, wanting: Iterable[str] = ()) -> dict[str, Any]:
        """Fresh tensors for the net's inputs; those `wanting` a gradient get one."""
        arrays = {blob: array for blob, array in self.record.group("in").items() if blob in self.net.graph.inputs}
        return {blob: tensor(array).requires_grad_(blob in wanting) for blob, array in arrays.items()}

    def first_pass(self, compare: Comparison) -> Trace:
        """Forward, and backward where it was recorded."""
        diffs, param_diffs = self.record.group("diff"), self.record.params("paramdiff")
        seeds = self.record.group("topdiff")
        self.recorder.watched = readers(self.net.graph, diffs)
        trace = self.net.trace(self.inputs(diffs))
        if diffs or param_diffs:
            active = seeded_tops(self.net.graph)
            total = seeded_loss(trace, {blob: seed for blob, seed in seeds.items() if blob in active}, compare)
            self.blob_gradients(total, trace, diffs, compare)
            self.parameter_gradients("", total, param_diffs, compare)
            if self.random:
                check_dropout(self.net, self.recorder.calls, total, compare)
        return trace

    def blob_gradients(self, total: Any, trace: Trace, want: dict[str, Array], compare: Comparison) -> None:
        blobs = [blob for blob in want if blob in trace.differentiated]
        compare.equal("diff", sorted(blobs), sorted(want))
        for blob, grad in zip(blobs, gradients(total, [trace.differentiated[blob] for blob in blobs]), strict=True):
            self.compare(f"diff/{blob}", grad, want[blob], compare, exact=self.backward_exact)

    def parameter_gradients(self, prefix: str, total: Any, want: dict[Key, Array], compare: Comparison) -> None:
        own = parameters(self.net)
        keys = [key for key in want if key in own]
        compare.equal(f"{prefix}paramdiff", sorted(keys), sorted(want))
        quiet = bias_before_normalisation(self.record.meta.get("layers", []))
        for key, grad in zip(keys, gradients(total, [own[key] for key in keys]), strict=True):
            tolerance = NOISE_AROUND_ZERO if key in quiet else None
            name = f"{prefix}paramdiff/{key[0]}/{key[1]}"
            self.compare(name, grad.reshape(want[key].shape), want[key], compare, tolerance, exact=self.backward_exact)

    def plain_call(self, compare: Comparison) -> None:
        """Calling the net, which may take a faster way than tracing it, gives the same outputs and gradients."""
        self.recorder.watched = frozenset()
        outputs = self.net(self.inputs())
        for blob, want in self.record.group("out").items():
            tolerance = EXACT if is_count(blob, want, self.exact) else None
            self.compare(f"call: {blob}", outputs.get(blob), want, compare, tolerance, exact=self.forward_exact)
        param_diffs, weights = self.record.params("paramdiff"), loss_weights(self.net.graph)
        if not (param_diffs and self.backward_exact and weights.keys() <= outputs.keys()):
            return
        active = seeded_tops(self.net.graph)
        seeds = {blob: seed for blob, seed in self.record.group("topdiff").items() if blob in active & outputs.keys()}
        parts = [outputs[blob].sum() * weight for blob, weight in weights.items()]
        parts += [(outputs[blob] * tensor(seed)).sum() for blob, seed in seeds.items()]
        self.parameter_gradients("call: ", sum(parts, tensor(np.zeros(()))), param_diffs, compare)

    def shapes(self, trace: Trace, compare: Comparison) -> None:
        """Shapes were recorded after the last pass."""
        names, shapes = self.record.meta.get("blob_names", []), self.record.meta.get("blob_shapes", [])
        for blob, shape in zip(names, shapes, strict=True):
            if blob in trace.blobs:
                compare.equal(f"shape of {blob}", list(trace.blobs[blob].shape), shape)

    def values(self, step: str, trace: Trace, compare: Comparison) -> None:
        loss = self.record.value(f"{step}loss")
        if loss is not None:
            self.compare(f"{step}loss", trace.loss, np.asarray(loss), compare, exact=self.forward_exact)
        for kind in ("out", "blob"):
            for blob, want in self.record.group(f"{step}{kind}").items():
                tolerance = EXACT if is_count(blob, want, self.exact) else None
                got = self.automatic() if blob == AUTOMATIC else trace.blobs.get(blob)
                self.compare(f"{step}{kind}/{blob}", got, want, compare, tolerance, exact=self.forward_exact)

    def automatic(self) -> Any:
        """The value of the last top that the net does not name, as pycaffe's net.blobs has it."""
        tops = [(n.layer.name, i) for n in self.net.graph.nodes for i, value in enumerate(n.tops) if not value.blob]
        name, index = tops[-1]
        return self.recorder.calls[name].tops[index]

    def statistics(self, step: str, before: Mapping[Key, Array], compare: Comparison) -> None:
        """Parameters that the forward pass changed, and that it changed no other."""
        after = self.record.params(f"{step}param_after")
        own = parameters(self.net)
        for key, want in (dict(before) | after).items():
            got = own[key].detach().reshape(want.shape) if key in own else None
            tolerance = self.tolerance if key in after else EXACT
            compare.array(f"{step}param_after/{key[0]}/{key[1]}", got, want, tolerance)

    def compare(
        self,
        key: str,
        got: Any,
        want: Array,
        compare: Comparison,
        tolerance: Tolerance | None = None,
        *,
        exact: bool = True,
    ) -> None:
        """Values, or only the shape where the recorded ones need not be reproduced."""
        if exact or got is None:
            compare.array(key, got, want, tolerance or self.tolerance)
        else:
            compare.equal(f"{key} shape", tuple(got.shape), want.shape)


def seeded_loss(trace: Trace, seeds: Mapping[str, Array], compare: Comparison) -> Any:
    """The loss, with each output weighted by the gradient that was supplied for it."""
    total = trace.loss
    for blob, seed in seeds.items():
        compare.equal(f"topdiff/{blob} shape", tuple(getattr(trace.blobs.get(blob), "shape", ())), seed.shape)
        if blob in trace.blobs and trace.blobs[blob].shape == seed.shape:
            total = total + (trace.blobs[blob] * tensor(seed)).sum()
    return total


def readers(graph: Graph, blobs: Iterable[str]) -> frozenset[str]:
    """Layers that read one of the blobs."""
    wanted = set(blobs)
    return frozenset(node.layer.name for node in graph.nodes if wanted & {value.blob for value in node.bottoms})


def seeded_tops(graph: Graph) -> set[str]:
    """Blobs whose gradient the backward pass starts from or goes through.

    Unless backward is forced, Caffe leaves out layers that contribute to no loss (Net::Init).
    """
    under_loss: set[Any] = set()
    tops: set[str] = set()
    for node in reversed(graph.nodes):
        if graph.net.force_backward or any(node.loss_weights) or under_loss & set(node.tops):
            under_loss.update(node.bottoms)
            tops.update(value.blob for value in node.tops)
    return tops


def counting_blobs(layers: Iterable[list[Any]]) -> dict[str, str]:
    """Blob -> type of the layer that puts counts, flags or indices into it."""
    counting: dict[str, str] = {}
    for _, kind, _, tops in layers:
        if kind in COUNTING or kind == "ArgMax":
            counting |= dict.fromkeys(tops, kind)
        elif kind in SECOND:
            counting |= dict.fromkeys(tops[1:], kind)
    return counting


def is_count(blob: str, want: Array, counting: Mapping[str, str]) -> bool:
    """Whether to compare exactly; ArgMax may also give values, which are not integers."""
    return blob in counting and (counting[blob] in COUNTING or bool((want == np.rint(want)).all()))


def bias_before_normalisation(layers: Iterable[list[Any]]) -> set[Key]:
    """Biases whose gradient is zero but for rounding, because a batch normalisation follows."""
    layers = list(layers)
    normalised = {bottoms[0] for _, kind, bottoms, _ in layers if kind in NORMALISING and bottoms}
    return {(name, 1) for name, _, _, tops in layers if normalised & set(tops)}


def check_dropout(net: Net, calls: Mapping[str, Call], total: Any, compare: Comparison) -> None:
    """Survivors are scaled by 1 / (1 - ratio), the others are zero, and the gradient follows the same mask."""
    for node in net.graph.nodes:
        if node.layer.TYPE != "Dropout":
            continue
        name, scale = node.layer.name, 1 / (1 - node.layer.p.dropout_ratio)
        (bottom,), (top,) = calls[name].bottoms[:1], calls[name].tops[:1]
        mask = (top != 0).to(bottom)
        compare.check(bool(mask.any()) and not bool(mask.all()), f"{name}: all or none dropped")
        compare.array(f"{name} survivors", top, (bottom * mask * scale).detach().numpy(), Tolerance(rtol=1e-6))
        top_grad, bottom_grad = gradients(total, [top, bottom])
        compare.array(f"{name} diff", bottom_grad, (top_grad * mask * scale).numpy(), Tolerance(rtol=1e-6))
