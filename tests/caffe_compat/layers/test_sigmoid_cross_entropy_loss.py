"""SigmoidCrossEntropyLoss against a naive reference."""

from __future__ import annotations

import numpy as np
import pytest

from caffe_compat.errors import LayerError
from tests.caffe_compat.layers.harness import Array, arrays, check_gradients, forward, gradients, lone

SHAPE = (3, 2, 2)


def text(fields: str = "") -> str:
    return f'type: "SigmoidCrossEntropyLoss" loss_param {{ {fields} }}'


def reference(x: Array, t: Array, ignore: int | None) -> tuple[float, Array, int]:
    """Summed loss, its gradient, and how many targets count."""
    p = 1 / (1 + np.exp(-x))
    counts = np.ones(x.shape, bool) if ignore is None else np.trunc(t) != ignore
    losses = -(t * np.log(p) + (1 - t) * np.log(1 - p))
    return float(losses[counts].sum()), np.where(counts, p - t, 0), int(counts.sum())


@pytest.mark.parametrize("ignore", [None, 0, 255])
@pytest.mark.parametrize("mode", ["", "FULL", "VALID", "BATCH_SIZE", "NONE"])
def test_loss_and_gradient(mode: str, ignore: int | None) -> None:
    (x,) = arrays(SHAPE)
    t = np.random.default_rng(1).choice([0.0, 0.3, 1.0, 255.0 if ignore == 255 else 0.7], SHAPE)
    stated = (f"normalization: {mode} " if mode else "") + ("" if ignore is None else f"ignore_label: {ignore}")
    it = lone(text(stated), SHAPE, SHAPE)
    loss, grad, counted = reference(x, t, ignore)
    z = {"FULL": 12, "VALID": counted, "BATCH_SIZE": 3, "": 3, "NONE": 1}[mode]
    np.testing.assert_allclose(forward(it, [x, t])[0], loss / z, rtol=1e-12)
    (got, none), _ = gradients(it, [x, t], [np.array(1.0)])
    np.testing.assert_allclose(got, grad / z, atol=1e-12)
    assert not none.any()


@pytest.mark.parametrize(("fields", "z"), [("normalize: true", 12), ("normalize: false", 3)])
def test_old_normalize_field(fields: str, z: int) -> None:
    it = lone(text(fields), SHAPE, SHAPE)
    np.testing.assert_allclose(forward(it, [np.zeros(SHAPE), np.ones(SHAPE)])[0], 12 * np.log(2) / z)


def test_large_values_do_not_overflow() -> None:
    it = lone(text("normalization: NONE"), (1, 2), (1, 2))
    np.testing.assert_allclose(forward(it, [np.array([[1e4, -1e4]]), np.array([[0.0, 1.0]])])[0], 2e4)


def test_gradient_by_differences() -> None:
    it = lone(text(), SHAPE, SHAPE)
    check_gradients(it, arrays(SHAPE, SHAPE, low=0.1, high=0.9))


def test_targets_of_another_shape_with_as_many_values() -> None:
    it = lone(text(), (2, 3), (2, 3, 1))
    np.testing.assert_allclose(forward(it, [np.zeros((2, 3)), np.ones((2, 3, 1))])[0], 3 * np.log(2))


@pytest.mark.parametrize(
    ("shapes", "message"),
    [(((2, 3), (2, 4)), "number of values"), (((2, 3), (3, 2)), "first dimension")],
)
def test_refused(shapes: tuple[tuple[int, ...], ...], message: str) -> None:
    with pytest.raises(LayerError, match=message):
        lone(text(), *shapes)
