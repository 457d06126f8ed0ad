"""Solver states: looked at, and their histories as arrays."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from caffe_compat.errors import VggcError
from caffe_compat.schema import pb
from caffe_compat.solvers.snapshot import State, read_state, write_state, write_state_h5
from converters.inspect import inspect
from repro.cli import run

HISTORY = [
    np.random.default_rng(i).normal(size=size).astype(np.float32) for i, size in enumerate([(4, 3, 3), (4,), ()])
]


@pytest.fixture(params=["solverstate", "solverstate.h5"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / f"net_iter_7.{request.param}"
    (write_state_h5 if path.suffix == ".h5" else write_state)(path, State(7, 2, "net_iter_7.caffemodel", HISTORY))
    return path


def test_a_state_is_shown(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(source)]) == 0
    out = capsys.readouterr().out
    assert "history 0" in out
    assert "4x3x3" in out
    assert "iter 7" in out
    assert "learned_net net_iter_7.caffemodel" in out
    found = inspect(source)
    assert (found.format, found.parameters) == ("solverstate", 41)
    assert [row.params for row in found.rows] == [((4, 3, 3),), ((4,),), ((),)]


def test_histories_become_arrays(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    targets = [tmp_path / f"out.{kind}" for kind in ("npz", "safetensors", "h5", "solverstate")]
    assert run(["convert", str(source), *map(str, targets), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["notes"] == ["iteration 7, step 2, 3 history blobs"]
    with np.load(targets[0]) as arrays:
        assert (int(arrays["iter"]), int(arrays["current_step"])) == (7, 2)
        found = [[arrays[f"history.{i}"] for i in range(3)]]
    tensors = load_file(targets[1])
    found.append([tensors[f"history.{i}"] for i in range(3)])
    with safe_open(targets[1], "np") as file:
        assert file.metadata()["learned_net"] == "net_iter_7.caffemodel"
    for target in targets[2:]:
        state = read_state(target)
        assert (state.iteration, state.step, state.learned_net) == (7, 2, "net_iter_7.caffemodel")
        found.append(list(state.history))
    for each in found:
        for got, want in zip(each, HISTORY, strict=True):
            np.testing.assert_array_equal(got, want, strict=True)


@pytest.mark.parametrize("target", ["out.npy", "out.onnx", ""])
def test_other_targets_are_refused(target: str, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["convert", str(source), *([str(source.with_name(target))] if target else [])]) == 1
    assert ".npz, .safetensors, .h5, .solverstate" in capsys.readouterr().err


def test_nothing_is_overwritten(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out.npz").write_text("mine")
    assert run(["convert", str(source), str(tmp_path / "out.npz")]) == 1
    assert (tmp_path / "out.npz").read_text() == "mine"
    assert "--force" in capsys.readouterr().err
    assert run(["convert", str(source), str(tmp_path / "out.npz"), "--force"]) == 0


# -- hostile files ---------------------------------------------------------------------------------------------


def state_h5(path: Path, change: Callable[[h5py.File], object]) -> None:
    write_state_h5(path, State(1, 0, "", HISTORY))
    with h5py.File(path, "a") as file:
        change(file)


def outside(file: h5py.File) -> None:
    del file["history"]["1"]
    file["history"]["1"] = h5py.ExternalLink("other.h5", "/x")


def elsewhere(file: h5py.File) -> None:
    del file["history"]["1"]
    file["history"].create_dataset("1", (4,), "f4", external=[("secret.bin", 0, 16)])


def far_too_large(file: h5py.File) -> None:
    del file["history"]["1"]
    file["history"].create_dataset("1", (2**40,), "f4", chunks=(1024,))


def no_group(file: h5py.File) -> None:
    del file["history"]
    file["history"] = 3


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (outside, "is a ExternalLink, which is not followed"),
        (elsewhere, "lie in another file"),
        (far_too_large, "claims far more than the file can hold"),
        (no_group, "not a solver state"),
        (lambda file: file.__delitem__("iter"), "not a solver state"),
    ],
)
def test_files_that_reach_out_or_claim_too_much(
    change: Callable[[h5py.File], object], what: str, tmp_path: Path
) -> None:
    (tmp_path / "secret.bin").write_bytes(bytes(16))
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = np.ones(4, np.float32)
    state_h5(tmp_path / "a.solverstate.h5", change)
    with pytest.raises(VggcError, match=what):
        read_state(tmp_path / "a.solverstate.h5")


@pytest.mark.parametrize(
    "data",
    [
        b"\xff" * 40,
        struct.pack("<Q", 2**62),
        pb.SolverState(history=[pb.BlobProto(shape=pb.BlobShape(dim=[2**62]), data=[1])]).SerializeToString(),
        pb.SolverState(history=[pb.BlobProto(shape=pb.BlobShape(dim=[-1]), data=[1])]).SerializeToString(),
    ],
)
def test_damaged_states(data: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.solverstate").write_bytes(data)
    assert run(["convert", str(tmp_path / "a.solverstate"), str(tmp_path / "a.npz")]) == 1
    assert run(["inspect", str(tmp_path / "a.solverstate")]) == 1
    assert "internal error" not in capsys.readouterr().err
    assert not (tmp_path / "a.npz").exists()
