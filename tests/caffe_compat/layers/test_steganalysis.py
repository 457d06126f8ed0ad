"""Layers and fillers of the fork for steganalysis."""

from __future__ import annotations

import numpy as np
import pytest

from caffe_compat.fillers import fill
from caffe_compat.layers.bdct_to_spatial import QUANTA
from caffe_compat.schema import pb
from tests.caffe_compat.layers.harness import arrays, forward, lone, run_onnx, session
from tests.caffe_compat.layers.refusals import refusal


def wave(frequency: int, at: int, size: int = 8) -> float:
    scale = np.sqrt((1 if frequency == 0 else 2) / size)
    return float(scale * np.cos((2 * at + 1) * frequency * np.pi / (2 * size)))


@pytest.mark.parametrize("quality", [75, 95])
def test_images_from_frequencies(quality: int) -> None:
    x = np.round(np.random.default_rng(1).normal(0, 2, (2, 64, 2, 3)))
    quanta = np.array(QUANTA[quality].split(), float)
    wanted = np.zeros((2, 1, 16, 24))
    for n, row, column, y, xx in np.ndindex(2, 2, 3, 8, 8):
        values = [
            x[n, 8 * u + v, row, column] * quanta[8 * u + v] * wave(u, y) * wave(v, xx) for u, v in np.ndindex(8, 8)
        ]
        wanted[n, 0, 8 * row + y, 8 * column + xx] = sum(values)
    it = lone(f'type: "BdctToSpatial" bdct_to_spatial_param {{ quality: {quality} }}', x.shape)
    assert it.top_shapes == [wanted.shape]
    np.testing.assert_allclose(forward(it, [x])[0], wanted, rtol=1e-10, atol=1e-9)
    np.testing.assert_allclose(run_onnx(session(it), [x])[0], wanted, rtol=1e-4, atol=1e-3)


def test_other_qualities_and_channels() -> None:
    text = 'type: "BdctToSpatial" bdct_to_spatial_param { quality: 80 }'
    assert refusal(text, (1, 64, 2, 2)) == ("quality 80", "bdct_to_spatial_param.quality")


@pytest.mark.parametrize(
    ("process", "wanted"),
    [
        ("QUANTTRUNCABS", [2, 2, 1, 0, 1, 2, 2]),
        ("QUANT", [-4, -2, -1, 0, 1, 2, 4]),
        ("ABS", [3.6, 2.4, 0.5, 0.2, 0.5, 2.4, 3.6]),
        ("TRUNC", [-2, -2, -0.5, 0.2, 0.5, 2, 2]),
        ("QUANTTRUNC", [-2, -2, -1, 0, 1, 2, 2]),
        ("QUANTABS", [4, 2, 1, 0, 1, 2, 4]),
        ("TRUNCABS", [2, 2, 0.5, 0.2, 0.5, 2, 2]),
    ],
)
def test_rounded_cut_and_absolute_values(process: str, wanted: list[float]) -> None:
    x = np.array([-3.6, -2.4, -0.5, 0.2, 0.5, 2.4, 3.6])
    text = f'type: "QuantTruncAbs" quant_trunc_abs_param {{ process: {process} threshold: 2 }}'
    np.testing.assert_allclose(forward(lone(text, (7,), inplace=True), [x])[0], wanted)


def test_it_works_in_place_alone() -> None:
    what, field = refusal('type: "QuantTruncAbs" bottom: "x"', (7,))
    assert (what, field) == ("the top is not the bottom; QuantTruncAbs works in place", "top[0]")


def test_normalisation_in_place() -> None:
    x, scale, shift, mean, variance = arrays((3, 2, 4, 5), *[(1, 2, 1, 1)] * 4)
    variance = abs(variance)
    text = 'type: "BNConv" bn_conv_param {{ decay: 0.9 {} }}'
    kept = [scale, shift, mean, variance]
    moved = (x - mean) / np.sqrt(variance + 1e-10) * scale + shift
    for phase, fields in (("TEST", ""), ("TRAIN", "fix: true")):
        found = forward(lone(text.format(fields), x.shape, phase=phase, inplace=True), [x], kept)
        np.testing.assert_allclose(found[0], moved, rtol=1e-5)
    it = lone(text.format(""), x.shape, phase="TRAIN", inplace=True)
    own = x.mean((0, 2, 3), keepdims=True)
    spread = x.var((0, 2, 3), keepdims=True)
    wanted = (x - own) / np.sqrt(spread) * scale + shift
    statistics = [mean.copy(), variance.copy()]
    np.testing.assert_allclose(forward(it, [x], [scale, shift, *statistics])[0], wanted, rtol=1e-6, atol=1e-6)
    assert [filler.value for filler in it.layer.fillers()] == [1, 0, 0, 0]
    assert it.node.blob_shapes == ((1, 2, 1, 1),) * 4


def test_relu() -> None:
    (x,) = arrays((3, 4))
    text = 'type: "ReLURecover" relu_param { negative_slope: 0.1 }'
    np.testing.assert_allclose(forward(lone(text, x.shape), [x])[0], np.where(x > 0, x, 0.1 * x))


@pytest.mark.parametrize("size", [2, 4, 8])
def test_fillers_are_waves(size: int) -> None:
    shape = (size * size, 1, size, size)
    values = fill(pb.FillerParameter(type=f"dct{size}"), shape, np.random.default_rng(0)).reshape(-1, size * size)
    np.testing.assert_allclose(values @ values.T, np.eye(size * size), atol=1e-6)
    down = [[wave(1, y, size) * wave(0, x, size) for x in range(size)] for y in range(size)]
    np.testing.assert_allclose(values[1], np.ravel(down), atol=1e-6)
    np.testing.assert_allclose(values[2], np.transpose(down).ravel(), atol=1e-6)


def test_fillers_belong_to_the_fork() -> None:
    text = 'type: "Convolution" convolution_param { num_output: 16 kernel_size: 4 weight_filler { type: "dct4" } }'
    assert refusal(text, (1, 1, 8, 8))[0] == 'weight_filler: unknown filler "dct4"'
    assert lone(text, (1, 1, 8, 8), dialect="steganalysis").node.blob_shapes[0] == (16, 1, 4, 4)
    wide = refusal(text, (1, 2, 8, 8), dialect="steganalysis")[0]
    assert wide == "weight_filler: dct4 fills 256 values, got a blob of shape (16, 2, 4, 4)"
