"""Random numbers that are functions of what they are for, not of what was drawn before.

Philox is a counter-based generator: a number is a function of a key and a counter. The key is (seed, purpose), the
counter (image, epoch). So a batch can be made by any number of threads and processes, or anew after an interruption,
and is the same. Only Philox's raw output is used, which NumPy keeps stable; its distributions it does not.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

ORDER, IMAGE = range(2)
"""Purposes of numbers."""


def raw(seed: int, purpose: int, epoch: int, index: int, count: int) -> NDArray[np.uint64]:
    """That many numbers below 2**64."""
    key = np.array([seed % 2**64, purpose], np.uint64)
    counter = np.array([0, index, epoch, 0], np.uint64)  # the first word counts the blocks of one stream
    return np.asarray(np.random.Philox(key=key, counter=counter).random_raw(count), np.uint64)


def epoch_order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    """The order in which an epoch goes through `count` images: by a random number each, equal ones by index."""
    return np.argsort(raw(seed, ORDER, epoch, 0, count), kind="stable")


class Draws:
    """The numbers of one image in one epoch, one after another.

    Args:
        count: how many will be taken at most; a normal one takes two.
    """

    def __init__(self, seed: int, epoch: int, index: int, count: int) -> None:
        self._left = iter((raw(seed, IMAGE, epoch, index, count) >> np.uint64(11)).tolist())

    def uniform(self) -> float:
        """A number in [0, 1), a multiple of 2**-53."""
        number: int = next(self._left)
        return number * 2.0**-53

    def below(self, limit: int) -> int:
        """A number of 0 to limit - 1."""
        return int(self.uniform() * limit)

    def normal(self) -> float:
        """A number of mean 0 and variance 1 (Box and Muller 1958)."""
        radius, angle = math.sqrt(-2 * math.log1p(-self.uniform())), 2 * math.pi * self.uniform()
        return radius * math.cos(angle)
