"""Layers of forks that move values or combine them place by place."""

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

IMAGE = (2, 6, 3, 4)


@pytest.mark.parametrize("group", [1, 2, 3, 6])
def test_shuffled_channels(group: int) -> None:
    it = lone(f'type: "ShuffleChannel" shuffle_channel_param {{ group: {group} }}', IMAGE)
    (x,) = arrays(IMAGE)
    want = np.empty(IMAGE)
    for i in range(group):
        for j in range(6 // group):
            want[:, j * group + i] = x[:, i * (6 // group) + j]
    np.testing.assert_array_equal(forward(it, [x])[0], want)


@pytest.mark.parametrize("factors", [(2, 3), (2, 3, 1, 1)])
@pytest.mark.parametrize("tail", [(), (4,), (4, 5)])
def test_axpy(factors: tuple[int, ...], tail: tuple[int, ...]) -> None:
    it = lone('type: "Axpy"', factors, (2, 3, *tail), (2, 3, *tail))
    a, x, y = arrays(factors, (2, 3, *tail), (2, 3, *tail))
    np.testing.assert_allclose(forward(it, [a, x, y])[0], a.reshape(2, 3, *[1] * len(tail)) * x + y)
    check_gradients(it, [a, x, y])
    got = run_onnx(session(it), [a, x, y])[0]
    assert LAYERS.ratio(got, forward(it, [a, x, y], dtype=np.float32)[0]) <= 1


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_reversed_axis(axis: int) -> None:
    (x,) = arrays((2, 3, 4))
    it = lone(f'type: "Reverse" reverse_param {{ axis: {axis} }}', (2, 3, 4), dialect="ctpn")
    np.testing.assert_array_equal(forward(it, [x])[0], np.flip(x, axis))


@pytest.mark.parametrize("copy", ["true", "false"])
@pytest.mark.parametrize("tail", [(), (3,), (2, 2)])
def test_reversed_time(tail: tuple[int, ...], copy: str) -> None:
    shape = (5, 4, *tail)
    it = lone(f'type: "ReverseTime" reverse_time_param {{ copy_remaining: {copy} }}', shape, (4,))
    (x,), lengths = arrays(shape), np.array([5.0, 3.9, 1, 0])
    want = x.copy() if copy == "true" else np.zeros(shape)
    for n, length in enumerate((5, 3, 1, 0)):
        want[:length, n] = x[:length, n][::-1]
    np.testing.assert_array_equal(forward(it, [x, lengths])[0], want)
    (grad, none), _ = gradients(it, [x, lengths], [want])
    np.testing.assert_array_equal(forward(it, [grad, lengths])[0], want)
    assert not none.any()
    np.testing.assert_array_equal(run_onnx(session(it), [x, lengths])[0], want.astype(np.float32))


@pytest.mark.parametrize("length", [-1.0, 6.0])
def test_lengths_that_there_are_not(length: float) -> None:
    it = lone('type: "ReverseTime"', (5, 1), (1,))
    with pytest.raises(LayerError, match=f"a sequence of length {int(length)}; there are 5 steps"):
        forward(it, [np.zeros((5, 1)), np.array([length])])


@pytest.mark.parametrize("order", [(1, 0, 2), (2, 1, 0), (0, 1, 2)])
def test_transposed_axes(order: tuple[int, ...]) -> None:
    (x,) = arrays((2, 3, 4))
    dims = " ".join(f"dim: {axis}" for axis in order)
    it = lone(f'type: "Transpose" transpose_param {{ {dims} }}', (2, 3, 4))
    np.testing.assert_array_equal(forward(it, [x])[0], x.transpose(order))


def test_indicators_of_new_sequences() -> None:
    it = lone('type: "ContinuationIndicator" continuation_indicator_param { time_step: 3 batch_size: 2 }')
    assert it.top_shapes == [(3, 2)]
    np.testing.assert_array_equal(forward(it, [])[0], [[0, 0], [1, 1], [1, 1]])
    np.testing.assert_array_equal(run_onnx(session(it), [])[0], [[0, 0], [1, 1], [1, 1]])


@pytest.mark.parametrize("value", [0.0, -1.5])
def test_padding(value: float) -> None:
    pads = (1, 0, 0, 2, 3, 1)
    text = " ".join(f"paddings: {size}" for size in pads) + f" constant_values: {value}"
    it = lone(f'type: "Pad" pad_param {{ {text} }}', (2, 3, 4))
    (x,) = arrays((2, 3, 4))
    want = np.pad(x, ((1, 0), (0, 2), (3, 1)), constant_values=value)
    assert it.top_shapes == [want.shape]
    np.testing.assert_array_equal(forward(it, [x])[0], want)


# -- MatMul ------------------------------------------------------------------------------------------------


def turned(x: Array, turn: bool) -> Array:
    return x.swapaxes(-1, -2) if turn else x


@pytest.mark.parametrize("turn_a", [False, True])
@pytest.mark.parametrize("turn_b", [False, True])
@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
def test_matrices_of_both_bottoms(batch: tuple[int, ...], turn_a: bool, turn_b: bool) -> None:
    a_shape, b_shape = (*batch, *((4, 3) if turn_a else (3, 4))), (*batch, *((5, 4) if turn_b else (4, 5)))
    text = f"transpose_a: {str(turn_a).lower()} transpose_b: {str(turn_b).lower()}"
    it = lone(f'type: "MatMul" matmul_param {{ {text} }}', a_shape, b_shape)
    a, b = arrays(a_shape, b_shape)
    want = turned(a, turn_a) @ turned(b, turn_b)
    assert it.top_shapes == [want.shape]
    np.testing.assert_allclose(forward(it, [a, b])[0], want)
    check_gradients(it, [a, b])
    assert LAYERS.ratio(run_onnx(session(it), [a, b])[0], forward(it, [a, b], dtype=np.float32)[0]) <= 1
    assert it.layer.macs([a_shape, b_shape], [want.shape]) == want.size * 4


def test_one_matrix_for_all() -> None:
    a, b = arrays((2, 3, 4), (4, 5))
    np.testing.assert_allclose(forward(lone('type: "MatMul"', a.shape, b.shape), [a, b])[0], a @ b)
    it = lone('type: "MatMul" matmul_param { blob_shape: 4 blob_shape: 5 }', a.shape)
    assert it.node.blob_shapes == ((4, 5),)
    assert [filler.value for filler in it.layer.fillers()] == [0]
    np.testing.assert_allclose(forward(it, [a], [b])[0], a @ b)
    check_gradients(it, [a], [b])


@pytest.mark.parametrize(("turn_a", "turn_b"), [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("shape", [(2, 3, 4), (2, 1, 3, 4)])
def test_one_matrix_for_all_is_not_turned_but_read_by_columns(
    shape: tuple[int, ...], turn_a: bool, turn_b: bool
) -> None:
    text = f"transpose_a: {str(turn_a).lower()} transpose_b: {str(turn_b).lower()}"
    it = lone(f'type: "MatMul" matmul_param {{ {text} }}', shape, (4, 5))
    a, b = arrays(shape, (4, 5))
    left = a.ravel().reshape((6, 4), order="F" if turn_a else "C")
    right = b.ravel().reshape((4, 5), order="F" if turn_b else "C")
    want = (left @ right).reshape(*shape[:-1], 5)
    assert it.top_shapes == [want.shape]
    np.testing.assert_allclose(forward(it, [a, b])[0], want)
    check_gradients(it, [a, b])
    assert LAYERS.ratio(run_onnx(session(it), [a, b])[0], forward(it, [a, b], dtype=np.float32)[0]) <= 1
    assert it.layer.macs([shape, (4, 5)], [want.shape]) == want.size * 4


# -- refusals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shapes", "what", "field"),
    [
        (
            'type: "ShuffleChannel" shuffle_channel_param { group: 0 }',
            [IMAGE],
            "group is 0",
            "shuffle_channel_param.group",
        ),
        (
            'type: "Reverse" reverse_param { axis: 3 }',
            [(2, 3)],
            "axis 3 for a bottom with 2 axes",
            "reverse_param.axis",
        ),
        ('type: "Reverse" reverse_param { axis: -1 }', [(2, 3)], "axis -1 for a bottom", "reverse_param.axis"),
        ('type: "Transpose"', [(2, 3)], "dim [] does not name each", "transpose_param"),
        ('type: "Transpose" transpose_param { dim: 0 dim: 0 }', [(2, 3)], "dim [0, 0]", "transpose_param.dim[0]"),
        ('type: "Transpose" transpose_param { dim: 0 dim: 2 }', [(2, 3)], "dim [0, 2]", "transpose_param.dim[0]"),
        ('type: "Pad" pad_param { paddings: 1 }', [(2, 3)], "1 paddings for a bottom with 2", "pad_param.paddings[0]"),
        ('type: "Pad"', [(2, 3)], "0 paddings for a bottom with 2", "pad_param"),
        ('type: "MatMul"', [(2, 3)], "one bottom and no blob_shape", "matmul_param"),
        ('type: "MatMul"', [(2, 3, 4), (2, 2, 4, 5)], "B has shape (2, 2, 4, 5)", "bottom"),
        ('type: "MatMul"', [(4,), (4,)], "B has shape (4,)", "bottom"),
    ],
)
def test_parameters_that_are_refused(text: str, shapes: list[tuple[int, ...]], what: str, field: str) -> None:
    got = refusal(text, *shapes, dialect="caffe-ocr" if "Reverse" in text else "")
    assert what in got[0]
    assert got[1] == field


@pytest.mark.parametrize("name", ["time_step", "batch_size"])
def test_indicators_need_sizes(name: str) -> None:
    other = "batch_size" if name == "time_step" else "time_step"
    got = refusal(f'type: "ContinuationIndicator" continuation_indicator_param {{ {other}: 2 }}')
    assert got == (f"{name} is 0", f"continuation_indicator_param.{name}")


@pytest.mark.parametrize(
    ("text", "shapes", "message"),
    [
        ('type: "ShuffleChannel" shuffle_channel_param { group: 4 }', [IMAGE], "6 channels cannot be split into 4"),
        ('type: "ShuffleChannel"', [(2, 6, 3)], "it takes four axes"),
        ('type: "Axpy"', [(2, 3, 1), (2, 3), (2, 3)], "factors of shape"),
        ('type: "Axpy"', [(2, 4), (2, 3), (2, 3)], "factors of shape"),
        ('type: "Axpy"', [(2, 3), (2, 3), (2, 3, 1)], "x of shape"),
        ('type: "ReverseTime"', [(5, 2, 3), (3,)], "lengths of shape"),
        ('type: "ReverseTime"', [(5, 2, 3), (2, 1)], "lengths of shape"),
        ('type: "MatMul"', [(2, 3, 4), (2, 3, 5)], "cannot be multiplied"),
        ('type: "MatMul" matmul_param { transpose_b: true }', [(2, 3, 4), (5, 4)], "cannot be multiplied"),
        ('type: "MatMul"', [(2, 3, 4), (3, 4, 5)], "cannot be multiplied"),
    ],
)
def test_shapes_that_are_refused(text: str, shapes: list[tuple[int, ...]], message: str) -> None:
    with pytest.raises(LayerError, match=message):
        lone(text, *shapes)
