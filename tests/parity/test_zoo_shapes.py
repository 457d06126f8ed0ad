"""Published nets: layers, blobs, shapes, parameters, inputs, outputs and loss weights, or a refusal that says where."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from caffe_compat.errors import VggcError
from caffe_compat.graph import Graph
from caffe_compat.loading import State, open_net
from caffe_compat.reading import read_document, read_net
from caffe_compat.schema import pb
from caffe_compat.upgrade import upgrade_net
from tests.parity.cases import Case, Folders, guarded, read_json
from tests.parity.compare import Comparison, comparing
from tests.parity.nets import errors_in
from tests.parity.records import AUTOMATIC, check_structure, loss_weights, merged

DATA_TYPES = frozenset({"Data", "ImageData", "HDF5Data", "WindowData", "MemoryData"})
NOT_THE_NET = re.compile(
    r"TIMEOUT|MEMORY_LIMIT|signal |has unknown engine|Unknown layer type|ModuleNotFoundError"
    r"|Failed to open|File not found|File is empty|mdb_status == 0|lines_\.empty"
    r"|Unknown parameter .* for layer type"
)
"""Failures of the recording that say nothing about the net: its limits and build, layers of forks, files that were not
there (also behind a first message that Caffe itself goes on after). Such a net may stand, or be refused."""
PHASES = ("TEST", "TRAIN")


def cases(folders: Folders) -> list[Case]:
    shapes = folders.golden / "zoo_shapes" / "zoo_shapes.json.gz"
    nets = folders.zoo / "prototxt"
    if not (nets.is_dir() and shapes.exists()):
        return []

    def make() -> list[Case]:
        content = read_json(shapes)
        return [
            Case("zoo_shapes", path, nets, content["nets"][digest], _types(content["nets"][digest]), zoo=folders.zoo)
            for path, digest in content["paths"].items()
        ]

    return guarded("zoo_shapes", shapes, make)


def _types(record: Mapping[str, Any]) -> tuple[str, ...]:
    runs = [record.get("TEST"), *(record.get("SUBSTITUTED", {}).get(phase) for phase in PHASES)]
    layers: list[Any] = next((run["layers"] for run in runs if isinstance(run, dict) and run.get("ok")), [])
    return tuple(sorted({kind for _, kind, _, _ in layers})) or (f"({record.get('kind', 'no kind')})",)


def test_zoo_shapes(case: Case) -> None:
    record, path = case.entry, case.path(case.id)
    kind = record["kind"]
    with comparing() as compare:
        if kind.startswith("solver"):
            check_solver(path, kind, compare)
        elif kind == "unparsable":
            check_unparsable(path, record["TEST"]["error"], compare)
        else:
            check_phases(record, lambda phase: graph_of(path, phase), compare)
        if substituted := record.get("SUBSTITUTED"):
            net = substitute(path, substituted["substituted"])
            check_phases(substituted, lambda phase: Graph.from_net(net, phase=phase), compare)


def check_solver(path: Path, kind: str, compare: Comparison) -> None:
    """It is read as a solver, fields of forks with their line; one that may not be a solver ("solver?") may fail."""
    try:
        document = read_document(path)
    except VggcError as error:
        compare.check(kind == "solver?", f"refused: {error}")
        check_lines(errors_in(error), compare)
        return
    compare.equal("kind", type(document.message), pb.SolverParameter)
    check_lines(document.map.unknown, compare)


def check_lines(places: Iterable[Any], compare: Comparison) -> None:
    for place in places:
        compare.check(place.where.line > 0, f"no line: {place}")


def graph_of(path: Path, phase: str) -> Graph:
    return open_net(path, state=State(phase=phase)).graph


def check_phases(record: Mapping[str, Any], build: Callable[[str], Graph], compare: Comparison) -> None:
    for phase in PHASES:
        run = record.get(phase)
        if run is not None:
            check_run(record["TEST"] if run == "same" else run, phase, build, compare)


def check_run(run: Mapping[str, Any], phase: str, build: Callable[[str], Graph], compare: Comparison) -> None:
    """The graph equals what Caffe built; where Caffe refused the net, so do we."""
    excused = not run["ok"] and NOT_THE_NET.search(run["error"])
    try:
        graph = build(phase)
    except VggcError as error:
        compare.check(not run["ok"], f"{phase}: refused, but Caffe builds it: {str(error)[:600]}")
        return
    compare.check(bool(run["ok"] or excused), f"{phase}: built, but Caffe says: {run.get('error')}")
    if run["ok"]:
        check_graph(run, graph, compare)


def check_graph(run: Mapping[str, Any], graph: Graph, compare: Comparison) -> None:
    blobs = [blob for blob in run["blobs"] if blob[0] != AUTOMATIC]
    split = check_structure({**run, "blob_names": [name for name, _ in blobs]}, graph, compare)
    own = [[name, list(shape)] for name, shape in graph.shapes.items()]
    compare.equal("shapes", own, [blob for blob in blobs if blob[0] not in split])
    compare.equal("loss weights", loss_weights(graph), merged(run["loss_weights"].items(), split))


def check_unparsable(path: Path, message: str, compare: Comparison) -> None:
    """An error with a line; the net may stand where fields of a fork are known to us or said to be ignored."""
    try:
        document = read_document(path)
        graph = open_net(path, collect=True).graph
    except VggcError as error:
        errors = errors_in(error)
    else:
        compare.check("no field named" in message, f"accepted, but Caffe says: {message}")
        errors = graph.problems
        used = {"", *(node.layer.name for node in graph.nodes)}
        said = " ".join(graph.notes)
        silent = [u for u in document.map.unknown if u.where.layer in used and u.path.rsplit(".", 1)[-1] not in said]
        compare.check(bool(errors) or not silent, f"unknown fields and not a word: {silent[:3]}")
    check_lines(errors, compare)


def substitute(path: Path, shapes: Mapping[str, list[int]]) -> pb.NetParameter:
    """The upgraded net with an Input layer in place of each data layer (golden/README.md, zoo_shapes)."""
    net = upgrade_net(read_net(path)).net
    for layer in net.layer:
        if layer.type in DATA_TYPES:
            new = pb.LayerParameter(name=layer.name, type="Input", top=layer.top)
            new.include.MergeFrom(layer.include)
            new.exclude.MergeFrom(layer.exclude)
            for top in layer.top:
                new.input_param.shape.add(dim=shapes[f"{layer.name}/{top}"])
            layer.CopyFrom(new)
    return net
