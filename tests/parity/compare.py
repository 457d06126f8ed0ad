"""Comparison that tells every difference at once and cannot pass by comparing nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.tolerances import EXACT, Tolerance

SHOWN = 12


@dataclass
class Comparison:
    """The differences found so far.

    Attributes:
        count: comparisons made.
        differences: one line each.
        worst: largest ratio of an array comparison to its tolerance, and what it was; 1 and below passes.
    """

    count: int = 0
    differences: list[str] = field(default_factory=list)
    worst: tuple[float, str] = (0.0, "")

    def array(self, key: str, got: Any, want: NDArray[Any], tolerance: Tolerance = EXACT) -> None:
        """Shapes equal and values within the tolerance; a tensor or anything numpy can read will do for `got`."""
        self.count += 1
        if got is None:
            self.differences.append(f"{key}: missing")
            return
        got = got.detach().numpy() if hasattr(got, "detach") else np.asarray(got)
        if got.shape != want.shape:
            self.differences.append(f"{key}: shape {got.shape}, want {want.shape}")
            return
        ratio = tolerance.ratio(got, want)
        self.worst = max(self.worst, (ratio, key))
        if ratio > 1:
            self.differences.append(f"{key}: {_summary(got, want)}, {ratio:.3g} times the tolerance")

    def equal(self, key: str, got: Any, want: Any) -> None:
        """Plain equality."""
        self.count += 1
        if got != want:
            self.differences.append(f"{key}: {_short(got)}, want {_short(want)}")

    def check(self, ok: bool, what: str) -> None:
        """A condition, with what is wrong when it does not hold."""
        self.count += 1
        if not ok:
            self.differences.append(what)


@contextmanager
def comparing() -> Iterator[Comparison]:
    """Fail at the end with all differences, or when nothing was compared."""
    comparison = Comparison()
    yield comparison
    if not comparison.count:
        pytest.fail("nothing was compared", pytrace=False)
    if comparison.differences:
        lines = comparison.differences
        more = [f"... and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
        pytest.fail("\n".join(lines[:SHOWN] + more), pytrace=False)


def _summary(got: NDArray[Any], want: NDArray[Any]) -> str:
    with np.errstate(all="ignore"):
        distance = np.abs(got.astype(np.float64) - want.astype(np.float64))
    distance = np.where(np.isnan(got.astype(np.float64)) & np.isnan(want.astype(np.float64)), 0, distance)
    at = np.unravel_index(np.nanargmax(np.where(np.isnan(distance), np.inf, distance)), want.shape)
    place = ",".join(map(str, at))
    wrong = int((distance != 0).sum())
    return f"[{place}] = {got[at]:.9g}, want {want[at]:.9g} ({wrong} of {want.size} differ)"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 300 else text[:297] + "..."
