"""The solver's own rules and refusals; its figures are compared with Caffe's in tests/parity."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import caffe_compat as cc
from caffe_compat.errors import VggcError
from caffe_compat.schema import pb
from caffe_compat.solvers import rates

NET = """
name: "line"
layer { name: "in" type: "Input" top: "x" top: "y" input_param { shape { dim: 4 dim: 3 } shape { dim: 4 dim: 1 } } }
layer { name: "ip" type: "InnerProduct" bottom: "x" top: "ip" inner_product_param { num_output: 1
  weight_filler { type: "constant" value: 0.5 } } }
layer { name: "loss" type: "EuclideanLoss" bottom: "ip" bottom: "y" top: "loss" }
"""
SOLVER = 'net: "net.prototxt" base_lr: 0.1 lr_policy: "fixed" momentum: 0.9 max_iter: 6 snapshot_prefix: "s" '
GENERATOR = torch.Generator().manual_seed(0)
DATA = {"x": torch.randn(4, 3, generator=GENERATOR), "y": torch.randn(4, 1, generator=GENERATOR)}


def make(folder: Path, extra: str = "", **more: object) -> cc.Solver:
    (folder / "net.prototxt").write_text(NET)
    (folder / "solver.prototxt").write_text(SOLVER + extra)
    solver = cc.Solver(folder / "solver.prototxt", **more)  # type: ignore[arg-type]
    solver.inputs = DATA
    return solver


def test_momentum_keeps_the_rate_inside(tmp_path: Path) -> None:
    solver = make(tmp_path)
    weight = solver.net.params["ip"][0]
    before = weight.detach().clone()
    solver.step(1)
    torch.testing.assert_close(solver.history[0], before - weight.detach())
    first = solver.history[0].clone()
    solver.step(1)
    gradient = weight.grad
    assert gradient is not None
    torch.testing.assert_close(solver.history[0], 0.9 * first + 0.1 * gradient)


def test_loss_falls_and_is_recorded(tmp_path: Path) -> None:
    solver = make(tmp_path)
    solver.solve()
    assert solver.iter == 6
    assert len(solver.losses) == 6
    assert solver.losses[-1] < solver.losses[0]


@pytest.mark.parametrize("snapshot_format", ["BINARYPROTO", "HDF5"])
def test_resumed_run_is_the_same(tmp_path: Path, snapshot_format: str) -> None:
    extra = f"snapshot: 3 snapshot_format: {snapshot_format}"
    whole = make(tmp_path, extra)
    whole.solve()
    state = next(tmp_path.glob("s_iter_3.solverstate*"))
    again = make(tmp_path, extra, restore=state)
    assert again.iter == 3
    again.step(3)
    for a, b in zip(whole.net.params["ip"], again.net.params["ip"], strict=True):
        assert torch.equal(a, b)


def test_test_nets_use_the_very_parameters(tmp_path: Path) -> None:
    lines: list[str] = []
    solver = make(tmp_path, "test_iter: 2 test_interval: 2", log=lines.append)
    assert solver.test_nets[0].params["ip"][0] is solver.net.params["ip"][0]
    solver.step(3)
    assert [line for line in lines if "Testing" in line] == [
        "Iteration 0, Testing net (#0)",
        "Iteration 2, Testing net (#0)",
    ]


def test_tests_end_early(tmp_path: Path) -> None:
    lines: list[str] = []
    solver = make(tmp_path, "test_iter: 5 test_iter: 5 test_interval: 2", log=lines.append)
    asked = iter(range(100))
    solver.step(6, lambda: next(asked) == 14)  # two tests of two nets and two updates would ask 22 times
    assert (solver.iter, len(solver.test_scores)) == (2, 2)
    assert lines[-1] == "Test interrupted."
    assert lines[-2] == "Iteration 2, Testing net (#0)"


def test_snapshot_is_written_when_asked_for(tmp_path: Path) -> None:
    solver = make(tmp_path, "test_iter: 1 test_interval: 4")
    solver.ask_for_snapshot()
    solver.step(1)  # within the test before the first update
    solver.ask_for_snapshot()
    solver.step(2)
    names = sorted(path.name for path in tmp_path.glob("*.solverstate"))
    assert names == ["s_iter_0.solverstate", "s_iter_2.solverstate"]


def test_frozen_layer_stays(tmp_path: Path) -> None:
    solver = make(tmp_path)
    for item in solver._learnable:
        item.lr_mult = 0.0
    before = [p.detach().clone() for p in solver.net.params["ip"]]
    solver.step(2)
    assert all(torch.equal(a, b) for a, b in zip(before, solver.net.params["ip"], strict=True))


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("lr_policy: 'fixed'", [1, 1, 1, 1, 1]),
        ("lr_policy: 'step' gamma: 0.5 stepsize: 2", [1, 1, 0.5, 0.5, 0.25]),
        ("lr_policy: 'exp' gamma: 0.5", [1, 0.5, 0.25, 0.125, 0.0625]),
        ("lr_policy: 'inv' gamma: 1 power: 1", [1, 1 / 2, 1 / 3, 1 / 4, 1 / 5]),
        ("lr_policy: 'multistep' gamma: 0.5 stepvalue: 1 stepvalue: 1", [1, 0.5, 0.25, 0.25, 0.25]),
        ("lr_policy: 'poly' power: 2 max_iter: 4", [1, 9 / 16, 1 / 4, 1 / 16, 0]),
        ("lr_policy: 'sigmoid' gamma: 1 stepsize: 2", [1 / (1 + np.exp(2 - i)) for i in range(5)]),
    ],
)
def test_rates(policy: str, expected: list[float]) -> None:
    from google.protobuf import text_format

    param = text_format.Parse("base_lr: 1 " + policy, pb.SolverParameter())
    step, got = 0, []
    for iteration in range(5):
        step = rates.next_step(param, iteration, step)
        got.append(rates.rate(param, iteration, step))
    np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ('type: "Adams"', "unknown solver type"),
        ('type: "AdaGrad"', "no momentum"),
        ('regularization_type: "L3"', "regularization_type"),
        ("average_loss: 0", "average_loss"),
        ("test_iter: 1", "test_interval"),
        ('train_net: "net.prototxt"', "names 2 train nets"),
    ],
)
def test_refusals(tmp_path: Path, extra: str, message: str) -> None:
    with pytest.raises(VggcError, match=message) as error:
        make(tmp_path, extra)
    assert error.value.remedy


def test_unknown_policy(tmp_path: Path) -> None:
    (tmp_path / "net.prototxt").write_text(NET)
    (tmp_path / "solver.prototxt").write_text(SOLVER.replace("fixed", "fast"))
    with pytest.raises(VggcError, match='unknown lr_policy "fast"'):
        cc.Solver(tmp_path / "solver.prototxt")


def test_state_of_another_net(tmp_path: Path) -> None:
    state = make(tmp_path).snapshot()
    solver = make(tmp_path, 'type: "Adam"')
    with pytest.raises(VggcError, match="2 history blobs, but the solver keeps 4"):
        solver.restore(state)


def test_damaged_state(tmp_path: Path) -> None:
    state = make(tmp_path).snapshot()
    state.write_bytes(state.read_bytes()[:-7])
    with pytest.raises(VggcError, match="not a solver state"):
        make(tmp_path, restore=state)


def test_missing_inputs_are_named(tmp_path: Path) -> None:
    solver = make(tmp_path)
    solver.inputs = {}
    with pytest.raises(VggcError, match="the net takes x, y"):
        solver.step(1)
