"""PriorBox and PriorBoxClustered against loops over cells."""

from __future__ import annotations

import numpy as np
import pytest

from caffe_compat.errors import LayerError
from caffe_compat.layers.base import Shape
from tests.caffe_compat.layers.harness import Array, forward, lone, run_onnx, session
from tests.caffe_compat.layers.refusals import refusal

FEATURES, IMAGE = (2, 3, 4, 5), (2, 3, 37, 61)


def text(fields: str, kind: str = "PriorBox") -> str:
    return f'type: "{kind}" prior_box_param {{ {fields} }}'


def reference(
    sizes: list[tuple[float, float]],
    step: tuple[float, float] | None = None,
    image: tuple[float, float] = (37, 61),
    offset: float = 0.5,
) -> Array:
    """Boxes in rows, cell by cell; step and image are (h, w)."""
    step = step or (image[0] / FEATURES[2], image[1] / FEATURES[3])
    rows = []
    for y in range(FEATURES[2]):
        for x in range(FEATURES[3]):
            cx, cy = (x + offset) * step[1], (y + offset) * step[0]
            rows += [[(cx - w / 2), (cy - h / 2), (cx + w / 2), (cy + h / 2)] for w, h in sizes]
    return np.array(rows) / [image[1], image[0], image[1], image[0]]


@pytest.mark.parametrize(
    ("fields", "sizes"),
    [
        ("min_size: 10", [(10, 10)]),
        ("min_size: 12.9", [(12, 12)]),
        ("min_size: 10 max_size: 20.7", [(10, 10), (200**0.5,) * 2]),
        ("min_size: 9 aspect_ratio: 4", [(9, 9), (18, 4.5), (4.5, 18)]),
        ("min_size: 9 aspect_ratio: 4 flip: false", [(9, 9), (18, 4.5)]),
        ("min_size: 9 aspect_ratio: 1 aspect_ratio: 4 aspect_ratio: 4.0000001", [(9, 9), (18, 4.5), (4.5, 18)]),
        ("min_size: 9 aspect_ratio: 4 aspect_ratio: 0.25", [(9, 9), (18, 4.5), (4.5, 18)]),
        ("min_size: 4 min_size: 9 max_size: 8 max_size: 10", [(4, 4), (32**0.5,) * 2, (9, 9), (90**0.5,) * 2]),
    ],
)
def test_boxes_of_a_cell(fields: str, sizes: list[tuple[float, float]]) -> None:
    it = lone(text(fields), FEATURES, IMAGE)
    (top,) = forward(it, [np.zeros(FEATURES), np.zeros(IMAGE)])
    assert it.top_shapes == [top.shape] == [(1, 2, 4 * 5 * len(sizes) * 4)]
    np.testing.assert_allclose(top[0, 0].reshape(-1, 4), reference(sizes), rtol=1e-6, atol=1e-6)
    assert (top[0, 1] == np.float32(0.1)).all()


@pytest.mark.parametrize(
    ("fields", "step", "image", "offset"),
    [
        ("step: 8", (8, 8), (37, 61), 0.5),
        ("step_h: 9 step_w: 12 offset: 0.25", (9, 12), (37, 61), 0.25),
        ("img_size: 64", None, (64, 64), 0.5),
        ("img_h: 32 img_w: 40 offset: 0", None, (32, 40), 0),
    ],
)
def test_places_of_the_boxes(
    fields: str, step: tuple[float, float] | None, image: tuple[float, float], offset: float
) -> None:
    shapes = [FEATURES] if "img" in fields else [FEATURES, IMAGE]
    (top,) = forward(lone(text(f"min_size: 10 {fields}"), *shapes), [np.zeros(shape) for shape in shapes])
    want = reference([(10, 10)], step, image, offset)
    np.testing.assert_allclose(top[0, 0].reshape(-1, 4), want, rtol=1e-6, atol=1e-6)


def test_clipping_and_variances() -> None:
    fields = "min_size: 30 clip: true variance: 0.1 variance: 0.2 variance: 0.3 variance: 0.4"
    (top,) = forward(lone(text(fields), FEATURES, IMAGE), [np.zeros(FEATURES), np.zeros(IMAGE)])
    want = reference([(30, 30)])
    assert want.min() < 0
    assert want.max() > 1
    np.testing.assert_allclose(top[0, 0].reshape(-1, 4), want.clip(0, 1), rtol=1e-6, atol=1e-6)
    assert top[0, 1].tolist() == np.tile(np.array([0.1, 0.2, 0.3, 0.4], np.float32), 20).tolist()
    one = forward(lone(text("min_size: 3 variance: 0.7"), FEATURES, IMAGE), [np.zeros(FEATURES), np.zeros(IMAGE)])
    assert (one[0][0, 1] == np.float32(0.7)).all()


def test_float32_boxes_are_rounded_once() -> None:
    """Centres are float32, corners float64, as in the fork."""
    (top,) = forward(
        lone(text("min_size: 7"), FEATURES, IMAGE), [np.zeros(FEATURES), np.zeros(IMAGE)], dtype=np.float32
    )
    step = np.float32(61) / np.float32(5)
    centres = (np.arange(5, dtype=np.float32) + np.float32(0.5)) * step
    want = ((centres.astype(float) - 3.5) / 61).astype(np.float32)
    assert top[0, 0].reshape(4, 5, 4)[2, :, 0].tolist() == want.tolist()


def test_clustered_boxes() -> None:
    it = lone(text("width: 9.5 width: 3 height: 2.5 height: 8 step: 8", "PriorBoxClustered"), FEATURES, IMAGE)
    (top,) = forward(it, [np.zeros(FEATURES), np.zeros(IMAGE)])
    want = reference([(9.5, 2.5), (3, 8)], (8, 8))
    np.testing.assert_allclose(top[0, 0].reshape(-1, 4), want, rtol=1e-6, atol=1e-6)


def test_other_sizes_at_run_time() -> None:
    features, image = (1, 3, 2, 6), (1, 3, 50, 40)
    it, larger = lone(text("min_size: 4"), FEATURES, IMAGE), lone(text("min_size: 4"), features, image)
    bottoms = [np.zeros(features), np.zeros(image)]
    forward(it, [np.zeros(FEATURES), np.zeros(IMAGE)])
    np.testing.assert_array_equal(forward(it, bottoms)[0], forward(larger, bottoms)[0])


def test_fewer_axes() -> None:
    (top,) = forward(lone(text("min_size: 4 img_size: 8"), (2, 3)), [np.zeros((2, 3))])
    np.testing.assert_allclose(top[0, 0], [0.25, 0.25, 0.75, 0.75])


@pytest.mark.parametrize("opset", [13, 21])
def test_onnx_has_the_same_bits(opset: int) -> None:
    it = lone(text("min_size: 10 max_size: 20 aspect_ratio: 3"), FEATURES, IMAGE)
    bottoms = [np.zeros(FEATURES), np.zeros(IMAGE)]
    np.testing.assert_array_equal(
        run_onnx(session(it, opset=opset), bottoms)[0], forward(it, bottoms, dtype=np.float32)[0]
    )


@pytest.mark.parametrize(
    ("fields", "what", "field"),
    [
        ("", "min_size is missing", "min_size"),
        ("min_size: 0", "min_size 0.0 is not positive", "min_size[0]"),
        ("min_size: 4 min_size: 5 max_size: 9", "1 max_size for 2 min_size", "max_size[0]"),
        ("min_size: 4 max_size: 4", "max_size 4.0 is not above min_size 4.0", "max_size[0]"),
        ("min_size: 4 variance: 0.1 variance: 0.2", "2 variances", "variance[0]"),
        ("min_size: 4 variance: 0", "variance 0.0 is not positive", "variance[0]"),
        ("min_size: 4 img_size: 9 img_h: 8", "both img_size and img_h are given", "img_h"),
        ("min_size: 4 img_h: 8", "img 8 x 0 must be positive", "img_h"),
        ("min_size: 4 img_size: 0", "img 0 x 0 must be positive", "img_size"),
        ("min_size: 4 step: 9 step_w: 8", "both step and step_w are given", "step_w"),
        ("min_size: 4 step: 0", "step 0.0 x 0.0 must be positive", "step"),
    ],
)
def test_refused_parameters(fields: str, what: str, field: str) -> None:
    message, place = refusal(text(fields), FEATURES, IMAGE)
    assert what in message
    assert place == f"prior_box_param.{field}"


@pytest.mark.parametrize(
    ("fields", "what", "field"),
    [
        ("", "width is missing", "width"),
        ("width: 3", "0 height for 1 width", "height"),
        ("width: 3 height: 0", "height 0.0 is not positive", "height[0]"),
    ],
)
def test_refused_clusters(fields: str, what: str, field: str) -> None:
    message, place = refusal(text(fields, "PriorBoxClustered"), FEATURES, IMAGE)
    assert what in message
    assert place == f"prior_box_param.{field}"


@pytest.mark.parametrize(
    ("shapes", "what"), [((FEATURES,), "neither the image's size"), (((1, 1, 1, 2, 2), IMAGE), "5 axes")]
)
def test_bottoms_that_do_not_fit(shapes: tuple[Shape, ...], what: str) -> None:
    with pytest.raises(LayerError, match=what):
        lone(text("min_size: 4"), *shapes)
