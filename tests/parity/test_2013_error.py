"""Nets, solvers and weights that the commit of December 2013 refuses: refused at that stage or before."""

from __future__ import annotations

import numpy as np

from caffe_compat.errors import VggcError
from caffe_compat.module import Net
from caffe_compat.solvers import Solver
from tests.parity.cases import Case, Folders, dec2013_cases, read_json
from tests.parity.compare import comparing
from tests.parity.dec2013 import load_2013
from tests.parity.nets import gradients, tensor
from tests.parity.test_solvers import working_in


def cases(folders: Folders) -> list[Case]:
    return dec2013_cases(folders, "error")


def test_2013_error(case: Case) -> None:
    expected = read_json(case.path("expected.json"))
    stage = expected.get("stage", case.entry.get("stage"))
    weights = case.folder / "weights"
    with comparing() as compare:
        try:
            if stage == "solver":
                with working_in(case.folder):
                    Solver("solver.prototxt", profile="dec2013").step(1)
            else:
                net = load_2013(case, weights=weights if weights.exists() else None)
                if stage in ("forward", "backward"):
                    run(net, backward=stage == "backward")
        except VggcError as error:
            compare.check(bool(expected.get("fatal", True)), f"refused: {error}")
            compare.check(bool(str(error)), "an error without text")
        else:
            compare.check(not expected.get("fatal", True), f"no error up to {stage}; Caffe: {expected['message']}")


def run(net: Net, *, backward: bool) -> None:
    """Forward on zeros, and the whole net backward."""
    inputs = {blob: tensor(np.zeros(shape)).requires_grad_(backward) for blob, shape in net.inputs.items()}
    trace = net.trace(inputs)
    if backward:
        total = trace.loss + sum(trace.blobs[blob].sum() for blob in net.outputs)
        gradients(total, [*inputs.values(), *net.parameters()])
