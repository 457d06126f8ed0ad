"""Training trajectories, snapshots, log lines and resumed runs."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from caffe_compat.loading import load
from caffe_compat.reading import read_net
from caffe_compat.schema import pb
from caffe_compat.solvers import Solver
from caffe_compat.solvers.scoring import score
from tests.parity.cases import Case, Folders, golden_cases
from tests.parity.compare import Comparison, comparing
from tests.tolerances import LEARNING_RATE, TRAJECTORY

FIGURE = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?")
TIMING = re.compile(r" \([^()]*iter/s[^()]*iters\)")


def cases(folders: Folders) -> list[Case]:
    return golden_cases(folders, "solvers", own_folder=True)


def test_solvers(case: Case, tmp_path: Path) -> None:
    folder = tmp_path / "case"
    shutil.copytree(case.folder, folder, copy_function=shutil.copy)
    for path in [folder, *folder.iterdir()]:
        path.chmod(0o755)
    record = dict(np.load(case.path("traj.npz")))
    with working_in(folder), comparing() as compare:
        run(record, compare)
        check_snapshots(case, folder, compare)
        resume(case, record, compare)
        if (case.folder / "train.log").exists():
            check_log((case.folder / "train.log").read_text(), compare)
        if (case.folder / "test.log").exists():
            check_test_log(case, compare)


@contextmanager
def working_in(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def inputs(record: Mapping[str, Any], iteration: int) -> dict[str, torch.Tensor]:
    names = [key.removeprefix("data/") for key in record if key.startswith("data/")]
    return {name: torch.from_numpy(record[f"data/{name}"][iteration]) for name in names}


def run(record: Mapping[str, Any], compare: Comparison) -> None:
    """From the recorded start to the end."""
    solver = Solver("solver.prototxt", weights="init.caffemodel")
    solver.param.display = 0
    solver.param.test_interval = 0
    solver.inputs = lambda iteration: inputs(record, iteration)
    lr = []
    for iteration in range(1, int(record["iters"]) + 1):
        solver.step(1)
        lr.append(solver.rate)
        check_params(solver, record, f"params/{iteration}/", compare)
    compare.array("loss", np.array(solver.losses), record["loss"], TRAJECTORY)
    compare.array("lr", np.array(lr), record["lr"], LEARNING_RATE)


def check_params(solver: Solver, record: Mapping[str, Any], prefix: str, compare: Comparison) -> None:
    for key in [key for key in record if key.startswith(prefix)]:
        layer, _, index = key.removeprefix(prefix).rpartition("/")
        compare.array(key, solver.net.params[layer][int(index)].detach().numpy(), record[key], TRAJECTORY)


def check_snapshots(case: Case, folder: Path, compare: Comparison) -> None:
    """What we wrote on the way equals what Caffe wrote: messages exactly, values within tolerance."""
    kinds: dict[str, Callable[[Path, Path, Comparison], None]] = {
        ".h5": check_h5,
        ".caffemodel": check_models,
        ".solverstate": check_states,
    }
    for path in case.folder.glob("snap_iter_*"):
        ours = folder / path.name
        compare.check(ours.exists(), f"{path.name} was not written")
        if ours.exists():
            kinds[path.suffix](path, ours, compare)


def check_states(theirs: Path, ours: Path, compare: Comparison) -> None:
    a, b = (pb.SolverState.FromString(path.read_bytes()) for path in (theirs, ours))
    check_blobs("history", list(a.history), list(b.history), compare)
    compare.equal(theirs.name, str(b), str(a))


def check_models(theirs: Path, ours: Path, compare: Comparison) -> None:
    """The messages are equal, splits and all."""
    a, b = (pb.NetParameter.FromString(path.read_bytes()) for path in (theirs, ours))
    compare.equal("layers", [layer.name for layer in b.layer], [layer.name for layer in a.layer])
    for old, new in zip(a.layer, b.layer, strict=False):
        check_blobs(old.name, list(old.blobs), list(new.blobs), compare)
        compare.equal(f"layer {old.name}", str(new), str(old))
    for net in (a, b):
        del net.layer[:]
    compare.equal("net", str(b), str(a))
    assert read_net(ours).layer


def check_blobs(what: str, theirs: Sequence[pb.BlobProto], ours: Sequence[pb.BlobProto], compare: Comparison) -> None:
    """Values, which are then removed from the messages."""
    compare.equal(f"blobs of {what}", len(ours), len(theirs))
    for index, (old, new) in enumerate(zip(theirs, ours, strict=False)):
        for part in ("data", "diff"):
            got, want = (np.array(getattr(blob, part), np.float32) for blob in (new, old))
            compare.array(f"{what} {index} {part}", got, want, TRAJECTORY)
            new.ClearField(part)  # type: ignore[arg-type]
            old.ClearField(part)  # type: ignore[arg-type]


def check_h5(theirs: Path, ours: Path, compare: Comparison) -> None:
    """The same groups and datasets, of the same types."""
    with h5py.File(theirs) as a, h5py.File(ours) as b:
        compare.equal(theirs.name, sorted(h5_names(b)), sorted(h5_names(a)))
        for name in h5_names(a):
            old, new = a[name], b.get(name)
            if not isinstance(old, h5py.Dataset) or not isinstance(new, h5py.Dataset):
                continue
            compare.equal(f"{theirs.name}/{name}", (new.dtype, new.shape), (old.dtype, old.shape))
            if old.dtype.kind == "f":
                compare.array(f"{theirs.name}/{name}", new[()], old[()], TRAJECTORY)
            else:
                compare.equal(f"{theirs.name}/{name}", np.asarray(new[()]).tolist(), np.asarray(old[()]).tolist())


def h5_names(file: h5py.File) -> list[str]:
    names: list[str] = []
    file.visit(names.append)
    return names


def resume(case: Case, record: Mapping[str, Any], compare: Comparison) -> None:
    """From the snapshot that Caffe wrote."""
    if "resume/from" not in record:
        return
    start = int(record["resume/from"])
    state = next(path for path in case.folder.glob(f"snap_iter_{start}.solverstate*"))
    solver = Solver("solver.prototxt", restore=state)
    solver.param.display = solver.param.test_interval = solver.param.snapshot = 0
    solver.inputs = lambda iteration: inputs(record, iteration)
    lr = []
    for _ in range(start, int(record["iters"])):
        solver.step(1)
        lr.append(solver.rate)
    compare.equal("iteration", solver.iter, int(record["iters"]))
    compare.array("resume/loss", np.array(solver.losses), record["resume/loss"], TRAJECTORY)
    compare.array("resume/lr", np.array(lr), record["resume/lr"], LEARNING_RATE)
    check_params(solver, record, f"resume/params/{solver.iter}/", compare)


def check_log(text: str, compare: Comparison) -> None:
    """The lines of `caffe train`, in form and figures."""
    lines: list[str] = []
    Solver("solver.prototxt", weights="init.caffemodel", log=lines.append).solve()
    wanted = [TIMING.sub("", line.partition("] ")[2]) for line in text.splitlines()]
    got = [TIMING.sub("", line.partition("\n")[0]) for line in lines]
    same_lines(got, wanted, compare)


def check_test_log(case: Case, compare: Comparison) -> None:
    """The lines of `caffe test` on the snapshot."""
    text = (case.folder / "test.log").read_text()
    count = int(re.findall(r"Running for (\d+) iterations", text)[0])
    weights = next(case.folder.glob("snap_iter_*.caffemodel*"))
    wanted = [line.partition("] ")[2] for line in text.splitlines()]
    same_lines(list(score(load("net.prototxt", weights, strict=False), count)), wanted, compare)


def same_lines(got: Sequence[str], wanted: Sequence[str], compare: Comparison) -> None:
    compare.equal("log lines", [FIGURE.sub("#", line) for line in got], [FIGURE.sub("#", line) for line in wanted])
    for mine, line in zip(got, wanted, strict=False):
        pairs = zip(FIGURE.findall(mine), FIGURE.findall(line), strict=False)
        for a, b in pairs:
            compare.array(f"figure in {line!r}", np.array(float(a)), np.array(float(b)), TRAJECTORY)
