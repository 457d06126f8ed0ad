"""The C library's rand(), and numbers that follow from seeds and names."""

from __future__ import annotations

import pytest

from caffe_compat.data.random_numbers import CRand, draw_from, generator

GLIBC = {
    1: [1804289383, 846930886, 1681692777, 1714636915, 1957747793],
    3: [1205554746, 483147985, 844158168, 953350440, 612121425],
    1701: [1261625523, 264924384, 608310849, 1039934068, 561024023],
}
"""srand(seed), then rand(): what the data layer of 2013 was seen to draw."""


@pytest.mark.parametrize("seed", GLIBC)
def test_rand_of_glibc(seed: int) -> None:
    rand = CRand(seed)
    assert [rand() for _ in range(5)] == GLIBC[seed]


def test_seed_0_counts_as_1() -> None:
    assert CRand(0)() == CRand()() == GLIBC[1][0]


def test_numbers_follow_from_seed_and_names() -> None:
    def first(seed: int, *names: str) -> list[int]:
        draw = draw_from(generator(seed, *names))
        return [draw() for _ in range(4)]

    assert first(1, "data") == first(1, "data")
    cases = [(1, "data"), (2, "data"), (1, "dat", "a"), (1, "data", ""), (1, "a", "data"), (1,)]
    assert len({tuple(first(seed, *names)) for seed, *names in cases}) == len(cases)
    assert all(0 <= number < 2**32 for number in first(0, ""))
