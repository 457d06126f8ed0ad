"""Where the profiles differ for a V0 net: what is told, where, and that it is true."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from caffe_compat.profiles import Difference, differences, notes
from caffe_compat.reading import read_document
from converters.inspect_command import inspect_command
from tests.caffe_compat.v0_nets import document, layer, module, net
from tests.parity.cases import DATA

SHAPE = (2, 4, 6, 6)
VECTORS = (2, 3, 1, 1)
LABEL = (2, 1, 1, 1)
FORCED = "force_backward: true"
PRODUCT = layer("innerproduct", "ip", "data", "ip", "num_output: 3 blobs_lr: 1 blobs_lr: 1")


def pool(name: str = "pool", bottom: str = "data", fields: str = "kernelsize: 2 stride: 2") -> str:
    return layer("pool", name, bottom, name, fields)


def found(text: str, phase: str = "TRAIN") -> list[Difference]:
    read = document(text)
    return differences(read.message, read.map, phase=phase)


PADDED = [
    layer("padding", "pad", "data", "pad", "pad: 1"),
    pool(bottom="pad", fields="kernelsize: 3 stride: 2"),
]
CASES = [
    (net(*PADDED, data=SHAPE), 3, "a maximum may be 0"),
    (
        net(PADDED[0], pool(bottom="pad", fields="kernelsize: 2 stride: 3 pool: AVE"), data=(1, 1, 2, 2)),
        4,
        "top 2 x 2; bvlc",
    ),
    (net(layer("padding", "pad", "data", "pad", "pad: 1"), data=SHAPE), 3, "bvlc drops the layer"),
    (net(layer("conv", "c", "data", "c", "num_output: 2 kernelsize: 3 pad: 1"), data=SHAPE), 3, "pad 1 has no effect"),
    (net(pool(), head=FORCED, data=SHAPE), 3, "every element that equals the maximum"),
    (net(layer("lrn", "n", "data", "n", "local_size: 4"), data=SHAPE), 3, "accepted; bvlc refuses it: local_size 4"),
    (net(layer("im2col", "i", "data", "i", "kernelsize: 2"), data=SHAPE), 3, "accepted; bvlc refuses it"),
    (net(layer("softmax", "p", "data", "p"), data=SHAPE), 3, "one sum over all 4 x 6 x 6 values"),
    (net(layer("accuracy", "a", "data label", "a"), data=VECTORS, label=LABEL), 4, "top 1 x 2 x 1 x 1"),
    (
        net(PRODUCT, layer("softmax_loss", "l", "ip label", ""), data=SHAPE, label=LABEL),
        5,
        "from a backward pass alone",
    ),
    (net(layer("softmax_loss", "l", "data label", ""), data=VECTORS, label=LABEL), 4, "0 as nothing below learns"),
    (net(layer("softmax_loss", "l", "data label", ""), data=SHAPE, label=LABEL), 4, "the sum divided by their number"),
    (net(layer("euclidean_loss", "l", "a b", ""), head=FORCED, a=SHAPE, b=SHAPE), 4, 'bottom 1 "b" gets no gradient'),
    (
        net(layer("innerproduct", "i", "data", "i", "num_output: 3 weight_filler { type: 'xavier' }"), data=SHAPE),
        3,
        "xavier's fan-in of the weight is 432; bvlc: 144",
    ),
    (
        net(
            layer("conv", "c", "data", "c", "num_output: 3 kernelsize: 1 bias_filler { type: 'positive_unitball' }"),
            data=SHAPE,
        ),
        3,
        "the whole bias sum to 1; bvlc: each of its 3 rows",
    ),
    (net(layer("bnll", "b", "data", "data"), head=FORCED, data=SHAPE), 3, "gradient is taken at the top's value"),
    (net(layer("relu", "r", "data", "r"), layer("relu", "s", "data", "s"), data=SHAPE), 4, "refused: bottom 0"),
    (net(layer("sigmoid", "s", "data", "s"), data=SHAPE), 3, 'refused: layer type "sigmoid"'),
    (net(layer("data", "d", "", "data label", "batchsize: 2 cropsize: 5")), 2, "never reach the last row and column"),
    (
        net(
            layer("innerproduct", "first", "data", "f", "num_output: 3"),
            layer("innerproduct", "second", "f", "s", "num_output: 3 blobs_lr: 1 blobs_lr: 1"),
            layer("softmax_loss", "l", "s label", ""),
            data=SHAPE,
            label=LABEL,
        ),
        4,
        "no gradient, as neither its blobs_lr",
    ),
    (
        net(pool(), layer("dropout", "drop", "pool", "pool"), head=FORCED, data=SHAPE),
        3,
        'what "drop" has left in its top',
    ),
    (net(pool(fields="kernelsize: 2 pool: STOCHASTIC"), data=SHAPE, label=LABEL), 0, ""),
]


@pytest.mark.parametrize(("text", "line", "said"), CASES)
def test_tells(text: str, line: int, said: str) -> None:
    told = [item for item in found(text) if said and said in item.what]
    assert [item.where.line for item in told] == ([line] if said else [])
    assert all(item.where.source == "net.prototxt" and item.where.layer for item in told)


def test_tells_of_the_test_phase() -> None:
    drop = net(layer("dropout", "d", "data", "data"), head=FORCED, data=SHAPE)
    assert not found(drop)
    assert "refused in phase TEST" in found(drop, "TEST")[0].what
    stochastic = net(pool(fields="kernelsize: 2 pool: STOCHASTIC"), data=SHAPE)
    assert "whose sum is negative" in found(stochastic, "TEST")[0].what


def test_an_infogain_loss_takes_probabilities() -> None:
    folder = DATA / "golden2013" / "layers" / "infogain_general"
    read = read_document(folder / "net.prototxt")
    told = differences(read.message, read.map, folder=str(folder))
    assert any("bvlc puts a softmax before it" in item.what for item in told)


@pytest.mark.parametrize(
    "text",
    [
        net(layer("conv", "c", "data", "c", "num_output: 2 kernelsize: 3 stride: 2"), data=SHAPE),
        net(
            layer("padding", "pad", "data", "pad", "pad: 1"),
            layer("conv", "c", "pad", "c", "num_output: 2 kernelsize: 3"),
            data=SHAPE,
        ),
        net(pool(fields="kernelsize: 2 stride: 3 pool: AVE"), layer("relu", "r", "pool", "pool"), data=SHAPE),
        net(pool(fields="kernelsize: 1 stride: 3"), data=(1, 1, 5, 5)),
        net(layer("lrn", "n", "data", "n", "local_size: 3 alpha: 0.5"), data=SHAPE),
        net(PADDED[0], pool(bottom="pad", fields="kernelsize: 2 stride: 2 pool: AVE"), data=SHAPE),
        net(layer("softmax", "p", "data", "p"), data=VECTORS),
        net(layer("innerproduct", "i", "data", "i", "num_output: 3"), data=SHAPE),
        net(layer("bnll", "b", "data", "b"), layer("dropout", "d", "b", "b"), data=SHAPE),
    ],
)
def test_nets_of_which_nothing_is_told_give_the_same(text: str) -> None:
    assert not found(text, "TEST")
    generator = torch.Generator().manual_seed(0)
    built, other = module(text), module(text, profile="bvlc")
    feed = {name: torch.randn(shape, generator=generator) for name, shape in built.inputs.items()}
    for name, blobs in other.params.items():
        for mine, theirs in zip(built.params[name], blobs, strict=True):
            mine.data.copy_(torch.randn(theirs.shape, generator=generator).reshape(mine.shape))
            theirs.data.copy_(mine.data.reshape(theirs.shape))
    for name, value in built(feed).items():
        torch.testing.assert_close(value.flatten(), other(feed)[name].flatten(), rtol=1e-5, atol=1e-6, equal_nan=True)


def test_other_generations_have_none() -> None:
    read = document('layer { name: "s" type: "Softmax" bottom: "x" top: "y" }')
    assert not differences(read.message, read.map)


def test_layers_of_which_the_same_is_said_are_joined() -> None:
    text = net(pool("p1"), pool("p2", "p1"), head=FORCED, data=SHAPE)
    (note,) = notes(found(text))
    assert note.startswith('under dec2013: layers "p1", "p2": in training')


def test_inspect_shows_them(tmp_path: Path) -> None:
    path = tmp_path / "net.prototxt"
    path.write_text(net(layer("softmax", "p", "data", "p"), data=SHAPE))
    for profile in ("bvlc", "dec2013"):
        result = CliRunner().invoke(inspect_command, [str(path), "--profile", profile])
        assert result.exit_code == 0, result.output
        assert 'note: under dec2013: layer "p": one sum over all 4 x 6 x 6 values' in result.output
