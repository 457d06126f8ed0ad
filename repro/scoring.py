"""Top-1 and top-5 errors with intervals, and what labels in a wrong order look like."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from math import sqrt

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

Z = 1.959963984540054
"""Of the normal distribution: 95% of it lies within so many deviations."""
TOP = 5


@dataclass(frozen=True)
class Rate:
    """A share of images, in per cent, with its 95% interval (Wilson 1927).

    Attributes:
        wrong, count: what it was found from.
    """

    wrong: int
    count: int

    @property
    def percent(self) -> float:
        return 100 * self.wrong / self.count if self.count else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        """Lower and upper bound, in per cent; everything when there are no images."""
        if not self.count:
            return 0.0, 100.0
        n, share, z = self.count, self.wrong / self.count, Z
        middle = (share + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * sqrt(share * (1 - share) / n + z * z / (4 * n * n))
        return 100 * max(0.0, middle - half), 100 * min(1.0, middle + half)


@dataclass(frozen=True)
class Errors:
    """The paper's two measures. Images that could not be read count as wrong."""

    top1: Rate
    top5: Rate


def errors_of(ranks: Ints, unreadable: int = 0) -> Errors:
    """From the number of classes above each label, see repro.protocols.ranks."""
    count = len(ranks) + unreadable
    wrong = [int((ranks >= k).sum()) + unreadable for k in (1, TOP)]
    return Errors(Rate(wrong[0], count), Rate(wrong[1], count))


# -- labels in another order -----------------------------------------------------------------------------------

GAIN = 0.2
"""How much the accuracy must rise, and at least double, when classes are renamed, for the order to be suspected."""
EVERY = 4
"""Images of which this is one are left out when classes are matched, and judge the match."""


def suspicion(best: Ints, labels: Ints, classes: int) -> str:
    """A sentence when the labels seem to count the classes in another order than the net; "" otherwise.

    Args:
        best: the class that the net thinks of first, for each image.
        labels: what is said to be right.
        classes: of the net.
    """
    if len(best) < 2 * TOP:
        return ""
    plain = float((best == labels).mean())
    for shift in (1, -1):
        if _better(float((best + shift == labels).mean()), plain):
            than = "above" if shift == 1 else "below"
            return f"most labels are one {than} the class that the net gives: they seem to count from another number"
    renamed = _renamed(best, labels, classes) if find_spec("scipy") else 0.0
    if _better(renamed, plain):
        return (
            f"with classes renamed one to one {100 * renamed:.0f}% would be right instead of {100 * plain:.0f}%: "
            "labels and net seem to have their classes in another order"
        )
    return ""


def _better(share: float, plain: float) -> bool:
    return share > plain + GAIN and share > 2 * plain


def _renamed(best: Ints, labels: Ints, classes: int) -> float:
    """The accuracy on images left out when classes are matched one to one on the others."""
    held = np.zeros(len(best), bool)
    for label in np.unique(labels):  # of each class one in EVERY is left out
        held[np.flatnonzero(labels == label)[EVERY - 1 :: EVERY]] = True
    if not held.any():
        return 0.0
    size = max(classes, int(labels.max()) + 1)
    counts = np.zeros((size, size), np.int64)
    np.add.at(counts, (best[~held], labels[~held]), 1)
    renamed = _matched(counts)[best[held]]
    return float((renamed == labels[held]).mean())


def _matched(counts: Ints) -> Ints:
    """Class of the net -> label, so that as many images as possible are right; -1 where nothing tells."""
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(counts, maximize=True)
    found = np.full(len(counts), -1, np.int64)
    sure = counts[rows, columns] > 0
    found[rows[sure]] = columns[sure]
    return found
