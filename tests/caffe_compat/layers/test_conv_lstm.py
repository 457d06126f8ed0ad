"""ConvLSTM and ConvLSTMUnit against naive references: peepholes, two kernels, carried and exposed states, ONNX."""

from __future__ import annotations

import numpy as np
import pytest

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
from tests.tolerances import LAYERS

T, N, K, D, H, W = 3, 2, 2, 3, 4, 5
CONT = np.array([[0, 1], [1, 1], [1, 0]], float)
KERNEL = 'kernel_size: 3 pad: 1 weight_filler { type: "uniform" min: -1 max: 1 }'
ALL = f"lstm_conv_param {{ num_output: {D} {KERNEL} }}"
STATE = (1, N, D, H, W)


def build(
    more: str = "", conv: str = ALL, expose: bool = False, streams: int = N, static: int = 0, shown: int = 0
) -> Lone:
    text = f'type: "ConvLSTM" {conv} {more} recurrent_param {{ expose_hidden: {str(expose).lower()} }}'
    shapes = [(T, streams, K, H, W), (T, streams), *[(1, streams, static, H, W)] * bool(static), *[STATE] * 2 * expose]
    return lone(text, *shapes, tops=1 + shown + 2 * expose, dialect="convlstm")


def values(it: Lone) -> list[Array]:
    x, cont, *rest = arrays(*it.layer.bottom_shapes, low=-1, high=1)
    return [x, CONT[:, : cont.shape[1]], *rest]


def weights(it: Lone) -> list[Array]:
    return arrays(*it.node.blob_shapes, seed=3, low=-1, high=1)


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def convolve(x: Array, weight: Array) -> Array:
    """Padded so that height and width stay."""
    half = weight.shape[2] // 2
    padded = np.pad(x, ((0, 0), (0, 0), (half, half), (half, half)))
    y = np.zeros((len(x), len(weight), *x.shape[2:]))
    for row in range(weight.shape[2]):
        for column in range(weight.shape[3]):
            part = padded[:, :, row : row + x.shape[2], column : column + x.shape[3]]
            y += np.einsum("nchw,oc->nohw", part, weight[:, :, row, column])
    return y


def reference(it: Lone, start: list[Array], x: Array | None, cont: Array, peephole: bool = True) -> list[list[Array]]:
    """Every h and every c."""
    blobs = weights(it)
    w_x = blobs.pop(0) if x is not None else None
    _, _, w_h, b, *w = blobs[:-2]
    assert len(w) == 3 * peephole
    (h, c), hidden, cells = start, [], []
    for t in range(T):
        here = cont[t].reshape(-1, 1, 1, 1)
        gates = convolve(here * h, w_h) + b.reshape(-1, 1, 1)
        if x is not None:
            gates = gates + convolve(x[t], w_x)
        i, f, o, g = np.split(gates, 4, axis=1)
        if peephole:
            i, f, o = (gate + c * each for gate, each in zip((i, f, o), w, strict=True))
        c = here * sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        hidden.append(h)
        cells.append(c)
    return [hidden, cells]


def zeros() -> list[Array]:
    return [np.zeros(STATE[1:])] * 2


def test_blobs_and_shapes() -> None:
    it = build()
    gates = 4 * D
    kernels = [(gates, K, 3, 3), (1,), (1,), (gates, D, 3, 3), (gates,)]
    assert list(it.node.blob_shapes) == [*kernels, *[(H, W)] * 3, (1,), (1,)]
    assert it.top_shapes == [(T, N, D, H, W)]
    assert [filler.value for filler in it.layer.fillers()] == [0, 0, 0, 0, 0, 1, 1, 1, 0, 0]


def test_state_is_carried_until_reset() -> None:
    it = build()
    bottoms = values(it)
    first = reference(it, zeros(), *bottoms)
    np.testing.assert_allclose(forward(it, bottoms, weights(it))[0], first[0])
    second = reference(it, [first[0][-1], first[1][-1]], *bottoms)
    np.testing.assert_allclose(forward(it, bottoms, weights(it))[0], second[0])
    it.layer.reset()
    np.testing.assert_allclose(forward(it, bottoms, weights(it))[0], first[0])


def test_exposed_states_and_their_gradients() -> None:
    it = build(expose=True)
    bottoms = values(it)
    hidden, cells = reference(it, [bottoms[2][0], bottoms[3][0]], *bottoms[:2])
    out, h, c = forward(it, bottoms, weights(it))
    np.testing.assert_allclose(out, hidden)
    np.testing.assert_allclose(h[0], hidden[-1])
    np.testing.assert_allclose(c[0], cells[-1])
    got, _ = gradients(it, bottoms, [np.zeros_like(out), np.zeros_like(h), np.ones_like(c)], weights(it))
    assert got[2].any()
    assert got[3].any()


def test_gradients() -> None:
    sizes = (T, N, 1, 2, 2), (T, N), (1, N, 1, 2, 2), (1, N, 1, 2, 2)
    text = f'type: "ConvLSTM" lstm_conv_param {{ num_output: 1 {KERNEL} }} recurrent_param {{ expose_hidden: true }}'
    it = lone(text, *sizes, tops=3, dialect="convlstm")
    x, _, *states = arrays(*sizes)
    check_gradients(it, [x, CONT, *states], weights(it))


def test_two_kernels() -> None:
    """Of x 1 x 1, of h 5 x 5."""
    own = "lstm_conv_param {{ num_output: 3 type: {} kernel_size: {} pad: {} }}"
    it = build(conv=own.format('"hidden"', 5, 2) + own.format('"input"', 1, 0))
    assert it.node.blob_shapes[0] == (4 * D, K, 1, 1)
    assert it.node.blob_shapes[3] == (4 * D, D, 5, 5)
    bottoms = values(it)
    np.testing.assert_allclose(forward(it, bottoms, weights(it))[0], reference(it, zeros(), *bottoms)[0])


def test_without_x_and_without_peepholes() -> None:
    it = build("lstm_debug_param { ignore_x: true disable_hadamard: true }")
    assert list(it.node.blob_shapes) == [(1,), (1,), (4 * D, D, 3, 3), (4 * D,), (1,), (1,)]
    want = reference(it, zeros(), None, CONT, peephole=False)
    np.testing.assert_allclose(forward(it, values(it), weights(it))[0], want[0])


def test_peepholes_of_other_axes() -> None:
    it = build("lstm_debug_param { axis_hadamard: 2 num_axes_hadamard: 1 }")
    assert list(it.node.blob_shapes[5:8]) == [(D,)] * 3
    blobs, bottoms = weights(it), values(it)
    full = build("lstm_debug_param { axis_hadamard: 2 num_axes_hadamard: 3 }")
    spread = [np.broadcast_to(blob[:, None, None], (D, H, W)) for blob in blobs[5:8]]
    want = forward(full, bottoms, [*blobs[:5], *spread, *blobs[8:]])
    np.testing.assert_allclose(forward(it, bottoms, blobs)[0], want[0])


def test_what_is_exposed_for_debugging() -> None:
    it = build('lstm_debug_param { expose: "c_t=2" expose: "h_t=1" }', shown=2)
    bottoms = values(it)
    hidden, cells = reference(it, zeros(), *bottoms)
    out, c, h = forward(it, bottoms, weights(it))
    np.testing.assert_allclose(out, hidden)
    np.testing.assert_allclose(c[0], cells[1])
    np.testing.assert_allclose(h[0], hidden[0])


def test_static_input_is_added_to_the_gates() -> None:
    it = build(streams=1, static=2)
    blobs, bottoms = weights(it), values(it)
    assert blobs[1].shape == (4 * D, 2, 3, 3)
    x, cont, still = bottoms
    both = lone(
        f'type: "ConvLSTM" {ALL}', (T, 1, K + 2, H, W), (T, 1), dialect="convlstm"
    )  # as if it were more channels of x
    joined = np.concatenate([x, np.repeat(still, T, axis=0)], axis=2)
    want = forward(both, [joined, cont], [np.concatenate(blobs[:2], axis=1), *blobs[2:]])
    np.testing.assert_allclose(forward(it, bottoms, blobs)[0], want[0])


@pytest.mark.parametrize("debug", ["", "ignore_x: true", "disable_hadamard: true", "num_axes_hadamard: 1"])
def test_onnx(debug: str) -> None:
    it = build(f"lstm_debug_param {{ {debug} }}", expose=True)
    bottoms, blobs = values(it), weights(it)
    want = forward(it, bottoms, blobs, np.float32)
    got = run_onnx(session(it, blobs), bottoms)
    assert all(LAYERS.ratio(a, b) <= 1 for a, b in zip(got, want, strict=True))


def test_onnx_needs_exposed_states() -> None:
    it = build()
    with pytest.raises(ConversionError, match="carries its state"):
        session(it, weights(it))


def test_unit() -> None:
    it = lone('type: "ConvLSTMUnit"', STATE, (1, N, 4 * D, H, W), (1, N), tops=2, dialect="convlstm")
    c, gates, _ = arrays(*it.layer.bottom_shapes)
    i, f, o, g = np.split(gates, 4, axis=2)
    cont = np.array([[0.0, 1.0]])
    new = cont.reshape(1, N, 1, 1, 1) * sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    got = forward(it, [c, gates, cont])
    np.testing.assert_allclose(got[0], new)
    np.testing.assert_allclose(got[1], sigmoid(o) * np.tanh(new))
    check_gradients(it, [c, gates, cont])
    narrow = [value.astype(np.float32) for value in got]
    assert all(LAYERS.ratio(a, b) <= 1 for a, b in zip(run_onnx(session(it), [c, gates, cont]), narrow, strict=True))


@pytest.mark.parametrize(
    ("conv", "more", "message"),
    [
        ("", "", "stated 0 times"),
        (ALL * 3, "", "stated 3 times"),
        (ALL + ALL.replace("num_output: 3", "num_output: 4"), "", "num_output is 3 and 4"),
        ("lstm_conv_param { kernel_size: 1 }", "", "num_output is 0"),
        (ALL.replace("pad: 1", ""), "", "makes 2 x 3 of 4 x 5"),
        (ALL.replace("pad: 1", "pad: 1 bias_term: false"), "", "bias_term is false"),
        (ALL.replace("pad: 1", 'pad: 1 type: "hidden"'), "", 'the only lstm_conv_param has type "hidden"'),
        (ALL, "lstm_debug_param { axis_hadamard: 4 }", "2 axes from axis 4 on"),
        (ALL, 'lstm_debug_param { expose: "c_t=9" }', "needed"),
    ],
)
def test_refusals(conv: str, more: str, message: str) -> None:
    with pytest.raises(LayerError, match=message):
        build(more, conv)


def test_what_cannot_be_exposed() -> None:
    with pytest.raises(LayerError, match='"c_t=9" cannot be exposed'):
        build('lstm_debug_param { expose: "c_t=9" }', shown=1)


def test_static_input_of_several_streams_is_refused() -> None:
    with pytest.raises(LayerError, match="one stream"):
        build(static=2)
