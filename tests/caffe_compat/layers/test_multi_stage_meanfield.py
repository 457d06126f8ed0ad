"""MultiStageMeanfield against numbers recorded from the fork's own code, and its lattice against plain loops.

tests/data/crfasrnn: bottoms, blobs, top and gradients of the fork's CPU code in float32, compiled for SSE2.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch

from caffe_compat import load
from caffe_compat.errors import LayerError
from caffe_compat.guessing import guess_net
from caffe_compat.layers.base import Shape
from caffe_compat.layers.permutohedral import Lattice
from tests.caffe_compat.layers.harness import Array, Lone, arrays, forward, gradients, lone
from tests.caffe_compat.layers.refusals import refusal
from tests.tolerances import FORKS

RECORDED = Path(__file__).parents[2] / "data" / "crfasrnn"
BLOBS = ("spatial", "bilateral", "compatibility")
SHAPES = ((2, 3, 4, 5), (2, 3, 4, 5), (2, 3, 4, 5))


def text(iterations: int = 2, alpha: float = 4, beta: float = 3, gamma: float = 2, more: str = "") -> str:
    thetas = f"theta_alpha: {alpha} theta_beta: {beta} theta_gamma: {gamma}"
    fields = f"num_iterations: {iterations} {thetas} {more}"
    return f'type: "MultiStageMeanfield" multi_stage_meanfield_param {{ {fields} }}'


# -- recorded numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["one_item", "two_items", "wide_image"])
def test_recorded_numbers(name: str) -> None:
    with np.load(RECORDED / f"{name}.npz") as file:
        case = dict(file)
    bottoms, blobs = [case["unary"], case["first"], case["image"]], [case[blob][None, None] for blob in BLOBS]
    it = lone(text(int(case["iterations"]), *map(float, case["theta"])), *(bottom.shape for bottom in bottoms))
    assert FORKS.ratio(forward(it, bottoms, blobs, np.float32)[0], case["top"]) <= 1
    (unary, first, image), learned = gradients(it, bottoms, [case["top_diff"]], blobs)
    assert FORKS.ratio(unary, case["unary_diff"]) <= 1
    assert FORKS.ratio(first, case["first_diff"]) <= 1
    assert not image.any()
    for blob, got in zip(BLOBS, learned, strict=True):
        assert FORKS.ratio(got[0, 0], case[f"{blob}_diff"]) <= 1


# -- the lattice, in plain loops ---------------------------------------------------------------------------

Vertex = tuple[int, ...]


def simplex(point: Array) -> dict[Vertex, float]:
    """The vertices around a point, all d + 1 coordinates each, and its weights: Adams et al. 2010, in float32."""
    d = len(point)
    one = np.float32
    scaled = [one(p) * one(1 / np.sqrt((i + 1) * (i + 2)) * one(np.sqrt(2 / 3) * (d + 1))) for i, p in enumerate(point)]
    elevated, total = [one(0)] * (d + 1), one(0)
    for axis in range(d, 0, -1):
        elevated[axis] = total - one(axis) * scaled[axis - 1]
        total = total + scaled[axis - 1]
    elevated[0] = total
    steps = [int(np.rint(e * one(1 / (d + 1)))) for e in elevated]
    rest = [float(e - one(step * (d + 1))) for e, step in zip(elevated, steps, strict=True)]
    order = sorted(range(d + 1), key=lambda axis: (-rest[axis], axis))
    for axis in order[d + 1 - sum(steps) :] if sum(steps) > 0 else order[: -sum(steps)]:  # back onto the plane
        steps[axis] -= np.sign(sum(steps))
        rest[axis] = float(elevated[axis] - one(steps[axis] * (d + 1)))
    moved = sorted(range(d + 1), key=lambda axis: (-rest[axis], axis))
    gaps = [rest[moved[i]] - rest[moved[i + 1]] for i in range(d)]
    weights = [1 - (rest[moved[0]] - rest[moved[-1]]) / (d + 1), *(gap / (d + 1) for gap in reversed(gaps))]
    corners = {}
    for k, weight in enumerate(weights):  # the k smallest go down by d + 1, and all go up by k
        low = moved[d + 1 - k :]
        corners[tuple(steps[axis] * (d + 1) + k - (d + 1) * (axis in low) for axis in range(d + 1))] = weight
    return corners


def naive_filter(features: Array, values: Array) -> Array:
    """Splat, blur, slice of (points, channels), with a dict of vertices."""
    d = features.shape[1]
    around = [simplex(point) for point in features]
    lattice: dict[Vertex, Array] = defaultdict(lambda: np.zeros(values.shape[1]))
    if len(features) % 4:
        around_origin = simplex(np.zeros(d))
        for vertex in around_origin:
            lattice[vertex] += 0
    for corners, value in zip(around, values, strict=True):
        for vertex, weight in corners.items():
            lattice[vertex] += weight * value
    for axis in range(d + 1):
        step = np.full(d + 1, -1)
        step[axis] = d
        blurred = {}
        for vertex, value in lattice.items():
            sides = [tuple(np.array(vertex) + way * step) for way in (1, -1)]
            blurred[vertex] = value + sum(lattice[side] for side in sides if side in lattice) / 2
        lattice = defaultdict(lambda: np.zeros(values.shape[1]), blurred)
    sliced = [sum(weight * lattice[vertex] for vertex, weight in corners.items()) for corners in around]
    return np.array(sliced) / (1 + 2.0**-d)


def grid(height: int, width: int, theta: float) -> Array:
    return np.array([(x, y) for y in range(height) for x in range(width)], np.float32) / np.float32(theta)


@pytest.mark.parametrize(
    "features",
    [
        grid(6, 7, 3.0),
        grid(4, 9, 2.5),
        grid(3, 4, 1.0),
        np.concatenate([grid(5, 7, 4.0), arrays((35, 3), seed=3, low=-40, high=40)[0]], axis=1),
        arrays((24, 1), seed=4, low=-9, high=9)[0],
    ],
    ids=["2d", "2d_whole_blocks", "2d_coarse", "5d", "1d"],
)
def test_lattice_equals_plain_loops(features: Array) -> None:
    features = features.astype(np.float32)
    (values,) = arrays((len(features), 3), seed=5)
    made = Lattice.of(features).on(torch.zeros(1, dtype=torch.float64))
    got = made(torch.from_numpy(values.T)).T.numpy()
    np.testing.assert_allclose(got, naive_filter(features, values), rtol=1e-5, atol=1e-6)


def test_lattice_is_nearly_a_gaussian() -> None:
    features = grid(12, 12, 3.0)
    made = Lattice.of(features).on(torch.zeros(1, dtype=torch.float64))
    ones, rows = (made(torch.from_numpy(values)).numpy() for values in (np.ones((1, 144)), np.eye(144)))
    exact = np.exp(-np.square(features[:, None] - features).sum(axis=2) / 2)
    # Adams et al. 2010 tell of errors of a few per cent of the largest weight.
    np.testing.assert_allclose(rows / ones, exact / exact.sum(axis=0), atol=0.3 * (exact / exact.sum(axis=0)).max())


def test_gradient_is_the_transpose() -> None:
    features = np.concatenate([grid(4, 5, 4.0), arrays((20, 3), seed=3)[0]], axis=1).astype(np.float32)
    made = Lattice.of(features).on(torch.zeros(1, dtype=torch.float64))
    eye = torch.eye(20, dtype=torch.float64)
    np.testing.assert_allclose(made.run(eye, reverse=True), made.run(eye, reverse=False).T, atol=1e-12)


# -- the iterations ----------------------------------------------------------------------------------------


def naive_inference(unary: Array, q: Array, image: Array, blobs: list[Array], iterations: int) -> Array:
    """One item, (C, H, W), with filters as matrices."""
    classes, height, width = unary.shape
    colours = image[:3].reshape(3, -1).T.astype(np.float32) / np.float32(3)
    features = [grid(height, width, 2.0), np.concatenate([grid(height, width, 4.0), colours], axis=1)]
    matrices = [naive_filter(own, np.eye(height * width)) for own in features]
    matrices = [matrix / matrix.sum(axis=1, keepdims=True) for matrix in matrices]
    u, q = unary.reshape(classes, -1), q.reshape(classes, -1)
    for _ in range(iterations):
        p = np.exp(q) / np.exp(q).sum(axis=0)
        passed = sum(weight @ p @ matrix.T for weight, matrix in zip(blobs, matrices, strict=False))
        q = u - blobs[2] @ passed
    return q.reshape(unary.shape)


def test_inference_equals_plain_matrices() -> None:
    it = lone(text(3), (2, 3, 4, 5), (2, 3, 4, 5), (2, 4, 4, 5))
    bottoms, blobs = arrays((2, 3, 4, 5), (2, 3, 4, 5), (2, 4, 4, 5), seed=1, low=-4, high=4), it.blobs()
    flat = [blob[0, 0] for blob in blobs]
    wanted = [naive_inference(*item, flat, 3) for item in zip(*bottoms, strict=True)]
    np.testing.assert_allclose(forward(it, bottoms, blobs)[0], wanted, rtol=1e-5, atol=1e-5)


def test_sizes_may_change() -> None:
    it, blobs = lone(text(), *SHAPES), lone(text(), *SHAPES).blobs()
    for shape in ((1, 3, 6, 3), SHAPES[0]):
        bottoms = arrays(shape, shape, shape)
        got = forward(it, bottoms, blobs)[0]
        np.testing.assert_array_equal(got, forward(lone(text(), *[shape] * 3), bottoms, blobs)[0])


def test_what_is_kept_of_inference_serves_to_learn() -> None:
    it = lone(text(), *SHAPES)
    bottoms, (diff,) = arrays(*SHAPES), arrays(SHAPES[0], seed=2)
    with torch.inference_mode():
        it.layer.forward([torch.from_numpy(bottom) for bottom in bottoms], [torch.from_numpy(b) for b in it.blobs()])
    got, fresh = (gradients(net, bottoms, [diff], it.blobs()) for net in (it, lone(text(), *SHAPES)))
    for one, other in zip([*got[0], *got[1]], [*fresh[0], *fresh[1]], strict=True):
        np.testing.assert_array_equal(one, other)


# -- blobs and nets ----------------------------------------------------------------------------------------


NET = """
input: "data" input_dim: 1 input_dim: 3 input_dim: 6 input_dim: 7
layers { name: "score" type: CONVOLUTION bottom: "data" top: "score"
  convolution_param { num_output: 2 kernel_size: 1 } }
layers { name: "crop" type: CROP bottom: "score" bottom: "data" top: "coarse" }
layers { name: "split" type: SPLIT bottom: "coarse" top: "unary" top: "q" }
layers { name: "crf" type: MULTI_STAGE_MEANFIELD bottom: "unary" bottom: "q" bottom: "data" top: "pred" blobs_lr: 0.1
  multi_stage_meanfield_param { num_iterations: 2 theta_alpha: 4 theta_beta: 3 theta_gamma: 3 threshold: 2 } }
"""


def test_nets_of_generation_v1_begin_with_the_files(tmp_path: Path) -> None:
    (tmp_path / "net.prototxt").write_text(NET)
    (tmp_path / "spatial.par").write_text("3 2 9\n")
    (tmp_path / "bilateral.par").write_text("5\n4.5")
    model = load(tmp_path / "net.prototxt", dialect="crfasrnn")
    state = {name: value.numpy()[0, 0] for name, value in model.state_dict().items() if "crf" in name}
    assert {name.rpartition(".")[2] for name in state} == set(BLOBS)
    for name, diagonal in zip(BLOBS, ([3, 2], [5, 4.5], [-1, -1]), strict=True):
        (own,) = (value for key, value in state.items() if key.endswith(name))
        np.testing.assert_array_equal(own, np.diag(diagonal).astype(np.float32))
    assert model({"data": torch.zeros(1, 3, 6, 7)})["pred"].shape == (1, 2, 6, 7)
    assert any("threshold have no effect" in note for note in model.graph.notes)


@pytest.mark.parametrize(
    ("written", "why"),
    [(None, "cannot be read"), ("1 2", "holds 2 numbers for 3 classes"), ("1 x 2", "cannot be read")],
)
def test_files_that_do_not_serve_are_refused(tmp_path: Path, written: str | None, why: str) -> None:
    if written is not None:
        (tmp_path / "spatial.par").write_text(written)
    it = lone(text(), *SHAPES, folder=str(tmp_path))
    with pytest.raises(LayerError, match=why):
        it.layer.initial(0)


def test_fields_that_no_code_reads_are_told() -> None:
    notes = lone(text(more="spatial_filter_weight: 3 bilateral_filter_weight: 5"), *SHAPES).graph.notes
    assert any("spatial_filter_weight, bilateral_filter_weight have no effect" in note for note in notes)


def test_fork_is_known_by_the_layer() -> None:
    assert guess_net(lone(text(), *SHAPES).graph.net).dialect == "crfasrnn"


# -- refusals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "shapes", "why", "field"),
    [
        (text(1), SHAPES, "num_iterations is 1", "multi_stage_meanfield_param.num_iterations"),
        (text(gamma=0), SHAPES, "theta_gamma is 0", "multi_stage_meanfield_param.theta_gamma"),
        (text(), ((2, 3, 4),) * 3, "the unary terms have shape", "bottom[0]"),
        (text(), (SHAPES[0], (2, 4, 4, 5), SHAPES[0]), "bottom 1 has shape", "bottom[1]"),
        (text(), (*SHAPES[:2], (2, 1, 4, 5)), "the image has shape", "bottom[2]"),
        (text(), (*SHAPES[:2], (2, 3, 4, 6)), "the image has shape", "bottom[2]"),
    ],
)
def test_refusals(fields: str, shapes: tuple[Shape, ...], why: str, field: str) -> None:
    what, blamed = refusal(fields, *shapes)
    assert why in what
    assert blamed == field


@pytest.mark.parametrize(("value", "why"), [(np.nan, "no numbers"), (1e18, "too far apart")])
def test_images_without_a_lattice_are_refused(value: float, why: str) -> None:
    it: Lone = lone(text(), *SHAPES)
    bottoms = arrays(*SHAPES)
    bottoms[2][1, 2, 3, 4] = value
    with pytest.raises(LayerError, match=why):
        forward(it, bottoms, it.blobs())
