"""DetectionOutput and PriorBox of TextBoxes++ against loops over single boxes."""

from __future__ import annotations

from math import exp

import numpy as np
import pytest

from caffe_compat.errors import ConversionError, LayerError
from tests.caffe_compat.layers import naive_boxes as naive
from tests.caffe_compat.layers.harness import Array, Lone, export, forward, lone
from tests.caffe_compat.layers.refusals import refusal

N, P, C = 2, 20, 3
LOOSE = "num_classes: 3 code_type: CENTER_SIZE"
NMS = "nms_param { nms_threshold: 0.3 top_k: 12 } confidence_threshold: 0.2"


def text(fields: str) -> str:
    return f'type: "DetectionOutput" detection_output_param {{ {fields} }}'


def output(values: int, located: int = 1, fields: str = NMS) -> Lone:
    shapes = (N, P * located * values), (N, P * C), (1, 2, P * 4)
    polygon = f"use_polygon: {str(values == 12).lower()} share_location: {str(located == 1).lower()}"
    return lone(text(f"{LOOSE} {polygon} {fields}"), *shapes, dialect="textboxes")


def predictions(values: int, located: int) -> list[Array]:
    generator = np.random.default_rng(5)
    boxes = naive.random_boxes(P, least=0.2).reshape(-1)
    prior = np.stack([boxes, np.tile([0.1, 0.2, 0.3, 0.4], P)])[None]
    conf = generator.dirichlet(np.ones(C), (N, P)).reshape(N, -1)
    found = generator.normal(0, 0.5, (N, P * located * values)), conf, prior
    return [part.astype(np.float32).astype(np.float64) for part in found]


def outline(code: Array, box: Array, variance: Array) -> list[float]:
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    if len(code) == 8:
        corners = (left, top), (right, top), (right, bottom), (left, bottom)
        found: list[float] = []
        for (x, y), dx, dy in zip(corners, code[::2], code[1::2], strict=True):
            found += [variance[0] * dx * width + x, variance[1] * dy * height + y]
        return found
    x, y = (left + right) / 2, (top + bottom) / 2
    points = [variance[0] * code[0] * width + x, variance[1] * code[1] * height + y]
    points += [variance[0] * code[2] * width + x, variance[1] * code[3] * height + y]
    return [*points, exp(variance[3] * code[4]) * height]


@pytest.mark.parametrize("values", [12, 9])
@pytest.mark.parametrize("located", [1, C])
@pytest.mark.parametrize("keep", [-1, 5])
def test_outlines_of_what_is_kept(values: int, located: int, keep: int) -> None:
    loc, conf, prior = predictions(values, located)
    boxes, variances = prior.reshape(2, P, 4)
    want = []
    for image in range(N):
        own = []
        for label in range(1, C):
            codes = loc[image].reshape(P, located, values)[:, label if located > 1 else 0]
            scores = conf[image].reshape(P, C)[:, label]
            order = sorted((i for i in range(P) if scores[i] > 0.2), key=lambda i: -scores[i])[:12]
            found = [naive.decode(codes[i, :4], boxes[i], variances[i], "CENTER_SIZE", False) for i in order]
            for j in naive.suppress(found, 0.3, 1.0):
                i = order[j]
                own.append([image, label, scores[i], *found[j], *outline(codes[i, 4:], boxes[i], variances[i])])
        if -1 < keep < len(own):
            own = sorted(sorted(own, key=lambda row: -row[2])[:keep], key=lambda row: row[1])
        want += own
    it = output(values, located, f"{NMS} keep_top_k: {keep}")
    (top,) = forward(it, [loc, conf, prior])
    assert it.top_shapes == [(1, 1, 1, values + 3)]
    assert top.shape == (1, 1, len(want), values + 3)
    assert len(want) > 2 * N
    np.testing.assert_allclose(top[0, 0], want, atol=2e-6)


@pytest.mark.parametrize("values", [12, 9])
def test_no_text(values: int) -> None:
    (top,) = forward(output(values, fields="confidence_threshold: 2"), predictions(values, 1))
    np.testing.assert_array_equal(top[0, 0], [[image, *[-1] * (values + 2)] for image in range(N)])


def test_polygons_unless_the_net_says_otherwise() -> None:
    shapes = (N, P * 12), (N, P * C), (1, 2, P * 4)
    it = lone(text(LOOSE), *shapes, dialect="textboxes")
    assert it.top_shapes == [(1, 1, 1, 15)]
    with pytest.raises(ConversionError, match="DetectionOutput has no exact form"):
        export(it)


def test_a_net_that_states_polygons_is_of_this_fork() -> None:
    shapes = (N, P * 9), (N, P * C), (1, 2, P * 4)
    assert lone(text(f"{LOOSE} use_polygon: false"), *shapes, dialect="textboxes").top_shapes == [(1, 1, 1, 12)]
    with pytest.raises(LayerError, match="has 180 values per item; 20 priors need 240"):
        lone(text(f"{LOOSE} use_polygon: true"), *shapes, dialect="textboxes")


@pytest.mark.parametrize(
    ("fields", "what", "field"),
    [
        ("", "num_classes is missing", "num_classes"),
        ("num_classes: 3", "a code_type without outlines", "code_type"),
        (
            f"{LOOSE} variance_encoded_in_target: true",
            "codes without variances have no outlines",
            "variance_encoded_in_target",
        ),
    ],
)
def test_what_is_refused(fields: str, what: str, field: str) -> None:
    shapes = (N, P * 12), (N, P * C), (1, 2, P * 4)
    assert refusal(text(fields), *shapes, dialect="textboxes") == (what, f"detection_output_param.{field}")


# -- PriorBox ----------------------------------------------------------------------------------------------


def test_boxes_between_the_rows() -> None:
    fields = "min_size: 4 max_size: 9 aspect_ratio: 4 flip: false denser_prior_boxes: true variance: 0.3"
    it = lone(f'type: "PriorBox" prior_box_param {{ {fields} }}', (1, 1, 3, 2), (1, 1, 12, 10))
    want = []
    for row, column in np.ndindex(3, 2):
        for width, height in ((4, 4), (6, 6), (8, 2)):
            for y in ((row + 0.5) * 4, (row + 1) * 4):
                x = (column + 0.5) * 5
                left, right = (x - width / 2) / 10, (x + width / 2) / 10
                want.append([left, (y - height / 2) / 12, right, (y + height / 2) / 12])
    (top,) = forward(it, [np.zeros((1, 1, 3, 2)), np.zeros((1, 1, 12, 10))])
    assert it.top_shapes == [top.shape] == [(1, 2, 4 * len(want))]
    np.testing.assert_allclose(top[0, 0].reshape(-1, 4), want, rtol=1e-12)
    np.testing.assert_allclose(top[0, 1], 0.3, rtol=1e-6)
