"""Train, snapshot, copy into the deploy net, all of December 2013."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from google.protobuf.json_format import MessageToDict

from caffe_compat.schema import pb
from caffe_compat.solvers import Solver
from caffe_compat.solvers.snapshot import read_state
from caffe_compat.weight_files import read_weights
from tests.parity.cases import Case, Folders, dec2013_cases, read_json
from tests.parity.compare import Comparison, comparing
from tests.parity.dec2013 import PROFILE, tolerance_of
from tests.parity.nets import load, parameters, tensor, writable
from tests.parity.records import Record
from tests.parity.test_2013_solver import check_snapshots
from tests.parity.test_solvers import working_in
from tests.tolerances import EXACT


def cases(folders: Folders) -> list[Case]:
    return dec2013_cases(folders, "chain")


def test_2013_chain(case: Case, tmp_path: Path) -> None:
    folder = writable(case.folder, tmp_path / "case")
    expected, record = read_json(case.path("expected.json")), Record(case.path("case.npz"))
    with working_in(folder), comparing() as compare:
        check_model(Path(expected["model"]), expected, compare)
        check_training_net(expected, record, compare)
        check_deploy_net(case, expected, record, compare)
        compare.equal("keys that were not compared", record.unseen(), [])


def check_model(path: Path, expected: Mapping[str, Any], compare: Comparison) -> None:
    """The snapshot says what the net that was trained said, and the shapes of its blobs."""
    net = pb.NetParameter.FromString(path.read_bytes())
    for key in ("name", "input", "input_dim"):
        value = getattr(net, key)
        compare.equal(key, value if isinstance(value, str) else list(value), expected[key])
    got = [list(described(connection)) for connection in net.layers]
    for mine, want in zip(got, [list(stated(layer)) for layer in expected["layers"]], strict=True):
        for (what, a), (_, b) in zip(mine, want, strict=True):
            compare.equal(f"{mine[0][1]}: {what}", a, b)


def described(connection: pb.V1LayerParameter) -> Iterator[tuple[str, Any]]:
    """What is compared of a layer, as `stated` gives it."""
    layer, blobs = connection.layer, connection.layer.blobs
    said = MessageToDict(layer, preserving_proto_field_name=True)
    yield "name", layer.name
    yield "type", layer.type
    yield "bottoms and tops", [list(connection.bottom), list(connection.top)]
    yield "parameters", {key: value for key, value in said.items() if key not in ("name", "type", "blobs")}
    yield "blobs", [[blob.num, blob.channels, blob.height, blob.width] for blob in blobs]
    yield "diffs", [bool(len(blob.diff)) for blob in blobs]


def stated(layer: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    yield "name", layer["name"]
    yield "type", layer["type"]
    yield "bottoms and tops", [layer["bottom"], layer["top"]]
    yield "parameters", layer["params"]
    yield "blobs", [blob["shape"] for blob in layer["blobs"]]
    yield "diffs", [blob["has_diff"] for blob in layer["blobs"]]


def check_training_net(expected: Mapping[str, Any], record: Record, compare: Comparison) -> None:
    """Restored, the solver holds the recorded values, and writes the very files that it was restored from."""
    state = expected["solverstate"]
    found = read_state(Path(state["file"]))
    compare.equal("state", (found.iteration, found.learned_net), (state["iter"], state["learned_net"]))
    compare.equal("history", [list(blob.shape) for blob in found.history], state["history"])
    solver = Solver("solver.prototxt", restore=state["file"], profile=PROFILE)
    compare.equal("iteration", solver.iter, state["iter"])
    own = parameters(solver.net)
    history = dict(zip(own, solver.history, strict=True))
    for prefix, blobs in (("param", own), ("history", history)):
        for key, want in record.params(prefix).items():
            compare.array(f"{prefix}/{key}", blobs.get(key), want)
    theirs = Path("snap").rename("theirs")
    Path("snap").mkdir()
    solver.snapshot()
    check_snapshots(theirs, Path("snap"), EXACT, compare)


def check_deploy_net(case: Case, expected: Mapping[str, Any], record: Record, compare: Comparison) -> None:
    net = load(Path("deploy.prototxt"), phase=str(record.phase), profile=PROFILE)
    bound = net.copy_trained(read_weights(Path("theirs") / Path(expected["model"]).name))
    compare.equal("copied", list(bound.copied), expected["copied_into_deploy"])
    compare.equal("not copied", list(bound.unexpected), expected["not_copied"])
    own = parameters(net)
    for key, want in record.params("deploy_param").items():
        compare.array(f"deploy_param/{key}", own.get(key), want)
    blobs = net.trace({name: tensor(values) for name, values in record.group("in").items()}).blobs
    for name, want in record.group("out").items():
        compare.array(f"out/{name}", blobs.get(name), want, tolerance_of(case.entry))
    compare.equal("outputs", list(net.outputs), expected["deploy_outputs"])
