"""RNN and LSTM against naive references: continuation, static input, exposed and carried state, ONNX."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from caffe_compat.errors import ConversionError, LayerError
from tests.caffe_compat.layers.harness import (
    Array,
    Lone,
    arrays,
    check_gradients,
    forward,
    gradients,
    lone,
    run_onnx,
    session,
)

T, N, K, D, S = 4, 3, 2, 5, 6
KINDS = ("RNN", "LSTM")
CONT = np.array([[0, 1, 0], [1, 1, 1], [1, 0, 1], [1, 1, 0]], float)


def states(kind: str) -> int:
    return 1 if kind == "RNN" else 2


def build(kind: str, static: bool = False, expose: bool = False, tail: tuple[int, ...] = (K,)) -> Lone:
    shapes = [(T, N, *tail), (T, N)] + [(N, S)] * static + [(1, N, D)] * (states(kind) * expose)
    text = f'type: "{kind}" recurrent_param {{ num_output: {D} expose_hidden: {str(expose).lower()} {FILLERS} }}'
    return lone(text, *shapes, tops=1 + states(kind) * expose)


FILLERS = 'weight_filler { type: "uniform" min: -1 max: 1 } bias_filler { type: "constant" value: 0.5 }'


def bottoms(it: Lone, seed: int = 0) -> list[Array]:
    x, _, *rest = arrays(*it.layer.bottom_shapes, seed=seed, low=-1, high=1)
    return [x, CONT, *rest]


def weights(it: Lone) -> list[Array]:
    return arrays(*it.node.blob_shapes, seed=3, low=-1, high=1)


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def reference(kind: str, values: list[Array], blobs: list[Array], static: bool, start: list[Array]) -> list[Array]:
    """The output and the final states, one step at a time."""
    x, cont = values[0].reshape(T, N, -1), values[1]
    w_x, b, *rest = blobs
    added = values[2] @ rest.pop(0).T if static else 0
    h, c = start[0], start[-1]
    out = []
    for t in range(T):
        gates = (cont[t][:, None] * h) @ rest[0].T + x[t] @ w_x.T + b + added
        if kind == "RNN":
            h = np.tanh(gates)
            out.append(np.tanh(h @ rest[1].T + rest[2]))
        else:
            i, f, o, g = np.split(gates, 4, axis=1)
            c = cont[t][:, None] * sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
            out.append(h)
    return [np.stack(out), h, c][: 1 + states(kind)]


def zeros(kind: str) -> list[Array]:
    return [np.zeros((N, D))] * states(kind)


@pytest.mark.parametrize("tail", [(K,), (2, 1, 2)])
@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_first_pass_starts_at_zero(kind: str, static: bool, tail: tuple[int, ...]) -> None:
    it = build(kind, static, tail=tail)
    values, blobs = bottoms(it), weights(it)
    assert it.top_shapes == [(T, N, D)]
    np.testing.assert_allclose(forward(it, values, blobs)[0], reference(kind, values, blobs, static, zeros(kind))[0])


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_exposed_states(kind: str, static: bool) -> None:
    it = build(kind, static, expose=True)
    values, blobs = bottoms(it), weights(it)
    start = [value[0] for value in values[2 + static :]]
    assert it.top_shapes == [(T, N, D), *[(1, N, D)] * states(kind)]
    for _ in range(2):  # nothing is carried
        out, *final = forward(it, values, blobs)
        want = reference(kind, values, blobs, static, start)
        np.testing.assert_allclose(out, want[0])
        for got, state in zip(final, want[1:], strict=True):
            np.testing.assert_allclose(got[0], state)


@pytest.mark.parametrize("kind", KINDS)
def test_state_is_carried_until_reset(kind: str) -> None:
    it = build(kind)
    values, blobs = bottoms(it), weights(it)
    first = forward(it, values, blobs)[0]
    final = reference(kind, values, blobs, False, zeros(kind))[1:]
    np.testing.assert_allclose(forward(it, values, blobs)[0], reference(kind, values, blobs, False, final)[0])
    it.layer.reset()
    np.testing.assert_array_equal(forward(it, values, blobs)[0], first)


@pytest.mark.parametrize("kind", KINDS)
def test_fewer_streams_keep_their_state_and_more_start_anew(kind: str) -> None:
    it = build(kind)
    values, blobs = bottoms(it), weights(it)
    forward(it, values, blobs)
    whole = forward(it, values, blobs)[0]
    it.layer.reset()
    fresh = forward(it, values, blobs)[0]
    two = [value[:, :2] for value in values]
    np.testing.assert_allclose(forward(it, two, blobs)[0], whole[:, :2])
    np.testing.assert_array_equal(forward(it, values, blobs)[0], fresh)


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_by_differences(kind: str, static: bool) -> None:
    it = build(kind, static)
    values, blobs = bottoms(it), weights(it)
    assert [it.layer.propagates(index) for index in range(len(values))] == [True, False, True][: len(values)]
    forward_once = type(it.layer).forward

    def fresh(bottoms_: list[torch.Tensor], blobs_: list[torch.Tensor]) -> list[torch.Tensor]:
        it.layer.reset()
        return forward_once(it.layer, bottoms_, blobs_)

    it.layer.forward = fresh  # type: ignore[method-assign]
    check_gradients(it, values, blobs)


@pytest.mark.parametrize("kind", KINDS)
def test_no_gradient_through_exposed_states(kind: str) -> None:
    it = build(kind, expose=True)
    values, blobs = bottoms(it), weights(it)
    inputs = [torch.from_numpy(value).requires_grad_() for value in values]
    tops = it.layer.forward(inputs, [torch.from_numpy(blob) for blob in blobs])
    assert [top.requires_grad for top in tops] == [True, *[False] * states(kind)]
    grads = torch.autograd.grad(tops[0].sum(), inputs, allow_unused=True)
    assert [grad is None for grad in grads] == [False, True, *[True] * states(kind)]


def test_no_gradient_reaches_the_pass_before() -> None:
    it = build("LSTM")
    values, blobs = bottoms(it), weights(it)
    forward(it, values, blobs)
    first, _ = gradients(it, values, [np.ones((T, N, D))], blobs)
    second, _ = gradients(it, values, [np.ones((T, N, D))], blobs)
    assert np.isfinite(first[0]).all()
    assert np.isfinite(second[0]).all()


@pytest.mark.parametrize(
    ("kind", "static", "shapes"),
    [
        ("RNN", False, [(D, K), (D,), (D, D), (D, D), (D,)]),
        ("RNN", True, [(D, K), (D,), (D, S), (D, D), (D, D), (D,)]),
        ("LSTM", False, [(4 * D, K), (4 * D,), (4 * D, D)]),
        ("LSTM", True, [(4 * D, K), (4 * D,), (4 * D, S), (4 * D, D)]),
    ],
)
def test_parameter_blobs(kind: str, static: bool, shapes: list[tuple[int, ...]]) -> None:
    it = build(kind, static)
    assert list(it.node.blob_shapes) == shapes
    assert [filler.type for filler in it.layer.fillers()] == [
        "constant" if len(shape) == 1 else "uniform" for shape in shapes
    ]


def test_multiply_accumulates() -> None:
    assert build("LSTM", static=True).layer.macs([(T, N, K), (T, N), (N, S)], []) == N * 4 * D * (T * (K + D) + S)


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_onnx_with_exposed_states(kind: str, static: bool) -> None:
    it = build(kind, static, expose=True)
    values, blobs = bottoms(it), weights(it)
    for got, want in zip(run_onnx(session(it, blobs), values), forward(it, values, blobs), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_onnx_cannot_carry_a_state(kind: str) -> None:
    it = build(kind)
    with pytest.raises(ConversionError, match="carries its state"):
        session(it, weights(it))


@pytest.mark.parametrize(
    ("fields", "shapes", "message"),
    [
        ("num_output: 0", ((2, 3, 4), (2, 3)), "num_output is 0"),
        ("num_output: 5", ((2, 3), (2, 3)), "at least one more axis"),
        ("num_output: 5", ((2, 3, 4), (3, 2)), r"cont has shape \(3, 2\)"),
        ("num_output: 5", ((2, 3, 4), (2, 3, 1)), "cont has shape"),
        ("num_output: 5", ((2, 3, 4), (2, 3), (4, 6)), r"x_static .* must be \(3, \.\.\.\)"),
        ("num_output: 5", ((2, 3, 4), (2, 3), (3,)), "x_static has shape"),
        ("num_output: 5", ((2, 3, 4),), "takes 2 or 3 bottoms|takes at least 2"),
        ("num_output: 5", ((2, 3, 4), (2, 3), (3, 6), (3, 6)), "takes 2 or 3 bottoms"),
        ("num_output: 5 expose_hidden: true", ((2, 3, 4), (2, 3)), "takes 4 or 5 bottoms"),
        ("num_output: 5 expose_hidden: true", ((2, 3, 4), (2, 3), (1, 3, 5), (1, 3, 5)), "has 3 top"),
        ('num_output: 5 weight_filler { type: "none" }', ((2, 3, 4), (2, 3)), 'unknown filler "none"'),
    ],
)
def test_refused(fields: str, shapes: tuple[tuple[int, ...], ...], message: str) -> None:
    with pytest.raises(LayerError, match=message):
        lone(f'type: "LSTM" recurrent_param {{ {fields} }}', *shapes)


def test_initial_state_of_another_shape() -> None:
    text = 'type: "RNN" recurrent_param { num_output: 5 expose_hidden: true }'
    with pytest.raises(LayerError, match=r"must be \(1, 3, 5\)"):
        lone(text, (2, 3, 4), (2, 3), (3, 5), tops=2)


def test_the_number_of_steps_is_fixed() -> None:
    it = build("LSTM")
    with pytest.raises(LayerError, match="5 steps, but the net was built for 4"):
        forward(it, [np.zeros((5, N, K)), np.zeros((5, N))], weights(it))


def test_cont_must_fit_at_run_time() -> None:
    it = build("LSTM")
    with pytest.raises(LayerError, match="cont has shape"):
        forward(it, [np.zeros((T, N, K)), np.zeros((T, 1))], weights(it))
