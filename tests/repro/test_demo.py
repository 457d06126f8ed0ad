"""The demonstration: the old model that it writes, and its verdict."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from caffe_compat.schema import pb
from caffe_compat.weight_files import read_weights
from caffe_compat.weights import Weights
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


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    path = tmp_path_factory.mktemp("weights") / "a.caffemodel"
    demo.write_model(path, seed=3)
    return read_weights(path)


def test_model_takes_given_weights(weights: Weights, tmp_path: Path) -> None:
    demo.write_model(tmp_path / "b", 4, weights)
    written = {layer.name: layer.blobs for layer in read_weights(tmp_path / "b")}
    for layer in weights:
        for mine, theirs in zip(layer.blobs, written[layer.name], strict=True):
            np.testing.assert_array_equal(mine.values, theirs.values)


def test_runs_and_agrees(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, quick = tmp_path / "demo", ("--max-iter", "5", "--workers", "1", "--device", "cpu")
    assert demo.main(folder, quick) == 0
    out, _ = capsys.readouterr()
    assert "the engines agree" in out
    assert all(f" {blob} " in out for blob in ("conv1_1", "pool5", "fc6", "prob"))
    assert all(f" {protocol} " in out for protocol in demo.PROTOCOLS)
    assert "359 images; errors in per cent with 95% intervals" in out
    names = {path.name for path in folder.iterdir()}
    assert names >= {"run", "digits.caffemodel", "digits_2014.caffemodel", "digits_2014_v2.prototxt", "predictions.png"}
    assert names >= {f"digits.{name}" for name in demo.FORMATS}
    assert len(list(folder.glob("*.png"))) >= 3
    assert (folder / "predictions.png").read_bytes().startswith(b"\x89PNG")
    trained, old = (read_weights(folder / f"{name}.caffemodel") for name in ("digits", "digits_2014"))
    theirs = {layer.name: layer.blobs for layer in old}
    for layer in trained:
        for mine, other in zip(layer.blobs, theirs[layer.name] if layer.blobs else (), strict=True):
            np.testing.assert_array_equal(mine.values, other.values)
    assert demo.main(folder, quick) == 0, "a second run replaces the files"


def test_a_difference_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = demo.run_onnx

    def wrong(path: Path, inputs: dict[str, demo.Array], names: list[str]) -> dict[str, demo.Array]:
        return {name: value + np.float32(name == "prob") for name, value in right(path, inputs, names).items()}

    monkeypatch.setattr(demo, "run_onnx", wrong)
    assert demo.main(tmp_path, ("--max-iter", "1", "--workers", "1", "--device", "cpu")) == 1
    assert "the engines DIFFER" in capsys.readouterr().out
