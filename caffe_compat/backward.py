"""Where a backward pass goes: what Net::Init marks as in need of one.

Rules: net.cpp (Init, AppendBottom) and insert_splits.cpp of BVLC Caffe; under "dec2013" net.cpp of 3213bd87e.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from caffe_compat.graph import Graph, Node, Value

Flags = tuple[bool, ...]


@dataclass(frozen=True)
class Backward:
    """What a backward pass computes.

    Attributes:
        layers: for each node of the graph whether its backward pass is run (layer_need_backward).
        bottoms: for each node and bottom whether its gradient is computed.
        params: for each node and parameter blob whether its gradient is computed.
        blobs: blob -> whether something that makes it learns (blob_need_backward), or backward is forced.
        gradients: blobs whose gradient is written, by the layer that reads them or by the split before several.
    """

    layers: Flags
    bottoms: tuple[Flags, ...]
    params: tuple[Flags, ...]
    blobs: Mapping[str, bool]
    gradients: frozenset[str]


def backward_pass(graph: Graph) -> Backward:
    """The backward pass of a graph under its profile."""
    return _backward_2013(graph) if graph.context.profile == "dec2013" else _backward_bvlc(graph)


def _backward_2013(graph: Graph) -> Backward:
    """A layer is in need if backward is forced, a bottom is in need, or a stated blobs_lr is above 0.

    It then computes the gradients of all its bottoms and parameter blobs.
    """
    forced = graph.net.force_backward
    need = dict.fromkeys(graph.shapes, forced)
    layers = []
    for node in graph.nodes:
        learns = any(spec.HasField("lr_mult") and spec.lr_mult > 0 for spec in node.specs)
        needed = node.layer.TYPE != "Input" and (forced or learns or any(need[value.blob] for value in node.bottoms))
        if needed:
            need.update((value.blob, True) for value in node.tops)
        layers.append(needed)
    marked = list(zip(graph.nodes, layers, strict=True))
    bottoms = [tuple(needed and n.layer.propagates(i) for i in range(len(n.bottoms))) for n, needed in marked]
    params = [(needed,) * len(node.params) for node, needed in marked]
    written = {
        v.blob for n, down in zip(graph.nodes, bottoms, strict=True) for v, d in zip(n.bottoms, down, strict=True) if d
    }
    return Backward(tuple(layers), tuple(bottoms), tuple(params), need, frozenset(written))


# -- the last BVLC commit ----------------------------------------------------------------------------------


@dataclass
class Item:
    """A layer after splits are inserted; blobs are known by names of which in-place layers share one.

    Attributes:
        node: the graph's, None for a split.
        losses: loss weight of each top.
        down: what the net says of each bottom, None for nothing.
        need: whether its backward pass is run.
        bottoms_need: for each bottom whether its gradient is computed.
    """

    node: Node | None
    bottoms: list[str]
    tops: list[str]
    losses: Sequence[float]
    down: Sequence[bool | None]
    need: bool = False
    bottoms_need: list[bool] = field(default_factory=list)

    @property
    def learns(self) -> bool:
        """By what the net states: the statistics of BatchNorm count, although their layer then sets lr_mult to 0."""
        given = self.node.layer.param.param if self.node else ()
        blobs = len(self.node.params) if self.node else 0
        return len(given) < blobs or any(spec.lr_mult != 0 for spec in given)

    def written(self) -> list[str]:
        """The bottoms that its backward pass writes a gradient to."""
        every = self.node is not None and self.node.layer.HEEDLESS
        return [blob for blob, down in zip(self.bottoms, self.bottoms_need, strict=True) if down or every]

    def allows(self, bottom: int) -> bool:
        """AllowForceBackward."""
        return self.node is None or self.node.layer.propagates(bottom)


def items_with_splits(graph: Graph) -> list[Item]:
    """The layers in order, splits inserted, and what is computed of each."""
    return _marked(graph)[0]


def _marked(graph: Graph) -> tuple[list[Item], dict[str, bool]]:
    """The same, and the blobs in need."""
    items = _with_splits(graph.nodes)
    need = _mark_learning(items)
    _keep_under_loss(items)
    if graph.net.force_backward:
        _force(items, need)
    return items, need


def _backward_bvlc(graph: Graph) -> Backward:
    items, need = _marked(graph)
    own = [item for item in items if item.node is not None]
    forced = graph.net.force_backward
    params = [
        tuple(forced or node.layer.LEARNS_WHOLE or spec.lr_mult != 0 for spec in node.specs) for node in graph.nodes
    ]
    written = {b for item in items if item.need for b in item.written()}
    return Backward(
        tuple(item.need for item in own),
        tuple(tuple(item.need and down for down in item.bottoms_need) for item in own),
        tuple(params),
        {blob: need.get(blob, False) for blob in graph.shapes},
        frozenset(written & set(graph.shapes)),
    )


def _with_splits(nodes: Sequence[Node]) -> list[Item]:
    """The layers in order; a value with several readers, a stated loss weight being one, is read through a split."""
    readers: dict[Value, int] = {}
    for node in nodes:
        for value in node.bottoms:
            readers[value] = readers.get(value, 0) + 1
        for value, loss in zip(node.tops, node.losses, strict=True):
            readers[value] = readers.get(value, 0) + (loss.split != 0)
    names: dict[Value, list[str]] = {}
    items: list[Item] = []
    for node in nodes:
        tops = [value.blob or f"\n{value.version}" for value in node.tops]
        bottoms = [names[value].pop() if value in names else value.blob for value in node.bottoms]
        items.append(Item(node, bottoms, tops, [loss.own for loss in node.losses], node.propagate_down))
        for value, loss in zip(node.tops, node.losses, strict=True):
            if readers.get(value, 0) > 1:
                copies = [f"{value.blob}\n{value.version}\n{index}" for index in range(readers[value])]
                items.append(Item(None, [value.blob], copies, [loss.split] + [0.0] * (len(copies) - 1), [None]))
                names[value] = copies[::-1][: len(copies) - (loss.split != 0)]
    return items


def _mark_learning(items: Sequence[Item]) -> dict[str, bool]:
    """First pass: what depends on something that learns. Returns the blobs in need."""
    need: dict[str, bool] = {}
    for item in items:
        inherited = [need.get(blob, False) for blob in item.bottoms]
        item.bottoms_need = [n if d is None else d for n, d in zip(inherited, item.down, strict=True)]
        item.need = any(inherited) or item.learns
        if item.need:
            need.update(dict.fromkeys(item.tops, True))
    return need


def _keep_under_loss(items: Sequence[Item]) -> None:
    """Second pass, from the end: leave out what contributes to no loss, and layers all of whose tops are skipped."""
    under_loss: set[str] = set()
    skipped: set[str] = set()
    for item in reversed(items):
        contributes = any(item.losses) or bool(under_loss.intersection(item.tops))
        if item.need and skipped.issuperset(item.tops):
            item.need, item.bottoms_need = False, [False] * len(item.bottoms)
        if contributes:
            under_loss.update(item.bottoms)
        else:
            item.need, item.bottoms_need = False, [False] * len(item.bottoms)
        skipped.update(blob for blob, down in zip(item.bottoms, item.bottoms_need, strict=True) if not down)


def _force(items: Sequence[Item], need: dict[str, bool]) -> None:
    """force_backward: every layer, and every bottom to which a gradient may go."""
    for item in items:
        item.need = True
        item.bottoms_need = [down or item.allows(i) for i, down in enumerate(item.bottoms_need)]
        need.update((b, True) for b, down in zip(item.bottoms, item.bottoms_need, strict=True) if down)
