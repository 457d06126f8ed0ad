"""All published nets: at least 85 of 100 build, data sources replaced by inputs; the others say why, completely."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pytest

from caffe_compat.errors import FormatError, UnknownLayerError, VggcError
from caffe_compat.graph import Graph
from caffe_compat.guessing import guess_net
from caffe_compat.layers.base import Context
from caffe_compat.reading import read_document
from caffe_compat.schema import pb
from caffe_compat.source import Document
from caffe_compat.upgrade import Upgraded, upgrade_net
from tests.parity.cases import Case, Folders
from tests.parity.compare import Comparison, comparing
from tests.parity.nets import errors_in
from tests.parity.zoo_inputs import trials, with_inputs

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
        upgraded = upgrade_net(net, document.map)
    except VggcError as error:
        return Outcome(path, tuple(errors_in(error)))
    return Outcome(path, best(path, document, upgraded))


def best(path: Path, document: Document, upgraded: Upgraded) -> tuple[VggcError, ...]:
    """The fewest problems at any shapes of the inputs; no more are tried when some do not depend on them."""
    dialect = guess_net(upgraded.net, document.map, upgraded.origins).dialect
    found: list[tuple[VggcError, ...]] = []
    for trial in islice(trials(upgraded.net), MAX_TRIALS):
        net = with_inputs(upgraded, trial)
        runs = [attempt(path, document, net, phase, dialect) for phase in PHASES]
        found.append(merged([run for run in runs if not lacks_data(run)] or runs))
        if not found[-1] or (len(found) == 2 and same(*found)):
            break
    return min(found, key=len)


def attempt(path: Path, document: Document, net: Upgraded, phase: str, dialect: str) -> tuple[VggcError, ...]:
    context = Context(phase, dialect=dialect, folder=str(path.parent))
    return Graph.from_upgraded(net, context, source=document.map, collect=True).problems


def lacks_data(problems: Iterable[VggcError]) -> bool:
    """Whether the net is for the other phase alone: a blob is not made in this one."""
    return any(error.what.endswith("is not a blob so far") for error in problems)


def merged(runs: Iterable[tuple[VggcError, ...]]) -> tuple[VggcError, ...]:
    return tuple({str(error): error for run in runs for error in run}.values())


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
