"""Weights that a run starts from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from caffe_compat.errors import VggcError, WeightsError
from caffe_compat.module import Net
from caffe_compat.solvers.snapshot import write_net
from repro.training.nets import training_net
from repro.training.settings import Settings
from repro.training.start import start_from


def net_text(convs: list[tuple[str, int]], classes: int = 4) -> str:
    text = 'layer { name: "data" type: "Input" top: "x" input_param { shape { dim: 1 dim: 3 dim: 8 dim: 8 } } }'
    below = "x"
    for name, outputs in convs:
        text += (
            f'layer {{ name: "{name}" type: "Convolution" bottom: "{below}" top: "{name}" '
            f"convolution_param {{ num_output: {outputs} kernel_size: 3 pad: 1 }} }}"
        )
        below = name
    for name, outputs in (("fc6", 6), ("fc7", 6), ("fc8", classes)):
        text += (
            f'layer {{ name: "{name}" type: "InnerProduct" bottom: "{below}" top: "{name}" '
            f"inner_product_param {{ num_output: {outputs} }} }}"
        )
        below = name
    return text + 'layer { name: "prob" type: "Softmax" bottom: "fc8" top: "prob" }'


SHALLOW = [("c1", 2), ("c2", 2), ("c3", 3), ("c4", 3), ("c5", 3)]
DEEP = [("c1", 2), ("c1b", 2), ("c2", 2), ("c3", 3), ("c4", 3), ("c4b", 3), ("c5", 3)]


def build(folder: Path, name: str, convs: list[tuple[str, int]], classes: int = 4, seed: int = 0) -> Net:
    path = folder / f"{name}.prototxt"
    path.write_text(net_text(convs, classes))
    return Net(training_net(path, classes).graph("TRAIN", 1), seed=seed)


def test_a_deeper_net_takes_over_four_convolutions_and_three_dense_layers(tmp_path: Path) -> None:
    shallow, deep = build(tmp_path, "a", SHALLOW), build(tmp_path, "e", DEEP, seed=1)
    before = {name: blobs[0].detach().clone() for name, blobs in deep.params.items()}
    write_net(tmp_path / "best.caffemodel", shallow)
    notes = list(start_from(deep, Settings("e", "d", init_from=str(tmp_path))))
    taken = {"c1", "c2", "c3", "c4", "fc6", "fc7", "fc8"}
    for name, blobs in deep.params.items():
        source = shallow.params[name] if name in taken else [before[name]]
        assert torch.equal(blobs[0], source[0]), name
    assert notes == [f"c1, c2, c3, c4, fc6, fc7, fc8 start from {tmp_path}/best.caffemodel"]


def test_layers_of_other_sizes_are_left(tmp_path: Path) -> None:
    shallow, other = build(tmp_path, "a", SHALLOW), build(tmp_path, "b", DEEP, classes=9)
    write_net(tmp_path / "a.caffemodel", shallow)
    notes = list(start_from(other, Settings("b", "d", init_from=str(tmp_path / "a.caffemodel"))))
    assert notes[1] == f"fc8 of {tmp_path}/a.caffemodel do not fit; those layers start at random"
    (tmp_path / "f.prototxt").write_text(net_text([("d1", 2)]).replace("fc", "g"))
    foreign = Net(training_net(tmp_path / "f.prototxt", 4).graph("TRAIN", 1))
    with pytest.raises(WeightsError, match="none of its layers c1, c2"):
        list(start_from(foreign, Settings("f", "d", init_from=str(tmp_path / "a.caffemodel"))))


def test_all_weights(tmp_path: Path) -> None:
    one, two = build(tmp_path, "a", SHALLOW), build(tmp_path, "a", SHALLOW, seed=5)
    write_net(tmp_path / "w.caffemodel", one)
    assert list(start_from(two, Settings("a", "d", weights=str(tmp_path / "w.caffemodel"))))
    for mine, theirs in zip(one.owned.values(), two.owned.values(), strict=True):
        assert torch.equal(mine, theirs)
    with pytest.raises(VggcError, match="c1b"):
        list(start_from(build(tmp_path, "e", DEEP), Settings("e", "d", weights=str(tmp_path / "w.caffemodel"))))


def test_no_weights_there(tmp_path: Path) -> None:
    net = build(tmp_path, "a", SHALLOW)
    for name in (tmp_path, tmp_path / "x.caffemodel"):
        with pytest.raises(VggcError, match="no weights there"):
            list(start_from(net, Settings("a", "d", weights=str(name))))
