"""Embed: rows of a table."""

from __future__ import annotations

import numpy as np
import pytest

from tests.caffe_compat.layers.harness import check_gradients, forward, gradients, lone, run_onnx, session
from tests.caffe_compat.layers.refusals import refusal


def embed(text: str) -> str:
    return f'type: "Embed" embed_param {{ {text} }}'


@pytest.mark.parametrize("bias", [False, True])
def test_takes_rows_also_in_onnx(bias: bool) -> None:
    it = lone(embed(f"input_dim: 5 num_output: 3 bias_term: {bias}"), (2, 4))
    blobs = it.blobs()
    assert [blob.shape for blob in blobs] == [(5, 3), (3,)][: 1 + bias]
    places = np.array([[0, 4, 4, 1], [2, 2, 2, 0]], float)
    want = blobs[0][places.astype(int)] + (blobs[1] if bias else 0)
    assert it.top_shapes == [(2, 4, 3)]
    np.testing.assert_array_equal(forward(it, [places], blobs)[0], want)
    np.testing.assert_allclose(run_onnx(session(it, blobs), [places])[0], want, rtol=1e-6)
    check_gradients(it, [places], blobs)


def test_rows_read_twice_gather_their_gradients() -> None:
    it = lone(embed("input_dim: 3 num_output: 2 bias_term: false"), (4,))
    _, (grad,) = gradients(it, [np.array([1.0, 1, 0, 1])], [np.ones((4, 2))], it.blobs())
    np.testing.assert_array_equal(grad, [[1, 1], [3, 3], [0, 0]])
    assert not it.layer.propagates(0)


@pytest.mark.parametrize("place", [-1.0, 5.0])
def test_rows_that_do_not_exist_are_an_error(place: float) -> None:
    it = lone(embed("input_dim: 5 num_output: 3"), (1,))
    with pytest.raises((IndexError, RuntimeError)):
        forward(it, [np.array([place])], it.blobs())


@pytest.mark.parametrize(
    ("text", "what", "field"),
    [
        ("input_dim: 5", "num_output is 0", "num_output"),
        ("num_output: 5", "input_dim is 0", "input_dim"),
        ("input_dim: 5 num_output: 3 weight_filler { type: 'bilinear' }", "bilinear filler needs 4", "weight_filler"),
    ],
)
def test_refuses_what_caffe_refuses(text: str, what: str, field: str) -> None:
    said, place = refusal(embed(text), (1,))
    assert what in said
    assert place == f"embed_param.{field}"
