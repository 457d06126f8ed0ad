"""Pieces of Python source that several layers share; expressions are text, values are named as in `forward`."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

import numpy as np


def number(value: float) -> str:
    """The shortest text that is the same float32 number."""
    if not isfinite(value):
        return f'float("{value}")'
    return str(float(str(np.float32(value))))


def size(values: Sequence[int]) -> str:
    """One number when all are the same, as torch's modules take them, else all."""
    return str(values[0]) if len(set(values)) == 1 else str(tuple(values))


def call(name: str, *arguments: str, **named: str | None) -> str:
    """A call; named arguments that are None are left out."""
    stated = [f"{key}={value}" for key, value in named.items() if value is not None]
    return f"{name}({', '.join([*arguments, *stated])})"


def with_axes(expression: str, count: int) -> str:
    """The value with `count` axes of size 1 behind its own."""
    return f"{expression}[{', '.join(['...', *['None'] * count])}]" if count else expression
