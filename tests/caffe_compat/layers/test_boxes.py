"""Overlaps, codes and suppression of boxes against loops over single ones."""

from __future__ import annotations

import numpy as np
import pytest

from caffe_compat.layers.boxes import BLOCK, Code, areas, best, overlaps, suppress
from caffe_compat.schema import pb
from tests.caffe_compat.layers import naive_boxes as naive

KINDS = ("CORNER", "CENTER_SIZE", "CORNER_SIZE")


def boxes32(count: int, seed: int = 0, **sizes: float) -> np.ndarray:
    return naive.random_boxes(count, seed, **sizes).astype(np.float32)


def test_areas_and_overlaps() -> None:
    a, b = boxes32(40), boxes32(30, 1)
    a[3], a[4], b[5] = a[3][[2, 1, 0, 3]], a[4][[2, 3, 0, 1]], a[6]
    np.testing.assert_allclose(areas(a), [naive.area(box) for box in a], rtol=1e-5)
    want = [[naive.overlap(one, other) for other in b] for one in a]
    np.testing.assert_allclose(overlaps(a, b), want, rtol=1e-5, atol=1e-7)
    assert overlaps(a, b)[6, 5] == 1
    assert not overlaps(a, b)[3:5].any(), "inverted boxes share nothing"


@pytest.mark.parametrize("a", [[0, 0, 0, 0], [np.nan] * 4, [0, 0, np.inf, 1]])
def test_overlaps_of_strange_boxes_are_numbers(a: list[float]) -> None:
    strange, box = np.array([a], np.float32), np.array([[0, 0, 1, 1]], np.float32)
    assert overlaps(strange, box)[0, 0] == 0
    assert overlaps(box, strange)[0, 0] == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("in_target", [False, True])
def test_codes(kind: str, in_target: bool) -> None:
    code = Code(pb.PriorBoxParameter.CodeType.Value(kind), in_target)
    priors, truth, variances = boxes32(20), boxes32(20, 1), np.full((20, 4), 0.2, np.float32)
    variances[:, 2:] = 0.1
    told = code.encode(priors, variances, truth)
    rows = zip(truth, priors, variances, strict=True)
    want = [naive.encode(box, prior, variance, kind, in_target) for box, prior, variance in rows]
    np.testing.assert_allclose(told, want, rtol=1e-4, atol=1e-5)
    rows = zip(told, priors, variances, strict=True)
    want = [naive.decode(c, prior, variance, kind, in_target) for c, prior, variance in rows]
    got = code.decode(priors, variances, told)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got, truth, atol=1e-5)


@pytest.mark.parametrize("count", [0, 1, 30, BLOCK, 3 * BLOCK + 7])
@pytest.mark.parametrize(
    ("threshold", "eta"), [(0.45, 1.0), (0.0, 1.0), (1.0, 1.0), (0.9, 0.9), (0.7, 0.5), (0.4, 0.9)]
)
def test_suppression(count: int, threshold: float, eta: float) -> None:
    boxes = boxes32(count, count, least=0.1, most=0.4)
    assert suppress(boxes, threshold, eta).tolist() == naive.suppress(boxes.astype(float), threshold, eta)


def test_identical_boxes_leave_one() -> None:
    boxes = np.repeat(boxes32(1), 600, axis=0)
    assert suppress(boxes, 0.5).tolist() == [0]
    assert suppress(boxes, 1.0).tolist() == list(range(600)), "an overlap equal to the threshold is allowed"


@pytest.mark.parametrize("most", [-1, 0, 1, 5, 10, 100])
def test_best_keeps_the_order_of_equal_scores(most: int) -> None:
    scores = np.array([0.5, 0.9, 0.5, 0.1, 0.9, 0.2, 0.5, np.nan, 0.05, 0.9], np.float32)
    want = [1, 4, 9, 0, 2, 6, 5]
    assert best(scores, 0.1, most).tolist() == (want if most < 0 else want[:most])
