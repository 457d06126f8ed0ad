"""`vggc train` and `vggc test`."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from caffe_compat.solvers.commands import interruptible
from caffe_compat.solvers.snapshot import read_state
from repro.cli import run

NET = """
layer { name: "d" type: "HDF5Data" top: "x" top: "y" hdf5_data_param { source: "list.txt" batch_size: 4 } }
layer { name: "ip" type: "InnerProduct" bottom: "x" top: "ip"
  inner_product_param { num_output: 3 weight_filler { type: "xavier" } } }
layer { name: "acc" type: "Accuracy" bottom: "ip" bottom: "y" top: "acc" include { phase: TEST } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "y" top: "loss" }
"""
SOLVER = """net: "net.prototxt" base_lr: 0.1 lr_policy: "fixed" display: 5 snapshot_prefix: "run" random_seed: 1
test_iter: 2 test_interval: 10 """


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A net, a solver and its data."""
    generator = np.random.default_rng(0)
    with h5py.File(tmp_path / "data.h5", "w") as file:
        file["x"] = generator.standard_normal((16, 5)).astype(np.float32)
        file["y"] = generator.integers(0, 3, 16).astype(np.float32)
    (tmp_path / "list.txt").write_text("data.h5\n")
    (tmp_path / "net.prototxt").write_text(NET)
    (tmp_path / "solver.prototxt").write_text(SOLVER + "max_iter: 20")
    (tmp_path / "endless.prototxt").write_text(SOLVER + "max_iter: 100000000")
    return tmp_path


def vggc(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "repro", *words], cwd=cwd, capture_output=True, text=True, timeout=240)


def test_train_resume_and_test(folder: Path) -> None:
    done = vggc("train", "solver.prototxt", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^trained at iteration 20, loss \d", done.stdout)
    assert "Iteration 10, Testing net (#0)" in done.stderr
    assert re.search(r"^I\d{4} \d\d:\d\d:\d\d\.\d{6} +\d+ \S+\] +Train net output #0: loss = ", done.stderr, re.M)
    (folder / "longer.prototxt").write_text(SOLVER + "max_iter: 25")
    more = vggc("train", "longer.prototxt", "--snapshot", "run_iter_20.solverstate", cwd=folder)
    assert "trained at iteration 25" in more.stdout, more.stderr
    tested = vggc("test", "net.prototxt", "--weights", "run_iter_25.caffemodel", "--iterations", "2", cwd=folder)
    assert tested.returncode == 0, tested.stderr
    assert [line.split(" = ")[0] for line in tested.stdout.splitlines()][-3:-1] == [
        next(line for line in tested.stdout.splitlines() if line.startswith("Loss: ")),
        "acc",
    ]


def test_interrupt_writes_a_snapshot(folder: Path) -> None:
    command = [sys.executable, "-m", "repro", "train", "endless.prototxt"]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if "Iteration 10," in line:
            break
    os.kill(process.pid, signal.SIGINT)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    iteration = int(re.findall(r"stopped at iteration (\d+)", out)[0])
    assert read_state(folder / f"run_iter_{iteration}.solverstate").iteration == iteration


def started(folder: Path, solver: str, until: str) -> subprocess.Popen[str]:
    """`vggc train`, once it has said something."""
    command = [sys.executable, "-m", "repro", "train", solver]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(process, until)
    return process


def wait_for(process: subprocess.Popen[str], text: str) -> None:
    assert process.stderr is not None
    assert any(text in line for line in process.stderr), f"never said {text}"


def test_second_interrupt_ends_the_process_at_once(folder: Path) -> None:
    (folder / "slow.prototxt").write_text(SOLVER + "max_iter: 9 test_initialization: false iter_size: 100000000")
    process = started(folder, "slow.prototxt", "Learning Rate Policy")
    process.send_signal(signal.SIGINT)
    wait_for(process, "stopping after this update")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert "Traceback" not in err
    assert not list(folder.glob("run_iter*"))


def test_hangup_writes_a_snapshot_and_goes_on(folder: Path) -> None:
    process = started(folder, "endless.prototxt", "Iteration 10 ")
    process.send_signal(signal.SIGHUP)
    wait_for(process, "Snapshotting solver state")
    wait_for(process, "Train net output")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    assert process.returncode == 0
    assert len(list(folder.glob("run_iter_*.solverstate"))) == 2


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder, and the test runs in it."""
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.usefixtures("here")
def test_summaries_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "solver.prototxt", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["finished"], found["iteration"], found["snapshot"]) == (True, 20, "run_iter_20.solverstate")
    assert set(found["tests"][0]) == {"acc", "loss"}
    assert run(["test", "net.prototxt", "--weights", "run_iter_20.caffemodel", "--iterations", "4", "--json"]) == 0
    scored = json.loads(capsys.readouterr().out)
    assert scored["iterations"] == 4
    assert scored["outputs"]["loss"][0] == pytest.approx(scored["loss"])


def test_weights_of_several_files(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        (here / f"{name}.prototxt").write_text(SOLVER.replace('"run"', f'"{name}"') + "max_iter: 1")
        assert run(["train", f"{name}.prototxt"]) == 0
    capsys.readouterr()
    assert run(["train", "solver.prototxt", "--weights", "a_iter_1.caffemodel, b_iter_1.caffemodel"]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "Finetuning from" in line]
    assert [line.rpartition(" ")[2] for line in said] == ["a_iter_1.caffemodel", "b_iter_1.caffemodel"] * 2


@pytest.mark.usefixtures("here")
def test_unknown_device_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "solver.prototxt", "--device", "abacus"]) == 1
    assert 'device "abacus" cannot be used' in capsys.readouterr().err


def test_second_interrupt_stops_at_once() -> None:
    before = signal.getsignal(signal.SIGINT)
    with interruptible() as stopped:
        assert not stopped()
        signal.raise_signal(signal.SIGINT)
        assert stopped()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == before


def test_weights_and_snapshot_exclude_each_other(folder: Path) -> None:
    done = vggc("train", "solver.prototxt", "--weights", "a", "--snapshot", "b", cwd=folder)
    assert done.returncode == 2


def test_missing_net_is_said(folder: Path) -> None:
    (folder / "net.prototxt").unlink()
    done = vggc("train", "solver.prototxt", cwd=folder)
    assert done.returncode == 1
    assert "net.prototxt: no such file" in done.stderr
    assert "Traceback" not in done.stderr
