"""The lines of debug_info, against sums by hand."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

import caffe_compat as cc

NET = """
name: "n"
layer { name: "in" type: "Input" top: "x" top: "y" input_param { shape { dim: 4 dim: 3 } shape { dim: 4 } } }
layer { name: "a" type: "InnerProduct" bottom: "x" top: "a" param { name: "w" } param { lr_mult: 0 }
  inner_product_param { num_output: 3 weight_filler { type: "xavier" } } }
layer { name: "r" type: "ReLU" bottom: "a" top: "a" }
layer { name: "b" type: "InnerProduct" bottom: "a" top: "b" param { name: "w" }
  inner_product_param { num_output: 3 weight_filler { type: "xavier" } } }
layer { name: "s" type: "Eltwise" bottom: "a" bottom: "b" top: "s" }
layer { name: "acc" type: "Accuracy" bottom: "s" bottom: "y" top: "acc" include { phase: TEST } }
layer { name: "loss" type: "EuclideanLoss" bottom: "s" bottom: "x" }
"""
SOLVER = """net: "net.prototxt" base_lr: 0.1 lr_policy: "fixed" display: 2 debug_info: true snapshot_prefix: "s"
test_iter: 1 test_interval: 4 """
X = np.random.default_rng(1).standard_normal((4, 3)).astype(np.float32)


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def solver(tmp_path: Path, lines: list[str]) -> cc.Solver:
    (tmp_path / "net.prototxt").write_text(NET)
    (tmp_path / "solver.prototxt").write_text(SOLVER)
    made = cc.Solver(tmp_path / "solver.prototxt", log=lines.append)
    made.inputs = {"x": torch.from_numpy(X), "y": torch.zeros(4)}
    lines.clear()
    return made


def by_hand(w: np.ndarray, bias: np.ndarray) -> dict[str, np.ndarray]:
    """Every value that a pass computes, blobs under their own names and diffs of layers under theirs."""
    a = X @ w.T
    r = np.maximum(a, 0)
    b = r @ w.T + bias
    s = r + b
    ds = (s - X) / 4
    dr = ds + ds @ w
    da = dr * (a > 0)
    dw_b, dw = ds.T @ r, ds.T @ r + da.T @ X
    return {"a": a, "r": r, "b": b, "s": s, "ds": ds, "ds_b": ds @ w, "dr": dr, "da": da, "dw_b": dw_b, "dw": dw}


def test_forward_and_backward(solver: cc.Solver, lines: list[str]) -> None:
    w, bias = (blob.detach().numpy().copy() for blob in solver.net.params["b"])
    v = by_hand(w, bias)
    loss = ((v["s"] - X) ** 2).sum() / 8
    solver.step(1)
    norms = [np.abs(w).sum(), np.abs(v["dw"]).sum() + np.abs(v["ds"].sum(0)).sum()]
    squares = [(w**2).sum(), (v["dw"] ** 2).sum() + (v["ds"].sum(0) ** 2).sum()]
    expected = [
        *forward("in", x=X, y=np.zeros(1)),
        *forward("x_in_0_split", x_in_0_split_0=X, x_in_0_split_1=X),
        *forward("a", a=v["a"]),
        "    [Forward] Layer a, param blob w data: #",
        "    [Forward] Layer a, param blob 1 data: #",
        *forward("r", a=v["r"]),
        *forward("a_r_0_split", a_r_0_split_0=v["r"], a_r_0_split_1=v["r"]),
        *forward("b", b=v["b"]),
        "    [Forward] Layer b, param blob w data: #",
        "    [Forward] Layer b, param blob 1 data: #",
        *forward("s", s=v["s"]),
        f"    [Forward] Layer loss, top blob (automatic) data: {loss:g}",
        *backward("loss", s=v["ds"]),
        *backward("s", a_r_0_split_1=v["ds"], b=v["ds"]),
        *backward("b", a_r_0_split_0=v["ds_b"]),
        f"    [Backward] Layer b, param blob 0 diff: {np.abs(v['dw_b']).mean():g}",
        f"    [Backward] Layer b, param blob 1 diff: {np.abs(v['ds'].sum(0)).mean():g}",
        *backward("a_r_0_split", a=v["dr"]),
        *backward("r", a=v["da"]),
        f"    [Backward] Layer a, param blob 0 diff: {np.abs(v['dw']).mean():g}",
        f"    [Backward] All net params (data, diff): L1 norm = ({norms[0]:g}, {norms[1]:g}); "
        f"L2 norm = ({squares[0] ** 0.5:g}, {squares[1] ** 0.5:g})",
    ]
    start = lines.index("Iteration 0, Testing net (#0)")
    found = [line for line in lines[start:] if line.startswith("    [")]
    same(found[len(found) - len(expected) :], expected)


def forward(layer: str, **tops: np.ndarray) -> list[str]:
    return [f"    [Forward] Layer {layer}, top blob {name} data: {np.abs(x).mean():g}" for name, x in tops.items()]


def backward(layer: str, **bottoms: np.ndarray) -> list[str]:
    return [
        f"    [Backward] Layer {layer}, bottom blob {name} diff: {np.abs(x).mean():g}" for name, x in bottoms.items()
    ]


FIGURE = re.compile(r"(?<=[ (])-?\d[\d.e+-]*(?=[,);]|$)")


def same(found: list[str], expected: list[str]) -> None:
    """Lines, their figures to five digits; # stands for any figure."""
    assert [FIGURE.sub("#", line) for line in found] == [FIGURE.sub("#", line) for line in expected]
    for a, b in zip(found, expected, strict=True):
        if "#" not in b:
            got, want = ([float(figure) for figure in FIGURE.findall(line)] for line in (a, b))
            assert got == pytest.approx(want, rel=2e-5, abs=1e-9), a


def test_only_where_something_is_displayed(solver: cc.Solver, lines: list[str]) -> None:
    solver.step(4)
    assert sum("[Backward] All net params" in line for line in lines) == 2


def test_tests_go_forward_only(solver: cc.Solver, lines: list[str]) -> None:
    solver.test_all()
    found = [line for line in lines if line.startswith("    [")]
    assert any("Layer acc, top blob acc" in line for line in found)
    assert not any("Backward" in line for line in found)


def test_gradients_of_several_passes_add_up(solver: cc.Solver, lines: list[str]) -> None:
    solver.param.iter_size = 2
    solver.step(1)
    figures = [float(line.rpartition(" ")[2]) for line in lines if "Layer a, param blob 0 diff" in line]
    assert figures[1] == pytest.approx(2 * figures[0], rel=1e-5)


def test_training_is_the_same(solver: cc.Solver) -> None:
    solver.step(3)
    w = solver.net.params["b"][0].detach().clone()
    losses = list(solver.losses)
    solver.param.debug_info = False
    again = cc.Solver(solver.path)
    again.param.debug_info = False
    again.inputs = solver.inputs
    again.step(3)
    assert again.losses == pytest.approx(losses, rel=1e-6)
    torch.testing.assert_close(again.net.params["b"][0], w)
