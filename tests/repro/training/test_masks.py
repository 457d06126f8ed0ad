"""Dropout masks are functions of seed, iteration, layer and place in the batch."""

from __future__ import annotations

from pathlib import Path
from zlib import crc32

import numpy as np
import pytest

from repro.training.masks import keep_mask
from tests.repro.training.tiny import Fixture

BASE = {"seed": 3, "iteration": 5, "layer": "drop6", "first": 0, "count": 12, "size": 37, "ratio": 0.5}


def mask(**changes: object) -> np.ndarray:
    return keep_mask(**{**BASE, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [1, 7, 8, 9, 37, 4096])
def test_parts_of_a_batch_make_the_whole(size: int) -> None:
    whole = mask(size=size)
    for parts in (1, 2, 3, 4, 12):
        step = 12 // parts
        cut = [mask(size=size, first=first, count=step) for first in range(0, 12, step)]
        np.testing.assert_array_equal(np.concatenate(cut), whole)


def test_everything_else_changes_it() -> None:
    base = mask()
    for change in ({"seed": 4}, {"iteration": 6}, {"layer": "drop7"}, {"first": 1}):
        assert 0.3 < (mask(**change) != base).mean() < 0.7, change
    assert len({row.tobytes() for row in mask(size=64)}) == 12, "every image has its own"


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.5, 0.9])
def test_share(ratio: float) -> None:
    kept = mask(count=64, size=4096, ratio=ratio).mean()
    assert abs(kept - (1 - ratio)) < 5 * (0.25 / (64 * 4096)) ** 0.5


def test_rule() -> None:
    """A value is kept when its 32-bit number of Philox, at the block of its image, is not below the ratio."""
    numbers = np.random.Philox(counter=[2 * 5, 5, 0, 0], key=[3, crc32(b"drop6")]).random_raw(20).view(np.uint32)
    np.testing.assert_array_equal(mask(first=2, count=1)[0], numbers[:37] / 2**32 >= 0.5)


def test_layers_get_them(tmp_path: Path) -> None:
    it = Fixture(tmp_path, micro=8)
    it.passes(it.batch(4))
    drawn = it.net.graph.context.state["draws"]["drop"]
    np.testing.assert_array_equal(drawn, keep_mask(0, 4, "drop", 0, 8, 16, 0.5))
