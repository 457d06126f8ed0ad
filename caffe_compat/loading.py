"""From files to a graph with weights, without torch; `load` makes a module of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from caffe_compat.binding import Bound, bind
from caffe_compat.deploy import deploy as make_deploy
from caffe_compat.errors import FormatError, GraphError, Problems, UpgradeError, VggcError, in_file, raise_all
from caffe_compat.fork_fields import ignored_fields, judge_unknown
from caffe_compat.graph import Graph, newest
from caffe_compat.guessing import Guess, guess_net, told
from caffe_compat.layers.base import Context
from caffe_compat.mapped import kind_of, map_file
from caffe_compat.reading import read_document
from caffe_compat.schema import pb
from caffe_compat.source import Document
from caffe_compat.textformat import parse
from caffe_compat.upgrade import Upgraded, strange_types
from caffe_compat.weight_files import read_weights
from caffe_compat.weights import Weights
from caffe_compat.wire import read_caffemodel

if TYPE_CHECKING:
    from caffe_compat.module import Net

PathOrName = str | PathLike[str]

NET = "caffe_net"
"""The metadata entry of a .safetensors that has the net as prototxt text."""


@dataclass(frozen=True)
class State:
    """What a net is built for; see `load`."""

    phase: str = "TEST"
    stages: Sequence[str] = ()
    level: int = 0
    profile: str = "bvlc"
    dialect: str = ""
    input_shapes: Mapping[str, Sequence[int]] | None = None
    python_layers: str | None = None
    data_folders: Sequence[str] = ()
    seed: int = 0


@dataclass(frozen=True)
class Opened:
    """A net from files.

    Attributes:
        graph: the net; its `problems` are empty unless asked for with `collect`.
        original: the net as the file has it, before the upgrade.
        generation: "V0", "V1" or "V2".
        weights: all blobs of the weight file, None when there was none.
        bound: the blobs that fit the graph, with the report.
        notes: sentences: what was upgraded, replaced, dropped.
        losses: those of the notes that go beyond Caffe's own upgrade: parts of the file that the graph has not.
        guess: the fork that the net was written for.
    """

    graph: Graph
    original: pb.NetParameter
    generation: str
    weights: Weights | None = None
    bound: Bound | None = None
    notes: tuple[str, ...] = field(default=())
    losses: tuple[str, ...] = field(default=())
    guess: Guess = field(default_factory=Guess)


def open_net(
    net: PathOrName,
    weights: PathOrName | Weights | None = None,
    state: State | None = None,
    *,
    strict: bool = True,
    deploy: bool | None = None,
    collect: bool = False,
) -> Opened:
    """Read a net, and its weights where given, and build the graph.

    Args:
        net: .prototxt, or a .caffemodel or .safetensors that carries its net.
        weights: .caffemodel, .h5, .safetensors or .pt, or what was read of one; by default those that `net` carries.
        state: phase, profile and so on.
        strict: layers of the net without weights are an error.
        deploy: replace data and loss layers; by default only when the net comes with the weights.
        collect: keep the graph's problems instead of raising them, unless Caffe cannot even read the file.

    Raises:
        FormatError: a file cannot be read.
        GraphError: Caffe would refuse the net.
        WeightsError: the weights do not fit.
    """
    state = state or State()
    document, carried = _read(Path(net), state)
    guess = document.guess or told(state.dialect) or guess_net(_net(document), document.map)
    state = replace(state, dialect=guess.dialect)
    blobs = _blobs(weights) if weights is not None else carried
    upgraded = _upgraded(document, state)
    losses = [*map(str, upgraded.problems), *ignored_fields(_net(document), document.map, guess.dialect)]
    if carried is not None if deploy is None else deploy:
        upgraded, replaced = _deployed(upgraded, blobs, state, document.map.source)
        losses += replaced
    doubts = guess.problems()
    if not collect:
        raise_all(doubts)
    strange = strange_types(_net(document), document.map, guess.dialect)
    graph = _graph(Path(net), upgraded, document, state, collect=collect or bool(strange))
    if strange:
        raise_all(_with_others(strange, (*doubts, *graph.problems)))
    notes = tuple(dict.fromkeys((*guess.notes(), *upgraded.notes, *losses, *graph.notes)))
    graph = replace(graph, notes=notes, problems=(*doubts, *graph.problems))
    bound = bind(graph, blobs, strict=strict) if blobs is not None and not graph.problems else None
    return Opened(graph, _net(document), upgraded.generation, blobs, bound, notes, tuple(losses), guess)


def _blobs(weights: PathOrName | Weights) -> Weights:
    return weights if isinstance(weights, Weights) else read_weights(weights)


def _upgraded(document: Document, state: State) -> Upgraded:
    """The net in the newest generation; what keeps it from that is told with the fields that are not known."""
    try:
        return newest(_with_shapes(_net(document), state.input_shapes), state.profile, document.map, state.dialect)
    except (GraphError, Problems, UpgradeError) as error:
        judged = (judge_unknown(unknown, state.dialect) for unknown in document.map.unknown)
        raise_all(
            [
                *(error.errors if isinstance(error, Problems) else [error]),
                *(verdict for verdict in judged if isinstance(verdict, VggcError)),
            ]
        )
        raise


def _graph(path: Path, upgraded: Upgraded, document: Document, state: State, *, collect: bool) -> Graph:
    return Graph.from_upgraded(
        upgraded,
        _context(path, state),
        stages=state.stages,
        level=state.level,
        input_shapes=state.input_shapes,
        source=document.map,
        collect=collect,
    )


def _with_others(first: Sequence[VggcError], others: Iterable[VggcError]) -> list[VggcError]:
    """Errors, and those others that are at other places."""
    places = {error.where for error in first}
    return [*first, *(error for error in others if error.where not in places)]


def _with_shapes(net: pb.NetParameter, given: Mapping[str, Sequence[int]] | None) -> pb.NetParameter:
    """The net; a copy with the shapes given for inputs of which it only states the names."""
    if not given or net.input_dim or net.input_shape or not given.keys() >= set(net.input):
        return net
    shaped = pb.NetParameter()
    shaped.CopyFrom(net)
    shapes = [given[name] for name in net.input]
    if all(len(shape) == 4 for shape in shapes):  # the only field that a V0 net may have
        shaped.input_dim.extend(int(size) for shape in shapes for size in shape)
    else:
        shaped.input_shape.extend(pb.BlobShape(dim=shape) for shape in shapes)
    return shaped


def _context(path: Path, state: State) -> Context:
    shared = {"python_layers": state.python_layers, "data_folders": tuple(state.data_folders), "seed": state.seed}
    return Context(state.phase, state.profile, state.dialect, str(path.parent), shared)


def _deployed(upgraded: Upgraded, weights: Weights | None, state: State, source: str) -> tuple[Upgraded, Sequence[str]]:
    """The net without data and loss layers, and what was done to it."""
    try:
        made = make_deploy(
            upgraded.net,
            weights=weights,
            input_shapes=state.input_shapes,
            stages=state.stages,
            level=state.level,
            profile=state.profile,
            dialect=state.dialect,
        )
    except VggcError as error:
        raise in_file(error, source) from error
    origins = tuple(upgraded.origins[i] if i >= 0 else "" for i in made.origins)
    return replace(upgraded, net=made.net, origins=origins), made.notes


def _read(path: Path, state: State) -> tuple[Document, Weights | None]:
    """The net of a file, and the weights that it carries."""
    kind = kind_of(map_file(path))
    if kind.name == "safetensors":
        return _carried_net(read_weights(path), state)
    if kind.name in ("HDF5", "zip"):
        what = f"this {kind.name} file holds weights without a net"
        raise FormatError(what, where=str(path), remedy="give the net (.prototxt) too (--net)")
    if kind.name:
        return read_document(path), None
    model = read_caffemodel(path, state.dialect)
    return Document(model.net, model.map, model.guess), model.weights


def _carried_net(weights: Weights, state: State) -> tuple[Document, Weights]:
    if NET not in weights.metadata:
        remedy = "give the net (.prototxt) too (--net)"
        raise FormatError("this safetensors file does not carry its net", where=weights.source, remedy=remedy)
    meant = weights.metadata.get("caffe_profile", state.profile)
    if meant != state.profile:
        what = f"its net was converted under profile {meant}, not {state.profile}"
        raise GraphError(what, where=weights.source, remedy=f"use profile {meant} (--profile {meant})")
    document = parse(weights.metadata[NET], pb.NetParameter, weights.source)
    return replace(document, guess=told(state.dialect or weights.metadata.get("caffe_dialect", ""))), weights


def _net(document: Document) -> pb.NetParameter:
    if not isinstance(document.message, pb.NetParameter):
        what = f"this is a {type(document.message).__name__}, not a net"
        raise FormatError(what, where=document.map.source, remedy="give the net's own file")
    return document.message


def load(
    net: PathOrName,
    weights: PathOrName | None = None,
    *,
    phase: str = "TEST",
    stages: Sequence[str] = (),
    level: int = 0,
    profile: str = "bvlc",
    dialect: str = "",
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    python_layers: str | None = None,
    data_folders: Sequence[str] = (),
    strict: bool = True,
    seed: int = 0,
) -> Net:
    """A torch module of a Caffe net.

    Args:
        net: a .prototxt of any generation; or a .caffemodel or .safetensors alone, which carries its net: then
            train, data and loss layers are replaced by an Input and a Softmax, as `.notes` of the result say.
        weights: .caffemodel, .caffemodel.h5, .safetensors or .pt; without any, blobs are filled as the net says.
        phase: "TRAIN" or "TEST".
        stages, level: matched against include and exclude rules.
        profile: whose semantics, "bvlc" (the last BVLC commit) or "dec2013".
        dialect: the fork whose layers take precedence, e.g. "ssd" or "weiliu89/caffe"; by default judged by the net's
            layers and fields. "bvlc" refuses what forks have added.
        input_shapes: input blob -> shape, in place of the declared one.
        python_layers: folder from which pycaffe-style Python layers may be imported; none are run otherwise.
        data_folders: folders that the net may read data from, beside its own; relative names in it are looked for in
            them first, as Caffe looks for them where it is started.
        strict: refuse weights that lack a layer of the net (Caffe would keep its filler's values).
        seed: for fillers and data layers.

    Raises:
        VggcError: see `open_net`.
    """
    from caffe_compat.module import Net

    state = State(phase, stages, level, profile, dialect, input_shapes, python_layers, data_folders, seed)
    opened = open_net(net, weights, state, strict=strict)
    arrays = {key: blob.values for key, blob in opened.bound.arrays.items()} if opened.bound else {}
    return Net(opened.graph, arrays, seed)
