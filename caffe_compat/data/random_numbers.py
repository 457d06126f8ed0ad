"""Where data layers have their random numbers from."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Draw = Callable[[], int]
"""Gives the next raw number, >= 0; Caffe takes its remainder."""

KEPT = 31
"""Numbers that glibc's generator remembers."""


def generator(seed: int, *names: str) -> np.random.Generator:
    """Random numbers that follow from a seed and names; equal seeds give other numbers than Caffe's."""
    words = [len(names), *(word for name in names for word in (len(name.encode()), *name.encode()))]
    return np.random.default_rng([seed, *words])


def state_of(numbers: np.random.Generator) -> dict[str, Any]:
    """Where a generator stands, as JSON values."""
    return dict(numbers.bit_generator.state)


def set_state(numbers: np.random.Generator, state: Mapping[str, Any]) -> None:
    """Let a generator stand where `state_of` found it.

    Raises:
        TypeError, ValueError: the state is none of such a generator.
    """
    numbers.bit_generator.state = dict(state)


def draw_from(numbers: np.random.Generator) -> Draw:
    """Raw numbers below 2**32, as Caffe's generator gives."""
    return lambda: int(numbers.integers(2**32))


class CRand:
    """The C library's rand() of glibc (additive feedback, r[i] = r[i-3] + r[i-31]), which Caffe of 2013 draws from.

    Args:
        seed: of srand(); a program that never calls it has 1.
    """

    def __init__(self, seed: int = 1) -> None:
        state = [seed or 1]
        while len(state) < KEPT:
            state.append(16807 * state[-1] % 2147483647)
        self._state = deque([*state[3:], *state[:3]], maxlen=KEPT)
        for _ in range(10 * KEPT):
            self()

    @property
    def state(self) -> list[int]:
        """Where it stands; setting it goes there."""
        return list(self._state)

    @state.setter
    def state(self, numbers: Sequence[int]) -> None:
        if len(numbers) != KEPT:
            raise ValueError(f"{len(numbers)} numbers; the generator keeps {KEPT}")
        self._state.extend(numbers)

    def __call__(self) -> int:
        """The next number, 0 to 2**31 - 1."""
        value = (self._state[0] + self._state[-3]) % 2**32
        self._state.append(value)
        return value >> 1
