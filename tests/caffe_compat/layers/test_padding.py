"""Padding, the layer of December 2013."""

from __future__ import annotations

import numpy as np
import pytest

from caffe_compat.errors import UnknownLayerError
from tests.caffe_compat.layers.harness import arrays, check_gradients, forward, lone, run_onnx, session
from tests.caffe_compat.layers.refusals import refusal


def padding(text: str) -> str:
    return f'type: "Padding" convolution_param {{ {text} }}'


@pytest.mark.parametrize(("text", "pad"), [("", 0), ("pad: 1", 1), ("pad: 3", 3)])
def test_puts_zeros_around_also_in_onnx(text: str, pad: int) -> None:
    it = lone(padding(text), (2, 3, 4, 5), profile="dec2013")
    (x,) = arrays((2, 3, 4, 5))
    want = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    assert it.top_shapes == [want.shape]
    np.testing.assert_array_equal(forward(it, [x])[0], want)
    np.testing.assert_array_equal(run_onnx(session(it), [x])[0], want.astype(np.float32))
    check_gradients(it, [x])


def test_refuses_other_fields_and_ranks() -> None:
    assert refusal(padding("pad: [1, 2]"), (1, 1, 4, 4), profile="dec2013")[1] == "convolution_param.pad[1]"
    assert refusal(padding("stride: 2"), (1, 1, 4, 4), profile="dec2013")[1] == "convolution_param.stride"
    assert refusal(padding("pad: 1"), (1, 4), profile="dec2013")[1] == "bottom"


def test_does_not_exist_in_the_last_commit() -> None:
    with pytest.raises(UnknownLayerError, match='unknown layer type "Padding"'):
        lone(padding("pad: 1"), (1, 1, 4, 4))
