"""Layers that choose items or hold them: BatchReindex, Filter, Silence, Parameter."""

from __future__ import annotations

import numpy as np
import pytest

from caffe_compat.errors import LayerError
from caffe_compat.layers.base import Shape
from tests.caffe_compat.layers.harness import arrays, check_gradients, forward, gradients, lone, run_onnx, session

SHAPE = (4, 2, 3)


def test_batch_reindex_repeats_and_drops_items() -> None:
    it = lone('type: "BatchReindex"', SHAPE, (5,))
    (x,), order = arrays(SHAPE), np.array([3.0, 0.0, 0.0, 2.0, 3.0])
    assert it.top_shapes == [(5, 2, 3)]
    assert np.array_equal(forward(it, [x, order])[0], x[order.astype(int)])
    assert np.array_equal(run_onnx(session(it), [x, order])[0], x[order.astype(int)].astype(np.float32))
    check_gradients(it, [x, order])


@pytest.mark.parametrize("index", [-1.0, -0.5, 4.0])
def test_batch_reindex_refuses_indices_outside_the_batch(index: float) -> None:
    it = lone('type: "BatchReindex"', SHAPE, (1,))
    with pytest.raises(LayerError, match="not in 0 to 3"):
        forward(it, [*arrays(SHAPE), np.array([index])])


def test_batch_reindex_takes_a_list() -> None:
    with pytest.raises(LayerError, match="has one"):
        lone('type: "BatchReindex"', SHAPE, (4, 1))


@pytest.mark.parametrize("chosen", [(0, 1, 0, -2), (0, 0, 0, 0), (1, 1, 1, 1)])
def test_filter_keeps_the_chosen_items(chosen: tuple[float, ...]) -> None:
    it = lone('type: "Filter"', SHAPE, (4,), (4, 1, 1), tops=2)
    x, y = arrays(SHAPE, (4,))
    selector = np.array(chosen, float).reshape(4, 1, 1)
    kept = np.array(chosen) != 0
    for got in (forward(it, [x, y, selector]), run_onnx(session(it), [x, y, selector])):
        np.testing.assert_allclose(got[0], x[kept], rtol=1e-6)
        np.testing.assert_allclose(got[1], y[kept], rtol=1e-6)
    if kept.any():
        check_gradients(it, [x, y, selector])


@pytest.mark.parametrize(
    ("shapes", "tops", "message"),
    [
        ((SHAPE, (4, 2)), 1, "first axis"),
        ((SHAPE, ()), 1, "first axis"),
        ((SHAPE, (3,)), 1, "3 items"),
        (((), (3,)), 1, "3 items"),
        ((SHAPE, (4,)), 2, "the last is the selector"),
    ],
)
def test_filter_refuses(shapes: tuple[Shape, ...], tops: int, message: str) -> None:
    with pytest.raises(LayerError, match=message):
        lone('type: "Filter"', *shapes, tops=tops)


def test_filter_checks_batches_at_run_time() -> None:
    it = lone('type: "Filter"', SHAPE, (4,))
    with pytest.raises(LayerError, match="items"):
        forward(it, [*arrays(SHAPE), np.ones(3)])


def test_silence_takes_bottoms_away() -> None:
    it = lone('type: "Silence"', SHAPE, SHAPE, tops=0)
    assert it.graph.outputs == ()
    assert forward(it, arrays(SHAPE, SHAPE)) == []


def test_parameter_is_its_top() -> None:
    it = lone('type: "Parameter" parameter_param { shape { dim: 2 dim: 3 } }')
    assert it.node.blob_shapes == ((2, 3),)
    assert [(filler.type, filler.value) for filler in it.layer.fillers()] == [("constant", 0)]
    value, d = arrays((2, 3), (2, 3))
    assert np.array_equal(forward(it, [], [value])[0], value)
    assert np.array_equal(gradients(it, [], [d], [value])[1][0], d)
    assert np.array_equal(run_onnx(session(it, [value]), [])[0], value.astype(np.float32))
