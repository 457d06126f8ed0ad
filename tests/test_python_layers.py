"""`--python-layers DIR`: pycaffe code runs in every command that builds a net, and in none unless it is given."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

import caffe_compat as cc
from repro.cli import run

CODE = """
import caffe


class Gain(caffe.Layer):
    def setup(self, bottom, top):
        self.gain = float(self.param_str)

    def reshape(self, bottom, top):
        top[0].reshape(*bottom[0].shape)

    def forward(self, bottom, top):
        top[0].data[...] = self.gain * bottom[0].data

    def backward(self, top, propagate_down, bottom):
        bottom[0].diff[...] = self.gain * top[0].diff
"""
BODY = """
layer { name: "gain" type: "Python" bottom: "data" top: "gain"
        python_param { module: "gains" layer: "Gain" param_str: "0.5" } }
layer { name: "ip" type: "InnerProduct" bottom: "gain" top: "ip"
        inner_product_param { num_output: 3 weight_filler { type: "xavier" } } }
"""
DEPLOY = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 4 dim: 4 } } }
"""
TRAIN = """
layer { name: "d" type: "HDF5Data" top: "data" top: "y" hdf5_data_param { source: "list.txt" batch_size: 4 } }
"""
SOLVER = """net: "train.prototxt" base_lr: 0.1 lr_policy: "fixed" snapshot_prefix: "run" random_seed: 1 max_iter: 3
test_iter: 1 test_interval: 3 solver_mode: CPU"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nets, a solver, data, and the code in "code"."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    with h5py.File("data.h5", "w") as file:
        file["data"] = generator.standard_normal((8, 3, 4, 4)).astype(np.float32)
        file["y"] = generator.integers(0, 3, 8).astype(np.float32)
    Path("list.txt").write_text("data.h5\n")
    Path("code").mkdir()
    Path("code/gains.py").write_text(CODE)
    Path("net.prototxt").write_text(f"{DEPLOY}{BODY}" + 'layer { name: "p" type: "Softmax" bottom: "ip" top: "p" }')
    loss = 'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "y" top: "loss" }'
    Path("train.prototxt").write_text(f"{TRAIN}{BODY}{loss}")
    Path("solver.prototxt").write_text(SOLVER)
    return tmp_path


def said(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    return captured.out + captured.err


def trained(capsys: pytest.CaptureFixture[str]) -> str:
    """The weights that `vggc train` leaves."""
    assert run(["train", "solver.prototxt", "--python-layers", "code"]) == 0
    assert "trained at iteration 3" in said(capsys)
    return "run_iter_3.caffemodel"


def test_without_the_option_nothing_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "code" / "gains.py").write_text("raise SystemExit('it was run')")
    for words in (
        ["inspect", "net.prototxt"],
        ["convert", "net.prototxt", "other.prototxt"],
        ["train", "solver.prototxt"],
    ):
        assert run(words) == 1
        told = said(capsys)
        assert "it was run" not in told
        assert '@caffe_compat.register_layer("gains.Gain")' in told
        assert "--python-layers DIR" in told
        assert "DIR/gains.py is pycaffe code that you trust" in told


@pytest.mark.usefixtures("folder")
def test_a_folder_that_is_not_there_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", "net.prototxt", "--python-layers", "nowhere"]) == 2
    assert "nowhere" in said(capsys)


@pytest.mark.usefixtures("folder")
def test_inspect(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", "net.prototxt", "--python-layers", "code", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["type"] for row in rows] == ["Input", "Python", "InnerProduct", "Softmax"]


@pytest.mark.usefixtures("folder")
def test_train_test_convert_and_verify(capsys: pytest.CaptureFixture[str]) -> None:
    weights, code = trained(capsys), ["--python-layers", "code"]
    assert run(["test", "train.prototxt", "--weights", weights, "--iterations", "1", "--json", *code]) == 0
    assert np.isfinite(json.loads(capsys.readouterr().out)["loss"])
    assert run(["convert", weights, "out.safetensors", "--net", "net.prototxt", *code]) == 0
    said(capsys)
    verify = ["verify", weights, "out.safetensors", "--net-a", "net.prototxt", "--net-b", "net.prototxt", "--json"]
    assert run(verify) == 1
    assert "--python-layers DIR" in said(capsys)
    assert run([*verify, *code]) == 0
    blobs = {row["name"] for row in json.loads(capsys.readouterr().out)["blobs"]}
    assert {"gain", "ip", "p"} <= blobs


@pytest.mark.usefixtures("folder")
def test_extract(capsys: pytest.CaptureFixture[str]) -> None:
    """In another process; the blob is what the class makes of the one before it."""
    cv2 = pytest.importorskip("cv2")
    weights = trained(capsys)
    cv2.imwrite("one.png", np.random.default_rng(1).integers(0, 256, (4, 4, 3)).astype(np.uint8))
    words = ["extract", weights, "one.png", "--net", "net.prototxt", "--blob", "gain", "--blob", "data", "-o", "f.npz"]
    command = [sys.executable, "-m", "repro", *words, "--mean", "0,0,0", "--scales", "4", "--python-layers", "code"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    with np.load("f.npz") as found:
        assert np.ptp(found["data"]) > 0
        np.testing.assert_array_equal(found["gain"], 0.5 * found["data"])


@pytest.mark.usefixtures("folder")
def test_solver_of_the_library() -> None:
    from caffe_compat.solvers import Solver

    solver = Solver("solver.prototxt", python_layers="code")
    solver.solve()
    assert solver.iter == 3
    with pytest.raises(cc.VggcError, match="--python-layers DIR"):
        Solver("solver.prototxt")


@pytest.mark.usefixtures("folder")
def test_train_a_net_by_the_paper(capsys: pytest.CaptureFixture[str]) -> None:
    cv2 = pytest.importorskip("cv2")
    generator = np.random.default_rng(2)
    for name in ("a", "b"):
        Path("images", name).mkdir(parents=True)
        for index in range(8):
            cv2.imwrite(f"images/{name}/{index}.png", generator.integers(0, 256, (6, 6, 3)).astype(np.uint8))
    words = ["train", "net.prototxt", "--data", "images", "--scale", "6", "--batch", "4", "--max-iter", "2", "--json"]
    assert run([*words, "--out", "run"]) == 1
    assert "--python-layers DIR" in said(capsys)
    assert run([*words, "--out", "run", "--python-layers", "code"]) == 0
    assert json.loads(capsys.readouterr().out)["iteration"] == 2
    assert run([*words, "--out", "run", "--python-layers", "code", "--max-iter", "3"]) == 0
    assert json.loads(capsys.readouterr().out)["iteration"] == 3
