"""Error rates, their intervals, the paper's rows, and labels that count the classes in another order."""

from __future__ import annotations

import numpy as np
import pytest

from repro.paper_errors import NETS, ROWS, paper_rows
from repro.scoring import Rate, errors_of, suspicion


@pytest.mark.parametrize(
    ("wrong", "count", "low", "high"),
    [
        (0, 10, 0.0, 27.753),  # Wilson's own bounds, z = 1.96, from R's binom.wilson
        (5, 10, 23.659, 76.341),
        (10, 10, 72.247, 100.0),
        (12400, 50000, 24.424, 25.180),
    ],
)
def test_wilson_intervals(wrong: int, count: int, low: float, high: float) -> None:
    assert Rate(wrong, count).percent == 100 * wrong / count
    assert Rate(wrong, count).interval == pytest.approx((low, high), abs=2e-3)


def test_no_images_tell_nothing() -> None:
    assert Rate(0, 0).interval == (0, 100)
    assert np.isnan(Rate(0, 0).percent)


def test_unreadable_images_count_as_wrong() -> None:
    errors = errors_of(np.array([0, 0, 1, 4, 5, 9]), unreadable=2)
    assert (errors.top1.wrong, errors.top1.count) == (6, 8)
    assert (errors.top5.wrong, errors.top5.count) == (4, 8)


def labels(classes: int, each: int) -> np.ndarray:
    return np.repeat(np.arange(classes), each)


def guesses(true: np.ndarray, classes: int, right: float) -> np.ndarray:
    """What a net thinks that is right so often."""
    generator = np.random.default_rng(0)
    return np.where(generator.random(len(true)) < right, true, generator.integers(0, classes, len(true)))


def test_a_good_or_a_bad_net_is_not_suspected() -> None:
    true = labels(50, 20)
    for right in (0.9, 0.4, 0.05, 0.0):
        assert suspicion(guesses(true, 50, right), true, 50) == ""


def test_a_permutation_is_found() -> None:
    true = labels(50, 20)
    order = np.random.default_rng(1).permutation(50)
    said = suspicion(guesses(true, 50, 0.8), order[true], 50)
    assert "classes in another order" in said
    assert "8" in said


def test_few_images_of_many_classes_do_not_make_a_permutation() -> None:
    """With one image a class any guesses can be matched, but nothing is left to judge the match by."""
    true = np.random.default_rng(0).permutation(1000)
    assert suspicion(np.random.default_rng(1).permutation(1000), true, 1000) == ""


@pytest.mark.parametrize(("shift", "said"), [(1, "one above"), (-1, "one below")])
def test_labels_that_count_from_another_number(shift: int, said: str) -> None:
    true = labels(10, 5)
    assert said in suspicion(guesses(true, 10, 0.7), true + shift, 11)


def test_a_handful_of_images_is_not_judged() -> None:
    assert suspicion(np.arange(5), np.arange(5) + 1, 9) == ""


# -- the paper -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nets", "protocol", "scales", "want"),
    [
        (["D"], "dense", [256], [(27.0, 8.8)]),
        (["D"], "dense", [384], [(26.8, 8.7), (25.6, 8.1)]),
        (["E"], "dense", [512, 256, 384], [(24.8, 7.5)]),
        (["E"], "both", [256, 384, 512], [(24.4, 7.1)]),
        (["E", "D"], "both", [256, 384, 512], [(23.7, 6.8)]),
        (["A-LRN"], "dense", [256], [(29.7, 10.5)]),
        (["D"], "tencrop", [256], []),
        (["D", "D"], "dense", [256, 384, 512], []),
        (["D"], "center", [256], [(28.5, 9.9), (29.03, 10.12)]),
    ],
)
def test_rows_of_the_paper(nets: list[str], protocol: str, scales: list[int], want: list[tuple[float, float]]) -> None:
    assert [(row.top1, row.top5) for row in paper_rows(nets, protocol, scales)] == want


def test_rows_are_plausible() -> None:
    assert {net for row in ROWS for net in row.nets} == set(NETS)
    assert all(6 < row.top5 < 11 < 23 < row.top1 < 30 for row in ROWS)
    assert len({(row.nets, row.trained, row.protocol, row.scales, row.source) for row in ROWS}) == len(ROWS)
