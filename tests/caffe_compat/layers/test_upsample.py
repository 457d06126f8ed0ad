"""Both forks' Upsample."""

from __future__ import annotations

import numpy as np
import pytest

from caffe_compat.errors import ConversionError, LayerError, UnknownLayerError
from caffe_compat.layers.base import Context, Shape, find_layer
from tests.caffe_compat.layers.harness import Array, Lone, arrays, export, forward, gradients, lone, run_onnx, session
from tests.caffe_compat.layers.refusals import refusal

SHAPE = (2, 3, 2, 3)


def masked(fields: str = "", shape: Shape = SHAPE, mask: Shape | None = None) -> Lone:
    text = f'type: "Upsample" upsample_param {{ {fields} }}'
    return lone(text, shape, mask or shape, dialect="segnet")


def places(count: int, seed: int = 0, repeat: bool = False) -> Array:
    """A mask of SHAPE with places below `count`."""
    generator = np.random.default_rng(seed)
    planes = [generator.choice(count, SHAPE[2:], replace=repeat) for _ in range(SHAPE[0] * SHAPE[1])]
    return np.array(planes, float).reshape(SHAPE)


def reference(x: Array, mask: Array, size: tuple[int, int]) -> Array:
    top = np.zeros((*x.shape[:2], size[0] * size[1]))
    for n, c in np.ndindex(x.shape[:2]):
        for place, value in zip(mask[n, c].ravel(), x[n, c].ravel(), strict=True):
            top[n, c, int(place)] = value
    return top.reshape(*x.shape[:2], *size)


@pytest.mark.parametrize("scale", [1, 2, 3])
def test_nearest(scale: int) -> None:
    (x,) = arrays(SHAPE)
    it = lone(f'type: "Upsample" upsample_param {{ scale: {scale} }}', SHAPE, dialect="mobilenet-yolo")
    np.testing.assert_array_equal(forward(it, [x])[0], x.repeat(scale, 2).repeat(scale, 3))


def test_nearest_scales_by_1_unless_told() -> None:
    it = lone('type: "Upsample"', SHAPE, dialect="mobilenet-yolo")
    assert it.top_shapes == [SHAPE]


@pytest.mark.parametrize(
    ("fields", "size"),
    [
        ("", (4, 6)),
        ("scale: 3", (6, 9)),
        ("scale_h: 2 scale_w: 4", (4, 12)),
        ("pad_out_h: true pad_out_w: true", (3, 5)),
        ("pad_out_w: true", (4, 5)),
        ("upsample_h: 5 upsample_w: 7", (5, 7)),
        ("scale: 2 upsample_h: 5 upsample_w: 7", (5, 7)),
    ],
)
@pytest.mark.parametrize("repeat", [False, True])
def test_places(fields: str, size: tuple[int, int], repeat: bool) -> None:
    it = masked(fields)
    assert it.top_shapes == [(*SHAPE[:2], *size)]
    (x,), mask = arrays(SHAPE), places(size[0] * size[1], repeat=repeat)
    np.testing.assert_array_equal(forward(it, [x, mask])[0], reference(x, mask, size))
    (d,) = arrays((*SHAPE[:2], *size), seed=1)
    (got, none), _ = gradients(it, [x, mask], [d])
    want = np.take_along_axis(d.reshape(*SHAPE[:2], -1), mask.reshape(*SHAPE[:2], -1).astype(int), 2)
    np.testing.assert_array_equal(got, want.reshape(SHAPE))
    assert not none.any()


def test_of_values_for_one_place_the_last_stays_and_all_get_the_gradient() -> None:
    it = masked("upsample_h: 2 upsample_w: 2", (1, 1, 1, 3))
    x, mask = np.array([5.0, 7.0, 9.0]).reshape(1, 1, 1, 3), np.array([1.0, 3.0, 1.0]).reshape(1, 1, 1, 3)
    assert forward(it, [x, mask])[0].ravel().tolist() == [0, 9, 0, 7]
    (got, _), _ = gradients(it, [x, mask], [np.arange(4.0).reshape(1, 1, 2, 2)])
    assert got.ravel().tolist() == [1, 3, 1]


@pytest.mark.parametrize(("place", "told"), [(24, "24"), (-1, "-1")])
def test_a_place_outside_the_top(place: int, told: str) -> None:
    mask = places(24)
    mask[1, 2, 0, 1] = place
    with pytest.raises(LayerError, match=f"the mask points to {told}; the top has places 0 to 23"):
        forward(masked(), [*arrays(SHAPE), mask])


@pytest.mark.parametrize("opset", [18, 21])
@pytest.mark.parametrize("batch", [2, 3])
def test_onnx_runtime_agrees(opset: int, batch: int) -> None:
    (x,), mask = arrays((batch, *SHAPE[1:])), np.resize(places(24, repeat=True), (batch, *SHAPE[1:]))
    got = run_onnx(session(masked(), opset=opset), [x, mask])
    np.testing.assert_array_equal(got[0], forward(masked(), [x, mask], dtype=np.float32)[0])


def test_older_onnx_cannot_choose_among_values_for_one_place() -> None:
    with pytest.raises(ConversionError) as caught:
        export(masked(), opset=17)
    assert "--opset 18" in caught.value.remedy


@pytest.mark.parametrize(
    ("fields", "what", "field"),
    [
        ("scale: 1", "scale is 1; it must be above 1", "scale"),
        ("scale_h: 2 scale_w: 1", "scale_w is 1", "scale_w"),
        ("upsample_h: 1 upsample_w: 5", "upsample_h is 1", "upsample_h"),
        ("scale_h: 2", "the scale is given by scale, or by both", "scale_h"),
        ("scale: 2 scale_h: 2 scale_w: 2", "the scale is given by scale, or by both", "scale_h"),
        ("scale: 3 pad_out_h: true", "pad_out_h needs a scale of 2, got 3", "pad_out_h"),
    ],
)
def test_refused_parameters(fields: str, what: str, field: str) -> None:
    message, place = refusal(f'type: "Upsample" upsample_param {{ {fields} }}', SHAPE, SHAPE, dialect="segnet")
    assert what in message
    assert place == f"upsample_param.{field}"


def test_bottoms_that_do_not_fit() -> None:
    with pytest.raises(LayerError, match=r"the mask has shape \(2, 3, 3, 3\), the data \(2, 3, 2, 3\)"):
        masked(mask=(2, 3, 3, 3))
    with pytest.raises(LayerError, match="four axes"):
        masked(shape=(2, 3, 4))
    assert refusal('type: "Upsample" upsample_param { scale: 0 }', SHAPE, dialect="mobilenet-yolo")[0] == "scale is 0"


def test_the_forks_have_to_be_told_apart() -> None:
    with pytest.raises(UnknownLayerError, match="means different things in mobilenet-yolo, segnet"):
        find_layer("Upsample", Context())
