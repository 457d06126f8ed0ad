"""CTC losses against sums over all paths."""

from __future__ import annotations

from itertools import groupby, product

import numpy as np
import pytest
import torch

from caffe_compat.errors import LayerError
from tests.caffe_compat.layers.harness import Array, Lone, arrays, forward, gradients, lone
from tests.caffe_compat.layers.refusals import refusal

ONE = np.array(1.0)


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True))


def said(path: tuple[int, ...], blank: int, merge: bool) -> list[int]:
    """The labels that a path says."""
    steps = [label for label, _ in groupby(path)] if merge else list(path)
    return [label for label in steps if label != blank]


def likelihood(scores: Array, labels: list[int], blank: int, merge: bool = True) -> tuple[float, Array]:
    """p(labels) over all paths, and d(-log p)/d(scores); scores (T, C)."""
    p = softmax(scores)
    total, through = 0.0, np.zeros(p.shape)
    for path in product(range(p.shape[1]), repeat=len(p)):
        if said(path, blank, merge) == labels:
            chance = np.prod([p[step, label] for step, label in enumerate(path)])
            total += chance
            for step, label in enumerate(path):
                through[step, label] += chance
    return total, p - through / total if total else np.zeros(p.shape)


# -- CtcLoss of crnn.caffe ---------------------------------------------------------------------------------


def crnn(steps: int = 4, blank: int = 0, classes: int = 3, labels: tuple[int, ...] = (2, 3), first: int = 0) -> Lone:
    text = f"alphabet_size: {classes} time_step: {steps} blank_label: {blank}"
    text = f'type: "CtcLoss" ctc_loss_param {{ {text} }}'
    return lone(text, (first or steps, labels[0], classes), labels, dialect="crnn")


@pytest.mark.parametrize(
    ("blank", "labels"),
    [
        (0, [[1, 2, 0], [2, 2, 0]]),
        (0, [[0, 1, 0], [0, 0, 0]]),
        (2, [[0, 2, 1], [1, 1, 2]]),
        (1, [[0, 1, 2], [2, 0, 1]]),
    ],
)
def test_loss_is_the_mean_and_its_gradient_that_of_the_sum(blank: int, labels: list[list[int]]) -> None:
    (x,) = arrays((4, 2, 3))
    it = crnn(blank=blank)
    each = [likelihood(x[:, n], [v for v in row if v != blank], blank) for n, row in enumerate(labels)]
    np.testing.assert_allclose(forward(it, [x, np.array(labels, float)])[0], -np.mean(np.log([p for p, _ in each])))
    (grad, none), _ = gradients(it, [x, np.array(labels, float)], [np.array(0.5)])
    np.testing.assert_allclose(grad, 0.5 * np.stack([g for _, g in each], 1), atol=1e-12)
    assert not none.any()


def test_sequences_that_do_not_fit_count_nothing() -> None:
    (x,) = arrays((2, 2, 3))
    it = crnn(steps=2, labels=(2, 2))
    labels = np.array([[1.0, 1.0], [1.0, 2.0]])  # 1 1 needs a blank between
    p, grad = likelihood(x[:, 1], [1, 2], 0)
    np.testing.assert_allclose(forward(it, [x, labels])[0], -np.log(p) / 2)
    (got, _), _ = gradients(it, [x, labels], [ONE])
    np.testing.assert_allclose(got, np.stack([np.zeros((2, 3)), grad], 1), atol=1e-12)


def test_steps_behind_time_step_do_not_count() -> None:
    (x,) = arrays((5, 1, 3))
    it = crnn(steps=3, labels=(1, 2), first=5)
    p, grad = likelihood(x[:3, 0], [2], 0)
    np.testing.assert_allclose(forward(it, [x, np.array([[2.0, 0.0]])])[0], -np.log(p))
    (got, _), _ = gradients(it, [x, np.array([[2.0, 0.0]])], [ONE])
    np.testing.assert_allclose(got[:, 0], np.concatenate([grad, np.zeros((2, 3))]), atol=1e-12)


@pytest.mark.parametrize(
    ("text", "shapes", "what", "field"),
    [
        ("time_step: 4", ((4, 2, 3), (2, 3)), "alphabet_size is 0", "ctc_loss_param.alphabet_size"),
        ("alphabet_size: 3", ((4, 2, 3), (2, 3)), "time_step is 0", "ctc_loss_param.time_step"),
    ],
)
def test_what_setup_refuses(text: str, shapes: tuple[tuple[int, ...], ...], what: str, field: str) -> None:
    assert refusal(f'type: "CtcLoss" ctc_loss_param {{ {text} }}', *shapes, dialect="crnn") == (what, field)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((4, 6), (2, 3)), "they must be"),
        (((4, 2, 3, 2), (2, 3)), "they must be"),
        (((4, 2, 3), (3, 3)), "labels of shape"),
        (((4, 2, 3), (2,)), "labels of shape"),
        (((4, 2, 3), (2, 3, 2)), "labels of shape"),
        (((4, 2, 5), (2, 3)), "alphabet_size 3 for 5 classes"),
        (((3, 2, 3), (2, 3)), "time_step 4 for 3 steps"),
    ],
)
def test_shapes_that_are_refused(shapes: tuple[tuple[int, ...], ...], message: str) -> None:
    with pytest.raises(LayerError, match=message):
        lone('type: "CtcLoss" ctc_loss_param { alphabet_size: 3 time_step: 4 }', *shapes, dialect="crnn")


@pytest.mark.parametrize(
    ("labels", "message"), [([[3, 0, 0]] * 2, "label 3"), ([[0, 0, 0]] * 2, "no labels but blanks")]
)
def test_labels_that_are_refused(labels: list[list[float]], message: str) -> None:
    with pytest.raises(LayerError, match=message):
        forward(crnn(), [arrays((4, 2, 3))[0], np.array(labels, float)])


# -- CTCLoss of TextBoxes++ --------------------------------------------------------------------------------

ENDS = np.array([[0.0, 0], [1, 1], [1, 1], [1, 0], [1, 0]])  # sequences of 5 and 3 steps


def boxes(text: str = "", steps: int = 5, streams: int = 2) -> Lone:
    shapes = [(steps, streams, 3), (steps, streams), (steps, streams)]
    return lone(f'type: "CTCLoss" ctc_loss_param {{ {text} }}', *shapes, dialect="textboxes")


def column(*labels: int, steps: int = 5) -> list[float]:
    return [*map(float, labels), *[-1.0] * (steps - len(labels))]


def together(*columns: list[float]) -> Array:
    return np.array(columns).T


@pytest.mark.parametrize(
    ("text", "first", "second", "blank", "merge", "delay"),
    [
        ("", [0, 1], [1], 2, True, 0),
        ("", [0, 0, 1], [1, 0], 2, True, 0),
        ("blank_index: 0", [1, 2, 2], [2], 0, True, 0),
        ("blank_index: 1 output_delay: 1", [0, 2], [2], 1, True, 1),
        ("ctc_merge_repeated: false", [0, 0, 1], [1, 1, 0], 2, False, 0),
        ("ctc_merge_repeated: false blank_index: 0 output_delay: 1", [1, 1, 1], [2, 1], 0, False, 1),
    ],
)
def test_sequences_of_different_lengths(
    text: str, first: list[int], second: list[int], blank: int, merge: bool, delay: int
) -> None:
    (x,) = arrays((5, 2, 3))
    it = boxes(text)
    bottoms = [x, ENDS, together(column(*first), column(*second))]
    parts = [likelihood(x[delay:n, i], want, blank, merge) for i, (n, want) in enumerate(((5, first), (3, second)))]
    np.testing.assert_allclose(forward(it, bottoms)[0], -np.mean(np.log([p for p, _ in parts])))
    want = np.zeros(x.shape)
    want[delay:, 0], want[delay:3, 1] = parts[0][1], parts[1][1]
    (grad, *none), _ = gradients(it, bottoms, [np.array(7.0)])
    np.testing.assert_allclose(grad, want, atol=1e-12)  # whatever the top's gradient
    assert not any(part.any() for part in none)


def test_neighbours_may_be_collapsed_first() -> None:
    (x,) = arrays((5, 2, 3))
    bottoms = [x, ENDS, together(column(0, 0, 1), column(1))]
    collapsed = [x, ENDS, together(column(0, 1), column(1))]
    got, want = forward(boxes("preprocess_collapse_repeated: true"), bottoms), forward(boxes(), collapsed)
    np.testing.assert_allclose(got[0], want[0])


def test_blank_and_foreign_labels_at_the_end_do_not_count() -> None:
    (x,) = arrays((5, 2, 3))
    bottoms, plain = [x, ENDS, together(column(0, 2, 9), column(1))], [x, ENDS, together(column(0), column(1))]
    np.testing.assert_allclose(forward(boxes(), bottoms)[0], forward(boxes(), plain)[0])


def test_sequences_without_labels_do_not_count() -> None:
    (x,) = arrays((5, 2, 3))
    ends = ENDS.copy()
    ends[1:, 1] = 0
    bottoms = [x, ends, together(column(0, 1), column())]
    np.testing.assert_allclose(forward(boxes(), bottoms)[0], -np.log(likelihood(x[:, 0], [0, 1], 2)[0]) / 2)
    (grad, *_), _ = gradients(boxes(), bottoms, [ONE])
    assert not grad[:, 1].any()


@pytest.mark.parametrize("merge", ["true", "false"])
def test_sequences_without_a_path_give_the_softmax(merge: str) -> None:
    (x,) = arrays((2, 1, 3))
    if merge == "false":
        x[:, :, 0] = -np.inf  # a label that cannot be said
    it = boxes(f"ctc_merge_repeated: {merge}", 2, 1)
    bottoms = [x, np.array([[0.0], [1.0]]), together(column(0, 0, steps=2))]
    assert forward(it, bottoms)[0] == np.inf
    (grad, *_), _ = gradients(it, bottoms, [ONE])
    np.testing.assert_allclose(grad[:, 0], softmax(x[:, 0]), atol=1e-12)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (together(column(), column(1)), "a sequence of more than one step has no labels"),
        (together(column(0, 1), column(0, 1, 0, 1)), "more labels than steps"),
        (together(column(0, 2, 1), column(1)), "a label stands behind one that is blank"),
    ],
)
def test_labels_that_textboxes_refuses(labels: Array, message: str) -> None:
    with pytest.raises(LayerError, match=message):
        forward(boxes(), [arrays((5, 2, 3))[0], ENDS, labels])


@pytest.mark.parametrize(
    ("text", "shapes", "message"),
    [
        ("", ((5, 2), (5, 2), (5, 2)), "they must be"),
        ("", ((5, 2, 3), (4, 2), (5, 2)), "differ in the first dimension"),
        ("", ((5, 2, 3), (5, 3), (5, 2)), "bottom 1 has shape"),
        ("", ((5, 2, 3), (5, 2), (5, 3)), "bottom 2 has shape"),
        ("blank_index: 3", ((5, 2, 3), (5, 2), (5, 2)), "blank_index 3 for 3 classes"),
        ("output_delay: 5", ((5, 2, 3), (5, 2), (5, 2)), "output_delay 5 for 5 steps"),
        ("output_delay: -1", ((5, 2, 3), (5, 2), (5, 2)), "output_delay -1 for 5 steps"),
    ],
)
def test_shapes_that_textboxes_refuses(text: str, shapes: tuple[tuple[int, ...], ...], message: str) -> None:
    with pytest.raises(LayerError, match=message):
        lone(f'type: "CTCLoss" ctc_loss_param {{ {text} }}', *shapes, dialect="textboxes")


def test_single_precision() -> None:
    (x,) = arrays((5, 2, 3))
    bottoms = [x, ENDS, together(column(0, 1), column(1))]
    for text in ("", "ctc_merge_repeated: false"):
        wide, single = (forward(boxes(text), bottoms, dtype=kind)[0] for kind in (np.float64, np.float32))
        assert single.dtype == np.float32
        np.testing.assert_allclose(single, wide, rtol=1e-5)
    assert torch.get_default_dtype() == torch.float32
