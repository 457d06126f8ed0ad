"""Activations and normalisations of forks."""

from __future__ import annotations

import numpy as np
import pytest

from caffe_compat.errors import LayerError
from tests.caffe_compat.layers.harness import (
    Array,
    arrays,
    check_gradients,
    forward,
    gradients,
    lone,
    run_onnx,
    session,
)
from tests.caffe_compat.layers.refusals import refusal
from tests.tolerances import LAYERS

IMAGE = (2, 3, 4, 5)


def mish(x: Array) -> Array:
    return np.asarray(x * np.tanh(np.log1p(np.exp(x))))


def mish_slope(x: Array) -> Array:
    gate = np.tanh(np.log1p(np.exp(x)))
    return np.asarray(gate + x * (1 - gate**2) / (1 + np.exp(-x)))


def test_mish_and_its_gradient_at_the_top() -> None:
    (x, grad) = arrays(IMAGE, IMAGE, low=-6, high=6)
    it = lone('type: "Mish"', IMAGE)
    np.testing.assert_allclose(forward(it, [x])[0], mish(x), rtol=1e-12)
    (got,), _ = gradients(it, [x], [grad])
    np.testing.assert_allclose(got, grad * mish_slope(mish(x)), rtol=1e-10)


def test_mish_in_onnx() -> None:
    (x,) = arrays(IMAGE, low=-30, high=30)
    it = lone('type: "Mish"', IMAGE)
    for opset in (13, 17, 18, 21):
        assert LAYERS.ratio(run_onnx(session(it, opset=opset), [x])[0], forward(it, [x], dtype=np.float32)[0]) <= 1


def test_hard_swish() -> None:
    x = np.linspace(-5, 5, 120).reshape(IMAGE)
    np.testing.assert_allclose(forward(lone('type: "HardSwish"', IMAGE), [x])[0], x * np.clip(x + 3, 0, 6) / 6)


# -- Normalize ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4, 3), IMAGE])
def test_items_of_length_one(shape: tuple[int, ...]) -> None:
    (x,) = arrays(shape)
    it = lone('type: "Normalize"', shape, dialect="yjxiong")
    full = x.reshape((*shape, 1, 1)[:4])
    want = full / np.sqrt((full**2).sum((1, 2, 3), keepdims=True))
    assert it.top_shapes == [want.shape]
    np.testing.assert_allclose(forward(it, [x])[0], want)
    check_gradients(it, [x])
    assert LAYERS.ratio(run_onnx(session(it), [x])[0], want) <= 1


@pytest.mark.parametrize("kind", ["L1", "L2"])
@pytest.mark.parametrize("shape", [(4, 3), IMAGE])
def test_channels_of_length_one(shape: tuple[int, ...], kind: str) -> None:
    (x,) = arrays(shape)
    it = lone(
        f'type: "Normalize" normalize_param {{ normalize_type: "{kind}" }}', shape, tops=2, dialect="caffe-windows"
    )
    full = x.reshape((*shape, 1, 1)[:4])
    squares = (full**2).sum(1, keepdims=True)
    norm = np.sqrt(squares + 1e-12) if kind == "L2" else np.abs(full).sum(1, keepdims=True) + 1e-6
    assert it.top_shapes == [full.shape, norm.shape]
    for got, want in zip(forward(it, [x]), (full / norm, norm), strict=True):
        np.testing.assert_allclose(got, want)
    for got, want in zip(run_onnx(session(it), [x]), (full / norm, norm), strict=True):
        assert LAYERS.ratio(got, want) <= 1


@pytest.mark.parametrize("through", [False, True])
@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("kind", ["L1", "L2"])
def test_gradient_of_channels(kind: str, fixed: bool, through: bool) -> None:
    x, grad = arrays(IMAGE, IMAGE)
    (by_norm,) = arrays((2, 1, 4, 5), seed=1)
    flags = f"fix_gradient: {str(fixed).lower()} bp_norm: {str(through).lower()}"
    text = f'type: "Normalize" normalize_param {{ normalize_type: "{kind}" {flags} }}'
    y, norm = forward(lone(text, IMAGE, tops=2, dialect="caffe-windows"), [x])
    direction = y if kind == "L2" else np.sign(x)
    want = grad - direction * (grad * y).sum(1, keepdims=True)
    want = want if fixed else want / norm
    one = lone(text, IMAGE, dialect="caffe-windows")
    np.testing.assert_allclose(gradients(one, [x], [grad])[0][0], want)
    two = lone(text, IMAGE, tops=2, dialect="caffe-windows")
    np.testing.assert_allclose(gradients(two, [x], [grad, by_norm])[0][0], want + through * direction * by_norm)


def test_gradient_of_length_two_is_the_derivative() -> None:
    text = 'type: "Normalize" normalize_param { bp_norm: true }'
    check_gradients(lone(text, IMAGE, tops=2, dialect="caffe-windows"), arrays(IMAGE))


def test_what_normalize_refuses() -> None:
    text = 'type: "Normalize" normalize_param { normalize_type: "L3" }'
    what = refusal(text, IMAGE, dialect="caffe-windows")
    assert what == ('normalize_type "L3"', "normalize_param.normalize_type")
    for dialect in ("yjxiong", "caffe-windows"):
        with pytest.raises(LayerError, match="allows 4"):
            lone('type: "Normalize"', (1, 2, 3, 4, 5), dialect=dialect)
