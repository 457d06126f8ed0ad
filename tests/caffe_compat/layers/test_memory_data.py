"""MemoryData: batches in turn."""

from __future__ import annotations

import re

import numpy as np
import pytest

from caffe_compat.errors import LayerError
from tests.caffe_compat.layers.harness import Lone, forward, lone

TEXT = 'type: "MemoryData" memory_data_param { batch_size: 2 channels: 3 height: 1 width: 2 }'
DATA = np.arange(36, dtype=np.float32).reshape(6, 3, 1, 2)


@pytest.fixture
def it() -> Lone:
    return lone(TEXT, tops=2)


def test_batches_come_in_turn_and_start_again(it: Lone) -> None:
    it.layer.set_arrays(DATA, np.arange(6.0))  # type: ignore[attr-defined]
    for start in (0, 2, 4, 0):
        data, labels = forward(it, [])
        np.testing.assert_array_equal(data, DATA[start : start + 2])
        np.testing.assert_array_equal(labels, np.array([start, start + 1.0]).reshape(2, 1, 1, 1))
        assert data.dtype == np.float32


def test_new_arrays_start_at_their_first_row(it: Lone) -> None:
    it.layer.set_arrays(DATA, np.arange(6.0))  # type: ignore[attr-defined]
    forward(it, [])
    it.layer.set_arrays(DATA[4:], np.ones((2, 1, 1, 1)))  # type: ignore[attr-defined]
    np.testing.assert_array_equal(forward(it, [])[0], DATA[4:])


def test_tops_do_not_share_the_arrays_memory(it: Lone) -> None:
    own = DATA.copy()
    it.layer.set_arrays(own, np.arange(6.0))  # type: ignore[attr-defined]
    it.layer.forward([], [])[0].zero_()
    np.testing.assert_array_equal(own, DATA)


def test_shapes_while_it_is_built(it: Lone) -> None:
    assert it.top_shapes == [(2, 3, 1, 2), (2,)]


def test_without_arrays(it: Lone) -> None:
    with pytest.raises(LayerError, match=r"call net\.set_input_arrays"):
        forward(it, [])


@pytest.mark.parametrize(
    ("data", "labels", "message"),
    [
        (np.zeros((2, 3, 2, 1)), np.zeros(2), r"the layer takes \(n, 3, 1, 2\)"),
        (np.zeros((3, 3, 1, 2)), np.zeros(3), "3 items; batch_size is 2"),
        (np.zeros((0, 3, 1, 2)), np.zeros(0), "0 items"),
        (np.zeros((2, 3, 1, 2)), np.zeros(4), r"labels of shape \(4,\) for 2 items"),
        (np.zeros((2, 3, 1, 2)), np.zeros((2, 2)), "labels of shape"),
    ],
)
def test_arrays_refused(it: Lone, data: np.ndarray, labels: np.ndarray, message: str) -> None:
    with pytest.raises(LayerError, match=message):
        it.layer.set_arrays(data, labels)  # type: ignore[attr-defined]


def test_a_mean_is_stated_once() -> None:
    """Though arrays are not transformed, Caffe makes the transformer."""
    with pytest.raises(LayerError, match="both mean_file and mean_value"):
        lone(TEXT + ' transform_param { mean_file: "m" mean_value: 1 }', tops=2)


@pytest.mark.parametrize("name", ["batch_size", "channels", "height", "width"])
def test_sizes_must_be_stated(name: str) -> None:
    with pytest.raises(LayerError, match=f"{name} is 0"):
        lone(re.sub(rf"{name}: \d", "", TEXT), tops=2)
