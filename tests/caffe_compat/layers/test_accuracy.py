"""Accuracy against a naive reference, under both profiles."""

from __future__ import annotations

import numpy as np
import pytest

from caffe_compat.errors import LayerError
from tests.caffe_compat.layers.harness import Array, arrays, forward, gradients, lone


def reference(x: Array, labels: Array, axis: int, top_k: int, ignore: int | None) -> tuple[float, Array]:
    axis %= x.ndim
    classes = x.shape[axis]
    flat = x.reshape(int(np.prod(x.shape[:axis])), classes, -1)
    given = labels.reshape(flat.shape[0], flat.shape[2])
    hits, seen = np.zeros(classes), np.zeros(classes)
    for i in range(flat.shape[0]):
        for j in range(flat.shape[2]):
            label = int(given[i, j])
            if label == ignore:
                continue
            seen[label] += 1
            better = sum(flat[i, k, j] >= flat[i, label, j] for k in range(classes)) - 1
            hits[label] += better < top_k
    return hits.sum() / max(seen.sum(), 1), hits / np.maximum(seen, 1)


@pytest.mark.parametrize("ignore", [None, 1])
@pytest.mark.parametrize("top_k", [1, 2, 4])
@pytest.mark.parametrize(("shape", "axis"), [((7, 4), 1), ((2, 4, 3, 2), 1), ((3, 2, 4), -1), ((4, 5), 0)])
def test_shares(shape: tuple[int, ...], axis: int, top_k: int, ignore: int | None) -> None:
    x = np.random.default_rng(0).integers(0, 4, shape).astype(float)  # many ties
    count = x.size // 4
    labels = np.random.default_rng(1).integers(0, 4, count).astype(float)
    ignored = "" if ignore is None else f"ignore_label: {ignore}"
    it = lone(f'type: "Accuracy" accuracy_param {{ top_k: {top_k} axis: {axis} {ignored} }}', shape, (count,), tops=2)
    assert it.top_shapes == [(), (4,)]
    whole, per_class = forward(it, [x, labels])
    want, want_per_class = reference(x, labels, axis, top_k, ignore)
    np.testing.assert_allclose(whole, want)
    np.testing.assert_allclose(per_class, want_per_class)


def test_a_tie_with_the_true_class_counts_against_it() -> None:
    it = lone('type: "Accuracy"', (2, 3), (2,))
    assert forward(it, [np.array([[1.0, 1, 0], [2, 1, 0]]), np.zeros(2)])[0] == 0.5


def test_a_true_class_that_is_no_number_counts_as_found() -> None:
    it = lone('type: "Accuracy"', (1, 2), (1,))
    assert forward(it, [np.array([[np.nan, 1.0]]), np.zeros(1)])[0] == 1


def test_nothing_counts() -> None:
    it = lone('type: "Accuracy" accuracy_param { ignore_label: 1 }', (2, 3), (2,), tops=2)
    whole, per_class = forward(it, [np.zeros((2, 3)), np.ones(2)])
    assert whole == 0
    assert not per_class.any()


def test_no_gradient() -> None:
    it = lone('type: "Accuracy"', (2, 3), (2,))
    assert not it.layer.BACKWARD
    assert not any(it.layer.propagates(index) for index in range(2))
    assert it.node.loss_weights == (0.0,)


@pytest.mark.parametrize(
    ("fields", "options"), [("loss_weight: 1", {}), ("", {"profile": "dec2013"})], ids=["loss_weight", "dec2013"]
)
def test_a_gradient_is_refused(fields: str, options: dict[str, str]) -> None:
    it = lone(f'type: "Accuracy" {fields}', (2, 3, 1, 1), (2, 1, 1, 1), **options)  # type: ignore[arg-type]
    bottoms = [np.zeros((2, 3, 1, 1)), np.zeros((2, 1, 1, 1))]
    forward(it, bottoms)
    with pytest.raises(LayerError, match="has no backward pass"):
        gradients(it, bottoms, [np.ones(it.top_shapes[0])])


def test_label_out_of_range() -> None:
    it = lone('type: "Accuracy"', (2, 3), (2,))
    with pytest.raises(LayerError, match=r"label 5 at index 1 .* accuracy_param \{ ignore_label: 5 \}"):
        forward(it, [np.zeros((2, 3)), np.array([0.0, 5.0])])


@pytest.mark.parametrize(
    ("fields", "shapes", "message"),
    [
        ("top_k: 4", ((2, 3), (2,)), "top_k 4 is more than the 3 classes"),
        ("axis: 2", ((2, 3), (2,)), "axis 2 is out of range"),
        ("", ((2, 3, 2), (2,)), "2 labels for 4 predictions"),
    ],
)
def test_refused(fields: str, shapes: tuple[tuple[int, ...], ...], message: str) -> None:
    with pytest.raises(LayerError, match=message):
        lone(f'type: "Accuracy" accuracy_param {{ {fields} }}', *shapes)


def test_2013_gives_the_likelihood_too() -> None:
    it = lone('type: "Accuracy"', (3, 2, 2, 1), (3, 1, 1, 1), profile="dec2013")
    (p,) = arrays((3, 2, 2, 1), low=0.1, high=0.9)
    p[0] = 0.25  # ties go to the first class
    p[2, 1, 1, 0] = 0
    labels = np.array([0.0, 2.0, 3.0])
    flat = p.reshape(3, 4)
    hits = [flat[i].argmax() == label for i, label in enumerate(labels)]
    likelihood = -np.log(np.maximum(flat[range(3), labels.astype(int)], 1e-20)).mean()
    assert it.top_shapes == [(1, 2, 1, 1)]
    np.testing.assert_allclose(
        forward(it, [p, labels.reshape(3, 1, 1, 1)])[0].ravel(), [np.mean(hits), likelihood], rtol=1e-12
    )


def test_2013_begins_below_all_numbers_and_passes_over_what_is_none() -> None:
    scores = np.array([[np.nan, 2, 1], [np.nan, -np.inf, np.nan], [-np.inf, -np.inf, -3e38], [3, np.inf, np.nan]])
    it = lone('type: "Accuracy"', (4, 3, 1, 1), (4, 1, 1, 1), profile="dec2013")
    for labels, share in (([1, 0, 2, 1], 1), ([0, 2, 1, 2], 0)):
        top = forward(it, [scores.reshape(4, 3, 1, 1), np.array(labels, float).reshape(4, 1, 1, 1)])[0]
        assert top.flat[0] == share


@pytest.mark.parametrize(
    ("fields", "message"),
    [("accuracy_param { top_k: 1 }", "has no top_k under profile dec2013")],
)
def test_2013_refused(fields: str, message: str) -> None:
    with pytest.raises(LayerError, match=message):
        lone(f'type: "Accuracy" {fields}', (3, 2, 1, 1), (3, 1, 1, 1), profile="dec2013")
