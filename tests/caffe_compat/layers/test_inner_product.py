"""InnerProduct: shapes, transposed weights, and blobs of December 2013."""

from __future__ import annotations

import numpy as np
import pytest

from caffe_compat.fillers import fill
from caffe_compat.layers.base import Shape
from tests.caffe_compat.layers.harness import arrays, check_gradients, forward, lone, run_onnx, session
from tests.caffe_compat.layers.refusals import refusal
from tests.tolerances import LAYERS


def product(text: str) -> str:
    return f'type: "InnerProduct" inner_product_param {{ {text} }}'


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("shape", "axis", "rows"),
    [((2, 3), 1, (2,)), ((2, 3, 4, 5), 1, (2,)), ((2, 3, 4), 2, (2, 3)), ((2, 3, 4), -1, (2, 3)), ((2, 3), 0, ())],
)
def test_equals_the_matrix_product(shape: Shape, axis: int, rows: Shape, transpose: bool, bias: bool) -> None:
    it = lone(product(f"num_output: 6 axis: {axis} transpose: {transpose} bias_term: {bias}"), shape)
    (x,), blobs = arrays(shape), it.blobs()
    inputs = int(np.prod(shape[len(rows) :]))
    assert blobs[0].shape == ((inputs, 6) if transpose else (6, inputs))
    matrix = blobs[0] if transpose else blobs[0].T
    want = x.reshape(*rows, inputs) @ matrix + (blobs[1] if bias else 0)
    assert it.top_shapes == [want.shape] == [(*rows, 6)]
    np.testing.assert_allclose(forward(it, [x], blobs)[0], want, atol=1e-12)
    check_gradients(it, [x], blobs)
    assert LAYERS.ratio(run_onnx(session(it, blobs), [x])[0], want) <= 1


def test_onnx_takes_other_batch_sizes() -> None:
    it = lone(product("num_output: 6"), (2, 3, 4, 5))
    blobs = it.blobs()
    exported = session(it, blobs)
    for items in (1, 7):
        bottoms = arrays((items, 3, 4, 5))
        assert LAYERS.ratio(run_onnx(exported, bottoms)[0], forward(it, bottoms, blobs)[0]) <= 1


def test_counts_multiplications() -> None:
    it = lone(product("num_output: 6"), (2, 3, 4, 5))
    assert it.layer.macs([(2, 3, 4, 5)], it.top_shapes) == 2 * 60 * 6


@pytest.mark.parametrize(
    ("text", "shape", "what", "field"),
    [
        ("", (2, 3), "num_output is 0", "num_output"),
        ("num_output: 2 axis: 2", (2, 3), "out of range", "axis"),
        ("num_output: 2", (2, 0), "nothing to fill", "weight_filler"),
        ("num_output: 2 bias_filler { type: 'gaussian' std: 0 }", (2, 3), "std > 0", "bias_filler"),
    ],
)
def test_refuses_what_caffe_refuses(text: str, shape: Shape, what: str, field: str) -> None:
    said, place = refusal(product(text), shape)
    assert what in said
    assert place == f"inner_product_param.{field}"


class Test2013:
    def test_blobs_and_top_have_four_axes(self) -> None:
        it = lone(product("num_output: 6"), (2, 3, 4, 5), profile="dec2013")
        (x,), (weight, bias) = arrays((2, 3, 4, 5)), it.blobs()
        assert [blob.shape for blob in (weight, bias)] == [(1, 1, 6, 60), (1, 1, 1, 6)]
        assert it.top_shapes == [(2, 6, 1, 1)]
        want = (x.reshape(2, 60) @ weight[0, 0].T + bias[0, 0, 0]).reshape(2, 6, 1, 1)
        np.testing.assert_allclose(forward(it, [x], [weight, bias])[0], want, atol=1e-12)
        check_gradients(it, [x], [weight, bias])
        assert LAYERS.ratio(run_onnx(session(it, [weight, bias]), [x])[0], want) <= 1

    def test_xavier_divides_by_inputs_times_outputs(self) -> None:
        it = lone(product("num_output: 50 weight_filler { type: 'xavier' }"), (1, 2, 5, 10), profile="dec2013")
        (weight, _) = it.node.blob_shapes
        values = fill(it.layer.fillers()[0], weight, np.random.default_rng(0), "dec2013")
        bound = np.sqrt(3 / (50 * 100))
        assert bound * 0.99 < np.abs(values).max() <= bound * (1 + 1e-6)

    @pytest.mark.parametrize(
        ("text", "shape", "what", "field"),
        [
            ("num_output: 2 transpose: true", (2, 3, 1, 1), "no transpose", "inner_product_param.transpose"),
            ("num_output: 2", (2, 3), "has shape (2, 3)", "bottom"),
        ],
    )
    def test_refuses(self, text: str, shape: Shape, what: str, field: str) -> None:
        said, place = refusal(product(text), shape, profile="dec2013")
        assert what in said
        assert place == field
