"""All published nets: at least 85 of 100 build, data sources replaced by inputs; the others say why, completely."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import pytest

from caffe_compat.dialects import forks_with_v1_type
from caffe_compat.errors import FormatError, UnknownLayerError, VggcError
from caffe_compat.graph import Graph
from caffe_compat.guessing import guess_net
from caffe_compat.layers.base import Context
from caffe_compat.loading import open_net
from caffe_compat.reading import read_document
from caffe_compat.schema import pb
from caffe_compat.source import Document
from caffe_compat.upgrade import Upgraded, upgrade_net
from tests.parity.cases import Case, Folders
from tests.parity.compare import Comparison, comparing
from tests.parity.nets import errors_in
from tests.parity.zoo_inputs import Shape, Trial, asked_shapes, trials, with_inputs, with_names

WANTED = 0.85
COMMON = 3
"""Repositories that make a layer type one that must be known."""
PHASES = ("TEST", "TRAIN")
MAX_TRIALS = 120


@dataclass(frozen=True)
class Outcome:
    """One file: what keeps its net from building, or it from being read."""

    path: Path
    problems: tuple[VggcError, ...] = ()
    is_net: bool = True


def cases(folders: Folders) -> list[Case]:
    nets = folders.zoo / "prototxt"
    return [Case("zoo_build", "all nets", nets, {}, ("(zoo)",), zoo=folders.zoo)] if nets.is_dir() else []


@pytest.mark.timeout(900)
def test_zoo_build(case: Case) -> None:
    outcomes = [build(path) for path in sorted(case.folder.rglob("*")) if path.is_file()]
    nets = [outcome for outcome in outcomes if outcome.is_net]
    failed = [outcome for outcome in nets if outcome.problems]
    with comparing() as compare:
        share = 1 - len(failed) / len(nets)
        compare.check(share >= WANTED, f"{len(nets) - len(failed)} of {len(nets)} nets build ({share:.1%})")
        for outcome in outcomes:
            check_places(outcome, compare)
        for kind, users in unknown_types(failed, case.folder).items():
            compare.check(len(users) < COMMON, f"{kind}, of {len(users)} repositories, is not known")


def check_places(outcome: Outcome, compare: Comparison) -> None:
    """Each reason has its line and column, and says what to do."""
    for error in outcome.problems:
        where = error.where
        compare.check(where.line > 0 and where.column > 0, f"{outcome.path}: no place: {error}")
        compare.check(bool(error.remedy), f"{outcome.path}: no remedy: {error}")


def build(path: Path) -> Outcome:
    """Build a net in the phases that it is for."""
    try:
        document = read_document(path)
    except FormatError as error:
        return Outcome(path, tuple(errors_in(error)), is_net=False)
    net = document.message
    if not isinstance(net, pb.NetParameter) or not (net.layer or net.layers):
        return Outcome(path, is_net=False)
    try:
        upgraded = with_names(upgrade_net(net, document.map, named := named_fork(net)), net)
    except VggcError:
        return Outcome(path, refusal(path))
    dialect = named or guess_net(upgraded.net, document.map, upgraded.origins).dialect
    context = Context(dialect=dialect, folder=str(path.parent))
    return Outcome(path, Candidate(document, upgraded, context).problems())


def named_fork(net: pb.NetParameter) -> str:
    """The fork whose layer types a V1 net has, as the refusal of such a net names it; "" for none."""
    forks = [set(forks_with_v1_type(layer.fork_type)) for layer in net.layers if layer.fork_type]
    return min(set.intersection(*forks), default="") if forks else ""


def refusal(path: Path) -> tuple[VggcError, ...]:
    """What the net's own reader says of one that cannot be upgraded."""
    with pytest.raises(VggcError) as caught:
        open_net(path, collect=True)
    return tuple(errors_in(caught.value))


@dataclass(frozen=True)
class Candidate:
    """A net whose inputs are to be found."""

    document: Document
    upgraded: Upgraded
    context: Context

    def problems(self) -> tuple[VggcError, ...]:
        """The fewest at any shapes of the inputs; no more are tried when some do not depend on them."""
        found = []
        for trial in islice(trials(self.upgraded.net), MAX_TRIALS):
            problems, shapes = self.run(trial)
            asked = asked_shapes(self.upgraded.net, shapes) if problems else {}
            if asked:
                problems = min(problems, self.run(replace(trial, asked=asked))[0], key=len)
            found.append(problems)
            if not problems or (len(found) == 2 and same(*found)):
                break
        return min(found, key=len)

    def run(self, trial: Trial) -> tuple[tuple[VggcError, ...], Mapping[str, Shape]]:
        """Problems in the phases that the net is for, and the shapes that are known.

        Where it has no data in any phase, its stages are named: all, or that alone with which it has the fewest.
        """
        net = with_inputs(self.upgraded, trial)
        graphs = [self.graph(net, phase) for phase in PHASES]
        if not all(map(lacks_data, graphs)):
            return findings(graphs)
        stages = sorted({stage for layer in net.net.layer for rule in layer.include for stage in rule.stage})
        named = [stages, *([stage] for stage in stages)]
        return min((findings([self.graph(net, phase, own) for phase in PHASES]) for own in named), key=problem_count)

    def graph(self, net: Upgraded, phase: str, stages: Sequence[str] = ()) -> Graph:
        context = replace(self.context, phase=phase)
        return Graph.from_upgraded(net, context, stages=stages, source=self.document.map, collect=True)


def findings(graphs: Sequence[Graph]) -> tuple[tuple[VggcError, ...], Mapping[str, Shape]]:
    """Problems of the graphs that have data, or of all, and the shapes that are known."""
    meant = [graph for graph in graphs if not lacks_data(graph)] or graphs
    problems = {str(error): error for graph in meant for error in graph.problems}
    return tuple(problems.values()), dict(item for graph in meant for item in graph.shapes.items())


def problem_count(found: tuple[tuple[VggcError, ...], Mapping[str, Shape]]) -> int:
    """How many problems there are."""
    return len(found[0])


def lacks_data(graph: Graph) -> bool:
    """Whether the net is for the other phase alone: a blob is not made in this one."""
    return any(error.what.endswith("is not a blob so far") for error in graph.problems)


def same(one: Iterable[VggcError], other: Iterable[VggcError]) -> bool:
    """Whether some problem stays whatever the shapes."""
    return bool({str(error) for error in one} & {str(error) for error in other})


def unknown_types(failed: Iterable[Outcome], root: Path) -> Mapping[str, set[str]]:
    """Layer types that are not known -> the repositories that use them."""
    users: dict[str, set[str]] = {}
    for outcome in failed:
        for error in outcome.problems:
            if isinstance(error, UnknownLayerError):
                users.setdefault(error.what.split('"')[1], set()).add(outcome.path.relative_to(root).parts[0])
    return users
