"""Training of December 2013: trajectories, tests, snapshots and resumed runs."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from caffe_compat.graph import ParamKey
from caffe_compat.schema import pb
from caffe_compat.solvers import Solver
from tests.parity.cases import Case, Folders, dec2013_cases
from tests.parity.compare import Comparison, comparing
from tests.parity.dec2013 import PROFILE, inject
from tests.parity.test_solvers import working_in
from tests.tolerances import Tolerance

Record = Mapping[str, Any]


def cases(folders: Folders) -> list[Case]:
    return dec2013_cases(folders, "solver")


def test_2013_solver(case: Case, tmp_path: Path) -> None:
    folder = tmp_path / "case"
    shutil.copytree(case.folder, folder, copy_function=shutil.copy)
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755)
    record = dict(np.load(case.path("case.npz")))
    tolerances = {name: Tolerance(**values) for name, values in case.entry["tol"].items()}
    with working_in(folder), comparing() as compare:
        solver = make("solver.prototxt", record)
        set_start(solver, record)
        follow(solver, record, "", 0, tolerances, compare)
        check_snapshots(case.folder / "snap", folder / "snap", tolerances["params"], compare)
        if "resume/from" in record:
            start = int(record["resume/from"])
            state = next(case.folder.glob(f"snap/*_iter_{start}.solverstate"))
            name = "solver_resume.prototxt" if (folder / "solver_resume.prototxt").exists() else "solver.prototxt"
            follow(make(name, record, "resume/", state), record, "resume/", start, tolerances, compare)


def make(path: str, record: Record, prefix: str = "", restore: Path | None = None) -> Solver:
    """A solver that is fed the recorded inputs; each test pass takes the next recorded one."""
    solver = Solver(path, restore=restore, profile=PROFILE)
    if f"{prefix}rand" in record:
        solver.rand = iter(record[f"{prefix}rand"].tolist()).__next__  # type: ignore[attr-defined]
    solver.inputs = lambda iteration: slices(record, "in/", iteration)
    return solver


def slices(record: Record, prefix: str, index: int) -> dict[str, torch.Tensor]:
    keys = [key for key in record if key.startswith(prefix)]
    return {key.removeprefix(prefix): torch.from_numpy(record[key][index % len(record[key])]) for key in keys}


@torch.no_grad()
def set_start(solver: Solver, record: Record) -> None:
    for key in [key for key in record if key.startswith("init/")]:
        layer, _, index = key.removeprefix("init/").rpartition("/")
        solver.net.params[layer][int(index)].copy_(torch.from_numpy(record[key]))


def follow(
    solver: Solver, record: Record, prefix: str, start: int, tol: Mapping[str, Tolerance], compare: Comparison
) -> None:
    """Train to the end, comparing after each update that was recorded."""
    rates: list[float] = []
    made: list[int] = []
    tested: list[int] = []
    scores: list[list[float]] = []
    test_all = solver.test_all

    def scored() -> Any:
        trained, passes = solver.inputs, iter(range(10**6))
        if any(key.startswith("test_in/") for key in record):
            solver.inputs = lambda _iteration: slices(record, "test_in/", next(passes))
        result = test_all()
        tested.append(solver.iter)
        scores.append([value for values in result[0].values() for value in values])
        solver.inputs = trained
        return result

    solver.test_all = scored  # type: ignore[method-assign]
    updates = len(record["lr"])
    for update in range(start + 1, updates + 1):
        masks = {k.removeprefix("mask/"): record[k][update - 1] for k in record if k.startswith("mask/")}
        inject(solver.net, masks)
        solver.step(1)
        rates.append(solver.rate)
        made.append(solver.iter)
        check_iteration(solver, record, f"{prefix}iter/{update}/", tol["params"], compare)
    compare.array(f"{prefix}loss", np.array(solver.losses), record[f"{prefix}loss"], tol["loss"])
    compare.array(f"{prefix}lr", np.array(rates), record[f"{prefix}lr"], tol["lr"])
    compare.equal(f"{prefix}iter", made, record[f"{prefix}iter"].tolist())
    if f"{prefix}rand" in record:
        compare.equal(f"{prefix}numbers left", list(iter(solver.rand, None)), [])  # type: ignore[attr-defined]
    if f"{prefix}test/scores" in record:
        compare.equal(f"{prefix}tests", tested, record[f"{prefix}test/iters"].tolist())
        compare.array(f"{prefix}scores", np.array(scores), record[f"{prefix}test/scores"], tol["loss"])


def check_iteration(solver: Solver, record: Record, prefix: str, tol: Tolerance, compare: Comparison) -> None:
    nodes = {node.layer.name: node for node in solver.net.graph.nodes}
    order = [item.key for item in solver._learnable]
    for key in [key for key in record if key.startswith(f"{prefix}grad/")]:
        layer, _, index = key.removeprefix(f"{prefix}grad/").rpartition("/")
        blob = solver.net.params[layer][int(index)]
        if blob.requires_grad:  # gradients that move nothing (blobs_lr 0, nothing trainable) are not computed
            compare.array(key, blob.grad, record[key], tol)
    for key in [key for key in record if key.startswith((f"{prefix}param/", f"{prefix}history/"))]:
        what, _, rest = key.removeprefix(prefix).partition("/")
        layer, _, index = rest.rpartition("/")
        owner: ParamKey = nodes[layer].params[int(index)]
        value = solver.net.params[layer][int(index)] if what == "param" else solver.history[order.index(owner)]
        compare.array(key, value, record[key], tol)


def check_snapshots(theirs: Path, ours: Path, tol: Tolerance, compare: Comparison) -> None:
    """The files of their folder have a counterpart in ours that says what they say."""
    for path in theirs.glob("*"):
        mine = ours / path.name
        compare.check(mine.exists(), f"{path.name} was not written")
        if not mine.exists():
            continue
        kind = pb.SolverState if path.suffix == ".solverstate" else pb.NetParameter
        a, b = kind.FromString(path.read_bytes()), kind.FromString(mine.read_bytes())
        values = [[np.array(blob.data, np.float32) for blob in blobs(message)] for message in (a, b)]
        for old, new in zip(*values, strict=True):
            compare.array(path.name, new, old, tol)
        for message in (a, b):
            for blob in blobs(message):
                blob.ClearField("data")
                blob.ClearField("diff")
        compare.equal(path.name, str(b), str(a))


def blobs(message: pb.SolverState | pb.NetParameter) -> list[pb.BlobProto]:
    if isinstance(message, pb.SolverState):
        return list(message.history)
    return [blob for layer in message.layers for blob in layer.layer.blobs]
