"""Layers of yuqj1991/caffe_train against loops: CenterGridOutput, BatchNormScale, FaceAttriEvaluate."""

from __future__ import annotations

from math import cos, exp, hypot, pi

import numpy as np
import pytest

from caffe_compat.errors import VggcError
from tests.caffe_compat.layers.harness import Array, arrays, export, forward, lone, run_onnx, session
from tests.caffe_compat.layers.refusals import refusal
from tests.tolerances import LAYERS

N, WIDTH, HEIGHT = 3, 32, 48
SIZES = ((2, 4), (3, 2), (6, 8))
SCALES = (5, 9, 17)


def text(fields: str, scales: tuple[int, ...] = SCALES) -> str:
    stated = " ".join(f"bias_scale: {scale}" for scale in scales)
    sizes = f"net_width: {WIDTH} net_height: {HEIGHT}"
    return f'type: "CenterGridOutput" detection_output_param {{ {stated} {sizes} {fields} }}'


def overlap(a: Array, b: Array) -> float:
    common = np.prod([max(min(a[i + 2], b[i + 2]) - max(a[i], b[i]) + 1, 0) for i in (0, 1)])
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return float(common / (sum(areas) - common))


def found(x: Array, scale: int, soft: bool, count: int) -> list[list[float]]:
    """Score, sides and points of every cell of one image."""
    rows = []
    height, width = x.shape[1:]
    ratio = WIDTH / width
    for row in range(height):
        for column in range(width):
            v = x[:, row, column]
            score = exp(v[-1]) / (exp(v[-1]) + exp(v[-2])) if soft else 1 / (1 + exp(-v[-1]))
            own = []
            for i in range(count):
                cell = row if i < 4 and i % 2 else column
                place = (cell + 0.5 - v[i] * scale / (ratio if soft else 2 * ratio)) * ratio
                own.append(min(max(place, 0.0), ratio * (height if i % 2 else width)))
            if own[2] > own[0] and own[3] > own[1] and score >= 0.4:
                rows.append([score, *own])
    return rows


@pytest.mark.parametrize("mode", ["SIGMOID", "SOFTMAX", "points"])
@pytest.mark.parametrize("most", [-1, 3])
def test_faces_of_grids(mode: str, most: int) -> None:
    soft, count = mode != "SIGMOID", 14 if mode == "points" else 4
    channels = count + 1 + soft
    fields = f"num_classes: {1 + soft} class_type: {'SOFTMAX' if soft else 'SIGMOID'} nms_thresh: 0.3"
    more = f"has_lm: {str(mode == 'points').lower()} confidence_threshold: 0.4 keep_top_k: {most}"
    it = lone(text(f"{fields} {more}"), *((N, channels, *size) for size in SIZES), dialect="yuqj1991")
    bottoms = arrays(*((N, channels, *size) for size in SIZES))
    wanted = []
    for image in range(N):
        rows = [row for x, scale in zip(bottoms, SCALES, strict=True) for row in found(x[image], scale, soft, count)]
        kept: list[list[float]] = []
        for row in sorted(rows, key=lambda row: -row[0]):
            if all(overlap(np.array(row[1:5]), np.array(other[1:5])) <= 0.3 for other in kept):
                kept.append(row)
        for row in kept[: most if most > 0 else None]:
            places = [value / (HEIGHT if i % 2 else WIDTH) for i, value in enumerate(row[1:])]
            wanted.append([image, 1, row[0], *places])
    assert len(wanted) > N
    np.testing.assert_allclose(forward(it, bottoms)[0], np.array(wanted)[None, None], rtol=1e-5, atol=1e-5)


def test_nothing_found_gives_a_row_for_each_image() -> None:
    it = lone(text("num_classes: 1 confidence_threshold: 2"), *((N, 5, *size) for size in SIZES), dialect="yuqj1991")
    wanted = np.full((1, 1, N, 7), -1.0)
    wanted[0, 0, :, 0] = range(N)
    np.testing.assert_array_equal(forward(it, arrays(*((N, 5, *size) for size in SIZES)))[0], wanted)


@pytest.mark.parametrize(
    ("fields", "channels", "what", "field"),
    [
        ("num_classes: 2", 5, "num_classes 2", "detection_output_param.num_classes"),
        ("num_classes: 1 class_type: SOFTMAX", 6, "num_classes 1", "detection_output_param.num_classes"),
        ("num_classes: 1 has_lm: true", 15, "has_lm with", "detection_output_param.has_lm"),
        ("num_classes: 1 bias_scale: 4", 5, "4 bias_scale for 3", "detection_output_param"),
    ],
)
def test_refuses_parameters(fields: str, channels: int, what: str, field: str) -> None:
    shapes = [(N, channels, *size) for size in SIZES]
    found_what, found_field = refusal(text(fields), *shapes, dialect="yuqj1991")
    assert what in found_what
    assert found_field == field


def test_refuses_grids_that_do_not_fit() -> None:
    with pytest.raises(VggcError, match="bottom 1 has shape"):
        lone(text("num_classes: 1"), (N, 5, 2, 2), (N, 6, 2, 2), (N, 5, 2, 2), dialect="yuqj1991")


# -- BatchNormScale ----------------------------------------------------------------------------------------


def statistics() -> list[Array]:
    rng = np.random.default_rng(3)
    sums = [rng.uniform(0.5, 2, 3), rng.uniform(0.5, 2, 3), np.array([2.0])]
    return [*sums, rng.normal(size=3), rng.normal(size=3)]


def column(values: Array) -> Array:
    return values.reshape(3, 1, 1)


@pytest.mark.parametrize("phase", ["TEST", "TRAIN"])
@pytest.mark.parametrize("same", [True, False])
def test_scales_what_is_normalised_in_place_alone(phase: str, same: bool) -> None:
    (x,), blobs = arrays((2, 3, 4, 5)), statistics()
    mean, variance, weight, scale, bias = (blob.copy() for blob in blobs)
    it = lone('type: "BatchNormScale"', x.shape, inplace=same, phase=phase, dialect="yuqj1991")
    if phase == "TRAIN":
        middle, spread = x.mean((0, 2, 3)), x.var((0, 2, 3))
    else:
        middle, spread = mean / weight, variance / weight
    normal = (x - column(middle)) / np.sqrt(column(spread) + 1e-5)
    wanted = (normal if same else x) * column(scale) + column(bias)
    np.testing.assert_allclose(forward(it, [x], blobs)[0], wanted, rtol=1e-9, atol=1e-9)


def test_batch_norm_scale_as_onnx() -> None:
    x, blobs = arrays((2, 3, 4, 5)), statistics()
    it = lone('type: "BatchNormScale"', (2, 3, 4, 5), inplace=True, dialect="yuqj1991")
    assert [node.op_type for node in export(it, blobs).graph.node] == ["BatchNormalization"]
    wanted = forward(it, x, blobs)[0]
    np.testing.assert_allclose(run_onnx(session(it, blobs), x)[0], wanted, rtol=LAYERS.rtol, atol=LAYERS.atol)


def test_batch_norm_scale_learns_scale_and_bias_alone() -> None:
    it = lone('type: "BatchNormScale"', (2, 3, 4, 5), dialect="yuqj1991")
    assert [spec.lr_mult for spec in it.layer.param_specs([], 5)] == [0, 0, 0, 1, 1]
    starts = [filler.value for filler in it.layer.fillers()]
    assert starts == [0, 0, 0, 1, 0]


# -- FaceAttriEvaluate -------------------------------------------------------------------------------------

EVALUATE = 'type: "FaceAttriEvaluate" face_evaluate_param { facetype: FACEATTRIBUTE }'


def test_faces_are_compared() -> None:
    data, truth = arrays((5, 18), (5, 17))
    truth[:, 13:15], truth[:, 15:] = [[1, 1], [0, 1], [1, 0], [1, 0], [0, 1]], np.abs(truth[:, 15:]) + 20
    got = forward(lone(EVALUATE, (5, 18), (5, 17), dialect="yuqj1991"), [data, truth])[0]
    right = [0, 0]
    for item, (p, t) in enumerate(zip(data, truth, strict=True)):
        width, height = t[15:]
        wanted = [hypot(width * (p[i] - t[i]), height * (p[i + 5] - t[i + 5])) / hypot(width, height) for i in range(5)]
        for kind, first in enumerate((13, 15)):
            chosen = 1 if p[first + 1] > max(p[first], 0) else 0
            right[kind] = 1 if chosen == t[13 + kind] else right[kind]
        wanted += [*right, *(cos((p[i] - t[i]) / 180 * pi) for i in (10, 11, 12))]
        np.testing.assert_allclose(got[0, 0, item], wanted, rtol=1e-5)


@pytest.mark.parametrize(
    ("layer", "shapes", "what"),
    [
        ('type: "FaceAttriEvaluate" face_evaluate_param { facepoints: 5 }', ((2, 17), (2, 17)), "facetype is missing"),
        (EVALUATE.replace("FACEATTRIBUTE", "FACE_ANGLE"), ((2, 17), (2, 17)), "facetype FACE_ANGLE"),
        (EVALUATE, ((2, 15), (2, 17)), "predictions of shape (2, 15)"),
        (EVALUATE, ((2, 17), (2, 16)), "truth of shape (2, 16)"),
    ],
)
def test_refuses_what_cannot_be_compared(layer: str, shapes: tuple[tuple[int, int], ...], what: str) -> None:
    with pytest.raises(VggcError) as caught:
        lone(layer, *shapes, dialect="yuqj1991")
    assert what in str(caught.value)
