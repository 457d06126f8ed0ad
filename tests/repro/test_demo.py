"""The demonstration: the old model that it writes, and its verdict."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from caffe_compat.schema import pb
from repro import demo


def test_model_is_of_generation_v1(tmp_path: Path) -> None:
    demo.write_model(tmp_path / "a.caffemodel")
    net = pb.NetParameter.FromString((tmp_path / "a.caffemodel").read_bytes())
    assert len(net.layers) == 29
    assert not net.layer
    assert (list(net.input), list(net.input_dim)) == (["data"], [10, 3, 32, 32])
    blobs = {layer.name: layer.blobs for layer in net.layers if layer.blobs}
    assert not any(blob.HasField("shape") for each in blobs.values() for blob in each)
    sizes = [(b.num, b.channels, b.height, b.width) for b in (*blobs["conv1_1"], *blobs["fc6"])]
    assert sizes == [(16, 3, 3, 3), (1, 1, 1, 16), (1, 1, 256, 128), (1, 1, 1, 256)]


def test_model_is_reproducible(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        demo.write_model(tmp_path / name, seed)
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert a == b != c


def test_runs_and_agrees(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main(tmp_path / "demo") == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "the engines agree" in out
    assert all(f" {blob} " in out for blob in ("conv1_1", "pool5", "fc6", "prob"))
    names = {path.name for path in (tmp_path / "demo").iterdir()}
    assert names == {"digits.caffemodel", *(f"digits.{name}" for name in demo.FORMATS)}
    assert demo.main(tmp_path / "demo") == 0, "a second run replaces the files"


def test_a_difference_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = demo.run_onnx

    def wrong(path: Path, inputs: dict[str, demo.Array], names: list[str]) -> dict[str, demo.Array]:
        return {name: value + np.float32(name == "prob") for name, value in right(path, inputs, names).items()}

    monkeypatch.setattr(demo, "run_onnx", wrong)
    assert demo.main(tmp_path) == 1
    assert "the engines DIFFER" in capsys.readouterr().out
