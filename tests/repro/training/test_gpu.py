"""What only a CUDA device can show."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from repro.training import session as sessions
from repro.training.group import Group
from tests.repro.training.tiny import settings, write_images, write_net

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def on_gpu() -> Group:
    return Group(device=torch.device("cuda", 0))


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_it_learns_there(precision: str, tmp_path: Path) -> None:
    write_net(tmp_path)
    write_images(tmp_path)
    made = settings(tmp_path, max_epochs=25, patience=100, rate=0.0003, precision=precision, channels_last=True)
    outcome = sessions.run(sessions.prepare(made, on_gpu()), tmp_path / "run")
    assert outcome.best.best > 0.8


def test_pixels_are_prepared_there_as_here(tmp_path: Path) -> None:
    """The same images, and with float32 nearly the same losses."""
    write_net(tmp_path)
    write_images(tmp_path)
    made = settings(tmp_path, max_iter=3)
    ends = []
    for group in (Group(), on_gpu()):
        outcome = sessions.run(sessions.prepare(made, group), tmp_path / f"run-{group.device.type}")
        assert outcome.last
        ends.append(outcome.last.loss)
    assert ends[1] == pytest.approx(ends[0], rel=1e-2)
