"""The rate falls when accuracy stops improving, three times, and then training ends."""

from __future__ import annotations

import pytest

from repro.training.plateau import Plateau


def follow(accuracies: list[float], patience: int = 2, drops: int = 3) -> list[Plateau]:
    state, seen = Plateau(), []
    for number, accuracy in enumerate(accuracies, 1):
        state = state.after(accuracy, number, patience=patience, drops=drops)
        seen.append(state)
    return seen


def test_the_paper_s_course() -> None:
    course = follow([0.1, 0.3, 0.3, 0.2, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5])
    assert [state.drops for state in course] == [0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 3]
    assert [state.done for state in course] == [False] * 10 + [True]
    assert (course[-1].best, course[-1].best_iteration) == (0.5, 5)
    assert [round(state.rate(0.01), 8) for state in course[3::3]] == [0.001, 0.0001, 0.00001]


def test_equal_is_not_better_and_waiting_starts_anew() -> None:
    course = follow([0.4, 0.4, 0.41, 0.41, 0.41], patience=3)
    assert [state.waited for state in course] == [0, 1, 0, 1, 2]
    assert not any(state.drops for state in course)


@pytest.mark.parametrize("drops", [0, 1, 2])
def test_ends_after_the_drops(drops: int) -> None:
    course = follow([0.5] * 10, patience=1, drops=drops)
    assert next(index for index, state in enumerate(course) if state.done) == drops + 1


def test_an_accuracy_that_is_no_number_is_not_better() -> None:
    assert follow([0.5, float("nan")])[-1].best == 0.5
