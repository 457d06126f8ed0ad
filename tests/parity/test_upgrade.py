"""Nets and solvers of older generations: the upgraded message, what is refused, and what the net then computes."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from google.protobuf import text_format
from google.protobuf.message import Message

from caffe_compat.errors import VggcError
from caffe_compat.reading import read_document, read_solver
from caffe_compat.schema import pb
from caffe_compat.textformat import dump
from caffe_compat.upgrade import Upgraded, upgrade_net, upgrade_solver
from caffe_compat.weight_files import read_weights
from tests.parity.cases import Case, Folders, golden_cases
from tests.parity.compare import Comparison, comparing
from tests.parity.nets import load, load_recorded, parameters
from tests.parity.records import Record, Replay
from tests.tolerances import EXACT, UPGRADE

M = TypeVar("M", bound=Message)


def cases(folders: Folders) -> list[Case]:
    return golden_cases(folders, "upgrade", own_folder=True)


def test_upgrade(case: Case, tmp_path: Path) -> None:
    with comparing() as compare:
        if (case.folder / "solver_in.prototxt").exists():
            check_solver(case, compare)
            return
        for tool, suffix in (("text", ".prototxt"), ("binary", ".caffemodel")):
            if tool in case.entry:
                check_tool(case, tool, suffix, compare)
        if case.entry.get("forward"):
            check_forward(case, tmp_path, compare)


# -- messages ----------------------------------------------------------------------------------------------


def check_solver(case: Case, compare: Comparison) -> None:
    upgraded = upgrade_solver(read_solver(case.path("solver_in.prototxt"))).solver
    same(upgraded, read_text(case.path("solver_out.prototxt"), pb.SolverParameter), compare)


def check_tool(case: Case, tool: str, suffix: str, compare: Comparison) -> None:
    """What upgrade_net_proto_text or upgrade_net_proto_binary did with `in`, and what we do."""
    verdict = case.entry[tool]
    try:
        upgraded = upgrade_file(case.path(f"in{suffix}"))
    except VggcError as error:
        compare.check(not verdict["wrote"], f"{tool}: refused, but Caffe upgrades it: {error}")
        compare.check(bool(error.remedy), f"{tool}: no remedy: {error}")
        return
    compare.check(verdict["wrote"], f"{tool}: upgraded, but Caffe says: {verdict['errors']}")
    if not verdict["wrote"]:
        return
    compare.equal(f"{tool}: fields are lost", bool(upgraded.problems), verdict["rc"] != 0)
    want = read_message(case.path(f"out{suffix}"))
    if tool == "binary":
        same(upgrade_net(read_message(case.path("in.caffemodel"))).net, want, compare, "binary, blobs included")
        check_blobs(case, want, compare)
        without_blobs(want)
    same(without_blobs(upgraded.net), want, compare, tool)
    same(upgrade_net(upgraded.net).net, upgraded.net, compare, f"{tool}, upgraded twice")


def upgrade_file(path: Path) -> Upgraded:
    document = read_document(path)
    assert isinstance(document.message, pb.NetParameter)
    return upgrade_net(document.message, document.map)


def read_message(path: Path) -> pb.NetParameter:
    """A net as protobuf itself reads it."""
    if path.suffix == ".prototxt":
        return read_text(path, pb.NetParameter)
    return pb.NetParameter.FromString(path.read_bytes())


def read_text(path: Path, kind: type[M]) -> M:
    return text_format.Parse(path.read_text(), kind())


def without_blobs(net: pb.NetParameter) -> pb.NetParameter:
    for layer in net.layer:
        layer.ClearField("blobs")
    return net


def same(got: Message, want: Message, compare: Comparison, what: str = "message") -> None:
    """Equal messages; the first line that differs tells where they are not."""
    if got == want:
        compare.equal(what, 0, 0)
        return
    lines = zip(f"{got}\n<end>".splitlines(), f"{want}\n<end>".splitlines(), strict=False)
    number, (own, theirs) = next((i, pair) for i, pair in enumerate(lines) if pair[0] != pair[1])
    compare.check(False, f"{what}: line {number + 1} is {own.strip()!r}, want {theirs.strip()!r}")


def check_blobs(case: Case, want: pb.NetParameter, compare: Comparison) -> None:
    """The blobs as our reader sees them in the legacy file, and as Caffe wrote them into the new one."""
    own = {layer.name: layer.blobs for layer in read_weights(case.path("in.caffemodel")) if layer.blobs}
    stored = {layer.name: layer.blobs for layer in want.layer if layer.blobs}
    compare.equal("layers with blobs", sorted(own), sorted(stored))
    for name in own.keys() & stored.keys():
        compare.equal(f"blobs of {name}", [list(b.values) for b in own[name]], [values(b) for b in stored[name]])


def values(blob: pb.BlobProto) -> list[float]:
    return list(blob.data or blob.double_data)


# -- the net that results ----------------------------------------------------------------------------------


def check_forward(case: Case, scratch: Path, compare: Comparison) -> None:
    """Parameters and values of the net from `in`, and the same parameters from the files that Caffe saved again."""
    net_file = case.path("in.prototxt")
    if case.entry["text"]["rc"]:  # fields were lost, which Caffe only reports: upgrade first, then load
        net_file = scratch / "upgraded.prototxt"
        net_file.write_text(dump(upgrade_file(case.path("in.prototxt")).net))
    record = Record(case.path("fwd.npz"))
    want = record.params("param")
    for weights in [case.path("in.caffemodel"), *sorted(case.folder.glob("resaved.*"))]:
        own = parameters(load(net_file, weights, phase=record.phase, strict=False))
        for key, array in want.items():
            compare.array(f"{weights.name}: {key[0]}/{key[1]}", own.get(key), array, EXACT)
    Replay(record, *load_recorded(net_file, phase=record.phase), UPGRADE).run(compare)
