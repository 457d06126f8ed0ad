"""A run that was cut off, even by SIGKILL, goes on bit for bit; a snapshot is there whole or not at all."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from safetensors import safe_open

import caffe_compat as cc
from caffe_compat.errors import VggcError
from caffe_compat.solvers import sidecar
from tests.caffe_compat.data.folders import datum, images, png, write_images, write_leveldb

MIDDLE = """
layer { name: "ip" type: "InnerProduct" bottom: "x" top: "ip"
  inner_product_param { num_output: 6 weight_filler { type: "xavier" } } }
layer { name: "drop" type: "Dropout" bottom: "ip" top: "ip" }
layer { name: "out" type: "InnerProduct" bottom: "ip" top: "out"
  inner_product_param { num_output: 40 weight_filler { type: "xavier" } } }
"""
END = 'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "out" bottom: "y" top: "loss" }'
REGRESSION = 'layer { name: "loss" type: "EuclideanLoss" bottom: "out" bottom: "y" top: "loss" }'
TRANSFORM = "transform_param { crop_size: 6 mirror: true scale: 0.01 mean_value: 120 }"
SOLVER = """net: "net.prototxt" base_lr: 0.05 momentum: 0.9 weight_decay: 0.001 lr_policy: "multistep" gamma: 0.5
stepvalue: 3 stepvalue: 9 snapshot_prefix: "run" average_loss: 4 display: 1 """


def data(kind: str, param: str, transform: str = TRANSFORM, tops: str = 'top: "x" top: "y"') -> str:
    return f'layer {{ name: "d" type: "{kind}" {tops} {param} {transform} }}'


def from_lmdb(folder: Path) -> str:
    write_images(folder / "db", images(11, 3, 9, 8))
    return data("Data", 'data_param { source: "db" backend: LMDB batch_size: 4 }') + MIDDLE + END


def from_leveldb(folder: Path) -> str:
    records = {b"%03d" % index: datum(image, index) for index, image in enumerate(images(7, 3, 9, 8))}
    write_leveldb(folder / "db", records)
    return data("Data", 'data_param { source: "db" backend: LEVELDB batch_size: 4 }') + MIDDLE + END


def from_images(folder: Path) -> str:
    for index, image in enumerate(images(7, 3, 9, 8)):
        (folder / f"{index}.png").write_bytes(png(image))
    (folder / "list.txt").write_text("".join(f"{index}.png {index}\n" for index in range(7)))
    param = 'image_data_param { source: "list.txt" batch_size: 4 shuffle: true rand_skip: 3 }'
    return data("ImageData", param) + MIDDLE + END


def from_windows(folder: Path) -> str:
    (folder / "0.png").write_bytes(png(images(1, 3, 30, 30)[0]))
    lines = [f"1 0.9 {k} {k} {k + 12} {k + 9}" for k in range(6)] + [f"0 0.1 {k} 2 {k + 8} 20" for k in range(6)]
    header = f"# 0\n{folder}/0.png\n3\n30\n30\n{len(lines)}\n"
    (folder / "windows.txt").write_text(header + "\n".join(lines) + "\n")
    param = 'window_data_param { source: "windows.txt" batch_size: 8 fg_threshold: 0.5 bg_threshold: 0.5 }'
    return data("WindowData", param, "transform_param { crop_size: 6 mirror: true }") + MIDDLE + END


def from_hdf5(folder: Path) -> str:
    generator = np.random.default_rng(0)
    for name in "ab":
        with h5py.File(folder / f"{name}.h5", "w") as file:
            file["x"] = generator.standard_normal((5, 7), np.float32)
            file["y"] = generator.integers(0, 40, 5).astype(np.float32)
    (folder / "list.txt").write_text("a.h5\nb.h5\n")
    return data("HDF5Data", 'hdf5_data_param { source: "list.txt" batch_size: 3 shuffle: true }', "") + MIDDLE + END


def from_fillers(_folder: Path) -> str:
    fillers = 'shape { dim: 4 dim: 7 } shape { dim: 4 dim: 40 } data_filler { type: "gaussian" std: 0.1 }'
    return data("DummyData", f"dummy_data_param {{ {fillers} }}", "") + MIDDLE + REGRESSION


@pytest.mark.parametrize("net", [from_lmdb, from_leveldb, from_images, from_windows, from_hdf5, from_fillers])
@pytest.mark.parametrize("format_", ["BINARYPROTO", "HDF5"])
def test_resumed_run_is_the_same(tmp_path: Path, net: Callable[[Path], str], format_: str) -> None:
    (tmp_path / "net.prototxt").write_text(net(tmp_path))
    extra = f"max_iter: 14 snapshot: 5 snapshot_format: {format_} test_iter: 1 test_interval: 3 random_seed: 3"
    lines: list[str] = []
    whole = solver(tmp_path, extra, log=lines.append)
    whole.solve()
    torch.manual_seed(77)  # a new process has other numbers than the one that was cut off
    more: list[str] = []
    again = solver(tmp_path, extra, restore=next(tmp_path.glob("run_iter_5.solverstate*")), log=more.append)
    again.solve()
    assert [p.tolist() for p in again.net.parameters()] == [p.tolist() for p in whole.net.parameters()]
    assert again.losses == whole.losses[5:]
    assert said(more) == said(lines)[-len(said(more)) :]
    assert any("Test net output" in line for line in said(more))


def solver(folder: Path, extra: str, **more: object) -> cc.Solver:
    (folder / "solver.prototxt").write_text(SOLVER + extra)
    return cc.Solver(folder / "solver.prototxt", **more)  # type: ignore[arg-type]


def said(lines: list[str]) -> list[str]:
    """Log lines after the set-up, without times."""
    start = next(index for index, line in enumerate(lines) if line.startswith("Learning Rate Policy")) + 1
    return [line.partition(" (")[0] + line.rpartition(")")[2] for line in lines[start:]]


def from_sequences(folder: Path) -> str:
    """A net whose recurrent layer carries its state from pass to pass."""
    generator = np.random.default_rng(0)
    with h5py.File(folder / "s.h5", "w") as file:
        file["x"] = generator.standard_normal((12, 2, 3), np.float32)
        file["cont"] = np.ones((12, 2), np.float32)
        file["y"] = generator.standard_normal((12, 2, 4), np.float32)
    (folder / "list.txt").write_text("s.h5\n")
    tops = 'top: "x" top: "cont" top: "y"'
    lstm = 'recurrent_param { num_output: 4 weight_filler { type: "uniform" min: -0.3 max: 0.3 } }'
    return (
        data("HDF5Data", 'hdf5_data_param { source: "list.txt" batch_size: 3 }', "", tops)
        + f'layer {{ name: "lstm" type: "LSTM" bottom: "x" bottom: "cont" top: "out" {lstm} }}'
        + REGRESSION
    )


def test_recurrent_state_goes_on(tmp_path: Path) -> None:
    (tmp_path / "net.prototxt").write_text(from_sequences(tmp_path))
    whole = solver(tmp_path, "snapshot: 5")
    whole.step(9)
    again = solver(tmp_path, "", restore=tmp_path / "run_iter_5.solverstate")
    again.step(4)
    assert again.losses == whole.losses[5:]


def test_arrays_in_memory_go_on(tmp_path: Path) -> None:
    param = "memory_data_param { batch_size: 2 channels: 3 height: 1 width: 1 }"
    (tmp_path / "net.prototxt").write_text(data("MemoryData", param, "") + MIDDLE + END)
    values = np.random.default_rng(0).standard_normal((10, 3, 1, 1)).astype(np.float32)
    whole = solver(tmp_path, "snapshot: 3")
    whole.net.set_input_arrays(values, np.arange(10, dtype=np.float32))
    whole.step(7)
    again = solver(tmp_path, "")
    again.net.set_input_arrays(values, np.arange(10, dtype=np.float32))
    again.restore(tmp_path / "run_iter_3.solverstate")
    again.step(4)
    assert again.losses == whole.losses[3:]


NET_2013 = """
layers { layer { name: "d" type: "data" source: "db" batchsize: 4 cropsize: 6 mirror: true scale: 0.01 rand_skip: 5 }
  top: "x" top: "y" }
layers { layer { name: "ip" type: "innerproduct" num_output: 6 weight_filler { type: "xavier" } }
  bottom: "x" top: "ip" }
layers { layer { name: "drop" type: "dropout" } bottom: "ip" top: "ip" }
layers { layer { name: "out" type: "innerproduct" num_output: 40 weight_filler { type: "xavier" }
  blobs_lr: 1 blobs_lr: 2 } bottom: "ip" top: "out" }
layers { layer { name: "loss" type: "softmax_loss" } bottom: "out" bottom: "y" }
"""
SOLVER_2013 = """train_net: "net.prototxt" base_lr: 0.05 momentum: 0.9 lr_policy: "exp" gamma: 0.95 max_iter: 14
snapshot: 5 snapshot_prefix: "run" """


def test_profile_2013_says_the_rate_before_the_loss(tmp_path: Path) -> None:
    from_lmdb(tmp_path)
    (tmp_path / "net.prototxt").write_text(NET_2013)
    (tmp_path / "solver.prototxt").write_text(SOLVER_2013 + " display: 2 test_iter: 3")
    lines: list[str] = []
    cc.Solver(tmp_path / "solver.prototxt", profile="dec2013", log=lines.append).step(2)
    rate, loss = (line for line in lines if line.startswith("Iteration 2"))
    assert rate == "Iteration 2, lr = 0.045125"
    assert loss.startswith("Iteration 2, loss = ")


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ("test_interval: 14", "test_interval 14 without a test net, which is fatal at the first test"),
        ('test_net: "net.prototxt" test_interval: 2 test_iter: 0', "a test_iter is 0"),
    ],
)
def test_profile_2013_tests_with_a_test_net_alone(tmp_path: Path, fields: str, what: str) -> None:
    (tmp_path / "net.prototxt").write_text(NET_2013)
    (tmp_path / "solver.prototxt").write_text(f"{SOLVER_2013} {fields}")
    with pytest.raises(VggcError) as caught:
        cc.Solver(tmp_path / "solver.prototxt", profile="dec2013")
    assert caught.value.what == what


def test_profile_2013_goes_on(tmp_path: Path) -> None:
    records = {b"%08d" % index: datum(image, index) for index, image in enumerate(images(11, 3, 9, 8))}
    write_leveldb(tmp_path / "db", records)
    (tmp_path / "net.prototxt").write_text(NET_2013)
    (tmp_path / "solver.prototxt").write_text(SOLVER_2013)
    whole = cc.Solver(tmp_path / "solver.prototxt", profile="dec2013")
    whole.solve()
    torch.manual_seed(77)
    again = cc.Solver(tmp_path / "solver.prototxt", restore=tmp_path / "run_iter_5.solverstate", profile="dec2013")
    again.solve()
    assert again.losses == whole.losses[5:]
    assert [p.tolist() for p in again.net.parameters()] == [p.tolist() for p in whole.net.parameters()]


# -- without the file, or with another's -------------------------------------------------------------------


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """The state of a short run."""
    (tmp_path / "net.prototxt").write_text(from_lmdb(tmp_path))
    solver(tmp_path, "snapshot: 3").step(6)
    return tmp_path / "run_iter_3.solverstate"


def restored(state: Path) -> tuple[cc.Solver, str]:
    lines: list[str] = []
    return solver(state.parent, "", restore=state, log=lines.append), lines[-1]


def test_what_caffe_wrote_starts_data_anew(trained: Path) -> None:
    trained.with_suffix(".vggcstate").unlink()
    made, line = restored(trained)
    assert line == "There is no run_iter_3.vggcstate: random numbers and data start anew, as in Caffe"
    first = made.net.graph.nodes[0].layer.saved()
    assert (made.iter, first["source"]) == (3, "")


def test_the_file_of_another_snapshot_is_not_used(trained: Path) -> None:
    trained.with_name("run_iter_6.vggcstate").rename(trained.with_suffix(".vggcstate"))
    assert restored(trained)[1].startswith("run_iter_3.vggcstate is of another snapshot")


def test_the_file_of_other_values_is_not_used(trained: Path) -> None:
    solver(trained.parent, "random_seed: 9").snapshot()
    trained.with_name("run_iter_0.caffemodel").rename(trained.with_suffix(".caffemodel"))
    assert restored(trained)[1].startswith("run_iter_3.vggcstate is of another snapshot")


def test_states_of_other_names(trained: Path) -> None:
    assert "There is no" in restored(trained.rename(trained.with_name("renamed")))[1]


def test_no_pickle_and_plain_json(trained: Path) -> None:
    with safe_open(trained.with_suffix(".vggcstate"), framework="numpy") as file:
        content = json.loads(file.metadata()["vggc"])
    assert content["iteration"] == 3
    assert content["layers"]["0/d"]["source"] == b"00000000".hex()  # 3 batches of 4 from 11 records


@pytest.mark.parametrize("damage", [b"", b"abc", None])
def test_a_damaged_file_is_refused(trained: Path, damage: bytes | None) -> None:
    path = trained.with_suffix(".vggcstate")
    path.write_bytes(path.read_bytes()[:-9] if damage is None else damage)
    with pytest.raises(VggcError, match=r"no \.vggcstate file") as error:
        restored(trained)
    assert "remove it" in str(error.value)


def test_a_place_in_other_data_is_refused(trained: Path) -> None:
    path = trained.with_suffix(".vggcstate")
    extra = sidecar.read(path)
    extra.layers["0/d"]["source"] = b"zzz".hex()  # type: ignore[index]
    path.write_bytes(sidecar.encode(extra))
    with pytest.raises(VggcError, match='no record "zzz"'):
        restored(trained)


def test_another_net_is_refused(trained: Path) -> None:
    net = trained.parent / "net.prototxt"
    net.write_text(net.read_text().replace('name: "d"', 'name: "e"'))
    with pytest.raises(VggcError, match='what it holds of layer "d" does not fit the net'):
        restored(trained)


# -- SIGKILL -----------------------------------------------------------------------------------------------


def train(folder: str, state: str | None, started: Connection) -> None:
    """What the processes do that are killed."""
    os.chdir(folder)
    torch.set_num_threads(1)
    made = cc.Solver("solver.prototxt", restore=state)
    started.send(True)
    made.solve()


def test_killed_at_any_moment(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["caffe_compat.solvers.solver", "tests.caffe_compat.test_solver_resume"])
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "net.prototxt").write_text(from_lmdb(tmp_path / name))
        (tmp_path / name / "solver.prototxt").write_text(SOLVER + "max_iter: 240 snapshot: 4 random_seed: 5")
    assert run(context, tmp_path / "whole", None) == 0
    chosen, kills = random.Random(0), 0
    while run(context, tmp_path / "killed", chosen.uniform(0.0, 0.06) if kills < 6 else None) != 0:
        kills += 1
        assert whole_snapshots(tmp_path / "killed")
    assert kills >= 3
    for name in ("run_iter_240.caffemodel", "run_iter_240.solverstate", "run_iter_240.vggcstate"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def run(context: multiprocessing.context.ForkServerContext, folder: Path, delay: float | None) -> int | None:
    """One process from the last snapshot on, killed after so many seconds of training; its exit code."""
    states = sorted(folder.glob("run_iter_*.solverstate"), key=lambda path: int(path.stem.rpartition("_")[2]))
    here, there = context.Pipe()
    process = context.Process(target=train, args=(str(folder), str(states[-1]) if states else None, there))
    process.start()
    there.close()
    assert here.recv()
    process.join(delay)
    if process.is_alive():
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
    return process.exitcode


def whole_snapshots(folder: Path) -> bool:
    """Every state has its weights and what Caffe leaves out, all of one moment."""
    for path in folder.glob("run_iter_*.solverstate"):
        made = cc.Solver(folder / "solver.prototxt", restore=path)
        extra = sidecar.read(path.with_suffix(".vggcstate"))
        if extra.values != sidecar.fingerprint([*made.net.parameters(), *made.history]):
            return False
    return True
