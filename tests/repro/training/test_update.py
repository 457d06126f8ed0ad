"""The update is that of Caffe's SGD, as `caffe_compat.solvers` has it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from caffe_compat.solvers import Solver
from tests.repro.training.tiny import NET, Fixture

MULTIPLIED = NET.replace(
    'top: "conv1"\n', 'top: "conv1" param { lr_mult: 0.5 decay_mult: 2 } param { lr_mult: 2 decay_mult: 0 }\n'
).replace('top: "fc2" inner', 'top: "fc2" param { lr_mult: 0 } inner')
SOLVER = 'net: "net.prototxt" lr_policy: "fixed" base_lr: 0.01 momentum: 0.9 weight_decay: 0.05 max_iter: 9 '


@pytest.mark.parametrize("text", [NET, MULTIPLIED], ids=["plain", "multipliers"])
def test_equals_the_solver(text: str, tmp_path: Path) -> None:
    assert text == NET or "decay_mult: 2" in text
    text = text.replace('layer { name: "drop" type: "Dropout" bottom: "fc1" top: "fc1" }', "")
    it = Fixture(tmp_path, micro=8, text=text, weight_decay=0.05)
    (tmp_path / "solver.prototxt").write_text(SOLVER)
    net = text.replace(
        'layer { name: "prob" type: "Softmax" bottom: "fc2" top: "prob" }',
        'layer { name: "l" type: "Input" top: "label" input_param { shape { dim: 1 } } }'
        'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "fc2" bottom: "label" top: "loss" }',
    )
    (tmp_path / "net.prototxt").write_text(net)
    solver = Solver(tmp_path / "solver.prototxt")
    with torch.no_grad():
        for mine, theirs in zip(solver.net.owned.values(), it.update.blobs, strict=True):
            mine.copy_(theirs)
    solver.inputs = lambda iteration: {"data": it.batch(iteration).images, "label": it.batch(iteration).labels}
    for batch in it.batches(9):
        it.passes(batch)
        it.passes.update(0.01)
    solver.step(9)
    for mine, theirs in zip(it.update.blobs, solver.net.owned.values(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-7)
    for mine, theirs in zip(it.update.history, solver.history, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-7)
