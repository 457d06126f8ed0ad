"""What goes wrong while training: said clearly, and nothing is lost."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

import caffe_compat as cc
from caffe_compat import writing
from caffe_compat.errors import VggcError
from caffe_compat.schema import pb
from tests.caffe_compat.data.folders import datum, images, png, write_lmdb

NET = """
name: "line"
layer { name: "in" type: "Input" top: "x" top: "y" input_param { shape { dim: 4 dim: 3 } shape { dim: 4 } } }
layer { name: "hidden" type: "InnerProduct" bottom: "x" top: "hidden" inner_product_param { num_output: 5
  weight_filler { type: "xavier" } } }
layer { name: "relu" type: "ReLU" bottom: "hidden" top: "hidden" }
layer { name: "out" type: "InnerProduct" bottom: "hidden" top: "out" inner_product_param { num_output: 3
  weight_filler { type: "xavier" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "out" bottom: "y" top: "loss" }
"""
BODY = NET[NET.index('layer { name: "hidden"') :]
SOLVER = 'net: "net.prototxt" base_lr: 0.1 lr_policy: "fixed" momentum: 0.9 max_iter: 6 snapshot_prefix: "s" '


def make(folder: Path, extra: str = "", net: str = NET, **more: object) -> cc.Solver:
    (folder / "net.prototxt").write_text(net)
    (folder / "solver.prototxt").write_text(SOLVER + extra)
    made = cc.Solver(folder / "solver.prototxt", **more)  # type: ignore[arg-type]
    made.inputs = {"x": torch.ones(4, 3), "y": torch.tensor([0.0, 1, 2, 1])}
    return made


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# -- a loss that is no number ------------------------------------------------------------------------------


def test_nan_in_the_data_is_named_and_a_snapshot_is_kept(tmp_path: Path) -> None:
    solver = make(tmp_path)
    fine = solver.inputs
    bad = {"x": torch.full((4, 3), torch.nan), "y": torch.zeros(4)}
    solver.inputs = lambda iteration: bad if iteration == 3 else fine  # type: ignore[return-value]
    with pytest.raises(VggcError) as error:
        solver.step(6)
    assert error.value.what == 'the loss of iteration 3 is nan; the first blob that is not finite is input "x"'
    assert "go on from s_iter_3.solverstate" in error.value.remedy
    again = make(tmp_path, restore=tmp_path / "s_iter_3.solverstate")
    again.step(3)
    assert again.iter == 6


def test_parameter_that_is_not_finite_is_named_and_not_kept(tmp_path: Path) -> None:
    solver = make(tmp_path, "snapshot: 2")
    solver.step(3)
    with torch.no_grad():
        solver.net.params["out"][1][1] = torch.inf
    with pytest.raises(VggcError, match='is parameter bias of layer "out"') as error:
        solver.step(1)
    assert "go on from s_iter_2.solverstate" in error.value.remedy
    assert not (tmp_path / "s_iter_3.solverstate").exists()


def test_the_first_top_is_named(tmp_path: Path) -> None:
    log = NET.replace('type: "ReLU"', 'type: "Log"')
    solver = make(tmp_path, net=log)
    with torch.no_grad():
        solver.net.params["hidden"][0].fill_(-1)
    with pytest.raises(VggcError, match='is top "hidden" of layer "relu"'):
        solver.step(1)


def test_divergence_says_start_anew_without_a_snapshot(tmp_path: Path) -> None:
    solver = make(tmp_path)
    with torch.no_grad():
        solver.net.params["out"][0].fill_(torch.nan)
    with pytest.raises(VggcError, match="start anew"):
        solver.step(1)


def test_data_layers_are_looked_at_as_they_were(tmp_path: Path) -> None:
    """The batch that gave the loss is the one that is looked at, with the same random numbers."""
    records = [np.full((1, 2, 2), 0.5, np.float32) for _ in range(5)]
    records[3][0, 0, 0] = np.nan
    values = {b"%d" % k: float_datum(record) for k, record in enumerate(records)}
    write_lmdb(tmp_path / "db", values)
    net = 'layer { name: "d" type: "Data" top: "x" top: "y" data_param { source: "db" backend: LMDB batch_size: 1 } }'
    solver = make(tmp_path, net=net + BODY)
    with pytest.raises(VggcError, match='iteration 3 is nan; the first blob that is not finite is data blob "x"'):
        solver.step(6)


def float_datum(values: np.ndarray) -> bytes:
    channels, height, width = values.shape
    return pb.Datum(
        channels=channels, height=height, width=width, float_data=values.ravel().tolist(), label=1
    ).SerializeToString()


# -- labels ------------------------------------------------------------------------------------------------


def test_label_out_of_range(tmp_path: Path) -> None:
    solver = make(tmp_path)
    solver.inputs = {"x": torch.ones(4, 3), "y": torch.tensor([0.0, 1, 3, 1])}
    with pytest.raises(VggcError, match='layer "loss": label 3 at index 2 is not one of the 3 classes 0 to 2'):
        solver.step(1)


# -- snapshots ---------------------------------------------------------------------------------------------


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Writing more fails, as on a full disk, with another errno."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("format_", ["BINARYPROTO", "HDF5"])
@pytest.mark.parametrize("size", [10, 500, 1500, 5000])
def test_too_large_a_file_leaves_earlier_snapshots(tmp_path: Path, format_: str, size: int) -> None:
    solver = make(tmp_path, f"snapshot: 2 snapshot_format: {format_}")
    solver.step(3)
    before = content(tmp_path)
    with files_of_at_most(size), pytest.raises(VggcError, match="cannot be written"):
        solver.snapshot()
    assert content(tmp_path) == before
    make(tmp_path, restore=next(tmp_path.glob("s_iter_2.solverstate*"))).step(1)


@pytest.mark.parametrize("failing", [1, 2, 3, 4])
def test_full_disk_leaves_the_snapshot_of_the_same_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    solver = make(tmp_path)
    solver.snapshot()
    before = content(tmp_path)
    calls = iter(range(1, 100))

    def fsync(_descriptor: int) -> None:
        if next(calls) == failing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(writing.os, "fsync", fsync)
    with torch.no_grad():
        solver.net.params["out"][0].add_(1)
    with pytest.raises(VggcError, match="No space left on device; free some space"):
        solver.snapshot()
    if failing <= 3:
        assert content(tmp_path) == before
    else:  # after the old state was removed: what remains is no half snapshot
        assert not (tmp_path / "s_iter_0.solverstate").exists()


def test_no_folder_for_snapshots(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "solver.prototxt").write_text(SOLVER.replace('"s"', '"nowhere/s"') + "snapshot: 5")
    with pytest.raises(VggcError, match=r"no snapshot can be written.*create the folder"):
        cc.Solver(tmp_path / "solver.prototxt")


def test_no_folder_for_the_last_snapshot_is_said_before_training(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "solver.prototxt").write_text(SOLVER.replace('"s"', '"nowhere/s"'))
    solver = cc.Solver(tmp_path / "solver.prototxt")
    with pytest.raises(VggcError, match="create the folder"):
        solver.solve()
    assert solver.iter == 0


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (
            NET.replace("num_output: 5", "num_output: 6"),
            r"history blob 0 has shape \(5, 3\), the net's parameter \(6, 3\)",
        ),
        (NET.replace('name: "out"', 'name: "other"'), 'layer "other": .* has no weights for it'),
        (NET.replace('"relu" type: "ReLU"', '"relu" type: "PReLU"'), "4 history blobs, but the solver keeps 5"),
    ],
)
def test_snapshot_of_another_net(tmp_path: Path, net: str, message: str) -> None:
    state = make(tmp_path).snapshot()
    with pytest.raises(VggcError, match=message) as error:
        make(tmp_path, net=net, restore=state)
    assert error.value.remedy


def test_weights_of_a_snapshot_are_missing(tmp_path: Path) -> None:
    state = make(tmp_path).snapshot()
    (tmp_path / "s_iter_0.caffemodel").unlink()
    with pytest.raises(VggcError, match="are not found; put them beside the state"):
        make(tmp_path, restore=state)


# -- records -----------------------------------------------------------------------------------------------


def test_corrupt_record_stops_with_its_name(tmp_path: Path) -> None:
    values = {b"%d" % k: datum(image, k) for k, image in enumerate(images(6, 1, 2, 2))}
    values[b"4"] = pb.Datum(data=b"\xff\xd8 no JPEG", encoded=True, label=1).SerializeToString()
    write_lmdb(tmp_path / "db", values)
    net = 'layer { name: "d" type: "Data" top: "x" top: "y" data_param { source: "db" backend: LMDB batch_size: 2 } }'
    solver = make(tmp_path, net=net + BODY.replace("num_output: 3", "num_output: 9"))
    with pytest.raises(VggcError, match='layer "d": "db": record "4": an image cannot be decoded') as error:
        solver.step(6)
    assert solver.iter == 2
    assert "write the record anew" in error.value.remedy


def test_corrupt_file_stops_with_its_name(tmp_path: Path) -> None:
    for index in range(4):
        (tmp_path / f"{index}.png").write_bytes(png(images(1, 3, 2, 2)[0]) if index != 3 else b"no picture")
    (tmp_path / "list.txt").write_text("".join(f"{index}.png {index}\n" for index in range(4)))
    net = (
        'layer { name: "d" type: "ImageData" top: "x" top: "y" image_data_param { source: "list.txt" batch_size: 2 } }'
    )
    solver = make(tmp_path, net=net + BODY.replace("num_output: 3", "num_output: 9"))
    with pytest.raises(VggcError, match=r'layer "d": "list.txt": image "3.png": an image cannot be decoded'):
        solver.step(6)
    assert solver.iter == 1


def test_shared_blob_with_two_rates_is_refused(tmp_path: Path) -> None:
    shared = 'param {{ name: "w" lr_mult: {} }} inner_product_param'
    net = NET.replace('top: "hidden" inner_product_param', 'top: "hidden" ' + shared.format(1), 1)
    net = net.replace('top: "out" inner_product_param', 'top: "out" ' + shared.format(2), 1)
    net = net.replace("num_output: 5", "num_output: 3")
    with pytest.raises(VggcError, match="lr_mult"):
        make(tmp_path, net=net)
