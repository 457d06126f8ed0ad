"""Scale and Bias, which place their operand alike."""

from __future__ import annotations

import numpy as np
import pytest

from caffe_compat.errors import LayerError
from caffe_compat.layers.base import Shape
from tests.caffe_compat.layers.harness import arrays, forward, gradients, lone

SHAPE = (2, 3, 4, 5)
PLACES: dict[str, tuple[Shape, Shape]] = {
    "": ((3,), (1, 3, 1, 1)),
    "axis: 0": ((2,), (2, 1, 1, 1)),
    "axis: 1 num_axes: 2": ((3, 4), (1, 3, 4, 1)),
    "axis: -2 num_axes: -1": ((4, 5), (1, 1, 4, 5)),
    "axis: 0 num_axes: -1": (SHAPE, SHAPE),
    "num_axes: 0": ((), (1, 1, 1, 1)),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("learned", [True, False])
def test_operand_meets_its_axes(place: str, learned: bool) -> None:
    shape, along = PLACES[place]
    x, s, b = arrays(SHAPE, shape, shape)
    operands = [s, b] if learned else [b]
    extra, bottoms, held = ([], [x], [s]) if learned else ([shape], [x, s], [])
    scale = lone(f'type: "Scale" scale_param {{ {place} bias_term: true }}', SHAPE, *extra)
    assert scale.node.blob_shapes == (shape,) * len(operands)
    want = x * s.reshape(along) + b.reshape(along)
    np.testing.assert_allclose(forward(scale, bottoms, operands)[0], want, rtol=1e-12, atol=1e-12)
    bias = lone(f'type: "Bias" bias_param {{ {place} }}', SHAPE, *extra)
    np.testing.assert_allclose(forward(bias, bottoms, held)[0], x + s.reshape(along), rtol=1e-12)


def test_gradients_sum_over_the_other_axes() -> None:
    it = lone('type: "Scale" scale_param { bias_term: true }', SHAPE)
    x, d, s, b = arrays(SHAPE, SHAPE, (3,), (3,))
    bottoms, blobs = gradients(it, [x], [d], [s, b])
    np.testing.assert_allclose(bottoms[0], d * s.reshape(1, 3, 1, 1), rtol=1e-12)
    np.testing.assert_allclose(blobs[0], (d * x).sum((0, 2, 3)), rtol=1e-10)
    np.testing.assert_allclose(blobs[1], d.sum((0, 2, 3)), rtol=1e-10)


def test_starts_as_identity_unless_filled() -> None:
    plain = lone('type: "Scale" scale_param { bias_term: true }', SHAPE).layer.fillers()
    assert [(filler.type, filler.value) for filler in plain] == [("constant", 1), ("constant", 0)]
    text = 'filler { value: 3 } bias_term: true bias_filler { type: "gaussian" }'
    filled = lone(f'type: "Scale" scale_param {{ {text} }}', SHAPE).layer.fillers()
    assert [(filler.type, filler.value) for filler in filled] == [("constant", 3), ("gaussian", 0)]
    assert lone('type: "Bias"', SHAPE).layer.fillers()[0].value == 0


@pytest.mark.parametrize("kind", ["Scale", "Bias"])
@pytest.mark.parametrize(
    ("place", "shapes", "message"),
    [
        ("axis: 4", (SHAPE,), "axis 4 is out of range"),
        ("num_axes: -2", (SHAPE,), "num_axes -2"),
        ("axis: 2 num_axes: 3", (SHAPE,), "beyond the 4 axes"),
        ("", (SHAPE, (4,)), "has \\(3,\\) there"),
        ("axis: 3", (SHAPE, (5, 1)), "has \\(5,\\) there"),
        ("axis: 9", (SHAPE, (5,)), "axis 9 is out of range"),
    ],
)
def test_what_does_not_fit_is_refused(kind: str, place: str, shapes: tuple[Shape, ...], message: str) -> None:
    with pytest.raises(LayerError, match=message):
        lone(f'type: "{kind}" {kind.lower()}_param {{ {place} }}', *shapes)


@pytest.mark.parametrize("kind", ["Scale", "Bias"])
def test_sizes_that_torch_would_broadcast_are_refused_at_run_time(kind: str) -> None:
    it = lone(f'type: "{kind}" {kind.lower()}_param {{ axis: 0 }}', (2, 3), (2, 3))
    with pytest.raises(LayerError, match="there"):
        forward(it, arrays((2, 3), (1, 3)))


@pytest.mark.parametrize("kind", ["Scale", "Bias"])
def test_works_in_place(kind: str) -> None:
    assert lone(f'type: "{kind}"', SHAPE, inplace=True).graph.outputs == ("in0",)
