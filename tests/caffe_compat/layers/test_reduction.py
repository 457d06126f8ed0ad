from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from caffe_compat.errors import LayerError
from tests.caffe_compat.layers.harness import Array, arrays, forward, gradients, lone

SHAPE = (2, 3, 4)
RULES: dict[str, tuple[Callable[[Array], Array], Callable[[Array], Array]]] = {
    "SUM": (lambda x: x.sum(-1), np.ones_like),
    "ASUM": (lambda x: np.abs(x).sum(-1), np.sign),
    "SUMSQ": (lambda x: (x * x).sum(-1), lambda x: 2 * x),
    "MEAN": (lambda x: x.mean(-1), lambda x: np.ones_like(x) / x.shape[-1]),
}


@pytest.mark.parametrize("operation", RULES)
@pytest.mark.parametrize(("axis", "kept"), [(0, ()), (1, (2,)), (-1, (2, 3))])
@pytest.mark.parametrize("coeff", [1, -2.5])
def test_reduces_the_last_axes(operation: str, axis: int, kept: tuple[int, ...], coeff: float) -> None:
    text = f'type: "Reduction" reduction_param {{ operation: {operation} axis: {axis} coeff: {coeff} }}'
    it = lone(text, SHAPE)
    (x,) = arrays(SHAPE)
    x[0, 0, 0] = 0
    value, slope = RULES[operation]
    rows = x.reshape(*kept, -1)
    np.testing.assert_allclose(forward(it, [x])[0], coeff * value(rows), rtol=1e-12)
    found = gradients(it, [x], [np.full(kept, 3.0)])[0][0]
    np.testing.assert_allclose(found, (3 * coeff * slope(rows)).reshape(SHAPE), rtol=1e-12)


def test_axis_out_of_range() -> None:
    with pytest.raises(LayerError, match="out of range"):
        lone('type: "Reduction" reduction_param { axis: 3 }', SHAPE)
    with pytest.raises(LayerError, match="in place"):
        lone('type: "Reduction"', SHAPE, inplace=True)
