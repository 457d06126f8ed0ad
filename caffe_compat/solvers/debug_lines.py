"""What Caffe logs with debug_info: mean absolute values of all blobs, forward and backward (net.cpp).

UpdateDebugInfo stands in net.cpp too, but the last BVLC commit does not call it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from caffe_compat.backward import Item, items_with_splits
from caffe_compat.graph import ParamKey
from caffe_compat.module import Net, Trace
from caffe_compat.schema import pb
from caffe_compat.splits import insert_splits

Use = tuple[str, int, int]
"""What a gradient belongs to: "bottom", "top" or "param", the node, the position there."""


@dataclass
class _Watch:
    """The gradients of every use of a tensor, as they come by."""

    gradients: dict[Use, Tensor] = field(default_factory=dict)

    def alias(self, use: Use, tensor: Tensor) -> Tensor:
        """The same values, whose gradient is that of this use alone."""
        return self.on(use, tensor.view_as(tensor)) if tensor.requires_grad else tensor

    def on(self, use: Use, tensor: Tensor) -> Tensor:
        if tensor.requires_grad:
            tensor.register_hook(partial(self.gradients.__setitem__, use))  # type: ignore[no-untyped-call]
        return tensor

    def of(self, use: Use) -> Tensor:
        """A gradient, or zero where none flows."""
        return self.gradients.get(use, torch.zeros(()))


def debug_pass(net: Net, inputs: Mapping[str, Tensor], log: Callable[[str], None]) -> Trace:
    """A pass forward, and where gradients are wanted backward, that logs each layer; gives what `scored` does."""
    watch, tops = _Watch(), _fed(net, inputs)
    before = {key: blob.grad.clone() for key, blob in net.owned.items() if blob.grad is not None}
    trace = net.trace(inputs, watch=partial(_watched, watch, tops))
    layers = list(_layers(net))
    for line in _forward_lines(net, layers, tops):
        log(line)
    if trace.loss.requires_grad:
        trace.loss.backward()  # type: ignore[no-untyped-call]
        for line in _backward_lines(net, layers, watch, before):
            log(line)
        log(_norms(net))
    return net.lean(trace)


def _fed(net: Net, inputs: Mapping[str, Tensor]) -> dict[tuple[int, int], Tensor]:
    """The tops of Input layers by node and position."""
    nodes = enumerate(net.graph.nodes)
    fed = ((index, position, value) for index, node in nodes for position, value in enumerate(node.tops))
    return {
        (index, position): inputs[value.blob].detach()
        for index, position, value in fed
        if net.graph.nodes[index].layer.TYPE == "Input"
    }


def _watched(
    watch: _Watch, tops: dict[tuple[int, int], Tensor], node: int, kind: str, position: int, tensor: Tensor
) -> Tensor:
    if kind != "top":
        return watch.alias((kind, node, position), tensor)
    tops[node, position] = tensor.detach()
    return watch.on((kind, node, position), tensor)


# -- lines -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Layer:
    """A layer after splits are inserted.

    Attributes:
        saved: its message, with the blobs' names.
        item: what backward computes of it.
        node: its place in the graph; of a split that of the layer before it.
        top: of a split, which top of that layer it copies.
    """

    saved: pb.LayerParameter
    item: Item
    node: int
    top: int = 0


def _layers(net: Net) -> Iterator[_Layer]:
    """In the net's order."""
    nodes = net.graph.nodes
    node = -1
    for saved, item in zip(insert_splits([n.layer.param for n in nodes]), items_with_splits(net.graph), strict=True):
        node += item.node is not None
        names = [value.blob for value in nodes[node].tops]
        yield _Layer(saved, item, node, 0 if item.node else names.index(saved.bottom[0]))


def _forward_lines(net: Net, layers: list[_Layer], tops: Mapping[tuple[int, int], Tensor]) -> Iterator[str]:
    for layer in layers:
        name, node = layer.saved.name, net.graph.nodes[layer.node]
        own = layer.item.node is not None
        names = [value.blob or "(automatic)" for value in node.tops] if own else layer.saved.top
        for position, top in enumerate(names):
            value = tops.get((layer.node, position if own else layer.top))
            if value is not None:
                yield f"    [Forward] Layer {name}, top blob {top} data: {_mean(value):g}"
        for index, key in enumerate(node.params if own else ()):
            shown = node.specs[index].name or str(index)
            yield f"    [Forward] Layer {name}, param blob {shown} data: {_mean(net.owned[key]):g}"


def _backward_lines(net: Net, layers: list[_Layer], watch: _Watch, before: Mapping[ParamKey, Tensor]) -> Iterator[str]:
    totals = {key: grad.flatten() for key, grad in before.items()}
    learn = net.graph.backward.params
    for layer in reversed([layer for layer in layers if layer.item.need]):
        name, own = layer.saved.name, layer.item.node is not None
        for position, (blob, needed) in enumerate(zip(layer.saved.bottom, layer.item.bottoms_need, strict=True)):
            if needed:
                use = ("bottom", layer.node, position) if own else ("top", layer.node, layer.top)
                yield f"    [Backward] Layer {name}, bottom blob {blob} diff: {_mean(watch.of(use)):g}"
        for index, key in enumerate(net.graph.nodes[layer.node].params if own else ()):
            if learn[layer.node][index]:
                found = watch.of(("param", layer.node, index)).flatten()
                totals[key] = totals[key] + found if key in totals else found
                yield f"    [Backward] Layer {name}, param blob {index} diff: {_mean(totals[key]):g}"


def _mean(tensor: Tensor) -> float:
    return float(tensor.detach().abs().mean())


def _norms(net: Net) -> str:
    """The last line of a backward pass, which Caffe logs as an error."""
    data = [blob.detach() for blob in net.owned.values()]
    diffs = [blob.grad for blob in net.owned.values() if blob.grad is not None]
    l1 = ", ".join(f"{sum(float(t.abs().sum()) for t in part):g}" for part in (data, diffs))
    l2 = ", ".join(f"{sum(float(t.square().sum()) for t in part) ** 0.5:g}" for part in (data, diffs))
    return f"    [Backward] All net params (data, diff): L1 norm = ({l1}); L2 norm = ({l2})"
