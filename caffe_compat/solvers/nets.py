"""The nets of a solver (Solver::InitTrainNet, InitTestNets in solver.cpp)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from caffe_compat.errors import VggcError
from caffe_compat.graph import Graph, newest
from caffe_compat.layers.base import Context
from caffe_compat.module import Net
from caffe_compat.reading import read_document
from caffe_compat.schema import pb
from caffe_compat.source import Document, SourceMap

GENERIC = ("net", "net_param")
TRAIN = (*GENERIC, "train_net", "train_net_param")


@dataclass(frozen=True)
class Place:
    """Where a solver's paths lead: relative to `folder`; and what its nets share, their layers' `context.state`."""

    solver: str
    folder: Path
    shared: dict[str, Any] = field(default_factory=dict)

    def path(self, name: str) -> Path:
        return self.folder / name


def train_net(param: pb.SolverParameter, place: Place, profile: str, dialect: str) -> tuple[Net, pb.NetParameter]:
    """The train net, in phase TRAIN unless the net or train_state says otherwise, and its message as given.

    Raises:
        VggcError: none or several are named, or the net cannot be built.
    """
    named = [name for name in TRAIN if param.HasField(name)]  # type: ignore[arg-type]
    if len(named) != 1:
        what = f"the solver names {len(named)} train nets ({', '.join(named) or 'none'})"
        raise VggcError(what, where=place.solver, remedy=f"state one of {', '.join(TRAIN)}")
    document = _document(param, named[0], place)
    net = _build(document, "TRAIN", param.train_state, place, profile, dialect)
    assert isinstance(document.message, pb.NetParameter)
    return net, document.message


def said_of_train_net(param: pb.SolverParameter) -> str:
    """What Caffe says before it makes the train net."""
    name = next((name for name in TRAIN if param.HasField(name)), "net")  # type: ignore[arg-type]
    if name.endswith("_param"):
        return f"Creating training net specified in {name}."
    return f"Creating training net from {name} file: {getattr(param, name)}"


def said_of_test_net(param: pb.SolverParameter, index: int) -> str:
    """What Caffe says before it makes a test net."""
    own, named = len(param.test_net_param), len(param.test_net)
    if index < own:
        source = "test_net_param"
    elif index < own + named:
        source = f"test_net file: {param.test_net[index - own]}"
    else:
        source = f"net file: {param.net}" if param.HasField("net") else "net_param"
    return f"Creating test net (#{index}) specified by {source}"


def test_nets(param: pb.SolverParameter, place: Place, profile: str, dialect: str) -> list[Net]:
    """The test nets, as many as test_iter has values.

    Raises:
        VggcError: test_iter, test_state and the nets do not agree in number.
    """
    documents = list(_test_documents(param, place))
    states = list(param.test_state) or [pb.NetState()] * len(documents)
    if len(states) != len(documents):
        what = f"{len(states)} test_state entries for {len(documents)} test net(s)"
        raise VggcError(what, where=place.solver, remedy="state none, or one for each")
    if documents and param.test_interval <= 0:
        what = f"test_interval {param.test_interval} with {len(documents)} test net(s)"
        raise VggcError(what, where=place.solver, remedy="state test_interval > 0")
    pairs = zip(documents, states, strict=True)
    return [_build(document, "TEST", state, place, profile, dialect) for document, state in pairs]


def _test_documents(param: pb.SolverParameter, place: Place) -> Iterator[Document]:
    """test_net_param, then test_net, then the generic net for what remains of test_iter."""
    own = len(param.test_net_param) + len(param.test_net)
    generic = next((name for name in GENERIC if param.HasField(name)), None)  # type: ignore[arg-type]
    rest = len(param.test_iter) - own
    if rest < 0 or (rest and generic is None):
        what = f"{len(param.test_iter)} test_iter value(s) for {own} test net(s)"
        raise VggcError(what, where=place.solver, remedy="state one test_iter for each test net")
    for message in param.test_net_param:
        yield Document(message, SourceMap(place.solver))
    for name in param.test_net:
        yield read_document(place.path(name))
    for _ in range(rest):
        yield _document(param, str(generic), place)


def _document(param: pb.SolverParameter, name: str, place: Place) -> Document:
    value = getattr(param, name)
    return read_document(place.path(value)) if isinstance(value, str) else Document(value, SourceMap(place.solver))


def _build(document: Document, phase: str, own: pb.NetState, place: Place, profile: str, dialect: str) -> Net:
    """The net in its state: the solver's default, then what the net says, then the solver's train or test state."""
    message = document.message
    if not isinstance(message, pb.NetParameter):
        raise VggcError("this is not a net", where=document.map.source, remedy="name a net in the solver")
    state = pb.NetState(phase=phase)  # type: ignore[arg-type]
    state.MergeFrom(message.state)
    state.MergeFrom(own)
    graph = Graph.from_upgraded(
        newest(message, profile, document.map, dialect),
        Context(pb.Phase.Name(state.phase), profile, dialect, str(place.folder), dict(place.shared)),
        stages=list(state.stage),
        level=state.level,
        source=document.map,
    )
    return Net(graph, seed=place.shared.get("seed", 0))
