"""Where the two profiles would differ for a net that both can run.

Rules: the layers of BVLC Caffe at 3213bd87e (22 Dec 2013, profile "dec2013") beside those of its last commit ("bvlc").
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

from caffe_compat.dec2013 import PROFILE, overwriters
from caffe_compat.errors import Problems, VggcError, Where
from caffe_compat.graph import Graph, Node, newest
from caffe_compat.layers.base import Context, Shape
from caffe_compat.schema import pb
from caffe_compat.source import SourceMap
from caffe_compat.upgrade import generation_of


class Difference(NamedTuple):
    """What happens under dec2013, and what under bvlc instead."""

    where: Where
    what: str


@dataclass(frozen=True)
class _Place:
    """A layer in the graph of dec2013.

    Attributes:
        index: of its node.
        twin: the same layer in the graph of bvlc, None when it is not there.
    """

    graph: Graph
    index: int
    twin: Node | None
    twin_learns: bool

    @property
    def node(self) -> Node:
        return self.graph.nodes[self.index]

    @property
    def bottom(self) -> Shape:
        return self.node.layer.bottom_shapes[0]

    @property
    def learns(self) -> bool:
        return self.graph.backward.layers[self.index]

    def reader(self) -> pb.LayerParameter | None:
        """The layer that reads the first top first, also one that could not be built."""
        blob = self.node.tops[0].blob
        return next((layer for layer in self.graph.net.layer if blob in layer.bottom), None)


Rule = Callable[[_Place], Iterator[str]]


def differences(
    net: pb.NetParameter,
    source: SourceMap | None = None,
    *,
    phase: str = "TEST",
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    folder: str = ".",
) -> list[Difference]:
    """Everything that profile "dec2013" would do otherwise than "bvlc" with a V0 net; nothing for other generations.

    Layers whose sizes are not known, behind a data layer for instance that does not tell them, are passed over.

    Args:
        net: the net as its file has it.
        source: positions.
        phase, input_shapes, folder: as for `Graph.from_net`.
    """
    if generation_of(net) != "V0":
        return []
    source = source or SourceMap()
    shapes = dict(input_shapes or {})
    old, refused = _graph(net, source, Context(phase, PROFILE, folder=folder), shapes)
    new, refused_later = _graph(net, source, Context(phase, folder=folder), shapes)
    found = [*_refused(refused, refused_later), *_ignored_pads(net, source)]
    if old is not None:
        found += _between(old, new)
    return sorted(found, key=lambda item: (item.where.line, item.where.offset))


def notes(found: Sequence[Difference]) -> list[str]:
    """The differences as sentences, those that say the same of several layers joined."""
    layers: dict[str, list[str]] = {}
    for where, what in found:
        layers.setdefault(what, []).append(f'"{where.layer}"' if where.layer else "")
    joined = [(what, ", ".join(filter(None, names)), len(names)) for what, names in layers.items()]
    return [f"under {PROFILE}: {_subject(names, count)}{what}" for what, names, count in joined]


def _subject(names: str, count: int) -> str:
    return f"layer{'s' if count > 1 else ''} {names}: " if names else ""


def _graph(
    net: pb.NetParameter, source: SourceMap, context: Context, shapes: Mapping[str, Sequence[int]]
) -> tuple[Graph | None, Sequence[VggcError]]:
    """The graph as far as it can be built, and what is refused."""
    try:
        upgraded = newest(net, context.profile, source, context.dialect)
        graph = Graph.from_upgraded(upgraded, context, input_shapes=shapes, source=source, collect=True)
    except Problems as problems:
        return None, problems.errors
    except VggcError as error:
        return None, (error,)
    return graph, graph.problems


def _refused(mine: Sequence[VggcError], later: Sequence[VggcError]) -> Iterator[Difference]:
    """What one profile alone refuses; of a layer that both refuse the first obstacle of dec2013 is told."""
    places = {(error.where.line, error.where.layer) for error in later}
    yield from (Difference(e.where, f"refused: {e.what}") for e in mine if (e.where.line, e.where.layer) not in places)
    layers = {error.where.layer for error in mine}
    for error in later:
        if error.where.layer not in layers:
            yield Difference(error.where, f"accepted; bvlc refuses it: {error.what}")


def _ignored_pads(net: pb.NetParameter, source: SourceMap) -> Iterator[Difference]:
    for index, layer in enumerate(net.layers):
        if layer.layer.type in ("conv", "pool") and layer.layer.pad:
            where = source.at(f"layers[{index}]", "pad").in_layer(layer.layer.name)
            yield Difference(where, f"pad {layer.layer.pad} has no effect; bvlc pads by it")


def _between(old: Graph, new: Graph | None) -> Iterator[Difference]:
    """Differences of layers that stand in the graph of dec2013; `new` is that of bvlc."""
    nodes = new.nodes if new is not None else ()
    learns = new.backward.layers if new is not None else ()
    twins = {node.layer.name: (node, need) for node, need in zip(nodes, learns, strict=True)}
    for index, node in enumerate(old.nodes):
        twin, twin_learns = twins.get(node.layer.name, (None, False))
        place = _Place(old, index, twin, twin_learns)
        for rule in (*RULES.get(node.layer.TYPE, ()), _fillers, _no_gradient):
            for what in rule(place):
                yield Difference(node.layer.where(), what)


# -- rules -------------------------------------------------------------------------------------------------


def _padding(place: _Place) -> Iterator[str]:
    reader, pad = place.reader(), place.node.layer.p.pad
    if reader is None:
        yield "its top is an output; bvlc drops the layer"
    elif reader.type == "Pooling" and reader.pooling_param.pool == pb.PoolingParameter.MAX and any(pad):
        yield f'its zeros take part in "{reader.name}", so that a maximum may be 0; bvlc leaves padding out of maxima'


def _pooling(place: _Place) -> Iterator[str]:
    layer = place.node.layer
    size, later = _sizes(place)
    if later and size != later:
        yield f"top {_text(size)}; bvlc {_text(later)}, as its last window must start inside the image"
    if layer.p.pool == pb.PoolingParameter.MAX and place.learns:
        yield "in training every element that equals the maximum gets the whole gradient; bvlc: the first one alone"
        for node in overwriters(place.graph, place.index):
            what = f'its gradient goes to elements that equal what "{node.layer.name}" has left in its top'
            yield f"{what}; bvlc: to the maxima"
    if layer.p.pool == pb.PoolingParameter.STOCHASTIC and layer.phase == "TEST":
        yield "windows whose sum is negative give sum(x^2) / sum(x); bvlc gives 0"


def _sizes(place: _Place) -> tuple[Shape, Shape]:
    """(H, W) of the top under dec2013 and under bvlc, () when it is not known there."""
    twin = place.twin.layer.top_shapes_built if place.twin is not None else []
    return place.node.layer.top_shapes_built[0][2:], twin[0][2:] if twin else ()


def _text(size: Shape) -> str:
    return " x ".join(map(str, size))


def _softmax(place: _Place) -> Iterator[str]:
    if prod(place.bottom[2:]) > 1:
        yield f"one sum over all {_text(place.bottom[1:])} values of an item; bvlc: one over the channels at each place"


def _loss(place: _Place) -> Iterator[str]:
    zero = "" if place.learns else ", and it is 0 as nothing below learns"
    yield f"the loss comes from a backward pass alone and is no output{zero}; bvlc has it as a top"


def _softmax_loss(place: _Place) -> Iterator[str]:
    if prod(place.bottom[2:]) > 1:
        yield "one label and one softmax for each item, the sum divided by their number; bvlc: for each place"


def _infogain(_place: _Place) -> Iterator[str]:
    yield "it takes probabilities; bvlc puts a softmax before it"


def _euclidean(place: _Place) -> Iterator[str]:
    if place.graph.backward.blobs[place.node.bottoms[1].blob]:
        yield f'bottom 1 "{place.node.bottoms[1].blob}" gets no gradient; bvlc: the negative of that of bottom 0'


def _accuracy(_place: _Place) -> Iterator[str]:
    shares = "the share of items whose best class, the lowest of several, is the label, and the mean of -log(p)"
    yield f"top 1 x 2 x 1 x 1: {shares}; bvlc: one number, and a tie with another class counts as an error"


def _dropout(place: _Place) -> Iterator[str]:
    if place.learns and place.node.layer.phase == "TEST":
        yield "a backward pass is refused in phase TEST; bvlc passes gradients on"


def _bnll(place: _Place) -> Iterator[str]:
    if place.learns and place.node.tops[0].blob == place.node.bottoms[0].blob:
        yield "works in place, and its gradient is taken at the top's value; under bvlc at the bottom's"


def _data(place: _Place) -> Iterator[str]:
    layer = place.node.layer
    if layer.param.transform_param.crop_size and layer.phase == "TRAIN":
        yield "random crops never reach the last row and column of an image; with bvlc they do"


def _fillers(place: _Place) -> Iterator[str]:
    """Fillers that depend on the first axis of a blob, which is 1 where bvlc has the number of outputs."""
    layer = place.node.layer
    outputs = layer.p.num_output if layer.fillers() else 0
    for filler, shape, name in zip(layer.fillers(), place.node.blob_shapes, ("weight", "bias"), strict=False):
        if shape[0] != outputs and filler.type == "xavier":
            yield f"xavier's fan-in of the {name} is {prod(shape)}; bvlc: {prod(shape) // outputs}"
        if shape[0] != outputs and filler.type == "positive_unitball":
            yield f"positive_unitball makes the whole {name} sum to 1; bvlc: each of its {outputs} rows"


def _no_gradient(place: _Place) -> Iterator[str]:
    if place.node.params and place.twin_learns and not place.learns:
        what = "no gradient, as neither its blobs_lr nor that of a layer below is stated above 0"
        yield f"{what}, while weight decay still changes the blobs; bvlc trains them"


RULES: dict[str, tuple[Rule, ...]] = {
    "Accuracy": (_accuracy,),
    "BNLL": (_bnll,),
    "Data": (_data,),
    "Dropout": (_dropout,),
    "EuclideanLoss": (_loss, _euclidean),
    "InfogainLoss": (_loss, _infogain),
    "MultinomialLogisticLoss": (_loss,),
    "Padding": (_padding,),
    "Pooling": (_pooling,),
    "Softmax": (_softmax,),
    "SoftmaxWithLoss": (_loss, _softmax_loss),
}
"""Layer type -> what may differ; those of other types, and some of these, do not."""
